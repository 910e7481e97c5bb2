"""Incidents on a real service: sensors publish, rules judge, and the desk finds what belongs together and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import psycopg
import pytest

from tests.conftest import Cimtwin, empty_database, until
from twin.demo.city import city_sensors
from twin.demo.district import models
from twin.importing_models import ModelWords, place
from twin.model import MINUTE, SECOND
from twin.store.migrate import migrate
from twin.store.models import Source, lock_model, save_model

pytestmark = pytest.mark.system

RULES = """
[[rule]]
id = "pump-off"
title = { zh = "水泵停运", en = "Pump stopped" }
kind = "drainage.pump_running"
detector = "threshold"
side = "below"
levels = { orange = 0.5 }

[[rule]]
id = "well-high"
title = { zh = "检查井水位高", en = "High level in a well" }
kind = "drainage.level"
detector = "threshold"
side = "above"
levels = { yellow = 1.5, orange = 2.5 }
hold = "2min"

[[rule]]
id = "rain"
title = { zh = "强降雨", en = "Heavy rain" }
kind = "drainage.rainfall"
detector = "threshold"
side = "above"
levels = { blue = 2 }

[[rule]]
id = "battery"
title = { zh = "电量低", en = "Battery low" }
kind = "device.battery"
detector = "threshold"
side = "below"
levels = { blue = 20 }
"""
START = 1_790_000_000 * SECOND
DRAIN = "示范新区排水"
WELLS = [f"dw-0{n}" for n in range(1, 7)]  # down to the pumping station


def with_drain(url: str) -> None:
    """The demo's drainage model, in a new database."""
    migrate(url)
    placed = place(models()[DRAIN], DRAIN, ModelWords(), "drain.json", 1, b"x".ljust(32))
    with psycopg.connect(url) as connection:
        lock_model(connection, DRAIN)
        save_model(connection, placed, [Source("drain.json", b"x")], lambda what, share: None)


def equip(city: Cimtwin) -> None:
    rows = ["device,property,kind,unit,tenant,asset,lon,lat"]
    rows += [
        f"{s.device},{s.property},{s.kind},{s.unit},{s.tenant},{s.asset},{s.lon},{s.lat}"
        for s in city_sensors()
        if s.kind.startswith("drainage.") or s.id == "gm-01/battery"
    ]
    city.put_sensors("\n".join(rows))
    city.put_rules(RULES)


def say(city: Cimtwin, minute: float, **values: float) -> None:
    """What devices report so many minutes after START; `_` stands for the `-` of their names."""
    ts = (START + round(minute * MINUTE)) // 1000
    names = {"dw": "level", "pu": "running", "rg": "rainfall", "up": "depth", "gm": "battery"}
    tenant = {"gm": "demo-gas"}
    city.publish(
        *(
            (
                f"cim/v1/{tenant.get(name[:2], 'demo-drainage')}/{name.replace('_', '-')}/telemetry",
                {"ts": ts, "values": {names[name[:2]]: value}},
            )
            for name, value in values.items()
        )
    )


def rain_told(city: Cimtwin, transition: str) -> list[dict[str, Any]]:
    (alert,) = city.get("/alerts", rule="rain")["items"]
    history: list[dict[str, Any]] = city.get(f"/alerts/{alert['id']}")["events"]
    return [event for event in history if event["transition"] == transition]


def storm(city: Cimtwin, pause: Callable[[], object] = lambda: None) -> list[dict[str, Any]]:
    """It rains, both pumps stop, and the wells fill from the station upwards, minute by minute; the incidents then.
    `pause` is called between."""
    dry = {name.replace("-", "_"): 0.3 for name in WELLS}
    say(city, 0, pu_01=1, pu_02=1, rg_01=0, gm_01=90, up_01=0, **dry)
    say(city, 5, rg_01=3)
    pause()
    say(city, 10, pu_01=0, pu_02=0)
    for n, name in enumerate(reversed(WELLS)):
        well = name.replace("-", "_")
        for minute, level in ((11, 1.2), (12, 1.8), (14, 1.9), (16, 2.7), (18, 2.8)):
            say(city, minute + 2 * n, **{well: level})
        if n == 2:
            pause()
    say(city, 30, gm_01=5, up_01=20)
    # rain, two pumps, six wells, the battery: raised; the wells also escalated.
    until(lambda: city.stats()["alert_events"] >= 10 + 6, "the alerts")
    until(lambda: sum(i["alert_count"] for i in city.get("/incidents")["items"]) == 10, "the incidents")
    return list(reversed(city.get("/incidents")["items"]))


def said(incident: dict[str, Any]) -> Any:
    """What follows from the readings, in whatever order alerts of one moment were told."""
    names = ("root", "title", "reasons", "level", "probable_cause", "state", "opened_at")
    return [incident[name] for name in names], sorted(incident["alert_ids"]), sorted(incident["assets"])


def test_a_storm_with_a_pump_trip_is_one_incident_with_the_pump_as_root_whatever_dies_in_between(
    cimtwin: Callable[..., Cimtwin], database_url: str, server_url: str
) -> None:
    with_drain(database_url)
    city = cimtwin(CIMTWIN_FLOOD_ALERTS="8", CIMTWIN_FLOOD_OVER="4")
    equip(city)
    watcher = city.watch(incidents=True)
    plain = city.watch()
    first = watcher.read()
    assert (first["type"], first["incidents"], first["flood"]["active"]) == ("snapshot", [], False)
    incidents = storm(city)

    assert len(incidents) == 2, [i["title"]["en"] for i in incidents]
    incident, battery = incidents
    assert battery["assets"] == ["燃气相邻井1号"]
    cause = incident["probable_cause"]
    assert (cause["rule"], cause["asset"], cause["explains"]) == ("pump-off", "雨水泵站1号", 6)
    assert {one["rule"] for one in incident["other_causes"]} == {"pump-off", "rain"}
    assert incident["title"]["zh"] == "雨水泵站1号水泵停运，波及：排水水位流量异常 6 条、水泵停运 1 条、降雨 1 条"
    assert incident["reasons"][0]["en"] == "6 drain levels upstream of the pump"
    assert (incident["level"], incident["active_count"], len(incident["assets"])) == ("orange", 9, 9)

    one = city.get(f"/incidents/{incident['id']}")
    assert {alert["incident"] for alert in one["alerts"]} == {incident["id"]}
    assert len(one["alerts"]) == len(one["affected"]) == 9
    assert [entry["what"] for entry in one["history"]].count("raised") == 9
    listed = city.get("/alerts", state="open")["items"]
    assert {alert["rule"]: alert["incident"] for alert in listed}["battery"] == battery["id"]
    # In a flood people look at what came first, and at the roots.
    assert city.get("/floods")["now"]["active"]
    assert city.stats()["flood"] == 1
    first_outs = city.get("/alerts", first_out=True)["items"]
    assert {alert["rule"] for alert in first_outs} == {"rain", "pump-off", "battery"}
    assert len(first_outs) == 3

    def is_told(frame: dict[str, Any]) -> bool:
        return bool(frame["type"] == "incident" and frame["incident"]["alert_count"] == 9)

    frame = watcher.until(is_told)
    assert frame["incident"]["root"] == incident["root"]
    if not any(frame["type"] == "flood" for frame in watcher.frames):
        watcher.until(lambda frame: frame["type"] == "flood")
    assert {f["type"] for f in plain.events(16)} == {"alert"}
    assert {f["type"] for f in plain.frames} <= {"snapshot", "alert", "ping"}, "nobody else sees a new frame"
    watcher.close()
    plain.close()
    again = city.watch(incidents=True)
    assert {i["id"] for i in again.read()["incidents"]} == {incident["id"], battery["id"]}
    again.close()

    def die() -> None:
        other.kill()
        other.start()

    with empty_database(server_url) as url:
        with_drain(url)
        other = cimtwin("数据 2", CIMTWIN_DATABASE_URL=url)
        equip(other)
        assert [said(i) for i in storm(other, die)] == [said(i) for i in incidents]
        other.stop()


COMPOSED = """
[[rule]]
id = "raining"
kind = "drainage.rainfall"
role = "condition"
detector = "threshold"
levels = { blue = 2 }

[[rule]]
id = "pump-runs"
kind = "drainage.pump_running"
role = "condition"
detector = "threshold"
levels = { blue = 1 }

[[rule]]
id = "well-rises"
sensors = ["dw-01/level", "dw-02/level", "dw-03/level", "dw-04/level", "dw-05/level", "dw-06/level"]
role = "condition"
detector = "threshold"
levels = { blue = 1.5 }

[[rule]]
id = "well-in-rain"
detector = "composite"
all = ["well-rises", { rule = "raining", within = "5km", window = "1h" }]

[[rule]]
id = "pump-idle"
detector = "composite"
on = "sensor"
all = ["well-rises"]
not = [{ rule = "pump-runs", within = "20km" }]
"""


def test_a_composite_is_a_sign_of_what_holds_at_its_place_or_of_a_pump_that_does_not_run(
    cimtwin: Callable[..., Cimtwin], database_url: str
) -> None:
    with_drain(database_url)
    city = cimtwin()
    equip(city)
    city.put_rules(COMPOSED)
    say(city, 0, pu_01=1, pu_02=1, rg_01=0, **dict.fromkeys(("dw_05", "dw_06"), 0.3))
    say(city, 5, rg_01=3)
    say(city, 10, dw_05=2)
    say(city, 12, rg_01=3, dw_05=2, dw_06=0.3, pu_01=1, pu_02=1)
    until(lambda: city.stats()["alert_events"] == 1, "the well in the rain")
    (incident,) = until(lambda: city.get("/incidents")["items"], "its incident")
    assert incident["probable_cause"]["what"]["en"] == "drain level"
    say(city, 20, pu_01=0, pu_02=0)
    say(city, 22, rg_01=3, dw_05=2, dw_06=2, pu_01=0, pu_02=0)
    say(city, 24, rg_01=3, dw_05=2, dw_06=2, pu_01=0, pu_02=0)
    until(lambda: city.stats()["alert_events"] == 4, "the pumps that do not run, and the second well")
    (one,) = until(
        lambda: [i for i in city.get("/incidents")["items"] if i["alert_count"] == 4], "one incident of all four"
    )
    assert (one["probable_cause"]["rule"], one["probable_cause"]["what"]["en"]) == ("pump-idle", "pump not running")


def test_what_people_do_about_an_incident_is_kept_and_done_once(
    cimtwin: Callable[..., Cimtwin], database_url: str
) -> None:
    with_drain(database_url)
    city = cimtwin()
    equip(city)
    incident, battery = storm(city)
    path = f"/incidents/{incident['id']}/actions"
    wells = [
        alert["id"] for alert in city.get(f"/incidents/{incident['id']}")["alerts"] if alert["rule"] == "well-high"
    ]

    def act(expected: int = 200, key: str | None = None, path: str = path, **body: Any) -> Any:
        headers = {} if key is None else {"Idempotency-Key": key}
        answer = city.post(path, body, headers=headers)
        assert answer.status_code == expected, answer.text
        return answer.json()

    split = [
        act(action="split", alerts=wells[:2], by="li", note="堵塞 / blocked", key="k")["split_off"] for _ in range(2)
    ]
    assert split[0] == split[1]
    act(422, action="split", alerts=wells[2:3], key="k")
    act(409, action="close")
    act(404, action="merge", incidents=["nobody"])
    act(404, action="note", note="?", path="/incidents/nobody/actions")
    act(422, action="paint")
    assert act(action="confirm", by="wang")["confirmed"]["by"] == "wang"
    act(action="note", by="li", note="crew sent")
    assert act(action="merge", incidents=[battery["id"]], by="li")["alert_count"] == 8

    listed = {i["id"]: i for i in city.get("/incidents", state="open,merged")["items"]}
    assert (listed[incident["id"]]["alert_count"], listed[split[0]]["alert_count"]) == (8, 2)
    assert listed[incident["id"]]["apart"] == split[:1]
    assert listed[battery["id"]]["merged_into"] == incident["id"]
    city.kill()
    city.start()
    say(city, 40, dw_01=0.2, dw_02=0.2, gm_01=90)  # nothing of what people decided is undone by what follows
    until(lambda: city.stats()["alert_events"] >= 19)
    say(city, 41, dw_01=3, dw_02=3)
    say(city, 44, dw_01=3, dw_02=3)

    def has_more() -> bool:
        return sum(i["alert_count"] for i in city.get("/incidents")["items"]) == 12

    until(has_more, "two more alerts")
    after = {i["id"]: i["alert_count"] for i in city.get("/incidents")["items"]}
    assert after[split[0]] + after[incident["id"]] == 12
    whats = [(e["what"], e["by"]) for e in city.get(f"/incidents/{incident['id']}")["history"] if e["by"]]
    assert whats == [("split", "li"), ("confirmed", "wang"), ("noted", "li"), ("took_in", "li")]


def test_figures_about_alerts_are_those_of_what_was_told(cimtwin: Callable[..., Cimtwin]) -> None:
    city = cimtwin(CIMTWIN_OPERATORS="2")
    equip(city)
    for minute in range(0, 12, 2):  # a pump that stops and runs: chatter
        say(city, minute, pu_01=1)
        say(city, minute + 1, pu_01=0)
    say(city, 12, gm_01=5)
    say(city, 12 + 1500, dw_01=0.1)
    until(lambda: city.stats()["alert_events"] >= 12)
    alert = next(a for a in city.get("/alerts", rule="battery")["items"])
    city.post(f"/alerts/{alert['id']}/actions", {"action": "acknowledge", "by": "li"})
    found = city.get("/kpis")
    assert (found["alerts"], found["alerts_per_operator_hour"]) == (7, round(7 / 48, 3))
    assert found["by_level"] == {"blue": 1, "orange": 6}
    assert found["top_rules"] == [{"rule": "pump-off", "alerts": 6}, {"rule": "battery", "alerts": 1}]
    assert found["chattering"]["items"] == [{"rule": "pump-off", "subject": "pu-01/running", "times": 4}]
    assert found["acknowledge"]["acknowledged"] == 1
    assert 0 <= found["acknowledge"]["p50_s"] <= found["acknowledge"]["p90_s"]
    assert (found["floods"]["number"], found["floods"]["peak"]) == (0, 7)
    assert found["stale"]["number"] == found["standing"] == 2, "they began long ago, and nobody said that they ended"
    assert found["benchmarks"]["stale"]["most"] == 5
    empty = city.get("/kpis", **{"from": "2020-01-01T00:00:00Z", "to": "2020-01-02T00:00:00Z"})
    assert (empty["alerts"], empty["top_rules_share"], empty["acknowledge"]["p50_s"]) == (0, None, None)
    assert httpx.get(f"{city.url}/api/v1/kpis?from=2020-01-01T00:00:00Z&to=2024-01-01T00:00:00Z").status_code == 422
    # What is held back asks for nobody's attention: not in the figures, nor towards a flood, also after a restart.
    assert city.post("/holds", {"kind": "suppress", "matchers": {"rule": "rain"}}).status_code == 200
    say(city, 12, rg_01=5)
    until(lambda: city.get("/alerts", flag="suppressed")["items"], "an alert that is held back")
    # That late data moves its beginning twice does not make it chatter.
    for n, minute in enumerate((11, 10)):
        say(city, minute, rg_01=5)
        until(lambda n=n: len(rain_told(city, "withdrawn")) == n + 1, "late rain to be judged")
    assert len(rain_told(city, "raised")) == 3
    again = city.get("/kpis")
    assert (again["alerts"], again["acknowledge"]["raised"]) == (7, 7)
    assert again["chattering"] == found["chattering"]
    assert (again["stale"]["number"], again["standing"]) == (2, 3)
    rate = city.get("/floods")["now"]["rate"]
    city.kill()
    city.start()
    until(lambda: city.get("/floods")["now"]["rate"] == rate == 7, "the rate from before")
