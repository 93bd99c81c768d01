"""What a client experiences: one request through the stock OpenAI SDK, without retries, and the bytes below it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
from openai.types.chat import ChatCompletionChunk

_DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Told:
    """An error as the client gets it: a status of its own, or an object inside a stream that had begun with 200."""

    status: int
    type: str | None
    code: str | None


@dataclass
class Seen:
    """All that a client can tell of one request. Times are seconds since it was sent."""

    stream: bool
    text: str = ""
    """What was said, or the function that was called and its arguments."""
    finish_reason: str | None = None
    done: bool = False
    """Whether ``[DONE]`` came; of JSON, whether there was an answer."""
    error: Told | None = None
    should_retry: str | None = None
    request_id: str = ""
    attempts: str | None = None
    usage: tuple[int, int] | None = None
    heads: set[tuple[str, str, int]] = field(default_factory=set)
    """Id, model and creation time of every chunk: of one answer there is one."""
    first_token_s: float | None = None
    total_s: float = 0.0
    gave_up: bool = False
    """Nothing more came for so long that the benchmark left."""
    defect: str = ""
    """What the SDK could not read."""

    def whole(self, text: str) -> bool:
        """Whether this is all of the answer ``text``, and says so."""
        ended = self.finish_reason in {"stop", "tool_calls"}
        complete = self.done and ended and self.error is None and len(self.heads) == 1
        return complete and self.text == text

    def describe(self) -> str:
        """In a few words, for a table."""
        if self.gave_up:
            return f"nothing for {self.total_s:.0f} s"
        if self.defect:
            return f"unreadable: {self.defect}"
        if self.error is not None and not self.text:
            return f"{self.error.status} {self.error.code}"
        if self.error is not None:
            return f"a part, then the error {self.error.code}"
        return "the whole answer" if self.done and self.finish_reason else "a part, and a clean end"


class _Tape(httpx2.AsyncBaseTransport):
    """Keeps the bytes of the answer, since the SDK hides how a stream ended."""

    def __init__(self) -> None:
        self._transport = httpx2.AsyncHTTPTransport(verify=False)
        self.bytes = bytearray()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = await self._transport.handle_async_request(request)
        stream: Any = answer.stream
        return httpx2.Response(
            answer.status_code,
            headers=answer.headers,
            stream=_Recorded(stream, self.bytes),
            extensions=answer.extensions,
        )

    async def aclose(self) -> None:
        await self._transport.aclose()


class _Recorded(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, tape: bytearray) -> None:
        self._stream = stream
        self._tape = tape

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._tape += chunk
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


async def ask(
    base_url: str,
    api_key: str,
    model: str,
    prompt: str,
    *,
    stream: bool,
    max_tokens: int,
    patience_s: float,
    tools: Sequence[Any] = (),
) -> Seen:
    """Sends one request and hears it out, for at most ``patience_s``; never raises for what the gateway does."""
    tape = _Tape()
    seen, started_s = Seen(stream), time.monotonic()
    http = httpx2.AsyncClient(transport=tape)
    try:
        async with (
            openai.AsyncOpenAI(
                base_url=base_url, api_key=api_key, max_retries=0, http_client=http, timeout=patience_s
            ) as client,
            asyncio.timeout(patience_s),
        ):
            await (_stream if stream else _json)(
                client,
                seen,
                started_s,
                {
                    "model": model,
                    "messages": [{"role": "user", "content": prompt}],
                    "max_tokens": max_tokens,
                    **({"tools": tools} if tools else {}),
                },
            )
    except (TimeoutError, openai.APITimeoutError):
        seen.gave_up = True
    except openai.APIStatusError as error:
        seen.error = Told(error.status_code, error.type, error.code)
        seen.should_retry = error.response.headers.get("x-should-retry")
        seen.request_id = error.request_id or ""
    except openai.APIConnectionError as error:
        seen.defect = f"{type(error).__name__}: {error}"
    except openai.APIError as error:
        seen.error = Told(200, error.type, error.code)
    except (json.JSONDecodeError, httpx2.HTTPError) as error:
        seen.defect = f"{type(error).__name__}: {error}"
    seen.total_s = time.monotonic() - started_s
    if stream:
        seen.done = bytes(tape.bytes).endswith(_DONE)
    return seen


async def _json(client: openai.AsyncOpenAI, seen: Seen, started_s: float, body: dict[str, Any]) -> None:
    raw = await client.chat.completions.with_raw_response.create(**body)
    answer = raw.parse()
    seen.first_token_s = time.monotonic() - started_s
    seen.request_id, seen.attempts = raw.headers["x-request-id"], raw.headers.get("x-naru-attempts")
    seen.heads.add((answer.id, answer.model, answer.created))
    seen.text = said(answer.choices[0].message.model_dump())
    seen.finish_reason = answer.choices[0].finish_reason
    seen.usage = answer.usage and (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    seen.done = True


async def _stream(client: openai.AsyncOpenAI, seen: Seen, started_s: float, body: dict[str, Any]) -> None:
    chunks: openai.AsyncStream[ChatCompletionChunk] = await client.chat.completions.create(
        **body, stream=True, stream_options={"include_usage": True}
    )
    headers = chunks.response.headers
    seen.request_id, seen.attempts = headers["x-request-id"], headers.get("x-naru-attempts")
    calls: dict[int, str] = {}
    async for chunk in chunks:
        seen.heads.add((chunk.id, chunk.model, chunk.created))
        if chunk.usage is not None:
            seen.usage = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
        for choice in chunk.choices:
            if choice.delta.content and seen.first_token_s is None:
                seen.first_token_s = time.monotonic() - started_s
            seen.text += choice.delta.content or ""
            seen.finish_reason = choice.finish_reason or seen.finish_reason
            for call in choice.delta.tool_calls or []:
                function = call.function
                piece = f"{(function and function.name) or ''}{(function and function.arguments) or ''}"
                calls[call.index] = calls.get(call.index, "") + piece
    seen.text += "".join(calls.values())


def said(message: Mapping[str, Any]) -> str:
    """What a message says: its text, then each function that it calls, with its arguments."""
    functions = [call["function"] for call in message.get("tool_calls") or []]
    return (message["content"] or "") + "".join(function["name"] + function["arguments"] for function in functions)
