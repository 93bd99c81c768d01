"""Bodies made to cost more than they weigh: each of about as many bytes as asked for, under a name."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

MODEL = "claude-sonnet-4-5"
"""Its tokenizer is not published, so its texts are counted in every normal form that they may have."""

_MARKS = "\u0301\u0316\u0327\u0345\u0334\u05b0"  # of six classes: normalizing sorts them
_MESSAGE = '{"role":"user","content":"a"}'


def _repeated(text: str, size: int) -> str:
    return text * max(1, size // len(text.encode()))


def _joined(make: Callable[[int], str], size: int) -> str:
    """Pieces with commas between them."""
    return ",".join(make(i) for i in range(max(1, size // (len(make(10**5).encode()) + 1))))


def saying(content: str) -> str:
    """A body with that text in its only message."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    return json.dumps(body, ensure_ascii=False)


def with_field(name: str, value: str) -> str:
    """A body with one more field; ``value`` is JSON."""
    return f'{{"model":"{MODEL}","messages":[{_MESSAGE}],"{name}":{value}}}'


def _with_messages(messages: str) -> str:
    return f'{{"model":"{MODEL}","messages":[{messages}]}}'


def _with_content(parts: str) -> str:
    return _with_messages(f'{{"role":"user","content":[{parts}]}}')


def _zalgo(size: int) -> str:
    rng = random.Random(1)
    return "a" + "".join(rng.choice(_MARKS) for _ in range(size // 2))


def plain(size: int) -> str:
    """What the others are compared with."""
    return saying(_repeated("The quick brown fox jumps over the lazy dog. ", size))


HOSTILE: dict[str, Callable[[int], str]] = {
    # Texts
    "combining marks": lambda size: saying(_zalgo(size)),
    "two marks in turn": lambda size: saying("a" + _repeated("\u0301\u0316", size)),
    "marks in a tool": lambda size: with_field("tools", json.dumps([{"type": "function", "description": _zalgo(size)}], ensure_ascii=False)),
    "marks in an unknown field": lambda size: with_field("x", json.dumps(_zalgo(size), ensure_ascii=False)),
    "marks in the name of a field": lambda size: with_field("a" + _zalgo(size), "1"),
    "escaped marks": lambda size: _with_messages(f'{{"role":"user","content":"a{_repeated(chr(92) + "u0301" + chr(92) + "u0316", size)}"}}'),
    "ligatures of 18 letters": lambda size: saying(_repeated("\ufdfa", size)),
    "Korean in single letters": lambda size: saying(_repeated("\u1112\u1161\u11ab", size)),
    "letters that compose": lambda size: saying(_repeated("e\u0302\u0301\u0323", size)),
    "full-width letters": lambda size: saying(_repeated("\uff21", size)),
    "blanks": lambda size: saying(" " * size),
    "quotes and backslashes": lambda size: saying(_repeated('"\\', size // 2)),
    "control characters": lambda size: saying("\x00" * (size // 6)),
    "pairs of surrogates": lambda size: _with_messages(f'{{"role":"user","content":"{_repeated(chr(92) + "ud83d" + chr(92) + "ude00", size)}"}}'),
    "halves of pairs": lambda size: _with_messages(f'{{"role":"user","content":"{_repeated(chr(92) + "ud83d", size)}"}}'),
    # Many small things
    "fields": lambda size: with_field("y", f'1,{_joined(lambda i: f"{chr(34)}f{i:06}{chr(34)}:1", size)}'),
    "fields with text": lambda size: with_field("y", f'1,{_joined(lambda i: f"{chr(34)}f{i:06}{chr(34)}:{chr(34)}a{chr(34)}", size)}'),
    "one field again and again": lambda size: with_field("y", f'1,{_joined(lambda _: f"{chr(34)}stop{chr(34)}:1", size)}'),
    "messages": lambda size: _with_messages(_joined(lambda _: _MESSAGE, size)),
    "messages without a role": lambda size: _with_messages(_joined(lambda _: "{}", size)),
    "messages that are numbers": lambda size: _with_messages(_joined(lambda _: "1", size)),
    "fields of a message": lambda size: _with_messages(f'{{"role":"user","content":"a",{_joined(lambda i: f"{chr(34)}f{i:06}{chr(34)}:{chr(34)}a{chr(34)}", size)}}}'),
    "content parts": lambda size: _with_content(_joined(lambda _: '{"type":"text","text":"a"}', size)),
    "content parts that are numbers": lambda size: _with_content(_joined(lambda _: "1", size)),
    "images": lambda size: _with_content(_joined(lambda _: '{"type":"image_url","image_url":{"url":"https://example.com/a.png"}}', size)),
    "tool calls": lambda size: _with_messages(f'{{"role":"assistant","tool_calls":[{_joined(lambda _: "{}", size)}]}}'),
    "tools that are numbers": lambda size: with_field("tools", f'[{_joined(lambda _: "1", size)}]'),
    "tools": lambda size: with_field("tools", f'[{_joined(lambda _: json.dumps({"type": "function", "function": {"name": "f"}}), size)}]'),
    "stops": lambda size: with_field("stop", f'[{_joined(lambda _: "1", size)}]'),
    "metadata": lambda size: with_field("metadata", f'{{{_joined(lambda i: f"{chr(34)}f{i:06}{chr(34)}:1", size)}}}'),
    "logit_bias": lambda size: with_field("logit_bias", f'{{{_joined(lambda i: f"{chr(34)}{i:06}{chr(34)}:null", size)}}}'),
    "empty arrays": lambda size: with_field("x", f'[{_joined(lambda _: "[]", size)}]'),
    "empty objects": lambda size: with_field("x", f'[{_joined(lambda _: "{}", size)}]'),
    "objects of one field": lambda size: with_field("x", f'[{_joined(lambda _: "{" + chr(34) * 2 + ":0}", size)}]'),
    "short texts": lambda size: with_field("x", f'[{_joined(lambda i: f"{chr(34)}{i:06}{chr(34)}", size)}]'),
    "fractions": lambda size: with_field("x", f'[{_joined(lambda _: "0.1", size)}]'),
    # Large single things
    "a long name of a field": lambda size: with_field("k" * size, "1"),
    "a long model": lambda size: json.dumps({"model": "m" * size, "messages": [{"role": "user", "content": "a"}]}),
    "a long user": lambda size: with_field("user", json.dumps("u" * size)),
    "a long role": lambda size: _with_messages(json.dumps({"role": "r" * size})),
    "a long prediction": lambda size: with_field("prediction", json.dumps({"type": "content", "content": "a" * size})),
    "an image in base64": lambda size: _with_content(json.dumps({"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * size}})),
    "audio in base64": lambda size: _with_content(json.dumps({"type": "input_audio", "input_audio": {"data": "A" * size, "format": "wav"}})),
    "a long fraction": lambda size: with_field("x", "1." + "1" * size),
    "a long exponent": lambda size: with_field("x", "1e" + "1" * size),
    "a long integer": lambda size: with_field("x", "1" * size),
    # Not JSON
    "brackets": lambda size: "[" * size,
    "nested objects": lambda size: _repeated('{"a":', size),
    "deep in a field": lambda size: with_field("x", "[" * (size // 2) + "]" * (size // 2)),
    "many just deep enough": lambda size: with_field("x", f'[{_joined(lambda _: "[" * 120 + "]" * 120, size)}]'),
    "a text without an end": lambda size: '{"model":"' + "a" * size,
    "a comma too many": lambda size: plain(size)[:-1] + ",}",
    "commas": lambda size: "{" + "," * size,
    "line ends": lambda size: "\n" * size + "{",
}  # fmt: skip
