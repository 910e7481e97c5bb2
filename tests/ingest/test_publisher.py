"""Recorded readings go out as their devices' messages, in time order, paced, and come back as they were."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import twin.units
from ingest.codecs import decode
from ingest.publisher import Progress, device_messages, publish, read_files
from ingest.recorded import Recorded, parse_readings_csv
from twin.catalog import Catalog
from twin.model import SECOND, InvalidReadings, RawMessage, Sensor, parse_time

KINDS = twin.units.parse_kinds(Path(twin.units.__file__).with_name("kinds.toml").read_text("utf-8"))
T = parse_time("2026-07-01T08:00:00Z")


@dataclass
class Wire:
    """An outlet that notes what it is given and when, on a clock that only sleeping moves."""

    now: float = 100.0
    sent: list[tuple[float, str, bytes]] = field(default_factory=list)
    flushed: int = 0

    def publish(self, topic: str, payload: bytes) -> None:
        self.sent.append((self.now, topic, payload))

    def flush(self, timeout_s: float) -> None:
        self.flushed += 1

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def bodies(self) -> list[tuple[str, object]]:
        return [(topic.split("/")[3], json.loads(payload)) for _, topic, payload in self.sent]


def recorded(*lines: str) -> Recorded:
    return parse_readings_csv(("device,property,observed_at,value\n" + "\n".join(lines)).encode())


MS = T // 1000
READINGS = recorded(
    f"b,depth,{MS + 2000},2",
    f"a,depth,{MS},1.5",
    f"a,battery,{MS},",
    f"b,depth,{MS},3",
    f"a,depth,{MS},9",
    "a,depth,2026-07-01T08:00:01.000250Z,4",
)


def test_readings_of_one_device_and_time_share_a_message_and_repeats_follow_in_one_of_their_own() -> None:
    wire = Wire()
    done = publish(READINGS, wire, speed=0, clock=lambda: wire.now, sleep=wire.sleep)
    assert wire.bodies() == [
        ("a", {"ts": MS, "values": {"battery": None, "depth": 1.5}}),
        ("a", {"ts": MS, "values": {"depth": 9}}),
        ("b", {"ts": MS, "values": {"depth": 3}}),
        ("a", {"ts": "2026-07-01T08:00:01.000250Z", "values": {"depth": 4}}),
        ("b", {"ts": MS + 2000, "values": {"depth": 2}}),
    ]
    assert done == Progress(5, 6, 6, T + 2 * SECOND)
    assert wire.flushed == 1
    assert wire.now == 100


def test_the_pace_is_the_recorded_one_times_the_speed() -> None:
    wire = Wire()
    publish(READINGS, wire, speed=4, clock=lambda: wire.now, sleep=wire.sleep)
    assert [at for at, _, _ in wire.sent] == pytest.approx([100, 100, 100, 100.2500625, 100.5])


@pytest.mark.parametrize(("speed", "first", "last"), [(0, -2, 0), (1, 0, 2), (4, -1.5, 0.5), (0.5, 0, 2)])
def test_shifted_to_now_no_reading_is_ahead_of_the_clock_when_sent(speed: float, first: float, last: float) -> None:
    wire = Wire(now=0.0)
    publish(READINGS, wire, speed=speed, now=T * 2, clock=lambda: wire.now, sleep=wire.sleep)
    offsets = []
    for at, _, payload in wire.sent:
        ts = json.loads(payload)["ts"]
        moment = ts * 1000 if isinstance(ts, int) else parse_time(ts)
        offsets.append((moment - T * 2) / SECOND)
        assert offsets[-1] <= at + 1e-6
    assert (offsets[0], offsets[-1]) == pytest.approx((first, last))


def test_tenants_are_named_for_all_or_one_by_one() -> None:
    messages = device_messages(READINGS.in_time_order(), "city", {"b": "drains"})
    assert sorted({message.topic for message in messages}) == ["cim/v1/city/a/telemetry", "cim/v1/drains/b/telemetry"]


def test_progress_is_told_at_most_twice_a_second_and_at_the_end() -> None:
    wire, told = Wire(), []
    publish(READINGS, wire, speed=1, report=told.append, clock=lambda: wire.now, sleep=wire.sleep)
    assert told[-1] == Progress(5, 6, 6, T + 2 * SECOND)
    assert 3 <= len(told) <= 6
    assert [progress.readings for progress in told] == sorted(progress.readings for progress in told)


def test_several_files_go_out_together_or_not_at_all() -> None:
    wire = Wire()
    header = b"device,property,observed_at,value\n"
    files = [
        ("1.csv", header + b"a,p,1782892801000,1\n"),
        ("2.csv", header + b"b,p,1782892800000,2\na,p,1782892802000,3\n"),
    ]
    assert publish(read_files(files), wire, speed=0).readings == 3
    assert [device for device, _ in wire.bodies()] == ["b", "a", "a"]
    with pytest.raises(InvalidReadings) as refused:
        read_files([*files, ("3.csv", header + b"x\n"), ("4.csv", b"")])
    assert [problem.place for problem in refused.value.problems] == ["3.csv, line 2", "4.csv, line 1"]
    assert len(wire.sent) == 3


def test_nothing_recorded_publishes_nothing() -> None:
    wire = Wire()
    assert publish(recorded(), wire, now=T).messages == 0
    assert publish(read_files([]), wire).messages == 0
    with pytest.raises(ValueError, match="speed"):
        publish(READINGS, wire, speed=-1)


def test_what_is_published_decodes_to_what_was_recorded() -> None:
    random = np.random.default_rng(3)
    sensors = [(f"d{n}", p) for n in range(5) for p in ("x", "y")]
    size = 500
    value = np.where(random.random(size) < 0.1, math.nan, random.normal(size=size))
    at = T + random.permutation(size) * 137
    parts = Recorded(sensors, random.integers(0, 10, size).astype(np.int32), at, value, np.arange(size))
    wire = Wire()
    publish(parts, wire, speed=0)
    catalog = Catalog(KINDS)
    catalog.put([(i, Sensor(d, p, "water.ph", "")) for i, (d, p) in enumerate(sensors)])
    found = decode([RawMessage(topic, payload, T + SECOND) for _, topic, payload in wire.sent], catalog)
    assert not found.rejects
    order = np.argsort(at)
    assert found.sensor.tolist() == parts.sensor[order].tolist()
    assert found.observed_at.tolist() == at[order].tolist()
    assert np.array_equal(found.value, value[order], equal_nan=True)
