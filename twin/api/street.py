"""What is asked before a street is opened: whether a dig is safe, clearances between systems, and how much of the pipes
sensors cover."""

from __future__ import annotations

import asyncio
import datetime
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Any, Final

import numpy as np
import shapely
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from twin.api.assets import AsOf, Known, Networks
from twin.api.errors import Invalid
from twin.api.laid import Laid, around, hull, laid_in, owner_of, rounded, year_of
from twin.api.parameters import (
    After,
    Box,
    Limit,
    Text,
    box,
    cursor,
    example,
    instant,
    json_answer,
    json_model,
    json_request,
    page,
    parse_cursor,
    words,
)
from twin.api.sensors import check_kinds
from twin.api.view import ServiceView
from twin.model import SECOND, Floats, Micros, NotFound
from twin.network.clearances import PROTECTIONS, protection
from twin.network.coverage import AreaShare, coverage
from twin.network.crossing import KINDS, Conflicts, conflicts
from twin.network.digging import Dig, Piece, dig
from twin.network.graph import Place
from twin.plane import LocalPlane
from twin.store import assets as store

DIG_FAR_M: Final = 3_000.0  # the longest side of a dig
DIG_POINTS: Final = 1_000
AREAS_KEPT: Final = 8  # of versions, for coverage
THICKEST_M: Final = 5.0  # radius of the largest pipe that a search box allows for
CLEAR_M: Final = 6.0  # the largest clearance asked for, and a radius
MODELS_MOST: Final = 1_000
BEIJING: Final = 8 * 3600 * SECOND
_KINDS_ZH: Final = {"crossing": "交叉", "parallel": "平行", "approach": "接近"}
_ZONES_ZH: Final = {"protection": "保护范围", "control": "控制范围"}


class NewDig(BaseModel):
    """`polygon`: a GeoJSON Polygon (or a Feature of one) in longitude and latitude; its outer ring counts. `depth_m`:
    how deep. `date`: the day, today by default (UTC+8): what is laid later or gone by then is left out."""

    polygon: dict[str, Any]
    depth_m: float = Field(gt=0, le=100, allow_inf_nan=False)
    date: datetime.date | None = None


def router(service: ServiceView, networks: Networks) -> APIRouter:
    routes = APIRouter(tags=["管网 networks"])
    reader = service.reader
    areas: OrderedDict[int, list[list[str]]] = OrderedDict()  # by version: of each edge of each network
    heavy = asyncio.Semaphore(2)  # questions over many pipes at a time: the machine has other work

    @routes.post(
        "/digs",
        summary="开挖安全 / Is a dig safe",
        description="开挖范围附近所有已定位模型中的管线与井盖：`protection` 为保护范围（不得机械开挖），"
        "`control` 为控制范围（先征得权属单位同意）。埋深未知的按在开挖范围内处理。"
        "`not_on_map` 为未定位、因而未检查的模型。"
        "各距离的依据见 `mark`：M 凭记忆引用标准，须核对；E 工程默认值。 / "
        "Pipes and covers of all models on the map near the dig: nobody digs with a machine within `protection`, and "
        "asks the owner first within `control`. What has no known depth is taken to be in the way. `not_on_map` names "
        "models that nobody looked at, because they have no place. `mark`: M a standard from memory, to be checked; E "
        "an engineering default.",
        responses=example(
            {"area_m2": 120.0, "depth_m": 1.5, "date": "2026-07-01",
             "summary": {"zh": "保护范围内：管线 1 条……", "en": "Within the protection distance: 1 …"},
             "groups": [{"zone": "protection", "system": "gas", "pressure_class": "medium", "pipes": 1, "covers": 0,
                         "length_m": 12.4, "within_m": 0.5}],
             "owners": [{"owner": "gas-co", "systems": ["gas"], "pipes": 1, "covers": 0, "length_m": 12.4,
                         "is_protected": True}],
             "features": {"type": "FeatureCollection", "features": []}, "not_on_map": []}
        ),
        openapi_extra=json_request(
            NewDig,
            {"polygon": {"type": "Polygon", "coordinates": [[[117.2950, 31.7950], [117.2952, 31.7950],
                                                             [117.2952, 31.7952], [117.2950, 31.7950]]]},
             "depth_m": 1.5, "date": "2026-07-01"},
        ),
    )  # fmt: skip
    async def digs(request: Request, as_of: AsOf = None) -> Response:
        given = await json_model(request, NewDig)
        at = instant("as_of", as_of)
        ring = _ring(given.polygon)
        day = np.datetime64(given.date) if given.date else np.datetime64((service.clock() + BEIJING) // SECOND, "s")
        day = day.astype("datetime64[D]")
        low, high = ring.min(axis=0).tolist(), ring.max(axis=0).tolist()
        reach = max(row.control_m for row in PROTECTIONS) + THICKEST_M
        plane, area = around((low[0], low[1], high[0], high[1]), reach)
        metres = np.column_stack(plane.metres(ring[:, 0], ring[:, 1]))
        if np.ptp(metres, axis=0).max() > DIG_FAR_M:
            raise Invalid("polygon", f"must not be longer than {DIG_FAR_M:g} m", f"不得超过 {DIG_FAR_M:g} 米")
        async with heavy:
            laid = await laid_in(reader, networks, area, plane, at=at)
            try:
                found = await run_in_threadpool(dig, [one.pipes for one in laid], metres, given.depth_m, day)
            except ValueError:
                raise Invalid("polygon", "must have an area", "面积必须大于零") from None
        unseen = [
            v.name for v in await store.models(reader, MODELS_MOST, None, at) if v.extent is None and v.nodes + v.links
        ]
        square = float(shapely.area(shapely.make_valid(shapely.polygons(metres))))
        head = {"area_m2": round(square, 2), "depth_m": given.depth_m, "date": str(day)}
        return json_answer(head | await run_in_threadpool(_dig_json, found, laid, plane) | {"not_on_map": unseen})

    @routes.get(
        "/clearances",
        summary="管线净距 / Clearances between systems",
        description="不同系统管线之间小于规定净距之处，最差者在前。`kind`：crossing 交叉（垂直净距），parallel 平行"
        "（水平净距），approach 斜向接近（空间距离）。`unknown` 时也列出高程不明的交叉。 / "
        "Where pipes of different systems lie nearer than they may, the worst first: `crossing` by the vertical, "
        "`parallel` by the horizontal clearance, `approach` at an angle, in space. With `unknown` also crossings of "
        "unknown heights (`actual_m` null). `mark`: M from a standard by memory, E an engineering default.",
        responses=example(
            {"total": 1, "items": [
                {"kind": "crossing", "one": {"asset": "w:P-1", "system": "water"},
                 "other": {"asset": "g:P-9", "system": "gas"}, "lon": 114.05, "lat": 22.54, "actual_m": 0.05,
                 "required_m": 0.15, "short_m": 0.1, "mark": "M", "text": {"zh": "…", "en": "…"}}], "next": None}
        ) | {404: {"description": "没有该模型 / no such model"}},
    )  # fmt: skip
    async def clearances(
        model: Annotated[list[str] | None, Query(max_length=100, description="可重复 / may be repeated")] = None,
        bbox: Box = None,
        unknown: bool = False,
        as_of: AsOf = None,
        limit: Limit = 100,
        after: After = None,
    ) -> Response:
        at = instant("as_of", as_of)
        first = max((parse_cursor("clearances", after, int) or (0,))[0], 0)
        area = box(bbox)
        chosen = await _models(model, at)
        extents = [version.extent for version in chosen if version.extent is not None]
        if not extents:
            return page([], None, total=0)
        plane, wide = around(area or hull(extents), CLEAR_M)
        async with heavy:
            laid = await laid_in(
                reader, networks, wide, plane, types=["pipe", "valve"],
                models=[v.name for v in chosen] if model else (), at=at,
            )  # fmt: skip
            found = await run_in_threadpool(conflicts, [one.pipes for one in laid], with_unknown=unknown)
        lon, lat = plane.degrees(found.x, found.y)
        kept = np.arange(len(found))
        if area is not None:
            kept = np.flatnonzero((lon >= area[0]) & (lat >= area[1]) & (lon <= area[2]) & (lat <= area[3]))
        part = kept[first : first + limit]
        items = [_conflict_json(found, n, laid, float(lon[n]), float(lat[n])) for n in part.tolist()]
        following = cursor("clearances", first + limit) if first + limit < len(kept) else None
        return page(items, following, total=len(kept))

    async def _models(names: Sequence[str] | None, at: Micros | None) -> list[store.StoredVersion]:
        """The versions of the models named, or of all. Raises `NotFound`."""
        known = {version.name: version for version in await store.models(reader, MODELS_MOST, None, at)}
        if not names:
            return list(known.values())
        for name in names:
            if name not in known:
                raise NotFound(f"no model {name} / 没有模型 {name}")
        return [known[name] for name in dict.fromkeys(names)]

    @routes.get(
        "/coverage",
        summary="监测覆盖率 / How much of the pipes sensors cover",
        description="沿开启的管段，距测点 `reach_m` 米以内的管长比例：总体、各模型、各行政区域。`kind` 为指标，"
        "可用逗号列出多个。 / "
        "The share of the pipes' length within `reach_m` of a sensor, along open pipes: of all, by model, by "
        "administrative area. `kind`: only sensors of these kinds.",
        responses=example(
            {"reach_m": 500, "sensors": 16, "whole": {"length_m": 14800.0, "covered_m": 9120.5, "share": 0.6162},
             "models": [{"model": "dn", "version": 1, "system": "water", "sensors": 16, "length_m": 14800.0,
                         "covered_m": 9120.5, "share": 0.6162}],
             "areas": [{"area": "福田区/莲花街道/0101", "length_m": 820.0, "covered_m": 410.0, "share": 0.5}],
             "next": None}
        ) | {404: {"description": "没有该模型 / no such model"}},
    )  # fmt: skip
    async def covered(
        reach_m: Annotated[float, Query(ge=0, le=100_000, description="米 / metres")],
        system: Text = None,
        model: Annotated[list[str] | None, Query(max_length=100, description="可重复 / may be repeated")] = None,
        kind: Text = None,
        as_of: AsOf = None,
    ) -> Response:
        at = instant("as_of", as_of)
        kinds = words("kind", kind)
        check_kinds(service, kinds)
        parts: list[dict[str, Any]] = []
        by_area: dict[str, list[float]] = {}
        async with heavy:
            for version in await _models(model, at):
                if not version.networks:
                    continue
                several = await networks.of(reader, version.id)
                areas_there = await _areas(version.id, several)
                for known, names in zip(several, areas_there, strict=True):
                    if system is not None and known.network.system != system:
                        continue
                    count, places = await _sensed(known, kinds, at)
                    found = await run_in_threadpool(coverage, known.graph, places, reach_m, area=names)
                    parts.append({"model": version.name, "version": version.version, "system": known.network.system,
                                  "sensors": count, **_share(found.whole)})  # fmt: skip
                    for share in found.areas:
                        sums = by_area.setdefault(share.area, [0.0, 0.0])
                        sums[0] += share.length_m
                        sums[1] += share.covered_m
        whole = _total("", sum(p["length_m"] for p in parts), sum(p["covered_m"] for p in parts))
        return json_answer(
            {
                "reach_m": reach_m,
                "sensors": sum(part["sensors"] for part in parts),
                "whole": _rounded(_share(whole)),
                "models": [_rounded(part) for part in parts],
                "areas": [
                    {"area": area or None, **_rounded(_share(_total(area, *sums)))}
                    for area, sums in sorted(by_area.items())
                ],
                "next": None,
            }
        )

    async def _areas(version: int, several: Sequence[Known]) -> list[list[str]]:
        if version not in areas:
            keys = [key for known in several for key in known.edge_key.tolist() if key >= 0]
            told = await store.areas_of(reader, keys, version)
            areas[version] = [[told.get(key, "") for key in known.edge_key.tolist()] for known in several]
            while len(areas) > AREAS_KEPT:
                areas.popitem(last=False)
        areas.move_to_end(version)
        return areas[version]

    async def _sensed(known: Known, kinds: Sequence[str], at: Micros | None) -> tuple[int, list[Place]]:
        """How many sensors sit on a network, and where."""
        keys = np.concatenate((known.node_key, known.edge_key))
        bound = await store.sensors_on(reader, keys[keys >= 0].tolist(), at)
        catalog, count, nodes = service.catalog, 0, len(known.node_key)
        places = []
        for n in np.flatnonzero(np.isin(keys, list(bound))).tolist():
            some = bound[int(keys[n])]
            if kinds:
                some = [name for name in some if catalog.sensors[catalog.find(name)].kind in kinds]
            count += len(some)
            if some:
                places.append(Place("node", n) if n < nodes else Place("link", n - nodes))
        return count, places

    return routes


def _ring(polygon: dict[str, Any]) -> Floats:
    """The outer ring [n, 2] of a GeoJSON polygon, in degrees. Raises `Invalid`."""
    given = polygon.get("geometry") if polygon.get("type") == "Feature" else polygon
    wrong = Invalid("polygon", "must be a GeoJSON Polygon in longitude and latitude", "必须是经纬度的 GeoJSON Polygon")
    if not isinstance(given, dict) or given.get("type") != "Polygon":
        raise wrong
    rings = given.get("coordinates")
    if not isinstance(rings, list) or not rings or not isinstance(rings[0], list):
        raise wrong
    if len(rings[0]) > DIG_POINTS:
        raise Invalid("polygon", f"must have at most {DIG_POINTS} points", f"至多 {DIG_POINTS} 个点")
    points = [p[:2] for p in rings[0] if isinstance(p, list) and len(p) >= 2 and all(map(_is_number, p[:2]))]
    if len(points) != len(rings[0]) or len(points) < 3:
        raise wrong
    ring = np.array(points, float)
    if np.abs(ring[:, 0]).max() > 180 or np.abs(ring[:, 1]).max() > 85:
        raise wrong
    return ring


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e9


def _dig_json(found: Dig, laid: Sequence[Laid], plane: LocalPlane) -> dict[str, Any]:
    features = []
    groups: dict[tuple[str, str, str], list[Piece]] = {}
    for piece in found.pieces:
        one = laid[piece.network]
        asset = one.edge[piece.at] if piece.group == "link" else one.node[piece.at]
        pressure = one.pipes.pressure_class[piece.at] if piece.group == "link" else ""
        groups.setdefault((piece.zone, piece.system, pressure), []).append(piece)
        diameter = float(one.pipes.radius[piece.at]) * 2 if piece.group == "link" else 0.0
        features.append(
            {
                "type": "Feature",
                "id": None if asset is None else asset.id,
                "geometry": _on_map(piece.lines, plane),
                "properties": {
                    "asset": None if asset is None else asset.id,
                    "type": None if asset is None else asset.type,
                    "name": {"zh": asset.name_zh or None, "en": asset.name_en or None} if asset else None,
                    "model": None if asset is None else asset.model,
                    "system": piece.system or None,
                    "zone": piece.zone,
                    "distance_m": round(piece.distance_m, 3),
                    "crown_depth_m": None if piece.crown_depth_m is None else round(piece.crown_depth_m, 3),
                    "length_m": round(piece.length_m, 3),
                    "diameter_m": round(diameter, 4) if diameter else None,
                    "pressure_class": pressure or None,
                    "year": None if asset is None else year_of(asset),
                    "owner": None if asset is None else owner_of(asset) or None,
                    "tenant": None if asset is None else asset.tenant,
                    "mark": piece.mark,
                },
            }
        )
    told = []
    for (zone, system, pressure), pieces in groups.items():
        row = protection(PROTECTIONS, system, pressure)
        told.append(
            {
                "zone": zone,
                "system": system or None,
                "pressure_class": pressure or None,
                "pipes": sum(piece.group == "link" for piece in pieces),
                "covers": sum(piece.group == "node" for piece in pieces),
                "length_m": round(sum(piece.length_m for piece in pieces), 3),
                "within_m": row.protection_m if zone == "protection" else row.control_m,
            }
        )
    owners = [
        {"owner": n.owner or None, "systems": [s for s in n.systems if s], "pipes": n.pipes, "covers": n.covers,
         "length_m": round(n.length_m, 3), "is_protected": n.is_protected}
        for n in found.notices
    ]  # fmt: skip
    return {
        "summary": _dig_summary(found),
        "groups": told,
        "owners": owners,
        "features": {"type": "FeatureCollection", "features": features},
    }


def _dig_summary(found: Dig) -> dict[str, str]:
    zh, en = [], []
    for zone, words_en in (("protection", "Within the protection distance"), ("control", "within the control range")):
        pieces = [piece for piece in found.pieces if piece.zone == zone]
        pipes, covers = (sum(piece.group == group for piece in pieces) for group in ("link", "node"))
        zh.append(f"{_ZONES_ZH[zone]}内：管线 {pipes} 条、井盖 {covers} 处")
        en.append(f"{words_en}: {pipes} pipe(s), {covers} cover(s)")
    blind = sum(piece.group == "link" and piece.crown_depth_m is None for piece in found.pieces)
    if blind:
        zh.append(f"其中埋深未知 {blind} 条")
        en.append(f"of unknown depth: {blind}")
    zh.append(f"应通知权属单位 {len(found.notices)} 家")
    en.append(f"owners to notify: {len(found.notices)}")
    return {"zh": "；".join(zh) + "。", "en": "; ".join(en) + "."}


def _on_map(lines: Sequence[Sequence[Sequence[float]]], plane: LocalPlane) -> dict[str, Any] | None:
    placed = []
    for line in lines:
        at = np.array(line)
        lon, lat = plane.degrees(at[:, 0], at[:, 1])
        placed.append(np.round(np.column_stack((lon, lat)), 9).tolist())
    long = [line for line in placed if len(line) > 1]
    if len(long) == 1:
        return {"type": "LineString", "coordinates": long[0]}
    if long:
        return {"type": "MultiLineString", "coordinates": long}
    return {"type": "Point", "coordinates": placed[0][0]} if placed else None


# ---- clearances, coverage


def _conflict_json(found: Conflicts, n: int, laid: Sequence[Laid], lon: float, lat: float) -> dict[str, Any]:
    sides = []
    for network, at in ((found.one_network[n], found.one[n]), (found.other_network[n], found.other[n])):
        one = laid[int(network)]
        asset = one.edge[int(at)]
        sides.append(
            {"asset": asset.id, "type": asset.type, "model": asset.model, "system": one.pipes.network.system,
             "diameter_m": round(float(one.pipes.radius[int(at)]) * 2, 4) or None,
             "pressure_class": one.pipes.pressure_class[int(at)] or None}
        )  # fmt: skip
    kind = KINDS[int(found.kind[n])]
    actual, required = float(found.actual_m[n]), float(found.required_m[n])
    is_known = math.isfinite(actual)
    zh = f"{sides[0]['asset']} 与 {sides[1]['asset']} {_KINDS_ZH[kind]}"
    en = f"{sides[0]['asset']} and {sides[1]['asset']}, {kind}"
    zh += f"，净距 {actual:.2f} 米，应不小于 {required:g} 米" if is_known else f"，高程不明，应不小于 {required:g} 米"
    en += f": {actual:.2f} m apart, at least {required:g} m asked" if is_known else f": unknown, {required:g} m asked"
    return {
        "kind": kind,
        "one": sides[0],
        "other": sides[1],
        "lon": round(lon, 9),
        "lat": round(lat, 9),
        "actual_m": rounded(actual),
        "required_m": required,
        "short_m": rounded(required - actual),
        "mark": found.mark[n],
        "text": {"zh": zh, "en": en},
    }


def _share(one: AreaShare) -> dict[str, float]:
    return {"length_m": one.length_m, "covered_m": one.covered_m, "share": one.share}


def _total(area: str, length_m: float, covered_m: float) -> AreaShare:
    return AreaShare(area, length_m, covered_m, covered_m / length_m if length_m > 0 else 0.0)


def _rounded(one: dict[str, Any]) -> dict[str, Any]:
    return one | {
        "length_m": round(one["length_m"], 3),
        "covered_m": round(one["covered_m"], 3),
        "share": round(one["share"], 6),
    }
