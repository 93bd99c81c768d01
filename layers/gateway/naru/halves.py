"""Characters that were cut in half, and JSON that holds them.

Providers cut text into tokens, and a token may end inside a character. What comes then is half of a surrogate pair as a
JSON escape (``"\\ud83d"``), or some of the bytes of a character. Read by :func:`read_json`, both are surrogates in a
``str``: a pair's halves as themselves, a byte that is no UTF-8 as U+DC80 to U+DCFF (PEP 383). Such text cannot be
written as UTF-8 until the halves have met or have been replaced.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

_JSON = json.JSONDecoder(strict=False)
_FEW_BYTES = 12
REPLACEMENT = "\ufffd"

_SURROGATE = re.compile("[\ud800-\udfff]")
_BYTES = re.compile("[\udc80-\udcff]+")
_BYTES_AT_END = re.compile("[\udc80-\udcff]{1,3}\\Z")
_HIGH_AT_END = re.compile("[\ud800-\udbff]\\Z")


def read_json(data: bytes) -> Any:
    """The value, also where a text in it holds control characters, halves of characters, or a few bytes that are no UTF-8.

    Raises ValueError and RecursionError.
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = _decoded(data)
    return _JSON.decode(text)


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        text = data.decode("utf-8", "surrogateescape")
        if len(text) - len(_BYTES.sub("", text)) > max(_FEW_BYTES, len(data) // 100):
            raise  # in another encoding, or no text at all
        return text


def has_halves(text: str) -> bool:
    """Whether there is anything to mend."""
    return not text.isascii() and _SURROGATE.search(text) is not None


def mend(text: str) -> str:
    """``text`` with halves that meet joined, and a replacement character for each of the others."""
    if not has_halves(text):
        return text
    text = _paired(text)
    text = _BYTES.sub(lambda run: run[0].encode("utf-8", "surrogateescape").decode("utf-8", "replace"), text)
    return _SURROGATE.sub(REPLACEMENT, text)


def mend_start(text: str) -> tuple[str, str]:
    """``text`` mended, but for the last character if its other half may still come; and what came of that one."""
    if not has_halves(text):
        return text, ""
    text = _paired(text)
    if _HIGH_AT_END.search(text):
        return mend(text[:-1]), text[-1]
    for size in range(len(run[0]) if (run := _BYTES_AT_END.search(text)) else 0, 0, -1):
        start = text[-size:].encode("utf-8", "surrogateescape")
        decoder = codecs.getincrementaldecoder("utf-8")("strict")
        try:
            decoder.decode(start)
        except UnicodeDecodeError:
            continue
        if decoder.getstate()[0] == start:
            return mend(text[:-size]), text[-size:]
    return mend(text), ""


def _paired(text: str) -> str:
    # Two halves side by side are not a pair in a str; in UTF-16 they are.
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
