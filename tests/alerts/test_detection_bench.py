"""The bench's scoring of detections, by hand, and what the detector reaches on a corpus."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from bench.detection import LOOP_LEARNT, Loop, Series, counted, judged, judged_loops, read_corpus, read_loops, score
from twin.model import Floats

CORPUS = Path(__file__).parents[3] / "shared" / "data" / "anomaly" / "nab"
LOOPS = CORPUS.parent / "skab"


def one(*windows: tuple[int, int]) -> list[Series]:
    return [Series("one", np.arange(100), np.zeros(100), list(windows))]


def at(*places: int) -> list[Floats]:
    marks = np.zeros(100)
    marks[list(places)] = 1
    return [marks]


def sigmoid(x: float) -> float:
    return 2 / (1 + math.exp(5 * x)) - 1


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ((50,), 100.0),  # the first of the window
        ((51, 55, 59), 50 * (1 + sigmoid(-0.9) / sigmoid(-1))),  # the earliest counts, the others do not
        ((50, 20), 50 * (2 - 0.11)),  # one outside, with no window before
        ((50, 60), 50 * (2 + 0.11 * sigmoid(1 / 9))),  # just behind, dear by how far
        ((50, 95), 50 * (2 - 0.11)),  # far behind
        ((50, 3, 14), 100.0),  # within the first 15 %
    ],
)
def test_a_detection_is_worth_what_the_published_rules_say(places: tuple[int, ...], expected: float) -> None:
    assert score(one((50, 59)), at(*places), 0.5).score == pytest.approx(expected)


def test_the_best_threshold_is_found_and_saying_nothing_scores_nothing() -> None:
    scores = at(50)
    scores[0][20:40] = 0.7
    best = score(one((50, 59)), scores)
    assert (best.score, best.threshold) == (pytest.approx(100), 1.0)
    assert best.by_series == {"one": (1, 1, 0)}
    nothing = score(one((50, 59)), [np.zeros(100)])
    assert (nothing.score, nothing.threshold) == (0, math.inf)


@pytest.mark.skipif(not CORPUS.is_dir(), reason="no shared data beside this checkout")
def test_the_detector_reaches_its_goal_on_the_part_of_the_corpus_that_is_here() -> None:
    corpus = read_corpus(CORPUS)
    assert score(corpus, judged(corpus)).score >= 70


def test_samples_count_behind_those_that_a_run_is_learnt_from() -> None:
    label = np.zeros(LOOP_LEARNT + 10, bool)
    label[[3, LOOP_LEARNT + 2, LOOP_LEARNT + 3]] = True
    flag = np.zeros(LOOP_LEARNT + 10, bool)
    flag[[5, LOOP_LEARNT + 3, LOOP_LEARNT + 4]] = True
    run = Loop("a/1.csv", np.arange(len(label)), np.zeros((len(label), 2)), label)
    assert counted([flag], [run]) == (0.5, 1 / 8, 0.5)


@pytest.mark.skipif(not LOOPS.is_dir(), reason="no shared data beside this checkout")
def test_faults_of_a_pump_loop_are_found_by_its_sensors_together() -> None:
    loops = [loop for loop in read_loops(LOOPS) if loop.label.any()]
    results = judged_loops(loops)
    assert counted([is_open for _, is_open, _ in results], loops)[0] >= 0.76
    assert counted([own >= 0.5 for own, _, _ in results], loops)[0] >= 0.76
