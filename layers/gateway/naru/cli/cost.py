"""``naru cost``: what a month of requests costs on AWS, next to containers and to the tokens themselves."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from naru import catalog
from naru.aws_prices import CHECKED, REGIONS, Load, containers, naru
from naru.cli.output import MisuseError, show, show_content, show_table
from naru.errors import CatalogError, ModelNotFoundError
from naru.pricing import PICO_PER_USD, Usage

_PER_MILLION = 10**6


def show_cost(arguments: argparse.Namespace) -> None:
    """Prints the estimate."""
    prompt_tokens, completion_tokens = arguments.tokens
    load = Load(arguments.requests, arguments.latency, arguments.memory, arguments.peak)
    tokens_usd = _tokens_usd(load.requests, prompt_tokens, completion_tokens, arguments.model, arguments.catalog)
    found = estimate(load, tokens_usd)
    if arguments.json:
        show_content(json.dumps(found, indent=2), is_json=True)
        return
    names = [prices.name for prices in REGIONS.values()]
    regions = [found["regions"][region] for region in REGIONS]
    show_table(["USD a month", *names], _rows(regions, "naru", "Naru"))
    show()
    show_table(["always-on containers", *names], _rows(regions, "containers", "containers"))
    show()
    show(
        f"{load.requests:,} requests a month of {load.latency_s} s, {load.in_flight:.1f} in flight on average, "
        f"{load.peak} times that at most."
    )
    show(
        f"Naru adds {_both(regions, 'per_million_usd')} USD per million requests in {_joined(names)}. Their tokens, "
        f"{prompt_tokens} in and {completion_tokens} out on {arguments.model}, cost {tokens_usd:,.2f} USD: Naru adds "
        f"{_both(regions, 'share_of_tokens_percent')} % to that."
    )
    show(f"List prices of {CHECKED}, without free tiers and data transfer.")


def estimate(load: Load, tokens_usd: Decimal) -> dict[str, Any]:
    """All figures, for programs: dollars as numbers, rounded to a hundredth of a cent."""
    regions = {}
    for region, prices in REGIONS.items():
        ours, theirs = naru(load, prices), containers(load, prices)
        whole = sum(ours.values(), Decimal(0))
        regions[region] = {
            "naru": _rounded(ours),
            "naru_usd": _number(whole),
            "containers": _rounded(theirs),
            "containers_usd": _number(sum(theirs.values(), Decimal(0))),
            "per_million_usd": _number(whole / load.requests * _PER_MILLION),
            "share_of_tokens_percent": _number(whole / tokens_usd * 100) if tokens_usd else None,
        }
    return {"tokens_usd": _number(tokens_usd), "regions": regions}


def _tokens_usd(
    requests: int, prompt_tokens: int, completion_tokens: int, model: str, own_catalog: Path | None
) -> Decimal:
    try:
        chosen = catalog.load(own_catalog) if own_catalog else catalog.load()
        rates = chosen.model(model).deployments[0].rates
    except (CatalogError, ModelNotFoundError) as error:
        raise MisuseError(str(error)) from error
    cost_pico_usd = rates.cost_pico_usd(Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens))
    return Decimal(requests * cost_pico_usd) / PICO_PER_USD


def _rows(regions: list[dict[str, Any]], part: str, name: str) -> list[list[str]]:
    items = [[item, *(_usd(region[part][item]) for region in regions)] for item in regions[0][part]]
    return [*items, [f"{name} in all", *(_usd(region[f"{part}_usd"]) for region in regions)]]


def _both(regions: list[dict[str, Any]], key: str) -> str:
    return _joined([f"{region[key]:,.2f}" if region[key] is not None else "-" for region in regions])


def _joined(words: list[str]) -> str:
    return " and ".join(words)


def _rounded(amounts: Mapping[str, Decimal]) -> dict[str, float]:
    return {name: _number(amount) for name, amount in amounts.items()}


def _number(amount: Decimal) -> float:
    return round(float(amount), 4)


def _usd(amount: float) -> str:
    return f"{amount:>12,.2f}"
