"""``naru doctor`` says what is wrong: each illness is given to a gateway or an account, and must be found."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
from botocore.exceptions import ClientError

from naru.attributes import to_item
from naru.catalog import BUILT_IN
from naru.cli import doctor, main
from naru.cli.aws import Stack
from naru.cli.doctor import Finding
from naru.cli.output import CommandError
from naru.cli.target import Target
from naru.request_ids import new_request_id
from tests.meters import USD, put_key
from tests.moto_tables import tables

TARGET = Target("http://gateway.example/v1", "sk-naru-admin", "a test")
ORGANISATION = {
    "budget_usd": 500,
    "spent_usd": 1.5,
    "available_usd": 498.5,
    "month": "2026-11",
    "budget_resets_at": 1_796_050_800,
}
KEY = {"name": "app", "status": "active", "available_usd": 10, "expires_at": None}


def found(
    monkeypatch: pytest.MonkeyPatch,
    *,
    organisation: Mapping[str, Any] = ORGANISATION,
    keys: tuple[Mapping[str, Any], ...] = (KEY,),
    keys_of: Callable[[httpx.Request], Mapping[str, Any]] | None = None,
    answers: Mapping[str, httpx.Response] | None = None,
    skew_s: float = 0,
) -> dict[str, Finding]:
    """What is found from outside of a gateway that answers so, by what was looked at."""

    def answer(request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/v1")
        known = "authorization" in request.headers
        usual = {
            "/health": httpx.Response(200, json={"status": "ok"}),
            "/models": httpx.Response(200 if known else 401, json={}),
            "/admin/organization": httpx.Response(200, json=organisation),
            "/admin/keys": httpx.Response(200, json=keys_of(request) if keys_of else {"data": keys, "has_more": False}),
        }
        response = {**usual, **(answers or {})}[path]
        response.headers["date"] = format_datetime(datetime.now(UTC) - timedelta(seconds=skew_s))
        return response

    monkeypatch.undo()
    original = httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **given: original(transport=httpx.MockTransport(answer), **given))
    return {finding.what: finding for finding in doctor._over_http(TARGET)}


def test_a_gateway_that_is_well_has_nothing_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = found(monkeypatch)
    assert list(findings) == ["gateway", "clock", "door", "admin key", "budget", "keys"]
    assert {finding.verdict for finding in findings.values()} == {"ok"}


def test_something_else_at_the_address_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in (httpx.Response(200, text="<html>"), httpx.Response(404), httpx.Response(200, json=[])):
        (finding,) = found(monkeypatch, answers={"/health": answer}).values()
        assert (finding.verdict, finding.what) == ("FAIL", "gateway")
        assert "/v1" in finding.says


def test_a_gateway_that_lets_strangers_in_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, answers={"/models": httpx.Response(200, json={})})["door"].verdict == "FAIL"


@pytest.mark.parametrize(
    ("skew_s", "verdict", "way"), [(90, "FAIL", "ahead of"), (-4000, "FAIL", "behind"), (3, "ok", "")]
)
def test_a_clock_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, skew_s: float, verdict: str, way: str) -> None:
    finding = found(monkeypatch, skew_s=skew_s)["clock"]
    assert finding.verdict == verdict
    assert way in finding.says


def test_a_wrong_admin_key_is_said_in_the_gateways_words(monkeypatch: pytest.MonkeyPatch) -> None:
    error = {"error": {"message": "This admin key has been replaced."}}
    findings = found(monkeypatch, answers={"/admin/organization": httpx.Response(403, json=error)})
    assert findings["admin key"].verdict == "FAIL"
    assert "has been replaced" in findings["admin key"].says
    assert "budget" not in findings


@pytest.mark.parametrize(
    ("changed", "verdict", "said"),
    [
        ({"available_usd": 0, "spent_usd": 500}, "FAIL", "every request is refused"),
        ({"available_usd": 20, "spent_usd": 480}, "warn", "begins anew"),
        ({"budget_usd": None, "available_usd": None}, "warn", "no limit"),
    ],
)
def test_a_budget_that_is_spent_is_told(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], verdict: str, said: str
) -> None:
    finding = found(monkeypatch, organisation=ORGANISATION | changed)["budget"]
    assert finding.verdict == verdict
    assert said in finding.says


@pytest.mark.parametrize(
    ("keys", "verdict", "said"),
    [
        ((), "FAIL", "naru keys create"),
        (({**KEY, "status": "revoked"},), "FAIL", "no active key"),
        (({**KEY, "available_usd": -1},), "warn", "'app'"),
        (({**KEY, "expires_at": int(time.time()) + 3600},), "warn", "within a week"),
        (tuple({**KEY, "name": f"k{i}", "available_usd": 0} for i in range(5)), "warn", "and 2 more"),
    ],
)
def test_keys_that_open_nothing_are_told(
    monkeypatch: pytest.MonkeyPatch, keys: tuple[dict[str, Any], ...], verdict: str, said: str
) -> None:
    finding = found(monkeypatch, keys=keys)["keys"]
    assert finding.verdict == verdict
    assert said in finding.says


def test_an_active_key_behind_a_page_of_revoked_ones_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    revoked = {"data": [{**KEY, "status": "revoked"}] * 100, "has_more": True, "last_id": "key_100"}

    def listing(request: httpx.Request) -> dict[str, Any]:
        return revoked if "after" not in request.url.params else {"data": [KEY], "has_more": False}

    assert found(monkeypatch, keys_of=listing)["keys"].verdict == "ok"


# ── From inside ────────────────────────────────────────────────────────────────────────────────────────────


class _Account:
    """An account as boto3 shows it: a method of a service is a function, or what it returns."""

    def __init__(self, **services: Any) -> None:
        self.services = services

    def client(self, service: str, **_: Any) -> Any:
        given = self.services.get(service, {})
        if not isinstance(given, Mapping):
            return given
        methods = {
            name: value if callable(value) else (lambda value=value, **_: value) for name, value in given.items()
        }
        return type(service, (), {name: staticmethod(method) for name, method in methods.items()})


def inside(
    account: _Account, *resources: tuple[str, str, str], parameters: Mapping[str, str] | None = None
) -> doctor._Inside:
    """A stack with these resources: logical id, physical id, type."""
    outputs = {"LedgerTable": "LedgerTable", "MeterTable": "MeterTable", "ProviderKeysSecret": "keys"}
    looked = doctor._Inside(Stack("naru", account, outputs, parameters or {}))
    looked._resources = [
        {"LogicalResourceId": logical, "PhysicalResourceId": physical, "ResourceType": kind}
        for logical, physical, kind in resources
    ]
    return looked


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        ("CREATE_COMPLETE", "ok"),
        ("UPDATE_COMPLETE", "ok"),
        ("UPDATE_ROLLBACK_COMPLETE", "warn"),
        ("UPDATE_IN_PROGRESS", "warn"),
        ("UPDATE_ROLLBACK_FAILED", "FAIL"),
        ("DELETE_FAILED", "FAIL"),
    ],
)
def test_a_stack_that_did_not_finish_is_told(status: str, verdict: str) -> None:
    account = _Account(cloudformation={"describe_stacks": {"Stacks": [{"StackStatus": status}]}})
    assert only(doctor._stack_state(inside(account))).verdict == verdict


class _Body:
    def __init__(self, text: str) -> None:
        self._text = text

    def read(self) -> bytes:
        return self._text.encode()


def test_a_catalog_with_a_mistake_is_told_with_the_place() -> None:
    good = BUILT_IN.read_text(encoding="utf-8")
    for text, verdict in (
        (good, "ok"),
        (good.replace('dialect = "openai"', 'dialect = "klingon"'), "FAIL"),
        ("[", "FAIL"),
    ):
        account = _Account(s3={"get_object": {"Body": _Body(text)}})
        finding = only(doctor._catalog(inside(account, parameters={"CatalogUri": "s3://b/k.toml"})))
        assert finding.verdict == verdict
        assert "s3://b/k.toml" in finding.says


@pytest.mark.parametrize(
    ("secret", "verdict", "said"),
    [
        ({"holysheep": "hs-secret", "clovastudio": "nv-secret"}, "ok", "clovastudio, holysheep"),
        ({"holysheep": "hs-secret"}, "warn", "naru providers set clovastudio"),
        ({"holysheep": "hs-secret", "clovastudio": "  "}, "warn", "naru providers set clovastudio"),
        ({"holysheep": "hs-secret", "clovastudio": "nv\nx"}, "warn", "clovastudio"),
        ({"holysheep": 1, "clovastudio": None}, "FAIL", "naru providers set holysheep"),
        ({}, "FAIL", "502"),
        ([], "FAIL", "not a JSON object"),
    ],
)
def test_a_provider_without_a_key_is_told_and_no_key_is_shown(secret: Any, verdict: str, said: str) -> None:
    account = _Account(secretsmanager={"get_secret_value": {"SecretString": json.dumps(secret)}})
    looked = inside(account)
    assert only(doctor._catalog(looked)).verdict == "ok"
    finding = only(doctor._provider_keys(looked))
    assert finding.verdict == verdict
    assert said in finding.says
    assert "secret" not in finding.says.replace("the secret", "")


LEDGER = ("LedgerTable", "ledger", "AWS::DynamoDB::Table")
METER = ("MeterTable", "meter", "AWS::DynamoDB::Table")


def _dynamodb(status: str = "ACTIVE", recovery: str = "ENABLED") -> dict[str, Any]:
    described = {"PointInTimeRecoveryDescription": {"PointInTimeRecoveryStatus": recovery}}
    return {
        "describe_table": {"Table": {"TableStatus": status}},
        "describe_continuous_backups": {"ContinuousBackupsDescription": described},
    }


@pytest.mark.parametrize(
    ("dynamodb", "resources", "verdict", "said"),
    [
        (_dynamodb(), (LEDGER, METER), "ok", "2 are there"),
        (_dynamodb(), (LEDGER,), "FAIL", "MeterTable is not in the stack"),
        (_dynamodb(status="ARCHIVED"), (LEDGER, METER), "FAIL", "ARCHIVED"),
        (_dynamodb(recovery="DISABLED"), (LEDGER, METER), "FAIL", "point-in-time"),
    ],
)
def test_a_table_that_is_gone_or_cannot_be_restored_is_told(
    dynamodb: dict[str, Any], resources: tuple[tuple[str, str, str], ...], verdict: str, said: str
) -> None:
    finding = only(doctor._tables(inside(_Account(dynamodb=dynamodb), *resources)))
    assert finding.verdict == verdict
    assert said in finding.says


@pytest.mark.parametrize(("age_s", "verdict"), [(60, "ok"), (4 * 3600, "FAIL")])
def test_a_sweeper_that_does_not_run_is_told(age_s: int, verdict: str) -> None:
    with tables("MeterTable") as client:
        key_id, _ = put_key(client)
        request_id = new_request_id(at_ms=time.time_ns() // 10**6 - age_s * 1000)
        lease = {"worst_pico_usd": USD // 4, "month": "2026-11", "slot": 0, "tokens": 1, "model": "m"}
        client.update_item(
            TableName="MeterTable",
            Key=to_item({"meter": f"key#{key_id}"}),
            UpdateExpression="SET in_flight.#id = :lease",
            ExpressionAttributeNames={"#id": request_id},
            ExpressionAttributeValues=to_item({":lease": lease}),
        )
        finding = only(doctor._leases(inside(_Account(dynamodb=client))))
    assert finding.verdict == verdict
    assert ("0.25 USD" in finding.says) == (verdict == "FAIL")


@pytest.mark.parametrize(("waiting", "verdict"), [("0", "ok"), ("3", "FAIL")])
def test_dead_letters_are_counted(waiting: str, verdict: str) -> None:
    account = _Account(sqs={"get_queue_attributes": {"Attributes": {"ApproximateNumberOfMessages": waiting}}})
    queues = (("BatchDeadLetterQueue", "url", "AWS::SQS::Queue"), ("BatchQueue", "url2", "AWS::SQS::Queue"))
    finding = only(doctor._dead_letters(inside(account, *queues)))
    assert finding.verdict == verdict
    assert "BatchDeadLetterQueue" in finding.says


@pytest.mark.parametrize(("state", "verdict"), [("OK", "ok"), ("INSUFFICIENT_DATA", "ok"), ("ALARM", "FAIL")])
def test_an_alarm_that_rings_is_named(state: str, verdict: str) -> None:
    account = _Account(cloudwatch={"describe_alarms": {"MetricAlarms": [{"AlarmName": "naru-x", "StateValue": state}]}})
    finding = only(doctor._alarms(inside(account, ("X", "naru-x", "AWS::CloudWatch::Alarm"))))
    assert finding.verdict == verdict
    assert ("naru-x" in finding.says) == (verdict == "FAIL")


@pytest.mark.parametrize(
    ("keys", "rows", "verdict"), [(["daily/{day}/report.json"], [], "ok"), ([], [], "ok"), ([], [{}], "FAIL"), (["daily/2020-01-01.json"], [{}], "FAIL")]
)  # fmt: skip
def test_a_report_that_was_not_made_is_told(keys: list[str], rows: list[dict[str, Any]], verdict: str) -> None:
    now = datetime.now(UTC).astimezone(ZoneInfo("Asia/Seoul"))
    day = (now - timedelta(days=1 if now.hour >= 1 else 2)).date()
    pages = [{"Contents": [{"Key": key.format(day=day)} for key in keys]}]
    paginator = type("P", (), {"paginate": staticmethod(lambda **_: pages)})
    account = _Account(s3={"get_paginator": lambda _: paginator}, dynamodb={"query": lambda **_: {"Items": rows}})
    finding = only(doctor._last_report(inside(account, ("ReportsBucket", "reports", "AWS::S3::Bucket"))))
    assert finding.verdict == verdict
    assert str(day) in finding.says


@pytest.mark.parametrize(("limit", "verdict"), [(10, "warn"), (1000, "ok")])
def test_a_new_accounts_concurrency_is_told(limit: int, verdict: str) -> None:
    account = _Account(**{"lambda": {"get_account_settings": {"AccountLimit": {"ConcurrentExecutions": limit}}}})
    assert only(doctor._concurrency(inside(account))).verdict == verdict


def test_a_permission_that_is_missing_hides_nothing_else() -> None:
    def refuse(**_: Any) -> None:
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "X")

    services: dict[str, Any] = {
        "cloudformation": {"describe_stacks": refuse, "get_paginator": lambda _: type("P", (), {"paginate": refuse})},
        "secretsmanager": {"get_secret_value": refuse},
        "dynamodb": {"describe_table": refuse, "get_paginator": lambda _: type("P", (), {"paginate": refuse})},
        "lambda": {"get_account_settings": {"AccountLimit": {"ConcurrentExecutions": 1000}}},
    }
    outputs = {"LedgerTable": "l", "MeterTable": "m", "ProviderKeysSecret": "keys"}
    findings = {
        finding.what: finding.verdict for finding in doctor._in_aws(Stack("naru", _Account(**services), outputs, {}))
    }
    assert findings["stack"] == findings["provider keys"] == findings["leases"] == findings["dead letters"] == "skip"
    assert findings["catalog"] == findings["concurrency"] == "ok"


# ── The command ────────────────────────────────────────────────────────────────────────────────────────────


def run(monkeypatch: pytest.MonkeyPatch, *findings: Finding, arguments: tuple[str, ...] = ()) -> int:
    monkeypatch.setattr(doctor, "examine", lambda _: iter(findings))
    return main(["doctor", *arguments])


def test_one_line_each_and_a_status_that_programs_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fine, wrong = Finding("ok", "gateway", "is there"), Finding("FAIL", "provider keys", "none")
    assert run(monkeypatch, fine, Finding("warn", "keys", "soon"), Finding("skip", "stack", "no credentials")) == 0
    assert capsys.readouterr().err == ""
    assert run(monkeypatch, fine, wrong) == 1
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["ok    gateway        is there", "FAIL  provider keys  none"]
    assert shown.err == "naru: 1 of 2 checks failed: provider keys\n"
    assert run(monkeypatch, fine, wrong, arguments=("--json",)) == 1
    assert json.loads(capsys.readouterr().out)["data"][1] == {
        "verdict": "fail",
        "what": "provider keys",
        "says": "none",
    }


def test_without_a_gateway_and_without_an_account_it_says_what_it_could_not_see(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_stack(*_: Any, **__: Any) -> Callable[..., Any]:
        raise CommandError("there are no AWS credentials")

    monkeypatch.chdir(tmp_path)
    for name in ("NARU_BASE_URL", "NARU_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor, "find_stack", no_stack)
    assert main(["doctor"]) == 1
    shown = capsys.readouterr()
    assert shown.err == "naru: nothing could be looked at\n"
    assert [line.split()[:2] for line in shown.out.splitlines()] == [
        ["skip", "gateway"],
        ["skip", "stack"],
    ]
