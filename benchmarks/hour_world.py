"""One hour of people, two batches and a provider with moods, in computed time.

People and batch workers run the product's own use case (`Completions`, `Health`, `PacedHealth`, `Meters`, `Ledger`), each
in an environment of its own, as :mod:`benchmarks.scale_world` does it. A batch worker asks for its share and gives up after
four seconds without one, as :mod:`naru.batch_pool` does. The provider does what its timetable says.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import httpx

from benchmarks.scale_clock import SimulatedLoop
from benchmarks.scale_tables import Tables
from benchmarks.scale_world import SEOUL, simulated
from benchmarks.storm_provider import catalog as catalog_text
from naru.batch_pace import PacedHealth
from naru.catalog import Deployment, parse
from naru.completions import Call, Completions
from naru.errors import NaruError
from naru.failures import fault_failure, transport_failure
from naru.faults import ProviderFault
from naru.health import Health
from naru.keys import Proven, hash_secret, new_key_id, new_secret
from naru.ledger import Ledger
from naru.meter import Meters
from naru.meter_state import UNLIMITED, Limits, new_item
from naru.request_ids import new_request_id
from naru.retry import RetryPolicy
from naru.wire import compact_json
from tests.meters import NEVER_MS

MODEL = "m"
_JSON_DEADLINE_S, _LAMBDA_S = 240.0, 895.0
_SIGMA = 0.25
_REFUSED_S, _FAILED_S, _UNREACHABLE_S = 0.05, 0.2, 1.0
_GIVE_UP_S, _COME_BACK_S = 4.0, 20.0
_ODD = "odd"
"""In a prompt that the provider answers with 500, whatever else it does."""

Mood = Literal["well", "fails", "unreachable"]


@dataclass(frozen=True, slots=True)
class Phase:
    """From ``from_s`` on the provider takes so many calls at once and answers in ``answer_s``, or is in this mood."""

    from_s: float
    name: str
    takes: int = 12
    answer_s: float = 12.0
    mood: Mood = "well"

    @property
    def is_well(self) -> bool:
        return self.mood == "well" and self.takes > 0


HOUR = (
    Phase(0, "takes all", takes=10_000),
    Phase(600, "takes 12"),
    Phase(1200, "refuses all", takes=0),
    Phase(1260, "takes 12"),
    Phase(1800, "fails", mood="fails"),
    Phase(1860, "is slow", answer_s=34.0),
    Phase(2160, "takes 12"),
    Phase(2400, "unreachable", mood="unreachable"),
    Phase(2460, "takes 12"),
    Phase(3000, "takes 4", takes=4),
)


@dataclass(frozen=True, slots=True)
class Setup:
    """``people_s`` is the mean time between two people, ``odd_s`` between two requests that the provider fails at, from a
    key of their own, in the times of ``odd``.
    """

    timetable: Sequence[Phase] = HOUR
    seconds: float = 3600.0
    people_s: float = 5.0
    odd_s: float = 0.7
    odd: tuple[float, float] = (2700.0, 2760.0)
    workers: int = 2
    lines_at_once: int = 16
    """Of each worker."""
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Visit:
    """A request of a person: ``waited_s`` is the time in which no provider worked on it."""

    at_s: float
    waited_s: float
    outcome: str
    odd: bool = False


@dataclass(slots=True)
class Sample:
    """What was true at a moment."""

    at_s: float
    in_flight: int
    limit: int
    is_open: bool
    answered: int
    refused: int


@dataclass
class Hour:
    """What came of it."""

    setup: Setup
    visits: list[Visit] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    busy_s: float = 0.0
    """Slot-seconds in which the provider worked."""
    refused_s: list[float] = field(default_factory=list)
    failed_s: list[float] = field(default_factory=list)
    answered_s: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    """By prompt."""
    lines: int = 0
    """Of the batches, that are done."""
    loop: SimulatedLoop = field(default_factory=SimulatedLoop)

    def phase(self, at_s: float) -> Phase:
        return next(phase for phase in reversed(self.setup.timetable) if phase.from_s <= at_s)

    def until_s(self, phase: Phase) -> float:
        later = [other.from_s for other in self.setup.timetable if other.from_s > phase.from_s]
        return min([*later, self.setup.seconds])

    def possible_s(self, phase: Phase) -> float:
        """Slot-seconds that the provider had and all who wanted some could have used."""
        wanted = self.setup.workers * self.setup.lines_at_once
        return (self.until_s(phase) - phase.from_s) * min(phase.takes, wanted) if phase.is_well else 0.0


class Provider:
    """Stands where :class:`naru.upstream.Upstream` does."""

    def __init__(self, hour: Hour, rng: random.Random) -> None:
        self._hour = hour
        self._rng = rng
        self.in_flight = 0
        self.worked_s: dict[str, float] = {}
        """On which request for how long."""

    async def answer(
        self, deployment: Deployment, body: Mapping[str, Any], *, request_id: str, deadline_s: float
    ) -> dict[str, Any]:
        hour, prompt = self._hour, body["messages"][-1]["content"]
        phase = hour.phase(hour.loop.time())
        if phase.mood == "unreachable":
            await asyncio.sleep(_UNREACHABLE_S)
            hour.failed_s.append(hour.loop.time())
            raise transport_failure(deployment, httpx.ConnectError("nobody is there"))
        if phase.mood == "fails" or _ODD in prompt:
            await asyncio.sleep(_FAILED_S)
            hour.failed_s.append(hour.loop.time())
            raise fault_failure(deployment, ProviderFault("server", "status-500", 500, "no"))
        if self.in_flight >= phase.takes:
            await asyncio.sleep(_REFUSED_S)
            hour.refused_s.append(hour.loop.time())
            raise fault_failure(deployment, ProviderFault("rate_limited", "status-429", 429, "no"))
        began_s = hour.loop.time()
        self.in_flight += 1
        try:
            async with asyncio.timeout(deadline_s):
                await asyncio.sleep(phase.answer_s * self._rng.lognormvariate(0.0, _SIGMA))
        except TimeoutError as error:
            raise transport_failure(deployment, error) from error
        finally:
            self.in_flight -= 1
            self.worked_s[request_id] = self.worked_s.get(request_id, 0.0) + hour.loop.time() - began_s
            hour.busy_s += hour.loop.time() - began_s
        hour.answered_s.append(hour.loop.time())
        hour.answers[prompt] += 1
        message = {"role": "assistant", "content": "…"}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": MODEL,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30},
        }


@dataclass(slots=True)
class _Environment:
    completions: Completions
    health: Health


class _World:
    """Everybody who calls."""

    def __init__(self, hour: Hour) -> None:
        self.hour, self.loop = hour, hour.loop
        self.rng = random.Random(hour.setup.seed)
        self.tables = Tables(self.loop, random.Random(self.rng.random()))
        self.loop.service = self.tables
        self.provider = Provider(hour, random.Random(self.rng.random()))
        self.idle: list[_Environment] = []
        self.numbers = itertools.count()
        parsed = parse(catalog_text("https://m.example"), source="")

        async def current() -> Any:
            return parsed

        self.catalogs: Any = SimpleNamespace(current=current)
        organisation = new_item("organisation", Limits())
        organisation["months"] = {"2026-11": {"available_pico_usd": UNLIMITED, "spent_pico_usd": 0}}
        self.tables.seed("MeterTable", organisation)
        self.keys = [self._new_key() for _ in range(4)]

    def _new_key(self) -> str:
        key_id = new_key_id()
        more = {
            "key_id": key_id,
            "secrets": {hash_secret(new_secret(key_id)): NEVER_MS},
            "expires_at_ms": NEVER_MS,
            "shards": 1,
            "name": "app",
        }
        item = new_item(f"key#{key_id}", Limits(), **more)
        item["months"] = {"2026-11": {"available_pico_usd": UNLIMITED, "spent_pico_usd": 0}}
        self.tables.seed("MeterTable", item)
        return key_id

    def environment(self, kind: type[Health] = Health) -> _Environment:
        client: Any = self.tables
        upstream: Any = self.provider
        own = random.Random(self.rng.random())
        health = kind(client, "HealthTable", clock=self.loop.now_ms, rng=own)
        completions = Completions(
            catalogs=self.catalogs,
            meters=Meters(client, "MeterTable", SEOUL, organisation_budget_pico_usd=UNLIMITED, rng=own),
            upstream=upstream,
            health=health,
            ledger=Ledger(client, "LedgerTable", SEOUL),
            retry=RetryPolicy(),
            json_deadline_s=_JSON_DEADLINE_S,
            stream_deadline_s=_JSON_DEADLINE_S,
            rng=own,
        )
        return _Environment(completions, health)

    def call(self, key_id: str, prompt: str, *, batch_id: str | None = None) -> Call:
        body = compact_json({"model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": 300})
        return Call(new_request_id(at_ms=self.loop.now_ms()), Proven(key_id), body, _LAMBDA_S, batch_id=batch_id)

    # ── People ─────────────────────────────────────────────────────────────────────────────────────────────

    async def people(self, keys: Sequence[str], every_s: float, *, from_s: float, until_s: float, odd: bool) -> None:
        await asyncio.sleep(from_s)
        while self.loop.time() < until_s:
            self.loop.create_task(self._visit(self.rng.choice(keys), odd=odd))
            await asyncio.sleep(self.rng.expovariate(1 / every_s))

    async def _visit(self, key_id: str, *, odd: bool) -> None:
        environment = self.idle.pop() if self.idle else self.environment()
        at_s = self.loop.time()
        call = self.call(key_id, f"{_ODD if odd else 'person'} {next(self.numbers)}")
        outcome = "answered"
        try:
            await environment.completions.create(call)
        except NaruError as error:
            outcome = error.code or type(error).__name__
        self.idle.append(environment)
        worked_s = self.provider.worked_s.get(call.request_id, 0.0)
        self.hour.visits.append(Visit(at_s, self.loop.time() - at_s - worked_s, outcome, odd))

    # ── Batches ────────────────────────────────────────────────────────────────────────────────────────────

    async def worker(self, number: int) -> None:
        """A batch of its own, which does not end."""
        await asyncio.sleep(30.0 * (1 + number))
        while True:
            await self._work(self.environment(PacedHealth), f"w{number}", self.keys[number])
            await asyncio.sleep(_COME_BACK_S)

    async def _work(self, environment: _Environment, name: str, key_id: str) -> None:
        health, wanted = environment.health, self.hour.setup.lines_at_once
        lines: set[asyncio.Task[None]] = set()
        without_s = 0.0
        while without_s <= _GIVE_UP_S:
            share = await health.hold(MODEL, holder=name, wanted=wanted)
            pause_s = max(0.1, share.retry_after_s)
            without_s = 0.0 if lines or share.slots else without_s + pause_s
            due_s = self.loop.time() + pause_s
            while (left_s := due_s - self.loop.time()) > 1e-6 and not health.must_ask(MODEL):
                while len(lines) < share.slots:
                    line = self.loop.create_task(self._line(environment, key_id, f"{name}, line {next(self.numbers)}"))
                    lines.add(line)
                    line.add_done_callback(lines.discard)
                if not lines:
                    await asyncio.sleep(left_s)
                else:
                    await asyncio.wait(lines, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        await health.let_go(MODEL, holder=name)

    async def _line(self, environment: _Environment, key_id: str, prompt: str) -> None:
        """Until it is answered, as :mod:`naru.batch_lines` tries again."""
        for tries in itertools.count():
            try:
                await environment.completions.create(self.call(key_id, prompt, batch_id="batch_1"))
            except NaruError as error:
                wait_s = self.rng.uniform(0.5, 1) * min(60.0, 2.0**tries)
                await asyncio.sleep(max(wait_s, error.retry_after_s or 0.0))
            else:
                self.hour.lines += 1
                return

    # ── Watching ───────────────────────────────────────────────────────────────────────────────────────────

    async def watch(self) -> None:
        while True:
            item = self.tables.items.get(("HealthTable", MODEL), {})
            above = self.tables.items.get(("HealthTable", f"provider#{MODEL}"), {})
            now_ms = self.loop.now_ms()
            is_used = now_ms < item.get("limited_until_ms", 0) or bool(item.get("holders"))
            is_open = (item.get("opened_ms", 0) > 0 and not item.get("opened_for")) or above.get("opened_ms", 0) > 0
            self.hour.samples.append(
                Sample(
                    self.loop.time(),
                    self.provider.in_flight,
                    item.get("limit", 0) if is_used else 0,
                    is_open,
                    len(self.hour.answered_s),
                    len(self.hour.refused_s),
                )
            )
            await asyncio.sleep(1.0)


def simulate(setup: Setup = Setup()) -> Hour:
    """Runs the hour. The same setup gives the same hour."""
    hour = Hour(setup)
    with simulated(hour.loop):
        world = _World(hour)

        async def all_of_it() -> None:
            odd = world.people(world.keys[3:], setup.odd_s, from_s=setup.odd[0], until_s=setup.odd[1], odd=True)
            tasks = [
                asyncio.ensure_future(work)
                for work in (
                    world.people(world.keys[:3], setup.people_s, from_s=1.0, until_s=setup.seconds - 60, odd=False),
                    odd,
                    world.watch(),
                    *(world.worker(number) for number in range(setup.workers)),
                )
            ]
            done, _ = await asyncio.wait(tasks, timeout=setup.seconds)
            for task in done:
                task.result()

        hour.loop.run(all_of_it())
    return hour
