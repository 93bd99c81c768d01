"""Bodies as clients, proxies and tools send them: compressed, marked, in another encoding, or not JSON at all."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from typing import Any

import pytest
from aws_lambda_powertools.utilities.data_classes import APIGatewayProxyEvent

from naru.errors import InvalidRequestError, RequestTooLargeError, UnsupportedMediaTypeError
from naru.http_api import body_chars, json_body, raw_body
from naru.wire import MAX_BODY_BYTES, parse_chat_request, parse_json_object

HELLO = {"model": "m", "messages": [{"role": "user", "content": "안녕하세요"}]}
TEXT = json.dumps(HELLO, ensure_ascii=False)
BYTES = TEXT.encode()


def packed(body: bytes, level: int = 9) -> bytes:
    """The same bytes at any time: gzip writes the time into its head, and xdist compares the names of tests."""
    return gzip.compress(body, level, mtime=0)


def event(body: str | bytes | None, **headers: str) -> APIGatewayProxyEvent:
    """What API Gateway hands on; bytes as base64."""
    encoded = isinstance(body, bytes)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return APIGatewayProxyEvent(
        {
            "body": base64.b64encode(body).decode() if isinstance(body, bytes) else body,
            "isBase64Encoded": encoded,
            "headers": sent,
            "multiValueHeaders": {name: [value] for name, value in sent.items()},
        }
    )


def bare_deflate(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


# ── Compressed ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("coding", "content"),
    [
        ("gzip", packed(BYTES)),
        ("GZip", packed(BYTES)),
        ("x-gzip", packed(BYTES)),
        (" gzip ", packed(BYTES, 1)),
        ("identity, gzip", packed(BYTES)),
        ("gzip", packed(BYTES[:20]) + packed(BYTES[20:])),
        ("gzip", packed(b"\xef\xbb\xbf" + BYTES)),
        ("deflate", zlib.compress(BYTES)),
        ("deflate", zlib.compress(BYTES, 0)),
        ("deflate", bare_deflate(BYTES)),
        ("identity", BYTES),
        ("", BYTES),
        ("gzip", BYTES),  # a proxy has decompressed it and left the header
    ],
)
def test_a_compressed_body_is_understood(coding: str, content: bytes) -> None:
    sent = event(content, Content_Encoding=coding, Content_Type="application/json")
    assert parse_chat_request(json_body(sent))[0] == HELLO


@pytest.mark.parametrize("coding", ["gzip", "deflate", "identity", ""])
def test_a_body_that_api_gateway_has_decompressed_is_understood(coding: str) -> None:
    """It does so by itself, and hands on text."""
    assert parse_chat_request(json_body(event(TEXT, Content_Encoding=coding)))[0] == HELLO


@pytest.mark.parametrize(
    "coding", ["br", "zstd", "compress", "gzip, gzip", "deflate, gzip", "aws-chunked", "x" * 5_000]
)
@pytest.mark.parametrize("body", [packed(BYTES), TEXT])
def test_other_codings_are_named_with_those_that_serve(coding: str, body: str | bytes) -> None:
    with pytest.raises(UnsupportedMediaTypeError, match="gzip or deflate") as refused:
        json_body(event(body, Content_Encoding=coding))
    assert (refused.value.http_status, refused.value.headers) == (415, {"Accept-Encoding": "gzip, deflate, identity"})
    assert len(refused.value.message) < 250


@pytest.mark.parametrize(
    ("coding", "content"),
    [
        ("gzip", packed(BYTES)[:-9]),
        ("gzip", packed(BYTES)[:5]),
        ("gzip", b"\x1f\x8b" + b"x" * 100),
        ("gzip", packed(BYTES) + b"and more"),
        ("gzip", b"not compressed"),
        ("deflate", zlib.compress(BYTES)[:-6]),
        ("deflate", b"\x00" * 50),
        ("gzip", packed(b"") * 100),
    ],
)
def test_what_is_not_what_its_header_says_is_refused(coding: str, content: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="Content-Encoding says"):
        json_body(event(content, Content_Encoding=coding))


def test_compressed_bytes_that_were_taken_for_text_are_named() -> None:
    mangled = packed(BYTES).decode("utf-8", "replace")
    with pytest.raises(InvalidRequestError, match="without Content-Encoding"):
        json_body(event(mangled, Content_Encoding="gzip"))


def test_a_compressed_body_without_the_header_is_named() -> None:
    with pytest.raises(InvalidRequestError, match="Content-Encoding: gzip"):
        parse_json_object(json_body(event(packed(BYTES))))


@pytest.mark.parametrize("size", [MAX_BODY_BYTES, MAX_BODY_BYTES + 1])
@pytest.mark.parametrize("pack", [packed, zlib.compress, bare_deflate])
def test_what_a_body_may_become_has_a_bound(size: int, pack: Any) -> None:
    sent = event(pack(b" " * size), Content_Encoding="gzip" if pack is packed else "deflate")
    if size <= MAX_BODY_BYTES:
        assert len(raw_body(sent) or "") == size
    else:
        with pytest.raises(RequestTooLargeError, match="6 MiB"):
            raw_body(sent)


def test_a_compressed_body_counts_as_long_before_it_is_looked_at() -> None:
    assert body_chars(event(packed(BYTES), Content_Encoding="gzip")) == MAX_BODY_BYTES
    assert body_chars(event(TEXT, Content_Encoding="identity")) == body_chars(event(TEXT)) == len(TEXT)
    assert body_chars(event(None)) == 0


# ── Marks, encodings, types ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("body", ["\ufeff" + TEXT, b"\xef\xbb\xbf" + BYTES, "\ufeff \n" + TEXT, f"  {TEXT}\r\n"])
def test_a_byte_order_mark_and_blanks_are_understood(body: str | bytes) -> None:
    assert parse_chat_request(json_body(event(body)))[0] == HELLO


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("as_text", [False, True])
def test_utf_16_and_32_are_named(encoding: str, as_text: bool) -> None:
    content = json.dumps(HELLO).encode(encoding)
    body = content.decode("utf-8", "replace") if as_text else content
    with pytest.raises(InvalidRequestError, match="UTF-8") as refused:
        parse_json_object(body)
    assert "UTF-16 or UTF-32" in refused.value.message


@pytest.mark.parametrize("encoding", ["euc-kr", "cp949", "iso-8859-1", "shift_jis"])
def test_text_in_another_charset_is_refused_and_not_guessed(encoding: str) -> None:
    content = TEXT.encode(encoding, "replace")
    body = content.decode("utf-8", "replace")  # as API Gateway hands it on
    if body.isascii():
        body += "é"
    with pytest.raises(UnsupportedMediaTypeError, match=f"says '{encoding}'"):
        json_body(event(body, Content_Type=f"application/json; charset={encoding}"))
    with pytest.raises(InvalidRequestError):
        parse_json_object("안녕".encode("euc-kr"))


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json; charset=utf-8",
        'application/json; charset="UTF-8"',
        "application/json;charset=utf8",
        "application/json",
        "APPLICATION/JSON",
        "application/x-www-form-urlencoded",  # curl -d
        "text/plain;charset=UTF-8",  # fetch with a string
        "application/vnd.api+json",
        "",
        "nonsense",
    ],
)
def test_json_is_understood_whatever_the_type_says(content_type: str) -> None:
    assert parse_chat_request(json_body(event(TEXT, Content_Type=content_type)))[0] == HELLO


def test_ascii_is_the_same_in_every_charset() -> None:
    body = json.dumps(HELLO)
    assert json_body(event(body, Content_Type="application/json; charset=euc-kr")) == body


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/x-www-form-urlencoded", "model=m&messages=%5B%5D"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--x--'),
    ],
)
def test_a_form_is_named(content_type: str, body: str | bytes) -> None:
    with pytest.raises(UnsupportedMediaTypeError, match=r"is a form .* Send a JSON object") as refused:
        json_body(event(body, Content_Type=content_type))
    assert refused.value.http_status == 415


@pytest.mark.parametrize("body", [None, "", " ", "\n", "\ufeff", b"", b"\xef\xbb\xbf", "\ufeff\n"])
@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded"])
def test_no_body_is_named(body: str | bytes | None, content_type: str) -> None:
    if body and "form" in content_type:
        return
    with pytest.raises(InvalidRequestError, match="no body"):
        parse_json_object(json_body(event(body, Content_Type=content_type)))


# ── Not JSON ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"model": "m",}', "line 1, column 14: there is a comma before the closing '}'"),
        ('{"model": "m",\n}', "there is a comma before the closing '}'"),
        ('{"messages": [1, 2, ]}', "there is a comma before the closing ']'"),
        ("{'model': 'm'}", "strings and names take double quotes"),
        ("{\"model\": 'm'}", "strings and names take double quotes"),
        ('{"model": "m"', "it ends before its last bracket is closed"),
        ("{", "it ends before its last bracket is closed"),
        ('{"model": "m" "n": 1}', "line 1, column 15: check quotes and commas"),
        ('{"model": "m"} {', "line 1, column 16"),
        ('{"model":\n "a\nb"}', "line 2"),
        ("model=m", "line 1, column 1"),
        ("<html>", "line 1, column 1"),
        ('{"n": NaN}', "NaN"),
        ('{"n": Infinity}', "Infinity"),
        (f'{{"n": {"1" * 5_000}}}', "too many digits"),
        ('{"n": 1e999}', "too large"),
        ("[]", "and not an array"),
        ("null", "and not null"),
        ('"text"', "and not a string"),
        ("1", "and not an integer"),
        ("true", "and not a boolean"),
    ],
)
def test_what_is_no_json_object_is_refused_with_the_place_and_the_usual_reason(text: str, said: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_json_object(text)
    assert said in refused.value.message
    assert (refused.value.http_status, len(refused.value.message) < 300) == (400, True)


# ── Too many ───────────────────────────────────────────────────────────────────────────────────────────────


def part(i: int) -> dict[str, str]:
    return {"type": "text", "text": str(i)}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({f"f{i}": 1 for i in range(300)}, None, "object_above_max_properties"),
        ({"messages": [{"role": "user", "content": "a"}] * 4_097}, "messages", "array_above_max_length"),
        ({"messages": [1] * 4_097}, "messages", "array_above_max_length"),
        ({"messages": [{"role": "user", "content": "a", **{f"f{i}": 1 for i in range(255)}}]}, "messages[0]", "object_above_max_properties"),
        ({"messages": [{"role": "user", "content": [part(i) for i in range(4_097)]}]}, "messages[0].content", "array_above_max_length"),
        ({"messages": [{"role": "user", "content": [part(1)] * 2_000}] * 3}, "messages[2].content", "array_above_max_length"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}] * 4_097}]}, "messages[0].tool_calls", "array_above_max_length"),
        ({"tools": [1] * 1_025}, "tools", "array_above_max_length"),
        ({"functions": [1] * 1_025}, "functions", "array_above_max_length"),
        ({"stop": ["x"] * 17}, "stop", "array_above_max_length"),
        ({"metadata": {f"k{i}": "v" for i in range(65)}}, "metadata", "object_above_max_properties"),
        ({"logit_bias": {str(i): 1 for i in range(4_097)}}, "logit_bias", "object_above_max_properties"),
    ],
)  # fmt: skip
def test_more_of_anything_than_is_looked_at_is_refused(fields: dict[str, Any], param: str | None, code: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"too (long|many)") as refused:
        parse_chat_request(json.dumps(HELLO | fields))
    assert (refused.value.param, refused.value.code) == (param, code)


@pytest.mark.parametrize(
    "fields",
    [
        {f"f{i}": 1 for i in range(254)},
        {"messages": [{"role": "user", "content": "a"}] * 4_096},
        {"messages": [{"role": "user", "content": [part(1)] * 2_048}] * 2},
        {"tools": [{"type": "function"}] * 1_024},
        {"stop": ["x"] * 16},
        {"metadata": {f"k{i}": "v" for i in range(64)}},
        {"logit_bias": {str(i): 1 for i in range(4_096)}},
    ],
)
def test_as_many_as_are_looked_at_pass(fields: dict[str, Any]) -> None:
    assert parse_chat_request(json.dumps(HELLO | fields))[0] == HELLO | fields


@pytest.mark.parametrize("field", ["tools", "stop", "messages"])
def test_of_many_mistakes_only_the_first_is_looked_for(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    from naru import wire

    errors: list[int] = []
    refuse = wire._refuse

    def counted(error: Any, body: Any) -> Any:
        errors.append(error.error_count())
        return refuse(error, body)

    monkeypatch.setattr(wire, "_refuse", counted)
    with pytest.raises(InvalidRequestError):
        parse_chat_request(json.dumps(HELLO | {field: [1] * 16}))
    assert errors == [1]
