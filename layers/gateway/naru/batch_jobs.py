"""What a worker has in its hands: batches, and ranges of them. Times are seconds of the monotonic clock."""

from __future__ import annotations

import math
import secrets
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from naru.batch_lines import Line
from naru.batch_progress import Range
from naru.batch_queue import Message
from naru.batch_store import Batch

KEY_SHARE = 0.8
"""Of what a key may do at once and in a minute; the rest is for those who wait for their answers."""


@dataclass(slots=True, eq=False)
class Job:
    """A batch that the worker has ranges of, and what limits it. Monotonic seconds."""

    batch: Batch
    most: int = 10**9
    """How many of its lines may be in flight here, as its key allows."""
    affordable: int = 10**9
    """The same, as far as the budget is known to reach, or the provider to answer at all."""
    shorts: int = 0
    """Lines in a row for which there was no budget."""
    blocked_by: Literal["operator", "budget"] | None = None
    """What a line has met that all of them would meet, and that is to be told to the other workers."""
    in_flight: int = 0
    looked_s: float = -math.inf
    paused_until_s: float = 0.0
    may_start: float = math.inf
    """Lines that can begin before the key comes into its reserve."""
    end_code: str | None = None
    """Its lines end with this from now on."""
    closed: bool = False
    """It was cancelled or its time is over: nothing begins any more."""

    def startable_s(self, now_s: float) -> float:
        """When a line of it may begin; infinite if only the end of another one can tell."""
        if self.end_code is not None or self.closed or self.in_flight >= min(self.most, self.affordable):
            return math.inf
        return max(now_s, self.paused_until_s)


@dataclass(slots=True, eq=False)
class RangeRun:
    """One range on its way through a worker. ``over``: nothing is left to do for the message that brought it;
    ``wait_s``: it is left over, and is to be tried again after so long.
    """

    message: Message
    of: Range
    job: Job
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    """Under which it claims its range and lines. Two runs of a range in one process have two."""
    lines: deque[Line] = field(default_factory=deque)
    opened: bool = False
    in_flight: int = 0
    completed: int = 0
    failed: int = 0
    until_s: float = 0.0
    """The end of the lease (monotonic)."""
    unreadable: bool = False
    """Its lines are not in the input any more."""
    broken: bool = False
    """A result may be lost: only the next owner can tell."""
    over: bool = False
    wait_s: float | None = None

    @property
    def end_code(self) -> str | None:
        """What its lines without a result end with from now on; None as long as they may be run."""
        return self.job.end_code or ("input_unreadable" if self.unreadable else None)

    @property
    def is_live(self) -> bool:
        return not self.over and self.wait_s is None


def learn_limits(job: Job, headers: dict[str, str]) -> None:
    """What the headers of an answer say about its key: leaves a part of each minute to others who use it."""
    left = math.inf
    for kind in ("requests", "tokens"):
        limit, remaining = headers.get(f"x-ratelimit-limit-{kind}"), headers.get(f"x-ratelimit-remaining-{kind}")
        if limit is None or remaining is None:
            continue
        free = int(remaining) - (1 - KEY_SHARE) * int(limit)
        left = min(left, free if kind == "requests" else math.inf if free > 0 else 0)
    job.may_start = max(0.0, left - job.in_flight)
