import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest

from naru.event_loop import EventLoop


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    yield loop
    loop.close()


async def three(went_on: asyncio.Event, heard: list[str]) -> AsyncGenerator[str, None]:
    try:
        yield "one"
        await went_on.wait()
        heard.append("two")
        yield "two"
        yield "three"
    except GeneratorExit:
        heard.append("closed")
        raise


def test_a_generator_is_drawn_step_by_step(loop: EventLoop) -> None:
    went_on, heard = asyncio.Event(), list[str]()
    went_on.set()
    assert list(loop.iterate(three(went_on, heard))) == ["one", "two", "three"]


def test_a_generator_that_waits_is_filled_in_for_and_loses_nothing(loop: EventLoop) -> None:
    went_on, heard = asyncio.Event(), list[str]()
    items = []
    for item in loop.iterate(three(went_on, heard), idle="idle", idle_s=0.01):
        items.append(item)
        if items.count("idle") == 3:
            went_on.set()
    assert items[:4] == ["one", "idle", "idle", "idle"]
    assert [item for item in items if item != "idle"] == ["one", "two", "three"]


def test_what_it_waits_for_when_it_is_closed_is_still_awaited(loop: EventLoop) -> None:
    went_on, heard = asyncio.Event(), list[str]()
    drawn: Any = loop.iterate(three(went_on, heard), idle="idle", idle_s=0.01)
    assert [next(drawn), next(drawn)] == ["one", "idle"]
    went_on.set()
    drawn.close()
    assert heard == ["two", "closed"]


def test_what_a_generator_raises_is_raised(loop: EventLoop) -> None:
    async def broken() -> AsyncGenerator[str, None]:
        yield "one"
        raise ValueError("broken")

    drawn = loop.iterate(broken(), idle="idle")
    assert next(drawn) == "one"
    with pytest.raises(ValueError, match="broken"):
        next(drawn)
