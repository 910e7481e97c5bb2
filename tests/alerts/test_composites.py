"""Composite rules: what is refused, what they say, where they look, and the shipped ones on small cities."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from alerts_city import KINDS, MINUTE, T0, catalog, feed, readings, rules

from alerts.composites import PATIENCE, Clock, Redone
from alerts.engine import Engine, EngineState
from alerts.judge import judge
from alerts.lifecycle import AlertBook, Docket
from alerts.packs import default_text
from alerts.rules import RuleSet, parse_rules, parse_rules_table, to_toml
from twin.catalog import Catalog
from twin.mistakes import in_chinese
from twin.model import DAY, HOUR, InvalidRules, Sensor, Transition

PACK = parse_rules(default_text(), KINDS, require_source=True)
MEMBERS = """
[[rule]]
id = "high"
title = { zh = "液位高", en = "Level high" }
kind = "drainage.level"
detector = "threshold"
levels = { yellow = 2, red = 4 }
[[rule]]
id = "pump"
title = { zh = "水泵运行", en = "Pump runs" }
kind = "drainage.pump_running"
role = "condition"
detector = "threshold"
levels = { blue = 1 }
[[rule]]
id = "silent"
kind = "*"
detector = "offline"
"""
HEAD = '[[rule]]\nid = "c"\n'


def composite(body: str) -> str:
    return MEMBERS + HEAD + 'detector = "composite"\n' + body


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        ('all = ["none"]', "all", "there is no rule 'none'"),
        ('all = ["high"]\nany = ["c"]', "any", "follows other rules itself"),
        ('all = ["silent"]', "all", "by the clock"),
        ('not = ["pump"]', "not", "could hold where nothing has happened"),
        ('all = [{ rule = "high", on = "city" }]', "all", "could hold where nothing has happened"),
        ('any = ["high", { not = ["pump"] }]', "any", "could hold where nothing has happened"),
        ("", "all", "which rules?"),
        ("all = []", "all", "at least one"),
        ('all = ["high", 3]', "all.2", "must be the id of a rule"),
        ('all = [{ rule = "high", of = "x" }]', "all.1.of", "unknown field"),
        ('all = [{ rule = "high", within = "50" }]', "all.1.within", "a distance"),
        ('all = [{ rule = "high", on = "city", within = "5m" }]', "all.1.on", "cannot be combined"),
        ('on = "city"\nall = ["high", { rule = "pump", along = "upstream" }]', "all.2.along", "not at city"),
        ('all = [{ rule = "high", sensors = 0 }]', "all.1.sensors", '"any", "all"'),
        ('all = [{ rule = "" }]', "all.1.rule", "id of a rule"),
        ('all = ["high"]\nwindow = 5', "window", "duration with its unit"),
        ('all = ["high"]\nmax_gap = "5min"', "max_gap", "of readings"),
        ('all = ["high"]\nclear = { margin = 1 }', "clear.margin", "of values"),
        ('all = ["high"]\nlevel_up = 1', "level_up", "needs level_from"),
        ('all = ["high"]\nlevel_from = ["nowhere"]', "level_from", "there is no rule"),
        ('all = ["high"]\nrole = "condition"', "role", "cannot follow"),
        ("all = " + "[{ any = " * 9 + '["high"]' + "}]" * 9, "all" + ".1.any" * 8, "nested"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused_with_its_place(body: str, field: str, said: str) -> None:
    with pytest.raises(InvalidRules) as refused:
        rules(composite(body))
    assert all(in_chinese(p.text) for p in refused.value.problems), refused.value
    assert any(p.field == field and said in p.text and "c" in p.place for p in refused.value.problems), refused.value


@pytest.mark.parametrize("of", ["[]", "''", "3"])
def test_neighbours_that_count_nothing_are_refused(of: str) -> None:
    with pytest.raises(InvalidRules) as refused:
        rules(HEAD + f'detector = "neighbours"\nwithin = "50m"\nof = {of}')
    assert {p.field for p in refused.value.problems} == {"of"}, refused.value


@pytest.mark.parametrize(
    "body",
    ['all = [{ rule = "high", within = "50" }]', "all = [{ rule = 3 }]", 'all = [{ rule = "high", along = "up" }]'],
)
def test_one_mistake_is_told_once(body: str) -> None:
    with pytest.raises(InvalidRules) as refused:
        rules(composite(body))
    assert len(refused.value.problems) == 1, refused.value


def test_what_a_composite_follows_bears_on_whether_it_judges_alike() -> None:
    text = composite('all = ["high"]\nnot = [{ rule = "pump", window = "1h" }]')
    one = rules(text)
    assert one.by_id["c"].fingerprint == rules(text.replace("Level high", "Water high")).by_id["c"].fingerprint
    assert one.by_id["c"].fingerprint != rules(text.replace("yellow = 2", "yellow = 3")).by_id["c"].fingerprint
    assert one.by_id["c"].fingerprint != rules(text.replace("1h", "2h")).by_id["c"].fingerprint
    assert rules(to_toml(one)).by_id["c"] == one.by_id["c"]
    assert parse_rules_table(one.as_json(), KINDS).by_id["c"] == one.by_id["c"]


@pytest.mark.parametrize("body", ['on = "area"\nall = ["high"]', 'all = ["high", { rule = "pump", on = "area" }]'])
def test_rules_by_area_ask_where_the_assets_lie(body: str) -> None:
    assert rules(composite(body)).attributes == frozenset()
    assert rules(composite('all = ["high"]')).attributes is None


def station(name: str, number: int, lon: float = 114.0, **more: object) -> list[Sensor]:
    return [
        Sensor(f"l{number}", "v", "drainage.level", "m", "t", name, lon, 22.5, **more),  # type: ignore[arg-type]
        Sensor(f"p{number}", "v", "drainage.pump_running", "bool", "t", name, lon, 22.5),
    ]


def told(
    found: list[Transition], of: RuleSet, rule: str
) -> list[tuple[float, int | str, int, int]]:  # fmt: skip
    return [
        ((t.observed_at - T0) / MINUTE, t.subject or t.sensor, t.before, t.after)
        for t in found
        if of.rules[t.rule].id == rule
    ]


def test_an_alert_on_an_asset_has_its_place_and_says_what_holds_since_when() -> None:
    of = rules(
        composite('all = ["high"]\nnot = ["pump"]\nhold = "5min"\ntitle = { zh = "泵未开", en = "No pump runs" }')
    )
    city = catalog(*station("station-7", 0))
    judged = judge(of, city, readings([(1, T0, 0.0), (0, T0 + MINUTE, 3.0), (0, T0 + 9 * MINUTE, 3.0)]))
    assert told(judged.transitions, of, "c") == [(6, "station-7", 0, 2)]
    docket = Docket(AlertBook(), of, 1, city, 0)
    for transition in judged.transitions:
        docket.judge(transition)
    alert = docket.alerts[-1]
    assert (alert.sensor, alert.asset, alert.tenant, alert.domain, alert.lon, alert.lat, alert.place) == (
        None, "station-7", "t", "drainage", 114.0, 22.5, "station-7",
    )  # fmt: skip
    assert alert.message_en == (
        "YELLOW No pump runs: station-7 Level high (l0/v, since 2023-11-14T22:14:20Z); no 'Pump runs'"
    )
    assert alert.message_zh == "黄色报警 泵未开：station-7 液位高（l0/v，自 2023-11-14T22:14:20Z）；无“水泵运行”"


def test_a_composite_of_a_rule_that_is_switched_off_says_nothing() -> None:
    of = rules(composite('all = ["high"]\nnot = ["pump"]').replace('role = "condition"', "enabled = false"))
    judged = judge(of, catalog(*station("a", 0)), readings([(0, T0, 3.0), (1, T0, 0.0)]))
    assert told(judged.transitions, of, "c") == []


def test_a_place_without_the_sensors_that_are_asked_for_says_nothing() -> None:
    of = rules(composite('all = ["high"]\nnot = ["pump"]'))
    city = catalog(*station("a", 0), station("b", 1)[0])
    judged = judge(of, city, readings([(0, T0, 3.0), (2, T0, 3.0)]))
    assert told(judged.transitions, of, "c") == [(0, "a", 0, 2)]


class Pipes:
    """The station upstream of each."""

    def reached(self, asset: str, along: str, within_m: float | None = None) -> Mapping[str, float]:
        assert along == "upstream"
        return {asset: 0.0, "a": 120.0} if asset == "b" and (within_m or 1000) >= 120 else {asset: 0.0}


def test_a_member_may_lie_along_the_network_or_near_by() -> None:
    city = catalog(*station("a", 0), *station("b", 1, 114.001), *station("c", 2, 114.002))
    rows = [(n, T0, 3.0) for n in (0, 2, 4)] + [(1, T0, 0.0), (1, T0 + MINUTE, 1.0), (1, T0 + 2 * MINUTE, 0.0)]
    for scope, places in (
        ('along = "upstream", within = "1km"', ["a", "b"]),
        ('along = "upstream", within = "100m"', ["a"]),
        ('within = "110m"', ["a", "b"]),
        ('within = "90m"', ["a"]),
        ('on = "city"', ["a", "b", "c"]),
    ):
        of = rules(composite(f'all = ["high", {{ rule = "pump", {scope} }}]'))
        engine = Engine(of, city, reach=Pipes())
        _, update = engine.observe(readings(rows))
        engine.apply(update)
        findings, _ = engine.compose(update.steps)
        found = sorted(((t.observed_at - T0) // MINUTE, t.subject, t.after) for f in findings for t in f.due)
        assert found == [(1, p, 2) for p in places] + [(2, p, 0) for p in places], scope


def test_areas_are_told_by_tags() -> None:
    of = rules(composite('on = "area"\nall = [{ rule = "high", sensors = 2 }]'))
    tagged = [*station("a", 0, tags=("area:north",)), *station("b", 1, tags=("area:north",)), *station("c", 2)]
    judged = judge(of, catalog(*tagged), readings([(0, T0, 3.0), (4, T0, 3.0), (2, T0 + MINUTE, 3.0)]))
    assert told(judged.transitions, of, "c") == [(1, "area/north", 0, 2)]


def test_what_no_reading_marks_is_told_when_its_sensors_are_past_it_or_silent() -> None:
    of = rules(composite('all = ["high"]\nnot = ["pump"]\nhold = "5min"'))
    engine = Engine(of, catalog(*station("a", 0)))
    _, update = engine.observe(readings([(0, T0, 3.0), (1, T0, 0.0)]))
    engine.apply(update)
    assert engine.compose(update.steps)[0] == []
    engine.apply(engine.compose(update.steps)[1])

    def told_at(now: int, heard: list[int], newest: list[int]) -> list[int]:
        clock = Clock(T0 + now, np.array(heard) + T0, np.array(newest) + T0)
        return [t.observed_at - T0 for f in engine.compose(clock=clock)[0] for t in f.due]

    late = 30 * MINUTE  # both speak, of what was half an hour ago
    assert told_at(late, [late, late], [MINUTE, 2 * MINUTE]) == []
    assert told_at(late, [late, late], [7 * MINUTE, 4 * MINUTE]) == []
    assert told_at(late, [late, late], [7 * MINUTE, 6 * MINUTE]) == [5 * MINUTE]
    assert told_at(late, [late - 2 * MINUTE] * 2, [0, 0]) == [5 * MINUTE]  # silent
    assert told_at(5 * MINUTE + PATIENCE - 1, [0, 0], [0, 0]) == []
    assert told_at(5 * MINUTE + PATIENCE, [0, 0], [0, 0]) == [5 * MINUTE]


def test_changed_rules_keep_what_did_not_change_and_tell_nothing_of_before() -> None:
    text = composite('all = ["high"]\nnot = ["pump"]')
    city = catalog(*station("a", 0))
    engine = Engine(rules(text), city)
    _, update = engine.observe(readings([(0, T0, 3.0)]))
    engine.apply(update)
    findings, update = engine.compose(update.steps)
    engine.apply(update)
    assert len(findings) == 1
    newest = np.array([T0 + 2 * MINUTE, T0 + 3 * MINUTE])
    more = Engine(rules(text + "\n" + HEAD.replace('"c"', '"d"') + 'detector = "composite"\nall = ["high"]'), city)
    more.adopt(engine, newest)
    clock = Clock(T0 + HOUR, np.zeros(2, np.int64), newest)
    (finding,) = more.compose(clock=clock)[0]
    assert [(more.rules.rules[t.rule].id, t.observed_at - T0) for t in finding.due] == [("d", 2 * MINUTE)]
    assert list(more.composites.open()) == [(3, "a", 2)]
    other = Engine(rules(text.replace("yellow = 2", "yellow = 2.5")), city)
    other.adopt(engine, newest)
    assert list(other.composites.open()) == []


def test_the_state_is_kept_bounded_and_survives_saving() -> None:
    of = rules(composite('all = ["high"]\nnot = ["pump"]\nhold = "1min"\nclear = { hold = "1min" }'))
    city = catalog(*station("a", 0))
    engine, again = Engine(of, city), Engine(of, city)
    rows = [(0, T0 + n * 10 * MINUTE, 3.0 if n % 3 else 1.0) for n in range(3000)]
    seen: list[Transition] = []
    for begin in range(0, len(rows), 100):
        steps = engine.observe(readings(rows[begin : begin + 100]))[1]
        engine.apply(steps)
        findings, update = engine.compose(steps.steps, until=rows[begin + 99][1])
        engine.apply(update)
        seen += [t for f in findings for t in f.due]
        newest = np.array([rows[begin + 99][1], 0])
        engine.composites.prune(newest, HOUR)
        saved = EngineState.from_bytes(engine.snapshot().to_bytes())
        again = Engine(of, city)
        again.restore(saved)
        assert {k: v.tolist() for k, v in again.composites.save().items()} == {
            k: v.tolist() for k, v in engine.composites.save().items()
        }
        engine = again
    assert told(seen, of, "c") == told(judge(of, city, readings(rows)).transitions, of, "c")
    span = 7 * DAY + 2 * HOUR  # of a silent neighbour's sensor, so much is kept
    assert max(map(len, engine.composites.series.values())) <= span // (15 * MINUTE) + 2


def test_readings_that_raise_nothing_cost_composites_nothing() -> None:
    of = rules(composite('all = ["high"]\nnot = ["pump"]'))
    engine = Engine(of, catalog(*(s for n in range(100) for s in station(f"a{n}", n))))
    feed(engine, [(s, T0 + m * MINUTE, 1.0 if s % 2 == 0 else 0.0) for s in range(200) for m in range(10)])
    assert engine.composites.places == {}
    assert engine.compose(clock=Clock(T0 + HOUR, np.zeros(200, np.int64), np.zeros(200, np.int64)))[0] == []
    assert engine.composites.decide((), Redone({}, ())) == ([], None)


# The shipped ones


def of_pack(
    city: Catalog, rows: list[tuple[int, int, float]], *ids: str
) -> list[tuple[float, str, int | str, int, int]]:
    judged = judge(PACK, city, readings([(s, T0 + m * MINUTE, v) for s, m, v in rows]))
    return [(at, rule, *rest) for rule in ids for at, *rest in told(judged.transitions, PACK, rule)]  # type: ignore[misc]


def test_methane_in_two_wells_within_50_m_and_half_an_hour_is_red_in_both() -> None:
    wells = [
        Sensor(f"w{n}", "v", "gas.methane", "%VOL", asset=f"well-{n}", lon=114 + n * 0.0004, lat=22.5) for n in range(3)
    ]
    found = of_pack(
        catalog(*wells), [(0, 0, 2.6), (2, 0, 2.6), (0, 5, 0.1), (0, 25, 0.1), (1, 40, 3.0), (1, 41, 0.1)],
        "gas-methane-spread",
    )  # fmt: skip
    # w0 is open until 25; w1, 41 m from both, opens at 40, 15 minutes after.
    assert [f for f in found if f[3] == 0] == [(40, "gas-methane-spread", n, 0, 4) for n in range(3)]
    far = [
        Sensor(f"w{n}", "v", "gas.methane", "%VOL", asset=f"well-{n}", lon=114 + n * 0.001, lat=22.5) for n in range(2)
    ]
    assert of_pack(catalog(*far), [(0, 0, 2.6), (1, 0, 2.6)], "gas-methane-spread") == []


def test_pressure_lost_at_two_points_is_red_after_five_minutes() -> None:
    points = [
        Sensor(f"w{n}", "v", "water.pressure", "MPa", asset=f"point-{n}", lon=114 + n * 0.005, lat=22.5)
        for n in range(2)
    ]
    rows = [(0, 0, 0.03), (1, 0, 0.3), (1, 4, 0.04), (0, 12, 0.03), (1, 30, 0.2), (1, 31, 0.2), (0, 50, 0.03)]
    assert of_pack(catalog(*points), rows, "water-pressure-lost-around") == [
        (9, "water-pressure-lost-around", 0, 0, 4), (9, "water-pressure-lost-around", 1, 0, 4),
        (40, "water-pressure-lost-around", 0, 4, 0), (40, "water-pressure-lost-around", 1, 4, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(("tag", "hours"), [("hub", 0.5), ("important", 2), ("centre", 3), ("", 4)])
def test_water_that_stays_after_the_rain_is_told_by_how_long_it_may_stay(tag: str, hours: float) -> None:
    rule = f"ponding-stays-{tag or 'elsewhere'}"
    city = catalog(
        Sensor("d", "v", "drainage.ponding_depth", "cm", asset="road", lon=114.0, lat=22.5, tags=(tag,) if tag else ()),
        Sensor("r", "v", "drainage.rainfall", "mm", lon=114.03, lat=22.5),
    )
    rain = [(1, m, 2.0 if m < 60 else 0.0) for m in range(0, 400, 5)]
    stays = [(0, m, 18.0 if 30 <= m < 360 else 1.0) for m in range(0, 400, 5)]
    assert of_pack(city, rain + stays, rule) == [(60 + hours * 60, rule, 0, 0, 3), (370, rule, 0, 3, 0)]
    dry = [(1, m, 0.0) for m in range(0, 400, 5)]
    assert of_pack(city, dry + stays, rule) == []
