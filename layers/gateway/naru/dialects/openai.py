"""OpenAI's dialect, which most providers speak; the catalog says how much of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from naru import canonical, charges
from naru.dialects import error_bodies
from naru.dialects.error_bodies import ProviderError
from naru.errors import InvalidRequestError

if TYPE_CHECKING:
    from naru.catalog import Capability, Deployment

LIMIT_FIELDS = ("max_completion_tokens", "max_tokens")

_EXTRAS = frozenset({"latency_ms", "cost_usd", "cost"})  # other people's accounting, in the answer or its usage


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


def error(status: int, headers: Mapping[str, str], payload: Any) -> ProviderError:
    """See :class:`naru.dialects.Dialect`."""
    return error_bodies.read(status, headers, payload)
