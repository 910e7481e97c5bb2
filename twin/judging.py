"""`cimtwin judge`: rules over a file of recorded readings, with the production engine and without a database."""

from __future__ import annotations

import csv
import io

import numpy as np
import orjson

from alerts.judge import judge
from alerts.lifecycle import AlertBook, Docket
from alerts.rules import RuleSet
from ingest import quality
from ingest.recorded import Recorded, read_recorded
from twin.catalog import Catalog
from twin.importing import parse_named_rules
from twin.live import event_json
from twin.model import LEVELS, Problem, Readings, Refused, Sensor, iso
from twin.sensors import parse_sensors_csv
from twin.settings import Settings
from twin.state import SensorState
from twin.units import load_kinds

NamedBytes = tuple[str, bytes]


def judge_files(
    settings: Settings, rules: NamedBytes, readings: NamedBytes, sensors: NamedBytes | None
) -> tuple[str, str]:
    """The CSV of judged readings and the JSON lines of alert events. Raises `Refused` with every mistake of a file.

    Without a sensor list every sensor of the readings is taken to be of the one kind that the rules name, or, where
    they name none, a plain number (`signal.value`), its values in the canonical unit.
    """
    kinds = load_kinds(settings.kinds)
    rule_set = parse_named_rules(rules[1], rules[0], kinds)
    recorded = read_recorded(readings[1], readings[0])
    catalog = Catalog(kinds)
    if sensors is not None:
        listed = parse_sensors_csv(sensors[1], kinds, sensors[0])
    else:
        kind = _only_kind(rule_set)
        listed = [Sensor(device, prop, kind, kinds[kind].unit) for device, prop in recorded.sensors]
    catalog.put(list(enumerate(listed)))
    judged = judge(rule_set, catalog, _readings(recorded, catalog, readings[0]))
    kept = judged.readings
    docket = Docket(AlertBook(), rule_set, 1, catalog, int(kept.observed_at.max(initial=0)))
    for transition in judged.transitions:
        docket.judge(transition)
    names = sorted({s.id for s in catalog.sensors})
    place = {name: n for n, name in enumerate(names)}
    rank = np.array([place[s.id] for s in catalog.sensors], np.int64)
    order = np.lexsort((rank[kept.sensor], kept.observed_at))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["device", "property", "observed_at", "value", "score", "level"])
    for row in order.tolist():
        sensor = catalog.sensors[int(kept.sensor[row])]
        value = float(kept.value[row])
        level, score = int(judged.level[row]), float(judged.score[row])
        writer.writerow(
            [
                sensor.device,
                sensor.property,
                iso(int(kept.observed_at[row])),
                "" if value != value else repr(value),
                "" if score != score else f"{score:.6g}",
                LEVELS[level - 1] if level else "",
            ]
        )
    told = "".join(orjson.dumps(event_json(event)).decode() + "\n" for event in docket.events)
    return out.getvalue(), told


def _only_kind(rules: RuleSet) -> str:
    kinds = {rule.kind for rule in rules.rules if rule.kind} | {k for rule in rules.rules for k in rule.where.kind}
    if len(kinds) > 1:
        text = "rules of several kinds need a sensor list: give --sensors / 规则涉及多种指标,请用 --sensors 给出测点表"
        raise Refused([Problem(", ".join(sorted(kinds)), "", text)])
    return kinds.pop() if kinds else "signal.value"


def _readings(recorded: Recorded, catalog: Catalog, name: str) -> Readings:
    """The file's readings in canonical units with their quality. Raises `Refused` for sensors not listed."""
    index = []
    problems = []
    for n, (device, prop) in enumerate(recorded.sensors):
        found = catalog.devices.get(device, {}).get(prop)
        if found is None:
            line = int(recorded.line[np.argmax(recorded.sensor == n)])
            problems.append(Problem(f"{name}, line {line}", "property", f"unknown sensor {device}/{prop}"))
        index.append(-1 if found is None else found)
    if problems:
        raise Refused(problems, name)
    sensor = np.array(index, np.int32)[recorded.sensor] if index else np.empty(0, np.int32)
    value = recorded.value * catalog.factor[sensor] + catalog.offset[sensor]
    at = recorded.observed_at
    state = SensorState.of(len(catalog))
    bits = quality.judge(sensor, at, at, value, catalog, state, np.zeros(len(sensor), bool))
    return Readings(sensor, at, at, value, bits)
