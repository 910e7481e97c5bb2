"""What lies up and down the pipes from an asset, answered from memory for whoever judges or groups as events come.

The networks of the newest version of every model are held; a thread of its own loads them, and looks every `LOOK_S`
whether a model was imported or sensors changed. Until a new version is loaded the one before it goes on answering.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from twin.model import Indices, StoreRefused, StoreUnavailable
from twin.network.graph import Graph, Place, Sense
from twin.network.nearest import nearest
from twin.network.tracing import trace
from twin.store import reaching as store
from twin.store.database import Connection

log = logging.getLogger(__name__)

ELEMENTS_KEPT: Final = 1_000_000  # nodes and edges; some 300 MB with their ids
ANSWERS_KEPT: Final = 1_000_000  # assets in the answers that are kept
GROUPINGS_KEPT: Final = 4  # answers to `nearest`
LOOK_S: Final = 5.0
PATIENCE_S: Final = 10.0

_SENSES: Final[dict[str, Sense]] = {"upstream": "upstream", "downstream": "downstream", "both": "both"}
NOTHING: Final[Mapping[str, float]] = MappingProxyType({})


class Reach:
    """Answers from any thread. `start` returns at once; whoever asks before the networks were loaded for the first time
    waits for that, at most `PATIENCE_S`, so that the first questions after a start are answered as all others are.

    Bounds: `ELEMENTS_KEPT` nodes and edges, small networks first; one beyond it answers as if it were not there and is
    counted in `left_out`. Answers are kept up to `ANSWERS_KEPT` assets in all, the longest unused goes first.
    `failures` counts looks that the database did not answer; what was loaded goes on serving. `changes` counts how
    often networks, or the names of assets, became others.
    """

    def __init__(self, dsn: str) -> None:
        self.failures = 0
        self.left_out = 0
        self.changes = 0
        self._dsn = dsn
        self._standing = Networks()
        self._mark: Any = None
        self._is_loaded = threading.Event()
        self._is_due = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reach", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._is_due.set()
        self._is_loaded.set()
        if self._thread.is_alive():
            self._thread.join(15)

    def ready(self, patience_s: float) -> bool:
        """Wait until the networks were loaded for the first time, at most so long; whether they were."""
        return self._is_loaded.wait(patience_s)

    def look(self) -> None:
        """Look now whether a model was imported; from any thread."""
        self._is_due.set()

    def reached(self, asset: str, along: str, within_m: float | None = None) -> Mapping[str, float]:
        """What one reaches from `asset` (its id, or the name that a sensor on it was given) by its network, itself at
        0: distances in metres along open pipes, `upstream`, `downstream` or `both` (whatever the flow), at most
        `within_m`. Keys are ids, and beside them the names that sensors use. Empty for what is in no network. The same
        mapping may be given again and is not to be changed. ValueError for another word."""
        return self._loaded().reached(asset, along, within_m)

    def nearest(self, assets: Sequence[str], along: str, within_m: float, most: int) -> Indices:
        """For each of these assets (named as for `reached`) the nearest `most` of them `along` it, at most `within_m`
        metres away: their places in `assets` [n, most], itself first, equally near ones in the order given, -1 where
        there are fewer; nothing but -1 for one that is in no network. Distances as of `reached`. Not to be changed.
        5 s of CPU for 100,000 assets in a network of 200,000 edges; asked again, it is cheap."""
        return self._loaded().nearest(assets, along, within_m, most)

    def knows(self, asset: str) -> bool:
        """Whether an asset (named as for `reached`) is in a network."""
        return self._loaded().knows(asset)

    def id_of(self, name: str) -> str:
        """The id of the asset that a sensor calls `name`; the same text where it is an id, or nobody's name."""
        return self._loaded().names.get(name, name)

    def _loaded(self) -> Networks:
        if not self._is_loaded.is_set() and self._thread.is_alive():
            self._is_loaded.wait(PATIENCE_S)
        return self._standing

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._is_due.clear()
            try:
                with store.connected(self._dsn) as connection:
                    self._follow(connection)
            except (StoreUnavailable, StoreRefused) as error:
                self.failures += 1
                log.warning("networks: %s", error)
                self._stopping.wait(1.0)

    def _follow(self, connection: Connection) -> None:
        while not self._stopping.is_set():
            self._is_due.clear()
            mark = store.mark(connection)
            if mark != self._mark:
                found = self._load(connection)
                if not found.is_like(self._standing):
                    self._standing = found
                    self.changes += 1
                self._mark = mark
            self._is_loaded.set()
            self._is_due.wait(LOOK_S)

    def _load(self, connection: Connection) -> Networks:
        """What the database holds now; of what is the same as before nothing is loaded again."""
        before = self._standing.known
        known: dict[tuple[int, int], Known] = {}
        room, self.left_out = ELEMENTS_KEPT, 0
        for row in store.newest(connection):
            room -= row.elements
            if room < 0:
                self.left_out += 1
                continue
            same = before.get(row[:2])
            if same is None:
                network, node_key, edge_key = store.network(connection, row)
                keys = np.concatenate((node_key, edge_key)).tolist()
                ids = store.ids_of(connection, keys)
                same = Known(Graph(network), [ids.get(key, "") for key in keys])
            known[row[:2]] = same
        if self.left_out:
            log.warning("%d networks have no room in memory and answer nothing", self.left_out)
        return Networks(known, store.other_names(connection))


def _sense(along: str) -> Sense:
    if along not in _SENSES:
        raise ValueError(f"along must be upstream, downstream or both, not {along!r}")
    return _SENSES[along]


class Known:
    """A network; `id` of its nodes, then of its edges ("" of what is no asset); `at` their places by id."""

    def __init__(self, graph: Graph, id_: list[str]) -> None:
        self.graph = graph
        self.id = id_
        self.at = {one: n for n, one in enumerate(id_) if one}

    def place(self, id_: str) -> Place | None:
        at = self.at.get(id_)
        if at is None:
            return None
        return Place("node", at) if at < self.graph.nodes else Place("link", at - self.graph.nodes)


class Networks:
    """Networks that do not change (by version and number there), and what was answered from them, as `Reach` says it.
    `names`: ids by the names that sensors use."""

    changes = 0

    def __init__(
        self, known: dict[tuple[int, int], Known] | None = None, names: dict[str, str] | None = None
    ) -> None:  # fmt: skip
        self.known = known or {}
        self.names = names or {}
        self._names_of: dict[str, list[str]] = {}
        for name, id_ in self.names.items():
            self._names_of.setdefault(id_, []).append(name)
        self._lock = threading.Lock()
        self._answers: OrderedDict[tuple[str, str, float], Mapping[str, float]] = OrderedDict()
        self._size = 0
        self._nearest: OrderedDict[tuple[tuple[str, ...], str, float, int], Indices] = OrderedDict()

    def is_like(self, other: Networks) -> bool:
        """Whether all answers are the same."""
        return self.known.keys() == other.known.keys() and self.names == other.names

    def knows(self, asset: str) -> bool:
        id_ = self.names.get(asset, asset)
        return any(id_ in known.at for known in self.known.values())

    def reached(self, asset: str, along: str, within_m: float | None = None) -> Mapping[str, float]:
        id_ = self.names.get(asset, asset)
        sense, limit_m = _sense(along), math.inf if within_m is None else within_m
        key = (id_, along, limit_m)
        with self._lock:
            found = self._answers.get(key)
            if found is not None:
                self._answers.move_to_end(key)
                return found
        found = self._trace(id_, sense, limit_m)
        with self._lock:
            if found and key not in self._answers:
                self._answers[key] = found
                self._size += len(found)
                while self._size > ANSWERS_KEPT and len(self._answers) > 1:
                    self._size -= len(self._answers.popitem(last=False)[1])
        return found

    def nearest(self, assets: Sequence[str], along: str, within_m: float, most: int) -> Indices:
        sense = _sense(along)
        key = (tuple(assets), along, within_m, most)
        with self._lock:
            found = self._nearest.get(key)
            if found is not None:
                self._nearest.move_to_end(key)
                return found
        found = np.full((len(assets), most), -1, np.int32)
        ids = [self.names.get(name, name) for name in assets]
        is_found = np.zeros(len(assets), bool)
        for known in self.known.values():
            there = [(n, at) for n, id_ in enumerate(ids) if (at := known.at.get(id_)) is not None]
            if not there:
                continue
            asset, at = np.array(there, np.int64).T
            place, _ = nearest(known.graph, at, sense, within_m, most)
            place = np.where(place >= 0, asset[np.maximum(place, 0)], -1)
            first = ~is_found[asset]  # in several networks an asset asks in the first, as in a trace
            found[asset[first]] = place[first]
            is_found[asset] = True
        with self._lock:
            self._nearest[key] = found
            while len(self._nearest) > GROUPINGS_KEPT:
                self._nearest.popitem(last=False)
        return found

    def _trace(self, id_: str, along: Sense, within_m: float) -> Mapping[str, float]:
        for known in self.known.values():
            place = known.place(id_)
            if place is not None:
                break
        else:
            return NOTHING
        found = trace(known.graph, place, along, limit_m=within_m)
        at = np.concatenate((found.node, found.edge + known.graph.nodes)).tolist()
        # As the trace over HTTP: sums along two ways that are equal on paper are equal.
        distance = np.round(np.concatenate((found.node_distance_m, found.edge_distance_m)), 6).tolist()
        ids = known.id
        result = {ids[n]: m for n, m in zip(at, distance, strict=True) if ids[n]}
        for one in result.keys() & self._names_of.keys():
            result.update(dict.fromkeys(self._names_of[one], result[one]))
        return MappingProxyType(result)
