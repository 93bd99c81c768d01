"""The names by which providers and proxies report tokens, and what each of them counts."""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple

Figure = Literal[
    "prompt", "completion", "total", "read", "miss", "written", "written_5m", "written_1h", "thoughts", "tool_prompt",
    "extra",
]  # fmt: skip
Place = Literal["inside", "beside", "unsaid"]
"""Where a part is by the convention of its name: within the prompt's or completion's figure, or apart from it."""


class Name(NamedTuple):
    """What a figure of this name counts, and where the name says that it is."""

    figure: Figure
    place: Place = "unsaid"


_TOP: dict[str, Name] = {
    # The whole prompt, or what of it is neither cached nor written.
    "prompt_tokens": Name("prompt"),
    "input_tokens": Name("prompt"),
    "prompt_token_count": Name("prompt"),
    "input_token_count": Name("prompt"),
    # The whole answer, or its words without the thoughts.
    "completion_tokens": Name("completion"),
    "output_tokens": Name("completion"),
    "candidates_token_count": Name("completion"),
    "response_token_count": Name("completion"),
    "output_token_count": Name("completion"),
    "total_tokens": Name("total"),
    "total_token_count": Name("total"),
    # Read from a cache. Anthropic's own names are beside `input_tokens`; see :mod:`naru.provider_usage`.
    "cached_tokens": Name("read", "inside"),
    "cached_input_tokens": Name("read", "inside"),
    "prompt_cache_hit_tokens": Name("read", "inside"),
    "cached_content_token_count": Name("read", "inside"),
    "cache_read_input_tokens": Name("read"),
    "cache_read_input_token_count": Name("read"),
    "cache_read_tokens": Name("read"),
    "prompt_cache_miss_tokens": Name("miss"),
    # Written to a cache.
    "cache_creation_input_tokens": Name("written"),
    "cache_write_input_tokens": Name("written"),
    "cache_write_input_token_count": Name("written"),
    "cache_creation_tokens": Name("written"),
    "cache_write_tokens": Name("written"),
    "cached_creation_tokens": Name("written"),
    "cache_creation.ephemeral_5m_input_tokens": Name("written_5m"),
    "cache_creation.ephemeral_1h_input_tokens": Name("written_1h"),
    "cache_creation_5m_input_tokens": Name("written_5m"),
    "cache_creation_1h_input_tokens": Name("written_1h"),
    "cache_creation_5m_tokens": Name("written_5m"),
    "cache_creation_1h_tokens": Name("written_1h"),
    "cache_write_5m_tokens": Name("written_5m"),
    "cache_write_1h_tokens": Name("written_1h"),
    "claude_cache_creation_5_m_tokens": Name("written_5m"),
    "claude_cache_creation_1_h_tokens": Name("written_1h"),
    # Thoughts.
    "reasoning_tokens": Name("thoughts"),
    "thinking_tokens": Name("thoughts"),
    "reasoning_output_tokens": Name("thoughts", "inside"),
    "thoughts_token_count": Name("thoughts", "beside"),
    # What tools brought into the prompt.
    "tool_use_prompt_token_count": Name("tool_prompt", "beside"),
    # Billed by the piece, and not by the token: no reading of the tokens is the whole cost.
    "server_tool_use.web_search_requests": Name("extra"),
    "server_tool_use.web_fetch_requests": Name("extra"),
    "web_search_requests": Name("extra"),
    "num_search_queries": Name("extra"),
    "citation_tokens": Name("extra"),
}
_OF_PROMPT: dict[str, Name] = {
    "cached_tokens": Name("read", "inside"),
    "cache_read": Name("read", "inside"),
    "cache_read_tokens": Name("read", "inside"),
    "cache_read_input_tokens": Name("read", "inside"),
    "cache_write_tokens": Name("written", "inside"),
    "cache_creation_tokens": Name("written", "inside"),
    "cached_creation_tokens": Name("written", "inside"),
    "cache_creation_input_tokens": Name("written", "inside"),
    "cache_write_input_tokens": Name("written", "inside"),
    "cache_creation": Name("written", "inside"),
    "ephemeral_5m_input_tokens": Name("written_5m", "inside"),
    "ephemeral_1h_input_tokens": Name("written_1h", "inside"),
    "cache_creation.ephemeral_5m_input_tokens": Name("written_5m", "inside"),
    "cache_creation.ephemeral_1h_input_tokens": Name("written_1h", "inside"),
    "cache_creation_token_details.ephemeral_5m_input_tokens": Name("written_5m", "inside"),
    "cache_creation_token_details.ephemeral_1h_input_tokens": Name("written_1h", "inside"),
    "web_search_requests": Name("extra"),
    "google_maps_grounding_requests": Name("extra"),
}
_OF_COMPLETION: dict[str, Name] = {
    "reasoning_tokens": Name("thoughts", "inside"),
    "thinking_tokens": Name("thoughts", "inside"),
    "thought_tokens": Name("thoughts", "inside"),
    "reasoning": Name("thoughts", "inside"),
}


def plain(name: str) -> str:
    """One form of ``prompt_tokens``, ``promptTokens`` and ``PromptTokens``."""
    return name.replace("_", "").replace("-", "").lower()


SPELLINGS: dict[str, Name] = {plain(path): name for path, name in _TOP.items()}
for _parents, _names in (
    (("prompt_tokens_details", "prompt_token_details", "input_tokens_details", "input_token_details"), _OF_PROMPT),
    (
        ("completion_tokens_details", "completion_token_details", "output_tokens_details", "output_token_details"),
        _OF_COMPLETION,
    ),
):
    for _parent in _parents:
        SPELLINGS |= {plain(f"{_parent}.{path}"): name for path, name in _names.items()}
CONTAINERS: Final = frozenset(
    path[: match.start()] for path in SPELLINGS for match in re.finditer(re.escape("."), path)
)
