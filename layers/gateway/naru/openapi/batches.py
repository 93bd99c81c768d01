"""Batches."""

from __future__ import annotations

from typing import Any

from naru.openapi.files import PAGE
from naru.openapi.operations import JSON, Operation, listing, obj

_STATUSES = ["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
_METADATA = {
    "type": ["object", "null"],
    "maxProperties": 16,
    "additionalProperties": {"type": "string", "maxLength": 512},
}

OPERATIONS = (
    Operation(
        method="POST",
        path="/batches",
        id="createBatch",
        tag="batches",
        summary="Submits a file of requests, or up to 500 of them in `requests`.",
        body=obj(
            {},
            input_file_id={"type": "string"},
            endpoint={"const": "/v1/chat/completions"},
            completion_window={"const": "24h"},
            metadata=_METADATA,
            requests={"type": "array", "maxItems": 500, "items": {"type": "object"}},
        ),
        answers={200: {JSON: "Batch"}},
        errors=(404, 409),
    ),
    Operation(
        method="GET",
        path="/batches",
        id="listBatches",
        tag="batches",
        summary="The key's batches, newest first.",
        parameters=PAGE,
        answers={200: {JSON: listing("Batch")}},
        errors=(404,),
    ),
    Operation(
        method="GET",
        path="/batches/{batch}",
        id="retrieveBatch",
        tag="batches",
        summary="One batch and how far it is.",
        answers={200: {JSON: "Batch"}},
        errors=(404,),
    ),
    Operation(
        method="POST",
        path="/batches/{batch}/cancel",
        id="cancelBatch",
        tag="batches",
        summary="No new line begins; what has been answered stays.",
        answers={200: {JSON: "Batch"}},
        errors=(404, 409),
    ),
    Operation(
        method="GET",
        path="/batches/{batch}/results",
        id="batchResults",
        tag="batches",
        summary="Results so far, in pages.",
        parameters=PAGE,
        answers={200: {JSON: {"type": "object"}}},
        errors=(404,),
    ),
)


def schemas() -> dict[str, Any]:
    """What these operations answer."""
    counts = {name: {"type": "integer", "minimum": 0} for name in ("total", "completed", "failed")}
    batch = obj(
        {
            "id": {"type": "string"},
            "object": {"const": "batch"},
            "endpoint": {"type": "string"},
            "status": {"enum": _STATUSES},
            "created_at": {"type": "integer"},
            "request_counts": obj(counts),
        },
        metadata=_METADATA,
    )
    return {"Batch": batch}
