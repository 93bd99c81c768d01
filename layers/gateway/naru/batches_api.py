"""OpenAI's Batches API, between HTTP and the stores: what a client may send, and what it is shown."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from naru.batch_input import ENDPOINT, input_of
from naru.batch_progress import Progress
from naru.batch_queue import BatchQueue, Message
from naru.batch_reader import BatchReader
from naru.batch_results import usage_object
from naru.batch_store import Batch, BatchStore
from naru.errors import ConflictError, InvalidRequestError, NotFoundError, StoreUnavailableError
from naru.file_store import File
from naru.files_api import MAX_ANSWER_BYTES, Files, life_s_of, list_object, parse_page, refuse_unknown
from naru.objects import MissingObjectError
from naru.stored import is_id, new_batch_id
from naru.wire import compact_json, parse_json_object

logger = logging.getLogger(__name__)

MAX_INLINE = 500

_WINDOW = "24h"
_FIELDS = (
    "input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after", "requests", "check_budget",
)  # fmt: skip
_INLINE_FIELDS = ("custom_id", "prompt", "messages", "system", "temperature", "max_tokens", "model")
_TIMES = (
    "in_progress_at",
    "expires_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)
_PAGE, _MAX_PAGE = 20, 100


class Batches:
    """What a client can do with batches. ``key_id`` is whose they are; every call blocks.

    All methods raise :class:`~naru.errors.NaruError`.
    """

    def __init__(
        self,
        *,
        store: BatchStore,
        progress: Progress,
        files: Files,
        reader: BatchReader,
        queue: BatchQueue,
        window_s: int,
    ) -> None:
        self._store = store
        self._progress = progress
        self._files = files
        self._reader = reader
        self._queue = queue
        self._window_s = window_s

    def create(self, key_id: str, body: str | bytes | None, *, models: Sequence[str]) -> dict[str, Any]:
        """Submits a batch: of a file, or of ``requests`` that come with it. ``models`` are those of the catalog, the
        first for requests that name none.
        """
        asked = parse_json_object(body)
        refuse_unknown(asked, _FIELDS)
        values: dict[str, Any] = {}
        if asked.get("metadata") is not None:
            values["metadata"] = _metadata(asked["metadata"])
        if asked.get("output_expires_after") is not None:
            values["output_life_s"] = life_s_of(asked["output_expires_after"], "output_expires_after")
        if asked.get("check_budget") is not None:
            values["check_budget"] = _boolean(asked, "check_budget")
        file = self._input(key_id, asked, models)
        now_ms = time.time_ns() // 10**6
        values |= {
            "endpoint": ENDPOINT,
            "input_file_id": file.file_id,
            "input_object": file.object_name,
            # What is checked and run is what lies there now.
            **({} if (etag := self._files.etag(file)) is None else {"input_etag": etag}),
            "created_at": now_ms // 1000,
            "expires_at": now_ms // 1000 + self._window_s,
        }
        batch = self._store.create(key_id, new_batch_id(at_ms=now_ms), values, now_s=now_ms // 1000)
        try:
            self._queue.send([Message("check", key_id, batch.batch_id)])
        except StoreUnavailableError as error:
            # The batch is there, and a retry would make another one. It is found on the shelf of those that are open, as
            # if this process had died here, and gets its message some minutes later.
            logger.warning("the message of a new batch is not sent", extra={"batch_id": batch.batch_id, **error.log})
        return batch_object(batch)

    def _input(self, key_id: str, asked: Mapping[str, Any], models: Sequence[str]) -> File:
        if asked.get("requests") is not None:
            if asked.get("input_file_id") is not None:
                raise InvalidRequestError("Send either 'requests' or 'input_file_id'.", param="requests")
            return self._files.create_inline(key_id, input_of(_inline(asked["requests"], models)))
        for name, expected in (("input_file_id", None), ("endpoint", ENDPOINT), ("completion_window", _WINDOW)):
            given = asked.get(name)
            if given is None:
                raise InvalidRequestError(
                    f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
                )
            if expected is not None and given != expected:
                raise InvalidRequestError(
                    f"Invalid value for '{name}': {str(given)[:64]!r}. It must be {expected!r}.",
                    param=name,
                    code="invalid_value",
                )
        try:
            return self._files.find(key_id, str(asked["input_file_id"]))
        except NotFoundError as error:
            raise InvalidRequestError(error.message, param="input_file_id", code="invalid_input_file") from None

    def retrieve(self, key_id: str, batch_id: str) -> dict[str, Any]:
        return self._shown(self.find(key_id, batch_id))

    def page(self, key_id: str, query: Mapping[str, str]) -> dict[str, Any]:
        batches, has_more = self._store.page(key_id, parse_page(query, most=_MAX_PAGE, usual=_PAGE))
        return list_object([self._shown(batch) for batch in batches], has_more=has_more)

    def cancel(self, key_id: str, batch_id: str) -> dict[str, Any]:
        """Lets no line begin any more. Again, if need be; a batch that has ended cannot be."""
        batch = self.find(key_id, batch_id)
        if self._store.cancel(batch, now_s=_now_s()) or self.find(key_id, batch_id).phase == "cancelling":
            self._queue.send([Message("finish", key_id, batch_id)])
        elif (phase := self.find(key_id, batch_id).phase) != "cancelled":
            raise ConflictError(f"Cannot cancel a batch with status '{phase}'.", code="invalid_batch_status")
        return self.retrieve(key_id, batch_id)

    def results(self, key_id: str, batch_id: str, query: Mapping[str, str]) -> dict[str, Any]:
        """Some of its lines in the order of the requests: after which index, and how many (20, at most 100)."""
        batch = self.find(key_id, batch_id)
        after, limit = query.get("after") or "-1", query.get("limit") or str(_PAGE)
        if not re.fullmatch(r"-1|[0-9]{1,6}", after):
            raise InvalidRequestError("Invalid value for 'after': it must be the index of a result.", param="after")
        if not re.fullmatch(r"[0-9]{1,3}", limit) or not 1 <= int(limit) <= _MAX_PAGE:
            raise InvalidRequestError(f"Invalid value for 'limit': 1 to {_MAX_PAGE}.", param="limit")
        begin = int(after) + 1
        try:
            data = _that_fit(self._reader.results(batch, begin, int(limit)))
        except MissingObjectError:
            raise NotFoundError("The results of this batch are not kept any more.", param="id") from None
        end = begin + len(data)
        return {
            "object": "list",
            "data": data,
            "first_id": str(begin) if data else None,
            "last_id": str(end - 1) if data else None,
            "has_more": end < batch.values.get("lines", 0),
        }

    def delete_file(self, key_id: str, file_id: str) -> dict[str, Any]:
        """Deletes a file, unless a batch still reads it."""
        self._files.find(key_id, file_id, pending=True)
        if self._store.needs(file_id):
            raise ConflictError(
                "The file is the input of a batch that has not ended. Cancel the batch first, or wait for its end.",
                param="id",
                code="file_in_use",
            )
        return self._files.delete(key_id, file_id)

    def find(self, key_id: str, batch_id: str) -> Batch:
        """A batch of this key's, and of nobody else's."""
        batch = self._store.get(key_id, batch_id) if is_id(batch_id) else None
        if batch is None:
            raise NotFoundError(f"No batch found with id '{batch_id[:64]}'.", param="id")
        return batch

    def _shown(self, batch: Batch) -> dict[str, Any]:
        completed, failed = self._counts(batch)
        return batch_object(batch, completed=completed, failed=failed)

    def _counts(self, batch: Batch) -> tuple[int, int]:
        """Lines that are done, also those of ranges that are being worked on."""
        values = batch.values
        completed, failed = values.get("completed", 0), values.get("failed", 0)
        if batch.phase in {"in_progress", "cancelling"}:
            running = [state for state in self._progress.range_states(batch.batch_id).values() if not state.ended]
            completed += sum(state.completed for state in running)
            failed += sum(state.failed for state in running)
        return completed, failed


def _that_fit(data: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first results, at least one, that an answer can hold; the client asks for the others."""
    size_bytes = 0
    for i, result in enumerate(data):
        size_bytes += len(compact_json(result))
        if i and size_bytes > MAX_ANSWER_BYTES:
            return data[:i]
    return data


def batch_object(batch: Batch, *, completed: int | None = None, failed: int | None = None) -> dict[str, Any]:
    """A batch as OpenAI shows it."""
    values = batch.values
    return {
        "id": batch.batch_id,
        "object": "batch",
        "endpoint": values["endpoint"],
        "model": values.get("model"),
        "errors": {"object": "list", "data": [_error(error) for error in values["errors"]]}
        if "errors" in values
        else None,
        "input_file_id": values["input_file_id"],
        "completion_window": _WINDOW,
        "status": batch.phase,
        "output_file_id": values.get("output_file_id"),
        "error_file_id": values.get("error_file_id"),
        "created_at": values["created_at"],
        **{name: values.get(name) for name in _TIMES},
        "request_counts": {
            "total": values.get("lines", 0),
            "completed": values.get("completed", 0) if completed is None else completed,
            "failed": values.get("failed", 0) if failed is None else failed,
        },
        "usage": usage_object(values["tokens"]) if "tokens" in values else None,
        "metadata": values.get("metadata"),
    }


def _error(error: Mapping[str, Any]) -> dict[str, Any]:
    return {name: error.get(name) for name in ("code", "line", "message", "param")}


def _metadata(value: Any) -> dict[str, str]:
    if (
        not isinstance(value, dict)
        or len(value) > 16
        or any(not 1 <= len(name) <= 64 for name in value)
        or any(not isinstance(text, str) or len(text) > 512 for text in value.values())
    ):
        raise InvalidRequestError(
            "Invalid value for 'metadata': at most 16 pairs of strings, the names up to 64 characters long, the values up "
            "to 512.",
            param="metadata",
        )
    return value


def _boolean(asked: Mapping[str, Any], name: str) -> bool:
    if not isinstance(asked[name], bool):
        raise InvalidRequestError(f"Invalid type for '{name}': expected a boolean.", param=name, code="invalid_type")
    return bool(asked[name])


# ── Requests that come with the batch ──────────────────────────────────────────────────────────────────────


def _inline(requests: Any, models: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(requests, list) or not 1 <= len(requests) <= MAX_INLINE:
        raise InvalidRequestError(
            f"Invalid value for 'requests': an array of 1 to {MAX_INLINE} requests. For more, upload a file.",
            param="requests",
        )
    made = [_inline_request(request, i, models) for i, request in enumerate(requests)]
    seen: dict[str, int] = {}
    for i, (custom_id, body) in enumerate(made):
        if custom_id in seen:
            raise _inline_error(i, "custom_id", f"it is that of requests[{seen[custom_id]}]")
        if body["model"] != made[0][1]["model"]:
            raise _inline_error(i, "model", "all requests of a batch must be for the same model")
        seen[custom_id] = i
    return made


def _inline_request(request: Any, index: int, models: Sequence[str]) -> tuple[str, dict[str, Any]]:
    if not isinstance(request, dict):
        raise InvalidRequestError(f"Invalid value for 'requests[{index}]': it must be an object.", param="requests")
    refuse_unknown(request, _INLINE_FIELDS, within=f"requests[{index}]")
    custom_id = request.get("custom_id", f"request-{index}")
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= 512:
        raise _inline_error(index, "custom_id", "a string of 1 to 512 characters")
    prompt, messages, system = request.get("prompt"), request.get("messages"), request.get("system")
    if (prompt is None) == (messages is None):
        raise _inline_error(index, "prompt", "send either 'prompt' or 'messages'")
    if prompt is not None:
        if not isinstance(prompt, str):
            raise _inline_error(index, "prompt", "a string")
        messages = [{"role": "user", "content": prompt}]
    if not isinstance(messages, list) or not messages:
        raise _inline_error(index, "messages", "an array of messages")
    if system is not None:
        if not isinstance(system, str):
            raise _inline_error(index, "system", "a string")
        messages = [{"role": "system", "content": system}, *messages]
    model = request.get("model", models[0])
    if model not in models:
        raise _inline_error(index, "model", f"it does not exist here; there are {', '.join(models)}")
    options = {name: request[name] for name in ("temperature", "max_tokens") if request.get(name) is not None}
    return custom_id, {"model": model, "messages": messages, **options}


def _inline_error(index: int, name: str, what: str) -> InvalidRequestError:
    param = f"requests[{index}].{name}"
    return InvalidRequestError(f"Invalid value for '{param}': {what}.", param=param, code="invalid_value")


def _now_s() -> int:
    return int(time.time())
