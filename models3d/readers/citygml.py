"""CityGML 2.0 (OGC 12-019) and 3.0 (OGC 20-010, 21-006r2): buildings, bridges, tunnels, furniture and the other city
objects with their LoD 0-3 geometry, semantic surfaces, and all attributes, to a `CityModel` as CityJSON would tell it.

Read as a stream, one top-level object in memory at a time; those that refer to polygons of later ones wait for the end.
Not read, and noted: rooms and other interiors, appearances, geometry in other files. LoD 4 of version 2.0 (version 3.0
dropped it) counts as LoD 3 where there is none. Documents with a DOCTYPE are refused, so there are no entities; links
lead into the document only.

Axis order: a system named by URN or URL has its authority's order (latitude first), one named `EPSG:…` easting first,
as files do in practice; where that would lie outside of the system's area of use and the other order inside, the
other order is taken, and noted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from lxml import etree
from pyproj import CRS

from models3d.crs import UnknownCrs, parse
from models3d.readers import MAX_DEPTH, MAX_ELEMENTS, Buffer, Problems, nothing
from models3d.readers.citywords import ALSO, TYPES, derived, level, metres, names
from twin.city import Asset, CityModel, Geometry, InvalidModel, Progress
from twin.model import Floats, Problem

MAX_MEMBER_BYTES: Final = 256 << 20  # of one top-level object
MAX_MEMBER_TAGS: Final = 8_000_000
MAX_WAITING_BYTES: Final = 64 << 20  # of objects that wait for polygons of later ones
MAX_FACES: Final = 20_000_000  # polygons, counted as often as they are referred to
MAX_LINKS: Final = 10_000_000
FARTHEST: Final = 1e10
_CITY: Final = "http://www.opengis.net/citygml/"
_HREF: Final = "{http://www.w3.org/1999/xlink}href"
_IDS: Final = ("{http://www.opengis.net/gml}id", "{http://www.opengis.net/gml/3.2}id")
_WITH_ID: Final = etree.XPath(
    "descendant::*[@a:id or @b:id]",
    namespaces={"a": "http://www.opengis.net/gml", "b": "http://www.opengis.net/gml/3.2"},
)
_LINKS: Final = re.compile(rb"href\s*=\s*[\"']#([^\"'\s]{1,300})[\"']")
_LOD: Final = re.compile(r"lod([0-4])(.+)")
_NAN: Final = math.nan  # one object, so that points without heights are equal

_THEMES: Final = {
    name: name for name in (
        "RoofSurface", "WallSurface", "GroundSurface", "ClosureSurface", "OuterCeilingSurface", "OuterFloorSurface",
        "InteriorWallSurface", "CeilingSurface", "FloorSurface", "Window", "Door", "WaterSurface",
        "WaterGroundSurface", "WaterClosureSurface", "TrafficArea", "AuxiliaryTrafficArea",
    )
} | {"WindowSurface": "Window", "DoorSurface": "Door", "Marking": "TransportationMarking",
     "HoleSurface": "TransportationHole"}  # fmt: skip
# Parts of roads in version 3.0 that are no objects to us: what they hold belongs to the road.
_SPACES: Final = frozenset(("TrafficSpace", "AuxiliaryTrafficSpace", "Section", "Intersection", "ClearanceSpace"))
_INSIDE: Final = frozenset((
    "Room", "IntBuildingInstallation", "IntBridgeInstallation", "IntTunnelInstallation", "BuildingRoom", "BridgeRoom",
    "HollowSpace", "BuildingStorey", "Storey", "BuildingUnit", "BuildingFurniture", "BridgeFurniture",
    "TunnelFurniture",
))  # fmt: skip
_SKIPPED: Final = frozenset(("appearance", "appearanceMember", "boundedBy", "dynamizer", "versionMember"))
_FACES: Final = frozenset(("Polygon", "PolygonPatch", "Triangle", "Rectangle"))
_PATCHES: Final = frozenset(("patches", "trianglePatches", "polygonPatches"))
_GERMAN: Final = {"ETRS89_UTM31": 25831, "ETRS89_UTM32": 25832, "ETRS89_UTM33": 25833, "DE_DHDN_3GK2": 31466,
                  "DE_DHDN_3GK3": 31467, "DE_DHDN_3GK4": 31468, "DE_DHDN_3GK5": 31469}  # fmt: skip
_ROOT: Final = re.compile(rb"<(?:[A-Za-z_][\w.-]*:)?CityModel[\s>]")

Point = tuple[float, float, float]


class Face(NamedTuple):
    """A polygon: what tells it from others, and its rings, the outer one first."""

    key: object
    rings: list[list[Point]]


class _Theme(NamedTuple):
    """A semantic surface, and its polygons by LoD."""

    told: dict[str, Any]
    faces: dict[str, list[Face]]


class _Missing(Exception):  # noqa: N818 - an outcome
    """A link leads to something that was not read yet."""


class _Wrong(Exception):  # noqa: N818 - an outcome
    """A piece of geometry that cannot be read: where, and why."""

    def __init__(self, element: Any, text: str) -> None:
        self.line = element.sourceline
        self.text = text
        super().__init__(text)


def recognise(head: bytes, name: str) -> bool:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return start.startswith(b"<") and b"opengis.net/citygml" in start and _ROOT.search(start) is not None


def read(data: Buffer, name: str, crs: str = "", progress: Progress = nothing) -> CityModel:
    """The model in a CityGML document. Raises `InvalidModel`."""
    reading = _Reading(name, crs, progress)
    try:
        return reading.model(data)
    except InvalidModel as error:
        refused = InvalidModel(error.problems, error.what)
    raise refused


class _Source:
    """What the parser reads from. Ends early when one object is too large."""

    def __init__(self, data: Buffer) -> None:
        self.data = data
        self.position = 0
        self.since = 0  # where the object began that is being read
        self.tags = 0
        self.is_over = False

    def read(self, size: int = -1) -> bytes:
        chunk = bytes(self.data[self.position : self.position + min(max(size, 1), 1 << 16)])
        self.position += len(chunk)
        self.tags += chunk.count(b"<")
        if self.position - self.since > MAX_MEMBER_BYTES or self.tags > MAX_MEMBER_TAGS:
            self.is_over = True
            return b""
        return chunk

    def next(self) -> int:
        """Another object begins; how many bytes the last one had, about."""
        size = self.position - self.since
        self.since, self.tags = self.position, 0
        return size


class _Reading:
    def __init__(self, name: str, crs: str, progress: Progress) -> None:
        self.name = name
        self.given = crs
        self.progress = progress
        self.problems = Problems(name)
        self.doubts = Problems(name)
        self.noted: set[str] = set()
        self.assets: list[Asset] = []
        self.known: set[str] = set()
        self.srs = ""  # as the file spells it
        self.crs = ""
        self.height = ""
        self.order = ""  # of axes: "strict" as its authority has it, "xy", or "" while none is known
        self.is_swapped: bool | None = None
        self.dimension = 3
        self.version = ""
        self.metadata: dict[str, Any] = {}
        self.links: dict[str, int] = {}  # to an id, not yet followed
        self.shared: dict[str, list[Face]] = {}  # of former objects, for links from others
        self.faces = 0
        # Of the object that is being read:
        self.here: dict[str, Any] = {}
        self.parsed: dict[str, list[Face]] = {}
        self.followed: list[str] = []

    def note(self, text: str, element: Any = None) -> None:
        """Doubts are told once each."""
        if text not in self.noted and len(self.noted) < 1000:
            self.noted.add(text)
            self.doubts.add(self.name if element is None else f"{self.name}, line {element.sourceline}", "", text)

    def model(self, data: Buffer) -> CityModel:
        if data.find(b"<!DOCTYPE", 0) >= 0 or data.find(b"<!ENTITY", 0) >= 0:
            raise self.refused("", "a DOCTYPE or entities are not read / 不接受含 DOCTYPE 或实体的文件")
        for match in _LINKS.finditer(data):
            link = match[1].decode("utf-8", "replace")
            self.links[link] = self.links.get(link, 0) + 1
            if len(self.links) > MAX_LINKS:
                raise self.refused("", f"more than {MAX_LINKS} links / 链接超过 {MAX_LINKS} 个")
        source = _Source(data)
        waiting: list[Any] = []
        waiting_bytes = 0
        try:
            for member in self.members(source):
                size = source.next()
                if not self.member(member, is_last_try=False):
                    waiting.append(member)
                    waiting_bytes += size
                    if waiting_bytes > MAX_WAITING_BYTES:
                        raise self.refused("", "too many objects refer to later ones / 过多对象引用后面的对象")
                if len(self.assets) % 500 == 0:
                    self.progress("objects", source.position / len(data))
        except etree.XMLSyntaxError as error:
            if source.is_over:
                text = f"one object has more than {MAX_MEMBER_BYTES >> 20} MiB or {MAX_MEMBER_TAGS} tags / 单个对象过大"
                raise self.refused("", text) from None
            line, column = error.position
            place = f"{self.name}, line {line}, column {column}"
            self.problems.add(place, "", f"is not XML: {str(error.msg)[:300]} / 不是有效的 XML")
            self.problems.check()
        if not self.version:
            raise self.refused("", "is no CityModel of CityGML 2.0 or 3.0 / 不是 CityGML 2.0 或 3.0 的 CityModel")
        for member in waiting:
            self.member(member, is_last_try=True)
        self.problems.check()
        self.progress("objects", 1.0)
        crs = self.crs or self.given
        if self.is_swapped is not None:
            self.metadata["swapped"] = self.is_swapped
        self.metadata |= {"version": self.version, "srsName": self.srs}
        return CityModel("citygml", self.assets, [], crs, self.height, self.metadata, self.doubts.told())

    def refused(self, place: str, text: str) -> InvalidModel:
        return InvalidModel([Problem(place or self.name, "", text)], self.name)

    def members(self, source: _Source) -> Iterator[Any]:
        """Each element that holds top-level objects, complete; it is forgotten when the next one is asked for."""
        tags = ["{*}cityObjectMember", "{*}featureMember", "{*}featureMembers", "{*}Envelope", "{*}appearanceMember"]
        context = etree.iterparse(
            source, events=("end",), tag=tags, resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False
        )
        for _, element in context:
            if not self.version:
                self.begin(element.getroottree())
            if _local(element) == "Envelope":
                self.envelope(element)
                continue
            parent = element.getparent()
            if parent is None or parent.getparent() is not None:
                continue  # a group's member: read with the group
            if _local(element) == "appearanceMember":
                self.note("appearances are not read / 未读取外观", element)
            else:
                yield element
            while element.getprevious() is not None:
                del parent[0]
            if element.getparent() is not None:
                element.clear()
        if not self.version and context.root is not None:
            self.begin(context.root.getroottree())

    def begin(self, tree: Any) -> None:
        root = tree.getroot()
        if tree.docinfo.doctype or tree.docinfo.internalDTD is not None:
            raise self.refused("", "a DOCTYPE is not read / 不接受含 DOCTYPE 的文件")
        space = etree.QName(root).namespace or ""
        version = space.removeprefix(_CITY) if space.startswith(_CITY) else ""
        if _local(root) != "CityModel" or version not in ("2.0", "3.0"):
            text = f"{etree.QName(root).text[:100]!r}: read are CityGML 2.0 and 3.0 / 仅支持 CityGML 2.0 和 3.0"
            raise self.refused(f"{self.name}, line {root.sourceline}", text)
        self.version = version
        for child in root:
            if isinstance(child.tag, str) and _local(child) in ("name", "description") and child.text:
                self.metadata[_local(child)] = child.text.strip()

    # Coordinates.

    def envelope(self, element: Any) -> None:
        self.system(element)
        told = element.get("srsDimension")
        if told in ("2", "3"):
            self.dimension = int(told)

    def system(self, element: Any) -> None:
        """Take the coordinate system that an element names, if any."""
        told = element.get("srsName")
        if not told or told == self.srs:
            return
        crs, height, order = self.named(told, element)
        if not self.srs:
            self.srs, self.crs, self.height, self.order = told, crs, height, order
        elif (crs, order) != (self.crs, self.order):
            text = f"srsName {told[:100]!r} is another than {self.srs[:100]!r} / 坐标系不一致"
            self.problems.line(element.sourceline, "srsName", text)

    def named(self, told: str, element: Any) -> tuple[str, str, str]:
        is_strict = told.startswith("urn:ogc:") or "/def/crs/" in told
        german = re.match(r"urn:adv:crs:([A-Z0-9_a-z]+?)(?:\*(.+))?$", told)
        codes = re.findall(r"EPSG(?:\.xml#|/[^/]*/|:[^:,]*:|:)(\d+)", told, re.IGNORECASE)
        if german and german[1] in _GERMAN:
            return f"EPSG:{_GERMAN[german[1]]}", (german[2] or "").removeprefix("DE_").replace("_NH", ""), "xy"
        try:
            known = parse(f"EPSG:{codes[0]}" if codes else told)
            height = known.height
            if len(codes) > 1:
                height = CRS.from_epsg(int(codes[1])).name
        except (UnknownCrs, ValueError, RuntimeError):  # PROJ's errors are RuntimeErrors
            self.note(f"srsName {told[:100]!r} names no known coordinate system / 未知的坐标系", element)
            return "", "", "xy"
        return known.text, height, "strict" if is_strict else "xy"

    def swapped(self, point: Point) -> bool:
        """Whether x is a point's second number."""
        if not self.crs:
            return False
        flat = CRS.from_user_input(self.crs)
        flat = (flat.sub_crs_list or [flat])[0]
        directions = [axis.direction for axis in flat.axis_info]
        is_swapped = self.order == "strict" and bool(directions) and directions[0] == "north"
        area = flat.area_of_use
        if area is None:
            return is_swapped
        inside = []
        for first, second in ((0, 1), (1, 0)):
            x, y = (np.array([point[at]]) for at in (first, second))
            lon, lat = (float(one[0]) for one in parse(self.crs).to_map(x, y))
            across = area.west - 1 <= lon <= area.east + 1 if area.west <= area.east else True
            inside.append(across and area.south - 1 <= lat <= area.north + 1)
        if inside[is_swapped] or not inside[not is_swapped]:
            return is_swapped
        self.note("the axes are taken in the other order: so they lie where the system is meant for / 已交换坐标轴顺序")
        return not is_swapped

    def points(self, element: Any, dimension: int) -> list[Point]:
        """The coordinates below a ring, line or point, in order."""
        numbers: list[Point] = []
        for child in element:
            if not isinstance(child.tag, str):
                continue
            local = _local(child)
            if local in ("posList", "pos"):
                told = child.get("srsDimension")
                size = int(told) if told in ("2", "3") else dimension
                numbers += self.tuples(child, (child.text or "").split(), size)
            elif local == "coordinates":
                rows = [row.split(",") for row in (child.text or "").split()]
                if len({len(row) for row in rows}) > 1:
                    raise _Wrong(child, "coordinates of different sizes / 坐标维数不一致")
                numbers += self.tuples(child, [one for row in rows for one in row], len(rows[0]) if rows else 3)
            elif local in ("pointProperty", "pointRep", "Point", "LineString", "curveMember", "segments",
                           "LineStringSegment", "Curve"):  # fmt: skip
                more = self.points(child, dimension)
                numbers += more[1:] if numbers and more and numbers[-1] == more[0] else more
        return numbers

    def tuples(self, element: Any, words: list[str], dimension: int) -> list[Point]:
        try:
            numbers = list(map(float, words))
        except ValueError:
            raise _Wrong(element, "a coordinate is no number / 坐标不是数字") from None
        if not math.isfinite(sum(numbers)):
            raise _Wrong(element, "a coordinate is not finite / 坐标不是有限数")
        if dimension not in (2, 3) or len(numbers) % dimension:
            text = f"{len(numbers)} numbers are no points of {dimension or 3} dimensions / 坐标个数与维数不符"
            raise _Wrong(element, text)
        if dimension == 2:
            return [(x, y, _NAN) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
        return list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))

    # Geometry of GML.

    def face(self, element: Any, dimension: int) -> Face | None:
        """A polygon; None if it has no area. Real files have such, from rounding."""
        rings: list[list[Point]] = []
        for border in element:
            if not isinstance(border.tag, str) or _local(border) not in (
                "exterior", "interior", "outerBoundaryIs", "innerBoundaryIs"
            ):  # fmt: skip
                continue
            for ring in border:
                points = self.points(ring, int(ring.get("srsDimension", dimension) or dimension))
                if len(points) > 1 and points[0] == points[-1]:
                    del points[-1]
                else:
                    self.note("rings that are not closed were closed / 已闭合未闭合的环", ring)
                is_outer = _local(border) in ("exterior", "outerBoundaryIs")
                if len(points) < 3:
                    self.note("polygons with rings of less than 3 points were left out / 已忽略少于 3 个点的环", ring)
                    if is_outer:
                        return None
                elif is_outer:
                    rings.insert(0, points)
                else:
                    rings.append(points)
        if not rings:
            raise _Wrong(element, "a polygon without a ring / 多边形没有环")
        return Face(_id(element) or element, rings)

    def surfaces(self, element: Any, dimension: int, active: tuple[str, ...] = ()) -> list[Face]:
        """The polygons that an element of GML holds or links to, in order."""
        self.system(element)
        local = _local(element)
        told = element.get("srsDimension")
        if told in ("2", "3"):
            dimension = int(told)
        id_ = _id(element)
        if id_ in self.parsed:
            return self.parsed[id_]
        if id_:
            active = (*active, id_)
        if len(active) > MAX_DEPTH:
            raise _Wrong(element, f"links nested deeper than {MAX_DEPTH} / 链接嵌套超过 {MAX_DEPTH} 层")
        found: list[Face] = []
        if local in _FACES:
            face = self.face(element, dimension)
            found = [face] if face else []
        else:
            for part in element:
                if not isinstance(part.tag, str) or _local(part) in ("name", "description", "metaDataProperty"):
                    continue
                if _local(part) in _PATCHES:
                    for patch in part:
                        face = self.face(patch, dimension) if isinstance(patch.tag, str) else None
                        if face:
                            found.append(face)
                else:
                    found += self.property(part, dimension, active)
        if local == "OrientableSurface" and element.get("orientation") == "-":
            found = [Face(face.key, [ring[::-1] for ring in face.rings]) for face in found]
        self.count(len(found), element)
        if id_ and id_ in self.links:
            self.parsed[id_] = found
        return found

    def count(self, faces: int, element: Any) -> None:
        self.faces += faces
        if self.faces > MAX_FACES:
            place = f"{self.name}, line {element.sourceline}"
            raise self.refused(place, f"more than {MAX_FACES} polygons / 多边形超过 {MAX_FACES} 个")

    def property(self, element: Any, dimension: int, active: tuple[str, ...] = ()) -> list[Face]:
        """The polygons in a member (`surfaceMember`, `exterior`, `lod2MultiSurface`), its own or linked."""
        target = element.get(_HREF)
        if target is not None:
            return self.linked(element, target, active)
        found: list[Face] = []
        for child in element:
            if isinstance(child.tag, str):
                found += self.surfaces(child, dimension, active)
        return found

    def linked(self, element: Any, target: str, active: tuple[str, ...]) -> list[Face]:
        if not target.startswith("#"):
            text = f"a link out of the document is not followed: {target[:100]!r} / 不跟随文件外的链接"
            raise _Wrong(element, text)
        id_ = target[1:]
        if id_ in active:
            raise _Wrong(element, f"links lead in a circle: {target[:100]!r} / 链接形成循环")
        self.followed.append(id_)
        if id_ in self.parsed:
            found = self.parsed[id_]
        elif id_ in self.here:
            found = self.surfaces(self.here[id_], self.dimension, active)
        elif id_ in self.shared:
            found = self.shared[id_]
        else:
            raise _Missing(element, target)
        self.count(len(found), element)
        return found

    def solids(self, element: Any, dimension: int, active: tuple[str, ...] = ()) -> list[list[list[Face]]]:
        """Of each solid in an element its shells, of each shell its polygons."""
        self.system(element)
        told = element.get("srsDimension")
        if told in ("2", "3"):
            dimension = int(told)
        if _local(element) == "Solid":
            shells = []
            for part in element:
                if isinstance(part.tag, str) and _local(part) in ("exterior", "interior"):
                    faces = self.property(part, dimension)
                    if not faces:
                        raise _Wrong(part, "a shell without polygons / 壳没有多边形")
                    shells.append(faces)
            return [shells] if shells else []
        found: list[list[list[Face]]] = []
        for part in element:
            if not isinstance(part.tag, str) or _local(part) not in ("solidMember", "solidMembers"):
                continue
            target = part.get(_HREF)
            if target is not None:
                id_ = target[1:] if target.startswith("#") else ""
                if not id_ or id_ in active or id_ not in self.here or len(active) > MAX_DEPTH:
                    raise _Wrong(part, f"a link to a solid that is not followed: {target[:100]!r} / 无法跟随的链接")
                found += self.solids(self.here[id_], dimension, (*active, id_))
            else:
                for child in part:
                    if isinstance(child.tag, str):
                        found += self.solids(child, dimension, active)
            if len(found) > MAX_ELEMENTS:
                raise _Wrong(part, "too many solids / 体过多")
        return found

    def lines(self, element: Any, dimension: int) -> list[list[Point]]:
        self.system(element)
        told = element.get("srsDimension")
        dimension = int(told) if told in ("2", "3") else dimension
        if _local(element) in ("LineString", "Curve", "LinearRing", "Ring"):
            points = self.points(element, dimension)
            if len(points) < 2:
                raise _Wrong(element, "a line of less than 2 points / 线少于 2 个点")
            return [points]
        return [
            line
            for part in element
            if isinstance(part.tag, str)
            for child in part
            if isinstance(child.tag, str)
            for line in self.lines(child, dimension)
        ]

    def shape(self, kind: str, parts: Any, lod: str, place: Any, move: Floats | None = None) -> Geometry:
        """A geometry of points in nested lists: each point once, `move` [4, 4] applied."""
        table: dict[Point, int] = {}

        def numbered(part: Any) -> Any:
            if isinstance(part[0], tuple):
                return [table.setdefault(point, len(table)) for point in part]
            return [numbered(one) for one in part]

        boundaries = numbered(parts)
        vertices = np.array(list(table), np.float64).reshape(-1, 3)
        if move is None:
            vertices = self.placed(vertices)
        else:
            vertices = np.nan_to_num(vertices) @ move[:3, :3].T + move[:3, 3]
        if (np.abs(vertices) > FARTHEST).any() or not np.isfinite(vertices[:, :2]).all():
            raise _Wrong(place, "lies out of this world / 坐标值过大")
        return Geometry(kind, vertices, boundaries, lod)

    def placed(self, vertices: Floats) -> Floats:
        if self.is_swapped is None and len(vertices):
            self.is_swapped = self.swapped(tuple(vertices[0].tolist()))
        return vertices[:, [1, 0, 2]] if self.is_swapped else vertices

    # City objects.

    def member(self, element: Any, is_last_try: bool) -> bool:
        """Read the objects in a member; False if they must wait for others."""
        target = element.get(_HREF)
        if target is not None:
            text = f"a link to an object is not followed: {target[:100]!r} / 不跟随对象链接"
            self.problems.line(element.sourceline, "", text)
            return True
        self.here = {}
        for one in _WITH_ID(element):
            id_ = _id(one)
            if id_ in self.links:
                self.here.setdefault(id_, one)
        self.parsed, self.followed = {}, []
        before = len(self.assets)
        known: list[str] = []
        try:
            for child in element:
                if isinstance(child.tag, str):
                    self.top(child, known)
        except _Missing as error:
            del self.assets[before:]
            self.known.difference_update(known)
            at, link = error.args
            if is_last_try:
                text = f"there is nothing with the id of the link {link[:100]!r} / 链接的目标不存在"
                self.problems.line(at.sourceline, "", text)
                return True
            element.getparent().remove(element)
            self.share()  # others may need what it holds, though it waits
            return False
        for id_ in self.followed:
            if id_ in self.links:
                self.links[id_] -= 1
        self.share()
        return True

    def share(self) -> None:
        """Keep the polygons that other objects refer to."""
        for id_, element in self.here.items():
            if self.links.get(id_, 0) > 0 and id_ not in self.shared and etree.QName(element).namespace in _GML:
                try:
                    self.shared[id_] = self.surfaces(element, self.dimension)
                except (_Wrong, _Missing):
                    continue

    def top(self, element: Any, known: list[str]) -> None:
        local = _local(element)
        if _word(local):
            self.object(element, "", known, 0)
        elif local in _INSIDE:
            self.note(f"{local} is not read / 未读取 {local}", element)
        elif (etree.QName(element).namespace or "").startswith(_CITY):
            self.note(f"{local} is no object that is read / 未读取 {local}", element)
        else:
            self.note(f"{local} belongs to an extension and is not read / 未读取扩展对象 {local}", element)

    def object(self, element: Any, parent: str, known: list[str], depth: int) -> None:
        local = _local(element)
        word = _word(local)
        id_ = _id(element)
        if not id_:
            id_ = f"{local} {len(self.assets) + 1}"
            self.note("objects without gml:id were numbered / 没有 gml:id 的对象已编号", element)
        if id_ in self.known:
            self.problems.add(f"{self.name}, line {element.sourceline}, object {id_[:200]}", "gml:id", "twice / 重复")
            return
        if depth > MAX_DEPTH:
            self.problems.object(id_[:200], "", f"nested deeper than {MAX_DEPTH} / 嵌套过深")
            return
        if len(self.assets) >= MAX_ELEMENTS:
            raise self.refused("", f"more than {MAX_ELEMENTS} objects / 对象超过 {MAX_ELEMENTS} 个")
        self.known.add(id_)
        known.append(id_)
        where = len(self.assets)
        self.assets.append(Asset(id_, TYPES[word], element=word))  # its place, before its parts
        found = _Found()
        self.contents(element, id_, known, depth, found)
        shapes = self.shapes(found, id_)
        attributes = found.attributes
        attributes |= derived(attributes)
        name_zh, name_en = names(attributes)
        if local != word:
            attributes.setdefault("citygml", local)
        self.assets[where] = Asset(
            id_, TYPES[word], element=word, name_zh=name_zh, name_en=name_en, attributes=attributes,
            geometry=tuple(shapes), parent=parent, level=level(shape.lod for shape in shapes),
        )  # fmt: skip

    def contents(self, element: Any, id_: str, known: list[str], depth: int, found: _Found) -> None:
        """Sort what an object holds into geometry, semantic surfaces, parts and attributes."""
        for part in element:
            if not isinstance(part.tag, str):
                continue
            name = _local(part)
            child = _child(part)
            inner = _local(child) if child is not None else ""
            lod = _lod(name)
            if lod and (child is not None or part.get(_HREF)):
                found.geometry.append((lod[1], lod[2], part))
            elif child is not None and name in ("tin", "reliefPoints", "ridgeOrValleyLines"):
                found.geometry.append((found.lod or "1", "MultiSurface" if name == "tin" else "MultiCurve", part))
            elif inner in _THEMES:
                for one in part:
                    if isinstance(one.tag, str):
                        self.theme(one, id_, found, None, 0)
            elif inner in _SPACES and depth < MAX_DEPTH:
                for one in part:
                    if isinstance(one.tag, str):
                        self.contents(one, id_, known, depth + 1, _Nested(found))
            elif inner in _INSIDE:
                self.note(f"{inner} is not read / 未读取 {inner}", part)
            elif child is not None and _word(inner):
                for one in part:
                    if isinstance(one.tag, str):
                        self.object(one, id_, known, depth + 1)
            elif name not in _SKIPPED:
                if name == "lod" and part.text:
                    found.lod = part.text.strip()
                self.attribute(part, name, child, found.attributes)

    def theme(self, element: Any, id_: str, found: _Found, parent: int | None, depth: int) -> None:
        told: dict[str, Any] = {"type": _THEMES[_local(element)]}
        if _id(element):
            told["id"] = _id(element)
        number = len(found.themes)
        theme = _Theme(told, {})
        found.themes.append(theme)
        if parent is not None:
            told["parent"] = parent
            found.themes[parent].told.setdefault("children", []).append(number)
        for part in element:
            if not isinstance(part.tag, str):
                continue
            name = _local(part)
            lod = _lod(name)
            child = _child(part)
            if lod and (child is not None or part.get(_HREF)):
                if lod[2] in ("MultiSurface", "Surface", "Geometry"):
                    try:
                        theme.faces.setdefault(lod[1], []).extend(self.property(part, self.dimension))
                    except _Wrong as error:
                        self.wrong(error, id_)
                else:
                    self.note(f"{name} of a surface is not read / 未读取面的 {name}", part)
            elif child is not None and _local(child) in _THEMES and depth < MAX_DEPTH:
                self.theme(child, id_, found, number, depth + 1)
            elif name not in _SKIPPED and not (child is not None and _word(_local(child))):
                attributes: dict[str, Any] = {}
                self.attribute(part, name, child, attributes)
                for key, value in attributes.items():
                    told.setdefault(key, value)

    def wrong(self, error: _Wrong, id_: str) -> None:
        self.problems.add(f"{self.name}, line {error.line}, object {id_[:200]}", "", error.text)

    def shapes(self, found: _Found, id_: str) -> list[Geometry]:
        told = {lod for lod, _, _ in found.geometry} | {lod for theme in found.themes for lod in theme.faces}
        shapes: list[Geometry] = []
        for lod in sorted(told):
            if lod == "4" and "3" in told:
                self.note("LoD 4 is not read where there is LoD 3 / 已有 LoD 3 时不读取 LoD 4")
                continue
            try:
                shapes += self.level(found, lod, "3" if lod == "4" else lod)
            except _Wrong as error:
                self.wrong(error, id_)
        return shapes

    def level(self, found: _Found, lod: str, spelled: str) -> list[Geometry]:
        """The geometry of one LoD. Polygons that solids share with semantic surfaces are told once."""
        shapes: list[Geometry] = []
        values = {face.key: n for n, theme in enumerate(found.themes) for face in theme.faces.get(lod, ())}
        used: set[object] = set()
        own: list[Face] = []
        at: Any = None
        for one, kind, part in found.geometry:
            if one != lod:
                continue
            at = part
            child = _child(part)
            if kind in ("TerrainIntersection", "TerrainIntersectionCurve"):
                self.note("terrain intersections are not read / 未读取地形交线", part)
            elif kind == "ImplicitRepresentation":
                shapes += self.implicit(child, spelled)
            elif child is None:
                own += self.property(part, self.dimension)
            elif _local(child) in ("Solid", "CompositeSolid", "MultiSolid"):
                solids = self.solids(child, self.dimension)
                if not solids:
                    self.note("empty solids were left out / 已忽略空的体", part)
                    continue
                kind = "Solid" if len(solids) == 1 else _local(child)
                nested: Any = [[[face.rings for face in shell] for shell in solid] for solid in solids]
                numbers: Any = [[[values.get(face.key) for face in shell] for shell in solid] for solid in solids]
                used |= {face.key for solid in solids for shell in solid for face in shell}
                if kind == "Solid":
                    nested, numbers = nested[0], numbers[0]
                shapes.append(self.told(kind, nested, numbers, spelled, found, part))
            elif kind == "MultiCurve" or _local(child) in ("MultiCurve", "LineString", "Curve", "CompositeCurve"):
                lines = self.lines(child, self.dimension)
                if lines:
                    shapes.append(self.shape("MultiLineString", lines, spelled, part))
            elif _local(child) in ("Point", "MultiPoint"):
                points = [p for e in child.iter() if _is(e, "Point") for p in self.points(e, self.dimension)]
                if points:
                    shapes.append(self.shape("MultiPoint", points, spelled, part))
            else:
                own += self.property(part, self.dimension)
        faces: list[Face] = []
        for face in (*own, *(f for theme in found.themes for f in theme.faces.get(lod, ()))):
            if face.key not in used:
                used.add(face.key)
                faces.append(face)
        if faces:
            numbers = [values.get(face.key) for face in faces]
            kind = "CompositeSurface" if at is not None and _is(at, "tin") else "MultiSurface"
            shapes.append(self.told(kind, [f.rings for f in faces], numbers, spelled, found, at))
        return shapes

    def told(self, kind: str, nested: Any, numbers: Any, lod: str, found: _Found, place: Any) -> Geometry:
        """A geometry with its semantics: `numbers` of surfaces among the object's, nested as CityJSON's `values`."""
        shape = self.shape(kind, nested, lod, _NOWHERE if place is None else place)
        flat: list[int | None] = []

        def walk(part: Any) -> None:
            for one in part if isinstance(part, list) else [part]:
                if isinstance(one, list):
                    walk(one)
                else:
                    flat.append(one)

        walk(numbers)
        used = {number for number in flat if number is not None}
        if not used:
            return shape
        for number in list(used):  # and those that they are openings of
            parent = found.themes[number].told.get("parent")
            if parent is not None:
                used.add(parent)
        order = {number: place for place, number in enumerate(sorted(used))}
        surfaces = []
        for number in order:
            surface = dict(found.themes[number].told)
            if "parent" in surface:
                surface["parent"] = order[surface["parent"]]
            below = [order[child] for child in surface.pop("children", ()) if child in order]
            if below:
                surface["children"] = below
            surfaces.append(surface)

        def again(part: Any) -> Any:
            return [again(one) for one in part] if isinstance(part, list) else None if part is None else order[part]

        semantics = {"surfaces": surfaces, "values": again(numbers)}
        return Geometry(kind, shape.vertices, shape.boundaries, lod, semantics)

    def implicit(self, element: Any, lod: str) -> list[Geometry]:
        """A prototype put in place: relative geometry, a matrix (rows first), a reference point."""
        if element is None:
            return []
        matrix, faces, at = np.eye(4), [], None
        for part in element:
            if not isinstance(part.tag, str):
                continue
            name = _local(part)
            if name == "transformationMatrix":
                try:
                    numbers = [float(word) for word in (part.text or "").split()]
                except ValueError:
                    numbers = []
                if len(numbers) != 16 or not math.isfinite(sum(numbers)):
                    raise _Wrong(part, "a transformation matrix has 16 numbers / 变换矩阵应有 16 个数")
                matrix = np.array(numbers).reshape(4, 4)
            elif name in ("relativeGMLGeometry", "relativeGeometry"):
                # A prototype's own dimension is 3, and it has no coordinate system.
                faces = self.property(part, 3)
            elif name == "referencePoint":
                point = _child(part)
                points = self.points(point, self.dimension) if point is not None else []
                if len(points) != 1:
                    raise _Wrong(part, "a reference point is one point / 参考点应为一个点")
                self.system(point)
                at = self.placed(np.array(points))[0]
            elif name == "libraryObject":
                self.note("geometry in other files is not read / 未读取其他文件中的几何", part)
        if at is None:
            raise _Wrong(element, "has no reference point / 缺少参考点")
        if self.crs and parse(self.crs).is_geographic:
            if faces:
                self.note("prototypes in degrees are shown as points / 经纬度坐标下的原型以点表示", element)
            faces = []
        if not faces:
            return [Geometry("MultiPoint", at.reshape(1, 3), [0], lod)]
        move = matrix.copy()
        move[:3, 3] += np.nan_to_num(at)
        return [self.shape("MultiSurface", [face.rings for face in faces], lod, element, move)]

    # Attributes.

    def attribute(self, element: Any, name: str, child: Any, attributes: dict[str, Any]) -> None:
        if name.endswith("Attribute") and element.get("name"):  # version 2.0
            _add(attributes, element.get("name"), _generic(name, element))
        elif name == "genericAttributeSet" and element.get("name"):
            inner: dict[str, Any] = {}
            for one in element:
                if isinstance(one.tag, str):
                    self.attribute(one, _local(one), None, inner)
            _add(attributes, element.get("name"), inner)
        elif name == "genericAttribute" and child is not None:  # version 3.0
            label = next((one.text for one in child if _is(one, "name") and one.text), "")
            if label:
                _add(attributes, label.strip(), self.generic_3(child, 0))
        else:
            value = _value(element, 0)
            if value not in ("", None):
                _add(attributes, name, value)
            if name == "height" and isinstance(value, dict) and "height_m" not in attributes:
                told = _length(
                    value.get("Height", value).get("value") if isinstance(value.get("Height", value), dict) else 0
                )
                if told is not None:
                    attributes["height_m"] = told

    def generic_3(self, element: Any, depth: int) -> Any:
        if _local(element) != "GenericAttributeSet":
            return _generic(_local(element)[:1].lower() + _local(element)[1:], element)
        inner: dict[str, Any] = {}
        for part in element:
            if _is(part, "genericAttribute") and depth < MAX_DEPTH:
                for one in part:
                    label = next((c.text for c in one if _is(c, "name") and c.text), "")
                    if label:
                        _add(inner, label.strip(), self.generic_3(one, depth + 1))
        return inner


class _Found:
    """What an object holds."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}
        self.geometry: list[tuple[str, str, Any]] = []
        self.themes: list[_Theme] = []
        self.lod = ""


class _Nested(_Found):
    """What a part that is no object of its own holds: geometry goes to the object, attributes stay out."""

    def __init__(self, outer: _Found) -> None:
        super().__init__()
        self.geometry = outer.geometry
        self.themes = outer.themes


class _Nowhere:
    sourceline = 0


_NOWHERE: Final = _Nowhere()
_GML: Final = ("http://www.opengis.net/gml", "http://www.opengis.net/gml/3.2")


def _local(element: Any) -> str:
    return _last(element.tag)


@lru_cache(maxsize=4096)
def _last(tag: str) -> str:
    """An element's name without its namespace."""
    return tag[tag.rfind("}") + 1 :]


def _child(element: Any) -> Any:
    """The first element in one, None if there is none."""
    if not len(element):
        return None
    first = element[0]
    return first if isinstance(first.tag, str) else next((one for one in element if isinstance(one.tag, str)), None)


def _lod(name: str) -> re.Match[str] | None:
    return _LOD.fullmatch(name) if name.startswith("lod") else None


def _is(element: Any, local: str) -> bool:
    return isinstance(element.tag, str) and _local(element) == local


def _id(element: Any) -> str:
    return element.get(_IDS[0]) or element.get(_IDS[1]) or ""


def _word(local: str) -> str:
    """CityJSON's word for a class of CityGML, "" for what is no object that is read."""
    local = ALSO.get(local, local)
    return local if local in TYPES and local not in _INSIDE else ""


def _add(attributes: dict[str, Any], name: str, value: Any) -> None:
    if name in attributes:
        before = attributes[name]
        if isinstance(before, list):
            before.append(value)
        else:
            attributes[name] = [before, value]
    else:
        attributes[name] = value


def _number(text: str) -> Any:
    try:
        whole = int(text)
        return whole if abs(whole) < 1 << 63 else _finite(text)
    except ValueError:
        return _finite(text)


def _finite(text: str) -> float | str:
    try:
        value = float(text)
    except ValueError:
        return text
    return value if math.isfinite(value) else text


def _generic(kind: str, element: Any) -> Any:
    value = next((one for one in element if _is(one, "value")), None)
    text = (value.text or "").strip() if value is not None else ""
    if kind in ("intAttribute", "doubleAttribute"):
        return _number(text)
    if kind == "measureAttribute" and value is not None:
        return {"value": _number(text), "uom": value.get("uom", "")}
    return text


def _value(element: Any, depth: int) -> Any:
    """Whatever an element says: its text (a number where it has a unit or counts), or its children's values."""
    children = [child for child in element if isinstance(child.tag, str)]
    if not children or depth > MAX_DEPTH:
        text = (element.text or "").strip()
        if element.get("uom"):
            told = {"value": _number(text), "uom": element.get("uom")}
            length = _length(told)
            return length if length is not None else told
        if _local(element).startswith("storeys") and text.isascii() and text.isdigit():
            return _number(text)
        return text or element.get(_HREF) or ""
    inner: dict[str, Any] = {}
    for child in children:
        if etree.QName(child).namespace in _GML and len(child):
            continue  # geometry, as of addresses
        value = _value(child, depth + 1)
        if value not in ("", None, {}):
            _add(inner, _local(child), value)
    return inner


def _length(told: Any) -> float | None:
    """Metres, of a measure of length."""
    if isinstance(told, int | float):
        return float(told) if told else None
    if not isinstance(told, dict) or not isinstance(told.get("value"), int | float):
        return None
    unit = metres(str(told.get("uom", "")))
    return float(told["value"]) * unit if math.isfinite(unit) else None
