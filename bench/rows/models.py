"""Models of networks: how fast a file becomes assets, geometry and a graph, and how that grows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from bench.report import Figure
from bench.services import Bench
from models3d import readers

NODES: Final = 12_500  # as the larger network of the Battle of the Water Sensor Networks has
TIMES: Final = 10
GOAL_S: Final = 2.0
GROWTH_GOAL: Final = 1.3


def epanet(bench: Bench) -> list[Figure]:
    """A grid of 12,500 nodes, and one ten times as large. Time of this process, as others interrupt the clock's."""
    small, large = epanet_text(NODES).encode(), epanet_text(NODES * TIMES).encode()
    one, ten, faults = [], [], []
    for _ in range(bench.runs):
        for data, seconds, nodes in ((small, one, NODES), (large, ten, NODES * TIMES)):
            begun = time.process_time()
            model = readers.read(data, "grid.inp")
            seconds.append(time.process_time() - begun)
            if len(model.networks[0].node) != nodes:
                faults.append(f"{len(model.networks[0].node)} of {nodes} nodes")
    growth = [b / a / TIMES for a, b in zip(one, ten, strict=True)]
    fault = "; ".join(faults)
    size = f"{len(small) / 1e6:.1f} MB"
    return [
        Figure("models-epanet", f"EPANET file, 12,500 nodes ({size})", "s", one, GOAL_S, "at most", fault=fault),
        Figure("models-epanet", "cost a node, ten times the nodes over once", "times", growth, GROWTH_GOAL, "at most",
               fault=fault),
    ]  # fmt: skip


def epanet_text(nodes: int) -> str:
    """A supply network in EPANET's format: a grid of streets 100 m apart with a reservoir, a tank, pumps, valves and a
    vertex in every eighth pipe; `nodes` of all kinds, links 1.2 times as many and more."""
    return "\n".join(_epanet_lines(nodes)) + "\n"


def _epanet_lines(nodes: int) -> Iterator[str]:
    junctions = nodes - 2
    wide = max(int(junctions**0.5), 2)
    at = [divmod(n, wide) for n in range(junctions)]
    yield "[TITLE]\nA grid\n\n[JUNCTIONS]\n;ID Elev Demand Pattern"
    yield from (f" J{n}\t{20 + (r * 7 + c * 3) % 40}\t{(n % 7) / 10}\tday\t;" for n, (r, c) in enumerate(at))
    yield "\n[RESERVOIRS]\n R1\t80\t;\n\n[TANKS]\n T1\t60\t3\t0\t6\t20\t0\t\t;\n\n[PIPES]"
    along = [(n, n + 1) for n in range(junctions - 1) if (n + 1) % wide]
    down = [(n, n + wide) for n in range(junctions - wide) if not n % 4]
    pipes = along + down + [(n * wide, (n + 1) * wide) for n in range((junctions - 1) // wide) if (n * wide) % 4]
    for n, (a, b) in enumerate(pipes):
        yield f" P{n}\tJ{a}\tJ{b}\t100.0\t{(100, 150, 200, 300)[n % 4]}\t120\t0\tOpen\t;"
    yield f" PT\tT1\tJ{junctions - 1}\t50\t300\t120\t0\tOpen\t;"
    yield "\n[PUMPS]\n PU1\tR1\tJ0\tHEAD lift\t;\n\n[VALVES]\n V1\tJ0\tJ1\t300\tPRV\t40\t0\t;\n\n[CURVES]\n lift 500 60"
    yield "\n[PATTERNS]\n day 0.5 0.6 0.9 1.4 1.2 1.0\n\n[OPTIONS]\n Units CMH\n Headloss H-W\n\n[COORDINATES]"
    yield from (f" J{n}\t{500000 + 100 * c:.2f}\t{3300000 + 100 * r:.2f}" for n, (r, c) in enumerate(at))
    yield " R1\t499900\t3300000\n T1\t499900\t3300100\n\n[VERTICES]"
    for n in range(0, len(pipes), 8):
        r, c = at[pipes[n][0]]
        yield f" P{n}\t{500000 + 100 * c + 40:.2f}\t{3300000 + 100 * r + 15:.2f}"
    yield "\n[END]"
