"""How the page looks: in both languages and themes, on any window, with hostile names and with nothing to show."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.stage import Screens, counts, depth, part, row
from tests.conftest import Cimtwin, until

pytestmark = pytest.mark.system

# Every text that is seen, read aloud or shown on hovering.
TEXTS = """() => {
  const found = [document.title]
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement
    if (element.closest('script, style') || !element.checkVisibility() && !element.closest('option')) continue
    found.push(walker.currentNode.textContent)
  }
  for (const element of document.querySelectorAll('[title], [aria-label], [placeholder], [aria-valuetext]'))
    for (const name of ['title', 'aria-label', 'placeholder', 'aria-valuetext'])
      found.push(element.getAttribute(name) ?? '')
  return [...new Set(found.map((text) => text.trim()))].filter((text) => /\\p{L}/u.test(text))
}"""
CHINESE = re.compile(r"[\u4e00-\u9fff]")
# The switch to Chinese, and the banner, which speaks both.
BOTH = {"中文", "切换到中文", "回放 REPLAY"}
# What is the same in both: names and units of the city, time zones, key names.
NAMES = re.compile(
    r"(s\d|street-\d|default|ponding|depth|cm|Shanghai|Asia|EN|Switch to English|km|REPLAY|^\W*[A-Z]\W*$)"
)
OVERLAPS = """() => {
  const seen = (element) => element.checkVisibility() && element.getBoundingClientRect().width > 1
  const groups = ['.page > *', '.work > *', '.bar > *', '.filters > *', '.transport > *', '.row:nth-child(1) > *',
    '.line:first-child > *', '.tools > *', '.ranges > *', '.sensor > *', '.chart > *']
  const found = []
  for (const group of groups) {
    const byParent = Map.groupBy([...document.querySelectorAll(group)].filter(seen), (one) => one.parentElement)
    for (const all of byParent.values())
      for (const [n, a] of all.entries())
        for (const b of all.slice(n + 1)) {
          const [p, q] = [a.getBoundingClientRect(), b.getBoundingClientRect()]
          const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left)
          const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top)
          if (wide > 1 && high > 1) found.push(`${group}: ${a.className} over ${b.className}`)
        }
  }
  const page = document.documentElement
  if (page.scrollWidth > page.clientWidth) found.push(`scrolls sideways: ${page.scrollWidth} > ${page.clientWidth}`)
  return found
}"""


def texts(page: Page) -> set[str]:
    return set(page.evaluate(TEXTS))


def switch_language(page: Page) -> None:
    before = page.locator("html").get_attribute("lang")
    part(page, "lang-switch").click()
    page.locator(f"html:not([lang={before}])").wait_for(state="attached")


def compare_languages(page: Page) -> None:
    """In the Chinese page and back: nothing of it is left in English, and nothing of that in Chinese."""
    zh = texts(page)
    switch_language(page)
    until(lambda: all(text in BOTH or not CHINESE.search(text) for text in texts(page)), "no Chinese")
    en = texts(page)
    switch_language(page)
    assert [text for text in zh & en if text not in BOTH and not NAMES.search(text)] == []
    assert len(en) > 10


def test_every_visible_text_changes_with_the_language_which_is_remembered(city: Cimtwin, screens: Screens) -> None:
    city.publish(depth("s1", 45), depth("s2", 15), depth("s2", 0))
    page = screens.open(city.url)
    row(page, "s1/depth").click()
    part(page, "chart").and_(page.locator("[aria-busy=false]")).wait_for()
    compare_languages(page)
    row(page, "s1/depth").locator("[data-testid=ack-button]").click()
    expect(part(page, "ack-note")).to_be_focused()
    zh = texts(page)
    part(page, "ack-cancel").click()
    switch_language(page)
    row(page, "s1/depth").locator("[data-testid=ack-button]").click()
    en = texts(page)
    assert not any(CHINESE.search(text) for text in en - BOTH)
    assert {"Acknowledge", "Note (optional)", "Cancel"} <= en - zh
    part(page, "ack-cancel").click()
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    expect(part(page, "mode-replay")).to_have_text("Replay")
    switch_language(page)
    part(page, "mode-replay").click()
    part(page, "replay-start").wait_for()
    compare_languages(page)
    part(page, "replay-start").click()
    part(page, "replay-state", state="playing").wait_for()
    part(page, "replay-pause").click()
    part(page, "replay-state", state="paused").wait_for()
    compare_languages(page)


def test_dark_and_light_are_switched_for_the_map_and_chart_too_and_remembered(city: Cimtwin, screens: Screens) -> None:
    city.publish(depth("s1", 45))
    page = screens.open(f"{city.url}/#/live/sensor/s1/depth")
    part(page, "chart").and_(page.locator("[aria-busy=false]")).wait_for()
    # Of the page, the map and the chart: how light they are.
    lightness = """() => {
      const light = ([r, g, b]) => (r + g + b) / 3
      const behind = (element) => light(getComputedStyle(element).backgroundColor.match(/\\d+/g).map(Number))
      const map = document.querySelector('[data-testid=map] canvas')
      const corner = map.getContext('2d').getImageData(map.width - 3, map.height - 3, 1, 1).data
      return [behind(document.body), light(corner), behind(document.querySelector('.sensor'))]
    }"""
    assert max(page.evaluate(lightness)) < 40
    chart = "() => document.querySelector('.plot canvas').toDataURL()"
    dark = page.evaluate(chart)
    part(page, "theme-switch").click()
    until(lambda: min(page.evaluate(lightness)) > 200, "all light")
    until(lambda: page.evaluate(chart) != dark, "the chart drawn anew")
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    part(page, "theme-switch").click()
    until(lambda: max(page.evaluate(lightness)) < 40, "all dark")


def test_any_window_is_laid_out_without_overlap_or_sideways_scroll(city: Cimtwin, screens: Screens) -> None:
    city.publish(*[depth(f"s{n}", 10 * n + 5) for n in (1, 2, 3, 4)])
    for width, height in ((420, 800), (1024, 768), (3840, 2160)):
        look_everywhere(screens.open(city.url, viewport={"width": width, "height": height}))


def look_everywhere(page: Page) -> None:
    expect(row(page)).to_have_count(4)
    for _ in ("zh", "en"):
        assert page.evaluate(OVERLAPS) == []
        row(page, "s4/depth").click()
        part(page, "chart").and_(page.locator("[aria-busy=false]")).wait_for()
        assert page.evaluate(OVERLAPS) == []
        for name in ("alert-detail", "sensor-panel", "map"):
            expect(part(page, name)).to_be_visible()
        part(page, "sensor-close").click()
        switch_language(page)
    part(page, "mode-replay").click()
    part(page, "replay-start").wait_for()
    assert page.evaluate(OVERLAPS) == []
    part(page, "replay-start").click()
    part(page, "replay-seek").wait_for()
    for _ in ("zh", "en"):
        assert page.evaluate(OVERLAPS) == []
        switch_language(page)
    part(page, "replay-stop").click()
    part(page, "replay-seek").wait_for(state="detached")


def test_names_that_are_markup_endless_or_from_right_to_left_do_no_harm(city: Cimtwin, screens: Screens) -> None:
    names = {
        "markup": "<img src=x onerror=document.title='taken'><script>alert(1)</script>{{7*7}}",
        "endless": "示范新区排水管网第三泵站进水井" * 16,
        "right-to-left": "مضخة الصرف الصحي 12 / 3 שלום",
    }
    assert all(len(name) <= 256 for name in names.values())
    made = city.post(
        "/sensors",
        [
            {"device": f"<b>{key}", "property": "depth", "kind": "drainage.ponding_depth", "asset": name,
             "lon": 117.3 + n / 100, "lat": 31.83}
            for n, (key, name) in enumerate(names.items())
        ],
    )  # fmt: skip
    assert made.status_code == 200, made.text
    city.publish(*[("cim/v1/default/gateway/telemetry", {f"<b>{key}": [{"values": {"depth": 45}}]}) for key in names])
    page = screens.open(city.url)
    expect(row(page)).to_have_count(3)
    for key, name in names.items():
        row(page, f"<b>{key}/depth").click()
        expect(part(page, "alert-detail").locator("h3")).to_contain_text(name)
        expect(part(page, "sensor-panel").locator("h2")).to_have_text(f"<b>{key}/depth")
        part(page, "chart").and_(page.locator("[aria-busy=false]")).wait_for()
        assert page.evaluate(OVERLAPS) == []
        at = page.evaluate("id => window.__cimtwinMap.pixelOf(id)", f"<b>{key}/depth")
        page.mouse.move(at["x"], at["y"])
        expect(page.locator(".tip")).to_contain_text(name)
        done = city.post(
            f"/alerts/{row(page, f'<b>{key}/depth').get_attribute('data-id')}/actions",
            {"action": "acknowledge", "by": name[:100], "note": name},
        )
        assert done.status_code == 200, done.text
        expect(part(page, "alert-detail").locator("q")).to_have_text(name)
    assert page.evaluate("document.querySelectorAll('img, b script, q *, h2 *').length") == 0
    assert "taken" not in page.title()
    part(page, "filter-text").fill("<img")
    expect(row(page)).to_have_count(1)


def test_a_service_with_nothing_in_it_says_so(cimtwin: Callable[..., Cimtwin], screens: Screens) -> None:
    page = screens.open(cimtwin().url)
    expect(part(page, "alert-list")).to_have_text("无未解除报警")
    expect(part(page, "map")).to_contain_text("还没有带坐标的测点")
    assert sum(counts(page).values()) == 0
    assert page.title() == "城市基础设施监测"
    part(page, "mode-replay").click()
    expect(page.locator(".picker")).to_contain_text("没有正在运行的回放")
    part(page, "replay-start").click()
    expect(part(page, "replay-banner")).to_contain_text("×60")
    expect(part(page, "alert-list")).to_have_text("无未解除报警")
    part(page, "replay-stop").click()
    expect(part(page, "replay-banner")).to_have_count(0)
