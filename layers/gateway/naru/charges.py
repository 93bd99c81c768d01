"""What in a request costs money beyond its tokens, or makes them dearer.

A budget holds only if the most that a request can cost is known before it is sent. So a field is passed on only if what it
costs is bounded: it is one of OpenAI's, or a vendor's that changes how tokens are chosen and not how many are billed. All
others are refused, and the operator can allow them in the catalog (``passes``). The same goes for values that change the
price, for tools that a provider runs itself, and for images that may be films.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import unquote, urlsplit

from naru.errors import InvalidRequestError

if TYPE_CHECKING:
    from naru.catalog import Deployment

HourWrites = Literal["none", "some", "all"]
"""Which of a request's marks (``cache_control``) ask for a cache that keeps for an hour."""

OPENAI_FIELDS: Final = frozenset(
    {
        "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs", "max_completion_tokens",
        "max_tokens", "messages", "metadata", "modalities", "model", "moderation", "n", "parallel_tool_calls",
        "prediction", "presence_penalty", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
        "reasoning_effort", "response_format", "safety_identifier", "seed", "service_tier", "stop", "store", "stream",
        "stream_options", "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity",
        "web_search_options",
    }
)  # fmt: skip
"""The fields of OpenAI's chat API; a test compares them with its SDK."""
VENDOR_FIELDS: Final = frozenset(
    {
        # Anthropic, DeepSeek, Alibaba, OpenRouter, CLOVA Studio: whether and how long a model thinks.
        "thinking", "reasoning", "enable_thinking", "thinking_budget", "include_reasoning", "reasoning_format",
        "separate_reasoning", "cache_control",
        # vLLM, SGLang, Mistral: which token comes next, and what the text looks like.
        "top_k", "top_a", "min_p", "typical_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids",
        "bad_words", "skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output",
        "add_generation_prompt", "continue_final_message", "chat_template_kwargs", "guided_json", "guided_regex",
        "guided_choice", "guided_grammar", "guided_decoding_backend", "guided_whitespace_pattern", "structured_outputs",
        "random_seed", "safe_prompt", "prompt_mode",
    }
)  # fmt: skip
"""Fields of other vendors that change which tokens come and not what they cost."""

_STANDARD_TIERS: Final = frozenset({"auto", "default", "standard", "standard_only"})
_MODALITIES: Final = frozenset({"text", "audio"})
_TOOL_TYPES: Final = frozenset({"function", "custom"})
_TOOL_FIELDS: Final = frozenset(
    {
        "type", "function", "custom", "cache_control", "name", "description", "parameters", "input_schema", "strict",
        "defer_loading",
    }
)  # fmt: skip
_TOOL_CHOICES: Final = frozenset({"function", "custom", "allowed_tools", "tool", "auto", "any", "none", "required"})
# Names by which gateways to Gemini (new-api, one-api) switch on Google's own tools.
_RUN_BY_PROVIDERS: Final = frozenset({"googleSearch", "codeExecution", "urlContext"})
_BUDGETS: Final = (
    ("thinking", "budget_tokens"),
    ("reasoning", "max_tokens"),
    ("chat_template_kwargs", "thinking_budget"),
    ("thinking_budget",),
)
_MOST_TOKENS: Final = 10**9


def refuse_unbounded(body: Mapping[str, Any], deployment: Deployment) -> None:
    """Raise for a field or value whose cost is not known beforehand.

    Raises :class:`~naru.errors.InvalidRequestError`; ``param`` names the field.
    """
    refuse_unknown_fields(body, deployment)
    refuse_tools(body)
    if body.get("web_search_options") is not None:
        raise _refusal(
            "Web search is not supported, since it is billed by the search and not by the token. Search first, and "
            "put the results into a message.",
            "web_search_options",
        )
    tier = body.get("service_tier")
    if tier is not None and not (isinstance(tier, str) and tier in _STANDARD_TIERS):
        raise _refusal(
            "Only the standard service tier is supported: the others are not in the price list that requests are "
            'charged by. Leave service_tier out, or send "auto" or "default".',
            "service_tier",
            value=True,
        )
    modalities = body.get("modalities")
    asked = modalities if isinstance(modalities, list) else [] if modalities is None else [modalities]
    if any(not isinstance(each, str) or each not in _MODALITIES for each in asked):
        raise _refusal(
            'Only the modalities "text" and "audio" are supported: what else an answer could hold has no price here. '
            'Send ["text"].',
            "modalities",
            value=True,
        )
    thinking_tokens(body)
    _refuse_lifetimes(body, deployment)


def thinking_tokens(body: Mapping[str, Any]) -> int:
    """The most tokens that a request allows for thoughts by a field of its own. Some providers count them beyond
    ``max_tokens``, and some proxies raise ``max_tokens`` by them.

    Raises :class:`~naru.errors.InvalidRequestError` for what is not a number of tokens.
    """
    most = 0
    for path in _BUDGETS:
        value: Any = body
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is None:
            continue
        if type(value) is not int or not -1 <= value <= _MOST_TOKENS:
            param = ".".join(path)
            raise InvalidRequestError(
                f"Invalid value for '{param}': it must be a number of tokens.", param=param, code="invalid_value"
            )
        most = max(most, value)
    return most


def hour_writes(body: Mapping[str, Any], deployment: Deployment) -> HourWrites:
    """Which marks ask for an hour, where that has a price of its own."""
    if deployment.price.cache_write_1h_micro_per_mtok is None:
        return "none"
    lifetimes = {lifetime for _, lifetime in _cache_marks(body)}
    return "none" if "1h" not in lifetimes else "all" if lifetimes == {"1h"} else "some"


def refuse_unknown_fields(body: Mapping[str, Any], deployment: Deployment) -> None:
    """Raise for a field that may cost anything."""
    for name, value in body.items():
        if value is None or name in OPENAI_FIELDS or name in VENDOR_FIELDS or name in deployment.passes:
            continue
        raise _refusal(
            f"The field {name[:64]!r} is not passed on, since nothing here says what it costs. Leave it out. The operator "
            "can allow it: add its name to `passes` of the deployment in the catalog.",
            name,
        )


def refuse_tools(body: Mapping[str, Any]) -> None:
    """Raise for tools that a provider runs itself, by whatever name."""
    tools = body.get("tools")
    for i, tool in enumerate(tools if isinstance(tools, list) else ()):
        if not isinstance(tool, Mapping):
            continue
        kind = tool.get("type", "function")
        if not isinstance(kind, str) or kind not in _TOOL_TYPES:
            raise _provider_tool(f"tools[{i}].type")
        for name in tool:
            if name not in _TOOL_FIELDS:
                raise _provider_tool(f"tools[{i}].{name}")
        described = tool.get(kind)
        named = described.get("name") if isinstance(described, Mapping) else None
        if isinstance(named, str) and named in _RUN_BY_PROVIDERS:
            raise _refusal(
                f"Some providers run a function named {named} themselves, and what that costs cannot be "
                "bounded beforehand. Give the function another name.",
                f"tools[{i}].{kind}.name",
                value=True,
            )
    choice = body.get("tool_choice")
    chosen = choice.get("type") if isinstance(choice, Mapping) else "auto"
    if not isinstance(chosen, str) or chosen not in _TOOL_CHOICES:
        raise _provider_tool("tool_choice.type")


def _provider_tool(param: str) -> InvalidRequestError:
    # What a provider's own tool searches and reads comes back as a part of the prompt.
    return _refusal(
        "Only tools that the client runs are supported, since what a provider's own cost cannot be bounded beforehand. "
        "Describe the tool as a function.",
        param,
        value=True,
    )


def _refuse_lifetimes(body: Mapping[str, Any], deployment: Deployment) -> None:
    price = deployment.price
    if price.cache_write_micro_per_mtok is None:
        return  # what is written costs as input here, for however long
    for path, lifetime in _cache_marks(body):
        if lifetime == "5m" or (lifetime == "1h" and price.cache_write_1h_micro_per_mtok is not None):
            continue
        raise _refusal(
            f"{deployment.upstream_model} has no price for a cache that keeps so long. Leave ttl out"
            + ("." if price.cache_write_1h_micro_per_mtok is None else ', or send "5m" or "1h".'),
            f"{path}.ttl",
            value=True,
        )


def _cache_marks(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Where a request asks for its prompt to be written to a cache, and for how long: ``5m``, ``1h``, or ``?``."""
    # Each entry: a value, and where it is, as a chain of names from the inside out.
    left: list[tuple[Any, Any]] = [(body, None)]
    while left:
        value, where = left.pop()
        if isinstance(value, Mapping):
            for name, part in value.items():
                if name.lower().replace("_", "") == "cachecontrol" and isinstance(part, Mapping):
                    yield _path((name, where)), _lifetime(part)
                elif isinstance(part, Mapping | list):
                    left.append((part, (name, where)))
        elif isinstance(value, list):
            left += [(part, (i, where)) for i, part in enumerate(value) if isinstance(part, Mapping | list)]


def _lifetime(mark: Mapping[str, Any]) -> str:
    lifetimes = [value for name, value in mark.items() if name.lower() == "ttl" and value is not None]
    lifetime = "5m" if not lifetimes else lifetimes[0] if len(lifetimes) == 1 else "?"
    return lifetime if isinstance(lifetime, str) and lifetime in {"5m", "1h"} else "?"


def _path(chain: Any) -> str:
    names: list[str | int] = []
    while chain is not None:
        name, chain = chain
        names.append(name)
    path = ""
    for name in reversed(names):
        path += f"[{name}]" if isinstance(name, int) else f".{name}" if path else name
    return path


def _refusal(message: str, param: str, *, value: bool = False) -> InvalidRequestError:
    return InvalidRequestError(
        message, param=param[:200], code="unsupported_value" if value else "unsupported_parameter"
    )


# ── Images ──────────────────────────────────────────────────────────────────────────────────────────────────

_IMAGE_TYPES: Final = "avif|bmp|gif|heic|heif|jpe?g|png|svg|tiff?|webp"
_IMAGE_DATA: Final = re.compile(rf"data:image/(?:{_IMAGE_TYPES}|svg\+xml|jpg)[;,]")
_IMAGE_NAME: Final = re.compile(rf"\.(?:{_IMAGE_TYPES})$")
_OTHER_NAME: Final = re.compile(
    r"\.(?:3gpp?|aac|aiff?|avi|csv|docx?|epub|flac|flv|html?|m3u8|m4[av]|md|mkv|mov|mp[34]|mpe?g|mpd|oga|ogg|ogv|opus|pcm"
    r"|pdf|pptx?|rtf|tar|ts|txt|wav|webm|wmv|xlsx?|xml|zip)(?![a-z0-9])"
)
_VIDEO_HOSTS: Final = re.compile(
    r"(?:^|\.)(?:youtube\.com|youtu\.be|youtube-nocookie\.com|googlevideo\.com|vimeo\.com|dailymotion\.com|tiktok\.com"
    r"|twitch\.tv|bilibili\.com|naver\.tv|tv\.naver\.com|tv\.kakao\.com)$"
)
_UNQUOTES = 4


def is_one_image(url: Any, *, films: bool) -> bool:
    """Whether an image's address is that of one image as far as can be seen, and not of a film or a document, which some
    providers take in its place. ``films`` if this model's providers do: then a link must be named like an image.
    """
    if not isinstance(url, str):
        return False
    if url[:5].lower() == "data:":
        return bool(_IMAGE_DATA.match(url[:32].lower()))
    for _ in range(_UNQUOTES):
        if (plain := unquote(url)) == url:
            break
        url = plain
    else:
        return False
    url = url.lower()
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme not in {"http", "https"} or not host or re.search(r"[\s\x00-\x1f\\]", url):
        return False
    if _OTHER_NAME.search(url[url.index(host) + len(host) :]) or _VIDEO_HOSTS.search(host.rstrip(".")):
        return False
    name = parts.path.rstrip("/").rpartition("/")[2]
    return bool(_IMAGE_NAME.search(name)) or not (films or "." in name)


def is_recording(audio: Any) -> bool:
    """Whether a part's audio is the sound itself, and not the address of one, which may be of any length."""
    if not isinstance(audio, Mapping) or not audio.keys() <= {"data", "format"}:
        return False
    data = audio.get("data")
    if not isinstance(data, str) or ":" in (start := re.sub(r"\s", "", data[:128])[:64]):
        return False
    try:
        return b":/" not in base64.b64decode(start.translate({ord("-"): "+", ord("_"): "/"}) + "==")
    except ValueError:
        return False
