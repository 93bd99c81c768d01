"""Fixtures of the tests that run the use case against a simulated provider."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from local.simulated_model import Config, Latency, ThreadedModel, run_in_thread
from naru.meter_state import Limits
from tests.dynamodb_model import model_of
from tests.meters import put_key
from tests.one_gateway import Gateway


@pytest.fixture(scope="module")
def simulated() -> Iterator[ThreadedModel]:
    with run_in_thread(Config(latency=Latency(first_token_ms=0, token_ms=0))) as model:
        yield model


@pytest.fixture
def gateway(simulated: ThreadedModel, tmp_path: Path) -> Gateway:
    simulated.wait_idle(5)  # what the test before has hung up on is billed to it
    simulated.reset_stats()
    simulated.clear_control()
    dynamodb = model_of("LedgerTable", "MeterTable", "HealthTable")
    key_id, secret = put_key(dynamodb, limits=Limits(rpm=1000, tpm=10**8))
    return Gateway(simulated, dynamodb, tmp_path / "catalog.toml", key_id, secret)
