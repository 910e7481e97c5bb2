"""What holds alerts back: shelves, points out of service, silences, maintenance windows, mute times, suppression by
design, inhibition by other alerts, and chatter damping. Pure: which alert is held back at a moment, and by what.

A hold changes nothing of what readings cause. It sets flags, by the service's clock, and each change of a flag is an
event of its own. Whoever tells people about alerts leaves out those that have one of `HELD`.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final
from zoneinfo import ZoneInfo

from alerts.reach import Reach
from twin.catalog import Catalog
from twin.model import EPOCH, LEVELS, MINUTE, SECOND, Alert, AlertState, Hold, Level, Micros, Problem, iso

# The flag that each kind of hold sets. A shelf and being out of service are on an alert point (rule and subject); the
# others are on whatever fits.
FLAG_OF: Final = {
    "shelve": "shelved",
    "out_of_service": "out_of_service",
    "silence": "suppressed",
    "maintenance": "suppressed",
    "mute": "suppressed",
    "suppress": "suppressed",
}
POINT_KINDS: Final = ("shelve", "out_of_service")
HELD: Final = frozenset(("shelved", "suppressed", "out_of_service", "chattering"))
# By flag, how its beginning and its end are told.
TOLD: Final = {
    "shelved": ("shelved", "unshelved"),
    "suppressed": ("suppressed", "unsuppressed"),
    "out_of_service": ("out_of_service", "returned_to_service"),
    "chattering": ("chattering", "steady"),
}
LABELS: Final = ("rule", "domain", "tenant", "asset", "sensor", "subject", "device", "kind", "tag", "level")
EQUAL_LABELS: Final = tuple(label for label in LABELS if label not in ("tag", "level"))
ALONG: Final = ("upstream", "downstream", "both")
ZONE: Final = "Asia/Shanghai"
MOST_WORDS: Final = 1000
MOST_HOLDS: Final = 10_000  # standing at a time
SUPPRESSED_BY: Final = 5  # of what suppresses an alert, so many are named
INHIBITED: Final = "alert:"
LOOK_AGAIN: Final = 10 * SECOND  # at what is explained along networks: they change without telling

_HOURS: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)\s*-\s*(?:([01]\d|2[0-3]):([0-5]\d)|(24):(00))")
_DISTANCE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(m|km)")
_ZONE_OFFSET: Final = re.compile(r"([+-])(\d\d):([0-5]\d)")

Labels = Mapping[str, tuple[str, ...]]


# Matching


def labels_of(alert: Alert, catalog: Catalog) -> Labels:
    """What matchers look at. `subject` is what the alert is on: its sensor, or its group."""
    sensor = catalog.sensors[alert.sensor_index] if alert.sensor_index >= 0 else None
    return {
        "rule": (alert.rule,),
        "domain": (alert.domain,),
        "tenant": (alert.tenant,),
        "asset": (alert.asset,) if alert.asset else (),
        "sensor": (alert.sensor,) if alert.sensor else (),
        "subject": (alert.sensor or alert.asset or "",),
        "device": (sensor.device,) if sensor else (),
        "kind": (sensor.kind,) if sensor else (),
        "tag": sensor.tags if sensor else (),
        "level": (Level(alert.level).word,),
    }


class Matchers:
    """Conditions on an alert's labels: each label any of its words; a word that ends in `*` stands for all that begin
    as it does."""

    __slots__ = ("_conditions",)

    def __init__(self, words: Mapping[str, Sequence[str]]) -> None:
        self._conditions = [
            (label, frozenset(given), tuple(word[:-1] for word in given if word.endswith("*")))
            for label, given in words.items()
        ]

    def fits(self, labels: Labels) -> bool:
        for label, words, beginnings in self._conditions:
            values = labels[label]
            if not any(value in words or (beginnings and value.startswith(beginnings)) for value in values):
                return False
        return True


def read_matchers(given: object) -> tuple[dict[str, tuple[str, ...]], list[tuple[str, str]]]:
    """Matchers from a decoded document, and what is wrong with them: (label, text)."""
    if not isinstance(given, dict) or not given:
        return {}, [("", f"must be a table of at least one of {', '.join(LABELS)}")]
    found: dict[str, tuple[str, ...]] = {}
    wrong: list[tuple[str, str]] = []
    for label, value in given.items():
        words = [value] if isinstance(value, str) else value
        if label not in LABELS:
            wrong.append((str(label)[:80], f"unknown label; known are {', '.join(LABELS)}"))
        elif not isinstance(words, list) or not words or not all(isinstance(w, str) and w for w in words):
            wrong.append((label, "must be a text or a list of texts"))
        elif len(words) > MOST_WORDS or any(len(word) > 512 or "\0" in word for word in words):
            wrong.append((label, f"at most {MOST_WORDS} words of at most 512 characters"))
        elif label == "level" and not set(words) <= set(LEVELS):
            wrong.append((label, f"must be of {', '.join(LEVELS)}"))
        else:
            found[label] = tuple(words)
    return found, wrong


# Recurring times


@dataclass(frozen=True, slots=True)
class Times:
    """Hours of days of months by a zone's clock; each empty one holds always. `hours` in minutes of the day; a stretch
    over midnight belongs to the day on which it begins."""

    months: frozenset[int]
    weekdays: frozenset[int]
    hours: tuple[tuple[int, int], ...]
    zone: dt.tzinfo

    def hold(self, now: Micros) -> bool:
        local = (EPOCH + dt.timedelta(microseconds=now)).astimezone(self.zone)
        minute = local.hour * 60 + local.minute
        if not self.hours:
            return self._is_day(local)
        for begin, end in self.hours:
            if begin <= end:
                if begin <= minute < end and self._is_day(local):
                    return True
            elif (minute >= begin and self._is_day(local)) or (
                minute < end and self._is_day(local - dt.timedelta(days=1))
            ):
                return True
        return False

    def _is_day(self, local: dt.datetime) -> bool:
        return (not self.months or local.month in self.months) and (
            not self.weekdays or local.isoweekday() in self.weekdays
        )


def read_times(given: object) -> tuple[Times | None, list[tuple[str, str]]]:
    """Recurring times from a decoded document `{"months": [6, 7], "weekdays": [1, 5], "hours": ["22:00-06:00"],
    "time_zone": "Asia/Shanghai"}` (Monday is 1), and what is wrong with them: (field, text)."""
    if not isinstance(given, Mapping) or not given.keys() & {"months", "weekdays", "hours"}:
        return None, [("", "must have months, weekdays or hours")]
    wrong = [(str(name)[:80], "unknown field") for name in given.keys() - {"months", "weekdays", "hours", "time_zone"}]
    numbers: dict[str, frozenset[int]] = {}
    for name, most in (("months", 12), ("weekdays", 7)):
        value = given.get(name, [])
        is_list = isinstance(value, list) and (value or name not in given)
        if not is_list or not all(type(n) is int and 1 <= n <= most for n in value):
            wrong.append((name, f"must be a list of numbers from 1 to {most}"))
            value = []
        numbers[name] = frozenset(value)
    hours: list[tuple[int, int]] = []
    texts = given.get("hours", [])
    if not isinstance(texts, list) or len(texts) > 100 or (not texts and "hours" in given):
        wrong.append(("hours", 'must be a list such as ["22:00-06:00"]'))
        texts = []
    for text in texts:
        match = _HOURS.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            wrong.append(("hours", 'must be texts such as "22:00-06:00"'))
            continue
        h1, m1, *h2 = (int(part) for part in match.groups() if part is not None)
        if (h1, m1) == (h2[0], h2[1]):
            wrong.append(("hours", "must not end where they begin"))
        hours.append((h1 * 60 + m1, h2[0] * 60 + h2[1]))
    zone = _zone(given.get("time_zone", ZONE))
    if zone is None:
        wrong.append(("time_zone", 'must be a name such as "Asia/Shanghai", or "+08:00"'))
    if wrong or zone is None:
        return None, wrong
    return Times(numbers["months"], numbers["weekdays"], tuple(hours), zone), []


@lru_cache(maxsize=64)
def _zone(name: object) -> dt.tzinfo | None:
    if not isinstance(name, str) or not 0 < len(name) <= 64:
        return None
    offset = _ZONE_OFFSET.fullmatch(name)
    if offset is not None:
        span = dt.timedelta(hours=int(offset[2]), minutes=int(offset[3]))
        return dt.timezone(span if offset[1] == "+" else -span) if span < dt.timedelta(hours=24) else None
    if name == "Z" or ".." in name:
        return dt.UTC if name == "Z" else None
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):  # no such zone, or a name that is a folder
        return None


# Inhibition and chatter, as rules files have them


@dataclass(frozen=True, slots=True)
class Inhibit:
    """While an alert that fits `source` is active, those that fit `target` are suppressed, where both have the same
    `equal` labels and the target's asset lies `along` the network from the source's, within `within_m` of it."""

    source: Mapping[str, tuple[str, ...]]
    target: Mapping[str, tuple[str, ...]]
    equal: tuple[str, ...] = ()
    along: str | None = None
    within_m: float | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Chatter:
    """A point whose alerts are raised `times` times `within` a span of event time chatters: the alert that fills the
    number is marked, until it has been active for `steady`."""

    times: int
    within: Micros
    steady: Micros


def read_inhibit(entry: object, place: str, rules: Collection[str], problems: list[Problem]) -> Inhibit | None:
    """One `[[inhibit]]` table; what is wrong goes into `problems`. `rules`: the ids in the same file."""
    if not isinstance(entry, dict):
        problems.append(Problem(place, "", "must be a table"))
        return None
    before = len(problems)
    problems += [
        Problem(place, str(name)[:80], "unknown field")
        for name in entry.keys() - {"source", "target", "equal", "along", "within"}
    ]
    sides = []
    for side in ("source", "target"):
        words, wrong = read_matchers(entry.get(side))
        problems += [Problem(place, f"{side}.{label}".rstrip("."), text) for label, text in wrong]
        for word in words.get("rule", ()):
            if not (any(rule.startswith(word[:-1]) for rule in rules) if word.endswith("*") else word in rules):
                problems.append(Problem(place, f"{side}.rule", f"no rule {word[:80]!r} in this file"))
        sides.append(words)
    equal = entry.get("equal", [])
    if not isinstance(equal, list) or not all(isinstance(w, str) and w in EQUAL_LABELS for w in equal):
        problems.append(Problem(place, "equal", f"must be a list of {', '.join(EQUAL_LABELS)}"))
        equal = []
    along = entry.get("along")
    if along is not None and along not in ALONG:
        problems.append(Problem(place, "along", f"must be one of {', '.join(ALONG)}"))
    if along is None and not equal:
        problems.append(Problem(place, "equal", "is missing: equal or along says which targets belong to a source"))
    within: float | None = None
    if "within" in entry:
        match = _DISTANCE.fullmatch(entry["within"]) if isinstance(entry["within"], str) else None
        if match is None or len(match[1]) > 9:
            problems.append(Problem(place, "within", 'must be a distance such as "500m" or "1.5km"'))
        else:
            within = float(match[1]) * (1000 if match[2] == "km" else 1)
        if along is None:
            problems.append(Problem(place, "within", "needs along"))
    if len(problems) > before:
        return None
    return Inhibit(sides[0], sides[1], tuple(equal), along, within, entry)


# What stands

_Key = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class SourceChange:
    """What a batch not yet committed changes of inhibition: by inhibition the sources that came (`come`), those that
    went (`gone`), and what was worked out on the way."""

    come: list[list[Alert]]
    gone: set[tuple[int, str]]
    labels: dict[str, Labels]
    standing: dict[tuple[int, _Key], list[tuple[Alert, Collection[str] | None]]] = field(default_factory=dict)

    def labels_of(self, alert: Alert, catalog: Catalog) -> Labels:
        found = self.labels.get(alert.id)
        if found is None:
            found = self.labels[alert.id] = labels_of(alert, catalog)
        return found


def _key(inhibit: Inhibit, labels: Labels) -> _Key | None:
    """The labels that source and target must have alike; None where one is missing."""
    key = tuple(labels[label] for label in inhibit.equal)
    return key if all(key) else None


class Holds:
    """The holds that stand, and which alerts inhibit, are inhibited or chatter, as of the last commit. One thread's.

    Bounds: `MOST_HOLDS` standing holds (whoever adds one looks at `is_full`); of a chattering point as many raises as
    its rule counts; of sources and targets the open alerts.
    """

    def __init__(self, catalog: Catalog, reach: Reach | None = None) -> None:
        self.catalog = catalog
        self.reach = reach
        self.standing: dict[str, Hold] = {}
        self._matchers: dict[str, Matchers] = {}
        self._times: dict[str, Times | None] = {}
        self._of_subject: dict[str, set[str]] = {}  # holds on one subject, which most are
        self._others: set[str] = set()
        self._active: frozenset[str] = frozenset()
        self._due: Micros = 0
        self._look_at: Micros = 0
        self.is_stale = False  # what alerts are flagged by may all have changed
        self.inhibits: Sequence[Inhibit] = ()
        self.chatters: Mapping[str, Chatter] = {}
        self._sides: list[tuple[Matchers, Matchers]] = []
        self._sources: list[dict[_Key, dict[str, Alert]]] = []  # of each inhibition, by equal labels
        self._source_keys: list[dict[str, _Key]] = []
        self.targets: list[dict[str, Alert]] = []
        self._chattering: dict[str, Alert] = {}
        self._raises: dict[tuple[str, str], dict[str, Micros]] = {}

    @property
    def is_full(self) -> bool:
        return len(self.standing) >= MOST_HOLDS

    @property
    def is_idle(self) -> bool:
        """Nothing here bears on any alert."""
        return not (self.standing or self.inhibits or self.chatters or self._chattering or self.is_stale)

    # What changes

    def refit(self, inhibits: Sequence[Inhibit], chatters: Mapping[str, Chatter], alerts: Iterable[Alert]) -> None:
        """Follow a changed rule set or catalogue; `alerts`: the open ones."""
        self.inhibits, self.chatters = inhibits, chatters
        self._sides = [(Matchers(inhibit.source), Matchers(inhibit.target)) for inhibit in inhibits]
        self._sources = [{} for _ in inhibits]
        self._source_keys = [{} for _ in inhibits]
        self.targets = [{} for _ in inhibits]
        self._raises = {key: raises for key, raises in self._raises.items() if key[0] in chatters}
        self.is_stale = True
        self.follow(alerts)

    def put(self, holds: Iterable[Hold]) -> None:
        """Take in holds as they now stand."""
        for hold in holds:
            self._drop(hold.id)
            if hold.ended_at is not None:
                continue
            self.standing[hold.id] = hold
            self._matchers[hold.id] = Matchers(hold.matchers)
            self._times[hold.id] = times_of(hold)
            subject = _subject(hold)
            if subject is None:
                self._others.add(hold.id)
            else:
                self._of_subject.setdefault(subject, set()).add(hold.id)
            if self.is_active(hold, hold.created_at):
                self._active |= {hold.id}  # whoever began it has told what it holds
            self._due = 0

    def _drop(self, id_: str) -> None:
        hold = self.standing.pop(id_, None)
        if hold is None:
            return
        del self._matchers[id_], self._times[id_]
        self._active -= {id_}
        self._others.discard(id_)
        subject = _subject(hold)
        if subject is not None:
            self._of_subject[subject].discard(id_)
            if not self._of_subject[subject]:
                del self._of_subject[subject]

    def follow(self, alerts: Iterable[Alert]) -> None:
        """Take in alerts as they now stand."""
        if not (self.inhibits or self.chatters or self._chattering):
            return
        for alert in alerts:
            is_open = alert.state is not AlertState.CLEARED
            labels = labels_of(alert, self.catalog) if self.inhibits and is_open else {}
            for n, (_, target) in enumerate(self._sides):
                self._keep_source(n, alert, labels, is_open and self.is_source(n, alert, labels))
                _keep(self.targets[n], alert, is_open and target.fits(labels))
            _keep(self._chattering, alert, "chattering" in alert.flags and alert.state.is_active)
            if alert.rule in self.chatters:
                self.note_raise(alert.rule, alert.sensor or alert.asset or "", alert)

    def _keep_source(self, n: int, alert: Alert, labels: Labels, is_in: bool) -> None:
        before = self._source_keys[n].pop(alert.id, None)
        if before is not None:
            del self._sources[n][before][alert.id]
            if not self._sources[n][before]:
                del self._sources[n][before]
        key = _key(self.inhibits[n], labels) if is_in else None
        if key is not None:
            self._source_keys[n][alert.id] = key
            self._sources[n].setdefault(key, {})[alert.id] = alert

    def has_source(self, n: int, id_: str) -> bool:
        """Whether an alert was a source of the n-th inhibition as of the last commit."""
        return id_ in self._source_keys[n]

    def note_raise(self, rule: str, subject: str, alert: Alert) -> None:
        """Remember, or forget, that a point of a rule with chatter damping was raised."""
        raises = self._raises.setdefault((rule, subject), {})
        if "withdrawn" in alert.flags:
            raises.pop(alert.id, None)
        elif alert.id not in raises:
            raises[alert.id] = alert.raised_at
            if len(raises) > 2 * self.chatters[rule].times:  # some more than count, for late data takes some back
                del raises[min(raises, key=raises.__getitem__)]

    # The passing of time

    def is_due(self, now: Micros) -> bool:
        """Whether the time alone may have changed what is held back."""
        return (
            self.is_stale
            or now >= self._due
            or any(self.may_reach_otherwise(n, now) for n in range(len(self.inhibits)))
            or any(now >= self._steady_at(alert) for alert in self._chattering.values())
        )

    def may_reach_otherwise(self, n: int, now: Micros) -> bool:
        """Whether it is time to ask anew what the sources of the n-th inhibition reach along the network."""
        return now >= self._look_at and self.inhibits[n].along is not None and bool(self._source_keys[n])

    def changed(self, now: Micros) -> list[Hold]:
        """The holds that began or ended since `checked`."""
        return [
            hold
            for hold in self.standing.values()
            if (hold.id in self._active) is not self.is_active(hold, now)
            or (hold.ends_at is not None and hold.ends_at <= now)  # one so short that no check saw it
        ]

    def became_steady(self, now: Micros) -> list[Alert]:
        """Alerts marked as chattering that have been active for long enough."""
        return [alert for alert in self._chattering.values() if now >= self._steady_at(alert)]

    def _steady_at(self, alert: Alert) -> Micros:
        chatter = self.chatters.get(alert.rule)
        return 0 if chatter is None else alert.raised_at + chatter.steady

    def checked(self, now: Micros) -> None:
        """All that changed up to `now` has been told; what is over is forgotten."""
        for id_ in [h.id for h in self.standing.values() if h.ends_at is not None and h.ends_at <= now]:
            self._drop(id_)
        self._active = frozenset(h.id for h in self.standing.values() if self.is_active(h, now))
        self.is_stale = False
        if now >= self._look_at:
            self._look_at = now + LOOK_AGAIN
        self._due = min(
            (self._next_change(hold, now) for hold in self.standing.values()), default=now + 3650 * 24 * 60 * MINUTE
        )

    def _next_change(self, hold: Hold, now: Micros) -> Micros:
        if now < hold.starts_at:
            return hold.starts_at
        following = now // MINUTE * MINUTE + MINUTE
        if hold.ends_at is not None:
            following = min(following, hold.ends_at) if hold.times is not None else hold.ends_at
        elif hold.times is None:
            return 1 << 62
        return following

    def is_active(self, hold: Hold, now: Micros) -> bool:
        """Whether a hold holds now."""
        if hold.ended_at is not None or now < hold.starts_at or (hold.ends_at is not None and now >= hold.ends_at):
            return False
        if hold.times is None:
            return True
        times = self._times[hold.id] if hold.id in self._times else times_of(hold)
        return times is not None and times.hold(now)

    # What holds an alert back

    def of(self, labels: Labels, now: Micros) -> list[Hold]:
        """The standing holds that are active and fit, oldest first."""
        ids = self._others.union(self._of_subject.get(labels["subject"][0], ())) if self.standing else ()
        found = [
            self.standing[id_]
            for id_ in ids
            if self._matchers[id_].fits(labels) and self.is_active(self.standing[id_], now)
        ]
        return sorted(found, key=lambda hold: (hold.created_at, hold.id))

    def on_point(self, kind: str, rule: str, subject: str, now: Micros) -> list[Hold]:
        """The standing holds of a kind on exactly this alert point."""
        ids = self._of_subject.get(subject, ())
        found = [self.standing[id_] for id_ in sorted(ids)]
        return [
            hold
            for hold in found
            if hold.kind == kind and hold.matchers == point(rule, subject) and (hold.ends_at or now + 1) > now
        ]

    def is_source(self, n: int, alert: Alert, labels: Labels) -> bool:
        """Whether an alert explains others by the n-th inhibition. One that people found false, or whose point is out
        of service, explains nothing."""
        return (
            alert.state.is_active
            and alert.verdict != "false_alarm"
            and "out_of_service" not in alert.flags
            and self._sides[n][0].fits(labels)
            and _key(self.inhibits[n], labels) is not None
        )

    def inhibited(self, alert: Alert, change: SourceChange) -> list[str]:
        """The ids of the sources that explain an alert, earliest first, at most `SUPPRESSED_BY`."""
        labels = change.labels_of(alert, self.catalog)
        found: dict[str, Alert] = {}
        for n, inhibit in enumerate(self.inhibits):
            source_side, target_side = self._sides[n]
            key = _key(inhibit, labels)
            if key is None or not target_side.fits(labels):
                continue
            if (n, key) not in change.standing:
                change.standing[n, key] = self._reaching(n, key, change)
            # Two of a kind do not explain each other: both would be gone.
            is_both = source_side.fits(labels)
            for source, reached in change.standing[n, key]:
                if (
                    (reached is None or alert.asset in reached)
                    and source.id != alert.id
                    and not (is_both and target_side.fits(change.labels_of(source, self.catalog)))
                ):
                    found[source.id] = source
        first = sorted(found.values(), key=lambda source: (source.raised_at, source.id))
        return [source.id for source in first[:SUPPRESSED_BY]]

    def _reaching(self, n: int, key: _Key, change: SourceChange) -> list[tuple[Alert, Collection[str] | None]]:
        """The sources of the n-th inhibition with these labels, and the assets that each reaches (None: no matter)."""
        inhibit = self.inhibits[n]
        standing = [a for a in self._sources[n].get(key, {}).values() if (n, a.id) not in change.gone]
        standing += [a for a in change.come[n] if _key(inhibit, change.labels_of(a, self.catalog)) == key]
        if inhibit.along is None:
            return [(source, None) for source in standing]
        if self.reach is None:
            return []
        return [
            (source, self.reach.reached(source.asset, inhibit.along, inhibit.within_m))
            for source in standing
            if source.asset is not None
        ]

    def is_chatter(self, alert: Alert, others: Iterable[Alert]) -> bool:
        """Whether with this alert its point was raised too often; `others`: alerts of the point that `follow` has not
        yet been told of as they now stand."""
        chatter = self.chatters.get(alert.rule)
        if chatter is None:
            return False
        raises = dict(self._raises.get((alert.rule, alert.sensor or alert.asset or ""), {}))
        for other in others:
            raises[other.id] = other.raised_at
            if "withdrawn" in other.flags:
                del raises[other.id]
        return sum(alert.raised_at - chatter.within < at <= alert.raised_at for at in raises.values()) >= chatter.times

    def is_steady(self, alert: Alert, now: Micros) -> bool:
        return alert.state.is_active and now >= self._steady_at(alert)


def point(rule: str, subject: str) -> dict[str, tuple[str, ...]]:
    """The matchers of one alert point."""
    return {"rule": (rule,), "subject": (subject,)}


def times_of(hold: Hold) -> Times | None:
    """The times of a recurring hold; None where there are none, or they cannot be read here (no such zone)."""
    return None if hold.times is None else read_times(hold.times)[0]


def hold_json(hold: Hold, now: Micros) -> dict[str, Any]:
    """A hold as HTTP gives it. `state`: `pending` before it begins, `active`, `waiting` between recurring times,
    `ended`."""
    if hold.ended_at is not None or (hold.ends_at is not None and now >= hold.ends_at):
        state = "ended"
    elif now < hold.starts_at:
        state = "pending"
    else:
        times = times_of(hold)
        state = "active" if hold.times is None or (times is not None and times.hold(now)) else "waiting"
    return {
        "id": hold.id,
        "kind": hold.kind,
        "state": state,
        "flag": FLAG_OF[hold.kind],
        "matchers": {label: list(words) for label, words in hold.matchers.items()},
        "times": hold.times,
        "from": iso(hold.starts_at),
        "until": iso(hold.ends_at),
        "by": hold.by,
        "note": hold.note,
        "created_at": iso(hold.created_at),
        "ended_at": iso(hold.ended_at),
        "ended_by": hold.ended_by,
        "end_note": hold.end_note,
    }


def _subject(hold: Hold) -> str | None:
    words = hold.matchers.get("subject", ())
    return words[0] if len(words) == 1 and not words[0].endswith("*") else None


def _keep(alerts: dict[str, Alert], alert: Alert, is_in: bool) -> None:
    if is_in:
        alerts[alert.id] = alert
    else:
        alerts.pop(alert.id, None)
