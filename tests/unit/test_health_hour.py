"""An hour of people, two batches and a provider with moods, at a small rate: what the documents promise, all at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.hour import goodput
from benchmarks.hour_world import HOUR, Hour, Setup, simulate

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("hour")]

FEWER = {12: 8, 4: 3}
SMALL = Setup(
    timetable=tuple(replace(phase, takes=FEWER.get(phase.takes, phase.takes)) for phase in HOUR),
    people_s=12.0,
    lines_at_once=6,
)
WANTED = SMALL.workers * SMALL.lines_at_once
_QUEUE_S = 30.0
_SLOWEST_ANSWER_S = 41.0
"""What an answer that comes all at once may take here."""
_COOL_DOWN_S = 6.0


@pytest.fixture(scope="module")
def hour() -> Hour:
    return simulate(SMALL)


def test_each_line_and_each_person_is_answered_once(hour: Hour) -> None:
    assert set(hour.answers.values()) == {1}
    people = sum(visit.outcome == "answered" for visit in hour.visits)
    # A line whose answer has come is done at once, but for those that are being written down as the hour ends.
    assert 0 <= len(hour.answered_s) - people - hour.lines <= WANTED
    assert hour.lines > 800


def test_nobody_waits_for_longer_than_the_queue(hour: Hour) -> None:
    assert max(visit.waited_s for visit in hour.visits) <= _QUEUE_S + 4


def test_people_are_answered_at_once_where_the_provider_has_room(hour: Hour) -> None:
    """Beside batches that want all of it; not counting the first minute after it has changed."""
    visits = [
        visit
        for visit in hour.visits
        if not visit.odd
        and (phase := hour.phase(visit.at_s)).mood == "well"
        and phase.takes >= 8
        and phase.answer_s < 20
        and visit.at_s - phase.from_s >= 60
    ]
    assert len(visits) >= 150
    assert sum(visit.outcome == "answered" for visit in visits) >= 0.96 * len(visits)
    assert sum(visit.waited_s for visit in visits) <= 1.0 * len(visits)


def test_no_limit_runs_away_and_none_stays_when_the_provider_takes_less(hour: Hour) -> None:
    assert max(sample.limit for sample in hour.samples) <= 2 * WANTED
    assert all(sample.limit <= 2 * 8 for sample in hour.samples if 630 <= sample.at_s < 1200)
    assert all(sample.limit <= 2 * 8 for sample in hour.samples if sample.at_s >= 3060)


@pytest.mark.parametrize(("from_s", "until_s"), [(1260, 1800), (2160, 2400), (2460, 3000)])
def test_no_limit_sticks_when_the_provider_is_well_again(hour: Hour, from_s: float, until_s: float) -> None:
    """It has refused everything for a minute, or was slow, or out."""
    late = [sample.limit for sample in hour.samples if until_s - 60 <= sample.at_s < until_s]
    assert from_s < until_s
    assert max(late) >= 4


def test_a_breaker_opens_in_trouble_and_closes_with_the_first_answer_after_it(hour: Hour) -> None:
    """A probe comes six seconds after the end at most, or with the next who calls: people come every twelve seconds."""
    open_s = [sample.at_s for sample in hour.samples if sample.is_open]
    failing = [at_s for at_s in open_s if 1800 <= at_s <= 1860 + 2 * (_COOL_DOWN_S + _SLOWEST_ANSWER_S)]
    unreachable = [at_s for at_s in open_s if 2400 <= at_s <= 2460 + 2 * (_COOL_DOWN_S + 25)]
    assert len(failing) >= 30
    assert len(unreachable) >= 30
    assert failing + unreachable == open_s


def test_trouble_costs_few_calls(hour: Hour) -> None:
    for name in ("fails", "unreachable"):
        phase = next(phase for phase in SMALL.timetable if phase.name == name)
        failed = [at_s for at_s in hour.failed_s if phase.from_s <= at_s < hour.until_s(phase)]
        # Until it is known, and a probe each five to six seconds.
        assert 5 <= len(failed) <= 15 + 60 / 5


def test_requests_that_always_fail_keep_out_nobody_but_their_own_key(hour: Hour) -> None:
    begin_s, end_s = SMALL.odd
    odd = [visit for visit in hour.visits if visit.odd]
    others = [visit for visit in hour.visits if not visit.odd and begin_s <= visit.at_s < end_s]
    assert len(odd) >= 60
    assert {visit.outcome for visit in others} <= {"answered", "upstream_rate_limited"}
    assert sum(visit.outcome == "answered" for visit in others) >= len(others) - 1
    called = sum(begin_s <= at_s < end_s + 5 for at_s in hour.failed_s)
    assert called <= 0.5 * len(odd)


def test_what_the_provider_could_do_is_used(hour: Hour) -> None:
    """Of its slots while it was well, and that somebody wanted."""
    assert goodput(hour) >= 0.6
