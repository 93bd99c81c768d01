"""Forms as SDKs send them, and as they should not."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from naru.errors import InvalidRequestError
from naru.multipart import parse_form


def sent(**fields: Any) -> tuple[bytes, str]:
    """What httpx, and with it the SDK, makes of a form."""
    request = httpx.Request("POST", "http://x/", **fields)
    return request.read(), request.headers["content-type"]


@given(
    st.binary(max_size=300),
    st.text(st.characters(codec="utf-8", exclude_characters='"\\\r\n\0'), min_size=1, max_size=20),
)
def test_a_file_arrives_as_it_was_sent(content: bytes, name: str) -> None:
    """Also line ends, zeros and dashes at its edges, and a name in Korean."""
    form = parse_form(
        *sent(data={"purpose": "batch"}, files={"file": (f"{name}.jsonl", b"--\r\n" + content + b"\r\n--")})
    )
    assert form["file"].content == b"--\r\n" + content + b"\r\n--"
    assert form["purpose"].text() == "batch"
    assert form["purpose"].filename is None


def test_the_name_of_a_file_may_be_korean() -> None:
    assert parse_form(*sent(files={"file": ("질문.jsonl", b"")}))["file"].filename == "질문.jsonl"


@pytest.mark.parametrize("fields", [{"data": {"a": ["1", "2"]}}, {"data": {"a": "1"}, "files": {"a": b"2"}}])
def test_a_name_that_comes_twice_is_refused(fields: dict[str, Any]) -> None:
    """Which of the two would count is anybody's guess."""
    with pytest.raises(InvalidRequestError, match="'a' is there twice") as error:
        parse_form(*sent(**({"files": {"f": b""}} | fields)))
    assert error.value.param == "a"


def test_a_field_without_a_name_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="no name"):
        parse_form(*sent(files={"": b"x"}))


@pytest.mark.parametrize(
    "content_type", [None, "", "application/json", "multipart/form-data", "multipart/mixed; boundary=x"]
)
def test_what_is_no_form_is_refused(content_type: str | None) -> None:
    with pytest.raises(InvalidRequestError, match="multipart/form-data"):
        parse_form(b"{}", content_type)


def test_a_form_that_is_cut_off_is_refused() -> None:
    body, content_type = sent(data={"purpose": "batch"}, files={"file": b"x" * 100})
    for length in range(0, len(body) - 4, 7):
        with pytest.raises(InvalidRequestError):
            parse_form(body[:length], content_type)


def test_a_form_of_a_thousand_fields_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="50 fields"):
        parse_form(*sent(data={f"f{i}": "x" for i in range(1000)}, files={"file": b""}))


def test_text_that_is_none_is_refused() -> None:
    body, content_type = sent(data={"purpose": "batch"}, files={"file": b""})
    with pytest.raises(InvalidRequestError, match="UTF-8"):
        parse_form(body.replace(b"batch", b"\xff\xfe..."), content_type)["purpose"].text()
