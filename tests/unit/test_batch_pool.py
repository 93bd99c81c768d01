"""Many lines at once: how many, for how long, and what is left over. Tables are moto's; the provider is a script."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from local.idle_clock import idle_clock
from naru.batch_jobs import Job, RangeRun
from naru.batch_lines import Ran
from naru.batch_pool import Pool
from naru.batch_queue import Message
from naru.batch_store import Batch
from tests.batch_doubles import Known, Script, Sharing
from tests.batch_world import KEY, World, batch_world, claim, store


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with batch_world() as world:
        yield world


def pool_of(world: World, script: Any, sharing: Any, **options: Any) -> Pool:
    settings: dict[str, Any] = {
        "deployment": "holysheep/hyperclova-x-omni",
        "worker": "me",
        "lines": script,
        "progress": world.progress,
        "batches": world.store,
        "reader": world.reader,
        "health": sharing,
        "meters": Known(world),
        "most_lines": 64,
        "lease_s": 60.0,
        "remaining_s": lambda: 800.0,
        "stop_s": 150.0,
    }
    return Pool(**(settings | options))


def runs_of(world: World, batch: Batch) -> list[RangeRun]:
    job = Job(batch)
    return [RangeRun(Message("run", KEY, batch.batch_id, 0, of), of, job) for of in world.reader.plan(batch)]


def go(pool: Pool, runs: list[RangeRun], patience_s: float = 60.0) -> None:
    async def main() -> None:
        async with asyncio.timeout(patience_s):
            await pool.run(runs)

    with idle_clock() as run:
        run(main())


def test_all_ranges_end_and_the_share_is_given_back(world: World) -> None:
    batch = world.started(7)
    script, sharing, runs = Script(world), Sharing(), runs_of(world, batch)
    go(pool_of(world, script, sharing), runs)
    assert all(run.over for run in runs)
    assert sorted(script.ran) == list(range(7))
    read = world.read(batch)
    assert (read.ranges_ended, read.values["completed"], read.values["failed"]) == (4, 7, 0)
    assert sharing.let_go_of
    assert max(sharing.wanted) == 7


def test_the_share_may_change_while_lines_run(world: World) -> None:
    """A third more than slots are on their way, since only the call takes one; never more than that."""
    batch = world.started(24)
    shares = iter([1, 1, 8, 8, 8, 2])
    script = Script(world, pause_s=0.1)
    go(pool_of(world, script, Sharing(lambda: next(shares, 4))), runs_of(world, batch))
    assert 4 < script.most <= 8 + 3
    assert world.read(batch).values["completed"] == 24


def test_a_refusal_wakes_a_worker_that_waits_for_its_lines(world: World) -> None:
    """Not when a line ends next, nor when the share is due: both are half a minute away."""
    batch = world.started(2)
    sharing = Sharing(retry_after_s=30.0)
    told = asyncio.Event()

    class Waiting(Script):
        async def run(self, *arguments: Any, **options: Any) -> Ran:
            if not told.is_set():
                told.set()
                asyncio.get_running_loop().call_later(0.05, sharing.refused.set)
            async with asyncio.timeout(10):
                await sharing.asked_again.wait()
            return await super().run(*arguments, **options)

    go(pool_of(world, Waiting(world), sharing), runs_of(world, batch))
    assert world.read(batch).values["completed"] == 2


def test_a_line_with_a_result_is_not_run_again(world: World) -> None:
    batch = world.started(4)
    store(world, batch, 1)
    script, runs = Script(world), runs_of(world, batch)
    go(pool_of(world, script, Sharing()), runs)
    assert sorted(script.ran) == [0, 2, 3]
    # The messages came again.
    again = Script(world)
    go(pool_of(world, again, Sharing()), second := runs_of(world, batch))
    assert again.ran == []
    assert all(run.over for run in second)
    assert world.read(batch).values["completed"] == 4


def test_without_a_share_everything_is_left_over_at_once(world: World) -> None:
    """A paid function does not wait for a provider that rests."""
    batch = world.started(4)
    script, runs = Script(world), runs_of(world, batch)
    go(pool_of(world, script, Sharing(lambda: 0, retry_after_s=30.0)), runs)
    assert script.ran == []
    assert all(run.wait_s is not None and 0 < run.wait_s <= 30 for run in runs)
    assert claim(world, batch, 0, worker="other") == "claimed"


def test_a_key_at_its_limit_is_waited_for_in_the_queue(world: World) -> None:
    batch = world.started(4)
    script = Script(world, say=lambda index: Ran("limited", 20.0) if index else None)
    runs = runs_of(world, batch)
    go(pool_of(world, script, Sharing(lambda: 1)), runs)
    assert all(run.wait_s is not None and 0 < run.wait_s <= 20 for run in runs)
    assert world.progress.line_states(batch.batch_id, runs[0].of)[0].outcome == "completed"
    assert claim(world, batch, 0, worker="other") == "claimed"


def test_a_line_that_failed_is_tried_again_here_if_that_is_soon(world: World) -> None:
    batch = world.started(2)
    failed: set[int] = set()

    def once(index: int) -> Ran | None:
        if index in failed:
            return None
        failed.add(index)
        return Ran("later", 0.05)

    script = Script(world, say=once)
    go(pool_of(world, script, Sharing()), runs := runs_of(world, batch))
    assert sorted(script.ran) == [0, 0, 1, 1]
    assert all(run.over for run in runs)


def test_a_range_of_another_worker_is_left_to_it(world: World) -> None:
    batch = world.started(4)
    claim(world, batch, 0, worker="other")
    go(pool_of(world, Script(world), Sharing()), runs := runs_of(world, batch))
    assert (runs[0].over, runs[0].wait_s) == (False, 60.0)
    assert runs[1].over


def states(world: World, batch: Batch, of: Any) -> Any:
    return world.progress.line_states(batch.batch_id, of).values()


def test_lines_wait_for_what_the_others_of_the_batch_have_set_aside(world: World) -> None:
    """There is budget for two at a time: no more are tried while these run, and each waits only for its turn."""
    batch = world.started(12)
    script = Script(world, pause_s=0.02)
    script.say = lambda _: Ran("short", 0.01) if script.inside >= 2 else None
    go(pool_of(world, script, Sharing(lambda: 8)), runs := runs_of(world, batch))
    assert all(run.over for run in runs)
    assert world.read(batch).values["completed"] == 12
    assert len(script.ran) <= 12 + 8 + 3 + 12  # the first round, and at most one too many for each that ends


def test_a_batch_whose_budget_others_hold_is_left_over_until_they_may_have_ended(world: World) -> None:
    """The worker does not wait for them; what it has learned of its lines stays with them."""
    batch = world.started(8)
    script = Script(world, say=lambda _: Ran("short", 30.0))
    go(pool_of(world, script, Sharing()), runs := runs_of(world, batch))
    assert len(script.ran) <= 6
    assert all(run.wait_s is not None and 0 < run.wait_s <= 30 for run in runs)
    assert claim(world, batch, 0, worker="other") == "claimed"


def test_a_line_that_is_too_dear_for_now_does_not_stop_the_others(world: World) -> None:
    batch = world.started(6)
    script = Script(world, say=lambda index: Ran("short", 30.0) if index == 0 else None)
    go(pool_of(world, script, Sharing(lambda: 1)), runs := runs_of(world, batch))
    assert [run.over for run in runs] == [False, True, True]
    assert sorted(script.ran) == list(range(6))


def test_trouble_that_only_the_operator_can_end_pauses_the_batch_for_all_workers(world: World) -> None:
    """The first worker meets it with some lines; the others with none while the wait lasts, and then with one; each time
    the wait is twice as long, up to five minutes. A line that is answered lets them all go on.
    """
    batch = world.started(8)
    blocked = Script(world, say=lambda _: Ran("blocked", 30.0), pause_s=0.02)
    go(pool_of(world, blocked, Sharing()), runs := runs_of(world, batch))
    assert 1 <= len(blocked.ran) <= 6
    assert all(run.wait_s is not None and 0 < run.wait_s <= 30 for run in runs)
    batch = world.read(batch)
    assert batch.wait_s == 30
    assert batch.waits_until_s > time.time()
    none = Script(world)
    go(pool_of(world, none, Sharing()), runs := runs_of(world, batch))
    assert none.ran == []
    assert all(run.wait_s is not None for run in runs)
    for wait_s, next_s in ((30, 60), (200, 300), (300, 300)):
        world.store.set(world.read(batch), waits_until_s=int(time.time()) - 1, wait_s=wait_s)
        again = Script(world, say=lambda _: Ran("blocked", 30.0))
        go(pool_of(world, again, Sharing()), runs_of(world, world.read(batch)))
        assert (len(again.ran), world.read(batch).wait_s) == (1, next_s)
    world.store.set(world.read(batch), waits_until_s=int(time.time()) - 1)
    well = Script(world, pause_s=0.02)
    go(pool_of(world, well, Sharing()), runs_of(world, world.read(batch)))
    assert world.read(batch).values["completed"] == 8
    assert well.most > 1


@pytest.mark.parametrize("what", ["deleted", "shorter", "longer", "other bytes of the same size"])
def test_a_range_that_is_not_in_the_input_any_more_ends(
    world: World, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not tried again for ever, ranges that were read before are run, and no bytes of the file are logged."""
    batch = world.started(4, input_etag=None)
    name = batch.input_object
    content = world.objects.read(name)
    runs = runs_of(world, batch)
    go(pool_of(world, Script(world), Sharing()), runs[:1])
    if what == "deleted":
        world.objects.delete(name)
    else:
        other = b'{"a": "secret-word"}' * (len(content) // 20 + 1)
        size = {"shorter": len(content) // 3, "longer": len(content) + 1}.get(what, len(content))
        world.objects.put(name, other[:size])
    script = Script(world)
    go(pool_of(world, script, Sharing()), runs[1:])
    assert (script.ran, [run.over for run in runs]) == ([], [True, True])
    read = world.read(batch)
    assert (read.ranges_ended, read.values["completed"], read.values["failed"]) == (2, 2, 2)
    assert world.progress.range_states(batch.batch_id)[1].end_code == "input_unreadable"
    assert "secret-word" not in caplog.text
    assert all(record.exc_info is None for record in caplog.records)
    world.phases.finish(read)
    ended = world.read(batch)
    assert (ended.phase, ended.values["completed"], ended.values["failed"]) == ("completed", 2, 2)
    codes = {line["error"]["code"] for line in world.file_lines(ended, "error")}
    assert codes == {"input_unreadable"}
    assert [each["status"] for each in world.reader.results(ended, 0, 4)] == ["success"] * 2 + ["error"] * 2


def test_a_cancelled_batch_begins_nothing_more(world: World) -> None:
    batch = world.started(30)
    script = Script(world, pause_s=0.3)

    def say(index: int) -> Ran | None:
        world.store.cancel(batch, now_s=1)
        return None

    script.say = say
    go(pool_of(world, script, Sharing(lambda: 2)), runs := runs_of(world, batch))
    assert all(run.over for run in runs)
    assert len(script.ran) < 30
    assert all(state.until_ms == 0 for state in world.progress.range_states(batch.batch_id).values())


def test_before_the_functions_time_is_over_nothing_begins(world: World) -> None:
    """What is on its way ends and is stored; the rest goes back at once."""
    batch = world.started(6)
    began_s = time.monotonic()
    script = Script(world, pause_s=0.2)
    pool = pool_of(
        world, script, Sharing(lambda: 2), remaining_s=lambda: 0.15 - (time.monotonic() - began_s), stop_s=0.0
    )
    go(pool, runs := runs_of(world, batch))
    assert len(script.ran) <= 3
    assert [run.wait_s for run in runs if run.wait_s is not None]
    assert sum(state.outcome == "completed" for of in world.reader.plan(batch) for state in states(world, batch, of)) == len(script.ran)  # fmt: skip


def test_a_key_keeps_a_part_of_what_it_may_do_at_once(world: World) -> None:
    batch = world.started(12)
    script = Script(world, pause_s=0.1)
    pool = pool_of(world, script, Sharing(lambda: 10), meters=Known(world, max_parallel=5))
    go(pool, runs_of(world, batch))
    assert script.most == 4


def test_a_worker_that_lost_its_range_leaves_the_rest_of_it(world: World) -> None:
    batch = world.started(2)
    runs = runs_of(world, batch)
    pool = pool_of(world, Script(world), Sharing(), lease_s=0.0)

    async def main() -> None:
        pool._ranges = runs
        await pool._open(runs[0])
        assert claim(world, batch, 0, worker="other") == "claimed"
        await pool.renew()

    asyncio.run(main())
    assert runs[0].wait_s is not None
    assert not runs[0].lines
