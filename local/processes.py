"""Child processes that die with this one, and the settings that they must not inherit."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

_LAUNCHER = Path(__file__).with_name("child.py")
_PATIENCE_S = 1.0


def stay_on_this_machine() -> None:
    """Drop all AWS settings of the developer's shell, and reach this machine without the shell's proxy: nothing that
    runs here may reach a real account, and everything that does run here is here.
    """
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ |= {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"  # a machine of AWS's would be asked for credentials
    beyond = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    direct = ",".join(filter(None, ["127.0.0.1", "localhost", beyond]))
    os.environ |= {"no_proxy": direct, "NO_PROXY": direct}


def tail(log: Path, lines: int = 15) -> str:
    """The end of a log, for an error message."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


async def start_module(
    module: str, *arguments: str, environment: Mapping[str, str], log: Path, folder: Path | None = None
) -> Process:
    """Run ``python -m module`` as a child that cannot outlive this process; its output is appended to `log`.

    `environment` is the whole environment. The caller stops the process.
    """
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", str(_LAUNCHER), module, *arguments),
            env=environment,
            cwd=folder,
            stdin=asyncio.subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the parent, which stops its children in order
        )


@asynccontextmanager
async def running_module(
    module: str, *arguments: str, environment: Mapping[str, str], log: Path, path: Sequence[Path] = ()
) -> AsyncIterator[Process]:
    """Run a module until the context is left: then it is asked to stop, and killed if it does not."""
    python_path = {"PYTHONPATH": os.pathsep.join(map(str, path))} if path else {}
    process = await start_module(module, *arguments, environment={**environment, **python_path}, log=log)
    try:
        yield process
    finally:
        await stop(process)


async def stop(process: Process) -> None:
    """SIGTERM, and SIGKILL to a process that does not listen."""
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await process.wait()
        except TimeoutError:
            process.kill()
    await process.wait()
