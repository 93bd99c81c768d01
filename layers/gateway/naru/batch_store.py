"""Batches: one entry each, and every change of phase a conditional write. Every call blocks.

::

    validating ──start──▶ in_progress ──finalize──▶ finalizing ──end──▶ completed | expired
        │                      │
        ├──fail──▶ failed      └──cancel──▶ cancelling ──end──▶ cancelled
        └──cancel──▶ cancelling

A write whose condition fails changes nothing and says so: whoever comes second finds that somebody has been there. An
entry on the shelf ``open`` lies beside the batch from its first moment to its last, put and removed in one transaction
with it, so that none is forgotten whose message got lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from naru.attributes import from_item, to_item
from naru.file_store import Page
from naru.stored import DAY_S, KEPT_DAYS, reached

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

OPEN = "open"
ENDED = frozenset({"failed", "completed", "expired", "cancelled"})


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as its entry was read. Times are Unix seconds, counts are lines."""

    values: Mapping[str, Any]

    @property
    def key_id(self) -> str:
        """Whose it is."""
        return str(self.values["shelf"]).removeprefix("batches#")

    @property
    def batch_id(self) -> str:
        return str(self.values["entry"])

    @property
    def phase(self) -> str:
        """OpenAI's ``status``."""
        return str(self.values["phase"])

    @property
    def has_ended(self) -> bool:
        return self.phase in ENDED

    @property
    def input_object(self) -> str:
        """Where its lines lie in S3."""
        return str(self.values["input_object"])

    @property
    def input_etag(self) -> str | None:
        """Which bytes are meant; None for a batch that was submitted before this was noted."""
        etag: str | None = self.values.get("input_etag")
        return etag

    @property
    def model(self) -> str:
        """The model of all its lines, once they have been read."""
        return str(self.values["model"])

    @property
    def deadline_s(self) -> int:
        """When what has not been answered by then is given up."""
        return int(self.values["expires_at"])

    @property
    def ranges(self) -> int:
        """Of how many ranges it consists."""
        return int(self.values.get("ranges", 0))

    @property
    def ranges_ended(self) -> int:
        return int(self.values.get("ranges_ended", 0))

    @property
    def waits_until_s(self) -> int:
        """Before this no line is tried: all of them would meet what only the operator can end. Unix seconds."""
        return int(self.values.get("waits_until_s", 0))

    @property
    def wait_s(self) -> int:
        """How long that wait is."""
        return int(self.values.get("wait_s", 0))

    @property
    def generation(self) -> int:
        """Messages of an earlier one are void."""
        return int(self.values["generation"])


class BatchStore:
    """The batches of all keys."""

    def __init__(self, client: DynamoDBClient, table: str) -> None:
        self._client = client
        self._table = table

    def create(self, key_id: str, batch_id: str, values: Mapping[str, Any], *, now_s: int) -> Batch:
        """A new batch."""
        whole = {
            **_key(key_id, batch_id),
            "phase": "validating",
            "generation": 0,
            "touched_s": now_s,
            # TTL's: a day after its files are gone.
            "expires_s": now_s + (KEPT_DAYS + 1) * DAY_S,
            **values,
        }
        opened = {"shelf": OPEN, "entry": batch_id, "key_id": key_id, "input_file_id": values["input_file_id"]}
        with reached(self._table):
            self._client.transact_write_items(
                TransactItems=[
                    {"Put": {"TableName": self._table, "Item": to_item(whole)}},
                    {"Put": {"TableName": self._table, "Item": to_item(opened)}},
                ]
            )
        return Batch(whole)

    def get(self, key_id: str, batch_id: str, *, consistent: bool = True) -> Batch | None:
        with reached(self._table):
            answer = self._client.get_item(
                TableName=self._table, Key=to_item(_key(key_id, batch_id)), ConsistentRead=consistent
            )
        return Batch(from_item(answer["Item"])) if answer.get("Item") else None

    def page(self, key_id: str, page: Page) -> tuple[list[Batch], bool]:
        """Batches of this key, newest first, and whether there are more."""
        start: dict[str, Any] = {} if page.after is None else {"ExclusiveStartKey": to_item(_key(key_id, page.after))}
        found: list[Batch] = []
        while len(found) <= page.limit:
            with reached(self._table):
                answer = self._client.query(
                    TableName=self._table,
                    KeyConditionExpression="#shelf = :shelf",
                    ExpressionAttributeNames={"#shelf": "shelf"},
                    ExpressionAttributeValues=to_item({":shelf": f"batches#{key_id}"}),
                    ScanIndexForward=not page.newest_first,
                    ConsistentRead=True,
                    Limit=page.limit + 1,
                    **start,
                )
            found += map(Batch, map(from_item, answer["Items"]))
            if "LastEvaluatedKey" not in answer:
                break
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}
        return found[: page.limit], len(found) > page.limit

    def open_batches(self) -> Iterator[tuple[str, str]]:
        """Key and id of all that have not ended."""
        pages = self._client.get_paginator("query").paginate(
            TableName=self._table,
            KeyConditionExpression="#shelf = :open",
            ExpressionAttributeNames={"#shelf": "shelf"},
            ExpressionAttributeValues=to_item({":open": OPEN}),
        )
        with reached(self._table):
            for page in pages:
                for entry in map(from_item, page["Items"]):
                    yield entry["key_id"], entry["entry"]

    def needs(self, file_id: str) -> bool:
        """Whether a file is the input of a batch that has not ended."""
        pages = self._client.get_paginator("query").paginate(
            TableName=self._table,
            KeyConditionExpression="#shelf = :open",
            FilterExpression="input_file_id = :file",
            ExpressionAttributeNames={"#shelf": "shelf"},
            ExpressionAttributeValues=to_item({":open": OPEN, ":file": file_id}),
            ConsistentRead=True,
        )
        with reached(self._table):
            return any(page["Items"] for page in pages)

    # ── Phases ─────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, batch: Batch, *, model: str, lines: int, ranges: int, now_s: int) -> bool:
        """Its lines are good; False if it is not validating any more."""
        changes = {"model": model, "lines": lines, "ranges": ranges, "in_progress_at": now_s, "touched_s": now_s}
        return self._move(batch, ["validating"], "in_progress", changes)

    def fail(self, batch: Batch, errors: Sequence[Mapping[str, Any]], *, now_s: int) -> bool:
        """Its lines are bad; False if it is not validating any more."""
        return self._end(batch, ["validating"], "failed", {"errors": list(errors), "failed_at": now_s})

    def cancel(self, batch: Batch, *, now_s: int) -> bool:
        """No line of it begins any more; False if it has ended or is about to."""
        return self._move(batch, ["validating", "in_progress"], "cancelling", {"cancelling_at": now_s})

    def finalize(self, batch: Batch, *, ending: str, now_s: int) -> bool:
        """No range of it can be claimed any more; False if somebody was there before. ``ending`` is the phase to come."""
        return self._move(batch, ["in_progress"], "finalizing", {"finalizing_at": now_s, "ending": ending})

    def end(
        self, batch: Batch, phase: str, changes: Mapping[str, Any], files: Sequence[Mapping[str, Any]] = ()
    ) -> bool:
        """The last change, which makes the entries of the batch's files as well (each a Put); False if somebody was there
        before.
        """
        return self._end(batch, ["finalizing", "cancelling"], phase, changes, files)

    def set(self, batch: Batch, **changes: Any) -> bool:
        """Notes something about a batch; False if it has moved on since it was read."""
        return self._move(batch, [batch.phase], batch.phase, changes)

    def _move(self, batch: Batch, phases: Sequence[str], phase: str, changes: Mapping[str, Any]) -> bool:
        with reached(self._table):
            try:
                self._client.update_item(**self._update(batch, phases, phase, changes))
            except self._client.exceptions.ConditionalCheckFailedException:
                return False
        return True

    def _end(
        self,
        batch: Batch,
        phases: Sequence[str],
        phase: str,
        changes: Mapping[str, Any],
        puts: Sequence[Mapping[str, Any]] = (),
    ) -> bool:
        key = to_item({"shelf": OPEN, "entry": batch.batch_id})
        writes: list[Any] = [
            {"Update": self._update(batch, phases, phase, changes)},
            {"Delete": {"TableName": self._table, "Key": key}},
            *({"Put": put} for put in puts),
        ]
        with reached(self._table):
            try:
                self._client.transact_write_items(TransactItems=writes)
            except self._client.exceptions.TransactionCanceledException as cancelled:
                if is_refused(cancelled):
                    return False
                raise
        return True

    def _update(self, batch: Batch, phases: Sequence[str], phase: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        names = {"#phase": "phase"} | {f"#{i}": name for i, name in enumerate(changes)}
        values = {":to": phase} | {f":{i}": value for i, value in enumerate(changes.values())}
        allowed = {f":from{i}": from_ for i, from_ in enumerate(phases)}
        sets = ["#phase = :to", *(f"#{i} = :{i}" for i in range(len(changes)))]
        return {
            "TableName": self._table,
            "Key": to_item(_key(batch.key_id, batch.batch_id)),
            "UpdateExpression": "SET " + ", ".join(sets),
            "ConditionExpression": f"#phase IN ({', '.join(allowed)})",
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": to_item(values | allowed),
        }


def batch_key(batch: Batch) -> dict[str, Any]:
    """The key of its entry, in DynamoDB's form."""
    return to_item(_key(batch.key_id, batch.batch_id))


def is_refused(cancelled: Any) -> bool:
    """Whether a transaction failed for its conditions, and not because another one was there at the same time."""
    return any(reason.get("Code") == "ConditionalCheckFailed" for reason in reasons(cancelled))


def reasons(cancelled: Any) -> list[dict[str, Any]]:
    """Why a transaction failed, write by write."""
    found: list[dict[str, Any]] = cancelled.response.get("CancellationReasons", [])
    return found


def _key(key_id: str, batch_id: str) -> dict[str, str]:
    return {"shelf": f"batches#{key_id}", "entry": batch_id}
