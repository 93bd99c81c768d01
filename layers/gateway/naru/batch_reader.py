"""The lines of a batch with what has become of them: for its files, and for who reads them one by one. Calls block."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from naru.batch_input import LineError, lines_of, parse_line, read_plan
from naru.batch_progress import Progress, Range, RangeState
from naru.batch_results import gave_up, not_run, pending_object, result_object, unpack
from naru.batch_store import Batch
from naru.objects import MissingObjectError, Objects, object_name

logger = logging.getLogger(__name__)

_UNRUN = {"expired": "batch_expired", "cancelled": "batch_cancelled", "cancelling": "batch_cancelled"}


@dataclass(frozen=True, slots=True)
class Line:
    """The end of one request: its line in one of the files, and what it used."""

    index: int
    completed: bool
    content: bytes
    tokens: tuple[int, int, int, int] | None
    """Prompt, cached, completion and reasoning tokens."""


class BatchReader:
    """Reads what the workers have stored."""

    def __init__(self, progress: Progress, objects: Objects) -> None:
        self._progress = progress
        self._objects = objects

    def plan(self, batch: Batch) -> list[Range]:
        """The ranges of a batch that was checked."""
        return read_plan(self._objects.read(plan_name(batch)))

    def keep_plan(self, batch: Batch, content: bytes) -> None:
        self._objects.put(plan_name(batch), content)

    def input_lines(self, batch: Batch, of: Range) -> list[tuple[int, bytes]]:
        """The requests of a range, with their indexes.

        Raises :class:`~naru.objects.MissingObjectError` where the input has been deleted, or is not what was checked.
        """
        try:
            content = self._objects.read(batch.input_object, offset=of.offset, length=of.length, etag=batch.input_etag)
            return lines_of(content, of)
        except ValueError as error:
            raise MissingObjectError(batch.input_object) from error

    def ended_lines(self, batch: Batch, of: Range, state: RangeState | None, *, unrun: str) -> Iterator[Line]:
        """All lines of a range, in order. Those that nobody has run end as the range did, or else as ``unrun``.

        One that was called for and has no result gets that end as its result, so that it is the same for whoever asks
        later, and for a worker that was thought dead and brings an answer after all.
        """
        code = (state.end_code if state is not None else None) or unrun
        index = of.first
        names: dict[int, str] | None = None
        for found in (*self._progress.called(batch.batch_id, of), {"index": of.first + of.count}):
            is_last = "entry" not in found
            if names is None and (index < found["index"] or not ("outcome" in found or is_last)):
                names = self._custom_ids(batch, of)
            while index < found["index"]:
                content = not_run(batch.batch_id, index, (names or {}).get(index), code)
                yield Line(index, completed=False, content=content, tokens=None)
                index += 1
            if not is_last:
                ended = found if "outcome" in found else self._give_up(batch, found, (names or {}).get(index), code)
                tokens = tuple(ended["tokens"]) if "tokens" in ended else None
                yield Line(index, ended["outcome"] == "completed", self._content(ended), tokens)
                index += 1

    def _give_up(self, batch: Batch, line: dict[str, Any], custom_id: str | None, code: str) -> dict[str, Any]:
        """A line that was called for, as it ends now, or has ended meanwhile."""
        index = line["index"]
        facts = {"batch_id": batch.batch_id, "line": index, "lost_request_id": line.get("request_id"), "code": code}
        logger.warning("line ends without a result", extra=facts)
        end = gave_up(batch.batch_id, index, custom_id, code)
        self._progress.store(batch, index, request_id=batch.batch_id, result=end, object_name=None)
        (ended,) = self._progress.results(batch.batch_id, Range(0, 0, 0, 0, index, 1))
        return ended

    def results(self, batch: Batch, begin: int, count: int) -> list[dict[str, Any]]:
        """So many lines from an index on, as they are now."""
        end = min(begin + count, batch.values.get("lines", 0))
        if begin >= end:
            return []
        states = self._progress.range_states(batch.batch_id)
        shown: list[dict[str, Any]] = []
        for of in self.plan(batch):
            if of.first + of.count <= begin or of.first >= end:
                continue
            first, last = max(begin, of.first), min(end, of.first + of.count)
            part = Range(of.index, of.offset, of.length, of.line, first, last - first)
            shown += self._shown(batch, of, part, states.get(of.index))
        return shown

    def _shown(self, batch: Batch, of: Range, part: Range, state: RangeState | None) -> list[dict[str, Any]]:
        found = {line["index"]: line for line in self._progress.results(batch.batch_id, part)}
        indexes = range(part.first, part.first + part.count)
        names = self._custom_ids(batch, of) if len(found) < part.count else {}
        code = (state.end_code if state is not None else None) or _UNRUN.get(batch.phase)
        shown = []
        for index in indexes:
            if index in found:
                shown.append(result_object(index, self._content(found[index])))
                continue
            if code is None:
                shown.append(pending_object(batch.batch_id, index, names.get(index)))
            else:
                shown.append(result_object(index, not_run(batch.batch_id, index, names.get(index), code)))
        return shown

    def _custom_ids(self, batch: Batch, of: Range) -> dict[int, str]:
        """Of the requests of a range; none where the input has been deleted, as it may be once the batch has ended, or
        cannot be read any more. A batch must end all the same.
        """
        names: dict[int, str] = {}
        with suppress(MissingObjectError):
            for index, line in self.input_lines(batch, of):
                with suppress(LineError):
                    names[index] = parse_line(line).custom_id
        return names

    def _content(self, found: dict[str, Any]) -> bytes:
        content = self._objects.read(found["object_name"]) if "object_name" in found else found["content"]
        return unpack(bytes(content))


def plan_name(batch: Batch) -> str:
    """Where the ranges of a batch are kept."""
    return object_name(batch.key_id, f"{batch.batch_id}/plan.json", life_s=30 * 86_400)


def result_name(batch: Batch, index: int, request_id: str) -> str:
    """Where a result is kept that does not fit into the table. Each request has a place of its own, so that a late one
    writes over nobody's.
    """
    return object_name(batch.key_id, f"{batch.batch_id}/{index:08}-{request_id}", life_s=30 * 86_400)
