"""What becomes of a line: the line that is written into a file of the batch, and what a client reads of it.

OpenAI's form: an answer of any HTTP status is ``response``, and goes to the output file where the status is 200 and to
the error file where not; what was never answered has ``response: null`` and an ``error``.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from naru.batch_progress import LineResult
from naru.errors import NaruError
from naru.pricing import Usage
from naru.wire import compact_json

MAX_ENTRY_BYTES = 350 * 1024
"""DynamoDB takes 400 KB an entry, with all that is in it."""

_MESSAGES = {
    "batch_expired": "This request could not be executed before the completion window expired.",
    "batch_cancelled": "This request was not executed: the batch was cancelled before its turn came.",
    "insufficient_quota": "This request was not executed: the budget of its API key or of the organisation is spent.",
    "api_key_invalid": "This request was not executed: its API key was switched off or revoked.",
    "input_unreadable": "This request was not executed: it cannot be read any more, since its input file was changed or "
    "deleted after it had been checked.",
    "worker_died": "This request was given up: whoever ran it died each time. It may have been charged for.",
    "internal_error": "Something went wrong in the gateway. Tell the operator the id of the batch.",
}


def answered(batch_id: str, index: int, custom_id: str, *, request_id: str, body: bytes, usage: Usage) -> LineResult:
    """The result of a line that the model has answered; ``body`` is JSON."""
    return LineResult(
        custom_id, True, _pack(_response(batch_id, index, custom_id, 200, request_id=request_id, body=body)), usage
    )


def refused(batch_id: str, index: int, custom_id: str, *, request_id: str, error: NaruError) -> LineResult:
    """The result of a line whose request was refused, or failed for good."""
    body = compact_json(error.body())
    content = _response(batch_id, index, custom_id, error.http_status, request_id=request_id, body=body)
    return LineResult(custom_id, False, _pack(content), None)


def gave_up(batch_id: str, index: int, custom_id: str | None, code: str) -> LineResult:
    """The result of a line that was not answered at all."""
    return LineResult(custom_id, False, _pack(not_run(batch_id, index, custom_id, code)), None)


def not_run(batch_id: str, index: int, custom_id: str | None, code: str) -> bytes:
    """The line of the error file for a request that was not executed. ``custom_id`` is None where nobody knows it any more."""
    return compact_json(
        {
            "id": _id(batch_id, index),
            "custom_id": custom_id,
            "response": None,
            "error": {"code": code, "message": _MESSAGES[code]},
        }
    )


def unpack(content: bytes) -> bytes:
    """The line of a file that is kept as the content of a result."""
    return gzip.decompress(content)


def result_object(index: int, line: bytes) -> dict[str, Any]:
    """A line of either file as ``GET /v1/batches/{id}/results`` shows it."""
    value = json.loads(line)
    response, error = value["response"], value["error"]
    succeeded = response is not None and response["status_code"] == 200
    if response is not None and not succeeded:
        error = {"status_code": response["status_code"], **response["body"]["error"]}
    return {
        "id": value["id"],
        "index": index,
        "custom_id": value["custom_id"],
        "status": "success" if succeeded else "error",
        "data": response["body"] if succeeded else None,
        "error": error,
    }


def pending_object(batch_id: str, index: int, custom_id: str | None) -> dict[str, Any]:
    """The same for a line that has no result yet."""
    shown = {"id": _id(batch_id, index), "index": index, "custom_id": custom_id}
    return {**shown, "status": "pending", "data": None, "error": None}


def usage_object(tokens: Mapping[str, int]) -> dict[str, Any]:
    """A batch's ``usage``: the sum of its lines."""
    return {
        "input_tokens": tokens.get("prompt", 0),
        "input_tokens_details": {"cached_tokens": tokens.get("cached", 0)},
        "output_tokens": tokens.get("completion", 0),
        "output_tokens_details": {"reasoning_tokens": tokens.get("reasoning", 0)},
        "total_tokens": tokens.get("prompt", 0) + tokens.get("completion", 0),
    }


def _response(batch_id: str, index: int, custom_id: str, status: int, *, request_id: str, body: bytes) -> bytes:
    head = compact_json({"id": _id(batch_id, index), "custom_id": custom_id})[:-1]
    # The answer is JSON already, and may be long.
    return b'%s,"response":{"status_code":%d,"request_id":"%s","body":%s},"error":null}' % (
        head,
        status,
        request_id.encode(),
        body,
    )


def _id(batch_id: str, index: int) -> str:
    return "batch_req_" + hashlib.sha256(f"{batch_id} {index}".encode()).hexdigest()[:32]


def _pack(line: bytes) -> bytes:
    # Korean in UTF-8 shrinks to half, and so do the write units.
    return gzip.compress(line, compresslevel=5, mtime=0)
