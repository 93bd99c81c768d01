"""A write on a meter happens, and its answer is lost for good; or a release does not reach a meter.

Nobody is called for such a request, so nobody is charged for it. Each call of an admission fails in turn, in every way
that a network has; then the same environment serves another request, or none, and the sweeper comes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from botocore.exceptions import ClientError

from naru import aws_calls, meter, sweeper
from naru.errors import StoreUnavailableError
from naru.ledger import Ledger
from naru.meter import Admission, Meters
from naru.meter_state import UNLIMITED, Limits, Meter
from naru.request_ids import new_request_id
from naru.sweeper import LEASE_LIFE_MS, Sweeper, Swept
from naru.unended import MAX_REMEMBERED
from tests.dynamodb_model import DynamoDB, model_of
from tests.interleaving import Call, Interleaving
from tests.meters import USD, all_meters, put_key, put_organisation

SEOUL = ZoneInfo("Asia/Seoul")
NOW_MS = 1_795_316_405_000
MONTH = "2026-11"


@dataclass(frozen=True)
class Scenario:
    """The meters that a request meets."""

    limits: Limits = field(default_factory=lambda: Limits(budget_pico_usd=10 * USD, rpm=60, tpm=10_000, max_parallel=5))
    shards: int = 1
    organisation_shards: int = 1
    organisation_pico_usd: int = 10 * USD
    worst_pico_usd: int = USD
    end_user: str | None = None
    users: dict[str, int] = field(default_factory=dict)
    served_before: bool = True
    """Whether the meters are there and in this environment's memory."""


SCENARIOS = {
    "one of many": Scenario(),
    "the very first request": Scenario(served_before=False),
    "an end user with limits": Scenario(end_user="phone", users={"user_budget_pico_usd": 5 * USD, "user_rpm": 10}),
    "an end user's first request": Scenario(
        end_user="phone", users={"user_budget_pico_usd": 5 * USD, "user_rpm": 10}, served_before=False
    ),
    "shards": Scenario(shards=3, organisation_shards=4),
    "a budget that is gathered from shards": Scenario(
        limits=Limits(budget_pico_usd=10 * USD), shards=3, organisation_shards=3, worst_pico_usd=6 * USD
    ),
    "an organisation that refuses": Scenario(organisation_pico_usd=USD // 2),
}


class World:
    """One environment, its meters, and a network that a test cuts."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.client = model_of("MeterTable", "LedgerTable")
        self.db: DynamoDB = self.client
        fields: dict[str, Any] = dict(scenario.users)
        _, self.secret = put_key(self.client, limits=scenario.limits, shards=scenario.shards, **fields)
        if scenario.organisation_shards > 1:
            put_organisation(
                self.client,
                "MeterTable",
                budget_pico_usd=scenario.organisation_pico_usd,
                shards=scenario.organisation_shards,
            )
        self.network = Interleaving()
        self.ledger = Ledger(self.client, "LedgerTable", SEOUL)
        self.meters = self.new_environment()

    def new_environment(self) -> Meters:
        return Meters(
            self.client,
            "MeterTable",
            SEOUL,
            organisation_budget_pico_usd=self.scenario.organisation_pico_usd,
            rng=random.Random(1),
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        with self.network.instead_of_threads(aws_calls, meter, sweeper):
            try:
                if self.scenario.served_before:
                    self.serve(worst_pico_usd=1)
                yield
            finally:
                self.network.close()

    def admit(self, *, worst_pico_usd: int | None = None) -> asyncio.Task[Any]:
        """Begin an admission, up to its first call."""
        return self.network.start(
            0,
            self.meters.admit(
                f"Bearer {self.secret}",
                request_id=new_request_id(at_ms=NOW_MS),
                now_ms=NOW_MS,
                model="m",
                worst_pico_usd=self.scenario.worst_pico_usd if worst_pico_usd is None else worst_pico_usd,
                tokens=5,
                end_user=self.scenario.end_user,
            ),
        )

    def serve(self, *, worst_pico_usd: int) -> None:
        """A request that costs nothing, from its admission to its end."""
        admission = self.network.finish(self.admit(worst_pico_usd=worst_pico_usd))
        self.network.finish(self.network.start(0, self.meters.settle(admission, cost_pico_usd=0, tokens=0)))

    def sweep(self) -> Swept:
        sweeping = Sweeper(self.client, "MeterTable", self.new_environment(), self.ledger)
        swept: Swept = self.network.finish(self.network.start(1, sweeping.sweep(now_ms=NOW_MS + LEASE_LIFE_MS + 1)))
        return swept

    def run(self, task: asyncio.Task[Any], fault: Callable[[int, Call], str | None]) -> Any:
        """Let an admission happen call by call; the result of the task, or what it raised."""
        number = 0
        late: list[Call] = []
        while self.network.waiting:
            how: Any = fault(number, self.network.waiting[0])
            number += 1
            if how == "cancelled":
                with suppress(ClientError):
                    call = self.network.waiting[0]
                    call.function(**call.parameters)
                self.network.cancel(task)
            elif how == "cancelled before":
                self.network.cancel(task)
            elif how == "late":
                late.append(self.network.waiting[0])
                self.network.happen(self.network.waiting[0], "not sent")
            else:
                self.network.happen(self.network.waiting[0], how or "answered")
        assert task.done()
        for call in late:
            with suppress(ClientError):
                call.function(**call.parameters)
        return asyncio.CancelledError() if task.cancelled() else task.exception() or task.result()

    # ── What is true ───────────────────────────────────────────────────────────────────────────────────────

    def leases(self) -> list[str]:
        return [lease.request_id for each in all_meters(self.client) for lease in each.leases()]

    def assert_nothing_is_spent_or_reserved(self) -> None:
        groups: dict[str, list[Meter]] = {}
        for each in all_meters(self.client):
            groups.setdefault(each.id.partition("/")[0], []).append(each)
        assert self.db.tables["LedgerTable"] == {}
        assert self.leases() == []
        for meters in groups.values():
            assert sum(each.spent_pico_usd(MONTH) for each in meters) == 0
            assert sum(each.available_pico_usd(MONTH) for each in meters) == sum(
                each.limits.budget_pico_usd for each in meters
            )


def calls_of(scenario: Scenario) -> list[str]:
    """The calls that an admission makes when nothing fails."""
    world = World(scenario)
    calls: list[str] = []

    def watch(_: int, call: Call) -> None:
        calls.append(repr(call))

    with world.running():
        world.run(world.admit(), watch)
    return calls


def meter_of(call: Call) -> str:
    return str(call.parameters.get("Key", {}).get("meter", {}).get("S", "a transaction"))


Faulty = Callable[[int], Callable[[int, Call], str | None]]


def only_once(how: str) -> Faulty:
    return lambda at: lambda number, _: how if number == at else None


def from_then_on(how: str) -> Faulty:
    """The first answer is lost, or not; nothing works any more after that."""
    return lambda at: lambda number, _: how if number == at else "not sent" if number > at else None


def on_the_same_meter(how: str) -> Faulty:
    def faulty(at: int) -> Callable[[int, Call], str | None]:
        failing: list[str] = []

        def fault(number: int, call: Call) -> str | None:
            if number == at:
                failing.append(meter_of(call))
                return how
            return "not sent" if meter_of(call) in failing else None

        return fault

    return faulty


FAULTS = {
    f"{name}, {how}": faulty(how)
    for name, faulty in (
        ("once", only_once),
        ("on this meter from now on", on_the_same_meter),
        ("everywhere from now on", from_then_on),
    )
    for how in ("answer lost", "not sent", "late", "cancelled", "cancelled before")
}
"""``late``: the write happens after all, when the request has long been answered."""


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_request_that_called_nobody_leaves_nothing_once_its_environment_serves_another(name: str, fault: str) -> None:
    scenario = SCENARIOS[name]
    failed = 0
    for at, call in enumerate(calls_of(scenario)):
        world = World(scenario)
        with world.running():
            outcome = world.run(world.admit(), FAULTS[fault](at))
            if isinstance(outcome, Admission):
                # The fault was overcome; the request goes on.
                world.network.finish(world.network.start(0, world.meters.release(outcome)))
            else:
                failed += 1
            world.serve(worst_pico_usd=min(1, scenario.worst_pico_usd))
            world.network.drain()
            assert world.leases() == [], call
            world.assert_nothing_is_spent_or_reserved()
    assert failed


@pytest.mark.parametrize("how", ["answer lost", "not sent", "cancelled"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_one_answer_that_is_lost_holds_nothing_after_the_503(name: str, how: str) -> None:
    """At once, with no other request: the release is tried on the failing meter, too."""
    scenario = SCENARIOS[name]
    for at, call in enumerate(calls_of(scenario)):
        world = World(scenario)
        with world.running():
            outcome = world.run(world.admit(), only_once(how)(at))
            if not isinstance(outcome, StoreUnavailableError | asyncio.CancelledError):
                continue  # the fault was overcome, or met the release itself
            assert world.leases() == [], call
            world.assert_nothing_is_spent_or_reserved()


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("faulty", [only_once("late"), on_the_same_meter("answer lost")], ids=["late", "lost"])
def test_what_one_meter_does_not_take_back_is_not_charged_though_the_environment_dies(
    name: str, faulty: Faulty
) -> None:
    """The others were released, which tells the sweeper that nobody was called: a row comes before any release."""
    scenario = SCENARIOS[name]
    for at, call in enumerate(calls_of(scenario)):
        world = World(scenario)
        with world.running():
            if isinstance(world.run(world.admit(), faulty(at)), Admission):
                continue
            swept = world.sweep()
            assert swept.unknown == 0, call
            world.assert_nothing_is_spent_or_reserved()


def test_ten_503s_of_one_environment_cost_nothing() -> None:
    """A month of 10 USD, and the answer of the organisation's meter is lost each time."""
    world = World(Scenario())
    with world.running():
        for _ in range(10):
            outcome = world.run(
                world.admit(), lambda _, call: "answer lost" if meter_of(call) == "organisation" else None
            )
            assert isinstance(outcome, StoreUnavailableError)
        world.serve(worst_pico_usd=10 * USD)
        world.assert_nothing_is_spent_or_reserved()


def test_nobody_waits_for_what_another_key_holds() -> None:
    """One key's meter does not answer: its leases are tried again, and the others' requests go on meanwhile."""
    world = World(Scenario())
    with world.running():
        _, other = put_key(world.client, limits=Limits(budget_pico_usd=10 * USD))
        lost = world.run(world.admit(), lambda _, call: "answer lost" if meter_of(call).startswith("key#") else None)
        assert isinstance(lost, StoreUnavailableError)
        (key,) = {meter_id for (meter_id,) in world.db.tables["MeterTable"] if "key#" in meter_id} - {
            f"key#{_id_of(other)}"
        }
        world.secret = other
        task = world.admit()
        waits = {meter_of(call) for call in world.network.waiting}
        assert waits == {key, f"key#{_id_of(other)}"}
        while not task.done():
            call = next(call for call in world.network.waiting if meter_of(call) != key)
            world.network.happen(call)
        world.network.finish(world.network.start(0, world.meters.release(task.result())))
        world.assert_nothing_is_spent_or_reserved()


def _id_of(secret: str) -> str:
    return f"key_{secret.split('-')[2]}"


@pytest.mark.parametrize("lost", ["key", "organisation", "both"])
def test_a_settlement_that_does_not_reach_a_meter_is_made_with_the_next_request(lost: str) -> None:
    world = World(Scenario())
    with world.running():
        admission = world.network.finish(world.admit())
        settling = world.network.start(0, world.meters.settle(admission, cost_pico_usd=7, tokens=3))
        outcome = world.run(
            settling, lambda _, call: "not sent" if lost == "both" or meter_of(call).startswith(lost) else None
        )
        assert isinstance(outcome, StoreUnavailableError)
        world.serve(worst_pico_usd=1)
        world.network.drain()
        assert world.leases() == []
        assert [each.spent_pico_usd(MONTH) for each in all_meters(world.client)] == [7, 7]


@pytest.mark.slow
def test_an_environment_remembers_no_more_leases_than_it_can_hold() -> None:
    """Of a table that is away for an hour; what is forgotten is the sweeper's."""
    world = World(Scenario(limits=Limits(), organisation_pico_usd=UNLIMITED))
    with world.running():
        for _ in range(MAX_REMEMBERED + 20):
            assert isinstance(world.run(world.admit(), lambda _, __: "not sent"), StoreUnavailableError)
        assert len(world.meters._unended) == MAX_REMEMBERED
