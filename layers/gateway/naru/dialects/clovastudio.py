"""CLOVA Studio's dialect: OpenAI's with fields missing, and with limits of its own.

``FIELDS`` holds one decision for each top-level field of OpenAI's chat API. Whatever changes the answer and cannot be
had is refused, with advice; what only helps OpenAI's bookkeeping, or is a hint, is left out; so is a null.
Sources: NAVER's "OpenAI compatibility" and "Chat Completions v3" (api.ncloud-docs.com). Of other fields NAVER's own
(``OWN_FIELDS``) are sent, and those that the deployment ``passes``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from naru.dialects import openai
from naru.dialects.openai import answer, error, unsupported

if TYPE_CHECKING:
    from naru.catalog import Deployment

__all__ = ["FIELDS", "Field", "answer", "error", "request_body"]

MIN_OUTPUT_TOKENS_WITH_TOOLS = 1_024
_MOST_IMAGES = 5
_CACHE_MARKS = frozenset({"prompt_cache_breakpoint", "cache_control"})

_DROPPED: Final = object()
_INVALID: Final = object()
_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

_Translate = Callable[[Any, Mapping[str, Any], "Deployment"], Any]


@dataclass(frozen=True, slots=True)
class Field:
    """What becomes of a field."""

    verdict: Literal["pass", "strip", "map", "clamp", "refuse"]
    reason: str
    neutral: tuple[Any, ...] = ()
    """For ``refuse``: values that ask for nothing, left out without a word."""
    advice: str = "Leave it out."
    translate: _Translate | None = None
    """For ``map`` and ``clamp``: the value to send, or ``_DROPPED``. May raise."""


def request_body(body: Mapping[str, Any], *, deployment: Deployment, output_limit: int) -> dict[str, Any]:
    """See :class:`naru.dialects.Dialect`."""
    asked = {name: value for name, value in body.items() if name not in deployment.strip}
    _refuse_content(asked, deployment)
    translated: dict[str, Any] = {}
    for name, value in asked.items():
        field = FIELDS.get(name) or _foreign(name, deployment)
        decided = _decide(name, value, field, asked, deployment)
        if decided is not _DROPPED:
            translated[name] = decided
    _reconcile_tools(translated, asked, deployment, output_limit)
    _reconcile_thinking(translated, asked, deployment)
    openai.address(translated, body, deployment=deployment, output_limit=output_limit)
    return translated


def _foreign(name: str, deployment: Deployment) -> Field:
    """What becomes of a field that is not OpenAI's."""
    if name in OWN_FIELDS or name in deployment.passes:
        return OWN_FIELDS.get(name, _PASSES)
    return Field("refuse", "it is not one of its fields")


def _decide(name: str, value: Any, field: Field, asked: Mapping[str, Any], deployment: Deployment) -> Any:
    if value is None or field.verdict == "strip":
        return _DROPPED
    if field.verdict == "refuse":
        if value in field.neutral:
            return _DROPPED
        raise unsupported(
            f"{deployment.upstream_model} does not support {name}: {field.reason}. {field.advice}",
            param=name,
            value=bool(field.neutral),
        )
    return value if field.translate is None else field.translate(value, asked, deployment)


# ── Messages ────────────────────────────────────────────────────────────────────────────────────────────


def _refuse_content(body: Mapping[str, Any], deployment: Deployment) -> None:
    openai.refuse_content(body, deployment)
    with_image, images = -1, 0
    for i, j, part in openai.content_parts(body):
        if part.get("type") == "image_url":
            if i == with_image:
                raise unsupported(
                    f"{deployment.upstream_model} takes one image a message. Send the others in messages of their own.",
                    param=f"messages[{i}].content[{j}]",
                )
            with_image = i
            images += 1
            if images > _MOST_IMAGES:
                raise unsupported(
                    f"{deployment.upstream_model} takes {_MOST_IMAGES} images a request. Leave older ones out.",
                    param=f"messages[{i}].content[{j}]",
                )
    messages = body.get("messages")
    for i, message in enumerate(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role") == "function":
            raise unsupported(
                f"{deployment.upstream_model} does not know the role function. Use tools, and the role tool.",
                param=f"messages[{i}].role",
                value=True,
            )


def _messages(messages: Any, _asked: Mapping[str, Any], _deployment: Deployment) -> Any:
    """One system message, at the front, in the order in which its parts were said.

    NAVER takes a single one. Only one answer is wanted, the next; whatever the system has said so far is in force for
    it, wherever it was said, and keeps its rank. As a user's words it would lose that, and a user could contradict it.
    """
    if not isinstance(messages, list):
        return messages
    rest: list[Any] = []
    system: list[tuple[int, dict[str, Any]]] = []
    for i, message in enumerate(messages):
        if isinstance(message, dict) and message.get("role") in ("system", "developer"):
            system.append((i, message))
        else:
            rest.append(_without_cache_marks(message))
    if not system:
        return rest
    if len(system) == 1:
        return [_without_cache_marks({**system[0][1], "role": "system"}), *rest]
    texts = (_text(message, i) for i, message in system)
    return [{"role": "system", "content": "\n\n".join(text for text in texts if text)}, *rest]


def _text(message: Mapping[str, Any], i: int) -> str:
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content or ""}]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    if all(isinstance(text, str) for text in texts):
        return "\n".join(text for text in texts if isinstance(text, str))
    raise unsupported("A system message here can hold text only.", param=f"messages[{i}].content", value=True)


def _without_cache_marks(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    if not any(isinstance(each, dict) and not _CACHE_MARKS.isdisjoint(each) for each in (message, *parts)):
        return message
    plain = _without_marks(message)
    return {**plain, "content": [_without_marks(part) for part in parts]} if parts else plain


def _without_marks(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: part for name, part in value.items() if name not in _CACHE_MARKS}


# ── Tools, thinking, formats ────────────────────────────────────────────────────────────────────────────


def _tools(tools: Any, asked: Mapping[str, Any], deployment: Deployment) -> Any:
    if tools == []:
        return _DROPPED
    openai.refuse_tools(asked, deployment)
    for i, tool in enumerate(tools if isinstance(tools, list) else []):
        if isinstance(tool, dict) and tool.get("type", "function") != "function":
            raise unsupported(
                f"{deployment.upstream_model} calls functions only. Describe the tool as a function.",
                param=f"tools[{i}].type",
                value=True,
            )
    return [_without_marks(tool) for tool in tools] if isinstance(tools, list) else tools


def _tool_choice(choice: Any, asked: Mapping[str, Any], deployment: Deployment) -> Any:
    tools = asked.get("tools")
    if choice in ("auto", "none"):
        return choice if tools else _DROPPED
    if isinstance(choice, dict) and choice.get("type") == "function":
        return choice
    if choice == "required" and isinstance(tools, list) and len(tools) == 1 and isinstance(tools[0], dict):
        function = tools[0].get("function")
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            # With one tool to choose from, having to call a tool is having to call this one.
            return {"type": "function", "function": {"name": function["name"]}}
    raise unsupported(
        f'{deployment.upstream_model} takes the tool choices "auto", "none" and a named function. Name the function, '
        "or send only the one tool that is to be called.",
        param="tool_choice",
        value=True,
    )


def _reconcile_tools(
    translated: Mapping[str, Any], asked: Mapping[str, Any], deployment: Deployment, output_limit: int
) -> None:
    if not translated.get("tools"):
        return
    if any(part.get("type") == "image_url" for _, _, part in openai.content_parts(asked)):
        raise unsupported(
            f"{deployment.upstream_model} does not take tools together with images. Send one or the other.",
            param="tools",
        )
    if output_limit < MIN_OUTPUT_TOKENS_WITH_TOOLS:
        # Not raised in silence, not even from the model's default: the limit is what the budget was asked for.
        raise unsupported(
            f"{deployment.upstream_model} needs an output limit of at least {MIN_OUTPUT_TOKENS_WITH_TOOLS} tokens when "
            f"there are tools; it is {output_limit}. State a higher one, or leave the tools out.",
            param=openai.limit_param(asked, deployment),
            value=True,
        )


def _reasoning_effort(
    effort: Any, _asked: Mapping[str, Any], deployment: Deployment, *, param: str = "reasoning_effort"
) -> Any:
    if "reasoning" in deployment.capabilities:
        # OpenAI has seven steps, NAVER four: the nearest that thinks, and no more than asked for where that exists.
        nearest = {"minimal": "low", "xhigh": "high", "max": "high"}
        return nearest.get(effort, effort) if isinstance(effort, str) else effort
    if effort in ("none", "minimal", "low"):
        return _DROPPED  # a model that does not think spends as little as that
    raise unsupported(
        f"{deployment.upstream_model} does not reason. Leave {param} out, or choose a model that does.",
        param=param,
    )


def _thinking(thinking: Any, asked: Mapping[str, Any], deployment: Deployment) -> Any:
    """NAVER's and Anthropic's way to say how deeply to think, as an effort: the one form in which it is sent."""
    effort: Any = _INVALID
    if isinstance(thinking, Mapping) and thinking.keys() <= {"effort", "type"}:
        kind, effort = thinking.get("type"), thinking.get("effort")
        if kind == "disabled" and effort in (None, "none"):
            effort = "none"
        elif kind not in (None, "enabled", "adaptive") or effort not in (None, *_EFFORTS):
            effort = _INVALID
        elif kind is not None and effort is None:
            effort = "low"  # NAVER's own default
    if effort is _INVALID:
        raise unsupported(
            f'{deployment.upstream_model} takes {{"effort": "none" | "low" | "medium" | "high"}} here, and no budget of '
            "tokens. Use reasoning_effort, or limit the answer with max_completion_tokens.",
            param="thinking",
            value=True,
        )
    if effort is None:
        return _DROPPED
    wanted = _reasoning_effort(effort, asked, deployment, param="thinking")
    other = asked.get("reasoning_effort")
    if other is not None and _reasoning_effort(other, asked, deployment) != wanted:
        raise unsupported(
            f"thinking and reasoning_effort ask {deployment.upstream_model} for different things. Leave one of them out.",
            param="thinking",
            value=True,
        )
    return wanted


def _reconcile_thinking(translated: dict[str, Any], asked: Mapping[str, Any], deployment: Deployment) -> None:
    """HCX-007 thinks unless told not to, and cannot think while it uses tools, follows a schema, sees an image or stops
    at a text.
    """
    if (effort := translated.pop("thinking", None)) is not None:
        translated["reasoning_effort"] = effort
    if "reasoning" not in deployment.capabilities:
        return
    if translated.get("tools"):
        what = "tools"
    elif "response_format" in translated:
        what = "a JSON schema"
    elif translated.get("stop"):
        what = "stop sequences"
    elif any(part.get("type") == "image_url" for _, _, part in openai.content_parts(asked)):
        what = "images"
    else:
        return
    if translated.setdefault("reasoning_effort", "none") != "none":
        param = "thinking" if asked.get("reasoning_effort") is None else "reasoning_effort"
        off = '{"effort": "none"}' if param == "thinking" else '"none"'
        raise unsupported(
            f"{deployment.upstream_model} cannot reason with {what}. Set {param} to {off}, or leave it out.",
            param=param,
            value=True,
        )


def _response_format(response_format: Any, _asked: Mapping[str, Any], deployment: Deployment) -> Any:
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if kind == "text":
        return _DROPPED
    if kind not in ("json_schema", "json_object") or kind in deployment.capabilities:
        return response_format
    if kind == "json_object" and "json_schema" in deployment.capabilities:
        advice = 'Use {"type": "json_schema"} with a schema.'
    else:
        advice = "Ask for JSON in the prompt, or choose a model that does."
    raise unsupported(
        f"{deployment.upstream_model} does not support the response format {kind}. {advice}",
        param="response_format",
        value=True,
    )


# ── Single values ───────────────────────────────────────────────────────────────────────────────────────


def _temperature(temperature: Any, _asked: Mapping[str, Any], _deployment: Deployment) -> Any:
    return 1 if isinstance(temperature, (int, float)) and temperature > 1 else temperature


def _parallel_tool_calls(parallel: Any, asked: Mapping[str, Any], deployment: Deployment) -> Any:
    if parallel is False and asked.get("tools") and asked.get("tool_choice") != "none":
        raise unsupported(
            f"{deployment.upstream_model} cannot be kept from calling several tools at once. Leave parallel_tool_calls out, "
            "and run the first call only.",
            param="parallel_tool_calls",
            value=True,
        )
    return _DROPPED if isinstance(parallel, bool) else parallel


def _stop(stop: Any, _asked: Mapping[str, Any], _deployment: Deployment) -> Any:
    return _DROPPED if stop in ("", []) else stop


def _stream_options(options: Any, _asked: Mapping[str, Any], deployment: Deployment) -> Any:
    return options if deployment.stream_usage else _DROPPED


_BOOKKEEPING = "OpenAI's bookkeeping; the answer is the same without it"
_CACHE = "steers a cache that NAVER does not have; the answer is the same without it"
_SPEED = "asks for the same answer sooner or cheaper"
_WORDING = "it changes which words come, and nothing here does the same"

FIELDS: Final[Mapping[str, Field]] = {
    "messages": Field("map", "one system message, at the front; no developer", translate=_messages),
    "model": Field("map", "the catalog's name for it at the provider"),
    "audio": Field("refuse", "it answers in text only", advice="Leave it out, or choose a model that speaks."),
    "frequency_penalty": Field("refuse", _WORDING, neutral=(0,), advice="Leave it out, or try repetition_penalty."),
    "function_call": Field(
        "refuse", "tool_choice has replaced it", neutral=("auto", "none"), advice="Use tool_choice."
    ),
    "functions": Field("refuse", "tools have replaced them", neutral=([],), advice="Use tools."),
    "logit_bias": Field("refuse", _WORDING, neutral=({},)),
    "logprobs": Field("refuse", "it reports no probabilities", neutral=(False,)),
    "max_completion_tokens": Field("map", "sent under the name that the model knows, and always sent: its own is 512"),
    "max_tokens": Field("map", "sent under the name that the model knows, and always sent: its own is 512"),
    "metadata": Field("strip", _BOOKKEEPING),
    "modalities": Field("refuse", "it answers in text only", neutral=(["text"], []), advice='Ask for ["text"].'),
    "moderation": Field("refuse", "a check that did not happen must not seem to have", advice="Moderate separately."),
    "n": Field("refuse", "it gives one answer a request", neutral=(1,), advice="Send the request several times."),
    "parallel_tool_calls": Field(
        "map", "true is the default and only permits; false cannot be had", translate=_parallel_tool_calls
    ),
    "prediction": Field("strip", _SPEED),
    "presence_penalty": Field("refuse", _WORDING, neutral=(0,), advice="Leave it out, or try repetition_penalty."),
    "prompt_cache_key": Field("strip", _CACHE),
    "prompt_cache_options": Field("strip", _CACHE),
    "prompt_cache_retention": Field("strip", _CACHE),
    "reasoning_effort": Field(
        "map", "seven steps become four; none with tools, a schema or stop", translate=_reasoning_effort
    ),
    "response_format": Field("map", "text is the default; json_schema only", translate=_response_format),
    "safety_identifier": Field("strip", _BOOKKEEPING),
    "seed": Field("pass", "supported"),
    "service_tier": Field("strip", _SPEED),
    "stop": Field("pass", "supported, but not while it thinks", translate=_stop),
    "store": Field("strip", _BOOKKEEPING),
    "stream": Field("pass", "supported"),
    "stream_options": Field("map", "not supported; the gateway counts instead", translate=_stream_options),
    "temperature": Field("clamp", "NAVER's scale ends at 1, its most varied; OpenAI's at 2", translate=_temperature),
    "tool_choice": Field("map", "required becomes the only tool's name", translate=_tool_choice),
    "tools": Field("map", "functions only; an empty list is none", translate=_tools),
    "top_logprobs": Field("refuse", "it reports no probabilities", neutral=(0,)),
    "top_p": Field("pass", "supported"),
    "user": Field("strip", _BOOKKEEPING),
    "verbosity": Field("strip", "a hint at the length, which the prompt can give as well"),
    "web_search_options": Field(
        "refuse", "it cannot search", advice="Search first, and put the results into a message."
    ),
}

_PASSES: Final = Field("pass", "the operator lets it pass")
OWN_FIELDS: Final[Mapping[str, Field]] = {
    "repetition_penalty": Field("pass", "NAVER's own"),
    "thinking": Field("map", "sent as reasoning_effort", translate=_thinking),
    "top_k": Field("pass", "NAVER's own"),
}
"""Fields that NAVER has and OpenAI does not."""
