"""What was used and what it cost. An app's key sees itself, an admin key everything."""

from __future__ import annotations

from typing import Any

from naru.openapi.operations import JSON, Operation, listing, obj, query_parameter
from naru.usage_query import GROUPS

_CSV = "text/csv"
_TEXT = {"type": "string"}
_WHEN = (
    query_parameter("start", _TEXT, "A business day, ISO 8601 or Unix seconds. The first of the month, if not given."),
    query_parameter("end", _TEXT, "Likewise; a day is included. Now, if not given."),
)
_FILTERS = (
    *(query_parameter(name, _TEXT, "May be repeated.") for name in ("key", "model", "deployment", "end_user")),
    query_parameter("outcome", {"enum": ["completed", "truncated", "failed", "rejected", "unknown"]}),
    query_parameter("batch", {"type": "boolean"}),
)
_FORMAT = query_parameter("format", {"enum": ["json", "csv"]})
_OPENAI_WHEN = (
    query_parameter("start_time", {"type": "integer"}, "Unix seconds."),
    query_parameter("end_time", {"type": "integer"}, "Unix seconds."),
)
_OBJECT = {"type": "object"}

OPERATIONS = (
    Operation(
        method="GET",
        path="/usage",
        id="listUsage",
        tag="usage",
        summary="Sums over requests, by what is asked for.",
        key="either",
        parameters=(
            *_WHEN,
            query_parameter("group_by", {"enum": list(GROUPS)}, "May be repeated."),
            *_FILTERS,
            _FORMAT,
        ),
        answers={200: {JSON: _OBJECT, _CSV: _TEXT}},
        errors=(404,),
    ),
    Operation(
        method="GET",
        path="/usage/requests",
        id="listUsageRequests",
        tag="usage",
        summary="Rows of the ledger, newest first.",
        key="either",
        parameters=(
            *_WHEN,
            query_parameter("after", _TEXT, "last_id of the page before."),
            query_parameter("limit", {"type": "integer", "minimum": 1}),
            *_FILTERS,
            _FORMAT,
        ),
        answers={200: {JSON: listing("UsageRequest"), _CSV: _TEXT}},
        errors=(404,),
    ),
    Operation(
        method="GET",
        path="/usage/summary",
        id="summarizeUsage",
        tag="usage",
        summary="What the dashboard shows.",
        key="either",
        answers={200: {JSON: obj({"object": {"const": "usage.summary"}, "today": _OBJECT, "month": _OBJECT})}},
    ),
    Operation(
        method="GET",
        path="/usage/reports/{period}",
        id="retrieveReport",
        tag="usage",
        summary="The report of a day (2026-11-22) or a month (2026-11).",
        key="admin",
        parameters=(query_parameter("format", _TEXT), query_parameter("language", {"enum": ["ko", "en"]})),
        answers={200: {JSON: _OBJECT, _CSV: _TEXT, "text/html": _TEXT, "text/plain": _TEXT}},
        errors=(404,),
    ),
    Operation(
        method="GET",
        path="/organization/costs",
        id="listCosts",
        tag="usage",
        summary="Costs by day, in the shape of OpenAI's administration API.",
        key="either",
        parameters=(*_OPENAI_WHEN, query_parameter("limit", {"type": "integer", "minimum": 1})),
        answers={200: {JSON: _OBJECT}},
        errors=(404,),
    ),
    Operation(
        method="GET",
        path="/organization/usage/completions",
        id="listCompletionsUsage",
        tag="usage",
        summary="Tokens by time, in the shape of OpenAI's administration API.",
        key="either",
        parameters=(*_OPENAI_WHEN, query_parameter("limit", {"type": "integer", "minimum": 1})),
        answers={200: {JSON: _OBJECT}},
        errors=(404,),
    ),
    Operation(
        method="POST",
        path="/admin/alerts/test",
        id="testAlert",
        tag="usage",
        summary="Sends an alert that says it is a test.",
        key="admin",
        answers={200: {JSON: obj({"object": {"const": "alert.test"}, "sent": {"type": "boolean"}})}},
    ),
)


def schemas() -> dict[str, Any]:
    """What these operations answer."""
    return {"UsageRequest": obj({"request_id": {"type": "string"}, "key_id": {"type": "string"}})}
