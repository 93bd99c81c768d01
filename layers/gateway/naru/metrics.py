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

import json
import time
from collections import Counter
from typing import TYPE_CHECKING

from naru.pricing import PICO_PER_USD

if TYPE_CHECKING:
    from naru.ledger import Attempt, Row

NAMESPACE = "Naru"

_BY_WHY = {
    "again": "Retries",
    "failover": "Failovers",
    "fallback": "Fallbacks",
    "continue": "Continuations",
    "restart": "Continuations",
}


_OF_THE_SERVICE: list[list[str]] = [["service"]]
_BY_MODEL = [["service"], ["service", "Model"]]
_BY_ERROR = [["service", "ErrorCode"]]
_BY_DEPLOYMENT = [["service", "Deployment"]]


def count(row: Row) -> None:
    """Writes what one request adds: a line, one more for each further deployment that was called, and one if it failed."""
    line = _Line()
    line.add(_BY_MODEL, "Requests", 1)
    line.add(_BY_MODEL, "PromptTokens", row.usage.prompt_tokens)
    line.add(_BY_MODEL, "CompletionTokens", row.usage.completion_tokens)
    # Good to look at and to alarm on; what is owed is in the ledger, in integers.
    line.add(_BY_MODEL, "CostUsd", row.cost_pico_usd / PICO_PER_USD, unit="None")
    line.names["Model"] = row.model_served
    failed = row.outcome != "completed"
    line.add(_OF_THE_SERVICE, "Errors", int(failed and row.outcome != "rejected"))
    if row.outcome == "truncated":
        line.add(_OF_THE_SERVICE, "Truncated", 1)
    for name, times in Counter(_BY_WHY[attempt.why] for attempt in row.attempts if attempt.why in _BY_WHY).items():
        line.add(_OF_THE_SERVICE, name, times)
    line.add(_OF_THE_SERVICE, "Latency", row.latency_ms, unit="Milliseconds")
    if row.first_token_ms is not None:
        line.add(_OF_THE_SERVICE, "FirstTokenLatency", row.first_token_ms, unit="Milliseconds")
    for deployment in dict.fromkeys(attempt.deployment for attempt in row.attempts):
        for attempt in row.attempts:
            if attempt.deployment == deployment:
                _attempt(line, attempt)
        line.names["Deployment"] = deployment
        line.write()
        line = _Line()
    line.write()
    if failed:
        error = _Line({"ErrorCode": row.error_code or row.outcome})
        error.add(_BY_ERROR, "Errors", 1)
        error.write()


def breaker_opened(deployment: str) -> None:
    """Writes that a deployment is not to be called for a while."""
    line = _Line({"Deployment": deployment})
    line.add([*_OF_THE_SERVICE, *_BY_DEPLOYMENT], "BreakerOpen", 1)
    line.write()


def _attempt(line: _Line, attempt: Attempt) -> None:
    answered = attempt.result == "ok"
    line.add(_BY_DEPLOYMENT, "Attempts", 1)
    line.add(_BY_DEPLOYMENT, "FailedAttempts", int(not answered))
    if answered:
        line.add(_BY_DEPLOYMENT, "UpstreamLatency", attempt.duration_ms, unit="Milliseconds")


class _Line:
    """A line in embedded metric format: metrics by several dimensions, where each dimension has one value.

    Powertools writes one such line for each set of dimensions, which takes ten times as long and three times the space.
    """

    def __init__(self, names: dict[str, str] | None = None) -> None:
        self.names = names or {}
        self._values: dict[str, list[float]] = {}
        self._directives: dict[str, tuple[list[list[str]], dict[str, str]]] = {}

    def add(self, dimensions: list[list[str]], name: str, value: float, *, unit: str = "Count") -> None:
        """One more value of a metric."""
        self._values.setdefault(name, []).append(float(value))
        self._directives.setdefault(str(dimensions), (dimensions, {}))[1][name] = unit

    def write(self) -> None:
        """To the log, if there is anything to say."""
        if not self._values:
            return
        directives = [
            {
                "Namespace": NAMESPACE,
                "Dimensions": dimensions,
                "Metrics": [{"Name": name, "Unit": unit} for name, unit in units.items()],
            }
            for dimensions, units in self._directives.values()
        ]
        about = {"Timestamp": time.time_ns() // 10**6, "CloudWatchMetrics": directives}
        print(json.dumps({"_aws": about, "service": "naru", **self.names, **self._values}, separators=(",", ":")))  # noqa: T201
