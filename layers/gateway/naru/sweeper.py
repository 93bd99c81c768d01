"""Ends the leases that dead processes left behind.

A lease older than any request can live is ended by what there is to find, in this order:

- a row: the request ended and only its settlement is missing; it is settled with the row's cost
- no row, and the organisation's lease: a provider may have been called. A row ``unknown`` is put, charged at the
  worst case, and the request is settled with that
- neither: the process died before it called anybody; all is given back

Two sweepers at once do no harm, nor does a request that ends after all: the first row stands, whoever puts it, and a
lease ends once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from naru.attributes import from_item, to_item
from naru.ledger import Ledger, Row
from naru.meter import ORGANISATION, Meters
from naru.meter_state import Lease, Meter
from naru.pricing import Rates, Usage
from naru.request_ids import arrived_at_ms

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

logger = logging.getLogger(__name__)

LEASE_LIFE_MS = 16 * 60 * 1000
"""Lambda ends every request after 15 minutes."""


@dataclass(frozen=True, slots=True)
class Swept:
    """How many requests a sweep ended, by what was found of them."""

    settled: int = 0
    unknown: int = 0
    released: int = 0


class Sweeper:
    """Sweeps the table of meters. A scan: the table holds a few items per key, and the sweep is rare."""

    def __init__(self, client: DynamoDBClient, table: str, meters: Meters, ledger: Ledger) -> None:
        self._client = client
        self._table = table
        self._meters = meters
        self._ledger = ledger

    async def sweep(self, *, now_ms: int, lease_life_ms: int = LEASE_LIFE_MS) -> Swept:
        """Ends all leases of requests that arrived before ``now_ms - lease_life_ms``.

        Raises :class:`~naru.errors.StoreUnavailableError`; the next sweep goes on.
        """
        counts = {"settled": 0, "unknown": 0, "released": 0}
        for request_id, leases in (await self._leases(now_ms - lease_life_ms)).items():
            ending = await self._end(request_id, leases)
            counts[ending] += 1
            logger.warning("lease swept", extra={"request_id": request_id, "ending": ending})
        return Swept(**counts)

    async def _leases(self, before_ms: int) -> dict[str, dict[str, Lease]]:
        """The old leases by request and meter."""
        found: dict[str, dict[str, Lease]] = defaultdict(dict)
        for meter in await asyncio.to_thread(self._used_meters):
            for lease in meter.leases():
                if arrived_at_ms(lease.request_id) < before_ms:
                    found[lease.request_id][meter.id] = lease
        return found

    def _used_meters(self) -> list[Meter]:
        pages = self._client.get_paginator("scan").paginate(
            TableName=self._table,
            # Consistent: an old lease that was ended a moment ago must not be seen on one meter only.
            ConsistentRead=True,
            FilterExpression="size(in_flight) > :none",
            ExpressionAttributeValues=to_item({":none": 0}),
        )
        return [Meter(from_item(item)) for page in pages for item in page["Items"]]

    async def _end(self, request_id: str, leases: dict[str, Lease]) -> str:
        row = await self._ledger.get(request_id)
        ending = "settled"
        if row is None and any(meter_id.partition("/")[0] == ORGANISATION for meter_id in leases):
            ending = "unknown"
            unknown = _unknown_row(request_id, leases)
            row = unknown if await self._ledger.put(unknown) else await self._ledger.get(request_id)
        for meter_id, lease in leases.items():
            if row is None:
                await self._meters.finish(meter_id, lease, cost_pico_usd=0, tokens=0, refund_request=True)
            else:
                await self._meters.finish(meter_id, lease, cost_pico_usd=row.cost_pico_usd, tokens=None)
        return "released" if row is None else ending


def _unknown_row(request_id: str, leases: dict[str, Lease]) -> Row:
    """The row of a request of which nobody knows the end: charged with all that was set aside for it."""
    meter_id, lease = min(leases.items(), key=lambda found: not found[0].startswith("key#"))
    key_id = meter_id.partition("/")[0].removeprefix("key#") if meter_id.startswith("key#") else "unknown"
    return Row(
        request_id=request_id,
        key_id=key_id,
        end_user=None,
        batch_id=lease.batch_id or None,
        stream=False,
        model_asked=lease.model or "unknown",
        model_served=lease.model or "unknown",
        deployment="unknown",
        outcome="unknown",
        error_code="process_died",
        usage=Usage(prompt_tokens=0, completion_tokens=0),
        usage_source="none",
        catalog_version="unknown",
        rates=Rates(0, 0, 0, 0, currency="USD", krw_per_usd=None),
        cost_pico_usd=lease.worst_pico_usd,
        maybe_billed_pico_usd=lease.worst_pico_usd,
        attempts=(),
        first_token_ms=None,
        latency_ms=0,
    )
