"""``python -m benchmarks batch``: batches at a provider's capacity, beside the tutorial's client on the same provider.

The makespan over the shortest one possible; what was answered; what was refused. Naru's is taken twice: from the first
call to the last answer, as the provider sees it, and from `batches.create` to `completed`, as a client does. Then an
input of 50,000 lines: the time and memory to check and divide it, and what such a batch costs in Seoul beside the model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai

from benchmarks.batch_providers import Provider, provider
from benchmarks.figures import table
from benchmarks.tutorial_client import Item, TutorialClient
from local.gateway import Gateway, gateway, in_thread
from local.processes import stay_on_this_machine
from naru import catalog
from naru.aws_prices import write_units
from naru.batch_input import check, write_plan
from naru.meter_state import Limits
from naru.objects import CHUNK_BYTES

MODEL = "hyperclova-x-omni"
CASES = [("limited", [50, 200, 1000]), ("queue", [50]), ("congested", [50, 200, 1000])]
# Behind a congested provider the tutorial's client takes a minute for 200 calls and five for a thousand.
USUALLY = [("limited", [50, 200, 1000]), ("queue", [50]), ("congested", [50])]
_PATIENCE_S = 600.0


def run() -> dict[str, Any]:
    """All of it."""
    return measure(USUALLY, lines=50_000)


def main(arguments: Sequence[str]) -> int:
    """With options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks batch")
    parser.add_argument("--provider", choices=[name for name, _ in CASES])
    parser.add_argument("--calls", type=int)
    parser.add_argument("--lines", type=int, default=0, help="check an input of so many lines")
    given = parser.parse_args(arguments)
    cases = [(name, [given.calls] if given.calls else sizes) for name, sizes in CASES if given.provider in {None, name}]
    print(json.dumps(measure(cases, lines=given.lines), indent=2))
    return 0


def measure(cases: Sequence[tuple[str, Sequence[int]]], *, lines: int) -> dict[str, Any]:
    """Runs the cases, each with a gateway of its own that knows nothing of the provider yet."""
    stay_on_this_machine()
    makespans = [_case(name, calls) for name, sizes in cases for calls in sizes]
    rows = [
        (
            case["provider"],
            str(case["calls"]),
            f"{case['bound_s']:.1f}",
            *(f"{case[who]['ratio']:.2f}" for who in ("naru", "naru_end_to_end", "tutorial")),
            *(f"{case[who]['answered']}" for who in ("naru", "tutorial")),
            *(f"{case[who]['refused']}" for who in ("naru", "tutorial")),
        )
        for case in makespans
    ]
    print(
        table(
            ["provider", "calls", "bound, s", "Naru, times it", "to `completed`", "tutorial", "answered", "tutorial",
             "429s", "tutorial"],
            rows,
        )
    )  # fmt: skip
    result: dict[str, Any] = {"makespans": makespans}
    if lines:
        result["check"] = check_input(lines)
        print(json.dumps(result["check"], indent=1))
    return result


def _case(name: str, calls: int) -> dict[str, Any]:
    with in_thread(lambda: provider(name)) as made:
        bound_s = made.bound_s(calls)
        tutorial = asyncio.run(_tutorial(made, calls))
        made.forget()
        with tempfile.TemporaryDirectory() as folder:
            naru, total_s = _naru(made, calls, Path(folder))
    return {
        "provider": name,
        "calls": calls,
        "bound_s": round(bound_s, 2),
        "naru": naru | {"ratio": round(naru["span_s"] / bound_s, 3)},
        "naru_end_to_end": {"span_s": round(total_s, 2), "ratio": round(total_s / bound_s, 3)},
        "tutorial": tutorial | {"ratio": round(tutorial["span_s"] / bound_s, 3)},
    }


def _report(made: Provider, answered: int) -> dict[str, Any]:
    seen = made.seen
    return {
        "span_s": round(seen.span_s, 2),
        "answered": answered,
        "refused": seen.refused,
        "calls": seen.calls,
        "most_at_once": seen.most_at_once,
    }


async def _tutorial(made: Provider, calls: int) -> dict[str, Any]:
    async with TutorialClient(made.url, "any", max_connections=50) as client:
        results = await client.process_batch([Item(f"질문 {i}") for i in range(calls)])
    return _report(made, sum(result["status"] == "success" for result in results))


def _naru(made: Provider, calls: int, folder: Path) -> tuple[dict[str, Any], float]:
    def start() -> Any:
        return gateway(
            folder=folder,
            provider_base_urls={"holysheep": made.url},
            provider_keys={"holysheep": "any", "clovastudio": "any"},
        )

    with in_thread(start) as running:
        limits = Limits(budget_pico_usd=10**15, rpm=10**6, tpm=10**9, max_parallel=1000)
        key = running.stack.add_api_key("benchmark", limits)
        client = openai.OpenAI(base_url=running.base_url, api_key=key)
        file = client.files.create(file=("in.jsonl", input_lines(calls)), purpose="batch")
        began_s = time.monotonic()
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        while batch.status not in {"completed", "failed"} and time.monotonic() - began_s < _PATIENCE_S:
            time.sleep(0.25)
            batch = client.batches.retrieve(batch.id)
        total_s = time.monotonic() - began_s
        assert batch.status == "completed", (batch, _log(running))  # noqa: S101
        assert batch.request_counts is not None  # noqa: S101
        return _report(made, batch.request_counts.completed), total_s


def _log(running: Gateway) -> str:
    return running.pollers["BatchWorkerFunction"].pool.log.read_text()[-3000:]


def input_lines(count: int, *, padding: int = 0) -> bytes:
    """An input file."""
    return b"".join(
        json.dumps(
            {
                "custom_id": f"request-{i}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {
                    "model": MODEL,
                    "messages": [{"role": "user", "content": f"질문 {i}" + "가" * padding}],
                    "max_tokens": 64,
                },
            },
            ensure_ascii=False,
        ).encode()
        + b"\n"
        for i in range(count)
    )


# ── Checking a large input ─────────────────────────────────────────────────────────────────────────────────


def check_input(lines: int) -> dict[str, Any]:
    """Time and peak memory of checking 200 MB in a process of its own, and what the batch costs beside the model."""
    padding = max(0, (200_000_000 // lines - 230) // 3)
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.write(input_lines(lines, padding=padding))
        file.flush()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.batch", file.name],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ},
        )
        found: dict[str, Any] = json.loads(done.stdout)
        found["bytes"] = os.path.getsize(file.name)  # noqa: PTH202
    return found | cost(found["lines"], found["ranges"])


def _check_file(path: str) -> dict[str, Any]:
    began_s = time.monotonic()
    with open(path, "rb") as file:  # noqa: PTH123
        found = check(iter(lambda: file.read(CHUNK_BYTES), b""), models=catalog.load().models, range_lines=100)
    return {
        "lines": found.lines,
        "errors": len(found.errors),
        "ranges": len(found.ranges),
        "plan_bytes": len(write_plan(found.ranges)),
        "took_s": round(time.monotonic() - began_s, 2),
        "peak_memory_mb": _peak_memory_mb(),
        "send_calls": -(-len(found.ranges) // 10),
    }


def _peak_memory_mb() -> float:
    """Of this process alone: what getrusage says includes its parent's before the exec."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (kilobytes,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return round(int(kilobytes) / 1024, 1)


def cost(lines: int, ranges: int, *, result_kb: int = 3, at_once: int = 20) -> dict[str, Any]:
    """What Naru costs for a batch in Seoul, in USD; prices per million from AWS's list."""
    write, read, sqs, gb_s = 0.68, 0.1355, 0.40, 13.33
    writes = lines * (float(write_units(Decimal(at_once))) + 1 + result_kb)  # meters and row; the claim; the result
    writes += ranges * (4 + 4 + 3)  # claimed and ended, each in a transaction of two; renewed
    reads = lines * 2 + ranges * 20
    worker_s = lines * MEAN_ANSWER_S / at_once
    usd = {
        "dynamodb_usd": round((writes * write + reads * read) / 1e6, 3),
        "sqs_usd": round(ranges * 4 * sqs / 1e6, 4),
        "lambda_usd": round(worker_s * 1.0 * gb_s / 1e6, 3),
    }
    return {**usd, "total_usd": round(sum(usd.values()), 3)}


MEAN_ANSWER_S = 0.85

if __name__ == "__main__":
    print(json.dumps(_check_file(sys.argv[1])))
