"""Keys and budgets as the operator changes them, while requests run through them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import pytest

from naru.api_keys import ALL_MODELS, NEVER_MS, KeyChanges, KeyView, NewKey, new_admin_key_item
from naru.attributes import to_item
from naru.errors import (
    ApiKeyNotFoundError,
    AuthenticationError,
    ConflictError,
    PermissionDeniedError,
    QuotaExceededError,
    RateLimitedError,
    StoreUnavailableError,
)
from naru.key_store import MAX_SECRETS, KeyStore
from naru.keys import hash_secret, new_key_id, new_secret
from naru.meter import Admission, Meters
from naru.meter_changes import shard_id, whole
from naru.meter_state import UNLIMITED, Limits
from naru.meter_store import MeterStore
from naru.request_ids import new_request_id
from tests.meters import USD, meter
from tests.moto_tables import tables

SEOUL = ZoneInfo("Asia/Seoul")
MONTH = "2026-11"
NOON = int(datetime(2026, 11, 22, 12, 0, 5, tzinfo=SEOUL).timestamp() * 1000)

T = TypeVar("T")


@pytest.fixture
def dynamodb() -> Iterator[Any]:
    with tables("MeterTable") as client:
        yield client


class Between:
    """A client in whose way somebody else writes: ``first`` runs once, before the next write."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.first: Callable[[], object] | None = None

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._client, name)
        if name not in {"update_item", "transact_write_items"}:
            return function

        def write(**parameters: Any) -> Any:
            if self.first is not None:
                first, self.first = self.first, None
                first()
            return function(**parameters)

        return write


class Office:
    """The operator's side and the clients' side of one table, at one time of day."""

    def __init__(self, dynamodb: Any) -> None:
        self.client = dynamodb
        self.between = Between(dynamodb)
        self.now_ms = NOON
        store: Any = self.between
        self.store = KeyStore(
            MeterStore(store, "MeterTable", rng=Eager()), SEOUL, organisation_budget_pico_usd=500 * USD
        )

    # ── The operator ──

    def create(self, **fields: Any) -> tuple[str, str]:
        limits = Limits(**{name: fields.pop(name) for name in Limits.__dataclass_fields__ if name in fields})
        view, secret = self.run(self.store.create(NewKey("app", limits=limits, **fields), now_ms=self.now_ms))
        return view.key_id, secret

    def get(self, key_id: str) -> KeyView:
        return self.run(self.store.get(key_id, now_ms=self.now_ms))

    def update(self, key_id: str, **changes: Any) -> KeyView:
        return self.run(self.store.update(key_id, KeyChanges(**changes), now_ms=self.now_ms))

    def rotate(self, key_id: str, overlap_s: int = 3600) -> str:
        return self.run(self.store.rotate(key_id, overlap_s=overlap_s, now_ms=self.now_ms))[1]

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(coroutine)

    # ── A client ──

    def admit(self, secret: str, worst: int = USD, **more: Any) -> Admission:
        return asyncio.run(
            self._meters().admit(
                f"Bearer {secret}",
                **{
                    "request_id": new_request_id(at_ms=self.now_ms),
                    "now_ms": self.now_ms,
                    "model": "hyperclova-x-omni",
                    "worst_pico_usd": worst,
                    "tokens": 10,
                    **more,
                },
            )
        )

    def settle(self, admission: Admission, cost: int) -> None:
        asyncio.run(self._meters().settle(admission, cost_pico_usd=cost, tokens=None))

    def spend(self, secret: str, cost: int) -> None:
        self.settle(self.admit(secret, worst=cost), cost)

    def _meters(self) -> Meters:
        return Meters(self.client, "MeterTable", SEOUL, organisation_budget_pico_usd=UNLIMITED)


class Eager(random.Random):
    """Does not wait before it tries again."""

    def uniform(self, a: float, b: float) -> float:
        return 0.0


@pytest.fixture
def office(dynamodb: Any) -> Office:
    return Office(dynamodb)


# ── Making ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_key_opens_the_gateway_and_only_its_hash_is_stored(office: Office) -> None:
    key_id, secret = office.create(budget_pico_usd=5 * USD, models=frozenset({"hyperclova-x-omni"}))
    assert office.admit(secret).key_id == key_id
    stored = str(office.client.scan(TableName="MeterTable")["Items"])
    assert hash_secret(secret) in stored
    assert secret not in stored
    with pytest.raises(PermissionDeniedError) as refused:
        office.admit(secret, model="gpt-4.1")
    assert refused.value.code == "model_not_allowed"


def test_shards_share_every_limit_exactly(office: Office) -> None:
    key_id, _ = office.create(budget_pico_usd=10, rpm=7, tpm=9, max_parallel=5, shards=4, user_rpm=3)
    shards = [meter(office.client, shard_id(f"key#{key_id}", shard)) for shard in range(4)]
    assert [shard.limits.rpm for shard in shards] == [2, 2, 2, 1]
    assert whole(shards) == Limits(budget_pico_usd=10, rpm=7, tpm=9, max_parallel=5)
    for shard in shards:
        assert (shard.item["user_rpm"], shard.item["shards"], shard.item["expires_at_ms"]) == (3, 4, NEVER_MS)
    view = office.get(key_id)
    assert (view.shards, view.limits.rpm, view.month.available_pico_usd) == (4, 7, 10)


def test_a_view_says_what_was_spent_what_is_set_aside_and_what_is_left(office: Office) -> None:
    key_id, secret = office.create(budget_pico_usd=10 * USD)
    office.spend(secret, 3 * USD)
    office.admit(secret, worst=2 * USD)
    month = office.get(key_id).month
    assert (month.month, month.in_flight) == (MONTH, 1)
    assert (month.spent_pico_usd, month.reserved_pico_usd, month.available_pico_usd) == (3 * USD, 2 * USD, 5 * USD)
    assert datetime.fromtimestamp(month.resets_at_ms / 1000, UTC) == datetime(2026, 12, 1, tzinfo=SEOUL)


def test_keys_are_listed_newest_first_in_pages(office: Office) -> None:
    made = []
    for minute in range(5):
        office.now_ms = NOON + minute * 60_000
        made.append(office.create(shards=1 + minute % 2)[0])
    newest = made[::-1]
    first = office.run(office.store.page(now_ms=office.now_ms, after=None, limit=2))
    assert ([view.key_id for view in first.keys], first.has_more) == (newest[:2], True)
    rest = office.run(office.store.page(now_ms=office.now_ms, after=newest[1], limit=3))
    assert ([view.key_id for view in rest.keys], rest.has_more) == (newest[2:], False)
    with pytest.raises(ApiKeyNotFoundError):
        office.run(office.store.page(now_ms=office.now_ms, after="key_gone", limit=3))


@pytest.mark.parametrize("key_id", ["key_000000000000", "key_", "", "organisation", "key_000000000000/1"])
def test_an_unknown_key_is_not_found(office: Office, key_id: str) -> None:
    with pytest.raises(ApiKeyNotFoundError):
        office.get(key_id)


def test_a_shard_is_not_a_key_of_its_own(office: Office) -> None:
    key_id, _ = office.create(shards=2)
    with pytest.raises(ApiKeyNotFoundError):
        office.get(f"{key_id}/1")


# ── Changing ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("budget", [40 * USD, 9 * USD, UNLIMITED])
def test_a_budget_that_changes_keeps_what_was_spent_and_set_aside(office: Office, shards: int, budget: int) -> None:
    key_id, secret = office.create(budget_pico_usd=20 * USD, shards=shards)
    office.spend(secret, 3 * USD)
    held = office.admit(secret, worst=2 * USD)
    month = office.update(key_id, budget_pico_usd=budget).month
    assert (month.spent_pico_usd, month.reserved_pico_usd) == (3 * USD, 2 * USD)
    total = budget if budget < UNLIMITED else shards * UNLIMITED
    assert month.available_pico_usd == total - 5 * USD
    office.settle(held, cost=USD)
    month = office.update(key_id, budget_pico_usd=30 * USD).month
    assert (month.spent_pico_usd, month.reserved_pico_usd, month.available_pico_usd) == (4 * USD, 0, 26 * USD)


def test_an_unlimited_key_that_gets_a_budget_has_spent_what_it_has_spent(office: Office) -> None:
    key_id, secret = office.create()
    office.spend(secret, 3 * USD)
    assert office.update(key_id, budget_pico_usd=4 * USD).month.available_pico_usd == USD
    with pytest.raises(QuotaExceededError):
        office.admit(secret, worst=2 * USD)


def test_a_budget_below_what_is_spent_admits_nothing_more(office: Office) -> None:
    key_id, secret = office.create(budget_pico_usd=10 * USD)
    office.spend(secret, 6 * USD)
    assert office.update(key_id, budget_pico_usd=4 * USD).month.available_pico_usd == -2 * USD
    with pytest.raises(QuotaExceededError):
        office.admit(secret, worst=0 + 1)


def test_what_another_shard_has_spent_is_not_spent_again_after_a_cut(office: Office) -> None:
    """One shard's part may be gone while the other's is not: a difference per shard would leave 3 USD there."""
    key_id, secret = office.create(budget_pico_usd=10 * USD, shards=2)
    spent = 0
    while meter(office.client, f"key#{key_id}").available_pico_usd(MONTH) > 0:
        office.spend(secret, USD)
        spent += 1
    left = office.update(key_id, budget_pico_usd=(spent + 1) * USD).month.available_pico_usd
    assert left == USD
    office.spend(secret, USD)
    with pytest.raises(QuotaExceededError):
        office.admit(secret, worst=1)


def test_a_minute_that_was_half_used_stays_half_used(office: Office) -> None:
    key_id, secret = office.create(rpm=4)
    for _ in range(2):
        office.admit(secret)
    office.update(key_id, rpm=3)
    office.admit(secret)
    with pytest.raises(RateLimitedError):
        office.admit(secret)
    office.update(key_id, rpm=5)
    office.admit(secret)
    office.admit(secret)
    with pytest.raises(RateLimitedError):
        office.admit(secret)
    office.now_ms += 70_000
    for _ in range(5):
        office.admit(secret)
    with pytest.raises(RateLimitedError):
        office.admit(secret)


def test_limits_come_and_go(office: Office) -> None:
    key_id, secret = office.create()
    office.admit(secret)
    office.update(key_id, rpm=1, tpm=1000, max_parallel=2)
    office.admit(secret)
    with pytest.raises(RateLimitedError):
        office.admit(secret)
    office.update(key_id, rpm=UNLIMITED, tpm=UNLIMITED, max_parallel=UNLIMITED)
    for _ in range(3):
        office.admit(secret)


def test_other_fields_change_on_every_shard(office: Office) -> None:
    key_id, secret = office.create(shards=3, models=frozenset({"gpt-4.1"}))
    view = office.update(
        key_id,
        name="다른 이름",
        tags={"team": "mobile"},
        models=ALL_MODELS,
        user_rpm=5,
        user_budget_pico_usd=USD,
        expires_at_ms=NOON + 1000,
    )
    assert (view.name, view.tags, view.models) == ("다른 이름", {"team": "mobile"}, ALL_MODELS)
    for shard in range(3):
        item = meter(office.client, shard_id(f"key#{key_id}", shard)).item
        assert "models" not in item
        assert (item["user_rpm"], item["user_budget_pico_usd"], item["expires_at_ms"]) == (5, USD, NOON + 1000)
    office.admit(secret)
    office.now_ms += 1000
    assert office.get(key_id).status == "expired"
    with pytest.raises(AuthenticationError):
        office.admit(secret)


def test_a_key_that_is_switched_off_can_be_switched_on(office: Office) -> None:
    key_id, secret = office.create(shards=2)
    assert office.update(key_id, enabled=False).status == "disabled"
    for _ in range(5):
        with pytest.raises(PermissionDeniedError):
            office.admit(secret)
    assert office.update(key_id, enabled=True).status == "active"
    office.admit(secret)


# ── Changing while requests run ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    "new", [{"budget_pico_usd": 30 * USD}, {"budget_pico_usd": 6 * USD}, {"rpm": 50}, {"tpm": 900}]
)
def test_a_request_between_reading_and_writing_is_not_lost(office: Office, shards: int, new: dict[str, int]) -> None:
    key_id, secret = office.create(budget_pico_usd=20 * USD, rpm=100, tpm=1000, shards=shards)
    office.spend(secret, USD)
    office.between.first = lambda: office.admit(secret, worst=2 * USD)
    view = office.update(key_id, **new)
    budget = new.get("budget_pico_usd", 20 * USD)
    assert view.month.in_flight == 1
    assert view.month.available_pico_usd == budget - 3 * USD
    meters = [meter(office.client, shard_id(f"key#{key_id}", shard)) for shard in range(shards)]
    assert sum(each.minute(NOON).requests_left for each in meters) == new.get("rpm", 100) - 2
    assert sum(each.minute(NOON).tokens_left for each in meters) == new.get("tpm", 1000) - 20


@pytest.mark.parametrize("shards", [1, 2])
def test_a_month_that_begins_between_reading_and_writing_has_the_new_budget(office: Office, shards: int) -> None:
    key_id, secret = office.create(budget_pico_usd=20 * USD, shards=shards)
    office.between.first = lambda: office.spend(secret, USD)
    assert office.update(key_id, budget_pico_usd=30 * USD).month.available_pico_usd == 29 * USD


def test_two_operators_at_once_end_with_one_of_the_two_budgets(office: Office) -> None:
    key_id, secret = office.create(budget_pico_usd=20 * USD)
    office.spend(secret, USD)
    other = Office(office.client)
    office.between.first = lambda: other.update(key_id, budget_pico_usd=50 * USD)
    view = office.update(key_id, budget_pico_usd=30 * USD)
    assert (view.limits.budget_pico_usd, view.month.available_pico_usd) == (30 * USD, 29 * USD)


def test_a_change_between_reading_and_revoking_does_not_revive_the_key(office: Office) -> None:
    key_id, _ = office.create()
    other = Office(office.client)
    office.between.first = lambda: other.run(other.store.revoke(key_id, now_ms=NOON))
    with pytest.raises(ConflictError):
        office.update(key_id, enabled=True)
    assert office.get(key_id).status == "revoked"


@pytest.mark.slow
def test_a_key_nobody_can_catch_is_said_to_be_busy(office: Office) -> None:
    key_id, _ = office.create(rpm=1)
    other = Office(office.client)

    def again() -> None:
        other.update(key_id, rpm=random.randrange(10, 10**9))
        office.between.first = again

    office.between.first = again
    with pytest.raises(StoreUnavailableError):
        office.update(key_id, rpm=5)


# ── Rotation and revocation ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shards", [1, 2])
def test_a_rotated_key_works_until_the_overlap_ends(office: Office, shards: int) -> None:
    key_id, old = office.create(budget_pico_usd=10 * USD, shards=shards)
    office.spend(old, USD)
    new = office.rotate(key_id, overlap_s=60)
    assert office.get(key_id).old_secret_until_ms == NOON + 60_000
    for _ in range(4):
        office.admit(old)
        office.admit(new)
    assert office.get(key_id).month.spent_pico_usd == USD
    office.now_ms += 60_000
    office.admit(new, worst=1)
    with pytest.raises(AuthenticationError, match="expired"):
        office.admit(old)
    assert office.get(key_id).old_secret_until_ms is None


def test_a_leaked_key_ends_at_once(office: Office) -> None:
    key_id, old = office.create()
    new = office.rotate(key_id, overlap_s=0)
    with pytest.raises(AuthenticationError, match="expired"):
        office.admit(old)
    office.admit(new)


def test_a_shorter_overlap_ends_older_ones_too_and_a_longer_one_revives_none(office: Office) -> None:
    key_id, first = office.create()
    office.rotate(key_id, overlap_s=3600)
    office.rotate(key_id, overlap_s=60)
    assert office.get(key_id).old_secret_until_ms == NOON + 60_000
    office.rotate(key_id, overlap_s=7200)
    office.now_ms += 60_000
    with pytest.raises(AuthenticationError):
        office.admit(first)


def test_secrets_do_not_pile_up_in_the_meter(office: Office) -> None:
    key_id, _ = office.create()
    for _ in range(MAX_SECRETS - 1):
        office.rotate(key_id)
    with pytest.raises(ConflictError) as refused:
        office.rotate(key_id)
    assert refused.value.code == "too_many_rotations"
    office.rotate(key_id, overlap_s=0)
    office.now_ms += 1
    office.rotate(key_id)
    assert len(meter(office.client, f"key#{key_id}").item["secrets"]) == 2


def test_two_rotations_at_once_both_count(office: Office) -> None:
    key_id, _ = office.create()
    other, secrets = Office(office.client), []
    office.between.first = lambda: secrets.append(other.rotate(key_id))
    secrets.append(office.rotate(key_id))
    for secret in secrets:
        office.admit(secret)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_revoked_key_is_refused_from_the_next_request_on(office: Office, shards: int) -> None:
    key_id, secret = office.create(budget_pico_usd=20 * USD, shards=shards)
    held = office.admit(secret, worst=2 * USD)
    view = office.run(office.store.revoke(key_id, now_ms=NOON))
    assert (view.status, view.enabled, view.revoked_at_ms) == ("revoked", False, NOON)
    for _ in range(5):
        with pytest.raises(PermissionDeniedError):
            office.admit(secret)
    office.settle(held, cost=USD)
    again = office.run(office.store.revoke(key_id, now_ms=NOON + 5))
    assert (again.revoked_at_ms, again.month.spent_pico_usd) == (NOON, USD)
    assert [each.key_id for each in office.run(office.store.page(now_ms=NOON, after=None, limit=10)).keys] == [key_id]
    for forbidden in (lambda: office.update(key_id, enabled=True), lambda: office.rotate(key_id)):
        with pytest.raises(ConflictError) as refused:
            forbidden()
        assert refused.value.code == "api_key_revoked"


# ── The organisation ───────────────────────────────────────────────────────────────────────────────────────


def set_organisation(office: Office, **changes: int) -> Any:
    return office.run(office.store.update_organisation(**changes, now_ms=office.now_ms))


def test_the_organisation_has_the_default_budget_until_somebody_changes_it(office: Office) -> None:
    assert office.run(office.store.organisation(now_ms=NOON)).budget_pico_usd == 500 * USD
    assert office.client.scan(TableName="MeterTable")["Count"] == 0
    view = set_organisation(office, budget_pico_usd=7 * USD)
    assert (view.budget_pico_usd, view.month.available_pico_usd) == (7 * USD, 7 * USD)
    _, secret = office.create()
    office.spend(secret, 2 * USD)
    assert set_organisation(office, budget_pico_usd=8 * USD).month.available_pico_usd == 6 * USD


def test_the_organisation_made_by_a_request_can_be_changed(office: Office) -> None:
    _, secret = office.create()
    office.spend(secret, 2 * USD)  # there it is unlimited
    view = set_organisation(office, budget_pico_usd=10 * USD)
    assert (view.month.spent_pico_usd, view.month.available_pico_usd) == (2 * USD, 8 * USD)


def test_the_organisation_is_spread_over_shards_while_requests_run(office: Office) -> None:
    set_organisation(office, budget_pico_usd=10 * USD)
    _, secret = office.create()
    office.spend(secret, 2 * USD)
    held = office.admit(secret, worst=3 * USD)
    office.between.first = lambda: office.spend(secret, USD)
    view = set_organisation(office, shards=4)
    assert (view.shards, view.budget_pico_usd) == (4, 10 * USD)
    assert (view.month.spent_pico_usd, view.month.available_pico_usd) == (3 * USD, 4 * USD)
    office.settle(held, cost=3 * USD)
    for _ in range(4):
        office.spend(secret, USD)
    with pytest.raises(QuotaExceededError):
        office.admit(secret, worst=1)
    assert set_organisation(office, budget_pico_usd=11 * USD, shards=5).month.available_pico_usd == USD
    with pytest.raises(ConflictError):
        set_organisation(office, shards=2)


# ── Who may ────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_admin_key_opens_the_admin_api_and_no_model(office: Office) -> None:
    item, secret = new_admin_key_item("mina", now_ms=NOON)
    office.client.put_item(TableName="MeterTable", Item=to_item(item))
    assert office.run(office.store.authenticate_admin(f"Bearer {secret}", now_ms=NOON)) == item["key_id"]
    with pytest.raises(AuthenticationError):
        office.admit(secret)
    with pytest.raises(AuthenticationError):
        office.run(office.store.authenticate_admin(f"Bearer {new_secret(item['key_id'])}", now_ms=NOON))
    office.client.put_item(TableName="MeterTable", Item=to_item(item | {"enabled": False}))
    with pytest.raises(PermissionDeniedError):
        office.run(office.store.authenticate_admin(f"Bearer {secret}", now_ms=NOON))


def test_an_apps_key_is_told_that_an_admin_key_is_needed(office: Office) -> None:
    key_id, secret = office.create()
    with pytest.raises(PermissionDeniedError) as refused:
        office.run(office.store.authenticate_admin(f"Bearer {secret}", now_ms=NOON))
    assert refused.value.code == "admin_key_required"
    for stranger in (None, "Bearer x", f"Bearer {new_secret(key_id)}", f"Bearer {new_secret(new_key_id())}"):
        with pytest.raises(AuthenticationError):
            office.run(office.store.authenticate_admin(stranger, now_ms=NOON))
