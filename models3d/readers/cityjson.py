"""CityJSON 1.1 and 2.0 (https://www.cityjson.org/specs/2.0.1/): documents, and sequences (a header, then one
`CityJSONFeature` a line), to a `CityModel`.

Nothing is lost but the file's spelling: what has no place of its own stays in `Asset.attributes["cityjson"]` (extent,
address, further parents, members of extensions), `Geometry.extra` (materials, textures) and `CityModel.metadata`
(transform, metadata, extensions, appearance, other members of the root); `models3d.writers.cityjson` writes it again.
Instances of templates become geometry. What that writer said about assets that are not CityJSON's is read back from the
attribute `cimtwin`.

An object is decoded when its turn comes, so that only the result and the file's text are in memory at once; a sequence
need not even be that. What a hostile file can cost is bounded by counting its brackets and commas first: a value that
costs a hundred bytes in memory costs at least one of them in the file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Final

import msgspec
import numpy as np
import orjson

from models3d.crs import UnknownCrs, parse
from models3d.readers import MAX_DEPTH, MAX_ELEMENTS, Buffer, Problems, bounded, nothing
from models3d.readers.citywords import TYPES, derived, level, names
from twin.city import ASSET_TYPES, DEPTHS, SYSTEMS, Asset, CityModel, Geometry, InvalidModel, Progress
from twin.model import Floats, Indices, Problem

MAX_VALUES: Final = 50_000_000  # of JSON, in a whole file
MAX_BRACES: Final = 10_000_000  # objects of JSON
MAX_INSTANCED: Final = 20_000_000  # vertices that instances of templates make
FARTHEST: Final = 1e10  # units; no coordinate on Earth is so large, not even in millimetres
OURS: Final = "cimtwin"  # the attribute with what CityJSON has no word for
REST: Final = "cityjson"  # the attribute with an object's other members
_NEWLINE: Final = b"\n"
_CHUNK: Final = 1 << 24
_VERSION: Final = re.compile(r"(1\.1|2\.0)(\.[0-9]+)?")
_LOOKS: Final = re.compile(rb'"type"\s*:\s*"CityJSON(Feature)?"|"CityObjects"\s*:\s*\{|^\{\s*"vertices"\s*:\s*\[')
_CRS_URL: Final = re.compile(
    r"(?:https?://www\.opengis\.net/def/crs/EPSG/[^/]*/|urn:ogc:def:crs:EPSG:[^:]*:|EPSG:)(\d+)"
)
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_ROOT: Final = frozenset(("type", "version", "transform", "CityObjects", "vertices", "metadata", "extensions",
                          "appearance", "geometry-templates", "id"))  # fmt: skip
_OBJECT: Final = frozenset(("type", "attributes", "geometry", "parents", "children"))
_GEOMETRY: Final = frozenset(("type", "boundaries", "lod", "semantics"))
_NO_DIGITS: Final = b"0123456789 \n\r\t-+.eE"
_POINTS: Final = ("MultiPoint", "MultiLineString")


def recognise(head: bytes, name: str) -> bool:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n\x1e")
    return start.startswith(b"{") and _LOOKS.search(start) is not None


def read(data: Buffer, name: str, crs: str = "", progress: Progress = nothing) -> CityModel:
    """The model in a CityJSON document or sequence. Raises `InvalidModel`."""
    reading = _Reading(name, crs, progress)
    try:
        return reading.model(data)
    except InvalidModel as error:
        refused = InvalidModel(error.problems, error.what)
    # A new exception, because the other's traceback keeps views of `data`, and a mapped file cannot be closed then.
    raise refused


class _Wrong(Exception):  # noqa: N818 - an outcome
    """A geometry that cannot be read; says why."""


class _Reading:
    def __init__(self, name: str, crs: str, progress: Progress) -> None:
        self.name = name
        self.crs = crs
        self.progress = progress
        self.problems = Problems(name)
        self.doubts = Problems(name)
        self.assets: list[Asset] = []
        self.parents: dict[str, list[str]] = {}
        self.children: dict[str, list[str]] = {}
        self.where: dict[str, int] = {}  # of an object among the assets
        self.metadata: dict[str, Any] = {}
        self.scale = self.translate = np.zeros(3)
        self.appearance: dict[str, Any] = {}
        self.shifts = (0, 0, 0)  # of materials, textures, texture vertices: a feature's own begin there
        self.templates: list[Geometry | None] = []
        self.instanced = 0

    def model(self, data: Buffer) -> CityModel:
        start = _first(data)
        _bounded(data, self.name)
        end = _line_end(data, start)
        if _is_sequence(data, start, end):
            self.metadata["sequence"] = True
            for number, line, share in _lines(data, start):
                self.part(line, f"{self.name}, line {number}", is_header=number == 1)
                if number % 1000 == 0:
                    self.progress("objects", share)
                if number == 1:
                    self.problems.check()  # without its transform the other lines mean nothing
        else:
            self.part(memoryview(data)[start:], self.name, is_header=True, whole=data)
        self.problems.check()
        self.link()
        self.problems.check()
        if self.appearance:
            self.metadata["appearance"] = self.appearance
        told = self.metadata.get("metadata", {}).get("referenceSystem", "")
        crs, height = self.system(told)
        ours = self.metadata.get("root", {}).get("+" + OURS, {})
        if isinstance(ours, dict):
            crs = crs or str(ours.get("crs", ""))
            height = str(ours.get("height", height))
        self.progress("objects", 1.0)
        return CityModel("cityjson", self.assets, [], crs or self.crs, height, self.metadata, self.doubts.told())

    def system(self, told: object) -> tuple[str, str]:
        if not told:
            return "", ""
        match = _CRS_URL.fullmatch(str(told))
        try:
            known = parse(f"EPSG:{match[1]}" if match else str(told))
        except UnknownCrs:
            text = f"{str(told)[:100]!r} names no known coordinate system / 未知的坐标系"
            self.doubts.add(self.name, "metadata.referenceSystem", text)
            return "", ""
        return known.text, known.height

    # One document, header or feature.

    def part(self, text: Any, place: str, is_header: bool, whole: Buffer | None = None) -> None:
        try:
            root = self.members(text, place, whole)
        except InvalidModel as error:
            for problem in error.problems:
                self.problems.add(problem.place, problem.field, problem.text)
            return
        values = {
            key: self.value(raw, place, key) for key, raw in root.items() if key not in ("CityObjects", "vertices")
        }
        kind = values.get("type")
        if kind != ("CityJSON" if is_header else "CityJSONFeature"):
            text = (
                "a CityJSON document, or the header of a sequence, has the type CityJSON / 类型应为 CityJSON"
                if is_header
                else "lines after the header have the type CityJSONFeature / 标题行之后的行类型应为 CityJSONFeature"
            )
            self.problems.add(place, "type", text)
            return
        before = len(self.problems)
        for key in ("CityObjects", "vertices", *(("version", "transform") if is_header else ("id",))):
            if key not in root:
                self.problems.add(place, key, "is missing / 缺少")
        if is_header:
            self.header(values, place)
        if len(self.problems) > before:
            return
        try:
            vertices = self.transformed(_numbers(root["vertices"]), place)
        except _Wrong as error:
            self.problems.add(place, "vertices", str(error))
            return
        self.look(values.get("appearance"), place)
        try:
            objects = self.members(root["CityObjects"], place, None, "CityObjects")
        except InvalidModel as error:
            for problem in error.problems:
                self.problems.add(problem.place, problem.field, problem.text)
            return
        if not is_header and values["id"] not in objects:
            self.problems.add(
                place, "id", f"{str(values['id'])[:100]!r} is none of its CityObjects / 不在其 CityObjects 中"
            )
        if len(self.assets) + len(objects) > MAX_ELEMENTS:
            text = f"more than {MAX_ELEMENTS} objects / 对象超过 {MAX_ELEMENTS} 个"
            raise InvalidModel([Problem(place, "CityObjects", text)], self.name)
        for number, (id_, raw) in enumerate(objects.items()):
            self.object(id_, bytes(raw), vertices)
            if whole is not None and number % 1000 == 0:
                self.progress("objects", number / len(objects))

    def members(self, text: Any, place: str, whole: Buffer | None, field: str = "") -> dict[str, msgspec.Raw]:
        """The members of an object of JSON, undecoded. Raises `InvalidModel` if it is none, or repeats a name."""
        text = memoryview(text)
        try:
            found = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        except msgspec.ValidationError:
            raise InvalidModel([Problem(place, field, "is no JSON object / 不是 JSON 对象")]) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidModel([self.syntax(text, place, whole, error)]) from None
        # A repeated name hides a member: then there are more commas than the members found and what is between them.
        commas = sum(bytes(raw).count(b",") for raw in found.values()) + sum(key.count(",") for key in found)
        if len(found) > 0 and _count(text, b",") != commas + len(found) - 1:
            twice = _twice(bytes(text))
            if twice:
                what = "objects" if field else "members"
                listed = ", ".join(repr(id_[:100]) for id_ in twice[:20])
                raise InvalidModel([Problem(place, field, f"{what} told more than once: {listed} / 重复: {listed}")])
        return found

    def syntax(self, text: Any, place: str, whole: Buffer | None, error: Exception) -> Problem:
        if isinstance(error, RecursionError):
            return Problem(place, "", f"is nested deeper than {MAX_DEPTH} / 嵌套超过 {MAX_DEPTH} 层")
        match = re.search(r"\(byte (\d+)\)", str(error))
        offset = int(match[1]) if match else len(text)
        if whole is None:
            where = f"{place}, column {offset + 1}"
        else:
            offset += len(whole) - len(text)
            before = bytes(whole[max(0, offset - (1 << 16)) : offset])
            column = len(before) - before.rfind(b"\n") if b"\n" in before else offset + 1
            where = f"{place}, line {_count(memoryview(whole)[:offset], _NEWLINE) + 1}, column {column}"
        return Problem(where, "", f"is not JSON: {str(error)[:200]} / 不是有效的 JSON")

    def value(self, raw: msgspec.Raw, place: str, field: str) -> Any:
        text = bytes(raw)
        try:
            found = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            self.problems.add(place, field, f"is not JSON: {str(error)[:200]} / 不是有效的 JSON")
            return None
        if _is_bad(text, found):
            self.problems.add(place, field, f"holds a NUL, or is nested deeper than {MAX_DEPTH} / 含空字符或嵌套过深")
        return bounded(found)

    def header(self, values: dict[str, Any], place: str) -> None:
        version = values.get("version")
        if "version" in values and not (isinstance(version, str) and _VERSION.fullmatch(version)):
            text = f"{str(version)[:20]!r}: read are CityJSON 1.1 and 2.0 / 仅支持 CityJSON 1.1 和 2.0"
            self.problems.add(place, "version", text)
        transform = values.get("transform")
        if "transform" in values:
            scale, translate = (
                (transform.get("scale"), transform.get("translate")) if isinstance(transform, dict) else (None, None)
            )
            if scale and _is_vector(scale, 3) and _is_vector(translate, 3) and all(scale):
                self.scale, self.translate = np.array(scale, np.float64), np.array(translate, np.float64)
            else:
                text = "needs `scale` and `translate` of three numbers / 需要三个数字的 scale 和 translate"
                self.problems.add(place, "transform", text)
        for key in ("metadata", "extensions", "appearance", "geometry-templates"):
            if not isinstance(values.get(key, {}), dict):
                self.problems.add(place, key, "is no JSON object / 不是 JSON 对象")
                return
        self.metadata |= {
            key: values[key] for key in ("version", "transform", "metadata", "extensions") if key in values
        }
        rest = {key: value for key, value in values.items() if key not in _ROOT}
        if rest:
            self.metadata["root"] = rest
        if "geometry-templates" in values:
            self.read_templates(values["geometry-templates"], place)

    def read_templates(self, told: dict[str, Any], place: str) -> None:
        try:
            vertices = _numbers(orjson.dumps(told.get("vertices-templates", [])))
        except _Wrong as error:
            self.problems.add(place, "geometry-templates.vertices-templates", str(error))
            return
        templates = told.get("templates", [])
        if not isinstance(templates, list):
            self.problems.add(place, "geometry-templates.templates", "is no list / 不是列表")
            return
        for number, template in enumerate(templates):
            try:
                self.templates.append(self.geometry(template, vertices, f"template {number}", is_template=True))
            except _Wrong as error:
                self.problems.add(place, f"geometry-templates.templates[{number}]", str(error))
                self.templates.append(None)

    def look(self, appearance: Any, place: str) -> None:
        """Join a part's materials and textures to those known: geometry refers to them by number."""
        self.shifts = (0, 0, 0)
        if not appearance:
            return
        kinds = ("materials", "textures", "vertices-texture")
        if not isinstance(appearance, dict) or not all(isinstance(appearance.get(k, []), list) for k in kinds):
            self.problems.add(place, "appearance", "is not as specified / 不符合规范")
            return
        a, b, c = (len(self.appearance.get(kind, [])) for kind in kinds)
        self.shifts = (a, b, c)
        for key, value in appearance.items():
            if key in kinds:
                self.appearance.setdefault(key, []).extend(value)
            else:
                self.appearance.setdefault(key, value)

    def transformed(self, numbers: Floats, place: str) -> Floats:
        if not np.array_equal(numbers, np.rint(numbers)):
            at = int(np.flatnonzero((numbers != np.rint(numbers)).any(axis=1))[0])
            raise _Wrong(f"vertex {at}: numbers before the transform are integers / 变换前的坐标应为整数")
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite lies out of this world
            vertices = numbers * self.scale + self.translate
        bad = ~(np.abs(vertices) <= FARTHEST).all(axis=1)
        if bad.any():
            raise _Wrong(f"vertex {int(np.flatnonzero(bad)[0])} lies out of this world / 坐标值过大")
        return vertices

    # One object.

    def object(self, id_: str, text: bytes, vertices: Floats) -> None:
        try:
            told = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            self.problems.object(id_, "", f"is not JSON: {str(error)[:200]} / 不是有效的 JSON")
            return
        if not isinstance(told, dict):
            self.problems.object(id_, "", "is no JSON object / 不是 JSON 对象")
            return
        if id_ in self.where:
            self.problems.object(id_, "", "told more than once / 重复")
            return
        if not id_ or len(id_) > 1000 or "\x00" in id_:
            self.problems.object(id_[:100], "", "an id has 1-1000 characters and no NUL / 对象标识应为 1-1000 个字符")
        element = told.get("type")
        if not isinstance(element, str) or not element:
            self.problems.object(id_, "type", "is missing / 缺少")
            return
        if element not in TYPES and not element.startswith("+"):
            self.doubts.object(id_, "type", f"{element[:100]!r} is none of CityJSON's / 不是 CityJSON 的类型")
        attributes = told.get("attributes")
        if attributes is None:
            attributes = {}
        elif not isinstance(attributes, dict):
            self.problems.object(id_, "attributes", "is no JSON object / 不是 JSON 对象")
            return
        rest = {key: value for key, value in told.items() if key not in _OBJECT}
        if _is_bad(text, (attributes, rest)):
            text_ = f"holds a NUL, or is nested deeper than {MAX_DEPTH} / 含空字符或嵌套过深"
            self.problems.object(id_, "attributes", text_)
            return
        for key, known in (("parents", self.parents), ("children", self.children)):
            ids = told.get(key)
            if ids:
                if isinstance(ids, list) and all(isinstance(other, str) for other in ids):
                    known[id_] = ids
                else:
                    self.problems.object(id_, key, "is no list of ids / 不是标识列表")
        geometry: list[Geometry] = []
        listed = told.get("geometry")
        if listed is not None and not isinstance(listed, list):
            self.problems.object(id_, "geometry", "is no list / 不是列表")
        else:
            for number, one in enumerate(listed or ()):
                try:
                    made = self.geometry(one, vertices, id_)
                except _Wrong as error:
                    self.problems.object(id_, f"geometry[{number}]", str(error))
                else:
                    if made is not None:
                        geometry.append(made)
        if rest:
            attributes[REST] = rest
        bounded(attributes)
        self.where[id_] = len(self.assets)
        self.assets.append(self.asset(id_, element, attributes, geometry))

    def asset(self, id_: str, element: str, attributes: dict[str, Any], geometry: list[Geometry]) -> Asset:
        ours = attributes.pop(OURS, None)
        fields = plain(id_, element, attributes, geometry)
        if isinstance(ours, dict):
            try:
                fields |= restored(ours, geometry)
            except (ValueError, TypeError, IndexError) as error:
                self.problems.object(id_, f"attributes.{OURS}", f"is not as this system writes it: {error} / 格式不符")
        attributes |= derived(attributes)
        return Asset(**fields)

    # One geometry.

    def geometry(self, told: Any, vertices: Floats, id_: str, is_template: bool = False) -> Geometry | None:
        if not isinstance(told, dict):
            raise _Wrong("is no JSON object / 不是 JSON 对象")
        kind = told.get("type")
        if kind == "GeometryInstance" and not is_template:
            return self.instance(told, vertices)
        if not isinstance(kind, str) or kind not in DEPTHS:
            raise _Wrong(f"type {str(kind)[:40]!r} is none of CityJSON's / 不是 CityJSON 的几何类型")
        lod = told.get("lod", "")
        if isinstance(lod, int | float) and not isinstance(lod, bool):
            lod = f"{lod:g}"
        if not isinstance(lod, str) or len(lod) > 20:
            raise _Wrong("lod is no short text / lod 应为短文本")
        if not lod:
            self.doubts.object(id_, "geometry", "has no lod / 缺少 lod")
        boundaries: Any = told.get("boundaries")
        if boundaries == []:
            self.doubts.object(id_, "geometry", "an empty one is left out / 已忽略空的几何")
            return None
        used, is_closed = _renumber(boundaries, kind, len(vertices))
        semantics = told.get("semantics")
        if semantics is not None:
            _check_semantics(semantics, boundaries, kind)
            bounded(semantics["surfaces"])
        extra = {key: value for key, value in told.items() if key not in _GEOMETRY}
        if extra:
            if _depth_over(bounded(extra), MAX_DEPTH):
                raise _Wrong(f"is nested deeper than {MAX_DEPTH} / 嵌套超过 {MAX_DEPTH} 层")
            if any(self.shifts):
                self.shift(extra)
        if is_closed:
            self.doubts.object(id_, "geometry", "rings that repeat their first point lost it / 已去除重复的环首点")
            for theme in _values(extra.get("texture")):
                _trim(theme.get("values"), boundaries)
        return Geometry(kind, vertices[used], boundaries, lod, semantics, extra)

    def instance(self, told: dict[str, Any], vertices: Floats) -> Geometry:
        number, matrix, at = told.get("template"), told.get("transformationMatrix"), told.get("boundaries")
        if not isinstance(number, int) or not 0 <= number < len(self.templates):
            raise _Wrong(f"there is no template {str(number)[:20]} / 没有该模板")
        if not _is_vector(matrix, 16):
            raise _Wrong("transformationMatrix has 16 numbers / 变换矩阵应有 16 个数")
        if not (isinstance(at, list) and len(at) == 1 and type(at[0]) is int and 0 <= at[0] < len(vertices)):
            raise _Wrong("boundaries name one vertex that there is / boundaries 应为一个有效顶点")
        template = self.templates[number]
        if template is None:
            raise _Wrong(f"template {number} has no geometry / 模板没有几何")
        self.instanced += len(template.vertices)
        if self.instanced > MAX_INSTANCED:
            text = f"templates make more than {MAX_INSTANCED} vertices / 模板生成的顶点过多"
            raise InvalidModel([Problem(self.name, "geometry-templates", text)], self.name)
        m = np.array(matrix, np.float64).reshape(4, 4)
        with np.errstate(all="ignore"):
            placed = template.vertices @ m[:3, :3].T + m[:3, 3] + vertices[at[0]]
        if not (np.abs(placed) <= FARTHEST).all():
            raise _Wrong("lies out of this world / 坐标值过大")
        return Geometry(
            template.kind, placed, template.boundaries, template.lod, template.semantics, dict(template.extra)
        )

    def shift(self, extra: dict[str, Any]) -> None:
        materials, textures, points = self.shifts
        for one in _values(extra.get("material")):
            for key in ("value", "values"):
                if key in one:
                    one[key] = _shifted(one[key], materials)
        for one in _values(extra.get("texture")):
            one["values"] = _shifted_rings(one.get("values"), textures, points)

    # All objects.

    def link(self) -> None:
        """Check that parents and children are there and no object is its own ancestor, and set `Asset.parent`."""
        for id_, parents in self.parents.items():
            for parent in parents:
                if parent not in self.where:
                    self.problems.object(id_, "parents", f"{parent[:100]!r} does not exist / 不存在")
        children: dict[str, list[str]] = {}
        for id_, parents in self.parents.items():
            for parent in parents:
                children.setdefault(parent, []).append(id_)
        self.problems.check()
        for id_ in circular(self.parents, children):
            self.problems.object(id_, "parents", "is its own ancestor / 是自己的上级")
        self.problems.check()
        listed = {id_: listed for id_, listed in self.children.items() if listed != children.get(id_, [])}
        listed |= {id_: [] for id_ in children if id_ not in self.children}
        adopted: dict[str, list[str]] = {}
        for id_, told in listed.items():
            missing = [child for child in told if child not in self.where]
            if missing:
                self.doubts.object(id_, "children", f"{missing[0][:100]!r} does not exist / 不存在")
            if self.assets[self.where[id_]].type != "group":
                for child in told:
                    if child in self.where and child not in self.parents and child != id_:
                        adopted.setdefault(child, [id_])
            self.rest(id_)["children"] = told
        if adopted and not circular(self.parents | adopted, None):
            self.parents |= adopted
        for id_, parents in self.parents.items():
            asset = self.assets[self.where[id_]]
            first = next((p for p in parents if self.assets[self.where[p]].type != "group"), parents[0])
            object.__setattr__(
                asset, "parent", self.assets[self.where[first]].local
            )  # made here, and not yet handed out
            if parents != [first] or id_ in adopted:
                self.rest(id_)["parents"] = [] if id_ in adopted else parents

    def rest(self, id_: str) -> dict[str, Any]:
        found: dict[str, Any] = self.assets[self.where[id_]].attributes.setdefault(REST, {})
        return found


def plain(id_: str, element: str, attributes: dict[str, Any], geometry: list[Geometry]) -> dict[str, Any]:
    """The fields of an `Asset` that an object of CityJSON makes by itself."""
    name_zh, name_en = names(attributes)
    return {
        "local": id_,
        "type": TYPES.get(element, "other"),
        "group": "object",
        "element": element,
        "name_zh": name_zh,
        "name_en": name_en,
        "attributes": attributes,
        "geometry": tuple(geometry),
        "level": level(g.lod for g in geometry),
        "area": "",
        "code": "",
        "system": "",
    }


def restored(ours: dict[str, Any], geometry: list[Geometry]) -> dict[str, Any]:
    """The fields of an `Asset` that the attribute `cimtwin` tells; in `geometry` what has no LoD or no height loses it
    again. Raises ValueError, TypeError, IndexError."""
    fields: dict[str, Any] = {}
    for key in ("local", "type", "group", "element", "name_zh", "name_en", "area", "code", "system"):
        value = ours.get(key)
        if value is not None:
            if not isinstance(value, str) or len(value) > 1000 or "\x00" in value:
                raise ValueError(key)
            if key == "local" and not value:
                raise ValueError(key)
            fields[key] = value
    if fields.get("type", "other") not in ASSET_TYPES or fields.get("system", "") not in ("", *SYSTEMS):
        raise ValueError("type or system")
    if fields.get("group", "object") not in ("object", "node", "link", "area"):
        raise ValueError("group")
    if "level" in ours:
        fields["level"] = int(ours["level"])
        if not 0 <= fields["level"] <= 7:
            raise ValueError("level")
    for number in ours.get("no_lod", ()):
        object.__setattr__(geometry[number], "lod", "")  # made by this reader, and not yet handed out
    for number, flat in ours.get("no_height", ()):
        vertices = geometry[number].vertices.copy()
        vertices[slice(None) if flat is True else flat, 2] = math.nan
        object.__setattr__(geometry[number], "vertices", vertices)
    if "level" not in fields:
        fields["level"] = level(g.lod for g in geometry)
    return fields


def circular(parents: dict[str, list[str]], children: dict[str, list[str]] | None) -> list[str]:
    """Those that are their own ancestors, or below such."""
    if children is None:
        children = {}
        for id_, above in parents.items():
            for parent in above:
                children.setdefault(parent, []).append(id_)
    left = {id_: len(above) for id_, above in parents.items() if above}
    free = [id_ for id_ in children if id_ not in left]
    while free:
        for child in children.get(free.pop(), ()):
            left[child] -= 1
            if not left[child]:
                del left[child]
                free.append(child)
    return list(left)


def _renumber(boundaries: Any, kind: str, count: int) -> tuple[Indices, bool]:
    """Make `boundaries` refer to vertices of its own, in place: which of the file's they are, in the order in which
    they first appear; and whether rings lost a repeated first point. Raises `_Wrong`."""
    depth = DEPTHS[kind]
    wrong = f"boundaries of a {kind} are lists nested {depth} deep, of integers / boundaries 的嵌套层数应为 {depth}"
    rings: list[Any] = [boundaries]
    for _ in range(depth - 1):
        if set(map(type, rings)) != {list}:
            raise _Wrong(wrong)
        if not all(rings):
            raise _Wrong("an empty list in boundaries / boundaries 中有空列表")
        rings = list(chain.from_iterable(rings))
    if set(map(type, rings)) != {list}:
        raise _Wrong(wrong)
    if not set(map(type, chain.from_iterable(rings))) <= {int}:
        raise _Wrong(wrong)
    is_closed = False
    if kind != "MultiPoint":
        least = 2 if kind == "MultiLineString" else 3
        if least == 3:
            for ring in rings:
                if len(ring) > 3 and ring[0] == ring[-1]:
                    del ring[-1]
                    is_closed = True
        if min(map(len, rings)) < least:
            raise _Wrong(f"a ring or line of less than {least} points / 环或线少于 {least} 个点")
    flat = list(chain.from_iterable(rings))
    if min(flat) < 0 or max(flat) >= count:
        bad = next(index for index in flat if not 0 <= index < count)
        raise _Wrong(f"there is no vertex {bad}, there are {count} / 没有顶点 {bad}, 共 {count} 个")
    local = dict.fromkeys(flat)
    used = np.fromiter(local, np.int32, len(local))
    local = dict(zip(local, range(len(local)), strict=True))
    get = local.__getitem__
    for ring in rings:
        ring[:] = map(get, ring)
    return used, is_closed


def _check_semantics(told: Any, boundaries: list[Any], kind: str) -> None:
    """Raises `_Wrong` unless each surface (line, point) has the number of a semantic surface, or null."""
    if not isinstance(told, dict) or not isinstance(told.get("surfaces"), list) or "values" not in told:
        raise _Wrong("semantics need `surfaces` and `values` / semantics 需要 surfaces 和 values")
    surfaces, values = told["surfaces"], told["values"]
    for number, surface in enumerate(surfaces):
        if not isinstance(surface, dict) or not isinstance(surface.get("type"), str):
            raise _Wrong(f"semantics.surfaces[{number}] has no type / 缺少 type")
        parent, below = surface.get("parent"), surface.get("children", ())
        linked = [parent] if parent is not None else []
        if not isinstance(below, list | tuple):
            raise _Wrong(f"semantics.surfaces[{number}].children is no list / 不是列表")
        for other in (*linked, *below):
            if type(other) is not int or not 0 <= other < len(surfaces) or other == number:
                raise _Wrong(f"semantics.surfaces[{number}] refers to a surface that is not there / 引用无效")
        if _depth_over(surface, MAX_DEPTH):
            raise _Wrong(f"is nested deeper than {MAX_DEPTH} / 嵌套超过 {MAX_DEPTH} 层")
    pairs = [(values, boundaries)]
    for _ in range(max(DEPTHS[kind] - 2, 1) - 1):
        below_: list[tuple[Any, Any]] = []
        for value, boundary in pairs:
            if value is not None:
                if not isinstance(value, list) or len(value) != len(boundary):
                    raise _Wrong("semantics.values do not match the boundaries / semantics.values 与 boundaries 不符")
                below_.extend(zip(value, boundary, strict=True))
        pairs = below_
    for value, boundary in pairs:
        if value is None:
            continue
        if not isinstance(value, list) or len(value) != len(boundary):
            raise _Wrong("semantics.values do not match the boundaries / semantics.values 与 boundaries 不符")
        for one in set(map(_hashable, value)):
            if one is not None and (type(one) is not int or not 0 <= one < len(surfaces)):
                raise _Wrong(f"semantics.values: there is no surface {str(one)[:20]} / 没有该语义面")


def _hashable(value: Any) -> Any:
    return value if value is None or type(value) is int else str(type(value))


def _numbers(raw: msgspec.Raw | bytes) -> Floats:
    """[[x, y, z], …] as an array [N, 3]; the text is JSON already. Raises `_Wrong`."""
    text = bytes(raw)
    shape = text.translate(None, _NO_DIGITS)
    count = (len(shape) - 1) // 5
    if shape == b"[]":
        return np.empty((0, 3))
    if shape == b"[" + b"[,,]," * (count - 1) + b"[,,]]":
        found = np.fromstring(text.translate(None, b"[] \n\r\t"), np.float64, sep=",")
        if found.size == 3 * count:
            return found.reshape(count, 3)
    told = orjson.loads(text)
    if isinstance(told, list):
        for number, one in enumerate(told):
            if not _is_vector(one, 3):
                raise _Wrong(f"vertex {number} is not three numbers / 顶点 {number} 不是三个数")
    raise _Wrong("is no list of vertices / 不是顶点列表")


def _is_vector(value: Any, size: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == size
        and all(type(v) in (int, float) and abs(v) < math.inf for v in value)
    )


def _is_bad(text: bytes, value: Any) -> bool:
    return (b"\\u0000" in text and _NUL.search(text) is not None) or _depth_over(value, MAX_DEPTH)


def _depth_over(value: Any, limit: int) -> bool:
    level_: list[Any] = [value] if isinstance(value, dict | list | tuple) else []
    for _ in range(limit):
        deeper: list[Any] = []
        for one in level_:
            for below in one.values() if isinstance(one, dict) else one:
                if isinstance(below, dict | list):
                    deeper.append(below)  # noqa: PERF401 - the hot path of attributes, most of which hold none
        if not deeper:
            return False
        level_ = deeper
    return True


def _values(themes: Any) -> Iterable[dict[str, Any]]:
    return [one for one in themes.values() if isinstance(one, dict)] if isinstance(themes, dict) else []


def _shifted(value: Any, by: int) -> Any:
    if isinstance(value, list):
        return [_shifted(one, by) for one in value]
    return value + by if type(value) is int else value


def _shifted_rings(value: Any, textures: int, points: int) -> Any:
    if not isinstance(value, list):
        return value
    if value and not isinstance(value[0], list):
        return [_shifted(value[0], textures), *_shifted(value[1:], points)]
    return [_shifted_rings(one, textures, points) for one in value]


def _trim(values: Any, boundaries: list[Any]) -> None:
    """Drop the last point of a texture from rings that lost their repeated one."""
    if not isinstance(values, list):
        return
    if type(boundaries[0]) is int:
        if len(values) == len(boundaries) + 2:  # the texture's number, and a point more
            del values[-1]
        return
    for value, boundary in zip(values, boundaries, strict=False):
        _trim(value, boundary)


# Text.


def _first(data: Buffer) -> int:
    head = bytes(data[: 1 << 16])
    start = 3 if head.startswith(b"\xef\xbb\xbf") else 0
    while head[start : start + 1] in (b" ", b"\t", b"\r", b"\n", b"\x1e"):
        start += 1
    return start


def _line_end(data: Buffer, start: int) -> int:
    end = data.find(b"\n", start)
    return len(data) if end < 0 else end


def _is_sequence(data: Buffer, start: int, end: int) -> bool:
    if not bytes(data[max(start, end - 100) : end]).rstrip().endswith(b"}"):
        return False
    after = bytes(data[end : end + 4096]).lstrip(b" \t\r\n\x1e")
    return after.startswith(b"{") or b'"CityJSONFeature"' in bytes(data[start : min(end, start + 4096)])


def _lines(data: Buffer, start: int) -> Iterator[tuple[int, bytes, float]]:
    number, size = 0, len(data)
    while start < size:
        end = _line_end(data, start)
        line = bytes(data[start:end]).strip(b" \t\r\n\x1e")
        number += 1
        if line:
            yield number, line, end / size
        start = end + 1


def _count(text: Any, byte: bytes) -> int:
    return sum(bytes(text[start : start + _CHUNK]).count(byte) for start in range(0, len(text), _CHUNK))


def _bounded(data: Buffer, name: str) -> None:
    values = braces = 0
    for start in range(0, len(data), _CHUNK):
        chunk = bytes(data[start : start + _CHUNK])
        values += chunk.count(b",") + chunk.count(b"[")
        braces += chunk.count(b"{")
    if values > MAX_VALUES or braces > MAX_BRACES:
        text = f"holds more than {MAX_VALUES} values or {MAX_BRACES} objects of JSON / JSON 值过多"
        raise InvalidModel([Problem(name, "", text)], name)


def _twice(text: bytes) -> list[str]:
    """The names that an object of JSON has more than once."""
    last: list[str] = []

    def remember(pairs: list[tuple[str, Any]]) -> None:
        nonlocal last
        last = [key for key, _ in pairs]

    try:
        json.loads(text, object_pairs_hook=remember)
    except (ValueError, RecursionError):
        return []
    seen: set[str] = set()
    return list(dict.fromkeys(key for key in last if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
