"""What holds alerts back: shelves, silences, mute times, inhibition, chatter damping; and what it never changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from alerts.holds import Times, read_matchers, read_times
from alerts.lifecycle import as_of
from alerts.rules import parse_rules, parse_rules_table
from ingest.judgement import Decision, Judgement
from tests.ingest.test_judgement import Kept
from tests.twin.networks import network
from twin.catalog import Catalog
from twin.mistakes import in_chinese
from twin.model import (
    DAY,
    HOUR,
    MINUTE,
    SECOND,
    Alert,
    AlertEvent,
    AlertState,
    Conflict,
    Hold,
    InvalidRules,
    Micros,
    Refused,
    Sensor,
    Transition,
    parse_time,
)
from twin.network.graph import Graph, Place
from twin.network.tracing import trace
from twin.units import load_kinds

KINDS = load_kinds()
START = parse_time("2026-07-01T08:00:00Z")
RULE = '[[rule]]\nid = "{0}"\nkind = "{1}"\ndetector = "threshold"\nlevels = {{ blue = 1, red = 5 }}\n'
RULES = RULE.format("level", "drainage.level") + RULE.format("stopped", "drainage.pump_running")
ALONG = """
[[inhibit]]
source = { rule = "stopped" }
target = { rule = "level", level = ["blue"] }
along = "upstream"
within = "2.5m"
"""


class Pipes:
    """A real network as the question of inhibition: n4 → n3 → n2 → n1 → n0, the pump, a metre each; n5 apart."""

    def __init__(self) -> None:
        edges = [(4, 3), (3, 2), (2, 1), (1, 0)]
        self.net = network(6, edges, system="drainage", one_way=True)
        self.asked = 0

    def reached(self, asset: str, along: Any, within_m: float | None) -> Mapping[str, float]:
        self.asked += 1
        found = trace(Graph(self.net), Place("node", int(asset[1:])), along, limit_m=within_m or 1e9)
        names = [self.net.node[n] for n in found.node.tolist()]
        return dict(zip(names, found.node_distance_m.tolist(), strict=True))


class Room:
    """A control room: verdicts by hand, people's deeds, the clock."""

    def __init__(self, rules: str = RULES) -> None:
        self.catalog = Catalog(KINDS)
        sensors = [Sensor(f"m{n}", "level", "drainage.level", "m", asset=f"n{n}", tags=("low",) if n > 2 else ())
                   for n in range(6)]  # fmt: skip
        sensors.append(Sensor("p", "on", "drainage.pump_running", "bool", asset="n0"))
        self.catalog.put(list(enumerate(sensors)))
        self.now = START
        self.told: list[AlertEvent] = []
        self.rows: dict[str, Alert] = {}
        self.kept: dict[str, Hold] = {}
        self.begin(rules)

    def begin(self, rules: str = RULES) -> None:
        """Start (again), from what was committed."""
        parsed = parse_rules(rules, KINDS)
        self.judgement = Judgement(self.catalog, parsed, 1, lateness=DAY, default_tenant="", max_bytes=0)
        judgement = self.judgement
        judgement.holds.reach = Pipes()
        judgement.book.apply(self.rows.values())
        judgement.holds.put(self.kept.values())
        for alert in self.rows.values():
            if alert.rule in parsed.chatters:
                judgement.holds.note_raise(alert.rule, alert.sensor or "", alert)
        judgement.holds.refit(parsed.inhibits, parsed.chatters, judgement.book.open.values())
        self.commit(judgement.decision_of(judgement.docket(self.now), self.now))

    def commit(self, decision: Decision) -> list[AlertEvent]:
        self.judgement.apply(decision)
        outcome = decision.outcome
        self.rows |= {alert.id: alert for alert in outcome.alerts}
        self.kept |= {hold.id: hold for hold in outcome.holds}
        self.told += outcome.events
        return outcome.events

    def verdicts(self, *verdicts: tuple[int, int], at: Micros | None = None) -> list[str]:
        """(sensor, level after) each; what was told, in words."""
        docket = self.judgement.docket(self.now)
        rules = self.judgement.rules
        for sensor, level in verdicts:
            rule = rules.index("stopped" if sensor == 6 else "level")
            standing = docket.active(rules.rules[rule].id, self.catalog.sensors[sensor].id)
            before = 0 if standing is None else standing.level
            moment = self.now if at is None else at
            docket.judge(
                Transition(rule, sensor, moment, before, level, float(level), 1.0, moment, float(max(level, before)))
            )
        return words(self.commit(self.judgement.decision_of(docket)))

    def do(self, work: Callable[..., Any], *given: Any) -> list[str]:
        """`work` is one of the docket's, on the alert of a sensor (its newest)."""
        docket = self.judgement.docket(self.now)
        docket.load(self.rows.values())
        getattr(docket, work.__name__ if callable(work) else work)(*given)
        return words(self.commit(self.judgement.decision_of(docket)))

    def tick(self, span: Micros = 0) -> list[str]:
        self.now += span
        return words(self.commit(self.judgement.tick(self.now, True, Kept())))

    def alert(self, sensor: int) -> Alert:
        name = self.catalog.sensors[sensor].id
        return [alert for alert in self.rows.values() if alert.sensor == name][-1]

    def hold(self, kind: str, matchers: dict[str, Any], **more: Any) -> list[str]:
        found, wrong = read_matchers(matchers)
        assert not wrong
        more = {"starts_at": self.now, "ends_at": None} | more
        return self.do("begin_hold", Hold("", kind, found, by="li", note="why", **more))


def words(events: list[AlertEvent]) -> list[str]:
    return [f"{(event.sensor or '').partition('/')[0]} {event.transition}" for event in events]


def test_a_shelf_holds_its_point_from_each_raise_on_until_a_tick_ends_it() -> None:
    room = Room()
    assert room.verdicts((1, 1), (2, 1)) == ["m1 raised", "m2 raised"]
    assert room.do("hold_point", room.alert(1), "shelve", room.now + HOUR, "li", "noisy") == ["m1 shelved"]
    event = room.told[-1]
    assert (event.by, event.note, event.flags) == ("li", "noisy", ("shelved",))
    assert event.detail == {"shelved_until": "2026-07-01T09:00:00Z"}
    with pytest.raises(Conflict):
        room.do("hold_point", room.alert(1), "shelve", room.now + DAY, "wang", None)
    room.now += MINUTE
    room.verdicts((1, 0))
    room.do("acknowledge", room.alert(1), "li", None)
    first = room.alert(1)
    assert first.state is AlertState.CLEARED
    room.now += MINUTE
    assert room.verdicts((1, 4)) == ["m1 raised", "m1 shelved"]
    assert [event.flags for event in room.told[-2:]] == [("shelved",), ("shelved",)]  # nobody is told it without
    assert room.alert(1).shelved_until == START + HOUR
    room.begin()  # a restart
    assert room.told[-1].transition == "shelved"
    assert room.tick(HOUR) == ["m1 unshelved"]
    assert (room.alert(1).flags, room.alert(1).shelved_until, room.told[-1].by) == ((), None, None)
    assert room.tick(HOUR) == []
    assert room.rows[first.id].flags == ("shelved",)  # how it was when it ended


def test_a_shelf_that_ends_while_the_service_is_down_is_over_at_its_start() -> None:
    room = Room()
    room.verdicts((1, 1))
    room.do("hold_point", room.alert(1), "shelve", room.now + 10, "li", None)
    room.now += HOUR
    room.kept.clear()  # the database gives what still holds
    room.begin()
    assert words(room.told)[-1] == "m1 unshelved"
    room = Room()  # and one that no tick saw at all
    room.verdicts((1, 1))
    room.do("hold_point", room.alert(1), "shelve", room.now + 10, "li", None)
    assert room.tick(SECOND) == ["m1 unshelved"]


def test_a_point_out_of_service_stays_so_until_it_is_returned_and_its_states_go_on() -> None:
    room = Room()
    room.verdicts((1, 1))
    assert room.do("hold_point", room.alert(1), "out_of_service", None, "li", None) == ["m1 out_of_service"]
    assert room.verdicts((1, 4)) == ["m1 escalated"]
    assert room.verdicts((1, 0)) == ["m1 cleared"]
    assert room.do("acknowledge", room.alert(1), "li", None) == ["m1 acknowledged"]
    with pytest.raises(Conflict):
        room.do("hold_point", room.alert(1), "shelve", room.now + HOUR, "li", None)  # closed
    assert room.tick(300 * DAY) == []
    assert room.do("release_point", room.alert(1), "out_of_service", "wang", "mended") == ["m1 returned_to_service"]
    assert (room.told[-1].by, room.told[-1].note, room.alert(1).flags) == ("wang", "mended", ())
    with pytest.raises(Conflict):
        room.do("release_point", room.alert(1), "out_of_service", "wang", None)


def test_silences_reach_what_fits_when_they_begin_when_it_fits_and_when_they_end() -> None:
    room = Room()
    room.verdicts((1, 1), (3, 1), (4, 4))
    low = {"tag": "low", "level": ["blue", "yellow"], "sensor": "m*"}
    assert room.hold("silence", low, starts_at=room.now + MINUTE, ends_at=room.now + HOUR) == []
    assert room.tick(MINUTE) == ["m3 suppressed"]
    (hold,) = room.kept.values()
    assert room.alert(3).suppressed_by == (f"silence:{hold.id}",)
    assert room.told[-1].detail == {"suppressed_by": [f"silence:{hold.id}"]}
    assert room.verdicts((3, 4)) == ["m3 escalated", "m3 unsuppressed"]  # too bad to be silent about
    assert room.told[-2].flags == ()
    assert room.verdicts((4, 1)) == ["m4 deescalated", "m4 suppressed"]
    assert room.do("end_hold", hold, "wang", "enough") == ["m4 unsuppressed"]
    assert (room.told[-1].by, room.told[-1].note) == ("wang", "enough")
    with pytest.raises(Conflict):
        room.do("end_hold", room.kept[hold.id], None, None)
    with pytest.raises(Refused, match="until"):
        room.hold("silence", {"rule": "level"}, ends_at=room.now)


@pytest.mark.parametrize(
    ("times", "held", "free"),
    [
        ({"hours": ["22:00-06:00"], "weekdays": [5]}, ["2026-07-03T22:00", "2026-07-04T05:59"],
         ["2026-07-03T21:59", "2026-07-04T06:00", "2026-07-03T05:00", "2026-07-04T22:30"]),
        ({"months": [6, 7, 8, 9]}, ["2026-06-01T00:00", "2026-09-30T23:59"], ["2026-05-31T23:59", "2026-10-01T00:00"]),
        ({"hours": ["00:00-24:00"], "weekdays": [6, 7]}, ["2026-07-05T23:59"], ["2026-07-06T00:00"]),
        ({"hours": ["02:00-04:00"], "time_zone": "+08:00"}, ["2026-07-05T03:59"], ["2026-07-05T04:00"]),
    ],
)  # fmt: skip
def test_recurring_times_are_of_the_zone_and_nights_belong_to_the_day_they_begin_on(
    times: dict[str, Any], held: list[str], free: list[str]
) -> None:
    read, wrong = read_times(times)
    assert isinstance(read, Times), wrong
    assert all(read.hold(parse_time(f"{at}:00+08:00")) for at in held)
    assert not any(read.hold(parse_time(f"{at}:00+08:00")) for at in free)


@pytest.mark.parametrize(
    "times",
    [{}, [], {"hours": []}, {"hours": ["6-8"]}, {"hours": ["25:00-26:00"]}, {"hours": ["08:00-08:00"]},
     {"months": [13]}, {"weekdays": [True]}, {"weekdays": 3}, {"months": [1], "day": [1]},
     {"months": [1], "time_zone": "Mars/Olympus"}, {"months": [1], "time_zone": "../etc/passwd"},
     {"months": [1], "time_zone": "Asia"}],
)  # fmt: skip
def test_times_that_say_nothing_or_nonsense_are_refused(times: object) -> None:
    read, wrong = read_times(times)
    assert read is None
    assert wrong


def test_a_mute_time_comes_back_every_night() -> None:
    room = Room()
    room.verdicts((1, 1))
    night = {"hours": ["22:00-23:00"]}
    room.hold("mute", {"domain": "drainage"}, times=night)
    assert [room.tick(HOUR) for _ in range(30)] == [
        ["m1 suppressed"] if n in (5, 29) else ["m1 unsuppressed"] if n == 6 else [] for n in range(30)
    ]


def test_a_pump_trip_explains_the_manholes_within_reach_before_anybody_is_told_of_them() -> None:
    room = Room(RULES + ALONG)
    told = room.verdicts((2, 1), (4, 1), (1, 4), (5, 1), (6, 1))
    assert told == ["m2 raised", "m4 raised", "m1 raised", "m5 raised", "p raised", "m2 suppressed"]
    assert room.told[0].flags == ("suppressed",)  # in the very event that tells of it
    assert room.alert(2).suppressed_by == (f"alert:{room.alert(6).id}",)
    assert room.verdicts((1, 1)) == ["m1 deescalated", "m1 suppressed"]  # red is never explained away here
    assert room.do("judge_by_people", room.alert(6), "false_alarm", "li", None) == [
        "p false_alarm", "m2 unsuppressed", "m1 unsuppressed"
    ]  # fmt: skip
    assert room.do("judge_by_people", room.alert(6), "confirmed", "li", None)[1:] == ["m2 suppressed", "m1 suppressed"]
    room.begin(RULES + ALONG)  # a restart forgets nothing of it
    assert len(room.told) == 14
    assert room.verdicts((3, 1)) == ["m3 raised"]  # three metres upstream
    assert room.verdicts((6, 0)) == ["p cleared", "m2 unsuppressed", "m1 unsuppressed"]
    room.verdicts((6, 1))
    room.begin(RULES)  # rules without it
    assert words(room.told)[-2:] == ["m2 unsuppressed", "m1 unsuppressed"]


def test_a_network_that_changes_while_a_pump_stands_still_is_noticed() -> None:
    room = Room(RULES + ALONG)
    room.verdicts((1, 1), (5, 1), (6, 1))
    assert room.alert(5).flags == ()
    pipes = Pipes()
    pipes.net = network(6, [(4, 3), (3, 2), (2, 1), (5, 0)], system="drainage", one_way=True)
    room.judgement.holds.reach = pipes
    assert room.tick(SECOND) == []
    assert room.tick(10 * SECOND) == ["m1 unsuppressed", "m5 suppressed"]
    assert room.tick(SECOND) == []


def test_inhibition_by_label_needs_equal_labels_and_never_hides_two_alerts_behind_each_other() -> None:
    both = '[[inhibit]]\nsource = { domain = "drainage" }\ntarget = { domain = "drainage" }\nequal = ["asset"]\n'
    room = Room(RULES + both)
    assert room.verdicts((0, 1), (6, 1), (1, 1)) == ["m0 raised", "p raised", "m1 raised"]
    one_way = both.replace('source = { domain = "drainage" }', 'source = { rule = "stopped" }')
    one_way = one_way.replace('target = { domain = "drainage" }', 'target = { rule = "level" }')
    room.begin(RULES + one_way)
    assert words(room.told)[-1] == "m0 suppressed"
    room.do("hold_point", room.alert(6), "out_of_service", None, "li", None)
    assert words(room.told)[-2:] == ["p out_of_service", "m0 unsuppressed"]  # what is not trusted explains nothing


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ('target = { rule = "level" }\nequal = ["asset"]', "source"),
        ('source = { rule = "nobody" }\ntarget = { rule = "level" }\nequal = ["asset"]', "source.rule"),
        ('source = { rule = "stop*" }\ntarget = { colour = "red" }\nequal = ["asset"]', "target.colour"),
        ('source = { rule = "stopped" }\ntarget = { rule = "level" }', "equal"),
        ('source = { rule = "stopped" }\ntarget = { rule = "level" }\nalong = "sideways"', "along"),
        ('source = { rule = "stopped" }\ntarget = { rule = "level" }\nalong = "both"\nwithin = 500', "within"),
        ('source = { rule = "stopped" }\ntarget = { level = "pink" }\nequal = ["tag"]\nmore = 1', "more"),
    ],
)
def test_a_wrong_inhibition_refuses_the_file_with_its_place(table: str, field: str) -> None:
    with pytest.raises(InvalidRules) as refused:
        parse_rules(f"{RULES}\n[[inhibit]]\n{table}\n", KINDS)
    problem = next(p for p in refused.value.problems if p.field == field)
    assert problem.place.startswith("inhibit 1, line ")
    assert all(in_chinese(p.text) for p in refused.value.problems), refused.value


@pytest.mark.parametrize(
    "chatter",
    ["3", "{ times = 3 }", '{ times = 1, within = "10min" }', '{ times = true, within = "10min" }',
     '{ times = 3, within = "0s" }', '{ times = 3, within = "2d" }', '{ times = 3, within = "1min", quiet = 1 }'],
)  # fmt: skip
def test_a_wrong_chatter_is_refused(chatter: str) -> None:
    with pytest.raises(InvalidRules) as refused:
        parse_rules(RULE.format("level", "drainage.level") + f"chatter = {chatter}\n", KINDS)
    assert all(problem.field.startswith("chatter") for problem in refused.value.problems)
    assert all(in_chinese(p.text) for p in refused.value.problems), refused.value


def test_latch_chatter_and_inhibition_do_not_bear_on_what_a_rule_judges_and_travel_as_json() -> None:
    plain, held = (
        parse_rules(RULES, KINDS),
        parse_rules(
            RULES.replace('id = "level"', 'id = "level"\nlatch = true\nchatter = { times = 3, within = "10min" }')
            + ALONG,
            KINDS,
        ),
    )
    assert [rule.fingerprint for rule in plain.rules] == [rule.fingerprint for rule in held.rules]
    again = parse_rules_table(held.as_json(), KINDS)
    assert (again.rules, again.inhibits) == (held.rules, held.inhibits)
    assert parse_rules(again.text, KINDS).inhibits == held.inhibits


def test_a_latched_alert_stays_open_until_somebody_closes_it() -> None:
    room = Room(RULES.replace('id = "level"', 'id = "level"\nlatch = true'))
    room.verdicts((1, 1), (2, 1))
    room.do("acknowledge", room.alert(1), "li", None)
    room.verdicts((1, 0), (2, 0))
    assert (room.alert(1).state, room.alert(1).flags) == (AlertState.CLEARED_UNACKNOWLEDGED, ("latched",))
    assert room.alert(2).flags == ()
    room.do("acknowledge", room.alert(2), "li", None)
    assert (room.alert(2).state, room.alert(2).flags) == (AlertState.CLEARED_UNACKNOWLEDGED, ("latched",))
    with pytest.raises(Conflict):
        room.do("acknowledge", room.alert(2), "li", None)
    for n in (1, 2):
        before = room.alert(n)
        assert as_of(before, [event for event in room.told if event.alert_id == before.id]) == before
        room.do("close", before, "li", "reset")
        assert (room.alert(n).state, room.alert(n).flags) == (AlertState.CLEARED, ())
    room.now += MINUTE
    assert room.verdicts((1, 1)) == ["m1 raised"]


def test_a_point_that_chatters_is_marked_and_told_again_once_it_stays() -> None:
    rules = RULES.replace('id = "level"', 'id = "level"\nchatter = { times = 3, within = "10min" }')
    room = Room(rules)
    told: list[str] = []
    for _ in range(4):
        told += room.verdicts((1, 1))
        room.now += MINUTE
        told += room.verdicts((1, 0))
        room.now += MINUTE
    assert told == [
        "m1 raised", "m1 cleared", "m1 raised", "m1 cleared", "m1 raised", "m1 chattering", "m1 cleared",
        "m1 raised", "m1 chattering", "m1 cleared",
    ]  # fmt: skip
    room.begin(rules)
    assert room.verdicts((1, 4)) == ["m1 raised", "m1 chattering"]
    assert room.told[-2].flags == ("chattering",)
    assert room.tick(9 * MINUTE) == []
    assert room.tick(MINUTE) == ["m1 steady"]
    room.verdicts((1, 0))
    room.now += HOUR
    assert room.verdicts((1, 1)) == ["m1 raised"]


def test_people_say_whose_it_is_and_what_it_was() -> None:
    room = Room()
    room.verdicts((1, 1))
    assert room.do("assign", room.alert(1), "wang", "li", None) == ["m1 assigned"]
    room.verdicts((1, 0))
    room.do("acknowledge", room.alert(1), "wang", None)
    assert room.do("judge_by_people", room.alert(1), "false_alarm", "wang", "a spider") == ["m1 false_alarm"]
    with pytest.raises(Conflict):
        room.do("judge_by_people", room.alert(1), "false_alarm", "wang", None)
    with pytest.raises(Conflict):
        room.do("assign", room.alert(1), "li", "li", None)
    alert = room.alert(1)
    assert (alert.assignee, alert.verdict) == ("wang", "false_alarm")
    assert as_of(alert, room.told) == alert
