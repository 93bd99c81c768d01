"""Admission and settlement, one at a time; what is about concurrency is in tests/integration."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from botocore.stub import Stubber

from naru.attributes import to_item
from naru.errors import (
    AuthenticationError,
    NaruError,
    PermissionDeniedError,
    QuotaExceededError,
    RateLimitedError,
    StoreUnavailableError,
)
from naru.keys import new_key_id, new_secret
from naru.meter import Admission, Meters
from naru.meter_state import UNLIMITED, Lease, Limits, Meter, new_item
from naru.request_ids import arrived_at_ms, new_request_id
from tests.dynamodb_model import model_of
from tests.meters import USD, meter, put_key
from tests.moto_tables import client

SEOUL = ZoneInfo("Asia/Seoul")


def ms(*parts: int, zone: ZoneInfo = SEOUL) -> int:
    year, month, day, hour, minute, second = parts
    return int(datetime(year, month, day, hour, minute, second, tzinfo=zone).timestamp() * 1000)


NOON = ms(2026, 11, 22, 12, 0, 5)


@pytest.fixture
def dynamodb() -> Any:
    return model_of("MeterTable")


class Gate:
    """The meters as a request sees them; a fresh one remembers nothing, like a new execution environment."""

    def __init__(self, dynamodb: Any, secret: str, budget_pico_usd: int = UNLIMITED) -> None:
        self.meters = Meters(dynamodb, "MeterTable", SEOUL, organisation_budget_pico_usd=budget_pico_usd)
        self.secret = secret

    def admit(self, *, at_ms: int = NOON, now_ms: int | None = None, worst: int = USD, tokens: int = 10, **more: Any) -> Admission:  # fmt: skip
        return asyncio.run(
            self.meters.admit(
                f"Bearer {self.secret}",
                **{
                    "request_id": new_request_id(at_ms=at_ms),
                    "now_ms": at_ms if now_ms is None else now_ms,
                    "model": "hyperclova-x-omni",
                    "worst_pico_usd": worst,
                    "tokens": tokens,
                    **more,
                },
            )
        )

    def settle(self, admission: Admission, cost: int = 0, tokens: int | None = None) -> None:
        asyncio.run(self.meters.settle(admission, cost_pico_usd=cost, tokens=tokens))


@pytest.fixture
def new_gate(dynamodb: Any) -> Callable[..., tuple[str, Gate]]:
    def make(*, organisation: int = UNLIMITED, shards: int = 1, **fields: Any) -> tuple[str, Gate]:
        names = {name: fields.pop(name) for name in Limits.__dataclass_fields__ if name in fields}
        key_id, secret = put_key(dynamodb, limits=Limits(**names), shards=shards, **fields)
        return f"key#{key_id}", Gate(dynamodb, secret, organisation)

    return make


NewGate = Callable[..., tuple[str, Gate]]


# ── Taking and giving back ─────────────────────────────────────────────────────────────────────────────────


def test_the_worst_case_is_set_aside_and_the_cost_is_spent(dynamodb: Any, new_gate: NewGate) -> None:
    key, gate = new_gate(budget_pico_usd=10 * USD, organisation=100 * USD)
    admission = gate.admit(worst=3 * USD)
    for meter_id, left in ((key, 7 * USD), ("organisation", 97 * USD)):
        seen = meter(dynamodb, meter_id)
        assert seen.available_pico_usd("2026-11") == left
        assert [lease.worst_pico_usd for lease in seen.leases()] == [3 * USD]
    gate.settle(admission, cost=1 * USD)
    for meter_id, left in ((key, 9 * USD), ("organisation", 99 * USD)):
        seen = meter(dynamodb, meter_id)
        assert (seen.available_pico_usd("2026-11"), seen.spent_pico_usd("2026-11")) == (left, USD)
        assert seen.leases() == []


def test_settling_twice_charges_once(dynamodb: Any, new_gate: NewGate) -> None:
    key, gate = new_gate(budget_pico_usd=10 * USD)
    admission = gate.admit()
    gate.settle(admission, cost=USD)
    gate.settle(admission, cost=USD)
    Gate(dynamodb, gate.secret).settle(admission, cost=USD)
    assert meter(dynamodb, key).spent_pico_usd("2026-11") == USD


def test_whoever_listens_hears_of_each_cost_once_with_the_meter_as_it_left_it(dynamodb: Any, new_gate: NewGate) -> None:
    key, gate = new_gate(budget_pico_usd=10 * USD)
    heard: list[tuple[str, str, int, int]] = []

    async def listen(meter: Meter, month: str, cost_pico_usd: int) -> None:
        heard.append((meter.id, month, cost_pico_usd, meter.spent_pico_usd(month)))

    gate.meters = Meters(dynamodb, "MeterTable", SEOUL, organisation_budget_pico_usd=UNLIMITED, on_spent=listen)
    released = gate.admit()
    asyncio.run(gate.meters.release(released))
    before = [gate.admit(), gate.admit()]
    for admission in (*before, before[0]):
        gate.settle(admission, cost=USD)
    of_key = [(month, cost, spent) for meter_id, month, cost, spent in heard if meter_id == key]
    assert of_key == [("2026-11", USD, USD), ("2026-11", USD, 2 * USD)]
    assert len([meter_id for meter_id, *_ in heard if meter_id == "organisation"]) == 2


def test_a_repeated_admission_changes_nothing(dynamodb: Any, new_gate: NewGate) -> None:
    key, gate = new_gate(budget_pico_usd=10 * USD)
    request_id = new_request_id(at_ms=NOON)
    first = gate.admit(request_id=request_id)
    again = Gate(dynamodb, gate.secret).admit(request_id=request_id)
    assert again.leases == first.leases
    assert meter(dynamodb, key).available_pico_usd("2026-11") == 9 * USD


def test_a_new_environment_admits_what_an_old_one_settles(dynamodb: Any, new_gate: NewGate) -> None:
    key, gate = new_gate(budget_pico_usd=10 * USD, rpm=5, tpm=1000, max_parallel=2)
    admission = gate.admit()
    Gate(dynamodb, gate.secret).settle(admission, cost=USD, tokens=4)
    assert meter(dynamodb, key).spent_pico_usd("2026-11") == USD


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        ({"budget_pico_usd": USD - 1}, QuotaExceededError),
        ({"rpm": 0}, RateLimitedError),
        ({"tpm": 9}, RateLimitedError),
        ({"max_parallel": 0}, RateLimitedError),
        ({"organisation": USD - 1}, QuotaExceededError),
        ({"models": frozenset({"gpt-4.1"})}, PermissionDeniedError),
        ({"enabled": False}, PermissionDeniedError),
        ({"expires_at_ms": NOON}, AuthenticationError),
    ],
)
def test_a_refused_request_takes_nothing_from_any_limit(
    dynamodb: Any, new_gate: NewGate, limits: dict[str, Any], error: type[NaruError]
) -> None:
    key, gate = new_gate(**{"budget_pico_usd": 10 * USD, "rpm": 5, "tpm": 1000, "max_parallel": 3} | limits)
    before = meter(dynamodb, key).minute(NOON)
    with pytest.raises(error):
        gate.admit()
    after = meter(dynamodb, key)
    assert (after.minute(NOON).requests_left, after.minute(NOON).tokens_left) == (
        before.requests_left,
        before.tokens_left,
    )
    assert after.leases() == []
    assert after.available_pico_usd("2026-11") == limits.get("budget_pico_usd", 10 * USD)


# ── Who may ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("spoil", ["{}x", "sk-naru-{:.3}", "", "sk-naru-0123456789ab-" + "a" * 43, "\udfff", "키"])
def test_a_wrong_key_is_refused_without_saying_why(new_gate: NewGate, spoil: str) -> None:
    _, gate = new_gate()
    gate.secret = spoil.format(gate.secret)
    for attempt in (gate.admit, lambda: asyncio.run(gate.meters.authenticate(f"Bearer {gate.secret}"))):
        with pytest.raises(AuthenticationError, match="not known here") as refused:
            attempt()
        assert refused.value.body()["error"]["code"] == "invalid_api_key"


def test_another_secret_for_a_known_id_opens_nothing(new_gate: NewGate) -> None:
    key, gate = new_gate()
    gate.secret = new_secret(key.removeprefix("key#"))
    with pytest.raises(AuthenticationError):
        gate.admit()


@pytest.mark.parametrize("header", [None, "", "Basic abc", "sk-naru-without-scheme"])
def test_a_request_without_a_key_is_told_how_to_send_one(dynamodb: Any, header: str | None) -> None:
    meters = Meters(dynamodb, "MeterTable", SEOUL, organisation_budget_pico_usd=UNLIMITED)
    with pytest.raises(AuthenticationError, match="Authorization: Bearer sk-naru-"):
        asyncio.run(meters.authenticate(header))


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  "])
def test_the_scheme_is_read_as_http_says(new_gate: NewGate, scheme: str) -> None:
    key, gate = new_gate()
    assert asyncio.run(gate.meters.authenticate(scheme + gate.secret)).key_id == key.removeprefix("key#")


def test_a_key_says_which_models_it_may_use(new_gate: NewGate) -> None:
    _, gate = new_gate(models=frozenset({"gpt-4.1", "HCX-005"}))
    with pytest.raises(PermissionDeniedError, match=r"may use: HCX-005, gpt-4\.1\.") as refused:
        gate.admit()
    assert (refused.value.http_status, refused.value.code, refused.value.param) == (403, "model_not_allowed", "model")
    gate.admit(model="gpt-4.1")


def test_a_key_that_is_switched_off_is_a_403(new_gate: NewGate) -> None:
    _, gate = new_gate(enabled=False)
    with pytest.raises(PermissionDeniedError) as refused:
        gate.admit()
    assert (refused.value.http_status, refused.value.code) == (403, "api_key_disabled")


# ── The minute ─────────────────────────────────────────────────────────────────────────────────────────────


def test_requests_per_minute_end_with_the_time_to_come_back(new_gate: NewGate) -> None:
    _, gate = new_gate(rpm=3)
    for second in range(3):
        gate.admit(at_ms=NOON + 1000 * second)
    with pytest.raises(RateLimitedError, match="limited to 3 requests per minute") as refused:
        gate.admit(at_ms=NOON + 3000)
    wait_s = refused.value.retry_after_s
    assert wait_s is not None
    assert 57 <= wait_s <= 67
    gate.admit(at_ms=NOON + 3000 + round(wait_s * 1000))


@pytest.mark.parametrize("rpm", [1, 4, 7])
@pytest.mark.parametrize("every_ms", [1700, 3700, 15_000])
def test_no_minute_wherever_it_begins_holds_more_than_the_limit(new_gate: NewGate, rpm: int, every_ms: int) -> None:
    _, gate = new_gate(rpm=rpm)
    admitted: list[int] = []
    for at_ms in range(NOON, NOON + 150_000, every_ms):
        try:
            gate.settle(gate.admit(at_ms=at_ms))
        except RateLimitedError:
            continue
        admitted.append(at_ms)
    assert len(admitted) >= rpm
    assert max(sum(start <= at_ms < start + 60_000 for at_ms in admitted) for start in admitted) <= rpm


def test_unused_tokens_come_back_when_the_provider_has_counted(dynamodb: Any, new_gate: NewGate) -> None:
    key, gate = new_gate(tpm=1000)
    admission = gate.admit(tokens=900)
    with pytest.raises(RateLimitedError, match="1000 tokens per minute"):
        gate.admit(tokens=200)
    gate.settle(admission, tokens=100)
    assert meter(dynamodb, key).minute(NOON).tokens_left == 900
    gate.admit(tokens=900)


def test_unused_tokens_come_back_to_the_slot_they_were_taken_from(dynamodb: Any, new_gate: NewGate) -> None:
    key, gate = new_gate(tpm=1000)
    admission = gate.admit(tokens=900)
    gate.admit(at_ms=NOON + 25_000, tokens=50)
    gate.settle(admission, tokens=100)
    minute = meter(dynamodb, key).minute(NOON + 25_000)
    assert minute.tokens_left == 850
    assert meter(dynamodb, key).minute(NOON + 85_000).tokens_left == 950
    assert meter(dynamodb, key).minute(NOON + 200_000).tokens_left == 1000


def test_tokens_that_are_settled_late_are_not_given_back_twice(dynamodb: Any, new_gate: NewGate) -> None:
    key, gate = new_gate(tpm=1000)
    admission = gate.admit(tokens=900)
    gate.admit(at_ms=NOON + 300_000, tokens=1)
    gate.settle(admission, tokens=0)
    assert meter(dynamodb, key).minute(NOON + 300_000).tokens_left == 999


def test_a_request_that_no_minute_can_hold_is_told_so(new_gate: NewGate) -> None:
    _, gate = new_gate(tpm=1000)
    with pytest.raises(RateLimitedError, match="this request alone may need 1001") as refused:
        gate.admit(tokens=1001)
    assert (refused.value.should_retry, refused.value.retry_after_s) == (False, None)


def test_parallel_requests_end_and_come_back(new_gate: NewGate) -> None:
    _, gate = new_gate(max_parallel=2)
    first, _ = gate.admit(), gate.admit()
    with pytest.raises(RateLimitedError, match="2 requests at once") as refused:
        gate.admit()
    assert refused.value.retry_after_s == 1.0
    gate.settle(first)
    gate.admit()


def test_a_clock_that_is_behind_does_not_turn_the_minute_back(dynamodb: Any, new_gate: NewGate) -> None:
    key, gate = new_gate(rpm=2)
    gate.admit(at_ms=NOON + 30_000)
    Gate(dynamodb, gate.secret).admit(at_ms=NOON)
    with pytest.raises(RateLimitedError):
        Gate(dynamodb, gate.secret).admit(at_ms=NOON)
    assert meter(dynamodb, key).minute(NOON + 30_000).requests_left == 0


def test_every_answer_can_show_what_is_left(new_gate: NewGate) -> None:
    _, gate = new_gate(rpm=3, tpm=100)
    assert gate.admit(tokens=10).headers == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "65.000s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "90",
        "x-ratelimit-reset-tokens": "65.000s",
    }
    with pytest.raises(RateLimitedError) as refused:
        gate.admit(tokens=95)
    assert refused.value.headers["x-ratelimit-remaining-tokens"] == "90"


# ── The budget and its month ───────────────────────────────────────────────────────────────────────────────


def test_a_spent_budget_names_itself_and_the_day_it_begins_anew(new_gate: NewGate) -> None:
    _, gate = new_gate(budget_pico_usd=2 * USD + USD // 2)
    for _ in range(2):
        gate.settle(gate.admit(), cost=USD)
    with pytest.raises(QuotaExceededError) as refused:
        gate.admit()
    assert "This API key has used its monthly budget of 2.50 USD" in refused.value.message
    assert "2026-12-01T00:00+09:00" in refused.value.message
    assert (refused.value.code, refused.value.should_retry) == ("insufficient_quota", False)


MONTH_S = (ms(2026, 12, 1, 0, 0, 0) - NOON) / 1000


@pytest.mark.parametrize("whose", ["key", "organisation", "end user", "key of four shards"])
@pytest.mark.parametrize(
    ("spent", "leased", "worst", "retry_after_s"),
    [
        pytest.param(0, 10, 1, 5.0, id="one request holds all of it"),
        pytest.param(4, 6, 6, 5.0, id="what is leased would just do"),
        pytest.param(4, 6, 7, MONTH_S, id="what is leased would not do"),
        pytest.param(10, 0, 1, MONTH_S, id="all is spent"),
        pytest.param(0, 0, 11, None, id="more than a month's budget"),
        pytest.param(0, 10, 11, None, id="more than a month's budget, while all of it is leased"),
    ],
)
def test_a_refusal_says_whether_waiting_helps(
    new_gate: NewGate, whose: str, spent: int, leased: int, worst: int, retry_after_s: float | None
) -> None:
    """What is leased comes back within moments, what is spent with the next month, and more than there ever is never does.
    Every lease is of one dollar, so a lease of ten is ten requests, on whichever shard they are.
    """
    budget = {
        "key": {"budget_pico_usd": 10 * USD},
        "organisation": {"organisation": 10 * USD},
        "end user": {"user_budget_pico_usd": 10 * USD},
        "key of four shards": {"budget_pico_usd": 10 * USD, "shards": 4},
    }[whose]
    _, gate = new_gate(**budget)
    for _ in range(spent):
        gate.settle(gate.admit(end_user="u"), cost=USD)
    held = [gate.admit(end_user="u") for _ in range(leased)]
    with pytest.raises(QuotaExceededError) as refused:
        gate.admit(worst=worst * USD, end_user="u")
    assert refused.value.retry_after_s == pytest.approx(retry_after_s)
    assert refused.value.should_retry is (None if retry_after_s == 5.0 else False)
    assert ("try again in 5 s" in refused.value.message) == (retry_after_s == 5.0)
    for admission in held:
        gate.settle(admission, cost=0)
    if retry_after_s == 5.0:
        gate.admit(worst=worst * USD, end_user="u")


def test_the_organisations_budget_says_that_it_is_the_organisations(new_gate: NewGate) -> None:
    _, gate = new_gate(organisation=USD // 2)
    with pytest.raises(QuotaExceededError, match=r"The organisation has used its monthly budget of 0\.50 USD"):
        gate.admit()


def test_a_month_begins_at_midnight_in_seoul_with_the_whole_budget(dynamodb: Any, new_gate: NewGate) -> None:
    key, gate = new_gate(budget_pico_usd=USD)
    last_ms = ms(2026, 12, 1, 0, 0, 0) - 1
    admission = gate.admit(at_ms=last_ms)
    with pytest.raises(QuotaExceededError):
        gate.admit(at_ms=last_ms)
    gate.admit(at_ms=last_ms + 1)
    gate.settle(admission, cost=USD // 4)
    seen = meter(dynamodb, key)
    assert (seen.spent_pico_usd("2026-11"), seen.available_pico_usd("2026-11")) == (USD // 4, 3 * USD // 4)
    assert (seen.spent_pico_usd("2026-12"), seen.available_pico_usd("2026-12")) == (0, 0)


def test_a_request_belongs_to_the_month_in_which_it_arrived(dynamodb: Any, new_gate: NewGate) -> None:
    key, gate = new_gate(budget_pico_usd=5 * USD)
    midnight_ms = ms(2026, 12, 1, 0, 0, 0)
    gate.settle(gate.admit(at_ms=midnight_ms - 100, now_ms=midnight_ms + 100), cost=USD)
    assert meter(dynamodb, key).spent_pico_usd("2026-11") == USD


def test_old_months_are_forgotten_and_never_one_that_is_still_leased(dynamodb: Any, new_gate: NewGate) -> None:
    key, gate = new_gate(budget_pico_usd=5 * USD)
    leased = gate.admit(at_ms=ms(2026, 8, 31, 23, 0, 0))
    for month in (9, 10, 11):
        gate.settle(gate.admit(at_ms=ms(2026, month, 15, 0, 0, 0)), cost=USD)
    assert sorted(meter(dynamodb, key).item["months"]) == ["2026-08", "2026-10", "2026-11"]
    gate.settle(leased, cost=USD)
    assert meter(dynamodb, key).spent_pico_usd("2026-08") == USD


def test_settling_a_month_that_is_gone_still_ends_the_lease(dynamodb: Any, new_gate: NewGate) -> None:
    key, gate = new_gate(budget_pico_usd=5 * USD)
    admission = gate.admit()
    dynamodb.update_item(
        TableName="MeterTable", Key={"meter": {"S": key}}, UpdateExpression="REMOVE months.#m", ExpressionAttributeNames={"#m": "2026-11"}
    )  # fmt: skip
    gate.settle(admission, cost=USD)
    assert meter(dynamodb, key).leases() == []


# ── End users and shards ───────────────────────────────────────────────────────────────────────────────────


def test_one_phone_cannot_spend_the_budget_of_the_app(dynamodb: Any, new_gate: NewGate) -> None:
    key, gate = new_gate(budget_pico_usd=100 * USD, user_budget_pico_usd=2 * USD)
    gate.admit(end_user="phone-1"), gate.admit(end_user="phone-1")
    with pytest.raises(QuotaExceededError, match=r"This end user has used its monthly budget of 2\.00 USD"):
        gate.admit(end_user="phone-1")
    gate.admit(end_user="phone-2")
    gate.admit()
    assert meter(dynamodb, key).available_pico_usd("2026-11") == 96 * USD


def test_the_meter_of_a_user_outlives_every_month_in_which_it_counts(dynamodb: Any, new_gate: NewGate) -> None:
    key, gate = new_gate(user_budget_pico_usd=9 * USD)
    for month in (9, 10, 11):
        first_ms, next_ms = ms(2026, month, 1, 0, 0, 0), ms(2026, month + 1, 1, 0, 0, 0)
        lease = gate.admit(at_ms=first_ms, end_user="phone-1").leases[1]
        gate.admit(at_ms=next_ms - 1, end_user="phone-1")
        assert lease[0].startswith(f"user#{key.removeprefix('key#')}#")
        assert meter(dynamodb, lease[0]).item["expires_s"] * 1000 > next_ms + 30 * 86_400_000


def test_a_user_who_asks_too_often_is_held_back_alone(new_gate: NewGate) -> None:
    _, gate = new_gate(user_rpm=1)
    gate.admit(end_user="phone-1")
    with pytest.raises(RateLimitedError, match="This end user is limited to 1 requests per minute"):
        gate.admit(end_user="phone-1")
    gate.admit(end_user="phone-2")


def test_a_users_meter_follows_the_limits_that_its_key_sets(dynamodb: Any, new_gate: NewGate) -> None:
    key, gate = new_gate(user_budget_pico_usd=USD)
    gate.settle(gate.admit(end_user="phone-1"), cost=USD)
    with pytest.raises(QuotaExceededError, match=r"monthly budget of 1\.00 USD"):
        gate.admit(end_user="phone-1")
    dynamodb.update_item(
        TableName="MeterTable",
        Key={"meter": {"S": key}},
        UpdateExpression="SET user_budget_pico_usd = :raised, user_rpm = :rpm",
        ExpressionAttributeValues={":raised": {"N": str(3 * USD)}, ":rpm": {"N": "2"}},
    )
    gate.settle(gate.admit(end_user="phone-1"), cost=USD)
    gate.settle(gate.admit(end_user="phone-1"), cost=0)
    with pytest.raises(RateLimitedError, match="limited to 2 requests per minute"):
        gate.admit(end_user="phone-1")


@pytest.mark.parametrize("spelling", ["Phone-1", "PHONE-1", "\uff50hone-1"])
def test_a_user_has_the_same_limits_under_every_spelling(new_gate: NewGate, spelling: str) -> None:
    _, gate = new_gate(user_rpm=1)
    gate.admit(end_user="phone-1")
    with pytest.raises(RateLimitedError, match="This end user is limited to 1 requests per minute"):
        gate.admit(end_user=spelling)


@pytest.mark.parametrize("name", ["phone-1", "Phone-1", "김철수", "kJ3dX9"])
def test_what_a_user_spent_before_names_were_folded_is_spent(dynamodb: Any, new_gate: NewGate, name: str) -> None:
    """An earlier release named the meter after the name as it was sent."""
    key, gate = new_gate(user_budget_pico_usd=2 * USD)
    former = f"user#{key.removeprefix('key#')}#{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    months = {"2026-11": {"available_pico_usd": 0, "spent_pico_usd": USD}}
    lease = Lease("req_0", USD, 10, 0, "2026-11", "m").values()
    item = new_item(former, Limits(budget_pico_usd=2 * USD), key_id=key.removeprefix("key#"), expires_s=2 * 10**9)
    dynamodb.put_item(TableName="MeterTable", Item=to_item(item | {"months": months, "in_flight": {"req_0": lease}}))
    fresh = Gate(dynamodb, gate.secret)
    if name not in {"phone-1", "김철수"}:
        fresh.admit(end_user=name)  # what was leased is not spent
    with pytest.raises(QuotaExceededError, match=r"This end user has used its monthly budget of 2\.00 USD"):
        fresh.admit(end_user=name)


def test_what_a_user_is_called_is_not_kept(dynamodb: Any, new_gate: NewGate) -> None:
    _, gate = new_gate(user_rpm=5)
    gate.admit(end_user="김철수@example.com")
    assert "김철수" not in str(dynamodb.scan(TableName="MeterTable")["Items"])


@pytest.mark.parametrize("shards", [2, 4])
def test_a_sharded_budget_is_spent_to_the_last_request_and_not_beyond(
    dynamodb: Any, new_gate: NewGate, shards: int
) -> None:
    key, gate = new_gate(budget_pico_usd=10 * USD, shards=shards)
    admissions = [gate.admit() for _ in range(10)]
    with pytest.raises(QuotaExceededError, match=r"monthly budget of 10\.00 USD"):
        gate.admit()
    for admission in admissions:
        gate.settle(admission, cost=USD)
    seen = [meter(dynamodb, key + (f"/{shard}" if shard else "")) for shard in range(shards)]
    assert sum(each.spent_pico_usd("2026-11") for each in seen) == 10 * USD
    assert sum(each.available_pico_usd("2026-11") for each in seen) == 0


def test_sharded_limits_add_up_to_the_whole(new_gate: NewGate) -> None:
    _, gate = new_gate(rpm=10, max_parallel=7, shards=4)
    for _ in range(7):
        gate.admit()
    with pytest.raises(RateLimitedError):
        gate.admit()


# ── When the store fails ───────────────────────────────────────────────────────────────────────────────────


def test_a_store_that_fails_lets_nobody_in() -> None:
    dynamodb = client("dynamodb")
    gate = Gate(dynamodb, new_secret(new_key_id()))
    with Stubber(dynamodb) as stub:
        stub.add_client_error("update_item", "InternalServerError", http_status_code=500)
        with pytest.raises(StoreUnavailableError) as failed:
            gate.admit()
    assert (failed.value.http_status, failed.value.should_retry) == (503, True)
    assert "AWS Health" in failed.value.log["advice"]


def test_limits_given_to_a_key_without_any_hold_at_once(dynamodb: Any, new_gate: NewGate) -> None:
    key, gate = new_gate()
    gate.admit()
    item = meter(dynamodb, key).item
    left = item["requests_left"] - item["rpm"] + 1
    dynamodb.put_item(TableName="MeterTable", Item=to_item({**item, "rpm": 1, "requests_left": left}))
    gate.admit()
    with pytest.raises(RateLimitedError):
        gate.admit()


def test_ids_and_leases_speak_of_the_same_time(new_gate: NewGate) -> None:
    _, gate = new_gate()
    admission = gate.admit(at_ms=NOON)
    assert arrived_at_ms(admission.leases[0][1].request_id) == NOON
    assert replace(admission.leases[0][1], model="") == admission.leases[1][1]
    assert datetime.fromtimestamp(NOON / 1000, UTC).hour == 3


def test_keys_are_long_and_never_the_same() -> None:
    secrets = {new_secret(new_key_id()) for _ in range(100)}
    assert len(secrets) == 100
    assert all(len(secret) == len("sk-naru-") + 12 + 1 + 43 for secret in secrets)
