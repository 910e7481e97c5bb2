"""IFC models (STEP files of IFC 2x3, 4 and 4.3), by `ifcopenshell` (extra `ifc`): buildings, bridges and their parts,
the elements of pipe systems, and proxies; property sets, georeferencing, triangulated geometry.

Property sets are attributes under `Pset_Name.Property`, in the file's units; ours are in metres. Walls, slabs and the
like are no assets: their triangles are drawn with the building, bridge or part that holds them. Elements joined by
ports (`IfcRelConnectsPorts`) are a network: segments are its edges, all others its nodes, open ends get a node of their
own.

Where it lies: by `IfcMapConversion` and `IfcProjectedCRS` (in 2x3 by the property sets ePSet_MapConversion and
ePSet_ProjectedCRS); else by the site's latitude and longitude, as a local transverse Mercator plane there; else as the
user says. What is used is told in the notes.

The file is first checked as text (whole, every reference known, none in a circle), because the library drops silently
what it cannot read, and crashes on circles; then it is read in a process of its own (`models3d.confined`).
"""

from __future__ import annotations

import bisect
import importlib.util
import math
import re
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import scipy.sparse
from pyproj import CRS
from scipy.sparse.csgraph import connected_components

from models3d import crs as systems
from models3d.readers import MAX_ELEMENTS, Buffer, Problems, extra, nothing, pipes, words
from twin.city import Asset, CityModel, Geometry, InvalidModel, Progress
from twin.model import Floats, Problem

MAX_BYTES: Final = 512 << 20
MAX_REFERENCES: Final = 50_000_000
MAX_SHAPES: Final = 500_000
MAX_SHAPE_VERTICES: Final = 1_000_000
MAX_VERTICES: Final = 20_000_000
MAX_UP: Final = 100  # containers around an element
SCHEMAS: Final = ("IFC2X3", "IFC4", "IFC4X3")
GARBLED: Final = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
)  # the library, on bad values

# Type of our assets by class, the first that fits; "" for what only lends its shape to what holds it.
TYPES: Final = (
    ("IfcBuilding", "building"),
    ("IfcBridge", "bridge"),
    ("IfcBridgePart", "bridge_part"),
    ("IfcRoad", "road"),
    ("IfcRailway", "railway"),
    ("IfcPump", "pump"),
    ("IfcCompressor", "compressor"),
    ("IfcTank", "tank"),
    ("IfcFlowMeter", "meter"),
    ("IfcFlowMeterType", "meter"),
    ("IfcValve", "valve"),
    ("IfcInterceptor", "storage"),
    ("IfcDistributionChamberElement", "manhole"),
    ("IfcFlowSegment", "pipe"),
    ("IfcFlowFitting", "fitting"),
    ("IfcFlowController", "valve"),
    ("IfcFlowMovingDevice", "pump"),
    ("IfcFlowStorageDevice", "tank"),
    ("IfcFireSuppressionTerminal", "hydrant"),
    ("IfcFlowTerminal", "consumer"),
    ("IfcDistributionElement", "other"),
    ("IfcBuildingElementProxy", "other"),
    ("IfcCivilElement", "other"),
    ("IfcGeographicElement", "other"),
    ("IfcBuildingElement", ""),
    ("IfcBuiltElement", ""),
    ("IfcElementAssembly", ""),
    ("IfcElementComponent", ""),
)
CHAMBERS: Final = {
    "VALVECHAMBER": "valve",
    "METERCHAMBER": "meter",
    "SUMP": "storage",
    "FORMEDDUCT": "pipe",
    "TRENCH": "pipe",
}
# Our systems by IFC's names (IfcDistributionSystemEnum).
SYSTEMS: Final = {
    "DOMESTICCOLDWATER": "water",
    "DOMESTICHOTWATER": "water",
    "WATERSUPPLY": "water",
    "FIREPROTECTION": "water",
    "IRRIGATION": "water",
    "DRAINAGE": "drainage",
    "SEWAGE": "drainage",
    "WASTEWATER": "drainage",
    "STORMWATER": "drainage",
    "RAINWATER": "drainage",
    "GAS": "gas",
    "HEATING": "heat",
    "CHILLEDWATER": "heat",
    "CONDENSERWATER": "heat",
    "ELECTRICAL": "power",
    "LIGHTING": "power",
    "POWERGENERATION": "power",
    "EARTHING": "power",
    "DATA": "telecom",
    "COMMUNICATION": "telecom",
    "SIGNAL": "telecom",
    "TV": "telecom",
    "TELEPHONE": "telecom",
    "FUEL": "industry",
    "OIL": "industry",
    "CHEMICAL": "industry",
    "COMPRESSEDAIR": "industry",
    "VACUUM": "industry",
    "HAZARDOUS": "industry",
}
DIAMETERS: Final = ("NominalDiameter", "OuterDiameter", "InnerDiameter", "Diameter", "NominalDiameterOrWidth")
INVERTS: Final = ("InvertLevel",)
LENGTHS: Final = ("Length", "NominalLength")

_SCHEMA: Final = re.compile(rb"FILE_SCHEMA\s*\(\s*\(\s*'([^']{1,40})'", re.IGNORECASE)
_TOKEN: Final = re.compile(rb"'(?:[^']|'')*'|/\*.*?\*/|#(\d{1,18})(?!\d)(\s*=)?|(')|(#\d)", re.DOTALL)


def recognise(head: bytes, name: str) -> bool:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    found = _SCHEMA.search(head)
    return start.startswith(b"ISO-10303-21") and bool(found and found.group(1).upper().startswith(b"IFC"))


def read(data: Buffer, name: str, crs: str = "", progress: Progress = nothing) -> CityModel:
    if importlib.util.find_spec("ifcopenshell") is None:
        extra("ifcopenshell", "ifc", name)
    if len(data) > MAX_BYTES:
        text = f"is larger than {MAX_BYTES >> 20} MiB / 文件超过 {MAX_BYTES >> 20} MiB"
        raise InvalidModel([Problem(name, "", text)], name)
    from models3d import confined  # what it starts, imports this module

    return confined.read(__name__, data, name, crs, progress)


def read_here(data: bytes, name: str, crs: str = "", progress: Progress = nothing) -> CityModel:
    """The same in this process, which a hostile file may end."""
    problems = Problems(name)
    progress("text", 0.0)
    lines = _Lines(data, name)
    count = _check(data, problems, lines)
    problems.check()
    progress("instances", 0.1)
    ifcopenshell = extra("ifcopenshell", "ifc", name)
    ifcopenshell.get_log()
    try:
        file = ifcopenshell.file.from_string(data.decode(words.encoding(data), "replace"))
    except GARBLED as error:
        raise InvalidModel([Problem(name, "", f"{error} / 无法读取")], name) from None
    notes = Problems(name)
    for message in str(ifcopenshell.get_log()).splitlines():
        found = re.search(r"at offset (\d+)", message)
        place = lines.at(int(found.group(1))) if found else name
        (problems if message.startswith("[error]") else notes).add(
            place, "", re.sub(r"^(\[[^\]]*\] ?)+", "", message)[:300]
        )
    problems.check()
    if len(file.entity_names()) != count:
        problems.add(name, "", f"holds {count} instances, {len(file.entity_names())} can be read / 部分实例无法读取")
        problems.check()
    return _Reading(ifcopenshell, file, name, crs, progress, lines, problems, notes).model()


class _Lines:
    """Where in the file an offset or an instance is."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name = data, name
        self.ids: array[int] = array("q")
        self.offsets: array[int] = array("q")
        self._order: Any = None
        self._breaks: Any = None

    def at(self, offset: int) -> str:
        if self._breaks is None:
            step = 1 << 24
            parts = [
                np.flatnonzero(np.frombuffer(self.data[at : at + step], np.uint8) == 10) + at
                for at in range(0, len(self.data), step)
            ]
            self._breaks = np.concatenate(parts) if parts else np.empty(0, np.int64)
        return f"{self.name}, line {int(np.searchsorted(self._breaks, offset)) + 1}"

    def of(self, id_: int) -> str:
        if self._order is None:
            self._order = np.argsort(np.frombuffer(self.ids, np.int64), kind="stable")
        place = bisect.bisect_left(self._order, id_, key=lambda row: self.ids[row])
        if place < len(self._order) and self.ids[self._order[place]] == id_:
            return f"{self.at(self.offsets[self._order[place]])}, #{id_}"
        return f"{self.name}, #{id_}"


def _check(data: bytes, problems: Problems, lines: _Lines) -> int:
    """Check a STEP file as text; return the number of its instances."""
    tail = data[-4096:].rstrip()
    if b"END-ISO-10303-21;" not in tail:
        problems.add(lines.at(len(data)), "", "the file is cut off: END-ISO-10303-21 is missing / 文件被截断")
    found = _SCHEMA.search(data[:65536])
    schema = found.group(1).decode("ascii", "replace").upper() if found else ""
    if not re.fullmatch(r"IFC2X3(_.*)?|IFC4|IFC4X3(_.*)?|IFC4_ADD\d.*", schema):
        problems.add(
            lines.name, "FILE_SCHEMA", f"{schema or 'none'} is not one of {', '.join(SCHEMAS)} / 不支持的 IFC 版本"
        )
    start = data.find(b"DATA;")
    if start < 0:
        problems.add(lines.name, "DATA", "is missing / 缺少数据段")
        return 0
    sources, targets = array("q"), array("q")
    current = -1
    for token in _TOKEN.finditer(data, start):
        if token.group(3) or token.group(4):
            text = (
                "a text is not closed / 字符串未结束"
                if token.group(3)
                else "an instance's number is too large / 实例号过大"
            )
            problems.add(lines.at(token.start()), "", text)
            return 0
        if not token.group(1):
            continue
        number = int(token.group(1))
        if token.group(2):
            current = number
            lines.ids.append(number)
            lines.offsets.append(token.start())
        else:
            sources.append(current)
            targets.append(number)
        if len(lines.ids) > MAX_ELEMENTS or len(targets) > MAX_REFERENCES:
            problems.add(
                lines.at(token.start()),
                "",
                f"more than {MAX_ELEMENTS} instances or {MAX_REFERENCES} references / 实例过多",
            )
            return 0
    ids = np.frombuffer(lines.ids, np.int64) if lines.ids else np.empty(0, np.int64)
    unique, counts = np.unique(ids, return_counts=True)
    for row in np.flatnonzero(counts > 1)[:1000]:
        again = np.flatnonzero(ids == unique[row])[1]
        problems.add(f"{lines.at(lines.offsets[int(again)])}, #{unique[row]}", "", "is there twice / 实例号重复")
    if not len(targets) or not len(ids):
        return len(ids)
    a, b = np.frombuffer(sources, np.int64), np.frombuffer(targets, np.int64)
    place = np.clip(np.searchsorted(unique, b), 0, len(unique) - 1)
    for row in np.flatnonzero(unique[place] != b)[:200]:
        problems.add(lines.of(int(a[row])), "", f"refers to #{b[row]}, which is not there / 引用的实例不存在")
    if len(problems):
        return len(ids)
    graph = scipy.sparse.coo_array((np.ones(len(a), np.int8), (np.searchsorted(unique, a), place)), (len(unique),) * 2)
    parts, part = connected_components(graph.tocsr(), connection="strong")
    loops = set(a[a == b].tolist())
    if parts < len(unique):
        sizes = np.bincount(part, minlength=parts)
        for group in np.flatnonzero(sizes > 1)[:100]:
            loops.add(int(unique[np.flatnonzero(part == group)[0]]))
    for id_ in sorted(loops):
        problems.add(lines.of(id_), "", "refers to itself, in a circle / 循环引用")
    return len(ids)


@dataclass(slots=True)
class _Thing:
    """A product that becomes an asset."""

    product: Any
    local: str
    type: str
    shapes: list[tuple[Floats, Any]] = field(default_factory=list)
    system: str = ""
    psets: dict[str, Any] = field(default_factory=dict)


class _Reading:
    def __init__(
        self,
        ifcopenshell: Any,
        file: Any,
        name: str,
        crs: str,
        progress: Progress,
        lines: _Lines,
        problems: Problems,
        notes: Problems,
    ) -> None:
        self.ifc, self.file, self.name, self.asked, self.progress = ifcopenshell, file, name, crs, progress
        self.lines, self.problems, self.notes = lines, problems, notes
        self.element = importlib.import_module("ifcopenshell.util.element")
        self.unit = importlib.import_module("ifcopenshell.util.unit")
        self.placement = importlib.import_module("ifcopenshell.util.placement")
        self.things: dict[int, _Thing] = {}
        self.parents: dict[int, int] = {}
        self.unit_m = 1.0

    def all(self, class_: str) -> list[Any]:
        """Instances of a class; none where the schema has no such class."""
        try:
            return list(self.file.by_type(class_))
        except RuntimeError:
            return []

    def model(self) -> CityModel:
        try:
            self.unit_m = float(self.unit.calculate_unit_scale(self.file))
        except GARBLED as error:
            self.problems.add(self.name, "units", f"{error} / 单位无效")
        if not 1e-6 <= self.unit_m <= 1e6:
            self.problems.add(self.name, "units", f"a unit of {self.unit_m} m / 长度单位无效")
        self._hold()
        self._collect()
        self.problems.check()
        to_map, crs, height = self._georeference()
        self.problems.check()
        self._shapes()
        self.problems.check()
        self.progress("assets", 0.9)
        for thing in self.things.values():
            thing.shapes = [(to_map(vertices), faces) for vertices, faces in thing.shapes]
        nodes, edges, joints = self._network(to_map)
        links = {edge.local for edge in edges}
        assets = [self._asset(thing, links, to_map) for thing in self.things.values()] + joints
        self.problems.check()
        self.progress("done", 1.0)
        metadata = {"schema": str(self.file.schema), "unit_m": self.unit_m, **self._about()}
        return CityModel("ifc", assets, pipes.networks(nodes, edges), crs, height, metadata, self.notes.told())

    def _about(self) -> dict[str, Any]:
        projects = self.all("IfcProject")
        return {"project": str(projects[0].Name or "")} if projects else {}

    # What there is

    def _hold(self) -> None:
        """Who holds whom: child -> parent, by step id."""
        for class_, whole, parts in (
            ("IfcRelAggregates", "RelatingObject", "RelatedObjects"),
            ("IfcRelNests", "RelatingObject", "RelatedObjects"),
            ("IfcRelContainedInSpatialStructure", "RelatingStructure", "RelatedElements"),
        ):
            for relation in self.all(class_):
                try:
                    holder = getattr(relation, whole)
                    for part in getattr(relation, parts):
                        self.parents.setdefault(part.id(), holder.id())
                except GARBLED as error:
                    self._bad(relation, error)
        for child in self.parents:
            if self._climb(child, lambda _: False) == -1:
                self.problems.add(self.lines.of(child), "", "is part of itself, in a circle / 循环的组成关系")
                break

    def _climb(self, id_: int, is_wanted: Callable[[int], bool]) -> int:
        """The nearest holder that is wanted; 0 if there is none, -1 in a circle."""
        for _ in range(MAX_UP):
            id_ = self.parents.get(id_, 0)
            if not id_ or is_wanted(id_):
                return id_
        return -1

    def _bad(self, entity: Any, error: Exception) -> None:
        self.problems.add(self.lines.of(entity.id()), str(entity.is_a()), f"{error} / 实例无效"[:300])

    def _collect(self) -> None:
        """The products that become assets."""
        self.progress("products", 0.2)
        seen: dict[str, int] = {}
        done: set[int] = set()
        for class_, type_ in TYPES:
            for product in self.all(class_):
                if product.id() in done:
                    continue
                done.add(product.id())
                if not type_:
                    continue
                try:
                    local = str(product.GlobalId or "")
                    found = self._type(product, type_)
                    psets = _flat(self.element.get_psets(product))
                except GARBLED as error:
                    self._bad(product, error)
                    continue
                if not re.fullmatch(r"[0-9A-Za-z_$]{22}", local):
                    self.problems.add(self.lines.of(product.id()), "GlobalId", f"{local!r:.60} is none / GlobalId 无效")
                elif local in seen:
                    text = f"{local} is used before, by {self.lines.of(seen[local])} / GlobalId 重复"
                    self.problems.add(self.lines.of(product.id()), "GlobalId", text)
                seen.setdefault(local, product.id())
                self.things[product.id()] = _Thing(product, local, found, psets=psets)
        self._systems()

    def _type(self, product: Any, type_: str) -> str:
        if type_ == "manhole":
            kind = str(getattr(product, "PredefinedType", None) or "").upper()
            return CHAMBERS.get(kind, "manhole")
        if type_ == "other":
            told = (getattr(product, name, None) for name in ("ObjectType", "Name"))
            return next((t for text in told if text and (t := words.type_of(str(text).split(":")[0]))), "other")
        return type_

    def _systems(self) -> None:
        for relation in self.all("IfcRelAssignsToGroup"):
            try:
                group = relation.RelatingGroup
                if group is None or not group.is_a("IfcSystem"):
                    continue
                kind = str(getattr(group, "PredefinedType", None) or "").upper()
                system = SYSTEMS.get(kind, "") or next(
                    (
                        found
                        for name in ("ObjectType", "Name", "LongName")
                        if (text := getattr(group, name, None)) and (found := words.system_of(str(text)))
                    ),
                    "",
                )
                for member in relation.RelatedObjects:
                    if system and member.id() in self.things:
                        self.things[member.id()].system = self.things[member.id()].system or system
            except GARBLED as error:
                self._bad(relation, error)
        for thing in self.things.values():
            if not thing.system and thing.type in ("pipe", *pipes.NODE_TYPES):
                told = (getattr(thing.product, name, None) for name in ("ObjectType", "Name"))
                thing.system = next((found for text in told if text and (found := words.system_of(str(text)))), "")

    # Where it lies

    def _georeference(self) -> tuple[Callable[[Floats], Floats], str, str]:
        """What turns the model's metres into the CRS's coordinates, the CRS, and its height datum."""
        conversion, projected = self._conversion()
        if projected is not None and conversion is not None:
            text = str(projected.get("Name") or "")
            found = self._crs(text) or (self._crs(self.asked) if self.asked else None)
            if found is None:
                self.notes.add(
                    self.name,
                    "IfcProjectedCRS",
                    f"{text!r:.80} is no CRS that PROJ knows; say which with --crs / 未知坐标系，请用 --crs 指明",
                )
            elif self.asked and self._crs(self.asked) != found:
                self.notes.add(self.name, "crs", f"the file's own {found.text} is used / 采用文件自带的坐标系")
            map_unit = self._map_unit(projected)
            to_map = self._helmert(conversion, map_unit, found.unit_m if found is not None else 1.0)
            height = str(projected.get("VerticalDatum") or "") or (found.height if found is not None else "")
            return to_map, found.text if found is not None else "", height
        if self.asked:
            found = self._crs(self.asked)
            if found is None:
                self.problems.add(self.name, "crs", f"{self.asked!r:.80} is no CRS / 未知坐标系")
                return _same, "", ""
            unit = found.unit_m if math.isfinite(found.unit_m) else 1.0
            return (lambda v: v / np.array([unit, unit, 1.0])), found.text, found.height
        return self._site()

    def _crs(self, text: str) -> systems.Crs | None:
        try:
            return systems.parse(text) if text.strip() else None
        except systems.UnknownCrs:
            return None

    def _conversion(self) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
        try:
            for found in self.all("IfcMapConversion"):
                target = found.TargetCRS
                if target is not None:
                    return found.get_info(), target.get_info()
            for site in (*self.all("IfcSite"), *self.all("IfcProject")):
                psets = {name.lower(): values for name, values in self.element.get_psets(site).items()}
                conversion, target = psets.get("epset_mapconversion"), psets.get("epset_projectedcrs")
                if conversion and target:
                    return conversion, target
        except GARBLED as error:
            self.problems.add(self.name, "IfcMapConversion", f"{error} / 地理配准无效")
        return None, None

    def _map_unit(self, projected: Mapping[str, Any]) -> float:
        """Metres in the unit of eastings and northings: the CRS's, else the project's."""
        unit = projected.get("MapUnit")
        if isinstance(unit, str):
            return words.UNITS.get(unit.lower(), 0.001 if "milli" in unit.lower() else 1.0)
        if unit is None:
            return self.unit_m
        try:
            return float(self.unit.convert_unit(1.0, unit, _metre(self.file)))
        except GARBLED:
            prefix = str(getattr(unit, "Prefix", None) or "").upper()
            return {"MILLI": 0.001, "CENTI": 0.01, "KILO": 1000.0}.get(prefix, 1.0)

    def _helmert(self, conversion: Mapping[str, Any], map_unit: float, crs_unit: float) -> Callable[[Floats], Floats]:
        """IfcMapConversion: turned, scaled, moved. `Scale` also leads from the project's unit to the map's; where it
        is not given, or 1, though the units differ, the units count."""

        def number(name: str, default: float) -> float:
            value = conversion.get(name)
            value = getattr(value, "wrappedValue", value)
            found = default if value is None else words.number(value)
            if found is None or not abs(found) < 1e9:
                self.problems.add(self.name, f"IfcMapConversion.{name}", f"{value!r:.40} is no number / 数值无效")
                return default
            return found if math.isfinite(found) else default

        east, north, up = (number(name, 0.0) for name in ("Eastings", "Northings", "OrthogonalHeight"))
        a, o, scale = number("XAxisAbscissa", 1.0), number("XAxisOrdinate", 0.0), number("Scale", 1.0)
        long = math.hypot(a, o)
        if long == 0 or scale <= 0:
            self.problems.add(self.name, "IfcMapConversion", "has no direction or scale / 方向或比例无效")
            return _same
        ratio = self.unit_m / map_unit
        if abs(ratio - 1) > 1e-9 and abs(scale - 1) < 0.01:
            scale *= ratio
            self.notes.add(
                self.name, "IfcMapConversion.Scale", f"is taken as {scale:g}, as the units differ / 按单位换算比例"
            )
        cos, sin = a / long, o / long
        factor = scale / self.unit_m * map_unit  # the model comes in metres, and so it leaves

        def convert(v: Floats) -> Floats:
            x = factor * (cos * v[:, 0] - sin * v[:, 1]) + east * map_unit
            y = factor * (sin * v[:, 0] + cos * v[:, 1]) + north * map_unit
            unit = crs_unit if math.isfinite(crs_unit) else 1.0
            return np.column_stack([x / unit, y / unit, v[:, 2] + up * map_unit])

        return convert

    def _site(self) -> tuple[Callable[[Floats], Floats], str, str]:
        for site in self.all("IfcSite"):
            try:
                lat, lon = _degrees(site.RefLatitude), _degrees(site.RefLongitude)
                origin = self._spot(site)
            except GARBLED as error:
                self._bad(site, error)
                continue
            if lat is None or lon is None:
                continue
            if abs(lat) > 90 or abs(lon) > 180:
                self.problems.add(self.lines.of(site.id()), "RefLatitude", f"{lat:g}, {lon:g} is no place / 经纬度无效")
                continue
            north = self._true_north()
            wkt = CRS.from_proj4(
                f"+proj=tmerc +lat_0={lat:.9f} +lon_0={lon:.9f} +k=1 +x_0=0 +y_0=0 +datum=WGS84 +units=m"
            ).to_wkt()
            self.notes.add(
                self.name,
                "IfcSite",
                f"is placed by the site's latitude and longitude, {lat:.6f}, {lon:.6f} / 按场地经纬度定位",
            )
            cos, sin = north

            def convert(v: Floats, origin: Floats = origin, cos: float = cos, sin: float = sin) -> Floats:
                x, y = v[:, 0] - origin[0], v[:, 1] - origin[1]
                return np.column_stack([cos * x - sin * y, sin * x + cos * y, v[:, 2]])

            return convert, wkt, ""
        self.notes.add(
            self.name, "crs", "the file does not say where it lies; place it with --crs / 文件未定位，请用 --crs 指明"
        )
        return _same, "", ""

    def _true_north(self) -> tuple[float, float]:
        """Cosine and sine of the turn that brings the model's north (`TrueNorth`) to y."""
        for context in self.all("IfcGeometricRepresentationContext"):
            north = getattr(context, "TrueNorth", None)
            if north is not None and not context.is_a("IfcGeometricRepresentationSubContext"):
                x, y = (float(v) for v in north.DirectionRatios[:2])
                long = math.hypot(x, y)
                if long > 0:
                    return y / long, x / long
        return 1.0, 0.0

    def _spot(self, product: Any) -> Floats:
        """Where a product is placed, in metres of the model."""
        placement = getattr(product, "ObjectPlacement", None)
        if placement is None:
            return np.zeros(3)
        matrix = np.asarray(self.placement.get_local_placement(placement), np.float64)
        return matrix[:3, 3] * self.unit_m

    # Shapes

    def _shapes(self) -> None:
        """Triangles of what becomes an asset, and of what it holds."""
        owners: dict[int, _Thing] = {}
        drawn = []
        for class_, _ in TYPES:
            for product in self.all(class_):
                if product.id() in owners or product.is_a("IfcFeatureElement"):
                    continue
                own = self.things.get(product.id())
                if own is None:
                    holder = self._climb(product.id(), self.things.__contains__)
                    own = self.things.get(holder)
                if own is not None and getattr(product, "Representation", None) is not None:
                    owners[product.id()] = own
                    drawn.append(product)
        if not drawn:
            return
        if len(drawn) > MAX_SHAPES:
            self.problems.add(self.name, "", f"more than {MAX_SHAPES} shapes / 构件过多")
            return
        geom = importlib.import_module("ifcopenshell.geom")
        settings = geom.settings()
        settings.set("use-world-coords", True)
        settings.set("weld-vertices", True)
        iterator = geom.iterator(settings, self.file, 1, include=drawn)
        count, total = 0, 0
        self.ifc.get_log()
        has_next = iterator.initialize()
        done: set[int] = set()
        while has_next:
            shape = iterator.get()
            count += 1
            if count % 100 == 0:
                self.progress("shapes", 0.3 + 0.6 * count / len(drawn))
            vertices = np.array(shape.geometry.verts, np.float64).reshape(-1, 3)
            faces = np.array(shape.geometry.faces, np.int64).reshape(-1, 3)
            total += len(vertices)
            if len(vertices) > MAX_SHAPE_VERTICES or total > MAX_VERTICES:
                self.problems.add(
                    self.lines.of(shape.id),
                    "",
                    f"more than {MAX_SHAPE_VERTICES} vertices, or {MAX_VERTICES} in all / 顶点过多",
                )
                return
            if not np.isfinite(vertices).all() or (len(vertices) and np.abs(vertices).max() > 1e8):
                self.problems.add(self.lines.of(shape.id), "", "has a coordinate beyond 1e8 m / 坐标超出范围")
            elif len(faces) and shape.id in owners:
                owners[shape.id].shapes.append((vertices, faces))
                done.add(shape.id)
            has_next = iterator.next()
        if missing := len(owners) - len(done):
            self.notes.add(
                self.name, "", f"{missing} elements have no shape that can be drawn / {missing} 个构件无法生成几何"
            )

    # Network

    def _network(self, to_map: Callable[[Floats], Floats]) -> tuple[list[pipes.Node], list[pipes.Edge], list[Asset]]:
        """Nodes and edges where ports are joined, and assets for the joints between them."""
        owner = self._ports()
        joined: dict[int, int] = {}
        relations = []
        for relation in self.all("IfcRelConnectsPorts"):
            try:
                a, b = relation.RelatingPort.id(), relation.RelatedPort.id()
            except GARBLED as error:
                self._bad(relation, error)
                continue
            if a in owner and b in owner:
                joined[a], joined[b] = b, a
                relations.append((str(relation.GlobalId), a, b))
        nodes: list[pipes.Node] = []
        places: dict[int, int] = {}
        joints: list[Asset] = []
        edges: list[pipes.Edge] = []

        def node_of(thing: _Thing) -> int:
            if thing.product.id() not in places:
                x, y, z = self._middle(thing, to_map)
                places[thing.product.id()] = len(nodes)
                nodes.append(
                    pipes.Node(thing.local, thing.type if thing.type in pipes.NODE_TYPES else "junction", x, y, z)
                )
            return places[thing.product.id()]

        ends: dict[frozenset[int], int] = {}

        def end_of(port: int, thing: _Thing) -> int:
            other = joined.get(port)
            if other is not None and owner[other].type != "pipe":
                return node_of(owner[other])
            key = frozenset((port, other or port))
            if key not in ends:
                x, y, z = (float(v) for v in to_map(self._spot(self.file.by_id(min(key))).reshape(1, 3))[0])
                local = "port:" + str(self.file.by_id(min(key)).GlobalId)
                ends[key] = len(nodes)
                nodes.append(pipes.Node(local, "junction", x, y, z))
                joints.append(
                    Asset(
                        local,
                        "junction",
                        "node",
                        "IfcDistributionPort",
                        geometry=(Geometry.point(x, y, z),),
                        system=thing.system,
                    )
                )
            return ends[key]

        by_thing: dict[int, list[int]] = {}
        for port, thing in owner.items():
            by_thing.setdefault(thing.product.id(), []).append(port)
        for id_, ports in by_thing.items():
            thing = self.things[id_]
            if thing.type != "pipe" or len(ports) != 2 or not any(port in joined for port in ports):
                continue
            flows = [str(getattr(self.file.by_id(port), "FlowDirection", None) or "") for port in ports]
            if flows[0] == "SOURCE" or flows[1] == "SINK":  # water leaves an element at its source port
                ports, flows = ports[::-1], flows[::-1]
            start, end = (end_of(port, thing) for port in ports)
            if start == end:
                continue
            system = thing.system or next(
                (o.system for p in ports if p in joined and (o := owner[joined[p]]).system), "other"
            )
            thing.system = system
            a, b = (np.array(nodes[place][2:5]) for place in (start, end))
            long = self._number(thing, LENGTHS) or float(np.hypot(*(a - b)[:2]))
            is_one_way = system in pipes.ONE_WAY or "SOURCE" in flows
            edges.append(
                pipes.Edge(
                    thing.local,
                    "pipe",
                    system,
                    start,
                    end,
                    long,
                    self._number(thing, DIAMETERS) or math.nan,
                    direction=int(is_one_way),
                )
            )
        for local, a, b in relations:
            one, two = owner[a], owner[b]
            if "pipe" in (one.type, two.type) or one is two:
                continue
            system = one.system or two.system or "other"
            ends_ = node_of(one), node_of(two)
            edges.append(pipes.Edge(local, "pipe", system, *ends_, length=0.0, direction=int(system in pipes.ONE_WAY)))
            joints.append(Asset(local, "fitting", "link", "IfcRelConnectsPorts", system=system))
        at = {place: id_ for id_, place in places.items()}
        for edge in edges:
            for place in (edge.start, edge.end):
                if place in at:
                    self.things[at[place]].system = self.things[at[place]].system or edge.system
        return nodes, edges, joints

    def _ports(self) -> dict[int, _Thing]:
        """Ports by step id, and the things they are at."""
        owner: dict[int, _Thing] = {}
        for relation in self.all("IfcRelConnectsPortToElement"):
            try:
                thing = self.things.get(relation.RelatedElement.id())
                if thing is not None:
                    owner[relation.RelatingPort.id()] = thing
            except GARBLED as error:
                self._bad(relation, error)
        for port in self.all("IfcDistributionPort"):
            thing = self.things.get(self.parents.get(port.id(), 0))
            if thing is not None:
                owner.setdefault(port.id(), thing)
                kind = SYSTEMS.get(str(getattr(port, "SystemType", None) or "").upper(), "")
                thing.system = thing.system or kind
        return owner

    def _middle(self, thing: _Thing, to_map: Callable[[Floats], Floats]) -> tuple[float, float, float]:
        if thing.shapes:
            every = np.concatenate([vertices for vertices, _ in thing.shapes])
            low, high = every.min(axis=0), every.max(axis=0)
            x, y, z = (low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]
        else:
            x, y, z = to_map(self._spot(thing.product).reshape(1, 3))[0]
        return float(x), float(y), float(z)

    def _number(self, thing: _Thing, names: Iterable[str]) -> float:
        """A length among a thing's properties, in metres; 0 if there is none."""
        for wanted in names:
            for name, value in thing.psets.items():
                found = words.number(value) if name.endswith("." + wanted) else None
                if found is not None and 0 < found * self.unit_m < 1e6:
                    return found * self.unit_m
        return 0.0

    # Assets

    def _asset(self, thing: _Thing, links: set[str], to_map: Callable[[Floats], Floats]) -> Asset:
        product = thing.product
        ours: dict[str, Any] = {}
        shape: tuple[Geometry, ...] = ()
        try:
            self._describe(thing, ours)
            if thing.shapes:
                shape = (_triangles(thing.shapes),)
            elif getattr(product, "ObjectPlacement", None) is not None:
                x, y, z = (float(v) for v in to_map(self._spot(product).reshape(1, 3))[0])
                shape = (Geometry.point(x, y, z),)
        except GARBLED as error:
            self._bad(product, error)
        name = str(getattr(product, "Name", None) or "")
        zh, en = (name, "") if words.has_chinese(name) else ("", name)
        holder = self._climb(product.id(), self.things.__contains__)
        parent = self.things[holder].local if holder in self.things else ""
        is_node = thing.type in pipes.NODE_TYPES
        group = "link" if thing.local in links else "node" if is_node else "object"
        system = thing.system if is_node or thing.type == "pipe" else ""
        return Asset(
            thing.local,
            thing.type,
            group,
            str(product.is_a()),
            zh,
            en,
            {**thing.psets, **ours},
            shape,
            parent,
            system=system,
        )

    def _describe(self, thing: _Thing, ours: dict[str, Any]) -> None:
        product = thing.product
        for name in ("Description", "ObjectType", "Tag", "LongName", "PredefinedType"):
            value = getattr(product, name, None)
            if value not in (None, ""):
                ours[name] = str(value)[:1000]
        if thing.type == "building":
            storeys = [
                s
                for s in self.all("IfcBuildingStorey")
                if self._climb(s.id(), lambda id_: id_ == product.id()) == product.id()
            ]
            if storeys:
                ours["floors"] = len(storeys)
                ours["storeys"] = [
                    {"name": str(s.Name or ""), "elevation_m": _metres(s.Elevation, self.unit_m)} for s in storeys
                ]
            if thing.shapes:
                every = np.concatenate([vertices[:, 2] for vertices, _ in thing.shapes])
                ours["height_m"] = round(float(every.max() - every.min()), 3)
        for key, names in (("diameter_m", DIAMETERS), ("length_m", LENGTHS), ("invert_m", INVERTS)):
            if thing.type in ("pipe", *pipes.NODE_TYPES) and (found := self._number(thing, names)):
                ours[key] = round(found, 6)
        material = self.element.get_material(product, should_skip_usage=True)
        if material is not None and getattr(material, "Name", None):
            ours["material"] = str(material.Name)


def _same(vertices: Floats) -> Floats:
    return vertices


def _metre(file: Any) -> Any:
    return file.create_entity("IfcSIUnit", None, "LENGTHUNIT", None, "METRE")


def _metres(value: Any, unit_m: float) -> float | None:
    return round(float(value) * unit_m, 4) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _degrees(parts: Any) -> float | None:
    """Degrees of an IfcCompoundPlaneAngleMeasure: degrees, minutes, seconds, millionths, all of one sign."""
    if not parts:
        return None
    return sum(float(part) / size for part, size in zip(parts, (1, 60, 3600, 3600e6), strict=False))


def _flat(psets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Property sets as `Set.Property` -> a value that JSON can hold."""
    flat: dict[str, Any] = {}
    for name, properties in psets.items():
        for key, value in properties.items():
            if key != "id":
                flat[f"{name}.{key}"] = _plain(value, 0)
    return flat


def _plain(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping) and depth < 5:
        return {str(key): _plain(member, depth + 1) for key, member in value.items() if key != "id"}
    if isinstance(value, (list, tuple)) and depth < 5:
        return [_plain(member, depth + 1) for member in value[:1000]]
    return str(value)[:1000]


def _triangles(shapes: list[tuple[Floats, Any]]) -> Geometry:
    boundaries: list[Any] = []
    start = 0
    for vertices, faces in shapes:
        boundaries += [[face] for face in (faces + start).tolist()]
        start += len(vertices)
    return Geometry("MultiSurface", np.concatenate([vertices for vertices, _ in shapes]), boundaries)
