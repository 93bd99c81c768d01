"""POST /chat/completions, GET /models, GET /health: streamed, JSON included."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import boto3
from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response
from botocore.config import Config

from naru import models, streaming_runtime
from naru.catalog_source import CatalogSource
from naru.completions import Call, Completions
from naru.errors import UnknownPathError
from naru.event_loop import EventLoop
from naru.http_api import Exchange, raw_body
from naru.ledger import Ledger
from naru.meter import Meters
from naru.provider_keys import ProviderKeys
from naru.retry import RetryPolicy
from naru.settings import Settings
from naru.upstream import Upstream, new_http_client
from naru.wire import compact_json

# Left for the answer after a request has used up its time.
_MARGIN_S = 5.0

streaming_runtime.install()
logger = Logger(service="naru", name="naru")
for chatty in ("httpx", "botocore"):
    logging.getLogger(chatty).setLevel(logging.WARNING)  # one line per request is ours, and says more
settings = Settings.from_environment(os.environ)
loop = EventLoop()
aws = Config(connect_timeout=2, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 3})
dynamodb = boto3.client("dynamodb", config=aws)
catalogs = CatalogSource(settings.catalog_uri, lambda: boto3.client("s3", config=aws))
meters = Meters(
    dynamodb,
    settings.meter_table,
    settings.time_zone,
    organisation_budget_pico_usd=settings.monthly_budget_pico_usd,
)
completions = Completions(
    catalogs=catalogs,
    meters=meters,
    upstream=Upstream(
        new_http_client(),
        ProviderKeys(boto3.client("secretsmanager", config=aws), settings.provider_keys_secret),
        settings.provider_base_urls,
    ),
    ledger=Ledger(dynamodb, settings.ledger_table, settings.time_zone),
    retry=RetryPolicy(max_attempts=settings.max_attempts),
    json_deadline_s=settings.json_deadline_s,
    stream_deadline_s=settings.stream_deadline_s,
)
app = APIGatewayRestResolver()


def lambda_handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    app.append_context(exchange=Exchange.begin())  # type: ignore[no-untyped-call]
    return app.resolve(event, context)


@app.post("/chat/completions")
def create_chat_completion() -> Response[Any]:
    answer = loop.run(
        completions.create(
            Call(
                request_id=exchange().request_id,
                authorization=app.current_event.headers.get("authorization"),
                body=raw_body(app.current_event),
                patience_s=app.lambda_context.get_remaining_time_in_millis() / 1000 - _MARGIN_S,
            )
        )
    )
    body = answer.body if isinstance(answer.body, bytes) else loop.iterate(answer.body)
    return exchange().respond(200, body, headers=answer.headers)


@app.get("/models")
def list_models() -> Response[Any]:
    headers = authenticate()
    return exchange().respond(200, compact_json(models.listing(loop.run(catalogs.current()))), headers=headers)


@app.get("/models/<model>")
def retrieve_model(model: str) -> Response[Any]:
    headers = authenticate()
    return exchange().respond(200, compact_json(models.describe(loop.run(catalogs.current()), model)), headers=headers)


@app.get("/health")
def health() -> Response[Any]:
    return exchange().respond(200, b'{"status":"ok"}')


@app.route("/chat/completions", method="OPTIONS")
@app.route("/models", method="OPTIONS")
def preflight() -> Response[Any]:
    asked = app.current_event.headers.get("access-control-request-headers")
    return exchange().respond_preflight(methods="GET, POST, OPTIONS", asked_headers=asked)


@app.route("/models/<model>", method="OPTIONS")
def preflight_model(model: str) -> Response[Any]:  # noqa: ARG001 - the route binds it
    return preflight()


@app.not_found
def unknown_path(_: Exception) -> Response[Any]:
    event = app.current_event
    return exchange().respond_error(UnknownPathError(f"There is no {event.http_method} {event.path} here."))


@app.exception_handler(Exception)  # type: ignore[untyped-decorator]
def failed(error: Exception) -> Response[Any]:
    return exchange().respond_error(error)


def exchange() -> Exchange:
    """The request being answered."""
    current: Exchange = app.context["exchange"]
    return current


def authenticate() -> Mapping[str, str]:
    """Lets only owners of a key in; where its limits stand."""
    return loop.run(meters.authenticate(app.current_event.headers.get("authorization"))).headers
