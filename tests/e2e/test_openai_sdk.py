"""The stock OpenAI SDK against the whole gateway: front door, real Lambda runtime, emulator, simulated model."""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion

from naru.ledger import Row, from_item
from tests.conftest import RunningStack
from tests.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.xdist_group("stack")

OMNI = "hyperclova-x-omni"
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "도시의 날씨",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def say(text: str) -> Any:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module", autouse=True)
def forgiven(stack: RunningStack) -> None:
    """Tests of other modules have made the providers fail again and again."""
    stack.forgive_providers()


@pytest.fixture
def client(stack: RunningStack) -> Iterator[openai.OpenAI]:
    stack.model.reset_stats()
    stack.model.clear_control()
    with openai.OpenAI(base_url=stack.base_url, api_key=stack.api_key, max_retries=0) as client:
        yield client


def rows(stack: RunningStack) -> dict[str, Row]:
    """All rows of the ledger by request id."""
    pages = stack.aws("dynamodb").get_paginator("scan").paginate(TableName=stack.ledger_table)
    return {row.request_id: row for page in pages for row in map(from_item, page["Items"])}


# ── Answers ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_korean_answer_with_its_usage_headers_and_row(stack: RunningStack, client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model=OMNI, messages=say("서울의 가을을 소개해 주세요."))
    answer = raw.parse()
    assert isinstance(answer, ChatCompletion)
    assert answer.choices[0].finish_reason == "stop"
    assert any("가" <= letter <= "힣" for letter in answer.choices[0].message.content or "")
    assert (raw.headers["x-naru-model"], raw.headers["x-naru-deployment"]) == (OMNI, f"holysheep/{OMNI}")
    assert int(raw.headers["openai-processing-ms"]) >= 0
    row = rows(stack)[raw.headers["x-request-id"]]
    assert answer.usage is not None
    assert (row.usage.prompt_tokens, row.usage.completion_tokens) == (
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
    )


def test_tokens_arrive_as_the_model_emits_them(client: openai.OpenAI) -> None:
    started_s = time.monotonic()
    stream = client.chat.completions.create(
        model=OMNI, messages=say("안녕 [[sim tokens=20 ttft_ms=100 token_ms=50]]"), stream=True
    )
    arrived_s = [time.monotonic() - started_s for chunk in stream if chunk.choices and chunk.choices[0].delta.content]
    assert len(arrived_s) == 20
    # One block would bring them all within a moment; the model took 19 times 50 ms between the first and the last.
    assert arrived_s[-1] - arrived_s[0] > 0.5


def test_usage_is_streamed_to_who_asks(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=OMNI, messages=say("안녕 [[sim tokens=9]]"), stream=True, stream_options={"include_usage": True}
    )
    *before, last = list(stream)
    assert last.usage is not None
    assert (last.choices, last.usage.completion_tokens) == ([], 9)
    assert all(chunk.usage is None for chunk in before)


def test_tools_are_called_in_parallel_and_answered(client: openai.OpenAI) -> None:
    messages = say("서울과 부산의 날씨는?")
    first = client.chat.completions.create(model=OMNI, messages=messages, tools=[WEATHER])
    calls: Any = first.choices[0].message.tool_calls
    assert first.choices[0].finish_reason == "tool_calls"
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["서울", "부산"]
    messages += [first.choices[0].message] + [
        {"role": "tool", "tool_call_id": call.id, "content": "맑음, 18도"} for call in calls
    ]
    second = client.chat.completions.create(model=OMNI, messages=messages, tools=[WEATHER])
    assert "맑음, 18도" in (second.choices[0].message.content or "")


def test_tool_calls_are_streamed_with_their_index(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=OMNI, messages=say("서울과 부산의 날씨는?"), tools=[WEATHER]) as stream:
        final = stream.get_final_completion()
    calls: Any = final.choices[0].message.tool_calls
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["서울", "부산"]


def test_an_image_is_seen(client: openai.OpenAI) -> None:
    pixel = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    content = [{"type": "text", "text": "무엇이 보이나요?"}, {"type": "image_url", "image_url": {"url": pixel}}]
    answer = client.chat.completions.create(model=OMNI, messages=[{"role": "user", "content": content}])  # type: ignore[misc,list-item]
    assert "사진 1장" in (answer.choices[0].message.content or "")


def test_structured_output_is_structured(client: openai.OpenAI) -> None:
    schema: dict[str, object] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    answer = client.chat.completions.create(
        model=OMNI,
        messages=say("서울"),
        response_format={"type": "json_schema", "json_schema": {"name": "place", "schema": schema}},
    )
    assert set(json.loads(answer.choices[0].message.content or "")) == {"city"}


def test_choices_seed_stop_logprobs_and_fields_of_other_vendors_pass(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=OMNI,
        messages=say("안녕 [[sim tokens=30]]"),
        n=2,
        seed=7,
        logprobs=True,
        top_logprobs=2,
        extra_body={"top_k": 40, "chat_template_kwargs": {"thinking": False}},
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].logprobs is not None
    assert answer.system_fingerprint


def test_a_field_whose_cost_nobody_knows_is_refused_by_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=OMNI, messages=say("서울"), extra_body={"plugins": [{"id": "web"}]})
    assert (caught.value.param, caught.value.code) == ("plugins", "unsupported_parameter")


@pytest.mark.parametrize("model", ["HCX-007", "HCX-005", "HCX-DASH-002"])
@pytest.mark.parametrize("stream", [False, True])
def test_what_openai_clients_usually_send_reaches_clova_studio_in_its_dialect(
    client: openai.OpenAI, model: str, stream: bool
) -> None:
    asked: dict[str, Any] = {
        "model": model,
        "messages": [
            {"role": "developer", "content": "짧게 답하세요."},
            {"role": "system", "content": "존댓말로."},
            {"role": "user", "content": "안녕 [[sim tokens=12]]"},
        ],
        "temperature": 1.3,
        "user": "phone-1",
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "n": 1,
        "store": False,
        "parallel_tool_calls": True,
    }
    if stream:
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    answer = client.chat.completions.create(**asked)
    if isinstance(answer, ChatCompletion):
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].message.content
    else:
        chunks = list(answer)
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens > 0


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names[0] == OMNI
    assert len(names) == 8
    assert client.models.retrieve("HCX-DASH-002").owned_by == "naver"
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("gpt-9")
    assert missing.value.code == "model_not_found"


# ── Errors ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_model_s_name_may_need_encoding_in_a_path(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'모델/나루'"):
        client.models.retrieve("모델/나루")


def test_errors_are_the_sdks_own_with_param_code_and_request_id(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=OMNI, messages=say("x"), temperature=9)
    assert (wrong.value.param, wrong.value.code, wrong.value.type) == (
        "temperature",
        "value_above_max",
        "invalid_request_error",
    )
    assert str(wrong.value.request_id).startswith("req_")
    with pytest.raises(openai.NotFoundError, match=r"Available models: hyperclova-x-omni"):
        client.chat.completions.create(model="gpt-9", messages=say("x"))


def test_a_wrong_key_is_a_401_also_for_models(stack: RunningStack) -> None:
    with openai.OpenAI(base_url=stack.base_url, api_key="sk-naru-wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as refused:
            stranger.chat.completions.create(model=OMNI, messages=say("x"))
        assert refused.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()


def test_a_cut_stream_raises_in_the_sdk_and_does_not_end(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=OMNI, messages=say("안녕 [[sim tokens=30 fault=cut_after:10]]"), stream=True
    )
    with pytest.raises(openai.APIError, match=r"broke the connection|cut off"):
        for _ in stream:
            pass


@pytest.mark.usefixtures("providers_without_a_past")
def test_the_sdk_does_not_repeat_what_the_gateway_has_repeated(stack: RunningStack, client: openai.OpenAI) -> None:
    eager = client.with_options(max_retries=2)
    with pytest.raises(openai.InternalServerError) as failed:
        eager.chat.completions.create(model=OMNI, messages=say("안녕 [[sim fault=status:503]]"))
    assert failed.value.response.headers["x-should-retry"] == "false"
    assert stack.model.stats()["requests"] == 3


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/chat/completions", b"{", 400, None),
        ("POST", "/chat/completions", b"", 400, None),
        ("POST", "/chat/completions", b"\xff\xfe", 400, None),
        ("POST", "/chat/completions", b'{"model":"hyperclova-x-omni"}', 400, "missing_required_parameter"),
        ("POST", "/chat/completions", b'{"x":"' + b"a" * 11_000_000 + b'"}', 413, "request_too_large"),
        ("POST", "/chat/completions", b'{"x":"' + b"a" * 7_000_000 + b'"}', 413, "request_too_large"),
        ("GET", "/chat/completions", None, 405, "method_not_allowed"),
        ("POST", "/v1/chat/completions", b"{}", 404, "unknown_url"),
        ("POST", "/completions", b"{}", 404, "unknown_url"),
        ("DELETE", "/models", None, 405, "method_not_allowed"),
        ("POST", "/responses", b"{}", 404, "unknown_url"),
    ],
    ids=[
        "half",
        "empty",
        "not utf-8",
        "no messages",
        "11 MB",
        "7 MB",
        "method",
        "twice v1",
        "path",
        "delete",
        "responses",
    ],
)
def test_every_refusal_has_openais_shape(
    stack: RunningStack, method: str, path: str, body: bytes | None, status: int, code: str | None
) -> None:
    answer = httpx.request(
        method,
        stack.base_url + path,
        content=body,
        headers={"Authorization": f"Bearer {stack.api_key}", "Content-Type": "application/json"},
        timeout=PATIENCE_S,
    )
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert answer.headers["x-request-id"]
    assert answer.headers["access-control-allow-origin"] == "*"


def test_health_needs_no_key(stack: RunningStack) -> None:
    answer = httpx.get(stack.base_url + "/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_a_browser_may_call(stack: RunningStack) -> None:
    asked = "authorization,content-type,x-stainless-retry-count"
    answer = httpx.options(
        stack.base_url + "/chat/completions",
        headers={
            "Origin": "https://app.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": asked,
        },
    )
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-headers"] == asked
    assert "POST" in answer.headers["access-control-allow-methods"]


# ── The bill ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_client_that_leaves_is_accounted_for(stack: RunningStack, client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=OMNI, messages=say("안녕 [[sim tokens=30 token_ms=10]]"), stream=True
    )
    request_id = raw.headers["x-request-id"]
    stream: Any = raw.parse()
    next(iter(stream))
    stream.close()
    row = eventually(lambda: rows(stack).get(request_id))
    (bill,) = stack.model.stats()["billed"]
    assert bill["finished"]
    assert (row.outcome, row.usage.completion_tokens, row.cost_pico_usd) == ("completed", 30, bill["cost_pico_usd"])


@pytest.mark.usefixtures("providers_without_a_past")
def test_a_mixed_run_of_200_requests_equals_the_providers_bill(stack: RunningStack, client: openai.OpenAI) -> None:
    """To the token and the pico-dollar; estimates, which only streams of CLOVA Studio need, are marked as such.

    Where an environment has no retry left to spend, it answers 503 and the app asks again: the first has a row too, and
    costs nothing.
    """
    models = [OMNI, "hyperclova-x-omni-fast", "gpt-4.1", "claude-sonnet-4-5", "gemini-2.5-flash"]
    once_ill = "fault=status:503,times=1"
    faults = ["", "", "", once_ill, "cached=40", "reasoning=20", "fault=usage_in_choice_chunk"]

    def ask(number: int) -> None:
        fault = faults[number % 7]
        answer = client.chat.completions.create(
            model=models[number % 5] if number % 10 != 9 else "HCX-005",
            messages=say(
                f"{number}번 손님, 안녕하세요? [[sim id=mixed{number} ttft_ms=0 token_ms=0 tokens={number % 50 + 1} {fault}]]"
            ),
            stream=number % 2 == 0,
            user=f"user-{number % 3}",
        )
        if not isinstance(answer, ChatCompletion):
            for _ in answer:
                pass

    def ask_as_an_app_does(number: int) -> None:
        try:
            ask(number)
        except openai.InternalServerError as error:
            if error.code != "upstream_unavailable" or faults[number % 7] != once_ill:
                raise
            ask(number)

    before = set(rows(stack))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask_as_an_app_does, range(200)))
    new = {request_id: row for request_id, row in rows(stack).items() if request_id not in before}
    stats = stack.model.stats()
    billed = {str(bill["client_request_id"]): bill for bill in stats["billed"]}
    assert len(billed) == len(stats["billed"]) == 200
    assert billed.keys() <= new.keys()
    assert {(new[each].outcome, new[each].cost_pico_usd) for each in new.keys() - billed.keys()} <= {("failed", 0)}
    estimated = 0
    for request_id, bill in billed.items():
        row = new[request_id]
        if row.stream and row.deployment.startswith("clovastudio/"):
            # After a 503 another provider is asked first, and this one reports no usage of its streams.
            assert row.usage_source == "estimated"
            assert row.cost_pico_usd == pytest.approx(bill["cost_pico_usd"], rel=0.35)
            estimated += 1
            continue
        assert row.usage_source == "reported"
        assert (
            row.usage.prompt_tokens,
            row.usage.cached_tokens,
            row.usage.completion_tokens,
            row.usage.reasoning_tokens,
        ) == (bill["prompt_tokens"], bill["cached_tokens"], bill["completion_tokens"], bill["reasoning_tokens"])
        assert row.cost_pico_usd == bill["cost_pico_usd"]
    assert estimated < 20


@pytest.mark.parametrize(
    ("coding", "pack", "status"),
    [
        ("gzip", gzip.compress, 200),
        ("deflate", zlib.compress, 200),
        ("identity", lambda body: b"\xef\xbb\xbf" + body, 200),
        ("br", bytes, 415),
        ("gzip", bytes, 415),
    ],
)
def test_a_compressed_request_is_understood_all_the_way(
    stack: RunningStack, coding: str, pack: Callable[[bytes], bytes], status: int
) -> None:
    body = json.dumps({"model": OMNI, "messages": say("안녕 [[sim tokens=3]]")}, ensure_ascii=False).encode()
    headers = {
        "Authorization": f"Bearer {stack.api_key}",
        "Content-Type": "application/json",
        "Content-Encoding": coding,
    }
    answer = httpx.post(f"{stack.base_url}/chat/completions", content=pack(body), headers=headers, timeout=60)
    assert answer.status_code == status, answer.text
    if status != 200:
        assert answer.json()["error"]["code"] == "unsupported_media_type"
        assert "gzip or deflate" in answer.json()["error"]["message"]
