"""Where a month ends: by weekday, with a band that holds what it says."""

from __future__ import annotations

import random
from datetime import date, timedelta

from naru.anomalies import spike
from naru.periods import day_end_ms, day_start_ms, days_between, last_of_month
from naru.projection import Projection, expected_pico_usd, project
from tests.usage_world import SEOUL

USD = 10**12
TODAY = date(2026, 11, 16)


def history(*, weekday: int = 10, weekend: int = 2, noise: float = 0.0, seed: int = 0, until: date = TODAY, days: int = 35) -> dict[date, int]:  # fmt: skip
    rng = random.Random(seed)
    return {
        day: round((weekend if day.weekday() >= 5 else weekday) * USD * max(0.0, rng.gauss(1, noise)))
        for day in days_between(until - timedelta(days=days), until - timedelta(days=1))
    }


def at(days: dict[date, int], *, today: date = TODAY, spent: int, budget: int | None = None) -> Projection:
    found = project(
        days,
        now_ms=day_start_ms(today, SEOUL),
        today=today,
        spent_pico_usd=spent,
        budget_pico_usd=budget,
        zone=SEOUL,
    )
    assert found is not None
    return found


def test_weekends_cost_what_weekends_do() -> None:
    """From Monday the 16th there are eleven working days and four others until the 30th."""
    found = at(history(), spent=0)
    assert abs(found.expected_pico_usd - (11 * 10 + 4 * 2) * USD) < 4 * USD


def test_the_band_holds_the_end_four_of_five_times() -> None:
    """Of 400 months that go on as they began; the band is rather too wide than too narrow, and not of no use."""
    held, widths = 0, []
    for seed in range(400):
        whole = history(noise=0.25, seed=seed, until=date(2026, 12, 1), days=50)
        known = {day: cost for day, cost in whole.items() if day < TODAY}
        spent = sum(cost for day, cost in known.items() if day.month == 11)
        end = sum(cost for day, cost in whole.items() if day.month == 11)
        found = at(known, spent=spent)
        held += found.low_pico_usd <= end <= found.high_pico_usd
        widths.append((found.high_pico_usd - found.low_pico_usd) / end)
    assert 0.75 <= held / 400 <= 0.97
    assert sum(widths) / 400 < 0.35


def test_one_spike_does_not_move_the_projection_far() -> None:
    calm, spiky = history(), history()
    spiky[TODAY - timedelta(days=3)] *= 30
    assert at(spiky, spent=0).expected_pico_usd < 1.35 * at(calm, spent=0).expected_pico_usd


def test_traffic_that_grows_is_projected_at_its_level() -> None:
    days = {day: 10 * USD if day < TODAY - timedelta(days=10) else 20 * USD for day in history()}
    found = at(days, spent=0)
    assert 15 * 16 * USD < found.expected_pico_usd < 15 * 20.5 * USD


def test_the_budget_is_gone_when_the_days_have_eaten_it() -> None:
    days = dict.fromkeys(history(), 10 * USD)
    found = at(days, spent=150 * USD, budget=175 * USD)
    assert found.exhausted_ms is not None
    gone = TODAY + timedelta(days=2)
    assert day_start_ms(gone, SEOUL) < found.exhausted_ms < day_end_ms(gone, SEOUL)
    assert at(days, spent=150 * USD, budget=1000 * USD).exhausted_ms is None
    assert at(days, spent=150 * USD, budget=None).exhausted_ms is None
    assert at(days, spent=150 * USD, budget=150 * USD).exhausted_ms == day_start_ms(TODAY, SEOUL)


def test_days_before_the_first_request_are_not_quiet_days() -> None:
    days = history()
    first = TODAY - timedelta(days=4)
    young = {day: cost if day >= first else 0 for day, cost in days.items()}
    found = at(young, spent=0)
    assert found.days_known == 4
    assert found.expected_pico_usd > 80 * USD
    wide, narrow = found, at(days, spent=0)
    assert wide.high_pico_usd - wide.low_pico_usd > narrow.high_pico_usd - narrow.low_pico_usd


def test_nothing_is_projected_from_nothing() -> None:
    now_ms = day_start_ms(TODAY, SEOUL)
    assert project({}, now_ms=now_ms, today=TODAY, spent_pico_usd=5, budget_pico_usd=None, zone=SEOUL) is None
    assert expected_pico_usd(dict.fromkeys(history(), 0), TODAY) is None


def test_the_last_moment_of_a_month_projects_what_is_spent() -> None:
    last = last_of_month(TODAY)
    found = project(
        history(until=last), now_ms=day_end_ms(last, SEOUL), today=last, spent_pico_usd=7, budget_pico_usd=None, zone=SEOUL
    )  # fmt: skip
    assert found is not None
    assert (found.low_pico_usd, found.expected_pico_usd, found.high_pico_usd) == (7, 7, 7)


def test_an_hour_is_a_spike_when_it_is_far_above_its_usual() -> None:
    usual = [100, 120, 90, 110, 95, 105, 100, 115]
    assert spike(310, usual) is None
    assert spike(330, usual) is not None
    # Where hours vary much, much is usual.
    assert spike(900, [0, 600, 10, 700, 20, 500, 0, 650]) is None
    assert spike(10**9, usual[:3]) is None
    assert spike(10**9, [0] * 10) is None
