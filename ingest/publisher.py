"""Publishes recorded readings as their devices would have, at the pace they were recorded or another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec
import numpy as np

from ingest.recorded import Recorded, read_recorded
from twin.model import SECOND, Ints, InvalidReadings, Micros, Problem, iso

REPORT_EVERY_S: Final = 0.5
_NO_TENANTS: Final[Mapping[str, str]] = {}


class Outlet(Protocol):
    """Where messages go; `publish` waits while too many are unacknowledged, `flush` until none is."""

    def publish(self, topic: str, payload: bytes) -> None: ...

    def flush(self, timeout_s: float) -> None: ...


@dataclass(frozen=True, slots=True)
class DeviceMessage:
    """One telemetry message: the readings of one device at one time (µs)."""

    observed_at: Micros
    topic: str
    payload: bytes
    readings: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a publication has come; `observed_at` is the recorded time of its newest message."""

    messages: int
    readings: int
    total: int
    observed_at: Micros


def read_files(files: Sequence[tuple[str, bytes]]) -> Recorded:
    """The readings of files (name, content), one after the other; `InvalidReadings` with the mistakes of every file."""
    parts: list[Recorded] = []
    problems: list[Problem] = []
    for name, data in files:
        try:
            parts.append(read_recorded(data, name))
        except InvalidReadings as refused:
            problems += refused.problems
    if problems:
        raise InvalidReadings(problems, ", ".join(name for name, _ in files))
    return Recorded.join(parts)


def publish(
    recorded: Recorded,
    outlet: Outlet,
    *,
    tenant: str = "default",
    tenants: Mapping[str, str] = _NO_TENANTS,
    speed: float = 1.0,
    now: Micros | None = None,
    report: Callable[[Progress], None] | None = None,
    flush_timeout_s: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Progress:
    """Publish readings in time order, `speed` times faster than recorded (0 = as fast as acknowledged), and wait for
    the last acknowledgement.

    `tenants` names the tenant of a device, `tenant` that of the others. With `now` the times are shifted so that no
    reading is ahead of the clock when it is sent, and the last (below speed 1 the first) is just at it. `report` is
    called twice a second at most, and at the end.
    """
    if not 0 <= speed < float("inf"):
        raise ValueError("speed must be 0 or more")
    order = recorded.in_time_order()
    shift = 0 if now is None or not len(order) else _shift(order.observed_at, speed, now)
    first_at = int(order.observed_at[0]) + shift if len(order) else 0
    done = Progress(0, 0, len(order), first_at)
    started = reported = clock()
    for message in device_messages(order, tenant, tenants, shift):
        if speed > 0:
            due = started + (message.observed_at - first_at) / SECOND / speed
            while (wait := due - clock()) > 0:
                sleep(min(wait, REPORT_EVERY_S))
                if report is not None and clock() - reported >= REPORT_EVERY_S:
                    reported = clock()
                    report(done)
        outlet.publish(message.topic, message.payload)
        done = Progress(done.messages + 1, done.readings + message.readings, done.total, message.observed_at - shift)
        if report is not None and clock() - reported >= REPORT_EVERY_S:
            reported = clock()
            report(done)
    outlet.flush(flush_timeout_s)
    if report is not None:
        report(done)
    return done


def _shift(observed_at: Ints, speed: float, now: Micros) -> Micros:
    """What to add to recorded times, in time order. Faster than recorded, the recorded time overtakes the clock: so
    the last reading is the one to meet it."""
    first, last = int(observed_at[0]), int(observed_at[-1])
    if 0 < speed < 1:
        return now - first
    lasts_for = round((last - first) / speed) if speed > 0 else 0
    return now + lasts_for - last


def device_messages(
    order: Recorded, tenant: str = "default", tenants: Mapping[str, str] = _NO_TENANTS, shift: Micros = 0
) -> Iterator[DeviceMessage]:
    """`{"ts": …, "values": {…}}` for each device and time of readings in time order.

    A sensor's second reading at one time goes into a message of its own, after the first. Whole milliseconds are sent
    as a number, finer times as RFC 3339.
    """
    if not len(order):
        return
    names = [device for device, _ in order.sensors]
    codes = {name: code for code, name in enumerate(sorted(set(names)))}
    device = np.array([codes[name] for name in names], np.int64)[order.sensor]
    at, sensor = order.observed_at, order.sensor
    is_first = np.append(True, (at[1:] != at[:-1]) | (sensor[1:] != sensor[:-1]))
    row = np.arange(len(order))
    repeats = row - np.maximum.accumulate(np.where(is_first, row, 0))
    rows = np.lexsort((row, repeats, device, at))
    key = np.stack([at[rows], device[rows], repeats[rows]])
    starts = np.flatnonzero(np.append(True, (key[:, 1:] != key[:, :-1]).any(axis=0)))
    ends = np.append(starts[1:], len(rows))
    properties = [prop for _, prop in order.sensors]
    topics = [f"cim/v1/{tenants.get(name, tenant)}/{name}/telemetry" for name in names]
    sensors, values, times = sensor[rows].tolist(), order.value[rows].tolist(), (at[rows] + shift).tolist()
    encode = msgspec.json.Encoder().encode  # NaN becomes null
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        moment = times[start]
        body = {
            "ts": iso(moment) if moment % 1000 else moment // 1000,
            "values": {properties[sensors[place]]: values[place] for place in range(start, end)},
        }
        yield DeviceMessage(moment, topics[sensors[start]], encode(body), end - start)
