"""The invariants of the meters under every interleaving that hypothesis can think of.

The real `Meters`, `Ledger`, `Sweeper`, `Account` and `MeterStore` run against a model of DynamoDB; each of their calls
waits until the test lets it happen (`tests.interleaving`). So a process can be overtaken, cut off from the table, or
killed between any two calls.

NARU_LONG_TESTS=1 runs some thousand examples instead of some hundred, other ones each time.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
import pytest
from botocore.exceptions import BotoCoreError
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from naru import aws_calls, ledger, meter, meter_store, sweeper
from naru.accounting import Account, Subject
from naru.api_keys import KeyChanges
from naru.attributes import to_item
from naru.business_time import business_day
from naru.errors import NaruError, StoreUnavailableError
from naru.key_store import KeyStore
from naru.keys import hash_secret
from naru.ledger import Ledger, Row
from naru.meter import Admission, Meters
from naru.meter_state import UNLIMITED, Limits, Meter, new_item
from naru.meter_store import MeterStore
from naru.pricing import Usage
from naru.request_ids import arrived_at_ms
from naru.sweeper import LEASE_LIFE_MS, Sweeper
from tests.accounts import a_pico_dollar_a_token
from tests.dynamodb_model import DynamoDB
from tests.interleaving import Call, How, Interleaving
from tests.meters import NEVER_MS, put_organisation

LONG = bool(os.environ.get("NARU_LONG_TESTS"))
SEOUL = ZoneInfo("Asia/Seoul")
START_MS = int(datetime(2026, 10, 31, 23, 59, 30, tzinfo=SEOUL).timestamp() * 1000)
MINUTE_MS = 60_000
REQUEST_LIFE_MS = 15 * MINUTE_MS
"""Lambda's."""
SWEEPER, OPERATOR, SETTLER = -1, -2, -3
MODEL = "hyperclova-x-omni"


Ending = Literal["answered", "refused", "reset"]
"""A refused call is not billed; one that was reset is, and the gateway cannot know."""


@dataclass(eq=False)
class Request:
    """One request and what became of it."""

    number: int
    environment: int
    id: str
    now_ms: int
    key: int
    worst: int
    cost: int
    tokens: int
    end_user: str | None
    ending: Ending
    phase: Literal["admitting", "upstream", "closing", "done", "refused", "failed", "killed"] = "admitting"
    admission: Admission | None = None
    billed: int = 0
    faulted: bool = False
    """Whether a call of it did not just succeed."""

    @property
    def month(self) -> str:
        return business_day(arrived_at_ms(self.id), SEOUL).isoformat()[:7]


@dataclass
class Environment:
    """A process: it remembers meters, as they were."""

    meters: Meters


@dataclass
class Group:
    """A meter with all its shards, and the highest limits that requests of the last minute may have met."""

    id: str
    limits: Limits
    limits_until: list[tuple[int, Limits]]
    committed_cap: Counter[str] = field(default_factory=Counter)
    parallel_cap: int = 0


budgets = st.sampled_from([0, 20, 60, 200])
shards = st.sampled_from([1, 3])
key_limits = st.builds(
    Limits,
    budget_pico_usd=st.sampled_from([7, 20, 60, UNLIMITED]),
    rpm=st.sampled_from([2, 6, UNLIMITED, UNLIMITED]),
    tpm=st.sampled_from([40, 100, UNLIMITED, UNLIMITED]),
    max_parallel=st.sampled_from([1, 4, UNLIMITED, UNLIMITED]),
)
ENDINGS: list[Ending] = ["answered", "answered", "answered", "refused", "reset"]
FAULTS: list[How] = ["answer lost, sent again", "not sent", "answer lost", "died before", "died after"]
ANSWERED: list[How] = ["answered"] * 8
hows = st.sampled_from(ANSWERED + FAULTS)


class MetersMachine(RuleBasedStateMachine):
    """Keys with and without shards, an organisation, three environments, a sweeper that may die too."""

    @initialize(first=key_limits, second=key_limits, organisation=budgets, key_shards=shards, organisation_shards=shards, user=st.booleans())  # fmt: skip
    def begin(
        self,
        first: Limits,
        second: Limits,
        organisation: int,
        key_shards: int,
        organisation_shards: int,
        user: bool,
    ) -> None:
        self.db = self.begin_database()
        self.clock_ms = START_MS
        self.world = Interleaving()
        self.patch = self.world.instead_of_threads(aws_calls, meter, sweeper, meter_store)
        self.patch.__enter__()
        users = {"user_budget_pico_usd": 15, "user_rpm": 2} if user else {}
        self.secrets: list[str] = []
        self.groups: list[Group] = []
        for index, (limits, count) in enumerate(((first, 1), (second, key_shards))):
            self.put_key(f"{index:012}", limits, count, users)
        of_organisation = Limits(budget_pico_usd=organisation)
        self.groups.append(Group("organisation", of_organisation, [(0, of_organisation)]))
        self.organisation_budget = organisation
        if organisation_shards > 1:
            put_organisation(self.client, "MeterTable", budget_pico_usd=organisation, shards=organisation_shards)
        self.users: dict[str, Group] = {}
        self.operator: Any = asyncio.Future(loop=self.world.loop)
        self.operator.set_result(None)
        self.ledger = Ledger(self.client, "LedgerTable", SEOUL)
        self.environments = [Environment(self.new_meters()) for _ in range(3)]
        self.sweeping_meters = self.new_meters()
        self.requests: list[Request] = []
        self.defects: list[Exception] = []

    def put_key(self, name: str, limits: Limits, count: int, users: dict[str, int]) -> None:
        """As tests.meters does it, but not by chance: hypothesis must meet the same keys again."""
        secret = f"sk-naru-{name}-{'s' * 43}"
        for shard in range(count):
            item = new_item(
                f"key#key_{name}" + (f"/{shard}" if shard else ""),
                limits.slice(shard, count),
                secrets={hash_secret(secret): NEVER_MS},
                expires_at_ms=NEVER_MS,
                shards=count,
                user_budget_pico_usd=UNLIMITED,
                user_rpm=UNLIMITED,
                **({"name": name, "tags": {}, "created_at_ms": 0} if shard == 0 else {}),
                key_id=f"key_{name}",
            )
            self.client.put_item(TableName="MeterTable", Item=to_item(item | users))
        self.secrets.append(secret)
        self.groups.append(Group(f"key#key_{name}", limits, [(0, limits)]))

    def begin_database(self) -> DynamoDB:
        return DynamoDB(MeterTable=("meter",), LedgerTable=("day_shard", "request_id"))

    @property
    def client(self) -> Any:
        return self.db

    def new_meters(self) -> Meters:
        return Meters(
            self.client,
            "MeterTable",
            SEOUL,
            organisation_budget_pico_usd=self.organisation_budget,
            rng=random.Random(1),
        )

    # ── What a request does ────────────────────────────────────────────────────────────────────────────────

    async def serve(self, request: Request, meters: Meters) -> None:
        """The order of writes, as Completions makes them."""
        try:
            request.admission = await self.admit(request, meters)
        except StoreUnavailableError:
            request.phase = "failed"
            return
        except NaruError:
            request.phase = "refused"
            if not request.faulted and self.holds_something(request):
                self.defects.append(AssertionError("a refused request holds something"))
            return
        except Exception as defect:
            self.defects.append(defect)
            raise
        request.phase = "upstream"
        subject = Subject(request.id, request.end_user, None, stream=False, model=MODEL, catalog_version="1")
        account = Account(subject, request.admission, self.ledger, meters, started_s=0.0)
        try:
            await self.world.to_thread(self.bill, request)
        except BotoCoreError:
            request.ending = "reset"
        request.phase = "closing"
        stop = a_pico_dollar_a_token(request.worst)
        usage = None
        if request.ending == "answered":
            usage = Usage(prompt_tokens=0, completion_tokens=request.cost)
            account.answered(stop, since_s=0.0)
        else:
            account.failed(stop, request.ending, since_s=0.0, maybe_billed=request.ending == "reset")
        await account.close(stop, outcome="completed" if usage else "failed", usage=usage)
        request.phase = "done"

    def holds_something(self, request: Request) -> bool:
        return any(request.id in item["in_flight"] for item in self.db.tables["MeterTable"].values())

    async def admit(self, request: Request, meters: Meters) -> Admission:
        return await meters.admit(
            f"Bearer {self.secrets[request.key]}",
            request_id=request.id,
            now_ms=request.now_ms,
            model=MODEL,
            worst_pico_usd=request.worst,
            tokens=request.tokens,
            end_user=request.end_user,
        )

    def bill(self, request: Request) -> None:
        request.billed = 0 if request.ending == "refused" else request.cost

    # ── What happens ───────────────────────────────────────────────────────────────────────────────────────

    @rule(
        environment=st.integers(0, 2),
        key=st.integers(0, 1),
        worst=st.integers(0, 10),
        share=st.integers(0, 10),
        tokens=st.integers(0, 25),
        end_user=st.sampled_from([None, None, "phone-1", "phone-2"]),
        ending=st.sampled_from(ENDINGS),
        late_ms=st.sampled_from([0, 0, 200]),
    )
    def arrive(
        self,
        environment: int,
        key: int,
        worst: int,
        share: int,
        tokens: int,
        end_user: str | None,
        ending: Ending,
        late_ms: int,
    ) -> None:
        request = Request(
            number=len(self.requests),
            environment=environment,
            id=f"req_{self.clock_ms - late_ms:012x}{len(self.requests):020x}",
            now_ms=self.clock_ms,
            key=key,
            worst=worst,
            cost=worst * share // 10,
            tokens=tokens,
            end_user=end_user,
            ending=ending,
        )
        self.requests.append(request)
        self.world.start(request.number, self.serve(request, self.environments[environment].meters))

    @precondition(lambda self: self.world.waiting)
    @rule(index=st.integers(0, 5), how=hows)
    def one_call_happens(self, index: int, how: How) -> None:
        self.happen(self.world.waiting[index % len(self.world.waiting)], how)

    def happen(self, call: Call, how: How = "answered") -> None:
        if how != "answered" and call.process >= 0:
            self.requests[call.process].faulted = True
        if how in {"died before", "died after"} and call.process >= 0:
            environment = self.requests[call.process].environment
            self.world.happen(call, how)
            self.crash(environment)
        else:
            self.world.happen(call, how)
        # After every single call, since a promise must also be seen before the limit changes under it.
        self.every_pico_dollar_is_somewhere()
        self.no_more_than_max_parallel_at_once()

    @rule(seed=st.integers(0, 2**16), count=st.integers(1, 6), faults=st.sampled_from([0.0, 0.0, 0.1]))
    def a_crowd_arrives(self, seed: int, count: int, faults: float) -> None:
        """Several requests at once on all environments, and many calls in any order."""
        rng = random.Random(seed)
        for _ in range(count):
            self.arrive(
                environment=rng.randrange(3),
                key=rng.randrange(2),
                worst=rng.randint(0, 10),
                share=rng.randint(0, 10),
                tokens=rng.randint(0, 25),
                end_user=rng.choice([None, "phone-1"]),
                ending=rng.choice(ENDINGS),
                late_ms=rng.choice([0, 200]),
            )
        for _ in range(rng.randrange(12 * count)):
            if self.world.waiting:
                call = rng.choice(self.world.waiting)
                self.happen(call, rng.choice(FAULTS) if rng.random() < faults else "answered")

    @rule(environment=st.integers(0, 2))
    def crash(self, environment: int) -> None:
        for request in self.requests:
            if request.environment == environment and request.phase in {"admitting", "upstream", "closing"}:
                self.world.kill(request.number)
                request.phase = "killed"
        self.environments[environment] = Environment(self.new_meters())

    @rule(dies=st.sampled_from([False, False, True]))
    def sweep(self, dies: bool) -> None:
        """Another sweep begins; the ones before it may be on their way still."""
        if dies:
            self.world.kill(SWEEPER)
            self.sweeping_meters = self.new_meters()
        sweeping = Sweeper(self.client, "MeterTable", self.sweeping_meters, self.ledger)
        self.world.start(SWEEPER, sweeping.sweep(now_ms=self.clock_ms))

    @rule(step_ms=st.sampled_from([1000, 9999, 50_001, 59_999, LEASE_LIFE_MS + 1, "day", "month", "month"]), before_ms=st.sampled_from([100, 30_000]))  # fmt: skip
    def time_passes(self, step_ms: int | str, before_ms: int) -> None:
        """So many milliseconds, or until shortly before midnight or the end of the month."""
        if isinstance(step_ms, int):
            self.advance(self.clock_ms + step_ms)
            return
        now = datetime.fromtimestamp(self.clock_ms / 1000, SEOUL)
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        if step_ms == "month":
            midnight = (midnight.replace(day=1) + timedelta(days=31)).replace(day=1)
        self.advance(max(self.clock_ms, int(midnight.timestamp() * 1000) - before_ms))

    def advance(self, to_ms: int) -> None:
        """No admission and no change takes that long, and Lambda ends a request after 15 minutes."""
        while admitting := [c for c in self.world.waiting if c.process >= 0 and self.requests[c.process].phase == "admitting"]:  # fmt: skip
            self.happen(admitting[0])
        self.finish_operator()
        self.clock_ms = to_ms
        for request in self.requests:
            if request.phase in {"upstream", "closing"} and request.now_ms <= to_ms - REQUEST_LIFE_MS:
                self.world.kill(request.number)
                request.phase = "killed"

    @rule(
        group=st.integers(0, 2),
        limits=key_limits,
        what=st.sampled_from(["budget_pico_usd", "rpm", "tpm", "max_parallel", "users", "shards"]),
        at_once=st.booleans(),
    )
    def the_operator_changes_a_limit(self, group: int, limits: Limits, what: str, at_once: bool) -> None:
        """One thing at a time; requests come in between its reads and its writes, unless it is done at once."""
        if not self.operator.done():
            return
        changed = self.groups[group]
        given: dict[str, Any] = {what: getattr(limits, what)} if hasattr(limits, what) else {}
        store = KeyStore(
            MeterStore(self.client, "MeterTable", rng=random.Random(1)),
            SEOUL,
            organisation_budget_pico_usd=self.organisation_budget,
        )
        if changed.id == "organisation":
            if what not in {"budget_pico_usd", "shards"}:
                return
            given = given or {"shards": 3}
            change: Any = store.update_organisation(**given, now_ms=self.clock_ms)
        else:
            if what == "users":
                given = {"user_budget_pico_usd": limits.budget_pico_usd, "user_rpm": limits.rpm}
            change = store.update(changed.id.removeprefix("key#"), KeyChanges(**given), now_ms=self.clock_ms)
        # Until it is done, either may be in force.
        changed.limits_until.append(
            (0, KeyChanges(**given).limits(changed.limits) if what != "shards" else changed.limits)
        )
        self.operator = self.world.start(OPERATOR, self.operate(change, changed))
        if at_once:
            self.finish_operator()

    async def operate(self, change: Any, changed: Group) -> None:
        try:
            await change
        except StoreUnavailableError:
            return  # done or not; the limits that may be in force stay in the list
        changed.limits = changed.limits_until[-1][1]
        changed.limits_until = [
            *((until_ms or self.clock_ms, limits) for until_ms, limits in changed.limits_until[:-1]),
            changed.limits_until[-1],
        ]

    def finish_operator(self) -> None:
        while calls := [call for call in self.world.waiting if call.process == OPERATOR]:
            self.happen(calls[0])

    @precondition(lambda self: any(request.phase == "done" for request in self.requests))
    @rule(index=st.integers(0, 5), environment=st.integers(0, 2))
    def a_request_is_settled_again(self, index: int, environment: int) -> None:
        done = [request for request in self.requests if request.phase == "done"]
        request = done[index % len(done)]
        cost = self.rows()[request.id].cost_pico_usd if request.id in self.rows() else None
        if cost is None or request.admission is None:
            return
        settling = self.environments[environment].meters.settle(request.admission, cost_pico_usd=cost, tokens=0)
        self.world.start(SETTLER, settling)

    @precondition(lambda self: any(request.phase == "upstream" for request in self.requests))
    @rule(index=st.integers(0, 5), environment=st.integers(0, 2))
    def a_request_is_admitted_again(self, index: int, environment: int) -> None:
        """While it runs, and its meters are the same. Where a meter has shards, an id is admitted once: nobody but its own
        process knows where.
        """
        running = [request for request in self.requests if request.phase == "upstream"]
        request = running[index % len(running)]
        if request.end_user or any(len(self.shards_of(self.groups[index])) > 1 for index in (request.key, 2)):
            return
        before = {table: dict(items) for table, items in self.db.tables.items()}
        others, self.world.waiting = self.world.waiting, []
        again = self.world.finish(
            self.world.start(OPERATOR, self.admit(request, self.environments[environment].meters))
        )
        self.world.waiting += others
        assert again.leases == request.admission.leases  # type: ignore[union-attr]
        assert self.db.tables == before

    # ── What is always true ────────────────────────────────────────────────────────────────────────────────

    def shards_of(self, group: Group) -> list[Meter]:
        items = self.db.tables["MeterTable"]
        if (group.id,) not in items:
            return []
        first = Meter(items[group.id,])
        return [first, *(Meter(items[f"{group.id}/{shard}",]) for shard in range(1, first.shards))]

    def all_groups(self) -> Iterator[tuple[Group, list[Meter]]]:
        for group in self.groups:
            if meters := self.shards_of(group):
                yield group, meters
        for (meter_id,), item in self.db.tables["MeterTable"].items():
            if meter_id.startswith("user#"):
                seen = Meter(item)
                yield self.users.setdefault(meter_id, Group(meter_id, seen.limits, [(0, seen.limits)])), [seen]

    def rows(self) -> dict[str, Row]:
        return {request_id: ledger.from_item(to_item(item)) for (_, request_id), item in self.db.tables["LedgerTable"].items()}  # fmt: skip

    def months(self) -> list[str]:
        """This one and the last; older ones may be forgotten."""
        today = business_day(self.clock_ms, SEOUL)
        return [(today.replace(day=1) - timedelta(days=1)).isoformat()[:7], today.isoformat()[:7]]

    @invariant()
    def what_is_always_true(self) -> None:
        assert not self.defects
        self.every_pico_dollar_is_somewhere()
        self.every_request_of_the_minute_is_counted()
        self.no_minute_holds_more_than_its_limit()
        self.compare_rows(finished=False)

    def every_pico_dollar_is_somewhere(self) -> None:
        """available + spent + set aside = budget, whatever happened; and nothing beyond the budget is promised."""
        for group, meters in self.all_groups():
            budget = sum(each.limits.budget_pico_usd for each in meters)
            for month in self.months():
                available = sum(each.available_pico_usd(month) for each in meters)
                spent = sum(each.spent_pico_usd(month) for each in meters)
                leased = sum(lease.worst_pico_usd for each in meters for lease in each.leases() if lease.month == month)
                assert available + spent + leased == budget, (group.id, month)
                committed = spent + leased
                cap = max(budget, group.committed_cap[month])
                assert committed <= cap, (group.id, month)
                # After a budget was lowered, what had been promised before may end, and no more is promised.
                group.committed_cap[month] = committed if len(meters) == 1 or committed <= budget else cap

    def every_request_of_the_minute_is_counted(self) -> None:
        for group, meters in self.all_groups():
            for each in meters:
                if not each.is_rate_limited:
                    continue
                for name, limit in (("requests", each.item["rpm"]), ("tokens", each.item["tpm"])):
                    counted = each.item[f"slot_{name}"] + sum(past[name] for past in each.item["history"])
                    assert each.item[f"{name}_left"] + counted == limit, (group.id, name)

    def no_minute_holds_more_than_its_limit(self) -> None:
        """Any 60 s; where a limit was changed, the highest that was in force in them."""
        for index, group in enumerate(self.groups[:2]):
            in_flight = {lease.request_id for each in self.shards_of(group) for lease in each.leases()}
            admitted = [r for r in self.requests if r.key == index and r.admission and r.now_ms > self.clock_ms - 2 * MINUTE_MS]  # fmt: skip
            for first in admitted:
                window = [r for r in admitted if first.now_ms <= r.now_ms < first.now_ms + MINUTE_MS]
                limits = [limits for until_ms, limits in group.limits_until if not until_ms or until_ms >= first.now_ms]
                assert len(window) <= max(each.rpm for each in limits)
                if all(r.cost <= r.tokens for r in window):
                    used = sum(r.cost if r.phase == "done" and r.ending == "answered" and r.id not in in_flight else r.tokens for r in window if r.phase != "closing" or r.id in in_flight)  # fmt: skip
                    assert used <= max(each.tpm for each in limits)

    def no_more_than_max_parallel_at_once(self) -> None:
        for group, meters in self.all_groups():
            in_flight = sum(len(each.leases()) for each in meters)
            limit = sum(each.limits.max_parallel for each in meters)
            highest = max([limit, *(limits.max_parallel for _, limits in group.limits_until)])
            assert in_flight <= (max(limit, group.parallel_cap) if len(meters) == 1 else highest), group.id
            group.parallel_cap = in_flight

    def compare_rows(self, *, finished: bool) -> None:
        rows = self.rows()
        for group, meters in self.all_groups():
            for month in self.months():
                of_meter = [
                    row.cost_pico_usd
                    for row in rows.values()
                    if business_day(row.arrived_at_ms, SEOUL).isoformat()[:7] == month
                    and group.id in {"organisation", f"key#{row.key_id}"}
                ]
                spent = sum(each.spent_pico_usd(month) for each in meters)
                if not group.id.startswith("user#"):
                    assert spent == sum(of_meter) if finished else spent <= sum(of_meter), (group.id, month)

    def teardown(self) -> None:
        """In the end: everybody finishes or dies, the leases expire, the sweeper comes, and every account agrees."""
        if not hasattr(self, "db"):
            return
        try:
            self.world.drain()
            self.advance(self.clock_ms + LEASE_LIFE_MS + 1)
            sweeping = Sweeper(self.client, "MeterTable", self.new_meters(), self.ledger)
            self.world.finish(self.world.start(SWEEPER, sweeping.sweep(now_ms=self.clock_ms)))
            for group, meters in self.all_groups():
                assert all(each.leases() == [] for each in meters), group.id
            self.every_pico_dollar_is_somewhere()
            self.every_request_of_the_minute_is_counted()
            self.compare_rows(finished=True)
            rows = self.rows()
            assert len(rows) == len(self.db.tables["LedgerTable"])
            for request in self.requests:
                row = rows.get(request.id)
                if request.billed:
                    assert row is not None
                    assert request.billed <= row.cost_pico_usd + row.maybe_billed_pico_usd
                if row is not None and row.outcome == "completed":
                    assert row.cost_pico_usd == request.billed
                if row is not None and row.outcome == "unknown":
                    assert request.billed <= row.cost_pico_usd
        finally:
            self.patch.__exit__(None, None, None)
            self.world.close()


TestMeters = pytest.mark.slow(MetersMachine.TestCase)
TestMeters.settings = settings(
    max_examples=5000 if LONG else 100,
    stateful_step_count=30,
    derandomize=not LONG,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
