"""Bytes in S3: whole, in parts, as a stream, and by URLs for those who come without us.

An object's name begins with how long it is kept, which is what the bucket's lifecycle rules go by. All calls block, and
raise :class:`~naru.errors.StoreUnavailableError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from naru.stored import reached

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

CHUNK_BYTES = 1 << 20
PART_BYTES = 8 << 20  # S3 takes parts of 5 MB and more
# A day more than a file may live: a batch may still be reading what has just expired.
_KEPT_DAYS = (2, 8, 31)
URL_LIFE_S = 3600
# Who may not list a bucket is told 403 about an object that is not there. 412: it has another ETag; 416: it is shorter.
_NOT_THAT = frozenset({403, 404, 412, 416})


class MissingObjectError(Exception):
    """There is no such object, or it is not the one that was meant."""


@dataclass(frozen=True, slots=True)
class ObjectState:
    """An object as it lies there now."""

    size_bytes: int
    etag: str


def object_name(key_id: str, name: str, *, life_s: int) -> str:
    """Where the bytes of a file lie that is to live for ``life_s``."""
    days = next((days for days in _KEPT_DAYS if life_s <= (days - 1) * 86_400), _KEPT_DAYS[-1])
    return f"{days}-days/{key_id}/{name}"


class Objects:
    """The bucket; its client is made when it is first needed."""

    def __init__(self, new_client: Callable[[], S3Client], bucket: str) -> None:
        self._new_client = new_client
        self._bucket = bucket
        self._made: S3Client | None = None

    def put(self, name: str, content: bytes) -> None:
        with reached(name):
            self._s3.put_object(Bucket=self._bucket, Key=name, Body=content)

    def state(self, name: str) -> ObjectState | None:
        """Its size and its ETag; None for no object."""
        with reached(name):
            try:
                found = self._meant(name, lambda: self._s3.head_object(Bucket=self._bucket, Key=name))
            except MissingObjectError:
                return None
        return ObjectState(found["ContentLength"], found["ETag"])

    def size(self, name: str) -> int | None:
        """How many bytes there are; None for no object."""
        state = self.state(name)
        return None if state is None else state.size_bytes

    def read(self, name: str, *, offset: int = 0, length: int | None = None, etag: str | None = None) -> bytes:
        """All of it, or ``length`` bytes from ``offset`` on, of the object with that ETag if one is given. Raises
        :class:`MissingObjectError` besides.
        """
        part = {} if length is None else {"Range": f"bytes={offset}-{offset + length - 1}"}
        with reached(name):
            return self._open(name, part, etag).read()  # type: ignore[no-any-return]

    def stream(self, name: str, *, etag: str | None = None) -> Iterator[bytes]:
        """All of it, in pieces. Raises :class:`MissingObjectError` besides."""
        with reached(name):
            yield from self._open(name, {}, etag).iter_chunks(CHUNK_BYTES)

    def copy(self, name: str, to: str, *, etag: str) -> None:
        """Copies the object with that ETag, within S3. Raises :class:`MissingObjectError` besides."""
        source: Any = {"Bucket": self._bucket, "Key": name}
        with reached(name):
            self._meant(
                name,
                lambda: self._s3.copy_object(Bucket=self._bucket, Key=to, CopySource=source, CopySourceIfMatch=etag),
            )

    def delete(self, name: str) -> None:
        """Removes it, if it is there."""
        with reached(name):
            self._s3.delete_object(Bucket=self._bucket, Key=name)

    def put_url(self, name: str, *, size_bytes: int) -> str:
        """A URL to which exactly so many bytes may be PUT, for an hour."""
        request = {"Bucket": self._bucket, "Key": name, "ContentLength": size_bytes}
        return self._s3.generate_presigned_url("put_object", Params=request, ExpiresIn=URL_LIFE_S, HttpMethod="PUT")

    def get_url(self, name: str) -> str:
        """A URL from which it can be read, for an hour."""
        request = {"Bucket": self._bucket, "Key": name}
        return self._s3.generate_presigned_url("get_object", Params=request, ExpiresIn=URL_LIFE_S)

    def writer(self, name: str) -> Writer:
        """For an object of unknown size."""
        return Writer(self._s3, self._bucket, name)

    def _open(self, name: str, part: dict[str, Any], etag: str | None) -> Any:
        request: Any = {"Bucket": self._bucket, "Key": name, **part} | ({} if etag is None else {"IfMatch": etag})
        return self._meant(name, lambda: self._s3.get_object(**request))["Body"]

    def _meant(self, name: str, call: Callable[[], Any]) -> Any:
        """What a call answers, where there is the object that it means."""
        from botocore.exceptions import ClientError

        try:
            return call()
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in _NOT_THAT:
                raise MissingObjectError(name) from error
            raise

    @property
    def _s3(self) -> S3Client:
        if self._made is None:
            self._made = self._new_client()
        return self._made


class Writer:
    """Writes an object part by part, so that no more than one part is in memory. Nothing is there until :meth:`close`."""

    def __init__(self, client: S3Client, bucket: str, name: str) -> None:
        self._s3 = client
        self._where: Any = {"Bucket": bucket, "Key": name}
        self._name = name
        self._buffer = bytearray()
        self._upload_id: str | None = None
        self._parts: list[Any] = []
        self.size_bytes = 0

    def write(self, content: bytes) -> None:
        self._buffer += content
        self.size_bytes += len(content)
        if len(self._buffer) >= PART_BYTES:
            self._send_part()

    def close(self) -> None:
        """Makes the object."""
        with reached(self._name):
            if self._upload_id is None:
                self._s3.put_object(**self._where, Body=bytes(self._buffer))
                return
            if self._buffer:
                self._send_part()
            self._s3.complete_multipart_upload(
                **self._where, UploadId=self._upload_id, MultipartUpload={"Parts": self._parts}
            )

    def abort(self) -> None:
        """Leaves nothing behind; what is forgotten here the bucket's lifecycle removes."""
        if self._upload_id is not None:
            with reached(self._name):
                self._s3.abort_multipart_upload(**self._where, UploadId=self._upload_id)

    def _send_part(self) -> None:
        with reached(self._name):
            if self._upload_id is None:
                self._upload_id = self._s3.create_multipart_upload(**self._where)["UploadId"]
            number = len(self._parts) + 1
            sent = self._s3.upload_part(
                **self._where, UploadId=self._upload_id, PartNumber=number, Body=bytes(self._buffer)
            )
        self._parts.append({"PartNumber": number, "ETag": sent["ETag"]})
        self._buffer.clear()
