"""From a provider's stream to the client's: what is forwarded, hidden, and remembered for the bill."""

from __future__ import annotations

import json
from typing import Any

from naru.dialects import Dialect
from naru.pricing import Usage
from naru.provider_usage import Reading, UsageReader, usage_object, without_reports
from naru.tokens import CompletionCounter
from naru.wire import compact_json, is_noise

_NULL_USAGE = b',"usage":null'
_TEXT = frozenset({"role", "content", "reasoning_content", "reasoning"})
_GOES_ON = frozenset({"content", "tool_calls", "refusal", "annotations"})


class InvalidChunkError(Exception):
    """An event of the stream is not a chunk, so what it said is lost."""


class ErrorChunkError(Exception):
    """The provider reports an error in the middle of its stream; ``payload`` is its object."""

    def __init__(self, payload: dict[str, Any]) -> None:
        super().__init__("error in the stream")
        self.payload = payload


class MismatchError(Exception):
    """An answer that was asked for again does not begin as the first one did."""


class Overlap:
    """What a second deployment says again of what the client has: ``expected``, that and nothing else if ``required``."""

    def __init__(self, expected: str, *, required: bool) -> None:
        self._expected = expected
        self._required = required

    @property
    def pending(self) -> bool:
        """Whether something must still be said again."""
        return self._required and bool(self._expected)

    def new(self, said: str) -> str:
        """The part of ``said`` that the client does not have.

        Raises :class:`MismatchError`.
        """
        expected = self._expected
        different = (i for i, (one, other) in enumerate(zip(expected, said, strict=False)) if one != other)
        same = next(different, min(len(expected), len(said)))
        if same == len(said):
            self._expected = expected[same:]
            return ""
        if same < len(expected) and self._required:
            raise MismatchError
        self._expected = ""
        return said[same:]


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
        self._finished: set[str] = set()
        self._head: dict[str, Any] = {}
        self._text: list[str] = []
        self._only_text = choices == 1
        self._overlap: Overlap | None = None
        self.counter = counter
        self._usage = UsageReader()
        self._is_reported = False
        self.usage_is_behind = False
        """Whether more of the answer has come since: some providers report once, before the first word."""
        self.has_content = False
        """Whether any token has come."""

    def resumed(self, dialect: Dialect, counter: CompletionCounter, overlap: Overlap) -> ChunkRelay:
        """The relay of the stream that goes on with this answer. To the client it is one answer: with one id, one
        model, one role, and no second train of thought.
        """
        relay = ChunkRelay(dialect, counter, choices=self._choices, show_usage=self._show_usage)
        relay._head, relay._text, relay._only_text = self._head, self._text, self._only_text
        relay._overlap = overlap
        return relay

    @property
    def complete(self) -> bool:
        """Whether every choice has said why it ended: a stream that just stops has been cut."""
        return len(self._finished) >= self._choices

    @property
    def usage(self) -> Reading | None:
        """What the provider has reported so far."""
        return self._usage.read()

    @property
    def text(self) -> str:
        """What the client has of the answer."""
        return "".join(self._text)

    @property
    def can_go_on(self) -> bool:
        """Whether the answer so far is text and nothing else: half a tool call, or several answers at once, cannot be
        handed to somebody else.
        """
        return self._only_text and not self._finished

    def read(self, data: bytes) -> bytes | None:
        """What the client gets for one event; None where it gets nothing.

        Raises :class:`InvalidChunkError`, :class:`ErrorChunkError` and :class:`MismatchError`.
        """
        chunk = self._parse(data)
        if chunk is None:
            return None
        if self._usage.feed(chunk):
            self._is_reported = True
            self.usage_is_behind = False
        elif self._is_reported and _has_words(chunk["choices"]):
            self.usage_is_behind = True
        if not self._head and chunk.get("id"):
            self._head = {key: chunk[key] for key in ("id", "created", "model", "system_fingerprint") if key in chunk}
        changed = self._dialect.answer(without_reports(chunk))
        self.counter.feed(changed)
        choices = changed["choices"]
        if self._overlap is not None:
            choices = self._rest_of(choices, self._overlap)
        self._remember(choices)
        if not choices:
            return None
        if self._overlap is not None:
            return self._shown({**changed, **self._head, "choices": choices})
        return self._forwarded(data, chunk, changed)

    def usage_chunk(self, usage: Usage) -> bytes:
        """The last chunk of a stream whose client asked for usage."""
        return compact_json(
            {"object": "chat.completion.chunk", **self._head, "choices": [], "usage": usage_object(usage)}
        )

    def _parse(self, data: bytes) -> dict[str, Any] | None:
        """The chunk, or None for what says nothing."""
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError) as error:
            if self.complete or is_noise(data):
                return None
            raise InvalidChunkError from error
        if isinstance(chunk, dict):
            if chunk.get("error"):
                raise ErrorChunkError(chunk)
            choices = chunk.get("choices")
            if isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices):
                return chunk
            if choices is None:
                # Words are in choices; without them it can only be about the stream.
                return {**chunk, "choices": []}
        elif is_noise(data):
            return None
        if self.complete:
            return None
        raise InvalidChunkError

    def _rest_of(self, choices: list[dict[str, Any]], overlap: Overlap) -> list[dict[str, Any]]:
        rest = []
        for choice in choices:
            came = choice.get("delta")
            delta = {key: came[key] for key in _GOES_ON & came.keys()} if isinstance(came, dict) else {}
            if isinstance(said := delta.get("content"), str):
                delta["content"] = overlap.new(said)
            if choice.get("finish_reason") and overlap.pending:
                raise MismatchError
            if any(delta.values()) or choice.get("finish_reason"):
                rest.append({**choice, "delta": {key: value for key, value in delta.items() if value}})
        return rest

    def _remember(self, choices: list[dict[str, Any]]) -> None:
        self.has_content = self.has_content or _has_words(choices)
        for choice in choices:
            if choice.get("finish_reason"):
                self._finished.add(str(choice.get("index", 0)))  # which may be anything
            if not isinstance(delta := choice.get("delta"), dict):
                continue
            if isinstance(content := delta.get("content"), str):
                self._text.append(content)
            if self._only_text:
                self._only_text = not any(value for key, value in delta.items() if key not in _TEXT)

    def _forwarded(self, data: bytes, chunk: dict[str, Any], changed: dict[str, Any]) -> bytes:
        # With include_usage every chunk says "usage": null but the last; without it none has the field.
        if changed is chunk and chunk.get("usage") is None and _is_strict(data):
            if ("usage" in chunk) == self._show_usage:
                return data
            if not self._show_usage and data.count(_NULL_USAGE) == 1:
                # A quote inside a JSON string is escaped, so these bytes can only be the field itself.
                return data.replace(_NULL_USAGE, b"")
        return self._shown(changed)

    def _shown(self, chunk: dict[str, Any]) -> bytes:
        shown = {key: value for key, value in chunk.items() if key != "usage"}
        if self._show_usage:
            shown["usage"] = None
        return compact_json(shown)


def _is_strict(data: bytes) -> bool:
    """Whether a chunk that Python can read is one that every client can: it may hold infinite logprobs, and half a
    surrogate pair in the place of UTF-8. A false alarm costs nothing but time.
    """
    if b"NaN" in data or b"Infinity" in data:
        return False
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _has_words(choices: list[dict[str, Any]]) -> bool:
    """Whether any of them holds a token."""
    deltas = (choice.get("delta") for choice in choices)
    return any(value for delta in deltas if isinstance(delta, dict) for key, value in delta.items() if key != "role")
