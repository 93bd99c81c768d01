"""Thirty days of history for reports, the dashboard and pictures of it: ``python -m local.history``.

Three keys and five models, busy working days and quiet weekends, an outage of one provider and a spike of one key. The
same seed and day make the same rows. They are written as the gateway writes them, by naru.ledger, and rolled up by the
function's own code; the meters are told what they have spent, so that budgets and rows agree.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from local.emulator import CREDENTIALS, REGION
from local.stack import Stack
from naru import catalog
from naru.api_keys import NewKey, new_key_items
from naru.attributes import from_item, to_item
from naru.catalog import Catalog, Deployment
from naru.closing import Closing
from naru.ledger import Attempt, Outcome, Row, UsageSource, key_of
from naru.ledger import to_item as row_item
from naru.ledger_reader import LedgerReader
from naru.meter_state import Limits
from naru.meter_store import MeterStore
from naru.periods import day_start_ms, days_between, month_of
from naru.pricing import PICO_PER_USD, Usage
from naru.report_store import ReportStore
from naru.usage import Usage as UsageReader

DAYS = 30
SEOUL = ZoneInfo("Asia/Seoul")
SEED = 20
REQUESTS_A_DAY = 260
OUTAGE_DAYS_AGO, _OUTAGE_HOURS = 12, range(14, 17)
SPIKE_DAYS_AGO, _SPIKE_HOURS = 5, range(20, 23)
_BATCH_PUT = 25


@dataclass(frozen=True)
class _App:
    """A key, and how its users behave."""

    name: str
    tag: str
    budget_usd: int
    share: float
    hours: tuple[float, float]
    """The middle of its day, and how far it spreads."""
    weekend: float
    models: dict[str, float]
    users: int
    batch: bool = False


APPS = (
    _App("모바일 앱", "team=app", 80, 0.58, (20.0, 4.5), 1.15,
         {"hyperclova-x-omni": 5, "hyperclova-x-omni-fast": 4, "gemini-2.5-flash": 1}, 60),
    _App("상담 서버", "team=support", 60, 0.3, (13.0, 3.0), 0.2,
         {"hyperclova-x-omni": 4, "claude-sonnet-4-5": 3, "HCX-007": 2}, 25),
    _App("야간 요약", "team=data", 20, 0.12, (3.0, 1.0), 0.5, {"HCX-007": 3, "hyperclova-x-omni-fast": 1}, 0, batch=True),
)  # fmt: skip


@dataclass(frozen=True)
class Key:
    """A key that the history is about."""

    key_id: str
    secret: str
    app: _App


def rows(keys: list[Key], *, today: date, now_ms: int, zone: ZoneInfo, days: int = DAYS, seed: int = SEED, scale: float = 1.0) -> Iterator[Row]:  # fmt: skip
    """The rows of the days until now, in no particular order."""
    models = catalog.load()
    for day in days_between(today - timedelta(days=days - 1), today):
        rng = random.Random(f"{seed} {day}")
        growth = 1.0 + 0.01 * (day - (today - timedelta(days=days - 1))).days
        for key in keys:
            weekend = key.app.weekend if day.weekday() >= 5 else 1.0
            mean = REQUESTS_A_DAY * scale * key.app.share * weekend * growth
            for _ in range(max(0, round(rng.gauss(mean, 0.08 * mean)))):
                yield from _until(now_ms, _request(rng, models, key, day=day, today=today, zone=zone))
            if (today - day).days == SPIKE_DAYS_AGO and key.app.name == APPS[1].name:
                for _ in range(round(1.4 * REQUESTS_A_DAY * scale)):
                    hour = rng.choice(_SPIKE_HOURS) + rng.random()
                    yield from _until(now_ms, _request(rng, models, key, day=day, today=today, zone=zone, hour=hour))


def _until(now_ms: int, row: Row) -> Iterable[Row]:
    return (row,) if row.arrived_at_ms + row.latency_ms <= now_ms else ()


def _request(rng: random.Random, models: Catalog, key: Key, *, day: date, today: date, zone: ZoneInfo, hour: float | None = None) -> Row:  # fmt: skip
    app = key.app
    if hour is None:
        hour = rng.gauss(*app.hours) % 24
    at_ms = day_start_ms(day, zone) + int(hour * 3_600_000)
    asked = rng.choices([*app.models], [*app.models.values()])[0]
    is_out = (today - day).days == OUTAGE_DAYS_AGO and int(hour) in _OUTAGE_HOURS
    story = _story(rng, models, asked, is_out=is_out)
    served = models.model(story.model)
    deployment = next(each for each in served.deployments if each.name == story.deployment)
    usage, source = _usage(rng, app, story.outcome, deployment)
    first_ms = round(rng.lognormvariate(math.log(420), 0.45) * (1.9 if is_out else 1))
    answered = story.outcome in {"completed", "truncated"}
    spent_ms = sum(attempt.duration_ms + attempt.waited_ms for attempt in story.attempts[:-1])
    own_ms = first_ms + usage.completion_tokens * rng.randint(9, 16) if answered else story.attempts[-1].duration_ms
    stream = answered and not app.batch and rng.random() < 0.8
    last = story.attempts[-1]
    attempts = (*story.attempts[:-1], Attempt(last.deployment, last.result, own_ms, last.maybe_billed, last.why, last.waited_ms))  # fmt: skip
    return Row(
        request_id=f"req_{at_ms:012x}{rng.getrandbits(80):020x}",
        key_id=key.key_id,
        end_user=f"user-{min(int(rng.paretovariate(1.1)), app.users):04}" if app.users else None,
        batch_id=f"batch_{day_start_ms(day, zone):012x}{'0' * 20}" if app.batch else None,
        stream=stream,
        model_asked=asked,
        model_served=story.model,
        deployment=story.deployment,
        outcome=story.outcome,
        error_code=story.error_code,
        usage=usage,
        usage_source=source,
        catalog_version=models.version,
        rates=deployment.rates,
        cost_pico_usd=deployment.rates.cost_pico_usd(usage),
        maybe_billed_pico_usd=3_000_000_000 if any(attempt.maybe_billed for attempt in attempts) else 0,
        attempts=attempts,
        first_token_ms=spent_ms + first_ms if stream else None,
        latency_ms=spent_ms + last.waited_ms + own_ms,
    )


@dataclass(frozen=True)
class _Story:
    """How a request went, before tokens and times."""

    model: str
    deployment: str
    outcome: Outcome
    error_code: str | None
    attempts: tuple[Attempt, ...]


def _story(rng: random.Random, models: Catalog, asked: str, *, is_out: bool) -> _Story:
    model = models.model(asked)
    first = model.deployments[0].name
    ok = Attempt(first, "ok", 0)
    if is_out and model.deployments[0].provider == "holysheep" and rng.random() < 0.8:
        failed = Attempt(first, "upstream_unavailable", rng.randint(40, 900))
        again = Attempt(
            first, "upstream_unavailable", rng.randint(40, 900), why="again", waited_ms=rng.randint(80, 700)
        )
        if model.fallbacks and rng.random() < 0.45:
            other = model.fallbacks[0]
            name = models.model(other).deployments[0].name
            if models.model(other).deployments[0].provider != "holysheep" or rng.random() < 0.3:
                return _Story(other, name, "completed", None, (failed, again, Attempt(name, "ok", 0, why="fallback")))
        return _Story(asked, first, "failed", "upstream_unavailable", (failed, again))
    luck = rng.random()
    if luck < 0.972:
        return _Story(asked, first, "completed", None, (ok,))
    if luck < 0.988:
        limited = Attempt(first, "upstream_rate_limited", rng.randint(30, 200))
        again = Attempt(first, "ok", 0, why="again", waited_ms=rng.randint(400, 3000))
        return _Story(asked, first, "completed", None, (limited, again))
    if luck < 0.993:
        return _Story(asked, first, "rejected", "context_length_exceeded", (Attempt(first, "rejected", rng.randint(40, 200)),))  # fmt: skip
    if luck < 0.997:
        return _Story(asked, first, "truncated", "upstream_invalid_answer", (Attempt(first, "cut", 0),))
    return _Story(asked, first, "failed", "upstream_timeout", (Attempt(first, "upstream_timeout", 35_000, maybe_billed=True),))  # fmt: skip


def _usage(rng: random.Random, app: _App, outcome: Outcome, deployment: Deployment) -> tuple[Usage, UsageSource]:
    if outcome in {"failed", "rejected"}:
        return Usage(prompt_tokens=0, completion_tokens=0), "none"
    prompt = round(rng.lognormvariate(math.log(4200 if app.batch else 1900), 0.7))
    completion = round(rng.lognormvariate(math.log(700), 0.6))
    estimated = outcome == "truncated" or (deployment.provider == "clovastudio" and rng.random() < 0.04)
    usage = Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=int(prompt * rng.choice((0, 0, 0, 0.5, 0.8))) if deployment.provider == "holysheep" else 0,
        reasoning_tokens=completion // 3 if deployment.name.startswith("clovastudio/HCX-007") else 0,
        estimated=estimated,
    )
    return usage, "estimated" if estimated else "reported"


# ── Into a stack ───────────────────────────────────────────────────────────────────────────────────────────


def write(stack: Stack, *, now_ms: int | None = None, zone: ZoneInfo = SEOUL, days: int = DAYS, seed: int = SEED) -> list[Key]:  # fmt: skip
    """Puts the history into a running stack, and returns its keys."""
    outputs = stack.outputs
    tables = Tables(outputs["LedgerTable"], outputs["MeterTable"], outputs["ReportTable"])
    return write_tables(stack.emulator.client("dynamodb"), tables, now_ms=now_ms, zone=zone, days=days, seed=seed)


@dataclass(frozen=True)
class Tables:
    """Where it goes: the names of the stack's tables."""

    ledger: str
    meter: str
    report: str


def write_tables(
    client: Any, tables: Tables, *, now_ms: int | None = None, zone: ZoneInfo, days: int = DAYS, seed: int = SEED, budget_usd: int = 150
) -> list[Key]:  # fmt: skip
    """As :func:`write`, into tables of these names. The organisation gets this budget."""
    now_ms = time.time_ns() // 10**6 if now_ms is None else now_ms
    today = datetime.fromtimestamp(now_ms // 1000, UTC).astimezone(zone).date()
    keys = [_add_key(client, tables.meter, app, day_start_ms(today - timedelta(days=days), zone)) for app in APPS]
    written = list(rows(keys, today=today, now_ms=now_ms, zone=zone, days=days, seed=seed))
    put_rows(client, tables.ledger, written, zone)
    month = month_of(today)
    _tell_meters(
        client, tables.meter, [row for row in written if month_of(_day(row, zone)) == month], month, budget_usd
    )
    usage = UsageReader(
        LedgerReader(client, tables.ledger, zone), ReportStore(client, tables.report), Closing(client, tables.meter)
    )
    # What was rolled up before these rows came is rolled up again.
    for day in days_between(today - timedelta(days=days - 1), today - timedelta(days=1)):
        usage.roll_up_day(day)
    return keys


def put_rows(client: Any, table: str, written: Iterable[Row], zone: ZoneInfo) -> None:
    """Many rows at once, faster than the gateway puts them one by one."""
    items = [{"PutRequest": {"Item": key_of(row.request_id, zone) | row_item(row)}} for row in written]
    batches = [items[at : at + _BATCH_PUT] for at in range(0, len(items), _BATCH_PUT)]

    def put(batch: list[dict[str, Any]]) -> None:
        left = {table: batch}
        while left:
            left = client.batch_write_item(RequestItems=left).get("UnprocessedItems") or {}

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, batches))


def _day(row: Row, zone: ZoneInfo) -> date:
    return datetime.fromtimestamp(row.arrived_at_ms // 1000, UTC).astimezone(zone).date()


def _add_key(client: Any, table: str, app: _App, now_ms: int) -> Key:
    name, _, text = app.tag.partition("=")
    new = NewKey(app.name, Limits(budget_pico_usd=app.budget_usd * PICO_PER_USD), tags={name: text})
    (item,), secret = new_key_items(new, now_ms=now_ms)
    client.put_item(TableName=table, Item=to_item(item))
    return Key(item["key_id"], secret, app)


def _tell_meters(client: Any, table: str, of_month: list[Row], month: str, budget_usd: int) -> None:
    """What the month's rows cost is spent on their keys and on the organisation."""
    from naru.key_store import KeyStore

    keys = KeyStore(MeterStore(client, table), SEOUL, organisation_budget_pico_usd=0)
    asyncio.run(keys.update_organisation(budget_pico_usd=budget_usd * PICO_PER_USD, now_ms=time.time_ns() // 10**6))
    spent: dict[str, int] = {"organisation": 0}
    for row in of_month:
        spent["organisation"] += row.cost_pico_usd
        spent[f"key#{row.key_id}"] = spent.get(f"key#{row.key_id}", 0) + row.cost_pico_usd
    for meter_id, cost in spent.items():
        key = to_item({"meter": meter_id})
        item = from_item(client.get_item(TableName=table, Key=key, ConsistentRead=True)["Item"])
        known = item["months"].get(month, {"available_pico_usd": item["budget_pico_usd"], "spent_pico_usd": 0})
        item["months"][month] = {
            "available_pico_usd": known["available_pico_usd"] - cost,
            "spent_pico_usd": known["spent_pico_usd"] + cost,
        }
        client.put_item(TableName=table, Item=to_item(item))


def main(arguments: list[str]) -> int:
    """Writes into the gateway that ``make run`` has started."""
    import boto3

    from local.run import STATE

    parser = argparse.ArgumentParser(prog="python -m local.history", description=__doc__.partition("\n")[0] if __doc__ else "")  # fmt: skip
    parser.add_argument("--days", type=int, default=DAYS)
    parser.add_argument("--seed", type=int, default=SEED)
    chosen = parser.parse_args(arguments)
    if not STATE.is_file():
        print("naru: there is no gateway here; start one with 'make run'", file=sys.stderr)
        return 1
    local = json.loads(STATE.read_text(encoding="utf-8"))
    client = boto3.client(
        "dynamodb",
        endpoint_url=local["emulator_url"],
        region_name=REGION,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )
    names = local["tables"]
    tables = Tables(names["ledger"], names["meter"], names["report"])
    keys = write_tables(client, tables, zone=SEOUL, days=chosen.days, seed=chosen.seed)
    print(f"{chosen.days} days of history, of {', '.join(key.app.name for key in keys)}: {local['base_url']}/dashboard")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
