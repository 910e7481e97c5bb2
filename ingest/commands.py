"""What people ask of the running system. Each method may be called from any thread, runs on the pipeline's, between two
batches, and gives a future: what is decided is committed before the future is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from typing import Any, Final, NamedTuple, TypeVar

import orjson

from alerts.holds import hold_json
from alerts.lifecycle import Docket
from alerts.rules import RuleSet
from ingest.judgement import Decision
from ingest.pipeline import Pipeline
from twin.model import (
    Alert,
    Counts,
    Hold,
    InvalidSensors,
    Micros,
    NotFound,
    Problem,
    RawMessage,
    Refused,
    Sensor,
    SensorMode,
)
from twin.store import catalog as store
from twin.store import holds
from twin.store.database import Connection

T = TypeVar("T")

OK = 200
REDRIVE_AT_ONCE = 1000  # quarantined messages tried again in one commit


OTHER_REQUEST: Final = "was used for another request or body / 该 Idempotency-Key 已用于其他请求或内容"


class Once(NamedTuple):
    """A command that is to be carried out once: its Idempotency-Key, and what must be the same at a repetition, the
    route with a digest of the body. The answer is kept in the command's own transaction (a redrive's in its last), so
    that what was done has an answer, and what has an answer was done."""

    key: str
    route: str


class Commands:
    """Operators' and integrators' commands over one pipeline. With `once` a repetition changes nothing and gets the
    first answer; the same key with anything else raises `Refused`."""

    def __init__(
        self,
        pipeline: Pipeline,
        parse_rules: Callable[[str], RuleSet],
        alert_json: Callable[[Alert], dict[str, Any]],
        check_sensors: Callable[[Sequence[dict[str, Any]]], list[Sensor]],
    ) -> None:
        self._pipeline = pipeline
        self._parse_rules = parse_rules
        self._alert_json = alert_json
        self._check_sensors = check_sensors

    # Idempotency

    def _answered(self, once: Once | None) -> bytes | None:
        """The answer that a command got when it was carried out, None if it was not yet."""
        done = None if once is None else self._pipeline.writer.answered(once.key)
        if once is None or done is None:
            return None
        route, _, answer = done
        if route != once.route:
            raise Refused([Problem("Idempotency-Key", "", OTHER_REQUEST)])
        return answer

    def _transact(self, once: Once | None, write: Callable[[Connection], T]) -> T:
        """What `write` gives, which JSON takes, in one transaction with the note of it for a repetition."""
        given: list[T] = []

        def work(connection: Connection) -> int:
            given.append(write(connection))
            if once is not None:
                connection.execute(
                    "insert into idempotency (key, route, status, answer) values (%s, %s, %s, %s::text::jsonb)",
                    (once.key, once.route, OK, orjson.dumps(given[-1]).decode()),
                )
            return 0

        self._pipeline.writer.transact(work)
        return given[-1]

    # Alerts

    def act(
        self,
        alert_id: str,
        action: str,
        by: str | None,
        note: str | None,
        once: Once | None = None,
        *,
        to: str | None = None,
        until: Micros | None = None,
    ) -> Future[bytes]:
        """Do one of `ACTIONS` to an alert; the alert as JSON. `to`: whom to assign it to; `until`: to which moment to
        shelve it. Raises `NotFound`, `Conflict`, `Refused`."""
        return self._pipeline.submit(lambda: self._act(_Deed(alert_id, action, by, note, to, until), once))

    def _act(self, deed: _Deed, once: Once | None) -> bytes:
        pipeline = self._pipeline
        done = self._answered(once)
        if done is not None:
            return done
        docket = pipeline.judgement.docket(pipeline.clock())
        docket.load(pipeline.writer.alerts([deed.alert]))
        alert = docket.find(deed.alert)
        if alert is None:
            raise NotFound(f"no alert {deed.alert} / 没有报警 {deed.alert}")
        ACTIONS[deed.action](docket, alert, deed)
        decision = pipeline.judgement.decision_of(docket)
        body = orjson.dumps(self._alert_json(docket.find(deed.alert) or alert))
        if once is not None:
            decision.outcome.answer = (once.key, once.route, OK, body)
        pipeline.commit(decision)
        return body

    # Holds

    def begin_hold(self, hold: Hold, once: Once | None = None) -> Future[bytes]:
        """Hold back what fits from `starts_at` on; the hold as JSON, with the id and the moment it got. Raises
        `Conflict`, `Refused`."""

        def work() -> bytes:
            done = self._answered(once)
            if done is not None:
                return done
            docket = self._pipeline.judgement.docket(self._pipeline.clock())
            return self._hold(docket, docket.begin_hold(hold), once)

        return self._pipeline.submit(work)

    def end_hold(self, id_: str, by: str | None, note: str | None) -> Future[bytes]:
        """End a hold now; as JSON. Raises `NotFound`, and `Conflict` where it has ended."""

        def work() -> bytes:
            judgement = self._pipeline.judgement
            hold = judgement.holds.standing.get(id_)
            if hold is None:
                hold = self._hold_of_old(id_)
            docket = judgement.docket(self._pipeline.clock())
            return self._hold(docket, docket.end_hold(hold, by, note), None)

        return self._pipeline.submit(work)

    def _hold_of_old(self, id_: str) -> Hold:
        found: list[Hold] = []

        def read(connection: Connection) -> int:
            found.extend(holds.by_id(connection, id_))
            return 0

        self._pipeline.writer.transact(read)
        if not found:
            raise NotFound(f"no hold {id_} / 没有该抑制 {id_}")
        return found[0]

    def _hold(self, docket: Docket, hold: Hold, once: Once | None) -> bytes:
        pipeline = self._pipeline
        body = orjson.dumps(hold_json(hold, pipeline.clock()))
        decision = pipeline.judgement.decision_of(docket)
        if once is not None:
            decision.outcome.answer = (once.key, once.route, OK, body)
        pipeline.commit(decision)
        return body

    # Rules

    def put_rules(
        self, text: str, by: str | None, note: str | None = None, instead_of: int | None = None
    ) -> Future[int]:
        """Replace the whole rule set from the next batch on; its version. Raises `InvalidRules`, and `Overtaken` where
        the version in force is not `instead_of`."""
        rules = self._parse_rules(text)
        return self._pipeline.submit(lambda: self._put_rules(rules, by, note, instead_of))

    def _put_rules(self, rules: RuleSet, by: str | None, note: str | None, instead_of: int | None) -> int:
        version = self._pipeline.writer.transact(lambda c: store.save_rules(c, rules.text, by, note, instead_of))
        self._pipeline.follow_catalog()  # a model imported just before may give the limits
        self._pipeline.use_rules(rules, version)
        return version

    # Sensors and devices

    def put_sensors(self, sensors: Sequence[Sensor], once: Once | None = None) -> Future[dict[str, int]]:
        """Create or update sensors; how many of each. Raises `InvalidSensors`, `Refused`."""

        def upsert(connection: Connection) -> dict[str, int]:
            kinds = self._pipeline.judgement.catalog.kinds
            created, updated = store.upsert_sensors(connection, sensors, kinds)
            return {"created": created, "updated": updated}

        def work() -> dict[str, int]:
            done = self._answered(once)
            answer: dict[str, int] = self._transact(once, upsert) if done is None else orjson.loads(done)
            self._pipeline.follow_catalog()
            return answer

        return self._pipeline.submit(work)

    def patch_sensor(self, sensor_id: str, changes: dict[str, Any], by: str | None) -> Future[Sensor]:
        """Change some fields of a sensor, its mode (with `reason`) among them. Raises `NotFound`, `InvalidSensors`."""
        return self._pipeline.submit(lambda: self._patch_sensor(sensor_id, changes, by))

    def _patch_sensor(self, sensor_id: str, changes: dict[str, Any], by: str | None) -> Sensor:
        catalog = self._pipeline.judgement.catalog
        index = catalog.find(sensor_id)
        changes = dict(changes)
        mode, reason = changes.pop("mode", None), changes.pop("reason", None)
        fixed = {"device", "property", "tenant", "statistic"} & changes.keys()
        problems = [Problem(sensor_id, name, "cannot be changed") for name in sorted(fixed)]
        if mode is not None and mode not in {m.value for m in SensorMode}:
            problems.append(Problem(sensor_id, "mode", "must be normal, test or calibration"))
        if problems:
            raise InvalidSensors(problems)
        before = catalog.sensors[index]
        given = {k: v for k, v in asdict(before).items() if k not in ("mode", "statistic") and v is not None}
        given["tags"] = list(before.tags)
        sensor = self._check_sensors([{**given, **changes}])[0] if changes else before
        if reason is None and mode is not None and by:
            reason = by

        def write(connection: Connection) -> int:
            if changes:
                store.upsert_sensors(connection, [replace(sensor, statistic=before.statistic)], catalog.kinds)
            if mode is not None:
                store.set_mode(connection, index, SensorMode(mode), reason)
            return 0

        self._pipeline.writer.transact(write)
        self._pipeline.follow_catalog()
        return catalog.sensors[index]

    def replace_device(
        self, device: str, hardware: str, since: Micros | None, by: str | None, once: Once | None = None
    ) -> Future[dict[str, Any]]:
        """From `since` (now, if None) on, messages of `hardware` are readings of `device`'s measuring points. Raises
        `NotFound`, `Conflict`, `Refused`."""

        def write(connection: Connection) -> dict[str, Any]:
            start = self._pipeline.clock() if since is None else since
            store.replace_device(connection, device, hardware, start, by)
            return {"device": device, "hardware": hardware, "since": start}

        def work() -> dict[str, Any]:
            done = self._answered(once)
            if done is None and device not in self._pipeline.judgement.catalog.devices:
                raise NotFound(f"no device {device} / 没有设备 {device}")
            answer: dict[str, Any] = self._transact(once, write) if done is None else orjson.loads(done)
            self._pipeline.follow_catalog()
            return answer

        return self._pipeline.submit(work)

    # Quarantine

    def redrive(self, ids: Sequence[int] | None, once: Once | None = None) -> Future[dict[str, int]]:
        """Try quarantined messages again (all, if `ids` is None), as if they came now, with the times at which they
        first came. What is accepted moves from the quarantined to the stored or duplicate count; the rest stays.

        Page by page, each a commit; with `once` the last one keeps the answer. Where the service dies between two, a
        repetition goes on with what is left, and its answer counts that: nothing is counted or stored twice, for what
        was accepted has left the quarantine. Raises `Refused`."""
        return self._pipeline.submit(lambda: self._redrive(ids, once))

    def _redrive(self, ids: Sequence[int] | None, once: Once | None) -> dict[str, int]:
        done = self._answered(once)
        if done is not None:
            found: dict[str, int] = orjson.loads(done)
            return found
        total = {"tried": 0, "stored": 0, "duplicate": 0, "quarantined": 0}
        after, last = 0, self._last_quarantined()  # what is refused again gets a new id, and is not tried twice
        while True:
            page = self._page(ids, after, last)
            is_last = len(page) < REDRIVE_AT_ONCE
            decision = self._redriven(page, total) if page else None
            if decision is not None:
                if is_last and once is not None:
                    decision.outcome.answer = (once.key, once.route, OK, orjson.dumps(total))
                self._pipeline.commit(decision)
            elif is_last and once is not None:
                self._transact(once, lambda _: total)
            if is_last:
                return total
            after = page[-1].id

    def _last_quarantined(self) -> int:
        def read(connection: Connection) -> int:
            row = connection.execute("select coalesce(max(id), 0) from quarantine").fetchone()
            return int(row[0]) if row else 0

        return self._pipeline.writer.transact(read)

    def _page(self, ids: Sequence[int] | None, after: int, last: int) -> list[_Held]:
        found: list[_Held] = []

        def read(connection: Connection) -> int:
            rows = connection.execute(
                "select id, topic, payload, positions, deliveries, readings,"
                " (extract(epoch from first_at) * 1e6)::bigint from quarantine"
                " where not is_truncated and id > %s and id <= %s and (%s::bigint[] is null or id = any(%s))"
                " order by id limit %s",
                (after, last, None if ids is None else list(ids), list(ids or ()), REDRIVE_AT_ONCE),
            ).fetchall()
            found.extend(_Held(*row) for row in rows)
            return 0

        self._pipeline.writer.transact(read)
        return found

    def _redriven(self, held: list[_Held], total: dict[str, int]) -> Decision | None:
        """What a second try of these decides, None where nothing is gained, and counts it into `total`. A message
        refused for some of its readings was accepted for the others, so only the positions that were refused are looked
        at; a message refused whole is looked at whole."""
        pipeline, judgement = self._pipeline, self._pipeline.judgement
        messages = [RawMessage(h.topic, h.payload, h.first_at) for h in held]
        decoded = judgement.decode(messages)
        only = [None if -1 in h.positions else frozenset(h.positions) for h in held]
        accepted, refused = decoded.per_message(only)
        for n in range(len(held)):
            if accepted[n] == 0:
                only[n] = frozenset()  # nothing gained: the row stays as it is
        decision = judgement.decide(messages, decoded.narrowed(only), pipeline.writer, pipeline.clock())
        outcome = decision.outcome
        moved = [n for n in range(len(held)) if accepted[n]]
        outcome.redriven = [held[n].id for n in moved]
        # Every delivery of a reading counts: the first is stored, unless it was stored already, the others repeat it.
        again: dict[int, int] = {}
        usable = received = 0
        for n in moved:
            row, deliveries = held[n], held[n].deliveries
            if -1 in row.positions:  # counted as one each time; now it is known how many readings it has
                again[n] = deliveries * refused[n]
                usable += deliveries * accepted[n]
                received += deliveries * (accepted[n] + refused[n]) - row.readings
            else:
                # Not each delivery was refused for all of the positions, where sensors were added in between.
                again[n] = min(deliveries * refused[n], row.readings - accepted[n])
                usable += row.readings - again[n]
        before, left = sum(held[n].readings for n in moved), dict(again)
        refusals = []
        for refusal, n in zip(outcome.refusals, decision.refused_messages, strict=True):
            count = min(len(refusal.positions) * held[n].deliveries, left[n])
            left[n] -= count
            refusals.append(replace(refusal, deliveries=held[n].deliveries, count=count))
        outcome.refusals = refusals
        stored, refused_again = outcome.counts.stored, sum(again.values())
        outcome.counts = Counts(
            received=received, stored=stored, duplicate=usable - stored, quarantined=refused_again - before
        )
        total["tried"] += len(held)
        total["stored"] += stored
        total["duplicate"] += usable - stored
        total["quarantined"] += sum(h.readings for n, h in enumerate(held) if not accepted[n]) + refused_again
        return decision if moved else None


class _Deed(NamedTuple):
    """What somebody does to an alert."""

    alert: str
    action: str
    by: str | None
    note: str | None
    to: str | None
    until: Micros | None


ACTIONS: Final[dict[str, Callable[[Docket, Alert, _Deed], object]]] = {
    "acknowledge": lambda docket, alert, d: docket.acknowledge(alert, d.by, d.note),
    "assign": lambda docket, alert, d: docket.assign(alert, d.to or d.by or "", d.by, d.note),
    "shelve": lambda docket, alert, d: docket.hold_point(alert, "shelve", d.until, d.by, d.note),
    "unshelve": lambda docket, alert, d: docket.release_point(alert, "shelve", d.by, d.note),
    "out_of_service": lambda docket, alert, d: docket.hold_point(alert, "out_of_service", None, d.by, d.note),
    "return_to_service": lambda docket, alert, d: docket.release_point(alert, "out_of_service", d.by, d.note),
    "confirm": lambda docket, alert, d: docket.judge_by_people(alert, "confirmed", d.by, d.note),
    "false_alarm": lambda docket, alert, d: docket.judge_by_people(alert, "false_alarm", d.by, d.note),
    "note": lambda docket, alert, d: docket.note(alert, d.by, d.note),
    "close": lambda docket, alert, d: docket.close(alert, d.by, d.note),
}


class _Held(NamedTuple):
    """A row of quarantine."""

    id: int
    topic: str
    payload: bytes
    positions: list[int]
    deliveries: int
    readings: int
    first_at: Micros
