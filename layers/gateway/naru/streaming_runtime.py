"""Streams answers from the managed Python runtime, which has no public call for it.

The Runtime API takes a streamed response: a chunked POST whose body is a JSON prelude, eight NUL bytes and then the
data, with errors after the first byte in the trailers (AWS: "Using the Lambda runtime API for custom runtimes",
"Response streaming"). ``install`` teaches this to ``awslambdaric``, for handler results of the REST proxy's shape::

    {"statusCode": 200, "headers": {...}, "multiValueHeaders": {...}, "cookies": [...],
     "body": str | bytes | iterator of bytes | None, "isBase64Encoded": bool, "send_until_s": float}

All of them, JSON included, because an integration that streams expects nothing else. Other results go the usual way.

- The first chunk of an iterator is drawn before anything is sent: what it raises is an ordinary function error.
- An exception after that ends the response with an error, so that the client sees a cut stream and not a clean end.
  Its text goes nowhere, for it may be the user's; its type and place are logged.
- An iterator is always drawn to its end and closed, also when nobody takes the answer any more: the accounting of a
  request lives there. For the same reason a client that does not read is given up at ``send_until_s`` (monotonic), which
  should leave some time before the function is ended.
"""

from __future__ import annotations

import base64
import importlib
import json
import logging
import math
import os
import socket
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from naru.tracebacks import without_texts

_logger = logging.getLogger(__name__)

_CONTENT_TYPE = "application/vnd.awslambda.http-integration-response"
_PRELUDE_KEYS = ("statusCode", "headers", "multiValueHeaders", "cookies")
_PRELUDE_END = bytes(8)
_ERROR_TYPE, _ERROR_BODY = "Lambda-Runtime-Function-Error-Type", "Lambda-Runtime-Function-Error-Body"
_STACK_FRAMES = 20
_LEAST_S = 0.001  # zero would mean: without waiting


def install() -> None:
    """Make this process's runtime stream. Does nothing outside Lambda, or when called again."""
    if not os.environ.get("AWS_LAMBDA_RUNTIME_API"):
        return
    marshaller = importlib.import_module("awslambdaric.lambda_runtime_marshaller").LambdaMarshaller
    clients = importlib.import_module("awslambdaric.lambda_runtime_client")
    # The managed runtime brings its own release; the base class is there since 4.0.
    client = getattr(clients, "BaseLambdaRuntimeClient", None) or clients.LambdaRuntimeClient
    if hasattr(client, "naru_streams"):
        return
    marshal, post = marshaller.marshal_response, client.post_invocation_result

    def marshal_response(self: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        if not (isinstance(response, dict) and "statusCode" in response):
            return marshal(self, response, *args, **kwargs)
        return _Answer.of(response), _CONTENT_TYPE

    def post_invocation_result(self: Any, invoke_id: str, result_data: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(result_data, _Answer):
            return post(self, invoke_id, result_data, *args, **kwargs)
        # After the content type newer releases pass the id of this very attempt, which is to be echoed.
        invocation_id = kwargs.get("invocation_id", args[1] if len(args) > 1 else None)
        connection = _Connection(self.lambda_runtime_address, invoke_id, invocation_id, result_data.send_until_s)
        return _post(result_data, connection)

    marshaller.marshal_response = marshal_response
    client.post_invocation_result = post_invocation_result
    client.naru_streams = True


@dataclass(frozen=True)
class _Answer:
    """A result whose first chunk has been drawn: up to `first` it is sent in one piece."""

    first: bytes
    rest: Iterator[bytes]
    send_until_s: float

    @classmethod
    def of(cls, result: dict[str, Any]) -> _Answer:
        body = result.get("body")
        chunks = _chunks(body, is_base64=bool(result.get("isBase64Encoded")))
        try:
            prelude = json.dumps({key: result[key] for key in _PRELUDE_KEYS if result.get(key) is not None})
            until_s = float(result.get("send_until_s", math.inf))
            return cls(prelude.encode() + _PRELUDE_END + next(chunks, b""), chunks, until_s)
        except BaseException:
            _close(chunks)
            raise


def _chunks(body: Any, *, is_base64: bool) -> Iterator[bytes]:
    if body is None:
        return iter(())
    if isinstance(body, str):
        return iter((base64.b64decode(body) if is_base64 else body.encode(),))
    return iter((body,)) if isinstance(body, bytes) else iter(body)


def _post(answer: _Answer, connection: _Connection) -> None:
    trailers: dict[str, str] = {}
    try:
        connection.send(answer.first)
        for chunk in answer.rest:
            connection.send(chunk)
    except Exception as error:  # noqa: BLE001 - logged without its words, and told in the trailers
        facts = {"errors": without_texts(error)}
        _logger.error("the response failed after its first byte: %s", type(error).__name__, extra=facts)  # noqa: TRY400
        trailers = _error_trailers(error)
    finally:
        _close(answer.rest)
    connection.finish(trailers)


def _close(chunks: Iterator[bytes]) -> None:
    if close := getattr(chunks, "close", None):
        try:
            close()
        except Exception as error:  # noqa: BLE001 - logged without its words
            facts = {"errors": without_texts(error)}
            _logger.error("the body could not be closed: %s", type(error).__name__, extra=facts)  # noqa: TRY400


def _error_trailers(error: Exception) -> dict[str, str]:
    name = type(error).__name__
    details = {
        "errorMessage": f"the response failed after its first byte: {name}",
        "errorType": name,
        "stackTrace": traceback.format_tb(error.__traceback__)[-_STACK_FRAMES:],
    }
    return {_ERROR_TYPE: name, _ERROR_BODY: base64.b64encode(json.dumps(details).encode()).decode()}


class _Connection:
    """One chunked POST. It breaks when the invocation is over or the Runtime API is gone: then it goes silent, and
    whoever sends goes on as if nothing had happened.

    A socket and no ``http.client``, which takes three times as long for a request whose every byte is known here.
    """

    def __init__(self, address: str, invoke_id: str, invocation_id: str | None, send_until_s: float) -> None:
        self._address = address
        self._send_until_s = send_until_s
        head = [
            f"POST /2018-06-01/runtime/invocation/{invoke_id}/response HTTP/1.1",
            f"Host: {address}",
            f"Content-Type: {_CONTENT_TYPE}",
            "Lambda-Runtime-Function-Response-Mode: streaming",
            "Transfer-Encoding: chunked",
            f"Trailer: {_ERROR_TYPE}, {_ERROR_BODY}",
            *([f"Lambda-Runtime-Invocation-Id: {invocation_id}"] if invocation_id else []),
        ]
        self._head = "\r\n".join((*head, "", "")).encode()
        self._socket: socket.socket | None = None
        self._broken = False

    def send(self, data: bytes) -> None:
        """Send one chunk at once."""
        if data:  # an empty chunk would be the end
            self._send(b"%x\r\n%b\r\n" % (len(data), data))

    def finish(self, trailers: dict[str, str]) -> None:
        """End the response and hear what the Runtime API says to it."""
        self._send(b"0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in trailers.items()).encode() + b"\r\n")
        if self._socket is None:
            return
        with self._socket:
            if self._broken:
                return
            try:
                if (status := _status(self._socket)) != HTTPStatus.ACCEPTED:
                    _logger.warning("the Runtime API answered %d to a response", status)
            except (OSError, ValueError) as error:
                self._give_up(error)

    def _send(self, data: bytes) -> None:
        if self._broken:
            return
        try:
            if self._socket is None:
                host, _, port = self._address.partition(":")
                self._socket = socket.create_connection((host, int(port or 80)))
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                data = self._head + data
            if self._send_until_s < math.inf:
                self._socket.settimeout(max(_LEAST_S, self._send_until_s - time.monotonic()))
            self._socket.sendall(data)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._broken = True
        _logger.warning("nobody takes the response any more: %s", type(error).__name__)


def _status(connection: socket.socket) -> int:
    """Of the answer. Raises ValueError for what is none."""
    received = b""
    while b"\r\n\r\n" not in received:
        if not (data := connection.recv(4096)):
            raise ValueError("the connection was closed before an answer")
        received += data
    return int(received[len("HTTP/1.1 ") :][:3])
