"""Debian's Chromium, driven by Playwright, in front of the page's real handler."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from local.chromium import ADVICE, ARGUMENTS, find_chromium
from tests.browser import sample
from tests.browser.page_server import ADMIN_KEY, PageServer, page_server
from tests.waiting import PATIENCE_S

AXE = Path(__file__).parent / "axe/axe.min.js"
SEOUL_OPERATOR: dict[str, Any] = {"locale": "ko-KR", "timezone_id": "Asia/Seoul", "color_scheme": "light"}
FEWER_PROCESSES = ("--in-process-gpu", "--disable-extensions")
WINDOW = {"width": 1280, "height": 900}
expect.set_options(timeout=PATIENCE_S * 1000)


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
        started = playwright.chromium.launch(executable_path=chromium(), args=[*ARGUMENTS, *FEWER_PROCESSES])
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


@dataclass
class Tab:
    """One page that many tests use in turn, each after it was emptied: a browser context costs more than most tests."""

    page: Page
    complaints: list[str]
    is_signed_in: bool = False
    """Whether it shows the figures, as :func:`look` leaves it."""

    def open(self, url: str, complaints: list[str], *, viewport: Any, color_scheme: Any) -> Page:
        if self.is_signed_in:
            self.empty()
        self.complaints = complaints
        self.page.set_viewport_size(viewport)
        self.page.emulate_media(color_scheme=color_scheme)
        self.page.goto(url)
        return self.page

    def complain(self, text: str) -> None:
        """To the test that has the page now."""
        self.complaints.append(text)

    def empty(self) -> None:
        """Forgets all that a test has left."""
        self.page.context.set_offline(False)
        if self.page.url.startswith("http"):
            self.page.evaluate("localStorage.clear(), sessionStorage.clear()")
        self.page.context.clear_cookies()
        self.is_signed_in = False
        # Whatever the page still asks or waits for ends here.
        self.page.goto("about:blank")


@pytest.fixture(scope="module")
def shared_tab(browser: Browser) -> Iterator[Tab]:
    context = new_context(browser, {})
    tab = Tab(context.new_page(), [])
    listen(tab.page, tab.complain)
    yield tab
    context.close()


def new_context(browser: Browser, options: dict[str, Any]) -> BrowserContext:
    context = browser.new_context(**{"viewport": WINDOW, **SEOUL_OPERATOR, **options})
    context.set_default_timeout(PATIENCE_S * 1000)
    return context


def listen(page: Page, complain: Callable[[str], None]) -> None:
    """To defects in the page, and to anything that its policy forbids."""
    page.on("pageerror", lambda error: complain(f"uncaught: {error}"))
    # What the browser itself reports of a failed request is the test's own doing.
    page.on(
        "console",
        lambda message: (
            complain(message.text)
            if message.type in {"error", "warning"} and "Failed to load resource" not in message.text
            else None
        ),
    )


@pytest.fixture
def open_page(browser: Browser, shared_tab: Tab, server: PageServer, complaints: list[str]) -> Iterator[OpenPage]:
    """Opens the page, or another one, as somebody who was never there. Asked for a language, a time zone or an empty
    page, it takes a browser context of its own. A defect in the page, or anything that its policy forbids, fails the test.
    """
    contexts = []
    is_shared = False

    def open_it(url: str | None = None, **options: Any) -> Page:
        nonlocal is_shared
        if url != "about:blank" and options.keys() <= {"viewport", "color_scheme"}:
            is_shared = True
            looks = {"viewport": WINDOW, "color_scheme": SEOUL_OPERATOR["color_scheme"], **options}
            return shared_tab.open(url or server.url, complaints, **looks)
        context = new_context(browser, options)
        contexts.append(context)
        page = context.new_page()
        listen(page, complaints.append)
        page.goto(url or server.url)
        return page

    yield open_it
    for context in contexts:
        context.close()
    if is_shared:
        shared_tab.empty()
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


@pytest.fixture
def look(shared_tab: Tab, server: PageServer, complaints: list[str]) -> Iterator[Callable[[], Page]]:
    """The page with the figures that the server has now, for tests that leave it as it was: it is asked to refresh, which
    costs a fifth of what opening it does.
    """

    def refresh() -> Page:
        if shared_tab.is_signed_in:
            shared_tab.complaints = complaints
            with shared_tab.page.expect_response("**/usage/summary"):
                shared_tab.page.locator("#refresh").click()
            expect(shared_tab.page.locator(".freshness .dot.good")).to_be_visible()
        else:
            sign_in(shared_tab.open(server.url, complaints, viewport=WINDOW, color_scheme="light"))
            shared_tab.is_signed_in = True
        return shared_tab.page

    yield refresh
    assert complaints == []


ALL_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def violations(page: Page, rules: Sequence[str] = ALL_RULES, *, within: Sequence[str] = ("html",)) -> list[str]:
    """What axe-core finds in parts of the page: each rule with the elements that break it."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate(
        "([rules, include]) => axe.run({include}, {runOnly: rules, resultTypes: ['violations']})",
        [list(rules), list(within)],
    )
    assert found["passes"], "axe has looked at nothing"
    return [
        f"{broken['id']}: {node['html'][:160]} {node['any'][0]['message'] if node['any'] else ''}"
        for broken in found["violations"]
        for node in broken["nodes"]
    ]
