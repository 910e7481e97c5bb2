"""The anomaly detector over several sensors: samples in which they are together unlike what they have been.

Of each sensor a fast mean (`RUN` samples) is held against a slow one (`SLOW` samples), which follows as long as nothing
is unusual: so slow drifts, as of temperatures, are no news, and small changes that last are seen. How these contrasts
vary, and vary together, is learnt as a covariance matrix, leaning on independence as long as few samples speak
(its weight is that of one sample for each sensor). Two numbers tell how unusual a sample is: Hotelling's T² of all
contrasts, whose tail is an F distribution with as many degrees of freedom as independent samples were learnt from
(a multivariate exponentially weighted moving average chart: Lowry et al. 1992, doi 10.2307/1269551), and the greatest
contrast of any one sensor, whose tail is Student's. The surprise of a sample is -log10 of the lesser probability,
doubled for there being two.

What lasts adds up: surprise beyond `ORDINARY` is summed over independent samples (a cumulative sum), and an alert is
raised where the sum, or one sample, is as improbable as the budget of false alerts allows, both by these distributions
and by the tail of the group's own past. It clears after `CALM` ordinary samples, or after `ACCEPT` samples: what has
stayed so long is the new normal. While it is open nothing is learnt, and the limits widen as the means grow older.

A sensor counts once it has moved `MOVES` times, and as long as it does so now and then: rain and switches are for
rules of their own. A reading far out counts as one at `CUT` usual deviations: what lasts is looked for here.
Everything is counted in samples; nothing looks ahead. `value` of a transition is the evidence (-log10 of a
probability), `threshold` what the budget asks for, `note` the most unusual sensors, for `named`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc, stdtr

from alerts.detectors.anomaly import AT_ONCE, CALM, GATE, LARGEST, MEMORY, YEAR
from alerts.detectors.joined import Groups, Join, Samples
from alerts.detectors.rows import NEVER, Batch, Columns, Patch, Rows, Verdicts, write
from alerts.parameters import Together
from alerts.rules import Rule
from twin.model import SECOND, Bools, Floats, Ints

RUN: Final = 8
SLOW: Final = 200
LEARNT: Final = 400  # samples before a group can raise an alert
START: Final = 50  # samples before the contrasts are learnt from
WARM: Final = 150  # samples before the group's own tail is learnt from
MOVES: Final = 20
ALIVE: Final = 0.1  # the share of readings at which a sensor must have moved; rain and switches do not
CUT: Final = 6.0  # mean absolute deviations
ORDINARY: Final = 1.5  # surprise of an ordinary sample, once in thirty; beyond it evidence grows, below it falls
APART: Final = 2 * RUN  # samples from one independent fast mean to the next
CLUSTER: Final = RUN / 2  # samples that an extreme of the fast mean lasts for
ACCEPT: Final = 1000
DEPTH: Final = 16
MOST: Final = 30.0  # surprise; beyond it nothing is told apart
NAMED: Final = 3  # sensors that an alert names
LEAST_NAMED: Final = 0.5  # of the greatest contrast, to be named beside it
_NOTE_BITS: Final = 21  # of a note, for a catalogue index
EDGE: Final = 1.0  # evidence from which on the own past's tail is looked at: one sample in ten, if all is as assumed
PRIOR: Final = 30.0  # excesses over it that what is assumed weighs as much as
LEAVE_OUT: Final = ("slow", "sum", "covariance", "single", "cut", "widening", "doubt", "tail")

_SCALARS: Final = (
    "seen", "learnt", "evidence", "doubt", "calm", "open_for", "step", "limit", "worst", "last", "apart", "exceeding",
    "excess",
)  # fmt: skip
_MEMBERS: Final = ("slow", "fast", "previous", "number", "moves", "reach")


class TogetherWatches:
    """All groups of anomaly rules over several sensors. State by row beside the join's: `slow`, `fast`, `previous`,
    `number`, `moves` [rows, M]; `covariance` [rows, M, M]; scalars. `without`: what of `LEAVE_OUT` is left out."""

    def __init__(
        self, rows: Rows, groups: Groups, level: NDArray[np.int8], budget: Floats, without: Sequence[str] = ()
    ) -> None:  # fmt: skip
        self.rows = rows
        self.severity = level
        self.budget = budget
        self.without = frozenset(without)
        self.join = Join(rows, groups, DEPTH)
        n, width = groups.member.shape
        self.columns: Columns = {name: np.zeros(n) for name in _SCALARS}
        self.columns |= {name: np.zeros((n, width)) for name in _MEMBERS}
        self.columns |= {"covariance": np.zeros((n, width, width)), "level": np.zeros(n, np.int8)}
        self.columns |= {"last_at": np.full(n, NEVER), "calm_at": np.full(n, NEVER), "note": np.zeros(n, np.int64)}
        self.columns |= self.join.columns
        self.lasts: Sequence[str] = ()

    @classmethod
    def grouped(cls, rules: Sequence[Rule], rows: Rows, groups: Groups) -> TogetherWatches:
        level = np.array([int(rule.level) for rule in rules] or [0], np.int8)[rows.rule]
        budgets = [rule.parameters.budget if isinstance(rule.parameters, Together) else 1.0 for rule in rules]
        return cls(rows, groups, level, np.array(budgets or [1.0])[rows.rule])

    def regrouped(self, rows: Rows, origin: Ints, groups: Groups) -> TogetherWatches:
        return TogetherWatches(rows, groups, self.severity[origin], self.budget[origin], tuple(self.without))

    def subset(self, rows: Rows, origin: Ints) -> TogetherWatches:
        return self.regrouped(rows, origin, self.join.groups.take(origin))

    def observe(self, batch: Batch) -> tuple[Verdicts, list[Patch]]:
        joined = self.join.observe(batch)
        if joined is None:
            return Verdicts.none(), []
        samples, remembered = joined
        patches = [remembered]
        order = np.argsort(-samples.pairs.count, kind="stable")  # so that those with a k-th sample come first
        told = np.zeros(len(samples.at))
        found: list[tuple[Any, ...]] = []
        with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
            for begin in range(0, len(order), AT_ONCE):
                patches += [self._block(samples, order[begin : begin + AT_ONCE], told, found)]
        score = np.full(len(batch.sensor), np.nan)
        np.fmax.at(score, samples.reading, told[samples.sample])
        if not found:
            return Verdicts.none().scored(score), patches
        return Verdicts(*(np.concatenate(column) for column in zip(*found, strict=True))).scored(score), patches

    def _block(self, samples: Samples, order: Ints, told: Floats, found: list[tuple[Any, ...]]) -> Patch:
        """The groups `order`, longest first: their samples one after the other, all groups together. Fills in `told`
        and `found` (columns of `Verdicts`)."""
        pairs = samples.pairs
        head, count, row = pairs.head[order], pairs.count[order], pairs.row[order]
        names = [name for name in self.columns if name not in self.join.columns]
        state = {name: self.columns[name][row] for name in names}
        severity, budget = self.severity[row], self.budget[row]
        lasting = self.join.groups.lasting[row]
        active = np.searchsorted(-count, -np.arange(1, int(count[0]) + 1), "right").tolist()
        for k, m in enumerate(active):
            place = head[:m] + k
            part = {name: column[:m] for name, column in state.items()}
            surprise, changed = self._step(
                part, samples.at[place], samples.value[place], severity[:m], budget[:m], lasting[:m]
            )
            told[place] = surprise / (surprise + GATE)
            if changed is not None:
                which, *columns = changed
                found.append((row[which], samples.at[place][which], *columns))
        return Patch(row, state)

    def _step(
        self, s: Columns, at: Ints, x: Floats, severity: NDArray[np.int8], budget: Floats, lasting: NDArray[np.int32]
    ) -> tuple[Floats, tuple[Any, ...] | None]:
        """One sample of each group: its surprise, and what changed level. `s` is changed in place."""
        shown = np.isfinite(x) & (np.abs(x) < LARGEST)
        fresh = shown & (s["number"] == 0)
        x = np.where(shown, x, s["fast"])
        gap = np.where(s["last_at"] == NEVER, 0, at - s["last_at"])
        s["last_at"][:] = at
        s["seen"] += 1
        s["step"] += (gap - s["step"]) / np.clip(s["seen"] - 1, 1, MEMORY)
        s["number"] += shown
        for name in ("slow", "fast", "previous"):
            s[name][fresh] = x[fresh]
        s["moves"] += shown & (x != s["previous"])
        s["previous"][:] = np.where(shown, x, s["previous"])
        # What lasts is looked for here: one reading far out counts as one at the edge of the usual does.
        away = x - s["slow"]
        usual = np.where(s["number"] > START, CUT * s["reach"], np.inf)
        if "cut" not in self.without:
            away = np.clip(away, -usual, usual)
            x = s["slow"] + away
        s["fast"] += np.where(shown, (x - s["fast"]) / np.clip(s["number"], 1, RUN), 0)
        contrast = s["fast"] - s["slow"]

        surprise, contrasts = self._surprise(s, contrast, shown)
        surprise *= s["seen"] > WARM
        is_open = s["level"] > 0
        evidence = np.clip(s["evidence"] + (surprise - ORDINARY) / APART, 0, MOST)
        s["evidence"][:] = 0 if "sum" in self.without else evidence
        told = np.maximum(surprise, s["evidence"])
        needed = -np.log10(np.minimum(budget * CLUSTER * np.maximum(s["step"], SECOND) / YEAR, 1e-3))
        rarity = told if "tail" in self.without else _rarity(s, told)
        raises = ~is_open & (s["seen"] > LEARNT) & (surprise >= ORDINARY) & (told >= needed) & (rarity >= needed)
        changed = self._alert(s, at, told, surprise, is_open, raises, needed, severity, lasting, contrasts)
        # What leads up to an alert is one event, and would teach the tail much: it is shown samples that lie apart.
        _learn_tail(s, told, (s["seen"] > WARM) & (s["seen"] % APART == 0) & (s["level"] == 0))

        # What is unusual is learnt from less, and what an alert is about not at all.
        trust = np.minimum(1.0, ORDINARY / np.maximum(surprise, ORDINARY)) * (s["level"] == 0)
        follows = SLOW if "slow" not in self.without else MEMORY
        # The slow mean waits while there is some doubt, but no longer than it would take to follow.
        s["doubt"][:] = np.where(s["evidence"] >= ORDINARY, s["doubt"] + 1, 0)
        waits = (s["doubt"] > 0) & (s["doubt"] <= SLOW)
        if "doubt" in self.without:
            waits[:] = False
        pace = (trust * ~waits)[:, None] * shown / np.clip(s["number"], 1, follows)
        s["slow"] += (x - s["slow"]) * pace
        s["reach"] += (np.abs(away) - s["reach"]) * trust[:, None] * shown / np.clip(s["number"], 1, MEMORY)
        learns = (s["seen"] > START) & (s["level"] == 0)
        s["learnt"][:] = np.minimum(s["learnt"] + learns, MEMORY)
        contrast = np.where(shown, contrast, 0)
        new = contrast[:, :, None] * contrast[:, None, :] - s["covariance"]
        both = shown[:, :, None] & shown[:, None, :]
        s["covariance"] += np.where(both, new, 0) * (trust * learns / np.maximum(s["learnt"], 1))[:, None, None]
        return surprise, changed

    def _surprise(self, s: Columns, contrast: Floats, shown: Bools) -> tuple[Floats, tuple[Floats, Floats]]:
        """-log10 of how probable contrasts as large are; and these in deviations (0 of sensors that do not count), with
        their correlations."""
        width = contrast.shape[1]
        deviation = np.sqrt(np.einsum("gii->gi", s["covariance"]))
        counts = (
            shown
            & (s["moves"] >= MOVES)
            & (s["moves"] >= ALIVE * s["number"])
            & (deviation > 1e-9 * np.abs(s["slow"]) + 1e-300)
        )
        number = np.maximum(counts.sum(axis=1), 1)
        freedom = np.maximum(s["learnt"] / RUN, 3.0)
        widening = 0 if "widening" in self.without else s["open_for"] / SLOW
        scale = np.where(counts, deviation, 1) * np.sqrt((1 + widening) * (1 + 1 / freedom))[:, None]
        u = np.where(counts, contrast / scale, 0)
        apart = number / (number + freedom)
        if "covariance" in self.without:
            apart = np.ones(len(apart))
        norm = np.where(counts, deviation, np.inf)
        together = s["covariance"] / norm[:, :, None] / norm[:, None, :] * (1 - apart)[:, None, None]
        together[:, range(width), range(width)] = 1
        square = (u * np.linalg.solve(together, u[:, :, None])[:, :, 0]).sum(axis=1) / number
        by_all = fdtrc(number, freedom, square)
        by_one = 2 * number * stdtr(freedom, -np.abs(u).max(axis=1))
        if "single" in self.without:
            by_one = np.ones(len(u))
        probability = np.clip(2 * np.fmin(by_all, by_one), 10.0**-MOST, 1)
        return np.where(counts.any(axis=1), -np.log10(probability), 0.0), (u, together)

    @staticmethod
    def _alert(
        s: Columns, at: Ints, told: Floats, surprise: Floats, is_open: Bools, raises: Bools, needed: Floats,
        severity: NDArray[np.int8], lasting: NDArray[np.int32], contrasts: tuple[Floats, Floats],
    ) -> tuple[Any, ...] | None:  # fmt: skip
        """Raise and clear; the columns of `Verdicts`, led by the places among the groups."""
        if not (is_open.any() or raises.any()):
            return None
        ordinary = is_open & (surprise < ORDINARY)
        s["calm"][:] = np.where(ordinary, s["calm"] + 1, 0)
        s["calm_at"][:] = np.where(ordinary, np.where(s["calm"] == 1, at, s["calm_at"]), NEVER)
        s["open_for"][:] = np.where(is_open, s["open_for"] + 1, 0)
        s["last"][:] = np.where(is_open | raises, told, 0)
        s["worst"][:] = np.where(is_open | raises, np.maximum(s["worst"], told), 0)
        accepted = is_open & (s["open_for"] >= ACCEPT)
        clears = is_open & (accepted | (s["calm"] >= CALM))
        which = np.flatnonzero(raises | clears)
        if not len(which):
            return None
        up = raises[which]
        s["limit"][which] = np.where(up, needed[which], s["limit"][which])
        s["note"][which] = np.where(up, _note(lasting[which], *(part[which] for part in contrasts)), 0)
        was = np.where(up, 0, severity[which]).astype(np.int8)
        s["level"][which] = np.where(up, severity[which], 0)
        since = np.where(up | (s["calm"][which] < CALM), at[which], s["calm_at"][which])
        note = np.where(up, s["note"][which], np.where(s["calm"][which] < CALM, -1, 0)).astype(np.int64)
        columns = (
            which, was, s["level"][which].copy(), told[which], s["limit"][which].copy(), since,
            s["worst"][which].copy(), note,
        )  # fmt: skip
        s["slow"][accepted] = s["fast"][accepted]
        down = which[~up]
        for name in ("calm", "open_for", "evidence", "limit", "worst", "last", "note"):
            s[name][down] = 0
        s["calm_at"][down] = NEVER
        return columns

    def apply(self, patches: Sequence[Patch]) -> None:
        write(self.columns, patches)
        self.join.apply(patches)

    def resting(self) -> Bools:
        return np.asarray((self.columns["seen"] == 0) & (self.columns["level"] == 0) & self.join.resting())

    def level(self) -> NDArray[np.int8]:
        return self.columns["level"]

    def extremes(self, row: int) -> tuple[float, float, int]:
        columns = self.columns
        return float(columns["last"][row]), float(columns["worst"][row]), int(columns["level"][row])


def _note(lasting: NDArray[np.int32], u: Floats, together: Floats) -> Ints:
    """The most unusual sensors of each group in one number, as `named` reads it: those furthest, in deviations, from
    what the others let expect of them. Its square is by how much T² would be less without the sensor (Mason, Young and
    Tracy, J. Quality Technology 27, 1995)."""
    inverse = np.linalg.inv(together)
    size = np.abs((inverse @ u[:, :, None])[:, :, 0]) / np.sqrt(np.einsum("gii->gi", inverse))
    slot = np.argsort(-size, axis=1, kind="stable")[:, :NAMED]
    size, sensor = np.take_along_axis(size, slot, axis=1), np.take_along_axis(lasting, slot, axis=1)
    is_named = (size >= LEAST_NAMED * size[:, :1]) & (size > 0) & (sensor >= 0) & (sensor + 1 < 1 << _NOTE_BITS)
    is_named[:, 0] = sensor[:, 0] + 1 < 1 << _NOTE_BITS
    shift = np.arange(slot.shape[1]) * _NOTE_BITS
    note: Ints = np.where(is_named, (sensor + 1).astype(np.int64) << shift, 0).sum(axis=1)
    return note


def named(note: int) -> list[int]:
    """The sensors (catalogue indices) that the note of a raised alert names, the most unusual first."""
    parts = [note >> n * _NOTE_BITS & ((1 << _NOTE_BITS) - 1) for n in range(NAMED)] if note > 0 else []
    return [part - 1 for part in parts if part]


def _rarity(s: Columns, told: Floats) -> Floats:
    """-log10 of how often the group's own past reached so much evidence: an exponential tail beyond `EDGE`, leaning as
    long as there is little of it on the assumed one (P(y) = 10**-y: excesses of 1 / ln 10 on average)."""
    size = (s["excess"] + PRIOR / np.log(10.0)) / (s["exceeding"] + PRIOR)
    share = (s["exceeding"] + PRIOR / 10) / (s["apart"] + PRIOR)
    return np.where(told > EDGE, (told - EDGE) / size / np.log(10.0) - np.log10(share), 0.0)


def _learn_tail(s: Columns, told: Floats, on: Bools) -> None:
    keeps = np.where(on & (s["apart"] >= MEMORY), 1 - 1 / MEMORY, 1.0)
    exceeds = on & (told > EDGE)
    s["apart"][:] = s["apart"] * keeps + on
    s["exceeding"][:] = s["exceeding"] * keeps + exceeds
    s["excess"][:] = s["excess"] * keeps + np.where(exceeds, told - EDGE, 0)
