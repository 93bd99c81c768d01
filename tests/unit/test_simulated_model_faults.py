"""Every fault: what the client sees of it, and what the provider bills for it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import openai
import pytest

from local.simulated_model import BadInstructionError, BillRow, ThreadedModel, run_in_thread
from local.simulated_model.broken_tls import broken_tls
from local.simulated_model.faults import Fault
from local.simulated_model.instructions import parse_directives, without_directives
from tests.waiting import PATIENCE_S

KEY = {"authorization": "Bearer sk-test"}
LEAVES_SOON = httpx.Timeout(PATIENCE_S, read=1.0)
TOKENS = 20


@pytest.fixture(scope="module")
def running() -> Iterator[ThreadedModel]:
    with run_in_thread() as model:
        yield model


@pytest.fixture
def model(running: ThreadedModel) -> ThreadedModel:
    running.clear_control()
    running.reset_stats()
    return running


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with httpx.Client(headers=KEY) as client:
        yield client


class Asker:
    """Sends prompts with one directive and keeps what came back."""

    def __init__(self, model: ThreadedModel, client: httpx.Client) -> None:
        self.model = model
        self.client = client

    def __call__(
        self,
        directive: str,
        *,
        stream: bool = False,
        usage: bool = False,
        timeout: float | httpx.Timeout = PATIENCE_S,
        **more: Any,
    ) -> httpx.Response:
        body = {
            "model": "gpt-4.1",
            "messages": [{"role": "user", "content": f"질문 [[sim tokens={TOKENS} {directive}]]"}],
            "stream": stream,
            **({"stream_options": {"include_usage": True}} if usage else {}),
            **more,
        }
        return self.client.post(f"{self.model.openai_url}/chat/completions", json=body, timeout=timeout)

    def cut(self, directive: str, *, stream: bool = True) -> tuple[str, type[Exception] | None]:
        """Return all that could be read, and the kind of error that ended it."""
        messages = [{"role": "user", "content": f"질문 [[sim tokens={TOKENS} {directive}]]"}]
        body = {"model": "gpt-4.1", "messages": messages, "stream": stream}
        read = ""
        try:
            with self.client.stream("POST", f"{self.model.openai_url}/chat/completions", json=body) as answer:
                for piece in answer.iter_raw():
                    read += piece.decode(errors="replace")
        except httpx.TransportError as error:
            return read, type(error)
        return read, None

    def bill(self) -> BillRow | None:
        """Return the only row, if there is one."""
        rows = self.model.stats()["billed"]
        assert len(rows) <= 1
        return rows[0] if rows else None

    def billed_tokens(self) -> int | None:
        row = self.bill()
        return None if row is None else row["completion_tokens"]


@pytest.fixture
def ask(model: ThreadedModel, client: httpx.Client) -> Asker:
    return Asker(model, client)


def chunks(text: str) -> list[Any]:
    return [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]


def content_chunks(text: str) -> int:
    return sum(bool(choice["delta"].get("content")) for chunk in chunks(text) for choice in chunk.get("choices", []))


def test_a_status_comes_with_headers_and_body_as_asked_and_is_not_billed(ask: Asker) -> None:
    refused = ask("fault=status:429,retry_after=7,retry_after_ms=6500")
    assert (refused.status_code, refused.headers["retry-after"], refused.headers["retry-after-ms"]) == (
        429,
        "7",
        "6500",
    )
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert refused.json()["error"]["type"] == "requests"
    assert ask("fault=status:502,body=html").headers["content-type"] == "text/html"
    assert "nginx" in ask("fault=status:502,body=html").text
    empty = ask("fault=status:500,body=empty")
    assert (empty.status_code, empty.content) == (500, b"")
    native = ask("fault=status:500,body=native,code=50000,message=x")
    assert native.json() == {"status": {"code": "50000", "message": "x"}}
    assert ask("fault=status", stream=True).status_code == 503
    assert ask.bill() is None
    assert ask.model.stats()["attempts"] == {"429": 1, "502": 2, "500": 2, "503": 1}


@pytest.mark.parametrize(("fault", "code"), [("context_length", "context_length_exceeded"), ("content_filter",) * 2])
def test_a_refused_prompt_is_a_400_with_its_code(ask: Asker, fault: str, code: str) -> None:
    answer = ask(f"fault={fault}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert ask.bill() is None


def test_a_beginning_of_an_answer_can_be_refused_and_nothing_else_is(ask: Asker) -> None:
    begun = {"role": "assistant", "content": "네,"}
    question = {"role": "user", "content": "질문 [[sim fault=refuse_prefill]]"}
    refused = ask("", messages=[question, begun])
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")
    assert ask.bill() is None
    assert ask("", messages=[question]).status_code == 200


def test_another_answer_is_as_long_and_not_the_same(ask: Asker) -> None:
    first, other = ask("").json(), ask("fault=other_answer").json()
    assert first["choices"][0]["message"]["content"] == ask("").json()["choices"][0]["message"]["content"]
    assert first["choices"][0]["message"]["content"] != other["choices"][0]["message"]["content"]
    assert first["usage"]["completion_tokens"] == other["usage"]["completion_tokens"] == TOKENS


@pytest.mark.parametrize(("kind", "reason"), [("garbage", "WRONG_VERSION"), ("certificate", "CERTIFICATE_VERIFY")])
def test_a_handshake_can_fail(kind: Literal["garbage", "certificate"], reason: str) -> None:
    async def shake_hands() -> None:
        async with broken_tls(kind) as url, httpx.AsyncClient(trust_env=False) as client:
            await client.get(f"{url}/models")

    with pytest.raises(httpx.ConnectError, match=reason):
        asyncio.run(shake_hands())


@pytest.mark.parametrize(("fault", "billed"), [("reset_before_headers", None), ("reset_before_headers:0,tokens=7", 7)])
def test_a_reset_before_the_headers_is_billed_only_if_asked(ask: Asker, fault: str, billed: int | None) -> None:
    with pytest.raises(httpx.ReadError):
        ask(f"fault={fault}")
    assert ask.billed_tokens() == billed
    assert ask.model.stats()["attempts"] == {"none": 1}


def test_silence_sends_nothing_then_the_answer_and_bills_nobody_who_left(ask: Asker) -> None:
    begun = time.monotonic()
    assert ask("fault=silence:0.2").status_code == 200
    assert time.monotonic() - begun >= 0.2
    ask.model.reset_stats()
    with pytest.raises(httpx.ReadTimeout):
        ask("fault=silence", timeout=LEAVES_SOON)
    ask.model.wait_idle()
    assert ask.bill() is None
    assert ask.model.stats()["attempts"] == {"none": 1}


def test_a_slow_first_token_comes_after_prompt_headers(ask: Asker) -> None:
    messages = [{"role": "user", "content": "질문 [[sim tokens=3 fault=slow_first_token:500]]"}]
    body = {"model": "gpt-4.1", "messages": messages, "stream": True}
    begun = time.monotonic()
    with ask.client.stream("POST", f"{ask.model.openai_url}/chat/completions", json=body) as answer:
        assert ask.model.stats()["in_flight"] == 1
        assert content_chunks(answer.read().decode()) == 3
    assert time.monotonic() - begun >= 0.5


@pytest.mark.parametrize(
    ("how", "error"), [("reset", httpx.ReadError), ("close", httpx.RemoteProtocolError), ("end", None)]
)
def test_a_cut_stream_ends_after_so_many_tokens_and_bills_those(
    ask: Asker, how: str, error: type[Exception] | None
) -> None:
    read, ended = ask.cut(f"token_ms=1 fault=cut_after:7,how={how}")
    assert ended is error
    assert "[DONE]" not in read
    assert '"finish_reason":"stop"' not in read
    assert content_chunks(read) == 7
    row = ask.bill()
    assert row is not None
    assert (row["completion_tokens"], row["finished"]) == (7, False)


@pytest.mark.parametrize(
    ("how", "error"), [("reset", httpx.ReadError), ("close", httpx.RemoteProtocolError), ("end", None)]
)
def test_a_cut_json_answer_is_half_an_answer_for_the_whole_price(
    ask: Asker, how: str, error: type[Exception] | None
) -> None:
    read, ended = ask.cut(f"fault=cut_after,how={how}", stream=False)
    assert ended is error
    with pytest.raises(json.JSONDecodeError):
        json.loads(read)
    assert ask.billed_tokens() == TOKENS


def test_a_stalled_stream_bills_what_came_before_the_client_left(ask: Asker) -> None:
    messages = [{"role": "user", "content": f"질문 [[sim tokens={TOKENS} fault=stall_after:5]]"}]
    body = {"model": "gpt-4.1", "messages": messages, "stream": True}
    with ask.client.stream("POST", f"{ask.model.openai_url}/chat/completions", json=body) as answer:
        said = 0
        for line in answer.iter_lines():
            if (said := said + content_chunks(line)) == 5:
                break
    ask.model.wait_idle()
    assert ask.billed_tokens() == 5
    ask.model.reset_stats()
    assert content_chunks(ask("fault=stall_after:5,seconds=0.1", stream=True).text) == TOKENS
    assert ask.billed_tokens() == TOKENS


def test_a_malformed_chunk_stands_between_good_ones(ask: Asker) -> None:
    lines = [line for line in ask("fault=malformed_chunk:3", stream=True).text.split("\n\n") if line]
    with pytest.raises(json.JSONDecodeError):
        json.loads(lines[4].removeprefix("data: "))
    assert all(json.loads(line.removeprefix("data: ")) for line in [*lines[:4], *lines[5:-1]])
    assert lines[-1] == "data: [DONE]"
    assert ask.billed_tokens() == TOKENS


def test_done_and_the_finish_reason_can_be_missing(ask: Asker) -> None:
    no_done = ask("fault=missing_done", stream=True).text
    assert "[DONE]" not in no_done
    assert chunks(no_done)[-1]["choices"][0]["finish_reason"] == "stop"
    no_reason = ask("fault=no_finish_reason", stream=True).text
    assert no_reason.endswith("data: [DONE]\n\n")
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks(no_reason))
    assert ask("fault=no_finish_reason").json()["choices"][0]["finish_reason"] is None
    neither = ask("fault=no_finish_reason fault=missing_done", stream=True).text
    assert content_chunks(neither) == TOKENS
    assert [row["finished"] for row in ask.model.stats()["billed"]] == [True] * 4


def test_a_finish_reason_can_come_early_or_be_another_one(ask: Asker) -> None:
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks(ask("fault=early_finish:5", stream=True).text)]
    assert [reason for reason in reasons if reason] == ["stop", "stop"]
    assert reasons.index("stop") == 1 + 5  # the role, and so many tokens
    assert ask("fault=finish_reason:error").json()["choices"][0]["finish_reason"] == "error"


@pytest.mark.parametrize("what", ["error", "chunk", "close"])
def test_something_can_come_behind_the_finish_reason(ask: Asker, what: str) -> None:
    read, error = ask.cut(f"fault=after_finish:{what}")
    behind = read[read.index('"finish_reason":"stop"') :]
    assert "[DONE]" not in read
    assert (('"error"' in behind), ("chat.completion.chu" in behind)) == (what == "error", what == "chunk")
    assert (error is not None) == (what == "close")


def test_the_same_answer_can_have_another_shape(ask: Asker) -> None:
    said = ask("odd=1").json()["choices"][0]["message"]["content"]
    assert "😀\u2028" in said
    deltas = [
        chunk["choices"][0]["delta"].get("content")
        for chunk in chunks(ask("odd=1 fault=halved_characters", stream=True).text)
    ]
    assert {delta[-1:] for delta in deltas if delta} & {"\ud83d"}
    whole = "".join(delta or "" for delta in deltas).encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    assert whole == said
    kinds = {
        type(chunk["choices"][0]["delta"].get("content"))
        for chunk in chunks(ask("fault=content_parts", stream=True).text)
    }
    assert {list, dict, str} <= kinds


def test_an_answer_can_come_in_the_other_form(ask: Asker) -> None:
    assert ask("fault=other_form", stream=True).json()["object"] == "chat.completion"
    streamed = chunks(ask("fault=other_form").text)
    assert streamed[0]["object"] == "chat.completion.chunk"
    assert streamed[-1]["usage"]["completion_tokens"] == TOKENS


def test_a_dripping_answer_comes_byte_by_byte(ask: Asker) -> None:
    begun = time.monotonic()
    answer = ask("fault=drip:1", max_tokens=1)
    assert answer.json()["usage"]["completion_tokens"] == 1
    assert time.monotonic() - begun >= len(answer.content) / 1000


def test_headers_can_be_huge_and_the_content_type_wrong(ask: Asker) -> None:
    assert len(ask("fault=huge_headers:70000").headers["x-filler"]) == 70_000
    assert ask("fault=wrong_content_type").headers["content-type"] == "text/html; charset=utf-8"
    assert ask("fault=wrong_content_type:text/plain", stream=True).headers["content-type"] == "text/plain"
    assert len(ask.model.stats()["billed"]) == 3


def test_an_error_inside_a_200_is_billed_for_the_tokens_before_it(ask: Asker) -> None:
    alone = ask("fault=error_in_200,code=overloaded")
    assert (alone.status_code, alone.json()["error"]["code"]) == (200, "overloaded")
    first = ask("fault=error_in_200", stream=True)
    assert (first.headers["content-type"], list(chunks(first.text)[0])) == ("text/event-stream", ["error"])
    assert ask.bill() is None
    late = ask("fault=error_in_200:5,event=1,message=x", stream=True)
    assert content_chunks(late.text) == 5
    assert 'event: error\ndata: {"error":{"message":"x",' in late.text
    assert "[DONE]" not in late.text
    assert ask.billed_tokens() == 5


def test_the_sdk_raises_the_error_of_a_stream(ask: Asker) -> None:
    with openai.OpenAI(base_url=ask.model.openai_url, api_key="k", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="gpt-4.1",
            messages=[{"role": "user", "content": "질문 [[sim tokens=9 fault=error_in_200:5,code=server_error]]"}],
            stream=True,
        )
        with pytest.raises(openai.APIError) as raised:
            list(stream)
    assert raised.value.code == "server_error"


def test_json_can_be_truncated_or_not_json_at_all(ask: Asker) -> None:
    for name in ("truncated_json", "malformed_json"):
        answer = ask(f"fault={name}")
        assert answer.status_code == 200
        with pytest.raises(json.JSONDecodeError):
            answer.json()
        lines = [line for line in ask(f"fault={name}", stream=True).text.split("\n\n") if line]
        bad = lines[0] if name == "malformed_json" else lines[-1]
        with pytest.raises(json.JSONDecodeError):
            json.loads(bad.removeprefix("data: "))
    assert len(ask.model.stats()["billed"]) == 4


def test_usage_can_be_missing_elsewhere_everywhere_or_apart(ask: Asker) -> None:
    assert "usage" not in ask("fault=usage_missing").json()
    missing = chunks(ask("fault=usage_missing", stream=True, usage=True).text)
    assert not any(chunk.get("usage") for chunk in missing)

    inside = chunks(ask("fault=usage_in_choice_chunk", stream=True, usage=True).text)
    reported = [chunk for chunk in inside if chunk.get("usage")]
    assert [len(chunk["choices"]) for chunk in reported] == [1]
    assert reported[0]["choices"][0]["delta"]["content"] == "."
    assert reported[0]["usage"]["completion_tokens"] == TOKENS

    every = chunks(ask("fault=usage_in_every_chunk", stream=True, usage=True).text)
    counted = [chunk["usage"]["completion_tokens"] for chunk in every if chunk.get("usage")]
    assert counted == list(range(1, TOKENS + 1))

    apart = ask("fault=reasoning_apart reasoning=8").json()["usage"]
    assert (apart["completion_tokens"], apart["completion_tokens_details"]["reasoning_tokens"]) == (TOKENS, 8)
    assert apart["total_tokens"] == apart["prompt_tokens"] + TOKENS + 8
    assert [row["completion_tokens"] for row in ask.model.stats()["billed"]] == [TOKENS] * 4 + [TOKENS + 8]


def test_a_fault_with_times_lets_the_retry_of_the_same_prompt_through(ask: Asker) -> None:
    statuses = [ask("id=a fault=status:503,times=2").status_code for _ in range(4)]
    assert statuses == [503, 503, 200, 200]
    assert ask("id=b fault=status:503,times=2").status_code == 503


def test_a_fault_can_be_about_one_model_so_that_the_fallback_answers(ask: Asker) -> None:
    assert ask("fault=status:500,model=gpt-4.1").status_code == 500
    assert ask("fault=status:500,model=gpt-4.1", model="gemini-2.5-flash").status_code == 200
    assert ask("fault=status:500,face=clova").status_code == 200


def test_rules_match_run_out_and_are_cleared(ask: Asker) -> None:
    fault = {"name": "status", "status": 429, "headers": {"retry-after-ms": "20"}}
    rules = [
        {
            "match": {"model": "gpt-4.1", "face": "openai", "key": "sk-test", "contains": "id=x"},
            "times": 2,
            "fault": fault,
        },
        {"match": {"contains": "id=y"}, "times": None, "fault": [{"name": "usage_missing"}, {"name": "missing_done"}]},
    ]
    assert ask.client.post(f"{ask.model.url}/_control", json={"rules": rules}).status_code == 200
    assert ask("id=z").status_code == 200
    assert ask("id=x", model="gemini-2.5-flash").status_code == 200
    assert [ask("id=x").status_code for _ in range(3)] == [429, 429, 200]
    assert "usage" not in ask("id=y").json()
    assert "[DONE]" not in ask("id=y", stream=True).text
    ask.client.delete(f"{ask.model.url}/_control")
    assert "usage" in ask("id=y").json()


def test_a_probable_rule_is_the_same_for_the_same_seed(ask: Asker) -> None:
    runs = []
    for _ in range(2):
        ask.model.clear_control()
        rule = {"probability": 0.3, "fault": {"name": "status", "status": 500}}
        ask.client.post(f"{ask.model.url}/_control", json={"seed": 5, "rules": [rule]})
        runs.append([ask("").status_code for _ in range(30)])
    assert runs[0] == runs[1]
    assert 2 <= runs[0].count(500) <= 18


@pytest.mark.parametrize(
    "text",
    [
        "[[sim tokens]]",
        "[[sim tokens=many]]",
        "[[sim tokens=-1]]",
        "[[sim tokens=1 tokens=2]]",
        "[[sim colour=red]]",
        "[[sim fault=explode]]",
        "[[sim fault=status:teapot]]",
        "[[sim fault=status:503,how=reset]]",
        "[[sim fault=cut_after:3,how=gently]]",
        "[[sim fault=cut_after:3,how]]",
        "[[sim tokens=3",
    ],
)
def test_a_directive_that_is_not_understood_is_an_error(text: str) -> None:
    with pytest.raises(BadInstructionError):
        parse_directives(text)


@pytest.mark.parametrize(
    "instructions",
    [
        {"rule": []},
        {"rules": [{"fault": {}}]},
        {"rules": [{"fault": "status"}]},
        {"rules": [{"match": {"colour": "red"}, "fault": {"name": "status"}}]},
        {"rules": [{"times": "two", "fault": {"name": "status"}}]},
        {"latency": {"first_ms": 1}},
        {"capacity": {"max_concurrent": 1}, "latency": {"token_ms": -1}},
    ],
)
def test_instructions_that_are_not_understood_change_nothing(ask: Asker, instructions: dict[str, Any]) -> None:
    assert ask.client.post(f"{ask.model.url}/_control", json=instructions).status_code == 400
    with pytest.raises(BadInstructionError):
        ask.model.control(instructions)
    assert ask("").status_code == 200


def test_directives_are_read_from_the_prompt_and_not_by_the_model() -> None:
    text = "날씨 [[sim tokens=60 ttft_ms=1.5 cached=8 id=a]] 알려 줘 [[sim fault=cut_after:40,how=end,times=1]]"
    directives = parse_directives(text)
    assert (directives.tokens, directives.ttft_ms, directives.cached, directives.id) == (60, 1.5, 8, "a")
    assert directives.faults == (Fault("cut_after", tokens=40, how="end", times=1),)
    assert without_directives(text) == "날씨 알려 줘"


def test_a_fault_of_one_request_leaves_those_beside_it_alone(ask: Asker) -> None:
    statuses: dict[int, int] = {}

    def one(number: int) -> None:
        fault = "fault=status:503" if number % 2 else ""
        statuses[number] = ask(f"id={number} token_ms=1 {fault}").status_code

    threads = [threading.Thread(target=one, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == {number: 503 if number % 2 else 200 for number in range(12)}
