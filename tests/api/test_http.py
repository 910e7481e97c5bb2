"""The routes of contract 5, asked of a running service."""

from __future__ import annotations

import asyncio
import base64
import csv
import datetime as dt
import io
import json
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, cast
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI, Request

from tests.conftest import Cimtwin, empty_database, until
from twin.api import health
from twin.api import readings as readings_api
from twin.api.errors import Invalid
from twin.app import bind
from twin.settings import Address

CSV = """device,property,kind,unit,tenant,asset,lon,lat,interval_s,min,max,tags
pond-1,depth,drainage.ponding_depth,cm,,underpass-1,114.05,22.54,60,0,300,underpass;low
pond-2,depth,drainage.ponding_depth,cm,,underpass-2,114.10,22.60,60,0,300,
gas-1,ch4,gas.methane,%VOL,gas-co,,113.00,22.00,,,,
井盖-1,tilt,manhole.tilt,°,default,,,,,,,
"""
RULES = """
[[rule]]
id = "ponding"
title = { zh = "积水", en = "Ponding" }
kind = "drainage.ponding_depth"
detector = "threshold"
levels = { blue = 10, red = 40 }
instruction = { zh = "封路", en = "Close the road" }
"""
DAY = "2026-07-01"


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory, server_url: str) -> Iterator[Cimtwin]:
    """A service with four sensors, one rule, readings, an open and a cleared alert, and something in quarantine."""
    with empty_database(server_url) as url:
        service = Cimtwin(tmp_path_factory.mktemp("city") / "data", {"CIMTWIN_DATABASE_URL": url}).start()
        try:
            service.put_sensors(CSV)
            service.put_rules(RULES)
            values = [5, 12.5, None, 45, 400, 3]  # 400 is beyond the sensor's range: suspect
            readings = [{"ts": f"{DAY}T08:0{n}:00Z", "values": {"depth": v}} for n, v in enumerate(values)]
            service.publish(
                ("cim/v1/default/pond-1/telemetry", readings),
                ("cim/v1/default/pond-2/telemetry", {"ts": f"{DAY}T09:00:00.250Z", "values": {"depth": 20}}),
                ("cim/v1/default/nobody/telemetry", {"depth": 1}),
                ("cim/v1/default/pond-1/telemetry", b"\xff\xfe"),
            )
            service.drained(9)
            yield service
        finally:
            service.stop()


@pytest.fixture
def api(city: Cimtwin) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=city.url, timeout=30) as client:
        yield client


def ok(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Check that this is a problem of RFC 9457 with this status, in English and Chinese."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert any("\u4e00" <= sign <= "\u9fff" for sign in body["title"] + body["detail"])
    return body


# Health


def test_health_metrics_and_stats(api: httpx.Client) -> None:
    assert ok(api.get("/healthz")) == {"status": "alive"}
    assert ok(api.get("/readyz"))["parts"] == {"database": True, "broker": True, "pipeline": True}
    text = api.get("/metrics").text
    assert "# TYPE cimtwin_readings_stored_total counter" in text
    assert 'cimtwin_ready{part="database"} 1.0' in text
    stats = ok(api.get("/api/v1/stats"))
    assert stats["readings_received"] == sum(stats[f"readings_{w}"] for w in ("stored", "duplicate", "quarantined"))
    assert stats["seq"] == stats["alert_events"] > 0
    assert stats["ws_clients"] == 0


def test_what_is_not_ready_is_a_problem_that_names_the_parts() -> None:
    class Half:
        def readiness(self) -> dict[str, bool]:
            return {"database": True, "broker": False, "pipeline": False}

    app = FastAPI()
    app.include_router(health.router(cast(Any, Half())))

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get("/readyz")

    answer = asyncio.run(ask())
    body = problem(answer, 503)
    assert body["parts"] == {"database": True, "broker": False, "pipeline": False}
    assert "broker, pipeline" in body["detail"]
    assert int(answer.headers["retry-after"]) > 0


def test_an_answer_does_not_wait_for_the_client_to_acknowledge_its_head() -> None:
    async def no_delay() -> int:
        told: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted = writer.get_extra_info("socket")
            told.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with bind(Address("127.0.0.1", 0)) as taken:
            server = await asyncio.start_server(greet, sock=taken)
            _, writer = await asyncio.open_connection(*taken.getsockname())
            async with server:
                value = await asyncio.wait_for(told, 10)
            writer.close()
        return value

    assert asyncio.run(no_delay())


def test_stats_of_a_day(api: httpx.Client) -> None:
    items = ok(api.get("/api/v1/stats", params={"by": "tenant", "day": DAY}))["items"]
    assert items[0]["tenant"] == "default"
    assert (items[0]["received"], items[0]["late"]) == (7, 7)
    assert items[0]["complete"] == pytest.approx(7 / 2880, abs=1e-4)
    assert items[1] == {"tenant": "gas-co", "received": 0, "refused": 0, "late": 0, "complete": None}
    today = ok(api.get("/api/v1/stats", params={"by": "device"}))["items"]
    assert {row["device"]: row["refused"] for row in today}["nobody"] == 1
    first = ok(api.get("/api/v1/stats", params={"by": "device", "limit": 2}))
    rest = ok(api.get("/api/v1/stats", params={"by": "device", "after": first["next"]}))
    assert [row["device"] for row in first["items"] + rest["items"]] == [row["device"] for row in today]
    problem(api.get("/api/v1/stats", params={"by": "planet"}), 422)
    problem(api.get("/api/v1/stats", params={"by": "device", "day": "yesterday"}), 422)
    problem(api.get("/api/v1/stats", params={"day": DAY}), 422)


# Sensors


def test_sensors_are_listed_filtered_and_paged(api: httpx.Client) -> None:
    def ids(**params: Any) -> list[str]:
        return [item["id"] for item in ok(api.get("/api/v1/sensors", params=params))["items"]]

    everything = ids()
    assert everything[:4] == ["pond-1/depth", "pond-2/depth", "gas-1/ch4", "井盖-1/tilt"]
    assert ids(kind="drainage.ponding_depth")[:2] == everything[:2]
    assert ids(domain="gas,manhole") == everything[2:4]
    assert ids(tenant="gas-co") == ["gas-1/ch4"]
    assert ids(bbox="114,22.5,114.06,22.6") == ["pond-1/depth"]
    assert ids(asset="underpass-2") == ["pond-2/depth"]
    assert ids(device="井盖-1") == ["井盖-1/tilt"]
    assert ids(q="UNDERPASS") == ["pond-1/depth", "pond-2/depth"]
    assert ids(q="井") == ["井盖-1/tilt"]
    seen, after = [], None
    while True:
        page = ok(api.get("/api/v1/sensors", params={"limit": 1} | ({"after": after} if after else {})))
        seen += [item["id"] for item in page["items"]]
        after = page["next"]
        if after is None:
            break
    assert seen == everything
    problem(api.get("/api/v1/sensors?asset=none"), 404)
    problem(api.get("/api/v1/sensors?kind=none.such"), 404)
    problem(api.get("/api/v1/sensors?bbox=1,2,3"), 422)
    problem(api.get("/api/v1/sensors?bbox=3,2,1,4"), 422)
    problem(api.get("/api/v1/sensors?bbox=1,2,nan,4"), 422)
    for limit in (0, 1001, "x"):
        problem(api.get("/api/v1/sensors", params={"limit": limit}), 422)
    for cursor in ("x", "W10", base64.urlsafe_b64encode(b'["alerts",1]').decode(), "é", "null"):
        problem(api.get("/api/v1/sensors", params={"after": cursor}), 422)


def test_one_sensor_by_its_id_in_the_path(api: httpx.Client) -> None:
    one = ok(api.get("/api/v1/sensors/pond-1/depth"))
    assert one["tags"] == ["underpass", "low"]
    assert one["mode"] == "normal"
    assert ok(api.get(f"/api/v1/sensors/{quote('井盖-1')}/tilt"))["kind"] == "manhole.tilt"
    problem(api.get("/api/v1/sensors/pond-1/none"), 404)
    problem(api.get("/api/v1/sensors/none/depth"), 404)


def test_sensors_are_put_as_one_as_a_list_and_as_csv_or_refused_whole(api: httpx.Client) -> None:
    device = {"device": "extra-1", "property": "p", "kind": "water.pressure"}
    assert ok(api.post("/api/v1/sensors", json=device)) == {"created": 1, "updated": 0}
    assert ok(api.post("/api/v1/sensors", json=[device, {**device, "device": "extra-2"}]))["created"] == 1
    assert ok(api.get("/api/v1/sensors/extra-2/p"))["unit"] == "MPa"
    given = ok(api.get("/api/v1/sensors/extra-1/p"))
    assert ok(api.post("/api/v1/sensors", json=given)) == {"created": 0, "updated": 1}
    wrong = [{**device, "device": "extra-3"}, {**device, "kind": "no.such"}, {"device": "a b"}, 5]
    body = problem(api.post("/api/v1/sensors", json=wrong), 422)
    assert {p["place"] for p in body["problems"]} == {"item 2", "item 3", "item 4"}
    problem(api.get("/api/v1/sensors/extra-3/p"), 404)
    text = "\ufeffdevice,property,kind\nextra-4,p,water.flow\n"
    answer = api.post("/api/v1/sensors", content=text.encode(), headers={"content-type": "text/csv"})
    assert ok(answer) == {"created": 1, "updated": 0}
    answer = api.post("/api/v1/sensors", content=b"device\nx\n", headers={"content-type": "text/csv"})
    assert problem(answer, 422)["problems"]
    json_type = {"content-type": "application/json"}
    for content in (b"", b"{", b"\xff", b"[" * 100_000, b"3"):
        answer = api.post("/api/v1/sensors", content=content, headers=json_type)
        assert answer.status_code in (400, 422), answer.text
        problem(answer, answer.status_code)


def test_a_sensor_is_put_in_calibration_and_back(api: httpx.Client) -> None:
    path = "/api/v1/sensors/pond-2/depth"
    assert ok(api.patch(path, json={"mode": "calibration", "reason": "yearly", "by": "li"}))["mode"] == "calibration"
    assert ok(api.patch(path, json={"mode": "normal", "max": 250}))["max"] == 250
    for changes in ({}, [], {"mode": "off"}, {"mode": 3}, {"colour": "red"}, {"device": "x"}, {"min": "x"}):
        problem(api.patch(path, json=changes), 422)
    problem(api.patch("/api/v1/sensors/pond-2/none", json={"mode": "test"}), 404)


# Readings


def test_raw_readings(api: httpx.Client) -> None:
    params = {"sensor": "pond-1/depth", "from": f"{DAY}T00:00:00Z", "to": "2026-07-02T00:00:00Z"}
    items = ok(api.get("/api/v1/readings", params=params))["items"]
    assert [item["value"] for item in items] == [5, 12.5, None, 45, 400, 3]
    assert items[0]["observed_at"] == f"{DAY}T08:00:00Z"
    assert (items[0]["quality"], items[0]["reasons"]) == ("good", [])
    assert (items[4]["quality"], "out-of-range" in items[4]["reasons"]) == ("suspect", True)
    half_open = params | {"from": f"{DAY}T08:01:00Z", "to": f"{DAY}T16:03:00+08:00"}
    assert [i["value"] for i in ok(api.get("/api/v1/readings", params=half_open))["items"]] == [12.5, None]
    # A + that was left unencoded
    url = f"/api/v1/readings?sensor=pond-1/depth&from={DAY}T16:01:00+08:00&to={DAY}T16:03:00+08:00"
    assert len(ok(api.get(url))["items"]) == 2
    assert len(ok(api.get("/api/v1/readings?sensor=pond-1%2Fdepth"))["items"]) == 6
    seen, after = [], {}
    while True:
        page = ok(api.get("/api/v1/readings", params=params | {"limit": 4} | after))
        seen += page["items"]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert seen == items
    known = params | {"received_before": "2026-07-01T00:00:00Z"}
    assert ok(api.get("/api/v1/readings", params=known))["items"] == []


def test_bucketed_readings(api: httpx.Client) -> None:
    params = {"sensor": "pond-1/depth", "from": f"{DAY}T00:00:00Z", "to": "2026-07-02T00:00:00Z"}
    for bucket, starts in {
        "1m": ["08:00", "08:01", "08:03", "08:04", "08:05"],
        "5m": ["08:00", "08:05"],
        "1h": ["08:00"],
        "1d": ["00:00"],
    }.items():
        items = ok(api.get("/api/v1/readings", params=params | {"bucket": bucket}))["items"]
        assert [item["bucket"] for item in items] == [f"{DAY}T{start}:00Z" for start in starts]
    assert items == [{"bucket": f"{DAY}T00:00:00Z", "min": 3, "max": 400, "avg": 93.1, "count": 5, "last": 3}]
    first = ok(api.get("/api/v1/readings", params=params | {"bucket": "1m", "limit": 2}))
    rest = ok(api.get("/api/v1/readings", params=params | {"bucket": "1m", "after": first["next"]}))
    assert [item["min"] for item in first["items"] + rest["items"]] == [5, 12.5, 45, 400, 3]
    problem(api.get("/api/v1/readings", params=params | {"bucket": "1h", "after": first["next"]}), 422)
    problem(api.get("/api/v1/readings", params=params | {"bucket": "2m"}), 422)


def test_readings_come_as_an_arrow_stream(api: httpx.Client) -> None:
    import pyarrow as pa

    params = {"sensor": "pond-1/depth", "from": f"{DAY}T00:00:00Z", "to": f"{DAY}T23:00:00Z"}
    accept = {"accept": "application/vnd.apache.arrow.stream"}
    answer = api.get("/api/v1/readings", params=params, headers=accept)
    assert answer.headers["content-type"] == accept["accept"]
    table = pa.ipc.open_stream(answer.content).read_all()
    assert [str(field.type) for field in table.schema][2:4] == ["timestamp[us, tz=UTC]", "double"]
    listed = ok(api.get("/api/v1/readings", params=params))["items"]
    assert [(row["value"], row["quality"]) for row in table.to_pylist()] == [(r["value"], r["quality"]) for r in listed]
    assert table.to_pylist()[1] == {
        "device": "pond-1", "property": "depth", "observed_at": dt.datetime.fromisoformat(f"{DAY}T08:01:00Z"),
        "value": 12.5, "quality": "good",
    }  # fmt: skip
    answer = api.get("/api/v1/readings", params=params | {"bucket": "5m"}, headers=accept)
    buckets = pa.ipc.open_stream(answer.content).read_all().to_pylist()
    assert [(b["bucket"].minute, b["count"], b["last"]) for b in buckets] == [(0, 4, 400), (5, 1, 3)]
    nothing = api.get("/api/v1/readings", params=params | {"from": f"{DAY}T22:00:00Z"}, headers=accept)
    assert pa.ipc.open_stream(nothing.content).read_all().num_rows == 0
    assert api.head("/api/v1/readings", params=params, headers=accept).headers["content-type"] == accept["accept"]


def test_arrow_without_its_extra_is_refused_naming_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings_api, "is_here", lambda: False)
    headers = [(b"accept", b"application/vnd.apache.arrow.stream")]
    with pytest.raises(Invalid, match=r"pip install 'cimtwin\[arrow\]'") as refused:
        readings_api._form(Request({"type": "http", "headers": headers}))
    assert refused.value.status == 406


def test_readings_as_csv_open_in_excel(api: httpx.Client) -> None:
    params = {"sensor": "pond-1/depth", "limit": 1}
    answer = api.get("/api/v1/readings", params=params, headers={"accept": "text/csv"})
    assert answer.status_code == 200
    assert answer.content.startswith(b"\xef\xbb\xbfdevice,property,observed_at,value,quality\n")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.content.decode("utf-8-sig"))))
    assert [row["value"] for row in rows] == ["5", "12.5", "", "45", "400", "3"]
    assert rows[1]["observed_at"] == f"{DAY}T08:01:00Z"
    answer = api.get("/api/v1/readings", params=params | {"bucket": "5m"}, headers={"accept": "text/csv;q=0.9, x/y"})
    rows = list(csv.DictReader(io.StringIO(answer.content.decode("utf-8-sig"))))
    assert [(row["bucket"], float(row["max"]), row["count"]) for row in rows] == [
        (f"{DAY}T08:00:00Z", 400.0, "4"),
        (f"{DAY}T08:05:00Z", 3.0, "1"),
    ]


def test_what_cannot_be_asked_of_readings(api: httpx.Client) -> None:
    sensor = {"sensor": "pond-1/depth"}
    problem(api.get("/api/v1/readings"), 422)
    problem(api.get("/api/v1/readings?sensor=none/p"), 404)
    problem(api.get("/api/v1/readings?sensor=pond-1"), 404)
    for start in ("2026-07-01", "2026-07-01T00:00:00", "now", "1782864000000", "9999-99-99T00:00:00Z"):
        problem(api.get("/api/v1/readings", params=sensor | {"from": start}), 422)
    problem(api.get("/api/v1/readings", params=sensor | {"from": f"{DAY}T01:00:01Z", "to": f"{DAY}T01:00:00Z"}), 422)
    ok(api.get("/api/v1/readings", params=sensor | {"from": "0001-01-01T00:00:00+14:00"}))
    ok(api.get("/api/v1/readings", params=sensor | {"to": "9999-12-31T23:59:59-14:00"}))
    problem(api.get("/api/v1/readings", params=sensor, headers={"accept": "image/png"}), 406)


@pytest.mark.parametrize(
    "times",
    [
        {"from": f"{DAY}T08:01:00Z", "to": f"{DAY}T08:01:00Z"},
        {"from": "2099-01-01T00:00:00Z"},
        {"to": "1999-01-01T00:00:00Z"},
    ],
)
@pytest.mark.parametrize("bucket", [{}, {"bucket": "5m"}, {"bucket": "1h"}])
def test_a_range_without_anything_in_it_is_empty(
    api: httpx.Client, times: dict[str, str], bucket: dict[str, str]
) -> None:
    params = {"sensor": "pond-1/depth"} | times | bucket
    assert ok(api.get("/api/v1/readings", params=params)) == {"items": [], "next": None}
    answer = api.get("/api/v1/readings", params=params, headers={"accept": "text/csv"})
    assert (answer.status_code, len(answer.text.splitlines())) == (200, 1)
    if "bucket" not in bucket:
        assert ok(api.get("/api/v1/alerts", params=times))["items"] == [] or "to" not in times


def test_the_latest_values(api: httpx.Client) -> None:
    items = ok(api.get("/api/v1/latest", params={"sensor": ["gas-1/ch4", "pond-1/depth"]}))["items"]
    assert [item["sensor"] for item in items] == ["gas-1/ch4", "pond-1/depth"]
    assert items[0] == {
        "sensor": "gas-1/ch4", "observed_at": None, "received_at": None, "value": None, "quality": None,
        "reasons": [], "age_s": None, "unit": "%VOL", "kind": "gas.methane", "status": "never",
    }  # fmt: skip
    assert (items[1]["value"], items[1]["observed_at"], items[1]["status"]) == (3, f"{DAY}T08:05:00Z", "ok")
    assert items[1]["age_s"] > 0
    found = ok(api.get("/api/v1/latest", params={"bbox": "114,22,115,23", "kind": "drainage.ponding_depth"}))["items"]
    assert [item["sensor"] for item in found] == ["pond-1/depth", "pond-2/depth"]
    page = ok(api.get("/api/v1/latest", params={"limit": 1, "kind": "drainage.ponding_depth"}))
    rest = ok(api.get("/api/v1/latest", params={"after": page["next"], "kind": "drainage.ponding_depth"}))
    assert [item["sensor"] for item in page["items"] + rest["items"]] == ["pond-1/depth", "pond-2/depth"]
    problem(api.get("/api/v1/latest?sensor=none/p"), 404)
    problem(api.get("/api/v1/latest?kind=none.p"), 404)


# Alerts


def test_alerts_are_listed_and_told_with_their_history(api: httpx.Client) -> None:
    everything = ok(api.get("/api/v1/alerts"))["items"]
    assert {(a["sensor"], a["state"]) for a in everything} == {
        ("pond-1/depth", "cleared_unacknowledged"),
        ("pond-2/depth", "active_unacknowledged"),
    }
    newest = everything[0]
    assert newest["sensor"] == "pond-2/depth"
    assert {"id", "rule", "rule_version", "sensor", "asset", "tenant", "level", "peak_level", "state", "flags", "since",
            "raised_at", "cleared_at", "value", "peak_value", "threshold", "place", "instruction",
            "message"} <= newest.keys()  # fmt: skip
    assert newest["instruction"] == {"zh": "封路", "en": "Close the road"}
    assert newest["place"]["lon"] == 114.1
    assert (newest["level"], newest["raised_at"]) == ("blue", f"{DAY}T09:00:00.250Z")
    cleared = everything[1]
    assert (cleared["peak_level"], cleared["cleared_at"]) == ("red", f"{DAY}T08:05:00Z")
    one = ok(api.get(f"/api/v1/alerts/{cleared['id']}"))
    assert [event["transition"] for event in one["events"]] == ["raised", "escalated", "cleared"]
    assert one["events"][2]["level"] == "red"
    first = ok(api.get("/api/v1/alerts?limit=1"))
    rest = ok(api.get("/api/v1/alerts", params={"after": first["next"]}))
    assert [a["id"] for a in first["items"] + rest["items"]] == [a["id"] for a in everything]
    assert rest["next"] is None
    open_ones = ok(api.get("/api/v1/alerts?state=open"))
    assert open_ones == {"items": everything, "next": None}
    first = ok(api.get("/api/v1/alerts?state=open&limit=1"))
    rest = ok(api.get("/api/v1/alerts?state=open", params={"after": first["next"]}))
    assert first["items"] + rest["items"] == everything
    assert rest["next"] is None


@pytest.mark.parametrize(
    ("params", "number"),
    [
        ({"state": "open"}, 2),
        ({"state": "active_unacknowledged"}, 1),
        ({"state": "cleared"}, 0),
        ({"level": "blue"}, 1),
        ({"level": "blue,red"}, 2),
        ({"domain": "gas"}, 0),
        ({"sensor": "pond-2/depth"}, 1),
        ({"asset": "underpass-2"}, 1),
        ({"rule": "ponding", "tenant": "default"}, 2),
        ({"from": f"{DAY}T09:00:00Z", "state": "active_unacknowledged"}, 1),
        ({"to": f"{DAY}T08:01:00Z"}, 0),
        ({"to": f"{DAY}T08:01:00.001Z"}, 1),
    ],
)
def test_alerts_are_filtered(api: httpx.Client, params: dict[str, str], number: int) -> None:
    assert len(ok(api.get("/api/v1/alerts", params=params))["items"]) == number


def test_what_cannot_be_asked_of_alerts(api: httpx.Client) -> None:
    problem(api.get("/api/v1/alerts/none"), 404)
    problem(api.get("/api/v1/alerts?sensor=none/p"), 404)
    problem(api.get("/api/v1/alerts?asset=none"), 404)
    for params in ("state=shut", "level=purple", "from=x", "after=x", f"from={DAY}T01:00:00Z&to={DAY}T00:00:00Z"):
        problem(api.get(f"/api/v1/alerts?{params}"), 422)
    for path in ("alerts/%00", "alerts/x%00", "alerts?asset=%00", "latest?asset=%00", "sensors/x%00/p", "rules/%00"):
        problem(api.get(f"/api/v1/{path}"), 404)
    problem(api.post("/api/v1/alerts/%00/actions", json={"action": "note", "note": "x"}), 404)
    problem(api.post("/api/v1/devices/%00/replace", json={"by": "x"}), 404)
    at = f"{DAY}T08:02:00Z"
    assert ok(api.get("/api/v1/alerts", params={"from": at, "to": at})) == {"items": [], "next": None}
    problem(api.get("/api/v1/alerts", params={"from": at, "to": at, "state": "shut"}), 422)


def reused(api: httpx.Client, path: str, body: Any, key: dict[str, str]) -> None:
    """Check that a key that was used for something else is refused, by name."""
    assert "Idempotency-Key" in problem(api.post(path, json=body, headers=key), 422)["detail"]


def test_people_act_on_alerts_once_for_each_key(city: Cimtwin, api: httpx.Client) -> None:
    at = f"2026-07-03T00:00:{time.time_ns() % 60:02d}Z"
    city.publish(("cim/v1/default/pond-2/telemetry", {"ts": at, "values": {"depth": 1}}))
    city.publish(("cim/v1/default/pond-2/telemetry", {"ts": "2026-07-04T00:00:00Z", "values": {"depth": 50}}))

    def newest() -> dict[str, Any]:
        found: dict[str, Any] = ok(api.get("/api/v1/alerts", params={"sensor": "pond-2/depth"}))["items"][0]
        return found

    until(lambda: newest()["raised_at"] == "2026-07-04T00:00:00Z", "the alert")
    path = f"/api/v1/alerts/{newest()['id']}/actions"
    acknowledge = {"action": "acknowledge", "by": "li", "note": "已派人"}
    key = {"Idempotency-Key": uuid.uuid4().hex}
    problem(api.post(path, json={"action": "close", "by": "li"}), 409)
    body = ok(api.post(path, json=acknowledge, headers=key))
    assert body["state"] == "active_acknowledged"
    assert ok(api.post(path, json=acknowledge, headers=key)) == body
    reused(api, path, acknowledge | {"by": "wang"}, key)
    reused(api, "/api/v1/quarantine/redrive", acknowledge, key)
    ok(api.post(path, json={"action": "note", "by": "li", "note": "水退 receding"}))
    history = ok(api.get(path.removesuffix("/actions")))["events"]
    assert [event["transition"] for event in history][:2] == ["raised", "acknowledged"]
    assert len(history) == 3
    assert (history[1]["by"], history[1]["note"]) == ("li", "已派人")
    problem(api.post("/api/v1/alerts/none/actions", json=acknowledge), 404)
    note = {"action": "note", "by": "li", "note": "x"}
    for wrong in ({}, [], note | {"action": "dance"}, note | {"action": 3}, note | {"note": ""}, note | {"by": ""},
                  note | {"note": "\0"}):  # fmt: skip
        problem(api.post(path, json=wrong), 422)
    json_type = {"content-type": "application/json"}
    for content in (b"", b"{", b"\xff\xff", b'{"a":' * 50_000):
        assert "JSON" in problem(api.post(path, content=content, headers=json_type), 422)["detail"]


def raised(city: Cimtwin, api: httpx.Client, sensor: str, at: str) -> dict[str, Any]:
    """The alert that a deep reading raises; what stood before has ended and is closed."""
    device = sensor.partition("/")[0]
    early = f"{at[:10]}T00:00:00Z"
    city.publish((f"cim/v1/default/{device}/telemetry", {"ts": early, "values": {"depth": 1}}))
    city.publish((f"cim/v1/default/{device}/telemetry", {"ts": at, "values": {"depth": 20}}))

    def newest() -> dict[str, Any] | None:
        found = ok(api.get("/api/v1/alerts", params={"sensor": sensor}))["items"]
        return found[0] if found and found[0]["raised_at"] == at else None

    return cast("dict[str, Any]", until(newest, "the alert"))


def when(seconds: float) -> str:
    """So far from now."""
    return (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def test_every_action_of_the_contract_and_what_each_state_allows(city: Cimtwin, api: httpx.Client) -> None:
    alert = raised(city, api, "pond-2/depth", "2026-08-03T08:00:00Z")
    path = f"/api/v1/alerts/{alert['id']}"

    def act(action: str, status: int = 200, **more: Any) -> dict[str, Any]:
        answer = api.post(f"{path}/actions", json={"action": action, "by": "li", **more})
        assert answer.status_code == status, answer.text
        return cast("dict[str, Any]", answer.json())

    for action in ("unshelve", "return_to_service", "close"):
        act(action, 409)
    for wrong in ({}, {"until": "soon"}, {"until": when(-5)}, {"until": when(400 * 86_400)}):
        act("shelve", 422, **wrong)
    assert act("assign")["assignee"] == "li"
    assert act("assign", to="wang")["assignee"] == "wang"
    end = when(3600)
    key = {"Idempotency-Key": uuid.uuid4().hex}
    shelve = {"action": "shelve", "by": "li", "until": end}
    first = ok(api.post(f"{path}/actions", json=shelve, headers=key))
    assert ok(api.post(f"{path}/actions", json=shelve, headers=key)) == first
    assert (first["flags"], first["shelved_until"]) == (["shelved"], end)
    act("shelve", 409, until=end)
    assert act("out_of_service", note="换探头")["flags"] == ["shelved", "out_of_service"]
    act("out_of_service", 409)
    # The whole point is held back: also what cleared there before, unseen.
    held = ok(api.get("/api/v1/alerts?flag=shelved&state=open"))["items"]
    assert {a["sensor"] for a in held} == {"pond-2/depth"}
    assert held[0]["id"] == alert["id"]
    assert act("unshelve")["flags"] == ["out_of_service"]
    assert act("return_to_service")["flags"] == []
    assert act("confirm")["verdict"] == "confirmed"
    act("confirm", 409)
    assert act("false_alarm")["verdict"] == "false_alarm"
    assert act("acknowledge")["state"] == "active_acknowledged"
    history = ok(api.get(path))["events"]
    assert [event["transition"] for event in history] == [
        "raised", "assigned", "assigned", "shelved", "out_of_service", "unshelved", "returned_to_service", "confirmed",
        "false_alarm", "acknowledged",
    ]  # fmt: skip
    assert [event["flags"] for event in history[3:6]] == [
        ["shelved"], ["shelved", "out_of_service"], ["out_of_service"]
    ]  # fmt: skip
    assert history[2]["detail"] == {"assignee": "wang"}
    problem(api.get("/api/v1/alerts?flag=loud"), 422)


def test_holds_are_begun_listed_and_ended(city: Cimtwin, api: httpx.Client) -> None:
    alert = raised(city, api, "pond-1/depth", "2026-08-04T08:00:00Z")
    path = f"/api/v1/alerts/{alert['id']}"
    silence = {"kind": "silence", "matchers": {"tag": "underpass", "level": ["blue", "yellow"]}, "until": when(3600),
               "by": "li", "note": "排水演练"}  # fmt: skip
    key = {"Idempotency-Key": uuid.uuid4().hex}
    begun = ok(api.post("/api/v1/holds", json=silence, headers=key))
    assert ok(api.post("/api/v1/holds", json=silence, headers=key)) == begun
    assert (begun["state"], begun["flag"], begun["by"]) == ("active", "suppressed", "li")
    held = ok(api.get(path))
    assert (held["flags"], held["suppressed_by"]) == (["suppressed"], [f"silence:{begun['id']}"])
    assert (held["events"][-1]["transition"], held["events"][-1]["note"]) == ("suppressed", "排水演练")
    night = {"kind": "mute", "matchers": {"domain": "gas"}, "times": {"hours": ["22:00-06:00"], "weekdays": [6, 7]}}
    muted = ok(api.post("/api/v1/holds", json=night))
    assert ok(api.get(f"/api/v1/holds/{muted['id']}"))["times"] == night["times"]
    listed = ok(api.get("/api/v1/holds?kind=silence,mute&state=standing&limit=1"))
    assert [hold["id"] for hold in listed["items"]] == [muted["id"]]
    rest = ok(api.get("/api/v1/holds", params={"kind": "silence,mute", "after": listed["next"]}))
    assert [hold["id"] for hold in rest["items"]] == [begun["id"]]
    ended = ok(api.delete(f"/api/v1/holds/{begun['id']}?by=wang"))
    assert (ended["state"], ended["ended_by"]) == ("ended", "wang")
    problem(api.delete(f"/api/v1/holds/{begun['id']}"), 409)
    problem(api.delete("/api/v1/holds/none"), 404)
    problem(api.get("/api/v1/holds/none"), 404)
    told = ok(api.get(path))
    assert (told["flags"], told["events"][-1]["transition"], told["events"][-1]["by"]) == ([], "unsuppressed", "wang")
    assert ok(api.get("/api/v1/holds?state=ended&kind=silence"))["items"][0]["id"] == begun["id"]
    for wrong in (
        {}, {"kind": "shelve"}, {"kind": "nap"}, {"matchers": {}}, {"matchers": {"colour": "red"}}, {"until": None},
        {"until": when(-5)}, {"from": when(9999)}, {"kind": "mute"}, {"times": {"hours": ["25:00-26:00"]}},
        {"matchers": {"rule": [1]}}, {"by": 3}, {"until": "soon"},
    ):  # fmt: skip
        problem(api.post("/api/v1/holds", json=silence | wrong if wrong else {}), 422)


@pytest.mark.parametrize("media", ["application/x-www-form-urlencoded", "text/plain", "application/octet-stream", None])
def test_json_is_taken_whatever_it_is_called(api: httpx.Client, media: str | None) -> None:
    headers = {} if media is None else {"content-type": media}
    ok(api.post("/api/v1/sensors", json={"device": "named-1", "property": "p", "kind": "water.flow"}))
    alert = ok(api.get("/api/v1/alerts"))["items"][0]["id"]
    for path, body in (
        (f"alerts/{alert}/actions", {"action": "note", "by": "li", "note": "x"}),
        ("quarantine/redrive", {"ids": [2**62]}),
        ("devices/named-1/replace", {"by": f"named-{media or 'none'}".replace("/", "-")}),
    ):
        ok(api.post(f"/api/v1/{path}", content=json.dumps(body).encode(), headers=headers))
        body_of_none = problem(api.post(f"/api/v1/{path}", content=b"action=note&by=li", headers=headers), 422)
        assert "not JSON" in body_of_none["detail"]


# Rules


def test_rules_are_given_and_taken_as_toml_and_json(api: httpx.Client) -> None:
    toml = {"accept": "application/toml"}
    answer = api.get("/api/v1/rules", headers=toml)
    assert answer.headers["content-type"].startswith("application/toml")
    assert answer.text.strip() == RULES.strip()
    given = ok(api.get("/api/v1/rules"))
    assert [rule["id"] for rule in given["rule"]] == ["ponding"]
    one = ok(api.get("/api/v1/rules/ponding"))
    assert one["levels"] == {"blue": 10, "red": 40}
    assert "[[rule]]" in api.get("/api/v1/rules/ponding", headers=toml).text
    problem(api.get("/api/v1/rules/none"), 404)
    problem(api.get("/api/v1/rules", headers={"accept": "image/png"}), 406)
    version = ok(api.put("/api/v1/rules", json=given))["version"]
    assert version == given["version"] + 1
    assert ok(api.get("/api/v1/rules"))["rule"] == given["rule"]
    assert ok(api.get("/api/v1/rules", params={"version": given["version"]}))["rule"] == given["rule"]
    problem(api.get("/api/v1/rules?version=9999"), 404)
    content = answer.content
    assert ok(api.put("/api/v1/rules", content=content, headers={"content-type": "application/toml"}))["version"] > 0
    assert api.get("/api/v1/rules", headers=toml).text.strip() == RULES.strip()


def test_wrong_rules_are_refused_whole_with_every_mistake(api: httpx.Client) -> None:
    before = ok(api.get("/api/v1/rules"))
    wrong = RULES.replace("blue = 10", 'blue = "ten"').replace('"threshold"', '"guess"')
    answer = api.put("/api/v1/rules", content=wrong.encode(), headers={"content-type": "application/toml"})
    assert len(problem(answer, 422)["problems"]) >= 1
    for content in (b"[[rule", b"\xff", b"x = " + b"[" * 5000):
        problem(api.put("/api/v1/rules", content=content, headers={"content-type": "application/toml"}), 422)
    for value in ([], {"rule": 5}, {"rule": [{"id": "x"}]}, 7, {}, {"items": []}, {"version": 3}):
        problem(api.put("/api/v1/rules", json=value), 422)
    for media in ("application/toml", "application/json", "text/plain", ""):
        for content in (b"", b" \n", b"# nothing\n", b"\xef\xbb\xbf"):
            problem(api.put("/api/v1/rules", content=content, headers={"content-type": media}), 422)
    for media in ("text/csv", "image/png", "multipart/form-data; boundary=x"):
        problem(api.put("/api/v1/rules", content=RULES.encode(), headers={"content-type": media}), 415)
    assert ok(api.get("/api/v1/rules")) == before


@pytest.mark.parametrize(
    ("media", "content"), [("application/toml", "rule = []\n"), ("application/json", '{"rule": []}')]
)
def test_a_rule_set_is_empty_only_where_it_says_so(cimtwin: Callable[..., Cimtwin], media: str, content: str) -> None:
    city = cimtwin()
    path = f"{city.url}/api/v1/rules"
    ok(httpx.put(path, content=content, headers={"content-type": media}))
    given = httpx.get(path, headers={"accept": "application/toml"})
    assert given.text == "rule = []\n"
    assert ok(httpx.get(path))["rule"] == []
    ok(httpx.put(path, content=given.content, headers={"content-type": given.headers["content-type"]}))
    assert city.stop() == 0
    city.start()
    assert ok(httpx.get(path))["rule"] == []


# Quarantine, devices


def test_quarantine_shows_what_was_refused_and_tries_again(city: Cimtwin, api: httpx.Client) -> None:
    items = ok(api.get("/api/v1/quarantine"))["items"]
    by_reason = {item["reason"]: item for item in items}
    assert by_reason["unknown-device"]["text"] == '{"depth": 1}'
    assert by_reason["unknown-device"]["device"] == "nobody"
    assert base64.b64decode(by_reason["malformed"]["payload"]) == b"\xff\xfe"
    assert by_reason["malformed"]["text"] is None
    assert len(ok(api.get("/api/v1/quarantine", params={"reason": "malformed"}))["items"]) == 1
    problem(api.get("/api/v1/quarantine?reason=ugly"), 422)
    first = ok(api.get("/api/v1/quarantine?limit=1"))
    rest = ok(api.get("/api/v1/quarantine", params={"after": first["next"]}))
    assert [i["id"] for i in first["items"] + rest["items"]] == [i["id"] for i in items]
    late = {"device": "late-comer", "property": "depth", "kind": "drainage.ponding_depth"}
    city.publish(("cim/v1/default/late-comer/telemetry", {"ts": f"{DAY}T00:00:00Z", "values": {"depth": 1}}))
    held = until(lambda: ok(api.get("/api/v1/quarantine?device=late-comer"))["items"], "the refusal")
    ok(api.post("/api/v1/sensors", json=late))
    result = ok(api.post("/api/v1/quarantine/redrive", json={"ids": [held[0]["id"]]}))
    assert result["stored"] == 1
    assert ok(api.get("/api/v1/quarantine?device=late-comer"))["items"] == []
    assert ok(api.post("/api/v1/quarantine/redrive"))["stored"] == 0
    for wrong in ({"ids": "all"}, {"ids": [-1]}, {"ids": [1.5]}, 7):
        problem(api.post("/api/v1/quarantine/redrive", json=wrong), 422)


def test_commands_are_carried_out_once_for_each_key(city: Cimtwin, api: httpx.Client) -> None:
    def twice(path: str, body: Any, other: Any) -> Any:
        """The first answer, after a repetition has had the same and another body was refused."""
        key = {"Idempotency-Key": uuid.uuid4().hex}
        first = ok(api.post(path, json=body, headers=key))
        for _ in range(2):
            assert ok(api.post(path, json=body, headers=key)) == first
        reused(api, path, other, key)
        return first

    once_1, once_2 = ({"device": f"once-{n}", "property": "p", "kind": "water.flow"} for n in (1, 2))
    assert ok(api.post("/api/v1/sensors", json=once_2)) == {"created": 1, "updated": 0}
    key = {"Idempotency-Key": uuid.uuid4().hex}
    first = ok(api.post("/api/v1/sensors", json=once_1, headers=key))
    assert first == {"created": 1, "updated": 0}
    ok(api.patch("/api/v1/sensors/once-1/p", json={"max": 5}))
    assert ok(api.post("/api/v1/sensors", json=once_1, headers=key)) == first
    assert ok(api.get("/api/v1/sensors/once-1/p"))["max"] == 5  # the repetition did not write it again
    reused(api, "/api/v1/sensors", once_2, key)
    reused(api, "/api/v1/devices/once-2/replace", {"by": "x-2"}, key)

    replaced = twice("/api/v1/devices/once-1/replace", {"by": "once-b"}, {"by": "once-c"})
    assert replaced["since"].endswith("Z")  # not given, so by the clock: and the same at each repetition

    city.publish(("cim/v1/default/once-3/telemetry", {"ts": f"{DAY}T00:00:00Z", "values": {"p": 1}}))
    held = until(lambda: ok(api.get("/api/v1/quarantine?device=once-3"))["items"], "the refusal")
    body = {"ids": [held[0]["id"]]}
    in_vain = twice("/api/v1/quarantine/redrive", body, {"ids": [1, 2]})
    assert in_vain == {"tried": 1, "stored": 0, "duplicate": 0, "quarantined": 1}
    ok(api.post("/api/v1/sensors", json=once_1 | {"device": "once-3"}))
    assert twice("/api/v1/quarantine/redrive", body, {})["stored"] == 1
    assert twice("/api/v1/quarantine/redrive", body, {})["tried"] == 0
    for wrong in ("", "x" * 256):
        problem(api.post("/api/v1/quarantine/redrive", headers={"Idempotency-Key": wrong}), 422)


def test_a_redrive_of_whole_pages_keeps_its_answer_too(city: Cimtwin, api: httpx.Client) -> None:
    times = [1_751_328_000_000 + n for n in range(1000)]
    city.publish(*(("cim/v1/default/many-1/telemetry", {"ts": at, "values": {"p": 1}}) for at in times))

    def held() -> list[int]:
        return [item["id"] for item in ok(api.get("/api/v1/quarantine?device=many-1&limit=1000"))["items"]]

    until(lambda: len(held()) == 1000, "the refusals")
    ok(api.post("/api/v1/sensors", json={"device": "many-1", "property": "p", "kind": "water.flow"}))
    key, body = {"Idempotency-Key": uuid.uuid4().hex}, {"ids": held()}
    for _ in range(2):
        answer = ok(api.post("/api/v1/quarantine/redrive", json=body, headers=key))
        assert answer == {"tried": 1000, "stored": 1000, "duplicate": 0, "quarantined": 0}
    assert held() == []


def test_a_refused_command_leaves_its_key_free(api: httpx.Client) -> None:
    key = {"Idempotency-Key": uuid.uuid4().hex}
    wrong = {"device": "free-1", "property": "p", "kind": "no.such"}
    problem(api.post("/api/v1/sensors", json=wrong, headers=key), 422)
    assert ok(api.post("/api/v1/sensors", json=wrong | {"kind": "water.flow"}, headers=key))["created"] == 1


def test_a_device_is_replaced_and_keeps_its_history(city: Cimtwin, api: httpx.Client) -> None:
    ok(api.post("/api/v1/sensors", json={"device": "old-1", "property": "p", "kind": "water.flow"}))
    path = "/api/v1/devices/old-1/replace"
    answer = ok(api.post(path, json={"by": "new-1", "since": f"{DAY}T00:00:00Z"}))
    assert (answer["device"], answer["hardware"], answer["since"]) == ("old-1", "new-1", f"{DAY}T00:00:00Z")
    city.publish(("cim/v1/default/new-1/telemetry", {"ts": f"{DAY}T10:00:00Z", "values": {"p": 7}}))
    until(lambda: ok(api.get("/api/v1/readings?sensor=old-1/p"))["items"], "the reading")
    problem(api.post("/api/v1/devices/none/replace", json={"by": "x"}), 404)
    for wrong in ({}, {"by": "a/b"}, {"by": "gateway"}, {"by": "x", "since": "now"}):
        problem(api.post(path, json=wrong), 422)


# What holds for all


def test_errors_are_problems_also_where_no_route_is(api: httpx.Client) -> None:
    problem(api.get("/none"), 404)
    problem(api.get("/api/v1/none"), 404)
    for method, path, allowed in (
        ("DELETE", "/api/v1/rules", "GET, HEAD, PUT"),
        ("POST", "/api/v1/latest", "GET, HEAD"),
        ("PUT", "/api/v1/sensors", "GET, HEAD, POST"),
        ("OPTIONS", "/api/v1/sensors/pond-1/depth", "GET, HEAD, PATCH"),
        ("GET", "/api/v1/quarantine/redrive", "POST"),
        ("DELETE", "/healthz", "GET, HEAD"),
        ("POST", "/docs", "GET, HEAD"),
        ("POST", "/static-offline-docs/swagger-ui.css", "GET, HEAD"),
    ):
        answer = api.request(method, path)
        problem(answer, 405)
        assert answer.headers["allow"] == allowed, path


def test_head_is_answered_as_get_without_the_body(api: httpx.Client) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/api/v1/stats", "/api/v1/sensors",
                 "/api/v1/readings?sensor=pond-1/depth", "/api/v1/rules", "/api/v1/alerts"):  # fmt: skip
        answer, full = api.head(path), api.get(path)
        assert (answer.status_code, answer.content) == (200, b""), path
        assert answer.headers["content-type"] == full.headers["content-type"]
        assert int(answer.headers["content-length"]) > 0
    answer = api.head("/api/v1/readings?sensor=pond-1/depth", headers={"accept": "text/csv"})
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert api.head("/none").status_code == 404
    answer = api.head("/api/v1/quarantine/redrive")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_bodies_over_the_bound_are_refused(api: httpx.Client) -> None:
    def chunks(total: int) -> Iterator[bytes]:
        for _ in range(total // 65536 + 1):
            yield b" " * 65536

    for path, limit, method in (
        ("/api/v1/alerts/x/actions", 1 << 20, "POST"),
        ("/api/v1/rules", 4 << 20, "PUT"),
        ("/api/v1/sensors", 32 << 20, "POST"),
        ("/api/v1/sensors/pond-1/depth", 1 << 20, "PATCH"),
    ):
        headers = {"content-type": "application/json"}
        problem(api.request(method, path, content=chunks(limit), headers=headers), 413)
        with httpx.Client(base_url=api.base_url) as other:
            answer = other.request(method, path, content=b" " * (limit + 1), headers=headers, timeout=30)
        problem(answer, 413)


def test_pages_load_nothing_from_elsewhere_and_may_not_be_framed(api: httpx.Client) -> None:
    page = api.get("/docs")
    assert page.status_code == 200
    assert "http://" not in page.text
    assert "https://" not in page.text
    for path in ("/docs", "/api/v1/stats", "/none", "/healthz"):
        headers = api.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "http" not in headers["content-security-policy"]
    script = page.text.split('src="')[1].split('"')[0]
    assert api.get(script).status_code == 200


def test_the_description_has_every_route_with_an_example_in_two_languages(api: httpx.Client) -> None:
    description = ok(api.get("/openapi.json"))
    paths = {path.removeprefix("/api/v1") for path in description["paths"]}
    assert {"/healthz", "/readyz", "/metrics", "/stats", "/sensors", "/sensors/{device}/{property}", "/readings",
            "/latest", "/alerts", "/alerts/{id}", "/alerts/{id}/actions", "/rules", "/rules/{id}", "/quarantine",
            "/quarantine/redrive", "/devices/{device}/replace"} <= paths  # fmt: skip
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            assert " / " in operation["summary"], (method, path)
            assert "example" in json.dumps(operation["responses"]["200"]), (method, path)
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    ((media, content),) = response["content"].items()
                    assert media == "application/problem+json"
                    assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
                    assert content["example"]["status"] == int(status)
            names = [p["name"] for p in operation.get("parameters", [])]
            acts = method == "post" and path not in ("/api/v1/digs", "/api/v1/backtests")  # which only ask
            assert ("Idempotency-Key" in names) == acts, (method, path)
            assert ("requestBody" in operation) == (method in ("post", "put", "patch")), (method, path)
    schemas = description["components"]["schemas"]
    assert not {"HTTPValidationError", "ValidationError"} & schemas.keys()
    assert {"title", "status", "detail", "problems"} <= schemas["Problem"]["properties"].keys()
    assert description["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert {} in description["security"]  # this service has no token
    assert list(description["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) == ["text/plain"]
    references = set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(description)))
    assert references <= schemas.keys()


# Who may call


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "10.0.0.1"])
def test_without_a_token_only_loopback_names_are_served(api: httpx.Client, host: str) -> None:
    problem(api.get("/api/v1/stats", headers={"host": host}), 403)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8000", "LOCALHOST:80"])
def test_loopback_names_are_served(api: httpx.Client, host: str) -> None:
    ok(api.get("/api/v1/stats", headers={"host": host}))


def test_a_page_of_another_site_may_not_act(api: httpx.Client) -> None:
    body = {"action": "acknowledge", "by": "x"}
    for origin in ("https://evil.example", "null", "http://localhost.evil.example"):
        problem(api.post("/api/v1/alerts/none/actions", json=body, headers={"origin": origin}), 403)
    own = {"origin": "http://localhost:5173"}
    problem(api.post("/api/v1/alerts/none/actions", json=body, headers=own), 404)
