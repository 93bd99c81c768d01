"""A small DynamoDB in memory, for tests that need thousands of runs: what the gateway's own expressions use, no more.

It is a second implementation of their semantics, so it could be wrong in its own way. `test_the_model_of_dynamodb_*`
runs the same writes on it, on moto and on the emulator, and compares every answer: it cannot drift.

It is stricter than both where AWS is: reserved words, overlapping paths, placeholders that are not used, and numbers of
more than 38 digits are refused.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import lru_cache, wraps
from types import SimpleNamespace
from typing import Any

from botocore.exceptions import ClientError
from moto.dynamodb.parsing.reserved_keywords import ReservedKeywords

from naru.attributes import from_item, to_attribute
from tests.moto_tables import TEMPLATE

Item = dict[str, Any]
Path = tuple[str | int, ...]
Condition = Callable[[Item, Mapping[str, str], Mapping[str, Any]], bool]

_TOKEN = re.compile(r"\s*(<>|<=|>=|[-=<>(),.+]|\[\d+\]|[#:][A-Za-z0-9_]+|[A-Za-z_][A-Za-z0-9_]*)")
_RESERVED = frozenset(word.upper() for word in ReservedKeywords.get_reserved_keywords())
_FUNCTIONS = {"attribute_exists", "attribute_not_exists", "contains", "size"}
_MISSING: Any = object()


class ConditionalCheckFailedException(ClientError):  # noqa: N818 - boto3's names
    """A condition does not hold."""


class TransactionCanceledException(ClientError):  # noqa: N818
    """A condition of a transaction does not hold."""


class ValidationException(ClientError):  # noqa: N818
    """What DynamoDB does not accept, whatever the items are."""


def _to_item(values: Mapping[str, Any]) -> dict[str, Any]:
    """As :func:`naru.attributes.to_item`, and bytes."""
    return {name: {"B": value} if isinstance(value, bytes) else to_attribute(value) for name, value in values.items()}


def invalid(message: str) -> ValidationException:
    return ValidationException({"Error": {"Code": "ValidationException", "Message": message}}, "UpdateItem")


def model_of(*tables: str) -> Any:
    """With these tables of the template, called by their logical names."""
    properties = {name: TEMPLATE["Resources"][name]["Properties"] for name in tables}
    return DynamoDB(
        **{name: tuple(key["AttributeName"] for key in each["KeySchema"]) for name, each in properties.items()}
    )


def _one_at_a_time(call: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    @wraps(call)
    def locked(self: DynamoDB, **parameters: Any) -> dict[str, Any]:
        with self._lock:
            return call(self, **parameters)

    return locked


class DynamoDB:
    """The calls of a boto3 client that the gateway makes, one at a time, from any thread.

    ``keys`` names the key attributes of each table.
    """

    exceptions = SimpleNamespace(
        ConditionalCheckFailedException=ConditionalCheckFailedException,
        TransactionCanceledException=TransactionCanceledException,
    )

    def __init__(self, **keys: tuple[str, ...]) -> None:
        self._keys = keys
        self._lock = threading.RLock()
        self.tables: dict[str, dict[tuple[str, ...], Item]] = {table: {} for table in keys}
        """Items as Python's values."""

    @_one_at_a_time
    def get_item(self, *, TableName: str, Key: Mapping[str, Any], **_: Any) -> dict[str, Any]:  # noqa: N803
        item = self.tables[TableName].get(self._key(TableName, from_item(Key)))
        return {} if item is None else {"Item": _to_item(item)}

    @_one_at_a_time
    def batch_get_item(self, *, RequestItems: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N803
        found = {
            table: [self.get_item(TableName=table, Key=key).get("Item") for key in asked["Keys"]]
            for table, asked in RequestItems.items()
        }
        return {"Responses": {table: [item for item in items if item] for table, items in found.items()}}

    @_one_at_a_time
    def query(self, *, TableName: str, **more: Any) -> dict[str, Any]:  # noqa: N803
        items = self.tables[TableName]
        found = [items[key] for key in sorted(items) if _holds(more, items[key], "KeyConditionExpression")]
        return {"Items": [_to_item(item) for item in found if _holds(more, item, "FilterExpression")]}

    @_one_at_a_time
    def delete_item(self, *, TableName: str, Key: Mapping[str, Any], **more: Any) -> dict[str, Any]:  # noqa: N803
        key = self._key(TableName, from_item(Key))
        self._require(more, self.tables[TableName].get(key))
        self.tables[TableName].pop(key, None)
        return {}

    @_one_at_a_time
    def put_item(self, *, TableName: str, Item: Mapping[str, Any], **more: Any) -> dict[str, Any]:  # noqa: N803
        item = from_item(Item)
        key = self._key(TableName, item)
        before = self.tables[TableName].get(key)
        self._require(more, before)
        _check_numbers(item)
        self.tables[TableName][key] = item
        return {}

    @_one_at_a_time
    def update_item(self, *, TableName: str, Key: Mapping[str, Any], **more: Any) -> dict[str, Any]:  # noqa: N803
        key = self._key(TableName, from_item(Key))
        before = self.tables[TableName].get(key)
        self._require(more, before)
        after = self._updated(more, before if before is not None else from_item(Key))
        self.tables[TableName][key] = after
        return {"Attributes": _to_item(after)} if more.get("ReturnValues") == "ALL_NEW" else {}

    @_one_at_a_time
    def transact_get_items(self, *, TransactItems: Sequence[Mapping[str, Any]]) -> dict[str, Any]:  # noqa: N803
        return {"Responses": [self.get_item(**each["Get"]) for each in TransactItems]}

    @_one_at_a_time
    def transact_write_items(self, *, TransactItems: Sequence[Mapping[str, Any]], **_: Any) -> dict[str, Any]:  # noqa: N803
        written: list[tuple[str, tuple[str, ...], Item | None]] = []
        reasons: list[dict[str, str]] = []
        for each in TransactItems:
            ((kind, call),) = each.items()
            table = call["TableName"]
            subject = from_item(call["Item"] if kind == "Put" else call["Key"])
            key = self._key(table, subject)
            if (table, key) in [where[:2] for where in written]:
                raise invalid("Transaction request cannot include multiple operations on one item")
            before = self.tables[table].get(key)
            reasons.append({"Code": "None" if _holds(call, before) else "ConditionalCheckFailed"})
            after: Item | None = before
            match kind:
                case "Put":
                    after = subject
                case "Delete":
                    after = None
                case "Update" if reasons[-1]["Code"] == "None":
                    after = self._updated(call, before if before is not None else subject)
            written.append((table, key, after))
        if {"Code": "ConditionalCheckFailed"} in reasons:
            error = {"Error": {"Code": "TransactionCanceledException", "Message": ""}, "CancellationReasons": reasons}
            raise TransactionCanceledException(error, "TransactWriteItems")  # type: ignore[arg-type]
        for table, key, item in written:
            self.tables[table].pop(key, None)
            if item is not None:
                self.tables[table][key] = item
        return {}

    @_one_at_a_time
    def scan(self, **call: Any) -> dict[str, Any]:
        return {"Items": [item for page in self._scan(**call) for item in page["Items"]]}

    def get_paginator(self, name: str) -> Any:
        if name == "query":
            return SimpleNamespace(paginate=lambda **call: [self.query(**call)])
        assert name == "scan"
        return SimpleNamespace(paginate=self._scan)

    def _scan(self, *, TableName: str, **more: Any) -> Iterator[dict[str, Any]]:  # noqa: N803
        """One item a page, so that writes can come in between."""
        for key in sorted(self.tables[TableName]):
            if (item := self.tables[TableName].get(key)) is not None and _holds(more, item, "FilterExpression"):
                yield {"Items": [_to_item(item)]}

    def _key(self, table: str, values: Item) -> tuple[str, ...]:
        if table not in self._keys:
            missing = {"Code": "ResourceNotFoundException", "Message": "Requested resource not found"}
            raise ClientError({"Error": missing}, "")  # type: ignore[typeddict-item]
        return tuple(values[name] for name in self._keys[table])

    def _require(self, call: Mapping[str, Any], item: Item | None) -> None:
        if not _holds(call, item):
            answer: dict[str, Any] = {"Error": {"Code": "ConditionalCheckFailedException", "Message": ""}}
            if item is not None and call.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD":
                answer["Item"] = _to_item(item)
            raise ConditionalCheckFailedException(answer, "UpdateItem")  # type: ignore[arg-type]

    def _updated(self, call: Mapping[str, Any], item: Item) -> Item:
        after = updated(
            item,
            call["UpdateExpression"],
            call.get("ExpressionAttributeNames", {}),
            from_item(call.get("ExpressionAttributeValues", {})),
        )
        _check_numbers(after)
        return after


def _holds(call: Mapping[str, Any], item: Item | None, where: str = "ConditionExpression") -> bool:
    names, values = call.get("ExpressionAttributeNames", {}), from_item(call.get("ExpressionAttributeValues", {}))
    places = ["ConditionExpression", "UpdateExpression", "KeyConditionExpression", "FilterExpression"]
    expressions = " ".join(call.get(name, "") for name in (*places, "ProjectionExpression"))
    if expressions.strip():
        unused = ({*names} | {*values}) - set(_tokens(expressions))
        if unused:
            raise invalid(f"unused in expressions: {sorted(unused)}")
    return where not in call or condition(call[where])(item or {}, names, values)


def _check_numbers(value: Any) -> None:
    match value:
        case bool():
            pass
        case int() if abs(value) >= 10**38:
            raise invalid("Number overflow")
        case dict():
            for part in value.values():
                _check_numbers(part)
        case list():
            for part in value:
                _check_numbers(part)


# ── Conditions ─────────────────────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=4096)
def condition(text: str) -> Condition:
    """A ConditionExpression or FilterExpression: comparisons and functions under AND, OR and parentheses."""
    parser = _Parser(text)
    parsed = parser.disjunction()
    parser.end()
    return parsed


@lru_cache(maxsize=4096)
def _tokens(text: str) -> tuple[str, ...]:
    found, at = [], 0
    text = text.strip()
    while at < len(text):
        if not (match := _TOKEN.match(text, at)):
            raise invalid(f"not understood: {text[at:]!r}")
        found.append(match[1])
        at = match.end()
    return tuple(found)


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = [*_tokens(text)]

    def end(self) -> None:
        if self._tokens:
            raise invalid(f"not understood: {' '.join(self._tokens)!r}")

    def next_is(self, *wanted: str) -> bool:
        return bool(self._tokens) and self._tokens[0].upper() in wanted

    def take(self, wanted: str | None = None) -> str:
        if not self._tokens or (wanted is not None and self._tokens[0] != wanted):
            raise invalid(f"{wanted or 'something'} is missing before {' '.join(self._tokens)!r}")
        return self._tokens.pop(0)

    def disjunction(self) -> Condition:
        parts = [self.conjunction()]
        while self.next_is("OR"):
            self.take()
            parts.append(self.conjunction())
        return parts[0] if len(parts) == 1 else lambda *where: any(part(*where) for part in parts)

    def conjunction(self) -> Condition:
        parts = [self.comparison()]
        while self.next_is("AND"):
            self.take()
            parts.append(self.comparison())
        return parts[0] if len(parts) == 1 else lambda *where: all(part(*where) for part in parts)

    def comparison(self) -> Condition:
        if self.next_is("("):
            self.take()
            inside = self.disjunction()
            self.take(")")
            return inside
        if self.next_is("ATTRIBUTE_EXISTS", "ATTRIBUTE_NOT_EXISTS"):
            wanted = self.take() == "attribute_exists"
            path = self._argument()
            return lambda item, names, _: (_get(item, resolve(path, names)) is not _MISSING) == wanted
        if self.next_is("CONTAINS"):
            self.take()
            self.take("(")
            path, placeholder = self.path(), (self.take(","), self.take(), self.take(")"))[1]
            return lambda item, names, values: _contains(_get(item, resolve(path, names)), values[placeholder])
        left, operator, right = self._operand(), self.take().upper(), self._operand
        if operator == "BETWEEN":
            low, _, high = right(), self.take("AND"), right()
            return lambda *where: (
                _compare(left(*where), ">=", low(*where)) and _compare(left(*where), "<=", high(*where))
            )
        if operator == "IN":
            self.take("(")
            among = [right()]
            while self.next_is(","):
                self.take()
                among.append(right())
            self.take(")")
            return lambda *where: any(_compare(left(*where), "=", each(*where)) for each in among)
        other = right()
        return lambda *where: _compare(left(*where), operator, other(*where))

    def _operand(self) -> Callable[[Item, Mapping[str, str], Mapping[str, Any]], Any]:
        if self.next_is("SIZE"):
            self.take()
            measured = self._argument()
            return lambda item, names, _: _size(_get(item, resolve(measured, names)))
        if self._tokens and self._tokens[0].startswith(":"):
            placeholder = self.take()
            return lambda _item, _names, values: _value(values, placeholder)
        path = self.path()
        return lambda item, names, _: _get(item, resolve(path, names))

    def _argument(self) -> Path:
        self.take("(")
        path = self.path()
        self.take(")")
        return path

    def path(self) -> Path:
        parts: list[str | int] = [self._name()]
        while self._tokens and (self._tokens[0] == "." or self._tokens[0].startswith("[")):
            if (token := self.take()) == ".":
                parts.append(self._name())
            else:
                parts.append(int(token[1:-1]))
        return tuple(parts)

    def _name(self) -> str:
        name = self.take()
        if not re.fullmatch(r"#\w+|[A-Za-z_]\w*", name) or name in _FUNCTIONS:
            raise invalid(f"{name!r} is not a name")
        if name.upper() in _RESERVED:
            raise invalid(f"Attribute name is a reserved keyword; reserved keyword: {name}")
        return name


def resolve(path: Path, names: Mapping[str, str]) -> Path:
    try:
        return tuple(names[part] if isinstance(part, str) and part.startswith("#") else part for part in path)
    except KeyError as missing:
        raise invalid(f"An expression attribute name used in the document path is not defined: {missing}") from None


def _value(values: Mapping[str, Any], placeholder: str) -> Any:
    if placeholder not in values:
        raise invalid(f"An expression attribute value used in expression is not defined: {placeholder}")
    return values[placeholder]


def _get(item: Any, path: Path) -> Any:
    for part in path:
        if isinstance(part, int):
            if not isinstance(item, list) or part >= len(item):
                return _MISSING
        elif not isinstance(item, dict) or part not in item:
            return _MISSING
        item = item[part]
    return item


def _size(value: Any) -> Any:
    return len(value) if isinstance(value, (str, list, dict, frozenset)) else _MISSING


def _contains(whole: Any, part: Any) -> bool:
    return isinstance(whole, (str, list, frozenset)) and part in whole


def _compare(left: Any, operator: str, right: Any) -> bool:
    if left is _MISSING or right is _MISSING or type(left) is not type(right):
        return False
    match operator:
        case "=":
            return bool(left == right)
        case "<>":
            return bool(left != right)
        case "<":
            return bool(left < right)
        case "<=":
            return bool(left <= right)
        case ">":
            return bool(left > right)
        case ">=":
            return bool(left >= right)
        case _:
            raise invalid(f"no such operator: {operator}")


# ── Updates ────────────────────────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=4096)
def _clauses(text: str) -> tuple[tuple[tuple[Path, tuple[Any, ...]], ...], tuple[Path, ...], tuple[Any, ...]]:
    """The assignments (path, operands and the signs between them), the removed paths, and what is added to what."""
    parser = _Parser(text)
    sets: list[tuple[Path, tuple[Any, ...]]] = []
    removed: list[Path] = []
    added: list[tuple[Path, str]] = []
    while parser.next_is("SET", "REMOVE", "ADD"):
        kind = parser.take().upper()
        if kind == "ADD":
            added.append((parser.path(), parser.take()))
            while parser.next_is(","):
                parser.take()
                added.append((parser.path(), parser.take()))
        elif kind == "SET":
            while True:
                path = parser.path()
                parser.take("=")
                operands: list[Any] = [_update_operand(parser)]
                if parser.next_is("+", "-"):
                    operands += [parser.take(), _update_operand(parser)]
                sets.append((path, tuple(operands)))
                if not parser.next_is(","):
                    break
                parser.take(",")
        else:
            removed.append(parser.path())
            while parser.next_is(","):
                parser.take(",")
                removed.append(parser.path())
    parser.end()
    return tuple(sets), tuple(removed), tuple(added)


def _update_operand(parser: _Parser) -> str | Path:
    return parser.take() if parser._tokens and parser._tokens[0].startswith(":") else parser.path()


def updated(item: Item, text: str, names: Mapping[str, str], values: Mapping[str, Any]) -> Item:
    """The item after an UpdateExpression. What is on the right is read from the item as it was."""
    sets, removed, added = _clauses(text)
    resolved = [(resolve(path, names), operands) for path, operands in sets]
    gone = [resolve(path, names) for path in removed]
    more = [(resolve(path, names), _value(values, placeholder)) for path, placeholder in added]
    _refuse_overlaps([path for path, _ in [*resolved, *more]] + gone)
    after = deepcopy(item)

    def operand(what: str | Path) -> Any:
        if isinstance(what, str):
            return _value(values, what)
        if (found := _get(item, resolve(what, names))) is _MISSING:
            raise invalid("The provided expression refers to an attribute that does not exist in the item")
        return found

    for path, operands in resolved:
        result = operand(operands[0])
        if len(operands) == 3:
            other = operand(operands[2])
            result = result + other if operands[1] == "+" else result - other
        _place(after, path)[path[-1]] = deepcopy(result)
    for path in gone:
        _place(after, path).pop(path[-1], None)
    for path, value in more:
        before = _get(item, path)
        _place(after, path)[path[-1]] = value if before is _MISSING else before + value
    return after


def _place(item: Any, path: Path) -> Any:
    parent = _get(item, path[:-1])
    if not isinstance(parent, list if isinstance(path[-1], int) else dict):
        raise invalid("The document path provided in the update expression is invalid for update")
    return parent


def _refuse_overlaps(paths: Sequence[Path]) -> None:
    for index, path in enumerate(paths):
        for other in paths[index + 1 :]:
            shorter = min(len(path), len(other))
            if path[:shorter] == other[:shorter]:
                raise invalid("Two document paths overlap with each other")
