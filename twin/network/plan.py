"""A network seen from above: what lies near a place in the plane, and which buildings a pipe serves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import shapely

from twin.model import Floats, Indices
from twin.network.graph import NO_PLACES, Graph, Place
from twin.network.pipes import Pipes

# A building further than this from any pipe of a system is not served by it, if nothing else is known [E].
SERVED_WITHIN_M: Final = 50.0


@dataclass(frozen=True, slots=True, eq=False)
class Near:
    """Places in the columns, nearest first, and their distances in metres."""

    at: Indices
    distance_m: Floats


class Shapes:
    """Shapes in the plane (metres), found by distance; missing and empty ones are never found."""

    def __init__(self, shapes: Sequence[Any]) -> None:
        every = np.array(shapes, object)
        self._known: Final = np.flatnonzero(~(shapely.is_missing(every) | shapely.is_empty(every))).astype(np.int32)
        self._tree: Final = shapely.STRtree(every[self._known])
        self._shapes: Final = every[self._known]

    @classmethod
    def nodes(cls, pipes: Pipes, *types: str) -> Shapes:
        """The nodes of `types` (of all, if none is named), by their places in the columns."""
        network = pipes.network
        known = np.isfinite(network.x) & np.isfinite(network.y)
        if types:
            known &= np.array([kind in types for kind in network.node_type], bool)
        every = np.full(len(known), None, object)
        every[known] = shapely.points(network.x[known], network.y[known])
        return cls(list(every))

    @classmethod
    def edges(cls, pipes: Pipes, *types: str) -> Shapes:
        """The lines of the edges of `types`, likewise."""
        every: list[Any] = []
        for e, kind in enumerate(pipes.network.edge_type):
            line = pipes.point[pipes.first[e] : pipes.first[e + 1], :2]
            is_meant = not types or kind in types
            every.append(shapely.linestrings(line) if is_meant and np.isfinite(line).all() else None)
        return cls(every)

    def within(self, shape: Any, distance_m: float) -> Near:
        """All within `distance_m` of `shape`."""
        found = self._tree.query(shape, predicate="dwithin", distance=distance_m)
        distance = shapely.distance(self._shapes[found], shape)
        order = np.lexsort((self._known[found], distance))
        return Near(self._known[found][order], distance[order])

    def nearest(self, shape: Any, most_m: float = math.inf) -> tuple[int, float] | None:
        """The nearest to `shape` and its distance (of several the first); None if none is within `most_m`."""
        at, distance = self.nearest_of_each([shape], most_m)
        return None if at[0] < 0 else (int(at[0]), float(distance[0]))

    def nearest_of_each(self, shapes: Sequence[Any], most_m: float = math.inf) -> tuple[Indices, Floats]:
        """For each of `shapes` the nearest, -1 and NaN where none is within `most_m`."""
        at, far = np.full(len(shapes), -1, np.int32), np.full(len(shapes), np.nan)
        if len(shapes) == 0 or len(self._known) == 0:
            return at, far
        limit = {"max_distance": most_m} if math.isfinite(most_m) and most_m > 0 else {}
        (asked, found), distance = self._tree.query_nearest(np.array(shapes, object), return_distance=True, **limit)
        order = np.lexsort((self._known[found], asked))
        asked, found, distance = asked[order], found[order], distance[order]
        first = np.append(True, asked[1:] != asked[:-1])[: len(asked)] & (distance <= most_m)
        at[asked[first]], far[asked[first]] = self._known[found[first]], distance[first]
        return at, far


@dataclass(frozen=True, slots=True, eq=False)
class Service:
    """By what each building [B] is served: `edge`, the nearest pipe, or `node`, the one it is bound to (else -1), and
    `distance_m` to the pipe, NaN where bound or not served."""

    edge: Indices
    node: Indices
    distance_m: Floats

    def of(self, graph: Graph, place: Place) -> Indices:
        """The buildings that `place` serves: a pipe those nearest to it and those bound to its ends; a node those
        bound to it. NotFound for an unknown place."""
        graph.check(place)
        if place.group == "node":
            return np.flatnonzero(self.node == place.at).astype(np.int32)
        served = (self.edge == place.at) | np.isin(self.node, graph.ends(place.at))
        return np.flatnonzero(served).astype(np.int32)


def service(
    pipes: Pipes, buildings: Sequence[Any], bound: Indices = NO_PLACES, *, within_m: float = SERVED_WITHIN_M
) -> Service:  # fmt: skip
    """Which pipe serves which of `buildings` (footprints in metres). `bound` [B]: the node each is known to be
    connected to, -1 where unknown: then the nearest pipe within `within_m` is taken to serve it."""
    node = bound if len(bound) else np.full(len(buildings), -1, np.int32)
    edge, distance = Shapes.edges(pipes).nearest_of_each(buildings, within_m)
    known = node >= 0
    return Service(np.where(known, -1, edge).astype(np.int32), node, np.where(known, np.nan, distance))
