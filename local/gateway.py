"""The whole gateway on one machine: emulator, deployed stack, front door."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from local import stack, template
from local.emulator import emulator
from local.front_door import FrontDoor, front_door
from local.queue_poller import QueuePoller, queue_pollers

T = TypeVar("T")


@dataclass(frozen=True)
class Gateway:
    """A gateway that answers requests."""

    base_url: str
    api_key: str
    admin_key: str
    door: FrontDoor
    pollers: Mapping[str, QueuePoller]
    """Of queues, by the logical id of the function that takes their messages."""
    stack: stack.Stack
    logs: Path


@asynccontextmanager
async def gateway(
    *,
    folder: Path,
    provider_base_urls: Mapping[str, str],
    provider_keys: Mapping[str, str],
    catalog: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    enforce_iam: bool = False,
    max_processes: int | None = None,
    parameters: Mapping[str, str] | None = None,
    template_path: Path = template.TEMPLATE,
    say: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[Gateway]:
    """Start everything, in order, and stop it when the context is left.

    `folder` takes the logs and the emulator's files. `provider_keys` is the content of the secret, by the catalog's
    `secret`. `max_processes` bounds the processes of one function (else NARU_HANDLER_PROCESSES, else 8; of those that
    take messages NARU_BATCH_PROCESSES, else 2). `parameters` are more of the template's. With `enforce_iam` the functions
    have the permissions of their roles and no more. `say` is told of the progress.
    Raises EmulatorError, PoolError, and OSError when the port is taken.
    """
    logs = folder / "logs"
    await asyncio.to_thread(logs.mkdir, parents=True, exist_ok=True)
    began_s = time.monotonic()

    def done(what: str) -> None:
        say(f"{what} ({time.monotonic() - began_s:.1f} s)")

    with TemporaryDirectory(prefix="emulator-", dir=folder, ignore_cleanup_errors=True) as scratch:
        async with emulator(Path(scratch), logs=logs, enforce_iam=enforce_iam) as aws:
            done(f"AWS emulator  {aws.url}")
            given = {"ProviderBaseUrls": json.dumps(dict(provider_base_urls)), **(parameters or {})}
            if catalog is not None:
                given["CatalogUri"] = await asyncio.to_thread(stack.put_file, aws, catalog, "catalog.toml")
            deployed = await asyncio.to_thread(stack.deploy, aws, given, path=template_path)
            await asyncio.to_thread(deployed.put_provider_keys, provider_keys)
            api_key = await asyncio.to_thread(deployed.add_api_key)
            admin_key = await asyncio.to_thread(deployed.add_admin_key)
            done(f"stack         {template_path.name}, {len(deployed.physical_ids)} resources")
            async with (
                queue_pollers(
                    deployed, logs=logs, most_processes=int(os.environ.get("NARU_BATCH_PROCESSES") or 2)
                ) as pollers,
                front_door(
                    deployed.template.api,
                    deployed.functions,
                    endpoint_url=aws.url,
                    api_id=deployed.physical_ids["Api"],
                    logs=logs,
                    host=host,
                    port=port,
                    max_processes=max_processes or int(os.environ.get("NARU_HANDLER_PROCESSES") or 8),
                ) as door,
            ):
                done(f"front door    {door.base_url}")
                yield Gateway(
                    base_url=door.base_url,
                    api_key=api_key,
                    admin_key=admin_key,
                    door=door,
                    pollers=pollers,
                    stack=deployed,
                    logs=logs,
                )


@contextmanager
def in_thread(make: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
    """Hold an asynchronous context on a loop in another thread, for synchronous code.

    Raises what entering or leaving the context raises.
    """
    entered, leave = threading.Event(), asyncio.Event()
    values: list[T] = []
    failures: list[BaseException] = []
    loop = asyncio.new_event_loop()

    async def hold() -> None:
        async with make() as value:
            values.append(value)
            entered.set()
            await leave.wait()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(hold())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            failures.append(error)
        finally:
            entered.set()

    thread = threading.Thread(target=run, name="in-thread", daemon=True)
    thread.start()
    entered.wait()
    try:
        if values:
            yield values[0]
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(leave.set)
        thread.join()
    if failures:
        raise failures[0]
