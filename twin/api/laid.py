"""What lies in a part of the map, out of all models: pipes and covers as `twin.network` wants them, in metres."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import shapely
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool

from models3d.footprint import footprints
from twin.api.assets import Known, Networks, to_map
from twin.api.errors import Invalid
from twin.city import Geometry, Network, finest
from twin.model import Floats, Indices, Micros
from twin.network.digging import COVERS
from twin.network.pipes import Pipes, class_of
from twin.placing import Box
from twin.plane import LocalPlane
from twin.store import assets as store
from twin.store.assets import StoredAsset
from twin.store.reader import Reader

MOST: Final = 50_000  # assets looked at for one question
PAGE: Final = 5_000  # of them at a time
LINKS: Final = ("pipe", "valve", "pump", "meter", "regulator", "compressor", "weir", "orifice", "outlet", "fitting")
IN_THE_GROUND: Final = (*LINKS, *sorted(COVERS - set(LINKS)))


@dataclass(frozen=True, eq=False)
class Laid:
    """Pipes of a model's network, or of what it has in none, in the metres of a plane. `edge`, `node`: the assets that
    they are; None for a node that was not asked for."""

    pipes: Pipes
    edge: list[StoredAsset]
    node: list[StoredAsset | None]


def around(area: Box, distance_m: float) -> tuple[LocalPlane, Box]:
    """The plane in the middle of a box of the map, and the box with so many metres around."""
    west, south, east, north = area
    plane = LocalPlane((west + east) / 2, (south + north) / 2)
    east_m, north_m = plane.metres_per_degree
    # A degree east is shorter nearer to the pole.
    pole = max(abs(south), abs(north))
    narrow = min(east_m, LocalPlane(0.0, min(pole + distance_m / north_m, 89.0)).metres_per_degree[0])
    across, up = distance_m / narrow, distance_m / north_m
    return plane, (west - across, south - up, east + across, north + up)


def hull(boxes: Sequence[Box]) -> Box:
    """The box around boxes."""
    west, south, east, north = np.array(boxes).T
    return float(west.min()), float(south.min()), float(east.max()), float(north.max())


async def all_in_box(
    reader: Reader, area: Box, most: int, *, types: Sequence[str] = (), models: Sequence[str] = (),
    at: Micros | None = None,
) -> list[StoredAsset]:  # fmt: skip
    """All assets whose box meets `area`, as `store.in_box`, page by page, so that others are answered in between.
    Raises `Invalid` if they are more than `most`."""
    found: list[StoredAsset] = []
    while len(found) <= most:
        after = found[-1].key if found else 0
        some = await store.in_box(reader, area, after, PAGE, types=types, models=models, at=at)
        found += some
        if len(some) < PAGE:
            return found
    raise Invalid("", f"more than {most:,} assets are there: ask for less", f"范围内设施超过 {most:,} 个，请缩小范围")


async def laid_in(
    reader: Reader, networks: Networks, area: Box, plane: LocalPlane, *, types: Sequence[str] = IN_THE_GROUND,
    models: Sequence[str] = (), at: Micros | None = None,
) -> list[Laid]:  # fmt: skip
    """What of `types` has a part in a box of the map, in `models` (in all). Raises `Invalid` if that is too much."""
    found = await all_in_box(reader, area, MOST, types=types, models=models, at=at)
    by_model: dict[str, dict[int, StoredAsset]] = {}
    for asset in found:
        if asset.model is not None:
            by_model.setdefault(asset.model, {})[asset.key] = asset
    result: list[Laid] = []
    for model, assets in sorted(by_model.items()):
        version = await store.version_at(reader, model, at)
        known = [] if version is None else await networks.of(reader, version)
        crs = "" if version is None else (await store.version(reader, version)).crs
        result += await run_in_threadpool(_laid, assets, known, crs, plane)
    return result


def shapes(assets: Sequence[StoredAsset], plane: LocalPlane) -> NDArray[Any]:
    """What each asset covers from above, in the plane's metres; None where that is unknown."""
    found = np.full(len(assets), None, object)
    by_crs: dict[str, list[int]] = {}
    for n, asset in enumerate(assets):
        if asset.packed is not None:
            by_crs.setdefault(asset.crs, []).append(n)
        elif asset.lon is not None and asset.lat is not None:
            x, y = plane.metres(np.array([asset.lon]), np.array([asset.lat]))
            found[n] = shapely.Point(x[0], y[0])
    for crs, at in by_crs.items():
        convert = to_map(crs)
        if convert is not None:

            def to_plane(x: Floats, y: Floats, convert: Any = convert) -> tuple[Floats, Floats]:
                return plane.metres(*convert(x, y))

            found[at] = footprints([finest(assets[n].geometry) for n in at], to_plane)
    return found


def _laid(assets: dict[int, StoredAsset], known: Sequence[Known], crs: str, plane: LocalPlane) -> list[Laid]:
    result = []
    keys = np.array(sorted(assets))
    left = set(assets)
    for one in known:
        edge = np.flatnonzero(np.isin(one.edge_key, keys))
        own = np.flatnonzero(np.isin(one.node_key, keys))
        left -= {*one.edge_key[edge].tolist(), *one.node_key[own].tolist()}
        if len(edge) + len(own):
            result.append(_cut(one, edge, own, assets, crs, plane))
    by_system: dict[str, list[StoredAsset]] = {}
    for key in sorted(left):
        by_system.setdefault(assets[key].system, []).append(assets[key])
    result += [_apart(system, some, plane) for system, some in sorted(by_system.items())]
    return result


def _cut(
    known: Known, edge: NDArray[np.intp], own: NDArray[np.intp], assets: dict[int, StoredAsset], crs: str,
    plane: LocalPlane,
) -> Laid:  # fmt: skip
    """The part of a network that has these edges, their ends, and these nodes."""
    network = known.network
    node = np.unique(np.concatenate((network.start[edge], network.end[edge], own)))
    convert = to_map(crs)
    x = y = np.full(len(node), np.nan)
    if convert is not None:
        x, y = plane.metres(*convert(network.x[node], network.y[node]))
    start, end = (np.searchsorted(node, ends[edge]).astype(np.int32) for ends in (network.start, network.end))
    part = Network(
        network.system,
        [network.node[n] for n in node.tolist()], [network.node_type[n] for n in node.tolist()], x, y,
        network.z[node], network.ground[node], network.demand[node],
        [network.edge[e] for e in edge.tolist()], [network.edge_type[e] for e in edge.tolist()], start, end,
        network.length[edge], network.diameter[edge], network.invert_start[edge], network.invert_end[edge],
        network.direction[edge], network.is_open[edge],
    )  # fmt: skip
    on_edge = [assets[key] for key in known.edge_key[edge].tolist()]
    on_node = [assets.get(key) for key in known.node_key[node].tolist()]
    lines = _lines(on_edge, plane)
    for e, line in enumerate(lines):
        if line is None:
            continue
        # What the network says of heights counts before the drawing; the drawing may run against the flow.
        ends = np.array([[x[start[e]], y[start[e]]], [x[end[e]], y[end[e]]]])
        if np.hypot(*(line[0, :2] - ends[0])) > np.hypot(*(line[-1, :2] - ends[0])):
            line = line[::-1]
        inverts = [
            part.invert_start[e] if np.isfinite(part.invert_start[e]) else part.z[start[e]],
            part.invert_end[e] if np.isfinite(part.invert_end[e]) else part.z[end[e]],
        ]
        lines[e] = line[:, :2] if np.isfinite(inverts).all() else line
    return _told(part, on_edge, on_node, lines)


def _lines(assets: Sequence[StoredAsset], plane: LocalPlane) -> list[Floats | None]:
    """The lines [n, 3] of assets that are drawn as one line."""
    found: list[Floats | None] = []
    for crs_, group in _runs([(asset.crs, finest(asset.geometry)) for asset in assets]):
        convert = to_map(crs_)
        blocks = [
            shape.vertices[shape.boundaries[0]]
            if shape is not None and shape.kind == "MultiLineString" and len(shape.boundaries) == 1
            else np.zeros((0, 3))
            for shape in group
        ]
        points = np.concatenate(blocks)
        if convert is not None and len(points):
            points = np.column_stack((*plane.metres(*convert(points[:, 0], points[:, 1])), points[:, 2]))
        for block in np.split(points, np.cumsum([len(block) for block in blocks])[:-1]):
            is_line = convert is not None and len(block) > 1 and np.isfinite(block[:, :2]).all()
            found.append(block if is_line else None)
    return found


def _runs(told: list[tuple[str, Geometry | None]]) -> list[tuple[str, list[Geometry | None]]]:
    """What follows one another in one CRS."""
    runs: list[tuple[str, list[Geometry | None]]] = []
    for crs, shape in told:
        if not runs or runs[-1][0] != crs:
            runs.append((crs, []))
        runs[-1][1].append(shape)
    return runs


def _apart(system: str, assets: Sequence[StoredAsset], plane: LocalPlane) -> Laid:
    """What is in no network: lines as pipes from end to end; points, and covers, as nodes. Of a pipe with a body only
    its outline from above is known, so that its depth is not."""
    points: list[tuple[float, float]] = []
    types: list[str] = []
    inverts: list[float] = []
    grounds: list[float] = []
    nodes: list[StoredAsset | None] = []
    edges: list[StoredAsset] = []
    lines: list[Floats | None] = []
    drawn = _lines(assets, plane)
    for asset, line, shape in zip(assets, drawn, shapes(assets, plane), strict=True):
        if shape is None or shape.is_empty:
            continue
        if shape.geom_type in ("Point", "MultiPoint") or asset.type in COVERS - {"valve", "meter"}:
            middle = shapely.centroid(shape)
            points.append((middle.x, middle.y))
            types.append(asset.type or "")
            inverts.append(_number(asset, "invert_m"))
            grounds.append(_number(asset, "ground_m"))
            nodes.append(asset)
            continue
        outlines = shapely.get_parts(shapely.boundary(shape) if "Polygon" in shape.geom_type else shape)
        for part in outlines:
            if shapely.get_num_coordinates(part) < 2:
                continue
            found = shapely.get_coordinates(part) if line is None else line
            edges.append(asset)
            lines.append(found)
            for at, name in ((0, "invert_start_m"), (-1, "invert_end_m")):
                points.append((float(found[at, 0]), float(found[at, 1])))
                types.append("junction")
                inverts.append(_number(asset, name))
                grounds.append(_number(asset, "ground_m"))
                nodes.append(None)
    size = len(edges)
    is_end = np.array([node is None for node in nodes], bool)
    start = np.flatnonzero(is_end)[::2].astype(np.int32)
    end: Indices = start + 1
    place = np.array(points).reshape(-1, 2)
    z = np.array(inverts, float)
    part = Network(
        system, [""] * len(nodes), types, place[:, 0], place[:, 1], z, np.array(grounds, float), np.zeros(len(nodes)),
        [asset.id for asset in edges], [asset.type or "" for asset in edges], start, end,
        np.full(size, np.nan), np.array([_number(asset, "diameter_m") for asset in edges], float), z[start], z[end],
        np.zeros(size, np.int8), np.ones(size, bool),
    )  # fmt: skip
    # A line's own heights are the axis'; where it has none they run between the inverts told.
    return _told(part, edges, nodes, lines)


def _told(
    network: Network, edge: list[StoredAsset], node: list[StoredAsset | None], lines: Sequence[Floats | None]
) -> Laid:  # fmt: skip
    is_gas = network.system == "gas"
    pipes = Pipes.of(
        network,
        lines=lines,
        pressure_class=[class_of(a.attributes.get("pressure_class")) if is_gas else "" for a in edge],
        owner=[owner_of(a) for a in edge],
        node_owner=["" if a is None else owner_of(a) for a in node],
        since=_laid_on(edge),
        node_since=_laid_on(node),
    )
    return Laid(pipes, edge, node)


def owner_of(asset: StoredAsset) -> str:
    """Whose it is, as the model says; else the tenant."""
    told = asset.attributes.get("owner")
    return told if isinstance(told, str) and told else asset.tenant


def year_of(asset: StoredAsset) -> int | None:
    told = asset.attributes.get("year")
    try:
        year = int(told) if isinstance(told, int | float | str) else 0
    except ValueError:
        return None
    return year if 1800 <= year <= 2200 else None


def rounded(metres: float) -> float | None:
    """To the millimetre; None where unknown."""
    return round(float(metres), 3) if math.isfinite(metres) else None


def _laid_on(assets: Sequence[StoredAsset | None]) -> NDArray[np.datetime64]:
    """The first day of the year in which each was laid: what is laid this year may be there already."""
    years = [None if asset is None else year_of(asset) for asset in assets]
    return np.array(["NaT" if year is None else f"{year:04}-01-01" for year in years], "datetime64[D]")


def _number(asset: StoredAsset, name: str) -> float:
    told = asset.attributes.get(name)
    return float(told) if isinstance(told, int | float) else float("nan")
