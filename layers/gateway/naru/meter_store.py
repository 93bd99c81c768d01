"""Meters in DynamoDB, for those who change them: read whole, changed whole, all shards at one moment."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from naru.attributes import from_item, to_item
from naru.errors import StoreUnavailableError
from naru.meter_changes import Change, shard_id
from naru.meter_state import Meter

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

_TRIES = 40
_JITTER_S = 0.2
_CONFLICTS = {"ConditionalCheckFailedException", "TransactionConflictException", "TransactionInProgressException"}
# Of a cancelled transaction: what another attempt may overcome.
_PASSING_REASONS = {"None", "ConditionalCheckFailed", "TransactionConflict", "ThrottlingError"}

Plan = Callable[[Sequence[Meter], Sequence[Change]], None]
"""Puts what is wanted into the changes of all shards, in order; called again when somebody wrote in between."""


class _ConflictError(Exception):
    """Somebody else wrote first."""


class MeterStore:
    """Every method raises :class:`~naru.errors.StoreUnavailableError` when DynamoDB does not answer."""

    def __init__(self, client: DynamoDBClient, table: str, *, rng: random.Random | None = None) -> None:
        self._client = client
        self._table = table
        self._rng = rng or random.SystemRandom()

    async def item(self, meter_id: str) -> dict[str, Any] | None:
        """One item, as it is now; None where there is none."""
        answer = await self._call(
            self._client.get_item, TableName=self._table, Key=to_item({"meter": meter_id}), ConsistentRead=True
        )
        return from_item(answer["Item"]) if answer.get("Item") else None

    async def items(self, prefix: str) -> list[dict[str, Any]]:
        """All items whose id begins so: a scan."""

        def pages() -> list[dict[str, Any]]:
            paginator = self._client.get_paginator("scan").paginate(
                TableName=self._table,
                ConsistentRead=True,  # what was made a moment ago is in it
                FilterExpression="begins_with(meter, :prefix)",
                ExpressionAttributeValues=to_item({":prefix": prefix}),
            )
            return [from_item(item) for page in paginator for item in page["Items"]]

        found: list[dict[str, Any]] = await self._call(pages)
        return found

    async def shards(self, meter_id: str, *, count: int | None = None) -> list[Meter]:
        """All shards of a meter, as they are at one moment; none if there is no such meter.

        ``count`` is for a meter that is about to have more of them than it says.
        """
        if (first := await self.item(meter_id)) is None:
            return []
        count = max(count or 1, Meter(first).shards)
        if count == 1:
            return [Meter(first)]
        gets = [
            {"Get": {"TableName": self._table, "Key": to_item({"meter": shard_id(meter_id, shard)})}}
            for shard in range(count)
        ]
        for _ in range(_TRIES):
            try:
                answer = await self._call(self._client.transact_get_items, TransactItems=gets)
            except _ConflictError:
                await self._pause()
            else:
                return [Meter(from_item(response["Item"])) for response in answer["Responses"]]
        raise _too_busy(meter_id)

    async def put(self, items: Sequence[Mapping[str, Any]]) -> None:
        """New items, all or none; where there is one already, it stays."""
        puts = [
            {"TableName": self._table, "Item": to_item(item), "ConditionExpression": "attribute_not_exists(meter)"}
            for item in items
        ]
        for _ in range(_TRIES):
            try:
                if len(puts) == 1:
                    await self._call(self._client.put_item, **puts[0])
                else:
                    await self._call(self._client.transact_write_items, TransactItems=[{"Put": each} for each in puts])
            except _ConflictError:
                # Ids are random or fixed, so what is there is as good, be it our own write whose answer got lost.
                if await self.item(items[0]["meter"]) is not None:
                    return
                await self._pause()
            else:
                return
        raise _too_busy(items[0]["meter"])

    async def change(self, read: Callable[[], Awaitable[list[Meter]]], plan: Plan) -> list[Meter]:
        """Reads, plans and writes, again and again until nobody came in between; the meters afterwards."""
        meters = await read()
        for _ in range(_TRIES):
            changes = [Change(meter.id) for meter in meters]
            plan(meters, changes)
            try:
                await self._write([change for change in changes if not change.is_empty])
            except _ConflictError:
                await self._pause()
                meters = await read()
            else:
                return await read()
        raise _too_busy(meters[0].id)

    async def _write(self, changes: Sequence[Change]) -> None:
        writes = []
        for change in changes:
            change.require("attribute_exists(meter)")
            update = change.done()
            write: dict[str, Any] = {
                "TableName": self._table,
                "Key": to_item({"meter": change.meter_id}),
                "UpdateExpression": update.update,
                "ConditionExpression": update.condition,
                "ExpressionAttributeNames": dict(update.names),
            }
            if update.values:
                write["ExpressionAttributeValues"] = to_item(update.values)
            writes.append(write)
        if len(writes) == 1:
            # No transaction where one write will do: it would make requests of that moment fail, and costs twice.
            await self._call(self._client.update_item, **writes[0])
        elif writes:
            await self._call(self._client.transact_write_items, TransactItems=[{"Update": each} for each in writes])

    async def _call(self, function: Callable[..., Any], **parameters: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return await asyncio.to_thread(function, **parameters)
        except (BotoCoreError, ClientError) as error:
            if isinstance(error, ClientError) and _is_conflict(error.response):
                raise _ConflictError from None
            raise StoreUnavailableError(
                "The gateway cannot reach its keys at the moment. Try again shortly.",
                log={"reason": f"{type(error).__name__} on {self._table}: {error}"},
            ) from error

    async def _pause(self) -> None:
        await asyncio.sleep(self._rng.uniform(0, _JITTER_S))


def _is_conflict(response: Mapping[str, Any]) -> bool:
    code = response["Error"]["Code"]
    if code == "TransactionCanceledException":
        return {reason.get("Code", "None") for reason in response.get("CancellationReasons", [])} <= _PASSING_REASONS
    return code in _CONFLICTS


def _too_busy(meter_id: str) -> StoreUnavailableError:
    return StoreUnavailableError("The key is too busy to be changed. Try again.", log={"meter": meter_id})
