"""Usage, alerts and the daily report of the deployed gateway, each function with its own role."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from local import history
from local.handler_pool import HandlerPool
from naru import cli
from naru.amounts import read_json, to_pico_usd
from naru.attributes import from_item, to_item
from naru.business_time import business_day
from naru.ledger import Row
from naru.ledger import from_item as row_of
from naru.periods import days_between, month_of
from naru.pricing import PICO_PER_USD
from naru.report_store import ReportStore
from naru.tally import Tally
from tests.accounts import OMNI
from tests.conftest import RunningStack
from tests.meters import put_key
from tests.usage_world import SEOUL, row
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.xdist_group("stack")


def get(stack: RunningStack, path: str, secret: str | None = None, /, **query: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {secret or stack.gateway.admin_key}"}
    return httpx.get(f"{stack.base_url}/{path}", params=query, headers=headers, timeout=PATIENCE_S, trust_env=False)


def read(stack: RunningStack, path: str, secret: str | None = None, /, **query: Any) -> Any:
    answer = get(stack, path, secret, **query)
    assert answer.status_code == 200, answer.text
    return read_json(answer.content)


def rows(stack: RunningStack) -> list[Row]:
    pages = stack.aws("dynamodb").get_paginator("scan").paginate(TableName=stack.ledger_table, ConsistentRead=True)
    return [row_of(item) for page in pages for item in page["Items"]]


def chat(stack: RunningStack, key: str, **body: Any) -> None:
    with openai.OpenAI(base_url=stack.base_url, api_key=key, max_retries=0) as sdk:
        sdk.chat.completions.create(model=OMNI, messages=[{"role": "user", "content": "안녕 [[sim tokens=7]]"}], **body)


async def run(stack: RunningStack, function: str, event: dict[str, Any], folder: Path) -> Any:
    """A scheduled function, in a runtime process of its own, with its role."""
    deployed = stack.gateway.stack
    pool = HandlerPool(deployed.functions[function], endpoint_url=deployed.emulator.url, log=folder / f"{function}.log", start=1, limit=1)  # fmt: skip
    async with pool.running():
        invocation = pool.invoke(json.dumps(event).encode(), trace_id="Root=1-0-0")
        await invocation.mode()
        return json.loads(b"".join([chunk async for chunk in invocation]))


@pytest.fixture(scope="module", autouse=True)
def months_that_are_rolled_up(stack: RunningStack) -> None:
    """As the alerts function leaves them: otherwise every question begins with a look at a month of empty days."""
    store = ReportStore(stack.aws("dynamodb"), stack.gateway.stack.outputs["ReportTable"])
    today = datetime.now(SEOUL).date()
    for day in days_between(today - timedelta(days=70), today - timedelta(days=2)):
        store.put_tally(f"days#{month_of(day)}", f"{day.day:02}", Tally())


@pytest.fixture(scope="module", autouse=True)
def a_usage_function_that_remembers_nothing(stack: RunningStack) -> None:
    """Another test has put rows of requests that arrived a quarter of an hour before, as no request can; what the
    processes there are have counted of that time is over for them.
    """
    stack.restart("UsageFunction")


@pytest.fixture(scope="module")
def told(stack: RunningStack) -> Iterator[Any]:
    """Everything that AlertsTopic is told, as a function that returns what is new."""
    sqs, sns = stack.aws("sqs"), stack.aws("sns")
    url = sqs.create_queue(QueueName="told")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    allow = {
        "Effect": "Allow",
        "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": arn,
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": policy})
    sns.subscribe(TopicArn=stack.gateway.stack.outputs["AlertsTopic"], Protocol="sqs", Endpoint=arn)

    def receive(wait_s: int = 0) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while batch := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=wait_s).get(
            "Messages"
        ):
            for message in batch:
                found.append(json.loads(message["Body"]))
                sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return found

    yield receive
    sqs.delete_queue(QueueUrl=url)


def test_what_was_asked_is_in_every_place_to_the_pico_dollar(stack: RunningStack) -> None:
    key = stack.new_api_key("usage app")
    chat(stack, key, user="u-1")
    chat(stack, key, max_tokens=5)
    written = rows(stack)
    mine = [each for each in written if each.key_id == key_id(key)]
    cost, own = sum(each.cost_pico_usd for each in written), sum(each.cost_pico_usd for each in mine)
    assert len(mine) == 2
    long_ago = (datetime.now(UTC) - timedelta(days=20)).date().isoformat()
    listed = read(stack, "usage", group_by="day,key,model", start=long_ago)
    assert pico(listed["total"]["cost_usd"]) == cost == sum(pico(each["cost_usd"]) for each in listed["data"])
    lines = [*csv.DictReader(io.StringIO(get(stack, "usage", group_by="key", format="csv", start=long_ago).text))]
    assert sum(pico(line["cost_usd"]) for line in lines) == cost
    assert next(line["key_name"] for line in lines if line["key_id"] == key_id(key)) == "usage app"
    first = str(min(each.arrived_at_ms for each in written) // 1000)
    costs = read(stack, "organization/costs", start_time=first, limit=180)
    assert sum(pico(result["amount"]["value"]) for bucket in costs["data"] for result in bucket["results"]) == cost
    tokens = read(stack, "organization/usage/completions", start_time=first, limit=31, group_by="api_key_id", **{"api_key_ids[]": key_id(key)})  # fmt: skip
    (result,) = [result for bucket in tokens["data"] for result in bucket["results"]]
    assert (result["api_key_id"], result["num_model_requests"]) == (key_id(key), 2)
    assert result["input_tokens"] == sum(each.usage.prompt_tokens for each in mine)
    seen = read(stack, "usage/summary")
    assert sum(pico(day["cost_usd"]) for day in seen["days"]) == cost
    assert {each["deployment"] for each in seen["health"]} >= {mine[0].deployment}
    (alone,) = read(stack, "usage/summary", key)["keys"]
    assert (alone["key_id"], alone["spent_usd"]) == (key_id(key), seen_cost(own))
    by_key = Counter[str]()
    for each in written:
        if business_day(each.arrived_at_ms, SEOUL).strftime("%Y-%m") == this_month():
            by_key[each.key_id] += each.cost_pico_usd
    most = sorted(by_key.values(), reverse=True)[: len(seen["keys"])]
    assert [pico(each["cost_usd"]) for each in seen["keys"]] == most


def this_month() -> str:
    return datetime.now(SEOUL).strftime("%Y-%m")


def seen_cost(pico_usd: int) -> Any:
    return read_json(f"{pico_usd // PICO_PER_USD}.{pico_usd % PICO_PER_USD:012}")


def key_id(secret: str) -> str:
    return f"key_{secret.split('-')[2]}"


def pico(usd: Any) -> int:
    from decimal import Decimal

    return to_pico_usd(Decimal(usd))


def test_an_apps_key_sees_itself_and_nothing_else(stack: RunningStack) -> None:
    key, other = stack.new_api_key("mine"), stack.new_api_key("other")
    chat(stack, key)
    chat(stack, other)
    listed = read(stack, "usage", key, group_by="key")
    assert [each["key_id"] for each in listed["data"]] == [key_id(key)]
    assert [each["key_id"] for each in read(stack, "usage/requests", key, key=key_id(other))["data"]] == [key_id(key)]
    seen = read(stack, "usage/summary", key)
    assert (seen["scope"], seen["key"]["name"], seen["today"]["requests"], seen["health"]) == ("key", "mine", 1, None)
    tokens = read(stack, "organization/costs", key, start_time=str(int(time.time()) - 3600), group_by="api_key_id")
    assert [each["api_key_id"] for bucket in tokens["data"] for each in bucket["results"]] == [key_id(key)]
    for path in ("usage/reports/yesterday", "usage/reports/2026-11"):
        assert get(stack, path, key).json()["error"]["code"] == "admin_key_required"
    assert httpx.post(f"{stack.base_url}/admin/alerts/test", headers={"Authorization": f"Bearer {key}"}, trust_env=False).status_code == 403  # fmt: skip
    assert get(stack, "usage", "sk-naru-unknown").status_code == 401
    wrong = get(stack, "usage", group_by="colour").json()["error"]
    assert (wrong["type"], wrong["param"]) == ("invalid_request_error", "group_by")


def test_a_test_alert_reaches_who_is_subscribed(stack: RunningStack, told: Any) -> None:
    headers = {"Authorization": f"Bearer {stack.gateway.admin_key}"}
    answer = httpx.post(f"{stack.base_url}/admin/alerts/test", headers=headers, timeout=PATIENCE_S, trust_env=False)
    assert answer.json() == {"object": "alert.test", "sent": True}
    assert [message["Subject"] for message in told()] == ["[Naru] Test of the alerts"]


def spend(stack: RunningStack, secret: str, share: float, *, less_pico_usd: int = 0) -> None:
    """What of a key's budget is spent, as its settled requests would leave it."""
    dynamodb, meter = stack.aws("dynamodb"), {"meter": {"S": f"key#{key_id(secret)}"}}
    item = from_item(dynamodb.get_item(TableName=stack.meter_table, Key=meter)["Item"])
    spent = round(item["budget_pico_usd"] * share) - less_pico_usd
    item["months"][this_month()] = {"available_pico_usd": item["budget_pico_usd"] - spent, "spent_pico_usd": spent}
    dynamodb.put_item(TableName=stack.meter_table, Item=to_item(item))


def budgeted(stack: RunningStack, name: str) -> str:
    from naru.meter_state import Limits

    limits = Limits(budget_pico_usd=100 * PICO_PER_USD)
    return put_key(stack.aws("dynamodb"), stack.meter_table, limits=limits, name=name, tags={}, created_at_ms=1)[1]


def test_the_alerts_function_tells_once_and_makes_roll_ups(stack: RunningStack, told: Any, tmp_path: Path) -> None:
    secret = budgeted(stack, "alerted")
    spend(stack, secret, 0.91)
    done = asyncio.run(run(stack, "AlertsFunction", {"crossed": {"meter": f"key#{key_id(secret)}", "month": this_month()}}, tmp_path))  # fmt: skip
    assert done == {"told": [f"{key_id(secret)}/90"]}
    (message,) = [message for message in told() if "of alerted is spent" in message["Subject"]]
    assert (message["Subject"].endswith("of alerted is spent (" + this_month() + ")"), "91 %" in message["Message"]) == (True, True)  # fmt: skip
    store = ReportStore(stack.aws("dynamodb"), stack.gateway.stack.outputs["ReportTable"])
    # The first run would look back for a month; two hours are enough to see it work.
    store.note("rolled", "hours", until_ms=time.time_ns() // 10**6 - 2 * 3_600_000)
    again = asyncio.run(run(stack, "AlertsFunction", {}, tmp_path))
    assert (f"{key_id(secret)}/90" in again["told"], again["rolled_hours"] >= 1) == (False, True)
    assert [message for message in told() if "of alerted is spent" in message["Subject"]] == []


def test_a_request_that_crosses_a_threshold_has_it_told_within_seconds(stack: RunningStack, told: Any) -> None:
    """From its settlement through Lambda and the alerts function to the topic; the next request tells nothing."""
    told()
    secret = budgeted(stack, "crossing")
    spend(stack, secret, 0.8, less_pico_usd=1)
    chat(stack, secret)
    chat(stack, secret)
    until_s = time.monotonic() + PATIENCE_S
    messages: list[dict[str, Any]] = []
    while not messages and time.monotonic() < until_s:
        messages = told(wait_s=1)
    assert [message["Subject"] for message in messages] == [
        f"[Naru] 80 % of the budget of crossing is spent ({this_month()})"
    ]


def test_an_alert_is_claimed_by_one_of_a_hundred(stack: RunningStack) -> None:
    """On the emulator's DynamoDB, from twenty threads at once."""
    store = ReportStore(stack.aws("dynamodb"), stack.gateway.stack.outputs["ReportTable"])
    now_ms = time.time_ns() // 10**6
    with ThreadPoolExecutor(20) as pool:
        won = list(pool.map(lambda _: store.claim("alerts#test", "once", now_ms=now_ms, lease_ms=60_000), range(100)))
    assert sum(won) == 1


def test_the_daily_report_is_stored_and_told(stack: RunningStack, told: Any, tmp_path: Path) -> None:
    yesterday = datetime.now(SEOUL).date() - timedelta(days=1)
    at = datetime(yesterday.year, yesterday.month, yesterday.day, 12, tzinfo=SEOUL)
    made = row(int(at.timestamp()) * 1000, key_id="key_yesterday", cost_pico_usd=1_234_567_890_123)
    history.put_rows(stack.aws("dynamodb"), stack.ledger_table, [made], SEOUL)
    outputs = stack.gateway.stack.outputs
    # Yesterday may have been rolled up without the row; counted anew it is in.
    counted = asyncio.run(run(stack, "DailyReportFunction", {"day": yesterday.isoformat()}, tmp_path))
    assert counted == {"stored": f"daily/{yesterday:%Y/%m}/{yesterday}.json"}
    done = asyncio.run(run(stack, "DailyReportFunction", {}, tmp_path))
    again = asyncio.run(run(stack, "DailyReportFunction", {}, tmp_path))
    messages = [message for message in told() if message["Subject"].startswith(f"[Naru] {yesterday}")]
    # A process that died in another test may keep the day open; then the report waits, as it should.
    if done["sent"]:
        assert (done, again) == ({"sent": [yesterday.isoformat()]}, {"sent": []})
        assert len(messages) == 1
        name = f"daily/{yesterday:%Y/%m}/{yesterday}.json"
        stored = read_json(stack.aws("s3").get_object(Bucket=outputs["ReportsBucket"], Key=name)["Body"].read())
        assert pico(next(each for each in stored["by_key"] if each["key_id"] == "key_yesterday")["cost_usd"]) == made.cost_pico_usd  # fmt: skip
    shown = read(stack, f"usage/reports/{yesterday}")
    assert pico(next(each for each in shown["by_key"] if each["key_id"] == "key_yesterday")["cost_usd"]) == made.cost_pico_usd  # fmt: skip
    assert get(stack, "usage/reports/yesterday", format="html").text.startswith("<!DOCTYPE html>")
    assert "나루" in get(stack, "usage/reports/yesterday", format="text", language="ko").text


def naru(stack: RunningStack, *arguments: str) -> int:
    return cli.main([*arguments, "--base-url", stack.base_url, "--admin-key", stack.gateway.admin_key])


def test_the_command_shows_reports_in_every_form(
    stack: RunningStack, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    chat(stack, stack.new_api_key("command"))
    today = datetime.now(SEOUL).date().isoformat()
    cost = sum(
        each.cost_pico_usd for each in rows(stack) if business_day(each.arrived_at_ms, SEOUL).isoformat() == today
    )
    assert naru(stack, "report", "--date", today, "--format", "json") == 0
    assert pico(read_json(capsys.readouterr().out)["total"]["cost_usd"]) == cost
    assert naru(stack, "report", "--date", today, "--language", "ko") == 0
    table = capsys.readouterr().out
    assert all(words in table for words in ("비용", "키별", "command", "일별 비용"))
    assert naru(stack, "report", "--date", today, "--format", "csv") == 0
    lines = [*csv.DictReader(io.StringIO(capsys.readouterr().out))]
    assert sum(int(line["cost_pico_usd"]) for line in lines) == cost
    file = tmp_path / "month.html"
    assert naru(stack, "report", "--month", today[:7], "--format", "html", "--output", str(file)) == 0
    assert file.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert naru(stack, "report") == 0
    assert naru(stack, "report", "--date", "2199-01-01") == 1
    assert "has not begun yet" in capsys.readouterr().err
    assert naru(stack, "report", "--output", "x.txt") == 2


def test_the_command_sends_a_test_alert(stack: RunningStack, told: Any, capsys: pytest.CaptureFixture[str]) -> None:
    told()
    assert naru(stack, "alerts", "test") == 0
    assert "AlertsTopic" in capsys.readouterr().err
    assert [message["Subject"] for message in told()] == ["[Naru] Test of the alerts"]
