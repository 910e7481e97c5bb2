"""Binary glTF 2.0 with what 3D Tiles 1.1 adds: which feature each vertex belongs to (EXT_mesh_features), and a table of
the features' properties (EXT_structural_metadata). One class of features a file, since CesiumJS styles and picks by the
first table only.

Positions are quantised to 16 bits (KHR_mesh_quantization) where that moves nothing by more than `STEP_M / 2`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models3d.geometry import Mesh
from twin.model import Floats

STEP_M: Final = 0.005
MAX_FEATURES: Final = 65_536  # of a file: ids are 16 bits wide
Colour = tuple[float, float, float, float]  # linear RGB and alpha
# Properties in columns of equal length: texts, or numbers (float64, NaN for none; or int).
Table = Mapping[str, Sequence[str] | NDArray[Any]]

_FLOAT, _SHORT, _USHORT, _BYTE, _UINT = 5126, 5122, 5123, 5120, 5125
_ARRAY, _ELEMENTS = 34962, 34963


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Triangles of one colour; `mesh.part` are places in the table."""

    colour: Colour
    mesh: Mesh


class _Binary:
    """The binary chunk: buffer views in the order they are added, each on an 8-byte boundary."""

    def __init__(self) -> None:
        self.views: list[dict[str, Any]] = []
        self._parts: list[bytes] = []
        self.size = 0

    def add(self, data: bytes, **more: int) -> int:
        pad = -self.size % 8
        self._parts.append(bytes(pad))
        self.size += pad
        self.views.append({"buffer": 0, "byteOffset": self.size, "byteLength": len(data)} | more)
        self._parts.append(data)
        self.size += len(data)
        return len(self.views) - 1

    def joined(self) -> bytes:
        whole = b"".join(self._parts)
        return whole + bytes(-len(whole) % 8)


def write(pieces: Sequence[Piece], table: Table, class_: str) -> bytes:
    """A GLB of these pieces, in their own coordinates, with glTF's axes (y up, so that a viewer of 3D Tiles turns it to
    z up again). `table`: the properties of the features of class `class_` by name."""
    everything = np.concatenate([piece.mesh.position for piece in pieces])
    low, high = everything.min(axis=0), everything.max(axis=0)
    centre = np.round((low + high) / 2, 3) + 0.0  # no negative zero
    reach = float(np.abs(everything - centre).max())
    step = 2.0 ** np.ceil(np.log2(max(reach, 1e-3) / 32767))  # a power of two: places are exact multiples of it
    is_quantised = bool(step <= STEP_M)
    unit = float(step) if is_quantised else None
    binary = _Binary()
    accessors: list[dict[str, Any]] = []
    primitives: list[dict[str, Any]] = []
    materials: list[dict[str, Any]] = []
    for piece in pieces:
        mesh = piece.mesh
        primitives.append(_primitive(binary, accessors, mesh, centre, unit, len(materials)))
        red, green, blue, alpha = piece.colour
        materials.append(
            {
                "pbrMetallicRoughness": {
                    "baseColorFactor": [red, green, blue, alpha], "metallicFactor": 0, "roughnessFactor": 0.9,
                },
                "doubleSided": True,
            }
            | ({"alphaMode": "BLEND"} if alpha < 1 else {})
        )  # fmt: skip
    rows = len(next(iter(table.values())))
    for piece, primitive in zip(pieces, primitives, strict=True):
        count = len(np.unique(piece.mesh.part))
        primitive["extensions"] = {
            "EXT_mesh_features": {"featureIds": [{"featureCount": count, "attribute": 0, "propertyTable": 0}]}
        }
    metadata = _metadata(binary, table, class_, rows)
    joined = binary.joined()
    node: dict[str, Any] = {"mesh": 0, "translation": [centre[0], centre[2], -centre[1]]}
    if unit:
        node["scale"] = [unit] * 3
    document = {
        "asset": {"version": "2.0", "generator": "cimtwin"},
        "extensionsUsed": [
            "EXT_mesh_features", "EXT_structural_metadata", *(["KHR_mesh_quantization"] if is_quantised else []),
        ],
        **({"extensionsRequired": ["KHR_mesh_quantization"]} if is_quantised else {}),
        "extensions": {"EXT_structural_metadata": metadata},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [node],
        "meshes": [{"primitives": primitives}],
        "materials": materials,
        "accessors": accessors,
        "bufferViews": binary.views,
        "buffers": [{"byteLength": len(joined)}],
    }  # fmt: skip
    return _packed(document, joined)


def _primitive(
    binary: _Binary, accessors: list[dict[str, Any]], mesh: Mesh, centre: Floats, step: float | None, material: int
) -> dict[str, Any]:
    n = len(mesh.position)
    place = (mesh.position - centre)[:, [0, 2, 1]] * [1.0, 1.0, -1.0]  # z up to y up
    if step is None:
        rows = place.astype("<f4")
        view = binary.add(rows.tobytes(), byteStride=12, target=_ARRAY)
        kind: dict[str, Any] = {"componentType": _FLOAT}
    else:
        rows = np.zeros((n, 4), "<i2")
        rows[:, :3] = np.rint(place / step)
        view = binary.add(rows.tobytes(), byteStride=8, target=_ARRAY)
        kind = {"componentType": _SHORT}
    low, high = rows[:, :3].min(axis=0).tolist(), rows[:, :3].max(axis=0).tolist()
    accessors.append({"bufferView": view, "count": n, "type": "VEC3", "min": low, "max": high} | kind)
    turned = mesh.normal[:, [0, 2, 1]] * [1.0, 1.0, -1.0]
    if step is None:  # without the extension normals are floats
        view = binary.add(turned.astype("<f4").tobytes(), byteStride=12, target=_ARRAY)
        accessors.append({"bufferView": view, "componentType": _FLOAT, "count": n, "type": "VEC3"})
    else:
        normal = np.zeros((n, 4), np.int8)
        normal[:, :3] = np.rint(turned * 127)
        view = binary.add(normal.tobytes(), byteStride=4, target=_ARRAY)
        accessors.append({"bufferView": view, "componentType": _BYTE, "normalized": True, "count": n, "type": "VEC3"})
    feature = np.zeros((n, 2), "<u2")
    feature[:, 0] = mesh.part
    view = binary.add(feature.tobytes(), byteStride=4, target=_ARRAY)
    accessors.append({"bufferView": view, "componentType": _USHORT, "count": n, "type": "SCALAR"})
    is_small = n < 65_535
    index = mesh.triangle.ravel().astype("<u2" if is_small else "<u4")
    view = binary.add(index.tobytes(), target=_ELEMENTS)
    accessors.append(
        {"bufferView": view, "componentType": _USHORT if is_small else _UINT, "count": len(index), "type": "SCALAR"}
    )
    last = len(accessors) - 1
    return {
        "attributes": {"POSITION": last - 3, "NORMAL": last - 2, "_FEATURE_ID_0": last - 1},
        "indices": last,
        "material": material,
        "mode": 4,
    }


def _metadata(
    binary: _Binary, table: Mapping[str, Sequence[str] | NDArray[Any]], class_: str, rows: int
) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    for name, column in table.items():
        if len(column) != rows:
            raise ValueError(f"column {name} has {len(column)} entries, not {rows}")
        if isinstance(column, np.ndarray):
            is_whole = column.dtype.kind in "iu"
            schema[name] = {"type": "SCALAR", "componentType": "INT32" if is_whole else "FLOAT32"}
            stored = column.astype("<i4" if is_whole else "<f4")
            if not is_whole:
                schema[name]["noData"] = _NO_DATA
                stored[np.isnan(stored)] = _NO_DATA
            properties[name] = {"values": binary.add(stored.tobytes())}
        else:
            texts = [text.encode() for text in column]
            offset = np.cumsum([0, *map(len, texts)]).astype("<u4")
            schema[name] = {"type": "STRING"}
            # A buffer view may not be empty.
            properties[name] = {
                "values": binary.add(b"".join(texts) or b"\0"),
                "stringOffsets": binary.add(offset.tobytes()),
                "stringOffsetType": "UINT32",
            }
    return {
        "schema": {"id": "cimtwin", "classes": {class_: {"properties": schema}}},
        "propertyTables": [{"class": class_, "count": rows, "properties": properties}],
    }


_NO_DATA: Final = -9999.0


def _packed(document: dict[str, Any], binary: bytes) -> bytes:
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    size = 12 + 8 + len(text) + 8 + len(binary)
    return b"".join(
        [
            struct.pack("<4sII", b"glTF", 2, size),
            struct.pack("<I4s", len(text), b"JSON"), text,
            struct.pack("<I4s", len(binary), b"BIN\0"), binary,
        ]
    )  # fmt: skip
