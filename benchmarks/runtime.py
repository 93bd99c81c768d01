"""A function's first answer: Lambda's runtime with one handler, started here and asked once."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from benchmarks.processes import running
from local.emulator import HOST
from local.http_server import Request, Response, serve
from local.processes import tail

_LIMIT_S = 60.0


class NoAnswerError(Exception):
    """The function ended, failed, or answered with something else than 200."""


async def first_answer_ms(
    python: Path | str, environment: Mapping[str, str], event: bytes, *, folder: Path, log: Path
) -> tuple[float, float]:
    """Milliseconds from the process's start until its runtime asks for an event, and until the end of its answer.

    ``environment`` is Lambda's, with ``_HANDLER``. Raises NoAnswerError.
    """
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[float] = loop.create_future()
    answered: asyncio.Future[tuple[float, bytes]] = loop.create_future()
    no_second_event = asyncio.Event()

    async def runtime_api(request: Request, response: Response) -> None:
        if request.path.endswith("/invocation/next"):
            if ready.done():
                await no_second_event.wait()
            ready.set_result(time.perf_counter())
            headers = [
                ("Content-Type", "application/json"),
                ("Lambda-Runtime-Aws-Request-Id", str(uuid.uuid4())),
                ("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:ap-northeast-2:000000000000:function:cold"),
                ("Lambda-Runtime-Deadline-Ms", str(int((time.time() + 900) * 1000))),
                ("Lambda-Runtime-Trace-Id", f"Root=1-{int(time.time()):08x}-{secrets.token_hex(12)}"),
            ]
            await response.send(200, headers, event)
            return
        content = await request.body()
        now_s = time.perf_counter()
        await response.send(202, [("Content-Type", "application/json")], b'{"status":"OK"}')
        if not answered.done():
            answered.set_result((now_s, content if request.path.endswith("/response") else b"failed: " + content))

    async with serve(runtime_api) as api:
        began_s = time.perf_counter()
        async with running(
            *(python, "awslambdaric", environment["_HANDLER"]),
            environment={**environment, "AWS_LAMBDA_RUNTIME_API": f"{api.host}:{api.port}", "PATH": os.environ["PATH"]},
            log=log,
            folder=folder,
        ) as process:
            ended = asyncio.create_task(process.wait())
            waiting: set[asyncio.Future[object]] = {answered, ended}  # type: ignore[arg-type]
            await asyncio.wait(waiting, timeout=_LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            if not answered.done():
                raise NoAnswerError(f"no answer from {environment['_HANDLER']}:\n{tail(log)}")
    end_s, content = answered.result()
    if b'"statusCode": 200' not in content and b'"statusCode":200' not in content:
        raise NoAnswerError(content[:1000].decode(errors="replace"))
    return (ready.result() - began_s) * 1000, (end_s - began_s) * 1000


def no_account() -> dict[str, str]:
    """Credentials of nobody and an address where nothing listens, for what must start without AWS."""
    return {
        "AWS_DEFAULT_REGION": "ap-northeast-2",
        "AWS_REGION": "ap-northeast-2",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_ENDPOINT_URL": f"http://{HOST}:9",
        "LANG": "en_US.UTF-8",
    }
