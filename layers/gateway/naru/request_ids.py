"""Request ids: time-ordered, unguessable, and the clock of the ledger.

``req_`` + 12 hexadecimal digits of Unix milliseconds + 20 random ones. Sorting ids sorts requests by time, and
the ledger's key for a request follows from its id alone, so that a repeated write always meets the first one.
"""

from __future__ import annotations

import re
import secrets
import time

ADMITTED_WITHIN_MS = 4 * 60_000
"""A request that needs longer from its arrival to its last admission is given back: what is older is rolled up a minute
later, and no row may come behind that.
"""

MAX_AGE_MS = 15 * 60 * 1000
"""A request that is older calls nobody any more. Lambda ends every request after 15 minutes; other hosts may not."""

_PATTERN = re.compile(r"req_([0-9a-f]{12})[0-9a-f]{20}")


def new_request_id(*, at_ms: int) -> str:
    """An id for a request that arrived at ``at_ms`` (Unix milliseconds)."""
    return f"req_{at_ms:012x}{secrets.token_hex(10)}"


def arrived_at_ms(request_id: str) -> int:
    """When the request arrived, in Unix milliseconds.

    Raises ValueError for anything that is not one of our ids.
    """
    if not (match := _PATTERN.fullmatch(request_id)):
        raise ValueError("not a request id of Naru's")
    return int(match[1], 16)


class Age:
    """How old a request is, from ``age_ms`` at this moment on.

    By two clocks, of which the later one counts: the wall's may be set back, and the monotonic one may stand still while
    the machine does.
    """

    __slots__ = ("_age_ms", "_steady_s", "_wall_s")

    def __init__(self, age_ms: int) -> None:
        self._age_ms = age_ms
        self._wall_s, self._steady_s = time.time(), time.monotonic()

    @property
    def ms(self) -> float:
        """How old it is now."""
        passed_s = max(time.time() - self._wall_s, time.monotonic() - self._steady_s)
        return self._age_ms + passed_s * 1000

    @property
    def left_s(self) -> float:
        """Until it must call nobody any more, since the sweeper may soon take it for dead."""
        return (MAX_AGE_MS - self.ms) / 1000
