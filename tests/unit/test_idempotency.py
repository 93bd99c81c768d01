"""One answer per Idempotency-Key: what is kept, who waits, and what a crash after each write does to the retry.

Two requests at the very same moment, and a real ``kill -9``, are in tests/e2e.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import random
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from botocore.exceptions import EndpointConnectionError

from naru import sse
from naru.attributes import to_item
from naru.completions import Answer
from naru.errors import (
    AuthenticationError,
    IdempotencyKeyInUseError,
    IdempotencyKeyReusedError,
    InvalidRequestError,
    NaruError,
    PermissionDeniedError,
    ProviderRejectedError,
    StoreUnavailableError,
    UpstreamTimeoutError,
)
from naru.event_loop import EventLoop
from naru.idempotency import Idempotency
from naru.idempotency_records import KEPT_S, Claim, Records
from naru.meter import Meters
from naru.meter_state import UNLIMITED, Limits
from naru.request_ids import new_request_id
from tests.meters import put_key
from tests.moto_tables import client, tables
from tests.waiting import PATIENCE_S

TABLE, BUCKET = "IdempotencyTable", "answers"
BODY = b'{"model":"m","messages":[]}'
HEADERS = {"x-naru-model": "m", "x-naru-attempts": "1", "x-ratelimit-remaining-requests": "7"}
NOON_MS = 1_795_000_000_000


@dataclass
class Aws:
    """The stores that all processes share."""

    dynamodb: Any
    s3: Any

    def record(self) -> dict[str, Any] | None:
        """The one record there is."""
        items: list[dict[str, Any]] = self.dynamodb.scan(TableName=TABLE)["Items"]
        assert len(items) <= 1
        return items[0] if items else None


@pytest.fixture(scope="module")
def stores() -> Iterator[Aws]:
    with tables("MeterTable", TABLE) as dynamodb:
        s3 = client("s3")
        s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "ap-northeast-2"})
        yield Aws(dynamodb, s3)


@pytest.fixture
def aws(stores: Aws) -> Aws:
    for item in stores.dynamodb.scan(TableName=TABLE)["Items"]:
        stores.dynamodb.delete_item(TableName=TABLE, Key={"record": item["record"]})
    for found in stores.s3.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        stores.s3.delete_object(Bucket=BUCKET, Key=found["Key"])
    return stores


class Client:
    """A boto3 client of a process; once the process is dead, nothing it does reaches AWS any more."""

    def __init__(self, client: Any, process: Process) -> None:
        self._client = client
        self._process = process
        self.exceptions = client.exceptions

    def __getattr__(self, name: str) -> Any:
        def call(**arguments: Any) -> Any:
            if self._process.dead:
                raise EndpointConnectionError(endpoint_url="https://gone")
            self._process.calls.append(name)
            return getattr(self._client, name)(**arguments)

        return call


@dataclass
class Process:
    """One process of the gateway. ``produce`` calls a provider, which bills, and writes a row."""

    aws: Aws
    secret: str
    lease_s: float = 30.0
    wait_s: float = 30.0
    now_ms: Callable[[], int] = lambda: NOON_MS
    beat: Callable[[threading.Event, float], bool] = threading.Event.wait
    content: str = "안녕하세요"
    stream: bool = False
    bills: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    dead: bool = False
    pause: Callable[[], Awaitable[object]] | None = None
    """What the provider does before it answers, or after the first event."""

    def __post_init__(self) -> None:
        client: Any = Client(self.aws.dynamodb, self)
        self.idempotency = Idempotency(
            Records(client, TABLE, lambda: Client(self.aws.s3, self), BUCKET),  # type: ignore[arg-type,return-value]
            Meters(client, "MeterTable", ZoneInfo("Asia/Seoul"), organisation_budget_pico_usd=UNLIMITED),
            lease_s=self.lease_s,
            wait_s=self.wait_s,
            now_ms=self.now_ms,
            pause=self.beat,
        )

    async def ask(
        self, key: str | None = "k1", body: bytes = BODY, *, secret: str | None = None, patience_s: float = 60.0
    ) -> Answer:
        request_id = new_request_id(at_ms=NOON_MS)
        return await self.idempotency.run(
            header=key,
            authorization=f"Bearer {secret or self.secret}",
            body=body,
            request_id=request_id,
            patience_s=patience_s,
            produce=lambda: self.produce(request_id),
        )

    async def read(self, *arguments: Any, **named: Any) -> tuple[bytes, dict[str, str]]:
        """The whole body and the headers."""
        answer = await self.ask(*arguments, **named)
        if isinstance(answer.body, bytes):
            return answer.body, dict(answer.headers)
        return b"".join([event async for event in answer.body]), dict(answer.headers)

    async def produce(self, request_id: str) -> Answer:
        self.bills.append(request_id)
        if self.stream:
            return Answer(self._events(request_id), HEADERS)
        if self.pause:
            await self.pause()
        self.row(request_id)
        return Answer(json.dumps({"id": f"chatcmpl-{request_id}", "content": self.content}).encode(), HEADERS)

    async def _events(self, request_id: str) -> AsyncGenerator[bytes, None]:
        try:
            for number, letter in enumerate(self.content):
                event = sse.encode_event(json.dumps({"id": f"chatcmpl-{request_id}", "content": letter}))
                try:
                    yield event
                except GeneratorExit:
                    raise AssertionError("closed before its end: the rest would be lost") from None
                if number == 0 and self.pause:
                    await self.pause()
        finally:
            self.row(request_id)
        yield sse.DONE

    def row(self, request_id: str) -> None:
        if not self.dead:
            self.rows.append(request_id)


NewProcess = Callable[..., Process]


@pytest.fixture
def new_process(aws: Aws) -> NewProcess:
    _, secret = put_key(aws.dynamodb, limits=Limits(rpm=60, tpm=10**6))

    def make(**fields: Any) -> Process:
        return Process(aws, **{"secret": secret, **fields})

    return make


def never() -> Awaitable[object]:
    return asyncio.Event().wait()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what other processes do to a table has no event
            await asyncio.sleep(0.005)


# ── The same again ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True])
def test_a_retry_gets_the_same_answer_and_nothing_is_called_or_booked_again(
    new_process: NewProcess, stream: bool
) -> None:
    process, other = new_process(stream=stream), new_process(stream=stream)
    body, headers = asyncio.run(process.read())
    again, headers_again = asyncio.run(other.read())
    assert again == body
    assert headers == HEADERS
    assert (process.bills, other.bills) == (process.rows, [])
    assert len(process.rows) == 1
    assert (headers_again["idempotency-replayed"], headers_again["x-request-id"]) == ("true", process.rows[0])
    assert (headers_again["x-naru-model"], headers_again["x-naru-attempts"]) == ("m", "1")


def test_a_stream_is_replayed_as_a_stream_and_json_as_json(new_process: NewProcess) -> None:
    async def kinds(process: Process) -> list[bool]:
        await process.read("s" if process.stream else "j")
        return [isinstance((await process.ask(key)).body, bytes) for key in ("j", "s")]

    asyncio.run(new_process(stream=True).read("s"))
    assert asyncio.run(kinds(new_process(stream=False))) == [True, False]


def test_a_replay_says_how_the_limits_are_now(new_process: NewProcess) -> None:
    """Those of the first answer are old; a replay takes nothing of them."""
    process = new_process()
    asyncio.run(process.read())
    _, headers = asyncio.run(process.read())
    assert headers["x-ratelimit-remaining-requests"] == "60"


def test_without_the_header_no_store_is_touched(new_process: NewProcess) -> None:
    process = new_process()
    first, second = (asyncio.run(process.read(None))[0] for _ in range(2))
    assert first != second
    assert (len(process.bills), process.calls) == (2, [])


def test_a_first_request_costs_one_read_and_two_writes(new_process: NewProcess) -> None:
    process = new_process()
    asyncio.run(process.read())
    assert process.calls == ["get_item", "put_item", "put_item"]


def test_the_key_is_forgotten_after_a_day_also_when_ttl_is_late(aws: Aws, new_process: NewProcess) -> None:
    process = new_process()
    asyncio.run(process.read())
    record = aws.record()
    assert record is not None
    assert int(record["expires_s"]["N"]) == NOON_MS // 1000 + KEPT_S
    almost, later = (new_process(now_ms=lambda at=at: NOON_MS + at * 1000) for at in (KEPT_S - 1, KEPT_S))
    asyncio.run(almost.read())
    assert almost.bills == []
    # A new day, a new request: also with another body.
    asyncio.run(later.read(body=b"{}"))
    assert len(later.bills) == 1


# ── Whose key it is ────────────────────────────────────────────────────────────────────────────────────────


def test_two_api_keys_may_use_the_same_idempotency_key(aws: Aws, new_process: NewProcess) -> None:
    _, secret = put_key(aws.dynamodb)
    process, stranger = new_process(), new_process(secret=secret)
    asyncio.run(process.read("same"))
    asyncio.run(stranger.read("same", b"{}"))
    assert (len(process.bills), len(stranger.bills)) == (1, 1)


def test_an_answer_is_given_to_nobody_but_the_owner_of_the_key(aws: Aws, new_process: NewProcess) -> None:
    """The id within a key is no secret; the record is found by it."""
    process = new_process()
    asyncio.run(process.read())
    forged = process.secret[:-3] + ("AAA" if process.secret[-3:] != "AAA" else "BBB")
    for secret in (forged, "sk-naru-nobody"):
        with pytest.raises(AuthenticationError):
            asyncio.run(process.ask(secret=secret))
    key_id = "key_" + process.secret.removeprefix("sk-naru-")[:12]
    aws.dynamodb.update_item(
        TableName="MeterTable",
        Key=to_item({"meter": f"key#{key_id}"}),
        UpdateExpression="SET enabled = :no",
        ExpressionAttributeValues=to_item({":no": False}),
    )
    with pytest.raises(PermissionDeniedError):
        asyncio.run(process.ask())


def test_a_stranger_leaves_no_record_behind(aws: Aws, new_process: NewProcess) -> None:
    process = new_process()
    with pytest.raises(AuthenticationError):
        asyncio.run(process.ask(secret="sk-naru-000000000000-" + "A" * 43))
    assert (aws.record(), process.bills) == (None, [])


@pytest.mark.parametrize("key", ["", "x" * 256, "열쇠", "a\tb", "a\x00", "a\n"])
def test_a_header_that_is_no_key_is_named(new_process: NewProcess, key: str) -> None:
    process = new_process()
    with pytest.raises(InvalidRequestError, match="Idempotency-Key must be 1 to 255") as refused:
        asyncio.run(process.ask(key))
    assert (refused.value.http_status, refused.value.param, process.bills) == (400, "Idempotency-Key", [])


@pytest.mark.parametrize("key", ["x", "x" * 255, "8e03978e-40d5-43e8-bc93-6894a57f9324", 'a "quoted" one', "~ !"])
def test_any_printable_header_is_a_key(aws: Aws, new_process: NewProcess, key: str) -> None:
    asyncio.run(new_process().read(key))
    record = aws.record()
    assert record is not None
    # Only its hash is kept: it may be a name or a telephone number.
    assert record["record"]["S"].endswith("#" + hashlib.sha256(key.encode()).hexdigest())


@pytest.mark.parametrize("running", [False, True])
def test_another_body_is_a_conflict_that_no_sdk_repeats(new_process: NewProcess, running: bool) -> None:
    async def scenario() -> None:
        process = new_process(pause=never if running else None)
        first = asyncio.create_task(process.read())
        await (until(lambda: bool(process.bills)) if running else first)
        other = new_process()
        with pytest.raises(IdempotencyKeyReusedError) as refused:
            await other.ask(body=BODY + b" ")
        error = refused.value
        assert (error.http_status, error.code, error.type) == (409, "idempotency_key_reused", "invalid_request_error")
        assert (error.should_retry, error.headers["x-ratelimit-limit-requests"]) == (False, "60")
        assert other.bills == []
        first.cancel()

    asyncio.run(scenario())


# ── Only success is kept ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "error",
    [
        UpstreamTimeoutError("slow"),
        ProviderRejectedError("no", status=400),
        InvalidRequestError("no"),
        ZeroDivisionError(),
        asyncio.CancelledError(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("stream", [False, True])
def test_after_a_failure_a_retry_really_tries(
    aws: Aws, new_process: NewProcess, error: BaseException, stream: bool
) -> None:
    async def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        asyncio.run(new_process(pause=fail, stream=stream).read())
    assert aws.record() is None
    process = new_process()
    asyncio.run(process.read())
    assert len(process.bills) == 1


def test_a_cut_stream_is_not_kept(aws: Aws, new_process: NewProcess) -> None:
    """It ends in an error event, and without [DONE]."""
    process = new_process()

    async def produce(request_id: str) -> Answer:
        async def cut() -> AsyncGenerator[bytes, None]:
            yield sse.encode_event('{"content":"data: [DONE]"}')
            yield sse.encode_error(UpstreamTimeoutError("cut").body())

        return Answer(cut(), {})

    process.produce = produce  # type: ignore[method-assign]
    body, _ = asyncio.run(process.read())
    assert b'"error"' in body
    assert aws.record() is None


# ── Waiting for the first ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True])
def test_who_comes_while_the_first_is_running_gets_its_answer(new_process: NewProcess, stream: bool) -> None:
    async def scenario() -> None:
        go = asyncio.Event()
        process = new_process(stream=stream, pause=go.wait)
        first = asyncio.create_task(process.read())
        await until(lambda: bool(process.bills))
        others = [new_process(stream=stream) for _ in range(3)]
        waiting = [asyncio.create_task(other.read()) for other in others]
        await until(lambda: all(other.calls.count("get_item") >= 3 for other in others))
        go.set()
        body, _ = await first
        for other, task in zip(others, waiting, strict=True):
            assert (await task)[0] == body
            assert other.bills == []

    asyncio.run(scenario())


def test_who_waits_tries_itself_when_the_first_fails(new_process: NewProcess) -> None:
    async def scenario() -> None:
        go = asyncio.Event()

        async def fail() -> None:
            await go.wait()
            raise UpstreamTimeoutError("slow")

        process, other = new_process(pause=fail), new_process()
        first = asyncio.create_task(process.read())
        await until(lambda: bool(process.bills))
        second = asyncio.create_task(other.read())
        await until(lambda: "put_item" in other.calls)
        go.set()
        with pytest.raises(UpstreamTimeoutError):
            await first
        _, headers = await second
        assert "idempotency-replayed" not in headers
        assert len(other.bills) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(("wait_s", "patience_s"), [(0.4, 60.0), (60.0, 0.4)])
def test_waiting_ends_in_a_conflict_that_sdks_repeat(new_process: NewProcess, wait_s: float, patience_s: float) -> None:
    async def scenario() -> None:
        process = new_process(pause=never)
        first = asyncio.create_task(process.read())
        await until(lambda: bool(process.bills))
        other = new_process(wait_s=wait_s)
        with pytest.raises(IdempotencyKeyInUseError) as refused:
            async with asyncio.timeout(PATIENCE_S):
                await other.ask(patience_s=patience_s)
        error = refused.value
        assert (error.http_status, error.code, error.should_retry) == (409, "idempotency_key_in_use", True)
        assert error.retry_after_s == 2.0
        assert (other.bills, other.calls.count("put_item")) == ([], 1)
        first.cancel()

    asyncio.run(scenario())


# ── The owner says that it lives ───────────────────────────────────────────────────────────────────────────


class Heart:
    """Everybody's clock, which stands until a test lets the time of an owner's next sign of life come."""

    def __init__(self) -> None:
        self.ms = NOON_MS
        self._beats = threading.Semaphore(0)

    def now_ms(self) -> int:
        return self.ms

    def pause(self, stopped: threading.Event, seconds: float) -> bool:
        while not stopped.wait(0.001):
            if self._beats.acquire(blocking=False):
                return False
        return True

    def beat(self, process: Process) -> None:
        """Ten seconds pass, the third of a lease, and the owner has said that it lives."""
        renewals = process.calls.count("update_item")
        self.ms += 10_000
        self._beats.release()
        wait_until(lambda: process.calls.count("update_item") > renewals)

    def last_beat(self) -> None:
        """Ten seconds pass in which the owner has nothing to say any more."""
        self.ms += 10_000
        self._beats.release()
        wait_until(lambda: not renewing())


def wait_until(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.001)


def renewing() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "idempotency-renewal"]


def test_a_slow_answer_is_not_taken_over(new_process: NewProcess) -> None:
    async def scenario() -> None:
        heart, answers = Heart(), asyncio.Event()
        process = new_process(now_ms=heart.now_ms, beat=heart.pause, pause=answers.wait)
        other = new_process(now_ms=heart.now_ms)
        first = asyncio.create_task(process.read(patience_s=900))
        await until(lambda: bool(process.bills))
        for _ in range(7):  # more than two leases
            await asyncio.to_thread(heart.beat, process)
        second = asyncio.create_task(other.read())
        await until(lambda: "get_item" in other.calls)
        answers.set()
        body, _ = await second
        assert (await first)[0] == body
        assert other.bills == []

    asyncio.run(scenario())


def test_a_client_that_reads_slowly_does_not_lose_its_stream(new_process: NewProcess) -> None:
    """While the runtime sends, the loop stands still between two events: for longer than a lease here."""
    heart = Heart()
    process = new_process(stream=True, now_ms=heart.now_ms, beat=heart.pause)
    loop, other_loop = EventLoop(), EventLoop()
    answer = loop.run(process.ask(patience_s=900))
    assert not isinstance(answer.body, bytes)
    events = loop.iterate(answer.body)
    drawn = [next(events)]
    for _ in range(7):
        heart.beat(process)
    other = new_process(wait_s=0.2, now_ms=heart.now_ms)
    with pytest.raises(IdempotencyKeyInUseError):
        other_loop.run(other.ask())
    body = b"".join([*drawn, *events])
    assert other_loop.run(other.read())[0] == body
    assert other.bills == []
    loop.close()
    other_loop.close()


@pytest.mark.parametrize("stream", [False, True])
def test_no_renewal_goes_on_after_the_answer(new_process: NewProcess, stream: bool) -> None:
    heart = Heart()
    process = new_process(stream=stream, now_ms=heart.now_ms, beat=heart.pause)
    asyncio.run(process.read())
    wait_until(lambda: not renewing())


def test_renewal_ends_with_the_patience_of_the_caller(new_process: NewProcess) -> None:
    """A stream that nobody draws or closes would be renewed for ever."""

    async def scenario() -> None:
        heart = Heart()
        process = new_process(stream=True, now_ms=heart.now_ms, beat=heart.pause)
        answer = await process.ask(patience_s=40)
        for _ in range(3):
            await asyncio.to_thread(heart.beat, process)
        await asyncio.to_thread(heart.last_beat)
        assert not isinstance(answer.body, bytes)
        await answer.body.aclose()

    asyncio.run(scenario())


# ── Crashes, after each step ───────────────────────────────────────────────────────────────────────────────


class Clock:
    def __init__(self) -> None:
        self.ms = NOON_MS

    def __call__(self) -> int:
        return self.ms


async def killed_after(step: str, process: Process) -> None:
    """Runs a request until after that step; nothing the process does later reaches AWS."""
    if step == "keep":
        assert process.stream
        answer = await process.ask()
        assert not isinstance(answer.body, bytes)
        async for event in answer.body:
            if event == sse.DONE:  # kept by now, and not sent yet
                process.dead = True
        return
    if step == "row":
        write = process.row

        def write_and_die(request_id: str) -> None:
            write(request_id)
            process.dead = True

        process.row = write_and_die  # type: ignore[method-assign]
        await process.read()
        return
    process.pause = never
    if step == "claim":
        process.produce = lambda _: never()  # type: ignore[method-assign,assignment,return-value]
    task = asyncio.create_task(process.read())
    await until(lambda: "put_item" in process.calls and (step == "claim" or bool(process.bills)))
    await asyncio.sleep(0.05)
    process.dead = True
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("step", "stream", "bills", "rows"),
    [
        ("claim", False, (0, 1), (0, 1)),
        ("claim", True, (0, 1), (0, 1)),
        ("call", False, (1, 1), (0, 1)),
        ("call", True, (1, 1), (0, 1)),
        ("row", False, (1, 1), (1, 1)),
        ("row", True, (1, 1), (1, 1)),
        ("keep", True, (1, 0), (1, 0)),
    ],
)
def test_a_retry_after_a_crash_is_answered_and_each_call_has_its_row(
    new_process: NewProcess, step: str, stream: bool, bills: tuple[int, int], rows: tuple[int, int]
) -> None:
    """``bills`` and ``rows`` of the process that died and of the one that answers the retry.

    After "call" the row that is missing is the sweeper's to write.
    """
    clock = Clock()
    process = new_process(stream=stream, now_ms=clock)
    asyncio.run(killed_after(step, process))
    retry = new_process(stream=stream, now_ms=clock, wait_s=0.2)
    if step != "keep":
        clock.ms += 30_000
        with pytest.raises(IdempotencyKeyInUseError):  # it may still live
            asyncio.run(retry.ask())
        clock.ms += 1
    body, _ = asyncio.run(retry.read())
    assert ((len(process.bills), len(retry.bills)), (len(process.rows), len(retry.rows))) == (bills, rows)
    once_more = new_process(now_ms=clock)
    assert asyncio.run(once_more.read())[0] == body
    assert once_more.bills == []


def test_the_key_of_a_dead_request_is_still_its_bodys(new_process: NewProcess) -> None:
    clock = Clock()
    asyncio.run(killed_after("call", new_process(now_ms=clock)))
    clock.ms += 60_000
    with pytest.raises(IdempotencyKeyReusedError):
        asyncio.run(new_process(now_ms=clock).ask(body=b"{}"))


@pytest.mark.parametrize("stream", [False, True])
def test_an_owner_who_was_thought_dead_does_not_touch_its_successors_answer(
    aws: Aws, new_process: NewProcess, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        clock, go = Clock(), asyncio.Event()
        process = new_process(stream=stream, now_ms=clock, pause=go.wait)
        first = asyncio.create_task(process.read())
        await until(lambda: bool(process.bills))
        clock.ms += 31_000
        successor = new_process(stream=stream, now_ms=clock)
        theirs, _ = await successor.read()
        go.set()
        mine, _ = await first
        assert mine != theirs  # it has its own answer, and each has its row
        assert (len(process.rows), len(successor.rows)) == (1, 1)
        replayed, headers = await new_process(now_ms=clock).read()
        assert (replayed, headers["x-request-id"]) == (theirs, successor.rows[0])

    asyncio.run(scenario())
    assert "idempotency record taken over" in caplog.messages


def test_an_owner_who_was_thought_dead_and_fails_does_not_remove_its_successors_claim(
    aws: Aws, new_process: NewProcess
) -> None:
    async def scenario() -> None:
        clock, go = Clock(), asyncio.Event()

        async def fail() -> None:
            await go.wait()
            raise UpstreamTimeoutError("slow")

        process = new_process(now_ms=clock, pause=fail)
        first = asyncio.create_task(process.read())
        await until(lambda: bool(process.bills))
        clock.ms += 31_000
        successor = new_process(now_ms=clock, pause=never)
        second = asyncio.create_task(successor.read())
        await until(lambda: bool(successor.bills))
        go.set()
        with pytest.raises(UpstreamTimeoutError):
            await first
        record = aws.record()
        assert record is not None
        assert record["request_id"]["S"] == successor.bills[0]
        second.cancel()

    asyncio.run(scenario())


def test_a_claim_whose_confirmation_got_lost_is_repeated_by_boto3_and_still_ours(new_process: NewProcess) -> None:
    async def scenario() -> None:
        records = new_process().idempotency._records
        claim = Claim("key_1#x", "hash", "req_1", NOON_MS)
        assert await records.claim(claim, until_ms=NOON_MS + 1) is None
        assert await records.claim(claim, until_ms=NOON_MS + 1) is None

    asyncio.run(scenario())


# ── The store fails ────────────────────────────────────────────────────────────────────────────────────────


def test_without_the_table_nothing_is_called(new_process: NewProcess) -> None:
    """Who sends a key wants to pay once; that cannot be promised now."""
    process = new_process(dead=True)
    with pytest.raises(StoreUnavailableError) as failed:
        asyncio.run(process.ask())
    assert (failed.value.http_status, failed.value.should_retry, process.bills) == (503, True, [])


@pytest.mark.parametrize("stream", [False, True])
def test_a_store_that_fails_after_the_model_answered_does_not_take_the_answer_away(
    new_process: NewProcess, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    process = new_process(stream=stream, content="비밀")

    async def die() -> None:
        process.dead = True

    process.pause = die
    body, _ = asyncio.run(process.read())
    assert body.endswith(sse.DONE if stream else b"}")
    (logged,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert (logged.message, vars(logged)["request_id"]) == ("answer not kept", process.bills[0])
    assert "비밀" not in caplog.text


# ── The client leaves ──────────────────────────────────────────────────────────────────────────────────────


def test_who_leaves_in_mid_stream_gets_the_whole_answer_with_the_retry(new_process: NewProcess) -> None:
    process = new_process(stream=True)
    loop = EventLoop()
    answer = loop.run(process.ask())
    assert not isinstance(answer.body, bytes)
    events: Any = loop.iterate(answer.body)
    first = next(events)
    events.close()
    body, headers = loop.run(new_process().read())
    assert body.startswith(first)
    assert (body.count(b"\n\n"), body.endswith(sse.DONE)) == (6, True)
    assert headers["x-request-id"] == process.rows[0]
    loop.close()


def test_who_saw_the_end_finds_it_kept_and_booked(aws: Aws, new_process: NewProcess) -> None:
    async def scenario() -> None:
        process = new_process(stream=True)
        answer = await process.ask()
        assert not isinstance(answer.body, bytes)
        async for event in answer.body:
            record = aws.record()
            assert record is not None
            assert record["state"]["S"] == ("done" if event == sse.DONE else "running")
            assert len(process.rows) == (event == sse.DONE)

    asyncio.run(scenario())


# ── Where answers are kept ─────────────────────────────────────────────────────────────────────────────────


def test_text_is_kept_compressed(aws: Aws, new_process: NewProcess) -> None:
    body, _ = asyncio.run(new_process(stream=True, content="가나다라" * 500).read())
    record = aws.record()
    assert record is not None
    assert len(record["body"]["B"]) < len(body) / 10
    assert asyncio.run(new_process().read())[0] == body


def noise(size: int) -> str:
    """Text that does not compress below three quarters of its length."""
    return base64.b64encode(random.Random(1).randbytes(size * 3 // 4)).decode()


@pytest.mark.parametrize(("size", "objects"), [(400_000, 0), (600_000, 1)])
def test_an_answer_too_large_for_an_item_goes_to_s3(aws: Aws, new_process: NewProcess, size: int, objects: int) -> None:
    process, retry = new_process(content=noise(size)), new_process()
    body, _ = asyncio.run(process.read())
    assert len(aws.s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])) == objects
    assert asyncio.run(retry.read())[0] == body
    assert ("put_object" in process.calls, "get_object" in retry.calls) == (bool(objects), bool(objects))
    assert retry.bills == []


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_kept_answer_that_is_damaged_is_never_given_out(
    aws: Aws, new_process: NewProcess, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    process, retry = new_process(content=noise(600_000)), new_process()
    asyncio.run(process.read())
    (found,) = aws.s3.list_objects_v2(Bucket=BUCKET)["Contents"]
    if damage == "gone":
        aws.s3.delete_object(Bucket=BUCKET, Key=found["Key"])
    else:
        aws.s3.put_object(Bucket=BUCKET, Key=found["Key"], Body=b"{}")
    body, headers = asyncio.run(retry.read())
    assert len(retry.bills) == 1
    assert "idempotency-replayed" not in headers
    assert "kept answer lost" in caplog.messages
    assert asyncio.run(new_process().read())[0] == body


def test_s3_that_cannot_be_reached_is_a_retryable_error_and_keeps_the_answer(aws: Aws, new_process: NewProcess) -> None:
    process, retry = new_process(content=noise(600_000)), new_process()
    body, _ = asyncio.run(process.read())

    class Unreachable:
        def get_object(self, **_: Any) -> Any:
            raise EndpointConnectionError(endpoint_url="https://s3")

    retry.idempotency._records._new_s3_client = Unreachable  # type: ignore[assignment]
    with pytest.raises(NaruError) as failed:
        asyncio.run(retry.ask())
    assert (failed.value.http_status, failed.value.should_retry, retry.bills) == (503, True, [])
    assert asyncio.run(new_process().read())[0] == body
