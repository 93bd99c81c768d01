"""The AWS emulator, as a child process bound to 127.0.0.1."""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from local.processes import running_module, tail

REGION = "ap-northeast-2"
HOST = "127.0.0.1"
# The emulator takes this access key for the account's owner, also when it enforces IAM.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}

_START_LIMIT_S = 60.0
_POLL_S = 0.03


class EmulatorError(Exception):
    """The emulator did not start, or what was deployed to it failed."""


@dataclass(frozen=True)
class Emulator:
    """A running emulator."""

    url: str
    enforces_iam: bool
    process: Process

    def client(self, service: str) -> Any:
        """A boto3 client of the account's owner."""
        return boto3.client(
            service,  # type: ignore[call-overload]  # the stubs know services by literal name
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            config=Config(retries={"mode": "standard", "total_max_attempts": 2}, connect_timeout=5),
        )


@asynccontextmanager
async def emulator(folder: Path, *, logs: Path, enforce_iam: bool = False) -> AsyncIterator[Emulator]:
    """Start the emulator, wait until it is ready, and stop it when the context is left.

    Its temporary files go into `folder`, which exists. Its port is NARU_EMULATOR_PORT, or a free one. Raises EmulatorError.
    """
    log = logs / "emulator.log"
    with kept_port(int(os.environ.get("NARU_EMULATOR_PORT") or 0)) as port:
        async with _started(port, folder, log=log, enforce_iam=enforce_iam) as process:
            yield Emulator(f"http://{HOST}:{port}", enforce_iam, process)


@asynccontextmanager
async def _started(port: int, folder: Path, *, log: Path, enforce_iam: bool) -> AsyncIterator[Process]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MINISTACK_"))},
        **CREDENTIALS,
        "AUTH": str(enforce_iam).lower(),
        "BIND_HOST": HOST,
        "GATEWAY_PORT": str(port),
        "IOT_MTLS_ENABLED": "0",
        "MINISTACK_HOST": HOST,
        "MINISTACK_REGION": REGION,
        "PERSIST_STATE": "0",
        "S3_DATA_DIR": str(folder / "s3"),
        "SFTP_ENABLED": "0",
        "TMPDIR": str(folder),
    }
    async with running_module("ministack", environment=environment, log=log) as process:
        await _until_healthy(port, process, log)
        yield process


@contextmanager
def kept_port(port: int = 0) -> Iterator[int]:
    """A port that nobody is given by the system meanwhile; who is told of it can listen there.

    Raises OSError when it is taken.
    """
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind((HOST, port))
        yield int(place.getsockname()[1])


async def _until_healthy(port: int, process: Process, log: Path) -> None:
    try:
        async with asyncio.timeout(_START_LIMIT_S):
            while not await asyncio.to_thread(_is_healthy, port):
                if process.returncode is not None:
                    raise EmulatorError(f"the emulator ended with {process.returncode}:\n{tail(log)}")
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise EmulatorError(f"the emulator is not ready after {_START_LIMIT_S:.0f} s:\n{tail(log)}") from None


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=1)
    try:
        connection.request("GET", "/_ministack/health")
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
