"""What an answer is charged for, from the provider's report to the row, as JSON and as a stream."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests import one_gateway
from tests.one_gateway import MICRO, Gateway, assert_settled, chunks

CLAUDE = "claude-sonnet-4-5"
WORDS = "Seoul is the capital of Korea."
Answer = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def always_settled(gateway: Gateway) -> Iterator[None]:
    yield
    assert_settled(gateway)


@pytest.fixture(params=[False, True], ids=["json", "stream"])
def reported(request: pytest.FixtureRequest, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Answer:
    """Asks once, of a provider that reports this usage; what the client is told."""
    stream: bool = request.param

    def ask(usage: Any, *, content: str = WORDS, model: str = CLAUDE, **fields: Any) -> dict[str, Any]:
        def answer(_: httpx.Request) -> httpx.Response:
            if not stream:
                message = {"role": "assistant", "content": content}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                return httpx.Response(
                    200, json={"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}
                )
            events = [
                {"choices": [{"index": 0, "delta": {"role": "assistant", "content": content}}]},
                {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
                {"choices": [], "usage": usage},
            ]
            sent = b"".join(b"data: " + json.dumps({"id": "x"} | event).encode() + b"\n\n" for event in events)
            return httpx.Response(
                200, content=sent + b"data: [DONE]\n\n", headers={"content-type": "text/event-stream"}
            )

        def client() -> httpx.AsyncClient:
            return httpx.AsyncClient(transport=httpx.MockTransport(answer))

        monkeypatch.setattr(one_gateway, "new_http_client", client)
        options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        answered = gateway.ask("What is the capital?", model=model, **options, **fields)
        told = chunks(answered)[-2] if stream else json.loads(answered)
        assert isinstance(told["usage"], dict)
        return told["usage"]

    return ask


def test_the_row_and_the_client_agree_and_cached_tokens_are_not_thoughts(gateway: Gateway, reported: Answer) -> None:
    told = reported(
        {"prompt_tokens": 1000, "completion_tokens": 10, "total_tokens": 5010, "cache_read_input_tokens": 4000}
    )
    row = gateway.row
    assert (row.cost_pico_usd, row.usage_source) == (4_350_000_000, "reported")
    assert told == {
        "prompt_tokens": 5000,
        "completion_tokens": 10,
        "total_tokens": 5010,
        "prompt_tokens_details": {"cached_tokens": 4000},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_hits_inside_the_prompt_are_charged_as_read(gateway: Gateway, reported: Answer) -> None:
    reported(
        {
            "prompt_tokens": 5000, "completion_tokens": 10, "total_tokens": 5010, "prompt_cache_hit_tokens": 4000,
            "prompt_cache_miss_tokens": 1000,
        }
    )  # fmt: skip
    assert (gateway.row.cost_pico_usd, gateway.row.usage_source) == (4_350_000_000, "reported")


def test_a_doubt_is_in_the_row_and_its_figures_are_in_the_log(
    gateway: Gateway, reported: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    reported({"prompt_tokens": 30, "completion_tokens": 10, "cache_read_input_tokens": 20, "comment": "서울"})
    assert gateway.row.usage_source == "estimated"
    (record,) = [record for record in caplog.records if record.message == "usage is ambiguous"]
    assert vars(record)["figures"] == {"prompt_tokens": 30, "completion_tokens": 10, "cache_read_input_tokens": 20}
    assert (vars(record)["doubt"], vars(record)["deployment"]) == ("ambiguous", f"holysheep/{CLAUDE}")
    assert "서울" not in str(vars(record))


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 900_000_000},
        {"prompt_tokens": 900_000_000, "completion_tokens": 10, "cache_read_input_tokens": 900_000_000},
        {"prompt_tokens": 20, "completion_tokens": 1, "reasoning_tokens": 900_000_000},
        {"prompt_tokens": 900_000_000, "completion_tokens": 1},
        {"prompt_tokens": 20, "completion_tokens": 900_000_000, "total_tokens": 900_000_020},
    ],
)
def test_an_estimate_is_never_more_than_the_request_was_admitted_with(
    gateway: Gateway, reported: Answer, caplog: pytest.LogCaptureFixture, usage: dict[str, Any]
) -> None:
    reported(usage, max_tokens=100)
    row = gateway.row
    assert row.usage_source == "estimated"
    assert 0 < row.cost_pico_usd == row.rates.cost_pico_usd(row.usage)
    assert row.usage.completion_tokens <= 100
    assert "worst case exceeded" not in caplog.text


def test_thoughts_that_only_the_total_shows_are_paid_for(gateway: Gateway, reported: Answer) -> None:
    told = reported({"prompt_tokens": 20, "completion_tokens": 198, "total_tokens": 623}, model="gemini-2.5-flash")
    row = gateway.row
    assert (row.usage.completion_tokens, row.usage.reasoning_tokens, row.usage_source) == (603, 405, "estimated")
    assert told["completion_tokens"] == 603


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 20, "completion_tokens": 0, "total_tokens": 20},
        {"prompt_tokens": 20},
        {"prompt_tokens": 0, "completion_tokens": 10, "total_tokens": 10},
        {"completion_tokens": 10},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": True, "completion_tokens": "ten"},
        {"prompt_tokens": -20, "completion_tokens": -10},
        {"prompt_tokens": 20.5, "completion_tokens": 10},
        {},
        [],
        "none",
    ],
)  # fmt: skip
def test_neither_the_prompt_nor_the_words_are_free(gateway: Gateway, reported: Answer, usage: Any) -> None:
    told = reported(usage)
    row = gateway.row
    assert row.usage_source == "estimated"
    assert row.usage.prompt_tokens > 0
    assert row.usage.completion_tokens > 0
    assert (told["prompt_tokens"], told["completion_tokens"]) == (row.usage.prompt_tokens, row.usage.completion_tokens)


def test_an_answer_without_words_may_have_no_completion(gateway: Gateway, reported: Answer) -> None:
    reported({"prompt_tokens": 20, "completion_tokens": 0, "total_tokens": 20}, content="")
    assert (gateway.row.usage.completion_tokens, gateway.row.usage_source) == (0, "reported")


# ── Caches that keep for an hour ────────────────────────────────────────────────────────────────────────────

HOUR = {"type": "ephemeral", "ttl": "1h"}
MINUTES = {"type": "ephemeral"}
WRITTEN = {"input_tokens": 1000, "output_tokens": 10, "cache_creation_input_tokens": 4000}
SPLIT = WRITTEN | {"cache_creation": {"ephemeral_5m_input_tokens": 1000, "ephemeral_1h_input_tokens": 3000}}


def marked(*marks: dict[str, Any]) -> dict[str, Any]:
    parts = [{"type": "text", "text": "A long document. " * 500, "cache_control": mark} for mark in marks]
    return {"messages": [{"role": "user", "content": parts}]}


@pytest.mark.parametrize(
    ("usage", "marks", "hour_tokens", "source"),
    [
        (WRITTEN, [HOUR], 4000, "reported"),
        (WRITTEN, [MINUTES], 0, "reported"),
        (WRITTEN, [{"type": "ephemeral", "ttl": "5m"}], 0, "reported"),
        (WRITTEN, [HOUR, MINUTES], 4000, "estimated"),
        (SPLIT, [HOUR, MINUTES], 3000, "reported"),
        (SPLIT, [MINUTES], 3000, "reported"),
        (WRITTEN | {"claude_cache_creation_1_h_tokens": 4000, "usage_semantic": "anthropic"}, [HOUR], 4000, "reported"),
    ],
)
def test_what_is_written_for_an_hour_has_its_own_price(
    gateway: Gateway, reported: Answer, usage: dict[str, Any], marks: list[Any], hour_tokens: int, source: str
) -> None:
    reported(usage, **marked(*marks))
    row = gateway.row
    assert (row.usage.cache_write_1h_tokens, row.usage_source) == (hour_tokens, source)
    assert row.usage.cache_write_tokens == 4000
    assert row.cost_pico_usd == 1000 * 3 * MICRO + 10 * 15 * MICRO + (4000 - hour_tokens) * 3_750_000 + hour_tokens * (
        6 * MICRO
    )
