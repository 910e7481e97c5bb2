"""What a restart, a stall or a clean-up must not change."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.conftest import Cimtwin, until

pytestmark = pytest.mark.system

SENSORS = "device,property,kind,interval_s\n" + "".join(f"d{n},depth,drainage.ponding_depth,1\n" for n in range(3))
OFFLINE = """
[[rule]]
id = "silent"
title = { zh = "离线", en = "Offline" }
kind = "drainage.ponding_depth"
detector = "offline"
after = "2s"
"""
PONDING = """
[[rule]]
id = "ponding"
title = { zh = "积水", en = "Ponding" }
kind = "drainage.ponding_depth"
detector = "threshold"
levels = { yellow = %s }
"""


def now_ms() -> int:
    return int(time.time() * 1000)


def say(city: Cimtwin, depth: float, device: str = "d0") -> None:
    city.publish((f"cim/v1/default/{device}/telemetry", {"ts": now_ms(), "values": {"depth": depth}}))


def transitions(city: Cimtwin) -> list[str]:
    alerts = city.get("/alerts", limit=1000)["items"]
    return [e["transition"] for a in alerts for e in city.get(f"/alerts/{a['id']}")["events"]]


def test_a_silence_told_before_a_crash_clears_after_it(cimtwin: Callable[..., Cimtwin]) -> None:
    city = cimtwin(CIMTWIN_CHECKPOINT_S="3600")
    city.put_rules(OFFLINE)
    city.put_sensors(SENSORS)
    say(city, 1)
    until(lambda: transitions(city) == ["raised"], "the silence to be told")
    city.kill()
    city.start()
    say(city, 1)
    until(lambda: transitions(city)[:2] == ["raised", "cleared"], "the silence to be over")


def test_a_rule_changed_before_a_crash_tells_again_after_it(cimtwin: Callable[..., Cimtwin]) -> None:
    city = cimtwin(CIMTWIN_CHECKPOINT_S="3600")
    city.put_rules(PONDING % 10)
    city.put_sensors(SENSORS)
    say(city, 20)
    until(lambda: transitions(city) == ["raised"], "the alert")
    city.put_rules(PONDING % 12)
    city.kill()
    city.start()
    assert transitions(city) == ["raised", "closed"]
    say(city, 20)
    until(lambda: sorted(transitions(city)) == ["closed", "raised", "raised"], "the hazard to be told again")


def test_a_stalled_database_makes_nobody_silent(cimtwin: Callable[..., Cimtwin]) -> None:
    city = cimtwin()
    city.put_rules(OFFLINE)
    city.put_sensors(SENSORS)
    stop = threading.Event()

    def devices() -> None:
        publisher = city.publisher()
        while not stop.wait(0.3):
            for n in range(3):
                payload = f'{{"ts": {now_ms()}, "values": {{"depth": 1}}}}'.encode()
                publisher.publish(f"cim/v1/default/d{n}/telemetry", payload)
        publisher.flush()
        publisher.close()

    thread = threading.Thread(target=devices)
    thread.start()
    until(lambda: city.stats()["readings_stored"] > 6, "readings")
    with psycopg.connect(city.environ["CIMTWIN_DATABASE_URL"]) as connection:
        connection.execute("lock table service in access exclusive mode")
        deadline = time.monotonic() + 5
        until(lambda: time.monotonic() > deadline)
        connection.rollback()
    stored = city.stats()["readings_stored"]
    until(lambda: city.stats()["readings_stored"] > stored + 20, "the stream to go on")
    stop.set()
    thread.join()
    assert transitions(city) == []


def test_late_readings_of_a_day_that_retention_dropped_are_stored(cimtwin: Callable[..., Cimtwin]) -> None:
    city = cimtwin()
    city.put_sensors(SENSORS)
    old = now_ms() - 10 * 86_400_000
    topic = "cim/v1/default/d0/telemetry"
    city.publish((topic, {"ts": old, "values": {"depth": 1}}))
    city.drained(1)
    with psycopg.connect(city.environ["CIMTWIN_DATABASE_URL"], autocommit=True) as connection:
        if connection.execute("select 1 from pg_extension where extname = 'timescaledb'").fetchone():
            connection.execute("select drop_chunks('readings', older_than => now() - interval '5 days')")
        else:
            day = time.strftime("%Y%m%d", time.gmtime(old / 1000))
            connection.execute(f"drop table readings_{day}".encode())
    city.publish((topic, {"ts": old + 1000, "values": {"depth": 2}}))
    city.drained(2)
    assert city.stats()["readings_stored"] == 2


def test_history_imported_before_the_first_start_does_not_hide_late_readings(
    cimtwin: Callable[..., Cimtwin], tmp_path: Path
) -> None:
    city = cimtwin(start=False)
    hour_ago = now_ms() - 3_600_000
    (tmp_path / "s.csv").write_text(SENSORS)
    (tmp_path / "r.csv").write_text(f"device,property,observed_at,value\nd0,depth,{hour_ago},1\n")
    (tmp_path / "r.toml").write_text(PONDING % 10)
    files = [str(tmp_path / name) for name in ("s.csv", "r.csv", "r.toml")]
    subprocess.run([sys.executable, "-m", "twin", "import", *files], env={**os.environ, **city.environ}, check=True)
    city.start()
    assert city.stats()["sensors_never_heard"] == 3
    city.publish(("cim/v1/default/d0/telemetry", {"ts": hour_ago - 60_000, "values": {"depth": 20}}))
    until(lambda: transitions(city) == ["raised"], "the late reading to be judged")
