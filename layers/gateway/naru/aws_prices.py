"""What AWS charges for running Naru, and for the containers that would do its work: list prices, on demand.

From AWS's price pages for Asia Pacific (Seoul) and US East (N. Virginia), without free tiers and without data transfer,
which is the same for both. Prices change: what is here is an estimate for planning, never a bill.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

CHECKED = "2026-11-22"
HOURS_A_MONTH = 730
_SECONDS_A_MONTH = HOURS_A_MONTH * 3600
_MILLION = 10**6


@dataclass(frozen=True, slots=True)
class Prices:
    """USD. Lambda and Fargate on arm64."""

    name: str
    api_per_million: Decimal
    lambda_per_million: Decimal
    lambda_per_million_gb_s: Decimal
    write_units_per_million: Decimal
    read_units_per_million: Decimal
    logs_per_gb: Decimal
    metric_per_month: Decimal
    """One of the first 10,000, if it has values in every hour."""
    alarm_per_month: Decimal
    """For each metric that it looks at."""
    secret_per_month: Decimal
    vcpu_per_hour: Decimal
    gb_per_hour: Decimal
    load_balancer_per_hour: Decimal
    """With one capacity unit."""
    database_per_hour: Decimal
    """PostgreSQL on db.t4g.micro, one zone."""
    database_gb_per_month: Decimal
    address_per_hour: Decimal


REGIONS: Mapping[str, Prices] = {
    "ap-northeast-2": Prices(
        name="Seoul",
        api_per_million=Decimal("3.50"),
        lambda_per_million=Decimal("0.20"),
        lambda_per_million_gb_s=Decimal("13.33"),
        write_units_per_million=Decimal("0.68"),
        read_units_per_million=Decimal("0.1355"),
        logs_per_gb=Decimal("0.76"),
        metric_per_month=Decimal("0.30"),
        alarm_per_month=Decimal("0.10"),
        secret_per_month=Decimal("0.40"),
        vcpu_per_hour=Decimal("0.03725"),
        gb_per_hour=Decimal("0.00409"),
        load_balancer_per_hour=Decimal("0.0305"),
        database_per_hour=Decimal("0.025"),
        database_gb_per_month=Decimal("0.131"),
        address_per_hour=Decimal("0.005"),
    ),
    "us-east-1": Prices(
        name="Virginia",
        api_per_million=Decimal("3.50"),
        lambda_per_million=Decimal("0.20"),
        lambda_per_million_gb_s=Decimal("13.33"),
        write_units_per_million=Decimal("0.625"),
        read_units_per_million=Decimal("0.125"),
        logs_per_gb=Decimal("0.50"),
        metric_per_month=Decimal("0.30"),
        alarm_per_month=Decimal("0.10"),
        secret_per_month=Decimal("0.40"),
        vcpu_per_hour=Decimal("0.03238"),
        gb_per_hour=Decimal("0.00356"),
        load_balancer_per_hour=Decimal("0.0305"),
        database_per_hour=Decimal("0.016"),
        database_gb_per_month=Decimal("0.115"),
        address_per_hour=Decimal("0.005"),
    ),
}

# Of one request: its own line and its metrics' (1,900 bytes, `python -m benchmarks overhead`), Lambda's start and report.
LOG_BYTES = 2_700
# Of Naru's own, with one model or two at one deployment each (naru.metrics); and what the template's alarms look at.
_METRICS, _ALARM_METRICS = 30, 12
# A meter's item and what a lease adds to it, fitted to what `python -m benchmarks ledger` counts.
_METER_BYTES, _LEASE_BYTES, _METER_WRITES = 520, 100, 4
# A container's CPU per streamed request: the least that `python -m benchmarks overhead` has found for LiteLLM's proxy. Half
# of a vCPU is kept free.
_CONTAINER_CPU_S, _BUSY = Decimal("0.065"), Decimal("0.5")
_TASK_VCPU, _TASK_GB, _TASKS_AT_LEAST, _DATABASE_GB = 1, 2, 2, 20


@dataclass(frozen=True, slots=True)
class Load:
    """A month's requests: how many, how long an average answer takes, how much memory a function has, and how many times
    the average the busiest moment is.
    """

    requests: int
    latency_s: Decimal
    memory_mb: int = 512
    peak: Decimal = Decimal(5)

    @property
    def in_flight(self) -> Decimal:
        """Requests at once, on average."""
        return self.requests * self.latency_s / _SECONDS_A_MONTH


def write_units(in_flight: Decimal) -> Decimal:
    """DynamoDB's write units for one request: the row, and four writes on meters that hold a lease for each request in
    flight, so that they grow with them.
    """
    item_kb = (_METER_BYTES + _LEASE_BYTES * max(in_flight, Decimal(1))) / 1024
    # A begun KB is a whole one: half a KB on average, once it is more than one.
    return 1 + _METER_WRITES * (Decimal(1) if item_kb <= 1 else item_kb + Decimal("0.5"))


def naru(load: Load, prices: Prices) -> dict[str, Decimal]:
    """USD a month, by what is paid for. With no requests that is the secret and the alarms."""
    millions = Decimal(load.requests) / _MILLION
    gb_s = load.latency_s * load.memory_mb / 1024
    # A metric is paid for by the hours in which it has a value.
    busy = min(Decimal(1), Decimal(load.requests) / HOURS_A_MONTH)
    return {
        "API Gateway": millions * prices.api_per_million,
        "Lambda, requests": millions * prices.lambda_per_million,
        f"Lambda, {load.memory_mb} MB while it waits": millions * gb_s * prices.lambda_per_million_gb_s,
        "DynamoDB, meters and ledger": millions * write_units(load.in_flight) * prices.write_units_per_million,
        "CloudWatch, logs": millions * LOG_BYTES / 1000 * prices.logs_per_gb,
        "CloudWatch, metrics": busy * _METRICS * prices.metric_per_month,
        "CloudWatch, alarms": _ALARM_METRICS * prices.alarm_per_month,
        "Secrets Manager": prices.secret_per_month,
    }


def containers(load: Load, prices: Prices) -> dict[str, Decimal]:
    """USD a month of a proxy that is always on: as many containers as the busiest moment needs and two at least, a load
    balancer, and a database for keys and spend.
    """
    busiest_per_s = load.requests * load.peak / _SECONDS_A_MONTH
    tasks = max(_TASKS_AT_LEAST, math.ceil(busiest_per_s * _CONTAINER_CPU_S / (_TASK_VCPU * _BUSY)))
    per_task = _TASK_VCPU * prices.vcpu_per_hour + _TASK_GB * prices.gb_per_hour + prices.address_per_hour
    millions = Decimal(load.requests) / _MILLION
    return {
        f"Fargate, {tasks} of {_TASK_VCPU} vCPU and {_TASK_GB} GB": tasks * per_task * HOURS_A_MONTH,
        "load balancer": (prices.load_balancer_per_hour + 2 * prices.address_per_hour) * HOURS_A_MONTH,
        "database, db.t4g.micro": prices.database_per_hour * HOURS_A_MONTH
        + _DATABASE_GB * prices.database_gb_per_month,
        "CloudWatch, logs": millions * LOG_BYTES / 1000 * prices.logs_per_gb,
        "Secrets Manager": prices.secret_per_month,
    }
