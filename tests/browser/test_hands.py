"""Who may come in, and with what hands: the token, and the keyboard alone."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.browser.stage import Screens, depth, part, refused, row
from tests.conftest import Cimtwin, until

pytestmark = pytest.mark.system

# What has the keyboard, whether it is in sight, and whether it can be seen to have it.
FOCUSED = """() => {
  const element = document.activeElement, box = element.getBoundingClientRect(), style = getComputedStyle(element)
  return {
    id: element.dataset.testid ?? element.className ?? element.tagName,
    body: element === document.body,
    seen: box.width > 0 && box.top < innerHeight && box.bottom > 0 && box.left < innerWidth && box.right > 0,
    marked: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2,
  }
}"""


def tab_to(page: Page, name: str, key: str = "Tab", most: int = 40) -> None:
    """On with Tab until `name` has the keyboard; every stop on the way is in sight and marked."""
    met = []
    for _ in range(most):
        page.keyboard.press(key)
        now = page.evaluate(FOCUSED)
        if not now["body"]:
            assert now["seen"], now
            assert now["marked"], now
        if now["id"] == name:
            return
        met.append(now["id"])
    pytest.fail(f"{name} is not reached by {key}, but {met}")


def test_all_is_done_by_the_keyboard_alone(city: Cimtwin, screens: Screens) -> None:
    city.publish(depth("s1", 45), depth("s2", 35), depth("s3", 25))
    page = screens.open(city.url)
    expect(row(page)).to_have_count(3)
    tab_to(page, "alert-list")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(row(page, "s2/depth")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("a")
    expect(part(page, "ack-note")).to_be_focused()
    page.keyboard.type("on the way")
    page.keyboard.press("Control+Enter")
    row(page, "s2/depth", state="active_acknowledged").wait_for()
    expect(part(page, "ack-dialog")).not_to_be_visible()
    expect(part(page, "alert-list")).to_be_focused()
    page.keyboard.press("a")  # nothing to acknowledge any more
    expect(part(page, "ack-dialog")).not_to_be_visible()
    page.keyboard.press("Enter")
    expect(part(page, "sensor-panel")).to_have_attribute("data-sensor", "s2/depth")
    expect(part(page, "alert-detail")).to_contain_text("on the way")
    tab_to(page, "sensor-close")
    page.keyboard.press("Enter")
    expect(part(page, "sensor-panel")).to_have_count(0)
    expect(part(page, "alert-list")).to_be_focused()
    tab_to(page, "map")
    page.keyboard.press("n")
    page.keyboard.press("n")
    page.keyboard.press("Enter")
    expect(part(page, "sensor-panel")).to_have_attribute("data-sensor", "s2/depth")
    part(page, "chart").and_(page.locator("[aria-busy=false]")).wait_for()
    tab_to(page, "range-1h")
    page.keyboard.press("Space")
    expect(part(page, "range-1h")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    expect(part(page, "sensor-panel")).to_have_count(0)
    tab_to(page, "mode-replay", "Shift+Tab")
    page.keyboard.press("Enter")
    expect(part(page, "replay-banner")).to_be_visible()
    expect(part(page, "mode-replay")).to_be_focused()
    tab_to(page, "replay-start")
    page.keyboard.press("Enter")
    expect(part(page, "replay-seek")).to_be_focused()
    part(page, "replay-state", state="playing").wait_for()
    page.keyboard.press("Space")
    part(page, "replay-state", state="paused").wait_for()
    tab_to(page, "replay-play", "Shift+Tab")
    page.keyboard.press("Enter")
    part(page, "replay-state", state="playing").wait_for()
    expect(part(page, "replay-pause")).to_be_focused()
    tab_to(page, "replay-stop")
    page.keyboard.press("Enter")
    expect(part(page, "replay-banner")).to_have_count(0)
    expect(part(page, "alert-list")).to_be_focused()


def test_a_service_with_a_token_asks_for_it_and_keeps_it_out_of_addresses(
    cimtwin: Callable[..., Cimtwin], screens: Screens
) -> None:
    token = "b3tter-Zx91+/=~!"
    city = cimtwin(CIMTWIN_API_TOKEN=token)
    answer = httpx.get(city.url)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    asked: list[str] = []
    screens.expect(refused(401))
    page = screens.open(city.url, until_ready=False)
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: asked.append(socket.url))
    part(page, "token-prompt").wait_for()
    expect(part(page, "token")).to_be_focused()
    expect(part(page, "token-prompt").get_by_role("alert")).to_have_count(0)
    page.keyboard.press("Escape")  # nothing works without it
    expect(part(page, "token-prompt")).to_be_visible()
    part(page, "token").fill("wrong")
    part(page, "token-send").click()
    expect(part(page, "token-prompt").get_by_role("alert")).to_have_text("令牌错误")
    part(page, "token").fill(token)
    part(page, "token-send").click()
    expect(part(page, "token-prompt")).to_have_count(0)
    part(page, "connection", state="live").wait_for()
    assert "/api/v1/sensors" in " ".join(asked)
    assert not any("b3tter" in url for url in [*asked, page.url, str(page.evaluate("location.href"))])
    assert page.context.cookies() == []
    page.reload()
    part(page, "connection", state="live").wait_for()
    expect(part(page, "token-prompt")).to_have_count(0)
    # Another window of the same browser has to ask for itself.
    other = page.context.new_page()
    other.goto(city.url)
    part(other, "token-prompt").wait_for()
    until(lambda: part(other, "connection").get_attribute("data-state") != "live", "no connection")
