"""``make screenshots``: pictures of the dashboard, of thirty days of generated history, in headless Chromium.

The whole gateway runs for it, on the emulator: what is in the pictures has gone through ledger, roll-ups and usage API.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import httpx
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from local import history
from local.chromium import ADVICE, ARGUMENTS, find_chromium
from local.gateway import Gateway, gateway, in_thread
from local.processes import stay_on_this_machine
from local.template import REPOSITORY

IMAGES = REPOSITORY / "docs/images"
DESKTOP, PHONE = ViewportSize(width=1360, height=900), ViewportSize(width=375, height=1180)
_PATIENCE_MS = 60_000


@dataclass(frozen=True)
class Shot:
    """One picture: how the browser is set up, and what is done before."""

    name: str
    locale: str = "ko-KR"
    scheme: Literal["light", "dark"] = "light"
    size: ViewportSize = field(default_factory=lambda: DESKTOP)
    signed_in: bool = True
    open_request: bool = False
    whole_page: bool = True


SHOTS = (
    Shot("dashboard", whole_page=False),
    Shot("dashboard-light-ko"),
    Shot("dashboard-dark-en", locale="en-US", scheme="dark"),
    Shot("dashboard-phone", size=PHONE, whole_page=False),
    Shot("dashboard-phone-request", scheme="dark", size=PHONE, open_request=True, whole_page=False),
    Shot("dashboard-sign-in", signed_in=False, whole_page=False),
)


def main() -> int:
    """Take them all, into docs/images."""
    if (chromium := find_chromium()) is None:
        print(f"naru: {ADVICE}", file=sys.stderr)
        return 1
    stay_on_this_machine()
    IMAGES.mkdir(exist_ok=True)
    # Two gateways: what the first one has counted, it does not count again when history is made up.
    with a_gateway() as running:
        take(chromium, running, [Shot("dashboard-empty", whole_page=False)])
    with a_gateway() as running:
        history.write(running.stack)
        give_room(running)
        take(chromium, running, SHOTS)
        take_mail(chromium, running)
    return 0


@contextmanager
def a_gateway() -> Iterator[Gateway]:
    """The whole gateway; no model is called."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        with in_thread(lambda: gateway(folder=folder, provider_base_urls={}, provider_keys={})) as running:
            yield running


def take_mail(chromium: str, running: Gateway) -> None:
    """The daily report as it comes by mail, of the day of the spike: ``report-mail.png``."""
    day = datetime.now(history.SEOUL).date() - timedelta(days=history.SPIKE_DAYS_AGO)
    mail = httpx.get(
        f"{running.base_url}/usage/reports/{day}",
        params={"format": "html", "language": "ko"},
        headers={"Authorization": f"Bearer {running.admin_key}"},
        timeout=_PATIENCE_MS / 1000,
        trust_env=False,
    ).raise_for_status()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 720, "height": 900})
        page.set_content(mail.text)
        page.screenshot(path=IMAGES / "report-mail.png", full_page=True)
        browser.close()
    print("docs/images/report-mail.png", flush=True)


def give_room(running: Gateway) -> None:
    """Budgets into which the month fits, on whatever day of it the pictures are taken."""
    with httpx.Client(
        base_url=running.base_url,
        headers={"Authorization": f"Bearer {running.admin_key}"},
        timeout=30,
        trust_env=False,
    ) as admin:
        month = admin.get("/usage/summary").raise_for_status().json()["month"]
        growth = (month["projected_usd"] or month["cost_usd"]) / month["cost_usd"]
        spenders = {"organization": month["cost_usd"]}
        for key in admin.get("/admin/keys").raise_for_status().json()["data"]:
            spenders[f"keys/{key['id']}"] = key["spent_usd"]
        for position, (name, spent_usd) in enumerate(spenders.items()):
            budget_usd = 5 * math.ceil(spent_usd * growth * (1.2 + 0.1 * position) / 5 + 0.2)
            admin.patch(f"/admin/{name}", json={"budget_usd": budget_usd}).raise_for_status()


def take(chromium: str, running: Gateway, shots: Iterable[Shot]) -> None:
    """Each as ``<name>.png``."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        for shot in shots:
            take_one(browser, running, shot)
        browser.close()


def take_one(browser: Browser, running: Gateway, shot: Shot) -> None:
    context = browser.new_context(
        viewport=shot.size,
        locale=shot.locale,
        color_scheme=shot.scheme,
        device_scale_factor=2 if shot.size is PHONE else 1,
        reduced_motion="reduce",
    )
    context.set_default_timeout(_PATIENCE_MS)
    page = context.new_page()
    page.goto(f"{running.base_url}/dashboard")
    if shot.signed_in:
        sign_in(page, running.admin_key)
    if shot.open_request:
        several = page.locator("#recent .summary:has(.times) .toggle")
        more = page.locator("#more")
        while not several.count() and more.count():
            more.click()
        chosen = several if several.count() else page.locator("#recent .toggle")
        chosen.first.click()
        chosen.first.evaluate("(toggle) => toggle.closest('tr').scrollIntoView({block: 'center'})")
    page.evaluate("document.activeElement.blur()")
    path = IMAGES / f"{shot.name}.png"
    page.screenshot(path=path, full_page=shot.whole_page)
    context.close()
    print(f"{path.relative_to(REPOSITORY)}: {path.stat().st_size // 1024} KB", flush=True)


def sign_in(page: Page, key: str) -> None:
    page.locator("#key").fill(key)
    page.locator("#sign-in").click()
    page.locator("#recent, #empty-heading").first.wait_for()


if __name__ == "__main__":
    sys.exit(main())
