"""Token bounds are never too low, and estimates never above them."""

from __future__ import annotations

import base64
import json
import sys
import unicodedata
from typing import Any, Literal, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from naru import tokens
from naru.catalog import Tokenizer
from naru.tokens import (
    CompletionCounter,
    Prompt,
    _normalized_bytes,
    estimate,
    upper_bound_completion,
)
from tests.prompts import estimate_prompt, upper_bound_prompt

FAMILIES: list[Tokenizer] = list(get_args(Tokenizer))

TEXTS = st.text(st.sampled_from('가나다 힣ㅋ안녕하세요 abcXYZ 09 .,{}"\n\t漢字😀é㍿ﷺ\u3000\ud800')) | st.text()
PARTS = st.one_of(
    st.builds(lambda t: {"type": "text", "text": t}, TEXTS),
    st.builds(
        lambda u, d: {"type": "image_url", "image_url": {"url": u, "detail": d}},
        st.sampled_from(
            ["https://example.com/a.png", "data:image/png;base64,AAAA", "data:application/pdf;base64,AAAA"]
        ),
        st.sampled_from(["low", "high", "auto", None, 3]),
    ),
    st.just({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
    st.just({"type": "image_url", "image_url": None}),
    TEXTS,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant", "tool"]),
        "content": TEXTS | st.lists(PARTS, max_size=3) | JSON,
    },
    optional={"name": TEXTS, "tool_calls": JSON, "reasoning_content": TEXTS, "anything": JSON},
)
BODIES = st.fixed_dictionaries(
    {"model": st.just("m"), "messages": st.lists(MESSAGES | JSON, max_size=4) | JSON},
    optional={"tools": st.lists(JSON, max_size=3) | JSON, "response_format": JSON, "stop": JSON, "top_k": JSON},
)


def chat(content: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": content}], **fields}


def texts_of(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key, inner in value.items() for text in [key, *texts_of(inner)]]
    return [text for inner in value for text in texts_of(inner)] if isinstance(value, list) else []


FORMS: list[Literal["NFC", "NFKC"]] = ["NFC", "NFKC"]
HAZARDS = st.text(
    st.sampled_from("aeAZ 가각힣ㄱㅏㅋ\u1100\u1161\u11a8\u11ab漢字ぁがパｶﾞ①ﬁﷺ㍿ǟếẶåÅΩK\u0301\u0316\u0323\u0327\u0338\u0345\u05b0\u3099\u309a\u0344\u09be\u0b57\u0cc2\ud800😀")
    | st.characters(codec="utf-16", categories=["M", "L", "S", "Z"]),
    max_size=40,
)  # fmt: skip


def utf8(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


@pytest.mark.slow
def test_no_character_has_more_bytes_than_what_it_decomposes_into() -> None:
    """The step of the proof that Unicode does not promise: composing, which may put any of them together, adds nothing."""
    for composed, decomposed in (("NFC", "NFD"), ("NFKC", "NFKD")):
        for code in range(sys.maxunicode + 1):
            char = chr(code)
            if unicodedata.normalize(composed, char) == char:  # type: ignore[arg-type]
                assert utf8(char) <= utf8(unicodedata.normalize(decomposed, char)), hex(code)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_bound_covers_every_character_in_both_composed_forms() -> None:
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        most = max(utf8(char), *(utf8(unicodedata.normalize(form, char)) for form in FORMS))
        assert most <= max(utf8(char), _normalized_bytes(char)) <= 11 * utf8(char), hex(code)


@pytest.mark.slow
@given(HAZARDS)
@settings(max_examples=500)
def test_the_bound_covers_every_text_in_both_composed_forms(text: str) -> None:
    """Whatever stands beside a character: marks that leave it, letters that join it."""
    for form in FORMS:
        assert _normalized_bytes(text) >= utf8(unicodedata.normalize(form, text))
    for tokenizer in ("claude", "gemini", "unknown"):
        bound = upper_bound_prompt(chat(text, tools=[text]), tokenizer) - upper_bound_prompt(
            chat("", tools=[""]), tokenizer
        )
        assert bound >= 2 * max(utf8(text), *(utf8(unicodedata.normalize(form, text)) for form in FORMS))


@pytest.mark.parametrize("text", ["가나다라마바사아자차카타파하 " * 100, "漢字" * 100, "The quick brown fox " * 100])
def test_the_bound_of_usual_text_is_its_bytes(text: str) -> None:
    assert _normalized_bytes(text) == utf8(text)


@pytest.mark.parametrize("marks", ["\u0301\u0316", "\u0345\u0301", "\u05b0\u0334", "\u3099\u0316"])
def test_no_run_of_marks_is_ever_sorted(monkeypatch: pytest.MonkeyPatch, marks: str) -> None:
    """Sorting takes the square of how many there are, and a client decides that."""
    longest = 0
    normalize = unicodedata.normalize

    def watched(form: Any, text: str) -> str:
        nonlocal longest
        run = 0
        for char in text:
            run = run + 1 if unicodedata.combining(char) else 0
            longest = max(longest, run)
        return normalize(form, text)

    monkeypatch.setattr(unicodedata, "normalize", watched)
    monkeypatch.setattr(unicodedata, "is_normalized", lambda form, text: watched(form, text) == text)
    body = chat("a" + marks * 5_000, tools=[marks * 5_000], x={marks * 5_000: marks * 5_000})
    for tokenizer in FAMILIES:
        assert upper_bound_prompt(body, tokenizer) >= estimate_prompt(body, tokenizer)
    assert longest == 1


def test_a_request_is_walked_through_once_however_many_models_may_serve_it(monkeypatch: pytest.MonkeyPatch) -> None:
    walks = 0

    def walk(body: Any, _walk: Any = tokens._walk) -> Any:
        nonlocal walks
        walks += 1
        return _walk(body)

    monkeypatch.setattr(tokens, "_walk", walk)
    prompt = Prompt(chat("안녕", tools=[{}]))
    for tokenizer in FAMILIES:
        assert prompt.upper_bound(tokenizer) == prompt.upper_bound(tokenizer)
        assert prompt.estimate(tokenizer) == prompt.estimate(tokenizer)
    assert walks == 1


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", FAMILIES)
@given(body=BODIES)
def test_an_estimate_of_a_prompt_is_never_above_its_bound(tokenizer: Tokenizer, body: dict[str, Any]) -> None:
    assert 0 < estimate_prompt(body, tokenizer) <= upper_bound_prompt(body, tokenizer)


@pytest.mark.parametrize("tokenizer", FAMILIES)
@given(text=TEXTS)
def test_an_estimate_of_a_text_is_never_above_its_bytes(tokenizer: Tokenizer, text: str) -> None:
    assert (1 if text else 0) <= estimate(text, tokenizer) <= len(text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("tokenizer", FAMILIES)
@given(value=JSON)
def test_the_bound_covers_every_byte_of_every_text_wherever_it_stands(tokenizer: Tokenizer, value: Any) -> None:
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts_of(value))
    assert upper_bound_prompt(chat("", tools=[value]), tokenizer) >= size
    assert upper_bound_prompt(chat("", response_format=value), tokenizer) >= size
    assert upper_bound_prompt(chat("", some_new_field=value), tokenizer) >= size
    assert upper_bound_prompt(chat(value), tokenizer) >= size
    assert upper_bound_prompt({"messages": [{"role": "assistant", "tool_calls": value}]}, tokenizer) >= size


@pytest.mark.parametrize("tokenizer", FAMILIES)
@given(
    turns=st.lists(st.tuples(st.text("가나다라", max_size=50), st.integers(0, 3)), min_size=1, max_size=6),
    detail=st.sampled_from(["auto", "low"]),
)
def test_the_bound_covers_what_the_simulated_model_bills(
    tokenizer: Tokenizer, turns: list[tuple[str, int]], detail: str
) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": detail}}
    messages = [{"role": "user", "content": [{"type": "text", "text": text}, *[image] * n]} for text, n in turns]
    billed = 3 + sum(4 + (len(text) + 1) // 2 + 765 * n for text, n in turns)
    assert upper_bound_prompt({"messages": messages}, tokenizer) >= billed


@pytest.mark.parametrize("tokenizer", ["claude", "gemini", "unknown"])
def test_a_tokenizer_that_rewrites_text_first_cannot_make_more_of_it_than_the_bound(tokenizer: Tokenizer) -> None:
    ligature = "\ufdfa"  # three bytes that NFKC turns into 33
    assert len(unicodedata.normalize("NFKC", ligature).encode()) == 33
    assert upper_bound_prompt(chat(ligature * 1000), tokenizer) >= 33_000
    assert upper_bound_prompt(chat("", tools=[{"description": ligature * 1000}]), tokenizer) >= 33_000
    assert upper_bound_prompt(chat("", response_format={"x": ligature * 1000}), tokenizer) >= 33_000
    assert upper_bound_prompt(chat(ligature * 1000), "o200k") < 4_000


@pytest.mark.parametrize(
    ("tokenizer", "detail", "dearest"),
    [
        ("cl100k", "high", 1_445),
        ("cl100k", "low", 1_445),
        ("o200k", "high", 48_169),
        ("o200k", "low", 2_833),
        ("claude", "low", 4_784),
        ("gemini", "high", 6_192),
        ("hyperclova", "high", 6_400),
        ("unknown", "high", 48_169),
    ],
)
def test_an_image_counts_as_the_dearest_that_its_family_documents(
    tokenizer: Tokenizer, detail: str, dearest: int
) -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.jpg", "detail": detail}}
    extra = upper_bound_prompt(chat([image]), tokenizer) - upper_bound_prompt(chat([]), tokenizer)
    assert dearest <= extra <= dearest + 300


def test_a_caller_who_knows_the_model_can_state_what_an_image_costs() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.jpg"}}
    bound = upper_bound_prompt(chat([image, image]), "o200k", image_tokens=1_445)
    assert 2 * 1_445 < bound < 2 * 1_445 + 200


def test_the_base64_of_an_image_is_not_taken_for_text() -> None:
    url = "data:image/jpeg;base64," + base64.b64encode(bytes(300_000)).decode()
    assert upper_bound_prompt(chat([{"type": "image_url", "image_url": {"url": url}}]), "claude") < 6_000


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:application/pdf;base64,AAAA"}},
        {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}},
        {"type": "document", "source": {"type": "url", "url": "https://example.com/a.pdf"}},
        {"type": "image", "source": {"type": "file", "file_id": "file-1"}},
    ],
)
def test_what_may_be_longer_than_its_bytes_takes_the_whole_context_window(part: dict[str, Any]) -> None:
    # A film behind a short link, a thousand pages in a small file.
    assert upper_bound_prompt(chat([part]), "gemini") > 10**8
    assert estimate_prompt(chat([part]), "gemini") < 1_000


def test_audio_counts_by_its_bytes() -> None:
    audio = {"type": "input_audio", "input_audio": {"data": "A" * 100_000, "format": "mp3"}}
    assert upper_bound_prompt(chat([audio]), "o200k") > 100_000


def test_bookkeeping_fields_cost_nothing() -> None:
    fields = {"metadata": {"k": "v" * 500}, "user": "u" * 100, "logit_bias": {"1": 1}, "temperature": 1, "stop": ["x"]}
    assert upper_bound_prompt(chat("안녕", **fields), "o200k") == upper_bound_prompt(chat("안녕"), "o200k")


def test_a_korean_prompt_is_bound_by_three_tokens_a_syllable_and_little_more() -> None:
    bound = upper_bound_prompt(chat("나루" * 1000), "hyperclova")
    assert 6_000 <= bound <= 6_150


def test_the_first_tool_brings_the_provider_s_own_instructions() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert upper_bound_prompt(chat("", tools=[tool]), "claude") >= 530 + len(json.dumps(tool))
    assert upper_bound_prompt(chat("", tools=[]), "claude") == upper_bound_prompt(chat(""), "claude")


def test_every_choice_may_use_the_whole_output_limit() -> None:
    assert upper_bound_completion({}, output_limit=100) == 100
    assert upper_bound_completion({"n": None}, output_limit=100) == 100
    assert upper_bound_completion({"n": 3}, output_limit=100) == 300


def test_a_wrong_prediction_is_billed_as_output() -> None:
    prediction = {"type": "content", "content": "가" * 100}
    assert upper_bound_completion({"prediction": prediction, "n": 2}, output_limit=10) >= 2 * (10 + 300)


@pytest.mark.parametrize(
    ("text", "tokenizer", "tokens"),
    [
        ("", "o200k", 0),
        ("가" * 1000, "o200k", 550),
        ("가" * 1000, "cl100k", 1050),
        ("가" * 1000, "hyperclova", 550),
        ("가", "o200k", 1),
        ("a" * 1000, "cl100k", 250),
        ("ㅋ" * 100, "o200k", 55),
    ],
)
def test_an_estimate_counts_characters_by_class(text: str, tokenizer: Tokenizer, tokens: int) -> None:
    assert estimate(text, tokenizer) == tokens


def delta(index: int, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": fields}]}


def test_a_stream_is_counted_as_the_texts_it_adds_up_to() -> None:
    counter = CompletionCounter("hyperclova")
    for chunk in ["안녕", "하세", "요. ", "naru"]:
        counter.feed(delta(0, content=chunk))
    counter.feed(delta(1, refusal="죄송합니다"))
    assert counter.completion_tokens == estimate("안녕하세요. naru", "hyperclova") + estimate(
        "죄송합니다", "hyperclova"
    )
    assert counter.reasoning_tokens == 0


@pytest.mark.parametrize("field", ["reasoning_content", "thinking_content", "reasoning"])
def test_reasoning_is_part_of_the_completion_and_stands_apart(field: str) -> None:
    counter = CompletionCounter("hyperclova")
    counter.feed(delta(0, **{field: "생각" * 50}))
    counter.feed(delta(0, content="답" * 20))
    assert (counter.completion_tokens, counter.reasoning_tokens) == (66, 55)


def test_tool_calls_count_by_name_and_arguments() -> None:
    counter = CompletionCounter("cl100k")
    counter.feed(delta(0, tool_calls=[{"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": ""}}]))
    counter.feed(delta(0, tool_calls=[{"index": 0, "function": {"arguments": '{"city":"서울"}'}}]))
    counter.feed(delta(0, function_call={"name": "f"}))
    assert counter.completion_tokens == estimate('weather{"city":"서울"}f', "cl100k")


def test_a_json_answer_can_be_counted_too() -> None:
    counter = CompletionCounter("o200k")
    counter.feed({"choices": [{"index": 0, "message": {"role": "assistant", "content": "가" * 100}}]})
    assert counter.completion_tokens == 55


@given(
    st.dictionaries(st.sampled_from(["choices", "x"]), JSON)
    | st.builds(lambda v: {"choices": [{"delta": v, "index": v}]}, JSON)
)
def test_a_chunk_of_any_shape_can_be_fed(chunk: dict[str, Any]) -> None:
    counter = CompletionCounter("unknown")
    counter.feed(chunk)
    assert counter.completion_tokens >= counter.reasoning_tokens >= 0
