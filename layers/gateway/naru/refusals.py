"""What a client is told when a meter refuses, and how its limits stand."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from naru.amounts import to_usd
from naru.business_time import next_month_starts
from naru.errors import NaruError, PermissionDeniedError, QuotaExceededError, RateLimitedError
from naru.keys import expired_key, unknown_key
from naru.meter_state import SLOT_MS, SLOTS_KEPT, UNLIMITED, Demand, Meter, Refusal
from naru.request_ids import arrived_at_ms


def headers_of(meter: Meter, now_ms: int) -> dict[str, str]:
    """OpenAI's rate limit headers for a key; a limit that there is not is not shown.

    ``reset`` is when nothing of the last minute counts any more.
    """
    if not meter.is_rate_limited:
        return {}
    minute = meter.minute(now_ms)
    whole_s = max(0.0, ((minute.slot + SLOTS_KEPT + 1) * SLOT_MS - now_ms) / 1000)
    headers = {}
    for name, limit, left in (
        ("requests", meter.item["rpm"], minute.requests_left),
        ("tokens", meter.item["tpm"], minute.tokens_left),
    ):
        if limit < UNLIMITED:
            headers[f"x-ratelimit-limit-{name}"] = str(limit * meter.shards)
            headers[f"x-ratelimit-remaining-{name}"] = str(max(0, left) * meter.shards)
            headers[f"x-ratelimit-reset-{name}"] = "0s" if left >= limit else f"{whole_s:.3f}s"
    return headers


def refused(meter: Meter, refusal: Refusal, demand: Demand, zone: ZoneInfo) -> NaruError:
    """The refusal as the error that the client gets."""
    error = _error(meter, refusal, demand, zone)
    if meter.id.startswith("key#") and refusal.reason not in {"unknown", "expired"}:
        error.headers = headers_of(meter, demand.now_ms)
    return error


def _error(meter: Meter, refusal: Refusal, demand: Demand, zone: ZoneInfo) -> NaruError:
    whose = {"key": "This API key", "user": "This end user"}.get(meter.id.partition("#")[0], "The organisation")
    match refusal.reason:
        case "unknown":
            return unknown_key()
        case "expired":
            return expired_key()
        case "disabled":
            return PermissionDeniedError(f"{whose} is switched off. Ask the operator.", code="api_key_disabled")
        case "model":
            return PermissionDeniedError(
                f"This API key may not use {demand.model!r}. It may use: {', '.join(sorted(meter.item['models']))}.",
                param="model",
                code="model_not_allowed",
            )
        case "budget":
            return _no_budget(whose, meter, refusal, demand, zone)
        case "parallel":
            limit, what = meter.item["max_parallel"], "requests at once"
        case "requests":
            limit, what = meter.item["rpm"], "requests per minute"
        case "tokens":
            limit, what = meter.item["tpm"], "tokens per minute"
    limited = f"{whose} is limited to {limit * meter.shards} {what}"
    if refusal.retry_after_s is None:
        return RateLimitedError(
            f"{limited}, and this request alone may need {demand.tokens}. Send a shorter prompt, or ask for fewer "
            "tokens with max_tokens.",
            hopeless=True,
        )
    return RateLimitedError(
        f"{limited}. Try again in {refusal.retry_after_s:.1f} s.", retry_after_s=refusal.retry_after_s
    )


def _no_budget(whose: str, meter: Meter, refusal: Refusal, demand: Demand, zone: ZoneInfo) -> QuotaExceededError:
    resets = next_month_starts(arrived_at_ms(demand.request_id), zone)
    budget_pico_usd = meter.item["budget_pico_usd"] * meter.shards
    message = (
        f"{whose} has used its monthly budget of {to_usd(budget_pico_usd):f} USD, or too little of it is left for what "
        f"this request can cost at most ({to_usd(demand.worst_pico_usd):f} USD). It begins anew on "
        f"{resets.isoformat(timespec='minutes')}. "
    )
    if refusal.retry_after_s is not None:
        error = QuotaExceededError(
            f"{message}Requests in flight hold a part of it and give back what they do not use: try again in "
            f"{refusal.retry_after_s:.0f} s, or ask for fewer tokens with max_tokens.",
            retry_after_s=refusal.retry_after_s,
        )
        error.should_retry = None
        return error
    until_s = max(0.0, (resets - datetime.fromtimestamp(demand.now_ms / 1000, UTC)).total_seconds())
    return QuotaExceededError(
        f"{message}Ask the operator for more, or for fewer tokens with max_tokens.",
        # A request that can cost more than a whole month's budget is not admitted next month either.
        retry_after_s=until_s if demand.worst_pico_usd <= budget_pico_usd else None,
    )
