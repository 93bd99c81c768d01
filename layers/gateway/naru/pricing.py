"""Money is an integer.

A catalog states prices in micro-units of a currency per million tokens (``3_500_000`` is USD 3.50 per million).
In USD the same integer is the price of *one* token in pico-USD, so that a cost is a sum of integer products
and nothing is ever rounded. A price in won is converted once, when the catalog is read, and rounded up there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

PICO_PER_USD = 10**12

Currency = Literal["USD", "KRW"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer, as OpenAI counts them: cached and cache-written tokens are part of the prompt's,
    reasoning tokens are part of the completion's. Tokens written for an hour are part of the cache-written ones.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_1h_tokens: int = 0
    estimated: bool = False
    """True when the provider did not say, and the gateway counted."""

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def at_least(self, estimate: Usage) -> Usage:
        """These tokens, with as many of the completion as were counted: what was reported before the answer's end."""
        return replace(
            self,
            completion_tokens=max(self.completion_tokens, estimate.completion_tokens),
            reasoning_tokens=max(self.reasoning_tokens, estimate.reasoning_tokens),
            estimated=True,
        )

    def within(self, *, prompt_tokens: int, completion_tokens: int, rest_is_prompt: bool = False) -> Usage:
        """These tokens, no more than a request can have used at most. ``rest_is_prompt`` if what is too much for an answer
        can only have been input.
        """
        completion = min(self.completion_tokens, completion_tokens)
        rest = self.completion_tokens - completion if rest_is_prompt else 0
        prompt = min(self.prompt_tokens + rest, prompt_tokens)
        cached = min(self.cached_tokens, prompt)
        written = min(self.cache_write_tokens, prompt - cached)
        return replace(
            self,
            prompt_tokens=prompt,
            completion_tokens=completion,
            cached_tokens=cached,
            cache_write_tokens=written,
            cache_write_1h_tokens=min(self.cache_write_1h_tokens, written),
            reasoning_tokens=min(self.reasoning_tokens, completion),
        )

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            cache_write_1h_tokens=self.cache_write_1h_tokens + other.cache_write_1h_tokens,
            estimated=self.estimated or other.estimated,
        )


@dataclass(frozen=True, slots=True)
class Rates:
    """What one token costs, in pico-USD, and where the figures come from."""

    input_pico_usd: int
    cached_input_pico_usd: int
    cache_write_pico_usd: int
    output_pico_usd: int
    currency: Currency
    """The currency in which the provider states its prices."""
    krw_per_usd: int | None
    """The rate used to convert a price in won; None for a price in dollars."""
    cache_write_1h_pico_usd: int | None = None
    """What is written to a cache for an hour; None where it costs what other writes cost."""

    def cost_pico_usd(self, usage: Usage) -> int:
        """The exact cost of ``usage``."""
        uncached_tokens = usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens
        return (
            uncached_tokens * self.input_pico_usd
            + usage.cached_tokens * self.cached_input_pico_usd
            + (usage.cache_write_tokens - usage.cache_write_1h_tokens) * self.cache_write_pico_usd
            + usage.cache_write_1h_tokens * self._hour_pico_usd
            + usage.completion_tokens * self.output_pico_usd
        )

    def worst_case_pico_usd(self, *, prompt_tokens: int, completion_tokens: int, hour_writes: bool = False) -> int:
        """The most that a request within these token limits can cost; ``hour_writes`` if it asks for writes to a cache
        that keeps them for an hour.
        """
        dearest_input = max(self.input_pico_usd, self.cached_input_pico_usd, self.cache_write_pico_usd)
        if hour_writes:
            dearest_input = max(dearest_input, self._hour_pico_usd)
        return prompt_tokens * dearest_input + completion_tokens * self.output_pico_usd

    @property
    def _hour_pico_usd(self) -> int:
        return self.cache_write_pico_usd if self.cache_write_1h_pico_usd is None else self.cache_write_1h_pico_usd


def to_pico_usd_per_token(price_micro_per_mtok: int, *, currency: Currency, krw_per_usd: int) -> int:
    """A catalog price as pico-USD for one token; a price in won is rounded up, so that a conversion never
    makes the ledger show less than the invoice.
    """
    if currency == "USD":
        return price_micro_per_mtok
    return -(-price_micro_per_mtok // krw_per_usd)
