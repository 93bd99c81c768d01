"""Requests that were made to break something: each is refused or answered, quickly, and none is a defect."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from naru import admin_api, wire
from naru.errors import InvalidRequestError
from naru.wire import MAX_DEPTH
from tests.security.handlers import OMNI, Handlers

MEGABYTE = 1024 * 1024


def request_with(field: str) -> str:
    return f'{{"model": "{OMNI}", "messages": [{{"role": "user", "content": "안녕 [[sim tokens=3]]"}}], {field}}}'


def nested(depth: int, *, opening: str = "[", closing: str = "]") -> str:
    return f'"chat_template_kwargs": {opening * depth}{"1" if opening != "[" else ""}{closing * depth}'


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
@pytest.mark.parametrize("depth", [MAX_DEPTH, 900, 5_000, 100_000])
def test_deep_nesting_is_refused_with_advice(gateway: Handlers, depth: int, opening: str, closing: str) -> None:
    """Python's own limit depends on its release and on the caller: beyond ours nothing may hang on it."""
    reply = gateway.send("chat", "POST", "/chat/completions", request_with(nested(depth, opening=opening, closing=closing)))  # fmt: skip
    assert reply.status == 400
    assert "nested too deeply" in reply.json()["error"]["message"]


def test_what_is_just_deep_enough_passes_and_reaches_the_provider(gateway: Handlers) -> None:
    arrays = MAX_DEPTH - 5  # within the request, its tools, one of them, its function and that one's parameters
    deep = f'{{"deep": {"[" * arrays}{"]" * arrays}}}'
    reply = gateway.send("chat", "POST", "/chat/completions", request_with(f'"tools": [{{"type": "function", "function": {{"name": "f", "parameters": {deep}}}}}]'))  # fmt: skip
    assert reply.status == 200, reply.body
    assert gateway.model.stats()["requests"] == 1


@given(st.recursive(st.integers(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)))  # fmt: skip
@settings(max_examples=60)
def test_the_depth_that_is_allowed_is_the_depth_that_is_counted(value: Any) -> None:
    def depth(item: Any) -> int:
        parts = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        return 1 + max(map(depth, parts), default=0) if isinstance(item, dict | list) else 0

    # So much around it that the limit lies within the value.
    for extra in range(1, depth(value) + 2):
        wrapped: Any = value
        for _ in range(MAX_DEPTH - extra):
            wrapped = [wrapped]
        text = json.dumps({"a": wrapped})
        if MAX_DEPTH - extra + depth(value) + 1 <= MAX_DEPTH:
            assert wire.parse_json_object(text)
        else:
            with pytest.raises(InvalidRequestError, match="too deeply"):
                wire.parse_json_object(text)


def test_five_megabytes_are_served_or_refused_in_seconds(gateway: Handlers) -> None:
    """What API Gateway lets through. A prompt of that size has no place in the model's context."""
    prompt = "가" * (5 * MEGABYTE // 3)
    many = [{"role": "user", "content": "a"}] * 30_000
    for messages, status in (
        ([{"role": "user", "content": prompt}], {400}),
        (many, {400}),
        ([{"role": "user", "content": "a", "x" * MEGABYTE: 1}], {200, 400}),
        ([{"role": "x"}] * 100_000, {400}),
    ):
        began_s = time.process_time()
        reply = gateway.send("chat", "POST", "/chat/completions", {"model": OMNI, "messages": messages})
        assert reply.status in status
        assert time.process_time() - began_s < 15  # one or two
        assert len(reply.body) < 10_000
    assert max(map(len, gateway.printed.getvalue().splitlines()), default=0) < 10_000


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity", "-Infinity", "1" + "0" * 5_000, "1" + "0" * 400 + ".5"])  # fmt: skip
@pytest.mark.parametrize("field", ["max_tokens", "temperature", "seed", "n", "logit_bias", "anything"])
def test_numbers_that_no_provider_could_read_are_refused(gateway: Handlers, number: str, field: str) -> None:
    reply = gateway.send("chat", "POST", "/chat/completions", request_with(f'"{field}": {number}'))
    assert reply.status == 400
    assert gateway.model.stats()["requests"] == 0


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "n", "top_logprobs"])
@pytest.mark.parametrize("digits", [10, 40, 4_000])
def test_huge_numbers_are_refused_and_not_echoed(gateway: Handlers, field: str, digits: int) -> None:
    reply = gateway.send("chat", "POST", "/chat/completions", request_with(f'"{field}": {"9" * digits}'))
    assert (reply.status, reply.json()["error"]["param"]) == (400, field)
    assert len(reply.body) < 500


def test_of_duplicate_keys_the_provider_sees_what_the_gateway_has_checked() -> None:
    """Two parsers that choose differently would let a request be checked as one model and billed as another."""
    text = f'{{"model": "nope", "model": "{OMNI}", "messages": 1, "messages": [{{"role": "user", "content": "a", "content": "b"}}]}}'
    body, request = wire.parse_chat_request(text)
    assert request.model == OMNI
    sent = wire.compact_json(body)
    assert sent.count(b'"model"') == sent.count(b'"messages"') == sent.count(b'"content"') == 1
    assert json.loads(sent)["messages"][0]["content"] == "b"


@pytest.mark.parametrize("escaped", [r"\ud800", r"\udfff", r"\ud800 \udc00"])
def test_half_a_surrogate_pair_is_refused(gateway: Handlers, escaped: str) -> None:
    for field in (f'"stop": "{escaped}"', f'"{escaped}": 1', f'"user": "{escaped}"'):
        reply = gateway.send("chat", "POST", "/chat/completions", request_with(field))
        assert reply.status == 400
        assert "surrogate" in reply.json()["error"]["message"]


def test_a_name_of_an_end_user_is_short_and_on_one_line(gateway: Handlers) -> None:
    """It lies in a row of at most 400 KB, in logs and on terminals; Korean and anything else that can be read passes."""
    for user in ("x" * 513, "a\nb", "a\x1b[31mb", "a\u0085b", "a\u202eb", "a\x00"):
        for field in ("user", "safety_identifier"):
            body = {"model": OMNI, "messages": [{"role": "user", "content": "안녕"}], field: user}
            reply = gateway.send("chat", "POST", "/chat/completions", body)
            assert (reply.status, reply.json()["error"]["param"]) == (400, field), user
    assert gateway.model.stats()["requests"] == 0
    assert gateway.chat("안녕 [[sim tokens=3]]", user="김철수 👩‍💻 " + "x" * 500).status == 200


def test_the_name_of_a_field_is_not_repeated_at_length(gateway: Handlers) -> None:
    reply = gateway.chat(metadata={"k" * MEGABYTE: 1})
    assert reply.status == 400
    assert len(reply.body) < 2_000


@given(st.text(max_size=200) | st.binary(max_size=200))
@settings(max_examples=200)
def test_any_body_is_an_object_or_a_refusal(body: str | bytes) -> None:
    for parse in (wire.parse_json_object, wire.parse_chat_request, admin_api.parse_rotation):
        try:
            parse(body)
        except InvalidRequestError:
            continue


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
_FIELDS = st.sampled_from(
    ["messages", "model", "stream", "stream_options", "tools", "tool_choice", "response_format", "n", "user", "stop",
     "max_tokens", "logit_bias", "metadata", "prediction", "functions", "modalities", "audio", "reasoning_effort"]
)  # fmt: skip


@given(fields=st.dictionaries(_FIELDS, _JSON, max_size=4), model=st.sampled_from([OMNI, "HCX-005", "HCX-007", "claude-sonnet-4-5"]))  # fmt: skip
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_no_json_makes_a_defect(gateway: Handlers, fields: dict[str, Any], model: str) -> None:
    """Any JSON in any field is answered, refused by us, or by the provider: never a 500."""
    body = {"model": model, "messages": [{"role": "user", "content": "안녕 [[sim tokens=2]]"}]} | fields
    reply = gateway.send("chat", "POST", "/chat/completions", json.dumps(body))
    assert reply.status != 500, (reply.body, gateway.printed.getvalue()[-3000:])


@given(fields=st.dictionaries(st.sampled_from([*admin_api._KEY_FIELDS, "shards", "enabled", "x"]), _JSON, max_size=4))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_no_json_makes_a_defect_of_the_admin_api(gateway: Handlers, fields: dict[str, Any]) -> None:
    for method, path in (
        ("POST", "/admin/keys"),
        ("PATCH", f"/admin/keys/{gateway.key_id}"),
        ("POST", f"/admin/keys/{gateway.key_id}/rotate"),
    ):
        reply = gateway.admin(method, path, json.dumps({**fields, "no_such_field": 1}))
        assert reply.status == 400, reply.body
    reply = gateway.admin("POST", "/admin/keys", json.dumps({"name": "fuzz", **fields}))
    assert reply.status in {201, 400}, (reply.body, gateway.printed.getvalue()[-3000:])


@pytest.mark.parametrize(("header", "value"), [("x-naru-fallback", "gpt"), ("x-naru-strategy", "cheap")])
def test_a_stranger_s_header_is_not_read_before_the_key(gateway: Handlers, header: str, value: str) -> None:
    assert gateway.chat(key=None, headers={header: value}).status == 401
    refused = gateway.chat(headers={header: value})
    assert (refused.status, refused.json()["error"]["param"]) == (400, header)
    assert "x-ratelimit-limit-requests" in refused.headers
