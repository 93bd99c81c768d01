"""The decoder of event streams against hostile bytes, and against a second decoder written by the letter.

A provider, or whoever sits on its line, sends these bytes. They may cost neither memory nor time without limit, nor make
up an event that was not sent, nor lose one that was.
"""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from naru import sse
from naru.relay import ChunkRelay, ErrorChunkError, InvalidChunkError
from naru.sse import Decoder, Event, EventTooLargeError
from naru.tokens import CompletionCounter

PIECES = (
    b"data:", b"data: ", b"data", b"event:", b"event: error", b"id: 1", b"retry: 5", b":", b": keep-alive", b"\r", b"\n",
    b"\r\n", b"\n\n", b"\r\n\r\n", b"\x00", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc2\x85", b"\xe2\x80\xa8", b"[DONE]", b"{}",
    b'{"choices":[{"delta":{"content":"a"}}]}', b'{"error":{}}', b"[" * 50, "나루".encode(), b" ", b"x",
)  # fmt: skip
STREAMS = st.lists(st.sampled_from(PIECES) | st.binary(max_size=6), max_size=60).map(b"".join)


def by_the_letter(stream: bytes) -> list[Event]:
    """HTML, 9.2.6, on bytes and with the whole stream at hand; the last event counts also without its blank line."""
    stream = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events: list[Event] = []
    data, kind = b"", ""
    for line in [*stream.split(b"\n"), b""]:
        if not line:
            if data:
                events.append(Event(data[:-1], kind or "message"))
            data, kind = b"", ""
            continue
        if line.startswith(b":"):
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data += value + b"\n"
        elif field == b"event":
            kind = value.decode("utf-8", "replace")
    return events


def decoded(stream: bytes, cuts: list[int]) -> list[Event]:
    decoder = Decoder()
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return [event for a, b in pairwise(edges) for event in decoder.feed(stream[a:b])] + decoder.close()


@given(stream=STREAMS, cuts=st.lists(st.integers(0, 400), max_size=20))
@example(stream=b"\xef\xbb\xbfdata: a\r\rdata: b\r\n\ndata", cuts=[1, 2, 12])
def test_it_reads_what_the_specification_reads(stream: bytes, cuts: list[int]) -> None:
    assert decoded(stream, cuts) == by_the_letter(stream)


@given(stream=STREAMS, limit=st.integers(1, 200), size=st.integers(1, 50))
def test_it_never_holds_more_than_its_limit(stream: bytes, limit: int, size: int) -> None:
    """Whatever comes, in whatever pieces; what is held is less than the limit and one piece."""
    decoder = Decoder(max_event_bytes=limit)
    try:
        for start in range(0, len(stream), size):
            decoder.feed(stream[start : start + size])
            assert len(decoder._line) + sum(map(len, decoder._data)) <= limit + size
    except EventTooLargeError:
        assert decoder._data == []
        assert not decoder._line


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
_CHUNK = st.fixed_dictionaries(
    {},
    optional={
        "id": _SCALARS,
        "model": _SCALARS,
        "usage": _SCALARS
        | st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens", "total_tokens"]), _SCALARS),
        "choices": _SCALARS
        | st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "index": _SCALARS,
                    "finish_reason": _SCALARS,
                    "delta": _SCALARS
                    | st.dictionaries(
                        st.sampled_from(["role", "content", "reasoning_content", "tool_calls", "x"]),
                        _SCALARS | st.lists(_SCALARS | st.dictionaries(st.text(max_size=3), _SCALARS), max_size=2),
                        max_size=3,
                    ),
                },
            )
            | _SCALARS,
            max_size=3,
        ),
        "error": _SCALARS | st.dictionaries(st.text(max_size=3), _SCALARS, max_size=2),
    },
)
_DATA = _CHUNK.map(lambda chunk: json.dumps(chunk).encode()) | st.binary(max_size=30) | st.sampled_from(PIECES)


@given(st.lists(_DATA, max_size=8), st.booleans())
def test_whatever_a_provider_sends_is_a_chunk_or_a_failure_that_has_a_name(
    pieces: list[bytes], show_usage: bool
) -> None:
    """What the client is sent is one event, whole, and never the provider's bytes run wild."""
    from naru.dialects import openai

    relay = ChunkRelay(openai, CompletionCounter("hyperclova"), choices=1, show_usage=show_usage)
    for data in pieces:
        try:
            forwarded = relay.read(data)
        except (InvalidChunkError, ErrorChunkError):
            break
        if forwarded is not None:
            (event,) = decoded(sse.encode_event(forwarded), [])
            assert isinstance(json.loads(event.data), dict)


FUZZED = (
    test_it_reads_what_the_specification_reads,
    test_it_never_holds_more_than_its_limit,
    test_whatever_a_provider_sends_is_a_chunk_or_a_failure_that_has_a_name,
)


@pytest.mark.parametrize("line", [b"data: \x1b]0;owned\x07\n\n", b"data: a\x00b\n\n", b"event: \x1b[2J\ndata: {}\n\n"])
def test_control_characters_do_not_leave_as_they_came(line: bytes) -> None:
    """An event's type is never passed on; data that is no JSON is no chunk."""
    from naru.dialects import openai

    (event,) = decoded(line, [])
    relay = ChunkRelay(openai, CompletionCounter("hyperclova"), choices=1, show_usage=False)
    try:
        assert relay.read(event.data) is None or b"\x1b" not in event.data
    except InvalidChunkError:
        return
