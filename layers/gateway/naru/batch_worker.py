"""What the worker does with messages of the queue: checks batches, runs ranges of them, writes their files.

A message is kept from other workers for some seconds, again and again, as long as this one lives; so a dead worker's
messages come back within a lease, not within the hour and a half that a queue in front of a function of 15 minutes is
set to. At the end each message is either done, sent anew with a delay, or reported as failed.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from naru.batch_jobs import Job, RangeRun
from naru.batch_lines import Lines
from naru.batch_phases import Phases
from naru.batch_pool import Pool
from naru.batch_progress import Progress
from naru.batch_queue import BatchQueue, Message
from naru.batch_reader import BatchReader
from naru.batch_store import Batch, BatchStore
from naru.catalog import Catalog
from naru.catalog_source import CatalogSource
from naru.errors import ModelNotFoundError, StoreUnavailableError
from naru.health import Health
from naru.meter import Meters

logger = logging.getLogger(__name__)

STOP_S = 150.0
"""Before the end of the function's time: no line begins any more, and those on their way have that long."""
_TELL_EVERY_S = 3.0
"""How far a range is: what a client sees of a batch that runs."""


@dataclass(slots=True, eq=False)
class Delivery:
    """A message as it was received."""

    message_id: str
    receipt: str
    message: Message
    done: bool = False

    @property
    def task(self) -> tuple[str, str, str, int | None]:
        """What it asks for: the same for all copies of a message, whichever generation they are of."""
        message = self.message
        return (message.do, message.key_id, message.batch_id, message.range.index if message.range else None)


class BatchWorker:
    """One for the life of an environment."""

    def __init__(
        self,
        *,
        batches: BatchStore,
        progress: Progress,
        reader: BatchReader,
        phases: Phases,
        queue: BatchQueue,
        lines: Lines,
        health: Health,
        meters: Meters,
        catalogs: CatalogSource,
        most_lines: int,
        lease_s: float,
    ) -> None:
        self._batches = batches
        self._progress = progress
        self._reader = reader
        self._phases = phases
        self._queue = queue
        self._lines = lines
        self._health = health
        self._meters = meters
        self._catalogs = catalogs
        self._most_lines = most_lines
        self._lease_s = lease_s

    async def handle(
        self, records: Sequence[Mapping[str, Any]], *, remaining_s: Callable[[], float], stop_s: float = STOP_S
    ) -> list[str]:
        """Works on the messages of one event of SQS; the ids of those that failed. ``remaining_s`` is how long the
        function may still run.
        """
        deliveries, failed = _read(records)
        pools: list[Pool] = []
        tasks = _by_task(deliveries)
        await self._hide(deliveries)
        heart = asyncio.create_task(self._beat(deliveries, pools))
        try:
            await _all(
                *(self._phase(copies) for copies in tasks if copies[0].message.do != "run"),
                self._run([copies for copies in tasks if copies[0].message.do == "run"], pools, remaining_s, stop_s),
            )
        finally:
            heart.cancel()
            with suppress(asyncio.CancelledError):
                await heart
        return failed + [delivery.message_id for delivery in deliveries if not delivery.done]

    # ── Checking and finishing ─────────────────────────────────────────────────────────────────────────────

    async def _phase(self, copies: Sequence[Delivery]) -> None:
        message = copies[0].message
        try:
            batch = await asyncio.to_thread(self._batches.get, message.key_id, message.batch_id)
            if batch is None:
                logger.warning("there is no such batch", extra={"batch_id": message.batch_id})
            elif message.do == "check":
                catalog = await self._catalogs.current()
                await asyncio.to_thread(self._phases.check, batch, catalog)
            elif (wait_s := await asyncio.to_thread(self._phases.finish, batch)) is not None:
                await asyncio.to_thread(self._queue.send, [message], delay_s=wait_s)
            _be_done(copies)
        except Exception:
            logger.exception("%s failed", message.do, extra={"batch_id": message.batch_id})

    # ── Running ────────────────────────────────────────────────────────────────────────────────────────────

    async def _run(
        self, tasks: Sequence[Sequence[Delivery]], pools: list[Pool], remaining_s: Callable[[], float], stop_s: float
    ) -> None:
        jobs: dict[tuple[str, str], Job | None] = {}
        by_deployment: dict[str, list[tuple[Sequence[Delivery], RangeRun]]] = defaultdict(list)
        try:
            catalog = await self._catalogs.current()
            for copies in tasks:
                message = copies[0].message
                place = (message.key_id, message.batch_id)
                if place not in jobs:
                    batch = await asyncio.to_thread(self._batches.get, *place)
                    jobs[place] = Job(batch) if batch is not None else None
                job = jobs[place]
                if job is None or message.range is None or message.generation < job.batch.generation:
                    _be_done(copies)
                    continue
                run = RangeRun(message, message.range, job)
                # A batch is for one model, and most of its calls go where that lies first.
                by_deployment[_first_deployment(catalog, job.batch.model)].append((copies, run))
        except Exception:
            logger.exception("the batches of some messages cannot be read")
            return
        await _all(
            *(self._run_at(deployment, runs, pools, remaining_s, stop_s) for deployment, runs in by_deployment.items())
        )

    async def _run_at(
        self,
        deployment: str,
        runs: Sequence[tuple[Sequence[Delivery], RangeRun]],
        pools: list[Pool],
        remaining_s: Callable[[], float],
        stop_s: float,
    ) -> None:
        pool = Pool(
            deployment=deployment,
            # Of this invocation and not of the environment: what the one before has left behind is not ours.
            worker=secrets.token_hex(8),
            lines=self._lines,
            progress=self._progress,
            batches=self._batches,
            reader=self._reader,
            health=self._health,
            meters=self._meters,
            most_lines=self._most_lines,
            lease_s=self._lease_s,
            remaining_s=remaining_s,
            stop_s=stop_s,
        )
        pools.append(pool)
        try:
            await pool.run([run for _, run in runs])
        except Exception:
            logger.exception("ranges failed", extra={"deployment": deployment})
        unfinished = [job for job in {run.job for _, run in runs} if not await self._finish_if_last(job.batch)]
        for copies, run in runs:
            if run.job in unfinished:
                continue
            try:
                if run.wait_s is not None:
                    await asyncio.to_thread(self._queue.send, [run.message], delay_s=run.wait_s)
                if not run.is_live:
                    _be_done(copies)
            except StoreUnavailableError as error:
                logger.warning("a message is not sent anew", extra=error.log)

    async def _finish_if_last(self, batch: Batch) -> bool:
        """Whoever ends the last range, or finds the time over, sends for the files; False if that failed.

        Then, or if it dies before, the messages come again, and whoever gets one of them does it.
        """
        try:
            read = await asyncio.to_thread(self._batches.get, batch.key_id, batch.batch_id)
            if read is None or read.phase not in {"in_progress", "cancelling"}:
                return True
            if read.phase == "cancelling" or read.ranges_ended == read.ranges or time.time() >= read.deadline_s:
                await asyncio.to_thread(self._queue.send, [Message("finish", batch.key_id, batch.batch_id)])
        except StoreUnavailableError as error:
            logger.warning("the end of a batch is not looked for", extra={"batch_id": batch.batch_id, **error.log})
            return False
        return True

    # ── Staying alive ──────────────────────────────────────────────────────────────────────────────────────

    async def _beat(self, deliveries: Sequence[Delivery], pools: Sequence[Pool]) -> None:
        hidden_s = time.monotonic()
        while True:
            await asyncio.sleep(min(self._lease_s / 3, _TELL_EVERY_S))
            if time.monotonic() - hidden_s >= self._lease_s / 4:
                hidden_s = time.monotonic()
                await self._hide([delivery for delivery in deliveries if not delivery.done])
            for pool in list(pools):
                try:
                    await pool.renew()
                except StoreUnavailableError as error:
                    logger.warning("a lease is not renewed", extra=error.log)

    async def _hide(self, deliveries: Sequence[Delivery]) -> None:
        try:
            await asyncio.to_thread(
                self._queue.hide, [delivery.receipt for delivery in deliveries], for_s=self._lease_s
            )
        except StoreUnavailableError as error:
            logger.warning("messages are not kept from others", extra=error.log)


def _by_task(deliveries: Sequence[Delivery]) -> list[list[Delivery]]:
    """The copies of each message, of the latest generation first. They are done together, by one run."""
    tasks: dict[Any, list[Delivery]] = defaultdict(list)
    for delivery in sorted(deliveries, key=lambda delivery: -delivery.message.generation):
        tasks[delivery.task].append(delivery)
    return list(tasks.values())


def _be_done(copies: Sequence[Delivery]) -> None:
    for delivery in copies:
        delivery.done = True


async def _all(*works: Coroutine[Any, Any, None]) -> None:
    """Waits for all of them, also where one fails: what is left running would go on in the next invocation."""
    for error in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(error, Exception):
            logger.error("messages failed", exc_info=error)


def _first_deployment(catalog: Catalog, model: str) -> str:
    """Where most calls for a model go. One that the operator has taken out since lies nowhere, and its lines will say so."""
    try:
        return catalog.model(model).deployments[0].name
    except ModelNotFoundError:
        return model


def _read(records: Sequence[Mapping[str, Any]]) -> tuple[list[Delivery], list[str]]:
    """The messages, and the ids of what is none of ours."""
    deliveries, failed = [], []
    for record in records:
        try:
            message = Message.parse(record["body"])
        except ValueError:
            logger.exception("not a message of ours", extra={"message_id": record["messageId"]})
            failed.append(str(record["messageId"]))
        else:
            deliveries.append(Delivery(record["messageId"], record["receiptHandle"], message))
    return deliveries, failed
