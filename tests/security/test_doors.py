"""What a request costs before it is answered: next to nothing for a stranger, and in proportion to its bytes for a key.

A stranger has a key that looks right and is in no table, or one whose secret is wrong, revoked or expired.
"""

from __future__ import annotations

import base64
import gzip
import json
import secrets
import time
from typing import Any, Self

import pytest

from naru.api_keys import NEVER_MS
from naru.attributes import to_item
from naru.completions import PROOF_CHARS
from naru.errors import NaruError
from naru.keys import hash_secret
from tests.hostile import HOSTILE, plain
from tests.security.handlers import Handlers, Reply, _Context
from tests.work import counted, measured

MEGABYTE = 2**20
MOST_BYTES = 128 * MEGABYTE

STRANGERS = ["unknown", "wrong secret", "revoked", "expired", "rotated away"]
ROUTES = [
    ("chat", "POST", "/chat/completions"),
    ("batches", "POST", "/files"),
    ("batches", "POST", "/uploads/presigned"),
    ("batches", "POST", "/uploads/file-0123456789abcdefghjkmnpq/complete"),
    ("batches", "POST", "/batches"),
    ("batches", "POST", "/batches/batch_0123456789abcdefghjkmnpq/cancel"),
    ("admin", "POST", "/admin/keys"),
    ("admin", "PATCH", "/admin/keys/key_0123456789ab"),
    ("admin", "POST", "/admin/keys/key_0123456789ab/rotate"),
    ("admin", "PATCH", "/admin/organization"),
    ("usage", "POST", "/admin/alerts/test"),
    ("usage", "GET", "/usage"),
]


class Untouched(str):
    """A body that says who looks at it; its length may be asked for."""

    __slots__ = ("touched",)
    touched: list[str]

    def __new__(cls, text: str) -> Self:
        made = super().__new__(cls, text)
        made.touched = []
        return made


def _watched(name: str) -> Any:
    def method(self: Untouched, *args: Any, **kwargs: Any) -> Any:
        self.touched.append(name)
        return getattr(str, name)(self, *args, **kwargs)

    return method


for _name in ("__contains__", "__eq__", "__format__", "__getitem__", "__hash__", "__iter__", "__repr__", "__str__"):
    setattr(Untouched, _name, _watched(_name))
for _name in dir(str):
    if not _name.startswith("_"):
        setattr(Untouched, _name, _watched(_name))


def send(
    gateway: Handlers, route: tuple[str, str, str], body: str, key: str, *, encoded: bool = False, **headers: str
) -> Reply:
    """One request, whose body comes as it is given; ``encoded`` says that it is base64."""
    function, method, path = route
    sent = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    event = {
        "resource": path,
        "path": path,
        "httpMethod": method,
        "headers": sent,
        "multiValueHeaders": {name: [value] for name, value in sent.items()},
        "queryStringParameters": None,
        "multiValueQueryStringParameters": None,
        "pathParameters": None,
        "requestContext": {"requestId": "api-gateway", "stage": "v1", "identity": {"sourceIp": "203.0.113.7"}},
        "body": body,
        "isBase64Encoded": encoded,
    }
    answer = gateway.modules[function].lambda_handler(event, _Context())
    drawn = answer["body"] if isinstance(answer["body"], str) else b"".join(answer["body"])
    content = drawn.encode() if isinstance(drawn, str) else drawn
    return Reply(answer["statusCode"], {}, content)


def stranger(gateway: Handlers, kind: str) -> str:
    """A secret that opens nothing."""
    key_id, secret = gateway.new_key()
    meter = {"meter": {"S": f"key#{key_id}"}}
    past_ms = time.time_ns() // 10**6 - 1_000
    values: dict[str, Any]
    match kind:
        case "unknown":
            return f"sk-naru-0123456789ab-{secrets.token_urlsafe(32)}"
        case "wrong secret":
            return f"{secret[:-8]}{secrets.token_urlsafe(6)}"
        case "revoked":
            update = "SET enabled = :value, revoked_at_ms = :at"
            values = {":value": False, ":at": past_ms}
        case "expired":
            update, values = "SET expires_at_ms = :value", {":value": past_ms}
        case _:
            update, values = "SET secrets = :value", {":value": {hash_secret(secret): past_ms, "f" * 64: NEVER_MS}}
    gateway.dynamodb.update_item(
        TableName="MeterTable", Key=meter, UpdateExpression=update, ExpressionAttributeValues=to_item(values)
    )
    return secret


@pytest.fixture
def calls(gateway: Handlers, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The chat function's calls of the table of meters."""
    made: list[str] = []
    table = gateway.modules["chat"].dynamodb
    for name in ("get_item", "update_item", "put_item"):
        call = getattr(table, name)

        def noted(*, _call: Any = call, _name: str = name, **parameters: Any) -> Any:
            if parameters.get("TableName") == "MeterTable":
                made.append(_name)
            return _call(**parameters)

        monkeypatch.setattr(table, name, noted)
    return made


# ── Strangers ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route[1]} {route[2]}")
@pytest.mark.parametrize("kind", STRANGERS)
def test_a_stranger_s_body_is_not_looked_at(gateway: Handlers, kind: str, route: tuple[str, str, str]) -> None:
    body = Untouched(plain(PROOF_CHARS + 1))
    reply = send(gateway, route, body, stranger(gateway, kind))
    assert reply.status == (403 if kind == "revoked" else 401), reply.body
    assert body.touched == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Idempotency_Key": "k"},
        {"Idempotency_Key": "k" * 300},
        {"x_naru_strategy": "lowest-cost"},
        {"x_naru_strategy": "no such"},
        {"x_naru_fallback": "none"},
        {"Content_Encoding": "gzip"},
        {"Content_Encoding": "br"},
        {"Content_Type": "application/x-www-form-urlencoded"},
        {"Content_Type": "application/json; charset=euc-kr"},
    ],
)
@pytest.mark.parametrize("encoded", [False, True])
def test_no_header_makes_a_stranger_s_body_be_looked_at(
    gateway: Handlers, headers: dict[str, str], encoded: bool
) -> None:
    body = Untouched(plain(PROOF_CHARS + 1))
    reply = send(gateway, ROUTES[0], body, stranger(gateway, "unknown"), encoded=encoded, **headers)
    assert reply.status == 401, reply.body
    assert body.touched == []


def test_a_short_body_that_would_grow_is_not_decompressed_for_a_stranger(gateway: Handlers) -> None:
    bomb = base64.b64encode(gzip.compress(gzip.compress(bytes(10 * MEGABYTE)))).decode()
    assert len(bomb) < PROOF_CHARS
    body = Untouched(bomb)
    reply = send(gateway, ROUTES[0], body, stranger(gateway, "unknown"), encoded=True, Content_Encoding="gzip")
    assert (reply.status, body.touched) == (401, [])


@pytest.mark.parametrize("kind", STRANGERS)
@pytest.mark.parametrize("size", [100, PROOF_CHARS - 500, PROOF_CHARS + 1, MEGABYTE])
def test_a_stranger_costs_one_call(gateway: Handlers, calls: list[str], kind: str, size: int) -> None:
    """The write that admits nothing is the proof for a short body, a read for a long one."""
    key = stranger(gateway, kind)
    assert send(gateway, ROUTES[0], plain(size), key).status in {401, 403}
    assert calls == (["get_item"] if size > PROOF_CHARS else ["update_item"])


@pytest.mark.parametrize("headers", [{}, {"Idempotency_Key": "k"}, {"x_naru_strategy": "lowest-cost"}])
@pytest.mark.parametrize("size", [100, MEGABYTE // 16])
def test_a_key_is_read_at_most_once(gateway: Handlers, calls: list[str], headers: dict[str, Any], size: int) -> None:
    key_id, key = gateway.new_key(budget_pico_usd=1)
    gateway.dynamodb.update_item(
        TableName="MeterTable",
        Key={"meter": {"S": f"key#{key_id}"}},
        UpdateExpression="SET may_route = :yes",
        ExpressionAttributeValues={":yes": {"BOOL": True}},
    )
    reply = send(gateway, ROUTES[0], plain(size), key, **headers)
    assert reply.status == 429, (reply.body, gateway.printed.getvalue()[-1500:])
    assert calls.count("get_item") == (1 if headers or size > PROOF_CHARS else 0)


def work_of(gateway: Handlers, body: str, key: str) -> int:
    with counted() as work:
        send(gateway, ROUTES[0], body, key)
    return work.units


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_megabyte_of_a_stranger_is_as_cheap_as_a_megabyte_of_text(gateway: Handlers, name: str) -> None:
    key = stranger(gateway, "unknown")
    body = HOSTILE[name](MEGABYTE)
    usual = min(work_of(gateway, plain(MEGABYTE), key) for _ in range(2))
    assert min(work_of(gateway, body, key) for _ in range(2)) <= 1.2 * usual
    with measured() as work:
        send(gateway, ROUTES[0], body, key)
    assert work.peak_bytes < MEGABYTE


@pytest.mark.parametrize("name", HOSTILE)
def test_a_stranger_s_short_body_is_cheap_too(gateway: Handlers, name: str) -> None:
    """Nothing proves the key before the body is planned for, so the body is short."""
    key = stranger(gateway, "wrong secret")
    body = HOSTILE[name](PROOF_CHARS - 200)
    assert len(body) <= PROOF_CHARS
    assert work_of(gateway, body, key) < 150_000


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route[1]} {route[2]}")
@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer " + "a" * 10_000,
        "Bearer " + " " * 10_000,
        "Bearer sk-naru-" + "0" * 10_000,
        "Bearer sk-naru-0123456789ab-" + "-" * 10_000,
        "bearer " * 1_500,
        "Basic " + "a" * 10_000,
        ", " * 5_000,
    ],
    ids=lambda text: text[:28],
)
def test_a_header_of_many_kilobytes_is_refused_in_few_steps(
    gateway: Handlers, route: tuple[str, str, str], authorization: str
) -> None:
    body = Untouched(plain(PROOF_CHARS + 1))
    with counted() as work:
        reply = send(gateway, route, body, "", Authorization=authorization)
    assert (reply.status, body.touched) == (401, [])
    assert work.units < 50_000
    assert len(reply.body) < 1_000


# ── Keys ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def poor(running: Handlers) -> str:
    """A key whose every request that makes sense is refused for its price: planned for, and never sent."""
    return running.new_key(budget_pico_usd=1)[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_the_work_grows_with_the_bytes_and_not_with_their_square(gateway: Handlers, poor: str, name: str) -> None:
    send(gateway, ROUTES[0], HOSTILE[name](1_000), poor)
    small, large = (work_of(gateway, HOSTILE[name](size), poor) for size in (8_192, 32_768))
    assert large < 6 * small
    assert large < 30 * 32_768


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_body_takes_less_than_128_times_its_bytes(gateway: Handlers, poor: str, name: str) -> None:
    body = HOSTILE[name](MEGABYTE // 4)
    with measured() as work:
        reply = send(gateway, ROUTES[0], body, poor)
    assert reply.status in {400, 404, 429}, reply.body
    assert len(reply.body) < 2_000
    assert work.peak_bytes < MOST_BYTES // 4


JSON_ROUTES = [route for route in ROUTES if route[2] in {"/uploads/presigned", "/batches", "/admin/keys"}]


@pytest.mark.slow
@pytest.mark.parametrize("route", JSON_ROUTES, ids=lambda route: f"{route[1]} {route[2]}")
@pytest.mark.parametrize("name", HOSTILE)
def test_other_routes_refuse_what_is_hostile_in_little_work_and_memory(
    gateway: Handlers, route: tuple[str, str, str], name: str
) -> None:
    # Uploads are limited by the minute, so each has a key of its own.
    key = gateway.admin_key if route[0] == "admin" else gateway.new_key()[1]
    with measured() as work:
        reply = send(gateway, route, HOSTILE[name](MEGABYTE // 16), key)
    assert reply.status == 400, reply.body
    assert len(reply.body) < 2_000
    assert work.peak_bytes < MOST_BYTES // 16
    with counted() as small:
        send(gateway, route, HOSTILE[name](4_096), key)
    with counted() as large:
        send(gateway, route, HOSTILE[name](16_384), key)
    assert large.units < 6 * small.units


def test_what_would_become_six_megabytes_is_not_decompressed_any_further(gateway: Handlers, poor: str) -> None:
    for bomb in (bytes(100 * MEGABYTE), b'{"a":"' + b"a" * (100 * MEGABYTE)):
        packed = base64.b64encode(gzip.compress(bomb, 1)).decode()
        with measured() as work:
            reply = send(gateway, ROUTES[0], packed, poor, encoded=True, Content_Encoding="gzip")
        assert (reply.status, reply.code) == (413, "request_too_large")
        assert work.peak_bytes < 32 * MEGABYTE


def test_a_thousand_gzip_members_are_refused(gateway: Handlers, poor: str) -> None:
    packed = base64.b64encode(gzip.compress(b"") * 10_000).decode()
    reply = send(gateway, ROUTES[0], packed, poor, encoded=True, Content_Encoding="gzip")
    assert reply.status == 400


def test_a_refusal_is_an_error_of_ours(gateway: Handlers, poor: str) -> None:
    for name, make in HOSTILE.items():
        error = json.loads(send(gateway, ROUTES[0], make(2_000), poor).body)["error"]
        assert set(error) == {"message", "type", "param", "code"}, name
        assert error["type"] != NaruError.type, name
