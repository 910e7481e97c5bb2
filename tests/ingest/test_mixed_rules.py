"""Rules of every make in one set, following each other: whatever the order, the batches and the restarts, the same."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import alerts.detectors.together
from alerts.rules import parse_rules
from tests.ingest.test_composite_streams import Reading, Service
from tests.ingest.test_judgement import KINDS, START, standing
from twin.model import MINUTE, SECOND, Sensor

RULES = parse_rules(
    """
[[rule]]
id = "deep"
kind = "drainage.ponding_depth"
detector = "threshold"
levels = { blue = 10, orange = 25 }
hold = { blue = "1min" }
clear = { margin = "10%", hold = "1min" }

[[rule]]
id = "rising"
role = "condition"
kind = "drainage.ponding_depth"
detector = "rate"
window = "5min"
levels = { yellow = 20 }

[[rule]]
id = "sum"
kind = "drainage.ponding_depth"
detector = "accumulate"
window = "6min"
levels = { blue = 60 }

[[rule]]
id = "drift"
kind = "drainage.ponding_depth"
detector = "cusum"
every = "2min"
warm_up = 5
side = "either"
levels = { blue = 2 }

[[rule]]
id = "off-model"
kind = "drainage.ponding_depth"
detector = "residual"
model = "level"
side = "either"
levels = { yellow = 8, red = 20 }
hold = { yellow = "1min" }
max_age = "4min"
patience = "3min"

[[rule]]
id = "unlike"
kind = "drainage.ponding_depth"
detector = "neighbours"
within = "500m"
count = 1
levels = { blue = 8 }
max_age = "2min"
patience = "5min"

[[rule]]
id = "strange"
where = { device = ["d0", "d1"] }
detector = "anomaly"
over = "device"
budget = 1000
max_age = "2min"
patience = "4min"

[[rule]]
id = "trouble"
detector = "composite"
on = "device"
any = [{ all = ["deep", "off-model"], window = "2min" }, "sum", "strange"]
not = [{ rule = "drift", window = "3min" }]
hold = "1min"
clear = { hold = "2min" }
level_from = ["deep", "off-model"]
level_up = 1

[[rule]]
id = "quick"
detector = "composite"
on = "sensor"
all = ["unlike", { any = ["rising", "off-model"] }]

[[rule]]
id = "spread"
detector = "neighbours"
of = "off-model"
within = "500m"
window = "4min"
level = "red"

[[override]]
rule = "deep"
sensor = "d1/depth"
levels = { blue = 12, red = 30 }

[[override]]
rule = "off-model"
sensor = "d1/depth"
levels = { yellow = 5 }

[[override]]
rule = "unlike"
sensor = "d0/depth"
levels = { blue = 20 }
""",
    KINDS,
)
SENSORS = tuple(
    Sensor(
        f"d{n // 2}", ("depth", "level")[n % 2], ("drainage.ponding_depth", "signal.value")[n % 2],
        ("cm", "")[n % 2], asset=f"a{n // 2}", lon=114.0 + n / 1000, lat=22.5, interval_s=60, min=0, max=60,
    )
    for n in range(4)
)  # fmt: skip


@pytest.fixture(autouse=True)
def _learns_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Series of tests are short."""
    learning = ("LEARNT", 10), ("START", 2), ("WARM", 5), ("MOVES", 2), ("CALM", 2), ("RUN", 1), ("APART", 1)
    for name, value in learning:
        monkeypatch.setattr(alerts.detectors.together, name, value)
    monkeypatch.setattr(alerts.detectors.together, "_rarity", lambda state, told: told)


def come_to(service: Service) -> tuple[list[str], list[str]]:
    """What stands, and what is open, of all rules."""
    assert not service.now.engine.failures
    told = [
        f"{e.rule} {e.sensor or e.asset} {e.transition} {e.level} {(e.observed_at - START) / MINUTE} {e.value}"
        for e in standing(service.kept.events)
    ]
    return sorted(told), sorted(a.id for a in service.kept.alert_rows.values() if a.state.is_active)


values = st.sampled_from([0.0, 3.0, 9.0, 10.0, 12.0, 25.0, 30.0, 45.0])


def calm(m: int, v: float) -> float:
    """Something to learn from, before things happen."""
    return v if m % 60 > 24 else 9 + v % 3


# Dense, so that sensors show something at the same times; what is left out makes the gaps.
streams = st.tuples(
    st.lists(values, min_size=20, max_size=60), st.randoms(use_true_random=False), st.sampled_from([0.4, 0.75, 0.95])
).map(
    lambda drawn: [
        (s, m, calm(m, drawn[0][(7 * s + 3 * m) % len(drawn[0])]))
        for m in range(55)
        for s in range(4)
        if drawn[1].random() < drawn[2]
    ]
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    streams, st.randoms(use_true_random=False), st.integers(1, 12), st.lists(st.integers(0, 9), max_size=12),
    st.sampled_from("srd"),
)  # fmt: skip
def test_rules_of_every_make_come_to_the_same_in_any_order_batching_and_restart(
    stream: list[Reading], random: object, size: int, doings: list[int], order: str
) -> None:
    arriving = sorted(stream, key=lambda r: (r[1], r[0]))
    at_once = Service(RULES, SENSORS)
    at_once.take(arriving)
    at_once.tick(1200)
    if order == "s":
        random.shuffle(arriving)  # type: ignore[attr-defined]
    elif order == "d":  # sensors are late as a whole, each in order
        arriving = sorted(arriving, key=lambda r: (r[1] + (0, 7, 30, 3)[r[0]], r[0]))
    service = Service(RULES, SENSORS)
    for n, begin in enumerate(range(0, len(arriving), 3 * size)):
        service.take(arriving[begin : begin + 3 * size], START + n * SECOND)
        doing = doings[n % len(doings)] if doings else 0
        if doing in (1, 2):
            service.restart()
        elif doing == 3:
            service.tick(30 * n)
        elif doing == 4:
            service.tick(1100 + n)
        elif doing == 5:
            service.now.refit(RULES, 1)
        elif doing in (6, 7):
            service.checkpoint()
    service.tick(1200)
    assert come_to(service) == come_to(at_once)
