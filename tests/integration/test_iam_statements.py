"""Each function's role allows the calls of DynamoDB that the function makes, and none that would raise its rights.

Decided by :mod:`tests.iam` over the transformed template: the emulator does not look at conditions.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import boto3
import httpx
import pytest
from botocore.client import BaseClient

from local import template
from local.emulator import REGION
from local.simulated_model import Config, Latency, run_in_thread
from naru.attributes import from_item
from naru.meter import Meters
from naru.meter_state import UNLIMITED, Limits
from naru.request_ids import new_request_id
from naru.sweeper import LEASE_LIFE_MS
from tests import iam
from tests.iam import Call, Role
from tests.meters import USD, put_key, put_organisation
from tests.moto_tables import TEMPLATE
from tests.security.handlers import OMNI, Handlers, _load, _value, handlers

pytestmark = pytest.mark.xdist_group("iam")

LOADED = template.load()
ROLES = iam.roles(LOADED)
TABLES = {
    name: properties["KeySchema"][0]["AttributeName"]
    for name, properties in LOADED.of_type("AWS::DynamoDB::Table").items()
}
FOLDERS = {
    "chat": "ChatFunction",
    "admin": "AdminFunction",
    "batches": "BatchesFunction",
    "batch_worker": "BatchWorkerFunction",
    "usage": "UsageFunction",
    "alerts": "AlertsFunction",
    "daily_report": "DailyReportFunction",
    "sweeper": "SweeperFunction",
}
Made = dict[str, list[tuple[str, dict[str, Any]]]]
"""Operations with their parameters, by function."""


def refused(role: Role, operation: str, parameters: Mapping[str, Any]) -> list[Call]:
    """What a role does not allow of an operation."""
    return [call for call in iam.calls_of(operation, parameters, TABLES) if not role.allows(call)]


# ── The evaluator itself ───────────────────────────────────────────────────────────────────────────────────

PUT = "dynamodb:PutItem"
METERS = iam.table_arn("MeterTable")


def statement(**more: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": PUT, "Resource": METERS, **more}


LEADING = "dynamodb:LeadingKeys"
ONLY_KEYS = {"ForAllValues:StringLike": {LEADING: ["key#*"]}}


@pytest.mark.parametrize(
    ("statements", "context", "allowed"),
    [
        ([], {}, False),
        ([statement()], {}, True),
        ([statement(Action="dynamodb:putitem")], {}, True),
        ([statement(Action="dynamodb:Put*")], {}, True),
        ([statement(Action="dynamodb:GetItem")], {}, False),
        ([statement(Resource=[iam.table_arn("MeterTabl?")])], {}, True),
        ([statement(Resource=METERS.lower())], {}, False),
        ([statement(), statement(Effect="Deny")], {}, False),
        ([statement(Condition=ONLY_KEYS)], {LEADING: ["key#1"]}, True),
        ([statement(Condition=ONLY_KEYS)], {LEADING: ["admin#1"]}, False),
        ([statement(Condition=ONLY_KEYS)], {LEADING: ["key#1", "admin#1"]}, False),
        ([statement(Condition=ONLY_KEYS)], {}, True),  # which is why it fits calls that always have keys
        ([statement(), statement(Effect="Deny", Condition={"ForAnyValue:StringLike": {LEADING: "admin#*"}})], {LEADING: ["key#1", "admin#1"]}, False),
        ([statement(), statement(Effect="Deny", Condition={"ForAnyValue:StringLike": {LEADING: "admin#*"}})], {}, True),
        ([statement(Condition={"StringNotLike": {LEADING: "admin#*"}})], {LEADING: ["key#1"]}, True),
        ([statement(Condition={"StringNotLike": {LEADING: "admin#*"}})], {}, True),
        ([statement(Condition={"StringEquals": {LEADING: "key#1"}})], {}, False),
        ([statement(Condition={"Null": {LEADING: "false"}})], {}, False),
        ([statement(Condition={"StringLike": {LEADING: "[k]ey#*"}})], {LEADING: ["key#1"]}, False),
    ],
)  # fmt: skip
def test_the_evaluator_decides_as_iam_does(
    statements: list[dict[str, Any]], context: dict[str, list[str]], allowed: bool
) -> None:
    assert Role("a", statements).allows(Call(PUT, METERS, context)) == allowed


@pytest.mark.parametrize(
    "more", [{"NotAction": "x"}, {"Principal": "*"}, {"Condition": {"ForSomeValues:StringLike": {LEADING: "x"}}}]
)
def test_the_evaluator_refuses_what_it_does_not_know(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not understood"):
        Role("a", [statement(**more)]).allows(Call(PUT, METERS, {LEADING: ["x"]}))


# ── What must be refused ───────────────────────────────────────────────────────────────────────────────────

ITEM = {"meter": {"S": "admin#key_0123456789ab"}}
OTHER = {"meter": {"S": "organisation"}}


def writes(table: str, item: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Every way that DynamoDB has to write one item; with ``other``, which may be allowed, beside it."""
    name = next(iter(item))
    value = item[name]["S"]
    update = {"TableName": table, "Key": item, "UpdateExpression": "SET enabled = :yes"}
    put, delete = {"TableName": table, "Item": item}, {"TableName": table, "Key": item}
    innocent = {"Update": {**update, "Key": other}}
    # Nobody runs these.
    partiql = {
        "insert": f"""INSERT INTO "{table}" VALUE {{'{value}'}}""",
        "update": f"""UPDATE "{table}" SET enabled = true WHERE {name} = '{value}'""",  # noqa: S608
        "delete": f"""DELETE FROM "{table}" WHERE {name} = '{value}'""",  # noqa: S608
    }
    return {
        "put": ("PutItem", put),
        "update": ("UpdateItem", update),
        "delete": ("DeleteItem", delete),
        "batch put": ("BatchWriteItem", {"RequestItems": {table: [{"PutRequest": {"Item": item}}]}}),
        "batch put among others": (
            "BatchWriteItem",
            {"RequestItems": {table: [{"PutRequest": {"Item": other}}, {"PutRequest": {"Item": item}}]}},
        ),
        "batch delete": ("BatchWriteItem", {"RequestItems": {table: [{"DeleteRequest": {"Key": item}}]}}),
        "transaction put": ("TransactWriteItems", {"TransactItems": [{"Put": put}]}),
        "transaction update": ("TransactWriteItems", {"TransactItems": [innocent, {"Update": update}]}),
        "transaction delete": ("TransactWriteItems", {"TransactItems": [innocent, {"Delete": delete}]}),
        **{f"PartiQL {kind}": ("ExecuteStatement", {"Statement": text}) for kind, text in partiql.items()},
        **{
            f"PartiQL {kind} in a batch": ("BatchExecuteStatement", {"Statements": [{"Statement": text}]})
            for kind, text in partiql.items()
        },
        **{
            f"PartiQL {kind} in a transaction": ("ExecuteTransaction", {"TransactStatements": [{"Statement": text}]})
            for kind, text in partiql.items()
        },
    }


TABLE_WIDE = [
    "CreateBackup", "CreateTable", "DeleteTable", "ImportTable", "RestoreTableFromBackup", "RestoreTableToPointInTime",
    "UpdateContinuousBackups", "UpdateTable", "UpdateTimeToLive", "PutResourcePolicy", "UpdateGlobalTable",
    "DeleteBackup", "ExportTableToPointInTime", "StartAwsBackupJob", "RestoreTableFromAwsBackup", "TagResource",
]  # fmt: skip

WRITES = writes("MeterTable", ITEM, OTHER)


@pytest.mark.parametrize("how", WRITES)
@pytest.mark.parametrize("function", ROLES)
def test_no_function_writes_an_admin_key(function: str, how: str) -> None:
    """They open the admin API, and are made with AWS credentials only (``naru admin init``)."""
    operation, parameters = WRITES[how]
    assert refused(ROLES[function], operation, parameters)


@pytest.mark.parametrize(
    "meter_id", ["admin#", "admin#x/1", "Admin#x", "anything", "key", "user", "", "organisatio", "organisations"]
)
@pytest.mark.parametrize("function", ROLES)
def test_no_function_writes_a_meter_of_a_kind_that_there_is_not(function: str, meter_id: str) -> None:
    """So that a kind of item that is thought of later is not theirs to write by accident."""
    for operation, parameters in writes("MeterTable", {"meter": {"S": meter_id}}, OTHER).values():
        assert refused(ROLES[function], operation, parameters), operation


WRITERS = {
    "MeterTable": {"ChatFunction", "AdminFunction", "BatchWorkerFunction", "SweeperFunction"},
    "LedgerTable": {"ChatFunction", "BatchWorkerFunction", "SweeperFunction"},
    "IdempotencyTable": {"ChatFunction"},
    "HealthTable": {"ChatFunction", "BatchWorkerFunction"},
    "BatchTable": {"BatchesFunction", "BatchWorkerFunction"},
    "ReportTable": {"AlertsFunction", "DailyReportFunction"},
}


def test_each_table_is_written_by_those_whose_work_it_is() -> None:
    found = defaultdict(set)
    for table, name in TABLES.items():
        for function, role in ROLES.items():
            for meter_id in ("key#key_1", "organisation", "user#key_1#u", "anything"):
                for operation, parameters in writes(table, {name: {"S": meter_id}}, {name: {"S": meter_id}}).values():
                    if not refused(role, operation, parameters):
                        found[table].add(function)
    assert found == WRITERS


OF_REQUESTS = {"ChatFunction", "BatchWorkerFunction", "SweeperFunction"}


@pytest.mark.parametrize(
    ("meter_id", "functions"),
    [
        ("admin#key_1", set()),
        ("key#key_1", OF_REQUESTS | {"AdminFunction"}),
        ("key#key_1/3", OF_REQUESTS | {"AdminFunction"}),
        ("organisation", OF_REQUESTS | {"AdminFunction"}),
        ("organisation/3", OF_REQUESTS | {"AdminFunction"}),
        ("user#key_1#hash", OF_REQUESTS),
        ("calls#key_1", {"BatchesFunction", "UsageFunction"}),
    ],
)
def test_each_kind_of_meter_is_updated_by_those_whose_work_it_is(meter_id: str, functions: set[str]) -> None:
    item = {"meter": {"S": meter_id}}
    operation, parameters = writes("MeterTable", item, item)["update"]
    assert {function for function, role in ROLES.items() if not refused(role, operation, parameters)} == functions


@pytest.mark.parametrize("action", TABLE_WIDE)
@pytest.mark.parametrize("function", ROLES)
def test_no_function_changes_a_table_as_a_whole(function: str, action: str) -> None:
    assert not [table for table in TABLES if ROLES[function].allows(Call(f"dynamodb:{action}", iam.table_arn(table)))]


def test_the_ledger_is_put_to_and_nothing_else() -> None:
    """PutItem can put over a row, which no condition of IAM can forbid; point-in-time recovery is against that."""
    row = {"day_shard": {"S": "2026-11-22#0"}}
    for function, role in ROLES.items():
        for how, (operation, parameters) in writes("LedgerTable", row, row).items():
            allowed = not refused(role, operation, parameters)
            assert allowed == (how in {"put", "transaction put"} and function in WRITERS["LedgerTable"]), (
                function,
                how,
            )


@pytest.mark.parametrize("key", ["key#key_new", "key#key_new/1"])
def test_only_the_admin_function_puts_a_key(key: str) -> None:
    """The others change meters that are there: a key of their own would be one with no limits."""
    item = {"meter": {"S": key}}
    operation, parameters = writes("MeterTable", item, item)["put"]
    assert {function for function, role in ROLES.items() if not refused(role, operation, parameters)} == {
        "AdminFunction"
    }


def test_the_providers_keys_are_read_by_those_who_call_providers_and_written_by_nobody() -> None:
    secret = f"arn:aws:secretsmanager:{REGION}:{iam.ACCOUNT}:secret:ProviderKeys-a1b2c3"
    readers = {name for name, role in ROLES.items() if role.allows(Call("secretsmanager:GetSecretValue", secret))}
    assert readers == {"ChatFunction", "BatchWorkerFunction"}
    for action in ("PutSecretValue", "UpdateSecret", "DeleteSecret", "PutResourcePolicy", "RotateSecret"):
        assert not [name for name, role in ROLES.items() if role.allows(Call(f"secretsmanager:{action}", secret))]


def test_nobody_writes_the_catalog_or_another_functions_settings() -> None:
    """The catalog says where a provider's key is sent, and what its answers cost."""
    chat = f"arn:aws:lambda:{REGION}:{iam.ACCOUNT}:function:ChatFunction"
    for function, role in ROLES.items():
        for action in ("s3:PutObject", "s3:DeleteObject", "s3:PutObjectAcl"):
            assert not role.allows(Call(action, "arn:aws:s3:::catalogs/own.toml")), function
        for action in ("UpdateFunctionConfiguration", "UpdateFunctionCode", "AddPermission", "CreateAlias"):
            assert not role.allows(Call(f"lambda:{action}", chat)), function
        for action in ("iam:PutRolePolicy", "iam:PassRole", "sts:AssumeRole", "ssm:PutParameter", "kms:Decrypt"):
            assert not role.allows(Call(action, "*")), function


# ── What is done ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def made() -> Made:
    """All that the handlers ask of DynamoDB in a day of theirs."""
    found: Made = defaultdict(list)
    whose = [""]
    original = BaseClient._make_api_call  # type: ignore[attr-defined]

    def record(self: Any, operation: str, parameters: dict[str, Any]) -> Any:
        if self.meta.service_model.service_name == "dynamodb":
            found[whose[0]].append((operation, parameters))
        return original(self, operation, parameters)

    with (
        run_in_thread(Config(latency=Latency(first_token_ms=0, token_ms=0))) as model,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(BaseClient, "_make_api_call", record)
        with handlers(model) as gateway:
            _Day(gateway, patch, whose).run()
    return found


class _Day:
    """Every function, driven through what it does."""

    def __init__(self, gateway: Handlers, patch: pytest.MonkeyPatch, whose: list[str]) -> None:
        self.gateway, self.whose = gateway, whose
        self.queue = os.environ["NARU_BATCH_QUEUE_URL"]
        region: Any = {"LocationConstraint": REGION}
        boto3.client("s3").create_bucket(Bucket="reports", CreateBucketConfiguration=region)
        topic = boto3.client("sns").create_topic(Name=os.environ["NARU_ALERTS_TOPIC"].rpartition(":")[2])["TopicArn"]
        for properties in (TEMPLATE["Resources"][name]["Properties"] for name in FOLDERS.values()):
            for name, value in properties.get("Environment", {}).get("Variables", {}).items():
                patch.setenv(name, _value(value))
        for name, given in {
            "FILES_BUCKET": "files",
            "REPORTS_BUCKET": "reports",
            "BATCH_QUEUE_URL": self.queue,
            "BATCH_TOPIC": topic,
            "ALERTS_TOPIC": topic,
            "ALERTS_FUNCTION": "",
        }.items():
            patch.setenv(f"NARU_{name}", given)
        self.known = {*gateway.modules}
        gateway.modules |= {name: _load(name) for name in FOLDERS if name not in self.known}

    def run(self) -> None:
        known = self.known
        self.chat()
        self.admin()
        self.batch()
        for function in ("alerts", "daily_report"):
            store = self.gateway.modules["alerts"].store
            store.note("rolled", "hours", until_ms=time.time_ns() // 10**6 - 3 * 3_600_000)
            self.invoke(function, {})
        self.invoke("daily_report", {"day": "2026-11-01"})
        self.usage()
        self.deaths()
        worker = self.gateway.modules["batch_worker"]
        worker.loop.run(worker.http.aclose())
        for name in {*FOLDERS} - known:
            module = self.gateway.modules.pop(name)
            if hasattr(module, "loop"):
                module.loop.close()

    def invoke(self, function: str, event: Any) -> Any:
        self.whose[0] = FOLDERS[function]
        try:
            return self.gateway.modules[function].lambda_handler(event, _Context())
        finally:
            self.whose[0] = ""

    def send(self, function: str, method: str, path: str, body: Any = None, **more: Any) -> Any:
        self.whose[0] = FOLDERS[function]
        try:
            reply = self.gateway.send(function, method, path, body, **more)
        finally:
            self.whose[0] = ""
        assert reply.status < 400, reply
        return reply

    def chat(self) -> None:
        """Every kind of limit, and budgets that are scattered over shards: reads, writes and transactions."""
        limits = Limits(budget_pico_usd=USD // 10, rpm=1000, tpm=10**6, max_parallel=50)
        fields: dict[str, Any] = {
            "user_budget_pico_usd": USD,
            "user_rpm": 100,
            "name": "n",
            "tags": {},
            "created_at_ms": 1,
        }
        _, scattered = put_key(self.gateway.dynamodb, limits=limits, shards=4, **fields)
        body = {"model": OMNI, "messages": [{"role": "user", "content": "안녕 [[sim tokens=5]]"}]}
        self.send("chat", "POST", "/chat/completions", body)
        put_organisation(self.gateway.dynamodb, "MeterTable", budget_pico_usd=USD, shards=2)
        dear = {**body, "max_tokens": 4000, "user": "phone-1"}
        self.send("chat", "POST", "/chat/completions", dear, key=scattered)
        for _ in range(2):
            once = {"Idempotency-Key": "one"}
            self.send("chat", "POST", "/chat/completions", {**dear, "stream": True}, key=scattered, headers=once)
        failing = {**body, "messages": [{"role": "user", "content": "안녕 [[sim fault=status:503,times=2]]"}]}
        self.send("chat", "POST", "/chat/completions", failing)
        self.send("chat", "GET", "/models")

    def admin(self) -> None:
        admin = {"key": self.gateway.admin_key}
        limits = {"budget_usd": 10, "rpm": 60, "shards": 3}
        for more in ({}, limits):
            made = self.send("admin", "POST", "/admin/keys", {"name": "app", **more}, **admin).json()
            for method, path, body in (
                ("GET", "", None),
                ("PATCH", "", {"rpm": 30, "budget_usd": 5}),
                ("POST", "/rotate", {}),
                ("DELETE", "", None),
            ):
                self.send("admin", method, f"/admin/keys/{made['id']}{path}", body, **admin)
        self.send("admin", "GET", "/admin/keys", **admin)
        self.send("admin", "GET", "/admin/organization", **admin)
        self.send("admin", "PATCH", "/admin/organization", {"budget_usd": 900, "shards": 3}, **admin)

    def batch(self) -> None:
        """One that is uploaded and run to its end, and one that is cancelled."""
        lines = [
            {"custom_id": f"line-{index}", "method": "POST", "url": "/v1/chat/completions", "body": {"model": OMNI, "messages": [{"role": "user", "content": "안녕 [[sim tokens=2]]"}]}}
            for index in range(3)
        ]  # fmt: skip
        form = httpx.Request(
            "POST",
            "http://naru",
            data={"purpose": "batch"},
            files={"file": ("a.jsonl", "\n".join(map(json.dumps, lines)).encode())},
        )
        content = form.read().decode()
        file = self.send("batches", "POST", "/files", content, headers={"Content-Type": form.headers["content-type"]})
        asked = {"input_file_id": file.json()["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = self.send("batches", "POST", "/batches", {**asked, "check_budget": True}).json()["id"]
        self.work()
        done = self.send("batches", "GET", f"/batches/{batch}").json()
        assert done["status"] == "completed", done
        self.send("batches", "GET", f"/batches/{batch}/results")
        cancelled = self.send("batches", "POST", "/batches", asked).json()["id"]
        self.send("batches", "POST", f"/batches/{cancelled}/cancel", {})
        self.work()
        self.send("batches", "GET", "/batches")
        self.send("batches", "GET", "/files")
        self.send("batches", "DELETE", f"/files/{file.json()['id']}")
        self.invoke("batch_worker", {})

    def work(self) -> None:
        """The worker, until the queue is empty."""
        sqs = boto3.client("sqs")
        while messages := sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10).get("Messages"):
            records = [
                {"messageId": each["MessageId"], "receiptHandle": each["ReceiptHandle"], "body": each["Body"], "attributes": {"ApproximateReceiveCount": "1"}, "eventSource": "aws:sqs"}
                for each in messages
            ]  # fmt: skip
            assert self.invoke("batch_worker", {"Records": records}) == {"batchItemFailures": []}
            for each in messages:
                sqs.delete_message(QueueUrl=self.queue, ReceiptHandle=each["ReceiptHandle"])

    def deaths(self) -> None:
        """Two requests that died long ago: before they reached the organisation, and before the row."""
        dynamodb = self.gateway.dynamodb
        app = self.gateway.modules["sweeper"]
        zone = app.settings.time_zone
        meters = Meters(dynamodb, "MeterTable", zone, organisation_budget_pico_usd=UNLIMITED)
        fields: dict[str, Any] = {"user_budget_pico_usd": USD, "name": "n", "tags": {}, "created_at_ms": 1}
        _, secret = put_key(dynamodb, limits=Limits(rpm=100), **fields)
        arrived_ms = time.time_ns() // 10**6 - LEASE_LIFE_MS - 60_000

        async def die() -> None:
            for index in range(2):
                admission = await meters.admit(
                    f"Bearer {secret}",
                    request_id=new_request_id(at_ms=arrived_ms),
                    now_ms=arrived_ms,
                    model=OMNI,
                    worst_pico_usd=1,
                    tokens=1,
                    end_user="phone-1",
                )
                if index:
                    await meters.finish(*admission.leases[-1], cost_pico_usd=0, tokens=0, refund_request=True)

        asyncio.run(die())
        # moto refuses a filter on an attribute that an item does not have, such as an admin key's.
        for item in dynamodb.scan(TableName="MeterTable")["Items"]:
            if "in_flight" not in item:
                dynamodb.delete_item(TableName="MeterTable", Key={"meter": item["meter"]})
        assert self.invoke("sweeper", {}) == {"settled": 0, "unknown": 1, "released": 1, "failed": 0}

    def usage(self) -> None:
        admin = {"key": self.gateway.admin_key}
        today = {"start": "2026-11-26"}
        for path in ("/usage", "/usage/requests", "/usage/summary"):
            for who in (admin, {}):
                self.send("usage", "GET", path, query=today if path != "/usage/summary" else None, **who)
        self.send("usage", "POST", "/admin/alerts/test", {}, **admin)


class _Context:
    def get_remaining_time_in_millis(self) -> int:
        return 600_000


@pytest.mark.parametrize("function", sorted(FOLDERS.values()))
def test_a_function_may_make_every_call_that_it_makes(made: Made, function: str) -> None:
    assert made[function]
    for operation, parameters in made[function]:
        assert not refused(ROLES[function], operation, parameters), (operation, parameters)


def test_the_day_has_every_kind_of_call_in_it(made: Made) -> None:
    """Or the test before proves little."""
    seen = {
        function: {operation for operation, parameters in calls if "MeterTable" in json.dumps(parameters, default=str)}
        for function, calls in made.items()
    }
    assert seen["ChatFunction"] == {"GetItem", "PutItem", "UpdateItem", "TransactGetItems", "TransactWriteItems"}
    assert seen["AdminFunction"] == {
        "GetItem",
        "PutItem",
        "Scan",
        "TransactGetItems",
        "TransactWriteItems",
        "UpdateItem",
    }
    assert {"Scan", "UpdateItem"} == seen["SweeperFunction"]
    assert {"UpdateItem", "GetItem"} <= seen["BatchWorkerFunction"]
    ids = {
        str(from_item(parameters["Key"])["meter"]).partition("#")[0].partition("/")[0]
        for function in ("ChatFunction", "SweeperFunction")
        for operation, parameters in made[function]
        if operation == "UpdateItem" and parameters["TableName"] == "MeterTable"
    }
    assert ids == {"key", "organisation", "user"}


def test_every_function_of_the_template_is_driven() -> None:
    """The dashboard's page asks nobody."""
    assert {*FOLDERS.values(), "DashboardFunction"} == {*ROLES}
