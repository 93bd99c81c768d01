"""The model's tokenizer: made up, deterministic and simple enough to count by hand.

A text is split, from left to right, into

- up to 2 Hangul syllables in a row,
- up to 4 ASCII letters and digits in a row,
- or any other single character,

each with the spaces (U+0020) before it; spaces at the end of a text are one piece. One piece is one token and one chunk
of a stream, and joining the pieces gives the text back. Every piece is at least one UTF-8 byte, so a text never has more
tokens than bytes.

A prompt costs its texts, names, tool calls and tool definitions (as compact JSON), 4 tokens more per message, 765 per
image (or other part that is not text), and 3 to prime the answer.
"""

from __future__ import annotations

import json
import re
from typing import Any

TOKENS_PER_MESSAGE = 4
TOKENS_PER_ANSWER = 3
TOKENS_PER_IMAGE = 765

_PIECE = re.compile(r" *(?:[가-힣]{1,2}|[A-Za-z0-9]{1,4}|[^ ])| +", re.DOTALL)


def split(text: str) -> list[str]:
    """Return the pieces of a text."""
    return _PIECE.findall(text)


def count(text: str) -> int:
    """Return the number of tokens of a text."""
    return sum(1 for _ in _PIECE.finditer(text))


def compact_json(value: object) -> str:
    """Return JSON without spaces and without escapes of Korean."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def message_tokens(message: dict[str, Any]) -> int:
    """Return the tokens of one message of a prompt."""
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    total = TOKENS_PER_MESSAGE + count(message.get("name") or "")
    for part in parts:
        total += count(part["text"]) if isinstance(part.get("text"), str) else TOKENS_PER_IMAGE
    for call in message.get("tool_calls") or []:
        function = call.get("function") or {}
        total += count(str(function.get("name", ""))) + count(str(function.get("arguments", "")))
    return total


def prompt_tokens(body: dict[str, Any]) -> int:
    """Return the tokens of a whole request."""
    tools = body.get("tools")
    definitions = count(compact_json(tools)) if tools else 0
    return sum(message_tokens(message) for message in body["messages"]) + definitions + TOKENS_PER_ANSWER
