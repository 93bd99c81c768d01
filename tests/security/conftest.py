"""The handlers, once for each module of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from local.simulated_model import Config, Latency, ThreadedModel, run_in_thread
from tests.security.handlers import Handlers, handlers


@pytest.fixture(scope="module")
def provider() -> Iterator[ThreadedModel]:
    with run_in_thread(Config(latency=Latency(first_token_ms=0, token_ms=0))) as model:
        yield model


@pytest.fixture(scope="module")
def running(provider: ThreadedModel) -> Iterator[Handlers]:
    with handlers(provider) as started:
        yield started


@pytest.fixture
def gateway(running: Handlers) -> Handlers:
    """With nothing printed yet, and a provider that is well."""
    running.model.reset_stats()
    running.model.clear_control()
    running.forget()
    return running
