"""The CLOVA Studio face: its dialect, its refusals, its thinking."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from local.simulated_model import Capacity, Config, ThreadedModel, run_in_thread

KEY = {"authorization": "Bearer nv-test"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"properties": {"답": {"type": "string"}}}}}
USER = {"role": "user", "content": "질문"}


@pytest.fixture(scope="module")
def running() -> Iterator[ThreadedModel]:
    with run_in_thread() as model:
        yield model


@pytest.fixture
def model(running: ThreadedModel) -> ThreadedModel:
    running.reset_stats()
    return running


def ask(server: ThreadedModel, /, **more: Any) -> httpx.Response:
    body = {"model": "HCX-005", "messages": [USER], **more}
    return httpx.post(f"{server.clova_url}/chat/completions", json=body, headers=KEY)


def test_a_request_in_the_dialect_is_answered(model: ThreadedModel) -> None:
    answer = ask(model, temperature=0.5, top_p=0.8, max_tokens=100, n=1, seed=1, stop=["끝"])
    assert (answer.status_code, answer.json()["object"]) == (200, "chat.completion")
    assert model.stats()["billed"][0]["face"] == "clova"
    listed = httpx.get(f"{model.clova_url}/models", headers=KEY)
    assert listed.json()["object"] == "list"


@pytest.mark.parametrize(
    "name",
    [
        "audio", "frequency_penalty", "logit_bias", "logprobs", "metadata", "modalities", "prediction",
        "presence_penalty", "prompt_cache_key", "safety_identifier", "service_tier", "store", "stream_options",
        "top_logprobs", "user", "web_search_options",
    ],
)  # fmt: skip
def test_an_unsupported_field_is_a_40002(model: ThreadedModel, name: str) -> None:
    answer = ask(model, **{name: 0})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error == {"message": f"Unsupported parameter: {name}", "type": None, "param": None, "code": "40002"}
    assert model.stats()["billed"] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 2},
        {"temperature": 1.1},
        {"messages": [{"role": "system", "content": "a"}, {"role": "system", "content": "b"}, USER]},
        {"messages": [{"role": "developer", "content": "a"}, USER]},
        {"tools": [TOOL], "tool_choice": "required", "max_tokens": 2048},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "text"}},
        {"tools": [TOOL]},
        {"tools": [TOOL], "max_tokens": 1023},
        {"tools": [TOOL], "max_tokens": 2048, "messages": [{"role": "user", "content": [IMAGE]}]},
        {"tools": [TOOL], "max_tokens": 2048, "model": "HCX-007", "reasoning_effort": "low"},
        {"tools": [TOOL], "max_tokens": 2048, "model": "HCX-007", "thinking": {"effort": "high"}},
        {"tools": [TOOL], "max_tokens": 2048, "parallel_tool_calls": False},
        {"model": "HCX-007", "stop": ["a"]},
        {"model": "HCX-007", "stop": ["a"], "thinking": {"effort": "low"}},
        {"model": "HCX-007", "response_format": FORMAT, "reasoning_effort": "low"},
        {"messages": [{"role": "user", "content": [IMAGE]}] * 6},
        {"messages": [{"role": "user", "content": [IMAGE, IMAGE]}]},
        {"model": "HCX-007", "messages": [{"role": "user", "content": [IMAGE]}]},
        {"max_tokens": 4097},
        {"reasoning_effort": "xhigh"},
        {"messages": []},
    ],
)
def test_what_the_dialect_forbids_is_a_40001(model: ThreadedModel, wrong: dict[str, Any]) -> None:
    answer = ask(model, **wrong)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "40001")
    assert model.stats()["billed"] == []


@pytest.mark.parametrize(
    "right",
    [
        {"tools": [TOOL], "max_tokens": 1024},
        {"tools": [TOOL], "max_completion_tokens": 1024, "model": "HCX-007", "reasoning_effort": "none"},
        {"tools": [TOOL], "max_tokens": 1024, "tool_choice": "none"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, IMAGE]}]},
        {"response_format": FORMAT, "model": "HCX-007"},
        {"response_format": FORMAT, "model": "HCX-007", "reasoning_effort": "none", "stop": ["a"]},
        {"model": "HCX-007", "stop": ["a"], "reasoning_effort": "none"},
        {"model": "HCX-007", "max_completion_tokens": 32_768},
        {"user": None, "stream_options": None},
    ],
)
def test_what_the_dialect_allows_is_answered(model: ThreadedModel, right: dict[str, Any]) -> None:
    assert ask(model, **right).status_code == 200


def test_without_a_limit_an_answer_is_silently_cut_at_512_tokens(model: ThreadedModel) -> None:
    long = [{"role": "user", "content": "긴 글 [[sim tokens=600]]"}]
    cut, whole = ask(model, messages=long).json(), ask(model, messages=long, max_tokens=600).json()
    assert (cut["choices"][0]["finish_reason"], cut["usage"]["completion_tokens"]) == ("length", 512)
    assert (whole["choices"][0]["finish_reason"], whole["usage"]["completion_tokens"]) == ("stop", 600)


def test_a_stream_never_speaks_of_usage(model: ThreadedModel) -> None:
    text = ask(model, stream=True).text
    assert "usage" not in text
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("asked", "reasoning"),
    [
        ({}, 24),
        ({"reasoning_effort": "none"}, 0),
        ({"reasoning_effort": "high"}, 160),
        ({"thinking": {"effort": "medium"}}, 72),
        ({"response_format": FORMAT}, 0),
    ],
)
def test_hcx_007_thinks_aloud_as_deeply_as_asked(model: ThreadedModel, asked: dict[str, Any], reasoning: int) -> None:
    answer = ask(model, model="HCX-007", **asked).json()
    message = answer["choices"][0]["message"]
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == reasoning
    assert ("thinking_content" in message) == (reasoning > 0)

    lines = ask(model, model="HCX-007", stream=True, **asked).text.split("\n\n")
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines if line.startswith("data: {")]
    assert "".join(delta.get("thinking_content", "") for delta in deltas) == message.get("thinking_content", "")
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"]


def test_only_hcx_007_thinks(model: ThreadedModel) -> None:
    assert "thinking_content" not in ask(model, reasoning_effort="high").json()["choices"][0]["message"]


def test_a_429_says_when_the_window_opens_and_sends_no_retry_after() -> None:
    with run_in_thread(Config(capacity=Capacity(requests_per_minute=0, retry_after_s=3))) as model:
        refused = ask(model)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "42901")
    assert refused.headers["x-ratelimit-reset-requests"] == "6s"
    assert "retry-after" not in refused.headers


def test_errors_can_have_the_native_shape() -> None:
    with run_in_thread(Config(clova_errors="native")) as model:
        assert ask(model, n=2).json() == {"status": {"code": "40001", "message": "Invalid parameter: n must be 1"}}
        prompt = [{"role": "user", "content": "[[sim fault=status:429,code=42902,message=x]]"}]
        assert ask(model, messages=prompt).json() == {"status": {"code": "42902", "message": "x"}}


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("status:500", 500, "50000"),
        ("status:504", 504, "50400"),
        ("status:429", 429, "42901"),
        ("context_length", 400, "40003"),
        ("content_filter", 400, "40005"),
    ],
)
def test_faults_have_the_codes_of_clova_studio(model: ThreadedModel, fault: str, status: int, code: str) -> None:
    answer = ask(model, messages=[{"role": "user", "content": f"[[sim fault={fault}]]"}])
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"]["type"] is None


def test_a_prompt_too_long_for_the_model_is_a_40003(model: ThreadedModel) -> None:
    answer = ask(model, model="HCX-DASH-002", messages=[{"role": "user", "content": "긴 " * 32_000}])
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "40003")
