"""`cimtwin import` of recorded readings: beside a running service, in bulk, all or nothing."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.recorded import read_recorded
from tests.conftest import Cimtwin, until
from twin import importing
from twin.model import DAY, Readings
from twin.settings import load
from twin.store.backfill import Backfill, import_readings

pytestmark = pytest.mark.system

START = 1_767_225_600_000_000  # 2026-01-01
DEVICES = 20
SENSORS = "device,property,kind,min,max\n" + "".join(
    f"d{n},depth,drainage.ponding_depth,0,8000\n" for n in range(DEVICES)
)
RULES = """
[[rule]]
id = "ponding"
title = { zh = "积水", en = "Ponding" }
kind = "drainage.ponding_depth"
detector = "threshold"
levels = { yellow = 15 }
"""


def history(file: Path, count: int, **changed: object) -> None:
    """`count` readings an hour apart of the devices in turn, shuffled; values 0, 1, 2, …"""
    n = np.random.default_rng(1).permutation(count)
    columns = {
        "device": [f"d{i}" for i in (n % DEVICES).tolist()],
        "property": ["depth"] * count,
        "observed_at": pa.array(START + n // DEVICES * (DAY // 24), pa.timestamp("us", "UTC")),
        "value": n.astype(float),
    }
    pq.write_table(pa.table(columns | changed), file, row_group_size=1000)


def run(city: Cimtwin, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "twin", *words], env={**os.environ, **city.environ},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_history_in_parquet_is_stored_once_shown_at_once_and_not_judged(
    cimtwin: Callable[..., Cimtwin], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    city = cimtwin()
    city.put_sensors(SENSORS)
    city.put_rules(RULES)
    file = tmp_path / "历史.parquet"
    history(file, 10_000)
    done = run(city, "import", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert "10000 readings stored, 0 already there" in done.stdout
    # The service takes it in while nothing else comes.
    until(lambda: city.get("/latest", sensor="d3/depth")["items"][0]["value"] == 9983, "the newest reading")
    stats = city.stats()
    assert (stats["readings_received"], stats["readings_stored"], stats["alert_events"]) == (10_000, 10_000, 0)
    buckets = city.get("/readings", sensor="d3/depth", bucket="1d", limit=1000, **{"from": "2026-01-01T00:00:00Z"})
    assert sum(bucket["count"] for bucket in buckets["items"]) == 500
    first = city.get("/readings", sensor="d3/depth", limit=3, **{"from": "2026-01-01T00:00:00Z"})["items"]
    assert [(r["value"], r["quality"]) for r in first] == [(3, "good"), (23, "good"), (43, "good")]
    assert city.get("/latest", sensor="d3/depth")["items"][0]["quality"] == "suspect"

    # Chunk by chunk: what is there already is left as it is, in the first chunk, in others, and within the file.
    monkeypatch.setattr(importing, "BLOCK_BYTES", 1 << 14)
    again = tmp_path / "again.csv"
    lines = [f"d{n % DEVICES},depth,{(START + n // DEVICES * DAY // 24) // 1000},-1\n" for n in range(9_500, 11_000)]
    again.write_text("device,property,observed_at,value\n" + "".join(lines + lines[-300:]))
    (said,) = importing.import_files(city.environ["CIMTWIN_DATABASE_URL"], [again], load({}), None)
    assert "1000 readings stored, 800 already there" in said
    until(lambda: city.stats()["readings_duplicate"] == 800, "the counters")
    city.publish(("cim/v1/default/d3/telemetry", {"ts": START // 1000, "values": {"depth": 50}}))
    stats = city.drained(11_801)
    assert (stats["readings_stored"], stats["readings_duplicate"], stats["alert_events"]) == (11_000, 801, 0)
    # And after a start from the checkpoint.
    city.kill()
    city.start()
    assert city.get("/latest", sensor="d3/depth")["items"][0]["value"] == -1


def test_a_file_with_mistakes_changes_nothing_and_tells_all_of_them(
    cimtwin: Callable[..., Cimtwin], tmp_path: Path
) -> None:
    city = cimtwin()
    city.put_sensors(SENSORS)
    bad, strange, damaged = tmp_path / "bad.parquet", tmp_path / "strange.parquet", tmp_path / "damaged.parquet"
    history(bad, 4000, value=[1.0] * 3998 + [float("inf"), float("-inf")])
    history(strange, 2000, device=["d1"] * 1500 + ["e1"] * 499 + ["e2"])
    history(damaged, 3000)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    for file, words in (
        (bad, ["bad.parquet, row 3999, value", "bad.parquet, row 4000, value"]),
        (strange, ["row 1501, property: unknown sensor e1/depth", "row 2000, property: unknown sensor e2/depth"]),
        (damaged, ["damaged.parquet, row 1: is not a whole Parquet file"]),
    ):
        done = run(city, "import", str(file))
        assert done.returncode == 2
        told = done.stderr.splitlines()
        assert len(told) == len(words)
        assert all(word in line for word, line in zip(words, told, strict=True))
    assert city.stats()["readings_received"] == 0
    with psycopg.connect(city.environ["CIMTWIN_DATABASE_URL"]) as connection:
        counts = "select (select count(*) from readings), (select count(*) from imports)"
        assert connection.execute(counts).fetchone() == (0, 0)


def test_an_import_and_the_service_that_store_the_same_readings_both_come_through(
    cimtwin: Callable[..., Cimtwin],
) -> None:
    city = cimtwin()
    city.put_sensors(SENSORS)
    url = city.environ["CIMTWIN_DATABASE_URL"]
    n = np.arange(DEVICES)
    at = np.full(DEVICES, START)
    readings = Readings(n.astype(np.int32), at, at, n.astype(float), np.zeros(DEVICES, np.uint8))
    with psycopg.connect(url, autocommit=True) as connection, psycopg.connect(url, autocommit=True) as other:
        with Backfill(connection, "history") as backfill:
            backfill.add(readings)
            turns = threading.Thread(target=import_readings, args=(other, "in its turn", readings))
            turns.start()
            city.publish(
                *(
                    (f"cim/v1/default/d{d}/telemetry", {"ts": START // 1000, "values": {"depth": 9}})
                    for d in range(DEVICES)
                )
            )
            with psycopg.connect(url, autocommit=True) as looking:
                until(
                    lambda: looking.execute(
                        "select count(*) from pg_stat_activity where application_name like 'cimtwin serve%%'"
                        " and wait_event_type = 'Lock'"
                    ).fetchone() == (1,),
                    "the service to wait for the import",
                )  # fmt: skip
            assert backfill.finish() == (DEVICES, 0)
        turns.join(20)
    stats = city.drained(3 * DEVICES)
    assert (stats["readings_stored"], stats["readings_duplicate"]) == (DEVICES, 2 * DEVICES)
    until(city.is_ready)
    assert city.get("/latest", sensor="d3/depth")["items"][0]["value"] == 3


def test_what_was_stored_is_exported_and_reads_back_the_same(cimtwin: Callable[..., Cimtwin], tmp_path: Path) -> None:
    city = cimtwin()
    city.put_sensors(SENSORS)
    city.put_rules(RULES)
    readings = [{"ts": START // 1000 + n * 500, "values": {"depth": n if n % 5 else None}} for n in range(60)]
    city.publish(*((f"cim/v1/default/d{d}/telemetry", readings) for d in range(3)))
    city.drained(180)
    files = [tmp_path / f"r{ending}" for ending in (".csv", ".jsonl", ".parquet")]
    span = ("--from", "2026-01-01T00:00:10Z", "--to", "2026-01-01T00:00:20Z")
    for file in files:
        done = run(
            city, "export", "readings", *span, "--sensor", "d1/depth", "--sensor", "d2/depth", "--out", str(file)
        )
        assert (done.returncode, done.stdout.strip()) == (0, f"cimtwin: {file}: 40 readings / 40 条读数"), done.stderr
    found = [read_recorded(file.read_bytes()) for file in files if file.suffix != ".jsonl"]
    assert all(part.sensors == [("d1", "depth"), ("d2", "depth")] for part in found)
    np.testing.assert_array_equal(found[0].observed_at, found[1].observed_at)
    np.testing.assert_array_equal(found[0].value, found[1].value)
    lines = [json.loads(line) for line in files[1].read_text().splitlines()]
    assert lines[2] == {
        "device": "d1", "property": "depth", "observed_at": "2026-01-01T00:00:10.500Z", "value": 21.0, "quality": "good"
    }  # fmt: skip
    assert [line["value"] for line in lines] == [None if math.isnan(v) else v for v in found[0].value.tolist()]
    alerts = [tmp_path / f"a{ending}" for ending in (".csv", ".jsonl", ".parquet")]
    for file in alerts:
        assert run(city, "export", "alerts", "--sensor", "d1/depth", "--out", str(file)).returncode == 0
    (told,) = (json.loads(line) for line in alerts[1].read_text().splitlines())
    (row,) = pq.read_table(alerts[2]).to_pylist()
    assert (told["rule"], told["sensor"], told["peak_value"]) == (row["rule"], row["sensor"], row["peak_value"])
    assert alerts[0].read_text().count("\n") == 2
    wrong = run(city, "export", "readings", "--out", str(tmp_path / "r.xlsx"))
    assert (wrong.returncode, "--out" in wrong.stderr) == (2, True)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(("ending", "word"), [("parquet", "row 2"), ("csv", "line 3")])
def test_no_sum_of_imported_values_overflows(
    cimtwin: Callable[..., Cimtwin], tmp_path: Path, ending: str, word: str
) -> None:
    city = cimtwin()
    city.put_sensors(SENSORS)
    file = tmp_path / f"large.{ending}"
    if ending == "parquet":
        history(file, 3, device=["d0"] * 3, value=[1.0, 1.7e308, 2.0])
    else:
        rows = [f"d0,depth,2026-01-01T0{n}:00:00Z,{value}" for n, value in enumerate(("1", "1.7e308", "2"))]
        file.write_text("\n".join(["device,property,observed_at,value", *rows]), "utf-8")
    done = run(city, "import", str(file))
    assert (done.returncode, word in done.stderr, "1e+150" in done.stderr) == (2, True, True), done.stderr
    assert "Warning" not in done.stderr
    assert city.stats()["readings_stored"] == 0
