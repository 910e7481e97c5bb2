"""Every noun of the system as a small type, without I/O.

Times are int64 microseconds since 1970-01-01T00:00:00Z (`Micros`); `0` stands for "never". Columns are numpy
arrays of one length, one row a reading. Sensors are dense integer indices into the catalogue.
"""

from __future__ import annotations

import builtins
import datetime as dt
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum, StrEnum
from operator import attrgetter
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Micros = int
SECOND: Final = 1_000_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

Ints = NDArray[np.int64]
Indices = NDArray[np.int32]
Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]
Bools = NDArray[np.bool_]


class Level(IntEnum):
    """Alert levels, 蓝 IV < 黄 III < 橙 II < 红 I; 0 is "no alert"."""

    NONE = 0
    BLUE = 1
    YELLOW = 2
    ORANGE = 3
    RED = 4

    @property
    def word(self) -> str:
        return self.name.lower()

    @classmethod
    def of(cls, word: str) -> Level:
        """The level called `word`; ValueError for any other word."""
        if word in LEVELS:
            return cls[word.upper()]
        raise ValueError(f"level must be one of {', '.join(LEVELS)}")


LEVELS: Final = ("blue", "yellow", "orange", "red")


class Quality:
    """Bits of a reading's quality column, each one reason; 0 is good, any of the upper four makes it bad."""

    GOOD: Final = 0
    AHEAD: Final = 1
    OUT_OF_RANGE: Final = 2
    JUMP: Final = 4
    FAR_OUT_OF_RANGE: Final = 16
    CALIBRATION: Final = 32
    TEST: Final = 64
    FIRST_BAD: Final = 16

    REASONS: Final = {
        AHEAD: "ahead-of-clock",
        OUT_OF_RANGE: "out-of-range",
        JUMP: "impossible-jump",
        FAR_OUT_OF_RANGE: "far-out-of-range",
        CALIBRATION: "calibration",
        TEST: "test",
    }

    @classmethod
    def word(cls, bits: int) -> str:
        """`good`, `suspect` or `bad`."""
        return "good" if bits == 0 else "bad" if bits >= cls.FIRST_BAD else "suspect"

    @classmethod
    def reasons(cls, bits: int) -> list[str]:
        return [word for bit, word in cls.REASONS.items() if bits & bit]


@dataclass(frozen=True, slots=True)
class Readings:
    """Columns of readings: `sensor` int32 index, `observed_at` and `received_at` int64 µs, `value` float64 in the
    kind's canonical unit (NaN = missing), `quality` uint8 bits."""

    sensor: Indices
    observed_at: Ints
    received_at: Ints
    value: Floats
    quality: Bytes

    def __len__(self) -> int:
        return len(self.sensor)

    def take(self, which: NDArray[Any]) -> Readings:
        """The rows that `which` (mask or positions) names, in its order; itself, where a mask names all."""
        if which.dtype == np.bool_:
            which = np.flatnonzero(which)
            if len(which) == len(self):
                return self
        return Readings(
            self.sensor.take(which),
            self.observed_at.take(which),
            self.received_at.take(which),
            self.value.take(which),
            self.quality.take(which),
        )

    def between(self, begin: int, end: int) -> Readings:
        """The rows from `begin` to before `end`, as views."""
        return Readings(
            self.sensor[begin:end],
            self.observed_at[begin:end],
            self.received_at[begin:end],
            self.value[begin:end],
            self.quality[begin:end],
        )

    @classmethod
    def empty(cls) -> Readings:
        return cls(
            np.empty(0, np.int32),
            np.empty(0, np.int64),
            np.empty(0, np.int64),
            np.empty(0, np.float64),
            np.empty(0, np.uint8),
        )

    @classmethod
    def join(cls, parts: list[Readings]) -> Readings:
        parts = [part for part in parts if len(part)]
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls.empty()
        return cls(
            np.concatenate([p.sensor for p in parts]),
            np.concatenate([p.observed_at for p in parts]),
            np.concatenate([p.received_at for p in parts]),
            np.concatenate([p.value for p in parts]),
            np.concatenate([p.quality for p in parts]),
        )

    def in_order(self) -> Readings:
        """Sorted by sensor and time; itself, where it is."""
        same = self.sensor[1:] == self.sensor[:-1]
        rises = self.sensor[1:] > self.sensor[:-1]
        if (rises | (same & (self.observed_at[1:] >= self.observed_at[:-1]))).all():
            return self
        return self.take(by_sensor_and_time(self.sensor, self.observed_at))

    def newest(self) -> Readings:
        """Of each sensor the reading with the newest event time, ascending by sensor."""
        order = by_sensor_and_time(self.sensor, self.observed_at)
        sensor = self.sensor[order]
        is_last = np.ones(len(order), bool)
        is_last[:-1] = sensor[1:] != sensor[:-1]
        return self.take(order[is_last])

    def judgeable(self) -> Bools:
        """Mask of what detectors may see: not missing, not bad."""
        return (self.quality < Quality.FIRST_BAD) & ~np.isnan(self.value)


def by_sensor(sensor: Indices) -> Ints:
    """The stable order of sensor indices, in a sixth of the time that a stable argsort takes over numbers of any kind:
    index and place in one integer are told apart whatever the sort."""
    if not len(sensor) or (sensor[1:] >= sensor[:-1]).all():
        return np.arange(len(sensor))
    keys = sensor.astype(np.int64) << 32
    keys |= np.arange(len(sensor))
    keys.sort()
    keys &= 0xFFFF_FFFF
    return keys


def by_sensor_and_time(sensor: Indices, observed_at: Ints) -> Ints:
    """The stable order by sensor and time."""
    order = by_sensor(sensor)
    s, at = sensor[order], observed_at[order]
    if ((at[1:] < at[:-1]) & (s[1:] == s[:-1])).any():
        return np.lexsort((observed_at, sensor))
    return order


class SensorMode(StrEnum):
    NORMAL = "normal"
    TEST = "test"
    CALIBRATION = "calibration"


@dataclass(frozen=True, slots=True)
class Sensor:
    """One measuring point (测点). `min`, `max` are in `unit`, the unit the sensor reports in; `interval_s` is how
    often it reports; `statistic` is set on the readings derived from a waveform (mean, rms, …)."""

    device: str
    property: str
    kind: str
    unit: str
    tenant: str = "default"
    asset: str | None = None
    lon: float | None = None
    lat: float | None = None
    interval_s: float | None = None
    min: float | None = None
    max: float | None = None
    tags: tuple[str, ...] = ()
    mode: SensorMode = SensorMode.NORMAL
    statistic: str | None = None

    @builtins.property  # the field of that name hides the plain one
    def id(self) -> str:
        return f"{self.device}/{self.property}"


class RawMessage(NamedTuple):
    """One MQTT message as it came. `connection` counts the connections of the source: an acknowledgement is valid on
    the one it came by only. `mid` is the packet id (0 at QoS 0). Of a payload that is too large to be taken in only the
    beginning is there, and `left_out` says how many bytes are not.

    A tuple, as one is made of each message: 0.2 µs, where a frozen dataclass takes 0.9."""

    topic: str
    payload: bytes
    received_at: Micros
    mid: int = 0
    qos: int = 1
    connection: int = 0
    left_out: int = 0

    @property
    def size(self) -> int:
        """Of the payload as it was sent, in bytes."""
        return len(self.payload) + self.left_out


class Reason(StrEnum):
    """Why a message or a reading is in quarantine."""

    MALFORMED = "malformed"
    UNKNOWN_DEVICE = "unknown-device"
    UNKNOWN_PROPERTY = "unknown-property"
    BAD_TIME = "bad-time"
    BAD_VALUE = "bad-value"
    TOO_LARGE = "too-large"
    FORBIDDEN = "forbidden"
    REFUSED = "refused-by-database"


@dataclass(frozen=True, slots=True)
class Reject:
    """Readings of one message refused for one reason. `message` indexes the batch; `positions` are the refused
    readings' places in the message's order of decoding, `(-1,)` the message as a whole."""

    message: int
    reason: Reason
    positions: tuple[int, ...]
    detail: str
    device: str | None = None

    @property
    def readings(self) -> int:
        return len(self.positions)


@dataclass(frozen=True, slots=True)
class WaveformBlock:
    """A block of fast samples of one sensor, in its canonical unit, from `started_at` on, `rate_hz` a second."""

    sensor: int
    started_at: Micros
    received_at: Micros
    rate_hz: float
    samples: NDArray[np.float32]
    message: int = 0
    position: int = 0
    quality: int = 0


class Site(NamedTuple):
    """Whose and where something is that is no sensor: tenant, domain, and its place on the map, if it has one."""

    tenant: str
    domain: str
    lon: float | None = None
    lat: float | None = None


@dataclass(frozen=True, slots=True)
class Transition:
    """A detector's verdict that changed: rule `rule` (its place in the rule set) on `sensor` went from level `before`
    to `after` at the reading observed at `observed_at`. `since` is the start of the run that led to it, `peak` the
    extreme value of the alert so far (NaN: none). Where `subject` is set the alert is on that asset-like group
    (`tenant/gateway`, `domain/gas`) and `sensor` is -1. `note` numbers the evidence, for detectors that have several
    kinds of it (0: none to tell). Of a composite, `site` is its subject's, and `evidence` says in words
    (zh, en) what it rests on."""

    rule: int
    sensor: int
    observed_at: Micros
    before: int
    after: int
    value: float
    threshold: float
    since: Micros
    peak: float = math.nan
    subject: str | None = None
    note: int = 0
    site: Site | None = None
    evidence: tuple[str, str] = ("", "")


class AlertState(StrEnum):
    """States of ISA-18.2 (IEC 62682)."""

    ACTIVE_UNACKNOWLEDGED = "active_unacknowledged"
    ACTIVE_ACKNOWLEDGED = "active_acknowledged"
    CLEARED_UNACKNOWLEDGED = "cleared_unacknowledged"
    CLEARED = "cleared"

    @property
    def is_active(self) -> bool:
        return self in (AlertState.ACTIVE_UNACKNOWLEDGED, AlertState.ACTIVE_ACKNOWLEDGED)


@dataclass(slots=True)
class Alert:
    """One problem: one raise-to-clear of a rule on a sensor (or on a group, `asset` then naming it)."""

    id: str
    rule: str
    rule_version: int
    sensor: str | None
    sensor_index: int
    asset: str | None
    tenant: str
    domain: str
    level: int
    peak_level: int
    state: AlertState
    since: Micros
    raised_at: Micros
    value: float | None
    peak_value: float | None
    threshold: float | None
    cleared_at: Micros | None = None
    flags: tuple[str, ...] = ()
    lon: float | None = None
    lat: float | None = None
    place: str | None = None
    message_zh: str = ""
    message_en: str = ""
    instruction_zh: str = ""
    instruction_en: str = ""
    assignee: str | None = None
    verdict: str | None = None  # what people found it to be: `confirmed` or `false_alarm`
    suppressed_by: tuple[str, ...] = ()  # `alert:id` of what explains it, `silence:id` and the like of holds
    shelved_until: Micros | None = None

    def copy(self) -> Alert:
        return Alert(*_ALERT(self))


_ALERT: Final = attrgetter(*(f.name for f in fields(Alert)))  # a seventh of the time of dataclasses.replace


@dataclass(frozen=True, slots=True)
class AlertEvent:
    """One transition of an alert. `seq` is 0 until the commit allots it; `previous_level` serves filters."""

    id: str
    alert_id: str
    rule: str
    rule_version: int
    sensor: str | None
    sensor_index: int
    asset: str | None
    tenant: str
    domain: str
    level: int
    previous_level: int
    state: AlertState
    transition: str
    value: float | None
    threshold: float | None
    observed_at: Micros
    at: Micros
    lon: float | None
    lat: float | None
    message_zh: str
    message_en: str
    is_retroactive: bool = False
    replaces: str | None = None
    by: str | None = None
    note: str | None = None
    seq: int = 0
    flags: tuple[str, ...] = ()  # the alert's after the commit that told of this
    detail: Mapping[str, Any] | None = None  # what it set beside state and flags, as JSON takes it


@dataclass(frozen=True, slots=True)
class Hold:
    """Something that holds alerts back for a time: those that fit all of `matchers` (by label, any of its words), from
    `starts_at` to before `ends_at` (None: until somebody ends it), and only at `times` of the year, week and day where
    there are any (as `alerts.holds.read_times` takes them). Once `ended_at` is set it holds nothing any more."""

    id: str
    kind: str
    matchers: Mapping[str, tuple[str, ...]]
    starts_at: Micros
    ends_at: Micros | None
    times: Mapping[str, Any] | None = None
    by: str | None = None
    note: str | None = None
    created_at: Micros = 0
    ended_at: Micros | None = None
    ended_by: str | None = None
    end_note: str | None = None


@dataclass(slots=True)
class Counts:
    """What a batch adds to the counters of the contract."""

    messages: int = 0
    received: int = 0
    stored: int = 0
    duplicate: int = 0
    quarantined: int = 0


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """What a device, or the broker as its last will, says of its connection."""

    device: str
    is_online: bool
    at: Micros


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reject with the bytes it came from, as quarantine keeps it; `left_out` as with `RawMessage`."""

    topic: str
    payload: bytes
    reason: Reason
    detail: str
    tenant: str | None
    device: str | None
    positions: tuple[int, ...]
    received_at: Micros
    deliveries: int = 1
    count: int | None = None
    left_out: int = 0

    @property
    def readings(self) -> int:
        """How many readings it stands for: each refused position once a delivery, unless `count` says otherwise."""
        return len(self.positions) * self.deliveries if self.count is None else self.count


@dataclass(slots=True)
class Outcome:
    """All that one commit writes: readings and blocks known to be new, refusals, alerts as they now stand, alert
    events in order, holds begun or ended, and what the counters grow by."""

    readings: Readings
    counts: Counts
    waveforms: list[WaveformBlock] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    events: list[AlertEvent] = field(default_factory=list)
    statuses: list[DeviceStatus] = field(default_factory=list)
    redriven: list[int] = field(default_factory=list)
    answer: tuple[str, str, int, bytes] | None = None
    holds: list[Hold] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not (
            self.counts.messages
            or self.counts.received
            or self.counts.quarantined
            or self.events
            or self.alerts
            or self.statuses
            or self.redriven
            or self.answer
            or self.holds
            or len(self.readings)
        )


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in something handed in: `place` names line, rule or object, `field` the field, if any."""

    place: str
    field: str
    text: str

    def __str__(self) -> str:
        where = f"{self.place}, {self.field}" if self.field else self.place
        return f"{where}: {self.text}" if where else self.text


class Refused(Exception):  # noqa: N818 - an outcome, named as such in the house's words
    """Something handed in is refused whole; `problems` lists every mistake."""

    def __init__(self, problems: list[Problem], what: str = "") -> None:
        self.problems = problems
        self.what = what
        super().__init__("; ".join(str(p) for p in problems[:20]) or what)


class InvalidRules(Refused):
    """A rule set with mistakes."""


class InvalidSensors(Refused):
    """A sensor list with mistakes."""


class InvalidReadings(Refused):
    """A file of recorded readings with mistakes."""


class NotFound(Exception):  # noqa: N818
    """There is no such thing (HTTP 404)."""


class Conflict(Exception):  # noqa: N818
    """The state does not allow it (HTTP 409)."""


class Overtaken(Conflict):
    """Somebody else changed it since it was read (HTTP 412): `version` is in force, and not `named`."""

    def __init__(self, version: int, named: int) -> None:
        super().__init__(
            f"version {version} is in force, not {named}: fetch it and put your change into it"
            f" / 现行版本为 {version}，不是 {named}：请重新取出后再改"
        )


class StoreUnavailable(Exception):  # noqa: N818
    """The database is away or cannot take anything now: keep, do not acknowledge, try again."""


class TooMany(Exception):  # noqa: N818
    """More readings than are to be loaded at once: ask for a shorter span."""


class StoreRefused(Exception):  # noqa: N818
    """The database refuses this content: splitting finds the item at fault."""


def alert_id(rule: str, subject: str, observed_at: Micros) -> str:
    """The id of the alert that `rule` raised on `subject` (sensor id, or group) at `observed_at`; the same wherever
    and however often it is computed."""
    return hashlib.blake2b(f"{rule}\0{subject}\0{observed_at}".encode(), digest_size=10).hexdigest()


def iso(at: Micros | None) -> str | None:
    """RFC 3339 in UTC with `Z`, milliseconds or microseconds only where there are any."""
    if at is None:
        return None
    moment = EPOCH + dt.timedelta(microseconds=at)
    fraction = at % SECOND
    spec = "seconds" if fraction == 0 else "milliseconds" if fraction % 1000 == 0 else "microseconds"
    return moment.isoformat(timespec=spec).replace("+00:00", "Z")


def micros(moment: dt.datetime) -> Micros:
    """Microseconds of an aware datetime, exactly."""
    span = moment - EPOCH
    return (span.days * 86400 + span.seconds) * SECOND + span.microseconds


# What lies beyond these is taken for them where a span is asked for.
EARLIEST: Final = micros(EPOCH.replace(year=1900))
LATEST: Final = micros(EPOCH.replace(year=2200))


def parse_time(text: str) -> Micros:
    """An RFC 3339 time with its zone; ValueError for anything else."""
    moment = dt.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time needs its zone, e.g. 2026-07-01T08:00:00Z")
    return micros(moment)
