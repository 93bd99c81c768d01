"""The end of every request that was let in: one row in the ledger, then the meters.

The order matters. A row without settled meters is settled by the sweeper with the row's cost; meters settled without
a row would lose the cost for good. So where the row cannot be put, the leases stay, and the sweeper charges them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from naru import ledger as ledger_rows
from naru import metrics
from naru.errors import NaruError, ProviderRejectedError, StoreUnavailableError
from naru.ledger import Attempt, Ledger, Outcome, Part, Row, UsageSource
from naru.meter import Admission, Meters
from naru.pricing import Usage
from naru.provider_usage import Reading
from naru.routing import Stop

logger = logging.getLogger(__name__)

_NOTHING = Usage(prompt_tokens=0, completion_tokens=0)
_CLOSING: set[asyncio.Task[None]] = set()
"""A task that nobody refers to may be collected before it is done."""
_UNSURE_OF_WORDS = frozenset({"choices", "completion", "shrunk"})


@dataclass(frozen=True, slots=True)
class Subject:
    """Who asked for what: the part of a row that is known from the start."""

    request_id: str
    end_user: str | None
    batch_id: str | None
    stream: bool
    model: str
    catalog_version: str


@dataclass(slots=True)
class Account:
    """What one request has used so far. ``started_s`` is the monotonic time of its arrival."""

    subject: Subject
    admission: Admission
    ledger: Ledger
    meters: Meters
    started_s: float
    attempts: list[Attempt] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    """Deployments that were not called, and why: for the log."""
    maybe_billed_pico_usd: int = 0
    first_token_s: float | None = None
    waited_s: float = 0.0
    """Since the last attempt."""
    why: str = ""
    """Of the next attempt; see :class:`~naru.ledger.Attempt`."""
    at: Stop | None = None
    """Where the request is, or was last."""
    is_closed: bool = False
    """Whether its end has been recorded, or is being."""

    def skip(self, stop: Stop, reason: str, retry_after_s: float) -> None:
        """A deployment is passed by, at no cost."""
        last = self.skipped[-1] if self.skipped else {}
        if (last.get("deployment"), last.get("reason")) == (stop.deployment.name, reason):
            last["times"] += 1
            return
        retry_s = round(retry_after_s, 3)
        self.skipped.append(
            {"deployment": stop.deployment.name, "reason": reason, "retry_after_s": retry_s, "times": 1}
        )

    def answered(self, stop: Stop, *, since_s: float) -> None:
        """An attempt was answered, or its stream began."""
        self._attempt(stop, "ok", since_s, maybe_billed=False)

    def failed(self, stop: Stop, result: str, *, since_s: float, maybe_billed: bool) -> None:
        """An attempt brought nothing, and may be charged for all the same."""
        self._attempt(stop, result, since_s, maybe_billed=maybe_billed)
        if maybe_billed:
            self.maybe_billed_pico_usd += stop.worst_case_pico_usd

    def cut(self, result: str, *, since_s: float) -> None:
        """The stream of the last attempt broke off."""
        self.attempts[-1] = replace(self.attempts[-1], result=result, duration_ms=ms_since(since_s))

    def token_came(self) -> None:
        """Remembers when the first one did."""
        if self.first_token_s is None:
            self.first_token_s = time.monotonic() - self.started_s

    async def close_failed(self, stop: Stop, error: BaseException) -> None:
        """Ends a request that got no answer, or whose answer was lost on the way to the client."""
        if self.attempts and self.attempts[-1].result == "ok":
            last = self.attempts.pop()
            self.attempts.append(replace(last, result="interrupted", maybe_billed=True))
            self.maybe_billed_pico_usd += stop.worst_case_pico_usd
        outcome: Outcome = "rejected" if isinstance(error, ProviderRejectedError) else "failed"
        code = error.recorded_code if isinstance(error, NaruError) else "internal_error"
        await self.close(stop, outcome=outcome, usage=None, error_code=code)

    async def close(self, stop: Stop, *, outcome: Outcome, usage: Usage | None, error_code: str | None = None) -> None:
        """Ends a request that one deployment answered, or none. Raises nothing, as :meth:`close_parts`."""
        source: UsageSource = "none" if usage is None else "estimated" if usage.estimated else "reported"
        await self.close_parts(
            [part_of(stop, usage or _NOTHING)], outcome=outcome, source=source, error_code=error_code
        )

    async def close_parts(
        self, parts: Sequence[Part], *, outcome: Outcome, source: UsageSource, error_code: str | None = None
    ) -> None:
        """Puts the row and settles the meters. Never raises for the store's sake: the answer is there and paid for.

        Whoever is cancelled while waiting for this does not keep it from being done.
        """
        self.is_closed = True
        row = self._row(parts, outcome, source, error_code)
        metrics.count(row)
        closing = asyncio.create_task(self._record(row, source))
        _CLOSING.add(closing)
        closing.add_done_callback(_CLOSING.discard)
        await asyncio.shield(closing)

    async def _record(self, row: Row, source: UsageSource) -> None:
        facts = ledger_rows.facts(row) | ({"skipped": self.skipped} if self.skipped else {})
        try:
            if not await self.ledger.put(row):
                logger.error("request has a row already", extra=facts)
                return
        except StoreUnavailableError as error:
            # The leases stay, and the sweeper charges the worst case. The true row can be rebuilt from this line.
            logger.exception("ledger row not written", extra={**facts, **error.log})
            return
        logger.info("completion", extra=facts)
        if row.cost_pico_usd > (worst := max(lease.worst_pico_usd for _, lease in self.admission.leases)):
            logger.error("worst case exceeded", extra={"request_id": row.request_id, "worst_pico_usd": worst})
        try:
            tokens = None if source == "none" else row.usage.total_tokens
            await self.meters.settle(self.admission, cost_pico_usd=row.cost_pico_usd, tokens=tokens)
        except StoreUnavailableError as error:
            logger.warning("meters not settled", extra={"request_id": row.request_id, **error.log})

    def charged(
        self, stop: Stop, reading: Reading | None, count: Callable[[], Usage], *, behind: bool = False
    ) -> Usage:
        """What an answer is charged for: what its provider reported, or where that is missing or can be read in several
        ways, an estimate. An estimate is never more than the request was admitted with.

        ``count`` gives what the gateway counts itself; ``behind`` says that the report came before the answer's end.
        """
        if reading is not None and _is_beyond_reason(stop, reading.usage):
            reading = replace(reading, usage=replace(reading.usage, estimated=True), doubt="size")
        usage = count() if reading is None else self._reported(stop, reading, count, behind=behind)
        if not usage.estimated:
            return usage
        return usage.within(
            prompt_tokens=stop.most_prompt_tokens,
            completion_tokens=stop.most_completion_tokens,
            rest_is_prompt=reading is not None and reading.doubt == "total",
        )

    def _reported(self, stop: Stop, reading: Reading, count: Callable[[], Usage], *, behind: bool) -> Usage:
        usage = reading.usage
        if reading.doubt is not None:
            logger.warning(
                "usage is ambiguous",
                extra={
                    "request_id": self.subject.request_id,
                    "deployment": stop.deployment.name,
                    "doubt": reading.doubt,
                    "figures": dict(reading.figures),
                },
            )
        if stop.hour_writes != "none" and (unsplit := reading.unsplit_write_tokens):
            # Written for five minutes or for an hour: the request says which, or may have meant either.
            usage = replace(
                usage,
                cache_write_1h_tokens=usage.cache_write_1h_tokens + unsplit,
                estimated=usage.estimated or stop.hour_writes == "some",
            )
        if not usage.prompt_tokens:
            usage = replace(usage, prompt_tokens=count().prompt_tokens)
        if behind or reading.doubt in _UNSURE_OF_WORDS:
            return usage.at_least(count())
        if not usage.completion_tokens and (counted := count()).completion_tokens:
            return usage.at_least(counted)
        return usage

    def _attempt(self, stop: Stop, result: str, since_s: float, *, maybe_billed: bool) -> None:
        name, waited_ms = stop.deployment.name, round(self.waited_s * 1000)
        self.attempts.append(Attempt(name, result, ms_since(since_s), maybe_billed, self.why, waited_ms))
        self.waited_s = 0.0

    def _row(self, parts: Sequence[Part], outcome: Outcome, source: UsageSource, error_code: str | None) -> Row:
        first = parts[0]
        return Row(
            request_id=self.subject.request_id,
            key_id=self.admission.key_id,
            end_user=self.subject.end_user,
            batch_id=self.subject.batch_id,
            stream=self.subject.stream,
            model_asked=self.subject.model,
            model_served=first.model,
            deployment=first.deployment,
            outcome=outcome,
            error_code=error_code,
            usage=total(parts),
            usage_source=source,
            catalog_version=self.subject.catalog_version,
            rates=first.rates,
            cost_pico_usd=sum(part.cost_pico_usd for part in parts),
            maybe_billed_pico_usd=self.maybe_billed_pico_usd,
            attempts=tuple(self.attempts),
            first_token_ms=None if self.first_token_s is None else round(self.first_token_s * 1000),
            latency_ms=ms_since(self.started_s),
            parts=tuple(parts) if len(parts) > 1 else (),
        )


def _is_beyond_reason(stop: Stop, usage: Usage) -> bool:
    """Whether no request to the deployment can have used so much: a figure went wrong, and it must not empty a budget."""
    context_tokens = stop.deployment.context_tokens
    choices = max(1, -(-stop.most_completion_tokens // stop.output_limit))
    return usage.prompt_tokens > context_tokens or usage.completion_tokens > max(
        stop.most_completion_tokens, choices * context_tokens
    )


def part_of(stop: Stop, usage: Usage) -> Part:
    """What a deployment is to be paid."""
    rates = stop.deployment.rates
    return Part(stop.model_name, stop.deployment.name, usage, rates, rates.cost_pico_usd(usage))


def total(parts: Sequence[Part]) -> Usage:
    """The tokens of an answer, whoever gave them."""
    usage = parts[0].usage
    for part in parts[1:]:
        usage += part.usage
    return usage


def ms_since(started_s: float) -> int:
    """Milliseconds since a monotonic time."""
    return round((time.monotonic() - started_s) * 1000)
