"""OSM extracts: counted by hand, made by hand, and broken by hand."""

from __future__ import annotations

import contextlib
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models3d.readers import osm, read, recognise
from twin.city import CityModel, InvalidModel

osmium = pytest.importorskip("osmium")
HELSINKI = Path(__file__).parents[3] / "shared" / "data" / "city" / "Helsinki.osm.pbf"
NODES = {1: (116.0, 39.0), 2: (116.001, 39.0), 3: (116.001, 39.001), 4: (116.0, 39.001), 5: (116.0002, 39.0002),
         6: (116.0004, 39.0002), 7: (116.0004, 39.0004), 8: (116.01, 39.0), 9: (116.02, 39.0)}  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("osm") / "small.osm.pbf"
    mutable = osmium.osm.mutable
    with osmium.SimpleWriter(str(path)) as out:
        tags = {8: {"manhole": "drain"}, 9: {"man_made": "pumping_station", "name": "泵站"}}
        for id_, place in NODES.items():
            out.add_node(mutable.Node(id=id_, location=place, tags=tags.get(id_, {})))
        ways = {
            10: ([1, 2, 3, 4, 1], {"building": "yes", "building:levels": "6", "height": "18 m", "name:zh": "甲楼"}),
            11: ([1, 2, 3], {}), 12: ([1, 4, 3], {}), 13: ([5, 6, 7, 5], {}),
            14: ([4, 8], {"man_made": "pipeline", "substance": "sewage", "diameter": "300"}),
            15: ([8, 9], {"man_made": "pipeline", "substance": "sewage", "diameter": '12"'}),
            16: ([1, 9], {"highway": "primary", "bridge": "yes"}), 17: ([2, 9], {"highway": "service"}),
            18: ([1, 77], {"highway": "path"}), 19: ([1, 2], {"building": "no"}),
        }  # fmt: skip
        for id_, (refs, tagged) in ways.items():
            out.add_way(mutable.Way(id=id_, nodes=refs, tags=tagged))
        out.add_relation(mutable.Relation(id=20, members=[("w", 11, "outer"), ("w", 12, "outer"), ("w", 13, "inner")],
                                          tags={"type": "multipolygon", "building": "school"}))  # fmt: skip
    return path.read_bytes()


def test_ways_relations_and_nodes_become_assets_and_pipelines_a_network(small: bytes) -> None:
    assert recognise(small, "x") == "osm"
    found = read(small, "small.osm.pbf")
    by_id = {asset.local: asset for asset in found.assets}
    assert {id_: asset.type for id_, asset in by_id.items()} == {
        "way/10": "building", "relation/20": "building", "way/14": "pipe", "way/15": "pipe", "way/16": "bridge",
        "way/17": "road", "way/18": "road", "node/8": "manhole", "node/9": "pump", "node/4": "junction"}  # fmt: skip
    told = by_id["way/10"]
    assert (told.name_zh, told.attributes["height_m"], told.attributes["floors"]) == ("甲楼", 18.0, 6)
    assert told.geometry[0].vertices[:, :2].tolist() == [list(NODES[n]) for n in (1, 2, 3, 4)]
    (surface,) = by_id["relation/20"].geometry[0].boundaries
    assert [len(ring) for ring in surface] == [4, 3]
    (network,) = found.networks
    assert (network.system, list(network.edge)) == ("drainage", ["way/14", "way/15"])
    assert [(network.node[a], network.node[b]) for a, b in zip(network.start, network.end, strict=True)] == [
        ("node/4", "node/8"), ("node/8", "node/9")]  # fmt: skip
    np.testing.assert_allclose(network.diameter, [0.3, 0.3048])
    assert found.crs == "EPSG:4326"
    assert len(found.notes) == 1  # way 18 leaves the extract


def test_a_cut_or_folded_up_file_is_refused_with_the_byte(small: bytes) -> None:
    for cut in (3, 10, len(small) // 2, len(small) - 1):
        with pytest.raises(InvalidModel, match="byte"):
            osm.read(small[:cut], "cut.pbf")

    def blob(raw_size: int, packed: bytes) -> bytes:
        def number(value: int) -> bytes:
            return bytes([value & 127 | 128]) + number(value >> 7) if value > 127 else bytes([value])

        body = b"\x10" + number(raw_size) + b"\x1a" + number(len(packed)) + packed
        header = b"\x0a\x09OSMHeader\x18" + number(len(body))
        return len(header).to_bytes(4, "big") + header + body

    with pytest.raises(InvalidModel, match="unfolds"):
        osm.read(blob(1 << 40, zlib.compress(bytes(1000))), "bomb.pbf")
    with pytest.raises(InvalidModel, match="unfolds"):
        osm.read(blob(32 << 20, b"") * 300, "bombs.pbf")
    with pytest.raises(InvalidModel):  # says 1 kB, holds 30 MB
        osm.read(blob(1000, zlib.compress(bytes(30 << 20))), "liar.pbf")


@pytest.mark.timeout(60)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_mutated_file_gives_a_model_or_is_refused(small: bytes, data: st.DataObject) -> None:
    changed = bytearray(small)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InvalidModel):
        assert isinstance(osm.read(bytes(changed), "f"), CityModel)


@pytest.mark.skipif(not HELSINKI.is_file(), reason="no shared data beside this checkout")
def test_helsinki_is_counted_as_a_plain_pass_over_the_file_counts_it() -> None:
    found = read(HELSINKI.read_bytes(), HELSINKI.name)
    counts = Counter(asset.type for asset in found.assets)
    plain: Counter[str] = Counter()
    joined = 0
    for thing in osmium.FileProcessor(str(HELSINKI)).with_locations():
        if thing.is_node() and "manhole" in thing.tags:
            plain["manhole"] += 1
        elif not thing.is_node():
            plain["building"] += "building" in thing.tags
            is_pipe = thing.tags.get("man_made") == "pipeline"
            plain["pipe"] += is_pipe
            joined += is_pipe and len({node.ref for node in thing.nodes if node.location.valid()}) > 1
    assert {type_: counts[type_] for type_ in plain} == plain == {"building": 500, "manhole": 397, "pipe": 79}
    assert sum(len(network.edge) for network in found.networks) == joined
    assert {network.system for network in found.networks} >= {"water", "gas", "heat"}
    drawn = [asset for asset in found.assets if asset.type == "building" and asset.geometry]
    assert len(drawn) > 490
    every = np.concatenate([asset.geometry[0].vertices for asset in drawn])
    assert (np.abs(every[:, :2] - [24.94, 60.17]) < 0.1).all()
