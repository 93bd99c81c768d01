import asyncio
import socket
import time
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


async def bursts(heard: list[str]) -> AsyncGenerator[bytes, None]:
    for burst in (b"ab", b"cde", b"f"):
        await asyncio.sleep(0.001)
        for letter in burst:
            heard.append(chr(letter))
            yield bytes([letter])


def test_what_comes_at_once_is_drawn_at_once_and_in_order(loop: EventLoop) -> None:
    assert list(loop.iterate(bursts([]), merge=b"".join)) == [b"ab", b"cde", b"f"]
    assert list(loop.iterate(bursts([]))) == [b"a", b"b", b"c", b"d", b"e", b"f"]


def test_a_generator_is_not_drawn_further_than_what_had_come(loop: EventLoop) -> None:
    """A client that reads slowly holds up the provider, and memory does not fill with its answer."""
    heard: list[str] = []
    drawn: Any = loop.iterate(bursts(heard), merge=b"".join)
    assert next(drawn) == b"ab"
    assert heard == ["a", "b"]
    drawn.close()


def test_the_items_before_a_failure_are_given_first(loop: EventLoop) -> None:
    async def broken() -> AsyncGenerator[bytes, None]:
        yield b"one"
        yield b"two"
        raise ValueError("broken")

    drawn = loop.iterate(broken(), merge=b"".join)
    assert next(drawn) == b"onetwo"
    with pytest.raises(ValueError, match="broken"):
        next(drawn)


def test_time_that_is_over_just_when_an_item_comes_disturbs_nothing(loop: EventLoop) -> None:
    """Timer and item in the same turn of the loop: what is run next is run to its end."""

    async def at_once() -> AsyncGenerator[bytes, None]:
        for _ in range(50):
            await asyncio.sleep(0.001)
            yield b"x"
        await asyncio.sleep(0.001)

    drawn = [item for item in loop.iterate(at_once(), idle=b"", idle_s=0.001) if item]
    assert drawn == [b"x"] * 50
    assert loop.run(asyncio.sleep(0, "run to its end")) == "run to its end"


def test_a_drawn_generator_can_be_left_before_its_first_item(loop: EventLoop) -> None:
    went_on, heard = asyncio.Event(), list[str]()
    went_on.set()
    drawn: Any = loop.iterate(three(went_on, heard))
    drawn.close()
    assert heard == []


def test_a_client_that_does_not_read_is_not_the_provider_s_silence(
    loop: EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, connection = socket.socketpair()

    async def answer() -> AsyncGenerator[bytes, None]:
        reader, writer = await asyncio.open_connection(sock=connection)
        yield b"one"
        async with asyncio.timeout(30):
            yield await reader.readline()
        writer.close()

    with provider:
        drawn = loop.iterate(answer(), merge=b"".join)
        assert next(drawn) == b"one"
        provider.sendall(b"two\n")
        now_s = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: now_s() + 60)
        assert list(drawn) == [b"two\n"]
