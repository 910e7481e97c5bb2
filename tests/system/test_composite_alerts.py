"""Composite rules in a real service: told of an asset, through a crash, taken back by late data, replayed alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Cimtwin, until

pytestmark = pytest.mark.system

T0 = 1_790_000_000_000  # ms
MINUTE = 60_000
SENSORS = """device,property,kind,asset,lon,lat
sump,level,drainage.level,station-7,114.05,22.54
pump,run,drainage.pump_running,station-7,114.05,22.54
"""
RULES = """
[[rule]]
id = "sump-high"
title = { zh = "液位高", en = "Sump high" }
kind = "drainage.level"
role = "condition"
detector = "threshold"
levels = { yellow = 2.4 }

[[rule]]
id = "pump-runs"
title = { zh = "水泵运行", en = "Pump runs" }
kind = "drainage.pump_running"
role = "condition"
detector = "threshold"
levels = { blue = 1 }

[[rule]]
id = "no-pump-runs"
title = { zh = "应启泵而未启泵", en = "No pump runs" }
detector = "composite"
all = ["sump-high"]
not = ["pump-runs"]
hold = "5min"
level = "orange"
"""


def say(city: Cimtwin, minute: int, **values: float) -> None:
    for device, (prop, value) in {"sump": ("level", values.get("sump")), "pump": ("run", values.get("pump"))}.items():
        if value is not None:
            city.publish((f"cim/v1/default/{device}/telemetry", {"ts": T0 + minute * MINUTE, "values": {prop: value}}))


def history(city: Cimtwin) -> list[tuple[str, str]]:
    """Of all alerts: what was told, and for when."""
    alerts = city.get("/alerts", limit=1000)["items"]
    assert {(a["sensor"], a["asset"]) for a in alerts} <= {(None, "station-7")}
    told = [event for alert in alerts for event in city.get(f"/alerts/{alert['id']}")["events"]]
    return sorted((event["transition"], event["observed_at"][11:16]) for event in told)


def test_a_composite_is_told_of_its_asset_and_outlives_a_crash_and_late_data(
    cimtwin: Callable[..., Cimtwin],
) -> None:
    city = cimtwin()
    city.put_rules(RULES)
    city.put_sensors(SENSORS)
    say(city, 0, sump=3.0, pump=0)
    say(city, 20, sump=3.0, pump=0)
    until(lambda: len(history(city)) == 1, "the alert that no reading marks")
    (alert,) = city.get("/alerts", asset="station-7")["items"]
    assert (alert["rule"], alert["level"], alert["state"]) == ("no-pump-runs", "orange", "active_unacknowledged")
    assert (alert["since"], alert["raised_at"]) == ("2026-09-21T14:13:20Z", "2026-09-21T14:18:20Z")
    assert alert["place"] == {"lon": 114.05, "lat": 22.54, "name": "station-7"}
    assert "Sump high (sump/level, since 2026-09-21T14:13:20Z); no 'Pump runs'" in alert["message"]["en"]
    city.kill()
    city.start()
    say(city, 3, pump=1)  # late: it ran from 3 to 20
    until(lambda: len(history(city)) >= 2, "what was told to be taken back")
    assert history(city) == [("raised", "14:18"), ("withdrawn", "14:18")]
    city.kill()
    city.start()
    say(city, 30, sump=3.0, pump=0)
    until(lambda: len(history(city)) >= 3, "the alert, five minutes after the pump stopped")
    say(city, 31, sump=1.0)
    until(lambda: len(history(city)) == 4, "the alert to clear")
    assert history(city) == [
        ("cleared", "14:44"), ("raised", "14:18"), ("raised", "14:38"), ("withdrawn", "14:18"),
    ]  # fmt: skip
    told: list[dict[str, Any]] = city.get("/alerts", limit=1000)["items"]
    assert sorted((a["raised_at"][11:16], a["state"]) for a in told) == [
        ("14:18", "cleared"), ("14:38", "cleared_unacknowledged"),
    ]  # fmt: skip
