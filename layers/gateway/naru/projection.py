"""What a month will have cost at its end, judged by the days before.

A day is expected to cost what its weekday usually does, at the level of the last days: weekday means (drawn towards
those of working days or of weekends while there are few), times a level that forgets half in a week. A single spike
counts for three times a usual day at most. The band holds the true end four of five times, if days go on to vary as they
did. A projection is an estimate: it alone computes with floats, and nobody is charged by it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from zoneinfo import ZoneInfo

from naru.periods import day_end_ms, day_start_ms, days_between, last_of_month

HISTORY_DAYS = 35
_HALF_LIFE_DAYS = 7
_SPIKE = 3.0
_Z_80 = 1.2816  # four of five times
_WEEKEND = 5
# While little is known, days are believed to vary at least so much (standard deviation over mean).
_LEAST_VARIATION = ((7, 0.5), (14, 0.25), (10**9, 0.05))


@dataclass(frozen=True, slots=True)
class Projection:
    """Of a month's cost, in pico-USD."""

    expected_pico_usd: int
    low_pico_usd: int
    high_pico_usd: int
    exhausted_ms: int | None
    """When the budget is gone at this pace (Unix milliseconds); None if it lasts, or there is none."""
    days_known: int


def project(
    days: Mapping[date, int], *, now_ms: int, today: date, spent_pico_usd: int, budget_pico_usd: int | None, zone: ZoneInfo
) -> Projection | None:  # fmt: skip
    """Where the month of ``today`` ends.

    ``days`` are the costs of whole days before today, in pico-USD; ``spent_pico_usd`` is what the month has cost so far,
    today included. None where no day is known.
    """
    if not (known := _history(days, today)):
        return None
    usual = _Usual(known)
    coming = list(_coming(usual, now_ms, today, zone))
    rest = sum(cost for _, cost in coming)
    variance = sum((usual.variation * cost) ** 2 for _, cost in coming)
    # The level itself is known from about ten days only.
    variance += (usual.variation * rest) ** 2 / min(len(known), 10)
    margin = _Z_80 * math.sqrt(variance)
    return Projection(
        expected_pico_usd=spent_pico_usd + round(rest),
        low_pico_usd=spent_pico_usd + round(max(0.0, rest - margin)),
        high_pico_usd=spent_pico_usd + round(rest + margin),
        exhausted_ms=_exhausted_ms(coming, now_ms, spent_pico_usd, budget_pico_usd, zone),
        days_known=len(known),
    )


def expected_pico_usd(days: Mapping[date, int], day: date) -> int | None:
    """What a day should cost, judged by those before it; None where none is known."""
    known = _history(days, day)
    return round(_Usual(known).of(day)) if known else None


def _history(days: Mapping[date, int], today: date) -> dict[date, int]:
    """The days before today since there has been traffic, some weeks at most."""
    recent = {day: days[day] for day in days_between(today - timedelta(days=HISTORY_DAYS), today - timedelta(days=1)) if day in days}  # fmt: skip
    first = next((day for day, cost in recent.items() if cost), None)
    return {day: cost for day, cost in recent.items() if first is not None and day >= first}


class _Usual:
    """What days of each weekday cost."""

    def __init__(self, known: Mapping[date, int]) -> None:
        typical = statistics.median(known.values()) or statistics.fmean(known.values())
        clipped = {day: min(float(cost), _SPIKE * typical) for day, cost in known.items()}
        overall = statistics.fmean(clipped.values())
        kinds = {weekend: _mean(_of_kind(clipped, weekend=weekend), overall, 2) for weekend in (False, True)}
        self._factors: list[float] = [
            _mean([cost for day, cost in clipped.items() if day.weekday() == weekday], kinds[weekday >= _WEEKEND], 1) / overall
            for weekday in range(7)
        ]  # fmt: skip
        last = max(clipped)
        weights = {day: 0.5 ** ((last - day).days / _HALF_LIFE_DAYS) for day in clipped}
        weighed = sum(weights[day] * self._factors[day.weekday()] for day in clipped)
        self._level: float = sum(weights[day] * cost for day, cost in clipped.items()) / weighed
        # Against the mean of all days and not the level, which has seen each day already.
        residuals = [min(2.0, abs(cost / (overall * self._factors[day.weekday()]) - 1)) for day, cost in known.items()]
        least = next(variation for days, variation in _LEAST_VARIATION if len(known) < days)
        self.variation = max(least, math.sqrt(statistics.fmean(residual**2 for residual in residuals)))

    def of(self, day: date) -> float:
        """What a day should cost, in pico-USD."""
        return self._level * self._factors[day.weekday()]


def _mean(costs: list[float], prior: float, weight: int) -> float:
    """A mean that begins at ``prior``, as if that had been seen ``weight`` times."""
    return (sum(costs) + weight * prior) / (len(costs) + weight)


def _of_kind(costs: Mapping[date, float], *, weekend: bool) -> list[float]:
    return [cost for day, cost in costs.items() if (day.weekday() >= _WEEKEND) == weekend]


def _coming(usual: _Usual, now_ms: int, today: date, zone: ZoneInfo) -> Iterator[tuple[date, float]]:
    """What the rest of today and the other days of its month should cost."""
    begin, end = day_start_ms(today, zone), day_end_ms(today, zone)
    left = min(1.0, max(0.0, (end - now_ms) / (end - begin)))
    yield today, usual.of(today) * left
    for day in days_between(today + timedelta(days=1), last_of_month(today)):
        yield day, usual.of(day)


def _exhausted_ms(
    coming: list[tuple[date, float]], now_ms: int, spent_pico_usd: int, budget_pico_usd: int | None, zone: ZoneInfo
) -> int | None:
    if budget_pico_usd is None:
        return None
    left = float(budget_pico_usd - spent_pico_usd)
    if left <= 0:
        return now_ms
    for day, cost in coming:
        begin, end = max(now_ms, day_start_ms(day, zone)), day_end_ms(day, zone)
        if cost >= left:
            return begin + round((end - begin) * left / cost)
        left -= cost
    return None
