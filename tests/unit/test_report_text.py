"""Reports in words: both languages have all of them, nothing a user wrote is markup, and the mail stands alone."""

from __future__ import annotations

import random
import re
import string
from html.parser import HTMLParser
from typing import Any

import pytest

from naru import report_text
from naru.amounts import read_json, write_json
from naru.anomalies import Anomaly
from naru.report import Terms, daily_report
from naru.report_words import WORDS, Language, Voice, anomaly_text
from tests.unit.test_alerts import accounts
from tests.usage_world import SEOUL, LedgerModel, any_row, at_ms, day, row, usage_of

USD = 10**12
LANGUAGES: tuple[Language, ...] = ("ko", "en")


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    rng = random.Random(8)
    rows = [any_row(at_ms("2026-11-01 00:00:00") + rng.randrange(22 * 86_400_000), rng) for _ in range(300)]
    rows.append(row(at_ms("2026-11-22 10:00:00"), end_user="<script>alert(1)</script>\n[Naru] fake", key_id="key_x"))
    made = daily_report(
        usage_of(LedgerModel(SEOUL, rows)), day("2026-11-22"), accounts(spent=USD), Terms(10**12, 1400), now_ms=at_ms("2026-11-23 01:00:00")
    )  # fmt: skip
    return dict(read_json(write_json(made.as_json())))


def test_both_languages_say_the_same_things() -> None:
    def fields(text: str) -> set[str | None]:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    assert WORDS["ko"].keys() == WORDS["en"].keys()
    assert {name for name in WORDS["ko"] if fields(WORDS["ko"][name]) != fields(WORDS["en"][name])} == set()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_report_reads_without_a_gap(report: dict[str, Any], language: Language) -> None:
    text = report_text.text(report, language)
    assert "{" not in text
    assert "None" not in text
    assert f"{report['total']['requests']}" in text
    assert report["month"]["projected_usd"] is not None
    assert ("월말 예상" if language == "ko" else "Month end") in text


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    "anomaly",
    [
        {"code": "cost_high", "cost_usd": 5, "expected_usd": 2},
        {"code": "cost_low", "cost_usd": 1, "expected_usd": 4},
        {"code": "errors_high", "errors": 90, "rate": 0.2, "usual_rate": 0.01},
        {"code": "outage", "deployment": "a/omni", "from": 1795359600, "to": 1795363200},
        {"code": "slow", "p95_ms": 40_000, "usual_p95_ms": 9000},
        {"code": "unknown", "requests": 3, "cost_usd": 1},
        {"code": "estimated", "requests": 3, "rate": 0.5},
        {"code": "new_key", "key_id": "key_a", "name": "app", "cost_usd": 3},
        {"code": "new_model", "model": "omni", "cost_usd": 3},
        {"code": "key_jump", "key_id": "key_a", "name": "app", "cost_usd": 9, "expected_usd": 2},
    ],
    ids=lambda anomaly: anomaly["code"],
)
def test_every_anomaly_is_a_sentence(language: Language, anomaly: dict[str, Any]) -> None:
    said = anomaly_text(Voice(language, SEOUL), read_json(write_json(anomaly)))
    assert said.endswith(".")
    assert "{" not in said


def test_every_anomaly_that_can_be_found_has_words() -> None:
    source = (report_text.__file__).replace("report_text", "anomalies")
    with open(source, encoding="utf-8") as file:  # noqa: PTH123 - a module's own file
        text = file.read()
    codes = {*re.findall(r'Anomaly\("([a-z_]+)"', text), "cost_high", "cost_low", "new_key", "new_model"}
    assert codes <= set(WORDS["en"])
    assert Anomaly("unknown").code in codes


def test_what_a_user_wrote_is_one_line_and_no_markup(report: dict[str, Any]) -> None:
    assert "<script" not in report_text.html(report, "en")
    assert "\n[Naru] fake" not in report_text.text(report, "en")
    assert report_text.subject(report).isascii()


class _Mail(HTMLParser):
    """What a mail would load or run, and whether its tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"script", "link", "img", "svg", "iframe", "style"} or any(
            name in {"src", "href"} for name, _ in attrs
        ):
            self.foreign.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_mail_loads_nothing_and_is_well_formed(report: dict[str, Any], language: Language) -> None:
    mail = _Mail()
    mail.feed(report_text.html(report, language))
    assert (mail.foreign, mail.open) == ([], [])


def test_the_bars_of_the_mail_are_as_long_as_the_costs(report: dict[str, Any]) -> None:
    """In parts of their column, which on a phone is narrower."""
    costs = {"2026-11-20": 1, "2026-11-21": 0, "2026-11-22": 4}
    days = [{"date": date, "requests": 1, "errors": 0, "cost_usd": cost} for date, cost in costs.items()]
    mail = report_text.html({**report, "days": days}, "ko")
    assert re.findall(r'<table role="presentation" width="(\d+)%" cellpadding="0" cellspacing="0"><tr><td height', mail) == ["25", "100"]  # fmt: skip


def test_a_day_without_requests_is_a_report_too() -> None:
    made = daily_report(
        usage_of(LedgerModel(SEOUL)), day("2026-11-22"), accounts(spent=0), Terms(None, 1400), now_ms=at_ms("2026-11-23 01:00:00")
    ).as_json()  # fmt: skip
    for language in LANGUAGES:
        assert "0.00 USD" in report_text.text(made, language)
        assert report_text.html(made, language)
