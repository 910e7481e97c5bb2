"""The WebSocket of contract 6 at a running service."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.conftest import Cimtwin, Watcher, until

SENSORS = """device,property,kind,unit,lon,lat
pond-1,depth,drainage.ponding_depth,cm,114.05,22.54
pond-2,depth,drainage.ponding_depth,cm,114.10,22.60
"""
RULES = """
[[rule]]
id = "ponding"
title = { zh = "积水", en = "Ponding" }
kind = "drainage.ponding_depth"
detector = "threshold"
levels = { yellow = 10, red = 40 }
"""
TOKEN = "correct-horse-battery"
Make = Callable[..., Cimtwin]


@pytest.fixture
def city(cimtwin: Make) -> Cimtwin:
    return prepared(cimtwin())


def prepared(service: Cimtwin) -> Cimtwin:
    service.put_sensors(SENSORS)
    service.put_rules(RULES)
    return service


def depths(service: Cimtwin, values: list[float], device: str = "pond-1", start: float | None = None) -> None:
    """One reading a second."""
    first = round((time.time() if start is None else start) * 1000)
    pack = [{"ts": first + 1000 * n, "values": {"depth": value}} for n, value in enumerate(values)]
    service.publish((f"cim/v1/default/{device}/telemetry", pack))


def open_socket(service: Cimtwin, **more: Any) -> ClientConnection:
    url = service.url.replace("http", "ws", 1) + "/ws/v1/live"
    # Newer websockets connect on entering, older ones at once.
    return connect(url, max_size=None, compression=None, **more).__enter__()


def closed(client: ClientConnection) -> tuple[int, list[dict[str, Any]]]:
    """Read to the end: the close code, and the frames before it."""
    frames = []
    try:
        while True:
            frames.append(json.loads(client.recv(30)))
    except ConnectionClosed as end:
        return (end.rcvd.code if end.rcvd else 0), frames


def test_snapshot_events_and_readings(city: Cimtwin) -> None:
    hour_ago = time.time() - 3600
    depths(city, [5, 12, 50, 2], start=hour_ago)
    depths(city, [20], "pond-2", hour_ago)
    city.drained(5)
    watcher = city.watch(readings={"bbox": [114, 22, 115, 23]})
    snapshot = watcher.read()
    stats = city.stats()
    assert (snapshot["type"], snapshot["epoch"], snapshot["seq"]) == ("snapshot", stats["epoch"], stats["seq"])
    assert {a["sensor"] for a in snapshot["alerts"]} == {"pond-1/depth", "pond-2/depth"}
    latest = watcher.until(lambda f: f["type"] == "readings")
    assert {item["sensor"]: item["value"] for item in latest["items"]} == {"pond-1/depth": 2, "pond-2/depth": 20}
    depths(city, [45])
    raised = watcher.until(lambda f: f["type"] == "alert")
    assert raised["seq"] == snapshot["seq"] + 1
    assert {"id", "alert_id", "rule", "sensor", "asset", "level", "state", "transition", "value", "threshold",
            "observed_at", "at", "message"} <= raised["event"].keys()  # fmt: skip
    assert (raised["event"]["transition"], raised["event"]["level"], raised["event"]["value"]) == ("raised", "red", 45)
    told = [f for f in watcher.frames if f["type"] == "readings"]
    if len(told) < 2:
        told.append(watcher.until(lambda f: f["type"] == "readings"))
    assert told[-1]["items"][-1]["value"] == 45
    assert city.stats()["ws_clients"] == 1
    watcher.close()
    until(lambda: city.stats()["ws_clients"] == 0, "the client to be forgotten")


def test_a_client_resumes_over_a_restart_and_misses_nothing(city: Cimtwin) -> None:
    start = time.time() - 3000
    watcher = city.watch()
    watcher.read()
    depths(city, [50, 1], start=start)
    seen = watcher.events(2)
    epoch, seq = city.stats()["epoch"], seen[-1]["seq"]
    watcher.close()
    depths(city, [50, 1] * 10, start=start + 10)
    city.drained(22)
    assert city.stop() == 0
    city.start()
    watcher = city.watch(resume={"epoch": epoch, "seq": seq})
    depths(city, [50], start=start + 60)
    missed = watcher.events(21)
    assert [frame["seq"] for frame in missed] == list(range(seq + 1, seq + 22))
    assert "snapshot" not in {frame["type"] for frame in watcher.frames}
    pings = [f for f in watcher.frames if f["type"] == "ping"] or [watcher.until(lambda f: f["type"] == "ping")]
    assert pings[0]["seq"] >= seq + 20
    other = city.watch(resume={"epoch": "another", "seq": seq})
    assert [other.read()["type"], other.read()["type"]] == ["gap", "snapshot"]
    future = city.watch(resume={"epoch": epoch, "seq": 10**9})
    assert [future.read()["type"], future.read()["type"]] == ["gap", "snapshot"]
    nothing_missed = city.watch(resume={"epoch": epoch, "seq": seq + 21})
    assert nothing_missed.read() == {"type": "ping", "seq": seq + 21}


def test_filters_are_kept_and_replaced(city: Cimtwin) -> None:
    start = time.time() - 3000
    red = Watcher(city.url, {"alerts": {"min_level": "red"}})
    box = Watcher(city.url, {"alerts": {"bbox": [114.08, 22, 115, 23]}})
    for watcher in (red, box):
        watcher.read()
    depths(city, [20, 50, 20, 1], start=start)
    depths(city, [20], "pond-2", start=start)
    # raised at yellow does not pass red; escalated and de-escalated do; cleared from yellow does not
    assert [f["event"]["transition"] for f in red.events(2)] == ["escalated", "deescalated"]
    assert [f["event"]["sensor"] for f in box.events(1)] == ["pond-2/depth"]
    box.socket.send(json.dumps({"type": "subscribe", "alerts": {"domains": ["gas"]}}))
    snapshot = box.until(lambda f: f["type"] == "snapshot")
    assert snapshot["alerts"] == []


@pytest.mark.parametrize(
    "frame", ["", "not json", "[]", '{"type": "hello"}', '{"type": "subscribe", "readings": {"sensors": ["no/such"]}}']
)
def test_a_bad_first_frame_is_answered_and_closed(city: Cimtwin, frame: str) -> None:
    client = open_socket(city)
    client.send(frame)
    code, frames = closed(client)
    assert code == 4400
    assert [f["type"] for f in frames] == ["error"]
    assert frames[0]["detail"]


def test_bytes_are_taken_as_text_and_a_huge_frame_is_refused(city: Cimtwin) -> None:
    client = open_socket(city)
    client.send(b'{"type": "subscribe", "alerts": {}}')
    assert json.loads(client.recv(10))["type"] == "snapshot"
    client.send('{"type": "subscribe", "x": "' + "x" * 70_000 + '"}')
    assert closed(client)[0] in (1009, 4400)
    assert city.get("/stats")["ws_clients"] == 0


@pytest.mark.system
def test_who_says_nothing_is_closed_after_ten_seconds(city: Cimtwin) -> None:
    client = open_socket(city)
    began = time.monotonic()
    code, frames = closed(client)
    assert code == 4400
    assert frames[0]["type"] == "error"
    assert 9 < time.monotonic() - began < 20


def test_a_client_that_does_not_read_is_closed_with_4008_and_resumes(cimtwin: Make) -> None:
    city = prepared(cimtwin(CIMTWIN_WS_QUEUE="50"))
    start = time.time() - 20_000
    host, port = city.url.removeprefix("http://").split(":")
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    narrow.connect((host, int(port)))
    # No reading ahead: websockets' own thread would empty the socket.
    client = open_socket(city, sock=narrow, max_queue=1)
    client.send('{"type": "subscribe", "alerts": {}}')
    fast = city.watch()
    fast.read()
    number = 0
    for _ in range(40):
        depths(city, [50, 1] * 250, start=start + number)
        number += 500
        city.drained(number)
        if city.stats()["ws_closed_slow"]:
            break
    assert city.stats()["ws_closed_slow"] == 1
    assert len(fast.events(number)) == number
    code, frames = closed(client)
    assert code == 4008
    seqs = [f["seq"] for f in frames if f["type"] == "alert"]
    assert seqs == list(range(seqs[0], seqs[-1] + 1))
    back = city.watch(resume={"epoch": city.stats()["epoch"], "seq": seqs[-1]})
    missed = back.events(fast.frames[-1]["seq"] - seqs[-1])
    assert [f["seq"] for f in missed] == list(range(seqs[-1] + 1, fast.frames[-1]["seq"] + 1))


@pytest.fixture
def guarded(cimtwin: Make) -> Cimtwin:
    return cimtwin(CIMTWIN_API_TOKEN=TOKEN)


def test_with_a_token_nothing_is_given_without_it(guarded: Cimtwin) -> None:
    token = TOKEN
    for path in ("/api/v1/stats", "/metrics", "/none", "/docs/x", "/static-offline-docs", "/openapi.json/"):
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {token}"},
                        {"authorization": f"Bearer {token}x"}):  # fmt: skip
            answer = httpx.get(guarded.url + path, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["www-authenticate"] == "Bearer"
    # The description of the API holds no data.
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json", "/static-offline-docs/swagger-ui.css"):
        assert httpx.get(guarded.url + path).status_code == 200
    assert httpx.get(guarded.url + "/static-offline-docs/../api/v1/stats").status_code == 401
    assert httpx.get(guarded.url + "/static-offline-docs/%2e%2e/api/v1/stats").status_code in (401, 404)
    description = httpx.get(guarded.url + "/openapi.json").json()
    assert description["security"] == [{"bearer": []}]
    assert description["paths"]["/healthz"]["get"]["security"] == []
    assert "401" in description["paths"]["/api/v1/stats"]["get"]["responses"]
    answer = httpx.get(guarded.url + "/api/v1/stats", headers={"authorization": f"Bearer {token}", "host": "x.example"})
    assert answer.status_code == 200


def test_the_socket_takes_the_token_in_header_subprotocol_or_first_frame(guarded: Cimtwin) -> None:
    token = TOKEN
    subscribe: dict[str, Any] = {"type": "subscribe", "alerts": {}}
    good: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"additional_headers": {"Authorization": f"Bearer {token}"}}, subscribe),
        ({"subprotocols": ["cimtwin.v1", f"bearer.{token}"]}, subscribe),
        ({"subprotocols": [f"bearer.{token}"]}, subscribe),
        ({"subprotocols": ["bearer", token]}, subscribe),
        ({"subprotocols": ["cimtwin", "bearer", token]}, subscribe),
        ({"subprotocols": ["bearer", "cimtwin"]}, subscribe | {"token": token}),
        ({}, subscribe | {"token": token}),
    ]
    answered: list[str | None] = []
    for more, frame in good:
        client = open_socket(guarded, **more)
        client.send(json.dumps(frame))
        assert json.loads(client.recv(10))["type"] == "snapshot"
        answered.append(client.subprotocol)
        client.close()
    assert answered == [None, "cimtwin.v1", None, "bearer", "cimtwin", "cimtwin", None]
    bad: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
        ({"additional_headers": {"Authorization": "Bearer wrong"}}, None),
        ({"subprotocols": ["bearer.wrong"]}, None),
        ({"subprotocols": ["bearer", "wrong"]}, None),
        ({"subprotocols": [token]}, subscribe),
        ({}, subscribe),
        ({}, subscribe | {"token": "wrong"}),
        ({}, subscribe | {"token": 5}),
        ({}, {"token": "wrong"}),
    ]
    for more, frame in bad:
        client = open_socket(guarded, **more)
        if frame is not None:
            client.send(json.dumps(frame))
        code, frames = closed(client)
        assert code == 4401
        assert [f["type"] for f in frames] == ["error"]


def test_a_page_of_another_site_gets_no_socket(city: Cimtwin) -> None:
    for more in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"additional_headers": {"Host": "evil.example"}},
    ):
        with pytest.raises(InvalidStatus) as refused:
            open_socket(city, **more)
        assert refused.value.response.status_code == 403
    client = open_socket(city, origin="http://localhost:5173")
    client.close()
