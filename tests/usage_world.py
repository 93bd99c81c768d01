"""Rows, a ledger in memory and what the usage code needs around it: fast enough for thousands of examples."""

from __future__ import annotations

import bisect
import random
from collections import defaultdict
from collections.abc import Iterable
from datetime import date, datetime
from threading import Lock
from typing import Any
from zoneinfo import ZoneInfo

from naru.closing import Closing
from naru.ledger import Attempt, Outcome, Part, Row, key_of, to_item
from naru.ledger_reader import LedgerReader
from naru.pricing import Rates, Usage
from naru.report_store import ReportStore
from naru.tally import Tally
from naru.tally_codec import decode, encode
from naru.usage import Usage as UsageReader
from tests.dynamodb_model import DynamoDB

SEOUL = ZoneInfo("Asia/Seoul")
NEW_YORK = ZoneInfo("America/New_York")
RATES = Rates(3_500_001, 875_003, 3_500_007, 10_500_011, currency="USD", krw_per_usd=None)
OUTCOMES: tuple[Outcome, ...] = ("completed", "truncated", "failed", "rejected", "unknown")


def at_ms(text: str, zone: ZoneInfo = SEOUL) -> int:
    """``2026-11-22 23:59:59.999`` on the clock of a zone, in Unix milliseconds."""
    at = datetime.fromisoformat(text).replace(tzinfo=zone)
    return int(at.timestamp()) * 1000 + at.microsecond // 1000


def row(arrived_ms: int, *, rng: random.Random | None = None, **fields: Any) -> Row:
    """A row of a request that arrived then; with a generator, one of many kinds."""
    rng = rng or random.Random(arrived_ms)
    usage = Usage(
        prompt_tokens=rng.randrange(1, 5000),
        completion_tokens=rng.randrange(1, 2000),
        cached_tokens=rng.choice((0, 0, 1)),
    )
    values: dict[str, Any] = {
        "request_id": f"req_{arrived_ms:012x}{rng.getrandbits(80):020x}",
        "key_id": "key_a",
        "end_user": None,
        "batch_id": None,
        "stream": False,
        "model_asked": "omni",
        "model_served": "omni",
        "deployment": "a/omni",
        "outcome": "completed",
        "error_code": None,
        "usage": usage,
        "usage_source": "reported",
        "catalog_version": "1",
        "rates": RATES,
        "cost_pico_usd": RATES.cost_pico_usd(usage),
        "maybe_billed_pico_usd": 0,
        "attempts": (Attempt("a/omni", "ok", 100),),
        "first_token_ms": None,
        "latency_ms": 1000,
    }
    return Row(**values | fields)


def any_row(arrived_ms: int, rng: random.Random) -> Row:
    """A row of any kind, of two parts now and then."""
    made = row(
        arrived_ms,
        rng=rng,
        key_id=rng.choice(("key_a", "key_b", "key_c")),
        end_user=rng.choice((None, "u1", "u2", "사용자,3", "=4")),
        batch_id=rng.choice((None, None, "batch_1")),
        model_served=rng.choice(("omni", "fast")),
        outcome=rng.choice(OUTCOMES),
        usage_source=rng.choice(("reported", "estimated")),
        latency_ms=rng.randrange(100_000),
        first_token_ms=rng.choice((None, rng.randrange(10_000))),
    )
    if rng.random() < 0.2:
        rates = Rates(1, 1, 1, 7, currency="USD", krw_per_usd=None)
        rest = Usage(prompt_tokens=10, completion_tokens=rng.randrange(500))
        parts = (
            Part(made.model_served, made.deployment, made.usage, RATES, RATES.cost_pico_usd(made.usage)),
            Part("fast", "b/fast", rest, rates, rates.cost_pico_usd(rest)),
        )
        whole = sum(part.cost_pico_usd for part in parts)
        return Row(**{name: getattr(made, name) for name in Row.__slots__} | {"parts": parts, "usage": made.usage + rest, "cost_pico_usd": whole})  # fmt: skip
    if made.outcome == "unknown":
        # The sweeper charges what was set aside; no tokens are known.
        nothing = Usage(prompt_tokens=0, completion_tokens=0)
        return Row(**{name: getattr(made, name) for name in Row.__slots__} | {"usage": nothing, "usage_source": "none"})
    return made


class LedgerModel:
    """As much of DynamoDB as the ledger's reader calls, with pages of some items and counts of what was read."""

    def __init__(self, zone: ZoneInfo, rows: Iterable[Row] = (), *, page: int = 7) -> None:
        self.zone = zone
        self.page = page
        self.queries = 0
        self.read = 0
        self.counted = 0
        self._lock = Lock()
        self._partitions: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        self.put(rows)

    def put(self, rows: Iterable[Row]) -> None:
        for each in rows:
            key = key_of(each.request_id, self.zone)
            self._partitions[key["day_shard"]["S"]][each.request_id] = key | to_item(each)

    def query(self, **call: Any) -> dict[str, Any]:
        values = {name: value["S"] for name, value in call["ExpressionAttributeValues"].items()}
        assert call["KeyConditionExpression"] == "day_shard = :day_shard AND request_id BETWEEN :from AND :to"
        items = self._partitions.get(values[":day_shard"], {})
        ids = sorted(items)
        found = ids[bisect.bisect_left(ids, values[":from"]) : bisect.bisect_right(ids, values[":to"])]
        if not call.get("ScanIndexForward", True):
            found.reverse()
        if start := call.get("ExclusiveStartKey"):
            found = found[found.index(start["request_id"]["S"]) + 1 :]
        page = found[: min(self.page, call.get("Limit", self.page))]
        with self._lock:
            self.queries += 1
            if call.get("Select") == "COUNT":
                self.counted += len(page)
                answer: dict[str, Any] = {"Count": len(page)}
            else:
                self.read += len(page)
                answer = {"Items": [items[id_] for id_ in page]}
        if len(page) < len(found):
            answer["LastEvaluatedKey"] = {"request_id": {"S": page[-1]}}
        return answer


class StoreModel(ReportStore):
    """Notes in DynamoDB's model; roll-ups beside it, as the bytes that they are in the table."""

    def __init__(self) -> None:
        super().__init__(DynamoDB(ReportTable=("about", "part")), "ReportTable")  # type: ignore[arg-type]
        self.bytes: dict[str, dict[str, bytes]] = defaultdict(dict)

    def put_tally(self, about: str, part: str, tally: Tally) -> None:
        self.bytes[about][part] = encode(tally)

    def tallies(self, about: str) -> dict[str, Tally]:
        return {part: decode(content) for part, content in self.bytes.get(about, {}).items()}


class ClosingModel(Closing):
    """Says what a test wants: until when all rows are there."""

    def __init__(self, closed_ms: int | None = None) -> None:
        self.closed_ms = closed_ms

    def closed_until_ms(self, now_ms: int) -> int:
        return now_ms - 300_000 if self.closed_ms is None else min(self.closed_ms, now_ms)


def usage_of(ledger: LedgerModel, *, closing: Closing | None = None, store: ReportStore | None = None) -> UsageReader:
    """The usage of a ledger in memory."""
    reader = LedgerReader(ledger, "ledger", ledger.zone)  # type: ignore[arg-type]
    return UsageReader(reader, store or StoreModel(), closing or ClosingModel())


def day(text: str) -> date:
    return date.fromisoformat(text)
