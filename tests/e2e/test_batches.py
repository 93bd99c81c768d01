"""Files and batches with the stock OpenAI SDK, against the whole gateway: uploads, lines, limits, ends."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import openai
import pytest

from naru import cli
from naru.attributes import to_item
from naru.meter_state import Limits
from tests.batches import OMNI, assert_each_once, contents, line, rows_of, submit, wait
from tests.conftest import RunningStack
from tests.meters import USD, put_key
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.xdist_group("stack")


@pytest.fixture
def client(stack: RunningStack) -> Iterator[openai.OpenAI]:
    stack.model.reset_stats()
    stack.model.clear_control()
    # A key of its own: what belongs to it is only what the test has made.
    with openai.OpenAI(base_url=stack.base_url, api_key=stack.new_api_key("batch"), max_retries=0) as client:
        yield client
    stack.model.clear_control()


# ── Files ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_is_uploaded_listed_read_and_deleted(client: openai.OpenAI) -> None:
    content = (line("하나", "서울의 가을") + "\r\n").encode()
    file = client.files.create(
        file=("질문.jsonl", content), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (file.bytes, file.filename, file.purpose, file.status) == (len(content), "질문.jsonl", "batch", "processed")
    assert file.expires_at == file.created_at + 3600
    second = client.files.create(file=content, purpose="batch")
    assert [found.id for found in client.files.list()] == [second.id, file.id]
    assert [found.id for found in client.files.list(order="asc", limit=1)] == [file.id, second.id]
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).content == content
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError, match="No such File object"):
        client.files.retrieve(file.id)
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)


def test_another_keys_files_and_batches_are_not_there(stack: RunningStack, client: openai.OpenAI) -> None:
    batch = submit(client, [line("a", "[[sim tokens=2]]")])
    with openai.OpenAI(base_url=stack.base_url, api_key=stack.new_api_key("other"), max_retries=0) as other:
        for call in (
            lambda: other.files.retrieve(batch.input_file_id),
            lambda: other.files.content(batch.input_file_id),
            lambda: other.files.delete(batch.input_file_id),
            lambda: other.batches.retrieve(batch.id),
            lambda: other.batches.cancel(batch.id),
        ):
            with pytest.raises(openai.NotFoundError):
                call()
        with pytest.raises(openai.BadRequestError, match="No such File object"):
            other.batches.create(
                input_file_id=batch.input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
            )
        assert other.files.list().data == []
        assert other.batches.list().data == []
    assert wait(client, batch.id).status == "completed"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "assistants"}, "purpose"),
        ({"purpose": "batch", "expires_after": {"anchor": "created_at", "seconds": 60}}, "expires_after"),
    ],
)
def test_an_upload_that_makes_no_sense_is_refused(client: openai.OpenAI, fields: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=b"{}", **fields)
    assert refused.value.param == param


def test_what_is_no_form_is_refused(stack: RunningStack) -> None:
    headers = {"authorization": f"Bearer {stack.api_key}"}
    answer = httpx.post(f"{stack.base_url}/files", json={"purpose": "batch"}, headers=headers)
    assert answer.status_code == 400
    assert "multipart/form-data" in answer.json()["error"]["message"]
    assert httpx.post(f"{stack.base_url}/files", json={}).status_code == 401


def test_a_file_too_large_for_a_form_goes_to_s3_and_comes_from_there(
    stack: RunningStack, client: openai.OpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The refusal says how; the command does it by itself; the SDK follows to S3 for the content."""
    padding = "가" * 1000
    lines = [line(f"r{i}", padding + " [[sim tokens=2]]") for i in range(3)]
    content = "\n".join([*lines, " " * 5_000_000]).encode()
    with pytest.raises(openai.APIStatusError) as refused:
        client.files.create(file=content, purpose="batch")
    assert refused.value.status_code == 413
    assert "/v1/uploads/presigned" in refused.value.message
    file = tmp_path / "large.jsonl"
    file.write_bytes(content)
    monkeypatch.setenv("NARU_BASE_URL", stack.base_url)
    monkeypatch.setenv("NARU_API_KEY", client.api_key)
    assert cli.main(["batch", "submit", str(file), "--wait"]) == 0
    (batch,) = client.batches.list().data
    assert capsys.readouterr().out.strip() == batch.id
    assert batch.request_counts is not None
    assert batch.request_counts.completed == 3
    assert client.files.content(batch.input_file_id).content == content
    # Submitted again it is the same batch; its results come by the file's name.
    assert cli.main(["batch", "submit", str(file)]) == 0
    assert [found.id for found in client.batches.list()] == [batch.id]
    assert cli.main(["batch", "results", str(file), "--output", str(tmp_path / "out.jsonl")]) == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3


def test_an_upload_is_completed_only_with_all_of_its_bytes(stack: RunningStack, client: openai.OpenAI) -> None:
    headers = {"authorization": f"Bearer {client.api_key}"}
    asked = {"filename": "in.jsonl", "bytes": 10, "purpose": "batch"}
    upload = httpx.post(f"{stack.base_url}/uploads/presigned", json=asked, headers=headers).json()
    complete = f"{stack.base_url}/uploads/{upload['id']}/complete"
    assert httpx.post(complete, headers=headers).json()["error"]["code"] == "upload_incomplete"
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(upload["id"])
    assert httpx.put(upload["url"], content=b"0123456789").is_success
    other = {"authorization": f"Bearer {stack.new_api_key('other')}"}
    assert httpx.post(complete, headers=other).status_code == 404
    assert httpx.post(complete, headers=headers).json()["id"] == upload["id"]
    assert httpx.post(complete, headers=headers).json()["bytes"] == 10
    assert client.files.content(upload["id"]).content == b"0123456789"


def test_what_was_completed_is_what_runs_whatever_is_sent_to_its_url_later(
    stack: RunningStack, client: openai.OpenAI
) -> None:
    """The URL takes other bytes of the same size for an hour: before the batch is made, and while it runs."""
    headers = {"authorization": f"Bearer {client.api_key}"}
    content = "\n".join(line(f"u{i}", f"{i} [[sim tokens=2]]") for i in range(30)).encode()
    other = content.replace(b"custom_id", b"custom_ix")
    asked = {"filename": "in.jsonl", "bytes": len(content), "purpose": "batch"}
    upload = httpx.post(f"{stack.base_url}/uploads/presigned", json=asked, headers=headers).json()
    assert httpx.put(upload["url"], content=content).is_success
    complete = f"{stack.base_url}/uploads/{upload['id']}/complete"
    assert httpx.post(complete, headers=headers).json()["status"] == "processed"
    assert httpx.put(upload["url"], content=other).is_success
    assert httpx.post(complete, headers=headers).json()["status"] == "processed"
    assert client.files.content(upload["id"]).content == content
    stack.model.control({"latency": {"first_token_ms": 200}})
    batch = client.batches.create(input_file_id=upload["id"], endpoint="/v1/chat/completions", completion_window="24h")
    wait(client, batch.id, until=lambda now: now.status == "in_progress")
    assert httpx.put(upload["url"], content=other).is_success
    batch = wait(client, batch.id)
    output, errors = contents(client, batch)
    assert_each_once(batch, [f"u{i}" for i in range(30)], output, errors)
    assert (batch.status, errors) == ("completed", [])
    assert len(stack.model.stats()["billed"]) == 30
    assert client.files.delete(upload["id"]).deleted


# ── Batches ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_from_upload_to_results(stack: RunningStack, client: openai.OpenAI) -> None:
    """Bad requests among good ones: each custom_id once, rows as the provider's bill, one notification."""
    sns, sqs = stack.aws("sns"), stack.aws("sqs")
    queue = sqs.create_queue(QueueName=f"told-{time.time_ns()}")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    allow = {
        "Effect": "Allow",
        "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": arn,
    }
    sqs.set_queue_attributes(
        QueueUrl=queue, Attributes={"Policy": json.dumps({"Version": "2012-10-17", "Statement": [allow]})}
    )
    topic = stack.gateway.stack.outputs["BatchTopic"]
    subscription = sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)["SubscriptionArn"]
    count = 1000 if stack.long_tests else 60
    lines = [line(f"q{i}", f"질문 {i} [[sim tokens=3]]") for i in range(count)]
    bad = {f"q{i}" for i in range(0, count, 20)}
    for i in range(0, count, 20):
        lines[i] = line(f"q{i}", temperature=7)
    batch = submit(client, lines, metadata={"무엇": "시험"})
    assert batch.status == "validating"
    assert batch.expires_at == batch.created_at + 86_400
    batch = wait(client, batch.id)
    assert batch.status == "completed"
    assert batch.metadata == {"무엇": "시험"}
    assert batch.model == OMNI
    assert None not in {batch.in_progress_at, batch.finalizing_at, batch.completed_at}
    assert batch.errors is None
    output, errors = contents(client, batch)
    assert_each_once(batch, [f"q{i}" for i in range(count)], output, errors)
    assert {part["custom_id"] for part in errors} == bad
    for part in errors:
        assert (part["response"]["status_code"], part["error"]) == (400, None)
        assert part["response"]["body"]["error"]["param"] == "temperature"
    rows, stats = rows_of(stack, batch.id), stack.model.stats()
    assert {part["response"]["request_id"] for part in output} == set(rows)
    assert {row["client_request_id"]: row["cost_pico_usd"] for row in stats["billed"]} == {
        request_id: row.cost_pico_usd for request_id, row in rows.items()
    }
    assert batch.usage is not None
    assert batch.usage.output_tokens == sum(row.usage.completion_tokens for row in rows.values()) == 3 * len(output)
    assert batch.usage.total_tokens == sum(row.usage.total_tokens for row in rows.values())
    told = [
        json.loads(json.loads(message["Body"])["Message"])
        for message in sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=5)["Messages"]
    ]
    assert [(each["id"], each["status"]) for each in told if each["id"] == batch.id] == [(batch.id, "completed")]
    sns.unsubscribe(SubscriptionArn=subscription)
    assert client.batches.list(limit=1).data[0].id == batch.id
    with pytest.raises(openai.ConflictError, match="completed"):
        client.batches.cancel(batch.id)


def test_a_batch_of_bad_lines_fails_with_their_numbers(client: openai.OpenAI) -> None:
    good = line("a")
    lines = [
        good,
        "",
        "{not json",
        good,
        line("b", model="gpt-4.1"),
        good.replace('"a"', '"c"').replace("/v1/chat", "/v1/other"),
        '{"custom_id": "d"}',
    ]
    batch = wait(client, submit(client, lines).id)
    assert batch.status == "failed"
    assert batch.failed_at
    assert batch.errors is not None
    assert [(error.code, error.line, error.param) for error in batch.errors.data or []] == [
        ("invalid_json_line", 3, None),
        ("duplicate_custom_id", 4, "custom_id"),
        ("model_mismatch", 5, "body.model"),
        ("url_mismatch", 6, "url"),
        ("missing_required_parameter", 7, "method"),
    ]
    assert batch.output_file_id is None
    assert wait(client, submit(client, ["", " "]).id).errors.data[0].code == "empty_file"  # type: ignore[union-attr,index]


def test_an_endpoint_that_is_not_served_is_refused_at_once(client: openai.OpenAI) -> None:
    file = client.files.create(file=line("a").encode(), purpose="batch")
    with pytest.raises(openai.BadRequestError) as refused:
        client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
    assert refused.value.param == "endpoint"
    assert "/v1/chat/completions" in refused.value.message


def test_requests_that_come_with_the_batch(stack: RunningStack, client: openai.OpenAI) -> None:
    """What the tutorial's `process_batch` does: prompts in, indexed results out."""
    headers = {"authorization": f"Bearer {client.api_key}"}
    prompts: list[dict[str, Any]] = [
        {"prompt": f"질문 {i} [[sim tokens=3]]", "system": "짧게", "temperature": 0.5, "max_tokens": 20}
        for i in range(5)
    ]
    prompts[3] = {"custom_id": "나쁜", "prompt": "x", "temperature": 9}
    created = httpx.post(f"{stack.base_url}/batches", json={"requests": prompts}, headers=headers)
    assert created.status_code == 200, created.text
    url = f"{stack.base_url}/batches/{created.json()['id']}/results"
    assert wait(client, created.json()["id"]).status == "completed"
    first = httpx.get(url, params={"limit": 3}, headers=headers).json()
    assert [(r["index"], r["custom_id"], r["status"]) for r in first["data"]] == [
        (i, f"request-{i}", "success") for i in range(3)
    ]
    assert first["has_more"]
    assert first["data"][0]["data"]["choices"][0]["message"]["content"]
    rest = httpx.get(url, params={"after": first["last_id"]}, headers=headers).json()
    assert [(r["index"], r["custom_id"], r["status"]) for r in rest["data"]] == [
        (3, "나쁜", "error"),
        (4, "request-4", "success"),
    ]
    assert rest["data"][0]["error"]["status_code"] == 400
    assert not rest["has_more"]
    refused = httpx.post(
        f"{stack.base_url}/batches", json={"requests": [{"prompt": "a"}, {"messages": 3}]}, headers=headers
    )
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "requests[1].messages")


def test_a_cancelled_batch_ends_what_is_on_its_way_and_begins_nothing(
    stack: RunningStack, client: openai.OpenAI
) -> None:
    stack.model.control({"latency": {"first_token_ms": 400}})
    batch = submit(client, [line(f"c{i}", f"{i} [[sim tokens=2]]") for i in range(150)])
    wait(client, batch.id, until=lambda _: len(stack.model.stats()["billed"]) >= 5)
    cancelled = client.batches.cancel(batch.id)
    assert cancelled.status == "cancelling"
    assert cancelled.cancelling_at
    assert client.batches.cancel(batch.id).id == batch.id
    with pytest.raises(openai.ConflictError, match="input of a batch"):
        client.files.delete(batch.input_file_id)
    batch = wait(client, batch.id)
    assert (batch.status, batch.cancelled_at is not None) == ("cancelled", True)
    output, errors = contents(client, batch)
    assert_each_once(batch, [f"c{i}" for i in range(150)], output, errors)
    assert {part["error"]["code"] for part in errors} == {"batch_cancelled"}
    # Each answer that was paid for is there, and no more were bought.
    assert 5 <= len(output) < 100
    assert len(output) == len(stack.model.stats()["billed"]) == len(rows_of(stack, batch.id))


@pytest.mark.slow
def test_the_end_of_a_budget_ends_the_rest_of_the_batch(stack: RunningStack) -> None:
    """Three requests' worth: what fits is answered, the others are not called, and the meter is exact."""
    now = datetime.now(ZoneInfo("Asia/Seoul"))
    if (now + timedelta(hours=25)).month != now.month:
        pytest.skip("a batch waits for the month that begins before its end")
    stack.model.reset_stats()
    worst_pico_usd = 3_500_000 * 300 + 10_500_000 * 64
    limits = Limits(budget_pico_usd=3 * worst_pico_usd)
    _, secret = put_key(stack.aws("dynamodb"), stack.meter_table, limits=limits)
    with openai.OpenAI(base_url=stack.base_url, api_key=secret, max_retries=0) as client:
        batch = wait(client, submit(client, [line(f"b{i}", "값 [[sim tokens=60]]") for i in range(25)]).id)
        assert batch.status == "completed"
        output, errors = contents(client, batch)
        assert_each_once(batch, [f"b{i}" for i in range(25)], output, errors)
    assert {part["error"]["code"] for part in errors} == {"insufficient_quota"}
    assert 1 <= len(output) < 25
    assert sum(row.cost_pico_usd for row in rows_of(stack, batch.id).values()) <= limits.budget_pico_usd
    assert len(stack.model.stats()["billed"]) == len(output)


def test_a_key_that_is_switched_off_ends_its_batch(stack: RunningStack) -> None:
    stack.model.reset_stats()
    key_id, secret = put_key(stack.aws("dynamodb"), stack.meter_table, limits=Limits(budget_pico_usd=USD))
    stack.model.control({"latency": {"first_token_ms": 300}})
    with openai.OpenAI(base_url=stack.base_url, api_key=secret, max_retries=0) as client:
        batch = submit(client, [line(f"o{i}", f"{i} [[sim tokens=2]]") for i in range(120)])
        wait(client, batch.id, until=lambda _: len(stack.model.stats()["billed"]) >= 3)

        def switch(*, on: bool) -> None:
            stack.aws("dynamodb").update_item(
                TableName=stack.meter_table,
                Key=to_item({"meter": f"key#{key_id}"}),
                UpdateExpression="SET enabled = :on",
                ExpressionAttributeValues=to_item({":on": on}),
            )

        switch(on=False)
        limit_s = time.monotonic() + PATIENCE_S
        while (stored := stored_batch(stack, key_id, batch.id))["phase"] != {"S": "completed"}:
            assert time.monotonic() < limit_s, stored
            time.sleep(0.1)
        switch(on=True)
        batch = client.batches.retrieve(batch.id)
        output, errors = contents(client, batch)
        assert_each_once(batch, [f"o{i}" for i in range(120)], output, errors)
    assert {part["error"]["code"] for part in errors} == {"api_key_invalid"}
    assert len(output) == len(stack.model.stats()["billed"])
    stack.model.clear_control()


def stored_batch(stack: RunningStack, key_id: str, batch_id: str) -> dict[str, Any]:
    """A batch as it lies in the table."""
    key = to_item({"shelf": f"batches#{key_id}", "entry": batch_id})
    table = stack.gateway.stack.outputs["BatchTable"]
    item: dict[str, Any] = stack.aws("dynamodb").get_item(TableName=table, Key=key, ConsistentRead=True)["Item"]
    return item


def test_a_key_with_few_requests_a_minute_waits_and_loses_nothing(stack: RunningStack) -> None:
    """At its limit a line goes back into the queue; it neither fails nor costs a waiting function."""
    stack.model.reset_stats()
    _, secret = put_key(stack.aws("dynamodb"), stack.meter_table, limits=Limits(rpm=10))
    with openai.OpenAI(base_url=stack.base_url, api_key=secret, max_retries=0) as client:
        batch = submit(client, [line(f"w{i}", f"{i} [[sim tokens=2]]") for i in range(14)])
        batch = wait(client, batch.id, until=lambda _: len(stack.model.stats()["billed"]) >= 6)
        assert batch.status == "in_progress"
        client.batches.cancel(batch.id)
        batch = wait(client, batch.id)
        output, errors = contents(client, batch)
    assert_each_once(batch, [f"w{i}" for i in range(14)], output, errors)
    assert {part["error"]["code"] for part in errors} == {"batch_cancelled"}
    # A fifth of the minute is left to those who wait for their answers.
    assert 6 <= len(output) <= 10
