"""The development server, seen from the other end of a socket."""

from __future__ import annotations

import asyncio
import functools
import gc
import socket
from collections.abc import Awaitable, Callable
from typing import ParamSpec

import h11
import httpx
import pytest

from local.http_server import BodyTooLarge, ClientGone, Request, Response, serve
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.slow

P = ParamSpec("P")
TEXT = [("content-type", "text/plain")]


def on_a_loop(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run a test on an event loop of its own; one that hangs fails after some minutes."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def limited() -> None:
            async with asyncio.timeout(PATIENCE_S):
                await test(*args, **kwargs)

        asyncio.run(limited(), debug=True)
        gc.collect()  # what was leaked warns here, inside the test

    return run


async def echo(request: Request, response: Response) -> None:
    """Answer with what was asked."""
    body = await request.body()
    await response.send(200, TEXT, f"{request.method} {request.target} ".encode() + body)


async def exchange(port: int, sent: bytes) -> bytes:
    """Send raw bytes and return all that comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    answer = await reader.read()
    writer.close()
    return answer


@on_a_loop
async def test_path_is_left_encoded_and_the_query_is_decoded() -> None:
    seen: list[Request] = []

    async def handler(request: Request, response: Response) -> None:
        seen.append(request)
        await response.send(204, [])

    async with serve(handler) as server, httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{server.port}/a%2Fb/%EB%82%98?x=1&x=%EB%A3%A8&empty="
        answer = await client.get(url, headers=[("X-Twice", "1"), ("x-twice", "2")])
    assert answer.status_code == 204
    assert seen[0].path == "/a%2Fb/%EB%82%98"
    assert seen[0].query == [("x", "1"), ("x", "루"), ("empty", "")]
    assert [value for name, value in seen[0].headers if name == "x-twice"] == ["1", "2"]
    assert seen[0].header("X-TWICE") == "1"


@on_a_loop
async def test_pipelined_requests_are_answered_in_order_on_one_connection() -> None:
    async with serve(echo) as server:
        first = b"POST /1 HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\none"
        last = b"GET /2 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        answer = await exchange(server.port, first + last)
    assert answer.index(b"POST /1 one") < answer.index(b"GET /2 ")


@on_a_loop
async def test_a_connection_is_reused_also_when_a_body_was_left_unread() -> None:
    peers: list[object] = []

    async def handler(request: Request, response: Response) -> None:
        peers.append(response.transport)
        await response.send(200, TEXT, request.path.encode())

    async with serve(handler) as server, httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        answers = [(await client.post("/1", content=b"x" * 100_000)).text, (await client.get("/2")).text]
    assert answers == ["/1", "/2"]
    assert peers[0] is peers[1]


@on_a_loop
async def test_each_write_is_one_chunk_that_arrives_before_the_next_is_written() -> None:
    arrived = asyncio.Event()

    async def handler(_: Request, response: Response) -> None:
        await response.start(200, TEXT)
        await response.write(b"one")
        await arrived.wait()
        await response.write(b"two")
        await response.finish()

    async with serve(handler) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"chunked" in head
        assert await reader.readexactly(8) == b"3\r\none\r\n"
        arrived.set()
        assert await reader.readexactly(13) == b"3\r\ntwo\r\n0\r\n\r\n"
        writer.close()


@on_a_loop
async def test_a_body_is_streamed_as_it_arrives_and_its_trailers_come_after_it() -> None:
    async def handler(request: Request, response: Response) -> None:
        await response.start(200, TEXT)
        async for chunk in request:
            await response.write(b"<" + chunk + b">")
        await response.write(repr(request.trailers).encode())
        await response.finish()

    async with serve(handler) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ntrailer: X-Error\r\n\r\n3\r\nabc\r\n"
        )
        await reader.readuntil(b"<abc>")
        writer.write(b"2\r\nde\r\n0\r\nX-Error: late\r\n\r\n")
        assert b"[('x-error', 'late')]" in await reader.readuntil(b"0\r\n\r\n")
        writer.close()


@on_a_loop
async def test_a_body_over_the_limit_is_refused_and_the_client_can_read_the_refusal() -> None:
    async def handler(request: Request, response: Response) -> None:
        try:
            await request.body(limit_bytes=10)
        except BodyTooLarge:
            await response.send(413, TEXT, b"too large")

    async with serve(handler) as server, httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        declared = await client.post("/", content=b"x" * 11)
        large = await client.post("/", content=b"x" * 8_000_000)
        head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        undeclared = await exchange(server.port, head + b"b\r\n" + b"x" * 11 + b"\r\n0\r\n\r\n")
    assert (declared.status_code, declared.text) == (413, "too large")
    assert (large.status_code, large.text) == (413, "too large")
    assert undeclared.startswith(b"HTTP/1.1 413")


@on_a_loop
async def test_a_client_that_waits_for_100_continue_gets_it_when_the_body_is_wanted() -> None:
    async def handler(request: Request, response: Response) -> None:
        if request.path == "/wanted":
            await echo(request, response)
        else:
            await response.send(403, TEXT, b"no")

    async with serve(handler) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /wanted HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(b"ok")
        assert (await reader.readuntil(b" ok")).startswith(b"HTTP/1.1 200")
        writer.write(b"POST /unwanted HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        assert (await reader.readuntil(b"no")).startswith(b"HTTP/1.1 403")
        assert await reader.read() == b""
        writer.close()


@on_a_loop
async def test_head_gets_the_length_and_no_body() -> None:
    async with serve(echo) as server:
        answer = await exchange(server.port, b"HEAD /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert b"content-length: 8" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("reset", [False, True])
@on_a_loop
async def test_a_departure_is_noticed_while_nothing_is_written(reset: bool) -> None:
    reached, noticed, refused = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handler(request: Request, response: Response) -> None:
        await response.start(200, TEXT)
        reached.set()
        await request.disconnected.wait()
        noticed.set()
        try:
            await response.write(b"late")
        except ClientGone:
            refused.set()
            raise

    async with serve(handler) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await reached.wait()
        if reset:
            writer.transport.abort()
        else:
            writer.close()
        await noticed.wait()
        await refused.wait()


@on_a_loop
async def test_a_slow_reader_holds_the_writer_back() -> None:
    written = 0
    stuck = asyncio.Event()

    async def handler(_: Request, response: Response) -> None:
        nonlocal written
        await response.start(200, TEXT)
        while True:
            timer = asyncio.get_running_loop().call_later(0.3, stuck.set)
            await response.write(b"x" * 65536)
            timer.cancel()
            written += 65536

    async with serve(handler) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)  # reads 128 KiB ahead, then no more
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await stuck.wait()
        assert written < 50_000_000
        writer.transport.abort()


@on_a_loop
async def test_an_aborted_answer_is_a_reset_and_a_short_one_a_clean_close() -> None:
    async def handler(request: Request, response: Response) -> None:
        if request.path == "/before":
            response.abort()
            return
        await response.start(200, [("content-length", "500")])
        await response.write(b"x" * 100)
        if request.path == "/reset":
            response.abort()
        else:
            response.close()

    async with serve(handler) as server, httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        for path in ("/before", "/reset"):
            with pytest.raises(httpx.ReadError):
                await client.get(path)
        with pytest.raises(httpx.RemoteProtocolError, match="100 bytes, expected 500"):
            await client.get("/short")


@on_a_loop
async def test_an_abort_of_a_client_already_gone_is_harmless() -> None:
    done = asyncio.Event()

    async def handler(request: Request, response: Response) -> None:
        await request.disconnected.wait()
        response.abort()
        response.close()
        done.set()

    async with serve(handler) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.sleep(0)
        writer.close()
        await done.wait()


@on_a_loop
async def test_a_failing_handler_is_a_500_and_after_the_head_a_reset(capsys: pytest.CaptureFixture[str]) -> None:
    async def handler(request: Request, response: Response) -> None:
        if request.path == "/silent":
            return
        if request.path == "/late":
            await response.start(200, TEXT)
        message = "배가 가라앉았다"
        raise LookupError(message)

    async with serve(handler) as server, httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        assert (await client.get("/early")).status_code == 500
        assert (await client.get("/silent")).status_code == 500
        with pytest.raises(httpx.ReadError):
            await client.get("/late")
    reported = capsys.readouterr().err
    assert reported.count("LookupError: 배가 가라앉았다") == 2
    assert "GET /silent returned without finishing" in reported


@on_a_loop
async def test_a_malformed_request_is_a_400() -> None:
    async with serve(echo) as server:
        assert (await exchange(server.port, b"hello there\r\n\r\n")).startswith(b"HTTP/1.1 400")
        chunked = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
        assert (await exchange(server.port, chunked)).startswith(b"HTTP/1.1 400")


@on_a_loop
async def test_finishing_short_of_the_declared_length_is_an_error_of_the_handler() -> None:
    raised: list[Exception] = []

    async def handler(_: Request, response: Response) -> None:
        await response.start(200, [("content-length", "500")])
        try:
            await response.finish()
        except h11.LocalProtocolError as error:
            raised.append(error)
            response.abort()

    async with serve(handler) as server, httpx.AsyncClient() as client:
        with pytest.raises(httpx.HTTPError):
            await client.get(f"http://127.0.0.1:{server.port}/")
    assert len(raised) == 1


@on_a_loop
async def test_a_taken_port_is_an_oserror() -> None:
    async with serve(echo) as server:
        with pytest.raises(OSError, match="in use"):
            await serve(echo, port=server.port).__aenter__()


@on_a_loop
async def test_leaving_cancels_handlers_and_closes_everything() -> None:
    reached, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(_: Request, response: Response) -> None:
        await response.start(200, TEXT)
        reached.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with serve(handler) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        _, idle = await asyncio.open_connection("127.0.0.1", server.port)
        await reached.wait()
    assert cancelled.is_set()
    assert len(asyncio.all_tasks()) == 1
    await reader.read()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port)).close()
    writer.close()
    idle.close()
