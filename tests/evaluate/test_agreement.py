from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from cytolens.evaluate.agreement import (
    CALIBRATION_BINS,
    at_coverages,
    bin_of,
    calibration_error,
    confusion_figures,
    coverage_curve,
    ratio,
    reliability,
)
from tests import reference_scores as slow

names = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)
sureness = st.lists(st.tuples(st.integers(0, 30).map(lambda n: n / 30), st.booleans()), min_size=1, max_size=40)


def matrix(truth, said, labels=5):
    table = np.zeros((1, labels, labels))
    np.add.at(table[0], (truth, said), 1)
    return table


def ece(confidence, correct, edges=CALIBRATION_BINS):
    index = bin_of(confidence, edges)
    bins = len(edges) - 1
    return calibration_error(
        np.bincount(index, minlength=bins),
        np.bincount(index, confidence, bins),
        np.bincount(index, np.asarray(correct, float), bins),
    )


def test_worked_example():
    figures = confusion_figures(matrix([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2], 3))
    assert figures.accuracy[0] == pytest.approx(0.666667, abs=1e-6)
    assert figures.macro_f1[0] == pytest.approx(0.655556, abs=1e-6)
    assert figures.balanced_accuracy[0] == pytest.approx(0.722222, abs=1e-6)
    assert figures.kappa[0] == pytest.approx(0.5)


@given(names)
def test_figures_equal_scikit_learn_and_the_slow_twin(pairs):
    truth, said = zip(*pairs, strict=True)
    figures = confusion_figures(matrix(truth, said))
    occurring = sorted(set(truth))
    wanted = slow.agreement([str(t) for t in truth], [str(s) for s in said])
    assert figures.accuracy[0] == pytest.approx(metrics.accuracy_score(truth, said)) == wanted["accuracy"]
    recalls = metrics.recall_score(truth, said, labels=occurring, average="macro", zero_division=0)
    assert figures.balanced_accuracy[0] == pytest.approx(recalls) == pytest.approx(wanted["balanced_accuracy"])
    macro = metrics.f1_score(truth, said, labels=occurring, average="macro", zero_division=0)
    assert figures.macro_f1[0] == pytest.approx(macro) == pytest.approx(wanted["macro_f1"])
    assert figures.kappa[0] == pytest.approx(wanted["kappa"], nan_ok=True)
    if np.isfinite(figures.kappa[0]):
        assert figures.kappa[0] == pytest.approx(metrics.cohen_kappa_score(truth, said))
    for name in ("precision", "recall", "f1"):
        score = getattr(metrics, f"{name}_score")
        other = score(truth, said, labels=range(5), average=None, zero_division=np.nan)
        assert getattr(figures, name)[0] == pytest.approx(other, nan_ok=True)


@given(names, st.integers(0, 20))
def test_many_matrices_at_once_are_each_its_own(pairs, seed):
    truth, said = (np.array(side) for side in zip(*pairs, strict=True))
    keep = np.random.default_rng(seed).random(len(truth)) < 0.5
    both = np.concatenate([matrix(truth, said), matrix(truth[keep], said[keep])])
    together = confusion_figures(both)
    for row in range(2):
        alone = confusion_figures(both[row : row + 1])
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "kappa", "precision", "recall", "f1"):
            assert getattr(together, name)[row] == pytest.approx(getattr(alone, name)[0], nan_ok=True)


def test_a_further_column_holds_wrong_names_only():
    table = np.array([[[3, 1, 0], [0, 2, 2]]])  # two labels, and "other"
    figures = confusion_figures(table)
    assert figures.accuracy[0] == 5 / 8
    assert figures.recall[0] == pytest.approx([3 / 4, 2 / 4])
    assert figures.precision[0] == pytest.approx([1, 2 / 3])


def test_no_cells_leave_everything_undefined():
    figures = confusion_figures(np.zeros((1, 3, 3)))
    assert np.isnan([figures.accuracy[0], figures.balanced_accuracy[0], figures.macro_f1[0], figures.kappa[0]]).all()


def test_calibration_worked_example():
    confidence, correct = [0.95, 0.9, 0.8, 0.6, 0.55, 0.7], [1, 1, 0, 1, 0, 1]
    edges = [0.5, 0.75, 1]
    table = reliability(np.array(confidence), np.array(correct, bool), edges)
    assert table["confidence"].to_list() == pytest.approx([0.616667, 0.883333], abs=1e-6)
    assert table["accuracy"].to_list() == pytest.approx([0.666667, 0.666667], abs=1e-6)
    assert ece(confidence, correct, edges) == pytest.approx(0.133333, abs=1e-6)


@given(sureness)
def test_calibration_equals_the_slow_twin(cells):
    confidence, correct = zip(*cells, strict=True)
    wanted = slow.calibration_error(confidence, correct, CALIBRATION_BINS.tolist())
    assert ece(confidence, correct) == pytest.approx(wanted, abs=1e-12)


def test_bins_hold_their_upper_edge():
    assert bin_of([0, 1 / 15, 1 / 15 + 1e-9, 0.999, 1]).tolist() == [0, 0, 1, 14, 14]


def test_calibrated_confidence_has_no_error():
    confidence = np.repeat([0.25, 0.75], 400)
    correct = np.concatenate([np.arange(400) < 100, np.arange(400) < 300])
    assert ece(confidence, correct) == pytest.approx(0)


@given(sureness, st.sampled_from([1.0, 0.95, 0.9, 0.8, 0.7, 0.5]))
def test_coverage_curve_equals_the_slow_twin(cells, share):
    confidence, correct = (np.array(side) for side in zip(*cells, strict=True))
    curve = coverage_curve(confidence, correct)
    row = at_coverages(curve, [share])[0]
    kept, accuracy, threshold = slow.kept_at(confidence, correct, share)
    assert (row["coverage"], row["kept"], row["threshold"]) == (share, kept, threshold)
    assert row["accuracy"] == pytest.approx(accuracy)
    assert curve["coverage"].is_sorted()
    assert curve["coverage"][-1] == 1
    assert curve["accuracy"][-1] == pytest.approx(correct.mean())


def test_coverage_of_no_cells():
    curve = coverage_curve(np.zeros(0), np.zeros(0, bool))
    assert len(curve) == 0
    assert at_coverages(curve, [1.0, 0.5]) == []


def test_ratio():
    assert ratio([1, 2], [2, 0]) == pytest.approx([0.5, np.nan], nan_ok=True)
