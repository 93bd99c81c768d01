"""Figures: percentiles, tables for the terminal and for docs/performance.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from local.template import REPOSITORY

PERFORMANCE = REPOSITORY / "docs/performance.md"


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: a value that was measured. Raises ValueError where there is none."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown that can also be read in a terminal: the first column to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    rule = [("-" * width if index == 0 else "-" * (width - 1) + ":") for index, width in enumerate(widths)]
    lines = [
        "| " + " | ".join(_pad(cell, width, index) for index, (cell, width) in enumerate(zip(row, widths, strict=True))) + " |"
        for row in (headings, rule, *rows)
    ]  # fmt: skip
    return "\n".join(lines)


def _pad(cell: str, width: int, index: int) -> str:
    return cell.ljust(width) if index == 0 else cell.rjust(width)


def publish(name: str, text: str, *, page: Path = PERFORMANCE) -> None:
    """Prints a text and puts it between ``<!-- name -->`` and ``<!-- /name -->`` of the page.

    Raises ValueError where the page has no such place.
    """
    print(f"\n{text}\n")
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    content = page.read_text(encoding="utf-8")
    if content.count(begin) != 1 or content.count(end) != 1:
        raise ValueError(f"{page.name} has no place for {name!r}: {begin} … {end}")
    before, _, rest = content.partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
