"""Parts of OpenAI's chat completion objects, whole and streamed."""

from __future__ import annotations

from typing import Any

from local.simulated_model.answers import Choice, Step
from local.simulated_model.billing import BillRow
from local.simulated_model.text import digest


def usage(row: BillRow, *, cost_pico_usd: int | None, reasoning_apart: bool) -> dict[str, Any]:
    """Return a usage object; a cost, when given, is the extra field of a sloppy provider, a float in USD."""
    apart = row["reasoning_tokens"] if reasoning_apart else 0
    reported: dict[str, Any] = {
        "prompt_tokens": row["prompt_tokens"],
        "completion_tokens": row["completion_tokens"] - apart,
        "total_tokens": row["prompt_tokens"] + row["completion_tokens"],
        "prompt_tokens_details": {"cached_tokens": row["cached_tokens"]},
        "completion_tokens_details": {"reasoning_tokens": row["reasoning_tokens"]},
    }
    return reported if cost_pico_usd is None else {**reported, "cost_usd": cost_pico_usd / 10**12}


def logprobs(pieces: list[str], rivals: int) -> dict[str, Any]:
    """Return made-up log probabilities, with `rivals` alternatives each, the likeliest first."""
    content = []
    for piece in pieces:
        likely = -(digest(piece) % 1000) / 2000
        candidates = [piece, *(f"{piece}{index}" for index in range(1, rivals))]
        top = [
            {"token": candidate, "logprob": likely - place, "bytes": list(candidate.encode())}
            for place, candidate in enumerate(candidates)
        ]
        content.append({**top[0], "top_logprobs": top if rivals else []})
    return {"content": content, "refusal": None}


def message(choice: Choice, thinking_field: str | None) -> dict[str, Any]:
    """Return the message of a whole answer; thinking is hidden where there is no field for it."""
    calls, content, thinking = choice.tool_calls(), choice.text("content"), choice.text("reasoning")
    said: dict[str, Any] = {
        "role": "assistant",
        "content": content if calls or content is not None else "",
        "refusal": None,
    }
    if calls:
        said["tool_calls"] = calls
    if thinking is not None and thinking_field is not None:
        said[thinking_field] = thinking
    return said


def delta(step: Step, thinking_field: str) -> dict[str, Any]:
    """Return what a stream says of one step: of a tool call first id and name, then pieces of its arguments."""
    if step.kind == "content":
        return {"content": step.piece}
    if step.kind == "reasoning":
        return {thinking_field: step.piece}
    if step.call_id is None:
        return {"tool_calls": [{"index": step.call, "function": {"arguments": step.piece}}]}
    function = {"name": step.piece, "arguments": ""}
    return {"tool_calls": [{"index": step.call, "id": step.call_id, "type": "function", "function": function}]}


def in_parts(text: str, turn: int) -> Any:
    """Return a text as some providers give it: a list of parts, one part, or a text, in turn."""
    part = {"type": "text", "text": text}
    return ([part], part, text)[turn % 3]


def halves(text: str) -> list[str]:
    """Return a text cut in the middle of its first character beyond U+FFFF, if it has one."""
    place = next((index for index, character in enumerate(text) if ord(character) > 0xFFFF), None)
    if place is None:
        return [text]
    first, second = text[place].encode("utf-16-le")[:2], text[place].encode("utf-16-le")[2:]
    high, low = (half.decode("utf-16-le", "surrogatepass") for half in (first, second))
    return [text[:place] + high, low + text[place + 1 :]]
