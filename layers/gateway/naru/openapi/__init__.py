"""The API's own description, OpenAPI 3.1, served at ``/openapi.json``.

Each module of this package has the operations of one subject; whoever adds a route to the template adds its line there,
and a test compares both. Imported by nobody but the route itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from naru.openapi import admin, batches, chat, dashboard, files, usage
from naru.openapi.operations import ERROR, Operation
from naru.wire import compact_json

_SUBJECTS = (chat, files, batches, usage, admin, dashboard)

_DESCRIPTION = """An OpenAI-compatible gateway to HyperCLOVA X, Claude, GPT and Gemini.

What OpenAI's SDKs send is taken as it is; fields that are not listed are passed on to the provider. Errors are OpenAI's
error object. `x-should-retry`, `Retry-After` and `x-ratelimit-*` say when another try makes sense."""

_SECURITY = {
    "apiKey": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "sk-naru-…",
        "description": "A key of Naru's, made with 'naru keys create'.",
    },
    "adminKey": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "sk-naru-…",
        "description": "An admin key, made with 'naru admin init'.",
    },
}


def operations() -> Iterator[Operation]:
    """All of them."""
    for subject in _SUBJECTS:
        yield from subject.OPERATIONS


def document() -> dict[str, Any]:
    """The whole description."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations():
        paths.setdefault(operation.path, {})[operation.method.lower()] = operation.describe()
    schemas = {name: schema for subject in _SUBJECTS for name, schema in subject.schemas().items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Naru", "version": "1", "description": _DESCRIPTION, "license": {"name": "MIT"}},
        # Relative to this document, whatever the gateway's name is.
        "servers": [{"url": "."}],
        "paths": paths,
        "components": {"securitySchemes": _SECURITY, "schemas": {"Error": ERROR, **schemas}},
    }


@cache
def rendered() -> bytes:
    """The document as it is sent."""
    return compact_json(document())
