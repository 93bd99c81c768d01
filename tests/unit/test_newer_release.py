"""Items that a newer release has written, read by this one after a rollback: what it does not know it passes over."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from naru import batch_progress, file_store, ledger
from naru.api_keys import key_view, organisation_view
from naru.attributes import Verbatim, from_item, to_item
from naru.batch_store import Batch
from naru.health_state import Holder, State
from naru.idempotency_records import Record
from naru.ledger import Attempt, Part, Row
from naru.meter import Meters
from naru.meter_state import Demand, Lease, Limits, Meter, new_item
from naru.pricing import Rates, Usage
from naru.request_ids import new_request_id
from tests.dynamodb_model import model_of
from tests.meters import NEVER_MS, USD, meter, put_key

SEOUL = ZoneInfo("Asia/Seoul")
NOW_MS = 1_795_316_405_000
MONTH = "2026-11"
REQUEST_ID = new_request_id(at_ms=NOW_MS)

UNKNOWN: dict[str, dict[str, Any]] = {
    "a number": {"N": "7"},
    "a fraction": {"N": "0.25"},
    "a very large number": {"N": "1E+40"},
    "a text": {"S": "of tomorrow"},
    "nothing": {"NULL": True},
    "bytes": {"B": b"\x00\xff"},
    "a set of numbers": {"NS": ["1", "2.5"]},
    "a map": {"M": {"deeper": {"L": [{"N": "1.5"}]}}},
}


@dataclass(frozen=True)
class Kind:
    """A kind of item: one of them, the maps in it whose attributes a release may add to, and what is read of it."""

    item: dict[str, Any]
    read: Callable[[dict[str, Any]], Any]
    within: tuple[tuple[str | int, ...], ...] = ((),)


def _meter(item: Mapping[str, Any]) -> Any:
    seen = Meter(from_item(item))
    demand = Demand(new_request_id(at_ms=NOW_MS), NOW_MS + 10_000, MONTH, worst_pico_usd=1, tokens=1)
    minute = seen.minute(NOW_MS + 10_000)
    return (
        seen.leases(),
        seen.limits,
        seen.refusal(demand),
        (minute.requests_left, minute.tokens_left),
        seen.available_pico_usd(MONTH),
        seen.spent_pico_usd(MONTH),
    )


def _kinds() -> Iterator[tuple[str, Kind]]:
    lease = Lease(REQUEST_ID, 5, 3, NOW_MS // 10_000, MONTH, "m", "batch_1")
    values = new_item(
        "key#key_1",
        Limits(budget_pico_usd=100, rpm=10, tpm=100, max_parallel=3),
        key_id="key_1",
        secrets={"hash": NEVER_MS},
        expires_at_ms=NEVER_MS,
        user_budget_pico_usd=1,
        user_rpm=1,
        name="app",
        tags={},
        created_at_ms=1,
    ) | {
        "months": {MONTH: {"available_pico_usd": 95, "spent_pico_usd": 0}},
        "in_flight": {REQUEST_ID: lease.values()},
        "slot": NOW_MS // 10_000,
        "history": [{"slot": NOW_MS // 10_000 - 1, "requests": 1, "tokens": 2}],
    }
    yield (
        "meter",
        Kind(to_item(values), _meter, ((), ("in_flight", REQUEST_ID), ("months", MONTH), ("history", 0))),
    )
    yield "lease", Kind(to_item(lease.values()), lambda item: Lease.from_values(REQUEST_ID, from_item(item)))
    yield (
        "key, as the operator sees it",
        Kind(
            to_item(values),
            lambda item: key_view([Meter(from_item(item))], NOW_MS, SEOUL),
            ((), ("in_flight", REQUEST_ID)),
        ),
    )
    yield (
        "organisation",
        Kind(
            to_item(values),
            lambda item: organisation_view([Meter(from_item(item))], NOW_MS, SEOUL),
            ((), ("in_flight", REQUEST_ID)),
        ),
    )
    usage, rates = Usage(prompt_tokens=3, completion_tokens=2), Rates(1, 1, 1, 1, currency="USD", krw_per_usd=None)
    row = Row(
        request_id=REQUEST_ID,
        key_id="key_1",
        end_user="u",
        batch_id=None,
        stream=False,
        model_asked="m",
        model_served="m",
        deployment="d",
        outcome="completed",
        error_code=None,
        usage=usage,
        usage_source="reported",
        catalog_version="1",
        rates=rates,
        cost_pico_usd=5,
        maybe_billed_pico_usd=0,
        attempts=(Attempt("d", "ok", 1),),
        first_token_ms=None,
        latency_ms=1,
        parts=(Part("m", "d", usage, rates, 5), Part("m", "e", usage, rates, 5)),
    )
    item = ledger.key_of(REQUEST_ID, SEOUL) | ledger.to_item(row)
    yield "row", Kind(item, ledger.from_item, ((), ("attempts", 0), ("parts", 1)))
    state = dataclasses.replace(State("d", version=1), holders={"w": Holder(1, 2, 3)}, calls={"c": 1})
    yield (
        "health",
        Kind(to_item(state.values()), lambda item: State.from_values(from_item(item)), ((), ("holders", "w"))),
    )
    record = {"record": "r", "request_id": REQUEST_ID, "body_hash": "h", "state": "running", "until_ms": 1, "expires_s": 2}  # fmt: skip
    yield "idempotency record", Kind(to_item(record), lambda item: _properties(Record(from_item(item)), NOW_MS))
    batch = {
        "shelf": "batches#key_1",
        "entry": "batch_1",
        "phase": "in_progress",
        "generation": 1,
        "ranges": 2,
        "ranges_ended": 1,
        "expires_at": 9,
        "model": "m",
        "input_object": "o",
    }
    yield "batch", Kind(to_item(batch), lambda item: _properties(Batch(from_item(item))))
    ranged = {"shelf": "batch#batch_1", "entry": "range#1", "until_ms": 3, "completed": 1, "failed": 1}
    yield "range", Kind(to_item(ranged), lambda item: batch_progress._range_state(from_item(item)))
    line = {"shelf": "batch#batch_1", "entry": "line#1", "tries": 1, "worker": "w", "request_id": REQUEST_ID}
    yield "line", Kind(to_item(line), lambda item: batch_progress._line_state(from_item(item)))
    file = {"shelf": "files#key_1", "entry": "file-1", "filename": "f", "purpose": "batch", "size_bytes": 1, "created_s": 1, "expires_s": 2, "lives_s": 1}  # fmt: skip
    yield "file", Kind(to_item(file), lambda item: file_store._file(from_item(item)))


def _properties(found: Any, *now_ms: int) -> dict[str, Any]:
    names = [name for name, what in vars(type(found)).items() if isinstance(what, property)]
    said = {name: getattr(found, name) for name in names}
    return said | ({"is_free": found.is_free(*now_ms)} if now_ms else {})


KINDS = dict(_kinds())


def extended(item: dict[str, Any], path: tuple[str | int, ...], unknown: dict[str, Any]) -> dict[str, Any]:
    """The item with one attribute more, in the map at this path."""
    if not path:
        return {**item, "of_a_newer_release": unknown}
    ((kind, inside),) = item[path[0]].items()  # type: ignore[index]
    if len(path) > 1 and isinstance(path[1], int):
        parts = [*inside]
        ((_, content),) = parts[path[1]].items()
        parts[path[1]] = {"M": extended(content, path[2:], unknown)}
        return {**item, path[0]: {kind: parts}}  # type: ignore[dict-item]
    return {**item, path[0]: {kind: extended(inside, path[1:], unknown)}}  # type: ignore[dict-item]


@pytest.mark.parametrize("unknown", UNKNOWN)
@pytest.mark.parametrize(
    ("name", "path"),
    [(name, path) for name, kind in KINDS.items() for path in kind.within],
    ids=lambda value: (
        "/".join("lease" if str(part).startswith("req_") else str(part) for part in value)
        if isinstance(value, tuple)
        else value
    ),
)
def test_an_attribute_of_a_newer_release_changes_nothing_that_is_read(
    name: str, path: tuple[str | int, ...], unknown: str
) -> None:
    kind = KINDS[name]
    assert kind.read(extended(kind.item, path, UNKNOWN[unknown])) == kind.read(kind.item)


@pytest.mark.parametrize("unknown", [name for name in UNKNOWN if name != "a very large number"])
@pytest.mark.parametrize("where", ["the item", "the month", "the lease", "the last minute"])
def test_a_meter_that_a_newer_release_has_written_admits_and_settles(where: str, unknown: str) -> None:
    """And what it does not know stays as it is, where it is kept."""
    dynamodb = model_of("MeterTable")
    limits = Limits(budget_pico_usd=10 * USD, rpm=10, tpm=1000, max_parallel=5)
    key_id, secret = put_key(dynamodb, limits=limits)
    meters = Meters(dynamodb, "MeterTable", SEOUL, organisation_budget_pico_usd=10 * USD)

    async def admit(at_ms: int) -> Any:
        return await meters.admit(
            f"Bearer {secret}",
            request_id=new_request_id(at_ms=at_ms),
            now_ms=at_ms,
            model="m",
            worst_pico_usd=USD,
            tokens=1,
        )

    first = asyncio.run(admit(NOW_MS))
    asyncio.run(meters.settle(asyncio.run(admit(NOW_MS + 10_000)), cost_pico_usd=1, tokens=1))
    lease = first.leases[0][1]
    path: tuple[str | int, ...] = {
        "the item": (),
        "the month": ("months", lease.month),
        "the lease": ("in_flight", lease.request_id),
        "the last minute": ("history", 0),
    }[where]
    items = dynamodb.tables["MeterTable"]
    value = from_item({"it": UNKNOWN[unknown]})["it"]
    inside: Any = items[f"key#{key_id}",]
    for part in path:
        inside = inside[part]
    inside["of_a_newer_release"] = value
    for later_ms in (10_000, 20_000, 30_000):
        second = asyncio.run(admit(NOW_MS + later_ms))
        asyncio.run(meters.settle(second, cost_pico_usd=2, tokens=1))
    asyncio.run(meters.settle(first, cost_pico_usd=3, tokens=1))
    seen = meter(dynamodb, f"key#{key_id}")
    assert (seen.leases(), seen.spent_pico_usd(lease.month)) == ([], 1 + 3 * 2 + 3)
    if where == "the item":
        assert seen.item["of_a_newer_release"] == value


def test_a_number_that_is_not_whole_is_written_back_as_it_was_read() -> None:
    item = {"share": {"N": "0.25"}, "list": {"L": [{"N": "1.5"}]}, "nothing": {"NULL": True}, "some": {"NS": ["1", "2.5"]}}  # fmt: skip
    read = from_item(item)
    assert read["share"] == Verbatim("N", "0.25")
    assert to_item(read) == item
