"""Which deployments may serve a request, in which order, and where to go after a failure."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from naru import dialects, tokens
from naru.catalog import Catalog, Deployment, Model
from naru.errors import InvalidRequestError
from naru.retry import RetryPolicy

if TYPE_CHECKING:
    from naru.failures import AttemptFailedError

# A model is given a second chance before another one answers in its place.
_TRIES_PER_MODEL = 2
_LONG_WAIT_S = 5.0


@dataclass(slots=True, eq=False)
class Stop:
    """A deployment that can serve the request, and the request in its dialect."""

    model_name: str
    model: Model
    deployment: Deployment
    body: Mapping[str, Any]
    worst_case_pico_usd: int
    """The most that one call can cost here."""
    ready_s: float = 0.0
    """When it may be called again (monotonic clock)."""


class Route:
    """The way of one request: the deployments of the model that was asked for, in the order of the catalog, then those
    of its fallbacks.

    What cannot serve the request truthfully, or has too small a context for it, is not on the way. Raises
    :class:`~naru.errors.InvalidRequestError`, that of the first deployment, when the model itself cannot serve it.
    """

    def __init__(self, catalog: Catalog, name: str, body: Mapping[str, Any], *, output_limit: int | None) -> None:
        asked = catalog.model(name)
        self._stops: list[Stop] = []
        self._failures: dict[str, int] = {}
        refusals: list[InvalidRequestError] = []
        for model_name in (name, *asked.fallbacks):
            for stop in _stops(catalog.model(model_name), model_name, body, output_limit, refusals):
                if model_name == name or _fits(stop, body):
                    self._stops.append(stop)
            if not self._stops:
                raise refusals[0]

    @property
    def worst_case_pico_usd(self) -> int:
        """The most that one call can cost at the dearest deployment that the request may reach."""
        return max(stop.worst_case_pico_usd for stop in self._stops)

    def current(self) -> Stop:
        """Where to call now, and with what."""
        return self._stops[0]

    def after(
        self,
        failure: AttemptFailedError,
        policy: RetryPolicy,
        *,
        failures: int,
        remaining_s: float,
        rng: random.Random,
    ) -> float | None:
        """Moves on after a failure: the seconds to wait before the next call, or None if there is none to make in the
        time that remains.

        A deployment of the same model that was not yet tried is called at once. After that the model gets another
        chance when its wait is over, unless that is long and a fallback is there.
        """
        here = self._stops.pop(0)
        if failure.again == "never" or failures >= policy.max_attempts:
            return None
        self._failures[here.model_name] = self._failures.get(here.model_name, 0) + 1
        if failure.again == "larger":
            context_tokens = here.deployment.context_tokens
            self._stops = [stop for stop in self._stops if stop.deployment.context_tokens > context_tokens]
        elif failure.again == "same":
            wait_s = policy.wait_s(failures, retry_after_s=failure.retry_after_s, rng=rng)
            here.ready_s = time.monotonic() + wait_s
            others = [stop for stop in self._stops if stop.model_name != here.model_name]
            patience_s = min(_LONG_WAIT_S, remaining_s)
            if not others or (self._failures[here.model_name] < _TRIES_PER_MODEL and wait_s < patience_s):
                # Behind its siblings, before the fallbacks.
                self._stops.insert(len(self._stops) - len(others), here)
        if not self._stops:
            return None
        wait_s = max(0.0, self._stops[0].ready_s - time.monotonic())
        return wait_s if wait_s < remaining_s else None


def _stops(
    model: Model, name: str, body: Mapping[str, Any], output_limit: int | None, refusals: list[InvalidRequestError]
) -> Iterator[Stop]:
    limit = output_limit or model.default_output_tokens
    bound = tokens.upper_bound_prompt(body, model.tokenizer, image_tokens=model.image_tokens)
    completion_bound = tokens.upper_bound_completion(body, output_limit=limit)
    for deployment in model.deployments:
        try:
            translated = dialects.for_name(deployment.at.dialect).request_body(
                body, deployment=deployment, output_limit=limit
            )
        except InvalidRequestError as refusal:
            refusals.append(refusal)
            continue
        worst_case_pico_usd = deployment.rates.worst_case_pico_usd(
            # What does not fit into the context is refused, not billed.
            prompt_tokens=min(bound, deployment.context_tokens),
            completion_tokens=completion_bound,
        )
        yield Stop(name, model, deployment, translated, worst_case_pico_usd)


def _fits(stop: Stop, body: Mapping[str, Any]) -> bool:
    return tokens.estimate_prompt(body, stop.model.tokenizer) <= stop.deployment.context_tokens
