"""A request that is stopped at any one of its calls, in turn, and whose process lives: paused for so long that the sweeper
takes it for dead, or cancelled by whoever waited for it.

As in test_crash_at_every_step the whole use case runs. A process that lives leaves nothing to guess: it releases or
settles what it was given.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from botocore.exceptions import EndpointConnectionError

from local.simulated_model import Config, ThreadedModel, run_in_thread
from naru import request_ids
from naru.closing import Closing
from naru.errors import NaruError, StoreUnavailableError, UpstreamUnavailableError
from naru.health import Health
from naru.request_ids import ADMITTED_WITHIN_MS, MAX_AGE_MS
from naru.sweeper import LEASE_LIFE_MS
from tests.integration.test_crash_at_every_step import SCENARIOS, Life, MortalUpstream, World

pytestmark = pytest.mark.slow

Clock = Literal["both", "wall", "steady", "set back"]


@pytest.fixture(scope="module")
def simulated() -> Iterator[ThreadedModel]:
    with run_in_thread(Config()) as model:
        yield model


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)


class Clocks:
    """The two clocks of a machine, which a pause may move apart."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall_s = self.steady_s = 0.0
        real = SimpleNamespace(time=time.time, monotonic=time.monotonic)
        shim = SimpleNamespace(
            time=lambda: real.time() + self.wall_s, monotonic=lambda: real.monotonic() + self.steady_s
        )
        monkeypatch.setattr(request_ids, "time", shim)

    def pass_by(self, seconds: float, which: Clock) -> None:
        self.wall_s += {"both": seconds, "wall": seconds, "steady": 0.0, "set back": -seconds}[which]
        self.steady_s += 0.0 if which == "wall" else seconds


class PausedLife(Life):
    """Stands still before its n-th call while something else happens."""

    def __init__(self, at: int, meanwhile: Callable[[], None]) -> None:
        super().__init__()
        self._at, self._meanwhile = at, meanwhile

    def begin(self, what: str) -> bool:
        if len(self.calls) == self._at:
            thread = threading.Thread(target=self._meanwhile)
            thread.start()
            thread.join()
        return super().begin(what)


def outcome_of(world: World, life: Life) -> Exception | None:
    """What the client is told; None for an answer."""
    try:
        asyncio.run(world._serve(life, world.scenario.body, world.scenario.leaves_after))
    except NaruError as error:
        return error
    finally:
        world.provider.wait_idle()
    return None


_CALLS = {"answer", "stream"}
PAUSED = [name for name, scenario in SCENARIOS.items() if scenario.organisation_pico_usd]


@pytest.mark.parametrize("name", PAUSED)
def test_a_process_that_the_sweeper_takes_for_dead_calls_nobody_for_free(
    simulated: ThreadedModel, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands still for 16 minutes before each of its calls in turn; the sweeper comes; it goes on."""
    scenario = SCENARIOS[name]
    whole = Life()
    World(scenario, simulated).serve(whole, leaves_after=scenario.leaves_after)
    for at in range(len(whole.calls)):
        world = World(scenario, simulated)
        clocks = Clocks(monkeypatch)

        def stand_still(clocks: Clocks = clocks, world: World = world) -> None:
            clocks.pass_by(LEASE_LIFE_MS / 1000 + 60, "both")
            world.sweep(Life())

        before = len(world.provider.stats()["billed"])
        life = PausedLife(at, stand_still)
        error = outcome_of(world, life)
        world.sweep(Life())
        when = f"stood still before call {at}, {life.calls[at:]}"
        world.assert_invariants(when)
        billed = len(world.provider.stats()["billed"]) - before
        if not _CALLS & {*life.calls[: at + 1]}:
            assert isinstance(error, StoreUnavailableError), when
            assert error.code == "request_held_up"
            assert error.should_retry
            assert billed == 0, when


@pytest.mark.parametrize("clock", ["both", "wall", "steady", "set back"])
@pytest.mark.parametrize("late_ms", [-60_000, 1])
def test_the_later_of_two_clocks_says_how_old_a_request_is(
    simulated: ThreadedModel, clock: Clock, late_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suspended machine's monotonic clock may stand still; a wall clock may be set."""
    world = World(SCENARIOS["one of many"], simulated)
    clocks = Clocks(monkeypatch)
    seconds = (ADMITTED_WITHIN_MS + late_ms) / 1000
    error = outcome_of(world, PausedLife(1, lambda: clocks.pass_by(seconds, clock)))
    assert (error is not None) == (late_ms > 0)
    world.sweep(Life())
    world.assert_invariants(clock)


def test_a_retry_upstream_is_not_made_by_a_request_that_is_too_old(
    simulated: ThreadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call is refused; then the process stands still, and the sweeper charges the worst case."""
    scenario = SCENARIOS["a retry upstream"]
    whole = Life()
    World(scenario, simulated).serve(whole)
    calls = [i for i, call in enumerate(whole.calls) if call == "answer"]
    assert len(calls) >= 2
    for at in range(calls[0] + 1, calls[1]):
        world = World(scenario, simulated)
        clocks = Clocks(monkeypatch)
        asked = world.provider.stats()["requests"]
        error = outcome_of(world, PausedLife(at, lambda clocks=clocks: clocks.pass_by(1000, "both")))  # type: ignore[misc]
        # Held up, or out of time after what the first call brought.
        assert isinstance(error, StoreUnavailableError | UpstreamUnavailableError)
        assert world.provider.stats()["requests"] - asked == 1
        world.assert_invariants(f"stood still before call {at}, {whole.calls[at]}")


@pytest.mark.parametrize("name", ["one of many", "a stream", "an end user with limits"])
def test_no_row_comes_behind_what_has_been_closed(
    simulated: ThreadedModel, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request stands still for six minutes before each of its calls; meanwhile what is older than five is rolled up."""
    scenario = SCENARIOS[name]
    whole = Life()
    World(scenario, simulated).serve(whole)
    late = 0
    for at in range(len(whole.calls)):
        world = World(scenario, simulated)
        clocks = Clocks(monkeypatch)
        closed_ms: list[int] = []

        def roll_up(clocks: Clocks = clocks, world: World = world, closed_ms: list[int] = closed_ms) -> None:
            clocks.pass_by(360, "both")
            database: Any = world.database
            closed_ms.append(Closing(database, "MeterTable").closed_until_ms(time.time_ns() // 10**6 + 360_000))

        before = {row.request_id for row in world.rows()}
        outcome_of(world, PausedLife(at, roll_up))
        came = [row for row in world.rows() if row.request_id not in before]
        late += len(came)
        assert [row for row in came if row.arrived_at_ms < closed_ms[0]] == [], whole.calls[at:]
        world.assert_invariants(f"stood still before call {at}")
    assert late  # where the organisation's lease was there, which closing waits for


def test_a_call_of_a_request_that_was_held_up_ends_before_the_sweeper_comes(
    simulated: ThreadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the worst case would be charged for an answer whose cost is known."""
    world = World(SCENARIOS["one of many"], simulated)
    clocks = Clocks(monkeypatch)
    deadlines: list[float] = []
    original = MortalUpstream.answer

    async def answer(self: MortalUpstream, *args: Any, **more: Any) -> dict[str, Any]:
        deadlines.append(more["deadline_s"])
        return await original(self, *args, **more)

    monkeypatch.setattr(MortalUpstream, "answer", answer)
    enter = Health.enter

    async def suspended(self: Health, *args: Any, **more: Any) -> Any:
        clocks.pass_by(MAX_AGE_MS / 1000 - 9, "wall")
        return await enter(self, *args, **more)

    monkeypatch.setattr(Health, "enter", suspended)
    assert outcome_of(world, Life()) is None
    assert 0 < deadlines[0] < 9
    assert [row.outcome for row in world.rows()] == ["completed"] * 2


class CancelledLife(Life):
    """Its request is cancelled at its n-th call, which is made all the same, or not."""

    task: asyncio.Task[None]
    loop: asyncio.AbstractEventLoop

    def __init__(self, at: int, *, made: bool) -> None:
        super().__init__()
        self._at, self._made = at, made

    def call(self, what: str, function: Callable[[], Any]) -> Any:
        is_it = len(self.calls) == self._at
        if not is_it:
            return super().call(what, function)
        self.calls.append(what)
        try:
            if not self._made:
                raise EndpointConnectionError(endpoint_url="the table")
            return function()
        finally:
            self.loop.call_soon_threadsafe(self.task.cancel)

    def begin(self, what: str) -> bool:
        if len(self.calls) == self._at and what in {"answer", "stream", "event"}:
            self.task.cancel()
        return super().begin(what)


async def cancelled(world: World, life: CancelledLife) -> None:
    life.loop = asyncio.get_running_loop()
    life.task = asyncio.create_task(world._serve(life, world.scenario.body, world.scenario.leaves_after))
    await asyncio.wait({life.task})
    if not life.task.cancelled() and (error := life.task.exception()):
        assert isinstance(error, NaruError), error
    # The environment lives on.
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)


@pytest.mark.parametrize("made", [True, False], ids=["made", "not made"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_request_that_is_cancelled_leaves_no_lease_and_is_charged_for_what_it_called(
    simulated: ThreadedModel, name: str, made: bool
) -> None:
    scenario = SCENARIOS[name]
    whole = Life()
    World(scenario, simulated).serve(whole, leaves_after=scenario.leaves_after)
    for at in range(len(whole.calls)):
        world = World(scenario, simulated)
        life = CancelledLife(at, made=made)
        asyncio.run(cancelled(world, life))
        world.provider.wait_idle()
        call = life.calls[at] if at < len(life.calls) else "the end"
        when = f"cancelled at call {at}, {call}"
        if not made:
            # What could not be written is remembered, but here no other request comes.
            world.sweep(Life())
        unknown = [row for row in world.rows() if row.outcome == "unknown"]
        assert not unknown or (call.startswith("put_item") and not made), when
        world.assert_invariants(when)
