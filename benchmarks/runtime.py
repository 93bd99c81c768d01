"""Lambda's runtime with one handler, started here and asked directly."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import running
from local.emulator import HOST
from local.http_server import Request, Response, serve
from local.processes import tail

_LIMIT_S = 60.0


class NoAnswerError(Exception):
    """The function ended, failed, or answered with something else than 200."""


@dataclass(frozen=True, slots=True)
class Invoked:
    """One invocation: when the runtime asked for it, when its answer had ended (``perf_counter``), and the answer."""

    asked_s: float
    answered_s: float
    content: bytes


class RuntimeApi:
    """Lambda's side of the Runtime API, for one process and one event at a time."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[tuple[bytes, asyncio.Future[Invoked]]] = asyncio.Queue()
        self._current: tuple[float, asyncio.Future[Invoked]] | None = None
        self.address = ""

    @classmethod
    @asynccontextmanager
    async def serving(cls) -> AsyncIterator[RuntimeApi]:
        """Listens until the context is left."""
        api = cls()
        async with serve(api._handle) as server:
            api.address = f"{server.host}:{server.port}"
            yield api

    async def invoke(self, event: bytes) -> Invoked:
        """Gives the event to the runtime when it asks for one. Raises NoAnswerError."""
        answer: asyncio.Future[Invoked] = asyncio.get_running_loop().create_future()
        self._events.put_nowait((event, answer))
        invoked = await answer
        if b'"statusCode": 200' not in invoked.content and b'"statusCode":200' not in invoked.content:
            raise NoAnswerError(invoked.content[:1000].decode(errors="replace"))
        return invoked

    async def _handle(self, request: Request, response: Response) -> None:
        if request.path.endswith("/invocation/next"):
            asked_s = time.perf_counter()
            event, answer = await self._events.get()
            self._current = asked_s, answer
            headers = [
                ("Content-Type", "application/json"),
                ("Lambda-Runtime-Aws-Request-Id", str(uuid.uuid4())),
                ("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:ap-northeast-2:000000000000:function:chat"),
                ("Lambda-Runtime-Deadline-Ms", str(int((time.time() + 900) * 1000))),
                ("Lambda-Runtime-Trace-Id", f"Root=1-{int(time.time()):08x}-{secrets.token_hex(12)}"),
            ]
            await response.send(200, headers, event)
            return
        content = await request.body()
        answered_s = time.perf_counter()
        if self._current is not None:
            asked_s, answer = self._current
            failed = b"" if request.path.endswith("/response") else b"failed: "
            answer.set_result(Invoked(asked_s, answered_s, failed + content))
            self._current = None
        # Last: the runtime may hang up as soon as it has seen the status.
        await response.send(202, [("Content-Type", "application/json")], b'{"status":"OK"}')


async def first_answer_ms(
    python: Path | str, environment: Mapping[str, str], event: bytes, *, folder: Path, log: Path
) -> tuple[float, float]:
    """Milliseconds from the process's start until its runtime asks for an event, and until the end of its answer.

    ``environment`` is Lambda's, with ``_HANDLER``. Raises NoAnswerError.
    """
    async with RuntimeApi.serving() as api:
        began_s = time.perf_counter()
        async with running(
            *(python, "awslambdaric", environment["_HANDLER"]),
            environment={**environment, "AWS_LAMBDA_RUNTIME_API": api.address, "PATH": os.environ["PATH"]},
            log=log,
            folder=folder,
        ) as process:
            answered, ended = asyncio.create_task(api.invoke(event)), asyncio.create_task(process.wait())
            await asyncio.wait({answered, ended}, timeout=_LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            if not answered.done():
                answered.cancel()
                raise NoAnswerError(f"no answer from {environment['_HANDLER']}:\n{tail(log)}")
            invoked = answered.result()
    return (invoked.asked_s - began_s) * 1000, (invoked.answered_s - began_s) * 1000


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
