"""Cold start: what importing costs, and how long a new process takes to its first answer.

Imports are measured by the CPU of a fresh interpreter, without the interpreter's own. The environment of the handlers
holds what Lambda has and nothing else: the layer's requirements, boto3 and Lambda's runtime. Bytecode is there.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import environments
from benchmarks.contestants import Contestant, litellm, litellm_environment, model, naru, pass_through
from benchmarks.figures import median, percentile, publish, table
from benchmarks.load import Connection
from benchmarks.runtime import first_answer_ms, no_account
from local.template import REPOSITORY

_ROUNDS = 7
_LITELLM_ROUNDS = 3
_STARTS = 4
_CHAT, _LAYER = REPOSITORY / "functions/chat", REPOSITORY / "layers/gateway"
_BASE = "httpx.Client() + boto3.client('dynamodb')"
_CHAT_IMPORT, _LITELLM_IMPORT = "functions/chat", "import litellm"
_VARIABLES = ("LEDGER_TABLE", "METER_TABLE", "PROVIDER_KEYS_SECRET", "IDEMPOTENCY_TABLE", "ANSWERS_BUCKET", "HEALTH_TABLE")  # fmt: skip


@dataclass(frozen=True)
class _Import:
    """Something to import, and in which environment."""

    name: str
    environment: str
    code: str


_IMPORTS = (
    _Import(_BASE, "lambda", "import boto3, httpx; httpx.Client(); boto3.client('dynamodb')"),
    _Import(_CHAT_IMPORT, "lambda", "import app"),
    _Import("  httpx.Client()", "lambda", "import httpx; httpx.Client()"),
    _Import("  boto3.client('dynamodb')", "lambda", "import boto3; boto3.client('dynamodb')"),
    _Import("  pydantic", "lambda", "import pydantic; pydantic.BaseModel; pydantic.TypeAdapter"),
    _Import("  Powertools: events", "lambda", "from aws_lambda_powertools.event_handler import APIGatewayRestResolver"),
    _Import("  Powertools: logger", "lambda", "from aws_lambda_powertools import Logger"),
    _Import("  naru.wire", "lambda", "import naru.wire"),
    _Import("  naru.catalog, read", "lambda", "import naru.catalog; naru.catalog.load()"),
    _Import("FastAPI + boto3 + Mangum", "mangum", "import app"),
)


def run() -> dict[str, Any]:
    """Measures, prints, writes the tables into docs/performance.md."""
    pythons = {
        "lambda": environments.python_with("lambda", environments.LAMBDA),
        "mangum": environments.python_with("mangum", environments.MANGUM),
        "litellm": environments.python_with("litellm", environments.LITELLM),
    }
    results: dict[str, Any] = {"import_cpu_ms": _imports(pythons), "first_answer_ms": asyncio.run(_starts(pythons))}
    cpu_ms = results["import_cpu_ms"]
    results["goals"] = {
        f"{_CHAT_IMPORT} at most 1.3 of {_BASE}": {"ratio": cpu_ms[_CHAT_IMPORT] / cpu_ms[_BASE], "goal": 1.3},
        f"{_CHAT_IMPORT} at most 1/6 of {_LITELLM_IMPORT}": {
            "ratio": cpu_ms[_CHAT_IMPORT] / cpu_ms[_LITELLM_IMPORT],
            "goal": 1 / 6,
        },
    }
    publish("cold_start", _report(results))
    return results


# ── Imports ────────────────────────────────────────────────────────────────────────────────────────────────


def _imports(pythons: Mapping[str, Path]) -> dict[str, float]:
    variables = {
        "lambda": handler_environment(),
        "mangum": no_account() | {"PYTHONPATH": str(REPOSITORY / "benchmarks/mangum")},
        "litellm": no_account() | litellm_environment(),
    }
    measured: dict[str, list[float]] = {each.name: [] for each in _IMPORTS}
    heavy = _Import(_LITELLM_IMPORT, "litellm", "import litellm")
    measured[heavy.name] = []
    for number in range(_ROUNDS + 1):
        bare = {name: _cpu_ms(python, "pass", variables[name]) for name, python in pythons.items()}
        for each in (*_IMPORTS, *([heavy] if number <= _LITELLM_ROUNDS else [])):
            cost_ms = _cpu_ms(pythons[each.environment], each.code, variables[each.environment])
            if number:  # the first round writes bytecode and fills the page cache
                measured[each.name].append(cost_ms - bare[each.environment])
    return {name: median(values) for name, values in measured.items()}


def handler_environment() -> dict[str, str]:
    """What the chat function needs to be imported."""
    return {
        **no_account(),
        "PYTHONPATH": os.pathsep.join(map(str, (_CHAT, _LAYER))),
        **{f"NARU_{name}": name.lower().replace("_", "-") for name in _VARIABLES},
    }


def _cpu_ms(python: Path, code: str, variables: Mapping[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([str(python), "-c", code], env=variables, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000


# ── First answers ──────────────────────────────────────────────────────────────────────────────────────────


async def _starts(pythons: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    event = json.loads((REPOSITORY / "events/chat-completion.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="naru-bench-") as temporary:
        folder = Path(temporary)
        async with model(folder) as model_url, naru(folder, model_url, processes=1) as gateway:
            environment = deployed_environment(gateway)
            chat_event = json.dumps(with_key(event, gateway.target.api_key)).encode()
            mangum = {
                **no_account(),
                "_HANDLER": "app.lambda_handler",
                "LAMBDA_TASK_ROOT": str(REPOSITORY / "benchmarks/mangum"),
                "PYTHONPATH": str(REPOSITORY / "benchmarks/mangum"),
            }
            taken: dict[str, list[tuple[float, float]]] = {}
            for _ in range(_STARTS + 1):
                for name, python, variables in (
                    ("Naru's chat function", pythons["lambda"], environment),
                    ("FastAPI + boto3 + Mangum", pythons["mangum"], mangum),
                ):
                    taken.setdefault(name, []).append(
                        await first_answer_ms(
                            python,
                            variables,
                            chat_event,
                            folder=Path(variables["LAMBDA_TASK_ROOT"]),
                            log=folder / "cold.log",
                        )
                    )
            found = {name: _medians(values[1:]) for name, values in taken.items()}
            for label, start in (("pass-through (server)", pass_through), ("LiteLLM's proxy (server)", litellm)):
                times = []
                for _ in range(2):
                    began_s = time.perf_counter()
                    async with start(folder, model_url) as server:
                        ready_ms = (time.perf_counter() - began_s) * 1000
                        connection = Connection(server.target)
                        await connection.ask(server.target.request(stream=False, tokens=60))
                        times.append((ready_ms, (time.perf_counter() - began_s) * 1000))
                        connection.close()
                found[label] = _medians(times)
    return found


def _medians(times: Sequence[tuple[float, float]]) -> dict[str, float]:
    return {
        "ready_ms": median([ready_ms for ready_ms, _ in times]),
        "first_answer_ms": median([answer_ms for _, answer_ms in times]),
        "slowest_ms": percentile([answer_ms for _, answer_ms in times], 100),
    }


def deployed_environment(gateway: Contestant) -> dict[str, str]:
    """That of a running chat handler, without what its runtime adds."""
    (handler,) = gateway.parts()["own"]
    pairs = Path(f"/proc/{handler}/environ").read_text(encoding="utf-8").split("\0")
    environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    del environment["AWS_LAMBDA_RUNTIME_API"]
    return environment


def with_key(event: dict[str, Any], api_key: str) -> dict[str, Any]:
    """The event as one whose caller has this key."""
    for headers, value in (("headers", f"Bearer {api_key}"), ("multiValueHeaders", [f"Bearer {api_key}"])):
        for name in event.get(headers) or {}:
            if name.lower() == "authorization":
                event[headers][name] = value
    return event


def _report(results: dict[str, Any]) -> str:
    imports = results["import_cpu_ms"]
    starts = results["first_answer_ms"]
    parts = [
        f"`python -m benchmarks cold_start`, {time.strftime('%Y-%m-%d')}, Python {'.'.join(map(str, sys.version_info[:3]))}.",
        table(
            ("import", "CPU ms", f"of {_BASE}"),
            [[name, f"{ms:.0f}", f"{ms / imports[_BASE]:.2f}"] for name, ms in imports.items()],
        ),
        table(
            ("from process start", "ready, ms", "first answer, ms"),
            [[name, f"{of['ready_ms']:.0f}", f"{of['first_answer_ms']:.0f}"] for name, of in starts.items()],
        ),
        table(
            ("goal", "measured", ""),
            [
                [name, f"{goal['ratio']:.2f}", "met" if goal["ratio"] <= goal["goal"] else "not met"]
                for name, goal in results["goals"].items()
            ],
        ),
    ]  # fmt: skip
    return "\n\n".join(parts)
