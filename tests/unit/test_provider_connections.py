"""Kept connections to a provider: what is closed or old is not used again, and a call that breaks is never called unbilled
where that is not certain.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, Literal

import httpcore._async.http11
import pytest

from naru.failures import AttemptFailedError
from naru.upstream import Upstream, new_http_client
from tests.accounts import CATALOG, OMNI
from tests.one_gateway import _Secret
from tests.unit.test_kept_connections import reset

ANSWER = b'{"choices":[{"message":{"role":"assistant","content":"."},"finish_reason":"stop"}]}'
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)
End = Callable[[asyncio.StreamWriter], None]
Moment = Literal["idle", "asked", "answering"]


class Provider:
    """Answers, and may end a connection when it is used again."""

    def __init__(self) -> None:
        self.open: list[asyncio.StreamWriter] = []
        self.calls = 0
        self.end: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.append(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    int(line.split(b":")[1])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length")
                )
                await reader.readexactly(length)
                self.calls += 1
                if self.end is not None:
                    await self.end(writer)
                    return
                writer.write(OK)
        except (ConnectionError, asyncio.IncompleteReadError):
            return


@asynccontextmanager
async def calling(provider: Provider) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    deployment = CATALOG.model(OMNI).deployments[0]
    async with new_http_client() as client:
        upstream = Upstream(
            client, _Secret({deployment.at.secret: "k"}), {deployment.provider: f"http://{host}:{port}"}
        )
        yield lambda: upstream.answer(deployment, {"messages": []}, request_id="r", deadline_s=10)
    for writer in provider.open:
        writer.close()
    server.close()


@pytest.mark.parametrize("end", [reset, asyncio.StreamWriter.close], ids=["RST", "FIN"])
def test_a_connection_that_the_provider_closed_while_it_was_idle_is_not_used(end: End) -> None:
    """The loop stood still meanwhile, as between two invocations."""

    async def scenario() -> None:
        provider = Provider()
        async with calling(provider) as call:
            await call()
            end(provider.open[0])
            await asyncio.sleep(0)  # the provider's end of it is closed
            time.sleep(0.05)  # noqa: ASYNC251 - the loop stands still
            await call()
            assert (provider.calls, len(provider.open)) == (2, 2)

    asyncio.run(scenario())


@pytest.mark.parametrize("end", [reset, asyncio.StreamWriter.close], ids=["RST", "FIN"])
@pytest.mark.parametrize("reused", [True, False], ids=["reused", "fresh"])
@pytest.mark.parametrize("answered", [b"", OK[:20], OK[:-5]], ids=["no byte", "half a line", "half an answer"])
def test_a_call_that_breaks_after_it_was_sent_may_have_been_billed(end: End, reused: bool, answered: bytes) -> None:
    """Also on a kept connection: the provider may have read all of it before it closed."""

    async def scenario() -> None:
        provider = Provider()

        async def break_off(writer: asyncio.StreamWriter) -> None:
            writer.write(answered)
            await writer.drain()
            end(writer)

        async with calling(provider) as call:
            if reused:
                await call()
            provider.end = break_off
            with pytest.raises(AttemptFailedError) as failed:
                await call()
            assert (failed.value.maybe_billed, failed.value.again) == (True, "elsewhere")
            assert failed.value.result == "reset"
            assert provider.calls == 1 + reused  # nor was it sent a second time behind our back

    asyncio.run(scenario())


@pytest.mark.parametrize(("idle_s", "connections"), [(10.0, 1), (25.0, 2)])
def test_a_connection_is_left_before_providers_leave_it(
    idle_s: float, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = SimpleNamespace(s=0.0)
    shim = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead.s)
    monkeypatch.setattr(httpcore._async.http11, "time", shim)

    async def scenario() -> None:
        provider = Provider()
        async with calling(provider) as call:
            await call()
            ahead.s = idle_s
            await call()
            assert len(provider.open) == connections

    asyncio.run(scenario())


def test_a_provider_that_cannot_be_reached_was_surely_not_billed() -> None:
    async def scenario() -> None:
        provider = Provider()
        deployment = CATALOG.model(OMNI).deployments[0]
        server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        server.close()
        await server.wait_closed()
        async with new_http_client() as client:
            upstream = Upstream(
                client, _Secret({deployment.at.secret: "k"}), {deployment.provider: f"http://{host}:{port}"}
            )
            with pytest.raises(AttemptFailedError) as failed:
                await upstream.answer(deployment, {"messages": []}, request_id="r", deadline_s=10)
        assert (failed.value.maybe_billed, failed.value.result) == (False, "connect")

    asyncio.run(scenario())
