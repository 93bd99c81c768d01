"""The dashboard of the whole gateway: what was really asked is what the page shows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from naru.business_time import business_day
from naru.keys import read_authorization
from naru.ledger import Row, from_item
from tests.browser import sample
from tests.browser.conftest import SEOUL_OPERATOR, sign_in, violations
from tests.conftest import RunningStack
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.xdist_group("stack")
SEOUL = ZoneInfo("Asia/Seoul")


@pytest.fixture
def page(stack: RunningStack, browser: Browser) -> Iterator[Page]:
    """The deployed page, before anybody has signed in."""
    with browser.new_context(**SEOUL_OPERATOR) as context:
        opened = context.new_page()
        opened.goto(f"{stack.base_url}/dashboard")
        yield opened


def ask(stack: RunningStack, key: str, **fields: Any) -> None:
    body = {"model": "hyperclova-x-omni", "messages": [{"role": "user", "content": "안녕하세요?"}], **fields}
    answer = httpx.post(
        f"{stack.base_url}/chat/completions",
        json=body,
        headers={"Authorization": f"Bearer {key}"},
        timeout=PATIENCE_S,
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text


def rows_of_today(stack: RunningStack) -> list[Row]:
    """Other tests have put rows into the same ledger, some of them into the past."""
    pages = stack.aws("dynamodb").get_paginator("scan").paginate(TableName=stack.ledger_table, ConsistentRead=True)
    written = [from_item(item) for found in pages for item in found["Items"]]
    today = business_day(time.time_ns() // 10**6, SEOUL)
    return [row for row in written if business_day(row.arrived_at_ms, SEOUL) == today]


def won(pico_usd: int, krw_per_usd: int) -> str:
    return f"₩{pico_usd * krw_per_usd / 10**12:,.2f}"


def test_a_request_is_on_the_page_with_its_cost(stack: RunningStack, page: Page) -> None:
    """From the provider's bill through ledger and usage API to what a person reads."""
    key = stack.new_api_key("대시보드 시험")
    ask(stack, key, user="user-7")
    ask(stack, key, user="user-7", stream=False, max_tokens=40)
    before = rows_of_today(stack)
    own = sorted((row for row in before if row.key_id == read_authorization(f"Bearer {key}")[0]), key=lambda row: row.request_id)  # fmt: skip
    assert len(own) == 2
    newest = own[-1]
    sign_in(page, stack.gateway.admin_key)
    shown = int(page.locator("#kpi-requests strong").inner_text().replace(",", ""))
    assert len(before) <= shown <= len(rows_of_today(stack))
    toggle = page.locator(f"#request-{newest.request_id}")
    expect(page.locator("#recent .summary", has=toggle)).to_contain_text("대시보드 시험")
    toggle.click()
    details = page.locator("#recent .details:visible")
    expect(details).to_contain_text(newest.request_id)
    expect(details).to_contain_text(won(newest.cost_pico_usd, 1400))
    expect(details).to_contain_text(newest.attempts[0].deployment)
    assert violations(page) == []


def test_an_apps_key_sees_its_own_requests_only(stack: RunningStack, page: Page) -> None:
    key = stack.new_api_key("하나뿐인 앱")
    ask(stack, key)
    sign_in(page, key)
    expect(page.locator(".scope")).to_contain_text("하나뿐인 앱")
    expect(page.locator("#kpi-requests strong")).to_have_text("1")
    expect(page.locator("#recent .summary")).to_have_count(1)


def test_the_sample_has_the_shape_of_the_real_answer(stack: RunningStack) -> None:
    """What the other browser tests show the page is what the gateway would send."""
    ask(stack, stack.new_api_key("shape"), user="user-1")
    answer = httpx.get(
        f"{stack.base_url}/usage/summary",
        headers={"Authorization": f"Bearer {stack.gateway.admin_key}"},
        timeout=PATIENCE_S,
        trust_env=False,
    )
    assert answer.status_code == 200
    real, made_up = answer.json(), sample.summary()
    assert set(made_up) - set(real) == set()
    for name in ("today", "month"):
        assert set(made_up[name]) - set(real[name]) == set(), name
    for name in ("days", "hours", "keys", "users", "recent"):
        assert set(made_up[name][-1]) - set(real[name][-1]) == set(), name
    assert set(made_up["recent"][3]["attempts"][-1]) - set(real["recent"][0]["attempts"][0]) == set()
