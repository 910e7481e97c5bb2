"""Recorded readings with their own clock: what was stored, judged again by the production engine, moment by moment.

A replay stands at a moment `time` and has judged the readings observed before it, within [start, end), and nothing of
later ones: loaded stretches of the tape lie in `_windows`, and only `_step` takes from them, up to where it is told.
Alert events by readings are judged anew; what no reading causes (people's actions, holds that begin and end, silence,
which is a matter of arrival) is told again as recorded.

Before `start` it plays what the rules can remember (`Rule.memory`), from the alerts that then stood on, without telling
of it, and then takes up the alerts that stood at `start`. So a replay of live data tells what was told live. It differs
from it in what live does not judge: history brought in by `cimtwin import`, and readings later than the lateness.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import numpy as np

from alerts.composition import Composition
from alerts.engine import EngineState, fitted
from alerts.lifecycle import DEEDS, AlertBook, Digest, Docket, as_of, subject_of, surviving
from alerts.reach import Reach
from alerts.rules import Rule, RuleSet
from alerts.scopes import Fitted
from ingest.judgement import Decision, Judgement
from twin.catalog import Catalog
from twin.model import (
    DAY,
    HOUR,
    MINUTE,
    Alert,
    AlertEvent,
    AlertState,
    Counts,
    Indices,
    Ints,
    Micros,
    Outcome,
    Readings,
    Refused,
    TooMany,
    Transition,
)
from twin.state import SensorState

LOAD_READINGS: Final = 250_000  # one load of the tape aims at so many
KEEP_READINGS: Final = 3_000_000  # loaded ones kept for seeking back: about 90 MB
STEP_READINGS: Final = 50_000  # judged at once
IDLE_LOADS: Final = 2  # that give nothing, at once: of many sensors they take time, too
LEAD_MOST: Final = 30 * DAY  # how far before its start a replay looks at all
MARKS: Final = 48  # points to seek from, at most
MARK_BYTES: Final = 256 << 20  # that they may take up


class Tape(Protocol):
    """Where the recorded lies; a fixed state of it. May raise `StoreUnavailable`. There is at least one rule set.
    `readings` may raise `TooMany`."""

    def rules(self) -> list[tuple[int, Micros, str]]: ...

    def readings(self, sensors: Indices, starts: Ints, first: Micros, end: Micros) -> Readings: ...

    def read_ahead(self, sensors: Indices, starts: Ints, first: Micros, end: Micros) -> None: ...

    def received_within(self, sensors: Indices, start: Micros, end: Micros) -> tuple[Micros, Micros]: ...

    def last_observed_before(self, sensors: Indices, then: Micros, start: Micros, end: Micros) -> Micros: ...

    def events(self, start: Micros, end: Micros) -> list[AlertEvent]: ...

    def alerts(self, ids: Sequence[str]) -> list[Alert]: ...

    def open_between(self, start: Micros, end: Micros) -> tuple[list[Alert], list[AlertEvent]]: ...


@dataclass(slots=True)
class Told:
    """What a stretch of a replay came to: its readings, its alert events in order, numbered from 1 since `start`, and
    the alerts they changed as they then stood."""

    readings: list[Readings] = field(default_factory=list)
    events: list[AlertEvent] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Window:
    """The readings observed within [start, end), by event time."""

    start: Micros
    end: Micros
    readings: Readings


@dataclass(frozen=True, slots=True)
class _Mark:
    """How everything stood at a moment."""

    time: Micros
    engine: EngineState
    state: SensorState
    open: dict[str, Alert]
    active: dict[tuple[str, str], Alert]
    digest: Digest
    readings: int
    recorded: int
    chapter: int


@dataclass(frozen=True, slots=True)
class _Chapter:
    """From a moment on these rules were in force."""

    start: Micros
    rules: RuleSet
    version: int


class Replay:
    """One replay over `sensors` (all where None). `given`: other rules than the recorded ones.

    `time` is the moment it stands at; `told` the readings, `digest` the alert events since `start`. Memory is bounded
    by `KEEP_READINGS` and `MARK_BYTES`, plus one load.
    """

    def __init__(
        self,
        tape: Tape,
        catalog: Catalog,
        parse_rules: Callable[[str], RuleSet],
        start: Micros,
        end: Micros,
        *,
        sensors: Indices | None = None,
        given: RuleSet | None = None,
        reach: Reach | None = None,
    ) -> None:
        self.tape = tape
        self.catalog = catalog
        self.start, self.end = start, end
        self.has_all = sensors is None
        self.sensors = np.arange(len(catalog), dtype=np.int32) if sensors is None else np.unique(sensors)
        self._inside = np.zeros(len(catalog), bool)
        self._inside[self.sensors] = True
        self.given = given
        self._reach = reach
        self.time = start
        self.told = 0
        self.digest = Digest()
        self._parse_rules = parse_rules
        self._rule_sets: dict[int, Fitted | None] = {}
        self._windows: list[_Window] = []
        self._idle = 0  # loads that gave nothing
        self._width = 10 * MINUTE
        self._marks: list[_Mark] = []
        self._mark_every = max(1, (end - start) // MARKS)
        self._is_open_to_marks = False

    # Where it begins

    def prepare(self) -> None:
        """Bring everything to how it stood at `start`. Once, before anything else."""
        self._chapters = self._find_chapters()
        self._chapter = 0
        while True:
            self.judgement = self._judgement(self._chapters[0])
            self._starts = self._lead_starts()
            self.time = lead = int(self._starts.min(initial=self.start))
            if len(self._chapters) == 1 or self._chapters[1].start > lead:
                break
            self._chapters.pop(0)
        alerts, events = self.tape.open_between(lead, self.start)
        history = self._histories(alerts, events)
        self._record(lead)
        begin = dict(zip(self.sensors.tolist(), self._starts.tolist(), strict=True))
        before = [
            as_of(alert, (e for e in history[alert.id] if e.observed_at < begin.get(alert.sensor_index, lead)))
            for alert in alerts
        ]
        self._stand(self._ours(before))
        self._play(self.start, Told(), None)
        at_start = [as_of(alert, history[alert.id]) for alert in alerts]
        self._settle(self._ours(at_start))
        self.time = self.start
        self.told, self.digest = 0, Digest()
        self._windows.clear()
        self._width = 10 * MINUTE
        self._mark()

    def _find_chapters(self) -> list[_Chapter]:
        """Which rules judged the readings of which event times: those in force when they came."""
        if self.given is not None:
            return [_Chapter(0, self.given, 0)]
        versions = self.tape.rules()
        span = self.start - LEAD_MOST, self.end
        first, last = self.tape.received_within(self.sensors, *span) if len(versions) > 1 else (0, 0)
        begun = [(0, *versions[0])]
        for version, created_at, text in versions[1:]:
            if created_at > last:
                break
            start = 0 if created_at <= first else 1 + self.tape.last_observed_before(self.sensors, created_at, *span)
            while begun and begun[-1][0] >= start:
                begun.pop()  # nothing came while those were in force
            begun.append((start, version, created_at, text))
        while len(begun) > 1 and begun[1][0] <= span[0]:
            begun.pop(0)
        return [_Chapter(start, self._parse_rules(text), version) for start, version, _, text in begun]

    def _judgement(self, chapter: _Chapter) -> Judgement:
        return Judgement(
            self.catalog, chapter.rules, chapter.version, lateness=DAY, default_tenant="", max_bytes=0,
            reach=self._reach, only=None if self.has_all else self._inside,
        )  # fmt: skip

    def _lead_starts(self) -> Ints:
        """By sensor, from when on its readings are played before `start`: a quarter more than its rules remember, and
        an hour, for readings that come seldom."""
        memory = self.judgement.engine.memory()[self.sensors]
        if self.given is not None:
            memory = np.maximum(memory, DAY)  # nothing is on record of what they had open
        return np.asarray(self.start - np.minimum(memory * 5 // 4 + HOUR, LEAD_MOST))

    def _histories(self, alerts: list[Alert], events: list[AlertEvent]) -> dict[str, list[AlertEvent]]:
        found: dict[str, list[AlertEvent]] = {alert.id: [] for alert in alerts}
        for event in sorted(surviving(events), key=lambda e: (e.observed_at, e.seq)):
            found[event.alert_id].append(event)
        return found

    def _belongs(self, about: Alert | AlertEvent) -> bool:
        """Whether what is recorded of a rule, as it was in a version, bears on this replay: it is on one of its
        sensors, or on none in a replay of all, and other rules than the recorded ones judge alike."""
        alike = self.given is None or self._is_alike(about.rule, about.rule_version, about.sensor_index)
        return self._is_ours(about) and alike

    def _is_alike(self, rule: str, version: int, sensor: int) -> bool:
        """Whether a rule judged a sensor in `version` as it does now."""
        if version == self.judgement.rules_version:
            return rule in self.judgement.rules.by_id
        now, then = self.judgement.engine.fitted.print_of(rule, sensor), self._set_of(version)
        return now is not None and then is not None and now == then.print_of(rule, sensor)

    def _is_silence(self, rule: str, version: int) -> bool:
        found = self._rule_of(rule, version)
        return found is not None and found.detector == "offline"

    def _rule_of(self, rule: str, version: int) -> Rule | None:
        """A rule as it was in a version; None where there was none, or one of a kind not known now."""
        then = self._set_of(version)
        return None if then is None else then.by_id.get(rule)

    def _set_of(self, version: int) -> Fitted | None:
        """The rules of a version over the catalogue; None where there were none, or of kinds not known now."""
        if version not in self._rule_sets:
            self._rule_sets[version] = None
            text = next((text for number, _, text in self.tape.rules() if number == version), "")
            with contextlib.suppress(Refused):
                self._rule_sets[version] = fitted(self._parse_rules(text), self.catalog)
        return self._rule_sets[version]

    def _is_ours(self, about: Alert | AlertEvent) -> bool:
        """Whether it is judged from this replay's sensors alone."""
        rule = self.judgement.rules.by_id.get(about.rule)
        if self.has_all or rule is None or not isinstance(rule.parameters, Composition):
            return self._is_inside(about.sensor_index)
        return self.judgement.engine.composites.has(rule.id, about.sensor or about.asset or "")

    def _is_inside(self, sensor: int) -> bool:
        return self.has_all or (0 <= sensor < len(self._inside) and bool(self._inside[sensor]))

    def _record(self, lead: Micros) -> None:
        """Find what is told again as it was recorded: what people and holds did, and silence."""
        self._recorded = [
            event
            for event in surviving(self.tape.events(lead, self.end))
            if (event.transition in DEEDS and self._is_ours(event))
            or (self._is_silence(event.rule, event.rule_version) and self._belongs(event))
        ]
        self._recorded.sort(key=lambda e: (e.observed_at, e.seq))
        self._recorded_at = [event.observed_at for event in self._recorded]
        raised = {event.alert_id for event in self._recorded if event.transition == "raised"}
        self._alerts_recorded = {alert.id: alert for alert in self.tape.alerts(sorted(raised))} if raised else {}
        self._next_recorded = 0

    def _ours(self, alerts: Iterable[Alert | None]) -> list[Alert]:
        return [a for a in alerts if a is not None and self._belongs(a)]

    def _stand(self, alerts: list[Alert]) -> None:
        self.judgement.book = AlertBook(alert for alert in alerts if alert.state is not AlertState.CLEARED)
        self._release(alerts)
        engine, standing = self.judgement.engine, self.judgement.book.active.values()
        engine.open(alert for alert in standing if alert.sensor_index >= 0)
        engine.composites.align(*engine.levels(), np.full(len(self.catalog), self.time - 1))
        engine.composites.stand(standing, self.time)

    def _release(self, alerts: Iterable[Alert]) -> None:
        """What an earlier version of a rule raised is not how it stands now: it stays open until it was closed with
        that version, by the service's clock, and stands in the way of no other."""
        active = self.judgement.book.active
        for alert in list(alerts):
            key = alert.rule, subject_of(alert)
            if key not in active or active[key].id != alert.id:
                continue
            if not self._is_alike(alert.rule, alert.rule_version, alert.sensor_index):
                del active[key]

    def _settle(self, recorded: list[Alert]) -> None:
        """Where an alert is on record at `start`, it is as recorded, whatever the readings before came to here."""
        book = self.judgement.book
        open_ones = {(alert.rule, subject_of(alert)): alert for alert in recorded if alert.state.is_active}
        kept = [
            alert
            for alert in book.open.values()
            if not alert.state.is_active or (alert.rule, subject_of(alert)) not in open_ones
        ]
        known = {alert.id for alert in recorded}
        kept = [alert for alert in kept if alert.id not in known]
        self._stand([*kept, *recorded])

    # Playing

    def advance(self, until: Micros, most: int = STEP_READINGS) -> Told:
        """Play on to `until` at the latest, not many more readings than `most`, and not far where there are none;
        `time` says how far it came."""
        told = Told()
        self._play(min(until, self.end), told, most)
        return told

    def _play(self, until: Micros, told: Told, most: int | None) -> None:
        played, idle = 0, self._idle
        while self.time < until and (most is None or (played < most and self._idle - idle < IDLE_LOADS)):
            if self._chapter + 1 < len(self._chapters) and self._chapters[self._chapter + 1].start <= self.time:
                self._chapter += 1
                chapter = self._chapters[self._chapter]
                self.judgement.refit(chapter.rules, chapter.version)
                self._release(self.judgement.book.active.values())
            stop = until
            if self._chapter + 1 < len(self._chapters):
                stop = min(stop, self._chapters[self._chapter + 1].start)
            if self._is_open_to_marks:
                stop = min(stop, self._marks[-1].time + self._mark_every)
            played += self._step(stop, told)
            if self._is_open_to_marks and self.time >= self._marks[-1].time + self._mark_every and self.time < self.end:
                self._mark()

    def _step(self, until: Micros, told: Told) -> int:
        """Judge readings of [time, until), `STEP_READINGS` of them or a few more (those of one moment stay together);
        how many."""
        window = self._window()
        until = min(until, window.end)
        at = window.readings.observed_at
        begin, end = np.searchsorted(at, [self.time, until])
        if end - begin > STEP_READINGS:
            until = int(at[begin + STEP_READINGS]) + 1
            end = int(np.searchsorted(at, until))
            until = min(until, window.end)
        readings = window.readings.take(np.arange(begin, end))
        judgement = self.judgement
        docket = judgement.docket(0)
        verdicts, update = judgement.verdicts(readings.take(readings.judgeable()))
        findings, composed = judgement.engine.compose(update.steps, until=until - 1)
        # In the order of event times nothing is told that the rest changes.
        verdicts += [t for finding in findings if not finding.is_revision for t in finding.due]
        verdicts.sort(key=lambda t: (t.observed_at, t.sensor, t.rule, t.subject or ""))
        self._tell(docket, verdicts, until)
        outcome = Outcome(readings, Counts(), alerts=docket.alerts)
        judgement.apply(Decision(outcome, updates=[update, composed]))
        self._release(docket.alerts)
        for event in docket.events:
            event = replace(event, at=event.observed_at, seq=self.digest.count + 1)
            self.digest.add(event)
            told.events.append(event)
        told.alerts += docket.alerts
        if len(readings):
            told.readings.append(readings)
        self.told += len(readings)
        self.time = until
        return len(readings)

    def _tell(self, docket: Docket, verdicts: list[Transition], until: Micros) -> None:
        """Verdicts and what is recorded until then, in the order of their event times."""
        for transition in verdicts:
            self._retell(docket, transition.observed_at + 1)
            docket.judge(transition)
        self._retell(docket, until)

    def _retell(self, docket: Docket, before: Micros) -> None:
        while self._next_recorded < len(self._recorded) and self._recorded_at[self._next_recorded] < before:
            event = self._recorded[self._next_recorded]
            self._next_recorded += 1
            if self.given is not None and event.transition == "closed":
                standing = docket.find(event.alert_id)
                if standing is not None and standing.state.is_active:
                    continue  # it was closed because its rule was removed: not so here
            if self.given is None and event.transition in DEEDS and docket.find(event.alert_id) is None:
                # Of an alert long cleared, withdrawn since, or yet to come by a sensor's clock that is ahead.
                docket.events.append(replace(event, seq=0))
                continue
            docket.retell(event, self._alerts_recorded.get(event.alert_id))

    def _window(self) -> _Window:
        """The loaded stretch that `time` lies in; loaded wide enough for many steps, judged by `_step` only."""
        for window in reversed(self._windows):
            if window.start <= self.time < window.end:
                return window
        last = self.end if self._is_open_to_marks else self.start
        end = min(self.time + self._width, last)
        following = [window.start for window in self._windows if window.start > self.time]
        if following:
            end = min(end, *following)
        end = max(end, self.time + 1)
        while True:
            try:
                readings = self.tape.readings(self.sensors, self._starts, self.time, end)
                break
            except TooMany:
                end = self.time + max((end - self.time) // 8, 1)
        readings = readings.take(np.lexsort((readings.sensor, readings.observed_at)))
        window = _Window(self.time, end, readings)
        self._windows.append(window)
        self._idle += not len(readings)
        factor = LOAD_READINGS / max(len(readings), 1)
        self._width = int(min(max((end - self.time) * min(max(factor, 0.25), 4), MINUTE), 100 * DAY))
        self.tape.read_ahead(self.sensors, self._starts, end, min([end + self._width, last, *following]))
        held = sum(len(w.readings) for w in self._windows)
        while len(self._windows) > 1 and held > KEEP_READINGS:
            furthest = max(self._windows[:-1], key=lambda w: abs(w.start - self.time))
            self._windows.remove(furthest)
            held -= len(furthest.readings)
        return window

    # Going anywhere

    def seek(self, time: Micros) -> Told:
        """Go to any moment of the range: as if played from `start` to there. What is told is what lies between the
        moment and the point it was reached from, which is the present one or an earlier one."""
        time = min(max(time, self.start), self.end)
        fits = [mark for mark in self._marks if mark.time <= time]
        if time < self.time or fits[-1].time > self.time:
            self._return_to(fits[-1])
        told = Told()
        self._play(time, told, None)
        return told

    def _mark(self) -> None:
        judgement = self.judgement
        judgement.engine.composites.prune(judgement.judged_at, 0)
        mark = _Mark(
            self.time, judgement.engine.snapshot(), judgement.state.copy(), judgement.book.open.copy(),
            judgement.book.active.copy(), self.digest.copy(), self.told, self._next_recorded, self._chapter,
        )  # fmt: skip
        if not self._marks:
            size = mark.state.observed_at.nbytes * 5 + sum(
                column.nbytes for table in mark.engine.tables.values() for column in table.values()
            )
            fewest = max(2, MARK_BYTES // max(size, 1))
            self._mark_every = max(self._mark_every, (self.end - self.start) // fewest)
        self._marks.append(mark)
        self._is_open_to_marks = True

    def _return_to(self, mark: _Mark) -> None:
        judgement = self.judgement
        fresh = self._judgement(self._chapters[mark.chapter])
        fresh.engine.restore(mark.engine)
        fresh.state = mark.state.copy()
        fresh.judged_at = judgement.judged_at
        fresh.book.open, fresh.book.active = mark.open.copy(), mark.active.copy()
        self.judgement = fresh
        self.digest, self.told = mark.digest.copy(), mark.readings
        self._next_recorded, self._chapter = mark.recorded, mark.chapter
        self.time = mark.time

    def current(self, alerts: Sequence[Alert]) -> list[tuple[str, float, float]]:
        """`(id, value, peak)` as of now of these open alerts on sensors, where the readings have any."""
        judgement = self.judgement
        found = []
        for alert in alerts:
            stands = judgement.book.active.get((alert.rule, subject_of(alert)))
            if stands is not None and stands.id == alert.id and alert.rule in judgement.rules.by_id:
                value, peak, _ = judgement.engine.extremes(judgement.rules.index(alert.rule), alert.sensor_index)
                if value == value:
                    found.append((alert.id, value, peak))
        return found

    def recorded_alerts(self, end: Micros) -> list[Alert]:
        """The alerts of the same sensors that were raised before `end`, after corrections, as they then stood; those
        that had cleared long before `start` need not be among them."""
        alerts, events = self.tape.open_between(self.start, end)
        history = self._histories(alerts, events)
        found = (as_of(alert, history[alert.id]) for alert in alerts)
        return [alert for alert in found if alert is not None and self._is_inside(alert.sensor_index)]

    def recorded_digest(self) -> Digest:
        """What was told live of the same sensors and range, after corrections."""
        digest = Digest()
        for event in surviving(self.tape.events(self.start, self.end)):
            if self._is_ours(event):
                digest.add(event)
        return digest
