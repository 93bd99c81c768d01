"""The use case: one chat completion, from an API key to a row in the ledger.

    check → route → admit → call upstream, again and elsewhere → record and settle → answer

Interactive requests and lines of a batch travel the same way. No provider is called for a request that its meters
did not admit, and each request that was admitted leaves exactly one row behind, whatever happens.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from naru import dialects, sse, tokens, wire
from naru.accounting import Account, Subject
from naru.catalog import Catalog, Deployment, Model
from naru.catalog_source import CatalogSource
from naru.errors import InvalidRequestError, NaruError, UpstreamError, UpstreamProtocolError
from naru.failures import AttemptFailedError
from naru.ledger import Ledger
from naru.meter import Admission, Meters
from naru.pricing import Usage
from naru.relay import ChunkRelay, ErrorChunkError, InvalidChunkError
from naru.retry import RetryPolicy
from naru.routing import Route, Stop
from naru.upstream import EventStream, Upstream

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """A request as it arrived. ``patience_s`` is how long the caller's own machinery lets it run."""

    request_id: str
    authorization: str | None
    body: str | bytes | None
    patience_s: float
    batch_id: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the client gets: JSON as bytes, or events as they come. A generator must be drawn to its end or closed."""

    body: bytes | AsyncGenerator[bytes, None]
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Plan:
    """A request that makes sense, and how it can be served."""

    body: dict[str, Any]
    request: wire.ChatRequest
    catalog: Catalog
    model: Model
    route: Route

    @property
    def choices(self) -> int:
        return self.request.n or 1

    def estimated_tokens(self) -> int:
        """What the request takes of a limit of tokens per minute, until the provider has counted."""
        limit = self.request.output_limit or self.model.default_output_tokens
        return tokens.estimate_prompt(self.body, self.model.tokenizer) + limit * self.choices

    def estimated_usage(self, stop: Stop, counter: tokens.CompletionCounter) -> Usage:
        return Usage(
            prompt_tokens=tokens.estimate_prompt(self.body, stop.model.tokenizer),
            completion_tokens=counter.completion_tokens,
            reasoning_tokens=counter.reasoning_tokens,
            estimated=True,
        )


@dataclass(frozen=True, slots=True)
class _Job:
    """A request that was let in. ``deadline_s`` is monotonic."""

    plan: _Plan
    account: Account
    deadline_s: float

    def remaining_s(self) -> float:
        return self.deadline_s - time.monotonic()

    def headers(self, stop: Stop) -> dict[str, str]:
        return {
            **self.account.admission.headers,
            "x-naru-model": stop.model_name,
            "x-naru-deployment": stop.deployment.name,
            "x-naru-attempts": str(len(self.account.attempts)),
        }


class Completions:
    """Answers chat completions.

    ``json_deadline_s`` and ``stream_deadline_s`` bound a request with all its attempts and waits.
    """

    def __init__(
        self,
        *,
        catalogs: CatalogSource,
        meters: Meters,
        upstream: Upstream,
        ledger: Ledger,
        retry: RetryPolicy,
        json_deadline_s: float,
        stream_deadline_s: float,
        rng: random.Random | None = None,
    ) -> None:
        self._catalogs = catalogs
        self._meters = meters
        self._upstream = upstream
        self._ledger = ledger
        self._retry = retry
        self._json_deadline_s = json_deadline_s
        self._stream_deadline_s = stream_deadline_s
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret

    async def create(self, call: Call) -> Answer:
        """The answer to a chat completion request.

        Raises :class:`~naru.errors.NaruError`. A stream that fails after its first event tells the client in-band.
        """
        started_s = time.monotonic()
        try:
            plan = await self._plan(call.body)
        except InvalidRequestError as error:
            # Strangers learn that they are strangers; the rest learn what was wrong and where their limits stand.
            key = await self._meters.authenticate(call.authorization, now_ms=_now_ms())
            error.headers = dict(key.headers)
            raise
        admission = await self._admit(call, plan)
        request = plan.request
        allowed_s = self._stream_deadline_s if request.stream else self._json_deadline_s
        job = _Job(
            plan,
            Account(
                Subject(
                    request_id=call.request_id,
                    end_user=request.end_user,
                    batch_id=call.batch_id,
                    stream=bool(request.stream),
                    model=request.model,
                    catalog_version=plan.catalog.version,
                ),
                admission,
                self._ledger,
                self._meters,
                started_s,
            ),
            deadline_s=started_s + min(allowed_s, call.patience_s),
        )
        try:
            return await (self._stream(job) if request.stream else self._answer(job))
        except NaruError as error:
            error.headers = {**admission.headers, **error.headers}
            raise

    async def _plan(self, text: str | bytes | None) -> _Plan:
        body, request = wire.parse_chat_request(text)
        catalog = await self._catalogs.current()
        model = catalog.model(request.model)
        route = Route(catalog, request.model, body, output_limit=request.output_limit)
        return _Plan(body, request, catalog, model, route)

    async def _admit(self, call: Call, plan: _Plan) -> Admission:
        return await self._meters.admit(
            call.authorization,
            request_id=call.request_id,
            now_ms=_now_ms(),
            model=plan.request.model,
            worst_pico_usd=plan.route.worst_case_pico_usd,
            tokens=plan.estimated_tokens(),
            end_user=plan.request.end_user,
        )

    async def _answer(self, job: _Job) -> Answer:
        async def send(stop: Stop) -> dict[str, Any]:
            return await self._upstream.answer(
                stop.deployment, stop.body, request_id=job.account.subject.request_id, deadline_s=job.remaining_s()
            )

        stop, answer = await self._reach(job, send)
        if (usage := wire.parse_usage(answer.get("usage"))) is None:
            counter = tokens.CompletionCounter(stop.model.tokenizer)
            counter.feed(answer)
            usage = job.plan.estimated_usage(stop, counter)
        await job.account.close(stop, outcome="completed", usage=usage)
        answer["usage"] = wire.usage_object(usage)
        return Answer(body=wire.compact_json(answer), headers=job.headers(stop))

    async def _stream(self, job: _Job) -> Answer:
        async def send(stop: Stop) -> EventStream:
            return await self._upstream.stream(
                stop.deployment, stop.body, request_id=job.account.subject.request_id, deadline_s=job.remaining_s()
            )

        stop, events = await self._reach(job, send)
        return Answer(body=self._relay(job, stop, events), headers=job.headers(stop))

    async def _reach(self, job: _Job, send: Callable[[Stop], Awaitable[T]]) -> tuple[Stop, T]:
        """Calls deployments until one answers; closes the account if none does."""
        route, account, failures = job.plan.route, job.account, 0
        while True:
            stop = route.current()
            since_s = time.monotonic()
            try:
                result = await send(stop)
            except AttemptFailedError as failure:
                failures += 1
                account.failed(stop, failure.result, since_s=since_s, maybe_billed=failure.maybe_billed)
                _log_failure(account, stop, failure)
                wait_s = route.after(
                    failure, self._retry, failures=failures, remaining_s=job.remaining_s(), rng=self._rng
                )
                if wait_s is None:
                    await account.close_failed(stop, failure.error)
                    raise failure.error from failure
                await asyncio.sleep(wait_s)
            except BaseException as error:
                # Cancelled, or a defect of ours: the provider may have been called all the same.
                account.failed(stop, "interrupted", since_s=since_s, maybe_billed=True)
                await account.close_failed(stop, error)
                raise
            else:
                account.answered(stop, since_s=since_s)
                return stop, result

    async def _relay(self, job: _Job, stop: Stop, events: EventStream) -> AsyncGenerator[bytes, None]:
        """The client's stream. Its row is written before the client can see the end."""
        account, request = job.account, job.plan.request
        dialect = dialects.for_name(stop.deployment.at.dialect)
        counter = tokens.CompletionCounter(stop.model.tokenizer)
        relay = ChunkRelay(dialect, counter, choices=job.plan.choices, show_usage=request.wants_usage_chunk)
        error: NaruError | None = None
        try:
            try:
                while (data := await _next(job, events)) is not None:
                    forwarded = relay.read(data)
                    if relay.has_content:
                        account.token_came()
                    if forwarded is not None:
                        yield sse.encode_event(forwarded)
            except GeneratorExit:
                # Whoever draws this has gone. The provider goes on, and bills; so hear it out.
                while (data := await _next(job, events)) is not None:
                    relay.read(data)
                raise
            if not relay.complete:
                error = _cut(stop.deployment)
        except AttemptFailedError as failure:
            # A provider that has given every finish_reason has said it all, whatever became of its last bytes.
            error = None if relay.complete else failure.error
        except ErrorChunkError as failure:
            error = _reported(stop.deployment, dialect.error(200, {}, failure.payload).message)
        except InvalidChunkError:
            error = _cut(stop.deployment)
        finally:
            await events.aclose()
            usage = await _close_stream(job, stop, relay, error)
        if error is not None:
            facts = {"request_id": account.subject.request_id, "code": error.code, **error.log}
            logger.warning("stream cut", extra=facts)
            yield sse.encode_error(error.body())
            return
        if request.wants_usage_chunk:
            yield sse.encode_event(relay.usage_chunk(usage))
        yield sse.DONE


async def _next(job: _Job, events: EventStream) -> bytes | None:
    data = await events.next(min(events.silence_s, max(0.0, job.remaining_s())))
    return None if data == b"[DONE]" else data


async def _close_stream(job: _Job, stop: Stop, relay: ChunkRelay, error: NaruError | None) -> Usage:
    """The row of a stream, however it ended. The tokens of one that was cut are an estimate at best."""
    usage = relay.usage or job.plan.estimated_usage(stop, relay.counter)
    if relay.complete:
        await job.account.close(stop, outcome="completed", usage=usage)
        return usage
    job.account.cut()
    usage = replace(usage, estimated=True)
    code = error.code if error else "internal_error"
    await job.account.close(stop, outcome="truncated", usage=usage, error_code=code)
    return usage


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


def _cut(deployment: Deployment) -> UpstreamProtocolError:
    return UpstreamProtocolError(
        f"The answer of {deployment.name} was cut off by its provider; what you have is not all of it. Ask again.",
        code="upstream_stream_cut",
    )


def _reported(deployment: Deployment, message: str) -> UpstreamError:
    return UpstreamError(
        f"The provider of {deployment.name} reported an error in the middle of its answer: {message}",
        code="upstream_stream_error",
    )


def _now_ms() -> int:
    return time.time_ns() // 10**6
