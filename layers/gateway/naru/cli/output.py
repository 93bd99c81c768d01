"""How the command talks to people: tables, amounts, times, and failures in one line.

Everything that the command prints goes through here, because most of it was written by others: names, ids, errors of a
gateway or of what answers in its place. What cannot be seen is shown as an escape (:mod:`naru.plain_text`), so no text
moves the cursor, changes a title, hides a part of itself or begins a line of its own. Files are written byte by byte.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import ROUND_UP, Decimal
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from naru.amounts import write_json
from naru.plain_text import shown, shown_json

_CENT_PARTS = Decimal("0.0001")
_SEOUL = "Asia/Seoul"
"""The stack's own default; whoever deploys with another TimeZone sets NARU_TIME_ZONE here, too."""


class CommandError(Exception):
    """What could not be done, and what to do about it."""

    exit_status = 1


class MisuseError(CommandError):
    """The command was called in a way that cannot work."""

    exit_status = 2


def show(line: str = "") -> None:
    """A line of the output."""
    print(shown(line))


def note(line: str) -> None:
    """A line for people, beside the output."""
    print(shown(line), file=sys.stderr)


def show_json(value: Mapping[str, Any]) -> None:
    """For machines: one line, with every digit."""
    print(shown_json(write_json(value)))


def show_secret(secret: str, *notes: str) -> None:
    """The secret to stdout and nothing else, so that ``KEY=$(naru keys create app)`` works; notes for people beside it."""
    for each in notes:
        note(each)
    sys.stderr.flush()
    show(secret)


def show_content(text: str, *, is_json: bool = False) -> None:
    """A document: as it is for a file or a program, with escapes for a terminal. JSON has escapes in any case, which
    change nothing about it.
    """
    if is_json:
        text = shown_json(text, lines=True)
    elif sys.stdout.isatty():
        text = "\n".join(map(shown, text.replace("\r\n", "\n").split("\n")))
    print(text, end="" if text.endswith("\n") else "\n")


@contextmanager
def byte_output() -> Iterator[BinaryIO]:
    """Where the bytes of a file of JSON lines go that nobody has named a place for: byte by byte to a program, on a
    terminal with escapes.
    """
    if not sys.stdout.isatty():
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with SpooledTemporaryFile() as kept:
        yield cast("BinaryIO", kept)
        kept.seek(0)
        for line in kept:
            print(shown_json(line.decode(errors="backslashreplace"), lines=True), end="")
    sys.stdout.flush()


def show_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; a Korean letter takes two places."""
    lines = [[*map(shown, row)] for row in (headings, *rows)]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def show_facts(facts: Mapping[str, str]) -> None:
    """One fact per line."""
    names = {name: shown(name) for name in facts}
    width = max(map(_width, names.values()))
    for name, fact in facts.items():
        print(f"{names[name]}{' ' * (width - _width(names[name]))}  {shown(fact)}")


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
