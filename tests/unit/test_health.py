"""What environments learn of a provider, and share."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine, Iterator
from typing import Any, Literal, TypeVar

import pytest

from naru.health import Health, NotNowError, Permit, Sample
from naru.health_state import HealthPolicy
from tests.health_world import OMNI, World, at_once

T = TypeVar("T")
Kind = Literal["failure", "overload", "neutral"]


@pytest.fixture(autouse=True)
def _at_once() -> Iterator[None]:
    with at_once():
        yield


@pytest.fixture
def world() -> World:
    return World()


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


async def call(
    health: Health,
    *,
    outcome: Kind | None = None,
    retry_after_s: float | None = None,
    interactive: bool = True,
    latency_s: float = 0.85,
) -> None:
    """One whole call of a request, which takes no time."""
    await health.refresh([OMNI])
    permit = await health.enter(OMNI, interactive=interactive)
    if outcome is None:
        await health.answered(permit, latency_s=latency_s)
    else:
        await health.failed(permit, kind=outcome, retry_after_s=retry_after_s)
    await health.leave(permit)


async def end(health: Health, permit: Permit, outcome: Kind | None, *, unreachable: bool = False) -> None:
    """A call ends, like this."""
    if outcome is None:
        await health.answered(permit, latency_s=0.85)
    else:
        await health.failed(permit, kind=outcome, retry_after_s=None, unreachable=unreachable)
    await health.leave(permit)


async def refusal(health: Health, *, interactive: bool = True) -> NotNowError:
    await health.refresh([OMNI])
    with pytest.raises(NotNowError) as not_now:
        await health.enter(OMNI, interactive=interactive)
    return not_now.value


async def open_breaker(health: Health) -> None:
    for _ in range(6):
        if health.state(OMNI) == "closed":
            await call(health, outcome="failure")
    assert health.state(OMNI) == "open"


# ── Where all is well ──────────────────────────────────────────────────────────────────────────────────────


def test_a_healthy_system_writes_nothing_and_reads_once_in_two_seconds(world: World) -> None:
    health = world.environment()

    async def a_minute() -> None:
        for _ in range(600):
            await call(health)
            world.pass_s(0.1)

    run(a_minute())
    assert (world.writes, world.table.tables["HealthTable"]) == (0, {})
    assert world.reads == 30


def test_all_deployments_of_a_request_are_read_at_once(world: World) -> None:
    run(world.environment().refresh(["a", "b", "c"]))
    assert world.calls == {"batch_get_item": 1}


def test_requests_of_one_environment_share_a_read(world: World) -> None:
    health = world.environment()

    async def together() -> None:
        await asyncio.gather(*(health.refresh([OMNI]) for _ in range(20)))

    run(together())
    assert world.reads == 1


def test_a_call_that_comes_while_another_reads_waits_for_what_it_will_say(world: World) -> None:
    """A new environment with two requests at once must not call a provider that is known to be ill."""
    run(open_breaker(world.environment()))
    health = world.environment()

    async def together() -> list[NotNowError]:
        return list(await asyncio.gather(refusal(health), refusal(health)))

    assert [not_now.reason for not_now in run(together())] == ["open", "open"]


def test_requests_go_on_when_the_table_does_not_answer(world: World, caplog: pytest.LogCaptureFixture) -> None:
    health = world.environment()
    world.is_reachable = False

    async def work() -> None:
        outcomes: list[Kind | None] = [None, "failure", "overload", "neutral"]
        for outcome in outcomes:
            await call(health, outcome=outcome, retry_after_s=5)
            world.pass_s(3)
        share = await health.hold(OMNI, holder="w", wanted=5)
        assert (share.slots, share.retry_after_s) == (0, 1.0)
        await health.let_go(OMNI, holder="w")

    with caplog.at_level(logging.WARNING):
        run(work())
    assert "the shared health cannot be used: read" in caplog.text


def test_a_table_that_does_not_answer_is_not_asked_more_often(world: World) -> None:
    health = world.environment()
    world.is_reachable = False

    async def ten_seconds() -> None:
        for _ in range(100):
            await call(health)
            world.pass_s(0.1)

    run(ten_seconds())
    assert world.reads == 5


# ── The breaker ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_dead_provider_is_left_alone_after_few_calls_by_everybody(world: World) -> None:
    """Each call from another environment, none of which would ever know."""

    async def work() -> int:
        for calls in range(1, 20):
            health = world.environment()
            await call(health, outcome="failure")
            world.pass_s(0.3)
            if health.state(OMNI) == "open":
                return calls
        raise AssertionError("never open")

    assert 5 <= run(work()) <= 8
    before = world.writes
    assert run(refusal(world.environment())).reason == "open"
    assert world.writes == before


def test_who_finds_the_breaker_open_is_told_when_to_come_back(world: World) -> None:
    health = world.environment()

    async def work() -> None:
        await open_breaker(health)
        not_now = await refusal(health)
        assert not_now.retry_after_s == pytest.approx(5, abs=0.1)
        assert health.open_for_s(OMNI) == not_now.retry_after_s
        world.pass_s(5)
        assert health.open_for_s(OMNI) == 0

    run(work())


@pytest.mark.parametrize("rate_per_s", [2, 20, 100, 400])
@pytest.mark.parametrize("seed", range(2))
def test_one_failure_in_ten_never_opens_the_breaker(rate_per_s: int, seed: int) -> None:
    """Fifty environments that begin with nothing, Poisson arrivals, answers after 0.85 s, failures after 0.1 s."""
    world, rng = World(), random.Random(seed)
    environments = [world.environment(seed=index) for index in range(50)]
    opened: list[float] = []
    when_s = 0.0
    for _ in range(max(600, rate_per_s * 5)):
        when_s += rng.expovariate(rate_per_s)
        health, fails = rng.choice(environments), rng.random() < 0.1

        async def begin(health: Health = health, fails: bool = fails) -> None:
            await health.refresh([OMNI])
            permit = await health.enter(OMNI)

            async def end() -> None:
                if fails:
                    await health.failed(permit, kind="failure", retry_after_s=None)
                else:
                    await health.answered(permit, latency_s=0.85)
                await health.leave(permit)
                if world.state().opened_ms:
                    opened.append(world.now_s)

            world.at(world.now_s + (0.1 if fails else 0.85), end)

        world.at(when_s, begin)
    try:
        world.run()
    except NotNowError:
        opened.append(world.now_s)
    assert opened == []
    # Failures, and about one report a second from each environment that has something to report.
    assert world.writes <= 0.1 * 1.5 * max(600, rate_per_s * 5) + 50 * (when_s + 2)


@pytest.mark.parametrize("rate_per_s", [1, 20, 100])
def test_an_outage_under_load_opens_the_breaker_within_a_few_failures(rate_per_s: int) -> None:
    """Fifty environments with half a minute of good answers behind them: what was before says nothing of now."""
    world, rng = World(), random.Random(1)
    environments = [world.environment(seed=index) for index in range(50)]
    failed = 0
    when_s = 0.0
    while when_s < 45:
        when_s += rng.expovariate(rate_per_s)
        fails, health = when_s > 30, rng.choice(environments)

        async def one(health: Health = health, fails: bool = fails) -> None:
            nonlocal failed
            await health.refresh([OMNI])
            try:
                permit = await health.enter(OMNI)
            except NotNowError:
                return
            failed += fails and not permit.probe
            if fails:
                await health.failed(permit, kind="failure", retry_after_s=None)
            else:
                await health.answered(permit, latency_s=0.1)
            await health.leave(permit)

        world.at(when_s, one)
    world.run()
    # It takes a second and a half to be sure, and the others hear of it within two.
    assert world.state().opened_ms
    assert failed <= 8 + 4 * rate_per_s


def test_exactly_one_call_tries_whether_the_provider_is_well_again(world: World) -> None:
    one, other = world.environment(1), world.environment(2)

    async def work() -> None:
        await open_breaker(one)
        await other.refresh([OMNI])
        world.pass_s(5.1)
        probe = await one.enter(OMNI)
        assert (probe.probe, one.state(OMNI)) == (True, "half_open")
        not_now = await refusal(other)
        assert not_now.reason == "open"
        assert not_now.retry_after_s == pytest.approx(35, abs=0.1)
        await one.answered(probe, latency_s=0.5)
        await one.leave(probe)
        world.pass_s(2)
        await call(other)
        assert (one.state(OMNI), other.state(OMNI)) == ("closed", "closed")

    run(work())


@pytest.mark.parametrize(("outcome", "after"), [("failure", "open"), ("overload", "closed"), ("neutral", "closed")])
def test_only_an_ill_provider_stays_open_after_a_probe(world: World, outcome: Kind, after: str) -> None:
    """One that is busy, or refuses the request, is alive."""
    health = world.environment()

    async def work() -> None:
        await open_breaker(health)
        world.pass_s(5.1)
        await call(health, outcome=outcome)

    run(work())
    assert world.state().breaker == after


def test_a_probe_that_is_given_up_makes_room_for_the_next(world: World) -> None:
    """Cancelled before it had an answer."""
    one, other = world.environment(1), world.environment(2)

    async def work() -> None:
        await open_breaker(one)
        world.pass_s(5.1)
        await one.leave(await one.enter(OMNI))
        assert (await other.enter(OMNI)).probe is False  # its view is older than the breaker
        await other.refresh([OMNI])
        assert (await other.enter(OMNI)).probe

    run(work())


def test_a_prober_that_died_is_replaced_after_its_lease(world: World) -> None:
    one, other = world.environment(1), world.environment(2)

    async def work() -> None:
        await open_breaker(one)
        world.pass_s(5.1)
        assert (await one.enter(OMNI)).probe
        world.pass_s(34)
        assert (await refusal(other)).reason == "open"
        world.pass_s(1.1)
        await other.refresh([OMNI])
        assert (await other.enter(OMNI)).probe

    run(work())


@pytest.mark.parametrize(("outcome", "after"), [(None, "closed"), ("failure", "half_open")])
def test_of_a_prober_that_was_thought_dead_only_a_good_answer_counts(
    world: World, outcome: Kind | None, after: str
) -> None:
    """Its answer took longer than the lease, and somebody else probes by now."""
    one, other = world.environment(1), world.environment(2)

    async def work() -> None:
        await open_breaker(one)
        world.pass_s(5.1)
        late = await one.enter(OMNI)
        world.pass_s(36)
        await other.refresh([OMNI])
        await other.enter(OMNI)
        await end(one, late, outcome)
        assert world.state().breaker == after

    run(work())


@pytest.mark.parametrize("answers_after_s", [0.5, 20, 36, 71, 300])
@pytest.mark.parametrize("environments", [1, 7])
def test_a_breaker_closes_with_the_first_good_answer_however_long_it_takes(
    world: World, answers_after_s: float, environments: int
) -> None:
    """A request every second, from any of the environments. Probes follow each other every 35 s."""
    everyone = [world.environment(seed) for seed in range(environments)]
    first_s: list[float] = []
    late: list[str] = []

    async def request(health: Health) -> None:
        await health.refresh([OMNI])
        try:
            permit = await health.enter(OMNI)
        except NotNowError as not_now:
            if first_s and world.now_s > first_s[0] + 2:
                late.append(str(not_now))
            return

        async def answer() -> None:
            first_s.append(world.now_s)
            await end(health, permit, None)

        world.at(world.now_s + answers_after_s, answer)

    async def ill() -> None:
        await open_breaker(everyone[0])

    world.at(0, ill)
    for second in range(1, 400):
        world.at(second, lambda second=second: request(everyone[second % environments]))  # type: ignore[misc]
    world.run()
    assert first_s[0] <= 5 + 1 + answers_after_s
    # Within two seconds everybody has looked again.
    assert late == []
    assert world.state().breaker == "closed"


def test_the_first_token_of_a_stream_closes_the_breaker(world: World) -> None:
    """The stream itself may go on for minutes."""
    health = world.environment()

    async def work() -> None:
        await open_breaker(health)
        world.pass_s(5.1)
        permit = await health.enter(OMNI)
        await health.answered(permit, latency_s=0.4)
        assert world.state().breaker == "closed"
        world.pass_s(300)
        await health.leave(permit)
        assert world.state().breaker == "closed"

    run(work())


def test_an_answer_to_a_call_from_before_it_opened_closes_nothing(world: World) -> None:
    one, other = world.environment(1), world.environment(2)

    async def work() -> None:
        before = await other.enter(OMNI)
        world.pass_s(0.1)
        await open_breaker(one)
        await end(other, before, None)
        assert world.state().breaker == "open"

    run(work())


def test_an_answer_to_a_call_that_did_not_know_of_it_closes_the_breaker_and_forgets_half_of_the_failures(
    world: World,
) -> None:
    """If such answers are few, some more failures open it again, with no time to be sure."""
    one, other = world.environment(1), world.environment(2)

    async def work() -> None:
        await other.refresh([OMNI])
        await open_breaker(one)
        world.pass_s(0.1)
        permit = await other.enter(OMNI)
        world.pass_s(2)
        await other.refresh([OMNI])
        await end(other, permit, None)
        assert world.state().breaker == "closed"
        await one.refresh([OMNI], max_age_s=0)
        permits = [await one.enter(OMNI) for _ in range(6)]
        for permit in permits:
            assert world.state().breaker == "closed"
            await end(one, permit, "failure")
            if world.state().breaker == "open":
                break
        assert world.state().breaker == "open"

    run(work())


def test_the_end_of_an_outage_is_noticed_within_ten_seconds_by_few_probes(world: World) -> None:
    """Sixty seconds of it, a request every four seconds from any of ten environments; it ends at any moment."""
    noticed, probes = [], []
    for end_ms in range(60_000, 64_000, 250):
        world = World()
        environments = [world.environment(seed) for seed in range(10)]

        async def work(world: World = world, environments: list[Health] = environments, end_ms: int = end_ms) -> None:
            tried, at_s = 0, 0.0
            await open_breaker(environments[0])
            while True:
                world.pass_s(4)
                at_s += 4
                health = environments[round(at_s / 4) % 10]
                await health.refresh([OMNI])
                try:
                    permit = await health.enter(OMNI)
                except NotNowError:
                    continue
                tried += 1
                if at_s * 1000 >= end_ms:
                    await health.answered(permit, latency_s=0.5)
                    break
                await health.failed(permit, kind="failure", retry_after_s=None)
                await health.leave(permit)
            noticed.append(at_s - end_ms / 1000)
            probes.append(tried)

        run(work())
    assert max(noticed) <= 10
    assert max(probes) <= 10


def test_overloads_and_refused_requests_never_open_the_breaker(world: World) -> None:
    health = world.environment()

    async def work() -> None:
        for _ in range(30):
            await call(health, outcome="neutral")
        assert world.writes == 0
        permits = [await health.enter(OMNI) for _ in range(30)]
        for permit in permits:
            await health.failed(permit, kind="overload", retry_after_s=None)
            await health.leave(permit)

    run(work())
    assert health.state(OMNI) == "closed"


def test_failures_after_a_recovery_are_counted_anew(world: World) -> None:
    """Also by an environment that has slept through outage and recovery."""
    one, other = world.environment(1), world.environment(2)

    async def work() -> None:
        await call(one, outcome="failure")
        await open_breaker(other)
        world.pass_s(5.1)
        await call(other)
        permit = await one.enter(OMNI)  # has not looked again
        await one.failed(permit, kind="failure", retry_after_s=None)
        state = world.state()
        assert (state.breaker, state.failures, state.failing_since_ms) == ("closed", 1, world.now_ms)

    run(work())


def test_a_stream_that_is_cut_after_its_first_token_counts_as_a_failure(world: World) -> None:
    health = world.environment()

    async def work() -> None:
        permit = await health.enter(OMNI)
        await health.answered(permit, latency_s=0.3)
        await health.failed(permit, kind="failure", retry_after_s=None)
        await health.leave(permit)

    run(work())
    assert world.state().failures == 1


# ── Rest and slots ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("named_s", "rest_s"), [(4.0, 4.0), (3600.0, 60.0)])
def test_a_provider_that_names_a_time_is_left_alone_until_then_by_everybody(
    world: World, named_s: float, rest_s: float
) -> None:
    other = world.environment(2)

    async def work() -> None:
        await call(world.environment(), outcome="overload", retry_after_s=named_s)
        not_now = await refusal(other)
        assert (not_now.reason, not_now.retry_after_s) == ("resting", rest_s)
        assert other.open_for_s(OMNI) == rest_s
        world.pass_s(rest_s)
        await call(other)

    run(work())


def test_a_short_wait_is_no_rest(world: World) -> None:
    async def work() -> None:
        await call(world.environment(), outcome="overload", retry_after_s=1.0)
        await call(world.environment())

    run(work())


def test_after_an_overload_calls_take_slots_and_give_them_back(world: World) -> None:
    health = world.environment()

    async def work() -> None:
        await call(health, outcome="overload")
        assert world.state().limit == 11  # 0.7 of the sixteen that are taken for what others have in flight
        permits = [await health.enter(OMNI) for _ in range(11)]
        assert len(world.state().calls) == 11
        not_now = await refusal(world.environment(2))
        assert not_now.reason == "busy"
        assert 0.05 <= not_now.retry_after_s <= 1.5
        await health.leave(permits[0])
        await health.leave(permits[0])
        assert len(world.state().calls) == 10
        await call(world.environment(2))
        assert len(world.state().calls) == 10

    run(work())


def test_many_overloads_at_once_lower_the_limit_once_a_second(world: World) -> None:
    environments = [world.environment(seed) for seed in range(20)]

    async def storm() -> None:
        for health in environments:
            await call(health, outcome="overload")

    async def work() -> None:
        limits = []
        for _ in range(7):
            permits = [await health.enter(OMNI) for health in environments[:1]]
            for health in environments:
                with_permit = permits[0]
                await health.failed(with_permit, kind="overload", retry_after_s=None)
            await environments[0].leave(permits[0])
            limits.append(world.state().limit)
            world.pass_s(1)
        # The first limit is a guess. When nearly everything is refused it falls by three in ten, whoever takes the room.
        assert limits == [11, 7, 4, 2, 1, 1, 1]

    run(work())


@pytest.mark.slow
def test_a_limit_grows_while_it_is_used_and_nothing_is_too_much(world: World) -> None:
    health = world.environment()

    async def work() -> None:
        for _ in range(3):
            await call(health, outcome="overload")
            world.pass_s(1)
        limit = world.state().limit
        for _ in range(30):
            permits = [await health.enter(OMNI) for _ in range(world.state().limit)]
            for permit in permits:
                await health.answered(permit, latency_s=0.5)
                await health.leave(permit)
        assert world.state().limit >= limit + 2

    run(work())


def test_a_limit_that_is_not_reached_is_forgotten_after_a_minute(world: World) -> None:
    health = world.environment()

    async def work() -> None:
        await call(health, outcome="overload")
        world.pass_s(61)
        before = world.writes
        for _ in range(50):
            await health.enter(OMNI)
        assert world.writes == before

    run(work())


def test_a_killed_process_does_not_hold_its_slots_for_ever(world: World) -> None:
    async def work() -> None:
        dead = world.environment(1)
        await call(dead, outcome="overload")
        for _ in range(11):
            await dead.enter(OMNI)
        # The limit stays, because calls are refused all the time.
        alive = world.environment(2)
        for _ in range(5):
            assert (await refusal(alive)).reason == "busy"
            world.pass_s(35)
        world.pass_s(6)
        await alive.refresh([OMNI])
        permit = await alive.enter(OMNI)
        assert list(world.state().calls) == [permit.id]

    run(work())


# ── Budgets and latencies ──────────────────────────────────────────────────────────────────────────────────


def test_retries_are_a_fifth_of_all_calls_at_most(world: World) -> None:
    health = world.environment()

    async def work() -> None:
        assert [health.may_retry(OMNI) for _ in range(4)] == [True, True, True, False]
        retries = 0
        for _ in range(1000):
            await call(health)
            retries += health.may_retry(OMNI)
        assert 195 <= retries <= 200
        for _ in range(1000):
            await call(health)
        assert sum(health.may_retry(OMNI) for _ in range(50)) == 10

    run(work())


def test_a_slow_call_counts_at_once_and_is_forgotten_slowly(world: World) -> None:
    health = world.environment()

    async def work() -> None:
        assert health.latency_s(OMNI) == 0
        await call(health, latency_s=0.5)
        await call(health, latency_s=4.0)
        assert health.latency_s(OMNI) == 4.0
        world.pass_s(10)
        await call(health, latency_s=0.5)
        assert 1.5 < health.latency_s(OMNI) < 2.0
        permit = await health.enter(OMNI)
        assert health.latency_s(OMNI) > 3.0
        await health.leave(permit)
        world.pass_s(60)
        assert health.latency_s(OMNI) < 0.01

    run(work())


# ── Batches ────────────────────────────────────────────────────────────────────────────────────────────────


def test_holders_share_a_limit_fairly_and_never_have_more(world: World) -> None:
    one, two, three = (world.environment(seed) for seed in range(3))

    async def work() -> None:
        workers = {"one": one, "two": two, "three": three}
        wanted = {"one": 100, "two": 100, "three": 1}

        async def share(name: str) -> int:
            world.pass_s(0.3)
            slots = (await workers[name].hold(OMNI, holder=name, wanted=wanted[name])).slots
            assert sum(holder.slots for holder in world.state().holders.values()) <= world.state().limit
            return slots

        assert [await share("one"), await share("two")] == [8, 0]  # until the first gives way
        assert [await share("one"), await share("two")] == [4, 4]
        assert [await share("three"), await share("one"), await share("two"), await share("three")] == [0, 4, 3, 1]
        await two.let_go(OMNI, holder="two")
        assert await share("one") == 7

    run(work())


def test_a_holder_that_died_loses_its_share_after_seconds(world: World) -> None:
    async def work() -> None:
        await world.environment(1).hold(OMNI, holder="dead", wanted=100)
        world.pass_s(8.1)
        assert (await world.environment(2).hold(OMNI, holder="alive", wanted=100)).slots == 8

    run(work())


def test_a_batch_leaves_room_for_people(world: World) -> None:
    people, worker = world.environment(1), world.environment(2)

    async def work() -> None:
        await worker.hold(OMNI, holder="w", wanted=100)
        assert world.state().interactive_ms == 0
        await call(people)  # is seen, because there is a batch
        world.pass_s(1)
        before = world.writes
        await call(people)  # and not written every time
        assert world.writes == before
        world.pass_s(1)
        assert (await worker.hold(OMNI, holder="w", wanted=100)).slots == 6
        world.pass_s(31)
        assert (await worker.hold(OMNI, holder="w", wanted=100)).slots >= 8

    run(work())


def test_with_a_limit_people_go_first(world: World) -> None:
    people, worker = world.environment(1), world.environment(2)

    async def work() -> None:
        await call(people, outcome="overload")
        permits = [await people.enter(OMNI) for _ in range(5)]
        share = await worker.hold(OMNI, holder="w", wanted=100)
        assert share.slots == 11 - 6
        # One place was kept free; when the batch has seen that it is taken, it gets less.
        permits.append(await people.enter(OMNI))
        assert (await refusal(people)).reason == "busy"
        for _ in range(2):
            world.pass_s(1)
            assert len(world.state().calls) + (await worker.hold(OMNI, holder="w", wanted=100)).slots <= 11
        world.pass_s(1)
        assert (await worker.hold(OMNI, holder="w", wanted=100)).slots == 4
        assert len(world.state().calls) + 4 <= 11
        for permit in permits:
            await people.leave(permit)

    run(work())


def test_calls_of_a_batch_are_under_its_share_and_cost_no_writes(world: World) -> None:
    worker = world.environment()

    async def work() -> None:
        await call(worker, outcome="overload")
        await worker.hold(OMNI, holder="w", wanted=100)
        before = world.writes
        for _ in range(20):
            await call(worker, interactive=False)
        assert world.writes == before

    run(work())


def test_what_a_batch_sees_moves_its_limit(world: World) -> None:
    """Through the calls themselves; a holder that sees for itself says so in a sample."""
    worker = world.environment()

    async def work() -> None:
        first = await worker.hold(OMNI, holder="w", wanted=100)
        permits = [await worker.enter(OMNI, interactive=False) for _ in range(first.slots)]
        world.pass_s(0.85)
        for permit in permits:
            await worker.answered(permit, latency_s=0.85)
            await worker.leave(permit)
        world.pass_s(0.4)
        more = await worker.hold(OMNI, holder="w", wanted=100)
        assert more.slots == 2 * first.slots
        for _ in range(more.slots - 1):
            await worker.enter(OMNI, interactive=False)
        permit = await worker.enter(OMNI, interactive=False)
        assert not worker.must_ask(OMNI)
        await worker.failed(permit, kind="overload", retry_after_s=None)
        await worker.leave(permit)
        assert worker.must_ask(OMNI)
        assert (await worker.hold(OMNI, holder="w", wanted=100)).slots == more.slots - 1
        told = Sample(overloads=100, most_in_flight=more.slots)
        assert (await worker.hold(OMNI, holder="w", wanted=100, sample=told)).slots == more.slots // 2

    run(work())


def test_a_batch_waits_for_a_provider_that_rests_and_probes_one_that_was_ill(world: World) -> None:
    worker = world.environment()

    async def work() -> None:
        await call(world.environment(2), outcome="overload", retry_after_s=20)
        share = await worker.hold(OMNI, holder="w", wanted=100)
        assert (share.slots, share.retry_after_s) == (0, 20)
        world.pass_s(21)
        await open_breaker(world.environment(3))
        world.pass_s(2)
        share = await worker.hold(OMNI, holder="w", wanted=100)
        assert share.slots == 0
        assert share.retry_after_s == pytest.approx(3, abs=0.2)
        world.pass_s(4)
        assert (await worker.hold(OMNI, holder="w", wanted=100)).slots == 1
        assert (await worker.enter(OMNI, interactive=False)).probe

    run(work())


def test_a_policy_can_be_given() -> None:
    world = World(HealthPolicy(min_failures=1, presumed_answers=0, own_failures=1))
    health = world.environment()
    run(call(health, outcome="failure"))
    assert health.state(OMNI) == "open"
