"""The nouns of telling people: an alert that is being told of, a group of alerts, a delivery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from twin.model import Alert, Micros

STATES: Final = ("waiting", "held", "sent", "dead", "lapsed")
REFRESH: Final = "refresh"  # the kind of what a receiver is told again and again, and that is on record once


@dataclass(slots=True)
class Watched:
    """An alert that is being told of. `told_level` 0: of which nothing was told yet; `due_at`: when what changed is to
    be told; None where there is nothing to do."""

    alert: str
    changed_at: Micros | None = None
    due_at: Micros | None = None
    told_level: int = 0
    told_active: bool = False
    told_at: Micros | None = None
    group: str = ""
    stage: int = 0
    escalate_at: Micros | None = None
    repeat_at: Micros | None = None

    @property
    def next_at(self) -> Micros | None:
        return min((at for at in (self.due_at, self.escalate_at, self.repeat_at) if at is not None), default=None)


@dataclass(frozen=True, slots=True)
class KnownAlert:
    """An alert with what routes ask about its sensor and asset. `area`: the asset's, `district/street/grid`."""

    alert: Alert
    kind: str | None
    tags: tuple[str, ...]
    area: str


@dataclass(frozen=True, slots=True)
class HeldBack:
    """A delivery that is held back, as it stands on record."""

    id: str
    receiver: str
    kind: str
    stage: int
    group: str
    alerts: tuple[str, ...]
    next_at: Micros | None


@dataclass(frozen=True, slots=True)
class Group:
    """What was last told of a group: when, the worst level; and how many of its alerts stand told of as active."""

    told_at: Micros | None = None
    level: int = 0
    active: int = 0


@dataclass(frozen=True, slots=True)
class Delivery:
    """One delivery as it is written down. `content`: the notice as JSON; `level`: 1 (blue) to 4; `next_at`: when it may
    go, or be looked at again; `id` None: a new one."""

    receiver: str
    kind: str
    level: int
    group: str
    incident: str | None
    alerts: tuple[str, ...]
    content: Mapping[str, Any]
    state: str
    next_at: Micros
    reason: str | None = None
    instead_of: str | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A delivery to be sent; `content` as in `Delivery`."""

    id: str
    receiver: str
    attempts: int
    content: Mapping[str, Any]
    instead_of: str | None
