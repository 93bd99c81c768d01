"""What each gateway adds to the first token of a stream and to the time between tokens, at a model's usual pace."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.contestants import DIRECT, LITELLM, NARU, Contestant, everybody
from benchmarks.emulator_calls import measure
from benchmarks.figures import median, percentile, publish, table
from benchmarks.load import Sample, load

_TOKENS, _FIRST_TOKEN_MS, _TOKEN_MS = 30, 300, 20
# Concurrency and requests of one round.
_LOADS = ((1, 8), (10, 30))
_ROUNDS = 2


def run() -> dict[str, Any]:
    """Measures, prints, writes the table into docs/performance.md."""
    return asyncio.run(_run())


async def _run() -> dict[str, Any]:
    results: dict[str, Any] = {"streams": {}}
    with tempfile.TemporaryDirectory(prefix="naru-bench-") as folder:
        async with everybody(Path(folder), concurrency=max(concurrency for concurrency, _ in _LOADS)) as contestants:
            for contestant in contestants:
                await _stream(contestant, concurrency=10, requests=40)
            calls = await asyncio.to_thread(measure, contestants[-1].facts)
            results["emulator_ms_before_first_token"] = calls.ms_to_admit
            for concurrency, requests in _LOADS:
                rounds: dict[str, list[list[Sample]]] = {each.name: [] for each in contestants}
                for number in range(_ROUNDS):
                    for contestant in contestants if number % 2 == 0 else contestants[::-1]:
                        rounds[contestant.name].append(
                            await _stream(contestant, concurrency=concurrency, requests=requests)
                        )
                results["streams"][str(concurrency)] = {
                    name: _figures(of, rounds[DIRECT]) for name, of in rounds.items()
                }
    publish("first_token", _report(results))
    return results


async def _stream(contestant: Contestant, *, concurrency: int, requests: int) -> list[Sample]:
    request = contestant.target.request(stream=True, tokens=_TOKENS, first_token_ms=_FIRST_TOKEN_MS, token_ms=_TOKEN_MS)
    return await load(contestant.target, request, requests=requests, concurrency=concurrency, stream=True)


def _figures(rounds: Sequence[Sequence[Sample]], direct: Sequence[Sequence[Sample]]) -> dict[str, float]:
    firsts, gaps = [], []
    for samples in rounds:
        firsts += first_tokens_ms(samples)
        gaps += [gap_ms for sample in samples for gap_ms in sample.gaps_ms]
    return {
        "first_token_p50_ms": percentile(firsts, 50),
        "first_token_p95_ms": percentile(firsts, 95),
        "added_first_token_ms": median(
            [
                percentile(first_tokens_ms(mine), 50) - percentile(first_tokens_ms(its), 50)
                for mine, its in zip(rounds, direct, strict=True)
            ]
        ),
        "gap_p50_ms": percentile(gaps, 50),
        "gap_p95_ms": percentile(gaps, 95),
        "gap_p99_ms": percentile(gaps, 99),
        "longest_gap_ms": max(gaps),
    }


def first_tokens_ms(samples: Sequence[Sample]) -> list[float]:
    """When the first token came, stream by stream. Raises ValueError for a stream without one."""
    times = [sample.first_token_ms for sample in samples]
    found = [time_ms for time_ms in times if time_ms is not None]
    if len(found) < len(times):
        raise ValueError("a stream without a token")
    return found


def _report(results: dict[str, Any]) -> str:
    about = (
        f"`python -m benchmarks first_token`, {time.strftime('%Y-%m-%d')}. The model takes {_FIRST_TOKEN_MS} ms to its first "
        f"token and {_TOKEN_MS} ms to each of the {_TOKENS - 1} after it."
    )
    parts = [about]
    keys = (
        "first_token_p50_ms",
        "first_token_p95_ms",
        "added_first_token_ms",
        "gap_p50_ms",
        "gap_p95_ms",
        "gap_p99_ms",
    )
    headings = ("", "first token p50 ms", "p95", "added p50", "between tokens p50 ms", "p95", "p99")
    for concurrency, figures in results["streams"].items():
        rows = [[name, *(f"{of[key]:.1f}" for key in keys)] for name, of in figures.items()]
        parts += [f"**{concurrency} at once**", table(headings, rows)]
    alone = results["streams"]["1"]
    emulator_ms = results["emulator_ms_before_first_token"]
    net_ms = max(0.0, alone[NARU]["added_first_token_ms"] - emulator_ms)
    parts.append(
        f"Of Naru's first token {emulator_ms:.1f} ms are the emulator's, for the two writes that let a request in. Without "
        f"them it adds {net_ms:.1f} ms to a single stream, {net_ms / alone[LITELLM]['added_first_token_ms']:.2f} of what "
        "LiteLLM adds."
    )  # fmt: skip
    return "\n\n".join(parts)
