"""Budgets and bills through the whole gateway: eight handler processes, a provider with faults, clients that leave, and
processes that are killed with `kill -9`.

NARU_LONG_TESTS=1 sends 2,000 mixed requests instead of 200, and tries each budget whole and sharded.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion

from naru.key_store import KeyStore
from naru.ledger import Ledger, Row, from_item
from naru.meter import Meters
from naru.meter_state import UNLIMITED, Limits, Meter
from naru.meter_store import MeterStore
from naru.sweeper import LEASE_LIFE_MS, Sweeper, Swept
from tests.accounts import OMNI, worst_case_pico_usd
from tests.conftest import RunningStack
from tests.meters import all_meters, put_key
from tests.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.xdist_group("stack")

SEOUL = ZoneInfo("Asia/Seoul")
LONG = bool(os.environ.get("NARU_LONG_TESTS"))
CHAT = "ChatFunction"


@dataclass
class Accounts:
    """What the ledger, the meters and the provider say of one key."""

    stack: RunningStack
    key_id: str
    secret: str

    @property
    def dynamodb(self) -> Any:
        return self.stack.aws("dynamodb")

    def rows(self) -> dict[str, Row]:
        pages = self.dynamodb.get_paginator("scan").paginate(TableName=self.stack.ledger_table, ConsistentRead=True)
        rows = [from_item(item) for page in pages for item in page["Items"]]
        return {row.request_id: row for row in rows if row.key_id == self.key_id}

    def bills(self) -> dict[str | None, list[int]]:
        """What the provider charges, by the gateway's request id."""
        found = defaultdict(list)
        for bill in self.stack.model.stats()["billed"]:
            cost = bill["cost_pico_usd"]
            assert cost is not None, bill
            found[bill["client_request_id"]].append(cost)
        return found

    def meters(self, whose: str | None = None) -> list[Meter]:
        """All shards of the key's meter, or of another."""
        whose = whose or f"key#{self.key_id}"
        return [
            meter for meter in all_meters(self.dynamodb, self.stack.meter_table) if meter.id.partition("/")[0] == whose
        ]

    def spent(self, whose: str | None = None) -> int:
        return sum(m["spent_pico_usd"] for meter in self.meters(whose) for m in meter.item["months"].values())

    def in_flight(self) -> int:
        return sum(len(meter.leases()) for meter in self.meters())

    def until_quiet(self) -> None:
        """All that was asked has ended, also what nobody waits for any more."""
        self.stack.model.wait_idle(PATIENCE_S)
        pool = self.stack.door.pools[CHAT]
        eventually(lambda: not pool._waiting and all(handler.current is None for handler in [*pool._handlers]))

    def sweep(self) -> Swept:
        """As if no request of now could be alive any more."""
        meters = Meters(self.dynamodb, self.stack.meter_table, SEOUL, organisation_budget_pico_usd=UNLIMITED)
        ledger = Ledger(self.dynamodb, self.stack.ledger_table, SEOUL)
        sweeper = Sweeper(self.dynamodb, self.stack.meter_table, meters, ledger)
        return asyncio.run(sweeper.sweep(now_ms=time.time_ns() // 10**6 + LEASE_LIFE_MS + 60_000))

    async def ask(
        self, body: dict[str, Any], count: int, seen: Callable[[], None] = lambda: None
    ) -> list[httpx.Response]:
        """The same request so many times at once; ``seen`` is called for each answer."""
        limits = httpx.Limits(max_connections=count)
        headers = {"Authorization": f"Bearer {self.secret}"}

        async def one(client: httpx.AsyncClient) -> httpx.Response:
            response = await client.post("/chat/completions", json=body)
            seen()
            return response

        async with httpx.AsyncClient(
            base_url=self.stack.base_url, headers=headers, limits=limits, timeout=PATIENCE_S
        ) as client:
            return list(await asyncio.gather(*(one(client) for _ in range(count))))


@pytest.fixture
def new_accounts(stack: RunningStack) -> Callable[..., Accounts]:
    stack.model.clear_control()

    def make(limits: Limits | None = None, shards: int = 1) -> Accounts:
        key_id, secret = put_key(
            stack.aws("dynamodb"),
            stack.meter_table,
            limits=limits,
            shards=shards,
            name="faults",
            tags={},
            created_at_ms=1,
        )
        accounts = Accounts(stack, key_id, secret)
        accounts.until_quiet()
        # Other tests of this stack kill processes too, and leave leases behind.
        accounts.sweep()
        stack.model.reset_stats()
        return accounts

    return make


NewAccounts = Callable[..., Accounts]


# ── A budget for ten ───────────────────────────────────────────────────────────────────────────────────────

TEN: dict[str, Any] = {
    "model": OMNI,
    "messages": [{"role": "user", "content": "안녕 [[sim tokens=400 ttft_ms=20]]"}],
    "max_tokens": 400,
}
"""An answer as long as the limit, so that the real cost is more than nine tenths of the worst case: what ten requests
give back together is not enough for an eleventh, and "exactly ten" depends on no timing at all."""


def outcomes(answers: list[httpx.Response]) -> Counter[str]:
    return Counter("served" if answer.status_code == 200 else str(answer.json()["error"]["code"]) for answer in answers)


def assert_room_for_ten_is_room_for_ten(accounts: Accounts, worst: int) -> None:
    (cost,) = {row.cost_pico_usd for row in accounts.rows().values() if row.outcome == "completed"}
    assert 10 * (worst - cost) < worst


def assert_all_accounts_agree(accounts: Accounts) -> None:
    """The invariants of one key, when everything has ended."""
    rows, bills = accounts.rows(), accounts.bills()
    assert accounts.in_flight() == 0
    assert accounts.spent() == sum(row.cost_pico_usd for row in rows.values())
    for meter in accounts.meters():
        assert all(month["available_pico_usd"] >= 0 for month in meter.item["months"].values())
    assert bills.keys() <= rows.keys()
    for request_id, costs in bills.items():
        assert sum(costs) <= rows[str(request_id)].cost_pico_usd


@pytest.mark.parametrize("shards", [1, 4] if LONG else [1])
def test_of_200_requests_at_once_a_key_with_budget_for_10_serves_exactly_10(
    new_accounts: NewAccounts, shards: int
) -> None:
    """Over HTTP, by eight handler processes. The other 190 are told that the quota is spent and not to try again; the
    provider was called ten times, and nothing is reserved afterwards.
    """
    worst = worst_case_pico_usd(TEN)
    accounts = new_accounts(Limits(budget_pico_usd=10 * worst), shards)
    answers = asyncio.run(accounts.ask(TEN, 200))
    assert outcomes(answers) == {"served": 10, "insufficient_quota": 190}
    # While others are in flight, what they do not use may come back: then a refused client may try again after a while.
    refused = [a.headers for a in answers if a.status_code == 429]
    assert all(headers.get("x-should-retry") == "false" or int(headers["retry-after"]) < 3600 for headers in refused)
    assert_room_for_ten_is_room_for_ten(accounts, worst)
    assert accounts.stack.model.stats()["requests"] == 10
    assert len(accounts.rows()) == 10
    assert accounts.spent() == sum(sum(costs) for costs in accounts.bills().values()) <= 10 * worst
    assert_all_accounts_agree(accounts)
    assert accounts.sweep() == Swept()


def test_of_200_requests_at_once_an_organisation_with_budget_for_10_serves_exactly_10(
    stack: RunningStack, new_accounts: NewAccounts
) -> None:
    """The key has no limit; the organisation's budget is lowered to what is spent and ten more, and put back after."""
    worst = worst_case_pico_usd(TEN)
    accounts = new_accounts()
    assert outcomes(asyncio.run(accounts.ask(TEN, 1))) == {"served": 1}
    cost = accounts.spent()
    store = KeyStore(MeterStore(accounts.dynamodb, stack.meter_table), SEOUL, organisation_budget_pico_usd=UNLIMITED)
    now_ms = time.time_ns() // 10**6
    before = asyncio.run(store.organisation(now_ms=now_ms))
    room = before.month.spent_pico_usd + before.month.reserved_pico_usd + 10 * worst
    asyncio.run(store.update_organisation(budget_pico_usd=room, now_ms=now_ms))
    try:
        answers = asyncio.run(accounts.ask(TEN, 200))
    finally:
        asyncio.run(store.update_organisation(budget_pico_usd=before.budget_pico_usd, now_ms=now_ms))
    assert outcomes(answers) == {"served": 10, "insufficient_quota": 190}
    assert_room_for_ten_is_room_for_ten(accounts, worst)
    assert len(accounts.rows()) == 11
    assert_all_accounts_agree(accounts)
    after = asyncio.run(store.organisation(now_ms=now_ms))
    assert after.month.spent_pico_usd - before.month.spent_pico_usd == 10 * cost
    assert after.month.reserved_pico_usd == before.month.reserved_pico_usd


@pytest.mark.parametrize("shards", [1, 4] if LONG else [1])
def test_a_budget_for_10_holds_while_half_of_the_handler_processes_are_killed(
    new_accounts: NewAccounts, shards: int
) -> None:
    """As before, while four of the eight processes die by SIGKILL in the middle of a request, after answers chosen by
    a seed. Nobody is served beyond ten; then the sweeper comes, every account agrees, and exactly the requests that
    still fit into the budget are served.
    """
    worst = worst_case_pico_usd(TEN)
    accounts = new_accounts(Limits(budget_pico_usd=10 * worst), shards)
    moments = sorted(random.Random(shards).sample(range(1, 20), 4))
    slowly = TEN | {"messages": [{"role": "user", "content": "안녕 [[sim tokens=400 ttft_ms=99]]"}]}
    answered = 0

    def seen() -> None:
        nonlocal answered
        answered += 1
        # Where no process is at work just then, at the next answer.
        if moments and answered >= moments[0]:
            with suppress(LookupError):
                accounts.stack.door.kill_handler(CHAT, in_flight=True)
                moments.pop(0)

    answers = asyncio.run(accounts.ask(slowly, 200, seen))
    accounts.until_quiet()
    assert moments == []
    counts = Counter(answer.status_code for answer in answers)
    assert counts[200] <= 10
    # A kill ends a request, seen as API Gateway's 502, unless the process had just answered it.
    assert counts[200] + counts[429] + counts[502] == 200
    assert 1 <= counts[502] <= 4
    accounts.sweep()
    rows = accounts.rows()
    served = {answer.headers["x-request-id"] for answer in answers if answer.status_code == 200}
    assert served <= {request_id for request_id, row in rows.items() if row.outcome == "completed"}
    assert {row.outcome for row in rows.values()} <= {"completed", "unknown"}
    assert all(row.cost_pico_usd == worst for row in rows.values() if row.outcome == "unknown")
    assert len(rows) <= 10
    assert_all_accounts_agree(accounts)
    left, more = (10 * worst - accounts.spent()) // worst, len(rows)
    again = outcomes(asyncio.run(accounts.ask(TEN, left + 1)))
    assert again["served"] == left
    assert len(accounts.rows()) == more + left


# ── The provider's bill ────────────────────────────────────────────────────────────────────────────────────

MODELS = [OMNI, "hyperclova-x-omni-fast", "gpt-4.1", "claude-sonnet-4-5", "gemini-2.5-flash"]
FAULTS = {
    "": 8,
    "fault=status:503,times=1": 2,
    "fault=status:503": 1,
    "fault=status:429,retry_after_ms=20,times=1": 1,
    "fault=status:400": 1,
    "fault=content_filter": 1,
    "fault=reset_before_headers:0,tokens=5": 2,
    "fault=cut_after:6": 3,
    "fault=error_in_200:4": 1,
    "fault=truncated_json": 1,
    "fault=malformed_json": 1,
    "fault=usage_missing": 2,
    "fault=usage_in_every_chunk": 1,
    "fault=no_finish_reason": 1,
    "fault=missing_done": 1,
    "fault=silence:0.05": 1,
    "fault=stall_after:3,seconds=0.05": 1,
    "reasoning=20": 1,
    "cached=30": 1,
}
HOWS = {"json": 5, "stream": 5, "leaves": 2, "impatient": 1}


def ask_somehow(accounts: Accounts, sdk: openai.OpenAI, number: int) -> dict[str, Any]:
    """One request, with faults and habits by its number; its body, for the worst case."""
    rng = random.Random(number)
    how = rng.choices([*HOWS], [*HOWS.values()])[0]
    fault = rng.choices([*FAULTS], [*FAULTS.values()])[0]
    slowly = "ttft_ms=300" if how == "impatient" else "token_ms=2" if how == "leaves" else ""
    body: dict[str, Any] = {
        "model": rng.choice(MODELS),
        "messages": [
            {
                "role": "user",
                "content": f"{number}번 손님, 안녕하세요? [[sim id=f{number} tokens={rng.randint(8, 40)} {slowly} {fault}]]",
            }
        ],
        "max_tokens": 100,
        "stream": how in {"stream", "leaves"} or fault.startswith("fault=cut_after"),
    }
    try:
        if how == "leaves":
            with accounts_http(accounts) as client, client.stream("POST", "/chat/completions", json=body) as response:
                next(response.iter_raw(), None)
        elif how == "impatient":
            # Gives up before the first token, and tries once more: two requests, two calls upstream, two rows.
            sdk.with_options(timeout=0.15, max_retries=1).chat.completions.create(**body)
        else:
            answer = sdk.chat.completions.create(**body)
            if not isinstance(answer, ChatCompletion):
                for _ in answer:
                    pass
    except (openai.OpenAIError, httpx.HTTPError):
        pass
    return body


def accounts_http(accounts: Accounts) -> httpx.Client:
    headers = {"Authorization": f"Bearer {accounts.secret}"}
    return httpx.Client(base_url=accounts.stack.base_url, headers=headers, timeout=PATIENCE_S)


def kill_in_the_middle_of_a_call(accounts: Accounts) -> None:
    """A handler dies while it, and nobody else, waits for the provider: that request ends as unknown."""
    body = {"model": OMNI, "messages": [{"role": "user", "content": "안녕 [[sim ttft_ms=20000]]"}], "max_tokens": 100}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(asyncio.run, accounts.ask(body, 1))
        eventually(lambda: accounts.stack.model.stats()["in_flight"] == 1)
        accounts.stack.door.kill_handler(CHAT, in_flight=True)
        assert [answer.status_code for answer in asked.result()] == [502]
    accounts.until_quiet()


def test_rows_meters_and_the_providers_bill_agree_over_a_mixed_run_with_faults(new_accounts: NewAccounts) -> None:
    """Faults upstream, clients that leave or lose patience, SDKs that try again, two handlers killed in the middle.

    Every call that the provider bills has its row. A row whose usage was reported is the bill, to the pico-dollar; one
    that is estimated lies within the worst case, as its bill does; one that is unknown or has no answer shows at least
    the bill. So the sums differ by no more than those rows say. The meters have spent what the rows cost.
    """
    accounts = new_accounts(Limits(budget_pico_usd=10**15, rpm=10**6, tpm=10**9, max_parallel=1000))
    organisation_before, count = accounts.spent("organisation"), 2000 if LONG else 200
    kills, lock = iter(sorted(random.Random(9).sample(range(count // 10, count), 2))), Lock()
    bodies: list[dict[str, Any]] = []
    kill_at = next(kills)

    with openai.OpenAI(base_url=accounts.stack.base_url, api_key=accounts.secret, max_retries=2) as sdk:

        def one(number: int) -> None:
            nonlocal kill_at
            body = ask_somehow(accounts, sdk, number)
            with lock:
                bodies.append(body)
                if len(bodies) >= kill_at:
                    with suppress(LookupError):
                        accounts.stack.door.kill_handler(CHAT, in_flight=True)
                        kill_at = next(kills, 10**9)

        with ThreadPoolExecutor(10) as pool:
            list(pool.map(one, range(count)))
    accounts.until_quiet()
    kill_in_the_middle_of_a_call(accounts)
    accounts.sweep()
    rows, bills = accounts.rows(), accounts.bills()

    charged = sum(row.cost_pico_usd for row in rows.values())
    assert accounts.in_flight() == 0
    assert accounts.spent() == charged
    assert accounts.spent("organisation") - organisation_before == charged
    assert bills.keys() <= rows.keys()
    worst = {model: max(worst_case_pico_usd(body) for body in bodies if body["model"] == model) for model in MODELS}
    bounds = 0
    for request_id, row in rows.items():
        billed = sum(bills.get(request_id, []))
        if row.usage_source == "estimated":
            assert max(billed, row.cost_pico_usd) <= worst[row.model_asked], row
            bounds += worst[row.model_asked]
        elif row.outcome == "unknown":
            assert billed <= row.cost_pico_usd, row
            bounds += row.cost_pico_usd
        elif row.maybe_billed_pico_usd:
            assert row.cost_pico_usd <= billed + row.maybe_billed_pico_usd, row
            assert billed <= row.cost_pico_usd + row.maybe_billed_pico_usd, row
            bounds += row.maybe_billed_pico_usd
        else:
            assert billed == row.cost_pico_usd, row
    assert abs(charged - accounts.stack.model.stats()["totals"]["cost_pico_usd"]) <= bounds
    # It was as mixed as it should be.
    exact = [row for row in rows.values() if row.usage_source == "reported" and not row.maybe_billed_pico_usd]
    assert len(exact) > count // 2
    kinds = {row.outcome for row in rows.values()} | {row.usage_source for row in rows.values()}
    assert kinds == {"completed", "truncated", "failed", "rejected", "unknown", "reported", "estimated", "none"}
    assert len(rows) > count
