"""What the provider bills, and the rest of `GET /_stats`.

The provider bills what it *generated*: the prompt and the tokens emitted until the end, the cut or the moment when it
noticed that the client had gone. Refused requests are not billed. A row is there before the client can see the end of
its answer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import TypedDict

from local.simulated_model.config import Price


class BillRow(TypedDict):
    """One billed answer. `completion_tokens` include `reasoning_tokens`; `prompt_tokens` include `cached_tokens`.

    `finished` says that the whole answer was generated; `cost_pico_usd` is None for a model without a price.
    """

    id: str
    model: str
    face: str
    key: str
    client_request_id: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    stream: bool
    finished: bool
    cost_pico_usd: int | None


class Sums(TypedDict):
    """Sums over rows; `unpriced` rows have no part in the cost."""

    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cost_pico_usd: int
    unpriced: int


class Totals(Sums):
    """The sums over all rows, and by model."""

    by_model: dict[str, Sums]


class Stats(TypedDict):
    """The answer of `GET /_stats`.

    `attempts` counts answers by status, `none` where the connection just ended. A request is in flight until nothing
    more is generated for it: whoever has its last byte finds it gone.
    """

    requests: int
    billed: list[BillRow]
    totals: Totals
    attempts: dict[str, int]
    in_flight: int
    max_in_flight: int


class Accounts:
    """All that is counted, since the start or the last reset."""

    def __init__(self, prices: Mapping[str, Price]) -> None:
        self._prices = prices
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.reset()

    def reset(self) -> None:
        """Forget everything but the requests that are in flight now."""
        self.requests = 0
        self.rows: list[BillRow] = []
        self.attempts: Counter[str] = Counter()
        self.max_in_flight = self.in_flight

    def enter(self) -> None:
        """Count a request that begins."""
        self.idle.clear()
        self.requests += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def answered(self, status: int | None) -> None:
        """Count an answer by its status, before its first byte; None where there will be none."""
        self.attempts["none" if status is None else str(status)] += 1

    def leave(self) -> None:
        """Count a request that ends: nothing more is generated for it, its last bytes may be on their way."""
        self.in_flight -= 1
        if self.in_flight == 0:
            self.idle.set()

    def cost_pico_usd(self, model: str, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> int | None:
        """Return the price of an answer, or None when the model has none."""
        price = self._prices.get(model)
        return None if price is None else price.cost_pico_usd(prompt_tokens, cached_tokens, completion_tokens)

    def stats(self) -> Stats:
        """Return a snapshot."""
        models = sorted({row["model"] for row in self.rows})
        by_model = {model: _sums([row for row in self.rows if row["model"] == model]) for model in models}
        return {
            "requests": self.requests,
            "billed": [row.copy() for row in self.rows],
            "totals": {**_sums(self.rows), "by_model": by_model},
            "attempts": dict(self.attempts),
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
        }


def _sums(rows: list[BillRow]) -> Sums:
    return {
        "requests": len(rows),
        "prompt_tokens": sum(row["prompt_tokens"] for row in rows),
        "cached_tokens": sum(row["cached_tokens"] for row in rows),
        "completion_tokens": sum(row["completion_tokens"] for row in rows),
        "reasoning_tokens": sum(row["reasoning_tokens"] for row in rows),
        "cost_pico_usd": sum(row["cost_pico_usd"] or 0 for row in rows),
        "unpriced": sum(row["cost_pico_usd"] is None for row in rows),
    }


class Bill:
    """The bill of one answer while it is generated. `close` may be called often; the first call writes the row."""

    def __init__(self, accounts: Accounts, row: BillRow) -> None:
        self._accounts = accounts
        self._closed = False
        self.row = row

    def generated(self, tokens: int, *, reasoning: bool = False) -> None:
        """Count tokens that the model has produced."""
        self.row["completion_tokens"] += tokens
        self.row["reasoning_tokens"] += tokens if reasoning else 0

    def close(self, *, finished: bool) -> None:
        """Write the row."""
        if not self._closed:
            self._closed = True
            self.row["finished"] = finished
            self.row["cost_pico_usd"] = self.cost_pico_usd()
            self._accounts.rows.append(self.row)

    def cost_pico_usd(self) -> int | None:
        """Return the cost of what has been generated so far."""
        row = self.row
        return self._accounts.cost_pico_usd(
            row["model"], row["prompt_tokens"], row["cached_tokens"], row["completion_tokens"]
        )
