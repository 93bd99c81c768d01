"""The use case: one chat completion, from an API key to a row in the ledger.

    check → route → admit → call upstream, again and elsewhere → record and settle → answer

Interactive requests and lines of a batch travel the same way. No provider is called for a request that its meters
did not admit, and each request that was admitted leaves exactly one row behind, whatever happens.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from naru import tokens, wire
from naru.accounting import Account, Subject
from naru.attempts import Attempts, Job
from naru.catalog import Catalog, Model
from naru.catalog_source import CatalogSource
from naru.client_stream import LAST_WORDS_S, ClientStream
from naru.errors import InvalidRequestError, NaruError, PermissionDeniedError
from naru.health import Health
from naru.keys import Proven, read_authorization
from naru.ledger import Ledger
from naru.meter import Admission, ApiKey, Meters
from naru.preferences import Preference
from naru.pricing import Usage
from naru.provider_usage import read_usage, usage_object, without_reports
from naru.retry import RetryPolicy
from naru.routing import Route, Stop
from naru.upstream import Upstream

PROOF_CHARS = 4_096
"""A longer body is not looked at before a read has proven its key. The admission of a shorter one is proof enough: to plan
the worst body of this length takes about as long as that read (0.5 ms), and what grows with a body stays this small.
"""


@dataclass(frozen=True, slots=True)
class Call:
    """A request as it arrived. ``patience_s`` is how long the caller's own machinery lets it run; ``key`` is whose it is,
    where that has been proven; ``may_call`` is asked before each call to a provider.
    """

    request_id: str
    authorization: str | Proven | None
    body: str | bytes | None
    patience_s: float
    batch_id: str | None = None
    preference: Preference | None = None
    key: ApiKey | None = None
    may_call: Callable[[], bool] = lambda: True


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
        return self.route.prompt.estimate(self.model.tokenizer) + limit * self.choices

    def estimated_usage(self, stop: Stop, counter: tokens.CompletionCounter) -> Usage:
        return Usage(
            prompt_tokens=self.route.prompt.estimate(stop.model.tokenizer),
            completion_tokens=counter.completion_tokens,
            reasoning_tokens=counter.reasoning_tokens,
            estimated=True,
        )


class Completions:
    """Answers chat completions.

    ``json_deadline_s`` and ``stream_deadline_s`` bound a request with all its attempts and waits. A stream's first token
    comes by the former too: API Gateway ends a connection on which it has seen nothing for five minutes.
    """

    def __init__(
        self,
        *,
        catalogs: CatalogSource,
        meters: Meters,
        upstream: Upstream,
        health: Health,
        ledger: Ledger,
        retry: RetryPolicy,
        json_deadline_s: float,
        stream_deadline_s: float,
        rng: random.Random | None = None,
    ) -> None:
        self._catalogs = catalogs
        self._meters = meters
        self._health = health
        self._ledger = ledger
        self._json_deadline_s = json_deadline_s
        self._stream_deadline_s = stream_deadline_s
        self._rng = rng or random.SystemRandom()
        self._attempts = Attempts(upstream, health, retry, self._rng)

    async def create(self, call: Call) -> Answer:
        """The answer to a chat completion request.

        Raises :class:`~naru.errors.NaruError`. A stream that fails after its first event tells the client in-band.
        """
        started_s = time.monotonic()
        routes = call.preference is not None and call.preference.is_routing
        key = call.key or await self.prove(call.authorization, body_chars=len(call.body or ""), always=routes)
        if routes and key is not None and not key.may_route:
            raise PermissionDeniedError(
                "This key may not choose how a request is routed. Leave the header x-naru-strategy or x-naru-deployment "
                "out, or ask the operator for a key made with --may-route.",
            )
        try:
            plan = await self._plan(call)
        except InvalidRequestError as error:
            await self.refuse(error, call.authorization, key)
        admission = await self._admit(call, plan)
        first = plan.route.current()
        request = plan.request
        account = Account(
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
        )
        allowed_s, patience_s = self._json_deadline_s, call.patience_s
        if request.stream:
            allowed_s, patience_s = self._stream_deadline_s, patience_s - LAST_WORDS_S
        job = Job(
            plan.route,
            account,
            deadline_s=started_s + min(allowed_s, patience_s),
            begin_by_s=started_s + self._json_deadline_s,
            interactive=call.batch_id is None,
            may_call=call.may_call,
        )
        try:
            return await (self._stream(plan, job) if request.stream else self._answer(plan, job))
        except BaseException as error:
            # Whatever it is: failed, refused, cancelled, or a defect of ours. A lease that is left is charged in full.
            if not account.is_closed:
                await account.close_failed(account.at or first, error)
            if isinstance(error, NaruError):
                error.headers = {**admission.headers, **error.headers}
            raise

    async def prove(
        self, authorization: str | Proven | None, *, body_chars: int, always: bool = False
    ) -> ApiKey | None:
        """The key, proven by one read before anything is done that grows with the body: a stranger must not make us parse
        megabytes. None where the body is short (:data:`PROOF_CHARS`) or the key was proven before, unless ``always``.

        Raises :class:`~naru.errors.AuthenticationError`, :class:`~naru.errors.PermissionDeniedError` and
        :class:`~naru.errors.StoreUnavailableError`.
        """
        read_authorization(authorization)
        if not always and (body_chars <= PROOF_CHARS or isinstance(authorization, Proven)):
            return None
        return await self._meters.authenticate(authorization, now_ms=_now_ms())

    async def refuse(
        self, error: InvalidRequestError, authorization: str | Proven | None, key: ApiKey | None = None
    ) -> NoReturn:
        """Raises the error: strangers learn that they are strangers, the rest what was wrong and where their limits stand."""
        key = key or await self._meters.authenticate(authorization, now_ms=_now_ms())
        error.headers = {**key.headers, **error.headers}
        raise error

    async def _plan(self, call: Call) -> _Plan:
        body, request = wire.parse_chat_request(call.body)
        catalog = await self._catalogs.current()
        model = catalog.model(request.model)
        route = Route(
            catalog,
            request.model,
            body,
            output_limit=request.output_limit,
            latency_s=self._health.latency_s,
            rng=self._rng,
            preference=call.preference,
        )
        return _Plan(body, request, catalog, model, route)

    async def _admit(self, call: Call, plan: _Plan) -> Admission:
        # What is known about the providers is looked up while the meters decide.
        looking = asyncio.create_task(self._health.refresh(plan.route.health_items))
        admission = await self._meters.admit(
            call.authorization,
            request_id=call.request_id,
            now_ms=_now_ms(),
            model=plan.request.model,
            worst_pico_usd=plan.route.worst_case_pico_usd,
            tokens=plan.estimated_tokens(),
            end_user=plan.request.end_user,
            batch_id=call.batch_id,
        )
        try:
            await looking
            _keep_allowed(plan, admission)
        except BaseException:
            await self._meters.release(admission)
            raise
        return admission

    async def _answer(self, plan: _Plan, job: Job) -> Answer:
        answered = await self._attempts.answer(job)
        stop, reading, answer = answered.stop, read_usage(answered.result), without_reports(answered.result)

        def count() -> Usage:
            counter = tokens.CompletionCounter(stop.model.tokenizer)
            counter.feed(answer)
            return plan.estimated_usage(stop, counter)

        usage = job.account.charged(stop, reading, count)
        await job.account.close(stop, outcome="completed", usage=usage)
        answer["usage"] = usage_object(usage)
        return Answer(body=wire.compact_json(answer), headers=_headers(job, stop))

    async def _stream(self, plan: _Plan, job: Job) -> Answer:
        opened = await self._attempts.stream(job)
        stream = ClientStream(
            self._attempts,
            job,
            opened,
            choices=plan.choices,
            show_usage=plan.request.wants_usage_chunk,
            estimate=plan.estimated_usage,
        )
        return Answer(body=stream.events(), headers=_headers(job, opened.stop))


def _keep_allowed(plan: _Plan, admission: Admission) -> None:
    """A fallback, too, must be a model that the key may use."""
    if admission.models is None or plan.route.keep(admission.models):
        return
    error = PermissionDeniedError(
        "The deployment that was asked for serves a model that this API key may not use.",
        param="x-naru-deployment",
        code="model_not_allowed",
    )
    error.headers = dict(admission.headers)
    raise error


def _headers(job: Job, stop: Stop) -> dict[str, str]:
    return {
        **job.account.admission.headers,
        "x-naru-model": stop.model_name,
        "x-naru-deployment": stop.deployment.name,
        "x-naru-attempts": str(len(job.account.attempts)),
    }


def _now_ms() -> int:
    return time.time_ns() // 10**6
