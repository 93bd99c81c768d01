"""Everything that the dashboard shows, in one answer; see docs/reports.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from naru.accounts import Accounts, budget_or_none
from naru.amounts import to_usd
from naru.business_time import business_day
from naru.figures import errors_list, latencies, request_object, sums_object
from naru.periods import day_start_ms, first_of_month, hour_of, month_of
from naru.projection import HISTORY_DAYS, project
from naru.report import month_object, users_list
from naru.tally import Tally, merged
from naru.usage import Bucket, Usage
from naru.usage_query import Filters
from naru.usage_requests import first_cursor, newest_requests

_DAYS = 30
_TOP = 10
_RECENT = 50
_RECENT_DAYS = 7
_DAY_MS = 86_400_000


def summary(
    usage: Usage, accounts: Accounts, *, key_id: str | None, krw_per_usd: int, now_ms: int,
    batches: Callable[[Sequence[str]], list[dict[str, Any]]] | None, health: Sequence[dict[str, Any]] | None,
) -> dict[str, Any]:  # fmt: skip
    """Of the organisation, or of one key. ``batches`` are those of keys, whose ids it is given in the order in which to
    ask. Blocks. Raises :class:`~naru.errors.StoreUnavailableError`.
    """
    today = business_day(now_ms, usage.zone)
    first = min(today - timedelta(days=HISTORY_DAYS), first_of_month(today))
    days = usage.days(first, today - timedelta(days=1), now_ms=now_ms)
    start_ms, end_ms = day_start_ms(today, usage.zone), hour_of(now_ms, usage.zone).end_ms(usage.zone)
    hours = usage.between(start_ms, end_ms, now_ms=now_ms, hourly=True)
    days.append(Bucket(today, start_ms, end_ms, merged(hour.tally for hour in hours)))
    if key_id is not None:
        days = [_only(day, key_id) for day in days]
        hours = [_only(hour, key_id) for hour in hours]
        accounts = accounts.only(key_id)
    month = merged(day.tally for day in days if month_of(day.day) == month_of(today))
    return {
        "object": "usage.summary",
        "generated_at": now_ms // 1000,
        "time_zone": usage.zone.key,
        "krw_per_usd": krw_per_usd,
        "scope": "organization" if key_id is None else "key",
        **({} if key_id is None else {"key": {"id": key_id, "name": accounts.name(key_id)}}),
        "today": _today(days),
        "month": _month(usage, accounts, days, month=month, key_id=key_id, now_ms=now_ms),
        "days": [_day(day) for day in days[-_DAYS:]],
        "hours": [_hour(hour) for hour in hours if hour.start_ms <= now_ms],
        "errors": errors_list(month),
        "keys": _keys(month, accounts),
        "users": [user for user, _ in users_list(month, _TOP)],
        "recent": _recent(usage, accounts, key_id, now_ms),
        "batches": None if batches is None else batches(_who_may_have_batches(days, accounts)),
        "health": None if health is None else list(health),
    }


def _who_may_have_batches(days: Sequence[Bucket], accounts: Accounts) -> list[str]:
    """Keys whose batches were answered, the last first; then the others, whose batches may have failed as a whole."""
    answered = [cell.key_id for day in reversed(days) for cell in day.tally.cells if cell.batch]
    return list(dict.fromkeys([*answered, *accounts.keys]))


def _only(bucket: Bucket, key_id: str) -> Bucket:
    return Bucket(bucket.day, bucket.start_ms, bucket.end_ms, bucket.tally.only(key_id.__eq__))


def _today(days: Sequence[Bucket]) -> dict[str, Any]:
    today, tally = days[-1].day, days[-1].tally
    outcomes = tally.outcomes()
    last_week = next((day for day in days if day.day == today - timedelta(days=7)), None)
    return {
        "date": today.isoformat(),
        **sums_object(tally.sums()),
        "errors": tally.errors,
        "rejected": outcomes["rejected"],
        "unknown": outcomes["unknown"],
        **latencies(tally),
        "same_weekday_last_week_cost_usd": None if last_week is None else to_usd(last_week.tally.cost_pico_usd),
    }


def _month(
    usage: Usage, accounts: Accounts, days: Sequence[Bucket], *, month: Tally, key_id: str | None, now_ms: int
) -> dict[str, Any]:
    spent, today = month.cost_pico_usd, days[-1].day
    if key_id is None:
        budget, reserved = accounts.budget_pico_usd, accounts.organisation.month.reserved_pico_usd
    else:
        view = accounts.keys.get(key_id)
        budget = budget_or_none(view.limits.budget_pico_usd) if view else None
        reserved = view.month.reserved_pico_usd if view else 0
    projection = project(
        {day.day: day.tally.cost_pico_usd for day in days[:-1]},
        now_ms=now_ms,
        today=today,
        spent_pico_usd=spent,
        budget_pico_usd=budget,
        zone=usage.zone,
    )
    return {
        "month": month_of(today),
        "requests": month.requests,
        "errors": month.errors,
        "reserved_usd": to_usd(reserved),
        **month_object(spent, budget, projection, usage),
    }


def _day(day: Bucket) -> dict[str, Any]:
    tally = day.tally
    models = {model: to_usd(sums.cost_pico_usd) for model, sums in tally.by(lambda cell: cell.model).items() if sums.cost_pico_usd}  # fmt: skip
    return {
        "date": day.day.isoformat(),
        "requests": tally.requests,
        "errors": tally.errors,
        "cost_usd": to_usd(tally.cost_pico_usd),
        "models": models,
        **latencies(tally),
    }


def _hour(hour: Bucket) -> dict[str, Any]:
    tally = hour.tally
    return {
        "hour": hour.start_ms // 1000,
        "requests": tally.requests,
        "errors": tally.errors,
        "cost_usd": to_usd(tally.cost_pico_usd),
    }


def _keys(month: Tally, accounts: Accounts) -> list[dict[str, Any]]:
    shown = []
    for key_id, sums in [*month.by(lambda cell: cell.key_id).items()][:_TOP]:
        view = accounts.keys.get(key_id)
        budget = budget_or_none(view.limits.budget_pico_usd) if view else None
        shown.append(
            {
                "key_id": key_id,
                "name": accounts.name(key_id),
                "requests": sums.requests,
                "errors": month.only(key_id.__eq__).errors,
                "cost_usd": to_usd(sums.cost_pico_usd),
                "budget_usd": None if budget is None else to_usd(budget),
                "spent_usd": to_usd(view.month.spent_pico_usd if view else sums.cost_pico_usd),
            }
        )
    return shown


def _recent(usage: Usage, accounts: Accounts, key_id: str | None, now_ms: int) -> list[dict[str, Any]]:
    """Of the last week."""
    rows, _ = newest_requests(
        usage,
        Filters().seen_by(key_id),
        before=first_cursor(now_ms + _DAY_MS),  # another machine's clock may be ahead of ours
        since_ms=usage.days_ago_ms(_RECENT_DAYS, now_ms=now_ms),
        limit=_RECENT,
        now_ms=now_ms,
    )
    return [request_object(row, key_name=accounts.name(row.key_id)) for row in rows]
