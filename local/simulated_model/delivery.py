"""How an answer gets to the client: paced, as JSON or as a stream, with the faults that were asked for."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from local.http_server import ClientGone, Request, Response
from local.simulated_model import fragments
from local.simulated_model.answers import Choice, Step
from local.simulated_model.billing import Accounts, Bill, BillRow
from local.simulated_model.config import Config, Latency
from local.simulated_model.dialects import RefusedError, error_object
from local.simulated_model.faults import Fault
from local.simulated_model.text import digest
from local.simulated_model.tokens import compact_json

_SHORT_PAUSE_S = 0.05
_FOREVER_S = 86_400.0
_MALFORMED = b'data: {"id": "chatcmpl-0", "object": "chat.completion.chu\n\n'


class _EndedByFault(Exception):  # noqa: N818 - how a fault leaves from the depths
    """The answer is over, and the connection is as the fault wants it."""


@dataclass(frozen=True)
class Order:
    """All that decides an answer before its first token."""

    row: BillRow
    body: dict[str, Any]
    choices: list[Choice]
    faults: Mapping[str, Fault]
    latency: Latency


class Delivery:
    """One answer on its way.

    The head of a stream goes out at once, its first token after the time to the first token; JSON goes out whole when
    its last token would. The bill is written, and `ended` called (at least once), before the bytes that end the answer.
    A client that leaves stops the generation.
    """

    def __init__(
        self,
        order: Order,
        *,
        request: Request,
        response: Response,
        accounts: Accounts,
        config: Config,
        rng: random.Random,
        ended: Callable[[], None],
    ) -> None:
        self._order = order
        self._row, self._body, self._faults = order.row, order.body, order.faults
        self._request, self._response = request, response
        self._accounts = accounts
        self._bill = Bill(accounts, order.row)
        self._ended = ended
        self._config = config
        self._rng = rng
        self._started_at = time.monotonic()
        self._sent_tokens = 0
        self._streams = order.row["stream"] != ("other_form" in order.faults)
        seed = order.body.get("seed")
        self._envelope = {
            "id": order.row["id"],
            "object": "chat.completion.chunk" if self._streams else "chat.completion",
            "created": int(time.time()),
            "model": order.row["model"],
            "system_fingerprint": None if seed is None else f"fp_{digest(seed):024x}"[:13],
        }
        asked = (order.body.get("stream_options") or {}).get("include_usage")
        self._usage_asked = (bool(asked) or not order.row["stream"]) and "usage_missing" not in self._faults

    async def run(self) -> None:
        """Deliver the answer. Raises ClientGone."""
        if fault := self._faults.get("silence"):
            await self._pause(_FOREVER_S if fault.seconds is None else fault.seconds)
        if fault := self._faults.get("reset_before_headers"):
            await self._pause(fault.after_ms / 1000)
            if fault.tokens:
                self._bill.generated(fault.tokens)
                self._close(finished=False)
            self._ended()
            self._response.abort()
            return
        if (fault := self._faults.get("error_in_200")) and not (self._row["stream"] and fault.tokens):
            await self._only_an_error(fault)
            return
        try:
            with suppress(_EndedByFault):
                await (self._stream() if self._streams else self._json())
        finally:
            self._close(finished=False)

    def _close(self, *, finished: bool) -> None:
        self._bill.close(finished=finished)
        self._ended()

    # Time

    async def _pause(self, seconds: float) -> None:
        """Wait. Raises ClientGone when the client leaves meanwhile, or has left before."""
        gone = self._request.disconnected
        if seconds > _SHORT_PAUSE_S:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await gone.wait()
        elif seconds > 0:
            await asyncio.sleep(seconds)
        if gone.is_set():
            raise ClientGone

    async def _pause_until(self, due: float) -> None:
        await self._pause(due - time.monotonic())

    def _schedule(self) -> list[tuple[float, int, Step]]:
        """Return when each step of each choice is due; choices take turns."""
        due = self._started_at + self._order.latency.first_token_s(self._rng)
        if fault := self._faults.get("slow_first_token"):
            due += fault.ms / 1000
        numbered = [[(index, step) for step in choice.steps] for index, choice in enumerate(self._order.choices)]
        turns = [item for item in chain.from_iterable(zip_longest(*numbered)) if item is not None]
        schedule = []
        for position, (index, step) in enumerate(turns):
            due += self._order.latency.token_s(self._rng) if position else 0
            schedule.append((due, index, step))
        return schedule

    def _generated(self, step: Step) -> None:
        self._bill.generated(step.tokens, reasoning=step.kind == "reasoning")

    # Parts of answers

    async def _start(self, content_type: str, *headers: tuple[str, str]) -> None:
        if fault := self._faults.get("wrong_content_type"):
            content_type = fault.value
        self._accounts.answered(200)
        filler = [("x-filler", "x" * fault.bytes)] if (fault := self._faults.get("huge_headers")) else []
        await self._response.start(
            200,
            [
                ("content-type", content_type),
                ("x-request-id", f"req_{self._row['id'].removeprefix('chatcmpl-')}"),
                ("openai-processing-ms", str(self._elapsed_ms())),
                *headers,
                *filler,
            ],
        )

    async def _write(self, data: bytes) -> None:
        fault = self._faults.get("drip")
        if fault is None:
            await self._response.write(data)
            return
        for byte in data:
            await self._response.write(bytes([byte]))
            await self._pause(fault.byte_ms / 1000)

    def _elapsed_ms(self) -> int:
        return int((time.monotonic() - self._started_at) * 1000)

    def _has_extras(self) -> bool:
        return self._row["model"].startswith(self._config.extras_models)

    def _usage(self) -> dict[str, Any]:
        cost = self._bill.cost_pico_usd() if self._has_extras() else None
        return fragments.usage(self._row, cost_pico_usd=cost, reasoning_apart="reasoning_apart" in self._faults)

    def _logprobs(self, pieces: list[str]) -> dict[str, Any] | None:
        return fragments.logprobs(pieces, self._body.get("top_logprobs") or 0) if self._body.get("logprobs") else None

    def _error_data(self, fault: Fault) -> Any:
        message = fault.message or "The server had an error while processing your request"
        refusal = RefusedError(500, message, fault.code or "server_error", fault.code, payload=fault.json)
        return error_object(refusal, fault.body or self._row["face"])

    async def _only_an_error(self, fault: Fault) -> None:
        await self._pause_until(self._started_at + self._order.latency.first_token_s(self._rng))
        self._ended()
        if self._row["stream"]:
            await self._start("text/event-stream")
            await self._error_event(fault)
        else:
            data = compact_json(self._error_data(fault)).encode()
            await self._start("application/json", ("content-length", str(len(data))))
            await self._write(data)
        await self._response.finish()

    # JSON

    async def _json(self) -> None:
        schedule = self._schedule()
        try:
            if schedule:
                await self._pause_until(schedule[-1][0])
        except ClientGone:
            now = time.monotonic()
            for due, _, step in schedule:
                if due <= now:
                    self._generated(step)
            raise
        for _, _, step in schedule:
            self._generated(step)
        answer = {
            **self._envelope,
            "choices": [self._json_choice(index, choice) for index, choice in enumerate(self._order.choices)],
            **({} if "usage_missing" in self._faults else {"usage": self._usage()}),
            **({"latency_ms": self._elapsed_ms()} if self._has_extras() else {}),
        }
        data = compact_json(answer).encode()
        if {"malformed_json", "malformed_chunk"} & self._faults.keys():
            data = data.replace(b'"', b"'")
        cut, stall = self._faults.get("cut_after"), self._faults.get("stall_after")
        if "truncated_json" in self._faults or (cut and cut.how == "end"):
            data, cut = data[: len(data) // 2], None
        self._close(finished=True)
        await self._start("application/json", ("content-length", str(len(data))))
        if cut or stall:
            await self._write(data[: len(data) // 2])
            if cut:
                self._end_by(cut)
            if stall:
                await self._pause(_FOREVER_S if stall.seconds is None else stall.seconds)
            data = data[len(data) // 2 :]
        await self._write(data)
        await self._response.finish()

    def _json_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        thinking_field = self._config.thinking_field if self._row["face"] == "clova" else None
        pieces = [step.piece for step in choice.steps if step.kind == "content"]
        message = fragments.message(choice, thinking_field)
        if "content_parts" in self._faults and message["content"]:
            half = len(message["content"]) // 2
            message["content"] = [fragments.in_parts(message["content"][:half], 1), message["content"][half:]]
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(pieces),
            "finish_reason": self._finish_reason(choice),
        }

    def _finish_reason(self, choice: Choice) -> str | None:
        fault = self._faults.get("finish_reason")
        return None if "no_finish_reason" in self._faults else fault.value if fault else choice.finish_reason

    def _end_by(self, fault: Fault) -> None:
        if fault.how == "reset":
            self._response.abort()
        else:
            self._response.close()
        raise _EndedByFault

    # Stream

    async def _stream(self) -> None:
        await self._start("text/event-stream; charset=utf-8", ("cache-control", "no-cache"))
        schedule = self._schedule()
        if schedule:
            await self._pause_until(schedule[0][0])
        for index, choice in enumerate(self._order.choices):
            speaks = not choice.tool_calls()
            await self._chunk(index, {"role": "assistant", "content": "" if speaks else None}, bad_quotes=index == 0)
        once = [
            self._faults[name] for name in ("malformed_chunk", "stall_after", "early_finish") if name in self._faults
        ]
        for position, (due, index, step) in enumerate(schedule):
            await self._interrupt(once)
            await self._pause_until(due)
            self._generated(step)
            usage = "usage_in_every_chunk" in self._faults or (
                "usage_in_choice_chunk" in self._faults and position == len(schedule) - 1
            )
            await self._step_chunk(index, step, usage=usage)
        await self._interrupt(once)
        await self._finish_stream()

    async def _interrupt(self, once: list[Fault]) -> None:
        """Carry out what is to happen after so many sent tokens, if it is that many."""
        for fault in [fault for fault in once if self._sent_tokens >= fault.tokens]:
            once.remove(fault)
            if fault.name == "malformed_chunk":
                await self._write(_MALFORMED)
            elif fault.name == "early_finish":
                await self._write(self._event([{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]))
            else:
                await self._pause(_FOREVER_S if fault.seconds is None else fault.seconds)
        cut, error = self._faults.get("cut_after"), self._faults.get("error_in_200")
        if cut and self._sent_tokens >= cut.tokens:
            self._close(finished=False)
            if cut.how == "end":
                await self._response.finish()
                raise _EndedByFault
            self._end_by(cut)
        if error and self._sent_tokens >= error.tokens:
            self._close(finished=False)
            await self._error_event(error)
            await self._response.finish()
            raise _EndedByFault

    async def _error_event(self, fault: Fault) -> None:
        name = b"event: error\n" if fault.event else b""
        await self._write(name + b"data: " + compact_json(self._error_data(fault)).encode() + b"\n\n")

    async def _step_chunk(self, index: int, step: Step, *, usage: bool) -> None:
        if step.kind == "reasoning" and self._row["face"] != "clova":
            return  # hidden, as OpenAI does: it takes time and money, and nothing is to be seen
        logprobs = self._logprobs([step.piece]) if step.kind == "content" else None
        delta = fragments.delta(step, self._config.thinking_field)
        self._sent_tokens += step.tokens
        if "no_index" in self._faults:
            for call in delta.get("tool_calls", ()):
                del call["index"]
        if "halved_characters" in self._faults and step.kind == "content":
            for piece in fragments.halves(step.piece)[:-1]:
                await self._chunk(index, {"content": piece})
            delta["content"] = fragments.halves(step.piece)[-1]
        if "content_parts" in self._faults and step.kind == "content":
            delta["content"] = fragments.in_parts(delta["content"], self._sent_tokens)
        await self._chunk(index, delta, logprobs=logprobs, usage=usage)

    async def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        usage: bool = False,
        bad_quotes: bool = False,
    ) -> None:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        data = self._event([choice], usage=usage)
        if bad_quotes and "malformed_json" in self._faults:
            data = data.replace(b'"', b"'")
        await self._write(data)

    def _event(self, choices: list[dict[str, Any]], *, usage: bool = False) -> bytes:
        """Return one chunk as an event; when usage was asked for, the chunks without it say null."""
        chunk: dict[str, Any] = {**self._envelope, "choices": choices}
        if usage:
            chunk["usage"] = self._usage()
            if self._has_extras():
                chunk["latency_ms"] = self._elapsed_ms()
        elif self._usage_asked:
            chunk["usage"] = None
        if "halved_characters" in self._faults:
            return b"data: %b\n\n" % json.dumps(chunk).encode()  # half a character has no bytes of its own
        return b"data: " + compact_json(chunk).encode() + b"\n\n"

    async def _end_after_finish(self, fault: Fault) -> None:
        if fault.what == "close":
            self._response.close()
            return
        if fault.what == "error":
            await self._error_event(fault)
        else:
            await self._write(_MALFORMED)
        await self._response.finish()

    async def _finish_stream(self) -> None:
        self._close(finished=True)
        tail = []
        if "no_finish_reason" not in self._faults:
            for index, choice in enumerate(self._order.choices):
                reason = self._finish_reason(choice)
                tail.append(self._event([{"index": index, "delta": {}, "logprobs": None, "finish_reason": reason}]))
        if fault := self._faults.get("after_finish"):
            await self._write(b"".join(tail))
            await self._end_after_finish(fault)
            return
        elsewhere = {"usage_in_choice_chunk", "usage_in_every_chunk"} & self._faults.keys()
        if self._usage_asked and not elsewhere:
            tail.append(self._event([], usage=True))
        if "truncated_json" in self._faults:
            tail[-1:] = [data[: len(data) // 2] for data in tail[-1:]]
        elif "missing_done" not in self._faults:
            tail.append(b"data: [DONE]\n\n")
        for data in tail:
            await self._write(data)
        await self._response.finish()
