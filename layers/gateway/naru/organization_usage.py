"""OpenAI's usage and costs endpoints, so that dashboards made for them work: buckets of hours or days, page by page.

Here an API key is an ``api_key_id``; projects, users and service tiers do not exist and are null. A day is a business
day, in the operator's time zone and not in UTC.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from zoneinfo import ZoneInfo

from naru.amounts import to_usd
from naru.business_time import business_day
from naru.errors import InvalidRequestError
from naru.periods import day_end_ms, hour_of
from naru.tally import Cell, Sums
from naru.usage import Bucket, Usage
from naru.usage_query import Filters, Query, many, one, parse_flag, parse_limit
from naru.usage_requests import cell_matches

Width = Literal["1h", "1d"]
_LIMITS: dict[tuple[str, Width], tuple[int, int]] = {
    ("completions", "1h"): (24, 168),
    ("completions", "1d"): (7, 31),
    ("costs", "1d"): (7, 180),
}
_COMPLETIONS_GROUPS = ("project_id", "user_id", "api_key_id", "model", "batch", "service_tier")
_COSTS_GROUPS = ("project_id", "line_item", "api_key_id")


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Some buckets, from an instant on (Unix milliseconds)."""

    start_ms: int
    end_ms: int
    width: Width
    limit: int
    groups: tuple[str, ...]
    filters: Filters

    def seen_by(self, key_id: str | None) -> PageQuery:
        """What the owner of a key is answered: about that key, whatever was asked."""
        return replace(self, filters=self.filters.seen_by(key_id))


def parse_completions(query: Query, *, now_ms: int) -> PageQuery:
    """``GET /organization/usage/completions``. Raises :class:`~naru.errors.InvalidRequestError`, as :func:`parse_costs`."""
    filters = Filters(
        key_ids=frozenset(many(query, "api_key_ids")),
        models=frozenset(many(query, "models")),
        batch=parse_flag(query, "batch"),
    )
    return _parse(query, "completions", _COMPLETIONS_GROUPS, filters, now_ms)


def parse_costs(query: Query, *, now_ms: int) -> PageQuery:
    """``GET /organization/costs``."""
    filters = Filters(key_ids=frozenset(many(query, "api_key_ids")))
    return _parse(query, "costs", _COSTS_GROUPS, filters, now_ms)


def _parse(query: Query, kind: str, known: Sequence[str], filters: Filters, now_ms: int) -> PageQuery:
    width = one(query, "bucket_width") or "1d"
    if width not in {"1h", "1d"} or (kind, width) not in _LIMITS:
        widths = " or ".join(each for of, each in _LIMITS if of == kind)
        raise _wrong("bucket_width", f"it must be {widths} here")
    checked: Width = "1h" if width == "1h" else "1d"
    groups = tuple(dict.fromkeys(many(query, "group_by")))
    for group in groups:
        if group not in known:
            raise _wrong("group_by", f"there is no {group[:64]!r}; there are {', '.join(known)}")
    for name in ("project_ids", "user_ids"):
        if many(query, name):
            raise _wrong(name, "a gateway of Naru's has API keys and no projects or users; use api_key_ids")
    start = one(query, "start_time")
    if start is None:
        raise InvalidRequestError(
            "Missing required parameter: 'start_time'.", param="start_time", code="missing_required_parameter"
        )
    start_ms, end = _seconds("start_time", start), one(query, "end_time")
    end_ms = now_ms if end is None else _seconds("end_time", end)
    if start_ms >= end_ms:
        raise _wrong("start_time", "it must be before the end_time")
    if (page := one(query, "page")) is not None:
        start_ms = max(start_ms, _page_start(page))
    default, highest = _LIMITS[kind, checked]
    limit = parse_limit(query, default=default, highest=highest)
    return PageQuery(start_ms, end_ms, checked, limit, groups, filters)


def completions_page(usage: Usage, query: PageQuery, *, now_ms: int) -> dict[str, Any]:
    """Tokens and requests of each bucket. Blocks."""

    def result(sums: Sums, group: dict[str, Any]) -> dict[str, Any]:
        return {
            "object": "organization.usage.completions.result",
            "input_tokens": sums.prompt_tokens,
            "output_tokens": sums.completion_tokens,
            "input_cached_tokens": sums.cached_tokens,
            "input_audio_tokens": 0,
            "output_audio_tokens": 0,
            "num_model_requests": sums.requests,
            **dict.fromkeys(_COMPLETIONS_GROUPS),
            **group,
        }

    return _page(usage, query, result, now_ms)


def costs_page(usage: Usage, query: PageQuery, *, now_ms: int) -> dict[str, Any]:
    """Dollars of each bucket, exact. ``line_item`` is the model. Blocks."""

    def result(sums: Sums, group: dict[str, Any]) -> dict[str, Any]:
        return {
            "object": "organization.costs.result",
            "amount": {"value": to_usd(sums.cost_pico_usd), "currency": "usd"},
            **dict.fromkeys(_COSTS_GROUPS),
            **group,
        }

    return _page(usage, query, result, now_ms)


def _page(
    usage: Usage, query: PageQuery, result: Callable[[Sums, dict[str, Any]], dict[str, Any]], now_ms: int
) -> dict[str, Any]:
    page_end_ms = _page_end_ms(query, usage.zone)
    buckets = usage.between(query.start_ms, page_end_ms, now_ms=now_ms, hourly=query.width == "1h")
    has_more = page_end_ms < query.end_ms
    return {
        "object": "page",
        "data": [
            {
                "object": "bucket",
                "start_time": bucket.start_ms // 1000,
                "end_time": bucket.end_ms // 1000,
                "results": [result(sums, group) for group, sums in _groups(bucket, query)],
            }
            for bucket in buckets
        ],
        "has_more": has_more,
        "next_page": _page_name(page_end_ms) if has_more else None,
    }


def _page_end_ms(query: PageQuery, zone: ZoneInfo) -> int:
    end_ms = query.start_ms
    for _ in range(query.limit):
        if end_ms >= query.end_ms:
            break
        if query.width == "1d":
            end_ms = day_end_ms(business_day(end_ms, zone), zone)
        else:
            end_ms = hour_of(end_ms, zone).end_ms(zone)
    return min(end_ms, query.end_ms)


def _groups(bucket: Bucket, query: PageQuery) -> list[tuple[dict[str, Any], Sums]]:
    match = cell_matches(query.filters)
    groups: defaultdict[tuple[Any, ...], Sums] = defaultdict(Sums)
    for cell, sums in bucket.tally.cells.items():
        if match(cell):
            groups[tuple(_value(name, cell) for name in query.groups)].merge(sums)
    ranked = sorted(groups.items(), key=lambda item: (-item[1].cost_pico_usd, str(item[0])))
    return [(dict(zip(query.groups, group, strict=True)), sums) for group, sums in ranked]


def _value(name: str, cell: Cell) -> Any:
    match name:
        case "api_key_id":
            return cell.key_id
        case "model" | "line_item":
            return cell.model
        case "batch":
            return cell.batch
        case _:
            return None


def _seconds(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{9,11}", text):
        raise _wrong(name, "it must be Unix seconds")
    return int(text) * 1000


def _page_name(start_ms: int) -> str:
    return "page_" + base64.urlsafe_b64encode(str(start_ms).encode()).decode().rstrip("=")


def _page_start(name: str) -> int:
    encoded = name.removeprefix("page_")
    try:
        text = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode("ascii")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        text = ""
    if not re.fullmatch(r"[0-9]{12,14}", text):
        raise _wrong("page", "it must be the next_page of the page before")
    return int(text)


def _wrong(name: str, what: str) -> InvalidRequestError:
    return InvalidRequestError(f"Invalid value for '{name}': {what}.", param=name, code="invalid_value")
