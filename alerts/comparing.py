"""Two courses of the same time beside each other: the alerts that rules would have given, and those that there were."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from alerts.lifecycle import subject_of
from twin.model import Alert, Micros

_NEVER: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Pair:
    """An alert in both courses, or in one (`would`: only the rules in question give it; `was`: only there was it).
    `fields`: what differs of `level` (the worst it reached), `raised_at` and `cleared_at`."""

    rule: str
    would: Alert | None
    was: Alert | None
    fields: tuple[str, ...] = ()

    @property
    def kind(self) -> Literal["added", "missing", "changed", "same"]:
        if self.was is None:
            return "added"
        if self.would is None:
            return "missing"
        return "changed" if self.fields else "same"


def compare(would: Iterable[Alert], was: Iterable[Alert], start: Micros) -> list[Pair]:
    """The alerts paired, by when the earlier of a pair was raised. Of one rule and subject those with equal ids (they
    were raised at the same reading) belong together, else those whose times overlap. Of alerts that both stood before
    `start` it does not matter since when."""
    courses: dict[tuple[str, str], tuple[list[Alert], list[Alert]]] = {}
    for side, alerts in enumerate((would, was)):
        for alert in alerts:
            courses.setdefault((alert.rule, subject_of(alert)), ([], []))[side].append(alert)
    found = [pair for (rule, _), (new, old) in courses.items() for pair in _paired(rule, new, old, start)]
    return sorted(found, key=lambda pair: (min(_raised(pair)), pair.rule))


def _raised(pair: Pair) -> list[Micros]:
    return [alert.raised_at for alert in (pair.would, pair.was) if alert is not None]


def _paired(rule: str, would: list[Alert], was: list[Alert], start: Micros) -> Iterator[Pair]:
    known = {alert.id: alert for alert in was}
    taken = {alert.id for alert in would if alert.id in known}
    left = sorted((alert for alert in was if alert.id not in taken), key=lambda alert: alert.raised_at)
    for alert in sorted(would, key=lambda alert: alert.raised_at):
        other = known.get(alert.id)
        if other is None:
            other = next((one for one in left if _overlap(alert, one)), None)
            if other is not None:
                left.remove(other)
        yield Pair(rule, alert, other, () if other is None else _fields(alert, other, start))
    for alert in left:
        yield Pair(rule, None, alert)


def _overlap(one: Alert, other: Alert) -> bool:
    return max(one.raised_at, other.raised_at) < min(_end(one), _end(other))


def _end(alert: Alert) -> Micros:
    return _NEVER if alert.cleared_at is None else alert.cleared_at


def _fields(would: Alert, was: Alert, start: Micros) -> tuple[str, ...]:
    differs = {
        "level": would.peak_level != was.peak_level,
        "raised_at": would.raised_at != was.raised_at and max(would.raised_at, was.raised_at) >= start,
        "cleared_at": would.cleared_at != was.cleared_at,
    }
    return tuple(name for name, differ in differs.items() if differ)
