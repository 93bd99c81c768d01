"""``naru batch``: submit a file of requests, watch it, fetch what has come of it.

Beside the file lies a small one, ``<FILE>.naru-batch``, that remembers the batch: a submission that was interrupted goes
on where it was, and the other commands take the file in place of the batch's id.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from naru.cli.batch_client import BatchClient
from naru.cli.output import (
    CommandError,
    MisuseError,
    byte_output,
    moment,
    note,
    show,
    show_facts,
    show_json,
    show_table,
)
from naru.cli.target import API_KEY, Target, find_target
from naru.plain_text import shown

_MAX_BYTES = 200 * 10**6
_ENDPOINT = "/v1/chat/completions"
_POLL_S, _LONGEST_POLL_S = 1.0, 10.0
_PLAIN_EVERY_S = 15.0
_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})


def submit(arguments: argparse.Namespace) -> None:
    """Uploads a file and makes a batch of it; what has been done before is not done again."""
    target, file = _target(arguments), Path(arguments.file)
    try:
        size_bytes = file.stat().st_size
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise MisuseError(f"{file} cannot be read: {error.strerror}") from None
    if not 1 <= size_bytes <= _MAX_BYTES:
        raise MisuseError(f"{file} has {size_bytes} bytes; a batch has 1 to {_MAX_BYTES}")
    with BatchClient(target) as client:
        place = {"base_url": target.base_url, "sha256": digest}
        batch_id = _submitted(client, file, size_bytes, place, arguments)
        show(batch_id)
        sys.stdout.flush()
        if arguments.wait:
            _wait(client, batch_id)
        else:
            note(f"To watch it: naru batch wait {file}")


def _submitted(
    client: BatchClient, file: Path, size_bytes: int, place: Mapping[str, str], arguments: argparse.Namespace
) -> str:
    """The batch of a file: of the steps that make it, those that were not done before."""
    memory = _Memory(file)
    known = {} if arguments.again else _still_there(client, memory.read(**place))
    if "file_id" not in known:
        with _bar("uploading", size_bytes, unit="bytes") as bar:
            known = {**place, "file_id": client.upload(file, size_bytes, bar.add)}
        memory.write(known)
    if "batch_id" in known:
        note(f"{file} was submitted before; --again makes a new batch of it.")
        return known["batch_id"]
    body: dict[str, Any] = {"input_file_id": known["file_id"], "endpoint": _ENDPOINT, "completion_window": "24h"}
    if arguments.metadata:
        body["metadata"] = dict(arguments.metadata)
    known["batch_id"] = str(client.call("POST", "batches", body)["id"])
    memory.write(known)
    return known["batch_id"]


def _still_there(client: BatchClient, known: dict[str, str]) -> dict[str, str]:
    """What is remembered, as far as the gateway knows of it: it forgets after 30 days, a local one when it stops.

    A batch whose making was not answered, as when the network fails then, is found by its input.
    """
    if "batch_id" in known:
        return known if client.find(f"batches/{known['batch_id']}") else {}
    if "file_id" not in known or not client.find(f"files/{known['file_id']}"):
        return {}
    newest = client.call("GET", "batches", limit=100)["data"]
    made = next((batch["id"] for batch in newest if batch["input_file_id"] == known["file_id"]), None)
    return known if made is None else {**known, "batch_id": made}


def status(arguments: argparse.Namespace) -> None:
    """Where a batch stands."""
    with BatchClient(_target(arguments)) as client:
        batch = client.call("GET", f"batches/{_batch_id(arguments.batch)}")
        if arguments.json:
            show_json(batch)
        else:
            show_facts(_facts(batch))


def wait(arguments: argparse.Namespace) -> None:
    """Watches a batch to its end."""
    with BatchClient(_target(arguments)) as client:
        _wait(client, _batch_id(arguments.batch))


def cancel(arguments: argparse.Namespace) -> None:
    """Lets no request of a batch begin any more; those on their way end, and are paid for."""
    with BatchClient(_target(arguments)) as client:
        batch = client.call("POST", f"batches/{_batch_id(arguments.batch)}/cancel")
        note(f"{batch['id']} is {batch['status']}; what has been answered can be fetched when it is cancelled.")


def results(arguments: argparse.Namespace) -> None:
    """Fetches the files of a batch that has ended."""
    with BatchClient(_target(arguments)) as client:
        batch = client.call("GET", f"batches/{_batch_id(arguments.batch)}")
        if batch["status"] not in _ENDED:
            raise CommandError(f"the batch is {batch['status']}; naru batch wait {batch['id']}")
        _fetch(client, batch["output_file_id"], arguments.output)
        if arguments.errors is not None:
            _fetch(client, batch["error_file_id"], arguments.errors)
        elif failed := batch["request_counts"]["failed"]:
            note(f"{failed} requests failed; --errors FILE fetches why.")


def list_all(arguments: argparse.Namespace) -> None:
    """The newest batches of the key."""
    with BatchClient(_target(arguments)) as client:
        listing = client.call("GET", "batches", limit=arguments.limit)
        if arguments.json:
            show_json(listing)
            return
        headings = ("batch", "status", "requests", "completed", "failed", "created")
        rows = [
            (
                batch["id"],
                batch["status"],
                *(f"{batch['request_counts'][name]:,}" for name in ("total", "completed", "failed")),
                moment(batch["created_at"]),
            )
            for batch in listing["data"]
        ]
        show_table(headings, rows)


# ── Watching ───────────────────────────────────────────────────────────────────────────────────────────────


def _wait(client: BatchClient, batch_id: str) -> None:
    pause_s, batch = _POLL_S, client.call("GET", f"batches/{batch_id}")
    try:
        with _bar(batch["status"], None, unit="requests") as bar:
            while batch["status"] not in _ENDED:
                _show(bar, batch)
                time.sleep(pause_s)
                pause_s = min(_LONGEST_POLL_S, pause_s * 1.2)
                batch = client.call("GET", f"batches/{batch_id}")
            _show(bar, batch)
    except KeyboardInterrupt:
        note("")
        note(f"The batch goes on. To watch it again: naru batch wait {batch_id}")
        raise
    counts = batch["request_counts"]
    if batch["status"] != "completed":
        errors = (batch["errors"] or {}).get("data") or []
        reasons = "; ".join(f"line {e['line']}: {e['message']}" if e["line"] else e["message"] for e in errors[:3])
        raise CommandError(f"the batch is {batch['status']}{': ' + reasons if reasons else ''}")
    note(f"completed: {counts['completed']:,} answered, {counts['failed']:,} failed. naru batch results {batch_id}")


def _show(bar: Bar, batch: Mapping[str, Any]) -> None:
    counts = batch["request_counts"]
    failed = f", {counts['failed']:,} failed" if counts["failed"] else ""
    bar.show(f"{batch['status']}{failed}", counts["completed"] + counts["failed"], counts["total"])


class Bar(Protocol):
    """Two ways to show progress: drawn on a terminal, written into a log."""

    def add(self, done: int) -> None: ...

    def show(self, what: str, done: int, total: int) -> None: ...


@contextmanager
def _bar(what: str, total: int | None, *, unit: str) -> Iterator[Bar]:
    try:
        if not sys.stderr.isatty():
            raise ModuleNotFoundError
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ModuleNotFoundError:
        yield _Plain(what, total, unit)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        yield _Drawn(progress, progress.add_task(shown(what), total=total))


class _Drawn:
    def __init__(self, progress: Any, task: Any) -> None:
        self._progress, self._task = progress, task

    def add(self, done: int) -> None:
        self._progress.advance(self._task, done)

    def show(self, what: str, done: int, total: int) -> None:
        self._progress.update(self._task, description=shown(what), completed=done, total=total or None)


class _Plain:
    """A line when something has changed, now and then."""

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = 0
        self._said: tuple[str, int] | None = None
        self._said_s = -_PLAIN_EVERY_S

    def add(self, done: int) -> None:
        self._done += done
        self._say(self._what, self._total or 0)

    def show(self, what: str, done: int, total: int) -> None:
        self._done = done
        self._say(what, total)

    def _say(self, what: str, total: int) -> None:
        now_s = time.monotonic()
        is_news = self._said is None or what != self._said[0] or (self._done == total and self._done != self._said[1])
        if is_news or (self._said != (what, self._done) and now_s - self._said_s >= _PLAIN_EVERY_S):
            note(f"{what}: {self._done:,} of {total:,} {self._unit}")
            self._said, self._said_s = (what, self._done), now_s


# ── Which batch ────────────────────────────────────────────────────────────────────────────────────────────


class _Memory:
    """What is remembered of a file that was submitted."""

    def __init__(self, file: Path) -> None:
        self.path = file.with_name(f"{file.name}.naru-batch")

    def read(self, *, base_url: str | None = None, sha256: str | None = None) -> dict[str, str]:
        """Nothing, if it is of another gateway or of other content."""
        try:
            known: dict[str, str] = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        asked = {"base_url": base_url, "sha256": sha256}
        return {} if any(value is not None and known.get(name) != value for name, value in asked.items()) else known

    def write(self, known: Mapping[str, str]) -> None:
        """All or nothing, so that an interruption leaves the old or the new."""
        new = self.path.with_name(f"{self.path.name}.new")
        try:
            new.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
            new.replace(self.path)
        except OSError as error:  # a folder that may only be read
            note(f"{self.path} cannot be written ({error.strerror}): keep the id of the batch yourself.")


def _batch_id(text: str) -> str:
    if text.startswith("batch_") and not Path(text).exists():
        return text
    known = _Memory(Path(text)).read()
    if "batch_id" not in known:
        raise MisuseError(f"{text!r} is neither the id of a batch (batch_…) nor a file that was submitted from here")
    return known["batch_id"]


def _target(arguments: argparse.Namespace) -> Target:
    return find_target(API_KEY, arguments.base_url, arguments.api_key, os.environ, Path.cwd())


def _fetch(client: BatchClient, file_id: str | None, into: str | None) -> None:
    if file_id is None:
        note(f"There is nothing for {into or 'the output'}.")
        return
    if into is None:
        with byte_output() as out:
            client.download(file_id, out)
        return
    path = Path(into)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            size_bytes = client.download(file_id, file)
        part.replace(path)
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}") from None
    note(f"{path}: {size_bytes:,} bytes")


def _facts(batch: Mapping[str, Any]) -> dict[str, str]:
    counts = batch["request_counts"]
    times = {
        name.removesuffix("_at").replace("_", " "): moment(batch[name])
        for name in ("created_at", "in_progress_at", "finalizing_at", "completed_at", "expires_at", "cancelled_at")
        if batch[name] is not None
    }
    return {
        "id": batch["id"],
        "status": batch["status"],
        "model": batch["model"] or "-",
        "requests": f"{counts['total']:,}, {counts['completed']:,} answered, {counts['failed']:,} failed",
        **times,
        **({"output": batch["output_file_id"]} if batch["output_file_id"] else {}),
        **({"errors": batch["error_file_id"]} if batch["error_file_id"] else {}),
        **({"tokens": f"{batch['usage']['total_tokens']:,}"} if batch["usage"] else {}),
    }
