"""Coordinate reference systems: what a model's coordinates mean, and where they lie on the map.

Models keep their own coordinates; what is placed on the map is their longitude and latitude (WGS 84, which this project
takes as equal to CGCS2000: they differ by centimetres). Transformations come from PROJ, with its built-in data only: no
grid is fetched. Local grids come as WKT with their parameters, which we never ship.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import pyproj.network
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError, ProjError

from twin.model import Floats

MAP: Final = "EPSG:4326"


class UnknownCrs(Exception):  # noqa: N818 - an outcome
    """A text that names no coordinate reference system that PROJ knows."""


@dataclass(frozen=True, slots=True)
class Crs:
    """A coordinate reference system. `unit_m`: metres in a unit of its horizontal axes (NaN if they are degrees);
    `height`: the name of its vertical part, "" if it has none."""

    text: str
    name: str
    is_geographic: bool
    unit_m: float
    height: str

    def to_map(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Longitude and latitude of points; NaN where they cannot be placed."""
        return _convert(self.text, MAP, x, y)


@lru_cache(maxsize=64)
def parse(text: str) -> Crs:
    """The system that `EPSG:4547`, a bare EPSG number, an OGC URN or URL, or a WKT names. Raises `UnknownCrs`."""
    pyproj.network.set_network_enabled(False)  # type: ignore[attr-defined]
    try:
        crs = CRS.from_user_input(int(text) if text.strip().isdigit() else text.strip())
    except (CRSError, ValueError) as error:
        raise UnknownCrs(f"{text[:80]!r} names no coordinate reference system") from error
    parts = crs.sub_crs_list or [crs]
    flat = parts[0]
    vertical = next((part.name for part in parts if part.is_vertical), "")
    if not vertical and len(flat.axis_info) > 2:
        vertical = "ellipsoidal height"
    if not (flat.is_projected or flat.is_geographic):
        raise UnknownCrs(f"{text[:80]!r} is neither projected nor geographic")
    epsg = crs.to_epsg()
    spelled = f"EPSG:{epsg}" if epsg else text.strip()
    unit_m = math.nan if flat.is_geographic else float(flat.axis_info[0].unit_conversion_factor)
    return Crs(spelled, crs.name, flat.is_geographic, unit_m, vertical)


def agree(one: str, other: str) -> bool:
    """Whether two texts name the same plane or the same degrees, whatever they say of heights."""
    return parse(one).text == parse(other).text or _flat(one).equals(_flat(other), ignore_axis_order=True)


@lru_cache(maxsize=64)
def _transformer(source: str, target: str) -> Transformer:
    return Transformer.from_crs(_flat(source), _flat(target), always_xy=True, only_best=False)


def _flat(text: str) -> CRS:
    crs = CRS.from_user_input(text)
    return (crs.sub_crs_list or [crs])[0].to_2d()


def _convert(source: str, target: str, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    try:
        a, b = _transformer(source, target).transform(x, y, errcheck=False)
    except ProjError:
        return np.full(np.shape(x), np.nan), np.full(np.shape(x), np.nan)
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    bad = ~(np.isfinite(a) & np.isfinite(b))
    return np.where(bad, np.nan, a), np.where(bad, np.nan, b)


# GCJ-02, the obfuscated datum of public base maps in China: for display only, never stored. The published formula
# (its constants are everywhere the same), good to about a metre against the maps.
_A, _EE = 6378245.0, 0.00669342162296594323


def to_gcj02(lon: Floats, lat: Floats) -> tuple[Floats, Floats]:
    """Where points lie on a GCJ-02 base map; unchanged outside of the box 72.004-137.8347° E, 0.8293-55.8271° N."""
    x, y = np.asarray(lon, np.float64) - 105.0, np.asarray(lat, np.float64) - 35.0
    root = np.sqrt(np.abs(x))
    waves = (20 * np.sin(6 * x * np.pi) + 20 * np.sin(2 * x * np.pi)) * 2 / 3
    dlat = -100 + 2 * x + 3 * y + 0.2 * y * y + 0.1 * x * y + 0.2 * root + waves
    dlat += (20 * np.sin(y * np.pi) + 40 * np.sin(y / 3 * np.pi)) * 2 / 3
    dlat += (160 * np.sin(y / 12 * np.pi) + 320 * np.sin(y * np.pi / 30)) * 2 / 3
    dlon = 300 + x + 2 * y + 0.1 * x * x + 0.1 * x * y + 0.1 * root + waves
    dlon += (20 * np.sin(x * np.pi) + 40 * np.sin(x / 3 * np.pi)) * 2 / 3
    dlon += (150 * np.sin(x / 12 * np.pi) + 300 * np.sin(x / 30 * np.pi)) * 2 / 3
    angle = np.radians(lat)
    magic = 1 - _EE * np.sin(angle) ** 2
    dlat = dlat * 180 / (_A * (1 - _EE) / (magic * np.sqrt(magic)) * np.pi)
    dlon = dlon * 180 / (_A / np.sqrt(magic) * np.cos(angle) * np.pi)
    inside = (x + 105 > 72.004) & (x + 105 < 137.8347) & (y + 35 > 0.8293) & (y + 35 < 55.8271)
    return np.where(inside, lon + dlon, lon), np.where(inside, lat + dlat, lat)
