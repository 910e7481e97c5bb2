"""The simulated district: the same messages however time is cut, all of them usable, and every event shows in time."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

import twin.units
from ingest.codecs import Decoded, decode
from ingest.codecs.waveform import STATISTICS, summarise_all
from ingest.quality import judge
from twin.catalog import Catalog
from twin.demo import city
from twin.demo.city import District, city_sensors
from twin.model import HOUR, MINUTE, SECOND, Bools, RawMessage, parse_time
from twin.sensors import sensor_to_json, sensors_from_json
from twin.state import SensorState

KINDS = twin.units.parse_kinds(Path(twin.units.__file__).with_name("kinds.toml").read_text("utf-8"))
START = parse_time("2026-07-01T08:00:00Z")
CATALOG = Catalog(KINDS)
CATALOG.put(list(enumerate(city_sensors())))


def decoded(from_at: int, to_at: int, seed: int = 1) -> Decoded:
    messages = District(START, seed).messages(from_at, to_at)
    return decode([RawMessage(topic, payload, at) for at, topic, payload in messages], CATALOG)


@pytest.fixture(scope="module")
def first_hour() -> Decoded:
    return decoded(START, START + HOUR)


def series(readings: Decoded, sensor: str) -> tuple[list[float], list[float]]:
    """Seconds after the start, and values."""
    rows = readings.sensor == CATALOG.find(sensor)
    return ((readings.observed_at[rows] - START) / SECOND).tolist(), readings.value[rows].tolist()


def holds_from(readings: Decoded, sensor: str, limit: float, hold_s: float, side: str = "above") -> float:
    """When a threshold rule would raise: first reading at least `hold_s` into an unbroken run; infinity for never."""
    begin = None
    for at, value in zip(*series(readings, sensor), strict=True):
        is_over = value >= limit if side == "above" else value < limit
        begin = (at if begin is None else begin) if is_over else None
        if begin is not None and at - begin >= hold_s:
            return at
    return math.inf


def test_there_are_about_150_sensors_and_they_pass_the_checks_of_a_sensor_list() -> None:
    sensors = city_sensors()
    assert 140 <= len(sensors) <= 170
    assert sensors_from_json([sensor_to_json(sensor) for sensor in sensors], KINDS) == sensors
    assert {CATALOG.kind(i).domain for i in range(len(CATALOG))} >= {"water", "gas", "drainage", "manhole", "bridge"}


def test_every_message_is_usable_and_every_sensor_reports_at_its_interval(first_hour: Decoded) -> None:
    assert not first_hour.rejects
    assert len(first_hour) + len(first_hour.waveforms) == first_hour.received
    blocks = {block.sensor for block in first_hour.waveforms}
    for index, sensor in enumerate(CATALOG.sensors):
        if index in blocks:
            continue
        at, _ = series(first_hour, sensor.id)
        assert at, sensor.id
        if sensor.interval_s:
            gaps = [b - a for a, b in itertools.pairwise(at)]
            assert max(gaps) == min(gaps) == sensor.interval_s, sensor.id


def test_all_readings_are_good(first_hour: Decoded) -> None:
    c = first_hour
    bits = judge(c.sensor, c.observed_at, c.received_at, c.value, CATALOG, SensorState.of(len(CATALOG)))
    assert not bits.any()


def test_time_may_be_cut_anywhere_and_the_seed_decides() -> None:
    district = District(START)
    whole = district.messages(START, START + 5 * MINUTE)
    edges = [START, START + 1, START + 7_123_456, START + 60 * SECOND, START + 61 * SECOND, START + 200 * SECOND]
    edges.append(START + 5 * MINUTE)
    assert [message for a, b in itertools.pairwise(edges) for message in district.messages(a, b)] == whole
    assert [at for at, _, _ in whole] == sorted(at for at, _, _ in whole)
    assert District(START).messages(START, START + 5 * MINUTE) == whole
    assert District(START, seed=2).messages(START, START + 5 * MINUTE) != whole
    assert district.messages(START - HOUR, START) == []


def test_the_burst_main_shows_within_a_quarter_of_an_hour_and_clears_after_the_repair(first_hour: Decoded) -> None:
    assert city.MAIN_BURSTS + 600 <= holds_from(first_hour, "wp-09/pressure", 0.10, 600, "below") <= 900
    assert holds_from(first_hour, "wp-01/pressure", 0.28, 0, "below") == math.inf
    flow_at, flow = series(first_hour, "wf-02/flow")
    before = np.mean([v for at, v in zip(flow_at, flow, strict=True) if at < 90])
    assert np.mean([v for at, v in zip(flow_at, flow, strict=True) if at > 600]) > 1.2 * before
    late = decoded(START + 7200 * SECOND, START + 7800 * SECOND)
    assert min(series(late, "wp-09/pressure")[1]) > 0.28


def test_the_gas_leak_reaches_yellow_and_orange_within_a_quarter_of_an_hour(first_hour: Decoded) -> None:
    assert holds_from(first_hour, "gm-05/methane", 1.0, 60) <= 420
    assert holds_from(first_hour, "gm-05/methane", 2.5, 0) <= 600
    assert holds_from(first_hour, "gm-06/methane", 1.0, 60) <= 600
    assert holds_from(first_hour, "gm-01/methane", 0.5, 0) == math.inf
    late = decoded(START + 4600 * SECOND, START + 5200 * SECOND)
    assert max(series(late, "gm-05/methane")[1]) == 0


def test_the_opened_cover_shows_at_once_and_is_closed_again(first_hour: Decoded) -> None:
    assert holds_from(first_hour, "mc-07/open", 1, 0) <= city.COVER_OPENS + 60
    assert holds_from(first_hour, "mc-07/tilt", 60, 0) <= city.COVER_OPENS + 60
    assert series(first_hour, "mc-07/open")[1][-1] == 0
    assert holds_from(first_hour, "mc-08/open", 1, 0) == math.inf


def test_the_overloaded_bridge_shows_in_weight_strain_and_vibration(first_hour: Decoded) -> None:
    assert holds_from(first_hour, "br-1/vehicle_weight", 63.7, 0) == city.TRUCK_CROSSES + 1
    assert holds_from(first_hour, "br-2/vehicle_weight", 49, 0) == math.inf
    assert max(series(first_hour, "br-1/strain_1")[1]) > 200
    rms, frequency = summarise_all(first_hour.waveforms)[:, [STATISTICS.index("rms"), STATISTICS.index("frequency")]].T
    begun = [(block.started_at - START) // SECOND for block in first_hour.waveforms]
    devices = [CATALOG.sensors[block.sensor].device for block in first_hour.waveforms]
    strong = {(devices[n], begun[n]) for n in np.flatnonzero(rms >= 0.315)}
    assert strong == {("br-1", 240), ("br-1", 660)}
    calm = frequency[np.array(begun) < 240]
    assert ((calm > 2.4) & (calm < 3.2)).all()


def test_the_dying_battery_falls_below_20_and_the_device_goes_silent(first_hour: Decoded) -> None:
    at, battery = series(first_hour, "mc-03/battery")
    assert holds_from(first_hour, "mc-03/battery", 20, 1, "below") <= 120
    assert at[-1] < city.BATTERY_DIES
    assert min(battery) > 0
    assert series(first_hour, "mc-03/tilt")[0][-1] == at[-1]
    others = [sensor.id for sensor in CATALOG.sensors if sensor.property == "battery" and sensor.device != "mc-03"]
    assert all(min(series(first_hour, name)[1]) > 50 for name in others)


def test_the_stuck_point_never_moves_and_its_neighbours_do(first_hour: Decoded) -> None:
    assert len(set(series(first_hour, "wp-14/pressure")[1])) == 1
    assert len(set(series(first_hour, "wp-15/pressure")[1])) > 10


def test_nothing_else_crosses_a_default_limit(first_hour: Decoded) -> None:
    def over(kind: str, limit: float, is_above: bool = True) -> set[str]:
        of_kind: Bools = np.array([sensor.kind == kind for sensor in CATALOG.sensors])[first_hour.sensor]
        crossed = first_hour.value >= limit if is_above else first_hour.value < limit
        return {CATALOG.sensors[i].id for i in first_hour.sensor[of_kind & crossed].tolist()}

    assert over("water.pressure", 0.14, is_above=False) == {"wp-09/pressure"}
    assert over("water.turbidity", 1) == {"wq-03/turbidity"}
    assert over("water.chlorine", 0.3, is_above=False) == set()
    assert over("water.ph", 8.5) == over("water.ph", 6.5, is_above=False) == set()
    assert over("gas.methane", 0.5) == {"gm-04/methane", "gm-05/methane", "gm-06/methane"}
    assert over("manhole.tilt", 15) == {"mc-07/tilt"}
    assert over("confined.h2s", 10) == set()
    assert over("drainage.ponding_depth", 5) == set()
    assert over("device.battery", 20, is_above=False) == {"mc-03/battery"}
