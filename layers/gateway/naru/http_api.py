"""What every answer of the HTTP API has in common: headers, errors, CORS."""

from __future__ import annotations

import base64
import logging
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response
from aws_lambda_powertools.utilities.data_classes import APIGatewayProxyEvent

from naru.errors import NaruError, UnknownPathError
from naru.request_ids import new_request_id
from naru.tracebacks import without_texts
from naru.wire import compact_json

logger = logging.getLogger(__name__)

JSON = "application/json"
EVENT_STREAM = "text/event-stream; charset=utf-8"

_HEADER_LIST = re.compile(r"[A-Za-z0-9-]+(, ?[A-Za-z0-9-]+)*")
_USUAL_HEADERS = "authorization, content-type"
_SHOWN_TO_BROWSERS = (
    "x-request-id, openai-processing-ms, retry-after, retry-after-ms, x-should-retry, "
    "idempotency-replayed, x-naru-model, x-naru-deployment, x-naru-attempts, x-naru-after, "
    "x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    "x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)


def raw_body(event: APIGatewayProxyEvent) -> str | bytes | None:
    """The body as it was sent; what is not text comes in base64 and is handed on as bytes."""
    return base64.b64decode(event.body) if event.body and event.is_base64_encoded else event.body


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request being answered: its id, and when it came (Unix milliseconds, and on the monotonic clock)."""

    request_id: str
    arrived_at_ms: int
    started_s: float

    @classmethod
    def begin(cls) -> Exchange:
        """The exchange of a request that has just arrived."""
        now_ms = time.time_ns() // 10**6
        return cls(new_request_id(at_ms=now_ms), now_ms, time.monotonic())

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
        """OpenAI's error object. What is not one of our errors is a defect: logged as its types and places,
        since its words may be the user's, and shown as an id.
        """
        if not isinstance(error, NaruError):
            defect = {"request_id": self.request_id, "errors": without_texts(error)}
            logger.error("unexpected error", extra=defect)
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


class RestApi(APIGatewayRestResolver):
    """Routes of a REST API each of whose answers, failures included, is an :class:`Exchange`'s.

    ``paths`` may be asked by browsers before they call, and are told ``methods``.
    """

    def __init__(self, *, paths: Sequence[str], methods: str) -> None:
        super().__init__()
        self._methods = methods
        for path in paths:
            self.route(path, method="OPTIONS")(self._preflight)
        self.not_found(self._unknown_path)
        self.exception_handler(Exception)(self._failed)

    @property
    def exchange(self) -> Exchange:
        """The request being answered."""
        current: Exchange = self.context["exchange"]
        return current

    @property
    def authorization(self) -> str | None:
        """Its Authorization header."""
        return self.current_event.headers.get("authorization")

    def handle(self, event: dict[str, Any], context: Any) -> dict[str, Any]:
        """What a Lambda handler returns."""
        self.append_context(exchange=Exchange.begin())  # type: ignore[no-untyped-call]
        return self.resolve(event, context)

    def _preflight(self, **_: str) -> Response[Any]:
        asked = self.current_event.headers.get("access-control-request-headers")
        return self.exchange.respond_preflight(methods=self._methods, asked_headers=asked)

    def _unknown_path(self, _: Exception) -> Response[Any]:
        event = self.current_event
        return self.exchange.respond_error(UnknownPathError(f"There is no {event.http_method} {event.path} here."))

    def _failed(self, error: Exception) -> Response[Any]:
        return self.exchange.respond_error(error)
