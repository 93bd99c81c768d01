"""Leases that an environment could not end, because DynamoDB did not answer: remembered, and ended with its next request.

The sweeper would end them too, but only after a quarter of an hour, and it cannot tell a request that called nobody from
one that died in the middle of its call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from naru.meter_state import Lease

MAX_REMEMBERED = 1000
"""A few hundred bytes each. What is forgotten is left to the sweeper."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How one lease is to end; see :meth:`naru.meter.Meters.finish`."""

    meter_id: str
    lease: Lease
    cost_pico_usd: int
    tokens: int | None
    refund_request: bool = False
    doubtful: bool = False
    """Whether the lease may be written yet: its write was not answered, and may still be on its way."""

    @classmethod
    def releasing(cls, leases: Sequence[tuple[str, Lease]], *, doubtful: bool = False) -> list[Ending]:
        """For a request that called nobody: everything comes back, the request itself too. ``doubtful`` is about the last
        of its leases.
        """
        endings = [cls(meter_id, lease, 0, 0, refund_request=True) for meter_id, lease in leases]
        return [*endings[:-1], replace(endings[-1], doubtful=True)] if endings and doubtful else endings


class Unended:
    """The endings that are still to be made, oldest first."""

    def __init__(self) -> None:
        self._endings: dict[tuple[str, str], Ending] = {}

    def __len__(self) -> int:
        return len(self._endings)

    def add(self, ending: Ending) -> None:
        """Remembers one more; of too many the oldest is forgotten, which the sweeper reaches first."""
        self._endings[ending.meter_id, ending.lease.request_id] = ending
        if len(self._endings) > MAX_REMEMBERED:
            del self._endings[next(iter(self._endings))]

    def take(self, count: int) -> list[Ending]:
        """The oldest ones, which are then no longer remembered: whoever takes them adds those that fail again."""
        return [self._endings.pop(name) for name in list(self._endings)[:count]]
