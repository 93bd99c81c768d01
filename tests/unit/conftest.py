"""Fixtures of the tests that run the use case against a simulated provider."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from naru.meter_state import Limits
from tests.dynamodb_model import model_of
from tests.meters import put_key
from tests.one_gateway import Gateway, simulated_provider


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    dynamodb = model_of("LedgerTable", "MeterTable", "HealthTable")
    with simulated_provider() as (model, run):
        key_id, secret = put_key(dynamodb, limits=Limits(rpm=1000, tpm=10**8))
        yield Gateway(model, run, dynamodb, tmp_path / "catalog.toml", key_id, secret)
