"""Programs that are measured: started, waited for, weighed, stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from local import child
from local.emulator import HOST
from local.processes import tail

_START_LIMIT_S = 120.0
_POLL_S = 0.01
_PATIENCE_S = 5.0
_LAUNCHER = Path(child.__file__)


class StartError(Exception):
    """A program ended, or took too long, before it was ready."""


@asynccontextmanager
async def running(
    python: Path | str, module: str, *arguments: str, environment: Mapping[str, str], log: Path, folder: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run ``python -m module``, which cannot outlive this process, until the context is left. Stdout is a pipe."""
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(str(python), "-P", str(_LAUNCHER), module, *arguments),
            env=dict(environment),
            cwd=folder,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def until_listening(port: int, process: asyncio.subprocess.Process, log: Path) -> None:
    """Wait until somebody listens on the port. Raises StartError."""
    until_s = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < until_s:
        if process.returncode is not None:
            raise StartError(f"it ended with {process.returncode}:\n{tail(log)}")
        try:
            _, writer = await asyncio.open_connection(HOST, port)
        except OSError:
            await asyncio.sleep(_POLL_S)
        else:
            writer.close()
            return
    raise StartError(f"not ready after {_START_LIMIT_S:.0f} s:\n{tail(log)}")


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
                children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def cpu_s(pids: Sequence[int]) -> float:
    """What the processes have computed so far, threads that have ended included, to the nanosecond.

    Each process has a CPU clock (clock_getcpuclockid(3)); ``/proc/<pid>/stat`` shows the same in ticks of 10 ms.
    """
    total = 0.0
    for pid in pids:
        with suppress(OSError):
            total += time.clock_gettime((~pid << 3) | 2)
    return total


def memory_mb(pid: int) -> float:
    """What a process has in memory, shared pages counted in part (PSS)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no memory figure for process {pid}")


def is_handler(pid: int, function_folder: str) -> bool:
    """Whether a process is Lambda's runtime with this function in it."""
    with suppress(OSError):
        folder = f"LAMBDA_TASK_ROOT={function_folder}".encode()
        return folder in (Path(f"/proc/{pid}") / "environ").read_bytes().split(b"\0")
    return False
