"""Whose fault an error of a provider is: a table of real bodies, and that a client's own words decide nothing."""

from __future__ import annotations

import pytest

from naru import dialects, fault_rules, faults
from naru.faults import ProviderFault, is_ordinary, judge
from tests.unit.fault_bodies import BODIES, Body


def fault_of(body: Body) -> ProviderFault:
    error = dialects.for_name(body.dialect).error(body.status, body.headers, body.payload)
    return judge(error, sent=body.sent.encode())


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.id)
def test_each_error_is_somebodys_fault(body: Body) -> None:
    fault = fault_of(body)
    assert fault.kind == body.kind, fault


def test_no_label_is_in_two_rows() -> None:
    rows = (fault_rules._PRECISE, {"": fault_rules._PRECISE_PARAMETERS}, fault_rules._VAGUE)
    labels = [fault_rules.squeezed(name) for table in rows for names in table.values() for name in names.split()]
    assert sorted(labels) == sorted(set(labels))


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("insufficient_quota", True),
        ("DeploymentNotFound", True),
        ("RESOURCE_EXHAUSTED", True),
        ("rateLimitExceeded", True),
        ("invalid_model_error", True),
        ("40083", True),
        ("429", True),
        ("4711", False),
        ("900101", False),
        ("invalid_quokka_value", False),
        ("quokka", False),
        ("UXVva2th", False),
        ("", False),
        ("_" * 200, False),
        ("model_" * 50, False),
        ("모델", False),
    ],
)
def test_a_label_is_logged_if_it_is_made_of_an_apis_words(label: str, expected: bool) -> None:
    assert is_ordinary(label) == expected


def test_a_long_request_is_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an error holds: labels, errors inside it, sentences."""
    looked: list[bytes] = []
    letters = faults._letters

    def count(text: bytes) -> bytes:
        looked.append(text)
        return letters(text)

    monkeypatch.setattr(faults, "_letters", count)
    inner = {"error": {"code": "a", "type": "b", "message": "Sorry: out of credits. No balance. Access denied."}}
    payload = {"error": {"message": "Error: overloaded", "metadata": {"raw": inner}}}
    sent = b"out of credits, no balance, overloaded, access denied" * 10_000
    headers = {"x-request-id": "0f8fad5b-d9cb-469f-a165-70867728950e"}
    assert judge(dialects.for_name("openai").error(400, headers, payload), sent=sent).kind == "parameter"
    assert looked.count(sent) == 1


@pytest.mark.parametrize(
    "start", ["", "Error: ", "Error code: 400 - ", "litellm.BadRequestError: X - ", "[400] ", "Sorry. "]
)
@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Your credit balance is too low to access the API.", "credit"),
        ("insufficient balance (request id: x)", "credit"),
        ("余额不足\uff0c请充值", "credit"),
        ("잔액이 부족합니다.", "credit"),
        ("This organization has been disabled.", "suspended"),
        ("User location is not supported for the API use.", "region"),
        ("Your organization must be verified to use the model `x`.", "terms"),
        ("API key expired. Please renew the API key.", "key"),
        ("The model `x` does not exist or you do not have access to it.", "model"),
    ],
)
@pytest.mark.parametrize("status", [400, 403, 409, 422, 451, 500])
def test_a_sentence_is_known_wherever_a_wrapper_puts_it_and_whatever_the_status(
    status: int, words: str, kind: str, start: str
) -> None:
    error = {"error": {"message": start + words, "type": "invalid_request_error"}}
    assert judge(dialects.for_name("openai").error(status, {}, error), sent=b'{"messages":[]}').kind == kind


@pytest.mark.parametrize(
    "start", ["Error: ", "messages.0.content: ", "Cannot process '", 'Invalid value: "', "Sorry. "]
)
@pytest.mark.parametrize("words", ["Your credit balance is too low", "잔액이 부족합니다", "insufficient balance"])
def test_the_same_sentence_in_the_request_decides_nothing(words: str, start: str) -> None:
    error = {"error": {"message": f"{start}{words}'", "type": "invalid_request_error"}}
    sent = f'{{"messages":[{{"role":"user","content":"{words.upper()}"}}]}}'.encode()
    assert judge(dialects.for_name("openai").error(400, {}, error), sent=sent).kind == "parameter"


@pytest.mark.parametrize(
    "message",
    [
        "messages.0.content: Input should be a valid string",
        "max_tokens: 8192 > 4096, which is the maximum allowed number of output tokens for claude-haiku-5-5",
        "'messages' is a required property",
        "Invalid schema for function 'balance': schema must be a JSON Schema of 'type: \"object\"'.",
        "tools.0.function.name: String should match pattern '^[a-zA-Z0-9_-]{1,128}$'",
        "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'.",
        "Unsupported value: 'temperature' does not support 0.2 with this model. Only the default (1) value is supported.",
        "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "Could not process image",
        "image exceeds 5 MB maximum: 6291456 bytes > 5242880 bytes",
        "you must provide a model parameter",
        "Invalid model parameters: temperature must be at most 1",
        "Invalid 'messages': empty array. Expected an array with minimum length 1.",
        "This model does not support assistant message prefill. The conversation must end with a user message.",
        "No tool output found for function call call_1.",
        "`temperature` and `top_p` cannot both be specified for this model. Please use only one.",
        "Overloaded function names are not allowed: get_balance",
        "Too many tools: 129 > 128",
        "model: Field required",
        "Your request contains a role that is not allowed",
        "The tool get_credit_balance is not defined; no credit tool was found",
        "Unable to submit request because it must have a text parameter.",
        "Invalid parameter: n must be 1",
        "유효하지 않은 요청 파라미터입니다.",
        "입력 토큰 수가 한도를 초과했습니다.",
        "参数错误: messages 不能为空",
    ],
)
def test_what_is_about_the_request_stays_the_clients(message: str) -> None:
    for error in ({"type": "invalid_request_error"}, {"code": "400"}, {}):
        read = dialects.for_name("openai").error(400, {}, {"error": {"message": message, **error}})
        assert judge(read, sent=b'{"messages":[]}').party == "request"


def test_a_client_is_told_what_a_wrapper_passes_on_and_not_its_own_words() -> None:
    raw = {"error": {"message": "top_k: must be positive", "type": "invalid_request_error", "param": "top_k"}}
    wrapped = {"error": {"message": "Provider returned error", "code": 400, "metadata": {"raw": raw}}}
    read = dialects.for_name("openai").error(400, {}, wrapped)
    told = judge(read, sent=b"{}")
    assert (told.party, told.message, told.param) == ("request", "top_k: must be positive", "top_k")
    echoed = judge(read, sent=b'{"content": "top_k: must be positive"}')
    assert (echoed.party, echoed.message) == ("request", "Provider returned error")


@pytest.mark.parametrize(
    ("message", "party"),
    [
        ("Organization must be verified to use this model", "account"),
        ("To access gpt-6-astra, your organization must be verified.", "account"),
        ("Your account is not verified. Please complete verification.", "account"),
        ("You must complete your organization verification to use this model.", "account"),
        ("The API key does not have permission to access this model", "account"),
        ("Credits exhausted", "account"),
        ("Your credits have run out.", "account"),
        ("Account balance is negative", "account"),
        ("Spending limit reached", "account"),
        ("Your monthly spending cap has been reached", "account"),
        ("Monthly budget exceeded", "account"),
        ("Quota exceeded", "account"),
        ("Quota exhausted for this key", "account"),
        ("Subscription required", "account"),
        ("The subscription has been cancelled", "account"),
        ("IP address not in whitelist", "account"),
        ("Terms of service not accepted", "account"),
        ("Please accept the Terms of Service", "account"),
        ("Billing is disabled for project 123", "account"),
        ("The billing account for the owning project is disabled in state absent", "account"),
        ("결제 정보가 등록되지 않았습니다.", "account"),
        ("접근이 허용되지 않은 IP입니다.", "account"),
        ("您的账户已欠费", "account"),
        ("该令牌无权访问模型 gpt-4", "account"),
        ("API key 已过期", "account"),
        ("Region not supported", "deployment"),
        ("Service unavailable in your region", "deployment"),
        ("当前地区不支持", "deployment"),
        ("This model is deprecated", "deployment"),
        ("Model gpt-5 has been shut down", "deployment"),
        ("The deployment for this resource does not exist", "deployment"),
        ("No access to model gpt-5", "deployment"),
        ("승인되지 않은 모델입니다.", "deployment"),
        ("模型已下线", "deployment"),
        ("Server is busy, please try again", "load"),
        ("Requests rate limit exceeded", "load"),
        ("TPM limit reached", "load"),
        ("Concurrency limit exceeded", "load"),
    ],
)
@pytest.mark.parametrize("status", [400, 422])
def test_a_sentence_is_known_in_other_words(status: int, message: str, party: str) -> None:
    for payload in ({"error": {"message": message, "type": "invalid_request_error"}}, {"error": message}, message):
        assert judge(dialects.for_name("openai").error(status, {}, payload), sent=b"{}").party == party
