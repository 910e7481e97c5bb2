"""Assets (设施): by box, type and text, now or as the models were; one of them; where a network leads from it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Final, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from models3d import crs as systems
from twin import placing
from twin.api.errors import Invalid
from twin.api.parameters import (
    After,
    Box,
    Limit,
    Text,
    accepted,
    box,
    cursor,
    example,
    instant,
    json_answer,
    page,
    parse_cursor,
)
from twin.api.view import ServiceView
from twin.city import Geometry, Network
from twin.model import Conflict, Indices, Micros, NotFound, iso
from twin.network.graph import Graph, Place, Places
from twin.network.isolation import Segments
from twin.network.tracing import Trace, trace
from twin.store import assets as store
from twin.store.assets import AssetQuery, StoredAsset
from twin.store.reader import Reader

GEOJSON: Final = "application/geo+json"
DIRECTIONS: Final = ("upstream", "downstream", "isolate")
GRAPHS_KEPT: Final = 8
ELEMENTS_KEPT: Final = 3_000_000  # nodes and edges of the graphs kept

EXAMPLE: Final[dict[str, Any]] = {
    "id": "dn:J-12", "model": "dn", "version": 1, "type": "manhole", "element": "JUNCTION",
    "name": {"zh": "莲花路 12 号井", "en": None}, "tenant": "drainage-co", "attributes": {"invert_m": 2.1},
    "level": "CIM4", "area": "福田区/莲花街道/0101", "code": None, "system": "drainage", "parent": None,
    "lon": 114.05, "lat": 22.54, "extent": [114.05, 22.54, 114.05, 22.54],
}  # fmt: skip
_REACHED: Final = {"asset": "dn:C-7", "type": "pipe", "distance_m": 0.0, "order": 1, "sensors": ["flow-7/flow"]}
AsOf = Annotated[
    str | None,
    Query(description="按当时的模型版本，RFC 3339 / as the models were then", examples=["2026-07-01T00:00:00Z"]),
]


def asset_json(asset: StoredAsset) -> dict[str, Any]:
    return {
        "id": asset.id,
        "model": asset.model,
        "version": asset.version,
        "type": asset.type,
        "element": asset.element or None,
        "name": {"zh": asset.name_zh or None, "en": asset.name_en or None},
        "tenant": asset.tenant,
        "attributes": asset.attributes,
        "level": f"CIM{asset.level}" if asset.level else None,
        "area": asset.area or None,
        "code": asset.code or None,
        "system": asset.system or None,
        "parent": asset.parent,
        "lon": asset.lon,
        "lat": asset.lat,
        "extent": asset.extent,
    }


def to_map(crs: str) -> placing.ToMap | None:
    """From a model's coordinates to longitude and latitude; None where nobody knows what they mean."""
    try:
        return systems.parse(crs).to_map if crs else None
    except systems.UnknownCrs:
        return None


def geojson_of(asset: StoredAsset) -> dict[str, Any] | None:
    """An asset's shape on the map; of one that only sensors name, where its first sensor is."""
    if asset.model is None and asset.lon is not None:
        return {"type": "Point", "coordinates": [asset.lon, asset.lat]}
    convert = to_map(asset.crs)
    return None if convert is None else placing.geojson(asset.geometry, convert)


def feature(asset: StoredAsset, more: dict[str, Any] | None = None) -> dict[str, Any]:
    item = asset_json(asset) | (more or {})
    extent = item.pop("extent")
    given = {"type": "Feature", "id": asset.id, "geometry": geojson_of(asset), "properties": item}
    return given | {"bbox": extent} if extent else given


def _meets(found: Sequence[StoredAsset], area: placing.Box) -> list[StoredAsset]:
    """Those of which a part lies in the box; what came without geometry lies wholly in it, or has no shape."""
    kept = []
    for asset in found:
        convert = to_map(asset.crs) if asset.packed is not None else None
        if (
            convert is None
            or asset.extent is None
            or placing.within(asset.extent, area)
            or placing.meets(asset.geometry, convert, area)
        ):
            kept.append(asset)
    return kept


@dataclass(frozen=True, eq=False)
class Known:
    """A network of a model's version, ready for questions: `keys`, `ids` of the assets that its nodes and edges are
    (key -1, id "" of none)."""

    network: Network
    node_key: Indices
    edge_key: Indices
    node_id: list[str]
    edge_id: list[str]

    @cached_property
    def graph(self) -> Graph:
        return Graph(self.network)

    @cached_property
    def segments(self) -> Segments:
        return Segments(self.graph)

    def __len__(self) -> int:
        return len(self.node_key) + len(self.edge_key)

    def find(self, key: int) -> Place | None:
        """Where an asset stands in this network."""
        groups: tuple[tuple[Literal["node", "link"], Indices], ...] = (
            ("node", self.node_key),
            ("link", self.edge_key),
        )
        for group, keys in groups:
            at = np.flatnonzero(keys == key)
            if len(at):
                return Place(group, int(at[0]))
        return None


class Networks:
    """The networks lately asked for, by the version of their model: what a version says never changes. At most
    `GRAPHS_KEPT` versions and `ELEMENTS_KEPT` elements; the longest unused goes first."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, list[Known]] = OrderedDict()
        self._loading = asyncio.Lock()

    async def of(self, reader: Reader, version: int) -> list[Known]:
        async with self._loading:
            known = self._known.get(version)
            if known is None:
                known = [await self._load(reader, *one) for one in await store.networks(reader, version)]
                self._known[version] = known
                while len(self._known) > 1 and (
                    len(self._known) > GRAPHS_KEPT or sum(map(len, self._flat())) > ELEMENTS_KEPT
                ):
                    self._known.popitem(last=False)
            self._known.move_to_end(version)
            return known

    async def find(self, reader: Reader, asset: StoredAsset, at: Micros | None) -> tuple[Known, Place, int]:
        """The network that an asset is in, its place there, and the version. Raises `Conflict` if it is in none."""
        version = None if asset.model is None else await store.version_at(reader, asset.model, at)
        for known in [] if version is None else await self.of(reader, version):
            place = known.find(asset.key)
            if place is not None:
                return known, place, version or 0
        raise Conflict(f"{asset.id} is in no network / {asset.id} 不在任何管网中")

    def _flat(self) -> list[Known]:
        return [one for several in self._known.values() for one in several]

    @staticmethod
    async def _load(reader: Reader, network: Network, node_key: Indices, edge_key: Indices) -> Known:
        ids = await store.ids_of(reader, np.concatenate((node_key, edge_key)).tolist())
        return Known(
            network,
            node_key,
            edge_key,
            [ids.get(key, "") for key in node_key.tolist()],
            [ids.get(key, "") for key in edge_key.tolist()],
        )


def router(service: ServiceView, networks: Networks) -> APIRouter:
    routes = APIRouter(tags=["设施 assets"])

    @routes.get(
        "/assets",
        summary="设施列表 / List assets",
        description="`type` 为设施类型，或模型文件中的用词；`q` 为编号、名称、编码所含文字；`area` 含其下各级。"
        "`Accept: application/geo+json` 返回 GeoJSON；未定位的设施其 geometry 为 null。 / "
        "`type` is a type of asset or the model file's own word; `q` a part of id, names or code; `area` takes in all "
        "below it. GeoJSON by `Accept: application/geo+json`, with a null geometry for what is not on the map.",
        responses={
            200: {
                "description": "OK",
                "content": {
                    "application/json": {"example": {"items": [EXAMPLE], "next": None}},
                    GEOJSON: {"example": {"type": "FeatureCollection", "features": [], "next": None}},
                },
            }
        },
    )
    async def list_assets(
        request: Request,
        bbox: Box = None,
        type: Text = None,
        tenant: Text = None,
        q: Annotated[
            str | None, Query(max_length=200, description="编号、名称、编码所含文字 / text to look for")
        ] = None,
        model: Text = None,
        system: Text = None,
        area: Annotated[str | None, Query(max_length=512, description="区/街道/网格 / district/street/grid")] = None,
        code: Annotated[str | None, Query(max_length=64, description="部件码、井盖号 / the survey's code")] = None,
        as_of: AsOf = None,
        limit: Limit = 100,
        after: After = None,
    ) -> Response:
        is_geojson = accepted(request, ["application/json", GEOJSON]) == GEOJSON
        last = (parse_cursor("assets", after, int) or (0,))[0]
        texts = {"type": type, "tenant": tenant, "q": q, "model": model, "system": system, "area": area, "code": code}
        for name, text in texts.items():
            if text is not None and "\0" in text:
                raise Invalid(name, "must hold no character U+0000", "不能含空字符")
        which = AssetQuery(
            box(bbox), **{name: text or None for name, text in texts.items()}, at=instant("as_of", as_of)
        )
        found: list[StoredAsset] = []
        async for some in store.matching(service.reader, which, last, limit + 1, is_geojson):
            found += some if which.box is None else await run_in_threadpool(_meets, some, which.box)
            if len(found) > limit:
                break
        following = cursor("assets", found[limit - 1].key) if len(found) > limit else None
        if not is_geojson:
            return page([asset_json(asset) for asset in found[:limit]], following)
        features = await run_in_threadpool(lambda: [feature(asset) for asset in found[:limit]])
        return _geojson({"type": "FeatureCollection", "features": features, "next": following})

    @routes.get(
        "/assets/{id:path}/trace",
        summary="溯源、去向、关阀 / Upstream, downstream, isolation",
        description="按距离排列的设施与测点。`isolate`：`valves` 为应关阀门，`segment` 为停供管段，"
        "`cut_off` 为因此断供的部分；`stuck` 为关不动的阀门，可重复。 / "
        "Assets and sensors in order of distance. `isolate`: `valves` to close, the `segment` between them, and what "
        "is `cut_off` by that; `stuck`, which may be repeated, names valves that cannot be closed.",
        responses=example(
            {"asset": "dn:J-12", "direction": "downstream", "model": "dn", "version": 1, "system": "drainage",
             "items": [_REACHED]}
        )
        | {
            404: {"description": "没有该设施 / no such asset"},
            409: {"description": "设施不在任何管网中 / the asset is in no network"},
        },
    )  # fmt: skip
    async def trace_asset(
        id: str,
        direction: Annotated[str, Query(max_length=64, description="upstream, downstream, isolate")],
        as_of: AsOf = None,
        within_m: Annotated[
            float | None, Query(gt=0, description="至多多远（米） / no further than so many metres")
        ] = None,
        stuck: Annotated[list[str] | None, Query(max_length=100)] = None,
    ) -> Response:
        if direction not in DIRECTIONS:
            raise Invalid("direction", f"must be one of {', '.join(DIRECTIONS)}", f"只能是 {'、'.join(DIRECTIONS)}")
        at = instant("as_of", as_of)
        asset = await find_asset(service.reader, id, at)
        known, place, version = await networks.find(service.reader, asset, at)
        head = {
            "asset": asset.id,
            "direction": direction,
            "model": asset.model,
            "version": await store.number_of(service.reader, version),
            "system": known.network.system,
        }
        if direction == "isolate":
            closed = []
            for name in stuck or ():
                key, id_ = await store.resolve(service.reader, name)
                valve = known.find(key)
                if valve is None:
                    raise Conflict(f"{id_} is no valve of this network / {id_} 不是该管网的阀门")
                closed.append(valve)
            isolated = await _isolate(service.reader, known, place, closed, at)
            return await run_in_threadpool(json_answer, head | isolated)
        found = await run_in_threadpool(
            trace,
            known.graph,
            place,
            "upstream" if direction == "upstream" else "downstream",
            limit_m=within_m or np.inf,
        )
        items = await run_in_threadpool(reached, known, found, place)
        told = await with_sensors(service.reader, items, at)
        return await run_in_threadpool(json_answer, head | {"items": told})

    @routes.get(
        "/assets/{id:path}",
        summary="一个设施 / One asset",
        description="`geometry`：经纬度的 GeoJSON；`?geometry=native` 时为模型自己的坐标（`crs`）。 / "
        "`geometry` is GeoJSON in longitude and latitude; with `?geometry=native` it is in the model's own coordinates "
        "(`crs`), every level of detail.",
        responses=example(
            EXAMPLE | {"crs": "EPSG:4547", "geometry": {"type": "Point", "coordinates": [114.05, 22.54, 2.1]},
                       "sensors": ["well-12/level"],
                       "bindings": [{"sensor": "well-12/level", "from": "2026-07-01T00:00:00Z", "to": None}],
                       "versions": [{"version": 1, "imported_at": "2026-07-01T00:00:00Z", "change": "added"}]}
        )
        | {404: {"description": "没有该设施 / no such asset"}},
    )  # fmt: skip
    async def get_asset(
        id: str,
        request: Request,
        as_of: AsOf = None,
        geometry: Annotated[str, Query(max_length=64, description="map, native")] = "map",
    ) -> Response:
        is_geojson = accepted(request, ["application/json", GEOJSON]) == GEOJSON
        if geometry not in ("map", "native"):
            raise Invalid("geometry", "must be map or native", "只能是 map 或 native")
        at = instant("as_of", as_of)
        asset = await find_asset(service.reader, id, at)
        sensors = await store.sensors_on(service.reader, [asset.key], at)
        bindings = await store.bindings_of(service.reader, asset.key)
        more = {
            "crs": asset.crs or None,
            "sensors": sensors.get(asset.key, []),
            "bindings": [
                {"sensor": sensor, "from": iso(start), "to": None if end is None else iso(end)}
                for sensor, start, end in bindings
            ],
            "versions": [
                {"version": c.version, "imported_at": iso(c.imported_at), "change": c.change}
                for c in await store.history(service.reader, asset.key)
            ],
        }
        if is_geojson:
            return _geojson(await run_in_threadpool(feature, asset, more))
        if geometry == "native":
            shape: Any = [_native(one) for one in asset.geometry]
        else:
            shape = await run_in_threadpool(geojson_of, asset)
        return json_answer(asset_json(asset) | more | {"geometry": shape})

    return routes


def _geojson(given: dict[str, Any]) -> Response:
    return Response(orjson.dumps(given, option=orjson.OPT_SERIALIZE_NUMPY), media_type=GEOJSON)


def _native(geometry: Geometry) -> dict[str, Any]:
    return {
        "type": geometry.kind,
        "lod": geometry.lod or None,
        "boundaries": geometry.boundaries,
        "vertices": np.ascontiguousarray(geometry.vertices),
        "semantics": geometry.semantics,
    }


async def find_asset(reader: Reader, name: str, at: Micros | None) -> StoredAsset:
    """An asset with its geometry, now or at a time. Raises `NotFound`."""
    key, id_ = await store.resolve(reader, name)
    asset = await store.one(reader, key, at)
    if asset is not None:
        return asset
    if at is not None:
        raise NotFound(f"{id_} was not there at {iso(at)} / 当时没有设施 {id_}")
    raise NotFound(f"{id_} is no longer in its model: ask with as_of / {id_} 已从模型中移除，可用 as_of 查询")


Reached = tuple[int, str, str, float]  # key, id, type, distance


def reached(known: Known, found: Trace, start: Place) -> list[Reached]:
    """Nodes and edges in order of distance, at equal ones the start first, then nodes before edges."""
    network = known.network
    at_node, at_edge = found.node.tolist(), found.edge.tolist()
    # Distances at 1e-6 m, so that sums along two ways that are equal on paper are equal here.
    node_m, edge_m = (np.round(column, 6).tolist() for column in (found.node_distance_m, found.edge_distance_m))
    node_key, edge_key = known.node_key.tolist(), known.edge_key.tolist()
    keyed = [
        (m, place != start, place, (node_key[n], known.node_id[n], network.node_type[n], m))
        for n, m in zip(at_node, node_m, strict=True)
        for place in [Place("node", n)]
    ]
    keyed += [
        (m, place != start, place, (edge_key[n], known.edge_id[n], network.edge_type[n], m))
        for n, m in zip(at_edge, edge_m, strict=True)
        for place in [Place("link", n)]
    ]
    keyed.sort(key=lambda one: (one[0], one[1], one[2].group != "node", one[2].at))
    return [one for *_, one in keyed if one[0] >= 0]


async def with_sensors(reader: Reader, items: Sequence[Reached], at: Micros | None) -> list[dict[str, Any]]:
    sensors = await store.sensors_on(reader, [key for key, *_ in items], at)
    return [
        {"asset": id_, "type": type_, "distance_m": round(distance, 3), "order": n, "sensors": sensors.get(key, [])}
        for n, (key, id_, type_, distance) in enumerate(items)
    ]


async def _isolate(
    reader: Reader, known: Known, place: Place, stuck: Sequence[Place], at: Micros | None
) -> dict[str, Any]:
    def work() -> tuple[Any, list[Reached]]:
        plan = known.segments.isolate(place, stuck=stuck)
        far = trace(known.graph, place, "both", past_closed=True)
        return plan, reached(known, far, place)

    try:
        plan, near = await run_in_threadpool(work)
    except NotFound as error:
        raise Conflict(f"{error} / 不是阀门") from None
    keys = {
        name: _keys(known, part)
        for name, part in (("valves", plan.close), ("segment", plan.segment), ("cut_off", plan.cut_off))
    }
    affected = keys["segment"] | keys["cut_off"]
    items = await with_sensors(reader, [one for one in near if one[0] in affected], at)
    # What no pipe joins to the place has no distance; nothing of a plan is so, but for valves told of otherwise.
    parts = {
        name: await with_sensors(reader, [one for one in near if one[0] in some], at) for name, some in keys.items()
    }
    return {
        "items": items,
        **parts,
        "closed": _ids(known, plan.closed),
        "customers": [known.node_id[n] for n in plan.customers.tolist()],
        "demand_m3h": round(plan.demand_m3h, 6),
        "length_m": round(plan.length_m, 3),
        "has_source": plan.has_source,
        "is_bounded": plan.is_bounded,
        "alternatives": [
            {"stuck": _ids(known, _single(other.valve))[0], "further": _ids(known, other.further)}
            for other in plan.alternatives
        ],
    }


def _single(place: Place) -> Places:
    none, one = np.zeros(0, np.int32), np.array([place.at], np.int32)
    return Places(one, none) if place.group == "node" else Places(none, one)


def _keys(known: Known, part: Places) -> set[int]:
    return {*known.node_key[part.node].tolist(), *known.edge_key[part.edge].tolist()}


def _ids(known: Known, part: Places) -> list[str]:
    return [known.node_id[n] for n in part.node.tolist()] + [known.edge_id[n] for n in part.edge.tolist()]
