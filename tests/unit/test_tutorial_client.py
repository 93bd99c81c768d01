"""The baseline of the benchmarks: it must be what the tutorial hands out, neither better nor worse."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from benchmarks.tutorial_client import Item, TutorialClient


class Provider:
    """Answers with these statuses, the last one for ever, and keeps the time (virtual: waits are recorded)."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.bodies: list[dict[str, Any]] = []
        self.inside = self.most_inside = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(json.loads(request.content))
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        await asyncio.sleep(0)
        self.inside -= 1
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return httpx.Response(status, json={"choices": [{"message": {"content": "네"}}]}, headers={"retry-after": "7"})


@pytest.fixture
def waits_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    sleep = asyncio.sleep

    async def recorded(seconds: float) -> None:
        if seconds:
            waited.append(seconds)
        await sleep(0)

    monkeypatch.setattr("benchmarks.tutorial_client.asyncio.sleep", recorded)
    return waited


def run(provider: Provider, *items: Item, max_connections: int = 100) -> list[dict[str, Any]]:
    async def batch() -> list[dict[str, Any]]:
        client = TutorialClient("http://provider.test/v1", "key", max_connections=max_connections)
        client._http._transport = httpx.MockTransport(provider)
        async with client:
            return await client.process_batch(items)

    return asyncio.run(batch())


def test_a_batch_is_answered_in_its_order(waits_s: list[float]) -> None:
    results = run(Provider(200), Item("하나"), Item("둘", system="짧게", temperature=0.1, max_tokens=9))
    assert [(result["index"], result["status"]) for result in results] == [(0, "success"), (1, "success")]
    assert waits_s == []


def test_a_request_says_what_the_tutorial_says(waits_s: list[float]) -> None:
    provider = Provider(200)
    run(provider, Item("하나"))
    assert provider.bodies == [
        {
            "model": "hyperclova-x-omni",
            "messages": [{"role": "system", "content": "한국어로 답변하세요."}, {"role": "user", "content": "하나"}],
            "temperature": 0.7,
            "max_tokens": 2048,
        }
    ]


@pytest.mark.parametrize("status", [429, 503, 400])
def test_whatever_fails_is_tried_three_times_two_seconds_apart(waits_s: list[float], status: int) -> None:
    provider = Provider(status)
    (result,) = run(provider, Item("하나"))
    assert (result["index"], result["status"]) == (0, "error")
    assert str(status) in result["error"]
    assert len(provider.bodies) == 3
    assert waits_s == [2.0, 2.0]


def test_the_second_try_can_be_the_good_one(waits_s: list[float]) -> None:
    (result,) = run(Provider(503, 200), Item("하나"))
    assert result["status"] == "success"
    assert waits_s == [2.0]


def test_no_more_than_max_connections_are_under_way(waits_s: list[float]) -> None:
    provider = Provider(200)
    results = run(provider, *[Item(str(number)) for number in range(12)], max_connections=3)
    assert len(results) == 12
    assert provider.most_inside == 3
