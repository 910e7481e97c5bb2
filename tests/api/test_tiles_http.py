"""Tiles of a model over HTTP, asked of a running service."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import mapbox_vector_tile
import pytest

from tests.api.test_models_http import NET, ok, post
from tests.conftest import Cimtwin, empty_database
from tests.models3d.test_tiles import table


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory, server_url: str) -> Iterator[Cimtwin]:
    with empty_database(server_url) as url:
        service = Cimtwin(tmp_path_factory.mktemp("tiles") / "data", {"CIMTWIN_DATABASE_URL": url}).start()
        try:
            ok(post(service, NET, name="网 一", crs="EPSG:4547"), 201)
            ok(post(service, NET, name="平面"), 201)
            yield service
        finally:
            service.stop()


def get(city: Cimtwin, path: str, **headers: str) -> httpx.Response:
    headers = {"accept-encoding": "identity", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return httpx.get(f"{city.url}{path}", headers=headers, timeout=60)


MODEL = quote("网 一")


def test_a_tileset_and_its_tiles_are_there_at_both_addresses_and_conditional(city: Cimtwin) -> None:
    answer = get(city, f"/api/v1/tiles/{MODEL}/tileset.json")
    tileset = ok(answer)
    assert tileset["asset"]["version"] == "1.1"
    assert get(city, f"/tiles/{MODEL}/tileset.json").content == answer.content
    uris = [content["uri"] for content in tileset["root"]["contents"]]
    told = []
    for uri in uris:
        tile = get(city, f"/tiles/{MODEL}/{uri}")
        assert (tile.status_code, tile.headers["content-type"]) == (200, "model/gltf-binary")
        assert "immutable" in tile.headers["cache-control"]
        told += [row["id"] for row in table(tile.content)]
    assert sorted(told) == sorted(item["id"] for item in city.get("/assets", model="网 一", limit=1000)["items"])

    tag = answer.headers["etag"]
    assert get(city, f"/tiles/{MODEL}/tileset.json", if_none_match=tag).status_code == 304
    assert get(city, f"/tiles/{MODEL}/tileset.json", if_none_match='"other"').status_code == 200
    plain = get(city, f"/tiles/{MODEL}/{uris[0]}")
    with httpx.stream(
        "GET", f"{city.url}/tiles/{MODEL}/{uris[0]}", headers={"accept-encoding": "gzip"}, timeout=60
    ) as packed:
        raw = b"".join(packed.iter_raw())
    assert (packed.headers["content-encoding"], gzip.decompress(raw)) == ("gzip", plain.content)
    assert packed.headers["etag"] != plain.headers["etag"]


def test_a_model_without_a_crs_is_told_in_its_own_plane_and_has_no_map(city: Cimtwin) -> None:
    tileset = ok(get(city, f"/tiles/{quote('平面')}/tileset.json"))
    assert "transform" not in tileset["root"]
    assert tileset["root"]["contents"]
    assert get(city, f"/tiles/{quote('平面')}/0/0/0.mvt").status_code == 204


def test_a_new_version_is_told_at_once_and_the_old_one_as_of_then(city: Cimtwin) -> None:
    ok(post(city, NET, name="变", crs="EPSG:4547"), 201)
    first = get(city, f"/tiles/{quote('变')}/tileset.json")
    then = city.get("/models/变")["imported_at"]
    changed = "\n".join(line for line in NET.splitlines() if not line.startswith(("P3", "D ")))
    ok(post(city, changed, name="变", crs="EPSG:4547"), 201)
    second = get(city, f"/tiles/{quote('变')}/tileset.json")
    assert second.content != first.content
    later = then.replace("Z", "1Z") if "." in then else then.replace("Z", ".999999Z")
    assert get(city, f"/tiles/{quote('变')}/tileset.json?as_of={later}").content == first.content
    for uri in (c["uri"] for c in ok(first)["root"]["contents"]):
        assert get(city, f"/tiles/{quote('变')}/{uri}").status_code == 200


def test_vector_tiles_tell_the_network_and_are_conditional(city: Cimtwin) -> None:
    place = city.get("/assets/网 一:B")
    z = 16
    x, y = tile_at(z, place["lon"], place["lat"])
    answer = get(city, f"/api/v1/tiles/{MODEL}/{z}/{x}/{y}.mvt")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/vnd.mapbox-vector-tile")
    read: dict[str, Any] = mapbox_vector_tile.decode(answer.content)
    found = {f["properties"]["id"]: f["properties"] for layer in read.values() for f in layer["features"]}
    assert {"网 一:B", "网 一:P2", "网 一:P3"} <= found.keys()
    assert (found["网 一:P2"]["diameter_m"], found["网 一:P2"]["system"]) == (pytest.approx(0.2), "water")
    tag = answer.headers["etag"]
    assert get(city, f"/tiles/{MODEL}/{z}/{x}/{y}.mvt", if_none_match=tag).status_code == 304
    packed = get(city, f"/tiles/{MODEL}/{z}/{x}/{y}.mvt", accept_encoding="gzip")
    assert packed.content == answer.content
    assert (packed.headers.get("content-encoding") == "gzip") == (len(answer.content) > 1024)
    shifted = mapbox_vector_tile.decode(get(city, f"/tiles/{MODEL}/{z}/{x + 1}/{y}.mvt?datum=gcj02").content or b"")
    assert shifted != read
    low = mapbox_vector_tile.decode(get(city, f"/tiles/{MODEL}/12/{x >> 4}/{y >> 4}.mvt").content)
    assert set(low) == {"pipes"}


def tile_at(z: int, lon: float, lat: float) -> tuple[int, int]:
    import math

    down = 0.5 - math.asinh(math.tan(math.radians(lat))) / (2 * math.pi)
    return int((lon / 360 + 0.5) * 2**z), int(down * 2**z)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/tiles/none/tileset.json", 404), ("/tiles/none/0/0/0.mvt", 404), (f"/tiles/{MODEL}/1/0-pipe.glb", 200),
        (f"/tiles/{MODEL}/99/0-pipe.glb", 404), (f"/tiles/{MODEL}/1/no.glb", 404),
        (f"/tiles/{MODEL}/1/..%2f..%2fx.glb", 404), (f"/tiles/{MODEL}/x/0-pipe.glb", 422),
        (f"/tiles/{MODEL}/40/0/0.mvt", 422), (f"/tiles/{MODEL}/3/8/0.mvt", 422), (f"/tiles/{MODEL}/a/b/c.mvt", 422),
        (f"/tiles/{MODEL}/1/0-pipe.glb.tag", 404),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_so(city: Cimtwin, path: str, status: int) -> None:
    answer = get(city, path)
    assert answer.status_code == status, answer.text
    if status != 200:
        assert json.loads(answer.content)["status"] == status


def test_every_set_that_is_kept_is_whole(city: Cimtwin) -> None:
    folder = city.data_dir / "tiles"
    assert not list(folder.glob("part-*"))
    assert all((path / "tileset.json").exists() for path in folder.iterdir())
