"""``make run``: the whole system on this machine, until Ctrl-C.

Reads NARU_PORT (8000), NARU_MODEL_PORT and NARU_EMULATOR_PORT (free ones), NARU_CATALOG (the built-in one),
NARU_HANDLER_PROCESSES (8), and the providers' keys: a provider named ``holysheep`` is the real one when
HOLYSHEEP_API_KEY is set, and the simulated model otherwise.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from local.emulator import HOST, EmulatorError, kept_port
from local.gateway import Gateway, gateway
from local.handler_pool import PoolError
from local.processes import running_module, stay_on_this_machine, tail
from local.template import REPOSITORY
from naru import catalog
from naru.errors import CatalogError

FOLDER = REPOSITORY / ".naru"
STATE = FOLDER / "local.json"

_MODEL_FACES = {"openai": "/v1", "clovastudio": "/clova/v1/openai"}
# As brisk as a good day at a provider, and slow enough to see a stream.
_MODEL_LATENCY = ("--first-token-ms", "250", "--first-token-p95-ms", "600", "--token-ms", "12")
_MODEL_START_S = 15.0
_POLL_S = 0.03
_OPERATORS_MISTAKE = 2


class StartError(Exception):
    """Something that whoever typed the command can mend; the message says how."""


@dataclass(frozen=True)
class Providers:
    """Who is asked: real providers where there is a key, the simulated model for the rest."""

    variables: Mapping[str, str]
    """Provider → the variable that holds its key, or would hold it."""
    simulated: Mapping[str, str]
    """Provider → the path of the simulated model that speaks its dialect."""
    keys: Mapping[str, str]
    """What goes into the secret: the catalog's `secret` → key."""
    first_model: str

    def base_urls(self, model_url: str | None) -> dict[str, str]:
        """Where the simulated ones are reached; the others are where the catalog says."""
        return {name: f"{model_url}{face}" for name, face in self.simulated.items()}


def main() -> int:
    """Run until a signal, and return the exit status."""
    stay_on_this_machine()
    try:
        port, model_port = _port("NARU_PORT", 8000), _port("NARU_MODEL_PORT", 0)
        _check_free(port)
        own = Path(value).absolute() if (value := os.environ.get("NARU_CATALOG")) else None
        providers = choose_providers(own, os.environ)
    except (StartError, CatalogError) as error:
        print(f"naru: {error}", file=sys.stderr)
        return _OPERATORS_MISTAKE
    try:
        return asyncio.run(_until_stopped(port, model_port, own, providers))
    except (EmulatorError, PoolError, StartError, BotoCoreError, ClientError, OSError) as error:
        print(f"naru: {error}", file=sys.stderr)
        return 1


def choose_providers(own: Path | None, environment: Mapping[str, str]) -> Providers:
    """Decide for every provider of the catalog. Raises CatalogError."""
    loaded = catalog.load(own) if own else catalog.load()
    variables, simulated, keys = {}, {}, {}
    for name, provider in loaded.providers.items():
        variable = f"{provider.secret.upper()}_API_KEY"
        given = next((each for each in (variable, f"YOUR_{variable}") if environment.get(each)), None)
        variables[name] = given or variable
        if given:
            keys[provider.secret] = environment[given]
        else:
            simulated[name] = _MODEL_FACES[provider.dialect]
            keys.setdefault(provider.secret, f"sim-{provider.secret}")
    return Providers(variables, simulated, keys, first_model=next(iter(loaded.models)))


async def _until_stopped(port: int, model_port: int, own: Path | None, providers: Providers) -> int:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None  # noqa: S101 - for mypy; a coroutine runs in a task
    stopping = False

    def stop() -> None:
        nonlocal stopping
        if not stopping:  # a second Ctrl-C must not interrupt the cleaning up
            stopping = True
            print("\nnaru: stopping", flush=True)
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        await _run(port, model_port, own, providers)
    except asyncio.CancelledError:
        if not stopping:
            raise
        return 0
    return 1


async def _run(port: int, model_port: int, own: Path | None, providers: Providers) -> None:
    """Start everything, say so, and return when a part of it has died."""
    await asyncio.to_thread(shutil.rmtree, FOLDER / "logs", ignore_errors=True)
    await asyncio.to_thread((FOLDER / "logs").mkdir, parents=True)
    print("naru: starting", flush=True)
    async with (
        _model(model_port, needed=bool(providers.simulated)) as (model_url, model),
        gateway(
            folder=FOLDER,
            provider_base_urls=providers.base_urls(model_url),
            provider_keys=providers.keys,
            catalog=own,
            host=HOST,
            port=port,
            say=lambda text: print(f"  {text}", flush=True),
        ) as running,
    ):
        _write_state(running, model_url)
        try:
            print(_welcome(running, providers), flush=True)
            parts = {"the AWS emulator": running.stack.emulator.process, "the simulated model": model}
            ends = {asyncio.create_task(part.wait()): name for name, part in parts.items() if part is not None}
            try:
                (ended, *_), _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for end in ends:
                    end.cancel()
            log = running.logs / ("emulator.log" if "emulator" in ends[ended] else "model.log")
            print(
                f"naru: {ends[ended]} has ended with {ended.result()}; the rest stops, too. {log} says:",
                file=sys.stderr,
            )
            print(tail(log), file=sys.stderr)
        finally:
            STATE.unlink(missing_ok=True)


@asynccontextmanager
async def _model(wanted: int, *, needed: bool) -> AsyncIterator[tuple[str | None, Process | None]]:
    """The simulated model's URL and process, where a provider needs it."""
    if not needed:
        yield None, None
        return
    log = FOLDER / "logs" / "model.log"
    with kept_port(wanted) as port:
        environment = {"PATH": os.environ.get("PATH", "")}
        arguments = ("--port", str(port), *_MODEL_LATENCY)
        async with running_module(
            "local.simulated_model", *arguments, environment=environment, log=log, path=[REPOSITORY]
        ) as process:
            try:
                async with asyncio.timeout(_MODEL_START_S):
                    while not await asyncio.to_thread(_listens, port):
                        if process.returncode is not None:
                            raise StartError(f"the simulated model does not start:\n{tail(log)}")
                        await asyncio.sleep(_POLL_S)
            except TimeoutError:
                raise StartError(
                    f"the simulated model is not ready after {_MODEL_START_S:.0f} s:\n{tail(log)}"
                ) from None
            yield f"http://{HOST}:{port}", process


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def _port(variable: str, default: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal() or int(text) > 65535:
        raise StartError(f"{variable} is {text!r}; it must be a port number")
    return int(text)


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise StartError(
                f"port {port} cannot be used ({error.strerror}): stop what listens there, or choose another one: "
                f"NARU_PORT={port + 1} make run"
            ) from None


def _write_state(running: Gateway, model_url: str | None) -> None:
    outputs = running.stack.outputs
    state = {
        "base_url": running.base_url,
        "api_key": running.api_key,
        "admin_key": running.admin_key,
        "model_url": model_url,
        "emulator_url": running.stack.emulator.url,
        "pid": os.getpid(),
        "logs": str(running.logs),
        "tables": {
            "ledger": outputs["LedgerTable"],
            "meter": outputs["MeterTable"],
            "report": outputs["ReportTable"],
        },
    }
    STATE.touch(mode=0o600)
    STATE.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def _welcome(running: Gateway, providers: Providers) -> str:
    model = providers.first_model
    ask = json.dumps(
        {"model": model, "stream": True, "messages": [{"role": "user", "content": "안녕하세요?"}]}, ensure_ascii=False
    )
    lines = [
        "",
        f"  base URL     {running.base_url}",
        f"  API key      {running.api_key}",
        f"  admin key    {running.admin_key}",
        f"  dashboard    {running.base_url}/dashboard  (sign in with the admin key)",
        *(
            f"  {name:<12} SIMULATED; set {variable} for the real one"
            if name in providers.simulated
            else f"  {name:<12} REAL, with the key in {variable}: its tokens cost money"
            for name, variable in providers.variables.items()
        ),
        f"  logs         {running.logs}",
        "",
        f"  curl -N {running.base_url}/chat/completions -H 'Authorization: Bearer {running.api_key}' \\",
        f"    -H 'Content-Type: application/json' -d '{ask}'",
        "",
        "  from openai import OpenAI",
        f'  client = OpenAI(base_url="{running.base_url}", api_key="{running.api_key}")',
        f'  answer = client.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "안녕하세요?"}}])',
        "  print(answer.choices[0].message.content)",
        "",
        "  Ctrl-C stops it all.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
