"""What a batch goes through: each step may be taken twice, by two at once, or by one who dies in the middle of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from naru.attributes import to_item
from naru.batch_phases import Phases
from naru.batch_progress import LineState
from naru.batch_queue import Message
from naru.batch_reader import plan_name
from naru.batch_store import Batch
from naru.batches_api import Batches
from naru.errors import NotFoundError
from naru.file_store import Page
from naru.files_api import Files
from naru.objects import MissingObjectError
from tests.accounts import CATALOG
from tests.batch_world import KEY, OMNI, Died, World, batch_world, claim, store
from tests.meters import USD, put_organisation


@pytest.fixture
def world() -> Iterator[World]:
    with batch_world() as world:
        yield world


def is_open(world: World, batch: Batch) -> bool:
    return (KEY, batch.batch_id) in set(world.store.open_batches())


# ── Checking ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_checked_batch_is_in_progress_and_every_range_has_a_message(world: World) -> None:
    batch = world.submit(5)
    world.phases.check(batch, CATALOG)
    messages = world.take()
    assert [(m.do, m.range.first, m.range.count) for m in messages if m.range] == [
        ("run", 0, 2),
        ("run", 2, 2),
        ("run", 4, 1),
    ]
    batch = world.read(batch)
    assert (batch.phase, batch.model, batch.values["lines"], batch.ranges) == ("in_progress", OMNI, 5, 3)
    # The message came again: the phase has moved on and all has been sent.
    world.phases.check(batch, CATALOG)
    assert world.take() == []


def deaths(
    world: World, make: Callable[[], Batch], step: Callable[[Phases, Batch], object], *, more_than: int
) -> Iterator[Batch]:
    """Lets a step die at its first call, that of another batch at its second, and so on until it lives, which must take
    more than so many calls. Whoever comes next does the step again; yields each batch after that.
    """
    for died_at in range(1, 100):
        batch = make()
        world.revive()
        world.die_at = died_at
        try:
            step(world.phases, batch)
        except Died:
            world.revive()
            assert step(world.phases, world.read(batch)) is None
            yield batch
        else:
            break
    assert more_than < died_at < 99


def check(phases: Phases, batch: Batch) -> None:
    phases.check(batch, CATALOG)


def without_its_file(world: World) -> Batch:
    batch = world.submit(1)
    world.objects.delete(batch.input_object)
    return batch


def test_whoever_dies_while_checking_has_lost_nothing() -> None:
    """At each call: the message comes again, and in the end each range has been sent."""
    with batch_world(watched=True) as world:
        for batch in deaths(world, lambda: world.submit(3), check, more_than=6):
            assert {message.range.index for message in world.take() if message.range} == {0, 1}
            assert world.read(batch).phase == "in_progress"


def test_a_batch_cancelled_while_it_is_checked_is_not_started(world: World) -> None:
    batch = world.submit(3)
    assert world.store.cancel(batch, now_s=5)
    world.phases.check(batch, CATALOG)
    assert [message.do for message in world.take()] == ["finish"]
    assert world.phases.finish(world.read(batch)) is None
    ended = world.read(batch)
    assert (ended.phase, ended.values.get("output_file_id"), is_open(world, batch)) == ("cancelled", None, False)


@pytest.mark.parametrize(("budget_usd", "phase"), [(1, "in_progress"), (0, "failed")])
def test_a_batch_may_be_checked_against_the_budget(world: World, budget_usd: int, phase: str) -> None:
    """If it asks for that; the worst case counts, and the organisation's budget as well as the key's."""
    put_organisation(world.dynamodb, "MeterTable", budget_pico_usd=budget_usd * USD)
    for check_budget in (True, False):
        batch = world.submit(3, **({"check_budget": True} if check_budget else {}))
        world.phases.check(batch, CATALOG)
        read = world.read(batch)
        assert read.phase == (phase if check_budget else "in_progress")
        if read.phase == "failed":
            (error,) = read.values["errors"]
            assert (error["code"], error["param"]) == ("insufficient_quota", "check_budget")
            assert "0 USD" in error["message"]


def test_a_batch_without_its_file_fails(world: World) -> None:
    batch = without_its_file(world)
    world.phases.check(batch, CATALOG)
    assert world.read(batch).values["errors"][0]["code"] == "invalid_input_file"
    assert [(told["id"], told["status"]) for told in world.told()] == [(batch.batch_id, "failed")]
    assert not is_open(world, batch)


def test_the_failure_of_a_batch_is_told_though_its_teller_dies() -> None:
    """At each call: the message comes again, and in the end the topic has heard of it."""
    with batch_world(watched=True) as world:
        for batch in deaths(world, lambda: without_its_file(world), check, more_than=3):
            assert batch.batch_id in {told["id"] for told in world.told()}


def batches_of(world: World) -> Batches:
    return Batches(
        store=world.store,
        progress=world.progress,
        files=Files(world.files),
        reader=world.reader,
        queue=world.queue,
        window_s=86_400,
    )


# ── Showing ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_list_counts_the_lines_that_are_done_as_the_batch_itself_does(world: World) -> None:
    batch = world.started(3)
    claim(world, batch, 0)
    assert world.progress.renew_range(batch.batch_id, 0, worker="w", until_ms=10**14, completed=1, failed=1)
    batches = batches_of(world)
    counts = {"total": 3, "completed": 1, "failed": 1}
    assert batches.retrieve(KEY, batch.batch_id)["request_counts"] == counts
    assert [each["request_counts"] for each in batches.page(KEY, {})["data"]] == [counts]


def test_results_can_be_read_though_the_input_was_deleted(world: World) -> None:
    """What was not run has nothing but its input that says how it was called. Without the plan nothing can be found."""
    batch = world.started(3)
    world.run_range(batch, world.reader.plan(batch)[0])
    assert world.store.cancel(batch, now_s=5)
    world.phases.finish(world.read(batch))
    batches = batches_of(world)
    batches.delete_file(KEY, batch.values["input_file_id"])
    shown = batches.results(KEY, batch.batch_id, {})["data"]
    assert [(each["custom_id"], each["status"]) for each in shown] == [
        ("c0", "success"),
        ("c1", "success"),
        (None, "error"),
    ]
    assert shown[2]["error"]["code"] == "batch_cancelled"
    world.objects.delete(plan_name(batch))
    with pytest.raises(NotFoundError, match="not kept any more"):
        batches.results(KEY, batch.batch_id, {})


# ── Finishing ──────────────────────────────────────────────────────────────────────────────────────────────


def ready(world: World) -> Batch:
    """A batch of three lines in two ranges; all have ended, the last one badly."""
    batch = world.started(3)
    for of in world.reader.plan(batch):
        world.run_range(batch, of, failing=of.index)
    return world.read(batch)


def assert_finished(world: World, batch: Batch) -> None:
    ended = world.read(batch)
    assert ended.phase == "completed"
    output, errors = world.file_lines(ended, "output"), world.file_lines(ended, "error")
    assert [line["custom_id"] for line in output] == ["c0", "c1"]
    assert [(line["custom_id"], line["error"]["code"]) for line in errors] == [("c2", "worker_died")]
    assert (ended.values["completed"], ended.values["failed"]) == (2, 1)
    assert ended.values["tokens"] == {"prompt": 20, "cached": 4, "completion": 10, "reasoning": 2}
    assert not is_open(world, batch)


def test_a_batch_is_finished_once_however_often_it_is_asked_for(world: World) -> None:
    batch = ready(world)
    for _ in range(3):
        assert world.phases.finish(batch) is None
        assert world.phases.finish(world.read(batch)) is None
    assert_finished(world, batch)
    assert [told["status"] for told in world.told()] == ["completed"]


@pytest.mark.slow
def test_whoever_dies_while_finishing_leaves_the_rest_to_the_next_one() -> None:
    """At each call: the files are whole, the counts exact, and the end is told."""
    with batch_world(watched=True) as world:
        for batch in deaths(world, lambda: ready(world), Phases.finish, more_than=12):
            assert_finished(world, batch)
            assert [told["status"] for told in world.told()] in (["completed"], ["completed"] * 2)


def test_of_two_who_finish_with_different_results_one_makes_all_of_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has looked at all lines when a worker that was thought dead brings an answer and the second one finishes.
    What it writes then is nobody's: no line is in both files or in none, and the counts are those of the files.
    """
    batch = world.started(4)
    world.run_range(batch, world.reader.plan(batch)[0])
    claim(world, batch, 1, later_s=-100.0)
    assert world.store.cancel(batch, now_s=int(time.time()))
    first, second = world.phases, world.phases
    really, written = first._write_files, []

    def meanwhile(*args: Any, **options: Any) -> Any:
        written.append(really(*args, **options))
        assert store(world, batch, 3)
        assert second.finish(world.read(batch)) is None
        return written[0]

    monkeypatch.setattr(first, "_write_files", meanwhile)
    assert first.finish(world.read(batch)) is None
    ended = world.read(batch)
    assert ended.phase == "cancelled"
    assert [line["custom_id"] for line in world.file_lines(ended, "output")] == ["c0", "c1", "c3"]
    assert [line["custom_id"] for line in world.file_lines(ended, "error")] == ["c2"]
    assert (ended.values["completed"], ended.values["failed"]) == (3, 1)
    assert {file.file_id for file in written[0][1]}.isdisjoint(
        {ended.values["output_file_id"], ended.values["error_file_id"]}
    )
    listed, _ = world.files.page(KEY, Page(None, 100), now_s=int(time.time()), purpose="batch_output")
    assert len(listed) == 2
    assert len(world.told()) == 1


def test_an_answer_that_comes_after_the_end_changes_nothing(world: World) -> None:
    """Its line was called for when the batch ended: then it got its end, which is the same in the files and in the results."""
    batch = world.started(2)
    claim(world, batch, 0, later_s=-100.0)
    assert world.progress.claim_line(batch, LineState(0, None), worker="w", request_id="req_0")
    assert world.store.cancel(batch, now_s=int(time.time()))
    assert world.phases.finish(world.read(batch)) is None
    assert not store(world, batch, 0)
    assert not world.progress.end_range(batch, 0, worker="w", completed=0, failed=2, end_code=None)
    ended = world.read(batch)
    assert (ended.values["completed"], ended.values["failed"]) == (0, 2)
    assert [line["error"]["code"] for line in world.file_lines(ended, "error")] == ["batch_cancelled"] * 2
    assert [(each["custom_id"], each["status"]) for each in world.reader.results(ended, 0, 2)] == [
        ("c0", "error"),
        ("c1", "error"),
    ]


def test_a_batch_with_lines_left_is_not_finished(world: World) -> None:
    batch = world.started(3)
    world.run_range(batch, world.reader.plan(batch)[0])
    assert world.phases.finish(world.read(batch)) is None
    assert world.read(batch).phase == "in_progress"


@pytest.mark.parametrize(("how", "code"), [("cancelled", "batch_cancelled"), ("expired", "batch_expired")])
def test_an_early_end_waits_for_what_is_on_its_way(world: World, how: str, code: str) -> None:
    """A worker that is alive is waited for; after its lease it counts as dead. What has a result keeps it."""
    batch = world.started(6)
    first, second, _ = world.reader.plan(batch)
    world.run_range(batch, first)
    claim(world, batch, second.index, worker="alive", lease_s=60.0)
    store(world, batch, second.first)
    if how == "cancelled":
        assert world.store.cancel(batch, now_s=int(time.time()))
    else:
        key = to_item({"shelf": f"batches#{KEY}", "entry": batch.batch_id})
        world.dynamodb.update_item(
            TableName="BatchTable",
            Key=key,
            UpdateExpression="SET expires_at = :now",
            ExpressionAttributeValues=to_item({":now": int(time.time())}),
        )
    wait_s = world.phases.finish(world.read(batch))
    assert wait_s is not None
    assert 0 < wait_s <= 5
    # Nothing more begins meanwhile.
    assert claim(world, batch, 2, worker="late") == "closed"
    world.offset_s = 61.0
    assert world.phases.finish(world.read(batch)) is None
    ended = world.read(batch)
    assert ended.phase == how
    assert [line["custom_id"] for line in world.file_lines(ended, "output")] == ["c0", "c1", "c2"]
    errors = world.file_lines(ended, "error")
    assert [(line["custom_id"], line["error"]["code"]) for line in errors] == [(f"c{i}", code) for i in (3, 4, 5)]
    assert (ended.values["completed"], ended.values["failed"]) == (3, 3)


def test_results_are_read_while_the_batch_runs_and_when_it_has_ended(world: World) -> None:
    batch = world.started(5)
    world.run_range(batch, world.reader.plan(batch)[0], failing=1)
    shown = world.reader.results(world.read(batch), 0, 4)
    assert [(r["index"], r["custom_id"], r["status"]) for r in shown] == [
        (0, "c0", "error"),
        (1, "c1", "success"),
        (2, "c2", "pending"),
        (3, "c3", "pending"),
    ]
    world.store.cancel(batch, now_s=1)
    world.phases.finish(world.read(batch))
    shown = world.reader.results(world.read(batch), 3, 10)
    assert [(r["custom_id"], r["error"]["code"]) for r in shown] == [
        ("c3", "batch_cancelled"),
        ("c4", "batch_cancelled"),
    ]


@pytest.mark.parametrize("other", ["garbage", "lines without a custom_id"])
def test_a_batch_whose_input_was_overwritten_ends(world: World, other: str) -> None:
    """By the URL of its upload, which takes as many other bytes for an hour."""
    batch = world.started(3)
    content = world.objects.read(batch.input_object)
    replaced = b"x" * len(content) if other == "garbage" else content.replace(b"custom_id", b"custom_xx")
    world.objects.put(batch.input_object, replaced)
    assert world.store.cancel(batch, now_s=int(time.time()))
    assert world.phases.finish(world.read(batch)) is None
    ended = world.read(batch)
    assert ended.phase == "cancelled"
    assert [line["custom_id"] for line in world.file_lines(ended, "error")] == [None] * 3


def test_a_range_of_an_input_that_was_overwritten_has_no_lines(world: World) -> None:
    batch = world.started(3)
    size_bytes = len(world.objects.read(batch.input_object))
    world.objects.put(batch.input_object, b"x" * size_bytes)
    with pytest.raises(MissingObjectError):
        world.reader.input_lines(batch, world.reader.plan(batch)[0])


# ── Looking after them ─────────────────────────────────────────────────────────────────────────────────────


def test_batches_whose_message_was_lost_are_found(world: World) -> None:
    """One was never checked, one has ended and nobody sent for its files, one hears nothing of its ranges."""
    unchecked, finished, silent = world.submit(1), ready(world), world.started(3)
    world.run_range(silent, world.reader.plan(silent)[0])
    world.take()
    assert world.phases.tend() == {"open": 3, "checked": 0, "finished": 1, "sent_anew": 0}
    assert [(message.do, message.batch_id) for message in world.take()] == [("finish", finished.batch_id)]
    world.phases.finish(finished)
    world.offset_s = 3601
    assert world.phases.tend() == {"open": 2, "checked": 1, "finished": 0, "sent_anew": 1}
    found = {(m.do, m.batch_id, m.generation, m.range.index if m.range else None) for m in world.take()}
    assert found == {("check", unchecked.batch_id, 0, None), ("run", silent.batch_id, 1, 1)}
    # It was heard of now: not again the next time.
    assert world.phases.tend()["sent_anew"] == 0
    assert world.read(silent).generation == 1


def test_a_batch_out_of_time_is_found(world: World) -> None:
    batch = world.started(1)
    world.offset_s = 86_401
    assert world.phases.tend()["finished"] == 1
    (message,) = world.take()
    assert message == Message("finish", KEY, batch.batch_id)
    world.phases.finish(world.read(batch))
    assert world.read(batch).phase == "expired"


def test_the_end_is_told_with_counts_and_without_content(world: World) -> None:
    batch = ready(world)
    world.phases.finish(batch)
    (told,) = world.told()
    assert told["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert told["output_file_id"]
    text = str(told)
    assert "from" not in text
    assert "content" not in text


def test_large_results_lie_in_s3_and_come_into_the_files(world: World) -> None:
    from naru.batch_reader import result_name
    from naru.batch_results import answered
    from naru.pricing import Usage

    batch = world.started(1)
    claim(world, batch, 0)
    body = b'{"text":"' + b"x" * 500_000 + b'"}'
    usage = Usage(prompt_tokens=1, completion_tokens=1)
    result = answered(batch.batch_id, 0, "c0", request_id="req_1", body=body, usage=usage)
    assert world.progress.claim_line(batch, LineState(0, None), worker="w", request_id="req_1")
    name = result_name(batch, 0, "req_1")
    world.objects.put(name, result.content)
    assert world.progress.store(batch, 0, request_id="req_1", result=result, object_name=name)
    world.progress.end_range(batch, 0, worker="w", completed=1, failed=0, end_code=None)
    world.phases.finish(world.read(batch))
    (line,) = world.file_lines(world.read(batch), "output")
    assert len(line["response"]["body"]["text"]) == 500_000


def test_files_of_many_parts_are_written_part_by_part(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    import naru.objects

    monkeypatch.setattr(naru.objects, "PART_BYTES", 5 << 20)
    writer = world.objects.writer("31-days/k/f")
    pieces = [bytes([65 + i]) * (1 << 20) for i in range(12)]
    sizes: list[Any] = []
    for piece in pieces:
        writer.write(piece)
        sizes.append(len(writer._buffer))
    writer.close()
    assert max(sizes) < 6 << 20
    assert world.objects.read("31-days/k/f") == b"".join(pieces)
    assert world.objects.size("31-days/k/f") == writer.size_bytes == 12 << 20
    aborted = world.objects.writer("31-days/k/g")
    aborted.write(b"x" * (6 << 20))
    aborted.abort()
    with suppress(KeyError):
        assert not world.s3.list_multipart_uploads(Bucket="files")["Uploads"]
    assert world.objects.size("31-days/k/g") is None
