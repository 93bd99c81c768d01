"""OpenAI's dialect, which most providers speak; the catalog says how much of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from naru import canonical, charges
from naru.dialects import FaultKind, ProviderFault
from naru.errors import InvalidRequestError
from naru.retry import retry_after_s

if TYPE_CHECKING:
    from naru.catalog import Capability, Deployment

LIMIT_FIELDS = ("max_completion_tokens", "max_tokens")

_MESSAGE_CHARS = 500
_EXTRAS = frozenset({"latency_ms", "cost_usd", "cost"})  # other people's accounting, in the answer or its usage
_NOT_PRINTABLE = re.compile(
    r"[\x00-\x20\x7f-\xa0\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb]+"
)

# Codes and types in lower case: OpenAI's, Azure's, Anthropic's and Google's, since gateways pass them through.
_KIND_OF_CODE: dict[str, FaultKind] = {
    "context_length_exceeded": "context_length",
    "content_filter": "content_filter",
    "content_policy_violation": "content_filter",
    "invalid_prompt": "content_filter",
    "moderation_blocked": "content_filter",
    "responsibleaipolicyviolation": "content_filter",
    "insufficient_quota": "quota",
    "billing_hard_limit_reached": "quota",
    "billing_not_active": "quota",
    "billing_error": "quota",
    "invalid_api_key": "key",
    "account_deactivated": "key",
    "authentication_error": "key",
    "permission_error": "key",
    "permission_denied": "key",
    "unauthenticated": "key",
    "model_not_found": "not_found",
    "deploymentnotfound": "not_found",
    "not_found_error": "not_found",
    "not_found": "not_found",
    "rate_limit_exceeded": "rate_limited",
    "rate_limit_error": "rate_limited",
    "resource_exhausted": "rate_limited",
    "requests": "rate_limited",
    "tokens": "rate_limited",
    "overloaded_error": "overloaded",
    "engine_overloaded": "overloaded",
    "server_overloaded": "overloaded",
    "service_unavailable": "overloaded",
    "slow_down": "overloaded",
    "unavailable": "overloaded",
    "timeout": "timeout",
    "timeout_error": "timeout",
    "deadline_exceeded": "timeout",
    "server_error": "server",
    "internal_error": "server",
    "api_error": "server",
    "internal": "server",
    "invalid_argument": "parameter",
}
_KIND_OF_STATUS: dict[int, FaultKind] = {
    400: "parameter",
    401: "key",
    402: "quota",
    403: "key",
    404: "not_found",
    405: "not_found",
    408: "timeout",
    413: "parameter",
    415: "parameter",
    422: "parameter",
    429: "rate_limited",
    503: "overloaded",
    504: "timeout",
    522: "timeout",
    524: "timeout",
    529: "overloaded",
}


# ── Requests ────────────────────────────────────────────────────────────────────────────────────────────


def request_body(body: Mapping[str, Any], *, deployment: Deployment, output_limit: int) -> dict[str, Any]:
    """See :class:`naru.dialects.Dialect`."""
    translated = {name: value for name, value in body.items() if name not in deployment.strip}
    charges.refuse_unbounded(translated, deployment)
    refuse_content(translated, deployment)
    refuse_tools(translated, deployment)
    _refuse_other_abilities(translated, deployment)
    address(translated, body, deployment=deployment, output_limit=output_limit)
    return translated


def address(translated: dict[str, Any], body: Mapping[str, Any], *, deployment: Deployment, output_limit: int) -> None:
    """Write into ``translated`` what the gateway decides: the model, the output limit, the wish for usage."""
    if output_limit > deployment.max_output_tokens:
        raise unsupported(
            f"{deployment.upstream_model} answers at most {deployment.max_output_tokens} tokens, and {output_limit} "
            "were asked for. Ask for fewer.",
            param=limit_param(body, deployment),
            value=True,
        )
    translated["model"] = deployment.upstream_model
    for name in LIMIT_FIELDS:
        translated.pop(name, None)
    translated[deployment.output_limit_field] = output_limit
    options = translated.get("stream_options")
    if options is not None and not isinstance(options, Mapping):
        return  # the provider will say what is wrong with it
    if translated.get("stream") is True and deployment.stream_usage and "stream_options" not in deployment.strip:
        translated["stream_options"] = {**(options or {}), "include_usage": True}
    elif options is not None and "include_usage" in options and not deployment.stream_usage:
        translated.pop("stream_options")
        if kept := {name: value for name, value in options.items() if name != "include_usage"}:
            translated["stream_options"] = kept


def limit_param(body: Mapping[str, Any], deployment: Deployment) -> str:
    """The field in which the client states the output limit, or could have."""
    return next((name for name in LIMIT_FIELDS if body.get(name) is not None), deployment.output_limit_field)


def unsupported(message: str, *, param: str, value: bool = False) -> InvalidRequestError:
    """The refusal of a field, or of the value it has."""
    return InvalidRequestError(message, param=param, code="unsupported_value" if value else "unsupported_parameter")


def content_parts(body: Mapping[str, Any]) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    """Content parts with the indices of their message and of themselves; what has no such shape is passed over."""
    messages = body.get("messages")
    for i, message in enumerate(messages if isinstance(messages, list) else []):
        content = message.get("content") if isinstance(message, dict) else None
        for j, part in enumerate(content if isinstance(content, list) else []):
            if isinstance(part, dict):
                yield i, j, part


def refuse_content(body: Mapping[str, Any], deployment: Deployment) -> None:
    """Raise for images, audio and files that the deployment does not take."""
    for i, j, part in content_parts(body):
        param = f"messages[{i}].content[{j}]"
        match part.get("type"):
            case "image_url":
                _need(deployment, "vision", "images", param, "Describe the image in text")
            case "input_audio":
                _need(deployment, "audio", "audio", param, "Transcribe it first")
            case "file":
                # One page may cost as much as an image and a small file can have thousands: no bound, no admission.
                raise unsupported(
                    "Files are not supported, since what they cost cannot be bounded beforehand. Put the file's text "
                    "into the message, or its pages as images.",
                    param=param,
                )
            case _:
                pass


def refuse_tools(body: Mapping[str, Any], deployment: Deployment) -> None:
    """Raise for tools that the deployment cannot call."""
    for name in ("tools", "functions"):
        if body.get(name):
            _need(deployment, "tools", "tools", name, "Leave them out")


def refuse_choices(body: Mapping[str, Any], deployment: Deployment) -> None:
    """Raise for ``n`` that the deployment does not do."""
    if body.get("n") not in (None, 1):
        _need(deployment, "multiple_choices", "n other than 1", "n", "Send the request several times")


def _refuse_other_abilities(body: Mapping[str, Any], deployment: Deployment) -> None:
    refuse_choices(body, deployment)
    response_format = body.get("response_format")
    match response_format.get("type") if isinstance(response_format, dict) else None:
        case "json_schema":
            _need(deployment, "json_schema", "a JSON schema", "response_format", "Ask for JSON in the prompt")
        case "json_object":
            _need(deployment, "json_object", "JSON mode", "response_format", "Ask for JSON in the prompt")
        case _:
            pass
    modalities = body.get("modalities")
    if isinstance(modalities, list) and "audio" in modalities:
        _need(deployment, "audio", "audio", "modalities", 'Ask for ["text"]')
    if body.get("audio") is not None:
        _need(deployment, "audio", "audio", "audio", "Leave it out")


def _need(deployment: Deployment, capability: Capability, what: str, param: str, advice: str) -> None:
    if capability not in deployment.capabilities:
        raise unsupported(
            f"{deployment.upstream_model} does not take {what}. {advice}, or choose a model that does.", param=param
        )


# ── Answers ─────────────────────────────────────────────────────────────────────────────────────────────


def answer(payload: dict[str, Any]) -> dict[str, Any]:
    """See :class:`naru.dialects.Dialect`."""
    payload = canonical.answer(payload)
    usage = payload.get("usage")
    if isinstance(usage, dict) and not _EXTRAS.isdisjoint(usage):
        payload = {**payload, "usage": {name: value for name, value in usage.items() if name not in _EXTRAS}}
    if _EXTRAS.isdisjoint(payload):
        return payload
    return {name: value for name, value in payload.items() if name not in _EXTRAS}


# ── Errors ──────────────────────────────────────────────────────────────────────────────────────────────


def error(status: int, headers: Mapping[str, str], payload: Any) -> ProviderFault:
    """See :class:`naru.dialects.Dialect`."""
    return fault(status, headers, payload, {})


def fault(status: int, headers: Mapping[str, str], payload: Any, kinds: Mapping[str, FaultKind]) -> ProviderFault:
    """What an error answer means, where ``kinds`` are a dialect's own codes."""
    if isinstance(payload, list) and payload:
        payload = payload[0]  # Google wraps its error into a list
    message, code, param, labels = _read(payload)
    known = {**_KIND_OF_CODE, **kinds}
    kind = next((known[label] for label in labels if label in known), None)
    if kind is None:
        kind = _kind_of_status(status if status >= 400 else _status_in(labels))
    return ProviderFault(
        message=clean(message) or f"The provider answered with status {status} and no message.",
        code=clean(code, 64) or None,
        param=clean(param, 200) or None,
        kind=kind,
        retry_after_s=retry_after_s(headers, now=datetime.now(UTC), rate_limited=kind == "rate_limited"),
    )


def clean(text: Any, limit: int = _MESSAGE_CHARS) -> str:
    """Foreign text made fit to pass on: one line, printable, not longer than ``limit``; a web page says nothing."""
    if isinstance(text, bool) or not isinstance(text, (str, int)):
        return ""
    line = _NOT_PRINTABLE.sub(" ", str(text)[: 8 * limit]).strip()
    if line.startswith("<"):
        return ""
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _read(payload: Any) -> tuple[Any, Any, Any, list[str]]:
    """Message, code, param, and everything by which the kind may be known, the most telling first."""
    if isinstance(payload, (bytes, bytearray)):
        payload = bytes(payload[: 16 * _MESSAGE_CHARS]).decode("utf-8", "replace")
    if not isinstance(payload, dict):
        return payload, None, None, []
    inner = next((payload[key] for key in ("error", "status") if isinstance(payload.get(key), dict)), payload)
    message = inner.get("message") or next((payload[k] for k in ("error", "message", "detail") if payload.get(k)), None)
    labels = [clean(inner.get(key), 64).lower() for key in ("code", "status", "type")]
    return message, inner.get("code"), inner.get("param"), [label for label in labels if label]


def _kind_of_status(status: int) -> FaultKind:
    return _KIND_OF_STATUS.get(status) or ("server" if 500 <= status <= 599 else "other")


def _status_in(labels: list[str]) -> int:
    # An error inside a stream that began with 200: its code may be an HTTP status, or NAVER's, which begins with one.
    return next((int(label[:3]) for label in labels if re.fullmatch(r"[45]\d\d(\d\d)?", label)), 0)
