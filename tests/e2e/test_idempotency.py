"""Idempotency-Key through the whole gateway: several processes, a real ``kill -9``, the stock OpenAI SDK."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from naru.ledger import Row, from_item
from tests.conftest import RunningStack
from tests.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.xdist_group("stack")

OMNI = "hyperclova-x-omni"
LEASE_S = 1.0


class App:
    """A mobile app with an API key of its own."""

    def __init__(self, stack: RunningStack) -> None:
        self.stack = stack
        secret = stack.new_api_key("app")
        self.key_id = "key_" + secret.removeprefix("sk-naru-")[:12]
        self.http = httpx.Client(
            base_url=stack.base_url, headers={"Authorization": f"Bearer {secret}"}, timeout=PATIENCE_S
        )
        self.sdk = openai.OpenAI(base_url=stack.base_url, api_key=secret, max_retries=0)

    def post(self, key: str, prompt: str, **fields: Any) -> httpx.Response:
        """A request as it goes over the wire."""
        body = {"model": OMNI, "messages": [{"role": "user", "content": prompt}]} | fields
        return self.http.post("/chat/completions", json=body, headers={"Idempotency-Key": key})

    @property
    def rows(self) -> list[Row]:
        """What this app has been charged for."""
        pages = self.stack.aws("dynamodb").get_paginator("scan").paginate(TableName=self.stack.ledger_table)
        rows = [row for page in pages for row in map(from_item, page["Items"])]
        return [row for row in rows if row.key_id == self.key_id]

    @property
    def calls(self) -> int:
        """How often the provider was called."""
        requests: int = self.stack.model.stats()["requests"]
        return requests


@pytest.fixture
def app(stack: RunningStack) -> Iterator[App]:
    stack.model.reset_stats()
    stack.model.clear_control()
    app = App(stack)
    yield app
    app.http.close()
    app.sdk.close()


@pytest.fixture
def key() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def short_lease(stack: RunningStack) -> Iterator[None]:
    """All processes are new ones, who take an owner for dead after two seconds without a sign of life."""
    environment = stack.door.pools["ChatFunction"].environment
    environment["NARU_IDEMPOTENCY_LEASE_S"] = str(LEASE_S)
    stack.restart("ChatFunction")
    yield
    del environment["NARU_IDEMPOTENCY_LEASE_S"]
    stack.restart("ChatFunction")


def test_of_ten_requests_at_the_same_moment_one_calls_the_provider(app: App, key: str) -> None:
    with ThreadPoolExecutor(10) as pool:
        prompt = "안녕 [[sim tokens=30 ttft_ms=400]]"
        answers = list(pool.map(lambda _: app.post(key, prompt), range(10)))
    assert [answer.status_code for answer in answers] == [200] * 10
    assert len({answer.content for answer in answers}) == 1
    assert len({answer.headers["x-request-id"] for answer in answers}) == 1
    assert sorted("idempotency-replayed" in answer.headers for answer in answers) == [False] + [True] * 9
    assert (app.calls, len(app.rows)) == (1, 1)


def test_of_ten_streams_at_the_same_moment_one_calls_the_provider(app: App, key: str) -> None:
    with ThreadPoolExecutor(10) as pool:
        prompt = "안녕 [[sim tokens=30 token_ms=20]]"
        answers = list(pool.map(lambda _: app.post(key, prompt, stream=True), range(10)))
    assert {answer.headers["content-type"] for answer in answers} == {"text/event-stream; charset=utf-8"}
    assert len({answer.content for answer in answers}) == 1
    assert answers[0].content.endswith(b"data: [DONE]\n\n")
    assert (app.calls, len(app.rows)) == (1, 1)


def test_the_stock_sdk_sends_it_and_reads_what_is_replayed(app: App, key: str) -> None:
    def ask(stream: bool) -> Any:
        return app.sdk.chat.completions.create(
            model=OMNI,
            messages=[{"role": "user", "content": "안녕 [[sim tokens=12]]"}],
            stream=stream,
            extra_headers={"Idempotency-Key": f"{key}-{stream}"},
        )

    assert ask(False) == ask(False)
    first, second = (list(ask(True)) for _ in range(2))
    assert first == second
    assert len({chunk.id for chunk in first}) == 1
    assert (app.calls, len(app.rows)) == (2, 2)


def test_the_sdk_does_not_repeat_a_key_that_came_with_another_body(app: App, key: str) -> None:
    app.post(key, "안녕")
    with pytest.raises(openai.ConflictError) as refused:
        app.sdk.with_options(max_retries=2).chat.completions.create(
            model=OMNI,
            messages=[{"role": "user", "content": "다른 말"}],
            extra_headers={"Idempotency-Key": key},
        )
    assert refused.value.code == "idempotency_key_reused"
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert app.calls == 1


def test_a_replay_takes_nothing_from_the_limits(app: App, key: str) -> None:
    first = app.post(key, "안녕")
    replayed = [app.post(key, "안녕") for _ in range(3)]
    other = app.post(key + "2", "안녕")
    left = [int(answer.headers["x-ratelimit-remaining-requests"]) for answer in (first, *replayed, other)]
    # The rest of the minute's allowance may come back meanwhile, so only what is taken is looked at.
    assert left[0] <= min(left[1:4])
    assert app.calls == 2


def test_who_leaves_in_mid_stream_is_given_the_whole_answer_when_it_comes_back(app: App, key: str) -> None:
    prompt = "안녕 [[sim tokens=40 token_ms=20]]"
    body = {"model": OMNI, "messages": [{"role": "user", "content": prompt}], "stream": True}
    with app.http.stream("POST", "/chat/completions", json=body, headers={"Idempotency-Key": key}) as answer:
        request_id = answer.headers["x-request-id"]
        first = next(answer.iter_bytes())
    retry = app.post(key, prompt, stream=True)
    assert retry.headers["idempotency-replayed"] == "true"
    assert retry.headers["x-request-id"] == request_id
    assert retry.content.startswith(first[:40])
    assert retry.content.endswith(b"data: [DONE]\n\n")
    (row,) = app.rows
    assert (row.request_id, row.outcome, row.usage.completion_tokens, app.calls) == (request_id, "completed", 40, 1)


@pytest.mark.usefixtures("providers_without_a_past")
def test_a_failure_is_tried_again_with_the_same_key(app: App, key: str) -> None:
    prompt = "안녕 [[sim tokens=5 id=x fault=status:503,times=3]]"
    failed, served = (app.post(key, prompt) for _ in range(2))
    assert (failed.status_code, served.status_code) == (503, 200)
    assert "idempotency-replayed" not in served.headers
    assert app.calls == 4


@pytest.mark.usefixtures("short_lease")
@pytest.mark.parametrize("stream", [False, True])
def test_after_a_kill_the_retry_is_answered_within_a_lease(app: App, key: str, stream: bool) -> None:
    prompt = f"안녕 [[sim tokens=25 id={key} fault=slow_first_token:25000,times=1]]"
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(app.post, key, prompt, stream=stream)
        eventually(lambda: app.calls == 1)
        time.sleep(LEASE_S * 1.2)  # it lives on by renewing
        app.stack.door.kill_handler("ChatFunction", in_flight=True)
        served = app.post(key, prompt, stream=stream)
        lost = first.exception()
        assert lost is not None or first.result().status_code == 502
    assert served.status_code == 200
    assert "idempotency-replayed" not in served.headers
    assert app.calls == 2
    again = app.post(key, prompt, stream=stream)
    assert (again.content, again.headers["idempotency-replayed"]) == (served.content, "true")
    # The dead one's lease is the sweeper's to end; the retry has a row of its own.
    assert [row.request_id for row in app.rows] == [served.headers["x-request-id"]]


def test_a_large_answer_lies_in_the_bucket_until_it_is_asked_for_again(app: App, key: str) -> None:
    fields = {"n": 5, "logprobs": True, "top_logprobs": 10}
    first, again = (app.post(key, "안녕 [[sim tokens=1500 token_ms=0 ttft_ms=0]]", **fields) for _ in range(2))
    assert first.status_code == 200
    assert len(json.loads(first.content)["choices"]) == 5
    bucket = app.stack.gateway.stack.physical_ids["AnswersBucket"]
    found = app.stack.aws("s3").list_objects_v2(Bucket=bucket, Prefix=app.key_id)
    assert [kept["Size"] > 350 * 1024 for kept in found.get("Contents", [])] == [True]
    assert (again.content, again.headers["idempotency-replayed"], app.calls) == (first.content, "true", 1)
