"""A `CityModel` as CityJSON 2.0: what was read from CityJSON is written with its transform, ids, attributes,
semantics, materials, extensions and metadata, so that reading it again gives the same model (coordinates to half the
transform's step, exactly if they came from it; instances of templates as plain geometry, for which the steps become
tenths, hundredths, … of the file's own where these would move a vertex by more than 0.1 mm).

Assets of other formats are objects of their own type where CityJSON has one, else `GenericCityObject`s. What CityJSON
has no word for (our type, system, code, …; which heights are unknown and were written as 0) is in their attribute
`cimtwin`, which our reader takes back. Networks and tenants are not written.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from models3d.crs import UnknownCrs, parse
from models3d.readers import bounded
from models3d.readers.cityjson import FARTHEST, OURS, REST, plain
from models3d.readers.citywords import DERIVED, TYPES, derived, level
from twin.city import DEPTHS, Asset, CityModel, Geometry
from twin.model import Floats, Ints

STEP_M: Final = 0.001
STEP_DEGREES: Final = 1e-8  # about a millimetre
EXACT: Final = 2.0**53  # integers below are floats, too
_BY_TYPE: Final = {
    "building": "Building", "bridge": "Bridge", "tunnel": "Tunnel", "furniture": "CityFurniture", "road": "Road",
    "railway": "Railway", "water_body": "WaterBody", "land_use": "LandUse", "vegetation": "SolitaryVegetationObject",
    "terrain": "TINRelief",
}  # fmt: skip
_PARTS: Final = {"building_part": "BuildingPart", "building_installation": "BuildingInstallation",
                 "bridge_part": "BridgePart", "tunnel_part": "TunnelPart"}  # fmt: skip
# Kinds of geometry that CityJSON allows for a kind of object; GenericCityObject takes what does not fit.
_BODIES: Final = frozenset(("MultiSurface", "CompositeSurface", "Solid", "CompositeSolid"))
_FACES: Final = frozenset(("MultiLineString", "MultiSurface", "CompositeSurface"))
_ALLOWED: Final = {
    "Building": _BODIES, "BuildingPart": _BODIES, "Bridge": _BODIES, "BridgePart": _BODIES, "Tunnel": _BODIES,
    "TunnelPart": _BODIES, "Road": _FACES, "Railway": _FACES, "WaterBody": _BODIES | _FACES,
    "LandUse": frozenset(("MultiSurface", "CompositeSurface")), "TINRelief": frozenset(("CompositeSurface",)),
}  # fmt: skip


def write(model: CityModel) -> bytes:
    """The model as one CityJSON document; the same bytes each time."""
    writing = _Writing(model)
    objects, vertices = writing.objects(model.assets)
    return _dumped(writing.root | {"CityObjects": objects, "vertices": vertices})


def write_sequence(model: CityModel) -> Iterator[bytes]:
    """The model as the lines of a sequence: a header, then a feature for each object with what is below it."""
    writing = _Writing(model)
    yield _dumped(writing.root | {"CityObjects": {}, "vertices": []}) + b"\n"
    families: dict[str, list[Asset]] = {}
    for asset in model.assets:
        families.setdefault(writing.head(asset), []).append(asset)
    for head, family in families.items():
        objects, vertices = writing.objects(family)
        feature = {"type": "CityJSONFeature", "id": head, "CityObjects": objects, "vertices": vertices}
        yield _dumped(feature) + b"\n"


def _dumped(told: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError:  # an integer beyond 64 bits: no reader makes one, others may
        vertices = told["vertices"]
        plain_ = bounded(copy.deepcopy({key: value for key, value in told.items() if key != "vertices"}))
        return orjson.dumps(plain_ | {"vertices": vertices}, option=orjson.OPT_SERIALIZE_NUMPY)


class _Writing:
    def __init__(self, model: CityModel) -> None:
        self.is_own = model.format == "cityjson"
        self.ids = _ids(model.assets)
        self.transform = _transform(model)
        self.root = _root(model) | {"transform": {key: value.tolist() for key, value in self.transform.items()}}
        self.parents = {self.id(asset): _parents(asset, self.ids) for asset in model.assets}
        self.children: dict[str, list[str]] = {}
        for id_, parents in self.parents.items():
            for parent in parents:
                self.children.setdefault(parent, []).append(id_)

    def id(self, asset: Asset) -> str:
        return self.ids[asset.group, asset.local]

    def head(self, asset: Asset) -> str:
        """The first of an object's ancestors."""
        id_ = self.id(asset)
        seen = {id_}
        while self.parents.get(id_) and self.parents[id_][0] not in seen:
            id_ = self.parents[id_][0]
            seen.add(id_)
        return id_

    def objects(self, assets: list[Asset]) -> tuple[dict[str, Any], Ints]:
        """Objects of CityJSON by id, and the vertices that they share."""
        shapes = [shape for asset in assets for shape in asset.geometry]
        vertices, places = _vertices(shapes, self.transform["scale"], self.transform["translate"])
        found = {}
        at = 0
        for asset in assets:
            numbers = places[at : at + len(asset.geometry)]
            at += len(asset.geometry)
            found[self.id(asset)] = self.object(asset, numbers)
        return found, vertices

    def object(self, asset: Asset, numbers: list[list[int]]) -> dict[str, Any]:
        id_ = self.id(asset)
        parents = self.parents[id_]
        attributes = dict(asset.attributes)
        rest = attributes.pop(REST, {})
        if not isinstance(rest, dict):
            rest = {}
        guessed = derived({key: value for key, value in attributes.items() if key not in DERIVED})
        for key, value in guessed.items():
            if attributes.get(key) == value:
                del attributes[key]
        element = _element(asset, parents, self.is_own)
        geometry = [_geometry(shape, table) for shape, table in zip(asset.geometry, numbers, strict=True)]
        ours = _ours(asset, id_, element, attributes)
        told: dict[str, Any] = {"type": element}
        if attributes or ours:
            told["attributes"] = attributes | ({OURS: ours} if ours else {})
        if parents:
            told["parents"] = parents
        below = rest.get("children", self.children.get(id_, []))
        if below or element == "CityObjectGroup":
            told["children"] = below
        if geometry:
            told["geometry"] = geometry
        return told | {key: value for key, value in rest.items() if key not in ("parents", "children")}


def _root(model: CityModel) -> dict[str, Any]:
    told = model.metadata if model.format == "cityjson" else {}
    metadata = dict(told.get("metadata", {}))
    root: dict[str, Any] = {"type": "CityJSON", "version": "2.0"}
    ours = {}
    if model.crs:
        try:
            spelled = parse(model.crs)
        except UnknownCrs:
            ours = {"crs": model.crs, "height": model.height}
        else:
            code = re.fullmatch(r"EPSG:(\d+)", spelled.text)
            if code:
                metadata["referenceSystem"] = f"https://www.opengis.net/def/crs/EPSG/0/{code[1]}"
            else:
                ours["crs"] = model.crs
            if model.height != spelled.height:
                ours["height"] = model.height
    if metadata:
        root["metadata"] = metadata
    for key in ("extensions", "appearance"):
        if key in told:
            root[key] = told[key]
    root |= told.get("root", {})
    if ours:
        root["+" + OURS] = ours
    return root


def _ids(assets: list[Asset]) -> dict[tuple[str, str], str]:
    """Of each asset, by group and local id, the id in the file: the local one, unless another group has it too."""
    groups: dict[str, int] = {}
    for asset in assets:
        groups[asset.local] = groups.get(asset.local, 0) + 1
    taken = set(groups)
    ids = {}
    for asset in assets:
        id_ = asset.local
        if groups[asset.local] > 1:
            id_ = f"{asset.group}:{asset.local}"
            while id_ in taken:
                id_ += "'"
            taken.add(id_)
        ids[asset.group, asset.local] = id_
    if len(ids) < len(assets):
        raise ValueError("two assets have the same group and id")
    return ids


def _parents(asset: Asset, ids: dict[tuple[str, str], str]) -> list[str]:
    rest = asset.attributes.get(REST)
    told = rest.get("parents") if isinstance(rest, dict) else None
    if isinstance(told, list):
        return told
    found = ids.get((asset.group, asset.parent)) or ids.get(("object", asset.parent)) if asset.parent else None
    return [found] if found else []


def _transform(model: CityModel) -> dict[str, Floats]:
    step = STEP_M
    if model.crs:
        with contextlib.suppress(UnknownCrs):
            step = STEP_DEGREES if parse(model.crs).is_geographic else STEP_M
    steps = np.array([step, step, STEP_M])
    told = model.metadata.get("transform") if model.format == "cityjson" else None
    if isinstance(told, dict):
        scale, translate = (np.array(told[key], np.float64) for key in ("scale", "translate"))
        if np.abs(translate).max() <= FARTHEST:
            return {"scale": _fine_enough(model, scale, translate, steps), "translate": translate}
    lowest = [np.fmin.reduce(shape.vertices, axis=0) for asset in model.assets for shape in asset.geometry]
    translate = np.floor(np.nan_to_num(np.fmin.reduce(lowest, axis=0))) if lowest else np.zeros(3)
    return {"scale": steps, "translate": translate}


def _fine_enough(model: CityModel, scale: Floats, translate: Floats, steps: Floats) -> Floats:
    """The file's own scale, on each axis as many times a tenth of it as brings every vertex to a tenth of our own step
    from its grid; our own step where a file's is so small that the numbers would not be exact."""
    shapes = [shape.vertices for asset in model.assets for shape in asset.geometry if len(shape.vertices)]
    if not shapes:
        return scale
    away = np.concatenate(shapes) - translate
    scale = scale.copy()
    for axis, step in enumerate(steps):
        column = away[:, axis]
        column = column[np.isfinite(column)]
        farthest = np.abs(column).max(initial=0.0)
        while abs(scale[axis]) > step / 5:  # below, nothing is farther from the grid than a tenth
            if np.abs(column - np.rint(column / scale[axis]) * scale[axis]).max(initial=0.0) <= step / 10:
                break
            scale[axis] /= 10
        if not farthest / abs(scale[axis]) < EXACT:
            scale[axis] = step
    return scale


def _vertices(shapes: list[Geometry], scale: Floats, translate: Floats) -> tuple[Ints, list[list[int]]]:
    """All vertices before the transform, each once, and of each geometry's own vertices which they are. Those that a
    geometry has twice stay two, so that it is read back as it was."""
    if not shapes:
        return np.empty((0, 3), np.int64), []
    sizes = np.array([len(shape.vertices) for shape in shapes])
    flat = np.concatenate([shape.vertices for shape in shapes])
    whole = np.rint((np.nan_to_num(flat) - translate) / scale).astype(np.int64)
    owner = np.repeat(np.arange(len(shapes)), sizes)
    order = np.lexsort((owner, whole[:, 2], whole[:, 1], whole[:, 0]))
    in_order, owners = whole[order], owner[order]
    is_new = np.ones(len(order), np.bool_)
    is_new[1:] = (in_order[1:] != in_order[:-1]).any(axis=1)
    starts = is_new.copy()
    starts[1:] |= owners[1:] != owners[:-1]
    begins = np.flatnonzero(starts)
    rank = np.arange(len(order)) - begins[np.cumsum(starts) - 1]
    point = np.cumsum(is_new) - 1
    # One vertex for each point and rank: numbered in the order of points, then ranks.
    _, first, number = np.unique(point * (int(rank.max(initial=0)) + 1) + rank, return_index=True, return_inverse=True)
    of: NDArray[np.int64] = np.empty(len(order), np.int64)
    of[order] = number
    ends = np.cumsum(sizes)
    all_of = of.tolist()
    return in_order[first], [all_of[end - size : end] for end, size in zip(ends.tolist(), sizes.tolist(), strict=True)]


def _element(asset: Asset, parents: list[str], is_own: bool) -> str:
    """The word of CityJSON for an asset; `is_own`: it came from CityJSON."""
    kinds = {shape.kind for shape in asset.geometry}
    if is_own and asset.element and asset.group == "object" and TYPES.get(asset.element, "other") == asset.type:
        return asset.element
    if TYPES.get(asset.element) == asset.type and kinds <= _ALLOWED.get(asset.element, kinds):
        return asset.element
    word = _BY_TYPE.get(asset.type) or (_PARTS.get(asset.type) if parents else None)
    return word if word and kinds <= _ALLOWED.get(word, kinds) else "GenericCityObject"


def _ours(asset: Asset, id_: str, element: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """What a reader would not see by itself."""
    seen = plain(id_, element, attributes, list(asset.geometry))
    ours = {key: getattr(asset, key) for key in seen if key not in ("attributes", "geometry", "level")}
    ours = {key: value for key, value in ours.items() if value != seen[key]}
    if asset.level != level(shape.lod for shape in asset.geometry):
        ours["level"] = asset.level
    no_lod = [number for number, shape in enumerate(asset.geometry) if not shape.lod]
    if no_lod:
        ours["no_lod"] = no_lod
    no_height = []
    for number, shape in enumerate(asset.geometry):
        unknown = np.isnan(shape.vertices[:, 2])
        if unknown.any():
            no_height.append([number, True if unknown.all() else _seen(shape, unknown)])
    if no_height:
        ours["no_height"] = no_height
    return ours


def _seen(shape: Geometry, chosen: NDArray[np.bool_]) -> list[int]:
    """Vertices by their numbers when the geometry is read again: in the order in which its boundaries name them."""
    seen: dict[int, int] = {}

    def walk(part: Any) -> None:
        if isinstance(part, list):
            for one in part:
                walk(one)
        else:
            seen.setdefault(part, len(seen))

    walk(shape.boundaries)
    return sorted(seen[index] for index in np.flatnonzero(chosen).tolist() if index in seen)


def _geometry(shape: Geometry, table: list[int]) -> dict[str, Any]:
    told: dict[str, Any] = {"type": shape.kind, "lod": shape.lod or "0"}
    told["boundaries"] = _numbered(shape.boundaries, DEPTHS[shape.kind], table)
    if shape.semantics is not None:
        told["semantics"] = shape.semantics
    return told | shape.extra


def _numbered(part: Any, depth: int, table: list[int]) -> Any:
    if depth == 1:
        return [table[index] for index in part]
    if depth == 2:
        return [[table[index] for index in ring] for ring in part]
    return [_numbered(one, depth - 1, table) for one in part]
