"""The city's model, as files bring it and the store keeps it: assets with their geometry, and the networks that pipes
and manholes make. Readers (`models3d.readers`) build a `CityModel`, the store keeps its versions, `twin.network`
answers questions about a `Network`, writers (`models3d.writers`) tell it to others. Values only, no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from twin.model import Bools, Floats, Indices, Problem, Refused

# What an asset can be. A file's own word for it stays in `Asset.element`.
ASSET_TYPES: Final = (
    "building", "building_part", "building_installation", "bridge", "bridge_part", "tunnel", "tunnel_part",
    "pipe", "junction", "manhole", "valve", "pump", "tank", "reservoir", "outfall", "storage", "divider", "weir",
    "orifice", "outlet", "inlet", "hydrant", "meter", "fitting", "compressor", "regulator", "source", "consumer",
    "subcatchment", "gauge", "road", "railway", "furniture", "vegetation", "terrain", "water_body", "land_use",
    "zone", "group", "other",
)  # fmt: skip
# The systems that pipes belong to, with the survey's two-letter codes (CJJ 61; domain notes, marked V or M).
SYSTEMS: Final = {
    "water": ("JS",),
    "drainage": ("PS", "YS", "WS", "HS"),
    "gas": ("RQ", "TR", "MQ", "YH"),
    "heat": ("RL", "RS", "ZQ"),
    "power": ("DL", "GD", "LD"),
    "telecom": ("TX", "XH"),
    "industry": ("GY",),
    "other": ("ZH", "BM"),
}
# How deep the lists of `Geometry.boundaries` lie, by kind: the last level holds indices of vertices.
DEPTHS: Final = {
    "MultiPoint": 1, "MultiLineString": 2, "MultiSurface": 3, "CompositeSurface": 3, "Solid": 4, "MultiSolid": 5,
    "CompositeSolid": 5,
}  # fmt: skip


class InvalidModel(Refused):
    """A model file with mistakes; places name file and line, or file and object."""


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """One representation of an asset's shape.

    `kind` and `boundaries` as in CityJSON (a key of `DEPTHS`; rings without the first point repeated, the outer one
    first), but over the geometry's own `vertices` [N, 3]: coordinates as the model's CRS has them (x = easting or
    longitude, y = northing or latitude), z the height, NaN where the file knows none. `lod` as in the file, "" if none.
    `semantics`, `extra`: CityJSON's `semantics` object, and its other members (materials, textures), kept as they are.
    """

    kind: str
    vertices: Floats
    boundaries: list[Any]
    lod: str = ""
    semantics: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def surfaces(self) -> list[list[list[int]]]:
        """The surfaces, of solids those of all shells, each a list of rings; none of points and lines."""
        found: list[Any] = self.boundaries
        for _ in range(DEPTHS[self.kind] - 3):
            found = [surface for part in found for surface in part]
        return found if DEPTHS[self.kind] >= 3 else []

    @classmethod
    def point(cls, x: float, y: float, z: float = float("nan"), lod: str = "") -> Geometry:
        return cls("MultiPoint", np.array([[x, y, z]]), [0], lod)

    @classmethod
    def line(cls, vertices: Floats, lod: str = "") -> Geometry:
        """A line through `vertices` [N, 3]."""
        return cls("MultiLineString", vertices, [list(range(len(vertices)))], lod)


def finest(geometry: Sequence[Geometry]) -> Geometry | None:
    """The geometry of the highest level of detail; the first of several."""
    return max(geometry, key=lambda g: g.lod, default=None)


@dataclass(frozen=True, slots=True)
class Asset:
    """A thing of the city, as one model file tells of it.

    `local`: its id in the file, unique within its `group` (`node`, `link`, `area` for network files, whose nodes and
    links may share ids; else `object`). `type`: one of `ASSET_TYPES`; `element`: the file's own word (`JUNCTION`,
    `CONDUIT`, `BuildingPart`, `IfcPipeSegment`, `PSPoint`). `attributes`: what else the file says, JSON-able, under the
    file's names, and, converted, under ours: `diameter_m`, `length_m`, `material`, `year`, `invert_m`,
    `invert_start_m`, `invert_end_m`, `ground_m`, `depth_m`, `pressure_class`, `owner`, `floors`, `height_m`.
    `parent`: the `local` of the asset it is part of. `level`: of CIM, 1-7, 0 if not said. `area`: administrative
    area as a path `district/street/grid`. `code`: the survey's 部件码 (16 digits) or 井盖号 (19). `system`: a key of
    `SYSTEMS` for what belongs to a network. `tenant`: "" for the import's.
    """

    local: str
    type: str
    group: str = "object"
    element: str = ""
    name_zh: str = ""
    name_en: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    geometry: tuple[Geometry, ...] = ()
    parent: str = ""
    level: int = 0
    area: str = ""
    code: str = ""
    system: str = ""
    tenant: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """The pipes of one system as a graph, in columns.

    Nodes (N): `node` their `Asset.local` (group `node`), `node_type` their `Asset.type`, `x`, `y` as in the model's
    CRS, `z` the invert or elevation (m), `ground` the ground's level (m), `demand` what is taken there
    (m³/h, 0 if nothing).
    Edges (E): `edge` their `Asset.local` (group `link`), `edge_type`, `start`, `end` (places of nodes), `length` (m),
    `diameter` (m; of other sections the height), `invert_start`, `invert_end` (m), `direction` (1: only from start to
    end, as in drains, pumps and check valves; 0: either way), `is_open` (a closed valve or pipe is not). Unknown
    numbers are NaN.
    """

    system: str
    node: Sequence[str]
    node_type: Sequence[str]
    x: Floats
    y: Floats
    z: Floats
    ground: Floats
    demand: Floats
    edge: Sequence[str]
    edge_type: Sequence[str]
    start: Indices
    end: Indices
    length: Floats
    diameter: Floats
    invert_start: Floats
    invert_end: Floats
    direction: NDArray[np.int8]
    is_open: Bools

    def __post_init__(self) -> None:
        nodes, edges = len(self.node), len(self.edge)
        for column in fields(self)[1:]:
            size = len(getattr(self, column.name))
            wanted = nodes if column.name in _NODE_COLUMNS else edges
            if size != wanted:
                raise ValueError(f"column {column.name} has {size} entries, not {wanted}")


_NODE_COLUMNS: Final = frozenset(("node", "node_type", "x", "y", "z", "ground", "demand"))


@dataclass(frozen=True, slots=True)
class CityModel:
    """What a model file holds. `format`: a key of `models3d.readers.READERS`. `crs`: `EPSG:…`, a WKT, or "" where the
    file names none; `height`: the height datum, where named apart from it. `metadata`: what the file says of itself,
    and what a writer needs to tell it again, JSON-able. `notes`: what was read though it looks doubtful."""

    format: str
    assets: list[Asset]
    networks: list[Network] = field(default_factory=list)
    crs: str = ""
    height: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: list[Problem] = field(default_factory=list)


# Told while a large file is read: what is being done, and the share that is (0-1).
Progress = Callable[[str, float], None]
