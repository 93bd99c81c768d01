"""The Files API: what a client may send; with the store behind it, it is in tests/e2e."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from naru.errors import InvalidRequestError
from naru.file_store import File
from naru.files_api import Files

KEY = "key_0123456789ab"


class _Objects:
    """S3, where it is not asked for anything that was put there."""

    def put(self, name: str, content: bytes) -> None:
        self.last = content

    def put_url(self, name: str, *, size_bytes: int) -> str:
        return f"https://example.com/{name}?{size_bytes}"


class _Pending:
    """What a key may begin, without a limit."""

    def begin(self, key_id: str, file_id: str, size_bytes: int, *, now_s: int, until_s: int) -> None:
        assert now_s < until_s


class _Store:
    """The files that were made."""

    def __init__(self) -> None:
        self.objects = _Objects()
        self.pending = _Pending()
        self.made: list[File] = []

    def put(self, file: File) -> None:
        self.made.append(file)


def upload(store: _Store, fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """A form of these fields, of which a tuple is a file: its name and its content."""
    parts = [(name, value if isinstance(value, tuple) else (None, value)) for name, value in fields]
    form = httpx.Request("POST", "http://naru", files=parts)
    return Files(store).create(KEY, form.read(), form.headers["content-type"])  # type: ignore[arg-type]


FILE = ("file", ("a.jsonl", b"{}"))
PURPOSE = ("purpose", "batch")
ANCHOR = ("expires_after[anchor]", "created_at")
HOUR = ("expires_after[seconds]", "3600")


@pytest.mark.parametrize(
    "fields", [[FILE, PURPOSE], [PURPOSE, FILE], [PURPOSE, FILE, ANCHOR, HOUR], [("file", ("질문", b"")), PURPOSE]]
)
def test_a_form_as_sdks_send_it_makes_a_file(fields: list[tuple[str, Any]]) -> None:
    store = _Store()
    made = upload(store, fields)
    assert (made["object"], made["purpose"]) == ("file", "batch")
    (file,) = store.made
    assert store.objects.last == dict(fields)["file"][1]
    assert (file.expires_s - file.created_s == 3600) == (HOUR in fields)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        # Of OpenAI's own, as its documentation does not have them
        ([FILE, PURPOSE, ("expires_after", "3600")], "expires_after", "unknown_parameter"),
        ([FILE, PURPOSE, ("expires_after", '{"anchor":"created_at","seconds":3600}')], "expires_after", "unknown_parameter"),
        ([FILE, PURPOSE, ("expires_after.anchor", "created_at")], "expires_after.anchor", "unknown_parameter"),
        ([FILE, PURPOSE, ("expires_after[days]", "3")], "expires_after[days]", "unknown_parameter"),
        ([FILE, PURPOSE, ("expires_after[]", "3600")], "expires_after[]", "unknown_parameter"),
        ([FILE, PURPOSE, ("expires_at", "3600")], "expires_at", "unknown_parameter"),
        ([FILE, PURPOSE, ("x", "1")], "x", "unknown_parameter"),
        ([FILE, PURPOSE, ("Purpose", "batch")], "Purpose", "unknown_parameter"),
        ([FILE, PURPOSE, ("file[]", ("b.jsonl", b"{}"))], "file[]", "unknown_parameter"),
        # What has to be there
        ([PURPOSE], "file", "missing_required_parameter"),
        ([FILE], "purpose", "missing_required_parameter"),
        # Twice
        ([FILE, FILE, PURPOSE], "file", "duplicate_parameter"),
        ([FILE, PURPOSE, PURPOSE], "purpose", "duplicate_parameter"),
        ([FILE, PURPOSE, ANCHOR, HOUR, HOUR], "expires_after[seconds]", "duplicate_parameter"),
        # Of another kind
        ([("file", "{}"), PURPOSE], "file", "invalid_type"),
        ([("file", ("", b"{}")), PURPOSE], "file", "invalid_type"),
        ([FILE, ("purpose", ("a.txt", b"batch"))], "purpose", "invalid_type"),
        ([FILE, PURPOSE, ANCHOR, ("expires_after[seconds]", ("a.txt", b"3600"))], "expires_after[seconds]", "invalid_type"),
        # Values
        ([FILE, ("purpose", "")], "purpose", "invalid_value"),
        ([FILE, ("purpose", " batch")], "purpose", "invalid_value"),
        ([FILE, ("purpose", "fine-tune")], "purpose", "invalid_value"),
        ([("file", ("n" * 256, b"{}")), PURPOSE], "filename", "invalid_value"),
        ([FILE, PURPOSE, HOUR], "expires_after", "invalid_value"),
        ([FILE, PURPOSE, ANCHOR], "expires_after", "invalid_value"),
        ([FILE, PURPOSE, ("expires_after[anchor]", "now"), HOUR], "expires_after", "invalid_value"),
        ([FILE, PURPOSE, ("expires_after[anchor]", ""), HOUR], "expires_after", "invalid_value"),
        ([FILE, PURPOSE, ANCHOR, ("expires_after[seconds]", "2592001")], "expires_after", "invalid_value"),
        ([FILE, PURPOSE, ANCHOR, ("expires_after[seconds]", "0")], "expires_after", "invalid_value"),
    ],
)  # fmt: skip
def test_a_form_that_says_something_else_is_refused(fields: list[tuple[str, Any]], param: str, code: str) -> None:
    store = _Store()
    with pytest.raises(InvalidRequestError) as refused:
        upload(store, fields)
    assert (refused.value.param, refused.value.code) == (param, code)
    assert store.made == []


def test_who_sends_a_flat_life_is_told_the_two_fields() -> None:
    with pytest.raises(InvalidRequestError, match=r"expires_after\[anchor\].*expires_after\[seconds\]"):
        upload(_Store(), [FILE, PURPOSE, ("expires_after", "3600")])


@pytest.mark.parametrize(
    "seconds", [pytest.param("9" * 5000, id="long"), "\uff19\uff19\uff19\uff19", "²", "3600.5", "-3600", "", "3599"]
)
def test_a_life_that_is_no_number_of_seconds_is_refused(seconds: str) -> None:
    """The first is more digits than Python reads, the second a number that is none in ASCII."""
    with pytest.raises(InvalidRequestError, match="expires_after"):
        upload(_Store(), [FILE, PURPOSE, ANCHOR, ("expires_after[seconds]", seconds)])


UPLOAD: dict[str, Any] = {"bytes": 10, "filename": "a.jsonl", "purpose": "batch"}


@pytest.mark.parametrize(
    "more",
    [{}, {"mime_type": "application/jsonl"}, {"mime_type": None}, {"expires_after": None}, {"expires_after": {"anchor": "created_at", "seconds": 3600}}],
)  # fmt: skip
def test_an_upload_is_begun(more: dict[str, Any]) -> None:
    store = _Store()
    made = Files(store).begin_upload(KEY, json.dumps(UPLOAD | more))  # type: ignore[arg-type]
    assert (made["object"], made["bytes"]) == ("upload", 10)
    assert [file.uploaded for file in store.made] == [False]


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"expires_after[seconds]": 3600}, "expires_after[seconds]", "unknown_parameter"),
        ({"expiresAfter": {}}, "expiresAfter", "unknown_parameter"),
        ({"x" * 1000: 1}, "x" * 64, "unknown_parameter"),
        ({"expires_after": 3600}, "expires_after", "invalid_type"),
        ({"expires_after": "3600"}, "expires_after", "invalid_type"),
        ({"expires_after": []}, "expires_after", "invalid_type"),
        ({"expires_after": {}}, "expires_after", "invalid_value"),
        ({"expires_after": {"anchor": "created_at", "seconds": "3600"}}, "expires_after", "invalid_value"),
        ({"expires_after": {"anchor": "created_at", "seconds": 3600.0}}, "expires_after", "invalid_value"),
        ({"expires_after": {"anchor": "created_at", "seconds": True}}, "expires_after", "invalid_value"),
        ({"expires_after": {"anchor": "created_at", "seconds": 3600, "days": 1}}, "expires_after.days", "unknown_parameter"),
        ({"bytes": None}, "bytes", "missing_required_parameter"),
        ({"filename": None}, "filename", "missing_required_parameter"),
        ({"purpose": None}, "purpose", "missing_required_parameter"),
        ({"bytes": "10"}, "bytes", "invalid_value"),
        ({"bytes": True}, "bytes", "invalid_value"),
        ({"bytes": 0}, "bytes", "invalid_value"),
        ({"bytes": 200 * 10**6 + 1}, "bytes", "invalid_value"),
        ({"filename": 5}, "filename", "invalid_type"),
        ({"filename": ""}, "filename", "invalid_value"),
        ({"filename": "n" * 256}, "filename", "invalid_value"),
        ({"mime_type": 5}, "mime_type", "invalid_type"),
        ({"purpose": ["batch"]}, "purpose", "invalid_value"),
        ({"purpose": {"a": [1] * 10_000}}, "purpose", "invalid_value"),
    ],
)  # fmt: skip
def test_an_upload_that_says_something_else_is_refused(more: dict[str, Any], param: str, code: str) -> None:
    store = _Store()
    with pytest.raises(InvalidRequestError) as refused:
        Files(store).begin_upload(KEY, json.dumps(UPLOAD | more))  # type: ignore[arg-type]
    assert (refused.value.param, refused.value.code) == (param, code)
    assert len(refused.value.message) < 400
    assert store.made == []
