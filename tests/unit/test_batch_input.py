"""Inputs of batches: how they are cut into lines and ranges, and what is wrong with them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naru import batch_input
from naru.batch_input import LineError, check, input_of, lines_of, parse_line, read_plan, split, write_plan
from tests.batches import OMNI, line

MODELS = {OMNI, "gpt-4.1"}


def pieces(content: bytes, cuts: list[int]) -> list[bytes]:
    """The content in chunks that end at these places."""
    ends = sorted({min(cut, len(content)) for cut in cuts} | {len(content)})
    return [content[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


@given(st.binary(max_size=200).map(lambda b: b.replace(b"a", b"\n")), st.lists(st.integers(0, 200), max_size=10))
def test_lines_do_not_depend_on_where_chunks_end(content: bytes, cuts: list[int]) -> None:
    """Each line is where it is said to be, none is blank, and nothing but line ends is between them."""
    found = list(split(pieces(content, cuts)))
    assert found == list(split([content]))
    assert all(content[offset : offset + len(text)] == text and text.strip() for offset, _, text in found)
    numbers = [number for _, number, _ in found]
    by_python = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert numbers == [i for i, text in enumerate(by_python, 1) if text.strip()]


@given(st.integers(1, 40), st.integers(1, 7), st.booleans())
def test_ranges_hold_every_line_once(count: int, range_lines: int, windows: bool) -> None:
    """Cut out by its bytes, each range has its lines again."""
    end = b"\r\n" if windows else b"\n"
    content = end.join(line(f"c{i}", "가" * i).encode() for i in range(count)) + end * 2
    found = check([content], models=MODELS, range_lines=range_lines)
    assert (found.errors, found.lines, found.model) == ([], count, OMNI)
    plan = read_plan(write_plan(found.ranges))
    assert plan == found.ranges
    requests = [
        (index, parse_line(text).custom_id)
        for of in plan
        for index, text in lines_of(content[of.offset : of.offset + of.length], of)
    ]
    assert requests == [(i, f"c{i}") for i in range(count)]
    assert max(of.count for of in plan) <= range_lines


def test_a_range_is_small_enough_to_be_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_input, "RANGE_BYTES", 1000)
    content = "\n".join(line(f"c{i}", "x" * 300) for i in range(10)).encode()
    found = check([content], models=MODELS, range_lines=100)
    assert len(found.ranges) > 3
    assert all(of.length <= 1000 for of in found.ranges)


def test_a_line_that_never_ends_is_not_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_input, "MAX_LINE_BYTES", 3000)
    chunks = [line("a").encode() + b"\n", *[b"x" * 2000] * 50, b"\n" + line("b").encode()]
    found = check(chunks, models=MODELS, range_lines=10)
    assert [(error["code"], error["line"]) for error in found.errors] == [("invalid_json_line", 2)]
    assert [number for _, number, _ in split(chunks)] == [1, 2, 3]


def test_too_many_lines_and_too_many_errors_end_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_input, "MAX_LINES", 5)
    found = check([("\n".join(line(str(i)) for i in range(9))).encode()], models=MODELS, range_lines=2)
    assert [error["code"] for error in found.errors] == ["too_many_tasks"]
    assert len(check([b"no\n" * 5000], models=MODELS, range_lines=2).errors) <= 100


@pytest.mark.parametrize(
    ("text", "code", "param"),
    [
        ("[1]", "invalid_json_line", None),
        ("[" * 100_000, "invalid_json_line", None),
        ('{"method": "POST", "url": "/v1/chat/completions", "body": {}}', "missing_required_parameter", "custom_id"),
        (line(""), "invalid_custom_id", "custom_id"),
        (line("a").replace('"a"', '"\\ud800"'), "invalid_custom_id", "custom_id"),
        (line("a").replace('"a"', "7"), "invalid_custom_id", "custom_id"),
        (line("a").replace("POST", "GET"), "invalid_method", "method"),
        (line("a").replace("/v1/chat/completions", "/v1/embeddings"), "url_mismatch", "url"),
        (json.dumps({**json.loads(line("a")), "body": []}), "invalid_body", "body"),
        (line("a", model=7), "missing_required_parameter", "body.model"),
    ],
)
def test_a_bad_line_is_told_in_openais_words(text: str, code: str, param: Any) -> None:
    with pytest.raises(LineError) as bad:
        parse_line(text.encode())
    assert (bad.value.code, bad.value.param) == (code, param)


def test_a_model_that_is_not_there_is_told_once() -> None:
    content = "\n".join(line(f"c{i}", model="gpt-9") for i in range(3)).encode()
    assert check([content], models=MODELS, range_lines=10).errors[0]["code"] == "model_not_found"


def test_requests_that_come_with_a_batch_are_lines_of_an_input() -> None:
    content = input_of([("하나", {"model": OMNI, "messages": []}), ("둘", {"model": OMNI, "messages": []})])
    assert [parse_line(text).custom_id for _, _, text in split([content])] == ["하나", "둘"]
