"""OpenStreetMap extracts (`.osm.pbf`), by `osmium` (extra `osm`): buildings and their parts, bridges, roads, pipelines,
manholes, and the valves, hydrants, pumps and tanks beside them. Tags stay as they are, under `attributes`.

Buildings are closed ways and multipolygon relations (nodes with `building=*` are entrances, or have no outline, and are
left out); `manhole=*` counts on nodes. A way that carries `bridge=*` is a bridge, whatever runs over it. Heights of
the ground are not in the source: z is NaN. Pipelines are joined where they share an end node of the map.

The file is passed over four times (relations, ways, their members, nodes), so that only what is kept is in memory. How
large it unfolds is summed from its blobs' headers before anything is unpacked.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import shapely

from models3d.readers import MAX_ELEMENTS, Buffer, Problems, extra, nothing, pipes, words
from models3d.readers.geojson import names
from twin.city import Asset, CityModel, Geometry, InvalidModel, Progress
from twin.model import Floats, Ints, Problem

MAX_UNFOLDED: Final = 8 << 30  # bytes of all blobs
MAX_BLOB: Final = 32 << 20  # the format's own bound, of a blob packed or not
MAX_HEADER: Final = 64 << 10  # likewise, of a blob's header
MAX_REFERENCES: Final = 20_000_000  # of ways to nodes
MAX_MEMBERS: Final = 100_000  # of one relation

WAY_KEYS: Final = ("building", "building:part", "bridge", "highway", "man_made")
NODE_KEYS: Final = ("manhole", "man_made", "emergency", "pipeline")
MAN_MADE: Final = {
    "bridge": "bridge", "pipeline": "pipe", "manhole": "manhole", "pumping_station": "pump", "pump": "pump",
    "water_tower": "tank", "storage_tank": "tank", "gasometer": "tank", "reservoir_covered": "reservoir",
    "water_works": "reservoir", "water_well": "source", "outfall": "outfall",
}  # fmt: skip
# Roads that are not there, and things beside roads.
NO_ROADS: Final = frozenset(
    ("proposed", "construction", "abandoned", "razed", "platform", "elevator", "rest_area", "services")
)


@dataclass(slots=True)
class _Way:
    id: int
    type: str
    tags: dict[str, str]
    refs: Ints


@dataclass(slots=True)
class _Relation:
    id: int
    type: str
    tags: dict[str, str]
    members: list[tuple[int, bool]]  # way, is inner


def recognise(head: bytes, name: str) -> bool:
    return head[6:15] == b"OSMHeader" and head[4:6] == b"\x0a\x09"


def read(data: Buffer, name: str, crs: str = "", progress: Progress = nothing) -> CityModel:
    osmium = extra("osmium", "osm", name)
    _blobs(data, name)
    try:
        return _Reading(osmium, data, name, progress).model()
    except (RuntimeError, ValueError, OverflowError) as error:
        # The library's words for what it cannot read; it names no place.
        raise InvalidModel([Problem(name, "", f"{error} / 文件损坏，无法读取")], name) from None


class _Reading:
    def __init__(self, osmium: Any, data: Buffer, name: str, progress: Progress) -> None:
        self.osmium = osmium
        self.buffer = osmium.io.FileBuffer(data, "pbf")
        self.name = name
        self.progress = progress
        self.problems = Problems(name)
        self.notes = Problems(name)
        self.kept = 0
        self.references = 0

    def _objects(self, kind: Any, *filters: Any) -> Iterator[Any]:
        processor = self.osmium.FileProcessor(self.buffer, kind)
        for each in filters:
            processor.with_filter(each)
        yield from processor

    def _keep(self, references: int = 0) -> None:
        self.kept += 1
        self.references += references
        if self.kept > MAX_ELEMENTS or self.references > MAX_REFERENCES:
            raise ValueError(f"more than {MAX_ELEMENTS} objects or {MAX_REFERENCES} vertices; take a smaller extract")

    def model(self) -> CityModel:
        kinds, filters = self.osmium.osm, self.osmium.filter
        self.progress("relations", 0.0)
        relations = []
        for found in self._objects(kinds.RELATION, filters.KeyFilter(*WAY_KEYS)):
            tags = dict(found.tags)
            type_ = _type(tags)
            if type_ in ("building", "building_part", "bridge") and tags.get("type") == "multipolygon":
                if len(found.members) > MAX_MEMBERS:
                    self.problems.object(f"relation/{found.id}", "", f"has {len(found.members)} members / 成员过多")
                    continue
                parts = [(m.ref, m.role == "inner") for m in found.members if m.type == "w"]
                self._keep(len(parts))
                relations.append(_Relation(found.id, type_, tags, parts))
        self.problems.check()

        self.progress("ways", 0.2)
        ways = []
        for found in self._objects(kinds.WAY, filters.KeyFilter(*WAY_KEYS)):
            tags = dict(found.tags)
            if type_ := _type(tags):
                refs = np.array([node.ref for node in found.nodes], np.int64)
                self._keep(len(refs))
                ways.append(_Way(found.id, type_, tags, refs))
        members: dict[int, Ints] = {}
        wanted = {way for relation in relations for way, _ in relation.members}
        if wanted:
            self.progress("members", 0.4)
            for found in self._objects(kinds.WAY, filters.IdFilter(wanted)):
                members[found.id] = np.array([node.ref for node in found.nodes], np.int64)
                self._keep(len(found.nodes))

        self.progress("nodes", 0.6)
        lists = [way.refs for way in ways] + list(members.values())
        needed = np.unique(np.concatenate(lists)) if lists else np.empty(0, np.int64)
        places = np.full((len(needed), 2), math.nan)
        if len(needed):
            for found in self._objects(kinds.NODE, filters.IdFilter(needed.tolist())):
                if found.location.valid():
                    places[np.searchsorted(needed, found.id)] = found.location.lon, found.location.lat
        points: list[tuple[int, str, dict[str, str], float, float]] = []
        for found in self._objects(kinds.NODE, filters.KeyFilter(*NODE_KEYS)):
            tags = dict(found.tags)
            if (type_ := _node_type(tags)) and found.location.valid():
                self._keep()
                points.append((found.id, type_, tags, found.location.lon, found.location.lat))

        self.progress("assets", 0.8)

        def spots(refs: Ints) -> Floats:
            return places[np.searchsorted(needed, refs)] if len(refs) else np.empty((0, 2))

        return self._assembled(relations, ways, members, points, spots)

    def _assembled(self, relations: list[_Relation], ways: list[_Way], members: Mapping[int, Ints],
                   points: list[tuple[int, str, dict[str, str], float, float]],
                   spots: Callable[[Ints], Floats]) -> CityModel:  # fmt: skip
        assets: list[Asset] = []
        nodes: list[pipes.Node] = []
        by_id: dict[int, int] = {}
        incomplete = 0
        seen: Counter[str] = Counter()
        for id_, type_, tags, lon, lat in points:
            by_id.setdefault(id_, len(nodes))
            nodes.append(pipes.Node(f"node/{id_}", type_, lon, lat))
            assets.append(_asset(f"node/{id_}", type_, "node", tags, (Geometry.point(lon, lat),)))
        edges: list[pipes.Edge] = []
        implied: dict[int, str] = {}
        for way in ways:
            at = spots(way.refs)
            is_whole = bool(len(at)) and bool(np.isfinite(at).all())
            incomplete += not is_whole
            known = np.isfinite(at[:, 0])
            refs, at = way.refs[known], at[known]
            shape = _drawn(refs, at, way.type, way.tags)
            asset = _asset(f"way/{way.id}", way.type, "link" if way.type == "pipe" else "object", way.tags, shape)
            if way.type == "pipe" and len(refs) > 1 and refs[0] != refs[-1]:
                system = asset.system or "other"
                for ref, spot in ((int(refs[0]), at[0]), (int(refs[-1]), at[-1])):
                    if ref not in by_id:
                        by_id[ref] = len(nodes)
                        nodes.append(pipes.Node(f"node/{ref}", "junction", float(spot[0]), float(spot[1])))
                        implied[ref] = system
                long = pipes.length_m(np.column_stack([at, np.zeros(len(at))]), True)
                asset.attributes["length_m"] = round(long, 3)
                edges.append(pipes.Edge(asset.local, "pipe", system, by_id[int(refs[0])], by_id[int(refs[-1])], long,
                                        asset.attributes.get("diameter_m", math.nan),
                                        direction=int(system in pipes.ONE_WAY)))  # fmt: skip
            assets.append(asset)
        for ref, system in implied.items():
            node = nodes[by_id[ref]]
            assets.append(
                Asset(node.local, "junction", "node", geometry=(Geometry.point(node.x, node.y),), system=system)
            )
        for relation in relations:
            rings: dict[bool, list[Floats]] = {False: [], True: []}
            is_whole = all(way in members for way, _ in relation.members)
            for is_inner in (False, True):
                chains = [members[way] for way, inner in relation.members if inner == is_inner and way in members]
                closed, has_rest = _rings(chains)
                is_whole &= not has_rest
                for chain in closed:
                    at = spots(chain)
                    is_whole &= bool(np.isfinite(at).all())
                    at = at[np.isfinite(at[:, 0])]
                    if len(at) > 2:
                        rings[is_inner].append(at)
            incomplete += not is_whole
            shape = _surfaces(rings[False], rings[True])
            assets.append(_asset(f"relation/{relation.id}", relation.type, "object", relation.tags, shape))
        for asset in assets:
            seen[asset.local] += 1
            if seen[asset.local] == 2:
                self.problems.object(asset.local, "id", "is there twice / 编号重复")
        self.problems.check()
        if incomplete:
            text = f"{incomplete} ways or relations reach beyond the extract: drawn as far as they are in it"
            self.notes.add(self.name, "", f"{text} / {incomplete} 个对象在范围外不完整")
        self.progress("done", 1.0)
        metadata = {"source": "OpenStreetMap", "licence": "ODbL 1.0, © OpenStreetMap contributors"}
        return CityModel("osm", assets, pipes.networks(nodes, edges), "EPSG:4326", "", metadata, self.notes.told())


def _type(tags: Mapping[str, str]) -> str:
    """What a way or relation is; "" if it is nothing that we keep."""
    if tags.get("building", "no") != "no":
        return "building"
    if tags.get("building:part", "no") != "no":
        return "building_part"
    if tags.get("man_made") in MAN_MADE and tags["man_made"] != "manhole":
        return MAN_MADE[tags["man_made"]]
    if "highway" in tags and tags["highway"] not in NO_ROADS:
        return "bridge" if tags.get("bridge", "no") != "no" else "road"
    return "bridge" if tags.get("bridge", "no") not in ("no", "abandoned", "proposed") else ""


def _node_type(tags: Mapping[str, str]) -> str:
    if "manhole" in tags or tags.get("man_made") == "manhole":
        return "manhole"
    if tags.get("emergency") == "fire_hydrant":
        return "hydrant"
    if tags.get("pipeline") == "valve":
        return "valve"
    type_ = MAN_MADE.get(tags.get("man_made", ""), "")
    return type_ if type_ not in ("bridge", "pipe") else ""


def _asset(local: str, type_: str, group: str, tags: dict[str, str], shape: tuple[Geometry, ...]) -> Asset:
    ours: dict[str, Any] = {}
    height = words.section(tags.get("height"), 1.0)
    if type_ in ("building", "building_part", "bridge") and height is not None and 0 < height[0] < 5000:
        ours["height_m"] = height[0]
    floors = words.number(tags.get("building:levels"))
    if floors is not None and 0 < floors < 500:
        ours["floors"] = int(floors) if floors == int(floors) else floors
    system = ""
    if type_ == "pipe" or type_ in pipes.NODE_TYPES:
        told = (
            tags.get(key, "") for key in ("substance", "manhole", "type", "pipeline", "fire_hydrant:type", "utility")
        )
        system = next((found for text in told if (found := words.system_of(text))), "")
        system = system or ("water" if type_ == "hydrant" else "other" if type_ == "pipe" else "")
        size = words.section(tags.get("diameter"), 0.001)
        if type_ == "pipe" and size is not None and 0 < size[0] < 20:
            ours["diameter_m"] = size[0]
        for name, key in (("owner", "operator"), ("material", "material"), ("pressure_class", "pressure")):
            if tags.get(key):
                ours[name] = tags[key]
    year = words.year_of(tags.get("start_date", ""))
    if year is not None:
        ours["year"] = year
    element = next((f"{key}={tags[key]}" for key in (*WAY_KEYS, *NODE_KEYS) if key in tags), "")
    zh, en = names(tags)
    return Asset(local, type_, group, element, zh, en, {**tags, **ours}, shape, system=system)


def _drawn(refs: Ints, at: Floats, type_: str, tags: Mapping[str, str]) -> tuple[Geometry, ...]:
    """A way as a surface, if it is closed and of a kind that is one, or as a line."""
    is_closed = len(refs) > 3 and refs[0] == refs[-1]
    is_area = type_ not in ("road", "pipe") and not ("highway" in tags and tags.get("area") != "yes")
    if is_closed and (is_area or tags.get("area") == "yes"):
        return _surfaces([at[:-1]], [])
    if len(refs) > 1:
        return (Geometry.line(np.column_stack([at, np.full(len(at), math.nan)])),)
    return (Geometry.point(float(at[0, 0]), float(at[0, 1])),) if len(refs) else ()


def _rings(chains: list[Ints]) -> tuple[list[Ints], bool]:
    """Chains of node ids joined, end to end, to closed rings (without the first repeated), and whether any is left."""
    at_end: dict[int, list[int]] = {}
    for place, chain in enumerate(chains):
        if len(chain) > 1 and chain[0] != chain[-1]:
            for end in (int(chain[0]), int(chain[-1])):
                at_end.setdefault(end, []).append(place)
    used = [False] * len(chains)
    rings: list[Ints] = []
    has_rest = False
    for place, chain in enumerate(chains):
        if used[place] or len(chain) < 2:
            continue
        used[place] = True
        parts, first, last = [chain], int(chain[0]), int(chain[-1])
        while first != last:
            nexts = at_end.get(last, [])
            while nexts and used[nexts[-1]]:
                nexts.pop()
            if not nexts:
                break
            other = nexts.pop()
            used[other] = True
            turned = chains[other] if chains[other][0] == last else chains[other][::-1]
            parts.append(turned[1:])
            last = int(turned[-1])
        if first == last:
            rings.append(np.concatenate(parts)[:-1])
        else:
            has_rest = True
    return rings, has_rest


def _surfaces(outer: list[Floats], inner: list[Floats]) -> tuple[Geometry, ...]:
    """Outlines with holes as one geometry: every hole in the first outline around it."""
    outer = [_turned(ring, True) for ring in outer if len(ring) > 2]
    if not outer:
        return ()
    holes: list[list[Floats]] = [[] for _ in outer]
    if len(outer) == 1:
        holes[0] = [_turned(ring, False) for ring in inner]
    elif inner:
        tree = shapely.STRtree([shapely.Polygon(ring) for ring in outer])
        for ring in inner:
            around = tree.query(shapely.Point(ring[0]), predicate="intersects")
            if len(around):
                holes[int(around.min())].append(_turned(ring, False))
    boundaries, chunks, start = [], [], 0
    for ring, inside in zip(outer, holes, strict=True):
        rings = []
        for part in (ring, *inside):
            chunks.append(part)
            rings.append(list(range(start, start + len(part))))
            start += len(part)
        boundaries.append(rings)
    flat = np.concatenate(chunks)
    return (Geometry("MultiSurface", np.column_stack([flat, np.full(len(flat), math.nan)]), boundaries),)


def _turned(ring: Floats, is_outer: bool) -> Floats:
    x, y = ring[:, 0] - ring[0, 0], ring[:, 1] - ring[0, 1]
    area = np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))
    return ring if (area > 0) == is_outer else ring[::-1]


# The file's frame: a 4-byte length, a BlobHeader, a Blob, again and again (OSM wiki, "PBF Format").


def _blobs(data: Buffer, name: str) -> None:
    """Check that the file is whole and how large it unfolds. Raises `InvalidModel` naming the byte."""
    at, size, unfolded, number = 0, len(data), 0, 0
    while at < size:
        number += 1
        place = f"{name}, blob {number} at byte {at}"

        def refuse(text: str, place: str = place) -> InvalidModel:
            return InvalidModel([Problem(place, "", text)], name)

        length = int.from_bytes(data[at : at + 4], "big")
        if at + 4 + length > size or not 0 < length <= MAX_HEADER:
            raise refuse("the file is cut off or damaged / 文件被截断或损坏")
        header = dict(_fields(bytes(data[at + 4 : at + 4 + length])))
        packed = header.get(3)
        if not isinstance(packed, int) or packed > MAX_BLOB:
            raise refuse("has no proper header / 块头无效")
        start = at + 4 + length
        if start + packed > size:
            raise refuse("the file is cut off / 文件被截断")
        # Field 2, how large it unfolds, lies before the packed bytes or behind them.
        blob = dict(_fields(bytes(data[start : start + packed])))
        raw = blob.get(2, packed)
        if not isinstance(raw, int) or raw > MAX_BLOB:
            raise refuse(f"unfolds to more than {MAX_BLOB >> 20} MiB / 解压后过大")
        unfolded += raw
        if unfolded > MAX_UNFOLDED:
            raise refuse(f"the file unfolds to more than {MAX_UNFOLDED >> 30} GiB / 解压后过大")
        at = start + packed


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message: number, and value or bytes. Ends where it is malformed."""
    at, size = 0, len(message)

    def varint() -> int | None:
        nonlocal at
        value = 0
        for shift in range(0, 70, 7):
            if at >= size:
                return None
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        return None

    while at < size:
        key = varint()
        if key is None:
            return
        number, wire = key >> 3, key & 7
        value = varint() if wire in (0, 2) else None
        if value is None:
            return
        if wire == 0:
            yield number, value
        else:
            if at + value > size:
                return
            yield number, message[at : at + value]
            at += value
