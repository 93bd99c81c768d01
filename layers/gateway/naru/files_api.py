"""OpenAI's Files API, between HTTP and the store: what a client may send, and what it is shown."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from naru.errors import ConflictError, InvalidRequestError, NotFoundError, RequestTooLargeError
from naru.file_store import File, FileStore, Page, lives_until
from naru.multipart import parse_form
from naru.objects import URL_LIFE_S, MissingObjectError
from naru.stored import DAY_S, is_id, new_file_id
from naru.wire import parse_json_object

MAX_FILE_BYTES = 200 * 10**6
"""OpenAI's limit for the input of a batch."""
MAX_FORM_BYTES = 4_500_000
"""API Gateway encodes it in base64 (4/3), and Lambda takes 6 MB."""
MAX_ANSWER_BYTES = 3_000_000
"""Lambda's answer is JSON, in which a quote takes two bytes; beyond this the client is sent to S3."""

_PURPOSE = "batch"
_FORM_FIELDS = ("file", "purpose", "expires_after[anchor]", "expires_after[seconds]")
_UPLOAD_FIELDS = ("bytes", "filename", "purpose", "mime_type", "expires_after")
_MIN_LIFE_S, _MAX_LIFE_S = 3600, 2_592_000
_MAX_NAME = 255


class Files:
    """What a client can do with files. ``key_id`` is whose they are; every call blocks.

    All methods raise :class:`~naru.errors.NaruError`.
    """

    def __init__(self, store: FileStore) -> None:
        self._store = store

    def create(self, key_id: str, body: str | bytes | None, content_type: str | None) -> dict[str, Any]:
        """A file from a form, as SDKs send it."""
        if isinstance(body, str):
            body = body.encode()
        form = parse_form(body or b"", content_type)
        refuse_unknown(form, _FORM_FIELDS)
        for name in ("file", "purpose"):
            if name not in form:
                raise _missing(name)
        for name, part in form.items():
            if name == "file" and not part.filename:
                raise InvalidRequestError(
                    "Invalid type for 'file': expected a file with a filename, as 'curl -F file=@batch.jsonl' sends it.",
                    param="file",
                    code="invalid_type",
                )
            if name != "file" and part.filename is not None:
                raise InvalidRequestError(
                    f"Invalid type for '{name}': expected a value, but got a file instead.",
                    param=name,
                    code="invalid_type",
                )
        content = form["file"].content
        if len(content) > MAX_FORM_BYTES:
            raise too_large()
        life_s = None
        if "expires_after[seconds]" in form or "expires_after[anchor]" in form:
            anchor = form.get("expires_after[anchor]")
            seconds = form.get("expires_after[seconds]")
            text = seconds.text() if seconds else ""
            given = {
                "anchor": anchor.text() if anchor else None,
                "seconds": int(text) if re.fullmatch(r"[0-9]{1,10}", text) else text,
            }
            life_s = life_s_of(given, "expires_after")
        file = _new_file(key_id, form["file"].filename or "", form["purpose"].text(), len(content), life_s=life_s)
        return self._keep(file, content)

    def create_inline(self, key_id: str, content: bytes) -> File:
        """The input of a batch whose requests came with it."""
        file = _new_file(key_id, "requests.jsonl", _PURPOSE, len(content), life_s=None)
        self._keep(file, content)
        return file

    def _keep(self, file: File, content: bytes) -> dict[str, Any]:
        self._store.objects.put(file.object_name, content)
        self._store.put(file)
        return file_object(file)

    def find(self, key_id: str, file_id: str, *, pending: bool = False) -> File:
        """A file of this key's, and of nobody else's; with ``pending`` also one whose bytes have not come."""
        file = self._store.get(key_id, file_id, now_s=_now_s(), pending=pending) if is_id(file_id) else None
        if file is None:
            raise NotFoundError(f"No such File object: {file_id[:64]}", param="id")
        return file

    def retrieve(self, key_id: str, file_id: str) -> dict[str, Any]:
        return file_object(self.find(key_id, file_id))

    def page(self, key_id: str, query: Mapping[str, str]) -> dict[str, Any]:
        purpose = query.get("purpose") or None
        files, has_more = self._store.page(
            key_id, parse_page(query, most=10_000, usual=10_000), now_s=_now_s(), purpose=purpose
        )
        return list_object([file_object(file) for file in files], has_more=has_more)

    def delete(self, key_id: str, file_id: str) -> dict[str, Any]:
        file = self.find(key_id, file_id, pending=True)
        self._store.delete(file)
        if not file.uploaded:
            # Until its URL is over, bytes may still be put there.
            self._store.pending.end(key_id, file_id, now_s=_now_s(), until_s=file.created_s + URL_LIFE_S)
        return {"id": file_id, "object": "file", "deleted": True}

    def content(self, key_id: str, file_id: str) -> bytes | str:
        """Its bytes, if they are text that fits into an answer; else a URL from which they can be had."""
        file = self.find(key_id, file_id)
        if file.size_bytes <= MAX_ANSWER_BYTES:
            content = self._store.objects.read(file.object_name) if file.size_bytes else b""
            if _is_text(content):
                return content
        return self._store.objects.get_url(file.object_name)

    # ── What does not fit through API Gateway ──────────────────────────────────────────────────────────────

    def begin_upload(self, key_id: str, body: str | bytes | None) -> dict[str, Any]:
        """A place in S3 for a file, and how to put it there. A key has so many at once."""
        asked = parse_json_object(body)
        refuse_unknown(asked, _UPLOAD_FIELDS)
        for name in ("bytes", "filename", "purpose"):
            if asked.get(name) is None:
                raise _missing(name)
        size_bytes, filename = asked["bytes"], asked["filename"]
        if type(size_bytes) is not int or not 1 <= size_bytes <= MAX_FILE_BYTES:
            raise InvalidRequestError(
                f"Invalid value for 'bytes': the size of the file, an integer from 1 to {MAX_FILE_BYTES}.",
                param="bytes",
                code="invalid_value",
            )
        for name in ("filename", "mime_type"):
            if not isinstance(asked.get(name, ""), str | None):
                raise InvalidRequestError(
                    f"Invalid type for '{name}': expected a string.", param=name, code="invalid_type"
                )
        life_s = life_s_of(asked["expires_after"], "expires_after") if asked.get("expires_after") is not None else None
        file = replace(_new_file(key_id, filename, asked.get("purpose"), size_bytes, life_s=life_s), uploaded=False)
        self._store.pending.begin(key_id, file.file_id, size_bytes, now_s=_now_s(), until_s=file.created_s + DAY_S)
        self._store.put(file)
        return {
            "id": file.file_id,
            "object": "upload",
            "method": "PUT",
            "url": self._store.objects.put_url(file.object_name, size_bytes=size_bytes),
            "bytes": size_bytes,
            "next": f"POST /v1/uploads/{file.file_id}/complete when the bytes are there; the URL holds for an hour.",
        }

    def complete_upload(self, key_id: str, file_id: str) -> dict[str, Any]:
        """Makes a file of what was put there. Again, if need be.

        The file is a copy: the URL takes other bytes until its hour is over, and what is a file must not change.
        """
        file = self._store.get(key_id, file_id, now_s=_now_s(), pending=True) if is_id(file_id) else None
        if file is None:
            raise NotFoundError(f"No such upload: {file_id[:64]}", param="id")
        if not file.uploaded:
            file = self._completed(file)
        self._store.pending.end(key_id, file_id, now_s=_now_s())
        return file_object(file)

    def _completed(self, upload: File) -> File:
        objects = self._store.objects
        there = objects.state(upload.upload_name)
        if there is None or there.size_bytes != upload.size_bytes:
            found = "nothing" if there is None else f"{there.size_bytes} bytes"
            raise ConflictError(
                f"The upload is to have {upload.size_bytes} bytes, and there is {found}. PUT the whole file to the "
                "URL of the upload first.",
                code="upload_incomplete",
            )
        file = replace(upload, uploaded=True, kept_as=upload.copy_name(secrets.token_hex(4)))
        try:
            objects.copy(upload.upload_name, file.object_name, etag=there.etag)
        except MissingObjectError:
            raise ConflictError(
                "Other bytes came while the upload was being completed. Complete it again when all of them are there.",
                code="upload_incomplete",
            ) from None
        if not self._store.complete(file):
            first = self._store.get(upload.key_id, upload.file_id, now_s=_now_s())
            if first is None or first.kept_as != file.kept_as:
                objects.delete(file.object_name)
            if first is None:
                raise NotFoundError(f"No such upload: {upload.file_id[:64]}", param="id")
            file = first
        objects.delete(upload.upload_name)
        return file

    def etag(self, file: File) -> str | None:
        """Which bytes it has now."""
        state = self._store.objects.state(file.object_name)
        return None if state is None else state.etag


def file_object(file: File) -> dict[str, Any]:
    """A file as OpenAI shows it."""
    return {
        "id": file.file_id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": file.created_s,
        "expires_at": file.expires_s,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def list_object(data: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """A list as OpenAI shows it. Without ``has_more`` SDKs ask until a page is empty."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }


def parse_page(query: Mapping[str, str], *, most: int, usual: int) -> Page:
    """``after``, ``limit`` and ``order`` of a list.

    Raises :class:`~naru.errors.InvalidRequestError`.
    """
    limit, order, after = query.get("limit") or str(usual), query.get("order") or "desc", query.get("after") or None
    if not limit.isascii() or not limit.isdecimal() or not 1 <= int(limit[:9]) <= most:
        raise InvalidRequestError(f"Invalid value for 'limit': it must be a number from 1 to {most}.", param="limit")
    if order not in {"asc", "desc"}:
        raise InvalidRequestError("Invalid value for 'order': it must be asc or desc.", param="order")
    if after is not None and not is_id(after):
        raise InvalidRequestError("Invalid value for 'after': it must be the id of an object.", param="after")
    return Page(after, int(limit), newest_first=order == "desc")


def too_large() -> RequestTooLargeError:
    """What does not fit, and what does."""
    return RequestTooLargeError(
        f"The file is too large for this way: up to {MAX_FORM_BYTES // 10**5 / 10:g} MB. Up to "
        f"{MAX_FILE_BYTES // 10**6} MB: POST /v1/uploads/presigned with filename, bytes and purpose, PUT the file to the "
        "URL of the answer, then POST /v1/uploads/{id}/complete. 'naru batch submit FILE' does all of it."
    )


def life_s_of(value: Any, param: str) -> int:
    """How long a file is to be kept, of ``{"anchor": "created_at", "seconds": …}``.

    Raises :class:`~naru.errors.InvalidRequestError`.
    """
    if not isinstance(value, Mapping):
        raise InvalidRequestError(
            f'Invalid type for \'{param}\': expected an object, {{"anchor": "created_at", "seconds": 3600}}.',
            param=param,
            code="invalid_type",
        )
    refuse_unknown(value, ("anchor", "seconds"), within=param)
    if value.get("anchor") != "created_at":
        raise InvalidRequestError(
            f"Invalid value for '{param}.anchor': it must be 'created_at'.", param=param, code="invalid_value"
        )
    seconds = value.get("seconds")
    if type(seconds) is not int or not _MIN_LIFE_S <= seconds <= _MAX_LIFE_S:
        raise InvalidRequestError(
            f"Invalid value for '{param}.seconds': it must be from {_MIN_LIFE_S} (an hour) to {_MAX_LIFE_S} (30 days).",
            param=param,
            code="invalid_value",
        )
    return seconds


def refuse_unknown(given: Collection[str], known: Sequence[str], *, within: str = "") -> None:
    """Raises :class:`~naru.errors.InvalidRequestError` for a field that is not known: a misspelled one would be ignored."""
    unknown = next((name for name in given if name not in known), None)
    if unknown is None:
        return
    param = f"{within}.{unknown[:64]}" if within else unknown[:64]
    advice = f"There are: {', '.join(known)}."
    if not within and re.match(r"expires_after\W|expires_after$", unknown) and "expires_after[anchor]" in known:
        advice = "Send two fields: expires_after[anchor], which is created_at, and expires_after[seconds]."
    raise InvalidRequestError(f"Unknown parameter: '{param}'. {advice}", param=param, code="unknown_parameter")


def _new_file(key_id: str, filename: str, purpose: Any, size_bytes: int, *, life_s: int | None) -> File:
    if purpose != _PURPOSE:
        raise InvalidRequestError(
            f"Invalid value for 'purpose': {str(purpose)[:64]!r}. Naru takes files for batches: purpose 'batch'.",
            param="purpose",
            code="invalid_value",
        )
    if not 1 <= len(filename) <= _MAX_NAME:
        raise InvalidRequestError(
            f"Invalid value for 'filename': it must have 1 to {_MAX_NAME} characters.",
            param="filename",
            code="invalid_value",
        )
    now_ms = time.time_ns() // 10**6
    return File(
        key_id=key_id,
        file_id=new_file_id(at_ms=now_ms),
        filename=filename.encode("utf-8", "replace").decode(),
        purpose=_PURPOSE,
        size_bytes=size_bytes,
        created_s=now_ms // 1000,
        expires_s=lives_until(now_ms // 1000, life_s),
    )


def _missing(name: str) -> InvalidRequestError:
    return InvalidRequestError(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _now_s() -> int:
    return int(time.time())
