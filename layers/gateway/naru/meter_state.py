"""The state of a meter, and the one conditional write that changes it. Pure: no clock, no network.

A meter is an item that can refuse a request. DynamoDB's conditions compare and cannot add, so each limit is kept as
what is *left* of it::

    enabled · expires_at_ms · secrets {hash: until_ms} · models       may this key ask for this model?
    months {"2026-11": {available_pico_usd, spent_pico_usd}}          the budget; available = budget - spent - leases
    requests_left · tokens_left · slot · slot_requests · …           the last minute, in slots of ten seconds
    in_flight {request: {worst_pico_usd, tokens, slot, month, …}}    the leases; there may be max_parallel of them

    admit    if all of it holds and the lease is not there yet: take worst case, one request, its tokens; add the lease
    finish   if the lease is there: remove it, give back what was not used

Both are one UpdateItem. The second time, the condition fails and nothing changes: exactly once, with no transaction.

A limit per minute holds in *every* minute, not only in those that begin at :00. Requests are counted in slots of ten
seconds, and a slot is forgotten when no request in it can be less than a minute old. A write in a new slot replaces
the counts of the old one, so it also requires that they are what it saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

UNLIMITED = 10**27
"""More than anybody can spend or ask. DynamoDB keeps 38 digits; the emulator rounds what has more than 28."""

SLOT_MS = 10_000
_KEPT_DAYS = 70
SLOTS_KEPT = 6  # before the current one: a request in the seventh is at least 60 s old

Reason = Literal["unknown", "expired", "disabled", "model", "parallel", "requests", "tokens", "budget"]


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks of a meter. ``secret_hash``, ``model`` and ``batch_id`` go to keys only."""

    request_id: str
    now_ms: int
    month: str
    worst_pico_usd: int
    tokens: int
    secret_hash: str | None = None
    model: str | None = None
    batch_id: str | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """What a meter has set aside for one request, and what the key's says of it should its process die."""

    request_id: str
    worst_pico_usd: int
    tokens: int
    slot: int
    month: str
    model: str
    batch_id: str = ""

    def values(self) -> dict[str, Any]:
        """As it is kept in the meter, under the request's id."""
        return {
            "worst_pico_usd": self.worst_pico_usd,
            "tokens": self.tokens,
            "slot": self.slot,
            "month": self.month,
            "model": self.model,
            **({"batch_id": self.batch_id} if self.batch_id else {}),
        }

    @classmethod
    def from_values(cls, request_id: str, values: Mapping[str, Any]) -> Lease:
        """As it was kept, perhaps by a newer release, whose attributes are passed over."""
        known = {name: values[name] for name in _LEASE_FIELDS if name in values}
        return cls(request_id=request_id, **known)


_LEASE_FIELDS = tuple(each.name for each in fields(Lease) if each.name != "request_id")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a meter refuses, and after how long it may not; None where waiting does not help."""

    reason: Reason
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """One conditional write, in the terms of UpdateItem. Values are Python's."""

    update: str
    condition: str
    names: Mapping[str, str]
    values: Mapping[str, Any]


class Meter:
    """A meter as its item was seen."""

    def __init__(self, item: Mapping[str, Any]) -> None:
        self.item = item
        self.id: str = item["meter"]

    # ── What it says ───────────────────────────────────────────────────────────────────────────────────────

    @property
    def limits(self) -> Limits:
        return Limits(**{name: self.item[name] for name in Limits.__dataclass_fields__})

    @property
    def is_rate_limited(self) -> bool:
        """Whether minutes matter at all; where not, they are not counted."""
        lowest: int = min(self.item["rpm"], self.item["tpm"])
        return lowest < UNLIMITED

    @property
    def shards(self) -> int:
        """Over how many items this meter is spread; each has its own slice of every limit."""
        shards: int = self.item.get("shards", 1)
        return shards

    def available_pico_usd(self, month: str) -> int:
        """What may still be set aside in that month."""
        available: int = self.item["months"].get(month, {}).get("available_pico_usd", self.item["budget_pico_usd"])
        return available

    def unspent_pico_usd(self, month: str) -> int:
        """What could be set aside in that month if every request in flight gave all of its lease back."""
        leased = sum(lease["worst_pico_usd"] for lease in self.item["in_flight"].values() if lease["month"] == month)
        return self.available_pico_usd(month) + int(leased)

    def spent_pico_usd(self, month: str) -> int:
        """What the rows of that month cost."""
        spent: int = self.item["months"].get(month, {}).get("spent_pico_usd", 0)
        return spent

    def leases(self) -> list[Lease]:
        """All requests in flight."""
        return [Lease.from_values(request_id, lease) for request_id, lease in self.item["in_flight"].items()]

    def minute(self, now_ms: int) -> Minute:
        """What is left of the minute that ends now."""
        slot = max(now_ms // SLOT_MS, self.item["slot"])
        counted = [*self.item["history"]]
        if slot != self.item["slot"]:
            counted.append(
                {name: self.item[f"slot_{name}"] for name in ("requests", "tokens")} | {"slot": self.item["slot"]}
            )
            counted = [past for past in counted if past["slot"] >= slot - SLOTS_KEPT]
            forgotten = {
                name: self.item[f"slot_{name}"]
                + sum(past[name] for past in self.item["history"])
                - sum(past[name] for past in counted)
                for name in ("requests", "tokens")
            }
        else:
            forgotten = {"requests": 0, "tokens": 0}
        return Minute(
            slot=slot,
            history=counted,
            requests_left=self.item["requests_left"] + forgotten["requests"],
            tokens_left=self.item["tokens_left"] + forgotten["tokens"],
        )

    # ── Admission ──────────────────────────────────────────────────────────────────────────────────────────

    def refusal(self, demand: Demand) -> Refusal | None:
        """Why the demand cannot be met; None if it can, as far as this view goes."""
        item, now_ms = self.item, demand.now_ms
        if demand.secret_hash is not None and (reason := self._stranger(demand)):
            return Refusal(reason)
        if not item["enabled"]:
            return Refusal("disabled")
        if demand.model is not None and "models" in item and demand.model not in item["models"]:
            return Refusal("model")
        if self.available_pico_usd(demand.month) < demand.worst_pico_usd:
            return Refusal("budget")
        if self.is_rate_limited:
            minute = self.minute(now_ms)
            if item["tpm"] < demand.tokens:
                return Refusal("tokens")
            for reason, left, needed in (
                ("requests", minute.requests_left, 1),
                ("tokens", minute.tokens_left, demand.tokens),
            ):
                if left < needed:
                    return Refusal(reason, self._wait_s(minute, reason, needed - left, now_ms))  # type: ignore[arg-type]
        if len(item["in_flight"]) >= item["max_parallel"]:
            return Refusal("parallel", 1.0)
        return None

    def _stranger(self, demand: Demand) -> Reason | None:
        until_ms = self.item["secrets"].get(demand.secret_hash)
        if until_ms is None:
            return "unknown"
        return "expired" if min(until_ms, self.item["expires_at_ms"]) <= demand.now_ms else None

    def _wait_s(self, minute: Minute, reason: str, missing: int, now_ms: int) -> float:
        """Until so many slots are forgotten that what is missing has come back."""
        current = {"slot": self.item["slot"], **{name: self.item[f"slot_{name}"] for name in ("requests", "tokens")}}
        slots = minute.history if minute.slot != self.item["slot"] else [*minute.history, current]
        for past in slots:
            missing -= past[reason]
            if missing <= 0:
                return ((past["slot"] + SLOTS_KEPT + 1) * SLOT_MS - now_ms) / 1000
        return 60.0

    def admission(self, demand: Demand) -> tuple[Lease, Update]:
        """The write that admits the demand, if the meter is still as it was seen where that matters.

        For a demand that this view does not refuse: where a new slot or a new month begins, the write puts what the
        view has worked out.
        """
        minute = self.minute(demand.now_ms) if self.is_rate_limited else None
        lease = Lease(
            request_id=demand.request_id,
            worst_pico_usd=demand.worst_pico_usd,
            tokens=demand.tokens,
            slot=minute.slot if minute else 0,
            month=demand.month,
            model=demand.model or "",
            batch_id=demand.batch_id or "",
        )
        write = _Write(names={"#id": demand.request_id, "#month": demand.month})
        write.condition("attribute_not_exists(in_flight.#id)", "enabled = :true", "size(in_flight) < max_parallel")
        write.values |= {":true": True, ":lease": lease.values()}
        write.set("in_flight.#id = :lease")
        if demand.secret_hash is not None:
            write.names["#hash"] = demand.secret_hash
            write.values[":now"] = demand.now_ms
            write.condition("secrets.#hash > :now", "expires_at_ms > :now")
        if demand.model is not None:
            write.values[":model"] = demand.model
            write.condition("(attribute_not_exists(models) OR contains(models, :model))")
        self._take_budget(write, demand)
        if minute is not None:
            self._take_minute(write, demand, minute)
        else:
            # Whoever remembers a meter without limits must not miss that it was given some.
            write.values[":unlimited"] = UNLIMITED
            write.condition("rpm >= :unlimited", "tpm >= :unlimited")
        return lease, write.done()

    def _take_budget(self, write: _Write, demand: Demand) -> None:
        if demand.month in self.item["months"]:
            write.values[":worst"] = demand.worst_pico_usd
            write.condition("months.#month.available_pico_usd >= :worst")
            write.set("months.#month.available_pico_usd = months.#month.available_pico_usd - :worst")
            return
        # The first request of a month opens it, with the whole budget. Last month stays for what is in flight.
        budget_pico_usd = self.item["budget_pico_usd"]
        write.condition("attribute_not_exists(months.#month)", "budget_pico_usd = :budget")
        write.set("months.#month = :opened")
        write.values[":budget"] = budget_pico_usd
        write.values[":opened"] = {
            "available_pico_usd": budget_pico_usd - demand.worst_pico_usd,
            "spent_pico_usd": 0,
        }
        if "expires_s" in self.item:
            # The table forgets meters that nobody uses, and none in a month that it has counted.
            write.set("expires_s = :expires")
            write.values[":expires"] = expiry_s(demand.now_ms)
        kept = sorted(self.item["months"])[-1:]
        leased = {lease["month"] for lease in self.item["in_flight"].values()}
        for index, month in enumerate(m for m in self.item["months"] if m not in kept and m not in leased):
            write.names[f"#old{index}"] = month
            write.remove(f"months.#old{index}")

    def opening(self, month: str) -> Update:
        """The write that opens a month with the whole budget and takes nothing."""
        write = _Write(names={"#month": month})
        write.condition("attribute_not_exists(months.#month)", "budget_pico_usd = :budget")
        write.values |= {
            ":budget": self.item["budget_pico_usd"],
            ":opened": {"available_pico_usd": self.item["budget_pico_usd"], "spent_pico_usd": 0},
        }
        write.set("months.#month = :opened")
        return write.done()

    def _take_minute(self, write: _Write, demand: Demand, minute: Minute) -> None:
        write.values |= {":slot": minute.slot, ":one": 1, ":tokens": demand.tokens}
        if minute.slot == self.item["slot"]:
            write.condition("slot = :slot", "requests_left >= :one", "tokens_left >= :tokens")
            write.set(
                "requests_left = requests_left - :one",
                "tokens_left = tokens_left - :tokens",
                "slot_requests = slot_requests + :one",
                "slot_tokens = slot_tokens + :tokens",
            )
            return
        for name in ("slot", "slot_requests", "slot_tokens", "requests_left", "tokens_left", "history"):
            write.values[f":seen_{name}"] = self.item[name]
            write.condition(f"{name} = :seen_{name}")
        write.values |= {
            ":history": minute.history,
            ":requests_left": minute.requests_left - 1,
            ":tokens_left": minute.tokens_left - demand.tokens,
        }
        write.set(
            "slot = :slot",
            "history = :history",
            "slot_requests = :one",
            "slot_tokens = :tokens",
            "requests_left = :requests_left",
            "tokens_left = :tokens_left",
        )

    # ── The end of a lease ─────────────────────────────────────────────────────────────────────────────────

    def finish(self, lease: Lease, *, cost_pico_usd: int, tokens: int | None, refund_request: bool = False) -> Update:
        """The write that ends a lease: what was set aside comes back, what was spent is spent.

        ``tokens`` are those really used, None to leave the minute's count as it was estimated; ``refund_request``
        also takes the request itself back, for one that another meter refused.
        """
        write = _Write(names={"#id": lease.request_id, "#month": lease.month})
        write.condition("attribute_exists(in_flight.#id)")
        write.remove("in_flight.#id")
        if lease.month in self.item["months"]:
            write.condition("attribute_exists(months.#month)")
            write.values |= {":back": lease.worst_pico_usd - cost_pico_usd, ":cost": cost_pico_usd}
            write.set(
                "months.#month.available_pico_usd = months.#month.available_pico_usd + :back",
                "months.#month.spent_pico_usd = months.#month.spent_pico_usd + :cost",
            )
        else:
            # Gone from the meter, not only from a view that is older than the month.
            write.condition("attribute_not_exists(months.#month)")
        unused = 0 if tokens is None else lease.tokens - tokens
        if self.is_rate_limited and (unused or refund_request):
            self._give_back(write, lease.slot, unused, requests=1 if refund_request else 0)
        return write.done()

    def _give_back(self, write: _Write, slot: int, tokens: int, *, requests: int) -> None:
        """Where the slot is still counted; one that is forgotten has given everything back already."""
        if slot == self.item["slot"]:
            write.condition("slot = :slot")
            places = ("slot_requests", "slot_tokens")
        else:
            index = next((i for i, past in enumerate(self.item["history"]) if past["slot"] == slot), None)
            if index is None:
                write.values[":slot"] = slot
                write.condition("slot > :slot")
                return
            write.condition(f"history[{index}].slot = :slot")
            places = (f"history[{index}].requests", f"history[{index}].tokens")
        write.values |= {":slot": slot, ":tokens": tokens, ":requests": requests}
        write.set(
            "requests_left = requests_left + :requests",
            "tokens_left = tokens_left + :tokens",
            f"{places[0]} = {places[0]} - :requests",
            f"{places[1]} = {places[1]} - :tokens",
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """What a meter allows; :data:`UNLIMITED` where it does not limit."""

    budget_pico_usd: int = UNLIMITED
    rpm: int = UNLIMITED
    tpm: int = UNLIMITED
    max_parallel: int = UNLIMITED

    def slice(self, shard: int, shards: int) -> Limits:
        """The part of one shard; all parts add up to the whole."""

        def part(whole: int) -> int:
            return whole if whole >= UNLIMITED else whole // shards + (1 if shard < whole % shards else 0)

        return Limits(part(self.budget_pico_usd), part(self.rpm), part(self.tpm), part(self.max_parallel))


@dataclass(frozen=True, slots=True)
class Minute:
    """The minute that ends now: its slots before the current one, and what is left."""

    slot: int
    history: list[dict[str, int]]
    requests_left: int
    tokens_left: int


def expiry_s(now_ms: int) -> int:
    """When the table may forget a meter that was used now (Unix seconds): after this month and the next."""
    return now_ms // 1000 + _KEPT_DAYS * 86_400


def new_item(meter_id: str, limits: Limits, **more: Any) -> dict[str, Any]:
    """The item of a meter that has admitted nothing yet; ``more`` is what its kind adds to it."""
    return {
        "meter": meter_id,
        "enabled": True,
        "budget_pico_usd": limits.budget_pico_usd,
        "rpm": limits.rpm,
        "tpm": limits.tpm,
        "max_parallel": limits.max_parallel,
        "months": {},
        "slot": 0,
        "slot_requests": 0,
        "slot_tokens": 0,
        "history": [],
        "requests_left": limits.rpm,
        "tokens_left": limits.tpm,
        "in_flight": {},
        **more,
    }


@dataclass(slots=True)
class _Write:
    """An UpdateItem being put together."""

    names: dict[str, str]
    values: dict[str, Any] = field(default_factory=dict)
    _sets: list[str] = field(default_factory=list)
    _removes: list[str] = field(default_factory=list)
    _conditions: list[str] = field(default_factory=list)

    def set(self, *assignments: str) -> None:
        self._sets += assignments

    def remove(self, *paths: str) -> None:
        self._removes += paths

    def condition(self, *conditions: str) -> None:
        self._conditions += conditions

    def done(self) -> Update:
        update = f"SET {', '.join(self._sets)}" if self._sets else ""
        if self._removes:
            update += f" REMOVE {', '.join(self._removes)}"
        return Update(update.strip(), " AND ".join(self._conditions), self.names, self.values)
