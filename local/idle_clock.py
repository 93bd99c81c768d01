"""An asyncio loop with real sockets and a clock of its own, which runs only while everything waits.

A test about time must pass on a machine whose cores are busy with other work. On this loop work takes no time at all,
however long the machine needs for it; where nothing is left to do but wait, seconds pass in milliseconds::

    with idle_clock() as run:
        run(main())

For whatever runs on the one loop: both ends of a connection, say. Calls in threads (``asyncio.to_thread``) stop the
clock until they return. A process or a thread of its own lives in another time, and is not to be waited for with a
timeout.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

T = TypeVar("T")

_LOOK_S = 0.001
"""So long the kernel may take to carry bytes from one end to the other, in real time, and again for each step."""
_STEP_S = 0.05
"""So much the clock moves when nothing has come."""


class _IdleSelector(selectors.DefaultSelector):
    """Waits as a selector does, but on its own clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.threads_at_work = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        left_s = timeout or 0.0
        while left_s > 0:
            if ready := super().select(_LOOK_S):
                return ready
            if not self.threads_at_work:
                step_s = min(left_s, _STEP_S)
                self.now_s += step_s
                left_s -= step_s
        return super().select(None if timeout is None else 0)


class IdleLoop(asyncio.SelectorEventLoop):
    """The loop; :meth:`time` is in seconds since it was made."""

    def __init__(self) -> None:
        self._idle = _IdleSelector()
        super().__init__(self._idle)

    def time(self) -> float:
        return self._idle.now_s

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future = super().run_in_executor(executor, func, *args)
        self._idle.threads_at_work += 1
        future.add_done_callback(self._thread_is_done)
        return future

    def _thread_is_done(self, _: asyncio.Future[Any]) -> None:
        self._idle.threads_at_work -= 1


@contextmanager
def idle_clock() -> Iterator[Callable[[Coroutine[Any, Any, T]], T]]:
    """Runs coroutines as :func:`asyncio.run` does; inside, the module :mod:`time` tells the loop's time, too."""
    begun_ns, begun_s = time.time_ns(), time.monotonic()
    with asyncio.Runner(loop_factory=IdleLoop) as runner:
        loop = runner.get_loop()

        def time_ns() -> int:
            return begun_ns + round(loop.time() * 10**9)

        with (
            patch.object(time, "monotonic", lambda: begun_s + loop.time()),
            patch.object(time, "time_ns", time_ns),
            patch.object(time, "time", lambda: time_ns() / 10**9),
        ):
            yield runner.run
