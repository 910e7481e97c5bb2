"""Real floods as files of contract 8: nothing lost, nothing twice, in the units and times of the source."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pytest

import twin.demo.floodnet
import twin.units
from ingest.recorded import Recorded, parse_readings_csv
from twin.demo.floodnet import InvalidSource, convert, floods
from twin.sensors import parse_sensors_csv

KINDS = twin.units.parse_kinds(Path(twin.units.__file__).with_name("kinds.toml").read_text("utf-8"))
PACKAGED = Path(twin.demo.floodnet.__file__).with_name("data")
SOURCE = Path(__file__).parents[3] / "shared" / "data" / "floodnet"
has_source = pytest.mark.skipif(not SOURCE.is_dir(), reason="the whole source is not beside this repository")

EVENTS = b"""sensor_name,sensor_id,flood_start_time,flood_profile_depth_inches,flood_profile_time_secs
A,a-1,2023-12-18T00:00:00.000,"[0.00, 4.50, 4.00, 9.00]","[0, 60, 120, 120]"
B/C,b-1,2023-12-17T23:59:59.000,"[0.00, 5.00]","[0, 61]"
A,a-1,2023-12-18T00:01:00.000,"[7.00, 1.00]","[0, 300]"
"""
METADATA = b"""sensor_name,sensor_id,latitude,longitude
"B/C  St","b-1","40.5","-73.9"
"""


def upward_crossings(recorded: Recorded, limit: float) -> int:
    """How often a sensor's value goes from at most `limit` (or from nothing) to above it."""
    order = np.lexsort((recorded.observed_at, recorded.sensor))
    sensor, above = recorded.sensor[order], recorded.value[order] > limit
    was_above = np.append(False, above[:-1] & (sensor[1:] == sensor[:-1]))
    return int((above & ~was_above).sum())


def test_a_day_is_the_floods_that_start_on_it_and_of_a_repeated_time_the_first_wins() -> None:
    sensors, readings = convert(EVENTS, METADATA, dt.date(2023, 12, 18))
    assert [sensor.id for sensor in parse_sensors_csv(sensors.encode(), KINDS)] == ["a-1/depth"]
    assert readings.splitlines()[1:] == [
        "a-1,depth,2023-12-18T00:00:00Z,0",
        "a-1,depth,2023-12-18T00:01:00Z,4.5",
        "a-1,depth,2023-12-18T00:02:00Z,4",
        "a-1,depth,2023-12-18T00:06:00Z,1",
    ]


def test_sensors_unknown_to_the_metadata_are_listed_without_a_place() -> None:
    sensors = {s.device: s for s in parse_sensors_csv(convert(EVENTS, METADATA, tenant="nyc")[0].encode(), KINDS)}
    assert (sensors["a-1"].lon, sensors["a-1"].asset) == (None, None)
    assert (sensors["b-1"].lon, sensors["b-1"].lat, sensors["b-1"].asset) == (-73.9, 40.5, "B & C St")
    assert {(s.unit, s.kind, s.tenant, s.tags) for s in sensors.values()} == {
        ("in", "drainage.ponding_depth", "nyc", ("floodnet",))
    }


@pytest.mark.parametrize(
    ("events", "text"),
    [
        (EVENTS.replace(b"[0, 60, 120, 120]", b"[0, 60]"), "line 2"),
        (EVENTS.replace(b"[0.00, 5.00]", b"[0.00, x]"), "line 3"),
        (b"a,b\n1,2\n", "flood_start_time"),
        (b"\xff", "flood-events.csv"),
    ],
)
def test_a_source_that_is_not_as_it_should_be_is_refused_with_its_line(events: bytes, text: str) -> None:
    with pytest.raises(InvalidSource, match=text):
        convert(events, METADATA)


def test_the_packaged_day_is_readable_and_has_floods() -> None:
    sensors = parse_sensors_csv((PACKAGED / "floodnet-2023-12-18.sensors.csv").read_bytes(), KINDS)
    recorded = parse_readings_csv((PACKAGED / "floodnet-2023-12-18.readings.csv").read_bytes())
    assert {(s.device, s.property) for s in sensors} == set(recorded.sensors)
    assert len(sensors) > 10
    assert upward_crossings(recorded, 4) > 10
    assert "aq7i-eu5q" in (PACKAGED / "SOURCE.md").read_text("utf-8")


@has_source
def test_the_whole_source_has_its_known_totals() -> None:
    events, metadata = (SOURCE / "flood-events.csv").read_bytes(), (SOURCE / "sensor-metadata.csv").read_bytes()
    sensors, readings = convert(events, metadata)
    recorded = parse_readings_csv(readings.encode())
    assert len(recorded) == 157_884
    assert (
        len({(s, at) for s, at in zip(recorded.sensor.tolist(), recorded.observed_at.tolist(), strict=True)}) == 157_884
    )
    assert upward_crossings(recorded, 4) == 742
    all_floods = floods(events)
    assert len(all_floods) == 1195
    assert sum(any(depth > 4 for _, depth in flood.profile) for flood in all_floods) == 690
    listed = parse_sensors_csv(sensors.encode(), KINDS)
    assert {s.device for s in listed} == {flood.device for flood in all_floods}


@has_source
def test_the_packaged_day_is_what_the_converter_makes_of_the_source() -> None:
    events, metadata = (SOURCE / "flood-events.csv").read_bytes(), (SOURCE / "sensor-metadata.csv").read_bytes()
    sensors, readings = convert(events, metadata, dt.date(2023, 12, 18))
    assert (PACKAGED / "floodnet-2023-12-18.sensors.csv").read_text("utf-8") == sensors
    assert (PACKAGED / "floodnet-2023-12-18.readings.csv").read_text("utf-8") == readings
