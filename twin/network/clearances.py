"""How far pipes of different systems must lie apart, and how far from them one may dig.

Numbers marked M are from memory of the standard named and to be checked before conformity is claimed; E are engineering
defaults without authority. Both tables are arguments wherever they are used: a city gives its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Clearance:
    """Between outlines of `one` and `other` (systems): `horizontal_m` side by side, `vertical_m` where they cross.
    `pressure_class`: for gas of that class only. `above_m`: for `one` of a larger diameter only."""

    one: str
    other: str
    horizontal_m: float
    vertical_m: float
    mark: str = "M"
    pressure_class: str = ""
    above_m: float = 0.0


# GB 50289-2016, tables 4.1.9 and 4.1.14 [M]; cables as laid directly in the ground, heat as laid without a duct. The
# last row that fits counts. Gas of unknown pressure is taken as medium [E].
CLEARANCES: Final = (
    Clearance("water", "drainage", 1.0, 0.4),
    Clearance("water", "drainage", 1.5, 0.4, above_m=0.2),
    Clearance("water", "gas", 0.5, 0.15),
    Clearance("water", "gas", 1.0, 0.15, pressure_class="sub_high_b"),
    Clearance("water", "gas", 1.5, 0.15, pressure_class="sub_high_a"),
    Clearance("water", "gas", 5.0, 0.5, "E", pressure_class="high"),
    Clearance("water", "heat", 1.5, 0.15),
    Clearance("water", "power", 0.5, 0.5),
    Clearance("water", "telecom", 1.0, 0.5),
    Clearance("drainage", "gas", 1.2, 0.15),
    Clearance("drainage", "gas", 1.0, 0.15, pressure_class="low"),
    Clearance("drainage", "gas", 1.5, 0.15, pressure_class="sub_high_b"),
    Clearance("drainage", "gas", 2.0, 0.15, pressure_class="sub_high_a"),
    Clearance("drainage", "gas", 5.0, 0.5, "E", pressure_class="high"),
    Clearance("drainage", "heat", 1.5, 0.15),
    Clearance("drainage", "power", 0.5, 0.5),
    Clearance("drainage", "telecom", 1.0, 0.5),
    Clearance("gas", "heat", 1.0, 0.15),
    Clearance("gas", "heat", 1.5, 0.15, pressure_class="sub_high_b"),
    Clearance("gas", "heat", 2.0, 0.15, pressure_class="sub_high_a"),
    Clearance("gas", "heat", 5.0, 0.5, "E", pressure_class="high"),
    Clearance("gas", "power", 0.5, 0.5),
    Clearance("gas", "power", 1.0, 0.5, pressure_class="sub_high_b"),
    Clearance("gas", "power", 1.5, 0.5, pressure_class="sub_high_a"),
    Clearance("gas", "power", 5.0, 0.5, "E", pressure_class="high"),
    Clearance("gas", "telecom", 0.5, 0.5),
    Clearance("gas", "telecom", 1.0, 0.5, pressure_class="sub_high_b"),
    Clearance("gas", "telecom", 1.5, 0.5, pressure_class="sub_high_a"),
    Clearance("gas", "telecom", 5.0, 0.5, "E", pressure_class="high"),
    Clearance("heat", "power", 2.0, 0.5),
    Clearance("heat", "telecom", 1.0, 0.25),
    Clearance("power", "telecom", 0.5, 0.5),
)
# Where the table has no row.
OTHERWISE: Final = Clearance("", "", 0.5, 0.15, "E")


def clearance(
    table: Iterable[Clearance], one: str, other: str, pressure_class: str, diameters_m: tuple[float, float]
) -> Clearance:  # fmt: skip
    """The row that counts between two pipes; `pressure_class` that of the one that is gas."""
    found = OTHERWISE
    for row in table:
        if (row.one, row.other) == (one, other):
            diameter = diameters_m[0]
        elif (row.one, row.other) == (other, one):
            diameter = diameters_m[1]
        else:
            continue
        if row.pressure_class in ("", pressure_class) and (row.above_m == 0 or diameter > row.above_m):
            found = row
    return found


@dataclass(frozen=True, slots=True)
class Protection:
    """Around the outline of pipes and covers of a system: within `protection_m` nobody digs with a machine; within
    `control_m` the owner is asked first."""

    system: str
    protection_m: float
    control_m: float
    mark: str = "E"
    pressure_class: str = ""


# Gas: GB 55009-2021, 5.1 [M]: the least range of protection and of control by pressure. Power: 电力设施保护条例
# (Regulations on the Protection of Electric Power Facilities), article 10 [M]: 0.75 m. The last row that fits counts.
PROTECTIONS: Final = (
    Protection("water", 1.0, 3.0),
    Protection("drainage", 1.0, 3.0),
    Protection("gas", 1.5, 15.0),
    Protection("gas", 0.5, 5.0, "M", "low"),
    Protection("gas", 0.5, 5.0, "M", "medium"),
    Protection("gas", 1.5, 15.0, "M", "sub_high_b"),
    Protection("gas", 1.5, 15.0, "M", "sub_high_a"),
    Protection("gas", 5.0, 50.0, "M", "high"),
    Protection("heat", 1.0, 3.0),
    Protection("power", 0.75, 2.0, "M"),
    Protection("telecom", 0.75, 2.0),
    Protection("industry", 1.5, 5.0),
)
NO_PROTECTION_NAMED: Final = Protection("", 1.0, 3.0)


def protection(table: Sequence[Protection], system: str, pressure_class: str) -> Protection:
    """The row that counts for a pipe."""
    found = NO_PROTECTION_NAMED
    for row in table:
        if row.system == system and row.pressure_class in ("", pressure_class):
            found = row
    return found
