"""A hundred requests while everybody is out: how often the providers are called in vain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from benchmarks.in_process import gateways
from benchmarks.storm_provider import ask, catalog, new_client, provider

REQUESTS = 100


@dataclass(frozen=True)
class Outage:
    """A line of the second table. Calls are those that the providers have counted."""

    arrivals: str
    requests: int
    primary: int
    fallback: int
    slowest_s: float

    @property
    def per_request(self) -> float:
        """Calls to the provider that was called more often."""
        return max(self.primary, self.fallback) / self.requests


@dataclass(frozen=True)
class Arrivals:
    """How the requests of an outage come: each of ``lanes`` sends its share one after the other."""

    name: str
    environments: int
    lanes: int
    apart_s: float = 0.0
    """Between two lanes."""


ARRIVALS = (
    Arrivals("10 environments, ten requests each, one after the other", 10, 10),
    Arrivals("10 environments, a request every 50 ms", 10, REQUESTS, 0.05),
    Arrivals("10 environments, all in the same instant", 10, REQUESTS),
    Arrivals("100 environments, all in the same instant", REQUESTS, REQUESTS),
)


async def outages() -> list[Outage]:
    """A hundred requests while both deployments answer 503, in environments that know nothing of it."""
    results = []
    async with provider() as primary, provider() as fallback:
        for arrivals in ARRIVALS:
            for each in (primary, fallback):
                await each.control({"rules": [{"fault": {"name": "status", "status": 503}}]})
            text = catalog(primary.url, fallback.url)
            async with (
                gateways(text, {"primary": "key"}, count=arrivals.environments) as running,
                new_client(running.base_url, running.api_key) as http,
            ):
                took_s = await _in_vain(http, arrivals)
            calls = [(await each.stats())["requests"] for each in (primary, fallback)]
            results.append(Outage(arrivals.name, REQUESTS, calls[0], calls[1], max(took_s)))
    return results


async def _in_vain(http: httpx.AsyncClient, arrivals: Arrivals) -> list[float]:
    """How long each of the requests took to be refused; requests go to the environments in turn."""

    async def one() -> float:
        began_s = time.monotonic()
        try:
            await ask(http)
        except httpx.HTTPStatusError as refused:
            if refused.response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                raise
            return time.monotonic() - began_s
        raise RuntimeError("answered, though both providers are out")

    async def lane(number: int) -> list[float]:
        await asyncio.sleep(number * arrivals.apart_s)
        return [await one() for _ in range(REQUESTS // arrivals.lanes)]

    took = await asyncio.gather(*(lane(number) for number in range(arrivals.lanes)))
    return [took_s for each in took for took_s in each]


def outage_table(outages: Sequence[Outage]) -> str:
    """In Markdown."""
    lines = [
        "| requests | calls to the primary | calls to the fallback | per request | slowest error, s |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {o.arrivals} | {o.primary} | {o.fallback} | {o.per_request:.2f} | {o.slowest_s:.1f} |" for o in outages
    ]
    return "\n".join(lines)
