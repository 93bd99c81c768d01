"""What DynamoDB charges for a request: write and read units on its way, and their price in Seoul.

Counted on the real items of real requests, by DynamoDB's rules for sizes. A meter holds a lease for every request in
flight, so its size, and the price of a write, grow with them; shards divide that.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

from botocore.exceptions import ClientError

from benchmarks.units import read_units, write_units
from naru.ledger import Attempt, Ledger, Row
from naru.meter import Admission, Meters
from naru.meter_state import Limits
from naru.pricing import Rates, Usage
from naru.request_ids import new_request_id
from tests.dynamodb_model import model_of
from tests.meters import USD, put_key, put_organisation

SEOUL = ZoneInfo("Asia/Seoul")
# USD per million units, on demand, ap-northeast-2, 2026-11.
WRITE_USD, READ_USD = 0.68, 0.1355
_REQUESTS = 60
_WARM_UP = 20
_RATES = Rates(3_500_000, 3_500_000, 3_500_000, 10_500_000, currency="USD", krw_per_usd=None)


@dataclass
class _Counting:
    """A DynamoDB client that counts what its calls cost."""

    client: Any
    units: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)

    @property
    def exceptions(self) -> Any:
        return self.client.exceptions

    def _item(self, table: str, key: dict[str, Any]) -> dict[str, Any] | None:
        item: dict[str, Any] | None = self.client.get_item(TableName=table, Key=key).get("Item")
        return item

    def update_item(self, **call: Any) -> Any:
        before = self._item(call["TableName"], call["Key"])
        self.calls["write"] += 1
        try:
            answer = self.client.update_item(**call)
        except ClientError:
            self.calls["refused write"] += 1
            self.units["write"] += write_units(before, None)
            raise
        self.units["write"] += write_units(before, self._item(call["TableName"], call["Key"]))
        return answer

    def put_item(self, **call: Any) -> Any:
        self.calls["write"] += 1
        self.units["write"] += write_units(None, call["Item"])
        return self.client.put_item(**call)

    def get_item(self, **call: Any) -> Any:
        answer = self.client.get_item(**call)
        self.calls["read"] += 1
        self.units["read"] += read_units(answer.get("Item"))
        return answer


def run() -> list[dict[str, Any]]:
    """Prints the table; a row for each number of requests in flight and shards."""
    rows = [_measure(in_flight, shards) for shards in (1, 4) for in_flight in (1, 10, 50)]
    print(f"\nledger: DynamoDB per request, {_REQUESTS} requests each, one a second, key with rpm and tpm\n")
    print("in flight  shards  writes  refused  write units  read units  USD per million requests")
    for row in rows:
        print(
            f"{row['in_flight']:>9}  {row['shards']:>6}  {row['writes']:>6.2f}  {row['refused_writes']:>7.2f}  "
            f"{row['write_units']:>11.2f}  {row['read_units']:>10.2f}  {row['usd_per_million']:>24.2f}"
        )
    return rows


def _measure(in_flight: int, shards: int) -> dict[str, Any]:
    client = model_of("LedgerTable", "MeterTable")
    limits = Limits(budget_pico_usd=10**6 * USD, rpm=100_000, tpm=10**9, max_parallel=1000)
    _, secret = put_key(client, limits=limits, shards=shards, name="mobile app", tags={"team": "app"})
    put_organisation(client, "MeterTable", budget_pico_usd=10**6 * USD, shards=shards)
    counting = _Counting(client)
    asyncio.run(_requests(counting, secret, in_flight))
    writes, reads = counting.units["write"] / _REQUESTS, counting.units["read"] / _REQUESTS
    return {
        "in_flight": in_flight,
        "shards": shards,
        "writes": counting.calls["write"] / _REQUESTS,
        "refused_writes": counting.calls["refused write"] / _REQUESTS,
        "write_units": writes,
        "read_units": reads,
        "usd_per_million": writes * WRITE_USD + reads * READ_USD,
    }


async def _requests(counting: _Counting, secret: str, in_flight: int) -> None:
    client: Any = counting
    meters = Meters(client, "MeterTable", SEOUL, organisation_budget_pico_usd=0, rng=random.Random(1))
    ledger = Ledger(client, "LedgerTable", SEOUL)
    open_requests: list[Admission] = []
    now_ms = 1_795_338_000_000
    for number in range(_WARM_UP + in_flight + _REQUESTS):
        if number == _WARM_UP + in_flight:
            counting.units.clear()
            counting.calls.clear()
        now_ms += 1000
        request_id = new_request_id(at_ms=now_ms)
        open_requests.append(
            await meters.admit(
                f"Bearer {secret}",
                request_id=request_id,
                now_ms=now_ms,
                model="hyperclova-x-omni",
                worst_pico_usd=USD // 20,
                tokens=4500,
            )
        )
        if len(open_requests) >= in_flight:
            admission = open_requests.pop(0)
            row = sample_row(admission)
            await ledger.put(row)
            await meters.settle(admission, cost_pico_usd=row.cost_pico_usd, tokens=row.usage.total_tokens)


def sample_row(admission: Admission) -> Row:
    """The row of a usual streamed request."""
    usage = Usage(prompt_tokens=523, completion_tokens=312)
    deployment = "holysheep/hyperclova-x-omni"
    return Row(
        request_id=admission.leases[0][1].request_id,
        key_id=admission.key_id,
        end_user="user-12345678",
        batch_id=None,
        stream=True,
        model_asked="hyperclova-x-omni",
        model_served="hyperclova-x-omni",
        deployment=deployment,
        outcome="completed",
        error_code=None,
        usage=usage,
        usage_source="reported",
        catalog_version="2026-11-22",
        rates=_RATES,
        cost_pico_usd=_RATES.cost_pico_usd(usage),
        maybe_billed_pico_usd=0,
        attempts=(Attempt(deployment, "ok", 320),),
        first_token_ms=450,
        latency_ms=4123,
    )
