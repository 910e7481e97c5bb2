"""Shapes from above: what a map shows of assets, as shapely geometries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from twin.city import Geometry
from twin.model import Floats

ToMap = Callable[[Floats, Floats], tuple[Floats, Floats]]


def footprints(geometries: Sequence[Geometry | None], to_map: ToMap) -> NDArray[Any]:
    """A shapely geometry [N] of each: points and lines as they are, of surfaces and solids the area that they cover
    from above; None where there is nothing, or where it cannot be placed."""
    found = np.full(len(geometries), None, object)
    known = [(n, g) for n, g in enumerate(geometries) if g is not None and len(g.vertices)]
    if not known:
        return found
    x, y = (np.concatenate([g.vertices[:, axis] for _, g in known]) for axis in (0, 1))
    placed = np.column_stack(to_map(x, y))
    start = 0
    for n, geometry in known:
        points = placed[start : start + len(geometry.vertices)]
        start += len(geometry.vertices)
        if not np.isfinite(points).all():
            continue
        if geometry.kind == "MultiPoint":
            chosen = points[geometry.boundaries]
            found[n] = shapely.Point(chosen[0]) if len(chosen) == 1 else shapely.MultiPoint(chosen)
        elif geometry.kind == "MultiLineString":
            lines = [shapely.LineString(points[line]) for line in geometry.boundaries if len(line) > 1]
            if lines:
                found[n] = lines[0] if len(lines) == 1 else shapely.MultiLineString(lines)
        else:
            found[n] = covered(points, geometry.surfaces)
    return found


def covered(points: Floats, surfaces: Sequence[Sequence[Sequence[int]]]) -> Any:
    """The union of `surfaces` (rings of places in `points` [N, 2]) seen from above; walls cover nothing. None where
    nothing is covered."""
    polygons = []
    for surface in surfaces:
        ring = points[surface[0]] if surface else points[:0]
        if len(ring) < 3:
            continue
        a, b = ring[:, 0] - ring[0, 0], ring[:, 1] - ring[0, 1]
        area = abs(float(np.sum(a * np.roll(b, -1) - np.roll(a, -1) * b))) / 2
        width = float(np.ptp(a)) + float(np.ptp(b))
        if area > 1e-6 * width * width:
            polygons.append(shapely.Polygon(ring, [points[hole] for hole in surface[1:] if len(hole) > 2]))
    if not polygons:
        return None
    if len(polygons) == 1:
        return shapely.make_valid(polygons[0])
    return shapely.union_all(shapely.make_valid(np.array(polygons, object)))
