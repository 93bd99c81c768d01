"""One line of a batch: from the claim to the stored result, and what its failures mean.

A failure of the line itself is its result. Everything else, a provider at its limit, a limit of the key, a store that
does not answer, lets the line wait for another try, so that nothing is dropped; what may have been paid for counts its
tries.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from naru import wire
from naru.batch_input import parse_line
from naru.batch_progress import LineResult, LineState, Progress
from naru.batch_reader import result_name
from naru.batch_results import MAX_ENTRY_BYTES, answered, gave_up, refused
from naru.batch_store import Batch
from naru.completions import Call, Completions
from naru.errors import (
    AuthenticationError,
    InvalidRequestError,
    NaruError,
    PermissionDeniedError,
    ProviderRejectedError,
    QuotaExceededError,
    RateLimitedError,
    StoreUnavailableError,
    UpstreamError,
)
from naru.keys import Proven
from naru.objects import Objects
from naru.request_ids import new_request_id

logger = logging.getLogger(__name__)

MAX_TRIES = 12
MAX_LOSSES = 5
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 300.0
_STORE_TRIES = 6
_OPERATOR_WAIT_S = 60.0
_LOAD_WAIT_S = 5.0


@dataclass(slots=True)
class Line:
    """A request of a batch, as it lies in the input, and what is known of it."""

    content: bytes
    state: LineState
    ready_s: float = 0.0
    """When it may be tried (monotonic clock)."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a try.

    ``stored``: there is a result. ``later``: try again after ``wait_s``. ``limited``: the key is at a limit per minute,
    and no line of it is to begin before ``wait_s``. ``spent``: there is no budget for it. ``barred``: the key may do
    nothing any more. ``overloaded`` says that the provider had too much to do.
    """

    end: Literal["stored", "later", "limited", "spent", "barred"]
    wait_s: float = 0.0
    overloaded: bool = False
    completed: bool = False
    headers: dict[str, str] | None = None


class Lines:
    """Runs lines, for one worker."""

    def __init__(
        self, completions: Completions, progress: Progress, objects: Objects, *, rng: random.Random | None = None
    ) -> None:
        self._completions = completions
        self._progress = progress
        self._objects = objects
        self._rng = rng or random.SystemRandom()

    async def run(self, batch: Batch, line: Line, *, worker: str, patience_s: Callable[[], float]) -> Ran:
        """Tries a line once. Whatever happens, it is either stored, or put back so that the next one finds it free.

        Raises :class:`~naru.errors.StoreUnavailableError` where a result could not be stored: it may be lost then.
        """
        request_id = new_request_id(at_ms=time.time_ns() // 10**6)
        line.state = _taken_over(batch, line.state, worker, request_id)
        try:
            if not await asyncio.to_thread(
                self._progress.claim_line, batch, line.state, worker=worker, request_id=request_id
            ):
                return Ran("stored")  # by one who was thought dead
        except StoreUnavailableError as error:
            logger.warning("line not claimed", extra={"batch_id": batch.batch_id, **error.log})
            return Ran("later", 2.0)
        line.state = replace(line.state, worker=worker, request_id=request_id)
        custom_id = parse_line(line.content).custom_id
        if line.state.losses > MAX_LOSSES:
            result = gave_up(batch.batch_id, line.state.index, custom_id, "worker_died")
            return await self._store(batch, line, request_id, result)
        try:
            return await self._answer(batch, line, custom_id, request_id, patience_s())
        except NaruError as error:
            return await self._failed(batch, line, custom_id, request_id, error)
        except Exception as error:
            logger.exception("line failed unexpectedly", extra={"batch_id": batch.batch_id, "request_id": request_id})
            return await self._failed(batch, line, custom_id, request_id, _defect(error))

    async def _answer(self, batch: Batch, line: Line, custom_id: str, request_id: str, patience_s: float) -> Ran:
        body = parse_line(line.content).body
        if body.get("stream"):
            raise InvalidRequestError("A request of a batch cannot be streamed: leave 'stream' out.", param="stream")
        # As it was written, with what is no JSON and no text: who sends it by itself is refused, and told why.
        content = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
        call = Call(request_id, Proven(batch.key_id), content, patience_s, batch_id=batch.batch_id)
        answer = await self._completions.create(call)
        assert isinstance(answer.body, bytes)  # noqa: S101 - nothing is streamed
        usage = wire.parse_usage(json.loads(answer.body).get("usage"))
        assert usage is not None  # noqa: S101 - the use case puts it there
        result = answered(
            batch.batch_id, line.state.index, custom_id, request_id=request_id, body=answer.body, usage=usage
        )
        ran = await self._store(batch, line, request_id, result)
        return replace(ran, headers=dict(answer.headers), overloaded=answer.headers.get("x-naru-attempts", "1") != "1")

    async def _failed(self, batch: Batch, line: Line, custom_id: str, request_id: str, error: NaruError) -> Ran:
        match error:
            case QuotaExceededError():
                return await self._later(batch, line, Ran("spent"))
            case RateLimitedError(should_retry=None):
                return await self._later(batch, line, Ran("limited", error.retry_after_s or 1.0))
            case AuthenticationError() | PermissionDeniedError(code="api_key_disabled"):
                return await self._later(batch, line, Ran("barred"))
            case StoreUnavailableError():
                return await self._later(batch, line, Ran("later", self._rng.uniform(1, 3)))
            case UpstreamError(should_retry=True):
                # Nobody was called: the provider is left alone for a moment.
                return await self._later(batch, line, Ran("later", error.retry_after_s or 1.0, overloaded=True))
            case NaruError(waits_for="operator" | "load"):
                return await self._later(batch, line, self._waiting(error))
            case UpstreamError() | NaruError(code="internal_error") if line.state.tries + 1 < MAX_TRIES:
                tries = line.state.tries + 1
                line.state = replace(line.state, tries=tries)
                wait_s = self._rng.uniform(0.5, 1) * min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** (tries - 1))
                return await self._later(
                    batch, line, Ran("later", max(wait_s, error.retry_after_s or 0), overloaded=True)
                )
            case _:
                if not isinstance(error, InvalidRequestError | ProviderRejectedError | RateLimitedError):
                    facts = {"batch_id": batch.batch_id, "request_id": request_id, "code": error.code, **error.log}
                    logger.error("line given up", extra=facts)
                result = refused(batch.batch_id, line.state.index, custom_id, request_id=request_id, error=error)
                return await self._store(batch, line, request_id, result)

    def _waiting(self, error: NaruError) -> Ran:
        """A provider that nothing can be had from now: the batch waits as long as it has time."""
        if error.waits_for == "operator":
            # No other line would fare better.
            return Ran("limited", self._rng.uniform(0.5, 1) * _OPERATOR_WAIT_S)
        return Ran("later", max(error.retry_after_s or 0.0, self._rng.uniform(0.5, 1) * _LOAD_WAIT_S), overloaded=True)

    async def _later(self, batch: Batch, line: Line, ran: Ran) -> Ran:
        """Puts a line back. If that fails it looks like one whose caller died, which it may as well be."""
        try:
            await asyncio.to_thread(self._progress.put_back, batch.batch_id, line.state)
            line.state = replace(line.state, worker=None)
        except StoreUnavailableError as error:
            logger.warning("line not put back", extra={"batch_id": batch.batch_id, **error.log})
        return ran

    async def _store(self, batch: Batch, line: Line, request_id: str, result: LineResult) -> Ran:
        name = None
        if len(result.content) > MAX_ENTRY_BYTES:
            name = result_name(batch, line.state.index, request_id)
        for attempt in range(_STORE_TRIES):
            try:
                if name is not None:
                    await asyncio.to_thread(self._objects.put, name, result.content)
                stored = await asyncio.to_thread(
                    self._progress.store,
                    batch,
                    line.state.index,
                    request_id=request_id,
                    result=result,
                    object_name=name,
                )
                break
            except StoreUnavailableError:
                # It is paid for, so it is worth some waiting.
                if attempt == _STORE_TRIES - 1:
                    raise
                await asyncio.sleep(self._rng.uniform(0, 2.0**attempt))
        if not stored:
            facts = {"batch_id": batch.batch_id, "line": line.state.index, "request_id": request_id}
            logger.warning("line answered twice: the first result stands", extra=facts)
        return Ran("stored", completed=result.completed)


def _taken_over(batch: Batch, state: LineState, worker: str, request_id: str) -> LineState:
    """What is known of a line, once more losses if its last caller has not put it back."""
    if state.worker is None or state.worker == worker:
        return state
    facts = {
        "batch_id": batch.batch_id,
        "line": state.index,
        "lost_request_id": state.request_id,
        "request_id": request_id,
    }
    # The lost one has a lease or a row of its own, so if the provider bills it, the ledger says for what.
    logger.warning("line run again: whoever ran it died", extra=facts)
    return replace(state, losses=state.losses + 1)


def _defect(error: Exception) -> NaruError:
    return NaruError(
        "Something went wrong in the gateway. Give the operator the request id of this line.",
        code="internal_error",
        log={"reason": repr(error)},
    )
