"""What can go wrong, on request: by a directive in a prompt, or by a rule posted to `/_control`.

The first parameter may be given alone. In a directive: `fault=cut_after:40,how=end`; in a rule:
`{"name": "cut_after", "tokens": 40, "how": "end"}`. "Billed" is what the provider charges; "as usual" is all that was
generated, also when the client cannot read it.

=====================  ==========================================  ====================================================
fault                  parameters                                  what happens, and what is billed
=====================  ==========================================  ====================================================
status                 status, body, code, message, retry_after,   an error answer; body is openai, native, html or
                       retry_after_ms, headers, after_ms, json     empty, or json is all of it. Not billed
context_length         message                                     400, the prompt is too long. Not billed
content_filter         message                                     400, refused by the filter. Not billed
refuse_prefill         message                                     400, if the last message is the assistant's; not
                                                                   billed. Otherwise nothing
other_answer           -                                           another answer than the same prompt has elsewhere.
                                                                   As usual
reset_before_headers   after_ms, tokens                            a reset instead of an answer. Billed: the prompt and
                                                                   `tokens`, if any; by default nothing
silence                seconds                                     not a byte for so long, then the answer. Not billed
                                                                   if the client leaves first (no seconds: it must)
slow_first_token       ms                                          the head, then so much more time. Billed as usual
cut_after              tokens, how                                 the stream ends there, by `how`: reset, close (FIN,
                                                                   framing broken), end (framing fine, nothing else).
                                                                   Billed: so many tokens. A JSON answer is billed in
                                                                   full and cut in half (`end` is truncated_json)
stall_after            tokens, seconds                             silence after so many tokens, for good if no seconds.
                                                                   Billed: what came before the client left. A JSON
                                                                   answer stalls in the middle and is billed in full
malformed_chunk        tokens                                      after so many tokens one chunk is not JSON. As usual
missing_done           -                                           no `data: [DONE]`. As usual
no_finish_reason       -                                           finish_reason stays null. As usual
finish_reason          value                                       another finish_reason, such as "error". As usual
early_finish           tokens                                      a finish_reason after so many tokens of a stream,
                                                                   and the answer goes on. As usual
after_finish           what                                        behind a stream's finish_reason comes an error, half a
                                                                   chunk or a broken connection (close), and nothing
                                                                   more. As usual
content_parts          -                                           content is a list of parts, or one part, and now and
                                                                   then a text. As usual
halved_characters      -                                           a stream's characters beyond U+FFFF come in halves, as
                                                                   escapes, in two chunks. As usual
no_index               -                                           a stream's pieces of tool calls have no index. As usual
other_form             -                                           JSON where a stream was asked for, a stream where JSON
                                                                   was. As usual
drip                   byte_ms                                     one byte at a time (1000 ms). As usual
huge_headers           bytes                                       a header of so many bytes (64 KiB). As usual
wrong_content_type     value                                       text/html, or the value. As usual
error_in_200           tokens, code, message, event, body, json    status 200 and an error object; in a stream after
                                                                   so many tokens, with an `event: error` line if
                                                                   event=1. Billed: those tokens; none: not at all
truncated_json         -                                           the body ends in the middle of the (last) JSON text,
                                                                   correctly framed. As usual
malformed_json         -                                           JSON in single quotes; in a stream the first chunk.
                                                                   As usual
usage_missing          -                                           no usage, asked or not. As usual
usage_in_choice_chunk  -                                           a stream's usage comes with the last token. As usual
usage_in_every_chunk   -                                           a stream's usage comes with every token, cumulative.
                                                                   As usual
reasoning_apart        -                                           usage: completion_tokens exclude reasoning_tokens,
                                                                   total_tokens include them. As usual
=====================  ==========================================  ====================================================

Every fault also takes `times` (so often, then no more), `model` and `face` (only there): a retry or a fallback of the
same prompt can succeed. "After so many tokens" counts the tokens that were sent: hidden reasoning is not among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "status": (
        "status", "body", "code", "message", "retry_after", "retry_after_ms", "headers", "after_ms", "json",
    ),
    "context_length": ("message",),
    "content_filter": ("message",),
    "refuse_prefill": ("message",),
    "other_answer": (),
    "reset_before_headers": ("after_ms", "tokens"),
    "silence": ("seconds",),
    "slow_first_token": ("ms",),
    "cut_after": ("tokens", "how"),
    "stall_after": ("tokens", "seconds"),
    "malformed_chunk": ("tokens",),
    "missing_done": (),
    "no_finish_reason": (),
    "finish_reason": ("value",),
    "early_finish": ("tokens",),
    "after_finish": ("what",),
    "content_parts": (),
    "halved_characters": (),
    "no_index": (),
    "other_form": (),
    "drip": ("byte_ms",),
    "huge_headers": ("bytes",),
    "wrong_content_type": ("value",),
    "error_in_200": ("tokens", "code", "message", "event", "body", "json"),
    "truncated_json": (),
    "malformed_json": (),
    "usage_missing": (),
    "usage_in_choice_chunk": (),
    "usage_in_every_chunk": (),
    "reasoning_apart": (),
}  # fmt: skip
_EVERYWHERE = ("times", "model", "face")


class BadInstructionError(ValueError):
    """A directive or a posted rule that the model does not understand; answered 400."""


@dataclass(frozen=True)
class Fault:
    """One fault; the table above says which fields count for which name."""

    name: str
    status: int = 503
    body: Literal["openai", "native", "html", "empty"] | None = None
    code: str | None = None
    message: str | None = None
    retry_after: str | None = None
    retry_after_ms: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    after_ms: float = 0.0
    tokens: int = 0
    seconds: float | None = None
    ms: float = 0.0
    how: Literal["reset", "close", "end"] = "reset"
    what: Literal["error", "chunk", "close"] = "error"
    byte_ms: float = 1000.0
    bytes: int = 64 * 1024
    value: str = "text/html; charset=utf-8"
    event: bool = False
    json: Any = None
    times: int | None = None
    model: str | None = None
    face: Literal["openai", "clova"] | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Fault:
        """Make a fault from JSON or from the strings of a directive. Raises BadInstructionError."""
        name = values.get("name")
        if name not in _PARAMETERS:
            raise BadInstructionError(f"unknown fault {name!r}; there are {', '.join(_PARAMETERS)}")
        allowed = {*_PARAMETERS[str(name)], *_EVERYWHERE}
        unknown = sorted(set(values) - allowed - {"name"})
        if unknown:
            raise BadInstructionError(f"fault {name} has no parameter {', '.join(unknown)}")
        try:
            given = {key: _CONVERT[key](value) for key, value in values.items() if key != "name"}
        except (TypeError, ValueError, KeyError) as error:
            raise BadInstructionError(f"bad parameter of fault {name}: {error}") from error
        return cls(str(name), **given)

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Make a fault from `name`, `name:value` or `name:value,parameter=value`. Raises BadInstructionError."""
        head, *rest = text.split(",")
        name, colon, first = head.partition(":")
        values: dict[str, str] = {"name": name}
        if colon:
            parameters = _PARAMETERS.get(name) or ("value",)
            values[parameters[0]] = first
        for item in rest:
            key, equals, value = item.partition("=")
            if not equals or key in values:
                raise BadInstructionError(f"bad parameter {item!r} in fault={text}")
            values[key] = value
        return cls.of(values)


def _one_of(*choices: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"{value!r} is not one of {', '.join(choices)}")
        return str(value)

    return convert


def _headers(value: Any) -> dict[str, str]:
    return {str(name): str(text) for name, text in dict(value).items()}


def _flag(value: Any) -> bool:
    return {"1": True, "true": True, "0": False, "false": False}[str(value).lower()]


_CONVERT: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("status", "tokens", "bytes", "times"), int),
    **dict.fromkeys(("after_ms", "seconds", "ms", "byte_ms"), float),
    **dict.fromkeys(("code", "message", "retry_after", "retry_after_ms", "value", "model"), str),
    "body": _one_of("openai", "native", "html", "empty"),
    "how": _one_of("reset", "close", "end"),
    "what": _one_of("error", "chunk", "close"),
    "face": _one_of("openai", "clova"),
    "headers": _headers,
    "event": _flag,
    "json": lambda value: value,
}
