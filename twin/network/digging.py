"""What lies in the way of a dig: pipes and covers within their protection distance, and whom to ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import shapely

from twin.model import Bools, Floats
from twin.network.clearances import PROTECTIONS, Protection, protection
from twin.network.pipes import Days, Pipes

# Nodes that show at the surface as a cover or a box.
COVERS: Final = frozenset(("manhole", "valve", "hydrant", "meter", "inlet", "storage", "divider"))
# A pipe whose crown lies deeper than the dig by more than this (or its own protection distance) is out of its way [E].
BELOW_M: Final = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A stretch of pipe, or a cover, near the dig. `network`, `at`: which of the networks given, and the place in its
    columns. `zone`: `protection` or `control`. `distance_m`: from the dig to the outline, 0 within. `crown_depth_m`:
    of the crown under the ground, the least on the stretch, None where unknown (then it is taken to be in the way).
    `lines`: the stretch as lists of [x, y] in the coordinates given; of a cover one point."""

    group: str
    network: int
    at: int
    system: str
    zone: str
    distance_m: float
    crown_depth_m: float | None
    length_m: float
    owner: str
    mark: str
    lines: list[list[list[float]]]


@dataclass(frozen=True, slots=True)
class Notice:
    """An owner to notify: how many pipes, metres and covers, of which systems; `is_protected`: some of it lies within
    the protection distance."""

    owner: str
    systems: tuple[str, ...]
    pipes: int
    covers: int
    length_m: float
    is_protected: bool


@dataclass(frozen=True, slots=True, eq=False)
class Dig:
    """`pieces`: what is near, protected before controlled, then by distance. `notices`: by owner."""

    pieces: tuple[Piece, ...]
    notices: tuple[Notice, ...]


def dig(
    networks: Sequence[Pipes],
    polygon: Floats,
    depth_m: float,
    on: np.datetime64,
    *,
    table: Sequence[Protection] = PROTECTIONS,
) -> Dig:
    """What is in the way of digging `polygon` [n, 2] (its outer ring, in the metres of the networks) `depth_m` deep on
    the day `on`.

    A pipe is, if its outline comes within its control distance in plan and its crown lies no deeper than the dig and
    `BELOW_M` or its protection distance, whichever is more; or its depth is unknown. A cover is, whatever the depth.
    What was laid after that day, or taken up by then, is left out. ValueError for a polygon of no area, or a depth that
    is not positive.
    """
    ring = np.asarray(polygon, float)
    if ring.ndim != 2 or len(ring) < 3 or not np.isfinite(ring).all():
        raise ValueError("a dig is a polygon of at least three points")
    shape = shapely.make_valid(shapely.polygons(ring[:, :2]))
    if not shape.area > 0 or not depth_m > 0:
        raise ValueError("a dig has an area and a depth")
    found: list[Piece] = []
    for number, pipes in enumerate(networks):
        found += _stretches(number, pipes, shape, depth_m, on, table)
        found += _covers(number, pipes, shape, on, table)
    found.sort(key=lambda piece: (piece.zone != "protection", piece.distance_m, piece.network, piece.group, piece.at))
    return Dig(tuple(found), _notices(found))


def _there(since: Days, until: Days, on: np.datetime64) -> Bools:
    """Which were there on that day; what is unknown was."""
    there: Bools = (np.isnat(since) | (since <= on)) & (np.isnat(until) | (until > on))
    return there


def _stretches(
    number: int, pipes: Pipes, shape: Any, depth_m: float, on: np.datetime64, table: Sequence[Protection]
) -> list[Piece]:  # fmt: skip
    system = pipes.network.system
    rows = {name: protection(table, system, name) for name in set(pipes.pressure_class)}
    reach = np.array([rows[name].control_m for name in pipes.pressure_class]) + pipes.radius
    edge, begin, end = pipes.pieces()
    if len(edge) == 0:
        return []
    # First whatever has a piece in reach, from boxes; then the few lines themselves.
    west, south, east, north = shape.bounds
    low, high = np.minimum(begin, end), np.maximum(begin, end)
    far = reach[edge]
    near = (low[:, 0] <= east + far) & (high[:, 0] >= west - far) & (low[:, 1] <= north + far)
    near &= (high[:, 1] >= south - far) & _there(pipes.since, pipes.until, on)[edge]
    found = []
    for e in np.unique(edge[near]).tolist():
        row, radius = rows[pipes.pressure_class[e]], float(pipes.radius[e])
        line = pipes.point[pipes.first[e] : pipes.first[e + 1]]
        ground = pipes.ground[pipes.first[e] : pipes.first[e + 1]]
        whole = shapely.linestrings(line[:, :2])
        distance = max(0.0, float(shapely.distance(whole, shape)) - radius)
        if distance > row.control_m:
            continue
        within = distance <= row.protection_m
        stretch = shapely.intersection(
            whole, shapely.buffer(shape, (row.protection_m if within else row.control_m) + radius + 1e-6)
        )
        crown = _least_depth(whole, stretch, ground - line[:, 2] - radius)
        if crown is not None and crown > depth_m + max(BELOW_M, row.protection_m if within else 0.0):
            continue
        parts = [part for part in shapely.get_parts(stretch) if part.geom_type in ("LineString", "Point")]
        found.append(Piece(
            "link", number, e, system, "protection" if within else "control", distance, crown,
            float(shapely.length(stretch)), pipes.owner[e], row.mark,
            [shapely.get_coordinates(part).tolist() for part in parts],
        ))  # fmt: skip
    return found


def _least_depth(whole: Any, stretch: Any, depth: Floats) -> float | None:
    """The least of `depth` [n] (at the points of `whole`) on the part that `stretch` is of it; None if unknown."""
    place = shapely.get_coordinates(whole)
    along = np.append(0.0, np.cumsum(np.hypot(*np.diff(place, axis=0).T)))
    ends = shapely.line_locate_point(whole, shapely.points(shapely.get_coordinates(stretch)))
    known = np.isfinite(depth)
    if not known.any() or len(ends) == 0:
        return None
    # Depth is linear between points, so its least is at one of them or where the stretch begins or ends.
    inside = (along >= ends.min()) & (along <= ends.max()) & known
    return float(min([*np.interp(ends, along[known], depth[known]), *depth[inside]]))


def _covers(
    number: int, pipes: Pipes, shape: Any, on: np.datetime64, table: Sequence[Protection]
) -> list[Piece]:  # fmt: skip
    network = pipes.network
    size = len(network.node)
    if size == 0:
        return []
    # A cover is guarded as the most dangerous pipe at it.
    rows = {name: protection(table, network.system, name) for name in {"", *pipes.pressure_class}}
    by_class = np.array([rows[name].protection_m for name in pipes.pressure_class])
    most = np.zeros(size)
    np.maximum.at(most, network.start, by_class)
    np.maximum.at(most, network.end, by_class)
    most[most == 0] = rows[""].protection_m
    is_cover = np.array([kind in COVERS for kind in network.node_type], bool)
    is_cover &= _there(pipes.node_since, pipes.node_until, on) & np.isfinite(network.x) & np.isfinite(network.y)
    cover = np.flatnonzero(is_cover)
    distance = shapely.distance(shapely.points(network.x[cover], network.y[cover]), shape)
    return [
        Piece("node", number, int(n), network.system, "protection", float(d), None, 0.0, pipes.node_owner[n],
              rows[""].mark, [[[float(network.x[n]), float(network.y[n])]]])
        for n, d in zip(cover.tolist(), distance.tolist(), strict=True) if d <= most[n]
    ]  # fmt: skip


def _notices(pieces: Sequence[Piece]) -> tuple[Notice, ...]:
    by_owner: dict[str, list[Piece]] = {}
    for piece in pieces:
        by_owner.setdefault(piece.owner, []).append(piece)
    return tuple(
        Notice(
            owner,
            tuple(sorted({piece.system for piece in own})),
            sum(piece.group == "link" for piece in own),
            sum(piece.group == "node" for piece in own),
            sum(piece.length_m for piece in own),
            any(piece.zone == "protection" for piece in own),
        )
        for owner, own in sorted(by_owner.items())
    )
