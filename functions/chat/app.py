"""POST /chat/completions, GET /models, GET /health, GET /openapi.json: streamed, JSON included."""

from __future__ import annotations

import logging
import os
import time
from typing import Any
from urllib.parse import unquote

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import Response

from naru import metrics, models, snapshot, sse, streaming_runtime
from naru.aws_calls import DynamoDB, Lazily, SecretsManager
from naru.catalog_source import CatalogSource
from naru.completions import Answer, Call
from naru.composition import new_completions, new_meters
from naru.errors import InvalidRequestError
from naru.event_loop import EventLoop
from naru.health import Health
from naru.http_api import RestApi, body_chars, json_body
from naru.idempotency import HEADER, Idempotency
from naru.idempotency_records import Records
from naru.preferences import preference
from naru.settings import Settings
from naru.upstream import new_http_client, tls_context
from naru.wire import compact_json

# Left for the answer after a request has used up its time.
_MARGIN_S = 5.0
# Left for the accounting after a client has been given up that does not read.
_ACCOUNTING_S = 20.0

streaming_runtime.install()
logger = Logger(service="naru", name="naru")
for chatty in ("httpx", "botocore"):
    logging.getLogger(chatty).setLevel(logging.WARNING)  # one line per request is ours, and says more
settings = Settings.from_environment(os.environ)
loop = EventLoop()


def new_client(service: Any) -> Any:
    """A client of boto3, for what is rare: its import is half of a cold start."""
    import boto3
    from botocore.config import Config

    config = Config(connect_timeout=2, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 3})
    return boto3.client(service, config=config)


dynamodb: Any = DynamoDB(tls=tls_context)
rarely: Any = Lazily(lambda: new_client("dynamodb"))
catalogs = CatalogSource(settings.catalog_uri, lambda: new_client("s3"))
http = new_http_client()
meters = new_meters(settings, dynamodb, new_client)
completions = new_completions(
    settings,
    dynamodb=dynamodb,
    secrets=SecretsManager(tls=tls_context),
    meters=meters,
    health=Health(dynamodb, settings.health_table, on_open=metrics.breaker_opened),
    catalogs=catalogs,
    http=http,
)
idempotency = Idempotency(
    Records(
        rarely,
        settings.idempotency_table,
        lambda: new_client("s3"),
        settings.answers_bucket,
    ),
    meters,
    lease_s=settings.idempotency_lease_s,
)
app = RestApi(paths=["/chat/completions", "/models", "/models/<model>", "/openapi.json"], methods="GET, POST, OPTIONS")


def warm_up() -> None:
    """Before a snapshot: what the first request would else wait for, as far as it stays true."""
    tls_context()
    if not settings.catalog_uri:
        loop.run(catalogs.current())


snapshot.around(before=warm_up, after=dynamodb.close)


def lambda_handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    ends_s = time.monotonic() + context.get_remaining_time_in_millis() / 1000
    return {**app.handle(event, context), "send_until_s": ends_s - _ACCOUNTING_S}


@app.post("/chat/completions")
def create_chat_completion() -> Response[Any]:
    request_id, authorization, event = app.exchange.request_id, app.authorization, app.current_event
    header = event.headers.get(HEADER)
    key = loop.run(completions.prove(authorization, body_chars=body_chars(event), always=header is not None))
    try:
        wish = preference(event.headers)
        body = json_body(event)
    except InvalidRequestError as error:
        loop.run(completions.refuse(error, authorization, key))

    async def create() -> Answer:
        return await completions.create(Call(request_id, authorization, body, patience_s(), preference=wish, key=key))

    answer = loop.run(
        idempotency.run(
            header=header,
            authorization=authorization,
            body=body,
            request_id=request_id,
            patience_s=patience_s(),
            produce=create,
            key=key,
        )
    )
    content = (
        answer.body
        if isinstance(answer.body, bytes)
        else loop.iterate(answer.body, idle=sse.KEEP_ALIVE, merge=b"".join)
    )
    return app.exchange.respond(200, content, headers=answer.headers)


@app.get("/models")
def list_models() -> Response[Any]:
    key = loop.run(meters.authenticate(app.authorization))
    listing = models.listing(loop.run(catalogs.current()))
    return app.exchange.respond(200, compact_json(listing), headers=key.headers)


@app.get("/models/<model>")
def retrieve_model(model: str) -> Response[Any]:
    key = loop.run(meters.authenticate(app.authorization))
    # The path comes as it was sent, and a catalog may name its models as their authors do: org/model.
    found = models.describe(loop.run(catalogs.current()), unquote(model))
    return app.exchange.respond(200, compact_json(found), headers=key.headers)


@app.get("/health")
def health() -> Response[Any]:
    return app.exchange.respond(200, b'{"status":"ok"}')


@app.get("/openapi.json")
def describe() -> Response[Any]:
    from naru import openapi  # nobody waits for this at a cold start

    return app.exchange.respond(200, openapi.rendered())


def patience_s() -> float:
    """How long the request may still take."""
    return float(app.lambda_context.get_remaining_time_in_millis()) / 1000 - _MARGIN_S
