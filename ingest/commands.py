"""What people ask of the running system. Each method may be called from any thread, runs on the pipeline's, between two
batches, and gives a future: what is decided is committed before the future is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from typing import Any, NamedTuple, TypeVar

import orjson

from alerts.rules import RuleSet
from ingest.pipeline import Pipeline
from twin.model import (
    Alert,
    Conflict,
    Counts,
    InvalidSensors,
    Micros,
    NotFound,
    Problem,
    RawMessage,
    Sensor,
    SensorMode,
)
from twin.store import catalog as store
from twin.store.database import Connection

T = TypeVar("T")

REDRIVE_AT_ONCE = 1000  # quarantined messages tried again in one commit


class Commands:
    """Operators' and integrators' commands over one pipeline."""

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

    # Alerts

    def act(self, alert_id: str, action: str, by: str | None, note: str | None, key: str | None) -> Future[bytes]:
        """`acknowledge`, `note` or `close` an alert; the alert as JSON. With `key` (Idempotency-Key) a repetition
        changes nothing and gets the first answer. Raises `NotFound`, `Conflict`."""
        return self._pipeline.submit(lambda: self._act(alert_id, action, by, note, key))

    def _act(self, alert_id: str, action: str, by: str | None, note: str | None, key: str | None) -> bytes:
        pipeline = self._pipeline
        route = f"{alert_id}/{action}"
        if key is not None:
            done = pipeline.writer.answered(key)
            if done is not None:
                if done[0] != route:
                    raise Conflict(
                        "this Idempotency-Key was used for another action / 该 Idempotency-Key 已用于其他操作"
                    )
                return done[2]
        docket = pipeline.judgement.docket(pipeline.clock())
        docket.load(pipeline.writer.alerts([alert_id]))
        alert = docket.find(alert_id)
        if alert is None:
            raise NotFound(f"no alert {alert_id} / 没有报警 {alert_id}")
        step = {"acknowledge": docket.acknowledge, "note": docket.note, "close": docket.close}[action]
        body = orjson.dumps(self._alert_json(step(alert, by, note)))
        decision = pipeline.judgement.decision_of(docket)
        if key is not None:
            decision.outcome.answer = (key, route, 200, body)
        pipeline.commit(decision)
        return body

    # Rules

    def put_rules(self, text: str, by: str | None) -> Future[int]:
        """Replace the whole rule set from the next batch on; its version. Raises `InvalidRules`."""
        rules = self._parse_rules(text)
        return self._pipeline.submit(lambda: self._put_rules(rules, by))

    def _put_rules(self, rules: RuleSet, by: str | None) -> int:
        version = self._pipeline.writer.transact(lambda c: store.save_rules(c, rules.text, by))
        self._pipeline.use_rules(rules, version)
        return version

    # Sensors and devices

    def put_sensors(self, sensors: Sequence[Sensor]) -> Future[dict[str, int]]:
        """Create or update sensors; how many of each. Raises `InvalidSensors`."""

        def work() -> dict[str, int]:
            counted: list[tuple[int, int]] = []
            kinds = self._pipeline.judgement.catalog.kinds

            def upsert(connection: Connection) -> int:
                counted.append(store.upsert_sensors(connection, sensors, kinds))
                return 0

            self._pipeline.writer.transact(upsert)
            self._pipeline.follow_catalog()
            created, updated = counted[-1]
            return {"created": created, "updated": updated}

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
        self, device: str, hardware: str, since: Micros | None, by: str | None
    ) -> Future[dict[str, Any]]:
        """From `since` (now, if None) on, messages of `hardware` are readings of `device`'s measuring points."""

        def work() -> dict[str, Any]:
            if device not in self._pipeline.judgement.catalog.devices:
                raise NotFound(f"no device {device} / 没有设备 {device}")
            start = self._pipeline.clock() if since is None else since

            def write(connection: Connection) -> int:
                store.replace_device(connection, device, hardware, start, by)
                return 0

            self._pipeline.writer.transact(write)
            self._pipeline.follow_catalog()
            return {"device": device, "hardware": hardware, "since": start}

        return self._pipeline.submit(work)

    # Quarantine

    def redrive(self, ids: Sequence[int] | None) -> Future[dict[str, int]]:
        """Try quarantined messages again (all, if `ids` is None), as if they came now, with the times at which they
        first came. What is accepted moves from the quarantined to the stored or duplicate count; the rest stays."""
        return self._pipeline.submit(lambda: self._redrive(ids))

    def _redrive(self, ids: Sequence[int] | None) -> dict[str, int]:
        total = {"tried": 0, "stored": 0, "duplicate": 0, "quarantined": 0}
        after, last = 0, self._last_quarantined()  # what is refused again gets a new id, and is not tried twice
        while True:
            page = self._page(ids, after, last)
            if not page:
                return total
            after = page[-1].id
            for name, n in self._redrive_page(page).items():
                total[name] += n

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

    def _redrive_page(self, held: list[_Held]) -> dict[str, int]:
        """One commit. A message refused for some of its readings was accepted for the others, so only the positions
        that were refused are looked at; a message refused whole is looked at whole."""
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
        outcome.refusals = [
            replace(refusal, deliveries=held[n].deliveries)
            for refusal, n in zip(outcome.refusals, decision.refused_messages, strict=True)
        ]
        moved = [n for n in range(len(held)) if accepted[n]]
        outcome.redriven = [held[n].id for n in moved]
        again = sum(held[n].deliveries * refused[n] for n in moved)
        before = sum(held[n].readings for n in moved)
        stored = outcome.counts.stored
        usable = sum(held[n].deliveries * accepted[n] for n in moved)
        # Every delivery of a reading counts: the first is stored, unless it was stored already, the others repeat it.
        outcome.counts = Counts(
            received=usable + again - before, stored=stored, duplicate=usable - stored, quarantined=again - before
        )
        if moved:
            pipeline.commit(decision)
        still = sum(h.readings for n, h in enumerate(held) if not accepted[n]) + again
        return {"tried": len(held), "stored": stored, "duplicate": usable - stored, "quarantined": still}


class _Held(NamedTuple):
    """A row of quarantine."""

    id: int
    topic: str
    payload: bytes
    positions: list[int]
    deliveries: int
    readings: int
    first_at: Micros
