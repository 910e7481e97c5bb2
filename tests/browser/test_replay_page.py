"""A real flood day, played again in the page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.stage import Screens, add_sensors, counts, day, part, play, refused, row, shown_alerts
from tests.conftest import Cimtwin, until
from twin.demo.devices import flood_sensors
from twin.model import MINUTE, Micros, iso, parse_time
from twin.units import load_kinds

pytestmark = pytest.mark.system

STREET = "BX-ditmars-st-hunter-ave-1kwrk0/depth"
FROM, TO = "2023-12-18T06:00:00Z", "2023-12-18T21:00:00Z"
HOUR = 60 * MINUTE
# Whatever the page shows of readings or of a chart's window, it shows with the moment that the replay is at.
NOTICE_FUTURE = """
window.future = []
new MutationObserver(() => {
  const at = (name) => document.querySelector(`[data-testid=${name}]`)?.dataset
  const now = Date.parse(at('replay-time')?.time), chart = at('chart')
  for (const name of ['last', 'to'])
    if (chart && Date.parse(chart[name]) > now)
      window.future.push(`${name} ${chart[name]} at ${new Date(now).toISOString()}`)
}).observe(document.body, { attributes: true, childList: true, subtree: true })
"""


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cimtwin]:
    """A service that has lived through the flood day; replays change nothing of it."""
    service = Cimtwin(tmp_path_factory.mktemp("flood") / "data", {}).start()
    add_sensors(service, flood_sensors(load_kinds()))
    play(service, day())
    yield service
    service.stop()


def moment(page: Page) -> Micros:
    return parse_time(part(page, "replay-time").get_attribute("data-time") or "")


def told_of(city: Cimtwin) -> list[dict[str, Any]]:
    """Every event of every alert, as the service tells of it afterwards."""
    alerts = city.get("/alerts", limit=1000)["items"]
    events = [event for alert in alerts for event in city.get(f"/alerts/{alert['id']}")["events"]]
    return sorted(events, key=lambda event: event["seq"])


def open_at(events: list[dict[str, Any]], at: Micros) -> list[tuple[str, str, str]]:
    last = {e["alert_id"]: (e["level"], e["state"]) for e in events if parse_time(e["observed_at"]) <= at}
    return sorted((id, level, state) for id, (level, state) in last.items() if state != "cleared")


def begin(page: Page, speed: str) -> str:
    """By the form; the replay's id. The page's clock is eight hours ahead of UTC."""
    part(page, "mode-replay").click()
    part(page, "replay-from").fill("2023-12-18T14:00:00")
    part(page, "replay-to").fill("2023-12-19T05:00:00")
    part(page, "replay-speed").select_option(speed)
    part(page, "replay-start").click()
    part(page, "replay-seek").wait_for()
    return str(page.evaluate("location.hash")).split("/")[2]


def seek(page: Page, to: Micros) -> None:
    part(page, "replay-seek").fill(str(to // 1000))
    until(lambda: moment(page) == to, f"{iso(to)}")


def stays(value: Callable[[], Any], for_s: float) -> bool:
    before, end = value(), time.monotonic() + for_s
    while time.monotonic() < end:
        if value() != before:
            return False
    return True


def quiet_moments(events: list[dict[str, Any]]) -> Iterator[Micros]:
    """Moments, whole seconds, with no event at or right beside them."""
    at = sorted({parse_time(event["observed_at"]) for event in events} | {parse_time(FROM), parse_time(TO)})
    for one, next_one in pairwise(at):
        if next_one - one > 10 * MINUTE and parse_time(FROM) <= one < parse_time(TO):
            yield (one + next_one) // 2 // 1_000_000 * 1_000_000


def test_a_flood_day_is_played_to_its_end_unmistakably_and_leaves_live_alone(
    flooded: Cimtwin, screens: Screens
) -> None:
    page = screens.open(flooded.url)
    live, numbers = shown_alerts(page), counts(page)
    events, running = (flooded.stats()[name] for name in ("alert_events", "replays"))
    assert sum(numbers.values()) > 5
    border = page.locator(".page").evaluate("e => getComputedStyle(e).borderLeftWidth")
    assert border == "0px"
    expect(part(page, "ack-button").first).to_be_visible()
    begin(page, "3600")
    expect(part(page, "replay-banner")).to_contain_text("回放 REPLAY")
    expect(part(page, "replay-banner")).to_contain_text("×3600")
    amber = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--replay')")
    frame = page.locator(".page").evaluate(
        "(e, amber) => { const s = getComputedStyle(e); e.style.outlineColor = amber;"
        " return [s.borderLeftWidth, s.borderLeftColor === s.outlineColor] }",
        amber,
    )
    assert frame == ["4px", True]
    assert page.title().startswith("回放")
    expect(part(page, "ack-button")).to_have_count(0)
    part(page, "replay-state", state="playing").wait_for()
    seen_counts, seen_map = set(), set()

    def is_past(at: Micros) -> bool:
        seen_counts.add(tuple(counts(page).values()))
        seen_map.add(part(page, "map").get_attribute("data-alerted"))
        return moment(page) >= at

    until(lambda: is_past(parse_time(FROM) + 6 * HOUR), "noon")
    assert len(seen_counts) > 2
    assert len(seen_map) > 2
    part(page, "replay-speed").select_option("0")
    part(page, "replay-state", state="ended").wait_for()
    assert moment(page) == parse_time(TO)
    at_the_end = open_at(told_of(flooded), parse_time(TO))
    until(lambda: shown_alerts(page) == at_the_end, "the alerts of the end", 5)
    part(page, "replay-stop").click()
    expect(part(page, "replay-banner")).to_have_count(0)
    assert page.evaluate("location.hash") == "#/live"
    until(lambda: (shown_alerts(page), counts(page)) == (live, numbers), "live as it was", 5)
    assert flooded.stats()["alert_events"] == events
    until(lambda: flooded.stats()["replays"] == running, "the replay to be over")


def test_the_alerts_of_any_moment_are_those_that_were_open_then(flooded: Cimtwin, screens: Screens) -> None:
    events = told_of(flooded)
    page = screens.open(flooded.url)
    begin(page, "1")
    part(page, "replay-pause").click()
    part(page, "replay-state", state="paused").wait_for()
    moments = list(quiet_moments(events))
    assert len(moments) > 4
    tried = {len(open_at(events, at)) for at in moments}
    assert len(tried) > 3
    for at in (*moments[::2], *reversed(moments[1::2])):
        seek(page, at)
        expected = open_at(events, at)
        until(lambda e=expected: shown_alerts(page) == e, f"the {len(expected)} alerts of {iso(at)}")
        active = {id for id, _, state in expected if state.startswith("active")}
        expect(part(page, "map")).to_have_attribute("data-alerted", str(len(active)))
    expect(part(page, "ack-button")).to_have_count(0)
    row(page).first.click()
    expect(part(page, "alert-detail")).to_be_visible()
    expect(part(page, "note-button")).to_have_count(0)


def test_pause_holds_and_time_is_moved_by_slider_keyboard_and_speed(flooded: Cimtwin, screens: Screens) -> None:
    page = screens.open(f"{flooded.url}/#/live/sensor/{STREET}")
    page.evaluate(NOTICE_FUTURE)
    replay = begin(page, "60")
    chart = part(page, "chart")
    part(page, "replay-pause").click()
    part(page, "replay-state", state="paused").wait_for()
    assert stays(lambda: moment(page), 0.6)
    assert parse_time(FROM) <= moment(page) < parse_time(FROM) + HOUR
    one = parse_time("2023-12-18T13:00:00Z")
    seek(page, one)
    chart.and_(page.locator("[aria-busy=false]:not([data-points='0'])")).wait_for()
    morning = int(chart.get_attribute("data-points") or 0)
    slider = part(page, "replay-seek")
    slider.focus()
    for key, by in (
        ("ArrowRight", MINUTE),
        ("PageUp", 10 * MINUTE),
        ("ArrowLeft", -MINUTE),
        ("PageDown", -10 * MINUTE),
    ):
        at = moment(page)
        slider.press(key)
        until(lambda at=at, by=by: moment(page) == at + by, key)
    slider.press("End")
    until(lambda: moment(page) == parse_time(TO), "the end")
    chart.and_(page.locator(f"[aria-busy=false]:not([data-points='{morning}'])")).wait_for()
    slider.press("Home")
    until(lambda: moment(page) == parse_time(FROM), "the beginning")
    expect(row(page)).to_have_count(0)
    seek(page, one)
    part(page, "replay-speed").select_option("300")
    expect(part(page, "replay-banner")).to_contain_text("×300")
    page.keyboard.press("Escape")
    page.locator("body").press(" ")  # plays, wherever it means nothing else
    part(page, "replay-state", state="playing").wait_for()
    until(lambda: moment(page) > one + 10 * MINUTE, "ten minutes more")
    part(page, "replay-pause").click()
    part(page, "replay-state", state="paused").wait_for()
    status = flooded.get(f"/replays/{replay}")
    assert (status["state"], status["speed"]) == ("paused", 300)
    until(lambda: moment(page) // 1000 == parse_time(status["time"]) // 1000, "the service's time, in ms")
    until(
        lambda: (
            (text := chart.get_attribute("data-last"))
            and one < parse_time(text) <= moment(page)
            and chart.get_attribute("aria-busy") == "false"
        ),
        "what was measured since",
    )
    assert page.evaluate("window.future") == []


def test_a_replay_that_somebody_stopped_or_never_was_is_told_in_words(flooded: Cimtwin, screens: Screens) -> None:
    page = screens.open(flooded.url)
    replay = begin(page, "60")
    other = screens.open(f"{flooded.url}/#/replay/{replay}")
    expect(part(other, "replay-banner")).to_contain_text("×60")
    part(other, "replay-stop").click()
    expect(page.locator(".picker [role=alert]")).to_contain_text("该回放已停止或已不存在")
    screens.expect(refused(404))
    gone = screens.open(f"{flooded.url}/#/replay/000000000000", until_ready=False)
    part(gone, "replay-start").wait_for()
    expect(gone.locator(".picker [role=alert]").first).to_be_visible()
    part(gone, "replay-to").fill("2023-12-18T13:00:00")
    part(gone, "replay-from").fill("2023-12-18T14:00:00")
    part(gone, "replay-start").click()
    expect(part(gone, "replay-error")).to_have_text("结束时间须晚于开始时间")
