"""The life of an alert: states and transitions of ISA-18.2 (IEC 62682), from detectors' verdicts and people's actions.

Pure: `Docket` decides over the alerts that stand and collects what changes; nothing stands until `AlertBook.apply`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from alerts.composition import Composition
from alerts.holds import (
    FLAG_OF,
    INHIBITED,
    POINT_KINDS,
    SUPPRESSED_BY,
    TOLD,
    Holds,
    Labels,
    Matchers,
    SourceChange,
    labels_of,
    point,
)
from alerts.rules import Rule, RuleSet
from alerts.words import message
from twin.catalog import Catalog
from twin.model import (
    Alert,
    AlertEvent,
    AlertState,
    Conflict,
    Hold,
    Level,
    Micros,
    Problem,
    Refused,
    Transition,
    alert_id,
    iso,
    parse_time,
)

JUDGEMENTS: Final = ("raised", "escalated", "deescalated", "cleared")
# What people and the passing of time do to an alert: replays tell it as it was recorded.
DEEDS: Final = frozenset(
    (
        "acknowledged",
        "assigned",
        "noted",
        "confirmed",
        "false_alarm",
        "closed",
        *(w for pair in TOLD.values() for w in pair),
    )
)
# In the order in which an alert names them. `latched`: it has cleared and is acknowledged, and waits to be closed.
FLAGS: Final = ("withdrawn", "shelved", "suppressed", "out_of_service", "chattering", "latched")

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
            alert, level=event.level, peak_level=event.level, state=AlertState.ACTIVE_UNACKNOWLEDGED,
            flags=event.flags, raised_at=event.observed_at, cleared_at=None, value=event.value, peak_value=event.value,
            threshold=event.threshold, message_zh=event.message_zh, message_en=event.message_en,
            rule_version=event.rule_version, assignee=None, verdict=None, suppressed_by=(), shelved_until=None,
        )  # fmt: skip
    if standing is None:
        return None
    latches = "latched" in event.flags
    if event.transition in DEEDS:
        standing = replace(standing, flags=event.flags, **_detailed(event.detail or {}))
    if event.transition == "acknowledged":
        return replace(standing, state=_after_acknowledge(standing, latches)[0])
    if event.transition == "closed":
        return replace(standing, state=AlertState.CLEARED, cleared_at=standing.cleared_at or event.observed_at)
    if event.transition not in JUDGEMENTS:
        return standing
    state, cleared_at = standing.state, standing.cleared_at
    if event.transition == "cleared":
        cleared_at = event.observed_at
        if state.is_active:
            state, flags = _after_clear(standing, latches)
            standing = replace(standing, flags=flags)
    elif event.transition == "escalated":
        state = AlertState.ACTIVE_UNACKNOWLEDGED
    return replace(
        standing, level=event.level, peak_level=max(standing.peak_level, event.level), state=state,
        cleared_at=cleared_at, value=event.value, threshold=event.threshold, message_zh=event.message_zh,
        message_en=event.message_en, rule_version=event.rule_version,
    )  # fmt: skip


def _after_clear(alert: Alert, latches: bool) -> tuple[AlertState, tuple[str, ...]]:
    """State and flags of an active alert once its condition has ended. One of a rule that `latches` stays open until
    somebody closes it, also where it was acknowledged."""
    state = _AFTER_CLEAR[alert.state]
    if latches and state is AlertState.CLEARED:
        return AlertState.CLEARED_UNACKNOWLEDGED, with_flags(alert.flags, ("latched",))
    return state, alert.flags


def _after_acknowledge(alert: Alert, latches: bool) -> tuple[AlertState, tuple[str, ...]]:
    """State and flags of an alert once it is acknowledged."""
    state = _AFTER_ACKNOWLEDGE.get(alert.state, alert.state)
    if latches and state is AlertState.CLEARED and alert.state is not AlertState.CLEARED:
        return alert.state, with_flags(alert.flags, ("latched",))
    return state, alert.flags


def with_flags(flags: Iterable[str], more: Iterable[str] = (), without: Iterable[str] = ()) -> tuple[str, ...]:
    """Flags with some more and without others, each once, in their order."""
    kept = {*flags, *more}.difference(without)
    return tuple(flag for flag in FLAGS if flag in kept)


def is_seen_to(alert: Alert) -> bool:
    """Whether somebody has acknowledged it, or it needs nobody any more."""
    return alert.state in (AlertState.ACTIVE_ACKNOWLEDGED, AlertState.CLEARED) or "latched" in alert.flags


_DETAILS: Final = ("assignee", "verdict", "suppressed_by", "shelved_until")


def _detail(alert: Alert, *names: str) -> dict[str, Any]:
    """Fields of an alert as its events carry them."""
    given = {name: getattr(alert, name) for name in names}
    if "shelved_until" in given:
        given["shelved_until"] = iso(alert.shelved_until)
    if "suppressed_by" in given:
        given["suppressed_by"] = list(alert.suppressed_by)
    return given


def _detailed(detail: Mapping[str, Any]) -> dict[str, Any]:
    """The other way round."""
    given = {name: detail[name] for name in _DETAILS if name in detail}
    if given.get("shelved_until") is not None:
        given["shelved_until"] = parse_time(given["shelved_until"])
    if "suppressed_by" in given:
        given["suppressed_by"] = tuple(given["suppressed_by"])
    return given


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
    """What one batch changes: alerts as they will stand (`alerts`), the events that tell of it (`events`), and holds
    that people began or ended (`holds`). What holds back is applied by `settle`, once all else is decided."""

    def __init__(
        self,
        book: AlertBook,
        rules: RuleSet,
        version: int,
        catalog: Catalog,
        now: Micros,
        held: Holds | None = None,
    ) -> None:
        self._book = book
        self._rules = rules
        self._version = version
        self._catalog = catalog
        self._now = now
        self._changed: dict[str, Alert] = {}
        self._active: dict[tuple[str, str], Alert | None] = {}
        self._loaded: dict[str, Alert] = {}
        self._held = Holds(catalog) if held is None else held
        self._touched: set[str] = set()  # by people: looked at by `settle` also where they are closed
        self.events: list[AlertEvent] = []
        self.holds: list[Hold] = []

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
            tenant=sensor.tenant if sensor else t.site.tenant if t.site else _tenant(subject),
            domain=t.site.domain if t.site else _domain(catalog, sensor.kind if sensor else None, subject),
            level=t.after, peak_level=t.after, state=AlertState.ACTIVE_UNACKNOWLEDGED, since=t.since,
            raised_at=t.observed_at,
            value=_known(t.value), peak_value=_worse(rule, None, t), threshold=_known(t.threshold),
            lon=sensor.lon if sensor else t.site.lon if t.site else None,
            lat=sensor.lat if sensor else t.site.lat if t.site else None, place=place, message_zh=zh, message_en=en,
            instruction_zh=rule.instruction.zh, instruction_en=rule.instruction.en,
        )  # fmt: skip
        before = self.find(id_) if is_retroactive else None
        if before is not None:  # late data raises it anew: what people did about it, and what holds it, stays
            alert = replace(
                alert, flags=with_flags(before.flags, without=("withdrawn", "latched")), assignee=before.assignee,
                verdict=before.verdict, suppressed_by=before.suppressed_by, shelved_until=before.shelved_until,
            )  # fmt: skip
        self._tell(alert, "raised", Level.NONE, t, is_retroactive)
        return self._put(alert)

    def _clear(self, alert: Alert, rule: Rule, t: Transition, is_retroactive: bool) -> Alert:
        zh, en = message(rule, self._catalog, t, alert.place or subject_of(alert))
        state, flags = _after_clear(alert, rule.latch)
        alert = replace(
            alert, state=state, flags=flags, cleared_at=t.observed_at, value=_known(t.value),
            peak_value=_worse(rule, alert.peak_value, t), message_zh=zh, message_en=en,
        )  # fmt: skip
        self._tell(alert, "cleared", alert.level, t, is_retroactive)
        return self._put(alert)

    def _tell(self, alert: Alert, transition: str, previous: int, t: Transition, is_retroactive: bool) -> None:
        # What is told again after it was taken back must be another event. Of composites any of it may be.
        is_composed = isinstance(self._rules.rules[t.rule].parameters, Composition)
        salt = str(self._now) if is_retroactive or is_composed else ""
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
        detail: Mapping[str, Any] | None = None,
    ) -> AlertEvent:
        text = f"{alert.id}\0{transition}\0{observed_at}\0{alert.level}\0{salt}"
        return AlertEvent(
            id=hashlib.blake2b(text.encode(), digest_size=10).hexdigest(), alert_id=alert.id, rule=alert.rule,
            rule_version=alert.rule_version, sensor=alert.sensor, sensor_index=alert.sensor_index, asset=alert.asset,
            tenant=alert.tenant, domain=alert.domain, level=alert.level, previous_level=previous, state=alert.state,
            transition=transition, value=value, threshold=threshold, observed_at=observed_at, at=self._now,
            lon=alert.lon, lat=alert.lat, message_zh=alert.message_zh, message_en=alert.message_en,
            is_retroactive=is_retroactive, replaces=replaces, by=by, note=note, flags=alert.flags, detail=detail,
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
            subject = t.subject if t.subject is not None else self._catalog.sensors[t.sensor].id
            key = (rule.id, subject)
            if t.before == Level.NONE:
                open_id[key] = alert_id(rule.id, subject, t.observed_at)
            same = told.get((open_id.get(key, ""), t.observed_at, _transition_word(t), t.after))
            # An alert that clears from another level than was told clears by another event.
            is_same = same is not None and (t.after > Level.NONE or same.level == t.before)
            if same is not None and is_same and (same.value, same.threshold) == (_known(t.value), _known(t.threshold)):
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
        self._keep_what_people_said(seen, withdrawn)
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
            if is_seen_to(alert):
                acknowledged[id_] = alert.peak_level
            if base.get((alert.rule, subject_of(alert))) == id_:
                state = alert.state if alert.state.is_active else _REOPENED[alert.state]
                if "latched" in alert.flags:
                    state = AlertState.ACTIVE_ACKNOWLEDGED
                level = event.previous_level if event.transition != "cleared" else event.level
                flags = with_flags(alert.flags, without=("latched",))
                self._put(replace(alert, state=state, level=level, flags=flags, cleared_at=None))
            else:
                self._put(
                    replace(
                        alert, state=AlertState.CLEARED, flags=with_flags(alert.flags, ("withdrawn",), ("latched",)),
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
                state, flags = _after_acknowledge(alert, self._latches(alert))
                self._put(replace(alert, state=state, flags=flags))

    def _keep_what_people_said(self, seen: set[str], withdrawn: set[str]) -> None:
        """Whose it is and what it was found to be goes over to the alert that late data put in its place."""
        said: dict[tuple[str, str], Alert] = {}
        for id_ in sorted(withdrawn):
            alert = self._changed.get(id_)
            if alert is not None and "withdrawn" in alert.flags and (alert.assignee or alert.verdict):
                said[alert.rule, subject_of(alert)] = alert
        for id_ in seen:
            alert = self._changed[id_]
            before = said.get((alert.rule, subject_of(alert)))
            if before is not None and alert.assignee is None and alert.verdict is None:
                self._put(replace(alert, assignee=before.assignee, verdict=before.verdict))

    # People

    def acknowledge(self, alert: Alert, by: str | None, note: str | None) -> Alert:
        """Somebody has seen it. Raises `Conflict` where there is nothing to acknowledge."""
        if alert.state not in _AFTER_ACKNOWLEDGE or "latched" in alert.flags:
            raise Conflict(f"the alert is acknowledged already ({alert.state.value}) / 报警已确认")
        state, flags = _after_acknowledge(alert, self._latches(alert))
        return self._act(replace(alert, state=state, flags=flags), "acknowledged", by, note)

    def assign(self, alert: Alert, to: str, by: str | None, note: str | None) -> Alert:
        """It is somebody's to see to. Raises `Conflict` where it is closed."""
        self._check_open(alert)
        alert = replace(alert, assignee=to)
        return self._act(alert, "assigned", by, note, _detail(alert, "assignee"))

    def note(self, alert: Alert, by: str | None, note: str | None) -> Alert:
        """Add a remark; the state stays."""
        return self._act(alert, "noted", by, note)

    def judge_by_people(self, alert: Alert, verdict: str, by: str | None, note: str | None) -> Alert:
        """People found it to be real (`confirmed`) or a `false_alarm`, now or after it has closed; the state stays.
        Raises `Conflict` where that is known, or late data took the alert back."""
        if "withdrawn" in alert.flags:
            raise Conflict("late readings took this alert back / 该报警已因迟到数据撤回")
        if alert.verdict == verdict:
            raise Conflict(f"the alert is {verdict} already / 报警已标记为 {verdict}")
        alert = replace(alert, verdict=verdict)
        return self._act(alert, verdict, by, note, _detail(alert, "verdict"))

    def close(self, alert: Alert, by: str | None, note: str | None, because_removed: bool = False) -> Alert:
        """End it. Raises `Conflict` while it is active, unless its rule was removed."""
        if alert.state.is_active and not because_removed:
            raise Conflict("the alert is active; it can be closed once it has cleared / 报警仍处于活动状态,不能关闭")
        if alert.state is AlertState.CLEARED:
            raise Conflict("the alert is closed already / 报警已关闭")
        cleared_at = alert.cleared_at if alert.cleared_at is not None else self._now
        flags = with_flags(alert.flags, without=("latched",))
        alert = replace(alert, state=AlertState.CLEARED, flags=flags, cleared_at=cleared_at)
        return self._act(alert, "closed", by, note)

    def hold_point(self, alert: Alert, kind: str, until: Micros | None, by: str | None, note: str | None) -> None:
        """Shelve the alert's point (rule and subject) or take it out of service, until then or for good: this alert,
        and all that are raised on it meanwhile. Raises `Conflict` where it is closed, or held so already."""
        self._check_open(alert)
        if self._on_point(alert, kind):
            raise Conflict(f"the alert is {FLAG_OF[kind]} already / 报警已处于 {FLAG_OF[kind]}")
        matchers = point(alert.rule, subject_of(alert))
        self.begin_hold(Hold("", kind, matchers, self._now, until, None, by, note))
        self._touch(alert)

    def release_point(self, alert: Alert, kind: str, by: str | None, note: str | None) -> None:
        """End what `hold_point` began. Raises `Conflict` where the point is not held so."""
        found = self._on_point(alert, kind)
        if not found:
            raise Conflict(f"the alert is not {FLAG_OF[kind]} / 报警未处于 {FLAG_OF[kind]}")
        for hold in found:
            self.end_hold(hold, by, note)
        self._touch(alert)

    def begin_hold(self, hold: Hold) -> Hold:
        """Hold back what fits; the hold with the id that it got. Raises `Conflict` where there are too many, `Refused`
        where its end has passed."""
        if hold.ends_at is not None and hold.ends_at <= self._now:
            raise Refused([Problem("until", "", f"must lie ahead of now ({iso(self._now)}) / 必须晚于当前时刻")])
        if self._held.is_full:
            raise Conflict("too many holds stand: end some / 生效中的抑制过多，请先结束一些")
        text = repr((hold, self._now, len(self.holds), len(self._held.standing)))
        id_ = hashlib.blake2b(text.encode(), digest_size=10).hexdigest()
        self.holds.append(replace(hold, id=id_, created_at=self._now))
        return self.holds[-1]

    def end_hold(self, hold: Hold, by: str | None, note: str | None) -> Hold:
        """Raises `Conflict` where it has ended."""
        if hold.ended_at is not None or (hold.ends_at is not None and hold.ends_at <= self._now):
            raise Conflict("it has ended already / 已结束")
        ended = replace(hold, ended_at=self._now, ended_by=by, end_note=note)
        self.holds.append(ended)
        return ended

    def _on_point(self, alert: Alert, kind: str) -> list[Hold]:
        return self._held.on_point(kind, alert.rule, subject_of(alert), self._now)

    def _check_open(self, alert: Alert) -> None:
        if alert.state is AlertState.CLEARED:
            raise Conflict("the alert is closed / 报警已关闭")

    def _latches(self, alert: Alert) -> bool:
        rule = self._rules.by_id.get(alert.rule)
        return rule is not None and rule.latch

    def _touch(self, alert: Alert) -> Alert:
        self._touched.add(alert.id)
        return self._put(alert)

    def _act(
        self, alert: Alert, transition: str, by: str | None, note: str | None, detail: Mapping[str, Any] | None = None
    ) -> Alert:
        self.events.append(
            self._event(
                alert, transition, alert.level, self._now, str(len(self.events)), value=alert.value,
                threshold=alert.threshold, by=by, note=note, detail=detail,
            )
        )  # fmt: skip
        return self._put(alert)

    # What holds alerts back

    def settle(self, is_due: bool = False) -> None:
        """Give alerts the flags that holds, inhibition and chatter come to, tell each change, and give all events the
        flags that their alerts end up with, so that nobody is told of an alert that is held back from its raise on.
        `is_due`: also what time alone has changed."""
        if (self.holds or self._changed or is_due) and (self.holds or not self._held.is_idle):
            told: dict[str, tuple[str, ...]] = {}  # by alert, the flags it was last said to have
            self._hold_back(told, is_due)
            self._explain(told, is_due)
            for id_, flags in told.items():
                self._tell_flags(flags, self._changed[id_])
        for n, event in enumerate(self.events):
            alert = self._changed.get(event.alert_id)
            if alert is not None and alert.flags != event.flags:
                self.events[n] = replace(event, flags=alert.flags)

    def _reflag(
        self,
        told: dict[str, tuple[str, ...]],
        alert: Alert,
        flags: tuple[str, ...],
        reasons: Sequence[str],
        until: Micros | None,
    ) -> None:
        by = tuple(reasons)
        if (flags, by, until) != (alert.flags, alert.suppressed_by, alert.shelved_until):
            told.setdefault(alert.id, alert.flags)
            self._put(replace(alert, flags=flags, suppressed_by=by, shelved_until=until))

    def _hold_back(self, told: dict[str, tuple[str, ...]], is_due: bool) -> None:
        """Apply holds and chatter damping to what changed here, and to what they have changed for."""
        held = self._held
        points: dict[tuple[str, str], list[Alert]] = {}
        for alert in self._changed.values():
            if alert.rule in held.chatters:
                points.setdefault((alert.rule, subject_of(alert)), []).append(alert)
        concerned = [a for a in self.alerts if a.state is not AlertState.CLEARED or a.id in self._touched]
        concerned += self._concerned(is_due)
        for alert in concerned:
            holding = self._holding(alert)
            flags = {FLAG_OF[hold.kind] for hold in holding}
            reasons = [f"{hold.kind}:{hold.id}" for hold in holding if FLAG_OF[hold.kind] == "suppressed"]
            reasons = reasons[:SUPPRESSED_BY] + [word for word in alert.suppressed_by if word.startswith(INHIBITED)]
            until = max((h.ends_at for h in holding if h.kind == "shelve" and h.ends_at is not None), default=None)
            if "chattering" in alert.flags:
                chatters = not held.is_steady(alert, self._now)
            else:
                is_new = alert.state.is_active and alert.id not in self._book.open
                chatters = is_new and held.is_chatter(alert, points.get((alert.rule, subject_of(alert)), ()))
            flags |= {flag for flag, is_on in (("suppressed", reasons), ("chattering", chatters)) if is_on}
            after = with_flags((f for f in alert.flags if f not in TOLD), flags) if flags or alert.flags else ()
            self._reflag(told, alert, after, reasons, until)

    def _concerned(self, is_due: bool) -> list[Alert]:
        """The open alerts, not yet changed here, on which holds that changed, or time, bear."""
        held = self._held
        is_all = is_due and held.is_stale
        changed = [*self.holds, *(held.changed(self._now) if is_due else ())]
        steady = {alert.id for alert in held.became_steady(self._now)} if is_due else set()
        if not changed and not steady and not is_all:
            return []
        others = [alert for alert in self._book.open.values() if alert.id not in self._changed]
        if is_all:
            return others
        subjects = {hold.matchers["subject"][0] for hold in changed if hold.kind in POINT_KINDS}
        matchers = [Matchers(hold.matchers) for hold in changed if hold.kind not in POINT_KINDS]
        return [
            alert
            for alert in others
            if alert.id in steady
            or subject_of(alert) in subjects
            or (matchers and _fits_any(matchers, labels_of(alert, self._catalog)))
        ]

    def _holding(self, alert: Alert) -> list[Hold]:
        """The holds that hold an alert back now, those begun and ended here taken into account."""
        if not (self.holds or self._held.standing):
            return []
        labels = labels_of(alert, self._catalog)
        own = {hold.id: hold for hold in self.holds}
        found = [hold for hold in self._held.of(labels, self._now) if hold.id not in own]
        return found + [
            h for h in own.values() if self._held.is_active(h, self._now) and Matchers(h.matchers).fits(labels)
        ]

    def _explain(self, told: dict[str, tuple[str, ...]], is_due: bool) -> None:
        """Apply inhibition to what changed here, and to the targets of sources that came or went."""
        held = self._held
        is_all = is_due and held.is_stale
        if not (held.inhibits or is_all):
            return
        concerned = dict(self._changed)
        labels = {alert.id: labels_of(alert, self._catalog) for alert in concerned.values()}
        change = SourceChange([], set(), labels)
        for n, targets in enumerate(held.targets):
            before = {id_ for id_ in self._changed if held.has_source(n, id_)}
            now_ = [id_ for id_, alert in self._changed.items() if held.is_source(n, alert, labels[id_])]
            change.come.append([self._changed[id_] for id_ in now_ if id_ not in before])
            change.gone.update((n, id_) for id_ in before.difference(now_))
            if before.symmetric_difference(now_) or (is_due and held.may_reach_otherwise(n, self._now)):
                concerned |= {id_: self._changed.get(id_, alert) for id_, alert in targets.items()}
        if is_all:
            concerned |= {id_: self._changed.get(id_, alert) for id_, alert in self._book.open.items()}
        for alert in concerned.values():
            if alert.state is AlertState.CLEARED:
                continue
            reasons = [word for word in alert.suppressed_by if not word.startswith(INHIBITED)]
            reasons += [f"{INHIBITED}{id_}" for id_ in held.inhibited(alert, change)]
            if reasons or alert.suppressed_by:
                flags = with_flags(alert.flags, ["suppressed"] if reasons else (), () if reasons else ["suppressed"])
                self._reflag(told, alert, flags, reasons, alert.shelved_until)

    def _tell_flags(self, told: tuple[str, ...], alert: Alert) -> None:
        """An event for each flag that an alert has gained or lost since it was last spoken of."""
        for flag, (begun, ended) in TOLD.items():
            has = flag in alert.flags
            if has is (flag in told):
                continue
            detail, by, note = None, None, None
            if has:
                hold = next((h for h in self._holding(alert) if FLAG_OF[h.kind] == flag), None)
                by, note = (hold.by, hold.note) if hold is not None else (None, None)
            else:
                hold = next((h for h in self.holds if h.ended_at is not None and FLAG_OF[h.kind] == flag), None)
                by, note = (hold.ended_by, hold.end_note) if hold is not None else (None, None)
            if flag in ("shelved", "suppressed"):
                detail = _detail(alert, "shelved_until" if flag == "shelved" else "suppressed_by")
            # Never before its raise, which a clock that is ahead may have dated later: replays tell them in this order.
            at, salt = max(self._now, alert.raised_at), f"{self._now}.{len(self.events)}"
            self.events.append(
                self._event(
                    alert, begun if has else ended, alert.level, at, salt, value=alert.value,
                    threshold=alert.threshold, by=by, note=note, detail=detail,
                )
            )  # fmt: skip


def _fits_any(matchers: Iterable[Matchers], labels: Labels) -> bool:
    return any(one.fits(labels) for one in matchers)


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
    if rule.detector == "rate" or rule.side == "either":
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
