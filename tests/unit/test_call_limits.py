"""How often a key may ask for what spends nothing: so often in a minute, by one write a call."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from naru.call_limits import UPLOAD, CallLimits
from naru.errors import RateLimitedError
from tests.dynamodb_model import model_of

KEY = "key_0123456789ab"
NOON_MS = 1_795_000_020_000 // 60_000 * 60_000


class Counted:
    """A client that counts its writes."""

    def __init__(self) -> None:
        self.table = model_of("MeterTable")
        self.exceptions = self.table.exceptions
        self.writes = 0

    def update_item(self, **parameters: Any) -> Any:
        self.writes += 1
        return self.table.update_item(**parameters)


def limits_of(client: Any, *, kind: str = "usage", per_minute: int = 20) -> CallLimits:
    return CallLimits(client, "MeterTable", kind, per_minute=per_minute)


def let_in(limits: CallLimits, times: int, *, now_ms: int = NOON_MS, key_id: str = KEY, weight: int = 1) -> int:
    """How many of so many calls are let in."""

    async def calls() -> int:
        done = 0
        for _ in range(times):
            try:
                await limits.count(key_id, now_ms=now_ms, weight=weight)
            except RateLimitedError:
                continue
            done += 1
        return done

    return asyncio.run(calls())


@pytest.mark.parametrize(
    ("weight", "per_minute", "expected"), [(1, 20, 20), (1, 1000, 30), (UPLOAD, 20, 2), (UPLOAD, 19, 1), (3, 20, 6)]
)
def test_a_key_has_so_many_calls_a_minute(weight: int, per_minute: int, expected: int) -> None:
    limits = limits_of(Counted(), per_minute=per_minute)
    assert let_in(limits, 30, weight=weight) == expected
    # The minute is over.
    assert let_in(limits, 30, weight=weight, now_ms=NOON_MS + 60_000) == expected


def test_a_call_is_one_write() -> None:
    client = Counted()
    let_in(limits_of(client), 1)
    client.writes = 0
    assert let_in(limits_of(client), 19) == 19
    assert client.writes == 19


@pytest.mark.parametrize("at_ms", [0, 1, 30_000, 59_000, 59_999])
def test_who_is_refused_is_told_when_the_next_minute_begins(at_ms: int) -> None:
    limits = limits_of(Counted())
    let_in(limits, 20)
    with pytest.raises(RateLimitedError) as refused:
        asyncio.run(limits.count(KEY, now_ms=NOON_MS + at_ms))
    assert refused.value.retry_after_s == max(1.0, (60_000 - at_ms) / 1000)


def test_keys_and_kinds_are_counted_apart() -> None:
    client = Counted()
    assert let_in(limits_of(client), 30) == 20
    assert let_in(limits_of(client), 30, key_id="key_aaaaaaaaaaaa") == 20
    assert let_in(limits_of(client, kind="batches"), 30) == 20
    assert let_in(limits_of(client), 30) == 0


@pytest.mark.parametrize("behind_ms", [1, 30_000, 60_001, 200_000])
def test_a_clock_that_is_behind_opens_nothing(behind_ms: int) -> None:
    client = Counted()
    assert let_in(limits_of(client), 15, now_ms=NOON_MS) == 15
    assert let_in(limits_of(client), 15, now_ms=NOON_MS - behind_ms) == 5


def test_calls_at_once_are_all_counted() -> None:
    client = Counted()
    limits = limits_of(client)

    async def one() -> bool:
        try:
            await limits.count(KEY, now_ms=NOON_MS)
        except RateLimitedError:
            return False
        return True

    async def all_at_once() -> list[bool]:
        return await asyncio.gather(*(one() for _ in range(60)))

    assert sum(asyncio.run(all_at_once())) == 20
