"""The business day and month: midnight is the operator's, not Greenwich's."""

from __future__ import annotations

from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo


def business_day(at_ms: int, zone: ZoneInfo) -> date:
    """The day in ``zone`` on which the instant falls (Unix milliseconds)."""
    # Integer arithmetic: a float of seconds would round 23:59:59.9999 up into tomorrow.
    return datetime.fromtimestamp(at_ms // 1000, UTC).astimezone(zone).date()


def next_month_starts(at_ms: int, zone: ZoneInfo) -> datetime:
    """The first midnight in ``zone`` of the month after the instant's."""
    today = business_day(at_ms, zone)
    year, month = (today.year + 1, 1) if today.month == 12 else (today.year, today.month + 1)
    return datetime(year, month, 1, tzinfo=zone)
