"""A provider that is down is called once: the next call goes to another provider, if one can serve the request."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from naru import catalog
from naru.errors import UpstreamRateLimitedError, UpstreamUnavailableError
from naru.preferences import Preference
from tests import one_gateway
from tests.one_gateway import OMNI, Gateway

FAST = "hyperclova-x-omni-fast"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}


def raising(error: type[httpx.TransportError]) -> Callable[[httpx.Request], httpx.Response]:
    def fail(request: httpx.Request) -> httpx.Response:
        raise error("gone", request=request)

    return fail


def status(code: int, payload: Any = None, **headers: str) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _: httpx.Response(code, json=payload or {}, headers=headers)


def answer(request: httpx.Request) -> httpx.Response:
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    choice = {"index": 0, "message": {"role": "assistant", "content": "네"}, "finish_reason": "stop"}
    model = json.loads(request.content)["model"]
    return httpx.Response(200, json={"id": "1", "object": "chat.completion", "model": model, "choices": [choice], "usage": usage})  # fmt: skip


@dataclass
class Providers:
    """HolySheep and CLOVA Studio, each in its state."""

    gateway: Gateway
    holysheep: Callable[[httpx.Request], httpx.Response] = field(default_factory=lambda: raising(httpx.ConnectError))
    clovastudio: Callable[[httpx.Request], httpx.Response] = answer
    calls: list[str] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        at_clova = str(request.url).startswith(self.gateway.model.clova_url)
        self.calls.append(f"{'clovastudio' if at_clova else 'holysheep'}/{json.loads(request.content)['model']}")
        return (self.clovastudio if at_clova else self.holysheep)(request)


@pytest.fixture
def providers(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Providers:
    """With the catalog as it is shipped."""
    gateway.catalog_file.write_text(catalog.BUILT_IN.read_text(encoding="utf-8"), encoding="utf-8")
    providers = Providers(gateway)
    transport = httpx.MockTransport(providers)
    monkeypatch.setattr(one_gateway, "new_http_client", lambda: httpx.AsyncClient(transport=transport))
    return providers


@pytest.mark.parametrize(("model", "helper"), [(OMNI, "HCX-005"), (FAST, "HCX-DASH-002")])
@pytest.mark.parametrize(
    "down",
    [
        pytest.param(raising(httpx.ConnectError), id="refused"),
        pytest.param(raising(httpx.ConnectTimeout), id="unreachable"),
        pytest.param(raising(httpx.PoolTimeout), id="no connection free"),
        pytest.param(raising(httpx.WriteError), id="not all sent"),
        pytest.param(raising(httpx.ReadTimeout), id="silent"),
        pytest.param(raising(httpx.ReadError), id="reset"),
        pytest.param(raising(httpx.RemoteProtocolError), id="no HTTP"),
        *(pytest.param(status(code), id=str(code)) for code in (500, 502, 503, 504, 520, 529, 408, 409)),
        pytest.param(status(503, **{"retry-after": "1"}), id="503 with a time"),
        pytest.param(status(200, {"error": {"message": "died"}}), id="error in 200"),
        pytest.param(status(200, {"hello": 1}), id="garbage"),
        # Not ill, but no deployment of it would answer.
        pytest.param(status(401), id="401"),
        pytest.param(status(402), id="402"),
        pytest.param(status(403), id="403"),
    ],
)
def test_the_first_request_is_served_with_one_call_to_the_provider_that_is_down(
    providers: Providers, model: str, helper: str, down: Callable[[httpx.Request], httpx.Response]
) -> None:
    providers.holysheep = down
    providers.gateway.ask(model=model)
    assert providers.calls == [f"holysheep/{model}", f"clovastudio/{helper}"]
    row = providers.gateway.row
    assert (row.model_served, row.attempts[-1].result, row.attempts[-1].waited_ms) == (helper, "ok", 0)


@pytest.mark.parametrize("models", [[OMNI], [FAST], [OMNI, FAST]])
def test_a_provider_that_cannot_be_reached_is_known_by_its_name_to_the_next_requests(
    providers: Providers, models: list[str]
) -> None:
    """Each from a new environment, for any of its models: two calls to be sure, and then none before the next probe."""
    for number in range(12):
        providers.gateway.ask(model=models[number % len(models)])
    calls = Counter(call.split("/")[0] for call in providers.calls)
    assert calls == {"holysheep": 2, "clovastudio": 12}


def test_a_client_that_wants_no_other_model_gets_none(providers: Providers) -> None:
    providers.gateway.preference = Preference(fallback=False)
    with pytest.raises(UpstreamUnavailableError):
        providers.gateway.ask()
    assert providers.calls == [f"holysheep/{OMNI}"] * 3


def test_another_provider_that_cannot_do_what_is_asked_is_not_called(providers: Providers) -> None:
    with pytest.raises(UpstreamUnavailableError):
        providers.gateway.ask(response_format=SCHEMA)
    assert Counter(call.split("/")[0] for call in providers.calls) == {"holysheep": 3}


def test_what_can_be_done_elsewhere_is(providers: Providers) -> None:
    providers.gateway.ask(tools=[TOOL])
    assert providers.gateway.row.model_served == "HCX-005"


@pytest.mark.parametrize("fails", [status(404), status(400, {"error": {"code": "model_not_found", "message": "no"}})])
def test_a_model_that_is_not_there_says_nothing_about_its_provider(
    providers: Providers, fails: Callable[[httpx.Request], httpx.Response]
) -> None:
    providers.holysheep = lambda request: (fails if json.loads(request.content)["model"] == OMNI else answer)(request)
    providers.gateway.ask()
    assert providers.calls == [f"holysheep/{OMNI}", f"holysheep/{FAST}"]


def test_a_limit_says_nothing_about_the_other_models_of_its_provider(providers: Providers) -> None:
    limited = status(429, **{"retry-after": "60"})
    providers.holysheep = lambda request: (limited if json.loads(request.content)["model"] == OMNI else answer)(request)
    providers.gateway.ask()
    assert providers.calls == [f"holysheep/{OMNI}", f"holysheep/{FAST}"]


def test_a_provider_without_a_key_takes_no_attempt_from_the_others(providers: Providers) -> None:
    """A stack that never had a key for the other provider behaves as if it were not in the catalog."""
    providers.gateway.secret.fields = {"holysheep": "k1"}
    with pytest.raises(UpstreamUnavailableError) as failed:
        providers.gateway.ask()
    assert failed.value.code == "upstream_unavailable"
    assert len(providers.calls) == 3
    assert {call.split("/")[0] for call in providers.calls} == {"holysheep"}
    assert [attempt.result for attempt in providers.gateway.row.attempts] == ["connect", "no_key", "connect", "connect"]


@pytest.mark.parametrize("code", [401, 402, 403])
def test_a_key_that_was_replaced_is_used_before_another_provider(providers: Providers, code: int) -> None:
    """Also one of another account, when the first has no credit left."""
    providers.gateway.secret.replace("holysheep", "new", after_s=6)
    refused = status(code)
    providers.holysheep = lambda request: (refused if request.headers["authorization"] == "Bearer k1" else answer)(
        request
    )
    providers.gateway.ask()
    assert providers.calls == [f"holysheep/{OMNI}"] * 2


def test_where_all_are_down_three_are_called_and_no_more(providers: Providers) -> None:
    providers.clovastudio = status(500)
    with pytest.raises(UpstreamUnavailableError):
        providers.gateway.ask()
    assert providers.calls[:2] == [f"holysheep/{OMNI}", "clovastudio/HCX-005"]
    assert len(providers.calls) == 3


@pytest.mark.parametrize(("first", "waits_for"), [(httpx.ConnectError, "load"), (httpx.ReadTimeout, None)])
def test_a_batch_waits_for_a_limit_only_where_nothing_may_have_been_billed(
    providers: Providers, first: type[httpx.TransportError], waits_for: str | None
) -> None:
    fails, limited = raising(first), status(429, **{"retry-after": "60"})
    providers.clovastudio = limited
    providers.holysheep = lambda request: (fails if json.loads(request.content)["model"] == OMNI else limited)(request)
    with pytest.raises(UpstreamRateLimitedError) as failed:
        providers.gateway.ask()
    assert failed.value.waits_for == waits_for


def test_the_fallbacks_of_the_built_in_catalog_cost_no_more_than_what_was_asked_for(providers: Providers) -> None:
    """So the bound that is set aside is the asked model's own."""
    shipped = catalog.load()
    for name in (OMNI, FAST):
        asked = shipped.model(name).deployments[0].rates
        helpers = [shipped.model(fallback) for fallback in shipped.model(name).fallbacks]
        assert {helper.deployments[0].provider for helper in helpers} >= {"clovastudio"}
        for helper in helpers:
            assert helper.deployments[0].rates.input_pico_usd <= asked.input_pico_usd
            assert helper.deployments[0].rates.output_pico_usd <= asked.output_pico_usd
