"""Blending what several classifiers say of the same cells, and learning how much to trust each.

Weights that are tuned and judged on the same cells flatter themselves, so `nested` judges each fold
with weights that were tuned without it, and puts the flattering figure beside the honest one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

from cytolens.evaluate.agreement import confusion_figures
from cytolens.predict.box_fusion import checked_weights
from cytolens.problems import SettingError, require

Array = NDArray[np.float64]
_MOST_STEPS, _AS_GOOD = 100, 1e-12


class TuneSettings(BaseModel):
    """How blend weights are looked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["grid", "optuna"] = Field(default="grid", description="all shares of a grid, or a guided search")
    steps: int | None = Field(
        default=None, ge=1, description="grid: weights are multiples of 1 / steps; none: as fine as `candidates` allows"
    )
    candidates: int = Field(default=2000, ge=1, description="grid: weights that are tried at most, where steps is none")
    trials: int = Field(default=200, ge=1, description="optuna: weights that are tried")
    seed: int = Field(default=0, ge=0, description="optuna: of the search")


# -- blending -------------------------------------------------------------------------------------


def mean(tables: Sequence[ArrayLike], weights: Sequence[float] | None = None) -> Array:
    """The weighted mean of tables of one shape (N, K); weights are positive, None: all the same.

    Raises:
        SettingError: there is no table, or the weights are not one positive number per table.
        ValueError: the tables have different shapes.
    """
    if not len(tables):
        raise SettingError("there is nothing to blend: give at least one member's table")
    shares = checked_weights(weights, len(tables))
    return np.asarray(np.tensordot(shares / shares.sum(), _stacked(tables), axes=1), np.float64)


def softmax(logits: ArrayLike) -> Array:
    """Softmax along the last axis."""
    values = np.asarray(logits, np.float64)
    raised = np.exp(values - values.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def softmax_mean(logits: Sequence[ArrayLike], weights: Sequence[float] | None = None) -> Array:
    """Probabilities (N, K) from the weighted mean of the members' logits (each (N, K)); errors as of `mean`."""
    return softmax(mean(logits, weights))


def group_means(
    tables: Mapping[str, ArrayLike], groups: Sequence[Sequence[str]], weights: Sequence[float] | None = None
) -> Array:
    """The mean inside each group of members, then the weighted mean of the groups, shape (N, K).

    So a group of three members has no more say than a group of one.

    Args:
        tables: member → its logits or probabilities (N, K).
        groups: members by name; each in exactly one group.
        weights: of the groups; None: all the same.

    Raises:
        SettingError: a member is in no group or in two, a group is empty or names an unknown member, or the
            weights do not fit.
    """
    named = [name for group in groups for name in group]
    if sorted(named) != sorted(tables) or not all(groups):
        raise SettingError(
            f"groups: wanted each of {sorted(tables)} in exactly one group; got {list(map(list, groups))}"
        )
    return mean([mean([tables[name] for name in group]) for group in groups], weights)


@dataclass(frozen=True, eq=False)
class SigmoidBlend:
    """A blend of one name of many and many names at once.

    Attributes:
        plain: α · softmax + (1 − α) · sigmoid, shape (N, K); decides the name, but does not sum to 1.
        probabilities: the same, made to sum to 1.
    """

    plain: Array
    probabilities: Array


def sigmoid_blend(z_mc: ArrayLike, z_ml: ArrayLike, alpha: float) -> SigmoidBlend:
    """Logits of a one-of-many classifier and of a whole-image, many-at-once one (both (N, K)), blended.

    Raises:
        SettingError: alpha is not between 0 and 1.
        ValueError: the logits have different shapes.
    """
    if not 0 <= alpha <= 1:
        raise SettingError(f"alpha: wanted a number from 0 to 1; got {alpha}")
    one_of_many, many = _stacked([z_mc, z_ml])
    # As a hyperbolic tangent the sigmoid cannot overflow.
    plain = alpha * softmax(one_of_many) + (1 - alpha) * (1 + np.tanh(many / 2)) / 2
    total = plain.sum(axis=-1, keepdims=True)
    even = np.full_like(plain, 1 / max(plain.shape[-1], 1))
    return SigmoidBlend(plain, np.divide(plain, total, out=even, where=total > 0))


def _stacked(tables: Sequence[ArrayLike]) -> Array:
    arrays = [np.asarray(table, np.float64) for table in tables]
    if len({array.shape for array in arrays}) > 1:
        raise ValueError(f"members have tables of different shapes: {[array.shape for array in arrays]}")
    return np.stack(arrays)


# -- tuning ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Tuned:
    """Weights and the macro-F1 that they reach on the cells they were tuned on.

    Attributes:
        weights: of the members, summing to 1, shape (M,).
        score: macro-F1, in sample.
    """

    weights: Array
    score: float


@dataclass(frozen=True, eq=False)
class Nested:
    """An honest figure of tuned weights, with the flattering one beside it.

    Attributes:
        score: macro-F1 of all cells, each named with weights that were tuned without its fold.
        in_sample: macro-F1 of weights tuned and judged on all cells.
        weights: tuned on all cells, to be used from now on, shape (M,).
        of_fold: fold → the weights that its cells were named with.
    """

    score: float
    in_sample: float
    weights: Array
    of_fold: Mapping[Any, Array]


def macro_f1(predicted: ArrayLike, truth: ArrayLike, labels: int) -> float:
    """Macro-F1 of names as indices (N,), over the labels that occur in the truth."""
    truth = np.asarray(truth, np.intp)
    codes = truth * labels + np.asarray(predicted, np.intp)
    matrix = np.bincount(codes, minlength=labels * labels).reshape(1, labels, labels)
    return float(confusion_figures(matrix).macro_f1[0])


def tuned_weights(member_probabilities: ArrayLike, truth: ArrayLike, *, settings: TuneSettings | None = None) -> Tuned:
    """The weights with the best macro-F1 of the largest blended probability.

    Of weights that do equally well those nearest to equal ones are taken; equal weights are always tried.

    Args:
        member_probabilities: shape (M, N, K): probabilities, or anything whose weighted mean decides a name.
        truth: index of the right name of each cell, shape (N,).
        settings: None: the defaults.

    Raises:
        SettingError: there is no member or no cell, or a truth is no index of a name.
        MissingExtraError: method "optuna" without the extra "train".
    """
    settings = settings or TuneSettings()
    table, answer = _checked(member_probabilities, truth)
    members = len(table)

    def score(weights: Array) -> float:
        return macro_f1(np.tensordot(weights, table, axes=1).argmax(axis=1), answer, table.shape[2])

    equal = np.full(members, 1 / members)
    best, best_score = equal, score(equal)
    tried = (
        ()
        if members == 1
        else _grid(members, settings)
        if settings.method == "grid"
        else _search(score, members, settings)
    )
    for weights in tried:
        reached = score(weights)
        nearer = ((weights - equal) ** 2).sum() < ((best - equal) ** 2).sum()
        if reached > best_score + _AS_GOOD or (nearer and reached >= best_score - _AS_GOOD):
            best, best_score = weights, max(reached, best_score)
    return Tuned(best, best_score)


def nested(
    member_probabilities: ArrayLike,
    truth: ArrayLike,
    folds: Sequence[Any] | NDArray[Any],
    *,
    settings: TuneSettings | None = None,
) -> Nested:
    """Tune on all folds but one, name the cells of that one, and judge all cells named so.

    Args:
        member_probabilities: shape (M, N, K), out of fold.
        truth: shape (N,).
        folds: the fold of each cell, shape (N,).
        settings: of the tuning.

    Raises:
        SettingError: there are not two folds, or as of `tuned_weights`.
        ValueError: there are not as many folds as cells.
    """
    table, answer = _checked(member_probabilities, truth)
    names, index = np.unique(np.asarray(folds), return_inverse=True)
    if len(index) != len(answer):
        raise ValueError(f"{len(answer)} cells need as many folds; got {len(index)}")
    if len(names) < 2:
        raise SettingError("nested tuning needs at least two folds: one to judge, the others to tune on")
    predicted = np.zeros(len(answer), np.intp)
    of_fold: dict[Any, Array] = {}
    for number, name in enumerate(names.tolist()):
        out = index == number
        of_fold[name] = tuned_weights(table[:, ~out], answer[~out], settings=settings).weights
        predicted[out] = np.tensordot(of_fold[name], table[:, out], axes=1).argmax(axis=1)
    everything = tuned_weights(table, answer, settings=settings)
    score = macro_f1(predicted, answer, table.shape[2])
    return Nested(score, everything.score, everything.weights, of_fold)


def _checked(member_probabilities: ArrayLike, truth: ArrayLike) -> tuple[Array, NDArray[np.intp]]:
    table, answer = np.asarray(member_probabilities, np.float64), np.asarray(truth)
    if table.ndim != 3 or 0 in table.shape or table.shape[1] != len(answer):
        raise SettingError(
            f"to tune, members' tables have shape (members, cells, labels), none of them 0, with a truth for each "
            f"cell; got {table.shape} and {len(answer)} truths"
        )
    if not np.issubdtype(answer.dtype, np.integer) or answer.min() < 0 or answer.max() >= table.shape[2]:
        raise SettingError(f"truths are indices of labels, 0 to {table.shape[2] - 1}; leave out cells without a truth")
    return table, answer.astype(np.intp)


def _grid(members: int, settings: TuneSettings) -> Iterator[Array]:
    """All weights that are multiples of 1 / steps and sum to 1."""
    steps = settings.steps
    if steps is None:
        fits = (n for n in range(_MOST_STEPS, 0, -1) if comb(n + members - 1, members - 1) <= settings.candidates)
        steps = next(fits, 1)
    # Bars between stars: every way to part `steps` among the members.
    for bars in combinations(range(steps + members - 1), members - 1):
        edges = np.array([-1, *bars, steps + members - 1])
        yield (np.diff(edges) - 1) / steps


def _search(score: Callable[[Array], float], members: int, settings: TuneSettings) -> Iterator[Array]:
    """The weights of a seeded tree-structured Parzen search, in the order in which they were tried."""
    optuna: Any = require("optuna", "train", 'tuning blend weights with method="optuna"')
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=settings.seed))
        study.enqueue_trial({str(i): 1.0 for i in range(members)})

        def objective(trial: Any) -> float:
            return score(_normalised([trial.suggest_float(str(i), 0, 1) for i in range(members)]))

        study.optimize(objective, n_trials=settings.trials)
    finally:
        optuna.logging.set_verbosity(before)
    return iter([_normalised([trial.params[str(i)] for i in range(members)]) for trial in study.trials])


def _normalised(weights: Sequence[float]) -> Array:
    values = np.asarray(weights, np.float64)
    return values / values.sum() if values.sum() > 0 else np.full(len(values), 1 / len(values))
