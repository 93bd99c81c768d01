"""Until when no row can come any more: what the organisation's leases say."""

from __future__ import annotations

from naru.attributes import to_item
from naru.closing import MARGIN_MS, Closing
from naru.meter_state import UNLIMITED, Limits, new_item
from naru.request_ids import new_request_id
from tests.dynamodb_model import DynamoDB
from tests.usage_world import at_ms

NOW_MS = at_ms("2026-11-22 14:30:00")


def closing(*shards: list[int]) -> Closing:
    """Of an organisation whose shards hold leases of requests that arrived then."""
    client = DynamoDB(MeterTable=("meter",))
    for index, arrivals in enumerate(shards):
        lease = {"worst_pico_usd": 1, "tokens": 1, "slot": 0, "month": "2026-11", "model": ""}
        item = new_item("organisation" + (f"/{index}" if index else ""), Limits(UNLIMITED), shards=len(shards))
        item["in_flight"] = {new_request_id(at_ms=arrived): lease for arrived in arrivals}
        client.put_item(TableName="MeterTable", Item=to_item(item))
    return Closing(client, "MeterTable")  # type: ignore[arg-type]


def test_with_nothing_in_flight_all_is_there_but_the_last_minutes() -> None:
    assert closing().closed_until_ms(NOW_MS) == NOW_MS - MARGIN_MS
    assert closing([]).closed_until_ms(NOW_MS) == NOW_MS - MARGIN_MS
    assert closing([NOW_MS - 1000]).closed_until_ms(NOW_MS) == NOW_MS - MARGIN_MS


def test_the_oldest_request_in_flight_keeps_everything_after_it_open() -> None:
    assert closing([NOW_MS - 1000, NOW_MS - 900_000]).closed_until_ms(NOW_MS) == NOW_MS - 900_000


def test_every_shard_is_asked() -> None:
    assert closing([], [], [NOW_MS - 800_000]).closed_until_ms(NOW_MS) == NOW_MS - 800_000
