"""What a request adds to CloudWatch's metrics."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from naru import metrics
from naru.errors import UpstreamUnavailableError
from naru.health import HealthPolicy
from tests.one_gateway import OMNI, Gateway, another_deployment


def written(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The metric lines in the log so far."""
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    found = [line for line in lines if "_aws" in line]
    for line in found:
        assert_embedded_metrics(line)
    return found


def assert_embedded_metrics(line: dict[str, Any]) -> None:
    """What CloudWatch asks of a line, which it otherwise leaves out without a word."""
    about = line["_aws"]
    assert about.keys() == {"Timestamp", "CloudWatchMetrics"}
    assert abs(about["Timestamp"] - time.time() * 1000) < 60_000
    named = set()
    for directive in about["CloudWatchMetrics"]:
        assert directive.keys() == {"Namespace", "Dimensions", "Metrics"}
        assert directive["Namespace"] == "Naru"
        for dimensions in directive["Dimensions"]:
            assert 1 <= len(dimensions) <= 30
            assert all(isinstance(line[name], str) and 1 <= len(line[name]) <= 1024 for name in dimensions)
        for metric in directive["Metrics"]:
            values = line[metric["Name"]]
            assert 1 <= len(values) <= 100
            assert all(isinstance(value, float) for value in values)
            assert metric["Unit"] in {"Count", "Milliseconds", "None"}
            named.add(metric["Name"])
    assert named == {name for name, value in line.items() if isinstance(value, list)}
    assert sum(len(directive["Metrics"]) for directive in about["CloudWatchMetrics"]) <= 100


def by(lines: list[dict[str, Any]], dimension: str, name: str) -> list[dict[str, Any]]:
    return [line for line in lines if line.get(dimension) == name]


def test_a_request_counts_for_the_service_its_model_and_each_deployment_called(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.ask("안녕 [[sim tokens=5 id=x fault=status:503,times=1]]", stream=True)
    lines = written(capsys)
    (service,) = lines
    row = gateway.row
    assert (service["Requests"], service["Retries"], service["Errors"]) == ([1.0], [1.0], [0.0])
    assert (service["CompletionTokens"], service["Latency"]) == ([5.0], [float(row.latency_ms)])
    assert service["FirstTokenLatency"] == [float(row.first_token_ms or 0)]
    assert service["CostUsd"] == [row.cost_pico_usd / 10**12]
    assert (service["Model"], service["Deployment"]) == (OMNI, f"holysheep/{OMNI}")
    assert (service["Attempts"], service["FailedAttempts"]) == ([1.0, 1.0], [1.0, 0.0])
    assert len(service["UpstreamLatency"]) == 1
    dimensions = {
        metric["Name"]: directive["Dimensions"]
        for directive in service["_aws"]["CloudWatchMetrics"]
        for metric in directive["Metrics"]
    }
    assert dimensions["CostUsd"] == [["service"], ["service", "Model"]]
    assert dimensions["Errors"] == [["service"]]
    assert dimensions["Attempts"] == [["service", "Deployment"]]


def test_each_deployment_that_was_called_has_a_line(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.use_catalog(another_deployment("elsewhere"))
    gateway.ask(f"안녕 [[sim tokens=5 fault=reset_before_headers,model={OMNI}]]")
    first, second = written(capsys)
    assert (first["Deployment"], first["FailedAttempts"]) == (f"holysheep/{OMNI}", [1.0])
    assert (second["Deployment"], second["FailedAttempts"]) == ("elsewhere", [0.0])
    assert ("Requests" in first, "Requests" in second) == (True, False)


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
    assert [line["Deployment"] for line in opened] == [f"holysheep/{OMNI}"]
    assert opened[0]["_aws"]["CloudWatchMetrics"][0]["Dimensions"] == [["service"], ["service", "Deployment"]]


def test_no_metric_line_holds_words_of_a_user(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.ask("아무도 모르는 비밀", user="phone-1")
    assert all("비밀" not in str(line) and "phone-1" not in str(line) for line in written(capsys))
    assert metrics.NAMESPACE == "Naru"
