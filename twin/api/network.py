"""What the network around an asset answers: what hangs together with it, what is near, whom a pipe serves, the profile
(纵断面) to another asset."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import numpy as np
import shapely
from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from twin.api.assets import AsOf, Known, Networks, find_asset, reached, with_sensors
from twin.api.errors import Invalid
from twin.api.laid import Laid, all_in_box, around, hull, laid_in, rounded, shapes
from twin.api.parameters import (
    BOM,
    CSV,
    JSON,
    After,
    Limit,
    Text,
    accepted,
    cursor,
    example,
    instant,
    json_answer,
    page,
    parse_cursor,
    words,
)
from twin.api.view import ServiceView
from twin.model import Conflict, Floats, Indices, Micros, NotFound, Quality, iso
from twin.network import plan
from twin.network.graph import Place
from twin.network.profile import FINDINGS, Profile, profile
from twin.network.tracing import component, trace
from twin.plane import LocalPlane
from twin.store import assets as store
from twin.store.assets import StoredAsset

FAR_M: Final = 5_000.0  # the furthest that "near" reaches
NEAR_MOST: Final = 20_000  # assets looked at for one ring of it
LEVEL_KIND: Final = "drainage.level"
_404: Final[dict[int | str, dict[str, Any]]] = {404: {"description": "没有该设施 / no such asset"}}
_409: Final[dict[int | str, dict[str, Any]]] = {
    409: {"description": "设施不在管网中，或未定位 / the asset is in no network, or not on the map"}
}


def router(service: ServiceView, networks: Networks) -> APIRouter:
    routes = APIRouter(tags=["管网 networks"])
    reader = service.reader

    async def located(id: str, at: Micros | None) -> tuple[StoredAsset, Known, Place, dict[str, Any]]:
        asset = await find_asset(reader, id, at)
        known, place, version = await networks.find(reader, asset, at)
        head = {
            "asset": asset.id,
            "model": asset.model,
            "version": await store.number_of(reader, version),
            "system": known.network.system,
        }
        return asset, known, place, head

    @routes.get(
        "/assets/{id:path}/component",
        summary="连通部分 / What hangs together with it",
        description="经开启的管段与之连通的全部设施，不论流向；`past_closed` 时越过关闭的阀门和管段。 / "
        "Everything that open pipes connect with it, whatever the flow; `past_closed` also passes what is closed.",
        responses=example(
            {"asset": "dn:J-12", "model": "dn", "version": 1, "system": "water", "nodes": 120, "links": 131,
             "length_m": 8120.5, "sources": ["dn:R-1"], "items": [{"asset": "dn:J-1", "type": "junction"}],
             "next": None}
        ) | _404 | _409,
    )  # fmt: skip
    async def component_of(
        id: str, past_closed: bool = False, as_of: AsOf = None, limit: Limit = 100, after: After = None
    ) -> Response:
        at = instant("as_of", as_of)
        first = (parse_cursor("component", after, int) or (0,))[0]
        _, known, place, head = await located(id, at)
        network = known.network
        found = await run_in_threadpool(component, known.graph, place, past_closed=past_closed)
        parts = [
            *((known.node_id[n], network.node_type[n]) for n in found.node.tolist()),
            *((known.edge_id[e], network.edge_type[e]) for e in found.edge.tolist()),
        ]
        parts = [(id_, type_) for id_, type_ in parts if id_]
        part = parts[max(first, 0) : max(first, 0) + limit]
        return page(
            [{"asset": id_, "type": type_} for id_, type_ in part],
            cursor("component", first + limit) if first + limit < len(parts) else None,
            **head,
            nodes=len(found.node),
            links=len(found.edge),
            length_m=round(float(known.graph.length[found.edge].sum()), 3),
            sources=[
                known.node_id[n] for n in found.node.tolist() if network.node_type[n] in ("reservoir", "source", "tank")
            ],
        )

    @routes.get(
        "/assets/{id:path}/near",
        summary="附近的设施 / What is near",
        description="由近及远。`along=plane`：平面距离，含所有已定位模型；`along=network`：沿管网的距离。"
        "`type` 为设施类型或文件用词，可用逗号列出多个。 / "
        "Nearest first: in the plane, out of all models on the map, or along the open pipes of its network. `type`: a "
        "comma list of types of assets or of files' own words.",
        responses=example(
            {"asset": "dn:J-12", "along": "plane", "distance_m": 200,
             "items": [{"asset": "dn:V-3", "type": "valve", "distance_m": 12.5, "order": 0, "sensors": [],
                        "model": "dn", "system": "water", "name": {"zh": "3 号阀", "en": None}, "lon": 114.05,
                        "lat": 22.54}], "next": None}
        ) | _404 | _409,
    )  # fmt: skip
    async def near(
        id: str,
        distance_m: Annotated[float, Query(gt=0, le=FAR_M, description="至多多远（米） / how far, metres")] = 200.0,
        along: Annotated[Literal["plane", "network"], Query(description="plane, network")] = "plane",
        type: Text = None,
        as_of: AsOf = None,
        limit: Limit = 20,
    ) -> Response:
        at = instant("as_of", as_of)
        types = _types(type)
        if along == "network":
            _, known, place, head = await located(id, at)
            found = await run_in_threadpool(trace, known.graph, place, "both", limit_m=distance_m)
            all_ = await run_in_threadpool(reached, known, found, place)
            own = (known.node_key if place.group == "node" else known.edge_key)[place.at]
            some = [one for one in all_ if one[0] != own and (not types or one[2] in types)][:limit]
            items = await with_sensors(reader, some, at)
            return json_answer({**head, "along": along, "distance_m": distance_m, "items": items, "next": None})
        asset = await find_asset(reader, id, at)
        extent, plane, shape = await _placed(asset)
        # Rings that grow: what is near is found without looking at all that is far.
        radius = min(25.0, distance_m)
        while True:
            area = around(extent, radius)[1]
            candidates = await all_in_box(reader, area, NEAR_MOST, types=types, at=at)
            ranked = await run_in_threadpool(_by_distance, candidates, shape, plane, radius, asset.key)
            if len(ranked) >= limit or radius >= distance_m:
                break
            radius = min(radius * 4, distance_m)
        ranked = ranked[:limit]
        sensors = await store.sensors_on(reader, [other.key for _, other in ranked], at)
        items = [
            {"asset": other.id, "type": other.type, "distance_m": round(metres, 3), "order": n,
             "sensors": sensors.get(other.key, []), **_place(other)}
            for n, (metres, other) in enumerate(ranked)
        ]  # fmt: skip
        return json_answer(
            {"asset": asset.id, "along": along, "distance_m": distance_m, "items": items, "next": None}
        )  # fmt: skip

    @routes.get(
        "/assets/{id:path}/serves",
        summary="管段服务的建筑 / The buildings that a pipe serves",
        description="该管网中离建筑最近的管段即为其服务管段，至多 `within_m` 米（工程默认值 50 m）。 / "
        "A building is served by the nearest pipe of the network, no further than `within_m` (50 m by default, an "
        "engineering default).",
        responses=example(
            {"asset": "dn:P-7", "model": "dn", "version": 1, "system": "water", "within_m": 50,
             "items": [{"asset": "city:B-1", "type": "building", "distance_m": 18.2, "model": "city", "system": None,
                        "name": {"zh": "1 号楼", "en": None}, "lon": 114.05, "lat": 22.54}], "next": None}
        ) | _404 | _409,
    )  # fmt: skip
    async def serves(
        id: str,
        within_m: Annotated[float, Query(gt=0, le=500, description="米 / metres")] = plan.SERVED_WITHIN_M,
        as_of: AsOf = None,
        limit: Limit = 1000,
    ) -> Response:
        at = instant("as_of", as_of)
        asset, _, place, head = await located(id, at)
        if place.group != "link":
            raise Conflict(f"{asset.id} is no pipe / {asset.id} 不是管段")
        extent, plane, shape = await _placed(asset)
        near = await all_in_box(reader, around(extent, within_m)[1], NEAR_MOST, types=["building"], at=at)
        buildings = [b for _, b in await run_in_threadpool(_by_distance, near, shape, plane, within_m, asset.key)]
        found: list[tuple[float, StoredAsset]] = []
        if buildings:
            area = around(hull([b.extent or extent for b in buildings]), within_m)[1]
            laid = await laid_in(
                reader, networks, area, plane, types=["pipe", asset.type or "pipe"], models=[asset.model or ""], at=at
            )
            found = await run_in_threadpool(_served, laid, asset, buildings, plane, within_m)
        items = [
            {"asset": b.id, "type": b.type, "distance_m": round(metres, 3), **_place(b)} for metres, b in found[:limit]
        ]
        return json_answer({**head, "within_m": within_m, "items": items, "next": None, "total": len(found)})

    @routes.get(
        "/assets/{id:path}/profile",
        summary="纵断面 / The profile to another asset",
        description="沿最短路径：先顺流，再逆流，再不论流向。`points` 为节点，`pipes` 为管段，首尾各有管底、管顶"
        "高程；水位取节点上 `drainage.level` 测点的最新读数（管底以上）。`Accept: text/csv` 返回表格。 / "
        "By the shortest way: with the flow, else against it, else any. Levels are the latest readings of "
        "`drainage.level` sensors on the nodes, above their inverts; between them by distance. As a table with "
        "`Accept: text/csv`.",
        responses={
            200: {
                "description": "OK",
                "content": {
                    JSON: {
                        "example": {
                            "asset": "dn:J-1", "to": "dn:J-2", "model": "dn", "version": 1, "system": "drainage",
                            "sense": "downstream", "length_m": 30.0,
                            "points": [{"asset": "dn:J-1", "type": "manhole", "chainage_m": 0.0, "ground_m": 14.2,
                                        "level_m": 11.4, "is_observed": True, "sensor": "well-1/level",
                                        "observed_at": "2026-07-01T00:00:00Z"}],
                            "pipes": [{"asset": "dn:C-1", "type": "pipe", "length_m": 30.0, "diameter_m": 0.6,
                                       "invert_m": [11.0, 10.9], "crown_m": [11.6, 11.5], "slope": 0.0033,
                                       "is_forward": True}],
                            "findings": [{"what": "adverse-slope", "asset": "dn:C-1", "chainage_m": 0.0,
                                          "amount_m": 0.12, "text": {"zh": "逆坡", "en": "rises …"}}],
                        }
                    },
                    CSV: {"example": "chainage_m,asset,ground_m,level_m,invert_before_m,…\n"},
                },
            }
        } | _404 | {409: {"description": "两者不在同一管网或不连通 / not in one network, or not connected"}},
    )  # fmt: skip
    async def profile_to(
        id: str,
        request: Request,
        to: Annotated[str, Query(max_length=512, description="终点设施 / the asset where it ends")],
        as_of: AsOf = None,
    ) -> Response:
        is_csv = accepted(request, [JSON, CSV]) == CSV
        at = instant("as_of", as_of)
        asset, known, place, head = await located(id, at)
        other = await find_asset(reader, to, at)
        target = known.find(other.key)
        if target is None:
            text = f"{other.id} is not in the network of {asset.id} / {other.id} 与 {asset.id} 不在同一管网"
            raise Conflict(text)
        graph = known.graph
        begin = place.at if place.group == "node" else int(graph.start[place.at])
        end = target.at if target.group == "node" else int(graph.end[target.at])
        level, seen = await _levels(known, at)
        try:
            found = await run_in_threadpool(profile, graph, begin, end, level=level)
        except NotFound:
            text = f"no open pipes lead from {asset.id} to {other.id} / {asset.id} 与 {other.id} 之间不连通"
            raise Conflict(text) from None
        if is_csv:
            return Response(BOM + _profile_csv(known, found), media_type="text/csv; charset=utf-8")
        return json_answer({**head, "to": other.id, **_profile_json(known, found, seen)})

    async def _levels(known: Known, at: Micros | None) -> tuple[Floats, dict[int, tuple[str, Micros]]]:
        """The heights of water at nodes [N], and of which sensor, when."""
        level = np.full(len(known.node_key), np.nan)
        seen: dict[int, tuple[str, Micros]] = {}
        catalog, state = service.catalog, service.state
        if not any(sensor.kind == LEVEL_KIND for sensor in catalog.sensors):
            return level, seen
        keys = known.node_key.tolist()
        bound = await store.sensors_on(reader, [key for key in keys if key >= 0], at)
        for node, key in enumerate(keys):
            for name in bound.get(key, ()):
                index = catalog.find(name)
                if catalog.sensors[index].kind != LEVEL_KIND:
                    continue
                value, observed_at = math.nan, 0
                if at is not None:
                    value, observed_at = await reader.last(index, at) or (math.nan, 0)
                elif index < len(state) and int(state.quality[index]) < Quality.FIRST_BAD:
                    value, observed_at = float(state.value[index]), int(state.observed_at[index])
                if math.isfinite(value) and (node not in seen or observed_at > seen[node][1]):
                    level[node] = known.network.z[node] + value
                    seen[node] = name, observed_at
        return level, seen

    async def _placed(asset: StoredAsset) -> tuple[tuple[float, float, float, float], LocalPlane, Any]:
        """Box, plane and shape of an asset. Raises `Conflict` where it is not on the map."""
        extent = asset.extent
        if extent is None and asset.lon is not None and asset.lat is not None:
            extent = asset.lon, asset.lat, asset.lon, asset.lat
        if extent is not None:
            plane = around(extent, 0.0)[0]
            shape = (await run_in_threadpool(shapes, [asset], plane))[0]
            if shape is None:  # a whole whose parts have the shapes
                west, south, east, north = extent
                x, y = plane.metres(np.array([west, east]), np.array([south, north]))
                shape = shapely.box(x[0], y[0], x[1], y[1])
            return extent, plane, shape
        raise Conflict(f"{asset.id} is not on the map / {asset.id} 未定位")

    return routes


def _types(text: str | None) -> tuple[str, ...]:
    if text is not None and "\0" in text:
        raise Invalid("type", "must hold no character U+0000", "不能含空字符")
    return tuple(word.lower() for word in words("type", text))


def _place(asset: StoredAsset) -> dict[str, Any]:
    return {
        "model": asset.model,
        "system": asset.system or None,
        "name": {"zh": asset.name_zh or None, "en": asset.name_en or None},
        "lon": asset.lon,
        "lat": asset.lat,
    }


def _by_distance(
    candidates: Sequence[StoredAsset], shape: Any, plane: LocalPlane, most_m: float, own: int
) -> list[tuple[float, StoredAsset]]:  # fmt: skip
    others = [asset for asset in candidates if asset.key != own]
    found = shapely.distance(shapes(others, plane), shape)  # NaN for what has no shape
    near = [(float(d), asset) for d, asset in zip(found, others, strict=True) if d <= most_m]
    return sorted(near, key=lambda one: (one[0], one[1].key))


def _served(
    laid: Sequence[Laid], asset: StoredAsset, buildings: Sequence[StoredAsset], plane: LocalPlane, within_m: float
) -> list[tuple[float, StoredAsset]]:  # fmt: skip
    for one in laid:
        edge = next((e for e, own in enumerate(one.edge) if own.key == asset.key), None)
        if edge is not None:
            served = plan.service(one.pipes, list(shapes(buildings, plane)), within_m=within_m)
            at: Indices = np.flatnonzero(served.edge == edge).astype(np.int32)
            found = [(float(served.distance_m[n]), buildings[n]) for n in at.tolist()]
            return sorted(found, key=lambda item: (item[0], item[1].key))
    return []


def _profile_json(known: Known, found: Profile, seen: dict[int, tuple[str, Micros]]) -> dict[str, Any]:
    network, graph = known.network, known.graph
    points = []
    for n, node in enumerate(found.node.tolist()):
        sensor, observed_at = seen.get(node, (None, None)) if found.is_observed[n] else (None, None)
        points.append(
            {"asset": known.node_id[node] or None, "type": network.node_type[node],
             "chainage_m": rounded(found.chainage_m[n]), "ground_m": rounded(found.ground_m[n]),
             "level_m": rounded(found.level_m[n]), "is_observed": bool(found.is_observed[n]), "sensor": sensor,
             "observed_at": None if observed_at is None else iso(observed_at)}
        )  # fmt: skip
    pipes = [
        {"asset": known.edge_id[edge] or None, "type": network.edge_type[edge],
         "length_m": rounded(graph.length[edge]), "diameter_m": rounded(network.diameter[edge]),
         "invert_m": [rounded(v) for v in found.invert_m[n]], "crown_m": [rounded(v) for v in found.crown_m[n]],
         "slope": round(float(found.slope[n]), 6) if math.isfinite(found.slope[n]) else None,
         "is_forward": bool(found.is_forward[n])}
        for n, edge in enumerate(found.edge.tolist())
    ]  # fmt: skip
    findings = []
    for one in found.findings:
        zh, en = FINDINGS[one.what]
        ids = known.node_id if one.place.group == "node" else known.edge_id
        findings.append(
            {"what": one.what, "asset": ids[one.place.at] or None, "chainage_m": rounded(one.chainage_m),
             "amount_m": rounded(one.amount_m),
             "text": {"zh": f"{zh}，{one.amount_m:.2f} 米", "en": f"{en}, by {one.amount_m:.2f} m"}}
        )  # fmt: skip
    return {
        "sense": found.sense,
        "length_m": rounded(found.chainage_m[-1]),
        "points": points,
        "pipes": pipes,
        "findings": findings,
    }


def _profile_csv(known: Known, found: Profile) -> bytes:
    """A row for each node: what ends there, what begins there."""
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(("chainage_m", "asset", "ground_m", "level_m", "invert_before_m", "invert_after_m", "crown_before_m",
                   "crown_after_m", "pipe_after"))  # fmt: skip
    last = len(found.node) - 1
    for n, node in enumerate(found.node.tolist()):
        before = (found.invert_m[n - 1, 1], found.crown_m[n - 1, 1]) if n > 0 else (math.nan, math.nan)
        after = (found.invert_m[n, 0], found.crown_m[n, 0]) if n < last else (math.nan, math.nan)
        told = [rounded(v) for v in (found.ground_m[n], found.level_m[n], before[0], after[0], before[1], after[1])]
        pipe = known.edge_id[int(found.edge[n])] if n < last else ""
        rows.writerow((rounded(found.chainage_m[n]), known.node_id[node], *told, pipe))
    return file.getvalue().encode()
