"""The city that the bench loads: its sensors, their ordinary values, and the messages that its devices send.

A reading is number `i` of the whole stream: sensor `i % size`, step `i // size`. Steps are a minute of event time apart
and begin yesterday at midnight UTC, so every sensor's times ascend and all stay within one day.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from bench import mqtt

STEP_MS: Final = 60_000
BEGIN_MS: Final = (int(time.time()) // 86_400 - 1) * 86_400_000
STEPS: Final = 86_400_000 // STEP_MS
PACK: Final = 50
SINGLE_BYTES: Final = 200

# Of 20 sensors 12 are of water and drainage, 4 of gas, 3 in manholes, 1 on a bridge: kind, ordinary value, its swing,
# tag. Where a place has several, every twentieth sensor has the next one. All that the default pack looks at is here.
_PATTERN: Final[tuple[tuple[tuple[str, float, float, str], ...], ...]] = (
    (("water.pressure", 0.30, 0.02, ""), ("water.pressure", 0.35, 0.02, "six-floors")), (("water.flow", 120, 10, ""),),
    (("gas.methane", 0.1, 0.05, ""),), (("drainage.level", 1.2, 0.2, ""),), (("water.turbidity", 0.3, 0.2, ""),),
    (("drainage.ponding_depth", 2, 1, ""), ("drainage.ponding_depth", 2, 1, "underpass")),
    (("manhole.tilt", 3, 1, ""), ("confined.h2s", 2, 1, ""), ("manhole.level", 0.1, 0.1, ""), ("confined.co", 5, 2, ""),
     ("confined.oxygen", 20.7, 0.2, "")),
    (("water.ph", 7.2, 0.2, ""),), (("gas.pressure", 200, 2, ""), ("gas.flow", 500, 20, "")),
    (("water.chlorine", 0.4, 0.05, ""), ("water.chlorine", 0.6, 0.05, "plant")),
    (("drainage.flow", 0.5, 0.05, ""), ("drainage.pump_running", 1, 0, "")), (("manhole.open", 0, 0, ""),),
    (("water.level", 3, 0.1, ""), ("water.noise", 15, 3, "")),
    (("gas.methane", 0.1, 0.05, ""), ("device.battery", 80, 5, "")), (("drainage.rainfall", 0, 0.1, ""),),
    (("manhole.methane", 0.1, 0.05, ""),), (("gas.pressure", 200, 2, ""),), (("water.pressure", 0.30, 0.02, ""),),
    (("drainage.ponding_depth", 2, 1, ""),),
    (("bridge.strain", 100, 20, ""), ("bridge.deflection", 10, 2, ""), ("bridge.crack", 0.1, 0.005, ""),
     ("bridge.tilt", 0.1, 0.02, ""), ("bridge.acceleration", 0.05, 0.02, ""), ("bridge.cable_force", 4000, 50, ""),
     ("bridge.crack", 0.05, 0.005, "prestressed"), ("bridge.temperature", 25, 5, ""),
     ("bridge.vehicle_weight", 20, 10, "")),
)  # fmt: skip
COVER: Final = 11  # the place of the covers in the pattern
_WAVE: Final = 97  # values repeat after so many steps


@dataclass(frozen=True, slots=True)
class Stream:
    """Packets in a file, ready to send."""

    path: Path
    messages: int
    readings: int
    bytes: int


class City:
    """`size` sensors, each a device of its own or, with `points`, so many on one logger; `only`: all of them of this
    place in the pattern."""

    def __init__(self, size: int, points: int = 1, only: int | None = None) -> None:
        if size % points:
            raise ValueError(f"{size} sensors do not fill loggers of {points}")
        self.size = size
        self.points = points
        specs = [_spec(n if only is None else only) for n in range(size)]
        self.kinds = [kind for kind, *_ in specs]
        self.base = np.array([base for _, base, _, _ in specs], np.float64)
        self.swing = np.array([swing for _, _, swing, _ in specs], np.float64)
        self.tags = [tag for *_, tag in specs]
        self.covers = [n for n in range(size) if (n % len(_PATTERN) if only is None else only) == COVER]
        self._opens_at: dict[int, int] = {}
        self._closes_at: dict[int, int] = {}

    def name(self, n: int) -> tuple[str, str]:
        """Device and property of sensor `n`."""
        if self.points == 1:
            return f"dev-{n:06d}", "value"
        return f"log-{n // self.points:05d}", f"p{n % self.points:02d}"

    def csv(self, interval_s: int) -> str:
        """The sensor list as `cimtwin import` takes it."""
        lines = ["device,property,kind,unit,tenant,asset,lon,lat,interval_s,min,max,tags"]
        for n in range(self.size):
            device, prop = self.name(n)
            room = 10 * self.swing[n] + 1
            place = f"{117.2 + n % 1000 / 5000:.4f},{31.8 + n // 1000 % 1000 / 5000:.4f}"
            low, high = self.base[n] - room, self.base[n] + room
            lines.append(f"{device},{prop},{self.kinds[n]},,,,{place},{interval_s},{low:g},{high:g},{self.tags[n]}")
        return "\n".join(lines) + "\n"

    def open_covers(self, when: dict[int, int]) -> None:
        """From the given reading number on these covers are open, which raises an alert each."""
        self._opens_at |= when

    def close_covers(self, when: dict[int, int]) -> None:
        """From the given reading number on these covers are closed again."""
        self._closes_at |= when

    def value(self, i: int) -> float:
        n, step = i % self.size, i // self.size
        if self._opens_at and self._opens_at.get(n, i + 1) <= i < self._closes_at.get(n, i + 1):
            return 1.0
        return round(float(self.base[n] + self.swing[n] * ((n * 31 + step * 17) % _WAVE) / _WAVE), 4)

    def at_ms(self, i: int) -> int:
        """Event time of reading `i`: each sensor has its own milliseconds in the minute."""
        step = i // self.size
        if step >= STEPS:
            raise ValueError("the stream is longer than a day")
        return BEGIN_MS + step * STEP_MS + i % self.size % 50_000

    # Messages

    def singles(self, path: Path, first: int, count: int, root: str = "cim") -> Stream:
        """One reading a message, about 200 B of JSON, on each device's own topic."""

        def make(number: int) -> tuple[str, bytes]:
            i = first + number
            device, prop = self.name(i % self.size)
            body = f'{{"ts":{self.at_ms(i)},"values":{{"{prop}":{self.value(i)}}},"meta":{{"fw":"2.4.1","pad":"'
            body += "0" * max(0, SINGLE_BYTES - len(body) - 3) + '"}}'
            return f"{root}/v1/default/{device}/telemetry", body.encode()

        return write_stream(path, count, count, make)

    def packed(self, path: Path, first: int, count: int, root: str = "cim") -> Stream:
        """Packs of 50 readings in a gateway's packed form."""

        def make(number: int) -> tuple[str, bytes]:
            rows = range(first + number * PACK, first + (number + 1) * PACK)
            names = ",".join('"{}/{}"'.format(*self.name(i % self.size)) for i in rows)
            times = ",".join(str(self.at_ms(i)) for i in rows)
            values = ",".join(str(self.value(i)) for i in rows)
            return f"{root}/v1/default/gateway/telemetry", f'{{"s":[{names}],"t":[{times}],"v":[{values}]}}'.encode()

        return write_stream(path, count, count * PACK, make)

    def senml(self, path: Path, first: int, count: int, root: str = "cim") -> Stream:
        """Packs of 50 readings of one logger in SenML JSON; `points` must be 50."""
        if self.points != PACK:
            raise ValueError("a SenML pack is of one logger")

        def make(number: int) -> tuple[str, bytes]:
            rows = range(first + number * PACK, first + (number + 1) * PACK)
            device = self.name(rows[0] % self.size)[0]
            begin = self.at_ms(rows[0])
            records = ",".join(
                f'{{"n":"{self.name(i % self.size)[1]}","t":{(self.at_ms(i) - begin) / 1000:g},"v":{self.value(i)}}}'
                for i in rows
            )
            base = f'{{"bn":"{device}:","bt":{begin // 1000}.{begin % 1000:03d}}}'
            return f"{root}/v1/default/{device}/senml", f"[{base},{records}]".encode()

        return write_stream(path, count, count * PACK, make)


def _spec(n: int) -> tuple[str, float, float, str]:
    places = _PATTERN[n % len(_PATTERN)]
    return places[n // len(_PATTERN) % len(places)]


def write_stream(path: Path, messages: int, readings: int, make: Callable[[int], tuple[str, bytes]]) -> Stream:
    """Packets of `messages` messages into a file; `make` gives topic and payload of each."""
    packets = []
    for number in range(messages):
        topic, payload = make(number)
        packets.append(mqtt.publish(topic, payload, number % mqtt.LAST_PACKET_ID + 1))
    ends = np.cumsum([len(packet) for packet in packets], dtype=np.int64)
    data = np.frombuffer(b"".join(packets), np.uint8)
    np.savez(path, packets=data, ends=ends)
    return Stream(path, messages, readings, len(data))
