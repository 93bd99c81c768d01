"""Idempotency-Key: a request that is sent again is answered again, and paid for once.

For clients on bad networks, which cannot know whether a request that broke off was served. The key belongs to one API
key and one request, byte for byte, for 24 hours::

    there is no record, or its owner died  ──▶ claim it, answer, keep the answer
    running                                ──▶ wait for its answer; after 20 s 409 ``idempotency_key_in_use``
    done                                   ──▶ the same answer again: no provider, no limit, no row
    claimed for another body               ──▶ 409 ``idempotency_key_reused``

Only success is kept: a failure, a refusal and a stream that was cut remove the claim, so the next try is a real one.

While it works, the owner says every third of a lease that it lives; one that was killed is succeeded after a lease. The
order of writes, and what a crash after each of them does to the retry:

    1  claim                     ──▶ waits for the lease to end, then answers: one call, one row
    2  call the provider         ──▶ the same, with a second call; the first one's cost is the sweeper's to charge
    3  row and meters            ──▶ the same, with a second call and a row of its own
    4  keep the answer           ──▶ is given it
    5  ``[DONE]`` to the client

After 3 the row proves that the provider has answered, but it holds no answer, nor may it. It could only serve to refuse
the retry, and a user who never gets what was paid for is worse off than one who pays for two calls, each with its row.
The gap between 3 and 4 is one write long. To close it, the answer would have to be kept before the row is written:
then a crash in between would charge the worst case for an answer whose cost was known.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import replace

from naru import sse
from naru.completions import Answer
from naru.errors import (
    IdempotencyKeyInUseError,
    IdempotencyKeyReusedError,
    InvalidRequestError,
    NaruError,
    StoreUnavailableError,
)
from naru.idempotency_records import Claim, KeptAnswer, LostAnswerError, Record, Records
from naru.meter import ApiKey, Meters

logger = logging.getLogger(__name__)

HEADER = "Idempotency-Key"

_VALUE = re.compile(r"[\x20-\x7e]{1,255}")
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
_RETRY_AFTER_S = 2.0
_PIECE_BYTES = 64 * 1024


class Idempotency:
    """Answers a request once per Idempotency-Key.

    ``lease_s`` is how long an owner that has gone silent counts as alive, ``wait_s`` how long a retry waits for it.
    ``now_ms`` is Unix milliseconds. ``pause`` waits until the event is set or the seconds are over, and says which.
    """

    def __init__(
        self,
        records: Records,
        meters: Meters,
        *,
        lease_s: float,
        wait_s: float = 20.0,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 10**6,
        pause: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        self._records = records
        self._meters = meters
        self._lease_s = lease_s
        self._wait_s = wait_s
        self._now_ms = now_ms
        self._pause = pause

    async def run(
        self,
        *,
        header: str | None,
        authorization: str | None,
        body: str | bytes | None,
        request_id: str,
        patience_s: float,
        produce: Callable[[], Awaitable[Answer]],
        key: ApiKey | None = None,
    ) -> Answer:
        """What ``produce`` answers, or has answered before; without a header it is just called.

        ``key`` is whose request it is, where that has been proven. ``patience_s`` is how long the caller lets all of it take. ``produce`` may be called after some of that has
        passed. A stream is kept when it has been drawn to ``[DONE]``, or closed: then the rest of it is drawn first.

        Raises what ``produce`` raises, :class:`~naru.errors.IdempotencyKeyReusedError`,
        :class:`~naru.errors.IdempotencyKeyInUseError`, :class:`~naru.errors.InvalidRequestError`,
        :class:`~naru.errors.StoreUnavailableError`, and what an API key that is not valid raises.
        """
        if header is None:
            return await produce()
        # Before anything is claimed, waited for or given out: an API key's id alone is no secret.
        key = key or await self._meters.authenticate(authorization)
        try:
            name = _record_name(key.key_id, header)
            claim = Claim(name, _sha256(body or b""), request_id, self._now_ms())
            claim, kept = await self._claim_or_wait(claim, min(self._wait_s, patience_s))
            if kept is None:
                return await self._own(claim, patience_s, produce)
        except NaruError as error:
            error.headers = {**key.headers, **error.headers}
            raise
        return _replayed(kept, key.headers)

    async def _claim_or_wait(self, claim: Claim, wait_s: float) -> tuple[Claim, KeptAnswer | None]:
        """An answer that has been kept, or the claim that was made; how long it takes says whether we waited."""
        give_up_s = time.monotonic() + wait_s
        pause_s = _FIRST_PAUSE_S
        found: Record | None = None
        while True:
            if found is None or found.is_free(self._now_ms()):
                claim = replace(claim, at_ms=self._now_ms())
                found = await self._records.claim(claim, until_ms=claim.at_ms + round(self._lease_s * 1000))
                if found is None:
                    return claim, None
            if found.body_hash != claim.body_hash:
                raise IdempotencyKeyReusedError(
                    f"This {HEADER} was sent before with another request body. Use a new key for each request, and the "
                    "same key with the same bytes for a retry.",
                    param=HEADER,
                )
            if found.is_done:
                if (kept := await self._kept(claim, found)) is not None:
                    return claim, kept
                found = None
                continue
            if time.monotonic() + pause_s > give_up_s:
                raise IdempotencyKeyInUseError(
                    f"A request with this {HEADER} is being answered. Send it again, with the same key, after the time in "
                    "Retry-After: you will get its answer.",
                    param=HEADER,
                    retry_after_s=_RETRY_AFTER_S,
                )
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
            found = await self._records.find(claim.name)

    async def _kept(self, claim: Claim, found: Record) -> KeptAnswer | None:
        """The answer of a record; None where it is lost, and the record with it."""
        facts = {"request_id": claim.request_id, "replayed_request_id": found.request_id}
        try:
            kept = await self._records.answer(found)
        except LostAnswerError as error:
            logger.exception("kept answer lost", extra={**facts, "reason": str(error)})
            await self._records.discard(found)
            return None
        logger.info("answer replayed", extra={**facts, "stream": kept.stream})
        headers = {**kept.headers, "x-request-id": found.request_id, "idempotency-replayed": "true"}
        return replace(kept, headers=headers)

    async def _own(self, claim: Claim, patience_s: float, produce: Callable[[], Awaitable[Answer]]) -> Answer:
        renewal = _Renewal(self._records, claim, self._lease_s, patience_s, now_ms=self._now_ms, pause=self._pause)
        try:
            answer = await produce()
        except BaseException:
            renewal.stop()
            await self._forget(claim)
            raise
        if not isinstance(answer.body, bytes):
            return replace(answer, body=self._recorded(claim, renewal, answer.body, answer.headers))
        await self._keep(claim, answer.body, answer.headers, stream=False)
        renewal.stop()
        return answer

    async def _recorded(
        self, claim: Claim, renewal: _Renewal, events: AsyncGenerator[bytes, None], headers: Mapping[str, str]
    ) -> AsyncGenerator[bytes, None]:
        """The client's stream. It is kept before the client can see the end."""
        drawn: list[bytes] = []
        complete = False

        async def draw() -> bytes | None:
            nonlocal complete
            if (event := await anext(events, None)) is not None:
                drawn.append(event)
                # By now the row is written. An error inside the stream takes the place of this event.
                if event.endswith(sse.DONE):
                    complete = True
                    await self._keep(claim, b"".join(drawn), headers, stream=True)
            return event

        try:
            try:
                while (event := await draw()) is not None:
                    yield event
            except GeneratorExit:
                # Nobody draws any more, but who has gone will ask again.
                while await draw() is not None:
                    pass
                raise
        finally:
            renewal.stop()
            await events.aclose()
            if not complete:
                await self._forget(claim)

    async def _keep(self, claim: Claim, body: bytes, headers: Mapping[str, str], *, stream: bool) -> None:
        """Never raises: the answer is there and paid for."""
        # The limits are the key's at the time, so a retry is told them anew.
        lasting = {name: value for name, value in headers.items() if not name.lower().startswith("x-ratelimit-")}
        facts = {"request_id": claim.request_id}
        try:
            if not await self._records.complete(claim, KeptAnswer(body, stream, lasting)):
                # Thought dead, and succeeded: the other one's answer stands, and each has its row.
                logger.warning("idempotency record taken over", extra=facts)
        except StoreUnavailableError as error:
            logger.exception("answer not kept", extra={**facts, **error.log})
        except Exception:
            logger.exception("answer not kept", extra=facts)

    async def _forget(self, claim: Claim) -> None:
        try:
            await self._records.forget(claim)
        except StoreUnavailableError as error:
            # The retry has to wait for the lease to end.
            logger.warning("idempotency record not removed", extra={"request_id": claim.request_id, **error.log})


class _Renewal:
    """Says every third of a lease that the owner lives, until it is stopped.

    In a thread, since nothing else runs all the time: a reasoning model's first token is waited for longer than a
    lease, and between two events of a stream the loop stands still while the runtime sends, as slowly as the client
    reads. The owner's ``patience_s`` ends it in any case; that is measured on the wall clock, which goes on while
    Lambda freezes the process.
    """

    def __init__(
        self,
        records: Records,
        claim: Claim,
        lease_s: float,
        patience_s: float,
        *,
        now_ms: Callable[[], int],
        pause: Callable[[threading.Event, float], bool],
    ) -> None:
        self._records = records
        self._claim = claim
        self._lease_s = lease_s
        self._now_ms = now_ms
        self._pause = pause
        self._give_up_ms = now_ms() + patience_s * 1000
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="idempotency-renewal", daemon=True).start()

    def stop(self) -> None:
        """No renewal begins after this."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._pause(self._stopped, self._lease_s / 3) and (now_ms := self._now_ms()) < self._give_up_ms:
            try:
                if not self._records.renew(self._claim, until_ms=now_ms + round(self._lease_s * 1000)):
                    return
            except StoreUnavailableError as error:
                facts = {"request_id": self._claim.request_id, **error.log}
                logger.warning("idempotency record not renewed", extra=facts)


def _record_name(key_id: str, header: str) -> str:
    if not _VALUE.fullmatch(header):
        raise InvalidRequestError(
            f"The header {HEADER} must be 1 to 255 printable ASCII characters, such as a UUID.", param=HEADER
        )
    return f"{key_id}#{_sha256(header)}"


def _replayed(kept: KeptAnswer, limits: Mapping[str, str]) -> Answer:
    return Answer(_pieces(kept.body) if kept.stream else kept.body, {**limits, **kept.headers})


async def _pieces(body: bytes) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(body), _PIECE_BYTES):
        yield body[start : start + _PIECE_BYTES]


def _sha256(text: str | bytes) -> str:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return hashlib.sha256(data).hexdigest()
