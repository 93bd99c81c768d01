"""The worker with messages as Lambda gives them: each is done, sent anew, or reported as failed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from naru.batch_queue import Message
from naru.batch_worker import BatchWorker
from naru.catalog_source import CatalogSource
from naru.errors import StoreUnavailableError
from tests.batch_doubles import Known, Script, Sharing
from tests.batch_world import KEY, World, batch_world, claim


def worker_of(world: World, script: Any) -> BatchWorker:
    return BatchWorker(
        batches=world.store,
        progress=world.progress,
        reader=world.reader,
        phases=world.phases,
        queue=world.queue,
        lines=script,
        health=Sharing(),  # type: ignore[arg-type]
        meters=Known(world),
        catalogs=CatalogSource("", lambda: None),  # type: ignore[arg-type,return-value]
        most_lines=8,
        lease_s=5.0,
    )


def deliver(world: World) -> list[dict[str, Any]]:
    """What Lambda gives the function: all messages that are there."""
    received = []
    while messages := world.sqs.receive_message(QueueUrl=world.queue_url, MaxNumberOfMessages=10).get("Messages"):
        received += messages
    return [
        {"messageId": message["MessageId"], "receiptHandle": message["ReceiptHandle"], "body": message["Body"]}
        for message in received
    ]


def test_a_batch_from_its_message_to_its_end() -> None:
    """Check, run, finish: each is a message, and the last range sends for the end."""
    with batch_world() as world:
        script = Script(world)
        worker = worker_of(world, script)
        batch = world.submit(5)
        world.queue.send([Message("check", KEY, batch.batch_id)])
        rounds = []
        while records := deliver(world):
            rounds.append([Message.parse(record["body"]).do for record in records])
            assert asyncio.run(worker.handle(records, remaining_s=lambda: 800.0)) == []
        assert rounds == [["check"], ["run"] * 3, ["finish"]]
        assert world.read(batch).phase == "completed"
        assert len(world.file_lines(world.read(batch), "output")) == 5
        # All of it once more: nothing is called, nothing changes.
        ran = list(script.ran)
        world.queue.send([Message("run", KEY, batch.batch_id, 0, of) for of in world.reader.plan(batch)])
        world.queue.send([Message("check", KEY, batch.batch_id), Message("finish", KEY, batch.batch_id)])
        assert asyncio.run(worker.handle(deliver(world), remaining_s=lambda: 800.0)) == []
        assert script.ran == ran
        assert len(world.told()) == 1


@pytest.mark.parametrize("together", [True, False], ids=["in one event", "in two events at once"])
def test_copies_of_a_message_are_done_together(together: bool) -> None:
    """They arise when `check` dies between sending the ranges and noting that, by a lost answer of SQS, by a redrive."""
    with batch_world() as world:
        batch = world.started(20)
        script = Script(world, pause_s=0.05)
        world.queue.send([Message("run", KEY, batch.batch_id, 0, of) for of in world.reader.plan(batch)] * 2)
        records = deliver(world)
        halves = [records] if together else [records[:10], records[10:]]

        async def main() -> list[list[str]]:
            works = [worker_of(world, script).handle(half, remaining_s=lambda: 800.0) for half in halves]
            return list(await asyncio.gather(*works))

        assert asyncio.run(main()) == [[]] * len(halves)
        assert sorted(script.ran) == list(range(20))
        read = world.read(batch)
        assert (read.ranges_ended, read.values["completed"]) == (10, 20)


def test_ranges_whose_batch_cannot_be_sent_for_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """All lines are done, and the queue does not take the message about that: nothing is left running meanwhile."""
    with batch_world() as world:
        batch = world.started(2)
        script = Script(world)
        worker = worker_of(world, script)

        def gone(*_: Any, **__: Any) -> None:
            raise StoreUnavailableError("gone")

        world.queue.send([Message("run", KEY, batch.batch_id, 0, of) for of in world.reader.plan(batch)])
        records = deliver(world)
        with monkeypatch.context() as patch:
            patch.setattr(worker._queue, "send", gone)
            failed = asyncio.run(worker.handle(records, remaining_s=lambda: 800.0))
        assert failed == [record["messageId"] for record in records]
        assert asyncio.run(worker.handle(records, remaining_s=lambda: 800.0)) == []
        assert [message.do for message in world.take()] == ["finish"]
        assert sorted(script.ran) == [0, 1]


def test_what_is_left_over_is_sent_anew_and_what_is_void_is_dropped() -> None:
    with batch_world() as world:
        worker = worker_of(world, Script(world))
        batch = world.started(4)
        claim(world, batch, 0, worker="other")
        world.store.set(batch, generation=1)
        first, second = world.reader.plan(batch)
        world.queue.send([Message("run", KEY, batch.batch_id, 0, first), Message("run", KEY, batch.batch_id, 1, first)])
        world.queue.send([Message("run", KEY, batch.batch_id, 1, second), Message("check", KEY, "batch_unknown")])
        assert asyncio.run(worker.handle(deliver(world), remaining_s=lambda: 800.0)) == []
        attributes = world.sqs.get_queue_attributes(QueueUrl=world.queue_url, AttributeNames=["All"])["Attributes"]
        assert attributes["ApproximateNumberOfMessagesDelayed"] == "1"
        assert world.read(batch).ranges_ended == 1


def test_a_message_that_is_none_of_ours_fails_alone() -> None:
    with batch_world() as world:
        worker = worker_of(world, Script(world))
        batch = world.submit(1)
        world.queue.send([Message("check", KEY, batch.batch_id)])
        bad = {"messageId": "m0", "receiptHandle": "r", "body": "{}"}
        records = [bad, *deliver(world)]
        assert asyncio.run(worker.handle(records, remaining_s=lambda: 800.0)) == ["m0"]
        assert world.read(batch).phase == "in_progress"


def test_a_store_that_fails_leaves_the_messages_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    with batch_world() as world:
        worker = worker_of(world, Script(world))
        world.started(2)
        batch = world.started(2)
        world.queue.send([Message("run", KEY, batch.batch_id, 0, of) for of in world.reader.plan(batch)])

        def gone(*_: Any, **__: Any) -> Any:
            raise StoreUnavailableError("gone")

        monkeypatch.setattr(worker._progress, "claim_range", gone)
        records = deliver(world)
        failed = asyncio.run(worker.handle(records, remaining_s=lambda: 800.0))
        assert failed == [record["messageId"] for record in records]
