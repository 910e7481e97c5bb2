"""Houses with gables, LoD 2, as many as wanted: as CityJSON, as a sequence, as CityGML 2.0."""

from __future__ import annotations

from typing import Any

import orjson

# A house of 8 x 10 m: the ground's four corners, the eaves above them, the two ends of the ridge; and its faces.
CORNERS = [(0, 0, 0), (8, 0, 0), (8, 10, 0), (0, 10, 0), (0, 0, 5), (8, 0, 5), (8, 10, 5), (0, 10, 5), (4, 0, 8),
           (4, 10, 8)]  # fmt: skip
FACES = [[0, 3, 2, 1], [0, 1, 5, 8, 4], [1, 2, 6, 5], [2, 3, 7, 9, 6], [3, 0, 4, 7], [5, 6, 9, 8], [7, 4, 8, 9]]
KINDS = ["GroundSurface", "WallSurface", "RoofSurface"]
VALUES = [0, 1, 1, 1, 1, 2, 2]


def place(number: int) -> tuple[int, int]:
    return number % 200 * 20, number // 200 * 20


def _object(number: int, first: int) -> dict[str, Any]:
    shell = [[[first + corner for corner in face]] for face in FACES]
    semantics = {"surfaces": [{"type": kind} for kind in KINDS], "values": [VALUES]}
    return {
        "type": "Building",
        "attributes": {
            "name": f"住宅 {number}",
            "storeysAboveGround": 2,
            "measuredHeight": 8.0,
            "yearOfConstruction": 1990,
            "function": "residential",
            "owner": f"O{number % 97}",
            "区": "江南",
            "roofType": "gable",
        },
        "geometry": [{"type": "Solid", "lod": "2.2", "boundaries": [shell], "semantics": semantics}],
    }


def _vertices(number: int) -> list[list[int]]:
    x, y = place(number)
    return [[(x + a) * 1000, (y + b) * 1000, c * 1000] for a, b, c in CORNERS]


def _header() -> dict[str, Any]:
    return {
        "type": "CityJSON",
        "version": "2.0",
        "transform": {"scale": [0.001] * 3, "translate": [500000.0, 3500000.0, 0.0]},
        "metadata": {"referenceSystem": "https://www.opengis.net/def/crs/EPSG/0/4547"},
    }


def cityjson(count: int) -> bytes:
    objects = {f"B{n}": _object(n, n * len(CORNERS)) for n in range(count)}
    vertices = [vertex for n in range(count) for vertex in _vertices(n)]
    return orjson.dumps(_header() | {"CityObjects": objects, "vertices": vertices})


def sequence(count: int) -> bytes:
    lines = [orjson.dumps(_header() | {"CityObjects": {}, "vertices": []})]
    for n in range(count):
        feature = {"type": "CityJSONFeature", "id": f"B{n}", "CityObjects": {f"B{n}": _object(n, 0)}}
        lines.append(orjson.dumps(feature | {"vertices": _vertices(n)}))
    return b"\n".join(lines) + b"\n"


def citygml(count: int) -> bytes:
    """Solids refer to the polygons of their walls and roofs, as is usual."""
    parts = [
        '<?xml version="1.0" encoding="UTF-8"?>\n<CityModel xmlns="http://www.opengis.net/citygml/2.0" '
        'xmlns:bldg="http://www.opengis.net/citygml/building/2.0" xmlns:gml="http://www.opengis.net/gml" '
        'xmlns:gen="http://www.opengis.net/citygml/generics/2.0" xmlns:xlink="http://www.w3.org/1999/xlink">\n'
        '<gml:boundedBy><gml:Envelope srsName="urn:ogc:def:crs,crs:EPSG::25832,crs:EPSG::5783" srsDimension="3">'
        "<gml:lowerCorner>500000 5500000 0</gml:lowerCorner><gml:upperCorner>504000 5502000 8</gml:upperCorner>"
        "</gml:Envelope></gml:boundedBy>\n"
    ]
    for n in range(count):
        x, y = place(n)
        members = "".join(f'<gml:surfaceMember xlink:href="#B{n}f{f}"/>' for f in range(len(FACES)))
        surfaces = []
        for f, face in enumerate(FACES):
            points = " ".join(
                f"{500000 + x + CORNERS[c][0]}.0 {5500000 + y + CORNERS[c][1]}.0 {CORNERS[c][2]}.0"
                for c in [*face, face[0]]
            )
            kind = KINDS[VALUES[f]]
            surfaces.append(
                f'<bldg:boundedBy><bldg:{kind} gml:id="B{n}s{f}"><bldg:lod2MultiSurface><gml:MultiSurface>'
                f'<gml:surfaceMember><gml:Polygon gml:id="B{n}f{f}"><gml:exterior><gml:LinearRing>'
                f"<gml:posList>{points}</gml:posList></gml:LinearRing></gml:exterior></gml:Polygon></gml:surfaceMember>"
                f"</gml:MultiSurface></bldg:lod2MultiSurface></bldg:{kind}></bldg:boundedBy>"
            )
        parts.append(
            f'<cityObjectMember><bldg:Building gml:id="B{n}"><gml:name>House {n}</gml:name>'
            f'<gen:stringAttribute name="owner"><gen:value>O{n % 97}</gen:value></gen:stringAttribute>'
            f'<bldg:function>1000</bldg:function><bldg:measuredHeight uom="m">8.0</bldg:measuredHeight>'
            f"<bldg:storeysAboveGround>2</bldg:storeysAboveGround>"
            f"<bldg:lod2Solid><gml:Solid><gml:exterior><gml:CompositeSurface>{members}</gml:CompositeSurface>"
            f"</gml:exterior></gml:Solid></bldg:lod2Solid>{''.join(surfaces)}</bldg:Building></cityObjectMember>\n"
        )
    parts.append("</CityModel>\n")
    return "".join(parts).encode()
