"""Gateways in this process: as many environments as wanted, behind one HTTP port, sharing tables in memory.

What Lambda would add (starts, the Runtime API, a process per request) is left out; what a client and a provider see of
the use case is all there, over real connections on both sides.
"""

from __future__ import annotations

import io
import itertools
import json
import random
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any
from zoneinfo import ZoneInfo

from local.http_server import Request, Response, serve
from naru.catalog_source import CatalogSource
from naru.completions import Answer, Call, Completions
from naru.health import Health, HealthPolicy
from naru.http_api import Exchange
from naru.ledger import Ledger, Row, from_item, key_of
from naru.meter import Meters
from naru.meter_state import Limits
from naru.preferences import preference
from naru.provider_keys import ProviderKeys
from naru.retry import RetryPolicy
from naru.upstream import Upstream, new_http_client
from tests.dynamodb_model import DynamoDB
from tests.meters import USD, all_meters, put_key

SEOUL = ZoneInfo("Asia/Seoul")
_LAMBDA_S = 895.0
_JSON_DEADLINE_S, _STREAM_DEADLINE_S = 240.0, 840.0
_BUDGET_PICO_USD = 10**6 * USD


class Tables:
    """The gateway's tables: the model of DynamoDB, one call at a time, as an item's writes are in the real one."""

    exceptions = DynamoDB.exceptions

    def __init__(self) -> None:
        self._model = DynamoDB(
            MeterTable=("meter",), LedgerTable=("day_shard", "request_id"), HealthTable=("deployment",)
        )
        self._lock = threading.Lock()
        self.calls = 0
        """How often any of them was written to or read."""

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._model, name)

        @wraps(call)
        def one_at_a_time(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                self.calls += 1
                return call(*args, **kwargs)

        return one_at_a_time

    def batch_get_item(self, *, RequestItems: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N803 - boto3's name
        """What the model lacks, made of what it has."""
        found = {
            table: [
                answer["Item"] for key in asked["Keys"] if "Item" in (answer := self.get_item(TableName=table, Key=key))
            ]
            for table, asked in RequestItems.items()
        }
        return {"Responses": found}

    def row(self, request_id: str) -> Row | None:
        """The row of a request."""
        item = self.get_item(TableName="LedgerTable", Key=key_of(request_id, SEOUL)).get("Item")
        return None if item is None else from_item(item)

    def rows(self) -> dict[str, Row]:
        """The ledger, by request id."""
        pages = self.get_paginator("scan").paginate(TableName="LedgerTable")
        return {row.request_id: row for page in pages for row in map(from_item, page["Items"])}

    def unsettled(self) -> list[str]:
        """What the meters say that is not in the ledger, or is still set aside; nothing if all is well."""
        spent = sum(row.cost_pico_usd for row in self.rows().values())
        problems = []
        for meter in all_meters(self):  # type: ignore[arg-type]
            if leases := meter.leases():
                problems.append(f"{meter.id} still has {len(leases)} in flight")
            charged = sum(month["spent_pico_usd"] for month in meter.item["months"].values())
            if charged != spent:
                problems.append(f"{meter.id} has spent {charged}, the rows say {spent}")
        return problems


@dataclass
class Secret:
    """The providers' keys; ``fields`` may be changed at any time, as an operator would."""

    fields: dict[str, str]

    def get_secret_value(self, *, SecretId: str) -> dict[str, str]:  # noqa: N803 - boto3's name
        return {"SecretString": json.dumps(self.fields), "Name": SecretId}


@dataclass(frozen=True)
class Running:
    """Gateways that answer at ``base_url``."""

    base_url: str
    api_key: str
    tables: Tables
    secret: Secret
    environments: list[Completions]


@asynccontextmanager
async def gateways(
    catalog: str, keys: Mapping[str, str], *, count: int = 1, policy: HealthPolicy | None = None
) -> AsyncIterator[Running]:
    """``count`` environments with this catalog; requests go to them in turn."""
    tables, secret = Tables(), Secret(dict(keys))
    client: Any = tables
    _, api_key = put_key(client, limits=Limits(budget_pico_usd=_BUDGET_PICO_USD))
    async with AsyncExitStack() as open_clients:
        environments = []
        for number in range(count):
            http = await open_clients.enter_async_context(new_http_client())
            environments.append(
                Completions(
                    catalogs=CatalogSource("s3://bucket/catalog.toml", lambda: _S3(catalog)),  # type: ignore[arg-type,return-value]
                    meters=Meters(client, "MeterTable", SEOUL, organisation_budget_pico_usd=_BUDGET_PICO_USD),
                    upstream=Upstream(http, ProviderKeys(secret, "keys"), {}),  # type: ignore[arg-type]
                    health=Health(client, "HealthTable", policy=policy or HealthPolicy()),
                    ledger=Ledger(client, "LedgerTable", SEOUL),
                    retry=RetryPolicy(),
                    json_deadline_s=_JSON_DEADLINE_S,
                    stream_deadline_s=_STREAM_DEADLINE_S,
                    rng=random.Random(number),
                )
            )
        turns = itertools.cycle(environments)

        async def handle(request: Request, response: Response) -> None:
            await _answer(next(turns), request, response)

        async with serve(handle) as server:
            yield Running(f"http://{server.host}:{server.port}/v1", api_key, tables, secret, environments)


async def _answer(completions: Completions, request: Request, response: Response) -> None:
    """What functions/chat and API Gateway do."""
    exchange = Exchange.begin()
    headers = dict(request.headers)
    try:
        body = await request.body()
        call = Call(exchange.request_id, headers.get("authorization"), body, _LAMBDA_S, preference=preference(headers))
        answer: Answer = await completions.create(call)
    except Exception as error:  # noqa: BLE001 - every answer is an Exchange's, as in RestApi
        told = exchange.respond_error(error)
        await response.send(told.status_code, _pairs(told.headers), (told.body or "").encode())
        return
    if isinstance(answer.body, bytes):
        told = exchange.respond(200, answer.body, headers=answer.headers)
        await response.send(200, _pairs(told.headers), answer.body)
        return
    told = exchange.respond(200, iter(()), headers=answer.headers)
    async with aclosing(answer.body) as events:
        await response.start(200, _pairs(told.headers))
        async for event in events:
            await response.write(event)
    await response.finish()


def _pairs(headers: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in headers.items()]


class _S3:
    """The bucket with the operator's catalog."""

    def __init__(self, catalog: str) -> None:
        self._catalog = catalog

    def get_object(self, **_: Any) -> dict[str, Any]:
        return {"Body": io.BytesIO(self._catalog.encode()), "ETag": "1"}
