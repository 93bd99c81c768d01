"""From a provider's stream to the client's: what is forwarded, hidden, and remembered for the bill."""

from __future__ import annotations

import json
from typing import Any

from naru.dialects import Dialect
from naru.pricing import Usage
from naru.tokens import CompletionCounter
from naru.wire import compact_json, parse_usage, usage_object

_NULL_USAGE = b',"usage":null'


class InvalidChunkError(Exception):
    """An event of the stream is not a chunk, so what it said is lost."""


class ErrorChunkError(Exception):
    """The provider reports an error in the middle of its stream; ``payload`` is its object."""

    def __init__(self, payload: dict[str, Any]) -> None:
        super().__init__("error in the stream")
        self.payload = payload


class ChunkRelay:
    """Reads chunks one by one; what needs no change is forwarded as the bytes that came.

    ``choices`` is how many the client asked for, ``show_usage`` whether it asked for the usage chunk. That chunk is
    always written by us, at the end: providers put usage into the last chunk, into one with choices, into every
    chunk, or nowhere.
    """

    def __init__(self, dialect: Dialect, counter: CompletionCounter, *, choices: int, show_usage: bool) -> None:
        self._dialect = dialect
        self._choices = choices
        self._show_usage = show_usage
        self._finished: set[int] = set()
        self._head: dict[str, Any] = {}
        self.counter = counter
        self.usage: Usage | None = None
        """What the provider reported last; running totals replace each other."""
        self.has_content = False
        """Whether any token has come."""

    @property
    def complete(self) -> bool:
        """Whether every choice has said why it ended: a stream that just stops has been cut."""
        return len(self._finished) >= self._choices

    def read(self, data: bytes) -> bytes | None:
        """What the client gets for one event; None where it gets nothing.

        Raises :class:`InvalidChunkError` and :class:`ErrorChunkError`.
        """
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InvalidChunkError from error
        if not isinstance(chunk, dict):
            raise InvalidChunkError
        if chunk.get("error"):
            raise ErrorChunkError(chunk)
        if not isinstance(choices := chunk.get("choices"), list):
            raise InvalidChunkError
        if (usage := parse_usage(chunk.get("usage"))) is not None:
            self.usage = usage
        if not self._head and chunk.get("id"):
            self._head = {key: chunk[key] for key in ("id", "created", "model", "system_fingerprint") if key in chunk}
        changed = self._dialect.answer(chunk)
        self.counter.feed(changed)
        self._remember(choices)
        if not choices:
            return None
        return self._forwarded(data, chunk, changed)

    def usage_chunk(self, usage: Usage) -> bytes:
        """The last chunk of a stream whose client asked for usage."""
        return compact_json(
            {"object": "chat.completion.chunk", **self._head, "choices": [], "usage": usage_object(usage)}
        )

    def _remember(self, choices: list[Any]) -> None:
        for choice in choices:
            if not isinstance(choice, dict):
                raise InvalidChunkError
            if choice.get("finish_reason"):
                self._finished.add(choice.get("index", 0))
            if not self.has_content and isinstance(delta := choice.get("delta"), dict):
                self.has_content = any(value for key, value in delta.items() if key != "role")

    def _forwarded(self, data: bytes, chunk: dict[str, Any], changed: dict[str, Any]) -> bytes:
        # With include_usage every chunk says "usage": null but the last; without it none has the field.
        if changed is chunk and chunk.get("usage") is None:
            if ("usage" in chunk) == self._show_usage:
                return data
            if not self._show_usage and data.count(_NULL_USAGE) == 1:
                # A quote inside a JSON string is escaped, so these bytes can only be the field itself.
                return data.replace(_NULL_USAGE, b"")
        shown = {key: value for key, value in changed.items() if key != "usage"}
        if self._show_usage:
            shown["usage"] = None
        return compact_json(shown)
