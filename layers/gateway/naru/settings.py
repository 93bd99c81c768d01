"""What the environment says, read once and checked at start-up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from naru.errors import SettingsError
from naru.pricing import PICO_PER_USD


def _zone(name: Any) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise ValueError(f"{name!r} is not a time zone, such as Asia/Seoul") from None


def _json_object(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        raise ValueError("is not JSON") from None


def listed(text: Any) -> Any:
    """The parts of a text with commas."""
    return [part.strip() for part in text.split(",") if part.strip()] if isinstance(text, str) else text


class Settings(BaseModel):
    """Each field is the environment variable ``NARU_`` + its name in capitals."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    ledger_table: Annotated[str, Field(min_length=1)]
    meter_table: Annotated[str, Field(min_length=1)]
    provider_keys_secret: Annotated[str, Field(min_length=1)]
    idempotency_table: Annotated[str, Field(min_length=1)]
    health_table: Annotated[str, Field(min_length=1)]
    answers_bucket: Annotated[str, Field(min_length=1)]
    """For answers to requests with an Idempotency-Key that are too large for the table."""
    catalog_uri: Annotated[str, Field(pattern=r"^(s3://[^/]+/.+)?$")] = ""
    provider_base_urls: Annotated[
        dict[str, Annotated[str, Field(pattern=r"^https?://[^\s?#]+[^/\s?#]$")]], BeforeValidator(_json_object)
    ] = {}
    time_zone: Annotated[ZoneInfo, BeforeValidator(_zone)] = ZoneInfo("Asia/Seoul")
    monthly_budget_usd: Annotated[Decimal, Field(ge=0, le=10**9, decimal_places=6)] = Decimal(500)
    """The organisation's, when its meter is first made; after that the admin API changes it."""
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    json_deadline_s: Annotated[float, Field(gt=0, le=890)] = 240.0
    stream_deadline_s: Annotated[float, Field(gt=0, le=890)] = 840.0
    idempotency_lease_s: Annotated[float, Field(ge=1, le=300)] = 30.0
    """After this long without a sign of life a request with an Idempotency-Key may be answered by its retry."""
    calls_per_minute: Annotated[int, Field(ge=10, le=10**6)] = 600
    """Of one key: to the usage API, and as many to files and batches. They spend nothing, so no budget ends them."""
    alerts_function: str = ""
    """Woken when a budget reaches one of the thresholds; empty for nobody."""
    alert_thresholds: Annotated[
        tuple[Annotated[int, Field(ge=1, le=100)], ...], BeforeValidator(listed), Field(min_length=1, max_length=10)
    ] = (50, 80, 90, 100)
    """Percent of a monthly budget."""

    @property
    def monthly_budget_pico_usd(self) -> int:
        """The organisation's budget as the meters count it."""
        return int(self.monthly_budget_usd * PICO_PER_USD)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """The settings, checked.

        Raises :class:`~naru.errors.SettingsError`, which names the variable.
        """
        given = {
            name: environment[f"NARU_{name.upper()}"]
            for name in cls.model_fields
            if f"NARU_{name.upper()}" in environment
        }
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            problems = "; ".join(f"NARU_{item['loc'][0]}".upper() + f": {item['msg']}" for item in error.errors())
            raise SettingsError(problems) from None
