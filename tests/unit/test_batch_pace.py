"""A share is kept to the call, whatever changes while calls are on their way."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from naru.batch_pace import PacedHealth
from naru.health import Health, NotNowError, Permit, Sample, Share

HOLY = "holysheep/hyperclova-x-omni"


class Told:
    """What the shared health says, without a table."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slots = 0
        self.entered = self.left = 0

        async def hold(_: Health, __: str, *, holder: str, wanted: int, sample: Sample | None = None) -> Share:
            return Share(self.slots, 1.0)

        async def let_go(_: Health, __: str, *, holder: str) -> None:
            pass

        async def enter(_: Health, deployment: str, *, interactive: bool = True, **__: str) -> Permit:
            self.entered += 1
            return Permit(deployment, interactive, f"p{self.entered}")

        async def leave(_: Health, __: Permit) -> None:
            self.left += 1

        for name, function in {"hold": hold, "let_go": let_go, "enter": enter, "leave": leave}.items():
            monkeypatch.setattr(Health, name, function)


def paced() -> PacedHealth:
    return PacedHealth(None, "HealthTable")  # type: ignore[arg-type]


def test_no_more_calls_than_slots_and_all_of_them_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The share changes all the time; what is under way above a smaller one ends, and nothing is added."""
    told, health, rng = Told(monkeypatch), paced(), random.Random(3)
    inside = done = most_over = 0
    grown = True

    async def call() -> None:
        nonlocal inside, done, most_over
        permit = await health.enter(HOLY, interactive=False)
        inside += 1
        most_over = max(most_over, inside - told.slots) if grown else most_over
        for _ in range(rng.randrange(6)):
            await asyncio.sleep(0)
        inside -= 1
        done += 1
        await health.leave(permit)
        await health.leave(permit)  # the second time nothing happens

    async def main() -> None:
        nonlocal grown
        told.slots = 3
        await health.hold(HOLY, holder="h", wanted=9)
        calls = [asyncio.create_task(call()) for _ in range(200)]
        while not all(task.done() for task in calls):
            await asyncio.sleep(0)
            before, told.slots = told.slots, rng.randrange(1, 8)
            # When it shrinks, what is inside may be more for a while.
            grown = told.slots >= before and inside <= told.slots
            await health.hold(HOLY, holder="h", wanted=9)

    asyncio.run(main())
    assert done == told.entered == 200
    assert most_over <= 0


def test_a_call_without_a_share_is_not_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fallback lies at another deployment, of which nothing is held."""
    told, health = Told(monkeypatch), paced()

    async def main() -> None:
        await health.hold(HOLY, holder="h", wanted=1)
        await health.enter("other/model", interactive=False)

    asyncio.run(main())
    assert told.entered == 1


def test_whoever_waits_too_long_is_told_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("naru.batch_pace._PATIENCE_S", 0.01)
    told, health = Told(monkeypatch), paced()

    async def main() -> Any:
        await health.hold(HOLY, holder="h", wanted=1)
        with pytest.raises(NotNowError, match="busy"):
            await health.enter(HOLY, interactive=False)
        told.slots = 1
        await health.hold(HOLY, holder="h", wanted=1)
        await health.enter(HOLY, interactive=False)

    asyncio.run(main())
    assert told.entered == 1


def test_a_share_that_is_given_back_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    told, health = Told(monkeypatch), paced()

    async def main() -> None:
        await health.hold(HOLY, holder="h", wanted=1)
        waiting = asyncio.create_task(health.enter(HOLY, interactive=False))
        await asyncio.sleep(0)
        assert not waiting.done()
        await health.let_go(HOLY, holder="h")
        await waiting

    asyncio.run(main())
    assert told.entered == 1
