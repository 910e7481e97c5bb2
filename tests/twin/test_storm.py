"""The demo's storm: the pump speaks first, then some forty manholes, all of them upstream of it, and it ends."""

from __future__ import annotations

import numpy as np

from alerts.judge import judge
from alerts.rules import parse_rules
from ingest.codecs import decode
from ingest.publisher import device_messages
from twin.catalog import Catalog
from twin.demo import storm
from twin.demo.city import DRAINAGE
from twin.demo.district import models
from twin.model import HOUR, RawMessage, Readings
from twin.sensors import sensor_to_json, sensors_from_json
from twin.units import load_kinds

KINDS = load_kinds()
SENSORS = storm.sensors()
CATALOG = Catalog(KINDS)
CATALOG.put(list(enumerate(SENSORS)))


def upstream(pump: str) -> set[str]:
    """Nodes whose water comes to this pump, found by walking the drains backwards."""
    network = next(net for model in models().values() for net in model.networks if net.system == "drainage")
    begin, end = network.start.tolist(), network.end.tolist()
    found = {begin[network.edge.index(pump)]}
    while grown := {a for a, b in zip(begin, end, strict=True) if b in found} - found:
        found |= grown
    return {network.node[place] for place in found}


def test_every_message_of_it_can_be_used_and_the_same_comes_each_time() -> None:
    assert sensors_from_json([sensor_to_json(sensor) for sensor in SENSORS], KINDS) == SENSORS
    recorded = storm.readings()
    messages = list(device_messages(recorded, DRAINAGE))
    decoded = decode([RawMessage(m.topic, m.payload, m.observed_at) for m in messages], CATALOG)
    assert not decoded.rejects
    assert len(decoded) == len(recorded) == storm.LASTS * len(SENSORS)
    again = storm.readings()
    assert (again.value == recorded.value).all()
    assert (again.observed_at == recorded.observed_at).all()
    assert (np.diff(recorded.observed_at) >= 0).all()


def test_the_pump_stops_first_and_what_rises_then_lies_upstream_and_falls_again() -> None:
    recorded = storm.readings()
    at = recorded.observed_at
    readings = Readings(recorded.sensor, at, at, recorded.value, np.zeros(len(at), np.uint8))
    rules = parse_rules(storm.rules(), KINDS)
    told = judge(rules, CATALOG, readings).transitions
    raised = [(rules.rules[t.rule].id, SENSORS[t.sensor]) for t in told if t.before == 0]
    assert (raised[0][0], raised[0][1].id) == ("duty-pump-stopped", f"{storm.PUMP}/running")
    wells = [sensor.asset for rule, sensor in raised[1:] if sensor.kind == "drainage.level"]
    assert 40 <= len(set(wells)) <= 50
    assert set(wells) <= upstream("雨水泵站1号")
    assert sum(t.before == 0 for t in told) == sum(t.after == 0 for t in told)
    rain = recorded.value[recorded.sensor == next(n for n, s in enumerate(SENSORS) if s.device == "rg-01")]
    assert 10 < rain.sum() < 50  # below the lowest signal of the weather service, however long it is looked at
    assert at[-1] - at[0] < 4 * HOUR
