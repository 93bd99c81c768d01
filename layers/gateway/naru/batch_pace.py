"""A worker's share of a deployment, kept to the call: what a line does before and after it takes no slot.

A line is let in by its meters, calls the provider, is recorded and stored. Only the call loads the provider, so only the
call takes one of the slots that :meth:`~naru.health.Health.hold` has given; some more lines than slots are on their way,
and those that are ready wait here for the next one that is free.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from naru.health import Health, NotNowError, Permit, Sample, Share

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

_PATIENCE_S = 8.0


class _Slots:
    """Those of one deployment."""

    def __init__(self) -> None:
        self._slots = 0
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def become(self, slots: int) -> None:
        self._slots = slots
        self._wake()

    async def take(self) -> None:
        if self._taken < self._slots and not self._waiting:
            self._taken += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await turn
        except TimeoutError:
            raise NotNowError("busy", 1.0) from None
        finally:
            if not turn.done() or turn.cancelled():
                self._waiting = deque(other for other in self._waiting if other is not turn)

    def give(self) -> None:
        self._taken -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self._taken < self._slots:
            turn = self._waiting.popleft()
            if not turn.done():
                self._taken += 1
                turn.set_result(None)


class PacedHealth(Health):
    """The shared health, for a worker: a call to a deployment of which it has a share waits for a slot."""

    def __init__(self, client: DynamoDBClient, table: str, **options: Any) -> None:
        super().__init__(client, table, **options)
        self._slots: dict[str, _Slots] = {}
        self._taken: dict[str, _Slots] = {}

    async def hold(self, deployment: str, *, holder: str, wanted: int, sample: Sample | None = None) -> Share:
        share = await super().hold(deployment, holder=holder, wanted=wanted, sample=sample)
        self._slots.setdefault(deployment, _Slots()).become(share.slots)
        return share

    async def let_go(self, deployment: str, *, holder: str) -> None:
        if (slots := self._slots.pop(deployment, None)) is not None:
            # Whoever still waits goes on without: it is counted by the shared limit again.
            slots.become(10**9)
        await super().let_go(deployment, holder=holder)

    async def enter(self, deployment: str, *, interactive: bool = True, provider: str = "", tenant: str = "") -> Permit:
        slots = self._slots.get(deployment)
        if slots is None:
            return await super().enter(deployment, interactive=interactive, provider=provider, tenant=tenant)
        await slots.take()
        try:
            permit = await super().enter(deployment, interactive=interactive, provider=provider, tenant=tenant)
        except BaseException:
            slots.give()
            raise
        self._taken[permit.id] = slots
        return permit

    async def leave(self, permit: Permit) -> None:
        if (slots := self._taken.pop(permit.id, None)) is not None:
            slots.give()
        await super().leave(permit)
