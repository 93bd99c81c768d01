"""Providers that answer what a test has written down, byte by byte, and what a client's SDK makes of the gateway's answer."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
import httpx2
import openai

Ending = Literal["end", "reset", "silence"]

DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def chunk(index: int = 0, finish: Any = None, /, **delta: Any) -> dict[str, Any]:
    """A chunk of one choice."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1764547200,
        "model": "m",
        "choices": [{"index": index, "delta": delta, "finish_reason": finish}],
    }


def usage_chunk(**usage: Any) -> dict[str, Any]:
    return {**chunk(), "choices": [], "usage": usage or USAGE}


def event(data: Any) -> bytes:
    """One event: bytes as they are, text as the data, everything else as JSON in ASCII."""
    if isinstance(data, bytes):
        return data
    return b"data: %b\n\n" % (data if isinstance(data, str) else json.dumps(data)).encode()


def stream(*events: Any, done: bool = True) -> bytes:
    return b"".join(map(event, events)) + (DONE if done else b"")


@dataclass
class Answer:
    """What a provider answers with 200; ``pieces`` are what it writes at a time."""

    pieces: Sequence[bytes]
    ending: Ending = "end"
    content_type: str = "text/event-stream"


@dataclass
class Providers:
    """Answer in the order in which they are called."""

    answers: list[Answer]
    asked: list[dict[str, Any]] = field(default_factory=list)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(json.loads(request.content))
        answer = self.answers[len(self.asked) - 1]
        return httpx.Response(200, headers={"content-type": answer.content_type}, stream=_Body(answer))


class _Body(httpx.AsyncByteStream):
    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._answer.pieces:
            yield piece
        if self._answer.ending == "reset":
            raise httpx.ReadError("Connection reset by peer")
        if self._answer.ending == "silence":
            raise httpx.ReadTimeout("")


@dataclass
class Read:
    """What a client has of a stream."""

    content: dict[int, str] = field(default_factory=dict)
    thoughts: str = ""
    refusal: str = ""
    calls: dict[int, tuple[str, str, str]] = field(default_factory=dict)
    """Id, name and arguments."""
    finish: list[str] = field(default_factory=list)
    """Every ``finish_reason`` that was read."""
    error: str | None = None
    done: bool = False
    usage: int | None = None

    @property
    def text(self) -> str:
        return self.content.get(0, "")


def read_with_sdk(body: bytes) -> Read:
    """What the stock SDK reads, and whether the stream ended with ``[DONE]``."""
    read = Read(done=body.endswith(DONE))
    transport = httpx2.MockTransport(
        lambda _: httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body)
    )
    with openai.OpenAI(
        api_key="k", base_url="http://gateway.invalid/v1", max_retries=0, http_client=httpx2.Client(transport=transport)
    ) as client:
        try:
            for got in client.chat.completions.create(model="m", messages=[], stream=True):
                _take(read, got.model_dump())
        except openai.APIError as error:
            read.error = error.code
    return read


def _take(read: Read, got: dict[str, Any]) -> None:
    if got["usage"]:
        read.usage = got["usage"]["completion_tokens"]
    for choice in got["choices"]:
        index, delta = choice["index"], choice["delta"]
        said = delta.get("content")
        assert said is None or isinstance(said, str)
        read.content[index] = read.content.get(index, "") + (said or "")
        read.thoughts += delta.get("reasoning_content") or ""
        read.refusal += delta.get("refusal") or ""
        for call in delta.get("tool_calls") or []:
            assert isinstance(call["index"], int)
            known = read.calls.get(call["index"], ("", "", ""))
            function = call["function"] or {}
            said_now = (call["id"], function.get("name"), function.get("arguments"))
            first, *rest = (old + (new or "") for old, new in zip(known, said_now, strict=True))
            read.calls[call["index"]] = (known[0] or first, rest[0], rest[1])
        if choice["finish_reason"] is not None:
            read.finish.append(choice["finish_reason"])


def cut_anywhere(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """``data`` in pieces."""
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]
