"""The health of deployments, as one environment knows it and shares it with all others.

A Lambda environment sees few requests, so what it learns about a provider goes through DynamoDB
(:mod:`naru.health_state`). A healthy system writes nothing, and each environment reads once in two seconds at most. A
read or write that fails is logged and fails no request: the environment goes on with what it knows itself.

A call begins with :meth:`Health.enter` and ends with :meth:`Health.leave`, whatever happened; in between its outcome
is told by :meth:`Health.answered` or :meth:`Health.failed`. Batch workers get a share of a deployment besides, by
:meth:`Health.hold`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from naru import health_limit as limits
from naru import health_state as states
from naru.health_limit import Observations, Sample, Share
from naru.health_state import BreakerState, HealthPolicy, State
from naru.health_store import HealthStore, HealthStoreError, RefusedWriteError
from naru.request_ids import new_request_id

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

__all__ = ["Health", "HealthPolicy", "NotNowError", "Permit", "Sample", "Share"]

logger = logging.getLogger(__name__)

Reason = Literal["open", "resting", "busy"]

_KNOWN_ANSWERS = 1000
_PRESENCE_MS = 10_000
_COUNT_TRIES = 8


class NotNowError(Exception):
    """A deployment is not to be called before ``retry_after_s``: its breaker is ``open`` or somebody else tries whether
    it is well again, it is ``resting`` as it has asked to, or it is ``busy`` and no slot is free.
    """

    def __init__(self, reason: Reason, retry_after_s: float) -> None:
        super().__init__(f"{reason}, for {retry_after_s:.1f} s")
        self.reason: Reason = reason
        self.retry_after_s = retry_after_s


@dataclass(slots=True, eq=False)
class Permit:
    """The right to one call. ``probe`` says that it is the call which tries whether the provider is well again."""

    deployment: str
    interactive: bool
    id: str
    probe: bool = False
    began_ms: int = 0
    awaits_verdict: bool = False
    holds_slot: bool = False
    observed: bool = False
    """It is under this environment's share."""
    won: bool = False
    over: bool = False


@dataclass(slots=True, eq=False)
class _Local:
    """What this environment knows of a deployment."""

    state: State
    tokens: float
    asked_ms: int = -(10**15)
    reading: asyncio.Future[None] | None = None
    in_flight: int = 0
    answers_ms: deque[int] = field(default_factory=lambda: deque(maxlen=_KNOWN_ANSWERS))
    """When calls were answered that the others have not been told of."""
    reported_ms: int = -(10**15)
    failures_in_row: int = 0
    peak_s: float = 0.0
    peak_ms: int = 0
    batch: Observations = field(default_factory=Observations)
    too_much: asyncio.Event = field(default_factory=asyncio.Event)
    """A call under the share was refused, and the others do not know it yet."""
    share: int = 0
    share_until_ms: int = 0


class Health:
    """One for the life of an environment. ``clock`` is in Unix milliseconds; ``on_open`` hears of each breaker that this
    environment opens.
    """

    def __init__(
        self,
        client: DynamoDBClient,
        table: str,
        *,
        clock: Callable[[], int] = lambda: time.time_ns() // 10**6,
        rng: random.Random | None = None,
        policy: HealthPolicy = HealthPolicy(),  # noqa: B008 - frozen
        on_open: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._clock = clock
        self._rng = rng or random.SystemRandom()
        self._policy = policy
        self._on_open = on_open
        self._store = HealthStore(client, table, kept_s=policy.kept_s, rng=self._rng)
        self._known: dict[str, _Local] = {}

    # ── What is known ──────────────────────────────────────────────────────────────────────────────────────

    async def refresh(self, deployments: Sequence[str], *, max_age_s: float | None = None) -> None:
        """Makes what is known of these at most ``max_age_s`` old, or ``view_life_s``, with one read; never raises."""
        now_ms = self._clock()
        life_ms = (self._policy.view_life_s if max_age_s is None else max_age_s) * 1000
        known = {name: self._of(name) for name in deployments}
        running = {local.reading for local in known.values() if local.reading is not None}
        stale = [n for n, local in known.items() if now_ms - local.asked_ms >= life_ms]
        if stale:
            done = asyncio.get_running_loop().create_future()
            for name in stale:
                # Also when the read fails: a table that does not answer is not asked more often.
                known[name].asked_ms, known[name].reading = now_ms, done
            try:
                for name, state in (await self._store.read(stale)).items():
                    known[name].state = _newer(known[name].state, state)
            except HealthStoreError as error:
                _log_failure("read", stale, error)
            finally:
                for name in stale:
                    known[name].reading = None
                done.set_result(None)
        for reading in running:
            await asyncio.shield(reading)

    def state(self, deployment: str) -> BreakerState:
        """What the breaker does, for logs and metrics."""
        return self._of(deployment).state.breaker

    def open_for_s(self, deployment: str) -> float:
        """0 if it may be called, or probed, as far as is known; else the seconds until the next try."""
        state, now_ms = self._of(deployment).state, self._clock()
        return max(state.open_for_ms(now_ms), state.resting_for_ms(now_ms)) / 1000

    def latency_s(self, deployment: str) -> float:
        """How long a call from here would take: a moving peak, times the calls that are there already, and this one.

        0 if nothing is known.
        """
        local = self._of(deployment)
        # Who was slow is not called, and would never be seen to have become fast again.
        return local.peak_s * self._kept(local, self._clock()) * (local.in_flight + 1)

    def may_retry(self, deployment: str) -> bool:
        """Takes a token of the retry budget; False if it is spent."""
        local = self._of(deployment)
        if local.tokens < 1:
            return False
        local.tokens -= 1
        return True

    def pause_s(self, deployment: str) -> float:
        """How long to wait before a retry, beside the backoff: 0, unless so many fail that it is about to be known
        whether the provider is ill. Those who wait for that do not all try it meanwhile.
        """
        local, now_ms = self._of(deployment), self._clock()
        failures, answers = local.state.recent(now_ms, self._policy)
        calls = failures + answers + self._unreported(local) + self._policy.presumed_answers
        if failures < self._policy.min_failures or failures < self._policy.failure_ratio * calls:
            return 0.0
        settled_s = self._policy.settle_s - (now_ms - local.state.failing_since_ms) / 1000
        return max(0.0, settled_s) + self._rng.uniform(0.0, 1.0)

    # ── One call ───────────────────────────────────────────────────────────────────────────────────────────

    async def enter(self, deployment: str, *, interactive: bool = True) -> Permit:
        """The right to call a deployment now.

        Costs nothing where all is well. Raises :class:`NotNowError`.
        """
        local, now_ms = self._of(deployment), self._clock()
        if resting_ms := local.state.resting_for_ms(now_ms):
            raise NotNowError("resting", resting_ms / 1000)
        permit = Permit(deployment, interactive, new_request_id(at_ms=now_ms), began_ms=now_ms)
        permit.observed = not interactive and local.share_until_ms > now_ms
        try:
            if local.state.opened_ms:
                await self._take_probe(local, permit)
            elif local.state.is_limited(now_ms) and not permit.observed:
                await self._take_slot(local, permit)
            elif interactive and local.state.live_holders(now_ms):
                await self._show_presence(local)
        except HealthStoreError as error:
            _log_failure("enter", [deployment], error)
        local.in_flight += 1
        local.tokens = min(local.tokens + self._policy.retry_deposit, self._policy.retry_budget)
        if permit.observed:
            local.batch.began()
        return permit

    async def answered(self, permit: Permit, *, latency_s: float) -> None:
        """The first token has come, or the JSON answer; never raises."""
        local, now_ms = self._of(permit.deployment), self._clock()
        self._feel(local, latency_s, now_ms)
        permit.won = True
        if permit.observed:
            local.batch.answered(began_ms=permit.began_ms, latency_ms=round(latency_s * 1000))
        try:
            if permit.awaits_verdict:
                await self._end_probe(local, permit, verdict=True)
                return
            local.failures_in_row = 0
            local.answers_ms.append(now_ms)
            await self._report_answers(local, now_ms)
        except HealthStoreError as error:
            _log_failure("report an answer", [permit.deployment], error)

    async def failed(
        self, permit: Permit, *, kind: Literal["failure", "overload", "neutral"], retry_after_s: float | None
    ) -> None:
        """The call has failed: the provider is ill, or it has too much to do, or it lives and the request was wrong.

        Never raises.
        """
        local = self._of(permit.deployment)
        permit.won = False
        if permit.observed and kind != "neutral":
            local.batch.failed(overload=kind == "overload")
            if kind == "overload":
                local.too_much.set()
        try:
            if permit.awaits_verdict:
                await self._end_probe(local, permit, verdict=kind != "failure")
            elif kind == "failure":
                await self._report_failure(local)
            else:
                # Who refuses is not ill.
                local.answers_ms.append(self._clock())
                await self._report_answers(local, self._clock())
            if kind == "overload":
                await self._report_overload(local, permit, retry_after_s)
        except HealthStoreError as error:
            _log_failure("report a failure", [permit.deployment], error)

    async def leave(self, permit: Permit) -> None:
        """The call is over; the second time nothing happens. Never raises."""
        if permit.over:
            return
        permit.over = True
        local, now_ms = self._of(permit.deployment), self._clock()
        local.in_flight -= 1
        if permit.observed:
            local.batch.ended()
        try:
            if permit.awaits_verdict:
                await self._end_probe(local, permit, verdict=None)
            if permit.holds_slot:
                try:
                    local.state = await self._store.write(
                        permit.deployment, states.give_back(permit.id, won=permit.won)
                    )
                except RefusedWriteError as refused:
                    local.state = refused.state  # its lease was over
                await self._change(
                    local, lambda state: states.grown(state, now_ms=now_ms, policy=self._policy), once=True
                )
        except HealthStoreError as error:
            _log_failure("leave", [permit.deployment], error)

    # ── A batch worker's share ─────────────────────────────────────────────────────────────────────────────

    async def hold(self, deployment: str, *, holder: str, wanted: int, sample: Sample | None = None) -> Share:
        """The share of ``holder`` for the next seconds, of ``wanted`` calls at once.

        To be asked again after ``retry_after_s``, and at once when :meth:`must_ask` says so, as long as there is work:
        who waits after an overload sends what will be refused as well. ``sample`` is what the holder saw since it last
        asked; None where its calls went through :meth:`enter` of this object, which has seen them. A holder that dies
        loses its share after some seconds. Never raises.
        """
        await self.refresh([deployment])
        local, now_ms = self._of(deployment), self._clock()
        seen = local.batch.sample(local.state.round_ms)
        local.too_much.clear()
        told = sample or seen
        if local.state.opened_ms:
            wait_s = local.state.open_for_ms(now_ms) / 1000
            # One call may try whether it is well again, when it is time.
            return self._share(local, Share(0, wait_s) if wait_s else Share(min(1, wanted), 1.0), now_ms)
        if resting_ms := local.state.resting_for_ms(now_ms):
            return self._share(local, Share(0, resting_ms / 1000), now_ms)

        def plan(state: State) -> State:
            return limits.held(state, holder, wanted=wanted, sample=told, now_ms=now_ms, policy=self._policy)

        try:
            state = await self._change(local, plan)
        except HealthStoreError as error:
            _log_failure("hold", [deployment], error)
            return Share(local.share if local.share_until_ms > now_ms else 0, 1.0)
        return self._share(local, Share(state.holders[holder].slots, limits.ask_again_s(state, now_ms)), now_ms)

    def must_ask(self, deployment: str) -> bool:
        """Whether a holder should ask for its share now: a call of this environment was too much for the provider, and
        :meth:`hold` does not know of it yet. Free.
        """
        return self._of(deployment).batch.has_overloads

    async def too_much(self, deployment: str) -> None:
        """Returns when :meth:`must_ask` says so."""
        await self._of(deployment).too_much.wait()

    async def let_go(self, deployment: str, *, holder: str) -> None:
        """Gives a share back; never raises."""
        local, now_ms = self._of(deployment), self._clock()
        local.share = local.share_until_ms = 0
        try:
            await self._change(local, lambda state: limits.released(state, holder, now_ms=now_ms))
        except HealthStoreError as error:
            _log_failure("let go", [deployment], error)

    def _share(self, local: _Local, share: Share, now_ms: int) -> Share:
        local.share = share.slots
        local.share_until_ms = now_ms + round(self._policy.holder_lease_s * 1000)
        return share

    # ── Entering ───────────────────────────────────────────────────────────────────────────────────────────

    async def _take_probe(self, local: _Local, permit: Permit) -> None:
        now_ms = self._clock()
        state = await self._change(
            local, lambda state: states.probing(state, probe=permit.id, now_ms=now_ms, policy=self._policy)
        )
        if not state.opened_ms:
            return  # somebody has found it well again
        if state.probe != permit.id:
            raise NotNowError("open", max(0.5, state.open_for_ms(now_ms) / 1000))
        permit.probe = permit.awaits_verdict = True

    async def _take_slot(self, local: _Local, permit: Permit) -> None:
        now_ms = self._clock()
        for _ in range(4):
            state = local.state
            reserved = max(1, math.ceil(self._policy.reserve * state.limit))
            below = None if permit.interactive else max(0, state.room - reserved)
            write = states.take_slot(permit.id, now_ms=now_ms, below=below, policy=self._policy)
            try:
                local.state = await self._store.write(permit.deployment, write)
            except RefusedWriteError as refused:
                local.state = state = refused.state
            permit.holds_slot = permit.id in local.state.calls
            if permit.holds_slot or not state.is_limited(now_ms):
                return
            if not await self._bury(local, now_ms):
                break
        await self._change(local, lambda state: states.refused(state, now_ms=now_ms, policy=self._policy), once=True)
        # Slots come free all the time, but each look is a write on the one item that all share.
        raise NotNowError("busy", min(1.0, max(0.2, (local.peak_s or 1.0) / 2)) * self._rng.uniform(0.5, 1.5))

    async def _bury(self, local: _Local, now_ms: int) -> bool:
        """Takes the slots of the dead; False if there are none."""
        state = local.state
        if dead := state.dead_calls(now_ms)[:50]:
            try:
                local.state = await self._store.write(state.deployment, states.drop_calls(dead))
            except RefusedWriteError as refused:
                local.state = refused.state
            return True
        if len(state.live_holders(now_ms)) < len(state.holders):
            await self._change(local, lambda state: states.with_limit(state, state.limit, now_ms=now_ms))
            return True
        return False

    async def _show_presence(self, local: _Local) -> None:
        """Tells batch workers now and then that somebody waits for answers."""
        now_ms = self._clock()
        if now_ms - local.state.interactive_ms < _PRESENCE_MS:
            return
        try:
            local.state = await self._store.write(local.state.deployment, states.interactive_seen(now_ms))
        except RefusedWriteError as refused:
            local.state = refused.state

    # ── Reporting ──────────────────────────────────────────────────────────────────────────────────────────

    async def _end_probe(self, local: _Local, permit: Permit, *, verdict: bool | None) -> None:
        permit.awaits_verdict = False
        now_ms = self._clock()
        local.answers_ms.clear()
        before = local.state
        state = await self._change(
            local,
            lambda state: states.probed(state, probe=permit.id, verdict=verdict, now_ms=now_ms, policy=self._policy),
        )
        if before.opened_ms and not state.opened_ms:
            facts = {"deployment": permit.deployment, "open_s": (now_ms - before.opened_ms) / 1000}
            logger.warning("breaker closed", extra=facts)

    async def _report_failure(self, local: _Local) -> None:
        now_ms = self._clock()
        if local.state.opened_ms:
            return  # as is known already
        local.failures_in_row += 1
        is_news = not local.state.is_failing(now_ms, self._policy)
        await self._count(local, failures=1, answers=0 if is_news else self._take_answers(local), now_ms=now_ms)
        unreported = self._unreported(local)
        own = local.failures_in_row if local.in_flight <= 1 else 0

        def plan(state: State) -> State | None:
            if states.must_open(state, more_answers=unreported, own_failures=own, now_ms=now_ms, policy=self._policy):
                return states.opened(state, now_ms=now_ms, policy=self._policy)
            return None

        before = local.state
        state = await self._change(local, plan)
        if state.opened_ms and not before.opened_ms:
            failures, answers = before.recent(now_ms, self._policy)
            facts = {"deployment": state.deployment, "failures": failures, "answers": answers}
            logger.warning("breaker opened", extra=facts)
            self._on_open(state.deployment)
        elif not state.opened_ms:
            await self._report_answers(local, now_ms)

    async def _report_answers(self, local: _Local, now_ms: int) -> None:
        """Answers count where there are failures to compare them with."""
        if local.state.opened_ms or not local.state.is_failing(now_ms, self._policy):
            return
        if now_ms - local.reported_ms < self._policy.report_every_s * 1000:
            return
        if answers := self._take_answers(local):
            local.reported_ms = now_ms
            await self._count(local, failures=0, answers=answers, now_ms=now_ms)

    def _unreported(self, local: _Local) -> int:
        """Own answers since the trouble began, as far as they are not old."""
        kept_ms = self._clock() - 2 * self._policy.slot_ms
        since_ms = max(local.state.failing_since_ms, kept_ms)
        return sum(at_ms >= since_ms for at_ms in local.answers_ms)

    def _take_answers(self, local: _Local) -> int:
        answers = self._unreported(local)
        local.answers_ms.clear()
        return answers

    async def _count(self, local: _Local, *, failures: int, answers: int, now_ms: int) -> None:
        for _ in range(_COUNT_TRIES):
            state = local.state
            if state.opened_ms or not (failures or state.is_failing(now_ms, self._policy)):
                return
            try:
                if state.failures and state.slot == now_ms // self._policy.slot_ms:
                    # Many count at once: this does not stand in anybody's way.
                    write = states.count_again(state, failures=failures, answers=answers)
                    local.state = await self._store.write(state.deployment, write)
                else:
                    policy = self._policy
                    after = states.counted(state, failures=failures, answers=answers, now_ms=now_ms, policy=policy)
                    local.state = await self._store.become(state, after, now_ms=now_ms)
            except RefusedWriteError as refused:
                local.state = refused.state
            else:
                return
        raise HealthStoreError(f"the counts of {local.state.deployment} change all the time")

    async def _report_overload(self, local: _Local, permit: Permit, retry_after_s: float | None) -> None:
        now_ms = self._clock()

        def plan(state: State) -> State | None:
            after = states.overloaded(
                state,
                began_ms=permit.began_ms,
                retry_after_s=retry_after_s,
                now_ms=now_ms,
                policy=self._policy,
            )
            if after is None or not permit.observed:
                return after
            # How many calls the batches make is between them and `hold`.
            return replace(state, resting_until_ms=after.resting_until_ms)

        await self._change(local, plan)

    def _feel(self, local: _Local, latency_s: float, now_ms: int) -> None:
        """A peak is believed at once and forgotten slowly (Finagle's peak EWMA)."""
        kept = self._kept(local, now_ms)
        local.peak_s = max(latency_s, local.peak_s * kept + latency_s * (1 - kept))
        local.peak_ms = now_ms

    def _kept(self, local: _Local, now_ms: int) -> float:
        return math.exp(-max(0, now_ms - local.peak_ms) / 1000 / self._policy.latency_decay_s)

    # ── Both ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _change(self, local: _Local, plan: Callable[[State], State | None], *, once: bool = False) -> State:
        local.state = await self._store.change(local.state, plan, now_ms=self._clock(), once=once)
        return local.state

    def _of(self, deployment: str) -> _Local:
        if (local := self._known.get(deployment)) is None:
            local = self._known[deployment] = _Local(State(deployment), self._policy.first_retries)
        return local


def _newer(known: State, read: State) -> State:
    """Reads may be older than one's own last write; an item that is gone has expired."""
    return known if 0 < read.version < known.version else read


def _log_failure(what: str, deployments: Sequence[str], error: HealthStoreError) -> None:
    facts = {"deployments": list(deployments), "reason": str(error)}
    logger.warning("the shared health cannot be used: %s", what, extra=facts)
