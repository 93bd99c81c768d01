"""Keeps users' words out of the log where a provider repeats them in an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

WITHHELD = "(withheld: the provider repeats the request)"

# So many characters in a row are a quotation; fewer are words that everybody uses. A short text counts as a whole.
_QUOTATION = 16
_SHORTEST = 4


def without_echo(facts: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """``facts`` for the log, with :data:`WITHHELD` for each text that quotes what the request ``body`` says."""
    said = list(_said(body.get("messages"))) + list(_said(body.get("tools")))
    return {
        name: WITHHELD if isinstance(fact, str) and any(_quotes(fact, text) for text in said) else fact
        for name, fact in facts.items()
    }


def _quotes(fact: str, text: str) -> bool:
    if len(text) < _QUOTATION:
        return len(text.strip()) >= _SHORTEST and text.strip() in fact
    return any(fact[i : i + _QUOTATION] in text for i in range(len(fact) - _QUOTATION + 1))


def _said(value: Any) -> Iterator[str]:
    """Every text in a part of a request, but not what names its kind."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            if name not in {"role", "type"}:
                yield from _said(part)
    elif isinstance(value, list):
        for part in value:
            yield from _said(part)
