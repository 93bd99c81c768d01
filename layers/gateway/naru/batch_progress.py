"""How far a batch is: its ranges, each with the worker that has it, and its lines, each with one result. Calls block.

A run of a range has an id of its own, and so have two runs in one process that come of two copies of a message. It
claims the range for some seconds and renews that; if its process dies it loses the range. It claims a line before the
provider is called, under the id of the request, and stores the result if there is none yet::

    range   nobody's ──claim──▶ a run's ──end──▶ ended          claim: while the batch is in progress, in one transaction
                        ▲            │ ▲ renew                  end: counts it in the batch, in one transaction, once
                        └─lease over─┘ └┘
    line    nothing ──claim──▶ called for ──store──▶ result     claim: if it is as it was seen, so that one of two gets it
                                  │    ▲                        store: if there is no result. The first one stands
                                  └────┘ put back: it will be tried again;  claimed by one that died: the loss is counted

So a line that has a result is never called for again, one that another run has claimed meanwhile is left to it, and of
one whose caller died it is known that it may have been paid for, under which request.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from naru.attributes import from_item, to_item
from naru.batch_store import Batch, batch_key, is_refused, reasons
from naru.errors import StoreUnavailableError
from naru.pricing import Usage
from naru.stored import reached

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

_TRIES = 30


@dataclass(frozen=True, slots=True)
class Range:
    """Lines that lie together in the input: where, in bytes, and which. ``line`` is the number of the first in the
    file, from 1; ``first`` its index among the requests, from 0.
    """

    index: int
    offset: int
    length: int
    line: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class RangeState:
    """Who has a range, until when (Unix ms), and how far they are."""

    ended: bool
    until_ms: int
    completed: int
    failed: int
    end_code: str | None


@dataclass(frozen=True, slots=True)
class LineState:
    """A line that somebody has called for.

    ``worker`` is the run that called for it last and has not put it back; ``request_id`` under which request.
    """

    index: int
    outcome: Literal["completed", "failed"] | None
    tries: int = 0
    losses: int = 0
    worker: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class LineResult:
    """The end of a line: as it will be written into one of the batch's files."""

    custom_id: str | None
    """None where the line cannot be read any more."""
    completed: bool
    content: bytes
    usage: Usage | None


class Progress:
    """Ranges and lines of all batches."""

    def __init__(self, client: DynamoDBClient, table: str, *, rng: random.Random | None = None) -> None:
        self._client = client
        self._table = table
        self._rng = rng or random.SystemRandom()

    # ── Ranges ─────────────────────────────────────────────────────────────────────────────────────────────

    def claim_range(
        self, batch: Batch, index: int, *, worker: str, now_ms: int, until_ms: int
    ) -> Literal["claimed", "ended", "taken", "closed"]:
        """Gives a range to one run of it, ``worker``: unless it has ended, another has it, or the batch is not in progress."""
        key = to_item(_range_key(batch.batch_id, index))
        update = {
            "TableName": self._table,
            "Key": key,
            "UpdateExpression": "SET #worker = :worker, until_ms = :until, expires_s = :expires",
            "ConditionExpression": "attribute_not_exists(ended) AND "
            "(attribute_not_exists(until_ms) OR until_ms < :now OR #worker = :worker)",
            "ExpressionAttributeNames": {"#worker": "worker"},
            "ExpressionAttributeValues": to_item(
                {":worker": worker, ":until": until_ms, ":now": now_ms, ":expires": batch.values["expires_s"]}
            ),
        }
        check = {
            "TableName": self._table,
            "Key": batch_key(batch),
            "ConditionExpression": "#phase = :phase AND expires_at > :now_s",
            "ExpressionAttributeNames": {"#phase": "phase"},
            "ExpressionAttributeValues": to_item({":phase": "in_progress", ":now_s": now_ms // 1000}),
        }
        failed = self._transact([{"ConditionCheck": check}, {"Update": update}])
        if failed is None:
            return "claimed"
        if failed[0].get("Code") == "ConditionalCheckFailed":
            return "closed"
        state = self.range_state(batch.batch_id, index)
        return "ended" if state is not None and state.ended else "taken"

    def renew_range(
        self, batch_id: str, index: int, *, worker: str, until_ms: int, completed: int, failed: int
    ) -> bool:
        """Says that the worker lives, and how far it is; False if the range is not its own any more."""
        return self._change_range(
            batch_id,
            index,
            worker,
            "SET until_ms = :until, completed = :completed, failed = :failed",
            {":until": until_ms, ":completed": completed, ":failed": failed},
        )

    def release_range(self, batch_id: str, index: int, *, worker: str) -> bool:
        """Gives a range back that has not ended."""
        return self._change_range(batch_id, index, worker, "SET until_ms = :none", {":none": 0})

    def end_range(
        self, batch: Batch, index: int, *, worker: str, completed: int, failed: int, end_code: str | None
    ) -> bool:
        """Ends a range and counts it in its batch, together and once; False if it is not the worker's any more, or if the
        batch has ended.

        Lines without a result end with ``end_code``.
        """
        sets = "SET ended = :true, completed = :completed, failed = :failed, until_ms = :none"
        values: dict[str, Any] = {
            ":true": True,
            ":completed": completed,
            ":failed": failed,
            ":none": 0,
            ":worker": worker,
        }
        if end_code is not None:
            sets += ", end_code = :code"
            values[":code"] = end_code
        update = {
            "TableName": self._table,
            "Key": to_item(_range_key(batch.batch_id, index)),
            "UpdateExpression": sets,
            "ConditionExpression": "#worker = :worker AND attribute_not_exists(ended)",
            "ExpressionAttributeNames": {"#worker": "worker"},
            "ExpressionAttributeValues": to_item(values),
        }
        count = {
            "TableName": self._table,
            "Key": batch_key(batch),
            "UpdateExpression": "SET touched_s = :now_s ADD ranges_ended :one, completed :completed, failed :failed",
            # The counts of a batch that has ended are those of its files.
            "ConditionExpression": "#phase IN (:running, :finalizing, :cancelling)",
            "ExpressionAttributeNames": {"#phase": "phase"},
            "ExpressionAttributeValues": to_item(
                {
                    ":one": 1,
                    ":completed": completed,
                    ":failed": failed,
                    ":now_s": int(time.time()),
                    ":running": "in_progress",
                    ":finalizing": "finalizing",
                    ":cancelling": "cancelling",
                }
            ),
        }
        return self._transact([{"Update": update}, {"Update": count}]) is None

    def range_state(self, batch_id: str, index: int) -> RangeState | None:
        with reached(self._table):
            answer = self._client.get_item(
                TableName=self._table, Key=to_item(_range_key(batch_id, index)), ConsistentRead=True
            )
        return _range_state(from_item(answer["Item"])) if answer.get("Item") else None

    def range_states(self, batch_id: str, *, consistent: bool = False) -> dict[int, RangeState]:
        """All ranges that anybody has begun."""
        request = self._between(batch_id, "range#", "range$") | {"ConsistentRead": consistent}
        return {int(values["entry"].removeprefix("range#")): _range_state(values) for values in self._query(request)}

    def _change_range(self, batch_id: str, index: int, worker: str, sets: str, values: Mapping[str, Any]) -> bool:
        with reached(self._table):
            try:
                self._client.update_item(
                    TableName=self._table,
                    Key=to_item(_range_key(batch_id, index)),
                    UpdateExpression=sets,
                    ConditionExpression="#worker = :worker AND attribute_not_exists(ended)",
                    ExpressionAttributeNames={"#worker": "worker"},
                    ExpressionAttributeValues=to_item({**values, ":worker": worker}),
                )
            except self._client.exceptions.ConditionalCheckFailedException:
                return False
        return True

    # ── Lines ──────────────────────────────────────────────────────────────────────────────────────────────

    def line_states(self, batch_id: str, of: Range) -> dict[int, LineState]:
        """The lines of a range that anybody has called for."""
        request = self._between(batch_id, _line(of.first), _line(of.first + of.count - 1)) | {
            "ConsistentRead": True,
            "ProjectionExpression": "#entry, outcome, tries, losses, #worker, request_id",
        }
        request["ExpressionAttributeNames"] |= {"#entry": "entry", "#worker": "worker"}
        states = map(_line_state, self._query(request))
        return {state.index: state for state in states}

    def line_state(self, batch_id: str, index: int) -> LineState:
        """One line, called for or not."""
        states = self.line_states(batch_id, Range(0, 0, 0, 0, index, 1))
        return states.get(index) or LineState(index, None)

    def claim_line(self, batch: Batch, line: LineState, *, worker: str, request_id: str) -> bool:
        """Says that a line is about to be called for, under which request; False if it has a result, or if somebody has
        claimed it since it was seen.

        ``line`` is what was seen: one that carries another worker's claim was lost with that worker.
        """
        values = {
            ":worker": worker,
            ":request": request_id,
            ":tries": line.tries,
            ":losses": line.losses,
            ":expires": batch.values["expires_s"],
        }
        free = "attribute_not_exists(#worker) OR request_id = :request"  # the latter is this very write, sent again
        if line.worker is not None:
            free += " OR (#worker = :seen_worker AND request_id = :seen_request)"
            values |= {":seen_worker": line.worker, ":seen_request": line.request_id}
        return self._change_line(
            batch.batch_id,
            line.index,
            "SET #worker = :worker, request_id = :request, tries = :tries, losses = :losses, expires_s = :expires",
            values,
            condition=f"({free})",
        )

    def put_back(self, batch_id: str, line: LineState) -> None:
        """Says that a line is not on its way any more, and will be tried again; not of one that another has claimed."""
        self._change_line(
            batch_id,
            line.index,
            "SET tries = :tries REMOVE #worker",
            {":tries": line.tries, ":request": line.request_id},
            condition="request_id = :request",
        )

    def store(self, batch: Batch, index: int, *, request_id: str, result: LineResult, object_name: str | None) -> bool:
        """Stores the result of a line; False if it has one from another request: the first stands.

        What does not fit is expected under ``object_name`` in S3.
        """
        sets = "SET outcome = :outcome, request_id = :request, expires_s = :expires"
        values: dict[str, Any] = to_item(
            {
                ":outcome": "completed" if result.completed else "failed",
                ":request": request_id,
                ":expires": batch.values["expires_s"],
            }
        )
        if result.custom_id is not None:
            sets += ", custom_id = :custom_id"
            values[":custom_id"] = {"S": result.custom_id}
        if object_name is None:
            sets += ", content = :content"
            values[":content"] = {"B": result.content}
        else:
            sets += ", object_name = :object"
            values[":object"] = {"S": object_name}
        if (usage := result.usage) is not None:
            sets += ", tokens = :tokens"
            counted = [usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens, usage.reasoning_tokens]
            values |= to_item({":tokens": counted})
        if self._change_line(batch.batch_id, index, f"{sets} REMOVE #worker", values, typed=True):
            return True
        # The same write may have happened before, and its answer may have been lost.
        return self.line_state(batch.batch_id, index).request_id == request_id

    def results(self, batch_id: str, of: Range) -> Iterator[dict[str, Any]]:
        """The lines of a range that have a result, in order: ``index``, ``outcome``, ``custom_id``, ``content`` (bytes)
        or ``object_name``, and ``tokens``.
        """
        return (line for line in self.called(batch_id, of) if "outcome" in line)

    def called(self, batch_id: str, of: Range) -> Iterator[dict[str, Any]]:
        """The lines of a range that were claimed at any time, as :meth:`results`; those without a result have no
        ``outcome``.
        """
        request = self._between(batch_id, _line(of.first), _line(of.first + of.count - 1)) | {"ConsistentRead": True}
        for values in self._query(request):
            yield {**values, "index": int(values["entry"].removeprefix("line#"))}

    def _change_line(
        self,
        batch_id: str,
        index: int,
        sets: str,
        values: Mapping[str, Any],
        *,
        typed: bool = False,
        condition: str | None = None,
    ) -> bool:
        with reached(self._table):
            try:
                self._client.update_item(
                    TableName=self._table,
                    Key=to_item({"shelf": f"batch#{batch_id}", "entry": _line(index)}),
                    UpdateExpression=sets,
                    ConditionExpression=" AND ".join(filter(None, ["attribute_not_exists(outcome)", condition])),
                    ExpressionAttributeNames={"#worker": "worker"},
                    ExpressionAttributeValues=values if typed else to_item(values),
                )
            except self._client.exceptions.ConditionalCheckFailedException:
                return False
        return True

    # ── Both ───────────────────────────────────────────────────────────────────────────────────────────────

    def _between(self, batch_id: str, first: str, last: str) -> dict[str, Any]:
        return {
            "TableName": self._table,
            "KeyConditionExpression": "#shelf = :shelf AND #entry BETWEEN :first AND :last",
            "ExpressionAttributeNames": {"#shelf": "shelf", "#entry": "entry"},
            "ExpressionAttributeValues": to_item({":shelf": f"batch#{batch_id}", ":first": first, ":last": last}),
        }

    def _query(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        with reached(self._table):
            for page in self._client.get_paginator("query").paginate(**request):
                yield from map(from_item, page["Items"])

    def _transact(self, writes: list[Any]) -> list[dict[str, Any]] | None:
        """None if all of it was written, else why not, write by write. Another transaction on the same item is waited
        for.
        """
        for attempt in range(_TRIES):
            with reached(self._table):
                try:
                    self._client.transact_write_items(TransactItems=writes)
                    return None
                except self._client.exceptions.TransactionCanceledException as cancelled:
                    if is_refused(cancelled):
                        return reasons(cancelled)
                    if not any(reason.get("Code") == "TransactionConflict" for reason in reasons(cancelled)):
                        raise
            time.sleep(self._rng.uniform(0, min(0.5, 0.01 * 2**attempt)))
        raise StoreUnavailableError("The gateway's store of batches is too busy.", log={"table": self._table})


def _range_key(batch_id: str, index: int) -> dict[str, str]:
    return {"shelf": f"batch#{batch_id}", "entry": f"range#{index:05}"}


def _line(index: int) -> str:
    return f"line#{index:08}"


def _range_state(values: Mapping[str, Any]) -> RangeState:
    return RangeState(
        ended=values.get("ended", False),
        until_ms=values.get("until_ms", 0),
        completed=values.get("completed", 0),
        failed=values.get("failed", 0),
        end_code=values.get("end_code"),
    )


def _line_state(values: Mapping[str, Any]) -> LineState:
    return LineState(
        index=int(values["entry"].removeprefix("line#")),
        outcome=values.get("outcome"),
        tries=values.get("tries", 0),
        losses=values.get("losses", 0),
        worker=values.get("worker"),
        request_id=values.get("request_id"),
    )
