"""The faults of the suite, as data: what the providers do, and what is then right."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, Literal

from benchmarks.fault_client import Told

Mode = Literal["stream", "json"]
Rules = tuple[dict[str, Any], ...]
MODES: tuple[Mode, ...] = ("stream", "json")

ANSWER_TOKENS = 60
CUT_TOKENS = 40
MAX_TOKENS = 200


@dataclass(frozen=True)
class Timings:
    """The limits that the catalog sets, and how slow slow is. ``FULL`` has the gateway's own defaults."""

    connect_s: float = 5.0
    first_byte_s: float = 30.0
    first_token_s: float = 60.0
    silence_s: float = 30.0
    token_s: float = 0.02
    slow_s: float = 20.0
    retry_after: str = "1"
    retry_after_s: float = 1.0
    model_first_token_ms: float = 50.0
    model_token_ms: float = 5.0
    every_s: float = 4.0
    """Between two requests of a scenario; an outage lasts fifteen times as long."""
    slack_s: float | None = 10.0
    """What everything but the fault may take: the answers themselves, backoff. None where time proves nothing, because
    the machine has other work."""

    @property
    def json_s(self) -> float:
        """How long an attempt at a JSON answer may take."""
        return self.connect_s + self.first_byte_s + MAX_TOKENS * self.token_s

    def toml(self) -> str:
        """As a provider's setting in the catalog."""
        names = ("connect_s", "first_byte_s", "first_token_s", "silence_s", "token_s")
        return "{ " + ", ".join(f"{name} = {float(getattr(self, name))}" for name in names) + " }"


FULL = Timings()
FAST = Timings(
    connect_s=0.5,
    first_byte_s=1.0,
    first_token_s=1.5,
    silence_s=1.0,
    token_s=0.001,
    slow_s=0.2,
    retry_after="0.2",
    retry_after_s=0.2,
    model_first_token_ms=0.0,
    model_token_ms=0.0,
    every_s=0.25,
    slack_s=None,
)


@dataclass(frozen=True)
class Case:
    """One fault. The first deployment is ill in the way of ``primary``, the fallback in the way of ``fallback``.

    ``stream`` and ``json`` are what is right there: None for the whole answer, else the error; a mode that the fault
    does not exist in is not among ``modes``. ``calls`` is the most that may be called at primary and fallback.
    ``takes`` is how long the fault itself keeps a client waiting, in each mode. The faults are made when the case is
    run: some name a time of day.
    """

    slug: str
    name: str
    primary: Callable[[Timings], Rules] = lambda _: ()
    fallback: Callable[[Timings], Rules] | None = lambda _: ()
    stream: Told | None = None
    json: Told | None = None
    modes: tuple[Mode, ...] = MODES
    calls: tuple[int, int] = (2, 1)
    takes: Callable[[Timings, Mode], float] = lambda _, __: 0.0
    named_s: Callable[[Timings], float] = lambda _: 0.0
    """How long the provider has asked to be left alone, if the gateway comes back to it: no answer can be earlier."""
    hangs: bool = False
    """Whether a limit has to run out: only then short ones are of any use."""
    at: Literal["model", "refused", "garbage", "certificate", "dns"] = "model"
    helper: Literal["prefill", "plain"] = "prefill"
    dialect: Literal["openai", "clovastudio"] = "openai"
    odd: bool = False
    """Whether the answer has characters beyond U+FFFF, and separators that readers of lines split at."""
    tools: bool = False
    """Whether the answer is two calls of a tool."""

    def right(self, mode: Mode) -> Told | None:
        """The error that is right; None for the whole answer."""
        return self.stream if mode == "stream" else self.json


def _always(name: str, **parameters: Any) -> Callable[[Timings], Rules]:
    return lambda _: ({"fault": {"name": name, **parameters}},)


def _once(name: str, **parameters: Any) -> Callable[[Timings], Rules]:
    return lambda _: ({"fault": {"name": name, **parameters}, "times": 1},)


def _both(*faults: dict[str, Any]) -> Callable[[Timings], Rules]:
    return lambda _: ({"fault": list(faults)},)


def _until(stream_s: Callable[[Timings], float]) -> Callable[[Timings, Mode], float]:
    return lambda timings, mode: stream_s(timings) if mode == "stream" else timings.json_s


def _wait(timings: Timings, _: Mode = "stream") -> float:
    return timings.retry_after_s


OUTAGE = Case("outage-503", "60 s outage, 503, then recovery", calls=(40, 40))
OUTAGE_REFUSED = Case("outage-refused", "60 s outage, connections refused, then recovery", calls=(40, 40))
REVOKED = Case("revoked", "key revoked in the middle, then replaced", calls=(40, 40))
"""Scenarios of many requests: :mod:`benchmarks.fault_scenarios`."""

_NOBODY = None
_RATE_LIMITED = Told(429, "rate_limit_error", "upstream_rate_limited")
_UNAVAILABLE = Told(503, "upstream_error", "upstream_unavailable")
_INVALID = Told(502, "upstream_error", "upstream_invalid_answer")
_TIMEOUT = Told(504, "upstream_error", "upstream_timeout")
_NO_ACCOUNT = Told(503, "upstream_error", "upstream_quota_exhausted")
_CUT = Told(200, "upstream_error", "upstream_stream_cut")
_ERROR_INSIDE = Told(200, "upstream_error", "upstream_stream_error")
_CUT_AFTER = {"name": "cut_after", "tokens": CUT_TOKENS}

_NO_CREDIT = {
    "type": "error",
    "error": {
        "type": "invalid_request_error",
        "message": "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing.",
    },
}
_NOT_HERE = [
    {
        "error": {
            "code": 400,
            "message": "User location is not supported for the API use.",
            "status": "FAILED_PRECONDITION",
        }
    }
]
_NO_QUOTA = {"code": 402, "msg": "余额不足"}

CASES: tuple[Case, ...] = (
    # ── Refusals that pass ────────────────────────────────────────────────────────────────────────────────
    Case(
        "429-named-once",
        "429 with Retry-After, once",
        lambda t: ({"fault": {"name": "status", "status": 429, "retry_after": t.retry_after}, "times": 1},),
        calls=(2, 0),
        takes=_wait,
        named_s=_wait,
    ),
    Case("429-once", "429 without Retry-After, once", _once("status", status=429), calls=(2, 0)),
    Case(
        "429-named",
        "429 with Retry-After, persistent",
        lambda t: ({"fault": {"name": "status", "status": 429, "retry_after": t.retry_after}},),
        takes=_wait,
        named_s=_wait,
    ),
    Case("429", "429 without Retry-After, persistent", _always("status", status=429)),
    Case(
        "429-long",
        "429 with Retry-After: 30, persistent",
        _always("status", status=429, retry_after="30"),
        calls=(1, 1),
    ),
    Case(
        "429-date",
        "429 with an HTTP date, once",
        lambda _: (
            {
                "fault": {"name": "status", "status": 429, "retry_after": formatdate(time.time() + 2, usegmt=True)},
                "times": 1,
            },
        ),
        calls=(2, 0),
        takes=lambda _, __: 2.0,
        named_s=lambda _: 0.9,  # a date has whole seconds
    ),
    Case(
        "429-ms",
        "429 with retry-after-ms, once",
        lambda t: (
            {"fault": {"name": "status", "status": 429, "retry_after_ms": f"{t.retry_after_s * 1000:g}"}, "times": 1},
        ),
        calls=(2, 0),
        takes=_wait,
        named_s=_wait,
    ),
    Case(
        "42901",
        "429 with x-ratelimit-reset-requests: 6s (CLOVA Studio)",
        _always("status", status=429, code="42901"),
        calls=(1, 1),
        dialect="clovastudio",
    ),
    Case(
        "42902",
        "429 with 42902, GPU overload (CLOVA Studio)",
        _always("status", status=429, code="42902"),
        dialect="clovastudio",
    ),
    Case(
        "429-all",
        "429 everywhere, no fallback",
        lambda t: ({"fault": {"name": "status", "status": 429, "retry_after": t.retry_after}},),
        fallback=_NOBODY,
        stream=_RATE_LIMITED,
        json=_RATE_LIMITED,
        # Where nobody else can answer, four refusals are waited out under the shared limit before they count as attempts.
        calls=(7, 0),
        takes=lambda t, _: 6 * (t.retry_after_s + 0.5),
        named_s=lambda t: 2 * t.retry_after_s,
    ),
    # ── Broken servers ────────────────────────────────────────────────────────────────────────────────────
    Case("500-once", "500, once", _once("status", status=500), calls=(1, 1)),
    Case("503", "503, persistent", _always("status", status=503)),
    Case(
        "503-all",
        "503 at primary and fallback",
        _always("status", status=503),
        _always("status", status=503),
        stream=_UNAVAILABLE,
        json=_UNAVAILABLE,
    ),
    Case("html", "502 with an HTML page, persistent", _always("status", status=502, body="html")),
    Case("504", "504 of a proxy, persistent", _always("status", status=504, body="html"), calls=(1, 1)),
    Case("404", "404, the model is gone", _always("status", status=404), calls=(1, 1)),
    # ── The gateway's own account ─────────────────────────────────────────────────────────────────────────
    Case("credit", "400, no credit left (Anthropic)", _always("status", status=400, json=_NO_CREDIT), calls=(1, 1)),
    Case(
        "credit-all",
        "400, no credit left, no fallback",
        _always("status", status=400, json=_NO_CREDIT),
        fallback=_NOBODY,
        stream=_NO_ACCOUNT,
        json=_NO_ACCOUNT,
        calls=(1, 0),
    ),
    Case("region", "400, not from this country (Google)", _always("status", status=400, json=_NOT_HERE), calls=(1, 1)),
    Case("quota-200", "200 with a quota error inside", _always("error_in_200", json=_NO_QUOTA), calls=(1, 1)),
    Case("302", "302 to another address", _always("status", status=302, body="empty"), calls=(1, 1)),
    # ── No connection ─────────────────────────────────────────────────────────────────────────────────────
    Case("refused", "connection refused", at="refused"),
    Case("tls-garbage", "TLS failure: no TLS on that port", at="garbage"),
    Case("tls-certificate", "TLS failure: wrong certificate", at="certificate"),
    Case("dns", "DNS failure", at="dns"),
    Case(
        "dns-all",
        "DNS failure, no fallback",
        at="dns",
        fallback=_NOBODY,
        stream=_UNAVAILABLE,
        json=_UNAVAILABLE,
        calls=(3, 0),
    ),
    # ── Connections that break, hang or drip ──────────────────────────────────────────────────────────────
    Case("reset", "reset before headers", _always("reset_before_headers"), calls=(1, 1)),
    Case(
        "reset-billed",
        "reset before headers, 30 tokens billed: failover accounting",
        _always("reset_before_headers", tokens=30),
        calls=(1, 1),
    ),
    Case(
        "reset-all",
        "reset before headers, no fallback",
        _always("reset_before_headers", tokens=30),
        fallback=_NOBODY,
        stream=_UNAVAILABLE,
        json=_UNAVAILABLE,
        calls=(1, 0),
    ),
    Case(
        "silence",
        "silence",
        _always("silence"),
        calls=(1, 1),
        hangs=True,
        takes=_until(lambda t: t.connect_s + t.first_byte_s),
    ),
    Case(
        "silence-all",
        "silence, no fallback",
        _always("silence"),
        fallback=_NOBODY,
        stream=_TIMEOUT,
        json=_TIMEOUT,
        calls=(1, 0),
        hangs=True,
        takes=_until(lambda t: t.connect_s + t.first_byte_s),
    ),
    Case(
        "slow",
        "slow first token (20 s)",
        lambda t: ({"fault": {"name": "slow_first_token", "ms": t.slow_s * 1000}},),
        calls=(1, 0),
        takes=lambda t, _: t.slow_s,
    ),
    Case(
        "no-token",
        "headers, then no token at all",
        _always("slow_first_token", ms=600_000),
        calls=(1, 1),
        hangs=True,
        takes=_until(lambda t: t.first_token_s),
    ),
    Case(
        "drip",
        "slow drip, one byte per second",
        _always("drip", byte_ms=1000),
        calls=(1, 1),
        hangs=True,
        takes=_until(lambda t: t.first_token_s),
    ),
    Case("headers-64k", "huge headers, 64 KiB", _always("huge_headers", bytes=64 * 1024)),
    Case("headers-256k", "huge headers, 256 KiB", _always("huge_headers", bytes=256 * 1024 - 1024), calls=(1, 1)),
    # ── Half an answer ────────────────────────────────────────────────────────────────────────────────────
    Case("cut-reset", "cut after 40 of 60 tokens: reset", _always("cut_after", tokens=CUT_TOKENS), calls=(1, 1)),
    Case(
        "cut-close",
        "cut after 40 of 60 tokens: closed",
        _always("cut_after", tokens=CUT_TOKENS, how="close"),
        calls=(1, 1),
    ),
    Case(
        "cut-end",
        "cut after 40 of 60 tokens: a clean end without finish_reason",
        _always("cut_after", tokens=CUT_TOKENS, how="end"),
        calls=(1, 1),
    ),
    Case(
        "stall",
        "stall after 40 of 60 tokens",
        _always("stall_after", tokens=CUT_TOKENS),
        calls=(1, 1),
        hangs=True,
        takes=_until(lambda t: t.silence_s),
    ),
    Case(
        "error-inside",
        "error event after 40 of 60 tokens",
        _always("error_in_200", tokens=CUT_TOKENS, event=True),
        calls=(1, 1),
    ),
    Case(
        "malformed",
        "malformed chunk after 40 of 60 tokens; JSON that is none",
        _always("malformed_chunk", tokens=CUT_TOKENS),
        calls=(1, 1),
    ),
    Case("truncated", "the last JSON text is cut off", _always("truncated_json"), calls=(1, 1)),
    Case("no-done", "missing [DONE]", _always("missing_done"), modes=("stream",), calls=(1, 0)),
    Case("no-finish", "no finish_reason", _always("no_finish_reason"), calls=(1, 1)),
    Case(
        "cut-alone",
        "cut after 40 of 60 tokens, nobody can go on",
        _always("cut_after", tokens=CUT_TOKENS),
        fallback=lambda _: (),
        helper="plain",
        stream=_CUT,
        modes=("stream",),
        calls=(1, 0),
    ),
    Case(
        "cut-all",
        "an answer cut in half, no fallback",
        _always("cut_after", tokens=CUT_TOKENS),
        fallback=_NOBODY,
        stream=_CUT,
        json=_UNAVAILABLE,
        calls=(1, 0),
    ),
    Case(
        "refuses-prefill",
        "cut; the fallback refuses prefill, and says the same from the start",
        _always("cut_after", tokens=CUT_TOKENS),
        _always("refuse_prefill"),
        modes=("stream",),
        calls=(1, 2),
    ),
    Case(
        "refuses-prefill-other",
        "cut; the fallback refuses prefill, and says something else",
        _always("cut_after", tokens=CUT_TOKENS),
        lambda _: ({"fault": [{"name": "refuse_prefill"}, {"name": "other_answer"}]},),
        stream=_CUT,
        modes=("stream",),
        calls=(1, 2),
    ),
    # ── An end that is none, and one that is ──────────────────────────────────────────────────────────────
    Case(
        "early-finish",
        "a finish_reason after 20 of 60 tokens, and the rest after it",
        _always("early_finish", tokens=20),
        modes=("stream",),
        calls=(1, 0),
    ),
    Case(
        "early-finish-cut",
        "a finish_reason after 20 of 60 tokens, cut after 40",
        _both({"name": "early_finish", "tokens": 20}, _CUT_AFTER),
        modes=("stream",),
        calls=(1, 1),
    ),
    Case(
        "early-finish-alone",
        "a finish_reason after 20 of 60 tokens, cut after 40, no fallback",
        _both({"name": "early_finish", "tokens": 20}, _CUT_AFTER),
        fallback=_NOBODY,
        stream=_CUT,
        modes=("stream",),
        calls=(1, 0),
    ),
    Case(
        "error-after",
        "an error object behind the finish_reason",
        _always("after_finish", what="error"),
        modes=("stream",),
        calls=(1, 1),
    ),
    Case(
        "error-after-alone",
        "an error object behind the finish_reason, no fallback",
        _always("after_finish", what="error"),
        fallback=_NOBODY,
        stream=_ERROR_INSIDE,
        modes=("stream",),
        calls=(1, 0),
    ),
    Case(
        "chunk-after-alone",
        "a malformed chunk behind the finish_reason, no fallback",
        _always("after_finish", what="chunk"),
        fallback=_NOBODY,
        stream=_CUT,
        modes=("stream",),
        calls=(1, 0),
    ),
    Case(
        "close-after",
        "connection closed behind the finish_reason: the answer is whole",
        _always("after_finish", what="close"),
        modes=("stream",),
        calls=(1, 0),
    ),
    Case("finish-error", 'finish_reason "error"', _always("finish_reason", value="error"), calls=(1, 1)),
    Case(
        "finish-error-alone",
        'finish_reason "error", no fallback',
        _always("finish_reason", value="error"),
        fallback=_NOBODY,
        stream=_CUT,
        json=_INVALID,
        calls=(1, 0),
    ),
    # ── The same answer in another shape ──────────────────────────────────────────────────────────────────
    Case("parts", "content as parts", _always("content_parts"), calls=(1, 0)),
    Case(
        "parts-uncounted",
        "content as parts, and no usage",
        _both({"name": "content_parts"}, {"name": "usage_missing"}),
        calls=(1, 0),
    ),
    Case(
        "parts-cut",
        "content as parts, cut after 40 of 60 tokens",
        _both({"name": "content_parts"}, _CUT_AFTER),
        modes=("stream",),
        calls=(1, 1),
    ),
    Case("halves", "characters in halves", _always("halved_characters"), modes=("stream",), calls=(1, 0), odd=True),
    Case(
        "halves-cut",
        "characters in halves, cut after 40 of 60 tokens",
        _both({"name": "halved_characters"}, _CUT_AFTER),
        modes=("stream",),
        calls=(1, 1),
        odd=True,
    ),
    Case("separators", "separators that readers of lines split at", calls=(1, 0), odd=True),
    Case("no-index", "pieces of tool calls without an index", _always("no_index"), calls=(1, 0), tools=True),
    Case("other-form", "JSON for a stream, a stream for JSON", _always("other_form"), calls=(1, 0)),
    Case(
        "other-form-calls",
        "JSON for a stream, a stream for JSON, with tool calls",
        _both({"name": "other_form"}, {"name": "no_index"}),
        calls=(1, 0),
        tools=True,
    ),
    Case(
        "other-form-cut",
        "JSON for a stream, a stream for JSON, without a finish_reason",
        _both({"name": "other_form"}, {"name": "no_finish_reason"}),
        calls=(1, 1),
    ),
    # ── Answers that are none ─────────────────────────────────────────────────────────────────────────────
    Case("type", "200 with a wrong content type", _always("wrong_content_type"), calls=(1, 1)),
    Case("error-200", "200 with an error object inside", _always("error_in_200"), calls=(1, 1)),
    Case("garbage", "JSON in single quotes", _always("malformed_json"), calls=(1, 1)),
    Case(
        "garbage-all",
        "JSON in single quotes, no fallback",
        _always("malformed_json"),
        fallback=_NOBODY,
        stream=_INVALID,
        json=_INVALID,
        calls=(1, 0),
    ),
    # ── Verdicts on the request ───────────────────────────────────────────────────────────────────────────
    Case("context", "context length, a larger fallback", _always("context_length"), calls=(1, 1)),
    Case(
        "context-all",
        "context length, nobody has more",
        _always("context_length"),
        fallback=_NOBODY,
        stream=Told(400, "invalid_request_error", "context_length_exceeded"),
        json=Told(400, "invalid_request_error", "context_length_exceeded"),
        calls=(1, 0),
    ),
    Case(
        "filter",
        "content filter",
        _always("content_filter"),
        stream=Told(400, "invalid_request_error", "content_filter"),
        json=Told(400, "invalid_request_error", "content_filter"),
        calls=(1, 0),
    ),
)
