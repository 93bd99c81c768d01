"""From a provider's stream to the client's: what is forwarded, hidden, and remembered for the bill.

**When an answer is over.** A choice is whole when a ``finish_reason`` came and nothing but noise followed: providers
send one with their thoughts, or with every chunk, and then go on. So it is held back until the stream has ended, and the
client reads one, at the end. Behind it

- words, thoughts and pieces of calls mean that it was not the end; another ``finish_reason`` must follow;
- an error, or a chunk that cannot be read, means that the answer was cut;
- usage, empty deltas, comments, a reset and silence mean nothing. Of two reasons the one that is not "stop" is told.

A reason that says that the provider broke off ("error", "abort", …), or names calls where none came, is not an end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from naru import canonical
from naru.deltas import Deltas
from naru.dialects import Dialect
from naru.halves import read_json
from naru.pricing import Usage
from naru.provider_usage import Reading, UsageReader, usage_object, without_reports
from naru.tokens import CompletionCounter
from naru.wire import can_be_passed_on, compact_json, is_noise

_NULL_USAGE = b',"usage":null'
_DONE = b"[DONE]"
_TEXT = frozenset({"role", "content", *canonical.THOUGHTS})
_ABOUT_USAGE = re.compile(rb'"usage"\s*:\s*\{|"choices"\s*:\s*\[\s*\]')
_ABOUT_WORDS = re.compile(rb'"(?:delta|message|text|content)"')
_GOES_ON = frozenset({"content", "tool_calls", "refusal", "annotations", canonical.OTHER_PARTS})


class InvalidChunkError(Exception):
    """An event of the stream is not a chunk, so what it said is lost."""


class ErrorChunkError(Exception):
    """The provider reports an error in the middle of its stream; ``payload`` is what it says."""

    def __init__(self, payload: Any) -> None:
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
        self._deltas = Deltas(choices)
        self._ends: dict[str, tuple[str, bytes]] = {}
        """Of each choice that has ended the reason, and the event that says so."""
        self._spoken: set[str] = set()
        self._called: set[str] = set()
        self._by_deltas: set[str] = set()
        """The choices that speak in deltas, as they should."""
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
        """Whether every choice has ended: a stream that just stops has been cut."""
        return self._all_ended and not self.falls_short

    @property
    def falls_short(self) -> bool:
        """Whether what was to be said again ended too early: it is another answer, then."""
        return self._all_ended and self._overlap is not None and self._overlap.pending

    @property
    def _all_ended(self) -> bool:
        return len(self._ends) >= self._choices and self._ends.keys() >= self._spoken

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
        return self._only_text and not self._ends

    def read(self, data: bytes) -> bytes | None:
        """What the client gets for one event; None where it gets nothing.

        Raises :class:`InvalidChunkError`, :class:`ErrorChunkError` and :class:`MismatchError`.
        """
        chunk = self._parse(data)
        if chunk is None:
            return None
        delta = self._as_chunk(chunk)
        if self._usage.feed(chunk):
            self._is_reported = True
            self.usage_is_behind = False
        elif self._is_reported and _has_words(delta["choices"]):
            self.usage_is_behind = True
        if not self._head and chunk.get("id"):
            self._head = {key: chunk[key] for key in ("id", "created", "model", "system_fingerprint") if key in chunk}
        changed = self._dialect.answer(without_reports(delta))
        if (choices := self._deltas.whole(changed["choices"])) is not changed["choices"]:
            changed = {**changed, "choices": choices}
        self.counter.feed(changed)
        if self._overlap is not None:
            changed = {**changed, **self._head, "choices": self._rest_of(choices, self._overlap)}
        choices = changed["choices"]
        self._remember(choices)
        open_ = [went_on for choice in choices if (went_on := self._went_on(choice, data, chunk, changed)) is not None]
        if len(self._by_deltas) < len(self._spoken) and all(isinstance(c.get("delta"), dict) for c in chunk["choices"]):
            self._by_deltas |= self._spoken
        if not open_:
            return None
        if any(new is not old for new, old in zip(open_, choices, strict=False)) or len(open_) < len(choices):
            changed = {**changed, "choices": open_}
        return self._forwarded(data, chunk, changed)

    def not_the_end(self) -> None:
        """The provider has said that something is missing, or sent what nobody can read."""
        self._ends.clear()

    def endings(self) -> Iterator[bytes]:
        """The last events of an answer that is complete: why each choice ended, after what was held back of it."""
        for key, (_, event) in self._ends.items():
            if held := self._deltas.held(key):
                (choice,) = read_json(event)["choices"]
                rest = {**choice, "delta": held, "finish_reason": None}
                yield self._shown({"object": "chat.completion.chunk", **self._head, "choices": [rest]})
            yield event

    def usage_chunk(self, usage: Usage) -> bytes:
        """The last chunk of a stream whose client asked for usage."""
        return compact_json(
            {"object": "chat.completion.chunk", **self._head, "choices": [], "usage": usage_object(usage)}
        )

    def _parse(self, data: bytes) -> dict[str, Any] | None:
        """The chunk, or None for what says nothing."""
        try:
            chunk = read_json(data)
        except (ValueError, RecursionError) as error:
            if is_noise(data) or (self.complete and _is_harmless(data)):
                return None
            raise InvalidChunkError from error
        if canonical.is_error(chunk):
            raise ErrorChunkError(chunk)
        if isinstance(chunk, dict):
            choices = chunk.get("choices")
            if not choices:
                # Words are in choices; without them it can only be about the stream.
                return {**chunk, "choices": []}
            if isinstance(choices, list) and all(isinstance(choice, dict | None) for choice in choices):
                choices = [choice for choice in choices if choice is not None]
                if len(choices) < len(chunk["choices"]):
                    chunk = {**chunk, "choices": choices}
                if (broken := next((choice for choice in choices if choice.get("error")), None)) is not None:
                    raise ErrorChunkError({"error": broken["error"]})
                return chunk
        elif not chunk or is_noise(data):
            return None
        raise InvalidChunkError

    def _as_chunk(self, chunk: dict[str, Any]) -> dict[str, Any]:
        delta = canonical.as_chunk(chunk)
        if delta is chunk:
            return chunk
        # Behind its deltas some repeat the whole answer as a message.
        choices = [
            {**new, "delta": {}}
            if not isinstance(old.get("delta"), dict) and self._deltas.key(new) in self._by_deltas
            else new
            for new, old in zip(delta["choices"], chunk["choices"], strict=True)
        ]
        return {**delta, "choices": choices}

    def _rest_of(self, choices: list[dict[str, Any]], overlap: Overlap) -> list[dict[str, Any]]:
        rest = []
        for choice in choices:
            came = choice.get("delta")
            delta = {key: came[key] for key in _GOES_ON & came.keys()} if isinstance(came, dict) else {}
            if isinstance(said := delta.get("content"), str):
                delta["content"] = overlap.new(said)
            if any(delta.values()) or choice.get("finish_reason"):
                rest.append({**choice, "delta": {key: value for key, value in delta.items() if value}})
        return rest

    def _remember(self, choices: list[dict[str, Any]]) -> None:
        self.has_content = self.has_content or _has_words(choices)
        for choice in choices:
            if not isinstance(delta := choice.get("delta"), dict):
                continue
            if isinstance(content := delta.get("content"), str):
                self._text.append(content)
            if self._only_text:
                self._only_text = not any(value for key, value in delta.items() if key not in _TEXT)

    def _went_on(
        self, choice: dict[str, Any], data: bytes, chunk: dict[str, Any], changed: dict[str, Any]
    ) -> dict[str, Any] | None:
        """What is shown of a choice now; its end is kept for later."""
        key, delta, reason = self._deltas.key(choice), choice.get("delta"), choice.get("finish_reason")
        said = delta if isinstance(delta, dict) else {}
        if canonical.has_call(said):
            self._called.add(key)
        if reason is None and key in self._spoken and key not in self._ends:
            return choice  # nearly every chunk
        if speaks := canonical.has_words(said):
            self._spoken.add(key)
            self._ends.pop(key, None)
        if reason is None:
            return choice
        is_lost = canonical.broke_off(reason) or (canonical.needs_call(reason) and key not in self._called)
        if is_lost:
            self._ends.pop(key, None)
            self._spoken.add(key)
        elif canonical.is_end(reason):
            self._end(key, choice, speaks=speaks, data=data, chunk=chunk, changed=changed)
            if not speaks:
                return None
        return {**choice, "finish_reason": None}

    def _end(
        self,
        key: str,
        choice: dict[str, Any],
        *,
        speaks: bool,
        data: bytes,
        chunk: dict[str, Any],
        changed: dict[str, Any],
    ) -> None:
        reason: str = choice["finish_reason"]
        if key in self._ends and reason.lower() in {"stop", self._ends[key][0].lower()}:
            return
        if speaks:
            choice = {name: value for name, value in choice.items() if name in {"index", "finish_reason"}}
            choice["delta"] = {}
        alone = changed if not speaks and len(changed["choices"]) == 1 else {**changed, "choices": [choice]}
        self._ends[key] = reason, self._forwarded(data, chunk, alone)

    def _forwarded(self, data: bytes, chunk: dict[str, Any], changed: dict[str, Any]) -> bytes:
        # With include_usage every chunk says "usage": null but the last; without it none has the field.
        if changed is chunk and chunk.get("usage") is None and can_be_passed_on(data):
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


def _is_harmless(data: bytes) -> bool:
    """Whether what cannot be read behind the last word is a piece of the usage, or of ``[DONE]``."""
    if _DONE.startswith(data.strip()):
        return True
    return _ABOUT_USAGE.search(data) is not None and _ABOUT_WORDS.search(data) is None


def _has_words(choices: list[dict[str, Any]]) -> bool:
    """Whether any of them holds a token."""
    deltas = (choice.get("delta") for choice in choices)
    return any(value for delta in deltas if isinstance(delta, dict) for key, value in delta.items() if key != "role")
