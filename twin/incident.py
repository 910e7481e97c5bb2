"""Incidents (事件) as nouns: alerts that belong together, and what happened to them. `alerts.incidents` decides over
them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from twin.model import HOUR, Micros

# An alert that stands counts so long after it last became worse, where times of alerts are compared [E].
STANDS: Final[Micros] = 2 * HOUR


@dataclass(slots=True)
class Member:
    """An alert in an incident, as its events left it. `seq`: of the event that brought it in; `raised_by`: the id of
    the event that raised it. `worsened_at`: when it was raised or last escalated. `why`: how it came in: `first`,
    `same`, `cause` (with `by`, the alert at the other end, whichever of the two explains), `near`, `along`, `hand`."""

    alert: str
    seq: int
    rule: str
    subject: str
    asset: str | None
    sign: str
    tenant: str
    domain: str
    since: Micros
    raised_at: Micros
    raised_by: str
    worsened_at: Micros
    level: int
    peak: int
    state: str
    lon: float | None
    lat: float | None
    place: str
    title_zh: str
    title_en: str
    incident: str = ""
    why: str = "first"
    by: str | None = None
    cleared_at: Micros | None = None
    flags: tuple[str, ...] = ()
    is_withdrawn: bool = False

    @property
    def is_active(self) -> bool:
        return not self.is_withdrawn and self.state.startswith("active")

    @property
    def counts(self) -> bool:
        """Whether it bears on how bad things are: neither taken back nor held back by people or design. One that only
        waits to be closed (`latched`) does."""
        return not self.is_withdrawn and not set(self.flags).difference(("latched",))

    @property
    def ends(self) -> Micros:
        return self.cleared_at if self.cleared_at is not None else self.worsened_at + STANDS


@dataclass(slots=True)
class Incident:
    """`state`: `open` while an alert of it is active, `closed`, `merged` (into `merged_into`), `withdrawn` (late data
    took all of it back). `apart`: incidents that people split from it or it from: never joined again by themselves.
    `ended_by`: who closed it; it takes nothing more in. `members`: in the order of `seq`; `active` of them are so."""

    id: str
    number: int
    opened_at: Micros
    state: str = "open"
    closed_at: Micros | None = None
    merged_into: str | None = None
    apart: set[str] = field(default_factory=set)
    ended_by: str | None = None
    confirmed_by: str | None = None
    confirmed_at: Micros | None = None
    active: int = 0
    members: dict[str, Member] = field(default_factory=dict)

    @property
    def alerts(self) -> list[Member]:
        """Those not taken back."""
        return [m for m in self.members.values() if not m.is_withdrawn]


class Entry(NamedTuple):
    """What happened to an incident: `opened`, `joined`, `closed`, `reopened`, `merged`, `split`, `withdrawn`, `noted`,
    `confirmed`, `ended`. `at` is event time, of what people do the time they do it."""

    incident: str
    at: Micros
    what: str
    alert: str | None = None
    by: str | None = None
    note: str | None = None
    other: str | None = None
