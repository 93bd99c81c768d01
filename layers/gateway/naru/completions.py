"""The use case: one chat completion, from an API key to a row in the ledger.

    authenticate → check → route → call upstream, again and elsewhere → record → answer

Interactive requests and lines of a batch travel the same way. Whatever happens after a provider has been called,
the request leaves exactly one row behind.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from naru import dialects, ledger, routing, sse, tokens, wire
from naru.catalog import Catalog, Deployment, Model
from naru.catalog_source import CatalogSource
from naru.errors import NaruError, ProviderRejectedError, StoreUnavailableError, UpstreamError, UpstreamProtocolError
from naru.ledger import Attempt, Ledger, Outcome, Row, UsageSource
from naru.meter import ApiKey, Meters
from naru.pricing import Usage
from naru.relay import ChunkRelay, ErrorChunkError, InvalidChunkError
from naru.retry import RetryPolicy
from naru.upstream import AttemptFailedError, EventStream, Upstream

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


@dataclass(slots=True)
class _Job:
    """One request on its way: what is known of it so far."""

    call: Call
    key: ApiKey
    body: dict[str, Any]
    request: wire.ChatRequest
    catalog: Catalog
    model: Model
    started_s: float
    deadline_s: float
    attempts: list[Attempt] = field(default_factory=list)
    maybe_billed_pico_usd: int = 0
    first_token_s: float | None = None

    @property
    def choices(self) -> int:
        return self.request.n or 1

    @property
    def output_limit(self) -> int:
        return self.request.output_limit or self.model.default_output_tokens

    def remaining_s(self) -> float:
        return self.deadline_s - time.monotonic()

    def worst_case_pico_usd(self, deployment: Deployment) -> int:
        """The most that one call to this deployment can cost."""
        bound = tokens.upper_bound_prompt(self.body, self.model.tokenizer, image_tokens=self.model.image_tokens)
        return deployment.rates.worst_case_pico_usd(
            # What does not fit into the context is refused, not billed.
            prompt_tokens=min(bound, deployment.context_tokens),
            completion_tokens=tokens.upper_bound_completion(self.body, output_limit=self.output_limit),
        )

    def headers(self, deployment: Deployment) -> dict[str, str]:
        return {
            "x-naru-model": self.request.model,
            "x-naru-deployment": deployment.name,
            "x-naru-attempts": str(len(self.attempts)),
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
        key = await self._meters.authenticate(call.authorization)
        body, request = wire.parse_chat_request(call.body)
        catalog = await self._catalogs.current()
        model = catalog.model(request.model)
        allowed_s = self._stream_deadline_s if request.stream else self._json_deadline_s
        job = _Job(
            call=call,
            key=key,
            body=body,
            request=request,
            catalog=catalog,
            model=model,
            started_s=started_s,
            deadline_s=started_s + min(allowed_s, call.patience_s),
        )
        return await (self._stream(job) if request.stream else self._answer(job))

    async def _answer(self, job: _Job) -> Answer:
        async def send(deployment: Deployment, body: Mapping[str, Any]) -> dict[str, Any]:
            return await self._upstream.answer(
                deployment, body, request_id=job.call.request_id, deadline_s=job.remaining_s()
            )

        deployment, answer = await self._reach(job, send)
        usage = wire.parse_usage(answer.get("usage")) or _estimated_usage(job, _counted(job, answer))
        await self._record(job, deployment, outcome="completed", usage=usage)
        answer["usage"] = wire.usage_object(usage)
        return Answer(body=wire.compact_json(answer), headers=job.headers(deployment))

    async def _stream(self, job: _Job) -> Answer:
        async def send(deployment: Deployment, body: Mapping[str, Any]) -> EventStream:
            return await self._upstream.stream(
                deployment, body, request_id=job.call.request_id, deadline_s=job.remaining_s()
            )

        deployment, events = await self._reach(job, send)
        return Answer(body=self._relay(job, deployment, events), headers=job.headers(deployment))

    async def _relay(self, job: _Job, deployment: Deployment, events: EventStream) -> AsyncGenerator[bytes, None]:
        """The client's stream. Its row is written before the client can see the end."""
        dialect = dialects.for_name(deployment.at.dialect)
        relay = ChunkRelay(
            dialect,
            tokens.CompletionCounter(job.model.tokenizer),
            choices=job.choices,
            show_usage=job.request.wants_usage_chunk,
        )
        error: NaruError | None = None
        try:
            try:
                while (data := await self._next(job, events)) is not None:
                    forwarded = relay.read(data)
                    if relay.has_content and job.first_token_s is None:
                        job.first_token_s = time.monotonic() - job.started_s
                    if forwarded is not None:
                        yield sse.encode_event(forwarded)
            except GeneratorExit:
                # Whoever draws this has gone. The provider goes on, and bills; so hear it out.
                while (data := await self._next(job, events)) is not None:
                    relay.read(data)
                raise
            if not relay.complete:
                error = _cut(deployment)
        except AttemptFailedError as failure:
            # A provider that has given every finish_reason has said it all, whatever became of its last bytes.
            error = None if relay.complete else failure.error
        except ErrorChunkError as failure:
            error = _provider_error(deployment, dialect.error(200, {}, failure.payload).message)
        except InvalidChunkError:
            error = _cut(deployment)
        finally:
            await events.aclose()
            usage = await self._record_stream(job, deployment, relay, error)
        if error is not None:
            logger.warning("stream cut", extra={"request_id": job.call.request_id, "code": error.code, **error.log})
            yield sse.encode_error(error.body())
            return
        if job.request.wants_usage_chunk:
            yield sse.encode_event(relay.usage_chunk(usage))
        yield sse.DONE

    async def _next(self, job: _Job, events: EventStream) -> bytes | None:
        data = await events.next(min(events.silence_s, max(0.0, job.remaining_s())))
        return None if data == b"[DONE]" else data

    async def _reach(
        self, job: _Job, send: Callable[[Deployment, Mapping[str, Any]], Awaitable[T]]
    ) -> tuple[Deployment, T]:
        """Calls deployments until one answers; leaves a row behind if none does."""
        route = routing.Route(job.model, job.body, output_limit=job.output_limit)
        failures = 0
        while True:
            deployment, body = route.current()
            started_s = time.monotonic()
            try:
                result = await send(deployment, body)
            except AttemptFailedError as failure:
                failures += 1
                self._note(job, deployment, failure, started_s)
                wait_s = route.after(failure, self._retry, failures=failures, rng=self._rng)
                if wait_s is None or wait_s >= job.remaining_s():
                    await self._record_failure(job, deployment, failure.error)
                    raise failure.error from failure
                await asyncio.sleep(wait_s)
            except BaseException as error:
                # Cancelled, or a defect of ours: the provider may have been called all the same.
                job.attempts.append(Attempt(deployment.name, "interrupted", _ms_since(started_s), maybe_billed=True))
                job.maybe_billed_pico_usd += job.worst_case_pico_usd(deployment)
                await self._record_failure(job, deployment, error)
                raise
            else:
                job.attempts.append(Attempt(deployment.name, "ok", _ms_since(started_s)))
                return deployment, result

    def _note(self, job: _Job, deployment: Deployment, failure: AttemptFailedError, started_s: float) -> None:
        job.attempts.append(
            Attempt(deployment.name, failure.result, _ms_since(started_s), maybe_billed=failure.maybe_billed)
        )
        if failure.maybe_billed:
            job.maybe_billed_pico_usd += job.worst_case_pico_usd(deployment)
        # What a client must not read and an operator must: which key to set, which address is wrong.
        level = logging.ERROR if failure.error.log.get("advice") else logging.WARNING
        logger.log(
            level,
            "attempt failed",
            extra={
                "request_id": job.call.request_id,
                "deployment": deployment.name,
                "result": failure.result,
                "again": failure.again,
                **failure.error.log,
            },
        )

    async def _record_stream(
        self, job: _Job, deployment: Deployment, relay: ChunkRelay, error: NaruError | None
    ) -> Usage:
        """The row of a stream, however it ended. The tokens of one that was cut are an estimate at best."""
        whole = relay.complete
        usage = relay.usage or _estimated_usage(job, relay.counter)
        if not whole:
            usage = replace(usage, estimated=True)
            opened = job.attempts.pop()
            job.attempts.append(replace(opened, result="cut", duration_ms=_ms_since(job.started_s)))
        outcome: Outcome = "completed" if whole else "truncated"
        await self._record(job, deployment, outcome=outcome, usage=usage, error_code=error.code if error else None)
        return usage

    async def _record_failure(self, job: _Job, deployment: Deployment, error: BaseException) -> None:
        code = error.body()["error"]["code"] if isinstance(error, NaruError) else "internal_error"
        outcome: Outcome = "rejected" if isinstance(error, ProviderRejectedError) else "failed"
        await self._record(job, deployment, outcome=outcome, usage=None, error_code=code)

    async def _record(
        self,
        job: _Job,
        deployment: Deployment,
        *,
        outcome: Outcome,
        usage: Usage | None,
        error_code: str | None = None,
    ) -> None:
        source: UsageSource = "none" if usage is None else "estimated" if usage.estimated else "reported"
        charged = usage or Usage(prompt_tokens=0, completion_tokens=0)
        row = Row(
            request_id=job.call.request_id,
            key_id=job.key.key_id,
            end_user=job.request.end_user,
            batch_id=job.call.batch_id,
            stream=bool(job.request.stream),
            model_asked=job.request.model,
            model_served=job.request.model,
            deployment=deployment.name,
            outcome=outcome,
            error_code=error_code,
            usage=charged,
            usage_source=source,
            catalog_version=job.catalog.version,
            rates=deployment.rates,
            cost_pico_usd=deployment.rates.cost_pico_usd(charged),
            maybe_billed_pico_usd=job.maybe_billed_pico_usd,
            attempts=tuple(job.attempts),
            first_token_ms=None if job.first_token_s is None else round(job.first_token_s * 1000),
            latency_ms=_ms_since(job.started_s),
        )
        facts = ledger.facts(row)
        try:
            await self._ledger.put(row)
        except StoreUnavailableError as error:
            # The client's answer is there and paid for: it is not thrown away. The row can be put from this line.
            logger.exception("ledger row not written", extra={**facts, **error.log})
        else:
            logger.info("completion", extra=facts)


def _counted(job: _Job, answer: dict[str, Any]) -> tokens.CompletionCounter:
    counter = tokens.CompletionCounter(job.model.tokenizer)
    counter.feed(answer)
    return counter


def _estimated_usage(job: _Job, counter: tokens.CompletionCounter) -> Usage:
    return Usage(
        prompt_tokens=tokens.estimate_prompt(job.body, job.model.tokenizer),
        completion_tokens=counter.completion_tokens,
        reasoning_tokens=counter.reasoning_tokens,
        estimated=True,
    )


def _cut(deployment: Deployment) -> UpstreamProtocolError:
    return UpstreamProtocolError(
        f"The answer of {deployment.name} was cut off by its provider; what you have is not all of it. Ask again.",
        code="upstream_stream_cut",
    )


def _provider_error(deployment: Deployment, message: str) -> UpstreamError:
    return UpstreamError(
        f"The provider of {deployment.name} reported an error in the middle of its answer: {message}",
        code="upstream_stream_error",
    )


def _ms_since(started_s: float) -> int:
    return round((time.monotonic() - started_s) * 1000)
