"""Text from outside stays text: in headers, in the log, on a terminal, and in what is sent upstream."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest

from local import template
from naru.http_api import Exchange
from naru.streaming_runtime import _Answer
from tests.security.handlers import OMNI, PROVIDER_KEYS, Handlers

# What ends a line, moves a cursor, rings a bell, or hides what stands there.
TRICKS = ["\r\n", "\n", "\x00", "\x1b[2J", "\x1b]0;owned\x07", "\x9b31m", "\x85", "\u2028", "\u202e"]
UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def lines(gateway: Handlers) -> list[Any]:
    """What was printed: each line one JSON object, or it is not a log."""
    printed = gateway.printed.getvalue()
    assert not UNSAFE.search(printed)
    return [json.loads(line) for line in printed.split("\n") if line]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("trick", TRICKS)
def test_a_providers_error_text_cannot_write_lines_into_the_log(gateway: Handlers, trick: str, stream: bool) -> None:
    forged = '{"level":"INFO","message":"admin","action":"revoked"}'
    for status in (400, 401, 500):
        fault = {"name": "status", "status": status, "message": f"oops{trick}{forged}", "code": f"c{trick}ode"}
        gateway.model.clear_control()
        gateway.model.control({"rules": [{"fault": fault}]})
        reply = gateway.chat("안녕 [[sim tokens=3]]", stream=stream)
        assert not UNSAFE.search(reply.body.decode())
    assert not [line for line in lines(gateway) if line.get("action") == "revoked"]


@pytest.mark.parametrize("trick", TRICKS)
def test_a_clients_words_cannot_write_lines_into_the_log(gateway: Handlers, trick: str) -> None:
    forged = f'x{trick}{{"level":"INFO","message":"admin"}}'
    gateway.chat("안녕 [[sim tokens=3]]", user=forged)
    gateway.chat("안녕 [[sim tokens=3]]", model=forged)
    gateway.chat(forged, stream=True, metadata={"a": forged}, tools=[{"type": forged}])
    gateway.chat("안녕", headers={"x-naru-deployment": forged, "User-Agent": forged, "x-naru-strategy": forged})
    gateway.chat("안녕", headers={"Idempotency-Key": forged, "x-request-id": forged})
    gateway.chat("안녕", key=forged)
    gateway.send("chat", "GET", f"/models/{forged}")
    gateway.admin("POST", "/admin/keys", {"name": forged})
    gateway.admin("POST", "/admin/keys", {"name": "a", "tags": {"a": forged}})
    gateway.admin("POST", "/admin/keys", {forged: 1})
    gateway.admin("GET", f"/admin/keys/{forged}")
    assert all(line.get("message") != "admin" for line in lines(gateway))


@pytest.mark.parametrize("trick", ["\r\nSet-Cookie: a=b", "\nx: y", "\r\n\r\n<html>", "\x00", "\x1b[0m", "é\u0100"])
def test_no_text_from_outside_becomes_a_header_of_the_answer(gateway: Handlers, trick: str) -> None:
    hostile = f"x{trick}"
    replies = [
        gateway.chat("안녕 [[sim tokens=3]]", headers=dict.fromkeys(
            ("x-request-id", "Idempotency-Key", "x-naru-strategy", "Origin", "x-stainless-retry-count"), hostile)),
        gateway.chat("안녕", headers={"x-request-id": hostile, "Origin": hostile}),
        gateway.chat("안녕", model=hostile),
        gateway.send("chat", "GET", f"/models/{hostile}"),
        gateway.send("chat", "GET", f"/nowhere{hostile}"),
        gateway.send("chat", "OPTIONS", "/chat/completions", headers={"Access-Control-Request-Headers": hostile}),
    ]  # fmt: skip
    for reply in replies:
        for name, value in reply.headers.items():
            assert re.fullmatch(r"[A-Za-z0-9-]+", name)
            assert re.fullmatch(r"[\x20-\x7e]*", value)
            assert trick not in value


def test_a_preflight_allows_headers_and_nothing_that_only_looks_like_them(gateway: Handlers) -> None:
    def allowed(asked: str) -> str:
        headers = {"Access-Control-Request-Headers": asked, "Origin": "https://evil.example"}
        return gateway.send("chat", "OPTIONS", "/chat/completions", headers=headers).headers[
            "access-control-allow-headers"
        ]

    assert allowed("authorization, x-stainless-os") == "authorization, x-stainless-os"
    for odd in ("a\r\nb: c", "a;b", "*", "a,,b", "a b", "x" * 10 + "\x00"):
        assert allowed(odd) == "authorization, content-type"


@pytest.mark.parametrize("path", ["/chat/completions", "/models", "/admin/keys", "/admin/organization"])
def test_a_page_may_ask_and_sends_no_cookie(gateway: Handlers, path: str) -> None:
    """Any origin, since a key in a header is what opens, and a browser adds none by itself: without cookies there is
    nothing that a strange page could use, so credentials are never allowed.
    """
    function = "admin" if path.startswith("/admin") else "chat"
    preflight = gateway.send(function, "OPTIONS", path, key=None, headers={"Origin": "https://evil.example"})
    answer = gateway.send(function, "GET", path, key=None, headers={"Origin": "https://evil.example", "Cookie": "a=b"})
    assert preflight.status == 204
    assert answer.status in {401, 404, 405}
    for reply in (preflight, answer):
        assert reply.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in reply.headers
        assert "set-cookie" not in reply.headers


def test_the_runtimes_prelude_cannot_be_ended_by_a_header() -> None:
    """Eight NUL bytes end it; JSON writes none."""
    result = {"statusCode": 200, "headers": {"a": "\x00" * 8 + "b", "c": "\r\nd: e"}, "body": "words"}
    prelude, end, data = _Answer.of(result).first.partition(bytes(8))
    assert (json.loads(prelude)["headers"], end, data) == (result["headers"], bytes(8), b"words")


# ── Upstream ───────────────────────────────────────────────────────────────────────────────────────────────


async def _sent_headers(gateway: Handlers) -> dict[str, str]:
    module = gateway.modules["chat"]
    upstream = module.completions._attempts._upstream
    deployment = module.catalogs._catalog.model(OMNI).deployments[0]
    request = await upstream._request(deployment, {"messages": []}, request_id="req_1", read_timeout_s=1)
    return dict(request.headers)


def test_no_header_of_a_client_travels_on(gateway: Handlers) -> None:
    """The request to a provider is built anew: nothing to smuggle a length, a host, a cookie or a second key in."""
    seen: list[dict[str, str]] = []
    module = gateway.modules["chat"]
    client, original = module.http, module.http.send

    async def listen(request: Any, **options: Any) -> Any:
        seen.append(dict(request.headers))
        return await original(request, **options)

    hostile = {
        "Transfer-Encoding": "chunked",
        "Content-Length": "1",
        "Host": "evil.example",
        "Cookie": "a=b",
        "X-Forwarded-Host": "evil.example",
        "X-Api-Key": "other",
        "api-key": "other",
        "OpenAI-Organization": "other",
        "x-request-id": "spoofed",
        "Expect": "100-continue",
        "Connection": "x-secret",
    }
    client.send = listen
    try:
        reply = gateway.chat("안녕 [[sim tokens=3]]", headers=hostile)
    finally:
        del client.send
    (sent,) = seen
    assert reply.status == 200
    allowed = {"host", "accept", "accept-encoding", "connection", "user-agent", "authorization", "content-type",
               "x-request-id", "content-length"}  # fmt: skip
    assert set(sent) == allowed
    assert sent["x-request-id"] == reply.headers["x-request-id"]
    assert sent["authorization"] == f"Bearer {PROVIDER_KEYS['holysheep']}"
    assert sent["host"].startswith("127.0.0.1:")
    assert "evil" not in str(sent)


def test_an_id_is_made_here(gateway: Handlers) -> None:
    """It is a key of the ledger: nobody may choose one, or send one twice."""
    first = gateway.chat("안녕 [[sim tokens=3]]", headers={"x-request-id": "req_0", "X-Amzn-RequestId": "req_0"})
    second = gateway.chat("안녕 [[sim tokens=3]]", headers={"x-request-id": first.headers["x-request-id"]})
    ids = {first.headers["x-request-id"], second.headers["x-request-id"], Exchange.begin().request_id}
    assert len(ids) == 3
    assert all(re.fullmatch(r"req_[0-9a-f]{32}", each) for each in ids)


def test_a_body_in_base64_is_a_body(gateway: Handlers) -> None:
    """API Gateway encodes what is not text; what that decodes to is checked like any other."""
    module = gateway.modules["chat"]
    for content, status in ((b"\xff\xfe", 400), (b"\x00", 400), (b'{"model": 1}', 400)):
        event = {
            "resource": "/chat/completions",
            "path": "/chat/completions",
            "httpMethod": "POST",
            "headers": {"Authorization": f"Bearer {gateway.api_key}"},
            "multiValueHeaders": {"Authorization": [f"Bearer {gateway.api_key}"]},
            "requestContext": {},
            "body": base64.b64encode(content).decode(),
            "isBase64Encoded": True,
        }
        answer = module.lambda_handler(event, type("C", (), {"get_remaining_time_in_millis": lambda _: 60_000})())
        assert answer["statusCode"] == status


def test_api_gateway_refuses_in_fixed_words() -> None:
    """A mapping template that pasted a client's text into JSON could be broken out of."""
    for response in template.load().api.gateway_responses.values():
        used = set(re.findall(r"\$[A-Za-z.]+", response.template or ""))
        assert used <= {"$context.error.messageString"}  # quoted and escaped by API Gateway
