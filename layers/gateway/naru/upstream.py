"""One call to a provider, and what its failure means.

Whether a call may be repeated is decided by one question: *could the provider have billed it?* What surely was not
billed may go to the same deployment again; what may have been goes elsewhere or nowhere.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from naru import dialects
from naru.catalog import Deployment
from naru.dialects import ProviderFault
from naru.errors import (
    NaruError,
    ProviderRejectedError,
    StoreUnavailableError,
    UpstreamMisconfiguredError,
    UpstreamProtocolError,
    UpstreamRateLimitedError,
    UpstreamRefusedKeyError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
)
from naru.provider_keys import ProviderKeys
from naru.sse import Decoder, Event, EventTooLargeError
from naru.wire import compact_json

Again = Literal["same", "elsewhere", "never"]


@dataclass(eq=False)
class AttemptFailedError(Exception):
    """A call that brought no answer.

    ``result`` is its short name in the ledger, ``error`` what the client is told if nothing else can be tried,
    ``again`` where a repetition is allowed.
    """

    result: str
    error: NaruError
    again: Again
    maybe_billed: bool = False
    retry_after_s: float | None = None


def new_http_client(*, max_connections: int = 100) -> httpx.AsyncClient:
    """A client for all providers. One per execution environment, so that connections are reused."""
    return httpx.AsyncClient(
        limits=httpx.Limits(max_connections=max_connections, keepalive_expiry=60.0),
        follow_redirects=False,  # a redirect would carry the provider's key to somewhere the catalog does not name
        trust_env=True,
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
            raise _transport_failure(deployment, error) from error
        payload = _json_of(response.content)
        if response.status_code != httpx.codes.OK:
            raise self._status_failure(deployment, response, payload)
        dialect = dialects.for_name(deployment.at.dialect)
        if isinstance(payload, dict) and payload.get("error"):
            raise _fault_failure(deployment, dialect.error(200, response.headers, payload))
        if not _is_answer(payload):
            raise _protocol_failure(deployment, "its answer is not a chat completion")
        return dialect.answer(payload)

    async def stream(
        self, deployment: Deployment, body: Mapping[str, Any], *, request_id: str, deadline_s: float
    ) -> EventStream:
        """The events of a streamed answer, once the first of them has arrived.

        Raises :class:`AttemptFailedError`.
        """
        timeouts = deployment.at.timeouts
        first_byte_s = min(timeouts.first_byte_s, deadline_s)
        request = await self._request(deployment, body, request_id=request_id, read_timeout_s=first_byte_s)
        response = None
        try:
            async with asyncio.timeout(first_byte_s + timeouts.connect_s):
                response = await self._client.send(request, stream=True)
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                    raise self._status_failure(deployment, response, _json_of(response.content))
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise await _not_a_stream(deployment, response)
            events = EventStream(deployment, response)
            await events.peek(first_byte_s)
        except (TimeoutError, httpx.HTTPError) as error:
            if response is not None:
                await response.aclose()
            raise _transport_failure(deployment, error) from error
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
                error=_refused_key(
                    deployment,
                    reason="there is no key",
                    advice=f"Put the field {provider.secret!r} into the secret {self._keys.secret_id}: "
                    + _how_to_set(self._keys.secret_id, provider.secret),
                ),
                again="elsewhere",
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
                connect=provider.timeouts.connect_s, read=read_timeout_s, write=30.0, pool=provider.timeouts.connect_s
            ),
        )

    def _status_failure(self, deployment: Deployment, response: httpx.Response, payload: Any) -> AttemptFailedError:
        """What an answer other than 200 means."""
        fault = dialects.for_name(deployment.at.dialect).error(response.status_code, response.headers, payload)
        if fault.kind == "key":
            self._keys.distrust()
            return AttemptFailedError(
                result=str(response.status_code),
                error=_refused_key(
                    deployment,
                    reason=f"the provider refused its key with {response.status_code}: {fault.message}",
                    advice=f"Check the field {deployment.at.secret!r} of the secret {self._keys.secret_id}: "
                    + _how_to_set(self._keys.secret_id, deployment.at.secret),
                ),
                again="elsewhere",
            )
        return _fault_failure(deployment, fault, status=response.status_code)


class EventStream:
    """The events of one streamed answer."""

    def __init__(self, deployment: Deployment, response: httpx.Response) -> None:
        self._deployment = deployment
        self._response = response
        self._chunks: AsyncIterator[bytes] = response.aiter_bytes()
        self._decoder = Decoder()
        self._ready: list[Event] = []
        self._ended = False

    async def peek(self, timeout_s: float) -> None:
        """Waits for the first event, and fails if it is an error: nothing has been said to the client yet."""
        first = await self.next(timeout_s)
        if first is None:
            raise _protocol_failure(self._deployment, "its stream ended before it began")
        if (payload := _json_of(first)) and isinstance(payload, dict) and payload.get("error"):
            raise self._reported(payload)
        self._ready.insert(0, Event(first))

    @property
    def silence_s(self) -> float:
        """How long the provider may say nothing between two events."""
        return self._deployment.at.timeouts.silence_s

    async def next(self, timeout_s: float) -> bytes | None:
        """The data of the next event; None at the end.

        Raises :class:`AttemptFailedError` when nothing comes within ``timeout_s`` or the stream breaks.
        """
        try:
            while True:
                while self._ready:
                    event = self._ready.pop(0)
                    if event.event == "error":
                        raise self._reported(_json_of(event.data))
                    if event.event != "ping":
                        return event.data
                if self._ended:
                    return None
                try:
                    async with asyncio.timeout(timeout_s):
                        chunk = await anext(self._chunks)
                except StopAsyncIteration:
                    self._ended = True
                    self._ready += self._decoder.close()
                else:
                    self._ready += self._decoder.feed(chunk)
        except (TimeoutError, httpx.HTTPError, httpx.StreamError) as error:
            raise _transport_failure(self._deployment, error) from error
        except EventTooLargeError as error:
            raise _protocol_failure(self._deployment, "one event of its stream is too large") from error

    def _reported(self, payload: Any) -> AttemptFailedError:
        """An error that the provider reports inside its stream."""
        dialect = dialects.for_name(self._deployment.at.dialect)
        return _fault_failure(self._deployment, dialect.error(httpx.codes.OK, {}, payload))

    async def aclose(self) -> None:
        """Gives the connection back, or drops it where the answer has not been read to its end."""
        await self._response.aclose()


def _transport_failure(deployment: Deployment, error: Exception) -> AttemptFailedError:
    match error:
        case httpx.ConnectTimeout() | httpx.PoolTimeout() | httpx.ConnectError() | httpx.WriteError():
            # Nothing, or not all of it, was sent: there is nothing that could be billed.
            return AttemptFailedError(
                result="connect",
                error=UpstreamUnavailableError(
                    f"The provider of {deployment.name} cannot be reached at the moment. Try again later.",
                    log={"reason": f"{type(error).__name__}: {error}"},
                ),
                again="same",
            )
        case TimeoutError() | httpx.TimeoutException():
            return AttemptFailedError(
                result="timeout",
                error=UpstreamTimeoutError(
                    f"The provider of {deployment.name} did not answer in time. Ask for fewer tokens, or stream.",
                    log={"reason": type(error).__name__},
                ),
                again="elsewhere",
                maybe_billed=True,
            )
        case httpx.UnsupportedProtocol() | httpx.LocalProtocolError() | httpx.ProxyError():
            return AttemptFailedError(
                result="misconfigured",
                error=UpstreamMisconfiguredError(
                    f"The gateway cannot call the provider of {deployment.name}. Tell the operator.",
                    log={"reason": f"{type(error).__name__}: {error}", "advice": "Check base_url in the catalog."},
                ),
                again="elsewhere",
            )
        case _:
            return AttemptFailedError(
                result="reset",
                error=UpstreamUnavailableError(
                    f"The provider of {deployment.name} broke the connection. Try again later.",
                    log={"reason": f"{type(error).__name__}: {error}"},
                ),
                again="elsewhere",
                maybe_billed=True,
            )


def _fault_failure(deployment: Deployment, fault: ProviderFault, *, status: int = 200) -> AttemptFailedError:
    # An error inside a 200 comes from a provider that had accepted the request, and may have begun to count.
    maybe_billed = status in {200, 504}
    result = str(status) if status != httpx.codes.OK else f"200 {fault.kind}"
    again: Again
    error: NaruError
    match fault.kind:
        case "parameter" | "context_length" | "content_filter" | "other" if 400 <= status < 500 or status == 200:
            shown = max(status, 400)
            error = ProviderRejectedError(fault.message, status=shown, param=fault.param, code=fault.code)
            return AttemptFailedError(result, error, "never")
        case "not_found":
            error = UpstreamMisconfiguredError(
                f"The provider of {deployment.name} does not know this model. Tell the operator.",
                log={"reason": fault.message, "advice": "Check upstream_model and base_url in the catalog."},
            )
            again = "elsewhere"
        case "quota":
            error = UpstreamUnavailableError(
                f"The gateway's account with the provider of {deployment.name} has no credit left. Tell the operator.",
                code="upstream_quota_exhausted",
                log={"reason": fault.message, "advice": "Top up the account with the provider."},
            )
            again = "elsewhere"
        case "rate_limited" | "overloaded":
            kind = UpstreamRateLimitedError if status == httpx.codes.TOO_MANY_REQUESTS else UpstreamUnavailableError
            error = kind(
                f"The provider of {deployment.name} is at its limit, and was when it was asked again. Try again later.",
                retry_after_s=fault.retry_after_s,
                log={"reason": fault.message},
            )
            again, maybe_billed = "same", False
        case "timeout":
            error = UpstreamTimeoutError(
                f"The provider of {deployment.name} did not finish in time. Ask for fewer tokens, or stream.",
                log={"reason": fault.message},
            )
            again, maybe_billed = "elsewhere", True
        case "key":
            # Inside a 200: the secret was not distrusted, but the operator must hear of it all the same.
            error = _refused_key(deployment, reason=fault.message, advice=f"Check the field {deployment.at.secret!r}.")
            again = "elsewhere"
        case _ if status < 400 and status != httpx.codes.OK:
            error = UpstreamMisconfiguredError(
                f"The provider of {deployment.name} answered with {status}. Tell the operator.",
                log={
                    "reason": f"status {status}",
                    "advice": "Check base_url in the catalog: redirects are not followed.",
                },
            )
            again = "elsewhere"
        case _:
            error = UpstreamUnavailableError(
                f"The provider of {deployment.name} has trouble of its own. Try again later.",
                retry_after_s=fault.retry_after_s,
                log={"reason": fault.message},
            )
            again = "elsewhere" if maybe_billed else "same"
    return AttemptFailedError(result, error, again, maybe_billed=maybe_billed, retry_after_s=fault.retry_after_s)


def _protocol_failure(deployment: Deployment, what: str) -> AttemptFailedError:
    return AttemptFailedError(
        result="invalid_answer",
        error=UpstreamProtocolError(
            f"The provider of {deployment.name} sent something that is not an answer. Try again later.",
            log={"reason": what},
        ),
        again="elsewhere",
        maybe_billed=True,
    )


async def _not_a_stream(deployment: Deployment, response: httpx.Response) -> AttemptFailedError:
    """A 200 of another content type: an error in JSON, or a page of some proxy."""
    async with asyncio.timeout(deployment.at.timeouts.silence_s):
        payload = _json_of(await response.aread())
    if isinstance(payload, dict) and payload.get("error"):
        return _fault_failure(
            deployment, dialects.for_name(deployment.at.dialect).error(200, response.headers, payload)
        )
    return _protocol_failure(deployment, f"its stream is {response.headers.get('content-type', 'of no type')!r:.100}")


def _refused_key(deployment: Deployment, *, reason: str, advice: str) -> UpstreamRefusedKeyError:
    return UpstreamRefusedKeyError(
        f"The gateway cannot open the provider of {deployment.name}: its own provider key is missing or refused. "
        "Your API key is fine. Tell the operator.",
        log={"reason": reason, "advice": advice},
    )


def _how_to_set(secret_id: str, field: str) -> str:
    return (
        f"aws secretsmanager put-secret-value --secret-id {secret_id} "
        f'--secret-string \'{{"{field}":"…"}}\' (with the other fields it holds); it is read again within seconds.'
    )


def _json_of(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return content.decode("utf-8", "replace")


def _is_answer(payload: Any) -> bool:
    """Whether every choice carries a message: a truncated or foreign body does not."""
    choices = payload.get("choices") if isinstance(payload, dict) else None
    return (
        isinstance(choices, list)
        and bool(choices)
        and all(isinstance(choice, dict) and isinstance(choice.get("message"), dict) for choice in choices)
    )
