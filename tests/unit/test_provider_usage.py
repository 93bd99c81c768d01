"""Usage in every spelling: what a provider reports is charged exactly, or is marked as an estimate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from naru.pricing import Rates, Usage
from naru.provider_usage import Reading, UsageReader, read_usage, usage_object, without_reports

RATES = Rates(3_000_000, 300_000, 3_750_000, 15_000_000, "USD", None, cache_write_1h_pico_usd=6_000_000)


@dataclass(frozen=True)
class Bill:
    """What a provider charges for; each token counts once."""

    fresh: int
    read: int = 0
    written: int = 0
    words: int = 10
    thoughts: int = 0
    hour: int = 0
    """Of ``written``."""

    @property
    def prompt(self) -> int:
        return self.fresh + self.read + self.written

    @property
    def completion(self) -> int:
        return self.words + self.thoughts

    @property
    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt,
            completion_tokens=self.completion,
            cached_tokens=self.read,
            cache_write_tokens=self.written,
            cache_write_1h_tokens=self.hour,
            reasoning_tokens=self.thoughts,
        )

    @property
    def cost_pico_usd(self) -> int:
        return RATES.cost_pico_usd(self.usage)


READ = Bill(1000, read=4000)
WRITTEN = Bill(1000, read=3000, written=500)
HOUR = Bill(1000, written=500, hour=200)
THOUGHTS = Bill(20, words=198, thoughts=405)
ALL = Bill(1000, read=3000, written=500, words=198, thoughts=405)

# Each with the bill that it stands for: what OpenAI, Anthropic, Google and others write, and the proxies before them.
EXACT: dict[str, tuple[dict[str, Any], Bill]] = {
    "openai": ({"prompt_tokens": 5000, "completion_tokens": 10, "total_tokens": 5010, "prompt_tokens_details": {"cached_tokens": 4000, "audio_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0, "accepted_prediction_tokens": 0}}, READ),
    "openai without a total": ({"prompt_tokens": 5000, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 4000}}, READ),
    "openai, written": ({"prompt_tokens": 4500, "completion_tokens": 10, "total_tokens": 4510, "prompt_tokens_details": {"cached_tokens": 3000, "cache_write_tokens": 500}}, WRITTEN),
    "openai, thoughts": ({"prompt_tokens": 20, "completion_tokens": 603, "total_tokens": 623, "completion_tokens_details": {"reasoning_tokens": 405}}, THOUGHTS),
    "nulls and zeros": ({"prompt_tokens": 5000, "completion_tokens": 10, "total_tokens": None, "prompt_tokens_details": None, "completion_tokens_details": {"reasoning_tokens": None}, "cached_tokens": 0, "cache_read_input_tokens": 0}, Bill(5000)),
    "numbers as strings": ({"prompt_tokens": "5000", "completion_tokens": "10", "total_tokens": "5010", "prompt_tokens_details": {"cached_tokens": "4000"}}, READ),
    "numbers with a point": ({"prompt_tokens": 5000.0, "completion_tokens": 1e1, "prompt_tokens_details": {"cached_tokens": 4e3}}, READ),
    "read beside the prompt, by the total": ({"prompt_tokens": 1000, "completion_tokens": 10, "total_tokens": 5010, "cache_read_input_tokens": 4000}, READ),
    "details beside the prompt, by the total": ({"prompt_tokens": 1000, "completion_tokens": 10, "total_tokens": 5010, "prompt_tokens_details": {"cached_tokens": 4000}}, READ),
    "read and written beside, by the total": ({"prompt_tokens": 1000, "completion_tokens": 10, "total_tokens": 4510, "cache_read_input_tokens": 3000, "cache_creation_input_tokens": 500}, WRITTEN),
    "read, written and thoughts beside, by the total": ({"prompt_tokens": 1000, "completion_tokens": 198, "total_tokens": 5103, "cache_read_input_tokens": 3000, "cache_creation_input_tokens": 500, "completion_tokens_details": {"reasoning_tokens": 405}}, ALL),
    "read inside, thoughts beside": ({"prompt_tokens": 4500, "completion_tokens": 198, "total_tokens": 5103, "prompt_tokens_details": {"cached_tokens": 3000, "cache_write_tokens": 500}, "completion_tokens_details": {"reasoning_tokens": 405}}, ALL),
    "more is cached than there is prompt": ({"prompt_tokens": 1000, "completion_tokens": 10, "cache_read_input_tokens": 4000}, READ),
    "and a total that leaves it out": ({"prompt_tokens": 1000, "completion_tokens": 10, "total_tokens": 1010, "cache_read_input_tokens": 4000}, READ),
    "anthropic": ({"input_tokens": 1000, "output_tokens": 10, "cache_read_input_tokens": 3000, "cache_creation_input_tokens": 500, "cache_creation": {"ephemeral_5m_input_tokens": 500, "ephemeral_1h_input_tokens": 0}, "service_tier": "standard"}, WRITTEN),
    "anthropic, all of it cached": ({"input_tokens": 0, "output_tokens": 10, "cache_read_input_tokens": 4000}, Bill(0, read=4000)),
    "anthropic, for an hour": ({"input_tokens": 1000, "output_tokens": 10, "cache_creation_input_tokens": 500, "cache_creation": {"ephemeral_5m_input_tokens": 300, "ephemeral_1h_input_tokens": 200}}, HOUR),
    "anthropic, lifetimes and no sum": ({"input_tokens": 1000, "output_tokens": 10, "cache_creation": {"ephemeral_5m_input_tokens": 300, "ephemeral_1h_input_tokens": 200}}, HOUR),
    "bedrock": ({"inputTokens": 1000, "outputTokens": 10, "totalTokens": 4510, "cacheReadInputTokens": 3000, "cacheWriteInputTokens": 500}, WRITTEN),
    "google": ({"promptTokenCount": 5000, "cachedContentTokenCount": 4000, "candidatesTokenCount": 10, "totalTokenCount": 5010}, READ),
    "google, thoughts": ({"promptTokenCount": 20, "candidatesTokenCount": 198, "thoughtsTokenCount": 405, "totalTokenCount": 623}, THOUGHTS),
    "google, thoughts and no total": ({"prompt_token_count": 20, "candidates_token_count": 198, "thoughts_token_count": 405}, THOUGHTS),
    "google, nothing but thoughts": ({"promptTokenCount": 21, "thoughtsTokenCount": 60, "totalTokenCount": 81}, Bill(21, words=0, thoughts=60)),
    "google, tools": ({"promptTokenCount": 100, "toolUsePromptTokenCount": 50, "candidatesTokenCount": 10, "totalTokenCount": 160}, Bill(150)),
    "google in openai's names": ({"prompt_tokens": 20, "completion_tokens": 198, "total_tokens": 623, "completion_tokens_details": {"reasoning_tokens": 405}}, THOUGHTS),
    "a proxy of google without words": ({"prompt_tokens": 21, "completion_tokens": 0, "total_tokens": 81, "completion_tokens_details": {"reasoning_tokens": 60}}, Bill(21, words=0, thoughts=60)),
    "deepseek": ({"prompt_tokens": 5000, "completion_tokens": 10, "total_tokens": 5010, "prompt_cache_hit_tokens": 4000, "prompt_cache_miss_tokens": 1000}, READ),
    "deepseek, twice": ({"prompt_tokens": 5000, "completion_tokens": 10, "total_tokens": 5010, "prompt_cache_hit_tokens": 4000, "prompt_cache_miss_tokens": 1000, "prompt_tokens_details": {"cached_tokens": 4000}}, READ),
    "deepseek beside": ({"prompt_tokens": 1000, "completion_tokens": 10, "prompt_cache_hit_tokens": 4000, "prompt_cache_miss_tokens": 1000}, READ),
    "moonshot": ({"prompt_tokens": 5000, "completion_tokens": 10, "total_tokens": 5010, "cached_tokens": 4000}, READ),
    "xai": ({"prompt_tokens": 20, "completion_tokens": 198, "total_tokens": 623, "prompt_tokens_details": {"text_tokens": 20, "cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 405}, "num_sources_used": 0}, THOUGHTS),
    "litellm": ({"prompt_tokens": 4500, "completion_tokens": 10, "total_tokens": 4510, "prompt_tokens_details": {"cached_tokens": 3000, "cache_creation_tokens": 500, "cache_creation_token_details": {"ephemeral_5m_input_tokens": 500, "ephemeral_1h_input_tokens": 0}}, "cache_creation_input_tokens": 500, "cache_read_input_tokens": 3000}, WRITTEN),
    "litellm, for an hour": ({"prompt_tokens": 1500, "completion_tokens": 10, "total_tokens": 1510, "prompt_tokens_details": {"cached_tokens": 0, "cache_creation_tokens": 500, "cache_creation_token_details": {"ephemeral_5m_input_tokens": 300, "ephemeral_1h_input_tokens": 200}}, "cache_creation_input_tokens": 500, "cache_read_input_tokens": 0}, HOUR),
    "new-api": ({"prompt_tokens": 4500, "completion_tokens": 10, "total_tokens": 4510, "prompt_tokens_details": {"cached_tokens": 3000, "cached_creation_tokens": 500}, "input_tokens": 4500, "output_tokens": 0, "input_tokens_details": None, "claude_cache_creation_5_m_tokens": 500, "claude_cache_creation_1_h_tokens": 0, "usage_semantic": "openai", "usage_source": "anthropic"}, WRITTEN),
    "new-api, anthropic's way": ({"prompt_tokens": 1000, "completion_tokens": 10, "total_tokens": 1010, "prompt_tokens_details": {"cached_tokens": 3000, "cached_creation_tokens": 500}, "claude_cache_creation_5_m_tokens": 500, "claude_cache_creation_1_h_tokens": 0, "usage_semantic": "anthropic"}, WRITTEN),
    "new-api of gpt": ({"prompt_tokens": 5000, "completion_tokens": 10, "total_tokens": 5010, "prompt_tokens_details": {"cached_tokens": 4000, "text_tokens": 0}, "input_tokens": 0, "output_tokens": 0, "input_tokens_details": None, "claude_cache_creation_5_m_tokens": 0, "claude_cache_creation_1_h_tokens": 0}, READ),
    "both names of the prompt": ({"prompt_tokens": 5000, "input_tokens": 1000, "completion_tokens": 10, "output_tokens": 10, "cache_read_input_tokens": 4000, "prompt_tokens_details": {"cached_tokens": 4000}}, READ),
    "alibaba": ({"prompt_tokens": 1500, "completion_tokens": 10, "total_tokens": 1510, "prompt_tokens_details": {"cached_tokens": 0, "cache_creation_input_tokens": 500, "cache_creation": {"ephemeral_5m_input_tokens": 500}, "cache_type": "ephemeral"}}, Bill(1000, written=500)),
    "openrouter": ({"prompt_tokens": 4500, "completion_tokens": 603, "total_tokens": 5103, "cost": 0.95, "is_byok": False, "cost_details": {"upstream_inference_cost": 19}, "prompt_tokens_details": {"cached_tokens": 3000, "cache_write_tokens": 500, "audio_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 405}}, ALL),
    "vllm": ({"prompt_tokens": 5000, "total_tokens": 5010, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 4000}}, READ),
    "responses": ({"input_tokens": 5000, "input_tokens_details": {"cached_tokens": 4000}, "output_tokens": 10, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 5010}, READ),
    "responses, thoughts": ({"input_tokens": 20, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 603, "output_tokens_details": {"reasoning_tokens": 405}, "total_tokens": 623}, THOUGHTS),
    "clova studio": ({"prompt_tokens": 20, "completion_tokens": 603, "total_tokens": 623, "completion_tokens_details": {"thinking_tokens": 405}}, THOUGHTS),
    "clova studio v3": ({"promptTokens": 20, "completionTokens": 603, "totalTokens": 623, "completionTokensDetails": {"thinkingTokens": 405}}, THOUGHTS),
    "langchain": ({"input_tokens": 4500, "output_tokens": 603, "total_tokens": 5103, "input_token_details": {"cache_read": 3000, "cache_creation": 500}, "output_token_details": {"reasoning": 405}}, ALL),
    "groq": ({"prompt_tokens": 5000, "completion_tokens": 10, "total_tokens": 5010, "queue_time": 0.1, "prompt_time": 0.2, "prompt_tokens_details": {"cached_tokens": 4000}}, READ),
    "a total that leaves out what was cached": ({"prompt_tokens": 5000, "completion_tokens": 10, "total_tokens": 1010, "prompt_tokens_details": {"cached_tokens": 4000}}, READ),
}  # fmt: skip

# Each with the doubt that the log names.
DOUBTFUL: dict[str, tuple[dict[str, Any], str]] = {
    "anthropic's name beside openai's": ({"prompt_tokens": 5000, "completion_tokens": 10, "cache_read_input_tokens": 4000}, "ambiguous"),
    "and a total that is only a sum": ({"prompt_tokens": 5000, "completion_tokens": 10, "total_tokens": 5010, "cache_read_input_tokens": 4000}, "ambiguous"),
    "anthropic's names and a total that says otherwise": ({"input_tokens": 5000, "output_tokens": 10, "total_tokens": 5010, "cache_read_input_tokens": 4000}, "ambiguous"),
    "new-api of old": ({"prompt_tokens": 5000, "completion_tokens": 10, "total_tokens": 5010, "prompt_tokens_details": {"cached_tokens": 3000, "cached_creation_tokens": 500}, "claude_cache_creation_5_m_tokens": 500}, "ambiguous"),
    "thoughts of no known place": ({"prompt_tokens": 20, "completion_tokens": 500, "total_tokens": 520, "reasoning_tokens": 405}, "ambiguous"),
    "as much cached as thought": ({"prompt_tokens": 50, "completion_tokens": 50, "total_tokens": 120, "prompt_tokens_details": {"cached_tokens": 20}, "completion_tokens_details": {"reasoning_tokens": 20}}, "ambiguous"),
    "a total that nothing explains": ({"prompt_tokens": 20, "completion_tokens": 198, "total_tokens": 623}, "total"),
    "a total that is too small": ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 14}, "total"),
    "a part that is larger than the whole": ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 99}}, "ambiguous"),
    "two figures for one thing": ({"prompt_tokens": 5000, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 4000}, "cached_tokens": 3000}, "contradictory"),
    "hits and misses that do not add up": ({"prompt_tokens": 5000, "completion_tokens": 10, "prompt_cache_hit_tokens": 4000, "prompt_cache_miss_tokens": 10}, "contradictory"),
    "a truth value": ({"prompt_tokens": 5000, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": True}}, "unreadable"),
    "a fraction": ({"prompt_tokens": 5000, "completion_tokens": 10, "cached_tokens": 0.5}, "unreadable"),
    "a negative number": ({"prompt_tokens": 5000, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": -1}}, "unreadable"),
    "a number beyond reason": ({"prompt_tokens": 5000, "completion_tokens": 10, "cached_tokens": 10**9}, "unreadable"),
    "a list": ({"prompt_tokens": 5000, "completion_tokens": 10, "cached_tokens": [1]}, "unreadable"),
    "words": ({"prompt_tokens": 5000, "completion_tokens": 10, "cached_tokens": "many"}, "unreadable"),
    "no prompt": ({"prompt_tokens": 0, "completion_tokens": 10, "total_tokens": 10}, "prompt"),
    "no completion": ({"prompt_tokens": 10}, "completion"),
    "no completion, but a total": ({"prompt_tokens": 10, "total_tokens": 15}, "total"),
    "searches": ({"prompt_tokens": 10, "completion_tokens": 5, "server_tool_use": {"web_search_requests": 2}}, "extra"),
    "a dearer tier": ({"input_tokens": 10, "output_tokens": 5, "service_tier": "Priority"}, "tier"),
    "a dearer speed": ({"input_tokens": 10, "output_tokens": 5, "speed": "fast"}, "tier"),
}  # fmt: skip


def reading(*payloads: dict[str, Any]) -> Reading:
    reader = UsageReader()
    for payload in payloads:
        reader.feed(payload)
    found = reader.read()
    assert found is not None
    return found


def as_json(usage: dict[str, Any]) -> Reading:
    found = read_usage({"choices": [{"message": {"content": "…"}}], "usage": usage})
    assert found is not None
    return found


def as_last_chunk(usage: dict[str, Any]) -> Reading:
    return reading({"choices": [{"delta": {"content": "…"}}], "usage": None}, {"choices": [], "usage": usage})


def as_zeros_first(usage: dict[str, Any]) -> Reading:
    nothing = {name: 0 for name, value in usage.items() if isinstance(value, int)}
    return reading(
        {"choices": [], "usage": nothing}, {"choices": [], "usage": usage}, {"choices": [], "usage": nothing}
    )


def as_running_totals(usage: dict[str, Any]) -> Reading:
    begun = {"completion_tokens", "output_tokens", "candidatesTokenCount", "completionTokens", "outputTokens"}
    first = {name: 1 if name in begun and value else value for name, value in usage.items() if "otal" not in name}
    return reading({"choices": [], "usage": first}, {"choices": [], "usage": usage}, {"choices": [], "usage": usage})


def as_choice(usage: dict[str, Any]) -> Reading:
    return reading({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": usage}]})


FORMS: list[Callable[[dict[str, Any]], Reading]] = [
    as_json, as_last_chunk, as_zeros_first, as_running_totals, as_choice,
    lambda usage: reading({"choices": [], "x_groq": {"usage": usage}}),
    lambda usage: reading({"choices": [], "usageMetadata": usage}),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("usage", "bill"), EXACT.values(), ids=EXACT)
def test_a_report_that_can_mean_one_thing_is_exact(
    usage: dict[str, Any], bill: Bill, form: Callable[[dict[str, Any]], Reading]
) -> None:
    found = form(usage)
    assert (found.doubt, found.usage) == (None, bill.usage)
    assert RATES.cost_pico_usd(found.usage) == bill.cost_pico_usd


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("usage", "doubt"), DOUBTFUL.values(), ids=DOUBTFUL)
def test_a_report_that_can_mean_several_things_is_an_estimate(
    usage: dict[str, Any], doubt: str, form: Callable[[dict[str, Any]], Reading]
) -> None:
    found = form(usage)
    assert found.usage.estimated
    if form is as_json:
        assert found.doubt == doubt


def test_what_is_cached_explains_a_total_and_no_thoughts_are_guessed() -> None:
    """The gateway once took 4,000 cached tokens for thoughts, and charged 0.06315 USD."""
    usage = {"prompt_tokens": 1000, "completion_tokens": 10, "total_tokens": 5010, "cache_read_input_tokens": 4000}
    assert RATES.cost_pico_usd(as_json(usage).usage) == 4_350_000_000


def test_the_likeliest_reading_of_a_sum_is_openais() -> None:
    usage = {"prompt_tokens": 5000, "completion_tokens": 10, "total_tokens": 5010, "cache_read_input_tokens": 4000}
    assert RATES.cost_pico_usd(as_json(usage).usage) == READ.cost_pico_usd


def test_without_any_total_the_dearer_reading_is_taken() -> None:
    usage = {"prompt_tokens": 5000, "completion_tokens": 10, "cache_read_input_tokens": 4000}
    assert as_json(usage).usage.prompt_tokens == 9000


def test_thoughts_that_only_the_total_shows_are_charged_as_output() -> None:
    found = as_json({"prompt_tokens": 20, "completion_tokens": 198, "total_tokens": 623})
    assert (found.usage.completion_tokens, found.usage.reasoning_tokens) == (603, 405)


@pytest.mark.parametrize(
    "usage",
    [
        None, {}, [], "x", 7, {"prompt_tokens": -1}, {"prompt_tokens": True, "completion_tokens": False},
        {"prompt_tokens": 0.5}, {"prompt_tokens": "", "completion_tokens": "many"}, {"total_tokens": 15},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, {"prompt_tokens": 10**9}, {"prompt_tokens": {}},
        {"prompt_tokens": "١٢"},
    ],
)  # fmt: skip
def test_usage_that_cannot_be_believed_is_unknown_and_not_zero(usage: Any) -> None:
    assert read_usage({"choices": [], "usage": usage}) is None


def test_a_prompt_at_the_start_and_a_completion_at_the_end_are_one_report() -> None:
    found = reading(
        {"type": "message_start", "message": {"usage": {"input_tokens": 1000, "output_tokens": 1, "cache_read_input_tokens": 4000}}},
        {"choices": [{"delta": {"content": "Seoul"}}]},
        {"choices": [], "usage": {"output_tokens": 10}},
    )  # fmt: skip
    assert (found.doubt, found.usage) == (None, READ.usage)


def test_what_was_cached_at_the_start_still_is_at_the_end() -> None:
    first = {"prompt_tokens": 5000, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 4000}}
    last = {"prompt_tokens": 5000, "completion_tokens": 10, "total_tokens": 5010}
    assert reading({"usage": first}, {"usage": last}).usage == READ.usage


def test_a_completion_that_shrinks_is_no_running_total() -> None:
    found = reading(
        {"usage": {"prompt_tokens": 10, "completion_tokens": 3}},
        {"usage": {"prompt_tokens": 10, "completion_tokens": 1}},
    )
    assert (found.doubt, found.usage.estimated) == ("shrunk", True)


def test_the_log_has_the_names_and_numbers_and_no_text_of_the_provider() -> None:
    found = as_json(
        {
            "prompt_tokens": 5000, "completion_tokens": 10, "cache_read_input_tokens": 4000, "note": "서울",
            "service_tier": "standard", "prompt_tokens_details": {"cached_tokens": 0, "서울": 3}, "billing": {"won": 7},
        }
    )  # fmt: skip
    assert found.figures == {"prompt_tokens": 5000, "completion_tokens": 10, "cache_read_input_tokens": 4000}


@given(st.builds(Usage, *[st.integers(1, 10**6)] * 2))
def test_what_the_gateway_shows_it_reads_again(usage: Usage) -> None:
    for shown in (
        usage,
        Usage(usage.prompt_tokens, usage.completion_tokens, cached_tokens=usage.prompt_tokens // 3),
        Usage(
            usage.prompt_tokens,
            usage.completion_tokens,
            cached_tokens=usage.prompt_tokens // 2,
            cache_write_tokens=usage.prompt_tokens // 3,
            reasoning_tokens=usage.completion_tokens // 2,
        ),
    ):
        found = as_json(usage_object(shown))
        assert (found.doubt, found.usage) == (None, shown)


# ── Any split of a bill, in any spelling ────────────────────────────────────────────────────────────────────


def spell(bill: Bill, how: dict[str, Any]) -> dict[str, Any]:
    """A report of ``bill``: names, what is inside what, and which total."""
    vocabulary, inside_prompt, thoughts_inside = how["vocabulary"], how["cached inside"], how["thoughts inside"]
    names = VOCABULARIES[vocabulary]
    shown_prompt = bill.fresh + (bill.read + bill.written if inside_prompt else 0)
    shown_completion = bill.words + (bill.thoughts if thoughts_inside else 0)
    totals = {
        "none": None,
        "true": bill.prompt + bill.completion,
        "sum": shown_prompt + shown_completion,
        "zero": 0,
        "fresh": bill.fresh + bill.completion,
    }
    usage: dict[str, Any] = {}
    for name, value in zip(
        names,
        (shown_prompt, shown_completion, totals[how["total"]], bill.read, bill.written, bill.thoughts),
        strict=True,
    ):
        for one in name.split("+"):
            if value or how["zeros"]:
                place, _, leaf = one.rpartition(".")
                (usage.setdefault(place, {}) if place else usage)[leaf] = value
    if how["lifetimes"] and bill.written:
        usage["cache_creation"] = {"ephemeral_5m_input_tokens": bill.written, "ephemeral_1h_input_tokens": 0}
    return usage


VOCABULARIES = {
    "openai": ("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details.cached_tokens", "prompt_tokens_details.cache_write_tokens", "completion_tokens_details.reasoning_tokens"),
    "camel": ("promptTokens", "completionTokens", "totalTokens", "promptTokensDetails.cachedTokens", "promptTokensDetails.cacheWriteTokens", "completionTokensDetails.thinkingTokens"),
    "proxy": ("prompt_tokens", "completion_tokens", "total_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "reasoning_tokens"),
    "litellm": ("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details.cached_tokens+cache_read_input_tokens", "prompt_tokens_details.cache_creation_tokens+cache_creation_input_tokens", "completion_tokens_details.reasoning_tokens"),
    "new-api": ("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details.cached_tokens", "prompt_tokens_details.cached_creation_tokens+claude_cache_creation_5_m_tokens", "completion_tokens_details.reasoning_tokens"),
    "anthropic": ("input_tokens", "output_tokens", "total_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "thinking_tokens"),
    "responses": ("input_tokens", "output_tokens", "total_tokens", "input_tokens_details.cached_tokens", "input_tokens_details.cache_creation_tokens", "output_tokens_details.reasoning_tokens"),
    "google": ("promptTokenCount", "candidatesTokenCount", "totalTokenCount", "cachedContentTokenCount", "promptTokensDetails.cacheWriteTokens", "thoughtsTokenCount"),
}  # fmt: skip
# Where the names mean what their makers mean: cached tokens inside, thoughts inside.
CONVENTIONS = {
    "openai": (True, True), "camel": (True, True), "litellm": (True, True), "responses": (True, True),
    "anthropic": (False, None), "google": (True, False), "proxy": (None, None), "new-api": (None, True),
}  # fmt: skip
BILLS = st.builds(
    Bill,
    fresh=st.integers(1, 10**5),
    read=st.integers(0, 10**5),
    written=st.integers(0, 10**5),
    words=st.integers(1, 10**4),
    thoughts=st.integers(0, 10**4),
)
SPELLINGS = st.fixed_dictionaries(
    {
        "vocabulary": st.sampled_from(sorted(VOCABULARIES)),
        "cached inside": st.booleans(),
        "thoughts inside": st.booleans(),
        "total": st.sampled_from(["none", "true", "sum", "zero", "fresh"]),
        "zeros": st.booleans(),
        "lifetimes": st.booleans(),
    }
)


@given(bill=BILLS, how=SPELLINGS, form=st.sampled_from(FORMS))
@example(
    bill=READ,
    how={"vocabulary": "proxy", "cached inside": False, "thoughts inside": True, "total": "sum", "zeros": True, "lifetimes": False},
    form=as_json,
)  # fmt: skip
def test_any_bill_in_any_spelling_is_charged_exactly_or_marked(
    bill: Bill, how: dict[str, Any], form: Callable[[dict[str, Any]], Reading]
) -> None:
    inside, thoughts_inside = CONVENTIONS[how["vocabulary"]]
    if how["vocabulary"] == "new-api" and not bill.written:
        inside = True  # all its names are OpenAI's then
    against = (inside not in (None, how["cached inside"]) and (bill.read or bill.written)) or (
        thoughts_inside not in (None, how["thoughts inside"]) and bill.thoughts
    )
    # OpenAI's own names used against OpenAI's documents are only known by a true total: nobody could tell otherwise.
    if against and how["total"] != "true":
        return
    found = form(spell(bill, how))
    assert found.usage.estimated or RATES.cost_pico_usd(found.usage) == bill.cost_pico_usd
    assert found.usage.completion_tokens >= bill.words
    assert found.usage.prompt_tokens >= bill.fresh


@given(bill=BILLS, how=SPELLINGS, form=st.sampled_from(FORMS))
def test_a_true_total_leaves_a_doubt_only_where_two_readings_have_the_same_sum(
    bill: Bill, how: dict[str, Any], form: Callable[[dict[str, Any]], Reading]
) -> None:
    parts = [bill.read, bill.written, bill.read + bill.written, bill.thoughts]
    inside, thoughts_inside = CONVENTIONS[how["vocabulary"]]
    same = len(set(parts)) < 4 or inside is None or thoughts_inside is None or bill.thoughts in parts[:3]
    found = form(spell(bill, how | {"total": "true", "cached inside": inside, "thoughts inside": thoughts_inside}))
    assert same or not found.usage.estimated


NUMBERS = st.one_of(
    st.integers(-5, 20), st.integers(), st.booleans(), st.none(), st.floats(), st.text(max_size=3), st.lists(st.integers()),
    st.sampled_from(["7", "-7", 7.0, 10**9 - 1]),
)  # fmt: skip
NAMES = sorted({leaf for names in VOCABULARIES.values() for name in names for leaf in name.split("+")})


@given(st.lists(st.dictionaries(st.sampled_from(NAMES), NUMBERS, max_size=8), min_size=1, max_size=3))
def test_whatever_is_reported_the_parts_fit_into_their_wholes(reports: list[dict[str, Any]]) -> None:
    reader = UsageReader()
    for report in reports:
        nested: dict[str, Any] = {}
        for name, value in report.items():
            place, _, leaf = name.rpartition(".")
            (nested.setdefault(place, {}) if place else nested)[leaf] = value
        reader.feed({"choices": [], "usage": nested})
    if (found := reader.read()) is None:
        return
    usage = found.usage
    assert 0 <= usage.cached_tokens + usage.cache_write_tokens <= usage.prompt_tokens
    assert 0 <= usage.cache_write_1h_tokens <= usage.cache_write_tokens
    assert 0 <= usage.reasoning_tokens <= usage.completion_tokens
    assert usage.prompt_tokens or usage.estimated
    again = as_json(usage_object(usage)) if usage.prompt_tokens else None
    assert again is None or RATES.cost_pico_usd(again.usage) <= RATES.cost_pico_usd(usage)


@pytest.mark.parametrize(
    "payload",
    [
        {"usageMetadata": {"promptTokenCount": 1}, "choices": []},
        {"x_groq": {"id": "x", "usage": {"prompt_tokens": 1}}, "choices": []},
        {"choices": [{"index": 0, "delta": {"content": "가"}, "usage": {"prompt_tokens": 1}}, "x"]},
    ],
)
def test_clients_see_usage_in_one_place_only(payload: dict[str, Any]) -> None:
    shown = without_reports(payload | {"id": "x", "usage": None})
    assert "prompt" not in str(shown).lower()
    assert shown["id"] == "x"
    assert [choice for choice in shown["choices"] if choice != "x"] == [] or shown["choices"][0]["delta"] == payload[
        "choices"
    ][0]["delta"]


def test_a_chunk_without_reports_is_the_same_object() -> None:
    payload = {"choices": [{"index": 0, "delta": {"content": "가"}}], "usage": {"prompt_tokens": 1}}
    assert without_reports(payload) is payload


def test_a_report_of_a_thousand_names_is_an_estimate() -> None:
    names = {f"name_{i}": 1 for i in range(1_000)}
    assert as_json({"prompt_tokens": 5000, "completion_tokens": 10} | names).doubt == "unreadable"
