"""A healthy city gives nearly no alert, each thing wrong in it gives one, and every rule of the default pack looks."""

from __future__ import annotations

import pytest

from alerts.engine import Engine
from alerts.packs import default_text
from alerts.rules import parse_rules
from bench.city import City
from bench.healthy import GOAL, Fault, HealthyCity, judge
from bench.rows.judging import catalog_of
from twin.catalog import Catalog
from twin.units import load_kinds

KINDS = load_kinds()
RULES = parse_rules(default_text(), KINDS)
DAYS = 3
FAULTS = {
    "gas-methane": Fault("gas-well-00001/methane", 10, 12, 1.2),
    "manhole-methane": Fault("manhole-00001/methane", 10, 12, 3.0),
    "gas-stuck": Fault("manhole-00002/methane", 5, 50, 0.31),
    "water-pressure-low": Fault("pressure-00001/pressure", 10, 12, 0.12),
    "water-pressure-design-head": Fault("storeys-00001/pressure", 10, 12, 0.25),
    "water-pressure-negative": Fault("pressure-00002/pressure", 10, 12, -0.02),
    "water-stuck": Fault("pressure-00003/pressure", 10, 30),
    "gas-pressure-high": Fault("district-regulator-00001/pressure", 10, 12, 280),
    "gas-pressure-low": Fault("regulator-00001/pressure", 10, 12, 1.5),
    "water-pressure-service-head": Fault("pressure-00004/pressure", 10, 12, 0.11),
    "water-pressure-high": Fault("pressure-00005/pressure", 10, 12, 0.6),
    "well-level": Fault("manhole-00003/level", 10, 12, 1.7),
    "bridge-strain-design": Fault("bridge-00000/strain_2", 10, 12, 450),
    "bridge-strain-design-negative": Fault("bridge-00000/strain_3", 10, 12, -450),
    "bridge-deflection-design": Fault("bridge-00000/deflection_1", 10, 12, 40),
    "bridge-deflection-design-negative": Fault("bridge-00000/deflection_2", 10, 12, -40),
    "bridge-cable-force-design": Fault("bridge-00000/cable_1", 10, 12, 12_000),
    "water-turbidity": Fault("quality-00001/turbidity", 10, 12, 2),
    "water-chlorine-network": Fault("quality-00001/chlorine", 10, 12, 0.02),
    "water-chlorine-plant": Fault("plant-00000/chlorine", 10, 12, 0.2),
    "water-ph": Fault("quality-00002/ph", 10, 12, 9),
    "water-quality-stuck": Fault("quality-00003/chlorine", 5, 40),
    "road-ponding": Fault("road-00001/depth", 10, 12, 18),
    "underpass-ponding": Fault("underpass-00001/depth", 10, 12, 7),
    "manhole-tilt": Fault("cover-00001/tilt", 5, 40, 80),
    "manhole-open": Fault("cover-00002/open", 5, 40, 1),
    "confined-h2s": Fault("sewer-00001/h2s", 10, 12, 12),
    "confined-co": Fault("sewer-00002/co", 10, 12, 45),
    "confined-oxygen-low": Fault("sewer-00003/oxygen", 10, 12, 18.5),
    "confined-oxygen-high": Fault("sewer-00004/oxygen", 10, 12, 24),
    "bridge-acceleration-rms": Fault("bridge-00000/acc_1.rms", 10, 11, 0.4),
    "bridge-crack": Fault("bridge-00001/crack_1", 10, 40, 0.25),
    "bridge-crack-prestressed": Fault("bridge-00001/crack_4", 10, 40, 0.15),
    "bridge-vehicle-weight": Fault("bridge-00000/vehicle_weight", 10, 10.1, 60),
    "bridge-stuck": Fault("bridge-00000/strain_1", 5, 40),
    "device-battery-low": Fault("gas-well-00002/battery", 10, 30, 12),
}


@pytest.fixture(scope="module")
def city() -> HealthyCity:
    return HealthyCity(2000, DAYS)


def test_a_healthy_city_stays_within_the_goal_and_its_outages_are_told(city: HealthyCity) -> None:
    found = judge(city, RULES)
    assert found.rate(sum(found.false.values())) <= GOAL, found.examples
    assert found.readings > 400_000
    assert found.late > 10  # some came late and were judged again
    assert found.outages > 10
    assert found.long > 5
    assert found.missed == 0


def test_what_is_wrong_in_it_is_raised_each_by_its_rule() -> None:
    found = judge(HealthyCity(2000, DAYS, faults=list(FAULTS.values())), RULES)
    told = {(rule, sensor) for rule, sensor in found.raised if rule != "device-offline"}
    assert {(rule, fault.sensor) for rule, fault in FAULTS.items()} <= told
    assert {sensor for _, sensor in told} == {fault.sensor for fault in FAULTS.values()}


def test_both_cities_have_something_for_every_rule_of_the_default_pack(city: HealthyCity) -> None:
    healthy = Catalog(KINDS)
    healthy.put(list(enumerate(city.sensors)))
    healthy.describe(city.facts(), RULES.attributes)
    for name, catalog in {"healthy": healthy, "judging": catalog_of(KINDS, City(2000))}.items():
        engine = Engine(RULES, catalog)
        watching = set(engine.offline.rows.rule.tolist())
        for family in engine.families.values():
            watching.update(engine.fitted.public[family.rows.rule].tolist())
        by_readings = [r for r in RULES.rules if (r.kind or r.where.kind) and r.enabled]
        if name == "judging":  # has no city model
            by_readings = [r for r in by_readings if all(limit.default is not None for _, limit in r.from_model)]
        assert not [rule.id for rule in by_readings if RULES.index(rule.id) not in watching], name
