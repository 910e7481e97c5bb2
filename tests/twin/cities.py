"""Small city models for tests, and a large one for measuring."""

from __future__ import annotations

from typing import Any

import numpy as np

from twin.city import Asset, CityModel, Geometry, Network

CRS = "EPSG:4547"  # CGCS2000 / 3-degree Gauss-Kruger CM 114E
EAST, NORTH = 505_000.0, 2_493_000.0  # a place in Shenzhen


def pipes(
    nodes: dict[str, tuple[float, float]],
    edges: dict[str, tuple[str, str]],
    valves: frozenset[str] = frozenset(),
    crs: str = CRS,
    **attributes: Any,
) -> CityModel:
    """A water network: nodes at (east, north) from the place above, and pipes; those in `valves` are valves."""
    at = {local: (EAST + x, NORTH + y) for local, (x, y) in nodes.items()}
    assets = [
        Asset(n, "junction", "node", "JUNCTION", name_zh=f"节点{n}", attributes={"invert_m": 1.5, **attributes},
              geometry=(Geometry.point(*at[n], 1.5),), system="water")
        for n in nodes
    ]  # fmt: skip
    assets += [
        Asset(e, "valve" if e in valves else "pipe", "link", "VALVE" if e in valves else "PIPE",
              attributes={"diameter_m": 0.3}, system="water",
              geometry=(Geometry.line(np.array([[*at[a], np.nan], [*at[b], np.nan]])),))
        for e, (a, b) in edges.items()
    ]  # fmt: skip
    names = list(nodes)
    xy = np.array([at[n] for n in names])
    n, e = len(names), len(edges)
    network = Network(
        "water", names, ["junction"] * n, xy[:, 0], xy[:, 1], np.full(n, 1.5), np.full(n, np.nan), np.zeros(n),
        list(edges), ["valve" if edge in valves else "pipe" for edge in edges],
        np.array([names.index(a) for a, _ in edges.values()], np.int32),
        np.array([names.index(b) for _, b in edges.values()], np.int32),
        np.full(e, 100.0), np.full(e, 0.3), np.full(e, np.nan), np.full(e, np.nan), np.zeros(e, np.int8),
        np.ones(e, bool),
    )  # fmt: skip
    return CityModel("epanet", assets, [network], crs, metadata={"title": ["试验"]})


def house(local: str, x: float, y: float, size: float = 10.0, height: float = 9.0, **more: Any) -> Asset:
    """A block with its south-west corner at (x, y) metres from the place above: walls, floor, roof (LoD2)."""
    e, n = EAST + x, NORTH + y
    floor = np.array([[e, n, 0.0], [e + size, n, 0.0], [e + size, n + size, 0.0], [e, n + size, 0.0]])
    vertices = np.concatenate([floor, floor + np.array([0, 0, height])])
    faces = [[[0, 3, 2, 1]], [[4, 5, 6, 7]], *([[k, (k + 1) % 4, 4 + (k + 1) % 4, 4 + k]] for k in range(4))]
    semantics = {"surfaces": [{"type": t} for t in ("GroundSurface", "RoofSurface", "WallSurface")],
                 "values": [[0, 1, 2, 2, 2, 2]]}  # fmt: skip
    return Asset(
        local, "building", element="Building", level=2, attributes={"height_m": height},
        geometry=(Geometry("Solid", vertices, [faces], "2.2", semantics),), **more,
    )  # fmt: skip


def city(buildings: int, pipes_: int) -> CityModel:
    """Buildings and pipes on a square, for measuring."""
    side = int(np.ceil(np.sqrt(buildings)))
    assets = [house(f"b{n}", 30.0 * (n % side), 30.0 * (n // side)) for n in range(buildings)]
    width = int(np.ceil(np.sqrt(pipes_)))
    count = width * width
    x, y = EAST + 10.0 * (np.arange(count) % width), NORTH + 10.0 * (np.arange(count) // width)
    start = np.arange(pipes_, dtype=np.int32)
    end = np.where(start % width == width - 1, (start + width) % count, start + 1).astype(np.int32)
    nodes = [f"n{n}" for n in range(count)]
    edges = [f"p{n}" for n in range(pipes_)]
    assets += [
        Asset(nodes[n], "manhole", "node", "JUNCTION", attributes={"invert_m": 2.0, "ground_m": 4.0},
              geometry=(Geometry.point(float(x[n]), float(y[n]), 2.0),), system="drainage")
        for n in range(count)
    ]  # fmt: skip
    assets += [
        Asset(edges[n], "pipe", "link", "CONDUIT", attributes={"diameter_m": 0.4, "length_m": 10.0, "year": 2001},
              geometry=(Geometry.line(np.array([[x[start[n]], y[start[n]], 2.0], [x[end[n]], y[end[n]], 1.9]])),),
              system="drainage")
        for n in range(pipes_)
    ]  # fmt: skip
    nan = np.full
    network = Network(
        "drainage", nodes, ["manhole"] * count, x, y, nan(count, 2.0), nan(count, 4.0), np.zeros(count), edges,
        ["pipe"] * pipes_, start, end, nan(pipes_, 10.0), nan(pipes_, 0.4), nan(pipes_, 2.0), nan(pipes_, 1.9),
        np.ones(pipes_, np.int8), np.ones(pipes_, bool),
    )  # fmt: skip
    return CityModel("swmm", assets, [network], CRS)
