"""Lambda's part: processes of the real Python runtime, each behind a Runtime API of its own.

One invocation at a time per process. A pool starts with a few processes, grows when all are busy, and queues what is
beyond its limit. What a process does to an invocation is what Lambda does to it: it can answer at once or as a stream,
fail, crash, or exceed its timeout, and then it is killed and replaced. (AWS: "Using the Lambda runtime API".)
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import signal
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from local import lambda_environment
from local.http_server import ClientGone, Request, Response, serve
from local.invocation import FunctionError, Invocation
from local.processes import start_module, tail
from local.stack import Function

MAX_RESPONSE_BYTES = 6 * 1024 * 1024
MAX_STREAM_BYTES = 200 * 1024 * 1024

_API = "/2018-06-01/runtime"
_QUEUE_LENGTH = 1000


class Throttled(Exception):  # noqa: N818 - Lambda's word
    """All processes are busy and the queue is full."""


class PoolError(Exception):
    """The first process of a function did not start."""


class HandlerPool:
    """All processes of one function."""

    def __init__(self, function: Function, *, endpoint_url: str, log: Path, start: int, limit: int) -> None:
        self.function = function
        self.log = log
        self.environment = lambda_environment.of(function, endpoint_url)
        self._start, self._limit = min(start, limit), limit
        self._handlers: dict[_Handler, asyncio.Task[None]] = {}
        self._idle: deque[_Handler] = deque()
        self._waiting: deque[Invocation] = deque()
        self._first_outcome: asyncio.Future[str | None] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[HandlerPool]:
        """Start the first processes, wait until one is ready, and stop all when the context is left.

        Raises PoolError when a process ends before it is ready.
        """
        self._first_outcome = asyncio.get_running_loop().create_future()
        try:
            for _ in range(self._start):
                self._spawn()
            if problem := await self._first_outcome:
                raise PoolError(f"{self.function.logical_id} does not start: {problem}\n{tail(self.log)}")
            yield self
        finally:
            tasks = list(self._handlers.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def invoke(self, event: bytes, *, trace_id: str) -> Invocation:
        """Hand over an event. Raises Throttled."""
        invocation = Invocation(event, trace_id=trace_id)
        while self._idle:
            handler = self._idle.popleft()
            if handler.give(invocation):
                return invocation
        if len(self._waiting) >= _QUEUE_LENGTH:
            raise Throttled
        self._waiting.append(invocation)
        self._grow()
        return invocation

    def give_again(self, invocation: Invocation) -> None:
        """Hand over an event that no process has seen."""
        self._waiting.appendleft(invocation)
        if self._idle:
            self.ready(self._idle.popleft())
        self._grow()

    @property
    def process_count(self) -> int:
        """How many processes there are, starting ones included."""
        return len(self._handlers)

    def kill(self, *, in_flight: bool | None = None) -> int:
        """`kill -9` a random process and return its process id.

        `in_flight` chooses among those that handle an event, or that do not. May be called from another thread.
        Raises LookupError when there is none.
        """
        for handler in random.sample(handlers := list(self._handlers), len(handlers)):
            if in_flight in {None, handler.current is not None} and (pid := handler.kill()):
                return pid
        raise LookupError("there is no such process now")

    def note(self, text: str) -> None:
        """Write a line of Lambda's own into the function's log."""
        with self.log.open("a") as log:
            log.write(f"[{self.function.logical_id}] {text}\n")

    def ready(self, handler: _Handler) -> None:
        """Take up a process that asks for work."""
        self._settle_first(None)
        if self._waiting:
            handler.give(self._waiting.popleft())
        else:
            self._idle.append(handler)

    def ended(self, handler: _Handler, error: FunctionError, *, was_ready: bool) -> None:
        """Replace a process that is gone; one that never got ready is replaced on demand only."""
        self._handlers.pop(handler, None)
        with suppress(ValueError):
            self._idle.remove(handler)
        if not was_ready:
            self._settle_first(str(error))
            if self._waiting:
                self._waiting.popleft().fail(error)
        elif len(self._handlers) < self._start:
            self._spawn()
        self._grow()

    def _grow(self) -> None:
        starting = sum(not handler.was_ready for handler in self._handlers)
        if len(self._waiting) > starting and len(self._handlers) < self._limit:
            self._spawn()

    def _spawn(self) -> None:
        handler = _Handler(self)
        task = self._handlers[handler] = asyncio.get_running_loop().create_task(handler.live())
        task.add_done_callback(self._notice_failure)

    def _notice_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            self.note(f"no process could be started: {error!r}")
            self._settle_first(repr(error))

    def _settle_first(self, problem: str | None) -> None:
        if self._first_outcome is not None and not self._first_outcome.done():
            self._first_outcome.set_result(problem)


class _Handler:
    """One process, and the Runtime API that it sees."""

    def __init__(self, pool: HandlerPool) -> None:
        self._pool = pool
        self._timeout_s = pool.function.timeout_s
        self._asked: asyncio.Future[Invocation] | None = None
        self._clock: asyncio.TimerHandle | None = None
        self._error: FunctionError | None = None
        self._posting = asyncio.Lock()
        self.pid: int | None = None
        self.current: Invocation | None = None
        self.was_ready = False
        self._killed = False

    async def live(self) -> None:
        """Run the process until it ends."""
        async with serve(self._runtime_api) as api:
            process = await start_module(
                "awslambdaric",
                self._pool.function.handler,
                environment={**self._pool.environment, "AWS_LAMBDA_RUNTIME_API": f"{api.host}:{api.port}"},
                log=self._pool.log,
                folder=self._pool.function.folder,
            )
            self.pid = process.pid
            try:
                code = await process.wait()
                self.pid = None
                self._over(code)
                async with self._posting:  # what the process had sent before it died still counts
                    pass
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    def kill(self) -> int | None:
        """`kill -9`, from any thread; the process id, or None when the process is gone, or as good as gone."""
        pid = self.pid
        if pid is None or self._killed:
            return None
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # it has ended, and the loop has yet to hear of it
            return None
        self._killed = True
        return pid

    def give(self, invocation: Invocation) -> bool:
        """Answer the process's waiting question with an event; False when it does not wait any more."""
        if self._asked is None or self._asked.done():
            return False
        self.current = invocation
        self._clock = asyncio.get_running_loop().call_later(self._timeout_s, self._time_out)
        self._asked.set_result(invocation)
        return True

    def _over(self, code: int) -> None:
        if self._clock:
            self._clock.cancel()
        how = f"signal: {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        error = self._error or FunctionError("Runtime.ExitError", f"the process ended, {how}")
        self._pool.note(f"process ended: {error}")
        if self.current is not None and not self.current.answered:
            self.current.fail(error)
        self._pool.ended(self, error, was_ready=self.was_ready)

    def _time_out(self) -> None:
        self._error = FunctionError("Sandbox.Timedout", f"Task timed out after {self._timeout_s:.2f} seconds")
        self.kill()

    async def _runtime_api(self, request: Request, response: Response) -> None:
        match (request.method, request.path.removeprefix(_API).split("/")[1:]):
            case ("GET", ["invocation", "next"]):
                await self._next(request, response)
            case ("POST", ["invocation", request_id, ("response" | "error") as kind]):
                async with self._posting:
                    await self._answer(request, response, request_id, is_error=kind == "error")
            case ("POST", ["init", "error"]):
                details = await request.body()
                self._error = _function_error(details)
                await response.send(202, _JSON, b'{"status":"OK"}')
            case _:
                await response.send(404, _JSON, b'{"errorType":"NotFound"}')

    async def _next(self, request: Request, response: Response) -> None:
        if self._clock:
            self._clock.cancel()
        if self.current is not None and not self.current.answered:
            self.current.fail(FunctionError("Runtime.NoResponse", "the runtime asked for the next event"))
        self.was_ready, self.current = True, None
        self._asked = asyncio.get_running_loop().create_future()
        self._pool.ready(self)
        gone = asyncio.create_task(request.disconnected.wait())
        waited: set[asyncio.Future[Any]] = {self._asked, gone}
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if not self._asked.done():
            self._asked.cancel()
            raise ClientGone
        invocation = self._asked.result()
        headers = [
            ("Content-Type", "application/json"),
            ("Lambda-Runtime-Aws-Request-Id", invocation.request_id),
            ("Lambda-Runtime-Invocation-Id", invocation.attempt_id),
            ("Lambda-Runtime-Invoked-Function-Arn", self._pool.function.arn),
            ("Lambda-Runtime-Deadline-Ms", str(int((time.time() + self._timeout_s) * 1000))),
            ("Lambda-Runtime-Trace-Id", invocation.trace_id),
        ]
        try:
            await response.send(200, headers, invocation.event)
        except ClientGone:
            self._take_back(invocation)
            raise

    def _take_back(self, invocation: Invocation) -> None:
        """The process was gone before it got the event, so another one can have it."""
        if self._clock:
            self._clock.cancel()
        self.current = None
        self._pool.give_again(invocation)

    async def _answer(self, request: Request, response: Response, request_id: str, *, is_error: bool) -> None:
        invocation = self.current
        if invocation is None or invocation.request_id != request_id or invocation.answered:
            await response.send(400, _JSON, b'{"errorType":"InvalidRequestID"}')
            return
        if is_error:
            invocation.fail(_function_error(await request.body()))
        elif request.header("lambda-runtime-function-response-mode") == "streaming":
            await self._stream(request, invocation)
        else:
            body = await request.body()
            if len(body) > MAX_RESPONSE_BYTES:
                invocation.fail(FunctionError("Function.ResponseSizeTooLarge", f"{len(body)} bytes"))
                await response.send(413, _JSON, b'{"errorType":"RequestEntityTooLarge"}')
                return
            invocation.begin(None)
            await invocation.put(body)
            await invocation.put(None)
        await response.send(202, _JSON, b'{"status":"OK"}')

    async def _stream(self, request: Request, invocation: Invocation) -> None:
        invocation.begin(request.header("content-type", "application/octet-stream"))
        size = 0
        try:
            async for chunk in request:
                size += len(chunk)
                if size > MAX_STREAM_BYTES:
                    raise FunctionError("Function.ResponseSizeTooLarge", f"more than {MAX_STREAM_BYTES} bytes")
                await invocation.put(chunk)
        except ClientGone:
            await invocation.put(self._error or FunctionError("Runtime.TruncatedResponse", "the stream was not ended"))
            raise
        except FunctionError as error:
            await invocation.put(error)
            raise ClientGone from error
        trailers = dict(request.trailers)
        if error_type := trailers.get("lambda-runtime-function-error-type"):
            details = base64.b64decode(trailers.get("lambda-runtime-function-error-body", ""))
            await invocation.put(_function_error(details, error_type))
        else:
            await invocation.put(None)


_JSON = [("Content-Type", "application/json")]


def _function_error(details: bytes, error_type: str = "Runtime.Unknown") -> FunctionError:
    try:
        error = json.loads(details)
        return FunctionError(error.get("errorType") or error_type, str(error.get("errorMessage", "")))
    except (ValueError, AttributeError):
        return FunctionError(error_type, "")
