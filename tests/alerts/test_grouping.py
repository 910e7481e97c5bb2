"""Which alerts belong together, and which of them is the root; told event by event, without a database."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alerts.causes import EXPLAINS, SIGNS, sign_of
from alerts.floods import FloodGauge
from alerts.incidents import KEPT, IncidentBook, Told
from twin.incident import Incident
from twin.model import DAY, HOUR, MINUTE, SECOND, AlertState, Conflict, NotFound

NOW = 1_790_000_000 * SECOND
ACTIVE, CLEARED = AlertState.ACTIVE_UNACKNOWLEDGED, AlertState.CLEARED_UNACKNOWLEDGED


class Drain:
    """Two drains: `w1` … `w50`, a well each kilometre down to the pump `pump`, and `v1` … `v9` down to nowhere."""

    lines = ([*(f"w{n}" for n in range(1, 51)), "pump", "out"], [f"v{n}" for n in range(1, 10)])

    def knows(self, asset: str) -> bool:
        return any(asset in line for line in self.lines)

    def reached(self, asset: str, along: str, within_m: float | None = None) -> Mapping[str, float]:
        for line in self.lines:
            if asset in line:
                at = line.index(asset)
                reached = {other: 1000.0 * abs(n - at) for n, other in enumerate(line)
                           if along == "both" or (n <= at if along == "upstream" else n >= at)}  # fmt: skip
                return {o: m for o, m in reached.items() if within_m is None or m <= within_m}
        return {}


class Town:
    """Tells events to a book, and says what it made of them."""

    def __init__(self) -> None:
        self.book = IncidentBook(Drain())
        self.seq = 0

    def tell(
        self, asset: str, sign: str, minutes: float, transition: str = "raised", *, level: int = 2,
        since: float | None = None, x: float | None = None, y: float = 0.0, rule: str = "", **more: Any,
    ) -> str:  # fmt: skip
        """An alert on an asset `x`, `y` km from the town hall (not on the map without), so many minutes after NOW."""
        self.seq += 1
        alert = more.pop("alert", f"{rule or sign}@{asset}")
        state = more.pop("state", CLEARED if transition in ("cleared", "withdrawn") else ACTIVE)
        at = NOW + round(minutes * MINUTE)
        self.book.take(
            Told(
                self.seq, f"{transition}-{alert}-{at}", alert, rule or sign, asset, asset, sign, "t", "drainage",
                transition, state, level, at, at if since is None else NOW + round(since * MINUTE), at,
                None if x is None else 117 + x / 94.6, None if x is None else 31.8 + y / 111.32, asset, sign, sign,
                **more,
            )
        )  # fmt: skip
        return str(alert)

    @property
    def standing(self) -> list[Incident]:
        return [i for i in self.book.incidents.values() if i.state not in ("merged", "withdrawn")]

    def only(self) -> Incident:
        assert len(self.standing) == 1, [list(i.members) for i in self.standing]
        return self.standing[0]

    def root(self) -> str:
        root = self.book.summary(self.only()).root
        assert root is not None
        return root.alert

    def groups(self) -> list[set[str]]:
        return sorted(({m.alert for m in i.alerts} for i in self.standing), key=min)


def test_a_pump_that_stops_is_the_root_of_forty_high_levels_upstream_and_of_the_ponding_around() -> None:
    town = Town()
    pump = town.tell("pump", "pump", 0)
    for n in range(1, 41):
        town.tell(f"w{51 - n}", "level", 4 * n, level=2, since=4 * n - 3)
    town.tell("street", "ponding", 50, x=1, level=4)  # the pump is not on the map: near no drain, so of its own
    assert len(town.standing) == 2
    told = town.book.summary(next(i for i in town.standing if pump in i.members))
    assert told.root is not None
    assert told.root.alert == pump
    assert told.alerts == 41
    assert len(told.explained) == 40
    assert told.level == 3, "orange: yellow, but on more than ten assets"
    assert told.title_zh == "pump水泵停运，波及：排水水位流量异常 40 条"
    assert told.title_en == "pump: pump stopped, and with it 40 drain levels"
    assert [(r.zh, r.en) for r in told.reasons] == [
        ("40 条排水水位流量异常报警位于停泵上游", "40 drain levels upstream of the pump")
    ]


def test_the_root_is_found_by_event_time_whatever_order_alerts_come_in() -> None:
    late = Town()
    for n in (40, 44, 48):  # each in an incident of its own, until what caused them is known
        late.tell(f"w{n}", "level", 30)
    assert len(late.standing) == 3
    pump = late.tell("pump", "pump", 10)
    assert late.root() == pump
    assert late.only().number == 1
    assert late.book.summary(late.only()).alerts == 4


def test_what_stood_before_the_pump_stopped_joins_it_but_is_not_explained_by_it() -> None:
    town = Town()
    town.tell("w50", "level", 0)
    pump = town.tell("pump", "pump", 60)
    assert town.root() == "level@w50", "it was high an hour before"
    town.tell("w49", "level", 70)
    assert town.root() == pump
    assert set(town.book.summary(town.only()).explained) == {"level@w49"}
    town.tell("w50", "level", 75, "escalated", level=3, alert="level@w50")
    assert set(town.book.summary(town.only()).explained) == {"level@w49", "level@w50"}, "it became worse after"


def test_a_storm_with_a_pump_trip_is_one_incident_with_the_pump_as_root_and_without_it_the_rain() -> None:
    towns = [Town(), Town()]
    for town in towns:
        town.tell("gauge", "rain", 0, x=0)
        for n in range(1, 5):
            town.tell(f"w{n}", "level", 10 + n, x=n / 2)
    towns[1].tell("pump", "pump", 20, x=3)
    for town in towns:
        for n in range(5, 20):
            town.tell(f"w{n}", "level", 25 + n, x=n / 10)
        town.tell("street", "ponding", 50, x=2)
    assert [town.root() for town in towns] == ["rain@gauge", "pump@pump"]
    assert [m.alert for m, _ in towns[1].book.summary(towns[1].only()).causes][:2] == ["pump@pump", "rain@gauge"]


def test_what_lies_in_another_drain_or_far_away_or_hours_later_is_another_matter() -> None:
    town = Town()
    town.tell("pump", "pump", 0, x=0)
    town.tell("v5", "level", 10, x=0.1)  # near, but its drain does not lead to the pump
    town.tell("road", "ponding", 12, x=9)
    town.tell("pump", "pump", 20, "cleared")
    town.tell("w30", "level", 200, x=5)
    assert town.groups() == [{"level@v5"}, {"level@w30"}, {"ponding@road"}, {"pump@pump"}]


def test_where_no_network_is_known_the_plane_decides() -> None:
    town = Town()
    town.tell("station", "pump", 0, x=0)
    town.tell("well a", "level", 10, x=1.5)
    town.tell("well b", "level", 11, x=4)
    assert town.groups() == [{"level@well a", "pump@station"}, {"level@well b"}]


def test_symptoms_near_each_other_at_one_time_belong_together_but_make_no_chain_over_the_city() -> None:
    town = Town()
    for n in range(30):
        town.tell(f"road {n}", "ponding", n, x=0.25 * n)
    sizes = sorted(len(group) for group in town.groups())
    assert len(sizes) > 1
    assert sum(sizes) == 30
    assert town.book.summary(town.standing[0]).first.alert == "ponding@road 0"  # type: ignore[union-attr]
    town.tell("cover 1", "cover", 30, x=0, y=5)
    town.tell("cover 2", "cover", 30, x=0.05, y=5)
    assert {"cover@cover 1"} in town.groups(), "two covers open beside each other are two thefts until somebody merges"


def test_of_alerts_that_begin_together_the_most_upstream_is_the_root() -> None:
    town = Town()
    for n in (20, 18, 19):
        town.tell(f"w{n}", "level", 0, x=n / 10)
    assert town.root() == "level@w18"


def test_troubles_of_one_asset_belong_together_but_not_with_those_of_its_device() -> None:
    town = Town()
    town.tell("shaft", "air", 0, rule="h2s")
    town.tell("shaft", "cover", 1)
    town.tell("shaft", "device", 2, rule="battery")
    town.tell("shaft", "silence", 3, rule="offline")
    assert town.groups() == [{"battery@shaft", "offline@shaft"}, {"cover@shaft", "h2s@shaft"}]


def test_an_incident_closes_with_its_last_alert_and_opens_again_for_what_follows_soon() -> None:
    town = Town()
    town.tell("w1", "level", 0)
    town.tell("w1", "level", 5, "cleared")
    assert (town.only().state, town.only().closed_at) == ("closed", NOW + 5 * MINUTE)
    town.tell("w1", "level", 10, alert="again")
    assert town.only().state == "open"
    assert set(town.only().members) == {"level@w1", "again"}
    town.tell("w1", "level", 12, "cleared", alert="again")
    town.tell("w1", "level", 12 + 60, alert="later")
    assert town.groups() == [{"again", "level@w1"}, {"later"}]
    whats = [entry.what for entry in town.book.drained()[2]]
    assert whats == ["opened", "closed", "joined", "reopened", "closed", "opened"]


def test_what_late_data_take_back_counts_no_more() -> None:
    town = Town()
    pump = town.tell("pump", "pump", 0)
    town.tell("w50", "level", 5)
    town.tell("pump", "pump", 0, "withdrawn", replaces=f"raised-{pump}-{NOW}")
    assert town.root() == "level@w50"
    town.tell("pump", "pump", -5, alert="pump, really")
    assert town.root() == "pump, really"
    other = town.tell("far", "level", 500)
    town.tell("far", "level", 500, "withdrawn", replaces=f"raised-{other}-{NOW + 500 * MINUTE}")
    assert {i.state for i in town.book.incidents.values()} == {"open", "withdrawn"}
    # What was taken back was the end of the alert, not its beginning.
    end = town.tell("w50", "level", 20, "cleared")
    town.tell("w50", "level", 20, "withdrawn", replaces=f"cleared-{end}-{NOW + 20 * MINUTE}", state=ACTIVE)
    assert town.book.summary(town.only()).active == 2


def test_what_is_held_back_does_not_make_an_incident_worse() -> None:
    town = Town()
    town.tell("w1", "level", 0, level=2)
    town.tell("w1", "level", 1, rule="high", level=4, flags=("shelved",))
    told = town.book.summary(town.only())
    assert (told.level, told.held, told.alerts) == (2, 1, 2)
    town.tell("w1", "level", 2, "cleared", flags=("latched",), state=CLEARED)
    told = town.book.summary(town.only())
    assert (told.peak, told.held) == (2, 1), "one that waits to be closed is not held back"


def test_what_people_decide_is_not_undone_by_the_next_event() -> None:
    town = Town()
    town.tell("pump", "pump", 0)
    town.tell("w50", "level", 5)
    town.tell("w49", "level", 6)
    old = town.only()
    new = town.book.split(old.id, ["level@w49"], NOW, "li", "a blockage")
    town.tell("w48", "level", 8)  # the pump explains it, and the two stay apart
    assert town.groups() == [{"level@w48", "level@w50", "pump@pump"}, {"level@w49"}]
    town.tell("w49", "level", 9, "cleared")
    town.tell("w49", "level", 12, alert="again")
    assert "again" in new.members, "the same rule on the same asset goes where people put it"
    with pytest.raises(Conflict):
        town.book.close(old.id, NOW, "li", None)
    town.book.merge(new.id, [old.id], NOW, "li", "no, it is one")
    assert town.only().id == new.id
    assert town.root() == "pump@pump"
    with pytest.raises(Conflict):
        town.book.merge(old.id, [new.id], NOW, None, None)
    for alert in list(new.members):
        town.tell("x", "level", 20, "cleared", alert=alert)
    town.book.close(new.id, NOW, "li", None)
    town.tell("w47", "level", 21)
    assert {"level@w47"} in town.groups(), "what was ended takes nothing more in"
    with pytest.raises(NotFound):
        town.book.split(new.id, ["nobody"], NOW, None, None)


def test_what_late_data_put_in_the_place_of_an_alert_goes_where_people_had_put_that() -> None:
    town = Town()
    town.tell("pump", "pump", 0)
    town.tell("w50", "level", 5)
    parted = town.tell("w49", "level", 6)
    old = town.only()
    new = town.book.split(old.id, [parted], NOW, "li", "a blockage")
    town.tell("w49", "level", 6, "withdrawn", replaces=f"raised-{parted}-{NOW + 6 * MINUTE}")
    assert new.state == "withdrawn"
    town.tell("w49", "level", 3, alert="earlier")
    assert [m.alert for m in new.alerts] == ["earlier"]
    assert (new.state, new.active) == ("open", 1)


def test_an_incident_cannot_take_itself_in_and_one_taken_in_says_so() -> None:
    town = Town()
    town.tell("w1", "level", 0)
    town.tell("w2", "level", 500)
    one, other = town.standing
    with pytest.raises(Conflict, match="itself"):
        town.book.merge(one.id, [one.id], NOW, "li", None)
    town.book.merge(one.id, [other.id], NOW, "li", None)
    assert town.book.summary(other).title_zh == "已并入其他事件"


def shown(book: IncidentBook, incidents: Mapping[str, Incident]) -> list[Any]:
    return [
        (i.id, i.number, i.state, i.opened_at, i.closed_at, i.merged_into, i.apart, list(i.members.values()),
         book.summary(i) if i.members else None)
        for i in incidents.values()
    ]  # fmt: skip


def stream(chance: random.Random) -> list[Told]:
    """Some days of a town: alerts of every sign, that come late, end, become worse, and are taken back."""
    told: list[Told] = []
    places = [*(f"w{n}" for n in range(30, 51)), "pump", "v1", "v2", "a", "b", "c", None]
    raised: list[Told] = []
    for seq in range(1, 100):
        at = NOW + chance.randrange(0, 4 * DAY // (10 * MINUTE)) * 10 * MINUTE // (1 if chance.random() < 0.3 else 8)
        if raised and chance.random() < 0.5:
            of = chance.choice(raised)
            what = chance.choice(("cleared", "escalated", "withdrawn", "acknowledged"))
            state = (
                CLEARED if what == "cleared" else chance.choice((ACTIVE, CLEARED)) if what == "withdrawn" else ACTIVE
            )
            told.append(of._replace(
                seq=seq, id=f"e{seq}", transition=what, state=state, level=min(4, of.level + (what == "escalated")),
                observed_at=max(at, of.raised_at), replaces=of.id if what == "withdrawn" else None,
            ))  # fmt: skip
            continue
        asset, sign = chance.choice(places), chance.choice(list(SIGNS))
        x, y = (None, None) if chance.random() < 0.2 else (117 + chance.random() / 20, 31.8 + chance.random() / 20)
        told.append(Told(
            seq, f"e{seq}", f"a{seq}", sign, f"s{seq % 7}/p", asset, sign, "t", "d", "raised", ACTIVE,
            chance.randrange(1, 5), at, at - chance.choice((0, 5 * MINUTE)), at, x, y, asset or "", sign, sign,
        ))  # fmt: skip
        raised.append(told[-1])
    return told


@given(st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_any_batching_and_restarts_of_the_same_events_give_the_same_incidents(seed: int) -> None:
    chance = random.Random(seed)
    told = stream(chance)
    whole, cut = IncidentBook(Drain()), IncidentBook(Drain())
    stored: dict[str, Incident] = {}
    for one in told:
        whole.take(one)
    for one in told:
        if one.alert not in cut.members:
            cut.load([i for i in copy.deepcopy(stored).values() if one.alert in i.members], 0, 0)
        cut.take(one)
        if chance.random() < 0.3:  # a batch ends
            stored |= cut.incidents
            cut.forget()
        if chance.random() < 0.1:  # and another process takes up what was stored
            stored |= cut.incidents
            again = IncidentBook(Drain())
            recent = [
                i for i in copy.deepcopy(stored).values() if i.closed_at is None or i.closed_at >= cut.newest - KEPT
            ]
            chance.shuffle(recent)
            again.load(recent, cut.newest, cut.number)
            cut = again
    stored |= cut.incidents
    whole_by_id = {one[0]: one for one in shown(whole, whole.incidents)}
    assert whole_by_id == {one[0]: one for one in shown(cut, stored)}


@given(st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_every_alert_is_in_one_incident_whose_state_is_that_of_its_alerts(seed: int) -> None:
    book = IncidentBook(Drain())
    told = stream(random.Random(seed))
    for one in told:
        book.take(one)
    of = [m.alert for i in book.incidents.values() for m in i.members.values()]
    assert sorted(of) == sorted({one.alert for one in told})
    for incident in book.incidents.values():
        assert all(m.incident == incident.id for m in incident.members.values())
        assert incident.active == sum(m.is_active for m in incident.members.values())
        if incident.state == "merged":
            assert not incident.members
            assert incident.merged_into in book.incidents
        else:
            assert (incident.state == "open") is (incident.active > 0)
            assert (incident.state == "withdrawn") is (not incident.alerts)


def test_signs_come_from_kind_and_detector_and_every_row_names_known_ones() -> None:
    assert {name for pair in EXPLAINS for name in pair} <= set(SIGNS)
    assert sign_of("drainage.pump_running", "threshold") == "pump"
    assert sign_of("drainage.pump_running", "offline") == "pump-silent"
    assert sign_of("drainage.level", "stuck") == "device"
    assert sign_of("booster.pump_running", "threshold") == "pump", "a kind that users add"
    assert sign_of(None, "offline", "device") == "silence"
    assert sign_of(None, None, "bridge") == "bridge"


def test_a_flood_begins_with_the_eleventh_alert_in_ten_minutes_and_ends_when_they_are_fewer_than_five() -> None:
    gauge = FloodGauge(10, 5)
    for n in range(10):
        gauge.take(NOW + n * 50 * SECOND)
    assert gauge.flood is None
    assert gauge.drained() == []
    gauge.take(NOW + 590 * SECOND)
    assert gauge.flood is not None
    assert (gauge.flood.started_at, gauge.flood.peak) == (NOW + 590 * SECOND, 11)
    gauge.drained()
    gauge.look(NOW + 890 * SECOND)
    assert gauge.flood is not None, "hysteresis: five in ten minutes are still too many"
    gauge.look(NOW + HOUR)
    ended = gauge.drained()
    assert gauge.flood is None
    assert [flood.ended_at for flood in ended] == [NOW + 900 * SECOND]
