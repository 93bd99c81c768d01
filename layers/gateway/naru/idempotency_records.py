"""The table of Idempotency-Keys: who is answering a request, and the answer once there is one.

An item is ``running`` and belongs to the request that claimed it, or ``done`` and holds an answer::

    claim ──▶ running ──complete──▶ done ──24 h──▶ gone
                │  ▲ renew
                ├──forget──▶ gone               the request failed: a retry really tries again
                └──until_ms passes──▶ claim     the process died: whoever comes next may have it

Every write after the claim is conditional on the request id that claimed, so an owner who was thought dead cannot
touch what its successor does. TTL deletes hours late; what has expired is treated as gone before it is.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from naru.attributes import from_item, to_item
from naru.errors import StoreUnavailableError

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient
    from mypy_boto3_s3.client import S3Client

T = TypeVar("T")

KEPT_S = 24 * 3600
# DynamoDB takes 400 KB for the whole item: names, hashes and headers want their part.
MAX_ITEM_BODY_BYTES = 350 * 1024
# Below this the gzip header eats what it saves; the item is one write unit either way.
_MIN_GZIP_BYTES = 600

_NAMES = {"#state": "state"}  # a reserved word
_OWNED = "request_id = :request_id AND #state = :state"


class LostAnswerError(Exception):
    """What is stored cannot be read back as it was written; the message says why."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A request that wants to answer, or does: ``name`` is the record, ``at_ms`` Unix milliseconds."""

    name: str
    body_hash: str
    request_id: str
    at_ms: int

    @property
    def expires_s(self) -> int:
        """When the record is forgotten, in Unix seconds as DynamoDB's TTL wants them."""
        return self.at_ms // 1000 + KEPT_S


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer as its client got it; ``stream`` says that the body is events."""

    body: bytes
    stream: bool
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Record:
    """What the table holds for a key."""

    values: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its key in the table."""
        return str(self.values["record"])

    @property
    def request_id(self) -> str:
        """The request that owns it, or answered."""
        return str(self.values["request_id"])

    @property
    def body_hash(self) -> str:
        """SHA-256 of the body it was claimed for."""
        return str(self.values["body_hash"])

    @property
    def is_done(self) -> bool:
        """Whether there is an answer."""
        return bool(self.values["state"] == "done")

    def is_free(self, now_ms: int) -> bool:
        """Whether the next claim gets it."""
        gone = self.values["expires_s"] <= now_ms // 1000
        return bool(gone or (not self.is_done and self.values["until_ms"] < now_ms))


class Records:
    """Reads and writes them. All methods raise :class:`~naru.errors.StoreUnavailableError`.

    ``bucket`` takes answers that do not fit into an item; its client is made when the first of them comes.
    """

    def __init__(self, client: DynamoDBClient, table: str, new_s3_client: Callable[[], S3Client], bucket: str) -> None:
        self._client = client
        self._table = table
        self._new_s3_client = new_s3_client
        self._bucket = bucket
        self._s3: S3Client | None = None

    async def claim(self, claim: Claim, *, until_ms: int) -> Record | None:
        """Makes the record the claimant's; where it is somebody else's, that record."""
        return await asyncio.to_thread(self._reached, self._claim, claim, until_ms)

    async def find(self, name: str) -> Record | None:
        """The record as it is now."""
        return await asyncio.to_thread(self._reached, self._find, name)

    def renew(self, claim: Claim, *, until_ms: int) -> bool:
        """Puts off the time at which the owner counts as dead; False if the record is not its own any more.

        Blocks: it is called from a thread that does nothing else.
        """
        return self._reached(self._renew, claim, until_ms)

    async def complete(self, claim: Claim, answer: KeptAnswer) -> bool:
        """Stores the owner's answer; False if the record is not its own any more."""
        return await asyncio.to_thread(self._reached, self._complete, claim, answer)

    async def forget(self, claim: Claim) -> bool:
        """Removes the owner's claim; False if the record is not its own any more."""
        return await asyncio.to_thread(self._reached, self._remove, claim.name, claim.request_id, "running")

    async def discard(self, record: Record) -> bool:
        """Removes an answer that is of no use; False if the record has become something else."""
        return await asyncio.to_thread(self._reached, self._remove, record.name, record.request_id, "done")

    async def answer(self, record: Record) -> KeptAnswer:
        """The answer that a record holds or points to.

        Raises :class:`LostAnswerError` besides.
        """
        return await asyncio.to_thread(self._reached, self._answer, record)

    def _reached(self, call: Callable[..., T], *args: Any) -> T:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return call(*args)
        except (BotoCoreError, ClientError) as error:
            raise StoreUnavailableError(
                "The gateway cannot look up the Idempotency-Key at the moment. Try again shortly with the same key.",
                log={"reason": f"{type(error).__name__} on {self._table} or {self._bucket}: {error}"},
            ) from error

    def _claim(self, claim: Claim, until_ms: int) -> Record | None:
        values = {
            "record": claim.name,
            "state": "running",
            "body_hash": claim.body_hash,
            "request_id": claim.request_id,
            "until_ms": until_ms,
            "expires_s": claim.expires_s,
        }
        try:
            # There is no record; or it has expired and TTL is late; or its owner has died. The dead one's body counts:
            # it may have been billed, and a client that sends another one with its key should hear of it.
            self._client.put_item(
                TableName=self._table,
                Item=to_item(values),
                ConditionExpression="attribute_not_exists(#record) OR expires_s <= :now_s OR "
                "(#state = :running AND until_ms < :now_ms AND body_hash = :body_hash)",
                ExpressionAttributeNames={**_NAMES, "#record": "record"},
                ExpressionAttributeValues=to_item(
                    {
                        ":now_s": claim.at_ms // 1000,
                        ":now_ms": claim.at_ms,
                        ":running": "running",
                        ":body_hash": claim.body_hash,
                    }
                ),
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )
        except self._client.exceptions.ConditionalCheckFailedException as failed:
            item: Any = failed.response["Item"]  # type: ignore[typeddict-item]
            found = Record(from_item(item))
            # Our own write, whose answer got lost on the way and which boto3 has repeated.
            return None if found.request_id == claim.request_id else found
        return None

    def _find(self, name: str) -> Record | None:
        answer = self._client.get_item(TableName=self._table, Key=to_item({"record": name}), ConsistentRead=True)
        return Record(from_item(answer["Item"])) if answer.get("Item") else None

    def _renew(self, claim: Claim, until_ms: int) -> bool:
        try:
            self._client.update_item(
                TableName=self._table,
                Key=to_item({"record": claim.name}),
                UpdateExpression="SET until_ms = :until_ms",
                ConditionExpression=_OWNED,
                ExpressionAttributeNames=_NAMES,
                ExpressionAttributeValues=to_item(
                    {":until_ms": until_ms, ":request_id": claim.request_id, ":state": "running"}
                ),
            )
        except self._client.exceptions.ConditionalCheckFailedException:
            return False
        return True

    def _complete(self, claim: Claim, answer: KeptAnswer) -> bool:
        body, encoding = _pack(answer.body)
        values = {
            "record": claim.name,
            "state": "done",
            "body_hash": claim.body_hash,
            "request_id": claim.request_id,
            "expires_s": claim.expires_s,
            "stream": answer.stream,
            "headers": dict(answer.headers),
            "encoding": encoding,
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        item = to_item(values)
        if len(body) <= MAX_ITEM_BODY_BYTES:
            item["body"] = {"B": body}
        else:
            # Under a name of the owner's own: one who was thought dead writes over nobody's.
            key = f"{claim.name.replace('#', '/')}/{claim.request_id}"
            self._bucket_client().put_object(Bucket=self._bucket, Key=key, Body=body)
            item["object"] = {"S": key}
        try:
            self._client.put_item(
                TableName=self._table,
                Item=item,
                # Without the state: a repeated write finds its own answer and changes nothing.
                ConditionExpression="request_id = :request_id",
                ExpressionAttributeValues=to_item({":request_id": claim.request_id}),
            )
        except self._client.exceptions.ConditionalCheckFailedException:
            return False
        return True

    def _remove(self, name: str, request_id: str, state: str) -> bool:
        try:
            self._client.delete_item(
                TableName=self._table,
                Key=to_item({"record": name}),
                ConditionExpression=_OWNED,
                ExpressionAttributeNames=_NAMES,
                ExpressionAttributeValues=to_item({":request_id": request_id, ":state": state}),
            )
        except self._client.exceptions.ConditionalCheckFailedException:
            return False
        return True

    def _answer(self, record: Record) -> KeptAnswer:
        values = record.values
        body = self._object(values["object"]) if "object" in values else bytes(values["body"])
        if hashlib.sha256(body).hexdigest() != values["sha256"]:
            raise LostAnswerError("its bytes are not those that were stored")
        return KeptAnswer(_unpack(body, values["encoding"]), stream=values["stream"], headers=values["headers"])

    def _object(self, key: str) -> bytes:
        from botocore.exceptions import ClientError

        try:
            return self._bucket_client().get_object(Bucket=self._bucket, Key=key)["Body"].read()
        except ClientError as error:
            # Who may not list a bucket is told 403 about an object that is not there.
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in {403, 404}:
                raise LostAnswerError(f"S3 does not give s3://{self._bucket}/{key}: {error}") from error
            raise

    def _bucket_client(self) -> S3Client:
        if self._s3 is None:
            self._s3 = self._new_s3_client()
        return self._s3


def _pack(body: bytes) -> tuple[bytes, str]:
    """The body as it is kept: events of a stream shrink to a tenth, and so do the write units."""
    import gzip

    if len(body) >= _MIN_GZIP_BYTES and len(packed := gzip.compress(body, compresslevel=6)) < len(body):
        return packed, "gzip"
    return body, "identity"


def _unpack(body: bytes, encoding: str) -> bytes:
    import gzip

    return gzip.decompress(body) if encoding == "gzip" else body
