"""An asyncio loop whose time is computed: a sleep of a second takes none, and calls to AWS end when the model says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any, Protocol, TypeVar
from unittest.mock import patch

T = TypeVar("T")

EPOCH_MS = 1_795_338_000_000
"""When every simulation begins: 2026-11-22, in the middle of a business day of Seoul."""


class Service(Protocol):
    """Who answers the calls that the product makes in threads."""

    def begin(self, call: Callable[[], Any], done: asyncio.Future[Any]) -> None:
        """Ends the call at its time."""


class SimulatedLoop(asyncio.BaseEventLoop):
    """Jumps to the next timer when nothing is ready. ``run_in_executor``, and so ``asyncio.to_thread``, goes to
    ``service``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._selector = self
        self._clock_resolution = 1e-9
        self.service: Service | None = None

    def time(self) -> float:
        """Seconds since the simulation began."""
        return self._now_s

    def now_ms(self) -> int:
        """Unix milliseconds."""
        return EPOCH_MS + int(self._now_s * 1000)

    def select(self, timeout_s: float | None) -> list[Any]:
        """What a selector does: waits. Here time passes at once."""
        if timeout_s is None:
            raise RuntimeError("everything waits and nothing is going to happen")
        self._now_s += timeout_s
        return []

    def _process_events(self, event_list: Sequence[Any]) -> None:
        """There is no network."""

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]  # noqa: ARG002
        done: asyncio.Future[Any] = self.create_future()
        if self.service is None:
            raise RuntimeError("nobody answers the calls")
        self.service.begin(lambda: func(*args), done)
        return done

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs it and ends what is left over."""
        try:
            return self.run_until_complete(work)
        finally:
            self.set_exception_handler(lambda _loop, _context: None)
            if left := asyncio.all_tasks(self):
                for task in left:
                    task.cancel()
                self.run_until_complete(asyncio.wait(left))
            self.close()


@contextmanager
def clock_of(loop: SimulatedLoop, *modules: ModuleType) -> Iterator[None]:
    """Inside, these modules read the time of the loop."""
    clock = SimpleNamespace(monotonic=loop.time, time_ns=lambda: loop.now_ms() * 10**6)
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(patch.object(module, "time", clock))
        yield
