"""What the headers of one request say about how it is routed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast, get_args

from naru.catalog import Strategy
from naru.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Preference:
    """What an operator asks for one request: a strategy, or one deployment and no other."""

    strategy: Strategy | None = None
    deployment: str | None = None
    fallback: bool = True
    """Whether another model may answer; any client may say no."""

    @property
    def is_routing(self) -> bool:
        """Whether it takes a key that may route."""
        return self.strategy is not None or self.deployment is not None


def preference(headers: Mapping[str, str]) -> Preference | None:
    """What the headers ``x-naru-strategy``, ``x-naru-deployment`` and ``x-naru-fallback`` ask for, if anything.

    Raises :class:`~naru.errors.InvalidRequestError` for a value that means nothing.
    """
    strategy, deployment = headers.get("x-naru-strategy"), headers.get("x-naru-deployment")
    fallback = headers.get("x-naru-fallback")
    if not strategy and not deployment and not fallback:
        return None
    if fallback and fallback != "none":
        raise InvalidRequestError(
            "The header x-naru-fallback can only be 'none': then no other model answers in place of the one asked for.",
            param="x-naru-fallback",
        )
    if strategy and strategy not in get_args(Strategy):
        raise InvalidRequestError(
            f"{strategy[:64]!r} is not a strategy. There are: {', '.join(get_args(Strategy))}.", param="x-naru-strategy"
        )
    return Preference(cast("Strategy | None", strategy or None), deployment or None, fallback=not fallback)
