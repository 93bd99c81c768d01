"""The report of every business day: made once, stored, sent once.

Schedules come at least once, and sometimes not at all. So every run looks for the days that are over and have no report
yet, a week back, and for each of them::

    claim the day        one run at a time; one that dies is followed by another after its lease
    store JSON and CSV   the same again, if it is done twice
    publish, note it     so that a run after this one does not publish again
    mail, note it        only where there is a sender
    done

A day is reported when no request of it is in flight any more: at ten past midnight that is usually so, and if not, a
later run finds it. A day that does not close for two hours is reported as it is, and says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from naru import report_text
from naru.accounts import Accounts
from naru.amounts import write_json
from naru.business_time import business_day
from naru.delivery import Mailer, NotDeliveredError, Topic
from naru.errors import StoreUnavailableError
from naru.periods import day_end_ms, days_between
from naru.report import Terms, daily_report
from naru.report_words import Language
from naru.usage import Usage

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

logger = logging.getLogger(__name__)

CATCH_UP_DAYS = 7
CLAIM_MS = 16 * 60_000
"""Lambda ends every run after 15 minutes."""
PATIENCE_MS = 2 * 3_600_000
_LATE_MS = 3 * 3_600_000

_ABOUT = "reports"


class Archive:
    """Reports in S3, as ``daily/2026/11/2026-11-22.json`` and ``.csv``."""

    def __init__(self, new_client: Callable[[], S3Client], bucket: str) -> None:
        self._new_client = new_client
        self._bucket = bucket

    def put(self, day: date, content: str, csv: str) -> str:
        """Stores both; the name of the JSON. Blocks. Raises :class:`~naru.errors.StoreUnavailableError`."""
        from botocore.exceptions import BotoCoreError, ClientError

        stem = f"daily/{day:%Y/%m}/{day.isoformat()}"
        try:
            client = self._new_client()
            for name, body, kind in (
                # Spreadsheets take a CSV without the mark for their country's old code page.
                (f"{stem}.csv", "\ufeff" + csv, "text/csv; charset=utf-8"),
                (f"{stem}.json", content, "application/json"),
            ):
                client.put_object(Bucket=self._bucket, Key=name, Body=body.encode(), ContentType=kind)
        except (BotoCoreError, ClientError) as error:
            raise StoreUnavailableError(
                "The gateway cannot store its reports.",
                log={"reason": f"{type(error).__name__} on {self._bucket}: {error}"},
            ) from error
        return f"{stem}.json"


@dataclass(frozen=True, slots=True)
class DailyReports:
    """Every method blocks, and raises :class:`~naru.errors.StoreUnavailableError`."""

    usage: Usage
    archive: Archive
    topic: Topic
    mailer: Mailer
    language: Language

    def run(self, accounts: Accounts, *, krw_per_usd: int, now_ms: int) -> list[str]:
        """Makes and sends what is due; those days. What fails is tried again by the next run."""
        terms = Terms(accounts.budget_pico_usd, krw_per_usd)
        sent = []
        for day in due(self.usage, now_ms=now_ms):
            try:
                if self.report(day, accounts, terms, now_ms=now_ms):
                    sent.append(day.isoformat())
            except NotDeliveredError as error:
                logger.error("report not delivered", extra={"day": day.isoformat(), "reason": str(error)})  # noqa: TRY400 - expected, and said in a line
        return sent

    def again(self, day: date, accounts: Accounts, *, krw_per_usd: int, now_ms: int) -> str:
        """Counts a day anew from its rows, over the roll-ups there are, and stores its report; tells nobody."""
        terms = _noted_terms(self.usage.store.get(_ABOUT, day.isoformat())) or Terms(
            accounts.budget_pico_usd, krw_per_usd
        )
        if day_end_ms(day, self.usage.zone) <= self.usage.closing.closed_until_ms(now_ms):
            self.usage.roll_up_day(day)
        made = daily_report(self.usage, day, accounts, terms, now_ms=now_ms)
        return self.archive.put(day, write_json(made.as_json()) + "\n", made.as_csv())

    def report(self, day: date, accounts: Accounts, terms: Terms, *, now_ms: int) -> bool:
        """Makes and sends the report of one day, unless somebody else has, or is at it."""
        part = day.isoformat()
        if not self.usage.store.claim(_ABOUT, part, now_ms=now_ms, lease_ms=CLAIM_MS):
            return False
        noted = self.usage.store.get(_ABOUT, part)
        # The first run sets the terms, so that whoever makes the report again makes the same.
        if (known := _noted_terms(noted)) is not None:
            terms = known
        else:
            budget = -1 if terms.budget_pico_usd is None else terms.budget_pico_usd
            self.usage.store.note(_ABOUT, part, budget_pico_usd=budget, krw_per_usd=terms.krw_per_usd)
        try:
            made = daily_report(self.usage, day, accounts, terms, now_ms=now_ms)
            content = made.as_json()
            where = self.archive.put(day, write_json(content) + "\n", made.as_csv())
            self._send(part, content, noted, now_ms)
        except BaseException:
            self.usage.store.give_back(_ABOUT, part)
            raise
        self.usage.store.done(_ABOUT, part, now_ms=now_ms, stored=where)
        logger.info("report", extra={"day": part, "stored": where})
        return True

    def _send(self, part: str, content: Mapping[str, Any], noted: Mapping[str, Any], now_ms: int) -> None:
        subject, text = report_text.subject(content), report_text.text(content, self.language)
        if "published_ms" not in noted:
            self.topic.publish(subject, text)
            self.usage.store.note(_ABOUT, part, published_ms=now_ms)
        if self.mailer.is_on and "mailed_ms" not in noted:
            self.mailer.send(subject, text, report_text.html(content, self.language))
            self.usage.store.note(_ABOUT, part, mailed_ms=now_ms)


def _noted_terms(noted: Mapping[str, Any]) -> Terms | None:
    if "krw_per_usd" not in noted:
        return None
    budget = noted["budget_pico_usd"]
    return Terms(None if budget < 0 else budget, noted["krw_per_usd"])


def due(usage: Usage, *, now_ms: int) -> list[date]:
    """Days that are over, have no report and are not waited for any more, the oldest first."""
    zone, store = usage.zone, usage.store
    yesterday = business_day(now_ms, zone) - timedelta(days=1)
    first = store.get(_ABOUT, "first").get("day")
    if first is None:
        # A gateway's first run: what was before it is nobody's news.
        first = yesterday.isoformat()
        store.note(_ABOUT, "first", day=first)
    oldest = max(yesterday - timedelta(days=CATCH_UP_DAYS - 1), date.fromisoformat(first))
    missing = [day for day in days_between(oldest, yesterday) if not store.is_done(_ABOUT, day.isoformat())]
    if not missing:
        return []
    closed_ms = usage.closing.closed_until_ms(now_ms)
    ends = {day: day_end_ms(day, zone) for day in missing}
    return [day for day, end_ms in ends.items() if end_ms <= closed_ms or end_ms + PATIENCE_MS <= now_ms]


def overdue(usage: Usage, *, now_ms: int) -> int:
    """How many days should have had their report hours ago: for an alarm."""
    return sum(day_end_ms(day, usage.zone) + _LATE_MS <= now_ms for day in due(usage, now_ms=now_ms))
