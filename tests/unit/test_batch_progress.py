"""Ranges and lines: who has them, and that each has one end."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from naru.batch_progress import LineState
from naru.batch_store import Batch
from tests.batch_world import World, batch_world, claim, store


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with batch_world() as world:
        yield world


@pytest.fixture
def batch(world: World) -> Batch:
    return world.started(4)


def end(world: World, batch: Batch, index: int, worker: str) -> bool:
    return world.progress.end_range(batch, index, worker=worker, completed=1, failed=1, end_code=None)


def test_a_range_is_one_workers_until_its_lease_is_over(world: World, batch: Batch) -> None:
    assert claim(world, batch, 0, worker="a") == "claimed"
    assert claim(world, batch, 0, worker="b", later_s=30.0) == "taken"
    assert claim(world, batch, 0, worker="a") == "claimed"  # its own write, repeated
    assert claim(world, batch, 0, worker="b", later_s=90.0) == "claimed"
    # The one before it was only slow: it learns that the range is not its own.
    for kept in (
        world.progress.renew_range(batch.batch_id, 0, worker="a", until_ms=10**15, completed=0, failed=0),
        world.progress.release_range(batch.batch_id, 0, worker="a"),
        end(world, batch, 0, "a"),
    ):
        assert not kept
    assert end(world, batch, 0, "b")
    assert claim(world, batch, 0, worker="c") == "ended"


def test_a_range_that_is_released_can_be_had_at_once(world: World, batch: Batch) -> None:
    assert claim(world, batch, 0, worker="a") == "claimed"
    assert world.progress.release_range(batch.batch_id, 0, worker="a")
    assert claim(world, batch, 0, worker="b") == "claimed"


def test_a_range_is_counted_once(world: World, batch: Batch) -> None:
    """Also when the answer to the write is lost and it is repeated."""
    claim(world, batch, 0, worker="a")
    assert end(world, batch, 0, "a")
    assert not end(world, batch, 0, "a")
    claim(world, batch, 1, worker="a")
    assert end(world, batch, 1, "a")
    read = world.read(batch)
    assert (read.ranges_ended, read.values["completed"], read.values["failed"]) == (2, 2, 2)


@pytest.mark.parametrize("phase", ["cancelling", "finalizing"])
def test_no_range_of_a_batch_is_claimed_that_is_not_in_progress(world: World, batch: Batch, phase: str) -> None:
    """The check and the claim are one transaction: nothing begins after the phase has changed."""
    if phase == "cancelling":
        assert world.store.cancel(batch, now_s=1)
    else:
        assert world.store.finalize(batch, ending="expired", now_s=1)
    assert claim(world, batch, 0) == "closed"
    assert world.progress.range_states(batch.batch_id) == {}


def test_no_range_is_claimed_when_the_time_is_over(world: World) -> None:
    batch = world.started(1, expires_at=int(time.time()))
    assert claim(world, batch, 0) == "closed"


def test_the_first_result_of_a_line_stands(world: World, batch: Batch) -> None:
    """Of two who were both paid for: the second is told so, and the line is not claimed again."""
    first = LineState(0, None)
    assert world.progress.claim_line(batch, first, worker="a", request_id="req_a")
    lost = LineState(0, None, worker="a", request_id="req_a")
    assert world.progress.claim_line(batch, lost, worker="b", request_id="req_b")
    assert store(world, batch, 0, request_id="req_b")
    assert store(world, batch, 0, request_id="req_b")  # its own write, repeated
    assert not store(world, batch, 0, request_id="req_a")
    assert not world.progress.claim_line(batch, first, worker="c", request_id="req_c")
    of = world.reader.plan(batch)[0]
    (found,) = world.progress.results(batch.batch_id, of)
    assert (found["index"], found["request_id"]) == (0, "req_b")
    assert world.progress.line_states(batch.batch_id, of)[0].outcome == "completed"


@pytest.mark.parametrize(
    ("seen", "claimed"),
    [
        pytest.param(LineState(0, None), False, id="seen free"),
        pytest.param(LineState(0, None, worker="dead", request_id="req_dead"), False, id="seen with another's claim"),
        pytest.param(LineState(0, None, worker="a", request_id="req_a"), True, id="seen as it is"),
    ],
)
def test_a_line_is_claimed_only_as_it_was_seen(world: World, batch: Batch, seen: LineState, claimed: bool) -> None:
    """Of two runs that look at the same time, one gets it. A write that is repeated does no harm."""
    for _ in range(2):
        assert world.progress.claim_line(batch, LineState(0, None), worker="a", request_id="req_a")
    assert world.progress.claim_line(batch, seen, worker="b", request_id="req_b") == claimed
    has_it = world.progress.line_state(batch.batch_id, 0)
    assert (has_it.worker, has_it.request_id) == (("b", "req_b") if claimed else ("a", "req_a"))


def test_a_line_that_was_put_back_is_nobodys_and_one_that_was_lost_is_somebodys(world: World, batch: Batch) -> None:
    of = world.reader.plan(batch)[0]
    for index in (0, 1):
        world.progress.claim_line(batch, LineState(index, None), worker="a", request_id=f"req_{index}")
    world.progress.put_back(batch.batch_id, LineState(0, None, tries=3, request_id="req_0"))
    # One that was thought dead must not take the line from who has it now.
    world.progress.put_back(batch.batch_id, LineState(1, None, tries=9, request_id="req_before"))
    states = world.progress.line_states(batch.batch_id, of)
    assert (states[0].worker, states[0].tries) == (None, 3)
    assert (states[1].worker, states[1].request_id, states[1].tries) == ("a", "req_1", 0)


def test_a_batch_ends_once_and_is_open_until_then(world: World, batch: Batch) -> None:
    assert world.store.finalize(batch, ending="completed", now_s=1)
    assert not world.store.finalize(batch, ending="completed", now_s=1)
    assert not world.store.cancel(batch, now_s=1)
    assert (batch.key_id, batch.batch_id) in set(world.store.open_batches())
    assert world.store.end(batch, "completed", {"completed_at": 1})
    assert not world.store.end(batch, "completed", {"completed_at": 2})
    assert world.read(batch).values["completed_at"] == 1
    assert (batch.key_id, batch.batch_id) not in set(world.store.open_batches())
