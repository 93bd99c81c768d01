"""The admin API on the wire: what its requests may hold, and how keys and budgets are shown.

Null is "no limit" in both directions; a field that is left out of a change stays as it is. Amounts are JSON numbers in
dollars, exact to the pico-dollar (:mod:`naru.amounts`); times are Unix seconds, and may be sent in ISO 8601.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from naru.amounts import read_json, to_pico_usd, to_usd, write_json
from naru.api_keys import ALL_MODELS, NEVER_MS, KeyChanges, KeyView, MonthView, NewKey, OrganisationView, Page
from naru.catalog import Catalog
from naru.errors import InvalidRequestError
from naru.meter_state import UNLIMITED, Limits
from naru.wire import json_text, parse_json_object

MAX_KEY_SHARDS = 16
MAX_ORGANISATION_SHARDS = 64
DEFAULT_OVERLAP_S = 3600
MAX_OVERLAP_S = 30 * 86_400
_PAGE, _MAX_PAGE = 20, 100
_MAX_RATE = 10**12
_MAX_PARALLEL = 10**5
# Unix seconds of the last year that a date can be in, wherever who lists the keys may live.
_YEAR_9999_S = 253_370_764_800
# What ends a line, moves a cursor or turns the direction of writing.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


# ── Requests ───────────────────────────────────────────────────────────────────────────────────────────────


def parse_new_key(text: str | bytes | None, catalog: Catalog, *, now_ms: int) -> NewKey:
    """The key that the body of ``POST /admin/keys`` asks for.

    This and the other parsers raise :class:`~naru.errors.InvalidRequestError`; ``param`` names the field.
    """
    fields = _Fields(text, allowed={**_KEY_FIELDS, "shards": _integer(1, MAX_KEY_SHARDS)}, now_ms=now_ms)
    if "name" not in fields.values:
        raise InvalidRequestError(
            "Missing required parameter: 'name'.", param="name", code="missing_required_parameter"
        )
    values = {name: value for name, value in fields.values.items() if value is not None}
    limits = Limits(**{name: values.pop(name) for name in Limits.__dataclass_fields__ if name in values})
    _check_models(values.get("models"), catalog)
    return NewKey(**values, limits=limits)


def parse_key_changes(text: str | bytes | None, catalog: Catalog, *, now_ms: int) -> KeyChanges:
    """The changes that the body of ``PATCH /admin/keys/{id}`` asks for."""
    fields = _Fields(text, allowed={**_KEY_FIELDS, "enabled": _boolean}, now_ms=now_ms)
    _check_models(fields.values.get("models"), catalog)
    return KeyChanges(**fields.values)


def parse_rotation(text: str | bytes | None) -> int:
    """For how many seconds the old secret works on: an hour where the body does not say."""
    if not text or not text.strip():
        return DEFAULT_OVERLAP_S
    fields = _Fields(text, allowed={"overlap_seconds": _integer(0, MAX_OVERLAP_S)})
    overlap_s: int = fields.values.get("overlap_seconds", DEFAULT_OVERLAP_S)
    return overlap_s


def parse_organisation_changes(text: str | bytes | None) -> dict[str, int]:
    """``budget_pico_usd`` and ``shards``, as far as the body of ``PATCH /admin/organization`` names them."""
    allowed = {"budget_usd": _money, "shards": _integer(1, MAX_ORGANISATION_SHARDS)}
    return _Fields(text, allowed=allowed).values


def parse_page(query: Mapping[str, str]) -> tuple[str | None, int]:
    """``after`` and ``limit`` of ``GET /admin/keys``."""
    limit = query.get("limit") or str(_PAGE)
    if not re.fullmatch(r"[0-9]{1,3}", limit) or not 1 <= int(limit) <= _MAX_PAGE:
        raise InvalidRequestError(
            f"Invalid value for 'limit': it must be a number from 1 to {_MAX_PAGE}.",
            param="limit",
            code="invalid_value",
        )
    return query.get("after") or None, int(limit)


Parser = Callable[[str, Any, int], Any]
"""Of the value of a field: its name, the value, and the time."""


class _Fields:
    """The fields of a body, parsed, under the names that the package has for them."""

    def __init__(self, text: str | bytes | None, *, allowed: Mapping[str, Parser], now_ms: int = 0) -> None:
        text = json_text(text)
        if not text or text.isspace():
            raise InvalidRequestError("The request has no body. Send a JSON object with the fields to be set.")
        parse_json_object(text)  # finds what is not JSON, and says where
        body: dict[str, Any] = read_json(text)
        self.values: dict[str, Any] = {}
        for name, value in body.items():
            if (parse := allowed.get(name)) is None:
                raise InvalidRequestError(
                    f"Unknown parameter: '{name[:64]}'. There are: {', '.join(allowed)}.",
                    param=name[:64],
                    code="unknown_parameter",
                )
            self.values[_INTERNAL.get(name, name)] = parse(name, value, now_ms)


_INTERNAL = {
    "budget_usd": "budget_pico_usd",
    "user_budget_usd": "user_budget_pico_usd",
    "expires_at": "expires_at_ms",
}


def _wrong(name: str, what: str, code: str = "invalid_value") -> InvalidRequestError:
    return InvalidRequestError(f"Invalid value for '{name}': {what}.", param=name, code=code)


def _wrong_type(name: str, expected: str) -> InvalidRequestError:
    return InvalidRequestError(f"Invalid type for '{name}': expected {expected}.", param=name, code="invalid_type")


def _money(name: str, value: Any, _now_ms: int) -> int:
    if value is None:
        return UNLIMITED
    if not isinstance(value, int | Decimal) or isinstance(value, bool):
        raise _wrong_type(name, "a number of US dollars, such as 50 or 0.25, or null for no limit")
    try:
        return to_pico_usd(value)
    except ValueError as error:
        raise _wrong(name, str(error)) from None


def _integer(lowest: int, highest: int) -> Parser:
    def parse(name: str, value: Any, _now_ms: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong_type(name, "an integer")
        if not lowest <= value <= highest:
            raise _wrong(name, f"it must be from {lowest} to {highest}")
        return value

    return parse


def _limit(highest: int) -> Parser:
    def parse(name: str, value: Any, _now_ms: int) -> int:
        if value is None:
            return UNLIMITED
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong_type(name, "an integer, or null for no limit")
        if not 1 <= value <= highest:
            raise _wrong(name, f"it must be from 1 to {highest}; null is no limit")
        return value

    return parse


def _boolean(name: str, value: Any, _now_ms: int) -> bool:
    if not isinstance(value, bool):
        raise _wrong_type(name, "a boolean")
    return value


def _name(name: str, value: Any, _now_ms: int) -> str:
    if not isinstance(value, str):
        raise _wrong_type(name, "a string")
    stripped: str = value.strip()
    if not 1 <= len(stripped) <= 100 or _CONTROL.search(stripped):
        raise _wrong(name, "it must have 1 to 100 characters, on one line")
    return stripped


def _models(name: str, value: Any, _now_ms: int) -> frozenset[str]:
    if value is None:
        return ALL_MODELS
    if not isinstance(value, list) or not all(isinstance(model, str) for model in value):
        raise _wrong_type(name, "an array of names of models, or null for all of them")
    if not value:
        raise _wrong(name, "it must not be empty; null allows all models, and 'enabled': false none", "empty_value")
    return frozenset(value)


def _check_models(models: frozenset[str] | None, catalog: Catalog) -> None:
    if unknown := sorted((models or ALL_MODELS) - frozenset(catalog.model_names)):
        raise InvalidRequestError(
            f"There is no such model here: {', '.join(name[:128] for name in unknown[:10])}. Available models: "
            f"{', '.join(catalog.model_names)}.",
            param="models",
            code="model_not_found",
        )


def _expiry(name: str, value: Any, now_ms: int) -> int:
    if value is None:
        return NEVER_MS
    if isinstance(value, str):
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            raise _wrong(name, "it must be a time in ISO 8601, such as 2027-01-01T00:00:00+09:00") from None
        if at.tzinfo is None:
            raise _wrong(name, "it must say its time zone, as in 2027-01-01T00:00:00+09:00")
        at_s = int(at.timestamp())
    elif type(value) is int:
        at_s = value
    else:
        raise _wrong_type(name, "a time in ISO 8601 or Unix seconds, or null for never")
    if at_s * 1000 <= now_ms:
        raise _wrong(name, "it must be in the future")
    if at_s >= _YEAR_9999_S:
        raise _wrong(name, "it is too far away; send Unix seconds, not milliseconds, or null for never")
    return at_s * 1000


def _tags(name: str, value: Any, _now_ms: int) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _wrong_type(name, "an object of strings")
    if len(value) > 16:
        raise _wrong(name, "there may be 16 tags at most")
    for tag, text in value.items():
        if not 1 <= len(tag) <= 64 or len(text) > 256 or _CONTROL.search(tag + text):
            raise _wrong(name, "a tag has a name of 1 to 64 characters and a value of at most 256, on one line")
    return value


_KEY_FIELDS: Mapping[str, Parser] = {
    "name": _name,
    "budget_usd": _money,
    "rpm": _limit(_MAX_RATE),
    "tpm": _limit(_MAX_RATE),
    "max_parallel": _limit(_MAX_PARALLEL),
    "models": _models,
    "expires_at": _expiry,
    "tags": _tags,
    "may_route": _boolean,
    "user_budget_usd": _money,
    "user_rpm": _limit(_MAX_RATE),
}


# ── Answers ────────────────────────────────────────────────────────────────────────────────────────────────


def render(value: Mapping[str, Any]) -> bytes:
    """The body of an answer."""
    return write_json(value).encode()


def key_object(view: KeyView, *, secret: str | None = None) -> dict[str, Any]:
    """A key; with its secret, as ``key``, in the one answer that has it."""
    return {
        "object": "api_key",
        "id": view.key_id,
        **({"key": secret} if secret is not None else {}),
        "name": view.name,
        "status": view.status,
        "enabled": view.enabled,
        "created_at": view.created_at_ms // 1000,
        "expires_at": _seconds(view.expires_at_ms),
        "revoked_at": _seconds(view.revoked_at_ms),
        "old_key_works_until": _seconds(view.old_secret_until_ms),
        "models": sorted(view.models) if view.models != ALL_MODELS else None,
        "tags": dict(view.tags),
        "may_route": view.may_route,
        "budget_usd": _usd(view.limits.budget_pico_usd),
        **_month(view.month, view.limits.budget_pico_usd),
        "rpm": _shown(view.limits.rpm),
        "tpm": _shown(view.limits.tpm),
        "max_parallel": _shown(view.limits.max_parallel),
        "user_budget_usd": _usd(view.user_budget_pico_usd),
        "user_rpm": _shown(view.user_rpm),
        "shards": view.shards,
    }


def key_list(page: Page) -> dict[str, Any]:
    """A page of keys, as OpenAI's lists are."""
    keys = [key_object(view) for view in page.keys]
    return {
        "object": "list",
        "data": keys,
        "first_id": keys[0]["id"] if keys else None,
        "last_id": keys[-1]["id"] if keys else None,
        "has_more": page.has_more,
    }


def organisation_object(view: OrganisationView) -> dict[str, Any]:
    """The budget that all keys share."""
    return {
        "object": "organization",
        "budget_usd": _usd(view.budget_pico_usd),
        **_month(view.month, view.budget_pico_usd),
        "shards": view.shards,
    }


def _month(month: MonthView, budget_pico_usd: int) -> dict[str, Any]:
    unlimited = budget_pico_usd >= UNLIMITED
    return {
        "month": month.month,
        "spent_usd": to_usd(month.spent_pico_usd),
        "reserved_usd": to_usd(month.reserved_pico_usd),
        "available_usd": None if unlimited else to_usd(month.available_pico_usd),
        "budget_resets_at": month.resets_at_ms // 1000,
        "requests_in_flight": month.in_flight,
    }


def _usd(pico_usd: int) -> Decimal | None:
    return to_usd(pico_usd) if pico_usd < UNLIMITED else None


def _shown(limit: int) -> int | None:
    return limit if limit < UNLIMITED else None


def _seconds(at_ms: int | None) -> int | None:
    return at_ms // 1000 if at_ms is not None and at_ms < NEVER_MS else None
