"""Admission: what a provider with limits turns away."""

from __future__ import annotations

import time
from collections import deque

from local.simulated_model.config import Capacity
from local.simulated_model.dialects import RefusedError


class Gate:
    """Admission by capacity. A queue in front of a service, should one be wanted, would wait in `enter`."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self._inside = 0
        self._recent: deque[float] = deque()

    async def enter(self) -> None:
        """Take a place. Raises RefusedError."""
        now = time.monotonic()
        while self._recent and self._recent[0] <= now - 60:
            self._recent.popleft()
        limit, parallel = self.capacity.requests_per_minute, self.capacity.max_concurrent
        if parallel is not None and self._inside >= parallel:
            raise self._refusal("Too many requests at once", "42902")
        if limit is not None and len(self._recent) >= limit:
            raise self._refusal(f"Rate limit reached: {limit} requests per minute", "42901")
        self._recent.append(now)
        self._inside += 1

    def leave(self) -> None:
        """Give the place back."""
        self._inside -= 1

    def _refusal(self, message: str, clova_code: str) -> RefusedError:
        wait = self.capacity.retry_after_s
        headers = () if wait is None else (("retry-after", f"{wait:g}"),)
        return RefusedError(429, message, "rate_limit_exceeded", clova_code, headers=headers)
