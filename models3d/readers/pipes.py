"""From points and lines to networks: what the readers of maps and tables share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from twin.city import SYSTEMS, Network
from twin.model import Floats, Ints

SNAP_M: Final = 0.01
SNAP_DEGREES: Final = 1e-7
# Types of points that may be nodes of a network.
NODE_TYPES: Final = frozenset(
    (
        "junction",
        "manhole",
        "valve",
        "pump",
        "tank",
        "reservoir",
        "outfall",
        "storage",
        "divider",
        "inlet",
        "hydrant",
        "meter",
        "fitting",
        "compressor",
        "regulator",
        "source",
        "consumer",
        "outlet",
    )
)
# Water in drains runs one way, as the line is drawn; in the others either way.
ONE_WAY: Final = frozenset(("drainage",))


class Node(NamedTuple):
    """A node to be: `local` as its asset's."""

    local: str
    type: str
    x: float
    y: float
    z: float = math.nan
    ground: float = math.nan
    demand: float = 0.0


class Edge(NamedTuple):
    """An edge to be: `start`, `end` are places in the list of nodes."""

    local: str
    type: str
    system: str
    start: int
    end: int
    length: float = math.nan
    diameter: float = math.nan
    invert_start: float = math.nan
    invert_end: float = math.nan
    direction: int = 0
    is_open: bool = True


def networks(nodes: Sequence[Node], edges: Sequence[Edge]) -> list[Network]:
    """The networks of `edges`, one a system, in the order of `SYSTEMS`; each with the nodes that its edges use."""
    found = []
    for system in SYSTEMS:
        own = [edge for edge in edges if edge.system == system]
        if not own:
            continue
        ends = np.array([(edge.start, edge.end) for edge in own], np.int64)
        used, places = np.unique(ends, return_inverse=True)
        start, end = places.reshape(ends.shape).astype(np.int32).T
        members = [nodes[i] for i in used]
        numbers = np.array([edge[5:9] for edge in own], np.float64)
        points = np.array([node[2:] for node in members], np.float64)
        x, y, z, ground, demand = (points[:, column].copy() for column in range(5))
        length, diameter, invert_start, invert_end = (numbers[:, column].copy() for column in range(4))
        direction = np.array([edge.direction for edge in own], np.int8)
        is_open = np.array([edge.is_open for edge in own], bool)
        names, types = [node.local for node in members], [node.type for node in members]
        found.append(
            Network(
                system,
                names,
                types,
                x,
                y,
                z,
                ground,
                demand,
                [edge.local for edge in own],
                [edge.type for edge in own],
                start,
                end,
                length,
                diameter,
                invert_start,
                invert_end,
                direction,
                is_open,
            )
        )
    return found


def snap(points: Floats, within: float) -> Ints:
    """Which of `points` [N, 2] are one: the place of the first point of each one's cluster [N]. Points of one cell of a
    grid, or of neighbouring cells if no further apart than `within`, are joined; work grows with N, however dense."""
    if not len(points):
        return np.empty(0, np.int64)
    cells = np.floor(points / within).astype(np.int64)
    _, first, inverse = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    by_cell = {(int(x), int(y)): place for place, (x, y) in enumerate(cells[first].tolist())}
    chosen = list(range(len(first)))

    def root(place: int) -> int:
        while chosen[place] != place:
            chosen[place] = chosen[chosen[place]]
            place = chosen[place]
        return place

    for (x, y), place in by_cell.items():
        for dx, dy in ((1, 0), (0, 1), (1, 1), (1, -1)):
            other = by_cell.get((x + dx, y + dy))
            if other is not None:
                a, b = points[first[place]], points[first[other]]
                if math.hypot(a[0] - b[0], a[1] - b[1]) <= within:
                    one, two = sorted((root(place), root(other)), key=lambda place: first[place])
                    chosen[two] = one
    roots: NDArray[np.int64] = np.array([first[root(place)] for place in range(len(first))], np.int64)
    return roots[inverse]


def length_m(vertices: Floats, is_geographic: bool, unit_m: float = 1.0) -> float:
    """Length (m) of a line [N, 3] in plan; of degrees on a sphere of 6371008.8 m (mean radius, IUGG), good to 0.5 %."""
    if is_geographic:
        lon, lat = np.radians(vertices[:, 0]), np.radians(vertices[:, 1])
        half = np.sin(np.diff(lat) / 2) ** 2 + np.cos(lat[:-1]) * np.cos(lat[1:]) * np.sin(np.diff(lon) / 2) ** 2
        return float(2 * 6371008.8 * np.arcsin(np.sqrt(np.clip(half, 0, 1))).sum())
    return float(np.hypot(*np.diff(vertices[:, :2], axis=0).T).sum() * unit_m)
