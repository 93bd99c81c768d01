"""One line of the API's description, and what the lines have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

JSON = "application/json"

ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}

_SAYINGS = {
    400: "The request is not what the API takes; `param` names the field.",
    401: "No key, or not one of this gateway's.",
    403: "The key may not do this.",
    404: "There is no such thing here.",
    409: "It makes sense, but not in the state that things are in.",
    413: "The request is too large.",
    415: "The body is compressed with something other than gzip or deflate, a form, or not UTF-8.",
    422: "The provider's verdict on the request.",
    429: "A limit or a budget is reached; `Retry-After` says when to come back.",
    500: "A defect of the gateway. The request id is in the answer.",
    502: "The provider answered something that is no answer, or the operator has to mend something.",
    503: "The provider, or the gateway's store, cannot be reached at the moment.",
    504: "The provider did not answer in time.",
}
ALWAYS = (400, 401, 403, 413, 415, 429, 500, 503)
"""What any operation that needs a key may answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A path and method. ``body`` and ``answers`` name schemas or are schemas; an answer may be None for no content."""

    method: str
    path: str
    """As in the template, relative to the stage: ``/models/{model}``."""
    id: str
    tag: str
    summary: str
    key: Literal["api", "admin", "either", "none"] = "api"
    parameters: tuple[dict[str, Any], ...] = ()
    body: str | Mapping[str, Any] | None = None
    """Of JSON requests; ``content`` is for others."""
    body_required: bool = True
    content: Mapping[str, Any] = field(default_factory=dict)
    answers: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """By status: media type → schema, empty for no content."""
    errors: tuple[int, ...] = ()
    """Beside :data:`ALWAYS`."""

    def describe(self) -> dict[str, Any]:
        """The operation object of OpenAPI."""
        statuses = sorted({*(ALWAYS if self.key != "none" else (500,)), *self.errors})
        responses: dict[str, Any] = {
            str(status): {"description": "Done.", **({"content": _content(content)} if content else {})}
            for status, content in self.answers.items()
        }
        responses |= {
            str(status): {
                "description": _SAYINGS[status],
                "content": {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
            }
            for status in statuses
        }
        described: dict[str, Any] = {
            "operationId": self.id,
            "tags": [self.tag],
            "summary": self.summary,
            "security": _SECURITY[self.key],
            "responses": responses,
        }
        names = [name[1:-1] for name in self.path.split("/") if name.startswith("{")]
        path_parameters = [path_parameter(name) for name in names]
        given = {parameter["name"] for parameter in self.parameters}
        if all_parameters := [*(p for p in path_parameters if p["name"] not in given), *self.parameters]:
            described["parameters"] = all_parameters
        content = self.content or ({JSON: self.body} if self.body is not None else {})
        if content:
            described["requestBody"] = {"required": self.body_required, "content": _content(content)}
        return described


_SECURITY: dict[str, list[dict[str, list[str]]]] = {
    "api": [{"apiKey": []}],
    "admin": [{"adminKey": []}],
    "either": [{"apiKey": []}, {"adminKey": []}],
    "none": [],
}


def path_parameter(name: str) -> dict[str, Any]:
    """A part of the path."""
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def query_parameter(name: str, schema: Mapping[str, Any], description: str = "") -> dict[str, Any]:
    """Something after the question mark."""
    described = {"description": description} if description else {}
    return {"name": name, "in": "query", "required": False, "schema": dict(schema), **described}


def header_parameter(name: str, schema: Mapping[str, Any], description: str) -> dict[str, Any]:
    """A header that the gateway reads."""
    return {"name": name, "in": "header", "required": False, "schema": dict(schema), "description": description}


def ref(name: str) -> dict[str, str]:
    """A schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def obj(required: Mapping[str, Any], **optional: Any) -> dict[str, Any]:
    """An object with these properties; others may come."""
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def listing(item: str) -> dict[str, Any]:
    """A page of a list, as OpenAI's are."""
    return obj(
        {"object": {"const": "list"}, "data": {"type": "array", "items": ref(item)}, "has_more": {"type": "boolean"}}
    )


def nullable(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema, or null."""
    return {**schema, "type": [schema["type"], "null"]}


def _content(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        media_type: {"schema": ref(schema) if isinstance(schema, str) else dict(schema)}
        for media_type, schema in content.items()
    }
