"""What a client sees, and what it costs, when a provider misbehaves: every fault, as a stream and as JSON.

    python -m benchmarks faults                 full timings, about two minutes; results/faults.json
    python -m benchmarks faults --fast          short limits, no figures worth keeping
    python -m benchmarks faults --stack         a dozen of them through the deployed system
    python -m benchmarks faults --write-docs    the tables of docs/faults.md

The exit status is 1 if there is a FAIL.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx

from benchmarks.fault_cases import CASES, FAST, FULL, OUTAGE, OUTAGE_REFUSED, REVOKED, Timings
from benchmarks.fault_client import said
from benchmarks.fault_scenarios import outage, revoked
from benchmarks.fault_trial import Gateway, Result, Trial, catalog_toml
from benchmarks.in_process import SEOUL, gateways
from local.gateway import gateway as deployed_gateway
from local.http_server import serve
from local.processes import stay_on_this_machine
from local.simulated_model import Config, SimulatedModel
from naru import catalog
from naru.health import HealthPolicy
from naru.ledger import Ledger, Row

DOCS = Path(__file__).parent.parent / "docs" / "faults.md"
ENVIRONMENTS = 4
SCENARIOS = (OUTAGE, OUTAGE_REFUSED, REVOKED)
ON_THE_STACK = (
    "429-named-once", "429-long", "503", "refused", "dns", "reset-billed", "silence-all", "cut-reset", "malformed",
    "no-done", "refuses-prefill", "refuses-prefill-other", "garbage", "filter",
)  # fmt: skip

_KEYS = {"primary": "key-of-primary", "fallback": "key-of-fallback"}
_HANDLER_PROCESSES = 4


async def in_process(timings: Timings, *, at_once: int, apart_s: float = 0.0, only: str = "") -> list[Result]:
    """All faults, each with providers of its own, through gateways in this process."""
    trials = [
        Trial(case, mode, timings)
        for case in (*SCENARIOS, *CASES)
        for mode in case.modes
        if only in f"{case.slug}-{mode}"
    ]
    keys = _KEYS | {trial.secret: "old" for trial in trials if trial.case is REVOKED}
    async with _all_running(trials):
        text = catalog_toml(trials)
        async with gateways(text, keys, count=ENVIRONMENTS, policy=_policy(timings)) as running:

            async def row(request_id: str) -> Row | None:
                return running.tables.row(request_id)

            gateway = Gateway(running.base_url, running.api_key, catalog.parse(text, source="faults"), row)

            def replace_key(trial: Trial) -> Callable[[str], Awaitable[None]]:
                async def put(key: str) -> None:
                    running.secret.fields[trial.secret] = key

                return put

            results = await _run(trials, gateway, replace_key, at_once=at_once, apart_s=apart_s)
            for problem in running.tables.unsettled():
                results[0].problems.append(problem)
                results[0].verdict = "FAIL"
            return results


async def on_the_stack(timings: Timings, *, slugs: Sequence[str] = ON_THE_STACK) -> list[Result]:
    """Some of them through front door, Lambda runtime, deployed template and emulator."""
    trials = [Trial(case, mode, timings) for case in CASES if case.slug in slugs for mode in case.modes]
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(_all_running(trials))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="naru-faults-")))
        file, text = folder / "catalog.toml", catalog_toml(trials)
        file.write_text(text, encoding="utf-8")
        running = await stack.enter_async_context(
            deployed_gateway(
                folder=folder,
                provider_base_urls={},
                provider_keys=_KEYS,
                catalog=file,
                max_processes=_HANDLER_PROCESSES,
            )
        )
        client: Any = running.stack.emulator.client("dynamodb")
        ledger = Ledger(client, running.stack.outputs["LedgerTable"], SEOUL)
        gateway = Gateway(running.base_url, running.api_key, catalog.parse(text, source="faults"), ledger.get)
        return await _run(trials, gateway, None, at_once=_HANDLER_PROCESSES, apart_s=0.0)


@asynccontextmanager
async def _all_running(trials: Sequence[Trial]) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for trial in trials:
            await stack.enter_async_context(trial.running())
        yield


async def _run(
    trials: Sequence[Trial],
    gateway: Gateway,
    replace_key: Callable[[Trial], Callable[[str], Awaitable[None]]] | None,
    *,
    at_once: int,
    apart_s: float,
) -> list[Result]:
    answers, turn = await _expected(trials), asyncio.Semaphore(at_once)
    # Rare modules are imported by the request that first needs them; that is not to be in anybody's figures.
    await asyncio.to_thread(_import_rare)

    async def one(number: int, trial: Trial) -> Result:
        await asyncio.sleep(number * apart_s)
        expected = answers[trial.prompt]
        if trial.case in {OUTAGE, OUTAGE_REFUSED}:
            return await outage(trial, gateway, expected)
        if trial.case is REVOKED and replace_key is not None:
            return await revoked(trial, gateway, expected, replace_key=replace_key(trial))
        async with turn:
            return await trial.run(gateway, expected)

    return await asyncio.gather(*itertools.starmap(one, enumerate(trials)))


def _import_rare() -> None:
    import email.utils  # noqa: F401

    import botocore.exceptions  # noqa: F401


async def _expected(trials: Sequence[Trial]) -> dict[str, str]:
    """What a healthy model says to each prompt."""
    expected = {}
    async with serve(SimulatedModel(Config()).handle) as server, httpx.AsyncClient(trust_env=False) as client:
        for trial in trials:
            answer = await client.post(
                f"http://{server.host}:{server.port}/v1/chat/completions",
                json={
                    "model": "any",
                    "messages": [{"role": "user", "content": trial.prompt}],
                    **({"tools": trial.tools} if trial.tools else {}),
                },
                headers={"authorization": "Bearer any"},
            )
            expected[trial.prompt] = said(answer.json()["choices"][0]["message"])
    return expected


def _policy(timings: Timings) -> HealthPolicy:
    """The breaker's times, as much shorter as the scenarios' are."""
    usual, shorter = HealthPolicy(), timings.every_s / FULL.every_s
    return replace(
        usual,
        view_life_s=usual.view_life_s * shorter,
        slot_ms=round(usual.slot_ms * shorter),
        report_every_s=usual.report_every_s * shorter,
        cool_down_s=usual.cool_down_s * shorter,
        cool_down_growth_s=usual.cool_down_growth_s * shorter,
        max_cool_down_s=usual.max_cool_down_s * shorter,
    )


# ── The command ────────────────────────────────────────────────────────────────────────────────────────────


def table(results: Sequence[Result]) -> str:
    """In Markdown."""
    lines = [
        "| fault | asked for | verdict | the client saw | calls, primary + fallback | first token, s | whole, s | ledger against the bill |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    previous = ""
    for result in results:
        name, previous = "" if result.name == previous else result.name, result.name
        calls = f"{result.primary} + {result.fallback}" if result.fallback is not None else f"{result.primary}"
        first = "" if result.first_token_s is None else f"{result.first_token_s:.1f}"
        verdict = result.verdict if result.verdict != "FAIL" else f"**FAIL**: {'; '.join(result.problems)}"
        mode = "stream" if result.mode == "stream" else "JSON"
        lines.append(
            f"| {name} | {mode} | {verdict} | {result.saw} | {calls} | {first} | {result.total_s:.1f} | {result.ledger} |"
        )
    return "\n".join(lines)


def summary(results: Sequence[Result]) -> str:
    """In a line."""
    counted = Counter(result.verdict for result in results)
    return ", ".join(f"{counted[verdict]} {verdict}" for verdict in ("rescued", "clean error", "FAIL"))


def run(*, fast: bool = False, stack: bool = False, only: str = "") -> list[dict[str, Any]]:
    """Prints the table; a dict for each line of it."""
    logging.disable(logging.CRITICAL)  # a few hundred warnings, as it should be
    stay_on_this_machine()
    for name in ("https_proxy", "http_proxy", "all_proxy"):  # a proxy would fail in its own way
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)
    timings, began_s = FAST if fast else FULL, time.monotonic()
    with redirect_stdout(io.StringIO()):  # the metrics of the gateways
        work = (
            on_the_stack(FAST)
            if stack
            else in_process(timings, at_once=8 if fast else 1_000, apart_s=0.0 if fast else 0.3, only=only)
        )
        results = asyncio.run(work)
    print("\nfaults\n\n" + table(results) + f"\n\n{summary(results)}; {time.monotonic() - began_s:.0f} s")
    return [asdict(result) for result in results]


def main(arguments: Sequence[str]) -> int:
    """``python -m benchmarks faults …``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks faults", description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="short limits")
    parser.add_argument("--stack", action="store_true", help="a dozen, through the deployed system, with short limits")
    parser.add_argument("--only", default="", metavar="TEXT", help="those with this in their short name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the results")
    parser.add_argument("--write-docs", action="store_true", help=f"the tables of {DOCS.name}")
    options = parser.parse_args(arguments)
    results = run(fast=options.fast, stack=options.stack, only=options.only)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.write_docs:
        write_between(DOCS, "stack" if options.stack else "faults", table([Result(**each) for each in results]))
    return int(any(result["verdict"] == "FAIL" for result in results))


def write_between(file: Path, marker: str, text: str) -> None:
    """Replaces what is between the comments ``<!-- marker -->`` and ``<!-- /marker -->``."""
    old = file.read_text(encoding="utf-8")
    head, opening, rest = old.partition(f"<!-- {marker} -->\n")
    _, closing, tail = rest.partition(f"<!-- /{marker} -->")
    if not opening or not closing:
        raise ValueError(f"{file} has no <!-- {marker} --> … <!-- /{marker} -->")
    file.write_text(f"{head}{opening}{text}\n{closing}{tail}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
