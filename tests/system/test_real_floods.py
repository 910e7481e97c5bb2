"""Real street floods through `cimtwin import`, `cimtwin publish`, a real broker and the rules."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import psycopg
import pytest

from tests.conftest import Cimtwin, until
from twin.demo.floodnet import convert
from twin.model import parse_time

pytestmark = pytest.mark.system

SOURCE = Path(__file__).parents[3] / "shared" / "data" / "floodnet"
RULE = """
[[rule]]
id = "four-inches"
title = { zh = "积水四英寸", en = "Four inches" }
kind = "drainage.ponding_depth"
detector = "threshold"
strict = true
levels = { orange = 10.16 }
"""


def files() -> tuple[str, str, int | None]:
    """Sensor list and readings of all recorded floods, and the known number of crossings; without the source's files
    the day that the project carries."""
    if SOURCE.exists():
        sensors, readings = convert(
            (SOURCE / "flood-events.csv").read_bytes(), (SOURCE / "sensor-metadata.csv").read_bytes(), None
        )
        return sensors, readings, 742
    data = resources.files("twin.demo").joinpath("data")
    name = "floodnet-2023-12-18"
    return (
        data.joinpath(f"{name}.sensors.csv").read_text("utf-8"),
        data.joinpath(f"{name}.readings.csv").read_text("utf-8"),
        None,
    )


def crossings(readings: str) -> tuple[dict[tuple[str, int], float], list[tuple[str, str, int]]]:
    """By plain counting: the distinct samples in cm, and (transition, sensor, time) of each crossing of 4 in."""
    samples: dict[tuple[str, int], float] = {}
    for row in csv.DictReader(io.StringIO(readings)):
        samples.setdefault((row["device"], parse_time(row["observed_at"])), float(row["value"]) * 2.54)
    told, above = [], {}
    for (device, at), value in sorted(samples.items(), key=lambda item: item[0][1]):
        is_above = value > 10.16
        if is_above != above.get(device, False):
            told.append(("raised" if is_above else "cleared", f"{device}/depth", at))
        above[device] = is_above
    return samples, sorted(told)


def command(city: Cimtwin, *words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "twin", *words], env={**os.environ, **city.environ}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


def test_every_crossing_of_four_inches_is_one_alert_raised_and_cleared(
    cimtwin: Callable[..., Cimtwin], tmp_path: Path
) -> None:
    sensors, readings, known = files()
    samples, expected = crossings(readings)
    if known is not None:
        assert len(samples) == 157_884
        assert sum(word == "raised" for word, _, _ in expected) == known
    (tmp_path / "测点.csv").write_text(sensors, "utf-8")
    (tmp_path / "读数.csv").write_text(readings, "utf-8")
    (tmp_path / "规则.toml").write_text(RULE, "utf-8")
    city = cimtwin()
    command(city, "import", str(tmp_path / "测点.csv"), str(tmp_path / "规则.toml"))
    until(lambda: "four-inches" in str(city.get("/rules")), "the imported rules in force")
    watcher = city.watch()
    command(city, "publish", "--speed", "0", "--mqtt-url", city.mqtt_url, str(tmp_path / "读数.csv"))
    stats = city.drained(len(samples))
    assert stats["readings_stored"] == len(samples)
    assert stats["readings_duplicate"] == stats["readings_quarantined"] == 0
    events = watcher.events(len(expected))
    seen = sorted(
        (e["event"]["transition"], e["event"]["sensor"], parse_time(e["event"]["observed_at"])) for e in events
    )
    assert seen == expected
    assert [e["seq"] for e in events] == list(range(events[0]["seq"], events[0]["seq"] + len(events)))
    with psycopg.connect(city.environ["CIMTWIN_DATABASE_URL"]) as connection:
        stored = connection.execute(
            "select s.device, (extract(epoch from r.observed_at) * 1e6)::bigint, r.value"
            " from readings r join sensors s on s.id = r.sensor_id"
        ).fetchall()
    assert {(device, at): value for device, at, value in stored} == samples
    # The same again changes nothing.
    command(city, "publish", "--speed", "0", "--mqtt-url", city.mqtt_url, str(tmp_path / "读数.csv"))
    stats = city.drained(2 * len(samples))
    assert (stats["readings_stored"], stats["readings_duplicate"]) == (len(samples), len(samples))
    assert stats["alert_events"] == events[-1]["seq"]
