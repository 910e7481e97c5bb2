"""Replays over a real service, database and broker: they tell what was told live, go anywhere, and change nothing."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from typer.testing import CliRunner
from websockets.exceptions import ConnectionClosed

from tests.conftest import Cimtwin, Watcher, until
from tests.system.test_real_floods import command, files
from twin.cli import app
from twin.model import LEVELS, parse_time

pytestmark = pytest.mark.system

DAY = "2023-12-18"
FROM, TO = f"{DAY}T12:00:00Z", f"{DAY}T17:00:00Z"  # floods stand at both
WORLD = {"bbox": [-180, -90, 180, 90]}
RULES = """
[[rule]]
id = "ponding"
title = { zh = "积水", en = "Ponding" }
kind = "drainage.ponding_depth"
detector = "threshold"
levels = { blue = %s, yellow = 10.16, orange = 25 }
hold = { blue = "10min", yellow = "4min", orange = 0 }
clear = { margin = "10%%", hold = "10min" }

[[rule]]
id = "rising"
title = { zh = "快速上涨", en = "Rising fast" }
kind = "drainage.ponding_depth"
detector = "rate"
window = "20min"
levels = { yellow = 6, red = 20 }
"""
SILENT = """
[[rule]]
id = "silent"
title = { zh = "离线", en = "Silent" }
sensors = ["d9/depth"]
detector = "offline"
after = "2s"
"""
SENSORS = "device,property,kind,lon,lat\n" + "".join(
    f"d{n},depth,drainage.ponding_depth,{114 + n / 100},22.5\n" for n in range(10)
)
PLAIN = """
[[rule]]
id = "ponding"
title = { zh = "积水", en = "Ponding" }
kind = "drainage.ponding_depth"
detector = "threshold"
levels = { yellow = %s }
"""

# What was told


def told_live(city: Cimtwin, start: str, end: str, until_seq: int = 1 << 60) -> list[tuple[Any, ...]]:
    """Contract 7's comparison, of the alert events up to a number that lie in a range, after corrections."""
    with psycopg.connect(city.environ["CIMTWIN_DATABASE_URL"]) as connection:
        rows = connection.execute(
            "with told as (select * from alert_events where seq <= %s) select rule, device || '/' || property,"
            " transition, level, (extract(epoch from observed_at) * 1e6)::bigint, value, threshold"
            " from told left join sensors s on s.id = sensor_id where observed_at >= %s and observed_at < %s"
            " and transition <> 'withdrawn' and told.id not in (select replaces from told where replaces is not null)",
            (until_seq, start, end),
        ).fetchall()
    return sorted((at, rule, s, word, LEVELS[level - 1], v, limit) for rule, s, word, level, at, v, limit in rows)


def told(events: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return sorted(
        (
            parse_time(e["observed_at"]), e["rule"], e["sensor"], e["transition"], e["level"], e["value"],
            e["threshold"],
        )
        for e in events
    )  # fmt: skip


def alerts_of(watcher: Watcher) -> list[dict[str, Any]]:
    return [f["event"] for f in watcher.frames if f["type"] == "alert"]


def seqs(watcher: Watcher) -> list[int]:
    return [f["seq"] for f in watcher.frames if f["type"] == "alert"]


def open_ids(alerts: Sequence[dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
    return {a["id"]: (a["level"], a["state"], a["value"], a["peak_value"]) for a in alerts}


def when(seconds: float) -> str:
    """Seconds since the epoch as HTTP takes a time."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


# A replay, from outside


def begun(city: Cimtwin, start: str, end: str, **more: Any) -> str:
    answer = city.post("/replays", {"from": start, "to": end, **more})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def watch(city: Cimtwin, id_: str, **more: Any) -> Watcher:
    return city.watch(path=f"/ws/v1/replays/{id_}", **more)


def control(city: Cimtwin, id_: str, action: str, **more: Any) -> dict[str, Any]:
    answer = city.post(f"/replays/{id_}/control", {"action": action, **more})
    assert answer.status_code == 200, answer.text
    status: dict[str, Any] = answer.json()
    return status


def is_at_end(frame: dict[str, Any]) -> bool:
    return bool(frame["type"] == "clock" and frame["state"] == "ended")


def played(city: Cimtwin, start: str, end: str, **more: Any) -> tuple[Watcher, dict[str, Any]]:
    """One from its start to its end, as fast as possible, and its status then."""
    id_ = begun(city, start, end, **{"speed": 0} | more)
    watcher = watch(city, id_, readings=WORLD)
    watcher.until(is_at_end)
    status = city.get(f"/replays/{id_}")
    control(city, id_, "stop")
    return watcher, status


def stood_at(city: Cimtwin, start: str, end: str, time: str, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The snapshot, and each sensor's latest reading, of a fresh replay that was sent to a moment."""
    id_ = begun(city, start, end, speed=0, paused=True, **more)
    control(city, id_, "seek", time=time)
    watcher = watch(city, id_, readings=WORLD)
    found = snapshot_and_latest(watcher, start, time)
    control(city, id_, "stop")
    return found


def snapshot_and_latest(watcher: Watcher, start: str, time: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The next snapshot, and the readings that come with it: the latest within [start, time), at the start none."""
    snapshot = watcher.until(lambda f: f["type"] == "snapshot")
    items = watcher.until(lambda f: f["type"] == "readings")["items"] if time != start else []
    assert all(parse_time(start) <= parse_time(i["observed_at"]) < parse_time(time) for i in items)
    return open_ids(snapshot["alerts"]), {i["sensor"]: (i["observed_at"], i["value"]) for i in items}


def closed_with(open_one: Callable[[], Watcher]) -> int:
    """The code that the service closes a connection with."""
    with pytest.raises(ConnectionClosed) as closed:
        open_one().until(lambda f: False)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


# A city that lived through a flood


def flooded(city: Cimtwin, tmp_path: Path) -> int:
    """A city to which a real flood day came through the broker; how many readings that were."""
    sensors, readings, _ = files()
    kept = [row for row in csv.DictReader(io.StringIO(readings)) if row["observed_at"][:10] == DAY]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(kept[0]))
    writer.writeheader()
    writer.writerows(kept)
    (tmp_path / "读数.csv").write_text(text.getvalue(), "utf-8")
    city.put_rules(RULES % 5)
    city.put_sensors(sensors)
    command(city, "publish", "--speed", "0", "--mqtt-url", city.mqtt_url, str(tmp_path / "读数.csv"))
    city.drained(len(kept))
    return len(kept)


def contents(city: Cimtwin) -> dict[str, Any]:
    """Every table's rows, as a number and a checksum."""
    with psycopg.connect(city.environ["CIMTWIN_DATABASE_URL"]) as connection:
        names = connection.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()
        return {
            name: connection.execute(
                f"select count(*), md5(string_agg(t::text, '' order by t::text)) from {name} t".encode()
            ).fetchone()
            for (name,) in names
        }


COUNTERS = ("messages_received", "readings_received", "readings_stored", "alert_events", "seq", "batch", "ws_clients")


def test_a_flood_day_is_told_again_as_it_was_told_live_at_any_speed_and_changes_nothing(
    cimtwin: Callable[..., Cimtwin], tmp_path: Path
) -> None:
    city = cimtwin(CIMTWIN_CHECKPOINT_S="3600")
    flooded(city, tmp_path)
    expected = told_live(city, FROM, TO)
    assert len(expected) > 30
    with psycopg.connect(city.environ["CIMTWIN_DATABASE_URL"]) as connection:
        row = connection.execute(
            "select count(*) from readings where observed_at >= %s and observed_at < %s", (FROM, TO)
        ).fetchone()
    live = city.watch(readings=WORLD)
    live.until(lambda f: f["type"] == "readings")
    before = contents(city), [city.stats()[name] for name in COUNTERS], city.get("/alerts", limit=1000)
    begin, digests = time.monotonic(), set()
    ids = [begun(city, FROM, TO, speed=speed) for speed in (3600, 3600, 0, 0)]
    watchers = [watch(city, id_, readings=WORLD) for id_ in ids]
    assert city.stats()["replays"] == 4
    for id_, watcher in zip(ids, watchers, strict=True):
        watcher.until(is_at_end)
        if id_ == ids[0]:
            assert time.monotonic() - begin > 4.9  # five hours at 3600 times
        assert {f["replay"] for f in watcher.frames} == {id_}
        first = watcher.frames[0]
        assert (first["type"], first["epoch"], first["seq"]) == ("snapshot", id_, 0)
        assert first["alerts"]
        assert told(alerts_of(watcher)) == expected
        assert seqs(watcher) == list(range(1, len(expected) + 1))
        assert all(e["at"] == e["observed_at"] for e in alerts_of(watcher))
        status = city.get(f"/replays/{id_}")
        assert status["recorded"] == {"events": len(expected), "digest": status["digest"]}
        assert row is not None
        assert (status["readings"], status["events"], status["time"]) == (row[0], len(expected), TO)
        digests.add(status["digest"])
        assert no_frame_is_ahead_of_the_clock(watcher)
    assert len(digests) == 1
    # What stands at its end is what stood open live at that moment.
    id_ = ids[-1]
    with psycopg.connect(city.environ["CIMTWIN_DATABASE_URL"]) as connection:
        stood = connection.execute(
            "select id from alerts where raised_at < %s and (cleared_at is null or cleared_at >= %s)", (TO, TO)
        ).fetchall()
    active = watch(city, id_).until(lambda f: f["type"] == "snapshot")["alerts"]
    assert {a["id"] for a in active if a["state"].startswith("active")} == {i for (i,) in stood}
    assert stood
    # The command line says the same.
    out = tmp_path / "报警.jsonl"
    done = command(city, "replay", "--from", FROM, "--to", TO, "--out", str(out))
    assert told([json.loads(line) for line in out.read_text("utf-8").splitlines()]) == expected
    assert f"{row[0]} readings, {len(expected)} alert events, digest {digests.pop()};" in done.stderr
    assert done.stderr.rstrip().endswith(": the same / 一致")
    assert not done.stdout
    # And nothing of it all shows in what is live.
    for id_ in ids:
        control(city, id_, "stop")
    live.socket.send(json.dumps({"type": "subscribe", "alerts": {}}))
    live.until(lambda f: f["type"] == "snapshot")
    assert [f["type"] for f in live.frames].count("snapshot") == 2
    assert not [f for f in live.frames if f["type"] in ("alert", "clock") or "replay" in f]
    after = contents(city), [city.stats()[name] for name in COUNTERS], city.get("/alerts", limit=1000)
    assert after == before


def no_frame_is_ahead_of_the_clock(watcher: Watcher) -> bool:
    """Whether all that a frame tells of lies before the clock that follows it, and no alert event before the last."""
    newest, last = 0, 0
    for frame in watcher.frames:
        if frame["type"] == "alert":
            newest = max(newest, parse_time(frame["event"]["observed_at"]))
        elif frame["type"] == "readings":
            newest = max(newest, *(parse_time(i["observed_at"]) for i in frame["items"]))
        elif frame["type"] == "clock":
            at = parse_time(frame["time"])
            if (newest and newest >= at) or at < last:
                return False
            last = at
    return last > 0


def readings(*items: tuple[str, float, float]) -> list[tuple[str, Any]]:
    """Messages of (device, seconds since the epoch, depth)."""
    return [
        (f"cim/v1/default/{device}/telemetry", {"ts": int(at * 1000), "values": {"depth": depth}})
        for device, at, depth in items
    ]


def act(city: Cimtwin, action: str, until: str | None = None, **which: str) -> None:
    (alert,) = city.get("/alerts", state="open", **which)["items"]
    deed = {"action": action, "by": "李伟", "note": "看过了", "until": until}
    answer = city.post(f"/alerts/{alert['id']}/actions", deed)
    assert answer.status_code == 200, answer.text


def test_people_silence_late_data_and_changed_rules_are_told_as_they_were_told_live(
    cimtwin: Callable[..., Cimtwin],
) -> None:
    city = cimtwin()
    city.put_rules(PLAIN % 10)
    city.put_sensors(SENSORS)
    hour_ago = time.time() - 3600
    old, minute = hour_ago - 40 * 86_400, 60.0
    # d0 and d8 stand from before; d1 is cleared, and nobody has seen it.
    city.publish(*readings(("d8", old, 30), ("d0", hour_ago - minute, 20), ("d1", hour_ago - minute, 20)))
    city.publish(*readings(("d1", hour_ago + minute, 1), ("d2", hour_ago + 2 * minute, 20)))
    city.publish(*readings(("d3", hour_ago + 20 * minute, 20), ("d3", hour_ago + 30 * minute, 1)))
    city.drained(7)
    act(city, "acknowledge", sensor="d2/depth")
    act(city, "note", sensor="d0/depth")
    act(city, "assign", sensor="d0/depth")
    act(city, "shelve", when(time.time() + 3600), sensor="d0/depth")  # and so is what is raised there later
    # Late: d3 was flooded from earlier on, and once more in between.
    known, seq = when(time.time()), city.stats()["seq"]
    city.publish(*readings(("d3", hour_ago + 10 * minute, 15), ("d3", hour_ago + 15 * minute, 1)))
    city.drained(9)
    act(city, "acknowledge", sensor="d8/depth")
    act(city, "close", sensor="d1/depth")
    # Other rules: what was open is closed with them, and told anew by later readings. And d9 falls silent.
    city.put_rules(PLAIN % 12 + SILENT)
    city.publish(*readings(("d0", hour_ago + 50 * minute, 13), ("d2", hour_ago + 50 * minute, 11)))
    city.publish(*readings(("d9", time.time(), 1)))
    until(lambda: city.get("/alerts", sensor="d9/depth")["items"], "the silence to be told")
    act(city, "acknowledge", sensor="d9/depth")
    city.publish(*readings(("d9", time.time(), 1)))
    until(lambda: city.get("/alerts", sensor="d9/depth", state="cleared")["items"], "the silence to be over")
    start, end = when(hour_ago), when(time.time())
    words = [e[3] for e in told_live(city, start, end)]
    assert {w: words.count(w) for w in words} == {
        "raised": 5, "cleared": 4, "acknowledged": 3, "noted": 1, "assigned": 1, "shelved": 2, "closed": 6
    }  # fmt: skip
    for _ in range(2):
        watcher, status = played(city, start, end)
        assert told(alerts_of(watcher)) == told_live(city, start, end)
        assert status["digest"] == status["recorded"]["digest"]
        assert no_frame_is_ahead_of_the_clock(watcher)
    snapshot = watcher.frames[0]
    assert {a["sensor"]: a["state"] for a in snapshot["alerts"]} == dict.fromkeys(
        ("d0/depth", "d1/depth", "d8/depth"), "active_unacknowledged"
    )
    shelved = [(e["sensor"], e["transition"]) for e in alerts_of(watcher) if "shelved" in e["flags"]]
    assert shelved == [("d0/depth", "shelved"), ("d0/depth", "closed"), ("d0/depth", "shelved")]
    assert {e["by"] for e in alerts_of(watcher) if e["transition"] == "acknowledged"} == {"李伟"}
    # As known then: before the late readings, and all that came after.
    watcher, status = played(city, start, known, received_before=known)
    assert told(alerts_of(watcher)) == told_live(city, start, known, seq)
    assert status["digest"] == status["recorded"]["digest"]
    # Had the rules been others: nobody saw what there would not have been; silence is told by none of them.
    watcher, status = played(city, start, end, rules=PLAIN % 14)
    judged = [e for e in alerts_of(watcher) if e["transition"] in ("raised", "cleared")]
    assert [(e["sensor"], e["transition"]) for e in judged] == [
        ("d1/depth", "cleared"), ("d2/depth", "raised"), ("d3/depth", "raised"), ("d3/depth", "cleared"),
        ("d3/depth", "raised"), ("d3/depth", "cleared"), ("d0/depth", "cleared"), ("d2/depth", "cleared"),
    ]  # fmt: skip
    people = [(e["sensor"], e["transition"]) for e in alerts_of(watcher) if e["by"]]
    assert people == [
        ("d2/depth", "acknowledged"), ("d0/depth", "noted"), ("d0/depth", "assigned"), ("d0/depth", "shelved"),
        ("d1/depth", "closed"),
    ]  # fmt: skip
    assert status["rules"] == "given"


def test_what_people_did_about_alerts_that_are_gone_or_yet_to_come_is_told(cimtwin: Callable[..., Cimtwin]) -> None:
    city = cimtwin()
    city.put_rules(PLAIN % 10)
    city.put_sensors(SENSORS)
    now = time.time()
    city.publish(*readings(("d0", now - 100, 20), ("d1", now - 100, 20), ("d1", now - 90, 1), ("d2", now + 60, 20)))
    city.drained(4)
    act(city, "acknowledge", sensor="d0/depth")  # late data gives it another beginning
    act(city, "close", sensor="d1/depth")
    (cleared,) = city.get("/alerts", sensor="d1/depth")["items"]
    assert city.post(f"/alerts/{cleared['id']}/actions", {"action": "note", "note": "已清理"}).status_code == 200
    act(city, "acknowledge", sensor="d2/depth")  # its clock is ahead
    city.publish(*readings(("d0", now - 160, 20)))
    city.drained(5)
    start, end = when(now - 3600), when(now + 120)
    expected = told_live(city, start, end)
    assert len(expected) == 8
    watcher, status = played(city, start, end)
    assert told(alerts_of(watcher)) == expected
    assert status["digest"] == status["recorded"]["digest"]


def test_silence_told_after_the_last_reading_is_told_again(cimtwin: Callable[..., Cimtwin]) -> None:
    city = cimtwin()
    city.put_rules(PLAIN % 10)
    city.put_sensors(SENSORS)
    start = when(time.time())
    city.publish(*readings(("d9", time.time(), 1)))
    city.drained(1)
    city.put_rules(PLAIN % 10 + SILENT)  # since then nothing came that these rules could judge
    until(lambda: city.get("/alerts", sensor="d9/depth")["items"], "the silence to be told")
    end = when(time.time())
    watcher, status = played(city, start, end)
    assert [e["transition"] for e in alerts_of(watcher)] == ["raised"]
    assert status["digest"] == status["recorded"]["digest"]
    assert played(city, start, end, sensors=["d8/depth"])[1]["recorded"]["events"] == 0


def test_rules_changed_in_the_midst_of_an_old_flood_tell_anew_as_they_did_live(
    cimtwin: Callable[..., Cimtwin],
) -> None:
    city = cimtwin()
    city.put_rules(PLAIN % 10)
    city.put_sensors(SENSORS)
    noon = parse_time(FROM) / 1e6
    city.publish(*readings(("d0", noon, 20)))
    city.drained(1)
    city.put_rules(PLAIN % 12)  # closes the alert now, years after the flood
    city.publish(*readings(("d0", noon + 60, 20), ("d0", noon + 120, 3)))
    city.drained(3)
    expected = told_live(city, FROM, TO)
    assert [e[3] for e in expected] == ["raised", "raised", "cleared"]
    watcher, _ = played(city, FROM, TO)
    assert told(alerts_of(watcher)) == expected
    watcher, _ = played(city, when(noon + 61), TO)
    assert told(alerts_of(watcher)) == expected[2:]
    assert len(watcher.frames[0]["alerts"]) == 2


def test_control_goes_anywhere_and_what_it_shows_is_as_if_played_to_there(
    cimtwin: Callable[..., Cimtwin], tmp_path: Path
) -> None:
    city = cimtwin()
    flooded(city, tmp_path)
    expected = told_live(city, FROM, TO)
    id_ = begun(city, FROM, TO, speed=60, paused=True)
    assert control(city, id_, "pause")["time"] == FROM
    watcher = watch(city, id_, readings=WORLD)
    snapshot_and_latest(watcher, FROM, FROM)
    moments = [f"{DAY}T{at}Z" for at in ("14:00:00", "16:59:59.999", "12:30:00", "15:00:00", "12:00:00", "17:00:00")]
    for moment in moments:
        status = control(city, id_, "seek", time=moment)
        assert parse_time(status["time"]) == parse_time(moment)
        assert status["state"] == ("ended" if moment == TO else "paused")
        before = [e for e in expected if e[0] < parse_time(moment)]
        assert status["events"] == len(before)
        seen = snapshot_and_latest(watcher, FROM, moment)
        assert seen == stood_at(city, FROM, TO, moment)
        assert seen == snapshot_and_latest(
            watch(city, id_, readings=WORLD), FROM, moment
        )  # and so does who comes later
    # Nothing moves while it pauses; then it does, as fast as it is told.
    assert control(city, id_, "seek", time=FROM)["state"] == "paused"
    assert control(city, id_, "speed", speed=1800)["speed"] == 1800
    assert city.get(f"/replays/{id_}")["time"] == FROM
    assert control(city, id_, "play")["state"] == "playing"
    watcher.until(lambda f: f["type"] == "clock" and f["time"] > FROM)
    paused = control(city, id_, "pause")
    assert paused["state"] == "paused"
    assert parse_time(FROM) < parse_time(paused["time"]) < parse_time(TO)
    later = until(lambda: city.get(f"/replays/{id_}"))
    assert (later["time"], later["readings"]) == (paused["time"], paused["readings"])
    # To the end, where play has nothing more to do; and from there back.
    control(city, id_, "play", speed=0)
    watcher.until(is_at_end)
    assert control(city, id_, "play")["state"] == "ended"
    assert city.get(f"/replays/{id_}")["events"] == len(expected)
    back = watch(city, id_)
    back.until(is_at_end)
    control(city, id_, "pause")
    control(city, id_, "seek", time=FROM)
    back.until(lambda f: f["type"] == "snapshot" and f["seq"] == 0)
    control(city, id_, "play")
    back.until(is_at_end)
    assert told(alerts_of(back)) == expected
    # Stopped it is over, for those who watch and those who come.
    assert control(city, id_, "stop")["state"] == "stopped"
    assert closed_with(lambda: watcher) == closed_with(lambda: watch(city, id_)) == 1000
    assert city.post(f"/replays/{id_}/control", {"action": "play"}).status_code == 409
    assert city.get(f"/replays/{id_}")["state"] == "stopped"


def test_whoever_comes_back_has_missed_nothing_and_sees_nothing_twice(
    cimtwin: Callable[..., Cimtwin], tmp_path: Path
) -> None:
    city = cimtwin(CIMTWIN_WS_QUEUE="4")  # one that reads slowly is soon closed, too
    flooded(city, tmp_path)
    end = f"{DAY}T14:30:00Z"
    expected = told_live(city, FROM, end)
    assert len(expected) > 15
    id_ = begun(city, FROM, end, speed=3600, paused=True)
    seen: list[dict[str, Any]] = []
    resume = {"epoch": id_, "seq": 0}
    control(city, id_, "play")
    while len(seen) < len(expected):
        watcher = watch(city, id_, resume=resume)
        with_more = len(seen) + 5
        while len(seen) < min(with_more, len(expected)):
            frame = watcher.read()
            assert frame["type"] in ("alert", "ping", "clock")
            if frame["type"] == "alert":
                assert frame["seq"] == resume["seq"] + 1
                resume["seq"] = frame["seq"]
                seen.append(frame["event"])
        watcher.close()
    assert told(seen) == expected
    # A number that lies ahead of where it stands now is not one to go on from; one that it has passed is.
    control(city, id_, "pause")
    control(city, id_, "seek", time=FROM)
    watcher = watch(city, id_, resume=resume)
    assert [watcher.read()["type"] for _ in range(2)] == ["gap", "snapshot"]
    status = control(city, id_, "seek", time=f"{DAY}T14:00:00Z")
    watcher = watch(city, id_, resume={"epoch": id_, "seq": 2})
    watcher.events(status["events"] - 2)
    assert alerts_of(watcher) == seen[2 : status["events"]]


RULE_MISTAKES = """
[[rule]]
id = "a"
title = { zh = "甲", en = "A" }
kind = "no.such.kind"
detector = "threshold"
levels = { yellow = 1 }

[[rule]]
id = "b"
title = { zh = "乙", en = "B" }
kind = "drainage.ponding_depth"
detector = "guess"
"""
GOOD = {"from": FROM, "to": TO, "paused": True}
REFUSED: list[tuple[dict[str, Any], int, list[str]]] = [
    ({"from": TO, "to": FROM}, 422, ["from"]),
    ({"from": FROM, "to": FROM}, 422, ["from"]),
    ({"from": "yesterday"}, 422, ["from"]),
    ({"to": "2023-12-18T00:00:00"}, 422, ["to"]),
    ({"to": None}, 422, ["to"]),
    ({"received_before": "now"}, 422, ["received_before"]),
    ({"sensors": ["nobody/depth"]}, 404, ["nobody/depth"]),
    ({"sensors": "d0/depth"}, 422, ["sensors"]),
    *(({"speed": speed}, 422, ["speed"]) for speed in (0.05, 3601, -1, True, "60", None)),
    ({"paused": 1}, 422, ["paused"]),
    ({"rules": RULE_MISTAKES}, 422, ["no.such.kind", "guess"]),
    ({"rules": [{"id": "c", "detector": "threshold"}]}, 422, ["rule"]),
    ({"rules": "not = toml ="}, 422, ["line 1"]),
    ({"area": "1,2,3"}, 422, ["area"]),
    ({"area": [10, 10, 0, 0]}, 422, ["area"]),
    ({"area": [1, 2, 3, "x"]}, 422, ["area"]),
]


def test_what_cannot_be_played_is_refused_with_its_reasons(cimtwin: Callable[..., Cimtwin], tmp_path: Path) -> None:
    city = cimtwin(CIMTWIN_REPLAYS="2")
    city.put_sensors(SENSORS)
    for given, status, words in REFUSED:
        answer = city.post("/replays", GOOD | given)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), given
        assert all(word in answer.text for word in words), answer.text
    for body in (b"", b"[]", b"{", b"null", b'{"from": "%s", "to": "%s", "speed": NaN}' % (FROM.encode(), TO.encode())):
        answer = city.post("/replays", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422), answer.text
    assert city.get("/replays")["items"] == []
    ids = [begun(city, FROM, TO, paused=True) for _ in range(2)]
    assert city.post("/replays", GOOD).status_code == 409
    control(city, ids[0], "stop")
    assert city.post("/replays", GOOD).status_code == 200
    for given, status in (
        ({"action": "jump"}, 422),
        ({"action": "seek"}, 422),
        ({"action": "seek", "time": "2023-12-18T11:59:59.999999Z"}, 422),
        ({"action": "seek", "time": "2023-12-18T17:00:00.000001Z"}, 422),
        ({"action": "speed"}, 422),
        ({"action": "speed", "speed": 3601}, 422),
        ({"action": "play", "speed": 0.01}, 422),
        ({}, 422),
    ):
        assert city.post(f"/replays/{ids[1]}/control", given).status_code == status, given
    assert city.get(f"/replays/{ids[1]}")["speed"] == 1
    assert city.post("/replays/nobody/control", {"action": "play"}).status_code == 404
    assert httpx.get(f"{city.url}/api/v1/replays/nobody").status_code == 404
    assert closed_with(lambda: watch(city, "nobody")) == 4404
    # The command line: one readable line a mistake, and 2.
    (tmp_path / "r.toml").write_text(RULE_MISTAKES)
    span = ("--from", FROM, "--to", TO)
    for words, lines, named in (
        (("--from", TO, "--to", FROM), 1, "--from"),
        (("--from", "noon", "--to", TO), 1, "--from"),
        ((*span, "--speed", "3601"), 1, "--speed"),
        ((*span, "--speed", "nan"), 1, "--speed"),
        ((*span, "--area", "1,2,3"), 1, "--area"),
        ((*span, "--area", "3,2,1,2"), 1, "--area"),
        ((*span, "--sensor", "nobody/depth", "--sensor", "nor/he"), 2, "nobody/depth"),
        ((*span, "--received-before", "then"), 1, "--received-before"),
        ((*span, "--rules", str(tmp_path / "r.toml")), 2, "r.toml"),
        ((*span, "--out", str(tmp_path / "no" / "dir.jsonl")), 1, "dir.jsonl"),
    ):
        done = CliRunner().invoke(app, ["replay", *words], env=city.environ)
        assert (done.exit_code, len(done.stderr.splitlines())) == (2, lines), done.stderr
        assert named in done.stderr
        assert not done.stdout


def workers(city: Cimtwin) -> list[int]:
    """The processes that the service started, and theirs, that still run."""
    assert city.process is not None
    group, found = city.process.pid, []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == group and int(entry.name) != group and fields[0] != "Z":  # its session
                found.append(int(entry.name))
    return found


def test_a_replay_ends_with_its_service_and_survives_or_says_so_where_the_database_does_not(
    cimtwin: Callable[..., Cimtwin], tmp_path: Path
) -> None:
    city = cimtwin()
    flooded(city, tmp_path)
    ids = [begun(city, FROM, TO, speed=speed, paused=paused) for speed, paused in ((1, False), (1, True))]
    watch(city, ids[0]).until(lambda f: f["type"] == "clock" and f["state"] == "playing")
    assert len(workers(city)) >= 2
    city.kill()
    until(lambda: not workers(city), "the workers to end", 10)
    city.start()
    assert city.get("/replays")["items"] == []
    before = told_live(city, FROM, TO)
    id_ = begun(city, FROM, TO, speed=600)
    watcher = watch(city, id_)
    watcher.events(1)
    with psycopg.connect(city.environ["CIMTWIN_DATABASE_URL"], autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
    control(city, id_, "speed", speed=0)
    status = until(lambda: (s := city.get(f"/replays/{id_}"))["state"] in ("ended", "failed") and s, "an end")
    if status["state"] == "failed":
        assert "database" in status["error"] or "connection" in status["error"], status
        assert closed_with(lambda: watcher) == 1000
    until(city.is_ready, "the service to have its database again")
    city.publish(*readings(("BK-hoyt-st-5th-st-007sk0", time.time(), 1)))
    until(lambda: city.get("/latest", sensor="BK-hoyt-st-5th-st-007sk0/depth")["items"][0]["age_s"] < 60)
    assert told_live(city, FROM, TO) == before
    again, status = played(city, FROM, TO)
    assert told(alerts_of(again)) == before
    running = begun(city, FROM, TO, speed=1)
    watch(city, running).until(lambda f: f["type"] == "clock" and f["state"] == "playing")
    assert city.stop() == 0
    until(lambda: not workers(city), "the workers to end", 10)


def test_a_replay_moved_before_anybody_watches_still_begins_and_one_key_begins_one(
    cimtwin: Callable[..., Cimtwin],
) -> None:
    city = cimtwin()
    body = {"from": FROM, "to": TO, "speed": 3600}
    with ThreadPoolExecutor(3) as three:
        answers = list(
            three.map(lambda _: city.post("/replays", body, headers={"Idempotency-Key": "one"}).json(), range(3))
        )
    assert len({answer["id"] for answer in answers}) == 1
    assert city.post("/replays", body | {"to": FROM}, headers={"Idempotency-Key": "one"}).status_code == 422
    first, second = answers[0]["id"], begun(city, FROM, TO, speed=3600)
    control(city, second, "seek", time=f"{DAY}T13:00:00Z")
    until(lambda: city.get(f"/replays/{second}")["time"] > f"{DAY}T13:30:00Z", "it to go on by itself")
    newest = city.get("/replays", limit=1)
    assert [item["id"] for item in newest["items"]] == [second]
    rest = city.get("/replays", limit=1, after=newest["next"])
    assert ([item["id"] for item in rest["items"]], rest["next"]) == ([first], None)
