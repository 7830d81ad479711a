"""What a model learns about itself: known temperatures, thresholds found by trying them all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cytolens.cells import Cells
from cytolens.labels import LabelSet
from cytolens.predict.calibrate import (
    F1_SLACK,
    detection_thresholds,
    distance_limit,
    field_ranges,
    sure_threshold,
    temperature,
)
from cytolens.tasks.classify import probabilities, targets
from tests import reference

KINDS = LabelSet.of(
    ["leukocyte", "neutrophil", "band neutrophil", "segmented neutrophil", "lymphocyte", "monocyte", "eosinophil"]
)


# -- temperature ----------------------------------------------------------------------------------


def drawn(true_temperature: float, parents: bool = False) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Logits, and labels that occur as often as the logits over the temperature promise."""
    random = np.random.default_rng(4)
    logits = random.normal(0, 3, (20_000, len(KINDS.leaves)))
    shares = probabilities(logits, true_temperature).astype(np.float64)
    index = (shares.cumsum(axis=1) < random.random((len(logits), 1))).sum(axis=1).clip(max=len(KINDS.leaves) - 1)
    names = [KINDS.leaves[i] for i in index]
    if parents:  # half of the neutrophils are not told apart
        names = ["neutrophil" if "neutrophil" in n and i % 2 else n for i, n in enumerate(names)]
    return logits, targets(names, KINDS)


@pytest.mark.parametrize("true_temperature", [0.4, 1.0, 2.5, 6.0])
@pytest.mark.parametrize("parents", [False, True])
def test_a_known_temperature_is_found_again(true_temperature: float, parents: bool) -> None:
    assert temperature(*drawn(true_temperature, parents)) == pytest.approx(true_temperature, rel=0.04)


def test_no_other_temperature_makes_the_labels_likelier() -> None:
    logits, allowed = drawn(1.7)
    logits, allowed = logits[:300], allowed[:300]

    def likelihood(t: float) -> float:
        return float(np.log((probabilities(logits, t).astype(np.float64) * allowed).sum(axis=1)).mean())

    found = temperature(logits, allowed)
    assert likelihood(found) >= max(likelihood(t) for t in np.geomspace(0.1, 10, 200)) - 1e-6


def test_a_temperature_stays_within_reason() -> None:
    perfect = np.eye(5) * 50
    assert 0.05 < temperature(perfect, np.eye(5, dtype=bool)) < 1
    hopeless = np.roll(np.eye(5), 1, axis=1) * 50
    assert 1 < temperature(hopeless, np.eye(5, dtype=bool)) < 15


# -- sure names -----------------------------------------------------------------------------------


@st.composite
def tables(draw: st.DrawFn) -> tuple[NDArray[np.float32], list[str]]:
    """Probabilities of some cells and what they are; some truths are parents only."""
    count = draw(st.integers(1, 12))
    weight = st.sampled_from([0.0, 0.0, 1.0, 2.0, 5.0, 30.0, 300.0])
    rows = [[draw(weight) + 0.01 for _ in KINDS.leaves] for _ in range(count)]
    table = np.array(rows) / np.sum(rows, axis=1, keepdims=True)
    return table.astype(np.float32), [draw(st.sampled_from(KINDS.names)) for _ in range(count)]


def slow_sure_threshold(table: NDArray[np.float32], truth: list[str], most_wrong: float) -> float:
    """All thresholds from 0.40 to 0.99, one cell at a time."""
    for percent in range(40, 100):
        accepted, wrong = 0, 0
        for row, true in zip(table.astype(np.float64).tolist(), truth, strict=True):
            shares = dict(zip(KINDS.leaves, row, strict=True))
            name, refer = reference.decided(shares, KINDS.parents, KINDS.reportable, percent / 100, None)
            if refer or name is None:
                continue
            accepted += 1
            # Right: the same, wider than the truth, or one of the kinds the truth leaves open.
            wrong += name not in (true, *KINDS.ancestors(true)) and true not in KINDS.ancestors(name)
        if accepted and wrong <= most_wrong * accepted:
            return percent / 100
    return 0.99


@given(case=tables(), most_wrong=st.sampled_from([0.0, 0.02, 0.25, 0.5]))
@settings(max_examples=60)
def test_the_sure_threshold_is_the_lowest_that_holds(
    case: tuple[NDArray[np.float32], list[str]], most_wrong: float
) -> None:
    table, truth = case
    assert sure_threshold(table, truth, KINDS, most_wrong) == slow_sure_threshold(table, truth, most_wrong)


def test_a_sure_threshold_worked_by_hand() -> None:
    leaves = KINDS.leaves
    rows = [{"lymphocyte": 0.95, "monocyte": 0.05}] * 3 + [{"lymphocyte": 0.62, "monocyte": 0.38}]
    table = np.array([[row.get(leaf, 0.0) for leaf in leaves] for row in rows])
    assert sure_threshold(table, ["lymphocyte"] * 4, KINDS) == 0.4
    assert sure_threshold(table, ["lymphocyte"] * 3 + ["monocyte"], KINDS) == 0.63
    assert sure_threshold(table, ["lymphocyte"] * 3 + ["monocyte"], KINDS, most_wrong=0.25) == 0.4
    assert sure_threshold(table, ["monocyte"] * 4, KINDS) == 0.99  # every name is wrong at every threshold
    assert sure_threshold(np.zeros((0, len(leaves))), [], KINDS) == 0.99


# -- thresholds of detection ----------------------------------------------------------------------

SEEN = LabelSet.of(["leukocyte", "platelet", "erythrocyte"])
# Place 0 … 5: a truth there, or none.
Finding = tuple[str, int, float]


def cells(rows: list[tuple[str, int]], scores: list[float] | None = None, **flags: object) -> Cells:
    boxes = np.array([[20 * place, 0, 20 * place + 10, 10] for _, place in rows], np.float32).reshape(-1, 4)
    source = "human:a" if scores is None else "bundle:b@0"
    images = ["a" if place < 3 else "b" for _, place in rows]
    names = [name for name, _ in rows]
    return Cells.of(SEEN, image_id=images, boxes=boxes, label=names, source=source, score=scores, **flags)  # type: ignore[arg-type]


def f1_at(threshold: float, truths: set[int], found: list[tuple[int, float]]) -> float:
    """F1 of the findings of one label that reach a threshold; a second one at a place is false."""
    good = [place for place, score in found if np.float32(score) >= np.float32(threshold)]
    return 2 * len(set(good) & truths) / (len(good) + len(truths)) if truths else 0.0


close_scores = st.sampled_from([0.05, 0.3, 0.5, 0.5004, 0.5006, 0.7, 0.9993, 0.9996, 0.9998, 1.0])
findings = st.lists(st.tuples(st.sampled_from(SEEN.names), st.integers(0, 5), close_scores), max_size=14)
truth_places = st.lists(st.tuples(st.sampled_from(SEEN.names), st.integers(0, 5)), max_size=8, unique=True)


@given(truth=truth_places, found=findings)
@settings(max_examples=80)
def test_a_threshold_is_the_lowest_with_nearly_the_best_f1(truth: list[tuple[str, int]], found: list[Finding]) -> None:
    got = detection_thresholds(cells(truth), cells([f[:2] for f in found], [s for *_, s in found]), ["a", "b", "c"])
    assert list(got) == list(SEEN.names)
    for name in SEEN.names:
        places = {place for label, place in truth if label == name}
        ours = [(place, score) for label, place, score in found if label == name]
        if not places & {place for place, _ in ours}:
            assert got[name] == 0.5
            continue
        best = max(f1_at(score, places, ours) for _, score in ours)
        assert f1_at(got[name], places, ours) >= best - F1_SLACK - 1e-9
        lower = [score for _, score in ours if np.float32(score) < np.float32(got[name])]
        assert all(f1_at(score, places, ours) < best - F1_SLACK + 1e-9 for score in lower)
        assert 0 < got[name] <= 1


@pytest.mark.parametrize(("right", "wrong"), [(0.5006, 0.5004), (0.9998, 0.9996), (0.0004, 0.0002)])
def test_a_threshold_parts_findings_of_nearly_equal_scores(right: float, wrong: float) -> None:
    found = cells([("leukocyte", 0), ("leukocyte", 1)], [right, wrong])
    assert wrong < detection_thresholds(cells([("leukocyte", 0)]), found, ["a"])["leukocyte"] <= right


def test_findings_of_equal_scores_are_taken_together_or_not_at_all() -> None:
    """The second truth comes with four mistakes of the same score, so the threshold stays above all five."""
    truth = cells([("leukocyte", 0), ("leukocyte", 1)])
    found = cells([("leukocyte", place) for place in range(6)], [0.9, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert detection_thresholds(truth, found, ["a", "b"])["leukocyte"] == pytest.approx(0.7)


def test_where_nothing_right_is_found_there_is_nothing_to_learn() -> None:
    """No flood of mistakes where every finding is one, and no fall over findings that all do not matter."""
    truth = cells([("leukocyte", 0), ("leukocyte", 1)], ignore=[False, True])
    for place in (1, 2):  # on the ignored cell; on nothing
        found = cells([("leukocyte", place)], [0.3])
        assert detection_thresholds(truth, found, ["a"])["leukocyte"] == 0.5


def test_a_threshold_stands_halfway_to_the_next_finding() -> None:
    truth = cells([("leukocyte", 0), ("leukocyte", 1)])
    found = cells([("leukocyte", p) for p in (0, 1, 2, 2)], [0.9, 0.7, 0.3, 0.2])
    assert detection_thresholds(truth, found, ["a", "b"])["leukocyte"] == pytest.approx(0.5)
    assert detection_thresholds(truth, found.filter(found.scores() > 0.5), ["a"])["leukocyte"] == pytest.approx(0.35)


def test_findings_on_ignored_cells_are_neither_right_nor_wrong() -> None:
    truth = cells([("leukocyte", 0), ("leukocyte", 1), ("leukocyte", 2)], ignore=[False, True, False])
    found = cells([("leukocyte", 0), ("leukocyte", 1), ("leukocyte", 2)], [0.9, 0.8, 0.4])
    assert detection_thresholds(truth, found, ["a"])["leukocyte"] == pytest.approx(0.2)
    wrong = cells([("leukocyte", 0), ("leukocyte", 1), ("leukocyte", 4)], [0.9, 0.8, 0.4])
    alone = truth.filter(np.array([True, True, False]))
    assert detection_thresholds(alone, wrong, ["a", "b"])["leukocyte"] == pytest.approx(0.65)


# -- limits ---------------------------------------------------------------------------------------


def test_the_distance_limit_leaves_room_beyond_the_tuning_cells() -> None:
    distances = np.arange(1001) / 1000
    assert distance_limit(distances) == pytest.approx(0.995 * 1.5)
    assert distance_limit(distances, share=0.5, slack=2.0) == pytest.approx(1.0)


def test_field_ranges_hold_the_training_fields_with_room() -> None:
    ranges = field_ranges([{"background": 200.0 + i, "green": 0.4} for i in range(11)])
    assert ranges["green"] == (0.4, 0.4)
    low, high = ranges["background"]
    # The quantiles 0.001 and 0.999 of 200 … 210 are 200.01 and 209.99; half of 9.98 is 4.99.
    assert (low, high) == (pytest.approx(195.02), pytest.approx(214.98))
    assert field_ranges([]) == {}
