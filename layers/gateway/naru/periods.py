"""Business days, their hours and their months, as instants.

An hour is counted from the midnight of its business day, so that every hour lies within one day in any zone: in one
that is half an hour off Greenwich's, and on the days of 23 and 25 hours too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from naru.business_time import business_day

HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True, order=True)
class Hour:
    """The hour ``index`` of a business day, from 0 on."""

    day: date
    index: int

    def start_ms(self, zone: ZoneInfo) -> int:
        """Its first instant, in Unix milliseconds."""
        return day_start_ms(self.day, zone) + self.index * HOUR_MS

    def end_ms(self, zone: ZoneInfo) -> int:
        """The instant after its last one."""
        return min(self.start_ms(zone) + HOUR_MS, day_end_ms(self.day, zone))


@lru_cache(maxsize=4096)
def day_start_ms(day: date, zone: ZoneInfo) -> int:
    """The first instant of a business day, in Unix milliseconds.

    Where clocks skip midnight (Cairo in spring), the day begins when they do: a time that is skipped is read with the
    offset before (PEP 495, fold=0), which is that instant.
    """
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()) * 1000


def day_end_ms(day: date, zone: ZoneInfo) -> int:
    """The first instant of the next business day."""
    return day_start_ms(day + timedelta(days=1), zone)


def hour_of(at_ms: int, zone: ZoneInfo) -> Hour:
    """The hour in which an instant lies."""
    day = business_day(at_ms, zone)
    return Hour(day, max(0, at_ms - day_start_ms(day, zone)) // HOUR_MS)


def hours_of(day: date, zone: ZoneInfo) -> list[Hour]:
    """All hours of a day: 24 of them, or 23, or 25."""
    count = -(-(day_end_ms(day, zone) - day_start_ms(day, zone)) // HOUR_MS)
    return [Hour(day, index) for index in range(count)]


def days_between(first: date, last: date) -> Iterator[date]:
    """Both included."""
    for offset in range((last - first).days + 1):
        yield first + timedelta(days=offset)


def month_of(day: date) -> str:
    """``2026-11``."""
    return day.isoformat()[:7]


def first_of_month(day: date) -> date:
    return day.replace(day=1)


def last_of_month(day: date) -> date:
    following = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
    return following - timedelta(days=1)
