"""Reads the ledger: a day is eight queries, page by page, and no more than a page of each is in memory."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, TypeVar
from zoneinfo import ZoneInfo

from naru.errors import StoreUnavailableError
from naru.ledger import SHARDS, Row, from_item, partition
from naru.periods import day_end_ms, day_start_ms

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

T = TypeVar("T")

_FIRST_PAGE, _PAGE, _FILTERED_PAGE = 25, 400, 2_000
"""Rows of one query. Of those that a filter leaves out nothing comes over the network, so more of them can be looked at."""
_FILTER_VALUES = 100
"""What DynamoDB's IN takes."""


@dataclass(frozen=True, slots=True)
class _Shard:
    """Rows that were read of one shard, and where to go on; None at its end."""

    rows: list[Row]
    last: dict[str, Any] | None

    def and_then(self, page: _Shard) -> _Shard:
        return _Shard([*self.rows, *page.rows], page.last)


class LedgerReader:
    """Every method blocks, and raises :class:`~naru.errors.StoreUnavailableError` when DynamoDB does not answer."""

    def __init__(self, client: DynamoDBClient, table: str, zone: ZoneInfo) -> None:
        self._client = client
        self._table = table
        self.zone = zone
        self._pool: ThreadPoolExecutor | None = None

    def each_shard(
        self, day: date, work: Callable[[Iterator[Row]], T], *, start_ms: int | None = None, end_ms: int | None = None
    ) -> list[T]:
        """What ``work`` makes of the rows of each shard of a day, all shards at once.

        ``start_ms`` and ``end_ms`` narrow the day to the requests that arrived from the one on and before the other.
        """
        start_ms = max(start_ms or 0, day_start_ms(day, self.zone))
        end_ms = min(end_ms or 10**14, day_end_ms(day, self.zone))
        if start_ms >= end_ms:
            return []
        return list(self._threads.map(lambda shard: work(self._rows(day, shard, start_ms, end_ms)), range(SHARDS)))

    def count(self, day: date) -> int:
        """How many rows a day has. It costs as many read units as to read them, and next to no time."""
        start_ms, end_ms = day_start_ms(day, self.zone), day_end_ms(day, self.zone)
        return sum(self._threads.map(lambda shard: self._count(day, shard, start_ms, end_ms), range(SHARDS)))

    def newest(
        self, day: date, *, start_ms: int, end_ms: int, before: str, only: Mapping[str, Collection[str]]
    ) -> Iterator[Row]:
        """Rows of a day from the newest to the oldest: of requests that arrived within the span and whose id is less than
        ``before``.

        ``only`` has the values that an attribute of the row may have, by its name; DynamoDB leaves the other rows out, as
        far as a filter has room for the values.
        """
        start_ms = max(start_ms, day_start_ms(day, self.zone))
        end_ms = min(end_ms, day_end_ms(day, self.zone))
        # No id is equal to its own beginning, so one of ``end_ms`` is not among them.
        low, high = f"req_{start_ms:012x}", min(before, f"req_{end_ms:012x}")
        if low < high:
            shards = self._first_pages(day, {":from": low, ":to": high}, before, _filter(only))
            yield from heapq.merge(*shards, key=lambda row: row.request_id, reverse=True)

    def _rows(self, day: date, shard: int, start_ms: int, end_ms: int) -> Iterator[Row]:
        """A request id begins with its time, and is longer than its beginning: so ``end_ms`` is not included."""
        start: dict[str, Any] = {}
        while True:
            answer = self._query(
                day,
                shard,
                {":from": f"req_{start_ms:012x}", ":to": f"req_{end_ms:012x}"},
                # Rows that are counted for good must all be seen.
                ConsistentRead=True,
                # A whole page of 1 MB is 2,000 rows, and some 60 MB of Python's while it is parsed; eight are, at once.
                Limit=_PAGE,
                **start,
            )
            yield from map(from_item, answer["Items"])
            if not answer.get("LastEvaluatedKey"):
                return
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}

    def _count(self, day: date, shard: int, start_ms: int, end_ms: int) -> int:
        values = {":from": f"req_{start_ms:012x}", ":to": f"req_{end_ms:012x}"}
        start: dict[str, Any] = {}
        total = 0
        while True:
            answer = self._query(day, shard, values, ConsistentRead=True, Select="COUNT", **start)
            total += int(answer["Count"])
            if not answer.get("LastEvaluatedKey"):
                return total
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}

    @property
    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(SHARDS, thread_name_prefix="ledger")
        return self._pool

    def _first_pages(
        self, day: date, values: dict[str, str], before: str, where: Mapping[str, Any]
    ) -> list[Iterator[Row]]:
        """A stream for each shard, newest first, whose first rows are there already: all shards are read at once until
        each has some rows or has no more.
        """
        limit = _FILTERED_PAGE if where else _PAGE

        def first(shard: int) -> _Shard:
            page = self._newest_page(day, shard, values, where, limit=_FIRST_PAGE)
            while page.last is not None and len(page.rows) < _FIRST_PAGE:
                page = page.and_then(self._newest_page(day, shard, values, where, limit=limit, start=page.last))
            return page

        def rest(shard: int, page: _Shard) -> Iterator[Row]:
            while True:
                yield from (row for row in page.rows if row.request_id != before)
                if page.last is None:
                    return
                page = self._newest_page(day, shard, values, where, limit=limit, start=page.last)

        pages = list(self._threads.map(first, range(SHARDS)))
        return [rest(shard, page) for shard, page in enumerate(pages)]

    def _newest_page(
        self,
        day: date,
        shard: int,
        values: dict[str, str],
        where: Mapping[str, Any],
        *,
        limit: int,
        start: dict[str, Any] | None = None,
    ) -> _Shard:
        more: dict[str, Any] = {"ExclusiveStartKey": start} if start else {}
        answer = self._query(day, shard, values, where, ScanIndexForward=False, Limit=limit, **more)
        return _Shard([*map(from_item, answer["Items"])], answer.get("LastEvaluatedKey") or None)

    def _query(
        self, day: date, shard: int, values: dict[str, str], where: Mapping[str, Any] | None = None, **more: Any
    ) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        filtered = dict(where or {})
        values = {":day_shard": partition(day, shard), **values, **filtered.pop("values", {})}
        try:
            return self._client.query(
                TableName=self._table,
                KeyConditionExpression="day_shard = :day_shard AND request_id BETWEEN :from AND :to",
                ExpressionAttributeValues={name: {"S": value} for name, value in values.items()},
                **filtered,
                **more,
            )
        except (BotoCoreError, ClientError) as error:
            raise StoreUnavailableError(
                "The gateway cannot read its ledger at the moment. Try again shortly.",
                log={"reason": f"{type(error).__name__} while reading {self._table}: {error}"},
            ) from error


def _filter(only: Mapping[str, Collection[str]]) -> dict[str, Any]:
    """The filter of a query, as its parameters; ``values`` are to be added to those of its condition."""
    names: dict[str, str] = {}
    values: dict[str, str] = {}
    terms: list[str] = []
    for number, (name, allowed) in enumerate(only.items()):
        if allowed and len(allowed) <= _FILTER_VALUES:
            names[f"#f{number}"] = name
            given = {f":f{number}_{index}": value for index, value in enumerate(sorted(allowed))}
            terms.append(f"#f{number} IN ({', '.join(given)})")
            values |= given
    if not terms:
        return {}
    return {"FilterExpression": " AND ".join(terms), "ExpressionAttributeNames": names, "values": values}
