"""Which deployment is called first, and who may say otherwise."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from naru import catalog
from naru.catalog import BUILT_IN, Catalog
from naru.errors import InvalidRequestError, PermissionDeniedError, UpstreamUnavailableError
from naru.preferences import Preference, preference
from naru.routing import Route
from tests.one_gateway import OMNI, Gateway, another_deployment

BODY = {"model": OMNI, "messages": [{"role": "user", "content": "안녕"}]}


def three(strategy: str = "priority") -> str:
    """The built-in catalog with three deployments of omni."""
    text = re.sub(r"(?m)^fallbacks = .*\n", "", BUILT_IN.read_text(encoding="utf-8"))
    text = text.replace(f"[models.{OMNI}]\n", f'[models.{OMNI}]\nstrategy = "{strategy}"\n')
    for change in (
        another_deployment("dear", upstream_model=OMNI, input_usd=10, output_usd=30, weight=3),
        another_deployment("cheap", upstream_model=OMNI, input_usd=0, output_usd=1, weight=6),
    ):
        text = text.replace(*change)
    return text


def load(strategy: str) -> Catalog:
    return catalog.parse(three(strategy), source="test")


def first(
    strategy: str, seed: int, latency_s: Callable[[str], float] = lambda _: 0.0, wish: Preference | None = None
) -> list[str]:
    route = Route(
        load(strategy),
        OMNI,
        BODY,
        output_limit=100,
        latency_s=latency_s,
        rng=random.Random(seed),
        preference=wish,
    )
    return route.deployments


def test_the_order_of_the_catalog_is_the_default() -> None:
    assert first("priority", 1) == [f"holysheep/{OMNI}", "dear", "cheap"]


def test_the_cheapest_comes_first() -> None:
    assert first("lowest-cost", 1) == ["cheap", f"holysheep/{OMNI}", "dear"]


def test_by_weight_each_is_first_as_often_as_it_weighs() -> None:
    routes = load("weighted")
    rng = random.Random(7)
    count = Counter(
        Route(routes, OMNI, BODY, output_limit=100, latency_s=lambda _: 0.0, rng=rng).deployments[0]
        for _ in range(3000)
    )
    assert count["cheap"] == pytest.approx(1800, rel=0.1)
    assert count["dear"] == pytest.approx(900, rel=0.1)
    assert count[f"holysheep/{OMNI}"] == pytest.approx(300, rel=0.2)


def test_of_two_drawn_the_faster_is_called_and_never_the_slowest_of_all() -> None:
    latency = {f"holysheep/{OMNI}": 2.0, "dear": 0.5, "cheap": 1.0}
    count = Counter(first("lowest-latency", seed, latency.__getitem__)[0] for seed in range(300))
    assert count[f"holysheep/{OMNI}"] == 0
    assert count["dear"] == pytest.approx(200, rel=0.2)
    assert count["cheap"] == pytest.approx(100, rel=0.3)


def test_one_of_which_nothing_is_known_is_given_a_chance() -> None:
    latency = {f"holysheep/{OMNI}": 2.0, "dear": 0.0, "cheap": 1.0}
    assert any(first("lowest-latency", seed, latency.__getitem__)[0] == "dear" for seed in range(10))


@pytest.mark.parametrize(
    ("headers", "wish"),
    [
        ({}, None),
        ({"x-naru-strategy": "lowest-cost"}, Preference("lowest-cost")),
        ({"x-naru-deployment": "cheap"}, Preference(deployment="cheap")),
        ({"x-naru-fallback": "none"}, Preference(fallback=False)),
    ],
)
def test_headers_say_what_is_preferred(headers: dict[str, str], wish: Preference | None) -> None:
    assert preference(headers) == wish


@pytest.mark.parametrize("headers", [{"x-naru-strategy": "fastest"}, {"x-naru-fallback": "yes"}])
def test_a_header_that_means_nothing_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        preference(headers)
    assert refused.value.param in headers


def test_a_request_can_be_bound_to_one_deployment() -> None:
    assert first("priority", 1, wish=Preference(deployment="cheap")) == ["cheap"]
    with pytest.raises(InvalidRequestError, match="not a deployment that can serve"):
        first("priority", 1, wish=Preference(deployment="unknown"))


def test_only_a_key_that_may_route_is_heard(gateway: Gateway) -> None:
    gateway.use_catalog(another_deployment("cheap", upstream_model=OMNI, input_usd=0, output_usd=1))
    gateway.preference = Preference(deployment="cheap")
    with pytest.raises(PermissionDeniedError, match="--may-route"):
        gateway.ask("안녕")
    assert gateway.model.stats()["requests"] == 0
    gateway.let_route()
    gateway.ask("안녕 [[sim tokens=3]]")
    assert (gateway.row.deployment, gateway.headers["x-naru-deployment"]) == ("cheap", "cheap")


@pytest.mark.parametrize("fields", [{}, {"stream": True}])
def test_a_client_may_refuse_another_model(gateway: Gateway, fields: dict[str, Any]) -> None:
    gateway.use_catalog((f"[models.{OMNI}]\n", f"[models.{OMNI}]\nfallbacks = {json.dumps([f'{OMNI}-fast'])}\n"))
    gateway.preference = Preference(fallback=False)
    with pytest.raises(UpstreamUnavailableError):
        gateway.ask(f"안녕 [[sim fault=status:503,model={OMNI}]]", **fields)
    assert {attempt.deployment for attempt in gateway.row.attempts} == {f"holysheep/{OMNI}"}


def claude(**fields: Any) -> tuple[int, int]:
    """The output limit that Claude is sent, and the most that the request can cost."""
    body = BODY | {"model": "claude-sonnet-4-5"} | fields
    route = Route(
        catalog.load(),
        "claude-sonnet-4-5",
        body,
        output_limit=fields.get("max_tokens"),
        latency_s=lambda _: 0.0,
        rng=random.Random(1),
    )
    return route.current().body["max_tokens"], route.worst_case_pico_usd


def test_a_budget_for_thoughts_leaves_room_for_the_answer_and_is_set_aside() -> None:
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 10_000}}
    (default, cost), (limit, dearer) = claude(), claude(**thinking)
    assert (default, limit) == (4_096, 14_096)
    assert dearer >= cost + 10_000 * 15_000_000
    assert claude(**thinking, max_tokens=12_000)[0] == 12_000
    assert claude(thinking={"type": "enabled", "budget_tokens": 63_000})[0] == 64_000


def test_a_cache_that_keeps_for_an_hour_sets_more_aside() -> None:
    def written(ttl: str) -> int:
        mark = {"type": "ephemeral", "ttl": ttl}
        part = {"type": "text", "text": "x" * 10_000, "cache_control": mark}
        return claude(messages=[{"role": "user", "content": [part]}])[1]

    assert written("1h") - written("5m") > 10_000 * (6_000_000 - 3_750_000)
