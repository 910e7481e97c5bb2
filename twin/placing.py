"""Where assets lie on the map: their boxes and places from their geometry, exact tests against a box, GeoJSON.

What a model's coordinates mean is its CRS's business: these functions are given `to_map`, which turns x and y into
longitude and latitude (`models3d.crs.Crs.to_map`). Heights stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import shapely

from twin.city import Asset, Geometry, finest
from twin.model import Bools, Floats

ToMap = Callable[[Floats, Floats], tuple[Floats, Floats]]
Box = tuple[float, float, float, float]  # west, south, east, north


def extents(assets: Sequence[Asset], to_map: ToMap) -> Floats:
    """The boxes [N, 4] (west, south, east, north, degrees) of assets; NaN where nothing can be placed. What has no
    geometry of its own has the box of its parts."""
    blocks = [g.vertices for asset in assets for g in asset.geometry]
    owner = np.repeat(
        np.arange(len(assets)), [sum(len(g.vertices) for g in asset.geometry) for asset in assets]
    )  # fmt: skip
    found = np.full((len(assets), 4), np.nan)
    if len(owner):
        x = np.concatenate([block[:, 0] for block in blocks])
        y = np.concatenate([block[:, 1] for block in blocks])
        lon, lat = to_map(x, y)
        is_placed = np.isfinite(lon) & np.isfinite(lat) & (np.abs(lat) <= 90)
        lon, lat, owner = lon[is_placed], lat[is_placed], owner[is_placed]
    if len(owner):
        starts = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
        found[owner[starts]] = np.stack(
            [
                np.minimum.reduceat(lon, starts),
                np.minimum.reduceat(lat, starts),
                np.maximum.reduceat(lon, starts),
                np.maximum.reduceat(lat, starts),
            ],
            axis=1,
        )
    _add_parts(assets, found)
    return found


def _add_parts(assets: Sequence[Asset], found: Floats) -> None:
    children: dict[str, list[int]] = {}
    for n, asset in enumerate(assets):
        if asset.parent:
            children.setdefault(asset.parent, []).append(n)
    if not children:
        return
    index = {asset.local: n for n, asset in enumerate(assets) if asset.local in children}
    # Deepest first: each round reaches one generation up; a circle of parents ends with the rounds.
    for _ in range(8):
        is_settled = True
        for local, parts in children.items():
            whole = index.get(local)
            if whole is None or not np.isnan(found[whole, 0]):
                continue
            boxes = found[parts]
            boxes = boxes[~np.isnan(boxes[:, 0])]
            if len(boxes):
                found[whole] = [*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)]
                is_settled = False
        if is_settled:
            return


def geojson(geometry: Sequence[Geometry], to_map: ToMap | None) -> dict[str, Any] | None:
    """The finest geometry as GeoJSON in longitude and latitude (in the model's own coordinates if `to_map` is None),
    with heights where all of its points have one. Solids are told by their surfaces. None where it cannot be placed."""
    shape = finest(geometry)
    if shape is None or not len(shape.vertices):
        return None
    points = shape.vertices
    if to_map is not None:
        lon, lat = to_map(points[:, 0], points[:, 1])
        if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
            return None
        points = np.column_stack([np.round(lon, 9), np.round(lat, 9), points[:, 2]])
    if not np.isfinite(points[:, 2]).all():
        points = points[:, :2]
    at = points.tolist()
    if shape.kind == "MultiPoint":
        found = [at[n] for n in shape.boundaries]
        return _one("Point", found)
    if shape.kind == "MultiLineString":
        return _one("LineString", [[at[n] for n in line] for line in shape.boundaries])
    surfaces = []
    for surface in shape.surfaces:
        rings = [[at[n] for n in ring] + [at[ring[0]]] for ring in surface if len(ring) >= 3]
        if rings:
            surfaces.append(rings)
    return _one("Polygon", surfaces)


def _one(kind: str, members: list[Any]) -> dict[str, Any] | None:
    if not members:
        return None
    if len(members) == 1:
        return {"type": kind, "coordinates": members[0]}
    return {"type": f"Multi{kind}", "coordinates": members}


def meets(geometry: Sequence[Geometry], to_map: ToMap, area: Box) -> bool:
    """Whether the finest geometry, seen from above, and a box have a point in common."""
    shape = finest(geometry)
    if shape is None or not len(shape.vertices):
        return False
    lon, lat = to_map(shape.vertices[:, 0], shape.vertices[:, 1])
    points = np.column_stack([lon, lat])
    if not np.isfinite(points).all():
        return False
    west, south, east, north = area
    if _inside(points, area).any():
        return True
    if shape.kind == "MultiPoint":
        return False
    window = shapely.box(west, south, east, north)
    if shape.kind == "MultiLineString":
        parts = [shapely.LineString(points[line]) for line in shape.boundaries if len(line) > 1]
    else:
        # Walls are lines from above: a ring's outline meets them, and its area what lies wholly within it.
        rings = [surface[0] for surface in shape.surfaces if surface and len(surface[0]) > 2]
        parts = [shapely.LineString(points[[*ring, ring[0]]]) for ring in rings]
        areas = [_polygon(points, s) for s in shape.surfaces if s and len(s[0]) > 2]
        middle = shapely.Point((west + east) / 2, (south + north) / 2)
        if any(shapely.contains(polygon, middle) for polygon in areas if polygon.is_valid):
            return True
    return bool(shapely.intersects(np.array(parts, object), window).any()) if parts else False


def within(extent: Box, area: Box) -> bool:
    """Whether a box lies wholly in another."""
    return extent[0] >= area[0] and extent[1] >= area[1] and extent[2] <= area[2] and extent[3] <= area[3]


def _polygon(points: Floats, surface: list[list[int]]) -> shapely.Polygon:
    return shapely.Polygon(points[surface[0]], [points[ring] for ring in surface[1:] if len(ring) > 2])


def _inside(points: Floats, area: Box) -> Bools:
    west, south, east, north = area
    x, y = points[:, 0], points[:, 1]
    result: Bools = (x >= west) & (x <= east) & (y >= south) & (y <= north)
    return result
