"""How faults are asked for: directives in a prompt, rules posted to `/_control`, and which of them apply."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from local.simulated_model.faults import BadInstructionError, Fault


@dataclass(frozen=True)
class Directives:
    """What `[[sim key=value …]]` in the last user message asks for.

    `tokens` is the exact length of a text answer, `cached` and `reasoning` are token counts; with `odd=1` the answer begins
    with characters beyond U+FFFF and with separators that readers of lines split at; `fault` may be repeated;
    `id` does nothing but make a prompt unique, so that `times` counts for it alone.
    """

    tokens: int | None = None
    ttft_ms: float | None = None
    token_ms: float | None = None
    cached: int | None = None
    reasoning: int | None = None
    odd: int | None = None
    id: str | None = None
    faults: tuple[Fault, ...] = ()


_DIRECTIVE = re.compile(r" ?\[\[sim\b([^\]]*)\]\]")
_NUMBERS: Mapping[str, Callable[[str], float]] = {
    "tokens": int, "ttft_ms": float, "token_ms": float, "cached": int, "reasoning": int, "odd": int,
}  # fmt: skip


def without_directives(text: str) -> str:
    """Return the text as the model reads it."""
    return _DIRECTIVE.sub("", text)


def parse_directives(text: str) -> Directives:
    """Return what the directives of a text ask for. Raises BadInstructionError for anything not understood."""
    values: dict[str, Any] = {}
    faults: list[Fault] = []
    if text.count("[[sim") != len(_DIRECTIVE.findall(text)):
        raise BadInstructionError("a [[sim …]] directive is not closed")
    for word in " ".join(_DIRECTIVE.findall(text)).split():
        key, equals, value = word.partition("=")
        if not equals or (key not in _NUMBERS and key not in {"id", "fault"}) or key in values:
            raise BadInstructionError(
                f"bad sim directive {word!r}; there are {', '.join(item.name for item in fields(Directives))}"
            )
        if key == "fault":
            faults.append(Fault.parse(value))
            continue
        try:
            values[key] = _NUMBERS[key](value) if key in _NUMBERS else value
        except ValueError as error:
            raise BadInstructionError(f"bad sim directive {word!r}: {error}") from error
        if key in _NUMBERS and values[key] < 0:
            raise BadInstructionError(f"bad sim directive {word!r}: below zero")
    return Directives(**values, faults=tuple(faults))


@dataclass(frozen=True)
class Occasion:
    """What a rule can match: `contains` looks into the last user message, directives included."""

    model: str
    face: str
    key: str
    text: str


@dataclass
class Rule:
    """One posted rule, and how often it may still apply."""

    match: Mapping[str, str]
    faults: tuple[Fault, ...]
    times: int | None = None
    probability: float = 1.0

    @classmethod
    def of(cls, values: Any) -> Rule:
        """Make a rule from JSON. Raises BadInstructionError."""
        if not isinstance(values, dict) or set(values) - {"match", "times", "probability", "fault"}:
            raise BadInstructionError("a rule is an object of match, times, probability and fault")
        match, fault = values.get("match") or {}, values.get("fault")
        if not isinstance(match, dict) or set(match) - {"model", "face", "key", "contains"}:
            raise BadInstructionError("match is an object of model, face, key and contains")
        given: list[Any] = fault if isinstance(fault, list) else [fault]
        if not given or not all(isinstance(item, dict) for item in given):
            raise BadInstructionError('fault is an object such as {"name": "status", "status": 503}, or a list of them')
        times, probability = values.get("times"), values.get("probability", 1.0)
        if not (times is None or isinstance(times, int)) or not isinstance(probability, int | float):
            raise BadInstructionError("times is a whole number or null, probability a number")
        faults = tuple(Fault.of(item) for item in given)
        return cls({str(key): str(value) for key, value in match.items()}, faults, times, probability)

    def matches(self, occasion: Occasion) -> bool:
        """Say whether the rule is about this request and not used up."""
        wanted = {key: value for key, value in self.match.items() if key != "contains"}
        same = all(getattr(occasion, key) == value for key, value in wanted.items())
        return same and self.match.get("contains", "") in occasion.text and self.times != 0


class Faults:
    """The rules in force, and how often each directive's fault has been used."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.clear()

    def clear(self) -> None:
        """Forget all rules and counts, and start the random numbers again."""
        self.rules: list[Rule] = []
        self.rng = random.Random(self._seed)
        self._used: Counter[tuple[str, int]] = Counter()

    def choose(self, occasion: Occasion, directives: Directives) -> dict[str, Fault]:
        """Return the faults of one request by name: its directives', and those of the first rule that applies.

        A rule's `times` counts requests that it was applied to; a directive's counts requests with the same prompt.
        """
        chosen: dict[str, Fault] = {}
        for index, fault in enumerate(directives.faults):
            if not _applies(fault, occasion):
                continue
            if fault.times is not None:
                self._used[occasion.text, index] += 1
                if self._used[occasion.text, index] > fault.times:
                    continue
            chosen.setdefault(fault.name, fault)
        for rule in self.rules:
            if rule.matches(occasion) and (rule.probability >= 1 or self.rng.random() < rule.probability):
                rule.times = None if rule.times is None else rule.times - 1
                for fault in rule.faults:
                    if _applies(fault, occasion):
                        chosen.setdefault(fault.name, fault)
                break
        return chosen


def _applies(fault: Fault, occasion: Occasion) -> bool:
    return fault.model in {None, occasion.model} and fault.face in {None, occasion.face}


def parse_json(text: bytes) -> Any:
    """Return what a posted body says. Raises BadInstructionError."""
    try:
        return json.loads(text or b"{}")
    except ValueError as error:
        raise BadInstructionError(f"not JSON: {error}") from error
