"""API keys as values: what is asked for, what lies in the table, what is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from zoneinfo import ZoneInfo

from naru.business_time import business_day, next_month_starts
from naru.keys import hash_secret, new_key_id, new_secret
from naru.meter_changes import shard_id, whole
from naru.meter_state import UNLIMITED, Limits, Meter, new_item

NEVER_MS = 10**15
ALL_MODELS: frozenset[str] = frozenset()

Status = Literal["active", "disabled", "expired", "revoked"]


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key to be made; the defaults limit nothing."""

    name: str
    limits: Limits = field(default_factory=Limits)
    user_budget_pico_usd: int = UNLIMITED
    user_rpm: int = UNLIMITED
    models: frozenset[str] = ALL_MODELS
    expires_at_ms: int = NEVER_MS
    tags: Mapping[str, str] = field(default_factory=dict)
    may_route: bool = False
    """Whether its requests may say how they are routed."""
    shards: int = 1


@dataclass(frozen=True, slots=True)
class KeyChanges:
    """What changes about a key; None is what stays as it is."""

    name: str | None = None
    budget_pico_usd: int | None = None
    rpm: int | None = None
    tpm: int | None = None
    max_parallel: int | None = None
    user_budget_pico_usd: int | None = None
    user_rpm: int | None = None
    models: frozenset[str] | None = None
    expires_at_ms: int | None = None
    tags: Mapping[str, str] | None = None
    may_route: bool | None = None
    enabled: bool | None = None

    def limits(self, old: Limits) -> Limits:
        """The limits after the change."""
        given = {name: getattr(self, name) for name in Limits.__dataclass_fields__}
        return replace(old, **{name: limit for name, limit in given.items() if limit is not None})


@dataclass(frozen=True, slots=True)
class MonthView:
    """What a meter has counted in the current month. ``available`` is what may still be set aside; below zero it is
    a debt, left by a budget that was lowered.
    """

    month: str
    resets_at_ms: int
    spent_pico_usd: int
    reserved_pico_usd: int
    available_pico_usd: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class KeyView:
    """A key without its secret."""

    key_id: str
    name: str
    status: Status
    enabled: bool
    created_at_ms: int
    expires_at_ms: int
    revoked_at_ms: int | None
    old_secret_until_ms: int | None
    """Until when a rotated secret still works."""
    limits: Limits
    user_budget_pico_usd: int
    user_rpm: int
    models: frozenset[str]
    tags: Mapping[str, str]
    may_route: bool
    shards: int
    month: MonthView


@dataclass(frozen=True, slots=True)
class Page:
    """Keys, newest first."""

    keys: tuple[KeyView, ...]
    has_more: bool


@dataclass(frozen=True, slots=True)
class OrganisationView:
    """The budget that all keys share."""

    budget_pico_usd: int
    shards: int
    month: MonthView


def new_key_items(new: NewKey, *, now_ms: int) -> tuple[list[dict[str, Any]], str]:
    """The items of a new key, one for each shard, and its secret."""
    key_id = new_key_id()
    secret = new_secret(key_id)
    everywhere = {
        "key_id": key_id,
        "secrets": {hash_secret(secret): NEVER_MS},
        "expires_at_ms": new.expires_at_ms,
        "shards": new.shards,
        "user_budget_pico_usd": new.user_budget_pico_usd,
        "user_rpm": new.user_rpm,
        **({"models": new.models} if new.models != ALL_MODELS else {}),
    }
    first = {"name": new.name, "tags": dict(new.tags), "created_at_ms": now_ms, "scope": "chat"}
    if new.may_route:
        first["may_route"] = True
    items = [
        new_item(shard_id(f"key#{key_id}", shard), new.limits.slice(shard, new.shards), **everywhere)
        for shard in range(new.shards)
    ]
    return [items[0] | first, *items[1:]], secret


def new_admin_key_item(name: str, *, now_ms: int) -> tuple[dict[str, Any], str]:
    """The item of a new admin key, and its secret. It is no meter, since it opens the admin API and no model."""
    key_id = new_key_id()
    secret = new_secret(key_id)
    item = {
        "meter": f"admin#{key_id}",
        "key_id": key_id,
        "scope": "admin",
        "name": name,
        "secrets": {hash_secret(secret): NEVER_MS},
        "enabled": True,
        "expires_at_ms": NEVER_MS,
        "created_at_ms": now_ms,
    }
    return item, secret


def month_of(now_ms: int, zone: ZoneInfo) -> str:
    """The month whose budget is spent at that time."""
    return business_day(now_ms, zone).isoformat()[:7]


def key_view(meters: Sequence[Meter], now_ms: int, zone: ZoneInfo) -> KeyView:
    """A key, from all of its shards."""
    item = meters[0].item
    old = [until_ms for until_ms in item["secrets"].values() if now_ms < until_ms < NEVER_MS]
    status: Status = "active"
    if "revoked_at_ms" in item:
        status = "revoked"
    elif not item["enabled"]:
        status = "disabled"
    elif item["expires_at_ms"] <= now_ms:
        status = "expired"
    return KeyView(
        key_id=item["key_id"],
        name=item["name"],
        status=status,
        enabled=item["enabled"],
        created_at_ms=item["created_at_ms"],
        expires_at_ms=item["expires_at_ms"],
        revoked_at_ms=item.get("revoked_at_ms"),
        old_secret_until_ms=max(old, default=None),
        limits=whole(meters),
        user_budget_pico_usd=item["user_budget_pico_usd"],
        user_rpm=item["user_rpm"],
        models=item.get("models", ALL_MODELS),
        tags=item["tags"],
        may_route=item.get("may_route", False),
        shards=len(meters),
        month=_month_view(meters, now_ms, zone),
    )


def organisation_view(meters: Sequence[Meter], now_ms: int, zone: ZoneInfo) -> OrganisationView:
    """The organisation's budget, from all of its shards."""
    return OrganisationView(whole(meters).budget_pico_usd, len(meters), _month_view(meters, now_ms, zone))


def _month_view(meters: Sequence[Meter], now_ms: int, zone: ZoneInfo) -> MonthView:
    month = month_of(now_ms, zone)
    leases = [lease for meter in meters for lease in meter.leases()]
    return MonthView(
        month=month,
        resets_at_ms=int(next_month_starts(now_ms, zone).timestamp()) * 1000,
        spent_pico_usd=sum(meter.spent_pico_usd(month) for meter in meters),
        reserved_pico_usd=sum(lease.worst_pico_usd for lease in leases if lease.month == month),
        available_pico_usd=sum(meter.available_pico_usd(month) for meter in meters),
        in_flight=len(leases),
    )
