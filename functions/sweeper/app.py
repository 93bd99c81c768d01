"""Every five minutes: ends the leases of requests whose process died."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import asdict
from typing import Any

import boto3
from aws_lambda_powertools import Logger

from naru import report_metrics
from naru.composition import new_meters
from naru.ledger import Ledger
from naru.settings import Settings
from naru.sweeper import Sweeper, SweepIncompleteError, Swept

logger = Logger(service="naru", name="naru")
settings = Settings.from_environment(os.environ)
dynamodb = boto3.client("dynamodb")
sweeper = Sweeper(
    dynamodb,
    settings.meter_table,
    new_meters(settings, dynamodb, boto3.client),
    Ledger(dynamodb, settings.ledger_table, settings.time_zone),
)


def lambda_handler(_event: dict[str, Any], _context: Any) -> dict[str, int]:
    """A lease that cannot be ended fails the invocation, which the alarm on failing schedules counts."""
    try:
        swept = asyncio.run(sweeper.sweep(now_ms=time.time_ns() // 10**6))
    except SweepIncompleteError as incomplete:
        tell(incomplete.swept)
        raise
    return tell(swept)


def tell(swept: Swept) -> dict[str, int]:
    """What the sweep did, for the log and the alarm."""
    counts = asdict(swept)
    logger.info("sweep", extra=counts)
    if swept.unknown:
        report_metrics.put("SweptUnknown", swept.unknown)
    return counts
