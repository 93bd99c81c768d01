"""Server-sent events: what comes out does not depend on where the bytes were cut."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naru import sse
from naru.sse import Decoder, Event, EventTooLargeError

CHUNK = '{"choices":[{"delta":{"content":"안녕하세요"}}]}'.encode()


def decode(*chunks: bytes, max_event_bytes: int = sse.MAX_EVENT_BYTES) -> list[Event]:
    decoder = Decoder(max_event_bytes=max_event_bytes)
    return [event for chunk in chunks for event in decoder.feed(chunk)] + decoder.close()


def bytewise(stream: bytes) -> list[Event]:
    return decode(*(stream[i : i + 1] for i in range(len(stream))))


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: one\n\n", [Event(b"one")]),
        (b"data:one\n\n", [Event(b"one")]),
        (b"data:  one \n\n", [Event(b" one ")]),
        (b"data: one\r\n\r\ndata: two\r\n\r\n", [Event(b"one"), Event(b"two")]),
        (b"data: one\r\rdata: two\r\r", [Event(b"one"), Event(b"two")]),
        (b"data: one\r\n\ndata: two\n\r", [Event(b"one"), Event(b"two")]),
        (b"data: one\ndata: two\n\n", [Event(b"one\ntwo")]),
        (b"data\n\n", [Event(b"")]),
        (b"data:\n\n", [Event(b"")]),
        (b": comment\ndata: one\n: another\n\n", [Event(b"one")]),
        (b": keep-alive\n\n", []),
        (b"event: ping\n\ndata: one\n\n", [Event(b"one")]),
        (b"event: error\ndata: {}\n\ndata: one\n\n", [Event(b"{}", "error"), Event(b"one")]),
        (b"event: a\nevent\ndata: one\n\n", [Event(b"one")]),
        (b"id: 7\nretry: 10\nunknown: x\nnocolon\ndata: one\n\n", [Event(b"one")]),
        (b"dataset: x\n\n", []),
        (b"\xef\xbb\xbfdata: one\n\n", [Event(b"one")]),
        (b"data: \xef\xbb\xbfone\n\n", [Event(b"\xef\xbb\xbfone")]),
        (b"\n\n\r\n\rdata: one\n\n\n\n", [Event(b"one")]),
        (b"data: %b\n\ndata: [DONE]\n\n" % CHUNK, [Event(CHUNK), Event(b"[DONE]")]),
        (b"event: \xff\ndata: \xff\n\n", [Event(b"\xff", "\ufffd")]),
        (b"", []),
    ],
)
def test_a_stream_becomes_its_events_in_one_piece_and_byte_by_byte(stream: bytes, events: list[Event]) -> None:
    assert decode(stream) == events
    assert bytewise(stream) == events


def test_an_event_is_out_with_its_blank_line_and_not_before() -> None:
    decoder = Decoder()
    assert decoder.feed(b"data: one\n") == []
    assert decoder.feed(b"\n") == [Event(b"one")]
    assert decoder.feed(b"data: two\r\r") == [Event(b"two")]


@pytest.mark.parametrize("tail", [b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r"])
def test_closing_saves_an_event_whose_end_is_missing(tail: bytes) -> None:
    decoder = Decoder()
    assert decoder.feed(b"data: one\n\n" + tail) == [Event(b"one")]
    assert decoder.close() == [Event(b"[DONE]")]
    assert decoder.close() == []


@pytest.mark.parametrize("stream", [b"", b"\xef\xbb", b"data: one\n\n", b": comment", b"event: error\n"])
def test_closing_makes_up_nothing(stream: bytes) -> None:
    decoder = Decoder()
    decoder.feed(stream)
    assert decoder.close() == []


def test_the_events_ahead_of_one_that_is_too_large_still_come() -> None:
    decoder = Decoder(max_event_bytes=20)
    assert decoder.feed(b"data: one\n\ndata: " + b"x" * 30 + b"\n\ndata: two\n\n") == [Event(b"one")]
    for _ in range(2):
        with pytest.raises(EventTooLargeError, match="larger than 20 bytes"):
            decoder.feed(b"data: two\n\n")
    with pytest.raises(EventTooLargeError):
        decoder.close()


@pytest.mark.parametrize(
    "stream",
    [b"data: " + b"x" * 15 + b"\n\n", b"data: x\n" * 3, b"x" * 21, b": " + b"x" * 19 + b"\n", b"event: e\n" * 3],
)
def test_an_event_cannot_grow_without_limit(stream: bytes) -> None:
    with pytest.raises(EventTooLargeError):
        decode(stream, max_event_bytes=20)
    with pytest.raises(EventTooLargeError):
        decode(*(stream[i : i + 1] for i in range(len(stream))), max_event_bytes=20)


def test_keep_alives_never_add_up_to_an_event_that_is_too_large() -> None:
    assert decode(b": ping\n" * 100 + b"data: one\n\n", max_event_bytes=20) == [Event(b"one")]


def test_a_large_event_in_small_pieces_takes_linear_time() -> None:
    decoder = Decoder()
    decoder.feed(b"data: ")
    for _ in range(100_000):
        assert decoder.feed(b"0123456789") == []
    assert len(decoder.feed(b"\n\n")[0].data) == 1_000_000


STREAMS = st.lists(
    st.sampled_from(
        [
            b"data",
            b"data:",
            b"data: ",
            b"event: e",
            b"id: 1",
            b": c",
            b"x",
            "나루".encode(),
            b"\r",
            b"\n",
            b"\r\n",
            b"\n\n",
            b"\xef\xbb\xbf",
            b"\xff",
        ]
    ),
    max_size=40,
).map(b"".join)


@given(
    stream=STREAMS | st.binary(max_size=60),
    cuts=st.lists(st.integers(0, 200), max_size=12),
    limit=st.sampled_from([10, 1000]),
)
def test_where_the_bytes_are_cut_does_not_matter(stream: bytes, cuts: list[int], limit: int) -> None:
    def run(chunks: list[bytes]) -> tuple[list[Event], bool]:
        decoder, events = Decoder(max_event_bytes=limit), []
        try:
            for chunk in chunks:
                events += decoder.feed(chunk)
            events += decoder.close()
        except EventTooLargeError:
            return events, True
        return events, False

    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    assert run([stream[a:b] for a, b in pairwise(edges)]) == run([stream])


@given(st.lists(st.text(st.characters(codec="utf-8")), max_size=5))
def test_what_is_encoded_can_be_decoded(texts: list[str]) -> None:
    events = decode(*(sse.encode_event(text) for text in texts))
    assert [event.data.decode() for event in events] == [
        text.replace("\r\n", "\n").replace("\r", "\n") for text in texts
    ]


def test_bytes_are_encoded_as_they_are() -> None:
    assert sse.encode_event(CHUNK) == b"data: " + CHUNK + b"\n\n"
    assert sse.encode_event("a\nb") == b"data: a\ndata: b\n\n"
    assert sse.encode_event("\ud800") == b"data: ?\n\n"
    assert decode(sse.DONE) == [Event(b"[DONE]")]
    assert decode(sse.KEEP_ALIVE) == []


def test_an_error_is_one_event_with_the_error_as_data() -> None:
    body = {"error": {"message": "끊겼습니다\n\ud800", "type": "upstream_error", "param": None, "code": "cut"}}
    [event] = decode(sse.encode_error(body))
    assert event.event == "message"
    assert json.loads(event.data) == body
