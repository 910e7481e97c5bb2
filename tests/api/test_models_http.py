"""Models and assets over HTTP, asked of a running service."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import orjson
import pytest

from tests.conftest import Cimtwin, empty_database, until

# Two reservoirs' worth of water: R -> A -> B -> C, a valve between A and B, a side branch at B.
NET = """[TITLE]
试验管网

[JUNCTIONS]
;ID  Elev  Demand
一号/井 10 1
B 9 2
C 8 3
D 7 1

[RESERVOIRS]
R 50

[PIPES]
;ID Node1 Node2 Length Diameter Roughness MinorLoss Status
P1 R 一号/井 100 300 100 0 Open
P2 B C 50 200 100 0 Open
P3 B D 80 100 100 0 Open

[VALVES]
V1 一号/井 B 300 TCV 0 0

[OPTIONS]
Units LPS
Headloss H-W

[COORDINATES]
R 505000 2493000
一号/井 505100 2493000
B 505150 2493000
C 505200 2493000
D 505150 2493080

[END]
"""
SENSORS = """device,property,kind,unit,asset,lon,lat
p-1,pressure,water.pressure,MPa,C,,
p-2,pressure,water.pressure,MPa,网:B,,
p-3,pressure,water.pressure,MPa,D,,
pond-1,depth,drainage.ponding_depth,cm,underpass 1,114.06,22.55
"""


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory, server_url: str) -> Iterator[Cimtwin]:
    """A service with a network in three versions and sensors on it."""
    with empty_database(server_url) as url:
        service = Cimtwin(tmp_path_factory.mktemp("models") / "data", {"CIMTWIN_DATABASE_URL": url}).start()
        try:
            service.put_sensors(SENSORS)
            yield service
        finally:
            service.stop()


def post(city: Cimtwin, text: str | bytes, headers: dict[str, str] | None = None, **params: str) -> httpx.Response:
    data = text.encode() if isinstance(text, str) else text
    return httpx.post(f"{city.url}/api/v1/models", content=data, params=params, headers=headers, timeout=60)


def ok(answer: httpx.Response, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text
    return answer.json()


def ids(city: Cimtwin, **params: Any) -> list[str]:
    return [item["id"] for item in city.get("/assets", **params)["items"]]


@pytest.fixture(scope="module")
def net(city: Cimtwin) -> dict[str, Any]:
    model: dict[str, Any] = ok(post(city, NET, name="网", crs="EPSG:4547", tenant="water-co"), 201)
    return model


def test_a_model_is_imported_and_its_like_is_not(city: Cimtwin, net: dict[str, Any]) -> None:
    assert (net["name"], net["version"], net["format"], net["crs"]) == ("网", 1, "epanet", "EPSG:4547")
    assert (net["assets"], net["nodes"], net["links"]) == (9, 5, 4)
    assert (net["added"], net["changed"], net["removed"], net["orphans"]) == (9, 0, 0, [])
    assert net["extent"][0] == pytest.approx(114.048, abs=0.01)
    assert ok(post(city, NET, name="网", crs="4547", tenant="water-co")) == net
    assert [m["name"] for m in city.get("/models")["items"]] == ["网"]
    assert city.get("/models/网")["versions"] == [net]
    assert httpx.get(f"{city.url}/api/v1/models/none").status_code == 404


def test_assets_are_listed_by_box_type_and_text_and_as_geojson(city: Cimtwin, net: dict[str, Any]) -> None:
    assert ids(city, type="junction") == ["网:一号/井", "网:B", "网:C", "网:D"]
    assert ids(city, type="VALVE") == ids(city, type="valve") == ["网:V1"]
    assert ids(city, q="一号") == ["网:一号/井"]
    assert ids(city, tenant="water-co", limit=1000) == ids(city, model="网", system="water")
    assert set(ids(city)) - set(ids(city, model="网")) == {"underpass 1"}
    first = city.get("/assets", limit=4, model="网")
    rest = city.get("/assets", limit=1000, model="网", after=first["next"])
    assert [i["id"] for i in first["items"] + rest["items"]] == ids(city, model="网")
    b = city.get("/assets/网:B")
    box = f"{b['lon'] - 1e-6},{b['lat'] - 1e-6},{b['lon'] + 1e-6},{b['lat'] + 1e-6}"
    assert ids(city, bbox=box) == ["网:B", "网:P2", "网:P3", "网:V1"]
    answer = httpx.get(
        f"{city.url}/api/v1/assets", params={"bbox": box, "limit": 2}, headers={"accept": "application/geo+json"}
    )
    assert answer.headers["content-type"] == "application/geo+json"
    collection = ok(answer)
    assert collection["type"] == "FeatureCollection"
    assert [f["id"] for f in collection["features"]] == ["网:B", "网:P2"]
    assert [f["geometry"]["type"] for f in collection["features"]] == ["Point", "LineString"]
    assert collection["features"][0]["geometry"]["coordinates"][:2] == pytest.approx([b["lon"], b["lat"]])
    assert collection["features"][0]["properties"]["tenant"] == "water-co"
    for wrong in ({"bbox": "1,2,3"}, {"limit": "0"}, {"as_of": "yesterday"}, {"after": "x"}, {"q": "a\0b"}):
        assert httpx.get(f"{city.url}/api/v1/assets", params=wrong).status_code == 422


def test_one_asset_tells_of_its_geometry_sensors_and_versions(city: Cimtwin, net: dict[str, Any]) -> None:
    for way in (quote("网:一号/井", safe=""), quote("网:一号/井"), quote("一号/井", safe="")):
        asset = ok(httpx.get(f"{city.url}/api/v1/assets/{way}"))
        assert asset["id"] == "网:一号/井"
        assert asset["geometry"]["type"] == "Point"
    asset = city.get("/assets/C")
    assert (asset["id"], asset["sensors"], asset["crs"]) == ("网:C", ["p-1/pressure"], "EPSG:4547")
    assert [v["change"] for v in asset["versions"]] == ["added"]
    assert asset["bindings"][0]["to"] is None
    native = city.get("/assets/C", geometry="native")["geometry"]
    assert native[0]["vertices"][0][:2] == [505200.0, 2493000.0]
    named = city.get("/assets/underpass 1")
    assert (named["type"], named["model"], named["geometry"]["coordinates"]) == (None, None, [114.06, 22.55])
    feature = ok(httpx.get(f"{city.url}/api/v1/assets/C", headers={"accept": "application/geo+json"}))
    assert (feature["type"], feature["properties"]["sensors"]) == ("Feature", ["p-1/pressure"])
    for unknown in ("nothing", "网:nothing", "网", "%00"):
        assert httpx.get(f"{city.url}/api/v1/assets/{unknown}").status_code == 404


def test_traces_give_assets_and_sensors_in_order_of_distance(city: Cimtwin, net: dict[str, Any]) -> None:
    way = f"/assets/{quote('网:一号/井', safe='')}/trace"
    found = city.get(way, direction="isolate")
    assert [v["asset"] for v in found["valves"]] == ["网:V1"]
    assert {s["asset"] for s in found["segment"]} == {"网:一号/井", "网:R", "网:P1"}
    assert {"网:B", "网:C", "网:D"} <= {s["asset"] for s in found["cut_off"]}
    assert [i["distance_m"] for i in found["items"]] == sorted(i["distance_m"] for i in found["items"])
    assert {s for i in found["items"] for s in i["sensors"]} == {"p-1/pressure", "p-2/pressure", "p-3/pressure"}
    down = city.get("/assets/网:B/trace", direction="downstream")
    reached = {i["asset"]: i["distance_m"] for i in down["items"]}
    assert down["items"][0] == {"asset": "网:B", "type": "junction", "distance_m": 0.0, "order": 0,
                                "sensors": ["p-2/pressure"]}  # fmt: skip
    assert (reached["网:C"], reached["网:D"]) == (50.0, 80.0)
    assert city.get("/assets/P2/trace", direction="upstream", within_m=1)["items"]
    assert httpx.get(f"{city.url}/api/v1/assets/B/trace").status_code == 422
    assert httpx.get(f"{city.url}/api/v1/assets/B/trace?direction=sideways").status_code == 422
    assert httpx.get(f"{city.url}/api/v1/assets/underpass 1/trace?direction=upstream").status_code == 409
    assert httpx.get(f"{city.url}/api/v1/assets/none/trace?direction=upstream").status_code == 404


def test_sensors_and_alerts_are_found_by_every_name_of_their_asset(city: Cimtwin, net: dict[str, Any]) -> None:
    for name in ("C", "网:C"):
        assert [s["id"] for s in city.get("/sensors", asset=name)["items"]] == ["p-1/pressure"]
    assert city.get("/sensors/p-1/pressure")["asset"] == "C"
    city.put_rules(
        '[[rule]]\nid = "low"\ntitle = { zh = "低压", en = "Low" }\nkind = "water.pressure"\ndetector = "threshold"\n'
        'side = "below"\nlevels = { red = 0.1 }\n'
    )
    city.publish(("cim/v1/default/p-1/telemetry", {"ts": "2026-07-01T00:00:00Z", "values": {"pressure": 0.05}}))
    until(lambda: city.get("/alerts", asset="网:C")["items"], "an alert")
    assert [a["sensor"] for a in city.get("/alerts", asset="C")["items"]] == ["p-1/pressure"]
    assert [i["sensor"] for i in city.get("/latest", asset="网:C")["items"]] == ["p-1/pressure"]
    assert city.get("/alerts", asset="网:B")["items"] == []
    assert httpx.get(f"{city.url}/api/v1/alerts?asset=none").status_code == 404


def test_versions_answer_as_of_then_also_after_a_restart(city: Cimtwin, net: dict[str, Any]) -> None:
    first = net["imported_at"]
    wider = NET.replace("P2 B C 50 200", "P2 B C 50 250")
    second = ok(post(city, wider, name="网", crs="EPSG:4547", tenant="water-co"), 201)
    assert (second["version"], second["added"], second["changed"], second["removed"]) == (2, 0, 1, 0)
    smaller = re.sub(r"(?m)^(D |P3 ).*\n", "", wider)
    third = ok(post(city, smaller, name="网", crs="EPSG:4547", tenant="water-co"), 201)
    assert (third["version"], third["removed"], third["orphans"]) == (3, 2, ["p-3/pressure"])
    for _ in range(2):
        diameters = [
            city.get("/assets/P2", **at)["attributes"]["diameter_m"]
            for at in ({"as_of": first}, {"as_of": second["imported_at"]}, {})
        ]
        assert diameters == [0.2, 0.25, 0.25]
        assert len(ids(city, model="网", as_of=second["imported_at"])) == 9
        assert len(ids(city, model="网")) == 7
        assert ids(city, as_of="2020-01-01T00:00:00Z") == []
        gone = httpx.get(f"{city.url}/api/v1/assets/网:D")
        assert gone.status_code == 404
        assert "as_of" in gone.json()["detail"]
        assert city.get("/assets/网:D", as_of=first)["id"] == "网:D"
        then = city.get("/assets/B/trace", direction="downstream", as_of=first)
        assert "网:D" in {i["asset"] for i in then["items"]}
        assert "网:D" not in {i["asset"] for i in city.get("/assets/B/trace", direction="downstream")["items"]}
        assert city.get("/models/网")["orphans"] == [{"sensor": "p-3/pressure", "asset": "网:D"}]
        assert [v["version"] for v in city.get("/models/网")["versions"]] == [3, 2, 1]
        assert city.get("/models", as_of=first)["items"] == [net]
        city.stop()
        city.start()


def test_a_refused_model_lists_its_mistakes_and_changes_nothing(city: Cimtwin) -> None:
    before = city.get("/models")
    wrong = NET.replace("P2 B C 50", "P2 B nowhere 50").replace("B 9 2", "B high 2")
    answer = post(city, wrong, name="错", crs="EPSG:4547")
    assert answer.status_code == 422
    assert answer.json()["count"] >= 2
    assert "nowhere" in answer.text
    for data, params in (
        ("", {}),
        (b"\xff\x00" * 100, {}),
        (NET, {"name": "a/b"}),
        (NET, {"name": "n", "crs": "EPSG:1"}),
        (NET, {"name": "n", "tenant": "a b"}),
    ):
        assert post(city, data, **params).status_code == 422, params
    assert post(city, NET, {"content-type": "multipart/form-data; boundary=x"}).status_code == 415
    assert city.get("/models") == before


def test_a_key_acts_once_and_a_file_names_its_model(city: Cimtwin) -> None:
    headers = {"idempotency-key": "import-1", "content-disposition": "attachment; filename*=UTF-8''%E5%8D%97.inp"}
    first = ok(post(city, NET, headers), 201)
    assert (first["name"], first["crs"], first["extent"]) == ("南", None, None)
    second = ok(
        post(city, NET.replace("100 300", "100 200"), {"content-disposition": headers["content-disposition"]}), 201
    )
    assert second["version"] == 2
    assert ok(post(city, NET, headers), 201) == first
    assert city.get("/models/南")["version"] == 2
    assert post(city, NET + "\n", headers).status_code == 422
    item = city.get("/assets", model="南", limit=1)["items"][0]
    assert (item["lon"], item["extent"]) == (None, None)


def test_a_model_over_the_bound_is_refused(cimtwin: Any, tmp_path: Path) -> None:
    service = cimtwin(CIMTWIN_MAX_MODEL_BYTES="1000")
    assert post(service, NET * 3).status_code == 413
    assert not list((service.data_dir / "spool").glob("*"))


def test_numbers_beyond_64_bits_are_told_and_a_bug_in_a_worker_is_no_outage(city: Cimtwin) -> None:
    large = {"type": "FeatureCollection", "features": [
        {"type": "Feature", "id": "远", "properties": {"type": "building", "limit": 1e20},
         "geometry": {"type": "Point", "coordinates": [114.0, 22.5]}}
    ]}  # fmt: skip
    ok(post(city, orjson.dumps(large), name="large"), 201)
    (item,) = city.get("/assets", model="large")["items"]
    assert item["attributes"]["limit"] == 1e20
    assert city.get("/assets/large:远")["attributes"]["limit"] == 1e20
    archive = post(city, b"PK\x03\x04" + bytes(100), name="zip")
    assert archive.status_code == 422
