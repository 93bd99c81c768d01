"""Request ids: time-ordered, unguessable, and the clock of the ledger.

``req_`` + 12 hexadecimal digits of Unix milliseconds + 20 random ones. Sorting ids sorts requests by time, and
the ledger's key for a request follows from its id alone, so that a repeated write always meets the first one.
"""

from __future__ import annotations

import re
import secrets

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
