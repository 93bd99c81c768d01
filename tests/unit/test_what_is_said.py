"""Text wherever a provider puts it, whole characters wherever it cuts them, and calls with a number."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from naru import canonical, dialects, sse
from naru.assembly import assembled
from naru.batch_results import answered, not_run, unpack
from naru.halves import mend, mend_start, read_json
from naru.pricing import Usage
from naru.relay import ChunkRelay
from naru.sse import Decoder
from naru.tokens import CompletionCounter, estimate
from naru.wire import compact_json
from tests import one_gateway
from tests.one_gateway import Gateway, assert_settled
from tests.scripted import (
    DONE,
    USAGE,
    Answer,
    Providers,
    Read,
    chunk,
    cut_anywhere,
    event,
    read_with_sdk,
    stream,
    usage_chunk,
)

CLAUDE = "claude-sonnet-4-5"
HELPED = ("[models.hyperclova-x-omni]\n", f'[models.hyperclova-x-omni]\nfallbacks = ["{CLAUDE}"]\n')
SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r\n"


def relayed(body: bytes, *, choices: int = 1, show_usage: bool = False, dialect: str = "openai") -> tuple[Read, int]:
    """What a client reads of a provider's stream, and how many tokens were counted."""
    relay = ChunkRelay(
        dialects.for_name(dialect),  # type: ignore[arg-type]
        CompletionCounter("hyperclova"),
        choices=choices,
        show_usage=show_usage,
    )
    decoder, out = Decoder(), b""
    for each in decoder.feed(body) + decoder.close():
        if each.data == b"[DONE]":
            break
        if (forwarded := relay.read(each.data)) is not None:
            out += sse.encode_event(forwarded)
    assert relay.complete
    out += b"".join(map(sse.encode_event, relay.endings()))
    return read_with_sdk(out + DONE), relay.counter.completion_tokens


def message_of(body: dict[str, Any]) -> dict[str, Any]:
    message = dialects.for_name("openai").answer(body)["choices"][0]["message"]
    assert isinstance(message, dict)
    return message


@pytest.fixture
def answering(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Providers]]:
    """Has the providers answer so, one after the other."""

    def answer(*answers: Answer) -> Providers:
        providers = Providers(list(answers))
        monkeypatch.setattr(one_gateway, "new_http_client", providers.client)
        return providers

    yield answer
    assert_settled(gateway)


# ── Parts ──────────────────────────────────────────────────────────────────────────────────────────────────

# content as it comes: (text, thoughts, refusal)
CONTENT: dict[str, tuple[Any, tuple[str, str, str]]] = {
    "text": ("Seoul", ("Seoul", "", "")),
    "nothing": (None, ("", "", "")),
    "no parts": ([], ("", "", "")),
    "a part": ([{"type": "text", "text": "Seoul"}], ("Seoul", "", "")),
    "two parts": ([{"type": "text", "text": "Se"}, {"type": "text", "text": "oul"}], ("Seoul", "", "")),
    "a part by itself": ({"type": "text", "text": "Seoul"}, ("Seoul", "", "")),
    "strings": (["Se", "oul"], ("Seoul", "", "")),
    "responses' part": ([{"type": "output_text", "text": "Seoul", "annotations": []}], ("Seoul", "", "")),
    "assistants' part": ([{"type": "text", "text": {"value": "Seoul", "annotations": []}}], ("Seoul", "", "")),
    "Gemini's parts": ({"role": "model", "parts": [{"text": "Se"}, {"text": "oul"}]}, ("Seoul", "", "")),
    "a part of a kind that nobody knows": ([{"type": "nobody", "text": "Seoul"}], ("Seoul", "", "")),
    "Mistral's thinking": (
        [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "Seoul"}],
        ("Seoul", "hm", ""),
    ),
    "Anthropic's thinking": (
        [{"type": "thinking", "thinking": "hm", "signature": "EqQ"}, {"type": "text", "text": "Seoul"}],
        ("Seoul", "hm", ""),
    ),
    "Gemini's thought": ([{"text": "hm", "thought": True}, {"text": "Seoul"}], ("Seoul", "hm", "")),
    "a message as a part": (
        [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Seoul"}]}],
        ("Seoul", "", ""),
    ),
    "Databricks' reasoning": (
        [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm", "signature": ""}]},
            {"type": "text", "text": "Seoul"},
        ],
        ("Seoul", "hm", ""),
    ),
    "a refusal": ([{"type": "refusal", "refusal": "No"}], ("", "", "No")),
    "JSON mode's object": ({"city": "Seoul", "summary": "s"}, ('{"city":"Seoul","summary":"s"}', "", "")),
    "a number": (42, ("42", "", "")),
}  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), CONTENT.values(), ids=CONTENT)
@pytest.mark.parametrize("show_usage", [True, False])
def test_content_of_any_shape_is_text_in_a_stream(
    content: Any, expected: tuple[str, str, str], show_usage: bool
) -> None:
    read, tokens = relayed(stream(chunk(content=content), chunk(0, "stop")), show_usage=show_usage)
    assert (read.text, read.thoughts, read.refusal) == expected
    said, thoughts, refusal = expected
    assert tokens == estimate(said + refusal, "hyperclova") + estimate(thoughts, "hyperclova")


@pytest.mark.parametrize(("content", "expected"), CONTENT.values(), ids=CONTENT)
def test_content_of_any_shape_is_text_in_a_json_answer(content: Any, expected: tuple[str, str, str]) -> None:
    message = message_of({"choices": [{"message": {"role": "assistant", "content": content}}]})
    assert isinstance(message["content"], str | None)
    shown = (message["content"] or "", message.get("reasoning_content") or "", message.get("refusal") or "")
    assert shown == expected


THOUGHTS = {
    "reasoning_content": "hm",
    "reasoning": "hm",
    "thinking_content": "hm",
    "thinking": "hm",
    "reasoning_text": "hm",
    "reasoning_details": [{"type": "reasoning.text", "text": "h"}, {"type": "reasoning.summary", "summary": "m"}],
    "thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "EqQ"}],
}


@pytest.mark.parametrize("spelled", [*({name: value} for name, value in THOUGHTS.items()), THOUGHTS])
def test_thoughts_have_one_name_and_are_counted_once(spelled: dict[str, Any]) -> None:
    read, tokens = relayed(stream(chunk(**spelled), chunk(content="Seoul"), chunk(0, "stop")))
    assert (read.thoughts, read.text) == ("hm", "Seoul")
    assert tokens == estimate("hm", "hyperclova") + estimate("Seoul", "hyperclova")
    assert message_of({"choices": [{"message": {"content": "Seoul"} | spelled}]})["reasoning_content"] == "hm"


@pytest.mark.parametrize("spelled", [{name: value} for name, value in THOUGHTS.items()])
def test_an_answer_with_thoughts_of_any_name_is_resumed_from_its_words(
    gateway: Gateway, answering: Callable[..., Providers], spelled: dict[str, Any]
) -> None:
    gateway.use_catalog(HELPED)
    providers = answering(
        Answer([stream(chunk(**spelled), chunk(content=[{"type": "text", "text": "The capital "}]), done=False)], "reset"),
        Answer([stream(chunk(content="is Seoul"), chunk(0, "stop"))]),
    )  # fmt: skip
    assert read_with_sdk(gateway.ask(stream=True)).text == "The capital is Seoul"
    assert providers.asked[1]["messages"][-1] == {"role": "assistant", "content": "The capital"}


def test_parts_and_text_are_one_text_for_whoever_goes_on(gateway: Gateway, answering: Callable[..., Providers]) -> None:
    gateway.use_catalog(HELPED)
    first = [chunk(content=[{"type": "text", "text": "The capital of Korea "}]), chunk(content="is Se")]
    providers = answering(
        Answer([stream(*first, done=False)], "reset"), Answer([stream(chunk(content="oul"), chunk(0, "stop"))])
    )
    read = read_with_sdk(gateway.ask(stream=True))
    assert (read.text, read.done) == ("The capital of Korea is Seoul", True)
    assert providers.asked[1]["messages"][-1]["content"] == "The capital of Korea is Se"
    assert gateway.row.parts[0].usage.completion_tokens == estimate("The capital of Korea is Se", "hyperclova")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
        {"type": "reference", "reference_ids": [1]},
    ],
)
def test_an_answer_that_is_not_only_text_is_passed_on_and_not_resumed(
    gateway: Gateway, answering: Callable[..., Providers], part: dict[str, Any]
) -> None:
    gateway.use_catalog(HELPED)
    text = {"type": "text", "text": "Here: "}
    providers = answering(Answer([stream(chunk(content=[text, part]), done=False)], "reset"))
    body = gateway.ask(stream=True)
    (shown, _) = [json.loads(line.removeprefix(b"data: ")) for line in body.split(b"\n\n")[:-1]]
    delta = shown["choices"][0]["delta"]
    assert (delta["content"], delta["content_parts"]) == ("Here: ", [part])
    assert (len(providers.asked), gateway.row.outcome) == (1, "truncated")


@pytest.mark.parametrize("content", ["단어 " * 400, [{"type": "text", "text": "단어 "}] * 400, {"text": "단어 " * 400}])
@pytest.mark.parametrize("asked_for", ["stream", "json"])
def test_words_of_any_shape_are_charged_without_usage(
    gateway: Gateway, answering: Callable[..., Providers], content: Any, asked_for: str
) -> None:
    if asked_for == "stream":
        answering(Answer([stream(chunk(content=content), chunk(0, "stop"))]))
        assert read_with_sdk(gateway.ask(stream=True)).text == "단어 " * 400
    else:
        choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        answering(Answer([json.dumps({"choices": [choice]}).encode()], content_type="application/json"))
        assert json.loads(gateway.ask())["choices"][0]["message"]["content"] == "단어 " * 400
    row = gateway.row
    assert (row.usage.completion_tokens, row.usage_source) == (estimate("단어 " * 400, "hyperclova"), "estimated")


@pytest.mark.parametrize(
    "said",
    [
        {"message": {"role": "assistant", "content": "Seoul"}},
        {"message": "Seoul"},
        {"text": "Seoul"},
        {"delta": "Seoul"},
        {"delta": None, "message": {"content": "Seoul"}},
    ],
)
def test_words_beside_the_delta_are_words(said: dict[str, Any]) -> None:
    beside = {"id": "1", "choices": [{"index": 0, **said, "finish_reason": None}]}
    read, tokens = relayed(stream(beside, chunk(0, "stop")))
    assert (read.text, tokens) == ("Seoul", estimate("Seoul", "hyperclova"))


def test_an_answer_that_is_repeated_as_a_message_is_not_said_twice() -> None:
    again = {"id": "1", "choices": [{"index": 0, "message": {"content": "Seoul"}, "finish_reason": "stop"}]}
    read, tokens = relayed(stream(chunk(content="Se"), chunk(content="oul"), again))
    assert (read.text, read.finish, tokens) == ("Seoul", ["stop"], estimate("Seoul", "hyperclova"))


def test_every_choice_that_is_shown_has_an_index_and_a_delta() -> None:
    bare = {"id": "1", "choices": [{"finish_reason": "stop"}, None]}
    read, _ = relayed(stream({"id": "1", "choices": [{"delta": {"content": "Seoul"}}]}, {"choices": [None]}, bare))
    assert (read.text, read.finish) == ("Seoul", ["stop"])


def test_choices_without_an_index_are_told_apart_by_their_place() -> None:
    events = [
        {"id": "1", "choices": [{"delta": {"content": "A\ud83d"}}, {"delta": {"content": "B"}}]},
        {"id": "1", "choices": [{"delta": {"content": "\ude00"}}, {"delta": {"content": "b"}}]},
        {"id": "1", "choices": [{"delta": {}, "finish_reason": "stop"}, {"delta": {}, "finish_reason": "length"}]},
    ]
    read, _ = relayed(stream(*events), choices=2)
    assert (read.content, read.finish) == ({0: "A😀", 1: "Bb"}, ["stop", "length"])


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "content", "thinking", "value", "x"]), inner, max_size=3), max_leaves=12))  # fmt: skip
def test_whatever_content_is_the_client_gets_text(content: Any) -> None:
    for where in ("message", "delta"):
        payload = {"choices": [{where: {"content": content, "reasoning": content, "tool_calls": content}}]}
        said = canonical.answer(payload)["choices"][0][where]
        assert said["content"] is None or isinstance(said["content"], str)
        assert isinstance(said.get("reasoning_content", ""), str)
        assert canonical.answer(again := canonical.answer(payload)) is again or "nan" in repr(content)


def test_what_is_in_openai_s_shape_is_not_touched() -> None:
    payload = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "a", "refusal": None}}]}
    assert canonical.answer(payload) is payload


# ── Characters ─────────────────────────────────────────────────────────────────────────────────────────────

PLACES: dict[str, tuple[Callable[[str], dict[str, Any]], Callable[[Read], str]]] = {
    "content": (lambda text: {"content": text}, lambda read: read.text),
    "parts": (lambda text: {"content": [{"type": "text", "text": text}]}, lambda read: read.text),
    "thoughts": (lambda text: {"reasoning_content": text}, lambda read: read.thoughts),
    "thoughts of another name": (lambda text: {"reasoning": text}, lambda read: read.thoughts),
    "refusal": (lambda text: {"refusal": text}, lambda read: read.refusal),
    "arguments": (
        lambda text: {"tool_calls": [{"index": 0, "function": {"arguments": text}}]},
        lambda read: read.calls[0][2],
    ),
    "arguments of the second call": (
        lambda text: {"tool_calls": [{"index": 1, "function": {"arguments": text}}]},
        lambda read: read.calls[1][2],
    ),
    "a function's name": (
        lambda text: {"tool_calls": [{"index": 0, "function": {"name": text}}]},
        lambda read: read.calls[0][1],
    ),
}
PIECES: dict[str, tuple[list[str], str]] = {
    "a pair": (["A\ud83d", "\ude00B"], "A😀B"),
    "a pair by itself": (["\ud83d", "\ude00"], "😀"),
    "nothing in between": (["A\ud83d", "", "\ude00B"], "A😀B"),
    "two pairs": (["\ud83d", "\ude00\ud83c", "\udf0d"], "😀🌍"),
    "a half and no half": (["A\ud83d", "B"], "A\ufffdB"),
    "two first halves": (["A\ud83d", "\ud83d\ude00"], "A\ufffd😀"),
    "a second half alone": (["A", "\ude00B"], "A\ufffdB"),
    "halves in the wrong order": (["\ude00", "\ud83d"], "\ufffd\ufffd"),
    "a half at the end": (["A", "B\ud83d"], "AB\ufffd"),
    "bytes as Python's surrogates": (["A\udcf0\udc9f", "\udc98\udc80B"], "A😀B"),
    "bytes that are no character": (["A\udcff", "B"], "A\ufffdB"),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize(("pieces", "expected"), PIECES.values(), ids=PIECES)
@pytest.mark.parametrize("show_usage", [True, False])
def test_a_character_that_is_cut_arrives_whole(
    place: tuple[Callable[[str], dict[str, Any]], Callable[[Read], str]],
    pieces: list[str],
    expected: str,
    show_usage: bool,
) -> None:
    put, get = place
    plain = [chunk(**put(piece)) for piece in pieces]
    with_end = [*plain[:-1], {**plain[-1], "choices": [{**plain[-1]["choices"][0], "finish_reason": "stop"}]}]
    for events in ([*plain, chunk(0, "stop")], [*plain, chunk(0, "stop"), usage_chunk()], with_end):
        read, _ = relayed(stream(*events), show_usage=show_usage)
        assert (get(read), read.finish) == (expected, ["stop"])
    whole = assembled(stream(*plain, chunk(0, "stop")), dialects.for_name("openai"), choices=1)
    assert expected in json.dumps(whole["choices"], ensure_ascii=False)


@pytest.mark.parametrize(
    ("part", "name"), [("function_call", "name"), ("function_call", "arguments"), ("audio", "transcript")]
)
@pytest.mark.parametrize(("pieces", "expected"), PIECES.values(), ids=PIECES)
def test_a_character_in_an_old_call_or_a_transcript_arrives_whole(
    part: str, name: str, pieces: list[str], expected: str
) -> None:
    events = [*(chunk(**{part: {name: piece}}) for piece in pieces), chunk(0, "stop")]
    (choice,) = assembled(stream(*events), dialects.for_name("openai"), choices=1)["choices"]
    assert choice["message"][part] == {name: expected}


@pytest.mark.parametrize("raw", [b"\xf0\x9f|\x98\x80", b"\xed\xa0\xbd|\xed\xb8\x80", b"\xe2|\x82\xac", b"\xc3|\xa9"])
def test_bytes_of_a_character_in_two_chunks_are_one_character(raw: bytes) -> None:
    first, second = raw.split(b"|")
    said = [json.dumps(chunk(content=text)).encode() for text in ("A|", "|B")]
    events = [b"data: %b\n\n" % data.replace(b"|", half) for data, half in zip(said, (first, second), strict=True)]
    read, _ = relayed(stream(*events, chunk(0, "stop")))
    assert read.text == f"A{mend((first + second).decode('utf-8', 'surrogatepass'))}B"
    assert "\ufffd" not in read.text


def test_halves_belong_to_their_choice() -> None:
    events = [chunk(0, content="A\ud83d"), chunk(1, content="B\ud83c"), chunk(0, content="\ude00"), chunk(1, "stop")]
    read, _ = relayed(stream(*events, chunk(0, "stop")), choices=2)
    assert read.content == {0: "A😀", 1: "B\ufffd"}


def test_a_half_whose_choice_ended_too_early_still_meets_the_other_one() -> None:
    read, _ = relayed(stream(chunk(0, "stop", content="A\ud83d"), chunk(0, "stop", content="\ude00B")))
    assert (read.text, read.finish) == ("A😀B", ["stop"])


@pytest.mark.parametrize("again", [["A", "😀 and more"], ["A\ud83d", "\ude00 and more"]])
def test_an_answer_that_was_cut_in_a_character_goes_on_with_the_whole_one(
    gateway: Gateway, answering: Callable[..., Providers], again: list[str]
) -> None:
    gateway.use_catalog(one_gateway.another_deployment("twin"))
    answering(
        Answer([stream(chunk(content="A\ud83d"), done=False)], "reset"),
        Answer([stream(*(chunk(content=piece) for piece in again), chunk(0, "stop"))]),
    )
    read = read_with_sdk(gateway.ask(stream=True, temperature=0))
    assert (read.text, read.done) == ("A😀 and more", True)


@pytest.mark.parametrize(
    ("text", "shown"),
    [("A\ud83dB", "A\ufffdB"), ("\ud83d\ude00", "😀"), ("A\ud83d", "A\ufffd"), ("\udc00A", "\ufffdA")],
)
def test_a_json_answer_is_utf_8_whatever_halves_it_holds(
    gateway: Gateway, answering: Callable[..., Providers], text: str, shown: str
) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    answering(Answer([json.dumps({"choices": [choice], "usage": USAGE}).encode()], content_type="application/json"))
    assert json.loads(gateway.ask().decode("utf-8"))["choices"][0]["message"]["content"] == shown


def test_a_json_answer_with_a_byte_that_is_no_text_is_an_answer(
    gateway: Gateway, answering: Callable[..., Providers]
) -> None:
    choice = b'{"index":0,"message":{"role":"assistant","content":"A\xf0\x9f"},"finish_reason":"length"}'
    answering(Answer([b'{"choices":[%b]}' % choice], content_type="application/json"))
    assert json.loads(gateway.ask().decode("utf-8"))["choices"][0]["message"]["content"] == "A\ufffd"


TEXTS = st.text(st.characters(codec="utf-8") | st.sampled_from("😀🌍\u2028\x85é가\x00"), max_size=12)


@given(text=TEXTS, cuts=st.lists(st.integers(0, 40), max_size=4), bytes_cuts=st.lists(st.integers(0, 4000), max_size=6))
def test_any_text_arrives_as_it_was_wherever_it_is_cut(text: str, cuts: list[int], bytes_cuts: list[int]) -> None:
    """Into UTF-16 units over deltas, and into bytes over reads."""
    units = text.encode("utf-16-le", "surrogatepass")
    pieces = [piece.decode("utf-16-le", "surrogatepass") for piece in _cut_units(units, cuts)]
    body = stream(*(chunk(content=piece) for piece in pieces), chunk(0, "stop"))
    decoder = Decoder()
    events = [each for piece in cut_anywhere(body, bytes_cuts) for each in decoder.feed(piece)] + decoder.close()
    relay = ChunkRelay(dialects.for_name("openai"), CompletionCounter("unknown"), choices=1, show_usage=False)
    shown = [data for each in events if each.data != b"[DONE]" and (data := relay.read(each.data)) is not None]
    deltas = [json.loads(data)["choices"][0]["delta"] for data in [*shown, *relay.endings()]]
    assert "".join(delta.get("content", "") for delta in deltas) == text
    assert all(len(data.decode().splitlines()) == 1 for data in shown)


@given(text=TEXTS, cuts=st.lists(st.integers(0, 40), max_size=4))
def test_any_text_cut_into_bytes_over_deltas_arrives_as_it_was(text: str, cuts: list[int]) -> None:
    held, mended = "", ""
    for piece in cut_anywhere(text.encode(), cuts):
        said, held = mend_start(held + piece.decode("utf-8", "surrogateescape"))
        mended += said
    assert mended + mend(held) == text


def _cut_units(units: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({2 * (cut % (len(units) // 2 + 1)) for cut in cuts}), len(units)]
    return [units[a:b] for a, b in itertools.pairwise(edges)]


@given(st.text(st.characters() | st.characters(categories=["Cs"]), max_size=12))
def test_mended_text_can_always_be_written(text: str) -> None:
    assert mend(text).encode().decode() == mend(text)
    start, rest = mend_start(text)
    assert mend(text) == start + mend(rest)
    assert len(rest) <= 3


# ── Lines ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize("form", ["escaped", "raw"])
@pytest.mark.parametrize("show_usage", [True, False])
def test_an_event_is_one_line_to_every_reader(separator: str, form: str, show_usage: bool) -> None:
    said = chunk(content=f"a{separator}b")
    if form == "raw" and separator in "\r\n":
        return  # it would end the line of the provider's event
    data = json.dumps(said) if form == "escaped" else json.dumps(said).replace(json.dumps(separator)[1:-1], separator)
    relay = ChunkRelay(dialects.for_name("openai"), CompletionCounter("unknown"), choices=1, show_usage=show_usage)
    shown = relay.read(data.encode())
    assert shown is not None
    sent = sse.encode_event(shown)
    assert json.loads(shown)["choices"][0]["delta"]["content"] == f"a{separator}b"
    lines = [sent.decode().splitlines(), list(httpx.Response(200, content=sent).iter_lines())]
    lines.append(list(httpx2.Response(200, content=sent).iter_lines()))
    for read in lines:
        assert [line for line in read if line] == [f"data: {shown.decode()}"]
    assert read_with_sdk(sent + DONE).text == f"a{separator}b"


@pytest.mark.parametrize("separator", SEPARATORS)
def test_a_line_of_a_batch_is_one_line_to_every_reader(separator: str) -> None:
    text = f"a{separator}b"
    answer = compact_json({"choices": [{"message": {"content": text}}], text: text})
    line = unpack(answered("batch_1", 0, text, request_id="r", body=answer, usage=Usage(1, 1)).content)
    error = not_run("batch_1", 1, text, "batch_expired")
    written = (line + b"\n" + error + b"\n").decode()
    for lines in (written.splitlines(), list(io.StringIO(written, newline=None)), httpx.Response(200, text=written).iter_lines()):  # fmt: skip
        read = [json.loads(each) for each in lines]
        assert [each["custom_id"] for each in read] == [text, text]
        assert read[0]["response"]["body"]["choices"][0]["message"]["content"] == text


@pytest.mark.parametrize("separator", SEPARATORS)
def test_an_error_in_a_stream_is_one_line_to_every_reader(separator: str) -> None:
    sent = sse.encode_error({"error": {"message": f"a{separator}b", "code": "c"}})
    assert len([line for line in sent.decode().splitlines() if line]) == 1
    assert read_with_sdk(sent).error == "c"


# ── Calls ──────────────────────────────────────────────────────────────────────────────────────────────────


def calls(*deltas: dict[str, Any]) -> dict[str, Any]:
    return chunk(tool_calls=list(deltas))


def call(name: str | None = None, arguments: Any = None, **more: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {**more, "function": {key: value for key, value in function.items() if value is not None}}


TWO = {0: ("a", "f", '{"x":1}'), 1: ("b", "g", '{"y":2}')}
CALLS: dict[str, tuple[list[dict[str, Any]], dict[int, tuple[str, str, str]]]] = {
    "numbered": ([calls(call("f", '{"x":1}', index=0, id="a")), calls(call("g", '{"y":2}', index=1, id="b"))], TWO),
    "numbered from one": ([calls(call("f", "{}", index=1, id="a"))], {1: ("a", "f", "{}")}),
    "numbered backwards": ([calls(call("g", '{"y":2}', index=1, id="b")), calls(call("f", '{"x":1}', index=0, id="a"))], TWO),
    "numbered in text": ([calls(call("f", "{", index="0", id="a")), calls(call(None, "}", index="0"))], {0: ("a", "f", "{}")}),
    "whole calls, one after the other": ([calls(call("f", '{"x":1}', id="a")), calls(call("g", '{"y":2}', id="b"))], TWO),
    "whole calls together": ([calls(call("f", '{"x":1}', id="a"), call("g", '{"y":2}', id="b"))], TWO),
    "pieces without an id": (
        [calls(call("f", "", id="a")), calls(call(None, '{"x"')), calls(call(None, ":1}")), calls(call("g", '{"y":2}', id="b"))],
        TWO,
    ),
    "pieces with the id": (
        [calls(call("f", '{"x"', id="a")), calls(call("g", '{"y"', id="b")), calls(call(None, ":1}", id="a")), calls(call(None, ":2}", id="b"))],
        TWO,
    ),
    "pieces in order": (
        [calls(call("f", '{"x"', id="a"), call("g", '{"y"', id="b")), calls(call(None, ":1}"), call(None, ":2}"))],
        TWO,
    ),
    "pieces with the name": ([calls(call("f", '{"x"', id="a")), calls(call("f", ":1}")), calls(call("g", '{"y":2}', id="b"))], TWO),
    "the same function again": (
        [calls(call("f", "{}")), calls(call("f", "{}"))],
        {0: ("", "f", "{}"), 1: ("", "f", "{}")},
    ),
    "the same function twice at once": (
        [calls(call("f", "{}"), call("f", "{}"))],
        {0: ("", "f", "{}"), 1: ("", "f", "{}")},
    ),
    "all with index 0, as Gemini does": (
        [calls(call("f", '{"x":1}', index=0, id="a")), calls(call("g", '{"y"', index=0, id="b")), calls(call(None, ":2}", index=0))],
        TWO,
    ),
    "all with index 0 and no id": (
        [calls(call("f", '{"x":1}', index=0, id="")), calls(call("g", '{"y":2}', index=0, id=""))],
        {0: ("", "f", '{"x":1}'), 1: ("", "g", '{"y":2}')},
    ),
    "another id with every piece, as an old vLLM does": (
        [calls(call("f", '{"x"', id="a")), calls(call(None, ":1", id="x1")), calls(call(None, "}", id="x2"))],
        {0: ("a", "f", '{"x":1}')},
    ),
    "index null": ([calls(call("f", '{"x"', index=None, id="a")), calls(call(None, ":1}", index=None))], {0: ("a", "f", '{"x":1}')}),
    "arguments as an object": ([calls(call("f", {"x": 1}, id="a")), calls(call("g", {"y": 2}, id="b"))], TWO),
    "a call by itself": ([chunk(tool_calls=call("f", {"x": 1}, id="a"))], {0: ("a", "f", '{"x":1}')}),
    "the id first": ([calls(call(id="a")), calls(call("f", '{"x":1}'))], {0: ("a", "f", '{"x":1}')}),
}  # fmt: skip


@pytest.mark.parametrize(("events", "expected"), CALLS.values(), ids=CALLS)
def test_each_piece_of_a_call_says_whose_it_is(
    events: list[dict[str, Any]], expected: dict[int, tuple[str, str, str]]
) -> None:
    read, _ = relayed(stream(*events, chunk(0, "tool_calls")))
    assert (read.calls, read.finish) == (expected, ["tool_calls"])
    (choice,) = assembled(stream(*events, chunk(0, "tool_calls")), dialects.for_name("openai"), choices=1)["choices"]
    shown = [
        (c.get("id", ""), c["function"]["name"], c["function"]["arguments"]) for c in choice["message"]["tool_calls"]
    ]
    assert shown == [expected[index] for index in sorted(expected)]
    assert all("index" not in c for c in choice["message"]["tool_calls"])


# ── JSON for a stream, a stream for JSON ───────────────────────────────────────────────────────────────────

MESSAGE = {
    "role": "assistant",
    "content": "Seoul 😀",
    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
WHOLE = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1764547200,
    "model": "m",
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "tool_calls"}],
    "usage": USAGE,
}


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream", "", "text/plain"])
@pytest.mark.parametrize("blanks", [b"", b"\n\n ", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("show_usage", [True, False])
def test_json_that_came_for_a_stream_is_streamed(
    gateway: Gateway, answering: Callable[..., Providers], content_type: str, blanks: bytes, show_usage: bool
) -> None:
    answering(Answer(cut_anywhere(blanks + json.dumps(WHOLE).encode(), [1, 2, 50]), content_type=content_type))
    read = read_with_sdk(gateway.ask(stream=True, stream_options={"include_usage": show_usage}))
    assert (read.text, read.calls, read.finish) == ("Seoul 😀", {0: ("a", "f", "{}")}, ["tool_calls"])
    assert (read.done, read.usage) == (True, 5 if show_usage else None)
    row = gateway.row
    assert (row.outcome, row.usage_source, row.usage.completion_tokens) == ("completed", "reported", 5)


def test_json_without_a_word_that_came_for_a_stream_is_whole(
    gateway: Gateway, answering: Callable[..., Providers]
) -> None:
    empty = {**WHOLE, "choices": [{"index": 0, "message": {"content": ""}, "finish_reason": "length"}]}
    answering(Answer([json.dumps(empty).encode()], content_type="application/json"))
    read = read_with_sdk(gateway.ask(stream=True))
    assert (read.text, read.finish, read.done) == ("", ["length"], True)


@pytest.mark.parametrize(
    ("body", "result"),
    [
        ({"error": {"message": "The server had an error", "type": "server_error"}}, "200 server"),
        ({**WHOLE, "choices": [{**WHOLE["choices"][0], "finish_reason": None}]}, "invalid_answer"),  # type: ignore[index]
        ({"choices": []}, "invalid_answer"),
        ({"hello": "world"}, "invalid_answer"),
    ],
)
@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream"])
def test_json_that_is_no_whole_answer_is_no_stream(
    gateway: Gateway, answering: Callable[..., Providers], body: Any, result: str, content_type: str
) -> None:
    gateway.use_catalog(HELPED)
    answering(
        Answer([json.dumps(body).encode()], content_type=content_type),
        Answer([stream(chunk(content="Busan"), chunk(0, "stop"))]),
    )
    assert read_with_sdk(gateway.ask(stream=True)).text == "Busan"
    assert gateway.row.attempts[0].result == result


def test_a_stream_that_came_for_json_is_one_answer(gateway: Gateway, answering: Callable[..., Providers]) -> None:
    events = [
        chunk(role="assistant", content=""),
        chunk(reasoning="hm"),
        chunk(content="Seoul \ud83d"),
        chunk(content=[{"type": "text", "text": "\ude00"}]),
        calls(call("f", "{", id="a", type="function")),
        calls(call(None, "}")),
        chunk(0, "tool_calls"),
        usage_chunk(),
    ]
    answering(Answer(cut_anywhere(b": hello\n\n" + stream(*events), [3, 99])))
    answer = json.loads(gateway.ask())
    (choice,) = answer["choices"]
    expected = {**MESSAGE, "reasoning": "hm", "reasoning_content": "hm"}
    assert (answer["object"], choice["message"], choice["finish_reason"]) == ("chat.completion", expected, "tool_calls")
    assert answer["usage"]["completion_tokens"] == 5
    assert (gateway.row.outcome, gateway.row.usage_source) == ("completed", "reported")


@pytest.mark.parametrize(
    ("events", "result"),
    [
        ([chunk(content="Seo")], "invalid_answer"),
        ([chunk(content="Seo"), chunk(0, "stop"), chunk(content="ul")], "invalid_answer"),
        ([chunk(content="Seo"), '{"choices":[{"delta":'], "invalid_answer"),
        ([chunk(content="Seo"), {"error": {"message": "oh", "type": "server_error"}}], "200 server"),
        ([chunk(content="Seo"), b'event: error\ndata: {"message":"oh","code":"server_error"}\n\n'], "200 server"),
        ([], "invalid_answer"),
    ],
)
def test_a_stream_that_is_cut_is_no_json_answer(
    gateway: Gateway, answering: Callable[..., Providers], events: list[Any], result: str
) -> None:
    gateway.use_catalog(HELPED)
    answering(
        Answer([b": hello\n\n", *map(event, events)]),
        Answer([json.dumps(WHOLE).encode()], content_type="application/json"),
    )
    assert json.loads(gateway.ask())["choices"][0]["message"]["content"] == "Seoul 😀"
    assert gateway.row.attempts[0].result == result


def test_an_answer_is_put_together_with_all_that_its_chunks_said() -> None:
    events = [
        {**chunk(0, content="A"), "service_tier": None, "system_fingerprint": "fp"},
        {**chunk(1, content="B"), "service_tier": "default"},
        {**chunk(), "choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": {"content": [{"token": "a"}]}}]},
        {**chunk(), "choices": [{"index": 0, "delta": {"content": "b"}, "logprobs": {"content": [{"token": "b"}]}}]},
        chunk(1, "length"),
        chunk(0, "stop", annotations=[{"type": "url_citation"}]),
    ]
    answer = assembled(stream(*events), dialects.for_name("openai"), choices=2)
    first, second = answer["choices"]
    assert (answer["id"], answer["system_fingerprint"]) == ("chatcmpl-1", "fp")
    assert first["message"] == {"role": "assistant", "content": "Aab", "annotations": [{"type": "url_citation"}]}
    assert first["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}
    assert (second["message"]["content"], second["finish_reason"]) == ("B", "length")


@pytest.mark.parametrize(
    "data", [b'{"a":"\x0b"}', b'\xef\xbb\xbf{"a":"\x0b"}', b'{"a":"\xff"}', b'{"a":"\xed\xa0\xbd"}']
)
def test_json_that_is_nearly_json_is_read(data: bytes) -> None:
    assert len(read_json(data)["a"]) == 1


def test_json_in_another_encoding_is_not_read_as_utf_8() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        read_json('{"a":"서울은 대한민국의 수도입니다"}'.encode("euc-kr"))
