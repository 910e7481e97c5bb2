"""Readings summed up by blocks of event time (an hour, a night, a day), for detectors that look at one number a block.

A block is closed by the sensor's first reading after it, so that what it comes to is told in event time, without a
clock. Sums go on from the state in the order of the readings, so batching changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from alerts.detectors.rows import NEVER, Columns, Pairs
from twin.model import Bools, Floats, Ints

FADE: Final = 0.8  # how fast the number of readings that a block usually has is forgotten
LARGEST: Final = 1e100  # beyond it a value counts as this much, so that sums and their differences stay numbers
ENOUGH: Final = 0.5  # the share of that number that a block must have to be looked at


def at_rest(rows: int) -> Columns:
    """`block`, and of its readings `total`, `count`, `least`; `usual`, the number of readings that a block has."""
    return {
        "block": np.full(rows, NEVER),
        "total": np.zeros(rows),
        "count": np.zeros(rows, np.int64),
        "least": np.full(rows, np.inf),
        "usual": np.zeros(rows),
    }


@dataclass(frozen=True, slots=True)
class Closed:
    """Blocks that were closed, by (group, time): `group`, the closing `pair`, its number `block`, and of its readings
    `total`, `count`, `least`. `columns`: the groups' state after it, but for `usual`."""

    group: Ints
    pair: Ints
    block: Ints
    total: Floats
    count: Ints
    least: Floats
    columns: Columns

    def __len__(self) -> int:
        return len(self.group)


def close(carry: Columns, pairs: Pairs, block: Ints, x: Floats, counts: Bools | None = None) -> Closed:
    """Sum the pairs' values `x` up by `block` (never falling within a group), going on from `carry` (by group);
    `counts` masks those that do (None: all)."""
    head, group = pairs.head, pairs.group
    previous = np.empty(len(block), np.int64)
    previous[1:] = block[:-1]
    previous[head] = carry["block"]
    starts = block != previous
    slot = np.cumsum(starts) + group  # each group has a slot for the carried block, and one for each that starts
    first = np.concatenate([[0], slot[pairs.tail] + 1])[:-1]
    size = int(slot[-1]) + 1
    total, count, least = np.zeros(size), np.zeros(size, np.int64), np.full(size, np.inf)
    total[first], count[first], least[first] = carry["total"], carry["count"], carry["least"]
    x = np.clip(x, -LARGEST, LARGEST)
    into, y = (slot, x) if counts is None else (slot[counts], x[counts])
    np.add.at(total, into, y)
    count += np.bincount(into, minlength=size)
    np.minimum.at(least, into, y)
    pair = np.flatnonzero(starts)
    old = slot[pair] - 1
    pair, old = pair[count[old] > 0], old[count[old] > 0]
    now = slot[pairs.tail]
    columns: Columns = {"block": block[pairs.tail], "total": total[now], "count": count[now], "least": least[now]}
    return Closed(group[pair], pair, previous[pair], total[old], count[old], least[old], columns)


def rounds(group: Ints) -> Iterator[Ints]:
    """The positions of the first of each group, then of the second of each that has one, and so on; equal groups stand
    together."""
    if not len(group):
        return
    starts = np.ones(len(group), bool)
    starts[1:] = group[1:] != group[:-1]
    place = np.arange(len(group))
    rank = place - np.maximum.accumulate(np.where(starts, place, 0))
    order = np.argsort(rank, kind="stable")
    edges = np.searchsorted(rank[order], np.arange(int(rank.max()) + 2))
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        yield order[begin:end]


def is_full(usual: Floats, count: Ints) -> Bools:
    """Whether blocks have enough readings to be looked at. The first one of all has not: it may have begun anywhere."""
    return np.asarray((usual > 0) & (count >= ENOUGH * usual))
