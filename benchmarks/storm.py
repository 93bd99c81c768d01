"""A hundred clients and a provider that serves twenty at a time: what the clients get, and what the provider suffers.

    python -m benchmarks storm [--seconds 60] [--json FILE] [--write-docs]

Naru, as ten and as a hundred execution environments that share their tables, and the tutorial's client in one run,
against the same simulated provider in a process of its own: 429 beyond twenty at once, 10 % random 503, log-normal answers of 850 ms in
the mean and 1,200 ms at P95. Then a full outage: how often a provider is called in vain. ``tables`` are writes and reads
of DynamoDB per answer.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import logging
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.faults import DOCS, write_between
from benchmarks.in_process import Running, gateways
from benchmarks.outage import REQUESTS, outage_table, outages
from benchmarks.storm_provider import ITEM, Provider, ask, catalog, new_client, provider
from benchmarks.tutorial_client import TutorialClient
from local.processes import stay_on_this_machine

CLIENTS = 100
ENVIRONMENTS = (10, CLIENTS)
"""Execution environments of Naru; Lambda has one for each request that is under way."""
AT_ONCE = 20
MEAN_MS, P95_MS = 850.0, 1_200.0
RANDOM_503 = 0.1

_TICK_S = 0.05


@dataclass(frozen=True)
class Storm:
    """A line of the first table. Attempts are those that the provider has counted."""

    client: str
    seconds: float
    answered: int
    failed: int
    attempts: int
    refused_429: int
    failed_503: int
    p50_s: float
    p95_s: float
    tables_per_answer: float | None
    late_p95_ms: float
    """How late this process was woken: what a busy machine adds to all times."""

    @property
    def attempts_per_answer(self) -> float:
        return self.attempts / max(1, self.answered)

    @property
    def goodput(self) -> float:
        """Answers a second, as a share of what the provider could give."""
        return self.answered / self.seconds / (AT_ONCE / (MEAN_MS / 1000))

    @property
    def failed_share(self) -> float:
        return self.failed / max(1, self.answered + self.failed)


Ask = Callable[[int], Awaitable[object]]
"""One request of the client with this number."""


# ── The storm ──────────────────────────────────────────────────────────────────────────────────────────────


async def storms(seconds: float) -> list[Storm]:
    """Naru first, then the tutorial's client."""
    latency = ("--first-token-ms", str(MEAN_MS), "--first-token-p95-ms", str(P95_MS), "--answer-tokens", "20")
    async with provider("--max-concurrent", str(AT_ONCE), *latency) as model:
        results = [await _naru(environments, model, seconds) for environments in ENVIRONMENTS]
        for at_once in (CLIENTS, CLIENTS // 2):
            async with TutorialClient(model.url, "key", max_connections=at_once) as tutorial:
                name = f"the tutorial's client, {at_once} at once"
                results.append(await _storm(name, lambda _: tutorial.ask(ITEM), model, seconds, None))
        return results


async def _naru(environments: int, model: Provider, seconds: float) -> Storm:
    async with gateways(catalog(model.url), {"primary": "key"}, count=environments) as running:
        async with AsyncExitStack() as stack:
            apps = [
                await stack.enter_async_context(new_client(running.base_url, running.api_key)) for _ in range(CLIENTS)
            ]
            name = f"Naru, {environments} environments"
            storm = await _storm(name, lambda number: ask(apps[number]), model, seconds, running)
        if problems := running.tables.unsettled():
            raise RuntimeError("; ".join(problems))
        return storm


async def _storm(name: str, send: Ask, model: Provider, seconds: float, running: Running | None) -> Storm:
    await model.control({"seed": 1, "rules": [{"probability": RANDOM_503, "fault": {"name": "status", "status": 503}}]})
    calls_before = 0 if running is None else running.tables.calls
    until_s = time.monotonic() + seconds
    took_s: list[float] = []
    failed = 0

    async def client(number: int) -> None:
        nonlocal failed
        while time.monotonic() < until_s:
            began_s = time.monotonic()
            try:
                await send(number)
            except (httpx.HTTPError, TimeoutError, ValueError):
                failed += time.monotonic() <= until_s
            else:
                # Answers that come later belong to nobody's rate.
                if time.monotonic() <= until_s:
                    took_s.append(time.monotonic() - began_s)

    late_s: list[float] = []

    async def look_at_the_clock() -> None:
        while (now_s := time.monotonic()) < until_s:
            await asyncio.sleep(_TICK_S)
            late_s.append(time.monotonic() - now_s - _TICK_S)

    clients = [asyncio.create_task(work) for work in (look_at_the_clock(), *map(client, range(CLIENTS)))]
    await asyncio.sleep(seconds)
    stats = await model.stats()
    calls = 0 if running is None else running.tables.calls - calls_before
    await asyncio.gather(*clients)
    ranked = statistics.quantiles(took_s, n=100) if len(took_s) > 1 else [0.0] * 99
    return Storm(
        client=name,
        seconds=seconds,
        answered=len(took_s),
        failed=failed,
        attempts=stats["requests"],
        refused_429=stats["attempts"].get("429", 0),
        failed_503=stats["attempts"].get("503", 0),
        p50_s=ranked[49],
        p95_s=ranked[94],
        tables_per_answer=None if running is None else calls / max(1, len(took_s)),
        late_p95_ms=statistics.quantiles(late_s, n=100)[94] * 1000,
    )


# ── The command ────────────────────────────────────────────────────────────────────────────────────────────


def run(*, seconds: float = 60.0, write_docs: bool = False) -> dict[str, Any]:
    """Prints the tables; their lines as dicts."""
    logging.disable(logging.CRITICAL)
    stay_on_this_machine()
    with redirect_stdout(io.StringIO()):  # the metrics of the gateways
        stormy, vain = asyncio.run(storms(seconds)), asyncio.run(outages())
    print(f"\nstorm: {CLIENTS} clients for {seconds:g} s; {AT_ONCE} at a time, {RANDOM_503:.0%} random 503\n")
    print(storm_table(stormy))
    print(f"\noutage: {REQUESTS} requests while primary and fallback answer 503\n")
    print(outage_table(vain))
    if write_docs:
        write_between(DOCS, "storm", storm_table(stormy))
        write_between(DOCS, "outage", outage_table(vain))
    return {
        "storm": [asdict(s) | {"attempts_per_answer": s.attempts_per_answer, "goodput": s.goodput} for s in stormy],
        "outage": [asdict(o) | {"per_request": o.per_request} for o in vain],
    }


def storm_table(storms: Sequence[Storm]) -> str:
    """In Markdown."""
    lines = [
        "| client | answers | attempts per answer | 429 per answer | goodput of capacity | requests failed | P50, s | P95, s | tables per answer | late, P95, ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for s in storms:
        tables = "" if s.tables_per_answer is None else f"{s.tables_per_answer:.1f}"
        lines.append(
            f"| {s.client} | {s.answered:,} | {s.attempts_per_answer:.2f} | {s.refused_429 / max(1, s.answered):.2f} | "
            f"{s.goodput:.0%} | {s.failed_share:.1%} | {s.p50_s:.1f} | {s.p95_s:.1f} | {tables} | {s.late_p95_ms:.0f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """``python -m benchmarks storm …``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks storm", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--write-docs", action="store_true", help=f"the tables of {DOCS.name}")
    options = parser.parse_args(arguments)
    results = run(seconds=options.seconds, write_docs=options.write_docs)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
