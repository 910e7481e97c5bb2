"""3D Tiles 1.1 of a model: a tree of squares, each tile with a GLB a class of what it shows first.

A tile shows the largest features of its square, its four children the rest (refinement `ADD`); so a tile's geometric
error is the size of the largest feature that is missing while its children are not drawn. Heights are taken as
ellipsoidal: no geoid is subtracted. A model without a CRS is told in its own plane coordinates.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models3d import crs as coordinates
from models3d.geometry import Mesh, prism, shafts, surfaces, tubes
from models3d.writers import glb
from twin.city import Asset, Geometry, finest
from twin.model import Floats, Ints

ROOT: Final = "tileset.json"
FURTHEST_M: Final = 500_000.0  # from where most of the model is; what is further, or nowhere, is left out
TILE_FEATURES: Final = 1500  # shown by one tile, at most
MAX_DEPTH: Final = 12
CLASSES: Final = ("building", "bridge", "pipe", "manhole", "other")
FLOOR_M: Final = 3.0  # a storey, where only their number is known (engineering default)
BUILDING_M: Final = 3.0  # a building of which neither is known
PIPE_M: Final = 0.3  # a pipe of unknown diameter
SHAFT_M: Final = 0.8  # a manhole's shaft, and how deep one of unknown depth is drawn
FITTING_M: Final = 0.5  # a node that is no shaft: where pipes of a pressurised network meet
# By system, as survey drawings colour them where they are usual (water blue, rain and sewage brown, gas pink, heat
# orange, power red, telecom green); linear RGB.
COLOURS: Final[dict[str, glb.Colour]] = {
    "water": (0.02, 0.22, 0.85, 1.0),
    "drainage": (0.25, 0.12, 0.04, 1.0),
    "gas": (0.85, 0.05, 0.45, 1.0),
    "heat": (0.85, 0.25, 0.02, 1.0),
    "power": (0.80, 0.02, 0.02, 1.0),
    "telecom": (0.02, 0.45, 0.10, 1.0),
}
_PLAIN: Final[dict[str, glb.Colour]] = {
    "building": (0.72, 0.70, 0.66, 1.0),
    "bridge": (0.45, 0.47, 0.50, 1.0),
    "pipe": (0.30, 0.30, 0.32, 1.0),
    "manhole": (0.20, 0.20, 0.22, 1.0),
    "other": (0.50, 0.58, 0.45, 1.0),
}
_CLASS: Final = {
    "building": "building", "building_part": "building", "building_installation": "building",
    "bridge": "bridge", "bridge_part": "bridge", "pipe": "pipe", "manhole": "manhole",
}  # fmt: skip
_FITTINGS: Final = frozenset(("junction", "valve", "fitting", "consumer", "source", "meter", "hydrant"))
_EDGES: Final = frozenset(("pipe", "pump", "valve", "weir", "orifice", "outlet", "compressor", "regulator", "fitting"))


@dataclass(frozen=True, slots=True)
class Feature:
    """What a tile shows: an asset under the id that the service knows it by."""

    id: str
    asset: Asset


def write(features: Sequence[Feature], crs: str, name: str, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    """`(path, bytes)` of every file, `tileset.json` last. `crs`: of the geometries, "" for none. `prefix`: put before
    the paths of the others where `tileset.json` names them."""
    ordered = sorted(features, key=lambda f: f.id)
    frame = _Frame.of(ordered, crs)
    shapes = _Shapes(ordered, frame)
    places = np.flatnonzero(shapes.has_shape)
    if len(places):
        low, high = shapes.low[places, :2].min(axis=0), shapes.high[places, :2].max(axis=0)
        side = float(max(*(high - low), 1.0))
        corner = (low + high) / 2 - side / 2
        root, files = _tile(shapes, places, corner, side, "0", prefix)
        yield from files
    else:
        root = {"boundingVolume": {"box": [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]}, "geometricError": 0.0}
    if frame.transform is not None:
        root["transform"] = frame.transform
    error = max(float(shapes.size[places].max(initial=0.0)), root["geometricError"])
    tileset = {
        "asset": {"version": "1.1", "generator": "cimtwin", "extras": {"name": name}},
        "geometricError": round(error, 3),
        "root": root | {"refine": "ADD"},
    }
    yield ROOT, json.dumps(tileset, ensure_ascii=False, separators=(",", ":")).encode()


def _tile(
    shapes: _Shapes, places: Ints, corner: Floats, side: float, path: str, prefix: str
) -> tuple[dict[str, Any], list[tuple[str, bytes]]]:
    """A tile and its files, with all below it."""
    own, rest = places, places[:0]
    if len(places) > TILE_FEATURES and len(path) <= MAX_DEPTH:
        order = np.argsort(-shapes.size[places], kind="stable")
        own, rest = np.sort(places[order[:TILE_FEATURES]]), np.sort(places[order[TILE_FEATURES:]])
    files: list[tuple[str, bytes]] = []
    contents = []
    for start in range(0, len(own), glb.MAX_FEATURES):
        part = own[start : start + glb.MAX_FEATURES]
        for number, class_ in enumerate(CLASSES):
            chosen = part[shapes.class_[part] == number]
            if len(chosen):
                file = f"{path}-{class_}{f'-{start}' if start else ''}.glb"
                files.append((file, shapes.glb(chosen, class_)))
                contents.append({"uri": prefix + file})
    children = []
    half = side / 2
    middle = corner + half
    at = (shapes.low[rest, :2] + shapes.high[rest, :2]) / 2
    quarter = (at[:, 0] >= middle[0]) + 2 * (at[:, 1] >= middle[1])
    for number in range(4):
        chosen = rest[quarter == number]
        if len(chosen):
            offset = np.array([number % 2, number // 2]) * half
            child, more = _tile(shapes, chosen, corner + offset, half, f"{path}{number}", prefix)
            children.append(child)
            files += more
    low, high = shapes.low[places].min(axis=0), shapes.high[places].max(axis=0)
    centre, reach = (low + high) / 2, np.maximum((high - low) / 2, 0.01)
    box = [*centre.tolist(), reach[0], 0, 0, 0, reach[1], 0, 0, 0, reach[2]]
    tile: dict[str, Any] = {
        "boundingVolume": {"box": [round(float(v), 3) for v in box]},
        "geometricError": round(float(shapes.size[rest].max(initial=0.0)), 3),
        "contents": contents,
    }
    if children:
        tile["children"] = children
    return tile, files


@dataclass(frozen=True, slots=True, eq=False)
class _Frame:
    """A local frame, metres east, north and up. `transform`: from it to the earth's centred frame, column by column;
    None where nothing is placed on earth."""

    crs: coordinates.Crs | None
    origin: Floats
    transform: list[float] | None

    @classmethod
    def of(cls, features: Sequence[Feature], crs: str) -> _Frame:
        # Its origin is where most things are: one coordinate gone wrong does not move it.
        firsts = [g.vertices[0, :2] for f in features for g in f.asset.geometry if len(g.vertices)]
        sound = np.array([first for first in firsts if np.isfinite(first).all()])
        middle = np.array([*(np.median(sound, axis=0) if len(sound) else (0.0, 0.0)), 0.0])
        if not crs:
            return cls(None, middle, None)
        known = coordinates.parse(crs)
        lon, lat = known.to_map(middle[:1], middle[1:2])
        if not (np.isfinite(lon[0]) and np.isfinite(lat[0])):
            return cls(None, middle, None)
        east, north, up = _axes(np.radians(lon), np.radians(lat))
        origin = _centred(lon, lat, np.zeros(1))[0]
        columns = [*east[0], 0, *north[0], 0, *up[0], 0, *origin, 1]
        return cls(known, np.array([lon[0], lat[0], 0.0]), [float(v) for v in columns])

    def local(self, vertices: Floats) -> Floats:
        """Coordinates of the CRS in this frame; a height that is not known is 0."""
        height = np.nan_to_num(vertices[:, 2])
        if self.crs is None or self.transform is None:
            return np.column_stack([vertices[:, :2] - self.origin[:2], height])
        lon, lat = self.crs.to_map(vertices[:, 0], vertices[:, 1])
        away = _centred(lon, lat, height) - np.array(self.transform[12:15])
        turn = np.array(self.transform).reshape(4, 4)[:3, :3]
        return np.asarray(away @ turn.T)


_A: Final = 6378137.0  # WGS 84
_E2: Final = 6.69437999014e-3


def _centred(lon: Floats, lat: Floats, height: Floats) -> Floats:
    """Earth-centred coordinates of degrees and metres, WGS 84."""
    x, y = np.radians(lon), np.radians(lat)
    normal = _A / np.sqrt(1 - _E2 * np.sin(y) ** 2)
    flat = (normal + height) * np.cos(y)
    return np.column_stack([flat * np.cos(x), flat * np.sin(x), (normal * (1 - _E2) + height) * np.sin(y)])


def _axes(lon: Floats, lat: Floats) -> tuple[Floats, Floats, Floats]:
    """Unit vectors east, north and up at radians."""
    zero = np.zeros_like(lon)
    east = np.column_stack([-np.sin(lon), np.cos(lon), zero])
    north = np.column_stack([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)])
    up = np.column_stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
    return east, north, up


class _Shapes:
    """The triangles of all features, and by feature `low`, `high` [F, 3], `size` (its diagonal), `class_`."""

    def __init__(self, features: Sequence[Feature], frame: _Frame) -> None:
        self._features = features
        n = len(features)
        self.class_: NDArray[np.int8] = np.array(
            [CLASSES.index(_CLASS.get(f.asset.type, "pipe" if f.asset.type in _EDGES else "other")) for f in features],
            np.int8,
        )
        mesh = _meshes(features, frame)
        order = np.argsort(mesh.part[mesh.triangle[:, 0]], kind="stable") if len(mesh.triangle) else np.empty(0, int)
        self._triangle = mesh.triangle[order]
        self._mesh = mesh
        of = mesh.part[self._triangle[:, 0]] if len(self._triangle) else np.empty(0, np.int64)
        self._begin = np.searchsorted(of, np.arange(n + 1))
        drawn = np.diff(self._begin) > 0
        self.low, self.high = np.full((n, 3), np.inf), np.full((n, 3), -np.inf)
        by_part = np.argsort(mesh.part, kind="stable")
        if len(by_part):
            parts, first = np.unique(mesh.part[by_part], return_index=True)
            self.low[parts] = np.minimum.reduceat(mesh.position[by_part], first)
            self.high[parts] = np.maximum.reduceat(mesh.position[by_part], first)
        away = np.maximum(np.abs(self.low), np.abs(self.high)).max(axis=1, initial=0.0)
        self.has_shape = drawn & (away <= FURTHEST_M)
        self.size = np.zeros(n)
        shown = self.has_shape
        self.size[shown] = np.linalg.norm(self.high[shown] - self.low[shown], axis=1)

    def glb(self, chosen: Ints, class_: str) -> bytes:
        """The file of some features of one class."""
        assets = [self._features[place].asset for place in chosen.tolist()]
        colours: dict[str, list[int]] = {}
        for row, asset in enumerate(assets):
            colours.setdefault(asset.system if asset.system in COLOURS else "", []).append(row)
        pieces = []
        for system, rows in sorted(colours.items()):
            colour = COLOURS.get(system, _PLAIN[class_])
            pieces.append(glb.Piece(colour, self._part(chosen, np.array(rows, np.int64))))
        table: glb.Table = {
            "id": [self._features[place].id for place in chosen.tolist()],
            "type": [a.type for a in assets],
            "name": [a.name_zh or a.name_en for a in assets],
            "level": [f"CIM{a.level}" if a.level else "" for a in assets],
            "system": [a.system for a in assets],
        }
        return glb.write(pieces, table, class_)

    def _part(self, chosen: Ints, rows: Ints) -> Mesh:
        """The triangles of `chosen[rows]`, with rows as part numbers."""
        begin, count = self._begin[chosen[rows]], np.diff(self._begin)[chosen[rows]]
        ends = np.cumsum(count)
        place = np.arange(ends[-1]) + np.repeat(begin - (ends - count), count)
        triangle = self._triangle[place]
        used, inverse = np.unique(triangle, return_inverse=True)
        row_of = np.zeros(len(self._features), np.int64)
        row_of[chosen[rows]] = rows
        mesh = self._mesh
        return Mesh(mesh.position[used], mesh.normal[used], row_of[mesh.part[used]], inverse.reshape(-1, 3))


def _meshes(features: Sequence[Feature], frame: _Frame) -> Mesh:
    solid_vertices: list[Floats] = []
    polygons: list[list[list[int]]] = []
    polygon_of: list[int] = []
    lines: list[Floats] = []
    line_of: list[int] = []
    points: list[Floats] = []
    point_of: list[int] = []
    offset = 0
    raised: list[tuple[int, Geometry, float]] = []
    for number, feature in enumerate(features):
        asset = feature.asset
        geometry = finest(asset.geometry)
        if geometry is None or not len(geometry.vertices):
            continue
        if geometry.kind == "MultiPoint":
            if asset.group == "node" or asset.type in ("manhole", "valve", "hydrant", "inlet"):
                points.append(geometry.vertices[:1])
                point_of.append(number)
        elif geometry.kind == "MultiLineString":
            if asset.group == "link" or asset.type in _EDGES:
                for line in geometry.boundaries:
                    if len(line) > 1:
                        lines.append(geometry.vertices[line])
                        line_of.append(number)
        else:
            shape = geometry.surfaces
            height = _height(asset, geometry)
            if height > 0:
                raised.append((number, geometry, height))
                continue
            solid_vertices.append(geometry.vertices)
            if offset:
                shape = [[[place + offset for place in ring] for ring in surface] for surface in shape]
            polygons += shape
            polygon_of += [number] * len(shape)
            offset += len(geometry.vertices)
    meshes = []
    if polygons:
        meshes.append(surfaces(frame.local(np.concatenate(solid_vertices)), polygons, polygon_of))
    if raised:
        meshes.append(_raised(raised, frame))
    if lines:
        meshes.append(_pipes(features, lines, line_of, frame))
    if points:
        meshes.append(_nodes(features, points, point_of, frame))
    return Mesh.join(meshes)


def _height(asset: Asset, geometry: Geometry) -> float:
    """How high to raise a building that is a footprint only, 0 for what has a shape of its own (m)."""
    if asset.type not in ("building", "building_part") or geometry.kind not in ("MultiSurface", "CompositeSurface"):
        return 0.0
    z = np.nan_to_num(geometry.vertices[:, 2])
    if z.max() - z.min() > 0.01:
        return 0.0
    height, floors = (_number(asset.attributes.get(name)) for name in ("height_m", "floors"))
    if height > 0:
        return height
    return floors * FLOOR_M if floors > 0 else BUILDING_M


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else float("nan")


def _raised(raised: list[tuple[int, Geometry, float]], frame: _Frame) -> Mesh:
    where = frame.local(np.concatenate([geometry.vertices for _, geometry, _ in raised]))
    vertices: list[Floats] = []
    polygons: list[list[list[int]]] = []
    polygon_of: list[int] = []
    begin = offset = 0
    for number, geometry, height in raised:
        base = where[begin : begin + len(geometry.vertices)]
        begin += len(geometry.vertices)
        for surface in geometry.surfaces:
            points, walls = prism(base, surface, height)
            vertices.append(points)
            polygons += [[[place + offset for place in ring] for ring in wall] for wall in walls]
            polygon_of += [number] * len(walls)
            offset += len(points)
    return surfaces(np.concatenate(vertices), polygons, polygon_of)


def _pipes(features: Sequence[Feature], lines: list[Floats], line_of: list[int], frame: _Frame) -> Mesh:
    """Tubes at their depth: where inverts are known the axis lies half a diameter above the line between them, else
    the geometry's own heights are the axis."""
    count = np.array([len(line) for line in lines])
    where = frame.local(np.concatenate(lines))
    attributes = [features[number].asset.attributes for number in line_of]
    height = np.array([_number(a.get("diameter_m")) for a in attributes])
    height = np.where(height > 0, height, PIPE_M)
    width = np.array([_number(a.get("width_m")) for a in attributes])
    is_box = (width > 0) & np.array([str(a.get("shape", "")).upper().startswith("RECT") for a in attributes])
    width = np.where(is_box, width, height)
    inverts = np.array([[_number(a.get("invert_start_m")), _number(a.get("invert_end_m"))] for a in attributes])
    known = np.isfinite(inverts).all(axis=1)
    start = np.cumsum(count) - count
    step = np.zeros(len(where))
    step[1:] = np.linalg.norm(where[1:, :2] - where[:-1, :2], axis=1)
    step[start] = 0
    along = np.cumsum(step)
    along -= np.repeat(along[start], count)
    whole = along[start + count - 1]
    share = along / np.maximum(np.repeat(whole, count), 1e-9)
    first, last = np.repeat(inverts[:, 0], count), np.repeat(inverts[:, 1], count)
    axis = first + (last - first) * share + np.repeat(height / 2, count)
    where[:, 2] = np.where(np.repeat(known, count), axis, where[:, 2])
    mesh = tubes(where, count, width, height, is_box)
    return Mesh(mesh.position, mesh.normal, np.array(line_of, np.int64)[mesh.part], mesh.triangle)


def _nodes(features: Sequence[Feature], points: list[Floats], point_of: list[int], frame: _Frame) -> Mesh:
    """Shafts from the ground to the invert; what has only one height is drawn `SHAFT_M` deep below it. Of a pressurised
    network, where there are no shafts, short pieces around the pipe."""
    where = frame.local(np.concatenate(points))
    attributes = [features[number].asset.attributes for number in point_of]
    ground = np.array([_number(a.get("ground_m")) for a in attributes])
    invert = np.array([_number(a.get("invert_m")) for a in attributes])
    depth = np.array([_number(a.get("depth_m")) for a in attributes])
    top = np.where(
        np.isfinite(ground), ground, np.where(np.isfinite(invert) & (depth > 0), invert + depth, where[:, 2])
    )
    bottom = np.where(np.isfinite(invert), invert, np.where(depth > 0, top - depth, top - SHAFT_M))
    bottom = np.minimum(bottom, top - 0.05)
    upper, lower = where.copy(), where.copy()
    upper[:, 2], lower[:, 2] = top, bottom
    size = np.array([_number(a.get("diameter_m")) for a in attributes])
    is_wide = np.array([features[number].asset.type in ("tank", "storage", "reservoir") for number in point_of])
    size = np.where(is_wide & (size > 0), size, SHAFT_M)
    is_fitting = np.array([features[number].asset.type in _FITTINGS for number in point_of])
    size = np.where(is_fitting, FITTING_M, size)
    upper[:, 2] = np.where(is_fitting, where[:, 2] + FITTING_M / 2, upper[:, 2])
    lower[:, 2] = np.where(is_fitting, where[:, 2] - FITTING_M / 2, lower[:, 2])
    mesh = shafts(upper, lower, size)
    return Mesh(mesh.position, mesh.normal, np.array(point_of, np.int64)[mesh.part], mesh.triangle)
