"""What was used in a span: to the pico-dollar what its rows say, with and without roll-ups, in any zone."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Sequence
from datetime import date, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from naru import organization_usage, usage_api, usage_query
from naru.accounts import Accounts
from naru.amounts import read_json, to_pico_usd, write_json
from naru.api_keys import MonthView, OrganisationView
from naru.business_time import business_day
from naru.errors import InvalidRequestError
from naru.ledger import Row
from naru.periods import Hour, day_end_ms, day_start_ms, days_between, month_of
from naru.report import Terms, daily_report, monthly_report
from naru.tally import Tally
from naru.tally_codec import encode
from naru.usage_summary import summary
from tests.usage_world import NEW_YORK, SEOUL, ClosingModel, LedgerModel, StoreModel, any_row, at_ms, row, usage_of

ACCOUNTS = Accounts({}, OrganisationView(10**15, 1, MonthView("2026-11", 0, 0, 0, 0, 0)))
ZONES = [SEOUL, NEW_YORK, ZoneInfo("Asia/Kolkata"), ZoneInfo("Australia/Lord_Howe")]
# Month ends; New York's days of 25 and 23 hours; Lord Howe's change of half an hour.
EDGES = [date(2026, 11, 1), date(2026, 12, 1), date(2026, 3, 8), date(2026, 4, 5), date(2027, 1, 1)]


def rows_around(zone: ZoneInfo, edge: date, rng: random.Random, count: int) -> list[Row]:
    """Rows within a few days of a midnight, many of them a second before or after one, or on it."""
    rows = []
    for _ in range(count):
        midnight = day_start_ms(edge + timedelta(days=rng.choice((-1, 0, 0, 1, 2))), zone)
        near = midnight + rng.choice((-1000, -1, 0, 1, 999, 1000))
        rows.append(any_row(near if rng.random() < 0.6 else midnight + rng.randrange(90_000_000), rng))
    return rows


def cost(rows: list[Row]) -> int:
    return sum(each.cost_pico_usd for each in rows)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    zone=st.sampled_from(ZONES),
    edge=st.sampled_from(EDGES),
    seed=st.integers(0, 2**32),
    closed_hours=st.integers(-30, 80),
    hourly=st.booleans(),
)
def test_any_span_adds_up_whatever_is_rolled_up(
    zone: ZoneInfo, edge: date, seed: int, closed_hours: int, hourly: bool
) -> None:
    rng = random.Random(seed)
    rows = rows_around(zone, edge, rng, 40)
    now_ms = day_end_ms(edge + timedelta(days=3), zone)
    closing = ClosingModel(day_start_ms(edge, zone) + closed_hours * 3_600_000)
    usage = usage_of(LedgerModel(zone, rows), closing=closing)
    usage.store.note("rolled", "hours", until_ms=day_start_ms(edge - timedelta(days=2), zone))
    usage.catch_up(now_ms=now_ms)
    for _ in range(4):
        start_ms, end_ms = sorted(
            rng.choice(rows).arrived_at_ms + rng.choice((-1000, -1, 0, 1, 1000, 3_600_000)) for _ in range(2)
        )
        buckets = usage.between(start_ms, end_ms, now_ms=now_ms, hourly=hourly)
        inside = [each for each in rows if start_ms <= each.arrived_at_ms < end_ms]
        assert sum(bucket.tally.cost_pico_usd for bucket in buckets) == cost(inside)
        assert sum(bucket.tally.requests for bucket in buckets) == len(inside)
        for bucket in buckets:
            mine = [each for each in inside if bucket.start_ms <= each.arrived_at_ms < bucket.end_ms]
            assert bucket.tally.cost_pico_usd == cost(mine)
            assert {business_day(each.arrived_at_ms, zone) for each in mine} <= {bucket.day}


@settings(max_examples=12, deadline=None)
@given(zone=st.sampled_from(ZONES[:2]), edge=st.sampled_from(EDGES), seed=st.integers(0, 2**32))
def test_rows_usage_api_report_csv_and_openais_endpoints_agree(zone: ZoneInfo, edge: date, seed: int) -> None:
    """To the pico-dollar, for the two months around a month's end, after JSON."""
    rows = rows_around(zone, edge, random.Random(seed), 40)
    now_ms = day_end_ms(edge + timedelta(days=4), zone)
    usage = usage_of(LedgerModel(zone, rows))
    usage.store.note("rolled", "hours", until_ms=day_start_ms(edge - timedelta(days=2), zone))
    usage.catch_up(now_ms=now_ms)
    terms = Terms(10**14, 1400)
    for month in {month_of(edge - timedelta(days=1)), month_of(edge)}:
        first = date.fromisoformat(f"{month}-01")
        mine = [each for each in rows if month_of(business_day(each.arrived_at_ms, zone)) == month]
        report = monthly_report(usage, first, ACCOUNTS, terms, now_ms=now_ms)
        shown = read_json(write_json(report.as_json()))
        lines = list(csv.DictReader(io.StringIO(report.as_csv())))
        query = {
            "start": [first.isoformat()],
            "end": [str(report.span[1] // 1000)],
            "group_by": ["day", "key", "model"],
        }
        asked = usage_query.parse_usage(query, zone, now_ms=now_ms)
        listed = read_json(write_json(usage_api.usage_list(usage, asked, ACCOUNTS, krw_per_usd=1400, now_ms=now_ms)))
        page = {"start_time": [str(report.span[0] // 1000)], "end_time": [str(report.span[1] // 1000)], "limit": ["31"]}
        costs = organization_usage.costs_page(usage, organization_usage.parse_costs(page, now_ms=now_ms), now_ms=now_ms)
        amounts = [result["amount"]["value"] for bucket in costs["data"] for result in bucket["results"]]
        assert pico(shown["total"]["cost_usd"]) == cost(mine)
        for group in ("by_model", "by_key", "by_deployment", "days"):
            assert sum(pico(each["cost_usd"]) for each in shown[group]) == cost(mine), group
        assert sum(int(line["cost_pico_usd"]) for line in lines) == cost(mine)
        assert sum(pico(Decimal(line["cost_usd"])) for line in lines) == cost(mine)
        assert pico(listed["total"]["cost_usd"]) == cost(mine) == sum(pico(each["cost_usd"]) for each in listed["data"])
        assert sum(pico(Decimal(each["cost_usd"])) for each in csv.DictReader(io.StringIO(usage_api.usage_csv(listed)))) == cost(mine)  # fmt: skip
        assert sum(map(pico, amounts)) == cost(mine)
        assert shown["total"]["requests"] == listed["total"]["requests"] == len(mine)


def pico(usd: Decimal | int) -> int:
    return to_pico_usd(usd)


def test_a_daily_report_is_its_days_rows_and_the_month_so_far() -> None:
    rng = random.Random(3)
    rows = [any_row(at_ms("2026-11-01 00:00:00") + rng.randrange(25 * 86_400_000), rng) for _ in range(400)]
    now_ms = at_ms("2026-11-26 00:10:00")
    usage = usage_of(LedgerModel(SEOUL, rows))
    day = date(2026, 11, 25)
    made = daily_report(usage, day, ACCOUNTS, Terms(10**13, 1400), now_ms=now_ms)
    shown = made.as_json()
    of_day = [each for each in rows if business_day(each.arrived_at_ms, SEOUL) == day]
    assert shown["closed"]
    assert pico(shown["total"]["cost_usd"]) == cost(of_day) == sum(pico(hour["cost_usd"]) for hour in shown["hours"])
    assert pico(shown["month"]["cost_usd"]) == cost(rows)
    assert shown["total"]["outcomes"] == {outcome: sum(each.outcome == outcome for each in of_day) for outcome in shown["total"]["outcomes"]}  # fmt: skip
    assert shown["change"]["against"] == "2026-11-18"
    later = daily_report(usage, day, ACCOUNTS, Terms(10**13, 1400), now_ms=now_ms + 86_400_000 * 3)
    assert write_json(later.as_json()) == write_json(shown)


# ── Roll-ups ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_roll_up_made_again_is_the_same_bytes() -> None:
    rng = random.Random(1)
    rows = [any_row(at_ms("2026-11-22 00:00:00") + rng.randrange(86_400_000), rng) for _ in range(100)]
    store, ledger = StoreModel(), LedgerModel(SEOUL, rows)
    usage = usage_of(ledger, store=store)
    usage.roll_up_day(date(2026, 11, 22))
    first = {about: dict(parts) for about, parts in store.bytes.items()}
    ledger.page = 3
    usage.roll_up_day(date(2026, 11, 22))
    assert store.bytes == first


def test_an_hour_is_rolled_up_when_no_row_of_it_can_come_and_not_before() -> None:
    """A request that arrived at 13:59 runs until 14:14, and its row is in the roll-up of 13 o'clock."""
    ledger = LedgerModel(SEOUL, [row(at_ms("2026-11-22 13:10:00"))])
    closing, store = ClosingModel(at_ms("2026-11-22 13:59:00")), StoreModel()
    usage = usage_of(ledger, closing=closing, store=store)
    store.note("rolled", "hours", until_ms=at_ms("2026-11-22 12:00:00"))
    assert usage.catch_up(now_ms=at_ms("2026-11-22 14:12:00")) == [Hour(date(2026, 11, 22), 12)]
    ledger.put([row(at_ms("2026-11-22 13:59:00"))])
    closing.closed_ms = at_ms("2026-11-22 14:09:00")
    assert usage.catch_up(now_ms=at_ms("2026-11-22 14:15:00")) == [Hour(date(2026, 11, 22), 13)]
    assert store.tallies("hours#2026-11-22")["13"].requests == 2
    assert usage.catch_up(now_ms=at_ms("2026-11-22 14:20:00")) == []


def test_a_row_that_comes_late_after_all_is_counted_when_the_day_closes() -> None:
    ledger, store = LedgerModel(SEOUL, [row(at_ms("2026-11-22 13:10:00"))]), StoreModel()
    usage = usage_of(ledger, store=store)
    store.note("rolled", "hours", until_ms=at_ms("2026-11-22 12:00:00"))
    usage.catch_up(now_ms=at_ms("2026-11-22 15:10:00"))
    ledger.put([row(at_ms("2026-11-22 13:20:00"))])
    usage.catch_up(now_ms=at_ms("2026-11-23 00:10:00"))
    assert store.tallies("hours#2026-11-22")["13"].requests == 2
    assert store.tallies("days#2026-11")["22"].requests == 2


def test_a_day_is_the_sum_of_its_hours_and_its_rows_are_not_read_again() -> None:
    rng = random.Random(5)
    rows = [any_row(at_ms("2026-11-22 00:00:00") + rng.randrange(86_400_000), rng) for _ in range(100)]
    ledger, store = LedgerModel(SEOUL, rows), StoreModel()
    usage = usage_of(ledger, store=store)
    store.note("rolled", "hours", until_ms=at_ms("2026-11-22 00:00:00"))
    for hour in range(1, 24):
        usage.catch_up(now_ms=at_ms(f"2026-11-22 {hour:02}:10:00"))
    before = ledger.read
    usage.catch_up(now_ms=at_ms("2026-11-23 00:10:00"))
    of_last_hour = sum(each.arrived_at_ms >= at_ms("2026-11-22 23:00:00") for each in rows)
    assert ledger.read - before == of_last_hour
    assert ledger.counted == len(rows)
    whole = store.bytes["days#2026-11"]["22"]
    usage.roll_up_day(date(2026, 11, 22))
    assert store.bytes["days#2026-11"]["22"] == whole


def test_roll_ups_that_were_missed_are_made_by_the_next_run() -> None:
    rng = random.Random(2)
    rows = [any_row(at_ms("2026-11-15 00:00:00") + rng.randrange(6 * 86_400_000), rng) for _ in range(60)]
    store = StoreModel()
    usage = usage_of(LedgerModel(SEOUL, rows), store=store)
    store.note("rolled", "hours", until_ms=at_ms("2026-11-15 05:00:00"))
    rolled = usage.catch_up(now_ms=at_ms("2026-11-21 10:07:00"))
    assert (rolled[0], rolled[-1]) == (Hour(date(2026, 11, 15), 5), Hour(date(2026, 11, 21), 9))
    assert len(rolled) == 6 * 24 + 5
    days = store.tallies("days#2026-11")
    assert sum(days[f"{day:02}"].requests for day in range(15, 21)) == 60


def test_whole_days_are_asked_of_roll_ups_and_no_row_is_read() -> None:
    rng = random.Random(4)
    rows = [any_row(at_ms("2026-10-20 00:00:00") + rng.randrange(30 * 86_400_000), rng) for _ in range(200)]
    ledger = LedgerModel(SEOUL, rows)
    usage = usage_of(ledger)
    for each in days_between(date(2026, 10, 20), date(2026, 11, 20)):
        usage.roll_up_day(each)
    ledger.read = ledger.queries = 0
    days = usage.days(date(2026, 10, 20), date(2026, 11, 19), now_ms=at_ms("2026-11-21 12:00:00"))
    assert (sum(day.tally.cost_pico_usd for day in days), ledger.queries) == (cost(rows), 0)


def test_who_asks_again_reads_only_what_can_have_changed() -> None:
    """The rows of the open hour that are there for good are kept in memory."""
    now_ms = at_ms("2026-11-22 13:50:00")
    rows = [row(at_ms("2026-11-22 13:00:00") + second * 1000) for second in range(0, 3000, 3)]
    ledger = LedgerModel(SEOUL, rows, page=100)
    usage = usage_of(ledger)
    start_ms, end_ms = at_ms("2026-11-22 13:00:00"), at_ms("2026-11-22 14:00:00")
    (first,) = usage.between(start_ms, end_ms, now_ms=now_ms)
    ledger.read = 0
    ledger.put([row(now_ms - 1000, rng=random.Random(9))])
    (second,) = usage.between(start_ms, end_ms, now_ms=now_ms)
    assert (first.tally.requests, second.tally.requests) == (1000, 1001)
    assert ledger.read == 101  # of the last five minutes
    assert encode(second.tally) == encode(usage_of(ledger).between(start_ms, end_ms, now_ms=now_ms)[0].tally)


# ── The API ────────────────────────────────────────────────────────────────────────────────────────────────


def ask(query: dict[str, Any], rows: list[Row], *, now: str = "2026-11-22 12:00:00") -> dict[str, Any]:
    given = {name: value if isinstance(value, list) else [value] for name, value in query.items()}
    asked = usage_query.parse_usage(given, SEOUL, now_ms=at_ms(now))
    return usage_api.usage_list(
        usage_of(LedgerModel(SEOUL, rows)), asked, ACCOUNTS, krw_per_usd=1400, now_ms=at_ms(now)
    )


def test_groups_and_filters() -> None:
    rows = [
        row(at_ms("2026-11-20 10:00:00"), key_id="key_a", end_user="u1", cost_pico_usd=1),
        row(at_ms("2026-11-20 11:00:00"), key_id="key_b", model_served="fast", outcome="failed", cost_pico_usd=2),
        row(at_ms("2026-11-21 10:00:00"), key_id="key_a", batch_id="batch_1", end_user="u2", cost_pico_usd=4),
    ]

    def costs(**query: Any) -> list[tuple[Any, ...]]:
        return [
            (*(each[name] for name in each if name in {"day", "key_id", "model", "end_user", "outcome", "batch", "hour", "tag", "month"}), pico(each["cost_usd"]))
            for each in ask(query, rows)["data"]
        ]  # fmt: skip

    assert costs(group_by="day") == [("2026-11-20", 3), ("2026-11-21", 4)]
    assert costs(group_by="key") == [("key_a", 5), ("key_b", 2)]
    assert costs(group_by=["day", "key"]) == [("2026-11-20", "key_b", 2), ("2026-11-20", "key_a", 1), ("2026-11-21", "key_a", 4)]  # fmt: skip
    assert costs(group_by="model,outcome") == [("omni", "completed", 5), ("fast", "failed", 2)]
    assert costs(group_by="end_user") == [("u2", 4), ("u1", 1)]
    assert costs(group_by="batch") == [(True, 4), (False, 3)]
    assert costs(group_by="tag") == [("untagged", 7)]
    assert costs(group_by="hour") == [
        (at_ms("2026-11-20 10:00:00") // 1000, 1),
        (at_ms("2026-11-20 11:00:00") // 1000, 2),
        (at_ms("2026-11-21 10:00:00") // 1000, 4),
    ]
    assert costs(group_by="day", start="2026-11-21") == [("2026-11-21", 4)]
    assert costs(group_by="day", end="2026-11-20") == [("2026-11-20", 3)]
    assert costs(key="key_b") == costs(outcome="failed") == costs(model="fast") == [(2,)]
    assert costs(start="2026-11-20T10:00:00+09:00", end="2026-11-20T11:00:00+09:00") == [(1,)]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"group_by": "colour"}, "group_by"),
        ({"group_by": "end_user,model"}, "group_by"),
        ({"start": "yesterday"}, "start"),
        ({"start": "2026-11-22T09:00:00"}, "start"),
        ({"start": "2026-11-23", "end": "2026-11-21"}, "start"),
        ({"start": "2020-01-01"}, "start"),
        ({"start": "2026-06-01", "group_by": "hour"}, "start"),
        ({"start": ["2026-11-01", "2026-11-02"]}, "start"),
        ({"format": "xml"}, "format"),
        ({"outcome": "good"}, "outcome"),
        ({"batch": "yes"}, "batch"),
        ({"groupby": "day"}, "groupby"),
        ({"start": "2026-02-30"}, "start"),
        ({"start": "0001-01-01T00:00:00+09:00"}, "start"),
        ({"start": "1969-12-31T00:00:00Z", "end": "1970-01-01T00:00:00Z"}, "end"),
        ({"end": "9999-12-31T23:59:59-09:00"}, "end"),
    ],
)
def test_a_wrong_query_is_told_which_parameter(query: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        ask(query, [])
    assert refused.value.param == param


def test_more_groups_than_an_answer_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_api, "MAX_GROUPS", 20)
    rows = [row(at_ms("2026-11-21 10:00:00") + number * 3_600_000, end_user=f"u{number % 7}") for number in range(22)]
    assert len(ask({"start": "2026-11-21", "group_by": "end_user"}, rows)["data"]) == 7
    for groups in ("hour,end_user", "hour,key"):
        with pytest.raises(InvalidRequestError, match="more groups than the 20"):
            ask({"start": "2026-11-21", "group_by": groups}, rows)


def test_pages_of_requests_hold_each_row_once_newest_first() -> None:
    rng = random.Random(5)
    rows = [any_row(at_ms("2026-11-19 00:00:00") + rng.randrange(3 * 86_400_000), rng) for _ in range(150)]
    usage = usage_of(LedgerModel(SEOUL, rows, page=30))
    now_ms = at_ms("2026-11-22 12:00:00")
    found: list[str] = []
    after: list[str] = []
    while True:
        query = {"limit": ["17"], "key": ["key_a"], **({"after": after} if after else {})}
        page = usage_api.requests_list(usage, usage_query.parse_requests(query, SEOUL, now_ms=now_ms), ACCOUNTS, now_ms=now_ms)  # fmt: skip
        found += [each["request_id"] for each in page["data"]]
        if not page["has_more"]:
            break
        after = [page["last_id"]]
    assert found == sorted((each.request_id for each in rows if each.key_id == "key_a"), reverse=True)


@pytest.mark.parametrize("time", ["ffffffffffff", "1fffffffffff"])
def test_a_page_after_a_time_to_come_is_the_first_one(time: str) -> None:
    """The first is a time for which there is no date, the second one before which lie a million queries."""
    newest = row(at_ms("2026-11-21 10:00:00"))
    usage, now_ms = usage_of(LedgerModel(SEOUL, [newest])), at_ms("2026-11-22 12:00:00")
    query = usage_query.parse_requests({"after": [f"req_{time}{'0' * 20}"]}, SEOUL, now_ms=now_ms)
    page = usage_api.requests_list(usage, query, ACCOUNTS, now_ms=now_ms)
    assert [each["request_id"] for each in page["data"]] == [newest.request_id]


def pages_of(usage: Any, query: dict[str, str], *, key_id: str | None, now_ms: int) -> list[dict[str, Any]]:
    """All pages of a list of requests, one after the other."""
    pages: list[dict[str, Any]] = []
    after: dict[str, str] = {}
    while not pages or pages[-1]["has_more"]:
        given = {name: [value] for name, value in (query | after).items()}
        asked = usage_query.parse_requests(given, SEOUL, now_ms=now_ms).seen_by(key_id)
        pages.append(usage_api.requests_list(usage, asked, ACCOUNTS, now_ms=now_ms))
        after = {"after": pages[-1]["last_id"]}
        assert len(pages) < 50
    return pages


@pytest.mark.slow
@pytest.mark.parametrize("rolled_up", [False, True])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "query",
    [{"limit": "1"}, {"limit": "5"}, {"limit": "3", "model": "fast"}, {"end_user": "u1"}, {"end_user": "nobody"}, {"batch": "true"}],
)  # fmt: skip
def test_no_page_of_a_key_depends_on_the_rows_of_others(query: dict[str, str], seed: int, *, rolled_up: bool) -> None:
    rng = random.Random(seed)
    begin_ms, now_ms = at_ms("2026-10-01 00:00:00"), at_ms("2026-11-22 12:00:00")
    times = [rng.randrange(begin_ms, now_ms - 600_000) for _ in range(60)]
    mine = [each for each in (any_row(at, rng) for at in times) if each.key_id == "key_a"]
    others = [each for each in (any_row(rng.choice(times) + rng.randrange(-90_000_000, 1000), rng) for _ in range(900)) if each.key_id != "key_a"]  # fmt: skip
    pages = []
    for rows in (mine, mine + others):
        usage = usage_of(LedgerModel(SEOUL, rows, page=30))
        if rolled_up:
            usage.store.note("rolled", "hours", until_ms=begin_ms)
            usage.catch_up(now_ms=now_ms)
        pages.append(pages_of(usage, {"start": "2026-10-01", **query}, key_id="key_a", now_ms=now_ms))
    assert pages[0] == pages[1]
    wanted = [
        each for each in mine
        if query.get("model", each.model_served) == each.model_served
        and query.get("end_user", each.end_user) == each.end_user
        and ("batch" not in query or each.batch_id)
    ]  # fmt: skip
    found = [each["request_id"] for page in pages[1] for each in page["data"]]
    assert found == sorted((each.request_id for each in wanted), reverse=True)


def test_of_others_only_what_shares_an_hour_is_looked_at() -> None:
    """A page of a quiet key costs what its own hours cost, however busy the others are."""
    begin_ms, now_ms = at_ms("2026-11-01 00:00:00"), at_ms("2026-11-22 12:00:00")
    rows = [row(at, key_id="key_b") for at in range(begin_ms, now_ms - 600_000, 1_800_000)]
    rows.append(row(at_ms("2026-11-03 10:20:00"), key_id="key_a"))
    ledger = LedgerModel(SEOUL, rows)
    usage = usage_of(ledger)
    usage.store.note("rolled", "hours", until_ms=begin_ms)
    usage.catch_up(now_ms=now_ms)
    ledger.read = ledger.queries = 0
    page = usage_api.requests_list(
        usage, usage_query.parse_requests({"key": ["key_a"]}, SEOUL, now_ms=now_ms), ACCOUNTS, now_ms=now_ms
    )
    assert [each["at_ms"] for each in page["data"]] == [at_ms("2026-11-03 10:20:00")]
    assert page["has_more"] is False
    # Tomorrow, today and its one hour: eight shards each.
    assert ledger.queries <= 3 * 8 + 8
    assert ledger.read <= 24 + 3


def test_a_page_ends_after_some_days_in_which_nothing_matches() -> None:
    """The end user is not in the roll-ups: each day of the key has to be read, and a page reads ten."""
    rows = [row(at_ms(f"2026-11-{day:02} 10:00:00"), end_user="u1" if day == 2 else "u2") for day in range(1, 21)]
    now_ms = at_ms("2026-11-22 12:00:00")
    usage = usage_of(LedgerModel(SEOUL, rows))
    usage.store.note("rolled", "hours", until_ms=at_ms("2026-11-01 00:00:00"))
    usage.catch_up(now_ms=now_ms)
    pages = pages_of(usage, {"end_user": "u1"}, key_id=None, now_ms=now_ms)
    assert [len(page["data"]) for page in pages] == [0, 1]
    assert pages[0]["last_id"] == f"req_{at_ms('2026-11-11 00:00:00'):012x}{'0' * 20}"


def test_openais_pages_go_on_where_they_stopped() -> None:
    rows = [row(at_ms(f"2026-11-{day:02} 10:00:00"), cost_pico_usd=day) for day in range(1, 21)]
    usage, now_ms = usage_of(LedgerModel(SEOUL, rows)), at_ms("2026-11-21 00:00:00")
    found: list[int] = []
    query: dict[str, list[str]] = {"start_time": [str(at_ms("2026-11-01 00:00:00") // 1000)], "limit": ["6"], "group_by": ["line_item"]}  # fmt: skip
    while True:
        page = organization_usage.costs_page(usage, organization_usage.parse_costs(query, now_ms=now_ms), now_ms=now_ms)
        found += [pico(result["amount"]["value"]) for bucket in page["data"] for result in bucket["results"]]
        if not page["has_more"]:
            break
        query["page"] = [page["next_page"]]
    assert found == list(range(1, 21))


class CountedStore(StoreModel):
    """Counts what is read of roll-ups."""

    reads = 0

    def tallies(self, about: str) -> dict[str, Tally]:
        self.reads += 1
        return super().tallies(about)

    def notes(self, about: str) -> dict[str, dict[str, Any]]:
        self.reads += 1
        return super().notes(about)


ALMOST_EMPTY = ("2026-11-21 10:00:00", "2026-11-21 10:20:00", "2026-06-03 23:59:59", "2026-03-01 00:00:00")


def almost_empty(*, now_ms: int, runs: int) -> tuple[Any, LedgerModel, CountedStore]:
    """A gateway with four requests, after so many runs of the alerts function."""
    ledger, store = LedgerModel(SEOUL, [row(at_ms(text), end_user="u") for text in ALMOST_EMPTY]), CountedStore()
    usage = usage_of(ledger, store=store)
    for _ in range(runs):
        usage.catch_up(now_ms=now_ms)
        usage.fill_back(now_ms=now_ms)
    ledger.queries = store.reads = 0
    return usage, ledger, store


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "requests", "most_reads"),
    [
        ({"start": "2025-10-25"}, 4, 16),
        ({"start": "2025-10-25", "group_by": "day,key,model"}, 4, 16),
        ({"start": "2025-10-25", "group_by": "end_user"}, 4, 16),
        ({"start": "2025-10-25T00:00:01+09:00", "end": "2026-11-20T10:00:00.001+09:00"}, 2, 16),
        ({"start": "2026-05-01", "end": "2026-06-30", "group_by": "hour"}, 1, 6),
        ({"start": "2026-01-01", "end": "2026-03-01", "group_by": "hour"}, 1, 6),
        ({"start": "2024-01-01", "end": "2024-12-31"}, 0, 14),
        ({"start": "2001-01-01", "end": "2002-02-01"}, 0, 16),
        ({"start": "2001-01-01", "end": "2001-02-01", "group_by": "hour"}, 0, 4),
        ({"start": "2027-01-01", "end": "2028-01-01"}, 0, 14),
    ],
)
def test_days_without_rows_are_not_looked_at(query: dict[str, str], requests: int, most_reads: int) -> None:
    """Not at their rows, and at their roll-ups a month at a time; in a process that has just started."""
    now_ms = at_ms("2026-11-22 12:00:00")
    _, ledger, store = almost_empty(now_ms=now_ms, runs=20)
    usage = usage_of(ledger, store=store)
    asked = usage_query.parse_usage({name: [value] for name, value in query.items()}, SEOUL, now_ms=now_ms)
    listed = usage_api.usage_list(usage, asked, ACCOUNTS, krw_per_usd=1400, now_ms=now_ms)
    assert listed["total"]["requests"] == requests
    # Of today two parts are read: what is closed, and what is not. Of a day that is cut, and of one by hours, one.
    assert ledger.queries <= 3 * 8
    assert store.reads <= most_reads
    ledger.queries = store.reads = 0
    page = {name: [value] for name, value in query.items() if name in {"start", "end"}}
    rows = usage_api.requests_list(usage, usage_query.parse_requests(page, SEOUL, now_ms=now_ms), ACCOUNTS, now_ms=now_ms)  # fmt: skip
    assert (len(rows["data"]), rows["has_more"]) == (requests, False)
    assert ledger.queries <= 6 * 8
    assert store.reads <= most_reads + 14


def test_a_process_looks_once_at_an_empty_day_that_has_no_roll_up() -> None:
    now_ms = at_ms("2026-11-22 12:00:00")
    usage, ledger, _ = almost_empty(now_ms=now_ms, runs=0)
    asked = usage_query.parse_usage({"start": ["2025-10-25"]}, SEOUL, now_ms=now_ms)
    for most in (400 * 8, 3 * 8):
        ledger.queries = 0
        assert usage_api.usage_list(usage, asked, ACCOUNTS, krw_per_usd=1400, now_ms=now_ms)["total"]["requests"] == 4
        assert ledger.queries <= most


def test_roll_ups_of_older_days_are_made_some_at_a_time_until_there_is_nothing_more() -> None:
    now_ms = at_ms("2026-11-22 12:00:00")
    usage, ledger, store = almost_empty(now_ms=now_ms, runs=1)
    looked_at = [60]
    while looked_at[-1]:
        looked_at.append(usage.fill_back(now_ms=now_ms))
    # From 18 October back to 1 March, and 400 days without a row.
    assert sum(looked_at) == (date(2026, 10, 18) - date(2026, 3, 1)).days + 400
    assert max(looked_at) == 60
    assert store.notes("rolled")["back"]["begins"] == "2025-01-25"
    assert store.tallies("days#2026-06")["03"].requests == 1
    ledger.queries = 0
    assert usage.fill_back(now_ms=now_ms) == 0
    assert ledger.queries == 0


def test_a_busy_day_leaves_the_others_to_the_next_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("naru.usage._BACK_DAYS", 5)
    now_ms = at_ms("2026-11-22 12:00:00")
    busy = at_ms("2026-10-15 10:00:00")
    usage = usage_of(LedgerModel(SEOUL, (row(busy + number) for number in range(4_000)), page=5000))
    assert usage.fill_back(now_ms=now_ms) == 3
    assert usage.fill_back(now_ms=now_ms) == 5


def test_a_key_is_answered_about_itself_whatever_it_asks() -> None:
    query = {"key": ["key_b"]}
    for parse in (usage_query.parse_usage, usage_query.parse_requests):
        assert parse(query, SEOUL, now_ms=at_ms("2026-11-22 12:00:00")).seen_by("key_a").filters.key_ids == {"key_a"}
    page = organization_usage.parse_costs({"start_time": ["1795000000"], "api_key_ids": ["key_b"]}, now_ms=at_ms("2026-11-22 12:00:00"))  # fmt: skip
    assert page.seen_by("key_a").filters.key_ids == {"key_a"}


@pytest.mark.parametrize("group_by", ["day,key,model", "end_user,hour", "month,tag,deployment,outcome,batch", ""])
def test_a_csv_has_the_same_columns_whether_there_are_rows_or_not(group_by: str) -> None:
    rows = [row(at_ms("2026-11-21 10:00:00"), end_user="u")]
    query = {"start": "2026-11-21", "group_by": group_by}
    full, empty = (usage_api.usage_csv(ask(query, given)).splitlines() for given in (rows, []))
    assert len(full) == 2
    assert full[0] == empty[0]


def test_a_csv_of_requests_has_all_that_a_request_has_but_its_attempts() -> None:
    now_ms = at_ms("2026-11-22 12:00:00")
    query = usage_query.parse_requests({}, SEOUL, now_ms=now_ms)
    full, empty = (
        usage_api.requests_list(usage_of(LedgerModel(SEOUL, rows)), query, ACCOUNTS, now_ms=now_ms)
        for rows in ([row(now_ms - 60_000)], [])
    )
    columns = usage_api.requests_csv(empty).splitlines()
    assert columns == usage_api.requests_csv(full).splitlines()[:1]
    assert columns == [",".join(name for name in full["data"][0] if name not in {"object", "attempts"})]


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "\uff1d1", "\ufeff=1", "\u200b+1", "\t@x", "\u22121"])
def test_cells_of_a_csv_are_no_formulas(name: str) -> None:
    """Of sums, of requests and of reports; names come from clients, models and keys too."""
    now_ms = at_ms("2026-11-22 12:00:00")
    rows = [row(at_ms("2026-11-21 10:00:00"), end_user=name, model_served=name, model_asked=name, deployment=name)]
    page = usage_api.requests_list(
        usage_of(LedgerModel(SEOUL, rows)),
        usage_query.parse_requests({}, SEOUL, now_ms=now_ms),
        ACCOUNTS,
        now_ms=now_ms,
    )
    report = daily_report(usage_of(LedgerModel(SEOUL, rows)), date(2026, 11, 21), ACCOUNTS, Terms(10**14, 1400), now_ms=now_ms)  # fmt: skip
    for text, columns in (
        (usage_api.usage_csv(ask({"group_by": "end_user"}, rows)), ["end_user"]),
        (usage_api.usage_csv(ask({"group_by": "model,deployment"}, rows)), ["model", "deployment"]),
        (usage_api.requests_csv(page), ["end_user", "model_asked", "model_served", "deployment"]),
        (report.as_csv(), ["model", "deployment"]),
    ):
        (line,) = csv.DictReader(io.StringIO(text))
        assert [line[column] for column in columns] == [f"'{name}"] * len(columns)


def test_batches_are_asked_first_of_those_who_had_some_however_old_their_keys_are() -> None:
    """Ten keys are asked, and the newest are not those that run batches."""
    days = ("2026-11-05", "2026-11-20", "2026-11-22")
    rows = [
        row(at_ms(f"{day} 10:00:00"), key_id=key_id, batch_id=batch_id)
        for day, key_id, batch_id in zip(
            days, ("key_old", "key_b", "key_chat"), ("batch_1", "batch_2", None), strict=True
        )
    ]
    now_ms = at_ms("2026-11-22 12:00:00")
    asked: list[str] = []

    def batches(key_ids: Sequence[str]) -> list[dict[str, Any]]:
        asked.extend(key_ids)
        return []

    accounts = Accounts({"key_new": None}, ACCOUNTS.organisation)  # type: ignore[dict-item] # only its id is read
    summary(usage_of(LedgerModel(SEOUL, rows)), accounts, key_id=None, krw_per_usd=1400, now_ms=now_ms, batches=batches, health=None)  # fmt: skip
    assert asked == ["key_b", "key_old", "key_new"]


def test_the_summary_of_a_key_holds_nothing_of_others() -> None:
    rng = random.Random(6)
    rows = [any_row(at_ms("2026-11-18 00:00:00") + rng.randrange(4 * 86_400_000), rng) for _ in range(80)]
    usage, now_ms = usage_of(LedgerModel(SEOUL, rows)), at_ms("2026-11-22 12:00:00")

    def of(key_id: str | None) -> dict[str, Any]:
        return summary(usage, ACCOUNTS, key_id=key_id, krw_per_usd=1400, now_ms=now_ms, batches=None, health=None)

    mine = of("key_a")
    assert {key["key_id"] for key in mine["keys"]} | {each["key_id"] for each in mine["recent"]} == {"key_a"}
    assert pico(mine["month"]["cost_usd"]) == cost([each for each in rows if each.key_id == "key_a"])
    whole = of(None)
    assert pico(whole["month"]["cost_usd"]) == cost(rows) == sum(pico(day["cost_usd"]) for day in whole["days"])
    assert [each["request_id"] for each in whole["recent"]] == sorted((each.request_id for each in rows), reverse=True)[
        :50
    ]
    assert len(whole["days"]) == 30
