"""How geometries and networks lie in the database: columns in one value each, so that a row is written and read whole.

A geometry is read by who asks for one asset, or for those at the edge of a box; a network by who builds its graph.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import orjson

from twin.city import Geometry, Network
from twin.model import Indices

PLAIN, DEFLATED = 0, 1
DEFLATE_FROM: Final = 256  # bytes; less is not worth it
PART_BYTES: Final = 8 << 20


def pack_geometry(geometry: Sequence[Geometry]) -> bytes | None:
    """Geometries of an asset in one value; None for none. ValueError, TypeError for what JSON does not take."""
    if not geometry:
        return None
    head = orjson.dumps(
        [[g.kind, g.lod, len(g.vertices), g.boundaries, g.semantics, g.extra or None] for g in geometry],
        option=orjson.OPT_SERIALIZE_NUMPY,
    )
    parts = [struct.pack("<I", len(head)), head]
    parts += [np.ascontiguousarray(g.vertices, "<f8").tobytes() for g in geometry]
    data = b"".join(parts)
    if len(data) < DEFLATE_FROM:
        return b"\0" + data
    return b"\1" + zlib.compress(data, 1)


def unpack_geometry(data: bytes | None) -> tuple[Geometry, ...]:
    """What `pack_geometry` packed."""
    if not data:
        return ()
    plain = zlib.decompress(data[1:]) if data[0] == DEFLATED else data[1:]
    size = struct.unpack_from("<I", plain)[0]
    at = 4 + size
    found = []
    for kind, lod, count, boundaries, semantics, extra in orjson.loads(plain[4:at]):
        vertices = np.frombuffer(plain, "<f8", count * 3, at).reshape(count, 3).astype(np.float64)
        at += count * 24
        found.append(Geometry(kind, vertices, boundaries, lod, semantics, extra or {}))
    return tuple(found)


_NUMBERS: Final = (
    "x", "y", "z", "ground", "demand", "start", "end", "length", "diameter", "invert_start", "invert_end", "direction",
    "is_open",
)  # fmt: skip
_TEXTS: Final = ("node", "node_type", "edge", "edge_type")


def pack_network(network: Network, node_key: Indices, edge_key: Indices) -> bytes:
    """A network and the assets' keys of its nodes and edges."""
    columns: dict[str, Any] = {name: getattr(network, name) for name in _NUMBERS}
    for name in _TEXTS:
        columns[name] = np.frombuffer(orjson.dumps(list(getattr(network, name))), np.uint8)
    file = io.BytesIO()
    np.savez(file, node_key=node_key, edge_key=edge_key, **columns)
    return zlib.compress(file.getbuffer(), 1)


def unpack_network(system: str, data: bytes) -> tuple[Network, Indices, Indices]:
    """What `pack_network` packed: the network, and the assets' keys of its nodes and edges."""
    with np.load(io.BytesIO(zlib.decompress(data)), allow_pickle=False) as file:
        columns: dict[str, Any] = {name: file[name] for name in _NUMBERS}
        columns |= {name: orjson.loads(file[name].tobytes()) for name in _TEXTS}
        return Network(system, **columns), file["node_key"], file["edge_key"]


def deflated(data: Any) -> Iterator[bytes]:
    """A file's bytes (or its map) in deflated parts of about `PART_BYTES`: one stream, cut."""
    deflate = zlib.compressobj(1)
    piece: list[bytes] = []
    size = 0
    for at in range(0, len(data), PART_BYTES):
        some = deflate.compress(data[at : at + PART_BYTES])
        piece.append(some)
        size += len(some)
        if size >= PART_BYTES:
            yield b"".join(piece)
            piece, size = [], 0
    piece.append(deflate.flush())
    yield b"".join(piece)
