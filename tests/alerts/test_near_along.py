"""Neighbours along the network: who they are, by the distances of networkx; and that nothing is lost with it."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
import pytest
from alerts_city import MINUTE, T0, catalog, feed, rules
from hypothesis import given, settings
from hypothesis import strategies as st

from alerts.engine import NO_NETWORK, Engine
from alerts.groups import MOST
from alerts.lifecycle import AlertBook, Docket
from alerts.rules import RuleSet
from tests.twin.networks import network, networks
from tests.twin.test_network import travelled
from twin.catalog import Catalog
from twin.city import Network
from twin.model import InvalidRules, Sensor
from twin.network.graph import Graph
from twin.reach import Known, Networks


def pipes(*of: Network, names: dict[str, str] | None = None) -> Networks:
    """Networks in memory, small ones first, their nodes and edges being assets by their names."""
    known = [Known(Graph(net), [*net.node, *net.edge]) for net in of]
    return Networks({(0, n): one for n, one in enumerate(known)}, names)


def rule(body: str = "", along: str = "both") -> RuleSet:
    return rules(
        f'[[rule]]\nid = "n"\ntitle = {{ zh = "液位不符", en = "Level off" }}\nkind = "drainage.level"\n'
        f'detector = "neighbours"\nalong = "{along}"\nwithin = "100m"\ncount = 2\nlevels = {{ blue = 2 }}\n{body}'
    )


def on(assets: Sequence[str], **more: object) -> Catalog:
    return catalog(
        *(Sensor(f"d{n}", "v", "drainage.level", "m", asset=a, **more) for n, a in enumerate(assets))  # type: ignore[arg-type]
    )


def groups(of: RuleSet, city: Catalog, reach: Networks | None) -> list[list[int]]:
    member = Engine(of, city, reach=reach).joined["neighbours"].join.groups.member
    return [[m for m in row if m >= 0] for row in member.tolist()]


@settings(max_examples=100, deadline=None)
@given(networks(), st.data())
def test_neighbours_are_the_nearest_of_the_kind_along_the_network(net: Network, data: st.DataObject) -> None:
    along = data.draw(st.sampled_from(["downstream", "upstream", "both"]))
    places = data.draw(st.lists(st.sampled_from([*net.node, "elsewhere"]), min_size=1, max_size=24))
    others = data.draw(st.sets(st.sampled_from(net.node)))
    city = catalog(
        *(Sensor(f"d{n}", "v", "drainage.level", "m", asset=a) for n, a in enumerate(places)),
        *(Sensor(f"d{n}", "q", "drainage.ponding_depth", "cm", asset=a) for n, a in enumerate(sorted(others))),
    )
    within, graph = data.draw(st.sampled_from([1, 3, 100])), travelled(net, along)
    text = rule(along=along).text.replace('"100m"', f'"{within}m"')
    first = {a: places.index(a) for a in places}
    wanted = []
    for n, a in enumerate(places):
        if a in net.node:
            near = nx.single_source_dijkstra_path_length(graph, net.node.index(a), cutoff=within)
            found = [
                (near[net.node.index(b)], b != a, first[b], m)
                for m, b in enumerate(places)
                if m != n and b in net.node and net.node.index(b) in near
            ]
            if len(found) >= 2:
                wanted.append([n, *sorted(m for *_, m in sorted(found)[: MOST - 1])])
    assert groups(rules(text), city, pipes(net)) == wanted


def test_where_no_network_is_known_nothing_is_judged_and_each_such_sensor_is_named() -> None:
    net = network(4, [(n, n + 1, 40.0) for n in range(3)], one_way=True)
    city = on(["n0", "n1", "elsewhere", "n2", "n3"], lon=114.0, lat=22.5)
    engine = Engine(rule(along="upstream"), city, reach=pipes(net))
    assert groups(rule(along="upstream"), city, pipes(net)) == [[3, 0, 1], [4, 1, 3]]
    lost = [(lack.sensor, lack.missing, lack.is_watched, lack.why) for lack in engine.fitted.lacking]
    assert lost == [(2, ("along",), False, NO_NETWORK)], "one with too few neighbours lacks no network"
    alone = Engine(rule(), city)
    assert [lack.sensor for lack in alone.fitted.lacking] == [0, 1, 2, 3, 4]
    assert feed(alone, [(n, T0, 9.0 * n) for n in range(5)]) == []
    assert not alone.failures


def test_names_that_sensors_use_stand_for_their_assets_and_a_sensor_may_sit_on_a_pipe() -> None:
    net = network(3, [(0, 1, 30.0), (1, 2, 30.0)])
    city = on(["well", "e0", "n2", "n2"])
    assert groups(rule(), city, pipes(net, names={"well": "n0"})) == [
        [0, 1, 2, 3],
        [1, 0, 2, 3],
        [2, 0, 1, 3],
        [3, 0, 1, 2],
    ]


def test_an_override_may_look_further_and_finds_sensors_that_have_other_values() -> None:
    net = network(6, [(n, n + 1, 90.0) for n in range(5)])
    of = rule('[[override]]\nrule = "n"\nsensor = "d3/v"\nwithin = "180m"\n')
    assert groups(of, on([f"n{n}" for n in range(6)]), pipes(net)) == [[1, 0, 2], [2, 1, 3], [3, 1, 2, 4, 5], [4, 3, 5]]


def test_an_alert_says_against_whom_and_goes_on_when_the_network_becomes_another() -> None:
    net = network(4, [(n, n + 1, 40.0) for n in range(3)], one_way=True)
    more = network(5, [(0, 1, 40.0), (1, 2, 40.0), (2, 3, 40.0), (4, 2, 10.0)], one_way=True)
    of, city = rule(along="upstream"), on([f"n{n}" for n in range(5)])
    engine = Engine(of, city, reach=pipes(net))
    (told,) = feed(engine, [(n, T0, 5.0 * (n == 2)) for n in range(5)])
    docket = Docket(AlertBook(), of, 1, city, T0)
    docket.judge(told)
    assert "较上游邻近测点中位数偏离 +5 m" in docket.events[0].message_zh
    assert "off the median of the sensors upstream by +5 m" in docket.events[0].message_en
    after = Engine(of, city, reach=pipes(more))
    after.adopt(engine)
    assert [c.tolist() for c in after.levels()] == [[0], [2], [1]]
    told = feed(after, [(n, T0 + MINUTE, 1.0) for n in range(5)])
    assert [(t.sensor, t.before, t.after) for t in told] == [(2, 1, 0)]


@pytest.mark.parametrize("value", ['"up"', '""', "1"])
def test_a_word_that_is_none_of_the_three_is_refused(value: str) -> None:
    text = rule().text.replace('along = "both"', f"along = {value}")
    with pytest.raises(InvalidRules) as refused:
        rules(text)
    assert [problem.field for problem in refused.value.problems] == ["along"]


def test_rules_along_networks_are_known_to_follow_them() -> None:
    plane = rules(rule().text.replace('along = "both"\n', ""))
    assert rule().follows_networks
    assert not plane.follows_networks
    assert rules(plane.text + '[[override]]\nrule = "n"\nsensor = "d0/v"\nalong = "upstream"\n').follows_networks
    assert rule().by_id["n"].fingerprint != plane.by_id["n"].fingerprint
