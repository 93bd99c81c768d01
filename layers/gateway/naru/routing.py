"""Which deployments may serve a request, in which order, and where to go after a failure."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from naru import charges, dialects, tokens
from naru.catalog import Catalog, Deployment, Model, Strategy
from naru.charges import HourWrites
from naru.errors import InvalidRequestError
from naru.health_state import provider_item
from naru.preferences import Preference
from naru.retry import RetryPolicy

if TYPE_CHECKING:
    from naru.failures import AttemptFailedError

# A model is given a second chance before another one answers in its place.
_TRIES_PER_MODEL = 2
_LONG_WAIT_S = 5.0
# Somebody else is asked when a provider has been busy for so long.
_TURN_S = 1.0


Going = Literal["continue", "restart"]
"""How the rest of an answer is asked for: with its beginning given (prefill), or from the start."""


@dataclass(slots=True, eq=False)
class Stop:
    """A deployment that can serve the request, and the request in its dialect."""

    model_name: str
    model: Model
    deployment: Deployment
    body: Mapping[str, Any]
    output_limit: int
    """The most tokens that a choice may have."""
    worst_case_pico_usd: int
    """The most that one call can cost here."""
    most_prompt_tokens: int
    most_completion_tokens: int
    """Of all choices together."""
    hour_writes: HourWrites = "none"
    ready_s: float = 0.0
    """When it may be called again (monotonic clock)."""
    queued_s: float = 0.0
    """How long a turn of it has been waited for."""
    called: bool = False

    @property
    def json_limit_s(self) -> float:
        """How long an answer that comes all at once may take."""
        return self.deployment.patience.answer_s(self.output_limit)


class Route:
    """The way of one request: the deployments of the model that was asked for, in the order of its strategy, then
    those of its fallbacks.

    What cannot serve the request truthfully, or has too small a context for it, is not on the way. Raises
    :class:`~naru.errors.InvalidRequestError`, that of the first deployment, when the model itself cannot serve it.
    ``latency_s`` is what is known of a deployment's, 0 for nothing.
    """

    def __init__(
        self,
        catalog: Catalog,
        name: str,
        body: Mapping[str, Any],
        *,
        output_limit: int | None,
        latency_s: Callable[[str], float],
        rng: random.Random,
        preference: Preference | None = None,
    ) -> None:
        preference = preference or Preference()
        asked = catalog.model(name)
        self._name = name
        self._body = body
        self.prompt = tokens.Prompt(body)
        """What its tokens are counted from."""
        self._stops: list[Stop] = []
        self._failures: dict[str, int] = {}
        self._failed_providers: Counter[str] = Counter()
        self._last: Stop | None = None
        self.is_chosen = preference.deployment is not None
        """Whether an operator named the deployment, and no other is to answer."""
        refusals: list[InvalidRequestError] = []
        for model_name in (name, *(asked.fallbacks if preference.fallback else ())):
            model = catalog.model(model_name)
            stops = [
                stop
                for stop in _stops(model, model_name, body, self.prompt, output_limit=output_limit, refusals=refusals)
                if model_name == name or _fits(stop, self.prompt)
            ]
            self._stops += _ordered(stops, preference.strategy or model.strategy, latency_s, rng)
            if not self._stops:
                raise refusals[0]
        if preference.deployment is not None:
            self._stops = [stop for stop in self._stops if stop.deployment.name == preference.deployment]
            if not self._stops:
                raise InvalidRequestError(
                    f"{preference.deployment[:128]!r} is not a deployment that can serve this request.",
                    param="x-naru-deployment",
                )
        self._worst_case_pico_usd = max(stop.worst_case_pico_usd for stop in self._stops)
        if len(self._stops) > 1:
            # A stream that is cut may be paid for twice: what came of it, and the rest from another deployment.
            self._worst_case_pico_usd += max(self._rest_pico_usd(stop) for stop in self._stops)

    @property
    def worst_case_pico_usd(self) -> int:
        """The most that one answer can cost: from the dearest deployment that the request may reach, and if it is a
        stream, with the rest of it from the dearest that may go on with it.
        """
        return self._worst_case_pico_usd

    @property
    def deployments(self) -> list[str]:
        """The names of all that may be called."""
        return [stop.deployment.name for stop in self._stops]

    @property
    def health_items(self) -> list[str]:
        """What the shared health knows them and their providers by."""
        providers = dict.fromkeys(stop.deployment.provider for stop in self._stops)
        return [*self.deployments, *map(provider_item, providers)]

    @property
    def is_last_resort(self) -> bool:
        """Whether no other model can answer."""
        return len({stop.model_name for stop in self._stops}) == 1

    def keep(self, models: frozenset[str]) -> bool:
        """Leaves only these models on the way; False if nothing is left."""
        self._stops = [stop for stop in self._stops if stop.model_name in models]
        return bool(self._stops)

    def current(self) -> Stop:
        """Where to call now, and with what."""
        return self._stops[0]

    def why(self, stop: Stop) -> str:
        """Why ``stop`` is called; see :class:`~naru.ledger.Attempt`."""
        if stop.called:
            return "again"
        if self._last is None:
            return "" if stop.model_name == self._name else "fallback"
        return "failover" if stop.model_name == self._last.model_name else "fallback"

    def called(self, stop: Stop) -> None:
        """A call to ``stop`` begins."""
        stop.called, self._last = True, stop

    def rest(self, said: str, said_tokens: int) -> Iterator[tuple[Stop, Going]]:
        """The deployments that may give the rest of an answer of which the client has ``said``: each with the request
        that asks for it, and how it is asked.

        One that takes the beginning of an answer (``prefill``) goes on from there, unless it refuses to, and is then
        asked from the start: the next draw says so. Another one is asked from the start only if it could say the same
        again: it is the same model, and nothing about the request is left to chance.
        """
        for stop in self._stops[1:]:
            for going in self._ways(stop, said):
                body = dict(self._body)
                limit = stop.output_limit
                if going == "continue":
                    body["messages"] = [*body["messages"], {"role": "assistant", "content": said.rstrip()}]
                    limit -= said_tokens
                if limit < 1:
                    continue
                bound = _prompt_bound(tokens.Prompt(body), stop.model)
                try:
                    rest = _new_stop(
                        stop.model_name, stop.model, stop.deployment, body, output_limit=limit, prompt_bound=bound
                    )
                except InvalidRequestError:
                    continue  # its dialect has no such request: the next one, then
                yield rest, going

    def _ways(self, stop: Stop, said: str) -> list[Going]:
        if "prefill" in stop.deployment.capabilities:
            return ["continue", "restart"] if said.strip() else ["restart"]
        if not said:
            return ["restart"]
        repeatable = self._body.get("temperature") == 0 or self._body.get("seed") is not None
        return ["restart"] if repeatable and stop.model_name == self._name else []

    def _rest_pico_usd(self, stop: Stop) -> int:
        if not self._body.get("stream") or self._body.get("n") not in {None, 1} or not self._ways(stop, "…"):
            return 0
        # The beginning comes back as a part of the prompt, and may be written to a cache like all of it.
        beginning_pico_usd = stop.deployment.rates.worst_case_pico_usd(
            prompt_tokens=stop.output_limit, completion_tokens=0, hour_writes=stop.hour_writes != "none"
        )
        return stop.worst_case_pico_usd + beginning_pico_usd

    def skip(self, *, reason: str, retry_after_s: float, remaining_s: float, queue_left_s: float) -> float | None:
        """Moves on where the current deployment is not to be called before ``retry_after_s``: the seconds to wait before
        the next one, or None if that is too long.

        One that is busy is waited for a little before another model answers; else it goes behind all others. A breaker
        that is open is not waited for: the provider is known to be ill, and a prompt error with a time to come back is
        worth more than a slow one.
        """
        here = self._stops.pop(0)
        now_s = time.monotonic()
        here.ready_s = math.inf if reason == "open" else now_s + retry_after_s
        if reason == "busy" and here.queued_s < _TURN_S:
            here.queued_s += retry_after_s
            self._stops.insert(sum(stop.model_name == here.model_name for stop in self._stops), here)
        else:
            self._stops.append(here)
            self._stops.sort(key=lambda stop: max(stop.ready_s, now_s))
        return self._wait_s(remaining_s, queue_left_s)

    def after(
        self,
        failure: AttemptFailedError,
        policy: RetryPolicy,
        *,
        failures: int,
        remaining_s: float,
        queue_left_s: float,
        may_retry: Callable[[str], bool],
        rng: random.Random,
    ) -> float | None:
        """Moves on after a failure: the seconds to wait before the next call, or None if there is none to make in the
        time that remains.

        After a failure of the provider itself another provider is asked first, be it by a fallback; then what else there
        is at this one. Otherwise a deployment of the same model that was not yet tried is called at once. After that the
        model gets another chance when its wait is over, if its retry budget allows, unless that is long and a fallback is
        there. ``queue_left_s`` is how long the request may still wait in all.
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
            patience_s = min(_LONG_WAIT_S, remaining_s, queue_left_s)
            worthwhile = self._failures[here.model_name] < _TRIES_PER_MODEL and wait_s < patience_s
            if (worthwhile or not others) and may_retry(here.deployment.name):
                # Behind its siblings, before the fallbacks.
                self._stops.insert(len(self._stops) - len(others), here)
        if failure.is_of_provider:
            self._failed_providers[here.deployment.provider] += 1
            failed, again = self._failed_providers, here.deployment.provider
            self._stops.sort(key=lambda stop: (failed[stop.deployment.provider], stop.deployment.provider == again))
        return self._wait_s(remaining_s, queue_left_s) if self._stops else None

    def _wait_s(self, remaining_s: float, queue_left_s: float) -> float | None:
        wait_s = max(0.0, self._stops[0].ready_s - time.monotonic())
        return wait_s if wait_s < remaining_s and wait_s <= max(0.0, queue_left_s) else None


def _stops(
    model: Model,
    name: str,
    body: Mapping[str, Any],
    prompt: tokens.Prompt,
    *,
    output_limit: int | None,
    refusals: list[InvalidRequestError],
) -> Iterator[Stop]:
    bound = _prompt_bound(prompt, model)
    for deployment in model.deployments:
        # Where the client states no limit, a budget for thoughts must not use up the room for the answer.
        default = min(model.default_output_tokens + charges.thinking_tokens(body), deployment.max_output_tokens)
        limit = output_limit or default
        try:
            yield _new_stop(name, model, deployment, body, output_limit=limit, prompt_bound=bound)
        except InvalidRequestError as refusal:
            refusals.append(refusal)


def _new_stop(
    name: str, model: Model, deployment: Deployment, body: Mapping[str, Any], *, output_limit: int, prompt_bound: int
) -> Stop:
    translated = dialects.for_name(deployment.at.dialect).request_body(
        body, deployment=deployment, output_limit=output_limit
    )
    # What does not fit into the context is refused, not billed.
    prompt_tokens = min(prompt_bound, deployment.context_tokens)
    completion_tokens = tokens.upper_bound_completion(body, output_limit=output_limit)
    hours = charges.hour_writes(translated, deployment)
    worst_case_pico_usd = deployment.rates.worst_case_pico_usd(
        prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, hour_writes=hours != "none"
    )
    return Stop(
        name,
        model,
        deployment,
        translated,
        output_limit,
        worst_case_pico_usd,
        most_prompt_tokens=prompt_tokens,
        most_completion_tokens=completion_tokens,
        hour_writes=hours,
    )


def _prompt_bound(prompt: tokens.Prompt, model: Model) -> int:
    return prompt.upper_bound(model.tokenizer, image_tokens=model.image_tokens)


def _fits(stop: Stop, prompt: tokens.Prompt) -> bool:
    return prompt.estimate(stop.model.tokenizer) <= stop.deployment.context_tokens


def _ordered(
    stops: list[Stop], strategy: Strategy, latency_s: Callable[[str], float], rng: random.Random
) -> list[Stop]:
    """The deployments of one model in the order in which they are to be tried."""
    match strategy:
        case "weighted":
            # Efraimidis and Spirakis 2006: a random order in which the first is drawn by weight, then the second, …
            return sorted(stops, key=lambda stop: -(rng.random() ** (1 / stop.deployment.weight)))
        case "lowest-cost":
            return sorted(stops, key=lambda stop: stop.worst_case_pico_usd)
        case "lowest-latency" if len(stops) > 1:
            # Of two drawn at random the faster, rather than the fastest of all: else everyone runs to the same one.
            one, other = rng.sample(stops, 2)
            first = min(one, other, key=lambda stop: latency_s(stop.deployment.name))
            rest = [stop for stop in stops if stop is not first]
            return [first, *sorted(rest, key=lambda stop: latency_s(stop.deployment.name))]
        case _:
            return stops
