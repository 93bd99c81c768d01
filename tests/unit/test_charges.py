"""What could cost more than was set aside does not pass: request fields, tools, tiers, caches, films in an image's place."""

from __future__ import annotations

import base64
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming

from naru import charges
from naru.catalog import Capability, Deployment, Price, Tokenizer
from naru.dialects import clovastudio, openai
from naru.errors import InvalidRequestError
from naru.tokens import upper_bound_completion
from tests.prompts import upper_bound_prompt

PRICES = {"input_micro_per_mtok": 3, "output_micro_per_mtok": 15}
PLAIN = Price(currency="USD", **PRICES)
MINUTES = Price(currency="USD", **PRICES, cache_write_micro_per_mtok=4)
HOURS = Price(currency="USD", **PRICES, cache_write_micro_per_mtok=4, cache_write_1h_micro_per_mtok=6)
ABILITIES: tuple[Capability, ...] = ("tools", "vision", "audio", "json_object", "json_schema", "multiple_choices")
FUNCTION = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def deployment(price: Price = PLAIN, **settings: Any) -> Deployment:
    return Deployment(
        name="p/m",
        provider="p",
        upstream_model="m",
        price=price,
        capabilities=frozenset(ABILITIES),
        stream_usage=True,
        context_tokens=128_000,
        max_output_tokens=16_384,
        **settings,
    )


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "안녕"}]} | fields


def sent(body: dict[str, Any], to: Deployment | None = None) -> dict[str, Any]:
    return openai.request_body(body, deployment=to or deployment(), output_limit=1_000)


def refused(body: dict[str, Any], to: Deployment | None = None) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        sent(body, to)
    return caught.value


# ── Fields ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_field_of_the_sdk_is_known() -> None:
    assert frozenset(get_type_hints(CompletionCreateParamsNonStreaming)) == charges.OPENAI_FIELDS


@pytest.mark.parametrize(
    "name",
    [
        "plugins", "models", "route", "provider", "transforms", "speed", "best_of", "num_completions", "candidate_count",
        "candidateCount", "extra_body", "web_search", "search_parameters", "tool_resources", "file_ids", "documents",
        "data_sources", "mcp_servers", "container", "context_management", "betas", "inference_geo", "fallbacks",
        "max_output_tokens", "max_new_tokens", "maxTokens", "num_predict", "generation_config", "use_beam_search",
        "chat_template", "mm_processor_kwargs", "logits_processors", "conversation", "previous_response_id", "input",
        "prompt", "cached_content", "enable_search", "search_options", "priority", "invented_next_year",
        "Plugins", "PLUGINS", "plugins ", " plugins", "plug\u00adins", "N", "Max_Tokens", "TOOLS", "service_tier ",
        "Service_Tier", "\uff4e", "n\u200b", "",
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [[{"id": "web"}], 8, "x", True, {}])
def test_a_field_that_could_cost_anything_is_refused_by_name(name: str, value: Any) -> None:
    error = refused(chat(**{name: value}))
    assert (error.param, error.code, error.status) == (name, "unsupported_parameter", 400)
    assert "passes" in error.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", 40), ("min_p", 0.05), ("repetition_penalty", 1.1), ("chat_template_kwargs", {"thinking": True}),
        ("thinking", {"type": "enabled", "budget_tokens": 500}), ("reasoning", {"effort": "low"}),
        ("enable_thinking", False), ("guided_json", {"type": "object"}), ("ignore_eos", True), ("plugins", None),
        ("service_tier", "auto"), ("service_tier", "default"), ("modalities", ["text", "audio"]), ("n", 2),
        ("tools", [FUNCTION, {"type": "custom", "custom": {"name": "sql"}}]), ("tool_choice", "auto"),
        ("tool_choice", {"type": "function", "function": {"name": "weather"}}),
    ],
)  # fmt: skip
def test_fields_that_cost_no_more_than_their_tokens_are_sent(name: str, value: Any) -> None:
    assert sent(chat(**{name: value}))[name] == value


def test_the_catalog_lets_a_field_pass_to_one_deployment() -> None:
    asked = chat(invented_next_year={"deep": True})
    assert sent(asked, deployment(passes=["invented_next_year"]))["invented_next_year"] == {"deep": True}
    assert "invented_next_year" not in sent(asked, deployment(strip=["invented_next_year"]))
    assert refused(asked, deployment(passes=["another"])).param == "invented_next_year"


@pytest.mark.parametrize("value", ["priority", "fast", "PRIORITY", " priority", "priority\u3000", "Fast", "flex", "scale", "batch", "\uff50riority", "", 1, ["auto"], {}])  # fmt: skip
def test_only_the_standard_tier_is_served(value: Any) -> None:
    assert refused(chat(service_tier=value)).param == "service_tier"


@pytest.mark.parametrize("value", [["text", "image"], ["IMAGE"], "image", ["video"], [1], [["audio"]]])
def test_only_modalities_that_have_a_price_are_served(value: Any) -> None:
    assert refused(chat(modalities=value)).param == "modalities"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": kind}]}, "tools[0].type")
        for kind in (
            "web_search", "web_search_preview", "web_search_20250305", "code_interpreter", "google_search", "mcp",
            "computer_use_preview", "file_search", "image_generation", "url_context", "openrouter:web_search",
            "builtin_function", "Function", "function ", "FUNCTION", "", None, 1, ["function"],
        )
    ]
    + [
        ({"tools": [FUNCTION, {"google_search": {}}]}, "tools[1].google_search"),
        ({"tools": [FUNCTION | {"googleSearch": {}}]}, "tools[0].googleSearch"),
        ({"tools": [FUNCTION | {"Type": "web_search"}]}, "tools[0].Type"),
        ({"tools": [{"type": "function", "function": {"name": "googleSearch"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "codeExecution"}}]}, "tools[0].function.name"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"tool_choice": {"type": "web_search_preview"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "mcp", "server_label": "x"}}, "tool_choice.type"),
    ],
)  # fmt: skip
def test_tools_that_a_provider_runs_are_refused(fields: dict[str, Any], param: str) -> None:
    assert refused(chat(**fields)).param == param


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, 0),
        ({"thinking": {"type": "enabled", "budget_tokens": 5_000}}, 5_000),
        ({"thinking": {"type": "disabled"}}, 0),
        ({"thinking_budget": 700}, 700),
        ({"thinking_budget": -1}, 0),
        ({"reasoning": {"max_tokens": 900}}, 900),
        ({"chat_template_kwargs": {"thinking_budget": 30}}, 30),
        ({"thinking_budget": 700, "thinking": {"budget_tokens": 5_000}}, 5_000),
    ],
)
def test_a_budget_for_thoughts_is_set_aside_besides_the_answer(fields: dict[str, Any], tokens: int) -> None:
    sent(chat(**fields))
    assert upper_bound_completion(chat(**fields), output_limit=100) == 100 + tokens
    assert upper_bound_completion(chat(n=3, **fields), output_limit=100) == 3 * (100 + tokens)


@pytest.mark.parametrize("value", [True, "5000", 5e3, [5000], {}, 10**12, -2])
def test_a_budget_for_thoughts_is_a_number(value: Any) -> None:
    assert refused(chat(thinking={"type": "enabled", "budget_tokens": value})).param == "thinking.budget_tokens"


def test_clova_studio_takes_its_own_fields_and_no_unknown_ones() -> None:
    hcx = deployment()
    body = clovastudio.request_body(chat(top_k=5, repetition_penalty=1.2), deployment=hcx, output_limit=100)
    assert (body["top_k"], body["repetition_penalty"]) == (5, 1.2)
    with pytest.raises(InvalidRequestError, match="plugins"):
        clovastudio.request_body(chat(plugins=[{"id": "web"}]), deployment=hcx, output_limit=100)


# ── Caches ──────────────────────────────────────────────────────────────────────────────────────────────────

HOUR = {"type": "ephemeral", "ttl": "1h"}
PLACES: dict[str, Any] = {
    "cache_control.ttl": lambda mark: {"cache_control": mark},
    "messages[0].cache_control.ttl": lambda mark: {
        "messages": [{"role": "user", "content": "x", "cache_control": mark}]
    },
    "messages[1].content[1].cache_control.ttl": lambda mark: {
        "messages": [
            {"role": "system", "content": "x"},
            {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "x", "cache_control": mark}]},
        ]
    },
    "messages[0].content[0].cacheControl.ttl": lambda mark: {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cacheControl": mark}]}]
    },
    "tools[0].cache_control.ttl": lambda mark: {"tools": [FUNCTION | {"cache_control": mark}]},
    "tools[0].function.cache_control.ttl": lambda mark: {
        "tools": [{"type": "function", "function": {"name": "f", "cache_control": mark}}]
    },
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_cache_for_an_hour_needs_a_price(place: str) -> None:
    body = chat() | PLACES[place](HOUR)
    assert refused(body, deployment(MINUTES)).param == place
    assert sent(body, deployment(HOURS))
    assert sent(body, deployment(PLAIN))  # where writes cost as input, for however long
    assert charges.hour_writes(body, deployment(HOURS)) == "all"
    assert charges.hour_writes(body, deployment(PLAIN)) == "none"
    assert sent(chat() | PLACES[place]({"type": "ephemeral"}), deployment(MINUTES))


@pytest.mark.parametrize("ttl", ["24h", "1H", " 1h", "60m", 3600, True, ["1h"], {"h": 1}, ""])
@pytest.mark.parametrize("price", [MINUTES, HOURS])
def test_no_other_time_has_a_price(ttl: Any, price: Price) -> None:
    error = refused(chat(cache_control={"type": "ephemeral", "ttl": ttl}), deployment(price))
    assert (error.param, error.code) == ("cache_control.ttl", "unsupported_value")


def test_marks_for_an_hour_and_for_minutes_are_told_apart() -> None:
    parts = [
        {"type": "text", "text": "x", "cache_control": mark} for mark in (HOUR, {"type": "ephemeral", "ttl": "5m"})
    ]
    assert charges.hour_writes(chat(messages=[{"role": "user", "content": parts}]), deployment(HOURS)) == "some"
    assert charges.hour_writes(chat(messages=[{"role": "user", "content": parts[1:]}]), deployment(HOURS)) == "none"


def test_a_cache_for_an_hour_is_in_the_bound() -> None:
    rates = HOURS.rates(1_400)
    assert rates.worst_case_pico_usd(prompt_tokens=10, completion_tokens=1) == 10 * 4 + 15
    assert rates.worst_case_pico_usd(prompt_tokens=10, completion_tokens=1, hour_writes=True) == 10 * 6 + 15


# ── Films and documents ─────────────────────────────────────────────────────────────────────────────────────

MP4 = "https://example.com/y.mp4"
IMAGES = [
    "https://example.com/a.png", "HTTPS://EXAMPLE.COM/A.PNG", "https://example.com/a.jpeg?size=large",
    "https://example.com/%EC%82%AC%EC%A7%84.webp", "data:image/png;base64,AAAA", "data:image/jpeg;charset=utf-8;base64,AA",
    "http://10.0.0.1:8080/files/a.b.gif", "https://mp4.example.com/a.png",
]  # fmt: skip
NAMELESS = ["https://example.com/photo", "https://example.com/", "https://cdn.example.com/v1/8f3a?sig=abc"]
OTHERS = [
    MP4, "HTTPS://EXAMPLE.COM/Y.MP4", "https://example.com/y%2Emp4", "https://example.com/y.%6Dp4",
    "https://example.com/y%252Emp4", "https://example.com/y.mp4?type=.png", "https://example.com/y.mp4#a.png",
    "https://example.com/y.mp4/", "https://example.com/get?file=y.mp4", "https://example.com/get?file=y.mp4&as=a.png",
    "https://example.com/y.mp4;a.png", "https://example.com/a.pdf", "https://example.com/a.PDF", "https://example.com/a.mov",
    "https://example.com/stream.m3u8", "https://example.com/a.docx", "https://example.com/a.exe", "gs://bucket/a.png",
    "s3://bucket/a.png", "file:///a.png", "ftp://example.com/a.png", "https://youtu.be/dQw4w9WgXcQ",
    "https://www.youtube.com/watch?v=dQw4w9WgXcQ", "https://m.YouTube.com/shorts/x", "https://youtube.com./watch?v=x",
    "https://vimeo.com/1", "data:video/mp4;base64,AAAA", " data:video/mp4;base64,AAAA", "\tdata:video/mp4;base64,AAAA",
    "DATA:VIDEO/MP4;base64,AAAA", "data: image/png;base64,AAAA", "data:application/pdf;base64,AAAA", "data:;base64,AAAA",
    "data:image/../video/mp4;base64,AAAA", "data:audio/wav;base64,AAAA", "dat%61:video/mp4;base64,AAAA", "file-abc123",
    "https:example.com/a.png", "//example.com/a.png", "https:///a.png", "https://[::1/a.png", "https://example.com/a b.png",
    "https://example.com\\y.mp4", "", "x" * 10, "%" * 100,
]  # fmt: skip
FAMILIES: list[Tokenizer] = ["cl100k", "o200k", "claude", "gemini", "hyperclova", "unknown"]


def image(url: Any, **extra: Any) -> dict[str, Any]:
    return chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url} | extra}]}])


def is_bounded(body: dict[str, Any], tokenizer: Tokenizer) -> bool:
    return upper_bound_prompt(body, tokenizer) < 100_000


@pytest.mark.parametrize("tokenizer", FAMILIES)
@pytest.mark.parametrize("url", IMAGES)
def test_an_image_counts_as_one(url: str, tokenizer: Tokenizer) -> None:
    assert is_bounded(image(url, detail="high"), tokenizer)


@pytest.mark.parametrize("tokenizer", FAMILIES)
@pytest.mark.parametrize("url", OTHERS)
def test_what_may_be_a_film_or_a_document_counts_as_the_whole_context(url: str, tokenizer: Tokenizer) -> None:
    assert not is_bounded(image(url), tokenizer)


@pytest.mark.parametrize("url", NAMELESS)
def test_a_link_without_a_name_may_be_a_film_where_films_are_taken(url: str) -> None:
    assert [is_bounded(image(url), tokenizer) for tokenizer in FAMILIES] == [True, True, True, False, False, False]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video_url", "video_url": {"url": MP4}},
        {"type": "input_video", "input_video": {"url": MP4}},
        {"type": "document", "source": {"type": "url", "url": MP4}},
        {"type": "image", "source": {"type": "file", "file_id": "file-1"}},
        {"type": "text", "text": "x", "video_url": {"url": MP4}},
        {"type": "text", "text": "x", "Type": "video_url"},
        {"type": "TEXT", "text": "x"},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "URL": MP4}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "file_id": "file-1"}},
        {"type": "image_url", "image_url": {"file_id": "file-1"}},
        {"type": "image_url"},
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"https://a.b/c.mp3").decode(), "format": "mp3"}},
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"  gs://a/b").decode(), "format": "mp3"}},
        {"type": "input_audio", "input_audio": {"data": "https://example.com/c.mp3", "format": "mp3"}},
        {"type": "input_audio", "input_audio": {"url": "https://example.com/c.mp3"}},
        {"type": "input_audio", "input_audio": {"data": "A", "format": "mp3"}},
        {"type": "input_audio", "input_audio": "x"},
        {"type": "audio_url", "audio_url": {"url": MP4}},
        {"type": 7},
        {},
    ],
)  # fmt: skip
def test_a_part_that_may_be_anything_counts_as_the_whole_context(part: dict[str, Any]) -> None:
    assert not is_bounded(chat(messages=[{"role": "user", "content": [part]}]), "o200k")


@pytest.mark.parametrize(
    "data", [base64.b64encode(bytes(range(256))).decode(), base64.urlsafe_b64encode(b"\xff" * 99).decode(), ""]
)
def test_a_recording_counts_by_its_bytes(data: str) -> None:
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    assert is_bounded(chat(messages=[{"role": "user", "content": [part]}]), "o200k")


@pytest.mark.parametrize(
    "field", [{"audio": {"id": "audio_1"}}, {"attachments": [{"file_id": "f"}]}, {"file_ids": ["f"]}, {"file_id": "f"}]
)
def test_what_a_message_refers_to_by_an_id_counts_as_the_whole_context(field: dict[str, Any]) -> None:
    assert not is_bounded(chat(messages=[{"role": "assistant", "content": "x"} | field]), "o200k")


@given(st.text(max_size=60), st.sampled_from(FAMILIES))
def test_any_address_is_an_image_or_has_no_bound(url: str, tokenizer: Tokenizer) -> None:
    bound = upper_bound_prompt(image(url), tokenizer)
    assert bound > 10**8 or charges.is_one_image(url, films=False)
