"""Ends the leases that dead processes left behind.

A lease older than any request can live is ended by what there is to find, in this order:

- a row: the request ended and only its settlement is missing; it is settled with the row's cost
- no row, and the leases of both the key and the organisation: a provider may have been called. A row ``unknown`` is put,
  charged at the worst case, and the request is settled with that
- no row, and one of the two: nobody was called, and all is given back. A provider is called only while both are there,
  and a row is put before either ends, so what is there alone was being taken or given back

Two sweepers at once do no harm, nor does a request that ends after all: the first row stands, whoever puts it, and a
lease ends once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from naru.attributes import from_item, to_item
from naru.errors import NaruError
from naru.ledger import Ledger, Row
from naru.meter import ORGANISATION, Meters
from naru.meter_state import Lease
from naru.pricing import Rates, Usage
from naru.request_ids import MAX_AGE_MS, arrived_at_ms
from naru.tracebacks import without_texts
from naru.unended import Ending

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

logger = logging.getLogger(__name__)

LEASE_LIFE_MS = MAX_AGE_MS + 60_000
"""A minute more than a request may be old when it calls a provider, for clocks that differ."""


Found = dict[str, dict[str, Mapping[str, Any]]]
"""Leases as they are kept, by request and meter."""


@dataclass(frozen=True, slots=True)
class Swept:
    """How many requests a sweep ended, by what was found of them; ``failed`` is how many it could not end."""

    settled: int = 0
    unknown: int = 0
    released: int = 0
    failed: int = 0


class SweepIncompleteError(Exception):
    """Something could not be ended, and will be tried again by the next sweep; the log says what and why."""

    def __init__(self, swept: Swept) -> None:
        super().__init__(f"{swept.failed} of the requests that died could not be ended")
        self.swept = swept


class Sweeper:
    """Sweeps the table of meters. A scan: the table holds a few items per key, and the sweep is rare."""

    def __init__(self, client: DynamoDBClient, table: str, meters: Meters, ledger: Ledger) -> None:
        self._client = client
        self._table = table
        self._meters = meters
        self._ledger = ledger

    async def sweep(self, *, now_ms: int, lease_life_ms: int = LEASE_LIFE_MS) -> Swept:
        """Ends all leases of requests that arrived before ``now_ms - lease_life_ms``.

        One that cannot be ended does not keep the others from it. Raises :class:`SweepIncompleteError` when all have been
        tried, and botocore's exceptions when the table cannot be read at all.
        """
        found, failed = await self._leases(now_ms - lease_life_ms)
        counts = {"settled": 0, "unknown": 0, "released": 0, "failed": failed}
        for request_id, leases in found.items():
            try:
                ending = await self._end(request_id, leases, all_read=not failed)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is about this request; it is raised below
                ending = "failed"
                _log_failure({"request_id": request_id, "meters": sorted(leases)}, error)
            else:
                logger.warning("lease swept", extra={"request_id": request_id, "ending": ending})
            counts[ending] += 1
        swept = Swept(**counts)
        if swept.failed:
            raise SweepIncompleteError(swept)
        return swept

    async def _leases(self, before_ms: int) -> tuple[Found, int]:
        """The old leases, and how many could not be read."""
        found: Found = defaultdict(dict)
        failed = 0
        for item in await asyncio.to_thread(self._used_meters):
            try:
                for request_id, values in item["in_flight"].items():
                    if arrived_at_ms(request_id) < before_ms:
                        found[request_id][item["meter"]] = values
            except (AttributeError, ValueError) as error:
                failed += 1
                _log_failure({"meters": [item["meter"]]}, error)
        return found, failed

    def _used_meters(self) -> list[dict[str, Any]]:
        pages = self._client.get_paginator("scan").paginate(
            TableName=self._table,
            # Consistent: an old lease that was ended a moment ago must not be seen on one meter only.
            ConsistentRead=True,
            FilterExpression="size(in_flight) > :none",
            ExpressionAttributeValues=to_item({":none": 0}),
        )
        return [from_item(item) for page in pages for item in page["Items"]]

    async def _end(self, request_id: str, kept: Mapping[str, Mapping[str, Any]], *, all_read: bool) -> str:
        leases = {meter_id: Lease.from_values(request_id, values) for meter_id, values in kept.items()}
        of_key = next((found for found in leases.items() if found[0].startswith("key#")), None)
        of_organisation = any(meter_id.partition("/")[0] == ORGANISATION for meter_id in leases)
        row = await self._ledger.get(request_id)
        ending = "settled"
        if row is None and of_key is not None and of_organisation:
            ending = "unknown"
            unknown = _unknown_row(request_id, *of_key)
            row = unknown if await self._ledger.put(unknown) else await self._ledger.get(request_id)
        elif row is None and not all_read:
            raise ValueError("a meter that may hold another lease of this request could not be read")
        await self._meters.end(
            Ending.releasing([*leases.items()])
            if row is None
            else [Ending(meter_id, lease, row.cost_pico_usd, None) for meter_id, lease in leases.items()]
        )
        return "released" if row is None else ending


def _log_failure(facts: dict[str, Any], error: Exception) -> None:
    said = error.log if isinstance(error, NaruError) else {"errors": without_texts(error)}
    logger.error("lease not swept", extra={**facts, **said})


def _unknown_row(request_id: str, meter_id: str, lease: Lease) -> Row:
    """The row of a request of which nobody knows the end: charged with all that its key's lease has set aside."""
    return Row(
        request_id=request_id,
        key_id=meter_id.partition("/")[0].removeprefix("key#"),
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
