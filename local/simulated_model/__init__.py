"""A fake LLM provider for the local run, the tests and the benchmarks: Korean text, real timing, every fault, a bill.

    async with simulated_model(Config(latency=Latency(first_token_ms=320, token_ms=12))) as model:
        client = openai.AsyncOpenAI(base_url=model.openai_url, api_key="any")
        ...
        assert model.stats()["totals"]["cost_pico_usd"] == ledger_total

`run_in_thread` is the same for synchronous code, `python -m local.simulated_model` for a process of its own.

=============================  ======================================================================================
`<url>/v1`                     OpenAI: POST /chat/completions, GET /models. Any key but "revoked", unless configured
`<url>/clova/v1/openai`        CLOVA Studio's dialect of the same, and as strict
GET, DELETE `<url>/_stats`     what was billed and counted (`billing.Stats`); back to zero
POST, DELETE `<url>/_control`  rules that inject faults, latency, capacity; back to the configuration
=============================  ======================================================================================

A prompt can carry directives, which do not change the text of the answer, for tests that run at the same time::

    [[sim tokens=60 ttft_ms=0 token_ms=0 cached=128 reasoning=50 fault=cut_after:40,how=end,times=1 id=a1]]

and a test can post rules, of which the first that matches applies::

    {"rules": [{"match": {"model": "gpt-4.1", "face": "openai", "key": "k", "contains": "나루"},
                "times": 2, "probability": 0.5, "fault": {"name": "status", "status": 429, "retry_after": "1"}}],
     "latency": {"first_token_ms": 320, "first_token_p95_ms": 900, "token_ms": 12},
     "capacity": {"max_concurrent": 8, "requests_per_minute": 60, "retry_after_s": 2}}

`faults` lists the faults and what is billed for them, `tokens` says how tokens are counted, `answers` what is said.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from local.http_server import serve
from local.simulated_model.billing import BillRow, Stats, Sums, Totals
from local.simulated_model.config import DEFAULT_PRICES, Capacity, Config, Latency, Price
from local.simulated_model.faults import BadInstructionError
from local.simulated_model.server import SimulatedModel

__all__ = [
    "DEFAULT_PRICES",
    "BadInstructionError",
    "BillRow",
    "Capacity",
    "Config",
    "Latency",
    "Price",
    "SimulatedModel",
    "Stats",
    "Sums",
    "ThreadedModel",
    "Totals",
    "run_in_thread",
    "simulated_model",
]

T = TypeVar("T")


@asynccontextmanager
async def simulated_model(
    config: Config | None = None, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[SimulatedModel]:
    """Run a model on the current event loop. Raises OSError when the port is taken."""
    model = SimulatedModel(config or Config())
    async with serve(model.handle, host, port) as server:
        model.url = f"http://{host}:{server.port}"
        yield model


class ThreadedModel:
    """A model on a loop in another thread, with the methods of `SimulatedModel` for this one."""

    def __init__(self, model: SimulatedModel, loop: asyncio.AbstractEventLoop) -> None:
        self._model = model
        self._loop = loop
        self.url, self.openai_url, self.clova_url = model.url, model.openai_url, model.clova_url

    def stats(self) -> Stats:
        """Return what has been billed and counted."""
        return self._call(self._model.stats)

    def reset_stats(self) -> None:
        """Forget what has been billed and counted."""
        self._call(self._model.reset_stats)

    def wait_idle(self, timeout_s: float = 60.0) -> None:
        """Wait until no request is in flight. Raises TimeoutError."""
        asyncio.run_coroutine_threadsafe(self._model.idle(), self._loop).result(timeout_s)

    def control(self, instructions: Mapping[str, Any]) -> None:
        """Add rules, replace latency or capacity. Raises BadInstructionError."""
        self._call(lambda: self._model.control(instructions))

    def clear_control(self) -> None:
        """Drop all rules, and go back to the configuration."""
        self._call(self._model.clear_control)

    def _call(self, function: Callable[[], T]) -> T:
        async def call() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()


@contextmanager
def run_in_thread(config: Config | None = None, host: str = "127.0.0.1", port: int = 0) -> Iterator[ThreadedModel]:
    """Run a model in a thread of its own until the context is left. Raises OSError when the port is taken."""
    started = threading.Event()
    running: list[tuple[ThreadedModel, asyncio.Event]] = []
    failed: list[BaseException] = []

    async def main() -> None:
        stop = asyncio.Event()
        async with simulated_model(config, host, port) as model:
            running.append((ThreadedModel(model, asyncio.get_running_loop()), stop))
            started.set()
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            failed.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, name="simulated-model", daemon=True)
    thread.start()
    started.wait()
    if failed:
        thread.join()
        raise failed[0]
    model, stop = running[0]
    try:
        yield model
    finally:
        model._loop.call_soon_threadsafe(stop.set)  # noqa: SLF001 - one module, one subject
        thread.join()
    if failed:
        raise failed[0]
