"""Waiting for what must happen."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 180.0
"""After so long a test gives up, so that a defect does not hang the suite. It measures nothing: a busy machine needs
many times what a quiet one does.
"""


def eventually(find: Callable[[], T | None]) -> T:
    """What is found, once it is neither None nor False. Raises AssertionError after :data:`PATIENCE_S`."""
    until_s = time.monotonic() + PATIENCE_S
    while (found := find()) is None or found is False:
        assert time.monotonic() < until_s, "did not happen in time"
        time.sleep(0.02)
    return found
