"""What the pages of these tests are played in, and what is played: a browser, screens that tell of every fault, and the
packaged flood day."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    WebSocket,
    sync_playwright,
)

from ingest.publisher import device_messages
from tests.conftest import Cimtwin, until
from twin.api import page as served
from twin.demo.devices import flood_readings
from twin.model import Micros, Sensor
from twin.sensors import sensor_to_json

Message = tuple[Micros, str, bytes]  # observed_at, topic, payload
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox --use-angle=swiftshader --enable-unsafe-swiftshader --disable-dev-shm-usage"
    " --disable-background-networking --disable-component-update --disable-sync --disable-quic --no-first-run"
)
READY_S = 20.0
# Where the page runs under a policy, the policy itself tells of what it has refused.
WITNESS = """
document.addEventListener('securitypolicyviolation', (e) => console.error(`refused by policy: ${e.violatedDirective}`))
"""
# The service was stopped or answers no: the browser says so in its console, whatever the page does.
NOT_REACHED = re.compile(r"net::ERR_|WebSocket connection to|WebSocket opening handshake")

STREETS = ("s1", "s2", "s3", "s4")
LIMITS = {"blue": 10.0, "yellow": 20.0, "orange": 30.0, "red": 40.0}
RULES = """
[[rule]]
id = "ponding"
title = { zh = "积水", en = "Ponding" }
kind = "drainage.ponding_depth"
detector = "threshold"
levels = { blue = 10, yellow = 20, orange = 30, red = 40 }
instruction = { zh = "派人查看", en = "Send somebody" }
"""
SENSORS = """device,property,kind,unit,tenant,asset,lon,lat
s1,depth,drainage.ponding_depth,cm,,street-1,117.30,31.80
s2,depth,drainage.ponding_depth,cm,,street-2,117.31,31.80
s3,depth,drainage.ponding_depth,cm,,street-3,117.30,31.81
s4,depth,drainage.ponding_depth,cm,,street-4,117.31,31.81
nowhere,depth,drainage.ponding_depth,cm,,,,
"""


def refused(status: int) -> re.Pattern[str]:
    return re.compile(rf"the server responded with a status of {status}\b")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    named = os.environ.get("CIMTWIN_TEST_BROWSER")
    program = next(filter(None, map(shutil.which, [named] if named else PROGRAMS)), None)
    assert program, f"no browser: neither of {', '.join(PROGRAMS)} is installed (or set CIMTWIN_TEST_BROWSER)"
    assert (served.FOLDER / "index.html").is_file(), "the page is not built: run `make page` first"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS.split())
        yield browser
        browser.close()


class Screens:
    """Somebody's browser at one service, and what went wrong in it; `expect` names what is meant to."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts: list[BrowserContext] = []
        self._expected: list[re.Pattern[str]] = []
        self._faults: list[str] = []

    def open(self, url: str, until_ready: bool = True, **options: Any) -> Page:
        """A page in a browser of its own: nothing is shared with the others but the service."""
        options = {"viewport": {"width": 1280, "height": 800}, "timezone_id": "Asia/Shanghai", **options}
        context = self._browser.new_context(**options)
        context.set_default_timeout(READY_S * 1000)
        self._contexts.append(context)
        own = urlsplit(url).netloc

        def asked(for_: Request | WebSocket) -> None:
            address = urlsplit(for_.url)
            if address.scheme != "data" and address.netloc != own:
                self._faults.append(f"asked {for_.url}")

        def told(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                self._faults.append(message.text)

        context.on("request", asked)
        page = context.new_page()
        page.add_init_script(WITNESS)
        page.on("websocket", asked)
        page.on("pageerror", lambda error: self._faults.append(f"{error}\n{error.stack or ''}"))
        page.on("console", told)
        page.goto(url)
        if until_ready:
            page.locator("html[data-ready=true]").wait_for(state="attached")
        return page

    def expect(self, *faults: re.Pattern[str]) -> None:
        self._expected += faults

    def close(self) -> None:
        for context in self._contexts:
            context.close()
        faults = [fault for fault in self._faults if not any(one.search(fault) for one in self._expected)]
        if faults:
            pytest.fail("the page is at fault:\n" + "\n".join(faults))


def add_sensors(city: Cimtwin, sensors: Sequence[Sensor]) -> None:
    answer = city.post("/sensors", [sensor_to_json(sensor) for sensor in sensors])
    assert answer.status_code == 200, answer.text


def day() -> list[Message]:
    """The packaged flood day as its devices would have published it, in time order."""
    return [(m.observed_at, m.topic, m.payload) for m in device_messages(flood_readings())]


def between(messages: Sequence[Message], start: Micros, end: Micros) -> list[Message]:
    return [message for message in messages if start <= message[0] < end]


def play(city: Cimtwin, messages: Sequence[Message]) -> None:
    """Publish at once, and wait until all is taken in."""
    before = city.stats()["messages_received"]
    city.publish(*[(topic, payload) for _, topic, payload in messages])
    until(lambda: city.stats()["messages_received"] >= before + len(messages), "all taken in")


def depth(device: str, value: float, at_ms: int | None = None) -> tuple[str, dict[str, Any]]:
    """A message of a street's sensor, of now."""
    return f"cim/v1/default/{device}/telemetry", {"ts": at_ms or now_ms(), "values": {"depth": value}}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def open_alerts(city: Cimtwin, **params: str) -> dict[str, tuple[str, str]]:
    """Level and state by id, as the service lists them."""
    found: dict[str, tuple[str, str]] = {}
    after = None
    while True:
        answer = city.get("/alerts", state="open", limit=1000, **params, **({"after": after} if after else {}))
        found |= {alert["id"]: (alert["level"], alert["state"]) for alert in answer["items"]}
        after = answer["next"]
        if after is None:
            return found


def row(page: Page, sensor: str | None = None, **data: str) -> Locator:
    """Rows of the alert list, by what they carry."""
    wanted = {"sensor": sensor, **data} if sensor else data
    return page.locator("[data-testid=alert-row]" + "".join(f"[data-{name}='{text}']" for name, text in wanted.items()))


def part(page: Page, name: str, **data: str) -> Locator:
    return page.locator(f"[data-testid='{name}']" + "".join(f"[data-{key}='{text}']" for key, text in data.items()))


def shown_alerts(page: Page) -> list[tuple[str, str, str]]:
    """(id, level, state) of the rows, but of those that are ending."""
    found: list[list[str]] = page.eval_on_selector_all(
        "[data-testid=alert-row]", "rows => rows.map(({dataset}) => [dataset.id, dataset.level, dataset.state])"
    )
    return sorted((id, level, state) for id, level, state in found if state != "cleared")


def counts(page: Page) -> dict[str, int]:
    return {level: int(part(page, f"count-{level}").get_attribute("data-count") or -1) for level in LIMITS}
