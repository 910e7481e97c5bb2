"""The desk: follows the alert events, joins alerts into incidents, watches for floods, and does what people decide.

All on the follower's thread and in its transaction: what is stored is stored once, and what is in memory is what is
stored. Where a transaction failed, everything is taken up again from the database.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final, NamedTuple

import orjson

from alerts.causes import SIGNS, sign_of
from alerts.composition import HERE, Composition
from alerts.floods import SOURCE, SPAN, Flood, FloodGauge
from alerts.incidents import KEPT, IncidentBook, Summary, Told
from alerts.reach import Reach
from alerts.rules import Rule, RuleSet
from ingest.commands import OK, OTHER_REQUEST, Once
from twin.catalog import Catalog
from twin.following import Follower
from twin.incident import Incident, Member
from twin.live import level_word
from twin.model import AlertEvent, Conflict, Micros, NotFound, Problem, Refused, iso
from twin.store import incidents as store
from twin.store.database import Connection

log = logging.getLogger(__name__)

NAME: Final = "incidents"
ACTIONS: Final = ("confirm", "note", "close", "merge", "split")
FORGET_AFTER: Final = 1000  # changes
LISTED_ALERTS: Final = 1000  # named in an incident's JSON
LISTED_CAUSES: Final = 10


class Action(NamedTuple):
    """What somebody does about an incident: one of `ACTIONS`. `others`: incidents to merge into it, or alerts to split
    off."""

    incident: str
    action: str
    by: str | None
    note: str | None
    others: tuple[str, ...] = ()
    once: Once | None = None


class _Asked(NamedTuple):
    action: Action
    future: Future[bytes]


class Desk:
    """`tell(key, frame)` gives live clients what changed, from the follower's thread after the commit.

    Bounds: `IncidentBook`'s, and people's actions that wait for the thread, which takes them up at once.
    """

    def __init__(
        self,
        dsn: str,
        pipes: Reach,
        catalog: Catalog,
        rules: Callable[[], RuleSet],
        clock: Callable[[], Micros],
        tell: Callable[[list[tuple[str, dict[str, Any]]]], None],
        *,
        operators: float = 1,
        flood_alerts: float = 10,
        flood_over: float = 5,
    ) -> None:
        self.follower = Follower(dsn, NAME, self._take)
        self._pipes = pipes
        self._catalog = catalog
        self._rules = rules
        self._clock = clock
        self._tell = tell
        self.operators = operators
        self._most, self._few = operators * flood_alerts, operators * min(flood_over, flood_alerts)
        self._book = IncidentBook(pipes)
        self._gauge = FloodGauge(self._most, self._few)
        self._bodies: dict[str, dict[str, Any]] = {}  # of the open incidents
        self._is_sure = False
        self._lock = threading.Lock()
        self._asked: list[_Asked] = []
        self._changes = 0

    # From any thread

    def act(self, action: Action) -> Future[bytes]:
        """Do it; the incident as JSON once that is committed. Raises `NotFound`, `Conflict`, `Refused`."""
        asked = _Asked(action, Future())
        with self._lock:
            self._asked.append(asked)
        self.follower.wake()
        return asked.future

    def incident_of(self, alert: str) -> str | None:
        """The incident that an alert is in, where it is in memory."""
        member = self._book.members.get(alert)
        return None if member is None else member.incident

    def open_incidents(self) -> list[dict[str, Any]]:
        """The open incidents as JSON, the worst and newest first."""
        bodies = list(self._bodies.copy().values())
        order = {"red": 4, "orange": 3, "yellow": 2, "blue": 1}
        return sorted(bodies, key=lambda body: (order.get(body["level"], 0), body["opened_at"]), reverse=True)

    def flood(self) -> dict[str, Any]:
        """Whether there is a flood now, and how many alerts came in the last ten minutes."""
        gauge = self._gauge
        return self._flood_json(gauge.flood, gauge.rate)

    @property
    def open_count(self) -> int:
        return len(self._bodies)

    @property
    def rate(self) -> int:
        """Alerts in the last ten minutes."""
        return self._gauge.rate

    @property
    def is_flooded(self) -> bool:
        return self._gauge.flood is not None

    # On the follower's thread

    def _take(self, connection: Connection, events: list[AlertEvent]) -> Callable[[], None] | None:
        if not self._is_sure:
            self._take_up(connection)
        with self._lock:
            asked = list(self._asked)
        self._is_sure = False
        self._see(connection, events)
        for event in events:
            if event.transition in ("raised", "escalated") and not event.flags:
                self._gauge.take(event.at)
        self._gauge.look(self._clock())
        answers = [(one, self._answer(connection, one.action)) for one in asked]
        floods = self._gauge.drained()
        for flood in floods:
            store.save_flood(connection, store.FloodRow(flood.started_at, flood.ended_at, flood.peak, flood.alerts))
        shown = self._save(connection)
        if not (events or asked or floods):
            self._is_sure = True
            return None

        def after() -> None:
            self._is_sure = True
            with self._lock:
                del self._asked[: len(asked)]
            told = [(id_, {"type": "incident", "incident": body}) for id_, body in shown.items()]
            if floods:
                told.append(("flood", {"type": "flood", "flood": self.flood()}))
            for id_, body in shown.items():
                if body["state"] == "open":
                    self._bodies[id_] = body
                else:
                    self._bodies.pop(id_, None)
            for one, answer in answers:
                if not one.future.set_running_or_notify_cancel():
                    continue
                if isinstance(answer, Exception):
                    one.future.set_exception(answer)
                else:
                    one.future.set_result(answer)
            self._tell(told)
            self._changes += len(events)
            if self._changes >= FORGET_AFTER:
                self._changes = 0
                self._book.forget()

        return after

    def _take_up(self, connection: Connection) -> None:
        """Begin from what is stored."""
        newest, number = store.marks(connection)
        self._book = IncidentBook(self._pipes)
        self._book.load(store.standing(connection, newest - KEPT), newest, number)
        self._bodies = {
            incident.id: incident_json(incident, self._book.summary(incident))
            for incident in self._book.incidents.values()
            if incident.state == "open"
        }
        last = store.last_flood(connection)
        now = self._clock()
        told = store.told_since(connection, now - SPAN)
        self._gauge = FloodGauge(self._most, self._few, None if last is None else Flood(*last), told)

    def _see(self, connection: Connection, events: Sequence[AlertEvent]) -> None:
        """Give the book what the events tell."""
        new = list(dict.fromkeys(e.alert_id for e in events if e.alert_id not in self._book.members))
        if new:
            self._book.load(store.holding(connection, new), 0, 0)
        known = store.alerts(connection, new) if new else {}
        rules = self._rules()
        for event in events:
            alert = known.get(event.alert_id)
            member = self._book.members.get(event.alert_id)
            if alert is None and member is None:
                continue
            rule = rules.by_id.get(event.rule)
            sign = self._sign(rule, rules, event)
            raised_at = event.observed_at
            since, place = event.observed_at, ""
            if alert is not None:
                since, place = alert.since, alert.place or ""
                raised_at = event.observed_at if event.transition == "raised" else alert.raised_at
            self._book.take(
                Told(
                    event.seq, event.id, event.alert_id, event.rule, event.sensor or event.asset or "", event.asset,
                    sign, event.tenant, event.domain, event.transition, event.state, int(event.level),
                    event.observed_at, min(since, raised_at), raised_at, event.lon, event.lat,
                    place or event.asset or event.sensor or "",
                    event.rule if rule is None else rule.title.zh, event.rule if rule is None else rule.title.en,
                    event.flags, event.replaces,
                )
            )  # fmt: skip

    def _sign(self, rule: Rule | None, rules: RuleSet, event: AlertEvent) -> str:
        """What an alert is a sign of. Of a rule over other rules: of a pump that should run and does not, else of its
        own sensor, else of the highest in rank of what holds at the place itself; what holds elsewhere (rain within
        5 km) is not what happens here."""
        sensor = self._catalog.sensors[event.sensor_index] if event.sensor_index >= 0 else None
        own = None if sensor is None else sensor.kind
        if rule is None:
            return sign_of(own, None, event.domain)
        if not isinstance(rule.parameters, Composition):
            return sign_of(rule.kind if own is None else own, rule.detector, event.domain)
        here = []
        for member, is_positive in rule.parameters.holds.members():
            followed = rules.by_id.get(member.rule)
            if followed is None:
                continue
            sign = sign_of(self._kind_of(followed), followed.detector)
            if sign == "pump":  # it stands where it is open below a limit, or not open above one
                if is_positive is (followed.side == "below"):
                    return "pump-idle"
            elif is_positive and member.scope == HERE:
                here.append(sign)
        if own is not None or not here:
            return sign_of(own, rule.detector, event.domain)
        return max(here, key=lambda sign: SIGNS[sign].rank)

    def _kind_of(self, rule: Rule) -> str | None:
        """The kind of the sensors that a rule looks at, the first where they are several; None where it names none."""
        if rule.sensors:
            device, _, name = rule.sensors[0].partition("/")
            index = self._catalog.devices.get(device, {}).get(name)
            return None if index is None else self._catalog.sensors[index].kind
        return next(iter(rule.where.kind), None) if rule.kind in (None, "*") else rule.kind

    def _answer(self, connection: Connection, action: Action) -> bytes | Exception:
        """Carry out what somebody asked for, unless it was already; the answer, or why not."""
        once = action.once
        if once is not None:
            done = store.answered(connection, once.key)
            if done is not None:
                return (
                    done[1] if done[0] == once.route else Refused([Problem("Idempotency-Key", "", OTHER_REQUEST)])
                )  # fmt: skip
        try:
            body = orjson.dumps(self._do(connection, action))
        except (NotFound, Conflict) as error:
            return error
        if once is not None:
            store.answer(connection, once.key, once.route, OK, body)
        return body

    def _do(self, connection: Connection, action: Action) -> dict[str, Any]:
        book, at = self._book, self._clock()
        named = [action.incident, *(action.others if action.action == "merge" else ())]
        book.load(store.by_ids(connection, [id_ for id_ in named if id_ not in book.incidents]), 0, 0)
        more: dict[str, Any] = {}
        if action.action == "merge":
            incident = book.merge(action.incident, action.others, at, action.by, action.note)
        elif action.action == "split":
            new = book.split(action.incident, action.others, at, action.by, action.note)
            incident, more = book.find(action.incident), {"split_off": new.id}
        else:
            step = {"note": book.note, "confirm": book.confirm, "close": book.close}[action.action]
            incident = step(action.incident, at, action.by, action.note)
        return incident_json(incident, book.summary(incident)) | more

    def _save(self, connection: Connection) -> dict[str, dict[str, Any]]:
        """Write what changed; the JSON of the incidents that did."""
        book = self._book
        changed, touched, entries = book.drained()
        bodies: dict[str, dict[str, Any]] = {}
        rows = []
        for id_ in changed:
            incident = book.incidents[id_]
            summary = book.summary(incident)
            body = bodies[id_] = incident_json(incident, summary)
            rows.append(
                store.Shown(
                    incident, summary.level or summary.peak, summary.domains, _alert(summary.root),
                    _alert(summary.first), orjson.dumps(body),
                )
            )  # fmt: skip
        if rows:
            store.save(connection, rows, [book.members[alert] for alert in touched], entries)
        return bodies

    def _flood_json(self, flood: Flood | None, rate: int) -> dict[str, Any]:
        return {
            "active": flood is not None,
            "started_at": None if flood is None else iso(flood.started_at),
            "rate": rate,
            "peak": None if flood is None else flood.peak,
            "alerts": None if flood is None else flood.alerts,
            "begins_above": self._most,
            "ends_below": self._few,
            "operators": self.operators,
            "source": SOURCE,
        }


def _alert(member: Member | None) -> str | None:
    return None if member is None else member.alert


def incident_json(incident: Incident, told: Summary) -> dict[str, Any]:
    """An incident as HTTP and WebSocket give it. The level of a closed one is the worst that it had."""
    root = told.root
    return {
        "id": incident.id,
        "state": incident.state,
        "level": level_word(told.level or told.peak),
        "peak_level": level_word(told.peak),
        "title": {"zh": told.title_zh, "en": told.title_en},
        "domains": list(told.domains),
        "opened_at": iso(incident.opened_at),
        "closed_at": iso(incident.closed_at),
        "root": _alert(root),
        "first_out": _alert(told.first),
        "probable_cause": None if root is None else _cause(root, told.causes[0][1]),
        "other_causes": [_cause(member, count) for member, count in told.causes[1 : 1 + LISTED_CAUSES]],
        "reasons": [{"zh": r.zh, "en": r.en, "alerts": r.alerts} for r in told.reasons],
        "alert_count": told.alerts,
        "active_count": told.active,
        "unacknowledged_count": told.unacknowledged,
        "held_count": told.held,
        "alert_ids": [m.alert for m in incident.alerts[:LISTED_ALERTS]],
        "asset_count": len(told.assets),
        "assets": list(told.assets[:LISTED_ALERTS]),
        "place": {
            "lon": None if root is None else root.lon,
            "lat": None if root is None else root.lat,
            "name": None if root is None else root.place or root.asset,
        },
        "confirmed": None
        if incident.confirmed_at is None
        else {"by": incident.confirmed_by or None, "at": iso(incident.confirmed_at)},
        "ended_by_hand": incident.ended_by is not None,
        "merged_into": incident.merged_into,
        "apart": sorted(incident.apart),
    }


def _cause(member: Member, explains: int) -> dict[str, Any]:
    sign = SIGNS[member.sign]
    return {
        "alert": member.alert,
        "rule": member.rule,
        "sensor": member.subject if "/" in member.subject and member.subject != member.asset else None,
        "asset": member.asset,
        "what": {"zh": sign.zh, "en": sign.en},
        "since": iso(member.since),
        "explains": explains,
        "place": {"lon": member.lon, "lat": member.lat, "name": member.place},
    }
