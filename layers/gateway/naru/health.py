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
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from naru import health_limit as limits
from naru import health_state as states
from naru.health_breaker import Breakers, Known, NotNowError, Permit
from naru.health_limit import Sample, Share
from naru.health_state import BreakerState, HealthPolicy, State, provider_item, tenant_tag
from naru.health_store import HealthStore, HealthStoreError, RefusedWriteError
from naru.request_ids import new_request_id

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

__all__ = ["Health", "HealthPolicy", "NotNowError", "Permit", "Sample", "Share", "provider_item"]

logger = logging.getLogger(__name__)


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
        self._store = HealthStore(client, table, kept_s=policy.kept_s, rng=self._rng)
        self._breakers = Breakers(self._store, clock, on_open)
        self._known: dict[str, Known] = {}

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

    def may_retry(self, deployment: str, *, tenant: str = "") -> bool:
        """Takes a token of the retry budget; False if it is spent. A tenant that took the last one leaves one to others."""
        local = self._of(deployment)
        left_to_others = int(bool(tenant) and tenant == local.last_retry_by)
        if local.tokens < 1 + left_to_others:
            return False
        local.tokens -= 1
        local.last_retry_by = tenant
        return True

    def pause_s(self, deployment: str, *, tenant: str = "") -> float:
        """How long to wait before a retry, beside the backoff: 0, unless so many fail that it is about to be known
        whether the provider is ill. Those who wait for that do not all try it meanwhile, unless all failures are another
        tenant's.
        """
        local, now_ms = self._of(deployment), self._clock()
        failures, answers = local.state.recent(now_ms, self._policy)
        unreported = local.unreported(now_ms)
        calls = failures + answers + unreported + self._policy.presumed_answers
        if failures < self._policy.min_failures or failures < self._policy.failure_ratio * calls:
            return 0.0
        whose = states.whose(local.state, more_answers=unreported, now_ms=now_ms, policy=self._policy)
        if tenant and whose not in {"", tenant_tag(tenant)}:
            return 0.0
        settled_s = self._policy.settle_s - (now_ms - local.state.failing_since_ms) / 1000
        return max(0.0, settled_s) + self._rng.uniform(0.0, 1.0)

    # ── One call ───────────────────────────────────────────────────────────────────────────────────────────

    async def enter(self, deployment: str, *, interactive: bool = True, provider: str = "", tenant: str = "") -> Permit:
        """The right to call a deployment of this provider now, for a request of this tenant: a key, or a key's batches.

        Costs nothing where all is well. Raises :class:`NotNowError`.
        """
        local, now_ms = self._of(deployment), self._clock()
        if resting_ms := local.state.resting_for_ms(now_ms):
            raise NotNowError("resting", resting_ms / 1000)
        permit = Permit(
            deployment,
            interactive,
            new_request_id(at_ms=now_ms),
            provider=provider_item(provider) if provider else "",
            tenant=tenant_tag(tenant),
            began_ms=now_ms,
        )
        permit.observed = not interactive and local.share_until_ms > now_ms
        both = self._both(permit)
        opened = [known.state.open_for_ms(now_ms) for known in both if known.state.is_open_to(permit.tenant)]
        if (open_ms := max(opened, default=0)) > 0:
            raise NotNowError("open", max(0.5, open_ms / 1000))
        try:
            for known in both:
                await self._breakers.enter(known, permit)
            if permit.probe or permit.observed:
                pass
            elif local.state.is_limited(now_ms):
                await self._take_slot(local, permit)
            elif interactive and local.state.live_holders(now_ms):
                await self._show_presence(local)
        except HealthStoreError as error:
            _log_failure("enter", [deployment], error)
        except NotNowError:
            await self._give_up_probes(permit)
            raise
        for known in both:
            known.in_flight += 1
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
            for known in self._both(permit):
                await self._breakers.answered(known, permit)
        except HealthStoreError as error:
            _log_failure("report an answer", [permit.deployment], error)

    async def failed(
        self,
        permit: Permit,
        *,
        kind: Literal["failure", "overload", "neutral"],
        retry_after_s: float | None,
        unreachable: bool = False,
    ) -> None:
        """The call has failed: the provider is ill, or it has too much to do, or it lives and the request was wrong.
        ``unreachable`` says of a failure that no connection was made, which is no tenant's fault.

        Never raises.
        """
        local = self._of(permit.deployment)
        permit.won = False
        if permit.observed and kind != "neutral":
            local.batch.failed(overload=kind == "overload")
            if kind == "overload":
                local.too_much.set()
        try:
            if kind == "failure":
                await self._report_failure(permit, unreachable=unreachable)
            else:
                # Who refuses is not ill.
                for known in self._both(permit):
                    await self._breakers.answered(known, permit)
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
        for known in self._both(permit):
            known.in_flight -= 1
        if permit.observed:
            local.batch.ended()
        await self._give_up_probes(permit)
        if not permit.holds_slot:
            return
        # An answer to a call from before the limit was cut is none for the limit that it is now.
        won = permit.won and permit.began_ms > local.state.cut_ms
        try:
            try:
                local.state = await self._store.write(permit.deployment, states.give_back(permit.id, won=won))
            except RefusedWriteError as refused:
                local.state = refused.state  # its lease was over
            await self._change(local, lambda state: states.grown(state, now_ms=now_ms, policy=self._policy), once=True)
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
        if local.state.is_open_to(""):
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

    def _share(self, local: Known, share: Share, now_ms: int) -> Share:
        local.share = share.slots
        local.share_until_ms = now_ms + round(self._policy.holder_lease_s * 1000)
        return share

    # ── Entering ───────────────────────────────────────────────────────────────────────────────────────────

    async def _take_slot(self, local: Known, permit: Permit) -> None:
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
        await self._change(
            local,
            lambda state: states.refused(state, interactive=permit.interactive, now_ms=now_ms, policy=self._policy),
            once=True,
        )
        # Slots come free all the time, but each look is a write on the one item that all share.
        raise NotNowError("busy", min(1.0, max(0.2, (local.peak_s or 1.0) / 2)) * self._rng.uniform(0.5, 1.5))

    async def _bury(self, local: Known, now_ms: int) -> bool:
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

    async def _show_presence(self, local: Known) -> None:
        """Tells batch workers now and then that somebody waits for answers."""
        now_ms = self._clock()
        if now_ms - local.state.interactive_ms < self._policy.presence_every_s * 1000:
            return
        try:
            local.state = await self._store.write(local.state.deployment, states.interactive_seen(now_ms))
        except RefusedWriteError as refused:
            local.state = refused.state

    # ── Reporting ──────────────────────────────────────────────────────────────────────────────────────────

    async def _report_failure(self, permit: Permit, *, unreachable: bool) -> None:
        local = self._of(permit.deployment)
        opened = await self._breakers.failed(local, permit, tenant="" if unreachable else permit.tenant)
        if not permit.provider:
            return
        above = self._of(permit.provider)
        if unreachable or permit.provider in permit.probes:
            # Where nobody was answered lately there is no answer to wait for. A request that tries again by itself is no
            # second witness.
            is_quiet = self._clock() - above.answered_ms >= above.policy.slot_ms
            await self._breakers.failed(above, permit, tenant="", settled=is_quiet and not above.failures_in_row)
        elif opened:
            # One deployment of it that is ill says nothing of the others; several do.
            await self._breakers.failed(above, permit, tenant=tenant_tag(permit.deployment), settled=True)

    async def _give_up_probes(self, permit: Permit) -> None:
        try:
            for known in self._both(permit):
                if known.state.deployment in permit.probes:
                    await self._breakers.end_probe(known, permit, verdict=None)
        except HealthStoreError as error:
            _log_failure("give up a probe", [permit.deployment], error)

    async def _report_overload(self, local: Known, permit: Permit, retry_after_s: float | None) -> None:
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

    def _feel(self, local: Known, latency_s: float, now_ms: int) -> None:
        """A peak is believed at once and forgotten slowly (Finagle's peak EWMA)."""
        kept = self._kept(local, now_ms)
        local.peak_s = max(latency_s, local.peak_s * kept + latency_s * (1 - kept))
        local.peak_ms = now_ms

    def _kept(self, local: Known, now_ms: int) -> float:
        return math.exp(-max(0, now_ms - local.peak_ms) / 1000 / self._policy.latency_decay_s)

    # ── Both ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _change(self, local: Known, plan: Callable[[State], State | None], *, once: bool = False) -> State:
        local.state = await self._store.change(local.state, plan, now_ms=self._clock(), once=once)
        return local.state

    def _both(self, permit: Permit) -> list[Known]:
        """What is known of the deployment, and of its provider."""
        return [self._of(name) for name in (permit.deployment, permit.provider) if name]

    def _of(self, name: str) -> Known:
        if (known := self._known.get(name)) is None:
            policy = states.of_provider(self._policy) if states.is_provider_item(name) else self._policy
            known = self._known[name] = Known(State(name), policy, self._policy.first_retries)
        return known


def _newer(known: State, read: State) -> State:
    """Reads may be older than one's own last write; an item that is gone has expired."""
    return known if 0 < read.version < known.version else read


def _log_failure(what: str, deployments: Sequence[str], error: HealthStoreError) -> None:
    facts = {"deployments": list(deployments), "reason": str(error)}
    logger.warning("the shared health cannot be used: %s", what, extra=facts)
