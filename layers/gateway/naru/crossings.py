"""Notices, while a request is settled, that a budget has reached one of its thresholds.

Settling adds to what a meter has spent in one write and learns the sum. The sums before and after lie in a row without
gaps, so of any number of requests that settle at once exactly one sees a threshold between its two, and no other looks
any further. That one wakes the function that knows who spent it and tells people (:mod:`naru.alerts`). If that call
fails nothing is lost: the function looks for itself every five minutes.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from naru.meter_state import UNLIMITED, Meter

if TYPE_CHECKING:
    from mypy_boto3_lambda.client import LambdaClient

logger = logging.getLogger(__name__)


def crossed(
    budget_pico_usd: int, *, before_pico_usd: int, after_pico_usd: int, thresholds: Sequence[int]
) -> int | None:
    """The highest threshold, in percent, that lies between what was spent before and after; None if there is none."""
    if budget_pico_usd >= UNLIMITED:
        return None
    passed = [percent for percent in thresholds if before_pico_usd * 100 < budget_pico_usd * percent <= after_pico_usd * 100]  # fmt: skip
    return max(passed, default=None)


class Crossings:
    """Wakes the alerts function; of no function's name it does nothing."""

    def __init__(self, new_client: Callable[[], LambdaClient], function: str, thresholds: Sequence[int]) -> None:
        self._new_client = new_client
        self._function = function
        self._thresholds = thresholds
        self._made: LambdaClient | None = None

    async def notice(self, meter: Meter, month: str, cost_pico_usd: int) -> int | None:
        """Looks at a meter as the settling write left it; the threshold that this cost crossed.

        Never raises: the request has been answered and paid for.
        """
        if not self._function or not cost_pico_usd or meter.id.startswith("user#"):
            return None
        after = meter.spent_pico_usd(month)
        threshold = crossed(
            meter.limits.budget_pico_usd,
            before_pico_usd=after - cost_pico_usd,
            after_pico_usd=after,
            # Of a meter in several items each has seen a part: whoever moves one by a percent has them all looked at.
            thresholds=self._thresholds if meter.shards == 1 else range(1, 101),
        )
        if threshold is not None:
            await asyncio.to_thread(self._wake, meter.id.partition("/")[0], month)
        return threshold

    def _wake(self, meter_id: str, month: str) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            if self._made is None:
                self._made = self._new_client()
            self._made.invoke(
                FunctionName=self._function,
                InvocationType="Event",
                Payload=json.dumps({"crossed": {"meter": meter_id, "month": month}}).encode(),
            )
        except (BotoCoreError, ClientError) as error:
            logger.warning("alerts not woken", extra={"meter": meter_id, "reason": f"{type(error).__name__}: {error}"})
