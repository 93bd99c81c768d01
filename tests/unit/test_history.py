"""The generated history: the same again by its seed, and as lively as its description says."""

from __future__ import annotations

import random
from collections import Counter
from datetime import date, timedelta
from statistics import fmean

import pytest

from local.history import APPS, DAYS, OUTAGE_DAYS_AGO, SPIKE_DAYS_AGO, Key, rows
from naru.anomalies import find
from naru.business_time import business_day
from naru.ledger import Row
from naru.periods import days_between
from tests.usage_world import SEOUL, LedgerModel, at_ms, usage_of

pytestmark = pytest.mark.slow

TODAY = date(2026, 11, 23)
NOW_MS = at_ms("2026-11-23 15:00:00")
KEYS = [Key(f"key_{index}", "", app) for index, app in enumerate(APPS)]


def made(seed: int = 20) -> list[Row]:
    return list(rows(KEYS, today=TODAY, now_ms=NOW_MS, zone=SEOUL, seed=seed))


def test_the_same_seed_makes_the_same_rows() -> None:
    random.seed(1)
    first = made()
    random.seed(2)
    assert made() == first
    assert made(21) != first


def test_it_has_three_keys_five_models_weekends_an_outage_and_a_spike() -> None:
    written = made()
    assert {row.key_id for row in written} == {"key_0", "key_1", "key_2"}
    assert len({row.model_asked for row in written}) == 5
    assert all(row.arrived_at_ms + row.latency_ms <= NOW_MS for row in written)
    assert all(row.cost_pico_usd == row.rates.cost_pico_usd(row.usage) for row in written)
    assert len({row.request_id for row in written}) == len(written)
    per_day = Counter(business_day(row.arrived_at_ms, SEOUL) for row in written)
    days = [*days_between(TODAY - timedelta(days=DAYS - 1), TODAY - timedelta(days=1))]
    plain = [day for day in days if (TODAY - day).days not in {OUTAGE_DAYS_AGO, SPIKE_DAYS_AGO}]
    weekend = [per_day[day] for day in plain if day.weekday() >= 5]
    weekdays = [per_day[day] for day in plain if day.weekday() < 5]
    assert fmean(weekend) < 0.9 * fmean(weekdays)
    usage = usage_of(LedgerModel(SEOUL, written, page=400))
    known = usage.days(days[0], TODAY - timedelta(days=1), now_ms=NOW_MS)

    def codes(days_ago: int) -> set[str]:
        at = next(index for index, bucket in enumerate(known) if (TODAY - bucket.day).days == days_ago)
        hours = usage.between(known[at].start_ms, known[at].end_ms, now_ms=NOW_MS, hourly=True)
        return {anomaly.code for anomaly in find(known[at], hours, known[:at])}

    assert codes(OUTAGE_DAYS_AGO) >= {"outage", "errors_high"}
    assert codes(SPIKE_DAYS_AGO) >= {"cost_high", "key_jump"}
    assert codes(3) == set()
