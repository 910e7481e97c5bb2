"""The pipes of a network as lines in space: where they lie, how thick they are, under what pressure, whose they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from twin.city import Network
from twin.model import Bools, Floats, Indices

Days = NDArray[np.datetime64]
# Gas by pressure, GB 50028 [M]: to 0.01, 0.4, 0.8, 1.6, 4 MPa.
PRESSURE_CLASSES: Final = ("low", "medium", "sub_high_b", "sub_high_a", "high")
_LIMITS_MPA: Final = (0.01, 0.4, 0.8, 1.6)
_WORDS: Final = {"低压": "low", "中压": "medium", "次高压b": "sub_high_b", "次高压a": "sub_high_a",
                 "次高压": "sub_high_a", "高压": "high"}  # fmt: skip
_UNITS_MPA: Final = {"mpa": 1.0, "kpa": 1e-3, "bar": 0.1}


def class_of(told: object) -> str:
    """The class of `PRESSURE_CLASSES` that a gas pipe's attribute tells of: the class itself, its Chinese name (中压A
    and 中压B are both medium), or a pressure with its unit (`0.2MPa`); "" for anything else."""
    text = re.sub(r"[\s_-]", "", str(told).lower())
    named = {name.replace("_", ""): name for name in PRESSURE_CLASSES} | _WORDS
    if (name := named.get(text) or named.get(text.rstrip("ab"))) is not None:
        return name
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(mpa|kpa|bar)", text)
    if found is None:
        return ""
    pressure = float(found[1]) * _UNITS_MPA[found[2]]
    return PRESSURE_CLASSES[int(np.searchsorted(_LIMITS_MPA, pressure - 1e-9))]


@dataclass(frozen=True, slots=True, eq=False)
class Pipes:
    """The edges of `network` as lines through `point` [P, 3] (metres; z the axis' height, NaN where unknown): edge e is
    `point[first[e]:first[e + 1]]`. `ground` [P]: the ground's level above. `radius` [E] 0 where unknown.
    `pressure_class` [E]: of `PRESSURE_CLASSES`, "" where unknown. `owner`, `node_owner`: whose they are. `since`,
    `until` (and `node_since`, `node_until`): the days they were laid and taken up, NaT where unknown."""

    network: Network
    point: Floats
    first: Indices
    ground: Floats
    radius: Floats
    pressure_class: Sequence[str]
    owner: Sequence[str]
    node_owner: Sequence[str]
    since: Days
    until: Days
    node_since: Days
    node_until: Days

    @classmethod
    def of(
        cls,
        network: Network,
        *,
        lines: Sequence[Floats | None] | None = None,
        pressure_class: Sequence[str] = (),
        owner: Sequence[str] = (),
        node_owner: Sequence[str] = (),
        since: Days | None = None,
        until: Days | None = None,
        node_since: Days | None = None,
        node_until: Days | None = None,
    ) -> Pipes:
        """Straight from node to node, but for those with a line [n, 2 or 3] of `lines` [E] from start to end, whose
        heights are taken for the axis'. Else the axis lies half a diameter above the inverts, which are the nodes' `z`
        where the edge has none."""
        edges, nodes = len(network.edge), len(network.node)
        start, end = network.start, network.end
        radius = np.nan_to_num(network.diameter) / 2
        ends = np.empty((edges, 2, 3))
        ground = np.empty((edges, 2))
        for side, node, invert in ((0, start, network.invert_start), (1, end, network.invert_end)):
            ends[:, side, 0], ends[:, side, 1] = network.x[node], network.y[node]
            ends[:, side, 2] = np.where(np.isfinite(invert), invert, network.z[node]) + radius
            ground[:, side] = network.ground[node]
        first = np.arange(edges + 1, dtype=np.int32) * 2
        point, level = ends.reshape(-1, 3), ground.reshape(-1)
        if lines is not None and any(line is not None for line in lines):
            bent = [ends[e] if line is None else _heights(line, ends[e]) for e, line in enumerate(lines)]
            level = np.concatenate(
                [ground[e] if lines[e] is None else _between(line, ground[e]) for e, line in enumerate(bent)]
            )
            first = np.append(0, np.cumsum([len(line) for line in bent])).astype(np.int32)
            point = np.concatenate(bent)

        def days(given: Days | None, size: int) -> Days:
            return np.full(size, "NaT", "datetime64[D]") if given is None else given.astype("datetime64[D]")

        return cls(
            network, point, first, level, radius, pressure_class or [""] * edges, owner or [""] * edges,
            node_owner or [""] * nodes, days(since, edges), days(until, edges), days(node_since, nodes),
            days(node_until, nodes),
        )  # fmt: skip

    def pieces(self) -> tuple[Indices, Floats, Floats]:
        """The straight pieces of all lines with a place in the plane: edge [S], and ends [S, 3], [S, 3]."""
        edge = np.repeat(np.arange(len(self.first) - 1, dtype=np.int32), np.diff(self.first))
        begins = np.flatnonzero(edge[1:] == edge[:-1]) if len(edge) else np.zeros(0, np.intp)
        known: Bools = np.all(np.isfinite(self.point[:, :2]), axis=1)
        begins = begins[known[begins] & known[begins + 1]]
        return edge[begins], self.point[begins], self.point[begins + 1]


def _between(line: Floats, ends: Floats) -> Floats:
    """Values at the points of `line` [n, …], between those at its two ends by the way along it in the plane."""
    along = np.append(0.0, np.cumsum(np.hypot(*np.diff(line[:, :2], axis=0).T)))
    found: Floats = ends[0] + (ends[1] - ends[0]) * (along / along[-1] if along[-1] > 0 else 0.0)
    return found


def _heights(line: Floats, ends: Floats) -> Floats:
    """`line` with the heights between those of its ends where it has none itself."""
    z: Any = line[:, 2] if line.shape[1] > 2 else np.full(len(line), np.nan)
    return np.column_stack((line[:, :2], np.where(np.isfinite(z), z, _between(line, ends[:, 2]))))
