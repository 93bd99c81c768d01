"""Keys and the organisation's budget."""

from __future__ import annotations

from typing import Any

from naru.admin_api import MAX_KEY_SHARDS, MAX_ORGANISATION_SHARDS, MAX_OVERLAP_S
from naru.openapi.operations import JSON, Operation, listing, nullable, obj, query_parameter

_MONEY = {"type": "number", "minimum": 0, "maximum": 10**9}
_RATE = {"type": "integer", "minimum": 1, "maximum": 10**12}
_LINE = "^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*$"
_NO_CONTROL = {"type": "string", "pattern": _LINE}
_SHARDS = {"type": "integer", "minimum": 1}
_SECONDS = {"type": "integer"}

_SETTINGS: dict[str, Any] = {
    "budget_usd": nullable(_MONEY),
    "rpm": nullable(_RATE),
    "tpm": nullable(_RATE),
    "max_parallel": nullable({"type": "integer", "minimum": 1, "maximum": 10**5}),
    "models": {"type": ["array", "null"], "minItems": 1, "items": {"type": "string"}},
    "expires_at": {"type": ["string", "integer", "null"], "description": "ISO 8601 with a time zone, or Unix seconds."},
    "tags": {
        "type": ["object", "null"],
        "maxProperties": 16,
        "additionalProperties": {**_NO_CONTROL, "maxLength": 256},
    },
    "may_route": {"type": "boolean"},
    "user_budget_usd": nullable(_MONEY),
    "user_rpm": nullable(_RATE),
}
_NAME = {**_NO_CONTROL, "minLength": 1, "maxLength": 100}


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "additionalProperties": False}


_KEY_BY_ID = "/admin/keys/{key}"

OPERATIONS = (
    Operation(
        method="POST",
        path="/admin/keys",
        id="createKey",
        tag="admin",
        summary="Makes a key. Its secret is in this answer and nowhere else.",
        key="admin",
        body="NewKey",
        answers={201: {JSON: "Key"}},
        errors=(404,),
    ),
    Operation(
        method="GET",
        path="/admin/keys",
        id="listKeys",
        tag="admin",
        summary="Keys, newest first.",
        key="admin",
        parameters=(
            query_parameter("after", {"type": "string"}, "The last one of the page before."),
            query_parameter("limit", {"type": "integer", "minimum": 1, "maximum": 100}),
        ),
        answers={200: {JSON: listing("Key")}},
        errors=(404,),
    ),
    Operation(
        method="GET",
        path=_KEY_BY_ID,
        id="retrieveKey",
        tag="admin",
        summary="One key and what it has spent.",
        key="admin",
        answers={200: {JSON: "Key"}},
        errors=(404,),
    ),
    Operation(
        method="PATCH",
        path=_KEY_BY_ID,
        id="updateKey",
        tag="admin",
        summary="Changes what is named; null takes a limit away.",
        key="admin",
        body="KeyChanges",
        answers={200: {JSON: "Key"}},
        errors=(404, 409),
    ),
    Operation(
        method="DELETE",
        path=_KEY_BY_ID,
        id="revokeKey",
        tag="admin",
        summary="Ends a key for good.",
        key="admin",
        answers={200: {JSON: "Key"}},
        errors=(404,),
    ),
    Operation(
        method="POST",
        path=f"{_KEY_BY_ID}/rotate",
        id="rotateKey",
        tag="admin",
        summary="A new secret; the one before it works on for the overlap.",
        key="admin",
        body=_closed(obj({}, overlap_seconds={"type": "integer", "minimum": 0, "maximum": MAX_OVERLAP_S})),
        body_required=False,
        answers={201: {JSON: "Key"}},
        errors=(404, 409),
    ),
    Operation(
        method="GET",
        path="/admin/organization",
        id="retrieveOrganization",
        tag="admin",
        summary="The budget that all keys share.",
        key="admin",
        answers={200: {JSON: "Organization"}},
    ),
    Operation(
        method="PATCH",
        path="/admin/organization",
        id="updateOrganization",
        tag="admin",
        summary="Changes it; what was spent this month stays spent.",
        key="admin",
        body=_closed(obj({}, budget_usd=nullable(_MONEY), shards={**_SHARDS, "maximum": MAX_ORGANISATION_SHARDS})),
        answers={200: {JSON: "Organization"}},
        errors=(409,),
    ),
)

_MONTH: dict[str, Any] = {
    "budget_usd": {"type": ["number", "null"]},
    "month": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"},
    "spent_usd": {"type": "number"},
    "reserved_usd": {"type": "number"},
    "available_usd": {"type": ["number", "null"]},
    "budget_resets_at": _SECONDS,
    "requests_in_flight": {"type": "integer", "minimum": 0},
    "shards": _SHARDS,
}


def schemas() -> dict[str, Any]:
    """What these operations take and answer."""
    return {
        "NewKey": _closed(obj({"name": _NAME}, shards={**_SHARDS, "maximum": MAX_KEY_SHARDS}, **_SETTINGS)),
        "KeyChanges": _closed(obj({}, name=_NAME, enabled={"type": "boolean"}, **_SETTINGS)),
        "Key": obj(
            {
                "object": {"const": "api_key"},
                "id": {"type": "string", "pattern": "^key_[a-z0-9]{12}$"},
                "name": {"type": "string"},
                "status": {"type": "string"},
                "enabled": {"type": "boolean"},
                "created_at": _SECONDS,
                **_MONTH,
            },
            key={"type": "string", "description": "The secret, in the one answer that has it."},
        ),
        "Organization": obj({"object": {"const": "organization"}, **_MONTH}),
    }
