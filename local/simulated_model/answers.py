"""What the model answers, all of it decided before the first token: a function of the request body.

Of the body count the messages (without directives), tools, response format and seed, not the model, the limits or
whether it streams: a fallback to another deployment would have said the same, and the streamed answer is the whole one.

- A prompt whose last message is not a tool's result is answered by a tool call, when tools are given and allowed.
- A tool's result is quoted; images are counted aloud; a JSON format gets JSON that fits its schema.
- A last message by the assistant is continued, from the character where it stops, where the model does that.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from local.simulated_model import dialects, schema, text, tokens
from local.simulated_model.config import Config
from local.simulated_model.instructions import Directives, without_directives

FinishReason = Literal["stop", "length", "tool_calls"]

_EFFORT_TOKENS = {"none": 0, "low": 24, "medium": 72, "high": 160}
_ODD = "😀\u2028🌍\x85\u2029\u000b\x1c👩\u200d🚀 "
_DEFAULT_JSON = {
    "type": "object",
    "properties": {
        "제목": {"type": "string"},
        "요약": {"type": "string"},
        "항목": {"type": "array", "items": {"type": "string"}},
        "점수": {"type": "integer", "minimum": 1, "maximum": 10},
    },
}


@dataclass(frozen=True)
class Step:
    """What is generated, billed and sent at one time: a piece of text, of thinking, or of a tool call.

    `call` is the index of a tool call; its first step has `call_id` and the function's name as `piece`.
    """

    piece: str
    kind: Literal["content", "reasoning", "tool_call"]
    call: int = 0
    call_id: str | None = None
    tokens: int = 1


@dataclass(frozen=True)
class Choice:
    """One of the n answers."""

    steps: tuple[Step, ...]
    finish_reason: FinishReason

    def text(self, kind: str) -> str | None:
        """Return all content, or all reasoning; None where there is none."""
        pieces = [step.piece for step in self.steps if step.kind == kind]
        return "".join(pieces) if pieces else None

    def tool_calls(self) -> list[dict[str, Any]]:
        """Return the tool calls as a JSON answer has them."""
        calls: list[dict[str, Any]] = []
        for step in self.steps:
            if step.kind == "tool_call" and step.call_id is not None:
                calls.append(
                    {"id": step.call_id, "type": "function", "function": {"name": step.piece, "arguments": ""}}
                )
            elif step.kind == "tool_call":
                calls[step.call]["function"]["arguments"] += step.piece
        return calls


@dataclass(frozen=True)
class Asked:
    """A request as the generator reads it. With a `salt` the answer is not what others would say."""

    body: dict[str, Any]
    face: dialects.Face
    directives: Directives
    config: Config
    salt: str = ""
    messages: list[dict[str, Any]] = field(init=False)
    prefill: str = field(init=False)
    seed: int = field(init=False)

    def __post_init__(self) -> None:
        """Work out what the answer depends on."""
        messages: list[dict[str, Any]] = self.body["messages"]
        prefill = ""
        if messages[-1]["role"] == "assistant" and self.body["model"].startswith(self.config.prefill_models):
            prefill = message_text(messages[-1])
            messages = messages[:-1] or messages
        read = [[message["role"], without_directives(message_text(message))] for message in messages]
        rest = [self.body.get(name) for name in ("tools", "response_format", "seed")]
        object.__setattr__(self, "messages", messages)
        object.__setattr__(self, "prefill", prefill)
        salt = [self.salt] if self.salt else []
        object.__setattr__(self, "seed", text.digest(read, rest, *salt))


def message_text(message: dict[str, Any]) -> str:
    """Return the text of a message, its parts joined by newlines."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if isinstance(part.get("text"), str))
    return content or ""


def last_user_text(body: dict[str, Any]) -> str:
    """Return the text of the last message by the user, directives included."""
    spoken = [message for message in body["messages"] if message["role"] == "user"]
    return message_text(spoken[-1]) if spoken else ""


def choices(asked: Asked) -> list[Choice]:
    """Return the n answers, each cut to the limit and at the stop sequences."""
    limit = dialects.limit_tokens(asked.face, asked.body)
    return [_cut(_choice(asked, index), limit) for index in range(asked.body.get("n") or 1)]


def reasoning_tokens(asked: Asked) -> int:
    """Return how long the model thinks; HCX-007 does by default, but not where tools or a schema exclude it."""
    if asked.directives.reasoning is not None:
        return asked.directives.reasoning
    if asked.face != "clova" or not asked.body["model"].startswith("HCX-007"):
        return 0
    plain = not asked.body.get("tools") and not asked.body.get("response_format")
    return _EFFORT_TOKENS[dialects.effort(asked.body) or ("low" if plain else "none")]


def _choice(asked: Asked, index: int) -> Choice:
    seed = text.digest(asked.seed, index) if index else asked.seed
    thinking = [Step(piece, "reasoning") for piece in text.thoughts(seed, reasoning_tokens(asked))]
    calls = _tool_calls(asked, seed)
    if calls:
        return Choice((*thinking, *calls), "tool_calls")
    content = [Step(piece, "content") for piece in _stopped(asked, _content(asked, seed))]
    return Choice((*thinking, *content), "stop")


def _tool_calls(asked: Asked, seed: int) -> list[Step]:
    tools, wanted = asked.body.get("tools") or [], asked.body.get("tool_choice")
    if not tools or wanted == "none" or asked.messages[-1]["role"] in {"tool", "function"}:
        return []
    functions = [tool.get("function") or {} for tool in tools]
    if isinstance(wanted, dict):
        name = (wanted.get("function") or {}).get("name")
        functions = [function for function in functions if function.get("name") == name] or functions
    function = functions[0]
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    cities: list[str | None] = [*schema.cities_in(without_directives(last_user_text(asked.body)))]
    if not cities or not schema.has_place(parameters):
        cities = [cities[0] if cities else None]
    if asked.body.get("parallel_tool_calls") is False:
        cities = cities[:1]
    steps: list[Step] = []
    for index, city in enumerate(cities):
        name = str(function.get("name", ""))
        call_id = f"call_{text.digest(seed, index):024x}"[:29]
        steps.append(Step(name, "tool_call", index, call_id, max(1, tokens.count(name))))
        arguments = tokens.compact_json(schema.Sampler(parameters, seed, city).value())
        steps += [Step(piece, "tool_call", index) for piece in tokens.split(arguments)]
    return steps


def _content(asked: Asked, seed: int) -> list[str]:
    wanted = asked.body.get("response_format") or {}
    if wanted.get("type") in {"json_object", "json_schema"}:
        document = (wanted.get("json_schema") or {}).get("schema") or _DEFAULT_JSON
        return tokens.split(tokens.compact_json(schema.Sampler(document, seed).value()))
    lead = ""
    last = asked.messages[-1]
    if last["role"] in {"tool", "function"}:
        lead = f"조회한 결과는 “{message_text(last)}”입니다. "
    if asked.directives.odd:
        lead += _ODD
    pictures = sum(dialects.images(message) for message in asked.messages)
    if pictures:
        lead += f"사진 {pictures}장을 보았습니다. "
    length = asked.directives.tokens
    if length is None:
        length = asked.config.answer_tokens
    if length is None:
        length = 40 + seed % 81 + tokens.count(lead)
    pieces = text.prose(seed, length, lead)
    whole = "".join(pieces)
    if asked.prefill and whole.startswith(asked.prefill):
        return tokens.split(whole[len(asked.prefill) :])
    return pieces


def _stopped(asked: Asked, pieces: list[str]) -> list[str]:
    stop = asked.body.get("stop") or []
    whole = "".join(pieces)
    found = [whole.find(sequence) for sequence in ([stop] if isinstance(stop, str) else stop) if sequence in whole]
    return tokens.split(whole[: min(found)]) if found else pieces


def _cut(choice: Choice, limit: int | None) -> Choice:
    if limit is None or sum(step.tokens for step in choice.steps) <= limit:
        return choice
    kept: list[Step] = []
    for step in choice.steps:
        limit -= step.tokens
        if limit < 0:
            break
        kept.append(step)
    return replace(choice, steps=tuple(kept), finish_reason="length")
