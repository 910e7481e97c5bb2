"""From the nodes and links that a network file names to assets, geometry and the network in columns."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from pyproj.exceptions import CRSError

from models3d import crs as systems
from models3d.readers import MAX_ELEMENTS, MAX_VERTICES, Problems
from twin.city import Asset, Geometry, Network
from twin.model import Floats

FOOT: Final = 0.3048
INCH: Final = 0.0254
NAMED: Final = 5  # ids told in a note that counts more


@dataclass(slots=True)
class Node:
    """A node as its file tells it, in the project's units (m, m³/h); NaN where unknown. `line` is 0 in files that have
    none."""

    id: str
    type: str
    element: str
    line: int
    attributes: dict[str, Any]
    z: float = math.nan
    ground: float = math.nan
    demand: float = 0.0
    x: float = math.nan
    y: float = math.nan


@dataclass(slots=True)
class Link:
    """A link as its file tells it: ends by the ids of nodes; `vertices` x, y, x, y … between them."""

    id: str
    type: str
    element: str
    line: int
    attributes: dict[str, Any]
    start: str
    end: str
    length: float = math.nan
    diameter: float = math.nan
    invert_start: float = math.nan
    invert_end: float = math.nan
    direction: int = 0
    is_open: bool = True
    vertices: array[float] | None = None


class Graph:
    """Nodes and links while they are collected: ids are unique, and not more than can be kept.

    `folded`: ids in another case are the same (SWMM's are, EPANET's are not).
    """

    def __init__(self, problems: Problems, folded: bool = False) -> None:
        self.problems = problems
        self.nodes: dict[str, Node] = {}
        self.links: dict[str, Link] = {}
        self.vertices = 0
        self._is_folded = folded

    def key(self, id_: str) -> str:
        return id_.upper() if self._is_folded else id_

    def add_node(self, node: Node) -> None:
        self._add(self.nodes, node)

    def add_link(self, link: Link) -> None:
        self._add(self.links, link)

    def node(self, id_: str) -> Node | None:
        return self.nodes.get(self.key(id_))

    def link(self, id_: str) -> Link | None:
        return self.links.get(self.key(id_))

    def count_vertex(self) -> None:
        self.vertices += 1
        if self.vertices > MAX_VERTICES:
            self.problems.add(self.problems.name, "", f"has over {MAX_VERTICES} vertices / 折点过多")
            self.problems.check()

    def add_vertex(self, link: Link, x: float, y: float) -> None:
        self.count_vertex()
        if link.vertices is None:
            link.vertices = array("d")
        link.vertices.extend((x, y))

    def tell(self, element: Node | Link, field: str, text: str) -> None:
        """Of a mistake in an element, by its line, or by its id in files that have no lines (line 0)."""
        if element.line:
            self.problems.line(element.line, field, text)
        else:
            self.problems.object(element.id, field, text)

    def check_ends(self, others: int = 0) -> None:
        """Every link's ends are nodes, and two. A file without nodes and without `others` is no network."""
        key, nodes, problems = self.key, self.nodes, self.problems
        for link in self.links.values():
            start, end = key(link.start), key(link.end)
            if start not in nodes:
                self.tell(link, "from", f"names no node: {link.start[:80]} / 起点不存在")
            if end not in nodes:
                self.tell(link, "to", f"names no node: {link.end[:80]} / 终点不存在")
            if start == end:
                self.tell(link, "to", f"joins node {link.end[:80]} to itself / 起点与终点相同")
        if not nodes and not others:
            problems.add(problems.name, "", "holds no node / 没有任何节点")

    def assemble(self, system: str, notes: Problems) -> tuple[list[Asset], Network]:
        """Assets, nodes first, and the network; links have been checked."""
        nodes, links = list(self.nodes.values()), list(self.links.values())
        places = {id_: place for place, id_ in enumerate(self.nodes)}
        start = np.array([places[self.key(link.start)] for link in links], np.int32)
        end = np.array([places[self.key(link.end)] for link in links], np.int32)
        x, y = _column(n.x for n in nodes), _column(n.y for n in nodes)
        z = _column(n.z for n in nodes)
        low_start, low_end = _column(k.invert_start for k in links), _column(k.invert_end for k in links)
        z_start = np.where(np.isnan(low_start), z[start], low_start) if links else low_start
        z_end = np.where(np.isnan(low_end), z[end], low_end) if links else low_end
        points = np.column_stack((x, y, z))
        ends = np.stack(
            (np.column_stack((x[start], y[start], z_start)), np.column_stack((x[end], y[end], z_end))), axis=1
        ) if links else np.empty((0, 2, 3))  # fmt: skip
        placed = ~(np.isnan(x) | np.isnan(y))
        drawn = placed[start] & placed[end] if links else np.empty(0, bool)
        note_all(notes, "nodes / 节点", "without coordinates / 无坐标", [nodes[n].id for n in np.flatnonzero(~placed)])
        assets = [
            Asset(
                node.id, node.type, "node", node.element, attributes=node.attributes, system=system,
                geometry=(Geometry("MultiPoint", points[n : n + 1], [0]),) if is_placed else (),
            )
            for n, (node, is_placed) in enumerate(zip(nodes, placed.tolist(), strict=True))
        ]  # fmt: skip
        for n, (link, is_drawn) in enumerate(zip(links, drawn.tolist(), strict=True)):
            shape: tuple[Geometry, ...] = ()
            if is_drawn and link.vertices is None:
                shape = (Geometry("MultiLineString", ends[n], [[0, 1]]),)
            elif is_drawn:
                shape = (Geometry.line(_bent(ends[n], np.array(link.vertices).reshape(-1, 2))),)
            assets.append(
                Asset(link.id, link.type, "link", link.element, attributes=link.attributes, geometry=shape,
                      system=system)
            )  # fmt: skip
        network = Network(
            system, [n.id for n in nodes], [n.type for n in nodes], x, y, z,
            _column(n.ground for n in nodes), _column(n.demand for n in nodes),
            [k.id for k in links], [k.type for k in links], start, end,
            _column(k.length for k in links), _column(k.diameter for k in links), low_start, low_end,
            np.array([k.direction for k in links], np.int8), np.array([k.is_open for k in links], bool),
        )  # fmt: skip
        return assets, network

    def _add(self, kept: dict[str, Any], new: Node | Link) -> None:
        if not new.id:
            self.tell(new, "id", "is empty / 编号为空")
        key = self.key(new.id)
        first = kept.get(key)
        if first is not None:
            where = f" in line {first.line}" if first.line else ""
            self.tell(new, "id", f"{new.id[:80]} is that of the {first.element}{where} / 编号重复")
            return
        kept[key] = new
        if len(self.nodes) + len(self.links) > MAX_ELEMENTS:
            self.problems.add(self.problems.name, "", f"has over {MAX_ELEMENTS} elements / 元素过多")
            self.problems.check()


def note_all(notes: Problems, kind: str, what: str, ids: Sequence[str]) -> None:
    """One note for what is doubtful of many: how many, and the first few by id."""
    if ids:
        some = ", ".join(id_[:40] for id_ in ids[:NAMED]) + (", …" if len(ids) > NAMED else "")
        notes.add(notes.name, kind, f"{len(ids)} {what}: {some}")


def spelled_crs(text: str, problems: Problems) -> str:
    """The coordinate reference system as the user names it, in our spelling; a problem if there is none such."""
    if not text:
        return ""
    try:
        return systems.parse(text).text
    except (systems.UnknownCrs, CRSError) as error:
        problems.add(problems.name, "crs", f"{error} / 未知的坐标系")
        return ""


def _column(values: Iterable[float]) -> Floats:
    return np.fromiter(values, np.float64)


def _bent(ends: Floats, between: Floats) -> Floats:
    """The line through vertices; its height runs evenly from end to end."""
    flat = np.vstack((ends[:1, :2], between, ends[1:, :2]))
    along = np.concatenate(([0.0], np.cumsum(np.hypot(*np.diff(flat, axis=0).T))))
    share = along / along[-1] if along[-1] > 0 else along
    return np.column_stack((flat, ends[0, 2] + share * (ends[1, 2] - ends[0, 2])))
