"""JSON values that match simple JSON schemas: for structured output and for the arguments of tool calls."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from local.simulated_model.text import digest

CITIES = (
    "서울", "부산", "인천", "대구", "대전", "광주", "울산", "세종", "수원", "성남", "춘천", "강릉", "청주", "전주", "목포",
    "여수", "포항", "경주", "창원", "제주",
)  # fmt: skip

_CITY = re.compile("|".join(CITIES))
_JOINED = re.compile(
    f"(?:{_CITY.pattern})(?:특별시|광역시|시|도)? *(?:와|과|하고|이랑|랑|및|그리고|,) *(?:{_CITY.pattern})"
)
_PLACE = re.compile(r"city|location|place|region|도시|지역|장소", re.IGNORECASE)
_WORDS = ("나루", "배", "강", "사공", "물길", "새벽", "장터", "다리")


def cities_in(text: str) -> list[str]:
    """Return the known cities of a text in order: all of them when two are joined by 와, 과 or a comma, else one."""
    found = list(dict.fromkeys(_CITY.findall(text)))
    return found if _JOINED.search(text) else found[:1]


def has_place(schema: dict[str, Any]) -> bool:
    """Say whether an object schema has a property that a city would fill."""
    return any(_PLACE.search(name) for name in schema.get("properties") or {})


@dataclass(frozen=True)
class Sampler:
    """Makes values for one schema document; the same seed gives the same values."""

    document: dict[str, Any]
    seed: int
    city: str | None = None

    def value(self) -> Any:
        """Return a value that the document accepts."""
        return self._of(self.document, "")

    def _of(self, schema: Any, path: str) -> Any:
        if not isinstance(schema, dict):
            return None
        if "$ref" in schema:
            return self._of(self._resolve(str(schema["$ref"])), path)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return schema["enum"][digest(self.seed, path) % len(schema["enum"])]
        for union in ("anyOf", "oneOf", "allOf"):
            if schema.get(union):
                return self._of(schema[union][0], path)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        kind = kind[0] if isinstance(kind, list) else kind
        if kind == "object":
            return {name: self._of(inner, f"{path}/{name}") for name, inner in (schema.get("properties") or {}).items()}
        if kind == "array":
            length = min(max(2, schema.get("minItems", 0)), schema.get("maxItems", 2))
            return [self._of(schema.get("items") or {"type": "string"}, f"{path}/{index}") for index in range(length)]
        return self._scalar(kind, schema, path)

    def _scalar(self, kind: str, schema: dict[str, Any], path: str) -> Any:
        number = digest(self.seed, path)
        if kind in {"integer", "number"}:
            lowest = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1 if "exclusiveMinimum" in schema else 0)
            highest = schema.get("maximum", lowest + 99)
            whole = lowest + number % max(1, int(highest - lowest) + 1)
            return whole if kind == "integer" or whole + 0.5 > highest else whole + 0.5
        if kind == "boolean":
            return number % 2 == 0
        if kind == "null":
            return None
        if self.city is not None and _PLACE.search(path.rpartition("/")[2]):
            return self.city
        formats = {"date": "2026-03-01", "date-time": "2026-03-01T09:00:00+09:00", "email": "sagong@example.com"}
        text = str(formats.get(schema.get("format", ""), _WORDS[number % len(_WORDS)]))
        return text.ljust(schema.get("minLength", 0), "루")[: schema.get("maxLength", 200)]

    def _resolve(self, reference: str) -> Any:
        target: Any = self.document
        for key in reference.removeprefix("#/").split("/"):
            target = target.get(key) if isinstance(target, dict) else None
        return target
