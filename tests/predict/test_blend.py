"""Blends against plain arithmetic and the published example; tuning against trying everything."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from cytolens.predict.blend import (
    TuneSettings,
    group_means,
    macro_f1,
    mean,
    nested,
    sigmoid_blend,
    softmax,
    softmax_mean,
    tuned_weights,
)
from cytolens.problems import SettingError

TABLES = hnp.arrays(np.float64, (3, 4, 3), elements=st.floats(-30, 30))


# -- blending -------------------------------------------------------------------------------------


def test_the_published_example() -> None:
    z_mc, z_ml = [[2, 1.5, -1]], [[-0.5, 1, -3]]
    np.testing.assert_allclose(softmax(z_mc), [[0.603749, 0.366192, 0.030059]], atol=5e-7)
    blend = sigmoid_blend(z_mc, z_ml, 0.457)
    np.testing.assert_allclose(sigmoid_blend(z_mc, z_ml, 0).plain, [[0.377541, 0.731059, 0.047426]], atol=5e-7)
    np.testing.assert_allclose(blend.plain, [[0.480918, 0.564315, 0.039489]], atol=5e-7)
    assert blend.plain.sum() == pytest.approx(1.084722, abs=5e-7)
    np.testing.assert_allclose(blend.probabilities, blend.plain / blend.plain.sum())
    assert blend.plain.argmax() == 1
    assert np.argmax(z_mc) == 0


@given(TABLES, st.floats(0, 1))
def test_a_blend_by_hand(table: NDArray[np.float64], alpha: float) -> None:
    blend = sigmoid_blend(table[0], table[1], alpha)
    for row in range(4):
        raised = [math.exp(value) for value in table[0, row]]
        plain = [
            alpha * up / sum(raised) + (1 - alpha) / (1 + math.exp(-other))
            for up, other in zip(raised, table[1, row], strict=True)
        ]
        np.testing.assert_allclose(blend.plain[row], plain, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(blend.probabilities.sum(axis=1), 1)


def test_extreme_logits_stay_numbers() -> None:
    blend = sigmoid_blend([[1000.0, -1000.0]], [[-1000.0, -1000.0]], 0.0)
    assert blend.probabilities.tolist() == [[0.5, 0.5]]
    assert softmax([[1e300, -1e300]]).tolist() == [[1, 0]]


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_is_a_share(alpha: float) -> None:
    with pytest.raises(SettingError, match="alpha: wanted a number from 0 to 1"):
        sigmoid_blend([[0.0]], [[0.0]], alpha)


@given(TABLES, st.lists(st.integers(1, 5), min_size=3, max_size=3))
def test_a_mean_by_hand(table: NDArray[np.float64], weights: list[int]) -> None:
    wanted = sum(w * one for w, one in zip(weights, table, strict=True)) / sum(weights)
    np.testing.assert_allclose(mean(list(table), weights), wanted, atol=1e-12)
    np.testing.assert_allclose(softmax_mean(list(table), weights), softmax(wanted), atol=1e-12)
    np.testing.assert_allclose(mean(list(table)), table.mean(axis=0), atol=1e-12)
    np.testing.assert_array_equal(mean([table[0]]), table[0])
    np.testing.assert_allclose(softmax_mean(list(table)).sum(axis=1), 1)


def test_a_group_has_one_voice() -> None:
    tables = {name: np.full((1, 1), value) for name, value in {"a": 0.0, "b": 1.0, "c": 5.0, "d": 9.0}.items()}
    assert group_means(tables, [["a", "b", "c"], ["d"]])[0, 0] == pytest.approx((2 + 9) / 2)
    assert group_means(tables, [["a", "b", "c"], ["d"]], [3, 1])[0, 0] == pytest.approx((3 * 2 + 9) / 4)
    for groups in ([["a", "b"], ["d"]], [["a", "b", "c"], ["c", "d"]], [["a", "b", "c", "d"], []], [["a", "x"]]):
        with pytest.raises(SettingError, match=r"each of \['a', 'b', 'c', 'd'\] in exactly one group"):
            group_means(tables, groups)


def test_what_cannot_be_blended() -> None:
    with pytest.raises(SettingError, match="nothing to blend"):
        mean([])
    with pytest.raises(SettingError, match="wanted 2 positive numbers"):
        mean([[[0.0]], [[0.0]]], [1, 0])
    with pytest.raises(ValueError, match="different shapes"):
        mean([np.zeros((1, 2)), np.zeros((2, 1))])


# -- tuning ---------------------------------------------------------------------------------------


def world(seed: int, members: int = 3, cells: int = 60, labels: int = 3) -> tuple[NDArray[Any], NDArray[Any]]:
    """Members of different worth."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, labels, cells)
    logits = random.normal(0, 1, (members, cells, labels))
    for member in range(members):
        logits[member, np.arange(cells), truth] += member * 0.7
    return softmax(logits), truth


@given(st.integers(0, 1000), st.integers(2, 5))
@settings(max_examples=30)
def test_macro_f1_as_scikit_learn(seed: int, labels: int) -> None:
    random = np.random.default_rng(seed)
    truth, said = random.integers(0, labels, (2, 20))
    # scikit-learn allows numbers here, although it declares a text.
    none: Any = 0.0
    wanted = f1_score(truth, said, labels=np.unique(truth), average="macro", zero_division=none)
    assert macro_f1(said, truth, labels) == pytest.approx(wanted)


@pytest.mark.parametrize("seed", range(4))
def test_the_grid_finds_the_best(seed: int) -> None:
    table, truth = world(seed)
    tuned = tuned_weights(table, truth, settings=TuneSettings(steps=6))
    scores = {}
    for shares in itertools.product(range(7), repeat=3):
        if sum(shares) == 6:
            blend = sum(share * one for share, one in zip(shares, table, strict=True))
            scores[shares] = f1_score(truth, np.argmax(blend, axis=1), average="macro")
    best = max(scores.values())
    assert tuned.score == pytest.approx(best)
    nearest = min(
        sum((share / 6 - 1 / 3) ** 2 for share in shares) for shares, score in scores.items() if score > best - 1e-12
    )
    assert ((tuned.weights - 1 / 3) ** 2).sum() == pytest.approx(nearest)
    assert tuned.weights.sum() == pytest.approx(1)


def test_the_grid_is_as_fine_as_it_may_be() -> None:
    table, truth = world(1, members=2)
    fine = tuned_weights(table, truth)
    rough = tuned_weights(table, truth, settings=TuneSettings(candidates=3))
    assert fine.score >= rough.score
    assert set(rough.weights.tolist()) <= {0.0, 0.5, 1.0}
    assert (fine.weights * 100).round(9).tolist() == (fine.weights * 100).round().tolist()


@pytest.mark.parametrize("method", ["grid", "optuna"])
def test_one_member_has_all_the_weight(method: Any) -> None:
    table, truth = world(0, members=1)
    assert tuned_weights(table, truth, settings=TuneSettings(method=method, trials=3)).weights.tolist() == [1]


@pytest.mark.parametrize("method", ["grid", "optuna"])
def test_equal_members_have_equal_weights(method: Any) -> None:
    table, truth = world(0, members=1)
    same = np.repeat(table, 4, axis=0)
    tuned = tuned_weights(same, truth, settings=TuneSettings(method=method, trials=10))
    assert tuned.weights.tolist() == [0.25] * 4
    result = nested(same, truth, np.arange(60) % 3, settings=TuneSettings(method=method, trials=10))
    assert result.score == result.in_sample == tuned.score
    assert [weights.tolist() for weights in result.of_fold.values()] == [[0.25] * 4] * 3


def test_a_guided_search_is_no_worse_than_equal_weights_and_can_be_repeated() -> None:
    table, truth = world(5)
    search = TuneSettings(method="optuna", trials=40, seed=3)
    one, two = (tuned_weights(table, truth, settings=search) for _ in range(2))
    assert one.weights.tolist() == two.weights.tolist()
    assert one.weights.sum() == pytest.approx(1)
    equal = macro_f1(table.mean(axis=0).argmax(axis=1), truth, 3)
    assert one.score > equal
    assert one.score >= tuned_weights(table, truth, settings=TuneSettings(steps=4)).score - 0.05


def test_a_useless_member_gets_little() -> None:
    table, truth = world(2, members=2, cells=400)
    table[1, np.arange(400), truth] += 5
    assert tuned_weights(table, truth, settings=TuneSettings(steps=4)).weights[1] >= 0.5


# -- nested ---------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(0, 2))
@settings(max_examples=20)
def test_a_folds_truth_does_not_touch_its_weights(seed: int, fold: int) -> None:
    table, truth = world(seed)
    folds = np.arange(60) % 3
    rough = TuneSettings(steps=4)
    before = nested(table, truth, folds, settings=rough)
    changed = truth.copy()
    changed[folds == fold] = (changed[folds == fold] + 1 + seed % 2) % 3
    after = nested(table, changed, folds, settings=rough)
    assert after.of_fold[fold].tolist() == before.of_fold[fold].tolist()


def test_the_nested_figure_by_hand() -> None:
    table, truth = world(7)
    folds = np.array(["x", "y", "z"] * 20)
    rough = TuneSettings(steps=5)
    result = nested(table, truth, folds, settings=rough)
    said = np.zeros(60, int)
    for fold in "xyz":
        weights = tuned_weights(table[:, folds != fold], truth[folds != fold], settings=rough).weights
        assert result.of_fold[fold].tolist() == weights.tolist()
        said[folds == fold] = np.einsum("m,mnk->nk", weights, table)[folds == fold].argmax(axis=1)
    assert result.score == pytest.approx(f1_score(truth, said, average="macro"))
    everything = tuned_weights(table, truth, settings=rough)
    assert (result.in_sample, result.weights.tolist()) == (everything.score, everything.weights.tolist())


def test_tuning_on_noise_flatters() -> None:
    flattered = []
    for seed in range(6):
        random = np.random.default_rng(seed)
        table, truth = random.random((4, 40, 4)), random.integers(0, 4, 40)
        result = nested(table, truth, np.arange(40) % 4, settings=TuneSettings(steps=5))
        flattered.append(result.in_sample - result.score)
    assert np.mean(flattered) > 0.03


def test_what_cannot_be_tuned() -> None:
    table, truth = world(0)
    for given_table, given_truth in (
        (table[:0], truth),
        (table[:, :0], truth[:0]),
        (table, truth[:5]),
        (table[0], truth),
    ):
        with pytest.raises(SettingError, match=r"shape \(members, cells, labels\)"):
            tuned_weights(given_table, given_truth)
    for wrong in (truth - 1, truth + 1, truth * 1.0):
        with pytest.raises(SettingError, match="indices of labels, 0 to 2"):
            tuned_weights(table, wrong)
    with pytest.raises(SettingError, match="at least two folds"):
        nested(table, truth, np.zeros(60))
    with pytest.raises(ValueError, match="60 cells need as many folds; got 3"):
        nested(table, truth, [0, 1, 2])
