"""Takes the pictures in README and docs of the page: `python -m tests.browser.shots docs/images`."""

from __future__ import annotations

import base64
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page

from tests.browser.stage import Screens, add_sensors, between, chromium, day, play
from tests.conftest import Cimtwin
from twin.demo.city import District, city_sensors
from twin.demo.devices import flood_readings, flood_sensors, start_of
from twin.model import MINUTE, parse_time
from twin.units import load_kinds

QUALITY = 90
MOST_KB = 150
END = parse_time("2023-12-20T00:00:00Z")
NEW_YORK = [-74.3, 40.4, -73.6, 41]
STREET = "BX-ditmars-st-hunter-ave-1kwrk0/depth"


def shoot(page: Page, file: Path) -> None:
    """As WebP, which only the protocol below Playwright makes."""
    page.mouse.move(0, 0)
    session = page.context.new_cdp_session(page)
    answer = session.send("Page.captureScreenshot", {"format": "webp", "quality": QUALITY})
    file.write_bytes(base64.b64decode(answer["data"]))
    size = file.stat().st_size // 1000
    print(f"{file} {size} kB")
    assert size <= MOST_KB


def take(city: Cimtwin, screens: Screens, folder: Path) -> None:
    add_sensors(city, [*flood_sensors(load_kinds()), *city_sensors()])
    start = start_of(flood_readings())
    now = start + 33 * MINUTE
    district = District(start).messages(start, now + 5 * MINUTE)
    told = sorted([*day(), *district], key=lambda message: message[0])
    play(city, between(told, 0, now))
    page = screens.open(f"{city.url}/")
    for _ in range(5):  # in steps, so that the page sees the data's time go on
        page.wait_for_timeout(900)
        play(city, between(told, now, now + MINUTE))
        now += MINUTE
    page.locator("[data-testid=data-time]").wait_for()
    page.locator("[data-testid=alert-row][data-level=red]").first.click()
    page.locator("[data-testid=chart][aria-busy=false]:not([data-points='0'])").wait_for()
    shoot(page, folder / "page.webp")

    play(city, between(day(), now, END))
    replay = city.post(
        "/replays", {"from": "2023-12-18T06:00:00Z", "to": "2023-12-18T21:00:00Z", "area": NEW_YORK, "speed": 60}
    ).json()
    page = screens.open(f"{city.url}/#/replay/{replay['id']}/sensor/{STREET}", timezone_id="UTC")
    page.locator("[data-testid=lang-switch]").click()
    page.locator("[data-testid=theme-switch]").click()
    city.post(f"/replays/{replay['id']}/control", {"action": "seek", "time": "2023-12-18T09:20:00Z"})
    page.locator("[data-testid=replay-time][data-time^='2023-12-18T09:2']").wait_for()
    page.locator("[data-testid=chart][aria-busy=false][data-last^='2023-12-18T09:']").wait_for()
    page.locator("[data-testid=range-replay]").click()
    page.locator("[data-testid=chart][aria-busy=false][data-from^='2023-12-18T06:0']").wait_for()
    shoot(page, folder / "replay.webp")


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, chromium() as browser:
        city = Cimtwin(Path(place) / "data", {}).start()
        try:
            screens = Screens(browser)
            take(city, screens, folder)
            screens.close()
        finally:
            city.stop()


if __name__ == "__main__":
    main()
