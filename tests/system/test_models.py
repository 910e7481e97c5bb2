"""City models in a real database: versions, what a re-import changes, and the sensors on their assets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from models3d import crs
from tests.system.test_commands import run
from tests.twin.cities import CRS, house, pipes
from twin import placing
from twin.city import Asset, CityModel, InvalidModel
from twin.importing_models import ModelWords, import_model, name_of, place
from twin.model import Micros, NotFound, Refused, Sensor, micros
from twin.store import assets as questions
from twin.store.assets import AssetQuery, StoredAsset
from twin.store.catalog import upsert_sensors
from twin.store.migrate import migrate
from twin.store.models import Source, load_files, load_model, lock_model, save_model, version_of
from twin.store.reader import Reader
from twin.units import load_kinds

pytestmark = pytest.mark.system

KINDS = load_kinds()


class Town:
    """A database with models, and questions to it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connection = psycopg.connect(url, autocommit=True)

    def put(self, model: CityModel, name: str = "城区", tenant: str = "default", data: bytes = b"x") -> int:
        placed = place(model, name, ModelWords(tenant=tenant), f"{name}.inp", len(data), data.ljust(32))
        with self.connection.transaction():
            lock_model(self.connection, name)
            return save_model(self.connection, placed, [Source(f"{name}.inp", data)], lambda what, share: None)

    def sensors(self, *pairs: tuple[str, str | None]) -> None:
        sensors = [Sensor(device, "p", "water.pressure", "MPa", asset=asset) for device, asset in pairs]
        with self.connection.transaction():
            upsert_sensors(self.connection, sensors, KINDS)

    def counts(self, version: int) -> tuple[Any, ...]:
        row = self.connection.execute(
            "select version, added, changed, removed, orphans from model_versions where id = %s", (version,)
        ).fetchone()
        assert row is not None
        return row

    def now(self) -> Micros:
        row = self.connection.execute("select clock_timestamp()").fetchone()
        assert row is not None
        return micros(row[0])

    def ask(self, question: Callable[[Reader], Any]) -> Any:
        async def asked() -> Any:
            reader = Reader(self.url)
            try:
                return await question(reader)
            finally:
                await reader.close()

        return asyncio.run(asked())

    def find(self, page: int = 100, **which: Any) -> list[StoredAsset]:
        async def all_pages(reader: Reader) -> list[StoredAsset]:
            return [a async for some in questions.matching(reader, AssetQuery(**which), 0, page, False) for a in some]

        found: list[StoredAsset] = self.ask(all_pages)
        return found

    def one(self, name: str, at: Micros | None = None) -> StoredAsset | None:
        async def resolved(reader: Reader) -> StoredAsset | None:
            key, _ = await questions.resolve(reader, name)
            return await questions.one(reader, key, at)

        found: StoredAsset | None = self.ask(resolved)
        return found

    def on(self, name: str, at: Micros | None = None) -> list[str]:
        async def bound(reader: Reader) -> list[str]:
            key, _ = await questions.resolve(reader, name)
            return (await questions.sensors_on(reader, [key], at)).get(key, [])

        found: list[str] = self.ask(bound)
        return found


@pytest.fixture
def town(database_url: str) -> Iterator[Town]:
    migrate(database_url)
    town = Town(database_url)
    yield town
    town.connection.close()


NODES = {"一号井": (0.0, 0.0), "二号井": (100.0, 0.0), "三号井": (200.0, 0.0)}
EDGES = {"管1": ("一号井", "二号井"), "管2": ("二号井", "三号井")}


def test_three_versions_answer_as_the_model_was(town: Town) -> None:
    first = town.put(pipes(NODES, EDGES), data=b"1")
    between = town.now()
    moved = {**NODES, "二号井": (100.0, 50.0)}
    second = town.put(pipes(moved, EDGES), data=b"2")
    later = town.now()
    third = town.put(pipes({"一号井": (0, 0), "二号井": (100, 50)}, {"管1": EDGES["管1"]}), data=b"3")
    assert town.counts(first) == (1, 5, 0, 0, [])
    assert town.counts(second) == (2, 0, 3, 0, [])  # the node and both pipes at it
    assert town.counts(third) == (3, 0, 0, 2, [])
    assert [a.id for a in town.find()] == ["城区:一号井", "城区:二号井", "城区:管1"]
    assert len(town.find(at=between)) == len(town.find(at=later)) == 5
    assert town.find(at=between - 60_000_000) == []
    lats = [town.one("二号井", at).lat for at in (between, later, None)]  # type: ignore[union-attr]
    assert lats[0] < lats[1] == lats[2]  # type: ignore[operator]
    assert town.one("城区:三号井") is None
    assert town.one("城区:三号井", between) == town.one("城区:三号井", later) != None  # noqa: E711
    key = town.ask(lambda reader: questions.resolve(reader, "城区:管2"))[0]
    history = town.ask(lambda reader: questions.history(reader, key))
    assert [(c.version, c.change) for c in history] == [(1, "added"), (2, "changed"), (3, "removed")]
    back = town.put(pipes(NODES, EDGES), data=b"4")
    assert town.counts(back)[:4] == (4, 2, 2, 0)
    assert town.ask(lambda reader: questions.resolve(reader, "管2")) == (key, "城区:管2")
    history = town.ask(lambda reader: questions.history(reader, key))
    assert [c.change for c in history] == ["added", "changed", "removed", "added"]


def test_a_model_comes_back_as_it_was_read(town: Town) -> None:
    part = house("部件", 0, 0, name_en="Part", parent="楼", area="福田区/莲花街道/0101", code="4403040601000001")
    whole = Asset("楼", "building", element="Building", name_zh="楼", attributes={"年": 1999, "x": [None, 1.5, "α"]})
    network = pipes(NODES, EDGES)
    model = CityModel("cityjson", [whole, part, *network.assets], network.networks, CRS, "1985", {"a": {"b": [1]}})
    version = town.put(model, data=b"first" * 1000)
    found, ids = load_model(town.connection, version)
    assert ids[:3] == ["城区:楼", "城区:部件", "城区:一号井"]
    assert (found.format, found.crs, found.height, found.metadata) == ("cityjson", CRS, "1985", {"a": {"b": [1]}})
    for before, after in zip(model.assets, found.assets, strict=True):
        assert replace(before, geometry=()) == replace(after, geometry=())
        for one, other in zip(before.geometry, after.geometry, strict=True):
            assert (one.kind, one.boundaries, one.lod, one.semantics) == (
                other.kind, other.boundaries, other.lod, other.semantics)  # fmt: skip
            np.testing.assert_array_equal(one.vertices, other.vertices)
    assert found.networks[0].node == list(NODES)
    np.testing.assert_array_equal(found.networks[0].x, network.networks[0].x)
    files = [(name, b"".join(pieces)) for name, pieces in load_files(town.connection, version)]
    assert files == [("城区.inp", b"first" * 1000)]
    assert version_of(town.connection, "城区") == version
    with pytest.raises(NotFound):
        version_of(town.connection, "nowhere")
    whole_again = town.one("楼")
    assert whole_again is not None
    assert whole_again.extent == town.one("部件").extent  # type: ignore[union-attr]


def test_a_name_that_several_groups_share_gives_each_its_own_id_for_good(town: Town) -> None:
    model = pipes({"10": (0, 0), "11": (9, 0)}, {"10": ("10", "11"), "12": ("10", "11")})
    town.put(model, "net")
    assert [a.id for a in town.find()] == ["net:10", "net:11", "net:10:link", "net:12"]
    with pytest.raises(NotFound, match="net:10, net:10:link"):
        town.one("10")
    assert town.one("11") is not None
    # A node that comes later leaves the link its id.
    town.put(pipes({"10": (0, 0), "11": (9, 0), "12": (5, 5)}, {"12": ("10", "11")}), "net")
    assert {(a.id, a.type) for a in town.find()} == {
        ("net:10", "junction"), ("net:11", "junction"), ("net:12:node", "junction"), ("net:12", "pipe")}  # fmt: skip


def test_sensors_are_bound_to_assets_in_time_and_orphans_are_told(town: Town) -> None:
    town.sensors(("d1", "二号井"), ("d2", "二号井"), ("d3", "城区:三号井"), ("d4", "nowhere"), ("d5", None))
    assert [a.id for a in town.find()] == ["二号井", "城区:三号井", "nowhere"]
    before = town.now()
    town.put(pipes(NODES, EDGES))
    assert town.on("二号井") == town.on("城区:二号井") == ["d1/p", "d2/p"]
    assert town.on("三号井") == ["d3/p"]
    assert [a.id for a in town.find() if a.model is None] == ["nowhere"]
    assert town.ask(lambda reader: questions.names_of(reader, "城区:二号井")) == {"城区:二号井", "二号井"}
    then = town.now()
    town.sensors(("d2", "三号井"), ("d5", "一号井"))
    assert (town.on("二号井"), town.on("三号井"), town.on("一号井")) == (["d1/p"], ["d2/p", "d3/p"], ["d5/p"])
    assert (town.on("二号井", then), town.on("一号井", then)) == (["d1/p", "d2/p"], [])
    assert town.on("二号井", before) == ["d1/p", "d2/p"]
    town.sensors(("d1", None))
    assert town.on("二号井") == []
    version = town.put(pipes({"一号井": (0, 0), "二号井": (1, 1)}, {}))
    assert town.counts(version)[3:] == (3, ["d2/p", "d3/p"])
    lost = town.ask(lambda reader: questions.orphans(reader, "城区"))
    assert lost == [("d2/p", "城区:三号井"), ("d3/p", "城区:三号井")]
    town.put(pipes(NODES, EDGES))
    assert town.ask(lambda reader: questions.orphans(reader, "城区")) == []
    assert town.on("三号井") == ["d2/p", "d3/p"]


def test_a_name_in_two_models_binds_nothing_new(town: Town) -> None:
    town.put(pipes(NODES, EDGES), "甲")
    town.sensors(("d1", "一号井"))
    town.put(pipes(NODES, EDGES), "乙")
    assert town.on("甲:一号井") == ["d1/p"]
    town.sensors(("d2", "一号井"))
    assert town.on("一号井") == ["d2/p"]  # a name only, until one of the two is gone
    town.put(pipes({"二号井": (0, 0)}, {}), "甲")
    assert town.on("乙:一号井") == ["d2/p"]


def test_a_failing_import_changes_nothing(town: Town) -> None:
    town.put(pipes(NODES, EDGES))
    good = pipes({"新": (0, 0)}, {})
    twice = replace(good, assets=[*good.assets, good.assets[0], replace(good.assets[0], local="")])
    with pytest.raises(InvalidModel, match="新") as refused:
        town.put(twice)
    assert [p.field for p in refused.value.problems] == ["id", "id"]
    for attributes in ({"a": "b\0c"}, {"a": object()}, {"\udc80": 1}):
        wrong = replace(good, assets=[replace(good.assets[0], attributes=attributes)])
        with pytest.raises(InvalidModel, match="object 新, attributes"):
            town.put(wrong)
    assert [a.id for a in town.find()] == [f"城区:{local}" for local in [*NODES, *EDGES]]
    assert town.connection.execute("select count(*) from model_versions").fetchone() == (1,)


def test_boxes_text_and_types_find_assets(town: Town) -> None:
    houses = [house(f"楼{n}", 100.0 * n, 0, name_en=f"House {n}", area=f"福田区/街道{n % 2}") for n in range(10)]
    town.put(CityModel("cityjson", houses, [], CRS), tenant="housing")
    town.put(pipes({"J": (0, -500), "K": (1000, 500)}, {"P": ("J", "K")}), "net")
    west, south = town.one("楼3").extent[:2]  # type: ignore[union-attr, index]
    # A diagonal pipe's own box holds all houses, the pipe itself passes some of them by.
    edge = (west, south, west + 1e-6, south + 1e-6)
    found = town.find(box=edge)
    assert [a.id for a in found] == ["城区:楼3", "net:P"]
    to_map = crs.parse(CRS).to_map
    assert [placing.meets(a.geometry, to_map, edge) for a in found] == [True, False]
    assert [a.id for a in town.find(q="HOUSE 7")] == ["城区:楼7"]
    assert len(town.find(area="福田区")) == 10
    assert len(town.find(area="福田区/街道1", tenant="housing", type="building")) == 5
    assert [a.id for a in town.find(type="Pipe")] == ["net:P"]
    assert [a.id for a in town.find(type="JUNCTION", system="water")] == ["net:J", "net:K"]
    assert [a.id for a in town.find(model="net", q="%")] == []
    assert [a.id for a in town.find(page=3)] == [a.id for a in town.find()]


def test_a_box_with_very_many_assets_gives_its_pages_in_order(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "NEAR", 20)
    monkeypatch.setattr(questions, "WINDOW", 7)
    houses = [house(f"{n}", 20.0 * (n % 10), 20.0 * (n // 10)) for n in range(100)]
    town.put(CityModel("cityjson", houses, [], CRS))
    west, south, _, _ = town.one("0").extent  # type: ignore[union-attr, misc]
    _, _, east, north = town.one("59").extent  # type: ignore[union-attr, misc]
    found = town.find(page=4, box=(west, south, east, north))
    assert [a.id for a in found] == [f"城区:{n}" for n in range(60)]


def test_a_model_without_a_crs_is_kept_and_not_placed(town: Town) -> None:
    version = town.put(replace(pipes(NODES, EDGES), crs=""))
    assert {a.extent for a in town.find()} == {None}
    model, _ = load_model(town.connection, version)
    assert model.crs == ""
    assert model.assets[1].geometry[0].vertices[0, 0] == 505_100.0
    with pytest.raises(InvalidModel, match="contradicts"):
        place(pipes(NODES, EDGES), "n", ModelWords(crs="EPSG:32650"), "f.inp", 1, b"")
    assert place(replace(pipes(NODES, EDGES), crs=""), "n", ModelWords(crs="4547"), "f.inp", 1, b"").crs == CRS
    with pytest.raises(Refused, match="--crs"):
        import_model(town.connection, [Source("f.inp", b"x")], ModelWords(crs="EPSG:1"))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a/城区.city.json", "城区"),
        ("深圳.osm.pbf", "深圳"),
        ("Net 1.inp", "Net 1"),
        ("a:b.inp", "a-b"),
        (".inp", ".inp"),
    ],
)
def test_a_model_is_named_after_its_file(file: str, name: str) -> None:
    assert name_of(file) == name


def test_the_command_imports_a_model_and_gives_it_back(database_url: str, tmp_path: Path) -> None:
    net = "[JUNCTIONS]\n甲 1 2\n乙 1 2\n[RESERVOIRS]\nR 9\n"
    net += "[PIPES]\nP R 甲 10 100 100 0 Open\nQ 甲 {} 10 100 100 0 Open\n"
    net += "[OPTIONS]\nUnits LPS\n[COORDINATES]\n甲 505000 2493000\n乙 505010 2493000\nR 505000 2493010\n[END]\n"
    file, sensors = tmp_path / "水网.inp", tmp_path / "s.csv"
    sensors.write_text("device,property,kind,unit,asset\nd,p,water.pressure,MPa,乙\n", "utf-8")
    environ = {"CIMTWIN_DATABASE_URL": database_url}
    file.write_text(net.format("nowhere"), "utf-8")
    done = run("import", str(sensors), str(file), "--crs", "EPSG:4547", **environ)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "水网.inp, line 8" in done.stderr
    file.write_text(net.format("乙"), "utf-8")
    done = run("import", "--crs", "EPSG:4547", str(sensors), str(file), str(file), **environ)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[1:]
    assert "model 水网 (epanet), version 1: 5 assets, 3 nodes, 2 links; 5 added, 0 changed, 0 removed" in said[0]
    assert "模型 水网 版本 1:设施 5,节点 3,管段 2" in said[0]
    assert "unchanged, version 1" in said[1]
    town = Town(database_url)
    assert town.on("水网:乙") == ["d/p"]
    town.connection.close()
    out = tmp_path / "out.inp"
    assert run("export", "models", "水网", "--out", str(out), **environ).returncode == 0
    assert out.read_bytes() == file.read_bytes()
    assert run("export", "models", "水网", "--format", "geojson", "--out", str(out), **environ).returncode == 0
    features = {f["id"]: f for f in json.loads(out.read_text("utf-8"))["features"]}
    assert features["水网:甲"]["geometry"]["coordinates"][0] == pytest.approx(114.0486, abs=1e-3)
    assert features["水网:Q"]["geometry"]["type"] == "LineString"
    for format_, first in (("cityjson", b"{"), ("cityjsonl", b"{"), ("csv", b"\xef\xbb\xbf")):
        assert run("export", "models", "水网", "--format", format_, "--out", str(out), **environ).returncode == 0
        assert out.read_bytes().startswith(first)
    folder = tmp_path / "folder"
    for format_ in ("tiles", "survey"):
        assert run("export", "models", "水网", "--format", format_, "--out", str(folder), **environ).returncode == 0
    assert {path.name for path in folder.iterdir()} >= {"tileset.json", "0-pipe.glb", "JSPoint.csv", "JSLine.csv"}
    words = ["import", "--crs", "EPSG:4547", "--model", "再", str(folder / "JSPoint.csv"), str(folder / "JSLine.csv")]
    again = run(*words, **environ)
    assert "3 nodes, 2 links" in again.stdout, again.stderr + again.stdout
    wrong = [run("export", "models", *words, **environ) for words in (["x"], ["水网", "--format", "dwg"])]
    assert [done.returncode for done in wrong] == [1, 2]
