"""How long one request waits in all for providers that are at their limit, whatever it waits for."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import httpx
import pytest

from naru import attempts, catalog
from naru.errors import NaruError, UpstreamRateLimitedError, UpstreamUnavailableError
from naru.failures import AttemptFailedError
from naru.health import Health, NotNowError
from naru.retry import RetryPolicy
from naru.routing import Route
from tests import one_gateway
from tests.one_gateway import OMNI, Gateway

QUEUE_S = 30.0


@dataclass
class Clock:
    """Time that passes when somebody sleeps."""

    slept: list[float] = field(default_factory=list)

    @property
    def offset_s(self) -> float:
        return sum(self.slept)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock, wall_ns, monotonic, sleep = Clock(), time.time_ns, time.monotonic, asyncio.sleep

    class Sleepless:
        @staticmethod
        async def sleep(delay_s: float) -> None:
            clock.slept.append(delay_s)
            await sleep(0)

    monkeypatch.setattr(attempts, "asyncio", Sleepless)
    monkeypatch.setattr(time, "time_ns", lambda: wall_ns() + round(clock.offset_s * 1e9))
    monkeypatch.setattr(time, "time", lambda: time.time_ns() / 1e9)
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + clock.offset_s)
    return clock


def refuse(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, *answers: tuple[int, Any, dict[str, str]]) -> list[float]:
    """The provider refuses with these, the last of them again and again. The times of the calls."""
    calls: list[float] = []
    left = list(answers)

    def answer(_: httpx.Request) -> httpx.Response:
        calls.append(time.monotonic())
        status, payload, headers = left.pop(0) if len(left) > 1 else left[0]
        return httpx.Response(status, json=payload, headers=headers)

    transport = httpx.MockTransport(answer)
    monkeypatch.setattr(one_gateway, "new_http_client", lambda: httpx.AsyncClient(transport=transport))
    gateway.deadline_s = 240.0
    return calls


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "headers", "least", "most"),
    [
        pytest.param(429, {"retry-after": "20"}, 2, 2, id="20"),
        pytest.param(429, {"retry-after": "9"}, 4, 4, id="9"),
        pytest.param(429, {"retry-after": "31"}, 1, 1, id="31"),
        pytest.param(429, {"retry-after": "1"}, 7, 7, id="1"),
        pytest.param(429, {"retry-after-ms": "20000"}, 2, 2, id="ms"),
        pytest.param(429, {"x-ratelimit-reset-requests": "20s"}, 2, 2, id="reset of requests"),
        pytest.param(429, {"x-ratelimit-reset-tokens": "1m0.5s"}, 1, 1, id="reset of tokens"),
        pytest.param(429, {"retry-after": "nonsense", "x-ratelimit-reset-requests": "20s"}, 2, 2, id="reset beside nonsense"),
        pytest.param(429, {"retry-after": "9" * 40}, 1, 1, id="never"),
        pytest.param(429, {"retry-after": "-20"}, 7, 7, id="negative"),
        pytest.param(429, {"retry-after": "NaN"}, 7, 7, id="no number"),
        pytest.param(429, {"retry-after": "inf"}, 7, 7, id="infinite"),
        pytest.param(429, {"retry-after": "Wed, 21 Oct 9999 07:28:00 GMT"}, 1, 1, id="a date of another age"),
        pytest.param(503, {"retry-after": "20"}, 2, 2, id="503"),
        pytest.param(503, {"retry-after": "9"}, 3, 3, id="503 thrice"),
        pytest.param(529, {"retry-after": "20"}, 2, 2, id="529"),
        pytest.param(500, {"retry-after": "20"}, 2, 2, id="500"),
    ],
)  # fmt: skip
def test_a_request_waits_half_a_minute_at_most_and_is_told_when_to_come_again(
    gateway: Gateway,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    stream: bool,
    status: int,
    headers: dict[str, str],
    least: int,
    most: int,
) -> None:
    calls = refuse(gateway, monkeypatch, (status, {}, headers))
    with pytest.raises(UpstreamRateLimitedError if status == 429 else UpstreamUnavailableError) as failed:
        gateway.ask(stream=stream)
    assert clock.offset_s <= QUEUE_S
    assert least <= len(calls) <= most
    assert failed.value.should_retry is False
    if status == 429:
        assert 0 < (failed.value.retry_after_s or 0) <= 31 * 86_400


def test_a_date_is_waited_for_as_a_number_is(gateway: Gateway, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = refuse(gateway, monkeypatch, (429, {}, {"retry-after": formatdate(time.time() + 25, usegmt=True)}))
    with pytest.raises(UpstreamRateLimitedError):
        gateway.ask()
    assert clock.offset_s <= QUEUE_S
    assert len(calls) > 1


def test_a_wait_that_google_names_in_the_body_is_waited(
    gateway: Gateway, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = [
        {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "m", "details": [{"retryDelay": "20s"}]}}
    ]
    calls = refuse(gateway, monkeypatch, (429, body, {}))
    with pytest.raises(UpstreamRateLimitedError) as failed:
        gateway.ask()
    assert (len(calls), failed.value.retry_after_s) == (2, 20.0)


def test_waits_of_several_causes_are_one_wait(gateway: Gateway, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    limit: tuple[int, Any, dict[str, str]] = (429, {}, {"retry-after": "12"})
    busy: tuple[int, Any, dict[str, str]] = (503, {}, {"retry-after": "12"})
    calls = refuse(gateway, monkeypatch, limit, busy, limit)
    with pytest.raises(NaruError) as failed:
        gateway.ask()
    assert len(calls) == 3
    assert 24 <= clock.offset_s <= QUEUE_S
    assert (failed.value.http_status, failed.value.retry_after_s) == (429, 12.0)


def test_a_deployment_that_need_not_be_waited_for_is_called_when_the_wait_is_used_up() -> None:
    route = Route(
        catalog.load(),
        OMNI,
        {"model": OMNI, "messages": [{"role": "user", "content": "안녕"}]},
        output_limit=100,
        latency_s=lambda _: 0.0,
        rng=random.Random(1),
    )
    failure = AttemptFailedError("500", UpstreamUnavailableError("down"), again="same", retry_after_s=3.0)
    policy, rng = RetryPolicy(), random.Random(1)

    def after(failures: int) -> float | None:
        return route.after(
            failure,
            policy,
            failures=failures,
            remaining_s=100.0,
            queue_left_s=0.0,
            may_retry=lambda _: True,
            rng=rng,
        )

    waits = [after(1), after(2)]
    assert waits == [0.0, 0.0]  # a fallback elsewhere, then one here, each called for the first time
    assert route.skip(reason="resting", retry_after_s=0.5, remaining_s=100.0, queue_left_s=0.0) is None


@pytest.mark.parametrize("again_s", [0.5, 5.0, 29.0, 31.0])
def test_waits_for_a_turn_are_counted_too(
    gateway: Gateway, clock: Clock, monkeypatch: pytest.MonkeyPatch, again_s: float
) -> None:
    async def busy(*_: Any, **__: Any) -> Any:
        raise NotNowError("busy", again_s)

    calls = refuse(gateway, monkeypatch, (500, {}, {}))
    monkeypatch.setattr(Health, "enter", busy)
    with pytest.raises(UpstreamRateLimitedError) as failed:
        gateway.ask()
    assert calls == []
    assert clock.offset_s <= QUEUE_S
    assert (failed.value.retry_after_s or 0) > 0


def test_a_wait_for_a_turn_leaves_less_for_what_the_provider_asks(
    gateway: Gateway, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, turns = Health.enter, [15.0]

    async def enter(self: Health, deployment: str, **more: Any) -> Any:
        if turns:
            raise NotNowError("resting", turns.pop())
        return await really(self, deployment, **more)

    calls = refuse(gateway, monkeypatch, (429, {}, {"retry-after": "20"}))
    monkeypatch.setattr(Health, "enter", enter)
    with pytest.raises(UpstreamRateLimitedError) as failed:
        gateway.ask()
    assert (len(calls), clock.slept, failed.value.retry_after_s) == (1, [15.0], 20.0)
