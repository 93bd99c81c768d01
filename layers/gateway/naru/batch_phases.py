"""What happens to a batch before its lines are run and after: checking, dividing, finishing. Calls block.

Each step may be taken twice, or by two at once: what is written is the same, and the conditional write at its end lets
one through.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from naru.batch_budget import BatchBudget, WorstCase
from naru.batch_input import Checked, check, write_plan
from naru.batch_progress import Progress
from naru.batch_queue import BatchQueue, Message, Notifier
from naru.batch_reader import BatchReader
from naru.batch_store import Batch, BatchStore
from naru.batches_api import batch_object
from naru.catalog import Catalog
from naru.file_store import File, FileStore, lives_until
from naru.objects import MissingObjectError
from naru.stored import created_ms, file_id_of_batch

logger = logging.getLogger(__name__)

_TOKENS = ("prompt", "cached", "completion", "reasoning")
_WAIT_S = 3.0
# A batch of which nothing was heard for so long has lost its messages, or those who work on it wait for a limit. Its
# messages are sent anew then, and the old ones are void.
_SILENT_S = 3600
_UNCHECKED_S = 300


class Phases:
    """Takes batches from one phase to the next."""

    def __init__(
        self,
        *,
        store: BatchStore,
        progress: Progress,
        files: FileStore,
        reader: BatchReader,
        queue: BatchQueue,
        notifier: Notifier,
        budget: BatchBudget,
        range_lines: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._progress = progress
        self._files = files
        self._reader = reader
        self._queue = queue
        self._notifier = notifier
        self._budget = budget
        self._range_lines = range_lines
        self._clock = clock

    # ── Before ─────────────────────────────────────────────────────────────────────────────────────────────

    def check(self, batch: Batch, catalog: Catalog) -> None:
        """Reads the input; the batch fails, or its ranges are sent to the workers."""
        if batch.phase == "validating":
            batch = self._checked(batch, catalog)
        if batch.phase == "in_progress" and not batch.values.get("sent"):
            self.send_ranges(batch)
        if batch.phase == "cancelling":
            self._queue.send([Message("finish", batch.key_id, batch.batch_id)])
        if batch.phase == "failed":
            self._tell(batch)

    def _checked(self, batch: Batch, catalog: Catalog) -> Batch:
        began_s = time.monotonic()
        try:
            found, errors = self._examined(batch, catalog)
        except MissingObjectError:
            message = "The input file is not there any more, or has changed since the batch was submitted."
            errors = [{"code": "invalid_input_file", "message": message}]
        facts = {"batch_id": batch.batch_id, "errors": len(errors), "took_s": round(time.monotonic() - began_s, 3)}
        if errors:
            logger.info("batch refused", extra=facts)
            self._store.fail(batch, errors, now_s=self._now_s())
        else:
            self._reader.keep_plan(batch, write_plan(found.ranges))
            started = self._store.start(
                batch, model=found.model, lines=found.lines, ranges=len(found.ranges), now_s=self._now_s()
            )
            logger.info("batch checked", extra=facts | {"lines": found.lines, "started": started})
        return self._read(batch)

    def _examined(self, batch: Batch, catalog: Catalog) -> tuple[Checked, list[dict[str, Any]]]:
        chunks = self._files.objects.stream(batch.input_object, etag=batch.input_etag)
        if not batch.values.get("check_budget"):
            found = check(chunks, models=catalog.models, range_lines=self._range_lines)
            return found, found.errors
        worst = WorstCase(catalog)
        found = check(chunks, models=catalog.models, range_lines=self._range_lines, each=worst.add)
        refusal = self._budget.refusal(batch.key_id, worst.pico_usd)
        return found, found.errors or ([refusal] if refusal else [])

    def send_ranges(self, batch: Batch, *, generation: int = 0) -> None:
        """Puts a message into the queue for every range that has not ended."""
        ended = {i for i, state in self._progress.range_states(batch.batch_id, consistent=True).items() if state.ended}
        messages = [
            Message("run", batch.key_id, batch.batch_id, generation, of)
            for of in self._reader.plan(batch)
            if of.index not in ended
        ]
        self._queue.send(messages)
        self._store.set(batch, sent=True)

    # ── After ──────────────────────────────────────────────────────────────────────────────────────────────

    def finish(self, batch: Batch) -> float | None:
        """Writes the files of a batch whose lines have ended, were cancelled, or have run out of time.

        The seconds to wait where somebody is still at work on it; None if there is nothing left to do.
        """
        if batch.phase == "in_progress":
            if batch.ranges_ended < batch.ranges and self._now_s() < batch.deadline_s:
                return None
            ending = "completed" if batch.ranges_ended == batch.ranges else "expired"
            self._store.finalize(batch, ending=ending, now_s=self._now_s())
            batch = self._read(batch)
        if batch.phase in {"finalizing", "cancelling"}:
            if (wait_s := self._still_at_work_s(batch)) is not None:
                return wait_s
            batch = self._finished(batch)
        if batch.has_ended:
            self._tell(batch)
        return None

    def _still_at_work_s(self, batch: Batch) -> float | None:
        """Lines that are on their way are paid for, so their answers are waited for; a dead worker's lease runs out."""
        now_ms = self._clock() * 1000
        states = self._progress.range_states(batch.batch_id, consistent=True).values()
        leases_s = [(state.until_ms - now_ms) / 1000 for state in states if not state.ended and state.until_ms > now_ms]
        return min(_WAIT_S, max(leases_s) + 0.1) if leases_s else None

    def _finished(self, batch: Batch) -> Batch:
        ending = "cancelled" if batch.phase == "cancelling" else str(batch.values["ending"])
        changes: dict[str, Any] = {f"{ending}_at": self._now_s()}
        files: list[File] = []
        if batch.ranges:
            written, files = self._write_files(batch, unrun=f"batch_{ending}")
            changes |= written
        # Of two who have written files, one makes them the batch's, together with what they add up to.
        if self._store.end(batch, ending, changes, [self._files.entry(file) for file in files]):
            counts = {"completed": changes.get("completed", 0), "failed": changes.get("failed", 0)}
            facts = {"batch_id": batch.batch_id, "key_id": batch.key_id, "status": ending, **counts}
            logger.info("batch ended", extra=facts)
        return self._read(batch)

    def _write_files(self, batch: Batch, *, unrun: str) -> tuple[dict[str, Any], list[File]]:
        """Puts every line into one of two files, without holding more than a part of them in memory; what they sum up
        to, and those that hold anything. Each time they are other files, so that two who write do not mix.
        """
        attempt = secrets.token_hex(8)
        files = {name: self._file_of(batch, name, attempt) for name in ("output", "error")}
        counts = {"output": 0, "error": 0}
        tokens = dict.fromkeys(_TOKENS, 0)
        states = self._progress.range_states(batch.batch_id, consistent=True)
        with ExitStack() as undo:
            writers = {name: self._files.objects.writer(file.object_name) for name, file in files.items()}
            for writer in writers.values():
                undo.callback(writer.abort)
            for of in self._reader.plan(batch):
                # What was never run of a batch whose ranges have all ended is a range's own affair.
                for line in self._reader.ended_lines(batch, of, states.get(of.index), unrun=unrun):
                    name = "output" if line.completed else "error"
                    writers[name].write(line.content + b"\n")
                    counts[name] += 1
                    for kind, count in zip(_TOKENS, line.tokens or (), strict=False):
                        tokens[kind] += count
            made = {name: file for name, file in files.items() if counts[name]}
            for name, file in made.items():
                writers[name].close()
                made[name] = replace(file, size_bytes=writers[name].size_bytes)
            undo.pop_all()
        ids = {f"{name}_file_id": file.file_id for name, file in made.items()}
        return {"completed": counts["output"], "failed": counts["error"], "tokens": tokens, **ids}, [*made.values()]

    def _file_of(self, batch: Batch, name: str, attempt: str) -> File:
        at_s = batch.values.get("finalizing_at") or batch.values["cancelling_at"]
        return File(
            key_id=batch.key_id,
            file_id=file_id_of_batch(batch.batch_id, f"{name} {attempt}", at_ms=created_ms(batch.batch_id)),
            filename=f"{batch.batch_id}_{name}.jsonl",
            purpose="batch_output",
            size_bytes=0,
            created_s=at_s,
            expires_s=lives_until(at_s, batch.values.get("output_life_s")),
        )

    def _tell(self, batch: Batch) -> None:
        """Publishes an end, at least once."""
        if not batch.values.get("told"):
            self._notifier.tell(batch_object(batch))
            self._store.set(batch, told=True)

    # ── From time to time ──────────────────────────────────────────────────────────────────────────────────

    def tend(self) -> dict[str, int]:
        """Looks after all batches that have not ended: what is due and was not done is done; how many of what."""
        done = {"open": 0, "checked": 0, "finished": 0, "sent_anew": 0}
        for key_id, batch_id in list(self._store.open_batches()):
            done["open"] += 1
            if (batch := self._store.get(key_id, batch_id)) is None:
                continue
            now_s, silent_s = self._now_s(), self._now_s() - int(batch.values["touched_s"])
            overdue = now_s >= batch.deadline_s or batch.ranges_ended == batch.ranges
            if batch.phase == "validating" and silent_s > _UNCHECKED_S:
                self._store.set(batch, touched_s=now_s)
                self._queue.send([Message("check", key_id, batch_id)])
                done["checked"] += 1
            elif batch.phase in {"finalizing", "cancelling"} or (batch.phase == "in_progress" and overdue):
                self._queue.send([Message("finish", key_id, batch_id)])
                done["finished"] += 1
            elif batch.phase == "in_progress" and silent_s > _SILENT_S:
                generation = batch.generation + 1
                if self._store.set(batch, generation=generation, touched_s=now_s):
                    self.send_ranges(batch, generation=generation)
                    done["sent_anew"] += 1
        return done

    def _read(self, batch: Batch) -> Batch:
        read = self._store.get(batch.key_id, batch.batch_id)
        assert read is not None, "a batch outlives its work"  # noqa: S101
        return read

    def _now_s(self) -> int:
        return int(self._clock())
