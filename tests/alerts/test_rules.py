"""Reading rules: what is accepted, and that every mistake is told at once with its place."""

from __future__ import annotations

import json
import math

import pytest
from alerts_city import KINDS
from hypothesis import given, settings
from hypothesis import strategies as st

from alerts.packs import default_text
from alerts.rules import (
    FIELDS,
    Margin,
    Where,
    parse_duration,
    parse_rules,
    parse_rules_json,
    parse_rules_table,
    to_toml,
)
from twin.mistakes import in_chinese
from twin.model import HOUR, MINUTE, SECOND, InvalidRules, Level

KIND = 'kind = "water.pressure"\n'
SUM = 'detector = "accumulate"\nlevels = { blue = 1, red = 2 }\n'
USUAL = 'detector = "baseline"\n'
LIMIT = 'detector = "threshold"\nlevels = { blue = 1 }\n'


def rule(body: str, head: str = 'id = "r"\n' + KIND) -> str:
    return f"[[rule]]\n{head}{body}"


def test_the_contracts_example_is_read() -> None:
    text = """
[[rule]]
id = "road-ponding"
title = { zh = "道路积水", en = "Road ponding" }
kind = "drainage.ponding_depth"        # or sensors = ["device/property"], where = { tag = "underpass" }
detector = "threshold"                 # threshold, rate, stuck, offline, range
side = "above"                         # above is >=, below is <=; strict = true makes them > and <
levels = { blue = 10, yellow = 15, orange = 25, red = 40 }     # in the kind's unit
hold = "5min"
clear = { margin = "10%", hold = "5min" }
source = "GB 50014: one lane <= 15 cm [V]; blue, red [E]"
"""
    rules = parse_rules(text, KINDS)
    (read,) = rules.rules
    assert (read.id, read.title.zh, read.title.en, read.kind) == (
        "road-ponding", "道路积水", "Road ponding", "drainage.ponding_depth",
    )  # fmt: skip
    assert read.levels == (10, 15, 25, 40)
    assert read.hold == (5 * MINUTE,) * 4
    assert (read.clear_margin, read.clear_hold) == (Margin(10, True), 5 * MINUTE)
    assert (read.side, read.strict, read.enabled, read.max_gap) == ("above", False, True, None)
    assert rules.text == text
    assert rules.by_id["road-ponding"] is read
    assert rules.index("road-ponding") == 0


def test_every_field_is_read() -> None:
    text = """
[[rule]]
id = "a"
where = { kind = ["water.pressure", "water.flow"], not_tag = "x", tenant = ["t"], domain = "water", statistic = "rms" }
detector = "rate"
window = "1h30min"
side = "either"
strict = true
levels = { yellow = 1, red = 2.5 }
hold = { red = "500ms" }
clear = true
max_gap = "1d"
mark = { yellow = "E", red = "Vs" }
instruction = "go"
enabled = false
[[rule]]
id = "b"
sensors = ["d/p", "e/q"]
detector = "stuck"
for = "6h"
tolerance = 0.5
except = [3, 0]
level = "red"
[[rule]]
id = "c"
kind = "*"
detector = "offline"
[[rule]]
id = "d"
kind = "*"
detector = "offline"
after = "10min"
[[rule]]
id = "e"
kind = "water.ph"
detector = "range"
min = 6.5
"""
    a, b, c, d, e = parse_rules(text, KINDS).rules
    assert a.where == Where(
        kind=("water.pressure", "water.flow"), not_tag=("x",), tenant=("t",), domain=("water",), statistic=("rms",)
    )
    assert a.window == HOUR + 30 * MINUTE
    assert (a.side, a.strict, a.enabled) == ("either", True, False)
    assert [math.isnan(x) for x in a.levels] == [True, False, True, False]
    assert a.hold == (0, 0, 0, SECOND // 2)
    assert a.marks == ("", "E", "", "Vs")
    assert a.instruction.zh == a.instruction.en == "go"
    assert (b.sensors, b.stuck_for, b.tolerance, b.excepted, b.level) == (
        ("d/p", "e/q"), 6 * HOUR, 0.5, (0, 3), Level.RED,
    )  # fmt: skip
    assert (c.after, c.after_intervals, c.level) == (0, 3.0, Level.BLUE)
    assert (d.after, d.after_intervals) == (10 * MINUTE, 0.0)
    assert (e.min, e.max, e.level) == (6.5, None, Level.YELLOW)


def line_of(field: str, text: str) -> int:
    """Where a field stands; where it does not, the line of the rule's head."""
    lines = text.splitlines()
    head = lines.index("[[rule]]")
    own = [n for n in range(head, len(lines)) if lines[n].startswith((f"{field.split('.')[0]} =", f"{field} ="))]
    return (own[0] if own else head) + 1


MISTAKES = [
    ("", "detector", "is missing"),
    ('detector = "magic"\n', "detector", "unknown detector"),
    ("detector = 3\n", "detector", "must be a text"),
    ('detector = "threshold"\n', "levels", "is missing"),
    ('detector = "threshold"\nlevels = {}\n', "levels", "must be a table"),
    ('detector = "threshold"\nlevels = { green = 1 }\n', "levels.green", "must be one of blue"),
    ('detector = "threshold"\nlevels = { blue = true }\n', "levels.blue", "must be a number"),
    ('detector = "threshold"\nlevels = { blue = nan }\n', "levels.blue", "finite"),
    ('detector = "threshold"\nlevels = { blue = -inf }\n', "levels.blue", "finite"),
    (f'detector = "threshold"\nlevels = {{ blue = 1{"0" * 400} }}\n', "levels.blue", "finite"),
    ('detector = "threshold"\nlevels = { blue = 2, red = 1 }\n', "levels", "red must not be below blue"),
    ('detector = "threshold"\nside = "below"\nlevels = { blue = 1, red = 2 }\n', "levels", "must not be above"),
    ('detector = "threshold"\nside = "either"\nlevels = { blue = 1 }\n', "side", "must be one of above, below; det"),
    ('detector = "rate"\nlevels = { blue = 1 }\n', "window", "is missing"),
    ('detector = "rate"\nwindow = "5min"\nside = "below"\nlevels = { blue = -1 }\n', "levels.blue", "above 0"),
    ('detector = "rate"\nwindow = "99d"\nlevels = { blue = 1 }\n', "window", "at most 31 days"),
    ('detector = "rate"\nwindow = 0\nlevels = { blue = 1 }\n', "window", "longer than 0"),
    (
        'detector = "rate"\nwindow = "1h"\nside = "either"\nlevels = { blue = 1 }\nclear = { margin = 2 }\n',
        "clear.margin",
        "never clear",
    ),
    (LIMIT + 'window = "5min"\n', "window", "is not a field of detector threshold"),
    (LIMIT + "colour = 1\n", "colour", "unknown field"),
    (LIMIT + "hold = -5\n", "hold", "must not be negative"),
    (LIMIT + "hold = 5\n", "hold", "with its unit"),
    (LIMIT + 'hold = "5 parsecs"\n', "hold", "must be a duration"),
    (LIMIT + 'hold = "-5min"\n', "hold", "must be a duration"),
    (LIMIT + "hold = true\n", "hold", "with its unit"),
    (LIMIT + 'hold = "99999d"\n', "hold", "ten years"),
    (LIMIT + 'hold = { red = "5min" }\n', "hold.red", "no such level"),
    (LIMIT + 'hold = { pink = "5min" }\n', "hold.pink", "must be one of"),
    (LIMIT + "clear = false\n", "clear", "must be {"),
    (LIMIT + 'clear = { margin = "110%" }\n', "clear.margin", "100%"),
    (LIMIT + "clear = { margin = -1 }\n", "clear.margin", "negative"),
    (LIMIT + 'clear = { margin = "ten" }\n', "clear.margin", "must be a number"),
    (LIMIT + 'clear = { gap = "1s" }\n', "clear.gap", "unknown field"),
    (LIMIT + "max_gap = 0\n", "max_gap", "longer than 0"),
    (LIMIT + 'mark = "X"\n', "mark", "must be one of V"),
    (LIMIT + 'mark = { red = "V" }\n', "mark.red", "no such level"),
    (LIMIT + "enabled = 1\n", "enabled", "true or false"),
    (LIMIT + "strict = 0\n", "strict", "true or false"),
    (LIMIT + "title = 5\n", "title", "must be {"),
    (LIMIT + 'title = { fr = "x" }\n', "title.fr", "unknown field"),
    (LIMIT + "where = {}\n", "where", "at least one"),
    (LIMIT + 'where = { colour = "x" }\n', "where.colour", "unknown field"),
    (LIMIT + "where = { tag = 3 }\n", "where.tag", "text or a list"),
    (LIMIT + 'where = { domain = "trains" }\n', "where.domain", "unknown domain"),
    (LIMIT + 'where = { kind = "water.flow" }\n', "where.kind", "contradicts"),
    (LIMIT + 'sensors = ["a/b"]\n', "sensors", "cannot be combined"),
    ('detector = "range"\nmin = 2\nmax = 1\n', "min", "below max"),
    ('detector = "range"\nmin = 1\nmax = 2\nclear = { margin = 1 }\n', "clear.margin", "never clear"),
    ('detector = "range"\nlevel = "green"\n', "level", "must be one of"),
    ('detector = "stuck"\n', "for", "is missing"),
    ('detector = "stuck"\nfor = "1h"\ntolerance = -1\n', "tolerance", "negative"),
    ('detector = "stuck"\nfor = "1h"\nexcept = 0\n', "except", "list"),
    ('detector = "offline"\nafter = "0.5x"\n', "after", "at least"),
    ('detector = "offline"\nafter = "often"\n', "after", "times the interval"),
    ('detector = "offline"\nafter = 0\n', "after", "longer than 0"),
    ('detector = "anomaly"\nbudget = 0\n', "budget", "above 0"),
    ('detector = "anomaly"\nbudget = 5000\n', "budget", "at most 1000"),
    ('detector = "anomaly"\nbudget = "few"\n', "budget", "number"),
    ('detector = "anomaly"\nlevels = { red = 1 }\n', "levels", "is not a field of detector anomaly"),
    ('detector = "offline"\nhold = "5min"\n', "hold", "is not a field of detector offline"),
    (SUM, "window", "is missing"),
    (SUM + 'window = "40d"\n', "window", "at most 31 days"),
    (SUM + 'window = { blue = "1h", red = 0 }\n', "window.red", "longer than 0"),
    (SUM + 'window = { blue = "1h" }\n', "window", "has none for red"),
    (SUM + 'window = { blue = "1h", red = "30min", yellow = "1h" }\n', "window.yellow", "no such level"),
    (SUM + 'window = { blue = "1h", red = "2h" }\n', "window", "must not be longer for a higher level"),
    (SUM + 'window = { blue = "1d", red = "5min" }\n', "window", "write two rules"),
    (SUM + 'window = "1h"\nclear = { margin = 2 }\n', "clear.margin", "never clear"),
    (SUM + 'window = "1h"\nclear = { margin = "100%" }\n', "clear.margin", "never clear"),
    (SUM + 'window = "1h"\nside = "below"\n', "side", "must be one of above"),
    (SUM + 'window = "1h"\ncounter = 1\n', "counter", "true or false"),
    ('detector = "accumulate"\nwindow = "1h"\nlevels = { blue = 0 }\n', "levels.blue", "above 0"),
    (USUAL + "levels = { blue = 2.5 }\n", "levels.blue", "at least 3 sigmas"),
    (USUAL + 'measure = "metres"\nlevels = { blue = 3 }\n', "measure", "must be one of sigmas"),
    (USUAL + 'measure = "amount"\nlevels = { blue = -3 }\n', "levels.blue", "above 0"),
    (USUAL + "warm_up = 1\nlevels = { blue = 3 }\n", "warm_up", "whole number from 2 to 60"),
    (USUAL + "accept = 7.5\nlevels = { blue = 3 }\n", "accept", "whole number"),
    (USUAL + 'utc_offset = "Asia/Shanghai"\nlevels = { blue = 3 }\n', "utc_offset", "such as"),
    (USUAL + 'days_off = ["2026-02-30"]\nlevels = { blue = 3 }\n', "days_off", "is not a day"),
    (USUAL + "days_off = [2026-02-01]\nlevels = { blue = 3 }\n", "days_off", "list"),
    (USUAL + 'days_off = ["2026-02-01"]\nworkdays = ["2026-02-01"]\nlevels = { blue = 3 }\n', "workdays", "among"),
    ('detector = "night"\nnight = "2-4"\nlevels = { blue = 3 }\n', "night", "two times of day"),
    ('detector = "night"\nnight = "02:00-02:00"\nlevels = { blue = 3 }\n', "night", "different"),
    ('detector = "night"\nof = "max"\nlevels = { blue = 3 }\n', "of", "min or mean"),
    ('detector = "cusum"\nevery = "40d"\nlevels = { blue = 3 }\n', "every", "at most 31 days"),
    ('detector = "cusum"\nslack = -1\nlevels = { blue = 3 }\n', "slack", "0 to 10"),
    ('detector = "cusum"\nclear = { margin = 3 }\nlevels = { blue = 3 }\n', "clear.margin", "never clear"),
]


@pytest.mark.parametrize(("body", "field", "text"), MISTAKES)
def test_a_mistake_is_told_with_rule_line_and_field(body: str, field: str, text: str) -> None:
    written = "# a comment\n\n" + rule(body)
    with pytest.raises(InvalidRules) as refused:
        parse_rules(written, KINDS)
    assert all(in_chinese(p.text) for p in refused.value.problems), refused.value
    (problem,) = [p for p in refused.value.problems if p.field == field]
    assert problem.place == f"r, line {line_of(field, written)}"
    assert text in problem.text


@pytest.mark.parametrize(
    ("head", "field", "text"),
    [
        (KIND, "id", "is missing"),
        ('id = ""\n' + KIND, "id", "must not be empty"),
        ('id = "a b"\n' + KIND, "id", "1 to 64"),
        (f'id = "{"x" * 65}"\n' + KIND, "id", "1 to 64"),
        ('id = "r"\n', "kind", "is missing"),
        ('id = "r"\nkind = "water.wine"\n', "kind", "unknown kind"),
        ('id = "r"\nsensors = []\n', "sensors", "at least one"),
        ('id = "r"\nsensors = ["ab"]\n', "sensors", "not device/property"),
        ('id = "r"\nsensors = ["a/b", "a/b"]\n', "sensors", "twice"),
    ],
)
def test_a_rule_needs_an_id_and_sensors(head: str, field: str, text: str) -> None:
    written = rule(LIMIT, head)
    with pytest.raises(InvalidRules) as refused:
        parse_rules(written, KINDS)
    assert all(in_chinese(p.text) for p in refused.value.problems), refused.value
    (problem,) = refused.value.problems
    assert problem.field == field
    assert text in problem.text
    line = line_of(field, written)
    assert problem.place in (f"rule 1, line {line}", f"r, line {line}")


def test_all_mistakes_of_all_rules_are_told_at_once() -> None:
    text = (
        "colour = 3\n"
        + rule('detector = "threshold"\nlevels = { blue = true, red = "x" }\nhold = 7\n')
        + rule(LIMIT)
        + rule(LIMIT + "a = 1\n", 'id = "?"\n' + KIND)
    )
    with pytest.raises(InvalidRules) as refused:
        parse_rules(text, KINDS)
    assert [(p.place, p.field) for p in refused.value.problems] == [
        ("file", "colour"),
        ("r, line 6", "levels.blue"),
        ("r, line 6", "levels.red"),
        ("r, line 7", "hold"),
        ("r, line 9", "id"),
        ("rule 3, line 14", "id"),
        ("rule 3, line 18", "a"),
    ]


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("[[rule]\n", "line 1", "not TOML"),
        ("a = 1\na = 2\n", "line 2", "not TOML"),
        ("x = " + "[" * 5000, "file", "nested too deeply"),
        ("x = 1" + "0" * 5000, "file", "not TOML"),
        ("rule = 3\n", "file", "must be an array"),
        ("rule = [1, 2]\n", "rule 1", "must be a table"),
        (b"a = 1\n\xff", "line 2", "not UTF-8"),
        ("#" * (5 << 20), "file", "larger than 4 MiB"),
        ("[[rule]]\n" * 10_001, "file", "more than 10000 rules"),
        ("\x00", "line 1", "not TOML"),
    ],
)
def test_a_file_that_is_no_rules_file_is_refused(text: str | bytes, place: str, words: str) -> None:
    with pytest.raises(InvalidRules) as refused:
        parse_rules(text, KINDS)
    assert refused.value.problems[0].place == place
    assert words in refused.value.problems[0].text
    assert all(in_chinese(p.text) for p in refused.value.problems), refused.value


@pytest.mark.parametrize(
    "text",
    [
        '{"rule": [',
        '{"rule": [], "rule": []}',
        '{"rule": NaN}',
        "[" * 100_000,
        "3",
        '{"rule": {}}',
        '{"rules": []}',
        b"\xff",
    ],
)
def test_json_that_is_no_rule_set_is_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidRules):
        parse_rules_json(text, KINDS)


def test_json_and_toml_give_the_same_rules() -> None:
    rules = parse_rules(default_text(), KINDS)
    again = parse_rules_json(json.dumps(rules.as_json()), KINDS)
    assert again.rules == rules.rules
    assert parse_rules(again.text, KINDS).rules == rules.rules
    assert parse_rules(to_toml(rules), KINDS).rules == rules.rules
    odd = {"rule": [{"id": "r", "kind": "water.ph", "detector": "range", "title": 'a "b" \\ \n \x7f é 😀'}]}
    assert parse_rules(parse_rules_table(odd, KINDS).text, KINDS).rules[0].title.en == odd["rule"][0]["title"]


def test_the_fingerprint_is_of_what_bears_on_judging() -> None:
    base = rule(LIMIT)
    (one,) = parse_rules(base, KINDS).rules
    same = parse_rules(rule('title = "x"\nsource = "y"\nmark = "E"\nside = "above"\n' + LIMIT), KINDS).rules[0]
    assert one.fingerprint == same.fingerprint
    others = ["strict = true\n", 'side = "below"\n', 'hold = "1s"\n', 'max_gap = "1s"\n', "clear = { margin = 1 }\n"]
    prints = {parse_rules(rule(other + LIMIT), KINDS).rules[0].fingerprint for other in others}
    prints.add(parse_rules(rule(LIMIT, 'id = "q"\n' + KIND), KINDS).rules[0].fingerprint)
    assert len(prints | {one.fingerprint}) == len(others) + 2


def test_shipped_rules_need_source_mark_title_and_instruction() -> None:
    with pytest.raises(InvalidRules) as refused:
        parse_rules(rule(LIMIT), KINDS, require_source=True)
    assert sorted(p.field for p in refused.value.problems) == ["instruction", "mark", "source", "title"]


def test_durations() -> None:
    spans = {
        "500ms": 500_000,
        "30s": 30 * SECOND,
        "5min": 5 * MINUTE,
        "5m": 5 * MINUTE,
        "6h": 6 * HOUR,
        "1d": 24 * HOUR,
    }
    assert {text: parse_duration(text) for text in spans} == spans
    assert parse_duration("1h30min") == 90 * MINUTE
    for bad in ("", "5", "min", "1 h", "1e3s", "1y", "١s" * 40):
        with pytest.raises(ValueError, match="duration"):
            parse_duration(bad)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
names = ["id", "title", "kind", "sensors", "where", "detector", "source", "mark", "instruction", "enabled", "side"]
names += [
    "strict",
    "levels",
    "hold",
    "clear",
    "max_gap",
    "min",
    "max",
    "level",
    "window",
    "for",
    "tolerance",
    "after",
    "budget",
]
names += sorted(set().union(*FIELDS.values()) - set(names))
detectors = st.sampled_from(sorted(FIELDS))


@given(st.dictionaries(st.sampled_from(names), json_values, max_size=8), detectors, st.booleans())
@settings(max_examples=300, deadline=None)
def test_no_rule_whatever_its_fields_does_more_than_be_refused(
    table: dict[str, object], detector: str, is_known: bool
) -> None:
    if is_known:
        table = {"id": "r", "kind": "water.ph"} | table | {"detector": detector}
    try:
        rules = parse_rules_table({"rule": [table]}, KINDS)
    except InvalidRules:
        return
    assert parse_rules(rules.text, KINDS).rules == rules.rules
