"""The breakers as one environment sees them: who may call, and what each outcome says to all others.

A deployment has one, and so has its provider (:func:`naru.health_state.provider_item`). What follows from what is known
is worked out in :mod:`naru.health_state`; here it is read, written, and kept between requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from naru import health_state as states
from naru.health_limit import Observations
from naru.health_state import HealthPolicy, State
from naru.health_store import HealthStore, HealthStoreError, RefusedWriteError

logger = logging.getLogger(__name__)

Reason = Literal["open", "resting", "busy"]

_KNOWN_ANSWERS = 1000
_COUNT_TRIES = 8
_NAMED_TRIES = 4
"""Then a failure is counted as nobody's: where so many write at once, it is not one tenant that fails."""


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
    provider: str = ""
    """The name of the provider's item; empty if nobody said whose deployment it is."""
    tenant: str = ""
    """The tag of whose request it is; empty if nobody said."""
    began_ms: int = 0
    probes: set[str] = field(default_factory=set)
    """Items whose probe this call is, and has not yet decided."""
    probe: bool = False
    holds_slot: bool = False
    observed: bool = False
    """It is under this environment's share."""
    won: bool = False
    over: bool = False


@dataclass(slots=True, eq=False)
class Known:
    """What this environment knows of an item."""

    state: State
    policy: HealthPolicy
    tokens: float
    asked_ms: int = -(10**15)
    reading: asyncio.Future[None] | None = None
    in_flight: int = 0
    answers_ms: deque[int] = field(default_factory=lambda: deque(maxlen=_KNOWN_ANSWERS))
    """When calls were answered that the others have not been told of."""
    answered_ms: int = -(10**15)
    """When a call was last answered here."""
    reported_ms: int = -(10**15)
    failures_in_row: int = 0
    last_retry_by: str = ""
    peak_s: float = 0.0
    peak_ms: int = 0
    batch: Observations = field(default_factory=Observations)
    too_much: asyncio.Event = field(default_factory=asyncio.Event)
    """A call under the share was refused, and the others do not know it yet."""
    share: int = 0
    share_until_ms: int = 0

    def unreported(self, now_ms: int) -> int:
        """Own answers since the trouble began, as far as they are not old."""
        since_ms = max(self.state.failing_since_ms, now_ms - 2 * self.policy.slot_ms)
        return sum(at_ms >= since_ms for at_ms in self.answers_ms)

    def take_answers(self, now_ms: int) -> int:
        answers = self.unreported(now_ms)
        self.answers_ms.clear()
        return answers


class Breakers:
    """Every method may raise :class:`~naru.health_store.HealthStoreError`."""

    def __init__(self, store: HealthStore, clock: Callable[[], int], on_open: Callable[[str], None]) -> None:
        self._store = store
        self._clock = clock
        self._on_open = on_open

    async def enter(self, known: Known, permit: Permit) -> None:
        """Takes the probe of a breaker that is open.

        Raises :class:`NotNowError` where that is not possible.
        """
        if not known.state.is_open_to(permit.tenant):
            return
        now_ms = self._clock()

        def plan(state: State) -> State | None:
            if not state.is_open_to(permit.tenant):
                return None
            return states.probing(state, probe=permit.id, now_ms=now_ms, policy=known.policy)

        state = await self._change(known, plan)
        if not state.is_open_to(permit.tenant):
            return  # somebody has found it well again
        if state.probe != permit.id:
            raise NotNowError("open", max(0.5, state.open_for_ms(now_ms) / 1000))
        permit.probes.add(state.deployment)
        permit.probe = True

    async def answered(self, known: Known, permit: Permit) -> None:
        """A call was answered, as good as by an error that a provider makes only when it is well."""
        now_ms = self._clock()
        known.failures_in_row = 0
        known.answered_ms = now_ms
        if known.state.deployment in permit.probes:
            await self.end_probe(known, permit, verdict=True)
        elif known.state.is_open_to(permit.tenant) and permit.began_ms > known.state.opened_ms:
            await self._close(known, permit)
        else:
            known.answers_ms.append(now_ms)
            await self._report_answers(known, now_ms)

    async def failed(self, known: Known, permit: Permit, *, tenant: str, settled: bool = False) -> bool:
        """A call has failed, with a request of this tenant's; whether the breaker is open for all because of it.

        ``settled`` says that others had the time to be answered, too.
        """
        if known.state.deployment in permit.probes:
            await self.end_probe(known, permit, verdict=False)
            return known.state.is_open_to("")
        if known.state.is_open_to(tenant):
            return False  # as is known already
        now_ms = self._clock()
        known.failures_in_row += 1
        is_news = not known.state.is_failing(now_ms, known.policy)
        answers = 0 if is_news else known.take_answers(now_ms)
        await self._count(known, failures=1, answers=answers, now_ms=now_ms, tenant=tenant)
        before = known.state
        unreported = known.unreported(now_ms)
        own = known.failures_in_row if known.in_flight <= 1 else 0
        if settled:
            own = known.policy.own_failures

        def plan(state: State) -> State | None:
            if not states.must_open(
                state, more_answers=unreported, own_failures=own, now_ms=now_ms, policy=known.policy
            ):
                return None
            who = states.whose(state, more_answers=unreported, now_ms=now_ms, policy=known.policy)
            if who and (state.opened_ms or not known.policy.opens_for_one):
                return None
            return states.opened(state, now_ms=now_ms, policy=known.policy, tenant=who)

        state = await self._change(known, plan)
        if state.opened_ms and (not before.opened_ms or (before.opened_for and not state.opened_for)):
            failures, answers = before.recent(now_ms, known.policy)
            facts = {
                "deployment": state.deployment,
                "failures": failures,
                "answers": answers,
                "for": "one tenant" if state.opened_for else "all",
            }
            logger.warning("breaker opened", extra=facts)
            self._on_open(state.deployment)
            return not state.opened_for
        if not state.opened_ms:
            await self._report_answers(known, now_ms)
        return False

    async def end_probe(self, known: Known, permit: Permit, *, verdict: bool | None) -> None:
        """The probe has brought an answer, has failed, or was given up (None)."""
        permit.probes.discard(known.state.deployment)
        now_ms = self._clock()
        known.answers_ms.clear()
        before = known.state
        state = await self._change(
            known,
            lambda state: states.probed(state, probe=permit.id, verdict=verdict, now_ms=now_ms, policy=known.policy),
        )
        _log_closed(before, state, now_ms)

    async def _close(self, known: Known, permit: Permit) -> None:
        """A call that was no probe, and began after the breaker had opened, was answered."""
        now_ms = self._clock()
        before = known.state

        def plan(state: State) -> State | None:
            is_after = state.is_open_to(permit.tenant) and permit.began_ms > state.opened_ms
            return states.closed(state) if is_after else None

        state = await self._change(known, plan)
        known.answers_ms.append(now_ms)
        _log_closed(before, state, now_ms)

    async def _report_answers(self, known: Known, now_ms: int) -> None:
        """Answers count where there are failures to compare them with."""
        if known.state.is_open_to("") or not known.state.is_failing(now_ms, known.policy):
            return
        if now_ms - known.reported_ms < known.policy.report_every_s * 1000:
            return
        if answers := known.take_answers(now_ms):
            known.reported_ms = now_ms
            await self._count(known, failures=0, answers=answers, now_ms=now_ms, tenant="")

    async def _count(self, known: Known, *, failures: int, answers: int, now_ms: int, tenant: str) -> None:
        for attempt in range(_COUNT_TRIES):
            state = known.state
            if state.is_open_to("") or not (failures or state.is_failing(now_ms, known.policy)):
                return
            whose = tenant if attempt < _NAMED_TRIES else ""
            try:
                if state.failures and state.slot == now_ms // known.policy.slot_ms and state.blamed is not None:
                    # Many count at once: this does not stand in anybody's way.
                    write = states.count_again(state, failures=failures, answers=answers, tenant=whose)
                    known.state = await self._store.write(state.deployment, write)
                else:
                    after = states.counted(
                        state, failures=failures, answers=answers, now_ms=now_ms, policy=known.policy, tenant=whose
                    )
                    known.state = await self._store.become(state, after, now_ms=now_ms)
            except RefusedWriteError as refused:
                known.state = refused.state
            else:
                return
        raise HealthStoreError(f"the counts of {known.state.deployment} change all the time")

    async def _change(self, known: Known, plan: Callable[[State], State | None]) -> State:
        known.state = await self._store.change(known.state, plan, now_ms=self._clock())
        return known.state


def _log_closed(before: State, after: State, now_ms: int) -> None:
    if before.opened_ms and not after.opened_ms:
        facts = {"deployment": after.deployment, "open_s": (now_ms - before.opened_ms) / 1000}
        logger.warning("breaker closed", extra=facts)
