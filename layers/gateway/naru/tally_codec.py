"""Tallies as bytes: the same tally is always the same bytes, so that writing a roll-up again changes nothing."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from functools import partial
from typing import Any

from naru.percentiles import Durations
from naru.tally import Call, Cell, Failure, Spent, Sums, Tally, Users

_VERSION = 2
_LENGTH_BYTES = 4


def encode(tally: Tally) -> bytes:
    """Compressed JSON, sorted: how long it is, everything but end users, end users."""
    users = tally.users
    users.trim()
    content = {
        "version": _VERSION,
        "cells": [[*cell, *sums.values()] for cell, sums in sorted(tally.cells.items())],
        "failures": [[*failure, count] for failure, count in sorted(tally.failures.items())],
        "calls": [[*call, count] for call, count in sorted(tally.calls.items())],
        "first_token": _durations(tally.first_token),
        "latency": _durations(tally.latency),
    }
    who_spent = {
        "users": [[*who, *_spent(spent)] for who, spent in sorted(users.named.items())],
        "others": [[key_id, *_spent(spent)] for key_id, spent in sorted(users.others.items())],
    }
    packed = _pack(content)
    return len(packed).to_bytes(_LENGTH_BYTES, "big") + packed + _pack(who_spent)


def decode(content: bytes) -> Tally:
    """The tally again. Its end users, which may be as many as all the rest a hundred times over, stay packed until
    somebody asks for them.

    Raises ValueError for what another version has written.
    """
    end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "big")
    try:
        found = _unpack(content[_LENGTH_BYTES:end])
    except zlib.error as error:
        raise ValueError(f"not a roll-up of this version: {error}") from error
    if found.get("version") != _VERSION:
        raise ValueError(f"a roll-up of version {found.get('version')}")
    tally = Tally()
    width = len(Cell._fields)
    for line in found["cells"]:
        tally.cells[Cell(*line[:width])] = Sums(*line[width:])
    tally.failures = Counter({Failure(*line[:-1]): line[-1] for line in found["failures"]})
    tally.calls = Counter({Call(*line[:-1]): line[-1] for line in found["calls"]})
    for name, durations in (("first_token", tally.first_token), ("latency", tally.latency)):
        for key_id, model, bins in found[name]:
            durations[key_id, model] = Durations(Counter({key: count for key, count in bins}))  # noqa: C416 - pairs
    tally.users = Users(later=[partial(_users, content[end:])])
    return tally


def _users(packed: bytes) -> Users:
    found, users = _unpack(packed), Users()
    for key_id, end_user, *spent in found["users"]:
        users.add(key_id, end_user, Spent(*spent))
    for key_id, *spent in found["others"]:
        users.add_other(key_id, Spent(*spent))
    return users


def _pack(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return zlib.compress(text.encode("utf-8", "surrogatepass"), 6)


def _unpack(packed: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(zlib.decompress(packed).decode("utf-8", "surrogatepass"))
    return found


def _durations(groups: dict[tuple[str, str], Durations]) -> list[list[Any]]:
    return [[*group, sorted(durations.bins.items())] for group, durations in sorted(groups.items())]


def _spent(spent: Spent) -> tuple[int, int, int]:
    return spent.requests, spent.tokens, spent.cost_pico_usd
