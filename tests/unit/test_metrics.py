"""What a request adds to CloudWatch's metrics."""

from __future__ import annotations

import json
from typing import Any

import pytest

from naru import metrics
from naru.errors import UpstreamUnavailableError
from naru.health import HealthPolicy
from tests.one_gateway import OMNI, Gateway


def written(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The metric lines in the log so far."""
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    return [line for line in lines if "_aws" in line]


def by(lines: list[dict[str, Any]], dimension: str, name: str) -> list[dict[str, Any]]:
    return [line for line in lines if line.get(dimension) == name]


def test_a_request_counts_for_the_service_its_model_and_each_deployment_called(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.ask("안녕 [[sim tokens=5 id=x fault=status:503,times=1]]", stream=True)
    lines = written(capsys)
    assert {line["_aws"]["CloudWatchMetrics"][0]["Namespace"] for line in lines} == {"Naru"}
    (service,) = [line for line in lines if "Retries" in line]
    row = gateway.row
    assert (service["Requests"], service["Retries"], service["Errors"]) == ([1.0], [1.0], [0.0])
    assert (service["CompletionTokens"], service["Latency"]) == ([5.0], [float(row.latency_ms)])
    assert service["FirstTokenLatency"] == [float(row.first_token_ms or 0)]
    assert service["CostUsd"] == [row.cost_pico_usd / 10**12]
    (model,) = by(lines, "Model", OMNI)
    assert model["CostUsd"] == service["CostUsd"]
    failed, answered = by(lines, "Deployment", f"holysheep/{OMNI}")
    assert (failed["FailedAttempts"], "UpstreamLatency" in failed) == ([1.0], False)
    assert (answered["FailedAttempts"], "UpstreamLatency" in answered) == ([0.0], True)


def test_an_error_counts_by_its_code(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UpstreamUnavailableError):
        gateway.ask("안녕 [[sim fault=status:503]]")
    (error,) = by(written(capsys), "ErrorCode", "upstream_unavailable")
    assert error["Errors"] == [1.0]


def test_a_breaker_that_opens_is_counted(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(HealthPolicy().min_failures):
        with pytest.raises(UpstreamUnavailableError):
            gateway.ask("안녕 [[sim fault=status:503]]")
    opened = [line for line in written(capsys) if "BreakerOpen" in line]
    assert [line.get("Deployment") for line in opened] == [None, f"holysheep/{OMNI}"]


def test_no_metric_line_holds_words_of_a_user(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.ask("아무도 모르는 비밀", user="phone-1")
    assert all("비밀" not in str(line) and "phone-1" not in str(line) for line in written(capsys))
    assert metrics.NAMESPACE == "Naru"
