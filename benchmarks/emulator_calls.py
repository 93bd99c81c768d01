"""What the emulator takes for the DynamoDB calls of one request: time of the stand-in, not of what is measured.

The calls are those that meters and ledger really make. Each is taken from boto3 when it is signed, sent over a raw
connection that is kept open, and timed there.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import boto3
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.compat import HTTPHeaders

from benchmarks.figures import median
from benchmarks.ledger import sample_row
from local.emulator import CREDENTIALS, REGION
from naru.ledger import Ledger
from naru.meter import Meters
from naru.request_ids import new_request_id

_REQUESTS = 60
_WARM_UP = 10


@dataclass(frozen=True)
class EmulatorCalls:
    """Medians in milliseconds."""

    ms_by_operation: Mapping[str, float]
    ms_to_admit: float
    ms_per_request: float


@dataclass
class _Timed:
    """The transport of a boto3 client: one connection, and how long each call took on it."""

    connection: http.client.HTTPConnection
    calls: list[tuple[str, float]] = field(default_factory=list)

    def send(self, request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        headers = {
            name: value.decode() if isinstance(value, bytes) else value for name, value in request.headers.items()
        }
        began_s = time.perf_counter()
        self.connection.request("POST", "/", body=cast("bytes", request.body), headers=headers)
        answer = self.connection.getresponse()
        content = answer.read()
        took_ms = (time.perf_counter() - began_s) * 1000
        self.calls.append((headers["X-Amz-Target"].partition(".")[2], took_ms))
        raw = _Raw(content)
        return AWSResponse(request.url, answer.status, HTTPHeaders.from_pairs(answer.getheaders()), raw)


class _Raw(io.BytesIO):
    def stream(self, **_: Any) -> Any:
        yield self.read()


def measure(gateway: Mapping[str, Any]) -> EmulatorCalls:
    """Measured on the tables of a running gateway, with its key; nobody else may be at work there."""
    url = urlsplit(gateway["emulator_url"])
    timed = _Timed(http.client.HTTPConnection(url.hostname or "", url.port))
    client = _client(gateway)
    client.meta.events.register("before-send.dynamodb", timed.send)
    admitting_ms, whole_ms = asyncio.run(_requests(client, gateway, timed))
    names = sorted({name for name, _ in timed.calls})
    by_operation = {name: median([ms for each, ms in timed.calls if each == name]) for name in names}
    return EmulatorCalls(by_operation, median(admitting_ms), median(whole_ms))


async def _requests(client: Any, gateway: Mapping[str, Any], timed: _Timed) -> tuple[list[float], list[float]]:
    zone = ZoneInfo("Asia/Seoul")
    meters = Meters(client, gateway["tables"]["MeterTable"], zone, organisation_budget_pico_usd=10**18)
    ledger = Ledger(client, gateway["tables"]["LedgerTable"], zone)
    admitting_ms, whole_ms = [], []
    for number in range(_WARM_UP + _REQUESTS):
        timed.calls[:] = timed.calls if number > _WARM_UP else []
        first = len(timed.calls)
        now_ms = time.time_ns() // 10**6
        request_id = new_request_id(at_ms=now_ms)
        admission = await meters.admit(
            f"Bearer {gateway['api_key']}",
            request_id=request_id,
            now_ms=now_ms,
            model="hyperclova-x-omni",
            worst_pico_usd=10**9,
            tokens=300,
        )
        admitted = len(timed.calls)
        await ledger.put(sample_row(admission))
        for meter_id, lease in admission.leases:  # one connection, so one after the other
            await meters.finish(meter_id, lease, cost_pico_usd=10**8, tokens=90)
        if number >= _WARM_UP:
            admitting_ms.append(sum(ms for _, ms in timed.calls[first:admitted]))
            whole_ms.append(sum(ms for _, ms in timed.calls[first:]))
    return admitting_ms, whole_ms


def row_count(gateway: Mapping[str, Any]) -> int:
    """How many rows the ledger has."""
    pages = (
        _client(gateway)
        .get_paginator("scan")
        .paginate(TableName=gateway["tables"]["LedgerTable"], Select="COUNT", ConsistentRead=True)
    )
    return sum(page["Count"] for page in pages)


def _client(gateway: Mapping[str, Any]) -> Any:
    return boto3.client(
        "dynamodb",
        endpoint_url=gateway["emulator_url"],
        region_name=REGION,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )
