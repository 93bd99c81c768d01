"""Which deployments may serve a request, and where to go after a failure."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from naru import dialects
from naru.catalog import Deployment, Model
from naru.errors import InvalidRequestError
from naru.retry import RetryPolicy

if TYPE_CHECKING:
    from naru.failures import AttemptFailedError


@dataclass(slots=True)
class _Stop:
    """A deployment that can serve the request, and the request in its dialect."""

    deployment: Deployment
    body: dict[str, Any]
    ready_s: float = 0.0
    """When it may be called again (monotonic clock)."""


class Route:
    """The way of one request through a model's deployments, in the order of the catalog.

    A deployment that cannot serve the request truthfully is not on it. Raises
    :class:`~naru.errors.InvalidRequestError`, that of the first deployment, when none can.
    """

    def __init__(self, model: Model, body: Mapping[str, Any], *, output_limit: int) -> None:
        self._stops: list[_Stop] = []
        self._index = 0
        refusals: list[InvalidRequestError] = []
        for deployment in model.deployments:
            dialect = dialects.for_name(deployment.at.dialect)
            try:
                translated = dialect.request_body(body, deployment=deployment, output_limit=output_limit)
            except InvalidRequestError as refusal:
                refusals.append(refusal)
            else:
                self._stops.append(_Stop(deployment, translated))
        if not self._stops:
            raise refusals[0]

    @property
    def deployments(self) -> list[Deployment]:
        """All that the request may still reach."""
        return [stop.deployment for stop in self._stops]

    def current(self) -> tuple[Deployment, Mapping[str, Any]]:
        """Where to call now, and with what."""
        stop = self._stops[self._index]
        return stop.deployment, stop.body

    def after(
        self, failure: AttemptFailedError, policy: RetryPolicy, *, failures: int, rng: random.Random
    ) -> float | None:
        """Moves on after a failure: the seconds to wait before the next call, or None if there is none to make.

        A deployment not yet tried is called at once; one that was tried is given the time it asked for.
        """
        if failure.again == "never" or failures >= policy.max_attempts:
            return None
        now_s = time.monotonic()
        if failure.again == "elsewhere":
            del self._stops[self._index]
            if not self._stops:
                return None
        else:
            self._stops[self._index].ready_s = now_s + policy.wait_s(
                failures, retry_after_s=failure.retry_after_s, rng=rng
            )
            self._index += 1
        self._index %= len(self._stops)
        return max(0.0, self._stops[self._index].ready_s - now_s)
