"""What each gateway adds to a call: time, CPU, memory, against the same simulated model in the same run.

The contestants take turns in every round, so that what else the machine does falls on all of them; figures are medians
over rounds. Each request of Naru's passes two meters and leaves a row in the ledger: the rows are counted at the end.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contestants import DIRECT, LITELLM, NARU, Contestant, everybody
from benchmarks.emulator_calls import EmulatorCalls, measure, row_count
from benchmarks.figures import median, percentile, publish, table
from benchmarks.load import Connection, Sample, load

_TOKENS = 60
_WARM_UP = 30


@dataclass(frozen=True)
class Setting:
    """One way to load them. ``latency_ms`` is the model's until its first token."""

    stream: bool
    concurrency: int
    latency_ms: int
    requests: int
    rounds: int

    @property
    def name(self) -> str:
        return f"{'stream' if self.stream else 'JSON'}, {self.concurrency} at once, model {self.latency_ms} ms"


SETTINGS = (
    Setting(stream=False, concurrency=1, latency_ms=0, requests=60, rounds=4),
    Setting(stream=True, concurrency=1, latency_ms=0, requests=30, rounds=4),
    Setting(stream=False, concurrency=10, latency_ms=0, requests=100, rounds=4),
    Setting(stream=True, concurrency=10, latency_ms=0, requests=50, rounds=4),
    Setting(stream=False, concurrency=1, latency_ms=300, requests=10, rounds=2),
    Setting(stream=True, concurrency=1, latency_ms=300, requests=10, rounds=2),
    Setting(stream=False, concurrency=10, latency_ms=300, requests=50, rounds=2),
    Setting(stream=True, concurrency=10, latency_ms=300, requests=50, rounds=2),
)


@dataclass
class _Measured:
    """One contestant in one setting, all rounds."""

    samples: list[Sample]
    rounds: list[list[Sample]]
    cpu_ms: dict[str, list[float]]
    """Per request, by part, one figure a round."""
    seconds: float = 0.0


def run(settings: Sequence[Setting] = SETTINGS) -> dict[str, Any]:
    """Measures, prints, writes the tables into docs/performance.md."""
    return asyncio.run(_run(settings))


async def _run(settings: Sequence[Setting]) -> dict[str, Any]:
    concurrency = max(setting.concurrency for setting in settings)
    with tempfile.TemporaryDirectory(prefix="naru-bench-") as folder:
        async with everybody(Path(folder), concurrency=concurrency) as contestants:
            naru = contestants[-1]
            for contestant in contestants:
                await _warm_up(contestant, concurrency)
            calls = await asyncio.to_thread(measure, naru.facts)
            health_ms = await _health_ms(naru)
            rows_before, log_before = await asyncio.to_thread(row_count, naru.facts), _size(naru)
            measured = {setting.name: await _measure(setting, contestants) for setting in settings}
            asked = sum(setting.requests * setting.rounds for setting in settings)
            rows = await asyncio.to_thread(row_count, naru.facts) - rows_before
            if rows != asked:
                raise RuntimeError(f"{asked} requests left {rows} rows")
            results: dict[str, Any] = {
                "settings": {
                    setting.name: _figures(setting, measured[setting.name], calls, contestants) for setting in settings
                },
                "emulator_ms_per_call": calls.ms_by_operation,
                "emulator_ms_per_request": calls.ms_per_request,
                "health_ms": health_ms,
                "log_bytes_per_request": (_size(naru) - log_before) / asked,
                "memory_mb": {each.name: each.memory_mb() for each in contestants if each.root is not None},
                "versions": {each.name: each.facts["versions"] for each in contestants if "versions" in each.facts},
            }
    results["goals"] = goals(results["settings"])
    publish("overhead", _report(results))
    return results


async def _warm_up(contestant: Contestant, concurrency: int) -> None:
    """Until every process has served both kinds of requests."""
    for stream in (False, True):
        for latency_ms in (100, 0):  # slow ones first: a pool of processes grows only when all are busy
            request = contestant.target.request(stream=stream, tokens=_TOKENS, first_token_ms=latency_ms)
            await load(contestant.target, request, requests=_WARM_UP * 2, concurrency=concurrency, stream=stream)


async def _health_ms(naru: Contestant) -> float:
    connection = Connection(naru.target)
    samples = [await connection.ask(naru.target.health()) for _ in range(_WARM_UP * 2)]
    connection.close()
    return median([sample.total_ms for sample in samples])


async def _measure(setting: Setting, contestants: Sequence[Contestant]) -> dict[str, _Measured]:
    measured = {each.name: _Measured([], [], {}) for each in contestants}
    for number in range(setting.rounds):
        for contestant in contestants if number % 2 == 0 else contestants[::-1]:
            request = contestant.target.request(
                stream=setting.stream, tokens=_TOKENS, first_token_ms=setting.latency_ms
            )
            before, began_s = contestant.cpu_s(), time.perf_counter()
            samples = await load(
                contestant.target,
                request,
                requests=setting.requests,
                concurrency=setting.concurrency,
                stream=setting.stream,
            )
            after, into = contestant.cpu_s(), measured[contestant.name]
            into.seconds += time.perf_counter() - began_s
            into.samples += samples
            into.rounds.append(samples)
            for part, cpu_s in after.items():
                into.cpu_ms.setdefault(part, []).append((cpu_s - before[part]) * 1000 / setting.requests)
    return measured


def _figures(
    setting: Setting,
    measured: dict[str, _Measured],
    calls: EmulatorCalls,
    contestants: Sequence[Contestant],
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name in [each.name for each in contestants]:
        of = measured[name]
        totals = [sample.total_ms for sample in of.samples]
        figures[name] = {
            "p50_ms": percentile(totals, 50),
            "p95_ms": percentile(totals, 95),
            "p99_ms": percentile(totals, 99),
            "requests_per_s": len(totals) / of.seconds,
            "cpu_ms": {part: median(values) for part, values in of.cpu_ms.items()},
            "added_p50_ms": _added(of, measured[DIRECT], lambda sample: sample.total_ms),
        }
        if setting.stream:
            figures[name]["first_token_p50_ms"] = percentile([_first(sample) for sample in of.samples], 50)
            figures[name]["added_first_token_p50_ms"] = _added(of, measured[DIRECT], _first)
    figures[NARU]["emulator_ms"] = calls.ms_per_request
    figures[NARU]["emulator_ms_before_first_token"] = calls.ms_to_admit
    return figures


def _added(of: _Measured, direct: _Measured, time_of: Any) -> float:
    """The median over rounds of what it takes longer than the model itself in the same round."""
    return median(
        [
            percentile([time_of(sample) for sample in mine], 50) - percentile([time_of(sample) for sample in its], 50)
            for mine, its in zip(of.rounds, direct.rounds, strict=True)
        ]
    )


def _first(sample: Sample) -> float:
    if sample.first_token_ms is None:
        raise ValueError("a stream without a token")
    return sample.first_token_ms


def goals(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was aimed at, and what came out: ratios within this run, at concurrency 1 and a model that answers at once."""
    found: dict[str, dict[str, Any]] = {}
    for name, figures in settings.items():
        if not name.endswith("1 at once, model 0 ms"):
            continue
        stream, naru, litellm = name.startswith("stream"), figures[NARU], figures[LITELLM]
        kind = "stream" if stream else "JSON"
        found[f"CPU per {kind} request"] = {
            "ratio": naru["cpu_ms"]["own"] / litellm["cpu_ms"]["own"],
            "goal": 1 / 10 if stream else 1 / 8,
        }
        for label, key in (("added p50", "added_p50_ms"), ("added first token", "added_first_token_p50_ms")):
            if key not in naru:
                continue
            net_ms = max(0.0, naru[key] - naru["emulator_ms_before_first_token" if "first" in key else "emulator_ms"])
            found[f"{label}, {kind}"] = {
                "ratio": net_ms / litellm[key],
                "gross": naru[key] / litellm[key],
                "goal": 1 / 5,
            }
    return found


def _report(results: dict[str, Any]) -> str:
    versions = ", ".join(
        f"{package} {version}" for of in results["versions"].values() for package, version in of.items()
    )
    parts = [f"`python -m benchmarks overhead`, {time.strftime('%Y-%m-%d')}, {versions}."]
    for name, figures in results["settings"].items():
        rows = [
            [
                who,
                *(f"{of[key]:.1f}" for key in ("p50_ms", "p95_ms", "p99_ms", "added_p50_ms")),
                f"{of['first_token_p50_ms']:.1f}" if "first_token_p50_ms" in of else "",
                "" if who == DIRECT else f"{of['cpu_ms']['own']:.2f}",
                f"{of['requests_per_s']:.0f}",
            ]
            for who, of in figures.items()
        ]
        headings = ("", "p50 ms", "p95", "p99", "added p50", "first token p50", "CPU ms", "requests/s")
        parts += [f"**{name}**", table(headings, rows)]
    beside = results["settings"][next(iter(results["settings"]))][NARU]["cpu_ms"]
    calls = ", ".join(f"{name} {ms:.2f}" for name, ms in results["emulator_ms_per_call"].items())
    memory = ", ".join(f"{name} {mb:.0f}" for name, mb in results["memory_mb"].items())
    parts += [
        f"Memory of one process, MB: {memory}. Log of Naru's handler: {results['log_bytes_per_request']:.0f} bytes a request.",
        f"Stand-ins for AWS, in Naru's times and not in its CPU: the emulator answers DynamoDB in {calls} ms a call, "
        f"{results['emulator_ms_per_request']:.1f} ms a request; `GET /health`, which does nothing, takes "
        f"{results['health_ms']:.1f} ms through front door and runtime. Their CPU, ms per request: "
        + ", ".join(f"{part} {ms:.1f}" for part, ms in beside.items() if part != "own") + ".",
        table(
            ("Naru in parts of LiteLLM", "measured", "with the emulator", "goal", ""),
            [
                [
                    name,
                    f"1/{1 / goal['ratio']:.1f}" if goal["ratio"] else "0",
                    f"1/{1 / goal['gross']:.1f}" if "gross" in goal else "",
                    f"1/{1 / goal['goal']:.0f}",
                    "met" if goal["ratio"] <= goal["goal"] else "not met",
                ]
                for name, goal in results["goals"].items()
            ],
        ),
    ]  # fmt: skip
    return "\n\n".join(parts)


def _size(naru: Contestant) -> int:
    return Path(naru.facts["chat_log"]).stat().st_size
