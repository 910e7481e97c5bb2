"""Which sensors a rule joins: the groups of the detectors that look at several sensors' values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from scipy.spatial import cKDTree

from alerts.parameters import Neighbours, Residual, Spectrum, Together
from alerts.reach import Reach
from alerts.rules import Rule
from twin.catalog import Catalog
from twin.model import Bools, Floats, Indices, Ints, Sensor

MOST: Final = 16  # members of a group, its pivot among them
_METRES: Final = 111_195.0  # of a degree of latitude, on a sphere of 6,371 km


def groups_of(
    rule: Rule, sensors: Indices, catalog: Catalog, nearby: Nearby | None = None, among: Indices | None = None
) -> Indices:
    """The groups of a rule over the sensors that it looks at: catalogue indices [groups, most members], pivots first
    and ascending, -1 where a group has fewer. A sensor without what it is to be held against has none. Neighbours are
    looked for `among` these, ascending (None: the same sensors): other limits do not make a sensor a stranger."""
    match rule.parameters:
        case Residual() as residual:
            found = _beside(sensors, residual.model, catalog)
        case Spectrum() as spectrum:
            found = _with_temperature(sensors, spectrum.temperature, catalog)
        case Neighbours() as neighbours:
            nearby = Nearby(catalog) if nearby is None else nearby
            return nearby.groups(sensors, sensors if among is None else among, neighbours)
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


class Nearby:
    """Who is near whom, in the plane or along the networks. Rules and their variants that ask alike share an answer."""

    def __init__(self, catalog: Catalog, reach: Reach | None = None) -> None:
        self.catalog = catalog
        self.reach = reach
        self._known: dict[tuple[bytes, float, str], Indices] = {}

    def groups(self, sensors: Indices, among: Indices, wanted: Neighbours) -> Indices:
        """Each sensor with the nearest of its kind, `MOST` at most in all, all within the distance. Sensors of one
        place are neighbours too; those without a place have none."""
        found = self._of(among, wanted)[np.searchsorted(among, sensors)] if len(among) else np.empty((0, 1), np.int32)
        found = found[(found[:, 1:] >= 0).sum(axis=1) >= wanted.count]
        last = np.iinfo(np.int32).max
        others = np.sort(np.where(found[:, 1:] >= 0, found[:, 1:], last), axis=1)
        found = np.concatenate((found[:, :1], np.where(others == last, -1, others)), axis=1)
        width = max(int((found >= 0).sum(axis=1).max(initial=1)), 1)
        return np.asarray(found[:, :width], np.int32)

    def nowhere(self, sensors: Indices, among: Indices, wanted: Neighbours) -> Indices:
        """Those of the sensors that have no place from which neighbours could be looked for."""
        is_lost: Bools = self._of(among, wanted)[np.searchsorted(among, sensors), 0] < 0
        lost: Indices = sensors[is_lost]
        return lost

    def _of(self, among: Indices, wanted: Neighbours) -> Indices:
        """Of each of these sensors itself and those near, the nearest first, -1 for none; nothing but -1 for one that
        has no place."""
        key = among.tobytes(), wanted.within, wanted.along
        found = self._known.get(key)
        if found is None:
            found = np.full((len(among), MOST), -1, np.int32)
            by_kind: dict[tuple[str, str | None, str], list[int]] = {}
            for n, index in enumerate(among.tolist()):
                sensor = self.catalog.sensors[index]
                by_kind.setdefault((sensor.kind, sensor.statistic, sensor.tenant), []).append(n)
            for places in by_kind.values():
                if wanted.along:
                    self._along(np.array(places), among, wanted, found)
                else:
                    self._in_plane(np.array(places), among, wanted.within, found)
            self._known[key] = found
        return found

    def _in_plane(self, places: Ints, among: Indices, within: float, found: Indices) -> None:
        """Fill in those at `places`, who are of one kind."""
        lon, lat = self.catalog.lon[among[places]], self.catalog.lat[among[places]]
        is_placed = ~np.isnan(lon) & ~np.isnan(lat)
        places = places[is_placed]
        if not len(places):
            return
        own = among[places]
        plane = _plane(lon[is_placed], lat[is_placed])
        distance, place = cKDTree(plane).query(plane, k=np.arange(1, min(MOST, len(own)) + 1))
        is_other = (distance <= within) & (place != np.arange(len(own))[:, None])
        near = np.where(is_other, own[np.minimum(place, len(own) - 1)], -1)
        near = np.take_along_axis(near, np.argsort(~is_other, axis=1, kind="stable"), axis=1)[:, : MOST - 1]
        found[places, 0] = own
        found[places, 1 : 1 + near.shape[1]] = near

    def _along(self, places: Ints, among: Indices, wanted: Neighbours, found: Indices) -> None:
        """The same along the networks, from the sensors' assets; of equally near assets the one with the first sensor
        comes first."""
        if self.reach is None:
            return
        on: dict[str, list[int]] = {}
        for n in places.tolist():
            sensor = self.catalog.sensors[int(among[n])]
            on.setdefault(sensor.asset or sensor.device, []).append(n)
        members = list(on.values())
        rows = self.reach.nearest(list(on), wanted.along, wanted.within, MOST).tolist()
        for own, row in zip(members, rows, strict=True):
            near = [n for asset in row if asset >= 0 for n in members[asset]][:MOST]
            for n in own if near else ():
                group = [n, *(other for other in near if other != n)][:MOST]
                found[n, : len(group)] = among[group]


def _plane(lon: Floats, lat: Floats) -> Floats:
    """Metres in a plane about the middle; good to a part in a thousand across a city."""
    middle = np.cos(np.radians(lat.mean()))
    return np.stack([(lon - lon.mean()) * _METRES * middle, (lat - lat.mean()) * _METRES], axis=1)


def _sorted_out(sensors: Indices, over: str, catalog: Catalog) -> list[list[int]]:
    """The sensors that lie together, or those of the whole rule, where there are at least two. The one that reports
    most often is the pivot. More than `MOST` are parted, so that none is left out."""
    groups: dict[str, list[int]] = {}
    for index in sensors.tolist():
        name = _part_of(over, index, catalog)
        if name:
            groups.setdefault(name, []).append(index)
    found = []
    for members in groups.values():
        parts = -(-len(members) // MOST)
        split = np.array_split(np.array(members), parts)
        found += [_pivot_first(part.tolist(), catalog) for part in split if len(part) > 1]
    return found


def _part_of(over: str, index: int, catalog: Catalog) -> str | None:
    """What a sensor belongs to; nothing, where nobody says."""
    sensor = catalog.sensors[index]
    match over:
        case "device":
            return sensor.device
        case "asset":
            return sensor.asset
        case "area":
            return catalog.area(index)
        case "rule":
            return "rule"
    prefix = f"{over.removeprefix('tag:')}:"
    return next((tag for tag in sensor.tags if tag.startswith(prefix)), None)


def _pivot_first(members: Iterable[int], catalog: Catalog) -> list[int]:
    interval = catalog.interval_us
    return sorted(members, key=lambda index: (int(interval[index]) or 1 << 62, index))
