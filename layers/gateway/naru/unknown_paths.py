"""What is answered where there is no such path or no such method: which call serves instead.

A client that comes from elsewhere asks for what it knows: ``/v1/responses``, ``/v1/messages``, ``/v1/embeddings``. The
answer is OpenAI's error object. It is made without a look at any key or table, since anybody may ask.
"""

from __future__ import annotations

import re
from difflib import get_close_matches

from naru.errors import MethodNotAllowedError, NaruError, UnknownPathError
from naru.plain_text import shown

SERVED: dict[str, tuple[str, ...]] = {
    "/admin/alerts/test": ("POST",),
    "/admin/keys": ("GET", "POST"),
    "/admin/keys/{key}": ("DELETE", "GET", "PATCH"),
    "/admin/keys/{key}/rotate": ("POST",),
    "/admin/organization": ("GET", "PATCH"),
    "/batches": ("GET", "POST"),
    "/batches/{batch}": ("GET",),
    "/batches/{batch}/cancel": ("POST",),
    "/batches/{batch}/results": ("GET",),
    "/chat/completions": ("POST",),
    "/dashboard": ("GET",),
    "/dashboard/{version}/{file}": ("GET",),
    "/files": ("GET", "POST"),
    "/files/{file}": ("DELETE", "GET"),
    "/files/{file}/content": ("GET",),
    "/health": ("GET",),
    "/models": ("GET",),
    "/models/{model}": ("GET",),
    "/openapi.json": ("GET",),
    "/organization/costs": ("GET",),
    "/organization/usage/completions": ("GET",),
    "/uploads/presigned": ("POST",),
    "/uploads/{upload}/complete": ("POST",),
    "/usage": ("GET",),
    "/usage/reports/{period}": ("GET",),
    "/usage/requests": ("GET",),
    "/usage/summary": ("GET",),
}
"""The paths of the template and their methods, beside OPTIONS; a test compares both."""

_CHAT = "POST /v1/chat/completions"
_MESSAGES = f"Use {_CHAT}, with the prompt as messages."
_STATE = f"Keep the conversation in your app and send it with {_CHAT}."
_NOT_SERVED = f"Naru serves chat ({_CHAT}) and batches of it (POST /v1/batches). Call the provider's own API for this."
_INSTEAD = {
    "responses": f"Use {_CHAT}, which has the same models: client.chat.completions.create in OpenAI's SDKs, openai.chat(…) in "
    "the Vercel AI SDK, OpenAIChatCompletionsModel in the Agents SDK.",
    "messages": f"Use {_CHAT} and an OpenAI SDK, or your client's OpenAI-compatible provider; it has the Claude models, too.",
    **dict.fromkeys(("completions", "engines", "edits", "generate", "complete"), _MESSAGES),
    **dict.fromkeys(("assistants", "threads", "conversations", "vector_stores", "chatkit", "containers"), _STATE),
    **dict.fromkeys(
        ("audio", "embeddings", "evals", "fine_tuning", "fine-tunes", "images", "moderations", "realtime", "rerank", "videos"),
        _NOT_SERVED,
    ),
    "uploads": "Use POST /v1/uploads/presigned, then PUT the file, then POST /v1/uploads/{id}/complete.",
}  # fmt: skip
_SHOWN = 100
_SIMILAR = 0.75


def refusal(method: str, path: str) -> NaruError:
    """The error for a request that no route takes. ``path`` is without the stage: ``/responses``."""
    path = "/" + "/".join(part for part in path[: 4 * _SHOWN].split("/") if part)
    # A function may refuse a path that a route let through, as one whose id holds what no id does.
    if (allowed := _methods(path)) is not None and method not in allowed:
        others = ", ".join(allowed)
        return MethodNotAllowedError(
            f"{_told(method)} is not allowed for {_url(path)}; use {others}.", allow=(*allowed, "OPTIONS")
        )
    return UnknownPathError(f"There is no {_told(method)} {_url(path)} here. {_advice(path)}")


def _advice(path: str) -> str:
    inner = re.sub(r"^(/v1)+(?=/|$)", "", path)
    if inner != path and _methods(inner) is not None:
        return f"The base URL has /v1 twice: it is {_calls(inner)}."
    first = inner.split("/")[1] if inner != "" else ""
    if (instead := _INSTEAD.get(first.lower())) is not None:
        return instead
    if inner.lower().endswith("/chat/completions"):
        return f"Use {_CHAT}, with the model's name in the body."
    if similar := get_close_matches(inner.lower(), SERVED, n=1, cutoff=_SIMILAR):
        return f"Did you mean {_calls(similar[0])}?"
    return "GET /v1/openapi.json lists all paths; a client's base URL ends in /v1."


def _methods(path: str) -> tuple[str, ...] | None:
    """Of a path that there is; fixed parts go before parameters, as API Gateway has it."""
    parts = path.split("/")
    for served, methods in sorted(SERVED.items(), key=lambda item: item[0].count("{")):
        known = served.split("/")
        if len(known) == len(parts) and all(a == b or a[:1] == "{" for a, b in zip(known, parts, strict=True)):
            return methods
    return None


def _calls(path: str) -> str:
    methods = _methods(path) or ()
    return f"{' or '.join(methods)} {_url(path)}"


def _url(path: str) -> str:
    return _told(f"/v1{path if path != '/' else ''}")


def _told(text: str) -> str:
    text = shown(text)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
