"""What a batch worker stands on, as a test tells it: shares, lines that run by a script, a key that is let in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

from naru.batch_lines import Line, Ran
from naru.batch_store import Batch
from naru.health import Share
from naru.meter import ApiKey, Meters
from tests.batch_world import KEY, World, store


class Sharing:
    """Gives the shares it is told to give."""

    def __init__(self, slots: Callable[[], int] = lambda: 4, retry_after_s: float = 0.02) -> None:
        self._slots, self._retry_after_s = slots, retry_after_s
        self.wanted: list[int] = []
        self.let_go_of: list[str] = []
        self.refused, self.asked_again = asyncio.Event(), asyncio.Event()

    async def hold(self, deployment: str, *, holder: str, wanted: int, sample: Any = None) -> Share:
        if self.wanted:
            self.asked_again.set()
        self.wanted.append(wanted)
        self.refused.clear()
        return Share(min(self._slots(), wanted), self._retry_after_s)

    def must_ask(self, deployment: str) -> bool:
        return self.refused.is_set()

    async def too_much(self, deployment: str) -> None:
        await self.refused.wait()

    async def let_go(self, deployment: str, *, holder: str) -> None:
        self.let_go_of.append(deployment)


@dataclass
class Script:
    """Runs lines as it is told, and stores a result for those that succeed."""

    world: World
    say: Callable[[int], Ran | None] = lambda _: None
    pause_s: float = 0.0
    ran: list[int] = field(default_factory=list)
    inside: int = 0
    most: int = 0

    async def run(self, batch: Batch, line: Line, *, worker: str, patience_s: Callable[[], float]) -> Ran:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.ran.append(line.state.index)
        await asyncio.sleep(self.pause_s)
        self.inside -= 1
        if (said := self.say(line.state.index)) is not None:
            return said
        store(self.world, batch, line.state.index)
        return Ran("stored", completed=True)


class Known(Meters):
    """Lets every key in that is in the table."""

    def __init__(self, world: World, *, max_parallel: int | None = None) -> None:
        super().__init__(world.dynamodb, "MeterTable", ZoneInfo("Asia/Seoul"), organisation_budget_pico_usd=10**15)
        self.max_parallel = max_parallel

    async def authenticate(self, authorization: Any, *, now_ms: int | None = None) -> Any:
        return ApiKey(KEY, {}, max_parallel=self.max_parallel or 10**6)
