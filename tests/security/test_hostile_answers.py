"""What a provider answers is not to be trusted either: odd JSON in it is no defect of ours, and the answer is paid for."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from naru.wire import compact_json
from tests.security.handlers import OMNI, Handlers

ODD = [
    '"logprobs": {"content": [{"token": "a", "logprob": -Infinity}]}',
    '"logprobs": NaN',
    '"x": 1e999',
    '"x": "\\ud83d"',
    '"\\udc00": 1',
]


@pytest.fixture
def answering(gateway: Handlers, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has the provider answer so."""

    def answer(content: str | bytes, content_type: str) -> None:
        async def send(request: httpx.Request, **_: Any) -> httpx.Response:
            headers = {"content-type": content_type}
            return httpx.Response(200, headers=headers, content=content, request=request)

        monkeypatch.setattr(gateway.modules["chat"].http, "send", send)

    return answer


@pytest.mark.parametrize("odd", ODD)
def test_an_answer_that_json_has_no_form_for_is_passed_on_as_well_as_can_be(
    gateway: Handlers, answering: Any, odd: str
) -> None:
    usage = '"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}'
    answering(
        '{"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "네"}, '
        f"{odd}}}], {usage}}}",
        "application/json",
    )
    reply = gateway.chat("안녕")
    assert reply.status == 200, gateway.printed.getvalue()
    assert reply.json()["choices"][0]["message"]["content"] == "네"
    assert not {b"NaN", b"Infinity"} & set(reply.body.replace(b":", b" ").replace(b"}", b" ").split())


@pytest.mark.parametrize("odd", ODD)
def test_a_stream_with_such_a_chunk_ends_cleanly(gateway: Handlers, answering: Any, odd: str) -> None:
    # With usage, so that the chunk has to be changed on its way.
    usage = '"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}'
    chunk = f'{{"id": "1", "choices": [{{"index": 0, "delta": {{"content": "네"}}, "finish_reason": "stop", {odd}}}], {usage}}}'
    answering(f"data: {chunk}\n\ndata: [DONE]\n\n", "text/event-stream")
    reply = gateway.chat("안녕", stream=True)
    assert reply.status == 200
    assert reply.body.endswith(b"data: [DONE]\n\n"), reply.body
    assert "네".encode() in reply.body


@pytest.mark.parametrize("odd", [b'"x": NaN', b'"logprob": -Infinity', b'"x": "\xed\xa0\xbd"'])
def test_a_chunk_that_only_python_can_read_is_not_forwarded_as_it_came(
    gateway: Handlers, answering: Any, odd: bytes
) -> None:
    # JavaScript's JSON.parse refuses the first two, Python's SDK the third: an answer that was paid for would be lost.
    chunk = b'{"id": "1", "choices": [{"index": 0, "delta": {"content": "yes"}, "finish_reason": "stop", %b}]}' % odd
    answering(b"data: %b\n\ndata: [DONE]\n\n" % chunk, "text/event-stream")
    reply = gateway.chat("안녕", stream=True)
    assert reply.body.endswith(b"data: [DONE]\n\n"), reply.body
    assert "yes" in reply.body.decode()
    assert not {"NaN", "Infinity"} & set(re.findall(r"\w+", reply.body.decode()))


@pytest.mark.parametrize("index", ['"0"', "[0]", "{}", "null"])
def test_an_odd_index_does_not_break_a_stream(gateway: Handlers, answering: Any, index: str) -> None:
    chunk = f'{{"id": "1", "choices": [{{"index": {index}, "delta": {{"content": "네"}}, "finish_reason": "stop"}}]}}'
    answering(f"data: {chunk}\n\ndata: [DONE]\n\n", "text/event-stream")
    reply = gateway.chat("안녕", stream=True)
    assert reply.body.endswith(b"data: [DONE]\n\n"), reply.body


def test_half_pairs_that_meet_are_whole_again() -> None:
    assert json.loads(compact_json({"a": "\ud83d\ude00", "b": "\ud83d", "c": [float("inf"), 1.5]})) == {
        "a": "😀",
        "b": "�",
        "c": [None, 1.5],
    }


@pytest.mark.parametrize(
    "body",
    [
        "[" * 100_000,
        '{"choices": [' + "[" * 50_000,
        '{"choices": [{"index": 1e999, "message": {}}]}',
        '{"choices": [{"message": {"content": 1}}], "usage": {"prompt_tokens": 1e999}}',
        '{"choices": [{"message": {"role": [], "content": {"a": 1}}}], "usage": {"prompt_tokens": -1, "completion_tokens": 99999999999}}',
        '{"choices": {}}',
        "null",
        "\x00",
        "<script>alert(1)</script>",
    ],
    ids=range(9),
)
@pytest.mark.parametrize("stream", [False, True])
def test_no_answer_makes_a_defect(gateway: Handlers, answering: Any, body: str, stream: bool) -> None:
    if stream:
        answering(f"data: {body}\n\ndata: [DONE]\n\n", "text/event-stream")
    else:
        answering(body, "application/json")
    reply = gateway.send("chat", "POST", "/chat/completions", {"model": OMNI, "messages": [{"role": "user", "content": "안녕"}], "stream": stream})  # fmt: skip
    assert reply.status != 500, (reply.body, gateway.printed.getvalue()[-2000:])
    assert "<script" not in reply.body.decode()
