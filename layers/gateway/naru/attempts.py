"""Calling upstream until somebody answers: the attempts of one request, and what each of them teaches.

Every attempt asks the shared health of its deployment for a permit, and reports how it went; every attempt is in the
request's account. What is tried next is the route's to say.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from naru.accounting import Account
from naru.errors import (
    NaruError,
    StoreUnavailableError,
    UpstreamError,
    UpstreamMisconfiguredError,
    UpstreamRateLimitedError,
    UpstreamRefusedKeyError,
    UpstreamUnavailableError,
)
from naru.failures import AttemptFailedError
from naru.health import Health, NotNowError, Permit
from naru.meter import too_old
from naru.retry import RetryPolicy
from naru.routing import Going, Route, Stop
from naru.upstream import EventStream, Upstream

logger = logging.getLogger(__name__)

T = TypeVar("T")

# So many refusals of a provider that is at its limit are no failed attempts: the first, because nobody knew of a limit;
# and more where nobody else could answer, because each next call waits for its turn under the limit that all share.
_UNKNOWN_LIMIT = 1
_TURNS = 4
# So long one request waits in all, for a provider that is busy or has asked for rest.
_QUEUE_S = 30.0
_FRESH_S = 0.1
_AGE_S = 3.0


@dataclass(slots=True)
class Queue:
    """What is left of the waits of one request, whatever it waits for."""

    left_s: float = _QUEUE_S

    async def wait(self, account: Account, wait_s: float) -> None:
        """Waits, and takes that from what is left."""
        self.left_s -= wait_s
        account.waited_s += wait_s
        await asyncio.sleep(wait_s)


@dataclass(frozen=True, slots=True)
class Job:
    """A request that was let in. ``deadline_s`` and ``begin_by_s`` are monotonic: when it must be over, and when the
    client must have its first bytes. Interactive requests go before those of a batch. ``may_call`` is False from when
    somebody else may be doing the same.
    """

    route: Route
    account: Account
    deadline_s: float
    begin_by_s: float
    interactive: bool
    queue: Queue = field(default_factory=Queue)
    may_call: Callable[[], bool] = lambda: True

    @property
    def tenant(self) -> str:
        """Whose failures these are: a key's, or those of a key's batches, so that neither is believed for the other."""
        key_id = self.account.admission.key_id
        return key_id if self.interactive else f"{key_id}#batch"

    def remaining_s(self) -> float:
        return min(self.deadline_s - time.monotonic(), self.account.admission.age.left_s)

    def silence_left_s(self) -> float:
        """How long the client may still be kept waiting for anything at all."""
        return min(self.remaining_s(), self.begin_by_s - time.monotonic())


@dataclass(frozen=True, slots=True)
class Answered(Generic[T]):
    """An attempt that brought something. Its permit must be given back when all of it has come."""

    stop: Stop
    result: T
    permit: Permit
    since_s: float


class Attempts:
    """Makes them."""

    def __init__(self, upstream: Upstream, health: Health, retry: RetryPolicy, rng: random.Random) -> None:
        self._upstream = upstream
        self._health = health
        self._retry = retry
        self._rng = rng

    async def answer(self, job: Job) -> Answered[dict[str, Any]]:
        """The JSON answer of the first deployment that gives one.

        Raises :class:`~naru.errors.NaruError` when none does; to close the account is the caller's.
        """

        async def send(stop: Stop) -> dict[str, Any]:
            return await self._upstream.answer(
                stop.deployment,
                stop.body,
                request_id=job.account.subject.request_id,
                deadline_s=min(job.remaining_s(), stop.json_limit_s),
            )

        answered = await self._reach(job, send)
        await self._health.leave(answered.permit)
        return answered

    async def stream(self, job: Job) -> Answered[EventStream]:
        """The stream of the first deployment whose first token comes; raises as :meth:`answer`."""
        return await self._reach(job, lambda stop: self._open(job, stop, job.silence_left_s()))

    async def rest(self, job: Job, stop: Stop, going: Going) -> Answered[EventStream] | None:
        """The stream of a deployment that may give the rest of an answer that was cut; None if it is not to be called.

        Raises :class:`AttemptFailedError`.
        """
        try:
            permit = await self._permit(job, stop)
        except NotNowError as not_now:
            job.account.skip(stop, not_now.reason, not_now.retry_after_s)
            return None
        if job.account.admission.age.left_s < 0:
            await self._health.leave(permit)
            return None
        job.account.why = going
        return await self._attempt(job, stop, permit, lambda stop: self._open(job, stop, job.remaining_s()))

    async def cut(self, job: Job, answered: Answered[EventStream], *, result: str) -> None:
        """A stream ended that was not whole: the last attempt there was."""
        job.account.cut(result, since_s=answered.since_s)
        if result == "mismatch":
            # Hung up on: what it says after that is paid for too.
            job.account.maybe_billed_pico_usd += answered.stop.worst_case_pico_usd
        else:
            await self._health.failed(answered.permit, kind="failure", retry_after_s=None)

    async def leave(self, answered: Answered[EventStream]) -> None:
        """A stream has ended."""
        try:
            await answered.result.aclose()
        finally:
            await self._health.leave(answered.permit)

    async def _open(self, job: Job, stop: Stop, deadline_s: float) -> EventStream:
        return await self._upstream.stream(
            stop.deployment, stop.body, request_id=job.account.subject.request_id, deadline_s=deadline_s
        )

    async def _reach(self, job: Job, send: Callable[[Stop], Awaitable[T]]) -> Answered[T]:
        route, account = job.route, job.account
        failures: list[AttemptFailedError] = []
        turns = uncounted = 0
        while True:
            stop, permit = await self._enter(job, failures)
            if account.admission.age.left_s < 0:
                # The sweeper may have charged for it, or be about to.
                await self._health.leave(permit)
                raise too_old()
            if not job.may_call():
                await self._health.leave(permit)
                raise StoreUnavailableError(
                    "Another worker may have this request.", log={"reason": "claim not renewed"}
                )
            account.why = "probe" if permit.probe else route.why(stop)
            route.called(stop)
            try:
                return await self._attempt(job, stop, permit, send)
            except AttemptFailedError as failure:
                failures.append(failure)
                uncounted += not failure.was_called
                if stop.model_name != account.subject.model and not route.is_chosen:
                    failure.of_a_fallback()
                if failure.kind == "overload" and turns < (_TURNS if route.is_last_resort else _UNKNOWN_LIMIT):
                    turns, uncounted = turns + 1, uncounted + 1
                wait_s = route.after(
                    failure,
                    self._retry,
                    failures=len(failures) - uncounted,
                    remaining_s=job.silence_left_s(),
                    queue_left_s=job.queue.left_s,
                    may_retry=self._may_retry(job, failure),
                    rng=self._rng,
                )
                if wait_s is None:
                    raise _to_tell(failures) from failure
                if (following := route.current()).called and failure.kind == "failure":
                    pause_s = self._health.pause_s(following.deployment.name, tenant=job.tenant)
                    wait_s = max(wait_s, min(pause_s, job.silence_left_s(), job.queue.left_s))
                await job.queue.wait(account, wait_s)
                # The others have called meanwhile too, and a breaker that has opened must be seen before the next call.
                await self._health.refresh(route.health_items, max_age_s=_FRESH_S)

    def _may_retry(self, job: Job, failure: AttemptFailedError) -> Callable[[str], bool]:
        if failure.kind == "overload":
            # The shared limit decides who calls when; a retry takes a slot like everybody, and cannot make a storm.
            return lambda _: True
        return lambda deployment: self._health.may_retry(deployment, tenant=job.tenant)

    async def _enter(self, job: Job, failures: Sequence[AttemptFailedError]) -> tuple[Stop, Permit]:
        """Somewhere to call now, and the right to. Who has waited longer asks more often."""
        queued_s = 0.0
        while True:
            stop = job.account.at = job.route.current()
            try:
                return stop, await self._permit(job, stop)
            except NotNowError as not_now:
                job.account.skip(stop, not_now.reason, not_now.retry_after_s)
                again_s = not_now.retry_after_s
                if not_now.reason == "busy":
                    again_s /= 1 + queued_s / _AGE_S
                wait_s = job.route.skip(
                    reason=not_now.reason,
                    retry_after_s=again_s,
                    remaining_s=job.silence_left_s(),
                    queue_left_s=job.queue.left_s,
                )
                if wait_s is None:
                    raise (_to_tell(failures) if failures else _not_now(stop, not_now)) from not_now
                queued_s += wait_s
                await job.queue.wait(job.account, wait_s)

    async def _permit(self, job: Job, stop: Stop) -> Permit:
        deployment = stop.deployment
        return await self._health.enter(
            deployment.name, interactive=job.interactive, provider=deployment.provider, tenant=job.tenant
        )

    async def _attempt(self, job: Job, stop: Stop, permit: Permit, send: Callable[[Stop], Awaitable[T]]) -> Answered[T]:
        since_s = time.monotonic()
        try:
            result = await send(stop)
        except AttemptFailedError as failure:
            job.account.failed(stop, failure.result, since_s=since_s, maybe_billed=failure.maybe_billed)
            _log_failure(job.account, stop, failure)
            await self._health.failed(
                permit,
                kind=failure.kind,
                retry_after_s=failure.retry_after_s,
                unreachable=failure.unreachable,
            )
            await self._health.leave(permit)
            raise
        except BaseException:
            # Cancelled, or a defect of ours: the provider may have been called all the same.
            job.account.failed(stop, "interrupted", since_s=since_s, maybe_billed=True)
            await self._health.leave(permit)
            raise
        job.account.answered(stop, since_s=since_s)
        await self._health.answered(permit, latency_s=time.monotonic() - since_s)
        return Answered(stop, result, permit, since_s)


def _to_tell(failures: Sequence[AttemptFailedError]) -> NaruError:
    """Of several failures the last one that says something about the provider, and not about how it was set up: a
    fallback that was never configured, or cannot take the request, must not hide why it was needed.
    """
    setup = (UpstreamRefusedKeyError, UpstreamMisconfiguredError)
    errors = [failure.error for failure in failures if not failure.misfit]
    if not errors:
        return UpstreamUnavailableError(
            "The model that was asked for is left alone for a moment, since its provider has failed again and again, and "
            "no other can take this request. Try again later.",
        )
    told = next((error for error in reversed(errors) if not isinstance(error, setup)), errors[0])
    if any(failure.maybe_billed for failure in failures):
        told.waits_for = None
    return told


def _not_now(stop: Stop, not_now: NotNowError) -> UpstreamError:
    """What the client is told when nobody was called at all."""
    if not_now.reason == "open":
        error: UpstreamError = UpstreamUnavailableError(
            f"The provider of {stop.deployment.name} has failed again and again, and is left alone for a moment. Try again "
            "after the time in Retry-After.",
            retry_after_s=not_now.retry_after_s,
        )
    else:
        error = UpstreamRateLimitedError(
            f"The provider of {stop.deployment.name} is at its limit, and others are waiting for it. Try again after the "
            "time in Retry-After.",
            retry_after_s=max(1.0, not_now.retry_after_s),
        )
    # No retry of ours is spent, so one of the client's multiplies nothing.
    error.should_retry = True
    return error


def _log_failure(account: Account, stop: Stop, failure: AttemptFailedError) -> None:
    # What a client must not read and an operator must: which key to set, which address is wrong.
    level = logging.ERROR if failure.error.log.get("advice") else logging.WARNING
    facts = {
        "request_id": account.subject.request_id,
        "deployment": stop.deployment.name,
        "result": failure.result,
        "again": failure.again,
        **failure.error.log,
    }
    logger.log(level, "attempt failed", extra=facts)
