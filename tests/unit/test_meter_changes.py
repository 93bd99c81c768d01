"""How a limit changes, whatever the shards of a meter have done with it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from naru.attributes import to_item
from naru.meter_changes import Change, change_limits, shard_id, whole
from naru.meter_state import Limits, Meter, new_item
from naru.meter_store import MeterStore
from tests.dynamodb_model import model_of
from tests.meters import meter

MONTH = "2026-11"


@pytest.fixture(scope="module")
def dynamodb() -> Any:
    return model_of("MeterTable")


@settings(deadline=None, max_examples=60)
@given(
    budgets=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    spent=st.lists(st.tuples(st.booleans(), st.integers(0, 15), st.integers(0, 15)), min_size=1, max_size=5),
)
def test_no_shard_has_more_to_spend_than_all_have_together(
    dynamodb: Any, budgets: tuple[int, int], spent: list[tuple[bool, int, int]]
) -> None:
    """Whatever each has spent and set aside, for any old and new budget."""
    shards, (old, new) = len(spent), budgets
    meters = []
    for shard, (is_open, cost, leased) in enumerate(spent):
        limits = Limits(budget_pico_usd=old).slice(shard, shards)
        item = new_item(shard_id("key#k", shard), limits, shards=shards)
        if is_open:
            left = limits.budget_pico_usd - cost - leased
            item["months"][MONTH] = {"available_pico_usd": left, "spent_pico_usd": cost}
        meters.append(Meter(item))
    before = sum(each.available_pico_usd(MONTH) for each in meters)
    for each in meters:
        dynamodb.put_item(TableName="MeterTable", Item=to_item(each.item))

    def plan(seen: Any, changes: Any) -> None:
        change_limits(changes, seen, Limits(budget_pico_usd=new), month=MONTH)

    async def read() -> list[Meter]:
        return [meter(dynamodb, each.id) for each in meters]

    after = asyncio.run(MeterStore(dynamodb, "MeterTable").change(read, plan))
    assert whole(after).budget_pico_usd == new
    parts = [each.available_pico_usd(MONTH) for each in after]
    assert sum(parts) == before + new - old
    if old != new:
        assert all(part >= 0 for part in parts) or all(part <= 0 for part in parts)


def test_nothing_is_written_where_nothing_changes() -> None:
    seen = Meter(new_item("key#k", Limits(budget_pico_usd=5)))
    change = Change("key#k")
    change_limits([change], [seen], Limits(budget_pico_usd=5), month=MONTH)
    assert change.is_empty


def test_a_month_that_is_over_is_not_opened_again() -> None:
    """Its leases are still settled, so its budget changes where it is open."""
    meters = [Meter(new_item(shard_id("key#k", i), Limits(budget_pico_usd=10).slice(i, 2), shards=2)) for i in range(2)]
    meters[0].item["months"]["2026-10"] = {"available_pico_usd": 3, "spent_pico_usd": 2}
    changes = [Change(each.id) for each in meters]
    change_limits(changes, meters, Limits(budget_pico_usd=20), month=MONTH)
    first, second = (change.done() for change in changes)
    assert 5 in first.values.values()
    assert "2026-10" in first.names.values()
    assert "2026-10" not in second.names.values()
