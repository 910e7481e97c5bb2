"""GeoJSON (RFC 7946, and the older form with `crs`), its sequences (RFC 8142, or a feature a line), and graphs in
node-link JSON as networkx writes them.

Every feature becomes an asset. What it is, is told by its properties (`words.toml`); its id is the feature's `id`, or a
property (`id`, `fid`, `Exp_No`, …; `code` or `name` where unique), else made from its position. Lines that name their
ends (`from`/`to`, `start_node_name`/`end_node_name`, `u`/`v`, `S_Point`/`E_Point`, …) are edges between the points so
named; other pipes are joined where their ends coincide (within 1 cm, or 1e-7°). Rings turned the wrong way round are
accepted, as RFC 7946 3.1.6 asks, and turned. Properties stay as they are, under `attributes`.

Features are decoded one by one: what is in memory is the file (mapped), a pointer a feature, and the model.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np

from models3d import crs as systems
from models3d.readers import MAX_ELEMENTS, MAX_VERTICES, Buffer, Problems, bounded, nothing, pipes, words
from twin.city import Asset, CityModel, Geometry, InvalidModel, Progress
from twin.model import Floats, Problem

GEOMETRIES: Final = (
    "Point",
    "MultiPoint",
    "LineString",
    "MultiLineString",
    "Polygon",
    "MultiPolygon",
    "GeometryCollection",
)
MAX_NESTING: Final = 8  # of GeometryCollections
MAX_ID: Final = 500
MAX_RECODED: Final = 256 << 20  # bytes of a file not in UTF-8
# Properties that serve as ids: the first that any feature of a sort has; a repeated one is a mistake …
ID_KEYS: Final = ("id", "@id", "fid", "gid", "objectid", "osm_id", "globalid", "uuid", "guid", "asset_id")
# … and those that serve only where every feature has one of its own.
NAME_KEYS: Final = ("code", "编码", "name", "名称", "label", "Name")
SIZE_KEYS: Final = {
    **dict.fromkeys(("height", "height_m", "building:height", "高度", "建筑高度", "高度(m)"), "height_m"),
    **dict.fromkeys(("building:levels", "levels", "floors", "storeys", "层数", "楼层数"), "floors"),
}
SIZES: Final = frozenset(SIZE_KEYS)
CLOSED: Final = frozenset(("closed", "close", "关", "关闭", "关断"))
LINK_TYPES: Final = frozenset(("pipe", "pump", "valve", "weir", "orifice", "outlet", "regulator", "compressor"))

_UNSEEN: Final = "\u200b\u200c\u200d\u2060\ufeff"  # characters without width: no id is made of them alone
_FEATURE: Final = re.compile(rb'"type"\s*:\s*"(FeatureCollection|Feature|%s)"' % "|".join(GEOMETRIES).encode())
_GRAPH: Final = re.compile(rb'"(directed|multigraph)"\s*:\s*(true|false)')


class _Top(msgspec.Struct):
    """The outermost object, its features and nodes still text."""

    type: str | None = None
    features: list[msgspec.Raw] | None = None
    crs: Any = None
    name: Any = None
    nodes: list[msgspec.Raw] | None = None
    links: list[msgspec.Raw] | None = None
    edges: list[msgspec.Raw] | None = None
    graph: dict[str, Any] | None = None
    directed: bool | None = None


@dataclass(slots=True)
class _Feature:
    place: str
    file: str
    id: str
    properties: dict[str, Any]
    geometry: list[Geometry]
    sort: str  # point, line, area, or "" without geometry
    start: str = ""
    end: str = ""
    type: str = ""
    word: str = ""
    system: str = ""
    converted: dict[str, Any] = field(default_factory=dict)


def recognise(head: bytes, name: str) -> bool:
    head = head.lstrip(b"\xef\xbb\xbf \t\r\n\x1e")
    if not head.startswith(b"{") or b'"CityJSON' in head:
        return False
    return bool(_FEATURE.search(head) or (_GRAPH.search(head) and b'"nodes"' in head))


def read(data: Buffer, name: str, crs: str = "", progress: Progress = nothing) -> CityModel:
    return read_tables([(name, data)], crs, progress)


def read_tables(files: Sequence[tuple[str, Buffer]], crs: str = "", progress: Progress = nothing) -> CityModel:
    """One model of several files, e.g. of a network's points and of its lines. Raises `InvalidModel`."""
    reading = _Reading(files[0][0], crs)
    for name, data in files:
        reading.take(data, name, progress)
    return reading.model(progress)


class _Reading:
    def __init__(self, name: str, crs: str) -> None:
        self.problems = Problems(name)
        self.notes = Problems(name)
        self.asked = crs
        self.crs: systems.Crs | None = None
        self.features: list[_Feature] = []
        self.metadata: dict[str, Any] = {}
        self.vertices = 0
        self.columns: dict[tuple[str, frozenset[str]], dict[str, str]] = {}

    # Files to features

    def take(self, data: Buffer, name: str, progress: Progress) -> None:
        self.problems.name = name
        raws = self._split(data, name)
        self.problems.check()
        if len(raws) + len(self.features) > MAX_ELEMENTS:
            self.problems.add(name, "features", f"are more than {MAX_ELEMENTS} / 要素超过 {MAX_ELEMENTS} 个")
            self.problems.check()
        for number, (place, raw, convert) in enumerate(raws):
            if number % 10_000 == 0:
                progress("features", number / len(raws))
            try:
                found = msgspec.json.decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                self.problems.add(place, "", f"is no JSON: {error} / 不是有效的 JSON")
                continue
            self._feature(convert(found), place, name)
            if self.vertices > MAX_VERTICES:
                self.problems.add(place, "coordinates", f"more than {MAX_VERTICES} vertices / 顶点过多")
                self.problems.check()

    def _split(self, data: Buffer, name: str) -> list[tuple[str, Any, Callable[[Any], Any]]]:
        """The features of a file as (place, JSON, what makes a feature of it), and its CRS."""
        if words.encoding(data) != "utf-8":
            data = self._recoded(data, name)
            if not data:
                return []
        view: bytes | memoryview = memoryview(data)
        for mark in (b"\xef\xbb\xbf", b"\x1e"):
            if bytes(view[: len(mark)]) == mark:
                view = view[len(mark) :]
        lines = _as_lines(data)
        if lines is not None:
            self._reference(None, name)
            return [(f"{name}, line {number}", line, _same) for number, line in lines]
        try:
            top = msgspec.json.decode(view, type=_Top)
        except msgspec.ValidationError as error:
            self.problems.add(name, "", f"{error} / 结构不符合 GeoJSON")
            return []
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.problems.add(_spot(data, name, str(error)), "", f"is no JSON: {error} / 不是有效的 JSON")
            return []
        except RecursionError:
            self.problems.add(name, "", "is nested too deeply / 嵌套过深")
            return []
        if top.nodes is not None:
            links = top.links if top.links is not None else top.edges
            self._reference((top.graph or {}).get("crs"), name)
            nodes = [(f"{name}, node {i}", raw, _node) for i, raw in enumerate(top.nodes, 1)]
            self.metadata["directed"] = bool(top.directed)
            return nodes + [(f"{name}, link {i}", raw, _link) for i, raw in enumerate(links or [], 1)]
        self._reference(top.crs, name)
        if isinstance(top.name, str):
            self.metadata["name"] = top.name
        if top.type == "FeatureCollection":
            if top.features is None:
                self.problems.add(name, "features", "is missing / 缺少 features")
            return [(f"{name}, feature {i}", raw, _same) for i, raw in enumerate(top.features or [], 1)]
        if top.type == "Feature" or top.type in GEOMETRIES:
            return [(f"{name}, feature 1", view, _same)]
        self.problems.add(name, "type", f"{top.type!r:.80} is no GeoJSON type / 不是 GeoJSON 类型")
        return []

    def _recoded(self, data: Buffer, name: str) -> bytes:
        """A file in GB18030, as UTF-8; b"" if it is neither."""
        try:
            if len(data) > MAX_RECODED:
                raise UnicodeError
            text = bytes(data).decode("gb18030").encode("utf-8")
        except UnicodeError:
            self.problems.add(name, "", "is not in UTF-8 / 不是 UTF-8 编码")
            return b""
        self.notes.add(name, "", "is in GB18030, not UTF-8 / 编码为 GB18030，而非 UTF-8")
        return text

    def _reference(self, member: Any, name: str) -> None:
        """The file's CRS: its own if it names one, else the user's, else WGS 84."""
        text = self.asked or systems.MAP
        if isinstance(member, Mapping):
            properties = member.get("properties")
            named = properties.get("name") if isinstance(properties, Mapping) else None
            if member.get("type") != "name" or not isinstance(named, str):
                self.problems.add(
                    name, "crs", "names no CRS; links are not followed / 未给出坐标系名称，不读取外部链接"
                )
                return
            member = named
        if isinstance(member, str) and member:
            text = member
        try:
            found = systems.parse(systems.MAP if text.upper().endswith("CRS84") else text)
        except systems.UnknownCrs as error:
            self.problems.add(name, "crs", f"{error} / 未知坐标系")
            return
        if self.crs is not None and found.text != self.crs.text:
            self.problems.add(name, "crs", f"{found.text}, but the other files have {self.crs.text} / 各文件坐标系不同")
        elif member and self.asked and systems.parse(self.asked).text != found.text:
            self.notes.add(name, "crs", f"the file's own {found.text} is used / 采用文件自带的坐标系 {found.text}")
        self.crs = found

    # One feature

    def _feature(self, found: Any, place: str, file: str) -> None:
        if isinstance(found, Mapping) and found.get("type") in GEOMETRIES:
            found = {"type": "Feature", "properties": {}, "geometry": found}
        if not isinstance(found, Mapping) or found.get("type") != "Feature":
            self.problems.add(place, "type", "is no Feature / 不是 Feature")
            return
        properties = bounded(found.get("properties"))
        if properties is None:
            properties = {}
        if not isinstance(properties, dict):
            self.problems.add(place, "properties", "is no object / 应为对象")
            return
        id_ = _id(found.get("id"))
        if id_ is None:
            self.problems.add(place, "id", "must be a text or number / 应为文本或数字")
            return
        if id_:
            place = f"{place} (id {id_[:80]})"
        elif named := next((str(properties[key]) for key in (*ID_KEYS, *NAME_KEYS) if properties.get(key)), ""):
            place = f"{place} ({named[:80]})"
        geometry = found.get("geometry")
        shapes: list[Geometry] = []
        if geometry is not None:
            before = len(self.problems)
            self._geometry(geometry, place, shapes, 0)
            if len(self.problems) > before:
                return
        sort = {"MultiPoint": "point", "MultiLineString": "line"}.get(shapes[0].kind, "area") if shapes else ""
        feature = _Feature(place, file, id_, properties, shapes, sort)
        self._ends(feature)
        self.features.append(feature)

    def _geometry(self, found: Any, place: str, into: list[Geometry], depth: int) -> None:
        kind = found.get("type") if isinstance(found, Mapping) else None
        if kind not in GEOMETRIES:
            self.problems.add(place, "geometry", f"type {kind!r:.40} is none of GeoJSON's / 几何类型未知")
            return
        if kind == "GeometryCollection":
            members = found.get("geometries")
            if not isinstance(members, list) or depth >= MAX_NESTING:
                self.problems.add(place, "geometry", "is no list of geometries, or nested too deeply / 几何集合无效")
                return
            for member in members:
                self._geometry(member, place, into, depth + 1)
            return
        coordinates = found.get("coordinates")
        if not isinstance(coordinates, list):
            self.problems.add(place, "coordinates", "is no list / 缺少坐标")
            return
        try:
            built = self._build(kind, coordinates)
        except _Wrong as wrong:
            self.problems.add(place, "coordinates", str(wrong))
            return
        if built is not None:
            self.vertices += len(built.vertices)
            into.append(built)

    def _build(self, kind: str, coordinates: list[Any]) -> Geometry | None:
        if not coordinates:
            return None  # RFC 7946 3.1: empty means no geometry
        if kind in ("Point", "MultiPoint"):
            points = self._positions([coordinates] if kind == "Point" else coordinates)
            return Geometry("MultiPoint", points, list(range(len(points))))
        parts = coordinates if kind in ("MultiLineString", "MultiPolygon") else [coordinates]
        chunks: list[Floats] = []
        boundaries: list[Any] = []
        start = 0
        for part in parts:
            if kind.endswith("LineString"):
                points = self._positions(part)
                if len(points) < 2:
                    raise _Wrong("a line needs two positions / 线至少需两个点")
                chunks.append(points)
                boundaries.append(list(range(start, start + len(points))))
                start += len(points)
                continue
            if not isinstance(part, list) or not part:
                raise _Wrong("a polygon needs a ring / 面至少需一个环")
            rings = []
            for number, ring in enumerate(part):
                points = self._positions(ring)
                if len(points) < 4:
                    raise _Wrong("a ring needs four positions / 环至少需四个点")
                if not np.array_equal(points[0, :2], points[-1, :2]):
                    raise _Wrong("a ring is not closed / 环未闭合")
                points = points[:-1]
                area = np.sum(points[:, 0] * np.roll(points[:, 1], -1) - points[:, 1] * np.roll(points[:, 0], -1))
                if (area > 0) != (number == 0):
                    points = points[::-1]
                chunks.append(points)
                rings.append(list(range(start, start + len(points))))
                start += len(points)
            boundaries.append(rings)
        kind = "MultiLineString" if kind.endswith("LineString") else "MultiSurface"
        return Geometry(kind, np.concatenate(chunks), boundaries)

    def _positions(self, found: Any) -> Floats:
        """Positions [N, 3], checked."""
        if not isinstance(found, list):
            raise _Wrong("is no list of positions / 不是坐标列表")
        if not found:
            return np.empty((0, 3))
        try:
            array = np.array(found)
        except ValueError:  # some with a height, some without
            array = _ragged(found)
        if array.ndim != 2 or array.dtype.kind not in "iuf" or array.shape[1] < 2:
            array = _ragged(found)
        array = array.astype(np.float64)
        if not np.isfinite(array[:, :2]).all():
            raise _Wrong("holds a coordinate that is no finite number / 坐标不是有限数")
        out = np.full((len(array), 3), math.nan)
        out[:, : min(3, array.shape[1])] = array[:, :3]
        if self.crs is not None and self.crs.is_geographic:
            self._on_earth(out)
        elif np.abs(out[:, :2]).max() > 1e9:
            raise _Wrong("holds a coordinate beyond 1e9 / 坐标超过 1e9")
        return out

    def _on_earth(self, points: Floats) -> None:
        x, y = np.abs(points[:, 0]), np.abs(points[:, 1])
        far = (x > 180.0000001) | (y > 90.0000001)
        if not far.any():
            return
        a, b = points[np.argmax(far), :2]
        swapped = abs(a) <= 90 and abs(b) <= 180
        why = (
            "latitude and longitude seem swapped / 经纬度似乎颠倒"
            if swapped
            else ("the coordinates seem projected: say which with --crs / 似为投影坐标，请用 --crs 指明")
        )
        raise _Wrong(f"[{a:g}, {b:g}] is no longitude and latitude: {why}")

    # What it is

    def _columns(self, kind: str, properties: Mapping[str, Any]) -> dict[str, str]:
        key = (kind, frozenset(properties))
        if key not in self.columns:
            if len(self.columns) > 10_000:  # a file whose every feature has other properties
                self.columns.clear()
            self.columns[key] = words.columns(properties, kind)
        return self.columns[key]

    def _ends(self, feature: _Feature) -> None:
        """The names of a line's ends, and its word."""
        if feature.sort == "line":
            columns = self._columns("line", feature.properties)
            if "start" in columns and "end" in columns:
                feature.start = _id(feature.properties[columns["start"]]) or ""
                feature.end = _id(feature.properties[columns["end"]]) or ""
        feature.type, feature.word = words.type_in(feature.properties)

    def _classify(self, feature: _Feature, from_name: Mapping[str, tuple[str, str]]) -> None:
        properties = feature.properties
        columns = self._columns("line" if feature.sort == "line" else "point", properties)
        named, named_system = from_name[feature.file]
        hinted, hinted_system = words.hint(frozenset(properties))
        said = properties.get(columns.get("system", ""))
        if isinstance(said, str):
            feature.system = words.system_of(said)
        if not feature.type:
            feature.type = hinted
        if feature.sort == "line":
            has_ends = bool(feature.start and feature.end)
            if has_ends and feature.type not in LINK_TYPES:
                feature.type = named if named in LINK_TYPES else "pipe"
            elif not feature.type and ("section" in columns or feature.system):
                feature.type = "pipe"
        is_fit = (named in pipes.NODE_TYPES) == (feature.sort == "point") or named == "building"
        if not feature.type and is_fit:
            feature.type = named
        feature.type = feature.type or "other"
        if feature.type == "pipe" or feature.type in pipes.NODE_TYPES or feature.type == "subcatchment":
            feature.system = (
                feature.system
                or words.system_of(feature.word)
                or (hinted_system if feature.type != "other" else "")
                or named_system
            )
        else:
            feature.system = ""

    def _convert(self, feature: _Feature, metres: float) -> None:
        """What properties say, in our names and units."""
        properties, converted = feature.properties, feature.converted
        kind = "line" if feature.sort == "line" else "point"
        columns = self._columns(kind, properties)

        def put(name: str, key: str) -> None:
            value = words.number(properties.get(columns.get(key, "")))
            if value is not None and math.isfinite(value):
                converted[name] = value

        if feature.type in pipes.NODE_TYPES or feature.type in LINK_TYPES:
            if kind == "line":
                size = words.section(properties.get(columns.get("section", "")), metres)
                if size is not None and 0 < size[0] < 50:
                    converted["diameter_m"] = size[0]
                put("invert_start_m", "start_invert")
                put("invert_end_m", "end_invert")
            else:
                put("ground_m", "ground")
                put("invert_m", "invert")
                put("depth_m", "depth")
            for name in ("material", "owner"):
                value = properties.get(columns.get(name, ""))
                if isinstance(value, str) and value.strip():
                    converted[name] = value.strip()
            if "pressure" in columns and properties[columns["pressure"]] not in (None, ""):
                converted["pressure_class"] = properties[columns["pressure"]]
        year = words.year_of(properties.get(columns.get("year", "")))
        if year is not None:
            converted["year"] = year
        if not SIZES.isdisjoint(properties):
            for key, text in properties.items():
                name = SIZE_KEYS.get(key, "")
                value = (
                    words.number(text.removesuffix("m").strip() if isinstance(text, str) else text) if name else None
                )
                if value is not None and 0 < value < 5000:
                    is_whole = name == "floors" and value == int(value)
                    converted.setdefault(name, int(value) if is_whole else value)

    # All together

    def model(self, progress: Progress) -> CityModel:
        self.problems.check()
        crs = self.crs
        if crs is None:  # no file
            raise InvalidModel([Problem(self.problems.name, "", "no file / 没有文件")])
        progress("assets", 0.0)
        from_name = {file: _told_by(file) for file in {feature.file for feature in self.features}}
        for feature in self.features:
            self._classify(feature, from_name)
        sizes = [
            words.section(f.properties.get(self._columns("line", f.properties).get("section", "")), 1.0)
            for f in self.features
            if f.sort == "line"
        ]
        known = sorted(size[0] for size in sizes if size is not None and size[0] > 0)
        # Nobody lays pipes of 10 m or of 10 mm by the thousand: the middle one tells the unit.
        metres = 0.001 if known and known[len(known) // 2] >= 10 else 1.0
        if known:
            unit = "mm" if metres < 1 else "m"
            self.notes.add(self.problems.name, "diameter", f"is taken to be in {unit} / 管径按 {unit} 读取")
        for feature in self.features:
            self._convert(feature, metres)
        self._name()
        self.problems.check()
        progress("network", 0.5)
        extra, nodes, edges = self._graph(crs)
        links = {edge.local for edge in edges}
        node_locals = {nodes[place].local for edge in edges for place in (edge.start, edge.end)}
        assets = [self._asset(feature, links, node_locals) for feature in self.features] + extra
        self._unique(assets)
        self.problems.check()
        ids = {asset.local for asset in assets}
        for place, asset in enumerate(assets):
            parent = asset.attributes.get("parent", asset.attributes.get("parent_id"))
            if isinstance(parent, (str, int)) and str(parent) in ids and str(parent) != asset.local:
                assets[place] = _with_parent(asset, str(parent))
        progress("done", 1.0)
        return CityModel(
            "geojson", assets, pipes.networks(nodes, edges), crs.text, crs.height, self.metadata, self.notes.told()
        )

    def _name(self) -> None:
        """Give every feature its id."""
        for sort in ("point", "line", "area", ""):
            for file in dict.fromkeys(feature.file for feature in self.features):
                without = [f for f in self.features if f.sort == sort and f.file == file and not f.id]
                if not without:
                    continue
                number = self._columns("line" if sort == "line" else "point", without[0].properties).get("number", "")
                strong = (*ID_KEYS, *(key.upper() for key in ID_KEYS), "OBJECTID", *((number,) if number else ()))
                key = next((k for k in strong if any(_id(f.properties.get(k)) for f in without)), None)
                if key is None:
                    for k in NAME_KEYS:
                        values = [_id(f.properties.get(k)) for f in without]
                        if all(values) and len(set(values)) == len(values):
                            key = k
                            break
                for feature in without:
                    feature.id = (_id(feature.properties.get(key)) or "") if key else ""
        made: Counter[str] = Counter()
        for feature in self.features:
            if not feature.id:
                digest = hashlib.sha256(repr(feature.type).encode())
                for shape in feature.geometry:
                    digest.update(np.round(shape.vertices, 6).tobytes())
                base = f"{feature.type}-{digest.hexdigest()[:12]}"
                made[base] += 1
                feature.id = base if made[base] == 1 else f"{base}-{made[base]}"
            elif len(feature.id) > MAX_ID:
                self.problems.add(feature.place, "id", f"is longer than {MAX_ID} characters / 编号过长")

    def _graph(self, crs: systems.Crs) -> tuple[list[Asset], list[pipes.Node], list[pipes.Edge]]:
        """Nodes and edges, and assets for the nodes that are no features."""
        lines = [f for f in self.features if f.sort == "line" and f.type in LINK_TYPES]
        by_name: dict[str, int] = {}
        points = [
            f
            for f in self.features
            if f.sort == "point"
            and len(f.geometry[0].vertices) == 1
            and (f.type in pipes.NODE_TYPES or f.type == "other")
        ]
        nodes: list[pipes.Node] = []
        for place, feature in enumerate(points):
            x, y, z = (float(v) for v in feature.geometry[0].vertices[0])
            c = feature.converted
            ground = c.get("ground_m", math.nan)
            z = c.get("invert_m", z if math.isfinite(z) else ground - c.get("depth_m", 0.0))
            type_ = "junction" if feature.type == "other" else feature.type
            nodes.append(pipes.Node(feature.id, type_, x, y, z, ground, self._demand(feature)))
            number = self._columns("point", feature.properties).get("number", "")
            for name in (feature.id, _id(feature.properties.get(number)), _id(feature.properties.get("name"))):
                if name:
                    by_name.setdefault(name, place)
        extra: list[Asset] = []
        implied = 0
        taken = {node.local for node in nodes}

        def imply(local: str, at: Floats) -> int:
            nonlocal implied
            implied += 1
            while local in taken:
                local += "'"
            taken.add(local)
            x, y, z = (float(v) for v in at)
            nodes.append(pipes.Node(local, "junction", x, y, z))
            extra.append(Asset(local, "junction", "node", geometry=(Geometry.point(x, y, z),)))
            return len(nodes) - 1

        ends: dict[tuple[int, int], int] = {}
        loose: list[tuple[int, int]] = []
        for i, line in enumerate(lines):
            for side, name in enumerate((line.start, line.end)):
                if not name:
                    loose.append((i, side))
                    continue
                place = by_name.get(name, -1)
                if place < 0:
                    place = by_name[name] = imply(name, _end(line, side))
                ends[i, side] = place
        if loose:
            tolerance = pipes.SNAP_DEGREES if crs.is_geographic else pipes.SNAP_M / crs.unit_m
            known = np.array([(node.x, node.y) for node in nodes]).reshape(-1, 2)
            spots = np.array([_end(lines[i], side)[:2] for i, side in loose]).reshape(-1, 2)
            merged = pipes.snap(np.concatenate([known, spots]), tolerance).tolist()
            at: dict[int, int] = {}
            for place in range(len(known)):
                at.setdefault(merged[place], place)
            for (i, side), cluster in zip(loose, merged[len(known) :], strict=True):
                if cluster not in at:
                    spot = _end(lines[i], side)
                    digits = 7 if crs.is_geographic else 3
                    at[cluster] = imply(f"node@{spot[0]:.{digits}f},{spot[1]:.{digits}f}", spot)
                ends[i, side] = at[cluster]
        if implied:
            self.notes.add(
                self.problems.name,
                "",
                f"{implied} nodes are no features of the file: made from the lines' "
                f"ends / {implied} 个节点未作为要素给出，由线的端点生成",
            )
        edges: list[pipes.Edge] = []
        unknown = 0
        by_end: dict[str, set[str]] = {}
        for i, line in enumerate(lines):
            a, b = ends[i, 0], ends[i, 1]
            if not line.system:
                unknown += 1
                line.system = "other"
            if a == b:
                self.notes.add(line.place, "", "begins and ends at one node: no edge / 起止于同一节点")
                continue
            for place in (a, b):
                by_end.setdefault(nodes[place].local, set()).add(line.system)
            edges.append(self._edge(line, a, b, crs))
        for feature in points:
            found = by_end.get(feature.id, set())
            if not feature.system and len(found) == 1:
                feature.system = next(iter(found))
        for place, asset in enumerate(extra):
            found = by_end.get(asset.local, set())
            if len(found) == 1:
                extra[place] = Asset(asset.local, asset.type, asset.group, geometry=asset.geometry, system=min(found))
        if unknown:
            self.notes.add(
                self.problems.name,
                "",
                f"of {unknown} pipes the file does not say the system / {unknown} 条管线未说明类别",
            )
        return extra, nodes, edges

    def _demand(self, feature: _Feature) -> float:
        """m³/h; `base_demand` is WNTR's name, in m³/s. Others do not say their unit."""
        value = words.number(feature.properties.get("base_demand"))
        return value * 3600 if value is not None and math.isfinite(value) else 0.0

    def _edge(self, line: _Feature, start: int, end: int, crs: systems.Crs) -> pipes.Edge:
        shape = line.geometry[0]
        drawn = sum(pipes.length_m(shape.vertices[part], crs.is_geographic, crs.unit_m) for part in shape.boundaries)
        columns = self._columns("line", line.properties)
        said = words.number(line.properties.get(columns.get("length", "")))
        length = said if said is not None and drawn / 5 <= said <= drawn * 5 and said > 0 else drawn
        line.converted["length_m"] = length
        check = line.properties.get("check_valve")
        is_one_way = line.system in pipes.ONE_WAY or line.type == "pump" or check in (True, 1, "1", "true", "True")
        status = line.properties.get(columns.get("status", ""))
        c = line.converted
        return pipes.Edge(
            line.id,
            line.type,
            line.system,
            start,
            end,
            length,
            c.get("diameter_m", math.nan),
            c.get("invert_start_m", math.nan),
            c.get("invert_end_m", math.nan),
            int(is_one_way),
            not (isinstance(status, str) and status.strip().lower() in CLOSED),
        )

    def _asset(self, feature: _Feature, links: set[str], nodes: set[str]) -> Asset:
        properties = feature.properties
        is_node = feature.sort == "point" and (feature.type in pipes.NODE_TYPES or feature.id in nodes)
        is_link = feature.sort == "line" and feature.id in links and feature.type in LINK_TYPES
        if is_node and feature.type == "other":
            feature.type = "junction"
        zh, en = names(properties)
        columns = self._columns("line" if feature.sort == "line" else "point", properties)
        code = ""
        if "code" in columns and properties[columns["code"]] not in (None, ""):
            code, is_good = words.survey_code(properties[columns["code"]])
            if not is_good:
                self.notes.add(feature.place, "code", f"{code:.40} is no 部件码 or 井盖号 / 编码格式不符")
                code = ""
        level = properties.get("cim_level", properties.get("CIM级别", 0))
        return Asset(
            feature.id,
            feature.type,
            "node" if is_node else "link" if is_link else "object",
            feature.word,
            zh,
            en,
            {**properties, **feature.converted},
            tuple(feature.geometry),
            "",
            level if isinstance(level, int) and 0 < level < 8 else 0,
            "",
            code,
            feature.system,
        )

    def _unique(self, assets: list[Asset]) -> None:
        places = [feature.place for feature in self.features]
        seen: dict[tuple[str, str], int] = {}
        for number, asset in enumerate(assets):
            first = seen.setdefault((asset.group, asset.local), number)
            if first < number < len(places):
                text = f"{asset.local:.80} is used before, by {places[first]} / 编号重复"
                self.problems.add(places[number], "id", text)


class _Wrong(Exception):  # noqa: N818 - an outcome
    """Coordinates that make no geometry."""


def _same(found: Any) -> Any:
    return found


def _node(found: Any) -> Any:
    """A node of node-link JSON as a feature."""
    if not isinstance(found, dict):
        return None
    place = next(
        ([found.get(a), found.get(b)] for a, b in (("x", "y"), ("lon", "lat")) if a in found and b in found), None
    )
    if place is None and isinstance(found.get("pos"), list):
        place = found["pos"]
    geometry = None if place is None else {"type": "Point", "coordinates": place}
    return {"type": "Feature", "id": found.get("id"), "properties": found, "geometry": geometry}


def _link(found: Any) -> Any:
    """A link of node-link JSON as a feature; its geometry is WKT, or GeoJSON."""
    if not isinstance(found, dict):
        return None
    geometry = found.get("geometry")
    rest = {key: value for key, value in found.items() if key != "geometry"}
    if isinstance(geometry, str):
        inner = re.fullmatch(r"\s*LINESTRING\s*(?:Z\s*)?\(([-+0-9.eE,\s]*)\)\s*", geometry, re.IGNORECASE)
        numbers = [part.split() for part in inner.group(1).split(",")] if inner else []
        try:
            geometry = {"type": "LineString", "coordinates": [[float(n) for n in part] for part in numbers]}
        except ValueError:
            geometry = {"type": "LineString", "coordinates": [[]]}
    id_ = found.get("id")
    if id_ is None and "source" in found and "target" in found:
        id_ = f"{found['source']}-{found['target']}" + (f"-{found['key']}" if found.get("key") else "")
    return {"type": "Feature", "id": id_, "properties": rest, "geometry": geometry}


def _id(value: Any) -> str | None:
    """An id as text: "" if there is none, None if it cannot be one."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    if isinstance(value, float):
        return str(int(value)) if abs(value) < 1e15 and value == int(value) else repr(value)
    return str(value).replace("\x00", "").strip().strip(_UNSEEN).strip()


def names(properties: Mapping[str, Any]) -> tuple[str, str]:
    """Chinese and English name among a feature's properties."""

    def text(*keys: str) -> str:
        return next((v.strip() for k in keys if isinstance(v := properties.get(k), str) and v.strip()), "")

    zh, en = text("name:zh", "name_zh", "name:zh-Hans", "名称", "中文名"), text("name:en", "name_en", "英文名")
    plain = text("name", "Name", "NAME", "MC")
    if plain and words.has_chinese(plain):
        zh = zh or plain
    else:
        en = en or plain
    return zh, en


def _with_parent(asset: Asset, parent: str) -> Asset:
    return Asset(
        asset.local,
        asset.type,
        asset.group,
        asset.element,
        asset.name_zh,
        asset.name_en,
        asset.attributes,
        asset.geometry,
        parent,
        asset.level,
        asset.area,
        asset.code,
        asset.system,
    )


def _end(line: _Feature, side: int) -> Floats:
    shape = line.geometry[0]
    spot: Floats = shape.vertices[shape.boundaries[0][0] if side == 0 else shape.boundaries[-1][-1]]
    return spot


def _told_by(file: str) -> tuple[str, str]:
    """Type and system that a file's name tells: `ky4_pipes.geojson` holds pipes."""
    stem = re.split(r"[\\/]", file)[-1].split(".")[0]
    parts = [part.lower() for part in re.split(r"[\W_\d]+", stem) if part]
    type_ = next(
        (t for part in reversed(parts) if (t := words.type_of(part) or words.type_of(part.removesuffix("s")))), ""
    )
    return type_, words.system_of(stem.replace("_", " "))


def _as_lines(data: Buffer) -> list[tuple[int, bytes]] | None:
    """The lines of a sequence of features as (number, JSON); None if the file is one JSON text."""
    end = data.find(b"\n")
    if end < 0:
        return None
    first = bytes(data[:end]).lstrip(b"\xef\xbb\xbf\x1e \t").rstrip()
    if not first.startswith(b"{") or not first.endswith(b"}") or not _FEATURE.search(first[:65536]):
        return None
    try:
        top = msgspec.json.decode(first, type=_Top)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if top.type == "FeatureCollection":
        return None
    return list(_lines(data))


def _lines(data: Buffer) -> Iterator[tuple[int, bytes]]:
    number, start, size = 0, 0, len(data)
    while start < size:
        end = data.find(b"\n", start)
        end = size if end < 0 else end
        number += 1
        line = bytes(data[start:end]).lstrip(b"\xef\xbb\xbf\x1e \t").rstrip()
        if line:
            yield number, line
        start = end + 1


def _ragged(found: list[Any]) -> Floats:
    """Positions of different lengths, or what is wrong with them."""
    rows = []
    for position in found:
        if not isinstance(position, list) or len(position) < 2:
            raise _Wrong(f"{position!r:.60} is no position / 不是坐标")
        row = position[:3]
        if any(isinstance(v, bool) or not isinstance(v, (int, float)) or abs(v) > 1e300 for v in row):
            raise _Wrong(f"{position!r:.60} is no position / 不是坐标")
        rows.append([*row, math.nan] if len(row) == 2 else row)
    return np.array(rows, np.float64).reshape(-1, 3)


def _spot(data: Buffer, name: str, error: str) -> str:
    """The line of a mistake in JSON, from the byte that the parser names."""
    found = re.search(r"byte (\d+)", error)
    if not found:
        truncated = "truncated" in error
        return f"{name}, line {bytes(data).count(10) + 1}" if truncated and len(data) < 1 << 28 else name
    return f"{name}, line {bytes(data[: int(found.group(1))]).count(10) + 1}"
