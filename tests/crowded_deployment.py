"""People and batch workers at one deployment, in computed time: each with an environment and a view of its own.

What they share is the product's `Health` on the model of DynamoDB. The provider takes so many calls at once, as the test
says from second to second.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.scale_clock import SimulatedLoop
from naru.attributes import from_item, to_item
from naru.health import Health, NotNowError
from naru.health_state import State
from tests.dynamodb_model import DynamoDB
from tests.health_world import OMNI, TABLE

_REFUSED_S = 0.04
_QUEUE_S = 30.0
_GIVE_UP_S = 4.0
_COME_BACK_S = 20.0


@dataclass(frozen=True, slots=True)
class Visit:
    """What a person saw: when it came, how long it waited for its turn, and how it ended."""

    at_s: float
    waited_s: float
    outcome: str


@dataclass
class Scene:
    """``takes`` is how many calls the provider takes at once, after so many seconds; ``answer_s`` how long it needs."""

    takes: Callable[[float], int]
    answer_s: float = 2.0
    seed: int = 1
    visits: list[Visit] = field(default_factory=list)
    limits: list[tuple[float, int]] = field(default_factory=list)
    batch_answers: list[float] = field(default_factory=list)
    holds: int = 0
    """How often workers asked for a share."""
    refusals: int = 0
    in_flight: int = 0

    def __post_init__(self) -> None:
        self.loop = SimulatedLoop()
        self.loop.service = self
        self.rng = random.Random(self.seed)
        self.table = DynamoDB(HealthTable=("deployment",))

    def begin(self, call: Callable[[], Any], done: asyncio.Future[Any]) -> None:
        """A call of the table."""

        def happen() -> None:
            if done.cancelled():
                return
            try:
                done.set_result(call())
            except Exception as error:  # noqa: BLE001 - the caller's, as from a thread
                done.set_exception(error)

        self.loop.call_later(0.005, happen)

    def environment(self) -> Health:
        return Health(self.table, TABLE, clock=self.loop.now_ms, rng=random.Random(self.rng.random()))  # type: ignore[arg-type]

    def state(self) -> State:
        item = self.table.get_item(TableName=TABLE, Key=to_item({"deployment": OMNI})).get("Item")
        return State.from_values(from_item(item)) if item else State(OMNI)

    def run(self, seconds: float, *work: Any) -> None:
        """Let them do what they do for so long."""

        async def look() -> None:
            while True:
                self.limits.append((self.loop.time(), self.state().limit))
                await asyncio.sleep(1)

        async def all_of_it() -> None:
            tasks = [asyncio.ensure_future(each) for each in (*work, look())]
            done, _ = await asyncio.wait(tasks, timeout=seconds)
            for task in done:
                task.result()

        self.loop.run(all_of_it())

    # ── Who calls ──────────────────────────────────────────────────────────────────────────────────────────

    async def call(self, health: Health, *, interactive: bool) -> bool:
        """One call; whether it was answered. Raises NotNowError."""
        permit = await health.enter(OMNI, interactive=interactive)
        if self.in_flight >= self.takes(self.loop.time()):
            self.refusals += 1
            await asyncio.sleep(_REFUSED_S)
            await health.failed(permit, kind="overload", retry_after_s=None)
            await health.leave(permit)
            return False
        self.in_flight += 1
        await asyncio.sleep(self.answer_s * self.rng.uniform(0.9, 1.1))
        self.in_flight -= 1
        await health.answered(permit, latency_s=self.answer_s)
        await health.leave(permit)
        return True

    async def people(self, health: Health, *, every_s: float, from_s: float = 0.0) -> None:
        """One after the other, whether or not the one before has left."""
        await asyncio.sleep(from_s)
        while True:
            self.loop.create_task(self._person(health))
            await asyncio.sleep(every_s)

    async def _person(self, health: Health) -> None:
        at_s = self.loop.time()
        outcome = "busy"
        while (waited_s := self.loop.time() - at_s) < _QUEUE_S:
            await health.refresh([OMNI])
            began_s = self.loop.time()
            try:
                if await self.call(health, interactive=True):
                    self.visits.append(Visit(at_s, began_s - at_s, "answered"))
                    return
                await asyncio.sleep(self.rng.uniform(0, 0.5))
            except NotNowError as not_now:
                outcome = not_now.reason
                # Who has waited longer asks more often.
                await asyncio.sleep(not_now.retry_after_s / (1 + waited_s / 3))
        self.visits.append(Visit(at_s, self.loop.time() - at_s, outcome))

    async def worker(self, name: str, *, wanted: int = 64, patient: bool = False) -> None:
        """A batch that never ends; ``patient`` if it asks on where it gets no share."""
        while True:
            await self._hold(self.environment(), name, wanted, patient=patient)
            await asyncio.sleep(_COME_BACK_S)

    async def _hold(self, health: Health, name: str, wanted: int, *, patient: bool) -> None:
        tasks: set[asyncio.Task[Any]] = set()
        without_s = 0.0
        while True:
            share = await health.hold(OMNI, holder=name, wanted=wanted)
            self.holds += 1
            while len(tasks) < share.slots:
                task = self.loop.create_task(self._line(health))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            pause_s = max(0.1, share.retry_after_s)
            without_s = 0.0 if tasks or share.slots else without_s + pause_s
            if without_s > _GIVE_UP_S and not patient:
                await health.let_go(OMNI, holder=name)
                return
            due_s = self.loop.time() + pause_s
            while (left_s := due_s - self.loop.time()) > 1e-6 and not health.must_ask(OMNI):
                if not tasks:
                    await asyncio.sleep(left_s)
                    break
                await asyncio.wait(tasks, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
                while len(tasks) < share.slots:
                    task = self.loop.create_task(self._line(health))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)

    async def _line(self, health: Health) -> None:
        try:
            if await self.call(health, interactive=False):
                self.batch_answers.append(self.loop.time())
            else:
                await asyncio.sleep(self.rng.uniform(0.2, 1.0))
        except NotNowError as not_now:
            await asyncio.sleep(min(5.0, not_now.retry_after_s))

    # ── What came of it ────────────────────────────────────────────────────────────────────────────────────

    def waits_s(self, from_s: float = 0.0) -> list[float]:
        """Of the people that came after that."""
        return [visit.waited_s for visit in self.visits if visit.at_s >= from_s]

    def turned_away(self, from_s: float = 0.0) -> int:
        return sum(visit.outcome != "answered" for visit in self.visits if visit.at_s >= from_s)
