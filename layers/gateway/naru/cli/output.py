"""How the command talks to people: tables, amounts, times, and failures in one line."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import ROUND_UP, Decimal
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from naru.amounts import write_json

_CENT_PARTS = Decimal("0.0001")
_SEOUL = "Asia/Seoul"
"""The stack's own default; whoever deploys with another TimeZone sets NARU_TIME_ZONE here, too."""


class CommandError(Exception):
    """What could not be done, and what to do about it."""

    exit_status = 1


class MisuseError(CommandError):
    """The command was called in a way that cannot work."""

    exit_status = 2


def show_json(value: Mapping[str, Any]) -> None:
    """For machines: one line, with every digit."""
    print(write_json(value))


def show_secret(secret: str, *notes: str) -> None:
    """The secret to stdout and nothing else, so that ``KEY=$(naru keys create app)`` works; notes for people beside it."""
    for note in notes:
        print(note, file=sys.stderr)
    sys.stderr.flush()
    print(secret)


def note(text: str) -> None:
    """For people, beside the output."""
    print(text, file=sys.stderr)


def show_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; a Korean letter takes two places."""
    widths = [max(map(_width, column)) for column in zip(headings, *rows, strict=True)]
    for row in (headings, *rows):
        cells = (cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def show_facts(facts: Mapping[str, str]) -> None:
    """One fact per line."""
    width = max(map(len, facts))
    for name, fact in facts.items():
        print(f"{name:<{width}}  {fact}")


def usd(amount: Decimal | int | None, *, short: bool = False) -> str:
    """An amount in dollars; ``short`` rounds it up to a hundredth of a cent."""
    if amount is None:
        return "no limit"
    amount = Decimal(amount)
    if short and amount != amount.quantize(_CENT_PARTS, ROUND_UP):
        amount = amount.quantize(_CENT_PARTS, ROUND_UP)
    return f"{amount:,f}"


def moment(at_s: int | None, *, none: str = "never") -> str:
    """A time on the clock of the business, whose zone it names: days and budgets begin by that clock, wherever the
    operator or a build server sits.
    """
    return datetime.fromtimestamp(at_s, _zone()).strftime("%Y-%m-%d %H:%M %Z") if at_s is not None else none


def _zone() -> ZoneInfo:
    name = os.environ.get("NARU_TIME_ZONE") or _SEOUL
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        raise MisuseError(f"NARU_TIME_ZONE is {name!r}, which is no time zone; write it as {_SEOUL}") from None


def count(number: int | None) -> str:
    """A limit."""
    return f"{number:,}" if number is not None else "-"


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
