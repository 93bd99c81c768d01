"""DynamoDB's typed values and Python's. Numbers that Naru keeps are whole, because money and tokens are; what else an
item holds, of a newer release or of a person's hand, is read all the same, and written back as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Verbatim:
    """A value that Naru does not keep, such as a fraction, in DynamoDB's form."""

    kind: str
    value: Any


def to_attribute(value: Any) -> dict[str, Any]:
    """A value in DynamoDB's form; a frozenset is a set of strings.

    Raises TypeError for what the tables never hold, floats above all.
    """
    match value:
        case bool():
            return {"BOOL": value}
        case int():
            return {"N": str(value)}
        case str():
            return {"S": value}
        case list() | tuple():
            return {"L": [to_attribute(part) for part in value]}
        case Mapping():
            return {"M": to_item(value)}
        case frozenset():
            return {"SS": sorted(value)}
        case bytes():
            return {"B": value}
        case Verbatim():
            return {value.kind: value.value}
        case _:
            raise TypeError(f"{type(value).__name__} is not kept in a table")


def from_attribute(attribute: Mapping[str, Any]) -> Any:
    """The value that an attribute holds."""
    ((kind, value),) = attribute.items()
    match kind:
        case "N":
            return int(value) if value.lstrip("-").isdecimal() else Verbatim(kind, value)
        case "S" | "BOOL" | "B":
            return value
        case "L":
            return [from_attribute(part) for part in value]
        case "M":
            return from_item(value)
        case "SS":
            return frozenset(value)
        case _:
            return Verbatim(kind, value)


def to_item(values: Mapping[str, Any]) -> dict[str, Any]:
    """An item, or the content of a map."""
    return {name: to_attribute(value) for name, value in values.items()}


def from_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an item, or of a map."""
    return {name: from_attribute(attribute) for name, attribute in item.items()}
