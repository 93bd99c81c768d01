"""CLOVA Studio's dialect: one decision for each field, each with a literal expectation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import completion_create_params as sdk

from naru.catalog import Capability, Deployment, Price
from naru.dialects import clovastudio
from naru.errors import InvalidRequestError
from naru.faults import judge

PRICE = Price(currency="KRW", input_micro_per_mtok=1, output_micro_per_mtok=1)
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
TEXT = {"type": "text", "text": "이게 뭐예요?"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
OTHER_TOOL = {"type": "function", "function": {"name": "news", "parameters": {"type": "object"}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
ABSENT = "absent"


def deployment(name: str, *capabilities: Capability, **settings: Any) -> Deployment:
    return Deployment(
        name=f"clovastudio/{name}",
        provider="clovastudio",
        upstream_model=name,
        price=PRICE,
        capabilities=frozenset(capabilities),
        context_tokens=128_000,
        **{"stream_usage": False, "max_output_tokens": 4_096} | settings,
    )


HCX_005 = deployment("HCX-005", "tools", "vision")
HCX_007 = deployment(
    "HCX-007",
    "json_schema",
    "reasoning",
    "tools",
    output_limit_field="max_completion_tokens",
    max_output_tokens=32_768,
)
SEEING = deployment("HCX-008", "reasoning", "vision")
BARE = deployment("HCX-BARE")


def sent(body: dict[str, Any], to: Deployment = HCX_005, *, output_limit: int = 2_000) -> dict[str, Any]:
    before = copy.deepcopy(body)
    after = clovastudio.request_body(body, deployment=to, output_limit=output_limit)
    assert body == before
    return after


def refused(body: dict[str, Any], to: Deployment = HCX_005, *, output_limit: int = 2_000) -> tuple[str | None, str]:
    with pytest.raises(InvalidRequestError) as caught:
        sent(body, to, output_limit=output_limit)
    assert to.upstream_model in caught.value.message or "system message" in caught.value.message
    return caught.value.param, caught.value.body()["error"]["code"]


def chat(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages) or [{"role": "user", "content": "안녕"}], **fields}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


# ── The table ───────────────────────────────────────────────────────────────────────────────────────────

VERDICTS = {
    "messages": "map",
    "model": "map",
    "audio": "refuse",
    "frequency_penalty": "refuse",
    "function_call": "refuse",
    "functions": "refuse",
    "logit_bias": "refuse",
    "logprobs": "refuse",
    "max_completion_tokens": "map",
    "max_tokens": "map",
    "metadata": "strip",
    "modalities": "refuse",
    "moderation": "refuse",
    "n": "refuse",
    "parallel_tool_calls": "map",
    "prediction": "strip",
    "presence_penalty": "refuse",
    "prompt_cache_key": "strip",
    "prompt_cache_options": "strip",
    "prompt_cache_retention": "strip",
    "reasoning_effort": "map",
    "response_format": "map",
    "safety_identifier": "strip",
    "seed": "pass",
    "service_tier": "strip",
    "stop": "pass",
    "store": "strip",
    "stream": "pass",
    "stream_options": "map",
    "temperature": "clamp",
    "tool_choice": "map",
    "tools": "map",
    "top_logprobs": "refuse",
    "top_p": "pass",
    "user": "strip",
    "verbosity": "strip",
    "web_search_options": "refuse",
}


def test_every_field_of_the_openai_sdk_has_a_decision_with_a_reason() -> None:
    fields = {**sdk.CompletionCreateParamsBase.__annotations__, **sdk.CompletionCreateParamsStreaming.__annotations__}
    assert {name: field.verdict for name, field in clovastudio.FIELDS.items()} == VERDICTS
    assert set(fields) == set(VERDICTS)
    assert all(field.reason for field in clovastudio.FIELDS.values())


@pytest.mark.parametrize("name", sorted(set(VERDICTS) - {"messages", "model", "max_tokens", "max_completion_tokens"}))
def test_a_null_is_a_field_left_out(name: str) -> None:
    assert sent(chat(**{name: None})) == sent(chat())


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("seed", 7, 7),
        ("stop", ["끝"], ["끝"]),
        ("stream", True, True),
        ("top_p", 0.8, 0.8),
        ("top_k", 5, 5),
        ("repetition_penalty", 1.2, 1.2),
        ("thinking", {}, ABSENT),
        ("thinking", {"effort": "low"}, ABSENT),
        ("thinking", {"type": "disabled"}, ABSENT),
        ("some_new_field", None, ABSENT),
        ("temperature", 0, 0),
        ("temperature", 0.7, 0.7),
        ("temperature", 1, 1),
        ("temperature", 1.3, 1),
        ("temperature", 2, 1),
        ("temperature", "hot", "hot"),
        ("metadata", {"team": "a"}, ABSENT),
        ("prediction", {"type": "content", "content": "x"}, ABSENT),
        ("prompt_cache_key", "k", ABSENT),
        ("prompt_cache_options", {"ttl": "30m"}, ABSENT),
        ("prompt_cache_retention", "24h", ABSENT),
        ("safety_identifier", "s", ABSENT),
        ("service_tier", "flex", ABSENT),
        ("store", True, ABSENT),
        ("stream_options", {"include_usage": True}, ABSENT),
        ("user", "u", ABSENT),
        ("verbosity", "low", ABSENT),
        ("frequency_penalty", 0, ABSENT),
        ("frequency_penalty", 0.0, ABSENT),
        ("presence_penalty", 0.0, ABSENT),
        ("logit_bias", {}, ABSENT),
        ("logprobs", False, ABSENT),
        ("top_logprobs", 0, ABSENT),
        ("modalities", ["text"], ABSENT),
        ("functions", [], ABSENT),
        ("function_call", "auto", ABSENT),
        ("n", 1, ABSENT),
        ("parallel_tool_calls", True, ABSENT),
        ("parallel_tool_calls", False, ABSENT),
        ("stop", [], ABSENT),
        ("stop", "", ABSENT),
        ("response_format", {"type": "text"}, ABSENT),
        ("tools", [], ABSENT),
        ("tool_choice", "auto", ABSENT),
        ("tool_choice", "none", ABSENT),
        ("reasoning_effort", "none", ABSENT),
        ("reasoning_effort", "minimal", ABSENT),
        ("reasoning_effort", "low", ABSENT),
    ],
)
def test_a_field_arrives_as_decided(name: str, value: Any, expected: Any) -> None:
    assert sent(chat(**{name: value})).get(name, ABSENT) == expected


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("audio", {"voice": "alloy", "format": "wav"}, "unsupported_parameter"),
        ("frequency_penalty", 0.5, "unsupported_value"),
        ("presence_penalty", -1, "unsupported_value"),
        ("function_call", {"name": "f"}, "unsupported_value"),
        ("functions", [{"name": "f"}], "unsupported_value"),
        ("logit_bias", {"50256": -100}, "unsupported_value"),
        ("logprobs", True, "unsupported_value"),
        ("top_logprobs", 3, "unsupported_value"),
        ("modalities", ["text", "audio"], "unsupported_value"),
        ("moderation", {"model": "omni-moderation-latest"}, "unsupported_parameter"),
        ("n", 2, "unsupported_value"),
        ("n", 0, "unsupported_value"),
        ("web_search_options", {}, "unsupported_parameter"),
        ("reasoning_effort", "medium", "unsupported_parameter"),
        ("reasoning_effort", "high", "unsupported_parameter"),
        ("thinking", {"effort": "high"}, "unsupported_parameter"),
        ("thinking", {"type": "enabled", "effort": "medium"}, "unsupported_parameter"),
        ("thinking", {"type": "enabled", "budget_tokens": 500}, "unsupported_value"),
        ("thinking", "high", "unsupported_value"),
        ("thinking", {"effort": 7}, "unsupported_value"),
        ("thinking", {"type": "disabled", "effort": "low"}, "unsupported_value"),
        ("some_new_field", 1, "unsupported_parameter"),
        ("plugins", [{"id": "web"}], "unsupported_parameter"),
        ("min_p", 0.1, "unsupported_parameter"),
        ("Thinking", {"effort": "low"}, "unsupported_parameter"),
        ("response_format", {"type": "json_object"}, "unsupported_value"),
        ("response_format", SCHEMA, "unsupported_value"),
        ("tool_choice", "required", "unsupported_value"),
    ],
)
def test_a_field_that_would_change_the_answer_is_refused_with_advice(name: str, value: Any, code: str) -> None:
    assert refused(chat(**{name: value})) == (name, code)


def test_what_the_operator_strips_is_not_refused() -> None:
    lenient = deployment("HCX-005", strip=frozenset({"frequency_penalty", "logit_bias"}))
    assert sent(chat(frequency_penalty=1, logit_bias={"1": 1}), lenient) == sent(chat(), lenient)


def test_a_plain_request_is_this() -> None:
    assert sent(chat()) == {
        "model": "HCX-005",
        "messages": [{"role": "user", "content": "안녕"}],
        "max_tokens": 2_000,
    }


def test_an_output_limit_is_always_sent_since_the_provider_s_own_is_512() -> None:
    assert sent(chat(), HCX_007, output_limit=4_096)["max_completion_tokens"] == 4_096
    assert "max_tokens" not in sent(chat(max_tokens=10), HCX_007, output_limit=10)
    assert refused(chat(max_tokens=5_000), output_limit=5_000) == ("max_tokens", "unsupported_value")


def test_usage_of_a_stream_is_asked_for_once_the_catalog_says_that_it_can_be() -> None:
    able = deployment("HCX-009", stream_usage=True)
    assert sent(chat(stream=True), able)["stream_options"] == {"include_usage": True}
    assert "stream_options" not in sent(chat(stream=True))


# ── Messages ────────────────────────────────────────────────────────────────────────────────────────────

ASK = {"role": "user", "content": "안녕"}
SAY = {"role": "assistant", "content": "네"}


def system(content: Any, role: str = "system") -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([system("가"), ASK], [system("가"), ASK]),
        ([system("가", "developer"), ASK], [system("가"), ASK]),
        ([system("가"), system("나", "developer"), ASK], [system("가\n\n나"), ASK]),
        ([system("가"), ASK, SAY, system("나"), ASK], [system("가\n\n나"), ASK, SAY, ASK]),
        ([ASK, system("가")], [system("가"), ASK]),
        (
            [system([{"type": "text", "text": "가"}, {"type": "text", "text": "나"}]), system("다"), ASK],
            [system("가\n나\n\n다"), ASK],
        ),
        ([system([{"type": "text", "text": "가"}]), ASK], [system([{"type": "text", "text": "가"}]), ASK]),
        ([system("가"), system(""), system(None), ASK], [system("가"), ASK]),
        ([ASK, SAY, ASK], [ASK, SAY, ASK]),
        (["x", 3, None], ["x", 3, None]),
        ("x", "x"),
    ],
)
def test_there_is_one_system_message_at_the_front_and_no_developer(messages: Any, expected: Any) -> None:
    assert sent({"model": "m", "messages": messages})["messages"] == expected


def test_system_messages_that_are_no_text_cannot_be_merged() -> None:
    assert refused(chat(system("가"), system([IMAGE]), ASK))[0] == "messages[1].content"


def test_a_message_of_the_role_function_is_refused() -> None:
    assert refused(chat(ASK, {"role": "function", "name": "f", "content": "1"})) == (
        "messages[1].role",
        "unsupported_value",
    )


def test_tool_results_and_tool_calls_pass() -> None:
    messages = [
        ASK,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {}}]},
        {"role": "tool", "tool_call_id": "1", "content": "맑음"},
    ]
    assert sent(chat(*messages))["messages"] == messages


def test_marks_for_openai_s_cache_are_taken_out() -> None:
    marked = {**TEXT, "prompt_cache_breakpoint": {"mode": "explicit"}}
    assert sent(chat(user(marked, IMAGE)))["messages"] == [user(TEXT, IMAGE)]
    assert sent(chat(system([marked]), ASK))["messages"] == [system([TEXT]), ASK]


@pytest.mark.parametrize(
    ("messages", "to", "param"),
    [
        ([ASK, user(TEXT, IMAGE)], BARE, "messages[1].content[1]"),
        ([user(TEXT, IMAGE, IMAGE)], HCX_005, "messages[0].content[2]"),
        ([user({"type": "input_audio", "input_audio": {}})], HCX_005, "messages[0].content[0]"),
    ],
)
def test_content_that_the_model_cannot_take_is_refused_where_it_stands(
    messages: list[Any], to: Deployment, param: str
) -> None:
    assert refused(chat(*messages), to) == (param, "unsupported_parameter")


def test_each_turn_can_have_an_image() -> None:
    messages = [user(TEXT, IMAGE), SAY, user(IMAGE)]
    assert sent(chat(*messages))["messages"] == messages


# ── Tools, thinking, formats ────────────────────────────────────────────────────────────────────────────

NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    ("choice", "tools", "expected"),
    [
        ("auto", [TOOL, OTHER_TOOL], "auto"),
        ("none", [TOOL], "none"),
        (NAMED, [TOOL, OTHER_TOOL], NAMED),
        ("required", [TOOL], NAMED),
        (None, [TOOL], ABSENT),
    ],
)
def test_a_tool_choice_that_means_the_same_is_sent(choice: Any, tools: list[Any], expected: Any) -> None:
    body = sent(chat(tools=tools, tool_choice=choice))
    assert body["tools"] == tools
    assert body.get("tool_choice", ABSENT) == expected


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": []}},
        {"type": "custom", "custom": {"name": "weather"}},
        "any",
    ],
)
def test_a_tool_choice_that_cannot_be_had_is_refused(choice: Any) -> None:
    body = chat(tools=[TOOL, OTHER_TOOL], tool_choice=choice)
    assert refused(body) == ("tool_choice", "unsupported_value")


@pytest.mark.parametrize(
    ("body", "to", "output_limit", "refusal"),
    [
        (chat(tools=[TOOL]), BARE, 2_000, ("tools", "unsupported_parameter")),
        (chat(tools=[TOOL, {"type": "custom", "custom": {}}]), HCX_005, 2_000, ("tools[1].type", "unsupported_value")),
        (chat(user(TEXT, IMAGE), tools=[TOOL]), HCX_005, 2_000, ("tools", "unsupported_parameter")),
        (chat(tools=[TOOL], max_tokens=1_023), HCX_005, 1_023, ("max_tokens", "unsupported_value")),
        (chat(tools=[TOOL]), HCX_007, 512, ("max_completion_tokens", "unsupported_value")),
        (chat(tools=[TOOL], reasoning_effort="low"), HCX_007, 2_000, ("reasoning_effort", "unsupported_value")),
        (chat(tools=[TOOL], thinking={"effort": "high"}), HCX_007, 2_000, ("thinking", "unsupported_value")),
        (chat(tools=[TOOL], thinking={"type": "enabled"}), HCX_007, 2_000, ("thinking", "unsupported_value")),
        (
            chat(tools=[TOOL], thinking={"effort": "high"}, reasoning_effort="high"),
            HCX_007,
            2_000,
            ("reasoning_effort", "unsupported_value"),
        ),
        (
            chat(thinking={"effort": "high"}, reasoning_effort="none"),
            HCX_007,
            2_000,
            ("thinking", "unsupported_value"),
        ),
        (chat(thinking={"effort": "low"}, response_format=SCHEMA), HCX_007, 2_000, ("thinking", "unsupported_value")),
        (chat(thinking={"effort": "low"}, stop=["끝"]), HCX_007, 2_000, ("thinking", "unsupported_value")),
        (chat(reasoning_effort="medium", stop="끝"), HCX_007, 2_000, ("reasoning_effort", "unsupported_value")),
        (chat(user(TEXT, IMAGE), reasoning_effort="low"), SEEING, 2_000, ("reasoning_effort", "unsupported_value")),
        (
            chat(tools=[TOOL], parallel_tool_calls=False),
            HCX_005,
            2_000,
            ("parallel_tool_calls", "unsupported_value"),
        ),
        (
            chat(tools=[TOOL], parallel_tool_calls=False),
            HCX_007,
            2_000,
            ("parallel_tool_calls", "unsupported_value"),
        ),
        (
            chat(response_format=SCHEMA, reasoning_effort="high"),
            HCX_007,
            2_000,
            ("reasoning_effort", "unsupported_value"),
        ),
    ],
)
def test_tools_and_schemas_are_refused_with_what_they_exclude(
    body: dict[str, Any], to: Deployment, output_limit: int, refusal: tuple[str, str]
) -> None:
    assert refused(body, to, output_limit=output_limit) == refusal


def test_tools_need_an_output_limit_of_1024_tokens() -> None:
    assert sent(chat(tools=[TOOL], max_tokens=1_024), output_limit=1_024)["max_tokens"] == 1_024
    assert sent(chat(tools=[], max_tokens=5), output_limit=5)["max_tokens"] == 5


@pytest.mark.parametrize("fields", [{"tools": [TOOL]}, {"response_format": SCHEMA}, {"stop": ["끝"]}])
def test_a_model_that_thinks_unasked_is_told_not_to_where_it_cannot(fields: dict[str, Any]) -> None:
    assert sent(chat(**fields), HCX_007)["reasoning_effort"] == "none"
    assert sent(chat(**fields, reasoning_effort="none"), HCX_007)["reasoning_effort"] == "none"
    assert sent(chat(**fields, thinking={"effort": "none"}), HCX_007)["reasoning_effort"] == "none"
    assert sent(chat(**fields, thinking={"type": "disabled"}), HCX_007)["reasoning_effort"] == "none"
    assert "reasoning_effort" not in sent(chat(tools=[TOOL]), HCX_005)
    assert sent(chat(user(TEXT, IMAGE)), SEEING)["reasoning_effort"] == "none"
    assert "reasoning_effort" not in sent(chat(stop=[]), HCX_007)


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({"thinking": {"effort": "high"}}, "high"),
        ({"thinking": {"effort": "max"}}, "high"),
        ({"thinking": {"effort": "none"}}, "none"),
        ({"thinking": {"type": "enabled"}}, "low"),
        ({"thinking": {"type": "adaptive", "effort": "medium"}}, "medium"),
        ({"thinking": {"effort": "minimal"}, "reasoning_effort": "low"}, "low"),
        ({"thinking": None, "reasoning_effort": "high"}, "high"),
        ({"thinking": {}}, ABSENT),
    ],
)
def test_how_deeply_to_think_is_said_in_one_way(fields: dict[str, Any], effort: str) -> None:
    body = sent(chat(**fields), HCX_007)
    assert "thinking" not in body
    assert body.get("reasoning_effort", ABSENT) == effort


def test_one_tool_call_at_a_time_is_no_matter_where_none_can_be_made() -> None:
    assert "parallel_tool_calls" not in sent(chat(tools=[TOOL], tool_choice="none", parallel_tool_calls=False))


def test_the_operator_can_let_a_field_pass() -> None:
    assert sent(chat(min_p=0.1), deployment("HCX-009", passes=["min_p"]))["min_p"] == 0.1


def test_a_request_has_five_images_at_most() -> None:
    turns = [user(TEXT, IMAGE), SAY] * 5
    assert sent(chat(*turns))["messages"] == turns
    assert refused(chat(*turns, user(IMAGE))) == ("messages[10].content[0]", "unsupported_parameter")


def test_marks_for_anthropic_s_cache_are_taken_out() -> None:
    mark = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    body = chat({"role": "system", "content": "가", **mark}, user({**TEXT, **mark}), tools=[{**TOOL, **mark}])
    assert "cache_control" not in str(sent(body))


@pytest.mark.parametrize(
    ("effort", "expected"),
    [
        ("none", "none"),
        ("minimal", "low"),
        ("low", "low"),
        ("medium", "medium"),
        ("high", "high"),
        ("xhigh", "high"),
        ("max", "high"),
        (None, ABSENT),
        (["x"], ["x"]),
    ],
)
def test_an_effort_becomes_the_nearest_that_the_model_has(effort: Any, expected: Any) -> None:
    assert sent(chat(reasoning_effort=effort), HCX_007).get("reasoning_effort", ABSENT) == expected


def test_json_mode_is_refused_with_the_way_to_a_schema() -> None:
    with pytest.raises(InvalidRequestError, match=r'Use \{"type": "json_schema"\}'):
        sent(chat(response_format={"type": "json_object"}), HCX_007)
    with pytest.raises(InvalidRequestError, match="Ask for JSON in the prompt"):
        sent(chat(response_format={"type": "json_object"}), HCX_005)
    assert sent(chat(response_format=SCHEMA), HCX_007)["response_format"] == SCHEMA


# ── Errors ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "40000", "parameter"),
        (400, "40001", "parameter"),
        (400, "40002", "parameter"),
        (400, "40003", "context_length"),
        (400, "40005", "content_filter"),
        (400, "40006", "content_filter"),
        (400, "40080", "model"),
        (401, "40104", "key"),
        (403, "40300", "permission"),
        (429, "42900", "rate_limited"),
        (429, "42901", "rate_limited"),
        (429, "42902", "overloaded"),
        (500, "50000", "server"),
        (504, "50400", "timeout"),
        (200, "42901", "rate_limited"),
        (200, "50300", "overloaded"),
        (500, "50400", "timeout"),
    ],
)
def test_both_shapes_of_an_error_are_understood(status: int, code: str, kind: str) -> None:
    compatible, native = (
        judge(clovastudio.error(status, {}, payload))
        for payload in (
            {"error": {"message": "오류", "type": None, "param": None, "code": code}},
            {"status": {"code": code, "message": "오류"}},
        )
    )
    assert compatible == native
    assert (compatible.kind, compatible.code, compatible.message) == (kind, code, "오류")


def test_a_rate_limit_without_retry_after_is_over_when_the_allowance_is_back() -> None:
    headers = {"X-RateLimit-Reset-Requests": "6s", "x-ratelimit-remaining-requests": "0"}
    fault = judge(clovastudio.error(429, headers, {"error": {"code": "42901", "message": "m"}}))
    assert fault.retry_after_s == 6.0


# ── Anything ────────────────────────────────────────────────────────────────────────────────────────────

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["auto", "required", "none", "text", "가"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "text", "function", "name", "image_url"]),
            inner | st.sampled_from(["system", "developer", "function", "image_url", "json_schema", "json_object"]),
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(
    body=st.dictionaries(st.sampled_from([*VERDICTS, "new", "thinking"]), JUNK, max_size=6),
    to=st.sampled_from([HCX_005, HCX_007, BARE]),
)
def test_a_body_of_any_shape_is_translated_or_refused(body: dict[str, Any], to: Deployment) -> None:
    refusal = None
    after: dict[str, Any] = {}
    try:
        after = sent(body, to)
    except InvalidRequestError as error:
        refusal = error
    if refusal is None:
        assert (after["model"], after[to.output_limit_field]) == (to.upstream_model, 2_000)
    else:
        assert refusal.param
        assert refusal.http_status == 400
