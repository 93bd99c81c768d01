"""What the simulated model answers, counts and bills: on the wire, and through the real SDK."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionToolParam

from local.simulated_model import Capacity, Config, Latency, Price, ThreadedModel, run_in_thread
from local.simulated_model.text import prose
from local.simulated_model.tokens import count, prompt_tokens, split
from tests.waiting import PATIENCE_S, eventually

KEY = {"authorization": "Bearer sk-test"}
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "도시의 날씨",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"type": "string", "enum": ["c", "f"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 3},
            },
            "required": ["city"],
        },
    },
}


@pytest.fixture
def model() -> Iterator[ThreadedModel]:
    with run_in_thread() as running:
        yield running


def ask(server: ThreadedModel, /, text: str = "나루가 무엇인가요?", **more: Any) -> httpx.Response:
    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": text}], **more}
    return httpx.post(f"{server.openai_url}/chat/completions", json=body, headers=KEY)


def content(answer: httpx.Response) -> str:
    return str(answer.json()["choices"][0]["message"]["content"])


def events(answer: httpx.Response) -> list[Any]:
    """Return the chunks of a stream, and `[DONE]` as it is."""
    data = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


def streamed(chunks: list[Any]) -> list[str]:
    deltas = [choice["delta"].get("content") for chunk in chunks[:-1] for choice in chunk["choices"]]
    return [delta for delta in deltas if delta]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("안녕하세요 나루", ["안녕", "하세", "요", " 나루"]),
        ("gateway 2026", ["gate", "way", " 2026"]),
        ("값: 3.5원!", ["값", ":", " 3", ".", "5", "원", "!"]),
        ("a  b  ", ["a", "  b", "  "]),
        ("나\n\n루", ["나", "\n", "\n", "루"]),
        ("강🚣", ["강", "🚣"]),
        ("", []),
    ],
)
def test_a_text_is_split_as_documented(text: str, pieces: list[str]) -> None:
    assert split(text) == pieces
    assert count(text) == len(pieces)


def test_joined_pieces_are_the_text_and_never_more_than_its_bytes() -> None:
    rng = random.Random(7)
    for _ in range(300):
        text = "".join(rng.choice("가나다 abZ9 .,\n🚣é") for _ in range(rng.randrange(40)))
        assert "".join(split(text)) == text
        assert count(text) <= len(text.encode())


@pytest.mark.parametrize("length", [1, 2, 9, 60, 700])
def test_prose_has_exactly_the_length_asked_for_also_when_counted_again(length: int) -> None:
    pieces = prose(3, length, "사진 1장을 보았습니다. ")
    assert len(pieces) == length
    assert split("".join(pieces)) == pieces


def test_a_prompt_costs_its_texts_names_tools_and_images() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "find", "arguments": '{"a":1}'}}
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    body = {
        "messages": [
            {"role": "system", "content": "짧게"},
            {"role": "user", "name": "sago", "content": [{"type": "text", "text": "나루"}, picture]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ],
        "tools": [{"a": "b"}],
    }
    call_tokens = 1 + len(["{", '"', "a", '"', ":", "1", "}"])
    tool_tokens = len(["[", "{", '"', "a", '"', ":", '"', "b", '"', "}", "]"])
    assert prompt_tokens(body) == 3 + (4 + 1) + (4 + 1 + 1 + 765) + (4 + call_tokens) + tool_tokens


def test_the_stream_says_what_the_json_answer_says_in_the_order_openai_does(model: ThreadedModel) -> None:
    whole = ask(model)
    chunks = events(ask(model, stream=True, stream_options={"include_usage": True}))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert streamed(chunks) == split(content(whole))
    finish, usage, done = chunks[-3:]
    assert (finish["choices"][0]["delta"], finish["choices"][0]["finish_reason"]) == ({}, "stop")
    assert (usage["choices"], usage["usage"]) == ([], whole.json()["usage"])
    assert done == "[DONE]"
    assert all(chunk["usage"] is None for chunk in chunks[:-2])
    assert len({chunk["id"] for chunk in chunks[:-1]}) == 1
    assert {chunk["object"] for chunk in chunks[:-1]} == {"chat.completion.chunk"}


def test_without_stream_options_a_stream_does_not_speak_of_usage(model: ThreadedModel) -> None:
    chunks = events(ask(model, stream=True))
    assert not any("usage" in chunk for chunk in chunks[:-1])


def test_the_text_depends_on_the_messages_and_seed_and_on_nothing_else(model: ThreadedModel) -> None:
    plain = content(ask(model, "질문 [[sim tokens=60]]"))
    assert content(ask(model, "질문 [[sim tokens=60 id=7]]", model="gemini-2.5-flash", temperature=0.3)) == plain
    assert content(ask(model, "질문 [[sim tokens=60]]", seed=1)) != plain
    assert content(ask(model, "다른 질문 [[sim tokens=60]]")) != plain
    assert plain.endswith(".")


def test_a_seed_has_a_fingerprint(model: ThreadedModel) -> None:
    prints = [ask(model, seed=seed).json()["system_fingerprint"] for seed in (1, 1, 2)]
    assert prints[0] == prints[1] != prints[2]
    assert ask(model).json()["system_fingerprint"] is None


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_over_the_limit_is_cut_and_says_so(model: ThreadedModel, name: str) -> None:
    whole = ask(model, "질문 [[sim tokens=20]]", **{name: 20}).json()
    cut = ask(model, "질문 [[sim tokens=20]]", **{name: 19}).json()
    assert (whole["choices"][0]["finish_reason"], whole["usage"]["completion_tokens"]) == ("stop", 20)
    assert (cut["choices"][0]["finish_reason"], cut["usage"]["completion_tokens"]) == ("length", 19)
    assert whole["choices"][0]["message"]["content"].startswith(cut["choices"][0]["message"]["content"])


def test_reasoning_is_hidden_billed_and_inside_the_limit(model: ThreadedModel) -> None:
    asked = "질문 [[sim tokens=20 reasoning=50]]"
    usage = ask(model, asked).json()["usage"]
    assert (usage["completion_tokens"], usage["completion_tokens_details"]["reasoning_tokens"]) == (70, 50)
    cut = ask(model, asked, max_completion_tokens=40).json()
    assert (cut["choices"][0]["message"]["content"], cut["choices"][0]["finish_reason"]) == ("", "length")
    assert len(streamed(events(ask(model, asked, stream=True)))) == 20
    assert model.stats()["totals"]["reasoning_tokens"] == 50 + 40 + 50


def test_the_answer_stops_before_the_first_stop_sequence(model: ThreadedModel) -> None:
    whole = content(ask(model))
    stopped = ask(model, stop=["없는 말", "답을"])
    assert content(stopped) == whole[: whole.index("답을")]
    assert stopped.json()["choices"][0]["finish_reason"] == "stop"
    assert stopped.json()["usage"]["completion_tokens"] == count(content(stopped))


def test_several_choices_differ_and_are_billed_together(model: ThreadedModel) -> None:
    answer = ask(model, n=3).json()
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert len(set(texts)) == 3
    assert answer["usage"]["completion_tokens"] == sum(map(count, texts))
    chunks = events(ask(model, n=3, stream=True))
    for index, text in enumerate(texts):
        mine = [choice for chunk in chunks[:-1] for choice in chunk["choices"] if choice["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == text
        assert mine[-1]["finish_reason"] == "stop"


def test_logprobs_come_with_every_token_when_asked_for(model: ThreadedModel) -> None:
    answer = ask(model, logprobs=True, top_logprobs=2).json()["choices"][0]
    tokens = answer["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == answer["message"]["content"]
    assert all(len(token["top_logprobs"]) == 2 and token["logprob"] <= 0 for token in tokens)
    assert ask(model).json()["choices"][0]["logprobs"] is None


def test_a_json_schema_is_matched(model: ThreadedModel) -> None:
    schema = {
        "type": "object",
        "properties": {
            "이름": {"type": "string"},
            "나이": {"type": "integer", "minimum": 20, "maximum": 22},
            "키": {"type": "number"},
            "회원": {"type": "boolean"},
            "등급": {"enum": ["금", "은"]},
            "주소": {"$ref": "#/$defs/address"},
            "메모": {"anyOf": [{"type": "null"}, {"type": "string"}]},
            "취미": {"type": "array", "items": {"type": "string"}, "minItems": 3, "maxItems": 4},
        },
        "$defs": {"address": {"type": "object", "properties": {"시": {"type": "string"}}}},
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    person = json.loads(content(ask(model, response_format=wanted)))
    assert list(person) == ["이름", "나이", "키", "회원", "등급", "주소", "메모", "취미"]
    assert person["나이"] in {20, 21, 22}
    assert isinstance(person["회원"], bool)
    assert person["등급"] in {"금", "은"}
    assert isinstance(person["주소"]["시"], str)
    assert len(person["취미"]) == 3
    assert isinstance(json.loads(content(ask(model, response_format={"type": "json_object"}))), dict)


def test_a_prefilled_answer_is_continued_by_models_that_do_so(model: ThreadedModel) -> None:
    user = {"role": "user", "content": "이야기 [[sim tokens=60]]"}
    whole = content(ask(model, messages=[user]))
    begun = "".join(split(whole)[:25])
    more = [user, {"role": "assistant", "content": begun}]
    rest = ask(model, messages=more, model="claude-sonnet-4-5")
    assert begun + content(rest) == whole
    assert rest.json()["usage"]["completion_tokens"] == 35
    assert begun + content(ask(model, messages=more)) != whole


def test_the_real_sdk_reads_json_streams_tools_and_images(model: ThreadedModel) -> None:
    with openai.OpenAI(base_url=model.openai_url, api_key="sk-sdk", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="hyperclova-x-omni", messages=[{"role": "user", "content": "안녕하세요"}]
        )
        text = answer.choices[0].message.content
        assert text is not None
        assert answer.usage is not None
        assert answer.usage.completion_tokens == count(text)
        assert answer._request_id is not None

        with client.chat.completions.create(
            model="hyperclova-x-omni",
            messages=[{"role": "user", "content": "안녕하세요"}],
            stream=True,
            stream_options={"include_usage": True},
        ) as stream:
            chunks = list(stream)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens

        asked = "서울과 부산의 날씨를 알려 주세요"
        called = client.chat.completions.create(
            model="gpt-4.1", messages=[{"role": "user", "content": asked}], tools=[WEATHER]
        )
        assert called.choices[0].finish_reason == "tool_calls"
        calls = [call for call in called.choices[0].message.tool_calls or [] if call.type == "function"]
        arguments = [json.loads(call.function.arguments) for call in calls]
        assert [argument["city"] for argument in arguments] == ["서울", "부산"]
        assert all(argument["unit"] in {"c", "f"} and 1 <= argument["days"] <= 3 for argument in arguments)

        with client.chat.completions.stream(
            model="gpt-4.1", messages=[{"role": "user", "content": asked}], tools=[WEATHER]
        ) as helper:
            final = helper.get_final_completion()
        assert [
            (call.id, call.function.name, json.loads(call.function.arguments))
            for call in final.choices[0].message.tool_calls or []
        ] == [(call.id, "get_weather", argument) for call, argument in zip(calls, arguments, strict=True)]

        told = client.chat.completions.create(
            model="gpt-4.1",
            messages=[
                {"role": "user", "content": asked},
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "맑음 21도"},
            ],
            tools=[WEATHER],
        )
        assert "“맑음 21도”" in (told.choices[0].message.content or "")

        seen = client.chat.completions.create(
            model="gpt-4.1",
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "무엇이 보이나요?"},
                        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
                    ],
                }
            ],
        )
        assert "사진 1장을 보았습니다" in (seen.choices[0].message.content or "")
        assert seen.usage is not None
        assert seen.usage.prompt_tokens == 3 + 4 + count("무엇이 보이나요?") + 765

        assert "gpt-4.1" in [listed.id for listed in client.models.list()]
    assert model.stats()["requests"] == len(model.stats()["billed"]) == 6


@pytest.mark.parametrize(
    ("more", "cities"),
    [
        ({"parallel_tool_calls": False}, ["서울"]),
        ({"tool_choice": "required"}, ["서울", "부산"]),
        ({"tool_choice": {"type": "function", "function": {"name": "get_weather"}}}, ["서울", "부산"]),
        ({"tool_choice": "none"}, None),
    ],
)
def test_the_tool_choice_is_honoured(model: ThreadedModel, more: dict[str, Any], cities: list[str] | None) -> None:
    message = ask(model, "서울, 부산 날씨", tools=[WEATHER], **more).json()["choices"][0]["message"]
    calls = message.get("tool_calls")
    found = calls and [json.loads(call["function"]["arguments"])["city"] for call in calls]
    assert found == cities


def test_a_streamed_tool_call_names_itself_first_and_is_billed_by_the_token(model: ThreadedModel) -> None:
    chunks = events(ask(model, "제주 날씨", tools=[WEATHER], stream=True, stream_options={"include_usage": True}))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    deltas = [chunk["choices"][0]["delta"]["tool_calls"][0] for chunk in chunks[1:-3]]
    assert deltas[0]["function"] == {"name": "get_weather", "arguments": ""}
    assert deltas[0]["id"].startswith("call_")
    fragments = [delta["function"]["arguments"] for delta in deltas[1:]]
    assert json.loads("".join(fragments))["city"] == "제주"
    assert chunks[-2]["usage"]["completion_tokens"] == count("get_weather") + len(fragments)


def test_a_bill_is_there_before_the_answer_ends_and_agrees_with_its_usage(model: ThreadedModel) -> None:
    headers = {**KEY, "x-request-id": "req_1"}
    asked = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "질문 [[sim cached=5 reasoning=3]]"}]}
    usage = httpx.post(f"{model.openai_url}/chat/completions", json=asked, headers=headers).json()["usage"]
    stats = httpx.get(f"{model.url}/_stats").json()
    assert stats == model.stats()
    (row,) = stats["billed"]
    assert (
        row.items()
        >= {
            "model": "gpt-4.1",
            "face": "openai",
            "key": "sk-test",
            "client_request_id": "req_1",
            "prompt_tokens": usage["prompt_tokens"],
            "cached_tokens": 5,
            "completion_tokens": usage["completion_tokens"],
            "reasoning_tokens": 3,
            "stream": False,
            "finished": True,
            "cost_pico_usd": (usage["prompt_tokens"] - 5) * 2_000_000
            + 5 * 500_000
            + usage["completion_tokens"] * 8_000_000,
        }.items()
    )
    assert stats["totals"]["by_model"]["gpt-4.1"]["cost_pico_usd"] == row["cost_pico_usd"]
    assert (stats["attempts"], stats["in_flight"]) == ({"200": 1}, 0)
    assert httpx.delete(f"{model.url}/_stats").status_code == 200
    assert (model.stats()["requests"], model.stats()["billed"]) == (0, [])


@pytest.mark.parametrize("stream", [False, True])
def test_the_bill_of_an_answer_that_is_being_read_is_already_written(stream: bool) -> None:
    with run_in_thread() as model, httpx.Client(base_url=model.openai_url, headers=KEY) as client:
        for _ in range(20):
            body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "질문"}], "stream": stream}
            before = len(model.stats()["billed"])
            with client.stream("POST", "/chat/completions", json=body) as answer:
                for line in answer.iter_lines():
                    if "finish_reason" in line and '"finish_reason":null' not in line:
                        assert len(model.stats()["billed"]) == before + 1


def test_prices_are_exact_and_an_unknown_model_has_none(model: ThreadedModel) -> None:
    assert Price(Decimal("0.1"), Decimal("0.3")).cost_pico_usd(3, 1, 7) == 2_400_000
    assert Price(Decimal("0.1"), Decimal("0.3"), Decimal("0.01")).cost_pico_usd(3, 1, 7) == 2_310_000
    ask(model, model="누구")
    assert model.stats()["billed"][0]["cost_pico_usd"] is None
    assert model.stats()["totals"]["unpriced"] == 1


def test_a_sloppy_provider_adds_fields_of_its_own(model: ThreadedModel) -> None:
    asked: dict[str, Any] = {"model": "hyperclova-x-omni-fast", "stream_options": {"include_usage": True}}
    whole = ask(model, model="hyperclova-x-omni-fast").json()
    chunk = events(ask(model, stream=True, **asked))[-2]
    cost = model.stats()["billed"][0]["cost_pico_usd"]
    assert cost is not None
    assert whole["usage"]["cost_usd"] == chunk["usage"]["cost_usd"] == cost / 10**12
    assert isinstance(whole["latency_ms"], int)
    assert isinstance(chunk["latency_ms"], int)
    assert "cost_usd" not in ask(model).json()["usage"]


def test_repeated_prefixes_are_cached_for_the_same_key_and_model_when_configured() -> None:
    system = {"role": "system", "content": "나루 안내원입니다. " * 20}
    messages = [system, {"role": "user", "content": "첫 질문"}]
    with run_in_thread(Config(cache_prefixes=True, cache_min_tokens=50)) as model:
        cached = [
            ask(model, messages=asked, model=name).json()["usage"]["prompt_tokens_details"]["cached_tokens"]
            for asked, name in [
                (messages, "gpt-4.1"),
                ([system, {"role": "user", "content": "둘째"}], "gpt-4.1"),
                (messages, "gpt-4.1"),
                (messages, "claude-sonnet-4-5"),
            ]
        ]
    prefix = 4 + count(str(system["content"]))
    assert cached == [0, prefix, prefix + 4 + count("첫 질문"), 0]


@pytest.mark.parametrize(
    ("wrong", "status", "code"),
    [
        ({"messages": []}, 400, None),
        ({"messages": [{"role": "사공", "content": "x"}]}, 400, None),
        ({"model": ""}, 400, None),
        ({"temperature": 2.1}, 400, None),
        ({"n": 0}, 400, None),
        ({"max_tokens": 0}, 400, None),
        ({"stream_options": {"include_usage": True}}, 400, None),
        ({"messages": [{"role": "user", "content": "긴 " * 130_000}]}, 400, "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "[[sim tokns=3]]"}]}, 400, "invalid_sim_directive"),
    ],
)
def test_a_wrong_request_is_refused_in_openai_words_and_not_billed(
    model: ThreadedModel, wrong: dict[str, Any], status: int, code: str | None
) -> None:
    answer = ask(model, **wrong)
    error = answer.json()["error"]
    assert (answer.status_code, set(error)) == (status, {"message", "type", "param", "code"})
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert model.stats()["billed"] == []
    assert model.stats()["attempts"] == {str(status): 1}


def test_keys_and_models_are_checked() -> None:
    config = Config(models=frozenset({"gpt-4.1"}), keys=frozenset({"sk-test", "revoked"}))
    with run_in_thread(config) as model:
        url = f"{model.openai_url}/chat/completions"
        body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "x"}]}
        keys: list[dict[str, str]] = [{}, {"authorization": "Bearer revoked"}, {"authorization": "Bearer other"}, KEY]
        assert [httpx.post(url, json=body, headers=key).status_code for key in keys] == [401, 401, 401, 200]
        unknown = ask(model, model="gpt-9")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
        listed = httpx.get(f"{model.openai_url}/models", headers=KEY).json()
        assert [entry["id"] for entry in listed["data"]] == ["gpt-4.1"]
        assert httpx.get(f"{model.openai_url}/models").status_code == 401
        assert httpx.get(f"{model.url}/v1/nothing", headers=KEY).status_code == 404


def test_latency_is_kept_by_streams_and_json() -> None:
    with run_in_thread(Config(latency=Latency(first_token_ms=80, token_ms=10))) as model:
        for stream in (False, True):
            begun = time.monotonic()
            ask(model, "질문 [[sim tokens=11]]", stream=stream)
            assert time.monotonic() - begun >= 0.18


def test_a_directive_overrides_the_latency() -> None:
    with run_in_thread(Config(latency=Latency(first_token_ms=60_000, token_ms=60_000))) as model:
        assert ask(model, "질문 [[sim tokens=11 ttft_ms=0 token_ms=0]]").status_code == 200


def test_lognormal_latency_has_the_mean_and_p95_asked_for() -> None:
    latency = Latency(first_token_ms=320, first_token_p95_ms=800)
    rng = random.Random(1)
    drawn = sorted(latency.first_token_s(rng) * 1000 for _ in range(20_000))
    assert statistics.fmean(drawn) == pytest.approx(320, rel=0.03)
    assert drawn[19_000] == pytest.approx(800, rel=0.03)
    with pytest.raises(ValueError, match="p95"):
        Latency(token_ms=10, token_p95_ms=100)


def test_a_client_that_leaves_stops_the_generation_and_its_bill(model: ThreadedModel) -> None:
    body = {
        "model": "gpt-4.1",
        "messages": [{"role": "user", "content": "질문 [[sim tokens=60000 token_ms=5]]"}],
        "stream": True,
    }
    with httpx.stream("POST", f"{model.openai_url}/chat/completions", json=body, headers=KEY) as answer:
        read = 0
        for line in answer.iter_lines():
            read += line.startswith("data:")
            if read == 11:
                break
    row = only_row(model)
    assert 10 <= row["completion_tokens"] < 60_000
    assert (row["stream"], row["finished"]) == (True, False)
    assert row["cost_pico_usd"] == row["prompt_tokens"] * 2_000_000 + row["completion_tokens"] * 8_000_000


def test_a_client_that_leaves_a_json_answer_pays_for_what_was_generated_until_then(model: ThreadedModel) -> None:
    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "질문 [[sim tokens=60000 token_ms=10]]"}]}

    async def leave() -> None:
        async with httpx.AsyncClient(headers=KEY) as client:
            asking = asyncio.create_task(client.post(f"{model.openai_url}/chat/completions", json=body))
            await asyncio.to_thread(eventually, lambda: model.stats()["in_flight"] == 1)
            await asyncio.sleep(0.3)
            asking.cancel()

    asyncio.run(leave())
    row = only_row(model)
    assert 5 <= row["completion_tokens"] < 60_000
    assert not row["finished"]


def only_row(model: ThreadedModel) -> Any:
    """Return the one billed row, once the provider has noticed that its client has gone."""
    model.wait_idle()
    (row,) = model.stats()["billed"]
    return row


def test_more_at_once_than_the_capacity_are_refused_with_retry_after() -> None:
    held = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "질문 [[sim ttft_ms=60000]]"}], "stream": True}
    with run_in_thread(Config(capacity=Capacity(max_concurrent=2, retry_after_s=1.5))) as model:
        with httpx.Client(headers=KEY) as client, ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(client.stream("POST", f"{model.openai_url}/chat/completions", json=held))
            refused = [ask(model) for _ in range(3)]
        assert [answer.status_code for answer in refused] == [429] * 3
        assert refused[0].headers["retry-after"] == "1.5"
        assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"
        model.wait_idle()
        assert ask(model).status_code == 200
        stats = model.stats()
    assert [(row["completion_tokens"] > 0, row["finished"]) for row in stats["billed"]] == [(False, False)] * 2 + [
        (True, True)
    ]
    assert stats["max_in_flight"] == 3


def test_a_place_is_free_again_when_the_answer_ends() -> None:
    with run_in_thread(Config(capacity=Capacity(max_concurrent=1))) as model, httpx.Client(headers=KEY) as client:
        body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "질문 [[sim tokens=2]]"}], "stream": True}
        url = f"{model.openai_url}/chat/completions"
        assert [client.post(url, json=body).status_code for _ in range(100)] == [200] * 100


def test_requests_per_minute_are_limited_and_the_limit_can_be_changed() -> None:
    with run_in_thread(Config(capacity=Capacity(requests_per_minute=2))) as model:
        answers = [ask(model) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert "retry-after" not in answers[2].headers
        httpx.post(f"{model.url}/_control", json={"capacity": {"requests_per_minute": 3}})
        assert [ask(model).status_code for _ in range(2)] == [200, 429]
        httpx.delete(f"{model.url}/_control")
        assert ask(model).status_code == 429


def test_answers_of_concurrent_streams_are_not_crossed(model: ThreadedModel) -> None:
    def one(number: int) -> tuple[str, str]:
        text = f"{number}번 질문 [[sim tokens=80 token_ms=1]]"
        return "".join(streamed(events(ask(model, text, stream=True)))), content(ask(model, text))

    with ThreadPoolExecutor(8) as pool:
        pairs = list(pool.map(one, range(16)))
    assert all(stream == whole for stream, whole in pairs)
    assert len({stream for stream, _ in pairs}) == 16


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_says_where_it_is_and_stops_cleanly_on_a_signal(number: signal.Signals) -> None:
    command = [sys.executable, "-W", "error", "-m", "local.simulated_model", "--port", "0", "--answer-tokens", "7"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": ""},
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"simulated model: (http://127\.0\.0\.1:\d+)\n", line)
        assert found is not None
        body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "질문"}]}
        answer = httpx.post(f"{found[1]}/v1/chat/completions", json=body, headers=KEY)
        assert answer.json()["usage"]["completion_tokens"] == 7
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, err) == (0, "", "")


def test_a_taken_port_fails_in_the_thread_that_asked(model: ThreadedModel) -> None:
    port = int(model.url.rpartition(":")[2])
    with pytest.raises(OSError, match="in use"), run_in_thread(port=port):
        pass
