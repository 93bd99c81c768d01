"""Calls to AWS services that speak JSON (DynamoDB, Secrets Manager), on the event loop, over connections kept open.

What boto3 does for one such call costs five times the CPU of the call itself, and its import and client half of a cold
start. The hot calls go this way; everything else stays boto3's. Requests, answers and exceptions are boto3's own, so a
client of boto3 can stand in wherever one of these is used: see :func:`call`.

As in boto3's "standard" retries, connection failures, timeouts, throttling and 5xx are tried again, three attempts in
all, with full jitter. A clock that is wrong is corrected by the service's own.

A kept connection may have been closed by the service, or forgotten by the network, without our having heard of it. One that
breaks before the first byte of an answer is replaced at once, at no attempt's cost, and all that are idle with it. So a
write may be made twice, as by any retry: callers make theirs conditional, and a transaction carries a token.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import inspect
import json
import os
import random
import select
import ssl
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit
from uuid import uuid4

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

_RETRIED_STATUSES = frozenset({500, 502, 503, 504})
# botocore's retries/standard.py: what it calls throttling and transient, as far as these services say it.
_RETRIED_CODES = frozenset(
    {
        "InternalServerError", "InternalServiceError", "LimitExceededException", "PriorRequestNotComplete",
        "ProvisionedThroughputExceededException", "RequestLimitExceeded", "RequestThrottled", "RequestThrottledException",
        "RequestTimeout", "RequestTimeoutException", "ThrottledException", "Throttling", "ThrottlingException",
        "TooManyRequestsException", "TransactionInProgressException",
    }
)  # fmt: skip
_SKEW_CODES = frozenset(
    {"InvalidSignatureException", "RequestExpired", "RequestTimeTooSkewed", "SignatureDoesNotMatch"}
)
_MAX_SKEW_S = 4.0
_MAX_BACKOFF_S = 20.0
_MAX_IDLE_S = 30.0
"""Load balancers and NATs forget connections after a minute and more, and some tell nobody."""
_ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who signs."""

    access_key: str
    secret_key: str
    token: str | None


def credentials_source() -> Callable[[], Credentials]:
    """Where credentials come from: Lambda's environment, which holds one set for its whole life; else botocore's chain,
    which finds and renews those of SnapStart and of a developer's machine.
    """
    if access_key := os.environ.get("AWS_ACCESS_KEY_ID"):
        fixed = Credentials(access_key, os.environ["AWS_SECRET_ACCESS_KEY"], os.environ.get("AWS_SESSION_TOKEN"))
        return lambda: fixed
    from botocore.exceptions import NoCredentialsError
    from botocore.session import get_session

    found = get_session().get_credentials()
    if found is None:
        raise NoCredentialsError

    def frozen() -> Credentials:
        now: Any = found.get_frozen_credentials()
        return Credentials(now.access_key, now.secret_key, now.token)

    return frozen


async def call(function: Callable[..., Any], **parameters: Any) -> Any:
    """Awaits a method of a :class:`JsonService`, or runs one of boto3's in a thread."""
    if inspect.iscoroutinefunction(function):
        return await function(**parameters)
    return await asyncio.to_thread(function, **parameters)


class Lazily:
    """A client of boto3 that is made when it is first used: importing boto3 and making one is half of a cold start."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._client: Any = None
        self._making = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        with self._making:
            if self._client is None:
                self._client = self._make()
        return getattr(self._client, name)


class JsonService:
    """One service. Its methods raise botocore's exceptions: ClientError for what the service answers, others where it
    does not.
    """

    service: str
    target: str
    json_version: str

    def __init__(
        self,
        *,
        region: str | None = None,
        endpoint_url: str | None = None,
        credentials: Callable[[], Credentials] | None = None,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        connect_timeout_s: float = 2.0,
        read_timeout_s: float = 5.0,
        attempts: int = 3,
        rng: random.Random | None = None,
    ) -> None:
        variables = os.environ
        self._region = region or variables.get("AWS_REGION") or variables["AWS_DEFAULT_REGION"]
        specific = f"AWS_ENDPOINT_URL_{self.service.upper()}"
        suffix = "amazonaws.com.cn" if self._region.startswith("cn-") else "amazonaws.com"
        self._url = (
            endpoint_url
            or variables.get(specific)
            or variables.get("AWS_ENDPOINT_URL")
            or f"https://{self.service}.{self._region}.{suffix}"
        )
        parts = urlsplit(self._url)
        self._host, self._is_tls = parts.hostname or "", parts.scheme == "https"
        self._port = parts.port or (443 if self._is_tls else 80)
        self._host_header = self._host if parts.port is None else f"{self._host}:{parts.port}"
        self._path = parts.path or "/"
        self._credentials = credentials or credentials_source()
        self._tls = tls
        self._tls_context: ssl.SSLContext | None = None
        self._connect_timeout_s, self._read_timeout_s, self._attempts = connect_timeout_s, read_timeout_s, attempts
        self._rng = rng or random.SystemRandom()
        self._idle: list[_Connection] = []
        self._skew_s = 0.0
        self._signing_key: tuple[tuple[str, str], bytes] = (("", ""), b"")

    @property
    def exceptions(self) -> SimpleNamespace:
        """Those that callers catch by name."""
        return _exceptions()

    async def request(self, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """One operation, with its retries."""
        body = json.dumps(parameters, ensure_ascii=False, separators=(",", ":"), default=_base64).encode()
        for attempt in range(1, self._attempts + 1):
            try:
                status, headers, content = await self._send(operation, body)
            except (OSError, EOFError, ValueError, LookupError, asyncio.LimitOverrunError) as error:
                if attempt == self._attempts:
                    self._unreachable(error)
            else:
                if status == 200 and _is_intact(headers, content):
                    return _read(content)
                error_body = _object(content)
                code = str(error_body.get("__type", "")).rpartition("#")[2] or str(status)
                again = status in _RETRIED_STATUSES or status == 200 or code in _RETRIED_CODES
                skewed = code in _SKEW_CODES and self._adopt_clock(headers)
                if not (again or skewed) or attempt == self._attempts:
                    raise _client_error(operation, status, code, error_body, attempt)
                if skewed:
                    continue
            await asyncio.sleep(self._rng.random() * min(2 ** (attempt - 1), _MAX_BACKOFF_S))
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Closes the connections that are kept."""
        while self._idle:
            self._idle.pop().close()

    async def _send(self, operation: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        head = self._signed_head(operation, body, time.time() + self._skew_s)
        connection = await self._connection()
        try:
            return await self._exchange(connection, head + body)
        except (OSError, EOFError) as error:
            if isinstance(error, TimeoutError) or not connection.is_reused or connection.is_answering:
                raise
        return await self._exchange(await self._connect(), head + body)

    async def _exchange(self, connection: _Connection, request: bytes) -> tuple[int, dict[str, str], bytes]:
        try:
            async with asyncio.timeout(self._read_timeout_s):
                answer = await connection.exchange(request)
        except Exception:
            connection.close()
            if connection.is_reused:
                self.close()  # the others have been idle for longer
            raise
        except BaseException:
            connection.close()
            raise
        if connection.keep():
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    async def _connection(self) -> _Connection:
        while self._idle and self._idle[0].is_stale:
            self._idle.pop(0).close()
        while self._idle:
            # The one used last: the others are more likely to have been closed.
            connection = self._idle.pop()
            if connection.is_usable:
                return connection
            connection.close()
        return await self._connect()

    async def _connect(self) -> _Connection:
        if self._is_tls and self._tls_context is None:
            self._tls_context = self._tls()
        async with asyncio.timeout(self._connect_timeout_s):
            return _Connection(*await asyncio.open_connection(self._host, self._port, ssl=self._tls_context))

    # ── Signature Version 4 (IAM user guide, "Create a signed AWS API request") ────────────────────────────────

    def _signed_head(self, operation: str, body: bytes, at_s: float) -> bytes:
        credentials = self._credentials()
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at_s))
        day = moment[:8]
        content_type = f"application/x-amz-json-{self.json_version}"
        token = f"x-amz-security-token:{credentials.token}\n" if credentials.token else ""
        target = f"{self.target}.{operation}"
        names = f"content-type;host;x-amz-date;{'x-amz-security-token;' if token else ''}x-amz-target"
        canonical = f"content-type:{content_type}\nhost:{self._host_header}\nx-amz-date:{moment}\n{token}x-amz-target:{target}\n"
        digest = hashlib.sha256(body).hexdigest()
        hashed = hashlib.sha256(f"POST\n{self._path}\n\n{canonical}\n{names}\n{digest}".encode()).hexdigest()
        scope = f"{day}/{self._region}/{self.service}/aws4_request"
        signature = hmac.digest(
            self._key(credentials.secret_key, day), f"{_ALGORITHM}\n{moment}\n{scope}\n{hashed}".encode(), "sha256"
        ).hex()
        return (
            f"POST {self._path} HTTP/1.1\r\n"
            + canonical.replace("\n", "\r\n")
            + f"authorization: {_ALGORITHM} Credential={credentials.access_key}/{scope}, SignedHeaders={names}, "
            f"Signature={signature}\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode()

    def _key(self, secret_key: str, day: str) -> bytes:
        if self._signing_key[0] != (secret_key, day):
            key = f"AWS4{secret_key}".encode()
            for part in (day, self._region, self.service, "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._signing_key = ((secret_key, day), key)
        return self._signing_key[1]

    def _adopt_clock(self, headers: Mapping[str, str]) -> bool:
        """Whether the service's clock differs from the one that was signed with; it is believed from now on."""
        from email.utils import parsedate_to_datetime

        try:
            skew_s = parsedate_to_datetime(headers["date"]).timestamp() - time.time()
        except (KeyError, ValueError, TypeError):
            return False
        if abs(skew_s - self._skew_s) < _MAX_SKEW_S:
            return False
        self._skew_s = skew_s
        return True

    def _unreachable(self, error: BaseException) -> NoReturn:
        from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError, HTTPClientError

        if isinstance(error, TimeoutError):
            raise ConnectTimeoutError(endpoint_url=self._url, error=error) from error
        if isinstance(error, OSError):
            raise EndpointConnectionError(endpoint_url=self._url, error=error) from error
        raise HTTPClientError(error=error) from error


class DynamoDB(JsonService):
    """The calls on the way of a request, with boto3's parameters and results."""

    service, target, json_version = "dynamodb", "DynamoDB_20120810", "1.0"

    async def get_item(self, **parameters: Any) -> dict[str, Any]:
        return await self.request("GetItem", parameters)

    async def batch_get_item(self, **parameters: Any) -> dict[str, Any]:
        return await self.request("BatchGetItem", parameters)

    async def put_item(self, **parameters: Any) -> dict[str, Any]:
        return await self.request("PutItem", parameters)

    async def update_item(self, **parameters: Any) -> dict[str, Any]:
        return await self.request("UpdateItem", parameters)

    async def delete_item(self, **parameters: Any) -> dict[str, Any]:
        return await self.request("DeleteItem", parameters)

    async def query(self, **parameters: Any) -> dict[str, Any]:
        return await self.request("Query", parameters)

    async def transact_get_items(self, **parameters: Any) -> dict[str, Any]:
        return await self.request("TransactGetItems", parameters)

    async def transact_write_items(self, **parameters: Any) -> dict[str, Any]:
        # So that a transaction whose answer was lost is not made again by the retry; boto3 adds one, too.
        parameters.setdefault("ClientRequestToken", str(uuid4()))
        return await self.request("TransactWriteItems", parameters)


class SecretsManager(JsonService):
    """The call that reads the providers' keys."""

    service, target, json_version = "secretsmanager", "secretsmanager", "1.1"

    async def get_secret_value(self, **parameters: Any) -> dict[str, Any]:
        return await self.request("GetSecretValue", parameters)


class _Connection:
    """HTTP/1.1, one exchange after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._used_s = (0.0, 0.0)
        self._may_stay = False
        self.is_reused = False
        """Whether the exchange is not its first one."""
        self.is_answering = False
        """Whether a byte of the exchange's answer has come."""

    @property
    def is_stale(self) -> bool:
        """Whether it has been idle for too long, by either clock: the monotonic one may stand still while Lambda freezes
        the process.
        """
        wall_s, steady_s = self._used_s
        return max(time.time() - wall_s, time.monotonic() - steady_s) > _MAX_IDLE_S

    @property
    def is_usable(self) -> bool:
        """Whether the service has, as far as anybody can know, not closed it."""
        if self.is_stale or self._reader.at_eof() or self._writer.is_closing():
            return False
        # While the loop stood still it has read nothing. Whatever there is to read from an idle connection is its end.
        waiting = select.poll()
        waiting.register(self._writer.get_extra_info("socket").fileno(), select.POLLIN)
        return not waiting.poll(0)

    def keep(self) -> bool:
        """Ends an exchange; False if the connection is not good for another one."""
        self._used_s = (time.time(), time.monotonic())
        self.is_reused, self.is_answering = True, False
        return self._may_stay

    async def exchange(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers with lower-case names, body.

        Raises EOFError (IncompleteReadError), OSError, ValueError, LookupError and LimitOverrunError.
        """
        self._writer.write(request)
        first = await self._reader.readexactly(1)
        self.is_answering = True
        head = (first + await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
        version, status = head[0].split(" ", 2)[:2]
        self._may_stay = version == "HTTP/1.1" and "close" not in headers.get("connection", "").lower()
        return int(status), headers, await self._body(headers)

    async def _body(self, headers: Mapping[str, str]) -> bytes:
        if "chunked" in headers.get("transfer-encoding", "").lower():
            return b"".join([chunk async for chunk in self._chunks()])
        if "content-length" in headers:
            return await self._reader.readexactly(int(headers["content-length"]))
        self._may_stay = False
        return await self._reader.read()

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int((await self._line()).partition(b";")[0], 16):
            yield await self._reader.readexactly(size)
            await self._line()
        while await self._line():
            pass  # trailers

    async def _line(self) -> bytes:
        return (await self._reader.readuntil(b"\r\n"))[:-2]

    def close(self) -> None:
        self._writer.close()


def _is_intact(headers: Mapping[str, str], content: bytes) -> bool:
    """DynamoDB sends a checksum with its answers."""
    return "x-amz-crc32" not in headers or int(headers["x-amz-crc32"]) == zlib.crc32(content)


def _base64(value: Any) -> str:
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _read(content: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(content, object_hook=_binary if b'{"B":' in content else None)
    return answer


def _binary(value: dict[str, Any]) -> dict[str, Any]:
    return {"B": base64.b64decode(value["B"])} if value.keys() == {"B"} and isinstance(value["B"], str) else value


def _object(content: bytes) -> dict[str, Any]:
    try:
        found = _read(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _client_error(operation: str, status: int, code: str, body: dict[str, Any], attempts: int) -> ClientError:
    """As botocore shapes it: the modelled members of the error beside ``Error``."""
    from botocore.exceptions import ClientError

    kind = getattr(_exceptions(), code, ClientError)
    said: Any = {name: value for name, value in body.items() if name not in {"__type", "message", "Message"}}
    said["Error"] = {"Code": code, "Message": body.get("message") or body.get("Message") or ""}
    said["ResponseMetadata"] = {"HTTPStatusCode": status, "RetryAttempts": attempts - 1}
    error: ClientError = kind(said, operation)
    return error


@cache
def _exceptions() -> SimpleNamespace:
    """Classes for codes, as boto3 makes them from a service's description."""
    from botocore.exceptions import ClientError

    names = ("ConditionalCheckFailedException", "TransactionCanceledException")
    return SimpleNamespace(**{name: type(name, (ClientError,), {}) for name in names})
