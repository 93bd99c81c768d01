"""Keys, ours and the providers', are where they belong and nowhere else."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import pytest

from naru.key_store import KeyStore
from naru.keys import hash_secret
from naru.meter import Meters
from naru.meter_store import MeterStore
from tests.security.handlers import PROVIDER_KEYS, Handlers

KEY_SHAPED = re.compile(r"sk-naru-[a-z0-9]{12}-[A-Za-z0-9_-]{20,}")


def everything(gateway: Handlers, *replies: Any) -> str:
    """All that was printed, stored and answered."""
    answers = "".join(f"{reply.headers}{reply.body.decode()}" for reply in replies)
    return gateway.printed.getvalue() + gateway.stored() + answers


FAULTS = [
    None,
    *({"name": "status", "status": status} for status in (400, 401, 403, 429, 500, 503)),
    {"name": "reset_before_headers"},
    {"name": "cut_after", "tokens": 2, "how": "reset"},
    {"name": "malformed_json"},
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: "-".join(map(str, (fault or {"": "ok"}).values())))
def test_no_key_is_printed_stored_or_answered_however_a_request_ends(
    gateway: Handlers, fault: dict[str, Any] | None, stream: bool
) -> None:
    if fault:
        gateway.model.control({"rules": [{"fault": fault}]})
    reply = gateway.chat("안녕 [[sim tokens=6]]", stream=stream)
    found = everything(gateway, reply)
    assert reply.headers["x-request-id"] in found
    for secret in (gateway.api_key, gateway.admin_key, *PROVIDER_KEYS.values()):
        assert secret not in found
        assert secret[-20:] not in found


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer sk-naru-zzzzzzzzzzzz-" + "S" * 43,
        "Bearer sk-naru-zzzzzzzzzzzz-" + "S" * 42,
        "Bearer sk-proj-" + "S" * 40,
        "Basic " + "S" * 40,
        "S" * 40,
        "Bearer " + "S" * 10_000,
    ],
)
@pytest.mark.parametrize(("function", "method", "path"), [("chat", "POST", "/chat/completions"), ("chat", "GET", "/models"), ("admin", "GET", "/admin/keys")])  # fmt: skip
def test_a_key_that_is_refused_is_not_repeated(
    gateway: Handlers, function: str, method: str, path: str, authorization: str
) -> None:
    """Somebody else's key sent here by mistake is a secret as well."""
    body = (
        {"model": "hyperclova-x-omni", "messages": [{"role": "user", "content": "안녕"}]} if method == "POST" else None
    )
    reply = gateway.send(function, method, path, body, key=None, headers={"Authorization": authorization})
    assert reply.status == 401
    assert "SSSSSSSS" not in everything(gateway, reply)


def test_a_new_key_is_in_one_answer_and_its_hash_in_the_table(gateway: Handlers) -> None:
    created = gateway.admin("POST", "/admin/keys", {"name": "app"})
    secret = created.json()["key"]
    rotated = gateway.admin("POST", f"/admin/keys/{created.json()['id']}/rotate")
    later = [
        gateway.admin("GET", f"/admin/keys/{created.json()['id']}"),
        gateway.admin("GET", "/admin/keys"),
        gateway.admin("PATCH", f"/admin/keys/{created.json()['id']}", {"name": "app 2"}),
        gateway.admin("DELETE", f"/admin/keys/{created.json()['id']}"),
    ]
    assert hash_secret(secret) in gateway.stored()
    assert rotated.json()["key"] != secret
    assert not KEY_SHAPED.search(everything(gateway, *later))
    # A browser or a proxy on the way keeps none of it.
    assert created.headers["cache-control"] == rotated.headers["cache-control"] == "no-store"


def test_what_is_compared_with_the_table_is_a_hash(gateway: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the time that a comparison takes says nothing about the secret: who changes one character of a key changes all
    of its hash, and cannot steer how many characters of it are right.
    """
    asked: list[str] = []
    for owner, name in ((Meters, "_call_service"), (MeterStore, "_call")):
        original = getattr(owner, name)

        def listen(self: Any, function: Any, *positional: Any, _original: Any = original, **named: Any) -> Any:
            asked.append(repr((positional, named)))
            return _original(self, function, *positional, **named)

        monkeypatch.setattr(owner, name, listen)
    assert gateway.chat("안녕 [[sim tokens=3]]").status == 200
    assert gateway.admin("GET", "/admin/keys").status == 200
    written = " ".join(asked)
    assert hash_secret(gateway.api_key) in written
    assert gateway.api_key not in written
    assert gateway.admin_key not in written
    near = gateway.api_key[:-1] + ("A" if gateway.api_key[-1] != "A" else "B")
    same = sum(a == b for a, b in zip(hash_secret(gateway.api_key), hash_secret(near), strict=True))
    assert same < 20  # of 64; 4 are expected


@pytest.mark.parametrize("change", ["id", "secret", "case", "none"])
def test_the_answer_to_a_wrong_key_does_not_say_what_is_wrong_with_it(gateway: Handlers, change: str) -> None:
    """An id that exists with another secret sounds like one that does not."""
    key_id, secret = gateway.api_key[8:20], gateway.api_key[21:]
    wrong = {
        "id": f"sk-naru-{'z' * 12}-{secret}",
        "secret": f"sk-naru-{key_id}-{'A' * 43}",
        "case": f"sk-naru-{key_id}-{secret.swapcase()}",
        "none": "sk-naru",
    }[change]
    replies = [
        gateway.chat("안녕", key=wrong),
        gateway.send("chat", "GET", "/models", key=wrong),
        gateway.admin("GET", "/admin/keys", key=wrong),
    ]
    assert [reply.status for reply in replies] == [401] * 3
    assert len({reply.json()["error"]["message"] for reply in replies}) == 1
    assert not any(name.startswith("x-ratelimit") for reply in replies for name in reply.headers)


def test_a_secret_that_is_in_the_provider_table_is_never_shown_by_its_type(gateway: Handlers) -> None:
    """A traceback or a debug line that shows the object shows stars."""
    module = gateway.modules["chat"]
    keys = module.completions._attempts._upstream._keys
    gateway.chat("안녕 [[sim tokens=3]]")
    assert keys._keys
    shown = f"{keys._keys!r} {vars(keys)!r} {json.dumps(keys._keys, default=str)}"
    assert "**********" in shown
    for secret in PROVIDER_KEYS.values():
        assert secret not in shown


def test_the_boto_and_http_loggers_are_quiet(gateway: Handlers) -> None:
    """In DEBUG they print headers, signatures and secrets."""
    assert gateway.modules
    for name in ("botocore", "httpx"):
        assert logging.getLogger(name).getEffectiveLevel() >= logging.WARNING


def test_stores_answer_without_the_words_of_aws(gateway: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table names and ARNs are for the operator."""
    monkeypatch.setattr(gateway.modules["chat"].meters, "_table", "NoSuchTable")
    reply = gateway.chat("안녕")
    assert (reply.status, reply.code) == (503, "store_unavailable")
    assert "NoSuchTable" not in reply.body.decode()
    assert "NoSuchTable" in gateway.printed.getvalue()


def test_a_key_store_needs_no_secret_of_its_own() -> None:
    """There is nothing in the code or the environment that would open all keys."""
    assert not [name for name in vars(KeyStore) if "secret" in name.lower() and not name.startswith("_")]
