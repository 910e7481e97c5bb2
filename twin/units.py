"""Kinds and units: a value is converted once, at the edge, into its kind's canonical unit.

The catalogue of kinds is data (`kinds.toml`), extended by a file of the user's in the same form.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from twin.model import Problem, Refused

# unit: (quantity, factor, offset) with base = value * factor + offset. Factors of the inch, foot, US gallon and pound
# are exact by definition; ppm of a gas is not convertible to mg/m³ without its molar mass and so is not offered.
UNITS: Final[dict[str, tuple[str, float, float]]] = {
    "": ("number", 1, 0),
    "bool": ("bool", 1, 0),
    "m": ("length", 1, 0),
    "cm": ("length", 0.01, 0),
    "mm": ("length", 0.001, 0),
    "in": ("length", 0.0254, 0),
    "ft": ("length", 0.3048, 0),
    "Pa": ("pressure", 1, 0),
    "hPa": ("pressure", 100, 0),
    "kPa": ("pressure", 1e3, 0),
    "MPa": ("pressure", 1e6, 0),
    "bar": ("pressure", 1e5, 0),
    "mbar": ("pressure", 100, 0),
    "psi": ("pressure", 6894.757293168361, 0),
    "mH2O": ("pressure", 9806.65, 0),
    "m³/s": ("flow", 1, 0),
    "m³/h": ("flow", 1 / 3600, 0),
    "m³/d": ("flow", 1 / 86400, 0),
    "L/s": ("flow", 1e-3, 0),
    "L/min": ("flow", 1e-3 / 60, 0),
    "mgd": ("flow", 3785.411784 / 86400, 0),
    "NTU": ("turbidity", 1, 0),
    "FNU": ("turbidity", 1, 0),
    "mg/L": ("concentration", 1e-3, 0),
    "µg/L": ("concentration", 1e-6, 0),
    "mg/m³": ("concentration", 1e-6, 0),
    "dB": ("sound level", 1, 0),
    "%": ("ratio", 1, 0),
    "%VOL": ("gas fraction", 1, 0),
    "ppm": ("gas fraction", 1e-4, 0),
    "%LEL-CH4": ("gas fraction", 0.05, 0),  # methane: 100 %LEL = 5 %VOL
    "°": ("angle", 1, 0),
    "rad": ("angle", 57.29577951308232, 0),
    "m/s²": ("acceleration", 1, 0),
    "cm/s²": ("acceleration", 0.01, 0),
    "g": ("acceleration", 9.80665, 0),
    "µε": ("strain", 1, 0),
    "kN": ("force", 1, 0),
    "N": ("force", 1e-3, 0),
    "°C": ("temperature", 1, 0),
    "K": ("temperature", 1, -273.15),
    "°F": ("temperature", 5 / 9, -160 / 9),
    "t": ("mass", 1, 0),
    "kg": ("mass", 1e-3, 0),
    "dBm": ("power level", 1, 0),
    "Hz": ("frequency", 1, 0),
}

_SPELLINGS: Final[dict[str, str]] = {
    "m3/h": "m³/h", "m3/s": "m³/s", "m3/d": "m³/d", "l/s": "L/s", "l/min": "L/min", "mg/l": "mg/L", "ug/L": "µg/L",
    "ug/l": "µg/L", "μg/L": "µg/L", "mg/m3": "mg/m³", "m/s2": "m/s²", "m/s^2": "m/s²", "cm/s2": "cm/s²",
    "gal": "cm/s²", "με": "µε", "ue": "µε", "ustrain": "µε", "deg": "°", "degree": "°", "℃": "°C", "degC": "°C",
    "C": "°C", "pH": "", "1": "", "%vol": "%VOL", "%Vol": "%VOL", "vol%": "%VOL", "Mpa": "MPa", "mpa": "MPa",
    "kpa": "kPa", "inch": "in", "inches": "in", "boolean": "bool", "ntu": "NTU", "db": "dB", "hz": "Hz",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kind:
    """What a sensor measures (指标): `name` is `domain.quantity`, `jump` the step no real process makes, or None."""

    name: str
    unit: str
    zh: str
    en: str
    jump: float | None = None

    @property
    def domain(self) -> str:
        return self.name.partition(".")[0]


def spell(unit: str) -> str | None:
    """The unit's name as this catalogue spells it, or None if it knows no such unit."""
    unit = unit.strip()
    unit = _SPELLINGS.get(unit, unit)
    return unit if unit in UNITS else None


def conversion(unit: str, canonical: str) -> tuple[float, float] | None:
    """`(factor, offset)` with canonical = value * factor + offset; None where the two measure different things."""
    if unit == canonical:
        return 1.0, 0.0
    (quantity, factor, offset), (other, base_factor, base_offset) = UNITS[unit], UNITS[canonical]
    if quantity != other:
        return None
    if unit == "in" and canonical in ("cm", "mm"):  # the exact factor, free of two roundings
        return (2.54 if canonical == "cm" else 25.4), 0.0
    return factor / base_factor, (offset - base_offset) / base_factor


def parse_kinds(text: str, name: str = "kinds.toml") -> dict[str, Kind]:
    """Kinds by name from TOML; raises `Refused` with every mistake."""
    problems: list[Problem] = []
    kinds: dict[str, Kind] = {}
    try:
        table = tomllib.loads(text).get("kind", {})
    except tomllib.TOMLDecodeError as error:
        raise Refused([Problem(name, "", str(error))], name) from None
    for key, entry in table.items():
        place = f"{name}, kind {key}"
        if not isinstance(entry, dict):
            problems.append(Problem(place, "", "must be a table"))
            continue
        if key.count(".") != 1 or not all(part.isidentifier() for part in key.split(".")):
            problems.append(Problem(place, "", "must be called domain.quantity"))
        unit = spell(str(entry.get("unit", "?")))
        if unit is None:
            problems.append(Problem(place, "unit", f"unknown unit {entry.get('unit')!r}"))
        jump = entry.get("jump")
        if jump is not None and not (isinstance(jump, int | float) and jump > 0):
            problems.append(Problem(place, "jump", "must be a number above 0"))
            jump = None
        unknown = sorted(entry.keys() - {"unit", "zh", "en", "jump"})
        problems.extend(Problem(place, field, "unknown field") for field in unknown)
        kinds[key] = Kind(key, unit or "", str(entry.get("zh", key)), str(entry.get("en", key)), jump)
    if problems:
        raise Refused(problems, name)
    return kinds


def load_kinds(extension: Path | None = None) -> dict[str, Kind]:
    """The shipped catalogue of kinds, with the user's file over it. Raises `Refused` with every mistake."""
    shipped = resources.files("twin").joinpath("kinds.toml").read_text(encoding="utf-8")
    kinds = parse_kinds(shipped)
    if extension is None:
        return kinds
    try:
        text = extension.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused([Problem(str(extension), "", str(error))], str(extension)) from None
    added = parse_kinds(text, str(extension))
    problems = [
        Problem(f"{extension}, kind {name}", "unit", f"is {kinds[name].unit} in the catalogue, and stored so")
        for name in added.keys() & kinds.keys()
        if added[name].unit != kinds[name].unit
    ]
    if problems:
        raise Refused(problems, str(extension))
    return kinds | added
