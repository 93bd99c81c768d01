"""What a usage request asks for, checked. Every function raises :class:`~naru.errors.InvalidRequestError`, which names
the parameter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from naru.business_time import business_day
from naru.end_users import kept_name
from naru.errors import InvalidRequestError
from naru.ledger import Outcome
from naru.periods import day_end_ms, day_start_ms, first_of_month, hour_of
from naru.request_ids import arrived_at_ms

Query = Mapping[str, Sequence[str]]
"""The parameters of a URL, each as often as it was given."""

TIMES = ("hour", "day", "month")
CELLS = ("key", "model", "deployment", "batch", "outcome", "tag")
GROUPS = (*TIMES, *CELLS, "end_user")
_MAX_DAYS, _MAX_HOURLY_DAYS = 400, 62
_MAX_PAGE, _PAGE = 100, 20
_MAX_CSV_ROWS = 10_000
# Far from both ends of what a date can be, where arithmetic with zones fails.
_FIRST_YEAR, _LAST_YEAR = 2000, 2200
_OUTCOMES: tuple[Outcome, ...] = ("completed", "truncated", "failed", "rejected", "unknown")


@dataclass(frozen=True, slots=True)
class Span:
    """From an instant to one that is not included, in Unix milliseconds."""

    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class Filters:
    """What rows or cells must be; empty for no matter what."""

    key_ids: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    deployments: frozenset[str] = frozenset()
    outcomes: frozenset[str] = frozenset()
    end_users: frozenset[str] = frozenset()
    batch: bool | None = None

    def seen_by(self, key_id: str | None) -> Filters:
        """The same, of one key only; of all where there is none."""
        return self if key_id is None else replace(self, key_ids=frozenset({key_id}))


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """``GET /usage``."""

    span: Span
    groups: tuple[str, ...]
    filters: Filters
    as_csv: bool

    def seen_by(self, key_id: str | None) -> UsageQuery:
        """What the owner of a key is answered: about that key, whatever was asked."""
        return replace(self, filters=self.filters.seen_by(key_id))


@dataclass(frozen=True, slots=True)
class RequestsQuery:
    """``GET /usage/requests``."""

    span: Span
    filters: Filters
    after: str | None
    limit: int
    as_csv: bool

    def seen_by(self, key_id: str | None) -> RequestsQuery:
        """As of :class:`UsageQuery`."""
        return replace(self, filters=self.filters.seen_by(key_id))


def one(query: Query, name: str) -> str | None:
    """A parameter that is given once at most."""
    given = query.get(name) or ()
    if len(given) > 1:
        raise _wrong(name, "it must be given once")
    return given[0] if given and given[0] != "" else None


def many(query: Query, name: str) -> list[str]:
    """A parameter that may be given often, or with commas, or as ``name[]``."""
    return [part.strip() for text in (*(query.get(name) or ()), *(query.get(f"{name}[]") or ())) for part in text.split(",") if part.strip()]  # fmt: skip


def parse_usage(query: Query, zone: ZoneInfo, *, now_ms: int) -> UsageQuery:
    """``start``, ``end``, ``group_by``, filters and ``format``."""
    _only(query, {"start", "end", "group_by", "format", *_FILTERS})
    groups = tuple(dict.fromkeys(many(query, "group_by")))
    for group in groups:
        if group not in GROUPS:
            raise _wrong("group_by", f"there is no {group[:64]!r}; there are {', '.join(GROUPS)}")
    filters = _filters(query)
    if "end_user" in groups or filters.end_users:
        if clash := [group for group in groups if group in CELLS and group != "key"]:
            raise _wrong(
                "group_by", f"end users are not counted by {clash[0]}; group_by end_user goes with key and times"
            )
        if filters.models or filters.deployments or filters.outcomes or filters.batch is not None:
            raise _wrong(
                "group_by", "end users are counted by key only; take the other filters away, or ask /usage/requests"
            )
    span = parse_span(query, zone, now_ms=now_ms)
    days = _days(span, zone)
    if days > _MAX_DAYS or ("hour" in groups and days > _MAX_HOURLY_DAYS):
        raise _wrong(
            "start", f"there are {days} days until the end; at most {_MAX_DAYS}, and {_MAX_HOURLY_DAYS} by hour"
        )
    return UsageQuery(span, groups, filters, _as_csv(query))


def parse_requests(query: Query, zone: ZoneInfo, *, now_ms: int) -> RequestsQuery:
    """``start``, ``end``, filters, ``after``, ``limit`` and ``format``."""
    _only(query, {"start", "end", "after", "limit", "format", *_FILTERS})
    as_csv = _as_csv(query)
    highest = _MAX_CSV_ROWS if as_csv else _MAX_PAGE
    limit = parse_limit(query, default=highest if as_csv else _PAGE, highest=highest)
    after = one(query, "after")
    if after is not None:
        try:
            arrived_at_ms(after)
        except ValueError:
            raise _wrong("after", "it must be the id of a request, as in last_id of the page before") from None
    span = parse_span(query, zone, now_ms=now_ms)
    if (days := _days(span, zone)) > _MAX_DAYS:
        raise _wrong("start", f"there are {days} days until the end; at most {_MAX_DAYS}")
    return RequestsQuery(span, _filters(query), after, limit, as_csv)


def parse_span(query: Query, zone: ZoneInfo, *, now_ms: int) -> Span:
    """From the first of the month until now, where nothing is said."""
    start, end = one(query, "start"), one(query, "end")
    today = business_day(now_ms, zone)
    # Until the end of this hour, whose rows are all there is: what is still to come is not in the ledger.
    end_ms = hour_of(now_ms, zone).end_ms(zone) if end is None else parse_time("end", end, zone, is_end=True)
    start_ms = day_start_ms(first_of_month(today), zone) if start is None else parse_time("start", start, zone)
    if start_ms >= end_ms:
        raise _wrong("start", "it must be before the end")
    return Span(start_ms, end_ms)


def parse_time(name: str, text: str, zone: ZoneInfo, *, is_end: bool = False) -> int:
    """An instant: a business day (its beginning; as an end, the day is included), ISO 8601, or Unix seconds."""
    if re.fullmatch(r"[0-9]{9,11}", text):
        return int(text) * 1000
    if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        day = parse_day(name, text)
        return day_end_ms(day, zone) if is_end else day_start_ms(day, zone)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise _wrong(name, "it must be a day (2026-11-22), a time in ISO 8601, or Unix seconds") from None
    if at.tzinfo is None:
        raise _wrong(name, "it must say its time zone, as in 2026-11-22T09:00:00+09:00; a plus sign in a URL is %2B")
    if not _FIRST_YEAR <= at.year <= _LAST_YEAR:
        raise _wrong(name, f"it must be in the years {_FIRST_YEAR} to {_LAST_YEAR}")
    since = at.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return since // timedelta(milliseconds=1)


def parse_day(name: str, text: str) -> date:
    """``2026-11-22``."""
    try:
        day = date.fromisoformat(text) if re.fullmatch(r"\d{4}-\d\d-\d\d", text) else None
    except ValueError:
        day = None
    if day is None or not _FIRST_YEAR <= day.year <= _LAST_YEAR:
        raise _wrong(name, "it must be a day, such as 2026-11-22")
    return day


def parse_month(name: str, text: str) -> date:
    """The first day of ``2026-11``."""
    if not re.fullmatch(r"\d{4}-\d\d", text):
        raise _wrong(name, "it must be a month, such as 2026-11")
    return parse_day(name, f"{text}-01")


def parse_limit(query: Query, *, default: int, highest: int) -> int:
    """``limit``."""
    text = one(query, "limit")
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,6}", text) or not 1 <= int(text) <= highest:
        raise _wrong("limit", f"it must be a number from 1 to {highest}")
    return int(text)


def parse_flag(query: Query, name: str) -> bool | None:
    """``true`` or ``false``."""
    text = one(query, name)
    if text is None:
        return None
    if text.lower() not in {"true", "false"}:
        raise _wrong(name, "it must be true or false")
    return text.lower() == "true"


_FILTERS = ("key", "model", "deployment", "outcome", "end_user", "batch")


def _filters(query: Query) -> Filters:
    outcomes = frozenset(many(query, "outcome"))
    if unknown := sorted(outcomes - {*_OUTCOMES}):
        raise _wrong("outcome", f"there is no {unknown[0][:64]!r}; there are {', '.join(_OUTCOMES)}")
    return Filters(
        key_ids=frozenset(many(query, "key")),
        models=frozenset(many(query, "model")),
        deployments=frozenset(many(query, "deployment")),
        outcomes=outcomes,
        # A name of somebody else's, in which there may be a comma; rows of earlier releases have it as it was sent.
        end_users=frozenset(
            name for given in query.get("end_user") or () for name in (given, kept_name(given)) if name
        ),
        batch=parse_flag(query, "batch"),
    )


def _only(query: Query, known: set[str]) -> None:
    for name in query:
        if name.removesuffix("[]") not in known:
            raise InvalidRequestError(
                f"Unknown parameter: '{name[:64]}'. There are: {', '.join(sorted(known))}.",
                param=name[:64],
                code="unknown_parameter",
            )


def _as_csv(query: Query) -> bool:
    text = one(query, "format") or "json"
    if text not in {"json", "csv"}:
        raise _wrong("format", "it must be json or csv")
    return text == "csv"


def _days(span: Span, zone: ZoneInfo) -> int:
    return (business_day(span.end_ms - 1, zone) - business_day(span.start_ms, zone)).days + 1


def _wrong(name: str, what: str) -> InvalidRequestError:
    return InvalidRequestError(f"Invalid value for '{name}': {what}.", param=name, code="invalid_value")
