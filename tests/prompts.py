"""The tokens of a request's prompt, for tests that ask once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from naru.catalog import Tokenizer
from naru.tokens import Prompt


def upper_bound_prompt(body: Mapping[str, Any], tokenizer: Tokenizer, *, image_tokens: int | None = None) -> int:
    """:meth:`Prompt.upper_bound` of a chat request."""
    return Prompt(body).upper_bound(tokenizer, image_tokens=image_tokens)


def estimate_prompt(body: Mapping[str, Any], tokenizer: Tokenizer) -> int:
    """:meth:`Prompt.estimate` of a chat request."""
    return Prompt(body).estimate(tokenizer)
