"""Plays API Gateway: a REST API with Lambda proxy integrations, streaming and buffered.

Routes, timeouts and gateway responses are those of the transformed template; the functions run in real runtime
processes (`local.handler_pool`). Bytes of a stream go out as they arrive. What the real one does is done here, also
where it hurts: a client that leaves does not stop its function, and a stream that breaks is not ended cleanly.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
import uuid
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local import proxy_event
from local.handler_pool import HandlerPool, Throttled
from local.http_server import BodyTooLarge, ClientGone, Request, Response, serve
from local.invocation import FunctionError, Invocation
from local.proxy_event import MalformedResultError
from local.routing import GatewayError, Router
from local.stack import Function
from local.template import Api, GatewayResponse

MAX_PAYLOAD_BYTES = 10 * 1024 * 1024
MAX_EVENT_BYTES = 6 * 1024 * 1024

_STREAM_CONTENT_TYPE = "application/vnd.awslambda.http-integration-response"
_PRELUDE_END = bytes(8)
_MAX_PRELUDE_BYTES = 16 * 1024
# Of a regional endpoint (AWS: "Response transfer mode").
_STREAM_SILENCE_S = 300.0
_VARIABLE = re.compile(r"\$?context(?:\.[A-Za-z]+)+")


@dataclass(frozen=True)
class _Builtin:
    status: int
    message: str


# Status and message where the template says nothing (AWS: "Gateway response types").
_BUILTIN = {
    "MISSING_AUTHENTICATION_TOKEN": _Builtin(403, "Missing Authentication Token"),
    "REQUEST_TOO_LARGE": _Builtin(413, "Request Too Long"),
    "UNSUPPORTED_MEDIA_TYPE": _Builtin(415, "Unsupported Media Type"),
    "THROTTLED": _Builtin(429, "Too Many Requests"),
    "INTEGRATION_FAILURE": _Builtin(502, "Internal server error"),
    "INTEGRATION_TIMEOUT": _Builtin(504, "Endpoint request timed out"),
}
_PLAIN = GatewayResponse(status=None, headers={}, template='{"message":$context.error.messageString}')


@dataclass
class FrontDoor:
    """A running front door. Its methods may be called from any thread."""

    api: Api
    api_id: str
    pools: Mapping[str, HandlerPool]
    """By the function's logical id."""
    base_url: str = ""
    """With the stage: what an OpenAI client is given."""
    router: Router = field(init=False)

    def __post_init__(self) -> None:
        self.router = Router(self.api.routes)

    @property
    def process_count(self) -> int:
        """Processes of all functions together."""
        return sum(pool.process_count for pool in self.pools.values())

    def kill_handler(self, function: str | None = None, *, in_flight: bool | None = None) -> int:
        """`kill -9` a process of a function (of any, by default); see `HandlerPool.kill`. Raises LookupError."""
        for name in [function] if function else secrets.SystemRandom().sample(sorted(self.pools), len(self.pools)):
            try:
                return self.pools[name].kill(in_flight=in_flight)
            except LookupError:
                continue
        raise LookupError("there is no such process now")

    def log(self, function: str) -> str:
        """All that the processes of a function have printed, and what Lambda has to say about them."""
        return self.pools[function].log.read_text(errors="replace")

    async def answer(self, request: Request, response: Response) -> None:
        """Handle one request."""
        request_id = str(uuid.uuid4())
        exchange = _Exchange(self, request, response, request_id)
        try:
            await exchange.run()
        except GatewayError as error:
            if response.started:
                response.close()  # without the last chunk: what was sent arrives, and nobody takes it for the whole
                raise ClientGone from error
            status, headers, body = self._gateway_response(error.kind, request, request_id)
            await response.send(status, headers, body)

    def _gateway_response(
        self, kind: str, request: Request, request_id: str
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        builtin, configured = _BUILTIN[kind], self.api.gateway_responses
        default = "DEFAULT_4XX" if builtin.status < 500 else "DEFAULT_5XX"
        chosen = configured.get(kind) or configured.get(default) or _PLAIN
        variables = {
            "context.error.message": builtin.message,
            "context.error.messageString": json.dumps(builtin.message),
            "context.error.responseType": kind,
            "context.extendedRequestId": request_id,
            "context.httpMethod": request.method,
            "context.identity.sourceIp": request.client_host,
            "context.path": request.path,
            "context.requestId": request_id,
            "context.stage": self.api.stage,
        }
        headers = [("Content-Type", "application/json"), ("x-amzn-RequestId", request_id)]
        for name, expression in chosen.headers.items():
            literal = expression[1:-1] if expression[:1] == expression[-1:] == "'" else None
            headers.append((name, variables.get(expression, "") if literal is None else literal))
        template = chosen.template or _PLAIN.template or ""
        body = _VARIABLE.sub(
            lambda found: variables.get(found[0][1:], "") if found[0].startswith("$") else found[0], template
        )
        return chosen.status or builtin.status, headers, body.encode()


class _Exchange:
    """One request that finds its function."""

    def __init__(self, door: FrontDoor, request: Request, response: Response, request_id: str) -> None:
        self._door, self._api = door, door.api
        self._request, self._response, self._request_id = request, response, request_id

    async def run(self) -> None:
        """Forward the request and the answer. Raises GatewayError, ClientGone."""
        prefix = f"/{self._api.stage}"
        if self._request.path != prefix and not self._request.path.startswith(f"{prefix}/"):
            raise GatewayError("MISSING_AUTHENTICATION_TOKEN")
        route, parameters = self._door.router.match(self._request.method, self._request.path.removeprefix(prefix))
        try:
            content = await self._request.body(limit_bytes=MAX_PAYLOAD_BYTES)
            content = _decompressed(content, self._request.header("content-encoding") or "")
        except BodyTooLarge:
            raise GatewayError("REQUEST_TOO_LARGE") from None
        except zlib.error:
            raise GatewayError("UNSUPPORTED_MEDIA_TYPE") from None
        trace_id = self._request.header("x-amzn-trace-id") or f"Root=1-{int(time.time()):08x}-{secrets.token_hex(12)}"
        event = proxy_event.event(
            self._request,
            content,
            api=self._api,
            api_id=self._door.api_id,
            route=route,
            path_parameters=parameters,
            request_id=self._request_id,
            trace_id=trace_id,
        )
        payload = json.dumps(event, ensure_ascii=False).encode()
        if len(payload) > MAX_EVENT_BYTES:
            raise GatewayError("REQUEST_TOO_LARGE")
        pool = self._door.pools[route.function]
        try:
            invocation = pool.invoke(payload, trace_id=trace_id)
        except Throttled:
            # Not THROTTLED: that is what API Gateway says when it has no room itself.
            raise GatewayError("INTEGRATION_FAILURE") from None
        try:
            async with asyncio.timeout(route.timeout_ms / 1000):
                await (self._stream if route.streams else self._buffer)(invocation)
        except TimeoutError:
            pool.note(f"{route.method} {route.resource}: API Gateway has waited long enough")
            raise GatewayError("INTEGRATION_TIMEOUT") from None
        except (FunctionError, MalformedResultError) as error:
            pool.note(f"{route.method} {route.resource}: {error}")
            raise GatewayError("INTEGRATION_FAILURE") from None
        finally:
            invocation.abandon()

    async def _buffer(self, invocation: Invocation) -> None:
        if await invocation.mode() is not None:
            raise MalformedResultError("a streamed answer, where the integration does not stream")
        content = b"".join([chunk async for chunk in invocation])
        try:
            result: Any = json.loads(content)
        except ValueError:
            raise MalformedResultError("the result is not JSON") from None
        head = proxy_event.head(result)
        await self._response.send(head.status, self._marked(head), proxy_event.body(result))

    async def _stream(self, invocation: Invocation) -> None:
        if await invocation.mode() != _STREAM_CONTENT_TYPE:
            raise MalformedResultError("not a streamed answer, where the integration streams")
        chunks = _with_silence_limit(invocation)
        prelude, data = await _split_prelude(chunks)
        head = proxy_event.head(prelude)
        await self._response.start(head.status, self._marked(head))
        await self._response.write(data)
        async for chunk in chunks:
            await self._response.write(chunk)
        await self._response.finish()

    def _marked(self, head: proxy_event.Head) -> list[tuple[str, str]]:
        return [*head.headers, ("x-amzn-RequestId", self._request_id)]


def _decompressed(content: bytes, coding: str) -> bytes:
    """What API Gateway makes of a body that says it is compressed (AWS: "Call an API method with a compressed payload").

    Raises BodyTooLarge, and zlib.error for a coding that it does not know and a body that is not in it.
    """
    coding = coding.strip().lower()
    if coding in {"", "identity"}:
        return content
    if coding not in {"gzip", "deflate"}:
        raise zlib.error(coding)
    stream = zlib.decompressobj(zlib.MAX_WBITS | 32)
    decompressed = stream.decompress(content, MAX_PAYLOAD_BYTES + 1)
    if len(decompressed) > MAX_PAYLOAD_BYTES:
        raise BodyTooLarge(len(decompressed))
    if not stream.eof:
        raise zlib.error("it ends too early")
    return decompressed


async def _with_silence_limit(invocation: Invocation) -> AsyncIterator[bytes]:
    """Yield the chunks. Raises TimeoutError when none comes for too long."""
    chunks = aiter(invocation)
    while True:
        async with asyncio.timeout(_STREAM_SILENCE_S):
            chunk = await anext(chunks, None)
        if chunk is None:
            return
        yield chunk


async def _split_prelude(chunks: AsyncIterator[bytes]) -> tuple[Any, bytes]:
    begun = b""
    async for chunk in chunks:
        begun += chunk
        prelude, end, data = begun.partition(_PRELUDE_END)
        if end:
            try:
                return json.loads(prelude), data
            except ValueError:
                raise MalformedResultError("the prelude is not JSON") from None
        if len(begun) > _MAX_PRELUDE_BYTES:
            break
    raise MalformedResultError("there is no prelude")


@asynccontextmanager
async def front_door(
    api: Api,
    functions: Mapping[str, Function],
    *,
    endpoint_url: str,
    logs: Path,
    api_id: str = "local",
    host: str = "127.0.0.1",
    port: int = 0,
    start_processes: int = 1,
    max_processes: int = 8,
) -> AsyncIterator[FrontDoor]:
    """Start the functions that the API needs, and serve it until the context is left.

    `endpoint_url` is the emulator's. Logs go to ``<logs>/<function>.log``. Raises PoolError when a function does not
    start, and OSError when the port is taken.
    """
    async with AsyncExitStack() as stack:
        pools = {
            name: HandlerPool(
                functions[name],
                endpoint_url=endpoint_url,
                log=logs / f"{name}.log",
                start=start_processes,
                limit=max_processes,
            )
            for name in sorted({route.function for route in api.routes})
        }
        door = FrontDoor(api, api_id, pools)
        started = await asyncio.gather(
            *(stack.enter_async_context(pool.running()) for pool in pools.values()), return_exceptions=True
        )
        for outcome in started:
            if isinstance(outcome, BaseException):
                raise outcome
        server = await stack.enter_async_context(serve(door.answer, host, port))
        door.base_url = f"http://{server.host}:{server.port}/{api.stage}"
        yield door
