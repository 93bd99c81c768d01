"""The two faces: what each accepts, and how each refuses.

CLOVA Studio's rules are those of its OpenAI compatibility page
(https://api.ncloud-docs.com/docs/clovastudio-openaicompatibility). Thinking is asked for with `reasoning_effort` or
`thinking.effort` (none, low, medium, high); HCX-007 thinks at `low` unless told otherwise, in plain answers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from local.simulated_model.tokens import compact_json

Face = Literal["openai", "clova"]

CLOVA_MAX_TOKENS = 512
CLOVA_TOOL_TOKENS = 1024
CLOVA_MOST_IMAGES = 5
CLOVA_UNSUPPORTED = (
    "audio", "frequency_penalty", "logit_bias", "logprobs", "metadata", "modalities", "prediction", "presence_penalty",
    "prompt_cache_key", "safety_identifier", "service_tier", "store", "stream_options", "top_logprobs", "user",
    "web_search_options",
)  # fmt: skip
_CLOVA_MAX_OUTPUT = {"HCX-007": 32_768, "HCX-005": 4_096, "HCX-DASH-002": 4_096}
_CLOVA_CONTEXT = {"HCX-007": 128_000, "HCX-005": 128_000, "HCX-DASH-002": 32_000}
_CLOVA_CODES = {400: "40001", 429: "42901"}  # otherwise the status and 00
_OPENAI_TYPES = {401: "invalid_request_error", 403: "permission_error", 429: "requests"}
_ROLES = {"system", "developer", "user", "assistant", "tool", "function"}


@dataclass(eq=False)
class RefusedError(Exception):
    """An error answer. `openai_code` and `clova_code` are what the one and the other face call it."""

    status: int
    message: str
    openai_code: str | None = None
    clova_code: str | None = None
    param: str | None = None
    headers: tuple[tuple[str, str], ...] = field(default=())
    payload: Any = None
    """The whole body, in a shape of its own."""


def error_object(refusal: RefusedError, kind: str) -> Any:
    """Return an error body: `openai`, `clova` (the same shape, other values), or `native` to CLOVA Studio."""
    if refusal.payload is not None:
        return refusal.payload
    code = refusal.clova_code or _CLOVA_CODES.get(refusal.status, f"{refusal.status}00")
    if kind == "native":
        return {"status": {"code": code, "message": refusal.message}}
    if kind == "clova":
        return {"error": {"message": refusal.message, "type": None, "param": None, "code": code}}
    server = "server_error" if refusal.status >= 500 else "invalid_request_error"
    error_type = _OPENAI_TYPES.get(refusal.status, server)
    return {
        "error": {"message": refusal.message, "type": error_type, "param": refusal.param, "code": refusal.openai_code}
    }


def error_body(refusal: RefusedError, kind: str) -> tuple[str, bytes]:
    """Return content type and bytes of an error answer; `html` and `empty` are what a proxy in between would say."""
    if kind == "empty":
        return "text/plain", b""
    if kind == "html":
        page = f"<html><head><title>{refusal.status}</title></head><body><h1>{refusal.status}</h1><hr>nginx</body></html>\r\n"
        return "text/html", page.encode()
    return "application/json", compact_json(error_object(refusal, kind)).encode()


def parse(raw: bytes) -> dict[str, Any]:
    """Return the request's body as an object with a model and well-formed messages. Raises RefusedError."""
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise RefusedError(400, f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise RefusedError(400, "the body is not a JSON object")
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise RefusedError(400, "you must provide a model parameter", param="model")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RefusedError(400, "messages must be a list with at least one message", param="messages")
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")
    tools = body.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) and tool.get("type") for tool in tools):
        raise RefusedError(400, "tools must be a list of objects with a type", param="tools")
    return body


def _check_message(message: Any, where: str) -> None:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise RefusedError(400, f"{where} has no known role", param=f"{where}.role")
    content = message.get("content")
    if content is None and message["role"] == "assistant":
        return
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or not isinstance(part.get("type"), str):
                raise RefusedError(400, f"{where}.content has a part without a type", param=f"{where}.content")
            if part["type"] == "text" and not isinstance(part.get("text"), str):
                raise RefusedError(400, f"{where}.content has a text part without text", param=f"{where}.content")
    elif not isinstance(content, str):
        raise RefusedError(400, f"{where}.content must be a string or a list of parts", param=f"{where}.content")
    if message["role"] == "tool" and not message.get("tool_call_id"):
        raise RefusedError(400, f"{where} has no tool_call_id", param=f"{where}.tool_call_id")


def check(face: Face, body: dict[str, Any]) -> None:
    """Raise RefusedError for a request that this face does not take."""
    if face == "openai":
        _check_openai(body)
    else:
        _check_clova(body)


def limit_tokens(face: Face, body: dict[str, Any]) -> int | None:
    """Return how many tokens the answer may have: as asked, or CLOVA Studio's silent 512."""
    limit = body.get("max_completion_tokens")
    limit = body.get("max_tokens") if limit is None else limit
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise RefusedError(400, "max tokens must be a whole number of at least 1", param="max_tokens")
    return CLOVA_MAX_TOKENS if limit is None and face == "clova" else limit


def context_tokens(face: Face, model: str, default: int) -> int:
    """Return the size of the model's context window."""
    return min(default, _CLOVA_CONTEXT.get(model, default)) if face == "clova" else default


def images(message: dict[str, Any]) -> int:
    """Return the number of images in a message."""
    content = message.get("content")
    return sum(part.get("type") == "image_url" for part in content) if isinstance(content, list) else 0


def effort(body: dict[str, Any]) -> str | None:
    """Return the depth of thinking that a request asks CLOVA Studio for, or None when it says nothing."""
    thinking = body.get("thinking")
    asked = body.get("reasoning_effort")
    if asked is None and isinstance(thinking, dict):
        asked = thinking.get("effort")
    return None if asked is None else str(asked)


def _check_range(body: dict[str, Any], name: str, low: float, high: float) -> None:
    value = body.get(name)
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high
    ):
        raise RefusedError(400, f"{name} must be a number from {low} to {high}", param=name)


def _check_openai(body: dict[str, Any]) -> None:
    _check_range(body, "temperature", 0, 2)
    _check_range(body, "n", 1, 128)
    if not isinstance(body.get("n") or 1, int):
        raise RefusedError(400, "n must be a whole number", param="n")
    _check_range(body, "top_logprobs", 0, 20)
    if body.get("stream_options") is not None and not body.get("stream"):
        raise RefusedError(400, "stream_options is only allowed when stream is true", param="stream_options")
    if body.get("top_logprobs") is not None and not body.get("logprobs"):
        raise RefusedError(400, "top_logprobs needs logprobs", param="top_logprobs")
    stop = body.get("stop")
    if isinstance(stop, list) and len(stop) > 4:
        raise RefusedError(400, "at most 4 stop sequences", param="stop")
    limit_tokens("openai", body)


def _check_clova(body: dict[str, Any]) -> None:
    for name in CLOVA_UNSUPPORTED:
        if body.get(name) is not None:
            raise RefusedError(400, f"Unsupported parameter: {name}", clova_code="40002")
    _check_range(body, "temperature", 0, 1)
    for wrong, message in _clova_violations(body):
        if wrong:
            raise RefusedError(400, f"Invalid parameter: {message}", clova_code="40001")


def _clova_violations(body: dict[str, Any]) -> list[tuple[bool, str]]:
    messages, model = body["messages"], str(body["model"])
    roles = [message["role"] for message in messages]
    response_format = body.get("response_format") or {}
    limit = limit_tokens("clova", body) or 0
    pictures = [images(message) for message in messages]
    asked = effort(body)
    tools = bool(body.get("tools"))
    thinks = model.startswith("HCX-007") and asked != "none"
    return [
        (body.get("n", 1) != 1, "n must be 1"),
        (roles.count("system") > 1, "messages may have one system message"),
        ("developer" in roles, "role developer"),
        (body.get("tool_choice") == "required", "tool_choice required"),
        (response_format.get("type", "json_schema") != "json_schema", "response_format.type must be json_schema"),
        (asked not in {None, "none", "low", "medium", "high"}, "effort must be none, low, medium or high"),
        (limit > _CLOVA_MAX_OUTPUT.get(model, limit), f"max tokens over the maximum of {model}"),
        (max(pictures) > 1, "one image a turn"),
        (any(pictures) and model.startswith(("HCX-007", "HCX-DASH")), f"{model} takes no images"),
        (tools and limit < CLOVA_TOOL_TOKENS, f"tools need max tokens of at least {CLOVA_TOOL_TOKENS}"),
        (tools and any(pictures), "tools exclude images"),
        (tools and asked not in {None, "none"}, "tools exclude thinking"),
        (thinks and bool(response_format) and asked is not None, "structured outputs exclude thinking"),
        (thinks and not tools and not response_format and bool(body.get("stop")), "stop excludes thinking"),
        (sum(pictures) > CLOVA_MOST_IMAGES, f"at most {CLOVA_MOST_IMAGES} images a request"),
        (body.get("parallel_tool_calls") is False, "parallel_tool_calls"),
    ]
