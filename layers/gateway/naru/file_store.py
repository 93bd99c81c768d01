"""Files: an entry in the table for each, and its bytes in S3. Every call blocks.

A file is there when its entry says so, and the entry is written last: a process that dies in between leaves bytes that
nobody can name, and the bucket's lifecycle removes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from naru.attributes import from_item, to_item
from naru.objects import Objects, object_name
from naru.pending_uploads import PendingUploads
from naru.stored import DAY_S, KEPT_DAYS, reached

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of one API key. Times are Unix seconds; ``uploaded`` is False while its bytes are still on their way."""

    key_id: str
    file_id: str
    filename: str
    purpose: str
    size_bytes: int
    created_s: int
    expires_s: int
    uploaded: bool = True
    kept_as: str | None = None
    """Where the bytes of an upload were put in safety: nobody has a URL to which they could be sent again."""

    @property
    def object_name(self) -> str:
        """Where its bytes lie."""
        return self.kept_as or self.upload_name

    @property
    def upload_name(self) -> str:
        """Where they are sent to."""
        return object_name(self.key_id, self.file_id, life_s=self.expires_s - self.created_s)

    def copy_name(self, attempt: str) -> str:
        """Where they are put in safety, in a place for each attempt to do so."""
        return f"{self.upload_name}-{attempt}"


@dataclass(frozen=True, slots=True)
class Page:
    """What a list was asked for: the entry after which it begins, how many, and in which order."""

    after: str | None
    limit: int
    newest_first: bool = True


class FileStore:
    """The files of all keys."""

    def __init__(self, client: DynamoDBClient, table: str, objects: Objects) -> None:
        self._client = client
        self._table = table
        self.objects = objects
        self.pending = PendingUploads(client, table)

    def put(self, file: File) -> None:
        """Makes the entry of a file, or the same one again."""
        with reached(self._table):
            self._client.put_item(**self.entry(file))

    def complete(self, file: File) -> bool:
        """Makes a file of an upload; False if somebody has done so before."""
        with reached(self._table):
            try:
                self._client.put_item(
                    **self.entry(file),
                    ConditionExpression="#pending = :true",
                    ExpressionAttributeNames={"#pending": "pending"},
                    ExpressionAttributeValues=to_item({":true": True}),
                )
            except self._client.exceptions.ConditionalCheckFailedException:
                return False
        return True

    def entry(self, file: File) -> dict[str, Any]:
        """The Put of a file's entry, by itself or in a transaction."""
        values = {
            **_key(file.key_id, file.file_id),
            "filename": file.filename,
            "purpose": file.purpose,
            "size_bytes": file.size_bytes,
            "created_s": file.created_s,
            "expires_s": file.expires_s,
            # An upload that is not completed is forgotten after a day.
            **({} if file.uploaded else {"pending": True, "expires_s": file.created_s + DAY_S}),
            "lives_s": file.expires_s - file.created_s,
            **({} if file.kept_as is None else {"kept_as": file.kept_as}),
        }
        return {"TableName": self._table, "Item": to_item(values)}

    def get(self, key_id: str, file_id: str, *, now_s: int, pending: bool = False) -> File | None:
        """A file of this key; of those whose bytes have not come only with ``pending``."""
        with reached(self._table):
            answer = self._client.get_item(
                TableName=self._table, Key=to_item(_key(key_id, file_id)), ConsistentRead=True
            )
        file = _file(from_item(answer["Item"])) if answer.get("Item") else None
        return file if file and file.expires_s > now_s and (file.uploaded or pending) else None

    def page(self, key_id: str, page: Page, *, now_s: int, purpose: str | None) -> tuple[list[File], bool]:
        """Files of this key, and whether there are more."""
        found: list[File] = []
        start = None if page.after is None else to_item(_key(key_id, page.after))
        while len(found) <= page.limit:
            request: dict[str, Any] = {} if start is None else {"ExclusiveStartKey": start}
            with reached(self._table):
                answer = self._client.query(
                    TableName=self._table,
                    KeyConditionExpression="#shelf = :shelf",
                    ExpressionAttributeNames={"#shelf": "shelf"},
                    ExpressionAttributeValues=to_item({":shelf": _shelf(key_id)}),
                    ScanIndexForward=not page.newest_first,
                    ConsistentRead=True,
                    Limit=page.limit + 1,
                    **request,
                )
            files = map(_file, map(from_item, answer["Items"]))
            found += [
                file for file in files if file.uploaded and file.expires_s > now_s and purpose in {None, file.purpose}
            ]
            if (start := answer.get("LastEvaluatedKey")) is None:
                break
        return found[: page.limit], len(found) > page.limit

    def delete(self, file: File) -> None:
        """Removes a file. Its entry goes first: nobody is to find one without bytes."""
        with reached(self._table):
            self._client.delete_item(TableName=self._table, Key=to_item(_key(file.key_id, file.file_id)))
        for name in {file.object_name, file.upload_name}:
            self.objects.delete(name)


def lives_until(created_s: int, life_s: int | None) -> int:
    """When a file is forgotten that is to live for ``life_s``."""
    return created_s + (KEPT_DAYS * DAY_S if life_s is None else life_s)


def _shelf(key_id: str) -> str:
    return f"files#{key_id}"


def _key(key_id: str, file_id: str) -> dict[str, str]:
    return {"shelf": _shelf(key_id), "entry": file_id}


def _file(values: dict[str, Any]) -> File:
    return File(
        key_id=values["shelf"].removeprefix("files#"),
        file_id=values["entry"],
        filename=values["filename"],
        purpose=values["purpose"],
        size_bytes=values["size_bytes"],
        created_s=values["created_s"],
        expires_s=values["created_s"] + values["lives_s"],
        uploaded=not values.get("pending", False),
        kept_as=values.get("kept_as"),
    )
