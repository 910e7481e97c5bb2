"""Where pipes of different systems lie too near to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import shapely
from numpy.typing import NDArray

from twin.model import Bools, Floats, Indices
from twin.network.clearances import CLEARANCES, OTHERWISE, Clearance, clearance
from twin.network.pipes import Pipes
from twin.plane import nearest_points

CROSSING: Final = 0
PARALLEL: Final = 1
APPROACH: Final = 2
KINDS: Final = ("crossing", "parallel", "approach")
# Pieces within this angle run side by side; the horizontal clearance is meant for those.
PARALLEL_WITHIN_DEG: Final = 30.0


@dataclass(frozen=True, slots=True, eq=False)
class Conflicts:
    """Pairs of pipes, the worst first: `one`, `other` places in the networks `one_network`, `other_network` (as given).

    `kind` of `KINDS`: their outlines overlap in plan and the vertical clearance counts (`crossing`); they run side by
    side, and the horizontal one counts (`parallel`); or one comes near the other at an angle, and the distance in space
    must be the vertical clearance (`approach`). `x`, `y`: where, in the middle between them. `actual_m`: between the
    outlines, negative where they run into each other, NaN where a crossing's heights are unknown (listed last).
    `required_m`, and its `mark`. One row a pair and kind: the worst place.
    """

    one_network: Indices
    one: Indices
    other_network: Indices
    other: Indices
    kind: NDArray[np.int8]
    x: Floats
    y: Floats
    actual_m: Floats
    required_m: Floats
    mark: Sequence[str]

    def __len__(self) -> int:
        return len(self.one)


def conflicts(
    networks: Sequence[Pipes], *, table: Sequence[Clearance] = CLEARANCES, with_unknown: bool = False
) -> Conflicts:  # fmt: skip
    """Pairs of pipes of different systems with less than the clearance that `table` requires. Coordinates in metres.
    `with_unknown`: also crossings whose heights are not known. Pipes whose place is unknown are left out."""
    network, edge, begin, end = _all_pieces(networks)
    systems = [pipes.network.system for pipes in networks]
    system = np.array([systems.index(name) for name in systems], np.int32)
    radius = np.concatenate([pipes.radius for pipes in networks]) if networks else np.zeros(0)
    offset = np.append(0, np.cumsum([len(pipes.radius) for pipes in networks]))[:-1].astype(np.int32)
    if len(edge) == 0:
        return _answer(np.zeros((0, 4), np.int32), np.zeros(0, np.int8), np.zeros((0, 4)), [])
    thick = radius[offset[network] + edge]
    # Rows for gas of a pressure that none here has would only widen the search.
    present = {"", *(name for pipes in networks for name in pipes.pressure_class)}
    table = [row for row in table if row.pressure_class in present]
    # The reach of the search: the largest clearance of the table for the pipe's own system, and both radii.
    most = {
        name: max([r.horizontal_m for r in table if name in (r.one, r.other)] + [OTHERWISE.horizontal_m])
        for name in systems
    }
    reach = np.array([most[name] for name in systems])[network] + thick + thick.max()
    lines = shapely.linestrings(np.stack((begin[:, :2], end[:, :2]), axis=1))
    one, other = shapely.STRtree(lines).query(lines, predicate="dwithin", distance=reach)
    apart = (system[network[one]] != system[network[other]]) & (one < other)
    one, other = one[apart].astype(np.int32), other[apart].astype(np.int32)

    a0, a1, b0, b1 = begin[one], end[one], begin[other], end[other]
    thickness = thick[one] + thick[other]
    s, t, plan = nearest_points(a0[:, :2], a1[:, :2], b0[:, :2], b1[:, :2])
    za, zb = a0[:, 2] + s * (a1 - a0)[:, 2], b0[:, 2] + t * (b1 - b0)[:, 2]
    in_space = nearest_points(a0, a1, b0, b1)[2] - thickness
    kind = np.where(
        plan < np.maximum(thickness, 1e-9), CROSSING, np.where(_is_along(a0, a1, b0, b1), PARALLEL, APPROACH)
    )
    actual = np.choose(kind, (np.abs(za - zb) - thickness, plan - thickness, in_space))
    # What is further than anything asked for needs no looking up.
    rows = [*table, OTHERWISE]
    most_asked = np.where(kind == PARALLEL, max(r.horizontal_m for r in rows), max(r.vertical_m for r in rows))
    close = ~(actual >= most_asked)
    one, other, kind, actual = one[close], other[close], kind[close], actual[close]
    middle = (a0 + s[:, None] * (a1 - a0) + b0 + t[:, None] * (b1 - b0))[close, :2] / 2
    horizontal, vertical, mark = _required(networks, table, network[one], edge[one], network[other], edge[other])
    required = np.where(kind == PARALLEL, horizontal, vertical)
    wrong = actual < required - 1e-9
    if with_unknown:
        wrong |= np.isnan(actual) & (kind == CROSSING)

    pair = np.column_stack((network[one], edge[one], network[other], edge[other]))[wrong]
    figures = np.column_stack((middle, actual, required))[wrong]
    kind, mark = kind[wrong].astype(np.int8), mark[wrong]
    # The worst first; of one pair and kind only that.
    order = np.argsort(np.nan_to_num(figures[:, 2] - figures[:, 3], nan=np.inf), kind="stable")
    keys = np.column_stack((pair, kind))[order]
    kept = order[np.sort(np.unique(keys, axis=0, return_index=True)[1])]
    return _answer(pair[kept], kind[kept], figures[kept], mark[kept].tolist())


def _all_pieces(networks: Sequence[Pipes]) -> tuple[Indices, Indices, Floats, Floats]:
    """The straight pieces of all networks: network, edge, ends."""
    parts = [pipes.pieces() for pipes in networks]
    network = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part[0]) for part in parts])
    empty = np.zeros((0, 3))
    return (
        network,
        np.concatenate([np.zeros(0, np.int32), *(part[0] for part in parts)]),
        np.concatenate([empty, *(part[1] for part in parts)]),
        np.concatenate([empty, *(part[2] for part in parts)]),
    )


def _is_along(a0: Floats, a1: Floats, b0: Floats, b1: Floats) -> Bools:
    """Whether two pieces run within `PARALLEL_WITHIN_DEG` of each other in plan and beside one another."""
    u, v = (a1 - a0)[:, :2], (b1 - b0)[:, :2]
    long_u, long_v = np.hypot(*u.T), np.hypot(*v.T)
    both = long_u * long_v
    cosine = np.abs(np.sum(u * v, axis=1)) / np.where(both > 0, both, 1.0)
    # One after the other is not beside: the second's ends, measured along the first, must overlap it.
    unit = u / np.where(long_u > 0, long_u, 1.0)[:, None]
    from_, to = np.sum((b0 - a0)[:, :2] * unit, axis=1), np.sum((b1 - a0)[:, :2] * unit, axis=1)
    overlap = np.minimum(np.maximum(from_, to), long_u) - np.maximum(np.minimum(from_, to), 0)
    found: Bools = (both > 0) & (cosine >= np.cos(np.radians(PARALLEL_WITHIN_DEG))) & (overlap > 0)
    return found


def _required(
    networks: Sequence[Pipes], table: Sequence[Clearance], n1: Indices, e1: Indices, n2: Indices, e2: Indices
) -> tuple[Floats, Floats, NDArray[np.object_]]:  # fmt: skip
    """Horizontal, vertical clearance and mark of each pair; looked up once for those that are alike."""
    horizontal, vertical, mark = np.zeros(len(n1)), np.zeros(len(n1)), np.zeros(len(n1), object)
    known: dict[tuple[object, ...], Clearance] = {}
    for row, (a, i, b, j) in enumerate(zip(n1.tolist(), e1.tolist(), n2.tolist(), e2.tolist(), strict=True)):
        one, other = networks[a], networks[b]
        gas = one if one.network.system == "gas" else other
        pressure_class = gas.pressure_class[i if gas is one else j]
        diameters = (2 * float(one.radius[i]), 2 * float(other.radius[j]))
        key = (a, b, pressure_class, diameters)
        if key not in known:
            known[key] = clearance(table, one.network.system, other.network.system, pressure_class, diameters)
        found = known[key]
        horizontal[row], vertical[row], mark[row] = found.horizontal_m, found.vertical_m, found.mark
    return horizontal, vertical, mark


def _answer(pair: NDArray[np.int32], kind: NDArray[np.int8], figures: Floats, mark: Sequence[str]) -> Conflicts:
    x, y, actual, required = figures.T
    return Conflicts(pair[:, 0], pair[:, 1], pair[:, 2], pair[:, 3], kind, x, y, actual, required, mark)
