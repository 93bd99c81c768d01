"""What the environment of the functions for usage, reports and alerts says, beside what every function is told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from naru.settings import Settings, listed


class ReportSettings(Settings):
    """Each field is the environment variable ``NARU_`` + its name in capitals."""

    report_table: Annotated[str, Field(min_length=1)]
    """Roll-ups, and what has been sent."""
    reports_bucket: str = ""
    alerts_topic: Annotated[str, Field(pattern=r"^(arn:.+)?$")] = ""
    batch_table: str = ""
    """Shown on the dashboard."""
    report_language: Literal["ko", "en"] = "ko"
    report_sender: Annotated[str, Field(pattern=r"^([^\s@]+@[^\s@]+)?$")] = ""
    """A mail address that SES may send from; empty sends no mail."""
    report_recipients: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[^\s@]+@[^\s@]+$")], ...], BeforeValidator(listed)
    ] = ()
