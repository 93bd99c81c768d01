"""A process that dies before or after any one of its calls, in turn; then the sweeper comes.

The whole use case runs, from the API key to the row, against the simulated model and a model of DynamoDB. A first run
counts its calls: to the tables, to the provider, and for each event of a stream. Then it runs again and dies before the
first call, after the first call, before the second, and so on. A dead process makes no more calls, so nothing that
stands in a handler of an exception helps it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal
from zoneinfo import ZoneInfo

import pytest

from local.simulated_model import Config, ThreadedModel, run_in_thread
from naru import ledger
from naru.attributes import to_item
from naru.business_time import business_day
from naru.catalog_source import CatalogSource
from naru.completions import Call, Completions
from naru.errors import NaruError
from naru.health import Health
from naru.ledger import Ledger, Row
from naru.meter import Meters
from naru.meter_state import Limits, Meter
from naru.provider_keys import ProviderKeys
from naru.request_ids import new_request_id
from naru.retry import RetryPolicy
from naru.sweeper import LEASE_LIFE_MS, Sweeper
from naru.upstream import EventStream, Upstream, new_http_client
from tests.accounts import OMNI, worst_case_pico_usd
from tests.dynamodb_model import DynamoDB
from tests.meters import USD, put_key, put_organisation

pytestmark = pytest.mark.slow

SEOUL = ZoneInfo("Asia/Seoul")
Moment = Literal["before", "after"]


class CrashError(BaseException):
    """The process is gone: no ``except Exception`` sees it."""


@dataclass
class Life:
    """Counts the calls of a process, and ends it at one of them."""

    dies_at: int | None = None
    moment: Moment = "before"
    calls: list[str] = field(default_factory=list)
    dead: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, what: str) -> bool:
        """One more call; whether the process dies when it has been made."""
        if self.dead:
            raise CrashError
        self.calls.append(what)
        if len(self.calls) - 1 != self.dies_at:
            return False
        self.dead = self.moment == "before"
        if self.dead:
            raise CrashError
        return True

    def end(self, *, dies: bool) -> None:
        if dies:
            self.dead = True
            raise CrashError

    def call(self, what: str, function: Callable[[], Any]) -> Any:
        # One at a time: which of two calls at once is the last one must not depend on the threads.
        with self._lock:
            dies = self.begin(what)
            try:
                return function()
            finally:
                self.end(dies=dies)


class MortalClient:
    """DynamoDB, for as long as the process lives."""

    def __init__(self, database: DynamoDB, life: Life) -> None:
        self._database = database
        self._life = life
        self.exceptions = database.exceptions

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._database, name)
        return lambda **parameters: self._life.call(
            f"{name} {parameters.get('Key', '')}", lambda: function(**parameters)
        )

    def get_paginator(self, name: str) -> Any:
        life, pages = self._life, self._database.get_paginator(name)

        class Paginator:
            def paginate(self, **parameters: Any) -> Any:
                return life.call("scan", lambda: [*pages.paginate(**parameters)])

        return Paginator()


class MortalUpstream(Upstream):
    """The provider, for as long as the process lives."""

    life: Life

    async def answer(self, *args: Any, **more: Any) -> dict[str, Any]:
        dies = self.life.begin("answer")
        result = await super().answer(*args, **more)
        self.life.end(dies=dies)
        return result

    async def stream(self, *args: Any, **more: Any) -> EventStream:
        dies = self.life.begin("stream")
        events = await super().stream(*args, **more)
        original = events.next

        async def next_event(*args: Any, **more: Any) -> bytes | None:
            dies = self.life.begin("event")
            data = await original(*args, **more)
            self.life.end(dies=dies)
            return data

        events.next = next_event  # type: ignore[method-assign]
        self.life.end(dies=dies)
        return events


class _Keys(ProviderKeys):
    async def get(self, field: str) -> Any:
        from pydantic import SecretStr

        return SecretStr("k")


USUAL = Limits(budget_pico_usd=USD, rpm=100, tpm=10**6, max_parallel=3)


@dataclass(frozen=True)
class Scenario:
    """One request, and the meters that it meets."""

    body: dict[str, Any]
    limits: Limits = USUAL
    shards: int = 1
    organisation_pico_usd: int = USD
    organisation_shards: int = 1
    users: dict[str, int] = field(default_factory=dict)
    leaves_after: int | None = None
    before: int = 0
    """Requests that were served before, so that meters and months are there."""
    batch_id: str | None = None


def ask(directives: str = "", **fields: Any) -> dict[str, Any]:
    prompt = f"안녕 [[sim tokens=2 {directives}]]"
    return {"model": OMNI, "messages": [{"role": "user", "content": prompt}], "max_tokens": 50, **fields}


SCENARIOS = {
    "the very first request": Scenario(ask()),
    "one of many": Scenario(ask(), before=1),
    "a stream": Scenario(ask(stream=True), before=1),
    "a stream whose client leaves": Scenario(ask(stream=True), leaves_after=2, before=1),
    "a stream that is cut": Scenario(ask("fault=cut_after:1", stream=True), before=1),
    "an end user with limits": Scenario(
        ask(user="phone"), users={"user_budget_pico_usd": USD, "user_rpm": 5}, organisation_shards=2
    ),
    "a retry upstream": Scenario(ask("fault=status:503,times=1"), before=1),
    "an answer that is lost": Scenario(ask("fault=reset_before_headers:0,tokens=3"), before=1),
    "a budget scattered over shards": Scenario(
        # Worst case about 700 million pico-dollars: less than the budget, and more than each shard's part of it.
        ask(), limits=Limits(budget_pico_usd=10**9), shards=4, organisation_pico_usd=10**9, organisation_shards=3
    ),
    "a line of a batch": Scenario(ask(), batch_id="batch_1"),
    "an organisation that refuses": Scenario(ask(), organisation_pico_usd=0),
}  # fmt: skip


@pytest.fixture(scope="module")
def simulated() -> Iterator[ThreadedModel]:
    with run_in_thread(Config()) as model:
        yield model


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Hundreds of processes die here, and asyncio says so of each."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class World:
    """The tables, the provider, and the processes that come and go."""

    def __init__(self, scenario: Scenario, simulated: ThreadedModel) -> None:
        simulated.reset_stats()
        simulated.clear_control()
        self.scenario = scenario
        self.provider = simulated
        self.database = DynamoDB(
            MeterTable=("meter",), LedgerTable=("day_shard", "request_id"), HealthTable=("deployment",)
        )
        client: Any = self.database
        fields: dict[str, Any] = dict(scenario.users)
        _, self.api_key = put_key(client, limits=scenario.limits, shards=scenario.shards, **fields)
        if scenario.organisation_shards > 1:
            budget = scenario.organisation_pico_usd
            put_organisation(client, "MeterTable", budget_pico_usd=budget, shards=scenario.organisation_shards)
        for _ in range(scenario.before):
            self.serve(Life(), ask())

    def serve(self, life: Life, body: dict[str, Any] | None = None, leaves_after: int | None = None) -> None:
        """A new process answers one request, or dies over it."""
        try:
            asyncio.run(self._serve(life, body or self.scenario.body, leaves_after))
        except CrashError:
            pass
        except NaruError as error:
            # What is refused, or lost upstream, is an ordinary end.
            assert body is None, error  # noqa: PT017
        self.provider.wait_idle()

    async def _serve(self, life: Life, body: dict[str, Any], leaves_after: int | None) -> None:
        mortal: Any = MortalClient(self.database, life)
        async with new_http_client() as http:
            upstream = MortalUpstream(
                http,
                _Keys(None, "secret"),  # type: ignore[arg-type]
                {"holysheep": self.provider.openai_url},
            )
            upstream.life = life
            completions = Completions(
                catalogs=CatalogSource("", lambda: None),  # type: ignore[arg-type,return-value]
                meters=self.meters(mortal),
                upstream=upstream,
                health=Health(mortal, "HealthTable"),
                ledger=Ledger(mortal, "LedgerTable", SEOUL),
                retry=RetryPolicy(max_attempts=3, base_s=0.001),
                json_deadline_s=20,
                stream_deadline_s=20,
            )
            request_id = new_request_id(at_ms=time.time_ns() // 10**6)
            call = Call(request_id, f"Bearer {self.api_key}", json.dumps(body), 60, batch_id=self.scenario.batch_id)
            answer = await completions.create(call)
            if isinstance(answer.body, bytes):
                return
            taken = 0
            async for _ in answer.body:
                taken += 1
                if taken == leaves_after:
                    await answer.body.aclose()
                    return

    def meters(self, client: Any) -> Meters:
        budget = self.scenario.organisation_pico_usd
        return Meters(client, "MeterTable", SEOUL, organisation_budget_pico_usd=budget)

    def sweep(self, life: Life) -> None:
        """A new sweeper comes when no request of today can be alive, and may die too."""
        mortal: Any = MortalClient(self.database, life)
        sweeper = Sweeper(mortal, "MeterTable", self.meters(mortal), Ledger(mortal, "LedgerTable", SEOUL))
        now_ms = time.time_ns() // 10**6 + LEASE_LIFE_MS + 60_000
        try:
            asyncio.run(sweeper.sweep(now_ms=now_ms))
        except CrashError:
            pass

    # ── What must be true in the end ───────────────────────────────────────────────────────────────────────

    def rows(self) -> list[Row]:
        return [ledger.from_item(to_item(item)) for item in self.database.tables["LedgerTable"].values()]

    def assert_invariants(self, when: str) -> None:
        """All four, and the provider's bill."""
        rows = self.rows()
        assert len({row.request_id for row in rows}) == len(rows), when
        assert {row.batch_id for row in rows} <= {self.scenario.batch_id}, when
        for group, meters in self.groups().items():
            assert all(meter.leases() == [] for meter in meters), when
            for month in {month for meter in meters for month in meter.item["months"]}:
                spent = sum(meter.spent_pico_usd(month) for meter in meters)
                available = sum(meter.available_pico_usd(month) for meter in meters)
                budget = sum(meter.item["budget_pico_usd"] for meter in meters)
                charged = sum(row.cost_pico_usd for row in rows if _month(row) == month)
                assert (group, spent) == (group, charged), when
                assert (group, available) == (group, budget - spent), when
                assert available >= 0, when
        for bill in self.provider.stats()["billed"]:
            (row,) = [row for row in rows if row.request_id == bill["client_request_id"]]
            covered = row.cost_pico_usd + row.maybe_billed_pico_usd
            if row.usage_source == "estimated":
                # Of a stream that was cut only the order of magnitude is known, and that it was within the worst case.
                covered = worst_case_pico_usd(self.scenario.body)
            cost = bill["cost_pico_usd"]
            assert cost is not None
            assert cost <= covered, when

    def groups(self) -> dict[str, list[Meter]]:
        found: dict[str, list[Meter]] = {}
        for (meter_id,), item in self.database.tables["MeterTable"].items():
            found.setdefault(meter_id.partition("/")[0], []).append(Meter(item))
        return found


def _month(row: Row) -> str:
    return business_day(row.arrived_at_ms, SEOUL).isoformat()[:7]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_process_may_die_at_any_call(simulated: ThreadedModel, name: str) -> None:
    """Before and after each call in turn; after the sweep the four invariants hold, and the bill is covered."""
    scenario = SCENARIOS[name]
    whole = Life()
    world = World(scenario, simulated)
    world.serve(whole, leaves_after=scenario.leaves_after)
    world.sweep(Life())
    world.assert_invariants("nobody died")
    assert len(whole.calls) >= (4 if scenario.organisation_pico_usd else 3)
    outcomes = set()
    moments: list[Moment] = ["before", "after"]
    for index, call in enumerate(whole.calls):
        for moment in moments:
            world = World(scenario, simulated)
            world.serve(Life(index, moment), leaves_after=scenario.leaves_after)
            world.sweep(Life())
            world.assert_invariants(f"died {moment} call {index}, {call}")
            outcomes |= {row.outcome for row in world.rows()[scenario.before :]}
    if scenario.organisation_pico_usd:
        assert "unknown" in outcomes


@pytest.mark.parametrize("name", ["one of many", "a budget scattered over shards", "an end user with limits"])
def test_the_sweeper_may_die_at_any_call_too(simulated: ThreadedModel, name: str) -> None:
    """Of each state that a dead process can leave, the sweeper dies at each of its calls; the next one finishes."""
    scenario = SCENARIOS[name]
    whole = Life()
    World(scenario, simulated).serve(whole)
    moments: list[Moment] = ["before", "after"]
    swept = 0
    for index, call in enumerate(whole.calls):
        world = World(scenario, simulated)
        world.serve(Life(index, "after"))
        left = deepcopy(world.database.tables)
        sweeping = Life()
        world.sweep(sweeping)
        for sweep_index, sweep_call in enumerate(sweeping.calls):
            for moment in moments:
                world.database.tables = deepcopy(left)
                world.sweep(Life(sweep_index, moment))
                world.sweep(Life())
                world.assert_invariants(f"died after {call}; the sweeper {moment} {sweep_index}, {sweep_call}")
                swept += 1
    assert swept > 20


def test_two_sweepers_at_once_do_no_harm(simulated: ThreadedModel) -> None:
    """One of them stops after its n-th call; the other sweeps everything; then the first goes on."""
    world = World(SCENARIOS["one of many"], simulated)
    world.serve(Life(4, "before"))  # the provider has answered, the row is not there
    left = deepcopy(world.database.tables)
    sweeping = Life()
    world.sweep(sweeping)
    for index in range(len(sweeping.calls)):
        world.database.tables = deepcopy(left)
        interrupted = _InterruptedLife(at=index, by=lambda: world.sweep(Life()))
        world.sweep(interrupted)
        world.assert_invariants(f"the other one came before call {index}, {sweeping.calls[index]}")
        assert [row.outcome for row in world.rows()] == ["completed", "unknown"]


class _InterruptedLife(Life):
    def __init__(self, *, at: int, by: Callable[[], None]) -> None:
        super().__init__()
        self._at, self._by = at, by

    def begin(self, what: str) -> bool:
        if len(self.calls) == self._at:
            thread = threading.Thread(target=self._by)
            thread.start()
            thread.join()
        return super().begin(what)
