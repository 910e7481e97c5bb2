"""IFC models made here with the library's own tools: buildings, bridges, pipes; where they lie; and files that would
crash it."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models3d import confined, crs
from models3d.readers import ifc, read, recognise
from twin.city import Asset, CityModel, InvalidModel

ifcopenshell = pytest.importorskip("ifcopenshell")
pytest.importorskip("ifcopenshell.guid")


class Model:
    """An IFC file under construction: project, site, building and storey; lengths in `unit`."""

    def __init__(self, schema: str = "IFC4", prefix: str | None = "MILLI") -> None:
        self.file = ifcopenshell.file(schema=schema)
        self.file.header.file_name.name = "made"
        self.history = None
        if schema == "IFC2X3":
            person = self.file.create_entity("IfcPerson", FamilyName="x")
            organization = self.file.create_entity("IfcOrganization", Name="x")
            both = self.file.create_entity("IfcPersonAndOrganization", person, organization)
            application = self.file.create_entity("IfcApplication", organization, "1", "x", "x")
            self.history = self.file.create_entity(
                "IfcOwnerHistory", both, application, None, "ADDED", None, None, None, 0
            )
        origin = self.placement3d()
        self.context = self.file.create_entity(
            "IfcGeometricRepresentationContext", None, "Model", 3, 1e-5, origin, None
        )
        length = self.file.create_entity("IfcSIUnit", None, "LENGTHUNIT", prefix, "METRE")
        units = self.file.create_entity("IfcUnitAssignment", [length])
        self.project = self.root("IfcProject", Name="P", RepresentationContexts=[self.context], UnitsInContext=units)
        self.site = self.placed("IfcSite", "site")
        self.aggregate(self.project, [self.site])

    def root(self, class_: str, **attributes: Any) -> Any:
        return self.file.create_entity(
            class_, GlobalId=ifcopenshell.guid.new(), OwnerHistory=self.history, **attributes
        )

    def point(self, *at: float) -> Any:
        return self.file.create_entity("IfcCartesianPoint", [float(v) for v in at])

    def placement3d(self, *at: float) -> Any:
        return self.file.create_entity("IfcAxis2Placement3D", self.point(*(at or (0, 0, 0))), None, None)

    def placed(
        self, class_: str, name: str, at: tuple[float, ...] = (0, 0, 0), size: tuple[float, ...] = (), **more: Any
    ) -> Any:
        """A product at a place, a box if `size` is given."""
        placement = self.file.create_entity("IfcLocalPlacement", None, self.placement3d(*at))
        shape = None
        if size:
            plane = self.file.create_entity("IfcAxis2Placement2D", self.point(size[0] / 2, size[1] / 2), None)
            profile = self.file.create_entity(
                "IfcRectangleProfileDef", "AREA", None, plane, float(size[0]), float(size[1])
            )
            up = self.file.create_entity("IfcDirection", [0.0, 0.0, 1.0])
            solid = self.file.create_entity("IfcExtrudedAreaSolid", profile, self.placement3d(), up, float(size[2]))
            body = self.file.create_entity("IfcShapeRepresentation", self.context, "Body", "SweptSolid", [solid])
            shape = self.file.create_entity("IfcProductDefinitionShape", None, None, [body])
        return self.root(class_, Name=name, ObjectPlacement=placement, Representation=shape, **more)

    def aggregate(self, whole: Any, parts: list[Any]) -> Any:
        return self.root("IfcRelAggregates", RelatingObject=whole, RelatedObjects=parts)

    def contain(self, whole: Any, parts: list[Any]) -> Any:
        return self.root("IfcRelContainedInSpatialStructure", RelatingStructure=whole, RelatedElements=parts)

    def properties(self, product: Any, name: str, **values: Any) -> None:
        kinds = {float: "IfcReal", int: "IfcInteger", bool: "IfcBoolean", str: "IfcLabel"}
        singles = [
            self.file.create_entity(
                "IfcPropertySingleValue", key, None, self.file.create_entity(kinds[type(v)], v), None
            )
            for key, v in values.items()
        ]
        pset = self.root("IfcPropertySet", Name=name, HasProperties=singles)
        self.root("IfcRelDefinesByProperties", RelatedObjects=[product], RelatingPropertyDefinition=pset)

    def house(self) -> Any:
        building = self.placed("IfcBuilding", "1号楼")
        storey = self.placed("IfcBuildingStorey", "F1", Elevation=300.0)
        walls = [
            self.placed("IfcWall", "w", (0, 0, 0), (5000, 200, 3000)),
            self.placed("IfcWall", "w", (0, 4000, 0), (5000, 200, 3000)),
        ]
        self.aggregate(self.site, [building])
        self.aggregate(building, [storey])
        self.contain(storey, walls)
        self.properties(
            building, "Pset_BuildingCommon", YearOfConstruction="1999", IsLandmarked=True, NumberOfStoreys=6
        )
        return building

    def text(self) -> bytes:
        return self.file.to_string().encode()


def assets(found: CityModel) -> dict[str, Asset]:
    return {asset.name_zh or asset.name_en or asset.local: asset for asset in found.assets}


@pytest.mark.parametrize("schema", ["IFC2X3", "IFC4", "IFC4X3"])
def test_a_building_has_the_shape_of_its_walls_in_metres_and_its_property_sets(schema: str) -> None:
    made = Model(schema)
    building = made.house()
    proxy = made.placed("IfcBuildingElementProxy", "检查井:1", (7000, 0, 0), (1000, 1000, 500))
    made.aggregate(building, [proxy])
    data = made.text()
    assert recognise(data, "x") == "ifc"
    found = read(data, "house.ifc")
    told = assets(found)["1号楼"]
    assert (told.type, told.element, told.local) == ("building", "IfcBuilding", building.GlobalId)
    (shape,) = told.geometry
    assert shape.kind == "MultiSurface"
    assert shape.vertices.min(axis=0).tolist() == pytest.approx([0, 0, 0])
    assert shape.vertices.max(axis=0).tolist() == pytest.approx([5, 4.2, 3])
    assert len(shape.boundaries) == 24  # two boxes of twelve triangles
    assert told.attributes["Pset_BuildingCommon.YearOfConstruction"] == "1999"
    assert told.attributes["Pset_BuildingCommon.IsLandmarked"] is True
    assert told.attributes["storeys"] == [{"name": "F1", "elevation_m": 0.3}]
    well = assets(found)["检查井:1"]
    assert (well.type, well.parent) == ("manhole", building.GlobalId)
    assert found.crs == ""
    assert any("--crs" in str(note) for note in found.notes)


def test_a_bridge_lies_where_its_map_conversion_puts_it() -> None:
    made = Model("IFC4X3", None)
    bridge = made.placed("IfcBridge", "长江桥")
    part = made.placed("IfcBridgePart", "Deck")
    slab = made.placed("IfcSlab", "s", (10, 0, 20), (100, 10, 1))
    made.aggregate(made.site, [bridge])
    made.aggregate(bridge, [part])
    made.contain(part, [slab])
    target = made.file.create_entity("IfcProjectedCRS", Name="EPSG:4547", VerticalDatum="1985国家高程基准")
    made.file.create_entity(
        "IfcMapConversion",
        SourceCRS=made.context,
        TargetCRS=target,
        Eastings=512000.0,
        Northings=2530000.0,
        OrthogonalHeight=5.0,
        XAxisAbscissa=0.0,
        XAxisOrdinate=1.0,
    )
    found = read(made.text(), "bridge.ifc")
    deck = assets(found)["Deck"]
    assert (deck.type, deck.parent) == ("bridge_part", bridge.GlobalId)
    assert (found.crs, found.height) == ("EPSG:4547", "1985国家高程基准")
    # Turned by 90°: x goes north.
    assert deck.geometry[0].vertices.min(axis=0).tolist() == pytest.approx([511990, 2530010, 25])
    assert deck.geometry[0].vertices.max(axis=0).tolist() == pytest.approx([512000, 2530110, 26])
    assert assets(found)["长江桥"].geometry[0].vertices[0].tolist() == pytest.approx([512000, 2530000, 5])


@pytest.mark.parametrize(("schema", "scale"), [("IFC4", None), ("IFC4", 0.001), ("IFC2X3", None)])
def test_millimetres_are_no_metres_on_the_map(schema: str, scale: float | None) -> None:
    made = Model(schema)
    made.house()
    if schema == "IFC2X3":
        made.properties(made.site, "ePSet_MapConversion", Eastings=512000.0, Northings=2530000.0, OrthogonalHeight=5.0)
        made.properties(made.site, "ePSet_ProjectedCRS", Name="EPSG:4547", MapUnit="METRE")
    else:
        metre = made.file.create_entity("IfcSIUnit", None, "LENGTHUNIT", None, "METRE")
        target = made.file.create_entity("IfcProjectedCRS", Name="EPSG:4547", MapUnit=metre)
        made.file.create_entity(
            "IfcMapConversion",
            SourceCRS=made.context,
            TargetCRS=target,
            Eastings=512000.0,
            Northings=2530000.0,
            OrthogonalHeight=5.0,
            Scale=scale,
        )
    shape = assets(read(made.text(), "mm.ifc"))["1号楼"].geometry[0]
    assert shape.vertices.max(axis=0).tolist() == pytest.approx([512005, 2530004.2, 8])


def test_a_site_with_latitude_and_longitude_places_the_model() -> None:
    made = Model("IFC2X3")
    made.house()
    made.site.RefLatitude, made.site.RefLongitude = [39, 54, 20, 500000], [116, 23, 29]
    found = read(made.text(), "site.ifc")
    lon, lat = crs.parse(found.crs).to_map(*assets(found)["1号楼"].geometry[0].vertices[:, :2].T)
    assert (lon.min(), lat.min()) == pytest.approx((116 + 23 / 60 + 29 / 3600, 39 + 54 / 60 + 20.5 / 3600), abs=1e-6)


def pipeline(schema: str) -> tuple[Model, list[Any]]:
    """manhole - pipe - pipe - manhole, joined by ports."""
    made = Model(schema, None)
    segment = "IfcFlowSegment" if schema == "IFC2X3" else "IfcPipeSegment"
    wells = [made.placed("IfcDistributionChamberElement", f"W{i}", (60 * i, 0, 0), (1, 1, 2)) for i in range(2)]
    segments = [made.placed(segment, f"P{i}", (30 * i, 0, 0), (30, 0.4, 0.4)) for i in range(2)]
    made.contain(made.site, wells + segments)
    for piece in segments:
        made.properties(piece, "Pset_PipeSegmentTypeCommon", NominalDiameter=0.4, Length=30.0)
    chain = [wells[0], segments[0], segments[1], wells[1]]
    for one, two in itertools.pairwise(chain):
        ports = [made.placed("IfcDistributionPort", "p", (30, 0, 0), FlowDirection=way) for way in ("SOURCE", "SINK")]
        for element, port in zip((one, two), ports, strict=True):
            if schema == "IFC2X3":
                made.root("IfcRelConnectsPortToElement", RelatingPort=port, RelatedElement=element)
            else:
                made.root("IfcRelNests", RelatingObject=element, RelatedObjects=[port])
        made.root("IfcRelConnectsPorts", RelatingPort=ports[0], RelatedPort=ports[1])
    more = {} if schema == "IFC2X3" else {"PredefinedType": "SEWAGE"}
    system = made.root("IfcSystem" if schema == "IFC2X3" else "IfcDistributionSystem", Name="污水", **more)
    made.root("IfcRelAssignsToGroup", RelatedObjects=segments, RelatingGroup=system)
    return made, chain


@pytest.mark.parametrize("schema", ["IFC2X3", "IFC4"])
def test_elements_joined_by_ports_are_a_network(schema: str) -> None:
    made, chain = pipeline(schema)
    found = read(made.text(), "pipes.ifc")
    (network,) = found.networks
    assert network.system == "drainage"
    assert set(network.edge) == {chain[1].GlobalId, chain[2].GlobalId}
    ends = {
        network.edge[i]: (network.node[a], network.node[b])
        for i, (a, b) in enumerate(zip(network.start, network.end, strict=True))
    }
    assert ends[chain[1].GlobalId][0] == chain[0].GlobalId
    assert ends[chain[2].GlobalId][1] == chain[3].GlobalId
    assert ends[chain[1].GlobalId][1] == ends[chain[2].GlobalId][0]
    assert network.diameter.tolist() == [0.4, 0.4]
    assert network.length.tolist() == [30.0, 30.0]
    assert network.direction.tolist() == [1, 1]
    told = assets(found)
    assert (told["W0"].type, told["W0"].group, told["W0"].system) == ("manhole", "node", "drainage")
    assert (told["P0"].type, told["P0"].group, told["P0"].attributes["diameter_m"]) == ("pipe", "link", 0.4)
    assert set(network.node) <= {asset.local for asset in found.assets if asset.group == "node"}


HOUSE = Model()
HOUSE.house()
WHOLE = HOUSE.text()


def changed(old: bytes, new: bytes) -> bytes:
    assert old in WHOLE
    return WHOLE.replace(old, new, 1)


def wall_line() -> tuple[int, bytes]:
    """Number and text of the line with the first local placement."""
    lines = WHOLE.split(b"\n")
    return next((i, line) for i, line in enumerate(lines, 1) if b"IFCLOCALPLACEMENT(" in line)


def placement_in_a_circle() -> bytes:
    _, line = wall_line()
    return changed(line, line.replace(b"($,", b"(" + line.split(b"=")[0] + b","))


BROKEN: dict[str, tuple[bytes, str]] = {
    "cut off": (WHOLE[: len(WHOLE) // 2], "cut off"),
    "a placement in a circle": (placement_in_a_circle(), f"line {wall_line()[0]}.*circle"),
    "an unknown class": (changed(b"IFCWALL(", b"IFCFOO("), "IFCFOO"),
    "a reference to nothing": (changed(wall_line()[1].split(b",")[1], b"#99999);"), "#99999"),
    "an instance twice": (changed(b"#3=", b"#2="), "twice"),
    "an open text": (changed(b"'F1'", b"'F1"), "line"),
    "another schema": (changed(b"'IFC4'", b"'AP214'"), "FILE_SCHEMA"),
    "a number too large": (changed(b"#3=", b"#" + b"9" * 30 + b"="), "too large"),
    "an absurd unit": (changed(b".MILLI.", b".EXA."), "unit"),
    "a bad id": (changed(b"IFCBUILDING('", b"IFCBUILDING('!"), "GlobalId"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_refused_with_the_place(what: str) -> None:
    data, text = BROKEN[what]
    with pytest.raises(InvalidModel, match=text):
        ifc.read_here(data, "broken.ifc")


def test_parts_in_a_circle_and_ids_used_twice_are_refused() -> None:
    made = Model()
    one, two = (made.placed("IfcBuildingElementProxy", name) for name in "ab")
    made.aggregate(one, [two])
    made.aggregate(two, [one])
    with pytest.raises(InvalidModel, match="part of itself"):
        ifc.read_here(made.text(), "circle.ifc")
    made = Model()
    made.placed("IfcBuildingElementProxy", "a").GlobalId = made.house().GlobalId
    with pytest.raises(InvalidModel, match="is used before"):
        ifc.read_here(made.text(), "twice.ifc")


CRASHING = """
import os, signal, time
def read_here(data, name, crs, progress):
    progress("started", 0.5)
    if data == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if data == b"hang":
        while True: pass
    if data == b"grow":
        found = []
        while True: found.append(bytes(1 << 24))
    raise KeyError(data)
"""


@pytest.mark.parametrize(
    ("data", "text"), [(b"crash", "SIGSEGV"), (b"hang", "SIG"), (b"grow", "memory"), (b"x", "exit 1")]
)
def test_what_crashes_hangs_or_grows_ends_a_process_of_its_own_only(
    data: bytes, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "crashing_reader.py").write_text(CRASHING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(confined, "SECONDS", 8)
    told = []
    with pytest.raises(InvalidModel, match=text):
        confined.read("crashing_reader", data, "x.ifc", "", lambda what, share: told.append(what))
    assert told == ["started"]


def test_mutated_files_give_a_model_or_are_refused() -> None:
    random = np.random.default_rng(5)
    for _ in range(4):
        data = bytearray(WHOLE)
        for at in random.integers(WHOLE.index(b"DATA;"), len(WHOLE), 2):
            data[at] = int(random.integers(32, 127))
        with contextlib.suppress(InvalidModel):
            assert isinstance(read(bytes(data), "m.ifc"), CityModel)
