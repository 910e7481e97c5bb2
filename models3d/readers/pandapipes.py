"""pandapipes networks as JSON (`pandapipes.to_json`): gas, water and heat.

The file is a tree of Python objects, each with its class, tables as JSON texts within it. Only tables are taken out, as
data; no class that the file names is looked up.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

import msgspec

from models3d.readers import MAX_ELEMENTS, Buffer, Problems, nothing
from models3d.readers.graph import Graph, Link, Node, spelled_crs
from models3d.readers.sections import LARGEST, MAX_ID
from twin.city import Asset, CityModel, Geometry, Progress

MAX_JSON: Final = 128 << 20  # bytes: a tree takes some ten times its text
WATER: Final = 998.2  # kg/m³ at 20 °C
NORM_K: Final = 293.15

LINKS: Final = {
    "pipe": "pipe", "valve": "valve", "pump": "pump", "compressor": "compressor", "flow_control": "valve",
    "press_control": "regulator", "heat_exchanger": "fitting", "heat_consumer": "consumer",
    "circ_pump_mass": "pump", "circ_pump_pressure": "pump",
}  # fmt: skip
_ONE_WAY: Final = frozenset(("pump", "compressor", "flow_control", "press_control", "circ_pump_mass",
                             "circ_pump_pressure"))  # fmt: skip
# What hangs at a junction, and the sign of its flow as demand.
POINTS: Final = {"sink": ("consumer", 1.0), "source": ("source", -1.0), "ext_grid": ("source", 0.0),
                 "mass_storage": ("storage", 1.0)}  # fmt: skip
_HEAT: Final = ("heat_exchanger", "heat_consumer", "circ_pump_mass", "circ_pump_pressure")
# Strings, to step over them, and what Python's json writes for numbers that are not finite, which is no JSON. A string
# that does not end is stepped over too, so that no byte is looked at twice.
_ODD: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|(-?(?:NaN|Infinity)\b)', re.DOTALL)
_OWN: Final = re.compile(rb'"_class"\s*:\s*"pandapipesNet"')


def recognise(head: bytes, name: str) -> bool:
    return _OWN.search(head) is not None


def read(data: Buffer, name: str, crs: str = "", progress: Progress = nothing) -> CityModel:
    """The network of a pandapipes file. Raises `InvalidModel` with every mistake.

    Nodes are junctions by index; links have ids like `pipe-7`, as each table counts its own. Sinks, sources, external
    grids and storage are objects at a junction; demands in m³/h, of gas by the fluid's density at 20 °C. A valve on a
    pipe's end stands between the junction and a fitting of its own (`valve-3-pipe`). `metadata`: `title`, `units`,
    `options` (fluid, version), `counts`.
    """
    return _File(name).read(data, crs, progress)


class _Object(msgspec.Struct):
    """A Python object in the file."""

    object: msgspec.Raw = msgspec.field(name="_object")
    class_: str = msgspec.field(name="_class", default="")


class _Split(msgspec.Struct):
    """A table, as pandas writes it with `orient="split"`."""

    columns: list[str]
    index: list[Any]
    data: list[list[Any]]


class _File:
    def __init__(self, name: str) -> None:
        self.problems, self.notes = Problems(name), Problems(name)
        self.graph = Graph(self.problems)
        self.counts: dict[str, int] = {}

    def read(self, data: Buffer, crs: str, progress: Progress) -> CityModel:
        problems = self.problems
        if len(data) > MAX_JSON:
            problems.add(problems.name, "", f"is larger than {MAX_JSON >> 20} MiB / 文件超过 {MAX_JSON >> 20} MiB")
        elif data.find(b"\\u0000") >= 0:
            problems.add(problems.name, "", "holds zero characters / 含有空字符")
        problems.check()
        try:
            tree = msgspec.json.decode(_strict(bytes(data[:]).removeprefix(b"\xef\xbb\xbf")), type=_Object)
            parts = msgspec.json.decode(_text(tree.object), type=dict[str, msgspec.Raw])
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            problems.add(problems.name, "", f"is no network of pandapipes: {str(error)[:120]} / 不是 pandapipes 管网")
            problems.check()
            raise
        progress("read", 0.3)
        tables = {name: self._table(name, raw) for name, raw in parts.items() if not name.startswith("res_")}
        tables = {name: rows for name, rows in tables.items() if rows is not None}
        spelled = spelled_crs(crs, problems)
        problems.check()
        progress("read", 0.6)
        fluid, is_gas, density = _fluid(parts.get("fluid"))
        self._junctions(tables)
        for table in LINKS:
            for id_, cells in tables.get(table) or ():
                self._link(table, id_, cells)
        self._bend(tables.get("pipe_geodata") or [])
        self._valves_on_pipes(tables.get("valve") or [])
        objects = [
            o for t in POINTS for id_, cells in tables.get(t) or () if (o := self._point(t, id_, cells, density))
        ]
        self.graph.check_ends()
        problems.check()
        progress("build", 0.8)
        system = "gas" if is_gas else "heat" if any(tables.get(name) for name in _HEAT) else "water"
        assets, network = self.graph.assemble(system, self.notes)
        for asset in objects:
            assets.append(self._place(asset, system))
        progress("build", 1.0)
        return CityModel(
            "pandapipes", assets, [network], spelled, metadata=self._metadata(parts, tables, fluid),
            notes=self.notes.told(),
        )  # fmt: skip

    def _table(self, name: str, raw: msgspec.Raw) -> list[tuple[str, dict[str, Any]]] | None:
        """A table's rows by index and column; None for what is no table of the network."""
        if name not in LINKS and name not in POINTS and name not in ("junction", "junction_geodata", "pipe_geodata"):
            return None
        try:
            table = msgspec.json.decode(_text(msgspec.json.decode(raw, type=_Object).object), type=_Split)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            self.problems.object(name, "", f"is no table: {str(error)[:120]} / 不是表格")
            return None
        if len(table.index) != len(table.data) or any(len(row) != len(table.columns) for row in table.data):
            self.problems.object(name, "", "has rows that do not fit its columns or its index / 行与列或索引不符")
            return None
        if len(table.data) > MAX_ELEMENTS:
            self.problems.object(name, "", f"has over {MAX_ELEMENTS} rows / 行数过多")
            return None
        return [
            (_id(index), dict(zip(table.columns, row, strict=True)))
            for index, row in zip(table.index, table.data, strict=True)
        ]

    def _number(self, place: str, cells: dict[str, Any], field: str, least: float = -math.inf) -> float:
        found = cells.get(field)
        if found is None:
            return math.nan
        if isinstance(found, bool) or not isinstance(found, int | float) or abs(found) > LARGEST:
            self.problems.object(place, field, f"is not a number: {str(found)[:40]!r} / 不是数字")
            return math.nan
        if found <= least:
            self.problems.object(place, field, f"must be above {least:g}, is {found:g} / 必须大于 {least:g}")
        return float(found)

    def _junctions(self, tables: dict[str, Any]) -> None:
        for id_, cells in tables.get("junction") or ():
            node = Node(
                id_, "junction", "junction", 0, _told(cells), self._number(f"junction {id_}", cells, "height_m")
            )
            self.graph.add_node(node)
            geo = cells.get("geo")
            if isinstance(geo, str):
                try:
                    geo = msgspec.json.decode(_strict(geo.encode()))
                except (msgspec.MsgspecError, RecursionError):
                    self.problems.object(f"junction {id_}", "geo", "is no GeoJSON / 不是 GeoJSON")
            if isinstance(geo, dict) and isinstance(at := geo.get("coordinates"), list) and len(at) > 1:
                node.x, node.y = (self._number(f"junction {id_}", {"geo": v}, "geo") for v in at[:2])
        for id_, cells in tables.get("junction_geodata") or ():
            if (known := self.graph.nodes.get(id_)) is not None:
                known.x, known.y = (self._number(f"junction_geodata {id_}", cells, axis) for axis in "xy")

    def _link(self, table: str, id_: str, cells: dict[str, Any]) -> None:
        place = f"{table} {id_}"
        start, end = cells.get("from_junction"), cells.get("to_junction")
        if table.startswith("circ_pump"):
            start, end = cells.get("return_junction", start), cells.get("flow_junction", end)
        elif table == "valve" and "element" in cells:  # from version 0.12 on
            start, end = cells.get("junction"), cells.get("element")
        width = self._number(place, cells, "inner_diameter_mm", 0) / 1000
        if math.isnan(width):
            width = self._number(place, cells, "diameter_m", 0)
        attributes = _told(cells)
        length = 0.0
        if table == "pipe":
            length = self._number(place, cells, "length_km") * 1000
            if length < 0:  # one of zero joins two junctions at a place: pandapipes allows it
                self.problems.object(place, "length_km", f"is negative: {length / 1000:g} / 为负")
            if math.isfinite(length):
                attributes["length_m"] = length
        if math.isfinite(width):
            attributes["diameter_m"] = width
        is_open = cells.get("in_service", True) is not False and cells.get("opened", True) is not False
        self.graph.add_link(Link(
            f"{table}-{id_}", LINKS[table], table, 0, attributes, _id(start), _id(end), length, width,
            direction=int(table in _ONE_WAY), is_open=is_open,
        ))  # fmt: skip

    def _bend(self, rows: list[tuple[str, dict[str, Any]]]) -> None:
        """Pipes' ways between their ends."""
        for id_, cells in rows:
            link, coords = self.graph.links.get(f"pipe-{id_}"), cells.get("coords")
            if link is None or coords is None:
                continue
            if not isinstance(coords, list) or not all(isinstance(c, list) and len(c) > 1 for c in coords):
                self.problems.object(f"pipe_geodata {id_}", "coords", "are no points / 不是坐标点")
                continue
            for x, y, *_ in coords[1:-1]:
                place = f"pipe_geodata {id_}"
                self.graph.add_vertex(
                    link, self._number(place, {"x": x}, "x"), self._number(place, {"y": y}, "y")
                )  # fmt: skip

    def _valves_on_pipes(self, rows: list[tuple[str, dict[str, Any]]]) -> None:
        """A valve between a junction and a pipe's end there gets a fitting of its own between the two."""
        for id_, cells in rows:
            if cells.get("et") != "pi":
                continue
            valve, pipe = self.graph.links[f"valve-{id_}"], self.graph.links.get(f"pipe-{_id(cells.get('element'))}")
            at = self.graph.nodes.get(valve.start)
            if pipe is None or at is None or valve.start not in (pipe.start, pipe.end):
                self.problems.object(f"valve {id_}", "element", "names no pipe at its junction / 阀门所接管段不存在")
                valve.end = valve.start + "-"  # named once
                continue
            between = Node(f"valve-{id_}-pipe", "fitting", "", 0, {}, at.z, x=at.x, y=at.y)
            self.graph.add_node(between)
            valve.end = between.id
            if pipe.start == at.id:
                pipe.start = between.id
            else:
                pipe.end = between.id

    def _point(self, table: str, id_: str, cells: dict[str, Any], density: float) -> Asset | None:
        place = f"{table} {id_}"
        node = self.graph.nodes.get(_id(cells.get("junction")))
        if node is None:
            self.problems.object(
                place, "junction", f"names no junction: {str(cells.get('junction'))[:40]} / 节点不存在"
            )
            return None
        type_, sign = POINTS[table]
        attributes = _told(cells) | {"junction": node.id}
        flow, scaling = self._number(place, cells, "mdot_kg_per_s"), self._number(place, cells, "scaling")
        if math.isfinite(flow) and sign and density > 0:
            demand = sign * flow * (scaling if math.isfinite(scaling) else 1.0) * 3600 / density
            attributes["demand_m3_h"] = demand
            if cells.get("in_service", True) is not False:
                node.demand += demand
                node.attributes["demand_m3_h"] = node.demand
        return Asset(f"{table}-{id_}", type_, "object", table, attributes=attributes)

    def _place(self, asset: Asset, system: str) -> Asset:
        node = self.graph.nodes[asset.attributes["junction"]]
        is_placed = not (math.isnan(node.x) or math.isnan(node.y))
        return Asset(
            asset.local, asset.type, asset.group, asset.element, attributes=asset.attributes, system=system,
            geometry=(Geometry.point(node.x, node.y, node.z),) if is_placed else (),
        )  # fmt: skip

    def _metadata(self, parts: dict[str, msgspec.Raw], tables: dict[str, Any], fluid: str) -> dict[str, Any]:
        def counts(names: Any) -> dict[str, int]:
            return {name if name.endswith("s") else f"{name}s": len(tables[name]) for name in names if tables.get(name)}

        title = _loose(parts.get("name"))
        return {
            "title": [title[:200]] if isinstance(title, str) and title else [],
            "units": {"flow": "kg/s", "system": "SI"},
            "counts": {"nodes": counts(["junction"]), "links": counts(LINKS), "objects": counts(POINTS)},
            "options": {"fluid": fluid, "version": str(_loose(parts.get("version")) or "")[:40]},
        }


def _text(raw: msgspec.Raw) -> bytes:
    """An object's content: itself, or the JSON text that it is a string of."""
    found = bytes(raw)
    return _strict(msgspec.json.decode(found, type=str).encode()) if found[:1] == b'"' else found


def _strict(text: bytes) -> bytes:
    """Python's JSON as JSON: null for `NaN`, `Infinity` and `-Infinity`."""
    if b"NaN" not in text and b"Infinity" not in text:
        return text
    strict, end = bytearray(), 0
    for found in _ODD.finditer(text):
        if found[1] is not None:
            strict += text[end : found.start()]
            strict += b"null"
            end = found.end()
    strict += text[end:]
    return bytes(strict)


def _loose(raw: msgspec.Raw | None) -> Any:
    """What a part of the file says, None if nothing that can be read."""
    try:
        return None if raw is None else msgspec.json.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _fluid(raw: msgspec.Raw | None) -> tuple[str, bool, float]:
    """The fluid's name, whether it is a gas, and its density at 20 °C (kg/m³; NaN if not told)."""
    try:
        fluid = msgspec.json.decode(_text(msgspec.json.decode(raw or b"", type=_Object).object))
        name, is_gas = str(fluid["name"])[:80], fluid.get("is_gas") is True
        found = msgspec.json.decode(_strict(fluid["all_properties"]["density"]["_object"].encode()))
    except (msgspec.MsgspecError, RecursionError, LookupError, TypeError, AttributeError):
        return "", True, math.nan
    if not is_gas:
        return name, False, WATER
    if not isinstance(found, dict):
        return name, True, math.nan
    if _is_number(found.get("value")):
        return name, True, float(found["value"])
    at, values = _numbers(found.get("x")), _numbers(found.get("y") or found.get("y_values"))
    if len(at) == len(values) > 1:
        near = sorted(zip(at, values, strict=True), key=lambda pair: abs(pair[0] - NORM_K))[:2]
        (a, u), (b, v) = near
        return name, True, u if a == b else u + (v - u) * (NORM_K - a) / (b - a)
    return name, True, math.nan


def _numbers(array: Any) -> list[float]:
    """A numpy array as pandapipes writes it."""
    values = array.get("_object") if isinstance(array, dict) else array
    values = [v.get("_object") if isinstance(v, dict) else v for v in values] if isinstance(values, list) else []
    return [float(v) for v in values] if all(_is_number(v) for v in values) else []


def _is_number(found: Any) -> bool:
    return isinstance(found, int | float) and not isinstance(found, bool) and abs(found) <= LARGEST


def _id(cell: Any) -> str:
    if isinstance(cell, float) and cell.is_integer() and abs(cell) <= LARGEST:
        cell = int(cell)
    return str(cell)[:MAX_ID] if isinstance(cell, int | float | str) else ""


def _told(cells: dict[str, Any]) -> dict[str, Any]:
    """A row as attributes: what it says of itself in words and numbers."""
    left_out = ("from_junction", "to_junction", "junction", "diameter_m")
    return {
        c[:80]: v[:1000] if isinstance(v, str) else v for c, v in cells.items()
        if c not in left_out and v != "" and (isinstance(v, str | bool) or _is_number(v))
    }  # fmt: skip
