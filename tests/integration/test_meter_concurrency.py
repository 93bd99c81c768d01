"""Eight processes on one table in the emulator, which is right about concurrency where moto is not.

Each has its own memory of the meters and makes 25 requests at once. Time is what the test says it is. NARU_LONG_TESTS=1
tries every meter whole and sharded.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import pytest

from naru.ledger import Row, from_item
from naru.meter_state import UNLIMITED, Limits, Meter
from naru.sweeper import LEASE_LIFE_MS
from tests.emulated_tables import Tables, clear, emulated_tables
from tests.meter_processes import SEOUL, Ask, MeterProcess, all_at_once
from tests.meters import USD, all_meters, put_key, put_organisation

PROCESSES = 8
PER_PROCESS = 25
NOON = int(datetime(2026, 11, 22, 12, tzinfo=SEOUL).timestamp() * 1000)
MONTH = "2026-11"
LONG = bool(os.environ.get("NARU_LONG_TESTS"))

pytestmark = pytest.mark.xdist_group("meters")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tables]:
    with emulated_tables(tmp_path_factory.mktemp("emulator"), "MeterTable", "LedgerTable") as made:
        yield made


@pytest.fixture(scope="module")
def running(tables: Tables) -> Iterator[list[MeterProcess]]:
    with ExitStack() as stack:
        processes = [MeterProcess(tables) for _ in range(PROCESSES)]
        for process in processes:
            stack.callback(process.kill)
        yield processes


@pytest.fixture
def dynamodb(tables: Tables) -> Any:
    client = tables.client()
    clear(client, "MeterTable", "meter")
    clear(client, "LedgerTable", "day_shard", "request_id")
    return client


@pytest.fixture
def processes(running: list[MeterProcess], dynamodb: Any) -> list[MeterProcess]:
    """They remember nothing of the test before."""
    all_at_once(running, "forget", UNLIMITED)
    return running


def rows(dynamodb: Any) -> list[Row]:
    pages = dynamodb.get_paginator("scan").paginate(TableName="LedgerTable", ConsistentRead=True)
    return [from_item(item) for page in pages for item in page["Items"]]


def groups(dynamodb: Any) -> dict[str, list[Meter]]:
    """The meters with their shards."""
    found: dict[str, list[Meter]] = {}
    for meter in all_meters(dynamodb):
        found.setdefault(meter.id.partition("/")[0], []).append(meter)
    return found


def total(meters: list[Meter], what: Callable[[Meter], int]) -> int:
    return sum(map(what, meters))


def available(meters: list[Meter]) -> int:
    return total(meters, lambda meter: meter.available_pico_usd(MONTH))


def spent(meters: list[Meter]) -> int:
    return total(meters, lambda meter: meter.spent_pico_usd(MONTH))


def in_flight(meters: list[Meter]) -> int:
    return total(meters, lambda meter: len(meter.leases()))


# ── The budget ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("whose", "shards"), [("key", 4), *([("key", 1), ("organisation", 1), ("organisation", 4)] if LONG else [])]
)
def test_of_200_requests_from_8_processes_a_budget_for_10_admits_exactly_10(
    dynamodb: Any, processes: list[MeterProcess], whose: str, shards: int
) -> None:
    """All requests have the same worst case, and the budget is ten times that. None settles before all are decided, so
    no room comes back: whatever the order, ten are admitted, the budget is promised to the last pico-dollar and not
    beyond, and those that the organisation refused have left nothing on the key. Then all settle at half.
    """
    budget = Limits(budget_pico_usd=10 * USD)
    key_id, secret = put_key(
        dynamodb,
        limits=budget if whose == "key" else Limits(rpm=1000) if shards == 1 else Limits(),
        shards=shards if whose == "key" else 1,
    )
    if whose == "organisation":
        put_organisation(dynamodb, "MeterTable", budget_pico_usd=10 * USD, shards=shards)
    asks = [Ask(secret, NOON, USD)] * PER_PROCESS
    outcomes = Counter(code for codes in all_at_once(processes, "admit", asks) for code in codes)
    assert outcomes == {"admitted": 10, "insufficient_quota": 190}
    limited = groups(dynamodb)[f"key#{key_id}" if whose == "key" else "organisation"]
    assert len(limited) == shards
    assert (available(limited), spent(limited)) == (0, 0)
    for meters in groups(dynamodb).values():
        assert in_flight(meters) == 10
    if whose == "organisation" and shards == 1:
        (key,) = groups(dynamodb)[f"key#{key_id}"]
        assert key.minute(NOON).requests_left == 990
    all_at_once(processes, "settle", USD // 2)
    for meters in groups(dynamodb).values():
        assert (in_flight(meters), spent(meters)) == (0, 5 * USD)
    again = [code for codes in all_at_once(processes, "admit", asks[:1]) for code in codes]
    assert again.count("admitted") == 5


def test_settlements_and_admissions_at_once_lose_and_create_nothing(
    dynamodb: Any, processes: list[MeterProcess]
) -> None:
    """Half of the processes settle what they hold while the other half admits, for some rounds, over 4 shards."""
    key_id, secret = put_key(dynamodb, limits=Limits(budget_pico_usd=100 * USD), shards=4)
    put_organisation(dynamodb, "MeterTable", budget_pico_usd=60 * USD, shards=4)
    asks = [Ask(secret, NOON, 3 * USD)] * 6
    for number in range(4):
        settling, admitting = processes[number % 2 :: 2], processes[(number + 1) % 2 :: 2]
        for process in settling:
            process.tell("settle", USD // 10 * number)
        for process in admitting:
            process.tell("admit", asks)
        for process in processes:
            process.hear()
        for meter_id, budget in ((f"key#{key_id}", 100 * USD), ("organisation", 60 * USD)):
            meters = groups(dynamodb)[meter_id]
            promised = total(meters, lambda meter: sum(lease.worst_pico_usd for lease in meter.leases()))
            assert available(meters) + spent(meters) + promised == budget
            assert available(meters) >= 0
    all_at_once(processes, "settle", 0)
    for meters in groups(dynamodb).values():
        assert in_flight(meters) == 0


def test_a_month_that_begins_in_8_processes_at_once_begins_once(dynamodb: Any, processes: list[MeterProcess]) -> None:
    """A second before and a second after midnight, at the same time; each month admits exactly its budget."""
    _, secret = put_key(dynamodb, limits=Limits(budget_pico_usd=10 * USD))
    midnight = int(datetime(2026, 12, 1, tzinfo=SEOUL).timestamp() * 1000)
    asks = [Ask(secret, midnight + 100, USD, at_ms=midnight + offset) for offset in (-100, 100)] * 12
    outcomes = Counter(code for codes in all_at_once(processes, "admit", asks) for code in codes)
    assert outcomes == {"admitted": 20, "insufficient_quota": 8 * 24 - 20}
    arrived = Counter(at_ms < midnight for held in all_at_once(processes, "held_ms") for at_ms in held)
    assert arrived == {True: 10, False: 10}
    all_at_once(processes, "settle", USD)
    for meters in groups(dynamodb).values():
        assert [total(meters, lambda m, month=month: m.spent_pico_usd(month)) for month in (MONTH, "2026-12")] == [10 * USD, 10 * USD]  # type: ignore[misc]  # fmt: skip


# ── The minute ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 4] if LONG else [4])
def test_no_minute_of_8_processes_holds_more_than_rpm_and_tpm(
    dynamodb: Any, processes: list[MeterProcess], shards: int
) -> None:
    """Two and a half minutes in steps of 5 s; in each all processes ask for two requests of 10 to 40 tokens at once.
    In every 60 s, wherever they begin, at most rpm are admitted, with estimates of at most tpm together.

    Exact for clocks that agree on the slot of ten seconds; clocks that differ by d make it every 60 s - d.
    """
    rpm, tpm, rng = 13, 250, random.Random(4)
    _, secret = put_key(dynamodb, limits=Limits(rpm=rpm, tpm=tpm), shards=shards)
    admitted: list[tuple[int, int]] = []
    for step_ms in range(0, 150_000, 5000):
        asked = [
            [Ask(secret, NOON + step_ms + rng.randrange(5000), 1, tokens=rng.randint(10, 40)) for _ in range(2)]
            for _ in processes
        ]
        for process, asks in zip(processes, asked, strict=True):
            process.tell("admit", asks)
        for process, asks in zip(processes, asked, strict=True):
            admitted += [
                (ask.now_ms, ask.tokens) for ask, code in zip(asks, process.hear(), strict=True) if code == "admitted"
            ]
        all_at_once(processes, "settle", 0)
    windows = [[t for at, t in admitted if begin <= at < begin + 60_000] for begin, _ in admitted]
    assert max(map(len, windows)) <= rpm
    assert max(map(sum, windows)) <= tpm
    # And it is these limits that held, for as long as there was somebody to hold back.
    assert max(map(sum, windows)) > tpm * 0.8
    assert len(admitted) > 2 * tpm / 40


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 4] if LONG else [4])
def test_requests_at_once_are_those_of_the_limit_and_slots_of_the_dead_come_back(
    tables: Tables, dynamodb: Any, processes: list[MeterProcess], shards: int
) -> None:
    """Seven at once, for a key of eight processes. Two processes of the eight die with all that they hold: their slots
    stay taken as long as a request can live, and come back with the sweep, not before.
    """
    key_id, secret = put_key(dynamodb, limits=Limits(max_parallel=7), shards=shards)
    asks = [Ask(secret, NOON, USD)] * 10

    def admit(by: list[MeterProcess]) -> int:
        return [code for codes in all_at_once(by, "admit", asks) for code in codes].count("admitted")

    assert admit(processes) == 7
    assert admit(processes) == 0
    all_at_once(processes, "settle", USD)
    mortal = [MeterProcess(tables) for _ in range(2)]
    all_at_once(mortal, "forget", UNLIMITED)
    assert admit(mortal) == 7
    for process in mortal:
        process.kill()
    assert admit(processes) == 0
    assert all_at_once(processes[:1], "sweep", NOON + LEASE_LIFE_MS) == [0]
    assert admit(processes) == 0
    assert all_at_once(processes[:1], "sweep", NOON + LEASE_LIFE_MS + 1) == [7]
    assert [row.outcome for row in rows(dynamodb)] == ["unknown"] * 7
    assert spent(groups(dynamodb)["organisation"]) == (7 + 7) * USD
    assert admit(processes) == 7
    assert in_flight(groups(dynamodb)[f"key#{key_id}"]) == 7


# ── The sweeper ────────────────────────────────────────────────────────────────────────────────────────────


def test_sweepers_and_late_requests_at_once_end_each_lease_once(dynamodb: Any, processes: list[MeterProcess]) -> None:
    """40 requests whose time is over. Four processes close theirs after all, while the other four sweep everything: each
    request has one row, whose cost is spent once, whoever came first.
    """
    key_id, secret = put_key(dynamodb, limits=Limits(budget_pico_usd=100 * USD))
    closing, sweeping = processes[:4], processes[4:]
    asks = [Ask(secret, NOON, USD)] * 10
    assert sum(codes.count("admitted") for codes in all_at_once(closing, "admit", asks)) == 40
    for process in closing:
        process.tell("close", USD // 4)
    for process in sweeping:
        process.tell("sweep", NOON + LEASE_LIFE_MS + 1)
    for process in processes:
        process.hear()
    all_at_once(sweeping[:1], "sweep", NOON + LEASE_LIFE_MS + 1)
    found = rows(dynamodb)
    assert len({row.request_id for row in found}) == len(found) == 40
    charged = sum(row.cost_pico_usd for row in found)
    for meters in groups(dynamodb).values():
        assert (in_flight(meters), spent(meters)) == (0, charged)
    assert available(groups(dynamodb)[f"key#{key_id}"]) == 100 * USD - charged
