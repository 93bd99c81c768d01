"""What can be configured, all of it frozen: a running model is steered through `/_control`, never by mutation."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from types import MappingProxyType
from typing import Literal

_PICO_USD_PER_TOKEN = Decimal(10**6)  # at a price of 1 USD per million tokens
_P95 = 1.6448536269514722  # standard normal quantile


@dataclass(frozen=True)
class Latency:
    """Times to the first token and between tokens, in milliseconds.

    Fixed, or lognormal where a p95 is given: then the other number is the mean. A p95 must lie between the mean and
    3.86 times the mean: no lognormal distribution has a larger ratio.
    """

    first_token_ms: float = 0.0
    token_ms: float = 0.0
    first_token_p95_ms: float | None = None
    token_p95_ms: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn from, at the start rather than in the first request."""
        rng = random.Random(0)
        _draw_ms(rng, self.first_token_ms, self.first_token_p95_ms)
        _draw_ms(rng, self.token_ms, self.token_p95_ms)

    def first_token_s(self, rng: random.Random) -> float:
        """Draw one time to the first token, in seconds."""
        return _draw_ms(rng, self.first_token_ms, self.first_token_p95_ms) / 1000

    def token_s(self, rng: random.Random) -> float:
        """Draw one time between two tokens, in seconds."""
        return _draw_ms(rng, self.token_ms, self.token_p95_ms) / 1000


def _draw_ms(rng: random.Random, mean: float, p95: float | None) -> float:
    if mean < 0 or (p95 is not None and (mean == 0 or not 0 <= 2 * math.log(p95 / mean) <= _P95**2)):
        raise ValueError(f"no latency distribution has the mean {mean} ms and the p95 {p95} ms")
    if p95 is None:
        return mean
    # mean = exp(mu + s²/2) and p95 = exp(mu + 1.645 s), so s² - 2·1.645 s + 2 ln(p95/mean) = 0; the smaller root.
    sigma = _P95 - math.sqrt(_P95**2 - 2 * math.log(p95 / mean))
    return rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)


@dataclass(frozen=True)
class Capacity:
    """What the provider refuses with 429; None is no limit. The window of requests per minute slides.

    `retry_after_s` is the Retry-After of those answers on the OpenAI face; CLOVA Studio sends none, ever.
    """

    max_concurrent: int | None = None
    requests_per_minute: int | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True)
class Price:
    """USD per million tokens, exact to six decimals. Reasoning is output; cached input costs input unless priced."""

    input: Decimal
    output: Decimal
    cached: Decimal | None = None

    def cost_pico_usd(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> int:
        """Return what an answer costs in 10⁻¹² USD; `cached_tokens` are a part of `prompt_tokens`."""
        cached = self.input if self.cached is None else self.cached
        cost = (prompt_tokens - cached_tokens) * self.input + cached_tokens * cached + completion_tokens * self.output
        pico = cost * _PICO_USD_PER_TOKEN
        if pico != pico.to_integral_value():
            raise ValueError(f"{self} is finer than a pico-dollar a token")
        return int(pico)


def _of_won(input_krw: int, output_krw: int) -> Price:
    """A price in won, as an invoice at 1,400 won a dollar shows it: rounded up to the micro-dollar."""
    micro, won_per_usd = Decimal("0.000001"), 1_400
    return Price(*((Decimal(krw) / won_per_usd).quantize(micro, ROUND_CEILING) for krw in (input_krw, output_krw)))


DEFAULT_PRICES: Mapping[str, Price] = MappingProxyType(
    {
        "hyperclova-x-omni": Price(Decimal("3.50"), Decimal("10.50")),
        "hyperclova-x-omni-fast": Price(Decimal("1.50"), Decimal("4.50")),
        "gpt-4.1": Price(Decimal(2), Decimal(8), Decimal("0.5")),
        "claude-sonnet-4-5": Price(Decimal(3), Decimal(15), Decimal("0.30")),
        "gemini-2.5-flash": Price(Decimal("0.30"), Decimal("2.50"), Decimal("0.03")),
        "HCX-007": _of_won(1_250, 5_000),
        "HCX-005": _of_won(1_250, 5_000),
        "HCX-DASH-002": _of_won(250, 1_000),
    }
)


@dataclass(frozen=True)
class Config:
    """Everything the model is started with.

    Names ending in `_models` are tuples of name prefixes. `models` and `keys` of None accept any non-empty name.
    `answer_tokens` of None lets the request decide, between 40 and 120.
    """

    seed: int = 0
    latency: Latency = field(default_factory=Latency)
    capacity: Capacity = field(default_factory=Capacity)
    prices: Mapping[str, Price] = field(default_factory=lambda: DEFAULT_PRICES)
    models: frozenset[str] | None = None
    keys: frozenset[str] | None = None
    answer_tokens: int | None = None
    context_tokens: int = 128_000
    # Repeated prompt prefixes, whole messages of one key and model, are reported (and priced) as cached.
    cache_prefixes: bool = False
    cache_min_tokens: int = 1024
    # Sloppy providers add `usage.cost_usd` and `latency_ms`.
    extras_models: tuple[str, ...] = ("hyperclova-x-omni",)
    # A last message by the assistant is continued by these; the others take it for history and begin a new answer.
    prefill_models: tuple[str, ...] = ("claude-",)
    clova_errors: Literal["openai", "native"] = "openai"
    thinking_field: Literal["thinking_content", "reasoning_content"] = "thinking_content"
