"""One JSON answer from the chunks of a stream, as a client would put it together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from naru import sse
from naru.dialects import Dialect
from naru.halves import read_json
from naru.provider_usage import usage_object
from naru.relay import ChunkRelay, ErrorChunkError, InvalidChunkError
from naru.tokens import CompletionCounter

_DONE = b"[DONE]"
_APPENDED = frozenset(
    {"content", "reasoning_content", "reasoning", "refusal", "arguments", "input", "name", "transcript"}
)


def assembled(stream: bytes, dialect: Dialect, *, choices: int) -> dict[str, Any]:
    """The answer that a whole event stream holds, in OpenAI's shape; ``choices`` is how many were asked for.

    Raises :class:`~naru.relay.ErrorChunkError` for an error inside, :class:`~naru.relay.InvalidChunkError` where
    something is missing, and :class:`~naru.sse.EventTooLargeError`.
    """
    relay = ChunkRelay(dialect, CompletionCounter("unknown"), choices=choices, show_usage=False)
    decoder, answer = sse.Decoder(), _Answer()
    for event in decoder.feed(stream) + decoder.close():
        if event.data == _DONE:
            break
        if event.event == "error":
            raise ErrorChunkError(_payload(event.data))
        if event.event != "ping" and (chunk := relay.read(event.data)) is not None:
            answer.add(read_json(chunk))
    if not relay.complete:
        raise InvalidChunkError
    for chunk in relay.endings():
        answer.add(read_json(chunk))
    # What was reported before the last word is not what will be billed, nor is what can be read in two ways: without usage
    # the words are counted.
    reading = None if relay.usage_is_behind else relay.usage
    return answer.whole(usage=usage_object(reading.usage) if reading is not None and reading.doubt is None else None)


class _Answer:
    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._choices: dict[str, dict[str, Any]] = {}

    def add(self, chunk: Mapping[str, Any]) -> None:
        for name, value in chunk.items():
            if name not in {"choices", "object"} and (value is not None or name not in self._head):
                self._head.setdefault(name, value)
        for choice in chunk["choices"]:
            index = choice.get("index")
            so_far = self._choices.setdefault(str(index), {"index": index, "message": {"role": "assistant"}})
            for name, value in choice.items():
                if name == "delta":
                    _merge(so_far["message"], value if isinstance(value, dict) else {})
                elif name == "logprobs" and isinstance(value, dict):
                    if not isinstance(so_far.get("logprobs"), dict):
                        so_far["logprobs"] = {}
                    _merge(so_far["logprobs"], value)
                elif value is not None or name not in so_far:
                    so_far[name] = value

    def whole(self, *, usage: Any) -> dict[str, Any]:
        for choice in self._choices.values():
            message = choice["message"]
            message.setdefault("content", None)
            if isinstance(calls := message.get("tool_calls"), list):
                message["tool_calls"] = [
                    {name: value for name, value in call.items() if name != "index"}
                    for call in sorted(calls, key=lambda call: call["index"])
                ]
        answer = {**self._head, "object": "chat.completion", "choices": list(self._choices.values())}
        return answer if usage is None else {**answer, "usage": usage}


def _merge(so_far: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for name, value in delta.items():
        before = so_far.get(name)
        if (value is None and name in so_far) or (name == "id" and before):
            continue
        if name == "tool_calls" and isinstance(value, list):
            _merge_calls(so_far, value)
        elif isinstance(before, str) and isinstance(value, str) and name in _APPENDED:
            so_far[name] = f"{before}{value}"
        elif isinstance(before, list) and isinstance(value, list):
            so_far[name] = [*before, *value]
        elif isinstance(before, dict) and isinstance(value, dict):
            _merge(before, value)
        elif not before or value:
            so_far[name] = dict(value) if isinstance(value, dict) else value


def _merge_calls(so_far: dict[str, Any], calls: list[Any]) -> None:
    known = so_far.setdefault("tool_calls", [])
    if not isinstance(known, list):
        known = so_far["tool_calls"] = []
    for call in calls:
        if not isinstance(call, dict):
            continue
        same = next((one for one in known if one["index"] == call["index"]), None)
        if same is None:
            known.append(same := {})
        _merge(same, call)


def _payload(data: bytes) -> Any:
    try:
        return read_json(data)
    except (ValueError, RecursionError):
        return data.decode("utf-8", "replace")
