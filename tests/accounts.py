"""What a request can cost at most, and a provider whose prices are easy to read."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from naru import catalog, wire
from naru.pricing import Rates
from naru.routing import Route, Stop

CATALOG = catalog.load(catalog.BUILT_IN)
OMNI = "hyperclova-x-omni"


def a_pico_dollar_a_token(worst_case_pico_usd: int) -> Stop:
    """A deployment that charges one pico-dollar for each token of any kind."""
    model = CATALOG.model(OMNI)
    deployment = model.deployments[0].model_copy()
    deployment.link(deployment.at, Rates(1, 1, 1, 1, currency="USD", krw_per_usd=None))
    return Stop(
        OMNI,
        model,
        deployment,
        {},
        output_limit=1,
        worst_case_pico_usd=worst_case_pico_usd,
        most_prompt_tokens=worst_case_pico_usd,
        most_completion_tokens=worst_case_pico_usd,
    )


def worst_case_pico_usd(body: Mapping[str, Any]) -> int:
    """What the gateway sets aside for a request."""
    parsed, request = wire.parse_chat_request(json.dumps(body))
    route = Route(
        CATALOG,
        request.model,
        parsed,
        output_limit=request.output_limit,
        latency_s=lambda _: 0.0,
        rng=random.Random(1),
    )
    return route.worst_case_pico_usd
