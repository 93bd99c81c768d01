"""The use case against a provider that misbehaves on request: what the client gets, what the ledger says, and whether
that is what the provider billed.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from local.simulated_model import run_in_thread
from naru.errors import (
    InvalidRequestError,
    ModelNotFoundError,
    NaruError,
    PermissionDeniedError,
    ProviderRejectedError,
    StoreUnavailableError,
    UpstreamProtocolError,
    UpstreamRateLimitedError,
    UpstreamRefusedKeyError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
)
from naru.ledger import Attempt
from naru.meter import Meters
from naru.preferences import Preference
from naru.tokens import estimate
from tests import one_gateway
from tests.one_gateway import OMNI, Gateway, another_deployment, assert_row_is_the_bill, assert_settled, chunks, text


@pytest.fixture(autouse=True)
def always_settled(gateway: Gateway, request: pytest.FixtureRequest) -> Iterator[None]:
    """However a request ended, its leases did too."""
    yield
    assert_settled(gateway, unsettled="ledger_that_fails" in request.node.name)


# ── What is billed ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "directives",
    [
        "tokens=7",
        "tokens=7 cached=2000",
        "tokens=7 reasoning=50",
        "tokens=7 reasoning=50 fault=reasoning_apart",
        "tokens=7 fault=usage_in_choice_chunk",
        "tokens=7 fault=usage_in_every_chunk",
        "tokens=7 fault=missing_done",
        "tokens=7 fault=huge_headers:30000",
    ],
)
@pytest.mark.parametrize("name", [OMNI, "gpt-4.1"])
def test_the_row_is_what_the_provider_billed(gateway: Gateway, stream: bool, directives: str, name: str) -> None:
    prompt = ("서울 " * 3000 if "cached" in directives else "안녕") + f" [[sim {directives}]]"
    if name == OMNI:
        # A provider that gives cached tokens no price of its own bills them as input: so do we.
        directives = directives.replace("cached=2000", "")
    gateway.ask(prompt, model=name, stream=stream)
    assert_row_is_the_bill(gateway)
    assert (gateway.row.outcome, gateway.row.stream, gateway.row.error_code) == ("completed", stream, None)


def test_the_row_says_who_asked_for_what_and_who_served_it(gateway: Gateway) -> None:
    gateway.ask("안녕 [[sim tokens=3]]", user="phone-1", stream=True)
    row = gateway.row
    assert (row.key_id, row.end_user, row.model_asked, row.deployment) == (
        gateway.key_id,
        "phone-1",
        OMNI,
        f"holysheep/{OMNI}",
    )
    assert (row.catalog_version, row.rates.output_pico_usd, row.rates.currency) == ("2026-11-27", 10_500_000, "USD")
    assert row.first_token_ms is not None
    assert 0 <= row.first_token_ms <= row.latency_ms
    assert {name: value for name, value in gateway.headers.items() if name.startswith("x-naru")} == {
        "x-naru-model": OMNI,
        "x-naru-deployment": f"holysheep/{OMNI}",
        "x-naru-attempts": "1",
    }
    assert gateway.headers["x-ratelimit-remaining-requests"] == "999"


def test_no_prompt_and_no_answer_is_in_the_row_or_in_the_log(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answer = json.loads(gateway.ask("아무도 모르는 비밀", stream=False))["choices"][0]["message"]["content"]
    kept = json.dumps(gateway.dynamodb.scan(TableName="LedgerTable")["Items"], ensure_ascii=False)
    logged = " ".join(str(vars(record)) for record in caplog.records if record.name.startswith("naru"))
    assert "completion" in logged
    for written in ("비밀", answer, gateway.api_key):
        assert written not in kept
        assert written not in logged


@pytest.mark.parametrize("stream", [False, True])
def test_usage_that_is_not_reported_is_counted_and_marked(gateway: Gateway, stream: bool) -> None:
    gateway.ask("안녕하세요, 오늘 날씨가 어떤가요? [[sim tokens=60 fault=usage_missing]]", stream=stream)
    row, bill = gateway.row, gateway.bill
    assert row.usage_source == "estimated"
    assert row.usage.completion_tokens == pytest.approx(bill["completion_tokens"], rel=0.6)
    assert row.cost_pico_usd == row.rates.cost_pico_usd(row.usage) > 0


def test_a_stream_of_clova_studio_has_no_usage_so_it_is_counted_and_shown_to_who_asked(gateway: Gateway) -> None:
    events = chunks(
        gateway.ask("[[sim tokens=40]]", model="HCX-005", stream=True, stream_options={"include_usage": True})
    )
    row = gateway.row
    assert row.usage_source == "estimated"
    assert (row.rates.currency, row.rates.krw_per_usd) == ("KRW", 1400)
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["completion_tokens"] == row.usage.completion_tokens > 0
    assert {event["id"] for event in events[:-1]} == {gateway.bill["id"]}
    assert all(event["usage"] is None for event in events[:-2])


# ── What the client sees ───────────────────────────────────────────────────────────────────────────────────


def test_a_json_answer_comes_without_the_providers_extras(gateway: Gateway) -> None:
    answer = json.loads(gateway.ask("안녕 [[sim tokens=7]]"))
    assert set(answer["usage"]) == {
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "prompt_tokens_details",
        "completion_tokens_details",
    }
    assert "latency_ms" not in answer
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("fault", ["", "fault=usage_in_choice_chunk", "fault=usage_in_every_chunk"])
def test_usage_is_hidden_from_a_stream_whose_client_did_not_ask(gateway: Gateway, fault: str) -> None:
    events = chunks(gateway.ask(f"안녕 [[sim tokens=7 {fault}]]", stream=True))
    assert events[-1] == "[DONE]"
    assert all("usage" not in event and "latency_ms" not in event and event["choices"] for event in events[:-1])


@pytest.mark.parametrize("fault", ["", "fault=usage_in_choice_chunk", "fault=usage_in_every_chunk"])
def test_usage_is_the_last_chunk_of_a_stream_whose_client_asked(gateway: Gateway, fault: str) -> None:
    events = chunks(gateway.ask(f"안녕 [[sim tokens=7 {fault}]]", stream=True, stream_options={"include_usage": True}))
    assert events[-1] == "[DONE]"
    assert (events[-2]["choices"], events[-2]["usage"]["completion_tokens"]) == ([], 7)
    assert all(event["choices"] and event["usage"] is None for event in events[:-2])


def test_a_stream_and_a_json_answer_say_the_same(gateway: Gateway) -> None:
    whole = json.loads(gateway.ask("부산을 소개해 주세요", seed=1))["choices"][0]["message"]["content"]
    assert text(chunks(gateway.ask("부산을 소개해 주세요", seed=1, stream=True))) == whole


def test_several_choices_are_all_waited_for(gateway: Gateway) -> None:
    events = chunks(gateway.ask("안녕 [[sim tokens=5]]", n=3, stream=True))
    ended = [c["index"] for e in events[:-1] for c in e["choices"] if c["finish_reason"]]
    assert sorted(ended) == [0, 1, 2]
    assert events[-1] == "[DONE]"
    assert_row_is_the_bill(gateway)


def test_the_output_limit_is_always_sent_upstream(gateway: Gateway) -> None:
    gateway.use_catalog(("default_output_tokens = 4_096", "default_output_tokens = 20"))
    answer = json.loads(gateway.ask("안녕 [[sim tokens=60]]"))
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 20


# ── What is refused before anything is spent ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"model": "gpt-9"}, ModelNotFoundError),
        ({"messages": []}, InvalidRequestError),
        ({"model": "HCX-005", "n": 2}, InvalidRequestError),
        ({"max_tokens": 10**6}, InvalidRequestError),
    ],
)
def test_a_bad_request_reaches_no_provider_and_leaves_no_row(
    gateway: Gateway, fields: dict[str, Any], error: type[NaruError]
) -> None:
    with pytest.raises(error):
        gateway.ask(**fields)
    assert gateway.model.stats()["requests"] == 0
    assert gateway.dynamodb.scan(TableName="LedgerTable")["Items"] == []


# ── What is tried again ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fault",
    [
        "status:500,times=1",
        "status:502,body=html,times=1",
        "status:503,body=empty,times=2",
        "status:429,times=1",
        "status:429,retry_after_ms=20,times=1",
        "status:529,times=1",
        "status:503,body=native,times=1",
    ],
)
def test_what_was_surely_not_billed_is_tried_again(gateway: Gateway, stream: bool, fault: str) -> None:
    gateway.ask(f"안녕 [[sim tokens=5 id=x fault={fault}]]", stream=stream)
    assert_row_is_the_bill(gateway)
    status, failures = fault.split(":")[1][:3], int(fault[-1])
    results = [attempt.result for attempt in gateway.row.attempts]
    assert results == [status] * failures + ["ok"]
    assert gateway.headers["x-naru-attempts"] == str(failures + 1)
    assert gateway.row.maybe_billed_pico_usd == 0


def test_the_time_that_the_provider_names_is_waited(gateway: Gateway) -> None:
    started_s = time.monotonic()
    gateway.ask("안녕 [[sim tokens=5 id=x fault=status:429,retry_after_ms=300,times=1]]")
    assert 0.3 <= time.monotonic() - started_s < 0.6


@pytest.mark.parametrize("stream", [False, True])
def test_a_wait_beyond_the_deadline_is_not_begun(gateway: Gateway, stream: bool) -> None:
    with pytest.raises(UpstreamRateLimitedError) as failed:
        gateway.ask("안녕 [[sim fault=status:429,retry_after=60]]", stream=stream)
    assert (failed.value.retry_after_s, failed.value.should_retry) == (60.0, False)
    assert gateway.model.stats()["requests"] == 1
    assert (gateway.row.outcome, gateway.row.cost_pico_usd) == ("failed", 0)


def test_a_stream_s_first_token_is_not_waited_for_longer_than_a_connection_may_be_silent(gateway: Gateway) -> None:
    gateway.stream_deadline_s = 60.0
    with pytest.raises(UpstreamRateLimitedError) as failed:
        gateway.ask("안녕 [[sim fault=status:429,retry_after=30]]", stream=True)
    assert failed.value.retry_after_s == 30.0
    assert gateway.model.stats()["requests"] == 1


def test_a_provider_that_thinks_longer_than_a_connection_may_be_silent_is_left(gateway: Gateway) -> None:
    gateway.stream_deadline_s, gateway.deadline_s = 60.0, 0.3
    with pytest.raises(UpstreamTimeoutError):
        gateway.ask("안녕 [[sim ttft_ms=20000]]", stream=True)
    assert gateway.row.maybe_billed_pico_usd > 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "error", "status", "calls"),
    [
        ("status:500", UpstreamUnavailableError, 503, 3),
        ("status:503", UpstreamUnavailableError, 503, 3),
        # It has four turns more under the limit that all share.
        ("status:429", UpstreamRateLimitedError, 429, 7),
    ],
)
def test_tries_end_after_three_with_one_row_and_an_honest_error(
    gateway: Gateway, stream: bool, fault: str, error: type[NaruError], status: int, calls: int
) -> None:
    with pytest.raises(error) as failed:
        gateway.ask(f"안녕 [[sim fault={fault}]]", stream=stream)
    assert (failed.value.http_status, failed.value.should_retry) == (status, False)
    assert gateway.model.stats()["requests"] == calls
    assert (gateway.row.outcome, gateway.row.cost_pico_usd, len(gateway.row.attempts)) == ("failed", 0, calls)
    assert gateway.model.stats()["billed"] == []


@pytest.mark.parametrize(
    ("stream", "fault"),
    [
        (False, "reset_before_headers:0,tokens=5"),
        (False, "truncated_json"),
        (False, "malformed_json"),
        (False, "no_finish_reason"),
        (True, "reset_before_headers:0,tokens=5"),
        (True, "wrong_content_type"),
    ],
)
def test_what_may_have_been_billed_is_not_sent_again_and_the_row_says_so(
    gateway: Gateway, stream: bool, fault: str
) -> None:
    with pytest.raises((UpstreamUnavailableError, UpstreamProtocolError)):
        gateway.ask(f"안녕 [[sim tokens=5 fault={fault}]]", stream=stream)
    row, bill = gateway.row, gateway.bill
    assert gateway.model.stats()["requests"] == 1
    assert (row.outcome, row.cost_pico_usd) == ("failed", 0)
    assert bill["cost_pico_usd"] is not None
    assert row.maybe_billed_pico_usd >= bill["cost_pico_usd"] > 0
    assert [attempt.maybe_billed for attempt in row.attempts] == [True]


@pytest.mark.parametrize("stream", [False, True])
def test_a_provider_that_says_nothing_ends_in_a_timeout(gateway: Gateway, stream: bool) -> None:
    with pytest.raises(UpstreamTimeoutError) as failed:
        gateway.ask("안녕 [[sim fault=silence:3600]]", stream=stream)
    assert (failed.value.http_status, failed.value.should_retry) == (504, False)
    assert gateway.row.attempts[0].result == "timeout"
    assert gateway.row.maybe_billed_pico_usd > 0


def test_a_byte_a_second_does_not_outwit_the_deadline(gateway: Gateway) -> None:
    with pytest.raises(UpstreamTimeoutError):
        gateway.ask("안녕 [[sim fault=drip:1000]]")


ELSEWHERE = another_deployment("elsewhere")


@pytest.mark.parametrize(
    "fault",
    [
        "slow_first_token:3600000",  # the head and the role come, no token does
        "stall_after:0,seconds=3600",
        "cut_after:0,how=reset",
        "cut_after:0,how=end",
        "malformed_json",
    ],
)
def test_a_stream_that_fails_before_its_first_token_is_served_elsewhere(gateway: Gateway, fault: str) -> None:
    gateway.deadline_s = 240.0
    gateway.use_catalog(ELSEWHERE)
    events = chunks(gateway.ask(f"안녕 [[sim tokens=5 fault={fault},model={OMNI}]]", stream=True))
    assert events[-1] == "[DONE]"
    assert text(events)
    assert (gateway.row.deployment, gateway.row.outcome) == ("elsewhere", "completed")
    assert [attempt.maybe_billed for attempt in gateway.row.attempts] == [True, False]


@pytest.mark.parametrize("stream", [False, True])
def test_a_second_deployment_serves_what_the_first_may_not_repeat(gateway: Gateway, stream: bool) -> None:
    gateway.use_catalog(ELSEWHERE)
    gateway.ask(f"안녕 [[sim tokens=5 fault=reset_before_headers:0,tokens=5,model={OMNI}]]", stream=stream)
    row = gateway.row
    assert [(attempt.deployment, attempt.result) for attempt in row.attempts] == [
        (f"holysheep/{OMNI}", "reset"),
        ("elsewhere", "ok"),
    ]
    first, second = gateway.model.stats()["billed"]
    assert first["cost_pico_usd"] is not None
    assert (row.deployment, row.cost_pico_usd) == ("elsewhere", second["cost_pico_usd"])
    assert row.maybe_billed_pico_usd >= first["cost_pico_usd"]


# ── Another model answers ──────────────────────────────────────────────────────────────────────────────────

FAST = "hyperclova-x-omni-fast"


def fall_back_to(*models: str) -> tuple[str, str]:
    """A change to the catalog: omni's fallbacks."""
    return ("[models.hyperclova-x-omni]\n", f"[models.hyperclova-x-omni]\nfallbacks = {json.dumps(models)}\n")


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_fails_twice_is_replaced_and_the_answer_and_the_bill_say_by_whom(
    gateway: Gateway, stream: bool
) -> None:
    gateway.use_catalog(fall_back_to(FAST))
    gateway.ask(f"안녕 [[sim tokens=5 fault=status:503,model={OMNI}]]", stream=stream)
    row = gateway.row
    assert [(attempt.deployment, attempt.result) for attempt in row.attempts] == [
        (f"holysheep/{OMNI}", "503"),
        (f"holysheep/{OMNI}", "503"),
        (f"holysheep/{FAST}", "ok"),
    ]
    assert (row.model_asked, row.model_served, gateway.headers["x-naru-model"]) == (OMNI, FAST, FAST)
    assert_row_is_the_bill(gateway)


def test_a_long_wait_is_not_waited_where_a_fallback_is_there(gateway: Gateway) -> None:
    gateway.use_catalog(fall_back_to(FAST))
    gateway.ask(f"안녕 [[sim tokens=5 fault=status:429,retry_after=60,model={OMNI}]]")
    assert [attempt.result for attempt in gateway.row.attempts] == ["429", "ok"]


@pytest.mark.parametrize("stream", [False, True])
def test_what_may_have_been_billed_goes_to_the_fallback_at_once(gateway: Gateway, stream: bool) -> None:
    gateway.use_catalog(fall_back_to(FAST))
    gateway.ask(f"안녕 [[sim tokens=5 fault=reset_before_headers:0,tokens=5,model={OMNI}]]", stream=stream)
    first, second = gateway.model.stats()["billed"]
    assert gateway.row.cost_pico_usd == second["cost_pico_usd"]
    assert gateway.row.maybe_billed_pico_usd >= (first["cost_pico_usd"] or 0) > 0


def test_a_prompt_that_is_too_long_goes_where_there_is_more_context_and_nowhere_else(gateway: Gateway) -> None:
    gateway.use_catalog(fall_back_to(FAST, "gpt-4.1"))
    gateway.ask(f"안녕 [[sim tokens=5 fault=context_length,model={OMNI}]]")
    assert [attempt.deployment for attempt in gateway.row.attempts] == [f"holysheep/{OMNI}", "holysheep/gpt-4.1"]


def test_a_fallback_that_cannot_serve_the_request_is_skipped_and_not_tried(gateway: Gateway) -> None:
    gateway.use_catalog(fall_back_to("HCX-DASH-002", FAST))
    image = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
    words = {"type": "text", "text": f"무엇? [[sim tokens=5 fault=reset_before_headers,model={OMNI}]]"}
    gateway.ask(messages=[{"role": "user", "content": [words, image]}])
    assert gateway.row.model_served == FAST


@pytest.mark.parametrize("no", ["status:400,message=no", "context_length"])
def test_what_a_fallback_cannot_take_is_not_the_clients_mistake(gateway: Gateway, no: str) -> None:
    gateway.use_catalog(fall_back_to(FAST))
    with pytest.raises(UpstreamUnavailableError):
        gateway.ask(f"안녕 [[sim fault=reset_before_headers,model={OMNI} fault={no},model={FAST}]]")
    assert [attempt.result for attempt in gateway.row.attempts] == ["reset", "400"]
    assert gateway.row.outcome == "failed"


def test_the_next_fallback_is_asked_when_one_cannot_take_the_request(gateway: Gateway) -> None:
    gateway.use_catalog(fall_back_to(FAST, "gpt-4.1"))
    gateway.ask(f"안녕 [[sim tokens=5 fault=reset_before_headers,model={OMNI} fault=status:400,model={FAST}]]")
    assert gateway.row.model_served == "gpt-4.1"


def test_what_a_fallbacks_filter_objects_to_is_refused(gateway: Gateway) -> None:
    gateway.use_catalog(fall_back_to(FAST, "gpt-4.1"))
    with pytest.raises(ProviderRejectedError):
        gateway.ask(f"안녕 [[sim fault=reset_before_headers,model={OMNI} fault=content_filter,model={FAST}]]")


def test_a_model_that_an_operator_chose_is_heard_as_the_one_that_was_asked_for(gateway: Gateway) -> None:
    gateway.use_catalog(fall_back_to(FAST))
    gateway.let_route()
    gateway.preference = Preference(deployment=f"holysheep/{FAST}")
    with pytest.raises(ProviderRejectedError, match="no"):
        gateway.ask("안녕 [[sim fault=status:400,message=no]]")


def allow(gateway: Gateway, *models: str) -> None:
    """The key may use these models and no other."""
    gateway.dynamodb.update_item(
        TableName="MeterTable",
        Key={"meter": {"S": f"key#{gateway.key_id}"}},
        UpdateExpression="SET models = :models",
        ExpressionAttributeValues={":models": {"SS": [*models]}},
    )


def test_a_fallback_that_the_key_may_not_use_does_not_answer(gateway: Gateway) -> None:
    gateway.use_catalog(fall_back_to(FAST, "gpt-4.1"))
    allow(gateway, OMNI, "gpt-4.1")
    gateway.ask(f"안녕 [[sim tokens=5 fault=reset_before_headers,model={OMNI}]]")
    assert gateway.row.model_served == "gpt-4.1"


def test_a_deployment_of_a_model_that_the_key_may_not_use_is_refused(gateway: Gateway) -> None:
    gateway.use_catalog(fall_back_to(FAST))
    gateway.let_route()
    allow(gateway, OMNI)
    gateway.preference = Preference(deployment=f"holysheep/{FAST}")
    with pytest.raises(PermissionDeniedError) as refused:
        gateway.ask()
    assert refused.value.code == "model_not_allowed"
    assert gateway.model.stats()["billed"] == []


def test_the_dearest_deployment_that_may_be_reached_is_set_aside(gateway: Gateway) -> None:
    gateway.use_catalog(
        ("[models.hyperclova-x-omni-fast]\n", '[models.hyperclova-x-omni-fast]\nfallbacks = ["claude-sonnet-4-5"]\n')
    )
    held: list[int] = []
    original = Meters.admit

    async def admit(self: Meters, *args: Any, worst_pico_usd: int, **more: Any) -> Any:
        held.append(worst_pico_usd)
        return await original(self, *args, worst_pico_usd=worst_pico_usd, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Meters, "admit", admit)
        gateway.ask("안녕", model=FAST, max_tokens=1000)
    # A thousand tokens of Claude's output, though the fast model answered at less than a third.
    assert held[0] > 1000 * 15_000_000


# ── What is not tried again ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("context_length", 400, "context_length_exceeded"),
        ("content_filter", 400, "content_filter"),
        ("status:422", 422, None),
        ("status:413,body=html", 413, None),
    ],
)
def test_the_providers_verdict_on_the_request_is_passed_on(
    gateway: Gateway, stream: bool, fault: str, status: int, code: str | None
) -> None:
    with pytest.raises(ProviderRejectedError) as refused:
        gateway.ask(f"안녕 [[sim fault={fault}]]", stream=stream)
    assert refused.value.http_status == status
    if code:
        assert refused.value.body()["error"]["code"] == code
    assert "<html" not in refused.value.message
    assert gateway.model.stats()["requests"] == 1
    assert (gateway.row.outcome, gateway.row.cost_pico_usd) == ("rejected", 0)


@pytest.mark.parametrize(
    ("fault", "code"), [("context_length", "context_length_exceeded"), ("content_filter", "content_filter")]
)
def test_a_verdict_in_navers_numbers_has_openais_code(gateway: Gateway, fault: str, code: str) -> None:
    with pytest.raises(ProviderRejectedError) as refused:
        gateway.ask(f"안녕 [[sim fault={fault}]]", model="HCX-005")
    assert refused.value.code == gateway.row.error_code == code


@pytest.mark.parametrize("fields", [{}, {"holysheep": "revoked"}, {"holysheep": "  "}])
def test_a_bad_provider_key_is_the_operators_error_and_not_the_clients(
    gateway: Gateway, fields: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    gateway.secret.fields = fields
    with pytest.raises(UpstreamRefusedKeyError) as failed:
        gateway.ask()
    assert failed.value.http_status == 502
    assert "Your API key is fine" in failed.value.message
    (logged,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    advice = vars(logged)["advice"]
    assert "naru providers set holysheep" in advice
    assert "the-secret" in advice
    assert "revoked" not in str(vars(logged))


@pytest.mark.parametrize("stream", [False, True])
def test_a_key_that_was_replaced_is_used_by_the_request_that_finds_out(gateway: Gateway, stream: bool) -> None:
    gateway.secret.replace("holysheep", "new", after_s=6)
    gateway.model.control({"rules": [{"match": {"key": "k1"}, "fault": {"name": "status", "status": 401}}]})
    gateway.ask("안녕 [[sim tokens=7]]", stream=stream)
    assert [attempt.result for attempt in gateway.row.attempts] == ["401", "ok"]
    assert_row_is_the_bill(gateway)


def test_a_refused_key_is_looked_up_every_five_seconds_and_not_more_often(gateway: Gateway) -> None:
    gateway.secret.replace("holysheep", "new", after_s=1)
    gateway.model.control({"rules": [{"match": {"key": "k1"}, "fault": {"name": "status", "status": 401}}]})
    with pytest.raises(UpstreamRefusedKeyError):
        gateway.ask()
    assert [attempt.result for attempt in gateway.row.attempts] == ["401"]


def test_a_provider_that_cannot_be_reached_is_tried_three_times(gateway: Gateway) -> None:
    with run_in_thread() as gone:
        pass
    gateway.model.url = gone.url
    with pytest.raises(UpstreamUnavailableError):
        gateway.ask()
    assert [attempt.result for attempt in gateway.row.attempts] == ["connect"] * 3
    assert gateway.row.maybe_billed_pico_usd == 0


# ── Streams that die ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "fault",
    [
        "cut_after:10,how=reset",
        "cut_after:10,how=close",
        "cut_after:10,how=end",
        "malformed_chunk:10",
        "error_in_200:10",
        "error_in_200:10,event=1",
        "no_finish_reason",
    ],
)
def test_a_stream_that_is_cut_never_ends_cleanly(gateway: Gateway, fault: str) -> None:
    events = chunks(gateway.ask(f"안녕 [[sim tokens=20 fault={fault}]]", stream=True))
    assert set(events[-1]) == {"error"}
    assert set(events[-1]["error"]) == {"message", "type", "param", "code"}
    assert "[DONE]" not in events
    row = gateway.row
    assert (row.outcome, row.attempts[-1].result) == ("truncated", "cut")
    assert row.usage_source == "estimated"
    assert row.cost_pico_usd > 0
    assert row.error_code == events[-1]["error"]["code"]


def test_a_stream_that_falls_silent_is_cut_after_the_providers_limit(gateway: Gateway) -> None:
    gateway.stream_deadline_s = 840.0
    events = chunks(gateway.ask("안녕 [[sim tokens=20 fault=stall_after:10,seconds=3600]]", stream=True))
    assert events[-1]["error"]["code"] == "upstream_timeout"
    assert gateway.row.outcome == "truncated"


def test_a_stream_that_drips_is_cut_though_bytes_come(gateway: Gateway) -> None:
    with pytest.raises(UpstreamTimeoutError):
        gateway.ask("안녕 [[sim tokens=20 fault=drip:1000]]", stream=True)


def test_a_stream_that_ends_before_it_began_is_an_ordinary_error(gateway: Gateway) -> None:
    with pytest.raises((UpstreamProtocolError, UpstreamUnavailableError)):
        gateway.ask("안녕 [[sim tokens=20 fault=error_in_200:0]]", stream=True)
    assert gateway.row.outcome == "failed"


@pytest.mark.parametrize("finish", ["stop", None])
def test_usage_that_came_before_the_words_does_not_make_them_free(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, finish: str | None
) -> None:
    def says(delta: dict[str, str], **more: Any) -> str:
        return "data: " + json.dumps({"id": "1", "choices": [{"index": 0, "delta": delta, **more}]}) + "\n\n"

    early = json.dumps({"id": "1", "choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 1}})
    body = (
        f"data: {early}\n\n"
        + says({"content": "안녕하세요 "}) * 20
        + (says({}, finish_reason=finish) if finish else "")
    )
    answer = httpx.Response(200, headers={"content-type": "text/event-stream"}, text=body)
    transport = httpx.MockTransport(lambda _: answer)
    monkeypatch.setattr(one_gateway, "new_http_client", lambda: httpx.AsyncClient(transport=transport))
    gateway.ask(stream=True)
    row = gateway.row
    assert (row.usage.prompt_tokens, row.usage_source) == (20, "estimated")
    assert row.usage.completion_tokens == estimate("안녕하세요 " * 20, "hyperclova")


# ── Who leaves, and what breaks ────────────────────────────────────────────────────────────────────────────


def test_the_whole_answer_is_accounted_for_when_the_client_leaves(gateway: Gateway) -> None:
    gateway.ask("안녕 [[sim tokens=40]]", stream=True, take=3)
    assert_row_is_the_bill(gateway)
    assert gateway.bill["finished"]
    assert gateway.row.usage.completion_tokens == 40


@pytest.mark.parametrize("stream", [False, True])
def test_a_ledger_that_fails_after_the_model_answered_does_not_take_the_answer_away(
    gateway: Gateway, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.ledger_table = "NoSuchTable"
    answer = gateway.ask("안녕 [[sim tokens=5]]", stream=stream)
    assert answer.endswith(b"data: [DONE]\n\n" if stream else b"}")
    (logged,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    # Nothing is lost: the line holds what the row would have.
    assert vars(logged)["cost_pico_usd"] == gateway.bill["cost_pico_usd"]
    assert vars(logged)["request_id"] == gateway.bill["client_request_id"]


class _LosesTheLedgersAnswer:
    """DynamoDB whose answer to a put is lost, so that the client sends it again."""

    def __init__(self, dynamodb: Any) -> None:
        self._dynamodb = dynamodb

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dynamodb, name)

    def put_item(self, **parameters: Any) -> Any:
        if parameters["TableName"] == "LedgerTable":
            self._dynamodb.put_item(**parameters)
        return self._dynamodb.put_item(**parameters)


def test_a_row_that_was_put_twice_since_the_answer_was_lost_is_settled_at_once(gateway: Gateway) -> None:
    # Or the key would lack the lease's budget, and one of its parallel requests, until the sweeper comes.
    gateway.dynamodb = _LosesTheLedgersAnswer(gateway.dynamodb)
    gateway.ask("안녕 [[sim tokens=5]]")
    assert_row_is_the_bill(gateway)


def test_a_row_names_each_attempt(gateway: Gateway) -> None:
    gateway.ask("안녕 [[sim tokens=5 id=x fault=status:503,times=1]]")
    first, second = gateway.row.attempts
    assert first == Attempt(f"holysheep/{OMNI}", "503", first.duration_ms)
    assert second == Attempt(f"holysheep/{OMNI}", "ok", second.duration_ms, why="again", waited_ms=second.waited_ms)


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_before_each_call_it_is_asked_whether_it_may_be_made(gateway: Gateway, calls: int) -> None:
    """The claim of a line of a batch may be lost while its request waits, also between two attempts. The provider has not
    been called then, and the row says how often it was before.
    """
    asked = iter([True] * calls + [False])
    gateway.may_call = lambda: next(asked)
    with pytest.raises(StoreUnavailableError):
        gateway.ask("안녕 [[sim fault=status:503]]")
    assert gateway.model.stats()["requests"] == calls
    assert (gateway.row.outcome, gateway.row.error_code, len(gateway.row.attempts)) == (
        "failed",
        "store_unavailable",
        calls,
    )
