"""What changes a meter's limits while requests run through it. Pure, as :mod:`naru.meter_state` is.

A limit is kept as what is left of it, and requests take from that at any moment. So a change never writes what is
left: it *adds the difference*, on condition that the limit is the one the difference was computed from. What was
spent, set aside or asked in the meantime is kept, whoever comes first::

    budget 50, available 30           a request takes 2            the budget becomes 80
                                      available - 2                available + 30    → 58, in either order

The shards of a meter change together. What is left of the budget is dealt out to them anew and evenly, because one
shard may have spent its part while another has not: with ``available + (new slice - old slice)`` for each of them, a
lowered budget would leave a debt on one shard and money to spend on the next.

When a budget is lowered under what is already spent or set aside, nothing is left anywhere and one debt remains.
From then on nothing is admitted on a meter of one item until its debt is paid. With shards, the leases that end pay
back shard by shard, so that something may be admitted a little earlier, and never so much that spent and set aside
together exceed what they were when the budget was lowered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from naru.meter_state import UNLIMITED, Limits, Meter, Update

_MINUTE = {"rpm": "requests_left", "tpm": "tokens_left"}


@dataclass(slots=True)
class Change:
    """A conditional write to one shard, being put together."""

    meter_id: str
    _sets: list[str] = field(default_factory=list)
    _removes: list[str] = field(default_factory=list)
    _conditions: list[str] = field(default_factory=list)
    _names: dict[str, str] = field(default_factory=dict)
    _values: dict[str, Any] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return not (self._sets or self._removes)

    def name(self, *path: str) -> str:
        """A path in the item, safe whatever its parts are called."""
        return ".".join(self._names.setdefault(part, f"#n{len(self._names)}") for part in path)

    def value(self, value: Any) -> str:
        """A placeholder for the value."""
        placeholder = f":v{len(self._values)}"
        self._values[placeholder] = value
        return placeholder

    def set(self, *path: str, to: Any) -> None:
        self._sets.append(f"{self.name(*path)} = {self.value(to)}")

    def add(self, *path: str, difference: int) -> None:
        where = self.name(*path)
        self._sets.append(f"{where} = {where} + {self.value(difference)}")

    def remove(self, *path: str) -> None:
        self._removes.append(self.name(*path))

    def require(self, condition: str) -> None:
        self._conditions.append(condition)

    def require_equal(self, *path: str, to: Any) -> None:
        self.require(f"{self.name(*path)} = {self.value(to)}")

    def require_members(self, name: str, members: Sequence[str]) -> None:
        """That a map has these members and no other."""
        for member in members:
            self.require(f"attribute_exists({self.name(name, member)})")
        self.require(f"size({self.name(name)}) = {self.value(len(members))}")

    def done(self) -> Update:
        """The write, in the terms of UpdateItem."""
        update = f"SET {', '.join(self._sets)}" if self._sets else ""
        if self._removes:
            update += f" REMOVE {', '.join(self._removes)}"
        names = {placeholder: name for name, placeholder in self._names.items()}
        return Update(update.strip(), " AND ".join(self._conditions), names, self._values)


def shard_id(meter_id: str, shard: int) -> str:
    """Where a shard of a meter lies."""
    return f"{meter_id}/{shard}" if shard else meter_id


def whole(meters: Sequence[Meter]) -> Limits:
    """The limits of a meter, from all of its shards."""

    def total(name: str) -> int:
        parts = [getattr(meter.limits, name) for meter in meters]
        return UNLIMITED if max(parts) >= UNLIMITED else sum(parts)

    return Limits(**{name: total(name) for name in Limits.__dataclass_fields__})


def change_limits(changes: Sequence[Change], meters: Sequence[Meter], new: Limits, *, month: str) -> None:
    """Puts new limits into the changes of all shards, in order; ``month`` is the current one."""
    shards = len(meters)
    for shard, (change, meter) in enumerate(zip(changes, meters, strict=True)):
        old, part = meter.limits, new.slice(shard, shards)
        for name in Limits.__dataclass_fields__:
            before, after = getattr(old, name), getattr(part, name)
            if before != after:
                change.require_equal(name, to=before)
                change.set(name, to=after)
                if left := _MINUTE.get(name):
                    change.add(left, difference=after - before)
    if any(meter.limits.budget_pico_usd != new.slice(i, shards).budget_pico_usd for i, meter in enumerate(meters)):
        for change, meter in zip(changes, meters, strict=True):
            # A month that opens or is forgotten in the meantime would miss the difference.
            change.require_members("months", sorted(meter.item["months"]))
        _deal(changes, meters, new, month)


def _deal(changes: Sequence[Change], meters: Sequence[Meter], new: Limits, current: str) -> None:
    """What is left of each open month, dealt out anew."""
    shards = len(meters)
    for month in sorted({month for meter in meters for month in meter.item["months"]}):
        # The current month is opened on all shards, since what is left is dealt to all. An old one stays as it is.
        dealt = [i for i, meter in enumerate(meters) if month >= current or month in meter.item["months"]]
        left = sum(
            meters[i].available_pico_usd(month)
            + new.slice(i, shards).budget_pico_usd
            - meters[i].limits.budget_pico_usd
            for i in dealt
        )
        for i, part in zip(dealt, _parts(left, len(dealt)), strict=True):
            change, meter, path = changes[i], meters[i], ("months", month, "available_pico_usd")
            if month not in meter.item["months"]:
                change.set("months", month, to={"available_pico_usd": part, "spent_pico_usd": 0})
                continue
            difference = part - meter.available_pico_usd(month)
            if difference < 0 and left >= 0 and len(dealt) > 1:
                # Nobody may have taken in the meantime what is given to another shard.
                change.require(f"{change.name(*path)} >= {change.value(-difference)}")
            if difference:
                change.add(*path, difference=difference)


def _parts(amount: int, count: int) -> Iterator[int]:
    """Even parts; also of a debt."""
    share, rest = divmod(amount, count)
    return (share + (1 if i < rest else 0) for i in range(count))
