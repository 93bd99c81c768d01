"""Many lines at once, as many as the provider takes: one worker's share of a deployment, put to use.

The share comes from :meth:`naru.health.Health.hold` and changes while the worker runs. Ranges are opened one after the
other, when there are too few lines to fill the share, so that the last lines of one run beside the first of the next.
What cannot go on now is not waited for in a function that is paid by the second: its ranges are released, and said to be
left over, with the time after which to try again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence

from naru.batch_jobs import KEY_SHARE, Job, RangeRun, learn_limits
from naru.batch_lines import OPERATOR_WAIT_S, Line, Lines, Ran
from naru.batch_progress import LineState, Progress
from naru.batch_reader import BatchReader
from naru.batch_store import BatchStore
from naru.errors import AuthenticationError, PermissionDeniedError, StoreUnavailableError
from naru.health import Health, Share
from naru.keys import Proven
from naru.meter import Meters
from naru.objects import MissingObjectError

logger = logging.getLogger(__name__)

PATIENCE_S = 4.0
"""So long a worker waits for something to do."""
_NO_SHARE_WAIT_S = 20.0
"""Before a worker is paid again to ask for a share that it did not get."""
_LOOK_EVERY_S = 2.0
_RESERVE_PAUSE_S = 2.0
_MARGIN = 0.1
_SHORTS = 3
_BUDGET_WAIT_S = 15.0
_LONGEST_OPERATOR_WAIT_S = 300.0
_AHEAD = 0.3
"""So many lines more than slots are being let in, recorded or stored."""


class Pool:
    """Runs ranges of batches whose model lies at one deployment."""

    def __init__(
        self,
        *,
        deployment: str,
        worker: str,
        lines: Lines,
        progress: Progress,
        batches: BatchStore,
        reader: BatchReader,
        health: Health,
        meters: Meters,
        most_lines: int,
        lease_s: float,
        remaining_s: Callable[[], float],
        stop_s: float,
    ) -> None:
        self._deployment = deployment
        self._worker = worker
        self._lines = lines
        self._progress = progress
        self._batches = batches
        self._reader = reader
        self._health = health
        self._meters = meters
        self._most_lines = most_lines
        self._lease_s = lease_s
        self._remaining_s = remaining_s
        self._stop_s = stop_s
        self._ranges: list[RangeRun] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._share = Share(0, 0.0)
        self._share_due_s = -math.inf
        self._too_much: asyncio.Task[None] | None = None
        self._idle_since_s: float | None = None
        """Since when there was no share and nothing on its way."""

    @property
    def _most_on_their_way(self) -> int:
        """Some more than there are slots: only the call to the provider takes one."""
        slots = self._share.slots
        return slots + max(1, math.ceil(slots * _AHEAD)) if slots else 0

    async def run(self, ranges: Sequence[RangeRun]) -> None:
        """Runs them until each is over or left over."""
        self._ranges = list(ranges)
        try:
            while live := [run for run in self._ranges if run.is_live]:
                await self._look(live)
                await self._open_some()
                self._start()
                await self._close()
                await self._wait()
        finally:
            if self._too_much is not None:
                self._too_much.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)
            await self._health.let_go(self._deployment, holder=self._worker)

    # ── Looking ────────────────────────────────────────────────────────────────────────────────────────────

    async def _look(self, live: Sequence[RangeRun]) -> None:
        """What may have changed outside: the share, the batches."""
        now_s = time.monotonic()
        for job in {run.job for run in live}:
            if job.blocked_by is not None:
                await self._pause_for_all(job)
            if now_s - job.looked_s >= _LOOK_EVERY_S:
                is_first, job.looked_s = math.isinf(job.looked_s), now_s
                await self._look_at(job, is_first=is_first)
        waiting = sum(len(run.lines) if run.opened else run.of.count for run in live if run.end_code is None)
        # A refusal changes the share at once: who goes on with the old one sends what will be refused as well.
        is_due = now_s >= self._share_due_s or self._health.must_ask(self._deployment)
        if is_due and not self._stopping and (waiting or self._tasks):
            most = min(self._most_lines, sum(job.most for job in {run.job for run in live}))
            wanted = max(1, min(most, waiting + len(self._tasks)))
            self._share = await self._health.hold(self._deployment, holder=self._worker, wanted=wanted)
            self._share_due_s = time.monotonic() + max(0.1, self._share.retry_after_s)

    async def _look_at(self, job: Job, *, is_first: bool) -> None:
        try:
            read = await asyncio.to_thread(self._batches.get, job.batch.key_id, job.batch.batch_id)
        except StoreUnavailableError as error:
            logger.warning("a batch cannot be looked at", extra={"batch_id": job.batch.batch_id, **error.log})
            return
        if read is None or read.phase != "in_progress" or time.time() >= read.deadline_s:
            job.closed = True
        job.batch = read or job.batch
        wait_s = job.batch.waits_until_s - time.time()
        if wait_s > 0 or (is_first and wait_s > -_LONGEST_OPERATOR_WAIT_S):
            # Another worker has met what all lines will meet: one of them at a time finds out when it is over.
            job.affordable, job.shorts = min(job.affordable, 1), _SHORTS - 1
            job.paused_until_s = max(job.paused_until_s, time.monotonic() + wait_s)
        try:
            key = await self._meters.authenticate(Proven(job.batch.key_id))
            job.most = max(1, int(key.max_parallel * KEY_SHARE))
        except (AuthenticationError, PermissionDeniedError):
            job.end_code = "api_key_invalid"
        except StoreUnavailableError as error:
            logger.warning("the key's limits are not known", extra={"batch_id": job.batch.batch_id, **error.log})

    async def _pause_for_all(self, job: Job) -> None:
        """Pauses a batch for all workers: for requests in flight always as long, for the operator each time twice as long."""
        blocked_by, job.blocked_by = job.blocked_by, None
        batch, now_s = job.batch, time.time()
        if batch.waits_until_s <= now_s:
            wait_s = _BUDGET_WAIT_S
            if blocked_by == "operator":
                again = now_s - batch.waits_until_s < _LONGEST_OPERATOR_WAIT_S
                wait_s = max(OPERATOR_WAIT_S, min(_LONGEST_OPERATOR_WAIT_S, 2.0 * batch.wait_s if again else 0.0))
            job.paused_until_s = time.monotonic() + wait_s
            logger.warning("batch waits for the %s", blocked_by, extra={"batch_id": batch.batch_id, "wait_s": wait_s})
            try:
                await asyncio.to_thread(
                    self._batches.set, batch, waits_until_s=math.ceil(now_s + wait_s), wait_s=round(wait_s)
                )
            except StoreUnavailableError as error:
                logger.warning("a batch's wait is not noted", extra={"batch_id": batch.batch_id, **error.log})

    @property
    def _stopping(self) -> bool:
        return self._remaining_s() < self._stop_s

    # ── Starting ───────────────────────────────────────────────────────────────────────────────────────────

    async def _open_some(self) -> None:
        """Claims ranges until there are lines for all free slots."""
        for run in self._ranges:
            if run.opened or not run.is_live:
                continue
            if run.end_code is None and not run.job.closed:
                if self._stopping or self._ready() >= self._most_on_their_way - len(self._tasks):
                    continue
                if run.job.startable_s(time.monotonic()) > time.monotonic() + PATIENCE_S:
                    continue
            await self._open(run)

    def _ready(self) -> int:
        now_s = time.monotonic()
        return sum(line.ready_s <= now_s for run in self._ranges if self._holds(run) for line in run.lines)

    async def _open(self, run: RangeRun) -> None:
        now_ms, until_s = time.time_ns() // 10**6, time.monotonic() + self._lease_s
        batch, of = run.job.batch, run.of
        claim = await asyncio.to_thread(
            self._progress.claim_range,
            batch,
            of.index,
            worker=run.id,
            now_ms=now_ms,
            until_ms=now_ms + round(self._lease_s * 1000),
        )
        if claim in {"ended", "closed"}:
            run.over = True
            return
        if claim == "taken":
            # Its message must outlive whoever has it now.
            run.wait_s = self._lease_s
            return
        run.opened, run.until_s = True, until_s
        states = await asyncio.to_thread(self._progress.line_states, batch.batch_id, of)
        run.completed = sum(state.outcome == "completed" for state in states.values())
        run.failed = sum(state.outcome == "failed" for state in states.values())
        try:
            lines = await asyncio.to_thread(self._reader.input_lines, batch, of)
        except MissingObjectError:
            run.unreadable = True
            logger.error("a range is not in the input any more", extra={"batch_id": batch.batch_id, "range": of.index})  # noqa: TRY400
            return
        fresh = (Line(content, states.get(index) or LineState(index, None)) for index, content in lines)
        run.lines.extend(line for line in fresh if line.state.outcome is None)

    def _start(self) -> None:
        """Begins lines in all free slots."""
        if self._stopping:
            return
        now_s = time.monotonic()
        for run in self._ranges:
            job = run.job
            for _ in range(len(run.lines)):
                if len(self._tasks) >= self._most_on_their_way:
                    return
                if not run.is_live or job.startable_s(now_s) > now_s:
                    break
                if not self._holds(run):
                    break  # it may be another's by now: `renew` will tell
                if job.may_start < 1:
                    job.paused_until_s, job.may_start = now_s + _RESERVE_PAUSE_S, 1
                    break
                line = run.lines.popleft()
                if line.ready_s > now_s:
                    run.lines.append(line)
                    continue
                job.may_start -= 1
                self._begin(run, line)

    def _holds(self, run: RangeRun) -> bool:
        """Whether a range is surely still this run's."""
        return run.is_live and time.monotonic() <= run.until_s - _MARGIN * self._lease_s

    def _patience_s(self, run: RangeRun) -> float:
        return max(1.0, self._remaining_s() - 15) if self._holds(run) else 0.0

    def _begin(self, run: RangeRun, line: Line) -> None:
        run.in_flight += 1
        run.job.in_flight += 1
        task = asyncio.create_task(self._run_line(run, line))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_line(self, run: RangeRun, line: Line) -> None:
        job = run.job
        try:
            ran = await self._lines.run(job.batch, line, worker=run.id, patience_s=lambda: self._patience_s(run))
        except Exception:
            logger.exception("a result may be lost", extra={"batch_id": job.batch.batch_id, "line": line.state.index})
            run.broken = True
        else:
            self._learn(run, line, ran)
        finally:
            run.in_flight -= 1
            job.in_flight -= 1

    def _learn(self, run: RangeRun, line: Line, ran: Ran) -> None:
        job, now_s = run.job, time.monotonic()
        if ran.overloaded:
            self._share_due_s = -math.inf
        if ran.end == "stored":
            run.completed, run.failed = run.completed + ran.completed, run.failed + (not ran.completed)
            job.shorts, job.affordable = 0, job.affordable + 1
            learn_limits(job, ran.headers or {})
            return
        line.ready_s = now_s
        match ran.end:
            case "limited":
                job.paused_until_s = max(job.paused_until_s, now_s + ran.wait_s)
            case "barred":
                job.end_code = "api_key_invalid"
            case "blocked":
                job.blocked_by, job.affordable = "operator", 1
                job.paused_until_s = max(job.paused_until_s, now_s + ran.wait_s)
            case "short":
                line.ready_s += ran.wait_s
                # What the others here have set aside may be what is missing. If none is left, somebody else has it.
                others = job.in_flight - 1
                job.shorts, job.affordable = job.shorts + 1, max(1, others)
                if not others and job.shorts >= _SHORTS:
                    job.blocked_by = "budget"
                    job.paused_until_s = max(job.paused_until_s, now_s + ran.wait_s)
            case "claimed":
                line.ready_s += self._lease_s  # whoever has it may be alive
            case _:
                line.ready_s += ran.wait_s
        run.lines.append(line)

    # ── Ending ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _close(self) -> None:
        """Ends ranges that have nothing left to run, and releases those of which nothing is to begin any more."""
        for run in self._ranges:
            if not run.opened or not run.is_live or run.in_flight:
                continue
            if run.job.closed or run.broken:
                await self._release(run, wait_s=None if run.job.closed else self._lease_s)
            elif not run.lines or run.end_code is not None:
                await self._end(run)

    async def _end(self, run: RangeRun) -> None:
        batch, end_code = run.job.batch, run.end_code
        states = await asyncio.to_thread(self._progress.line_states, batch.batch_id, run.of)
        completed = sum(state.outcome == "completed" for state in states.values())
        failed = sum(state.outcome == "failed" for state in states.values())
        unrun = run.of.count - completed - failed
        if unrun and end_code is None:
            run.broken = True  # somebody else's claim is on a line
            await self._release(run, wait_s=self._lease_s)
            return
        await asyncio.to_thread(
            self._progress.end_range,
            batch,
            run.of.index,
            worker=run.id,
            completed=completed,
            failed=failed + unrun,
            end_code=end_code if unrun else None,
        )
        run.over, run.wait_s = True, None

    async def _release(self, run: RangeRun, *, wait_s: float | None) -> None:
        if run.opened:
            await asyncio.to_thread(self._progress.release_range, run.job.batch.batch_id, run.of.index, worker=run.id)
        run.lines.clear()
        run.over, run.wait_s = wait_s is None, wait_s

    async def renew(self) -> None:
        """Says that this worker lives; to be called every third of a lease."""
        until_ms, until_s = time.time_ns() // 10**6 + round(self._lease_s * 1000), time.monotonic() + self._lease_s
        for run in [run for run in self._ranges if run.opened and run.is_live]:
            kept = await asyncio.to_thread(
                self._progress.renew_range,
                run.job.batch.batch_id,
                run.of.index,
                worker=run.id,
                until_ms=until_ms,
                completed=run.completed,
                failed=run.failed,
            )
            if kept:
                run.until_s = until_s
            elif run.is_live:
                logger.warning("range lost", extra={"batch_id": run.job.batch.batch_id, "range": run.of.index})
                run.lines.clear()
                run.over, run.wait_s = False, self._lease_s

    async def _wait(self) -> None:
        """Until a line ends, or something else is due; gives up what is not worth waiting for."""
        now_s = time.monotonic()
        live = [run for run in self._ranges if run.is_live]
        if not live:
            return
        if self._tasks or self._share.slots:
            self._idle_since_s = None
        elif self._idle_since_s is None:
            self._idle_since_s = now_s
        if self._tasks:
            due_s = math.inf if self._stopping else min(self._share_due_s, self._next_s(live))
            timeout_s = max(0.01, min(due_s - now_s, _LOOK_EVERY_S))
            if self._too_much is None or self._too_much.done():
                self._too_much = asyncio.create_task(self._health.too_much(self._deployment))
            woken_by = {*self._tasks} if self._stopping else {*self._tasks, self._too_much}
            await asyncio.wait(woken_by, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            return
        next_s = self._next_s(live)
        if self._stopping:
            next_s = now_s
        elif self._idle_since_s is not None and now_s - self._idle_since_s >= PATIENCE_S:
            # Others have all the slots there are: to ask on every half second would cost more than to come back.
            next_s = max(next_s, now_s + _NO_SHARE_WAIT_S)
        elif next_s - now_s <= PATIENCE_S:
            await asyncio.sleep(max(0.01, min(next_s, self._share_due_s) - now_s))
            return
        for run in live:
            if not run.job.closed and run.end_code is None:
                await self._release(run, wait_s=max(0.0, next_s - now_s))

    def _next_s(self, live: Sequence[RangeRun]) -> float:
        """When the next line may begin, as far as can be told."""
        now_s = time.monotonic()
        times_s = []
        for run in live:
            if run.job.closed or run.end_code is not None:
                times_s.append(math.inf if run.in_flight else now_s)
            elif not run.opened or run.lines:
                ready_s = min((line.ready_s for line in run.lines), default=0.0)
                # Whether a range is still this run's, `renew` tells soon.
                held_s = now_s + (_LOOK_EVERY_S if run.opened and not self._holds(run) else 0.0)
                times_s.append(max(ready_s, held_s, run.job.startable_s(now_s)))
        first_s = min(times_s, default=math.inf)
        free = self._most_on_their_way > len(self._tasks)
        return first_s if free else max(first_s, self._share_due_s)
