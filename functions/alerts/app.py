"""Every five minutes, and when a request crosses a threshold: tells who should know about budgets and spikes.

The five-minute run also makes the roll-ups of the hours that have closed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any

import boto3
from aws_lambda_powertools import Logger
from botocore.config import Config

from naru import report_metrics
from naru.accounts import load_accounts
from naru.alerts import Alerts
from naru.closing import Closing
from naru.daily_report import overdue
from naru.delivery import NotDeliveredError, Topic
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
aws = Config(connect_timeout=2, read_timeout=10, max_pool_connections=16, retries={"mode": "standard", "total_max_attempts": 3})  # fmt: skip
dynamodb = boto3.client("dynamodb", config=aws)
take_items_plain(dynamodb)
keys = KeyStore(
    MeterStore(dynamodb, settings.meter_table),
    settings.time_zone,
    organisation_budget_pico_usd=settings.monthly_budget_pico_usd,
)
store = ReportStore(dynamodb, settings.report_table)
usage = Usage(
    LedgerReader(dynamodb, settings.ledger_table, settings.time_zone), store, Closing(dynamodb, settings.meter_table)
)
alerts = Alerts(
    usage,
    store,
    Topic(lambda: boto3.client("sns", config=aws), settings.alerts_topic),
    thresholds=settings.alert_thresholds,
    language=settings.report_language,
)


def lambda_handler(event: dict[str, Any], _context: Any) -> dict[str, Any]:
    """A failure fails the invocation: Lambda tries it again, and the next five minutes do."""
    now_ms = time.time_ns() // 10**6
    accounts = asyncio.run(load_accounts(keys, now_ms=now_ms))
    if crossing := event.get("crossed"):
        done: dict[str, Any] = {"told": alerts.check_budgets(accounts, now_ms=now_ms, only=scope_of(crossing["meter"]))}
    else:
        if budget := accounts.budget_pico_usd:
            spent = accounts.organisation.month.spent_pico_usd
            report_metrics.put("BudgetPercent", 100 * spent / budget, unit="Percent")
        # Budgets first: the rest takes time where there is much traffic, and may fail.
        told, undelivered = [], None
        try:
            told = alerts.check_budgets(accounts, now_ms=now_ms)
        except NotDeliveredError as error:
            undelivered = error  # a topic that is ill for days must not keep days from being rolled up
        report_metrics.put("OverdueReports", overdue(usage, now_ms=now_ms))
        rolled = usage.catch_up(now_ms=now_ms)
        spike = alerts.check_spike(accounts, now_ms=now_ms)
        filled = usage.fill_back(now_ms=now_ms)
        if undelivered is not None:
            raise undelivered
        done = {
            "told": told,
            "rolled_hours": len(rolled),
            "filled_days": filled,
            "spike": f"{spike.day}/{spike.index:02}" if spike else None,
        }
    logger.info("alerts", extra=done)
    return done


def scope_of(meter_id: str) -> str:
    """What an alert calls the owner of a meter."""
    return meter_id.removeprefix("key#")
