"""Ten to ten thousand execution environments on the same meters, breaker and provider: a simulation in computed time.

The environments run the product's own use case; time, DynamoDB and the provider are models. docs/scale.md says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.figures import publish, table
from benchmarks.scale_plots import Line, write_plot
from benchmarks.scale_tables import WRITE_UNITS_PER_S
from benchmarks.scale_world import PRIMARY, Setup, simulate
from local.template import REPOSITORY
from naru.admin_api import MAX_ORGANISATION_SHARDS

SIZES = (10, 30, 100, 300, 1_000, 3_000, 10_000)
PAGE = REPOSITORY / "docs/scale.md"
IMAGES = REPOSITORY / "docs/images"
_PER_SHARD = 125
"""Environments that a shard of the organisation's meter can bear."""
_WORST_PICO_USD, _COST_PICO_USD = 3_640_000_000, 1_700_000_000
_ONE_SHARD_UP_TO = 1_000
_CAPACITY_SECONDS = {10: 60.0, 30: 60.0, 100: 60.0, 300: 30.0, 1_000: 12.0, 3_000: 6.0}
_STARTS_PER_S = (10, 30, 100)


class OvershootError(Exception):
    """A budget was exceeded: the one thing that must not happen at any size."""


def run() -> dict[str, Any]:
    """Prints and publishes the tables, draws the plots; a list for each table."""
    results = {
        "meters": [meters(size) for size in SIZES],
        "one_shard": [meters(size, shards=1) for size in SIZES if size <= _ONE_SHARD_UP_TO],
        "starts": [starts(per_s) for per_s in _STARTS_PER_S],
        "provider": [provider(size, seconds) for size, seconds in _CAPACITY_SECONDS.items()],
        "outage": [outage(size) for size in SIZES],
    }
    publish("scale", _text(results), page=PAGE)
    _draw(results)
    return results


def shards_for(environments: int) -> int:
    """How many shards the organisation's meter needs, as far as the product lets it have them."""
    return min(MAX_ORGANISATION_SHARDS, max(1, -(-environments // _PER_SHARD)))


def meters(environments: int, *, shards: int | None = None) -> dict[str, Any]:
    """Warm environments, a provider with room for all, and a budget that ends in the middle of the run.

    Raises OvershootError.
    """
    shards = shards or shards_for(environments)
    # What is in flight at its worst case, and so many answers.
    budget_pico_usd = environments * (_WORST_PICO_USD * 3 // 4 + _COST_PICO_USD * 3 // 5)
    world = simulate(
        Setup(
            environments,
            shards=shards,
            budget_pico_usd=budget_pico_usd,
            ramp_s=2.0,
            settle_s=2.0,
            seconds=4.5,
        )
    )
    if world.overshoot.pico_usd or world.providers[PRIMARY].billed_pico_usd > budget_pico_usd:
        raise OvershootError(f"{environments} environments went {world.overshoot.pico_usd} pico-USD over the budget")
    items = [
        world.traffic["MeterTable", meter] for meter in world.organisation() if ("MeterTable", meter) in world.traffic
    ]
    hottest = max(items, key=lambda each: each.write_units + 1000 * each.throttled)
    units_per_s = hottest.write_units / world.traffic_s
    return {
        "environments": environments,
        "shards": shards,
        "answered": world.outcomes["answered"],
        "store_unavailable": world.outcomes["store_unavailable"],
        "refused_for_budget": world.outcomes["insufficient_quota"],
        "hottest_writes_per_s": hottest.writes / world.traffic_s,
        "hottest_units_per_s": units_per_s,
        "used": units_per_s / WRITE_UNITS_PER_S,
        "throttled": sum(each.throttled for each in items),
        "failed_conditions": sum(each.failed_conditions for each in items),
        "transaction_conflicts": sum(each.conflicts for each in items),
        "largest_kb": max(each.largest_bytes for each in items) / 1024,
        "budget_committed": world.overshoot.most_pico_usd / budget_pico_usd,
        "overshoot_pico_usd": world.overshoot.pico_usd,
    }


def starts(per_s: int, *, seconds: float = 4.0) -> dict[str, Any]:
    """New environments, so many a second, on an organisation of 16 shards."""
    setup = Setup(round(per_s * seconds), shards=16, is_warm=False, ramp_s=seconds, seconds=seconds + 3)
    world = simulate(setup)
    first = world.tables.traffic["MeterTable", "organisation"]
    return {
        "starts_per_s": per_s,
        "offered": world.offered,
        "store_unavailable": world.outcomes["store_unavailable"],
        "first_shard_throttled": first.throttled,
        "first_shard_units": first.write_units,
        "all_units": sum(world.tables.traffic["MeterTable", meter].write_units for meter in world.organisation()),
    }


def provider(environments: int, seconds: float) -> dict[str, Any]:
    """A provider with room for half as many calls as there are environments."""
    capacity = environments // 2
    world = simulate(
        Setup(environments, shards=shards_for(environments), capacity=capacity, settle_s=4.0, seconds=seconds)
    )
    primary, health = world.providers[PRIMARY], world.traffic["HealthTable", PRIMARY]
    possible = capacity / (primary.busy_s / primary.answered) * (seconds - 4)
    asked = environments / (3.2 + 1.0) * (seconds - 4)
    return {
        "environments": environments,
        "seconds": seconds,
        "offered_per_s": world.offered / (seconds - 4),
        "answered": world.outcomes["answered"],
        "goodput": world.outcomes["answered"] / min(possible, asked),
        "failed": world.offered - world.outcomes["answered"],
        "refused_429": primary.refused / primary.calls,
        "health_writes_per_s": health.writes / world.traffic_s,
        "health_units_per_s": health.write_units / world.traffic_s,
        "health_refused": health.failed_conditions / max(1, health.writes),
        "health_throttled_per_s": health.throttled / world.traffic_s,
        "limit": world.tables.items.get(("HealthTable", PRIMARY), {}).get("limit", 0),
        "capacity": capacity,
    }


def outage(environments: int) -> dict[str, Any]:
    """Every environment is fresh and has one request, all in the same instant; both providers answer 503."""
    world = simulate(
        Setup(
            environments,
            shards=shards_for(environments),
            is_out=True,
            has_fallback=True,
            requests_each=1,
            ramp_s=0.0,
            seconds=60.0,
        )
    )
    health = world.tables.traffic["HealthTable", PRIMARY]
    calls = {name: each.calls for name, each in world.providers.items()}
    return {
        "environments": environments,
        "primary": calls[PRIMARY],
        "fallback": sum(calls.values()) - calls[PRIMARY],
        "per_request": calls[PRIMARY] / environments,
        "health_writes": health.writes,
        "health_refused": health.failed_conditions,
        "health_throttled": health.throttled,
    }


def _text(results: dict[str, list[dict[str, Any]]]) -> str:
    parts = [
        "`python -m benchmarks scale`, seed 1.",
        "**Meters: a budget that ends in mid-run**",
        _table(
            ("environments", "shards", "answers", "503", "budget set aside", "overshoot", "writes/s on the hottest", "its units/s", "of 1,000", "throttled", "refused writes", "transaction conflicts", "largest item, KB"),
            [_meter_cells(row) for row in results["meters"]],
        ),
        "**The same with one shard**",
        _table(
            ("environments", "shards", "answers", "503", "budget set aside", "overshoot", "writes/s on the hottest", "its units/s", "of 1,000", "throttled", "refused writes", "transaction conflicts", "largest item, KB"),
            [_meter_cells(row) for row in results["one_shard"]],
        ),
        "**New environments, 16 shards**",
        _table(
            ("new environments a second", "requests", "503", "throttled on the first shard", "its part of all units"),
            [
                (f"{r['starts_per_s']}", f"{r['offered']}", f"{r['store_unavailable']}", f"{r['first_shard_throttled']}", f"{r['first_shard_units'] / r['all_units']:.0%}")
                for r in results["starts"]
            ],
        ),
        "**A provider with room for half of the environments**",
        _table(
            ("environments", "seconds", "requests/s ended", "answers", "of what was possible", "failed", "429 of all calls", "limit at the end", "of", "health item: writes/s", "refused", "throttled/s"),
            [
                (f"{r['environments']:,}", f"{r['seconds']:.0f}", f"{r['offered_per_s']:.1f}", f"{r['answered']:,}", f"{r['goodput']:.0%}", f"{r['failed']}", f"{r['refused_429']:.1%}", f"{r['limit']}", f"{r['capacity']:,}", f"{r['health_writes_per_s']:.0f}", f"{r['health_refused']:.0%}", f"{r['health_throttled_per_s']:.0f}")
                for r in results["provider"]
            ],
        ),
        "**A full outage, all in the same instant**",
        _table(
            ("environments", "calls to the primary", "to the fallback", "primary, per request", "health item: writes", "refused", "throttled"),
            [
                (f"{r['environments']:,}", f"{r['primary']:,}", f"{r['fallback']:,}", f"{r['per_request']:.2f}", f"{r['health_writes']:,}", f"{r['health_refused']:,}", f"{r['health_throttled']:,}")
                for r in results["outage"]
            ],
        ),
    ]  # fmt: skip
    return "\n\n".join(parts)


def _meter_cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['environments']:,}",
        f"{row['shards']}",
        f"{row['answered']:,}",
        f"{row['store_unavailable']:,}",
        f"{row['budget_committed']:.1%}",
        f"{row['overshoot_pico_usd']}",
        f"{row['hottest_writes_per_s']:.0f}",
        f"{row['hottest_units_per_s']:.0f}",
        f"{row['used']:.0%}",
        f"{row['throttled']:,}",
        f"{row['failed_conditions']:,}",
        f"{row['transaction_conflicts']:,}",
        f"{row['largest_kb']:.1f}",
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return table(headings, rows)


def _draw(results: dict[str, list[dict[str, Any]]]) -> None:
    def line(name: str, rows: list[dict[str, Any]], field: str, factor: float = 1.0) -> Line:
        return Line(name, [(row["environments"], row[field] * factor) for row in rows])

    write_plot(
        IMAGES / "scale-meters.svg",
        "Write units/s on the hottest item of the organisation's meter (a partition takes 1,000)",
        [
            line("with shards", results["meters"], "hottest_units_per_s"),
            line("one shard", results["one_shard"], "hottest_units_per_s"),
        ],
    )
    write_plot(
        IMAGES / "scale-provider.svg",
        "Answers, % of what a provider with room for half of the environments could give",
        [line("goodput", results["provider"], "goodput", 100.0)],
    )
    write_plot(
        IMAGES / "scale-outage.svg",
        "Calls to the primary per request, in a full outage, all in the same instant",
        [line("calls per request", results["outage"], "per_request")],
    )
