"""The pages in a real browser: signing in by link, the worklist, a patient, an acknowledgement."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SWITCHES = [
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-sync",
    "--disable-component-update", "--no-first-run", "--disable-default-apps",
]  # fmt: skip

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
]


@pytest.fixture
def ward(make_service: Any, patient: Any) -> Iterator[Any]:
    """A service on a port of its own, with one ill and one well patient."""
    uvicorn = pytest.importorskip("uvicorn")
    service = make_service(LOG_LEVEL="error")
    for who in (
        patient("ill").rounds(range(20), heart_rate=105, lactate=4.2),
        patient("well").rounds(range(20), heart_rate=64, lactate=0.9),
    ):
        for hour in range(0, 20, 4):
            service.send(who.news(hour, hour - 4))
    config = uvicorn.Config(service.client.app, host="127.0.0.1", port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    service.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield service
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """A browser page that remembers what went wrong in it."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        made = browser.new_page(viewport={"width": 1280, "height": 900})
        made.problems = []
        made.on("console", lambda m: made.problems.append(m.text) if m.type in ("error", "warning") else None)
        made.on("pageerror", lambda e: made.problems.append(str(e)))
        made.on("requestfailed", lambda r: made.problems.append(r.url))
        yield made
        browser.close()


def test_a_nurse_finds_the_patient_and_answers_the_alert(ward: Any, page: Any):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{ward.url}/sign-in#token={ward.settings.token}")
    page.wait_for_url("**/worklist")
    assert ward.settings.token not in page.url
    assert [c["name"] for c in page.context.cookies()] == ["wardcast_session"]
    assert page.evaluate("document.cookie") == ""

    rows = page.locator("section[aria-label='Scored patients'] tbody tr")
    assert rows.count() == 2
    assert rows.nth(0).locator("a").inner_text() == "ill"
    assert rows.nth(0).locator(".tag").inner_text().strip() == "Page"
    assert rows.nth(1).locator(".tag").inner_text().strip() == "Low"

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    rows.nth(0).locator("a").click()
    page.wait_for_selector("svg.history")
    assert page.locator("h1").inner_text() == "ill"
    page.locator("button", has_text="Acted on").first.click()
    page.wait_for_load_state()
    assert "local, " in page.locator("section[aria-label='Alerts']").inner_text()

    page.get_by_text("Sign out").click()
    page.wait_for_url("**/sign-in")
    page.goto(f"{ward.url}/worklist")
    assert page.url.endswith("/sign-in")
    assert page.problems == []
    assert all(url.startswith((ward.url, "data:")) for url in asked)


def test_the_worklist_says_that_a_feed_is_silent(ward: Any, page: Any):
    now = ward.state.now_us()
    down = [{"concept": "lactate", "site": "ICU-A", "since": now - 3 * 3_600_000_000}]
    alarm = {
        "kind": "alerts_silent",
        "what": "No score has alerted.",
        "where": "alerts",
        "units": [],
        "since": now,
    }
    home = ward.settings.var / "monitor"
    home.mkdir(parents=True, exist_ok=True)
    (home / "feeds.json").write_text(json.dumps({"now": now, "down": down, "late": []}))
    (home / "alarms.json").write_text(json.dumps({"now": now, "alarms": [alarm]}))
    page.goto(f"{ward.url}/sign-in#token={ward.settings.token}")
    page.wait_for_url("**/worklist")
    said = page.locator(".note[role=alert]")
    assert "Nothing comes any more of: lactate. unit ICU-A, since" in said.inner_text()
    assert "No score has alerted." in said.inner_text()
    assert said.is_visible()
    page.screenshot(path=str(ward.settings.var / "degraded.png"))
    said.get_by_role("link").click()
    page.wait_for_url("**/monitor")
    page.goto(f"{ward.url}/worklist?unit=ICU-Z")
    assert "lactate" not in page.locator(".note[role=alert]").inner_text()
    assert page.problems == []


def test_pages_fit_a_phone_and_print_without_controls(ward: Any, page: Any):
    page.goto(f"{ward.url}/sign-in#token={ward.settings.token}")
    page.wait_for_url("**/worklist")
    page.set_viewport_size({"width": 390, "height": 800})
    for path in ("/worklist", "/patient?encounter=ill", "/model"):
        page.goto(f"{ward.url}{path}")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path
    page.emulate_media(media="print")
    assert not page.locator(".bar").is_visible()


def test_colours_keep_their_contrast_in_both_schemes(ward: Any, page: Any):
    """WCAG 2.2 asks for 4.5 to 1 between text and what lies behind it."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.goto(f"{ward.url}/sign-in#token={ward.settings.token}")
        page.goto(f"{ward.url}/sign-in")
        ratios = page.evaluate(CONTRAST)
        assert min(ratios.values()) >= 4.5, (scheme, ratios)


CONTRAST = """() => {
  const read = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const light = hex => {
    const [r, g, b] = [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16) / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const pairs = [["ink", "ground"], ["ink", "surface"], ["muted", "surface"], ["muted", "ground"], ["muted", "sunken"],
    ["accent", "surface"], ["page", "page-soft"], ["high", "high-soft"], ["low", "low-soft"], ["high", "surface"]];
  return Object.fromEntries(pairs.map(([front, back]) => {
    const [a, b] = [light(read("--" + front)), light(read("--" + back))].sort((x, y) => y - x);
    return [front + " on " + back, (a + 0.05) / (b + 0.05)];
  }));
}"""
