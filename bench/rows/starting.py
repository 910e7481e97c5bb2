"""Starting with a long past: 100,000 sensors and a million alerts, of which 2,000 are open."""

from __future__ import annotations

import time
from typing import Any, Final

import psycopg

from bench import machine
from bench.city import City
from bench.report import Figure
from bench.services import Bench, RowFailed, Running, until

SENSORS: Final = 100_000
ALERTS: Final = 1_000_000
OPEN: Final = 2_000
SECONDS_GOAL: Final = 5
MEMORY_GOAL: Final = 500

# The open ones once more, ended, over the year before: each closed alert is a copy of one of them, at its own time.
_ALERTS: Final = (
    "insert into alerts select md5(a.id || k), rule, rule_version, sensor_id, asset, tenant, domain, 0, peak_level,"
    " 'cleared', flags, since - ago, raised_at - ago, raised_at - ago + interval '20 min', 0, peak_value, threshold,"
    " lon, lat, place, message_zh, message_en, instruction_zh, instruction_en"
    " from alerts a cross join generate_series(1, %(copies)s) as k,"
    " lateral (select (k * 8760 / %(copies)s + 1) * interval '1 hour' as ago) t"
    " where a.state <> 'cleared' order by k desc, a.raised_at limit %(more)s"
)
_EVENTS: Final = (
    "insert into alert_events select %(seq)s + row_number() over (order by t.at, a.id, t.transition desc),"
    " md5(a.id || t.transition), a.id, a.rule, a.rule_version, a.sensor_id, a.asset, a.tenant, a.domain,"
    " t.level, a.peak_level - t.level, t.state, t.transition, t.value, a.threshold, t.at, t.at, a.lon, a.lat,"
    " a.message_zh, a.message_en, false, null, null, null from alerts a, lateral (values"
    " ('raised', a.peak_level, 'active_unacknowledged', 1::float8, a.raised_at),"
    " ('acknowledged', a.peak_level, 'active_acknowledged', 1::float8, a.raised_at + interval '5 min'),"
    " ('cleared', 0::smallint, 'cleared', 0::float8, a.cleared_at)) as t(transition, level, state, value, at)"
    " where a.state = 'cleared'"
)


def long_past(bench: Bench) -> list[Figure]:
    """On the bench's PostgreSQL. The open alerts are raised by readings; those that ended are copied from them."""
    size = bench.scaled(SENSORS, 1000)
    city = City(size)
    wanted = min(bench.scaled(OPEN), len(city.covers))
    city.open_covers({n: n for n in city.covers[:wanted]})
    started, highest, settled, few_started, few_highest = [], [], [], [], []
    with bench.service(city) as running:
        running.take(bench, city.singles(bench.file("all.npz"), 0, size))
        service = running.service
        until(lambda: _count(running, "select count(*) from alerts") >= wanted, "the alerts")
        for _ in range(bench.runs):
            service.stop()
            few_started.append(service.start())
            few_highest.append(machine.memory_mb(service.pid)[1])
        service.stop()
        begun = time.monotonic()
        _close_many(running, bench.scaled(ALERTS))
        making_s = time.monotonic() - begun
        for _ in range(bench.runs):
            started.append(service.start())
            settled.append(machine.memory_mb(service.pid)[0])
            is_open = service.stats()["alerts_open"]
            if is_open != wanted:
                raise RowFailed(f"the service knows of {is_open} open alerts, not of {wanted}")
            time.sleep(2)  # what is done just after the start counts, too
            highest.append(machine.memory_mb(service.pid)[1])
            service.stop()
        found = _count(running, "select count(*) from alerts")
        closed = _count(running, "select count(*) from alert_events where transition = 'cleared'")
    expected = max(wanted, bench.scaled(ALERTS))
    fault = "" if closed == found - wanted else f"{closed} events of {found - wanted} alerts that ended"
    about = f"{size:,} sensors, {found:,} alerts, {wanted:,} open"
    return [
        Figure(
            "start", f"start to ready, {about}", "s", started, SECONDS_GOAL, "at most", verified=found,
            expected=expected, fault=fault, ratio=_ratio(started, few_started),
            ratio_to="the same with the open ones alone", details={"making the alerts took, s": making_s},
        ),
        Figure(
            "start", "the service's memory, highest", "MB", highest, MEMORY_GOAL, "at most", verified=found,
            expected=expected, fault=fault, ratio=_ratio(highest, few_highest),
            ratio_to="the same with the open ones alone", details={"when ready, MB": settled[-1]},
        ),
    ]  # fmt: skip


def _close_many(running: Running, alerts: int) -> None:
    """Put alerts that ended, with three events each, beside those that there are, `alerts` in all."""
    with psycopg.connect(running.url) as connection:
        # The rows are consistent, and looking each up again would take half of the time.
        connection.execute("set session_replication_role to replica")
        connection.execute("set work_mem to '256MB'")
        there: Any = connection.execute("select (select count(*) from alerts), seq from service").fetchone()
        copies = alerts // max(1, there[0]) + 1
        connection.execute(_ALERTS.encode(), {"copies": copies, "more": max(0, alerts - there[0])})
        connection.execute(_EVENTS.encode(), {"seq": there[1]})
        connection.execute("update service set seq = (select max(seq) from alert_events)")
        # Who follows the events was there when each of these was told.
        connection.execute("update followers set seq = (select max(seq) from alert_events)")
    running.connection.execute("vacuum analyze alerts, alert_events")


def _ratio(these: list[float], those: list[float]) -> float:
    return sorted(these)[len(these) // 2] / sorted(those)[len(those) // 2]


def _count(running: Running, query: str) -> int:
    row = running.connection.execute(query.encode()).fetchone()
    return int(row[0]) if row else 0
