"""One event on its way through Lambda, and what the function makes of it."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator

_CHUNKS_IN_FLIGHT = 16


class FunctionError(Exception):
    """The function failed; `error_type` is Lambda's word for how."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(f"{error_type}: {message}")
        self.error_type = error_type


class Invocation:
    """One event, and the function's answer as it arrives."""

    def __init__(self, event: bytes, *, trace_id: str) -> None:
        self.event = event
        self.trace_id = trace_id
        self.request_id = str(uuid.uuid4())
        self.attempt_id = secrets.token_hex(8)
        self.answered = False
        self._mode: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._chunks: asyncio.Queue[bytes | FunctionError | None] = asyncio.Queue(_CHUNKS_IN_FLIGHT)
        self._abandoned = False

    async def mode(self) -> str | None:
        """Wait for the answer to begin: the content type of a streamed one, None for an ordinary one.

        Raises FunctionError.
        """
        return await asyncio.shield(self._mode)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the answer. Raises FunctionError where it was cut."""
        while (chunk := await self._chunks.get()) is not None:
            if isinstance(chunk, FunctionError):
                raise chunk
            yield chunk

    def abandon(self) -> None:
        """Drop the rest of the answer. The function is not told, as it is not on Lambda."""
        self._abandoned = True
        self._mode.cancel()
        while not self._chunks.empty():
            self._chunks.get_nowait()

    def begin(self, content_type: str | None) -> None:
        """The function's answer begins."""
        self.answered = True
        if not self._mode.done():
            self._mode.set_result(content_type)

    async def put(self, chunk: bytes | FunctionError | None) -> None:
        """Pass on a piece of the answer, the error that cuts it, or its end; waits for a slow reader."""
        if not self._abandoned:
            await self._chunks.put(chunk)

    def fail(self, error: FunctionError) -> None:
        """Fail before any answer."""
        self.answered = True
        if not self._mode.done():
            self._mode.set_exception(error)
            self._mode.exception()  # nobody may be waiting any more
