"""The real handlers in this process, on tables made from the template: events in, answers and everything printed out."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import pytest
from moto import mock_aws
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.dynamodb.models import dynamodb_backends

from local.emulator import REGION
from local.simulated_model import ThreadedModel
from naru.api_keys import new_admin_key_item
from naru.attributes import to_item
from naru.meter_state import Limits
from naru.retry import RetryPolicy
from tests.meters import put_key
from tests.moto_tables import TEMPLATE, calls_reach_moto

ROOT = Path(__file__).parent.parent.parent
OMNI = "hyperclova-x-omni"
PROVIDER_KEYS = {"holysheep": "hs-provider-secret-1", "clovastudio": "nv-provider-secret-2"}


class _Context:
    """As much of Lambda's context as the handlers read."""

    def get_remaining_time_in_millis(self) -> int:
        return 60_000


@dataclass(frozen=True)
class Reply:
    """What a handler returned, with the whole body drawn."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """Of an error."""
        code: str | None = self.json()["error"]["code"]
        return code


@dataclass
class Handlers:
    """The functions, and an account with keys."""

    dynamodb: Any
    model: ThreadedModel
    modules: dict[str, ModuleType]
    key_id: str
    api_key: str
    admin_key: str
    printed: io.StringIO = field(default_factory=io.StringIO)
    """Everything that the functions wrote: their log, their metrics, and what should not be there."""

    def new_key(self, **limits: Any) -> tuple[str, str]:
        """Another app's key: its id and its secret."""
        return put_key(
            self.dynamodb, limits=Limits(**{"rpm": 10_000, **limits}), name="other", tags={}, created_at_ms=0
        )

    def send(
        self,
        function: str,
        method: str,
        path: str,
        body: str | Mapping[str, Any] | None = None,
        *,
        key: str | None = "",
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request, as API Gateway hands it on. Without ``key`` it is the app's; None sends none."""
        key = self.api_key if key == "" else key
        sent = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        sent |= headers or {}
        event = {
            "resource": path,
            "path": path,
            "httpMethod": method,
            "headers": sent,
            "multiValueHeaders": {name: [value] for name, value in sent.items()},
            "queryStringParameters": dict(query) if query else None,
            "multiValueQueryStringParameters": {name: [value] for name, value in query.items()} if query else None,
            "pathParameters": None,
            "requestContext": {"requestId": "api-gateway", "stage": "v1", "identity": {"sourceIp": "203.0.113.7"}},
            "body": json.dumps(body) if isinstance(body, Mapping) else body,
            "isBase64Encoded": False,
        }
        with redirect_stdout(self.printed), redirect_stderr(self.printed):
            answer = self.modules[function].lambda_handler(event, _Context())
            drawn = answer["body"] if isinstance(answer["body"], str) else b"".join(answer["body"])
        content = drawn.encode() if isinstance(drawn, str) else drawn
        single = {name: str(values[-1]) for name, values in answer.get("multiValueHeaders", {}).items()}
        lower = {name.lower(): value for name, value in {**single, **(answer.get("headers") or {})}.items()}
        return Reply(answer["statusCode"], lower, content)

    def chat(self, prompt: str = "안녕하세요", *, key: str | None = "", headers: Mapping[str, str] | None = None, **fields: Any) -> Reply:  # fmt: skip
        """A chat completion."""
        body = {"model": OMNI, "messages": [{"role": "user", "content": prompt}]} | fields
        return self.send("chat", "POST", "/chat/completions", body, key=key, headers=headers)

    def admin(self, method: str, path: str, body: Any = None, *, key: str | None = "") -> Reply:
        """A call of the admin API, with the admin key unless another is given."""
        return self.send("admin", method, path, body, key=self.admin_key if key == "" else key)

    def stored(self) -> str:
        """Everything in every table but the answers that are kept on purpose, as text."""
        # moto's own view of its tables: a scan takes a millisecond for each item.
        backend = dynamodb_backends[DEFAULT_ACCOUNT_ID][REGION]
        kept = [
            item.to_json()
            for name, table in backend.tables.items()
            if name != "IdempotencyTable"
            for item in table.all_items()
        ]
        return json.dumps(kept, ensure_ascii=False, default=str)

    def forget(self) -> None:
        """What was printed, and what is known about the providers' health."""
        self.printed.seek(0)
        self.printed.truncate()
        for item in self.dynamodb.scan(TableName="HealthTable")["Items"]:
            key = TEMPLATE["Resources"]["HealthTable"]["Properties"]["KeySchema"][0]["AttributeName"]
            self.dynamodb.delete_item(TableName="HealthTable", Key={key: item[key]})
        self.modules["chat"].completions._health._known.clear()


def _value(given: Any) -> str:
    """What a variable of the template is here: the logical name of a resource, or the default of a parameter."""
    if isinstance(given, Mapping):
        name = str(given.get("Ref") or next(iter(given.values())))
        return str(TEMPLATE["Parameters"].get(name, {}).get("Default", name))
    return str(given)


@contextmanager
def handlers(model: ThreadedModel) -> Iterator[Handlers]:
    """The functions that answer requests."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        stack.enter_context(mock_aws())
        variables = TEMPLATE["Globals"]["Function"]["Environment"]["Variables"]
        for function in ("Chat", "Batches", "Usage"):
            own = TEMPLATE["Resources"][f"{function}Function"]["Properties"].get("Environment", {}).get("Variables", {})
            variables = variables | own
        for name, value in variables.items():
            patch.setenv(name, _value(value))
        urls = {"holysheep": model.openai_url, "clovastudio": model.clova_url}
        patch.setenv("NARU_PROVIDER_BASE_URLS", json.dumps(urls))
        patch.setenv("NARU_ANSWERS_BUCKET", "answers")
        patch.setenv("NARU_FILES_BUCKET", "files")
        for name in ("NARU_BATCH_TOPIC", "NARU_ALERTS_TOPIC"):
            patch.setenv(name, "arn:aws:sns:ap-northeast-2:123456789012:topic")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        calls_reach_moto(patch)
        dynamodb = boto3.client("dynamodb")
        for name, resource in TEMPLATE["Resources"].items():
            if resource["Type"] == "AWS::DynamoDB::Table":
                properties = resource["Properties"]
                wanted = ("AttributeDefinitions", "KeySchema", "BillingMode", "GlobalSecondaryIndexes")
                dynamodb.create_table(TableName=name, **{key: properties[key] for key in wanted if key in properties})
        boto3.client("secretsmanager").create_secret(Name="ProviderKeys", SecretString=json.dumps(PROVIDER_KEYS))
        region = {"LocationConstraint": REGION}
        for bucket in ("answers", "files"):
            boto3.client("s3").create_bucket(Bucket=bucket, CreateBucketConfiguration=region)  # type: ignore[arg-type]
        patch.setenv("NARU_BATCH_QUEUE_URL", boto3.client("sqs").create_queue(QueueName="batches")["QueueUrl"])
        key_id, api_key = put_key(dynamodb, limits=Limits(rpm=10_000), name="app", tags={}, created_at_ms=0)
        admin, admin_key = new_admin_key_item("admin", now_ms=0)
        dynamodb.put_item(TableName="MeterTable", Item=to_item(admin))
        printed = io.StringIO()
        with redirect_stdout(printed), redirect_stderr(printed):
            modules = {name: _load(name) for name in ("chat", "admin", "usage", "batches")}
        modules["chat"].completions._attempts._retry = RetryPolicy(base_s=0.001)
        (log,) = (each for each in logging.getLogger("naru").handlers if isinstance(each, logging.StreamHandler))
        before = log.setStream(printed) or printed
        yield Handlers(dynamodb, model, modules, key_id, api_key, admin_key, printed)
        modules["chat"].loop.run(modules["chat"].http.aclose())
        for module in modules.values():
            module.loop.close()
        # Powertools keeps a logger, and where it prints, by its name.
        log.setStream(before)


def _load(name: str) -> ModuleType:
    """A handler's module, as Lambda imports it: from its file."""
    spec = importlib.util.spec_from_file_location(f"{name}_under_attack", ROOT / "functions" / name / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
