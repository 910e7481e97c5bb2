"""What devices send, good and bad, through a real broker: stored, marked, refused with a reason, never lost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.conftest import Cimtwin, until

pytestmark = pytest.mark.system

SENSORS = """device,property,kind,unit,tenant,asset,lon,lat,interval_s,min,max,tags
d1,depth,drainage.ponding_depth,in,市排水,,,,60,0,60,
d2,depth,drainage.ponding_depth,cm,市排水,,,,60,,,
b1,acc_z,bridge.acceleration,m/s²,桥梁处,虹桥,,,,,,
g1,ch4,gas.methane,%VOL,燃气公司,,,,1,,,
g2,ch4,gas.methane,%VOL,燃气公司,,,,1,,,
"""
T0 = 1_790_000_000_000
D1 = "cim/v1/市排水/d1/telemetry"
RULES = """
[[rule]]
id = "ponding"
title = { zh = "积水", en = "Ponding" }
kind = "drainage.ponding_depth"
detector = "threshold"
levels = { yellow = 15 }

[[rule]]
id = "silent"
title = { zh = "离线", en = "Offline" }
where = { tenant = "燃气公司" }
detector = "offline"
after = "3x"
level = "yellow"
"""


def prepared(city: Cimtwin) -> Cimtwin:
    city.put_rules(RULES)
    city.put_sensors(SENSORS)
    return city


def stats_add_up(city: Cimtwin, received: int, stored: int, duplicate: int, quarantined: int) -> None:
    stats = city.drained(received)
    names = ("received", "stored", "duplicate", "quarantined")
    assert [stats[f"readings_{name}"] for name in names] == [received, stored, duplicate, quarantined]


BAD: list[tuple[str, bytes, str, int]] = [
    (D1, b"", "malformed", 1),
    (D1, b"{", "malformed", 1),
    (D1, b'{"depth": NaN}', "malformed", 1),
    (D1, b"\xff\xfe{}", "malformed", 1),
    (D1, b"[" * 100_000 + b"]" * 100_000, "malformed", 1),
    (D1, b'{"depth": 1e999}', "bad-value", 1),
    (D1, b'{"depth": "deep"}', "bad-value", 1),
    (D1, b'{"depth": {"a": 1}}', "bad-value", 1),
    (D1, b'{"ts": 0, "values": {"depth": 1}}', "bad-time", 1),
    (D1, b'{"ts": 4102444800000, "values": {"depth": 1}}', "bad-time", 1),
    (D1, b'{"ts": "yesterday", "values": {"depth": 1}}', "bad-time", 1),
    (D1, b'{"height": 3}', "unknown-property", 1),
    ("cim/v1/市/nobody/telemetry", b'{"depth": 3, "level": 4}', "unknown-device", 2),
    ("cim/v1/other/d1/telemetry", b'{"depth": 3}', "forbidden", 1),
    ("cim/v1/x/y/z", b'{"depth": 3}', "malformed", 1),
    (D1, b'{"a": "' + b"x" * (1 << 20) + b'"}', "too-large", 1),
]


def test_every_bad_message_is_kept_with_its_bytes_and_reason_and_hurts_no_other(
    cimtwin: Callable[..., Cimtwin],
) -> None:
    city = prepared(cimtwin())
    good = (D1, {"ts": T0, "values": {"depth": 1}})
    city.publish(*[(topic, payload) for topic, payload, _, _ in BAD], good)
    refused = sum(n for *_, n in BAD)
    stats_add_up(city, refused + 1, 1, 0, refused)
    rows = city.get("/quarantine", limit=1000)["items"]
    assert sorted((r["reason"], r["readings"]) for r in rows) == sorted((reason, n) for *_, reason, n in BAD)
    city.publish(BAD[0][:2], BAD[0][:2], good)
    stats_add_up(city, refused + 4, 1, 1, refused + 2)
    assert len(city.get("/quarantine", limit=1000)["items"]) == len(rows)


@pytest.mark.parametrize("reader", ["own", "paho"])
def test_of_a_message_far_too_large_the_beginning_is_kept_and_its_size(
    cimtwin: Callable[..., Cimtwin], reader: str
) -> None:
    city = prepared(cimtwin(CIMTWIN_MQTT_READER=reader))
    large = b'{"depth": "' + b"x" * 5_000_000 + b'"}'
    city.publish((D1, large), (D1, large), (D1, {"ts": T0, "values": {"depth": 1}}))
    stats_add_up(city, 3, 1, 0, 2)
    (row,) = city.get("/quarantine")["items"]
    assert (row["reason"], row["size"], row["is_truncated"], row["deliveries"]) == ("too-large", len(large), True, 2)
    assert row["detail"] == f"{len(large)} bytes; at most 1048576"
    assert len(row["text"]) == 1 << 20


def test_one_bad_reading_in_a_good_message_is_refused_alone_and_goes_through_once_its_cause_is_mended(
    cimtwin: Callable[..., Cimtwin],
) -> None:
    city = prepared(cimtwin())
    message = (D1, {"ts": T0, "values": {"depth": 2, "level": 0.5, "flow": "?"}})
    city.publish(message, message)
    stats_add_up(city, 6, 1, 1, 4)
    city.put_sensors("device,property,kind,unit,tenant\nd1,level,drainage.level,m,市排水\n")
    assert city.post("/quarantine/redrive", {}).json() == {"tried": 1, "stored": 1, "duplicate": 1, "quarantined": 2}
    stats_add_up(city, 6, 2, 2, 2)
    (row,) = city.get("/quarantine")["items"]
    assert (row["reason"], row["readings"]) in {("unknown-property", 2), ("bad-value", 2)}
    assert city.get("/latest", sensor="d1/level")["items"][0]["value"] == 0.5
    city.publish(("cim/v1/市排水/new/telemetry", {"ts": T0, "values": {"depth": 2, "level": 3}}))
    city.drained(8)
    city.put_sensors("device,property,kind,unit,tenant\nnew,depth,drainage.ponding_depth,cm,市排水\n")
    city.post("/quarantine/redrive", {})
    stats_add_up(city, 8, 3, 2, 3)


def test_a_message_of_several_devices_goes_through_as_a_whole_whenever_they_became_known(
    cimtwin: Callable[..., Cimtwin],
) -> None:
    city = prepared(cimtwin())
    message = ("cim/v1/市排水/gateway/telemetry", {"s": ["a/x", "b/x", "c/x"], "t": [T0] * 3, "v": [1, 2, 3]})
    city.publish(message)
    stats_add_up(city, 3, 0, 0, 3)
    city.put_sensors("device,property,kind,unit,tenant\na,x,drainage.level,m,市排水\n")
    city.publish(message)
    stats_add_up(city, 6, 1, 0, 5)
    (row,) = city.get("/quarantine")["items"]
    assert (row["positions"], row["deliveries"], row["readings"]) == ([0, 1, 2], 2, 5)
    city.put_sensors("device,property,kind,unit,tenant\nb,x,drainage.level,m,市排水\n")
    assert city.post("/quarantine/redrive", {}).json()["stored"] == 1
    stats_add_up(city, 6, 2, 2, 2)
    city.put_sensors("device,property,kind,unit,tenant\nc,x,drainage.level,m,市排水\n")
    city.post("/quarantine/redrive", {})
    stats_add_up(city, 6, 3, 3, 0)
    assert [city.get("/latest", sensor=f"{d}/x")["items"][0]["value"] for d in "abc"] == [1, 2, 3]


def test_quality_says_why_and_bad_readings_are_not_judged(cimtwin: Callable[..., Cimtwin]) -> None:
    city = prepared(cimtwin())
    city.publish(
        (D1, {"ts": T0, "values": {"depth": 70}}),
        (D1, {"ts": T0 + 60_000, "values": {"depth": 130}}),
        (D1, {"ts": T0 + 120_000, "values": {"depth": None}}),
    )
    city.drained(3)
    patched = city_patch(city, "d1/depth", {"mode": "calibration", "reason": "年检"})
    assert patched["mode"] == "calibration"
    city.publish((D1, {"ts": T0 + 180_000, "values": {"depth": 50}}))
    city.drained(4)
    items = city.get("/readings", sensor="d1/depth")["items"]
    assert [(r["value"], r["quality"], r["reasons"]) for r in items] == [
        (pytest.approx(177.8), "suspect", ["out-of-range"]),
        (pytest.approx(330.2), "bad", ["out-of-range", "impossible-jump", "far-out-of-range"]),
        (None, "good", []),
        (pytest.approx(127.0), "bad", ["calibration"]),
    ]
    (alert,) = city.get("/alerts")["items"]
    assert (alert["value"], alert["state"]) == (pytest.approx(177.8), "active_unacknowledged")


def city_patch(city: Cimtwin, sensor: str, changes: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.patch(f"{city.url}/api/v1/sensors/{sensor}", json=changes)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_replaced_device_keeps_its_measuring_points_and_their_history(cimtwin: Callable[..., Cimtwin]) -> None:
    city = prepared(cimtwin())
    city.publish((D1, {"ts": T0, "values": {"depth": 1}}))
    city.drained(1)
    answer = city.post("/devices/d1/replace", {"by": "d1-new", "since": "2026-09-21T14:13:30Z"})
    assert answer.status_code == 200, answer.text
    city.publish(
        ("cim/v1/市排水/d1-new/telemetry", {"ts": T0 + 60_000, "values": {"depth": 2}}),
        (D1, {"ts": T0 + 5_000, "values": {"depth": 3}}),
        (D1, {"ts": T0 + 60_000, "values": {"depth": 4}}),
    )
    stats_add_up(city, 4, 3, 0, 1)
    assert [r["value"] for r in city.get("/readings", sensor="d1/depth")["items"]] == pytest.approx([2.54, 7.62, 5.08])


def test_a_waveform_is_stored_and_summarised(cimtwin: Callable[..., Cimtwin]) -> None:
    city = prepared(cimtwin())
    samples = [0.2 * math.sin(2 * math.pi * 5 * n / 100) for n in range(500)]
    message = ("cim/v1/桥梁处/b1/waveform", {"ts": T0, "rate_hz": 100, "values": {"acc_z": samples}})
    city.publish(message, message)
    stats_add_up(city, 2, 1, 1, 0)
    summary = {
        name: city.get("/latest", sensor=f"b1/acc_z.{name}")["items"][0]["value"]
        for name in ("mean", "rms", "peak_to_peak", "frequency")
    }
    assert summary["mean"] == pytest.approx(0, abs=1e-6)
    assert summary["rms"] == pytest.approx(0.2 / math.sqrt(2), rel=1e-4)
    assert summary["peak_to_peak"] == pytest.approx(0.4, rel=1e-2)
    assert summary["frequency"] == pytest.approx(5, abs=0.05)
    city_patch(city, "b1/acc_z", {"mode": "test"})
    city.publish(("cim/v1/桥梁处/b1/waveform", {"ts": T0 + 5000, "rate_hz": 100, "values": {"acc_z": samples}}))
    city.drained(3)
    (tested,) = city.get("/latest", sensor="b1/acc_z.rms")["items"]
    assert (tested["quality"], tested["reasons"]) == ("bad", ["test"])


def test_a_silent_gateway_is_one_alert_and_a_lone_silent_sensor_its_own(cimtwin: Callable[..., Cimtwin]) -> None:
    city = prepared(cimtwin())
    watcher = city.watch()
    city.publish(("cim/v1/燃气公司/gateway/telemetry", {"s": ["g1/ch4", "g2/ch4"], "t": [T0, T0], "v": [0, 0.01]}))
    raised = watcher.until(lambda f: f["type"] == "alert")["event"]
    assert (raised["transition"], raised["sensor"], raised["asset"]) == ("raised", None, "燃气公司/gateway")
    city.publish(("cim/v1/燃气公司/gateway/telemetry", {"s": ["g1/ch4", "g2/ch4"], "t": [T0 + 1, T0 + 1], "v": [0, 0]}))
    cleared = watcher.until(lambda f: f["type"] == "alert" and f["event"]["asset"] == "燃气公司/gateway")["event"]
    assert cleared["transition"] == "cleared"
    for n in range(2, 40):
        city.publish(("cim/v1/燃气公司/g1/telemetry", {"ts": T0 + n, "values": {"ch4": 0}}))
        if any(f["type"] == "alert" and f["event"]["sensor"] == "g2/ch4" for f in watcher.frames):
            break
        try:
            watcher.read(0.5)
        except TimeoutError:
            continue
    alone = [f["event"] for f in watcher.frames if f["type"] == "alert" and f["event"]["sensor"]]
    assert {e["sensor"] for e in alone} == {"g2/ch4"}


def test_late_data_changes_what_was_said_and_the_correction_is_told(cimtwin: Callable[..., Cimtwin]) -> None:
    city = prepared(cimtwin())
    watcher = city.watch()
    topic = "cim/v1/市排水/d2/telemetry"
    minute = 60_000
    city.publish((topic, {"ts": T0, "values": {"depth": 1}}), (topic, {"ts": T0 + 9 * minute, "values": {"depth": 1}}))
    city.drained(2)
    buffered = [{"ts": T0 + n * minute, "values": {"depth": 20 if n < 5 else 2}} for n in range(1, 9)]
    city.publish((topic, buffered))
    events = [f["event"] for f in watcher.events(2)]
    assert [(e["transition"], e["observed_at"], e["retroactive"]) for e in events] == [
        ("raised", "2026-09-21T14:14:20Z", True),
        ("cleared", "2026-09-21T14:18:20Z", True),
    ]
    stats_add_up(city, 10, 10, 0, 0)


def test_two_services_on_one_broker_each_get_everything(
    cimtwin: Callable[..., Cimtwin], mosquitto: str, server_url: str
) -> None:
    first = prepared(cimtwin("甲", CIMTWIN_MQTT_URL=mosquitto))
    second = prepared(cimtwin("乙", embedded=True, CIMTWIN_MQTT_URL=mosquitto))
    first.publish(*[(D1, {"ts": T0 + n, "values": {"depth": 1}}) for n in range(100)])
    for city in (first, second):
        stats_add_up(city, 100, 100, 0, 0)


def test_a_long_outage_of_the_service_loses_nothing_that_the_broker_took(cimtwin: Callable[..., Cimtwin]) -> None:
    city = prepared(cimtwin())
    city.kill()
    city.publish(*[(D1, json.dumps({"ts": T0 + n, "values": {"depth": 1}}).encode()) for n in range(1000)])
    city.start()
    until(lambda: city.stats()["readings_stored"] == 1000, "what the broker kept")
