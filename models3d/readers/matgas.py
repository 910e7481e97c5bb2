"""MATGAS: gas transmission networks as GasModels.jl keeps them, a few lines of MATLAB that assign tables.

Only literals are read (numbers, strings, matrices, cells), line by line; nothing is evaluated. Columns are those that a
`%column_names%` comment names, else those of the comment before the table, else the format's own, in their order
(GasModels.jl, `src/io/matgas.jl`). A table `mgc.pipe_data` adds columns to `mgc.pipe`, row by row.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Final

from models3d.readers import Buffer, Problems, nothing
from models3d.readers.graph import FOOT, INCH, Graph, Link, Node, note_all, spelled_crs
from models3d.readers.sections import LARGEST, MAX_ID, head_text, lines
from twin.city import Asset, CityModel, Geometry, Progress

Cell = float | int | str | None
MAX_CELLS: Final = 5_000_000  # in all tables

MILE: Final = 5280 * FOOT
PSI_PA: Final = 6894.757293168
# Density of air at 20 °C and 101.325 kPa, the standard state of gas metering in China (GB 50028), in kg/m³.
AIR: Final = 1.2041
# Standard m³/h at 20 °C in a million standard cubic feet (60 °F) a day.
MMSCFD: Final = 1e6 * FOOT**3 / 24 * 293.15 / 288.706

_LINK_COLUMNS: Final = "id fr_junction to_junction "
COLUMNS: Final = {
    "junction": "id p_min p_max p_nominal junction_type status pipeline_name edi_id lat lon",
    "pipe": _LINK_COLUMNS + "diameter length friction_factor p_min p_max status is_bidirectional pipeline_name "
    "num_spatial_discretization_points",
    "ne_pipe": _LINK_COLUMNS + "diameter length friction_factor p_min p_max status construction_cost "
    "is_bidirectional pipeline_name num_spatial_discretization_points",
    "compressor": _LINK_COLUMNS + "c_ratio_min c_ratio_max power_max flow_min flow_max inlet_p_min inlet_p_max "
    "outlet_p_min outlet_p_max status operating_cost directionality compressor_station_name pipeline_name",
    "ne_compressor": _LINK_COLUMNS + "c_ratio_min c_ratio_max power_max flow_min flow_max inlet_p_min inlet_p_max "
    "outlet_p_min outlet_p_max status construction_cost operating_cost directionality compressor_station_name",
    "short_pipe": _LINK_COLUMNS + "status is_bidirectional pipeline_name",
    "resistor": _LINK_COLUMNS + "drag diameter status is_bidirectional pipeline_name",
    "loss_resistor": _LINK_COLUMNS + "p_loss status is_bidirectional pipeline_name",
    "regulator": _LINK_COLUMNS + "reduction_factor_min reduction_factor_max flow_min flow_max status directionality "
    "discharge_coefficient design_flow_rate design_inlet_pressure design_outlet_pressure pipeline_name",
    "control_valve": _LINK_COLUMNS + "reduction_factor_min reduction_factor_max flow_min flow_max status",
    "valve": _LINK_COLUMNS + "status flow_coefficient pipeline_name",
    "receipt": "id junction_id injection_min injection_max injection_nominal is_dispatchable status offer_price name "
    "company_name daily_scheduled_flow design_capacity operating_capacity is_firm edi_id",
    "delivery": "id junction_id withdrawal_min withdrawal_max withdrawal_nominal is_dispatchable status bid_price "
    "name company_name daily_scheduled_flow design_capacity operating_capacity is_firm edi_id",
    "transfer": "id junction_id withdrawal_min withdrawal_max withdrawal_nominal is_dispatchable status bid_price "
    "offer_price exchange_point_name pipeline_name other_pipeline_name design_pressure meter_capacity "
    "daily_scheduled_flow",
    "storage": "id junction_id pressure_nominal flow_injection_rate_min flow_injection_rate_max "
    "flow_withdrawal_rate_min flow_withdrawal_rate_max capacity status name owner_name storage_type",
}  # fmt: skip
LINKS: Final = {
    "pipe": "pipe", "short_pipe": "pipe", "resistor": "fitting", "loss_resistor": "fitting",
    "compressor": "compressor", "valve": "valve", "regulator": "regulator", "control_valve": "regulator",
    "ne_pipe": "pipe", "ne_compressor": "compressor",
}  # fmt: skip
POINTS: Final = {"receipt": "source", "delivery": "consumer", "transfer": "consumer", "storage": "storage"}
# The nominal flow of each, and whether it leaves the network.
_FLOWS: Final = {
    "receipt": ("injection_nominal", -1.0), "delivery": ("withdrawal_nominal", 1.0),
    "transfer": ("withdrawal_nominal", 1.0),
}  # fmt: skip
_PLURALS: Final = {"delivery": "deliveries", "storage": "storage"}
_SAME: Final = {"f_junction": "fr_junction", "t_junction": "to_junction", "from_junction": "fr_junction"}

_OWN: Final = re.compile(r"^[ \t]*(function[ \t]+mgc\b|mgc\.\w+[ \t]*=)", re.MULTILINE)
_ASSIGNS: Final = re.compile(r"\s*(?:\w+)\.(\w+)\s*=\s*")
_IGNORED: Final = re.compile(r"\s*(function\b.*|end(function)?|return)?\s*;?\s*(%.*)?$")
_NAMES: Final = re.compile(r"\s*%\s*column_names\s*%(.*)")
_SPECIAL: Final = re.compile(r"['\"%\[\]{};,]")
_PART: Final = re.compile(
    r"\s*(?:'((?:[^']|'')*)'|\"([^\"]*)\"|(%.*)|([\[\]{};,])|([^\s,;'\"\[\]{}%]+)|(.))", re.DOTALL
)


def recognise(head: bytes, name: str) -> bool:
    return _OWN.search(head_text(head)) is not None


def read(data: Buffer, name: str, crs: str = "", progress: Progress = nothing) -> CityModel:
    """The network of a MATGAS file. Raises `InvalidModel` with every mistake.

    Nodes are junctions; links have ids like `pipe-7`, as each table counts its own. Receipts (sources), deliveries and
    transfers (consumers) and storage are objects at a junction, whose demand is the sum of their nominal flows, in
    standard m³/h (20 °C, 101.325 kPa), receipts negative. Positions are `lon`, `lat`, in EPSG:4326 unless `crs` is
    given. `metadata`: `title`, `units`, `options` (the file's scalars), `counts`.
    """
    return _File(name).read(data, crs, progress)


@dataclass(slots=True)
class _Table:
    """A table of the file: where it begins, its columns, and rows with their lines."""

    name: str
    line: int
    columns: list[str]
    is_named: bool
    rows: list[tuple[int, list[Cell]]] = field(default_factory=list)


class _File:
    def __init__(self, name: str) -> None:
        self.problems, self.notes = Problems(name), Problems(name)
        self.graph = Graph(self.problems)
        self.title = ""
        self.scalars: dict[str, Cell] = {}
        self.tables: dict[str, _Table] = {}
        self.cells = 0

    def read(self, data: Buffer, crs: str, progress: Progress) -> CityModel:
        self._parse(data, progress)
        spelled = spelled_crs(crs, self.problems)
        is_us, is_relative = self._units()
        self.problems.check()
        for name in ("junction", *LINKS, *POINTS):
            if name in self.tables:
                self._name_columns(self.tables[name])
        self.problems.check()
        self._junctions(is_us, is_relative)
        for name in LINKS:
            for row in self._rows(name):
                self._link(name, *row, is_us=is_us, is_relative=is_relative)
        points = [(name, *row) for name in POINTS for row in self._rows(name)]
        self._check_points(points)
        self.graph.check_ends()
        self.problems.check()
        density = AIR * self._scalar("gas_specific_gravity", 0.6)
        factor = MMSCFD if is_us else 3600 / density
        factor *= self._scalar("base_flow", 1.0) if is_relative else 1.0
        progress("build", 0.8)
        objects = self._points(points, factor)
        assets, network = self.graph.assemble("gas", self.notes)
        has_places = any(n.x == n.x for n in self.graph.nodes.values())
        progress("build", 1.0)
        return CityModel(
            "matgas", assets + objects, [network], spelled or ("EPSG:4326" if has_places else ""),
            metadata=self._metadata(is_us), notes=self.notes.told(),
        )  # fmt: skip

    def _parse(self, data: Buffer, progress: Progress) -> None:
        """Scalars and tables, as they are assigned."""
        problems = self.problems
        table: _Table | None = None
        is_open = False
        row: list[Cell] = []
        names, comment = "", ""
        for line, text in lines(data, problems, self.notes, progress):
            at = 0
            if table is None:
                if found := _NAMES.match(text):
                    names = found[1]
                    continue
                if text.lstrip().startswith("%"):
                    comment = text.strip().lstrip("%")
                    continue
                if _IGNORED.match(text):
                    if "function" in text:
                        self.title = text.partition("=")[2].strip()[:200]
                    continue
                assigned = _ASSIGNS.match(text)
                if assigned is None:
                    problems.line(line, "", f"assigns no literal: {text.strip()[:60]} / 不是字面量赋值")
                    continue
                at = assigned.end()
                if text[at : at + 1] not in ("[", "{"):
                    self._assign(line, assigned[1], text[at:])
                    names = comment = ""
                    continue
                columns = (names or comment).split()
                table, is_open, at = _Table(assigned[1], line, columns, bool(names)), True, at + 1
                names = comment = ""
                if table.name in self.tables:
                    problems.line(line, table.name, "is assigned twice / 重复赋值")
            if table is not None and not at and not _SPECIAL.search(text):  # a row of bare numbers, as most are
                row += [self._number(line, table.name, word) for word in text.split()]
                row = self._keep(table, line, row)
                continue
            while is_open and at < len(text):
                part = _PART.match(text, at)
                if part is None:  # blanks
                    break
                at = part.end()
                quoted, twice, remark, sign, word, wrong = part.groups()
                if remark is not None:
                    break
                if quoted is not None or twice is not None:
                    row.append((quoted.replace("''", "'") if quoted is not None else twice)[:1000])
                elif word is not None:
                    row.append(self._number(line, table.name, word))
                elif sign in ("]", "}"):
                    is_open = False
                elif sign == ";":
                    row = self._keep(table, line, row)
                elif sign != ",":
                    problems.line(line, table.name, f"is no literal: {(sign or wrong)[:20]} / 不是字面量")
            if table is not None:
                row = self._keep(table, line, row)
                if not is_open:
                    self.tables.setdefault(table.name, table)
                    table = None
        if table is not None:
            problems.line(table.line, table.name, "does not end / 表没有结束")

    def _keep(self, table: _Table, line: int, row: list[Cell]) -> list[Cell]:
        if row:
            table.rows.append((line, row))
            self.cells += len(row)
            if self.cells > MAX_CELLS:
                self.problems.add(self.problems.name, "", f"has over {MAX_CELLS} values / 数据过多")
                self.problems.check()
        return []

    def _assign(self, line: int, name: str, text: str) -> None:
        parts = [part for part in _PART.findall(text) if not part[2]]
        parts = [part for part in parts if part[3] not in (";", ",") and part[5] != "\n"]
        if len(parts) != 1 or parts[0][3] or parts[0][5]:
            self.problems.line(line, name, f"is no literal: {text.strip()[:60]} / 不是字面量")
            return
        quoted, twice, _, _, word, _ = parts[0]
        self.scalars[name[:80]] = self._number(line, name, word) if word else (quoted or twice)[:1000]

    def _number(self, line: int, name: str, word: str) -> Cell:
        """A number; None for one that is not finite. A large one (1e100) says that there is no bound."""
        found = _float(word)
        if found is None or not math.isfinite(found):
            if word.lower().lstrip("+-") not in ("nan", "inf"):
                self.problems.line(line, name, f"is no literal: {word[:40]} / 不是字面量")
            return None
        is_whole = found.is_integer() and abs(found) <= LARGEST and word.lstrip("+-").isdigit()
        return int(found) if is_whole else found

    def _units(self) -> tuple[bool, bool]:
        """Whether the file is in US units, and whether in shares of base values."""
        units = self.scalars.get("units", "si")
        if units not in ("si", "usc"):
            self.problems.object("mgc", "units", f"is neither 'si' nor 'usc': {str(units)[:40]} / 未知的单位制")
        return units == "usc", self.scalars.get("is_per_unit", 0) not in (0, None)

    def _scalar(self, name: str, default: float) -> float:
        found = self.scalars.get(name)
        return float(found) if isinstance(found, int | float) and found > 0 else default

    def _name_columns(self, table: _Table) -> None:
        """Give a known table its columns: those named, or the format's own."""
        own = COLUMNS[table.name].split()
        named = [_SAME.get(c.lower(), c.lower()) for c in table.columns]
        needed = {"id"} | ({"fr_junction", "to_junction"} if table.name in LINKS else set())
        needed |= {"junction_id"} if table.name in POINTS else set()
        if needed <= set(named):
            table.columns = named
        elif table.is_named:
            self.problems.line(table.line, table.name, f"names no column {min(needed - set(named))} / 缺少列")
        else:
            table.columns = own
        more = self.tables.get(f"{table.name}_data")
        if more is not None and more.rows:
            if len(more.rows) != len(table.rows) or not more.is_named:
                text = f"adds {len(more.rows)} rows to {len(table.rows)}, or names no columns / 行数不一致或无列名"
                self.problems.line(more.line, more.name, text)
                return
            width = len(table.columns)
            for (_, row), (_, added) in zip(table.rows, more.rows, strict=True):
                row += [None] * (width - len(row))
                row[width:] = added
            table.columns = table.columns + [c.lower() for c in more.columns]

    def _rows(self, name: str) -> list[tuple[int, dict[str, Cell]]]:
        """A table's rows by column, those with what every row needs."""
        table = self.tables.get(name)
        if table is None:
            return []
        found = []
        needed = ("id",) if name == "junction" else ("id", "fr_junction", "to_junction") if name in LINKS else (
            "id", "junction_id")  # fmt: skip
        for line, row in table.rows:
            if len(row) > len(table.columns):
                text = f"has {len(row)} values for {len(table.columns)} columns / 列数不符"
                self.problems.line(line, name, text)
                continue
            cells = dict(zip(table.columns, row, strict=False))
            missing = [c for c in needed if cells.get(c) in (None, "")]
            for column in missing:
                self.problems.line(line, column, "is missing / 缺失")
            if not missing:
                found.append((line, cells))
        return found

    def _value(self, line: int, cells: dict[str, Cell], column: str, least: float = -math.inf) -> float:
        """A number of a row, NaN where it has none."""
        found = cells.get(column)
        if found is None:
            return math.nan
        if isinstance(found, str):
            self.problems.line(line, column, f"is not a number: {found[:40]!r} / 不是数字")
            return math.nan
        if abs(found) > LARGEST:
            self.problems.line(line, column, f"is absurd: {found:g} / 数值过大")
            return math.nan
        if found <= least:
            self.problems.line(line, column, f"must be above {least:g}, is {found:g} / 必须大于 {least:g}")
        return float(found)

    def _junctions(self, is_us: bool, is_relative: bool) -> None:
        pressure = (PSI_PA if is_us else 1.0) * (self._scalar("base_pressure", 1.0) if is_relative else 1.0)
        outside = []
        for line, cells in self._rows("junction"):
            x, y = self._value(line, cells, "lon"), self._value(line, cells, "lat")
            z = self._value(line, cells, "elevation")
            attributes = _told(cells)
            for column in ("p_min", "p_max", "p_nominal"):
                found = self._value(line, cells, column)
                if math.isfinite(found):
                    attributes[f"{column}_mpa"] = found * pressure / 1e6
            node = Node(_id(cells["id"]), "junction", "junction", line, attributes, z, x=x, y=y)
            if abs(x) > 180 or abs(y) > 90:
                outside.append(node.id)
                node.x = node.y = math.nan
            self.graph.add_node(node)
        note_all(self.notes, "lat, lon", "outside of the Earth's, left out / 经纬度超出范围，已略过", outside)

    def _link(self, table: str, line: int, cells: dict[str, Cell], is_us: bool, is_relative: bool) -> None:
        length = self._value(line, cells, "length", 0) * (MILE if is_us else 1.0)
        diameter = self._value(line, cells, "diameter", 0) * (INCH if is_us else 1.0)
        if is_relative:
            length *= self._scalar("base_length", 1.0)
            diameter *= self._scalar("base_diameter", 1.0)
        attributes = _told(cells)
        if math.isfinite(length):
            attributes["length_m"] = length
        if math.isfinite(diameter):
            attributes["diameter_m"] = diameter
        is_planned = table.startswith("ne_")
        if is_planned:
            attributes["is_planned"] = True  # a candidate for expansion, not built
        both_ways = cells.get("is_bidirectional", cells.get("directionality", 1 if LINKS[table] == "pipe" else None))
        if table in ("compressor", "ne_compressor"):
            direction = int(cells.get("directionality") in (1, None))
        elif table in ("regulator", "control_valve"):
            direction = int(not both_ways or "directionality" in cells)
        else:
            direction = int(both_ways == 0)
        self.graph.add_link(Link(
            f"{table}-{_id(cells['id'])}", LINKS[table], table, line, attributes, _id(cells["fr_junction"]),
            _id(cells["to_junction"]), length if table in ("pipe", "ne_pipe") else 0.0, diameter,
            direction=direction, is_open=cells.get("status", 1) != 0 and not is_planned,
        ))  # fmt: skip

    def _check_points(self, points: list[tuple[str, int, dict[str, Cell]]]) -> None:
        seen: dict[tuple[str, str], int] = {}
        for table, line, cells in points:
            key = table, _id(cells["id"])
            if key in seen:
                self.problems.line(line, "id", f"{key[1]} is that of line {seen[key]} / 编号重复")
            seen.setdefault(key, line)
            if _id(cells["junction_id"]) not in self.graph.nodes:
                self.problems.line(line, "junction_id", f"names no junction: {cells['junction_id']} / 节点不存在")
            if table in _FLOWS:
                self._value(line, cells, _FLOWS[table][0])

    def _points(self, points: list[tuple[str, int, dict[str, Cell]]], factor: float) -> list[Asset]:
        """Where gas enters and leaves, as objects, and their flows at the junctions."""
        found = []
        for table, line, cells in points:
            node = self.graph.nodes[_id(cells["junction_id"])]
            attributes = _told(cells) | {"junction": node.id}
            if table in _FLOWS:
                column, sign = _FLOWS[table]
                flow = self._value(line, cells, column) * factor * sign
                if math.isfinite(flow):
                    attributes["demand_m3_h"] = flow
                    if cells.get("status", 1) != 0:
                        node.demand += flow
                        node.attributes["demand_m3_h"] = node.demand
            shape = () if math.isnan(node.x) or math.isnan(node.y) else (Geometry.point(node.x, node.y, node.z),)
            names = str(cells.get("name") or cells.get("exchange_point_name") or "")[:MAX_ID]
            found.append(Asset(
                f"{table}-{_id(cells['id'])}", POINTS[table], "object", table, attributes=attributes, geometry=shape,
                name_en=names if names.isascii() else "", name_zh="" if names.isascii() else names, system="gas",
            ))  # fmt: skip
        return found

    def _metadata(self, is_us: bool) -> dict[str, Any]:
        def counts(names: Any) -> dict[str, int]:
            return {_PLURALS.get(n, f"{n}s"): len(self.tables[n].rows) for n in names if n in self.tables}

        return {
            "title": [self.title] if self.title else [],
            "units": {"flow": "MMSCFD" if is_us else "kg/s", "system": "US" if is_us else "SI"},
            "counts": {"nodes": counts(["junction"]), "links": counts(LINKS), "objects": counts(POINTS)},
            "options": self.scalars,
        }


def _float(word: str) -> float | None:
    try:
        return None if "_" in word else float(word)
    except ValueError:
        return None


def _id(cell: Cell) -> str:
    return str(int(cell) if isinstance(cell, float) and cell.is_integer() else cell)[:MAX_ID]


def _told(cells: dict[str, Cell]) -> dict[str, Any]:
    """A row as attributes: what it says of itself, without ids and positions, which have places of their own."""
    left_out = ("id", "fr_junction", "to_junction", "junction_id", "lat", "lon")
    return {c: v for c, v in cells.items() if c not in left_out and v is not None and v != ""}
