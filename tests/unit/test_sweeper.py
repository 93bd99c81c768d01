"""The sweeper where something is not as it should be: it ends all that it can, and says so when it could not end all."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from botocore.exceptions import ReadTimeoutError

from naru.ledger import Ledger, from_item
from naru.meter import Admission, Meters
from naru.meter_state import UNLIMITED, Limits
from naru.request_ids import new_request_id
from naru.sweeper import LEASE_LIFE_MS, Sweeper, SweepIncompleteError, Swept
from tests.dynamodb_model import DynamoDB, model_of
from tests.meters import USD, all_meters, put_key

ROOT = Path(__file__).parent.parent.parent
SEOUL = ZoneInfo("Asia/Seoul")
NOW_MS = 1_795_316_405_000


class World:
    """Three requests whose processes died while a provider was called: two of one key, one of another."""

    def __init__(self, at_ms: int = NOW_MS) -> None:
        self.at_ms = at_ms
        self.db: DynamoDB = model_of("MeterTable", "LedgerTable")
        self.client: Any = self.db
        self.meters = Meters(self.client, "MeterTable", SEOUL, organisation_budget_pico_usd=UNLIMITED)
        self.keys = [put_key(self.client, limits=Limits(budget_pico_usd=100 * USD)) for _ in range(2)]
        self.admissions = [self.admit(secret) for secret in (self.keys[0][1], self.keys[0][1], self.keys[1][1])]
        self.ids = [admission.leases[0][1].request_id for admission in self.admissions]
        self.broken: Callable[[str, dict[str, Any]], bool] = lambda _name, _parameters: False

    def admit(self, secret: str) -> Admission:
        return asyncio.run(
            self.meters.admit(
                f"Bearer {secret}",
                request_id=new_request_id(at_ms=self.at_ms),
                now_ms=self.at_ms,
                model="m",
                worst_pico_usd=USD,
                tokens=1,
            )
        )

    def item(self, meter_id: str) -> dict[str, Any]:
        return self.db.tables["MeterTable"][meter_id,]

    def lease(self, number: int, of: str = "key") -> dict[str, Any]:
        meter_id = self.admissions[number].leases[0 if of == "key" else -1][0]
        kept: dict[str, Any] = self.item(meter_id)["in_flight"][self.ids[number]]
        return kept

    def sweeper(self) -> Sweeper:
        client: Any = _Faulty(self)
        meters = Meters(client, "MeterTable", SEOUL, organisation_budget_pico_usd=UNLIMITED)
        return Sweeper(client, "MeterTable", meters, Ledger(client, "LedgerTable", SEOUL))

    def sweep(self) -> Swept:
        return asyncio.run(self.sweeper().sweep(now_ms=self.at_ms + LEASE_LIFE_MS + 1))

    def rows(self) -> dict[str, str]:
        items = self.client.scan(TableName="LedgerTable")["Items"]
        return {row.request_id: row.outcome for row in map(from_item, items)}

    def left(self) -> set[str]:
        return {request_id for each in all_meters(self.client) for request_id in each.item["in_flight"]}


class _Faulty:
    """The table; some of its calls are never answered."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.exceptions = world.db.exceptions
        self.get_paginator = world.db.get_paginator

    def __getattr__(self, name: str) -> Any:
        def call(**parameters: Any) -> Any:
            if self._world.broken(name, parameters):
                raise ReadTimeoutError(endpoint_url="the table")
            return getattr(self._world.db, name)(**parameters)

        return call


def break_lease(world: World) -> None:
    del world.lease(1)["worst_pico_usd"]


def break_organisations_lease(world: World) -> None:
    del world.lease(1, of="organisation")["month"]


def break_row(world: World) -> None:
    world.broken = lambda name, given: name == "query" and world.ids[1] in str(given)


def break_put(world: World) -> None:
    world.broken = lambda name, given: name == "put_item" and world.ids[1] in str(given)


def break_settlement(world: World) -> None:
    world.broken = lambda name, given: name == "update_item" and world.ids[1] in str(given)


@pytest.mark.parametrize("fault", [break_lease, break_organisations_lease, break_row, break_put, break_settlement])
def test_one_request_that_cannot_be_ended_does_not_keep_the_others_from_it(
    fault: Callable[[World], None], caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    fault(world)
    with pytest.raises(SweepIncompleteError) as incomplete:
        world.sweep()
    assert incomplete.value.swept == Swept(unknown=2, failed=1)
    assert world.left() == {world.ids[1]}
    assert {world.rows()[world.ids[index]] for index in (0, 2)} == {"unknown"}
    (failure,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert vars(failure)["request_id"] == world.ids[1]


@pytest.mark.parametrize("fault", [break_row, break_put, break_settlement])
def test_the_next_sweep_ends_what_the_last_one_could_not(fault: Callable[[World], None]) -> None:
    world = World()
    fault(world)
    with pytest.raises(SweepIncompleteError):
        world.sweep()
    world.broken = lambda _name, _parameters: False
    assert world.sweep().failed == 0
    assert (world.left(), set(world.rows().values())) == (set(), {"unknown"})
    assert len(world.rows()) == 3


@pytest.mark.parametrize("unknown", [1, "text", {"a": "map"}], ids=str)
@pytest.mark.parametrize("of", ["key", "organisation"])
def test_an_attribute_that_this_release_does_not_know_keeps_nothing_from_being_swept(unknown: Any, of: str) -> None:
    """A newer release wrote it, and was rolled back."""
    world = World()
    world.lease(1, of)["of_a_newer_release"] = unknown
    assert world.sweep() == Swept(unknown=3)
    assert world.left() == set()


@pytest.mark.parametrize("in_flight", [["a", "list"], {"not an id of ours": {}}], ids=["a list", "a strange id"])
def test_a_meter_that_cannot_be_read_frees_nobody_whose_lease_it_may_hold(in_flight: Any) -> None:
    """The organisation's lease alone says that nobody was called, but only if the key's is known not to be there."""
    world = World()
    world.item(world.admissions[2].leases[0][0])["in_flight"] = in_flight
    with pytest.raises(SweepIncompleteError) as incomplete:
        world.sweep()
    assert incomplete.value.swept == Swept(unknown=2, failed=2)
    assert world.ids[2] in world.item("organisation")["in_flight"]


@pytest.fixture
def function(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The deployed function's module, without any of AWS behind it."""
    for name in ("LEDGER_TABLE", "METER_TABLE", "PROVIDER_KEYS_SECRET", "IDEMPOTENCY_TABLE", "HEALTH_TABLE", "ANSWERS_BUCKET"):  # fmt: skip
        monkeypatch.setenv(f"NARU_{name}", name)
    for name in ("AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "ap-northeast-2")
    spec = importlib.util.spec_from_file_location("sweeper_app", ROOT / "functions" / "sweeper" / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("fails", [False, True])
def test_the_function_fails_when_a_lease_could_not_be_ended_and_counts_what_was(
    fails: bool, function: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that the alarm on failing schedules is raised, and the one on unknown ends too."""
    world = World(at_ms=time.time_ns() // 10**6 - LEASE_LIFE_MS - 60_000)
    if fails:
        break_lease(world)
    monkeypatch.setattr(function, "sweeper", world.sweeper())
    if fails:
        with pytest.raises(SweepIncompleteError):
            function.lambda_handler({}, None)
    else:
        assert function.lambda_handler({}, None) == {"settled": 0, "unknown": 3, "released": 0, "failed": 0}
    assert f'"SweptUnknown":[{3 - fails}.0]' in capsys.readouterr().out.replace(" ", "")
