"""One fault, once: its providers, its models in the catalog, what came of it, and the verdict, which is computed.

rescued        the whole answer, word for word as the model says it, with a finish_reason and ``[DONE]``
clean error    the error that is right for this fault: status, type and code, or an object in the stream and no ``[DONE]``
FAIL           anything else; also when it took too long, too many calls were made, or the bill is not true
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks.fault_cases import ANSWER_TOKENS, FULL, MAX_TOKENS, REVOKED, Case, Mode, Rules, Timings
from benchmarks.fault_client import Seen, ask
from local.http_server import serve
from local.simulated_model import BillRow, Config, Latency, SimulatedModel
from local.simulated_model.broken_tls import broken_tls
from naru.catalog import Catalog
from naru.ledger import Row
from naru.pricing import Usage

_HOST = "127.0.0.1"
_FACES = {"openai": "/v1", "clovastudio": "/clova/v1/openai"}
_UPSTREAM = {"openai": "hyperclova-x-omni", "clovastudio": "HCX-005"}
_HELPERS = {"prefill": "claude-sonnet-4-5", "plain": "gpt-4.1"}
_HANG_S = 60.0
_BILL_S = 5.0
# The tokens of an answer that was cut off are counted by the gateway, whose tokenizers are not the provider's.
_ESTIMATE = 0.35


class Provider:
    """A simulated provider that can be taken off its port, and put back, with its books kept."""

    def __init__(self, timings: Timings) -> None:
        latency = Latency(first_token_ms=timings.model_first_token_ms, token_ms=timings.model_token_ms)
        self.model = SimulatedModel(Config(latency=latency))
        self.port = 0
        self._listener: AsyncExitStack | None = None
        self._place = AsyncExitStack()

    async def start(self) -> None:
        """Listens; every time on the same port."""
        await self._place.aclose()
        self._listener = AsyncExitStack()
        server = await self._listener.enter_async_context(serve(self.model.handle, _HOST, self.port))
        self.port = server.port

    def fail(self, rules: Rules) -> None:
        """Misbehaves so from now on."""
        self.model.control({"rules": list(rules)})

    async def stop(self) -> None:
        """Resets every connection, and refuses new ones. The port is kept: no other provider is to answer there."""
        if self._listener is not None:
            await self._listener.aclose()
            self._listener = None
            place = self._place.enter_context(socket.socket())
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            place.bind((_HOST, self.port))

    async def leave(self) -> None:
        """Stops for good."""
        await self.stop()
        await self._place.aclose()

    @property
    def calls(self) -> int:
        """How many requests have come."""
        return self.model.stats()["requests"]

    async def bills(self, request_id: str) -> list[BillRow]:
        """What has been billed for a request; a provider may notice late that the gateway has hung up."""
        async with asyncio.timeout(_BILL_S):
            await self.model.idle()
        return [bill for bill in self.model.stats()["billed"] if bill["client_request_id"] == request_id]


@dataclass(frozen=True)
class Gateway:
    """Where the requests go, and where their rows are found."""

    base_url: str
    api_key: str
    catalog: Catalog
    row: Callable[[str], Awaitable[Row | None]]


@dataclass
class Result:
    """A line of the table."""

    slug: str
    name: str
    mode: Mode
    verdict: str
    saw: str
    primary: int
    fallback: int | None
    first_token_s: float | None
    total_s: float
    ledger: str
    problems: list[str] = field(default_factory=list)


class Trial:
    """A case in one mode. Enter :meth:`running`, put :meth:`toml` into the catalog, then :meth:`run`."""

    def __init__(self, case: Case, mode: Mode, timings: Timings) -> None:
        self.case, self.mode, self.timings = case, mode, timings
        self.model = f"{case.slug}-{mode}"
        self.primary = Provider(timings)
        self.fallback = None if case.fallback is None else Provider(timings)
        self._url = ""

    @property
    def secret(self) -> str:
        """The field of the secret with the key of its first provider."""
        return f"{self.case.slug}_{self.mode}".replace("-", "_") if self.case is REVOKED else "primary"

    @property
    def providers(self) -> list[Provider]:
        return [self.primary] if self.fallback is None else [self.primary, self.fallback]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Its providers, as far as there are to be any."""
        async with AsyncExitStack() as stack:
            for provider in self.providers:
                stack.push_async_callback(provider.leave)
                await provider.start()
            self._url = f"http://{_HOST}:{self.primary.port}{_FACES[self.case.dialect]}"
            match self.case.at:
                case "refused":
                    await self.primary.stop()
                case "garbage" | "certificate" as kind:
                    self._url = await stack.enter_async_context(broken_tls(kind))
                case "dns":
                    self._url = "https://provider.invalid/v1"
                case "model":
                    pass
            yield

    def toml(self) -> str:
        """Its models and their providers, for the catalog."""
        case, usual = self.case, FULL.toml()
        limits = self.timings.toml() if case.hangs else usual
        primary = _provider(f"{self.model}-p", self._url, case.dialect, self.secret, limits) + _model(
            self.model, _UPSTREAM[case.dialect], f"{self.model}-p", self.model, context_tokens=128_000
        )
        if self.fallback is None:
            return primary
        helper = _HELPERS[case.helper]
        return (
            primary.replace("deployments = [", f'fallbacks = ["{self.model}-fallback"]\ndeployments = [', 1)
            + _provider(f"{self.model}-f", f"http://{_HOST}:{self.fallback.port}/v1", "openai", "fallback", usual)
            + _model(f"{self.model}-fallback", helper, f"{self.model}-f", self.model, context_tokens=200_000)
        )

    @property
    def within_s(self) -> float | None:
        """How long a request may take; None where nobody looks at the clock."""
        slack_s = self.timings.slack_s
        return None if slack_s is None else self.case.takes(self.timings, self.mode) + slack_s

    async def send(self, gateway: Gateway) -> Seen:
        """One request, heard out for long enough to call it a hang."""
        takes_s = self.case.takes(self.timings, self.mode)
        return await ask(
            gateway.base_url,
            gateway.api_key,
            self.model,
            self.prompt,
            stream=self.mode == "stream",
            max_tokens=MAX_TOKENS,
            patience_s=takes_s + _HANG_S,
            tools=self.tools,
        )

    @property
    def prompt(self) -> str:
        """One of its own for each trial, so that answers which are crossed are noticed."""
        odd = " odd=1" if self.case.odd else ""
        if self.case.tools:
            return f"서울, 부산 날씨를 알려 주세요: {self.case.name} ({self.mode})"
        return f"{self.case.name} ({self.mode}) [[sim tokens={ANSWER_TOKENS}{odd}]]"

    @property
    def tools(self) -> list[dict[str, Any]]:
        """What the model may call: the weather in two cities, so that there are two calls."""
        if not self.case.tools:
            return []
        parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
        return [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]

    async def run(self, gateway: Gateway, expected: str) -> Result:
        """Sends it and judges what came; ``expected`` is what the model says to the prompt."""
        case = self.case
        self.primary.fail(case.primary(self.timings))
        if self.fallback is not None and case.fallback is not None:
            self.fallback.fail(case.fallback(self.timings))
        seen = await self.send(gateway)
        row = await gateway.row(seen.request_id) if seen.request_id else None
        calls = self.calls([] if row is None else [row])
        right = case.right(self.mode)
        problems: list[str] = []
        if right is None and not seen.whole(expected):
            problems.append(f"expected the whole answer, got {seen.describe()} {seen.error or ''}".strip())
        if right is not None and (seen.error != right or seen.done):
            problems.append(f"expected {right}, got {seen.error or seen.describe()}")
        if right is not None and right.status >= 429 and seen.should_retry != "false":
            problems.append("the SDK is not told that the gateway's retries are spent")
        if seen.total_s < (named_s := case.named_s(self.timings)):
            problems.append(f"took {seen.total_s:.2f} s, the provider had asked for {named_s:.2f} s of rest")
        if self.within_s is not None and seen.total_s > self.within_s:
            problems.append(f"took {seen.total_s:.1f} s, {self.within_s:.1f} s would do")
        for where, made, most in zip(("primary", "fallback"), calls, case.calls, strict=True):
            if made > most:
                problems.append(f"{made} calls to the {where}, {most} would do")
        ledger = await self.books(gateway, seen, row, problems)
        if case.at == "model":
            for provider, made in zip(self.providers, calls, strict=False):
                if provider.calls != made:
                    problems.append(f"a provider has had {provider.calls} calls, the row says {made}")
        verdict = "FAIL" if problems else "rescued" if right is None else "clean error"
        return Result(
            slug=case.slug,
            name=case.name,
            mode=self.mode,
            verdict=verdict,
            saw=seen.describe(),
            primary=calls[0],
            fallback=None if self.fallback is None else calls[1],
            first_token_s=seen.first_token_s if self.mode == "stream" else None,
            total_s=seen.total_s,
            ledger=ledger,
            problems=problems,
        )

    def calls(self, rows: Sequence[Row]) -> tuple[int, int]:
        """Calls made by the rows' accounts; a connection that failed is one, though no provider has seen it."""
        made = [attempt.deployment for row in rows for attempt in row.attempts]
        return made.count(self.model), made.count(f"{self.model}-fallback")

    async def books(self, gateway: Gateway, seen: Seen, row: Row | None, problems: list[str]) -> str:
        """The ledger's row against what the providers have billed for the request."""
        if row is None:
            problems.append("the ledger has no row of it")
            return "no row"
        billed = 0
        for provider, name in zip(self.providers, (self.model, f"{self.model}-fallback"), strict=False):
            rates = gateway.catalog.model(name).deployments[0].rates
            bills = await provider.bills(row.request_id)
            billed += sum(rates.cost_pico_usd(_usage(bill)) for bill in bills)
        if seen.usage is not None and seen.usage != (row.usage.prompt_tokens, row.usage.completion_tokens):
            problems.append(f"the client was told {seen.usage}, the row says {row.usage}")
        return _compared(row, billed, problems)


def _compared(row: Row, billed: int, problems: list[str]) -> str:
    cost, maybe = row.cost_pico_usd, row.maybe_billed_pico_usd
    maybe_billed = f"; maybe billed, and {'was' if billed > cost else 'was not'}" if maybe else ""
    beyond = f"{billed - cost:,} pico-USD billed beyond the row's {cost:,}, of which it says {maybe:,} may have been"
    if row.usage_source == "estimated":
        off = (cost - billed) / billed if billed else 0.0
        if not cost * (1 - _ESTIMATE) <= billed <= cost * (1 + _ESTIMATE) + maybe:
            problems.append(beyond)
        return f"estimated, marked: {off:+.0%}{maybe_billed}"
    if not cost <= billed <= cost + maybe:
        problems.append(beyond)
    return ("exact" if row.usage_source == "reported" else "nothing charged") + maybe_billed


def _usage(bill: BillRow) -> Usage:
    return Usage(
        prompt_tokens=bill["prompt_tokens"],
        completion_tokens=bill["completion_tokens"],
        cached_tokens=bill["cached_tokens"],
        reasoning_tokens=bill["reasoning_tokens"],
    )


def _provider(name: str, url: str, dialect: str, secret: str, limits: str) -> str:
    return (
        f'[providers.{name}]\nbase_url = "{url}"\ndialect = "{dialect}"\nsecret = "{secret}"\ntimeouts = {limits}\n\n'
    )


def _model(name: str, upstream: str, provider: str, asked: str, *, context_tokens: int) -> str:
    prices = {"hyperclova-x-omni": (3_500_000, 10_500_000), "claude-sonnet-4-5": (3_000_000, 15_000_000)}
    price_in, price_out = prices.get(upstream, (2_000_000, 8_000_000))
    own = name == asked
    tokenizer = "hyperclova" if own else "claude" if upstream.startswith("claude") else "o200k"
    deployment = {
        "name": name,
        "provider": provider,
        "upstream_model": upstream,
        "stream_usage": not upstream.startswith("HCX"),
        "context_tokens": context_tokens,
        "max_output_tokens": 4_096,
        "capabilities": ["prefill", "tools"] if upstream.startswith("claude") else ["tools"],
    }
    price = f'{{ currency = "USD", input_micro_per_mtok = {price_in}, output_micro_per_mtok = {price_out} }}'
    values = ", ".join(f"{key} = {json.dumps(value)}" for key, value in deployment.items())
    return (
        f'[models."{name}"]\nowned_by = "simulated"\ncreated = 1764547200\ntokenizer = "{tokenizer}"\n'
        f"default_output_tokens = 4096\ndeployments = [{{ {values}, price = {price} }}]\n\n"
    )


def catalog_toml(trials: Sequence[Trial]) -> str:
    """One catalog with the models of all trials."""
    return 'version = "faults"\nkrw_per_usd = 1400\n\n' + "".join(trial.toml() for trial in trials)
