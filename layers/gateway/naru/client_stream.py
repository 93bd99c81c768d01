"""The stream that a client sees, whoever speaks in it.

A provider that dies in the middle of its answer is followed by another one, where that can be done truthfully: one that
goes on from the words the client has, or one that says the same words again. The client sees one answer with one id.
Where nobody can, it gets an error object in the stream and no ``[DONE]``: never a clean end of half an answer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace

from naru import dialects, sse
from naru.accounting import part_of, total
from naru.attempts import Answered, Attempts, Job
from naru.catalog import Deployment
from naru.errors import NaruError, UpstreamError, UpstreamProtocolError
from naru.failures import AttemptFailedError
from naru.faults import ProviderFault, judge
from naru.ledger import Part
from naru.pricing import Usage
from naru.relay import ChunkRelay, ErrorChunkError, InvalidChunkError, MismatchError, Overlap
from naru.routing import Stop
from naru.tokens import CompletionCounter
from naru.upstream import EventStream
from naru.wire import compact_json

logger = logging.getLogger(__name__)

_DONE = b"[DONE]"
LAST_WORDS_S = 10.0
"""For what a provider had said before the request's time was over, but the client was too slow to take."""


class ClientStream:
    """The events of one answer. ``choices`` is how many the client asked for, ``show_usage`` whether it wants to see the
    tokens, ``estimate`` what an answer has used as far as it has come.
    """

    def __init__(
        self,
        attempts: Attempts,
        job: Job,
        opened: Answered[EventStream],
        *,
        choices: int,
        show_usage: bool,
        estimate: Callable[[Stop, CompletionCounter], Usage],
    ) -> None:
        self._attempts = attempts
        self._job = job
        self._source = opened
        self._show_usage = show_usage
        self._estimate = estimate
        self._relay = ChunkRelay(
            dialects.for_name(opened.stop.deployment.at.dialect),
            CompletionCounter(opened.stop.model.tokenizer),
            choices=choices,
            show_usage=show_usage,
        )
        self._past: list[Part] = []
        """What those gave who were cut off."""
        self._asked: set[str] = set()
        """Who has been asked for the rest."""
        self._given_tokens = 0
        """Of the answer, in the prompt of the one that speaks now."""
        self._last_words_until_s: float | None = None
        """Since the client has used up the request's time: when the provider's connection is left, monotonic."""
        self._held: list[bytes] = []
        """What such a client gets when the row is written."""

    async def events(self) -> AsyncGenerator[bytes, None]:
        """What is sent, event by event. The row is written before the client can see the end."""
        account = self._job.account
        error: NaruError | None = None
        try:
            try:
                while True:
                    try:
                        while (data := await self._next()) is not None:
                            if (event := self._read(data)) is not None:
                                yield event
                                self._allow_last_words()
                        break_ = await self._break(None)
                    except _BREAKS as broken:
                        break_ = await self._break(broken)
                    if break_ is None:
                        error = None
                        break
                    error = error or break_.error
                    if not await self._go_on(break_):
                        break
            except GeneratorExit:
                # Whoever draws this has gone. The provider goes on, and bills; so hear it out.
                self._allow_last_words()
                error = await self._hear_out()
                raise
        finally:
            usage = await self._close(error)
        for event in self._held:
            yield event
        if error is not None:
            facts = {"request_id": account.subject.request_id, "code": error.recorded_code, **error.log}
            logger.warning("stream cut", extra=facts)
            yield sse.encode_error(error.body())
            return
        for ending in self._relay.endings():
            yield sse.encode_event(ending)
        if self._show_usage:
            yield sse.encode_event(self._relay.usage_chunk(usage))
        yield sse.DONE

    async def _next(self) -> bytes | None:
        events = self._source.result
        left_s = self._job.remaining_s()
        if self._last_words_until_s is not None:
            left_s = self._last_words_until_s - time.monotonic()
        data = await events.next(min(events.silence_s, max(0.0, left_s)))
        return None if data == _DONE else data

    def _read(self, data: bytes) -> bytes | None:
        """What the client gets now for an event of the provider's."""
        forwarded = self._relay.read(data)
        if self._relay.has_content:
            self._job.account.token_came()
        if forwarded is None:
            return None
        if self._last_words_until_s is not None:
            self._held.append(sse.encode_event(forwarded))
            return None
        return sse.encode_event(forwarded)

    def _allow_last_words(self) -> None:
        """If the request's time ended while the client was reading, what has come meanwhile is still read: first of all,
        so that its cost is known before the function ends.
        """
        if self._last_words_until_s is None and self._job.remaining_s() <= 0:
            self._last_words_until_s = time.monotonic() + LAST_WORDS_S

    async def _hear_out(self) -> NaruError | None:
        try:
            while (data := await self._next()) is not None:
                self._relay.read(data)
            break_ = await self._break(None)
        except _BREAKS as broken:
            break_ = await self._break(broken)
        return None if break_ is None else break_.error

    async def _break(self, broken: Exception | None) -> _Break | None:
        """What the end of a source means; None where nothing is missing."""
        if broken is None and self._relay.falls_short:
            broken = MismatchError()
        if broken is not None and not _is_silent(broken):
            self._relay.not_the_end()
        if self._relay.complete:
            # A provider that has given every finish_reason has said it all, whatever became of its last bytes.
            return None
        break_ = self._meaning(broken)
        await self._attempts.cut(self._job, self._source, result=break_.result)
        return break_

    def _meaning(self, broken: Exception | None) -> _Break:
        deployment = self._source.stop.deployment
        match broken:
            case AttemptFailedError(result="reset"):
                error = _cut(deployment)
                error.log = broken.error.log
                return _Break(error)
            case AttemptFailedError():
                return _Break(broken.error, final=broken.again == "never")
            case ErrorChunkError():
                said = dialects.for_name(deployment.at.dialect).error(200, {}, broken.payload)
                fault = judge(said, sent=compact_json(self._source.stop.body))
                return _Break(_reported(deployment, fault), final=fault.party == "request")
            case MismatchError():
                return _Break(_cut(deployment), result="mismatch")
            case _:
                return _Break(_cut(deployment))

    async def _go_on(self, break_: _Break) -> bool:
        """Finds somebody for the rest of the answer, who is then the source; the one before is done with."""
        job, relay, broken = self._job, self._relay, self._source
        if break_.final or not relay.can_go_on or job.remaining_s() <= 0:
            return False
        part = self._part(cut=True)
        spent_pico_usd = sum(past.cost_pico_usd for past in (*self._past, part))
        said = relay.text
        refused: str | None = None
        for stop, going in job.route.rest(said, self._said_tokens(part)):
            name = stop.deployment.name
            if name in self._asked and not (going == "restart" and name == refused):
                continue
            if spent_pico_usd + stop.worst_case_pico_usd > job.route.worst_case_pico_usd:
                continue  # it could cost more than was set aside
            self._asked.add(name)
            try:
                following = await self._attempts.rest(job, stop, going)
            except AttemptFailedError as failure:
                refused = name if failure.again == "never" else None
                continue
            if following is None:
                continue
            self._past.append(part)
            self._source = following
            self._given_tokens = part.usage.completion_tokens if going == "continue" else 0
            # Some providers refuse a beginning that ends in white space, so it was left out; it may be said again.
            again = said if going == "restart" else said[len(said.rstrip()) :]
            self._relay = relay.resumed(
                dialects.for_name(stop.deployment.at.dialect),
                CompletionCounter(stop.model.tokenizer),
                Overlap(again, required=going == "restart"),
            )
            await self._attempts.leave(broken)
            return True
        return False

    async def _close(self, error: NaruError | None) -> Usage:
        """The row, however the stream ended. The tokens of one that was cut are an estimate at best."""
        account, complete = self._job.account, self._relay.complete
        parts = [*self._past, self._part(cut=not complete)]
        try:
            if not complete and account.attempts[-1].result == "ok":
                await self._attempts.cut(self._job, self._source, result="interrupted")
            await self._attempts.leave(self._source)
        finally:
            # Also when the request is cancelled meanwhile.
            await account.close_parts(
                parts,
                outcome="completed" if complete else "truncated",
                source="estimated" if any(part.usage.estimated for part in parts) else "reported",
                error_code=None if complete else error.recorded_code if error else "internal_error",
            )
        return total(parts)

    def _part(self, *, cut: bool) -> Part:
        relay, stop = self._relay, self._source.stop

        def count() -> Usage:
            counted = self._estimate(stop, relay.counter)
            return replace(counted, prompt_tokens=counted.prompt_tokens + self._given_tokens)

        usage = self._job.account.charged(stop, relay.usage, count, behind=relay.usage_is_behind)
        return part_of(stop, replace(usage, estimated=True) if cut else usage)

    def _said_tokens(self, part: Part) -> int:
        return self._given_tokens + part.usage.completion_tokens


@dataclass(frozen=True, slots=True)
class _Break:
    """A source that ended too early; ``final`` if nobody else is to be asked, ``result`` for the ledger."""

    error: NaruError
    final: bool = False
    result: str = "cut"


def _is_silent(broken: Exception) -> bool:
    """Whether a stream ended without a word: the connection broke, or nothing came any more."""
    return isinstance(broken, AttemptFailedError) and broken.result in {"connect", "reset", "timeout"}


_BREAKS = (AttemptFailedError, ErrorChunkError, InvalidChunkError, MismatchError)


def _cut(deployment: Deployment) -> UpstreamProtocolError:
    return UpstreamProtocolError(
        f"The answer of {deployment.name} was cut off by its provider; what you have is not all of it. Ask again.",
        code="upstream_stream_cut",
    )


def _reported(deployment: Deployment, fault: ProviderFault) -> UpstreamError:
    # The provider's words are for the client only where they are about its own request.
    what = f": {fault.message}" if fault.party == "request" else ". Ask again."
    return UpstreamError(
        f"The provider of {deployment.name} reported an error in the middle of its answer{what}",
        code="upstream_stream_error",
        log=dict(fault.facts),
    )
