"""EPANET's `.inp`: supply networks with their demands, patterns, curves and controls.

Format: EPANET 2.2 and 2.3 user manuals, appendix "Command line EPANET", sections of the input file. What EPANET itself
refuses in the network (unknown ends, patterns and curves, lengths of zero) is refused here. Names of sections may be
shortened as EPANET allows. Nothing that the file names outside of itself is opened.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from models3d.readers import Buffer, Problems, nothing
from models3d.readers.graph import FOOT, INCH, Graph, Link, Node, note_all, spelled_crs
from models3d.readers.sections import has, head_text, headers, number, rows, setting, value
from twin.city import CityModel, Progress

# m³/h in one unit of flow.
FLOWS: Final = {
    "CFS": 101.9406477312, "GPM": 0.227124707, "MGD": 157.7254907, "IMGD": 189.420416667, "AFD": 51.3950765647,
    "LPS": 3.6, "LPM": 0.06, "MLD": 1000 / 24, "CMH": 1.0, "CMD": 1 / 24, "CMS": 3600.0,
}  # fmt: skip
US: Final = frozenset(("CFS", "GPM", "MGD", "IMGD", "AFD"))
CUBIC_FOOT: Final = FOOT**3
HORSEPOWER_KW: Final = 0.745699872
VALVES: Final = frozenset(("PRV", "PSV", "PBV", "FCV", "TCV", "GPV", "PCV"))
ONE_WAY_VALVES: Final = frozenset(("PRV", "PSV"))
MAX_VALUES: Final = 5_000_000  # in patterns and curves

# How EPANET tells sections apart: by how their names begin.
_STEMS: Final = {
    "TITL": "TITLE", "JUNC": "JUNCTIONS", "RESE": "RESERVOIRS", "TANK": "TANKS", "PIPE": "PIPES", "PUMP": "PUMPS",
    "VALV": "VALVES", "CONT": "CONTROLS", "RULE": "RULES", "DEMA": "DEMANDS", "SOUR": "SOURCES", "EMIT": "EMITTERS",
    "PATT": "PATTERNS", "CURV": "CURVES", "QUAL": "QUALITY", "STAT": "STATUS", "ROUG": "ROUGHNESS", "ENER": "ENERGY",
    "REAC": "REACTIONS", "MIXI": "MIXING", "REPO": "REPORT", "TIME": "TIMES", "OPTI": "OPTIONS",
    "COOR": "COORDINATES", "VERT": "VERTICES", "LABE": "LABELS", "BACK": "BACKDROP", "TAGS": "TAGS", "LEAK": "LEAKAGE",
    "END": "END",
}  # fmt: skip
_TWO_WORDS: Final = frozenset((
    "SPECIFIC GRAVITY", "DEMAND MULTIPLIER", "EMITTER EXPONENT", "EMITTER BACKFLOW", "DEMAND MODEL",
    "MINIMUM PRESSURE", "REQUIRED PRESSURE", "PRESSURE EXPONENT", "FLOW CHANGE", "HEAD ERROR", "QUALITY TIMESTEP",
    "HYDRAULIC TIMESTEP", "RULE TIMESTEP", "PATTERN TIMESTEP", "PATTERN START", "REPORT TIMESTEP", "REPORT START",
    "START CLOCKTIME", "GLOBAL EFFICIENCY", "GLOBAL EFFIC", "GLOBAL PRICE", "GLOBAL PATTERN", "DEMAND CHARGE",
))  # fmt: skip
_NODE_WORDS: Final = ("NODE", "JUNC", "RESE", "TANK")
_LINK_WORDS: Final = ("LINK", "PIPE", "PUMP", "VALV")
# Sections of SWMM's file, which has the same name and looks alike.
_SWMM: Final = ("CONDUIT", "SUBCATCH", "OUTFALL", "XSECT", "RAINGAGE", "SUBAREA", "INFIL", "EVAP", "DIVIDER", "ORIFICE",
                "WEIR", "STORAGE", "DWF", "LOSSES", "INFLOW", "POLYGON", "TIMESERIES")  # fmt: skip
_OWN: Final = ("JUNC", "RESE", "TANK", "PIPE", "VALV", "DEMA", "EMIT")


def recognise(head: bytes, name: str) -> bool:
    found = headers(head_text(head))
    is_swmm = any(section.startswith(_SWMM) for section in found)
    return not is_swmm and any(section.startswith(_OWN) for section in found)


def read(data: Buffer, name: str, crs: str = "", progress: Progress = nothing) -> CityModel:
    """The network of an `.inp` file. Raises `InvalidModel` with every mistake.

    Coordinates stay as they are, in `crs`; heights, lengths and diameters come in metres, demands in m³/h before the
    file's demand multiplier and patterns. `metadata`: `title`, `units`, `options`, `times`, `counts`, `patterns`,
    `curves`, `controls`, `rules`, `energy`, `reactions`, `labels`, `backdrop`.
    """
    return _File(name).read(data, crs, progress)


class _File:
    """One file while it is read: rows fill it, `_finish` brings what stands in other sections together."""

    def __init__(self, name: str) -> None:
        self.problems, self.notes = Problems(name), Problems(name)
        self.graph = Graph(self.problems)
        self.flow, self.headloss = "GPM", "H-W"
        self.title: list[str] = []
        self.options: dict[str, str] = {}
        self.texts: dict[str, list[str]] = {"CONTROLS": [], "RULES": [], "ENERGY": [], "REACTIONS": []}
        self.times: dict[str, str] = {}
        self.backdrop: dict[str, str] = {}
        self.labels: list[dict[str, Any]] = []
        self.patterns: dict[str, list[float]] = {}
        self.curves: dict[str, list[tuple[float, float]]] = {}
        self.values = 0
        self.demands: dict[str, list[tuple[float, str, str]]] = {}
        self.statuses: list[tuple[int, str, str]] = []
        # What names something of another section: where, in which field, of which kind, and its id.
        self.named: list[tuple[int, str, str, str]] = []
        self.unknown: dict[str, list[str]] = {}
        self.rule = ""
        self.multiply = 1.0

    def read(self, data: Buffer, crs: str, progress: Progress) -> CityModel:
        take: dict[str, Callable[[int, list[str], str], None]] = {
            "TITLE": self._title, "JUNCTIONS": self._junction, "RESERVOIRS": self._reservoir, "TANKS": self._tank,
            "PIPES": self._pipe, "PUMPS": self._pump, "VALVES": self._valve, "DEMANDS": self._demand,
            "STATUS": self._status, "PATTERNS": self._pattern, "CURVES": self._curve, "OPTIONS": self._option,
            "TIMES": self._time, "CONTROLS": self._control, "RULES": self._rule, "LABELS": self._label,
            "BACKDROP": self._backdrop, "ENERGY": lambda n, w, c: self._text("ENERGY", w),
            "REACTIONS": lambda n, w, c: self._text("REACTIONS", w),
        }  # fmt: skip
        # What is told of nodes and links that may come later in the file.
        later: dict[str, list[tuple[int, list[str]]]] = {
            s: [] for s in ("COORDINATES", "VERTICES", "EMITTERS", "TAGS", "QUALITY", "SOURCES", "MIXING", "LEAKAGE")
        }
        for section, line, words, comment in rows(data, _STEMS, self.problems, self.notes, progress):
            if section in take:
                take[section](line, words, comment)
            elif section in later:
                self._later(section, line, words, later[section])
            elif section == "END":
                break
        self.spelled = spelled_crs(crs, self.problems)
        for section, kept in later.items():
            for line, words in kept:
                self._tell(section, line, words)
        return self._finish(progress)

    # Rows, one method a section.

    def _title(self, line: int, words: list[str], comment: str) -> None:
        if len(self.title) < 100:
            self.title.append(" ".join(words))

    def _junction(self, line: int, words: list[str], comment: str) -> None:
        if not has(words, 1, line, self.problems):
            return
        z = value(words, 1, "elevation", line, self.problems, 0.0)
        demand = value(words, 2, "demand", line, self.problems, 0.0)
        node = self._node(line, words[0], "junction", "JUNCTION", z, comment)
        node.demand = demand
        if len(words) > 3 and words[3] != "*":
            node.attributes["pattern"] = words[3]
            self.named.append((line, "pattern", "pattern", words[3]))

    def _reservoir(self, line: int, words: list[str], comment: str) -> None:
        if not has(words, 2, line, self.problems):
            return
        z = value(words, 1, "head", line, self.problems)
        node = self._node(line, words[0], "reservoir", "RESERVOIR", z, comment)
        if len(words) > 2 and words[2] != "*":
            node.attributes["pattern"] = words[2]
            self.named.append((line, "pattern", "pattern", words[2]))

    def _tank(self, line: int, words: list[str], comment: str) -> None:
        if len(words) <= 3:  # as EPANET: a tank without levels is a reservoir
            self._reservoir(line, words, comment)
            return
        if not has(words, 6, line, self.problems):
            return
        fields = ("elevation", "init_level", "min_level", "max_level", "diameter", "min_volume")
        found = {f: value(words, n, f, line, self.problems, 0.0) for n, f in enumerate(fields, 1)}
        node = self._node(line, words[0], "tank", "TANK", found.pop("elevation"), comment)
        if found["min_level"] > found["init_level"] or found["init_level"] > found["max_level"]:
            self.problems.line(line, "init_level", "is not within the tank's levels / 初始水位不在最低、最高水位之间")
        if found["diameter"] < 0:
            self.problems.line(line, "diameter", "is negative / 为负")
        node.attributes.update(found)  # in the file's units until the end
        if len(words) > 7 and words[7] != "*":
            node.attributes["volume_curve"] = words[7]
            self.named.append((line, "volume curve", "curve", words[7]))
        if len(words) > 8:
            node.attributes["overflow"] = words[8].upper() in ("YES", "TRUE")

    def _pipe(self, line: int, words: list[str], comment: str) -> None:
        if not has(words, 6, line, self.problems):
            return
        problems = self.problems
        length = self._positive(words, 3, "length", line)
        diameter = self._positive(words, 4, "diameter", line)
        roughness = self._positive(words, 5, "roughness", line)
        loss, status = 0.0, "OPEN"
        for n in (6, 7):
            if n < len(words) and (word := words[n].upper()) in ("OPEN", "CLOSED", "CV"):
                status = word
            elif n < len(words):
                loss = value(words, n, "minor loss", line, problems)
        link = self._link(line, words, "pipe", "PIPE", comment, length, diameter)
        link.attributes |= {"roughness": roughness, "minor_loss": loss, "status": status}
        link.is_open, link.direction = status != "CLOSED", int(status == "CV")

    def _pump(self, line: int, words: list[str], comment: str) -> None:
        if not has(words, 3, line, self.problems):
            return
        link = self._link(line, words, "pump", "PUMP", comment)
        link.direction, link.length = 1, 0.0
        link.attributes["status"] = "OPEN"
        if len(words) > 3 and number(words[3]) is not None:  # EPANET 1: the power, or points of the curve
            points = [value(words, n, "curve", line, self.problems) for n in range(3, len(words))]
            link.attributes.update({"power": points[0]} if len(points) == 1 else {"points": points})
            return
        for n in range(3, len(words), 2):
            word = words[n].upper()
            if n + 1 >= len(words):
                self.problems.line(line, word[:40], "has no value / 缺少数值")
            elif word.startswith("HEAD"):
                link.attributes["curve"] = words[n + 1]
                self.named.append((line, "head curve", "curve", words[n + 1]))
            elif word.startswith("PATT"):
                link.attributes["pattern"] = words[n + 1]
                self.named.append((line, "pattern", "pattern", words[n + 1]))
            elif word.startswith("POWE"):
                link.attributes["power"] = value(words, n + 1, "power", line, self.problems)
            elif word.startswith("SPEE"):
                link.attributes["speed"] = speed = value(words, n + 1, "speed", line, self.problems)
                link.is_open = speed != 0
            else:
                self.problems.line(line, word[:40], "is no parameter of a pump / 不是水泵参数")

    def _valve(self, line: int, words: list[str], comment: str) -> None:
        if not has(words, 5, line, self.problems):
            return
        diameter = self._positive(words, 3, "diameter", line)
        kind = words[4].upper()
        if kind not in VALVES:
            self.problems.line(line, "type", f"is no type of valve: {words[4][:40]} / 未知的阀门类型")
        link = self._link(line, words, "valve", "VALVE", comment, 0.0, diameter)
        link.attributes |= {"valve_type": kind, "status": "ACTIVE"}
        link.direction = int(kind in ONE_WAY_VALVES)
        if kind == "GPV" and len(words) > 5:
            link.attributes["curve"] = words[5]
            self.named.append((line, "curve", "curve", words[5]))
        else:
            link.attributes["setting"] = value(words, 5, "setting", line, self.problems, 0.0)
        if len(words) > 6:
            link.attributes["minor_loss"] = value(words, 6, "minor loss", line, self.problems)
        if kind == "PCV" and len(words) > 7 and words[7] != "*":
            link.attributes["curve"] = words[7]
            self.named.append((line, "curve", "curve", words[7]))

    def _demand(self, line: int, words: list[str], comment: str) -> None:
        if not has(words, 2, line, self.problems):
            return
        amount = value(words, 1, "demand", line, self.problems)
        if words[0].upper() == "MULTIPLY":
            self.multiply = amount
            return
        pattern = words[2] if len(words) > 2 and words[2] != "*" else ""
        if pattern:
            self.named.append((line, "pattern", "pattern", pattern))
        self.named.append((line, "junction", "node", words[0]))
        self.demands.setdefault(words[0], []).append((amount, pattern, comment[:200]))
        self._count(3)

    def _status(self, line: int, words: list[str], comment: str) -> None:
        if not has(words, 2, line, self.problems):
            return
        if len(words) > 2:
            self.notes.line(line, "[STATUS]", "is for a range of ids, left out / 编号范围，已略过")
            return
        self.named.append((line, "link", "link", words[0]))
        self.statuses.append((line, words[0], words[1]))
        self._count(3)

    def _pattern(self, line: int, words: list[str], comment: str) -> None:
        kept = self.patterns.setdefault(words[0], [])
        kept += [value(words, n, "multiplier", line, self.problems) for n in range(1, len(words))]
        self._count(len(words))

    def _curve(self, line: int, words: list[str], comment: str) -> None:
        if not has(words, 3, line, self.problems):
            return
        kept = self.curves.setdefault(words[0], [])
        for n in range(1, len(words) - 1, 2):
            kept.append((value(words, n, "x", line, self.problems), value(words, n + 1, "y", line, self.problems)))
        self._count(len(words))

    def _option(self, line: int, words: list[str], comment: str) -> None:
        self._count(1)
        option, text = setting(words, _TWO_WORDS)
        self.options[option[:80]] = text[:200]
        if option == "UNITS":
            self.flow = {"SI": "LPS"}.get(text.upper(), text.upper())
            if self.flow not in FLOWS:
                self.problems.line(line, "units", f"is no unit of flow: {text[:40]} / 未知的流量单位")
                self.flow = "GPM"
        elif option == "HEADLOSS":
            self.headloss = text.upper()
            if self.headloss not in ("H-W", "D-W", "C-M"):
                self.problems.line(line, "headloss", f"is no formula: {text[:40]} / 未知的水头损失公式")
        elif option == "HYDRAULICS":
            self.problems.line(line, "hydraulics", "names a file outside; such are refused / 引用外部文件，不接受")

    def _time(self, line: int, words: list[str], comment: str) -> None:
        self._count(1)
        option, text = setting(words, _TWO_WORDS)
        self.times[option[:80]] = text[:200]

    def _backdrop(self, line: int, words: list[str], comment: str) -> None:
        self._count(1)
        self.backdrop[words[0].upper()[:80]] = " ".join(words[1:])[:200]

    def _text(self, section: str, words: list[str]) -> None:
        self.texts[section].append(" ".join(words))
        self._count(1)

    def _control(self, line: int, words: list[str], comment: str) -> None:
        self._text("CONTROLS", words)
        if len(words) < 6:
            self.problems.line(line, "", "is no whole control / 控制语句不完整")
            return
        self.named.append((line, "link", "link", words[1]))
        if words[4].upper() not in ("TIME", "CLOCKTIME"):
            self.named.append((line, "node", "node", words[5] if len(words) > 5 else ""))

    def _rule(self, line: int, words: list[str], comment: str) -> None:
        self._text("RULES", words)
        if len(words) > 2 and words[0].upper() in ("IF", "AND", "OR", "THEN", "ELSE"):
            what = words[1].upper()
            if what.startswith(_NODE_WORDS):
                self.named.append((line, "node", "node", words[2]))
            elif what.startswith(_LINK_WORDS):
                self.named.append((line, "link", "link", words[2]))

    def _label(self, line: int, words: list[str], comment: str) -> None:
        if has(words, 3, line, self.problems):
            x, y = (value(words, n, f, line, self.problems) for n, f in enumerate("xy"))
            self.labels.append({"x": x, "y": y, "text": words[2][:200]} | ({"node": words[3]} if words[3:] else {}))
            self._count(3)

    # What the rows share.

    def _node(self, line: int, id_: str, type_: str, element: str, z: float, comment: str) -> Node:
        node = Node(id_, type_, element, line, {"description": comment[:1000]} if comment else {}, z)
        self.graph.add_node(node)
        return node

    def _link(
        self, line: int, words: list[str], type_: str, element: str, comment: str,
        length: float = math.nan, diameter: float = math.nan,
    ) -> Link:  # fmt: skip
        attributes: dict[str, Any] = {"description": comment[:1000]} if comment else {}
        link = Link(words[0], type_, element, line, attributes, words[1], words[2], length, diameter)
        self.graph.add_link(link)
        return link

    def _positive(self, words: list[str], at: int, field: str, line: int) -> float:
        found = value(words, at, field, line, self.problems)
        if found <= 0:
            self.problems.line(line, field, f"must be above 0, is {words[at][:40]} / 必须大于 0")
        return found

    def _count(self, more: int) -> None:
        self.values += more
        if self.values > MAX_VALUES:
            self.problems.add(
                self.problems.name, "", f"has over {MAX_VALUES} values in its tables / 曲线、模式数据过多"
            )
            self.problems.check()

    def _later(self, section: str, line: int, words: list[str], kept: list[tuple[int, list[str]]]) -> None:
        """Tell it at once if what it is told of is known (the usual order), so that little is kept."""
        if not self._tell(section, line, words, is_last=False):
            self._count(len(words))
            kept.append((line, words))

    def _tell(self, section: str, line: int, words: list[str], is_last: bool = True) -> bool:
        """Add to a node or link what a row says of it. False if the row must wait for it; at last it is noted."""
        problems = self.problems
        if section == "TAGS":
            if not has(words, 3, line, problems):
                return True
            is_link, id_ = words[0].upper().startswith("LINK"), words[1]
        else:
            if not has(words, 3 if section in ("COORDINATES", "VERTICES") else 2, line, problems):
                return True
            is_link, id_ = section in ("VERTICES", "LEAKAGE"), words[0]
        told = self.graph.links.get(id_) if is_link else self.graph.nodes.get(id_)
        if told is None:
            if is_last and (section != "QUALITY" or len(words) == 2):  # else for a range of ids
                self.unknown.setdefault(section, []).append(id_)
            return is_last
        if section == "COORDINATES" and isinstance(told, Node):
            told.x, told.y = value(words, 1, "x", line, problems), value(words, 2, "y", line, problems)
        elif section == "VERTICES" and isinstance(told, Link):
            x, y = value(words, 1, "x", line, problems), value(words, 2, "y", line, problems)
            self.graph.add_vertex(told, x, y)
        elif section == "EMITTERS":
            told.attributes["emitter"] = value(words, 1, "coefficient", line, problems)
        elif section == "QUALITY":
            told.attributes["initial_quality"] = value(words, 1, "quality", line, problems)
        elif section == "TAGS":
            told.attributes["tag"] = " ".join(words[2:])[:200]
        else:
            told.attributes[section.lower().removesuffix("s")] = " ".join(words[1:])[:200]
        return True

    def _finish(self, progress: Progress) -> CityModel:
        graph, problems, notes = self.graph, self.problems, self.notes
        graph.check_ends()
        known: dict[str, tuple[Any, str]] = {
            "node": (graph.nodes, "names no node: {} / 节点不存在"),
            "link": (graph.links, "names no link: {} / 管段不存在"),
            "pattern": (self.patterns, "names no pattern: {} / 模式不存在"),
            "curve": (self.curves, "names no curve: {} / 曲线不存在"),
        }  # fmt: skip
        for line, field, kind, id_ in self.named:
            if id_ not in known[kind][0]:
                problems.line(line, field, known[kind][1].format(id_[:80]))
        self._set_statuses()
        problems.check()
        for section, ids in self.unknown.items():
            note_all(notes, f"[{section}]", "rows for what is not in the network / 所述对象不在管网中", ids)
        self._convert()
        progress("build", 0.8)
        assets, network = graph.assemble("water", notes)
        progress("build", 1.0)
        return CityModel(
            "epanet", assets, [network], self.spelled, metadata=self._metadata(), notes=notes.told()
        )  # fmt: skip

    def _set_statuses(self) -> None:
        for line, id_, word in self.statuses:
            link = self.graph.links.get(id_)
            if link is None:
                continue
            status = word.upper()
            if link.attributes["status"] == "CV":
                self.notes.line(line, "[STATUS]", "is for a check valve, which has none / 止回阀不设状态")
            elif status in ("OPEN", "CLOSED", "ACTIVE"):
                link.attributes["status"], link.is_open = status, status != "CLOSED"
            elif (found := number(word)) is None:
                self.problems.line(line, "status", f"is no status: {word[:40]} / 未知的状态")
            elif link.element == "PUMP":
                link.attributes["speed"], link.is_open = found, found != 0
                link.attributes["status"] = "OPEN" if found else "CLOSED"
            elif link.element == "VALVE":
                link.attributes["setting"], link.attributes["status"], link.is_open = found, "ACTIVE", True

    def _convert(self) -> None:
        """From the file's units to ours."""
        is_us = self.flow in US
        metre, width = (FOOT, INCH) if is_us else (1.0, 0.001)
        flow = FLOWS[self.flow]
        for node in self.graph.nodes.values():
            attributes = node.attributes
            node.z *= metre
            attributes["head_m" if node.element == "RESERVOIR" else "elevation_m"] = node.z
            if node.element == "TANK":
                for level in ("init_level", "min_level", "max_level", "diameter"):
                    attributes[f"{level}_m"] = attributes.pop(level) * metre
                attributes["min_volume_m3"] = attributes.pop("min_volume") * (CUBIC_FOOT if is_us else 1.0)
            elif node.element == "JUNCTION":
                told = self.demands.get(node.id)
                if told is not None:
                    attributes.pop("pattern", None)
                    attributes["demands"] = [
                        {"demand_m3_h": a * flow * self.multiply, "pattern": p} | ({"category": c} if c else {})
                        for a, p, c in told
                    ]
                    node.demand = sum(a for a, _, _ in told)
                node.demand *= flow * self.multiply
                attributes["demand_m3_h"] = node.demand
        for link in self.graph.links.values():
            attributes = link.attributes
            link.length *= metre
            link.diameter *= width
            if link.element == "PIPE":
                attributes["length_m"] = link.length
                if self.headloss == "D-W":
                    attributes["roughness_mm"] = attributes["roughness"] * (FOOT if is_us else 1.0)
            elif link.element == "PUMP" and "power" in attributes:
                attributes["power_kw"] = attributes.pop("power") * (HORSEPOWER_KW if is_us else 1.0)
            if link.element != "PUMP":
                attributes["diameter_m"] = link.diameter

    def _metadata(self) -> dict[str, Any]:
        elements = [n.element for n in self.graph.nodes.values()], [k.element for k in self.graph.links.values()]
        found: dict[str, Any] = {
            "title": self.title,
            "units": {"flow": self.flow, "system": "US" if self.flow in US else "SI"},
            "counts": {
                "nodes": {f"{e.lower()}s": elements[0].count(e) for e in ("JUNCTION", "RESERVOIR", "TANK")},
                "links": {f"{e.lower()}s": elements[1].count(e) for e in ("PIPE", "PUMP", "VALVE")},
            },
            "options": self.options, "times": self.times, "patterns": self.patterns, "curves": self.curves,
            "labels": self.labels, "backdrop": self.backdrop,
        }  # fmt: skip
        return found | {section.lower(): texts for section, texts in self.texts.items()}
