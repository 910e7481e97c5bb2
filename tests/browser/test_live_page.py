"""The page as it shows what happens now, in a real browser on a real service."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from typing import Any

import pytest
from playwright.sync_api import Page, WebSocket, expect

from tests.browser.stage import (
    LIMITS,
    NOT_REACHED,
    STREETS,
    Screens,
    counts,
    depth,
    now_ms,
    open_alerts,
    part,
    refused,
    row,
    shown_alerts,
)
from tests.conftest import Cimtwin, until

pytestmark = pytest.mark.system

# When each row came into the page, by the clock that the test has, too.
NOTICE_ROWS = """
window.rowsAt = {}
new MutationObserver(() => {
  for (const row of document.querySelectorAll('[data-testid=alert-row]'))
    window.rowsAt[row.dataset.sensor] ??= Date.now()
}).observe(document.body, { childList: true, subtree: true })
"""
# The badge of a row: its word, its colour, and what makes the shape.
BADGE = """(row) => {
  const badge = row.querySelector('.badge'), shape = getComputedStyle(badge, '::before')
  const colour = document.createElement('i')
  colour.style.color = `var(--level-${row.dataset.level})`
  badge.append(colour)
  const meant = getComputedStyle(colour).color
  colour.remove()
  return { word: badge.textContent.trim(), colour: getComputedStyle(badge).backgroundColor, meant,
           shape: shape.clipPath + shape.borderRadius }
}"""
PIXEL = """(id) => {
  const canvas = document.querySelector('[data-testid=map] canvas'), box = canvas.getBoundingClientRect()
  const { x, y } = window.__cimtwinMap.pixelOf(id)
  const scale = canvas.width / box.width
  const [r, g, b] = canvas.getContext('2d').getImageData((x - box.left) * scale, (y - box.top) * scale, 1, 1).data
  return `rgb(${r}, ${g}, ${b})`
}"""


def test_a_published_reading_is_seen_within_a_second_in_the_list_the_counts_and_the_map(
    city: Cimtwin, screens: Screens
) -> None:
    city.put_sensors(
        "device,property,kind,unit,lon,lat\n"
        + "".join(f"t{n},depth,drainage.ponding_depth,cm,117.3{n},31.82\n" for n in range(5))
    )
    page = screens.open(city.url)
    expect(page.locator(".empty").first).to_have_text("无未解除报警")
    page.evaluate(NOTICE_ROWS)
    publisher = city.publisher()
    sent = {}
    for n in range(5):
        topic, body = depth(f"t{n}", 15)
        sent[f"t{n}/depth"] = now_ms()
        publisher.publish(topic, json.dumps(body).encode())
        row(page, f"t{n}/depth", state="active_unacknowledged").wait_for()
    seen = page.evaluate("window.rowsAt")
    # The best of five: on a machine that is busy with other things any one may be late.
    assert min(seen[sensor] - at for sensor, at in sent.items()) <= 1000
    assert counts(page) == {"blue": 5, "yellow": 0, "orange": 0, "red": 0}
    for device, limit in zip(STREETS, LIMITS.values(), strict=True):
        topic, body = depth(device, limit + 1)
        publisher.publish(topic, json.dumps(body).encode())
    publisher.flush()
    publisher.close()
    expect(part(page, "map")).to_have_attribute("data-alerted", "9")
    assert counts(page) == {"blue": 6, "yellow": 1, "orange": 1, "red": 1}
    assert page.title().startswith("(9) 红")
    badges = {}
    for device, level in zip(STREETS, LIMITS, strict=True):
        badges[level] = row(page, f"{device}/depth").evaluate(BADGE)
        assert badges[level]["colour"] == badges[level]["meant"]
        until(lambda d=device, b=badges[level]: page.evaluate(PIXEL, f"{d}/depth") == b["meant"], f"{level} on the map")
    assert [badge["word"] for badge in badges.values()] == ["蓝", "黄", "橙", "红"]
    assert (
        len({badge["colour"] for badge in badges.values()}) == len({badge["shape"] for badge in badges.values()}) == 4
    )


def test_what_one_acknowledges_with_a_note_another_sees_with_name_and_note(city: Cimtwin, screens: Screens) -> None:
    city.publish(depth("s1", 45), depth("s2", 25))
    here, there, late = (screens.open(city.url) for _ in range(3))
    row(late, "s1/depth").locator("[data-testid=ack-button]").click()
    row(there, "s1/depth").click()
    row(here, "s1/depth").locator("[data-testid=ack-button]").click()
    part(here, "ack-by").fill("值班员甲")
    part(here, "ack-note").fill("已派 3 人 & 一台泵 <b>")
    part(here, "ack-send").click()
    expect(part(here, "ack-dialog")).not_to_be_visible()
    for page in (here, there):
        row(page, "s1/depth", state="active_acknowledged").wait_for()
        expect(row(page, "s1/depth").locator("[data-testid=ack-button]")).to_be_disabled()
        row(page, "s2/depth", state="active_unacknowledged").wait_for()
    history = part(there, "alert-detail").locator("li")
    expect(history).to_have_count(2)
    expect(history.first).to_contain_text("值班员甲")
    expect(history.first.locator("q")).to_have_text("已派 3 人 & 一台泵 <b>")
    # A third, whose dialog has been open all the while, comes too late.
    screens.expect(refused(409))
    part(late, "ack-send").click()
    expect(part(late, "ack-error")).to_have_text("未完成：报警已确认")
    part(late, "ack-cancel").click()
    # Over, and acknowledged: it goes.
    city.publish(depth("s1", 0))
    for page in (here, there):
        expect(row(page, "s1/depth")).to_have_count(0)
        assert counts(page) == {"blue": 0, "yellow": 1, "orange": 0, "red": 0}


def frames_of(page: Page) -> list[dict[str, Any]]:
    """What the service tells this page from now on, over all of its connections."""
    frames: list[dict[str, Any]] = []

    def listen(socket: WebSocket) -> None:
        socket.on("framereceived", lambda text: frames.append(json.loads(text)))

    page.on("websocket", listen)
    return frames


def test_a_killed_service_is_noticed_and_nothing_is_missed_or_doubled(city: Cimtwin, screens: Screens) -> None:
    screens.expect(NOT_REACHED)
    city.publish(depth("s1", 15), depth("s2", 15))
    page = screens.open(city.url)
    frames = frames_of(page)
    page.reload()
    row(page, "s2/depth").wait_for()
    row(page, "s1/depth").click()
    city.kill()
    part(page, "connection", state="lost").wait_for(timeout=5000)
    assert "连接中断" in part(page, "connection").inner_text()
    expect(row(page)).to_have_count(2)  # what was known stays in sight
    city.publish(depth("s1", 0), depth("s2", 45), depth("s3", 35), depth("s4", 15))  # the broker keeps them
    city.start()
    part(page, "connection", state="live").wait_for()
    until(lambda: len(open_alerts(city)) == 4, "what happened meanwhile")
    until(lambda: shown_alerts(page) == sorted((id, *rest) for id, rest in open_alerts(city).items()), "the same here")
    assert Counter(state for _, _, state in shown_alerts(page)) == {
        "active_unacknowledged": 3,
        "cleared_unacknowledged": 1,
    }
    assert sum(frame["type"] == "snapshot" for frame in frames) == 1
    seqs = [frame["seq"] for frame in frames if frame["type"] == "alert"]
    assert len(seqs) == 4
    assert seqs == list(range(seqs[0], seqs[0] + 4))
    assert part(page, "sensor-panel").get_attribute("data-sensor") == "s1/depth"
    expect(part(page, "sensor-latest")).to_contain_text("0 cm")


def test_a_frozen_service_is_noticed_and_all_is_well_when_it_goes_on(city: Cimtwin, screens: Screens) -> None:
    screens.expect(NOT_REACHED)
    page = screens.open(city.url)
    assert city.process is not None
    os.kill(city.process.pid, signal.SIGSTOP)
    try:
        part(page, "connection", state="lost").wait_for(timeout=5000)
        city.publish(depth("s3", 35))
    finally:
        os.kill(city.process.pid, signal.SIGCONT)
    part(page, "connection", state="live").wait_for()
    row(page, "s3/depth", level="orange").wait_for()
    expect(row(page)).to_have_count(1)


RESPONDS = """() => new Promise((resolve, reject) => {
  const row = document.querySelectorAll('[data-testid=alert-row]')[3], from = performance.now()
  const wanted = row.dataset.sensor
  const look = () => {
    const panel = document.querySelector(`[data-testid=sensor-panel][data-sensor="${wanted}"] [data-testid=chart]`)
    if (panel) resolve(performance.now() - from)
    else if (performance.now() - from > 20000) reject(new Error('no panel'))
    else requestAnimationFrame(look)
  }
  row.click()
  look()
})"""


def test_a_thousand_alerts_and_fifty_changes_a_second_leave_the_page_responsive(
    city: Cimtwin, screens: Screens
) -> None:
    devices = [f"m{n:04}" for n in range(1000)]
    city.put_sensors(
        "device,property,kind,unit,lon,lat\n"
        + "".join(
            f"{name},depth,drainage.ponding_depth,cm,{117 + n % 40 / 100},{31 + n // 40 / 100}\n"
            for n, name in enumerate(devices)
        )
    )
    steps = (15, 25, 35, 45)
    city.publish(*[depth(name, steps[n % 4]) for n, name in enumerate(devices)])
    page = screens.open(city.url)
    until(lambda: counts(page) == dict.fromkeys(LIMITS, 250), "250 of each")
    expect(part(page, "map")).to_have_attribute("data-alerted", "1000")
    over = threading.Event()

    def change() -> None:
        publisher = city.publisher()
        began, n = time.monotonic(), 0
        while not over.wait(max(0.0, began + n / 50 - time.monotonic())):
            topic, body = depth(devices[n * 7 % 1000], steps[(n * 7 + 1 + n // 200) % 4])
            publisher.publish(topic, json.dumps(body).encode())
            n += 1
        publisher.flush()
        publisher.close()

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(4):
            page.evaluate(RESPONDS)
            part(page, "sensor-close").click()
            before = city.stats()["alert_events"]
            until(lambda b=before: city.stats()["alert_events"] > b + 40, "more changes")
            assert row(page).count() < 40
    finally:
        over.set()
        changing.join()
    part(page, "alert-list").evaluate("list => list.scrollTo(0, 30_000)")
    expect(page.locator("[aria-rowindex='501']")).to_be_visible()
    assert row(page).count() < 40
    levels = Counter(level for level, _ in open_alerts(city).values())
    until(lambda: counts(page) == {level: levels[level] for level in LIMITS}, "the service's numbers")
    assert sum(levels.values()) == 1000


def test_alerts_that_belong_together_are_one_line_above_the_list_and_a_flood_is_said(
    city: Cimtwin, screens: Screens
) -> None:
    city.put_sensors(
        "device,property,kind,unit,lon,lat\nnear,depth,drainage.ponding_depth,cm,117.3005,31.8\n"
        + "".join(f"t{n},depth,drainage.ponding_depth,cm,117.4{n},31.8\n" for n in range(3))
    )
    page = screens.open(city.url)
    expect(page.locator(".empty").first).to_have_text("无未解除报警")
    # Two near each other, and one far away.
    city.publish(depth("s1", 25), depth("near", 15), depth("s4", 35))
    expect(page.get_by_test_id("alert-row")).to_have_count(3)
    expect(page.get_by_test_id("incident")).to_have_count(1)
    expect(page.get_by_test_id("incident")).to_contain_text("2 条报警")
    page.get_by_test_id("incident").click()
    expect(page.get_by_test_id("alert-row")).to_have_count(2)
    page.get_by_test_id("incident").click()
    expect(page.get_by_test_id("alert-row")).to_have_count(3)
    expect(page.get_by_test_id("flood")).to_have_count(0)
    for value in (16, 25, 35):  # each worse and worse
        city.publish(*(depth(f"t{n}", value) for n in range(3)))
        until(lambda value=value: city.get("/latest", sensor="t2/depth")["items"][0]["value"] == value)  # type: ignore[misc]
    expect(page.get_by_test_id("flood")).to_contain_text("报警洪水")
    city.publish(depth("s1", 0), depth("near", 0))
    expect(page.get_by_test_id("incident")).to_have_count(0)
