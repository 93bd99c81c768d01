"""Small line plots in SVG, over a logarithmic number of environments; legible on light and on dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_WIDTH, _HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 130, 40, 44
_COLOURS = ("#2f81f7", "#d9730d")
GREY = "#7d8590"
STYLE = (
    # One grey for both: an image does not learn which background its page has chosen.
    f"text{{font:13px system-ui,sans-serif;fill:{GREY}}}.t{{font-weight:600}}.g{{stroke:#8886;stroke-width:1}}"
)


@dataclass(frozen=True, slots=True)
class Line:
    """Points are (environments, value)."""

    name: str
    points: Sequence[tuple[int, float]]


def write_plot(path: Path, title: str, lines: Sequence[Line]) -> None:
    """Draws the lines; the value axis begins at 0."""
    path.write_text(plot(title, lines), encoding="utf-8")


def plot(title: str, lines: Sequence[Line]) -> str:
    """The SVG."""
    sizes = sorted({size for line in lines for size, _ in line.points})
    step = _step(max(value for line in lines for _, value in line.points))
    top = step * math.ceil(max(value for line in lines for _, value in line.points) / step)
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(size: int) -> float:
        return _LEFT + wide * math.log(size / sizes[0]) / math.log(sizes[-1] / sizes[0])

    def y(value: float) -> float:
        return _TOP + high * (1 - value / top)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"><title>{title}</title>',
        f'<style>{STYLE}</style><text class="t" x="{_LEFT}" y="20">{title}</text>',
    ]
    for number in range(round(top / step) + 1):
        at = y(number * step)
        parts.append(f'<line class="g" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{number * step:,g}</text>')
    parts += [f'<text x="{x(s):.1f}" y="{_HEIGHT - 24}" text-anchor="middle">{s:,}</text>' for s in sizes]
    parts.append(f'<text x="{_LEFT + wide / 2}" y="{_HEIGHT - 6}" text-anchor="middle">environments</text>')
    for colour, line in zip(_COLOURS, lines, strict=False):
        points = " ".join(f"{x(size):.1f},{y(value):.1f}" for size, value in line.points)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts += [f'<circle cx="{x(s):.1f}" cy="{y(v):.1f}" r="3.5" fill="{colour}"/>' for s, v in line.points]
        size, value = line.points[-1]
        parts.append(f'<text x="{x(size) + 8:.1f}" y="{y(value) + 4:.1f}" style="fill:{colour}">{line.name}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _step(most: float) -> float:
    """A round distance of lines, of which there are about five."""
    unit: float = 10.0 ** math.floor(math.log10(most / 5))
    return next(unit * factor for factor in (1.0, 2.0, 5.0, 10.0) if unit * factor * 5 >= most)
