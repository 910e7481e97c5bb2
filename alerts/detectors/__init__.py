"""The kinds of detectors, one family a file; these tables are where one is registered."""

from __future__ import annotations

from typing import Final

from alerts.detectors.accumulate import AccumulateWatches
from alerts.detectors.anomaly import AnomalyWatches
from alerts.detectors.baseline import BaselineWatches
from alerts.detectors.cusum import CusumWatches
from alerts.detectors.limits import LimitWatches
from alerts.detectors.night import NightWatches
from alerts.detectors.rate import RateWatches
from alerts.detectors.rows import Family
from alerts.detectors.stuck import StuckWatches

FAMILIES: Final[dict[str, type[Family]]] = {
    "limits": LimitWatches,
    "rate": RateWatches,
    "stuck": StuckWatches,
    "anomaly": AnomalyWatches,
    "accumulate": AccumulateWatches,
    "baseline": BaselineWatches,
    "cusum": CusumWatches,
    "night": NightWatches,
}

# detector of a rule: family that judges it; `offline` is judged by the clock and has its own place in the engine
DETECTORS: Final[dict[str, str]] = {
    "threshold": "limits",
    "range": "limits",
    "rate": "rate",
    "stuck": "stuck",
    "anomaly": "anomaly",
    "accumulate": "accumulate",
    "baseline": "baseline",
    "cusum": "cusum",
    "night": "night",
}
