"""The competition's score: its worked example exactly, its edge cases, and a slow twin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cytolens.evaluate.outline_precision import mean_precision
from cytolens.evaluate.sartorius import IOU_LIMITS, sartorius_counts, sartorius_score
from tests import reference_scores as slow

FIRST = np.array([[0.82, 0, 0, 0], [0, 0.63, 0, 0], [0, 0, 0, 0.47]])
SECOND = np.array([[0.91, 0], [0, 0.71]])
# Steps of .05 make overlaps that are exactly a limit common.
tables = hnp.arrays(
    np.float64, st.tuples(st.integers(0, 4), st.integers(0, 4)), elements=st.integers(0, 20).map(lambda n: n / 20)
)


def test_the_worked_example():
    precisions, score = sartorius_score(FIRST)
    assert precisions.tolist() == pytest.approx([0.4] * 3 + [1 / 6] * 4 + [0] * 3)
    assert f"{score:.6f}" == "0.186667"
    precisions, second = sartorius_score(SECOND)
    assert precisions.tolist() == pytest.approx([1] * 5 + [1 / 3] * 4 + [0])
    assert f"{second:.6f}" == "0.633333"
    assert f"{(score + second) / 2:.6f}" == "0.410000"
    pooled = sartorius_counts(FIRST) + sartorius_counts(SECOND)
    assert f"{(pooled[:, 0] / pooled.sum(axis=1)).mean():.6f}" == "0.310873"


def test_the_limits_are_exact_decimals_and_strict():
    assert IOU_LIMITS.tolist() == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    for limit, fraction in zip(IOU_LIMITS, [(k, 20) for k in range(10, 20)], strict=True):
        overlap = fraction[0] / fraction[1]
        assert (sartorius_score([[overlap]])[0] == (limit > IOU_LIMITS)).all()


def test_a_truth_with_two_findings_is_false_once():
    counts = sartorius_counts([[0.6], [0.55]])
    assert counts[0].tolist() == [0, 1, 0]
    assert counts[1].tolist() == [1, 1, 0]
    assert counts[2].tolist() == [0, 2, 1]
    # One to one, the better of the two is right already at .50.
    assert mean_precision([[0.6], [0.55]])[0][0] == 0.5


@pytest.mark.parametrize(("shape", "score"), [((0, 0), 1), ((0, 3), 0), ((3, 0), 0)])
def test_nothing_to_find_or_nothing_found(shape, score):
    assert sartorius_score(np.zeros(shape))[1] == score
    assert mean_precision(np.zeros(shape))[1] == score


def test_ignored_truths_excuse_what_lies_in_them():
    table = np.array([[0.9, 0.0], [0.0, 0.97]])
    assert sartorius_score(table, [False, True])[0].tolist() == [1] * 8 + [0] * 2
    assert mean_precision(table, [False, True])[0].tolist() == [1] * 9 + [0]


def test_a_table_has_two_sides():
    with pytest.raises(ValueError, match="found, truth"):
        sartorius_score([0.5, 0.6])


@given(tables)
def test_as_its_slow_twin(table):
    assert sartorius_score(table)[1] == pytest.approx(slow.sartorius(table.tolist(), table.shape[1]))


@given(tables)
def test_mean_precision_as_its_slow_twin(table):
    wanted = []
    for limit in IOU_LIMITS:
        hits = len(slow.best_pairs(table.tolist(), table.shape[1], limit))
        total = sum(table.shape) - hits
        wanted.append(hits / total if total else 1.0)
    # Equal totals of overlap may be had with more or with fewer pairs; both are best.
    ours = mean_precision(table)[0]
    totals = [sum(table[f, t] for f, t in slow.best_pairs(table.tolist(), table.shape[1], x)) for x in IOU_LIMITS]
    for mine, twin, total in zip(ours, wanted, totals, strict=True):
        assert mine == pytest.approx(twin) or total > 0.5


@given(tables)
def test_without_overlapping_findings_both_scores_agree(table):
    rows = np.arange(min(table.shape))
    alone = np.zeros(table.shape)
    alone[rows, rows] = np.where(np.isin(table[rows, rows], IOU_LIMITS), 0.51, table[rows, rows])
    assert mean_precision(alone)[0] == pytest.approx(sartorius_score(alone)[0])
