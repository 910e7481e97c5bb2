"""The command line: what it refuses it names, what it imports is all or nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

pytestmark = pytest.mark.system

SENSORS = "device,property,kind,unit\nd1,depth,drainage.ponding_depth,cm\n"


def run(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "twin", *words],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("空.csv", b"", ["空.csv", "empty"]),
        ("gbk.csv", SENSORS.encode() + "中山路井,水位监测,water.level,m\n".encode("gbk"), ["gbk.csv, line 3", "UTF-8"]),
        ("半.csv", (SENSORS + "d2,depth,drainage.ponding_depth\nd3,depth,no.kind,cm\n").encode(), ["line 4, kind"]),
        ("sep.csv", SENSORS.replace(",", ";").encode(), ["sep.csv, line 1"]),
        ("时间.csv", b"device,property,time,value\nd1,depth,2024-01-01T00:00:00Z,1\n", ["line 1, observed_at"]),
        ("未知.csv", b"device,property,observed_at,value\nnobody,x,2024-01-01T00:00:00Z,1\n", ["line 2", "nobody/x"]),
        ("坏.csv", b"device,property,observed_at,value\nd1,depth,yesterday,1\n", ["line 2", "observed_at"]),
        ("r.toml", b'[[rule]]\nid = "x"\ndetector = "threshold"\nkind = "water.wine"\nlevels = { red = 1 }\n',
         ["r.toml", "line 4, kind", "water.wine"]),
        ("r2.toml", b"[[rule]\n", ["r2.toml", "line 1"]),
        ("r3.toml", b"", ["r3.toml", "no rules"]),
        ("map.json", b'{"type": "FeatureCollection",\n [[1, 2]]}', ["map.json, line 2", "JSON"]),
        ("list.json", b"[[1, 2]]", ["list.json", "neither"]),
        ("x.bin", bytes(range(256)), ["x.bin", "UTF-8"]),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_whole_with_file_line_and_field(
    database_url: str, tmp_path: Path, name: str, content: bytes, words: list[str]
) -> None:
    good, wrong = tmp_path / "好.csv", tmp_path / name
    good.write_text(SENSORS, "utf-8")
    wrong.write_bytes(content)
    done = run("import", str(good), str(wrong), CIMTWIN_DATABASE_URL=database_url)
    assert done.returncode == 2
    assert "1 sensors created" in done.stdout
    assert "Traceback" not in done.stderr
    assert all(line.startswith("cimtwin: ") for line in done.stderr.splitlines())
    assert all(word in done.stderr for word in words), done.stderr
    with psycopg.connect(database_url) as connection:
        assert connection.execute("select count(*) from sensors").fetchone() == (1,)
        assert connection.execute("select count(*) from readings").fetchone() == (0,)


def test_what_can_be_told_before_connecting_is(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(SENSORS)
    nowhere = {"CIMTWIN_MQTT_URL": "mqtt://127.0.0.1:1", "CIMTWIN_DATA_DIR": str(tmp_path / "data")}
    assert run("publish", str(tmp_path / "s.csv"), **nowhere).returncode == 2
    assert run("publish", str(tmp_path / "没有.csv"), **nowhere).returncode == 2
    assert run("serve", "--nope").returncode == 2
    assert run("serve", CIMTWIN_HTTPP="x").returncode == 2
    good = tmp_path / "r.csv"
    good.write_text("device,property,observed_at,value\nd1,depth,2024-01-01T00:00:00Z,1\n")
    away = run("publish", str(good), **nowhere)
    assert (away.returncode, len(away.stderr.splitlines())) == (1, 1)


def test_judge_gives_one_line_a_reading_with_the_level_open_after_it(tmp_path: Path) -> None:
    kind = 'kind = "drainage.ponding_depth"'
    rule = f'[[rule]]\nid = "p"\n{kind}\ndetector = "threshold"\nlevels = {{ blue = 10, red = 40 }}\n'
    (tmp_path / "r.toml").write_text(rule)
    rows = [("10", 5), ("11", 12), ("12", 50), ("13", 3)]
    lines = "".join(f"井1,depth,2024-01-01T00:{minute}:00Z,{value}\n" for minute, value in reversed(rows))
    (tmp_path / "f.csv").write_text("device,property,observed_at,value\n" + lines, "utf-8")
    events = tmp_path / "e.jsonl"
    done = run(
        "judge", "--rules", str(tmp_path / "r.toml"), "--readings", str(tmp_path / "f.csv"), "--events", str(events)
    )
    assert done.returncode == 0, done.stderr
    assert [line.rsplit(",", 1)[1] for line in done.stdout.splitlines()[1:]] == ["", "blue", "red", ""]
    assert [line.count('"transition":"' + word) for line, word in zip(
        events.read_text("utf-8").splitlines(), ("raised", "escalated", "cleared"), strict=True
    )] == [1, 1, 1]  # fmt: skip
