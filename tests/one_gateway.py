"""The use case with tables and a provider, for tests that need no more: one request at a time.

Gateway and provider run on one loop whose clock stands still while anything works (:mod:`local.idle_clock`), so that no
limit of time is reached because the machine is busy.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from local.http_server import serve
from local.idle_clock import idle_clock
from local.simulated_model import BillRow, Config, Latency, SimulatedModel
from naru import catalog, metrics
from naru.catalog_source import CatalogSource
from naru.completions import Answer, Call, Completions
from naru.health import Health
from naru.ledger import Ledger, Row, from_item
from naru.meter import Meters
from naru.preferences import Preference
from naru.provider_keys import ProviderKeys
from naru.request_ids import new_request_id
from naru.retry import RetryPolicy
from naru.upstream import Upstream, new_http_client
from tests.meters import USD, all_meters

OMNI = "hyperclova-x-omni"
SEOUL = ZoneInfo("Asia/Seoul")
MICRO = 10**6


def another_deployment(
    name: str, *, upstream_model: str = "gpt-4.1", input_usd: int = 2, output_usd: int = 8, weight: int = 1
) -> tuple[str, str]:
    """A change for :meth:`Gateway.use_catalog`: omni has one more deployment, after its own; prices per million tokens."""
    before = f"[models.{OMNI}-fast]\n"
    text = f"""[[models.{OMNI}.deployments]]
name = "{name}"
provider = "holysheep"
upstream_model = "{upstream_model}"
price = {{ currency = "USD", input_micro_per_mtok = {input_usd * MICRO}, output_micro_per_mtok = {output_usd * MICRO} }}
capabilities = []
stream_usage = true
context_tokens = 128_000
max_output_tokens = 16_384
weight = {weight}

"""
    return before, text + before


class _Secret(ProviderKeys):
    """Provider keys without Secrets Manager: the fields of the secret."""

    def __init__(self, fields: dict[str, str]) -> None:
        super().__init__(self, "the-secret")  # type: ignore[arg-type]
        self.fields = fields

    def replace(self, name: str, key: str, *, after_s: float) -> None:
        """Another key in the secret, which was last read so long before."""
        asyncio.run(self.get(name))
        self.fields[name] = key
        self._read_at_s = time.monotonic() - after_s

    def get_secret_value(self, *, SecretId: str) -> dict[str, str]:  # noqa: N803 - boto3's name
        return {"SecretString": json.dumps(self.fields), "Name": SecretId}


@contextmanager
def simulated_provider() -> Iterator[tuple[SimulatedModel, Callable[[Any], Any]]]:
    """A provider that answers at once, and what runs a coroutine on its loop; while it lives, the clock is theirs."""
    model = SimulatedModel(Config(latency=Latency(first_token_ms=0, token_ms=0)))
    with idle_clock() as run:
        serving = serve(model.handle)
        server = run(serving.__aenter__())
        model.url = f"http://{server.host}:{server.port}"
        try:
            yield model, run
        finally:
            run(serving.__aexit__(None, None, None))


@dataclass
class Gateway:
    """One gateway, its tables and its provider."""

    model: SimulatedModel
    run: Callable[[Any], Any]
    """Runs a coroutine on the loop of both."""
    dynamodb: Any
    catalog_file: Path
    key_id: str
    api_key: str
    secret: _Secret = field(default_factory=lambda: _Secret({"holysheep": "k1", "clovastudio": "k2"}))
    retry: RetryPolicy = field(default_factory=lambda: RetryPolicy(max_attempts=3, base_s=0.001))
    deadline_s: float = 20.0
    stream_deadline_s: float | None = None
    """The same as the other one, if nothing is said."""
    headers: dict[str, str] = field(default_factory=dict)
    ledger_table: str = "LedgerTable"
    preference: Preference | None = None
    may_call: Callable[[], bool] = lambda: True

    def use_catalog(self, *changes: tuple[str, str]) -> None:
        """The built-in catalog with these changes; its fallbacks are left out, so that a test sees only its own."""
        text = re.sub(r"(?m)^fallbacks = .*\n", "", catalog.BUILT_IN.read_text(encoding="utf-8"))
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        self.catalog_file.write_text(text, encoding="utf-8")

    def let_route(self) -> None:
        """Makes the key one whose requests may say how they are routed."""
        self.dynamodb.update_item(
            TableName="MeterTable",
            Key={"meter": {"S": f"key#{self.key_id}"}},
            UpdateExpression="SET may_route = :yes",
            ExpressionAttributeValues={":yes": {"BOOL": True}},
        )

    def ask(self, prompt: str = "안녕하세요", *, take: int | None = None, **fields: Any) -> bytes:
        """The body of the answer; of a stream the first ``take`` events, after which the client leaves."""
        body = {"model": OMNI, "messages": [{"role": "user", "content": prompt}]} | fields
        answer: bytes = self.run(self._ask(json.dumps(body), take))
        return answer

    def wait_idle(self) -> None:
        """Until the provider has noticed, and billed, every client that left."""
        self.run(self.model.idle())

    def draw(self, body: str, reading: Callable[[AsyncGenerator[bytes, None]], Awaitable[None]]) -> None:
        """Lets somebody read the stream that answers a request."""
        self.run(self._draw(body, reading))

    async def _draw(self, body: str, reading: Callable[[AsyncGenerator[bytes, None]], Awaitable[None]]) -> None:
        async with self._answering(body) as answer:
            assert not isinstance(answer.body, bytes)
            await reading(answer.body)

    @asynccontextmanager
    async def _answering(self, body: str) -> AsyncIterator[Answer]:
        source = CatalogSource("", lambda: None)  # type: ignore[arg-type,return-value]
        if not self.catalog_file.exists():
            self.use_catalog()
        source._catalog = catalog.load(self.catalog_file)
        async with new_http_client() as client:
            urls = {"holysheep": self.model.openai_url, "clovastudio": self.model.clova_url}
            completions = Completions(
                catalogs=source,
                meters=Meters(self.dynamodb, "MeterTable", SEOUL, organisation_budget_pico_usd=500 * USD),
                upstream=Upstream(client, self.secret, urls),
                health=Health(self.dynamodb, "HealthTable", on_open=metrics.breaker_opened),
                ledger=Ledger(self.dynamodb, self.ledger_table, SEOUL),
                retry=self.retry,
                json_deadline_s=self.deadline_s,
                stream_deadline_s=self.stream_deadline_s or self.deadline_s,
                rng=random.Random(1),
            )
            request_id = new_request_id(at_ms=time.time_ns() // 10**6)
            answer = await completions.create(
                Call(
                    request_id,
                    f"Bearer {self.api_key}",
                    body,
                    patience_s=895,
                    preference=self.preference,
                    may_call=self.may_call,
                )
            )
            self.headers = dict(answer.headers)
            yield answer

    async def _ask(self, body: str, take: int | None) -> bytes:
        async with self._answering(body) as answer:
            if isinstance(answer.body, bytes):
                return answer.body
            events = []
            async for event in answer.body:
                events.append(event)
                if len(events) == take:
                    await answer.body.aclose()
                    break
            return b"".join(events)

    @property
    def row(self) -> Row:
        """The one row there is."""
        (item,) = self.dynamodb.scan(TableName="LedgerTable")["Items"]
        return from_item(item)

    @property
    def bill(self) -> BillRow:
        """The one thing the provider billed."""
        (billed,) = self.model.stats()["billed"]
        return billed


def assert_settled(gateway: Gateway, *, unsettled: bool = False) -> None:
    """Nothing is in flight, and the meters have spent what the rows cost."""
    rows = [from_item(item) for item in gateway.dynamodb.scan(TableName="LedgerTable")["Items"]]
    spent = sum(row.cost_pico_usd for row in rows)
    for meter in all_meters(gateway.dynamodb):
        if unsettled:
            assert len(meter.leases()) == 1
            continue
        assert meter.leases() == []
        months = meter.item["months"].values()
        assert sum(month["spent_pico_usd"] for month in months) == spent
        assert all(m["available_pico_usd"] + m["spent_pico_usd"] == meter.item["budget_pico_usd"] for m in months)


def chunks(stream: bytes) -> list[Any]:
    """The events of a stream, parsed; ``[DONE]`` as text."""
    assert stream.endswith(b"\n\n")
    data = [event.removeprefix(b"data: ") for event in stream.split(b"\n\n")[:-1]]
    return ["[DONE]" if event == b"[DONE]" else json.loads(event) for event in data]


def text(events: list[Any]) -> str:
    return "".join(c["delta"].get("content") or "" for e in events if isinstance(e, dict) for c in e.get("choices", []))


def assert_row_is_the_bill(gateway: Gateway) -> None:
    row, bill = gateway.row, gateway.bill
    assert row.request_id == bill["client_request_id"]
    assert row.usage_source == "reported"
    counted = (
        row.usage.prompt_tokens,
        row.usage.cached_tokens,
        row.usage.completion_tokens,
        row.usage.reasoning_tokens,
    )
    billed = (bill["prompt_tokens"], bill["cached_tokens"], bill["completion_tokens"], bill["reasoning_tokens"])
    assert counted == billed
    assert row.cost_pico_usd == bill["cost_pico_usd"]
