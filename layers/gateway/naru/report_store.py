"""What reports and alerts remember: one table.

::

    about              part              what
    hours#2026-11-22   13/0              a roll-up: the tally of an hour (or of its beginning, see ``chunks``)
    days#2026-11       22/0              a roll-up: the tally of a business day
    rolled             hours             until when there are roll-ups of hours
    rolled             back              since when there are roll-ups of days; before which day there is no row
    alerts#2026-11     organisation/90/… a message that is sent once, see :meth:`ReportStore.claim`
    reports            2026-11-22        the same, of a daily report

Roll-ups can be made again from the ledger at any time. Every call blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from naru.attributes import from_item, to_item
from naru.errors import StoreUnavailableError
from naru.tally import Tally
from naru.tally_codec import decode, encode

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

CHUNK_BYTES = 350_000
"""DynamoDB takes items of 400 KB."""
_KEPT_BYTES = 64 << 20
"""Of roll-ups that were read before, as they are in the table."""


class ReportStore:
    """Every method raises :class:`~naru.errors.StoreUnavailableError` when DynamoDB does not answer."""

    def __init__(self, client: DynamoDBClient, table: str) -> None:
        self._client = client
        self._table = table
        self._decoded: dict[str, Tally] = {}
        self._decoded_bytes = 0

    # ── Roll-ups ───────────────────────────────────────────────────────────────────────────────────────────

    def put_tally(self, about: str, part: str, tally: Tally) -> None:
        """Puts a roll-up, over an older one if there is one: it is the same or knows more."""
        content = encode(tally)
        digest = hashlib.sha256(content).hexdigest()[:32]
        chunks = [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)]
        # The first chunk comes last: whoever finds it finds the others.
        for number, chunk in reversed([*enumerate(chunks)]):
            values = {"about": about, "part": f"{part}/{number}", "chunks": len(chunks), "digest": digest}
            with self._reached():
                self._client.put_item(TableName=self._table, Item={**to_item(values), "content": {"B": chunk}})

    def tallies(self, about: str) -> dict[str, Tally]:
        """All roll-ups about something, by their part (``13`` of ``13/0``). What is being written over is left out."""
        found: dict[str, dict[int, dict[str, Any]]] = {}
        with self._reached():
            pages = self._client.get_paginator("query").paginate(
                TableName=self._table,
                KeyConditionExpression="about = :about",
                ExpressionAttributeValues={":about": {"S": about}},
                ConsistentRead=True,
            )
            for page in pages:
                for item in page["Items"]:
                    part, _, number = item["part"]["S"].rpartition("/")
                    found.setdefault(part, {})[int(number)] = item
        tallies = {part: self._whole(chunks) for part, chunks in found.items()}
        return {part: tally for part, tally in tallies.items() if tally is not None}

    def _whole(self, chunks: Mapping[int, dict[str, Any]]) -> Tally | None:
        if (first := chunks.get(0)) is None:
            return None
        digest, count = first["digest"]["S"], int(first["chunks"]["N"])
        if any(number not in chunks or chunks[number]["digest"]["S"] != digest for number in range(count)):
            return None
        if (known := self._decoded.get(digest)) is None:
            content = b"".join(bytes(chunks[number]["content"]["B"]) for number in range(count))
            try:
                known = decode(content)
            except ValueError:
                return None  # of another version of Naru: the rows are asked instead
            if self._decoded_bytes + len(content) > _KEPT_BYTES:
                self._decoded.clear()
                self._decoded_bytes = 0
            self._decoded[digest] = known
            self._decoded_bytes += len(content)
        return known

    # ── What is remembered ─────────────────────────────────────────────────────────────────────────────────

    def get(self, about: str, part: str) -> dict[str, Any]:
        """What is noted there; nothing if nothing is."""
        with self._reached():
            answer = self._client.get_item(
                TableName=self._table, Key=to_item({"about": about, "part": part}), ConsistentRead=True
            )
        return from_item(answer.get("Item", {}))

    def notes(self, about: str) -> dict[str, dict[str, Any]]:
        """All that is noted about something, by its part. A query: who may only ask for roll-ups may ask this."""
        with self._reached():
            answer = self._client.query(
                TableName=self._table,
                KeyConditionExpression="about = :about",
                ExpressionAttributeValues={":about": {"S": about}},
                ConsistentRead=True,
            )
        return {item["part"]["S"]: from_item(item) for item in answer["Items"]}

    def note(self, about: str, part: str, **values: Any) -> None:
        """Notes something beside what is noted there."""
        self._update(about, part, values, None, {})

    # ── What is done once ──────────────────────────────────────────────────────────────────────────────────

    def claim(self, about: str, part: str, *, now_ms: int, lease_ms: int, **values: Any) -> bool:
        """Whether it is ours to do: it has not been done, and nobody is at it.

        Whoever is at it and says nothing for ``lease_ms`` counts as dead. After :meth:`done` nobody may any more.
        """
        condition = (
            "attribute_not_exists(done_ms) AND (attribute_not_exists(claimed_until_ms) OR claimed_until_ms < :now)"
        )
        claimed = {"claimed_until_ms": now_ms + lease_ms, **values}
        return self._update(about, part, claimed, condition, {":now": now_ms})

    def done(self, about: str, part: str, *, now_ms: int, **values: Any) -> None:
        """It is done, for good."""
        self._update(about, part, {"done_ms": now_ms, **values}, None, {})

    def give_back(self, about: str, part: str) -> None:
        """It could not be done; the next one may try."""
        self._update(about, part, {"claimed_until_ms": 0}, "attribute_not_exists(done_ms)", {})

    def is_done(self, about: str, part: str) -> bool:
        return "done_ms" in self.get(about, part)

    def _update(
        self, about: str, part: str, values: Mapping[str, Any], condition: str | None, more: Mapping[str, Any]
    ) -> bool:
        """False where the condition does not hold."""
        names = {f"#name{index}": name for index, name in enumerate(values)}
        given = {f":value{index}": value for index, value in enumerate(values.values())}
        conditions: dict[str, Any] = {"ConditionExpression": condition} if condition else {}
        with self._reached():
            try:
                self._client.update_item(
                    TableName=self._table,
                    Key=to_item({"about": about, "part": part}),
                    UpdateExpression="SET "
                    + ", ".join(f"#name{index} = :value{index}" for index in range(len(values))),
                    ExpressionAttributeNames=names,
                    ExpressionAttributeValues=to_item({**given, **more}),
                    **conditions,
                )
            except self._client.exceptions.ConditionalCheckFailedException:
                return False
        return True

    @contextmanager
    def _reached(self) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError) as error:
            raise StoreUnavailableError(
                "The gateway cannot reach its reports at the moment. Try again shortly.",
                log={"reason": f"{type(error).__name__} on {self._table}: {error}"},
            ) from error
