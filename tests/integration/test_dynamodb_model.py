"""The model of DynamoDB is held against moto and the emulator, call by call, with everything the meters write."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from naru.attributes import from_item, to_item
from naru.meter_state import UNLIMITED
from tests.dynamodb_model import DynamoDB
from tests.emulated_tables import clear, emulated_tables
from tests.integration.test_meter_properties import LONG, MetersMachine
from tests.moto_tables import tables

KEYS: dict[str, tuple[str, ...]] = {"MeterTable": ("meter",), "LedgerTable": ("day_shard", "request_id")}


class Both:
    """Makes each call to the model and to the other one, and does not go on when they differ."""

    def __init__(self, model: DynamoDB, other: Any) -> None:
        self._model = model
        self._other = other
        self.exceptions = model.exceptions
        self.calls = 0
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        def call(**parameters: Any) -> Any:
            answers = [_answer(getattr(client, name), parameters) for client in (self._model, self._other)]
            assert _comparable(answers[0]) == _comparable(answers[1]), (name, parameters)
            self.calls += 1
            if isinstance(answers[0], ClientError):
                self.refused += 1
                raise answers[0]
            return answers[0]

        call.__name__ = name
        return call

    def get_paginator(self, name: str) -> Any:
        model, other = (client.get_paginator(name) for client in (self._model, self._other))

        class Paginator:
            def paginate(self, **parameters: Any) -> Any:
                pages = [[*each.paginate(**parameters)] for each in (model, other)]
                found = [sorted((from_item(i) for page in p for i in page["Items"]), key=str) for p in pages]
                assert found[0] == found[1], parameters
                return pages[0]

        return Paginator()


def _answer(function: Any, parameters: dict[str, Any]) -> Any:
    try:
        return function(**parameters)
    except ClientError as error:
        return error


def _comparable(answer: Any) -> Any:
    """What counts of an answer: the items, or the code of the refusal, its reasons and the item that it shows."""
    if isinstance(answer, ClientError):
        refusal: dict[str, Any] = answer.response  # type: ignore[assignment]
        reasons = [reason["Code"] for reason in refusal.get("CancellationReasons", [])]
        return refusal["Error"]["Code"], reasons, from_item(refusal.get("Item", {}))
    if isinstance(answer.get("Responses"), dict):  # of BatchGetItem, in no order
        return {table: sorted(map(from_item, items), key=str) for table, items in answer["Responses"].items()}
    if "Responses" in answer:
        return [from_item(each.get("Item", {})) for each in answer["Responses"]]
    if "Items" in answer:
        return [from_item(item) for item in answer["Items"]]
    return from_item(answer.get("Item") or answer.get("Attributes") or {})


@pytest.fixture(scope="module", params=["moto", "emulator"])
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if request.param == "moto":
        with tables(*KEYS) as client:
            yield client
    else:
        folder: Path = tmp_path_factory.mktemp("emulator")
        with emulated_tables(folder, *KEYS) as emulated:
            yield emulated.client()


@pytest.mark.slow
def test_the_model_of_dynamodb_answers_as_others_do(other: Any) -> None:
    """Some runs of the machine of `test_meter_properties`, each of whose calls is made twice; then all items agree."""
    seen: list[Both] = []

    class Machine(MetersMachine):
        @property
        def client(self) -> Any:
            return self.both

        def begin_database(self) -> DynamoDB:
            model = super().begin_database()
            for table, keys in KEYS.items():
                clear(other, table, *keys)
            self.both = Both(model, other)
            seen.append(self.both)
            return model

        def teardown(self) -> None:
            super().teardown()
            if hasattr(self, "db"):
                for table, keys in KEYS.items():
                    items = [from_item(item) for item in other.scan(TableName=table)["Items"]]
                    found = {tuple(item[key] for key in keys): item for item in items}
                    assert found == self.db.tables[table]

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=100 if LONG else 6,
            stateful_step_count=40,
            derandomize=True,
            deadline=None,
            database=None,
            # What differs is one call, and is shown; a shorter way to it is not worth minutes.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert sum(both.calls for both in seen) > 150
    assert sum(both.refused for both in seen) > 20


@pytest.mark.parametrize(
    ("update", "condition", "names", "values"),
    [
        ("SET a.b = :one, c = c + :one", "a.b >= :one", {}, {":one": 1}),
        ("SET a.b = :one", "a.missing >= :one", {}, {":one": 1}),
        ("SET a.b = :one", "a.b >= :one OR a.missing = :one", {}, {":one": 1}),
        ("SET a.b = :one", "(attribute_not_exists(d) OR contains(d, :word)) AND c = :one", {}, {":one": 1, ":word": "x"}),
        ("SET c = :one", "contains(words, :word)", {}, {":one": 1, ":word": "one"}),
        ("SET c = :one", "size(a) = :one AND size(missing) < :one", {}, {":one": 1}),
        ("SET c = :one", "size(a) < c", {}, {":one": 1}),
        ("SET c = :one", "c = :text", {}, {":one": 1, ":text": "5"}),
        ("SET past[0].n = past[0].n - :one", "past[0].n = :two", {}, {":one": 1, ":two": 2}),
        ("SET c = :one", "past[7].n = :one", {}, {":one": 1}),
        ("SET c = :one", "past = :past", {}, {":one": 1, ":past": [{"n": 2}]}),
        ("SET c = :one", "past = :past", {}, {":one": 1, ":past": [{"n": 3}]}),
        ("SET big = big - :one", "big >= :big", {}, {":one": 1, ":big": UNLIMITED}),
        ("SET c = big, big = c", "attribute_exists(big)", {}, {}),
        ("REMOVE a.b, a.#missing SET c = :one", "attribute_exists(a.b)", {"#missing": "nothing here"}, {":one": 1}),
        ("REMOVE a.b", "attribute_not_exists(a.#missing)", {"#missing": "nothing here"}, {}),
        ("SET a.#dotted = :map", "attribute_not_exists(a.#dotted)", {"#dotted": "2026-11.x"}, {":map": {"y": 1}}),
        ("SET missing.b = :one", "attribute_exists(a)", {}, {":one": 1}),
        ("SET c = missing + :one", "attribute_exists(a)", {}, {":one": 1}),
        ("SET a = :one, a.b = :one", "attribute_exists(a)", {}, {":one": 1}),
        ("SET c = :one", "attribute_exists(a)", {}, {":one": 1, ":unused": 1}),
        ("SET c = :one", "attribute_exists(a)", {"#unused": "a"}, {":one": 1}),
        ("SET a.b = :two ADD c :one, missing :two", "c BETWEEN :one AND :five", {}, {":one": 1, ":two": 2, ":five": 5}),
        ("SET a.b = :two", "c BETWEEN :one AND :two", {}, {":one": 1, ":two": 2}),
        ("SET a.b = :two", "c IN (:one, :five) AND attribute_exists(a)", {}, {":one": 1, ":two": 2, ":five": 5}),
        ("SET a.b = :two", "c IN (:one)", {}, {":one": 1, ":two": 2}),
    ],
)  # fmt: skip
def test_the_model_of_dynamodb_reads_an_expression_as_others_do(
    other: Any, update: str, condition: str, names: dict[str, str], values: dict[str, Any]
) -> None:
    """Also what the meters never write: what would be refused for its form, and what a condition says of nothing."""
    model = DynamoDB(**KEYS)
    both = Both(model, other)
    item = {
        "meter": "m",
        "a": {"b": 1},
        "c": 5,
        "past": [{"n": 2}],
        "big": UNLIMITED,
        "words": frozenset({"one", "two"}),
    }
    clear(other, "MeterTable", "meter")
    both.put_item(TableName="MeterTable", Item=to_item(item))
    try:
        both.update_item(
            TableName="MeterTable",
            Key=to_item({"meter": "m"}),
            UpdateExpression=update,
            ConditionExpression=condition,
            **({"ExpressionAttributeNames": names} if names else {}),
            **({"ExpressionAttributeValues": to_item(values)} if values else {}),
            ReturnValues="ALL_NEW",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )
    except ClientError as error:
        logging.getLogger(__name__).debug("refused by both: %s", error)
    both.get_item(TableName="MeterTable", Key=to_item({"meter": "m"}), ConsistentRead=True)


@pytest.mark.parametrize("holds", [True, False])
def test_the_model_of_dynamodb_writes_together_as_others_do(other: Any, holds: bool) -> None:
    """All of a transaction or nothing: a check, a removal, a new item and a change."""
    both = Both(DynamoDB(**KEYS), other)
    clear(other, "MeterTable", "meter")
    for name in ("checked", "removed", "changed"):
        both.put_item(TableName="MeterTable", Item=to_item({"meter": name, "n": 1}))
    values = {"ExpressionAttributeValues": to_item({":n": 1 if holds else 2})}
    writes: list[Any] = [
        {"ConditionCheck": {"Key": to_item({"meter": "checked"}), "ConditionExpression": "n = :n", **values}},
        {"Delete": {"Key": to_item({"meter": "removed"})}},
        {"Put": {"Item": to_item({"meter": "new"})}},
        {"Update": {"Key": to_item({"meter": "changed"}), "UpdateExpression": "ADD n :n", **values}},
    ]
    try:
        both.transact_write_items(
            TransactItems=[
                {kind: {"TableName": "MeterTable", **call}} for each in writes for kind, call in each.items()
            ]
        )
    except ClientError as error:
        logging.getLogger(__name__).debug("refused by both: %s", error)
    for name in ("checked", "removed", "changed", "new"):
        both.get_item(TableName="MeterTable", Key=to_item({"meter": name}), ConsistentRead=True)
