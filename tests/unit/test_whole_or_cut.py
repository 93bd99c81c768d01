"""When an answer is over: what the client is told, what the row says and who is asked for the rest must agree."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from naru.errors import UpstreamProtocolError
from tests import one_gateway
from tests.one_gateway import OMNI, Gateway, assert_settled
from tests.scripted import (
    USAGE,
    Answer,
    Ending,
    Providers,
    Read,
    chunk,
    event,
    read_with_sdk,
    stream,
    usage_chunk,
)

CLAUDE = "claude-sonnet-4-5"
HELPED = ("[models.hyperclova-x-omni]\n", f'[models.hyperclova-x-omni]\nfallbacks = ["{CLAUDE}"]\n')
ERROR = {"error": {"message": "The server had an error", "type": "server_error"}}
CALL = {"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": "{}"}}]}


@pytest.fixture(autouse=True)
def always_settled(gateway: Gateway) -> Iterator[None]:
    yield
    assert_settled(gateway)


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Providers]:
    """Has the providers answer so, one after the other."""

    def answer(*answers: Answer) -> Providers:
        providers = Providers(list(answers))
        monkeypatch.setattr(one_gateway, "new_http_client", providers.client)
        return providers

    return answer


def ask(gateway: Gateway, **fields: Any) -> Read:
    return read_with_sdk(gateway.ask(stream=True, **fields))


WHOLE: dict[str, tuple[list[Any], Ending]] = {
    "[DONE]": ([chunk(content="Seoul"), chunk(0, "stop"), "[DONE]"], "end"),
    "no [DONE]": ([chunk(content="Seoul"), chunk(0, "stop")], "end"),
    "a reset behind the end": ([chunk(content="Seoul"), chunk(0, "stop")], "reset"),
    "silence behind the end": ([chunk(content="Seoul"), chunk(0, "stop")], "silence"),
    "the end with the last word": ([chunk(content="Se"), chunk(0, "stop", content="oul"), "[DONE]"], "end"),
    "the end with the only word": ([chunk(0, "stop", content="Seoul"), "[DONE]"], "end"),
    "the end with every word": ([chunk(0, "stop", content="Se"), chunk(0, "stop", content="oul"), "[DONE]"], "end"),
    "an end behind the thoughts, and a true one": (
        [chunk(0, "stop", reasoning_content="hm"), chunk(content="Seoul"), chunk(0, "stop"), "[DONE]"],
        "end",
    ),
    "an end before the first word, and a true one": (
        [chunk(0, "stop", role="assistant", content=""), chunk(content="Seoul"), chunk(0, "stop"), "[DONE]"],
        "end",
    ),
    "the same end again": ([chunk(content="Seoul"), chunk(0, "stop"), chunk(0, "stop"), "[DONE]"], "end"),
    "usage behind the end": ([chunk(content="Seoul"), chunk(0, "stop"), usage_chunk(), "[DONE]"], "end"),
    "half of the usage behind the end": (
        [chunk(content="Seoul"), chunk(0, "stop"), b'data: {"id":"1","choices": [],"usage":{"prompt_tok'],
        "end",
    ),
    "half of [DONE] behind the end": ([chunk(content="Seoul"), chunk(0, "stop"), b"data: [DON"], "end"),
    "empty deltas behind the end": (
        [chunk(content="Seoul"), chunk(0, "stop"), chunk(content=""), chunk(role="assistant"), chunk(), "[DONE]"],
        "end",
    ),
    "an empty call behind the end": (
        [chunk(content="Seoul"), chunk(0, "stop"), chunk(tool_calls=[{"index": 0, "type": "function"}]), "[DONE]"],
        "end",
    ),
    "annotations behind the end": (
        [
            chunk(content="Seoul"),
            chunk(0, "stop"),
            chunk(annotations=[{"type": "url_citation", "title": "t"}]),
            "[DONE]",
        ],
        "end",
    ),
    "the end of a recording behind the end": (
        [chunk(content="Seoul"), chunk(0, "stop"), chunk(audio={"id": "a", "expires_at": 1764547200}), "[DONE]"],
        "end",
    ),
    "noise behind the end": (
        [chunk(content="Seoul"), chunk(0, "stop"), b": ping\n\n", "ping", '{"type":"ping"}', "null", "[]", "[DONE]"],
        "end",
    ),
    "null, false and empty are no end": (
        [chunk(0, "", content="Se"), chunk(0, False, content="oul"), chunk(0, "null"), chunk(0, "stop"), "[DONE]"],
        "end",
    ),
    "words behind [DONE]": ([chunk(content="Seoul"), chunk(0, "stop"), "[DONE]", chunk(content="!")], "end"),
}


@pytest.mark.parametrize(("events", "ending"), WHOLE.values(), ids=WHOLE)
def test_an_answer_with_nothing_but_noise_behind_its_end_is_whole(
    gateway: Gateway, answering: Callable[..., Providers], events: list[Any], ending: Ending
) -> None:
    gateway.use_catalog(HELPED)
    providers = answering(Answer([event(each) for each in events], ending))
    read = ask(gateway)
    assert (read.text, read.finish, read.error, read.done) == ("Seoul", ["stop"], None, True)
    assert (gateway.row.outcome, len(gateway.row.parts), len(providers.asked)) == ("completed", 0, 1)


NOT_OVER: dict[str, list[Any]] = {
    "words": [chunk(content="Se"), chunk(0, "stop"), chunk(content="oul")],
    "a word that is a blank": [chunk(content="Seoul"), chunk(0, "stop"), chunk(content=" ")],
    "words with [DONE]": [chunk(content="Se"), chunk(0, "stop"), chunk(content="oul"), "[DONE]"],
    "words behind thoughts": [chunk(0, "stop", reasoning_content="hm"), chunk(content="Seo")],
    "words in parts": [chunk(content="Se"), chunk(0, "stop"), chunk(content=[{"type": "text", "text": "oul"}])],
    "thoughts": [chunk(content="Se"), chunk(0, "stop"), chunk(reasoning="hm, more")],
    "a refusal": [chunk(content="Se"), chunk(0, "stop"), chunk(refusal="No")],
    "an error object": [chunk(content="Se"), chunk(0, "stop"), ERROR],
    "an error object and [DONE]": [chunk(content="Se"), chunk(0, "stop"), ERROR, "[DONE]"],
    "an error event": [chunk(content="Se"), chunk(0, "stop"), b'event: error\ndata: {"message":"oh"}\n\n'],
    "an error without a name": [chunk(content="Se"), chunk(0, "stop"), {"object": "error", "message": "oh"}],
    "a chunk that is broken": [chunk(content="Se"), chunk(0, "stop"), '{"choices":[{"delta":{"content":"o'],
    "a chunk that is something else": [chunk(content="Se"), chunk(0, "stop"), '{"choices":[["oul"]]}'],
    "a string": [chunk(content="Se"), chunk(0, "stop"), '"oul"'],
    "no end at all": [chunk(content="Se"), "[DONE]"],
    "the provider's error as the end": [chunk(content="Se"), chunk(0, "error"), "[DONE]"],
    "the provider's error behind the end": [chunk(content="Se"), chunk(0, "stop"), chunk(0, "error"), "[DONE]"],
    "an error in the choice": [
        chunk(content="Se"),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "error", "error": {"message": "oh", "code": 502}}]},
    ],
    "an end that says that resources ran out": [chunk(content="Se"), chunk(0, "insufficient_system_resource"), "[DONE]"],
    "an end that says abort": [chunk(content="Se"), chunk(0, "abort"), "[DONE]"],
    "an end that names a call": [chunk(content="Se"), chunk(0, "tool_calls"), "[DONE]"],
}  # fmt: skip


@pytest.mark.parametrize("ending", ["end", "reset"])
@pytest.mark.parametrize("events", NOT_OVER.values(), ids=NOT_OVER)
def test_what_follows_an_end_shows_that_it_was_none(
    gateway: Gateway, answering: Callable[..., Providers], events: list[Any], ending: Ending
) -> None:
    answering(Answer([event(each) for each in events], ending))
    read = ask(gateway)
    assert read.error in {"upstream_stream_cut", "upstream_stream_error", "upstream_unavailable"}
    assert (read.finish, read.done) == ([], False)
    row = gateway.row
    assert (row.outcome, row.attempts[-1].result) == ("truncated", "cut")
    assert row.usage.completion_tokens > 0


@pytest.mark.parametrize("events", NOT_OVER.values(), ids=NOT_OVER)
def test_the_rest_is_asked_for_from_where_the_client_s_text_ends(
    gateway: Gateway, answering: Callable[..., Providers], events: list[Any]
) -> None:
    gateway.use_catalog(HELPED)
    following = [chunk(role="assistant"), chunk(content=" - the rest"), chunk(0, "stop"), "[DONE]"]
    providers = answering(Answer([*map(event, events)], "reset"), Answer([*map(event, following)]))
    read = ask(gateway)
    if read.refusal:
        assert (read.error, len(providers.asked)) == ("upstream_stream_cut", 1)
        return
    (prefill,) = [message for message in providers.asked[1]["messages"] if message["role"] == "assistant"]
    assert read.text.rstrip().startswith(prefill["content"])
    assert read.text.split() == [*prefill["content"].split(), "-", "the", "rest"]
    assert (read.finish, read.done, gateway.row.outcome) == (["stop"], True, "completed")
    assert [part.model for part in gateway.row.parts] == [OMNI, CLAUDE]


def test_words_of_one_choice_do_not_reopen_another(gateway: Gateway, answering: Callable[..., Providers]) -> None:
    first = [chunk(0, content="A"), chunk(1, content="B"), chunk(0, "stop")]
    answering(Answer([event(each) for each in [*first, chunk(1, content="b"), chunk(1, "length"), "[DONE]"]]))
    read = ask(gateway, n=2)
    assert (read.content, sorted(read.finish), read.done) == ({0: "A", 1: "Bb"}, ["length", "stop"], True)
    assert gateway.row.outcome == "completed"


@pytest.mark.parametrize(
    "last",
    [
        [chunk(1, "stop"), chunk(0, content="more")],
        [chunk(1, content="more")],
        [chunk(1, "stop"), ERROR],
        [],
    ],
)
def test_of_several_choices_each_must_have_ended(
    gateway: Gateway, answering: Callable[..., Providers], last: list[Any]
) -> None:
    first = [chunk(0, content="A"), chunk(1, content="B"), chunk(0, "stop")]
    answering(Answer([event(each) for each in [*first, *last, "[DONE]"]]))
    read = ask(gateway, n=2)
    assert (read.done, gateway.row.outcome) == (False, "truncated")


@pytest.mark.parametrize(
    ("reasons", "told"),
    [
        (["length"], "length"),
        (["content_filter"], "content_filter"),
        (["STOP"], "STOP"),
        (["eos"], "eos"),
        (["stop", "length"], "length"),
        (["length", "stop"], "length"),
        (["stop", "stop", "content_filter"], "content_filter"),
    ],
)
def test_one_reason_is_told_and_it_is_the_one_that_says_most(
    gateway: Gateway, answering: Callable[..., Providers], reasons: list[str], told: str
) -> None:
    answering(Answer([event(chunk(content="Seoul")), *(event(chunk(0, reason)) for reason in reasons)]))
    assert ask(gateway).finish == [told]
    assert gateway.row.outcome == "completed"


def test_calls_end_with_their_reason_whatever_closes_the_stream(
    gateway: Gateway, answering: Callable[..., Providers]
) -> None:
    answering(Answer([event(each) for each in [chunk(**CALL), chunk(0, "tool_calls"), chunk(0, "stop"), "[DONE]"]]))
    read = ask(gateway)
    assert (read.calls, read.finish) == ({0: ("call_1", "weather", "{}")}, ["tool_calls"])


@pytest.mark.parametrize("more", [CALL, {"function_call": {"name": "f", "arguments": "{"}}])
def test_a_call_behind_the_end_is_a_cut(
    gateway: Gateway, answering: Callable[..., Providers], more: dict[str, Any]
) -> None:
    gateway.use_catalog(HELPED)
    providers = answering(Answer([event(each) for each in [chunk(content="Se"), chunk(0, "stop"), chunk(**more)]]))
    read = ask(gateway)
    assert (read.error, read.done, gateway.row.outcome) == ("upstream_stream_cut", False, "truncated")
    assert len(providers.asked) == 1  # half a call cannot be handed on


def test_an_error_behind_an_end_without_words_is_served_elsewhere(
    gateway: Gateway, answering: Callable[..., Providers]
) -> None:
    gateway.use_catalog(HELPED)
    answering(
        Answer([event(each) for each in [chunk(role="assistant"), chunk(0, "stop"), ERROR]]),
        Answer([event(each) for each in [chunk(content="Seoul"), chunk(0, "stop"), "[DONE]"]]),
    )
    assert ask(gateway).text == "Seoul"
    assert (gateway.row.model_served, gateway.row.outcome) == (CLAUDE, "completed")


def test_an_answer_without_a_word_is_whole_where_it_says_so(
    gateway: Gateway, answering: Callable[..., Providers]
) -> None:
    answering(Answer([stream(chunk(role="assistant", content=""), chunk(0, "length"), usage_chunk())]))
    read = ask(gateway)
    assert (read.text, read.finish, read.done, gateway.row.outcome) == ("", ["length"], True, "completed")


def test_a_client_that_has_left_is_charged_for_what_was_cut_as_for_what_was_cut(
    gateway: Gateway, answering: Callable[..., Providers]
) -> None:
    events = [chunk(content="S"), chunk(content="e"), chunk(0, "stop"), chunk(content="oul")]
    answering(Answer([event(each) for each in events], "reset"))
    gateway.ask(stream=True, take=1)
    assert gateway.row.outcome == "truncated"


def test_bytes_in_openai_s_shape_are_passed_on_as_they_came(
    gateway: Gateway, answering: Callable[..., Providers]
) -> None:
    answer = stream(chunk(role="assistant", content=""), chunk(content="Seoul"), chunk(0, "stop"))
    answering(Answer([answer]))
    assert gateway.ask(stream=True) == answer


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        (None, {"content": "Seo"}),
        ("", {"content": "Seo"}),
        (False, {"content": "Seo"}),
        ("error", {"content": "Seo"}),
        ("network_error", {"content": "Seo"}),
        ("tool_calls", {"content": "Seo"}),
        ("tool_calls", {"content": None, "tool_calls": []}),
        ("stop", None),
    ],
)
def test_a_json_answer_that_broke_off_is_no_answer(
    gateway: Gateway, answering: Callable[..., Providers], reason: Any, message: Any
) -> None:
    choice = {"index": 0, "message": message, "finish_reason": reason}
    answering(Answer([json.dumps({"choices": [choice], "usage": USAGE}).encode()], content_type="application/json"))
    with pytest.raises(UpstreamProtocolError):
        gateway.ask()
    assert (gateway.row.outcome, gateway.row.attempts[0].maybe_billed) == ("failed", True)
