"""Batches for tests: inputs, waiting, and what has become of every line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import openai
from openai.types import Batch

from naru.ledger import Row, from_item
from tests.conftest import RunningStack
from tests.waiting import PATIENCE_S

OMNI = "hyperclova-x-omni"
ENDED = {"completed", "failed", "expired", "cancelled"}


def line(custom_id: str, prompt: str = "안녕하세요", **body: Any) -> str:
    """One line of an input."""
    whole = {"model": OMNI, "messages": [{"role": "user", "content": prompt}], "max_tokens": 64} | body
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": whole})


def submit(client: openai.OpenAI, lines: Iterable[str], **fields: Any) -> Batch:
    """A batch of these lines."""
    content = "\n".join(lines).encode() + b"\n"
    file = client.files.create(file=("input.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", **fields
    )


def wait(
    client: openai.OpenAI,
    batch_id: str,
    *,
    until: Callable[[Batch], bool] | None = None,
    patience_s: float = PATIENCE_S,
) -> Batch:
    """The batch when it has ended, or is as it is waited for."""
    limit_s = time.monotonic() + patience_s
    while True:
        batch = client.batches.retrieve(batch_id)
        if batch.status in ENDED or (until is not None and until(batch)):
            return batch
        assert time.monotonic() < limit_s, batch
        time.sleep(0.1)


def contents(client: openai.OpenAI, batch: Batch) -> tuple[list[Any], list[Any]]:
    """The lines of its output file, and of its error file."""
    found = []
    for file_id in (batch.output_file_id, batch.error_file_id):
        text = client.files.content(file_id).text if file_id else ""
        assert not text or text.endswith("\n")
        found.append([json.loads(part) for part in text.splitlines()])
    return found[0], found[1]


def assert_each_once(batch: Batch, custom_ids: Iterable[str], output: list[Any], errors: list[Any]) -> None:
    """Every request has one line, in one of the files, and the counts say so."""
    assert sorted(part["custom_id"] for part in output + errors) == sorted(custom_ids)
    counts = batch.request_counts
    assert counts is not None
    assert (counts.completed, counts.failed, counts.total) == (len(output), len(errors), len(output) + len(errors))
    assert all(part["response"]["status_code"] == 200 and part["error"] is None for part in output)
    assert len({part["id"] for part in output + errors}) == counts.total


def rows_of(stack: RunningStack, batch_id: str | None = None) -> dict[str, Row]:
    """The rows of a batch, or all, by request id."""
    pages = stack.aws("dynamodb").get_paginator("scan").paginate(TableName=stack.ledger_table)
    rows = [from_item(item) for page in pages for item in page["Items"]]
    return {row.request_id: row for row in rows if batch_id in {None, row.batch_id}}
