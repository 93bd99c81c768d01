"""Fixtures of the tests that run the use case against a simulated provider."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local.simulated_model import Config, Latency, ThreadedModel, run_in_thread
from naru.meter_state import Limits
from tests.meters import all_meters, put_key
from tests.moto_tables import tables
from tests.one_gateway import Gateway


@pytest.fixture(scope="module")
def simulated() -> Iterator[ThreadedModel]:
    with run_in_thread(Config(latency=Latency(first_token_ms=0, token_ms=0))) as model:
        yield model


@pytest.fixture(scope="module")
def completions_tables() -> Iterator[Any]:
    with tables("LedgerTable", "MeterTable", "HealthTable") as client:
        yield client


@pytest.fixture
def gateway(simulated: ThreadedModel, completions_tables: Any, tmp_path: Path) -> Gateway:
    simulated.reset_stats()
    simulated.clear_control()
    for item in completions_tables.scan(TableName="LedgerTable")["Items"]:
        key = {name: item[name] for name in ("day_shard", "request_id")}
        completions_tables.delete_item(TableName="LedgerTable", Key=key)
    for item in completions_tables.scan(TableName="HealthTable")["Items"]:
        completions_tables.delete_item(TableName="HealthTable", Key={"deployment": item["deployment"]})
    for meter in all_meters(completions_tables):
        completions_tables.delete_item(TableName="MeterTable", Key={"meter": {"S": meter.id}})
    key_id, secret = put_key(completions_tables, limits=Limits(rpm=1000, tpm=10**8))
    return Gateway(simulated, completions_tables, tmp_path / "catalog.toml", key_id, secret)
