"""Each function may do what it needs and no more, as the emulator enforces the template's statements.

The `stack` fixture enforces IAM for every test of this folder: what they do with the chat and admin functions, these
may do. Here is the sweeper, which no request reaches, and what a function must not be able to do if it is taken over.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import boto3
import httpx
import openai
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from local.emulator import REGION
from local.handler_pool import HandlerPool
from naru.attributes import to_item
from naru.ledger import Ledger, key_of
from naru.meter import Meters
from naru.meter_state import UNLIMITED, Limits
from naru.request_ids import new_request_id
from naru.sweeper import LEASE_LIFE_MS
from tests.accounts import OMNI
from tests.conftest import RunningStack
from tests.meters import USD, meter, put_key

pytestmark = pytest.mark.xdist_group("stack")

SEOUL = ZoneInfo("Asia/Seoul")


def client_of(stack: RunningStack, function: str, service: str) -> Any:
    """A client with the credentials of a function's role."""
    environment = stack.gateway.stack.functions[function].environment
    assert environment["AWS_SESSION_TOKEN"], "the stack must enforce IAM"
    return boto3.client(
        service,  # type: ignore[call-overload]
        endpoint_url=stack.gateway.stack.emulator.url,
        region_name=REGION,
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        aws_session_token=environment["AWS_SESSION_TOKEN"],
        config=Config(retries={"total_max_attempts": 1}),
    )


async def run_sweeper(stack: RunningStack, folder: Path) -> Any:
    """The deployed function, in a runtime process of its own, with its role."""
    deployed = stack.gateway.stack
    pool = HandlerPool(
        deployed.functions["SweeperFunction"],
        endpoint_url=deployed.emulator.url,
        log=folder / "SweeperFunction.log",
        start=1,
        limit=1,
    )
    async with pool.running():
        invocation = pool.invoke(b"{}", trace_id="Root=1-0-0")
        assert await invocation.mode() is None
        return json.loads(b"".join([chunk async for chunk in invocation]))


def test_what_chat_does_its_role_allows(stack: RunningStack) -> None:
    """JSON, a stream and the models, for a key with every kind of limit and budgets that are scattered over shards:
    that takes reads, writes and transactions on the meters.
    """
    dynamodb = stack.aws("dynamodb")
    limits = Limits(budget_pico_usd=USD // 10, rpm=1000, tpm=10**6, max_parallel=50)
    _, secret = put_key(
        dynamodb,
        stack.meter_table,
        limits=limits,
        shards=4,
        user_budget_pico_usd=USD,
        user_rpm=100,
        name="iam",
        tags={},
        created_at_ms=1,
    )
    body: dict[str, Any] = {
        "model": OMNI,
        "messages": [{"role": "user", "content": "안녕 [[sim tokens=5]]"}],
        # Worst case about 0.04 USD: more than a shard's quarter of the budget.
        "max_tokens": 4000,
        "user": "phone-1",
    }
    with openai.OpenAI(base_url=stack.base_url, api_key=secret, max_retries=0) as sdk:
        assert sdk.chat.completions.create(**body).usage is not None
        assert list(sdk.chat.completions.create(**body, stream=True))
        assert OMNI in [model.id for model in sdk.models.list()]
        assert sdk.models.retrieve(OMNI).id == OMNI
    assert httpx.get(f"{stack.base_url}/health").status_code == 200


def test_what_the_sweeper_does_its_role_allows(stack: RunningStack, tmp_path: Path) -> None:
    """Three requests that died long ago: before they reached the organisation, before the row, and after it."""
    dynamodb = stack.aws("dynamodb")
    key_id, secret = put_key(
        dynamodb,
        stack.meter_table,
        limits=Limits(rpm=100),
        shards=1,
        name="sweeper",
        tags={},
        created_at_ms=1,
    )
    meters = Meters(dynamodb, stack.meter_table, SEOUL, organisation_budget_pico_usd=UNLIMITED)
    ledger = Ledger(dynamodb, stack.ledger_table, SEOUL)
    arrived_ms = time.time_ns() // 10**6 - LEASE_LIFE_MS - 60_000

    async def die() -> list[str]:
        ids = [new_request_id(at_ms=arrived_ms) for _ in range(3)]
        for request_id in ids:
            admission = await meters.admit(
                f"Bearer {secret}",
                request_id=request_id,
                now_ms=arrived_ms,
                model=OMNI,
                worst_pico_usd=USD // 100,
                tokens=1,
            )
            if request_id == ids[0]:
                await meters.finish(*admission.leases[-1], cost_pico_usd=0, tokens=0, refund_request=True)
        return ids

    ids = asyncio.run(die())
    first = asyncio.run(run_sweeper(stack, tmp_path))
    assert first == {"settled": 0, "unknown": 2, "released": 1, "failed": 0}
    rows = [asyncio.run(ledger.get(request_id)) for request_id in ids]
    assert [row and row.outcome for row in rows] == [None, "unknown", "unknown"]
    seen = meter(dynamodb, f"key#{key_id}", stack.meter_table)
    assert (seen.leases(), sum(m["spent_pico_usd"] for m in seen.item["months"].values())) == ([], USD // 50)
    assert asyncio.run(run_sweeper(stack, tmp_path)) == {"settled": 0, "unknown": 0, "released": 0, "failed": 0}


FORBIDDEN = {
    # A ledger is only ever added to, by whoever; and chat cannot even read it.
    "ChatFunction": {
        "ledger": ["get_item", "query", "scan", "update_item", "delete_item", "batch_write_item", "delete_table"],
        "meters": ["scan", "query", "delete_item", "batch_write_item", "delete_table"],
    },
    "SweeperFunction": {
        "ledger": ["scan", "update_item", "delete_item", "batch_write_item", "delete_table"],
        "meters": ["query", "put_item", "delete_item", "batch_write_item", "delete_table"],
    },
    "AdminFunction": {
        "ledger": ["update_item", "delete_item", "batch_write_item", "delete_table"],
        "meters": ["delete_item", "batch_write_item", "delete_table"],
    },
    # What adds up and tells only reads what it adds up.
    **{
        function: {
            "ledger": [
                "get_item",
                "scan",
                "put_item",
                "update_item",
                "delete_item",
                "batch_write_item",
                "delete_table",
            ],
            "meters": ["query", "put_item", "update_item", "delete_item", "batch_write_item", "delete_table"],
        }
        for function in ("UsageFunction", "AlertsFunction", "DailyReportFunction")
    },
}
# It counts calls; that it may update nothing but those counts is a condition, which the emulator does not look at:
# tests/integration/test_iam_statements.py does.
FORBIDDEN["UsageFunction"]["meters"].remove("update_item")


@pytest.mark.parametrize("function", FORBIDDEN)
def test_a_function_that_is_taken_over_can_do_no_more_than_its_work(stack: RunningStack, function: str) -> None:
    """Each call is one that would succeed, or fail for another reason, if the role allowed it."""
    dynamodb = client_of(stack, function, "dynamodb")
    owner = stack.aws("dynamodb")
    tables = {"ledger": stack.ledger_table, "meters": stack.meter_table}
    keys = {
        "ledger": key_of(new_request_id(at_ms=0), SEOUL),
        "meters": to_item({"meter": "organisation"}),
    }
    for kind, calls in FORBIDDEN[function].items():
        table, key = tables[kind], keys[kind]
        for call in calls:
            arguments: dict[str, Any] = {"TableName": table}
            match call:
                case "get_item" | "delete_item":
                    arguments["Key"] = key
                case "update_item":
                    arguments |= {"Key": key, "UpdateExpression": "REMOVE cost_pico_usd"}
                case "put_item":
                    arguments["Item"] = key
                case "query":
                    name, value = next(iter(key.items()))
                    arguments |= {
                        "KeyConditionExpression": f"{name} = :value",
                        "ExpressionAttributeValues": {":value": value},
                    }
                case "batch_write_item":
                    arguments = {"RequestItems": {table: [{"DeleteRequest": {"Key": key}}]}}
                case _:
                    pass
            with pytest.raises(ClientError) as refused:
                getattr(dynamodb, call)(**arguments)
            assert refused.value.response["Error"]["Code"] == "AccessDeniedException", (kind, call)
    assert owner.describe_table(TableName=stack.ledger_table)["Table"]["TableStatus"] == "ACTIVE"


@pytest.mark.parametrize("function", ["SweeperFunction", "AdminFunction"])
def test_only_chat_reads_the_providers_keys_and_nobody_writes_them(stack: RunningStack, function: str) -> None:
    name = stack.gateway.stack.outputs["ProviderKeysSecret"]
    assert client_of(stack, "ChatFunction", "secretsmanager").get_secret_value(SecretId=name)["SecretString"]
    for who, call, more in (
        (function, "get_secret_value", {}),
        (function, "put_secret_value", {"SecretString": "{}"}),
        ("ChatFunction", "put_secret_value", {"SecretString": "{}"}),
    ):
        with pytest.raises(ClientError) as refused:
            getattr(client_of(stack, who, "secretsmanager"), call)(SecretId=name, **more)
        assert "AccessDenied" in refused.value.response["Error"]["Code"]
