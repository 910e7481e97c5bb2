"""Alert floods: when alerts come faster than the people on duty can take them in.

Pure. ANSI/ISA-18.2 (IEC 62682) speaks of a flood when an operator gets more than ten alarms in ten minutes; EEMUA 191
has the same figure. It is over once there are fewer than five in ten minutes, so that it does not flicker (the usual
hysteresis in control rooms [E]).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from twin.model import MINUTE, Micros

SPAN: Final[Micros] = 10 * MINUTE
SOURCE: Final = "ANSI/ISA-18.2, IEC 62682, EEMUA 191: more than 10 alarms in 10 minutes per operator"


@dataclass(frozen=True, slots=True)
class Flood:
    """`peak`: the most alerts in ten minutes; `alerts`: how many came in all. `ended_at` is None while it lasts."""

    started_at: Micros
    ended_at: Micros | None
    peak: int
    alerts: int


class FloodGauge:
    """Counts what asks for attention over the last ten minutes. A flood begins with the alert that is more than `most`,
    and ends when there are fewer than `few`. Keeps one number an alert of the last ten minutes."""

    def __init__(self, most: float, few: float, flood: Flood | None = None, told: Iterable[Micros] = ()) -> None:
        self.most = most
        self.few = few
        self.flood = flood if flood is not None and flood.ended_at is None else None
        self._told = deque(sorted(told))
        self.is_changed = False
        self.ended: list[Flood] = []

    @property
    def rate(self) -> int:
        """Alerts in the ten minutes up to the last look."""
        return len(self._told)

    def take(self, at: Micros) -> None:
        """An alert asked for attention at `at`, no earlier than the one before."""
        self.look(at)
        self._told.append(at)
        count = len(self._told)
        flood = self.flood
        if flood is not None:
            self.flood = replace(flood, peak=max(flood.peak, count), alerts=flood.alerts + 1)
        elif count > self.most:
            self.flood = Flood(at, None, count, count)
        else:
            return
        self.is_changed = True

    def look(self, now: Micros) -> None:
        """Let time pass: a flood ends when enough of it has."""
        told = self._told
        while told and told[0] <= now - SPAN:
            gone = told.popleft()
            if self.flood is not None and len(told) < self.few:
                self.ended.append(replace(self.flood, ended_at=gone + SPAN))
                self.flood, self.is_changed = None, True

    def drained(self) -> list[Flood]:
        """The floods that began, grew or ended since the last call."""
        changed = [*self.ended, *([self.flood] if self.flood is not None else [])] if self.is_changed else []
        self.ended, self.is_changed = [], False
        return changed
