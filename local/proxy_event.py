"""What API Gateway makes of an HTTP request for a function, and of a function's result for the client.

Both in the REST API's format, version 1.0 (AWS: "Set up Lambda proxy integrations in API Gateway"; for the headers,
"Amazon API Gateway important notes").
"""

from __future__ import annotations

import base64
import re
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from local.http_server import Request
from local.template import Api, Route

ACCOUNT = "000000000000"

# What is about this connection and not about the request.
_NOT_FORWARDED = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_REMAPPED = frozenset(
    {"authorization", "connection", "content-md5", "date", "host", "server", "via", "www-authenticate"}
)
_DROPPED = frozenset({"content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"})
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_IDENTITY = (
    "accessKey",
    "accountId",
    "caller",
    "cognitoAuthenticationProvider",
    "cognitoAuthenticationType",
    "cognitoIdentityId",
    "cognitoIdentityPoolId",
    "principalOrgId",
    "user",
    "userArn",
)


class MalformedResultError(Exception):
    """The function's result is not one that API Gateway can turn into an answer."""


@dataclass(frozen=True)
class Head:
    """Status and headers of an answer."""

    status: int
    headers: list[tuple[str, str]]


def event(
    request: Request,
    body: bytes,
    *,
    api: Api,
    api_id: str,
    route: Route,
    path_parameters: dict[str, str],
    request_id: str,
    trace_id: str,
) -> dict[str, Any]:
    """The event for a request whose path has matched `route`.

    `path_parameters` are as in the URL; the event has them decoded, and its `path` is the path as it was sent.
    """
    host = request.header("host", "")
    headers: dict[str, list[str]] = {}
    for name, value in request.headers:
        if name not in _NOT_FORWARDED | {
            "host",
            "x-forwarded-for",
            "x-forwarded-port",
            "x-forwarded-proto",
            "x-amzn-trace-id",
        }:
            headers.setdefault(name, []).append(value)
    forwarded = [value for name, value in request.headers if name == "x-forwarded-for"]
    headers |= {
        "Host": [host or ""],
        "X-Amzn-Trace-Id": [trace_id],
        "X-Forwarded-For": [", ".join([*forwarded, request.client_host])],
        "X-Forwarded-Port": [(host or "").partition(":")[2] or "80"],
        "X-Forwarded-Proto": ["http"],
    }
    query: dict[str, list[str]] = {}
    for name, value in request.query:
        query.setdefault(name, []).append(value)
    text, is_base64 = _text(body, request.header("content-type"), api.binary_media_types)
    path = request.path.removeprefix(f"/{api.stage}") or "/"
    return {
        "resource": route.resource,
        "path": path,
        "httpMethod": request.method,
        "headers": _last(headers),
        "multiValueHeaders": headers,
        "queryStringParameters": _last(query) or None,
        "multiValueQueryStringParameters": query or None,
        "pathParameters": {name: unquote(value) for name, value in path_parameters.items()} or None,
        "stageVariables": None,
        "requestContext": {
            "accountId": ACCOUNT,
            "apiId": api_id,
            "deploymentId": "local",
            "domainName": (host or "").partition(":")[0],
            "domainPrefix": (host or "").partition(".")[0].partition(":")[0],
            "extendedRequestId": request_id.replace("-", "")[:15] + "=",
            "httpMethod": request.method,
            "identity": {
                **dict.fromkeys(_IDENTITY),
                "sourceIp": request.client_host,
                "userAgent": request.header("user-agent"),
            },
            "path": request.path,
            "protocol": "HTTP/1.1",
            "requestId": request_id,
            "requestTime": time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime()),
            "requestTimeEpoch": int(time.time() * 1000),
            "resourceId": f"{zlib.crc32(route.resource.encode()):08x}",
            "resourcePath": route.resource,
            "stage": api.stage,
        },
        "body": text,
        "isBase64Encoded": is_base64,
    }


def head(result: Any) -> Head:
    """Status and headers of a result, or of a stream's prelude. Raises MalformedResultError."""
    if not isinstance(result, dict):
        raise MalformedResultError("the result is not an object")
    status = result.get("statusCode")
    try:
        status = int(status)  # type: ignore[arg-type]  # strings of digits are taken, too
    except (TypeError, ValueError):
        raise MalformedResultError(f"statusCode is {status!r}") from None
    if not 200 <= status <= 599:
        raise MalformedResultError(f"statusCode is {status!r}")
    headers = [_returned(name, value) for name, value in _merged(result)]
    headers = [(name, value) for name, value in headers if name.lower() not in _DROPPED]
    if not any(name.lower() == "content-type" for name, _ in headers):
        headers.append(("Content-Type", "application/json"))
    return Head(status, headers)


def body(result: dict[str, Any]) -> bytes:
    """The body of an ordinary result. Raises MalformedResultError."""
    content = result.get("body")
    if content is None:
        return b""
    if not isinstance(content, str):
        raise MalformedResultError("body is not a string")
    if not result.get("isBase64Encoded"):
        return content.encode()
    try:
        return base64.b64decode(content, validate=True)
    except ValueError:
        raise MalformedResultError("body is not valid base64") from None


def _text(content: bytes, content_type: str | None, binary_types: frozenset[str]) -> tuple[str | None, bool]:
    if not content:
        return None, False
    media_type = (content_type or "application/json").partition(";")[0].strip().lower()
    if not {"*/*", media_type, f"{media_type.partition('/')[0]}/*"} & binary_types:
        try:
            return content.decode(), False
        except UnicodeDecodeError:
            pass
    return base64.b64encode(content).decode(), True


def _last(values: dict[str, list[str]]) -> dict[str, str]:
    return {name: all_of_name[-1] for name, all_of_name in values.items()}


def _merged(result: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """Both kinds of headers as one list, in which a pair that both name appears once."""
    single, multiple = result.get("headers") or {}, result.get("multiValueHeaders") or {}
    if not isinstance(single, dict) or not isinstance(multiple, dict):
        raise MalformedResultError("headers are not an object")
    several = [
        (name, value)
        for name, values in multiple.items()
        for value in (values if isinstance(values, list) else [values])
    ]
    known = {(name.lower(), str(value)) for name, value in several}
    yield from ((name, value) for name, value in single.items() if (name.lower(), str(value)) not in known)
    yield from several
    yield from (("Set-Cookie", cookie) for cookie in result.get("cookies") or [])


def _returned(name: str, value: Any) -> tuple[str, str]:
    if isinstance(value, bool):
        value = str(value).lower()
    if not isinstance(value, str | int | float):
        raise MalformedResultError(f"the header {name!r} is {value!r}")
    if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(str(value)):
        raise MalformedResultError(f"the header {name!r} cannot be sent")
    return (f"x-amzn-Remapped-{name}" if name.lower() in _REMAPPED else name), str(value)
