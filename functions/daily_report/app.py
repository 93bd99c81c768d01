"""At ten past midnight, and every ten minutes for what was missed: the report of the business day.

``{"day": "2026-11-22"}`` counts a day anew from its rows and stores its report again; it tells nobody.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from datetime import date
from typing import Any

import boto3
from aws_lambda_powertools import Logger
from botocore.config import Config

from naru.accounts import load_accounts
from naru.catalog_source import CatalogSource
from naru.closing import Closing
from naru.daily_report import Archive, DailyReports, due
from naru.delivery import Mailer, Topic
from naru.key_store import KeyStore
from naru.ledger_reader import LedgerReader
from naru.meter_store import MeterStore
from naru.plain_items import take_items_plain
from naru.report_settings import ReportSettings
from naru.report_store import ReportStore
from naru.usage import Usage

logger = Logger(service="naru", name="naru")
logging.getLogger("botocore").setLevel(logging.WARNING)
settings = ReportSettings.from_environment(os.environ)
aws = Config(connect_timeout=2, read_timeout=20, max_pool_connections=16, retries={"mode": "standard", "total_max_attempts": 5})  # fmt: skip
dynamodb = boto3.client("dynamodb", config=aws)
take_items_plain(dynamodb)
catalogs = CatalogSource(settings.catalog_uri, lambda: boto3.client("s3", config=aws))
keys = KeyStore(
    MeterStore(dynamodb, settings.meter_table),
    settings.time_zone,
    organisation_budget_pico_usd=settings.monthly_budget_pico_usd,
)
usage = Usage(
    LedgerReader(dynamodb, settings.ledger_table, settings.time_zone),
    ReportStore(dynamodb, settings.report_table),
    Closing(dynamodb, settings.meter_table),
)
reports = DailyReports(
    usage=usage,
    archive=Archive(lambda: boto3.client("s3", config=aws), settings.reports_bucket),
    topic=Topic(lambda: boto3.client("sns", config=aws), settings.alerts_topic),
    mailer=Mailer(
        lambda: boto3.client("sesv2", config=aws), settings.report_sender, settings.report_recipients
    ),
    language=settings.report_language,
)  # fmt: skip


def lambda_handler(event: dict[str, Any], _context: Any) -> dict[str, Any]:
    now_ms = time.time_ns() // 10**6
    if "day" not in event and not due(usage, now_ms=now_ms):
        logger.info("no report is due")
        return {"sent": []}
    accounts = asyncio.run(load_accounts(keys, now_ms=now_ms))
    krw_per_usd = asyncio.run(catalogs.current()).krw_per_usd
    if "day" in event:
        day = date.fromisoformat(event["day"])
        done: dict[str, Any] = {"stored": reports.again(day, accounts, krw_per_usd=krw_per_usd, now_ms=now_ms)}
    else:
        done = {"sent": reports.run(accounts, krw_per_usd=krw_per_usd, now_ms=now_ms)}
    logger.info("daily report", extra=done)
    return done
