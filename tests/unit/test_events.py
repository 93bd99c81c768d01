"""The sample events are what API Gateway sends: each handler takes its own, as ``sam local invoke`` would give it."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import pytest
from moto import mock_aws

from naru.attributes import to_item
from naru.business_time import business_day
from naru.delivery import NotDeliveredError, Topic
from naru.meter_state import Limits
from naru.periods import HOUR_MS
from tests.meters import NEVER_MS, USD, put_key
from tests.moto_tables import TEMPLATE, calls_reach_moto

ROOT = Path(__file__).parent.parent.parent


class Context:
    """As much of Lambda's context as the handlers read."""

    def get_remaining_time_in_millis(self) -> int:
        return 60_000


@pytest.fixture(scope="module")
def secrets() -> Iterator[dict[str, str]]:
    """An account with the stack's tables, an app's key and an admin's."""
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        for name, value in {
            "AWS_DEFAULT_REGION": "ap-northeast-2",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "NARU_LEDGER_TABLE": "LedgerTable",
            "NARU_METER_TABLE": "MeterTable",
            "NARU_IDEMPOTENCY_TABLE": "IdempotencyTable",
            "NARU_HEALTH_TABLE": "HealthTable",
            "NARU_ANSWERS_BUCKET": "answers",
            "NARU_PROVIDER_KEYS_SECRET": "keys",
            "NARU_BATCH_TABLE": "BatchTable",
            "NARU_FILES_BUCKET": "files",
            "NARU_BATCH_QUEUE_URL": "https://sqs.ap-northeast-2.amazonaws.com/123456789012/batches",
            "NARU_BATCH_TOPIC": "arn:aws:sns:ap-northeast-2:123456789012:batches",
            "NARU_REPORT_TABLE": "ReportTable",
            "NARU_REPORTS_BUCKET": "reports",
            "NARU_ALERTS_TOPIC": "arn:aws:sns:ap-northeast-2:123456789012:alerts",
        }.items():
            patch.setenv(name, value)
        calls_reach_moto(patch)
        dynamodb = boto3.client("dynamodb")
        for name in ("LedgerTable", "MeterTable", "IdempotencyTable", "HealthTable", "BatchTable", "ReportTable"):
            properties = TEMPLATE["Resources"][name]["Properties"]
            dynamodb.create_table(
                TableName=name, **{key: properties[key] for key in ("AttributeDefinitions", "KeySchema", "BillingMode")}
            )
        boto3.client("sqs").create_queue(QueueName="batches")
        boto3.client("sns").create_topic(Name="alerts")
        boto3.client("s3").create_bucket(
            Bucket="reports", CreateBucketConfiguration={"LocationConstraint": "ap-northeast-2"}
        )
        boto3.client("secretsmanager").create_secret(Name="keys", SecretString="{}")
        key_id, chat = put_key(dynamodb, limits=Limits(rpm=100), name="app", tags={}, created_at_ms=0, scope="chat")
        admin_id, admin = put_key(dynamodb)
        item = dynamodb.get_item(TableName="MeterTable", Key={"meter": {"S": f"key#{admin_id}"}})["Item"]
        dynamodb.put_item(
            TableName="MeterTable",
            Item={
                **to_item({"meter": f"admin#{admin_id}", "key_id": admin_id, "scope": "admin", "name": "admin"}),
                **to_item({"enabled": True, "expires_at_ms": NEVER_MS, "created_at_ms": 0}),
                "secrets": item["secrets"],
            },
        )
        yield {"chat": chat, "admin": admin, "key_id": key_id}


@pytest.fixture(scope="module")
def apps(secrets: dict[str, str]) -> Iterator[dict[str, ModuleType]]:
    """The handlers' modules, as Lambda imports them: from their files."""
    loaded = {}
    for name in ("chat", "admin", "dashboard", "batches", "batch_worker", "usage", "alerts", "daily_report"):
        spec = importlib.util.spec_from_file_location(f"{name}_app", ROOT / "functions" / name / "app.py")
        assert spec is not None
        assert spec.loader is not None
        loaded[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded[name])
    yield loaded
    loaded["chat"].loop.run(loaded["chat"].http.aclose())
    loaded["batch_worker"].loop.run(loaded["batch_worker"].http.aclose())
    for name in ("chat", "admin", "batches", "batch_worker", "usage"):
        loaded[name].loop.close()


CASES = [
    # There are no providers' keys here, which is the operator's to hear and not the client's fault.
    ("chat-completion", "chat", 502, "upstream_key_refused"),
    ("chat-completion-stream", "chat", 502, "upstream_key_refused"),
    ("chat-completion-bad-request", "chat", 400, "invalid_type"),
    ("list-models", "chat", 200, None),
    ("retrieve-model", "chat", 200, None),
    ("preflight", "chat", 204, None),
    ("health", "chat", 200, None),
    ("list-batches", "batches", 200, None),
    ("create-batch", "batches", 400, "invalid_input_file"),
    ("admin-create-key", "admin", 201, None),
    ("admin-list-keys", "admin", 200, None),
    ("admin-update-key", "admin", 200, None),
    ("admin-rotate-key", "admin", 201, None),
    ("admin-organization", "admin", 200, None),
    ("admin-revoke-key", "admin", 200, None),
    ("usage", "usage", 200, None),
    ("usage-requests", "usage", 200, None),
    ("usage-summary", "usage", 200, None),
    ("usage-report", "usage", 200, None),
    ("organization-costs", "usage", 200, None),
    ("organization-completions", "usage", 200, None),
    ("test-alerts", "usage", 200, None),
    ("dashboard", "dashboard", 200, None),
    ("dashboard-file", "dashboard", 200, None),
]


@pytest.mark.parametrize(("event", "function", "status", "code"), CASES)
def test_a_handler_takes_its_sample_event(
    apps: dict[str, ModuleType], secrets: dict[str, str], event: str, function: str, status: int, code: str | None
) -> None:
    sent: dict[str, Any] = json.loads((ROOT / "events" / f"{event}.json").read_text(encoding="utf-8"))
    secret = secrets.get(
        {"batches": "chat", "usage": "admin"}.get(function, function), ""
    )  # the dashboard's page is for everybody
    for headers, value in (("headers", secret), ("multiValueHeaders", [secret])):
        bearer = f"Bearer {value}" if isinstance(value, str) else [f"Bearer {value[0]}"]
        sent[headers] = {**(sent[headers] or {}), "Authorization": bearer}
    sent["path"] = sent["path"].replace("key_0example0key", secrets["key_id"])
    answer = apps[function].lambda_handler(sent, Context())
    assert answer["statusCode"] == status, answer
    if code is not None:
        assert json.loads(answer["body"])["error"]["code"] == code


def test_the_worker_takes_its_sample_event_of_a_queue(apps: dict[str, ModuleType]) -> None:
    """A message of a batch that there is not any more is done with."""
    sent = json.loads((ROOT / "events" / f"{MESSAGES}.json").read_text(encoding="utf-8"))
    assert apps["batch_worker"].lambda_handler(sent, Context()) == {"batchItemFailures": []}
    assert apps["batch_worker"].lambda_handler({}, Context())["open"] == 0


SCHEDULED = [
    ("alerts", "alerts", {"told", "rolled_hours", "filled_days", "spike"}),
    ("alerts-crossed", "alerts", {"told"}),
    ("daily-report", "daily_report", {"sent"}),
    ("daily-report-again", "daily_report", {"stored"}),
]


@pytest.mark.parametrize(("event", "function", "answer"), SCHEDULED)
def test_a_scheduled_function_takes_its_sample_event(
    apps: dict[str, ModuleType], event: str, function: str, answer: set[str]
) -> None:
    store = apps["alerts"].store
    store.note("rolled", "hours", until_ms=time.time_ns() // 10**6 - 3 * 3_600_000)  # moto takes its time for a month
    sent = json.loads((ROOT / "events/scheduled" / f"{event}.json").read_text(encoding="utf-8"))
    assert set(apps[function].lambda_handler(sent, Context())) == answer


@pytest.mark.slow
def test_hours_are_rolled_up_though_sns_takes_no_alert(
    apps: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    app, now_ms = apps["alerts"], time.time_ns() // 10**6
    month = business_day(now_ms, app.settings.time_zone).isoformat()[:7]
    months = {month: {"available_pico_usd": 0, "spent_pico_usd": USD}}
    put_key(boto3.client("dynamodb"), limits=Limits(budget_pico_usd=USD), name="n", tags={}, created_at_ms=0, months=months)  # fmt: skip
    monkeypatch.setattr(app.alerts, "_topic", Topic(lambda: boto3.client("sns"), "arn:aws:sns:ap-northeast-2:1:gone"))
    until_ms = now_ms - 3 * HOUR_MS
    app.store.note("rolled", "hours", until_ms=until_ms)
    with pytest.raises(NotDeliveredError):
        app.lambda_handler({}, Context())
    assert app.store.get("rolled", "hours")["until_ms"] > until_ms


def test_every_sample_event_of_a_schedule_is_tested() -> None:
    assert {case[0] for case in SCHEDULED} == {path.stem for path in (ROOT / "events/scheduled").glob("*.json")}


MESSAGES = "batch-messages"


def test_every_sample_event_is_tested() -> None:
    assert {case[0] for case in CASES} | {MESSAGES} == {path.stem for path in (ROOT / "events").glob("*.json")}
