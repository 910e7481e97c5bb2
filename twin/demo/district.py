"""The made-up district (示范新区) as models of a city: streets at the scale of a real Chinese grid, buildings, two
bridges, an underpass under a street and one under a railway, and networks of water, drainage and gas that are connected
and carry what they are sized for. The simulated devices of `twin.demo.city` stand on its assets, by name.

Metres east and north of its south-western crossing; the river lies south. Everything follows from the numbers here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import numpy as np

from models3d import crs as coordinates
from twin.city import Asset, CityModel, Geometry, Network
from twin.model import Floats

CRS: Final = "EPSG:4548"  # CGCS2000, 3-degree zone of 117° E
EAST, NORTH = 527_654.0, 3_518_881.0  # of the south-western crossing, near 117.292° E, 31.792° N
BLOCK: Final = 250.0  # between streets
COLUMNS, ROWS = 7, 6  # of streets, north-south and east-west
WIDTH, HEIGHT = BLOCK * (COLUMNS - 1), BLOCK * (ROWS - 1)
RAILWAY_Y: Final = 1125.0
NORTH_SOUTH: Final = ("金寨路", "桐城路", "徽州路", "马鞍山路", "宁国路", "当涂路", "铜陵路")
EAST_WEST: Final = ("滨河路", "望江路", "太湖路", "长江路", "寿春路", "凤阳路")
MODELS: Final = ("示范新区", "示范新区供水", "示范新区排水", "示范新区燃气")

# Depth of cover above the crown (m), so that what crosses does not touch: gas, water, rain, sewage downwards.
GAS_COVER, WATER_COVER, RAIN_COVER, SEWAGE_COVER = 0.7, 1.17, 2.0, 4.2
STEP: Final = 50.0  # between manholes
DIAMETERS: Final = (0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.4, 1.5, 1.6, 1.8, 2.0, 2.2, 2.4, 2.6, 2.8)
MANNING: Final = 0.013  # concrete
RAIN: Final = 180 * 0.6 / 1000 / 10_000  # m³/s a m²: 180 L/s a hectare, of which 0.6 runs off (engineering default)
SEWAGE: Final = 0.9 / 1000 / 10_000  # m³/s a m²
HEAD: Final = 57.0  # m, of the waterworks
DEMAND: Final = 40.0  # m³/h at each crossing, at the peak
_TENANTS: Final = {"water": "demo-water", "drainage": "demo-drainage", "gas": "demo-gas"}


def ground(x: float, y: float) -> float:
    """The ground's level (m): it falls south and east, 3 and 1 in a thousand."""
    return 14 + 0.003 * y + 0.001 * (WIDTH - x)


def models() -> dict[str, CityModel]:
    """The district's models by name."""
    return dict(zip(MODELS, (_surface(), _water(), _drainage(), _gas()), strict=True))


@cache
def asset_places() -> dict[str, tuple[float, float]]:
    """Longitude and latitude of the middle of every asset, by name."""
    assets = [asset for model in models().values() for asset in model.assets]
    ends = [(a.geometry[0].vertices.min(axis=0), a.geometry[0].vertices.max(axis=0)) for a in assets]
    middle = np.array([(low + high) / 2 for low, high in ends])
    lon, lat = coordinates.parse(CRS).to_map(middle[:, 0], middle[:, 1])
    placed = zip(np.round(lon, 6).tolist(), np.round(lat, 6).tolist(), strict=True)
    return dict(zip((asset.local for asset in assets), placed, strict=True))


def _place(x: float, y: float, z: float) -> tuple[float, float, float]:
    return EAST + x, NORTH + y, z


def _area(x: float, y: float) -> str:
    """District, street office, grid cell (a block)."""
    column, row = (min(max(int(v // BLOCK), 0), n - 2) for v, n in ((x, COLUMNS), (y, ROWS)))
    office = "滨湖街道" if row < 3 else "长江街道"
    return f"示范新区/{office}/{row * (COLUMNS - 1) + column + 1:02}"


# ---- what stands on the ground


def _surface() -> CityModel:
    assets = [*_buildings(), *_streets(), *_bridges(), *_underpasses()]
    for number, (x, y) in enumerate([(380.0, 380.0), (1130.0, 880.0)], 1):
        at = Geometry.point(*_place(x, y, ground(x, y) + 12))
        name = f"雨量站{number}号"
        assets.append(Asset(name, "gauge", name_zh=name, geometry=(at,), area=_area(x, y), tenant="demo-drainage"))
    for number in range(1, 17):  # beside the gas main of the third street, of other owners
        x, y = 2 * BLOCK + 9, 300 + 25.0 * number
        top = ground(x, y)
        at = Geometry.point(*_place(x, y, top - 1.8))
        name = f"燃气相邻井{number}号"
        attributes = {"ground_m": round(top, 3), "invert_m": round(top - 1.8, 3), "owner": "通信管井"}
        assets.append(Asset(name, "manhole", name_zh=name, attributes=attributes, geometry=(at,), level=4,
                            area=_area(x, y), code=_cover_code(900 + number)))  # fmt: skip
    return CityModel("demo", assets, crs=CRS, height="1985国家高程基准")


def _buildings() -> list[Asset]:
    found = []
    chance = np.random.default_rng(7)
    for row in range(ROWS - 1):
        for column in range(COLUMNS - 1):
            block = row * (COLUMNS - 1) + column + 1
            for number in range(10):
                x = column * BLOCK + 34 + (number % 5) * 38
                y = row * BLOCK + 50 + (number // 5) * 105
                if y < RAILWAY_Y + 12 and y + 16 > RAILWAY_Y - 12:
                    y = RAILWAY_Y + 20
                floors = int(chance.integers(5, 27)) if number != 7 else 2
                has_roof = floors < 8
                wide, deep, high = 28.0, 14.0 + 2 * int(chance.integers(0, 4)), 3.0 * floors
                base = ground(x + wide / 2, y + deep / 2)
                name = f"{block}街区{number + 1}号楼"
                found.append(
                    Asset(
                        f"B{block:02}-{number + 1:02}", "building", element="Building", name_zh=name,
                        name_en=f"Block {block}, building {number + 1}",
                        attributes={"floors": floors, "height_m": high, "year": 1998 + int(chance.integers(0, 25)),
                                    "use": "学校" if number == 7 else "住宅"},
                        geometry=(_house(x, y, base, wide, deep, high, 2.5 if has_roof else 0.0),),
                        level=3, area=_area(x, y),
                    )
                )  # fmt: skip
    return found


def _house(x: float, y: float, base: float, wide: float, deep: float, high: float, roof: float) -> Geometry:
    """A box, with a gable along its length if `roof` (m) is not 0."""
    corner = [(0, 0), (wide, 0), (wide, deep), (0, deep)]
    vertices = [_place(x + a, y + b, base) for a, b in corner]
    vertices += [_place(x + a, y + b, base + high) for a, b in corner]
    walls = [[[0, 3, 2, 1]], [[0, 1, 5, 4]], [[2, 3, 7, 6]]]
    kinds = ["GroundSurface", "WallSurface", "WallSurface"]
    if roof:
        vertices += [_place(x, y + deep / 2, base + high + roof), _place(x + wide, y + deep / 2, base + high + roof)]
        walls += [[[1, 2, 6, 9, 5]], [[3, 0, 4, 8, 7]], [[4, 5, 9, 8]], [[6, 7, 8, 9]]]
        kinds += ["WallSurface", "WallSurface", "RoofSurface", "RoofSurface"]
    else:
        walls += [[[1, 2, 6, 5]], [[3, 0, 4, 7]], [[4, 5, 6, 7]]]
        kinds += ["WallSurface", "WallSurface", "RoofSurface"]
    names = sorted(set(kinds))
    semantics = {"surfaces": [{"type": name} for name in names], "values": [[names.index(kind) for kind in kinds]]}
    return Geometry("Solid", np.array(vertices), [walls], "2" if roof else "1", semantics)


def _streets() -> list[Asset]:
    found = []
    for number, name in enumerate(NORTH_SOUTH):
        x = number * BLOCK
        found.append(_street(name, [(x, y) for y in np.linspace(0, HEIGHT, 26).tolist()]))
    for number, name in enumerate(EAST_WEST):
        y = number * BLOCK
        found.append(_street(name, [(x, y) for x in np.linspace(0, WIDTH, 31).tolist()]))
    along = np.linspace(-200, WIDTH + 200, 20).tolist()
    rails = np.array([_place(x, RAILWAY_Y, ground(x, RAILWAY_Y) + 1) for x in along])
    found.append(Asset("铁路", "railway", name_zh="铁路", geometry=(Geometry.line(rails),)))
    return found


def _street(name: str, points: Sequence[tuple[float, float]]) -> Asset:
    line = np.array([_place(x, y, ground(x, y)) for x, y in points])
    length = float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum())
    attributes = {"width_m": 36.0 if name == "长江路" else 24.0, "length_m": round(length, 1)}
    return Asset(name, "road", name_zh=name, attributes=attributes, geometry=(Geometry.line(line),))


def _bridges() -> list[Asset]:
    found = []
    for name, column, wide in (("彩虹桥", 2, 20.0), ("南淝河大桥", 4, 26.0)):
        x = column * BLOCK
        vertices: list[tuple[float, float, float]] = []
        shells = []
        deck = ground(x, 0)
        boxes = [(x - wide / 2, -150.0, wide, 150.0, deck - 1.2, deck)]
        boxes += [(x - wide / 2 + 2, -150.0 + 37.5 * k - 1.2, wide - 4, 2.4, deck - 11, deck - 1.2) for k in (1, 2, 3)]
        for west, south, across, along, low, high in boxes:
            n = len(vertices)
            box = _house(west, south, low, across, along, high - low, 0.0)
            vertices += [tuple(v) for v in box.vertices.tolist()]
            shells.append([[[[place + n for place in ring] for ring in surface] for surface in box.boundaries[0]]])
        geometry = Geometry("MultiSolid", np.array(vertices), shells, "2")
        attributes = {"length_m": 150.0, "width_m": wide, "year": 2009 + column, "structure": "预应力混凝土连续梁",
                      "design_strain_ue": 200.0, "design_deflection_mm": 30.0, "posted_weight_t": 49.0}  # fmt: skip
        found.append(Asset(name, "bridge", element="Bridge", name_zh=name, attributes=attributes, geometry=(geometry,),
                           level=5, area=_area(x, 0), tenant="demo-bridges"))  # fmt: skip
    return found


UNDERPASSES: Final = (("望江路下穿", 3 * BLOCK, BLOCK), ("铁路桥下穿", 4 * BLOCK, RAILWAY_Y))


def _underpasses() -> list[Asset]:
    found = []
    for name, x, y in UNDERPASSES:
        low = ground(x, y) - 5.5
        along_x = name == "望江路下穿"
        wide, deep = (60.0, 18.0) if along_x else (18.0, 60.0)
        box = _house(x - wide / 2, y - deep / 2, low, wide, deep, 5.0, 0.0)
        attributes = {"lowest_m": round(low, 2), "clearance_m": 4.5, "length_m": 60.0}
        found.append(Asset(name, "tunnel", element="Underpass", name_zh=name, attributes=attributes, geometry=(box,),
                           level=4, area=_area(x, y), tenant="demo-drainage"))  # fmt: skip
    return found


def _cover_code(number: int) -> str:
    """A cover's number of 19 digits, under a division that does not exist."""
    return f"349901{number:013}"


# ---- networks


# type, x, y, invert, ground, demand
_Node = tuple[str, float, float, float, float, float]
# type, start, end, length, diameter, invert at the start and the end, attributes, direction
_Edge = tuple[str, str, str, float, float, float, float, dict[str, Any], int]


@dataclass
class _Pipes:
    """Nodes and edges of a system while they are laid."""

    system: str
    nodes: dict[str, _Node] = field(default_factory=dict)
    edges: dict[str, _Edge] = field(default_factory=dict)
    node_attributes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def node(self, name: str, type_: str, x: float, y: float, z: float, demand: float = 0.0, **attributes: Any) -> str:
        self.nodes[name] = (type_, x, y, z, ground(x, y), demand)
        self.node_attributes[name] = attributes
        return name

    def edge(
        self, name: str, type_: str, start: str, end: str, diameter: float, inverts: tuple[float, float],
        direction: int = 0, length: float | None = None, **attributes: Any,
    ) -> None:  # fmt: skip
        if length is None:
            a, b = self.nodes[start], self.nodes[end]
            length = max(math.hypot(b[1] - a[1], b[2] - a[2]), 0.5)
        self.edges[name] = (type_, start, end, length, diameter, *inverts, attributes, direction)

    def model(self) -> CityModel:
        assets = []
        tenant = _TENANTS[self.system]
        for number, (name, (type_, x, y, z, top, demand)) in enumerate(self.nodes.items(), 1):
            attributes = {"ground_m": round(top, 3), "invert_m": round(z, 3), **self.node_attributes[name]}
            if demand:
                attributes["demand_m3h"] = demand
            code = _cover_code(number) if type_ == "manhole" else ""
            assets.append(Asset(name, type_, "node", name_zh=name, attributes=attributes, level=4, area=_area(x, y),
                                geometry=(Geometry.point(*_place(x, y, z)),), system=self.system, tenant=tenant,
                                code=code))  # fmt: skip
        for name, (type_, start, end, length, diameter, low, high, more, _) in self.edges.items():
            a, b = self.nodes[start], self.nodes[end]
            line = np.array([_place(a[1], a[2], low + diameter / 2), _place(b[1], b[2], high + diameter / 2)])
            attributes = {"diameter_m": diameter, "length_m": round(length, 2), "invert_start_m": round(low, 3),
                          "invert_end_m": round(high, 3), **more}  # fmt: skip
            assets.append(Asset(name, type_, "link", name_zh=name, attributes=attributes, level=4, system=self.system,
                                tenant=tenant, area=_area((a[1] + b[1]) / 2, (a[2] + b[2]) / 2),
                                geometry=(Geometry.line(line),)))  # fmt: skip
        return CityModel("demo", assets, [self._network()], crs=CRS, height="1985国家高程基准")

    def _network(self) -> Network:
        number = {name: place for place, name in enumerate(self.nodes)}
        nodes, edges = list(self.nodes.values()), list(self.edges.values())

        def column(rows: list[Any], place: int) -> Floats:
            return np.array([row[place] for row in rows], np.float64)

        return Network(
            system=self.system,
            node=list(self.nodes), node_type=[row[0] for row in nodes],
            x=EAST + column(nodes, 1), y=NORTH + column(nodes, 2), z=column(nodes, 3), ground=column(nodes, 4),
            demand=column(nodes, 5),
            edge=list(self.edges), edge_type=[row[0] for row in edges],
            start=np.array([number[row[1]] for row in edges], np.int32),
            end=np.array([number[row[2]] for row in edges], np.int32),
            length=column(edges, 3), diameter=column(edges, 4), invert_start=column(edges, 5),
            invert_end=column(edges, 6), direction=np.array([row[8] for row in edges], np.int8),
            is_open=np.ones(len(edges), bool),
        )  # fmt: skip


def _water() -> CityModel:
    """A grid of mains, a valve at the beginning of each, fed by four mains of the waterworks in the north-west."""
    pipes = _Pipes("water")
    stations = {(1, 1): 1, (2, 4): 2, (4, 2): 3, (5, 4): 4}
    names: dict[tuple[int, int], str] = {}

    def level(x: float, y: float, diameter: float) -> float:
        return ground(x, y) - WATER_COVER - diameter

    for column in range(COLUMNS):
        for row in range(ROWS):
            x, y = column * BLOCK - 6, row * BLOCK + 6
            name = f"示范新区水质监测站{n}号" if (n := stations.get((column, row))) else f"供水节点{column}-{row}"
            names[column, row] = pipes.node(name, "junction", x, y, level(x, y, 0.4), DEMAND)
    wells = iter(_along_pressure_points())
    well_of = {place: number for number, place in enumerate(wells, 1)}
    for column in range(COLUMNS):
        for row in range(ROWS):
            for across, up in ((1, 0), (0, 1)):
                other = column + across, row + up
                if other not in names:
                    continue
                diameter = 0.4 if row >= 3 or column <= 1 else 0.3
                a, b = names[column, row], names[other]
                x, y = column * BLOCK - 6 + 12 * across, row * BLOCK + 6 + 12 * up
                tag = f"{column}-{row}{'东' if across else '北'}"
                z = level(x, y, diameter)
                behind = pipes.node(f"供水阀后{tag}", "junction", x, y, z)
                number = well_of.get((column, row)) if across else None
                valve = f"示范新区供水阀井{number}号" if number else f"供水阀{tag}"
                first = level(*pipes.nodes[a][1:3], diameter)
                pipes.edge(valve, "valve", a, behind, diameter, (first, z), year=2012,
                           floors_served=6, working_pressure_mpa=0.4)  # fmt: skip
                last = level(*pipes.nodes[b][1:3], diameter)
                pipes.edge(f"供水管{tag}", "pipe", behind, b, diameter, (z, last), material="球墨铸铁", year=2012,
                           pressure_class="1.0MPa")  # fmt: skip
    works = pipes.node("示范新区水厂", "reservoir", -400, 1450, HEAD, head_m=HEAD)
    for number, place in enumerate(((0, 5), (1, 5), (0, 4), (0, 3)), 1):
        inverts = level(-400, 1450, 0.5), level(*pipes.nodes[names[place]][1:3], 0.5)
        pipes.edge(f"示范新区供水干管{number}号", "pipe", works, names[place], 0.5, inverts, material="钢", year=2010,
                   pressure_class="1.0MPa")  # fmt: skip
    return pipes.model()


def _along_pressure_points() -> list[tuple[int, int]]:
    """The crossings whose valve wells have a pressure sensor, in the order of their numbers: neighbours are near."""
    return [*((c, 3) for c in range(6)), *((c, 2) for c in range(5, -1, -1)), *((c, 1) for c in range(4))]


def _sized(flow: float, slope: float, least: float) -> float:
    """The smallest diameter (m) that carries `flow` (m³/s) full at `slope`, after Manning; not below `least`."""
    for diameter in DIAMETERS:
        capacity = math.pi / 4 * diameter**2 * (diameter / 4) ** (2 / 3) * math.sqrt(slope) / MANNING
        if diameter >= least and capacity >= flow:
            return diameter
    raise ValueError(f"no pipe carries {flow} m³/s at a slope of {slope}")


def _drainage() -> CityModel:
    """Rain down every north-south street: three with outfalls of their own, four into a trunk to the pumping stations.
    Sewage east along every east-west street, and south along the last to the sewage works."""
    pipes = _Pipes("drainage")
    _rain(pipes)
    _sewage(pipes)
    return pipes.model()


def _lay(
    pipes: _Pipes, names: Sequence[str], places: Sequence[tuple[float, float]], flows: Sequence[float],
    cover: float, least_slope: float, least: float, what: str, start: float | None = None, diameter: float = 0.0,
) -> tuple[float, float]:  # fmt: skip
    """Manholes at `places` and pipes between them, downhill: `flows` by pipe (m³/s), `start` the crown to begin with.
    The crowns meet where diameters change. Returns the last crown and diameter."""
    crown = min(ground(*places[0]) - cover, math.inf if start is None else start)
    for number, (name, (x, y)) in enumerate(zip(names, places, strict=True)):
        if number == 0:
            if name not in pipes.nodes:
                first = max(diameter, least)
                pipes.node(name, "manhole", x, y, crown - first, system_code=what)
            continue
        px, py = places[number - 1]
        length = math.hypot(x - px, y - py)
        fall = max(least_slope * length, crown - (ground(x, y) - cover))
        diameter = max(diameter, _sized(flows[number - 1], fall / length, least))
        before, after = crown, crown - fall
        if name not in pipes.nodes:
            pipes.node(name, "manhole", x, y, after - diameter, system_code=what)
        inverts = before - diameter, after - diameter
        pipes.edge(f"{names[number - 1]}-{name}", "pipe", names[number - 1], name, diameter, inverts, 1,
                   material="混凝土", year=2012, system_code=what)  # fmt: skip
        previous = pipes.nodes[names[number - 1]]
        if previous[3] > before - diameter:  # a manhole is as deep as its deepest pipe
            pipes.nodes[names[number - 1]] = (*previous[:3], before - diameter, *previous[4:])
        crown = after
    return crown, diameter


def _rain(pipes: _Pipes) -> None:
    steps = int(HEIGHT / STEP)
    ends: dict[int, tuple[str, float, float, float]] = {}
    for column in range(COLUMNS):
        x = column * BLOCK + 4
        places = [(x, HEIGHT - STEP * n) for n in range(steps + 1)]
        names = [f"雨水井{column + 1}-{n + 1:02}" for n in range(steps + 1)]
        flows = [RAIN * BLOCK * STEP * (n + 1) for n in range(steps)]
        crown, diameter = _lay(pipes, names, places, flows, RAIN_COVER, 0.002, 0.6, "YS")
        ends[column] = names[-1], crown, diameter, flows[-1]

    def into(start: str, end: str, size: float, first: float, last: float, name: str = "") -> None:
        pipes.edge(name or f"{start}-{end}", "pipe", start, end, size, (first - size, last - size), 1,
                   material="混凝土", year=2012, system_code="YS")  # fmt: skip

    for column in range(3):
        name, crown, diameter, _ = ends[column]
        outfall = pipes.node(f"雨水排口{column + 1}号", "outfall", column * BLOCK + 4, -60, crown - 0.3 - diameter)
        into(name, outfall, diameter, crown, crown - 0.3, f"雨水出口管{column + 1}")
    # The trunk, south of the sewer: its wells carry the names of the devices in them.
    places = [(3 * BLOCK + 4 + BLOCK / 2 * n, -20.0) for n in range(7)]
    names = ["雨水干管起点井", *(f"雨水检查井{n}号" for n in range(1, 7))]
    flows = [ends[3][3] * (1 + n // 2) for n in range(6)]
    crown = min(entry[1] for column, entry in ends.items() if column >= 3) - 0.1
    crown, diameter = _lay(pipes, names, places, flows, RAIN_COVER, 0.0025, ends[3][2], "YS", start=crown)
    for column in (3, 4, 5, 6):
        name, own, size, _ = ends[column]
        into(name, names[2 * (column - 3)], size, own, own - 0.1)
    # Pumps start a little above what flows in when it rains hard.
    well = pipes.node("雨水泵站前池", "storage", WIDTH - 10, -45, crown - diameter - 1.5, startup_depth_m=1.4)
    into(names[-1], well, diameter, crown, crown - 0.1, "雨水进水管")
    outfall = pipes.node("雨水泵站排口", "outfall", WIDTH - 10, -75, 11.0)
    for number in (1, 2):
        pipes.edge(f"雨水泵站{number}号", "pump", well, outfall, 1.2, (crown - diameter, 11.0), 1, year=2013,
                   capacity_m3s=round(ends[3][3] * 2.2, 2))  # fmt: skip


def _sewage(pipes: _Pipes) -> None:
    steps = int(WIDTH / STEP)
    trunk_x = WIDTH + 10
    arrived: list[tuple[float, str, float, float]] = []
    for row in range(ROWS):
        y = row * BLOCK - 8
        places = [(STEP * n, y) for n in range(steps)]
        names = [f"污水井{row + 1}-{n + 1:02}" for n in range(steps)]
        if EAST_WEST[row] == "长江路":
            names[9:21] = [f"长江路井盖{n}号" for n in range(1, 13)]
        flows = [SEWAGE * BLOCK * STEP * (n + 1) for n in range(steps - 1)]
        crown, diameter = _lay(pipes, names, places, flows, SEWAGE_COVER, 0.0022, 0.4, "WS")
        arrived.append((y, names[-1], crown, diameter))
    arrived.reverse()
    places = [(trunk_x, y) for y, *_ in arrived] + [(trunk_x, -70.0)]
    names = [f"污水干管井{n + 1}" for n in range(ROWS + 1)]
    flows = [SEWAGE * BLOCK * WIDTH * (n + 1) for n in range(ROWS)]
    drop = min(crown - 0.0022 * 60 + 0.003 * (arrived[0][0] - y) for y, _, crown, _ in arrived)
    crown, diameter = _lay(pipes, names, places, flows, SEWAGE_COVER, 0.003, 0.5, "WS", start=drop - 0.1)
    for (_, name, own, size), into in zip(arrived, names, strict=False):
        low = pipes.nodes[into][3]
        pipes.edge(f"{name}-{into}", "pipe", name, into, size, (own - size, max(low, own - size - 0.0022 * 60)), 1,
                   material="HDPE", year=2012, system_code="WS")  # fmt: skip
    works = pipes.node("污水处理厂", "outfall", trunk_x + 60, -90, crown - diameter - 0.3)
    pipes.edge("污水进厂管", "pipe", names[-1], works, diameter, (crown - diameter, crown - diameter - 0.2), 1,
               material="混凝土", year=2012, system_code="WS")  # fmt: skip


def _gas() -> CityModel:
    """Medium pressure (0.2 MPa) from the gate station along 长江路 and down every north-south street; regulators feed
    the blocks."""
    pipes = _Pipes("gas")

    def level(x: float, y: float, diameter: float) -> float:
        return ground(x, y) - GAS_COVER - diameter

    main, branch = 0.3, 0.2
    names: dict[tuple[int, int], str] = {}
    for column in range(COLUMNS):
        for row in range(ROWS):
            x, y = column * BLOCK + 7, row * BLOCK - 5
            names[column, row] = pipes.node(f"燃气节点{column}-{row}", "junction", x, y, level(x, y, branch))
    gate = pipes.node("燃气门站", "source", WIDTH + 250, 3 * BLOCK, level(WIDTH, 3 * BLOCK, main), pressure_kpa=200.0)

    def lay(tag: str, a: str, b: str, diameter: float) -> None:
        """A pipe with a valve at its beginning."""
        ax, ay, bx, by = *pipes.nodes[a][1:3], *pipes.nodes[b][1:3]
        share = 10 / math.hypot(bx - ax, by - ay)
        x, y = ax + (bx - ax) * share, ay + (by - ay) * share
        behind = pipes.node(f"燃气阀后{tag}", "junction", x, y, level(x, y, diameter))
        steps = level(ax, ay, diameter), level(x, y, diameter), level(bx, by, diameter)
        pipes.edge(f"燃气阀{tag}", "valve", a, behind, diameter, steps[:2], year=2014)
        pipes.edge(f"燃气管{tag}", "pipe", behind, b, diameter, steps[1:], material="PE100", year=2014,
                   pressure_class="0.2MPa")  # fmt: skip

    lay("门站", gate, names[COLUMNS - 1, 3], main)
    for column in range(COLUMNS - 1, 0, -1):
        lay(f"长江路{column}", names[column, 3], names[column - 1, 3], main)
    for column in range(COLUMNS):
        for row in (3, 4):
            lay(f"{column}北{row}", names[column, row], names[column, row + 1], branch)
        for row in (3, 2, 1):
            lay(f"{column}南{row}", names[column, row], names[column, row - 1], branch)
    # Each regulator feeds a block; the first six have sensors.
    blocks = [(c, r) for r in range(ROWS - 1) for c in range(COLUMNS - 1)]
    with_sensors = [(1, 2), (2, 2), (3, 2), (1, 3), (2, 3), (3, 3)]
    for place in sorted(blocks, key=lambda p: (p not in with_sensors, p)):
        column, row = place
        number = blocks.index(place) + 1
        x, y = column * BLOCK + 25, row * BLOCK + 22
        low = level(x, y, 0.16)
        sensor = with_sensors.index(place) + 1 if place in with_sensors else 0
        name = f"燃气调压站{sensor}号" if sensor else f"燃气调压箱{number:02}"
        block = pipes.node(f"{number}街区燃气入口", "consumer", x, y, low, 110.0)
        inverts = level(*pipes.nodes[names[place]][1:3], 0.16), low
        pipes.edge(name, "regulator", names[place], block, 0.16, inverts, 1, year=2014, set_point_kpa=200.0)
    return pipes.model()
