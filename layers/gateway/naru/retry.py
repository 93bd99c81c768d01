"""When to try again, and how long to wait before it."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_RESET_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter", 2015).

    ``max_attempts`` counts every call upstream for one request, the first included.
    """

    max_attempts: int = 3
    base_s: float = 0.25
    cap_s: float = 8.0

    def wait_s(self, failures: int, *, retry_after_s: float | None, rng: random.Random) -> float:
        """How long to wait after the ``failures``-th failure (from 1).

        A provider that named a time is given that time and a little jitter, so that clients it refused together
        do not come back together.
        """
        backoff_s = rng.uniform(0, min(self.cap_s, self.base_s * 2 ** (failures - 1)))
        if retry_after_s is None:
            return backoff_s
        return retry_after_s + min(backoff_s, self.base_s)


def retry_after_s(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """The wait that a provider asks for, in seconds; None where it names none that can be read.

    In this order: ``retry-after-ms`` (OpenAI), ``Retry-After`` in seconds or as a date (RFC 9110, 10.2.3),
    ``x-ratelimit-reset-requests`` and ``-tokens`` such as ``6s`` or ``1m2.5s`` (CLOVA Studio sends only these).
    """
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    if value := headers.get("retry-after"):
        if (seconds := _number(value)) is not None:
            return seconds
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        return max(0.0, (date - now).total_seconds())
    resets = [_duration_s(headers.get(f"x-ratelimit-reset-{kind}")) for kind in ("requests", "tokens")]
    known = [reset for reset in resets if reset is not None]
    return max(known) if known else None


def _number(text: str | None) -> float | None:
    if text is None or not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text.strip()):
        return None
    return float(text)


def _duration_s(text: str | None) -> float | None:
    if not text:
        return None
    parts = _RESET_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)
