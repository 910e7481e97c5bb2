"""Rule tests that users write: the notation of series, what a failing one says, and the command that runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from alerts.rules import parse_rules
from twin.cli import app
from twin.mistakes import in_chinese
from twin.model import MINUTE, SECOND, Refused, parse_time
from twin.rule_tests import START, RuleTest, read_tests, run, told
from twin.units import load_kinds

KINDS = load_kinds()
RULES = """
[[rule]]
id = "ponding"
kind = "drainage.ponding_depth"
detector = "threshold"
levels = { blue = 10, red = { of = "kerb_cm", default = 40 } }
hold = "2min"

[[override]]
rule = "ponding"
area = "福田区"
hold = 0

[[rule]]
id = "quiet"
kind = "*"
detector = "offline"
after = "3x"
"""


def read(text: str, folder: Path = Path()) -> list[RuleTest]:
    return read_tests(text.encode(), "t.toml", KINDS, folder.joinpath)


def one(values: str, events: str = "[]", more: str = "", sensor: str = "") -> RuleTest:
    head = f'[[test]]\nsensor = {{ kind = "drainage.ponding_depth"{sensor} }}\n'
    (test,) = read(f'{head}values = "{values}"\nevents = {events}\n{more}')
    return test


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("1 2.5 -3e-1", [(0, 1), (60, 2.5), (120, -0.3)]),
        ("0x2 _ null 7", [(0, 0), (60, 0), (180, None), (240, 7)]),
        ("_x3 1", [(180, 1)]),
        ("1+0.5x3 4-2x2", [(0, 1), (60, 1.5), (120, 2), (180, 4), (240, 2)]),
        ("@10min 1 /30s 2 3 @1h 4 5", [(600, 1), (630, 2), (660, 3), (3600, 4), (3630, 5)]),
        ("/10s 1x2", [(0, 1), (10, 1)]),
        ("", []),
    ],
)
def test_a_series_is_written_in_short(values: str, expected: list[tuple[float, float | None]]) -> None:
    start = parse_time(START)
    assert [((at - start) / SECOND, value) for _, at, value in one(values).readings] == expected


def test_a_test_passes_or_says_what_is_missing_and_what_is_too_much() -> None:
    rules = parse_rules(RULES, KINDS)
    passing = one("5 12x5 50x3 0", '["3min raised blue ponding s1/v", "8min escalated red", "9min cleared"]')
    assert run(passing, rules, KINDS) is None
    assert run(one("5x100"), rules, KINDS) is None
    failure = run(one("5 12x5", '["4min raised blue"]'), rules, KINDS)
    assert failure is not None
    assert failure.lines() == [
        "t.toml, test 1, line 1: ",
        "  expected / 应为   4min raised blue   <- missing / 没有出现",
        "  got / 实际        3min raised blue ponding s1/v   <- not expected / 不应出现",
    ]
    silent = run(one("5", '["1min cleared"]'), rules, KINDS)
    assert silent is not None
    assert silent.lines()[-1] == "  got / 实际        nothing / 无报警"
    assert run(one("5 50x5", "[]", 'rules = ["quiet"]'), rules, KINDS) is None  # only that rule's events count


def test_the_sensors_area_and_its_assets_attributes_count() -> None:
    rules = parse_rules(RULES, KINDS)
    where = ', area = "福田区/香蜜湖", asset = "road-7", attributes = { kerb_cm = 15 }'
    assert run(one("5 12 16", '["1min raised blue", "2min escalated red"]', sensor=where), rules, KINDS) is None


def test_a_clock_shows_silence_and_time_does_not_depend_on_how_many_readings_go_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rules = parse_rules(RULES, KINDS)
    test = one("1x5 @30min 1 @31min 45x3", "[]", 'until = "1h"', ', interval = "1min"')
    found = [str(event) for event in told(test, rules, KINDS)]
    assert found == [
        "7min raised blue quiet s1/v", "30min cleared blue quiet s1/v", "33min raised red ponding s1/v",
        "36min raised blue quiet s1/v",
    ]  # fmt: skip
    for size in (1, 3):
        monkeypatch.setattr("twin.rule_tests.AT_ONCE", size)
        assert [str(event) for event in told(test, rules, KINDS)] == found


def test_readings_may_be_a_recorded_file_beside_the_tests(tmp_path: Path) -> None:
    lines = [f"road-1,depth,2024-09-21T08:0{n}:00Z,{value}" for n, value in enumerate((0, 12, 12, 12, 2))]
    (tmp_path / "flood.csv").write_text("device,property,observed_at,value\n" + "\n".join(lines) + "\n", "utf-8")
    text = (
        '[[test]]\nname = "recorded"\nreadings = "flood.csv"\n'
        'sensor = { id = "road-1/depth", kind = "drainage.ponding_depth", unit = "mm" }\nevents = EVENTS\n'
    )
    rules = parse_rules(RULES.replace("blue = 10", "blue = 1"), KINDS)
    (test,) = read(text.replace("EVENTS", '["3min raised blue ponding", "4min cleared"]'), tmp_path)
    assert test.until - test.start == 4 * MINUTE
    assert run(test, rules, KINDS) is None
    with pytest.raises(Refused, match=r"readings: flood\.csv: No such file"):
        read(text.replace("EVENTS", "[]"), tmp_path / "elsewhere")


def test_rules_along_the_network_are_tested_on_a_network_of_the_test() -> None:
    rules = parse_rules(
        """
[[rule]]
id = "unlike"
kind = "drainage.level"
detector = "neighbours"
along = "upstream"
within = "200m"
count = 2
levels = { yellow = 1 }
[[rule]]
id = "high"
kind = "drainage.level"
detector = "threshold"
levels = { blue = 3 }
[[rule]]
id = "high-here-and-above"
detector = "neighbours"
of = "high"
along = "upstream"
within = "90m"
""",
        KINDS,
    )
    wells = "".join(
        f'[[test.sensor]]\nid = "w{n}/v"\nkind = "drainage.level"\nasset = "{a}"\nvalues = "{v}"\n'
        for n, (a, v) in enumerate([("J1", "1x3"), ("P7", "1x3"), ("J2", "1 5 1"), ("J3", "1 4 1")])
    )
    head = '[[test]]\nrules = ["unlike", "high-here-and-above"]\n'
    events = [
        "1min raised yellow unlike w2/v",
        "1min raised yellow unlike w3/v",
        "1min raised yellow high-here-and-above w3/v",
        "2min cleared unlike w2/v",
        "2min cleared unlike w3/v",
        "2min cleared high-here-and-above w3/v",
    ]
    (test,) = read(f'{head}pipes = ["P7 = J1 > J2 100m", "J2  >  J3 80.5m", "J3 - J4 9m"]\nevents = {events}\n{wells}')
    assert run(test, rules, KINDS) is None, [str(event) for event in told(test, rules, KINDS)]
    (test,) = read(f"{head}events = []\n{wells}")
    assert run(test, rules, KINDS) is None
    for wrong in ('"J1 > J2 100m"', '["J1 > J2"]', '["J1 < J2 5m"]', "[3]"):
        with pytest.raises(Refused) as refused:
            read(f"{head}pipes = {wrong}\nevents = []\n{wells}")
        assert [problem.field for problem in refused.value.problems] == ["pipes"]


def test_every_mistake_of_a_test_is_told_with_its_place() -> None:
    text = (
        '[[test]]\nnme = "x"\nsensor = { kind = "water.flw", size = 3 }\n\n'
        '[[test]]\nsensor = { kind = "water.flow" }\nvalues = "1 2y"\nuntil = "soon"\n'
        'events = ["3min rised", "x raised", "1min raised red red"]\n\n[[test]]\n'
    )
    with pytest.raises(Refused) as refused:
        read(text)
    assert all(in_chinese(p.text) for p in refused.value.problems), refused.value
    told_ = [str(problem).removeprefix("t.toml, ") for problem in refused.value.problems]
    assert [line.split(": ")[0] for line in told_] == [
        "test 1, line 1, nme", "test 1, line 1, sensor.size", "test 1, line 1, sensor.kind",
        "test 2, line 5, values", "test 2, line 5, until", "test 2, line 5, events", "test 2, line 5, events",
        "test 2, line 5, events", "test 3, line 11, sensor",
    ]  # fmt: skip


def test_the_command_runs_tests_beside_rules_and_alone_and_ends_with_1_where_one_fails(tmp_path: Path) -> None:
    def check(*words: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["check-rules", *words])
        return result.exit_code, result.stdout, result.stderr

    good = '[[test]]\nname = "deep"\nsensor = { kind = "drainage.ponding_depth" }\nvalues = "45x3"\n'
    good += 'events = ["2min raised red ponding"]\n'
    rules, tests = tmp_path / "rules.toml", tmp_path / "tests.toml"
    rules.write_text(RULES + good, "utf-8")
    tests.write_text(good.replace("2min raised", "1min raised"), "utf-8")
    assert check(str(rules))[:2] == (0, f"cimtwin: {rules}: 2 rules / 条规则\n")
    code, said, _ = check(str(rules), "--test")
    assert code == 0
    assert "1 tests, 1 passed, 0 failed" in said
    code, said, wrong = check(str(rules), "--test", str(tests))
    assert code == 1
    assert "2 tests, 1 passed, 1 failed" in said
    assert f"{tests}, test 1, line 1: deep" in wrong
    assert "expected" in wrong
    tests.write_text("[[test]]\n", "utf-8")
    code, _, wrong = check(str(rules), "--test", str(tests))
    assert code == 2
    assert "sensor: is missing" in wrong
    code, said, _ = check("--test")
    assert code == 0
    assert "default" in said
