"""Reads a provider's error, whatever its shape; what it means is :mod:`naru.faults`' to say.

Known are the shapes of OpenAI, Azure, Anthropic, Google (a list), NAVER, FastAPI and of the gateways that stand in front
of others: an object, a string, a list, an error inside another one's message or ``metadata.raw``.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from naru.retry import duration_s, retry_after_s

MESSAGE_CHARS = 500
_READ_CHARS = 2_000
_MOST_LABELS = 16
_DEEPEST = 3
_NOT_PRINTABLE = re.compile(
    r"[\x00-\x20\x7f-\xa0\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb]+"
)
_LABELS = ("code", "error_code", "errorCode", "status_code", "status", "reason", "type", "__type")
_TEXTS = ("message", "msg", "status_msg", "detail", "error_description", "error_msg", "title")
# Ours is x-request-id, and some send it back: their own names first.
_REQUEST_IDS = ("x-ncp-clovastudio-request-id", "request-id", "apim-request-id", "x-oneapi-request-id", "x-request-id")


@dataclass(frozen=True, slots=True)
class ProviderError:
    """What a provider's error says, unjudged. Texts are cut, freed of control characters, and still not to be trusted."""

    status: int
    """Of HTTP; 200 for an error inside an answer or a stream."""
    message: str
    labels: tuple[str, ...] = ()
    """All by which a program may know it: reasons, codes, types; the most telling first."""
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None
    """The wait that it asks for."""
    reset_s: float | None = None
    """When the used-up allowance of a rate limit is back."""
    request_id: str | None = None
    """The provider's name of the call."""
    message_chars: int = 0
    """The length of the message as it came."""
    wrapped: ProviderError | None = None
    """Another API's error that this one reports."""


def read(status: int, headers: Mapping[str, str], payload: Any) -> ProviderError:
    """The error in an answer; ``payload`` is parsed JSON, text, bytes or None."""
    now = datetime.fromtimestamp(time.time(), UTC)
    if isinstance(payload, (bytes, bytearray)):
        payload = bytes(payload[: 4 * _READ_CHARS]).decode("utf-8", "replace")
    lower = {name.lower(): value for name, value in headers.items()}
    return _read(
        payload,
        status=status,
        retry_after=retry_after_s(lower, now=now, rate_limited=False),
        reset_s=retry_after_s(lower, now=now),
        request_id=next((lower[name] for name in _REQUEST_IDS if name in lower), None),
    )


def reports_error(payload: Any) -> bool:
    """Whether a JSON value under status 200 has the form of an error, in one of the shapes that do not say ``error``."""
    if isinstance(payload, list):
        return bool(payload) and reports_error(payload[0])
    if not isinstance(payload, dict) or payload.get("choices"):
        return False
    if any(payload.get(name) for name in ("error", "errors", "detail", "base_resp")):
        return True
    has_text = any(isinstance(payload.get(name), str) for name in _TEXTS)
    return isinstance(payload.get("status"), dict) or (
        has_text and (payload.get("success") is False or any(payload.get(name) for name in _LABELS))
    )


def clean(text: Any, limit: int = MESSAGE_CHARS) -> str:
    """Foreign text made fit to pass on: one line, printable, not longer than ``limit``; a web page says nothing."""
    if isinstance(text, bool) or not isinstance(text, (str, int)):
        return ""
    line = _NOT_PRINTABLE.sub(" ", _text_of(text)[: 8 * limit]).strip()
    if line.startswith("<"):
        return ""
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _text_of(value: str | int) -> str:
    try:
        return str(value)
    except ValueError:  # an integer of more digits than Python writes
        return ""


def _read(
    payload: Any,
    *,
    status: int,
    retry_after: float | None = None,
    reset_s: float | None = None,
    request_id: Any = None,
    depth: int = 0,
) -> ProviderError:
    while isinstance(payload, list):
        payload = payload[0] if payload else None
    body = payload if isinstance(payload, dict) else {}
    inner = _inner(body)
    message = payload if not body else _message(inner, body)
    labels = [label for label in dict.fromkeys(clean(found, 64) for found in _labels(inner, body)) if label]
    wrapped = None
    if depth < _DEEPEST and (other := _other(inner, message)) is not None:
        wrapped = _read(other, status=status, depth=depth + 1)
    code = next((inner[name] for name in _LABELS[:4] if inner.get(name)), None)
    return ProviderError(
        status=status,
        message=clean(message, _READ_CHARS),
        labels=tuple(labels[:_MOST_LABELS]),
        code=clean(code, 64) or None,
        param=clean(inner.get("param"), 200) or None,
        retry_after_s=_retry_delay_s(inner) if retry_after is None else retry_after,
        reset_s=reset_s,
        request_id=clean(request_id or body.get("request_id") or inner.get("request_id"), 80) or None,
        message_chars=len(message) if isinstance(message, str) else 0,
        wrapped=wrapped,
    )


def _inner(body: dict[str, Any]) -> dict[str, Any]:
    """Where the error stands in an answer."""
    for name in ("error", "errors", "detail", "status", "base_resp"):
        found = body.get(name)
        while isinstance(found, list) and found:
            found = found[0]
        if isinstance(found, dict) and found:
            # {"error": {"error": {…}}}
            return found["error"] if isinstance(found.get("error"), dict) and found["error"] else found
    return body


def _message(inner: dict[str, Any], body: dict[str, Any]) -> Any:
    for where in (inner, body):
        for name in (*_TEXTS, "error"):
            if where.get(name) and isinstance(where[name], (str, int)):
                return where[name]
    return None


def _labels(inner: dict[str, Any], body: dict[str, Any]) -> Iterator[Any]:
    details = inner.get("details")
    for detail in details if isinstance(details, list) else []:
        if isinstance(detail, dict):
            yield detail.get("reason")
            violations = detail.get("violations")
            for violation in violations if isinstance(violations, list) else []:
                if isinstance(violation, dict):
                    yield violation.get("quotaId")
    for name in ("innererror", "inner_error"):
        if isinstance(inner.get(name), dict):
            yield inner[name].get("code")
    for where in (inner, body):
        for name in _LABELS:
            yield where.get(name)
    if isinstance(body.get("error"), str) and re.fullmatch(r"\w{1,64}", body["error"], re.ASCII):
        yield body["error"]  # {"error": "insufficient_quota", "message": …}


def _other(inner: dict[str, Any], message: Any) -> Any:
    """Another API's error inside this one."""
    metadata = inner.get("metadata")
    if isinstance(metadata, dict) and metadata.get("raw"):
        raw = metadata["raw"]
        return (_json_in(raw) or raw) if isinstance(raw, str) else raw
    return _json_in(message) if isinstance(message, str) else None


def _json_in(text: str) -> Any:
    """The JSON object that a text is, or contains; None if there is none."""
    start = text.find("{", 0, _READ_CHARS)
    if start < 0:
        return None
    try:
        return json.JSONDecoder().raw_decode(text, start)[0]
    except (ValueError, RecursionError):
        return None


def _retry_delay_s(inner: dict[str, Any]) -> float | None:
    """Google's ``RetryInfo``."""
    details = inner.get("details")
    for detail in details if isinstance(details, list) else []:
        if isinstance(detail, dict) and isinstance(detail.get("retryDelay"), str):
            return duration_s(detail["retryDelay"])
    return None
