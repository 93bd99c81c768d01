"""Environments that share the health of providers, in virtual time."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import EndpointConnectionError

from naru import aws_calls, health_store
from naru.attributes import from_item, to_item
from naru.health import Health
from naru.health_state import HealthPolicy, State
from tests.dynamodb_model import DynamoDB
from tests.interleaving import asyncio_replaced

TABLE = "HealthTable"
BEGIN_MS = 1_700_000_000_000
OMNI = "holysheep/omni"


class World:
    """A table, a clock and as many environments as are asked for. Its calls to the table are counted."""

    def __init__(self, policy: HealthPolicy | None = None) -> None:
        self.table = DynamoDB(HealthTable=("deployment",))
        self.now_ms = BEGIN_MS
        self.calls: Counter[str] = Counter()
        self.is_reachable = True
        self._policy = policy or HealthPolicy()
        self._events: list[tuple[int, int, Callable[[], Coroutine[Any, Any, None]]]] = []
        self._order = 0

    def __getattr__(self, name: str) -> Any:
        """The table's calls, as a client has them."""
        function = getattr(self.table, name)

        def call(**parameters: Any) -> Any:
            self.calls[name] += 1
            if not self.is_reachable:
                raise EndpointConnectionError(endpoint_url="the table")
            return function(**parameters)

        call.__name__ = name
        return call

    @property
    def writes(self) -> int:
        return self.calls["update_item"] + self.calls["put_item"]

    @property
    def reads(self) -> int:
        return self.calls["batch_get_item"]

    def environment(self, seed: int = 1) -> Health:
        """A new one, which knows nothing."""
        return Health(self, TABLE, clock=lambda: self.now_ms, rng=random.Random(seed), policy=self._policy)  # type: ignore[arg-type]

    def state(self, deployment: str = OMNI) -> State:
        item = self.table.get_item(TableName=TABLE, Key=to_item({"deployment": deployment})).get("Item")
        return State.from_values(from_item(item)) if item else State(deployment)

    def pass_s(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)

    def at(self, when_s: float, what: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do that so many seconds after the beginning."""
        self._order += 1
        heapq.heappush(self._events, (BEGIN_MS + round(when_s * 1000), self._order, what))

    @property
    def now_s(self) -> float:
        return (self.now_ms - BEGIN_MS) / 1000

    def run(self) -> None:
        """Let everything happen that was planned, and what comes of it."""

        async def all_of_it() -> None:
            while self._events:
                self.now_ms, _, what = heapq.heappop(self._events)
                await what()

        asyncio.run(all_of_it())


@contextmanager
def at_once() -> Iterator[None]:
    """Inside, calls to the table take no thread, and pauses no time."""

    class Shim:
        @staticmethod
        async def to_thread(function: Callable[..., Any], *args: Any, **parameters: Any) -> Any:
            return function(*args, **parameters)

        @staticmethod
        async def sleep(_: float) -> None:
            await asyncio.sleep(0)

    with asyncio_replaced(Shim, aws_calls, health_store):
        yield
