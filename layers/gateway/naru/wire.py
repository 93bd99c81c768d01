"""OpenAI's wire contract: what a request may look like.

A request is checked where the gateway or every provider depends on it. Which of its fields are then sent on is the
dialects' to say (:mod:`naru.charges`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from naru.end_users import kept_name
from naru.errors import InvalidRequestError
from naru.halves import mend

# JSON leaves these as they are, and str.splitlines, and with it httpx's iter_lines, ends a line there: U+0085, U+2028, U+2029.
# It has to escape the other ones.
_SEPARATORS = ((b"\xc2\x85", b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"))
_ODD = re.compile(rb"\\u[dD][89a-fA-F]")

MAX_DEPTH = 128
"""Of objects and arrays inside each other. Python's own limit depends on its release and on how deep the caller stands."""
MAX_BODY_BYTES = 6 * 2**20
"""Of a request once it is decompressed: what Lambda takes of one that was never compressed."""
MAX_FIELDS = 256
"""Of a request, and of one message. OpenAI documents about 40."""
MAX_MESSAGES = 4_096
"""OpenAI takes 2,048."""
MAX_PARTS = 4_096
"""Of all messages together: parts of their content, and tool calls."""
MAX_TOOLS = 1_024
"""OpenAI takes 128."""
MAX_STOPS = 16
"""OpenAI takes 4."""
MAX_METADATA = 64
"""OpenAI takes 16."""
MAX_LOGIT_BIAS = 4_096
_GZIP = b"\x1f\x8b"
_NESTING = (dict, list)
_PARAM_CHARS = 200
_MOST_TOKENS = 10**9
# One line and no tricks: it is shown to people in logs, reports and terminals. No control characters, no line or
# paragraph separators, nothing that turns the direction of writing.
_END_USER = "^(?:\\s*|[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*)$"
_EndUser = Annotated[str, Field(max_length=512, pattern=_END_USER)]


class _Open(BaseModel):
    # Strict, since "0.7" is not a temperature; unknown fields are not kept here because the raw body is what is sent.
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, hide_input_in_errors=True)


def _kind(value: Any) -> str:
    return "~text" if isinstance(value, str) else "~list" if isinstance(value, list) else "~other"


class _Url(_Open):
    url: Annotated[str, Field(min_length=1)]


class _TextPart(_Open):
    type: Literal["text"]
    text: str


class _ImagePart(_Open):
    type: Literal["image_url"]
    image_url: _Url


class _OtherPart(_Open):
    type: str


def _part_kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    return {"text": "~text", "image_url": "~image"}.get(kind, "~other") if isinstance(kind, str) else "~other"


_Part = Annotated[
    Annotated[_TextPart, Tag("~text")] | Annotated[_ImagePart, Tag("~image")] | Annotated[_OtherPart, Tag("~other")],
    Discriminator(_part_kind),
]
# The tag of last resort takes neither: its error says what was expected.
_TextOrParts = Annotated[
    Annotated[str, Tag("~text")]
    | Annotated[Annotated[list[_Part], Field(min_length=1, fail_fast=True)], Tag("~list")]
    | Annotated[Annotated[str, Field(description="a string or an array of content parts")], Tag("~other")],
    Discriminator(_kind),
]
_Stop = Annotated[
    Annotated[str, Tag("~text")]
    | Annotated[Annotated[list[str], Field(max_length=MAX_STOPS, fail_fast=True)], Tag("~list")]
    | Annotated[str, Tag("~other")],
    Discriminator(_kind),
]


class _ToolCallFunction(_Open):
    name: str
    arguments: str


class _ToolCall(_Open):
    id: str
    function: _ToolCallFunction | None = None


class _Message(_Open):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: _TextOrParts | None = None
    name: str | None = None
    tool_calls: Annotated[list[_ToolCall], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None


class _Function(_Open):
    name: Annotated[str, Field(min_length=1)]
    parameters: dict[str, Any] | None = None


class _Tool(_Open):
    type: str
    function: _Function | None = None


class _StreamOptions(_Open):
    include_usage: bool | None = None


class _ResponseFormat(_Open):
    type: str


class ChatRequest(_Open):
    """The fields of ``POST /chat/completions`` that Naru reads or that every provider checks alike."""

    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[_Message], Field(min_length=1, fail_fast=True)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=_MOST_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=_MOST_TOKENS)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: int | None = None
    stop: _Stop | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    logit_bias: dict[str, float] | None = None
    tools: Annotated[list[_Tool], Field(fail_fast=True)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: _ResponseFormat | None = None
    reasoning_effort: str | None = None
    user: _EndUser | None = None
    safety_identifier: _EndUser | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None

    @property
    def output_limit(self) -> int | None:
        """The most tokens of one choice that the client will take; None where it does not say."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def end_user(self) -> str | None:
        """Whom the caller names as its own user, see :mod:`naru.end_users`."""
        return kept_name(self.safety_identifier) or kept_name(self.user)

    @property
    def wants_usage_chunk(self) -> bool:
        """Whether a streaming client asked for the usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)


_CHAT_REQUEST = TypeAdapter(ChatRequest)


def parse_chat_request(text: str | bytes | None) -> tuple[dict[str, Any], ChatRequest]:
    """The body as it came, and what Naru reads of it.

    Raises :class:`~naru.errors.InvalidRequestError`; ``param`` names the field, ``messages[0].content`` for one.
    """
    body = parse_json_object(text)
    _refuse_too_many(body)
    try:
        request = _CHAT_REQUEST.validate_python(body)
    except ValidationError as error:
        _refuse(error, body)
    if request.stream_options is not None and not request.stream:
        raise InvalidRequestError(
            "The 'stream_options' parameter is only allowed when 'stream' is true.", param="stream_options"
        )
    return body, request


def parse_json_object(text: str | bytes | None) -> dict[str, Any]:
    """A JSON object that can be sent on.

    Raises :class:`~naru.errors.InvalidRequestError` for anything else, NaN and lone surrogates included.
    """
    text = json_text(text)
    if not text or text.isspace():
        raise InvalidRequestError("The request has no body. Send a JSON object with 'model' and 'messages'.")
    try:
        # Python reads NaN and Infinity; JSON has neither, and the provider would answer with a riddle.
        body = json.loads(text, parse_constant=_no_constant)
        if _is_too_deep(text, body):
            raise RecursionError
        if isinstance(body, dict):
            _strict_json(body)  # finds what could not be sent on: lone surrogates, and 1e999, which is infinite
            return body
    except UnicodeEncodeError:
        raise InvalidRequestError(
            "The request holds half of a surrogate pair (\\ud800 to \\udfff), which is not text. Cut strings between "
            "characters, not between UTF-16 units."
        ) from None
    except RecursionError:
        raise InvalidRequestError(
            f"The request body is nested too deeply: more than {MAX_DEPTH} objects and arrays inside each other."
        ) from None
    except json.JSONDecodeError as error:
        raise InvalidRequestError(_what_is_no_json(error)) from None
    except ValueError:
        raise InvalidRequestError(
            "The request body is not valid JSON: it has NaN, Infinity, or a number too large or with too many digits to be "
            "read."
        ) from None
    kind = _JSON_NAMES.get(type(body), "null")
    raise InvalidRequestError(
        f'The request body must be a JSON object, such as {{"model": …, "messages": […]}}, and not {kind}.'
    )


def json_text(body: str | bytes | None) -> str:
    """A body as text, without a byte order mark.

    Raises :class:`~naru.errors.InvalidRequestError` for what is not UTF-8, in which JSON is sent (RFC 8259, 8.1).
    """
    if isinstance(body, bytes):
        if body.startswith(_GZIP):
            raise InvalidRequestError(
                "The request body is compressed with gzip, and no header says so. Send 'Content-Encoding: gzip'."
            )
        if body.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in body[:4]:
            raise _not_utf8("It looks like UTF-16 or UTF-32.")
        try:
            body = body.decode()
        except UnicodeDecodeError as error:
            raise _not_utf8(f"Byte {error.start} cannot be read.") from None
    text = (body or "").removeprefix("\ufeff")
    if "\x00" in text[:4]:
        raise _not_utf8("It looks like UTF-16 or UTF-32.")
    return text


def _not_utf8(what: str) -> InvalidRequestError:
    return InvalidRequestError(f"The request body is not UTF-8. {what} Send JSON in UTF-8.")


def _what_is_no_json(error: json.JSONDecodeError) -> str:
    """Where the text stops being JSON, and the usual reasons. Python's own words differ from release to release."""
    at = error.pos
    before, rest = error.doc[:at].rstrip(), error.doc[at:].lstrip()
    if before.endswith(","):
        at, rest = len(before) - 1, f",{rest}"  # Python 3.13 points to the comma, others behind it
    after = rest[1:].lstrip()[:1]
    if rest[:1] == "," and after in {"}", "]"}:
        what = f"there is a comma before the closing '{after}'"
    elif not rest:
        what = "it ends before its last bracket is closed"
    elif rest.removeprefix(",").startswith("'"):
        what = "strings and names take double quotes"
    else:
        what = "check quotes and commas"
    line, column = error.doc.count("\n", 0, at) + 1, at - error.doc.rfind("\n", 0, at)
    return f"The request body is not valid JSON at line {line}, column {column}: {what}."


def _refuse_too_many(body: dict[str, Any]) -> None:
    """Raises for more of anything than is looked at: each item costs time, whether it is right or wrong."""
    _at_most(MAX_FIELDS, None, body)
    for name, most in (("metadata", MAX_METADATA), ("logit_bias", MAX_LOGIT_BIAS), ("tools", MAX_TOOLS), ("functions", MAX_TOOLS), ("stop", MAX_STOPS), ("messages", MAX_MESSAGES)):  # fmt: skip
        _at_most(most, name, body.get(name))
    messages = body.get("messages")
    parts = 0
    for i, message in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(message, dict):
            continue
        _at_most(MAX_FIELDS, f"messages[{i}]", message)
        for name in ("content", "tool_calls"):
            if isinstance(value := message.get(name), list):
                parts += len(value)
                if parts > MAX_PARTS:
                    raise InvalidRequestError(
                        f"Invalid 'messages[{i}].{name}': array too long. All messages together may have {MAX_PARTS} "
                        "content parts and tool calls.",
                        param=f"messages[{i}].{name}",
                        code="array_above_max_length",
                    )


def _at_most(most: int, param: str | None, value: Any) -> None:
    """Raises for an array or object that has more items, in OpenAI's words."""
    if not isinstance(value, list | dict) or len(value) <= most:
        return
    if isinstance(value, list):
        raise InvalidRequestError(
            f"Invalid '{param}': array too long. Expected an array with maximum length {most}, but got an array with "
            f"length {len(value)} instead.",
            param=param,
            code="array_above_max_length",
        )
    what = f"'{param}'" if param else "request"
    raise InvalidRequestError(
        f"Invalid {what}: too many properties. Expected an object with at most {most} "
        f"properties, but got an object with {len(value)} properties instead.",
        param=param,
        code="object_above_max_properties",
    )


def compact_json(value: Any) -> bytes:
    """JSON in UTF-8 with no spaces: Korean takes half of what ``\\uXXXX`` takes. It is one line to every reader of lines.

    What JSON has no form for, and some providers send all the same, is not worth losing an answer that has been paid for:
    infinite logprobs become null, half a surrogate pair a replacement character.
    """
    try:
        data = _strict_json(value)
    except ValueError:  # UnicodeEncodeError is one
        data = _strict_json(_sendable(value))
    for separator, escaped in _SEPARATORS:
        if separator in data:
            data = data.replace(separator, escaped)
    return data


def can_be_passed_on(data: bytes) -> bool:
    """Whether JSON that was read from ``data`` may leave in the same bytes: every client reads them as they were read
    here, and they are one line to every reader of lines. A false alarm costs nothing but time.
    """
    if b"NaN" in data or b"Infinity" in data or _ODD.search(data):
        return False
    try:
        return data.decode().isprintable()  # no control characters, no separators
    except UnicodeDecodeError:
        return False


def _strict_json(value: Any) -> bytes:
    """Raises ValueError for what JSON has no form for."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _sendable(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return mend(value)
    if isinstance(value, Mapping):
        return {_sendable(name): _sendable(part) for name, part in value.items()}
    return [_sendable(part) for part in value] if isinstance(value, list) else value


def _is_too_deep(text: str, value: Any) -> bool:
    """Whether ``value``, read from ``text``, is nested deeper than :data:`MAX_DEPTH`."""
    if text.count("[") + text.count("{") <= MAX_DEPTH or not isinstance(value, _NESTING):
        return False  # nearly every request: nothing to walk
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, _NESTING)
        ]
        if not level:
            return False
    return True


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


_TAGS = frozenset({"~text", "~image", "~list", "~other"})
_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "a boolean",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "list_type": "an array",
}
_JSON_NAMES = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    list: "an array",
    dict: "an object",
}


def _refuse(error: ValidationError, body: dict[str, Any]) -> NoReturn:
    """One error, the first, in OpenAI's words."""
    first = error.errors(include_url=False, include_context=True)[0]
    path = [part for part in first["loc"] if part not in _TAGS]
    param = ""
    for part in path:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else part
    param = param if len(param) <= _PARAM_CHARS else param[: _PARAM_CHARS - 1] + "…"
    kind, context = first["type"], first.get("ctx", {})
    if kind == "missing":
        raise InvalidRequestError(
            f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
        ) from None
    if kind in _EXPECTED:
        expected = _EXPECTED[kind]
        if kind == "string_type" and path[-1] in {"content", "stop"}:
            expected = "a string or an array"
        got = _JSON_NAMES.get(type(_at(body, path)), "null")
        raise InvalidRequestError(
            f"Invalid type for '{param}': expected {expected}, but got {got} instead.", param=param, code="invalid_type"
        ) from None
    match kind:
        case "greater_than_equal":
            message, code = f"it must be at least {context['ge']:g}", "value_below_min"
        case "less_than_equal":
            message, code = f"it must be at most {context['le']:.10g}", "value_above_max"
        case "literal_error":
            message, code = f"it must be one of {context['expected']}", "invalid_value"
        case "too_short" | "string_too_short":
            message, code = "it must not be empty", "empty_value"
        case "string_too_long":
            message, code = f"it must have at most {context['max_length']} characters", "string_above_max_length"
        case "string_pattern_mismatch":
            message, code = "it must be one line without control characters", "invalid_value"
        case _:
            message, code = first["msg"].lower(), "invalid_value"
    raise InvalidRequestError(f"Invalid value for '{param}': {message}.", param=param, code=code) from None


def _at(body: Any, path: list[Any]) -> Any:
    for part in path:
        body = body[part]
    return body


def is_noise(data: bytes) -> bool:
    """Whether the data of an event cannot be a chunk or a piece of one, such as ``ping`` or nothing: words travel inside
    objects and strings. Whatever has a bracket or a quote may have held some.
    """
    return not any(mark in data for mark in b"{}[]\"'")
