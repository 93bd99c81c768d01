"""A world for batches in moto, from template.yaml: table, bucket, queue, topic, and what works on them.

`World.die_at` ends the process at one of its calls of AWS: nothing after it happens, as after a SIGKILL.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

from naru.batch_budget import BatchBudget
from naru.batch_input import input_of
from naru.batch_phases import Phases
from naru.batch_progress import LineResult, LineState, Progress, Range
from naru.batch_queue import BatchQueue, Message, Notifier
from naru.batch_reader import BatchReader
from naru.batch_store import Batch, BatchStore
from naru.file_store import FileStore
from naru.files_api import Files
from naru.objects import Objects
from naru.pricing import Usage
from naru.stored import new_batch_id
from tests.accounts import CATALOG
from tests.moto_tables import client, tables

KEY = "key_000000000001"
OMNI = "hyperclova-x-omni"


class Died(BaseException):
    """The process has been killed. No handler of errors may see it, as none sees a SIGKILL."""


@dataclass
class World:
    """All of it. ``calls`` counts those of AWS; ``now_s`` is the clock of the phases."""

    dynamodb: Any
    s3: Any
    sqs: Any
    sns: Any
    queue_url: str
    topic: str
    told_url: str
    calls: int = 0
    die_at: int | None = None
    dead: bool = False
    offset_s: float = 0.0
    range_lines: int = 2
    clients: list[Any] = field(default_factory=list)

    def watch(self) -> None:
        """Count every call, and die when it is time."""

        def before(**_: Any) -> None:
            if self.dead:
                raise Died
            self.calls += 1
            if self.calls == self.die_at:
                self.dead = True
                raise Died

        for each in (self.dynamodb, self.s3, self.sqs, self.sns):
            each.meta.events.register("before-call", before)

    def revive(self) -> None:
        """A new process."""
        self.dead, self.die_at, self.calls = False, None, 0

    @property
    def store(self) -> BatchStore:
        return BatchStore(self.dynamodb, "BatchTable")

    @property
    def progress(self) -> Progress:
        return Progress(self.dynamodb, "BatchTable")

    @property
    def objects(self) -> Objects:
        return Objects(lambda: self.s3, "files")

    @property
    def files(self) -> FileStore:
        return FileStore(self.dynamodb, "BatchTable", self.objects)

    @property
    def reader(self) -> BatchReader:
        return BatchReader(self.progress, self.objects)

    @property
    def queue(self) -> BatchQueue:
        return BatchQueue(self.sqs, self.queue_url)

    @property
    def phases(self) -> Phases:
        return Phases(
            store=self.store,
            progress=self.progress,
            files=self.files,
            reader=self.reader,
            queue=self.queue,
            notifier=Notifier(self.sns, self.topic),
            budget=BatchBudget(self.dynamodb, "MeterTable", ZoneInfo("Asia/Seoul")),
            range_lines=self.range_lines,
            clock=lambda: time.time() + self.offset_s,
        )

    def submit(self, count: int, **values: Any) -> Batch:
        """A batch of so many requests that nobody has checked."""
        requests = [(f"c{i}", {"model": OMNI, "messages": [{"role": "user", "content": str(i)}]}) for i in range(count)]
        file = Files(self.files).create_inline(KEY, input_of(requests))
        now_ms = time.time_ns() // 10**6
        whole = {
            "endpoint": "/v1/chat/completions",
            "input_file_id": file.file_id,
            "input_object": file.object_name,
            "input_etag": Files(self.files).etag(file),
            "created_at": now_ms // 1000,
            "expires_at": now_ms // 1000 + 86_400,
            **values,
        }
        given = {name: value for name, value in whole.items() if value is not None}
        return self.store.create(KEY, new_batch_id(at_ms=now_ms), given, now_s=now_ms // 1000)

    def started(self, count: int, **values: Any) -> Batch:
        """A batch in progress."""
        batch = self.submit(count, **values)
        self.phases.check(batch, CATALOG)
        self.take()
        return self.read(batch)

    def read(self, batch: Batch) -> Batch:
        found = self.store.get(batch.key_id, batch.batch_id)
        assert found is not None
        return found

    def run_range(self, batch: Batch, of: Range, *, failing: int = 0, end: bool = True) -> None:
        """What a worker does with a range whose first ``failing`` lines fail."""
        claim(self, batch, of.index)
        for index in range(of.first, of.first + of.count):
            assert self.progress.claim_line(batch, LineState(index, None), worker="w", request_id=f"req_{index}")
            assert store(self, batch, index, completed=index >= of.first + failing)
        if end:
            counts = {"completed": of.count - failing, "failed": failing}
            assert self.progress.end_range(batch, of.index, worker="w", end_code=None, **counts)

    def take(self) -> list[Message]:
        """What lies in the queue, which is then empty."""
        return [Message.parse(body) for body in self._receive(self.queue_url)]

    def told(self) -> list[dict[str, Any]]:
        """What the topic was told."""
        return [json.loads(json.loads(body)["Message"]) for body in self._receive(self.told_url)]

    def _receive(self, url: str) -> list[str]:
        bodies = []
        while messages := self.sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
            for message in messages:
                bodies.append(message["Body"])
                self.sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return bodies

    def file_lines(self, batch: Batch, name: str) -> list[Any]:
        """The lines of a file of the batch."""
        file_id = batch.values.get(f"{name}_file_id")
        if file_id is None:
            return []
        file = self.files.get(KEY, file_id, now_s=int(time.time()))
        assert file is not None
        content = self.objects.read(file.object_name)
        assert len(content) == file.size_bytes
        return [json.loads(line) for line in content.splitlines()]


def claim(
    world: World, batch: Batch, index: int, *, worker: str = "w", lease_s: float = 60.0, later_s: float = 0.0
) -> str:
    """Claims a range, now or at a later time."""
    now_ms = time.time_ns() // 10**6 + round(later_s * 1000)
    until_ms = now_ms + round(lease_s * 1000)
    return world.progress.claim_range(batch, index, worker=worker, now_ms=now_ms, until_ms=until_ms)


def store(world: World, batch: Batch, index: int, *, completed: bool = True, request_id: str = "") -> bool:
    """Stores a result for a line."""
    from naru.batch_results import answered, gave_up

    request_id = request_id or f"req_{index}"
    result: LineResult
    if completed:
        usage = Usage(prompt_tokens=10, completion_tokens=5, cached_tokens=2, reasoning_tokens=1)
        body = json.dumps({"from": request_id}).encode()
        result = answered(batch.batch_id, index, f"c{index}", request_id=request_id, body=body, usage=usage)
    else:
        result = gave_up(batch.batch_id, index, f"c{index}", "worker_died")
    return world.progress.store(batch, index, request_id=request_id, result=result, object_name=None)


@contextmanager
def batch_world(*, watched: bool = False) -> Iterator[World]:
    """An empty world; ``watched`` if its process is to die."""
    with tables("BatchTable", "MeterTable", "LedgerTable", "HealthTable") as dynamodb:
        s3, sqs, sns = client("s3"), client("sqs"), client("sns")
        lock = threading.Lock()
        for each in (dynamodb, s3, sqs, sns):
            _one_at_a_time(each, lock)
        s3.create_bucket(Bucket="files", CreateBucketConfiguration={"LocationConstraint": "ap-northeast-2"})
        queue = sqs.create_queue(QueueName="batches")["QueueUrl"]
        told = sqs.create_queue(QueueName="told")["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=told, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        topic = sns.create_topic(Name="ends")["TopicArn"]
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
        world = World(dynamodb, s3, sqs, sns, queue, topic, told)
        if watched:
            world.watch()
        yield world
        for each in (s3, sqs, sns):
            each.close()


def _one_at_a_time(client: Any, lock: threading.Lock) -> None:
    """Moto copies its tables for a transaction, and fails where another thread writes meanwhile."""
    really = client._make_api_call

    def call(operation: str, parameters: Any) -> Any:
        with lock:
            return really(operation, parameters)

    client._make_api_call = call
