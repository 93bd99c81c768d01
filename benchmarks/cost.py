"""What a month of requests costs: ``naru cost`` for three sizes of team."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from benchmarks.figures import publish, table
from naru import catalog
from naru.aws_prices import CHECKED, REGIONS, Load
from naru.cli.cost import estimate
from naru.pricing import PICO_PER_USD, Usage

_LOADS = (10**5, 10**6, 10**7)
_LATENCY_S = Decimal(3)
_MODEL, _USAGE = "hyperclova-x-omni", Usage(prompt_tokens=500, completion_tokens=300)


def run() -> dict[str, Any]:
    """Computes, prints, writes the table into docs/performance.md."""
    rates = catalog.load().model(_MODEL).deployments[0].rates
    results: dict[str, Any] = {}
    for requests in _LOADS:
        tokens_usd = Decimal(requests * rates.cost_pico_usd(_USAGE)) / PICO_PER_USD
        results[str(requests)] = estimate(Load(requests, _LATENCY_S), tokens_usd)
    publish("cost", _report(results))
    return results


def _report(results: dict[str, Any]) -> str:
    headings = ["", *(f"{prices.name}, {int(requests):,}" for prices in REGIONS.values() for requests in results)]
    of = [found["regions"][region] | found for region in REGIONS for found in results.values()]
    items = [[item, *(f"{each['naru'][item]:,.2f}" for each in of)] for item in of[0]["naru"]]
    rows = [
        *items,
        ["**Naru in all**", *(f"**{each['naru_usd']:,.2f}**" for each in of)],
        ["always-on containers", *(f"{each['containers_usd']:,.2f}" for each in of)],
        ["the tokens themselves", *(f"{each['tokens_usd']:,.2f}" for each in of)],
        ["Naru per million requests", *(f"{each['per_million_usd']:,.2f}" for each in of)],
        ["Naru, % of the tokens", *(f"{each['share_of_tokens_percent']:.2f}" for each in of)],
    ]
    about = (
        f"`python -m benchmarks cost`, or `naru cost --requests 1e6 --latency {_LATENCY_S}`: USD a month for so many requests of "
        f"{_LATENCY_S} s, {_USAGE.prompt_tokens} tokens in and {_USAGE.completion_tokens} out on {_MODEL}. List prices of "
        f"{CHECKED}, without free tiers and data transfer."
    )
    return f"{about}\n\n{table(headings, rows)}"
