"""DynamoDB for the scale simulation: what a partition takes a second, what a write costs, who gets in whose way.

Every write is evaluated, with the expressions that the product sends. What differs from the model that the tests use
is speed: items are Python's values, and a map of thousands of leases is neither copied nor measured anew.

A partition takes 1,000 write units and 3,000 read units a second; beyond that it throttles, and boto3 tries again
as `retries={"mode": "standard", "total_max_attempts": 3}` says. Each item is counted as a partition of its own, which is
the best that adaptive capacity can do for it. Burst capacity, which AWS does not promise, is left out but for a second.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from botocore.exceptions import ClientError

from benchmarks.scale_clock import SimulatedLoop
from benchmarks.units import item_bytes
from naru.attributes import to_item
from tests.dynamodb_model import (
    _MISSING,
    ConditionalCheckFailedException,
    TransactionCanceledException,
    _clauses,
    _get,
    condition,
    resolve,
)

WRITE_UNITS_PER_S, READ_UNITS_PER_S = 1000.0, 3000.0
ITEM_BYTES = 400 * 1024
ATTEMPTS = 3
# Single-digit milliseconds, as AWS promises: median and spread of a log-normal.
MEDIAN_S, SIGMA = 0.004, 0.5
_TRANSACTION_S = 0.010
_BIG = ("in_flight", "calls")
_KEYS = {"MeterTable": ("meter",), "HealthTable": ("deployment",), "LedgerTable": ("day_shard", "request_id")}

Key = tuple[str, str]
Item = dict[str, Any]


class ThrottlingError(ClientError):
    """The partition has no units left."""


def _error(kind: type[ClientError], code: str, **more: Any) -> ClientError:
    answer: Any = {"Error": {"Code": code, "Message": code}, **more}
    return kind(answer, "simulated")


class Seen(Mapping[str, Any]):
    """A map as it was seen: its size is kept, its members are those of now."""

    def __init__(self, live: Mapping[str, Any]) -> None:
        self._live = live
        self._size = len(live)

    def __getitem__(self, name: str) -> Any:
        return self._live[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self._live])

    def __len__(self) -> int:
        return self._size

    def __contains__(self, name: object) -> bool:
        return name in self._live


def seen(item: Mapping[str, Any]) -> Item:
    """What a reader gets of an item; in the product's modules it stands in for ``from_item``."""
    view = dict(item)
    for name in _BIG:
        if name in view:
            view[name] = Seen(view[name])
    return view


def as_it_is(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Stands in for ``to_item``."""
    return values


@dataclass(slots=True)
class Bucket:
    """Units of a partition: a second's worth at most."""

    per_s: float
    left: float
    at_s: float = 0.0

    def take(self, units: float, now_s: float) -> bool:
        self.left = min(self.per_s, self.left + (now_s - self.at_s) * self.per_s)
        self.at_s = now_s
        # An item of more than a second's worth is let through when the bucket is full, and leaves a debt.
        if self.left < min(units, self.per_s):
            return False
        self.left -= units
        return True


@dataclass(slots=True)
class Traffic:
    """What happened to an item or a partition since it was last cleared."""

    writes: int = 0
    write_units: int = 0
    failed_conditions: int = 0
    throttled: int = 0
    conflicts: int = 0
    read_units: float = 0.0
    throttled_reads: int = 0
    largest_bytes: int = 0


@dataclass
class Tables:
    """The calls of a boto3 client that the product makes. ``watch`` sees every meter that was changed and, as ``row``, every row."""

    loop: SimulatedLoop
    rng: random.Random
    watch: Callable[[str, Item], None] = lambda _key, _after: None
    items: dict[Key, Item] = field(default_factory=dict)
    traffic: dict[Key, Traffic] = field(default_factory=lambda: defaultdict(Traffic))
    leased_pico_usd: Counter[Key] = field(default_factory=Counter)
    """What the leases in a meter's item hold together."""
    exceptions = SimpleNamespace(
        ConditionalCheckFailedException=ConditionalCheckFailedException,
        TransactionCanceledException=TransactionCanceledException,
    )

    def __post_init__(self) -> None:
        self._write_buckets: dict[Key, Bucket] = {}
        self._read_buckets: dict[Key, Bucket] = {}
        self._small_bytes: dict[Key, tuple[int, int]] = {}
        self._big_bytes: Counter[Key] = Counter()
        self._locked_until_s: dict[Key, float] = {}

    # ── Time ───────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, call: Callable[[], Any], done: asyncio.Future[Any]) -> None:
        self._try(call, done, 1)

    def _try(self, call: Callable[[], Any], done: asyncio.Future[Any], attempt: int) -> None:
        """There in half of the time, back in the other half; throttled, the SDK waits and asks again."""
        leg_s = self.rng.lognormvariate(0.0, SIGMA) * MEDIAN_S / 2

        def arrive() -> None:
            if done.cancelled():
                return
            try:
                result = call()
            except ThrottlingError as error:
                if attempt < ATTEMPTS:
                    wait_s = leg_s + self.rng.random() * 2 ** (attempt - 1)
                    self.loop.call_later(wait_s, self._try, call, done, attempt + 1)
                else:
                    self.loop.call_later(leg_s, self._end, done, None, error)
            except Exception as error:  # noqa: BLE001 - the caller's, as from a thread
                self.loop.call_later(leg_s, self._end, done, None, error)
            else:
                self.loop.call_later(leg_s, self._end, done, result, None)

        self.loop.call_later(leg_s, arrive)

    @staticmethod
    def _end(done: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    # ── The calls ──────────────────────────────────────────────────────────────────────────────────────────

    def update_item(self, *, TableName: str, Key: Mapping[str, str], **call: Any) -> dict[str, Any]:  # noqa: N803
        key = self._key(TableName, Key)
        self._refuse_locked(key)
        before = self.items.get(key)
        units = self._units(key, before)
        self._take_write(key, units)
        names, values = call.get("ExpressionAttributeNames", {}), call.get("ExpressionAttributeValues", {})
        if not condition(call["ConditionExpression"])(before or {}, names, values):
            self.traffic[key].failed_conditions += 1
            raise self._failed(before)
        if before is None:
            raise RuntimeError("no write of the product makes an item by UpdateItem")
        after = self._updated(key, before, call["UpdateExpression"], names, values)
        self._put(key, before, after)
        return {"Attributes": after}

    def put_item(self, *, TableName: str, Item: Mapping[str, Any], **_: Any) -> dict[str, Any]:  # noqa: N803
        if TableName == "LedgerTable":
            return self._put_row(Item)
        key = self._key(TableName, Item)
        before = self.items.get(key)
        self._take_write(key, self._units(key, before))
        if before is not None:
            self.traffic[key].failed_conditions += 1
            raise self._failed(before)
        self.seed(TableName, Item)
        self._put(key, None, self.items[key])
        return {}

    def seed(self, table: str, item: Mapping[str, Any]) -> None:
        """An item that is there from the start."""
        self.items[self._key(table, item)] = dict(item)

    def _put_row(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Rows are counted and not kept; all of a shard of a day lie in one partition, in the order of time."""
        key = ("LedgerTable", item["day_shard"]["S"])
        self._take_write(key, max(1, -(-item_bytes(item) // 1024)))
        self.watch("row", dict(item))
        return {}

    def batch_get_item(self, *, RequestItems: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N803
        ((table, asked),) = RequestItems.items()
        found, unread = [], []
        for each in asked["Keys"]:
            key = self._key(table, each)
            item = self.items.get(key)
            units = 0.5 * max(1, -(-(self._bytes(key, item) if item else 0) // 4096))
            if not self._bucket(self._read_buckets, key, READ_UNITS_PER_S).take(units, self.loop.time()):
                self.traffic[key].throttled_reads += 1
                unread.append(each)
                continue
            self.traffic[key].read_units += units
            if item:
                found.append(item)
        return {"Responses": {table: found}, **({"UnprocessedKeys": {table: {"Keys": unread}}} if unread else {})}

    def transact_get_items(self, *, TransactItems: Sequence[Mapping[str, Any]]) -> dict[str, Any]:  # noqa: N803
        keys = [self._key(each["Get"]["TableName"], each["Get"]["Key"]) for each in TransactItems]
        self._refuse_transaction(keys)
        return {"Responses": [{"Item": self.items[key]} for key in keys]}

    def transact_write_items(self, *, TransactItems: Sequence[Mapping[str, Any]]) -> dict[str, Any]:  # noqa: N803
        updates = [each["Update"] for each in TransactItems]
        keys = [self._key(update["TableName"], update["Key"]) for update in updates]
        self._refuse_transaction(keys)
        for key in keys:
            self._take_write(key, 2 * self._units(key, self.items[key]))
        for key, update in zip(keys, updates, strict=True):
            names, values = update["ExpressionAttributeNames"], update["ExpressionAttributeValues"]
            if not condition(update["ConditionExpression"])(self.items[key], names, values):
                raise _error(TransactionCanceledException, "TransactionCanceledException")
        for key, update in zip(keys, updates, strict=True):
            names, values = update["ExpressionAttributeNames"], update["ExpressionAttributeValues"]
            before = self.items[key]
            self._put(key, before, self._updated(key, before, update["UpdateExpression"], names, values))
            self._locked_until_s[key] = self.loop.time() + _TRANSACTION_S
        return {}

    # ── Limits ─────────────────────────────────────────────────────────────────────────────────────────────

    def _take_write(self, key: Key, units: int) -> None:
        traffic = self.traffic[key]
        if not self._bucket(self._write_buckets, key, WRITE_UNITS_PER_S).take(units, self.loop.time()):
            traffic.throttled += 1
            raise _error(ThrottlingError, "ThrottlingException")
        traffic.writes += 1
        traffic.write_units += units

    def _bucket(self, buckets: dict[Key, Bucket], key: Key, per_s: float) -> Bucket:
        if (bucket := buckets.get(key)) is None:
            bucket = buckets[key] = Bucket(per_s, per_s, self.loop.time())
        return bucket

    def _refuse_locked(self, key: Key) -> None:
        if self._locked_until_s.get(key, 0.0) > self.loop.time():
            self.traffic[key].conflicts += 1
            raise _error(ClientError, "TransactionConflictException")

    def _refuse_transaction(self, keys: Sequence[Key]) -> None:
        if any(self._locked_until_s.get(key, 0.0) > self.loop.time() for key in keys):
            for key in keys:
                self.traffic[key].conflicts += 1
            raise _error(TransactionCanceledException, "TransactionCanceledException")

    def _failed(self, item: Item | None) -> ClientError:
        more = {} if item is None else {"Item": item}
        return _error(ConditionalCheckFailedException, "ConditionalCheckFailedException", **more)

    # ── Items ──────────────────────────────────────────────────────────────────────────────────────────────

    def _key(self, table: str, values: Mapping[str, Any]) -> Key:
        return table, values[_KEYS[table][0]]

    def _put(self, key: Key, before: Item | None, after: Item) -> None:
        self.items[key] = after
        size = self._bytes(key, after)
        self.traffic[key].largest_bytes = max(self.traffic[key].largest_bytes, size)
        if before is not None and key[0] == "MeterTable":
            self.watch(key[1], after)

    def _units(self, key: Key, item: Item | None) -> int:
        return max(1, -(-(self._bytes(key, item) if item else 0) // 1024))

    def _bytes(self, key: Key, item: Item) -> int:
        """The small attributes are measured when their number changes, the members of big maps as they come and go."""
        shape = len(item) + 100 * len(item.get("history", ())) + 10_000 * len(item.get("months", ()))
        known = self._small_bytes.get(key)
        if known is None or known[0] != shape:
            small = {name: value for name, value in item.items() if name not in _BIG}
            known = self._small_bytes[key] = shape, item_bytes(to_item(small)) + 13
        return known[1] + self._big_bytes[key]

    def _updated(self, key: Key, before: Item, text: str, names: Mapping[str, str], values: Mapping[str, Any]) -> Item:
        sets, removed, _ = _clauses(text)
        after = dict(before)
        placed = [(resolve(path, names), self._result(before, operands, names, values)) for path, operands in sets]
        copied: set[tuple[Any, ...]] = set()
        for path, value in placed:
            parent = _own(after, path, copied)
            if path[0] in _BIG:
                entry = _entry_bytes(path[-1], value)
                if self._bytes(key, before) + entry > ITEM_BYTES:
                    raise _error(ClientError, "ValidationException")
                self._big_bytes[key] += entry
                self.leased_pico_usd[key] += _worst_pico_usd(value)
            parent[path[-1]] = value
        for text_path in removed:
            path = resolve(text_path, names)
            parent = _own(after, path, copied)
            value = parent.pop(path[-1], None)
            if path[0] in _BIG and value is not None:
                self._big_bytes[key] -= _entry_bytes(path[-1], value)
                self.leased_pico_usd[key] -= _worst_pico_usd(value)
        return after

    @staticmethod
    def _result(item: Item, operands: Sequence[Any], names: Mapping[str, str], values: Mapping[str, Any]) -> Any:
        parts = []
        for operand in operands[::2]:
            part = values[operand] if isinstance(operand, str) else _get(item, resolve(operand, names))
            if part is _MISSING:
                raise RuntimeError(f"{operand} is not there")
            parts.append(part)
        if len(parts) == 1:
            return parts[0]
        return parts[0] + parts[1] if operands[1] == "+" else parts[0] - parts[1]


def _own(item: Item, path: Sequence[Any], copied: set[tuple[Any, ...]]) -> Any:
    """Where the last part of a path lies, with everything on the way copied once, but for the big maps."""
    here: Any = item
    for depth, part in enumerate(path[:-1], start=1):
        where = tuple(path[:depth])
        if part not in _BIG and where not in copied:
            here[part] = list(here[part]) if isinstance(here[part], list) else dict(here[part])
            copied.add(where)
        here = here[part]
    return here


def _worst_pico_usd(lease: Any) -> int:
    """Of a lease; slots of calls hold no money."""
    return int(lease["worst_pico_usd"]) if isinstance(lease, dict) else 0


def _entry_bytes(name: Any, value: Any) -> int:
    """Of a member of a map: one byte more than its name and value."""
    return 1 + item_bytes(to_item({str(name): value}))
