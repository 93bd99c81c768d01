"""Texts of others on a terminal, as JSON on a terminal, and in CSV."""

from __future__ import annotations

import csv
import io
import json
import sys
import unicodedata
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from naru.plain_text import CsvWriter, is_unseen, shown, shown_json

LAYER = Path(__file__).parents[2] / "layers" / "gateway" / "naru"

HOSTILE = {
    "escape": "a\x1b[2J\x1b]8;;https://evil.example\x1b\\b",
    "c0": "".join(map(chr, range(32))),
    "del and c1": "".join(map(chr, range(127, 160))),
    "carriage return": "good\rEVIL",
    "backspace": "good\b\b\b\bEVIL",
    "newline": "one\ntwo\r\nthree",
    "separators": "a\u2028b\u2029c\x85d\x0be\x0cf",
    "bidi": "\u202eabc\u202c \u2066x\u2069 \u200f\u061c",
    "zero width": "a\u200bb\u200cc\u200dd\u2060e\ufefff\u00adg",
    "fillers": "a\u3164b\u115f\u1160c\uffa0d\u034fe\u17b4f\u180ei",
    "variations": "a\ufe0fb\U000e0101c\U000e0041d",
    "half a pair": "a\ud83d",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_cannot_be_seen_is_shown(text: str) -> None:
    told = shown(text)
    assert not any(map(is_unseen, told))
    assert told.count("\\") >= sum(map(is_unseen, text))
    # Nothing else is lost.
    assert [letter for letter in text if not is_unseen(letter) and letter in told] == [
        letter for letter in text if not is_unseen(letter)
    ]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_json_on_a_terminal_has_the_same_value(text: str) -> None:
    value = {"id": text, text: [1, text + "😀한글"]}
    told = shown_json(json.dumps(value, ensure_ascii=False))
    assert not any(map(is_unseen, told))
    assert "😀한글" in told
    assert json.loads(told) == value
    lines = shown_json(f"{json.dumps(value, ensure_ascii=False)}\n{{}}\n", lines=True)
    assert [json.loads(line) for line in lines.split("\n")[:-1]] == [value, {}]


def test_what_can_be_seen_stays() -> None:
    text = "naru 나루 なる \u3000 é ~ \u00a0 ① 한국어😀 \\n 100% [red]"
    assert shown(text) == text
    assert shown_json(text) == text


def test_every_character_of_the_categories_that_are_not_seen_is_shown() -> None:
    """Of all of Unicode, as this Python knows it."""
    unseen = {"Cc", "Cf", "Zl", "Zp", "Cs"}
    wrong = [
        hex(code)
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(letter := chr(code)) in unseen and (not is_unseen(letter) or letter in shown(letter))
    ]
    assert wrong == []


# ── CSV ────────────────────────────────────────────────────────────────────────────────────────────────────

FORMULAS = [
    *(f"{sign}1+1" for sign in "=+-@＝＋－＠﹦﹢﹣﹫⁼⁺⁻₌₊₋−‐‑‒–—―﹘⸺"),  # noqa: RUF001
    *(f"{lead}=cmd|' /C calc'!A0" for lead in ("\ufeff", "\u200b", "\u2060", "\u00ad", "\u202e", "\u3164", "\u115f", "\ufe0f", "\U000e0001", "\x00", "\x1b", "\x7f", "\x85")),
    *(f"{lead}=1" for lead in ("\t", "\r", "\n", "\r\n", " ", "   ", "\u00a0", "\u3000", "\u2003", "\x0b", "\x0c", "\u2028", " \u200b \ufeff")),
    *(f"{lead}＝1" for lead in ("\u200b", " ", "\ufeff", "\t", "\u3000\u200d")),  # noqa: RUF001
    *(f"{lead}harmless" for lead in ("\ufeff", "\u200b", "\t", "\r", "\n")),
    "\u200b", "\ufeff", "\t", "=", "＝", "-", "@SUM(1)", '="a"', "+82 10", "=\n1",  # noqa: RUF001
]  # fmt: skip
HARMLESS = ["", "a=b", "user-1", "사용자,3", '"=1"', "'=1", "1+1", "1-2", " a", "\u3000a", "a\u200b=", "a\n=1", "(=1)", "．=", "😀=1", ";=1", "!x", "#x", "%x", "0", "é", "a\r=1", "a\r\n=1", " \u200b"]  # noqa: RUF001 # fmt: skip


def cells(*values: Any) -> list[str]:
    text = io.StringIO()
    CsvWriter(text, [f"c{number}" for number in range(len(values))]).write(values)
    (line,) = list(csv.reader(io.StringIO(text.getvalue(), newline="")))[1:]
    return line


@pytest.mark.parametrize("text", FORMULAS, ids=ascii)
def test_a_cell_that_a_spreadsheet_may_compute_begins_with_an_apostrophe(text: str) -> None:
    assert cells(text, "x") == [f"'{text}", "x"]


@pytest.mark.parametrize("text", HARMLESS, ids=ascii)
def test_any_other_cell_stays_as_it_is(text: str) -> None:
    assert cells(text, "x") == [text, "x"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(-1, "-1"), (Decimal("-0.50"), "-0.50"), (Decimal("-1E-12"), "-0.000000000001"), (None, ""), (True, "true"), (False, "false"), (0, "0")],
)  # fmt: skip
def test_numbers_stay_numbers(value: Any, expected: str) -> None:
    assert cells(value, "x") == [expected, "x"]


def test_there_is_one_writer() -> None:
    users = {path.name for path in LAYER.rglob("*.py") if "csv.writer" in path.read_text() or "csv.DictWriter" in path.read_text()}  # fmt: skip
    assert users == {"plain_text.py"}
