"""One line of a batch: from the claim to the stored result, and what its failures mean.

A failure of the line itself is its result. Everything else, a provider at its limit, a limit of the key, a budget that
requests in flight hold, trouble that only the operator can end, a store that does not answer, lets the line wait for
another try, so that nothing is dropped; what may have been paid for counts its tries.
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

from naru.batch_input import LineError, Request, parse_line
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
from naru.provider_usage import read_usage
from naru.request_ids import new_request_id

logger = logging.getLogger(__name__)

MAX_TRIES = 12
MAX_LOSSES = 5
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 300.0
_STORE_TRIES = 6
OPERATOR_WAIT_S = 30.0
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
    and no line of it is to begin before ``wait_s``. ``short``: there is no budget for it now, and may be after
    ``wait_s``. ``blocked``: no line can be answered before the operator has done something. ``barred``: the key may do
    nothing any more. ``claimed``: another run has it. ``overloaded`` says that the provider had too much to do.
    """

    end: Literal["stored", "later", "limited", "short", "blocked", "barred", "claimed"]
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

        ``worker`` is the run that the line's range belongs to. ``patience_s`` is how long a call may take that begins
        now; 0 where none may, because the range may be another's by now. It is asked again before every call.

        Raises :class:`~naru.errors.StoreUnavailableError` where a result could not be stored: it may be lost then.
        """
        request_id = new_request_id(at_ms=time.time_ns() // 10**6)
        line.state = _taken_over(batch, line.state, worker, request_id)
        try:
            if not await asyncio.to_thread(
                self._progress.claim_line, batch, line.state, worker=worker, request_id=request_id
            ):
                return await self._another_has_it(batch, line)
        except StoreUnavailableError as error:
            logger.warning("line not claimed", extra={"batch_id": batch.batch_id, **error.log})
            return Ran("later", 2.0)
        line.state = replace(line.state, worker=worker, request_id=request_id)
        if (request := _request_of(batch, line)) is None:
            return await self._give_up(batch, line, request_id, None, "input_unreadable")
        if line.state.losses > MAX_LOSSES:
            return await self._give_up(batch, line, request_id, request.custom_id, "worker_died")
        if patience_s() <= 0:
            return await self._later(batch, line, Ran("later"))
        try:
            return await self._answer(batch, line, request, request_id, patience_s)
        except NaruError as error:
            return await self._failed(batch, line, request.custom_id, request_id, error)
        except Exception as error:
            logger.exception("line failed unexpectedly", extra={"batch_id": batch.batch_id, "request_id": request_id})
            return await self._failed(batch, line, request.custom_id, request_id, _defect(error))

    async def _another_has_it(self, batch: Batch, line: Line) -> Ran:
        """A run that was thought dead has stored a result, or has claimed the line after this run had looked."""
        try:
            line.state = await asyncio.to_thread(self._progress.line_state, batch.batch_id, line.state.index)
        except StoreUnavailableError as error:
            logger.warning("line not read", extra={"batch_id": batch.batch_id, **error.log})
            return Ran("later", 2.0)
        if line.state.outcome is not None:
            return Ran("stored", completed=line.state.outcome == "completed")
        return Ran("later" if line.state.worker is None else "claimed")

    async def _answer(
        self, batch: Batch, line: Line, request: Request, request_id: str, patience_s: Callable[[], float]
    ) -> Ran:
        body = request.body
        if body.get("stream"):
            raise InvalidRequestError("A request of a batch cannot be streamed: leave 'stream' out.", param="stream")
        # As it was written, with what is no JSON and no text: who sends it by itself is refused, and told why.
        content = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
        call = Call(
            request_id,
            Proven(batch.key_id),
            content,
            patience_s(),
            batch_id=batch.batch_id,
            may_call=lambda: patience_s() > 0,
        )
        answer = await self._completions.create(call)
        assert isinstance(answer.body, bytes)  # noqa: S101 - nothing is streamed
        reading = read_usage(json.loads(answer.body))
        assert reading is not None  # noqa: S101 - the use case puts it there
        result = answered(
            batch.batch_id,
            line.state.index,
            request.custom_id,
            request_id=request_id,
            body=answer.body,
            usage=reading.usage,
        )
        ran = await self._store(batch, line, request_id, result)
        return replace(ran, headers=dict(answer.headers), overloaded=answer.headers.get("x-naru-attempts", "1") != "1")

    async def _failed(self, batch: Batch, line: Line, custom_id: str, request_id: str, error: NaruError) -> Ran:
        if (ran := self._to_wait(batch, line, error)) is not None:
            return await self._later(batch, line, ran)
        if isinstance(error, QuotaExceededError):
            return await self._give_up(batch, line, request_id, custom_id, "insufficient_quota")
        if not isinstance(error, InvalidRequestError | ProviderRejectedError | RateLimitedError):
            facts = {"batch_id": batch.batch_id, "request_id": request_id, "code": error.code, **error.log}
            logger.error("line given up", extra=facts)
        result = refused(batch.batch_id, line.state.index, custom_id, request_id=request_id, error=error)
        return await self._store(batch, line, request_id, result)

    def _to_wait(self, batch: Batch, line: Line, error: NaruError) -> Ran | None:
        """How a line waits after an error; None if the error is its result."""
        ran: Ran | None = None
        match error:
            case QuotaExceededError(retry_after_s=float(wait_s)) if time.time() + wait_s < batch.deadline_s:
                # Requests in flight may give back what is missing, or a month begins before the batch must have ended.
                ran = Ran("short", min(wait_s, _LONGEST_WAIT_S))
            case RateLimitedError(should_retry=None):
                ran = Ran("limited", error.retry_after_s or 1.0)
            case AuthenticationError() | PermissionDeniedError(code="api_key_disabled"):
                ran = Ran("barred")
            case StoreUnavailableError():
                ran = Ran("later", self._rng.uniform(1, 3))
            case NaruError(waits_for="operator"):
                ran = Ran("blocked", OPERATOR_WAIT_S)
            case UpstreamError(should_retry=True):
                # Nobody was called: the provider is left alone for a moment.
                ran = Ran("later", error.retry_after_s or 1.0, overloaded=True)
            case NaruError(waits_for="load"):
                # Nothing is to be had from any provider now, and nothing was billed.
                wait_s = self._rng.uniform(0.5, 1) * _LOAD_WAIT_S
                ran = Ran("later", max(error.retry_after_s or 0.0, wait_s), overloaded=True)
            case UpstreamError() | NaruError(code="internal_error") if line.state.tries + 1 < MAX_TRIES:
                tries = line.state.tries + 1
                line.state = replace(line.state, tries=tries)
                wait_s = self._rng.uniform(0.5, 1) * min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** (tries - 1))
                ran = Ran("later", max(wait_s, error.retry_after_s or 0), overloaded=True)
        return ran

    async def _give_up(self, batch: Batch, line: Line, request_id: str, custom_id: str | None, code: str) -> Ran:
        """Ends a line that is not called for."""
        return await self._store(batch, line, request_id, gave_up(batch.batch_id, line.state.index, custom_id, code))

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
            logger.warning("line has a result already: the first one stands", extra=facts)
        return Ran("stored", completed=result.completed)


def _request_of(batch: Batch, line: Line) -> Request | None:
    """The request of a line; None where it is not what was checked: other bytes lie in its place."""
    try:
        request = parse_line(line.content)
    except LineError as error:
        code = error.code
    else:
        if request.model == batch.model:
            return request
        code = "model_mismatch"
    # Never the words of the error, which may quote the line.
    logger.error("line cannot be read", extra={"batch_id": batch.batch_id, "line": line.state.index, "code": code})
    return None


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
