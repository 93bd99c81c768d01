"""What users write and what models answer is in no log, no row and no metric, however a request ends."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest

from naru.echoes import WITHHELD, without_echo
from naru.tracebacks import without_texts
from tests.security.handlers import Handlers

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


@pytest.mark.parametrize(
    ("reason", "withheld"),
    [
        ("Rate limit reached for requests per minute", False),
        ("cannot process: 서울의 가을을 소개해 주세요. 그리고 부산도", True),
        ("cannot process: 가을을 소개해 주세요. 그리고 부", True),
        ("the user said 안녕하세요", True),
        ("the user said nothing", False),
        ("tool: 아무도 모르는 비밀 함수의 설명입니다", True),
        ("the type is image_url, the role is user", False),
    ],
)
def test_a_text_that_quotes_the_request_is_withheld(reason: str, withheld: bool) -> None:
    body = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "서울의 가을을 소개해 주세요. 그리고 부산도 소개해 주세요."}]},
            {"role": "user", "content": "안녕하세요"},
        ],
        "tools": [{"type": "function", "function": {"description": "아무도 모르는 비밀 함수의 설명입니다"}}],
    }  # fmt: skip
    facts = without_echo({"reason": reason, "advice": "Top up.", "status": 500}, body)
    assert facts == {"reason": WITHHELD if withheld else reason, "advice": "Top up.", "status": 500}


def test_a_provider_that_repeats_the_prompt_in_the_middle_of_its_answer_is_not_quoted_in_the_log(
    gateway: Handlers,
) -> None:
    fault = {"name": "error_in_200", "tokens": 2, "message": f"cannot process: {CANARY}"}
    gateway.model.control({"rules": [{"fault": fault}]})
    assert b'"error"' in gateway.chat(CANARY, stream=True).body
    assert "stream cut" in gateway.printed.getvalue()
    assert CANARY not in gateway.printed.getvalue() + gateway.stored()
