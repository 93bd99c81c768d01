"""What several functions put together alike from their settings; the clients are their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from naru.crossings import Crossings
from naru.ledger import Ledger
from naru.meter import Meters
from naru.settings import Settings

if TYPE_CHECKING:
    import httpx

    from naru.catalog_source import CatalogSource
    from naru.completions import Completions
    from naru.health import Health


def new_meters(settings: Settings, dynamodb: Any, new_client: Callable[[Any], Any]) -> Meters:
    """The meters; who crosses a threshold wakes the alerts function. ``new_client`` makes a client of boto3."""
    crossings = Crossings(lambda: new_client("lambda"), settings.alerts_function, settings.alert_thresholds)
    return Meters(
        dynamodb,
        settings.meter_table,
        settings.time_zone,
        organisation_budget_pico_usd=settings.monthly_budget_pico_usd,
        on_spent=crossings.notice,
    )


def new_completions(
    settings: Settings,
    *,
    dynamodb: Any,
    secrets: Any,
    meters: Meters,
    health: Health,
    catalogs: CatalogSource,
    http: httpx.AsyncClient,
) -> Completions:
    """The use case; ``dynamodb`` and ``secrets`` are clients of boto3, or those of :mod:`naru.aws_calls`."""
    # What settles requests without serving any pays for none of these.
    from naru.completions import Completions
    from naru.provider_keys import ProviderKeys
    from naru.retry import RetryPolicy
    from naru.upstream import Upstream

    return Completions(
        catalogs=catalogs,
        meters=meters,
        upstream=Upstream(
            http,
            ProviderKeys(secrets, settings.provider_keys_secret),
            settings.provider_base_urls,
        ),
        health=health,
        ledger=Ledger(dynamodb, settings.ledger_table, settings.time_zone),
        retry=RetryPolicy(max_attempts=settings.max_attempts),
        json_deadline_s=settings.json_deadline_s,
        stream_deadline_s=settings.stream_deadline_s,
    )
