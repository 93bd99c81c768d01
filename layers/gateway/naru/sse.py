"""Server-sent events: an incremental decoder for streams that nobody vouches for, and the encoders.

The decoder follows the WHATWG specification (HTML, section 9.2), with three differences: data stays bytes, so that an
event can be passed on as it came; one event may not grow without limit; and ``close`` hands over what the
specification would throw away when the last blank line is missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

MAX_EVENT_BYTES = 8 * 1024 * 1024

DONE = b"data: [DONE]\n\n"
# OpenAI's SDK takes an event without data for a broken chunk, and a comment for nothing.
KEEP_ALIVE = b": keep-alive\n\n"

_BOM = b"\xef\xbb\xbf"


class EventTooLargeError(ValueError):
    """One event of the stream is larger than the decoder accepts; nothing more can be read from it."""


class Event(NamedTuple):
    """One event: ``data`` as it came, its lines joined by LF; ``event`` is its type."""

    data: bytes
    event: str = "message"


class Decoder:
    """Turns chunks of bytes, cut anywhere, into events."""

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._head: bytes | None = b""  # the first bytes, while they may still become a byte order mark
        self._line = bytearray()  # a line whose end has not come
        self._after_cr = False
        self._data: list[bytes] = []
        self._event = ""
        self._event_bytes = 0  # of all lines but comments since the last event
        self._too_large = False

    def feed(self, data: bytes) -> list[Event]:
        """The events that ``data`` completes.

        Raises :class:`EventTooLargeError`, though never before the events that came ahead of the large one are out.
        """
        if self._too_large:
            raise self._error()
        if self._head is not None:
            data = self._head + data
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._head = data
                return []
            self._head = None
            data = data.removeprefix(_BOM)
        if not data:
            return []
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
        self._after_cr = data.endswith(b"\r")
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = data.split(b"\n")
        if lines and self._line:
            lines[0] = bytes(self._line) + lines[0]
            self._line.clear()
        events: list[Event] = []
        for line in lines:
            if line:
                self._take(line)
                if self._too_large:
                    break
            elif self._data:
                events.append(self._dispatch())
            else:
                self._event, self._event_bytes = "", 0
        else:
            self._line += rest
            self._check(self._line)
        if self._too_large and not events:
            raise self._error()
        return events

    def close(self) -> list[Event]:
        """The event that a missing last line end or blank line would lose: at most one, and it may be cut short.

        Raises :class:`EventTooLargeError`.
        """
        if self._too_large:
            raise self._error()
        if self._head:
            self._line += self._head
        self._head = None
        if self._line:
            line = bytes(self._line)
            self._line.clear()
            self._take(line)
            if self._too_large:
                raise self._error()
        return [self._dispatch()] if self._data else []

    def _take(self, line: bytes) -> None:
        if not self._check(line):
            return
        if line.startswith(b":"):
            return
        self._event_bytes += len(line)
        if line.startswith(b"data:"):
            self._data.append(line[6:] if line.startswith(b" ", 5) else line[5:])
        elif line == b"data":
            self._data.append(b"")
        elif line.startswith(b"event:"):
            self._event = line[6:].removeprefix(b" ").decode("utf-8", "replace")
        elif line == b"event":
            self._event = ""
        # id and retry serve reconnection, which a POST has none of; other fields are to be ignored.

    def _check(self, line: bytes | bytearray) -> bool:
        # A comment counts by itself, or a long wait full of keep-alives would add up to an error.
        size = len(line) if line.startswith(b":") else self._event_bytes + len(line)
        if size <= self._max_event_bytes:
            return True
        self._too_large = True
        self._data.clear()
        self._line.clear()
        return False

    def _dispatch(self) -> Event:
        data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
        event = Event(data, self._event or "message")
        self._data, self._event, self._event_bytes = [], "", 0
        return event

    def _error(self) -> EventTooLargeError:
        return EventTooLargeError(f"an event of the stream is larger than {self._max_event_bytes} bytes")


def encode_event(data: bytes | str) -> bytes:
    """``data`` as one event, in as many ``data:`` lines as it has lines."""
    if isinstance(data, str):
        data = data.encode("utf-8", "replace")
    if b"\n" in data or b"\r" in data:
        lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        return b"".join(b"data: %b\n" % line for line in lines) + b"\n"
    return b"data: %b\n\n" % data


def encode_error(body: Mapping[str, Any]) -> bytes:
    """An OpenAI error body as the in-band event that its SDKs raise from."""
    return encode_event(json.dumps(body, separators=(",", ":")))
