"""Providers in virtual time, and batch workers that share one: what the search for a limit is measured with.

The workers run the gateway's own state machine (:mod:`naru.health_limit`); time is a number, so a minute takes
milliseconds, and every run of a seed is the same.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from naru.health_limit import Observations, ask_again_s, held, released
from naru.health_state import HealthPolicy, State, grown, overloaded

POLICY = HealthPolicy()
_REFUSED_S = 0.04
"""A provider says no at once."""
_BACKOFF_S = (0.2, 1.0)


class Provider(Protocol):
    def call(self, now_s: float, in_flight: int, rng: random.Random) -> float | None:
        """How long this call takes, with so many others; None if it is refused."""


def usual_s(rng: random.Random) -> float:
    """Log-normal: 850 ms in the mean, 1,200 ms at the 95th percentile."""
    sigma = 0.2335
    return 0.85 * math.exp(rng.gauss(-sigma * sigma / 2, sigma))


@dataclass
class Capacity:
    """So many calls at once; what is more is refused."""

    slots: int = 20

    def call(self, now_s: float, in_flight: int, rng: random.Random) -> float | None:
        return usual_s(rng) if in_flight < self.slots else None


@dataclass
class Queue:
    """A burst at once, then a rate; the rest waits inside."""

    burst: float = 16
    rate: float = 3.05
    _tokens: float = 16
    _at_s: float = 0.0

    def call(self, now_s: float, in_flight: int, rng: random.Random) -> float | None:
        self._tokens = min(self.burst, self._tokens + (now_s - self._at_s) * self.rate) - 1
        self._at_s = now_s
        return 0.85 + max(0.0, -self._tokens / self.rate)


@dataclass
class Congested:
    """Full speed up to so many at once; beyond that slower than they are more."""

    slots: int = 14
    exponent: float = 2.2
    varied: bool = True

    def call(self, now_s: float, in_flight: int, rng: random.Random) -> float | None:
        slower: float = max(1.0, (in_flight + 1) / self.slots) ** self.exponent
        return (usual_s(rng) if self.varied else 0.85) * slower


@dataclass
class Moody:
    """A provider that refuses some calls for no reason that a caller could see."""

    inner: Provider = field(default_factory=lambda: Capacity(slots=10**6))
    share: float = 0.1

    def call(self, now_s: float, in_flight: int, rng: random.Random) -> float | None:
        return None if rng.random() < self.share else self.inner.call(now_s, in_flight, rng)


@dataclass
class PerMinute:
    """So many calls in any minute; what is more is refused."""

    calls: int
    _taken_s: deque[float] = field(default_factory=deque)

    def call(self, now_s: float, in_flight: int, rng: random.Random) -> float | None:
        while self._taken_s and self._taken_s[0] <= now_s - 60:
            self._taken_s.popleft()
        if len(self._taken_s) >= self.calls:
            return None
        self._taken_s.append(now_s)
        return usual_s(rng)


@dataclass
class Outcome:
    makespan_s: float
    refused: int
    limits: list[tuple[float, int]] = field(default_factory=list)
    """When the limit became what."""
    refused_s: list[float] = field(default_factory=list)
    answered_s: list[float] = field(default_factory=list)


@dataclass
class _Worker:
    name: str
    slots: int = 0
    seen: Observations = field(default_factory=Observations)
    next_ask_s: float = 0.0
    done: bool = False


def run(
    provider: Provider,
    *,
    calls: int,
    workers: int,
    seed: int,
    state: State | None = None,
    until_s: float = 10_000,
    most: Callable[[float], int] = lambda _: 10**6,
) -> Outcome:
    """So many calls by so many workers, who ask for their shares as a batch worker does, and want at most ``most`` slots
    each at a time.
    """
    rng = random.Random(seed)
    shared = state or State("d")
    events: list[tuple[float, int, Callable[[], None]]] = []
    order = iter(range(10**9))
    now_s, in_flight, waiting, backing_off, left = 0.0, 0, calls, 0, calls
    outcome = Outcome(0.0, 0)
    team = [_Worker(f"w{index}") for index in range(workers)]

    def at(when_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(events, (when_s, next(order), what))

    def ms() -> int:
        return 1_000_000 + round(now_s * 1000)

    def ask(worker: _Worker) -> None:
        nonlocal shared
        if worker.done:
            return
        if left == 0 or (waiting == 0 and backing_off == 0 and worker.seen.in_flight == 0):
            worker.done = True
            shared = released(shared, worker.name, now_ms=ms()) or shared
            return
        before = shared.limit
        wanted = max(1, min(most(now_s), waiting + backing_off + worker.seen.in_flight))
        sample = worker.seen.sample(shared.round_ms)
        shared = held(shared, worker.name, wanted=wanted, sample=sample, now_ms=ms(), policy=POLICY)
        worker.slots = shared.holders[worker.name].slots
        worker.next_ask_s = now_s + ask_again_s(shared, ms())
        if shared.limit != before:
            outcome.limits.append((round(now_s, 2), shared.limit))
        at(worker.next_ask_s, partial(ask_if_due, worker, worker.next_ask_s))
        send(worker)

    def ask_if_due(worker: _Worker, due_s: float) -> None:
        if worker.next_ask_s == due_s:  # it has not asked since, after a refusal
            ask(worker)

    def send(worker: _Worker) -> None:
        nonlocal in_flight, waiting
        while waiting and worker.seen.in_flight < worker.slots:
            waiting -= 1
            worker.seen.began()
            takes_s = provider.call(now_s, in_flight, rng)
            if takes_s is None:
                at(now_s + _REFUSED_S, partial(refused, worker))
            else:
                in_flight += 1
                at(now_s + takes_s, partial(answered, worker, ms(), takes_s))

    def refused(worker: _Worker) -> None:
        nonlocal backing_off
        backing_off += 1
        outcome.refused += 1
        outcome.refused_s.append(now_s)
        worker.seen.failed(overload=True)
        worker.seen.ended()

        def again() -> None:
            nonlocal waiting, backing_off
            backing_off -= 1
            waiting += 1
            for each in team:
                send(each)

        at(now_s + rng.uniform(*_BACKOFF_S), again)
        ask(worker)

    def answered(worker: _Worker, began_ms: int, takes_s: float) -> None:
        nonlocal in_flight, left
        in_flight -= 1
        left -= 1
        worker.seen.answered(began_ms=began_ms, latency_ms=round(takes_s * 1000))
        worker.seen.ended()
        outcome.makespan_s = now_s
        outcome.answered_s.append(now_s)
        send(worker)

    for index, worker in enumerate(team):
        at(0.07 * index, partial(ask, worker))
    while events and left and now_s < until_s:
        now_s, _, what = heapq.heappop(events)
        what()
    assert left == 0 or now_s >= until_s
    return outcome


# ── Single calls ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Crowd:
    """What clients came by who ask without pause, each through an environment of its own."""

    answered: int = 0
    refused: int = 0
    state: State = field(default_factory=lambda: State("d"))


def run_crowd(provider: Provider, *, clients: int, seconds: float, seed: int) -> Crowd:
    """So many clients, whose calls take slots of the shared limit; who is refused comes again after a moment."""
    rng = random.Random(seed)
    crowd = Crowd()
    events: list[tuple[float, int, str, str, int]] = []
    order = iter(range(10**9))
    now_s, in_flight, waiting = 0.0, 0, clients

    def ms() -> int:
        return 1_000_000 + round(now_s * 1000)

    def send() -> None:
        nonlocal in_flight, waiting
        while waiting:
            state = crowd.state
            if (limited := state.is_limited(ms())) and len(state.calls) >= state.limit:
                crowd.state = replace(state, limited_until_ms=ms() + 60_000)
                return
            waiting -= 1
            call = str(next(order))
            takes_s = provider.call(now_s, in_flight, rng)
            if limited:
                crowd.state = replace(state, calls={**state.calls, call: ms() + 180_000})
            in_flight += takes_s is not None
            ends = (_REFUSED_S, "refused") if takes_s is None else (takes_s, "answered")
            heapq.heappush(events, (now_s + ends[0], next(order), ends[1], call, ms()))

    send()
    while events and now_s < seconds:
        now_s, _, what, call, began_ms = heapq.heappop(events)
        if what == "refused":
            crowd.refused += 1
            changed = overloaded(crowd.state, began_ms=began_ms, retry_after_s=None, now_ms=ms(), policy=POLICY)
            crowd.state = changed or crowd.state
            heapq.heappush(events, (now_s + rng.uniform(*_BACKOFF_S), next(order), "again", "", 0))
        else:
            crowd.answered += what == "answered"
            in_flight -= what == "answered"
            waiting += 1
        if call in crowd.state.calls:
            left = {other: until_ms for other, until_ms in crowd.state.calls.items() if other != call}
            crowd.state = replace(crowd.state, calls=left, wins=crowd.state.wins + (what == "answered"))
            crowd.state = grown(crowd.state, now_ms=ms()) or crowd.state
        send()
    return crowd
