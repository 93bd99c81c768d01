"""What every answer of the HTTP API has in common: headers, errors, CORS."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from aws_lambda_powertools.event_handler import Response

from naru.errors import NaruError
from naru.wire import compact_json

logger = logging.getLogger(__name__)

JSON = "application/json"
EVENT_STREAM = "text/event-stream; charset=utf-8"

_HEADER_LIST = re.compile(r"[A-Za-z0-9-]+(, ?[A-Za-z0-9-]+)*")
_USUAL_HEADERS = "authorization, content-type"
_SHOWN_TO_BROWSERS = (
    "x-request-id, openai-processing-ms, retry-after, retry-after-ms, x-should-retry, "
    "x-naru-model, x-naru-deployment, x-naru-attempts"
)


def respond(
    status: int,
    body: bytes | Iterator[bytes],
    *,
    request_id: str,
    started_s: float,
    headers: Mapping[str, str] | None = None,
) -> Response[Any]:
    """An answer with the headers that OpenAI's SDKs read; ``started_s`` is the monotonic time of its request."""
    return Response(
        status_code=status,
        content_type=JSON if isinstance(body, bytes) else EVENT_STREAM,
        body=body.decode() if isinstance(body, bytes) else body,
        headers={
            "x-request-id": request_id,
            "openai-processing-ms": str(round((time.monotonic() - started_s) * 1000)),
            "Cache-Control": "no-store",
            "Access-Control-Allow-Origin": "*",
            "Access-Control-Expose-Headers": _SHOWN_TO_BROWSERS,
            **(headers or {}),
        },
    )


def respond_error(error: Exception, *, request_id: str, started_s: float) -> Response[Any]:
    """OpenAI's error object. What is not one of our errors is a defect: logged in full, shown as an id."""
    if not isinstance(error, NaruError):
        logger.error("unexpected error", exc_info=error, extra={"request_id": request_id})
        error = NaruError(
            "Something went wrong in the gateway. Try again; if it goes on, give the operator the request id "
            f"{request_id}.",
            code="internal_error",
        )
    elif error.http_status >= 500:
        logger.error(
            "request failed", extra={"request_id": request_id, "status": error.http_status, "code": error.code, **error.log}
        )
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
        headers["retry-after-ms"] = str(math.ceil(error.retry_after_s * 1000))
    if error.should_retry is not None:
        headers["x-should-retry"] = "true" if error.should_retry else "false"
    if error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return respond(
        error.http_status, compact_json(error.body()), request_id=request_id, started_s=started_s, headers=headers
    )


def respond_preflight(*, methods: str, asked_headers: str | None, request_id: str, started_s: float) -> Response[Any]:
    """What a browser asks before it sends a request with an Authorization header (Fetch standard, CORS)."""
    allowed = asked_headers if asked_headers and _HEADER_LIST.fullmatch(asked_headers) else _USUAL_HEADERS
    return respond(
        204,
        b"",
        request_id=request_id,
        started_s=started_s,
        headers={
            "Access-Control-Allow-Methods": methods,
            "Access-Control-Allow-Headers": allowed,
            "Access-Control-Max-Age": "7200",
            "Vary": "Access-Control-Request-Headers",
        },
    )
