"""Whose failures they are, and which of a provider's deployments: who is believed about what."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Literal

import pytest

from naru.health import Health, NotNowError, provider_item
from naru.health_state import State, tenant_tag
from tests.health_world import OMNI, World, at_once

ONE, OTHER = "key_000000000001", "key_000000000002"
HOLY = "holysheep"
Kind = Literal["failure", "overload", "neutral"]


@pytest.fixture(autouse=True)
def _at_once() -> Iterator[None]:
    with at_once():
        yield


@pytest.fixture
def world() -> World:
    return World()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


async def call(
    health: Health,
    *,
    tenant: str = "",
    fails: bool,
    deployment: str = OMNI,
    provider: str = HOLY,
    unreachable: bool = False,
) -> str:
    """One whole call, which takes no time: ``answered``, ``failed``, or why it was not made."""
    await health.refresh([deployment, provider_item(provider)])
    try:
        permit = await health.enter(deployment, provider=provider, tenant=tenant)
    except NotNowError as not_now:
        return not_now.reason
    if fails:
        await health.failed(permit, kind="failure", retry_after_s=None, unreachable=unreachable)
    else:
        await health.answered(permit, latency_s=0.5)
    await health.leave(permit)
    return "failed" if fails else "answered"


# ── Tenants ────────────────────────────────────────────────────────────────────────────────────────────────


def traffic(
    world: World,
    calls: list[tuple[str, float, Callable[[float], bool]]],
    *,
    environments: int,
    seconds: float,
    seed: int,
) -> dict[str, list[tuple[float, str]]]:
    """So many calls a second of each tenant at any environment, which fail as it says; what came of them, and when."""
    rng = random.Random(seed)
    everyone = [world.environment(seed=index) for index in range(environments)]
    came: dict[str, list[tuple[float, str]]] = {tenant: [] for tenant, _, _ in calls}
    for tenant, rate_per_s, fails in calls:
        when_s = 0.0
        while (when_s := when_s + rng.expovariate(rate_per_s)) < seconds:
            health = rng.choice(everyone)

            async def one(
                tenant: str = tenant, fails: Callable[[float], bool] = fails, health: Health = health
            ) -> None:
                outcome = await call(health, tenant=tenant, fails=fails(world.now_s))
                came[tenant].append((world.now_s, outcome))

            world.at(when_s, one)
    world.run()
    return came


def always(_: float) -> bool:
    return True


def never(_: float) -> bool:
    return False


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("environments", [1, 5, 40])
@pytest.mark.parametrize(("bad_per_s", "good_per_s"), [(2.6, 2.9), (20, 1), (20, 0.2), (1, 20), (2.6, 0.05)])
def test_failures_of_one_key_close_the_door_to_no_other(
    world: World, seed: int, environments: int, bad_per_s: float, good_per_s: float
) -> None:
    """Its bodies make the provider fail, at no cost to it. The others are answered, whenever they come."""
    came = traffic(
        world,
        [(ONE, bad_per_s, always), (OTHER, good_per_s, never)],
        environments=environments,
        seconds=40,
        seed=seed,
    )
    assert {outcome for _, outcome in came[OTHER]} <= {"answered"}
    if bad_per_s > 5 * good_per_s:
        # The one that fails is held back all the same.
        assert sum(outcome == "open" for _, outcome in came[ONE]) >= 0.5 * len(came[ONE])


@pytest.mark.parametrize("good_per_s", [0.5, 3])
def test_a_key_that_fails_now_and_then_is_not_held_back_with_one_that_always_does(
    world: World, good_per_s: float
) -> None:
    rng = random.Random(5)
    came = traffic(
        world,
        [(ONE, 3, always), (OTHER, good_per_s, lambda _: rng.random() < 0.05)],
        environments=5,
        seconds=120,
        seed=1,
    )
    assert sum(outcome == "open" for _, outcome in came[OTHER]) <= 0.03 * len(came[OTHER]) + 1


@pytest.mark.parametrize("environments", [1, 10])
def test_a_batch_is_not_believed_for_the_people_of_its_own_key(world: World, environments: int) -> None:
    came = traffic(
        world, [(f"{ONE}#batch", 10, always), (ONE, 1, never)], environments=environments, seconds=60, seed=1
    )
    assert {outcome for _, outcome in came[ONE]} == {"answered"}


@pytest.mark.parametrize("tenants", [[ONE], [ONE, OTHER], [f"key_{index:012}" for index in range(40)]])
@pytest.mark.parametrize("per_s", [2, 20])
def test_an_outage_opens_the_breaker_whoever_calls(world: World, tenants: list[str], per_s: float) -> None:
    """Also where there is one key only."""
    came = traffic(
        world, [(tenant, per_s / len(tenants), always) for tenant in tenants], environments=10, seconds=30, seed=1
    )
    everything = sorted(outcome for each in came.values() for outcome in each)
    called = sum(outcome == "failed" for _, outcome in everything)
    # A few seconds until all know, and probes.
    assert called <= 8 + 4 * per_s + 6
    assert all(outcome == "open" for at_s, outcome in everything if at_s > 5 and outcome != "failed")


def test_a_quiet_key_learns_of_an_outage_from_the_others(world: World) -> None:
    """Nine of ten calls are one key's."""
    came = traffic(world, [(ONE, 9, always), (OTHER, 1, always)], environments=10, seconds=30, seed=2)
    assert sum(outcome == "failed" for _, outcome in came[OTHER]) <= 8


def test_an_outage_that_one_key_saw_first_is_believed_by_all_when_another_one_fails(world: World) -> None:
    health = world.environment()

    async def work() -> None:
        for _ in range(8):
            await call(health, tenant=ONE, fails=True)
            world.pass_s(0.4)
        assert (world.state().breaker, world.state().opened_for) == ("open", tenant_tag(ONE))
        outcomes = []
        for _ in range(6):
            outcomes.append(await call(health, tenant=OTHER, fails=True))
            world.pass_s(0.3)
        assert outcomes.count("failed") <= 3
        assert outcomes[-1] == "open"
        assert world.state().opened_for == ""

    run(work())


def test_what_is_known_of_tenants_stays_small(world: World) -> None:
    everyone = [world.environment(seed) for seed in range(3)]

    async def work() -> None:
        for number in range(200):
            # Others are answered, so nothing opens.
            await call(everyone[number % 3], tenant=f"key_{number:012}", fails=number % 3 == 0)
            for _ in range(3):
                await call(everyone[number % 3], tenant="well", fails=False)
            world.pass_s(0.05)

    run(work())
    state = world.state()
    assert 0 < len(state.blamed or {}) <= 16
    assert len(state.blamed_before) <= 16


def test_an_item_without_tenants_is_counted_on(world: World) -> None:
    """As a release before wrote it, in the middle of some trouble."""
    from naru.attributes import to_item

    slot = world.now_ms // 10_000
    old = State(OMNI, version=3, slot=slot, failures=2, failing_since_ms=world.now_ms - 1000).values()
    old = {name: value for name, value in old.items() if not name.startswith(("blamed", "opened_for", "used"))}
    world.table.put_item(TableName="HealthTable", Item=to_item(old))
    run(call(world.environment(), tenant=ONE, fails=True))
    state = world.state()
    assert (state.failures, state.blamed) == (3, {tenant_tag(ONE): 1})


def test_a_tenant_that_fails_all_the_time_leaves_a_retry_to_the_others(world: World) -> None:
    health = world.environment()

    async def work() -> None:
        for _ in range(50):
            await call(health, tenant=ONE, fails=True)
            while health.may_retry(OMNI, tenant=ONE):
                pass
        assert health.may_retry(OMNI, tenant=OTHER)

    run(work())


# ── Providers ──────────────────────────────────────────────────────────────────────────────────────────────

MODELS = [f"holysheep/{name}" for name in ("omni", "omni-fast", "dash", "a", "b", "c")]


@pytest.mark.parametrize("apart_s", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("environments", [1, 6])
def test_a_provider_that_cannot_be_reached_costs_a_call_per_probe_and_not_one_for_each_model(
    world: World, environments: int, apart_s: float
) -> None:
    """Requests for six models in turn."""
    everyone = [world.environment(seed) for seed in range(environments)]
    calls: list[float] = []

    async def work() -> None:
        for number in range(round(60 / apart_s)):
            began_s = world.now_s
            outcome = await call(
                everyone[number % environments], tenant=ONE, deployment=MODELS[number % 6], fails=True, unreachable=True
            )
            calls.extend([began_s] if outcome == "failed" else [])
            world.pass_s(apart_s)

    run(work())
    assert world.state(provider_item(HOLY)).breaker == "open"
    # Three to be sure, more if they come in the seconds in which nobody has heard of it; then one each five to six seconds.
    assert sum(at_s < 4.5 for at_s in calls) <= 3 + 2 / apart_s
    assert sum(at_s >= 4.5 for at_s in calls) <= 60 / 5


@pytest.mark.parametrize("deployment", MODELS[:2])
def test_any_good_answer_opens_the_way_to_all_deployments_of_a_provider(world: World, deployment: str) -> None:
    health = world.environment()

    async def work() -> None:
        for _ in range(3):
            await call(health, deployment=MODELS[0], fails=True, unreachable=True)
        assert await call(health, deployment=MODELS[1], fails=False) == "open"
        # Another provider has nothing to do with it.
        assert await call(health, deployment="clova/hcx", provider="clovastudio", fails=False) == "answered"
        world.pass_s(5.1)
        assert await call(health, deployment=deployment, fails=False) == "answered"
        for each in MODELS:
            assert await call(health, deployment=each, fails=False) == "answered"

    run(work())


def test_one_deployment_with_errors_says_nothing_of_its_provider(world: World) -> None:
    health = world.environment()

    async def work() -> None:
        for _ in range(30):
            await call(health, deployment=MODELS[0], fails=True)
            world.pass_s(1)
        assert world.state(MODELS[0]).breaker != "closed"
        assert await call(health, deployment=MODELS[1], fails=False) == "answered"

    run(work())


def test_a_provider_whose_front_fails_for_several_deployments_is_left_alone_for_all(world: World) -> None:
    """Two keys see it at two deployments."""
    health = world.environment()

    async def work() -> None:
        for number in range(24):
            await call(health, tenant=(ONE, OTHER)[number % 2], deployment=MODELS[number // 2 % 2], fails=True)
            world.pass_s(0.3)
        assert await call(health, deployment=MODELS[2], fails=False) == "open"

    run(work())


def test_one_key_closes_no_provider_with_bodies_that_make_its_deployments_fail(world: World) -> None:
    health = world.environment()

    async def work() -> None:
        for number in range(120):
            await call(health, tenant=ONE, deployment=MODELS[number % 6], fails=True)
            world.pass_s(0.2)
            assert await call(health, tenant=OTHER, deployment=MODELS[number % 6], fails=False) == "answered"

    run(work())


@pytest.mark.slow
def test_a_connection_that_fails_now_and_then_closes_nothing(world: World) -> None:
    """One in fifty, at any of forty environments."""
    rng = random.Random(3)
    everyone = [world.environment(seed) for seed in range(40)]

    async def work() -> None:
        for _ in range(3000):
            fails = rng.random() < 0.02
            assert await call(rng.choice(everyone), fails=fails, unreachable=True) != "open"
            world.pass_s(rng.expovariate(20))

    run(work())


def test_a_probe_of_a_provider_that_is_not_made_is_given_back(world: World) -> None:
    """The deployment itself rests, or its own breaker is not due."""
    health = world.environment()

    async def work() -> None:
        for _ in range(8):
            await call(health, tenant=ONE, deployment=MODELS[0], fails=True)
        for _ in range(3):
            await call(health, deployment=MODELS[1], fails=True, unreachable=True)
        world.pass_s(5.1)
        permit = await health.enter(MODELS[1], provider=HOLY)
        await health.leave(permit)
        assert world.state(provider_item(HOLY)).probe == ""
        assert await call(health, deployment=MODELS[2], fails=False) == "answered"

    run(work())
