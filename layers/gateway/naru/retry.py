"""When to try again, and how long to wait before it."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST_S = 31 * 86_400.0
"""The longest wait that anybody is told; what a provider names beyond it is as good as never."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter", 2015).

    ``max_attempts`` counts every call upstream for one request, the first included. ``turn_s`` is the longest wait after a
    refusal that is no failed attempt: the provider was full, and a place comes free when some answer ends.
    """

    max_attempts: int = 3
    base_s: float = 0.25
    cap_s: float = 8.0
    turn_s: float = 1.0

    def wait_s(self, failures: int, *, retry_after_s: float | None, rng: random.Random) -> float:
        """How long to wait after the ``failures``-th failure (from 1; 0 after a refusal that does not count as one).

        A provider that named a time is given that time and a little jitter, so that clients it refused together
        do not come back together.
        """
        longest_s = min(self.cap_s, self.base_s * 2 ** (failures - 1)) if failures else self.turn_s
        backoff_s = rng.uniform(0, longest_s)
        if retry_after_s is None:
            return backoff_s
        return retry_after_s + min(backoff_s, self.base_s)


def retry_after_s(headers: Mapping[str, str], *, now: datetime, rate_limited: bool = True) -> float | None:
    """The wait that a provider asks for, in seconds; None where it names none that can be read.

    In this order: ``retry-after-ms`` (OpenAI), ``Retry-After`` in seconds or as a date (RFC 9110, 10.2.3), and after
    a rate limit ``x-ratelimit-reset-requests`` and ``-tokens`` such as ``6s`` or ``1m2.5s``, of those allowances that
    are used up (CLOVA Studio sends only these).
    """
    lower = {name.lower(): value.strip() for name, value in headers.items()}
    if (milliseconds := _number(lower.get("retry-after-ms"))) is not None:
        return min(milliseconds / 1000, _LONGEST_S)
    if value := lower.get("retry-after"):
        seconds = _number(value)
        if (named_s := _until_s(value, now) if seconds is None else seconds) is not None:
            return min(named_s, _LONGEST_S)
    if not rate_limited:
        return None
    resets = [
        duration_s(lower.get(f"x-ratelimit-reset-{kind}"))
        for kind in ("requests", "tokens")
        if _number(lower.get(f"x-ratelimit-remaining-{kind}")) in {None, 0.0}
    ]
    known = [reset for reset in resets if reset is not None]
    return min(max(known), _LONGEST_S) if known else None


def _number(text: str | None) -> float | None:
    return float(text) if text is not None and re.fullmatch(r"\d{1,100}(\.\d{1,9})?", text, re.ASCII) else None


def duration_s(text: str | None) -> float | None:
    """``6s``, ``12ms``, ``1m30.5s``; a bare number is seconds."""
    if text is None or (seconds := _number(text)) is not None:
        return None if text is None else seconds
    if not re.fullmatch(r"(\d{1,9}(\.\d{1,9})?(ms|s|m|h))+", text, re.ASCII):
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in re.findall(r"([\d.]+)(ms|s|m|h)", text))


def _until_s(date: str, now: datetime) -> float | None:
    from email.utils import parsedate_to_datetime  # rare, and slow to import

    try:
        return max(0.0, parsedate_to_datetime(date).timestamp() - now.timestamp())
    except (ValueError, OverflowError):
        return None
