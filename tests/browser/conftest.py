"""A browser for the tests of the page, and the small city that most of them look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.stage import READY_S, RULES, SENSORS, Screens, chromium
from tests.conftest import Cimtwin


# Not for the session: while Playwright runs, no other test could run a loop of its own.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=READY_S * 1000)  # a machine may be busy; what is to be quick has a deadline of its own
    with chromium() as browser:
        yield browser


@pytest.fixture
def screens(browser: Browser, cimtwin: Callable[..., Cimtwin]) -> Iterator[Screens]:
    """Opens pages; a fault in any of them that was not expected fails the test. They close before a service stops."""
    screens = Screens(browser)
    yield screens
    screens.close()


@pytest.fixture
def city(cimtwin: Callable[..., Cimtwin]) -> Cimtwin:
    """Four streets with a depth sensor each, and one without a place."""
    service = cimtwin()
    service.put_rules(RULES)
    service.put_sensors(SENSORS)
    return service
