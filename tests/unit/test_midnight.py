"""Requests a moment before and after midnight, at the end of a month, and in zones whose clocks are changed.

A request belongs to the day and month in which it arrived, whenever it is admitted, settled or swept. Runs on the model
of DynamoDB, which `test_dynamodb_model` holds against moto and the emulator.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from naru import ledger
from naru.accounting import Account, Subject
from naru.attributes import to_item
from naru.business_time import business_day, next_month_starts
from naru.errors import QuotaExceededError, RateLimitedError
from naru.ledger import Ledger, Row
from naru.meter import Admission, Meters
from naru.meter_state import UNLIMITED, Limits, Meter
from naru.pricing import Usage
from naru.request_ids import new_request_id
from naru.sweeper import LEASE_LIFE_MS, Sweeper, Swept
from tests.accounts import OMNI, a_pico_dollar_a_token
from tests.dynamodb_model import DynamoDB
from tests.meters import put_key

SEOUL = ZoneInfo("Asia/Seoul")
NEW_YORK = ZoneInfo("America/New_York")
ZONES = [
    *(SEOUL, NEW_YORK, ZoneInfo("UTC"), ZoneInfo("Europe/London"), ZoneInfo("Asia/Kathmandu")),
    # Where clocks are, or were, changed at midnight; where a whole day was skipped.
    *(ZoneInfo("Africa/Cairo"), ZoneInfo("America/Havana"), ZoneInfo("America/Asuncion"), ZoneInfo("Pacific/Apia")),
]
MIDNIGHTS = [
    pytest.param(SEOUL, (2026, 11, 23), id="a day in Seoul"),
    pytest.param(SEOUL, (2026, 12, 1), id="a month in Seoul"),
    pytest.param(SEOUL, (2027, 1, 1), id="a year in Seoul"),
    pytest.param(NEW_YORK, (2026, 3, 8), id="the day on which summer time begins in New York"),
    pytest.param(NEW_YORK, (2026, 3, 9), id="the day after, at another offset"),
    pytest.param(NEW_YORK, (2026, 11, 1), id="the month that begins with the end of summer time"),
    pytest.param(NEW_YORK, (2026, 12, 1), id="a month in New York"),
]


def midnight_ms(zone: ZoneInfo, day: tuple[int, int, int]) -> int:
    return int(datetime(*day, tzinfo=zone).timestamp() * 1000)


class Gateway:
    """A key, an organisation and a ledger, in one zone."""

    def __init__(self, zone: ZoneInfo, limits: Limits, *, shards: int = 1) -> None:
        self.zone = zone
        client: Any = DynamoDB(MeterTable=("meter",), LedgerTable=("day_shard", "request_id"))
        self.db = client
        self.key_id, self.secret = put_key(self.db, limits=limits, shards=shards)
        self.ledger = Ledger(self.db, "LedgerTable", zone)
        self.meters = self.new_process()

    def new_process(self) -> Meters:
        return Meters(self.db, "MeterTable", self.zone, organisation_budget_pico_usd=UNLIMITED, rng=random.Random(1))

    def admit(self, at_ms: int, *, now_ms: int | None = None, worst: int = 10) -> Admission:
        return asyncio.run(
            self.meters.admit(
                f"Bearer {self.secret}",
                request_id=new_request_id(at_ms=at_ms),
                now_ms=at_ms if now_ms is None else now_ms,
                model=OMNI,
                worst_pico_usd=worst,
                tokens=1,
            )
        )

    def close(self, admission: Admission, cost: int, meters: Meters | None = None) -> None:
        request_id = admission.leases[0][1].request_id
        subject = Subject(request_id, None, None, stream=False, model=OMNI, catalog_version="1")
        account = Account(subject, admission, self.ledger, meters or self.meters, started_s=0.0)
        usage = Usage(prompt_tokens=0, completion_tokens=cost)
        asyncio.run(account.close(a_pico_dollar_a_token(10), outcome="completed", usage=usage))

    def sweep(self, now_ms: int) -> Swept:
        return asyncio.run(Sweeper(self.db, "MeterTable", self.meters, self.ledger).sweep(now_ms=now_ms))

    def charged(self, *, by: str) -> Counter[str]:
        """The rows' costs by the day, or the month, of the partition in which they lie."""
        found: Counter[str] = Counter()
        for (day_shard, _), item in self.db.tables["LedgerTable"].items():
            row: Row = ledger.from_item(to_item(item))
            found[day_shard[:10] if by == "day" else day_shard[:7]] += row.cost_pico_usd
        return found

    def assert_agrees(self) -> None:
        """Each month of each meter has spent what the rows of its days cost, and nothing is set aside."""
        charged = self.charged(by="month")
        for whose in (f"key#{self.key_id}", "organisation"):
            meters = [Meter(item) for (id_,), item in self.db.tables["MeterTable"].items() if id_.startswith(whose)]
            spent: Counter[str] = Counter()
            for meter in meters:
                assert meter.leases() == []
                for month in meter.item["months"]:
                    spent[month] += meter.spent_pico_usd(month)
            assert +spent == +charged


@pytest.mark.parametrize(("zone", "day"), MIDNIGHTS)
@pytest.mark.parametrize("shards", [1, 3])
def test_requests_around_midnight_are_counted_where_they_arrived(
    zone: ZoneInfo, day: tuple[int, int, int], shards: int
) -> None:
    """A request every 100 ms, from half a second before midnight to half a second after. All of them run at once; they
    end in any order, some in a process that has admitted none of them, the last when all have arrived.
    """
    gateway = Gateway(zone, Limits(budget_pico_usd=200, rpm=1000, tpm=1000), shards=shards)
    at, rng = midnight_ms(zone, day), random.Random(5)
    arrivals = range(at - 500, at + 600, 100)
    running = [(at_ms, gateway.admit(at_ms, now_ms=at_ms + rng.choice([0, 300]))) for at_ms in arrivals]
    rng.shuffle(running)
    expected: Counter[str] = Counter()
    for number, (at_ms, admission) in enumerate(running):
        gateway.close(admission, number % 10, gateway.new_process() if number % 3 == 0 else None)
        expected[business_day(at_ms, zone).isoformat()] += number % 10
    today = datetime(*day, tzinfo=zone).date()
    assert set(expected) == {(today - timedelta(days=1)).isoformat(), today.isoformat()}
    assert gateway.charged(by="day") == expected
    gateway.assert_agrees()


@pytest.mark.parametrize("zone", [SEOUL, NEW_YORK])
def test_a_month_begins_with_its_whole_budget_while_the_last_one_is_in_flight(zone: ZoneInfo) -> None:
    """At 23:59:59.9 the budget is set aside to the last; at 00:00:00.1 there is a new one; what comes back of the old
    one goes to the old one.
    """
    at = midnight_ms(zone, (2026, 11, 1))
    gateway = Gateway(zone, Limits(budget_pico_usd=20))
    old = [gateway.admit(at - 100) for _ in range(2)]
    with pytest.raises(QuotaExceededError, match="2026-11-01T00:00"):
        gateway.admit(at - 100)
    new = [gateway.admit(at + 100) for _ in range(2)]
    for admission in old:
        gateway.close(admission, 1)
    with pytest.raises(QuotaExceededError, match="2026-12-01T00:00"):
        gateway.admit(at + 100)
    # One that was late on its way still meets the month in which it arrived.
    gateway.close(gateway.admit(at - 1, now_ms=at + 5000), 9)
    for admission in new:
        gateway.close(admission, 10)
    assert gateway.charged(by="month") == {"2026-10": 11, "2026-11": 20}
    gateway.assert_agrees()


@pytest.mark.parametrize("zone", [SEOUL, NEW_YORK])
def test_who_died_before_midnight_is_charged_before_midnight(zone: ZoneInfo) -> None:
    """Two processes die, one at 23:59:59.9 and one at 00:00:00.1; the sweeper comes in the new month."""
    at = midnight_ms(zone, (2026, 11, 1))
    gateway = Gateway(zone, Limits(budget_pico_usd=100))
    gateway.admit(at - 100)
    gateway.admit(at + 100)
    assert gateway.sweep(at - 100 + LEASE_LIFE_MS) == Swept()
    assert gateway.sweep(at + LEASE_LIFE_MS) == Swept(unknown=1)
    assert gateway.charged(by="day") == {"2026-10-31": 10}
    assert gateway.sweep(at + 101 + LEASE_LIFE_MS) == Swept(unknown=1)
    assert gateway.charged(by="day") == {"2026-10-31": 10, "2026-11-01": 10}
    gateway.assert_agrees()


def test_a_view_from_before_midnight_settles_what_arrived_after_it() -> None:
    """A process that last looked at the meter in October ends a lease of November: it is charged in November."""
    at = midnight_ms(SEOUL, (2026, 11, 1))
    gateway = Gateway(SEOUL, Limits(budget_pico_usd=100))
    behind = gateway.new_process()
    gateway.meters = behind
    gateway.close(gateway.admit(at - 100), 3)
    gateway.meters = gateway.new_process()
    gateway.close(gateway.admit(at + 100), 4, behind)
    assert gateway.charged(by="month") == {"2026-10": 3, "2026-11": 4}
    gateway.assert_agrees()


def test_midnight_does_not_begin_a_new_minute() -> None:
    """Three a minute are three a minute, also half before and half after the end of a month."""
    at = midnight_ms(SEOUL, (2026, 12, 1))
    gateway = Gateway(SEOUL, Limits(rpm=3))
    for offset_ms in (-30_000, -100, 100):
        gateway.admit(at + offset_ms)
    with pytest.raises(RateLimitedError):
        gateway.admit(at + 29_900)
    gateway.admit(at + 40_000)


@given(st.integers(0, 4_102_444_800_000), st.sampled_from(ZONES))
@example(
    int(datetime(2026, 10, 31, 12, tzinfo=UTC).timestamp() * 1000), ZoneInfo("America/Havana")
)  # 00:00 comes twice
@example(int(datetime(2023, 9, 30, 12, tzinfo=UTC).timestamp() * 1000), ZoneInfo("America/Asuncion"))  # and never
def test_the_next_month_starts_at_its_first_millisecond(at_ms: int, zone: ZoneInfo) -> None:
    """What a client is told of the reset is the moment at which meters begin the month."""
    starts_ms = int(next_month_starts(at_ms, zone).timestamp() * 1000)
    before, after = business_day(starts_ms - 1, zone), business_day(starts_ms, zone)
    assert at_ms < starts_ms
    assert (before.year, before.month) == (business_day(at_ms, zone).year, business_day(at_ms, zone).month)
    assert after.day == 1
