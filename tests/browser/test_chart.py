"""The chart of one sensor."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.stage import LIMITS, Screens, depth, now_ms, part, row
from tests.conftest import Cimtwin, until
from twin.model import parse_time

pytestmark = pytest.mark.system

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000


def test_a_year_is_zoomed_to_single_readings_with_limits_and_the_spans_of_alerts(
    city: Cimtwin, screens: Screens
) -> None:
    now = now_ms()
    past = [(now - 364 * DAY + n * 12 * HOUR, 2 + n % 5) for n in range(2 * 363)]
    today = [(now - 5 * HOUR + n * MINUTE, 45 if 120 <= n < 180 else 3) for n in range(300)]
    city.publish(*[depth("s1", value, at) for at, value in (*past, *today)])
    page = screens.open(city.url)
    row(page, "s1/depth").click()
    chart, plot = part(page, "chart"), page.locator(".plot")

    def state() -> dict[str, str]:
        chart.and_(page.locator("[aria-busy=false]")).wait_for()
        return dict(chart.evaluate("element => ({ ...element.dataset })"))

    until(lambda: state()["points"] == "300", "the readings of today")
    assert (state()["resolution"], state()["limits"], state()["spans"]) == ("raw", str(len(LIMITS)), "1")
    assert parse_time(state()["last"]) == today[-1][0] * 1000
    expect(part(page, "sensor-latest")).to_contain_text("3 cm")
    expect(page.locator(".rules")).to_contain_text("积水")
    part(page, "range-1y").click()
    until(lambda: state()["resolution"] == "1d", "days")
    assert 360 <= int(state()["points"]) <= 366
    assert state()["spans"] == "1"
    plot.focus()
    met = ["1d"]
    for _ in range(12):
        page.keyboard.press("+")
        page.keyboard.press("+")
        at = state()
        if at["resolution"] != met[-1]:
            met.append(at["resolution"])
        if met[-1] == "raw":
            break
    assert met == ["1d", "1h", "5m", "1m", "raw"]
    for _ in range(8):
        page.keyboard.press("+")
    for _ in range(12):
        for _ in range(5):
            page.keyboard.press("ArrowLeft")
        if state()["points"] == "0":
            break
    expect(part(page, "chart-empty")).to_contain_text("该时段没有数据")
    assert (state()["points"], state()["spans"]) == ("0", "0")
    part(page, "chart-newest").click()
    until(lambda: int(state()["points"]) > 0, "the newest")


def test_new_readings_and_a_new_alert_come_into_the_open_chart(city: Cimtwin, screens: Screens) -> None:
    now = now_ms()
    city.publish(*[depth("nowhere", 5, now - n * MINUTE) for n in range(10, 0, -1)])
    page = screens.open(f"{city.url}/#/live/sensor/nowhere/depth")  # on no map, but to be opened by its address
    chart = part(page, "chart")
    expect(chart).to_have_attribute("data-points", "10")
    expect(chart).to_have_attribute("data-spans", "0")
    city.publish(depth("nowhere", 25, now))
    expect(chart).to_have_attribute("data-points", "11")
    city.publish(depth("nowhere", 26, now + 1000))
    expect(chart).to_have_attribute("data-points", "12")
    expect(chart).to_have_attribute("data-spans", "1")
    expect(part(page, "sensor-latest")).to_contain_text("26 cm")
    expect(row(page, "nowhere/depth", level="yellow")).to_have_count(1)
