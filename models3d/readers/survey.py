"""Point and line tables of pipe surveys (点表, 线表), as CSV in the layout that Chinese cities use: `JSPoint`,
`JSLine`, … with the codes JS, PS, YS, WS, RQ, RL, DL, TX and so on. Which header means what is data: `words.toml`.

A file holds a point table, a line table whose rows bear their ends' coordinates, rows that are both (物探点号 with
连接点号), or several tables, one after the other, each under a line with its name. A network surveyed in several files
is read by `read_tables`. The system is told by a column (管线类别), else by the table's name, else by the file's, else
by the letters with which point numbers begin.

What is assumed, and said in the model's notes where it was:

- `X` is the northing and `Y` the easting, as surveyors in China have it, unless the numbers say otherwise: northings
  there lie within 1,000-6,000 km, eastings within 100-900 km or behind a zone number (`38 512 345`).
- Depths (埋深) of drains are to the invert, of all others to the top of the pipe (CJJ 61 practice, M); heights of line
  ends (起点高程) likewise, unless the header says 管顶 or 管底.
- Sections are in mm, `1000X800` is width by height. Flow runs from start to end, unless 流向 says otherwise; where it
  says nothing and a drain would rise by more than `RISE_M`, from end to start.
- The CRS is what the user says; longitude and latitude are WGS 84 (taken as CGCS2000).
"""

from __future__ import annotations

import codecs
import csv
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from pyproj import CRS

from models3d import crs as systems
from models3d.readers import HEAD, MAX_ELEMENTS, MAX_PROBLEMS, Buffer, Problems, nothing, pipes, words
from models3d.readers.words import columns as columns_of
from twin.city import Asset, CityModel, Geometry, Progress

ENOUGH: Final = 10 * MAX_PROBLEMS  # mistakes, after which the rest is not read
MAX_LINE: Final = 1 << 20  # bytes of a line
MAX_COLUMNS: Final = 1000
MAX_RECODED: Final = 256 << 20  # bytes of a file in UTF-16
FIRST_LINES: Final = 10  # of a file, among which the first header must be
RISE_M: Final = 0.05  # E
MAX_DEPTH_M: Final = 100.0  # deeper is a mistake (E)
MAX_SIZE_M: Final = 20.0  # of a section (E)
MAX_LENGTH_M: Final = 10_000.0  # between two surveyed points (E)
LONG_M: Final = 1_000.0
MAX_SPREAD_M: Final = 300_000.0  # of a survey around its middle (E)
OVERHEAD: Final = ("架空", "地上", "overhead", "aerial")  # laid so, a pipe may lie above the ground
BACKWARD: Final = frozenset(("逆", "逆向", "反", "反向", "-", "-1", "e-s", "终点到起点", "终点→起点", "反流向"))
BOTH_WAYS: Final = frozenset(("双向", "无流向"))
NOT_OPEN: Final = frozenset(("关", "关闭", "停用", "废弃", "报废", "closed", "abandoned", "disused"))
SEPARATORS: Final = (",", "\t", ";", "|")
_TITLE: Final = re.compile(r"(point|line|点|线|表|pt|ln)", re.IGNORECASE)


@dataclass(slots=True)
class _Table:
    """A table's header: where our fields are. `kind`: point, line, or both."""

    title: str
    file: str
    kind: str
    headers: list[str]
    point: dict[str, int]
    line: dict[str, int]
    units: list[float]
    system: str
    code: str
    rows: int = 0


@dataclass(slots=True)
class _Point:
    place: str
    number: str
    table: _Table
    x: float
    y: float
    code: str
    system: str
    values: dict[str, float]
    attributes: dict[str, Any]
    words: dict[str, str]
    local: str = ""


@dataclass(slots=True)
class _Line:
    place: str
    table: _Table
    number: str
    start: str
    end: str
    code: str
    system: str
    values: dict[str, float]
    size: tuple[float, float]
    attributes: dict[str, Any]
    words: dict[str, str]
    ends: tuple[int, int] = field(default=(-1, -1))


def recognise(head: bytes, name: str) -> bool:
    if head[:1] in b"{[<" or b"\0" in head[:2]:
        return False
    lines = []
    try:
        for number, text in _lines(_recoded(head), words.encoding(head)):
            if text.strip():
                lines.append(text)
            if len(lines) == FIRST_LINES or number > 100:
                break
    except _Unreadable:
        pass
    return any(_header(_cells(line, separator)) is not None for line in lines for separator in SEPARATORS)


def read(data: Buffer, name: str, crs: str = "", progress: Progress = nothing) -> CityModel:
    return read_tables([(name, data)], crs, progress)


def read_tables(files: Sequence[tuple[str, Buffer]], crs: str = "", progress: Progress = nothing) -> CityModel:
    """One model of the tables in several files, as (name, bytes). Raises `InvalidModel`."""
    reading = _Reading(files[0][0], crs)
    for number, (name, data) in enumerate(files):
        reading.take(data, name, lambda what, share, n=number: progress(what, (n + share) / len(files)))  # type: ignore[misc]
    return reading.model()


class _Unreadable(Exception):  # noqa: N818 - an outcome
    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


def _recoded(data: Buffer) -> Buffer:
    """UTF-16 (what Excel calls Unicode text) as UTF-8, and lines that end in CR as lines that end in LF."""
    head = bytes(data[:HEAD])
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) and len(data) <= MAX_RECODED:
        return bytes(data)[: len(data) // 2 * 2].decode("utf-16", "replace").encode("utf-8", "replace")
    if b"\n" not in head and b"\r" in head and len(data) <= MAX_RECODED:
        return bytes(data).replace(b"\r", b"\n")
    return data


def _lines(data: Buffer, encoding: str) -> Iterator[tuple[int, str]]:
    number, start, size = 0, 3 if bytes(data[:3]) == codecs.BOM_UTF8 else 0, len(data)
    while start < size:
        end = data.find(b"\n", start, start + MAX_LINE)
        if end < 0:
            if size - start > MAX_LINE:
                raise _Unreadable(number + 1, f"is longer than {MAX_LINE >> 20} MiB / 行过长")
            end = size
        number += 1
        try:
            yield number, data[start:end].decode(encoding).rstrip("\r")
        except UnicodeDecodeError:
            if end < size:
                raise _Unreadable(number, "is neither UTF-8 nor GB18030 / 编码既非 UTF-8 也非 GB18030") from None
            yield number, data[start:end].decode(encoding, "replace")
        start = end + 1


def _cells(line: str, separator: str) -> list[str]:
    try:
        return next(iter(csv.reader([line], delimiter=separator)), [])
    except csv.Error:
        return []


def _header(cells: list[str]) -> tuple[str, dict[str, int], dict[str, int]] | None:
    """Kind of a table and the columns of our fields, if `cells` are its header."""
    if not 2 < len(cells) <= MAX_COLUMNS:
        return None
    stripped = [cell.strip().lstrip("#").strip() for cell in cells]
    places = {header: place for place, header in reversed(list(enumerate(stripped))) if header}
    point = {field: places[header] for field, header in columns_of(places, "point").items()}
    line = {field: places[header] for field, header in columns_of(places, "line").items()}
    is_placed = any(a in point and b in point for a, b in (("x", "y"), ("lon", "lat"), ("easting", "northing")))
    if "start" in line and "end" in line and line["start"] != line["end"]:
        return ("both" if is_placed and not _has_ends(line) else "line"), point, line
    if "number" in point and is_placed:
        return "point", point, {}
    return None


def _has_ends(line: dict[str, int]) -> bool:
    return all(f in line for f in ("start_x", "start_y", "end_x", "end_y")) or all(
        f in line for f in ("start_lon", "start_lat", "end_lon", "end_lat")
    )


class _Reading:
    def __init__(self, name: str, crs: str) -> None:
        self.name = name
        self.problems = Problems(name)
        self.notes = Problems(name)
        self.crs = crs
        self.tables: list[_Table] = []
        self.points: list[_Point] = []
        self.lines: list[_Line] = []
        self.is_lonlat = False
        self.first: dict[tuple[str, str], _Point] = {}  # of a code (or system) and number
        self.numbered: dict[str, str] = {}  # where the numbers of lines are told
        self.refused: set[str] = set()  # numbers of points whose rows have mistakes: told once is enough

    # Files to rows

    def take(self, data: Buffer, name: str, progress: Progress) -> None:
        self.problems.name = name
        data = _recoded(data)
        encoding = words.encoding(data)
        if encoding != "utf-8":
            self.notes.add(name, "", "is read as GB18030 / 按 GB18030 编码读取")
        number, seen, title, table = 0, 0, "", None
        previous = ""
        separator = self._separator(data, encoding)
        if separator is None:
            text = "has no header of a point or line table / 没有点表或线表的表头"
            self.problems.add(name, "", text)
            return

        def texts() -> Iterator[str]:
            nonlocal number
            for number, text in _lines(data, encoding):
                if number % 50_000 == 0:
                    progress("rows", min(1.0, number * 60 / max(1, len(data))))
                yield text

        rows = csv.reader(texts(), delimiter=separator)
        try:
            for row in rows:
                filled = [cell for cell in row if cell.strip()]
                if not filled:
                    continue
                seen += 1
                if (
                    len(filled) == 1
                    and _TITLE.search(filled[0])
                    and (table is None or words.code_of(filled[0]) or filled[0].rstrip().endswith("表"))
                ):
                    title, table = filled[0].strip().lstrip("#").strip(), None
                    continue
                if table is None or words.is_field(filled[0].lstrip("#"), "point" if table.kind == "point" else "line"):
                    found = _header(row)
                    if found is not None:
                        table = self._table(title, name, row, found)
                        title = ""
                        continue
                if table is None:
                    if title or seen > FIRST_LINES:
                        text = "is no header of a point or line table / 不是点表或线表的表头"
                        self.problems.line(number, "", text)
                        break
                    title = " ".join(filled)[:200]
                    continue
                table.rows += 1
                if len(self.points) + len(self.lines) > MAX_ELEMENTS:
                    self.problems.line(number, "", f"more than {MAX_ELEMENTS} rows / 行数过多")
                    break
                previous = self._row(table, row, number, previous)
                if len(self.problems) > ENOUGH:
                    break
        except _Unreadable as wrong:
            self.problems.line(wrong.number, "", str(wrong))
        except csv.Error as error:
            self.problems.line(number, "", f"{error} / 不是有效的 CSV")
        if len(self.problems) > ENOUGH:
            self.problems.check()

    def _separator(self, data: Buffer, encoding: str) -> str | None:
        seen = 0
        try:
            for _, text in _lines(data, encoding):
                if text.strip():
                    seen += 1
                    for separator in SEPARATORS:
                        if _header(_cells(text, separator)) is not None:
                            return separator
                if seen > FIRST_LINES:
                    break
        except _Unreadable as wrong:
            self.problems.line(wrong.number, "", str(wrong))
        return None

    def _table(
        self, title: str, file: str, row: list[str], found: tuple[str, dict[str, int], dict[str, int]]
    ) -> _Table:
        kind, point, line = found
        code = words.code_of(title) or words.code_of(file)
        system = words.system_of(title) or words.system_of(file.rsplit(".", 1)[0])
        units = [words.unit(header) for header in row]
        table = _Table(title, file, kind, [cell.strip() for cell in row], point, line, units, system, code)
        self.tables.append(table)
        return table

    def _row(self, table: _Table, row: list[str], number: int, previous: str) -> str:
        if len(row) > len(table.headers) and any(cell.strip() for cell in row[len(table.headers) :]):
            text = f"has {len(row)} cells, its header {len(table.headers)} / 单元格多于表头"
            self.problems.line(number, "", text)
            return previous
        cells = [cell.strip() for cell in row]
        cells += [""] * (len(table.headers) - len(cells))
        attributes: dict[str, Any] = {}
        if not self.problems:  # else there will be no model to tell them
            attributes = {header: cell for header, cell in zip(table.headers, cells, strict=False) if header and cell}
        if table.kind != "line":
            previous = self._point(table, cells, number, attributes, previous)
        if table.kind != "point":
            self._line(table, cells, number, attributes, previous)
        return previous

    def _numbers(
        self, table: _Table, which: dict[str, int], cells: list[str], number: int, names: Sequence[str]
    ) -> dict[str, float]:
        values = {}
        for name in names:
            if name in which:
                place = which[name]
                value = words.number(cells[place])
                if value is None:
                    text = f"{cells[place]!r:.60} is no number / 不是数字"
                    self.problems.line(number, table.headers[place], text)
                elif math.isfinite(value):
                    scale = table.units[place]
                    values[name] = value * scale if math.isfinite(scale) else value
                    if abs(values[name]) > 1e8 or (abs(values[name]) > 1e4 and name not in POSITIONS):
                        text = f"{cells[place]:.60} is beyond all bounds / 数值不合理"
                        self.problems.line(number, table.headers[place], text)
        return values

    def _system(self, table: _Table, which: dict[str, int], cells: list[str], number: str) -> tuple[str, str]:
        """The survey's code and the system of a row."""
        said = cells[which["system"]] if "system" in which else ""
        if said and (system := words.system_of(said)):
            return words.code_of(said) or (table.code if table.system == system else ""), system
        if table.system:
            return table.code, table.system
        letters = re.search(r"[A-Za-z]{2}", number)
        code = letters.group().upper() if letters else ""
        return (code, words.CODES[code]) if code in words.CODES else ("", "")

    def _point(self, table: _Table, cells: list[str], number: int, attributes: dict[str, Any], previous: str) -> str:
        which = table.point
        place = which["number"] if table.kind == "point" else table.line["start"]
        name = cells[place]
        if not name and table.kind == "both" and previous:
            return previous  # a further line from the point above
        before = len(self.problems)
        if not name or len(name) > 200:
            self.problems.line(number, table.headers[place], "has no point number / 缺少点号")
        values = self._numbers(table, which, cells, number, (*POSITIONS[:6], "ground", "invert", "depth"))
        spot = next(
            (
                (values[a], values[b])
                for a, b in (("lon", "lat"), ("easting", "northing"), ("x", "y"))
                if a in values and b in values
            ),
            None,
        )
        if spot is None and len(self.problems) == before:
            self.problems.line(number, "", "has no coordinates / 缺少坐标")
        if spot is None or not name:
            self.refused.add(name)
            return name
        depth = values.get("depth", 0.0)
        if table.kind == "point" and not -0.001 <= depth <= MAX_DEPTH_M:
            text = f"a depth of {depth:g} m / 井深不合理"
            self.problems.line(number, table.headers[which["depth"]], text)
        if table.kind == "both":
            values.pop("depth", None)
        said: dict[str, str] = {
            key: cells[which[key]]
            for key in ("feature", "subsid", "owner", "year", "code", "name", "area", "material")
            if key in which and cells[which[key]]
        }
        code, system = self._system(table, which, cells, name)
        if "lon" in values and "lat" in values:
            values["is_lonlat"] = 1.0
        elif "easting" in values and "northing" in values:
            values["is_plain"] = 1.0
        other = self.first.get((code or system, name))
        if other is None:
            place_ = f"{table.file}, line {number}"
            point = _Point(place_, name, table, *spot, code, system, values, attributes, said)
            self.first[code or system, name] = point
            self.points.append(point)
        elif table.kind != "both" or (other.x, other.y) != spot:  # else told again with a further line
            text = f"{name:.60} is used before, by {other.place} / 点号重复"
            self.problems.line(number, table.headers[place], text)
        return name

    def _line(self, table: _Table, cells: list[str], number: int, attributes: dict[str, Any], start: str) -> None:
        which = table.line
        if table.kind == "line":
            start = cells[which["start"]]
        end = cells[which["end"]]
        if table.kind == "both" and not end:
            return
        for name, value in (("start", start), ("end", end)):
            if not value:
                self.problems.line(number, table.headers[which[name]], "has no point number / 缺少点号")
        if not start or not end:
            return
        if start == end:
            text = f"begins and ends at {start:.60} / 起止点相同"
            self.problems.line(number, table.headers[which["end"]], text)
            return
        values = self._numbers(table, which, cells, number, LINE_NUMBERS)
        if table.kind == "both" and "depth" in table.point:
            here = self._numbers(table, table.point, cells, number, ("depth",))
            if "depth" in here:
                values.setdefault("start_depth", here["depth"])
        bury = cells[which["bury"]].lower() if "bury" in which else ""
        is_overhead = any(word in bury for word in OVERHEAD)
        for name in ("start_depth", "end_depth"):
            depth = values.get(name, 0.0)
            if depth > MAX_DEPTH_M or (depth < -0.001 and not (is_overhead and depth > -MAX_DEPTH_M)):
                header = table.headers[which[name]] if name in which else "depth"
                text = f"a depth of {depth:g} m, and it is not laid overhead / 埋深不合理"
                self.problems.line(number, header, text)
        size = (math.nan, math.nan)
        if "section" in which:
            place = which["section"]
            scale = table.units[place]
            found = words.section(cells[place], scale if math.isfinite(scale) else -1.0)
            if found is None:
                text = f"{cells[place]!r:.60} is no diameter or section / 不是管径或断面尺寸"
                self.problems.line(number, table.headers[place], text)
            else:
                size = found
                is_bare = size[0] < 0 or size[1] < 0
                bound = MAX_SIZE_M * 1000 if is_bare else MAX_SIZE_M
                if any(abs(side) > bound for side in size) or 0.0 in size:
                    text = f"{cells[place]:.60} is no size of a pipe / 管径不合理"
                    self.problems.line(number, table.headers[place], text)
        said: dict[str, str] = {
            key: cells[which[key]]
            for key in ("number", "material", "pressure", "flow", "bury", "year", "owner", "code", "name", "status")
            if key in which and cells[which[key]]
        }
        if table.kind == "both":
            said.pop("number", None)
        code, system = self._system(table, which, cells, start)
        place_ = f"{table.file}, line {number}"
        if own := said.get("number", ""):
            if own in self.numbered:
                text = f"{own:.60} is used before, by {self.numbered[own]} / 管线编号重复"
                self.problems.line(number, table.headers[which["number"]], text)
                return
            self.numbered[own] = place_
        line = _Line(place_, table, said.get("number", ""), start, end, code, system, values, size, attributes, said)
        self.lines.append(line)

    # Rows to a model

    def model(self) -> CityModel:
        self.problems.name = self.name
        self._number()
        self._join()
        self.problems.check()
        crs, height, unit_m = self._place()
        self.problems.check()
        nodes, edges, lines = self._network(unit_m)
        self.problems.check()
        assets = [self._point_asset(point, node) for point, node in zip(self.points, nodes, strict=True)]
        assets += lines
        unsaid = sum(not point.system for point in self.points)
        if unsaid:
            self.notes.add(self.name, "", f"of {unsaid} points no table says the system / {unsaid} 个点未说明管线类别")
        metadata = {
            "tables": [
                {"name": t.title, "file": t.file, "kind": t.kind, "rows": t.rows, "system": t.system}
                for t in self.tables
            ]
        }
        return CityModel("survey", assets, pipes.networks(nodes, edges), crs, height, metadata, self.notes.told())

    def _number(self) -> None:
        """Give every point its id: its number, with its code before it where two systems use the same."""
        counts = Counter(point.number for point in self.points)
        for point in self.points:
            prefix = f"{point.code or point.system}:" if counts[point.number] > 1 else ""
            point.local = prefix + point.number

    def _join(self) -> None:
        """Find every line's ends; those that no table has are made from coordinates in the line's row."""
        own = {(point.code or point.system, point.number): place for place, point in enumerate(self.points)}
        by_system = {(point.system, point.number): place for place, point in enumerate(self.points)}
        anywhere = {point.number: place for place, point in enumerate(self.points)}
        has_points = any(table.kind != "line" for table in self.tables)
        unknown = 0
        made: dict[tuple[str, str], int] = {}
        for line in self.lines:
            ends = []
            for side, number in (("start", line.start), ("end", line.end)):
                key = (line.code or line.system, number)
                place = own.get(key, by_system.get((line.system, number), anywhere.get(number, -1)))
                spot = _spot(line, side)
                if place < 0 and spot is not None:
                    place = made.get(key, -1)
                    if place < 0:
                        place = made[key] = len(self.points)
                        self.points.append(self._made(line, side, number, spot))
                if place < 0:
                    unknown += 1
                    if has_points and number not in self.refused:
                        header = line.table.headers[line.table.line[side]]
                        self.problems.add(line.place, header, f"{number:.60} is in no point table / 点号不在点表中")
                ends.append(place)
            line.ends = (ends[0], ends[1])
        self._pair()
        if made:
            self.notes.add(
                self.name,
                "",
                f"{len(made)} points are in no point table: made from the lines' ends / "
                f"{len(made)} 个点不在点表中，由线表端点坐标生成",
            )
        if unknown and not has_points:
            self.problems.add(
                self.name, "", "is a line table: import its point table with it / 仅有线表，请与点表一起导入"
            )

    def _pair(self) -> None:
        """Where rows are point and line, every line is told from both ends: make one of the two."""
        first: dict[tuple[tuple[int, int], str], _Line] = {}
        kept = []
        for line in self.lines:
            other = first.get((line.ends[::-1], line.system)) if line.table.kind == "both" else None
            if other is None:
                first.setdefault((line.ends, line.system), line)
                kept.append(line)
            elif "start_depth" in line.values:
                other.values.setdefault("end_depth", line.values["start_depth"])
        self.lines = kept

    def _made(self, line: _Line, side: str, number: str, spot: tuple[float, float]) -> _Point:
        values = {}
        if f"{side}_ground" in line.values:
            values["ground"] = line.values[f"{side}_ground"]
        if f"{side}_lon" in line.values:
            values["is_lonlat"] = 1.0
        return _Point(line.place, number, line.table, *spot, line.code, line.system, values, {}, {}, number)

    # Coordinates

    def _place(self) -> tuple[str, str, float]:
        """Put easting and northing, or longitude and latitude, into the points' `x`, `y`; return the CRS, its height
        datum, and metres in its unit (NaN for degrees)."""
        found = None
        if self.crs:
            try:
                found = systems.parse(self.crs)
            except systems.UnknownCrs as error:
                self.problems.add(self.name, "crs", f"{error} / 未知坐标系")
                return "", "", 1.0
        lonlat = [p for p in self.points if "is_lonlat" in p.values]
        plain = [p for p in self.points if "is_plain" in p.values]
        bare = [p for p in self.points if "is_lonlat" not in p.values and "is_plain" not in p.values]
        if bare:
            x = np.array([(p.x, p.y) for p in bare])
            is_north, is_degrees, why = _axes(x[:, 0], x[:, 1], found)
            if is_north:
                for point in bare:
                    point.x, point.y = point.y, point.x
            (lonlat if is_degrees else plain).extend(bare)
            what = (
                ("latitude, Y longitude", "X 为纬度、Y 为经度")
                if is_degrees and is_north
                else (
                    ("longitude, Y latitude", "X 为经度、Y 为纬度")
                    if is_degrees
                    else ("the northing, Y the easting", "X 为北坐标、Y 为东坐标")
                    if is_north
                    else ("the easting, Y the northing", "X 为东坐标、Y 为北坐标")
                )
            )
            self.notes.add(self.name, "X, Y", f"X is read as {what[0]}: {why} / {what[1]}")
        if lonlat and plain:
            text = "some points have longitude and latitude, others plane coordinates / 经纬度与平面坐标混用"
            self.problems.add(self.name, "crs", text)
            return "", "", 1.0
        self.is_lonlat = bool(lonlat)
        if self.is_lonlat:
            for point in lonlat:
                if abs(point.x) > 180 or abs(point.y) > 90:
                    self.problems.add(
                        point.place, "", f"{point.x:g}, {point.y:g} is no longitude and latitude / 经纬度超出范围"
                    )
            if found is None:
                self.notes.add(self.name, "crs", "longitude and latitude are read as WGS 84 / 经纬度按 WGS 84 读取")
                found = systems.parse(systems.MAP)
            elif not found.is_geographic:
                text = (
                    f"the table has longitude and latitude, which {found.text} has not / 表中为经纬度，与所给坐标系不符"
                )
                self.problems.add(self.name, "crs", text)
        elif plain:
            self._plane(plain, found)
        if found is None:
            return "", "", 1.0
        return found.text, found.height, found.unit_m

    def _plane(self, points: list[_Point], found: systems.Crs | None) -> None:
        if found is not None and found.is_geographic:
            text = f"the table has plane coordinates, {found.text} has degrees / 表中为平面坐标，与所给坐标系不符"
            self.problems.add(self.name, "crs", text)
            return
        middle_x, middle_y = (float(np.median([getattr(p, axis) for p in points])) for axis in ("x", "y"))
        zone = int(middle_x // 1_000_000)
        if 13 <= zone <= 23 or 25 <= zone <= 45:
            epsg = 4513 + zone - 25 if zone >= 25 else 4491 + zone - 13
            if found is None:
                self.notes.add(
                    self.name,
                    "crs",
                    f"eastings bear the zone number {zone}; if the survey is in CGCS2000, say "
                    f"--crs EPSG:{epsg} / 东坐标带有带号 {zone}，若为 CGCS2000 请用 --crs EPSG:{epsg}",
                )
            else:
                easting, meridian = _projection(found.text)
                if easting < 1e6 and abs(meridian - (3 * zone if zone >= 25 else 6 * zone - 3)) < 0.01:
                    for point in points:
                        point.x -= zone * 1_000_000
                    middle_x -= zone * 1_000_000
                    self.notes.add(
                        self.name,
                        "crs",
                        f"the zone number {zone} is taken off the eastings, as {found.text} has "
                        f"none / 东坐标去掉带号 {zone}",
                    )
                elif easting < 1e6:
                    text = f"eastings bear the zone number {zone}, which is not that of {found.text} / 带号与坐标系不符"
                    self.problems.add(self.name, "crs", text)
        unit = found.unit_m if found is not None else 1.0
        for point in points:
            away = math.hypot(point.x - middle_x, point.y - middle_y) * unit
            if away > MAX_SPREAD_M:
                self.problems.add(
                    point.place, "", f"lies {away / 1000:.0f} km from the middle of the survey / 坐标偏离测区过远"
                )
        if found is None and zone < 13:
            self.notes.add(
                self.name,
                "crs",
                "no CRS is named: the model keeps its plane coordinates; place it with --crs / "
                "未指明坐标系，保留平面坐标，请用 --crs 指明",
            )

    # Network

    def _network(self, unit_m: float) -> tuple[list[pipes.Node], list[pipes.Edge], list[Asset]]:
        is_bare = [line.size for line in self.lines if line.size[0] < 0]
        scale = 0.001
        if is_bare and max(-min(size) for size in is_bare) < 10:
            scale = 1.0
            self.notes.add(
                self.name, "diameter", "diameters are all below 10: read as m, not mm / 管径均小于 10，按 m 读取"
            )
        edges: list[pipes.Edge] = []
        assets: list[Asset] = []
        lowest: dict[int, float] = {}
        seen: Counter[str] = Counter()
        odd: Counter[str] = Counter()
        for line in self.lines:
            a, b = line.ends
            one, two = self.points[a], self.points[b]
            spots = np.array([[one.x, one.y, math.nan], [two.x, two.y, math.nan]])
            drawn = pipes.length_m(spots, self.is_lonlat, unit_m)
            if drawn > MAX_LENGTH_M:
                self.problems.add(
                    line.place, "", f"{line.start:.60}-{line.end:.60} is {drawn / 1000:.1f} km long / 管段过长"
                )
                continue
            if drawn > LONG_M:
                self.notes.add(line.place, "", f"is {drawn:.0f} m long / 管段长 {drawn:.0f} m")
            odd["upright"] += drawn < 1e-6
            height, width = (abs(side) * (scale if side < 0 else 1.0) for side in line.size)
            inverts = [self._invert(line, side, self.points[end], height) for side, end in (("start", a), ("end", b))]
            for side, point in (("start", one), ("end", two)):
                apart = point.values.get("ground", math.nan) - line.values.get(f"{side}_depth", math.nan)
                odd["depth"] += abs(apart - line.values.get(f"{side}_height", math.nan)) > 0.5
            said = line.values.get("length", math.nan)
            long = drawn
            if drawn / 2 <= said <= drawn * 2 and said > 0:
                long = said
            elif math.isfinite(said):
                odd["length"] += 1
            flow = line.words.get("flow", "").strip().lower()
            is_one_way = line.system in pipes.ONE_WAY and flow not in BOTH_WAYS
            is_back = flow in BACKWARD
            if is_one_way and not flow and inverts[1] - inverts[0] > RISE_M:
                is_back = True
                odd["rising"] += 1
            if is_back:
                a, b = b, a
                one, two = two, one
                spots = spots[::-1].copy()
                inverts.reverse()
            spots[:, 2] = inverts
            for place, invert in zip((a, b), inverts, strict=True):
                if math.isfinite(invert):
                    lowest[place] = min(invert, lowest.get(place, math.inf))
            local = line.number
            if not local:
                base = f"{self.points[line.ends[0]].local}-{self.points[line.ends[1]].local}"
                seen[base] += 1
                odd["again"] += seen[base] == 2
                local = base if seen[base] == 1 else f"{base}#{seen[base]}"
            system = line.system or one.system or two.system or "other"
            is_open = line.words.get("status", "").lower() not in NOT_OPEN
            edge = pipes.Edge(
                local, "pipe", system, a, b, long, height, inverts[0], inverts[1], int(is_one_way), is_open
            )
            edges.append(edge)
            assets.append(self._line_asset(line, edge, spots, width, is_back))
            for point in (one, two):
                point.system = point.system or system
        for what, text in (
            ("upright", "lines between points at one place / 管段两端点平面位置相同"),
            ("length", "lengths disagree with the points and are left / 长度与坐标不符，按坐标计算"),
            ("rising", "drains are turned to fall, as no flow direction is given / 排水管段按坡度调整了流向"),
            ("depth", "heights and depths disagree by more than 0.5 m / 高程与埋深相差超过 0.5 m"),
            ("again", "lines run between points that another line joins / 重复的管段"),
        ):
            if odd[what]:
                self.notes.add(self.name, "", f"{odd[what]} {text}")
        nodes = []
        for place, point in enumerate(self.points):
            ground = point.values.get("ground", math.nan)
            z = point.values.get("invert", math.nan)
            if math.isnan(z) and point.system in pipes.ONE_WAY and "depth" in point.values:
                z = ground - point.values["depth"]
            if math.isnan(z):
                z = lowest.get(place, math.nan)
            nodes.append(pipes.Node(point.local, _type(point), point.x, point.y, z, ground))
        return nodes, edges, assets

    def _invert(self, line: _Line, side: str, point: _Point, height: float) -> float:
        """Level of the bottom of a line's end: what the header says, else by the system's habit (see above)."""
        values = line.values
        to_top = 0.0 if line.system in pipes.ONE_WAY else (height if math.isfinite(height) else 0.0)
        if f"{side}_invert" in values:
            return values[f"{side}_invert"]
        if f"{side}_top" in values:
            return values[f"{side}_top"] - (height if math.isfinite(height) else 0.0)
        if f"{side}_height" in values:
            return values[f"{side}_height"] - to_top
        if f"{side}_depth" in values:
            return point.values.get("ground", math.nan) - values[f"{side}_depth"] - to_top
        return math.nan

    def _line_asset(self, line: _Line, edge: pipes.Edge, spots: Any, width: float, is_back: bool) -> Asset:
        ours: dict[str, Any] = {"length_m": round(edge.length, 3)}
        sides = ("end", "start") if is_back else ("start", "end")
        for name, value in (
            ("diameter_m", edge.diameter),
            ("width_m", width),
            ("invert_start_m", edge.invert_start),
            ("invert_end_m", edge.invert_end),
            ("depth_start_m", line.values.get(f"{sides[0]}_depth")),
            ("depth_end_m", line.values.get(f"{sides[1]}_depth")),
        ):
            if value is not None and math.isfinite(value):
                ours[name] = round(value, 4)
        for name, key in (("material", "material"), ("owner", "owner"), ("pressure_class", "pressure")):
            if key in line.words:
                ours[name] = line.words[key]
        self._year(line, ours)
        zh, en = _named(line.words.get("name", ""))
        element = f"{line.code}Line" if line.code else line.table.title or "line"
        return Asset(
            edge.local,
            "pipe",
            "link",
            element,
            zh,
            en,
            {**line.attributes, **ours},
            (Geometry.line(spots),),
            code=self._code(line),
            system=edge.system,
        )

    def _point_asset(self, point: _Point, node: pipes.Node) -> Asset:
        ours: dict[str, Any] = {}
        for name, value in (("ground_m", node.ground), ("invert_m", node.z), ("depth_m", point.values.get("depth"))):
            if value is not None and math.isfinite(value):
                ours[name] = round(value, 4)
        for name in ("owner", "material"):
            if name in point.words:
                ours[name] = point.words[name]
        self._year(point, ours)
        zh, en = _named(point.words.get("name", ""))
        element = f"{point.code}Point" if point.code else point.table.title or "point"
        height = node.ground if math.isfinite(node.ground) else node.z
        return Asset(
            point.local,
            node.type,
            "node",
            element,
            zh,
            en,
            {**point.attributes, **ours},
            (Geometry.point(point.x, point.y, height),),
            area=point.words.get("area", "")[:200],
            code=self._code(point),
            system=point.system,
        )

    def _year(self, row: _Point | _Line, ours: dict[str, Any]) -> None:
        if "year" in row.words:
            year = words.year_of(row.words["year"])
            if year is None:
                self.notes.add(row.place, "year", f"{row.words['year']:.40} is no year / 年代无法识别")
            else:
                ours["year"] = year

    def _code(self, row: _Point | _Line) -> str:
        if "code" not in row.words:
            return ""
        code, is_good = words.survey_code(row.words["code"])
        if not is_good:
            self.notes.add(row.place, "code", f"{code:.40} is no 部件码 (16 digits) or 井盖号 (19) / 编码格式不符")
        return code if is_good else ""


POSITIONS: Final = (
    "lon",
    "lat",
    "easting",
    "northing",
    "x",
    "y",
    "start_x",
    "start_y",
    "end_x",
    "end_y",
    "start_lon",
    "start_lat",
    "end_lon",
    "end_lat",
    "length",
)
LINE_NUMBERS: Final = (
    *POSITIONS[6:],
    "start_depth",
    "end_depth",
    "start_height",
    "end_height",
    "start_top",
    "end_top",
    "start_invert",
    "end_invert",
    "start_ground",
    "end_ground",
)


def _spot(line: _Line, side: str) -> tuple[float, float] | None:
    for a, b in (("lon", "lat"), ("x", "y")):
        if f"{side}_{a}" in line.values and f"{side}_{b}" in line.values:
            return line.values[f"{side}_{a}"], line.values[f"{side}_{b}"]
    return None


def _type(point: _Point) -> str:
    """附属物 says more than 特征."""
    for key in ("subsid", "feature"):
        type_ = words.type_of(point.words.get(key, ""))
        if type_ in pipes.NODE_TYPES:
            return type_
    return "junction"


def _named(name: str) -> tuple[str, str]:
    return (name, "") if words.has_chinese(name) else ("", name)


def _projection(text: str) -> tuple[float, float]:
    """False easting (m) and central meridian (°) of a projected CRS; NaN where it has none."""
    crs = CRS.from_user_input(text)
    flat = (crs.sub_crs_list or [crs])[0]
    operation = flat.coordinate_operation
    values = {p.name.lower(): float(p.value) for p in operation.params} if operation is not None else {}
    return values.get("false easting", math.nan), values.get("longitude of natural origin", math.nan)


def _axes(x: Any, y: Any, crs: systems.Crs | None) -> tuple[bool, bool, str]:
    """Whether columns headed X, Y are northing (or latitude) and easting, whether they are degrees, and why."""
    a, b = float(np.median(x)), float(np.median(y))
    wide = [float(np.abs(v).max()) for v in (x, y)]
    if max(wide) <= 180 and (crs is None or crs.is_geographic):
        if 3 <= a <= 54 and 73 <= b <= 136:
            return True, True, "the numbers are a latitude and a longitude of China"
        if wide[1] > 90 >= wide[0]:
            return True, True, "Y is beyond 90"
        if wide[0] > 90 or crs is not None:
            return False, True, "the numbers are degrees"

    def may_be_east(value: float) -> bool:
        return 1e5 <= value <= 9e5 or 13e6 <= value < 46e6

    def may_be_north(value: float) -> bool:
        return 1e6 <= value <= 1e7

    north_first = may_be_north(a) and may_be_east(b)
    east_first = may_be_east(a) and may_be_north(b)
    if north_first != east_first:
        return north_first, False, "the size of the numbers"
    if crs is not None and not crs.is_geographic:
        inside = [_fits(crs, *pair) for pair in ((b, a), (a, b))]
        if inside[0] != inside[1]:
            return inside[0], False, f"only so the points lie where {crs.text} is used"
    return True, False, "the surveyors' habit"


def _fits(crs: systems.Crs, x: float, y: float) -> bool:
    """Whether a place lies in a CRS's area of use."""
    lon, lat = crs.to_map(np.array([x]), np.array([y]))
    area = CRS.from_user_input(crs.text).area_of_use
    if area is None or not np.isfinite(lon[0]):
        return bool(np.isfinite(lon[0]))
    return bool(area.west - 1 <= lon[0] <= area.east + 1 and area.south - 1 <= lat[0] <= area.north + 1)
