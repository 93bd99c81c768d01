"""OpenAI's dialect: what is sent, what is refused, what comes back, what an error means."""

from __future__ import annotations

import copy
import json
import unicodedata
from email.utils import formatdate
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naru import dialects
from naru.catalog import Capability, Deployment, Price
from naru.dialects import clovastudio, openai
from naru.errors import InvalidRequestError
from naru.faults import judge

PRICE = Price(currency="USD", input_micro_per_mtok=1, output_micro_per_mtok=1)
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def deployment(*capabilities: Capability, **settings: Any) -> Deployment:
    return Deployment(
        name="p/m",
        provider="p",
        upstream_model="upstream-m",
        price=PRICE,
        capabilities=frozenset(capabilities),
        context_tokens=128_000,
        **{"stream_usage": True, "max_output_tokens": 4_096} | settings,
    )


def sent(body: dict[str, Any], *capabilities: Capability, output_limit: int = 2_000, **settings: Any) -> dict[str, Any]:
    before = copy.deepcopy(body)
    after = openai.request_body(body, deployment=deployment(*capabilities, **settings), output_limit=output_limit)
    assert body == before
    return after


def refused(body: dict[str, Any], *capabilities: Capability, **settings: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        sent(body, *capabilities, **settings)
    return caught.value


def chat(*content: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": list(content) or "안녕"}], **fields}


# ── Requests ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_plain_request_gets_the_provider_s_name_and_the_output_limit() -> None:
    assert sent(chat(temperature=2, top_k=3)) == {
        "model": "upstream-m",
        "messages": [{"role": "user", "content": "안녕"}],
        "temperature": 2,
        "top_k": 3,
        "max_tokens": 2_000,
    }


@pytest.mark.parametrize("asked", [{"max_tokens": 7}, {"max_completion_tokens": 7}, {"max_tokens": None}, {}])
def test_the_output_limit_goes_into_the_one_field_that_the_deployment_knows(asked: dict[str, Any]) -> None:
    body = sent(chat(**asked), output_limit=7, output_limit_field="max_completion_tokens")
    assert body["max_completion_tokens"] == 7
    assert "max_tokens" not in body


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"max_tokens": 5_000}, "max_tokens"),
        ({"max_completion_tokens": 5_000}, "max_completion_tokens"),
        ({}, "max_tokens"),
    ],
)
def test_more_output_than_the_deployment_can_give_is_refused(asked: dict[str, Any], param: str) -> None:
    error = refused(chat(**asked), output_limit=5_000)
    assert (error.param, error.body()["error"]["code"]) == (param, "unsupported_value")
    assert "at most 4096" in error.message


@pytest.mark.parametrize(
    ("fields", "stream_usage", "expected"),
    [
        ({"stream": True}, True, {"include_usage": True}),
        ({"stream": True, "stream_options": None}, True, {"include_usage": True}),
        ({"stream": True, "stream_options": {"include_usage": False}}, True, {"include_usage": True}),
        (
            {"stream": True, "stream_options": {"include_obfuscation": False}},
            True,
            {"include_obfuscation": False, "include_usage": True},
        ),
        ({"stream": True}, False, "absent"),
        ({"stream": True, "stream_options": {"include_usage": True}}, False, "absent"),
        (
            {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
            False,
            {"include_obfuscation": False},
        ),
        ({"stream": False}, True, "absent"),
        ({}, True, "absent"),
        ({"stream": True, "stream_options": "x"}, True, "x"),
    ],
)
def test_a_stream_is_asked_for_its_usage_where_the_provider_can(
    fields: dict[str, Any], stream_usage: bool, expected: Any
) -> None:
    assert sent(chat(**fields), stream_usage=stream_usage).get("stream_options", "absent") == expected


def test_what_the_catalog_strips_is_neither_sent_nor_refused() -> None:
    body = chat(user="u", service_tier="priority", stream=True)
    strip = frozenset({"user", "service_tier", "stream_options"})
    assert set(sent(body, strip=strip)) == {"model", "messages", "stream", "max_tokens"}


@pytest.mark.parametrize(
    ("body", "param", "capability"),
    [
        (chat({"type": "text", "text": "?"}, IMAGE), "messages[0].content[1]", "vision"),
        (chat({"type": "input_audio", "input_audio": {}}), "messages[0].content[0]", "audio"),
        (chat(modalities=["text", "audio"]), "modalities", "audio"),
        (chat(audio={"voice": "alloy", "format": "wav"}), "audio", "audio"),
        (chat(tools=[TOOL]), "tools", "tools"),
        (chat(functions=[{"name": "f"}]), "functions", "tools"),
        (chat(response_format={"type": "json_schema", "json_schema": {}}), "response_format", "json_schema"),
        (chat(response_format={"type": "json_object"}), "response_format", "json_object"),
        (chat(n=2), "n", "multiple_choices"),
    ],
)
def test_an_ability_is_refused_where_the_catalog_lacks_it_and_passed_where_not(
    body: dict[str, Any], param: str, capability: Capability
) -> None:
    error = refused(body)
    assert (error.param, error.body()["error"]["code"]) == (param, "unsupported_parameter")
    assert "upstream-m" in error.message
    assert {**sent(body, capability), "model": "m"} == {**body, "max_tokens": 2_000}


@pytest.mark.parametrize(
    "body",
    [
        chat(n=1, tools=[], functions=None, modalities=["text"], response_format={"type": "text"}, audio=None),
        {"messages": None},
        {"messages": ["x", {"content": ["x", {"type": ["image_url"]}]}], "response_format": "x", "modalities": "audio"},
    ],
)
def test_what_asks_for_nothing_special_passes_and_so_does_nonsense(body: dict[str, Any]) -> None:
    assert {**sent(body), "model": "m"} == {"model": "m", **body, "max_tokens": 2_000}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (chat({"type": "file", "file": {"file_id": "file-1"}}), "messages[0].content[0]"),
        (chat(web_search_options={}), "web_search_options"),
        (chat(service_tier="priority"), "service_tier"),
        (chat(service_tier="fast"), "service_tier"),
        (chat(tools=[{"type": "function"}, {"type": "web_search_20250305", "name": "web_search"}]), "tools[1].type"),
        (chat(tools=[{"type": "google_search"}]), "tools[0].type"),
    ],
)
def test_what_would_cost_more_than_the_catalog_can_tell_is_refused(body: dict[str, Any], param: str) -> None:
    assert refused(body, "vision", "audio", "tools").param == param


# ── Answers ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "payload",
    [
        {"id": "x", "choices": [{"index": 0, "delta": {"content": "가"}}], "usage": None},
        {"choices": [{"message": {"content": "가", "reasoning_content": "음"}}], "usage": {"total_tokens": 1}},
        {"choices": None},
        {"choices": ["x", {"delta": None}], "usage": []},
        {},
    ],
)
@pytest.mark.parametrize("dialect", [openai, clovastudio])
def test_an_answer_in_openai_s_shape_is_the_same_object(payload: dict[str, Any], dialect: Any) -> None:
    assert dialect.answer(payload) is payload


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (
            {"id": "x", "latency_ms": 5, "cost_usd": 0.1, "cost": 1, "choices": []},
            {"id": "x", "choices": []},
        ),
        (
            {"usage": {"prompt_tokens": 1, "cost_usd": 0.1, "latency_ms": 3}},
            {"usage": {"prompt_tokens": 1}},
        ),
        (
            {"choices": [{"index": 0, "delta": {"thinking_content": "음"}}]},
            {"choices": [{"index": 0, "delta": {"reasoning_content": "음"}}]},
        ),
        (
            {"choices": [{"message": {"content": "네", "thinking_content": "음"}}, {"message": {"content": "아니오"}}]},
            {
                "choices": [
                    {"message": {"content": "네", "reasoning_content": "음"}},
                    {"message": {"content": "아니오"}},
                ]
            },
        ),
        (
            {"choices": [{"delta": {"thinking_content": "가", "reasoning_content": "나"}}]},
            {"choices": [{"delta": {"reasoning_content": "나"}}]},
        ),
        (
            {"choices": [{"delta": {"thinking_content": "가", "reasoning_content": None}}]},
            {"choices": [{"delta": {"reasoning_content": "가"}}]},
        ),
    ],
)
@pytest.mark.parametrize("dialect", [openai, clovastudio])
def test_an_answer_is_brought_into_openai_s_shape(
    payload: dict[str, Any], expected: dict[str, Any], dialect: Any
) -> None:
    before = copy.deepcopy(payload)
    assert dialect.answer(payload) == expected
    assert payload == before


# ── Errors ──────────────────────────────────────────────────────────────────────────────────────────────


def openai_error(code: Any, message: str = "No.", **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code, **fields}}


@pytest.mark.parametrize(
    ("status", "payload", "kind"),
    [
        (400, openai_error("context_length_exceeded"), "context_length"),
        (400, openai_error("content_filter"), "content_filter"),
        (400, openai_error("content_policy_violation"), "content_filter"),
        (400, openai_error("unsupported_value"), "parameter"),
        (401, openai_error("invalid_api_key"), "key"),
        (403, openai_error("unsupported_country_region_territory"), "region"),
        (404, openai_error("model_not_found"), "model"),
        (429, openai_error("insufficient_quota", type="insufficient_quota"), "credit"),
        (429, openai_error("rate_limit_exceeded", type="tokens"), "rate_limited"),
        (429, openai_error(None, type="requests"), "rate_limited"),
        (500, openai_error(None, type="server_error"), "server"),
        (400, {"error": {"type": "rate_limit_error", "message": "Slow."}}, "rate_limited"),
        (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "overloaded"),
        (429, [{"error": {"code": 429, "message": "Quota.", "status": "RESOURCE_EXHAUSTED"}}], "rate_limited"),
        (503, {"error": {"code": 503, "message": "Busy.", "status": "UNAVAILABLE"}}, "overloaded"),
        (400, {"error": "bad"}, "parameter"),
        (422, {"detail": [{"loc": ["body"], "msg": "x"}]}, "parameter"),
        (402, None, "credit"),
        (408, "", "timeout"),
        (413, b"", "parameter"),
        (500, "<html><h1>500</h1></html>", "server"),
        (502, b"<!doctype html><title>Bad gateway</title>", "server"),
        (503, "", "overloaded"),
        (504, {}, "timeout"),
        (524, None, "timeout"),
        (418, None, "address"),
        (302, "moved", "address"),
        (200, openai_error("rate_limit_exceeded"), "rate_limited"),
        (200, {"error": {"message": "upstream died", "code": 502}}, "server"),
        (200, {"error": {"message": "what?"}}, "server"),
    ],
)
def test_an_error_is_known_by_its_code_and_else_by_its_status(status: int, payload: Any, kind: str) -> None:
    fault = judge(openai.error(status, {}, payload))
    assert fault.kind == kind
    assert fault.message


def test_an_error_keeps_the_provider_s_words_code_and_param() -> None:
    fault = judge(openai.error(400, {}, openai_error("unsupported_value", "n must be 1.", param="n")))
    assert (fault.message, fault.code, fault.param) == ("n must be 1.", "unsupported_value", "n")


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ("plain words", "plain words"),
        (b"\xea\xb0\x80\xff", "가\ufffd"),
        ({"message": "m"}, "m"),
        ({"detail": "d"}, "d"),
        ({"error": "e"}, "e"),
        ({"error": {"message": {"nested": 1}}}, "The provider answered with status 500 and no message."),
        ("<html>secret stack trace</html>", "The provider answered with status 500 and no message."),
        (None, "The provider answered with status 500 and no message."),
        ("a\x00b\x1b[31m\r\nc\u202ed\ud800e", "a b [31m c d e"),
    ],
)
def test_the_message_is_one_printable_line_from_wherever_it_stands(payload: Any, message: str) -> None:
    assert judge(openai.error(500, {}, payload)).message == message


def test_a_long_message_is_cut_at_500_characters() -> None:
    message = judge(openai.error(500, {}, openai_error(None, "가" * 10_000))).message
    assert message == "가" * 499 + "…"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after": "7", "retry-after-ms": "1500"}, 1.5),
        ({"retry-after": formatdate(0, usegmt=True)}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"x-ratelimit-reset-requests": "6s"}, 6.0),
        ({"x-ratelimit-reset-requests": "12ms", "x-ratelimit-reset-tokens": "1m30.5s"}, 90.5),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2"}, 2.0),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "2s",
                "x-ratelimit-remaining-tokens": "100",
                "x-ratelimit-reset-tokens": "60s",
            },
            2.0,
        ),
        ({"x-ratelimit-reset-requests": "a while"}, None),
        ({}, None),
    ],
)
def test_a_rate_limit_says_when_it_ends(headers: dict[str, str], seconds: float | None) -> None:
    assert judge(openai.error(429, headers, None)).retry_after_s == seconds


def test_the_allowance_s_reset_says_nothing_about_another_failure() -> None:
    assert judge(openai.error(500, {"x-ratelimit-reset-requests": "6s"}, None)).retry_after_s is None
    assert judge(openai.error(503, {"retry-after": "6"}, None)).retry_after_s == 6.0


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "error",
                    "status",
                    "message",
                    "code",
                    "type",
                    "detail",
                    "param",
                    "details",
                    "metadata",
                    "raw",
                    "errors",
                    "x",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(
    status=st.integers(100, 599),
    headers=st.dictionaries(st.sampled_from(["retry-after", "x"]), st.text()),
    payload=ANYTHING,
)
@pytest.mark.parametrize("dialect", [openai, clovastudio])
def test_an_error_of_any_shape_becomes_a_fault_that_can_be_sent(
    dialect: Any, status: int, headers: dict[str, str], payload: Any
) -> None:
    fault = judge(dialect.error(status, headers, payload))
    assert 0 < len(fault.message) <= 500
    assert not {unicodedata.category(character) for character in fault.message} & {"Cc", "Cs", "Zl", "Zp"}
    for text in (fault.message, fault.code, fault.param):
        assert json.dumps(text, ensure_ascii=False).encode()


def test_a_dialect_is_found_by_the_name_in_the_catalog() -> None:
    found: list[Any] = [dialects.for_name("openai"), dialects.for_name("clovastudio")]
    assert found == [openai, clovastudio]
    assert all(isinstance(module, ModuleType) for module in found)
