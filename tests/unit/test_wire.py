import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naru.errors import InvalidRequestError
from naru.wire import compact_json, parse_chat_request

HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "안녕하세요"}]}


def refused(body: Any) -> dict[str, Any]:
    text = body if isinstance(body, str) else json.dumps(body)
    with pytest.raises(InvalidRequestError) as error:
        parse_chat_request(text)
    result: dict[str, Any] = error.value.body()["error"]
    return result


def test_everything_that_the_sdk_sends_is_accepted_and_unknown_fields_are_kept() -> None:
    body = HELLO | {
        "stream": True,
        "stream_options": {"include_usage": True, "include_obfuscation": False},
        "temperature": 1,
        "top_p": 0.9,
        "n": 2,
        "stop": ["끝", "END"],
        "max_completion_tokens": 100,
        "tools": [
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},
            {"type": "custom"},
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
        "logit_bias": {"50256": -100},
        "seed": 7,
        "user": "u1",
        "invented_next_year": {"a": [1]},
        "presence_penalty": None,
    }
    kept, request = parse_chat_request(json.dumps(body))
    assert kept == body
    assert (request.output_limit, request.n, request.end_user, request.wants_usage_chunk) == (100, 2, "u1", True)


def test_messages_of_every_role_and_part_are_accepted() -> None:
    messages = [
        {"role": "developer", "content": "짧게"},
        {"role": "user", "content": [{"type": "text", "text": "무엇?"}, {"type": "image_url", "image_url": {"url": "https://x/y.png"}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "맑음"},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, {"type": "brand_new"}]},
    ]  # fmt: skip
    kept, _ = parse_chat_request(json.dumps(HELLO | {"messages": messages}))
    assert kept["messages"] == messages


@pytest.mark.parametrize(
    ("change", "param", "code", "said"),
    [
        ({"model": 5}, "model", "invalid_type", "expected a string, but got an integer"),
        ({"model": ""}, "model", "empty_value", "must not be empty"),
        ({"messages": []}, "messages", "empty_value", "must not be empty"),
        ({"messages": "hi"}, "messages", "invalid_type", "expected an array, but got a string"),
        ({"messages": ["hi"]}, "messages[0]", "invalid_type", "expected an object, but got a string"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter", "Missing required"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role", "invalid_value", "one of 'system'"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content", "invalid_type", "a string or an array, but got an integer"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "empty_value", "must not be empty"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "missing_required_parameter", "Missing"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type", "missing_required_parameter", "Missing"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}]}, "messages[0].content[0].image_url", "invalid_type", "an object"),
        ({"temperature": "0.7"}, "temperature", "invalid_type", "expected a number, but got a string"),
        ({"temperature": True}, "temperature", "invalid_type", "expected a number, but got a boolean"),
        ({"temperature": 2.5}, "temperature", "value_above_max", "at most 2"),
        ({"n": 0}, "n", "value_below_min", "at least 1"),
        ({"n": 1.5}, "n", "invalid_type", "expected an integer, but got a number"),
        ({"max_tokens": 0}, "max_tokens", "value_below_min", "at least 1"),
        ({"stop": 4}, "stop", "invalid_type", "a string or an array"),
        ({"stream": "yes"}, "stream", "invalid_type", "expected a boolean"),
        ({"tools": [{"function": {}}]}, "tools[0].type", "missing_required_parameter", "Missing"),
        ({"metadata": {"~a": 1}}, "metadata.~a", "invalid_type", "expected a string, but got an integer"),
        ({"stream_options": {"include_usage": True}}, "stream_options", None, "only allowed when 'stream' is true"),
        ({"response_format": "json"}, "response_format", "invalid_type", "expected an object"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_type", "expected a string"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_what_was_expected(
    change: dict[str, Any], param: str, code: str | None, said: str
) -> None:
    error = refused(HELLO | change)
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert said in error["message"]


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_a_missing_field_is_named(missing: str) -> None:
    error = refused({key: value for key, value in HELLO.items() if key != missing})
    assert error == {
        "message": f"Missing required parameter: '{missing}'.",
        "type": "invalid_request_error",
        "param": missing,
        "code": "missing_required_parameter",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no body"),
        ("  ", "no body"),
        ("{", "not valid JSON at line 1"),
        ("[]", "must be a JSON object"),
        ('"text"', "must be a JSON object"),
        ('{"temperature": NaN}', "not valid JSON"),
        ('{"temperature": 1e999}', "not valid JSON"),
        ('{"model": "\\ud800"}', "surrogate"),
        ("[" * 100_000, "nested too deeply"),
        ('{"seed": ' + "9" * 5000 + "}", "not valid JSON"),
    ],
)
def test_what_is_not_a_json_object_is_refused_with_advice(text: str, said: str) -> None:
    assert said in refused(text)["message"]


@pytest.mark.slow
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=20))  # fmt: skip
def test_any_json_is_accepted_or_refused_and_nothing_else(value: Any) -> None:
    body = HELLO | value if isinstance(value, dict) else HELLO | {"messages": value}
    try:
        kept, _ = parse_chat_request(json.dumps(body))
        compact_json(kept)
    except InvalidRequestError as error:
        compact_json(error.body())
