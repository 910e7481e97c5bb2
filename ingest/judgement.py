"""What a batch of messages comes to: readings, refusals, alert events and changed state, decided before any is written.

`Judgement` holds all that decisions rest on (catalogue, sensor state, engine, alerts) and changes none of it while
deciding: a `Decision` is applied once its commit has taken place. The database is asked (never told) about late and
repeated readings, through `Archive`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import numpy as np

from alerts.composites import Clock, Finding, Redone
from alerts.composition import Composition
from alerts.detectors import JOINED, family_of
from alerts.engine import Engine, EngineState, Group, GroupTimes, Update
from alerts.holds import Holds
from alerts.lifecycle import AlertBook, Docket, subject_of
from alerts.reach import Reach
from alerts.rules import RuleSet
from ingest import codecs, quality
from ingest.codecs.waveform import STATISTICS, summarise_all
from twin.catalog import Catalog
from twin.model import (
    Alert,
    AlertEvent,
    Bools,
    Counts,
    DeviceStatus,
    Indices,
    Ints,
    Micros,
    Outcome,
    RawMessage,
    Readings,
    Reason,
    Refusal,
    Reject,
    Sensor,
    Transition,
    WaveformBlock,
)
from twin.state import SensorState, arrival_lanes

OUTDATED: Final = np.iinfo(np.int64).max
_UNKNOWN: Final = (Reason.UNKNOWN_DEVICE, Reason.UNKNOWN_PROPERTY)


class Archive(Protocol):
    """What deciding asks of the database; all of it may raise `StoreUnavailable`."""

    def known(self, sensor: Indices, observed_at: Ints, table: str = "readings") -> Bools: ...

    def history(self, sensor: Indices, after: Ints) -> Readings: ...

    def said(self, sensor: Indices, after: Ints) -> list[AlertEvent]: ...

    def alerts(self, ids: Sequence[str]) -> list[Alert]: ...

    def course(self, ids: Sequence[str], rules: Sequence[str] = (), after: Micros = 0) -> list[AlertEvent]: ...


@dataclass(slots=True)
class Snapshot:
    """What the detectors knew after `batch`, and the newest event time of each sensor then: a point from which late
    readings are judged again. For a sensor of which readings older than that came later, it is a point no more."""

    batch: int
    taken_at: Micros
    observed_at: Ints
    engine: EngineState

    def pack(self) -> None:
        """Take less memory; from any thread."""
        self.engine = self.engine.pack()

    def newest(self, sensor: Indices) -> Ints:
        """The newest event time of each of these sensors at the snapshot; 0 for one it did not know."""
        result = np.zeros(len(sensor), np.int64)
        is_known = sensor < len(self.observed_at)
        result[is_known] = self.observed_at[sensor[is_known]]
        return result

    def outdate(self, sensor: Indices, late_from: Ints) -> bool:
        """These sensors' readings from `late_from` on have changed; whether that bears on what is known here."""
        is_stale = (self.newest(sensor) >= late_from) & (sensor < len(self.observed_at))
        self.observed_at[sensor[is_stale]] = OUTDATED
        return bool(is_stale.any())

    def outdate_group(self, family: str, fingerprint: int, pivot: int, late_from: Micros) -> bool:
        """A group's readings from `late_from` on have changed; whether that bears on what is known here of it. The
        pivot stands for the group."""
        is_stale = self.engine.through(family, fingerprint, pivot) >= late_from and pivot < len(self.observed_at)
        if is_stale:
            self.observed_at[pivot] = OUTDATED
        return is_stale


@dataclass(slots=True)
class Decision:
    """An outcome to commit, and what to change in memory once it is."""

    outcome: Outcome
    refused_messages: list[int] = field(default_factory=list)  # of each refusal, its message's place in the batch
    heard: Readings = field(default_factory=Readings.empty)
    updates: list[Update] = field(default_factory=list)
    has_new_gateway: bool = False  # a sensor came by a gateway for the first time
    judged_again: tuple[Indices, Ints] | None = None  # sensors, and from which event time on
    checked_at: Micros | None = None  # when the holds that time begins and ends were looked at
    groups_again: dict[Group, Micros] = field(default_factory=dict)  # the same of groups of sensors


class Judgement:
    """Everything decisions rest on. One thread's; others may read `catalog`, `state` and `book`."""

    def __init__(
        self,
        catalog: Catalog,
        rules: RuleSet,
        rules_version: int,
        *,
        lateness: Micros,
        default_tenant: str,
        max_bytes: int,
        started_at: Micros = 0,
        reach: Reach | None = None,
        only: Bools | None = None,
    ) -> None:
        self.catalog = catalog
        self.rules = rules
        self.rules_version = rules_version
        self.lateness = lateness
        self._decoder = codecs.Decoder(catalog, default_tenant, max_bytes)
        self.started_at = started_at
        # Of sensors with waveforms, those of their summaries, as looked up when the catalogue had changed so often.
        self._statistics_of: tuple[int, dict[int, list[int]]] = -1, {}
        self.state = SensorState.of(len(catalog))
        self.judged_at = np.zeros(len(catalog), np.int64)  # newest event time that came by the pipeline, not an import
        self._reach, self._only = reach, only
        self._networks = self._known_networks()
        self.engine = Engine(rules, catalog, started_at, reach, only)
        self.book = AlertBook()
        self.holds = Holds(catalog, reach)
        self.holds.refit(rules.inhibits, rules.chatters, ())
        self.snapshots: list[Snapshot] = []  # oldest first
        self.outdated: set[int] = set()  # batches whose snapshots changed since they were written
        self._otherwise: set[str] = set()  # alerts whose rule came to something else on their sensor by the last refit

    # Change of what the decisions rest on

    def refit(self, rules: RuleSet | None = None, version: int | None = None) -> None:
        """Follow a changed catalogue or rule set; what did not change keeps its state."""
        self.state.grow(len(self.catalog))
        self._grow(len(self.catalog))
        if rules is not None and version is not None:
            self.rules, self.rules_version = rules, version
        self._networks = self._known_networks()
        engine = Engine(self.rules, self.catalog, self.started_at, self._reach, self._only)
        engine.adopt(self.engine, self.judged_at)
        changed = engine.changed(self.engine, self.book.open.values())
        self._otherwise = {alert.id for alert in changed}
        if rules is None:
            # Limits moved with the city: what stands goes on, judged by the new ones from its next reading on.
            engine.open(alert for alert in changed if alert.state.is_active)
        self.engine = engine
        self.holds.refit(self.rules.inhibits, self.rules.chatters, self.book.open.values())

    @property
    def has_other_networks(self) -> bool:
        """Whether rules follow networks that have changed since: time for `refit`."""
        return self._known_networks() != self._networks

    def _known_networks(self) -> int:
        return self._reach.changes if self._reach is not None and self.rules.follows_networks else -1

    def orphans(self, before: RuleSet | None = None) -> list[Alert]:
        """Open alerts that no watch stands behind any more: their rule is gone or no longer looks at their sensor, or,
        where the last refit was from other rules (`before`), judges it otherwise."""
        rule, sensor, _ = self.engine.levels()
        watched = set(zip(rule.tolist(), sensor.tolist(), strict=True))
        composed = {(rule, subject) for rule, subject, _ in self.engine.composites.open()}
        found = []
        for alert in list(self.book.open.values()):
            current = self.rules.by_id.get(alert.rule)
            is_gone = current is None or (before is not None and alert.id in self._otherwise)
            if not is_gone and current is not None and alert.state.is_active and current.detector != "offline":
                index = self.rules.index(alert.rule)
                if isinstance(current.parameters, Composition):
                    is_gone = (index, subject_of(alert)) not in composed
                else:
                    is_gone = (index, alert.sensor_index) not in watched
            if is_gone:
                found.append(alert)
        return found

    def apply(self, decision: Decision) -> None:
        """Make a committed decision what stands."""
        stored = decision.outcome.readings
        self.state.apply(stored, is_heard=not len(decision.heard))  # which has them, too
        np.maximum.at(self.judged_at, stored.sensor, stored.observed_at)
        if len(decision.heard):
            np.maximum.at(self.state.heard_at, decision.heard.sensor, decision.heard.received_at)
        for update in decision.updates:
            self.engine.apply(update)
        self.book.apply(decision.outcome.alerts)
        self.holds.put(decision.outcome.holds)
        self.holds.follow(decision.outcome.alerts)
        if decision.checked_at is not None:
            self.holds.checked(decision.checked_at)
        if decision.judged_again is not None:
            self._outdate(*decision.judged_again)
        self._outdate_groups(decision.groups_again)

    def _outdate_groups(self, late_from: dict[Group, Micros]) -> None:
        for group, since in late_from.items():
            mine = group[0], self.engine.fingerprint_of(group), self.engine.watch_of(group)[1]
            self.outdated.update(s.batch for s in self.snapshots if s.outdate_group(*mine, since))

    def _outdate(self, sensor: Indices, late_from: Ints) -> None:
        self.outdated.update(s.batch for s in self.snapshots if s.outdate(sensor, late_from))

    # Messages

    def needs_newer_catalog(self, decoded: codecs.Decoded) -> bool:
        """Whether something was refused that a newer catalogue might know."""
        return any(reject.reason in _UNKNOWN for reject in decoded.rejects)

    def decode(self, messages: Sequence[RawMessage]) -> codecs.Decoded:
        return self._decoder.decode(messages)

    def missing_statistics(self, decoded: codecs.Decoded) -> list[Sensor]:
        """The sensors that summaries of these waveforms need and the catalogue lacks."""
        wanted: dict[str, Sensor] = {}
        for index in {block.sensor for block in decoded.waveforms}:
            if self._statistics(index) is not None:
                continue
            sensor = self.catalog.sensors[index]
            for statistic in STATISTICS:
                prop = f"{sensor.property}.{statistic}"
                if prop in self.catalog.devices[sensor.device]:
                    continue
                is_frequency = statistic == "frequency"
                derived = Sensor(
                    sensor.device, prop, "signal.frequency" if is_frequency else sensor.kind,
                    "Hz" if is_frequency else self.catalog.kinds[sensor.kind].unit, sensor.tenant, sensor.asset,
                    sensor.lon, sensor.lat, tags=sensor.tags, statistic=statistic,
                )  # fmt: skip
                wanted[derived.id] = derived
        return list(wanted.values())

    def _statistics(self, index: int) -> list[int] | None:
        """The sensors that hold the summaries of a sensor's waveforms, in the order of `STATISTICS`; None where one is
        missing."""
        changes, known = self._statistics_of
        if changes != self.catalog.changes:
            known = {}
            self._statistics_of = self.catalog.changes, known
        found = known.get(index)
        if found is None:
            sensor = self.catalog.sensors[index]
            properties = self.catalog.devices[sensor.device]
            names = [f"{sensor.property}.{name}" for name in STATISTICS]
            if not all(name in properties for name in names):
                return None
            found = known[index] = [properties[name] for name in names]
        return found

    def decide(
        self,
        messages: Sequence[RawMessage],
        decoded: codecs.Decoded,
        archive: Archive,
        now: Micros,
        asks_all: bool = False,
    ) -> Decision:
        """What these messages come to. `asks_all`: whether each reading is stored is asked, also of those newer than
        everything known."""
        readings = Readings(
            decoded.sensor, decoded.observed_at, decoded.received_at, decoded.value,
            np.zeros(len(decoded.sensor), np.uint8),
        )  # fmt: skip
        blocks, repeated_blocks = self._new_blocks(decoded.waveforms, archive, asks_all)
        summaries = self._summaries(blocks)
        counted = np.concatenate([np.ones(len(readings), bool), np.zeros(len(summaries), bool)])
        by_gateway = np.concatenate([decoded.by_gateway, np.zeros(len(summaries), bool)])
        readings = Readings.join([readings, summaries])
        is_new = arrival_lanes(readings, self.state.observed_at)
        if asks_all:
            is_new[:] = False
        bits = quality.judge(
            readings.sensor,
            readings.observed_at,
            readings.received_at,
            readings.value,
            self.catalog,
            self.state,
            is_new,
        )
        if blocks:
            mode_bits = self.catalog.mode_bits[[block.sensor for block in blocks]]
            bits[len(decoded.sensor) :] |= np.repeat(mode_bits, len(STATISTICS))
        readings = Readings(readings.sensor, readings.observed_at, readings.received_at, readings.value, bits)
        is_late = self._unseen(readings, is_new, archive)
        stored = readings.take(is_new | is_late)
        rejects = _one_a_reason(decoded.rejects)
        refusals = [_refusal(reject, messages[reject.message]) for reject in rejects]
        counts = Counts(
            messages=len(messages),
            received=decoded.received,
            stored=int((counted & (is_new | is_late)).sum()) + len(blocks),
            duplicate=int((counted & ~is_new & ~is_late).sum()) + repeated_blocks,
            quarantined=sum(refusal.readings for refusal in refusals),
        )
        statuses = [DeviceStatus(device, is_online, at) for _, device, is_online, at in decoded.statuses]
        outcome = Outcome(stored, counts, blocks, refusals, statuses=statuses)
        heard = Readings.join([readings, _announced(decoded.waveforms)])
        by_gateway = np.concatenate([by_gateway, np.zeros(len(decoded.waveforms), bool)])
        decision = Decision(outcome, [reject.message for reject in rejects], heard=heard)
        docket = self.docket(now)
        self._judge(decision, docket, readings, is_new, is_late, archive)
        self._listen(decision, docket, heard, by_gateway)
        docket.settle()
        outcome.alerts, outcome.events = docket.alerts, docket.events
        return decision

    def _new_blocks(
        self, blocks: list[WaveformBlock], archive: Archive, asks_all: bool
    ) -> tuple[list[WaveformBlock], int]:  # fmt: skip
        """The blocks not stored yet, first of each sensor and start, and how many others there are. One that is newer
        than its sensor's newest summary is not asked about: a block is stored with its summaries."""
        if not blocks:
            return [], 0
        first: dict[tuple[int, Micros], WaveformBlock] = {}
        for block in blocks:
            first.setdefault((block.sensor, block.started_at), block)
        candidates = list(first.values())
        started_at = np.array([block.started_at for block in candidates], np.int64)
        known = started_at <= self.state.observed_at[self._summarising(candidates)[:, 0]]
        if asks_all:
            known[:] = True
        if known.any():
            asked = np.flatnonzero(known)
            sensors = np.array([candidates[place].sensor for place in asked.tolist()], np.int32)
            known[asked] = archive.known(sensors, started_at[asked], "waveform_blocks")
        mode = self.catalog.mode_bits
        fresh = [
            replace(block, quality=int(mode[block.sensor])) if mode[block.sensor] else block
            for block, is_known in zip(candidates, known.tolist(), strict=True)
            if not is_known
        ]
        return fresh, len(blocks) - len(fresh)

    def _summarising(self, blocks: list[WaveformBlock]) -> Indices:
        """The sensors of these blocks' summaries, (blocks, 4)."""
        found = [self._statistics(block.sensor) for block in blocks]
        return np.array(found, np.int32).reshape(len(blocks), len(STATISTICS))

    def _summaries(self, blocks: list[WaveformBlock]) -> Readings:
        if not blocks:
            return Readings.empty()
        sensors = self._summarising(blocks).ravel()
        count = len(STATISTICS)
        return Readings(
            sensors,
            np.repeat(np.array([block.started_at for block in blocks], np.int64), count),
            np.repeat(np.array([block.received_at for block in blocks], np.int64), count),
            summarise_all(blocks).ravel(),
            np.zeros(len(sensors), np.uint8),
        )

    def _unseen(self, readings: Readings, is_new: Bools, archive: Archive) -> Bools:
        """Which of the readings that are not newer than their sensor's newest are not stored either: late ones."""
        late = np.zeros(len(readings), bool)
        slow = np.flatnonzero(~is_new)
        if not len(slow):
            return late
        # The newest stored reading repeated is the commonest repetition, and needs no asking.
        slow = slow[readings.observed_at[slow] != self.state.observed_at[readings.sensor[slow]]]
        if not len(slow):
            return late
        sensor, at = readings.sensor[slow], readings.observed_at[slow]
        # Of equal keys in this batch the first counts, and one in the fast lane before any here.
        fast = np.flatnonzero(is_new & np.isin(readings.sensor, sensor))
        keys_sensor = np.concatenate([readings.sensor[fast], sensor])
        keys_at = np.concatenate([readings.observed_at[fast], at])
        order = np.lexsort((np.arange(len(keys_at)), keys_at, keys_sensor))
        s, t = keys_sensor[order], keys_at[order]
        is_first = np.ones(len(order), bool)
        is_first[1:] = (s[1:] != s[:-1]) | (t[1:] != t[:-1])
        first = np.zeros(len(order), bool)
        first[order] = is_first
        slow = slow[first[len(fast) :]]
        if len(slow):
            known = archive.known(readings.sensor[slow], readings.observed_at[slow])
            late[slow[~known]] = True
        return late

    def _judge(
        self, decision: Decision, docket: Docket, readings: Readings, is_new: Bools, is_late: Bools, archive: Archive
    ) -> None:  # fmt: skip
        judgeable = readings.judgeable()
        redo = self._to_judge_again(readings, is_new | is_late, is_late & judgeable)
        take = is_new & judgeable
        late, fast = readings.take(is_late & judgeable), readings.take(take)
        groups = self._groups_to_judge_again(fast, late, redo)
        if len(redo):
            fast = fast.take(~np.isin(fast.sensor, redo))
        verdicts, update = self.verdicts(fast)
        decision.updates.append(update)
        anew = {self.engine.watch_of(group) for group in groups}
        for transition in verdicts:
            if (transition.rule, transition.sensor) not in anew:
                docket.judge(transition)
        steps = [step for step in update.steps if (step.rule, step.sensor) not in anew]
        since: dict[tuple[int, int], Micros] = {}  # members of composites that are judged again
        again: list[Transition] = []
        if len(redo):
            stored = readings.take((is_new | is_late) & np.isin(readings.sensor, redo))
            late_from = self._first_late(redo, late)
            update, after, found = self._judge_again(redo, late_from, stored, docket, archive)
            since |= self._followed(redo, after)
            again += found
            decision.updates.append(update)
            # What lies before the point that was started from is not judged, and changes no snapshot.
            decision.judged_again = redo, np.maximum(late_from, after + 1)
        if groups:
            found_since, found = self._judge_groups_again(
                decision, groups, readings.take(is_new | is_late), docket, archive
            )
            since |= found_since
            again += found
        if steps or since or again:
            findings, update = self.engine.compose(steps, Redone(since, again) if since or again else None)
            decision.updates.append(update)
            self._find(docket, findings, archive)

    def _find(self, docket: Docket, findings: Sequence[Finding], archive: Archive) -> None:
        """Tell what composites came to: what is new after the rest, and what is to be told anew after what was told is
        taken back."""
        plain = [(t, f.until) for f in findings if not f.is_revision for t in f.due]
        for transition, until in sorted(plain, key=lambda p: (p[0].observed_at, p[0].sensor, p[0].subject or "")):
            docket.judge(transition, is_retroactive=transition.observed_at <= until)
        revised = [f for f in findings if f.is_revision]
        if not revised:
            return
        ids = sorted({id_ for finding in revised for id_ in finding.alerts})
        said: dict[str, list[AlertEvent]] = {}
        for event in archive.course(ids):
            said.setdefault(event.alert_id, []).append(event)
        docket.load(archive.alerts([id_ for id_ in ids if id_ not in self.book.open]))
        for finding in revised:
            own = [event for id_ in finding.alerts for event in said.get(id_, []) if event.observed_at >= finding.base]
            docket.rejudge(finding.standing, own, finding.due, {finding.sensor: finding.until})

    def verdicts(self, readings: Readings) -> tuple[list[Transition], Update]:
        """What judgeable readings, newer than all their sensors showed, come to, and the engine's change."""
        return self.engine.observe(readings.in_order())

    def _to_judge_again(self, readings: Readings, stored: Bools, late: Bools) -> Indices:
        """Sensors with a late reading that is not too late to bear on what was said."""
        if not late.any():
            return np.empty(0, np.int32)
        newest = self.state.observed_at.copy()
        np.maximum.at(newest, readings.sensor[stored], readings.observed_at[stored])
        in_time = late & (readings.observed_at >= newest[readings.sensor] - self.lateness)
        return np.unique(readings.sensor[in_time])

    def _first_late(self, redo: Indices, late: Readings) -> Ints:
        """By sensor of `redo`, the earliest of its late readings that lies within the lateness."""
        first = np.full(len(redo), np.iinfo(np.int64).max)
        horizon = self.state.observed_at[late.sensor] - self.lateness
        late = late.take((late.observed_at >= horizon) & np.isin(late.sensor, redo))
        np.minimum.at(first, np.searchsorted(redo, late.sensor), late.observed_at)
        return first

    def _judge_again(
        self, redo: Indices, late_from: Ints, stored: Readings, docket: Docket, archive: Archive
    ) -> tuple[Update, Ints, Sequence[Transition]]:  # fmt: skip
        """Judge sensors again from the newest snapshot before `late_from`, over all that is now known of them; the
        change of state, by sensor the time after which they were judged, and what composites follow of it."""
        pick, after = self._bases(redo, late_from)
        small = self.engine.fork(redo, [snapshot.engine for snapshot in self.snapshots], pick)
        known = Readings.join([archive.history(redo, after), stored])
        known = known.take(known.judgeable() & (known.observed_at > after[np.searchsorted(redo, known.sensor)]))
        transitions, update = small.observe(known.in_order())
        small.apply(update)
        said = [e for e in archive.said(redo, after) if self._is_by_own_readings(e.rule)]
        sensors = {self.catalog.sensors[index].id for index in redo.tolist()}
        active = {key for key in self.book.active if key[1] in sensors and self._is_by_own_readings(key[0])}
        newest = {int(index): int(self.state.observed_at[index]) for index in redo}
        self._retell(docket, archive, said, active, transitions, newest)
        return self.engine.merge(small), after, update.steps

    def _retell(
        self,
        docket: Docket,
        archive: Archive,
        said: list[AlertEvent],
        active: Collection[tuple[str, str]],
        transitions: list[Transition],
        newest: dict[int, Micros],
    ) -> None:
        """Tell the difference between what was `said` since a moment and `transitions`; `active`: the rules and
        subjects concerned with an active alert, `newest`: the newest event time that was judged before, by sensor."""
        docket.load(archive.alerts(sorted({e.alert_id for e in said} - self.book.open.keys())))
        base = {(e.rule, e.sensor or ""): e.alert_id for e in _firsts(said) if e.transition != "raised"}
        told = {e.alert_id for e in said}
        for key in active:
            alert = self.book.active[key]
            if alert.id not in told:
                base.setdefault(key, alert.id)
        docket.rejudge(base, said, transitions, newest)

    # Groups of sensors

    def _groups_to_judge_again(self, fast: Readings, late: Readings, redo: Indices) -> GroupTimes:
        """Groups with a sensor that is judged again, or with a reading, newer than all its sensor showed, for a time
        that the group has passed: by member, the earliest of these."""
        found = self.engine.late_for_groups(fast.sensor, fast.observed_at)
        for group in list(found):
            horizon = self.engine.through(group) - self.lateness
            in_time = {slot: at for slot, at in found[group].items() if at >= horizon}
            if in_time:
                found[group] = in_time
            else:
                del found[group]
        if len(redo):
            for group, times in self.engine.groups_with(redo, self._first_late(redo, late)).items():
                mine = found.setdefault(group, {})
                for slot, at in times.items():
                    mine[slot] = min(at, mine.get(slot, at))
        return found

    def _judge_groups_again(
        self, decision: Decision, late: GroupTimes, stored: Readings, docket: Docket, archive: Archive
    ) -> tuple[dict[tuple[int, int], Micros], list[Transition]]:  # fmt: skip
        """Judge groups again, each from the newest snapshot that none of its late readings bears on. For composites:
        their watches, each with the time after which it was judged, and the transitions that came of it."""
        after: dict[tuple[int, int], Micros] = {}
        steps: list[Transition] = []
        for base, groups in self._group_bases(late).items():
            small, through, known = self._groups_from(base, groups, late, stored, archive)
            transitions, update = small.observe(known)
            small.apply(update)
            decision.updates.append(self.engine.merge(small))
            steps += update.steps
            since: dict[tuple[str, str], Micros] = {}
            newest: dict[int, Micros] = {}
            for group in groups:
                rule, pivot = self.engine.watch_of(group)
                since[self.rules.rules[rule].id, self.catalog.sensors[pivot].id] = through[group]
                if self.engine.composites.members[rule]:
                    after[rule, pivot] = through[group]
                newest[pivot] = max(newest.get(pivot, 0), self.engine.through(group))
                decision.groups_again[group] = max(min(late[group].values()), through[group] + 1)
            pivots = np.array(sorted(newest), np.int32)
            said = archive.said(pivots, np.full(len(pivots), max(0, min(through.values()))))
            said = [e for e in said if e.observed_at > since.get((e.rule, e.sensor or ""), OUTDATED)]
            self._retell(docket, archive, said, since.keys() & self.book.active.keys(), transitions, newest)
        return after, steps

    def _group_bases(self, late: GroupTimes) -> dict[int, list[Group]]:
        """The groups by the snapshot to start from (-1: at rest). Where none is old enough the oldest serves, as for
        single sensors."""
        bases: dict[int, list[Group]] = {}
        for group, times in late.items():
            members = self.engine.members(group)
            _, pivot = self.engine.watch_of(group)
            fingerprint = self.engine.fingerprint_of(group)
            picked = -1
            for n, snapshot in enumerate(self.snapshots):
                newest = snapshot.newest(members)
                if (newest == OUTDATED).any():
                    continue
                fits = all(newest[slot] < at for slot, at in times.items()) and snapshot.engine.through(
                    group[0], fingerprint, pivot
                ) < min(times.values())
                if fits or picked < 0:
                    picked = n
            bases.setdefault(picked, []).append(group)
        return bases

    def _groups_from(
        self, base: int, groups: list[Group], late: GroupTimes, stored: Readings, archive: Archive
    ) -> tuple[Engine, dict[Group, Micros], Readings]:
        """An engine of these groups as they stood at a snapshot, up to when each was judged there, and what is known
        of their members that their samples since may need, in order. Of a member that was far ahead the snapshot has
        forgotten what a late sample needs: so what it remembers is read again."""
        members = np.unique(np.concatenate([self.engine.members(group) for group in groups]))
        snapshot = self.snapshots[base] if base >= 0 else None
        after = np.zeros(len(members), np.int64) if snapshot is None else snapshot.newest(members)
        small = self.engine.fork_groups(groups, None if snapshot is None else snapshot.engine)
        through = {}
        for group in groups:
            _, pivot = self.engine.watch_of(group)
            fingerprint = self.engine.fingerprint_of(group)
            through[group] = -1 if snapshot is None else snapshot.engine.through(group[0], fingerprint, pivot)
        if snapshot is not None:
            pivot_of = {group: self.engine.watch_of(group)[1] for group in groups}
            first = self._firsts_since(snapshot, {pivot_of[g] for g in small.unjudged(groups)}, stored, archive)
            begins = {g: min(first.get(pivot_of[g], OUTDATED), *late[g].values()) for g in groups}
            newest = after.copy()
            for group, begin in small.read_again(groups, begins).items():
                own = np.searchsorted(members, self.engine.members(group))
                np.minimum.at(after, own, max(begin, int(newest[own].max()) - self.lateness))
        known = Readings.join([archive.history(members, after), stored.take(np.isin(stored.sensor, members))])
        is_since = known.observed_at > after[np.searchsorted(members, known.sensor)]
        return small, through, known.take(known.judgeable() & is_since).in_order()

    def _firsts_since(
        self, snapshot: Snapshot, sensors: Collection[int], stored: Readings, archive: Archive
    ) -> dict[int, Micros]:
        """The first event time of each sensor after what the snapshot knew."""
        if not sensors:
            return {}
        asked = np.array(sorted(sensors), np.int32)
        known = Readings.join([archive.history(asked, snapshot.newest(asked)), stored])
        first: dict[int, Micros] = {}
        for sensor, at in zip(known.sensor.tolist(), known.observed_at.tolist(), strict=True):
            first[sensor] = min(at, first.get(sensor, at))
        return first

    def _bases(self, redo: Indices, late_from: Ints) -> tuple[Ints, Ints]:
        """By sensor, which snapshot to start from (-1: at rest, from the beginning) and its newest event time there.

        Where no snapshot is old enough the oldest serves: what lies before it is stored, and not judged any more.
        """
        pick = np.full(len(redo), -1, np.int64)
        after = np.zeros(len(redo), np.int64)
        for n, snapshot in enumerate(self.snapshots):
            newest = snapshot.newest(redo)
            fits = (newest < late_from) | ((pick < 0) & (newest < OUTDATED))
            pick[fits] = n
            after[fits] = newest[fits]
        return pick, after

    def _followed(self, sensor: Indices, after: Ints) -> dict[tuple[int, int], Micros]:
        """What composites follow of sensors that are judged again; not the groups that they are the pivots of, which
        are judged again from a moment of their own."""
        found = self.engine.composites.followed(sensor, after)
        return {key: at for key, at in found.items() if family_of(self.rules.rules[key[0]]) not in JOINED}

    def _is_by_own_readings(self, rule: str) -> bool:
        """Whether the rule's alerts come of one sensor's readings."""
        known = self.rules.by_id.get(rule)
        return (
            known is not None
            and known.detector != "offline"
            and not isinstance(known.parameters, Composition)
            and family_of(known) not in JOINED
        )

    # Silence

    def _listen(self, decision: Decision, docket: Docket, heard: Readings, by_gateway: Bools) -> None:
        if not len(heard):
            return
        gateway = np.full(len(heard), -1, np.int32)
        if by_gateway.any():
            owner = self.catalog.tenant[heard.sensor[by_gateway]]
            number = np.full(len(self.catalog.owners), -1, np.int32)
            for code in np.unique(owner).tolist():
                number[code] = self.engine.gateway(self.catalog.owners[code])
            gateway[by_gateway] = number[owner]
        decision.has_new_gateway = bool((by_gateway & (self.engine.known_gateway(heard.sensor) != gateway)).any())
        transitions, update = self.engine.heard(heard.sensor, heard.received_at, gateway)
        decision.updates.append(update)
        for transition in transitions:
            docket.judge(transition)

    def tick(self, now: Micros, is_deaf: bool, archive: Archive) -> Decision:
        """What the passing of time comes to: silences, composites whose holds and windows end, and holds that begin and
        end."""
        transitions, update = self.engine.tick(now, is_deaf)
        docket = self.docket(now)
        for transition in transitions:
            docket.judge(transition)
        # While we do not hear, a silent sensor may have much to say yet.
        clock = None if is_deaf else Clock(now, self.state.heard_at, self.judged_at)
        findings, composed = self.engine.compose(clock=clock)
        self._find(docket, findings, archive)
        decision = self.decision_of(docket, now if self.holds.is_due(now) else None)
        decision.updates += [update, composed]
        if decision.checked_at is not None and decision.outcome.is_empty:
            self.holds.checked(now)  # nothing to commit, and nothing to tell
        return decision

    # Commands

    def docket(self, now: Micros) -> Docket:
        """An empty docket over the alerts that stand."""
        return Docket(self.book, self.rules, self.rules_version, self.catalog, now, self.holds)

    def decision_of(self, docket: Docket, checked_at: Micros | None = None) -> Decision:
        """A decision that changes alerts and holds only. `checked_at`: with what time alone has changed up to then."""
        docket.settle(is_due=checked_at is not None)
        outcome = Outcome(
            Readings.empty(), Counts(), alerts=docket.alerts, events=docket.events, holds=docket.holds
        )  # fmt: skip
        return Decision(outcome, checked_at=checked_at)

    # Starting again

    def snapshot(self, batch: int, now: Micros) -> Snapshot:
        self.engine.composites.prune(self.judged_at, self.lateness)
        return Snapshot(batch, now, self.judged_at.copy(), self.engine.snapshot())

    def _grow(self, size: int) -> None:
        self.judged_at = np.append(self.judged_at, np.zeros(max(0, size - len(self.judged_at)), np.int64))

    def keep_snapshot(self, snapshot: Snapshot) -> None:
        """Add a snapshot and thin the older ones: about one for each doubling of age, and one older than the lateness,
        so that their number stays small while any late reading has one not much older than itself."""
        kept: list[Snapshot] = [snapshot]
        taken: set[int] = set()
        for earlier in reversed(self.snapshots):
            age = max(1, snapshot.taken_at - earlier.taken_at)
            is_beyond = kept[-1] is not snapshot and snapshot.taken_at - kept[-1].taken_at > self.lateness
            if is_beyond:
                break
            # Of each doubling of age the oldest: it grows older into the next one.
            if age.bit_length() in taken and earlier is not self.snapshots[0]:
                kept.pop()
            taken.add(age.bit_length())
            kept.append(earlier)
        self.snapshots = kept[::-1]

    def recover(self, tail: Readings, archive: Archive) -> None:
        """Bring the engine from the newest snapshot to the present by judging the readings that came since again. What
        they caused was committed with them, so nothing is told; and what was told is what stands."""
        self._grow(len(self.catalog))
        if self.snapshots:
            newest = self.snapshots[-1].observed_at[: len(self.judged_at)]
            self.judged_at[: len(newest)] = newest
            outdated = self.judged_at == OUTDATED
            self.judged_at[outdated] = self.state.observed_at[outdated]
        before = self.judged_at.copy()
        np.maximum.at(self.judged_at, tail.sensor, tail.observed_at)
        order = np.argsort(tail.received_at, kind="stable")
        sensor, received_at = tail.sensor[order], tail.received_at[order]
        self.engine.apply(self.engine.heard(sensor, received_at, self.engine.known_gateway(sensor))[1])
        in_time = tail.take(tail.observed_at >= before[tail.sensor] - self.lateness)
        if len(in_time):
            redo = np.unique(in_time.sensor)
            first = np.full(len(redo), np.iinfo(np.int64).max)
            np.minimum.at(first, np.searchsorted(redo, in_time.sensor), in_time.observed_at)
            pick, after = self._bases(redo, first)
            self._outdate(redo, np.maximum(first, after + 1))
            small = self.engine.fork(redo, [snapshot.engine for snapshot in self.snapshots], pick)
            known = archive.history(redo, after)
            known = known.take(known.judgeable()).in_order()
            _, update = small.observe(known)
            small.apply(update)
            self.engine.apply(self.engine.merge(small))
            again = Redone(self._followed(redo, after), update.steps)
            self.engine.apply(self.engine.compose((), again)[1])
            self._recover_groups(in_time.take(in_time.judgeable()), archive)
        active = [alert for alert in self.book.open.values() if alert.state.is_active]
        self.engine.settle(active)
        # A watch whose limits changed while nothing ran has no state: it goes on from what was told.
        rule, sensor, _ = self.engine.levels()
        names = [known.id for known in self.rules.rules]
        told = {(names[r], s) for r, s in zip(rule.tolist(), sensor.tolist(), strict=True)}
        self.engine.open(alert for alert in active if (alert.rule, alert.sensor_index) not in told)
        composites = self.engine.composites
        composites.align(*self.engine.levels(), self.judged_at)
        rules, since = composites.needs()
        if rules:
            composites.settle(archive.course([], rules, since))

    def _recover_groups(self, tail: Readings, archive: Archive) -> None:
        late = self.engine.groups_with(tail.sensor, tail.observed_at)
        again: dict[Group, Micros] = {}
        for base, groups in self._group_bases(late).items():
            small, through, known = self._groups_from(base, groups, late, Readings.empty(), archive)
            again |= {g: max(min(late[g].values()), through[g] + 1) for g in groups}
            _, update = small.observe(known)
            small.apply(update)
            self.engine.apply(self.engine.merge(small))
            members = self.engine.composites.members
            after = {watch: through[g] for g in groups if members[(watch := self.engine.watch_of(g))[0]]}
            self.engine.apply(self.engine.compose((), Redone(after, update.steps))[1])
        self._outdate_groups(again)  # not before all were begun from their snapshots


def _announced(blocks: list[WaveformBlock]) -> Readings:
    """That the sensors of these blocks were heard."""
    count = len(blocks)
    return Readings(
        np.array([b.sensor for b in blocks], np.int32),
        np.array([b.started_at for b in blocks], np.int64),
        np.array([b.received_at for b in blocks], np.int64),
        np.full(count, np.nan),
        np.zeros(count, np.uint8),
    )


def _firsts(events: Iterable[AlertEvent]) -> list[AlertEvent]:
    """The first event of each alert."""
    first: dict[str, AlertEvent] = {}
    for event in events:
        first.setdefault(event.alert_id, event)
    return list(first.values())


def _one_a_reason(rejects: Sequence[Reject]) -> list[Reject]:
    """The rejects of a message for one reason as one: quarantine keeps one row for them."""
    merged: dict[tuple[int, Reason], Reject] = {}
    for reject in rejects:
        same = merged.setdefault((reject.message, reject.reason), reject)
        if same is not reject:
            positions = tuple(sorted({*same.positions, *reject.positions}))
            detail = same.detail if len(same.detail) > 200 else f"{same.detail}; {reject.detail}"
            device = same.device if same.device == reject.device else None
            merged[reject.message, reject.reason] = replace(same, positions=positions, detail=detail, device=device)
    return list(merged.values())


def _refusal(reject: Reject, message: RawMessage) -> Refusal:
    parts = message.topic.split("/")
    tenant = parts[2] if len(parts) > 2 and parts[:2] == ["cim", "v1"] else None
    device = reject.device or (parts[3] if tenant is not None and len(parts) > 3 and parts[3] != "gateway" else None)
    return Refusal(
        message.topic, message.payload, reject.reason, reject.detail, tenant, device, reject.positions,
        message.received_at, left_out=message.left_out,
    )  # fmt: skip
