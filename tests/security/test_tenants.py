"""What belongs to one key is invisible to another, and an app's key opens no door of the operator's."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from naru.api_keys import new_admin_key_item
from naru.attributes import to_item
from naru.http_api import Exchange
from naru.ledger import Row, key_of
from naru.ledger import to_item as row_item
from tests.meters import meter
from tests.security.handlers import Handlers, Reply
from tests.usage_world import SEOUL, any_row


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
    for field, value in {"key_id": other_id, "batch_id": "batch_1"}.items():
        refused = gateway.chat("안녕 [[sim tokens=3]]", headers=spoofed, **{field: value})
        assert (refused.status, refused.code) == (400, "unsupported_parameter")
    reply = gateway.chat("안녕 [[sim tokens=3]]", headers=spoofed)
    assert reply.status == 200
    assert reply.headers["x-request-id"] != spoofed["x-request-id"]
    assert meter(gateway.dynamodb, f"key#{other_id}").item["months"] == {}
    rows = gateway.dynamodb.scan(TableName="LedgerTable")["Items"]
    (row,) = (row for row in rows if row["request_id"]["S"] == reply.headers["x-request-id"])
    assert row["key_id"]["S"] == gateway.key_id
    assert "batch_id" not in row


# ── Lists ──────────────────────────────────────────────────────────────────────────────────────────────────

NOW_MS = time.time_ns() // 10**6
NOW_S = NOW_MS // 1000
BEGIN_MS = NOW_MS - 3 * 86_400_000
THEIR_MS = NOW_MS - 40_000_123
"""When the other tenant has asked, among other times."""
SPAN = {"start": str(BEGIN_MS // 1000), "end": str(NOW_S)}


def iso(at_ms: int) -> str:
    return f"1970-01-01T00:00:00.{at_ms % 1000:03}+00:00" if at_ms < 1000 else (
        time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_ms // 1000)) + f".{at_ms % 1000:03}+00:00"
    )  # fmt: skip


LISTS: dict[str, tuple[str, str, str, Mapping[str, str]]] = {
    f"{path}?{'&'.join(f'{name}={value}' for name, value in query.items())}"[:90]: (function, method, path, query)
    for function, method, path, query in [
        ("usage", "GET", "/usage", {**SPAN, "group_by": "hour"}),
        ("usage", "GET", "/usage", {**SPAN, "group_by": "day,key,model,deployment,outcome,batch"}),
        ("usage", "GET", "/usage", {**SPAN, "group_by": "end_user"}),
        ("usage", "GET", "/usage", {**SPAN, "group_by": "tag", "format": "csv"}),
        ("usage", "GET", "/usage", {**SPAN, "key": "{their_key}"}),
        ("usage", "GET", "/usage/requests", {**SPAN, "limit": "5"}),
        ("usage", "GET", "/usage/requests", {**SPAN, "limit": "1"}),
        ("usage", "GET", "/usage/requests", {**SPAN, "limit": "100"}),
        ("usage", "GET", "/usage/requests", {**SPAN, "outcome": "failed"}),
        ("usage", "GET", "/usage/requests", {**SPAN, "end_user": "u1", "model": "omni"}),
        ("usage", "GET", "/usage/requests", {**SPAN, "key": "{their_key}"}),
        ("usage", "GET", "/usage/requests", {**SPAN, "format": "csv", "limit": "3"}),
        ("usage", "GET", "/usage/requests", {"start": iso(THEIR_MS), "end": iso(THEIR_MS + 1)}),
        ("usage", "GET", "/usage/requests", {"start": iso(THEIR_MS - 1), "end": iso(THEIR_MS + 2), "limit": "1"}),
        ("usage", "GET", "/usage/requests", {"start": iso(THEIR_MS), "end": iso(THEIR_MS + 1), "format": "csv"}),
        ("usage", "GET", "/usage/requests", {**SPAN, "after": "{their_request}"}),
        ("usage", "GET", "/usage/requests", {**SPAN, "after": f"req_{THEIR_MS + 1:012x}{'0' * 20}", "limit": "1"}),
        ("usage", "GET", "/usage/summary", {}),
        ("usage", "GET", "/organization/costs", {"start_time": SPAN["start"], "limit": "2", "group_by": "api_key_id"}),
        ("usage", "GET", "/organization/costs", {"start_time": SPAN["start"], "api_key_ids": "{their_key}"}),
        ("usage", "GET", "/organization/usage/completions", {"start_time": SPAN["start"], "bucket_width": "1h"}),
        ("usage", "GET", "/organization/usage/completions", {"start_time": SPAN["start"], "group_by": "model,batch"}),
        ("usage", "GET", "/usage/reports/yesterday", {}),
        ("batches", "GET", "/files", {}),
        ("batches", "GET", "/files", {"limit": "1"}),
        ("batches", "GET", "/files", {"after": "{their_file}"}),
        ("batches", "GET", "/files", {"after": "{their_file}", "order": "asc"}),
        ("batches", "GET", "/files/{their_file}", {}),
        ("batches", "GET", "/files/{their_file}/content", {}),
        ("batches", "DELETE", "/files/{their_file}", {}),
        ("batches", "POST", "/uploads/{their_upload}/complete", {}),
        ("batches", "GET", "/batches", {}),
        ("batches", "GET", "/batches", {"limit": "1"}),
        ("batches", "GET", "/batches", {"after": "{their_batch}"}),
        ("batches", "GET", "/batches/{their_batch}", {}),
        ("batches", "GET", "/batches/{their_batch}/results", {}),
        ("batches", "POST", "/batches/{their_batch}/cancel", {}),
        ("admin", "GET", "/admin/keys", {}),
        ("admin", "GET", "/admin/keys/{their_key}", {}),
        ("chat", "GET", "/models", {}),
    ]
}


def put_rows(gateway: Handlers, rows: list[Row]) -> None:
    for each in rows:
        gateway.dynamodb.put_item(TableName="LedgerTable", Item=key_of(each.request_id, SEOUL) | row_item(each))


def work_of(gateway: Handlers, key_id: str, secret: str, seed: int) -> dict[str, str]:
    """A tenant's rows of three days, one of them at a time that others may ask for, files, an upload, batches."""
    rng = random.Random(seed)
    times = [
        *(rng.randrange(BEGIN_MS, NOW_MS - 3_600_000) for _ in range(30)),
        THEIR_MS,
        NOW_MS - 1000,
        BEGIN_MS + 1000 // seed,
    ]
    rows = [replace(any_row(at_ms, rng), key_id=key_id) for at_ms in times]
    put_rows(gateway, rows)

    def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        reply = gateway.send("batches", "POST", path, body, key=secret)
        assert reply.status == 200, reply.body
        made: dict[str, Any] = reply.json()
        return made

    batch, _ = (post("/batches", {"requests": [{"prompt": "안녕"}]}) for _ in range(2))
    upload = post("/uploads/presigned", {"filename": "a.jsonl", "bytes": 10, "purpose": "batch"})
    return {
        "their_key": key_id,
        "their_request": rows[30].request_id,
        "their_file": batch["input_file_id"],
        "their_upload": upload["id"],
        "their_batch": batch["id"],
    }


def shown(reply: Reply) -> tuple[int, dict[str, str], Any]:
    """An answer without what differs from one request to the next."""
    headers = {name: value for name, value in reply.headers.items() if name != "openai-processing-ms"}
    own_id = headers.pop("x-request-id")
    text = reply.body.decode().replace(own_id, "")
    return reply.status, headers, json.loads(text) if text.startswith("{") else text


@pytest.mark.slow
@pytest.mark.parametrize("has_own", [False, True])
def test_nothing_that_a_tenant_is_shown_depends_on_another_one(
    gateway: Handlers, monkeypatch: pytest.MonkeyPatch, *, has_own: bool
) -> None:
    """Every list and everything that may be asked by a foreign id: body, status and headers, before and after the other
    tenant has done anything.
    """
    begin = Exchange.begin
    monkeypatch.setattr(Exchange, "begin", lambda: replace(begin(), arrived_at_ms=NOW_MS))
    # Its rows are not of this test's two tenants.
    for item in gateway.dynamodb.scan(TableName="LedgerTable")["Items"]:
        gateway.dynamodb.delete_item(TableName="LedgerTable", Key={name: item[name] for name in ("day_shard", "request_id")})  # fmt: skip
    mine, secret = gateway.new_key()
    if has_own:
        work_of(gateway, mine, secret, seed=1)
    their_key, their_secret = gateway.new_key()
    prefixes = {"their_request": "req_", "their_file": "file-", "their_upload": "file-", "their_batch": "batch_"}
    foreign = {"their_key": their_key} | {
        name: f"{prefix}{THEIR_MS:012x}{number:020x}" for number, (name, prefix) in enumerate(prefixes.items())
    }

    def ask(ids: dict[str, str]) -> dict[str, Any]:
        answers = {}
        for name, (function, method, path, query) in LISTS.items():
            asked = {field: value.format(**ids) for field, value in query.items()}
            reply = gateway.send(function, method, path.format(**ids), key=secret, query=asked)
            status, headers, body = shown(reply)
            for field, value in ids.items():
                # An id that was asked for may be told again.
                if isinstance(body, dict) and "error" in body:
                    body["error"]["message"] = body["error"]["message"].replace(value[:64], field)
            answers[name] = (status, headers, body)
        return answers

    before = ask(foreign)
    work_of(gateway, their_key, their_secret, seed=2)
    again = ask(foreign)
    for name, answer in before.items():
        assert again[name] == answer, name
    # Nor does an id that there is tell more than one that there is not; only where a list goes on follows from its time.
    theirs = work_of(gateway, their_key, their_secret, seed=3)
    for name, answer in ask(theirs).items():
        if "after=" not in name:
            assert answer == before[name], name
    for reply in ask(theirs).values():
        text = json.dumps(reply)
        assert not [value for field, value in theirs.items() if field != "their_key" and value in text]


# ── What spends nothing ────────────────────────────────────────────────────────────────────────────────────

READS = [
    ("usage", "GET", "/usage"),
    ("usage", "GET", "/usage/requests"),
    ("usage", "GET", "/usage/summary"),
    ("usage", "GET", "/usage/reports/yesterday"),
    ("usage", "GET", "/organization/costs"),
    ("usage", "GET", "/organization/usage/completions"),
    ("batches", "GET", "/files"),
    ("batches", "GET", "/files/file-0"),
    ("batches", "GET", "/batches"),
    ("batches", "GET", "/batches/batch_0"),
    ("batches", "GET", "/batches/batch_0/results"),
    ("batches", "POST", "/batches/batch_0/cancel"),
    ("batches", "DELETE", "/files/file-0"),
    ("batches", "POST", "/files"),
    ("batches", "POST", "/uploads/presigned"),
    ("batches", "POST", "/batches"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("function", "method", "path"), READS)
def test_a_key_with_one_request_a_minute_does_not_read_without_end(
    gateway: Handlers, monkeypatch: pytest.MonkeyPatch, function: str, method: str, path: str
) -> None:
    """Good or bad, each call counts; another key and a stranger are not in its way."""
    monkeypatch.setattr(gateway.modules[function].limits, "per_minute", 30)
    begin = Exchange.begin
    monkeypatch.setattr(Exchange, "begin", lambda: replace(begin(), arrived_at_ms=NOW_MS))
    _, secret = gateway.new_key(rpm=1)
    _, other = gateway.new_key(rpm=1)
    stranger = f"sk-naru-{'z' * 12}-{'A' * 43}"
    statuses = [gateway.send(function, method, path, key=secret).status for _ in range(30)]
    assert 429 not in statuses[:3]
    refused = gateway.send(function, method, path, key=secret)
    assert (refused.status, refused.code) == (429, "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert gateway.send(function, method, path, key=other).status != 429
    assert gateway.send(function, method, path, key=stranger).status == 401
    assert "zzzzzzzzzzzz" not in gateway.stored()


def test_uploads_that_are_not_completed_are_bounded(gateway: Handlers) -> None:
    _, secret = gateway.new_key(rpm=1)
    upload = {"filename": "a.jsonl", "bytes": 200 * 10**6, "purpose": "batch"}
    replies = [gateway.send("batches", "POST", "/uploads/presigned", upload, key=secret) for _ in range(30)]
    assert [reply.status for reply in replies] == [200] * 10 + [429] * 20
    assert int(replies[-1].headers["retry-after"]) > 60
    # One is given up: its URL holds for an hour, and so does its place.
    file_id = replies[0].json()["id"]
    assert gateway.send("batches", "DELETE", f"/files/{file_id}", key=secret).json()["deleted"] is True
    assert gateway.send("batches", "POST", f"/uploads/{file_id}/complete", key=secret).status == 404
    assert gateway.send("batches", "POST", "/uploads/presigned", upload, key=secret).status == 429
    # One is completed.
    small = {**upload, "bytes": 3}
    _, other = gateway.new_key()
    ids = [gateway.send("batches", "POST", "/uploads/presigned", small, key=other).json()["id"] for _ in range(50)]
    assert gateway.send("batches", "POST", "/uploads/presigned", small, key=other).status == 429
    objects = gateway.modules["batches"].objects
    name = gateway.modules["batches"].files.find(gateway_key(other), ids[0], pending=True).object_name
    objects.put(name, b"{}\n")
    assert gateway.send("batches", "POST", f"/uploads/{ids[0]}/complete", key=other).status == 200
    assert gateway.send("batches", "POST", "/uploads/presigned", small, key=other).status == 200


def gateway_key(secret: str) -> str:
    """The id of a key, of its secret."""
    return f"key_{secret[8:20]}"
