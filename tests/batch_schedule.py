"""Batches in virtual time: a table, a bucket, a queue and environments that run the worker, on a clock that jumps.

The worker runs as it is, on asyncio; where it would wait, time passes at once, and where it would call a store it does so
on this thread. So a schedule takes some milliseconds, and is the same each time. A :class:`Trouble` says what goes wrong:
messages come twice, answers of stores get lost, environments are killed at any call or stand still for minutes.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import selectors
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, Self

from botocore.exceptions import EndpointConnectionError, ReadTimeoutError

from naru import batch_lines, batch_phases, batch_pool, batch_progress, batch_worker, batches_api, files_api
from naru.batch_input import input_of
from naru.batch_lines import Lines
from naru.batch_phases import Phases
from naru.batch_progress import Progress
from naru.batch_queue import BatchQueue, Message
from naru.batch_reader import BatchReader
from naru.batch_store import Batch, BatchStore
from naru.batch_worker import BatchWorker
from naru.batches_api import Batches
from naru.catalog_source import CatalogSource
from naru.completions import Answer, Call
from naru.errors import ConflictError, NaruError, StoreUnavailableError
from naru.file_store import FileStore
from naru.files_api import Files
from naru.meter import ApiKey
from naru.objects import MissingObjectError, ObjectState
from tests.batch_doubles import Sharing
from tests.dynamodb_model import DynamoDB
from tests.interleaving import asyncio_replaced

KEY = "key_000000000001"
OMNI = "hyperclova-x-omni"
LEASE_S = 60.0
STORING_S = 31.0
"""So long a worker tries to store an answer."""
_EPOCH_S = 1_795_000_000.0
_environment: ContextVar[Environment] = ContextVar("environment")


class KilledError(BaseException):
    """The environment is no more. No handler of errors may see it, as none sees a SIGKILL."""


# ── Time ───────────────────────────────────────────────────────────────────────────────────────────────────


class _Jumping(selectors.SelectSelector):
    """Instead of waiting, lets the time pass."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everybody waits, and nothing will happen"
        self.now_s += timeout
        return []


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


@contextmanager
def _virtual_time(loop: _Loop, to_thread: Any) -> Iterator[None]:
    """Inside, the modules of batches see the loop's time, and call without threads."""
    clock = SimpleNamespace(
        monotonic=loop.time,
        time=lambda: _EPOCH_S + loop.time(),
        time_ns=lambda: int((_EPOCH_S + loop.time()) * 10**9),
        sleep=lambda _: None,
    )
    timed = [batch_lines, batch_phases, batch_pool, batch_progress, batch_worker, batches_api, files_api]
    shim = SimpleNamespace(**{name: getattr(asyncio, name) for name in asyncio.__all__})
    shim.to_thread = to_thread
    before = [vars(module)["time"] for module in timed]
    for module in timed:
        vars(module)["time"] = clock
    try:
        with asyncio_replaced(shim, batch_lines, batch_pool, batch_worker):
            yield
    finally:
        for module, original in zip(timed, before, strict=True):
            vars(module)["time"] = original


# ── What goes wrong ────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Trouble:
    """What goes wrong, drawn from a seed. ``kill_at`` kills one environment at that call of a store, counted over all;
    ``after``: when the call has happened. The others are chances, per call or per message.
    """

    seed: int = 0
    kill_at: int | None = None
    after: bool = False
    kill: float = 0.0
    sent_twice: float = 0.0
    received_twice: float = 0.0
    answer_lost: float = 0.0
    not_sent: float = 0.0
    repeated: float = 0.0
    stall: float = 0.0
    stall_s: float = 150.0
    most_kills: int = 4
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def happens(self, chance: float) -> bool:
        return chance > 0 and self.rng.random() < chance


@dataclass(eq=False)
class Environment:
    """A process. One that was killed is heard of no more."""

    town: Town
    died_s: float | None = None
    stalls: list[tuple[float, float]] = field(default_factory=list)
    """From when until when it stood still."""

    @property
    def dead(self) -> bool:
        return self.died_s is not None

    def kill(self) -> None:
        self.died_s = self.town.now_s
        self.town.kills += 1
        raise KilledError

    def store(self, function: Callable[..., Any], *args: Any, **parameters: Any) -> Any:
        """One call of a store, as the environment sees it."""
        town, trouble = self.town, self.town.trouble
        if self.dead:
            raise KilledError
        town.calls += 1
        now = town.calls == trouble.kill_at or (town.kills < trouble.most_kills and trouble.happens(trouble.kill))
        if now and not trouble.after:
            self.kill()
        if trouble.happens(trouble.not_sent):
            raise EndpointConnectionError(endpoint_url="the store")
        result = function(*args, **parameters)
        if now:
            self.kill()
        if trouble.happens(trouble.repeated) and getattr(function, "__name__", "") != "transact_write_items":
            result = function(*args, **parameters)  # what boto3 does after a timeout; a transaction has a token
        if trouble.happens(trouble.answer_lost):
            raise ReadTimeoutError(endpoint_url="the store")
        return result

    def _stands_s(self) -> float:
        return max((until_s for _, until_s in self.stalls), default=0.0) - self.town.now_s

    async def to_thread(self, function: Callable[..., Any], *args: Any, **parameters: Any) -> Any:
        trouble, loop = self.town.trouble, asyncio.get_running_loop()
        if trouble.happens(trouble.stall):
            self.stalls.append((loop.time(), loop.time() + trouble.rng.uniform(0, trouble.stall_s)))
        await self.awake(trouble.rng.uniform(0.001, 0.02))
        try:
            result = function(*args, **parameters)
        except KilledError:
            await self.town.wait_for_ever()
        await self.awake(0.001)
        return result

    async def awake(self, after_s: float) -> None:
        """Later, when the process does not stand still."""
        await asyncio.sleep(after_s)
        while (stands_s := self._stands_s()) > 0:  # noqa: ASYNC110 - time passes, and nothing else happens
            await asyncio.sleep(stands_s)
        if self.dead:
            await self.town.wait_for_ever()


class _Client:
    """The calls of a store, as the environment sees them that makes them."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.exceptions = getattr(store, "exceptions", None)

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._store, name)
        environment = _environment.get(None)
        return function if environment is None else partial(environment.store, function)

    def get_paginator(self, name: str) -> Any:
        return SimpleNamespace(paginate=lambda **call: [getattr(self, name)(**call)])


# ── The bucket and the queue ───────────────────────────────────────────────────────────────────────────────


class Bucket:
    """As :class:`naru.objects.Objects`, in memory."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, str]] = {}
        self._versions = itertools.count()

    def put(self, name: str, content: bytes) -> None:
        self._do(lambda: self.objects.__setitem__(name, (content, f'"{hash(content)}"')))

    def state(self, name: str) -> ObjectState | None:
        found = self._do(lambda: self.objects.get(name))
        return None if found is None else ObjectState(len(found[0]), found[1])

    def read(self, name: str, *, offset: int = 0, length: int | None = None, etag: str | None = None) -> bytes:
        content, has = self._do(lambda: self.objects.get(name)) or (b"", None)
        if has is None or etag not in {None, has}:
            raise MissingObjectError(name)
        return content[offset:] if length is None else content[offset : offset + length]

    def stream(self, name: str, *, etag: str | None = None) -> Iterator[bytes]:
        content = self.read(name, etag=etag)
        yield from (content[i : i + 100] for i in range(0, len(content), 100))

    def copy(self, name: str, to: str, *, etag: str) -> None:
        self.put(to, self.read(name, etag=etag))

    def delete(self, name: str) -> None:
        self._do(lambda: self.objects.pop(name, None))

    def writer(self, name: str) -> Any:
        parts: list[bytes] = []
        made = SimpleNamespace(size_bytes=0, abort=lambda: None, close=lambda: self.put(name, b"".join(parts)))

        def write(content: bytes) -> None:
            parts.append(content)
            made.size_bytes += len(content)

        made.write = write
        return made

    def _do(self, function: Callable[[], Any]) -> Any:
        environment = _environment.get(None)
        try:
            return function() if environment is None else environment.store(function)
        except (EndpointConnectionError, ReadTimeoutError) as error:
            raise StoreUnavailableError("the bucket") from error


@dataclass(eq=False)
class _Queued:
    body: str
    visible_s: float
    receives: int = 0
    receipt: str = ""


class Queue:
    """SQS, as far as the worker sees it. What was received ten times is dead until it is redriven."""

    def __init__(self, town: Town) -> None:
        self._town = town
        self.messages: list[_Queued] = []
        self.dead: list[_Queued] = []
        self.sent: list[str] = []
        self._receipts = itertools.count()

    def send_message_batch(self, *, QueueUrl: str, Entries: list[Any]) -> dict[str, Any]:  # noqa: N803
        trouble = self._town.trouble
        for entry in Entries:
            for _ in range(2 if trouble.happens(trouble.sent_twice) else 1):
                self.messages.append(_Queued(entry["MessageBody"], self._town.now_s + entry["DelaySeconds"]))
                self.sent.append(entry["MessageBody"])
        return {}

    def change_message_visibility_batch(self, *, QueueUrl: str, Entries: list[Any]) -> dict[str, Any]:  # noqa: N803
        timeouts = {entry["ReceiptHandle"]: entry["VisibilityTimeout"] for entry in Entries}
        for message in self.messages:
            if message.receipt in timeouts:
                message.visible_s = self._town.now_s + timeouts[message.receipt]
        return {}

    def receive(self, most: int) -> list[dict[str, str]]:
        trouble, records = self._town.trouble, []
        ready = [message for message in self.messages if message.visible_s <= self._town.now_s]
        trouble.rng.shuffle(ready)
        for message in ready[:most]:
            message.receives += 1
            if message.receives > 10:
                self.messages.remove(message)
                self.dead.append(message)
                continue
            message.receipt = f"r{next(self._receipts)}"
            if not trouble.happens(trouble.received_twice):
                message.visible_s = self._town.now_s + 5400
            records.append({"messageId": message.receipt, "receiptHandle": message.receipt, "body": message.body})
        return records

    def delete(self, receipts: set[str]) -> None:
        self.messages = [message for message in self.messages if message.receipt not in receipts]

    def redrive(self) -> None:
        """Everything that was ever sent, and what is dead, comes again."""
        bodies = [*self.sent, *(message.body for message in self.dead)]
        self.dead.clear()
        self.messages += [_Queued(body, self._town.now_s) for body in bodies]


# ── The provider ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(eq=False)
class Called:
    """A call of the provider: for which line, by whom, and whether its answer was told to the worker."""

    line: int
    request_id: str
    environment: Environment
    began_s: float
    answered_s: float = math.inf


class Provider:
    """As :class:`naru.completions.Completions`: answers after a while, and remembers who asked."""

    def __init__(self, town: Town, says: Callable[[int], NaruError | None]) -> None:
        self._town = town
        self._says = says
        self.calls: list[Called] = []

    async def create(self, call: Call) -> Answer:
        environment = _environment.get()
        await environment.awake(self._town.trouble.rng.uniform(0.01, 0.2))  # the meters
        line = int(json.loads(call.body or b"")["messages"][0]["content"])
        if (error := self._says(line)) is not None:
            raise error
        if not call.may_call():
            raise StoreUnavailableError("the claim is not held any more")
        called = Called(line, call.request_id, environment, self._town.now_s)
        self.calls.append(called)
        await environment.awake(self._town.trouble.rng.uniform(0.2, 8.0))
        called.answered_s = self._town.now_s
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        return Answer(json.dumps({"id": call.request_id, "usage": usage}).encode(), {"x-naru-attempts": "1"})


class _LetsIn:
    async def authenticate(self, authorization: Any, *, now_ms: int | None = None) -> ApiKey:
        return ApiKey(KEY, {})


# ── All of it ──────────────────────────────────────────────────────────────────────────────────────────────


class Town:
    """Some environments, what they share, and one batch or more. Call :meth:`live`, then look."""

    def __init__(
        self,
        trouble: Trouble | None = None,
        *,
        environments: int = 2,
        range_lines: int = 3,
        says: Callable[[int], NaruError | None] = lambda _: None,
        window_s: int = 86_400,
    ) -> None:
        self.trouble = trouble or Trouble()
        self.calls = self.kills = 0
        self.told: list[dict[str, Any]] = []
        self._loop = _Loop()
        self._range_lines = range_lines
        self._environments = environments
        self.table = DynamoDB(BatchTable=("shelf", "entry"))
        self.bucket, self.queue = Bucket(), Queue(self)
        self.provider = Provider(self, says)
        self.events: list[tuple[float, Callable[[], None]]] = []
        """What happens from outside, and when (seconds from the beginning)."""
        client: Any = _Client(self.table)
        self.store, self.progress = BatchStore(client, "BatchTable"), Progress(client, "BatchTable")
        objects: Any = self.bucket
        self.files = FileStore(client, "BatchTable", objects)
        self.reader = BatchReader(self.progress, objects)
        self.batch_queue = BatchQueue(_Client(self.queue), "queue")  # type: ignore[arg-type]
        self.api = Batches(
            store=self.store,
            progress=self.progress,
            files=Files(self.files),
            reader=self.reader,
            queue=self.batch_queue,
            window_s=window_s,
        )
        self._stack = ExitStack()
        self._over = False
        self._abandoned: list[asyncio.Future[None]] = []  # else they are collected, and what waits for them is closed

    @property
    def now_s(self) -> float:
        """Seconds since the beginning."""
        return self._loop.time()

    def __enter__(self) -> Self:
        async def to_thread(function: Callable[..., Any], *args: Any, **parameters: Any) -> Any:
            return await _environment.get().to_thread(function, *args, **parameters)

        self._stack.enter_context(_virtual_time(self._loop, to_thread))
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        while left := asyncio.all_tasks(self._loop):
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.wait(left))
        self._stack.close()
        self._loop.close()

    async def wait_for_ever(self) -> None:
        """As a process that was killed; until the test is over."""
        if not self._over:
            self._abandoned.append(asyncio.get_running_loop().create_future())
            await self._abandoned[-1]
        raise asyncio.CancelledError

    def submit(self, count: int) -> Batch:
        """A batch of so many lines, each of which asks for its own number."""
        requests = [(f"c{i}", {"model": OMNI, "messages": [{"role": "user", "content": str(i)}]}) for i in range(count)]
        file = Files(self.files).create_inline(KEY, input_of(requests))
        asked = {"input_file_id": file.file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        shown = self.api.create(KEY, json.dumps(asked), models=[OMNI])
        return self.read(shown["id"])

    def read(self, batch_id: str) -> Batch:
        found = self.store.get(KEY, batch_id)
        assert found is not None
        return found

    def live(self, *batches: Batch, within_s: float = 86_400 + 3600) -> None:
        """Until the batches have ended and the queue is empty."""

        async def main() -> None:
            pollers = self.pollers = [asyncio.create_task(self._poll()) for _ in range(self._environments)]
            tender = asyncio.create_task(self._tend())
            for at_s, happens in self.events:
                asyncio.get_running_loop().call_at(at_s, happens)
            while not all(self.read(batch.batch_id).has_ended for batch in batches) or self.queue.messages:
                assert self.now_s < within_s, "a batch has not ended"
                await asyncio.sleep(1)
            for task in (*pollers, tender):
                task.cancel()

        self._loop.run_until_complete(main())

    async def _poll(self) -> None:
        """Lambda: an environment that is killed is followed by a new one."""
        while True:
            environment = Environment(self)
            token = _environment.set(environment)
            worker = self._worker()
            while not environment.dead:
                if not (records := self.queue.receive(10)):
                    await asyncio.sleep(self.trouble.rng.uniform(0.1, 1))
                    continue
                await self._invoke(environment, worker, records)
            _environment.reset(token)

    async def _invoke(self, environment: Environment, worker: BatchWorker, records: list[dict[str, str]]) -> None:
        end_s = self.now_s + 900
        handled = asyncio.create_task(worker.handle(records, remaining_s=lambda: end_s - self.now_s))
        while not (handled.done() or environment.dead):
            await asyncio.wait({handled}, timeout=0.5)
            if self.now_s > end_s:  # the function's time is over
                environment.died_s = self.now_s
        if not environment.dead:
            self.queue.delete({record["receiptHandle"] for record in records} - set(handled.result()))

    async def _tend(self) -> None:
        """The function's schedule."""
        while True:
            await asyncio.sleep(300)
            await self._in_an_environment(self._tend_once())

    async def _in_an_environment(self, work: Coroutine[Any, Any, None]) -> None:
        environment = Environment(self)
        token = _environment.set(environment)
        task = asyncio.create_task(work)
        _environment.reset(token)
        while not (task.done() or environment.dead):
            await asyncio.wait({task}, timeout=0.5)

    async def _tend_once(self) -> None:
        try:
            await _environment.get().to_thread(self._phases().tend)
        except StoreUnavailableError:
            return  # five minutes later it is tried again

    def _phases(self) -> Phases:
        notifier: Any = SimpleNamespace(tell=self.told.append)
        return Phases(
            store=self.store,
            progress=self.progress,
            files=self.files,
            reader=self.reader,
            queue=self.batch_queue,
            notifier=notifier,
            budget=None,  # type: ignore[arg-type]  # no batch asks for it
            range_lines=self._range_lines,
            clock=lambda: _EPOCH_S + self.now_s,
        )

    def _worker(self) -> BatchWorker:
        completions: Any = self.provider
        objects: Any = self.bucket
        return BatchWorker(
            batches=self.store,
            progress=self.progress,
            reader=self.reader,
            phases=self._phases(),
            queue=self.batch_queue,
            lines=Lines(completions, self.progress, objects, rng=self.trouble.rng),
            health=Sharing(retry_after_s=2.0),  # type: ignore[arg-type]
            meters=_LetsIn(),  # type: ignore[arg-type]
            catalogs=CatalogSource("", lambda: None),  # type: ignore[arg-type,return-value]
            most_lines=8,
            lease_s=LEASE_S,
        )

    # ── What has become of it ──────────────────────────────────────────────────────────────────────────────

    def assert_exact(self, batch: Batch) -> None:
        """Each line is in one file, once; counts, files and the lines as they are read one by one agree; each line was
        called for once, and once more only for each call whose environment was killed or stood still.
        """
        ended = self.read(batch.batch_id)
        lines, values = ended.values.get("lines", 0), ended.values
        if not lines:  # it was cancelled before it was checked
            assert (ended.phase, self.provider.calls) == ("cancelled", [])
            return
        output, errors = self.file_lines(ended, "output"), self.file_lines(ended, "error")
        assert sorted(each["custom_id"] for each in output + errors) == sorted(f"c{i}" for i in range(lines))
        assert (values["completed"], values["failed"]) == (len(output), len(errors))
        shown = self.reader.results(ended, 0, lines)
        assert [each["index"] for each in shown] == list(range(lines))
        succeeded = {each["custom_id"] for each in shown if each["status"] == "success"}
        assert succeeded == {each["custom_id"] for each in output}
        assert {each["status"] for each in shown} <= {"success", "error"}
        assert list(self.store.open_batches()) == []
        assert [told["status"] for told in self.told if told["id"] == batch.batch_id][:1] == [ended.phase]
        results = {
            line["index"]: line for of in self.reader.plan(ended) for line in self.progress.called(batch.batch_id, of)
        }
        for called in self.provider.calls:
            is_the_result = results[called.line]["request_id"] == called.request_id
            assert is_the_result or self._is_lost(called), called

    def calls_by_line(self) -> Counter[int]:
        return Counter(called.line for called in self.provider.calls)

    def _is_lost(self, called: Called) -> bool:
        """Whether its caller died, or stood still, after the call began and before it had stored the answer."""
        environment, stored_s = called.environment, called.answered_s + STORING_S
        died = environment.died_s is not None and called.began_s <= environment.died_s <= stored_s
        return died or any(from_s <= stored_s and until_s >= called.began_s for from_s, until_s in environment.stalls)

    def file_lines(self, batch: Batch, name: str) -> list[Any]:
        file_id = batch.values.get(f"{name}_file_id")
        if file_id is None:
            return []
        file = self.files.get(KEY, file_id, now_s=int(_EPOCH_S + self.now_s))
        assert file is not None
        content = self.bucket.read(file.object_name)
        assert len(content) == file.size_bytes
        return [json.loads(line) for line in content.splitlines()]

    def send_again(self) -> None:
        """Copies of every message that was ever sent."""
        self.queue.redrive()

    def cancel(self, batch: Batch) -> None:
        """As a client does, who does not mind if it is too late."""
        with suppress(ConflictError):
            self.api.cancel(KEY, batch.batch_id)

    def messages(self) -> dict[str, int]:
        """How many were sent of each kind."""
        kinds: dict[str, int] = defaultdict(int)
        for body in self.queue.sent:
            kinds[Message.parse(body).do] += 1
        return dict(kinds)
