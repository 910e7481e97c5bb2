"""Assets as tables for spreadsheets, and networks in the survey's layout (点表, 线表), which its reader takes back.

All are UTF-8 with a byte order mark, which Excel asks for. Texts that a spreadsheet would take for a formula get an
apostrophe before them.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from models3d import crs as systems
from twin.city import SYSTEMS, Asset, CityModel, Network

BOM: Final = b"\xef\xbb\xbf"
ASSET_COLUMNS: Final = (
    "id",
    "type",
    "group",
    "element",
    "name_zh",
    "name_en",
    "system",
    "parent",
    "level",
    "area",
    "code",
    "lon",
    "lat",
    "attributes",
)
# 附属物 and 特征 by type; a type without one is a plain point.
SUBSIDS: Final = {
    "manhole": "检查井",
    "valve": "阀门",
    "hydrant": "消防栓",
    "inlet": "雨水篦",
    "meter": "水表",
    "regulator": "调压箱",
    "pump": "泵站",
    "tank": "水池",
    "reservoir": "水源",
    "storage": "化粪池",
    "outfall": "出水口",
    "compressor": "压气站",
    "source": "气源",
    "consumer": "用户",
    "divider": "分流井",
}
FEATURES: Final = {"fitting": "三通"}


def assets(found: Iterable[Asset], crs: str = "") -> bytes:
    """A row an asset; `lon` and `lat` of its middle, empty without a CRS; `attributes` as JSON. Raises `UnknownCrs`."""
    system = systems.parse(crs) if crs else None
    rows = []
    for asset in found:
        place = ["", ""]
        vertices = [shape.vertices for shape in asset.geometry if len(shape.vertices)]
        if system is not None and vertices:
            low, high = (pick([pick(v[:, :2], axis=0) for v in vertices], axis=0) for pick in (np.min, np.max))
            middle = (low + high) / 2
            lon, lat = system.to_map(middle[:1], middle[1:])
            if np.isfinite(lon[0]):
                place = [f"{lon[0]:.8f}", f"{lat[0]:.8f}"]
        attributes = json.dumps(asset.attributes, ensure_ascii=False, separators=(",", ":"), default=str)
        rows.append(
            [
                asset.local,
                asset.type,
                asset.group,
                asset.element,
                asset.name_zh,
                asset.name_en,
                asset.system,
                asset.parent,
                asset.level or "",
                asset.area,
                asset.code,
                *place,
                attributes,
            ]
        )
    return _text(ASSET_COLUMNS, rows)


def survey(model: CityModel) -> dict[str, bytes]:
    """The networks of a model as tables by file name: `JSPoint.csv`, `JSLine.csv`, … X is the northing and Y the
    easting; a model in degrees has `lon` and `lat` instead. Sections are in mm, pipes' levels those of their bottom."""
    crs = systems.parse(model.crs) if model.crs else None
    is_degrees = crs is not None and crs.is_geographic
    known = {(asset.group, asset.local): asset for asset in model.assets}
    tables: dict[str, bytes] = {}
    for network in model.networks:
        code = SYSTEMS[network.system][0]
        tables[f"{code}Point.csv"] = _points(network, known, is_degrees)
        tables[f"{code}Line.csv"] = _lines(network, known)
    return tables


def _points(network: Network, known: dict[tuple[str, str], Asset], is_degrees: bool) -> bytes:
    header = [
        "Exp_No",
        *(("lon", "lat") if is_degrees else ("X", "Y")),
        "High",
        "井底高程",
        "Feature",
        "Subsid",
        "WellDeep",
        "Belong",
        "MDate",
        "部件码",
    ]
    rows = []
    for place, node in enumerate(network.node):
        asset = known.get(("node", node))
        x, y = float(network.x[place]), float(network.y[place])
        told = asset.attributes if asset else {}
        type_ = network.node_type[place]
        rows.append(
            [
                node,
                *((x, y) if is_degrees else (y, x)),
                _number(network.ground[place]),
                _number(network.z[place]),
                FEATURES.get(type_, ""),
                SUBSIDS.get(type_, ""),
                _number(told.get("depth_m")),
                told.get("owner", ""),
                told.get("year", ""),
                asset.code if asset else "",
            ]
        )
    return _text(header, rows)


def _lines(network: Network, known: dict[tuple[str, str], Asset]) -> bytes:
    header = [
        "管线编号",
        "S_Point",
        "E_Point",
        "起点管底高程",
        "终点管底高程",
        "D_S",
        "Material",
        "Pressure",
        "FlowDirect",
        "长度",
        "MDate",
        "Belong",
        "状态",
    ]
    rows = []
    for place, edge in enumerate(network.edge):
        asset = known.get(("link", edge))
        told = asset.attributes if asset else {}
        height, width = float(network.diameter[place]) * 1000, told.get("width_m")
        size = _number(height) if width is None else f"{width * 1000:g}X{height:g}"
        flow = "正" if network.direction[place] else "双向"
        rows.append(
            [
                edge,
                network.node[int(network.start[place])],
                network.node[int(network.end[place])],
                _number(network.invert_start[place]),
                _number(network.invert_end[place]),
                size,
                told.get("material", ""),
                told.get("pressure_class", ""),
                flow,
                _number(network.length[place]),
                told.get("year", ""),
                told.get("owner", ""),
                "" if network.is_open[place] else "关闭",
            ]
        )
    return _text(header, rows)


def _number(value: Any) -> str:
    """A number without needless digits; "" if it is unknown."""
    return repr(round(float(value), 6)) if value is not None and math.isfinite(value) else ""


def _text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\r\n")
    table.writerow(header)
    for row in rows:
        table.writerow(
            [
                f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "@", "\t", "\r") and cell else cell
                for cell in row
            ]
        )
    return BOM + out.getvalue().encode("utf-8")
