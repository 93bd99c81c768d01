"""Three providers with a capacity, to see how well a client uses it. Each answers chat completions and counts.

``limited``     20 calls at once, the next one is refused (429); latency log-normal, mean 850 ms, P95 1,200 ms
``queue``       a burst of 16, then 3.05 answers a second; who is too many waits in it: the tutorial's table, 50 in 12 s
``congested``   full speed up to 14 in flight, beyond that everyone waits (n / 14) ^ 2.2 times as long
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from local.http_server import Request, Response, serve
from local.simulated_model.config import Latency

MEAN_S = 0.85
_JSON = [("Content-Type", "application/json")]


@dataclass
class Seen:
    """What a provider has seen. Times are monotonic seconds."""

    calls: int = 0
    answered: int = 0
    refused: int = 0
    most_at_once: int = 0
    first_s: float = 0.0
    last_s: float = 0.0

    @property
    def span_s(self) -> float:
        """From the first call to the last answer."""
        return self.last_s - self.first_s


@dataclass
class Provider:
    """One of them."""

    name: str
    rng: random.Random = field(default_factory=lambda: random.Random(7))
    seen: Seen = field(default_factory=Seen)
    url: str = ""
    _inside: int = 0
    _free_s: float = 0.0
    _latency: Latency = field(default_factory=lambda: Latency(first_token_ms=850, first_token_p95_ms=1200))

    def bound_s(self, calls: int) -> float:
        """The shortest time in which anybody can have so many answers."""
        match self.name:
            case "limited":
                return max(MEAN_S, calls / 20 * MEAN_S)
            case "queue":
                return max(0, calls - 16) / 3.05 + MEAN_S
            case _:
                return max(MEAN_S, calls / 14 * MEAN_S)

    def forget(self) -> None:
        """Start anew."""
        self.seen, self._free_s = Seen(), 0.0

    async def handle(self, request: Request, response: Response) -> None:
        """Answer one call."""
        content = json.loads(await request.body(1 << 20))
        now_s = time.monotonic()
        seen = self.seen
        seen.calls += 1
        seen.first_s = seen.first_s or now_s
        if self.name == "limited" and self._inside >= 20:
            seen.refused += 1
            seen.last_s = now_s
            body = {"error": {"message": "Too many requests", "type": "rate_limit_error", "param": None, "code": "429"}}
            await response.send(429, _JSON, json.dumps(body).encode())
            return
        self._inside += 1
        seen.most_at_once = max(seen.most_at_once, self._inside)
        try:
            await asyncio.sleep(self._service_s(now_s))
        finally:
            self._inside -= 1
        seen.answered += 1
        seen.last_s = time.monotonic()
        await response.send(200, _JSON, json.dumps(_answer(content["model"], seen.answered)).encode())

    def _service_s(self, now_s: float) -> float:
        if self.name == "limited":
            return self._latency.first_token_s(self.rng)
        if self.name == "queue":
            # A bucket of 16 places that fills at 3.05 a second: when the next one is there.
            self._free_s = max(self._free_s, now_s - 15 / 3.05) + 1 / 3.05 if self._free_s else now_s - 15 / 3.05
            return max(0.0, self._free_s - now_s) + MEAN_S
        return float(MEAN_S * max(1.0, (self._inside / 14) ** 2.2))


def _answer(model: str, serial: int) -> dict[str, object]:
    message = {"role": "assistant", "content": "네, 알겠습니다. 도와드리겠습니다."}
    return {
        "id": f"chatcmpl-{serial:024x}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 40, "completion_tokens": 12, "total_tokens": 52},
    }


@asynccontextmanager
async def provider(name: str) -> AsyncIterator[Provider]:
    """Run one on the current event loop."""
    made = Provider(name)
    async with serve(made.handle) as server:
        made.url = f"http://127.0.0.1:{server.port}/v1"
        yield made
