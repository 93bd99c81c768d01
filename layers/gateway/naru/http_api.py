"""What every answer of the HTTP API has in common: headers, errors, CORS."""

from __future__ import annotations

import base64
import logging
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.utilities.data_classes import APIGatewayProxyEvent

from naru.errors import NaruError
from naru.request_ids import new_request_id
from naru.wire import compact_json

logger = logging.getLogger(__name__)

JSON = "application/json"
EVENT_STREAM = "text/event-stream; charset=utf-8"

_HEADER_LIST = re.compile(r"[A-Za-z0-9-]+(, ?[A-Za-z0-9-]+)*")
_USUAL_HEADERS = "authorization, content-type"
_SHOWN_TO_BROWSERS = (
    "x-request-id, openai-processing-ms, retry-after, retry-after-ms, x-should-retry, "
    "x-naru-model, x-naru-deployment, x-naru-attempts, "
    "x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    "x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)


def raw_body(event: APIGatewayProxyEvent) -> str | bytes | None:
    """The body as it was sent; what is not text comes in base64 and is handed on as bytes."""
    return base64.b64decode(event.body) if event.body and event.is_base64_encoded else event.body


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request being answered: its id, and the monotonic time at which it came."""

    request_id: str
    started_s: float

    @classmethod
    def begin(cls) -> Exchange:
        """The exchange of a request that has just arrived."""
        return cls(request_id=new_request_id(at_ms=time.time_ns() // 10**6), started_s=time.monotonic())

    def respond(
        self, status: int, body: bytes | Iterator[bytes], *, headers: Mapping[str, str] | None = None
    ) -> Response[Any]:
        """An answer with the headers that OpenAI's SDKs read; an iterator is a stream of events."""
        return Response(
            status_code=status,
            content_type=JSON if isinstance(body, bytes) else EVENT_STREAM,
            body=body.decode() if isinstance(body, bytes) else body,
            headers={
                "x-request-id": self.request_id,
                "openai-processing-ms": str(round((time.monotonic() - self.started_s) * 1000)),
                "Cache-Control": "no-store",
                "Access-Control-Allow-Origin": "*",
                "Access-Control-Expose-Headers": _SHOWN_TO_BROWSERS,
                **(headers or {}),
            },
        )

    def respond_error(self, error: Exception) -> Response[Any]:
        """OpenAI's error object. What is not one of our errors is a defect: logged in full, shown as an id."""
        if not isinstance(error, NaruError):
            logger.error("unexpected error", exc_info=error, extra={"request_id": self.request_id})
            error = NaruError(
                "Something went wrong in the gateway. Try again; if it goes on, give the operator the request id "
                f"{self.request_id}.",
                code="internal_error",
            )
        elif error.http_status >= 500:
            facts = {"request_id": self.request_id, "status": error.http_status, "code": error.code, **error.log}
            logger.error("request failed", extra=facts)
        headers = dict(error.headers)
        if error.retry_after_s is not None:
            headers["Retry-After"] = str(math.ceil(error.retry_after_s))
            headers["retry-after-ms"] = str(math.ceil(error.retry_after_s * 1000))
        if error.should_retry is not None:
            headers["x-should-retry"] = "true" if error.should_retry else "false"
        if error.http_status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return self.respond(error.http_status, compact_json(error.body()), headers=headers)

    def respond_preflight(self, *, methods: str, asked_headers: str | None) -> Response[Any]:
        """What a browser asks before it sends a request with an Authorization header (Fetch standard, CORS)."""
        allowed = asked_headers if asked_headers and _HEADER_LIST.fullmatch(asked_headers) else _USUAL_HEADERS
        headers = {
            "Access-Control-Allow-Methods": methods,
            "Access-Control-Allow-Headers": allowed,
            "Access-Control-Max-Age": "7200",
            "Vary": "Access-Control-Request-Headers",
        }
        return self.respond(204, b"", headers=headers)
