"""The usage API: sums by what is asked for, and the requests themselves."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from naru.accounts import Accounts
from naru.amounts import to_usd
from naru.errors import InvalidRequestError
from naru.figures import request_object, sums_object
from naru.periods import month_of
from naru.plain_text import CsvWriter
from naru.tally import Cell, Spent, Sums, Tally, Users
from naru.usage import Bucket, Usage
from naru.usage_query import Filters, RequestsQuery, UsageQuery
from naru.usage_requests import cell_matches, first_cursor, newest_requests

MAX_GROUPS = 10_000
_UNTAGGED = "untagged"
_REQUEST_COLUMNS = (
    "request_id", "at", "at_ms", "key_id", "key_name", "end_user", "batch_id", "model_asked", "model_served",
    "deployment", "stream", "outcome", "error_code", "prompt_tokens", "cached_tokens", "cache_write_tokens",
    "completion_tokens", "reasoning_tokens", "usage_source", "cost_usd", "maybe_billed_usd", "first_token_ms",
    "latency_ms",
)  # fmt: skip
_DAY_MS = 86_400_000

Group = tuple[Any, ...]


# ── GET /usage ─────────────────────────────────────────────────────────────────────────────────────────────


def usage_list(usage: Usage, query: UsageQuery, accounts: Accounts, *, krw_per_usd: int, now_ms: int) -> dict[str, Any]:
    """The sums of every group, the earliest first, then the dearest. Blocks.

    Raises :class:`~naru.errors.InvalidRequestError` for more groups than an answer can hold.
    """
    buckets = usage.between(query.span.start_ms, query.span.end_ms, now_ms=now_ms, hourly="hour" in query.groups)
    users = "end_user" in query.groups or bool(query.filters.end_users)
    if users:
        spent = _user_groups(buckets, query)
        lines = [_named(query.groups, group, accounts) | _spent_object(sums) for group, sums in _ranked(query, spent)]
        total = Spent()
        for each in spent.values():
            total.merge(each)
        whole = _spent_object(total)
    else:
        groups = _cell_groups(buckets, query, accounts)
        lines = [_named(query.groups, group, accounts) | sums_object(sums) for group, sums in _ranked(query, groups)]
        whole = sums_object(_total(buckets, query.filters))
    if len(lines) > MAX_GROUPS:
        raise InvalidRequestError(
            f"There are more groups than the {MAX_GROUPS} of one answer. Ask for a shorter time or fewer groups.",
            param="group_by",
            code="too_many_groups",
        )
    return {
        "object": "list",
        "start": query.span.start_ms // 1000,
        "end": query.span.end_ms // 1000,
        "time_zone": usage.zone.key,
        "krw_per_usd": krw_per_usd,
        "group_by": list(query.groups),
        "data": lines,
        "total": whole,
        "has_more": False,
    }


def _total(buckets: Iterable[Bucket], filters: Filters) -> Sums:
    match, total = cell_matches(filters), Sums()
    for bucket in buckets:
        total.merge(bucket.tally.sums(match))
    return total


def _time(bucket: Bucket, name: str) -> Any:
    match name:
        case "hour":
            return bucket.start_ms // 1000
        case "day":
            return bucket.day.isoformat()
        case _:
            return month_of(bucket.day)


def _cell_groups(buckets: Iterable[Bucket], query: UsageQuery, accounts: Accounts) -> dict[Group, Sums]:
    match = cell_matches(query.filters)
    groups: defaultdict[Group, Sums] = defaultdict(Sums)
    for bucket in buckets:
        for cell, sums in bucket.tally.cells.items():
            if match(cell):
                for tag in _tags(query.groups, cell, accounts):
                    groups[tuple(_value(name, bucket, cell, tag) for name in query.groups)].merge(sums)
        if len(groups) > MAX_GROUPS:
            break  # As for end users.
    return groups


def _tags(groups: Sequence[str], cell: Cell, accounts: Accounts) -> list[str]:
    if "tag" not in groups:
        return [""]
    # A key with two tags counts for both; the total counts it once.
    return accounts.tags(cell.key_id) or [_UNTAGGED]


def _value(name: str, bucket: Bucket, cell: Cell, tag: str) -> Any:
    match name:
        case "hour" | "day" | "month":
            return _time(bucket, name)
        case "key":
            return cell.key_id
        case "tag":
            return tag
        case _:
            return getattr(cell, name)


def _user_groups(buckets: Iterable[Bucket], query: UsageQuery) -> dict[Group, Spent]:
    """Beside the named ones there may be those that were too many to be named: their end user is null."""
    groups: defaultdict[Group, Spent] = defaultdict(Spent)
    filters = query.filters
    for bucket in buckets:
        for key_id, end_user, spent in _users(bucket.tally):
            if filters.key_ids and key_id not in filters.key_ids:
                continue
            if filters.end_users and end_user not in filters.end_users:
                continue
            values = {"key": key_id, "end_user": end_user}
            groups[tuple(values[name] if name in values else _time(bucket, name) for name in query.groups)].merge(spent)
        if len(groups) > MAX_GROUPS:
            break  # It will be refused: 62 days of hours and all their users would not fit into memory.
    return groups


def _users(tally: Tally) -> Iterator[tuple[str, str | None, Spent]]:
    # A copy, so that those of a roll-up, which is kept for the next request, stay packed.
    users = Users()
    users.merge(tally.users)
    for (key_id, end_user), spent in users.named.items():
        yield key_id, end_user, spent
    for key_id, spent in users.others.items():
        yield key_id, None, spent


def _ranked(query: UsageQuery, groups: dict[Group, Any]) -> list[tuple[Group, Any]]:
    when = [index for index, name in enumerate(query.groups) if name in {"hour", "day", "month"}]
    return sorted(
        groups.items(), key=lambda item: ([item[0][index] for index in when], -item[1].cost_pico_usd, str(item[0]))
    )


def _named(names: Sequence[str], group: Group, accounts: Accounts) -> dict[str, Any]:
    shown: dict[str, Any] = {"object": "usage"}
    for name, value in zip(names, group, strict=True):
        if name == "key":
            shown |= {"key_id": value, "key_name": accounts.name(value)}
        else:
            shown[name] = value
    return shown


def _spent_object(spent: Spent) -> dict[str, Any]:
    return {"requests": spent.requests, "total_tokens": spent.tokens, "cost_usd": to_usd(spent.cost_pico_usd)}


# ── GET /usage/requests ────────────────────────────────────────────────────────────────────────────────────


def requests_list(usage: Usage, query: RequestsQuery, accounts: Accounts, *, now_ms: int) -> dict[str, Any]:
    """A page of requests, newest first, as OpenAI's lists are; ``after`` takes ``last_id``. Blocks.

    A page may be short or empty though there are more: see :func:`~naru.usage_requests.newest_requests`.
    """
    # Nothing is asked of days that are still to come.
    before = first_cursor(min(query.span.end_ms, now_ms + _DAY_MS))
    if query.after is not None:
        before = min(before, query.after)  # ids sort by time, and one may name a time that is still to come
    rows, next_after = newest_requests(
        usage, query.filters, before=before, since_ms=query.span.start_ms, limit=query.limit, now_ms=now_ms
    )
    data = [request_object(row, key_name=accounts.name(row.key_id)) for row in rows]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["request_id"] if data else None,
        "last_id": next_after or (data[-1]["request_id"] if data else None),
        "has_more": next_after is not None,
    }


# ── CSV ────────────────────────────────────────────────────────────────────────────────────────────────────


def usage_csv(listing: dict[str, Any]) -> str:
    """A line for each group; amounts have all their digits. The columns are the same where there is none."""
    groups = [
        column for name in listing["group_by"] for column in (("key_id", "key_name") if name == "key" else (name,))
    ]
    return _csv([*groups, *listing["total"]], listing["data"])


def requests_csv(listing: dict[str, Any]) -> str:
    """A line for each request, newest first; without its attempts. The columns are the same where there is none."""
    return _csv(_REQUEST_COLUMNS, listing["data"])


def _csv(names: Sequence[str], data: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    out = CsvWriter(text, names)
    for line in data:
        out.write(line[name] for name in names)
    return text.getvalue()
