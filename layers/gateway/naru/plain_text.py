"""Texts of others, made safe for where they are shown: a terminal, JSON on a terminal, a cell of a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, Protocol

# Default_Ignorable_Code_Point (Unicode, DerivedCoreProperties.txt), as far as the categories below do not cover it:
# combining grapheme joiner, Hangul fillers, Khmer inherent vowels, variation selectors, reserved ones.
_IGNORED = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
# Controls, formatting (bidirectional marks, zero widths, BOM), half pairs, line and paragraph separators.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_FORMULA = frozenset("=+-@\u2212")
"""Beside these, every dash (category Pd): some are read as a minus."""


def is_unseen(letter: str) -> bool:
    """Whether a character shows nothing by itself, but may change what is shown around it."""
    return unicodedata.category(letter) in _UNSEEN or _IGNORED.match(letter) is not None


def shown(text: str) -> str:
    """For a terminal: what cannot be seen is written as its escape, so ``\\x1b[2J`` and ``\\u202e`` and a line break do
    nothing but appear.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(letter.encode("unicode_escape").decode() if is_unseen(letter) else letter for letter in text)


def shown_json(text: str, *, lines: bool = False) -> str:
    """JSON for a terminal: the same value, with escapes for what cannot be seen. ``lines`` keeps line breaks between
    values.
    """
    return "".join(
        letter if not is_unseen(letter) or (lines and letter == "\n") else _json_escape(letter) for letter in text
    )


def _json_escape(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


# ── CSV ────────────────────────────────────────────────────────────────────────────────────────────────────


class _Writable(Protocol):
    def write(self, text: str, /) -> Any: ...


class CsvWriter:
    """Every CSV of Naru's is written by one of these. Lines end as ``newline`` says."""

    def __init__(self, into: _Writable, headings: Sequence[str], *, newline: str = "\n") -> None:
        self._into = into
        self._newline = newline
        self._line = io.StringIO()
        # With this end it puts cells that hold either letter of it into quotes, which it does not with another.
        self._out = csv.writer(self._line, lineterminator="\r\n")
        self.write(headings)

    def write(self, values: Iterable[Any]) -> None:
        """One line: texts as cells that are no formulas, numbers digit by digit, nothing for None."""
        self._out.writerow([_cell(value) for value in values])
        self._into.write(self._line.getvalue().removesuffix("\r\n") + self._newline)
        self._line.seek(0)
        self._line.truncate()


def _cell(value: Any) -> Any:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case str():
            return f"'{value}" if _is_formula(value) else value
        case Decimal():
            return format(value, "f")
        case _:
            return value


def _is_formula(text: str) -> bool:
    """Whether a spreadsheet may take a cell for a formula, or cut something off first and then do so (OWASP, "CSV
    Injection"): ``=`` and its like, also full-width or behind blanks, and whatever begins with a character that is not
    seen.
    """
    first = next((letter for letter in text if not letter.isspace() and not is_unseen(letter)), "")
    if text and (is_unseen(text[0]) or unicodedata.category(first or "x") == "Pd"):
        return True
    # Spreadsheets of East Asia read full-width letters as their ASCII ones.
    return bool(first) and unicodedata.normalize("NFKC", first)[0] in _FORMULA
