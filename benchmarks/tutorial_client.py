"""The client that HolySheep's tutorial on HyperCLOVA X hands to its readers, rebuilt as the baseline.

What it does, and what this therefore does: a bound on requests at once, held while a request waits for its next try;
three tries for whatever fails, be it a 429, a 400 or a timeout; between them an exponential wait of at least two seconds
and at most ten, without jitter, and whatever Retry-After says; sixty seconds for each try. The tutorial builds it on
aiohttp and tenacity; this one needs neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

TRIES = 3
_MIN_WAIT_S, _MAX_WAIT_S = 2.0, 10.0
_TRY_S = 60.0


@dataclass(frozen=True)
class Item:
    """One prompt of a batch."""

    prompt: str
    system: str = "한국어로 답변하세요."
    temperature: float = 0.7
    max_tokens: int = 2_048


class TutorialClient:
    """Asks for chat completions; a context manager."""

    def __init__(
        self, base_url: str, api_key: str, *, model: str = "hyperclova-x-omni", max_connections: int = 100
    ) -> None:
        self._model = model
        self._turn = asyncio.Semaphore(max_connections)
        self._http = httpx.AsyncClient(
            base_url=base_url,
            headers={"authorization": f"Bearer {api_key}"},
            limits=httpx.Limits(max_connections=max_connections),
            timeout=None,  # noqa: S113 - each try as a whole is bounded
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def process_batch(self, items: Sequence[Item]) -> list[dict[str, Any]]:
        """All of them, in their order: ``{"index", "status": "success", "data"}``, or ``"error"`` with its text."""
        return await asyncio.gather(*(self._one(index, item) for index, item in enumerate(items)))

    async def _one(self, index: int, item: Item) -> dict[str, Any]:
        try:
            return {"index": index, "status": "success", "data": await self.ask(item)}
        except (httpx.HTTPError, TimeoutError, ValueError) as error:
            return {"index": index, "status": "error", "error": f"{type(error).__name__}: {error}"}

    async def ask(self, item: Item) -> dict[str, Any]:
        """One answer.

        Raises what the third try raised: httpx.HTTPError, TimeoutError, or ValueError for a body that is not JSON.
        """
        async with self._turn:
            for tried in range(1, TRIES):
                try:
                    return await self._try(item)
                except (httpx.HTTPError, TimeoutError, ValueError):
                    await asyncio.sleep(min(_MAX_WAIT_S, max(_MIN_WAIT_S, 2.0 ** (tried - 1))))
            return await self._try(item)

    async def _try(self, item: Item) -> dict[str, Any]:
        body = {
            "model": self._model,
            "messages": [{"role": "system", "content": item.system}, {"role": "user", "content": item.prompt}],
            "temperature": item.temperature,
            "max_tokens": item.max_tokens,
        }
        async with asyncio.timeout(_TRY_S):
            answer = await self._http.post("/chat/completions", json=body)
        answer.raise_for_status()
        data: dict[str, Any] = answer.json()
        return data
