"""What the admin API takes, and how it shows keys and money."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naru import admin_api
from naru.amounts import read_json, to_pico_usd, to_usd, write_json
from naru.api_keys import ALL_MODELS, NEVER_MS, KeyChanges, Page, key_view, new_key_items
from naru.catalog import load
from naru.errors import InvalidRequestError
from naru.meter_state import UNLIMITED, Limits, Meter

CATALOG = load()
SEOUL = ZoneInfo("Asia/Seoul")
NOW = int(datetime(2026, 11, 22, 12, tzinfo=SEOUL).timestamp() * 1000)
EVENTS = Path(__file__).parents[2] / "events"


def body(**fields: Any) -> str:
    return json.dumps(fields)


def refused(text: str, *, change: bool = False) -> InvalidRequestError:
    parse: Any = admin_api.parse_key_changes if change else admin_api.parse_new_key
    with pytest.raises(InvalidRequestError) as error:
        parse(text, CATALOG, now_ms=NOW)
    return error.value


# ── Money ──────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(0, 10**21))
def test_an_amount_survives_the_way_out_and_back(pico_usd: int) -> None:
    """Digit by digit, where a float would keep fifteen."""
    text = write_json({"budget_usd": to_usd(pico_usd)})
    assert to_pico_usd(read_json(text)["budget_usd"]) == pico_usd


@pytest.mark.parametrize(
    ("text", "pico_usd"),
    [("50", 50 * 10**12), ("0.1", 10**11), ("0.000000000001", 1), ("1e-12", 1), ("999999999.999999999999", 10**21 - 1)],
)
def test_amounts_are_read_exactly(text: str, pico_usd: int) -> None:
    new = admin_api.parse_new_key(f'{{"name": "a", "budget_usd": {text}}}', CATALOG, now_ms=NOW)
    assert new.limits.budget_pico_usd == pico_usd


@pytest.mark.parametrize("text", ["-1", "0.0000000000001", "1000000001", "1e300", "1e-400", '"50"', "true", "[]"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    error = refused(f'{{"name": "a", "budget_usd": {text}}}')
    assert (error.param, error.status) == ("budget_usd", 400)


@pytest.mark.parametrize(
    ("pico_usd", "text"), [(0, "0.00"), (5 * 10**13, "50.00"), (1, "0.000000000001"), (-(10**12) // 2, "-0.50")]
)
def test_amounts_are_written_as_people_write_them(pico_usd: int, text: str) -> None:
    assert write_json(to_usd(pico_usd)) == text


# ── Requests ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_sample_event_asks_for_a_key() -> None:
    event = json.loads((EVENTS / "admin-create-key.json").read_text())
    new = admin_api.parse_new_key(event["body"], CATALOG, now_ms=NOW)
    assert new.name == "모바일 앱"
    assert new.limits == Limits(50_250_000_000_000, 60, 100_000, 10)
    assert (new.models, new.tags) == (frozenset({"hyperclova-x-omni"}), {"team": "mobile"})
    assert new.expires_at_ms == int(datetime(2099, 1, 1, tzinfo=SEOUL).timestamp() * 1000)
    assert (new.user_budget_pico_usd, new.user_rpm, new.shards) == (10**12, 10, 1)


def test_what_is_not_limited_is_unlimited() -> None:
    new = admin_api.parse_new_key(body(name="a", rpm=None, models=None, expires_at=None), CATALOG, now_ms=NOW)
    assert (new.limits, new.models, new.expires_at_ms) == (Limits(), ALL_MODELS, NEVER_MS)


def test_a_change_names_what_changes_and_null_takes_a_limit_away() -> None:
    changes = admin_api.parse_key_changes(body(rpm=None, tpm=5, models=None, tags=None), CATALOG, now_ms=NOW)
    assert changes == KeyChanges(rpm=UNLIMITED, tpm=5, models=ALL_MODELS, tags={})
    assert admin_api.parse_key_changes("{}", CATALOG, now_ms=NOW) == KeyChanges()


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({}, "name", "missing_required_parameter"),
        ({"name": ""}, "name", "invalid_value"),
        ({"name": "x" * 101}, "name", "invalid_value"),
        ({"name": "two\nlines"}, "name", "invalid_value"),
        ({"name": None}, "name", "invalid_type"),
        ({"budget": 5}, "budget", "unknown_parameter"),
        ({"enabled": False}, "enabled", "unknown_parameter"),
        ({"rpm": 0}, "rpm", "invalid_value"),
        ({"rpm": 1.5}, "rpm", "invalid_type"),
        ({"tpm": "60"}, "tpm", "invalid_type"),
        ({"max_parallel": True}, "max_parallel", "invalid_type"),
        ({"models": []}, "models", "empty_value"),
        ({"models": "gpt-4.1"}, "models", "invalid_type"),
        ({"models": ["gpt-4.1", "gpt-9"]}, "models", "model_not_found"),
        ({"expires_at": "2027-01-01T00:00:00"}, "expires_at", "invalid_value"),
        ({"expires_at": "tomorrow"}, "expires_at", "invalid_value"),
        ({"expires_at": NOW // 1000}, "expires_at", "invalid_value"),
        ({"expires_at": NOW * 1000}, "expires_at", "invalid_value"),
        ({"expires_at": 999_999_999_999}, "expires_at", "invalid_value"),
        ({"expires_at": "9999-12-31T23:59:59-12:00"}, "expires_at", "invalid_value"),
        ({"tags": {"a": 1}}, "tags", "invalid_type"),
        ({"tags": {str(i): "" for i in range(17)}}, "tags", "invalid_value"),
        ({"tags": {"a": "x" * 257}}, "tags", "invalid_value"),
        ({"shards": 17}, "shards", "invalid_value"),
        ({"shards": None}, "shards", "invalid_type"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    error = refused(json.dumps({"name": "a", **fields} if fields else {}))
    assert (error.param, error.code, error.status) == (param, code, 400)


def test_unknown_models_are_named() -> None:
    message = refused(body(name="a", models=["gpt-9", "HCX-007", "nope"])).message
    assert message.startswith("There is no such model here: gpt-9, nope. Available models: ")


@pytest.mark.parametrize("text", ["", None, "[]", "{", '{"name": NaN}', '{"name": "\\ud800"}'])
def test_a_body_that_is_no_object_is_refused(text: Any) -> None:
    assert refused(text).status == 400


def test_shards_cannot_be_changed_later() -> None:
    assert refused(body(shards=2), change=True).code == "unknown_parameter"


def test_expiry_is_taken_in_iso_8601_and_in_unix_seconds() -> None:
    for value in ("2027-01-01T00:00:00+09:00", "2026-12-31T15:00:00Z", 1798729200):
        assert admin_api.parse_key_changes(body(expires_at=value), CATALOG, now_ms=NOW).expires_at_ms == 1798729200_000


def test_an_overlap_is_an_hour_unless_said() -> None:
    assert [admin_api.parse_rotation(text) for text in (None, "{}", '{"overlap_seconds": 0}')] == [3600, 3600, 0]


@pytest.mark.parametrize("limit", ["0", "101", "x", "-1", "1.5"])
def test_a_page_has_1_to_100_keys(limit: str) -> None:
    with pytest.raises(InvalidRequestError):
        admin_api.parse_page({"limit": limit})


# ── Answers ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_is_shown_with_its_numbers_and_without_its_secret() -> None:
    new = admin_api.parse_new_key(body(name="앱", budget_usd=1.1, tpm=1000), CATALOG, now_ms=NOW)
    items, secret = new_key_items(new, now_ms=NOW)
    view = key_view([Meter(item) for item in items], NOW, SEOUL)
    shown = json.loads(admin_api.render(admin_api.key_list(Page((view,), has_more=False))))
    assert shown == {
        "object": "list",
        "data": [
            {
                "object": "api_key",
                "id": view.key_id,
                "name": "앱",
                "status": "active",
                "enabled": True,
                "created_at": NOW // 1000,
                "expires_at": None,
                "revoked_at": None,
                "old_key_works_until": None,
                "models": None,
                "tags": {},
                "may_route": False,
                "budget_usd": 1.1,
                "month": "2026-11",
                "spent_usd": 0,
                "reserved_usd": 0,
                "available_usd": 1.1,
                "budget_resets_at": int(datetime(2026, 12, 1, tzinfo=SEOUL).timestamp()),
                "requests_in_flight": 0,
                "rpm": None,
                "tpm": 1000,
                "max_parallel": None,
                "user_budget_usd": None,
                "user_rpm": None,
                "shards": 1,
            }
        ],
        "first_id": view.key_id,
        "last_id": view.key_id,
        "has_more": False,
    }
    assert admin_api.key_object(view, secret=secret)["key"] == secret
    assert read_json(admin_api.render(admin_api.key_object(view)))["budget_usd"] == Decimal("1.1")
