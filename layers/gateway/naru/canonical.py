"""What a model says, in one form: text where OpenAI's contract has text, and one name for thoughts.

Providers behind OpenAI's path say the same in other shapes. Each was seen in a provider's answers or documentation:

- ``content`` as a list of parts, as one part, or as the parsed object of JSON mode (Mistral, Databricks, Anthropic
  behind several gateways); thoughts and refusals may be among the parts;
- thoughts as ``reasoning_content``, ``reasoning``, ``thinking_content``, ``thinking``, ``reasoning_text``,
  ``reasoning_details`` or ``thinking_blocks`` (DeepSeek, OpenRouter, CLOVA Studio, Ollama, Copilot, LiteLLM);
- a call's ``arguments`` as an object (Ollama); the words of a chunk as ``message`` or ``text``.

What comes in OpenAI's shape is not touched, and is the same object afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

THOUGHTS = (
    "reasoning_content",
    "reasoning",
    "thinking_content",
    "thinking",
    "reasoning_text",
    "reasoning_details",
    "thinking_blocks",
)
"""The fields that hold thoughts. In the canonical form ``reasoning_content`` has all of them, as text."""

OTHER_PARTS = "content_parts"
"""The field for parts of ``content`` that are not text: they are passed on, but are not a part of the text."""

_RENAMED = frozenset({"thinking_content", "thinking", "reasoning_text"})
_TEXT_FIELDS = frozenset({"content", "refusal", "tool_calls", "function_call", "audio", OTHER_PARTS, *THOUGHTS})
_PLAIN = frozenset({"content", "reasoning_content", "refusal", "role"})
_TEXT_TYPES = frozenset({str, type(None)})
_KIND_OF_TYPE = {
    **dict.fromkeys(("text", "output_text", "input_text", "text_delta"), "content"),
    **dict.fromkeys(
        ("thinking", "reasoning", "reasoning_text", "reasoning.text", "reasoning.summary", "summary_text"), "thoughts"
    ),
    "refusal": "refusal",
}
_KIND_OF_NAME = {
    **dict.fromkeys(("thinking", "reasoning", "reasoning_content", "summary"), "thoughts"),
    "refusal": "refusal",
}
_TEXT_NAMES = ("text", "content", "value", "thinking", "reasoning", "reasoning_content", "summary", "refusal", "parts")
_NOT_TEXT = frozenset(
    {"image", "image_url", "audio", "input_audio", "output_audio", "video", "video_url", "file", "document", "tool_use"}
)
_OF_A_PART = frozenset({"annotations", "parts", "role", "text", "type", "value"})
_DEPTH = 12
_NOT_WORDS = frozenset({"id", "index", "object", "role", "type"})

# Reasons that providers give when they broke off. DeepSeek documents insufficient_system_resource, Zhipu network_error;
# OpenRouter says error, vLLM abort.
_BROKE_OFF = frozenset(
    {
        "abort", "aborted", "cancelled", "canceled", "failed", "failure", "insufficient_system_resource",
        "internal_error", "interrupted", "malformed_function_call", "network_error", "overloaded", "server_error",
        "timeout", "unavailable",
    }
)  # fmt: skip
_NOT_YET = frozenset({"", "finish_reason_unspecified", "none", "null", "undefined"})  # DashScope says "null"
_CALLS = frozenset({"tool_calls", "function_call"})


def answer(payload: dict[str, Any]) -> dict[str, Any]:
    """An answer, or a chunk of a stream, in the canonical form; ``payload`` itself where it is in that already."""
    choices = payload.get("choices")
    if not isinstance(choices, list):
        return payload
    canonical = [_choice(choice) for choice in choices]
    for new, old in zip(canonical, choices, strict=True):
        if new is not old:
            return {**payload, "choices": canonical}
    return payload


def as_chunk(payload: dict[str, Any]) -> dict[str, Any]:
    """A chunk whose choices have an ``index`` and a ``delta``, also where the provider calls it otherwise, or sent a whole
    answer; ``payload`` itself where they have.
    """
    choices = payload["choices"]
    if all(isinstance(choice.get("delta"), dict) and choice.get("index") is not None for choice in choices):
        return payload
    deltas = [_with_delta(choice, position) for position, choice in enumerate(choices)]
    return {**payload, "object": "chat.completion.chunk", "choices": deltas}


def is_error(payload: Any) -> bool:
    """Whether an answer, or the data of an event, is an error object: OpenAI's, or the bare one of older vLLMs."""
    return isinstance(payload, dict) and bool(
        payload.get("error") or (not payload.get("choices") and "error" in (payload.get("object"), payload.get("type")))
    )


def is_end(reason: Any) -> bool:
    """Whether a ``finish_reason`` says that a choice is all there; unknown words do."""
    return isinstance(reason, str) and reason.strip().lower() not in _NOT_YET and not broke_off(reason)


def broke_off(reason: Any) -> bool:
    """Whether a ``finish_reason`` says that the provider gave up."""
    word = reason.strip().lower() if isinstance(reason, str) else ""
    return word in _BROKE_OFF or word.startswith("error")


def needs_call(reason: Any) -> bool:
    """Whether a ``finish_reason`` says that there is a call. Where there is none, it has been lost."""
    return isinstance(reason, str) and reason.lower() in _CALLS


def has_call(said: Mapping[str, Any]) -> bool:
    """Whether a message or a delta holds a call, or a piece of one."""
    return bool(said.get("tool_calls") or said.get("function_call") or said.get(OTHER_PARTS))


def has_words(said: Mapping[str, Any]) -> bool:
    """Whether a message or a delta says anything, so that what came before was not the end."""
    return any(_holds_text(said[name]) for name in _TEXT_FIELDS & said.keys())


def is_whole(choice: Any) -> bool:
    """Whether a choice of a JSON answer is all there."""
    if not isinstance(choice, dict) or not isinstance(message := choice.get("message"), dict):
        return False
    reason = choice.get("finish_reason")
    return is_end(reason) and (not needs_call(reason) or has_call(_said(message)))


def text_of_other_parts(parts: list[Any]) -> str:
    """What a model has written of parts that are not text, as JSON: a call's name and input, but no picture or sound."""
    media = _NOT_TEXT - {"tool_use"}
    return "".join(_json(part) for part in parts if not isinstance(part, dict) or str(part.get("type")) not in media)


def _choice(choice: Any) -> Any:
    if not isinstance(choice, dict):
        return choice
    for where in ("delta", "message"):
        if isinstance(said := choice.get(where), dict) and (changed := _said(said)) is not said:
            choice = {**choice, where: changed}
    return choice


def _with_delta(choice: dict[str, Any], position: int) -> dict[str, Any]:
    if choice.get("index") is None:
        choice = {"index": position, **{name: value for name, value in choice.items() if name != "index"}}
    if isinstance(choice.get("delta"), dict):
        return choice
    name = next((name for name in ("delta", "message", "text") if isinstance(choice.get(name), (str, dict))), "")
    said = choice.get(name, {})
    rest = {key: value for key, value in choice.items() if key != name}
    return {**rest, "delta": {"content": said} if isinstance(said, str) else said}


def _said(said: dict[str, Any]) -> dict[str, Any]:
    """A message or a delta in the canonical form; itself where it is in that already."""
    if _PLAIN.issuperset(said) and _TEXT_TYPES.issuperset(map(type, said.values())):
        return said  # nearly every chunk
    changed: dict[str, Any] = {}
    found: dict[str, list[Any]] = {"content": [], "thoughts": [], "refusal": [], "rest": []}
    content = said.get("content")
    if content is not None and not isinstance(content, str):
        if isinstance(content, dict) and not _is_part(content):
            found["content"].append(_json(content))  # what JSON mode has made, parsed
        else:
            _sort(content, "content", found)
        changed["content"] = "".join(found["content"]) or (None if said.get("tool_calls") else "")
    if found["rest"]:
        changed[OTHER_PARTS] = found["rest"]
    if (refusal := said.get("refusal")) is not None and not isinstance(refusal, str):
        _sort(refusal, "refusal", found)
        changed["refusal"] = "".join(found["refusal"]) or None
    elif found["refusal"]:
        changed["refusal"] = (refusal or "") + "".join(found["refusal"])
    dropped = _think(said, found["thoughts"], changed)
    for name in _CALLS & said.keys():
        if (calls := _calls(said[name])) is not said[name]:
            changed[name] = calls
    if not changed and not dropped:
        return said
    return {**{name: value for name, value in said.items() if name not in dropped}, **changed}


def _think(said: Mapping[str, Any], parts: list[str], changed: dict[str, Any]) -> frozenset[str]:
    """Puts the thoughts where they belong; the fields that they are no longer in."""
    spelled = [name for name in THOUGHTS if name in said]
    if not spelled and not parts:
        return frozenset()
    thoughts = next((text for name in spelled if (text := _text(said[name], "thoughts"))), "".join(parts))
    dropped = frozenset(
        name for name in spelled if name in _RENAMED or (name == "reasoning" and isinstance(said[name], (dict, list)))
    )
    given = said.get("reasoning_content")
    if (thoughts or given is not None or dropped) and thoughts != given:
        changed["reasoning_content"] = thoughts
    return dropped


def _calls(calls: Any) -> Any:
    """``tool_calls`` as a list, and arguments as text; also a lone ``function_call``."""
    if isinstance(calls, list):
        canonical = [_calls_function(call) for call in calls]
        return calls if all(new is old for new, old in zip(canonical, calls, strict=True)) else canonical
    if isinstance(calls, dict) and ("function" in calls or "custom" in calls):
        return [_calls_function(calls)]
    return _with_text_arguments(calls)


def _calls_function(call: Any) -> Any:
    if isinstance(call, dict):
        for name in ("function", "custom"):
            if (function := _with_text_arguments(call.get(name))) is not call.get(name):
                call = {**call, name: function}
    return call


def _with_text_arguments(function: Any) -> Any:
    if isinstance(function, dict):
        for name in ("arguments", "input"):
            if isinstance(function.get(name), (dict, list)):
                function = {**function, name: _json(function[name])}
    return function


def _text(value: Any, kind: str) -> str:
    if isinstance(value, str):
        return value
    found: dict[str, list[Any]] = {"content": [], "thoughts": [], "refusal": [], "rest": []}
    _sort(value, kind, found)
    return "".join(found[kind])


def _sort(part: Any, kind: str, found: Mapping[str, list[Any]], depth: int = 0) -> None:
    """Adds what a part says to what has been found of its kind; what is not text is the rest."""
    if isinstance(part, str):
        found[kind].append(part)
    elif isinstance(part, list) and depth < _DEPTH:
        for each in part:
            _sort(each, kind, found, depth + 1)
    elif isinstance(part, dict) and depth < _DEPTH:
        _sort_object(part, kind, found, depth)
    elif isinstance(part, (dict, list)):
        found["rest"].append(part)
    elif part is not None and not isinstance(part, bool):
        found[kind].append(_json(part))


def _is_part(content: Mapping[str, Any]) -> bool:
    """Whether an object in the place of ``content`` is a part, and not what was asked for as JSON."""
    label = content.get("type")
    if isinstance(label, str) and label in {*_KIND_OF_TYPE, *_NOT_TEXT}:
        return True
    return content.keys() <= _OF_A_PART and ("text" in content or "parts" in content)


def _sort_object(part: dict[str, Any], kind: str, found: Mapping[str, list[Any]], depth: int) -> None:
    label = part.get("type")
    label = label if isinstance(label, str) else ""
    if kind == "content":  # the parts of a thought are thoughts
        kind = "thoughts" if part.get("thought") is True else _KIND_OF_TYPE.get(label, kind)  # the flag is Gemini's
    if label not in _NOT_TEXT:
        for name in _names(part):
            _sort(part[name], _KIND_OF_NAME.get(name, kind) if kind == "content" else kind, found, depth + 1)
            return
    if part and label not in _KIND_OF_TYPE:
        found["rest"].append(part)


def _names(part: Mapping[str, Any]) -> Iterable[str]:
    """The fields of a part that may hold its text, the first that says something first."""
    names = [name for name in _TEXT_NAMES if isinstance(part.get(name), (str, list, dict))]
    return sorted(names, key=lambda name: not part[name])


def _holds_text(value: Any, depth: int = 0) -> bool:
    if isinstance(value, str):
        return bool(value)
    if depth < _DEPTH and isinstance(value, dict):
        return any(_holds_text(part, depth + 1) for name, part in value.items() if name not in _NOT_WORDS)
    if depth < _DEPTH and isinstance(value, list):
        return any(_holds_text(part, depth + 1) for part in value)
    return False


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
