"""Tallies as JSON: the same words for the same figures in reports, in the usage API and on the dashboard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from naru.amounts import to_usd
from naru.ledger import Row
from naru.percentiles import Durations
from naru.pricing import PICO_PER_USD
from naru.tally import Call, Sums, Tally

PERCENTS = (50.0, 95.0, 99.0)


def sums_object(sums: Sums) -> dict[str, Any]:
    """Requests, tokens and cost of a group."""
    return {
        "requests": sums.requests,
        "prompt_tokens": sums.prompt_tokens,
        "cached_tokens": sums.cached_tokens,
        "cache_write_tokens": sums.cache_write_tokens,
        "completion_tokens": sums.completion_tokens,
        "reasoning_tokens": sums.reasoning_tokens,
        "estimated": sums.estimated,
        "cost_usd": to_usd(sums.cost_pico_usd),
        "maybe_billed_usd": to_usd(sums.maybe_billed_pico_usd),
    }


def percentiles_object(durations: Durations) -> dict[str, int] | None:
    """``{"p50", "p95", "p99"}`` in milliseconds; None where nothing was measured."""
    found = durations.percentiles(PERCENTS)
    return {f"p{percent:.0f}": found[percent] for percent in PERCENTS} if found else None


def latencies(tally: Tally) -> dict[str, Any]:
    """Of the whole tally."""
    return {
        "first_token_ms": percentiles_object(tally.durations(tally.first_token)),
        "latency_ms": percentiles_object(tally.durations(tally.latency)),
    }


def errors_list(tally: Tally, *, rejected: bool = False) -> list[dict[str, Any]]:
    """Why requests got no whole answer, the most frequent first; those the provider refused only if asked for."""
    counts: dict[tuple[str, str], int] = {}
    for failure, count in tally.failures.items():
        if rejected or failure.outcome != "rejected":
            counts[failure.code, failure.outcome] = counts.get((failure.code, failure.outcome), 0) + count
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [{"code": code, "outcome": outcome, "count": count} for (code, outcome), count in ranked]


_BY_WHY = {
    "again": "retries",
    "failover": "failovers",
    "fallback": "fallbacks",
    "continue": "continuations",
    "restart": "continuations",
    "probe": "probes",
}


def calls_object(calls: Mapping[Call, int], *, deployment: str | None = None) -> dict[str, int]:
    """Calls upstream: how many, how many failed, and why those beyond the first were made."""
    counts = dict.fromkeys(("calls", "failed_calls", *dict.fromkeys(_BY_WHY.values())), 0)
    for call, count in calls.items():
        if deployment is not None and call.deployment != deployment:
            continue
        counts["calls"] += count
        counts["failed_calls"] += count if call.result != "ok" else 0
        if call.why in _BY_WHY:
            counts[_BY_WHY[call.why]] += count
    return counts


def request_object(row: Row, *, key_name: str) -> dict[str, Any]:
    """A row: one request."""
    usage = row.usage
    return {
        "object": "usage.request",
        "request_id": row.request_id,
        "at": row.arrived_at_ms // 1000,
        "at_ms": row.arrived_at_ms,
        "key_id": row.key_id,
        "key_name": key_name,
        "end_user": row.end_user,
        "batch_id": row.batch_id,
        "model_asked": row.model_asked,
        "model_served": row.model_served,
        "deployment": row.deployment,
        "stream": row.stream,
        "outcome": row.outcome,
        "error_code": row.error_code,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "completion_tokens": usage.completion_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "usage_source": row.usage_source,
        "cost_usd": to_usd(row.cost_pico_usd),
        "maybe_billed_usd": to_usd(row.maybe_billed_pico_usd),
        "first_token_ms": row.first_token_ms,
        "latency_ms": row.latency_ms,
        "attempts": [
            {
                "deployment": attempt.deployment,
                "result": attempt.result,
                "why": attempt.why,
                "duration_ms": attempt.duration_ms,
                "waited_ms": attempt.waited_ms,
                "maybe_billed": attempt.maybe_billed,
            }
            for attempt in row.attempts
        ],
    }


def to_krw(pico_usd: int, krw_per_usd: int) -> int:
    """An amount in won, rounded to the nearest: to be looked at, not to be added."""
    return (pico_usd * krw_per_usd + PICO_PER_USD // 2) // PICO_PER_USD
