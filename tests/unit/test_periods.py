"""Business days and hours as instants: every instant lies in one hour of one day, in any zone."""

from __future__ import annotations

from datetime import date, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naru.business_time import business_day
from naru.periods import HOUR_MS, day_end_ms, day_start_ms, hour_of, hours_of, last_of_month

ZONES = [ZoneInfo(name) for name in ("Asia/Seoul", "America/New_York", "Asia/Kolkata", "Africa/Cairo", "Asia/Beirut", "Australia/Lord_Howe", "UTC")]  # fmt: skip
DAYS = st.dates(min_value=date(2024, 1, 1), max_value=date(2030, 12, 31))


@given(zone=st.sampled_from(ZONES), day=DAYS)
def test_the_first_and_the_last_millisecond_of_a_day_are_its_own(zone: ZoneInfo, day: date) -> None:
    start_ms, end_ms = day_start_ms(day, zone), day_end_ms(day, zone)
    assert business_day(start_ms, zone) == day
    assert business_day(start_ms - 1, zone) == day - timedelta(days=1)
    assert business_day(end_ms - 1, zone) == day


@given(zone=st.sampled_from(ZONES), day=DAYS, offset=st.integers(0, 26 * HOUR_MS))
def test_every_instant_lies_in_one_hour_of_its_day(zone: ZoneInfo, day: date, offset: int) -> None:
    at_ms = day_start_ms(day, zone) + offset
    hour = hour_of(at_ms, zone)
    assert hour.start_ms(zone) <= at_ms < hour.end_ms(zone)
    assert hour in hours_of(hour.day, zone)


@given(zone=st.sampled_from(ZONES), day=DAYS)
def test_the_hours_of_a_day_cover_it_without_a_gap(zone: ZoneInfo, day: date) -> None:
    hours = hours_of(day, zone)
    edges = [(hour.start_ms(zone), hour.end_ms(zone)) for hour in hours]
    assert edges[0][0] == day_start_ms(day, zone)
    assert edges[-1][1] == day_end_ms(day, zone)
    assert all(before[1] == after[0] for before, after in pairwise(edges))


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("America/New_York", date(2026, 3, 8), 23),
        ("America/New_York", date(2026, 11, 1), 25),
        ("Asia/Seoul", date(2026, 3, 8), 24),
        ("Africa/Cairo", date(2026, 4, 24), 23),  # clocks skip midnight itself
        ("Australia/Lord_Howe", date(2026, 4, 5), 25),  # half an hour more
    ],
)
def test_days_of_other_lengths_have_other_numbers_of_hours(zone: str, day: date, hours: int) -> None:
    assert len(hours_of(day, ZoneInfo(zone))) == hours


def test_the_last_day_of_a_month() -> None:
    assert last_of_month(date(2028, 2, 3)) == date(2028, 2, 29)
    assert last_of_month(date(2026, 12, 31)) == date(2026, 12, 31)
