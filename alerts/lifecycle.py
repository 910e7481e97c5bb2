"""The life of an alert: states and transitions of ISA-18.2 (IEC 62682), from detectors' verdicts and people's actions.

Pure: `Docket` decides over the alerts that stand and collects what changes; nothing stands until `AlertBook.apply`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from alerts.rules import Rule, RuleSet
from alerts.words import message
from twin.catalog import Catalog
from twin.model import (
    Alert,
    AlertEvent,
    AlertState,
    Conflict,
    Level,
    Micros,
    Transition,
    alert_id,
)

JUDGEMENTS: Final = ("raised", "escalated", "deescalated", "cleared")

_AFTER_CLEAR: Final = {
    AlertState.ACTIVE_UNACKNOWLEDGED: AlertState.CLEARED_UNACKNOWLEDGED,
    AlertState.ACTIVE_ACKNOWLEDGED: AlertState.CLEARED,
}
_AFTER_ACKNOWLEDGE: Final = {
    AlertState.ACTIVE_UNACKNOWLEDGED: AlertState.ACTIVE_ACKNOWLEDGED,
    AlertState.CLEARED_UNACKNOWLEDGED: AlertState.CLEARED,
}
# Late data can show that what was told cleared had not: the state it would then have.
_REOPENED: Final = {
    AlertState.CLEARED_UNACKNOWLEDGED: AlertState.ACTIVE_UNACKNOWLEDGED,
    AlertState.CLEARED: AlertState.ACTIVE_ACKNOWLEDGED,
}

_DIGEST_MASK: Final = (1 << 128) - 1


class AlertBook:
    """The open alerts (all but `cleared`) by id, and the active ones by rule and subject."""

    def __init__(self, alerts: Iterable[Alert] = ()) -> None:
        self.open: dict[str, Alert] = {}
        self.active: dict[tuple[str, str], Alert] = {}
        self.apply(alerts)

    def apply(self, alerts: Iterable[Alert]) -> None:
        """Take in alerts as they now stand."""
        for alert in alerts:
            key = (alert.rule, subject_of(alert))
            if alert.state.is_active:
                self.active[key] = alert
            elif key in self.active and self.active[key].id == alert.id:
                del self.active[key]
            if alert.state is AlertState.CLEARED:
                self.open.pop(alert.id, None)
            else:
                self.open[alert.id] = alert


def listed(alerts: Iterable[Alert]) -> list[Alert]:
    """As the night shift wants them: active before cleared, worst first, newest first."""
    return sorted(alerts, key=lambda a: (not a.state.is_active, -a.level, -a.raised_at, a.id))


def subject_of(alert: Alert) -> str:
    """What the alert is on: its sensor, or the group its asset field names."""
    return alert.sensor if alert.sensor is not None else alert.asset or ""


def surviving(events: Sequence[AlertEvent]) -> list[AlertEvent]:
    """What still counts of events in the order they were told: neither what late data took back, nor the taking
    back."""
    replaced = {event.replaces for event in events if event.transition == "withdrawn"}
    return [event for event in events if event.transition != "withdrawn" and event.id not in replaced]


def as_of(alert: Alert, events: Iterable[AlertEvent]) -> Alert | None:
    """The alert as these of its events, in the order of their event times, left it; None before it was raised."""
    standing: Alert | None = None
    for event in events:
        standing = follow(standing, event, alert)
    return standing


def follow(standing: Alert | None, event: AlertEvent, alert: Alert) -> Alert | None:
    """How an alert stands after one more of its recorded events; `alert` has what does not change with events."""
    if event.transition == "raised":
        return replace(
            alert, level=event.level, peak_level=event.level, state=AlertState.ACTIVE_UNACKNOWLEDGED, flags=(),
            raised_at=event.observed_at, cleared_at=None, value=event.value, peak_value=event.value,
            threshold=event.threshold, message_zh=event.message_zh, message_en=event.message_en,
            rule_version=event.rule_version,
        )  # fmt: skip
    if standing is None:
        return None
    if event.transition == "acknowledged":
        return replace(standing, state=_AFTER_ACKNOWLEDGE.get(standing.state, standing.state))
    if event.transition == "closed":
        return replace(standing, state=AlertState.CLEARED, cleared_at=standing.cleared_at or event.observed_at)
    if event.transition not in JUDGEMENTS:
        return standing
    state, cleared_at = standing.state, standing.cleared_at
    if event.transition == "cleared":
        state, cleared_at = _AFTER_CLEAR.get(state, state), event.observed_at
    elif event.transition == "escalated":
        state = AlertState.ACTIVE_UNACKNOWLEDGED
    return replace(
        standing, level=event.level, peak_level=max(standing.peak_level, event.level), state=state,
        cleared_at=cleared_at, value=event.value, threshold=event.threshold, message_zh=event.message_zh,
        message_en=event.message_en, rule_version=event.rule_version,
    )  # fmt: skip


class Digest:
    """A number for a set of alert events, equal for what contract 7 calls the same alert events: whatever their order,
    `seq` and `at`. The sum of a hash of each."""

    def __init__(self, total: int = 0, count: int = 0) -> None:
        self.total = total
        self.count = count

    def add(self, event: AlertEvent) -> None:
        told = (
            event.rule, event.sensor or event.asset or "", event.transition, int(event.level), event.observed_at,
            event.value, event.threshold,
        )  # fmt: skip
        digest = hashlib.blake2b(repr(told).encode(), digest_size=16).digest()
        self.total = (self.total + int.from_bytes(digest, "big")) & _DIGEST_MASK
        self.count += 1

    def copy(self) -> Digest:
        return Digest(self.total, self.count)

    def __str__(self) -> str:
        return f"{self.total:032x}"


class Docket:
    """What one batch changes: alerts as they will stand (`alerts`) and the events that tell of it (`events`)."""

    def __init__(self, book: AlertBook, rules: RuleSet, version: int, catalog: Catalog, now: Micros) -> None:
        self._book = book
        self._rules = rules
        self._version = version
        self._catalog = catalog
        self._now = now
        self._changed: dict[str, Alert] = {}
        self._active: dict[tuple[str, str], Alert | None] = {}
        self._loaded: dict[str, Alert] = {}
        self.events: list[AlertEvent] = []

    @property
    def alerts(self) -> list[Alert]:
        return list(self._changed.values())

    def load(self, alerts: Iterable[Alert]) -> None:
        """Make alerts that the book no longer holds (cleared ones) known, without changing them."""
        self._loaded.update((alert.id, alert) for alert in alerts if alert.id not in self._book.open)

    def find(self, alert_id_: str) -> Alert | None:
        """The alert as it would stand now."""
        return self._changed.get(alert_id_) or self._book.open.get(alert_id_) or self._loaded.get(alert_id_)

    def active(self, rule: str, subject: str) -> Alert | None:
        key = (rule, subject)
        return self._active[key] if key in self._active else self._book.active.get(key)

    def _put(self, alert: Alert) -> Alert:
        self._changed[alert.id] = alert
        key = (alert.rule, subject_of(alert))
        if alert.state.is_active:
            self._active[key] = alert
        else:
            standing = self.active(*key)
            if standing is not None and standing.id == alert.id:
                self._active[key] = None
        return alert

    # Verdicts

    def judge(self, t: Transition, is_retroactive: bool = False) -> Alert | None:
        """Take in a verdict. Returns the alert it concerns."""
        rule = self._rules.rules[t.rule]
        subject = t.subject if t.subject is not None else self._catalog.sensors[t.sensor].id
        alert = self.active(rule.id, subject)
        if t.after == Level.NONE:
            if alert is None:
                return None
            return self._clear(alert, rule, t, is_retroactive)
        if alert is None:
            return self._raise(rule, subject, t, is_retroactive)
        if t.after == alert.level:
            return alert  # a detector that starts from an older state says what stands already
        transition = "escalated" if t.after > alert.level else "deescalated"
        state = alert.state
        if t.after > alert.level:
            state = AlertState.ACTIVE_UNACKNOWLEDGED  # a worse level asks for attention again
        zh, en = message(rule, self._catalog, t, alert.place or subject)
        previous = alert.level
        alert = replace(
            alert, level=t.after, peak_level=max(alert.peak_level, t.after), state=state, value=_known(t.value),
            threshold=_known(t.threshold), peak_value=_worse(rule, alert.peak_value, t), message_zh=zh,
            message_en=en, rule_version=self._version,
        )  # fmt: skip
        self._tell(alert, transition, previous, t, is_retroactive)
        return self._put(alert)

    def _raise(self, rule: Rule, subject: str, t: Transition, is_retroactive: bool) -> Alert:
        catalog = self._catalog
        sensor = catalog.sensors[t.sensor] if t.subject is None else None
        place = (sensor.asset or sensor.device) if sensor else subject
        zh, en = message(rule, catalog, t, place)
        id_ = alert_id(rule.id, subject, t.observed_at)
        alert = Alert(
            id=id_, rule=rule.id, rule_version=self._version, sensor=sensor.id if sensor else None,
            sensor_index=t.sensor if sensor else -1, asset=sensor.asset if sensor else subject,
            tenant=sensor.tenant if sensor else _tenant(subject),
            domain=_domain(catalog, sensor.kind if sensor else None, subject),
            level=t.after, peak_level=t.after, state=AlertState.ACTIVE_UNACKNOWLEDGED, since=t.since,
            raised_at=t.observed_at,
            value=_known(t.value), peak_value=_worse(rule, None, t), threshold=_known(t.threshold),
            lon=sensor.lon if sensor else None, lat=sensor.lat if sensor else None, place=place, message_zh=zh,
            message_en=en, instruction_zh=rule.instruction.zh, instruction_en=rule.instruction.en,
        )  # fmt: skip
        self._tell(alert, "raised", Level.NONE, t, is_retroactive)
        return self._put(alert)

    def _clear(self, alert: Alert, rule: Rule, t: Transition, is_retroactive: bool) -> Alert:
        zh, en = message(rule, self._catalog, t, alert.place or subject_of(alert))
        alert = replace(
            alert, state=_AFTER_CLEAR[alert.state], cleared_at=t.observed_at, value=_known(t.value),
            peak_value=_worse(rule, alert.peak_value, t), message_zh=zh, message_en=en,
        )  # fmt: skip
        self._tell(alert, "cleared", alert.level, t, is_retroactive)
        return self._put(alert)

    def _tell(self, alert: Alert, transition: str, previous: int, t: Transition, is_retroactive: bool) -> None:
        salt = str(self._now) if is_retroactive else ""
        self.events.append(
            self._event(
                alert, transition, previous, t.observed_at, salt, value=_known(t.value),
                threshold=_known(t.threshold), is_retroactive=is_retroactive,
            )
        )  # fmt: skip

    def _event(
        self,
        alert: Alert,
        transition: str,
        previous: int,
        observed_at: Micros,
        salt: str = "",
        *,
        value: float | None = None,
        threshold: float | None = None,
        is_retroactive: bool = False,
        replaces: str | None = None,
        by: str | None = None,
        note: str | None = None,
    ) -> AlertEvent:
        text = f"{alert.id}\0{transition}\0{observed_at}\0{alert.level}\0{salt}"
        return AlertEvent(
            id=hashlib.blake2b(text.encode(), digest_size=10).hexdigest(), alert_id=alert.id, rule=alert.rule,
            rule_version=alert.rule_version, sensor=alert.sensor, sensor_index=alert.sensor_index, asset=alert.asset,
            tenant=alert.tenant, domain=alert.domain, level=alert.level, previous_level=previous, state=alert.state,
            transition=transition, value=value, threshold=threshold, observed_at=observed_at, at=self._now,
            lon=alert.lon, lat=alert.lat, message_zh=alert.message_zh, message_en=alert.message_en,
            is_retroactive=is_retroactive, replaces=replaces, by=by, note=note,
        )  # fmt: skip

    # Replays

    def retell(self, event: AlertEvent, alert: Alert | None) -> None:
        """Tell a recorded event that no reading causes (a person's action, a silence) again. `alert`, as recorded,
        serves where it is raised. Nothing is told of an alert that there is not."""
        standing = self.find(event.alert_id)
        known = alert or standing
        after = follow(standing, event, known) if known is not None else None
        if after is None:
            return
        self._put(after)
        self.events.append(replace(event, state=after.state, seq=0))

    # Late data

    def rejudge(
        self,
        base: dict[tuple[str, str], str],
        said: Sequence[AlertEvent],
        verdicts: Sequence[Transition],
        new_from: dict[int, Micros],
    ) -> None:
        """Replace what was said of some sensors since a moment by what should have been said.

        `base`: the alert (id) that stood active at that moment, by rule and subject; `said`: the judgements told
        since, in order; `verdicts`: those that the readings as now known give; `new_from`: by sensor
        index, the newest event time before this batch: verdicts after it are ordinary ones, not retroactive.
        """
        told = {_identity(e): e for e in said}
        due: list[Transition] = []
        kept: set[str] = set()
        open_id = dict(base)
        for t in verdicts:
            rule = self._rules.rules[t.rule]
            subject = self._catalog.sensors[t.sensor].id
            key = (rule.id, subject)
            if t.before == Level.NONE:
                open_id[key] = alert_id(rule.id, subject, t.observed_at)
            same = told.get((open_id.get(key, ""), t.observed_at, _transition_word(t), t.after))
            is_same = same is not None and (same.value, same.threshold) == (_known(t.value), _known(t.threshold))
            if same is not None and is_same and (t.after or same.level == t.before):  # a clear tells what it ended
                kept.add(same.id)
                # What still stands needs no telling, unless something before it changed; then the alert's course is
                # followed below all the same.
            due.append(t)
        wrong = [e for e in said if e.id not in kept]
        if not wrong and len(kept) == len(due):
            return
        acknowledged = self._rewind(base, said)
        first_new = len(self.events)
        withdrawn: set[str] = {e.alert_id for e in wrong if e.transition == "raised"}
        for event in wrong:
            alert = self.find(event.alert_id)
            if alert is not None:
                self.events.append(
                    self._event(
                        replace(alert, level=event.level), "withdrawn", event.level, event.observed_at,
                        f"{event.id}{self._now}", value=event.value, threshold=event.threshold, is_retroactive=True,
                        replaces=event.id,
                    )
                )  # fmt: skip
        seen: set[str] = set()
        worsened: set[str] = set()
        for t in due:
            before = len(self.events)
            alert = self.judge(t, is_retroactive=t.observed_at <= new_from.get(t.sensor, 0))
            if alert is None or len(self.events) == before:
                continue
            seen.add(alert.id)
            same = told.get(_identity(self.events[-1]))
            if same is not None and same.id in kept:
                self.events.pop()
            elif self.events[-1].transition == "escalated":
                worsened.add(alert.id)
        self._keep_acknowledged(acknowledged, seen - worsened, withdrawn)
        for n in range(first_new, len(self.events)):
            event = self.events[n]
            if (
                event.transition == "withdrawn"
                or self._changed[event.alert_id].state.is_active is event.state.is_active
            ):
                self.events[n] = replace(event, state=self._changed[event.alert_id].state)

    def _rewind(self, base: dict[tuple[str, str], str], said: Sequence[AlertEvent]) -> dict[str, int]:
        """Put the alerts of `said` back to how they stood at the base: those raised since are withdrawn until a verdict
        raises them again. Returns the ids of those that were acknowledged, with the worst level that they had had."""
        acknowledged = {}
        first: dict[str, AlertEvent] = {}
        for event in said:
            first.setdefault(event.alert_id, event)
        for id_, event in first.items():
            alert = self.find(id_)
            if alert is None:
                continue
            if alert.state in (AlertState.ACTIVE_ACKNOWLEDGED, AlertState.CLEARED):
                acknowledged[id_] = alert.peak_level
            if base.get((alert.rule, subject_of(alert))) == id_:
                state = alert.state if alert.state.is_active else _REOPENED[alert.state]
                level = event.previous_level if event.transition != "cleared" else event.level
                self._put(replace(alert, state=state, level=level, cleared_at=None))
            else:
                self._put(
                    replace(
                        alert, state=AlertState.CLEARED, flags=("withdrawn",),
                        cleared_at=alert.cleared_at or alert.raised_at,
                    )
                )  # fmt: skip
        return acknowledged

    def _keep_acknowledged(self, acknowledged: dict[str, int], seen: set[str], withdrawn: set[str]) -> None:
        """What somebody acknowledged stays acknowledged, also where late data gave the alert another beginning, but
        not where it has become worse than what was acknowledged."""
        worst: dict[tuple[str, str], int] = {}
        for id_ in acknowledged.keys() & withdrawn:
            if (alert := self._changed.get(id_)) is not None:
                key = alert.rule, subject_of(alert)
                worst[key] = max(acknowledged[id_], worst.get(key, 0))
        for id_ in seen:
            alert = self._changed[id_]
            known = acknowledged.get(id_, worst.get((alert.rule, subject_of(alert)), -1))
            if alert.level <= known and alert.state in _AFTER_ACKNOWLEDGE:
                self._put(replace(alert, state=_AFTER_ACKNOWLEDGE[alert.state]))

    # People

    def acknowledge(self, alert: Alert, by: str | None, note: str | None) -> Alert:
        """Somebody has seen it. Raises `Conflict` where there is nothing to acknowledge."""
        state = _AFTER_ACKNOWLEDGE.get(alert.state)
        if state is None:
            raise Conflict(f"the alert is {alert.state.value} already / 报警状态已是 {alert.state.value}")
        return self._act(replace(alert, state=state), "acknowledged", by, note)

    def note(self, alert: Alert, by: str | None, note: str | None) -> Alert:
        """Add a remark; the state stays."""
        return self._act(alert, "noted", by, note)

    def close(self, alert: Alert, by: str | None, note: str | None, because_removed: bool = False) -> Alert:
        """End it. Raises `Conflict` while it is active, unless its rule was removed."""
        if alert.state.is_active and not because_removed:
            raise Conflict("the alert is active; it can be closed once it has cleared / 报警仍处于活动状态,不能关闭")
        if alert.state is AlertState.CLEARED:
            raise Conflict("the alert is closed already / 报警已关闭")
        cleared_at = alert.cleared_at if alert.cleared_at is not None else self._now
        return self._act(replace(alert, state=AlertState.CLEARED, cleared_at=cleared_at), "closed", by, note)

    def _act(self, alert: Alert, transition: str, by: str | None, note: str | None) -> Alert:
        self.events.append(
            self._event(
                alert, transition, alert.level, self._now, str(len(self.events)), value=alert.value,
                threshold=alert.threshold, by=by, note=note,
            )
        )  # fmt: skip
        return self._put(alert)


def _identity(event: AlertEvent) -> tuple[str, Micros, str, int]:
    return event.alert_id, event.observed_at, event.transition, _told_level(event)


def _told_level(event: AlertEvent) -> int:
    """The level after the event, as a verdict has it: none once cleared."""
    return 0 if event.transition == "cleared" else event.level


def _transition_word(t: Transition) -> str:
    if t.before == Level.NONE:
        return "raised"
    if t.after == Level.NONE:
        return "cleared"
    return "escalated" if t.after > t.before else "deescalated"


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _worse(rule: Rule, before: float | None, t: Transition) -> float | None:
    """The extreme of an alert's peak so far and a transition's, in the rule's direction."""
    if (
        math.isnan(t.peak) or before is None or rule.detector in ("range", "anomaly")
    ):  # of two sides the detector knows which
        return before if math.isnan(t.peak) else t.peak
    if rule.detector == "rate":
        return max(before, t.peak, key=abs)
    return min(before, t.peak) if rule.side == "below" else max(before, t.peak)


def _tenant(subject: str) -> str:
    owner, _, rest = subject.partition("/")
    return owner if rest == "gateway" else ""


def _domain(catalog: Catalog, kind: str | None, subject: str) -> str:
    if kind is not None:
        return catalog.kinds[kind].domain
    owner, _, rest = subject.partition("/")
    return rest if owner == "domain" else "device"
