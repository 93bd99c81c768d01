"""One user, one name: whoever looks the same is the same, in limits, rows and reports."""

from __future__ import annotations

import json
import sys
import unicodedata
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naru.end_users import kept_name, limited_name
from naru.errors import InvalidRequestError
from naru.usage_query import parse_requests, parse_usage
from naru.wire import parse_chat_request

SEOUL = ZoneInfo("Asia/Seoul")
HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "안녕하세요"}]}

NOBODY = [
    None,
    "",
    " ",
    "   ",
    "\u3000",
    "\u00a0",
    "\u200b",
    "\u200b \ufeff",
    "\u00ad",
    "\u2060",
    "\u3164",
    "\u2800",
    "\t",
    "\r\n",
    "\ufe0f",
]

# Pairs of a name and another spelling of it that nobody can tell from it.
SAME = [
    ("김철수", unicodedata.normalize("NFD", "김철수")),
    ("José", "Jose\u0301"),
    ("Åse", "\u212bse"),  # the sign for a unit of length
    ("kim", " kim"),
    ("kim", "kim\u3000"),
    ("kim", "\u00a0kim "),
    ("kim lee", "kim  lee"),
    ("kim lee", "kim\u00a0lee"),
    ("kim lee", "kim\u2003\u2009lee"),
    ("kim", "k\u200bim"),
    ("kim", "kim\u200d"),
    ("kim", "\ufeffkim"),
    ("kim", "ki\u00adm"),
    ("kim", "kim\u2060"),
    ("kim", "kim\u3164"),
    ("kim", "kim\u034f"),
    ("kim", "kim\ufe0f"),
    ("kim", "kim\U000e0061"),
    ("ạ\u0301", "\u00e1\u0323"),  # marks in another order
]

# Pairs that can be told apart, and share their limits.
ALIKE = [
    ("kim", "KIM"),
    ("kim", "Kim"),
    ("straße", "STRASSE"),
    ("σίσυφος", "ΣΊΣΥΦΟΣ"),
    ("kim", "\uff4b\uff49\uff4d"),  # full width
    ("user1", "user\u2460"),
    ("fi", "\ufb01"),
    ("kim@example.com", "Kim@Example.COM"),
]

OTHERS = [
    ("kim", "kin"),
    ("kim lee", "kimlee"),
    ("user-1", "user_1"),
    ("kim", "кim"),
    ("1", "2"),
    ("김", "킴"),
    ("a.b", "ab"),
]


def named(**fields: Any) -> str | None:
    return parse_chat_request(json.dumps(HELLO | fields))[1].end_user


@pytest.mark.parametrize("name", NOBODY, ids=ascii)
def test_a_name_that_names_nobody_is_absent(name: str | None) -> None:
    assert named(user=name) is None
    assert named(safety_identifier=name) is None
    assert named(safety_identifier=name, user="kim") == "kim"
    assert named(safety_identifier="lee", user=name) == "lee"


@pytest.mark.parametrize(("name", "spelling"), SAME, ids=ascii)
def test_what_looks_the_same_is_one_user(name: str, spelling: str) -> None:
    assert name != spelling
    assert named(user=spelling) == named(safety_identifier=spelling) == named(user=name) == kept_name(name)
    assert limited_name(kept_name(spelling) or "") == limited_name(kept_name(name) or "")


@pytest.mark.parametrize(("name", "other"), ALIKE, ids=ascii)
def test_case_and_style_are_kept_and_make_no_new_limits(name: str, other: str) -> None:
    """Firebase's ids differ in case; people's names, typed again, do not."""
    assert named(user=other) == other != named(user=name)
    assert limited_name(other) == limited_name(name)


@pytest.mark.parametrize(("name", "other"), OTHERS, ids=ascii)
def test_others_are_others(name: str, other: str) -> None:
    assert kept_name(name) != kept_name(other)
    assert limited_name(name) != limited_name(other)


@pytest.mark.parametrize(
    "name", ["김철수", "phone-1", "user_01HXYZ", "k3Jd9Xf2aBcQ", "kim@example.com", "👩 💻", "a" * 512]
)
def test_a_usual_name_stays_as_it_is(name: str) -> None:
    assert named(user=name) == name


@pytest.mark.parametrize("name", [5, 1.5, True, [], {}, ["kim"], "x" * 513, "a\nb", "a\x00", "\u202ekim"], ids=ascii)
def test_what_is_no_name_is_refused(name: Any) -> None:
    for field in ("user", "safety_identifier"):
        with pytest.raises(InvalidRequestError) as error:
            named(**{field: name})
        assert error.value.param == field


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
    | st.text(st.sampled_from(" \u3000\u200b\u0301\u0323aáßA\u1100\u1161가\ufb01\u3164"), max_size=12)
)
def test_a_name_that_is_kept_is_not_changed_again(name: str) -> None:
    kept = kept_name(name)
    assert kept_name(kept) == kept
    if kept is not None:
        assert kept == kept.strip()
        assert limited_name(limited_name(kept)) == limited_name(kept)


@pytest.mark.slow
def test_no_character_of_any_kind_is_two_names() -> None:
    for code in range(sys.maxunicode + 1):
        if not 0xD800 <= code <= 0xDFFF:
            kept = kept_name(f"a{chr(code)}b")
            assert kept is not None
            assert kept_name(kept) == kept


def test_usage_finds_a_user_under_any_spelling_and_rows_that_are_older_under_the_one_that_was_sent() -> None:
    for parse in (parse_usage, parse_requests):
        asked = parse({"end_user": [" kim  lee"]}, SEOUL, now_ms=1_800_000_000_000)
        assert asked.filters.end_users == {"kim lee", " kim  lee"}
