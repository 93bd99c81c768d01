"""/admin/keys and /admin/organization: what an operator does with keys and budgets."""

from __future__ import annotations

import logging
import os
from typing import Any

import boto3
from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import Response
from botocore.config import Config

from naru import admin_api
from naru.catalog_source import CatalogSource
from naru.event_loop import EventLoop
from naru.http_api import RestApi, json_body
from naru.key_store import KeyStore
from naru.meter_store import MeterStore
from naru.settings import Settings

logger = Logger(service="naru", name="naru")
logging.getLogger("botocore").setLevel(logging.WARNING)
settings = Settings.from_environment(os.environ)
loop = EventLoop()
aws = Config(connect_timeout=2, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 3})
catalogs = CatalogSource(settings.catalog_uri, lambda: boto3.client("s3", config=aws))
keys = KeyStore(
    MeterStore(boto3.client("dynamodb", config=aws), settings.meter_table),
    settings.time_zone,
    organisation_budget_pico_usd=settings.monthly_budget_pico_usd,
)
app = RestApi(
    paths=["/admin/keys", "/admin/keys/<key_id>", "/admin/keys/<key_id>/rotate", "/admin/organization"],
    methods="GET, POST, PATCH, DELETE, OPTIONS",
)


def lambda_handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    return app.handle(event, context)


@app.post("/admin/keys")
def create_key() -> Response[Any]:
    authenticate()
    new = admin_api.parse_new_key(json_body(app.current_event), loop.run(catalogs.current()), now_ms=now_ms())
    view, secret = loop.run(keys.create(new, now_ms=now_ms()))
    audit("created", view.key_id)
    return answer(admin_api.key_object(view, secret=secret), status=201)


@app.get("/admin/keys")
def list_keys() -> Response[Any]:
    authenticate()
    after, limit = admin_api.parse_page(app.current_event.query_string_parameters)
    return answer(admin_api.key_list(loop.run(keys.page(now_ms=now_ms(), after=after, limit=limit))))


@app.get("/admin/keys/<key_id>")
def retrieve_key(key_id: str) -> Response[Any]:
    authenticate()
    return answer(admin_api.key_object(loop.run(keys.get(key_id, now_ms=now_ms()))))


@app.patch("/admin/keys/<key_id>")
def update_key(key_id: str) -> Response[Any]:
    authenticate()
    changes = admin_api.parse_key_changes(json_body(app.current_event), loop.run(catalogs.current()), now_ms=now_ms())
    view = loop.run(keys.update(key_id, changes, now_ms=now_ms()))
    audit("updated", key_id)
    return answer(admin_api.key_object(view))


@app.delete("/admin/keys/<key_id>")
def revoke_key(key_id: str) -> Response[Any]:
    authenticate()
    view = loop.run(keys.revoke(key_id, now_ms=now_ms()))
    audit("revoked", key_id)
    return answer(admin_api.key_object(view))


@app.post("/admin/keys/<key_id>/rotate")
def rotate_key(key_id: str) -> Response[Any]:
    authenticate()
    overlap_s = admin_api.parse_rotation(json_body(app.current_event))
    view, secret = loop.run(keys.rotate(key_id, overlap_s=overlap_s, now_ms=now_ms()))
    audit("rotated", key_id)
    return answer(admin_api.key_object(view, secret=secret), status=201)


@app.get("/admin/organization")
def retrieve_organization() -> Response[Any]:
    authenticate()
    return answer(admin_api.organisation_object(loop.run(keys.organisation(now_ms=now_ms()))))


@app.patch("/admin/organization")
def update_organization() -> Response[Any]:
    authenticate()
    changes = admin_api.parse_organisation_changes(json_body(app.current_event))
    view = loop.run(keys.update_organisation(**changes, now_ms=now_ms()))
    audit("updated", "organisation")
    return answer(admin_api.organisation_object(view))


def authenticate() -> None:
    """Lets only owners of an admin key in."""
    admin = loop.run(keys.authenticate_admin(app.authorization, now_ms=now_ms()))
    app.append_context(admin=admin)  # type: ignore[no-untyped-call]


def audit(action: str, what: str) -> None:
    """Who changed what, for the log: it outlives the key."""
    facts = {
        "request_id": app.exchange.request_id,
        "action": action,
        "changed": what,
        "admin_key_id": app.context["admin"],
    }
    logger.info("admin", extra=facts)


def answer(value: dict[str, Any], *, status: int = 200) -> Response[Any]:
    return app.exchange.respond(status, admin_api.render(value))


def now_ms() -> int:
    """When the request arrived."""
    return app.exchange.arrived_at_ms
