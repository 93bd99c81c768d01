"""CloudWatch metrics, as lines of the log (embedded metric format): no call, no wait, nothing to pay while idle.

Namespace ``Naru``. Each metric exists once for the service, which is what alarms and dashboards need. Those by which a
model or a deployment is judged exist for each of them too: with three models at three deployments about thirty
metrics, each of which costs 0.30 USD a month once it is used.

=====================================================  ==================  ==========================================
metric                                                 also by             what it counts
=====================================================  ==================  ==========================================
Requests, PromptTokens, CompletionTokens, CostUsd      Model (served)      requests that reached their end
Errors, Truncated                                      ErrorCode           those without a whole answer, by code
Retries, Failovers, Fallbacks, Continuations           -                   attempts by why they were made
Attempts, FailedAttempts, UpstreamLatency              Deployment          calls upstream; of those answered, ms
Latency, FirstTokenLatency                             -                   of the client's request, in ms
BreakerOpen                                            Deployment          a breaker that opened
=====================================================  ==================  ==========================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from naru.pricing import PICO_PER_USD

if TYPE_CHECKING:
    from naru.ledger import Row

NAMESPACE = "Naru"

_BY_WHY = {
    "again": "Retries",
    "failover": "Failovers",
    "fallback": "Fallbacks",
    "continue": "Continuations",
    "restart": "Continuations",
}


def count(row: Row) -> None:
    """Writes what one request adds."""
    whys = Counter(_BY_WHY[attempt.why] for attempt in row.attempts if attempt.why in _BY_WHY)
    failed = row.outcome != "completed"
    _write(
        {
            "Requests": 1,
            "Errors": int(failed and row.outcome != "rejected"),
            "Truncated": int(row.outcome == "truncated"),
            **{name: whys[name] for name in ("Retries", "Failovers", "Fallbacks", "Continuations")},
        }
        | _tokens(row),
        milliseconds={
            "Latency": row.latency_ms,
            **({"FirstTokenLatency": row.first_token_ms} if row.first_token_ms is not None else {}),
        },
    )
    _write({"Requests": 1} | _tokens(row), dimension=("Model", row.model_served))
    if failed:
        _write({"Errors": 1}, dimension=("ErrorCode", row.error_code or row.outcome))
    for attempt in row.attempts:
        answered = attempt.result == "ok"
        _write(
            {"Attempts": 1, "FailedAttempts": int(not answered)},
            milliseconds={"UpstreamLatency": attempt.duration_ms} if answered else {},
            dimension=("Deployment", attempt.deployment),
        )


def breaker_opened(deployment: str) -> None:
    """Writes that a deployment is not to be called for a while."""
    _write({"BreakerOpen": 1})
    _write({"BreakerOpen": 1}, dimension=("Deployment", deployment))


def _tokens(row: Row) -> dict[str, float]:
    return {
        "PromptTokens": row.usage.prompt_tokens,
        "CompletionTokens": row.usage.completion_tokens,
        # Good to look at and to alarm on; what is owed is in the ledger, in integers.
        "CostUsd": row.cost_pico_usd / PICO_PER_USD,
    }


def _write(
    counts: Mapping[str, float],
    *,
    milliseconds: Mapping[str, float] | None = None,
    dimension: tuple[str, str] | None = None,
) -> None:
    from aws_lambda_powertools.metrics import EphemeralMetrics

    blob = EphemeralMetrics(namespace=NAMESPACE, service="naru")
    if dimension is not None:
        blob.add_dimension(*dimension)
    for name, value in counts.items():
        blob.add_metric(name=name, unit="None" if name == "CostUsd" else "Count", value=value)
    for name, value in (milliseconds or {}).items():
        blob.add_metric(name=name, unit="Milliseconds", value=value)
    blob.flush_metrics()
