"""What every answer of the HTTP API has in common: headers, errors, CORS."""

from __future__ import annotations

import base64
import logging
import math
import re
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response
from aws_lambda_powertools.utilities.data_classes import APIGatewayProxyEvent

from naru.errors import InvalidRequestError, NaruError, RequestTooLargeError, UnsupportedMediaTypeError
from naru.request_ids import new_request_id
from naru.tracebacks import without_texts
from naru.unknown_paths import refusal
from naru.wire import MAX_BODY_BYTES, compact_json

logger = logging.getLogger(__name__)

JSON = "application/json"
EVENT_STREAM = "text/event-stream; charset=utf-8"

_CODINGS = frozenset({"gzip", "x-gzip", "deflate"})
_MAX_MEMBERS = 16  # each copies what follows it
_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
_FORMS = frozenset({"application/x-www-form-urlencoded", "multipart/form-data"})
_HEADER_LIST = re.compile(r"[A-Za-z0-9-]+(, ?[A-Za-z0-9-]+)*")
_USUAL_HEADERS = "authorization, content-type"
_SHOWN_TO_BROWSERS = (
    "x-request-id, openai-processing-ms, retry-after, retry-after-ms, x-should-retry, "
    "idempotency-replayed, x-naru-model, x-naru-deployment, x-naru-attempts, x-naru-after, "
    "x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    "x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)


def body_chars(event: APIGatewayProxyEvent) -> int:
    """How many characters a body may have once it is decompressed. Nothing of it is looked at."""
    return MAX_BODY_BYTES if _codings(event) else len(event.body or "")


def raw_body(event: APIGatewayProxyEvent) -> str | bytes | None:
    """The body as it was before it was compressed; what is not text comes in base64 and is handed on as bytes.

    Raises :class:`~naru.errors.UnsupportedMediaTypeError` for codings other than gzip and deflate,
    :class:`~naru.errors.RequestTooLargeError` for a body that is larger than :data:`~naru.wire.MAX_BODY_BYTES` without
    them, and :class:`~naru.errors.InvalidRequestError` for one that cannot be decompressed.
    """
    body = event.body
    if body and event.is_base64_encoded:
        return _decompressed(base64.b64decode(body), _codings(event))
    if body and (coding := _codings(event)):
        _known(coding)
        # API Gateway decompresses what it can, and a text that was compressed when it got here has lost bytes.
        if "\x1f" in body[:2] or "\ufffd" in body[:16]:
            raise InvalidRequestError(
                f"The request body is compressed ({coding[0]}) and lost bytes on its way, since something before the gateway "
                "took it for text. Send it without Content-Encoding."
            )
    return body


def json_body(event: APIGatewayProxyEvent) -> str | bytes | None:
    """A body that is to be JSON, whatever its Content-Type says: clients forget it.

    Raises what :func:`raw_body` raises, and :class:`~naru.errors.UnsupportedMediaTypeError` for a form and for text in a
    charset other than UTF-8.
    """
    body = raw_body(event)
    media_type, _, parameters = (event.headers.get("content-type") or "").lower().partition(";")
    if body and media_type.strip() in _FORMS and not _looks_like_json(body):
        raise UnsupportedMediaTypeError(
            f"The request body is a form ({media_type.strip()}). Send a JSON object, with 'Content-Type: application/json'."
        )
    charset = re.search(r"charset\s*=\s*\"?([a-z0-9_:.-]{1,40})", parameters)
    if body and charset and charset[1] not in _CHARSETS and not body.isascii():
        raise UnsupportedMediaTypeError(
            f"JSON is sent in UTF-8, and the Content-Type says '{charset[1]}'. Send the text in UTF-8."
        )
    return body


def _codings(event: APIGatewayProxyEvent) -> list[str]:
    """Of the header Content-Encoding, in the order in which they were applied (RFC 9110, 8.4)."""
    given = event.headers.get("content-encoding") or ""
    return [name for part in given.lower().split(",") if (name := part.strip()) and name != "identity"]


def _known(codings: list[str]) -> None:
    if len(codings) > 1 or codings[0] not in _CODINGS:
        error = UnsupportedMediaTypeError(
            f"Content-Encoding '{', '.join(codings)[:64]}' is not supported. Compress the body with gzip or deflate, once, "
            "or send it as it is."
        )
        error.headers = {"Accept-Encoding": "gzip, deflate, identity"}
        raise error


def _decompressed(body: bytes, codings: list[str]) -> bytes:
    if not codings:
        return body
    _known(codings)
    if _looks_like_json(body):
        return body  # decompressed on its way, by a proxy that left the header
    try:
        return _inflated(body)
    except zlib.error:
        raise InvalidRequestError(
            f"The request body is not {codings[0]}, as its Content-Encoding says. Send it as it is, or compressed whole."
        ) from None


def _inflated(body: bytes) -> bytes:
    """Of gzip (also of several members), zlib, or bare deflate, which some send under that name. Raises zlib.error."""
    is_zlib = body[0] & 15 == zlib.DEFLATED and int.from_bytes(body[:2], "big") % 31 == 0
    is_bare = not is_zlib and not body.startswith(b"\x1f\x8b")
    pieces: list[bytes] = []
    left = MAX_BODY_BYTES
    while body:
        if len(pieces) == _MAX_MEMBERS:
            raise zlib.error("it has too many members")
        stream = zlib.decompressobj(-zlib.MAX_WBITS if is_bare else zlib.MAX_WBITS | 32)
        piece = stream.decompress(body, left + 1)
        left -= len(piece)
        if left < 0:
            raise RequestTooLargeError(
                f"The request body is larger than {MAX_BODY_BYTES // 2**20} MiB when it is decompressed. Send less."
            )
        if not stream.eof:
            raise zlib.error("it ends too early")
        pieces.append(piece)
        body = stream.unused_data
    return b"".join(pieces)


def _looks_like_json(body: str | bytes) -> bool:
    start = body[:64].encode("utf-8", "surrogatepass") if isinstance(body, str) else body[:64]
    return start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in {b"{", b"["}


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
        return self.exchange.respond_error(refusal(event.http_method, event.path))

    def _failed(self, error: Exception) -> Response[Any]:
        return self.exchange.respond_error(error)
