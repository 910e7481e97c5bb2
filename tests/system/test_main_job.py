"""From a message at the broker to a frame at the socket, on real services."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from tests.conftest import Cimtwin, until
from twin.embedded import EmbeddedPostgres

pytestmark = pytest.mark.system

PONDING = """
[[rule]]
id = "ponding"
title = { zh = "积水", en = "Ponding" }
kind = "drainage.ponding_depth"
detector = "threshold"
strict = true
levels = { orange = 10.16 }
instruction = { zh = "派人查看", en = "Send somebody" }
"""
SENSORS = (
    "device,property,kind,unit,tenant,asset,lon,lat\nd1,depth,drainage.ponding_depth,cm,市排水,路口甲,117.3,31.8\n"
)


@pytest.mark.parametrize("embedded_broker", [True, False], ids=["nats-server", "mosquitto"])
def test_a_message_at_the_broker_is_a_frame_at_the_socket(
    cimtwin: Callable[..., Cimtwin], mosquitto: str, embedded_broker: bool
) -> None:
    city = cimtwin(**({} if embedded_broker else {"CIMTWIN_MQTT_URL": mosquitto}))
    city.put_rules(PONDING)
    city.put_sensors(SENSORS)
    watcher = city.watch(readings={"sensors": ["d1/depth"]})
    snapshot = watcher.until(lambda f: f["type"] == "snapshot")
    assert snapshot["alerts"] == []
    topic = "cim/v1/市排水/d1/telemetry"
    city.publish(
        (topic, {"ts": 1_790_000_000_000, "values": {"depth": 10.16}}),
        (topic, {"ts": 1_790_000_060_000, "values": {"depth": 12}}),
        (topic, {"ts": "2026-09-21T14:15:20Z", "values": {"depth": 3}}),
    )
    raised, cleared = watcher.events(2)
    assert (raised["seq"], cleared["seq"]) == (snapshot["seq"] + 1, snapshot["seq"] + 2)
    event = raised["event"]
    assert event["transition"] == "raised"
    assert event["sensor"] == "d1/depth"
    assert event["asset"] == "路口甲"
    assert event["level"] == "orange"
    assert event["value"] == 12
    assert event["threshold"] == 10.16
    assert event["observed_at"] == "2026-09-21T14:14:20Z"
    assert "路口甲" in event["message"]["zh"]
    assert cleared["event"]["transition"] == "cleared"
    assert cleared["event"]["state"] == "cleared_unacknowledged"
    (alert,) = city.get("/alerts", state="open")["items"]
    assert alert["place"] == {"lon": 117.3, "lat": 31.8, "name": "路口甲"}
    assert (alert["level"], alert["peak_value"], alert["instruction"]["zh"]) == ("orange", 12, "派人查看")
    done = city.post(f"/alerts/{alert['id']}/actions", {"action": "acknowledge", "by": "值班员", "note": "已派人"})
    assert done.json()["state"] == "cleared"
    told = watcher.events(3)[-1]["event"]
    assert (told["transition"], told["state"]) == ("acknowledged", "cleared")
    assert city.post(f"/alerts/{alert['id']}/actions", {"action": "acknowledge"}).status_code == 409
    history = city.get(f"/alerts/{alert['id']}")["events"]
    assert [e["transition"] for e in history] == ["raised", "cleared", "acknowledged"]
    assert city.get("/alerts", state="open")["items"] == []
    readings = city.get(
        "/readings", sensor="d1/depth", **{"from": "2026-09-21T00:00:00Z", "to": "2026-09-22T00:00:00Z"}
    )
    assert [r["value"] for r in readings["items"]] == [10.16, 12, 3]
    stats = city.stats()
    assert stats["readings_received"] == stats["readings_stored"] == 3
    (latest,) = city.get("/latest", sensor="d1/depth")["items"]
    assert (latest["value"], latest["quality"]) == (3, "good")


def test_what_is_missed_while_away_is_given_on_resume_and_across_a_restart(cimtwin: Callable[..., Cimtwin]) -> None:
    city = cimtwin()
    city.put_rules(PONDING)
    city.put_sensors(SENSORS)
    watcher = city.watch()
    snapshot = watcher.until(lambda f: f["type"] == "snapshot")
    resume = {"epoch": snapshot["epoch"], "seq": snapshot["seq"]}
    watcher.close()
    topic = "cim/v1/市排水/d1/telemetry"
    city.publish(
        *[(topic, {"ts": 1_790_000_000_000 + n * 60_000, "values": {"depth": 20 * (n % 2)}}) for n in range(5)]
    )
    city.drained(5)
    city.stop()
    city.start()
    back = city.watch(resume=resume)
    events = back.events(4)
    assert [e["seq"] for e in events] == [resume["seq"] + n for n in (1, 2, 3, 4)]
    assert [e["event"]["transition"] for e in events] == ["raised", "cleared"] * 2
    gone = city.watch(resume={"epoch": "another", "seq": 1})
    assert gone.until(lambda f: f["type"] == "snapshot")["seq"] == events[-1]["seq"]


def test_a_second_service_on_one_data_folder_or_database_ends_and_names_the_first(
    cimtwin: Callable[..., Cimtwin],
) -> None:
    first = cimtwin("甲", embedded=True)
    again = cimtwin("甲", embedded=True, start=False)
    with pytest.raises(pytest.fail.Exception, match=first.environ["CIMTWIN_HTTP"]):
        again.start()
    assert again.process is not None
    assert again.process.returncode == 1
    other = cimtwin("乙", embedded=True)
    assert other.stats()["sensors"] == 0
    assert first.is_ready()


def test_people_are_not_served_without_a_database_but_are_again_once_it_is_back(
    cimtwin: Callable[..., Cimtwin],
) -> None:
    city = cimtwin(embedded=True)
    pid = EmbeddedPostgres(city.data_dir).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: httpx.get(f"{city.url}/readyz").status_code == 200, "the database to be back")
    city.put_sensors(SENSORS)
    assert city.stats()["sensors"] == 1


def test_a_taken_port_and_a_taken_folder_are_told_in_one_line(cimtwin: Callable[..., Cimtwin], tmp_path: Path) -> None:
    first = cimtwin("甲", embedded=True)
    for environ, words in (
        ({"CIMTWIN_DATA_DIR": str(first.data_dir)}, [str(first.process and first.process.pid), first.url]),
        (
            {"CIMTWIN_DATA_DIR": str(tmp_path / "丙"), "CIMTWIN_HTTP": first.environ["CIMTWIN_HTTP"]},
            ["HTTP", "已被占用"],
        ),
        ({"CIMTWIN_HTTP": "0.0.0.0:0"}, ["CIMTWIN_API_TOKEN"]),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "twin", "serve"],
            env={**os.environ, **first.environ, **environ},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == (2 if "CIMTWIN_API_TOKEN" in words else 1)
        (line,) = [text for text in done.stderr.splitlines() if "[info" not in text]
        assert all(word in line for word in words)


def test_no_secret_is_ever_logged_or_on_a_command_line(cimtwin: Callable[..., Cimtwin], tmp_path: Path) -> None:
    token, password = "t0ken-Aq8Zr2Lm5Xw9", "br0ker-Kd7Pv3Yn6Js1"
    city = cimtwin(
        embedded=True,
        start=False,
        CIMTWIN_API_TOKEN=token,
        CIMTWIN_LOG_LEVEL="debug",
        CIMTWIN_MQTT_LISTEN_USER="device",
        CIMTWIN_MQTT_LISTEN_PASSWORD=password,
    )
    city.start()
    for subprotocols, headers in ((None, {"Authorization": f"Bearer {token}"}), ([f"bearer.{token}"], {})):
        with connect(
            city.url.replace("http", "ws", 1) + "/ws/v1/live",
            additional_headers=headers,
            subprotocols=subprotocols,  # type: ignore[arg-type]
        ) as socket:
            socket.send(json.dumps({"type": "subscribe", "alerts": {}, "token": token}))
            assert json.loads(socket.recv(10))["type"] == "snapshot"
    assert httpx.get(f"{city.url}/api/v1/stats").status_code == 401
    commands = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if os.access(p, os.R_OK)]
    assert city.stop() == 0
    secrets = [token, password, (city.data_dir / "postgres" / "password").read_text().strip()]
    logs = [city.log, *city.data_dir.rglob("*.log")]
    for secret in secrets:
        assert not any(secret.encode() in command for command in commands)
        assert not any(secret in log.read_text(errors="replace") for log in logs)
