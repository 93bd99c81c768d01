"""The Files and Batches API as the command calls it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

import httpx

from naru.cli.output import CommandError
from naru.cli.target import Target

_TIMEOUT_S = 35.0
# What surely fits through API Gateway as a form; more goes to S3 straight away.
_FORM_BYTES = 4_000_000
_CHUNK_BYTES = 1 << 18
_TRIES = 4

Tell = Callable[[int], None]
"""Of so many more bytes that are done."""


class BatchClient:
    """Calls one gateway; a context manager. All methods raise :class:`~naru.cli.output.CommandError` with what it says about a failure."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._http = httpx.Client(
            base_url=target.base_url, headers={"Authorization": f"Bearer {target.key}"}, timeout=_TIMEOUT_S
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def upload(self, file: Path, size_bytes: int, tell: Tell) -> str:
        """Uploads an input file and returns its id, by the way that its size needs."""
        if size_bytes <= _FORM_BYTES:
            with file.open("rb") as content:
                answer = self._send(
                    "POST", "files", data={"purpose": "batch"}, files={"file": (file.name, content.read())}
                )
            tell(size_bytes)
            return str(self._read(answer)["id"])
        asked = {"filename": file.name, "bytes": size_bytes, "purpose": "batch"}
        upload = self.call("POST", "uploads/presigned", asked)
        self._put(str(upload["url"]), file, size_bytes, tell)
        return str(self.call("POST", f"uploads/{upload['id']}/complete")["id"])

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None, **query: Any) -> dict[str, Any]:
        """One call; what is safe to repeat is repeated when the network or the gateway fails."""
        for attempt in range(_TRIES - 1 if method == "GET" else 0):
            with suppress(_UnreachableError):
                answer = self._send(method, path, json=body, params=query)
                # Who watches a batch for hours meets a 503, or API Gateway's 429, sooner or later.
                if not (answer.is_server_error or answer.status_code == httpx.codes.TOO_MANY_REQUESTS):
                    return self._read(answer)
            time.sleep(2.0**attempt)
        return self._read(self._send(method, path, json=body, params=query))

    def find(self, path: str) -> dict[str, Any] | None:
        """What a GET answers; None where there is nothing."""
        try:
            return self.call("GET", path)
        except _NotFoundError:
            return None

    def download(self, file_id: str, into: BinaryIO) -> int:
        """Writes a file's content and returns its size."""
        size_bytes = 0
        try:
            # Larger ones are redirected to S3, without the API key.
            with self._http.stream("GET", f"/files/{file_id}/content", follow_redirects=True) as answer:
                if not answer.is_success:
                    answer.read()
                    self._read(answer)
                for chunk in answer.iter_bytes(_CHUNK_BYTES):
                    size_bytes += into.write(chunk)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        return size_bytes

    def _put(self, url: str, file: Path, size_bytes: int, tell: Tell) -> None:
        for attempt in range(_TRIES):
            sent = 0

            def pieces() -> Iterator[bytes]:
                nonlocal sent
                with file.open("rb") as content:
                    while piece := content.read(_CHUNK_BYTES):
                        yield piece
                        sent += len(piece)
                        tell(len(piece))

            try:
                answer = httpx.put(url, content=pieces(), headers={"Content-Length": str(size_bytes)}, timeout=120)
            except httpx.HTTPError as error:
                failure = f"{type(error).__name__}: {error}"
            else:
                if answer.is_success:
                    return
                failure = f"S3 answers {answer.status_code}"
            tell(-sent)
            if attempt < _TRIES - 1:
                time.sleep(2.0**attempt)
        raise CommandError(f"the upload of {file} failed {_TRIES} times ({failure}); try again")

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            return self._http.request(method, f"/{path}", **request)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _read(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            said = answer.json()
        except ValueError:
            said = None
        if answer.is_success and isinstance(said, dict):
            return said
        refusal = said.get("error") if isinstance(said, dict) else None
        if isinstance(refusal, dict) and isinstance(refusal.get("message"), str):
            kind = _NotFoundError if refusal.get("code") == "not_found" else CommandError
            raise kind(str(refusal["message"]))
        raise CommandError(
            f"{answer.url} answers {answer.status_code} with something that is no gateway of Naru's; the base URL ends in "
            f"/v1 and is from {self._target.source}"
        )

    def _unreachable(self, error: httpx.HTTPError) -> CommandError:
        return _UnreachableError(
            f"cannot reach {self._target.base_url} ({error or type(error).__name__}); is the gateway there? The address "
            f"is from {self._target.source}"
        )


class _NotFoundError(CommandError):
    """The gateway has no such object."""


class _UnreachableError(CommandError):
    """The gateway did not answer."""
