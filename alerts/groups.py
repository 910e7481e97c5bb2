"""Which sensors a rule joins: the groups of the detectors that look at several sensors' values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from scipy.spatial import cKDTree

from alerts.parameters import Neighbours, Residual, Spectrum, Together
from alerts.rules import Rule
from twin.catalog import Catalog
from twin.model import Floats, Indices, Sensor

MOST: Final = 16  # members of a group, its pivot among them
_METRES: Final = 111_195.0  # of a degree of latitude, on a sphere of 6,371 km


def groups_of(rule: Rule, sensors: Indices, catalog: Catalog, among: Indices | None = None) -> Indices:
    """The groups of a rule over the sensors that it looks at: catalogue indices [groups, most members], pivots first
    and ascending, -1 where a group has fewer. A sensor without what it is to be held against has none. Neighbours are
    looked for `among` these, ascending (None: the same sensors): other limits do not make a sensor a stranger."""
    match rule.parameters:
        case Residual() as residual:
            found = _beside(sensors, residual.model, catalog)
        case Spectrum() as spectrum:
            found = _with_temperature(sensors, spectrum.temperature, catalog)
        case Neighbours() as neighbours:
            found = _near(sensors, sensors if among is None else among, neighbours, catalog)
        case Together() as together:
            found = _sorted_out(sensors, together.over, catalog)
        case _:
            raise TypeError(f"detector {rule.detector} joins nothing")
    found.sort()
    width = max((len(group) for group in found), default=1)
    return np.array([group + [-1] * (width - len(group)) for group in found], np.int32).reshape(len(found), width)


def concerned(rule: Rule, group: Sequence[int]) -> Sequence[int]:
    """Of a group's members, those that an alert of the rule is about."""
    return group if isinstance(rule.parameters, Together) else group[:1]


def _beside(sensors: Indices, pattern: str, catalog: Catalog) -> list[list[int]]:
    """Each sensor with the one that the pattern names for it."""
    found = []
    for index in sensors.tolist():
        other = _named(pattern, catalog.sensors[index], catalog)
        if other is not None and other != index:
            found.append([index, other])
    return found


def _named(pattern: str, sensor: Sensor, catalog: Catalog) -> int | None:
    """The sensor `device/property` or, without a device, the property on the sensor's own device."""
    name = pattern.format(device=sensor.device, property=sensor.property, asset=sensor.asset or "")
    device, slash, prop = name.rpartition("/")
    return catalog.devices.get(device if slash else sensor.device, {}).get(prop)


def _with_temperature(sensors: Indices, pattern: str, catalog: Catalog) -> list[list[int]]:
    """Each sensor with the temperature that the pattern names or, without one, the first of its asset; alone where
    there is none."""
    by_asset: dict[str, int] = {}
    if not pattern:
        warm = {name for name, kind in catalog.kinds.items() if kind.unit == "°C"}
        for index, sensor in enumerate(catalog.sensors):
            if sensor.asset and sensor.kind in warm and not sensor.statistic:
                by_asset.setdefault(sensor.asset, index)
    found = []
    for index in sensors.tolist():
        sensor = catalog.sensors[index]
        other = _named(pattern, sensor, catalog) if pattern else by_asset.get(sensor.asset or "")
        found.append([index] if other is None or other == index else [index, other])
    return found


def _near(sensors: Indices, among: Indices, wanted: Neighbours, catalog: Catalog) -> list[list[int]]:
    """Each sensor with the nearest of its kind, `MOST` at most in all, all within the distance. Sensors of one place
    are neighbours too; those without a place have none."""
    by_kind: dict[tuple[str, str | None, str], list[int]] = {}
    for index in among.tolist():
        sensor = catalog.sensors[index]
        if sensor.lon is not None and sensor.lat is not None:
            by_kind.setdefault((sensor.kind, sensor.statistic, sensor.tenant), []).append(index)
    found = []
    pivots = set(sensors.tolist())
    for members in by_kind.values():
        own = np.array(members)
        plane = _plane(catalog.lon[own], catalog.lat[own])
        most = min(MOST, len(own))
        distance, place = cKDTree(plane).query(plane, k=np.arange(1, most + 1))
        for n, index in enumerate(members):
            if index not in pivots:
                continue
            beside = [members[p] for d, p in zip(distance[n], place[n], strict=True) if d <= wanted.within and p != n]
            if len(beside) >= wanted.count:
                found.append([index, *sorted(beside[: MOST - 1])])
    return found


def _plane(lon: Floats, lat: Floats) -> Floats:
    """Metres in a plane about the middle; good to a part in a thousand across a city."""
    middle = np.cos(np.radians(lat.mean()))
    return np.stack([(lon - lon.mean()) * _METRES * middle, (lat - lat.mean()) * _METRES], axis=1)


def _sorted_out(sensors: Indices, over: str, catalog: Catalog) -> list[list[int]]:
    """The sensors of a device, of an asset or of the whole rule together, where there are at least two. The one that
    reports most often is the pivot. More than `MOST` are parted, so that none is left out."""
    groups: dict[str, list[int]] = {}
    for index in sensors.tolist():
        sensor = catalog.sensors[index]
        name = {"device": sensor.device, "asset": sensor.asset, "rule": "rule"}[over]
        if name:
            groups.setdefault(name, []).append(index)
    found = []
    for members in groups.values():
        parts = -(-len(members) // MOST)
        split = np.array_split(np.array(members), parts)
        found += [_pivot_first(part.tolist(), catalog) for part in split if len(part) > 1]
    return found


def _pivot_first(members: Iterable[int], catalog: Catalog) -> list[int]:
    interval = catalog.interval_us
    return sorted(members, key=lambda index: (int(interval[index]) or 1 << 62, index))
