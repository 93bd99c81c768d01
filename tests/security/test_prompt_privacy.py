"""What users write and what models answer is in no log, no row and no metric, however a request ends."""

from __future__ import annotations

import base64
import errno
import io
import json
import logging
import ssl
import urllib.parse
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from naru.dialects import clovastudio, openai
from naru.failures import fault_failure, transport_failure
from naru.faults import judge
from naru.tracebacks import without_texts
from tests.accounts import CATALOG
from tests.security.handlers import OMNI, Handlers

# A word that nothing else contains, in the words of a user.
CANARY = "카나리아-7e1f"

FAULTS: list[dict[str, Any]] = [
    *({"name": "status", "status": status} for status in (400, 401, 404, 413, 422, 429, 500, 503, 504)),
    {"name": "status", "status": 500, "body": "html"},
    {"name": "status", "status": 503, "body": "native"},
    {"name": "context_length"},
    {"name": "content_filter"},
    {"name": "reset_before_headers"},
    {"name": "cut_after", "tokens": 3, "how": "reset"},
    {"name": "cut_after", "tokens": 3, "how": "end"},
    {"name": "malformed_chunk", "tokens": 2},
    {"name": "malformed_json"},
    {"name": "truncated_json"},
    {"name": "no_finish_reason"},
    {"name": "error_in_200", "tokens": 2},
    {"name": "wrong_content_type"},
    {"name": "usage_missing"},
]


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: "-".join(map(str, fault.values())))
def test_a_failure_leaves_no_prompt_and_no_answer_behind(
    gateway: Handlers, fault: dict[str, Any], stream: bool
) -> None:
    gateway.model.control({"rules": [{"fault": fault}]})
    reply = gateway.chat(f"{CANARY} [[sim tokens=12]]", stream=stream, user="phone-1", max_tokens=50)
    assert reply.status != 500
    printed = gateway.printed.getvalue()
    assert reply.headers["x-request-id"] in printed
    assert CANARY not in printed + gateway.stored()


def _contents(gateway: Handlers) -> list[tuple[str, dict[str, Any]]]:
    word = {"role": "user", "content": CANARY}
    return [
        ("part", {"messages": [{"role": "user", "content": [{"type": "text", "text": CANARY}]}]}),
        ("system", {"messages": [{"role": "system", "content": CANARY}, {"role": "user", "content": "안녕"}]}),
        ("name", {"messages": [{**word, "name": CANARY}]}),
        ("image", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{CANARY}"}}]}]}),
        ("tool", {"messages": [word], "tools": [{"type": "function", "function": {"name": "f", "description": CANARY}}]}),
        ("tool result", {"messages": [word, {"role": "tool", "tool_call_id": CANARY, "content": CANARY}]}),
        ("metadata", {"messages": [word], "metadata": {CANARY: CANARY}}),
        ("stop", {"messages": [word], "stop": [CANARY]}),
        ("unknown field", {"messages": [word], CANARY: {"deep": [CANARY]}}),
        ("wrong role", {"messages": [{"role": CANARY, "content": CANARY}]}),
        ("wrong type", {"messages": [{"role": "user", "content": {"text": CANARY}}]}),
        ("wrong tools", {"messages": [word], "tools": CANARY}),
        ("unknown model", {"model": CANARY, "messages": [word]}),
        ("too much", {"messages": [word], "max_tokens": 10**9}),
        ("not for this model", {"model": "HCX-DASH-002", "messages": [word], "tool_choice": CANARY}),
    ]  # fmt: skip


@pytest.mark.parametrize("index", range(15))
def test_no_part_of_a_request_is_written_down(gateway: Handlers, index: int) -> None:
    _, fields = _contents(gateway)[index]
    body = {"model": "hyperclova-x-omni", **fields}
    gateway.send("chat", "POST", "/chat/completions", body)
    assert CANARY not in gateway.printed.getvalue() + gateway.stored()


@pytest.mark.parametrize("body", [f'{{"messages": "{CANARY}', f"{CANARY}", f'["{CANARY}"]', f'{{"{CANARY}": NaN}}'])
def test_what_is_not_json_is_not_quoted(gateway: Handlers, body: str) -> None:
    for function, path, key in (
        ("chat", "/chat/completions", gateway.api_key),
        ("admin", "/admin/keys", gateway.admin_key),
    ):
        assert gateway.send(function, "POST", path, body, key=key).status == 400
    assert CANARY not in gateway.printed.getvalue() + gateway.stored()


def test_an_answer_that_is_kept_for_a_retry_is_kept_nowhere_else(gateway: Handlers) -> None:
    headers = {"Idempotency-Key": "privacy-1"}
    first = gateway.chat("비밀 이야기 [[sim tokens=9]]", headers=headers)
    again = gateway.chat("비밀 이야기 [[sim tokens=9]]", headers=headers)
    assert again.headers["idempotency-replayed"] == "true"
    said = first.json()["choices"][0]["message"]["content"]
    assert again.json()["choices"][0]["message"]["content"] == said
    for words in ("비밀 이야기", said):
        assert words not in gateway.printed.getvalue() + gateway.stored()
    kept = gateway.dynamodb.scan(TableName="IdempotencyTable")["Items"]
    assert kept
    assert "비밀 이야기" not in json.dumps(kept, default=lambda value: bytes(value).decode("utf-8", "replace"))


@pytest.mark.parametrize("function", ["chat", "admin"])
def test_a_defect_is_logged_without_its_words(
    gateway: Handlers, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """An exception's text may quote what it choked on."""

    def choke(*_: Any, **__: Any) -> None:
        try:
            raise KeyError(CANARY)
        except KeyError as error:
            raise ValueError(f"cannot read {CANARY!r}") from error

    module = gateway.modules[function]
    monkeypatch.setattr(module.meters if function == "chat" else module.keys, "authenticate", choke, raising=False)
    monkeypatch.setattr(module, "authenticate", choke, raising=False)
    path = "/models" if function == "chat" else "/admin/keys"
    reply = gateway.send(function, "GET", path, key=gateway.admin_key)
    assert (reply.status, reply.code) == (500, "internal_error")
    printed = gateway.printed.getvalue()
    assert CANARY not in printed + reply.body.decode()
    (line,) = (json.loads(line) for line in printed.splitlines() if "unexpected error" in line)
    assert [error["error"] for error in line["errors"]] == ["ValueError", "KeyError"]
    assert line["errors"][0]["at"][-1].endswith("choke")
    assert line["request_id"] == reply.headers["x-request-id"]


def test_a_chain_of_errors_without_texts_ends() -> None:
    first, second = ValueError(CANARY), KeyError(CANARY)
    first.__cause__, second.__cause__ = second, first
    assert [found["error"] for found in without_texts(first)] == ["ValueError", "KeyError"]


def test_no_library_logs_a_request(gateway: Handlers) -> None:
    """httpx and botocore would, in DEBUG, which nobody can switch on from outside."""
    seen = io.StringIO()
    handler = logging.StreamHandler(seen)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        gateway.chat(f"{CANARY} [[sim tokens=3]]")
    finally:
        root.removeHandler(handler)
    assert CANARY not in seen.getvalue()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fault",
    [
        *({"name": "status", "status": status} for status in (401, 404, 429, 500, 503, 504)),
        {"name": "error_in_200", "tokens": 0},
    ],
    ids=lambda fault: "-".join(map(str, fault.values())),
)
def test_a_provider_that_repeats_the_prompt_in_its_error_is_not_quoted_in_the_log(
    gateway: Handlers, fault: dict[str, Any], stream: bool
) -> None:
    prompt = f"{CANARY} 이 문장은 아무도 보아서는 안 됩니다."
    gateway.model.control({"rules": [{"fault": {**fault, "message": f"cannot process: {prompt}"}}]})
    gateway.chat(prompt, stream=stream)
    assert CANARY not in gateway.printed.getvalue() + gateway.stored()


# ── A provider that repeats the request in its error ────────────────────────────────────────────────────────

# Words as a code could hold them, so that a look at the characters alone would let them pass.
SECRET = "quokka_marmoset_4711"

FIELDS: dict[str, dict[str, Any]] = {
    "message": {"messages": [{"role": "user", "content": SECRET}]},
    "stop": {"stop": [SECRET]},
    "metadata": {"metadata": {"topic": SECRET}},
    "prediction": {"prediction": {"type": "content", "content": SECRET}},
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"title": SECRET}}}},
    "tool": {"tools": [{"type": "function", "function": {"name": SECRET}}]},
    "tool choice": {
        "tools": [{"type": "function", "function": {"name": SECRET}}],
        "tool_choice": {"type": "function", "function": {"name": SECRET}},
    },
    "another's field": {"guided_regex": SECRET, "chat_template_kwargs": {"hint": [SECRET]}},
}
MANGLED: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "escaped": lambda text: "".join(f"\\u{ord(letter):04x}" for letter in text),
    "upper case": str.upper,
    "camel case": lambda text: "".join(word.title() for word in text.split("_")),
    "broken by newlines": lambda text: "\n".join(text[i : i + 5] for i in range(0, len(text), 5)),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64, URL-safe": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    "hexadecimal": lambda text: text.encode().hex(),
    "percent": lambda text: urllib.parse.quote(text, safe="").replace("_", "%5F"),
    "half of it": lambda text: text[:15],
    "inside a word": lambda text: f"invalid_{text}_value",
}


def error_of(where: str, words: str) -> dict[str, Any]:
    """A fault whose error says ``words`` there."""
    error: dict[str, Any] = {"message": "no", "type": "invalid_request_error", "param": None, "code": None}
    headers: dict[str, str] = {}
    payload: Any = {"error": error}
    one_line = words.replace("\n", "-")
    match where:
        case "message" | "code" | "type" | "param":
            error[where] = words
        case "reason":
            error["details"] = [{"reason": words, "violations": [{"quotaId": words}]}]
        case "inner":
            error["metadata"] = {"raw": json.dumps({"error": {"message": words, "code": words}})}
        case "string":
            payload = {"error": words}
        case "detail":
            payload = {"detail": [{"loc": ["body", words], "msg": words, "input": words}]}
        case "text":
            payload = words
        case "id":
            payload["request_id"] = f"req_{one_line}"
        case _:
            headers = {where: one_line if where != "x-request-id" else f"req_{one_line}"}
    return {"json": payload, "headers": headers}


PLACES = (
    "message", "code", "type", "param", "reason", "inner", "string", "detail", "text", "id",
    "x-request-id", "request-id", "retry-after", "server",
)  # fmt: skip


def assert_hidden(seen: str, words: str) -> None:
    for form in MANGLED.values():
        assert form(SECRET) not in seen
    assert words not in seen
    assert "marmoset" not in seen.lower()


def assert_unseen(gateway: Handlers, words: str) -> None:
    assert_hidden(gateway.printed.getvalue() + gateway.stored(), words)


@pytest.mark.parametrize("status", [200, 400, 401, 429, 500])
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("how", MANGLED)
def test_what_may_be_logged_of_an_error_holds_no_words(how: str, where: str, status: int) -> None:
    words = MANGLED[how](SECRET)
    fault = error_of(where, words)
    for dialect in (openai, clovastudio):
        error = dialect.error(status, fault["headers"], fault["json"])
        judged = judge(error, sent=json.dumps({"messages": SECRET}).encode())
        told = fault_failure(CATALOG.model(OMNI).deployments[0], judged).error
        assert_hidden(str((judged.facts, told.log, told.recorded_code)), words)


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("how", ["as it is", "camel case", "base64"])
def test_no_words_of_an_error_are_written_down(gateway: Handlers, how: str, where: str) -> None:
    words = MANGLED[how](SECRET)
    gateway.model.control({"rules": [{"fault": {"name": "status", "status": 400, **error_of(where, words)}}]})
    gateway.chat(SECRET)
    assert '"fault_rule"' in gateway.printed.getvalue()
    assert_unseen(gateway, words)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("where", ["message", "code", "param", "x-request-id"])
@pytest.mark.parametrize("stream", [False, True])
def test_no_field_of_a_request_is_written_down_from_an_error(
    gateway: Handlers, stream: bool, where: str, name: str
) -> None:
    gateway.model.control({"rules": [{"fault": {"name": "status", "status": 404, **error_of(where, SECRET)}}]})
    gateway.chat("안녕", stream=stream, **FIELDS[name])
    assert "attempt failed" in gateway.printed.getvalue()
    assert_unseen(gateway, SECRET)


@pytest.mark.parametrize("how", ["as it is", "upper case", "base64"])
@pytest.mark.parametrize("where", ["message", "code", "inner", "string"])
@pytest.mark.parametrize("tokens", [0, 2])
def test_no_words_of_an_error_inside_a_stream_are_written_down(
    gateway: Handlers, tokens: int, where: str, how: str
) -> None:
    words = MANGLED[how](SECRET)
    payload = error_of(where, words)["json"]
    gateway.model.control({"rules": [{"fault": {"name": "error_in_200", "tokens": tokens, "json": payload}}]})
    gateway.chat(SECRET, stream=True)
    assert_unseen(gateway, words)


@pytest.mark.parametrize("how", ["as it is", "base64"])
@pytest.mark.parametrize("stream", [False, True])
def test_no_content_type_is_written_down(gateway: Handlers, stream: bool, how: str) -> None:
    words = MANGLED[how](SECRET).replace("\n", "-")
    gateway.model.control({"rules": [{"fault": {"name": "wrong_content_type", "value": f"text/{words}"}}]})
    gateway.chat(SECRET, stream=stream)
    assert_unseen(gateway, words)


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError, httpx.ConnectTimeout, httpx.ReadError, httpx.RemoteProtocolError, httpx.LocalProtocolError,
        httpx.UnsupportedProtocol, httpx.ProxyError, httpx.DecodingError,
    ],
)  # fmt: skip
def test_no_words_of_a_broken_connection_are_written_down(error: type[httpx.HTTPError]) -> None:
    cause = ssl.SSLError(1, f"[SSL: WRONG_VERSION_NUMBER] {SECRET}")
    broken = error(f"illegal status line: {SECRET}")
    broken.__cause__ = OSError(errno.ECONNRESET, SECRET)
    broken.__cause__.__cause__ = cause
    log = transport_failure(CATALOG.model(OMNI).deployments[0], broken).error.log
    assert SECRET not in str(log)
    assert log["reason"] == error.__name__
    assert "ECONNRESET" in log["cause"]


def test_what_an_operator_needs_is_written_down(gateway: Handlers) -> None:
    error = {"message": f"Your credit balance is too low. {SECRET}", "type": "invalid_request_error"}
    fault = {"name": "status", "status": 400, "json": {"error": error, "request_id": "req_011CSHoEeqs5C35K2UUqR7Fy"}}
    gateway.model.control({"rules": [{"fault": fault}]})
    gateway.chat(SECRET)
    line = next(json.loads(line) for line in gateway.printed.getvalue().splitlines() if "attempt failed" in line)
    facts = {name: line[name] for name in ("level", "fault", "fault_rule", "provider_status", "provider_codes")}
    assert facts == {
        "level": "ERROR",
        "fault": "account",
        "fault_rule": "credit-too-low",
        "provider_status": 400,
        "provider_codes": ["invalid_request_error"],
    }
    assert line["message_chars"] == len(error["message"])
    assert "Top up" in line["advice"]


def test_an_id_of_the_provider_is_written_down(gateway: Handlers) -> None:
    request_id = "0f8fad5b-d9cb-469f-a165-70867728950e"
    fault = {"name": "status", "status": 500, "headers": {"request-id": request_id}}
    gateway.model.control({"rules": [{"fault": fault, "times": 1}]})
    gateway.chat("안녕 [[sim tokens=3]]")
    assert f'"provider_request_id":"{request_id}"' in gateway.printed.getvalue().replace(": ", ":")


def test_a_provider_that_repeats_the_prompt_in_the_middle_of_its_answer_is_not_quoted_in_the_log(
    gateway: Handlers,
) -> None:
    fault = {"name": "error_in_200", "tokens": 2, "message": f"cannot process: {CANARY}"}
    gateway.model.control({"rules": [{"fault": fault}]})
    assert b'"error"' in gateway.chat(CANARY, stream=True).body
    assert "stream cut" in gateway.printed.getvalue()
    assert CANARY not in gateway.printed.getvalue() + gateway.stored()
