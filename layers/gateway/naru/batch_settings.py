"""What the environment of the functions for files and batches says, beside what every function is told."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from naru.settings import Settings


class BatchSettings(Settings):
    """Each field is the environment variable ``NARU_`` + its name in capitals."""

    batch_table: Annotated[str, Field(min_length=1)]
    files_bucket: Annotated[str, Field(min_length=1)]
    batch_queue_url: Annotated[str, Field(pattern=r"^https?://")]
    batch_topic: Annotated[str, Field(pattern=r"^arn:")]
    """Told of every batch that ends."""
    batch_lease_s: Annotated[float, Field(ge=1, le=600)] = 60.0
    """After so long without a sign of life a worker counts as dead, and its work is given to another."""
    batch_range_lines: Annotated[int, Field(ge=1, le=500)] = 100
    """Lines in one message."""
    batch_worker_lines: Annotated[int, Field(ge=1, le=200)] = 64
    """The most that one worker runs at once."""
    batch_window_s: Annotated[int, Field(ge=1, le=86_400)] = 86_400
    """How long a batch may take: OpenAI's 24 hours."""
