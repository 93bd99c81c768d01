"""What DynamoDB charges for, by its own rules, so that no account is needed to know it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def item_bytes(item: Mapping[str, Any]) -> int:
    """The size of an item (Developer guide, "DynamoDB item sizes and formats"): names and texts in UTF-8, a number a
    byte per two digits and one, a list or map 3 and one for each element.
    """
    return sum(len(name.encode()) + _value_bytes(value) for name, value in item.items())


def write_units(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> int:
    """One for each begun KB of the larger of both; a refused write costs as much."""
    return max(1, -(-max(item_bytes(before or {}), item_bytes(after or {})) // 1024))


def read_units(item: Mapping[str, Any] | None) -> int:
    """One for each begun 4 KB of a consistent read."""
    return max(1, -(-item_bytes(item or {}) // 4096))


def _value_bytes(value: Mapping[str, Any]) -> int:
    ((kind, content),) = value.items()
    match kind:
        case "S":
            return len(content.encode())
        case "N":
            return len(content.strip("-").strip("0")) // 2 + 2
        case "B":
            return len(content)
        case "BOOL" | "NULL":
            return 1
        case "SS":
            return sum(len(text.encode()) for text in content)
        case "L":
            return 3 + sum(1 + _value_bytes(part) for part in content)
        case "M":
            return 3 + sum(1 + len(name.encode()) + _value_bytes(part) for name, part in content.items())
        case _:
            raise ValueError(f"{kind} is not kept in a table")
