"""Alerts: told once per month, budget and threshold, whoever looks and however often, and not lost when SNS fails."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, timedelta
from itertools import accumulate, pairwise
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from naru.accounts import Accounts
from naru.alerts import CLAIM_MS, Alerts
from naru.api_keys import MonthView, OrganisationView, key_view
from naru.crossings import Crossings, crossed
from naru.delivery import NotDeliveredError, Topic, ascii_line
from naru.meter_state import UNLIMITED, Limits, Meter, new_item
from naru.usage import Usage
from tests.usage_world import SEOUL, ClosingModel, LedgerModel, StoreModel, at_ms, row, usage_of

USD = 10**12
NOW_MS = at_ms("2026-11-16 12:00:00")
THRESHOLDS = (50, 80, 90, 100)


class SnsModel:
    """A topic whose publishing fails as often as it is told to."""

    def __init__(self, *, failures: int = 0) -> None:
        self.failures = failures
        self.sent: list[dict[str, str]] = []
        self._lock = threading.Lock()

    def publish(self, **message: str) -> None:
        with self._lock:
            if self.failures:
                self.failures -= 1
                raise ClientError({"Error": {"Code": "InternalError", "Message": "SNS is ill"}}, "Publish")
            self.sent.append(message)


def accounts(*, spent: int, budget: int = 100 * USD, keys: Sequence[tuple[str, int, int]] = ()) -> Accounts:
    """The organisation, and keys of (id, budget, spent)."""
    views = {}
    for key_id, limit, used in keys:
        item = new_item(f"key#{key_id}", Limits(budget_pico_usd=limit), key_id=key_id, name=f"name of {key_id}", tags={}, secrets={}, created_at_ms=0, expires_at_ms=10**15, user_budget_pico_usd=UNLIMITED, user_rpm=UNLIMITED)  # fmt: skip
        item["months"] = {"2026-11": {"available_pico_usd": limit - used, "spent_pico_usd": used}}
        views[key_id] = key_view([Meter(item)], NOW_MS, SEOUL)
    month = MonthView("2026-11", 0, spent, 0, budget - spent, 0)
    return Accounts(views, OrganisationView(budget, 1, month))


def world(sns: SnsModel, *, usage: Usage | None = None, language: str = "en") -> Alerts:
    return Alerts(
        usage or usage_of(LedgerModel(SEOUL, [row(NOW_MS - 86_400_000), row(NOW_MS - 3_600_000)])),
        StoreModel(),
        Topic(lambda: sns, "arn:topic"),  # type: ignore[arg-type, return-value]
        thresholds=THRESHOLDS,
        language="ko" if language == "ko" else "en",
    )


def test_a_threshold_is_told_once_though_a_hundred_look_at_once() -> None:
    sns = SnsModel()
    alerts = world(sns)
    seen = accounts(spent=91 * USD)

    def look(_: int) -> list[str]:
        return alerts.check_budgets(seen, now_ms=NOW_MS)

    with ThreadPoolExecutor(100) as pool:
        told = [each for found in pool.map(look, range(100)) for each in found]
    assert told == ["organisation/90"]
    assert [message["Subject"] for message in sns.sent] == [
        "[Naru] 91 % of the budget of organisation is spent (2026-11)"
    ]
    assert alerts.check_budgets(seen, now_ms=NOW_MS + 10**6) == []


def test_each_threshold_is_told_on_the_way_up() -> None:
    sns = SnsModel()
    alerts = world(sns)
    told = [
        alerts.check_budgets(accounts(spent=spent * USD), now_ms=NOW_MS) for spent in (10, 49, 50, 79, 85, 90, 99, 100)
    ]
    assert told == [[], [], ["organisation/50"], [], ["organisation/80"], ["organisation/90"], [], ["organisation/100"]]
    assert "further requests are refused" in sns.sent[-1]["Message"]


def test_of_several_thresholds_at_once_the_highest_is_told_and_the_others_are_not_told_later() -> None:
    sns = SnsModel()
    alerts = world(sns)
    assert alerts.check_budgets(accounts(spent=95 * USD), now_ms=NOW_MS) == ["organisation/90"]
    # The month's sum was corrected downwards, as a debt of a raised budget may be.
    assert alerts.check_budgets(accounts(spent=85 * USD), now_ms=NOW_MS) == []
    assert len(sns.sent) == 1


def test_another_budget_and_another_month_have_alerts_of_their_own() -> None:
    sns = SnsModel()
    alerts = world(sns)
    assert alerts.check_budgets(accounts(spent=90 * USD), now_ms=NOW_MS) == ["organisation/90"]
    assert alerts.check_budgets(accounts(spent=90 * USD, budget=110 * USD), now_ms=NOW_MS) == ["organisation/80"]
    assert alerts.check_budgets(accounts(spent=90 * USD), now_ms=NOW_MS) == []


def test_an_alert_arrives_though_sns_fails_at_first_and_arrives_once() -> None:
    sns = SnsModel(failures=2)
    alerts = world(sns)
    seen = accounts(spent=80 * USD)
    for _ in range(2):
        with pytest.raises(NotDeliveredError, match="SNS is ill"):
            alerts.check_budgets(seen, now_ms=NOW_MS)
    assert alerts.check_budgets(seen, now_ms=NOW_MS) == ["organisation/80"]
    assert alerts.check_budgets(seen, now_ms=NOW_MS) == []
    assert len(sns.sent) == 1


def test_a_failure_of_one_alert_does_not_keep_the_others() -> None:
    sns = SnsModel(failures=1)
    alerts = world(sns)
    seen = accounts(spent=80 * USD, keys=[("key_a", 10 * USD, 9 * USD)])
    with pytest.raises(NotDeliveredError):
        alerts.check_budgets(seen, now_ms=NOW_MS)
    assert [message["Subject"] for message in sns.sent] == [
        "[Naru] 90 % of the budget of name of key_a is spent (2026-11)"
    ]
    assert alerts.check_budgets(seen, now_ms=NOW_MS) == ["organisation/80"]


def test_the_alert_of_one_who_died_while_telling_is_told_by_the_next_after_a_minute() -> None:
    sns = SnsModel()
    alerts = world(sns)
    part = f"organisation/{100 * USD}/080"
    assert alerts._store.claim("alerts#2026-11", part, now_ms=NOW_MS, lease_ms=CLAIM_MS)
    seen = accounts(spent=80 * USD)
    assert alerts.check_budgets(seen, now_ms=NOW_MS + CLAIM_MS - 1) == []
    assert alerts.check_budgets(seen, now_ms=NOW_MS + CLAIM_MS + 1) == ["organisation/80"]


def test_an_alert_says_who_spends_it_and_until_when_it_lasts() -> None:
    days = [NOW_MS - back * 86_400_000 for back in range(1, 15)]
    rows = [row(at, key_id="key_a", cost_pico_usd=4 * USD, end_user="u-7") for at in days]
    rows += [row(at + 1, key_id="key_b", cost_pico_usd=USD) for at in days]
    sns = SnsModel()
    alerts = world(sns, usage=usage_of(LedgerModel(SEOUL, rows)))
    seen = accounts(spent=70 * USD, keys=[("key_a", 60 * USD, 56 * USD)])
    assert alerts.check_budgets(seen, now_ms=NOW_MS) == ["organisation/50", "key_a/90"]
    organisation, key = (message["Message"] for message in sns.sent)
    assert "- name of key_a (key_a): 56.00 USD\n- key_b (key_b): 14.00 USD" in organisation
    assert "the budget is gone on 11-22" in organisation  # 30 USD left at 5 a day, from noon of the 16th
    assert "naru budget set USD" in organisation
    assert "- u-7: 56.00 USD" in key
    assert "naru keys update key_a --budget-usd USD" in key


def test_only_the_meter_that_crossed_is_looked_at_when_it_says_so() -> None:
    sns = SnsModel()
    alerts = world(sns)
    seen = accounts(spent=80 * USD, keys=[("key_a", 10 * USD, 9 * USD)])
    assert alerts.check_budgets(seen, now_ms=NOW_MS, only="key_a") == ["key_a/90"]


def test_korean_is_in_the_message_and_not_in_the_subject() -> None:
    """SNS takes ASCII there."""
    sns = SnsModel()
    world(sns, language="ko").check_budgets(accounts(spent=80 * USD), now_ms=NOW_MS)
    assert "조직: 2026-11 예산의 80 %를 썼습니다" in sns.sent[0]["Message"]
    assert sns.sent[0]["Subject"].isascii()
    seen = accounts(spent=0, keys=[("key_a", 10 * USD, 9 * USD)])
    seen = replace(seen, keys={"key_a": replace(seen.keys["key_a"], name="모바일 앱")})
    world(sns, language="ko").check_budgets(seen, now_ms=NOW_MS)
    assert sns.sent[-1]["Subject"] == "[Naru] 90 % of the budget of key_a is spent (2026-11)"
    assert "키 모바일 앱: 2026-11 예산의 90 %" in sns.sent[-1]["Message"]
    assert ascii_line("한글\nkey " + "x" * 200) == ("?? key " + "x" * 200)[:100]


# ── Spikes ─────────────────────────────────────────────────────────────────────────────────────────────────


def spiky(now: str, *, hour: str) -> tuple[Usage, int]:
    """Two weeks at a dollar an hour at noon, then 20 USD within one hour."""
    today = date(2026, 11, 16)
    rows = [row(at_ms(f"{today - timedelta(days=back)} {each}:10:00"), cost_pico_usd=USD) for back in range(1, 16) for each in (11, 12, 13)]  # fmt: skip
    rows += [row(at_ms(f"{today} {hour}:05:00") + index, cost_pico_usd=2 * USD, key_id="key_b") for index in range(10)]
    usage = usage_of(LedgerModel(SEOUL, rows), closing=ClosingModel(at_ms(now) - 300_000))
    for back in range(1, 16):
        usage.roll_up_day(today - timedelta(days=back))
    return usage, at_ms(now)


@pytest.mark.parametrize(
    ("now", "words"), [("2026-11-16 12:20:00", "so far"), ("2026-11-16 13:04:00", "20.0 times its usual 1.00 USD")]
)
def test_an_hour_far_above_its_usual_is_told_while_it_runs_or_after_it(now: str, words: str) -> None:
    usage, now_ms = spiky(now, hour="12")
    sns = SnsModel()
    alerts = world(sns, usage=usage)
    assert alerts.check_spike(accounts(spent=0), now_ms=now_ms) is not None
    assert alerts.check_spike(accounts(spent=0), now_ms=now_ms + 1000) is None
    assert [words in message["Message"] and "key_b" in message["Message"] for message in sns.sent] == [True]


def test_a_usual_hour_is_no_spike() -> None:
    usage, now_ms = spiky("2026-11-16 18:30:00", hour="12")
    sns = SnsModel()
    assert world(sns, usage=usage).check_spike(accounts(spent=0), now_ms=now_ms) is None
    assert sns.sent == []


def test_a_spike_that_could_not_be_told_is_told_by_the_next_look() -> None:
    usage, now_ms = spiky("2026-11-16 12:20:00", hour="12")
    sns = SnsModel(failures=1)
    alerts = world(sns, usage=usage)
    with pytest.raises(NotDeliveredError):
        alerts.check_spike(accounts(spent=0), now_ms=now_ms)
    assert alerts.check_spike(accounts(spent=0), now_ms=now_ms) is not None
    assert len(sns.sent) == 1


# ── Crossings ──────────────────────────────────────────────────────────────────────────────────────────────


class LambdaModel:
    """Remembers whom it was told to wake."""

    def __init__(self, fail: Callable[[], None] = lambda: None) -> None:
        self.calls: list[dict[str, Any]] = []
        self._fail = fail

    def invoke(self, **call: Any) -> None:
        self._fail()
        self.calls.append(json.loads(call["Payload"]) | {"how": call["InvocationType"], "whom": call["FunctionName"]})


def meter(spent: int, *, budget: int = 1000, meter_id: str = "organisation", shards: int = 1) -> Meter:
    item = new_item(meter_id, Limits(budget_pico_usd=budget), shards=shards)
    return Meter(item | {"months": {"2026-11": {"available_pico_usd": budget - spent, "spent_pico_usd": spent}}})


@given(costs=st.lists(st.integers(1, 400), min_size=1, max_size=100), seed=st.integers(0, 99))
def test_of_many_settlements_each_threshold_is_crossed_by_exactly_one(costs: list[int], seed: int) -> None:
    """Sums lie in a row without gaps, in whatever order the meter has added the costs."""
    random.Random(seed).shuffle(costs)
    sums = [*accumulate(costs, initial=0)]
    seen = [
        threshold
        for before, after in pairwise(sums)
        for threshold in THRESHOLDS
        if crossed(1000, before_pico_usd=before, after_pico_usd=after, thresholds=[threshold])
    ]
    assert seen == [threshold for threshold in THRESHOLDS if sums[-1] * 100 >= 1000 * threshold]


def test_who_crosses_a_threshold_wakes_the_alerts_and_nobody_else_does() -> None:
    woken = LambdaModel()
    crossings = Crossings(lambda: woken, "alerts", THRESHOLDS)  # type: ignore[arg-type, return-value]

    async def settle_all() -> list[int | None]:
        sums = range(10, 1010, 10)
        return await asyncio.gather(*(crossings.notice(meter(after), "2026-11", cost_pico_usd=10) for after in sums))

    found = asyncio.run(settle_all())
    assert [each for each in found if each is not None] == [50, 80, 90, 100]
    assert [call["crossed"] for call in woken.calls] == [{"meter": "organisation", "month": "2026-11"}] * 4
    assert {(call["how"], call["whom"]) for call in woken.calls} == {("Event", "alerts")}


def test_a_shard_wakes_the_alerts_with_every_percent_of_its_slice() -> None:
    woken = LambdaModel()
    crossings = Crossings(lambda: woken, "alerts", THRESHOLDS)  # type: ignore[arg-type, return-value]
    seen = meter(120, meter_id="key#key_a/3", shards=4)
    assert asyncio.run(crossings.notice(seen, "2026-11", cost_pico_usd=5)) == 12
    assert woken.calls[0]["crossed"]["meter"] == "key#key_a"


def test_a_request_does_not_hear_that_the_alerts_could_not_be_woken() -> None:
    def fail() -> None:
        raise ClientError({"Error": {"Code": "ServiceException", "Message": ""}}, "Invoke")

    crossings = Crossings(lambda: LambdaModel(fail), "alerts", THRESHOLDS)  # type: ignore[arg-type, return-value]
    assert asyncio.run(crossings.notice(meter(500), "2026-11", cost_pico_usd=10)) == 50


@pytest.mark.parametrize("seen", [meter(500, budget=UNLIMITED), meter(500, meter_id="user#key_a#u")])
def test_what_has_no_budget_or_no_owner_to_tell_wakes_nobody(seen: Meter) -> None:
    woken = LambdaModel()
    crossings = Crossings(lambda: woken, "alerts", THRESHOLDS)  # type: ignore[arg-type, return-value]
    assert asyncio.run(crossings.notice(seen, "2026-11", cost_pico_usd=500)) is None
    assert woken.calls == []
