"""Debian's Chromium, driven by Playwright, in front of the page's real handler."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from local.chromium import ADVICE, ARGUMENTS, find_chromium
from tests.browser import sample
from tests.browser.page_server import ADMIN_KEY, PageServer, page_server

AXE = Path(__file__).parent / "axe/axe.min.js"
SEOUL_OPERATOR: dict[str, Any] = {"locale": "ko-KR", "timezone_id": "Asia/Seoul", "color_scheme": "light"}


def chromium() -> str:
    """The browser's path. Without one a person's tests are skipped, and CI fails."""
    found = find_chromium()
    if found is None and os.environ.get("CI"):
        pytest.fail(ADVICE)
    return found or pytest.skip(ADVICE)


# A running Playwright occupies this thread's event loop, so it must not outlive the module.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def shared_server() -> Iterator[PageServer]:
    with page_server() as server:
        yield server


@pytest.fixture
def server(shared_server: PageServer) -> PageServer:
    """The page, and an API that knows the month of :mod:`tests.browser.sample`."""
    shared_server.gate.set()
    shared_server.asked.clear()
    shared_server.answer(sample.summary())
    return shared_server


OpenPage = Callable[..., Page]


@pytest.fixture
def complaints() -> list[str]:
    """What the browser has to say about the page; what a test leaves in it fails the test."""
    return []


@pytest.fixture
def open_page(browser: Browser, server: PageServer, complaints: list[str]) -> Iterator[OpenPage]:
    """Opens a page in a browser of its own. A defect in the page, or anything that its policy forbids, fails the test."""
    contexts = []

    def open_it(url: str | None = None, **options: Any) -> Page:
        settings: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}, **SEOUL_OPERATOR, **options}
        context = browser.new_context(**settings)
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(f"uncaught: {error}"))
        # What the browser itself reports of a failed request is the test's own doing.
        page.on(
            "console",
            lambda message: (
                complaints.append(message.text)
                if message.type in {"error", "warning"} and "Failed to load resource" not in message.text
                else None
            ),
        )
        page.goto(url or server.url)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert complaints == []


def sign_in(page: Page, key: str = ADMIN_KEY) -> Page:
    """Types the key in and waits for the figures, or for what is said instead."""
    page.locator("#key").fill(key)
    page.locator("#sign-in").click()
    page.locator("#budget, #sign-in-failure, #empty-heading").first.wait_for()
    return page


@pytest.fixture
def dashboard(open_page: OpenPage) -> Callable[..., Page]:
    """Opens a page and signs in."""
    return lambda **options: sign_in(open_page(**options))


ALL_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def violations(page: Page, rules: Sequence[str] = ALL_RULES) -> list[str]:
    """What axe-core finds: each rule with the elements that break it."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("(rules) => axe.run(document, {runOnly: rules, resultTypes: ['violations']})", rules)
    assert found["passes"], "axe has looked at nothing"
    return [
        f"{broken['id']}: {node['html'][:160]} {node['any'][0]['message'] if node['any'] else ''}"
        for broken in found["violations"]
        for node in broken["nodes"]
    ]
