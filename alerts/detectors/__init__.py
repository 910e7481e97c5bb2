"""The kinds of detectors, one family a file; these tables are where one is registered."""

from __future__ import annotations

from typing import Final

from alerts.composition import Composition
from alerts.detectors.accumulate import AccumulateWatches
from alerts.detectors.anomaly import AnomalyWatches
from alerts.detectors.baseline import BaselineWatches
from alerts.detectors.cusum import CusumWatches
from alerts.detectors.joined import JoinedFamily
from alerts.detectors.limits import LimitWatches
from alerts.detectors.night import NightWatches
from alerts.detectors.rate import RateWatches
from alerts.detectors.residual import DeviationWatches, NeighbourWatches
from alerts.detectors.rows import OwnFamily
from alerts.detectors.spectrum import SpectrumWatches
from alerts.detectors.stuck import StuckWatches
from alerts.detectors.together import TogetherWatches
from alerts.rules import Rule

# Each sensor by itself.
FAMILIES: Final[dict[str, type[OwnFamily]]] = {
    "limits": LimitWatches,
    "rate": RateWatches,
    "stuck": StuckWatches,
    "anomaly": AnomalyWatches,
    "accumulate": AccumulateWatches,
    "baseline": BaselineWatches,
    "cusum": CusumWatches,
    "night": NightWatches,
}

# The readings of several sensors, joined by event time.
JOINED: Final[dict[str, type[JoinedFamily]]] = {
    "residual": DeviationWatches,
    "neighbours": NeighbourWatches,
    "spectrum": SpectrumWatches,
    "together": TogetherWatches,
}

# detector of a rule: family that judges it; `offline` is judged by the clock and has its own place in the engine
DETECTORS: Final[dict[str, str]] = {
    "threshold": "limits",
    "range": "limits",
    "rate": "rate",
    "stuck": "stuck",
    "anomaly": "anomaly",
    "residual": "residual",
    "neighbours": "neighbours",
    "spectrum": "spectrum",
    "accumulate": "accumulate",
    "baseline": "baseline",
    "cusum": "cusum",
    "night": "night",
}


def family_of(rule: Rule) -> str:
    """The family that judges the rule; empty where none does: silence and rules over other rules have their own."""
    if isinstance(rule.parameters, Composition):
        return ""
    if rule.detector == "anomaly" and rule.parameters is not None:
        return "together"
    return DETECTORS.get(rule.detector, "")
