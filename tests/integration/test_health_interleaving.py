"""Environments that race for the health of a provider, in every order of their calls to the table; and the same writes
on moto and on the emulator.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from naru import aws_calls, health_store
from naru.attributes import from_item, to_item
from naru.health import Health, NotNowError, Permit
from naru.health_state import State
from tests.dynamodb_model import DynamoDB
from tests.emulated_tables import clear, emulated_tables
from tests.health_world import BEGIN_MS, OMNI, TABLE, World, at_once
from tests.integration.test_dynamodb_model import Both
from tests.interleaving import How, Interleaving
from tests.moto_tables import tables

ORDERS = range(30)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def threads() -> Iterator[Interleaving]:
    interleaving = Interleaving()
    with interleaving.instead_of_threads(aws_calls, health_store):
        yield interleaving
    interleaving.close()


def opened(world: World) -> None:
    """A breaker that is open, and may be probed."""

    async def work() -> None:
        health = world.environment(99)
        for _ in range(6):
            permit = await health.enter(OMNI)
            await health.failed(permit, kind="failure", retry_after_s=None)
            await health.leave(permit)

    with at_once():
        asyncio.run(work())
    assert world.state().breaker == "open"
    world.pass_s(5.1)


def limited(world: World, limit: int) -> None:
    """A deployment that takes so many calls at once."""

    until_ms = world.now_ms + 60_000
    state = State(OMNI, version=1, limit=limit, room=limit, limited_until_ms=until_ms, cut_ms=world.now_ms - 5000)
    world.table.put_item(TableName=TABLE, Item=to_item(state.values()))
    assert world.state().limit == limit


def mix(threads: Interleaving, rng: random.Random, how: tuple[How, ...] = ("answered",)) -> None:
    """Let all that waits happen, in any order, one of these ways."""
    while threads.waiting:
        threads.happen(rng.choice(threads.waiting), rng.choice(how))


async def try_to_enter(health: Health) -> Permit | NotNowError:
    await health.refresh([OMNI])
    try:
        return await health.enter(OMNI)
    except NotNowError as not_now:
        return not_now


@pytest.mark.parametrize("order", ORDERS)
def test_of_many_who_want_to_probe_one_does(world: World, threads: Interleaving, order: int) -> None:
    """Also where an answer is lost on the way and boto3 writes again."""
    opened(world)
    tasks = [threads.start(process, try_to_enter(world.environment(process))) for process in range(4)]
    mix(threads, random.Random(order), ("answered", "answered", "answer lost, sent again"))
    results = [task.result() for task in tasks]
    assert sorted(isinstance(result, Permit) and result.probe for result in results) == [False, False, False, True]
    assert [result.reason for result in results if isinstance(result, NotNowError)] == ["open"] * 3
    (probe,) = [result for result in results if isinstance(result, Permit)]
    assert world.state().probe == probe.id


@pytest.mark.parametrize("order", range(5))
def test_failures_of_a_crowd_are_counted_one_and_all(world: World, threads: Interleaving, order: int) -> None:
    """They come in the same instant, before anybody knows of trouble. Who could not tell would see none, and try again."""

    async def fail(health: Health) -> float:
        permit = await health.enter(OMNI)
        await health.failed(permit, kind="failure", retry_after_s=None)
        return health.pause_s(OMNI)

    tasks = [threads.start(process, fail(world.environment(process))) for process in range(40)]
    mix(threads, random.Random(order))
    assert world.state().failures == 40
    assert sum(task.result() == 0 for task in tasks) <= 6


def test_a_request_that_comes_while_another_looks_waits_for_what_is_seen(world: World, threads: Interleaving) -> None:
    """A new environment must not call a provider that others know to be ill."""
    opened(world)
    world.now_ms -= 1000  # a moment before it may be probed
    health = world.environment(1)
    tasks = [threads.start(1, try_to_enter(health)) for _ in range(2)]
    (look,) = threads.waiting
    assert [task.done() for task in tasks] == [False, False]
    threads.happen(look)
    assert [str(task.result()) for task in tasks] == ["open, for 0.9 s"] * 2


@pytest.mark.parametrize("how", ["died before", "died after"])
def test_a_process_that_dies_as_it_takes_the_probe_keeps_nobody_for_long(
    world: World, threads: Interleaving, how: How
) -> None:
    opened(world)
    threads.start(1, try_to_enter(world.environment(1)))
    threads.happen(threads.waiting[0])  # it has looked
    threads.happen(threads.waiting[0], how)
    other = world.environment(2)
    now = threads.finish(threads.start(2, try_to_enter(other)))
    assert isinstance(now, Permit) == (how == "died before")
    world.pass_s(35.1)
    third = threads.finish(threads.start(3, try_to_enter(world.environment(3))))
    assert isinstance(third, Permit)
    assert third.probe


@pytest.mark.parametrize("order", ORDERS)
def test_failures_that_come_at_once_are_all_counted_and_open_it_once(
    world: World, threads: Interleaving, order: int
) -> None:
    """Ten environments; before, it has been failing for two seconds."""
    environments = [world.environment(process) for process in range(10)]

    async def fail(health: Health) -> None:
        await health.refresh([OMNI])
        permit = await health.enter(OMNI)
        await health.failed(permit, kind="failure", retry_after_s=None)
        await health.leave(permit)

    threads.finish(threads.start(99, fail(world.environment(99))))
    world.pass_s(2)
    tasks = [threads.start(process, fail(health)) for process, health in enumerate(environments)]
    while any(call.function.__name__ == "batch_get_item" for call in threads.waiting):
        threads.happen(next(call for call in threads.waiting if call.function.__name__ == "batch_get_item"))
    mix(threads, random.Random(order))
    assert all(task.result() is None for task in tasks)
    state = world.state()
    assert (state.breaker, state.openings, state.retry_ms) == ("open", 1, world.now_ms + 5000)
    assert 6 <= state.failures <= 11


@pytest.mark.parametrize("order", ORDERS)
def test_failures_that_open_nothing_are_counted_to_the_last(world: World, threads: Interleaving, order: int) -> None:
    """Right after the first one it is too soon to judge."""

    async def fail(health: Health) -> None:
        permit = await health.enter(OMNI)
        await health.failed(permit, kind="failure", retry_after_s=None)
        await health.leave(permit)

    for process in range(5):
        threads.start(process, fail(world.environment(process)))
    mix(threads, random.Random(order))
    assert (world.state().failures, world.state().breaker) == (5, "closed")


@pytest.mark.parametrize("order", ORDERS)
def test_slots_are_never_given_twice(world: World, threads: Interleaving, order: int) -> None:
    """Calls that come, go and die, and a batch that asks for its share, all at once."""
    limited(world, 4)
    rng = random.Random(order)
    most = 0

    async def people(health: Health) -> None:
        for _ in range(3):
            result = await try_to_enter(health)
            if isinstance(result, Permit):
                await health.answered(result, latency_s=0.5)
                await health.leave(result)

    async def batch(health: Health) -> None:
        for _ in range(3):
            await health.hold(OMNI, holder="w", wanted=10)
        await health.let_go(OMNI, holder="w")

    for process in range(4):
        threads.start(process, people(world.environment(process)))
    threads.start(4, batch(world.environment(4)))
    while threads.waiting:
        call = rng.choice(threads.waiting)
        threads.happen(call, rng.choice(("answered", "answered", "answered", "answer lost, sent again", "died after")))
        state = world.state()
        taken = len(state.calls) + sum(holder.slots for holder in state.holders.values())
        assert taken <= state.limit
        most = max(most, taken)
    assert most >= 1


@pytest.mark.parametrize("order", range(20))
def test_whatever_fails_on_the_way_to_the_table_no_request_does(
    world: World, threads: Interleaving, order: int
) -> None:
    opened(world)

    async def request(health: Health) -> None:
        result = await try_to_enter(health)
        if isinstance(result, Permit):
            await health.failed(result, kind="overload", retry_after_s=5)
            await health.leave(result)

    tasks = [threads.start(process, request(world.environment(process))) for process in range(4)]
    mix(threads, random.Random(order), ("answered", "not sent", "answer lost"))
    assert [task.result() for task in tasks] == [None] * 4


# ── The same elsewhere ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module", params=["moto", "emulator"])
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if request.param == "moto":
        with tables(TABLE) as client:
            yield client
    else:
        folder: Path = tmp_path_factory.mktemp("emulator")
        with emulated_tables(folder, TABLE) as emulated:
            yield emulated.client()


def test_every_write_does_on_others_what_it_does_on_the_model(other: Any) -> None:
    """All that environments write, refused and not; then the item is the same."""
    model = DynamoDB(HealthTable=("deployment",))
    clear(other, TABLE, "deployment")
    both = Both(model, other)
    now_ms = BEGIN_MS
    environments = [
        Health(both, TABLE, clock=lambda: now_ms, rng=random.Random(seed))  # type: ignore[arg-type]
        for seed in range(3)
    ]
    one, two, three = environments

    def same() -> State:
        (there,) = (from_item(item) for item in other.scan(TableName=TABLE)["Items"])
        assert there == model.tables[TABLE][OMNI,]
        return State.from_values(there)

    async def work() -> None:
        nonlocal now_ms
        for turn in range(8):  # opens
            await environments[turn % 3].refresh([OMNI, "other"])
            if same_or_new().opened_ms:
                break
            permit = await environments[turn % 3].enter(OMNI)
            await environments[turn % 3].failed(permit, kind="failure", retry_after_s=None)
            await environments[turn % 3].leave(permit)
            now_ms += 500
        assert same().breaker == "open"
        now_ms += 6000
        for health in environments:
            await health.refresh([OMNI])
        probe = await one.enter(OMNI)
        with pytest.raises(NotNowError):
            await two.enter(OMNI)
        await one.failed(probe, kind="overload", retry_after_s=2.0)
        await one.leave(probe)
        assert (same().breaker, same().limit) == ("closed", 11)
        now_ms += 2500
        for health in environments:
            await health.refresh([OMNI])
        permits = [await one.enter(OMNI) for _ in range(3)]
        assert (await two.hold(OMNI, holder="w", wanted=100)).slots == 7
        permits.append(await three.enter(OMNI))
        with pytest.raises(NotNowError):
            await three.enter(OMNI)
        same()
        with pytest.raises(NotNowError):
            await three.enter(OMNI, interactive=False)
        await one.leave(permits[0])
        await two.let_go(OMNI, holder="w")
        now_ms += 200_000
        late = await two.enter(OMNI)
        await one.failed(late, kind="overload", retry_after_s=None)
        await three.refresh([OMNI])
        await three.enter(OMNI)
        for _ in range(20):  # finds the dead
            try:
                permits.append(await three.enter(OMNI))
            except NotNowError:
                break
        assert same().calls.keys().isdisjoint({permits[1].id, permits[2].id})
        await three.hold(OMNI, holder="w", wanted=5)
        now_ms += 61_000
        await three.hold(OMNI, holder="w", wanted=5)
        now_ms += 11_000
        await three.hold(OMNI, holder="w", wanted=5)
        await one.refresh([OMNI])
        await one.enter(OMNI)  # somebody is there
        same()

    def same_or_new() -> State:
        return same() if model.tables[TABLE] else State(OMNI)

    with at_once():
        asyncio.run(work())
    assert both.calls > 40
    assert both.refused >= 4
