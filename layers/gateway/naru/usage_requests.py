"""Requests from the newest to the oldest, page by page.

The rows of all keys lie side by side in the ledger. Where a page ends, and with it its cursor, follows from the rows that
were asked for and from the calendar, never from rows of others that had to be passed over. So that few of those are read,
roll-ups say in which hours there is something: a day or an hour without a cell that matches is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import date, timedelta

from naru.business_time import business_day
from naru.ledger import Row
from naru.periods import day_end_ms, day_start_ms, first_of_month, hours_of
from naru.request_ids import arrived_at_ms
from naru.tally import Cell, Tally
from naru.usage import Usage
from naru.usage_query import Filters

_READ_DAYS = 10
"""Days of one page in which there is something according to their roll-ups, though no row may match in the end."""
_UNKNOWN_DAYS = 62
"""Days of one page that have no roll-up: those of the last hours, or all of a gateway that is a few minutes old."""


def newest_requests(
    usage: Usage, filters: Filters, *, before: str, since_ms: int, limit: int, now_ms: int
) -> tuple[list[Row], str | None]:
    """Rows that match, newest first, and the request id after which the next page begins; None if there is none.

    ``before`` is a request id, which is not included. There may be more though a page is short or empty; its cursor is
    then the beginning of a day in the form of a request id. Blocks. Raises
    :class:`~naru.errors.StoreUnavailableError`.
    """
    match = _row_matches(filters)
    only = {"key_id": filters.key_ids, "model_served": filters.models, "deployment": filters.deployments, "outcome": filters.outcomes, "end_user": filters.end_users}  # fmt: skip
    found: list[Row] = []
    known, unknown = _READ_DAYS, _UNKNOWN_DAYS
    # Whether yesterday has its roll-up depends on who is still being answered: it does not count as known.
    recent = business_day(now_ms, usage.zone) - timedelta(days=1)
    newest_ms = arrived_at_ms(before)
    if before == _cursor(newest_ms):
        newest_ms -= 1
    for day, whole in _days(usage, business_day(newest_ms, usage.zone), business_day(since_ms, usage.zone), now_ms):
        spans = _spans(usage, day, whole, filters)
        if not spans:
            continue
        is_known = whole is not None and day < recent
        if not (known if is_known else unknown):
            return found, _cursor(day_end_ms(day, usage.zone))
        known, unknown = known - is_known, unknown - (not is_known)
        for start_ms, end_ms in spans:
            for row in usage.reader.newest(
                day, start_ms=max(start_ms, since_ms), end_ms=end_ms, before=before, only=only
            ):
                if match(row):
                    if len(found) == limit:
                        return found, found[-1].request_id
                    found.append(row)
    return found, None


def first_cursor(end_ms: int) -> str:
    """What a first page begins with: requests that arrived before this instant come after it."""
    return _cursor(end_ms)


def cell_matches(filters: Filters) -> Callable[[Cell], bool]:
    """Whether a cell is asked for."""

    def match(cell: Cell) -> bool:
        return (
            (not filters.key_ids or cell.key_id in filters.key_ids)
            and (not filters.models or cell.model in filters.models)
            and (not filters.deployments or cell.deployment in filters.deployments)
            and (not filters.outcomes or cell.outcome in filters.outcomes)
            and (filters.batch is None or cell.batch == filters.batch)
        )

    return match


def _cursor(at_ms: int) -> str:
    return f"req_{at_ms:012x}{'0' * 20}"


def _days(usage: Usage, newest: date, oldest: date, now_ms: int) -> Iterator[tuple[date, Tally | None]]:
    """Each day with its sums, if they are known; the newest first. A month's are read when its turn comes."""
    rolled: Mapping[date, Tally] = {}
    month: date | None = None
    day = newest
    while day >= oldest:
        if first_of_month(day) != month:
            month = first_of_month(day)
            rolled = usage.known_days(max(month, oldest), day, now_ms=now_ms)
        yield day, rolled.get(day)
        day -= timedelta(days=1)


def _spans(usage: Usage, day: date, whole: Tally | None, filters: Filters) -> list[tuple[int, int]]:
    """The parts of a day in which rows can match, in Unix milliseconds, the newest first; hours in a row are one."""
    zone = usage.zone
    all_of_it = [(day_start_ms(day, zone), day_end_ms(day, zone))]
    if whole is None:
        return all_of_it
    match = cell_matches(filters)
    if not any(map(match, whole.cells)):
        return []
    if filters == Filters():
        return all_of_it
    rolled = usage.store.tallies(f"hours#{day}")
    spans: list[tuple[int, int]] = []
    for hour in hours_of(day, zone):
        tally = rolled.get(f"{hour.index:02}")
        if tally is None or any(map(match, tally.cells)):
            start_ms, end_ms = hour.start_ms(zone), hour.end_ms(zone)
            if spans and spans[-1][1] == start_ms:
                start_ms = spans.pop()[0]
            spans.append((start_ms, end_ms))
    return spans[::-1]


def _row_matches(filters: Filters) -> Callable[[Row], bool]:
    def match(row: Row) -> bool:
        return (
            (not filters.key_ids or row.key_id in filters.key_ids)
            and (not filters.models or row.model_served in filters.models)
            and (not filters.deployments or row.deployment in filters.deployments)
            and (not filters.outcomes or row.outcome in filters.outcomes)
            and (not filters.end_users or row.end_user in filters.end_users)
            and (filters.batch is None or (row.batch_id is not None) == filters.batch)
        )

    return match
