"""Plays Lambda's event source mappings: queues of SQS → functions in real runtime processes.

The emulator would run the functions itself, in a runtime of its own and with its owner's permissions; here they run as
behind the front door. What a mapping says is asked of the emulator, which has it from the template: batch size, how many
invocations at once. A batch whose function fails stays in the queue until its visibility timeout, and of one that
answers with ``batchItemFailures`` only those stay. (AWS: "Using Lambda with Amazon SQS".)
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from local.handler_pool import HandlerPool, Throttled
from local.invocation import FunctionError
from local.stack import Function, Stack

_LONG_POLL_S = 1
_PAUSE_S = 0.5
_DEFAULT_CONCURRENCY = 10


@dataclass(frozen=True)
class SourceMapping:
    """One event source mapping."""

    function: str
    """Logical id."""
    queue_arn: str
    batch_size: int
    at_once: int


class QueuePoller:
    """Polls one queue for one function."""

    def __init__(self, stack: Stack, mapping: SourceMapping, *, logs: Path, most_processes: int) -> None:
        self.mapping = mapping
        self._sqs = stack.emulator.client("sqs")
        self._url = self._sqs.get_queue_url(QueueName=mapping.queue_arn.rsplit(":", 1)[-1])["QueueUrl"]
        self._at_once = min(mapping.at_once, most_processes)
        function: Function = stack.functions[mapping.function]
        self.pool = HandlerPool(
            function,
            endpoint_url=stack.emulator.url,
            log=logs / f"{mapping.function}.log",
            start=1,
            limit=self._at_once,
        )
        self._region = function.arn.split(":")[3]
        self.invocations = 0

    async def poll(self) -> None:
        """Poll until cancelled. The first process starts with the first message."""
        async with AsyncExitStack() as stack:
            free = asyncio.Semaphore(self._at_once)
            tasks: set[asyncio.Task[None]] = set()
            started = False
            try:
                while True:
                    await free.acquire()
                    messages = await self._receive()
                    if not messages:
                        free.release()
                        continue
                    if not started:
                        await stack.enter_async_context(self.pool.running())
                        started = True
                    task = asyncio.create_task(self._invoke(messages, free))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive(self) -> list[dict[str, Any]]:
        try:
            answer = await asyncio.to_thread(
                self._sqs.receive_message,
                QueueUrl=self._url,
                MaxNumberOfMessages=min(10, self.mapping.batch_size),
                WaitTimeSeconds=_LONG_POLL_S,
                MessageSystemAttributeNames=["All"],
                MessageAttributeNames=["All"],
            )
        except (BotoCoreError, ClientError) as error:
            self.pool.note(f"the queue cannot be read: {error}")
            await asyncio.sleep(_PAUSE_S)
            return []
        messages: list[dict[str, Any]] = answer.get("Messages", [])
        return messages

    async def _invoke(self, messages: list[dict[str, Any]], free: asyncio.Semaphore) -> None:
        self.invocations += 1
        event = {"Records": [self._record(message) for message in messages]}
        trace_id = f"Root=1-{int(time.time()):08x}-{secrets.token_hex(12)}"
        try:
            invocation = self.pool.invoke(json.dumps(event).encode(), trace_id=trace_id)
            await invocation.mode()
            said = json.loads(b"".join([chunk async for chunk in invocation]))
            failures = said.get("batchItemFailures") or [] if isinstance(said, dict) else []
            failed = {failure["itemIdentifier"] for failure in failures}
            done = [message for message in messages if message["MessageId"] not in failed]
            if done:
                entries = [{"Id": str(i), "ReceiptHandle": m["ReceiptHandle"]} for i, m in enumerate(done)]
                await asyncio.to_thread(self._sqs.delete_message_batch, QueueUrl=self._url, Entries=entries)
        except (FunctionError, Throttled, BotoCoreError, ClientError, ValueError) as error:
            self.pool.note(f"{len(messages)} messages stay in the queue: {error!r}")
            await asyncio.sleep(_PAUSE_S)
        finally:
            free.release()

    def _record(self, message: dict[str, Any]) -> dict[str, Any]:
        return {
            "messageId": message["MessageId"],
            "receiptHandle": message["ReceiptHandle"],
            "body": message["Body"],
            "attributes": message.get("Attributes", {}),
            "messageAttributes": {},
            "md5OfBody": message.get("MD5OfBody", ""),
            "eventSource": "aws:sqs",
            "eventSourceARN": self.mapping.queue_arn,
            "awsRegion": self._region,
        }


@asynccontextmanager
async def queue_pollers(stack: Stack, *, logs: Path, most_processes: int) -> AsyncIterator[Mapping[str, QueuePoller]]:
    """Poll the queues of all functions until the context is left; by the function's logical id."""
    mappings = await asyncio.to_thread(_take_over, stack)
    pollers = {
        mapping.function: QueuePoller(stack, mapping, logs=logs, most_processes=most_processes) for mapping in mappings
    }
    tasks = [asyncio.create_task(poller.poll()) for poller in pollers.values()]
    try:
        yield pollers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _take_over(stack: Stack) -> list[SourceMapping]:
    """Switch the emulator's own mappings off, and say what they were."""
    client = stack.emulator.client("lambda")
    names = {function.name: logical_id for logical_id, function in stack.functions.items()}
    found = []
    for mapping in client.list_event_source_mappings()["EventSourceMappings"]:
        name = mapping["FunctionArn"].split(":")[6]
        if name in names and ":sqs:" in mapping["EventSourceArn"]:
            client.update_event_source_mapping(UUID=mapping["UUID"], Enabled=False)
            at_once = mapping.get("ScalingConfig", {}).get("MaximumConcurrency") or _DEFAULT_CONCURRENCY
            found.append(SourceMapping(names[name], mapping["EventSourceArn"], mapping.get("BatchSize", 10), at_once))
    return found
