"""One asyncio loop for the life of an execution environment.

Lambda calls a handler synchronously, one event at a time, while the use cases are asynchronous, so that a batch
worker can run many requests at once with the same code. The loop is kept between invocations, because the
connections to the providers belong to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterator
from typing import Any, TypeVar, cast

T = TypeVar("T")


class EventLoop:
    """Runs coroutines to their end, and draws asynchronous generators step by step, from synchronous code."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result."""
        return self._loop.run_until_complete(coroutine)

    def iterate(
        self, generator: AsyncGenerator[T, None], *, idle: T | None = None, idle_s: float = 10.0
    ) -> Iterator[T]:
        """The generator's items, and ``idle`` whenever none has come for ``idle_s``; closing the iterator closes the
        generator.
        """
        item: asyncio.Task[T] | None = None
        try:
            while True:
                if item is None:
                    item = self._loop.create_task(_next(generator))
                if not self._run_for(item, idle_s if idle is not None else None):
                    yield cast("T", idle)
                    continue
                done, item = item, None
                try:
                    yield done.result()
                except StopAsyncIteration:
                    return
        finally:
            if item is not None:
                # Closed while it waited: a generator that runs cannot be closed, and what it awaits is to be paid for.
                self._loop.run_until_complete(asyncio.gather(item, return_exceptions=True))
            self._loop.run_until_complete(generator.aclose())

    def _run_for(self, task: asyncio.Task[T], timeout_s: float | None) -> bool:
        """Runs the loop until the task is done, or the time is over; whether it is done."""
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, self._loop.stop)
        task.add_done_callback(self._stop)
        try:
            self._loop.run_forever()
        finally:
            task.remove_done_callback(self._stop)
            if timer is not None:
                timer.cancel()
        return task.done()

    def _stop(self, _: object) -> None:
        self._loop.stop()

    def close(self) -> None:
        """Ends the loop with all that runs on it. Lambda never asks for this; a test does."""
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


async def _next(generator: AsyncGenerator[T, None]) -> T:
    return await anext(generator)
