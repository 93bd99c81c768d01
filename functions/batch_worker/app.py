"""Works on batches: messages of the queue, and every five minutes a look after those that have not ended."""

from __future__ import annotations

import logging
import os
from typing import Any

import boto3
from aws_lambda_powertools import Logger
from botocore.config import Config

from naru.aws_calls import DynamoDB
from naru.batch_budget import BatchBudget
from naru.batch_lines import Lines
from naru.batch_pace import PacedHealth
from naru.batch_phases import Phases
from naru.batch_progress import Progress
from naru.batch_queue import BatchQueue, Notifier
from naru.batch_reader import BatchReader
from naru.batch_settings import BatchSettings
from naru.batch_store import BatchStore
from naru.batch_worker import BatchWorker
from naru.catalog_source import CatalogSource
from naru.composition import new_completions, new_meters
from naru.event_loop import EventLoop
from naru.file_store import FileStore
from naru.objects import Objects
from naru.upstream import new_http_client, tls_context

logger = Logger(service="naru", name="naru")
for chatty in ("httpx", "botocore"):
    logging.getLogger(chatty).setLevel(logging.WARNING)
settings = BatchSettings.from_environment(os.environ)
loop = EventLoop()
aws = Config(
    connect_timeout=2,
    read_timeout=15,
    retries={"mode": "standard", "total_max_attempts": 3},
    # Each line makes some calls beside the one that it waits for.
    max_pool_connections=32,
)


def new_client(service: Any) -> Any:
    return boto3.client(service, config=aws)


dynamodb = new_client("dynamodb")
calls: Any = DynamoDB(tls=tls_context, read_timeout_s=15.0)
meters = new_meters(settings, calls, new_client)
catalogs = CatalogSource(settings.catalog_uri, lambda: new_client("s3"))
health = PacedHealth(calls, settings.health_table)
objects = Objects(lambda: new_client("s3"), settings.files_bucket)
batches = BatchStore(dynamodb, settings.batch_table)
progress = Progress(dynamodb, settings.batch_table)
reader = BatchReader(progress, objects)
queue = BatchQueue(new_client("sqs"), settings.batch_queue_url)
phases = Phases(
    store=batches,
    progress=progress,
    files=FileStore(dynamodb, settings.batch_table, objects),
    reader=reader,
    queue=queue,
    notifier=Notifier(new_client("sns"), settings.batch_topic),
    budget=BatchBudget(dynamodb, settings.meter_table, settings.time_zone),
    range_lines=settings.batch_range_lines,
)
http = new_http_client(max_connections=settings.batch_worker_lines + 20)
completions = new_completions(
    settings,
    dynamodb=calls,
    secrets=new_client("secretsmanager"),
    meters=meters,
    health=health,
    catalogs=catalogs,
    http=http,
)
worker = BatchWorker(
    batches=batches,
    progress=progress,
    reader=reader,
    phases=phases,
    queue=queue,
    lines=Lines(completions, progress, objects),
    health=health,
    meters=meters,
    catalogs=catalogs,
    most_lines=settings.batch_worker_lines,
    lease_s=settings.batch_lease_s,
)


def lambda_handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    if "Records" not in event:
        done = phases.tend()
        logger.info("batches", extra=done)
        return done
    failed = loop.run(
        worker.handle(event["Records"], remaining_s=lambda: context.get_remaining_time_in_millis() / 1000)
    )
    return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in failed]}
