"""Whether a batch can be paid for: the most that its requests can cost, beside what is left of the month. Calls block.

An answer for the moment of submission only. What holds is that each line passes the meters.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from naru import wire
from naru.amounts import to_usd
from naru.attributes import from_item, to_item
from naru.batch_input import LineError, Request
from naru.business_time import business_day
from naru.catalog import Catalog
from naru.errors import InvalidRequestError
from naru.meter import ORGANISATION
from naru.meter_state import Meter
from naru.routing import Route
from naru.stored import reached

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient


class WorstCase:
    """Adds up what requests can cost at most; one that will be refused costs nothing."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._rng = random.SystemRandom()
        self.pico_usd = 0

    def add(self, request: Request) -> None:
        try:
            body, asked = wire.parse_chat_request(wire.compact_json(request.body))
            route = Route(
                self._catalog,
                asked.model,
                body,
                output_limit=asked.output_limit,
                latency_s=lambda _: 0.0,
                rng=self._rng,
            )
        except InvalidRequestError:
            return
        self.pico_usd += route.worst_case_pico_usd


class BatchBudget:
    """Reads what is left."""

    def __init__(self, client: DynamoDBClient, meter_table: str, zone: ZoneInfo) -> None:
        self._client = client
        self._table = meter_table
        self._zone = zone

    def refusal(self, key_id: str, worst_case_pico_usd: int) -> dict[str, Any] | None:
        """The error of a batch whose worst case does not fit into what its key and the organisation have left."""
        available_pico_usd = min(
            left for left in (self._left(f"key#{key_id}"), self._left(ORGANISATION)) if left is not None
        )
        if worst_case_pico_usd <= available_pico_usd:
            return None
        return LineError(
            "insufficient_quota",
            f"The requests of this batch can cost {to_usd(worst_case_pico_usd):f} USD at most, and "
            f"{to_usd(max(0, available_pico_usd)):f} USD of the month's budget are left. Ask for fewer tokens with "
            "max_tokens, divide the batch, or submit it without check_budget: then it runs until the budget is spent.",
            "check_budget",
        ).at(None)

    def _left(self, meter_id: str) -> int | None:
        """Of all shards of a meter; None for one that nobody has used yet."""
        first = self._meter(meter_id)
        if first is None:
            return None
        month = business_day(time.time_ns() // 10**6, self._zone).isoformat()[:7]
        others = (self._meter(f"{meter_id}/{shard}") for shard in range(1, first.shards))
        return sum(meter.available_pico_usd(month) for meter in (first, *others) if meter is not None)

    def _meter(self, meter_id: str) -> Meter | None:
        with reached(self._table):
            answer = self._client.get_item(TableName=self._table, Key=to_item({"meter": meter_id}), ConsistentRead=True)
        return Meter(from_item(answer["Item"])) if answer.get("Item") else None
