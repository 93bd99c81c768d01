"""What follows from each error of a provider: for the client, the fallback, the operator's log and the row."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field

import httpx
import pytest

from naru.errors import NaruError, ProviderRejectedError
from naru.fault_rules import PARTY_OF, FaultKind
from naru.faults import is_ordinary
from tests import one_gateway
from tests.one_gateway import OMNI, Gateway
from tests.unit.fault_bodies import BODIES, Body
from tests.unit.test_faults import fault_of

_USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}

TOLD: dict[FaultKind, tuple[int, str | None]] = {
    "parameter": (400, None),
    "context_length": (400, "context_length_exceeded"),
    "content_filter": (400, None),
    "unsuited": (400, None),
    "model": (502, "upstream_misconfigured"),
    "region": (502, "upstream_misconfigured"),
    "access": (502, "upstream_misconfigured"),
    "feature": (502, "upstream_misconfigured"),
    "address": (502, "upstream_misconfigured"),
    "key": (502, "upstream_key_refused"),
    "credit": (503, "upstream_quota_exhausted"),
    "suspended": (502, "upstream_key_refused"),
    "permission": (502, "upstream_key_refused"),
    "terms": (502, "upstream_key_refused"),
    "rate_limited": (429, "upstream_rate_limited"),
    "overloaded": (503, "upstream_unavailable"),
    "too_large": (413, "request_too_large"),
    "server": (503, "upstream_unavailable"),
    "timeout": (504, "upstream_timeout"),
}


@dataclass
class FailingProvider:
    """Answers the asked model with an error, and every other one as usual."""

    body: Body
    calls: list[str] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        model = json.loads(request.content)["model"]
        self.calls.append(model)
        if model != asked(self.body):
            return httpx.Response(
                200,
                json={
                    "id": "chatcmpl-1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": model,
                    "choices": [
                        {"index": 0, "message": {"role": "assistant", "content": "네"}, "finish_reason": "stop"}
                    ],
                    "usage": _USAGE,
                },
            )
        payload = self.body.payload
        if isinstance(payload, (str, bytes)) or payload is None:
            return httpx.Response(self.body.status, content=payload or b"", headers=self.body.headers)
        return httpx.Response(self.body.status, json=payload, headers=self.body.headers)


def asked(body: Body) -> str:
    return OMNI if body.dialect == "openai" else "HCX-005"


@pytest.fixture
def provider(body: Body, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> FailingProvider:
    provider = FailingProvider(body)
    transport = httpx.MockTransport(provider)
    monkeypatch.setattr(one_gateway, "new_http_client", lambda: httpx.AsyncClient(transport=transport))
    return provider


def fallback(body: Body) -> str:
    """At another provider."""
    return "HCX-005" if body.dialect == "openai" else "gpt-4.1"


def let_fall_back(gateway: Gateway, body: Body) -> None:
    # To a context that is no larger, so that a prompt that is too long goes nowhere.
    head, context = f"[models.{asked(body)}]\n", "context_tokens = 1_047_576"
    gateway.use_catalog((head, f'{head}fallbacks = ["{fallback(body)}"]\n'), (context, "context_tokens = 128_000"))


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.id)
def test_what_is_not_the_requests_fault_is_answered_by_a_fallback(
    body: Body, gateway: Gateway, provider: FailingProvider, caplog: pytest.LogCaptureFixture
) -> None:
    let_fall_back(gateway, body)
    if body.kind in {"parameter", "context_length", "content_filter"}:
        with pytest.raises(ProviderRejectedError):
            gateway.ask(body.sent, model=asked(body))
        assert provider.calls == [asked(body)]
        assert gateway.row.outcome == "rejected"
        return
    gateway.ask(body.sent, model=asked(body))
    assert gateway.row.model_served == fallback(body)
    # Only what may pass within a moment is asked for again.
    calls_s = 2 if PARTY_OF[body.kind] == "load" else 1
    assert 1 <= provider.calls.count(asked(body)) <= calls_s
    failed = [vars(record) for record in caplog.records if record.getMessage() == "attempt failed"]
    is_operators = PARTY_OF[body.kind] in {"deployment", "account"}
    for record in failed:
        assert (record["fault"], record["fault_kind"]) == (PARTY_OF[body.kind], body.kind)
        assert (record["levelno"] == logging.ERROR) == bool(record.get("advice")) == is_operators
        assert record["provider_status"] == body.status


@pytest.mark.slow
@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.id)
def test_the_client_is_told_what_it_can_do_and_nothing_of_the_operators_account(
    body: Body, gateway: Gateway, provider: FailingProvider
) -> None:
    gateway.use_catalog()
    with pytest.raises(NaruError) as failed:
        gateway.ask(body.sent, model=asked(body))
    error, (status, code) = failed.value, TOLD[body.kind]
    if body.kind == "overloaded" and body.status == 429:
        status, code = 429, "upstream_rate_limited"
    if body.kind == "parameter" and body.status in {413, 422}:
        status = body.status
    assert error.http_status == status
    assert set(error.body()["error"]) == {"message", "type", "param", "code"}
    if code is not None:
        assert error.code == code
    words = fault_of(body).message
    assert (words in error.message) == (PARTY_OF[body.kind] == "request")
    if status == 429:
        assert error.retry_after_s is not None
    assert gateway.row.maybe_billed_pico_usd == 0 or PARTY_OF[body.kind] == "provider"


@pytest.mark.slow
@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.id)
def test_no_words_of_the_error_are_logged_or_kept(
    body: Body, gateway: Gateway, provider: FailingProvider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="naru")
    gateway.use_catalog()
    with pytest.raises(NaruError):
        gateway.ask(body.sent, model=asked(body))
    kept = str([vars(record) for record in caplog.records if record.name.startswith("naru")])
    kept += str(gateway.dynamodb.scan(TableName="LedgerTable")["Items"])
    words = fault_of(body).message
    assert words.startswith("The provider answered with status") or is_ordinary(words) or words not in kept
    assert body.sent not in kept


# ── Inside a stream ─────────────────────────────────────────────────────────────────────────────────────────

_CREDIT = {"message": "Your credit balance is too low to access the Anthropic API.", "type": "invalid_request_error"}
_IN_A_STREAM: dict[str, tuple[str, FaultKind]] = {
    "error object": (f"data: {json.dumps({'error': _CREDIT})}\n\n", "credit"),
    "error event": (f"event: error\ndata: {json.dumps({'type': 'error', 'error': _CREDIT})}\n\n", "credit"),
    "error event with an object of its own": (f"event: error\ndata: {json.dumps(_CREDIT)}\n\n", "credit"),
    "code and msg": ('data: {"code": 402, "msg": "余额不足"}\n\n', "credit"),
    "code and msg, and done": ('data: {"code": "Arrearage", "message": "no"}\n\ndata: [DONE]\n\n', "credit"),
    "NAVER's": ('event: error\ndata: {"status": {"code": "42901", "message": "m"}}\n\n', "rate_limited"),
    "a string": ('data: {"error": "insufficient_quota"}\n\n', "credit"),
    "numbered": ('data: {"error": {"code": 429, "message": "slow"}}\n\n', "rate_limited"),
    "region": ('data: {"error": {"message": "User location is not supported for the API use."}}\n\n', "region"),
}


@pytest.mark.parametrize("name", _IN_A_STREAM)
def test_an_error_instead_of_the_first_token_is_understood(
    name: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, kind = _IN_A_STREAM[name]
    answer = httpx.Response(200, text=events, headers={"content-type": "text/event-stream"})
    transport = httpx.MockTransport(lambda _: answer)
    monkeypatch.setattr(one_gateway, "new_http_client", lambda: httpx.AsyncClient(transport=transport))
    gateway.use_catalog()
    with pytest.raises(NaruError) as failed:
        gateway.ask(stream=True)
    assert (failed.value.http_status, failed.value.code) == TOLD[kind]
    assert gateway.row.attempts[0].result == f"200 {kind}"
    assert gateway.row.maybe_billed_pico_usd == 0


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ({"message": "Your credit balance is too low.", "type": "invalid_request_error"}, False),
        ({"message": "Rate limit reached for org-x", "code": "rate_limit_exceeded"}, False),
        ({"message": "The model was shot", "type": "server_error"}, False),
        ({"message": "Nobody knows"}, False),
        ({"message": "Filtered: violence", "code": "content_filter"}, True),
    ],
)
def test_an_error_in_the_middle_of_an_answer_tells_the_client_nothing_of_the_operators(
    gateway: Gateway, error: dict[str, str], shown: bool
) -> None:
    gateway.model.control({"rules": [{"fault": {"name": "error_in_200", "tokens": 3, "json": {"error": error}}}]})
    events = one_gateway.chunks(gateway.ask("안녕 [[sim tokens=9]]", stream=True))
    assert events[-1]["error"]["code"] == "upstream_stream_error"
    assert (error["message"] in events[-1]["error"]["message"]) == shown
