"""What belongs to one key is invisible to another, and an app's key opens no door of the operator's."""

from __future__ import annotations

import pytest

from naru.api_keys import new_admin_key_item
from naru.attributes import to_item
from tests.meters import meter
from tests.security.handlers import Handlers


def test_an_idempotency_key_belongs_to_one_api_key(gateway: Handlers) -> None:
    """The same header and the same body from another key is another request, with an answer and a bill of its own."""
    _, other = gateway.new_key()
    headers = {"Idempotency-Key": "tenants-1"}
    first = gateway.chat("안녕 [[sim tokens=5]]", headers=headers)
    foreign = gateway.chat("안녕 [[sim tokens=5]]", headers=headers, key=other)
    again = gateway.chat("안녕 [[sim tokens=5]]", headers=headers)
    assert (first.status, foreign.status) == (200, 200)
    assert "idempotency-replayed" not in foreign.headers
    assert foreign.headers["x-request-id"] != first.headers["x-request-id"]
    assert again.headers["x-request-id"] == first.headers["x-request-id"]
    assert gateway.model.stats()["requests"] == 2
    # Nor does it tell whether the key was used with another body.
    assert gateway.chat("다른 말 [[sim tokens=5]]", headers={"Idempotency-Key": "tenants-1"}).status == 409
    _, third = gateway.new_key()
    assert gateway.chat("다른 말 [[sim tokens=5]]", headers=headers, key=third).status == 200


def test_an_idempotency_key_cannot_reach_another_keys_record(gateway: Handlers) -> None:
    """The record's name is made of both, and one of them is hashed: no header can spell the other."""
    other_id, other = gateway.new_key()
    gateway.chat("안녕 [[sim tokens=5]]", headers={"Idempotency-Key": "tenants-2"})
    for header in (f"{gateway.key_id}#tenants-2", f"#{gateway.key_id}#tenants-2", "../tenants-2", "tenants-2"):
        reply = gateway.chat("안녕 [[sim tokens=5]]", headers={"Idempotency-Key": header}, key=other)
        assert "idempotency-replayed" not in reply.headers
    names = [item["record"]["S"] for item in gateway.dynamodb.scan(TableName="IdempotencyTable")["Items"]]
    assert sum(name.startswith(f"{other_id}#") for name in names) == 4
    assert all(name.count("#") == 1 and len(name.partition("#")[2]) == 64 for name in names)


def test_a_key_that_may_not_see_a_record_does_not_wait_for_it(gateway: Handlers) -> None:
    """Authentication comes before anything is claimed, waited for or given out."""
    gateway.chat("안녕 [[sim tokens=5]]", headers={"Idempotency-Key": "tenants-3"})
    forged = f"sk-naru-{gateway.key_id.removeprefix('key_')}-{'A' * 43}"
    reply = gateway.chat("안녕 [[sim tokens=5]]", headers={"Idempotency-Key": "tenants-3"}, key=forged)
    assert reply.status == 401


def test_an_end_user_of_one_key_is_not_that_of_another(gateway: Handlers) -> None:
    """Both apps may have a user called 1: each has a meter of its own."""
    from tests.meters import put_key

    ids = []
    for _ in range(2):
        key_id, secret = put_key(gateway.dynamodb, user_rpm=1, name="app", tags={}, created_at_ms=0)
        ids.append(key_id)
        assert gateway.chat("안녕 [[sim tokens=3]]", user="1", key=secret).status == 200
        refused = gateway.chat("안녕 [[sim tokens=3]]", user="1", key=secret)
        assert (refused.status, refused.code) == (429, "rate_limit_exceeded")
    items = gateway.dynamodb.scan(TableName="MeterTable")["Items"]
    users = [item["meter"]["S"] for item in items if item["meter"]["S"].startswith("user#")]
    assert {name.split("#")[1] for name in users} >= set(ids)


ADMIN_ROUTES = [
    ("POST", "/admin/keys", {"name": "mine"}),
    ("GET", "/admin/keys", None),
    ("GET", "/admin/keys/{key}", None),
    ("PATCH", "/admin/keys/{key}", {"budget_usd": None}),
    ("POST", "/admin/keys/{key}/rotate", {}),
    ("DELETE", "/admin/keys/{key}", None),
    ("GET", "/admin/organization", None),
    ("PATCH", "/admin/organization", {"budget_usd": 10**6}),
]


@pytest.mark.parametrize(("method", "path", "body"), ADMIN_ROUTES)
@pytest.mark.parametrize("who", ["app", "replaced", "expired", "unknown", "nobody"])
def test_no_other_key_opens_the_admin_api(
    gateway: Handlers, method: str, path: str, body: dict[str, object] | None, who: str
) -> None:
    if who in {"replaced", "expired"}:
        item, key = new_admin_key_item("old", now_ms=0)
        changed = {"enabled": False} if who == "replaced" else {"expires_at_ms": 1}
        gateway.dynamodb.put_item(TableName="MeterTable", Item=to_item({**item, **changed}))
    else:
        key = {"app": gateway.api_key, "unknown": f"sk-naru-{'z' * 12}-{'A' * 43}", "nobody": ""}[who]
    before = gateway.stored()
    reply = gateway.admin(method, path.format(key=gateway.key_id), body, key=key or None)
    assert reply.status == {"app": 403, "replaced": 403}.get(who, 401)
    assert gateway.stored() == before


def test_an_admin_key_opens_no_model(gateway: Handlers) -> None:
    assert gateway.chat("안녕", key=gateway.admin_key).status == 401
    assert gateway.send("chat", "GET", "/models", key=gateway.admin_key).status == 401


@pytest.mark.parametrize(
    "field",
    [
        "scope",
        "key_id",
        "secrets",
        "meter",
        "spent_usd",
        "available_usd",
        "in_flight",
        "months",
        "admin",
        "created_at_ms",
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/admin/keys"), ("PATCH", "/admin/keys/{key}"), ("PATCH", "/admin/organization")])  # fmt: skip
def test_no_field_reaches_the_table_that_is_not_meant_to(gateway: Handlers, field: str, method: str, path: str) -> None:
    before = gateway.stored()
    reply = gateway.admin(method, path.format(key=gateway.key_id), {"name": "x", field: "admin"})
    assert (reply.status, reply.code) == (400, "unknown_parameter")
    assert gateway.stored() == before


@pytest.mark.parametrize("name", ["{key}/1", "{key}%2F1", "organisation", "../organization", "admin#{admin}", "{key} ", "key_"])  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_no_path_reaches_a_meter_that_is_not_a_keys(gateway: Handlers, name: str, method: str) -> None:
    """A shard, the organisation or an admin key must not be taken for a key."""
    path = f"/admin/keys/{name.format(key=gateway.key_id, admin=gateway.admin_key[8:20])}"
    before = gateway.stored()
    reply = gateway.admin(method, path, {"budget_usd": None} if method == "PATCH" else None)
    assert reply.status == 404
    assert gateway.stored() == before


def test_a_key_cannot_choose_who_pays(gateway: Handlers) -> None:
    """Neither a header nor a field names another key, another request id or another batch."""
    other_id, _ = gateway.new_key()
    spoofed = {"x-request-id": "req_ffffffffffffffffffffffffffffffff", "x-naru-key-id": other_id, "x-api-key": other_id}
    reply = gateway.chat("안녕 [[sim tokens=3]]", headers=spoofed, key_id=other_id, batch_id="batch_1")
    assert reply.status == 200
    assert reply.headers["x-request-id"] != spoofed["x-request-id"]
    assert meter(gateway.dynamodb, f"key#{other_id}").item["months"] == {}
    rows = gateway.dynamodb.scan(TableName="LedgerTable")["Items"]
    (row,) = (row for row in rows if row["request_id"]["S"] == reply.headers["x-request-id"])
    assert row["key_id"]["S"] == gateway.key_id
    assert "batch_id" not in row
