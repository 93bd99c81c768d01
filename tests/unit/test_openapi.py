"""The API's description says what the template serves, and says it in valid OpenAPI."""

from __future__ import annotations

import json
from typing import Any

import pytest

from local import template
from naru import openapi
from naru.admin_api import _KEY_FIELDS
from naru.wire import ChatRequest

DOCUMENT: dict[str, Any] = json.loads(openapi.rendered())
STATEMENTS = [
    (method, path, operation) for path, methods in DOCUMENT["paths"].items() for method, operation in methods.items()
]


def test_every_route_of_the_template_is_described_and_nothing_else() -> None:
    """Whoever adds a route adds its operation to naru/openapi. Preflights are a browser's business."""
    served = {
        (route.method, route.resource) for route in template.load().api.routes if route.method not in {"OPTIONS", "ANY"}
    }
    described = [(operation.method, operation.path) for operation in openapi.operations()]
    assert sorted(described) == sorted(served)


def test_every_operation_has_a_name_of_its_own() -> None:
    names = [operation["operationId"] for _, _, operation in STATEMENTS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("method", "path", "operation"), STATEMENTS, ids=[f"{s[0]} {s[1]}" for s in STATEMENTS])
def test_an_operation_says_what_it_takes_and_how_it_may_end(method: str, path: str, operation: dict[str, Any]) -> None:
    assert any(status.startswith("2") for status in operation["responses"])
    in_path = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    assert [p["name"] for p in operation.get("parameters", []) if p["in"] == "path"] == in_path
    if operation["security"]:
        assert {"401", "429", "500"} <= set(operation["responses"])
    if method == "get":
        assert "requestBody" not in operation


def test_every_reference_leads_somewhere() -> None:
    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*map(references, value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    found = references(DOCUMENT)
    assert found
    for reference in found:
        section, _, name = reference.removeprefix("#/components/").partition("/")
        assert name in DOCUMENT["components"][section], reference
    assert {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]} == found


def test_the_description_of_requests_cannot_drift() -> None:
    """The chat request's is made from what requests are checked by; a key's names the fields that are parsed."""
    schemas = DOCUMENT["components"]["schemas"]
    assert set(schemas["ChatRequest"]["properties"]) == set(ChatRequest.model_fields)
    assert set(schemas["NewKey"]["properties"]) == {*_KEY_FIELDS, "shards"}
    assert set(schemas["KeyChanges"]["properties"]) == {*_KEY_FIELDS, "enabled"}
