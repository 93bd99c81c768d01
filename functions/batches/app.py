"""/files, /uploads and /batches: what is to be done later, and what has come of it."""

from __future__ import annotations

import logging
import os
from typing import Any

import boto3
from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import Response
from botocore.config import Config

from naru.batch_progress import Progress
from naru.batch_queue import BatchQueue
from naru.batch_reader import BatchReader
from naru.batch_settings import BatchSettings
from naru.batch_store import BatchStore
from naru.batches_api import Batches
from naru.call_limits import UPLOAD, CallLimits
from naru.catalog_source import CatalogSource
from naru.event_loop import EventLoop
from naru.file_store import FileStore
from naru.files_api import Files
from naru.http_api import RestApi, json_body, raw_body
from naru.meter import Meters
from naru.objects import Objects
from naru.wire import compact_json

logger = Logger(service="naru", name="naru")
logging.getLogger("botocore").setLevel(logging.WARNING)
settings = BatchSettings.from_environment(os.environ)
loop = EventLoop()
aws = Config(
    connect_timeout=2,
    read_timeout=10,
    retries={"mode": "standard", "total_max_attempts": 3},
    signature_version="s3v4",
    s3={"addressing_style": "virtual" if "AWS_ENDPOINT_URL" not in os.environ else "path"},
)
dynamodb = boto3.client("dynamodb", config=Config(connect_timeout=2, read_timeout=5))
meters = Meters(
    dynamodb,
    settings.meter_table,
    settings.time_zone,
    organisation_budget_pico_usd=settings.monthly_budget_pico_usd,
)
limits = CallLimits(dynamodb, settings.meter_table, "batches", per_minute=settings.calls_per_minute)
catalogs = CatalogSource(settings.catalog_uri, lambda: boto3.client("s3", config=aws))
objects = Objects(lambda: boto3.client("s3", config=aws), settings.files_bucket)
progress = Progress(dynamodb, settings.batch_table)
files = Files(FileStore(dynamodb, settings.batch_table, objects))
batches = Batches(
    store=BatchStore(dynamodb, settings.batch_table),
    progress=progress,
    files=files,
    reader=BatchReader(progress, objects),
    queue=BatchQueue(boto3.client("sqs", config=Config(connect_timeout=2, read_timeout=5)), settings.batch_queue_url),
    window_s=settings.batch_window_s,
)
app = RestApi(
    paths=[
        "/files",
        "/files/<file_id>",
        "/files/<file_id>/content",
        "/uploads/presigned",
        "/uploads/<upload_id>/complete",
        "/batches",
        "/batches/<batch_id>",
        "/batches/<batch_id>/cancel",
        "/batches/<batch_id>/results",
    ],
    methods="GET, POST, DELETE, OPTIONS",
)


def lambda_handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    return app.handle(event, context)


@app.post("/files")
def create_file() -> Response[Any]:
    content_type = app.current_event.headers.get("content-type")
    return answer(files.create(tenant(weight=UPLOAD), raw_body(app.current_event), content_type))


@app.get("/files")
def list_files() -> Response[Any]:
    return answer(files.page(tenant(), app.current_event.query_string_parameters))


@app.get("/files/<file_id>")
def retrieve_file(file_id: str) -> Response[Any]:
    return answer(files.retrieve(tenant(), file_id))


@app.delete("/files/<file_id>")
def delete_file(file_id: str) -> Response[Any]:
    return answer(batches.delete_file(tenant(), file_id))


@app.get("/files/<file_id>/content")
def file_content(file_id: str) -> Response[Any]:
    content = files.content(tenant(), file_id)
    if isinstance(content, str):
        # SDKs follow it, and leave the API key behind: it is another host.
        return app.exchange.respond(302, b"", headers={"Location": content})
    return app.exchange.respond(200, content, headers={"Content-Type": "application/jsonl"})


@app.post("/uploads/presigned")
def begin_upload() -> Response[Any]:
    return answer(files.begin_upload(tenant(weight=UPLOAD), json_body(app.current_event)))


@app.post("/uploads/<upload_id>/complete")
def complete_upload(upload_id: str) -> Response[Any]:
    return answer(files.complete_upload(tenant(), upload_id))


@app.post("/batches")
def create_batch() -> Response[Any]:
    key_id = tenant(weight=UPLOAD)
    catalog = loop.run(catalogs.current())
    return answer(batches.create(key_id, json_body(app.current_event), models=list(catalog.models)))


@app.get("/batches")
def list_batches() -> Response[Any]:
    return answer(batches.page(tenant(), app.current_event.query_string_parameters))


@app.get("/batches/<batch_id>")
def retrieve_batch(batch_id: str) -> Response[Any]:
    return answer(batches.retrieve(tenant(), batch_id))


@app.post("/batches/<batch_id>/cancel")
def cancel_batch(batch_id: str) -> Response[Any]:
    return answer(batches.cancel(tenant(), batch_id))


@app.get("/batches/<batch_id>/results")
def batch_results(batch_id: str) -> Response[Any]:
    return answer(batches.results(tenant(), batch_id, app.current_event.query_string_parameters))


def tenant(*, weight: int = 1) -> str:
    """The id of the API key: what is made with it belongs to it, whatever its secret is later. Its calls are counted."""
    key_id = loop.run(meters.authenticate(app.authorization)).key_id
    loop.run(limits.count(key_id, now_ms=app.exchange.arrived_at_ms, weight=weight))
    return key_id


def answer(value: dict[str, Any]) -> Response[Any]:
    return app.exchange.respond(200, compact_json(value))
