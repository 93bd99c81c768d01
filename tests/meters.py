"""API keys and meters for tests, made as the admin API makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from naru.attributes import from_item, to_item
from naru.keys import hash_secret, new_key_id, new_secret
from naru.meter_state import UNLIMITED, Limits, Meter, new_item

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

NEVER_MS = 10**15
USD = 10**12
"""A dollar in pico-dollars."""


def put_key(
    client: DynamoDBClient, table: str = "MeterTable", *, limits: Limits | None = None, shards: int = 1, **fields: Any
) -> tuple[str, str]:
    """A key of these limits; its id and its secret."""
    key_id = new_key_id()
    secret = new_secret(key_id)
    whole = limits or Limits()
    for shard in range(shards):
        item = new_item(
            f"key#{key_id}" + (f"/{shard}" if shard else ""),
            whole.slice(shard, shards),
            key_id=key_id,
            secrets={hash_secret(secret): NEVER_MS},
            expires_at_ms=NEVER_MS,
            shards=shards,
            user_budget_pico_usd=UNLIMITED,
            user_rpm=UNLIMITED,
        )
        client.put_item(TableName=table, Item=to_item(item | fields))
    return key_id, secret


def put_organisation(client: DynamoDBClient, table: str, *, budget_pico_usd: int, shards: int = 1) -> None:
    """The organisation's meter, over what was there."""
    for shard in range(shards):
        limits = Limits(budget_pico_usd=budget_pico_usd).slice(shard, shards)
        item = new_item("organisation" + (f"/{shard}" if shard else ""), limits, shards=shards)
        client.put_item(TableName=table, Item=to_item(item))


def meter(client: DynamoDBClient, meter_id: str, table: str = "MeterTable") -> Meter:
    """A meter as it is now."""
    answer = client.get_item(TableName=table, Key=to_item({"meter": meter_id}), ConsistentRead=True)
    return Meter(from_item(answer["Item"]))


def all_meters(client: DynamoDBClient, table: str = "MeterTable") -> list[Meter]:
    """Every meter there is."""
    pages = client.get_paginator("scan").paginate(TableName=table, ConsistentRead=True)
    return [Meter(from_item(item)) for page in pages for item in page["Items"] if "in_flight" in item]
