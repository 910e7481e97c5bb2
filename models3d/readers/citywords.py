"""The words that CityJSON and CityGML share: what their kinds of objects are to us, and which of their attributes say
what ours do. Values in, values out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

# CityJSON's word for a kind of object → ours. CityGML's words are CityJSON's, but for those in `ALSO`.
TYPES: Final = {
    "Building": "building", "BuildingPart": "building_part", "BuildingUnit": "building_part",
    "BuildingStorey": "building_part", "BuildingRoom": "building_part",
    "BuildingInstallation": "building_installation", "BuildingConstructiveElement": "building_installation",
    "BuildingFurniture": "furniture",
    "Bridge": "bridge", "BridgePart": "bridge_part", "BridgeInstallation": "bridge_part",
    "BridgeConstructiveElement": "bridge_part", "BridgeRoom": "bridge_part", "BridgeFurniture": "furniture",
    "Tunnel": "tunnel", "TunnelPart": "tunnel_part", "TunnelInstallation": "tunnel_part",
    "TunnelConstructiveElement": "tunnel_part", "TunnelHollowSpace": "tunnel_part", "TunnelFurniture": "furniture",
    "CityFurniture": "furniture", "SolitaryVegetationObject": "vegetation", "PlantCover": "vegetation",
    "TINRelief": "terrain", "WaterBody": "water_body", "Waterway": "water_body", "Road": "road",
    "TransportSquare": "road", "Railway": "railway", "LandUse": "land_use", "CityObjectGroup": "group",
    "OtherConstruction": "other", "GenericCityObject": "other",
}  # fmt: skip
ALSO: Final = {
    "BridgeConstructionElement": "BridgeConstructiveElement", "Square": "TransportSquare",
    "GenericOccupiedSpace": "GenericCityObject", "GenericLogicalSpace": "GenericCityObject",
    "GenericUnoccupiedSpace": "GenericCityObject", "GenericThematicSurface": "GenericCityObject",
    "TransportationComplex": "Road", "Track": "Road", "MassPointRelief": "TINRelief", "BreaklineRelief": "TINRelief",
    "RasterRelief": "TINRelief", "ReliefFeature": "CityObjectGroup",
}  # fmt: skip

DERIVED: Final = ("floors", "height_m", "year")
_FLOORS: Final = ("storeysAboveGround", "b3_bouwlagen", "aantal_bouwlagen", "numberOfFloors", "building:levels", "层数")
_HEIGHT: Final = ("measuredHeight", "height", "building:height", "建筑高度")
_YEAR: Final = (
    "yearOfConstruction", "dateOfConstruction", "oorspronkelijkbouwjaar", "bouwjaar", "construction_year",
    "year_of_construction", "建成年份",
)  # fmt: skip
_NAMES: Final = ("名称", "name", "Name", "gml:name", "gml_name", "identificatie")
_CHINESE: Final = re.compile("[\u3400-\u9fff]")
_YEAR_IN: Final = re.compile(r"^\s*(1[0-9]{3}|20[0-9]{2})(?!\d)")
# Metres in a unit of length, as CityGML files spell its `uom`.
_METRES: Final = {"m": 1.0, "ft": 0.3048, "[ft_i]": 0.3048, "cm": 0.01, "mm": 0.001, "km": 1000.0}


def derived(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What a file's attributes say under our names: `floors`, `height_m` (m), `year`. Names that are ours already stay
    the file's."""
    found: dict[str, Any] = {}
    floors = _first(attributes, _FLOORS, 1, 300)
    if floors is not None and floors == int(floors):
        found["floors"] = int(floors)
    height = _first(attributes, _HEIGHT, 0.1, 2000)
    if height is not None:
        found["height_m"] = height
    for name in _YEAR:
        match = _YEAR_IN.match(str(attributes.get(name, "")))
        if match:
            found["year"] = int(match[1])
            break
    return {name: value for name, value in found.items() if name not in attributes}


def _first(attributes: Mapping[str, Any], names: Iterable[str], low: float, high: float) -> float | None:
    for name in names:
        value = attributes.get(name)
        unit = 1.0
        if isinstance(value, dict) and "value" in value:  # CityGML's measures, see `readers.citygml`
            unit = metres(str(value.get("uom", "m")))
            value = value["value"]
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                continue
        if isinstance(value, int | float) and not isinstance(value, bool) and low <= value * unit <= high:
            return value * unit if unit != 1.0 else value
    return None


def metres(uom: str) -> float:
    """Metres in a unit as `uom` spells it (`m`, `#m`, `urn:ogc:def:uom:UCUM::[ft_i]`); NaN if it is no length."""
    return _METRES.get(re.split(r"[:#/]", uom.strip())[-1], math.nan)


def names(attributes: Mapping[str, Any]) -> tuple[str, str]:
    """The Chinese and the English (or any other) name among a file's attributes, "" if there is none."""
    for key in _NAMES:
        value = attributes.get(key)
        if isinstance(value, str) and value.strip():
            value = value.strip()[:200]
            return (value, "") if _CHINESE.search(value) else ("", value)
    return "", ""


def level(lods: Iterable[str]) -> int:
    """CIM level of an object by its best LoD, 0 without geometry. The standards do not say how the two relate; as an
    engineering choice LoD 0 and 1 (bodies) count as CIM2, LoD 2 (roofs) as CIM3, LoD 3 and 4 (openings, rooms) as
    CIM4."""
    best = max((lod[:1] for lod in lods if lod[:1].isdigit()), default="")
    return {"": 0, "0": 2, "1": 2, "2": 3}.get(best, 4)
