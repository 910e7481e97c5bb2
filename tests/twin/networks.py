"""Small networks for tests: by hand, and for property tests any that can be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from twin.city import Network


def network(
    nodes: Sequence[str] | int,
    edges: Sequence[tuple[int, int]] | Sequence[tuple[int, int, float]] = (),
    *,
    system: str = "water",
    types: dict[int, str] | None = None,
    edge_types: dict[int, str] | None = None,
    closed: Sequence[int] = (),
    one_way: bool | Sequence[int] = (),
    demand: dict[int, float] | None = None,
    xy: Sequence[tuple[float, float]] | None = None,
    z: Sequence[float] | None = None,
    ground: Sequence[float] | None = None,
    diameter: float | Sequence[float] = np.nan,
    inverts: Sequence[tuple[float, float]] | None = None,
) -> Network:
    """Nodes n0, n1, … and edges e0, e1, … from (start, end, length = 1 m); what is not said is a junction, a pipe,
    open, either way, unknown."""
    names = [f"n{n}" for n in range(nodes)] if isinstance(nodes, int) else list(nodes)
    size, many = len(names), len(edges)
    direction = np.zeros(many, np.int8)
    direction[list(range(many)) if one_way is True else list(one_way or ())] = 1
    is_open = np.ones(many, bool)
    is_open[list(closed)] = False
    where = np.array(xy, float).reshape(size, 2) if xy is not None else np.full((size, 2), np.nan)
    levels = np.array(inverts, float).reshape(many, 2) if inverts is not None else np.full((many, 2), np.nan)
    taken = np.zeros(size)
    for n, amount in (demand or {}).items():
        taken[n] = amount
    return Network(
        system=system,
        node=names,
        node_type=[(types or {}).get(n, "junction") for n in range(size)],
        x=where[:, 0],
        y=where[:, 1],
        z=np.full(size, np.nan) if z is None else np.array(z, float),
        ground=np.full(size, np.nan) if ground is None else np.array(ground, float),
        demand=taken,
        edge=[f"e{n}" for n in range(many)],
        edge_type=[(edge_types or {}).get(n, "pipe") for n in range(many)],
        start=np.array([e[0] for e in edges], np.int32),
        end=np.array([e[1] for e in edges], np.int32),
        length=np.array([e[2] if len(e) > 2 else 1.0 for e in edges], float),
        diameter=np.broadcast_to(np.asarray(diameter, float), many).copy(),
        invert_start=levels[:, 0],
        invert_end=levels[:, 1],
        direction=direction,
        is_open=is_open,
    )


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Up to 9 nodes and 16 edges: loops, parallel edges, edges from a node to itself, zero lengths, valves of both
    sorts, pumps, closed pipes, several sources or none."""
    size = draw(st.integers(1, 9))
    end = st.integers(0, size - 1)
    edges = draw(st.lists(st.tuples(end, end, st.sampled_from([0.0, 1.0, 2.0, 2.5])), max_size=16))
    kinds = draw(st.lists(st.sampled_from(["junction"] * 4 + ["valve", "reservoir"]), min_size=size, max_size=size))
    many = len(edges)
    edge_kinds = draw(
        st.lists(st.sampled_from(["pipe"] * 3 + ["valve", "valve", "pump"]), min_size=many, max_size=many)
    )
    one_way = draw(st.sets(st.integers(0, many - 1), max_size=many)) if many else set()
    closed = draw(st.sets(st.integers(0, many - 1), max_size=many // 3)) if many else set()
    return network(
        size, edges, types=dict(enumerate(kinds)), edge_types=dict(enumerate(edge_kinds)), closed=sorted(closed),
        one_way=sorted(one_way), demand=dict.fromkeys(range(size), 1.0),
    )  # fmt: skip
