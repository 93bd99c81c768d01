"""Processes that share a database and advance one call at a time, in the order a test chooses.

The code under test runs as it is, on asyncio; only its calls to other systems (`asyncio.to_thread`) wait until the
test lets them happen. Between any two of them another process can run, or this one can die.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

from botocore.exceptions import EndpointConnectionError, ReadTimeoutError

How = Literal["answered", "answer lost, sent again", "not sent", "answer lost", "died before", "died after"]

_process: ContextVar[int] = ContextVar("process")


@dataclass(eq=False)
class Call:
    """A call that waits to happen."""

    process: int
    function: Callable[..., Any]
    parameters: dict[str, Any]
    result: asyncio.Future[Any]

    def __repr__(self) -> str:
        where = self.parameters.get("Key") or self.parameters.get("Item", {}).get("request_id") or ""
        return f"{getattr(self.function, '__name__', '?')} by {self.process} {where}"


@contextmanager
def asyncio_replaced(by: Any, *modules: ModuleType) -> Iterator[None]:
    """Inside, what these modules call ``asyncio`` is something else."""
    before = [vars(module)["asyncio"] for module in modules]
    for module in modules:
        vars(module)["asyncio"] = by
    try:
        yield
    finally:
        for module, original in zip(modules, before, strict=True):
            vars(module)["asyncio"] = original


class Interleaving:
    """Runs coroutines of several processes up to their next calls."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        # A process that died leaves tasks behind that nobody waits for.
        self.loop.set_exception_handler(lambda _loop, _context: None)
        self.waiting: list[Call] = []

    @contextmanager
    def instead_of_threads(self, *modules: ModuleType) -> Iterator[None]:
        """Inside, the calls of these modules wait for `happen`, and no time passes in their pauses."""
        shim = SimpleNamespace(
            to_thread=self.to_thread,
            gather=asyncio.gather,
            wait=asyncio.wait,
            create_task=asyncio.create_task,
            sleep=lambda _: asyncio.sleep(0),
        )
        with asyncio_replaced(shim, *modules):
            yield

    def to_thread(self, function: Callable[..., Any], *args: Any, **parameters: Any) -> Awaitable[Any]:
        """Wait until the call is let happen."""
        call = Call(
            _process.get(), (lambda: function(*args)) if args else function, parameters, self.loop.create_future()
        )
        self.waiting.append(call)
        return call.result

    def start(self, process: int, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin work on a process, up to its first call."""
        token = _process.set(process)
        try:
            task = self.loop.create_task(work)
        finally:
            _process.reset(token)
        self._run()
        return task

    def happen(self, call: Call, how: How = "answered") -> None:
        """Let one call happen, and run its process up to the next."""
        self.waiting.remove(call)
        if how in {"died before", "died after"}:
            if how == "died after":
                _outcome(call)
            self.kill(call.process)
            return
        if how == "not sent":
            outcome: Any = EndpointConnectionError(endpoint_url="the table")
        else:
            outcome = _outcome(call)
            if how == "answer lost, sent again":
                outcome = _outcome(call)  # what boto3 does after a timeout
            if how == "answer lost":
                outcome = ReadTimeoutError(endpoint_url="the table")
        if isinstance(outcome, Exception):
            call.result.set_exception(outcome)
        else:
            call.result.set_result(outcome)
        self._run()

    def cancel(self, task: asyncio.Task[Any]) -> None:
        """Cancel a task, as its caller does who waits no longer; the calls that it waited for are not answered."""
        task.cancel()
        self._run()
        self.waiting = [call for call in self.waiting if not call.result.done()]

    def finish(self, task: asyncio.Task[Any]) -> Any:
        """Let calls happen in the order in which they were made, until the task is done; its result."""
        while not task.done():
            self.happen(self.waiting[0])
        return task.result()

    def drain(self) -> None:
        """Let everything happen that is waiting or comes of it."""
        while self.waiting:
            self.happen(self.waiting[0])

    def kill(self, process: int) -> None:
        """End a process at once: no handler of it runs, no call of it happens."""
        self.waiting = [call for call in self.waiting if call.process != process]

    def close(self) -> None:
        """End the loop and all that hangs on it."""
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        for call in self.waiting:
            call.result.cancel()
        self._run()
        self.loop.close()

    def _run(self) -> None:
        """Run until everything waits for a call."""
        while self.loop._ready:  # type: ignore[attr-defined]
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()


def _outcome(call: Call) -> Any:
    try:
        return call.function(**call.parameters)
    except Exception as error:  # noqa: BLE001 - handed on to whoever made the call
        return error
