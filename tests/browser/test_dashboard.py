"""The dashboard in a real browser: signing in, the right figures, both languages, small screens, faults."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser import sample
from tests.browser.conftest import OpenPage, sign_in, violations
from tests.browser.page_server import ADMIN_KEY, ROOT, PageServer, load_handler

pytestmark = pytest.mark.xdist_group("browser")

Dashboard = Callable[..., Page]
Look = Callable[[], Page]
UNKNOWN_KEY = ADMIN_KEY.replace("0testadmin0", "0stranger00")
PHONE = {"viewport": {"width": 375, "height": 780}}


def won(usd: float) -> str:
    return f"₩{usd * 1400:,.0f}"


# ── The page and its key ───────────────────────────────────────────────────────────────────────────────────


def test_the_page_asks_nobody_but_its_own_gateway(open_page: OpenPage, server: PageServer) -> None:
    """The policy says so, and nothing on the page needs more."""
    page = open_page("about:blank")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    answer = page.goto(server.url)
    assert answer is not None
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    sign_in(page)
    page.locator("#cost canvas").wait_for()
    origin = server.url.removesuffix("/v1/dashboard")
    assert len(asked) > 5
    assert [url for url in asked if not url.startswith(f"{origin}/v1/")] == []


def test_a_script_that_gets_into_the_page_does_not_run(dashboard: Dashboard, complaints: list[str]) -> None:
    page = dashboard()
    page.evaluate("""() => {
        const script = document.createElement("script");
        try { script.textContent = "window.ran = true"; document.body.append(script); } catch { /* Trusted Types */ }
    }""")
    assert page.evaluate("window.ran") is None
    assert "TrustedScript" in complaints.pop()


def test_names_that_users_chose_are_text(look: Look, server: PageServer) -> None:
    body = sample.summary()
    body["keys"][0]["name"] = "<img src=x onerror=alert(1)>"
    server.answer(body)
    page = look()
    expect(page.locator("#keys .name").first).to_have_text("<img src=x onerror=alert(1)>")
    assert page.locator("#keys img").count() == 0


def test_the_key_is_kept_in_the_tab_and_nowhere_else(dashboard: Dashboard, server: PageServer) -> None:
    page = dashboard()
    assert server.asked == [f"Bearer {ADMIN_KEY}"]
    stored = page.evaluate("JSON.stringify([{...localStorage}, document.cookie, location.href])")
    assert "sk-naru" not in stored
    assert page.evaluate("sessionStorage.length") == 1
    page.reload()
    expect(page.locator("#budget")).to_be_visible()
    page.locator("#sign-out").click()
    expect(page.locator("#key")).to_be_focused()
    assert page.evaluate("sessionStorage.length") == 0
    assert "₩" not in page.locator("main").inner_text()
    page.reload()
    expect(page.locator("#key")).to_be_visible()


def test_what_is_no_key_is_not_sent(open_page: OpenPage, server: PageServer) -> None:
    page = open_page()
    for typed, said in (("hunter2", "형식"), ("", "입력"), ("sk-naru-한글", "형식")):
        sign_in(page, typed)
        expect(page.locator("#sign-in-failure")).to_contain_text(said)
        expect(page.locator("#key")).to_be_focused()
    assert server.asked == []


def test_an_unknown_key_is_refused_and_forgotten(open_page: OpenPage) -> None:
    page = sign_in(open_page(), UNKNOWN_KEY)
    expect(page.locator("#sign-in-failure")).to_contain_text("등록되지 않은 키")
    assert page.evaluate("sessionStorage.length") == 0


def test_while_signing_in_the_form_waits(open_page: OpenPage, server: PageServer) -> None:
    server.gate.clear()
    page = open_page()
    page.locator("#key").fill(f"  {ADMIN_KEY} ")
    page.keyboard.press("Enter")
    expect(page.locator("#sign-in")).to_be_disabled()
    server.gate.set()
    expect(page.locator("#budget")).to_be_visible()


# ── The figures ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_figures_of_today_and_the_month_are_the_apis(look: Look) -> None:
    page, body = look(), sample.summary()
    today, month = body["today"], body["month"]
    expect(page.locator("#kpi-today strong")).to_have_text(won(today["cost_usd"]))
    expect(page.locator("#kpi-today")).to_contain_text(f"${today['cost_usd']:,.2f}")
    expect(page.locator("#kpi-month strong")).to_have_text(won(month["cost_usd"]))
    expect(page.locator("#kpi-requests strong")).to_have_text(f"{today['requests']:,}")
    expect(page.locator("#kpi-requests")).to_contain_text(f"오류 {today['errors']}건")
    expect(page.locator("#kpi-first-token strong")).to_have_text("412ms")
    expect(page.locator("#budget strong").first).to_have_text(f"{month['cost_usd'] / 500:.0%}")
    expect(page.locator("#budget")).to_contain_text(won(500))


def test_the_currency_can_be_chosen(look: Look) -> None:
    page, body = look(), sample.summary()
    page.locator("#currency-usd").click()
    expect(page.locator("#kpi-today strong")).to_have_text(f"${body['today']['cost_usd']:,.2f}")
    expect(page.locator("#kpi-today")).to_contain_text(won(body["today"]["cost_usd"]))
    page.locator("#currency-krw").click()
    expect(page.locator("#kpi-today strong")).to_have_text(won(body["today"]["cost_usd"]))


def test_the_budget_says_whether_it_lasts(look: Look, server: PageServer) -> None:
    page = look()
    verdict = page.locator("#budget .verdict")
    for budget_usd, level, said in ((500.0, "good", "충분"), (390.0, "warn", "빠듯"), (300.0, "bad", "11월 28일"), (200.0, "bad", "거절")):  # fmt: skip
        server.answer(sample.summary(budget_usd=budget_usd))
        page.locator("#refresh").click()
        expect(verdict).to_contain_text(said)
        expect(verdict).to_have_class(f"verdict {level}")


def test_the_bars_are_as_high_as_the_costs(look: Look) -> None:
    """Pixels of the canvas, counted by colour in the middle of each day's bar: what a person sees."""
    page, body = look(), sample.summary()
    heights = page.evaluate(COUNT_PIXELS, [len(body["days"]), ["--m1", "--m2"]])
    # The dearest model has the first colour.
    for position, model in enumerate(["hyperclova-x-omni", "claude-sonnet-4-5"]):
        drawn, costs = heights[position], [day["models"][model] for day in body["days"]]
        scale = sum(drawn) / sum(costs)
        assert sum(drawn) > 100
        assert [round(pixels - cost * scale) for pixels, cost in zip(drawn, costs, strict=True)] == pytest.approx(
            [0] * len(costs), abs=2
        )


COUNT_PIXELS = """([days, colors]) => {
    const canvas = document.querySelector("#cost canvas"), over = document.querySelector("#cost .u-over");
    const ratio = devicePixelRatio, left = over.offsetLeft * ratio, width = over.clientWidth * ratio;
    const copy = new OffscreenCanvas(canvas.width, canvas.height);
    const context = copy.getContext("2d", {willReadFrequently: true});
    context.drawImage(canvas, 0, 0);
    return colors.map((name) => {
        const probe = document.body.appendChild(document.createElement("i"));
        probe.style.color = `var(${name})`;
        const wanted = getComputedStyle(probe).color.match(/\\d+/g).map(Number);
        return Array.from({length: days}, (_, day) => {
            const x = Math.round(left + (day + 0.5) * width / days);
            const column = context.getImageData(x, 0, 1, canvas.height).data;
            let count = 0;
            for (let at = 0; at < column.length; at += 4)
                if (wanted.every((value, part) => Math.abs(value - column[at + part]) < 6)) count += 1;
            return count;
        });
    });
}"""


def test_every_chart_has_its_figures_as_a_table(look: Look) -> None:
    page, body = look(), sample.summary()
    page.locator("#cost-table").click()
    rows = page.locator("#cost table tbody tr")
    expect(rows).to_have_count(30)
    last = body["days"][-1]
    ranked = ["hyperclova-x-omni", "claude-sonnet-4-5", "HCX-007", "hyperclova-x-omni-fast", "gpt-4.1"]
    shown = [*(won(last["models"][model]) for model in ranked), won(last["cost_usd"])]
    assert rows.first.locator("td").all_inner_texts() == shown
    page.locator("#requests-table").click()
    assert page.locator("#requests table tbody tr").first.locator("td").all_inner_texts()[:2] == [
        f"{last['requests']:,}",
        str(last["errors"]),
    ]


def test_the_pointer_shows_a_days_figures(look: Look) -> None:
    page, body = look(), sample.summary()
    plot = page.locator("#cost .u-over")
    box = plot.bounding_box()
    assert box is not None
    plot.hover(position={"x": box["width"] - 4, "y": 50})
    tip = page.locator("#cost .tip")
    expect(tip).to_contain_text("11월 23일")
    expect(tip).to_contain_text(won(body["days"][-1]["cost_usd"]))


def test_many_models_are_drawn_as_eight_colours(look: Look, server: PageServer) -> None:
    body = sample.summary()
    for day in body["days"]:
        day["models"] = {f"model-{number:02}": 1.0 + number / 10 for number in range(12)}
        day["cost_usd"] = sum(day["models"].values())
    server.answer(body)
    legend = look().locator("#cost .legend li")
    expect(legend).to_have_count(8)
    expect(legend.last).to_contain_text("그 밖의 모델")
    expect(legend.last).to_contain_text(won(30 * sum(1 + number / 10 for number in range(5))))


def test_times_are_the_business_zones_wherever_the_browser_is(dashboard: Dashboard) -> None:
    page = dashboard(timezone_id="America/New_York")
    expect(page.locator(".freshness")).to_contain_text("15:42:07")
    expect(page.locator("#recent .toggle").first).to_have_text("15:41:27")


# ── Requests ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_opens_by_keyboard_and_shows_its_attempts(look: Look) -> None:
    page = look()
    toggle = page.locator("#recent .toggle").nth(3)
    toggle.focus()
    page.keyboard.press("Enter")
    expect(toggle).to_have_attribute("aria-expanded", "true")
    attempts = page.locator("#recent .details:visible .attempts li")
    expect(attempts).to_have_count(3)
    expect(attempts.nth(1)).to_contain_text("900ms 대기")
    expect(attempts.nth(1)).to_contain_text("청구되었을 수 있음")
    page.keyboard.press("Enter")
    expect(toggle).to_have_attribute("aria-expanded", "false")
    expect(attempts).to_have_count(0)


def test_what_is_open_stays_open_when_the_figures_change(dashboard: Dashboard, server: PageServer) -> None:
    page = dashboard()
    toggle = page.locator("#recent .toggle").nth(3)
    name = toggle.get_attribute("id")
    toggle.focus()
    page.keyboard.press("Enter")
    body = sample.summary()
    newest = {**body["recent"][0], "request_id": "req_newest"}
    body["recent"] = [newest, *body["recent"]]
    server.answer(body)
    page.evaluate("document.getElementById('refresh').dispatchEvent(new Event('click'))")
    expect(page.locator("#request-req_newest")).to_be_visible()
    expect(page.locator(f"#{name}")).to_be_focused()
    expect(page.locator(f"#{name}")).to_have_attribute("aria-expanded", "true")


def test_more_requests_are_shown_when_asked_for(dashboard: Dashboard) -> None:
    page = dashboard()
    expect(page.locator("#recent .summary")).to_have_count(10)
    page.locator("#more").click()
    expect(page.locator("#recent .summary")).to_have_count(30)
    expect(page.locator("#recent .toggle").nth(10)).to_be_focused()


def test_batches_say_how_far_they_are(look: Look) -> None:
    bar = look().get_by_role("progressbar", name="batch_0692f1c7d3a04b9e")
    expect(bar).to_have_attribute("aria-valuenow", str(7431 + 36))
    expect(bar).to_have_attribute("aria-valuetext", "12,000건 중 7,467건 · 실패 36건")


def test_what_the_api_does_not_tell_is_not_shown(look: Look, server: PageServer) -> None:
    body = sample.summary()
    del body["batches"], body["health"]
    server.answer(body)
    page = look()
    expect(page.locator("#recent")).to_be_visible()
    expect(page.locator("#batches, #providers")).to_have_count(0)


# ── Languages, themes, sizes ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("locale", "language", "heading"), [("ko", "ko", "오늘 비용"), ("fr-FR", "en", "Spent today")])
def test_the_browsers_language_is_taken(dashboard: Dashboard, locale: str, language: str, heading: str) -> None:
    page = dashboard(locale=locale)
    expect(page.locator("html")).to_have_attribute("lang", language)
    expect(page.locator("#kpi-today h2")).to_have_text(heading)


def test_the_language_can_be_switched_and_is_remembered(dashboard: Dashboard) -> None:
    page = dashboard()
    page.locator("#language-en").click()
    expect(page.locator("#language-en")).to_be_focused()
    expect(page.locator("#kpi-month h2")).to_have_text("Spent this month")
    expect(page).to_have_title("Usage and cost · Naru")
    page.reload()
    expect(page.locator("#kpi-month h2")).to_have_text("Spent this month")
    assert not any("가" <= letter <= "힣" for letter in page.locator("main").inner_text().replace("웹 서버", ""))


def test_no_text_is_missing_in_either_language(open_page: OpenPage) -> None:
    """Both languages have the same texts, of the same kind."""
    assert open_page().evaluate("""async () => {
        const {texts} = await import(document.querySelector('link[href$="texts.js"]').href);
        const shape = (value) => typeof value === "object"
            ? Object.fromEntries(Object.entries(value).sort().map(([name, part]) => [name, shape(part)]))
            : typeof value + (typeof value === "function" ? value.length : "");
        return JSON.stringify(shape(texts.ko)) === JSON.stringify(shape(texts.en));
    }""")


def test_the_theme_follows_the_system_until_it_is_chosen(dashboard: Dashboard) -> None:
    page = dashboard(color_scheme="dark")
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    dark = page.evaluate(ground)
    page.locator("#theme").click()
    light = page.evaluate(ground)
    assert dark != light
    page.reload()
    assert page.evaluate(ground) == light
    expect(page.locator("#theme")).to_have_attribute("aria-label", "화면 모드: 밝게")


def test_nothing_is_wider_than_a_phone(dashboard: Dashboard) -> None:
    page = dashboard(**PHONE)
    page.locator("#recent .toggle").nth(3).click()
    page.locator("#cost-table").click()
    for language in ("ko", "en"):
        page.locator(f"#language-{language}").click()
        expect(page.locator("html")).to_have_attribute("lang", language)
        expect(page.locator("#cost canvas")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        assert page.evaluate(WIDER_THAN_A_PHONE) == []
    # It is the width of a phone in which axe finds other things: sizes of targets, what can be scrolled.
    assert violations(page, ["wcag22aa", "best-practice", "cat.keyboard"]) == []


WIDER_THAN_A_PHONE = """() => [...document.querySelectorAll("main .card *")]
    .filter((each) => each.offsetParent && !each.closest(".scroll") && each.getBoundingClientRect().right > 375.5)
    .map((each) => each.outerHTML.slice(0, 100))"""


@pytest.mark.parametrize("view", ["dashboard", "sign-in", "empty", "failed"])
def test_axe_finds_nothing(open_page: OpenPage, server: PageServer, view: str) -> None:
    page = open_page()
    if view == "empty":
        server.answer(empty_summary())
    if view == "failed":
        page.evaluate(f"sessionStorage.setItem('naru.key', '{ADMIN_KEY}')")
        server.answer({}, status=503)
        page.reload()
        page.locator("#retry").wait_for()
    elif view == "sign-in":
        page.locator("#key").wait_for()
    else:
        sign_in(page)
    if view == "dashboard":
        page.locator("#recent .toggle").nth(3).click()
        page.locator("#speed-table").click()
    in_both_lights(page, "html")
    if view == "sign-in":
        sign_in(page, UNKNOWN_KEY)
        in_both_lights(page, "main")
    if view == "dashboard":
        server.answer({}, status=503)
        page.locator("#refresh").click()
        page.locator(".banner").wait_for()
        in_both_lights(page, ".banner", "header")


def in_both_lights(page: Page, *within: str) -> None:
    page.emulate_media(color_scheme="light")
    assert violations(page, within=within) == []
    # In the dark only the colours are others.
    page.emulate_media(color_scheme="dark")
    assert violations(page, ["color-contrast"], within=within) == []


def test_the_whole_page_can_be_walked_by_keyboard(dashboard: Dashboard) -> None:
    page = dashboard()
    page.evaluate("document.activeElement.blur()")
    reached: list[str] = []
    while reached[-1:] != ["more"] and len(reached) < 60:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert reached[0] == "skip"
    order = [
        "refresh",
        "currency-usd",
        "language-en",
        "theme",
        "sign-out",
        "cost-table",
        "requests-table",
        "speed-table",
        "more",
    ]
    assert [name for name in reached if name in order] == order


# ── Time and faults ────────────────────────────────────────────────────────────────────────────────────────


def test_it_refreshes_itself_and_rests_while_nobody_looks(open_page: OpenPage, server: PageServer) -> None:
    page = open_page("about:blank")
    page.clock.install()
    page.goto(server.url)
    sign_in(page)
    assert len(server.asked) == 1
    with page.expect_response("**/usage/summary"):
        page.clock.fast_forward(60_500)
    expect(page.locator(".freshness .dot.good")).to_be_visible()
    page.evaluate(SET_HIDDEN, True)
    page.clock.fast_forward(600_000)
    assert len(server.asked) == 2
    with page.expect_response("**/usage/summary"):
        page.evaluate(SET_HIDDEN, False)
        page.clock.fast_forward(1)
    assert len(server.asked) == 3


SET_HIDDEN = """(hidden) => {
    Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
    document.dispatchEvent(new Event("visibilitychange"));
}"""


def test_old_figures_stay_while_the_gateway_fails_and_say_how_old_they_are(
    dashboard: Dashboard, server: PageServer
) -> None:
    page = dashboard()
    server.answer({}, 500, **{"x-request-id": "req_123"})
    page.locator("#refresh").click()
    expect(page.locator(".banner")).to_contain_text("req_123")
    expect(page.locator(".banner")).to_contain_text("15:42:07")
    expect(page.locator("#kpi-today strong")).to_contain_text("₩")
    server.answer(sample.summary())
    page.locator("#retry").click()
    expect(page.locator(".banner")).to_have_count(0)


def test_a_gateway_that_asks_for_patience_gets_it(open_page: OpenPage, server: PageServer) -> None:
    page = open_page("about:blank")
    page.clock.install()
    page.goto(server.url)
    sign_in(page)
    server.answer({}, 429, **{"Retry-After": "300"})
    with page.expect_response("**/usage/summary"):
        page.clock.fast_forward(60_500)
    expect(page.locator(".banner")).to_contain_text("300초")
    page.clock.fast_forward(290_000)
    assert len(server.asked) == 2
    with page.expect_response("**/usage/summary"):
        page.clock.fast_forward(10_500)


def test_failures_are_tried_again_less_and_less_often(open_page: OpenPage, server: PageServer) -> None:
    page = open_page("about:blank")
    page.clock.install()
    page.goto(server.url)
    sign_in(page)
    server.answer({}, 503)
    for wait_s in (60, 60, 120, 240, 480, 600, 600):
        page.clock.fast_forward((wait_s - 1) * 1000)
        before = len(server.asked)
        with page.expect_response("**/usage/summary"):
            page.clock.fast_forward(1500)
        assert len(server.asked) == before + 1
        page.locator(".freshness .dot.bad").wait_for()


def test_a_key_that_was_revoked_ends_the_visit(dashboard: Dashboard, server: PageServer) -> None:
    page = dashboard()
    server.answer({}, 401)
    page.locator("#refresh").click()
    expect(page.locator("#sign-in-failure")).to_contain_text("더 이상 유효하지 않습니다")
    assert page.evaluate("sessionStorage.length") == 0


def test_without_a_network_it_says_so(dashboard: Dashboard) -> None:
    page = dashboard()
    page.context.set_offline(True)
    page.locator("#refresh").click()
    expect(page.locator(".banner")).to_contain_text("연결할 수 없습니다")


def test_an_answer_that_cannot_be_read_is_not_shown_as_figures(open_page: OpenPage, server: PageServer) -> None:
    server.answer({"today": None})
    page = sign_in(open_page())
    expect(page.locator("#sign-in-failure")).to_contain_text("읽을 수 없습니다")


def test_a_slow_first_answer_shows_where_the_figures_will_be(open_page: OpenPage, server: PageServer) -> None:
    page = open_page()
    page.evaluate(f"sessionStorage.setItem('naru.key', '{ADMIN_KEY}')")
    server.gate.clear()
    page.reload()
    expect(page.locator("main")).to_have_attribute("aria-busy", "true")
    expect(page.locator(".bone")).to_have_count(8)
    server.gate.set()
    expect(page.locator("#budget")).to_be_visible()


def test_before_the_first_request_it_shows_how_to_make_one(dashboard: Dashboard, server: PageServer) -> None:
    server.answer(empty_summary())
    page = dashboard()
    expect(page.locator("#empty-heading")).to_have_text("아직 요청이 없습니다")
    expect(page.locator("pre")).to_contain_text(f"curl {server.url.removesuffix('/dashboard')}/chat/completions")
    expect(page.locator("#budget")).to_contain_text(won(500))
    expect(page.locator("canvas")).to_have_count(0)


def test_the_empty_page_fits_a_phone(dashboard: Dashboard, server: PageServer) -> None:
    server.answer(empty_summary())
    page = dashboard(**PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == 375


def empty_summary() -> dict[str, Any]:
    body = sample.summary()
    for day in body["days"]:
        day |= {"requests": 0, "errors": 0, "cost_usd": 0, "models": {}, "first_token_ms": None, "latency_ms": None}
    nothing = {"requests": 0, "errors": 0, "cost_usd": 0, "prompt_tokens": 0, "completion_tokens": 0}
    body["today"] |= {**nothing, "first_token_ms": None, "latency_ms": None, "same_weekday_last_week_cost_usd": 0}
    body["month"] |= {"requests": 0, "cost_usd": 0, "reserved_usd": 0, "projected_usd": None, "exhausted_on": None}
    return {**body, "errors": [], "keys": [], "users": [], "recent": [], "batches": []}


# ── The handler ────────────────────────────────────────────────────────────────────────────────────────────


def event(path: str, **parameters: str) -> dict[str, Any]:
    resource = "/dashboard/{version}/{file}" if parameters else "/dashboard"
    return {"httpMethod": "GET", "resource": resource, "path": path, "pathParameters": parameters or None, "requestContext": {"path": f"/v1{path}"}}  # fmt: skip


def test_files_may_be_kept_for_ever_and_the_page_may_not() -> None:
    """A deploy changes the version, and with it every address on the page."""
    app = load_handler()
    assert app.lambda_handler(event("/dashboard"), None)["headers"]["Cache-Control"] == "no-cache"
    kept = app.lambda_handler(event("/dashboard/x/app.js", version=app.version, file="app.js"), None)
    assert "immutable" in kept["headers"]["Cache-Control"]
    older = app.lambda_handler(event("/dashboard/x/app.js", version="0", file="app.js"), None)
    assert older["headers"]["Cache-Control"] == "no-store"


@pytest.mark.parametrize("name", ["../app.py", "..%2fapp.py", "index.html", "LICENSE", "", "nothing.js"])
def test_only_the_pages_files_are_served(name: str) -> None:
    app = load_handler()
    answer = app.lambda_handler(event("/dashboard/x/y", version=app.version, file=name), None)
    assert answer["statusCode"] == 404
    assert set(json.loads(answer["body"])["error"]) == {"message", "type", "param", "code"}


def test_a_slash_at_the_end_leads_to_the_page(open_page: OpenPage, server: PageServer) -> None:
    page = open_page(f"{server.url}/")
    expect(page.locator("#key")).to_be_visible()
    assert page.url == server.url


def test_every_file_that_the_page_names_is_there() -> None:
    app = load_handler()
    named = {part.partition('"')[0] for part in app.page.split(f"dashboard/{app.version}/")[1:]}
    assert named == set(app.files)


def test_the_chart_library_is_the_release_that_the_docs_name() -> None:
    release = "1.6.32"
    assert (
        load_handler().files["uPlot.iife.min.js"].startswith(f"/*! https://github.com/leeoniya/uPlot (v{release}) */")
    )
    assert release in (ROOT / "docs/dashboard.md").read_text(encoding="utf-8")
    assert "MIT" in (ROOT / "functions/dashboard/static/uplot/LICENSE").read_text(encoding="utf-8")
