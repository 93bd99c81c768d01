"""Streams that die in the middle: who gives the rest, what the client sees of it, and what is paid."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from naru import dialects
from naru.ledger import Row
from naru.relay import ChunkRelay, InvalidChunkError, Overlap
from naru.tokens import CompletionCounter
from tests.one_gateway import OMNI, Gateway, another_deployment, assert_settled, chunks, text

CLAUDE = "claude-sonnet-4-5"
HELPED = ("[models.hyperclova-x-omni]\n", f'[models.hyperclova-x-omni]\nfallbacks = ["{CLAUDE}"]\n')
TWIN = another_deployment("twin")
PROMPT = "부산을 소개해 주세요"


@pytest.fixture(autouse=True)
def always_settled(gateway: Gateway) -> Iterator[None]:
    yield
    assert_settled(gateway)


def whole(gateway: Gateway, **fields: Any) -> str:
    """The answer when nothing fails, from the provider itself."""
    body = {"model": OMNI, "messages": [{"role": "user", "content": f"{PROMPT} [[sim tokens=60]]"}]} | fields

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(headers={"authorization": "Bearer k1"}) as client:
            return await client.post(f"{gateway.model.openai_url}/chat/completions", json=body)

    answer = gateway.run(post())
    gateway.model.reset_stats()
    content = answer.json()["choices"][0]["message"]["content"]
    assert isinstance(content, str)
    return content


def ask(gateway: Gateway, fault: str, **fields: Any) -> list[Any]:
    return chunks(gateway.ask(f"{PROMPT} [[sim tokens=60 fault={fault},model={OMNI}]]", stream=True, **fields))


def assert_one_answer(events: list[Any]) -> None:
    """To the client it is one: one id, one model, one role, one end."""
    assert events[-1] == "[DONE]"
    said = [event for event in events[:-1] if event["choices"]]
    assert len({(event["id"], event["model"], event["created"]) for event in events[:-1]}) == 1
    assert [c["finish_reason"] for e in said for c in e["choices"] if c["finish_reason"]] == ["stop"]
    assert sum("role" in choice["delta"] for event in said for choice in event["choices"]) == 1


def assert_parts_are_the_bill(gateway: Gateway, *models: str) -> Row:
    """Each part of the row is what its provider billed; only that of one who was cut off is an estimate."""
    row = gateway.row
    bills = {bill["model"]: bill for bill in gateway.model.stats()["billed"]}
    assert [part.model for part in row.parts] == list(models)
    assert (row.outcome, row.usage_source) == ("completed", "estimated")
    assert row.cost_pico_usd == sum(part.cost_pico_usd for part in row.parts)
    assert row.usage.completion_tokens == sum(part.usage.completion_tokens for part in row.parts)
    *cut, last = row.parts
    assert all(part.usage.estimated for part in cut)
    assert not last.usage.estimated
    assert last.cost_pico_usd == bills[last.model]["cost_pico_usd"]
    for part in cut:
        assert part.usage.completion_tokens == pytest.approx(bills[part.model]["completion_tokens"], rel=0.6)
    return row


CUTS = [
    "cut_after:40,how=reset",
    "cut_after:40,how=close",
    "cut_after:40,how=end",
    "malformed_chunk:40",
    "error_in_200:40",
]


@pytest.mark.parametrize("fault", CUTS)
def test_a_model_that_takes_the_beginning_of_an_answer_goes_on_with_it(gateway: Gateway, fault: str) -> None:
    gateway.use_catalog(HELPED)
    events = ask(gateway, fault)
    assert_one_answer(events)
    row = assert_parts_are_the_bill(gateway, OMNI, CLAUDE)
    assert text(events) == whole(gateway)
    assert [(attempt.result, attempt.why) for attempt in row.attempts] == [("cut", ""), ("ok", "continue")]
    # What the first one said is in the second one's prompt, and not said again.
    assert row.parts[1].usage.completion_tokens < 30
    assert (row.model_served, row.deployment) == (OMNI, f"holysheep/{OMNI}")


def test_a_provider_that_falls_silent_is_followed_too(gateway: Gateway) -> None:
    gateway.deadline_s = 840.0
    gateway.use_catalog(HELPED)
    events = ask(gateway, "stall_after:40,seconds=3600")
    assert_one_answer(events)
    assert_parts_are_the_bill(gateway, OMNI, CLAUDE)
    assert text(events) == whole(gateway)


def test_the_client_is_shown_the_tokens_of_all_parts(gateway: Gateway) -> None:
    gateway.use_catalog(HELPED)
    events = ask(gateway, "cut_after:40", stream_options={"include_usage": True})
    assert_one_answer(events)
    usage, row = events[-2]["usage"], gateway.row
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (
        row.usage.prompt_tokens,
        row.usage.completion_tokens,
    )
    assert all(event["usage"] is None for event in events[:-2])


def test_a_target_that_refuses_the_beginning_is_asked_from_the_start(gateway: Gateway) -> None:
    # The catalog says that it can, and it cannot: the provider refuses an assistant's message at the end.
    gateway.use_catalog(HELPED)
    fault = {"name": "status", "status": 400, "code": "invalid_request_error", "model": CLAUDE}
    gateway.model.control({"rules": [{"fault": fault, "times": 1, "match": {"model": CLAUDE}}]})
    events = ask(gateway, "cut_after:40")
    assert_one_answer(events)
    row = assert_parts_are_the_bill(gateway, OMNI, CLAUDE)
    assert [(attempt.result, attempt.why) for attempt in row.attempts] == [
        ("cut", ""),
        ("400", "continue"),
        ("ok", "restart"),
    ]
    assert row.parts[1].usage.completion_tokens == 60
    assert text(events) == whole(gateway)


def test_the_same_model_elsewhere_says_it_again_where_nothing_is_left_to_chance(gateway: Gateway) -> None:
    gateway.use_catalog(TWIN)
    events = ask(gateway, "cut_after:40", temperature=0)
    assert_one_answer(events)
    assert text(events) == whole(gateway)
    assert [part.deployment for part in gateway.row.parts] == [f"holysheep/{OMNI}", "twin"]


def test_another_answer_is_not_glued_to_the_first(gateway: Gateway) -> None:
    # Without its seed the twin says something else.
    gateway.use_catalog((TWIN[0], TWIN[1].replace("stream_usage", 'strip = ["seed"]\nstream_usage')))
    events = ask(gateway, "cut_after:40", seed=7)
    assert events[-1]["error"]["code"] == "upstream_stream_cut"
    assert whole(gateway, seed=7).startswith(text(events[:-1]))
    row = gateway.row
    assert [(attempt.result, attempt.why) for attempt in row.attempts] == [("cut", ""), ("mismatch", "restart")]
    assert (row.outcome, len(row.parts)) == ("truncated", 2)
    # The twin was hung up on, and may bill all of it.
    assert row.maybe_billed_pico_usd > 0


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.7}])
def test_what_is_left_to_chance_is_not_asked_for_again(gateway: Gateway, fields: dict[str, Any]) -> None:
    gateway.use_catalog(TWIN)
    events = ask(gateway, "cut_after:40", **fields)
    assert events[-1]["error"]["code"] == "upstream_stream_cut"
    assert [attempt.result for attempt in gateway.row.attempts] == ["cut"]


def test_half_a_tool_call_is_not_handed_on(gateway: Gateway) -> None:
    gateway.use_catalog(HELPED)
    parameters = {"type": "object", "properties": {"city": {"type": "string"}, "note": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    events = chunks(
        gateway.ask(
            f"부산 날씨 [[sim fault=cut_after:3,model={OMNI}]]", stream=True, tools=[tool], tool_choice="required"
        )
    )
    assert "error" in events[-1]
    assert len(gateway.row.attempts) == 1


def test_the_verdict_of_a_filter_in_the_middle_is_the_end(gateway: Gateway) -> None:
    gateway.use_catalog(HELPED)
    events = ask(gateway, "error_in_200:40,code=content_filter")
    assert events[-1]["error"]["code"] == "upstream_stream_error"
    assert len(gateway.row.attempts) == 1


def test_one_that_follows_and_is_cut_too_ends_in_an_error(gateway: Gateway) -> None:
    gateway.use_catalog(HELPED)
    prompt = f"{PROMPT} [[sim tokens=60 fault=cut_after:20]]"
    events = chunks(gateway.ask(prompt, stream=True))
    assert events[-1]["error"]["code"] == "upstream_stream_cut"
    row = gateway.row
    assert [attempt.result for attempt in row.attempts] == ["cut", "cut"]
    assert (row.outcome, len(row.parts)) == ("truncated", 2)


def test_a_client_that_has_left_is_not_continued_for(gateway: Gateway) -> None:
    gateway.use_catalog(HELPED)
    prompt = f"{PROMPT} [[sim tokens=60 fault=cut_after:40,model={OMNI}]]"
    gateway.ask(prompt, stream=True, take=3)
    assert [attempt.result for attempt in gateway.row.attempts] == ["cut"]
    assert gateway.row.outcome == "truncated"


def test_both_parts_fit_into_what_was_set_aside(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    gateway.use_catalog(HELPED)
    ask(gateway, "cut_after:59", max_tokens=60)
    assert "worst case exceeded" not in [record.message for record in caplog.records]
    assert len(gateway.row.parts) == 2


@pytest.mark.parametrize("noise", [b"", b"ping", b"null", b"[DONE", b'{"type":"ping"}', b'{"choices":null}'])
def test_noise_between_the_chunks_is_no_cut_and_a_piece_of_a_chunk_is(noise: bytes) -> None:
    relay = ChunkRelay(dialects.for_name("openai"), CompletionCounter("hyperclova"), choices=1, show_usage=False)
    if noise == b"[DONE":
        with pytest.raises(InvalidChunkError):
            relay.read(noise)
    else:
        assert relay.read(noise) is None
    relay.read(b'{"id":"x","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}')
    # After the last word nothing more can be lost.
    assert relay.read(b'{"usage":{"prompt_tok') is None


@given(st.text(), st.lists(st.text(max_size=5)))
def test_an_answer_said_again_in_any_pieces_gives_what_is_new(expected: str, rest: list[str]) -> None:
    overlap = Overlap(expected, required=True)
    whole = expected + "".join(rest)
    cuts = sorted({0, *(len("".join(rest[:i])) for i in range(len(rest))), len(whole)})
    pieces = [whole[a:b] for a, b in itertools.pairwise(cuts)]
    assert "".join(map(overlap.new, pieces)) == "".join(rest)
    assert not overlap.pending
