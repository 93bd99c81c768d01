r"""A small HTTP/1.1 server on asyncio and h11, for development only.

ASGI hides the wire. The front door and the simulated model need it: request trailers, a reset at a chosen byte, a
client's departure noticed while nothing is written. One function is the whole interface::

    async def handler(request: Request, response: Response) -> None:
        if await request.body(limit_bytes=10_000_000) == b"ping":
            await response.send(200, [("content-type", "text/plain")], b"pong")
        else:
            await response.start(200, [("content-type", "text/event-stream")])
            await response.write(b"data: one\n\n")  # on the wire when this returns
            await response.finish()

    async with serve(handler) as server:
        print(f"http://{server.host}:{server.port}")

The rules:

- One handler call per request; requests of one connection are handled one after another, pipelined ones too.
- Whoever closes the sending side has gone: `request.disconnected` is set and writing raises `ClientGone`. The handler
  keeps running, since a gateway still has accounting to do. (An upload that nobody reads stops being read from the
  socket at 256 KiB, and then a departure is noticed at the next read or write only.)
- `100 Continue` goes out at the first attempt to read a body. What a handler leaves unread is read and dropped, up to
  1 MiB; beyond, the connection is closed in a way that lets the client read the answer first.
- A handler that raises, or returns without an answer, is reported on stderr: answered 500 if nothing was sent, a reset
  otherwise. `ClientGone` is no error. A malformed request is answered 400.
- Leaving `serve` closes the listener, cancels the handlers and waits for them.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast
from urllib.parse import parse_qsl

import h11

Headers = Sequence[tuple[str, str]]

_READ_AHEAD_BYTES = 256 * 1024
_DROPPED_BODY_BYTES = 1024 * 1024
_LINGER_S = 2.0
_MAX_HEAD_BYTES = 256 * 1024


class ClientGone(Exception):  # noqa: N818 - an event, and the name that handlers read best
    """The client has closed or reset the connection."""


class BodyTooLarge(Exception):  # noqa: N818
    """The request's body is larger than the handler accepts; the rest of it has not been read."""


class Request:
    """One request: the head has arrived, the body may not have.

    `target` is as sent; `path` is the part before `?`, not percent-decoded; `query` is decoded, blank values kept.
    `headers` has lower-case names, in order, repeats kept. `trailers` is filled when the body has been read.
    """

    def __init__(self, connection: _Connection, head: h11.Request) -> None:
        self._connection = connection
        self._ended = False
        self.method = head.method.decode("ascii")
        self.target = head.target.decode("latin-1")
        self.path, _, query = self.target.partition("?")
        self.query = parse_qsl(query, keep_blank_values=True)
        self.headers = [(name.decode("ascii"), value.decode("latin-1")) for name, value in head.headers]
        self.trailers: list[tuple[str, str]] = []
        self.client_host = connection.client_host
        self.disconnected = connection.disconnected

    def header(self, name: str, default: str | None = None) -> str | None:
        """Return the first value of a header, whatever the case of its name."""
        return next((value for key, value in self.headers if key == name.lower()), default)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives. Raises ClientGone when the client leaves before its end."""
        while not self._ended:
            event = await self._connection.next_event()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            else:
                self._ended = True
                if isinstance(event, h11.EndOfMessage):
                    self.trailers = [(name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers]

    async def body(self, limit_bytes: int | None = None) -> bytes:
        """Return the whole body. Raises BodyTooLarge as soon as it must exceed the limit, and ClientGone."""
        declared = int(self.header("content-length") or 0)
        if limit_bytes is not None and declared > limit_bytes:
            raise BodyTooLarge(declared)
        read = bytearray()
        async for chunk in self:
            read += chunk
            if limit_bytes is not None and len(read) > limit_bytes:
                raise BodyTooLarge(len(read))
        return bytes(read)


class Response:
    """The answer to one request: `send`, or `start`, `write`… and `finish`.

    `transport` is the raw asyncio transport, for a test that wants bytes no server would send.
    """

    def __init__(self, connection: _Connection, *, bodiless: bool) -> None:
        self._connection = connection
        self._bodiless = bodiless
        self.started = False
        self.finished = False
        self.transport = connection.transport

    async def send(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Send a whole answer; `content-length` is added. To HEAD only the head goes out."""
        has_length = any(name.lower() == "content-length" for name, _ in headers)
        length = [] if has_length or status in {204, 304} else [("content-length", str(len(body)))]
        await self.start(status, [*headers, *length])
        await self.write(body)
        await self.finish()

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head. Without a `content-length` the body goes out in chunks."""
        pairs = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers]
        if self._connection.wire.they_are_waiting_for_100_continue:
            pairs.append((b"connection", b"close"))  # nobody can tell whether the unasked-for body will come
        self._bodiless = self._bodiless or status in {204, 304}
        self.started = True
        await self._connection.send(h11.Response(status_code=status, headers=pairs))

    async def write(self, data: bytes) -> None:
        """Send a part of the body, as one chunk, at once. Raises ClientGone."""
        if data and not self._bodiless:
            await self._connection.send(h11.Data(data=data))

    async def finish(self) -> None:
        """End the answer. Raises h11.LocalProtocolError when less was written than `content-length` promised."""
        self.finished = True
        await self._connection.send(h11.EndOfMessage())

    def close(self) -> None:
        """Close the connection where it is, after what has been written: a cleanly closed, cut answer."""
        self.transport.close()

    def abort(self) -> None:
        """Reset the connection (RST) at once, whatever has been sent."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and not self._connection.lost:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


Handler = Callable[[Request, Response], Awaitable[None]]


class _Connection(asyncio.Protocol):
    """One connection: the protocol callbacks feed h11, one task takes the requests out of it in turn."""

    transport: asyncio.Transport
    client_host: str

    def __init__(self, handler: Handler, connections: set[_Connection]) -> None:
        self._handler = handler
        self._connections = connections
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._buffered = 0
        self._discarding = False
        self.wire = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES)
        self.disconnected = asyncio.Event()
        self.closed = asyncio.Event()
        self.lost = False
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # asyncio has set TCP_NODELAY
        peer = transport.get_extra_info("peername")
        self.client_host = str(peer[0]) if peer else ""
        self._writable.set()
        self._connections.add(self)
        self.task = asyncio.get_running_loop().create_task(self._run())

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        self.wire.receive_data(data)
        self._buffered += len(data)
        self._arrived.set()
        if self._buffered > _READ_AHEAD_BYTES:
            self.transport.pause_reading()

    def eof_received(self) -> bool | None:
        self._wake()
        return None  # the transport flushes and closes

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        self.lost = True
        self._wake()
        self.closed.set()
        self._connections.discard(self)

    def _wake(self) -> None:
        self.disconnected.set()
        self._arrived.set()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def next_event(self) -> h11.Event | type[h11.PAUSED]:
        """Return what h11 makes of the bytes, waiting for more. Raises ClientGone, h11.RemoteProtocolError."""
        while True:
            event = self.wire.next_event()
            if isinstance(event, h11.Event) or event is h11.PAUSED:
                return event
            if self.disconnected.is_set():
                raise ClientGone
            if self.wire.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            self._buffered = 0
            self._arrived.clear()
            self.transport.resume_reading()
            await self._arrived.wait()

    async def send(self, event: h11.Event) -> None:
        """Write one event and wait until the socket has taken it. Raises ClientGone."""
        if self.disconnected.is_set() or self.transport.is_closing():
            raise ClientGone
        data = self.wire.send(event)
        if data:
            self.transport.write(data)
            await asyncio.sleep(0)  # a handler that only writes must still hear of a departure
            await self._writable.wait()

    async def _run(self) -> None:
        try:
            while not self.transport.is_closing() and await self._serve_one():
                self.wire.start_next_cycle()
        except (ClientGone, h11.RemoteProtocolError):
            pass
        finally:
            self.transport.close()

    async def _serve_one(self) -> bool:
        """Handle one request and say whether the connection can take another."""
        try:
            head = await self.next_event()
        except h11.RemoteProtocolError as error:
            await _refuse(Response(self, bodiless=False), error)
            return False
        if not isinstance(head, h11.Request):
            return False
        request, response = Request(self, head), Response(self, bodiless=head.method == b"HEAD")
        try:
            await self._handler(request, response)
            if not response.finished and not self.transport.is_closing():
                raise RuntimeError(
                    f"the handler of {request.method} {request.target} returned without finishing its answer"
                )
        except ClientGone:
            return False
        except h11.RemoteProtocolError as error:
            await _refuse(response, error)
            return False
        except Exception:  # noqa: BLE001 - the last resort of the server: report it and go on
            traceback.print_exc(file=sys.stderr)
            if response.started:
                response.abort()
                return False
            await response.send(500, [("content-type", "text/plain")], b"internal error\n")
        return not self.transport.is_closing() and await self._drop_rest()

    async def _drop_rest(self) -> bool:
        """Read and drop what is left of the body, so that the next request can be found behind it."""
        dropped = 0
        while self.wire.their_state is h11.SEND_BODY and self.wire.our_state is not h11.MUST_CLOSE:
            event = await self.next_event()
            dropped += len(event.data) if isinstance(event, h11.Data) else 0
            if dropped > _DROPPED_BODY_BYTES:
                break
        if self.wire.our_state is h11.DONE and self.wire.their_state is h11.DONE:
            return True
        if self.wire.their_state is h11.SEND_BODY:
            # Closing with unread bytes would reset the connection and take the answer from the client.
            self._discarding = True
            self.transport.resume_reading()
            self.transport.write_eof()
            try:
                async with asyncio.timeout(_LINGER_S):
                    await self.disconnected.wait()
            except TimeoutError:
                pass
        return False


async def _refuse(response: Response, error: h11.RemoteProtocolError) -> None:
    if not response.started:
        await response.send(error.error_status_hint, [("connection", "close")], f"{error}\n".encode())


@dataclass(frozen=True)
class Server:
    """A running server; `port` is the real one also when 0 was asked for."""

    host: str
    port: int


@asynccontextmanager
async def serve(handler: Handler, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Server]:
    """Listen and hand every request to `handler` until the context is left. Raises OSError when the port is taken."""
    connections: set[_Connection] = set()
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: _Connection(handler, connections), host, port, backlog=1024)
    try:
        yield Server(host, listener.sockets[0].getsockname()[1])
    finally:
        listener.close()
        while connections:
            leaving = list(connections)
            tasks = [connection.task for connection in leaving if connection.task is not None]
            for task in tasks:
                task.cancel()
            for connection in leaving:
                connection.transport.abort()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(connection.closed.wait() for connection in leaving))
        await listener.wait_closed()
