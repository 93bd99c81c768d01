"""Files and uploads."""

from __future__ import annotations

from typing import Any

from naru.openapi.operations import JSON, Operation, listing, obj, query_parameter

_SECONDS = {"type": "integer"}
_FORM = obj(
    {"purpose": {"const": "batch"}, "file": {"type": "string", "format": "binary"}},
    **{
        "expires_after[anchor]": {"const": "created_at"},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
    },
)
PAGE = (
    query_parameter("after", {"type": "string"}, "The last one of the page before."),
    query_parameter("limit", {"type": "integer", "minimum": 1, "maximum": 100}),
)

OPERATIONS = (
    Operation(
        method="POST",
        path="/files",
        id="createFile",
        tag="files",
        summary="Stores the input of a batch, up to 4.5 MB; what is larger goes through /uploads/presigned.",
        content={"multipart/form-data": _FORM},
        answers={200: {JSON: "File"}},
    ),
    Operation(
        method="GET",
        path="/files",
        id="listFiles",
        tag="files",
        summary="The key's files.",
        parameters=(
            *PAGE,
            query_parameter("order", {"enum": ["asc", "desc"]}),
            query_parameter("purpose", {"type": "string"}),
        ),
        answers={200: {JSON: listing("File")}},
        errors=(404,),
    ),
    Operation(
        method="GET",
        path="/files/{file}",
        id="retrieveFile",
        tag="files",
        summary="One file.",
        answers={200: {JSON: "File"}},
        errors=(404,),
    ),
    Operation(
        method="DELETE",
        path="/files/{file}",
        id="deleteFile",
        tag="files",
        summary="Removes a file.",
        answers={200: {JSON: obj({"id": {"type": "string"}, "object": {"const": "file"}, "deleted": {"const": True}})}},
        errors=(404, 409),
    ),
    Operation(
        method="GET",
        path="/files/{file}/content",
        id="fileContent",
        tag="files",
        summary="What is in it, or the way to a large one.",
        answers={200: {"application/jsonl": {"type": "string"}}, 302: {}},
        errors=(404, 409),
    ),
    Operation(
        method="POST",
        path="/uploads/presigned",
        id="beginUpload",
        tag="files",
        summary="A URL for the bytes of a file of up to 200 MB.",
        body={"type": "object"},
        answers={200: {JSON: {"type": "object"}}},
    ),
    Operation(
        method="POST",
        path="/uploads/{upload}/complete",
        id="completeUpload",
        tag="files",
        summary="Makes a file of what was sent to that URL.",
        answers={200: {JSON: "File"}},
        errors=(404, 409),
    ),
)


def schemas() -> dict[str, Any]:
    """What these operations answer."""
    file = obj(
        {
            "id": {"type": "string"},
            "object": {"const": "file"},
            "bytes": {"type": "integer", "minimum": 0},
            "created_at": _SECONDS,
            "filename": {"type": "string"},
            "purpose": {"type": "string"},
            "status": {"type": "string"},
        }
    )
    return {"File": file}
