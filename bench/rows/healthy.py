"""False alerts of the default pack in a healthy city (`python -m bench.healthy` at full size)."""

from __future__ import annotations

from typing import Final

from alerts.packs import default_text
from alerts.rules import parse_rules
from bench.healthy import GOAL, HealthyCity, judge
from bench.report import Figure
from bench.services import Bench
from twin.units import load_kinds

SENSORS: Final = 5_000
DAYS: Final = 7


def false_alerts(bench: Bench) -> list[Figure]:
    """One run: the city is the same each time."""
    found = judge(HealthyCity(bench.scaled(SENSORS), DAYS), parse_rules(default_text(), load_kinds()))
    fault = f"{found.missed} of {found.long} long outages were not told" if found.missed else ""
    return [
        Figure(
            "healthy", f"false alerts per 1,000 sensors and day, {found.sensors:,} sensors, {DAYS} days", "",
            [found.rate(sum(found.false.values()))], GOAL, "at most", fault=fault,
            details={
                "readings judged, late ones again (there is no database here)": f"{found.readings:,}",
                "readings/s, with quality, silence and alerts": found.readings / found.judging_s,
                "true alerts of outages per 1,000 sensors and day": found.rate(found.outages),
                "outages of more than five intervals, all told": found.long,
            } | {f"of {rule}": count for rule, count in found.false.most_common()},
        )
    ]  # fmt: skip
