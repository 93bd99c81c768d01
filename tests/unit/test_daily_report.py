"""The daily report: made once, stored, sent once, whoever runs and however often; what was missed is caught up."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any

import pytest
from botocore.exceptions import ClientError

from naru.accounts import Accounts
from naru.amounts import read_json
from naru.daily_report import CLAIM_MS, Archive, DailyReports, due, overdue
from naru.delivery import Mailer, Topic
from naru.errors import StoreUnavailableError
from naru.usage import Usage
from tests.unit.test_alerts import SnsModel, accounts
from tests.usage_world import SEOUL, ClosingModel, LedgerModel, StoreModel, any_row, at_ms, usage_of

USD = 10**12
TEN_PAST = at_ms("2026-11-23 00:10:00")


class S3Model:
    """Objects by name."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.is_ill = False

    def put_object(self, **call: Any) -> None:
        if self.is_ill:
            raise ClientError({"Error": {"Code": "SlowDown", "Message": ""}}, "PutObject")
        self.objects[call["Key"]] = call["Body"]


class SesModel:
    """Mails, or failures."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.failures = 0

    def send_email(self, **mail: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise ClientError({"Error": {"Code": "TooManyRequests", "Message": ""}}, "SendEmail")
        self.sent.append(mail)


class World:
    """A gateway's reports, and where they go."""

    def __init__(self, *, rows: Sequence[Any] = (), closing: ClosingModel | None = None) -> None:
        rng = random.Random(1)
        some = rows or [any_row(at_ms("2026-11-10 00:00:00") + rng.randrange(13 * 86_400_000), rng) for _ in range(150)]
        self.usage: Usage = usage_of(LedgerModel(SEOUL, some), closing=closing, store=StoreModel())
        self.s3, self.sns, self.ses = S3Model(), SnsModel(), SesModel()
        self.seen: Accounts = accounts(spent=40 * USD)
        self.reports = DailyReports(
            usage=self.usage,
            archive=Archive(lambda: self.s3, "reports"),  # type: ignore[arg-type, return-value]
            topic=Topic(lambda: self.sns, "arn:topic"),  # type: ignore[arg-type, return-value]
            mailer=Mailer(lambda: self.ses, "naru@example.com", ["ops@example.com"]),
            language="en",
        )

    def run(self, now_ms: int = TEN_PAST, *, seen: Accounts | None = None, rate: int = 1400) -> list[str]:
        return self.reports.run(seen or self.seen, krw_per_usd=rate, now_ms=now_ms)

    @property
    def subjects(self) -> list[str]:
        return [message["Subject"].partition(":")[0] for message in self.sns.sent]


def test_ten_past_midnight_reports_yesterday_to_all_places() -> None:
    world = World()
    assert world.run() == ["2026-11-22"]
    assert {*world.s3.objects} == {"daily/2026/11/2026-11-22.json", "daily/2026/11/2026-11-22.csv"}
    stored = read_json(world.s3.objects["daily/2026/11/2026-11-22.json"])
    assert (stored["period"], stored["closed"], stored["krw_per_usd"]) == ("2026-11-22", True, 1400)
    assert world.subjects == ["[Naru] 2026-11-22"]
    (mail,) = world.ses.sent
    assert mail["Content"]["Simple"]["Body"]["Html"]["Data"].startswith("<!DOCTYPE html>")
    assert mail["Destination"] == {"ToAddresses": ["ops@example.com"]}


def test_schedules_that_come_twice_or_at_once_send_once() -> None:
    world = World()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: world.run(), range(8)))
    assert sorted(day for days in found for day in days) == ["2026-11-22"]
    assert world.run(TEN_PAST + 600_000) == []
    assert (len(world.sns.sent), len(world.ses.sent)) == (1, 1)


def test_missed_days_are_caught_up_oldest_first_a_week_back() -> None:
    world = World()
    world.run(at_ms("2026-11-13 00:10:00"))
    found = world.run(at_ms("2026-11-23 00:30:00"))
    assert found == [f"2026-11-{day}" for day in range(16, 23)]
    assert world.subjects[1:] == [f"[Naru] 2026-11-{day}" for day in range(16, 23)]


def test_a_new_gateway_does_not_report_the_days_before_it() -> None:
    world = World()
    assert due(world.usage, now_ms=TEN_PAST) == [date(2026, 11, 22)]


def test_a_day_is_reported_when_no_request_of_it_is_in_flight() -> None:
    """A stream that began at 23:58 ends at 00:12; the report waits for it."""
    closing = ClosingModel(at_ms("2026-11-22 23:58:00"))
    world = World(closing=closing)
    assert world.run() == []
    closing.closed_ms = None
    assert world.run(TEN_PAST + 600_000) == ["2026-11-22"]


def test_a_day_that_does_not_close_is_reported_after_two_hours_and_says_so() -> None:
    world = World(closing=ClosingModel(at_ms("2026-11-22 23:58:00")))
    assert world.run(at_ms("2026-11-23 01:59:00")) == []
    assert world.run(at_ms("2026-11-23 02:00:00")) == ["2026-11-22"]
    assert "Not final" in world.sns.sent[0]["Message"]


def test_a_report_that_sns_did_not_take_is_sent_by_the_next_run() -> None:
    world = World()
    world.sns.failures = 1
    assert world.run() == []
    assert world.run(TEN_PAST + 600_000) == ["2026-11-22"]
    assert (len(world.sns.sent), len(world.ses.sent)) == (1, 1)


def test_a_mail_that_failed_is_sent_again_without_a_second_message() -> None:
    world = World()
    world.ses.failures = 1
    assert world.run() == []
    assert world.run(TEN_PAST + 600_000) == ["2026-11-22"]
    assert (len(world.sns.sent), len(world.ses.sent)) == (1, 1)


def test_a_run_that_died_after_publishing_is_finished_without_publishing_again() -> None:
    world = World()
    store = world.usage.store
    assert store.claim("reports", "2026-11-22", now_ms=TEN_PAST, lease_ms=CLAIM_MS)
    store.note("reports", "2026-11-22", published_ms=TEN_PAST)
    assert world.run(TEN_PAST + CLAIM_MS - 1) == []
    assert world.run(TEN_PAST + CLAIM_MS + 1) == ["2026-11-22"]
    assert (len(world.sns.sent), len(world.ses.sent)) == (0, 1)


def test_a_report_that_cannot_be_stored_is_not_sent_and_not_lost() -> None:
    world = World()
    world.s3.is_ill = True
    with pytest.raises(StoreUnavailableError):
        world.run()
    assert world.sns.sent == []
    world.s3.is_ill = False
    assert world.run(TEN_PAST + 600_000) == ["2026-11-22"]


def test_the_same_day_again_is_the_same_report_though_budget_and_rate_have_changed() -> None:
    world = World()
    world.run()
    first = dict(world.s3.objects)
    other = accounts(spent=40 * USD, budget=999 * USD)
    world.reports.again(date(2026, 11, 22), other, krw_per_usd=1500, now_ms=TEN_PAST + 5 * 86_400_000)
    assert world.s3.objects == first
    assert len(world.sns.sent) == 1


def test_a_day_without_a_sender_is_published_only() -> None:
    world = World()
    world.reports = DailyReports(
        usage=world.usage,
        archive=world.reports.archive,
        topic=world.reports.topic,
        mailer=Mailer(lambda: world.ses, "", []),
        language="ko",
    )
    assert world.run() == ["2026-11-22"]
    assert world.ses.sent == []
    assert world.sns.sent[0]["Message"].startswith("나루 2026-11-22 (일)")


def test_a_report_that_is_hours_late_is_overdue() -> None:
    world = World()
    due(world.usage, now_ms=TEN_PAST)
    assert overdue(world.usage, now_ms=TEN_PAST) == 0
    assert overdue(world.usage, now_ms=at_ms("2026-11-23 03:00:00")) == 1
    world.run(at_ms("2026-11-23 03:05:00"))
    assert overdue(world.usage, now_ms=at_ms("2026-11-23 03:10:00")) == 0
