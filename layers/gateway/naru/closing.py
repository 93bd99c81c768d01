"""Until when no row can come any more.

A request holds a lease on the organisation's meter from before a provider is called until after its row is put, and
the sweeper ends the leases of the dead in the same order. So once the meter holds no lease of a request that arrived
before an instant, all rows before that instant are there: not probably after half an hour, but for certain and usually
within minutes. A request that needs longer than the margin until it holds its lease is given back and calls nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from naru.attributes import from_item, to_item
from naru.errors import StoreUnavailableError
from naru.meter import ORGANISATION
from naru.meter_changes import shard_id
from naru.meter_state import Meter
from naru.request_ids import ADMITTED_WITHIN_MS, arrived_at_ms

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

MARGIN_MS = ADMITTED_WITHIN_MS + 60_000
"""A minute more than a request may take until it holds its lease, for clocks that differ."""


class Closing:
    """Looks at the organisation's meter."""

    def __init__(self, client: DynamoDBClient, meter_table: str) -> None:
        self._client = client
        self._table = meter_table

    def closed_until_ms(self, now_ms: int) -> int:
        """All rows of requests that arrived before this instant are in the ledger.

        Blocks. Raises :class:`~naru.errors.StoreUnavailableError`.
        """
        arrivals = [arrived_at_ms(request_id) for meter in self._shards() for request_id in meter.item["in_flight"]]
        return min([now_ms - MARGIN_MS, *arrivals])

    def _shards(self) -> list[Meter]:
        if (first := self._item(ORGANISATION)) is None:
            return []
        count = Meter(first).shards
        others = [self._item(shard_id(ORGANISATION, shard)) for shard in range(1, count)]
        return [Meter(item) for item in (first, *others) if item is not None]

    def _item(self, meter_id: str) -> dict[str, Any] | None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer = self._client.get_item(TableName=self._table, Key=to_item({"meter": meter_id}), ConsistentRead=True)
        except (BotoCoreError, ClientError) as error:
            raise StoreUnavailableError(
                "The gateway cannot reach its meters at the moment. Try again shortly.",
                log={"reason": f"{type(error).__name__} on {self._table}: {error}"},
            ) from error
        return from_item(answer["Item"]) if "Item" in answer else None
