"""An hour of people, two batches and a provider with moods: who waits, what is used, and how soon trouble is over.

The product's own use case runs in computed time; :mod:`benchmarks.hour_world` says what is simulated.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.figures import publish, table
from benchmarks.hour_world import Hour, Phase, simulate
from benchmarks.scale_plots import GREY, STYLE
from local.template import REPOSITORY

PAGE = REPOSITORY / "docs/scale.md"
PLOT = REPOSITORY / "docs/images/hour.svg"

_WIDTH, _LEFT, _RIGHT = 960, 56, 16
_PANEL, _GAP, _TOP = 150, 46, 34
_BLUE, _ORANGE, _RED = "#2f81f7", "#d9730d", "#cf222e"


def run() -> dict[str, Any]:
    """Prints and publishes the table, draws the plot; a row for each phase, and the whole."""
    hour = simulate()
    rows = [row(hour, phase) for phase in hour.setup.timetable]
    text = (
        f"`python -m benchmarks hour`, seed {hour.setup.seed}. Of all the slots that the provider had while it was well, and "
        f"that were wanted, {goodput(hour):.0%} were used.\n\n{_table(rows)}"
    )
    publish("hour", text, page=PAGE)
    draw(hour, PLOT)
    return {"goodput": goodput(hour), "lines": hour.lines, "phases": rows}


def goodput(hour: Hour) -> float:
    """The slots in use while the provider was well, as a share of those that it had and somebody wanted."""
    used = sum(sample.in_flight for sample in hour.samples if hour.phase(sample.at_s).is_well)
    return used / sum(hour.possible_s(phase) for phase in hour.setup.timetable)


def row(hour: Hour, phase: Phase) -> dict[str, Any]:
    """What happened in a phase. People are those that came in it."""
    until_s = hour.until_s(phase)
    visits = [visit for visit in hour.visits if phase.from_s <= visit.at_s < until_s and not visit.odd]
    samples = [sample for sample in hour.samples if phase.from_s <= sample.at_s < until_s]
    possible_s = hour.possible_s(phase)
    return {
        "phase": phase.name,
        "from_s": phase.from_s,
        "used": sum(sample.in_flight for sample in samples) / possible_s if possible_s else None,
        "people": len(visits),
        "answered": sum(visit.outcome == "answered" for visit in visits),
        "mean_wait_s": mean(visit.waited_s for visit in visits),
        "longest_wait_s": max(visit.waited_s for visit in visits),
        "refused": sum(phase.from_s <= at_s < until_s for at_s in hour.refused_s),
        "failed": sum(phase.from_s <= at_s < until_s for at_s in hour.failed_s),
        "lowest_limit": min(sample.limit for sample in samples),
        "highest_limit": max(sample.limit for sample in samples),
        "open_s": sum(sample.is_open for sample in samples),
    }


def _table(rows: list[dict[str, Any]]) -> str:
    return table(
        ("the provider", "from minute", "slots used", "people", "answered", "mean wait, s", "longest, s", "calls refused", "calls failed", "limit", "breaker open, s"),
        [
            (
                r["phase"],
                f"{r['from_s'] / 60:.0f}",
                "" if r["used"] is None else f"{r['used']:.0%}",
                f"{r['people']}",
                f"{r['answered']}",
                f"{r['mean_wait_s']:.1f}",
                f"{r['longest_wait_s']:.0f}",
                f"{r['refused']}",
                f"{r['failed']}",
                f"{r['lowest_limit']} to {r['highest_limit']}",
                f"{r['open_s']}",
            )
            for r in rows
        ],
    )  # fmt: skip


# ── The plot ───────────────────────────────────────────────────────────────────────────────────────────────


def draw(hour: Hour, path: Path) -> None:
    """Three panels over the hour: calls in flight and the limit; how long each person waited; refusals and failures."""
    height = _TOP + 3 * (_PANEL + _GAP)
    title = "An hour with people, two batches and a provider with moods"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img"><title>{title}</title>',
        f"<style>{STYLE}</style>",
    ]
    most = max(max(sample.in_flight, sample.limit) for sample in hour.samples)
    taken = [(s.at_s, min(hour.phase(s.at_s).takes, most) if hour.phase(s.at_s).is_well else 0) for s in hour.samples]
    parts += _Panel(hour, 0, "calls: in flight (blue), the limit (orange), what the provider takes (grey)", most).lines(
        (GREY, taken),
        (_ORANGE, [(sample.at_s, sample.limit) for sample in hour.samples]),
        (_BLUE, [(sample.at_s, sample.in_flight) for sample in hour.samples]),
    )
    waits = [visit for visit in hour.visits if not visit.odd]
    longest = max(visit.waited_s for visit in waits)
    parts += _Panel(hour, 1, "people: seconds waited for a turn; red: not answered", longest).dots(
        [(visit.at_s, visit.waited_s, _BLUE if visit.outcome == "answered" else _RED) for visit in waits]
    )
    refused, failed = _per_10_s(hour, hour.refused_s), _per_10_s(hour, hour.failed_s)
    highest = max(count for _, count in (*refused, *failed))
    parts += _Panel(hour, 2, "calls in 10 s: refused with 429 (orange), failed (red)", highest).lines(
        (_ORANGE, refused), (_RED, failed)
    )
    path.write_text("\n".join([*parts, "</svg>\n"]), encoding="utf-8")


def _per_10_s(hour: Hour, times_s: list[float]) -> list[tuple[float, int]]:
    return [
        (float(at_s), sum(at_s <= time_s < at_s + 10 for time_s in times_s))
        for at_s in range(0, round(hour.setup.seconds), 10)
    ]


class _Panel:
    """One of the plots that lie above each other; the phases are bands, named in the first."""

    def __init__(self, hour: Hour, number: int, title: str, most: float) -> None:
        self._hour = hour
        self._top = _TOP + number * (_PANEL + _GAP)
        self._most = max(1.0, most)
        self._parts = [f'<text class="t" x="{_LEFT}" y="{self._top - 8}">{title}</text>']
        for index, phase in enumerate(hour.setup.timetable):
            x, until_x = self._x(phase.from_s), self._x(hour.until_s(phase))
            if not phase.is_well:
                self._parts.append(
                    f'<rect x="{x:.1f}" y="{self._top}" width="{until_x - x:.1f}" height="{_PANEL}" fill="{_RED}" opacity="0.15"/>'
                )
            if number == 0:
                row_y = self._top + 14 + 14 * (index % 3)
                self._parts.append(f'<text x="{x + 3:.1f}" y="{row_y}" style="font-size:11px">{phase.name}</text>')
            self._parts.append(
                f'<line class="g" x1="{x:.1f}" x2="{x:.1f}" y1="{self._top}" y2="{self._top + _PANEL}"/>'
            )
        for share in (0.0, 0.5, 1.0):
            y = self._y(share * self._most)
            self._parts.append(f'<line class="g" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self._parts.append(
                f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share * self._most:.0f}</text>'
            )
        for minute in range(0, round(hour.setup.seconds / 60) + 1, 10):
            x = self._x(60 * minute)
            self._parts.append(
                f'<text x="{x:.1f}" y="{self._top + _PANEL + 16}" text-anchor="middle">{minute} min</text>'
            )

    def lines(self, *lines: tuple[str, list[tuple[float, int]]]) -> list[str]:
        for colour, points in lines:
            path = " ".join(f"{self._x(at_s):.1f},{self._y(value):.1f}" for at_s, value in _corners(points))
            self._parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        return self._parts

    def dots(self, dots: list[tuple[float, float, str]]) -> list[str]:
        for at_s, value, colour in dots:
            x, y = self._x(at_s), self._y(value)
            self._parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>')
        return self._parts

    def _x(self, at_s: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * at_s / self._hour.setup.seconds

    def _y(self, value: float) -> float:
        return self._top + _PANEL * (1 - value / self._most)


def _corners(points: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """Without the points between two that say the same."""
    kept = []
    for index, point in enumerate(points):
        neighbours = [points[other][1] for other in (index - 1, index + 1) if 0 <= other < len(points)]
        if len(neighbours) < 2 or any(value != point[1] for value in neighbours):
            kept.append(point)
    return kept
