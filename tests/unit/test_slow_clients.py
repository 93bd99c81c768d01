"""A client that reads more slowly than its provider speaks, until the request's time is over.

What the provider has said lies in the connection's buffers by then, with what it cost.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from naru import attempts, client_stream
from tests.one_gateway import Gateway, assert_row_is_the_bill, assert_settled, chunks

OVER_S = 10_000.0


class Clock:
    """The use case's, which a test moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead_s = 0.0
        shim = SimpleNamespace(monotonic=lambda: time.monotonic() + self.ahead_s)
        for module in (attempts, client_stream):
            monkeypatch.setattr(module, "time", shim)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def draw(gateway: Gateway, prompt: str, at_event: int, then: Callable[[], None], *, leaves: bool = False) -> bytes:
    """The client's events; before it reads on after the n-th one, something happens."""
    taken: list[bytes] = []

    async def reading(events: Any) -> None:
        async for event in events:
            taken.append(event)
            if len(taken) == at_event:
                await gateway.model.idle()  # the provider has said it all
                then()
                if leaves:
                    await events.aclose()
                    return

    body = {"messages": [{"role": "user", "content": prompt}], "stream": True}
    gateway.draw(json.dumps(body | {"model": "hyperclova-x-omni"}), reading)
    return b"".join(taken)


@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize("fault", ["", "fault=usage_in_every_chunk", "fault=missing_done"])
@pytest.mark.parametrize("at_event", [1, 3, 30])
def test_what_the_provider_has_said_is_charged_at_its_true_cost(
    gateway: Gateway, clock: Clock, at_event: int, fault: str, leaves: bool
) -> None:
    said = draw(
        gateway, f"안녕 [[sim tokens=40 {fault}]]", at_event, lambda: setattr(clock, "ahead_s", OVER_S), leaves=leaves
    )
    assert_row_is_the_bill(gateway)
    assert gateway.row.outcome == "completed"
    assert_settled(gateway)
    if not leaves:
        # And what was read meanwhile is the client's, should it still be there.
        assert chunks(said)[-1] == "[DONE]"


def test_the_row_is_written_before_a_slow_client_gets_the_rest(gateway: Gateway, clock: Clock) -> None:
    """It may never read it, and the function ends."""
    rows: list[int] = []

    async def reading(events: Any) -> None:
        drawn = 0
        async for _ in events:
            drawn += 1
            rows.append(len(gateway.dynamodb.scan(TableName="LedgerTable")["Items"]))
            if drawn == 3:
                await gateway.model.idle()
                clock.ahead_s = OVER_S

    body = {"messages": [{"role": "user", "content": "안녕 [[sim tokens=40]]"}], "stream": True}
    gateway.draw(json.dumps(body | {"model": "hyperclova-x-omni"}), reading)
    assert rows[:4] == [0, 0, 0, 1]


def test_a_provider_that_says_no_more_is_not_waited_for_without_end(
    gateway: Gateway, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came is charged, as an estimate."""
    monkeypatch.setattr(client_stream, "LAST_WORDS_S", 0.05)
    drawn: list[bytes] = []

    async def reading(events: Any) -> None:
        async for event in events:
            drawn.append(event)
            if len(drawn) == 2:
                clock.ahead_s = OVER_S

    body = {"messages": [{"role": "user", "content": "안녕 [[sim tokens=40 fault=stall_after:9]]"}], "stream": True}
    gateway.draw(json.dumps(body | {"model": "hyperclova-x-omni"}), reading)
    assert (gateway.row.outcome, gateway.row.error_code) == ("truncated", "upstream_timeout")
    assert gateway.row.usage_source == "estimated"
    assert b"upstream_timeout" in drawn[-1]
    assert_settled(gateway)
