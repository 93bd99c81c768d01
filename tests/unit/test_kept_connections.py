"""Kept connections that are not what they seem: the service has closed them, or the network has forgotten them.

A service of its own on a socket, because these faults are below HTTP.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from naru import aws_calls
from naru.aws_calls import Credentials, DynamoDB

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
KEYS = Credentials("AKIDEXAMPLE", "secret", None)


class Random(random.Random):
    """Remembers whether a pause was drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses = 0

    def random(self) -> float:
        self.pauses += 1
        return 0.0


Behaviour = Callable[["Service", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Service:
    """Answers each request well, but for connections that ``later`` decides about from their second request on."""

    def __init__(self, first: Behaviour | None = None) -> None:
        self.later: Behaviour | None = None
        self.first = first
        self.open: list[asyncio.StreamWriter] = []
        self.connections = 0
        self.requests = 0
        self.together = 1
        self._arrived = 0
        self._all = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.append(writer)
        number = 0
        try:
            while await self.request(reader):
                number += 1
                behaviour = self.first if number == 1 else self.later
                if behaviour is not None:
                    await behaviour(self, reader, writer)
                    return
                if number == 1:
                    await self.meet()
                writer.write(OK)
        except (ConnectionError, asyncio.IncompleteReadError):
            return

    async def request(self, reader: asyncio.StreamReader) -> bool:
        """Reads one; False at the end of the connection."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        self.requests += 1
        return True

    async def meet(self) -> None:
        """Until as many requests are there as are to have a connection each."""
        self._arrived += 1
        if self._arrived >= self.together:
            self._all.set()
        await self._all.wait()


def reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection with RST."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def with_rst(_service: Service, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    reset(writer)


async def with_fin(_service: Service, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def with_silence(_service: Service, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def in_the_middle(_service: Service, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(OK[:30])
    await writer.drain()
    writer.close()


@asynccontextmanager
async def running(service: Service, **options: Any) -> AsyncIterator[tuple[DynamoDB, Random]]:
    server = await asyncio.start_server(service.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    rng = Random()
    client = DynamoDB(
        region="ap-northeast-2", endpoint_url=f"http://{host}:{port}", credentials=lambda: KEYS, rng=rng, **options
    )
    try:
        yield client, rng
    finally:
        client.close()
        for writer in service.open:
            writer.close()
        server.close()


async def kept(service: Service, client: DynamoDB, count: int) -> None:
    """So many connections, idle."""
    service.together = count
    await asyncio.gather(*(client.get_item(TableName="t") for _ in range(count)))
    assert service.connections == count


AT_ITS_NEXT_REQUEST: dict[str, Behaviour] = {"RST": with_rst, "FIN": with_fin}


@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize("stale", [1, 3, 20])
@pytest.mark.parametrize("how", AT_ITS_NEXT_REQUEST)
def test_connections_that_break_when_they_are_used_again_fail_no_call(how: str, stale: int, attempts: int) -> None:
    """Six calls in a row: the first finds out, and none of them waits or uses up an attempt."""

    async def scenario() -> None:
        service = Service()
        async with running(service, attempts=attempts) as (client, rng):
            await kept(service, client, stale)
            service.later = AT_ITS_NEXT_REQUEST[how]
            for number in range(6):
                assert await client.update_item(TableName="t") == {}, number
                if number == 0:
                    service.later = None
            assert service.connections == stale + 1
            assert rng.pauses == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("how", AT_ITS_NEXT_REQUEST)
def test_many_calls_at_once_on_broken_connections_are_all_answered(how: str) -> None:
    async def scenario() -> None:
        service = Service()
        async with running(service, attempts=1) as (client, rng):
            await kept(service, client, 20)
            service.later = AT_ITS_NEXT_REQUEST[how]
            assert await asyncio.gather(*(client.get_item(TableName="t") for _ in range(20))) == [{}] * 20
            assert rng.pauses == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("end", [reset, asyncio.StreamWriter.close], ids=["RST", "FIN"])
@pytest.mark.parametrize("seen", [True, False], ids=["seen by the loop", "not seen yet"])
@pytest.mark.parametrize("stale", [1, 20])
def test_a_connection_that_was_closed_while_idle_is_not_used(
    end: Callable[[asyncio.StreamWriter], None], seen: bool, stale: int
) -> None:
    """The loop stands still between two invocations, so it may not have read of it yet: the socket has."""

    async def scenario() -> None:
        service = Service()
        async with running(service, attempts=1) as (client, _):
            await kept(service, client, stale)
            sockets = [connection._writer.get_extra_info("socket").fileno() for connection in client._idle]
            for writer in service.open:
                end(writer)
            await asyncio.to_thread(_readable, sockets)
            for _ in range(5 if seen else 0):
                await asyncio.sleep(0)
            asked = service.requests
            assert await client.get_item(TableName="t") == {}
            assert service.requests == asked + 1

    asyncio.run(scenario())


def _readable(sockets: list[int]) -> None:
    import select

    waiting = select.poll()
    for number in sockets:
        waiting.register(number, select.POLLIN | select.POLLHUP | select.POLLERR)
    while len(waiting.poll(5000)) < len(sockets):
        pass


def test_a_connection_that_has_gone_silent_costs_one_attempt_and_the_others_none() -> None:
    """A network that has forgotten it says nothing at all, so this takes a timeout; but one."""

    async def scenario() -> None:
        service = Service()
        async with running(service, attempts=2, read_timeout_s=0.2) as (client, _):
            await kept(service, client, 20)
            service.later = with_silence
            assert await client.get_item(TableName="t") == {}
            assert service.connections == 21
            assert service.requests == 20 + 2

    asyncio.run(scenario())


@pytest.mark.parametrize("behaviour", [with_rst, with_fin, in_the_middle])
def test_a_fresh_connection_that_breaks_uses_up_an_attempt(behaviour: Behaviour) -> None:
    async def scenario() -> None:
        service = Service(first=behaviour)
        async with running(service) as (client, rng):
            with pytest.raises(BotoCoreError):
                await client.get_item(TableName="t")
            assert (service.connections, rng.pauses) == (3, 2)

    asyncio.run(scenario())


def test_a_reused_connection_that_breaks_within_an_answer_uses_up_an_attempt() -> None:
    async def scenario() -> None:
        service = Service()
        async with running(service) as (client, rng):
            await kept(service, client, 1)
            service.later = in_the_middle
            assert await client.get_item(TableName="t") == {}
            assert rng.pauses == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("clock", ["monotonic", "time"])
@pytest.mark.parametrize(("idle_s", "fresh"), [(5.0, 0), (40.0, 1)])
def test_a_connection_that_has_been_idle_for_long_is_not_used(
    clock: str, idle_s: float, fresh: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the later of two clocks: the monotonic one may stand still while the environment is frozen."""
    ahead = {"monotonic": 0.0, "time": 0.0}
    shim = SimpleNamespace(
        monotonic=lambda: time.monotonic() + ahead["monotonic"],
        time=lambda: time.time() + ahead["time"],
        strftime=time.strftime,
        gmtime=time.gmtime,
    )
    monkeypatch.setattr(aws_calls, "time", shim)

    async def scenario() -> None:
        service = Service()
        async with running(service) as (client, _):
            await kept(service, client, 3)
            ahead[clock] = idle_s
            await client.get_item(TableName="t")
            assert service.connections == 3 + fresh
            assert len(client._idle) == (1 if fresh else 3)

    asyncio.run(scenario())


# ── Answers of other shapes ────────────────────────────────────────────────────────────────────────────────

ERROR = b'{"__type":"x#InternalServerError","message":"no"}'
CHUNKED = b"%x\r\n%b\r\n%x;extension=1\r\n%b\r\n0\r\ntrailer: 1\r\n\r\n" % (10, ERROR[:10], len(ERROR) - 10, ERROR[10:])
SHAPES = {
    "no length, closed": (b"HTTP/1.1 503 Busy\r\nConnection: close\r\n\r\n" + ERROR, True),
    "no length, not said to be closed": (b"HTTP/1.1 503 Busy\r\n\r\n" + ERROR, True),
    "no body": (b"HTTP/1.1 503 Busy\r\nConnection: close\r\n\r\n", True),
    "HTTP/1.0": (b"HTTP/1.0 503 Busy\r\ncontent-length: %d\r\n\r\n" % len(ERROR) + ERROR, True),
    "chunked": (b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED, False),
    "chunked, closed": (
        b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\nConnection: Close\r\n\r\n" + CHUNKED,
        True,
    ),
    "a length that is none": (b"HTTP/1.1 503 Busy\r\ncontent-length: many\r\n\r\n" + ERROR, True),
    "not HTTP": (b"hello\r\n\r\n", True),
    "half a chunk": (b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\nabc", True),
}


def answering(shape: bytes, *, closes: bool) -> Behaviour:
    async def behave(service: Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(shape)
        if closes:
            writer.close()
            return
        while await service.request(reader):
            writer.write(OK)

    return behave


@pytest.mark.parametrize("name", SHAPES)
def test_an_answer_of_whatever_shape_is_tried_again(name: str) -> None:
    """A proxy, or a service in trouble; never a defect of ours."""
    shape, closes = SHAPES[name]

    async def scenario() -> None:
        service = Service(first=answering(shape, closes=closes))
        async with running(service, attempts=2) as (client, _):
            if closes:
                with pytest.raises((BotoCoreError, ClientError)):
                    await client.get_item(TableName="t")
                assert (service.connections, client._idle) == (2, [])
            else:
                assert await client.get_item(TableName="t") == {}
                assert (service.connections, len(client._idle)) == (1, 1)

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ["no length, closed", "HTTP/1.0", "chunked, closed"])
def test_the_words_of_an_error_are_read_whatever_its_shape(name: str) -> None:
    async def scenario() -> None:
        service = Service(first=answering(SHAPES[name][0], closes=True))
        async with running(service, attempts=1) as (client, _):
            with pytest.raises(ClientError) as failed:
                await client.get_item(TableName="t")
            assert failed.value.response["Error"] == {"Code": "InternalServerError", "Message": "no"}

    asyncio.run(scenario())
