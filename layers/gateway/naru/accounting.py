"""The end of every request that was let in: one row in the ledger, then the meters.

The order matters. A row without settled meters is settled by the sweeper with the row's cost; meters settled without
a row would lose the cost for good. So where the row cannot be put, the leases stay, and the sweeper charges them.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace

from naru import ledger as ledger_rows
from naru.errors import NaruError, ProviderRejectedError, StoreUnavailableError
from naru.ledger import Attempt, Ledger, Outcome, Row, UsageSource
from naru.meter import Admission, Meters
from naru.pricing import Usage
from naru.routing import Stop

logger = logging.getLogger(__name__)

_NOTHING = Usage(prompt_tokens=0, completion_tokens=0)


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
    maybe_billed_pico_usd: int = 0
    first_token_s: float | None = None

    def answered(self, stop: Stop, *, since_s: float) -> None:
        """An attempt was answered, or its stream began."""
        self.attempts.append(Attempt(stop.deployment.name, "ok", ms_since(since_s)))

    def failed(self, stop: Stop, result: str, *, since_s: float, maybe_billed: bool) -> None:
        """An attempt brought nothing, and may be charged for all the same."""
        self.attempts.append(Attempt(stop.deployment.name, result, ms_since(since_s), maybe_billed=maybe_billed))
        if maybe_billed:
            self.maybe_billed_pico_usd += stop.worst_case_pico_usd

    def cut(self) -> None:
        """The stream of the last attempt broke off."""
        self.attempts[-1] = replace(self.attempts[-1], result="cut", duration_ms=ms_since(self.started_s))

    def token_came(self) -> None:
        """Remembers when the first one did."""
        if self.first_token_s is None:
            self.first_token_s = time.monotonic() - self.started_s

    async def close_failed(self, stop: Stop, error: BaseException) -> None:
        """Ends a request that got no answer."""
        outcome: Outcome = "rejected" if isinstance(error, ProviderRejectedError) else "failed"
        code = error.code if isinstance(error, NaruError) else "internal_error"
        await self.close(stop, outcome=outcome, usage=None, error_code=code)

    async def close(self, stop: Stop, *, outcome: Outcome, usage: Usage | None, error_code: str | None = None) -> None:
        """Puts the row and settles the meters. Never raises for the store's sake: the answer is there and paid for."""
        row = self._row(stop, outcome, usage, error_code)
        facts = ledger_rows.facts(row)
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
            tokens = None if usage is None else usage.total_tokens
            await self.meters.settle(self.admission, cost_pico_usd=row.cost_pico_usd, tokens=tokens)
        except StoreUnavailableError as error:
            logger.warning("meters not settled", extra={"request_id": row.request_id, **error.log})

    def _row(self, stop: Stop, outcome: Outcome, usage: Usage | None, error_code: str | None) -> Row:
        source: UsageSource = "none" if usage is None else "estimated" if usage.estimated else "reported"
        return Row(
            request_id=self.subject.request_id,
            key_id=self.admission.key_id,
            end_user=self.subject.end_user,
            batch_id=self.subject.batch_id,
            stream=self.subject.stream,
            model_asked=self.subject.model,
            model_served=stop.model_name,
            deployment=stop.deployment.name,
            outcome=outcome,
            error_code=error_code,
            usage=usage or _NOTHING,
            usage_source=source,
            catalog_version=self.subject.catalog_version,
            rates=stop.deployment.rates,
            cost_pico_usd=stop.deployment.rates.cost_pico_usd(usage or _NOTHING),
            maybe_billed_pico_usd=self.maybe_billed_pico_usd,
            attempts=tuple(self.attempts),
            first_token_ms=None if self.first_token_s is None else round(self.first_token_s * 1000),
            latency_ms=ms_since(self.started_s),
        )


def ms_since(started_s: float) -> int:
    """Milliseconds since a monotonic time."""
    return round((time.monotonic() - started_s) * 1000)
