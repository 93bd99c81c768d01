"""The world of the scale simulation: execution environments that run the product's own use case, and providers.

Each environment has what functions/chat builds (`Completions`, `Meters`, `Health`, `Ledger`, `Attempts`, `Route`,
`RetryPolicy`), unchanged. Simulated are the time, DynamoDB (:mod:`benchmarks.scale_tables`), the HTTP call to the
provider, and Lambda's rule that an environment serves one request at a time.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from zoneinfo import ZoneInfo

import naru.accounting
import naru.attempts
import naru.completions
import naru.health_store
import naru.ledger
import naru.meter
import naru.metrics
import naru.routing
from benchmarks.scale_clock import SimulatedLoop, clock_of
from benchmarks.scale_tables import Item, Tables, Traffic, as_it_is, seen
from benchmarks.storm_provider import catalog as catalog_text
from naru.catalog import Deployment, parse
from naru.completions import Call, Completions
from naru.errors import NaruError
from naru.failures import fault_failure, transport_failure
from naru.faults import ProviderFault
from naru.health import Health
from naru.keys import hash_secret, new_key_id, new_secret
from naru.ledger import Ledger
from naru.meter import ORGANISATION, Meters
from naru.meter_changes import shard_id
from naru.meter_state import UNLIMITED, Limits, Meter, new_item
from naru.retry import RetryPolicy
from naru.wire import compact_json
from tests.meters import NEVER_MS

SEOUL = ZoneInfo("Asia/Seoul")
PRIMARY, FALLBACK = "m", "n"
_LAMBDA_S = 895.0
_JSON_DEADLINE_S, _STREAM_DEADLINE_S = 240.0, 840.0
_PROMPT = "서울의 가을을 소개해 주세요."
_BODY = compact_json({"model": PRIMARY, "messages": [{"role": "user", "content": _PROMPT}], "max_tokens": 300})
_PROMPT_TOKENS = 15
_ENVIRONMENTS_PER_KEY = 30


@dataclass(frozen=True, slots=True)
class Setup:
    """What a simulation is about. Times are in seconds."""

    environments: int
    shards: int = 1
    """Of the organisation's meter."""
    budget_pico_usd: int = UNLIMITED
    capacity: int | None = None
    """Calls that the primary takes at once; None for any number."""
    is_out: bool = False
    """Whether every provider answers 503."""
    has_fallback: bool = False
    requests_each: int | None = None
    """After which an environment stops; None for no end."""
    is_warm: bool = True
    """Whether each environment has served before, and remembers what the organisation's meter looked like."""
    ramp_s: float = 4.0
    """In which the first requests come, evenly; 0 for one instant."""
    pause_s: float = 1.0
    """Mean time between the end of a request and the next one in an environment."""
    settle_s: float = 0.0
    """What happens before that is not counted."""
    seconds: float = 10.0
    answer_s: float = 3.0
    """Median of the provider's answers, with a long tail (log-normal, sigma 0.35)."""
    refusal_s: float = 0.05
    """Median of its errors."""
    gateway_s: float = 0.015
    """What the gateway's own code computes per request."""
    seed: int = 1


@dataclass(slots=True)
class Provider:
    """Takes so many calls at once and refuses the rest with 429, without a time to come back; or is out."""

    loop: SimulatedLoop
    rng: random.Random
    setup: Setup
    capacity: int | None
    in_flight: int = 0
    calls: int = 0
    refused: int = 0
    answered: int = 0
    busy_s: float = 0.0
    billed_pico_usd: int = 0

    async def answer(self, deployment: Deployment) -> dict[str, Any]:
        self.calls += 1
        if self.setup.is_out or (self.capacity is not None and self.in_flight >= self.capacity):
            self.refused += 1
            await asyncio.sleep(self.rng.lognormvariate(0.0, 0.35) * self.setup.refusal_s)
            if self.setup.is_out:
                raise fault_failure(deployment, ProviderFault("overloaded", "simulated", 503, "no"))
            raise fault_failure(deployment, ProviderFault("rate_limited", "simulated", 429, "no"))
        self.in_flight += 1
        try:
            latency_s = self.rng.lognormvariate(0.0, 0.35) * self.setup.answer_s
            await asyncio.sleep(latency_s)
        finally:
            self.in_flight -= 1
        self.answered += 1
        self.busy_s += latency_s
        tokens = self.rng.randint(60, 300)
        self.billed_pico_usd += (
            _PROMPT_TOKENS * deployment.rates.input_pico_usd + tokens * deployment.rates.output_pico_usd
        )
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "…"}, "finish_reason": "stop"}],
            "usage": {
                "prompt_tokens": _PROMPT_TOKENS,
                "completion_tokens": tokens,
                "total_tokens": _PROMPT_TOKENS + tokens,
            },
        }


@dataclass
class Upstream:
    """Stands where :class:`naru.upstream.Upstream` does."""

    providers: Mapping[str, Provider]

    async def answer(
        self, deployment: Deployment, body: Mapping[str, Any], *, request_id: str, deadline_s: float
    ) -> dict[str, Any]:
        del body, request_id
        try:
            async with asyncio.timeout(deadline_s):
                return await self.providers[deployment.name].answer(deployment)
        except TimeoutError as error:
            raise transport_failure(deployment, error) from error


class Overshoot:
    """Watches that spent and leased together stay within the budget, from every single write to the organisation."""

    def __init__(self, tables: Tables, budget_pico_usd: int) -> None:
        self._tables = tables
        self._budget_pico_usd = budget_pico_usd
        self._committed: dict[str, int] = {}
        self._sum = 0
        self.most_pico_usd = 0
        self.on_full: Callable[[], None] | None = None
        """Called once, when the budget is all but used up."""
        self.rows_pico_usd = 0
        self.rows = 0

    def __call__(self, key: str, after: Item) -> None:
        if key == "row":
            self.rows += 1
            self.rows_pico_usd += int(after["cost_pico_usd"]["N"])
        elif key.startswith(ORGANISATION):
            spent = sum(month["spent_pico_usd"] for month in after["months"].values())
            committed = spent + self._tables.leased_pico_usd["MeterTable", key]
            self._sum += committed - self._committed.get(key, 0)
            self._committed[key] = committed
            self.most_pico_usd = max(self.most_pico_usd, self._sum)
            if self.on_full is not None and 100 * self._sum >= 99 * self._budget_pico_usd:
                self.on_full()
                self.on_full = None

    @property
    def pico_usd(self) -> int:
        """0 if all is well."""
        return max(0, self.most_pico_usd - self._budget_pico_usd)


@dataclass
class World:
    """Everything, and what the clients saw."""

    setup: Setup
    loop: SimulatedLoop
    tables: Tables
    overshoot: Overshoot
    providers: dict[str, Provider]
    outcomes: Counter[str] = field(default_factory=Counter)
    """How requests ended, from ``settle_s`` on: ``answered``, or the code of the error."""
    latencies_s: list[float] = field(default_factory=list)
    offered: int = 0
    at: list[tuple[float, int]] = field(default_factory=list)
    """Answers in each second of the whole run."""
    budget_refused_s: float | None = None
    """When the first request was refused for the budget."""
    traffic: dict[tuple[str, str], Traffic] = field(default_factory=dict)
    """Between ``settle_s`` and the end of the budget, or of the run."""
    traffic_s: float = 0.0

    def organisation(self) -> list[str]:
        return [shard_id(ORGANISATION, shard) for shard in range(self.setup.shards)]


def simulate(setup: Setup) -> World:
    """Runs a world for so many seconds of its own time. The same setup gives the same world."""
    loop = SimulatedLoop()
    rng = random.Random(setup.seed)
    tables = Tables(loop, random.Random(setup.seed + 1))
    loop.service = tables
    tables.watch = overshoot = Overshoot(tables, setup.budget_pico_usd)
    providers = {
        PRIMARY: Provider(loop, random.Random(setup.seed + 2), setup, setup.capacity),
        FALLBACK: Provider(loop, random.Random(setup.seed + 3), setup, None),
    }
    world = World(setup, loop, tables, overshoot, providers)
    overshoot.on_full = lambda: _keep_traffic(world)
    secrets = _seed_tables(tables, setup)
    parsed = parse(catalog_text("https://m.example", "https://n.example" if setup.has_fallback else None), source="")

    async def current() -> Any:
        return parsed

    remembered = {meter_id: Meter(seen(tables.items["MeterTable", meter_id])) for meter_id in world.organisation()}

    upstream: Any = Upstream(providers)
    client: Any = tables
    catalogs: Any = SimpleNamespace(current=current)
    ids = itertools.count()

    def environment() -> Completions:
        own = random.Random(rng.random())
        meters = Meters(client, "MeterTable", SEOUL, organisation_budget_pico_usd=setup.budget_pico_usd, rng=own)
        if setup.is_warm:
            meters._seen.update(remembered)  # noqa: SLF001 - what earlier requests would have left there
        return Completions(
            catalogs=catalogs,
            meters=meters,
            upstream=upstream,
            health=Health(client, "HealthTable", clock=loop.now_ms, rng=own),
            ledger=Ledger(client, "LedgerTable", SEOUL),
            retry=RetryPolicy(),
            json_deadline_s=_JSON_DEADLINE_S,
            stream_deadline_s=_STREAM_DEADLINE_S,
            rng=own,
        )

    async def serve(number: int) -> None:
        own = random.Random(rng.random())
        completions, authorization = environment(), f"Bearer {secrets[number // _ENVIRONMENTS_PER_KEY]}"
        await asyncio.sleep(setup.ramp_s * number / setup.environments)
        for _ in itertools.count() if setup.requests_each is None else range(setup.requests_each):
            request_id = f"req_{loop.now_ms():012x}{next(ids):020x}"
            began_s = loop.time()
            outcome = await _request(completions, Call(request_id, authorization, _BODY, _LAMBDA_S), setup)
            _note(world, outcome, began_s)
            if outcome == "insufficient_quota":
                return  # x-should-retry: false
            await asyncio.sleep(own.expovariate(1 / setup.pause_s))

    async def begin_to_count() -> None:
        await asyncio.sleep(setup.settle_s)
        tables.traffic.clear()

    async def all_of_them() -> None:
        counting = asyncio.ensure_future(begin_to_count())
        serving = [asyncio.ensure_future(serve(number)) for number in range(setup.environments)]
        done, _ = await asyncio.wait(serving, timeout=setup.seconds)
        for task in (*done, *([counting] if counting.done() else ())):
            task.result()
        if overshoot.on_full is not None:
            _keep_traffic(world)

    with simulated(loop):
        loop.run(all_of_them())
    return world


async def _request(completions: Completions, call: Call, setup: Setup) -> str:
    await asyncio.sleep(setup.gateway_s)
    try:
        await completions.create(call)
    except NaruError as error:
        return error.code or type(error).__name__
    return "answered"


def _keep_traffic(world: World) -> None:
    world.traffic = {key: replace(traffic) for key, traffic in world.tables.traffic.items()}
    world.traffic_s = world.loop.time() - world.setup.settle_s


def _note(world: World, outcome: str, began_s: float) -> None:
    now_s = world.loop.time()
    if outcome == "insufficient_quota" and world.budget_refused_s is None:
        world.budget_refused_s = now_s
    if outcome == "answered":
        world.at.append((now_s, 1))
    if now_s < world.setup.settle_s:
        return
    world.offered += 1
    world.outcomes[outcome] += 1
    if outcome == "answered":
        world.latencies_s.append(now_s - began_s)


def _seed_tables(tables: Tables, setup: Setup) -> list[str]:
    """The organisation's meter and as many keys as are needed; the secrets of the keys."""
    whole = Limits(budget_pico_usd=setup.budget_pico_usd)
    month = "2026-11"
    for shard in range(setup.shards):
        part = whole.slice(shard, setup.shards)
        item = new_item(shard_id(ORGANISATION, shard), part, shards=setup.shards)
        item["months"] = {month: {"available_pico_usd": part.budget_pico_usd, "spent_pico_usd": 0}}
        tables.seed("MeterTable", item)
    secrets = []
    for _ in range(-(-setup.environments // _ENVIRONMENTS_PER_KEY)):
        key_id = new_key_id()
        secrets.append(new_secret(key_id))
        hashes = {hash_secret(secrets[-1]): NEVER_MS}
        more = {"key_id": key_id, "secrets": hashes, "expires_at_ms": NEVER_MS, "shards": 1, "name": "mobile app"}
        item = new_item(f"key#{key_id}", Limits(), **more)
        item["months"] = {month: {"available_pico_usd": UNLIMITED, "spent_pico_usd": 0}}
        tables.seed("MeterTable", item)
    return secrets


@contextmanager
def simulated(loop: SimulatedLoop) -> Iterator[None]:
    """The product on the loop's time, on tables of Python values, and without a log."""
    disabled, thresholds = logging.root.manager.disable, gc.get_threshold()
    logging.disable(logging.CRITICAL)
    gc.set_threshold(200_000, 50, 50)
    with ExitStack() as stack:
        stack.enter_context(clock_of(loop, naru.completions, naru.attempts, naru.routing, naru.accounting))
        for module in (naru.meter, naru.health_store):
            stack.enter_context(patch.object(module, "to_item", as_it_is))
            stack.enter_context(patch.object(module, "from_item", seen))
        stack.enter_context(patch.object(naru.metrics, "count", lambda _row: None))
        stack.enter_context(patch.object(naru.ledger, "facts", lambda _row: {}))
        yield
    logging.disable(disabled)
    gc.set_threshold(*thresholds)
