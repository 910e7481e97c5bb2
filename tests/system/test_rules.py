"""Rules over a real city: overrides by place, limits from the model, versions, and what a change would have done."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests.conftest import Cimtwin, until
from tests.system.test_commands import run
from twin.city import Asset, CityModel
from twin.importing_models import ModelWords, place
from twin.store.models import Source, lock_model, save_model

pytestmark = pytest.mark.system

SENSORS = """device,property,kind,unit,tenant,asset,lon,lat,interval_s,min,max,tags
w1,level,drainage.level,m,,m:W1,,,60,,,
w2,level,drainage.level,m,,m:W2,,,60,,,
r1,depth,drainage.ponding_depth,cm,,m:R1,,,60,,,
r2,depth,drainage.ponding_depth,cm,,,,,60,,,
"""
RULES = """
[[rule]]
id = "road"
kind = "drainage.ponding_depth"
detector = "threshold"
levels = { yellow = 15, red = 40 }
tags = ["flood"]

[[rule]]
id = "well"
kind = "drainage.level"
detector = "threshold"
levels.yellow = { of = "ground_m", minus = "invert_m", times = 0.5 }
levels.red = { of = "ground_m", minus = "invert_m" }

[[override]]
rule = "road"
area = "福田区"
levels = { yellow = 10, red = 40 }
"""
DAY = "2026-07-01"


def put_model(service: Cimtwin, ground: float) -> None:
    """A model of two wells, one of unknown depth, and a road in a street of 福田区."""
    assets = [
        Asset("W1", "manhole", attributes={"ground_m": ground, "invert_m": 10}),
        Asset("W2", "manhole", attributes={"ground_m": "12.5"}),
        Asset("区", "zone", area="福田区/香蜜湖"),
        Asset("R1", "road", parent="区"),
    ]
    name, data = "m", f"{ground}".encode()
    placed = place(CityModel("geojson", assets), name, ModelWords(tenant="default"), "m.json", len(data), data * 8)
    with psycopg.connect(service.environ["CIMTWIN_DATABASE_URL"]) as connection:
        lock_model(connection, name)
        save_model(connection, placed, [Source("m.json", data)], lambda what, share: None)


def publish(service: Cimtwin, *rows: tuple[str, int, float]) -> None:
    """Readings (sensor, minute of the day's hour 8, value), taken in."""
    before = service.stats()["readings_received"]
    messages = []
    for sensor, minute, value in rows:
        device, _, prop = sensor.partition("/")
        ts = f"{DAY}T08:{minute:02}:00Z"
        messages.append((f"cim/v1/default/{device}/telemetry", {"ts": ts, "values": {prop: value}}))
    service.publish(*messages)
    service.drained(before + len(rows))


def on(service: Cimtwin, sensor: str, rule: str) -> dict[str, Any]:
    (found,) = (item for item in service.get(f"/sensors/{sensor}/rules")["items"] if item["id"] == rule)
    return found


def standing(service: Cimtwin) -> dict[str, str]:
    """The level of each sensor's active alert."""
    return {a["sensor"]: a["level"] for a in service.get("/alerts", state="active_unacknowledged")["items"]}


def put(service: Cimtwin, text: str, **params: str) -> httpx.Response:
    return httpx.put(
        f"{service.url}/api/v1/rules", content=text.encode(), params=params, timeout=60,
        headers={"content-type": "application/toml"},
    )  # fmt: skip


def test_places_and_the_model_give_limits_and_a_new_model_moves_them_without_losing_what_stands(
    cimtwin: Callable[..., Cimtwin],
) -> None:
    city = cimtwin()
    city.put_sensors(SENSORS)
    put_model(city, 14)
    city.put_rules(RULES)
    assert on(city, "w1/level", "well")["rule"]["levels"] == {"yellow": 2, "red": 4}
    assert on(city, "w1/level", "well")["from"]["levels.red"] == {
        "rule": "well", "asset": "m:W1", "attributes": {"ground_m": 14, "invert_m": 10}, "value": "model",
    }  # fmt: skip
    assert on(city, "r1/depth", "road")["rule"]["levels"] == {"yellow": 10, "red": 40}
    assert on(city, "r1/depth", "road")["from"]["levels"] == {
        "override": "override 1, line 16", "scope": {"area": ["福田区"]}
    }  # fmt: skip
    assert on(city, "r2/depth", "road")["from"]["levels"] == {"rule": "road"}
    assert city.get("/sensors/w1/level")["rules"][0]["levels"] == {"yellow": 2, "red": 4}
    missing = city.get("/rules/without-limit")
    assert missing["total"] == city.stats()["watches_without_limit"] == 1
    (lack,) = missing["items"]
    assert (lack["sensor"], lack["rule"], lack["watched"]) == ("w2/level", "well", False)
    assert lack["attributes"] == ["ground_m", "invert_m"]
    assert on(city, "w2/level", "well")["watched"] is False

    publish(city, ("w1/level", 0, 2.5), ("r1/depth", 0, 12), ("r2/depth", 0, 12), ("w2/level", 0, 99))
    assert standing(city) == {"w1/level": "yellow", "r1/depth": "yellow"}
    assert [a["sensor"] for a in city.get("/alerts", tag="flood")["items"]] == ["r1/depth"]
    assert city.get("/alerts", tag="none")["items"] == []
    raised = {a["id"] for a in city.get("/alerts")["items"]}
    asked = {"rules": RULES, "from": f"{DAY}T00:00:00Z", "to": f"{DAY}T09:00:00Z"}
    assert city.post("/backtests", asked).json()["total"]["same"] == 2  # places and limits there, too

    put_model(city, 12)
    until(lambda: on(city, "w1/level", "well")["rule"]["levels"] == {"yellow": 1, "red": 2}, "the new limits")
    assert standing(city) == {"w1/level": "yellow", "r1/depth": "yellow"}  # nothing was closed or told anew
    publish(city, ("w1/level", 1, 2.5), ("r1/depth", 1, 12))
    assert standing(city) == {"w1/level": "red", "r1/depth": "yellow"}
    city.kill()
    put_model(city, 30)  # while nothing runs
    city.start()
    assert on(city, "w1/level", "well")["rule"]["levels"] == {"yellow": 10, "red": 20}
    publish(city, ("w1/level", 2, 2.5), ("r1/depth", 2, 12))
    assert standing(city) == {"r1/depth": "yellow"}
    assert {a["id"] for a in city.get("/alerts")["items"]} == raised


def test_a_put_closes_only_what_the_change_touches_and_ties_are_refused(cimtwin: Callable[..., Cimtwin]) -> None:
    city = cimtwin()
    city.put_sensors(SENSORS.replace("r2,depth,drainage.ponding_depth,cm,,,,,60,,,", SENSORS.splitlines()[-1] + "a;b"))
    city.put_rules(RULES)
    publish(city, ("r1/depth", 0, 20), ("r2/depth", 0, 20))
    own = '\n[[override]]\nrule = "road"\nsensor = "r2/depth"\nlevels = { orange = 18 }\n'
    assert put(city, RULES + own).status_code == 200
    assert standing(city) == {"r1/depth": "yellow"}
    publish(city, ("r1/depth", 1, 20), ("r2/depth", 1, 20))
    assert standing(city) == {"r1/depth": "yellow", "r2/depth": "orange"}
    tags = [f'\n[[override]]\nrule = "road"\ntag = "{tag}"\nhold = "5min"\n' for tag in "ab"]
    refused = put(city, RULES + "".join(tags))
    assert refused.status_code == 422
    assert refused.json()["problems"] == [
        {"place": "override 3, line 26", "field": "hold",
         "text": "sensor r2/depth has this field from override 2, line 21 too, which is as narrow"}
    ]  # fmt: skip
    given = city.get("/rules")
    assert [item["rule"] for item in given["override"]] == ["road", "road"]
    assert httpx.put(f"{city.url}/api/v1/rules", json=given, timeout=30).status_code == 200
    assert standing(city) == {"r1/depth": "yellow", "r2/depth": "orange"}


def test_versions_tell_who_when_why_and_what_and_can_be_put_back(cimtwin: Callable[..., Cimtwin]) -> None:
    city = cimtwin()
    first = put(city, RULES, by="li.wei", note="雨季 rain season").json()["version"]
    changed = RULES.replace("yellow = 15", "yellow = 12").replace('id = "well"', 'id = "wells"')
    second = put(city, changed.split("\n[[override]]")[0], by="王芳").json()["version"]
    items = city.get("/rules/versions")["items"]
    assert [(i["version"], i["by"], i["note"], i["in_force"]) for i in items[:2]] == [
        (second, "王芳", None, True), (first, "li.wei", "雨季 rain season", False),
    ]  # fmt: skip
    page = city.get("/rules/versions", limit=1)
    assert city.get("/rules/versions", limit=1, after=page["next"])["items"] == [items[1]]
    assert city.get(f"/rules/versions/{first}")["text"] == RULES
    diff = city.get("/rules/diff")
    assert (diff["from"], diff["to"]) == (first, second)
    assert (diff["added"], diff["removed"]) == (["wells"], ["well"])
    assert diff["changed"] == [
        {
            "rule": "road",
            "fields": {"levels": {"before": {"yellow": 15, "red": 40}, "after": {"yellow": 12, "red": 40}}},
        }
    ]
    assert [override["area"] for override in diff["overrides"]["removed"]] == ["福田区"]
    assert "\n-levels = { yellow = 15, red = 40 }\n+levels = { yellow = 12, red = 40 }\n" in diff["text"]
    back = put(city, city.get(f"/rules/versions/{first}")["text"]).json()["version"]
    undone = city.get("/rules/diff", **{"from": first, "to": back})
    assert (undone["added"], undone["removed"], undone["changed"], undone["text"]) == ([], [], [], "")
    for path in ("/rules/versions/9999", "/rules/diff?from=9999"):
        assert httpx.get(f"{city.url}/api/v1{path}").status_code == 404


def test_a_back_test_tells_what_rules_would_have_given_and_changes_nothing(
    cimtwin: Callable[..., Cimtwin], tmp_path: Path
) -> None:
    city = cimtwin()
    city.put_sensors(SENSORS)
    city.put_rules(RULES)
    depths = (5, 12, 20, 45, 20, 5, 5, 13, 5)
    publish(city, *(("r1/depth", n, depth) for n, depth in enumerate(depths)), ("r2/depth", 3, 20), ("r2/depth", 5, 1))
    before = city.get("/alerts")["items"]
    assert len(before) == 2
    span = {"from": f"{DAY}T08:00:00Z", "to": f"{DAY}T09:00:00Z"}

    def tried(rules: Any, **more: Any) -> dict[str, Any]:
        answer = city.post("/backtests", {"rules": rules, **span, **more})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        assert found["complete"]
        return found

    same = tried(RULES)
    assert same["total"] == {"would": 2, "was": 2, "same": 2, "added": 0, "missing": 0, "changed": 0}
    assert (same["readings"], same["sensors"]) == (11, 4)
    shown = [{k: v for k, v in a.items() if k not in ("state", "rule_version", "incident")} for a in same["alerts"]]
    lived = [{k: v for k, v in a.items() if k not in ("state", "rule_version", "incident")} for a in before]
    assert sorted(shown, key=str) == sorted(lived, key=str)

    lower = RULES.replace("yellow = 15, red = 40", "yellow = 10, red = 60")
    found = tried(lower)
    assert found["by_rule"] == {
        "road": {"would": 3, "was": 2, "same": 1, "added": 1, "missing": 0, "changed": 1}
    }  # fmt: skip
    (added,) = found["differences"]["added"]
    assert added["would"]["raised_at"] == f"{DAY}T08:07:00Z"
    (changed,) = found["differences"]["changed"]
    assert changed["fields"] == ["level", "raised_at"]
    assert (changed["would"]["peak_level"], changed["was"]["peak_level"]) == ("yellow", "red")
    assert tried(lower, sensors=["r2/depth"])["total"]["same"] == 1
    assert tried({"rule": []})["total"]["missing"] == 2
    assert tried(RULES, shown=1)["alerts"] == same["alerts"][:1]

    version = city.get("/rules")["version"]
    trial = put(city, lower, dry_run="3650d").json()
    assert trial["dry_run"]
    assert trial["backtest"]["total"] == found["total"]
    assert [change["rule"] for change in trial["diff"]["changed"]] == ["road"]
    assert city.get("/rules")["version"] == version
    assert city.get("/alerts")["items"] == before

    rules, out = tmp_path / "lower.toml", tmp_path / "answer.json"
    rules.write_text(lower, "utf-8")
    words = ["backtest", "--rules", str(rules), "--from", span["from"], "--to", span["to"], "--out", str(out)]
    done = run(*words, CIMTWIN_DATABASE_URL=city.environ["CIMTWIN_DATABASE_URL"])
    assert done.returncode == 0, done.stderr
    assert "3 alerts, recorded 2: 1 added, 0 missing, 1 changed" in done.stderr
    assert json.loads(out.read_text("utf-8")) == found


def test_back_tests_are_few_at_a_time_and_end_with_their_client(cimtwin: Callable[..., Cimtwin]) -> None:
    city = cimtwin()
    asked = {"rules": RULES, "from": "2020-01-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"}

    def gone() -> None:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{city.url}/api/v1/backtests", json=asked, timeout=httpx.Timeout(5, read=0.05))

    gone()
    until(lambda: [one["state"] for one in city.get("/backtests")["items"]] == ["cancelled"], "the first to end")
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: city.post("/backtests", asked), range(3)))
    assert sorted(answer.status_code for answer in found) == [200, 200, 409]
    states = [one["state"] for one in city.get("/backtests")["items"]]
    assert states == ["done", "done", "cancelled"]
    wrong = city.post("/backtests", asked | {"rules": "rule = 3"})
    assert wrong.status_code == 422
    assert city.post("/backtests", asked | {"to": asked["from"]}).status_code == 422
    assert city.post("/backtests", asked | {"sensors": ["no/one"]}).status_code == 404
    assert httpx.delete(f"{city.url}/api/v1/backtests/none").status_code == 404
