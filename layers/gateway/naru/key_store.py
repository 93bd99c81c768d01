"""What the operator does with keys and budgets: make, show, change, rotate, revoke.

A key is its meter (:mod:`naru.meter_state`), so every change meets requests that are being admitted by it. Each write
is conditional and adds differences (:mod:`naru.meter_changes`). A key with shards changes in one transaction, so that
no shard admits what another already refuses.

A secret is in the answer to ``create`` and ``rotate`` and nowhere else; the table holds its SHA-256.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from zoneinfo import ZoneInfo

from naru.api_keys import (
    ALL_MODELS,
    NEVER_MS,
    KeyChanges,
    KeyView,
    NewKey,
    OrganisationView,
    Page,
    key_view,
    month_of,
    new_key_items,
    organisation_view,
)
from naru.errors import ApiKeyNotFoundError, ConflictError, PermissionDeniedError
from naru.keys import expired_key, hash_secret, new_secret, read_authorization, unknown_key
from naru.meter import ORGANISATION
from naru.meter_changes import Change, change_limits, shard_id, whole
from naru.meter_state import Limits, Meter, new_item
from naru.meter_store import MeterStore, Plan

MAX_SECRETS = 6
"""Of one key that work at the same time: a meter is written twice per request, and every byte of it is paid for."""

_KEY_ID = re.compile(r"key_[a-z0-9]{12}")


class KeyStore:
    """Every method raises :class:`~naru.errors.StoreUnavailableError` when DynamoDB does not answer."""

    def __init__(self, meters: MeterStore, zone: ZoneInfo, *, organisation_budget_pico_usd: int) -> None:
        self._meters = meters
        self._zone = zone
        self._organisation = Limits(budget_pico_usd=organisation_budget_pico_usd)

    async def authenticate_admin(self, authorization: str | None, *, now_ms: int) -> str:
        """The id of the admin key that the Authorization header proves.

        Raises :class:`~naru.errors.AuthenticationError`, and :class:`~naru.errors.PermissionDeniedError` for a key
        that opens models and not this.
        """
        key_id, secret_hash = read_authorization(authorization)
        for kind in ("admin", "key"):
            item = await self._meters.item(f"{kind}#{key_id}")
            if item is None or secret_hash not in item["secrets"]:
                continue
            if min(item["secrets"][secret_hash], item["expires_at_ms"]) <= now_ms:
                raise expired_key()
            if kind == "key":
                raise PermissionDeniedError(
                    "This key opens models, not the admin API. Send an admin key, which 'naru admin init' makes.",
                    code="admin_key_required",
                )
            if not item["enabled"]:
                raise PermissionDeniedError("This admin key has been replaced.", code="api_key_disabled")
            return key_id
        raise unknown_key()

    # ── Keys ───────────────────────────────────────────────────────────────────────────────────────────────

    async def create(self, new: NewKey, *, now_ms: int) -> tuple[KeyView, str]:
        """A new key and its secret, which cannot be read again."""
        items, secret = new_key_items(new, now_ms=now_ms)
        await self._meters.put(items)
        return key_view([Meter(item) for item in items], now_ms, self._zone), secret

    async def get(self, key_id: str, *, now_ms: int) -> KeyView:
        """A key.

        Raises :class:`~naru.errors.ApiKeyNotFoundError`.
        """
        return key_view(await self._read(key_id), now_ms, self._zone)

    async def page(self, *, now_ms: int, after: str | None, limit: int) -> Page:
        """Keys, newest first; ``after`` is the last one of the page before.

        A scan of the table, which holds a few items per key: an operator calls it now and then, and an index would
        be written with every request. Raises :class:`~naru.errors.ApiKeyNotFoundError` for an unknown ``after``.
        """
        shards: dict[str, list[Meter]] = {}
        for item in await self._meters.items("key#"):
            shards.setdefault(item["key_id"], []).append(Meter(item))
        views = [
            key_view(sorted(meters, key=lambda meter: int(meter.id.partition("/")[2] or 0)), now_ms, self._zone)
            for meters in shards.values()
            # A scan may meet some shards of a key that is being made.
            if any("created_at_ms" in meter.item for meter in meters)
        ]
        views.sort(key=lambda view: (view.created_at_ms, view.key_id), reverse=True)
        begin = 0
        if after is not None:
            begin = 1 + next((i for i, view in enumerate(views) if view.key_id == after), -1)
            if begin == 0:
                raise _no_such_key(after, param="after")
        return Page(tuple(views[begin : begin + limit]), has_more=len(views) > begin + limit)

    async def update(self, key_id: str, wanted: KeyChanges, *, now_ms: int) -> KeyView:
        """The key with these changes. What it has spent, and what runs, stays counted.

        Raises :class:`~naru.errors.ApiKeyNotFoundError`, and :class:`~naru.errors.ConflictError` for a revoked key.
        """

        def plan(meters: Sequence[Meter], changes: Sequence[Change]) -> None:
            _require_not_revoked(meters, changes)
            for change in changes:
                for name in ("user_budget_pico_usd", "user_rpm", "expires_at_ms", "enabled"):
                    if (value := getattr(wanted, name)) is not None:
                        change.set(name, to=value)
                if wanted.models == ALL_MODELS:
                    change.remove("models")
                elif wanted.models is not None:
                    change.set("models", to=wanted.models)
            if wanted.name is not None:
                changes[0].set("name", to=wanted.name)
            if wanted.tags is not None:
                changes[0].set("tags", to=dict(wanted.tags))
            if wanted.may_route is not None:
                changes[0].set("may_route", to=wanted.may_route)
            change_limits(changes, meters, wanted.limits(whole(meters)), month=month_of(now_ms, self._zone))

        return await self._change(key_id, plan, now_ms)

    async def rotate(self, key_id: str, *, overlap_s: int, now_ms: int) -> tuple[KeyView, str]:
        """A new secret for a key; the ones before it work for ``overlap_s`` more.

        Raises :class:`~naru.errors.ApiKeyNotFoundError`, and :class:`~naru.errors.ConflictError` for a key that is
        revoked or has too many secrets that still work.
        """
        secret = new_secret(key_id)
        secret_hash, ends_ms = hash_secret(secret), now_ms + overlap_s * 1000

        def plan(meters: Sequence[Meter], changes: Sequence[Change]) -> None:
            _require_not_revoked(meters, changes)
            secrets = meters[0].item["secrets"]
            if secret_hash in secrets:
                return  # our own write, whose answer got lost
            if overlap_s and sum(until_ms > now_ms for until_ms in secrets.values()) >= MAX_SECRETS:
                raise ConflictError(
                    f"{key_id} has {MAX_SECRETS} keys that work at the moment, each within its overlap. Wait until one "
                    "of them ends, or end all of them now with an overlap of 0 seconds.",
                    code="too_many_rotations",
                )
            for change in changes:
                change.require_members("secrets", sorted(secrets))
                change.set("secrets", secret_hash, to=NEVER_MS)
                for old, until_ms in secrets.items():
                    # One that ends now is kept, so that its owner hears 'expired'; one that ended before is not.
                    if until_ms <= now_ms:
                        change.remove("secrets", old)
                    elif until_ms > ends_ms:
                        change.set("secrets", old, to=ends_ms)

        return await self._change(key_id, plan, now_ms), secret

    async def revoke(self, key_id: str, *, now_ms: int) -> KeyView:
        """Ends a key for good, from the next request on. It stays in the table, since rows of the ledger name it.

        Revoking again changes nothing. Raises :class:`~naru.errors.ApiKeyNotFoundError`.
        """

        def plan(meters: Sequence[Meter], changes: Sequence[Change]) -> None:
            if "revoked_at_ms" not in meters[0].item:
                _require_not_revoked(meters, changes)
                for change in changes:
                    change.set("enabled", to=False)
                    change.set("revoked_at_ms", to=now_ms)

        return await self._change(key_id, plan, now_ms)

    async def _read(self, key_id: str) -> list[Meter]:
        # Without the check, "key_…/1" would be a key of its own.
        meters = await self._meters.shards(f"key#{key_id}") if _KEY_ID.fullmatch(key_id) else []
        if not meters:
            raise _no_such_key(key_id)
        return meters

    async def _change(self, key_id: str, plan: Plan, now_ms: int) -> KeyView:
        return key_view(await self._meters.change(lambda: self._read(key_id), plan), now_ms, self._zone)

    # ── The organisation ───────────────────────────────────────────────────────────────────────────────────

    async def organisation(self, *, now_ms: int) -> OrganisationView:
        """The budget that all keys share, and what is left of it."""
        meters = await self._meters.shards(ORGANISATION) or [Meter(new_item(ORGANISATION, self._organisation))]
        return organisation_view(meters, now_ms, self._zone)

    async def update_organisation(
        self, *, budget_pico_usd: int | None = None, shards: int | None = None, now_ms: int
    ) -> OrganisationView:
        """Another budget, or more shards; what was spent this month stays spent.

        Raises :class:`~naru.errors.ConflictError` for fewer shards than there are: requests run through them.
        """

        async def read() -> list[Meter]:
            if not (meters := await self._meters.shards(ORGANISATION)):
                # The first request would make it, with the same limits.
                await self._meters.put([new_item(ORGANISATION, self._organisation, shards=1)])
                meters = await self._meters.shards(ORGANISATION)
            if shards is None or shards == len(meters):
                return meters
            if shards < len(meters):
                raise ConflictError(
                    f"The organisation's budget has {len(meters)} shards, and their number can only grow.",
                    param="shards",
                    code="shards_only_grow",
                )
            # They come with nothing to spend, and nobody looks at them before the first shard says how many there are.
            empty = Limits(budget_pico_usd=0)
            for shard in range(len(meters), shards):
                await self._meters.put([new_item(shard_id(ORGANISATION, shard), empty, shards=shards)])
            return await self._meters.shards(ORGANISATION, count=shards)

        def plan(meters: Sequence[Meter], changes: Sequence[Change]) -> None:
            old = whole(meters)
            new = replace(old, budget_pico_usd=old.budget_pico_usd if budget_pico_usd is None else budget_pico_usd)
            for change, meter in zip(changes, meters, strict=True):
                if meter.shards != len(meters):
                    change.set("shards", to=len(meters))
                if "shards" in meter.item:
                    change.require_equal("shards", to=meter.shards)
                else:
                    change.require(f"attribute_not_exists({change.name('shards')})")
            change_limits(changes, meters, new, month=month_of(now_ms, self._zone))

        return organisation_view(await self._meters.change(read, plan), now_ms, self._zone)


def _require_not_revoked(meters: Sequence[Meter], changes: Sequence[Change]) -> None:
    if "revoked_at_ms" in meters[0].item:
        raise ConflictError(
            f"{meters[0].item['key_id']} has been revoked, and for good. Make a new key.", code="api_key_revoked"
        )
    for change in changes:
        change.require(f"attribute_not_exists({change.name('revoked_at_ms')})")


def _no_such_key(key_id: str, *, param: str | None = None) -> ApiKeyNotFoundError:
    return ApiKeyNotFoundError(f"There is no API key {key_id[:64]!r}. 'naru keys list' shows them.", param=param)
