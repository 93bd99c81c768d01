"""One call to a provider: a JSON answer, or a stream whose first token has arrived."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from functools import cache
from typing import Any

import httpx

from naru import canonical, dialects
from naru.assembly import assembled
from naru.catalog import Deployment
from naru.dialects.error_bodies import reports_error
from naru.errors import StoreUnavailableError
from naru.failures import (
    AttemptFailedError,
    fault_failure,
    how_to_set,
    protocol_failure,
    refused_key,
    transport_failure,
)
from naru.faults import ProviderFault, judge
from naru.halves import read_json
from naru.provider_keys import ProviderKeys
from naru.relay import ErrorChunkError, InvalidChunkError
from naru.sse import DONE, Decoder, Event, EventTooLargeError, encode_event
from naru.wire import compact_json, is_noise

_MAX_IDLE_S = 20.0
"""Less than load balancers and servers usually keep an idle connection (60 s and more), so that they do not close it just
when it is used again: whether a call that ends so was billed, nobody can know.
"""


@cache
def tls_context() -> ssl.SSLContext:
    """One for all connections of a process: to read the list of authorities takes 30 ms."""
    return httpx.create_ssl_context()


def new_http_client(*, max_connections: int = 100) -> httpx.AsyncClient:
    """A client for all providers. One per execution environment, so that connections are reused."""
    return httpx.AsyncClient(
        limits=httpx.Limits(max_connections=max_connections, keepalive_expiry=_MAX_IDLE_S),
        follow_redirects=False,  # a redirect would carry the provider's key to somewhere the catalog does not name
        trust_env=True,
        verify=tls_context(),
    )


class Upstream:
    """Speaks to the deployments of the catalog.

    ``base_urls`` overrides where a provider is reached, by the provider's name.
    """

    def __init__(self, client: httpx.AsyncClient, keys: ProviderKeys, base_urls: Mapping[str, str]) -> None:
        self._client = client
        self._keys = keys
        self._base_urls = base_urls

    async def answer(
        self, deployment: Deployment, body: Mapping[str, Any], *, request_id: str, deadline_s: float
    ) -> dict[str, Any]:
        """The provider's JSON answer, in OpenAI's shape.

        Raises :class:`AttemptFailedError`.
        """
        request = await self._request(deployment, body, request_id=request_id, read_timeout_s=deadline_s)
        try:
            # The timeouts of httpx bound each read; this bounds a provider that drips a byte a second.
            async with asyncio.timeout(deadline_s):
                response = await self._client.send(request)
        except (TimeoutError, httpx.HTTPError) as error:
            raise transport_failure(deployment, error) from error
        payload = _json_of(response.content)
        if response.status_code != httpx.codes.OK:
            raise await self._status_failure(deployment, response, payload)
        dialect = dialects.for_name(deployment.at.dialect)
        if isinstance(payload, str) and _is_event_stream(_beginning(response.content)):
            return _assembled(deployment, response, choices=body.get("n") or 1)
        if canonical.is_error(payload):
            raise fault_failure(deployment, _fault(deployment, response, payload))
        if not _is_answer(payload):
            raise _no_answer(deployment, response, payload, "its answer is not a chat completion")
        return dialect.answer(payload)

    async def stream(
        self, deployment: Deployment, body: Mapping[str, Any], *, request_id: str, deadline_s: float
    ) -> EventStream:
        """The events of a streamed answer, once its first token has arrived.

        Raises :class:`AttemptFailedError`.
        """
        patience = deployment.patience
        started_s = time.monotonic()
        # The limits are kept here; a limit of httpx's for each read would cut the longest of them short.
        read_timeout_s = max(patience.first_byte_s, patience.first_token_s, patience.silence_s)
        request = await self._request(deployment, body, request_id=request_id, read_timeout_s=read_timeout_s)
        response = None
        try:
            async with asyncio.timeout(min(patience.connect_s + patience.first_byte_s, deadline_s)):
                response = await self._client.send(request, stream=True)
                if response.status_code != httpx.codes.OK:
                    await response.aread()
            if response.status_code != httpx.codes.OK:
                raise await self._status_failure(deployment, response, _json_of(response.content))
            async with asyncio.timeout(min(patience.first_token_s, deadline_s) - (time.monotonic() - started_s)):
                events = await _events_of(deployment, response)
                await events.await_first_token()
        except (TimeoutError, httpx.HTTPError) as error:
            if response is not None:
                await response.aclose()
            raise transport_failure(deployment, error) from error
        except BaseException:
            if response is not None:
                await response.aclose()
            raise
        return events

    async def _request(
        self, deployment: Deployment, body: Mapping[str, Any], *, request_id: str, read_timeout_s: float
    ) -> httpx.Request:
        provider = deployment.at
        try:
            key = await self._keys.get(provider.secret)
        except StoreUnavailableError as error:
            raise AttemptFailedError(result="no_key", error=error, again="never") from error
        if key is None:
            raise AttemptFailedError(
                result="no_key",
                error=refused_key(
                    deployment,
                    log={"reason": "there is no key", "advice": how_to_set(self._keys.secret_id, provider.secret)},
                ),
                again="elsewhere",
                of_account=True,
                was_called=False,
            )
        base_url = self._base_urls.get(deployment.provider, provider.base_url)
        return self._client.build_request(
            "POST",
            f"{base_url}/chat/completions",
            content=compact_json(body),
            headers={
                "authorization": f"Bearer {key.get_secret_value()}",
                "content-type": "application/json",
                "accept": "text/event-stream" if body.get("stream") else "application/json",
                "x-request-id": request_id,
            },
            timeout=httpx.Timeout(
                connect=deployment.patience.connect_s,
                read=read_timeout_s,
                write=30.0,
                pool=deployment.patience.connect_s,
            ),
        )

    async def _status_failure(
        self, deployment: Deployment, response: httpx.Response, payload: Any
    ) -> AttemptFailedError:
        """What an answer other than 200 means."""
        fault = _fault(deployment, response, payload)
        failure = fault_failure(deployment, fault)
        if fault.party == "account":
            refused = response.request.headers["authorization"].removeprefix("Bearer ")
            if await self._keys.is_renewed(deployment.at.secret, refused=refused):
                failure.again = "same"
            if fault.kind == "key":
                failure.error.log["advice"] = how_to_set(self._keys.secret_id, deployment.at.secret)
        return failure


class EventStream:
    """The events of one streamed answer."""

    def __init__(
        self, deployment: Deployment, response: httpx.Response, chunks: AsyncIterator[bytes], head: bytes
    ) -> None:
        self._deployment = deployment
        self._response = response
        self._chunks = chunks
        self._head = head
        """What has been read of the body; the chunks follow it."""
        self._decoder = Decoder()
        self._ready: list[Event] = []
        self._ended = False

    async def await_first_token(self) -> None:
        """Reads on until the answer says something or ends; what came before is kept. An error until then fails the
        attempt and not the answer: nothing has been said to the client yet.
        """
        before: list[Event] = []
        reported: Any = None
        is_over = False
        while (data := await self._next_of_beginning()) is not None:
            before.append(Event(data))
            payload = _json_of(data)
            if canonical.is_error(payload):
                raise self._reported(payload)
            if reports_error(payload):
                reported = payload
            if not isinstance(payload, dict) and not is_noise(data):
                break  # [DONE] before any token, or nothing that could be a chunk
            if isinstance(payload, dict) and _says_something(payload):
                self._ready[:0] = before
                return
            # An error may still follow; only at the end it is an answer without a word.
            is_over = is_over or (isinstance(payload, dict) and _names_an_end(payload))
        if not is_over:
            raise _no_answer(self._deployment, self._response, reported, "its stream ended before it began")
        self._ready[:0] = before

    @property
    def silence_s(self) -> float:
        """How long the provider may say nothing between two events."""
        return self._deployment.patience.silence_s

    async def next(self, timeout_s: float | None) -> bytes | None:
        """The data of the next event; None at the end.

        Raises :class:`AttemptFailedError` when none comes within ``timeout_s``, if that is a number, or the stream
        breaks, and :class:`~naru.relay.ErrorChunkError` for an event of the type ``error``. Bytes that drip, and
        comments, are not an event.
        """
        try:
            if not self._ready and not self._ended:
                async with asyncio.timeout(timeout_s):
                    await self._read()
        except (TimeoutError, httpx.HTTPError, httpx.StreamError) as error:
            raise transport_failure(self._deployment, error) from error
        except EventTooLargeError as error:
            raise protocol_failure(self._deployment, "one event of its stream is too large") from error
        if not self._ready:
            return None
        event = self._ready.pop(0)
        if event.event == "error":
            raise ErrorChunkError(_json_of(event.data))
        return event.data

    async def _next_of_beginning(self) -> bytes | None:
        try:
            return await self.next(None)
        except ErrorChunkError as error:
            raise self._reported(error.payload) from error

    async def _read(self) -> None:
        """Until there is an event, or the end."""
        while not self._ready and not self._ended:
            try:
                data, self._head = self._head or await anext(self._chunks), b""
                events = self._decoder.feed(data)
            except StopAsyncIteration:
                self._ended = True
                events = self._decoder.close()
            self._ready += [event for event in events if event.event != "ping"]

    def _reported(self, payload: Any) -> AttemptFailedError:
        """An error that the provider reports inside its stream."""
        return fault_failure(self._deployment, _fault(self._deployment, self._response, payload))

    async def aclose(self) -> None:
        """Gives the connection back, or drops it where the answer has not been read to its end."""
        await self._response.aclose()


async def _events_of(deployment: Deployment, response: httpx.Response) -> EventStream:
    """The events of a 200 for which a stream was asked. Its first bytes tell what it is, and not its content type: some
    who stand between the provider and us answer with JSON, whole, or give a stream another type.

    Raises :class:`AttemptFailedError`.
    """
    content_type = response.headers.get("content-type", "").lower()
    chunks = response.aiter_bytes()
    head = b""
    while not (beginning := _beginning(head)) and (chunk := await anext(chunks, None)) is not None:
        head += chunk
    if beginning.startswith((b"{", b"[")):
        payload = _json_of(head + b"".join([chunk async for chunk in chunks]))
        if canonical.is_error(payload) or (isinstance(payload, list) and payload):
            raise fault_failure(deployment, _fault(deployment, response, payload))
        if not _is_answer(payload):
            raise _no_answer(deployment, response, payload, "its answer is neither a stream nor a chat completion")
        head = encode_event(compact_json(payload)) + DONE
    elif not content_type.startswith("text/event-stream") and (
        not _is_event_stream(beginning) or "html" in content_type
    ):
        raise protocol_failure(deployment, "its stream is not an event stream")
    return EventStream(deployment, response, chunks, head)


def _assembled(deployment: Deployment, response: httpx.Response, *, choices: int) -> dict[str, Any]:
    """The answer that a stream holds which came where JSON was asked for.

    Raises :class:`AttemptFailedError`.
    """
    dialect = dialects.for_name(deployment.at.dialect)
    try:
        return assembled(response.content, dialect, choices=choices)
    except ErrorChunkError as error:
        raise fault_failure(deployment, _fault(deployment, response, error.payload)) from error
    except (InvalidChunkError, EventTooLargeError) as error:
        raise protocol_failure(deployment, "its answer is a stream, and not a whole one") from error


def _beginning(content: bytes) -> bytes:
    """A body without the blanks in front of it."""
    return content.lstrip(b"\xef\xbb\xbf \t\r\n")


def _is_event_stream(beginning: bytes) -> bool:
    return beginning.startswith((b"data:", b"event:", b"id:", b"retry:", b":"))


def _no_answer(deployment: Deployment, response: httpx.Response, payload: Any, what: str) -> AttemptFailedError:
    """A 200 that is no answer: an error in a form of its own, if it says one that is known, or garbage."""
    if reports_error(payload) and (fault := _fault(deployment, response, payload)).is_known:
        return fault_failure(deployment, fault)
    return protocol_failure(deployment, what)


def _fault(deployment: Deployment, response: httpx.Response, payload: Any) -> ProviderFault:
    """What an error means; where the call succeeded, it came inside the answer."""
    error = dialects.for_name(deployment.at.dialect).error(response.status_code, response.headers, payload)
    return judge(error, sent=response.request.content)


def _says_something(chunk: dict[str, Any]) -> bool:
    """Whether a chunk holds a token."""
    return any(any(value for key, value in delta.items() if key != "role") for delta in _deltas(chunk))


def _names_an_end(chunk: dict[str, Any]) -> bool:
    """Whether a chunk holds the reason why no more will come."""
    choices = chunk.get("choices")
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and canonical.is_end(choice.get("finish_reason")) for choice in choices
    )


def _deltas(chunk: dict[str, Any]) -> list[dict[str, Any]]:
    choices = chunk.get("choices")
    if not isinstance(choices, list):
        return []
    whole = {**chunk, "choices": [choice for choice in choices if isinstance(choice, dict)]}
    deltas = [choice.get("delta") for choice in canonical.as_chunk(whole)["choices"]]
    return [delta for delta in deltas if isinstance(delta, dict)]


def _json_of(content: bytes) -> Any:
    try:
        return read_json(content)
    except (ValueError, RecursionError):
        return content.decode("utf-8", "replace")


def _is_answer(payload: Any) -> bool:
    """Whether every choice carries a message and says why it ended: a truncated or foreign body does not."""
    choices = payload.get("choices") if isinstance(payload, dict) else None
    return isinstance(choices, list) and bool(choices) and all(canonical.is_whole(choice) for choice in choices)
