"""/usage and /organization: what was used and what it cost, for operators, for apps, and for OpenAI's dashboards."""

from __future__ import annotations

import logging
import os
import random
from typing import Any

import boto3
from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import Response
from botocore.config import Config

from naru import organization_usage, report_pages, surroundings, usage_api, usage_query
from naru.accounts import Accounts, load_account, load_accounts
from naru.alerts import Alerts
from naru.amounts import write_json
from naru.batch_progress import Progress
from naru.batch_store import BatchStore
from naru.call_limits import CallLimits
from naru.catalog_source import CatalogSource
from naru.closing import Closing
from naru.delivery import NotDeliveredError, Topic
from naru.errors import StoreUnavailableError
from naru.event_loop import EventLoop
from naru.health_store import HealthStore, HealthStoreError
from naru.http_api import RestApi
from naru.key_store import KeyStore
from naru.ledger_reader import LedgerReader
from naru.meter import Meters
from naru.meter_store import MeterStore
from naru.plain_items import take_items_plain
from naru.report_settings import ReportSettings
from naru.report_store import ReportStore
from naru.usage import Usage
from naru.usage_access import Reader, reader
from naru.usage_summary import summary

logger = Logger(service="naru", name="naru")
logging.getLogger("botocore").setLevel(logging.WARNING)
settings = ReportSettings.from_environment(os.environ)
loop = EventLoop()
aws = Config(connect_timeout=2, read_timeout=10, max_pool_connections=16, retries={"mode": "standard", "total_max_attempts": 3})  # fmt: skip
dynamodb = boto3.client("dynamodb", config=aws)
take_items_plain(dynamodb)
budget = settings.monthly_budget_pico_usd
catalogs = CatalogSource(settings.catalog_uri, lambda: boto3.client("s3", config=aws))
keys = KeyStore(MeterStore(dynamodb, settings.meter_table), settings.time_zone, organisation_budget_pico_usd=budget)
meters = Meters(dynamodb, settings.meter_table, settings.time_zone, organisation_budget_pico_usd=budget)
limits = CallLimits(dynamodb, settings.meter_table, "usage", per_minute=settings.calls_per_minute)
store = ReportStore(dynamodb, settings.report_table)
usage = Usage(
    LedgerReader(dynamodb, settings.ledger_table, settings.time_zone), store, Closing(dynamodb, settings.meter_table)
)
topic = Topic(lambda: boto3.client("sns", config=aws), settings.alerts_topic)
alerts = Alerts(usage, store, topic, thresholds=settings.alert_thresholds, language=settings.report_language)
batches = (BatchStore(dynamodb, settings.batch_table), Progress(dynamodb, settings.batch_table))
states = HealthStore(dynamodb, settings.health_table, kept_s=0, rng=random.SystemRandom())
app = RestApi(
    paths=[
        "/usage",
        "/usage/requests",
        "/usage/summary",
        "/usage/reports/<period>",
        "/organization/costs",
        "/organization/usage/completions",
        "/admin/alerts/test",
    ],
    methods="GET, POST, OPTIONS",
)


def lambda_handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    return app.handle(event, context)


@app.get("/usage")
def list_usage() -> Response[Any]:
    who = authenticate()
    asked = usage_query.parse_usage(query(), settings.time_zone, now_ms=now_ms()).seen_by(who.key_id)
    found = usage_api.usage_list(usage, asked, accounts_for(who), krw_per_usd=krw_per_usd(), now_ms=now_ms())
    return table(usage_api.usage_csv(found)) if asked.as_csv else answer(found)


@app.get("/usage/requests")
def list_requests() -> Response[Any]:
    who = authenticate()
    asked = usage_query.parse_requests(query(), settings.time_zone, now_ms=now_ms()).seen_by(who.key_id)
    found = usage_api.requests_list(usage, asked, accounts_for(who), now_ms=now_ms())
    if not asked.as_csv:
        return answer(found)
    return table(usage_api.requests_csv(found), **({"x-naru-after": found["last_id"]} if found["has_more"] else {}))


@app.get("/usage/summary")
def summarize() -> Response[Any]:
    who = authenticate()
    accounts = accounts_for(who)
    found = summary(
        usage,
        accounts,
        key_id=who.key_id,
        krw_per_usd=krw_per_usd(),
        now_ms=now_ms(),
        batches=(lambda keys: surroundings.batches(*batches, keys, only=who.key_id)) if settings.batch_table else None,
        health=health() if who.key_id is None else None,
    )
    return answer(found)


@app.get("/usage/reports/<period>")
def make_report(period: str) -> Response[Any]:
    who = authenticate()
    who.require_admin()
    kind, body = report_pages.page(
        usage, period, query(), accounts_for(who), krw_per_usd=krw_per_usd(), language=settings.report_language, now_ms=now_ms()
    )  # fmt: skip
    return app.exchange.respond(200, body, headers={"Content-Type": kind})


@app.get("/organization/costs")
def list_costs() -> Response[Any]:
    who = authenticate()
    asked = organization_usage.parse_costs(query(), now_ms=now_ms()).seen_by(who.key_id)
    return answer(organization_usage.costs_page(usage, asked, now_ms=now_ms()))


@app.get("/organization/usage/completions")
def list_completions() -> Response[Any]:
    who = authenticate()
    asked = organization_usage.parse_completions(query(), now_ms=now_ms()).seen_by(who.key_id)
    return answer(organization_usage.completions_page(usage, asked, now_ms=now_ms()))


@app.post("/admin/alerts/test")
def send_test_alert() -> Response[Any]:
    authenticate().require_admin()
    try:
        alerts.test()
    except NotDeliveredError as error:
        raise StoreUnavailableError("The message could not be sent; try again.", log={"reason": str(error)}) from error
    return answer({"object": "alert.test", "sent": True})


def authenticate() -> Reader:
    """Whoever asks, by an admin key or a key of an app; not more often than they may."""
    who = loop.run(reader(app.authorization, keys, meters, now_ms=now_ms()))
    loop.run(limits.count(who.counted_as, now_ms=now_ms()))
    return who


def accounts_for(who: Reader) -> Accounts:
    """The keys that may be named to them."""
    if who.key_id is None:
        return loop.run(load_accounts(keys, now_ms=now_ms()))
    return loop.run(load_account(keys, who.key_id, now_ms=now_ms()))


def health() -> list[dict[str, Any]] | None:
    """Of the catalog's deployments; None where nobody can say."""
    catalog = loop.run(catalogs.current())
    names = [deployment.name for model in catalog.models.values() for deployment in model.deployments]
    try:
        return surroundings.health(loop.run(states.read(names)), now_ms=now_ms())
    except HealthStoreError as error:
        logger.warning("health not read", extra={"reason": str(error)})
        return None


def krw_per_usd() -> int:
    """The catalog's rate."""
    return loop.run(catalogs.current()).krw_per_usd


def query() -> usage_query.Query:
    """The parameters of the URL, each as often as it was given."""
    given: dict[str, list[str]] = app.current_event.multi_value_query_string_parameters or {}
    return given


def answer(value: dict[str, Any]) -> Response[Any]:
    return app.exchange.respond(200, write_json(value).encode())


def table(text: str, **headers: str) -> Response[Any]:
    return app.exchange.respond(200, text.encode(), headers={"Content-Type": "text/csv; charset=utf-8", **headers})


def now_ms() -> int:
    """When the request arrived."""
    return app.exchange.arrived_at_ms
