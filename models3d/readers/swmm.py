"""SWMM's `.inp`: drains with their cross-sections, pumps, weirs, subcatchments, rain gauges, LID and inlets.

Format: EPA Storm Water Management Model user's manual 5.2, appendix D; full areas of the closed shapes: SWMM reference
manual II, table 5-2 (constants of the engine's cross-section library). Ids in another case are the same, as in SWMM.

`[FILES]` is refused: it makes the engine read and write files of its author's choice. A rain gauge or time series that
names a file is read, the file is noted and never opened. What does not bear on the network (hydrology, quality,
climate) is not judged here: a model may be a good map and still not run.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from models3d.readers import MAX_ELEMENTS, Buffer, Problems, nothing
from models3d.readers.graph import FOOT, Graph, Link, Node, note_all, spelled_crs
from models3d.readers.sections import UNKNOWN, has, head_text, headers, number, rows, setting, value
from twin.city import Asset, CityModel, Geometry, Progress

# m³/h in one unit of flow.
FLOWS: Final = {
    "CFS": 101.9406477312, "GPM": 0.227124707, "MGD": 157.7254907, "CMS": 3600.0, "LPS": 3.6, "MLD": 1000 / 24,
}  # fmt: skip
US: Final = frozenset(("CFS", "GPM", "MGD"))
ACRE: Final = 4046.8564224
HECTARE: Final = 10_000.0
MAX_VALUES: Final = 5_000_000  # in tables that are kept
UPHILL_M: Final = 0.01

_STEMS: Final = {
    "TITLE": "TITLE", "OPTION": "OPTIONS", "FILE": "FILES", "RAINGAGE": "RAINGAGES", "TEMPERATURE": "TEMPERATURE",
    "EVAP": "", "SUBCATCHMENT": "SUBCATCHMENTS", "SUBAREA": "SUBAREAS", "INFIL": "INFILTRATION",
    "AQUIFER": "", "GROUNDWATER": "GROUNDWATER", "SNOWPACK": "", "JUNC": "JUNCTIONS", "OUTFALL": "OUTFALLS",
    "STORAGE": "STORAGE", "DIVIDER": "DIVIDERS", "CONDUIT": "CONDUITS", "PUMP": "PUMPS", "ORIF": "ORIFICES",
    "WEIR": "WEIRS", "OUTLET": "OUTLETS", "XSECT": "XSECTIONS", "TRANSECT": "TRANSECTS", "LOSS": "LOSSES",
    "CONTROL": "CONTROLS", "POLLUT": "", "LANDUSE": "", "BUILDUP": "", "WASHOFF": "", "COVERAGE": "",
    "INFLOW": "INFLOWS", "DWF": "DWF", "PATTERN": "", "RDII": "", "HYDROGRAPH": "", "LOADING": "",
    "TREATMENT": "", "CURVE": "CURVES", "TIMESERIES": "TIMESERIES", "REPORT": "", "COORDINATE": "COORDINATES",
    "VERTICES": "VERTICES", "POLYGON": "POLYGONS", "LABEL": "", "SYMBOL": "SYMBOLS", "BACKDROP": "", "TAG": "TAGS",
    "PROFILE": "", "MAP": "MAP", "LID_CONTROL": "LID_CONTROLS", "LID_USAGE": "LID_USAGE", "GW_FLOW": "", "GWF": "",
    "ADJUST": "", "EVENT": "", "EVEN": "", "STREET": "STREETS", "INLET": "INLETS", "INLET_USAGE": "INLET_USAGE",
    "USERFLAG": "",
}  # fmt: skip
_NAMES: Final = {stem: name or "-" for stem, name in _STEMS.items()}  # "-": known, and nothing here reads it
_OWN: Final = ("CONDUIT", "SUBCATCH", "OUTFALL", "XSECT", "RAINGAGE", "SUBAREA", "INFIL", "EVAP", "DIVIDER", "ORIF",
               "WEIR", "STORAGE", "DWF", "LOSSES", "INFLOW", "POLYGON", "TIMESERIES", "AQUIFER", "LID_")  # fmt: skip
_OPTIONS: Final = ("FLOW_UNITS", "FLOW_ROUTING", "LINK_OFFSETS")

# Of shapes whose size is their height alone: full area over height², greatest width over height.
_BY_HEIGHT: Final = {
    "CIRCULAR": (math.pi / 4, 1.0), "FORCE_MAIN": (math.pi / 4, 1.0), "FILLED_CIRCULAR": (math.pi / 4, 1.0),
    "EGG": (0.5105, 2 / 3), "HORSESHOE": (0.8293, 1.0), "GOTHIC": (0.6554, 0.84), "CATENARY": (0.70277, 0.9),
    "SEMIELLIPTICAL": (0.785, 1.0), "BASKETHANDLE": (0.7862, 0.944), "SEMICIRCULAR": (1.2697, 1.64),
}  # fmt: skip
# Of shapes of a height and a greatest width: full area over their product; None where it is not so simple.
_BY_BOTH: Final[dict[str, float | None]] = {
    "RECT_CLOSED": 1.0, "RECT_OPEN": 1.0, "TRIANGULAR": 0.5, "PARABOLIC": 2 / 3, "HORIZ_ELLIPSE": math.pi / 4,
    "VERT_ELLIPSE": math.pi / 4, "ARCH": None, "POWER": None, "RECT_TRIANGULAR": None, "RECT_ROUND": None,
    "MODBASKETHANDLE": None, "TRAPEZOIDAL": None,
}  # fmt: skip
_OTHER_SHAPES: Final = frozenset(("IRREGULAR", "CUSTOM", "STREET", "DUMMY"))
_NODE_WORDS: Final = frozenset(("NODE", "JUNCTION", "OUTFALL", "STORAGE", "DIVIDER"))
_LINK_WORDS: Final = frozenset(("LINK", "CONDUIT", "PUMP", "ORIFICE", "WEIR", "OUTLET"))
_RULE_WORDS: Final = frozenset(("IF", "AND", "OR", "THEN", "ELSE"))


def recognise(head: bytes, name: str) -> bool:
    text = head_text(head)
    found = headers(text)
    if any(section.startswith(_OWN) for section in found):
        return True
    if "OPTIONS" in found and any(option in text.upper() for option in _OPTIONS):
        return True
    # Nothing but junctions so far: SWMM's have six columns, EPANET's up to four.
    return found[-1:] == ["JUNCTIONS"] and _columns(text.rpartition("]")[2]) > 4


def _columns(text: str) -> int:
    rows_ = [line.partition(";")[0].split() for line in text.splitlines()[1:-1]]
    return max((len(row) for row in rows_), default=0)


def read(data: Buffer, name: str, crs: str = "", progress: Progress = nothing) -> CityModel:
    """The network of an `.inp` file. Raises `InvalidModel` with every mistake.

    Coordinates stay as they are, in `crs`; heights, lengths and sections come in metres, areas in m². `metadata`:
    `title`, `units`, `options`, `counts`, `map`, `controls`, `curves`, `timeseries` (values of each, or its file),
    `transects`, `streets`, `inlets`, `lids`, `files` (what the file names outside of itself, with section and line).
    """
    return _File(name).read(data, crs, progress)


class _File:
    """One file while it is read: rows fill it, `_finish` brings what stands in other sections together."""

    def __init__(self, name: str) -> None:
        self.problems, self.notes = Problems(name), Problems(name)
        self.graph = Graph(self.problems, folded=True)
        self.flow, self.offsets = "CFS", "DEPTH"
        self.title: list[str] = []
        self.options: dict[str, str] = {}
        self.map: dict[str, str] = {}
        self.controls: list[str] = []
        self.curves: dict[str, dict[str, Any]] = {}
        self.series: dict[str, int | str] = {}
        self.transects: dict[str, dict[str, Any]] = {}
        self.streets: dict[str, list[float]] = {}
        self.inlets: dict[str, dict[str, str]] = {}
        self.lids: dict[str, str] = {}
        self.areas: dict[str, tuple[int, str, dict[str, Any]]] = {}
        self.gauges: dict[str, tuple[int, str, dict[str, Any]]] = {}
        self.polygons: dict[str, array[float]] = {}
        self.symbols: dict[str, tuple[float, float]] = {}
        self.sections: dict[str, tuple[int, list[str]]] = {}
        self.later: list[tuple[str, int, list[str]]] = []
        self.named: list[tuple[int, str, str, str]] = []
        self.unknown: dict[str, list[str]] = {}
        self.files: list[dict[str, Any]] = []
        self.values = 0
        self.transect = ""
        self.curve_type: dict[str, str] = {}

    def read(self, data: Buffer, crs: str, progress: Progress) -> CityModel:
        take: dict[str, Callable[[int, list[str], str], None]] = {
            "TITLE": self._title, "OPTIONS": self._option, "FILES": self._files, "RAINGAGES": self._gauge,
            "SUBCATCHMENTS": self._area, "JUNCTIONS": self._junction, "OUTFALLS": self._outfall,
            "STORAGE": self._storage, "DIVIDERS": self._divider, "CONDUITS": self._conduit, "PUMPS": self._pump,
            "ORIFICES": self._orifice, "WEIRS": self._weir, "OUTLETS": self._outlet, "XSECTIONS": self._section,
            "TRANSECTS": self._transect, "STREETS": self._street, "INLETS": self._inlet, "CONTROLS": self._control,
            "CURVES": self._curve, "TIMESERIES": self._timeseries, "POLYGONS": self._polygon,
            "TEMPERATURE": self._climate, "SYMBOLS": self._symbol, "MAP": self._map, "LID_CONTROLS": self._lid,
        }  # fmt: skip
        tell = {"COORDINATES", "VERTICES", "LOSSES", "TAGS", "INFLOWS", "DWF", "SUBAREAS", "INFILTRATION",
                "LID_USAGE", "INLET_USAGE", "GROUNDWATER"}  # fmt: skip
        for section, line, words, comment in rows(data, _NAMES, self.problems, self.notes, progress, True):
            if section in take:
                take[section](line, words, comment)
            elif section in tell and not self._tell(section, line, words, is_last=False):
                self._count(len(words))
                self.later.append((section, line, words))
        self.spelled = spelled_crs(crs, self.problems)
        for section, line, words in self.later:
            self._tell(section, line, words)
        return self._finish(progress)

    # Rows, one method a section.

    def _title(self, line: int, words: list[str], comment: str) -> None:
        if len(self.title) < 100:
            self.title.append(" ".join(words))

    def _option(self, line: int, words: list[str], comment: str) -> None:
        self._count(1)
        option, text = setting(words, frozenset())
        self.options[option[:80]] = text[:200]
        if option == "FLOW_UNITS":
            self.flow = text.upper()
            if self.flow not in FLOWS:
                self.problems.line(line, "FLOW_UNITS", f"is no unit of flow: {text[:40]} / 未知的流量单位")
                self.flow = "CFS"
        elif option == "LINK_OFFSETS":
            self.offsets = text.upper()
            if self.offsets not in ("DEPTH", "ELEVATION"):
                self.problems.line(
                    line, "LINK_OFFSETS", f"is neither DEPTH nor ELEVATION: {text[:40]} / 未知的偏移方式"
                )

    def _files(self, line: int, words: list[str], comment: str) -> None:
        text = f"names a file outside, such are refused: {' '.join(words)[:80]} / 引用外部文件，不接受"
        self.problems.line(line, "[FILES]", text)

    def _map(self, line: int, words: list[str], comment: str) -> None:
        self._count(1)
        self.map[words[0].lower()[:40]] = " ".join(words[1:])[:200]

    def _gauge(self, line: int, words: list[str], comment: str) -> None:
        if not has(words, 5, line, self.problems):
            return
        found: dict[str, Any] = {"description": comment[:1000]} if comment else {}
        found |= {"rain_format": words[1], "interval": words[2], "source": words[4].upper()}
        scf = value(words, 3, "snow catch factor", line, self.problems)
        found["snow_catch_factor"] = scf
        if len(words) > 5:
            found["file" if found["source"] == "FILE" else "timeseries"] = words[5][:200]
        if found["source"] == "FILE":
            self._outside(line, "[RAINGAGES]", words[5] if len(words) > 5 else "")
        self._add(self.gauges, line, words[0], found)

    def _area(self, line: int, words: list[str], comment: str) -> None:
        if not has(words, 7, line, self.problems):
            return
        fields = ("area", "imperviousness", "width", "slope", "curb_length")
        found: dict[str, Any] = {"description": comment[:1000]} if comment else {}
        found |= {"gauge": words[1], "outlet": words[2]}
        for n, field in enumerate(fields, 3):
            found[field] = value(words, n, field, line, self.problems, 0.0)
            if found[field] < 0:
                self.problems.line(line, field, "is negative / 为负")
        if len(words) > 8:
            found["snowpack"] = words[8]
        self.named.append((line, "gauge", "gauge", words[1]))
        self.named.append((line, "outlet", "outlet", words[2]))
        self._add(self.areas, line, words[0], found)

    def _junction(self, line: int, words: list[str], comment: str) -> None:
        if has(words, 2, line, self.problems):
            node = self._node(line, words, "manhole", "JUNCTION", comment)
            self._depths(node, line, words, 2)

    def _outfall(self, line: int, words: list[str], comment: str) -> None:
        if not has(words, 2, line, self.problems):
            return
        node = self._node(line, words, "outfall", "OUTFALL", comment)
        at = 2 if len(words) > 2 and number(words[2]) is None else 3
        kind = words[2].upper() if at == 2 else "FIXED"
        if kind not in ("FREE", "NORMAL", "FIXED", "TIDAL", "TIMESERIES"):
            self.problems.line(
                line, "type", f"is no type of outfall: {words[2][:40] if words[2:] else ''} / 未知的出口类型"
            )
        node.attributes["outfall_type"] = kind
        if kind == "FIXED":
            node.attributes["stage"] = value(words, 3 if at == 2 else 2, "stage", line, self.problems)
        elif kind in ("TIDAL", "TIMESERIES") and len(words) > 3:
            node.attributes["stage_curve"] = words[3]
        rest = words[4:] if kind in ("FIXED", "TIDAL", "TIMESERIES") else words[3:]
        if rest:
            node.attributes["flap_gate"] = rest[0].upper() == "YES"
        if len(rest) > 1:
            node.attributes["route_to"] = rest[1]

    def _storage(self, line: int, words: list[str], comment: str) -> None:
        if not has(words, 5, line, self.problems):
            return
        node = self._node(line, words, "storage", "STORAGE", comment)
        for at, field in ((2, "max_depth"), (3, "init_depth")):
            node.attributes[field] = value(words, at, field, line, self.problems)
        shape = words[4].upper()
        node.attributes["storage_shape"] = shape
        if shape == "TABULAR":
            node.attributes["curve"] = words[5] if len(words) > 5 else ""
            self.named.append((line, "curve", "curve", words[5] if len(words) > 5 else ""))
        else:
            node.attributes["coefficients"] = [
                value(words, n, "shape", line, self.problems) for n in range(5, min(len(words), 8))
            ]

    def _divider(self, line: int, words: list[str], comment: str) -> None:
        if not has(words, 4, line, self.problems):
            return
        node = self._node(line, words, "divider", "DIVIDER", comment)
        kind = words[3].upper()
        node.attributes |= {"diverted_link": words[2], "divider_type": kind}
        used = {"OVERFLOW": 0, "CUTOFF": 1, "TABULAR": 1, "WEIR": 3}.get(kind)
        if used is None:
            self.problems.line(line, "type", f"is no type of divider: {words[3][:40]} / 未知的分流类型")
            return
        if kind == "TABULAR":
            node.attributes["curve"] = words[4] if len(words) > 4 else ""
        elif used:
            node.attributes["parameters"] = [value(words, 4 + n, "parameter", line, self.problems) for n in range(used)]
        self._depths(node, line, words, 4 + used)

    def _conduit(self, line: int, words: list[str], comment: str) -> None:
        if not has(words, 5, line, self.problems):
            return
        link = self._link(line, words, "pipe", "CONDUIT", comment)
        link.length = value(words, 3, "length", line, self.problems)
        if link.length <= 0:
            self.problems.line(line, "length", f"must be above 0, is {words[3][:40]} / 必须大于 0")
        link.attributes["roughness"] = value(words, 4, "roughness", line, self.problems)
        link.invert_start = self._offset(words, 5, "inlet offset", line)
        link.invert_end = self._offset(words, 6, "outlet offset", line)
        for at, field in ((7, "init_flow"), (8, "max_flow")):
            if at < len(words) and (found := value(words, at, field, line, self.problems)):
                link.attributes[field] = found

    def _pump(self, line: int, words: list[str], comment: str) -> None:
        if not has(words, 3, line, self.problems):
            return
        link = self._link(line, words, "pump", "PUMP", comment)
        link.length = 0.0
        if len(words) > 3 and words[3] != "*":
            link.attributes["curve"] = words[3]
            self.named.append((line, "pump curve", "curve", words[3]))
        link.attributes["status"] = status = words[4].upper() if len(words) > 4 else "ON"
        if status not in ("ON", "OFF"):
            self.problems.line(line, "status", f"is neither ON nor OFF: {words[4][:40]} / 状态应为 ON 或 OFF")
        for at, field in ((5, "startup_depth"), (6, "shutoff_depth")):
            if at < len(words):
                link.attributes[field] = value(words, at, field, line, self.problems)

    def _orifice(self, line: int, words: list[str], comment: str) -> None:
        self._regulator(line, words, comment, "orifice", "ORIFICE", ("SIDE", "BOTTOM"))

    def _weir(self, line: int, words: list[str], comment: str) -> None:
        kinds = ("TRANSVERSE", "SIDEFLOW", "V-NOTCH", "TRAPEZOIDAL", "ROADWAY")
        link = self._regulator(line, words, comment, "weir", "WEIR", kinds)
        if link is not None and len(words) > 7:
            link.attributes["end_contractions"] = value(words, 7, "end contractions", line, self.problems)

    def _regulator(
        self, line: int, words: list[str], comment: str, type_: str, element: str, kinds: tuple[str, ...]
    ) -> Link | None:
        if not has(words, 6, line, self.problems):
            return None
        link = self._link(line, words, type_, element, comment)
        link.length = 0.0
        if not words[3].upper().startswith(tuple(k[:4] for k in kinds)):
            self.problems.line(line, "type", f"is no type of {type_}: {words[3][:40]} / 未知的类型")
        link.attributes[f"{type_}_type"] = words[3].upper()
        link.invert_start = self._offset(words, 4, "offset", line)
        link.attributes["coefficient"] = value(words, 5, "coefficient", line, self.problems)
        if len(words) > 6:
            link.attributes["flap_gate"] = words[6].upper() == "YES"
        return link

    def _outlet(self, line: int, words: list[str], comment: str) -> None:
        if not has(words, 6, line, self.problems):
            return
        link = self._link(line, words, "outlet", "OUTLET", comment)
        link.length = 0.0
        link.invert_start = self._offset(words, 3, "offset", line)
        kind = words[4].upper()
        link.attributes["outlet_type"] = kind
        if kind.startswith("TABULAR"):
            link.attributes["curve"] = words[5]
            self.named.append((line, "curve", "curve", words[5]))
        elif kind.startswith("FUNCTIONAL"):
            link.attributes["coefficients"] = [value(words, n, "coefficient", line, self.problems) for n in (5, 6)]
        else:
            self.problems.line(line, "type", f"is no type of outlet: {words[4][:40]} / 未知的类型")
        if len(words) > 6:
            link.attributes["flap_gate"] = words[-1].upper() == "YES"

    def _section(self, line: int, words: list[str], comment: str) -> None:
        if not has(words, 3, line, self.problems):
            return
        shape = words[1].upper()
        if shape not in _BY_HEIGHT and shape not in _BY_BOTH and shape not in _OTHER_SHAPES:
            self.problems.line(line, "shape", f"is no shape: {words[1][:40]} / 未知的断面形状")
            return
        self.named.append((line, "link", "link", words[0]))
        self.sections[self.graph.key(words[0])] = line, words
        if len(self.sections) > MAX_ELEMENTS:
            self._count(MAX_VALUES)

    def _transect(self, line: int, words: list[str], comment: str) -> None:
        word = words[0].upper()
        if word == "X1" and has(words, 3, line, self.problems):
            self._count(8)
            self.transect = self.graph.key(words[1])
            wide = value(words, 8, "width factor", line, self.problems, 0.0)
            self.transects[self.transect] = {
                "name": words[1], "low": math.inf, "high": -math.inf, "left": math.inf, "right": -math.inf,
                "factor": wide or 1.0, "points": 0,
            }  # fmt: skip
        elif word == "GR" and self.transect:
            kept = self.transects[self.transect]
            for n in range(1, len(words) - 1, 2):
                high = value(words, n, "elevation", line, self.problems)
                station = value(words, n + 1, "station", line, self.problems)
                kept["low"], kept["high"] = min(kept["low"], high), max(kept["high"], high)
                kept["left"], kept["right"] = min(kept["left"], station), max(kept["right"], station)
                kept["points"] += 1
        elif word == "GR":
            self.problems.line(line, "GR", "stands before an X1 / 在 X1 之前")
        elif word not in ("NC", "X1"):
            self.problems.line(line, word[:40], "is no part of a transect / 未知的断面数据")

    def _street(self, line: int, words: list[str], comment: str) -> None:
        if has(words, 5, line, self.problems):
            self._count(10)
            self.streets[self.graph.key(words[0])] = [
                value(words, n, "street", line, self.problems, 0.0) for n in range(1, 11)
            ]

    def _inlet(self, line: int, words: list[str], comment: str) -> None:
        if has(words, 2, line, self.problems):
            self.inlets.setdefault(self.graph.key(words[0]), {"name": words[0]})[words[1].lower()[:40]] = " ".join(
                words[2:]
            )[:200]
            self._count(3)

    def _lid(self, line: int, words: list[str], comment: str) -> None:
        if len(words) == 2:
            self.lids[self.graph.key(words[0])] = words[1].upper()[:40]
            self._count(2)

    def _control(self, line: int, words: list[str], comment: str) -> None:
        self.controls.append(" ".join(words))
        self._count(1)
        if len(words) > 2 and words[0].upper() in _RULE_WORDS:
            what = words[1].upper()
            if what in _NODE_WORDS:
                self.named.append((line, "rule", "node", words[2]))
            elif what in _LINK_WORDS:
                self.named.append((line, "rule", "link", words[2]))

    def _curve(self, line: int, words: list[str], comment: str) -> None:
        if len(words) < 2:
            self.problems.line(line, "", "has 1 of at least 2 fields / 字段不足，至少 2 个")
            return
        kept = self.curves.setdefault(self.graph.key(words[0]), {"name": words[0], "type": "", "points": []})
        at = 1
        if number(words[1]) is None:
            kept["type"], at = words[1].upper()[:40], 2
        for n in range(at, len(words) - 1, 2):
            kept["points"].append(
                [value(words, n, "x", line, self.problems), value(words, n + 1, "y", line, self.problems)]
            )
        self._count(len(words))

    def _timeseries(self, line: int, words: list[str], comment: str) -> None:
        if len(words) > 1 and words[1].upper() == "FILE":
            self.series[words[0]] = " ".join(words[2:])[:200]
            self._outside(line, "[TIMESERIES]", " ".join(words[2:]))
            return
        before = self.series.get(words[0], 0)
        if isinstance(before, int):
            self.series[words[0]] = before + len(words) // 2
        if not before:
            self._count(1)

    def _polygon(self, line: int, words: list[str], comment: str) -> None:
        if has(words, 3, line, self.problems):
            kept = self.polygons.setdefault(self.graph.key(words[0]), array("d"))
            self.graph.count_vertex()
            kept.extend((value(words, 1, "x", line, self.problems), value(words, 2, "y", line, self.problems)))

    def _symbol(self, line: int, words: list[str], comment: str) -> None:
        if has(words, 3, line, self.problems):
            self._count(2)
            self.symbols[self.graph.key(words[0])] = (
                value(words, 1, "x", line, self.problems), value(words, 2, "y", line, self.problems)
            )  # fmt: skip

    # What the rows share.

    def _node(self, line: int, words: list[str], type_: str, element: str, comment: str) -> Node:
        z = value(words, 1, "invert", line, self.problems)
        node = Node(words[0], type_, element, line, {"description": comment[:1000]} if comment else {}, z)
        self.graph.add_node(node)
        return node

    def _depths(self, node: Node, line: int, words: list[str], at: int) -> None:
        for n, field in enumerate(("max_depth", "init_depth", "surcharge_depth", "ponded_area"), at):
            if n < len(words):
                node.attributes[field] = found = value(words, n, field, line, self.problems)
                if found < 0:
                    self.problems.line(line, field, "is negative / 为负")

    def _link(self, line: int, words: list[str], type_: str, element: str, comment: str) -> Link:
        attributes: dict[str, Any] = {"description": comment[:1000]} if comment else {}
        link = Link(words[0], type_, element, line, attributes, words[1], words[2], direction=1)
        self.graph.add_link(link)
        return link

    def _offset(self, words: list[str], at: int, field: str, line: int) -> float:
        """An offset as the file has it; NaN for `*`, which says "at the node's invert"."""
        if at < len(words) and words[at] == "*":
            return UNKNOWN
        return value(words, at, field, line, self.problems, UNKNOWN)

    def _add(
        self, kept: dict[str, tuple[int, str, dict[str, Any]]], line: int, id_: str, found: dict[str, Any]
    ) -> None:
        first = kept.get(self.graph.key(id_))
        if first is not None:
            self.problems.line(line, "id", f"{id_[:80]} is that of line {first[0]} / 编号重复")
        kept[self.graph.key(id_)] = line, id_, found
        self._count(1)

    def _climate(self, line: int, words: list[str], comment: str) -> None:
        if len(words) > 1 and words[0].upper() == "FILE":
            self._outside(line, "[TEMPERATURE]", words[1])

    def _outside(self, line: int, section: str, file: str) -> None:
        self._count(1)
        self.files.append({"section": section, "line": line, "file": file[:200]})
        self.notes.line(line, section, f"names a file, which is never opened: {file[:80]} / 引用外部文件，从不打开")

    def _count(self, more: int) -> None:
        self.values += more
        if self.values > MAX_VALUES:
            self.problems.add(self.problems.name, "", f"has over {MAX_VALUES} values in its tables / 数据表过大")
            self.problems.check()

    def _tell(self, section: str, line: int, words: list[str], is_last: bool = True) -> bool:
        """Add to an element what a row of another section says of it. False if the row must wait for the element; at
        last it is noted."""
        needed = {"COORDINATES": 3, "VERTICES": 3, "TAGS": 3, "LID_USAGE": 4, "INLET_USAGE": 3}.get(section, 2)
        if not has(words, needed, line, self.problems):
            return True
        if section == "TAGS":
            return self._tag(words, is_last)
        key = self.graph.key(words[0])
        if section in ("COORDINATES", "INFLOWS", "DWF"):
            node = self.graph.nodes.get(key)
            if node is not None:
                self._tell_node(section, line, words, node)
            return self._told(section, words[0], node is not None, is_last)
        if section in ("VERTICES", "LOSSES", "INLET_USAGE"):
            link = self.graph.links.get(key)
            if link is not None:
                self._tell_link(section, line, words, link)
            return self._told(section, words[0], link is not None, is_last)
        area = self.areas.get(key)
        if area is not None:
            self._tell_area(section, line, words, area[2])
        return self._told(section, words[0], area is not None, is_last)

    def _told(self, section: str, id_: str, is_known: bool, is_last: bool) -> bool:
        if not is_known and is_last:
            self.unknown.setdefault(section, []).append(id_)
        return is_known or is_last

    def _tag(self, words: list[str], is_last: bool) -> bool:
        what, key = words[0].upper(), self.graph.key(words[1])
        found: dict[str, Any] | None = None
        if what.startswith("NODE"):
            found = node.attributes if (node := self.graph.nodes.get(key)) else None
        elif what.startswith("LINK"):
            found = link.attributes if (link := self.graph.links.get(key)) else None
        elif what.startswith("SUBC"):
            found = area[2] if (area := self.areas.get(key)) else None
        if found is not None:
            found["tag"] = " ".join(words[2:])[:200]
        return self._told("TAGS", words[1], found is not None, is_last)

    def _tell_node(self, section: str, line: int, words: list[str], node: Node) -> None:
        if section == "COORDINATES":
            node.x, node.y = value(words, 1, "x", line, self.problems), value(words, 2, "y", line, self.problems)
        elif section == "DWF":
            if words[1].upper() == "FLOW":
                node.attributes["dry_weather_flow"] = value(words, 2, "flow", line, self.problems, 0.0)
        elif words[1].upper() == "FLOW":
            if len(words) > 2 and words[2]:
                node.attributes["inflow_timeseries"] = words[2]
            if len(words) > 6:
                node.attributes["inflow_baseline"] = value(words, 6, "baseline", line, self.problems)

    def _tell_link(self, section: str, line: int, words: list[str], link: Link) -> None:
        if section == "VERTICES":
            x, y = value(words, 1, "x", line, self.problems), value(words, 2, "y", line, self.problems)
            self.graph.add_vertex(link, x, y)
        elif section == "LOSSES":
            for at, field in ((1, "inlet_loss"), (2, "outlet_loss"), (3, "average_loss")):
                if found := value(words, at, field, line, self.problems, 0.0):
                    link.attributes[field] = found
            if len(words) > 4:
                link.attributes["flap_gate"] = words[4].upper() == "YES"
        else:
            self.named.append((line, "inlet", "inlet", words[1]))
            self.named.append((line, "node", "node", words[2]))
            number_ = value(words, 3, "number", line, self.problems, 1.0)
            link.attributes.setdefault("inlets", []).append({"inlet": words[1], "node": words[2], "number": number_})
            self._count(3)

    def _tell_area(self, section: str, line: int, words: list[str], found: dict[str, Any]) -> None:
        if section == "SUBAREAS":
            for at, field in enumerate(("n_impervious", "n_pervious", "s_impervious", "s_pervious", "pct_zero"), 1):
                if at < len(words):
                    found[field] = value(words, at, field, line, self.problems)
            if len(words) > 6:
                found["route_to"] = words[6].upper()
        elif section == "INFILTRATION":
            found["infiltration"] = words[1:8]
        elif section == "GROUNDWATER":
            found["aquifer"], found["groundwater_node"] = words[1], words[2] if len(words) > 2 else ""
        else:
            self.named.append((line, "lid", "lid", words[1]))
            if len(words) > 8 and words[8] != "*":
                self._outside(line, "[LID_USAGE]", words[8])
            found.setdefault("lids", []).append({
                "lid": words[1], "number": value(words, 2, "number", line, self.problems),
                "area": value(words, 3, "area", line, self.problems),
            })  # fmt: skip
            self._count(3)

    # Everything together.

    def _finish(self, progress: Progress) -> CityModel:
        graph, problems, notes = self.graph, self.problems, self.notes
        graph.check_ends(len(self.areas))  # a model of runoff alone has subcatchments only
        outlets = graph.nodes.keys() | self.areas.keys()
        known: dict[str, tuple[Any, str]] = {
            "node": (graph.nodes, "names no node: {} / 节点不存在"),
            "link": (graph.links, "names no link: {} / 管段不存在"),
            "curve": (self.curves, "names no curve: {} / 曲线不存在"),
            "gauge": (self.gauges, "names no rain gauge: {} / 雨量计不存在"),
            "outlet": (outlets, "names neither node nor subcatchment: {} / 出口不存在"),
            "lid": (self.lids, "names no LID control: {} / LID 不存在"),
            "inlet": (self.inlets, "names no inlet: {} / 雨水口不存在"),
        }  # fmt: skip
        for line, field, kind, id_ in self.named:
            if graph.key(id_) not in known[kind][0]:
                problems.line(line, field, known[kind][1].format(id_[:80]))
        metre = FOOT if self.flow in US else 1.0
        for key, (line, words) in self.sections.items():
            if key in graph.links:
                self._measure(line, words, graph.links[key], metre)
        problems.check()
        for section, ids in self.unknown.items():
            note_all(notes, f"[{section}]", "rows for what is not in the network / 所述对象不在管网中", ids)
        self._convert(metre)
        self._judge()
        progress("build", 0.8)
        assets, network = graph.assemble("drainage", notes)
        assets += self._areas()
        progress("build", 1.0)
        return CityModel(
            "swmm", assets, [network], self.spelled, metadata=self._metadata(), notes=notes.told()
        )  # fmt: skip

    def _measure(self, line: int, words: list[str], link: Link, metre: float) -> None:
        """The size of a link's cross-section."""
        shape, problems = words[1].upper(), self.problems
        found = link.attributes
        found["shape"] = shape
        height = width = area = math.nan
        if shape == "IRREGULAR":
            kept = self.transects.get(self.graph.key(words[2]))
            if kept is None:
                problems.line(line, "transect", f"names no transect: {words[2][:80]} / 断面不存在")
                return
            found["transect"] = words[2]
            if kept["points"]:
                height, width = kept["high"] - kept["low"], (kept["right"] - kept["left"]) * kept["factor"]
        elif shape == "STREET":
            street = self.streets.get(self.graph.key(words[2]))
            if street is None:
                problems.line(line, "street", f"names no street: {words[2][:80]} / 街道断面不存在")
                return
            found["street"] = words[2]
            crown, curb, slope, _, gutter, _, sides, back, back_slope, _ = street
            low = gutter / (12 if metre == FOOT else 1000)  # a depression is told in inches or millimetres
            height = (max(crown * slope / 100, curb + back * back_slope / 100)) + low
            width = (crown + back) * (sides or 2.0)
        elif shape != "DUMMY":
            sizes = [value(words, n, f"geom{n - 1}", line, problems, 0.0) for n in range(2, min(len(words), 6)) if not (
                shape == "CUSTOM" and n == 3)]  # fmt: skip
            sizes += [0.0] * (4 - len(sizes))
            height = sizes[0]
            if height <= 0:
                problems.line(line, "geom1", f"must be above 0, is {words[2][:40]} / 必须大于 0")
                return
            width, area = self._width_and_area(line, words, shape, sizes)
        barrels = 1.0
        if link.element == "CONDUIT":
            at = 4 if shape in ("IRREGULAR", "STREET") and len(words) == 5 else 6
            barrels = value(words, at, "barrels", line, problems, 1.0) or 1.0
            if not 1 <= barrels <= 1000:
                problems.line(line, "barrels", f"must be 1 to 1000, is {words[at][:40]} / 应为 1 至 1000")
            found["barrels"] = round(barrels) if barrels == barrels else 1
        link.diameter = height * metre
        for name, size in (("diameter_m", height * metre), ("width_m", width * metre), ("area_m2", area * metre**2)):
            if math.isfinite(size) and size > 0:
                found[name] = size
        if len(words) > 7:
            found["culvert"] = words[7]

    def _width_and_area(self, line: int, words: list[str], shape: str, sizes: list[float]) -> tuple[float, float]:
        """Greatest width, and full area of one barrel; NaN where they are not told so simply."""
        height, width, left, right = sizes
        if shape in _BY_HEIGHT:
            full, wide = _BY_HEIGHT[shape]
            if shape == "FILLED_CIRCULAR" and 0 < width < height:  # filled up to `width`
                angle = 2 * math.acos(1 - 2 * width / height)
                return height, height * height * (full - (angle - math.sin(angle)) / 8)
            return height * wide, full * height * height
        if shape == "CUSTOM":
            curve = self.curves.get(self.graph.key(words[3])) if len(words) > 3 else None
            if curve is None:
                self.problems.line(line, "curve", f"names no curve: {words[3][:80] if words[3:] else ''} / 曲线不存在")
                return math.nan, math.nan
            return height * max((w for _, w in curve["points"]), default=math.nan), math.nan
        if shape == "TRAPEZOIDAL":
            top = width + height * (left + right)
            return top, height * (width + top) / 2
        factor = _BY_BOTH[shape]
        return (width, width * height * factor) if factor and width > 0 else (width or math.nan, math.nan)

    def _convert(self, metre: float) -> None:
        """From the file's units to ours, and from offsets to levels."""
        graph, flow = self.graph, FLOWS[self.flow]
        for node in graph.nodes.values():
            found = node.attributes
            node.z *= metre
            found["invert_m"] = node.z
            depth = found.pop("max_depth", 0.0) * metre
            if depth > 0:
                node.ground = node.z + depth
                found["ground_m"], found["depth_m"] = node.ground, depth
            for field in ("init_depth", "surcharge_depth", "stage"):
                if field in found:
                    found[f"{field}_m"] = found.pop(field) * metre
            if "ponded_area" in found:
                found["ponded_area_m2"] = found.pop("ponded_area") * metre * metre
            for field in ("dry_weather_flow", "inflow_baseline"):
                if field in found:
                    found[f"{field}_m3_h"] = found.pop(field) * flow
        is_level = self.offsets == "ELEVATION"
        for link in graph.links.values():
            found = link.attributes
            start, end = graph.nodes[graph.key(link.start)].z, graph.nodes[graph.key(link.end)].z
            link.length *= metre
            link.invert_start = _level(link.invert_start * metre, start, is_level)
            if link.element == "CONDUIT":
                link.invert_end = _level(link.invert_end * metre, end, is_level)
                found |= {"length_m": link.length, "invert_start_m": link.invert_start, "invert_end_m": link.invert_end}
            elif link.element == "PUMP":
                link.invert_start = math.nan
            else:
                found["crest_m"] = link.invert_start
            for field in ("startup_depth", "shutoff_depth"):
                if field in found:
                    found[f"{field}_m"] = found.pop(field) * metre
            for field in ("init_flow", "max_flow"):
                if field in found:
                    found[f"{field}_m3_h"] = found.pop(field) * flow
        for _, _, found in self.areas.values():
            found["area_m2"] = found.pop("area") * (ACRE if metre == FOOT else HECTARE)
            found["width_m"], found["curb_length_m"] = found.pop("width") * metre, found.pop("curb_length") * metre
            for lid in found.get("lids", ()):
                lid["area_m2"] = lid.pop("area") * metre * metre

    def _judge(self) -> None:
        """What is doubtful, and read all the same."""
        links, notes = self.graph.links, self.notes
        conduits = [k for k in links.values() if k.element == "CONDUIT"]
        note_all(notes, "conduits / 管段", f"run uphill by over {UPHILL_M} m, kept as drawn / 逆坡，按绘制方向保留",
                 [k.id for k in conduits if k.invert_end - k.invert_start > UPHILL_M])  # fmt: skip
        note_all(
            notes,
            "conduits / 管段",
            "have no cross-section / 无断面",
            [k.id for k in conduits if "shape" not in k.attributes],
        )
        note_all(notes, "dividers / 分流节点", "divert to an unknown link / 分流管段不存在", [
            n.id for n in self.graph.nodes.values()
            if n.element == "DIVIDER" and n.attributes["diverted_link"] != "*"
            and self.graph.key(n.attributes["diverted_link"]) not in links
        ])  # fmt: skip

    def _areas(self) -> list[Asset]:
        """Subcatchments with their polygons, and rain gauges."""
        found, without = [], []
        for key, (_, id_, attributes) in self.areas.items():
            ring = _ring(self.polygons.pop(key, None))
            if ring is None:
                without.append(id_)
            shape = () if ring is None else (Geometry("MultiSurface", ring, [[list(range(len(ring)))]]),)
            found.append(
                Asset(id_, "subcatchment", "area", "SUBCATCHMENT", attributes=attributes, geometry=shape,
                      system="drainage")
            )  # fmt: skip
        note_all(self.notes, "subcatchments / 汇水区", "without a polygon / 无边界", without)
        unknown = [key for key in self.polygons if key not in self.graph.nodes]  # storage may have one
        note_all(self.notes, "[POLYGONS]", "are of no subcatchment / 不属于任何汇水区", unknown)
        for key, (_, id_, attributes) in self.gauges.items():
            place = self.symbols.get(key)
            point = () if place is None else (Geometry.point(*place),)
            # Gauges and subcatchments may share ids: gauges are objects, not areas.
            found.append(
                Asset(id_, "gauge", "object", "RAINGAGE", attributes=attributes, geometry=point, system="drainage")
            )
        return found

    def _metadata(self) -> dict[str, Any]:
        nodes = [n.element for n in self.graph.nodes.values()]
        links = [k.element for k in self.graph.links.values()]
        return {
            "title": self.title,
            "units": {"flow": self.flow, "system": "US" if self.flow in US else "SI"},
            "counts": {
                "nodes": {name: nodes.count(e) for name, e in (
                    ("junctions", "JUNCTION"), ("outfalls", "OUTFALL"), ("storage", "STORAGE"), ("dividers", "DIVIDER")
                )},
                "links": {f"{e.lower()}s": links.count(e) for e in ("CONDUIT", "PUMP", "ORIFICE", "WEIR", "OUTLET")},
                "areas": {"subcatchments": len(self.areas), "raingages": len(self.gauges)},
            },
            "options": self.options, "map": self.map, "controls": self.controls,
            "curves": {c["name"]: {"type": c["type"], "points": c["points"]} for c in self.curves.values()},
            "timeseries": self.series, "transects": [t["name"] for t in self.transects.values()],
            "streets": list(self.streets), "inlets": list(self.inlets.values()), "lids": self.lids,
            "files": self.files,
        }  # fmt: skip


def _level(offset: float, invert: float, is_level: bool) -> float:
    """The level of a link's end from its offset (metres); without one it lies at the node's invert."""
    if math.isnan(offset):
        return invert
    return offset if is_level else invert + offset


def _ring(points: array[float] | None) -> Any:
    """A polygon's corners [N, 3] without the first one repeated; None if there are fewer than three."""
    if points is None:
        return None
    corners = np.array(points).reshape(-1, 2)
    if len(corners) > 1 and (corners[0] == corners[-1]).all():
        corners = corners[:-1]
    if len(corners) < 3:
        return None
    return np.column_stack((corners, np.full(len(corners), np.nan)))
