"""What follows from what is known of a deployment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import mean

import pytest

from naru.health_state import (
    HealthPolicy,
    State,
    counted,
    difference,
    grown,
    must_open,
    opened,
    overloaded,
    probed,
    probing,
    refused,
)
from tests.provider_simulation import Capacity, Crowd, Moody, Provider, run_crowd

POLICY = HealthPolicy()
NOW_MS = 1_700_000_000_000


def after(*calls: tuple[float, int, int], state: State | None = None) -> State:
    """The counts after ``(at_s, failures, answers)``."""
    state = state or State("d")
    for at_s, failures, answers in calls:
        state = counted(state, failures=failures, answers=answers, now_ms=NOW_MS + round(at_s * 1000), policy=POLICY)
    return state


def opens(state: State, at_s: float, *, more_answers: int = 0, own_failures: int = 0) -> bool:
    return must_open(
        state,
        more_answers=more_answers,
        own_failures=own_failures,
        now_ms=NOW_MS + round(at_s * 1000),
        policy=POLICY,
    )


@pytest.mark.parametrize(
    ("calls", "at_s", "is_open"),
    [
        ([(0.0, 5, 0)], 2.0, False),
        ([(0.0, 6, 0)], 2.0, True),
        ([(0.0, 6, 0)], 1.0, False),  # too soon to have heard of answers
        ([(0.0, 6, 0), (0.5, 0, 1)], 2.0, False),
        ([(0.0, 6, 0), (0.5, 1, 1)], 2.0, True),
        ([(0.0, 3, 0), (9.0, 3, 0)], 9.0, True),
        ([(0.0, 3, 0), (12.0, 3, 0)], 12.0, True),  # the slot before counts
        ([(0.0, 3, 0), (25.0, 3, 0)], 27.0, False),  # what is older does not
        ([(0.0, 100, 0), (1.0, 0, 1000)], 3.0, False),
    ],
)
def test_it_opens_when_half_of_the_calls_have_failed(
    calls: list[tuple[float, int, int]], at_s: float, is_open: bool
) -> None:
    assert opens(after(*calls), at_s) == is_open


def test_what_an_environment_knows_besides_counts() -> None:
    state = after((0.0, 6, 0))
    assert opens(state, 2.0)
    assert not opens(state, 2.0, more_answers=1)
    assert opens(state, 0.1, own_failures=3)


def test_answers_before_the_first_failure_do_not_count() -> None:
    state = after((0.0, 1, 500))
    assert (state.failures, state.answers, state.failing_since_ms) == (1, 0, NOW_MS)
    state = after((40.0, 1, 500), state=state)
    assert (state.failures, state.failures_before, state.answers) == (1, 0, 0)
    assert state.failing_since_ms == NOW_MS + 40_000


def test_cool_downs_become_a_little_longer_up_to_a_limit() -> None:
    state, now_ms, waits = opened(State("d"), now_ms=NOW_MS, policy=POLICY), NOW_MS, []
    for turn in range(7):
        waits.append(state.retry_ms - now_ms)
        now_ms = state.retry_ms
        probe = probing(state, probe=str(turn), now_ms=now_ms, policy=POLICY)
        assert probe is not None
        failed = probed(probe, probe=str(turn), verdict=False, now_ms=now_ms, policy=POLICY)
        assert failed is not None
        state = failed
    assert waits == [5000, 5250, 5500, 5750, 6000, 6000, 6000]
    assert state.opened_ms == NOW_MS


def test_nobody_probes_before_it_is_time_or_where_somebody_does() -> None:
    state = opened(State("d"), now_ms=NOW_MS, policy=POLICY)
    assert probing(State("d"), probe="a", now_ms=NOW_MS, policy=POLICY) is None
    assert probing(state, probe="a", now_ms=NOW_MS + 4999, policy=POLICY) is None
    taken = probing(state, probe="a", now_ms=NOW_MS + 5000, policy=POLICY)
    assert taken is not None
    assert taken.breaker == "half_open"
    assert probing(taken, probe="b", now_ms=NOW_MS + 39_999, policy=POLICY) is None
    assert probing(taken, probe="b", now_ms=NOW_MS + 40_000, policy=POLICY) is not None
    for verdict in (False, None):
        assert probed(taken, probe="b", verdict=verdict, now_ms=NOW_MS + 6000, policy=POLICY) is None
    closed = probed(taken, probe="a", verdict=True, now_ms=NOW_MS + 6000, policy=POLICY)
    assert closed is not None
    assert (closed.breaker, closed.openings, closed.recent(NOW_MS + 6000, POLICY)) == ("closed", 0, (0, 0))
    given_up = probed(taken, probe="a", verdict=None, now_ms=NOW_MS + 6000, policy=POLICY)
    assert given_up is not None
    assert (given_up.breaker, given_up.open_for_ms(NOW_MS + 6000)) == ("open", 0)


def test_an_overload_that_changes_nothing_is_not_written() -> None:
    state = overloaded(State("d"), began_ms=NOW_MS, retry_after_s=20, now_ms=NOW_MS, policy=POLICY)
    assert state is not None
    assert (state.limit, state.resting_until_ms) == (11, NOW_MS + 20_000)
    assert overloaded(state, began_ms=NOW_MS, retry_after_s=19.5, now_ms=NOW_MS + 500, policy=POLICY) is None
    longer = overloaded(state, began_ms=NOW_MS, retry_after_s=40, now_ms=NOW_MS + 500, policy=POLICY)
    assert longer is not None
    assert (longer.limit, longer.resting_until_ms) == (11, NOW_MS + 40_500)


def test_a_first_limit_is_a_guess_that_is_left_fast() -> None:
    state = overloaded(State("d"), began_ms=NOW_MS, retry_after_s=None, now_ms=NOW_MS, policy=POLICY)
    assert state is not None
    assert state.limit == 11
    in_use = {str(call): NOW_MS + 1000 for call in range(11)}
    more = grown(replace(state, wins=11, calls=in_use), now_ms=NOW_MS + 900)
    assert more is not None
    assert more.limit == 13


def test_a_refusal_of_a_call_from_before_the_last_cut_cuts_nothing() -> None:
    state = overloaded(State("d"), began_ms=NOW_MS, retry_after_s=None, now_ms=NOW_MS + 100, policy=POLICY)
    assert state is not None
    later_ms = NOW_MS + 6000
    assert overloaded(state, began_ms=NOW_MS + 50, retry_after_s=None, now_ms=later_ms, policy=POLICY) is None
    lower = overloaded(state, began_ms=NOW_MS + 200, retry_after_s=None, now_ms=later_ms, policy=POLICY)
    assert lower is not None
    assert lower.limit < state.limit


def test_calls_from_before_a_limit_take_the_room_of_those_after_for_a_while() -> None:
    """So a refusal in the first seconds says little about the limit: it stays, and may grow fast."""
    state = overloaded(State("d"), began_ms=NOW_MS, retry_after_s=None, now_ms=NOW_MS + 100, policy=POLICY)
    assert state is not None
    soon = overloaded(state, began_ms=NOW_MS + 200, retry_after_s=None, now_ms=NOW_MS + 3000, policy=POLICY)
    assert soon is not None
    assert (soon.limit, soon.ceiling, soon.losses) == (state.limit, 0, 1)
    for _ in range(4):
        soon = overloaded(soon, began_ms=NOW_MS + 200, retry_after_s=None, now_ms=NOW_MS + 3000, policy=POLICY) or soon
    assert (soon.limit, soon.ceiling) == (7, 0)  # nearly all is refused


def test_beyond_what_was_last_too_much_a_limit_grows_the_faster_the_farther() -> None:
    limits = [18]
    while limits[-1] < 60:
        limit = limits[-1]
        calls = {str(call): NOW_MS + 1000 for call in range(limit)}
        state = State("d", limit=limit, limited_until_ms=NOW_MS + 1000, wins=limit, calls=calls, ceiling=20)
        more = grown(state, now_ms=NOW_MS)
        assert more is not None
        limits.append(more.limit)
    assert limits == [18, 19, 20, 21, 22, 24, 28, 35, 43, 53, 66]


def test_a_step_that_was_too_large_is_taken_back() -> None:
    """In its first moment one refusal is known of four: to go down by one would leave three to be wondered about."""
    calls = {str(call): NOW_MS + 1000 for call in range(18)}
    state = grown(State("d", limit=18, limited_until_ms=NOW_MS + 1000, wins=18, calls=calls), now_ms=NOW_MS)
    assert state is not None
    assert state.limit == 22
    lower = overloaded(state, began_ms=NOW_MS + 1, retry_after_s=None, now_ms=NOW_MS + 50, policy=POLICY)
    assert lower is not None
    assert (lower.limit, lower.ceiling) == (18, 22)


def test_a_limit_grows_by_one_for_as_many_answers_as_it_has_slots() -> None:
    in_use = {str(call): NOW_MS + 1000 for call in range(9)}
    state = State("d", limit=10, room=10, limited_until_ms=NOW_MS + 1000, wins=10, calls=in_use, ceiling=12)
    more = grown(state, now_ms=NOW_MS)
    assert more is not None
    assert (more.limit, more.room, more.wins) == (11, 11, 0)
    few = State("d", limit=10, room=10, limited_until_ms=NOW_MS + 1000, wins=9, calls=in_use)
    idle = State("d", limit=10, room=10, limited_until_ms=NOW_MS + 1000, wins=10)
    over = State("d", limit=10, room=10, limited_until_ms=NOW_MS, wins=10, calls=in_use)
    assert [grown(each, now_ms=NOW_MS) for each in (few, idle, over)] == [None, None, None]


def test_a_limit_that_refuses_stays() -> None:
    state = State("d", limit=10, limited_until_ms=NOW_MS + 20_000)
    longer = refused(state, interactive=False, now_ms=NOW_MS, policy=POLICY)
    assert longer is not None
    assert longer.limited_until_ms == NOW_MS + 60_000
    assert refused(longer, interactive=False, now_ms=NOW_MS + 1000, policy=POLICY) is None
    seen = refused(longer, interactive=True, now_ms=NOW_MS + 1000, policy=POLICY)
    assert seen is not None
    assert seen.interactive_ms == NOW_MS + 1000
    assert refused(seen, interactive=True, now_ms=NOW_MS + 9000, policy=POLICY) is None


def test_a_change_holds_only_if_what_it_was_worked_out_from_is_still_so() -> None:
    before = State("d", version=3, slot=1, failures=2)
    by_version = difference(before, State("d", version=3, slot=1, failures=2, resting_until_ms=5))
    assert by_version.condition == "#version = :old_version"
    assert by_version.values == {":resting_until_ms": 5, ":old_version": 3, ":next_version": 4}
    by_counts = difference(before, State("d", version=3, slot=2, failures=1))
    assert all(f"#{name} = :old_{name}" in by_counts.condition for name in ("slot", "failures", "answers"))


def test_an_item_of_another_release_is_read_as_far_as_it_is_known() -> None:
    assert State.from_values({"deployment": "d", "limit": 4, "new_in_next_release": 1}) == State("d", limit=4)


# ── Refusals of single calls, in virtual time ──────────────────────────────────────────────────────────────


def crowds(provider: Callable[[], Provider]) -> list[Crowd]:
    """Of a hundred clients, for two minutes."""
    return [run_crowd(provider(), clients=100, seconds=120, seed=seed) for seed in range(5)]


def test_a_provider_that_takes_twenty_at_once_is_kept_busy_by_a_crowd() -> None:
    for crowd in crowds(Capacity):
        assert crowd.answered >= 0.96 * 120 * 20 / 0.85
        assert crowd.refused <= 0.08 * crowd.answered
        assert 18 <= crowd.state.limit <= 22


@pytest.mark.slow
def test_a_crowd_is_not_kept_waiting_for_a_provider_that_refuses_one_call_in_ten_whatever_it_has_to_do() -> None:
    """There is no such thing as too many calls here: a limit of twenty would answer 2,800."""
    found = crowds(Moody)
    assert mean(crowd.answered for crowd in found) >= 5000
    assert all(crowd.state.usual_pm <= 150 for crowd in found)
    assert any(crowd.state.usual_pm for crowd in found)


def test_a_crowd_finds_the_limit_of_a_provider_that_is_moody_and_full() -> None:
    """One call in ten that is refused costs no time to speak of; what does is to find out that it is chance."""
    found = crowds(lambda: Moody(Capacity()))
    for crowd in found:
        assert crowd.answered >= 0.8 * 120 * 20 / 0.85
        assert 13 <= crowd.state.limit <= 24


def test_a_crowd_is_down_to_one_call_where_nothing_is_answered() -> None:
    assert [crowd.state.limit for crowd in crowds(lambda: Capacity(slots=0))] == [1] * 5
