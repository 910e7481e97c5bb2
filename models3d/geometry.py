"""Shapes to triangles: surfaces of buildings and bridges, tubes of pipes, shafts of manholes. Pure numpy; coordinates
in metres, z up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import mapbox_earcut
import numpy as np

from twin.model import Floats, Ints

SIDES: Final = 8  # of a tube: 3 % thinner than round at the middle of a side


@dataclass(frozen=True, slots=True, eq=False)
class Mesh:
    """Triangles of many parts. `position`, `normal` [V, 3]; `part` [V]: which part a vertex belongs to; `triangle`
    [T, 3]: places of vertices, anticlockwise from outside."""

    position: Floats
    normal: Floats
    part: Ints
    triangle: Ints

    @classmethod
    def join(cls, meshes: Sequence[Mesh]) -> Mesh:
        meshes = [m for m in meshes if len(m.triangle)]
        if not meshes:
            return cls(np.empty((0, 3)), np.empty((0, 3)), np.empty(0, np.int64), np.empty((0, 3), np.int64))
        offset = np.cumsum([0, *(len(m.position) for m in meshes)])
        return cls(
            np.concatenate([m.position for m in meshes]),
            np.concatenate([m.normal for m in meshes]),
            np.concatenate([m.part for m in meshes]),
            np.concatenate([m.triangle + start for m, start in zip(meshes, offset.tolist(), strict=False)]),
        )


def surfaces(vertices: Floats, polygons: Sequence[Sequence[Sequence[int]]], part: Sequence[int]) -> Mesh:
    """Triangles of planar `polygons` (rings of places in `vertices` [N, 3], the outer one first), one `part` number a
    polygon. Each polygon has vertices of its own, so that edges look sharp. Polygons without area are left out."""
    corners: list[int] = []
    ring_ends: list[int] = []
    ends: list[int] = []
    rings: list[int] = []
    for polygon in polygons:
        for ring in polygon:
            corners += ring
            ring_ends.append(len(corners))
        ends.append(len(corners))
        rings.append(len(polygon))
    position = vertices[np.array(corners, np.int64)]
    end, count = np.array(ends, np.int64), np.array(rings, np.int64)
    start = np.concatenate([[0], end[:-1]]).astype(np.int64)
    size = end - start
    normal = _newell(position, start, np.array(ring_ends, np.int64), np.cumsum(count) - count, size)
    has_area = np.isfinite(normal).all(axis=1)
    triangles: list[Ints] = []
    simple = (count == 1) & has_area
    three, four = start[simple & (size == 3)], start[simple & (size == 4)]
    triangles.append(three[:, None] + np.arange(3))
    triangles.append(_quads(position, four, normal[simple & (size == 4)]))
    last_ring = np.cumsum(count)
    for s in np.flatnonzero(has_area & ~(simple & (size <= 4))).tolist():
        flat = _flattened(position[start[s] : end[s]], normal[s])
        ring = np.array(ring_ends[last_ring[s] - count[s] : last_ring[s]], np.int64) - start[s]
        cut = mapbox_earcut.triangulate_float64(flat, ring.astype(np.uint32))
        triangles.append(cut.astype(np.int64).reshape(-1, 3) + start[s])
    triangle = np.concatenate(triangles) if triangles else np.empty((0, 3), np.int64)
    of_polygon = np.repeat(np.arange(len(size)), size)
    mesh = Mesh(position, np.nan_to_num(normal)[of_polygon], np.array(part, np.int64)[of_polygon], triangle)
    return _without_unused(mesh)


def _newell(position: Floats, start: Ints, ring_end: Ints, first_ring: Ints, size: Ints) -> Floats:
    """Unit normals of polygons by Newell's sums over their outer rings; NaN where there is no area. See Sutherland,
    Sproull, Schumacker, A characterization of ten hidden-surface algorithms, 1974."""
    if not len(size):
        return np.empty((0, 3))
    outer_end = ring_end[first_ring]
    following = np.arange(1, len(position) + 1)
    ring_start = np.concatenate([[0], ring_end[:-1]])
    filled = ring_end > ring_start
    following[ring_end[filled] - 1] = ring_start[filled]
    a = position - position[np.repeat(start, size)]  # near the origin, for precision
    b = a[following]
    term = np.cross(a, b)
    place = np.arange(len(position))
    term[place >= np.repeat(outer_end, size)] = 0
    total = np.add.reduceat(np.vstack([term, np.zeros((1, 3))]), start)
    total[size == 0] = 0
    length = np.linalg.norm(total, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((length > 1e-12)[:, None], total / length[:, None], np.nan)


def _quads(position: Floats, start: Ints, normal: Floats) -> Ints:
    """Two triangles for each polygon of four corners, cut along the diagonal that lies inside."""
    a, b, c, d = (position[start + k] for k in range(4))
    one = np.einsum("ij,ij->i", np.cross(b - a, c - a), normal) > 0
    two = np.einsum("ij,ij->i", np.cross(c - a, d - a), normal) > 0
    along_ac = (one & two)[:, None]
    base = start[:, None]
    first = np.where(along_ac, base + np.array([0, 1, 2]), base + np.array([0, 1, 3]))
    second = np.where(along_ac, base + np.array([0, 2, 3]), base + np.array([1, 2, 3]))
    return np.concatenate([first, second])


def _flattened(corner: Floats, normal: Floats) -> Floats:
    """Corners in the plane of their normal, seen from outside."""
    helper = np.array([0.0, 0.0, 1.0]) if abs(normal[2]) < 0.9 else np.array([1.0, 0.0, 0.0])
    u = np.cross(helper, normal)
    u /= np.linalg.norm(u)
    v = np.cross(normal, u)
    away = corner - corner[0]
    return np.ascontiguousarray(np.column_stack([away @ u, away @ v]))


def _without_unused(mesh: Mesh) -> Mesh:
    used = np.zeros(len(mesh.position), bool)
    used[mesh.triangle.ravel()] = True
    if used.all():
        return mesh
    new = np.cumsum(used) - 1
    return Mesh(mesh.position[used], mesh.normal[used], mesh.part[used], new[mesh.triangle])


def prism(base: Floats, rings: Sequence[Sequence[int]], height: float) -> tuple[Floats, list[list[list[int]]]]:
    """The walls and the roof of a footprint (`rings` of places in `base` [N, 3]) raised by `height`: vertices and
    polygons for `surfaces`."""
    n = len(base)
    top = base + np.array([0.0, 0.0, height])
    wanted = 1.0  # the outer ring anticlockwise from above, holes clockwise
    oriented: list[list[int]] = []
    for ring in rings:
        x, y = base[list(ring), 0], base[list(ring), 1]
        area = float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))
        oriented.append(list(ring) if area * wanted >= 0 else list(ring)[::-1])
        wanted = -1.0
    polygons = [[[place + n for place in ring] for ring in oriented]]
    for ring in oriented:
        for a, b in zip(ring, [*ring[1:], ring[0]], strict=True):
            polygons.append([[a, b, b + n, a + n]])
    return np.vstack([base, top]), polygons


def tubes(vertices: Floats, count: Ints, width: Floats, height: Floats, is_box: Floats | Ints) -> Mesh:
    """Tubes along lines: `vertices` [N, 3] of all lines, one after the other, `count` [L] of each (at least 2);
    `width`, `height` [L] outside measures (m), `is_box` [L] for a rectangular section. The vertices are the
    tube's axis; joints are mitred. Part numbers are the lines' places; the ends are open. Lines
    without length give nothing."""
    line = np.repeat(np.arange(len(count)), count)
    n = len(vertices)
    if n == 0:
        return Mesh.join([])
    is_first, is_last = np.zeros(n, bool), np.zeros(n, bool)
    start = np.cumsum(count) - count
    is_first[start] = True
    is_last[start + count - 1] = True
    step = np.zeros((n, 3))
    step[:-1] = vertices[1:] - vertices[:-1]
    length = np.linalg.norm(step, axis=1)
    length[is_last] = 0
    with np.errstate(invalid="ignore", divide="ignore"):
        direction = np.where((length > 1e-6)[:, None], step / length[:, None], np.nan)
    # A vertex's tangent halves the angle between the pieces before and after it; a piece without length takes its
    # neighbour's direction.
    ahead = _carried(direction[::-1], line[::-1])[::-1]
    behind = np.full((n, 3), np.nan)
    behind[1:] = _carried(direction, line)[:-1]
    behind[is_first] = np.nan
    before = np.where(np.isnan(behind), ahead, behind)
    after = np.where(np.isnan(ahead), before, ahead)
    tangent = before + after
    size = np.linalg.norm(tangent, axis=1)
    turned = size < 0.2  # it nearly turns back: no mitre
    tangent = np.where(turned[:, None], after, tangent / np.maximum(size, 1e-12)[:, None])
    stretch = np.minimum(1 / np.maximum(np.where(turned, 1.0, size / 2), 0.3), 3.0)
    across = np.column_stack([tangent[:, 1], -tangent[:, 0], np.zeros(n)])
    level = np.linalg.norm(across, axis=1)
    across = np.where((level > 1e-6)[:, None], across / np.maximum(level, 1e-12)[:, None], [1.0, 0.0, 0.0])
    up = np.cross(across, tangent)
    angle = (np.arange(SIDES) + 0.5) * (2 * math.pi / SIDES)
    cos, sin = np.cos(angle), np.sin(angle)
    box = np.asarray(is_box, bool)[line]
    # A box's eight corners lie two by two in its four.
    cos_of = np.where(box[:, None], np.sign(cos), cos)
    sin_of = np.where(box[:, None], np.sign(sin), sin)
    half_w, half_h = (width / 2)[line] * stretch, (height / 2)[line] * stretch
    offset = (half_w[:, None] * cos_of)[:, :, None] * across[:, None, :]
    offset = offset + (half_h[:, None] * sin_of)[:, :, None] * up[:, None, :]
    position = vertices[:, None, :] + offset
    normal = cos[None, :, None] * across[:, None, :] + sin[None, :, None] * up[:, None, :]
    here = np.flatnonzero(~is_last & ~np.isnan(after).any(axis=1) & (length > 1e-6))
    side = np.arange(SIDES)
    a = here[:, None] * SIDES + side
    b = here[:, None] * SIDES + (side + 1) % SIDES
    following = np.arange(n)
    following[:-1] += 1
    c, d = following[here][:, None] * SIDES + side, following[here][:, None] * SIDES + (side + 1) % SIDES
    triangle = np.concatenate([np.stack([a, d, b], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    mesh = Mesh(position.reshape(-1, 3), normal.reshape(-1, 3), np.repeat(line, SIDES), triangle)
    return _without_unused(mesh)


def _carried(direction: Floats, line: Ints) -> Floats:
    """Where a direction is not known, the last known one of the same line."""
    known = ~np.isnan(direction).any(axis=1)
    place = np.maximum.accumulate(np.where(known, np.arange(len(line)), -1))
    fits = (place >= 0) & (line[np.maximum(place, 0)] == line)
    return np.where(fits[:, None], direction[np.maximum(place, 0)], np.nan)


def shafts(top: Floats, bottom: Floats, diameter: Floats) -> Mesh:
    """Upright cylinders with a lid, from `bottom` to `top` [N, 3] (the same x, y); part numbers are their places."""
    n = len(top)
    line = np.stack([bottom, top], axis=1).reshape(-1, 3)
    walls = tubes(line, np.full(n, 2), diameter, diameter, np.zeros(n))
    angle = (np.arange(SIDES) + 0.5) * (2 * math.pi / SIDES)
    circle = np.column_stack([np.cos(angle), np.sin(angle), np.zeros(SIDES)])
    lid = top[:, None, :] + circle * (diameter / 2)[:, None, None]
    first = np.arange(n)[:, None] * SIDES
    fan = np.array([[0, k, k + 1] for k in range(1, SIDES - 1)])
    triangle = (first[:, :, None] + fan[None]).reshape(-1, 3)
    lids = Mesh(lid.reshape(-1, 3), np.tile([0.0, 0.0, 1.0], (n * SIDES, 1)), np.repeat(np.arange(n), SIDES), triangle)
    return Mesh.join([walls, lids])
