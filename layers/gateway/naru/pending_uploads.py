"""Uploads that a key has begun and not completed: so many and so many bytes, and no more.

One item a key on the shelf ``uploads`` says which there are. It is read and written whole, under a version, so that two
who begin at once do not both get the last place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from naru.attributes import from_item, to_item
from naru.errors import RateLimitedError
from naru.stored import DAY_S, reached

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

MAX_PENDING = 50
MAX_PENDING_BYTES = 2 * 10**9
_TRIES = 30

Uploads = dict[str, list[int]]
"""By file id: bytes, and until when (Unix seconds) it takes a place."""


class PendingUploads:
    """Of all keys. Every call blocks, and raises :class:`~naru.errors.StoreUnavailableError`."""

    def __init__(self, client: DynamoDBClient, table: str) -> None:
        self._client = client
        self._table = table

    def begin(self, key_id: str, file_id: str, size_bytes: int, *, now_s: int, until_s: int) -> None:
        """Takes a place for an upload. Raises :class:`~naru.errors.RateLimitedError` where there is none."""

        def add(uploads: Uploads) -> None:
            pending_bytes = sum(size for size, _ in uploads.values())
            if len(uploads) >= MAX_PENDING or pending_bytes + size_bytes > MAX_PENDING_BYTES:
                raise RateLimitedError(
                    f"This API key has {len(uploads)} uploads of {pending_bytes} bytes that are not completed; at most "
                    f"{MAX_PENDING} of {MAX_PENDING_BYTES} bytes together. Complete them (POST /v1/uploads/{{id}}/complete) "
                    "or give them up (DELETE /v1/files/{id}).",
                    retry_after_s=max(1, min(until for _, until in uploads.values()) - now_s) if uploads else None,
                    hopeless=True,  # not by the SDK's retries: the client has something to do first
                )
            uploads[file_id] = [size_bytes, until_s]

        self._change(key_id, add, now_s=now_s)

    def end(self, key_id: str, file_id: str, *, now_s: int, until_s: int = 0) -> None:
        """Gives the place of an upload back: at once, or at a later time than now (Unix seconds)."""

        def remove(uploads: Uploads) -> None:
            if (upload := uploads.pop(file_id, None)) and until_s > now_s:
                uploads[file_id] = [upload[0], min(upload[1], until_s)]

        self._change(key_id, remove, now_s=now_s)

    def _change(self, key_id: str, change: Callable[[Uploads], None], *, now_s: int) -> None:
        key = to_item({"shelf": "uploads", "entry": key_id})
        for _ in range(_TRIES):
            with reached(self._table):
                item = self._client.get_item(TableName=self._table, Key=key, ConsistentRead=True).get("Item")
            known: dict[str, Any] = from_item(item) if item else {"version": 0, "uploads": {}}
            uploads = {file_id: [*upload] for file_id, upload in known["uploads"].items() if upload[1] > now_s}
            change(uploads)
            if uploads == known["uploads"]:
                return
            whole = {"version": known["version"] + 1, "uploads": uploads, "expires_s": now_s + 2 * DAY_S}
            with reached(self._table):
                try:
                    self._client.put_item(
                        TableName=self._table,
                        Item=key | to_item(whole),
                        ConditionExpression="attribute_not_exists(version) OR version = :version",
                        ExpressionAttributeValues=to_item({":version": known["version"]}),
                    )
                except self._client.exceptions.ConditionalCheckFailedException:
                    continue
            return
        raise RateLimitedError("Too many uploads of this API key begin at once. Try again shortly.", retry_after_s=1)
