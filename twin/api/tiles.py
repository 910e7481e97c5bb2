"""The models for 3D clients and maps: 3D Tiles 1.1 (三维切片) and vector tiles (矢量切片)."""

from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from models3d import crs as coordinates
from models3d.footprint import footprints
from models3d.writers import mvt, tiles
from twin.api.assets import AsOf
from twin.api.caching import is_held, takes_gzip
from twin.api.errors import Invalid
from twin.api.parameters import instant
from twin.api.view import ServiceView
from twin.city import finest
from twin.model import Floats, NotFound
from twin.store import assets as store

MEDIA: Final = {".glb": "model/gltf-binary", ".json": "application/json"}
MVT: Final = "application/vnd.mapbox-vector-tile"
EXAMPLE: Final[dict[str, Any]] = {
    "asset": {"version": "1.1"},
    "geometricError": 512.0,
    "root": {
        "boundingVolume": {"region": [2.047, 0.554, 2.048, 0.555, 0.0, 90.0]},
        "geometricError": 64.0,
        "refine": "ADD",
        "contents": [{"uri": "1/0-building.glb"}],
    },
}
POINTS_FROM: Final = 14  # the zoom from which on what is a point on the map is told
MOST: Final = 20_000  # features of a vector tile, the largest first, of equal ones some from everywhere
PACKED_FROM: Final = 1024  # bytes; less is not worth packing
_FILE: Final = re.compile(r"[0-9a-z][0-9a-z-]*\.glb")
_LAYERS: Final = {"building": "buildings", "building_part": "buildings", "bridge": "bridges", "bridge_part": "bridges",
                  "pipe": "pipes", "road": "roads", "railway": "roads"}  # fmt: skip


def router(service: ServiceView) -> APIRouter:
    routes = APIRouter(tags=["模型 models"])

    async def folder(model: str, version: store.StoredVersion) -> Path:
        return await run_in_threadpool(service.tilesets.find, service.database_url, version.id, version.sha256, model)

    @routes.get(
        "/tiles/{model}/tileset.json",
        summary="三维切片 / 3D Tiles of a model",
        description="3D Tiles 1.1；首次请求时生成。各瓦片内容以版本号为目录，`as_of`：当时的版本。 / "
        "3D Tiles 1.1, written when first asked for. With `as_of`, of the version of then.",
        response_class=Response,
        responses={
            200: {"description": "tileset", "content": {"application/json": {"example": EXAMPLE}}},
            404: {"description": "没有该模型 / no such model"},
        },
    )
    async def tileset(request: Request, model: str, as_of: AsOf = None) -> Response:
        found = await store.versions(service.reader, model)
        at = instant("as_of", as_of)
        version = next((v for v in found if at is None or v.imported_at <= at), None)
        if version is None:
            raise NotFound(f"no model {model} / 没有模型 {model}")
        return await _file(request, await folder(model, version) / tiles.ROOT, "no-cache")

    @routes.get("/tiles/{model}/{version}/{file}", include_in_schema=False)
    async def content(request: Request, model: str, version: int, file: str) -> Response:
        known = next((v for v in await store.versions(service.reader, model) if v.id == version), None)
        if known is None or not _FILE.fullmatch(file):
            raise NotFound(f"no tile {file} of this version of {model} / 没有该切片")
        return await _file(request, await folder(model, known) / file, "private, max-age=31536000, immutable")

    @routes.get(
        "/tiles/{model}/{z}/{x}/{y}.mvt",
        summary="矢量切片 / A vector tile of a model",
        description="Mapbox Vector Tiles 2.1。图层：buildings、bridges、pipes、roads、lines、nodes、areas。"
        "空瓦片为 204。"
        "`datum=gcj02` 仅供叠加在 GCJ-02 底图上显示。 / `datum=gcj02`: for display on a GCJ-02 base map only. An empty "
        "tile is 204.",
        response_class=Response,
        responses={
            200: {"description": "tile", "content": {MVT: {"example": "二进制 / binary"}}},
            204: {"description": "空 / nothing is there"},
        },
    )
    async def vector_tile(
        request: Request, model: str, z: int, x: int, y: int,
        datum: Annotated[Literal["wgs84", "gcj02"], Query(description="坐标基准 / datum")] = "wgs84",
        as_of: AsOf = None,
    ) -> Response:  # fmt: skip
        if not (0 <= z <= mvt.MAX_ZOOM and 0 <= x < 1 << z and 0 <= y < 1 << z):
            raise Invalid("z/x/y", "no such tile", "没有该瓦片")
        at = instant("as_of", as_of)
        if await store.version_at(service.reader, model, at) is None:
            raise NotFound(f"no model {model} / 没有模型 {model}")
        west, south, east, north = mvt.bounds(z, x, y)
        away = 0.01 if datum == "gcj02" else 0.0  # some 700 m at most
        area = west - away, south - away, east + away, north + away
        least = 0.0 if z >= POINTS_FROM else (east - west) / 256  # what is smaller than a pixel shows nothing
        found = await store.shown(service.reader, model, area, least, MOST, at)
        data = await run_in_threadpool(_vector_tile, z, x, y, found, datum == "gcj02")
        if not data:
            return Response(status_code=204, headers={"Cache-Control": "no-cache"})
        is_packed = len(data) > PACKED_FROM and takes_gzip(request.headers.get("accept-encoding", ""))
        tag = f'"{hashlib.sha256(data).hexdigest()[:32]}{"-gzip" if is_packed else ""}"'
        headers = {"Cache-Control": "no-cache", "ETag": tag, "Vary": "Accept-Encoding"}
        if is_held(request.headers.get("if-none-match", ""), tag):
            return Response(status_code=304, headers=headers)
        if is_packed:
            data = await run_in_threadpool(gzip.compress, data, 1, mtime=0)
            headers["Content-Encoding"] = "gzip"
        return Response(data, headers=headers, media_type=MVT)

    return routes


def _vector_tile(z: int, x: int, y: int, found: list[store.StoredAsset], is_shifted: bool) -> bytes:
    layers: dict[str, tuple[list[Any], list[dict[str, Any]]]] = {}
    by_crs: dict[str, list[store.StoredAsset]] = {}
    for asset in found:
        by_crs.setdefault(asset.crs, []).append(asset)
    for text, assets in sorted(by_crs.items()):
        if not text:
            continue
        crs = coordinates.parse(text)

        def to_map(a: Floats, b: Floats, crs: coordinates.Crs = crs) -> tuple[Floats, Floats]:
            lon, lat = crs.to_map(a, b)
            return coordinates.to_gcj02(lon, lat) if is_shifted else (lon, lat)

        shapes = footprints([finest(asset.geometry) for asset in assets], to_map)
        for asset, shape in zip(assets, shapes.tolist(), strict=True):
            if shape is None:
                continue
            plain = "nodes" if shape.geom_type.endswith("Point") else "areas"
            if shape.geom_type.endswith("String"):
                plain = "pipes" if asset.system else "lines"
            layer = layers.setdefault(_LAYERS.get(asset.type or "", plain), ([], []))
            layer[0].append(shape)
            diameter = asset.attributes.get("diameter_m")
            layer[1].append(
                {
                    "id": asset.id, "type": asset.type, "name": asset.name_zh or asset.name_en or None,
                    "system": asset.system or None, "level": f"CIM{asset.level}" if asset.level else None,
                    "diameter_m": float(diameter) if isinstance(diameter, int | float) else None,
                }
            )  # fmt: skip
    return mvt.write(z, x, y, dict(sorted(layers.items())))


async def _file(request: Request, path: Path, caching: str) -> Response:
    return await run_in_threadpool(_answer, request, path, caching)


def _answer(request: Request, path: Path, caching: str) -> Response:
    try:
        tag = path.with_name(f"{path.name}.tag").read_text()
        is_packed = path.with_name(f"{path.name}.gz").exists()
        use_packed = is_packed and takes_gzip(request.headers.get("accept-encoding", ""))
        etag = f'"{tag}-gzip"' if use_packed else f'"{tag}"'
        headers = {"Cache-Control": caching, "ETag": etag}
        if is_packed:
            headers["Vary"] = "Accept-Encoding"
        if is_held(request.headers.get("if-none-match", ""), etag):
            return Response(status_code=304, headers=headers)
        if use_packed:
            headers["Content-Encoding"] = "gzip"
        data = path.with_name(f"{path.name}.gz" if use_packed else path.name).read_bytes()
    except FileNotFoundError:
        raise NotFound(f"no tile {path.name} / 没有该切片") from None
    return Response(data, headers=headers, media_type=MEDIA[path.suffix])
