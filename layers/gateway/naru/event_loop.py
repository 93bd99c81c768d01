"""One asyncio loop for the life of an execution environment.

Lambda calls a handler synchronously, one event at a time, while the use cases are asynchronous, so that a batch
worker can run many requests at once with the same code. The loop is kept between invocations, because the
connections to the providers belong to it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


class EventLoop:
    """Runs coroutines to their end, and draws asynchronous generators step by step, from synchronous code."""

    def __init__(self) -> None:
        self._loop = _Loop()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result."""
        return self._loop.run_until_complete(coroutine)

    def iterate(
        self,
        generator: AsyncGenerator[T, None],
        *,
        idle: T | None = None,
        idle_s: float = 10.0,
        merge: Callable[[list[T]], T] | None = None,
    ) -> Iterator[T]:
        """The generator's items, and ``idle`` whenever none has come for ``idle_s``; closing the iterator closes the
        generator.

        With ``merge``, which makes one item of several, those that come at the same time are drawn together: that saves a
        turn of the loop for each. Without it the generator is never ahead of who draws it.
        """
        drawing = _Drawing(self._loop, generator, together=merge is not None)
        try:
            while items := drawing.next_items(idle_s if idle is not None else None):
                if items is _NONE_YET:
                    yield cast("T", idle)
                elif merge is None:
                    yield from items
                else:
                    yield merge(items)
        finally:
            drawing.close()

    def close(self) -> None:
        """Ends the loop with all that runs on it. Lambda never asks for this; a test does."""
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


class _Loop(asyncio.SelectorEventLoop):
    """A loop whose clock stands still when it does.

    While the runtime sends, as slowly as the client reads, nothing here runs. Were that time counted, a provider whose
    words have long been waiting to be read would be cut off for its silence.
    """

    def __init__(self) -> None:
        self._still_s = 0.0
        self._stopped_s: float | None = time.monotonic()
        super().__init__()

    def time(self) -> float:
        """Seconds on the clock of this loop."""
        return (time.monotonic() if self._stopped_s is None else self._stopped_s) - self._still_s

    def run_forever(self) -> None:
        """Until it is stopped."""
        if self._stopped_s is not None:
            self._still_s += time.monotonic() - self._stopped_s
            self._stopped_s = None
        try:
            super().run_forever()
        finally:
            self._stopped_s = time.monotonic()


_NONE_YET: list[Any] = [None]


class _Drawing(Generic[T]):
    """Draws a generator in a task of its own, only while somebody waits for its items."""

    def __init__(self, loop: asyncio.AbstractEventLoop, generator: AsyncGenerator[T, None], *, together: bool) -> None:
        self._loop = loop
        self._generator = generator
        self._together = together
        self._wanted = asyncio.Event()
        self._items: list[T] = []
        self._closing = False
        self._waiting: asyncio.Future[None] | None = None
        self._task = loop.create_task(self._draw())
        self._task.add_done_callback(self._wake)

    def next_items(self, timeout_s: float | None) -> list[T]:
        """All that have come; _NONE_YET when the time is over, and nothing at the end. Raises what the generator does,
        after the items before that.
        """
        self._wanted.set()
        if not self._items and not self._task.done():
            self._wait(timeout_s)
        if self._items:
            items, self._items = self._items, []
            return items
        if not self._task.done():
            return _NONE_YET
        self._task.result()
        return []

    def close(self) -> None:
        """Closes the generator. One that runs cannot be closed, and what it awaits is to be paid for: it is awaited."""
        self._closing = True
        self._wanted.set()
        self._loop.run_until_complete(asyncio.gather(self._task, return_exceptions=True))
        self._loop.run_until_complete(self._generator.aclose())

    async def _draw(self) -> None:
        try:
            await self._wanted.wait()
            while not self._closing:
                item = await anext(self._generator)
                self._items.append(item)
                self._wake()
                if not self._together and not self._closing:
                    self._wanted.clear()
                    await self._wanted.wait()
        except StopAsyncIteration:
            return

    def _wait(self, timeout_s: float | None) -> None:
        # A future and not loop.stop(): a stop that comes a turn too late would end whatever is run next.
        self._waiting = self._loop.create_future()
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, self._wake)
        try:
            self._loop.run_until_complete(self._waiting)
        finally:
            if timer is not None:
                timer.cancel()

    def _wake(self, _: object = None) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
