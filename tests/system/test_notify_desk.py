"""Who is told what and when: decided on a real database, with a clock of the test's own and nothing sent."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from tests.conftest import until
from twin.model import DAY, HOUR, MINUTE, SECOND, Alert, AlertEvent, AlertState, Counts, Micros, Outcome, Readings
from twin.notifying import Notifier
from twin.store import following, rows
from twin.store import notify as store
from twin.store.migrate import migrate
from twin.store.upkeep import Upkeep
from twin.store.writer import Writer
from twin.telling import Delivery

pytestmark = pytest.mark.system

# A Thursday, 10:00 in Shanghai.
NOW: Micros = 1_790_215_200 * SECOND
LEVELS = {"blue": 1, "yellow": 2, "orange": 3, "red": 4}
ACTIVE, SEEN = AlertState.ACTIVE_UNACKNOWLEDGED, AlertState.ACTIVE_ACKNOWLEDGED
OVER = AlertState.CLEARED_UNACKNOWLEDGED
INCIDENTS = (
    "create table if not exists incident_alerts (alert_id text primary key, incident text not null,"
    " raised_at timestamptz not null, facts jsonb not null)"
)
HOOK = 'type = "webhook"\nurl = "http://127.0.0.1:9/"\n'
PLAN = f"""
wait = "10s"
interval = "5min"
repeat = "4h"
[receiver.desk]
{HOOK}
[receiver.chief]
{HOOK}
[[route]]
where = {{ level = "red" }}
receivers = ["chief"]
[[route]]
receivers = ["desk"]
"""


class Town:
    """A database in which alerts happen, and a notifier that decides when told to."""

    def __init__(self, dsn: str) -> None:
        migrate(dsn)
        self.dsn = dsn
        self.at = NOW
        self.writer = Writer(dsn, "test")
        self.writer.connect()
        self.alerts: dict[str, Alert] = {}
        self.notifier = Notifier(dsn, lambda: self.at, lambda: "")
        self.connection = following.connect(dsn)
        following.begin(self.connection, "notify")

    def close(self) -> None:
        self.connection.close()
        self.writer.close()

    def plan(self, text: str = PLAN) -> None:
        self.notifier.put(text.encode(), None)

    def tell(self, id_: str, transition: str = "raised", level: str = "", **more: Any) -> None:
        """Let something happen to an alert."""
        before = self.alerts.get(id_)
        if before is None:
            number = LEVELS[level or "yellow"]
            before = Alert(
                id_, "ponding", 1, None, -1, f"井-{id_}", "t", "drainage", number, number, ACTIVE, self.at, self.at,
                1.0, 1.0, 1.0, lon=114.0, lat=22.5, message_zh=f"积水 {id_}", message_en=f"Ponding {id_}",
            )  # fmt: skip
        state = {"cleared": OVER, "acknowledged": SEEN, "escalated": ACTIVE, "raised": ACTIVE}.get(
            transition, before.state
        )
        more.setdefault("state", state)
        if transition == "cleared":
            more["cleared_at"] = self.at
        if level:
            more["level"] = LEVELS[level]
        alert = self.alerts[id_] = replace(before, **more)
        event = AlertEvent(
            f"{id_}-{self.at}-{transition}", id_, alert.rule, 1, None, -1, alert.asset, "t", alert.domain, alert.level,
            before.level, alert.state, transition, 1.0, 1.0, self.at, self.at, 114.0, 22.5, alert.message_zh,
            alert.message_en,
        )  # fmt: skip
        self.writer.commit(Outcome(Readings.empty(), Counts(), alerts=[alert], events=[event]))

    def go(self, span: Micros = 0) -> None:
        """Let time pass, and have decided whatever falls due in it, a minute at a time at most."""
        end = self.at + span
        while True:
            with self.connection.transaction():
                events = following.next_events(self.connection, "notify", 5000)
                self.notifier.take(self.connection, events)
                if events:
                    following.done(self.connection, "notify", events[-1].seq)
            if self.at >= end:
                return
            row = self.connection.execute(
                "select least((select min(next_at) from notify_watched),"
                " (select min(next_at) from deliveries where state = 'held'))"
            ).fetchone()
            due = (row and rows.instant(row[0])) or end
            self.at = min(end, max(due, self.at + SECOND), self.at + MINUTE)

    def told(self, *states: str) -> list[tuple[str, str, list[str]]]:
        """`(receiver, kind, alerts)` of the deliveries in these states (default: all), in order."""
        with psycopg.connect(self.dsn) as connection:
            return connection.execute(
                "select receiver, kind, array(select unnest(alerts) order by 1) from deliveries"
                " where (%(s)s::text[] = '{}' or state = any(%(s)s)) order by number",
                {"s": list(states)},
            ).fetchall()

    def row(self, number: int = -1) -> dict[str, Any]:
        with psycopg.connect(self.dsn) as connection:
            ids = connection.execute("select id from deliveries order by number").fetchall()
            found = store.one(connection, ids[number][0])
        assert found is not None
        return found

    def content(self, number: int = -1) -> dict[str, Any]:
        with psycopg.connect(self.dsn) as connection:
            rows = connection.execute("select content from deliveries order by number").fetchall()
        content: dict[str, Any] = rows[number][0]
        return content

    def sent(self) -> None:
        """Let everything that waits have arrived."""
        with psycopg.connect(self.dsn) as connection:
            connection.execute("update deliveries set state = 'sent' where state = 'waiting'")


@pytest.fixture
def town(database_url: str) -> Iterator[Town]:
    made = Town(database_url)
    yield made
    made.close()


def test_without_a_plan_nothing_is_written_and_with_one_only_what_comes_after(town: Town) -> None:
    town.tell("a", level="red")
    town.go(HOUR)
    town.plan()
    town.go(HOUR)
    assert town.told() == []
    town.tell("b")
    town.go(MINUTE)
    assert town.told() == [("desk", "alert", ["b"])]


def test_an_alert_is_told_after_its_wait_then_that_it_is_over(town: Town) -> None:
    town.plan()
    town.tell("a")
    town.go(9 * SECOND)
    assert town.told() == []
    town.go(2 * SECOND)
    assert town.told() == [("desk", "alert", ["a"])]
    town.go(MINUTE)
    town.tell("a", "cleared")
    town.go(MINUTE)
    assert town.told() == [("desk", "alert", ["a"]), ("desk", "resolved", ["a"])]
    assert town.content()["alerts"][0]["told_level"] == "yellow"
    with psycopg.connect(town.dsn) as connection:
        assert connection.execute("select count(*) from notify_watched").fetchone() == (0,)


def test_what_was_over_before_it_was_told_is_told_all_the_same(town: Town) -> None:
    town.plan()
    town.tell("a")
    town.go(3 * SECOND)
    town.tell("a", "cleared")
    town.go(MINUTE)
    assert town.told() == [("desk", "resolved", ["a"])]


def test_forty_alerts_of_an_incident_are_one_message_and_more_of_it_wait_for_the_interval(town: Town) -> None:
    town.connection.execute(INCIDENTS)
    town.plan()
    for n in range(40):
        town.tell(f"a{n:02}")
        town.connection.execute("insert into incident_alerts values (%s, 'i-1', now(), '{}')", (f"a{n:02}",))
    town.go(30 * SECOND)
    assert [(receiver, kind, len(ids)) for receiver, kind, ids in town.told()] == [("desk", "alert", 40)]
    assert town.row()["incident"] == "i-1"
    for n in range(40, 60):
        town.tell(f"a{n:02}")
        town.connection.execute("insert into incident_alerts values (%s, 'i-1', now(), '{}')", (f"a{n:02}",))
        town.go(10 * SECOND)
    assert len(town.told()) == 1
    town.go(3 * MINUTE)
    assert [(kind, len(ids)) for _, kind, ids in town.told()] == [("alert", 40), ("update", 20)]
    assert town.content()["active"] == 60


def test_worse_and_red_do_not_wait_for_the_interval(town: Town) -> None:
    town.plan()
    town.tell("a")
    town.go(20 * SECOND)
    town.tell("a", "escalated", "red")
    town.go(20 * SECOND)
    assert town.told() == [("desk", "alert", ["a"]), ("chief", "update", ["a"]), ("desk", "update", ["a"])]
    assert town.content()["alerts"][0]["told_level"] == "yellow"


def test_what_nobody_acknowledges_goes_to_who_has_the_next_level(town: Town) -> None:
    town.plan()
    town.tell("a", level="orange")
    town.go(20 * SECOND)
    town.go(10 * MINUTE)
    assert town.told() == [("desk", "alert", ["a"]), ("chief", "escalation", ["a"])]
    assert town.content()["stage"] == 1
    town.go(HOUR)
    assert len(town.told()) == 2
    town.go(3 * HOUR)
    assert town.told()[2:] == [("desk", "repeat", ["a"])]
    town.tell("a", "cleared")
    town.go(MINUTE)
    assert sorted(town.told()[3:]) == [("chief", "resolved", ["a"]), ("desk", "resolved", ["a"])]


def test_what_is_acknowledged_neither_escalates_nor_repeats(town: Town) -> None:
    town.plan()
    town.tell("a", level="red")
    town.go(20 * SECOND)
    town.tell("a", "acknowledged")
    town.go(5 * HOUR)
    assert town.told() == [("chief", "alert", ["a"])]


@pytest.mark.parametrize(("level", "minutes"), [("red", 5), ("orange", 10), ("yellow", 30), ("blue", 120)])
def test_the_default_times_to_acknowledge(town: Town, level: str, minutes: int) -> None:
    town.plan(
        PLAN.replace('[[route]]\nwhere = { level = "red" }\nreceivers = ["chief"]\n', "") + 'escalate = ["chief"]'
    )
    town.tell("a", level=level)
    town.go(20 * SECOND)
    town.go(minutes * MINUTE - 20 * SECOND)
    assert len(town.told()) == 1
    town.go(30 * SECOND)
    assert town.told()[1:] == [("chief", "escalation", ["a"])]


@pytest.mark.parametrize("flag", ["shelved", "suppressed", "out_of_service", "chattering"])
def test_what_is_held_back_is_on_record_and_sent_when_the_hold_ends(town: Town, flag: str) -> None:
    town.plan()
    town.tell("a", flags=(flag,))
    town.tell("b")
    town.go(MINUTE)
    assert town.told("held") == [("desk", "alert", ["a"])]
    assert town.told("waiting") == [("desk", "alert", ["b"])]
    with psycopg.connect(town.dsn) as connection:
        rows = connection.execute("select id, reason from deliveries where state = 'held'").fetchall()
    assert rows[0][1] == flag
    town.go(20 * MINUTE)
    assert len(town.told()) == 2
    town.tell("a", "unheld", flags=())
    town.go(MINUTE)
    assert town.told("held") == []
    with psycopg.connect(town.dsn) as connection:
        again = connection.execute("select id from deliveries where state = 'waiting' and 'a' = any(alerts)").fetchall()
    assert again == [(rows[0][0],)]  # the very delivery


def test_what_ends_while_it_is_held_back_is_not_sent(town: Town) -> None:
    town.plan()
    town.tell("a", flags=("shelved",))
    town.go(MINUTE)
    town.tell("a", "cleared")
    town.go(MINUTE)
    assert town.told("lapsed") == town.told() == [("desk", "alert", ["a"])]
    assert "cleared while held" in town.row()["reason"]


def test_quiet_hours_keep_yellow_until_morning_and_let_red_through(town: Town) -> None:
    quiet = '[quiet.day]\nfrom = "09:00"\nto = "12:00"\n'
    plan = PLAN.replace("[receiver.desk]\n", '[receiver.desk]\nquiet = "day"\n')
    town.plan(plan.replace('receivers = ["chief"]', 'receivers = ["desk"]') + quiet)
    town.tell("a")
    town.tell("b")
    town.tell("c", level="red")
    town.go(MINUTE)
    assert town.told("held") == [("desk", "alert", ["a"]), ("desk", "alert", ["b"])]
    assert town.told("waiting") == [("desk", "alert", ["c"])]
    town.tell("b", "cleared")
    town.tell("c", "acknowledged")
    town.go(35 * MINUTE)
    assert ("desk", "alert", ["b"]) in town.told("lapsed")
    assert town.told("held")[0] == ("desk", "alert", ["a"])
    town.at = NOW + 2 * HOUR + SECOND
    town.go()
    assert town.told("held") == []
    assert [one for one in town.told("waiting") if one[2] == ["a"]] == [("desk", "alert", ["a"])]
    town.go(31 * MINUTE)
    assert town.told("waiting")[-1] == ("desk", "escalation", ["a"])


def test_a_roster_sends_to_who_is_on_duty_then(town: Town) -> None:
    town.plan(
        PLAN.replace('receivers = ["desk"]', 'receivers = ["duty"]')
        + '[person.li]\nname = "李娜"\n[roster.duty]\notherwise = ["chief"]\n'
        '[[roster.duty.shift]]\nfrom = "08:00"\nto = "11:00"\nreceivers = ["desk"]\npeople = ["li"]\n'
    )
    town.tell("a")
    town.go(20 * SECOND)
    assert town.content()["people"][0]["name"] == "李娜"
    town.at += 2 * HOUR
    town.tell("b")
    town.go(20 * SECOND)
    assert [one for one in town.told() if one[1] == "alert"] == [("desk", "alert", ["a"]), ("chief", "alert", ["b"])]


def test_routes_look_at_domain_tenant_area_and_box_and_go_on_where_told(town: Town) -> None:
    hooks = "".join(f"[receiver.{name}]\n{HOOK}" for name in "abcdefg")
    town.plan(
        hooks
        + '[[route]]\nwhere = { domain = "gas" }\nreceivers = ["a"]\n'
        '[[route]]\nwhere = { domain = ["drainage"], tenant = "t" }\nreceivers = ["b"]\ncontinue = true\n'
        '[[route]]\nbox = [113, 22, 115, 23]\nreceivers = ["c"]\ncontinue = true\n'
        '[[route]]\nwhere = { area = "福田区/莲花街道" }\nreceivers = ["g"]\ncontinue = true\n'
        '[[route]]\nbox = [0, 0, 1, 1]\nreceivers = ["d"]\n'
        '[[route]]\nwhere = { rule = "ponding" }\nreceivers = ["e"]\n'
        '[[route]]\nreceivers = ["f"]\n'
    )  # fmt: skip
    town.connection.execute(
        "with a as (insert into assets (id) values ('井-x') returning key)"
        " insert into asset_versions (asset, id, tenant, area) select key, '井-x', 't', '福田区/莲花街道/0101' from a"
    )
    town.tell("x")
    town.go(MINUTE)
    assert sorted(receiver for receiver, _, _ in town.told()) == ["b", "c", "e", "g"]


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_no_alert_is_forgotten_and_who_was_told_hears_the_end(town: Town, seed: int) -> None:
    chance = random.Random(seed)
    night = '[quiet.noon]\nfrom = "11:00"\nto = "13:00"\n'
    town.plan(PLAN.replace("[receiver.desk]\n", '[receiver.desk]\nquiet = "noon"\n') + night)
    for _ in range(120):
        id_ = f"a{chance.randrange(12)}"
        alert = town.alerts.get(id_)
        if alert is None or alert.state is not AlertState.CLEARED:
            words = ["acknowledged", "escalated", "cleared", "held", "unheld"]
            what = "raised" if alert is None else chance.choice(words)
            flags = {"held": ("shelved",), "unheld": ()}.get(what, alert.flags if alert else ())
            if what == "raised" and chance.random() < 0.3:
                flags = ("suppressed",)
            is_over = what == "cleared" or (alert is not None and not alert.state.is_active)
            more = {"state": AlertState.CLEARED} if is_over else {}
            level = chance.choice(["blue", "yellow", "red"]) if what in ("raised", "escalated") else ""
            town.tell(id_, what, level, flags=flags, **more)
        town.go(chance.choice([0, 5 * SECOND, MINUTE, 10 * MINUTE]))
        if chance.random() < 0.3:
            town.sent()
    for id_, alert in town.alerts.items():
        if alert.state is not AlertState.CLEARED:
            town.tell(id_, "unheld", flags=())
    town.go(3 * HOUR)
    for id_, alert in town.alerts.items():
        if alert.state is not AlertState.CLEARED:
            town.tell(id_, "cleared", state=AlertState.CLEARED)
    town.go(HOUR)
    assert town.told("held") == []
    with psycopg.connect(town.dsn) as connection:
        rows_ = connection.execute("select receiver, state, alerts, content from deliveries order by number").fetchall()
        assert connection.execute("select count(*) from notify_watched").fetchone() == (0,)
    for id_ in town.alerts:
        told = [(receiver, state, content) for receiver, state, ids, content in rows_ if id_ in ids]
        assert told, id_
        for receiver in {receiver for receiver, state, _ in told if state != "lapsed"}:
            last = [content for name, state, content in told if name == receiver and state != "lapsed"][-1]
            (shown,) = [alert for alert in last["alerts"] if alert["id"] == id_]
            assert shown["state"] == "cleared", (id_, receiver)


def test_a_plan_that_ends_is_told_of_nothing_and_a_new_one_takes_up_what_gets_worse(town: Town) -> None:
    town.plan()
    town.tell("a")
    town.tell("b", flags=("shelved",))
    town.tell("c")
    town.go(MINUTE)
    town.sent()
    town.plan("# no more\n")
    town.tell("a", "cleared")
    town.go(HOUR)
    assert town.told("waiting", "held") == []
    assert town.told("lapsed") == [("desk", "alert", ["b"])]
    town.plan()
    town.tell("c", "escalated", "red")
    town.go(MINUTE)
    assert town.told("waiting") == [("chief", "alert", ["c"])]


def test_an_alert_that_no_route_takes_is_counted(town: Town) -> None:
    town.plan(PLAN.replace('[[route]]\nreceivers = ["desk"]\n', ""))
    town.tell("a")
    town.go(MINUTE)
    assert town.told() == []
    assert town.notifier.stats()["notify_unrouted"] == 1


def test_alertmanager_is_told_again_of_what_is_active_until_it_is_over(town: Town) -> None:
    town.plan(
        PLAN.replace(f"[receiver.desk]\n{HOOK}", '[receiver.desk]\ntype = "alertmanager"\nurl = "http://127.0.0.1:9"\n')
    )
    for name in "abc":
        town.tell(name)
    town.go(MINUTE)
    town.sent()
    town.tell("c", "shelved", flags=("shelved",))
    town.tell("b", "cleared")
    town.go(2 * MINUTE)
    assert [one for one in town.told("waiting") if one[1] == "refresh"] == [("desk", "refresh", ["a"])]
    with psycopg.connect(town.dsn) as connection:
        assert connection.execute("select count(*) from deliveries where kind = 'refresh'").fetchone() == (1,)
    town.tell("a", "cleared")
    town.go(2 * MINUTE)
    assert [one for one in town.told("waiting") if one[1] == "refresh"] == []


def test_an_alert_that_late_data_takes_back_is_told_as_withdrawn(town: Town) -> None:
    town.plan()
    town.tell("a")
    town.go(MINUTE)
    town.tell("a", "withdrawn", state=AlertState.CLEARED, flags=("withdrawn",))
    town.go(MINUTE)
    assert town.told()[1:] == [("desk", "resolved", ["a"])]
    assert town.content()["alerts"][0]["flags"] == ["withdrawn"]


def test_a_plan_keeps_its_versions_and_its_secrets_apart(town: Town) -> None:
    secret = PLAN.replace("[receiver.desk]\n", '[receiver.desk]\nsecret = "geheim"\n')
    town.plan(secret)
    assert "geheim" not in town.notifier.text()
    town.plan(town.notifier.text() + '\n[receiver.new]\ntype = "mqtt"\n')
    other = Notifier(town.dsn, lambda: town.at, lambda: "")
    other.begin(("notify.toml", b"# not taken: there is a plan\n"))
    assert other.version == 2
    assert other.plan.receivers["desk"].options["secret"] == "geheim"
    with psycopg.connect(town.dsn) as connection:
        assert connection.execute("select count(*) from notify_plans where text like '%geheim%'").fetchone() == (0,)


def test_of_several_routes_that_take_an_alert_each_keeps_its_own_times(town: Town) -> None:
    town.plan(
        f"[receiver.platform]\n{HOOK}[receiver.desk]\n{HOOK}[receiver.chief]\n{HOOK}"
        '[[route]]\nreceivers = ["platform"]\ncontinue = true\nescalate_after = "never"\nrepeat = "never"\n'
        '[[route]]\nreceivers = ["desk"]\nescalate = ["chief"]\nescalate_after = "2min"\nrepeat = "15min"\n'
    )
    town.tell("a", level="orange")
    town.go(11 * SECOND)
    town.go(2 * MINUTE)
    assert town.told()[2:] == [("chief", "escalation", ["a"])]
    town.go(15 * MINUTE)
    assert town.told()[3:] == [("desk", "repeat", ["a"])]


def test_the_end_of_one_is_no_all_clear_while_others_of_a_merged_incident_stand(town: Town) -> None:
    town.connection.execute(INCIDENTS)
    town.plan()
    for id_, incident in (("a", "i-1"), ("b", "i-2")):
        town.tell(id_)
        town.connection.execute("insert into incident_alerts values (%s, %s, now(), '{}')", (id_, incident))
    town.go(20 * SECOND)
    town.connection.execute("update incident_alerts set incident = 'i-2'")
    town.go(10 * MINUTE)
    town.tell("b", "cleared")
    town.go(20 * SECOND)
    assert town.told()[2:] == [("desk", "update", ["b"])]
    assert town.content()["active"] == 1
    town.tell("a", "cleared")
    town.go(20 * SECOND)
    assert town.told()[3:] == [("desk", "resolved", ["a"])]


def test_what_is_over_before_it_is_told_is_on_record_for_who_wants_no_ends(town: Town) -> None:
    town.plan(PLAN.replace("[receiver.desk]\n", "[receiver.desk]\nresolved = false\n"))
    town.tell("a")
    town.go(3 * SECOND)
    town.tell("a", "cleared")
    town.go(MINUTE)
    assert town.told("lapsed") == town.told() == [("desk", "resolved", ["a"])]
    assert "over before it was told" in town.row()["reason"]


def test_old_deliveries_go_but_not_of_what_stands_or_waits(town: Town) -> None:
    town.plan()
    for id_ in "abc":
        town.tell(id_)
    town.go(MINUTE)
    town.sent()
    town.tell("a", "cleared")
    town.tell("b", "shelved", flags=("shelved",))
    town.tell("c", "cleared")
    town.go(MINUTE)
    assert town.told() == [("desk", "alert", [id_]) for id_ in "abc"] + [("desk", "resolved", [id_]) for id_ in "ac"]
    with psycopg.connect(town.dsn) as connection:
        connection.execute("update deliveries set state = 'dead' where kind = 'resolved' and 'a' = any(alerts)")
    upkeep = Upkeep(town.dsn)
    for days, left in ((399, 5), (401, 2)):
        upkeep.look_after_partitions(NOW + days * DAY, {"deliveries": 400})
        assert len(town.told()) == left
    upkeep.close()
    assert town.told() == [("desk", "alert", ["b"]), ("desk", "resolved", ["c"])]


def test_a_message_that_cannot_be_made_fails_alone_and_its_receiver_goes_on(town: Town) -> None:
    town.plan('[receiver.m]\ntype = "mail"\nhost = "127.0.0.1"\nfrom = "a@b"\nto = "c@d"\nbackoff = "10ms"\n')
    del town.notifier.plan.receivers["m"].options["from"]  # type: ignore[attr-defined]
    town.notifier.start()

    def is_tried_again() -> bool:
        town.at += MINUTE
        return bool(town.row()["attempts"] >= 2)

    try:
        assert "KeyError" in town.notifier.test("m", None, "")["last_error"]
        until(is_tried_again)
    finally:
        town.notifier.stop()


def test_of_large_messages_few_are_taken_into_memory_at_a_time(town: Town) -> None:
    def made(group: str, alerts: int) -> Delivery:
        ids = tuple(f"{group}-{n}" for n in range(alerts))
        return Delivery("desk", "alert", 3, group, None, ids, {}, "waiting", NOW)

    def taken(most: int) -> int:
        return len(store.outgoing(town.connection, NOW, [], 50, most))

    store.save_deliveries(town.connection, [made(f"g{n}", 400) for n in range(5)], [], NOW)
    assert [taken(most) for most in (100, 1000, 10_000)] == [1, 2, 5]
