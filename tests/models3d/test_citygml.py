"""CityGML 2.0 and 3.0 in: geometry, semantics, attributes, coordinate systems; what is refused, and where."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models3d.readers import citygml, read, recognise
from models3d.writers.cityjson import write
from tests.models3d import houses
from tests.models3d.test_cityjson import points, same
from twin.city import Asset, CityModel, InvalidModel

HEAD = {
    2: '<?xml version="1.0" encoding="UTF-8"?>\n<core:CityModel xmlns:core="http://www.opengis.net/citygml/2.0" '
    'xmlns:gml="http://www.opengis.net/gml" xmlns:bldg="http://www.opengis.net/citygml/building/2.0" '
    'xmlns:brid="http://www.opengis.net/citygml/bridge/2.0" xmlns:tun="http://www.opengis.net/citygml/tunnel/2.0" '
    'xmlns:frn="http://www.opengis.net/citygml/cityfurniture/2.0" '
    'xmlns:gen="http://www.opengis.net/citygml/generics/2.0" xmlns:dem="http://www.opengis.net/citygml/relief/2.0" '
    'xmlns:xAL="urn:oasis:names:tc:ciq:xsdschema:xAL:2.0" xmlns:xlink="http://www.w3.org/1999/xlink">\n',
    3: '<?xml version="1.0" encoding="UTF-8"?>\n<core:CityModel xmlns:core="http://www.opengis.net/citygml/3.0" '
    'xmlns:gml="http://www.opengis.net/gml/3.2" xmlns:bldg="http://www.opengis.net/citygml/building/3.0" '
    'xmlns:con="http://www.opengis.net/citygml/construction/3.0" '
    'xmlns:brid="http://www.opengis.net/citygml/bridge/3.0" '
    'xmlns:gen="http://www.opengis.net/citygml/generics/3.0" xmlns:xlink="http://www.w3.org/1999/xlink">\n',
}
PLANE = 'srsName="urn:ogc:def:crs,crs:EPSG::25832,crs:EPSG::5783" srsDimension="3"'


def city(*objects: str, version: int = 2, srs: str = PLANE) -> bytes:
    envelope = f"<gml:boundedBy><gml:Envelope {srs}/></gml:boundedBy>\n" if srs else ""
    members = "".join(f"<core:cityObjectMember>\n{one}\n</core:cityObjectMember>\n" for one in objects)
    return f"{HEAD[version]}{envelope}{members}</core:CityModel>".encode()


def polygon(*corners: str, id_: str = "", holes: tuple[str, ...] = ()) -> str:
    """Of the corners' `x y z`; the first one is repeated at the end."""
    name = f' gml:id="{id_}"' if id_ else ""
    ring = "<gml:LinearRing><gml:posList>{}</gml:posList></gml:LinearRing>"
    inner = "".join(f"<gml:interior>{ring.format(hole)}</gml:interior>" for hole in holes)
    outer = ring.format(" ".join((*corners, corners[0])))
    return f"<gml:Polygon{name}><gml:exterior>{outer}</gml:exterior>{inner}</gml:Polygon>"


def surface(*polygons: str, kind: str = "MultiSurface") -> str:
    return f"<gml:{kind}>{''.join(f'<gml:surfaceMember>{p}</gml:surfaceMember>' for p in polygons)}</gml:{kind}>"


def link(id_: str) -> str:
    return f'<gml:surfaceMember xlink:href="#{id_}"/>'


FLOOR, WALL, ROOF = ("0 0 0", "0 9 0", "9 0 0"), ("0 0 0", "9 0 0", "5 5 9"), ("9 0 0", "0 9 0", "5 5 9")
BACK = ("0 9 0", "0 0 0", "5 5 9")
HOUSE_2 = f"""<bldg:Building gml:id="h">
<gml:name>城南水厂</gml:name>
<gen:stringAttribute name="owner"><gen:value>市政</gen:value></gen:stringAttribute>
<gen:intAttribute name="rooms"><gen:value>12</gen:value></gen:intAttribute>
<gen:doubleAttribute name="load"><gen:value>1.5</gen:value></gen:doubleAttribute>
<gen:measureAttribute name="area"><gen:value uom="m2">81.5</gen:value></gen:measureAttribute>
<gen:genericAttributeSet name="survey">
<gen:dateAttribute name="day"><gen:value>2024-05-01</gen:value></gen:dateAttribute>
</gen:genericAttributeSet>
<bldg:function>1000</bldg:function><bldg:function>1010</bldg:function>
<bldg:yearOfConstruction>1987</bldg:yearOfConstruction>
<bldg:measuredHeight uom="#ft">30</bldg:measuredHeight>
<bldg:storeysAboveGround>2</bldg:storeysAboveGround>
<bldg:lod0FootPrint>{surface(polygon(*FLOOR))}</bldg:lod0FootPrint>
<bldg:lod2Solid><gml:Solid><gml:exterior><gml:CompositeSurface>{link("f")}{link("w")}
<gml:surfaceMember><gml:OrientableSurface orientation="-"><gml:baseSurface xlink:href="#r"/></gml:OrientableSurface>
</gml:surfaceMember>{link("b")}</gml:CompositeSurface></gml:exterior></gml:Solid></bldg:lod2Solid>
<bldg:boundedBy><bldg:GroundSurface gml:id="G"><bldg:lod2MultiSurface>{surface(polygon(*FLOOR, id_="f"))}
</bldg:lod2MultiSurface></bldg:GroundSurface></bldg:boundedBy>
<bldg:boundedBy><bldg:WallSurface gml:id="W"><bldg:lod2MultiSurface>
{surface(polygon(*WALL, id_="w", holes=("1 0 1 2 0 1 2 1 2 1 0 1",)), polygon(*BACK, id_="b"))}</bldg:lod2MultiSurface>
<bldg:opening><bldg:Door gml:id="D"><gen:stringAttribute name="kind"><gen:value>gate</gen:value></gen:stringAttribute>
<bldg:lod2MultiSurface>{surface(polygon("1 0 1", "2 0 1", "2 1 2", id_="d"))}</bldg:lod2MultiSurface></bldg:Door>
</bldg:opening></bldg:WallSurface></bldg:boundedBy>
<bldg:boundedBy><bldg:RoofSurface gml:id="R"><bldg:lod2MultiSurface>{surface(polygon(*ROOF, id_="r"))}
</bldg:lod2MultiSurface></bldg:RoofSurface></bldg:boundedBy>
<bldg:interiorRoom><bldg:Room gml:id="room"/></bldg:interiorRoom>
<bldg:consistsOfBuildingPart><bldg:BuildingPart gml:id="p">
<bldg:lod1MultiSurface>{surface(polygon(*FLOOR))}</bldg:lod1MultiSurface></bldg:BuildingPart></bldg:consistsOfBuildingPart>
<bldg:address><core:Address><core:xalAddress><xAL:AddressDetails><xAL:Locality Type="Town">
<xAL:LocalityName>江宁</xAL:LocalityName></xAL:Locality></xAL:AddressDetails></core:xalAddress></core:Address>
</bldg:address></bldg:Building>"""
HOUSE_3 = f"""<bldg:Building gml:id="h"><gml:name>Waterworks</gml:name>
<core:genericAttribute><gen:StringAttribute><gen:name>owner</gen:name><gen:value>City</gen:value></gen:StringAttribute>
</core:genericAttribute>
<core:genericAttribute><gen:GenericAttributeSet><gen:name>survey</gen:name><gen:genericAttribute><gen:IntAttribute>
<gen:name>party</gen:name><gen:value>7</gen:value></gen:IntAttribute></gen:genericAttribute></gen:GenericAttributeSet>
</core:genericAttribute>
<core:boundary><con:WallSurface gml:id="W"><core:lod3MultiSurface>{surface(polygon(*WALL, id_="w"))}
</core:lod3MultiSurface><con:fillingSurface><con:WindowSurface gml:id="D"><core:lod3MultiSurface>
{surface(polygon("1 0 1", "2 0 1", "2 1 2"))}</core:lod3MultiSurface></con:WindowSurface></con:fillingSurface>
</con:WallSurface></core:boundary>
<core:boundary><con:RoofSurface gml:id="R"><core:lod3MultiSurface>{surface(polygon(*ROOF, id_="r"))}
</core:lod3MultiSurface></con:RoofSurface></core:boundary>
<core:lod1Solid><gml:Solid><gml:exterior><gml:Shell>{
    "".join(f"<gml:surfaceMember>{polygon(*p)}</gml:surfaceMember>" for p in (FLOOR, WALL, ROOF, BACK))
}
</gml:Shell></gml:exterior></gml:Solid></core:lod1Solid>
<con:height><con:Height><con:highReference>highestRoofEdge</con:highReference><con:lowReference>lowestGroundPoint
</con:lowReference><con:status>measured</con:status><con:value uom="m">9.0</con:value></con:Height></con:height>
<bldg:storeysAboveGround>3</bldg:storeysAboveGround></bldg:Building>"""


def by_id(model: CityModel) -> dict[str, Asset]:
    return {asset.local: asset for asset in model.assets}


def test_a_building_of_version_2_is_read_with_all_that_it_says() -> None:
    model = read(city(HOUSE_2), "two.gml")
    house, part = model.assets
    assert (model.format, model.crs, model.height) == ("citygml", "EPSG:25832", "DHHN92 height")
    assert (house.local, house.type, house.name_zh, house.level) == ("h", "building", "城南水厂", 3)
    assert (part.local, part.type, part.parent) == ("p", "building_part", "h")
    told = house.attributes
    assert (told["owner"], told["rooms"], told["load"], told["survey"]) == ("市政", 12, 1.5, {"day": "2024-05-01"})
    assert told["area"] == {"value": 81.5, "uom": "m2"}
    assert told["function"] == ["1000", "1010"]
    assert (told["year"], told["floors"]) == (1987, 2)
    assert told["height_m"] == pytest.approx(9.144)
    assert "江宁" in str(told["address"])
    footprint, solid, door = house.geometry
    assert [(g.kind, g.lod) for g in house.geometry] == [("MultiSurface", "0"), ("Solid", "2"), ("MultiSurface", "2")]
    assert points(footprint.boundaries, footprint.vertices.tolist()) == [[[(0, 0, 0), (0, 9, 0), (9, 0, 0)]]]
    roof = points(solid.boundaries, solid.vertices.tolist())[0][2][0]
    assert sorted(roof) == [(0, 9, 0), (5, 5, 9), (9, 0, 0)]
    assert roof[0] == (5, 5, 9), "an OrientableSurface turns its rings"
    assert [len(rings) for rings in solid.boundaries[0]] == [1, 2, 1, 1]
    assert solid.semantics is not None
    kinds = [solid.semantics["surfaces"][n]["type"] for n in solid.semantics["values"][0]]
    assert kinds == ["GroundSurface", "WallSurface", "RoofSurface", "WallSurface"]
    assert door.semantics == {
        "surfaces": [
            {"type": "WallSurface", "id": "W", "children": [1]},
            {"type": "Door", "id": "D", "parent": 0, "kind": "gate"},
        ],
        "values": [1],
    }
    assert any("Room" in note.text for note in model.notes)


def test_a_building_of_version_3_is_read_likewise() -> None:
    model = read(city(HOUSE_3, version=3), "three.gml")
    (house,) = model.assets
    assert (house.name_en, house.level) == ("Waterworks", 4)
    assert (house.attributes["owner"], house.attributes["survey"]) == ("City", {"party": 7})
    assert (house.attributes["height_m"], house.attributes["floors"]) == (9.0, 3)
    assert [(g.kind, g.lod) for g in house.geometry] == [("Solid", "1"), ("MultiSurface", "3")]
    semantics = house.geometry[1].semantics
    assert semantics is not None
    assert [semantics["surfaces"][n]["type"] for n in semantics["values"]] == ["WallSurface", "Window", "RoofSurface"]


def test_bridges_tunnels_furniture_terrain_and_placed_prototypes_are_read() -> None:
    flat = surface(polygon(*FLOOR))
    lamp = (
        '<frn:CityFurniture gml:id="{}"><frn:lod2ImplicitRepresentation><core:ImplicitGeometry>'
        "<core:transformationMatrix>2 0 0 1 0 2 0 0 0 0 1 0 0 0 0 1</core:transformationMatrix>"
        "<core:relativeGMLGeometry{}</core:relativeGMLGeometry><core:referencePoint><gml:Point>"
        "<gml:pos>{} 5 1</gml:pos>"
        "</gml:Point></core:referencePoint></core:ImplicitGeometry></frn:lod2ImplicitRepresentation></frn:CityFurniture>"
    )
    proto = surface(polygon(*FLOOR)).replace("<gml:MultiSurface>", '<gml:MultiSurface gml:id="proto">')
    tin = "".join(polygon(*p).replace("Polygon", "Triangle") for p in (FLOOR, WALL))
    document = city(
        f'<brid:Bridge gml:id="b"><brid:lod1MultiSurface>{flat}</brid:lod1MultiSurface><brid:outerBridgeConstruction>'
        f'<brid:BridgeConstructionElement gml:id="bc"><brid:lod2Geometry>{flat}</brid:lod2Geometry>'
        "</brid:BridgeConstructionElement></brid:outerBridgeConstruction><brid:consistsOfBridgePart>"
        f'<brid:BridgePart gml:id="bp"><brid:lod1MultiSurface>{flat}</brid:lod1MultiSurface></brid:BridgePart>'
        "</brid:consistsOfBridgePart></brid:Bridge>",
        f'<tun:Tunnel gml:id="t"><tun:lod2MultiSurface>{flat}</tun:lod2MultiSurface></tun:Tunnel>',
        lamp.format("l1", ">" + proto, 100),
        lamp.format("l2", ' xlink:href="#proto">', 200),
        '<dem:ReliefFeature gml:id="rf"><dem:lod>2</dem:lod><dem:reliefComponent><dem:TINRelief gml:id="tr">'
        f"<dem:lod>2</dem:lod><dem:tin><gml:TriangulatedSurface><gml:trianglePatches>{tin}</gml:trianglePatches>"
        "</gml:TriangulatedSurface></dem:tin></dem:TINRelief></dem:reliefComponent></dem:ReliefFeature>",
        f'<gen:GenericCityObject gml:id="g"><gen:lod1Geometry>{flat}</gen:lod1Geometry></gen:GenericCityObject>',
    )
    found = by_id(read(document, "all.gml"))
    types = {id_: asset.type for id_, asset in found.items()}
    assert types == {"b": "bridge", "bc": "bridge_part", "bp": "bridge_part", "t": "tunnel", "l1": "furniture",
                     "l2": "furniture", "rf": "group", "tr": "terrain", "g": "other"}  # fmt: skip
    assert (found["bc"].parent, found["bc"].element) == ("b", "BridgeConstructiveElement")
    np.testing.assert_allclose(found["l2"].geometry[0].vertices, [[201, 5, 1], [201, 23, 1], [219, 5, 1]])
    np.testing.assert_allclose(found["l1"].geometry[0].vertices, [[101, 5, 1], [101, 23, 1], [119, 5, 1]])
    assert (found["tr"].geometry[0].kind, len(found["tr"].geometry[0].boundaries)) == ("CompositeSurface", 2)


def test_links_lead_to_earlier_and_to_later_objects() -> None:
    def one(id_: str, members: str) -> str:
        return (
            f'<bldg:Building gml:id="{id_}"><bldg:lod1MultiSurface><gml:MultiSurface>{members}</gml:MultiSurface>'
            "</bldg:lod1MultiSurface></bldg:Building>"
        )

    inner = f"<gml:surfaceMember>{polygon(*FLOOR, id_='shared')}</gml:surfaceMember>"
    found = by_id(read(city(one("a", link("shared")), one("b", inner), one("c", link("shared"))), "x.gml"))
    assert sorted(found) == ["a", "b", "c"]
    for asset in found.values():
        shape = asset.geometry[0]
        assert points(shape.boundaries, shape.vertices.tolist()) == [[[(0, 0, 0), (0, 9, 0), (9, 0, 0)]]]


@pytest.mark.parametrize(
    ("srs", "corner", "crs", "expected"),
    [
        ('srsName="http://www.opengis.net/def/crs/EPSG/0/6697"', "35.6 139.7 5", "EPSG:6697", (139.7, 35.6)),
        ('srsName="urn:ogc:def:crs:EPSG::4326"', "35.6 139.7 5", "EPSG:4326", (139.7, 35.6)),
        ('srsName="EPSG:4490"', "118.8 32.1 5", "EPSG:4490", (118.8, 32.1)),
        ('srsName="EPSG:4490"', "32.1 118.8 5", "EPSG:4490", (118.8, 32.1)),  # outside of China the other way round
        ('srsName="urn:adv:crs:ETRS89_UTM32*DE_DHHN2016_NH"', "690000 5335000 5", "EPSG:25832", (690000, 5335000)),
        # Northing first says the register, easting first the file.
        ('srsName="urn:ogc:def:crs:EPSG::4547"', "500000 3500000 5", "EPSG:4547", (500000, 3500000)),
        ('srsName="urn:ogc:def:crs:EPSG::4547"', "3500000 500000 5", "EPSG:4547", (500000, 3500000)),
        ("", "5 6 7", "EPSG:4547", (5, 6)),  # as the user says
    ],
)  # fmt: skip
def test_coordinates_are_taken_easting_first(srs: str, corner: str, crs: str, expected: tuple[float, float]) -> None:
    first = polygon(
        corner, *("{} {} 6".format(*np.array(corner.split()[:2], float) + d) for d in ((0, 1e-4), (1e-4, 0)))
    )
    house = f'<bldg:Building gml:id="h"><bldg:lod1MultiSurface>{surface(first)}</bldg:lod1MultiSurface></bldg:Building>'
    model = read(city(house, srs=srs), "x.gml", "" if srs else "EPSG:4547")
    assert model.crs == crs
    assert tuple(model.assets[0].geometry[0].vertices[0, :2]) == expected


BROKEN = {
    "no XML": (city(HOUSE_2)[:-20], "line "),
    "a link to nothing": (city(HOUSE_2.replace('href="#w"', 'href="#nothing"')), "'#nothing'"),
    "a link out": (city(HOUSE_2.replace('href="#w"', 'href="file:///etc/passwd#w"')), "out of the document"),
    "a linked object": (
        city(HOUSE_2).replace(b"</core:CityModel>", b'<core:cityObjectMember xlink:href="http://x/y#z"/></core:CityModel>'),
        "a link to an object",
    ),
    "a word": (city(HOUSE_2.replace("5 5 9", "5 five 9")), "no number"),
    "not finite": (city(HOUSE_2.replace("5 5 9", "5 nan 9")), "not finite"),
    "two numbers": (city(HOUSE_2.replace("5 5 9", "5 5")), "dimensions"),
    "far out": (city(HOUSE_2.replace("5 5 9", "5 5 1e300")), "out of this world"),
    "an id twice": (city(HOUSE_2, HOUSE_2), "twice"),
    "another system": (city(HOUSE_2.replace("<gml:Solid>", '<gml:Solid srsName="EPSG:4547">')), "another than"),
    "version 1": (city(HOUSE_2).replace(b"citygml/2.0", b"citygml/1.0"), "2.0 and 3.0"),
    "a circle": (
        city(HOUSE_2.replace(polygon(*ROOF, id_="r"),
                             f'<gml:CompositeSurface gml:id="r">{link("r")}</gml:CompositeSurface>')),
        "circle",
    ),
    "entities": (
        city(HOUSE_2).replace(b"?>\n", b'?>\n<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>\n', 1),
        "DOCTYPE",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_document_is_refused_with_the_place(case: str) -> None:
    document, text = BROKEN[case]
    with pytest.raises(InvalidModel) as refused:
        read(document, "bad.gml")
    problems = [str(problem) for problem in refused.value.problems]
    assert any(text in problem and "bad.gml" in problem for problem in problems), problems
    if case not in ("entities", "an id twice"):
        assert any("line " in problem for problem in problems), problems


def test_numbers_of_any_size_are_read() -> None:
    said = {str(2**63 - 1): 2**63 - 1, "1" + "0" * 25: 1e25, "9" * 400: "9" * 400, "²": "²"}
    for text, value in said.items():
        inner = f'<bldg:Building gml:id="a"><gen:intAttribute name="n"><gen:value>{text}</gen:value></gen:intAttribute>'
        inner += f"<bldg:storeysAboveGround>{text}</bldg:storeysAboveGround></bldg:Building>"
        attributes = by_id(read(city(inner), "big.gml"))["a"].attributes
        assert (attributes["n"], type(attributes["n"])) == (value, type(value))


def test_the_line_of_a_mistake_is_told_far_down_too() -> None:
    document = city("\n" * 70_000 + HOUSE_2.replace("5 5 9", "5 five 9", 1))
    line = document[: document.index(b"five")].count(b"\n") + 1
    with pytest.raises(InvalidModel, match=f"line {line}, object h: "):
        read(document, "bad.gml")


@pytest.mark.timeout(60)
def test_hostile_files_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(citygml, "MAX_FACES", 50_000)
    monkeypatch.setattr(citygml, "MAX_MEMBER_TAGS", 100_000)
    # Each surface holds the next one twice: 2 to the 40th polygons.
    doubling = "".join(
        f'<gml:surfaceMember><gml:CompositeSurface gml:id="c{n}">{link(f"c{n + 1}") * 2}</gml:CompositeSurface>'
        "</gml:surfaceMember>"
        for n in range(40)
    )
    last = f"<gml:surfaceMember>{polygon(*FLOOR, id_='c40')}</gml:surfaceMember>"
    chain = "".join(
        f'<gml:surfaceMember><gml:CompositeSurface gml:id="c{n}">{link(f"c{n + 1}")}</gml:CompositeSurface>'
        "</gml:surfaceMember>"
        for n in range(3000)
    )
    start = '<bldg:Building gml:id="h"><bldg:lod1MultiSurface><gml:MultiSurface>'
    end = "</gml:MultiSurface></bldg:lod1MultiSurface></bldg:Building>"
    for hostile in (
        city(start + doubling + last + end),
        city(start + chain + end),
        city(HOUSE_2.replace("<bldg:function>", "<x>" * 5000 + "</x>" * 5000 + "<bldg:function>")),
        city(HOUSE_2.replace("<bldg:function>", "<x/>" * 300_000 + "<bldg:function>")),
        HEAD[2].encode() + b"<gml:a>" * 200_000,
    ):
        with pytest.raises(InvalidModel):
            read(hostile, "hostile.gml")


def test_it_is_recognised_by_content_and_a_mapped_file_can_be_closed() -> None:
    assert recognise(city(), "x.bin") == "citygml"
    assert recognise(b"<html>CityModel http://www.opengis.net/citygml</html>", "x.gml") is None
    with mmap.mmap(-1, len(city(HOUSE_2))) as mapped:
        mapped.write(city(HOUSE_2))
        assert len(read(mapped, "x").assets) == 2


def test_many_houses_are_read_as_a_stream_and_told_again_as_cityjson() -> None:
    shares = []
    model = read(houses.citygml(1200), "many.gml", progress=lambda what, share: shares.append(share))
    assert len(model.assets) == 1200
    assert {(len(a.geometry), len(a.geometry[0].boundaries[0])) for a in model.assets} == {(1, len(houses.FACES))}
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    same(model, read(write(model), "again.json"), 0.0005)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_damaged_document_ends_in_a_model_or_a_refusal(data: st.DataObject) -> None:
    text = bytearray(city(HOUSE_2) if data.draw(st.booleans()) else city(HOUSE_3, version=3))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(600, len(text) - 1))
        to = min(len(text), at + data.draw(st.integers(0, 8)))
        text[at:to] = data.draw(
            st.sampled_from([b"", b"9", b" ", b"#", b"-", b"x", b"<gml:pos/>", b'"', b"4", b"\xff"])
        )
    with contextlib.suppress(InvalidModel):
        read(bytes(text), "damaged.gml")
