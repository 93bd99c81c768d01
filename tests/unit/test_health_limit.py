"""The search for what a provider can take, in virtual time; and how a limit is divided."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naru.health_limit import FIRST_LIMIT, Sample, adjusted, ask_again_s, divided, held, released
from naru.health_refusals import verdict
from naru.health_state import HealthPolicy, State
from tests.provider_simulation import Capacity, Congested, Moody, Outcome, PerMinute, Provider, Queue, run, usual_s

POLICY = HealthPolicy()
SEEDS = range(8)


def runs(provider: Callable[[], Provider], *, calls: int, workers: int) -> list[Outcome]:
    return [run(provider(), calls=calls, workers=workers, seed=seed) for seed in SEEDS]


# ── Three providers ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_provider_that_refuses_the_twenty_first_call_is_kept_busy_and_rarely_refuses(workers: int) -> None:
    """1,000 calls of 0.85 s, twenty at once: 42.5 s at best."""
    outcomes = runs(Capacity, calls=1000, workers=workers)
    assert mean(outcome.makespan_s for outcome in outcomes) <= 1.10 * 42.5
    assert max(outcome.refused for outcome in outcomes) <= 20


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_provider_that_makes_calls_wait_is_never_idle(workers: int) -> None:
    """Sixteen at once and then three a second: fifty calls take 12.0 s, whatever one does."""
    assert max(outcome.makespan_s for outcome in runs(Queue, calls=50, workers=workers)) <= 1.02 * 12.0


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize(("calls", "best_s"), [(50, 3.6), (200, 12.7), (1000, 61.0)])
def test_a_provider_that_becomes_slow_is_not_given_more_than_it_likes(workers: int, calls: int, best_s: float) -> None:
    """Fourteen at once is best, and nothing says so but the time that calls take."""
    outcome = run(Congested(varied=False), calls=calls, workers=workers, seed=1)
    assert outcome.makespan_s <= 1.15 * best_s


@pytest.mark.parametrize("workers", [1, 3])
def test_what_calls_take_by_chance_is_not_taken_for_load(workers: int) -> None:
    """The same with latencies that vary by a quarter. Sixteen at once would take 1.17 times as long, twenty 1.7 times."""
    outcomes = runs(Congested, calls=1000, workers=workers)
    assert mean(outcome.makespan_s for outcome in outcomes) <= 1.15 * 61
    settled = [limit for outcome in outcomes for when_s, limit in outcome.limits if when_s > 20]
    assert 12 <= mean(settled) <= 17


def test_a_provider_that_becomes_slow_for_everybody_is_not_given_up() -> None:
    """Twice the latency, whatever one does: fewer calls do not help, so their number was not the reason."""

    class Slower(Capacity):
        def call(self, now_s: float, in_flight: int, rng: random.Random) -> float | None:
            return (0.85 if now_s < 20 else 1.7) if in_flight < self.slots else None

    outcome = run(Slower(), calls=1000, workers=2, seed=1)
    # 20 s at twenty, and the rest at half the speed.
    best_s = 20 + (1000 - 20 * 20 / 0.85) * 1.7 / 20
    assert outcome.makespan_s <= 1.25 * best_s


def test_a_provider_that_refuses_everything_is_asked_less_and_less() -> None:
    soon, later = (run(Capacity(slots=0), calls=50, workers=1, seed=1, until_s=until_s) for until_s in (5, 25))
    assert soon.limits[-1][1] == 1
    # When the limit has become one, one call in two seconds.
    assert later.refused - soon.refused <= 11


# ── Rounds ─────────────────────────────────────────────────────────────────────────────────────────────────


def begun(now_ms: int = 10**6, *, wanted: int = 100) -> State:
    return held(State("d"), "w", wanted=wanted, sample=Sample(), now_ms=now_ms, policy=POLICY)


def told(state: State, now_ms: int, mean_latency_s: float, *, answered: int = 100, used: bool = True) -> State:
    most = state.holders["w"].slots if used else 0
    sample = Sample(answered=answered, mean_latency_s=mean_latency_s, most_in_flight=most)
    return held(state, "w", wanted=1000, sample=sample, now_ms=now_ms, policy=POLICY)


def test_a_search_begins_small_doubles_and_then_takes_care() -> None:
    state, limits, now_ms = begun(wanted=1000), [FIRST_LIMIT], 10**6
    for _ in range(4):
        now_ms += 2000
        state = told(state, now_ms, 0.85)
        limits.append(state.limit)
    assert limits == [8, 16, 19, 22, 26]
    assert ask_again_s(state, now_ms) < 0.5


def test_what_is_not_used_does_not_grow() -> None:
    assert told(begun(wanted=1000), 10**6 + 2000, 0.85, used=False).limit == FIRST_LIMIT


def test_a_few_answers_say_nothing_yet() -> None:
    assert told(begun(wanted=1000), 10**6 + 2000, 0.85, answered=7).limit == FIRST_LIMIT


def test_answers_that_come_before_a_change_can_be_felt_say_nothing_of_it() -> None:
    state = told(begun(wanted=1000), 10**6 + 2000, 0.85)
    assert state.limit == 16
    assert told(state, 10**6 + 2500, 8.5).limit == 16
    assert told(state, 10**6 + 2900, 8.5).limit == 8


def test_another_batch_begins_where_the_last_one_was() -> None:
    state = begun(wanted=1000)
    for seconds in (2, 4, 6):
        state = told(state, 10**6 + seconds * 1000, 0.85)
    assert state.limit == 22
    state = released(state, "w", now_ms=10**6 + 7000) or state
    assert state.room == 22
    later = held(state, "v", wanted=100, sample=Sample(), now_ms=10**6 + 30_000, policy=POLICY)
    assert later.holders["v"].slots == 22
    much_later = held(state, "v", wanted=100, sample=Sample(), now_ms=10**6 + 3_600_000, policy=POLICY)
    assert much_later.holders["v"].slots == 11


def test_a_share_that_is_not_there_cannot_be_released() -> None:
    assert released(begun(), "nobody", now_ms=10**6) is None


samples = st.builds(
    Sample,
    answered=st.integers(0, 200),
    overloads=st.integers(0, 50),
    mean_latency_s=st.floats(0, 60),
    most_in_flight=st.integers(0, 200),
)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 300), samples, st.integers(0, 9000)), max_size=40))
def test_whatever_holders_say_they_never_have_more_than_the_limit(
    asked: list[tuple[str, int, Sample, int]],
) -> None:
    """Except right after a cut, when a holder has yet to hear of it; then nobody gets more."""
    state, now_ms = State("d"), 10**6
    for holder, wanted, sample, pause_ms in asked:
        now_ms += pause_ms
        before = sum(other.slots for other in state.live_holders(now_ms).values())
        state = held(state, holder, wanted=wanted, sample=sample, now_ms=now_ms, policy=POLICY)
        shares = [other.slots for other in state.holders.values()]
        assert state.limit >= 1
        assert sum(shares) <= max(state.limit, before)
        assert 0 <= state.holders[holder].slots <= wanted
        assert state.room == max(0, state.limit - sum(shares))
        assert State.from_values(state.values()) == state


@given(st.integers(0, 1000), st.dictionaries(st.text(max_size=3), st.integers(0, 300), max_size=8))
def test_shares_are_fair(total: int, wanted: dict[str, int]) -> None:
    shares = divided(total, wanted)
    assert sum(shares.values()) == min(total, sum(wanted.values()))
    for name, most in wanted.items():
        assert 0 <= shares[name] <= most
        # Who has less than another by more than one wanted no more.
        assert shares[name] + 1 >= max(shares.values()) or shares[name] == most


def test_a_sample_of_nothing_changes_nothing() -> None:
    state = begun()
    same = replace(state, used={"w": 0}, reached_ms=10**6 + 5000)
    assert adjusted(state, "w", Sample(), now_ms=10**6 + 5000, policy=POLICY) == same


# ── What nobody uses ───────────────────────────────────────────────────────────────────────────────────────


class Generous(Capacity):
    """Takes all for ten minutes, then twenty at a time. Its answers take 8.5 s."""

    def call(self, now_s: float, in_flight: int, rng: random.Random) -> float | None:
        return 10 * usual_s(rng) if now_s < 600 or in_flight < self.slots else None


def constantly(slots: int) -> Callable[[float], int]:
    return lambda _: slots


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "most", "in_use"),
    [
        (1, constantly(64), 64),
        (1, constantly(3), 3),
        (2, constantly(32), 64),
        (6, constantly(12), 72),
        (3, lambda now_s: 20 if now_s % 120 < 60 else 2, 60),
        (2, lambda now_s: 2 + int(now_s / 20), 64),
        (2, lambda now_s: max(2, 32 - int(now_s / 20)), 64),
    ],
)
def test_a_limit_stays_near_what_is_used_and_comes_down_when_that_becomes_too_much(
    workers: int, most: Callable[[float], int], in_use: int
) -> None:
    outcome = run(Generous(), calls=10**6, workers=workers, seed=1, until_s=900, most=most)
    assert max(limit for _, limit in outcome.limits or [(0.0, 0)]) <= max(2 * in_use, 2 * FIRST_LIMIT)
    # To come down costs a few seconds, and after that nearly nothing is refused.
    assert sum(when_s < 630 for when_s in outcome.refused_s) <= 2 * in_use
    settled = sum(when_s >= 630 for when_s in outcome.refused_s)
    answered = sum(when_s >= 630 for when_s in outcome.answered_s)
    assert settled <= 0.05 * answered
    # Twenty at a time, or what is wanted. It grows again by a step per round of answers, of which there are few.
    possible = sum(min(20, workers * most(now_s)) for now_s in range(630, 900)) / (10 * 0.85)
    assert answered >= 0.5 * possible


def test_a_limit_that_nobody_uses_comes_down_before_anything_is_refused() -> None:
    """A worker that wants 64 for ten minutes and then four."""
    outcome = run(
        Capacity(10**6), calls=10**6, workers=1, seed=1, until_s=240, most=lambda now_s: 64 if now_s < 120 else 4
    )
    assert max(limit for _, limit in outcome.limits) >= 64
    assert outcome.limits[-1][1] <= 2 * 8
    assert outcome.limits[-1][0] <= 120 + 61 + 1


def test_an_item_with_a_limit_that_ran_away_is_repaired() -> None:
    """As a release before left it."""
    values = begun(wanted=1000).values() | {"limit": 7 * 10**16, "room": 7 * 10**16}
    state = told(State.from_values({n: v for n, v in values.items() if n not in {"used", "reached_ms"}}), 10**6 + 1, 1)
    assert state.limit <= 16


# ── Refusals ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("workers", [1, 3])
def test_refusals_that_have_nothing_to_do_with_the_number_of_calls_do_not_keep_it_down(workers: int) -> None:
    """One call in ten is refused, however many there are: the limit grows to what is used. A limit of one would take
    half an hour.
    """
    outcomes = runs(Moody, calls=2000, workers=workers)
    assert mean(outcome.makespan_s for outcome in outcomes) <= 90
    # The tenth that is refused anyway, and hardly any more.
    assert max(outcome.refused for outcome in outcomes) <= 0.15 * 2000
    assert mean(outcome.limits[-1][1] for outcome in outcomes) >= 40


@pytest.mark.parametrize("workers", [1, 3])
def test_a_full_provider_is_told_from_a_moody_one_when_it_is_both(workers: int) -> None:
    """Twenty at once, and one call in ten refused besides: 85 s at best."""
    outcomes = runs(lambda: Moody(Capacity()), calls=2000, workers=workers)
    assert mean(outcome.makespan_s for outcome in outcomes) <= 1.5 * 85
    assert max(outcome.refused for outcome in outcomes) <= 0.15 * 2000
    assert all(8 <= outcome.limits[-1][1] <= 24 for outcome in outcomes)


def test_a_moody_provider_that_becomes_full_is_not_pressed() -> None:
    """From the twentieth second on, five at once: half of the calls of a limit that is too high are not taken for mood."""

    class Shrinking(Moody):
        def call(self, now_s: float, in_flight: int, rng: random.Random) -> float | None:
            self.inner = Capacity() if now_s < 20 else Capacity(slots=5)
            return super().call(now_s, in_flight, rng)

    for seed in SEEDS:
        outcome = run(Shrinking(), calls=600, workers=2, seed=seed)
        settled = [limit for when_s, limit in outcome.limits if when_s > 30]
        assert mean(settled or [5]) <= 8


def test_a_limit_per_minute_is_found_and_the_rest_of_the_minute_waited_for() -> None:
    """300 a minute, and no time named: when the minute is used up, nearly nothing is asked."""
    outcome = run(PerMinute(300), calls=900, workers=1, seed=1)
    assert outcome.makespan_s <= 240  # 120 s and the time of the last ones at best
    assert min(limit for _, limit in outcome.limits) == 1


@pytest.mark.parametrize("workers", [1, 3])
def test_one_refusal_while_a_single_call_is_in_flight_is_never_too_many_of_ours(workers: int) -> None:
    """A limit of one is left again."""
    begin = replace(State("d"), limit=1, round_ms=10**6, cut_pm=500, ceiling=2, cut_ms=10**6, tried_ms=10**6)
    outcome = run(Moody(), calls=1000, workers=workers, seed=2, state=begin)
    assert outcome.makespan_s <= 200
    assert outcome.limits[-1][1] >= 10


def test_a_worker_that_was_refused_everything_rests_between_two_calls() -> None:
    state = begun(wanted=1000)
    now_ms = 10**6
    for _ in range(8):
        now_ms += 1100
        state = held(state, "w", wanted=9, sample=Sample(began=4, overloads=4), now_ms=now_ms, policy=POLICY)
    assert state.limit == 1
    assert state.holders["w"].slots == 0
    assert ask_again_s(state, now_ms) == pytest.approx(2.0)


@given(st.integers(1, 500), st.integers(0, 500), st.integers(0, 400), st.integers(0, 1000))
def test_what_refusals_mean(tries: int, refused: int, usual_pm: int, cut_pm: int) -> None:
    """A third is never usual, nothing refused is never bad news, and nothing is concluded from very few calls."""
    refused = min(refused, tries)
    for limit in (1, 2, 20):
        said = verdict(limit, tries=tries, refused=refused, usual_pm=usual_pm, cut_pm=cut_pm)
        if refused == 0:
            assert said in {"wait", "fine"}
        if said == "not_load":
            assert cut_pm
            assert tries >= 8
            assert 3 * refused <= tries
        if limit == 1 and refused == tries:
            assert said == "full"
