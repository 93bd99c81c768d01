"""What a delta of a stream needs of those before it: the other half of a character, and the number of its tool call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from naru.halves import has_halves, mend, mend_start

_TEXTS = frozenset({"content", "reasoning_content", "reasoning", "refusal"})
_OF_AN_OBJECT = {"function_call": ("name", "arguments"), "audio": ("transcript",)}
_OF_A_CALL = {"function": ("name", "arguments"), "custom": ("name", "input")}


@dataclass(slots=True)
class _Call:
    """A call as far as it has come."""

    id: str = ""
    name: str = ""
    arguments: str = ""

    @property
    def is_over(self) -> bool:
        """Whether its arguments are a whole JSON text, so that nothing of it can follow."""
        try:
            json.loads(self.arguments)
        except (ValueError, RecursionError):
            return False
        return True


@dataclass(slots=True)
class _Calls:
    """The calls of one choice, by the index under which the client knows them."""

    known: dict[int, _Call] = field(default_factory=dict)
    place: dict[int, int] = field(default_factory=dict)
    """Where a call is that the provider numbers so."""


class Deltas:
    """Makes each delta of an answer readable by itself. ``choices`` is how many the client asked for."""

    def __init__(self, choices: int) -> None:
        self._choices = choices
        self._held: dict[tuple[str, ...], str] = {}
        self._calls: dict[str, _Calls] = {}

    def key(self, choice: Mapping[str, Any]) -> str:
        """Which choice it is: its index, which may be anything, and says nothing where there is only one."""
        return "0" if self._choices == 1 else str(choice.get("index", 0))

    def whole(self, choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """``choices`` with whole characters and numbered calls; the same list where they have them already.

        A half whose other half may still come is held back, and begins the next piece of the same text.
        """
        changed = [self._choice(choice) for choice in choices]
        for new, old in zip(changed, choices, strict=True):
            if new is not old:
                return changed
        return choices

    def held(self, key: str) -> dict[str, Any]:
        """A delta with a replacement character for each half of a choice that never met its other half."""
        delta: dict[str, Any] = {}
        for path in [path for path in self._held if path[0] == key]:
            text = mend(self._held.pop(path))
            match path[1:]:
                case (name,):
                    delta[name] = text
                case (part, name):
                    delta.setdefault(part, {})[name] = text
                case (index, kind, name):
                    call: dict[str, Any] = {"index": int(index), kind: {name: text}}
                    delta.setdefault("tool_calls", []).append(call)
                case _:
                    raise AssertionError(path)
        return delta

    def _choice(self, choice: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(delta := choice.get("delta"), dict):
            return choice
        key = self.key(choice)
        changed: dict[str, Any] = {}
        for name, said in delta.items():
            new = said
            if isinstance(said, str):
                new = self._mended((key, name), said) if name in _TEXTS else said
            elif isinstance(said, dict) and name in _OF_AN_OBJECT:
                new = self._texts_of((key, name), said, _OF_AN_OBJECT[name])
            elif isinstance(said, list) and said and name == "tool_calls":
                new = self._numbered(key, said)
            if new is not said:
                changed[name] = new
        return {**choice, "delta": {**delta, **changed}} if changed else choice

    def _mended(self, path: tuple[str, ...], text: str) -> str:
        if not text or not ((self._held and path in self._held) or has_halves(text)):
            return text
        mended, rest = mend_start(self._held.pop(path, "") + text)
        if rest:
            self._held[path] = rest
        return mended

    def _texts_of(self, path: tuple[str, ...], part: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
        for name in names:
            text = part.get(name)
            if isinstance(text, str) and (mended := self._mended((*path, name), text)) is not text:
                part = {**part, name: mended}
        return part

    def _numbered(self, key: str, calls: list[Any]) -> list[Any]:
        of = self._calls.setdefault(key, _Calls())
        taken: set[int] = set()
        changed = []
        for position, call in enumerate(calls):
            if not isinstance(call, dict):
                changed.append(call)
                continue
            index = _index(of, call, position if len(calls) > 1 else None, taken)
            taken.add(index)
            numbered = _numbered(call, index, of.known.setdefault(index, _Call()))
            changed.append(self._call((key, str(index)), numbered))
        return calls if all(new is old for new, old in zip(changed, calls, strict=True)) else changed

    def _call(self, path: tuple[str, ...], call: dict[str, Any]) -> dict[str, Any]:
        for kind, names in _OF_A_CALL.items():
            part = call.get(kind)
            if isinstance(part, dict) and (mended := self._texts_of((*path, kind), part, names)) is not part:
                call = {**call, kind: mended}
        return call


def _numbered(call: dict[str, Any], index: int, known: _Call) -> dict[str, Any]:
    """A delta of a call that says which one it is; ``known`` learns what it says."""
    said = _function_of(call)
    given = call.get("index")
    if given != index or not isinstance(given, int) or isinstance(given, bool):
        # Said again only to tell whose arguments these are; SDKs would append it.
        if given is None and known.id:
            call = {name: value for name, value in call.items() if name != "id"}
        if given is None and known.name and said.get("name") == known.name:
            unnamed = {name: value for name, value in said.items() if name != "name"}
            call = {**call, "function" if "function" in call else "custom": unnamed}
        call = {**call, "index": index}
    known.id = known.id or _string(call.get("id"))
    known.name = known.name or _string(said.get("name"))
    known.arguments += _string(said.get("arguments")) + _string(said.get("input"))
    return call


def _function_of(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function") if isinstance(call.get("function"), dict) else call.get("custom")
    return function if isinstance(function, dict) else {}


def _index(of: _Calls, call: Mapping[str, Any], position: int | None, taken: set[int]) -> int:
    """Which call a delta belongs to. A provider's own index counts, unless it gives one to two calls (as Gemini's
    compatibility layer does); without it the id tells, then the name, then the order.
    """
    given, identity, function = _number(call.get("index")), _string(call.get("id")), _function_of(call)
    name, says = _string(function.get("name")), _string(function.get("arguments")) or _string(function.get("input"))
    last = max(of.known, default=-1)
    if given is not None:
        index = of.place.get(given)
        if index is None or _is_another(of.known[index], identity, name, says):
            index = last + 1 if given in of.known else given
            of.place[given] = index
        return index
    if identity and (same := [i for i, known in of.known.items() if known.id == identity]):
        return same[0]
    if position is not None and not name and not identity:
        return position
    if last < 0 or last in taken:
        return last + 1
    known = of.known[last]
    if identity and known.id and (name or not says or known.is_over):
        return last + 1
    goes_on = not name or not known.name or (name == known.name and not known.is_over)
    return last if goes_on else last + 1


def _is_another(known: _Call, identity: str, name: str, says: str) -> bool:
    """Whether what comes under the index of a call that is known begins another one."""
    if not name or not known.name:
        return False
    return known.id not in {"", identity} if identity else bool(says) and known.is_over


def _number(value: Any) -> int | None:
    if isinstance(value, str) and value.isdecimal() and len(value) < 4:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1_000 else None


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""
