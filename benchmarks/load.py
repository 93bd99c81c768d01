"""A client that costs little itself: raw sockets, kept open, no parsing beyond what is measured."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

MODEL = "hyperclova-x-omni"
_READ_BYTES = 1 << 16
_TOKEN = re.compile(rb'"content": ?"(?!")')
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LAST_CHUNK = b"\r\n0\r\n\r\n"


class WrongAnswerError(Exception):
    """Not what was asked for, so its time says nothing."""


@dataclass(frozen=True, slots=True)
class Target:
    """Somebody who serves chat completions; ``base_url`` ends in ``/v1``."""

    base_url: str
    api_key: str

    def request(self, *, stream: bool, tokens: int, first_token_ms: float = 0, token_ms: float = 0) -> bytes:
        """The bytes of a request that is answered with so many tokens, at that pace."""
        said = f"[[sim tokens={tokens} ttft_ms={first_token_ms:g} token_ms={token_ms:g}]]"
        body: dict[str, Any] = {
            "model": MODEL,
            "messages": [
                {"role": "system", "content": "여행 안내원처럼 친절하게, 한국어로 답해 주세요."},
                {"role": "user", "content": f"서울의 가을을 소개해 주세요. {said}"},
            ],
            "max_tokens": 256,
            "temperature": 0.7,
            **({"stream": True} if stream else {}),
        }
        content = json.dumps(body, ensure_ascii=False).encode()
        return self._head("POST", "/chat/completions", len(content)) + content

    def health(self) -> bytes:
        """The bytes of ``GET /health``."""
        return self._head("GET", "/health", 0)

    def _head(self, method: str, path: str, length: int) -> bytes:
        url = urlsplit(self.base_url)
        return (
            f"{method} {url.path}{path} HTTP/1.1\r\nHost: {url.netloc}\r\nAuthorization: Bearer {self.api_key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        ).encode()


@dataclass(slots=True)
class Sample:
    """One answer. Times in milliseconds since the request was sent."""

    total_ms: float = 0.0
    first_token_ms: float | None = None
    gaps_ms: list[float] = field(default_factory=list)
    """Between reads that brought tokens."""
    tokens: int = 0
    body: bytes = b""


class Connection:
    """One connection; requests one after the other."""

    def __init__(self, target: Target) -> None:
        url = urlsplit(target.base_url)
        self._host, self._port = url.hostname or "", url.port or 80
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> Sample:
        """Sends a request and reads the whole answer. Raises WrongAnswerError."""
        if self._streams is None or self._streams[0].at_eof():
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        sample, received, last_s = Sample(), bytearray(), 0.0
        began_s = time.perf_counter()
        writer.write(request)
        while not _is_whole(received):
            data = await reader.read(_READ_BYTES)
            now_s = time.perf_counter()
            if not data:
                raise WrongAnswerError(f"the connection was closed after {bytes(received[-200:])!r}")
            received += data
            if came := len(_TOKEN.findall(data)):
                sample.tokens += came
                if sample.first_token_ms is None:
                    sample.first_token_ms = (now_s - began_s) * 1000
                else:
                    sample.gaps_ms.append((now_s - last_s) * 1000)
                last_s = now_s
        sample.total_ms = (time.perf_counter() - began_s) * 1000
        sample.body = bytes(received)
        if not sample.body.startswith(b"HTTP/1.1 200"):
            raise WrongAnswerError(sample.body[:600].decode(errors="replace"))
        return sample

    def close(self) -> None:
        """Closes it."""
        if self._streams is not None:
            self._streams[1].close()


def _is_whole(received: bytearray) -> bool:
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return False
    if length := _LENGTH.search(received, 0, end):
        return len(received) >= end + 4 + int(length[1])
    return received.endswith(_LAST_CHUNK)


async def load(target: Target, request: bytes, *, requests: int, concurrency: int, stream: bool) -> list[Sample]:
    """Asks so often, so many at once. Raises WrongAnswerError for the first answer that is not a whole one."""
    left = iter(range(requests))
    samples: list[Sample] = []

    async def work() -> None:
        connection = Connection(target)
        try:
            for _ in left:
                sample = await connection.ask(request)
                if stream and b"data: [DONE]" not in sample.body:
                    raise WrongAnswerError(f"a cut stream: {sample.body[-300:]!r}")
                sample.body = b""
                samples.append(sample)
        finally:
            connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work())
    return samples
