"""Reads the ledger: a day is eight queries, page by page, and no more than a page of each is in memory."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from zoneinfo import ZoneInfo

from naru.business_time import business_day
from naru.errors import StoreUnavailableError
from naru.ledger import SHARDS, Row, from_item, partition
from naru.periods import day_end_ms, day_start_ms
from naru.request_ids import arrived_at_ms

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

T = TypeVar("T")

_FIRST_PAGE, _PAGE = 25, 400


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

    def newest(self, *, before: str | None, since_ms: int, now_ms: int) -> Iterator[Row]:
        """Rows from the newest to the oldest that arrived at ``since_ms`` or later; ``before`` is a request id."""
        day = business_day(arrived_at_ms(before) if before else now_ms, self.zone)
        if before is None:
            day += timedelta(days=1)  # another machine's clock may be ahead of ours
        oldest = business_day(since_ms, self.zone)
        while day >= oldest:
            shards = self._first_pages(day, before, since_ms)
            yield from heapq.merge(*shards, key=lambda row: row.request_id, reverse=True)
            day -= timedelta(days=1)

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

    def _first_pages(self, day: date, before: str | None, since_ms: int) -> list[Iterator[Row]]:
        """A stream for each shard, newest first, whose first page is there already: eight queries at once."""
        # No id is equal to its own beginning, and none is greater than a tilde behind it.
        values = {":from": f"req_{since_ms:012x}", ":to": before or "req_~"}

        def first(shard: int) -> tuple[list[Row], dict[str, Any] | None]:
            return self._newest_page(day, shard, values, limit=_FIRST_PAGE)

        def rest(shard: int, page: tuple[list[Row], dict[str, Any] | None]) -> Iterator[Row]:
            while True:
                rows, last = page
                yield from (row for row in rows if row.request_id != before)
                if last is None:
                    return
                page = self._newest_page(day, shard, values, limit=_PAGE, start=last)

        pages = list(self._threads.map(first, range(SHARDS)))
        return [rest(shard, page) for shard, page in enumerate(pages)]

    def _newest_page(
        self, day: date, shard: int, values: dict[str, str], *, limit: int, start: dict[str, Any] | None = None
    ) -> tuple[list[Row], dict[str, Any] | None]:
        more: dict[str, Any] = {"ExclusiveStartKey": start} if start else {}
        answer = self._query(day, shard, values, ScanIndexForward=False, Limit=limit, **more)
        return [*map(from_item, answer["Items"])], answer.get("LastEvaluatedKey") or None

    def _query(self, day: date, shard: int, values: dict[str, str], **more: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        values = {":day_shard": partition(day, shard), **values}
        try:
            return self._client.query(
                TableName=self._table,
                KeyConditionExpression="day_shard = :day_shard AND request_id BETWEEN :from AND :to",
                ExpressionAttributeValues={name: {"S": value} for name, value in values.items()},
                **more,
            )
        except (BotoCoreError, ClientError) as error:
            raise StoreUnavailableError(
                "The gateway cannot read its ledger at the moment. Try again shortly.",
                log={"reason": f"{type(error).__name__} while reading {self._table}: {error}"},
            ) from error
