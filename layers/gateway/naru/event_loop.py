"""One asyncio loop for the life of an execution environment.

Lambda calls a handler synchronously, one event at a time, while the use cases are asynchronous, so that a batch
worker can run many requests at once with the same code. The loop is kept between invocations, because the
connections to the providers belong to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class EventLoop:
    """Runs coroutines to their end, and draws asynchronous generators step by step, from synchronous code."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result."""
        return self._loop.run_until_complete(coroutine)

    def iterate(self, generator: AsyncGenerator[T, None]) -> Iterator[T]:
        """The generator's items; closing the iterator closes the generator."""
        try:
            while True:
                try:
                    yield self._loop.run_until_complete(anext(generator))
                except StopAsyncIteration:
                    return
        finally:
            self._loop.run_until_complete(generator.aclose())

    def close(self) -> None:
        """Ends the loop with all that runs on it. Lambda never asks for this; a test does."""
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
