"""Who is compared: the model itself, a bare pass-through, LiteLLM's proxy, and Naru; all of them before one simulated
model, each in processes of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import environments
from benchmarks.load import MODEL, Target
from benchmarks.processes import cpu_s, is_handler, memory_mb, running, tree, until_listening
from local.emulator import HOST, kept_port
from local.template import REPOSITORY

DIRECT, FLOOR, LITELLM, NARU = "direct", "pass-through", "LiteLLM", "Naru"
KEY = "sk-benchmark"
# No settings of the developer's shell, and nothing that looks for a network.
_ENVIRONMENT = {
    "PATH": os.environ.get("PATH", ""),
    "HOME": os.environ.get("HOME", ""),
    "LANG": "C.UTF-8",
    "no_proxy": f"{HOST},localhost",
}


@dataclass(frozen=True)
class Contestant:
    """A server under measurement. ``pids`` are those whose CPU counts as its own; ``beside`` those of the machinery that
    stands in for AWS, by name.
    """

    name: str
    target: Target
    root: int | None
    facts: Mapping[str, Any]

    def parts(self) -> dict[str, list[int]]:
        """Process ids, those of the contestant itself under ``own``."""
        if self.root is None:
            return {"own": []}
        pids = tree(self.root)
        if self.name != NARU:
            return {"own": pids}
        handlers = [pid for pid in pids if is_handler(pid, self.facts["chat_folder"])]
        # The emulator is a child too; what is left is the front door and the idle functions.
        emulator = [pid for pid in tree(self.facts["emulator_pid"]) if pid not in handlers]
        return {"own": handlers, "emulator": emulator, "front door": [self.root]}

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far, by part."""
        return {part: cpu_s(pids) for part, pids in self.parts().items()}

    def memory_mb(self) -> float:
        """Of the largest process of its own."""
        return max((memory_mb(pid) for pid in self.parts()["own"]), default=0.0)


@asynccontextmanager
async def model(folder: Path) -> AsyncIterator[str]:
    """The simulated model; its URL."""
    log = folder / "model.log"
    with kept_port() as port:
        async with running(
            *(sys.executable, "local.simulated_model", "--port", str(port)),
            environment=_of_this_tree(),
            log=log,
            folder=REPOSITORY,
        ) as process:
            await until_listening(port, process, log)
            yield f"http://{HOST}:{port}"


@asynccontextmanager
async def everybody(folder: Path, *, concurrency: int) -> AsyncIterator[list[Contestant]]:
    """All contestants, ready to answer so many requests at once."""
    async with AsyncExitStack() as stack:
        model_url = await stack.enter_async_context(model(folder))
        direct = Contestant(DIRECT, Target(f"{model_url}/v1", KEY), None, {})
        others = [
            await stack.enter_async_context(contestant)
            for contestant in (
                pass_through(folder, model_url),
                litellm(folder, model_url),
                naru(folder, model_url, processes=concurrency),
            )
        ]
        yield [direct, *others]


@asynccontextmanager
async def pass_through(folder: Path, model_url: str) -> AsyncIterator[Contestant]:
    """FastAPI and httpx, one worker."""
    python = await asyncio.to_thread(environments.python_with, "floor", environments.FLOOR)
    log = folder / "pass-through.log"
    with kept_port() as port:
        async with running(
            *(python, "uvicorn", "--app-dir", str(REPOSITORY / "benchmarks/floor"), "app:app"),
            *("--host", HOST, "--port", str(port), "--log-level", "warning"),
            environment=_ENVIRONMENT | {"UPSTREAM": f"{model_url}/v1"},
            log=log,
            folder=folder,
        ) as process:
            await until_listening(port, process, log)
            versions = {name: environments.version_of(python, name) for name in environments.FLOOR}
            yield Contestant(FLOOR, Target(f"http://{HOST}:{port}/v1", KEY), process.pid, {"versions": versions})


@asynccontextmanager
async def litellm(folder: Path, model_url: str) -> AsyncIterator[Contestant]:
    """LiteLLM's proxy, newest release, one worker, no database, in the mode that its documentation has for production."""
    python = await asyncio.to_thread(environments.python_with, "litellm", environments.LITELLM)
    log = folder / "litellm.log"
    with kept_port() as port:
        config = {
            "model_list": [
                {
                    "model_name": MODEL,
                    "litellm_params": {"model": f"openai/{MODEL}", "api_base": f"{model_url}/v1", "api_key": "sim-holysheep"},
                }
            ],
            "litellm_settings": {"telemetry": False, "set_verbose": False, "json_logs": True},
            "general_settings": {"master_key": KEY},
        }  # fmt: skip
        config_file = folder / "litellm.yaml"
        config_file.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        async with running(
            *(python, "litellm.proxy.proxy_cli", "--config", str(config_file), "--host", HOST, "--port", str(port)),
            *("--num_workers", "1", "--telemetry", "False"),
            environment=_ENVIRONMENT | litellm_environment(),
            log=log,
            folder=folder,
        ) as process:
            await until_listening(port, process, log)
            versions = {"litellm": environments.version_of(python, "litellm")}
            yield Contestant(LITELLM, Target(f"http://{HOST}:{port}/v1", KEY), process.pid, {"versions": versions})


def litellm_environment() -> dict[str, str]:
    """As its documentation advises for production, with the price list that it brings."""
    return {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


@asynccontextmanager
async def naru(folder: Path, model_url: str, *, processes: int) -> AsyncIterator[Contestant]:
    """The whole of Naru: front door, Lambda's runtime, emulator."""
    log = folder / "gateway.log"
    async with running(
        *(sys.executable, "benchmarks.gateway_process", model_url, str(folder), str(processes)),
        environment=_of_this_tree(),
        log=log,
        folder=REPOSITORY,
    ) as process:
        assert process.stdout is not None  # noqa: S101 - for mypy; it is a pipe
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError(f"the gateway does not start:\n{log.read_text(encoding='utf-8')[-3000:]}")
        facts = json.loads(line)
        yield Contestant(NARU, Target(facts["base_url"], facts["api_key"]), process.pid, facts)


def _of_this_tree() -> dict[str, str]:
    return {**_ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)}
