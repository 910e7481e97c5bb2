"""Assets as GeoJSON (RFC 7946): one FeatureCollection in WGS 84 longitude and latitude, rings to the right-hand rule.

Solids and sets of surfaces are told as their footprint. The same assets always give the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import shapely
from shapely.geometry.polygon import orient

from models3d import crs as systems
from models3d.footprint import covered
from twin.city import Asset, Geometry, Network
from twin.model import Floats

DIGITS: Final = 8  # of a degree: about a millimetre
HEIGHT_DIGITS: Final = 3


def write(assets: Iterable[Asset], crs: str, networks: Sequence[Network] = ()) -> bytes:
    """A FeatureCollection of `assets`, whose coordinates are in `crs`; lines of `networks` tell their ends as `from`
    and `to`. Raises `models3d.crs.UnknownCrs`: what has no CRS cannot be put on the map."""
    return b"".join(pieces(assets, crs, networks))


def pieces(assets: Iterable[Asset], crs: str, networks: Sequence[Network] = ()) -> Iterator[bytes]:
    """The same, a feature at a time."""
    system = systems.parse(crs)
    ends = {
        edge: (network.node[int(a)], network.node[int(b)])
        for network in networks
        for edge, a, b in zip(network.edge, network.start, network.end, strict=True)
    }
    yield b'{"type":"FeatureCollection","features":['
    for number, asset in enumerate(assets):
        yield (b",\n" if number else b"\n") + feature(asset, system, ends).encode("utf-8")
    yield b"\n]}\n"


def feature(asset: Asset, system: systems.Crs, ends: Mapping[str, tuple[str, str]]) -> str:
    """One asset as the text of a Feature."""
    properties: dict[str, Any] = {**asset.attributes, "asset_type": asset.type}
    for name in ("element", "name_zh", "name_en", "system", "parent", "area", "code"):
        if getattr(asset, name):
            properties[name] = getattr(asset, name)
    if asset.level:
        properties["cim_level"] = asset.level
    if asset.group == "link" and asset.local in ends:
        properties["from"], properties["to"] = ends[asset.local]
    whole = {"type": "Feature", "id": asset.local, "geometry": geometry(asset, system), "properties": properties}
    return json.dumps(_finite(whole), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def geometry(asset: Asset, system: systems.Crs) -> dict[str, Any] | None:
    """An asset's geometry for the map: of its lowest level of detail. None where none can be placed."""
    if not asset.geometry:
        return None
    lowest = min(shape.lod for shape in asset.geometry)
    found = [part for shape in asset.geometry if shape.lod == lowest if (part := _part(shape, system)) is not None]
    if not found:
        return None
    return found[0] if len(found) == 1 else {"type": "GeometryCollection", "geometries": found}


def _part(shape: Geometry, system: systems.Crs) -> dict[str, Any] | None:
    lon, lat = system.to_map(shape.vertices[:, 0], shape.vertices[:, 1])
    places = np.column_stack([lon, lat, shape.vertices[:, 2]])
    if not len(places) or not np.isfinite(places[:, :2]).all():
        return None
    if shape.kind == "MultiPoint":
        points = _positions(places[shape.boundaries])
        return _one("Point", points)
    if shape.kind == "MultiLineString":
        return _one("LineString", [_positions(places[line]) for line in shape.boundaries])
    surfaces = shape.surfaces
    is_flat = shape.kind.endswith("Surface") and (len(surfaces) == 1 or not np.isfinite(places[:, 2]).any())
    if is_flat:
        polygons = [[_ring(places[ring], number == 0) for number, ring in enumerate(surface)] for surface in surfaces]
        return _one("Polygon", polygons)
    return footprint(places, surfaces)


def footprint(places: Floats, surfaces: list[list[list[int]]]) -> dict[str, Any] | None:
    """The outline in plan of `surfaces` over `places` [N, 2 or more]; None of what is upright only."""
    found = covered(places[:, :2], surfaces)
    if found is None:
        return None
    union = shapely.normalize(shapely.set_precision(found, 1e-9))
    parts = [part for part in shapely.get_parts(union) if part.geom_type == "Polygon"]
    polygons = []
    for part in parts:
        turned = orient(part)
        polygons.append([_positions(np.asarray(ring.coords)) for ring in (turned.exterior, *turned.interiors)])
    return _one("Polygon", polygons) if polygons else None


def _one(kind: str, parts: list[Any]) -> dict[str, Any]:
    return {"type": kind if len(parts) == 1 else f"Multi{kind}", "coordinates": parts[0] if len(parts) == 1 else parts}


def _ring(places: Floats, is_outer: bool) -> list[list[float]]:
    x, y = places[:, 0], places[:, 1]
    area = np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))
    points = _positions(places if (area > 0) == is_outer else places[::-1])
    return [*points, points[0]]


def _positions(places: Floats) -> list[list[float]]:
    return [
        [round(p[0], DIGITS), round(p[1], DIGITS), *(round(z, HEIGHT_DIGITS) for z in p[2:3] if math.isfinite(z))]
        for p in places.tolist()
    ]


def _finite(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(member) for member in value]
    return value
