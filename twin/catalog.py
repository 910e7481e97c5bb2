"""The sensors of the city in memory, by dense index, with the columns that the hot path needs.

Index `i` of every column here is the sensor whose `sensors.id` in the database is `i`; sensors are never deleted, so
an index never changes its meaning. One thread (the pipeline's) changes a catalogue; others read it, and see a sensor
either wholly or not yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from twin.model import Bytes, Floats, Ints, Micros, NotFound, Quality, Sensor, SensorMode
from twin.units import Kind, conversion

_MODE_BITS: Final = {
    SensorMode.NORMAL: 0,
    SensorMode.TEST: Quality.TEST,
    SensorMode.CALIBRATION: Quality.CALIBRATION,
}


@dataclass(frozen=True, slots=True)
class Replacement:
    """From `since` on (event time), the hardware `hardware` stands in for `device`: its messages are readings of
    `device`'s measuring points, which keep their ids and history."""

    device: str
    hardware: str
    tenant: str
    since: Micros


AREA_TAG: Final = "area:"  # a sensor's own word for its administrative area, before its asset's


@dataclass(frozen=True, slots=True)
class AssetFacts:
    """What the city model says of the asset that sensors sit on: its id, its administrative area as a path
    `district/street/grid` ("" if not said), and those of its numbers that were asked for, by attribute; what it does
    not say itself, the asset says that it is part of."""

    id: str
    area: str
    numbers: Mapping[str, float]


class Catalog:
    """All sensors and what judging needs of each.

    `facts`: by index, of the sensors that sit on an asset; `attributes`: the numbers that were asked for (None: facts
    were not asked for).

    Columns (length `len(catalog)`): `factor`, `offset` (canonical = value * factor + offset), `low`, `high` (believable
    range, canonical unit, NaN = none given), `interval_us` (0 = none given), `jump` (canonical, inf = any),
    `mode_bits` (quality bits of test and calibration), `domain` and `tenant` (index into `domains`,
    `owners`), `lon`, `lat` (NaN = none).
    """

    def __init__(self, kinds: dict[str, Kind]) -> None:
        self.kinds = dict(kinds)
        self.strange: set[str] = set()
        self.domains = sorted({kind.domain for kind in kinds.values()})
        self.owners: list[str] = []
        self.version = 0
        self.changes = 0  # how often `put` or `replace` were called: what was looked up before may differ now
        self.sensors: list[Sensor] = []
        self.devices: dict[str, dict[str, int]] = {}
        self.tenants: dict[str, str] = {}
        self.replacements: dict[str, Replacement] = {}  # by hardware
        self.retired: dict[str, Micros] = {}  # device whose original hardware was replaced, and since when
        self.facts: Mapping[int, AssetFacts] = {}
        self.attributes: frozenset[str] | None = None
        self._columns: dict[str, NDArray[Any]] = {
            "factor": np.ones(0),
            "offset": np.zeros(0),
            "low": np.zeros(0),
            "high": np.zeros(0),
            "interval_us": np.zeros(0, np.int64),
            "jump": np.zeros(0),
            "mode_bits": np.zeros(0, np.uint8),
            "domain": np.zeros(0, np.int64),
            "tenant": np.zeros(0, np.int64),
            "lon": np.zeros(0),
            "lat": np.zeros(0),
        }

    def __len__(self) -> int:
        return len(self.sensors)

    def _column(self, name: str) -> NDArray[Any]:
        return self._columns[name][: len(self.sensors)]

    @property
    def factor(self) -> Floats:
        return self._column("factor")

    @property
    def offset(self) -> Floats:
        return self._column("offset")

    @property
    def low(self) -> Floats:
        return self._column("low")

    @property
    def high(self) -> Floats:
        return self._column("high")

    @property
    def interval_us(self) -> Ints:
        return self._column("interval_us")

    @property
    def jump(self) -> Floats:
        return self._column("jump")

    @property
    def mode_bits(self) -> Bytes:
        return self._column("mode_bits")

    @property
    def domain(self) -> Ints:
        return self._column("domain")

    @property
    def tenant(self) -> Ints:
        return self._column("tenant")

    @property
    def lon(self) -> Floats:
        return self._column("lon")

    @property
    def lat(self) -> Floats:
        return self._column("lat")

    def put(self, rows: Sequence[tuple[int, Sensor]]) -> None:
        """Add or replace sensors at their indices, given in ascending order; new ones follow the last without a gap.

        A sensor of a kind that this catalogue lacks (somebody else's file of kinds) has its place, but takes no
        readings: in which unit they would be stored is not known here.
        """
        if not rows:
            return
        self.changes += 1
        for _, sensor in rows:
            if sensor.kind not in self.kinds:
                self.kinds[sensor.kind] = Kind(sensor.kind, sensor.unit, sensor.kind, sensor.kind)
                self.strange.add(sensor.kind)
                if sensor.kind.partition(".")[0] not in self.domains:
                    self.domains.append(sensor.kind.partition(".")[0])
        expected = len(self.sensors)
        for index, _ in rows:
            if index > expected:
                raise ValueError(f"sensor index {index} leaves a gap after {expected - 1}")
            expected = max(expected, index + 1)
        self._reserve(expected)
        at = np.array([index for index, _ in rows])
        sensors = [sensor for _, sensor in rows]
        kinds = [self.kinds[s.kind] for s in sensors]
        units = {
            (s.unit, kind.unit): conversion(s.unit, kind.unit) or (1.0, 0.0)
            for s, kind in zip(sensors, kinds, strict=True)
        }
        factor, offset = np.array([units[s.unit, k.unit] for s, k in zip(sensors, kinds, strict=True)]).T
        columns = self._columns
        columns["factor"][at] = factor
        columns["offset"][at] = offset
        columns["low"][at] = np.array([_or_nan(s.min) for s in sensors]) * factor + offset
        columns["high"][at] = np.array([_or_nan(s.max) for s in sensors]) * factor + offset
        columns["interval_us"][at] = [round((s.interval_s or 0) * 1e6) for s in sensors]
        columns["jump"][at] = [np.inf if kind.jump is None else kind.jump for kind in kinds]
        columns["mode_bits"][at] = [_MODE_BITS[s.mode] for s in sensors]
        number = {domain: n for n, domain in enumerate(self.domains)}
        columns["domain"][at] = [number[kind.domain] for kind in kinds]
        owner = {tenant: n for n, tenant in enumerate(self.owners)}
        columns["tenant"][at] = [owner.setdefault(s.tenant, len(owner)) for s in sensors]
        self.owners = list(owner)
        columns["lon"][at] = [_or_nan(s.lon) for s in sensors]
        columns["lat"][at] = [_or_nan(s.lat) for s in sensors]
        for index, sensor in rows:
            if index < len(self.sensors):
                self.sensors[index] = sensor
            else:
                self.sensors.append(sensor)
            if sensor.kind not in self.strange:
                self.devices.setdefault(sensor.device, {})[sensor.property] = index
            self.tenants[sensor.device] = sensor.tenant

    def _reserve(self, size: int) -> None:
        capacity = len(self._columns["factor"])
        if size <= capacity:
            return
        for name, old in self._columns.items():
            new = np.zeros(max(size, capacity * 2, 1024), old.dtype)
            new[: len(old)] = old
            self._columns[name] = new

    def replace(self, replacements: Sequence[Replacement]) -> None:
        """Set which hardware stands in for which device, all of it."""
        self.changes += 1
        self.replacements = {r.hardware: r for r in replacements}
        self.retired = {}
        for r in replacements:
            self.retired[r.device] = min(r.since, self.retired.get(r.device, r.since))

    def describe(self, facts: Mapping[int, AssetFacts], attributes: frozenset[str] | None) -> None:
        """Set what the city model says of the sensors' assets, all of it, with these of their numbers."""
        self.facts, self.attributes = facts, attributes

    def area(self, index: int) -> str:
        """The administrative area that a sensor lies in, "" if nobody says."""
        for tag in self.sensors[index].tags:
            if tag.startswith(AREA_TAG):
                return tag.removeprefix(AREA_TAG).strip("/")
        facts = self.facts.get(index)
        return "" if facts is None else facts.area.strip("/")

    def find(self, sensor_id: str) -> int:
        """The index of `device/property`; NotFound if there is no such sensor."""
        device, _, prop = sensor_id.partition("/")
        index = self.devices.get(device, {}).get(prop)
        if index is None:
            raise NotFound(f"no sensor {sensor_id} / 没有测点 {sensor_id}")
        return index

    def kind(self, index: int) -> Kind:
        return self.kinds[self.sensors[index].kind]


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value
