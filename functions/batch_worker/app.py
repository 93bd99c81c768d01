"""Works on batches: messages of the queue, and every five minutes a look after those that have not ended."""

from __future__ import annotations

import logging
import os
from typing import Any

import boto3
from aws_lambda_powertools import Logger
from botocore.config import Config

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
from naru.completions import Completions
from naru.crossings import Crossings
from naru.event_loop import EventLoop
from naru.file_store import FileStore
from naru.ledger import Ledger
from naru.meter import Meters
from naru.objects import Objects
from naru.provider_keys import ProviderKeys
from naru.retry import RetryPolicy
from naru.upstream import Upstream, new_http_client

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
dynamodb = boto3.client("dynamodb", config=aws)
meters = Meters(
    dynamodb,
    settings.meter_table,
    settings.time_zone,
    organisation_budget_pico_usd=settings.monthly_budget_pico_usd,
    on_spent=Crossings(
        lambda: boto3.client("lambda", config=aws), settings.alerts_function, settings.alert_thresholds
    ).notice,
)
catalogs = CatalogSource(settings.catalog_uri, lambda: boto3.client("s3", config=aws))
health = PacedHealth(dynamodb, settings.health_table)
objects = Objects(lambda: boto3.client("s3", config=aws), settings.files_bucket)
batches = BatchStore(dynamodb, settings.batch_table)
progress = Progress(dynamodb, settings.batch_table)
reader = BatchReader(progress, objects)
queue = BatchQueue(boto3.client("sqs", config=aws), settings.batch_queue_url)
phases = Phases(
    store=batches,
    progress=progress,
    files=FileStore(dynamodb, settings.batch_table, objects),
    reader=reader,
    queue=queue,
    notifier=Notifier(boto3.client("sns", config=aws), settings.batch_topic),
    budget=BatchBudget(dynamodb, settings.meter_table, settings.time_zone),
    range_lines=settings.batch_range_lines,
)
http = new_http_client(max_connections=settings.batch_worker_lines + 20)
completions = Completions(
    catalogs=catalogs,
    meters=meters,
    upstream=Upstream(
        http,
        ProviderKeys(boto3.client("secretsmanager", config=aws), settings.provider_keys_secret),
        settings.provider_base_urls,
    ),
    health=health,
    ledger=Ledger(dynamodb, settings.ledger_table, settings.time_zone),
    retry=RetryPolicy(max_attempts=settings.max_attempts),
    json_deadline_s=settings.json_deadline_s,
    stream_deadline_s=settings.stream_deadline_s,
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
