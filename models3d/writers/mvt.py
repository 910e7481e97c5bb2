"""Mapbox Vector Tiles 2.1: what lies in a square of the web map, in the square's own whole-number coordinates."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import shapely

from twin.model import Floats

EXTENT: Final = 4096
BUFFER: Final = 64  # how far beyond its edges a tile tells, so that lines' ends do not show
MAX_ZOOM: Final = 24
_LIMIT: Final = 85.0511287798066  # the web map's end, degrees of latitude

Value = str | int | float | bool


def bounds(z: int, x: int, y: int) -> tuple[float, float, float, float]:
    """`(minlon, minlat, maxlon, maxlat)` of a tile, its buffer included."""
    margin = BUFFER / EXTENT
    west, east = _lon(x - margin, z), _lon(x + 1 + margin, z)
    north, south = _lat(y - margin, z), _lat(y + 1 + margin, z)
    return max(west, -180.0), south, min(east, 180.0), north


def _lon(x: float, z: int) -> float:
    return x / (1 << z) * 360 - 180


def _lat(y: float, z: int) -> float:
    return math.degrees(math.atan(math.sinh(math.pi * (1 - 2 * y / (1 << z)))))


def write(z: int, x: int, y: int, layers: Mapping[str, tuple[Sequence[Any], Sequence[Mapping[str, Any]]]]) -> bytes:
    """A tile of `layers`: by name, geometries (shapely, longitude and latitude) and the properties of each, None left
    out. What does not reach into the tile, or shrinks to nothing in it, is left out, and so is a layer without
    features; an empty tile is no bytes at all."""
    found = []
    for name, (geometries, properties) in layers.items():
        layer = _layer(z, x, y, name, np.asarray(geometries, object), properties)
        if layer:
            found.append(_field(3, layer))
    return b"".join(found)


def _layer(
    z: int, x: int, y: int, name: str, geometries: Any, properties: Sequence[Mapping[str, Value | None]]
) -> bytes:
    if not len(geometries):
        return b""

    def to_tile(points: Floats) -> Floats:
        lat = np.radians(np.clip(points[:, 1], -_LIMIT, _LIMIT))
        across = (points[:, 0] / 360 + 0.5) * 2**z - x
        down = (0.5 - np.arcsinh(np.tan(lat)) / (2 * math.pi)) * 2**z - y
        return np.column_stack([across, down]) * EXTENT

    flat = shapely.transform(shapely.force_2d(geometries), to_tile)
    flat = shapely.simplify(flat, 0.5, preserve_topology=False)
    flat = shapely.clip_by_rect(flat, -BUFFER, -BUFFER, EXTENT + BUFFER, EXTENT + BUFFER)
    keys: dict[str, int] = {}
    values: dict[tuple[type, Value], int] = {}
    features = []
    for place in np.flatnonzero(~shapely.is_empty(flat)).tolist():
        for kind, commands in _drawn(flat[place]):
            tags: list[int] = []
            for key, value in properties[place].items():
                if value is not None:
                    tags.append(keys.setdefault(key, len(keys)))
                    tags.append(values.setdefault((type(value), value), len(values)))
            features.append(
                _field(2, b"".join([_field(2, _varints(tags)), _number(3, kind), _field(4, _varints(commands))]))
            )
    if not features:
        return b""
    return b"".join(
        [
            _number(15, 2),
            _field(1, name.encode()),
            *features,
            *(_field(3, key.encode()) for key in keys),
            *(_field(4, _value(value)) for _, value in values),
            _number(5, EXTENT),
        ]
    )


POINT, LINE, POLYGON = 1, 2, 3


def _drawn(shape: Any) -> Iterable[tuple[int, list[int]]]:
    """`(type, commands)` of a clipped geometry; a mixed collection gives one of each type."""
    parts = shapely.get_parts(shape).tolist() if shape.geom_type == "GeometryCollection" else [shape]
    points: list[list[tuple[int, int]]] = []
    lines: list[list[tuple[int, int]]] = []
    rings: list[list[tuple[int, int]]] = []
    for part in parts:
        for single in shapely.get_parts(part).tolist():
            if single.geom_type == "Point":
                points.append(_whole(single))
            elif single.geom_type in ("LineString", "LinearRing"):
                line = _whole(single)
                if len(line) > 1:
                    lines.append(line)
            elif single.geom_type == "Polygon":
                outer = _ring(single.exterior, positive=True)
                if outer:
                    rings.append(outer)
                    rings += filter(None, (_ring(hole, positive=False) for hole in single.interiors))
    if points:
        yield POINT, _path([point[0] for point in points])
    if lines:
        yield LINE, _moves(lines, close=False)
    if rings:
        yield POLYGON, _moves(rings, close=True)


def _whole(part: Any) -> list[tuple[int, int]]:
    """A part's points on the tile's grid, without repetitions."""
    grid = np.rint(shapely.get_coordinates(part)).astype(np.int64)
    keep = np.ones(len(grid), bool)
    keep[1:] = (grid[1:] != grid[:-1]).any(axis=1)
    return [(int(a), int(b)) for a, b in grid[keep]]


def _ring(ring: Any, positive: bool) -> list[tuple[int, int]]:
    """A ring turned as the format wants it (area above 0 with y down: outer); [] if nothing is left of it."""
    points = _whole(ring)[:-1]
    if len(points) < 3:
        return []
    area = sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(points, [*points[1:], points[0]], strict=True))
    if not area:
        return []
    return points if (area > 0) == positive else points[::-1]


def _path(points: Sequence[tuple[int, int]]) -> list[int]:
    found, px, py = [len(points) << 3 | 1], 0, 0
    for a, b in points:
        found += (_zigzag(a - px), _zigzag(b - py))
        px, py = a, b
    return found


def _moves(lines: Sequence[Sequence[tuple[int, int]]], close: bool) -> list[int]:
    found: list[int] = []
    px = py = 0
    for line in lines:
        for number, (a, b) in enumerate(line):
            if number == 0:
                found.append(1 << 3 | 1)
            elif number == 1:
                found.append((len(line) - 1) << 3 | 2)
            found += (_zigzag(a - px), _zigzag(b - py))
            px, py = a, b
        if close:
            found.append(1 << 3 | 7)
    return found


def _zigzag(number: int) -> int:
    return number << 1 if number >= 0 else (-number << 1) - 1


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


def _varints(numbers: Iterable[int]) -> bytes:
    return b"".join([_SMALL[n] if n < 128 else _varint(n) for n in numbers])


_SMALL: Final = [bytes([n]) for n in range(128)]


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _value(value: Value) -> bytes:
    if isinstance(value, bool):
        return _number(7, int(value))
    if isinstance(value, str):
        return _field(1, value.encode())
    if isinstance(value, int):
        return _number(6, _zigzag(value))
    return _varint(3 << 3 | 1) + struct.pack("<d", value)
