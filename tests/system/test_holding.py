"""What holds alerts back is there again after kill -9, before the first push; and every page shows it."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Cimtwin, until

pytestmark = pytest.mark.system

SENSORS = "device,property,kind,unit,asset\n" + "".join(
    f"d{n},depth,drainage.ponding_depth,cm,underpass-{n}\n" for n in range(5)
) + "d4,running,drainage.pump_running,bool,underpass-4\n"  # fmt: skip
RULES = """
[[rule]]
id = "ponding"
kind = "drainage.ponding_depth"
detector = "threshold"
levels = { blue = 10, red = 40 }

[[rule]]
id = "stopped"
kind = "drainage.pump_running"
detector = "threshold"
side = "below"
levels = { yellow = 0 }

[[inhibit]]
source = { rule = "stopped" }
target = { rule = "ponding" }
equal = ["asset"]
"""


def when(seconds: float) -> str:
    """So far from now."""
    return (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def flags(events: list[dict[str, Any]]) -> dict[str, list[str]]:
    """By device, the flags of the event that told of its raise."""
    return {e["sensor"].partition("/")[0]: e["flags"] for e in events if e["transition"] == "raised"}


def publish(city: Cimtwin, **depths: float) -> None:
    now = time.time() * 1000
    city.publish(
        *((f"cim/v1/default/{device}/telemetry", {"ts": int(now), "values": {"depth": depth}})
          for device, depth in depths.items())
    )  # fmt: skip


def test_shelf_silence_and_inhibition_hold_from_the_first_push_after_kill_9(cimtwin: Callable[..., Cimtwin]) -> None:
    city = cimtwin()
    city.put_rules(RULES)
    city.put_sensors(SENSORS)
    publish(city, d0=20, d1=20)
    city.publish(("cim/v1/default/d4/telemetry", {"running": 0}))
    shelved = until(lambda: city.get("/alerts", sensor="d0/depth")["items"], "an alert to shelve")[0]
    gone = until(lambda: city.get("/alerts", sensor="d1/depth")["items"], "one to shelve shortly")[0]
    until(lambda: city.get("/alerts", rule="stopped")["items"], "the pump trip")
    assert city.post(f"/alerts/{shelved['id']}/actions", {"action": "shelve", "until": when(600)}).status_code == 200
    silence = {"kind": "silence", "matchers": {"asset": "underpass-2"}, "until": when(600), "by": "li"}
    assert city.post("/holds", silence).status_code == 200
    publish(city, d0=1)
    until(lambda: city.get(f"/alerts/{shelved['id']}")["state"].startswith("cleared"), "the end of the first")
    short = {"action": "shelve", "until": when(1.5), "by": "li"}
    assert city.post(f"/alerts/{gone['id']}/actions", short).status_code == 200
    city.kill()
    until(lambda: when(0) > short["until"], "the short shelf to end while nobody serves")
    city.start()
    assert city.get(f"/alerts/{gone['id']}")["flags"] == []
    assert city.get(f"/alerts/{gone['id']}")["events"][-1]["transition"] == "unshelved"
    watcher = city.watch(alerts={})
    assert watcher.read()["type"] == "snapshot"
    publish(city, d0=50, d2=20, d3=20, d4=20)
    events = [frame["event"] for frame in watcher.events(7)]
    assert flags(events) == {"d0": ["shelved"], "d2": ["suppressed"], "d3": [], "d4": ["suppressed"]}
    assert sorted(e["transition"] for e in events) == ["raised"] * 4 + ["shelved", "suppressed", "suppressed"]
    city.publish(("cim/v1/default/d4/telemetry", {"running": 1}))
    assert [frame["event"]["transition"] for frame in watcher.events(9)[7:]] == ["cleared", "unsuppressed"]
    watcher.close()
