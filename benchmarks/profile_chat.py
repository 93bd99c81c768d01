"""Where the chat function's CPU goes, by part: the deployed handler on Lambda's own runtime, looked at while it answers.

A sample belongs to the innermost part on its stack, so what the standard library does is counted to who called it. What the
event loop does between callbacks is its own.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cold_start import deployed_environment, with_key
from benchmarks.contestants import model, naru
from benchmarks.figures import publish, table
from benchmarks.load import Target
from benchmarks.processes import StartError, running
from benchmarks.runtime import RuntimeApi
from local.processes import tail
from local.template import REPOSITORY

_TOKENS = 60
_WARM_UP = 50
_PATIENCE_S = 10.0
_REQUESTS = {"JSON": 500, "stream": 200}

_LOOP = "asyncio's loop"
_PARTS = (
    ("httpx, with httpcore, h11 and anyio", ("/httpx/", "/httpcore/", "/h11/", "/anyio/", "/sniffio/")),
    ("five calls of DynamoDB, signed and sent", ("naru/aws_calls.py", "/botocore/", "/boto3/")),
    ("meters", ("naru/meter", "naru/attributes.py", "naru/keys.py", "naru/business_time.py")),
    ("ledger row, log, metrics", ("naru/ledger.py", "naru/accounting.py", "naru/metrics.py", "_powertools/logging/", "logging/")),
    ("catalog, routing, token bounds", ("naru/routing.py", "naru/tokens.py", "naru/pricing.py", "naru/catalog", "naru/dialects")),
    ("health, attempts, retries", ("naru/health", "naru/attempts.py", "naru/retry.py", "naru/failures.py")),
    ("the client's JSON and stream", ("naru/wire.py", "naru/client_stream.py", "naru/sse.py", "naru/event_loop.py", "/pydantic/")),
    ("the provider's JSON and stream", ("naru/upstream.py", "naru/events.py", "naru/event_stream")),
    ("Powertools' events, the HTTP API", ("aws_lambda_powertools/", "naru/http_api.py", "naru/idempotency")),
    ("Lambda's runtime", ("awslambdaric/", "naru/streaming_runtime.py", "http/")),
)  # fmt: skip
_REST = "the rest"
_ROOTS = ("asyncio/base_events.py", "asyncio/events.py")  # where a callback begins: who is further out only waits


def run() -> dict[str, Any]:
    """Measures, prints, writes the table into docs/performance.md."""
    return asyncio.run(_run())


async def _run() -> dict[str, Any]:
    event = json.loads((REPOSITORY / "events/chat-completion.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="naru-bench-") as temporary:
        folder = Path(temporary)
        async with model(folder) as model_url, naru(folder, model_url, processes=1) as gateway:
            environment = deployed_environment(gateway)
            with_key(event, gateway.target.api_key)
            results = await _profile(event, environment, folder)
    publish("profile", _report(results))
    return results


async def _profile(event: dict[str, Any], environment: dict[str, str], folder: Path) -> dict[str, Any]:
    async with RuntimeApi.serving() as api:
        variables = environment | {"AWS_LAMBDA_RUNTIME_API": api.address}
        variables["PYTHONPATH"] += f":{REPOSITORY}"
        async with running(
            *(
                sys.executable,
                "benchmarks.sampled",
                str(folder / "stacks.json"),
                "awslambdaric",
                environment["_HANDLER"],
            ),
            environment=variables,
            log=folder / "profile.log",
            folder=Path(environment["LAMBDA_TASK_ROOT"]),
        ) as process:
            ended = asyncio.create_task(_drain(process))
            measured = asyncio.create_task(_all(event, api, process, folder / "stacks.json"))
            await asyncio.wait({ended, measured}, return_when=asyncio.FIRST_COMPLETED)
            if not measured.done():
                raise StartError(tail(folder / "profile.log"))
            return await measured


async def _all(
    event: dict[str, Any], api: RuntimeApi, process: asyncio.subprocess.Process, found: Path
) -> dict[str, Any]:
    return {name: await _one(name, event, api, process, found) for name in _REQUESTS}


async def _one(
    name: str, event: dict[str, Any], api: RuntimeApi, process: asyncio.subprocess.Process, found: Path
) -> dict[str, Any]:
    request = Target("http://here", "").request(stream=name == "stream", tokens=_TOKENS)
    asked = json.dumps(event | {"body": request.partition(b"\r\n\r\n")[2].decode()}).encode()
    for _ in range(_WARM_UP):
        await api.invoke(asked)
    process.send_signal(signal.SIGUSR1)
    for _ in range(_REQUESTS[name]):
        await api.invoke(asked)
    process.send_signal(signal.SIGUSR2)
    samples = await asyncio.to_thread(_read, found)
    parts: Counter[str] = Counter()
    for stack, times in samples["stacks"]:
        parts[part_of(stack)] += times
    total = parts.total()
    return {
        "cpu_ms": samples["cpu_s"] * 1000 / _REQUESTS[name],
        "samples": total,
        "share": {part: parts[part] / total for part in (*(part for part, _ in _PARTS), _LOOP, _REST)},
    }


def _read(file: Path) -> Any:
    """The samples, as soon as the process has written them. Raises TimeoutError."""
    until_s = time.monotonic() + _PATIENCE_S
    while not file.exists():
        if time.monotonic() > until_s:
            raise TimeoutError(f"no samples in {file}")
        time.sleep(0.01)
    samples = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    return samples


async def _drain(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None  # noqa: S101 - for mypy; it is a pipe
    while await process.stdout.read(1 << 16):
        pass


def part_of(stack: Sequence[str]) -> str:
    """Whose work a stack is, innermost frame first."""
    for path in stack:
        for part, marks in _PARTS:
            if any(mark in path for mark in marks):
                return part
        if path.endswith(_ROOTS):
            return _LOOP
    return _REST


def _report(results: dict[str, Any]) -> str:
    rows = []
    for part in results["JSON"]["share"]:
        cells = [part]
        for name in _REQUESTS:
            share = results[name]["share"][part]
            cells += [f"{share * results[name]['cpu_ms']:.2f}", f"{share:.0%}"]
        rows.append(cells)
    rows.append(["**all**", *(cell for name in _REQUESTS for cell in (f"**{results[name]['cpu_ms']:.2f}**", ""))])
    headings = ["CPU of the chat function", *(cell for name in _REQUESTS for cell in (f"{name}, ms", "share"))]
    return (
        f"`python -m benchmarks profile`, {time.strftime('%Y-%m-%d')}: {_TOKENS} tokens, one at once, after a warm-up; "
        f"{results['JSON']['samples']} and {results['stream']['samples']} samples.\n\n{table(headings, rows)}"
    )
