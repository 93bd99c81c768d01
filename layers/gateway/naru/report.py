"""The report of a business day or month, as JSON. Made from rows by way of their tallies: the same rows, budget and
rate make the same report, whenever it is made.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from naru.accounts import Accounts
from naru.amounts import to_usd
from naru.anomalies import Anomaly, find
from naru.business_time import business_day
from naru.figures import calls_object, errors_list, latencies, sums_object, to_krw
from naru.periods import day_end_ms, day_start_ms, first_of_month, last_of_month, month_of
from naru.plain_text import CsvWriter
from naru.projection import HISTORY_DAYS, Projection, project
from naru.tally import Cell, Sums, Tally, merged
from naru.usage import Bucket, Usage

_TOP_USERS = 10
_CHART_DAYS = 14
_WEEK = timedelta(days=7)
# A spreadsheet takes what begins so for a formula (OWASP, "CSV Injection").


@dataclass(frozen=True, slots=True)
class Terms:
    """What a report needs beside rows. Kept with the first report of a day, so that another one is the same."""

    budget_pico_usd: int | None
    krw_per_usd: int


def daily_report(usage: Usage, day: date, accounts: Accounts, terms: Terms, *, now_ms: int) -> Report:
    """The report of a business day."""
    end_ms = day_end_ms(day, usage.zone)
    days = usage.days(day - timedelta(days=HISTORY_DAYS), day, now_ms=now_ms)
    before, of_day = days[:-1], days[-1]
    # Of midnight after it, also where the report is made later: what comes then belongs to another day.
    hours = usage.between(of_day.start_ms, end_ms, now_ms=now_ms, hourly=True)
    return Report(
        kind="day",
        period=day.isoformat(),
        span=(of_day.start_ms, end_ms),
        buckets=(of_day,),
        hours=tuple(hours),
        previous=next((bucket for bucket in before if bucket.day == day - _WEEK), None),
        month=_month(usage, days, day, terms, now_ms),
        chart=tuple(days[-_CHART_DAYS:]),
        anomalies=tuple(find(of_day, hours, before)),
        closed=usage.closing.closed_until_ms(now_ms) >= end_ms,
        accounts=accounts,
        terms=terms,
        usage=usage,
    )


def monthly_report(usage: Usage, first: date, accounts: Accounts, terms: Terms, *, now_ms: int) -> Report:
    """The report of a business month, or of what there is of it; ``first`` is its first day."""
    last = last_of_month(first)
    start_ms, end_ms = day_start_ms(first, usage.zone), day_end_ms(last, usage.zone)
    days = usage.days(first, last, now_ms=now_ms)
    of_last_month = usage.days(first_of_month(first - timedelta(days=1)), first - timedelta(days=1), now_ms=now_ms)
    today = min(last, business_day(now_ms, usage.zone))
    # A month that runs is compared with as many days of the last one.
    compared = [day for day in of_last_month if today == last or day.day.day <= today.day]
    known = [bucket for bucket in [*of_last_month, *days] if bucket.day <= today]
    previous = Bucket(
        compared[-1].day, compared[0].start_ms, compared[-1].end_ms, merged(day.tally for day in compared)
    )
    return Report(
        kind="month",
        period=month_of(first),
        span=(start_ms, end_ms),
        buckets=tuple(days),
        hours=(),
        previous=previous,
        month=_month(usage, known, today, terms, now_ms) if today >= first else None,
        chart=tuple(day for day in days if day.day <= today),
        anomalies=(),
        closed=usage.closing.closed_until_ms(now_ms) >= end_ms,
        accounts=accounts,
        terms=terms,
        usage=usage,
    )


@dataclass(frozen=True, slots=True)
class MonthSoFar:
    """The month of a day, up to its end."""

    month: str
    requests: int
    cost_pico_usd: int
    projection: Projection | None


def _month(usage: Usage, days: Sequence[Bucket], until: date, terms: Terms, now_ms: int) -> MonthSoFar:
    """``days`` are those before ``until``, and itself, the last one."""
    of_month = [bucket.tally for bucket in days if month_of(bucket.day) == month_of(until)]
    spent = sum(tally.cost_pico_usd for tally in of_month)
    is_over = day_end_ms(until, usage.zone) <= now_ms
    # A day that is over is one more that is known, and the projection begins with the next.
    if is_over and until == last_of_month(until):
        projection = None
    else:
        today = until + timedelta(days=1) if is_over else until
        projection = project(
            {bucket.day: bucket.tally.cost_pico_usd for bucket in days},
            now_ms=day_start_ms(today, usage.zone) if is_over else now_ms,
            today=today,
            spent_pico_usd=spent,
            budget_pico_usd=terms.budget_pico_usd,
            zone=usage.zone,
        )
    return MonthSoFar(month_of(until), sum(tally.requests for tally in of_month), spent, projection)


@dataclass(frozen=True, slots=True)
class Report:
    """What a report is made of; :meth:`as_json` is what it is to others."""

    kind: str
    period: str
    span: tuple[int, int]
    buckets: tuple[Bucket, ...]
    """The days of the period."""
    hours: tuple[Bucket, ...]
    previous: Bucket | None
    """The same weekday of the week before, or the month before."""
    month: MonthSoFar | None
    chart: tuple[Bucket, ...]
    anomalies: tuple[Anomaly, ...]
    closed: bool
    """Whether no row of the period can come any more."""
    accounts: Accounts
    terms: Terms
    usage: Usage

    def as_json(self) -> dict[str, Any]:
        """Amounts are exact; see docs/reports.md."""
        tally = merged(bucket.tally for bucket in self.buckets)
        sums, outcomes = tally.sums(), tally.outcomes()
        unknown = tally.sums(lambda cell: cell.outcome == "unknown")
        return {
            "object": "usage.report",
            "kind": self.kind,
            "period": self.period,
            "time_zone": self.usage.zone.key,
            "start": self.span[0] // 1000,
            "end": self.span[1] // 1000,
            "closed": self.closed,
            "krw_per_usd": self.terms.krw_per_usd,
            "total": {
                **self._money(sums),
                "errors": tally.errors,
                "outcomes": {outcome: outcomes[outcome] for outcome in sorted(outcomes)},
                "unknown": {"requests": unknown.requests, "cost_usd": to_usd(unknown.cost_pico_usd)},
            },
            **latencies(tally),
            "calls": calls_object(tally.calls),
            "change": self._change(sums),
            "month": self._month(),
            "by_model": self._groups(tally, "model", lambda cell: cell.model),
            "by_deployment": [
                group | calls_object(tally.calls, deployment=group["deployment"])
                for group in self._groups(tally, "deployment", lambda cell: cell.deployment)
            ],
            "by_key": [
                {"key_id": group.pop("key_id"), "name": self.accounts.name(key_id), **group}
                for group in self._groups(tally, "key_id", lambda cell: cell.key_id)
                for key_id in (group["key_id"],)
            ],
            "by_tag": self._by_tag(tally),
            "by_user": self._by_user(tally),
            "errors": errors_list(tally, rejected=True),
            "days": [_point(bucket, "date", bucket.day.isoformat()) for bucket in self.chart],
            "hours": [_point(bucket, "hour", bucket.start_ms // 1000) for bucket in self.hours],
            "anomalies": [{"code": anomaly.code, **self._facts(anomaly.facts)} for anomaly in self.anomalies],
        }

    def as_csv(self) -> str:
        """A line for each day, key, model, deployment and outcome; their costs add up to the report's."""
        text = io.StringIO()
        out = CsvWriter(text, CSV_HEADINGS)
        for bucket in self.buckets:
            for cell, sums in sorted(bucket.tally.cells.items()):
                out.write(
                    (
                        bucket.day.isoformat(),
                        cell.key_id,
                        self.accounts.name(cell.key_id),
                        cell.model,
                        cell.deployment,
                        "yes" if cell.batch else "no",
                        cell.outcome,
                        *sums.values(),
                        to_usd(sums.cost_pico_usd),
                        to_krw(sums.cost_pico_usd, self.terms.krw_per_usd),
                    )
                )
        return text.getvalue()

    # ── Parts ──────────────────────────────────────────────────────────────────────────────────────────────

    def _money(self, sums: Sums) -> dict[str, Any]:
        return sums_object(sums) | {"cost_krw": to_krw(sums.cost_pico_usd, self.terms.krw_per_usd)}

    def _groups(self, tally: Tally, name: str, group: Callable[[Cell], str]) -> list[dict[str, Any]]:
        errors: defaultdict[str, int] = defaultdict(int)
        for cell, sums in tally.cells.items():
            errors[group(cell)] += sums.requests if cell.outcome in {"failed", "truncated", "unknown"} else 0
        return [{name: each, **self._money(sums), "errors": errors[each]} for each, sums in tally.by(group).items()]

    def _by_tag(self, tally: Tally) -> list[dict[str, Any]]:
        """A key with two tags counts for both, so these do not add up to the total."""
        tags: defaultdict[str, Sums] = defaultdict(Sums)
        for key_id, sums in tally.by(lambda cell: cell.key_id).items():
            for tag in self.accounts.tags(key_id):
                tags[tag].merge(sums)
        ranked = sorted(tags.items(), key=lambda item: (-item[1].cost_pico_usd, item[0]))
        return [{"tag": tag, **self._money(sums)} for tag, sums in ranked]

    def _by_user(self, tally: Tally) -> list[dict[str, Any]]:
        return [
            {
                **user,
                "key_name": self.accounts.name(user["key_id"]),
                "cost_krw": to_krw(cost, self.terms.krw_per_usd),
            }
            for user, cost in users_list(tally, _TOP_USERS)
        ]

    def _change(self, sums: Sums) -> dict[str, Any] | None:
        if self.previous is None:
            return None
        before = self.previous.tally.cost_pico_usd
        return {
            "against": self._compared_with(self.previous),
            "cost_usd": to_usd(before),
            "percent": round(100 * (sums.cost_pico_usd - before) / before, 1) if before else None,
        }

    def _compared_with(self, previous: Bucket) -> str:
        """``2026-11-15``; ``2026-10``, or ``2026-10-01/2026-10-23`` where the month is not over."""
        day = previous.day
        if self.kind == "day":
            return day.isoformat()
        return month_of(day) if day == last_of_month(day) else f"{first_of_month(day)}/{day}"

    def _month(self) -> dict[str, Any] | None:
        if self.month is None:
            return None
        spent, budget = self.month.cost_pico_usd, self.terms.budget_pico_usd
        return {
            "month": self.month.month,
            "requests": self.month.requests,
            **month_object(spent, budget, self.month.projection, self.usage),
            "cost_krw": to_krw(spent, self.terms.krw_per_usd),
        }

    def _facts(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """For others: amounts in dollars, times in seconds, names of keys."""
        shown: dict[str, Any] = {}
        for name, value in facts.items():
            if name.endswith("_pico_usd"):
                shown[name.removesuffix("_pico_usd") + "_usd"] = to_usd(value)
            elif name in {"from_ms", "to_ms"}:
                shown[name.removesuffix("_ms")] = value // 1000
            elif isinstance(value, float):
                shown[name] = round(value, 4)
            else:
                shown[name] = value
            if name == "key_id":
                shown["name"] = self.accounts.name(value)
        return shown


CSV_HEADINGS = (
    "day", "key_id", "key_name", "model", "deployment", "batch", "outcome", "requests", "prompt_tokens", "cached_tokens",
    "cache_write_tokens", "completion_tokens", "reasoning_tokens", "cost_pico_usd", "maybe_billed_pico_usd", "estimated",
    "cost_usd", "cost_krw",
)  # fmt: skip


def users_list(tally: Tally, top: int) -> Iterable[tuple[dict[str, Any], int]]:
    """The dearest end users, and what each cost in pico-USD."""
    ranked = sorted(tally.users.named.items(), key=lambda item: (-item[1].cost_pico_usd, item[0]))
    for (key_id, end_user), spent in ranked[:top]:
        shown = {"key_id": key_id, "end_user": end_user, "requests": spent.requests, "cost_usd": to_usd(spent.cost_pico_usd)}  # fmt: skip
        yield shown, spent.cost_pico_usd


def month_object(spent: int, budget: int | None, projection: Projection | None, usage: Usage) -> dict[str, Any]:
    """Spent, budget and projection. Projections are rounded to a hundredth of a cent: they are not known better."""
    exhausted = projection.exhausted_ms if projection else None
    return {
        "cost_usd": to_usd(spent),
        "budget_usd": None if budget is None else to_usd(budget),
        "budget_percent": None if not budget else round(100 * spent / budget, 1),
        "projected_usd": _rounded(projection.expected_pico_usd if projection else None),
        "projected_low_usd": _rounded(projection.low_pico_usd if projection else None),
        "projected_high_usd": _rounded(projection.high_pico_usd if projection else None),
        "exhausted_at": None if exhausted is None else exhausted // 1000,
        "exhausted_on": None if exhausted is None else _day(exhausted, usage).isoformat(),
    }


def _day(at_ms: int, usage: Usage) -> date:
    return business_day(at_ms, usage.zone)


def _rounded(pico_usd: int | None) -> Any:
    return None if pico_usd is None else to_usd(round(pico_usd, -8))


def _point(bucket: Bucket, name: str, value: str | int) -> dict[str, Any]:
    tally = bucket.tally
    return {name: value, "requests": tally.requests, "errors": tally.errors, "cost_usd": to_usd(tally.cost_pico_usd)}
