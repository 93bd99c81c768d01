import asyncio
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from botocore.exceptions import EndpointConnectionError
from botocore.stub import Stubber
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.units import item_bytes
from naru.errors import StoreUnavailableError
from naru.ledger import Attempt, Ledger, Part, Row, facts, from_item, key_of, to_item
from naru.pricing import Rates, Usage
from naru.request_ids import new_request_id
from tests.moto_tables import tables

SEOUL = ZoneInfo("Asia/Seoul")
RATES = Rates(3_500_000, 350_000, 3_500_000, 10_500_000, currency="USD", krw_per_usd=None)
USAGE = Usage(prompt_tokens=1523, completion_tokens=812, cached_tokens=1024, reasoning_tokens=128)
ROW = Row(
    request_id=new_request_id(at_ms=1_795_359_599_999),  # 2026-11-22 23:59:59.999 in Seoul
    key_id="key_0123456789abcdef",
    end_user="user-12345678",
    batch_id=None,
    stream=True,
    model_asked="hyperclova-x-omni",
    model_served="hyperclova-x-omni",
    deployment="holysheep/hyperclova-x-omni",
    outcome="completed",
    error_code=None,
    usage=USAGE,
    usage_source="reported",
    catalog_version="2026-11-22",
    rates=RATES,
    cost_pico_usd=RATES.cost_pico_usd(USAGE),
    maybe_billed_pico_usd=0,
    attempts=(
        Attempt("holysheep/hyperclova-x-omni", "503", 120),
        Attempt("holysheep/hyperclova-x-omni", "ok", 320),
    ),
    first_token_ms=450,
    latency_ms=8123,
)


@pytest.fixture
def dynamodb() -> Iterator[Any]:
    with tables("LedgerTable") as client:
        yield client


def test_a_row_comes_back_as_it_was_put(dynamodb: Any) -> None:
    asyncio.run(Ledger(dynamodb, "LedgerTable", SEOUL).put(ROW))
    (item,) = dynamodb.query(
        TableName="LedgerTable",
        KeyConditionExpression="day_shard = :day",
        ExpressionAttributeValues={":day": key_of(ROW.request_id, SEOUL)["day_shard"]},
    )["Items"]
    assert from_item(item) == ROW


def test_what_was_written_to_a_cache_for_an_hour_comes_back_with_its_price() -> None:
    usage = Usage(1000, 10, cache_write_tokens=500, cache_write_1h_tokens=200)
    rates = replace(RATES, cache_write_1h_pico_usd=7_000_000)
    row = replace(ROW, usage=usage, rates=rates, cost_pico_usd=rates.cost_pico_usd(usage))
    item = key_of(row.request_id, SEOUL) | to_item(row)
    assert from_item(item) == row
    assert from_item(item).cost_pico_usd == 500 * 3_500_000 + 300 * 3_500_000 + 200 * 7_000_000 + 10 * 10_500_000


def test_a_row_of_before_such_caches_had_a_price_has_four_rates() -> None:
    assert len(to_item(ROW)["rates"]["L"]) == 4
    assert from_item(key_of(ROW.request_id, SEOUL) | to_item(ROW)).rates.cache_write_1h_pico_usd is None


def test_the_first_row_of_a_request_stands(dynamodb: Any) -> None:
    ledger = Ledger(dynamodb, "LedgerTable", SEOUL)
    assert asyncio.run(ledger.put(ROW)) is True
    assert asyncio.run(ledger.put(replace(ROW, cost_pico_usd=1))) is False
    item = dynamodb.get_item(TableName="LedgerTable", Key=key_of(ROW.request_id, SEOUL))["Item"]
    assert from_item(item).cost_pico_usd == ROW.cost_pico_usd


def test_a_row_belongs_to_the_business_day_on_which_the_request_arrived() -> None:
    next_ms = new_request_id(at_ms=1_795_359_600_000)
    assert key_of(ROW.request_id, SEOUL)["day_shard"]["S"].startswith("2026-11-22#")
    assert key_of(next_ms, SEOUL)["day_shard"]["S"].startswith("2026-11-23#")


def test_a_usual_row_costs_one_write_unit() -> None:
    assert item_bytes(key_of(ROW.request_id, SEOUL) | to_item(ROW)) <= 1024


def test_a_store_that_does_not_answer_is_said_to_be_unavailable(dynamodb: Any) -> None:
    ledger = Ledger(dynamodb, "LedgerTable", SEOUL)
    with Stubber(dynamodb) as stub:
        stub.add_client_error("put_item", "InternalServerError", http_status_code=500)
        with pytest.raises(StoreUnavailableError):
            asyncio.run(ledger.put(ROW))
    dynamodb.meta.events.register("before-send", _unplugged)
    with pytest.raises(StoreUnavailableError):
        asyncio.run(ledger.put(ROW))


counts = st.integers(0, 10**7)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=50)


@given(
    st.builds(
        Row,
        request_id=st.integers(0, 2**47).map(lambda at_ms: new_request_id(at_ms=at_ms)),
        usage=st.builds(Usage, counts, counts, counts, counts, counts),
        usage_source=st.sampled_from(["reported", "none"]),
        rates=st.builds(Rates, counts, counts, counts, counts, st.sampled_from(["USD", "KRW"]), st.none() | st.integers(1, 9999)),
        outcome=st.sampled_from(["completed", "truncated", "failed", "rejected", "unknown"]),
        end_user=st.none() | names,
        attempts=st.lists(st.builds(Attempt, names, names, counts, st.booleans())).map(tuple),
        cost_pico_usd=st.integers(0, 10**30),
    )
)  # fmt: skip
def test_every_row_survives_the_way_to_the_table_and_back(row: Row) -> None:
    usage = replace(row.usage, estimated=False)
    row = replace(row, usage=usage, batch_id=row.batch_id or None, error_code=row.error_code or None)
    assert from_item(key_of(row.request_id, SEOUL) | to_item(row)) == row


def test_the_log_has_the_whole_row() -> None:
    row = replace(ROW, parts=(Part("m", "d", USAGE, RATES, ROW.cost_pico_usd),))
    assert json.loads(json.dumps(facts(row))) == json.loads(json.dumps(asdict(row)))


def _unplugged(**_: Any) -> None:
    raise EndpointConnectionError(endpoint_url="http://nowhere")
