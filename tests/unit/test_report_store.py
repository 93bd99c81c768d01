"""Roll-ups in the table: whole or not there, whatever their size."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from naru import report_store
from naru.report_store import ReportStore
from naru.tally import Spent, Tally
from naru.tally_codec import encode
from tests.moto_tables import tables
from tests.usage_world import at_ms, row


@pytest.fixture(scope="module")
def client() -> Iterator[object]:
    with tables("ReportTable") as made:
        yield made


def large(count: int = 500) -> Tally:
    tally = Tally().add_all([row(at_ms("2026-11-22 10:00:00"))])
    for number in range(count):
        tally.users.add("key_a", f"user-{number * 7919 % 10007}", Spent(1, number, number))
    return tally


def test_a_large_roll_up_lies_in_several_items_and_comes_back_whole(
    client: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_store, "CHUNK_BYTES", 1000)
    store, made = ReportStore(client, "ReportTable"), large()  # type: ignore[arg-type]
    store.put_tally("hours#a", "07", made)
    store.put_tally("hours#a", "08", Tally())
    count = client.query(TableName="ReportTable", KeyConditionExpression="about = :a", ExpressionAttributeValues={":a": {"S": "hours#a"}})["Count"]  # type: ignore[attr-defined]  # fmt: skip
    assert count > 3
    found = ReportStore(client, "ReportTable").tallies("hours#a")  # type: ignore[arg-type]
    assert {part: encode(tally) for part, tally in found.items()} == {"07": encode(made), "08": encode(Tally())}


def test_a_roll_up_that_is_half_written_is_not_there(client: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the rows are asked instead."""
    monkeypatch.setattr(report_store, "CHUNK_BYTES", 1000)
    store = ReportStore(client, "ReportTable")  # type: ignore[arg-type]
    store.put_tally("hours#b", "07", large())
    key = {"about": {"S": "hours#b"}, "part": {"S": "07/1"}}
    item = client.get_item(TableName="ReportTable", Key=key)["Item"]  # type: ignore[attr-defined]
    client.put_item(TableName="ReportTable", Item=item | {"digest": {"S": "another"}})  # type: ignore[attr-defined]
    assert store.tallies("hours#b") == {}
    store.put_tally("hours#b", "07", large(501))
    assert [*store.tallies("hours#b")] == ["07"]


def test_what_another_version_has_written_is_not_there(client: object) -> None:
    store = ReportStore(client, "ReportTable")  # type: ignore[arg-type]
    store.put_tally("hours#c", "07", Tally())
    key = {"about": {"S": "hours#c"}, "part": {"S": "07/0"}}
    item = client.get_item(TableName="ReportTable", Key=key)["Item"]  # type: ignore[attr-defined]
    client.put_item(TableName="ReportTable", Item=item | {"content": {"B": b"?"}, "digest": {"S": "other"}})  # type: ignore[attr-defined]
    assert store.tallies("hours#c") == {}


def test_what_is_claimed_is_done_by_one_until_its_lease_is_over(client: object) -> None:
    store = ReportStore(client, "ReportTable")  # type: ignore[arg-type]
    claim = ("alerts#2026-11", "organisation/5/090")
    assert store.claim(*claim, now_ms=1000, lease_ms=500)
    assert not store.claim(*claim, now_ms=1500, lease_ms=500)
    assert store.claim(*claim, now_ms=1501, lease_ms=500)
    store.give_back(*claim)
    assert store.claim(*claim, now_ms=1502, lease_ms=500)
    store.done(*claim, now_ms=1600)
    store.give_back(*claim)
    assert not store.claim(*claim, now_ms=10**9, lease_ms=500)
    assert store.is_done(*claim)
