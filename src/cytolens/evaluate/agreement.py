"""Figures of agreement between true and predicted names, from tallies that can be weighted.

Every figure here is a function of sums over images, so that a bootstrap resample is one matrix
product: the tallies of the images times how often each image was drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
CALIBRATION_BINS = np.linspace(0, 1, 16)


def ratio(part: ArrayLike, whole: ArrayLike) -> Array:
    """part / whole; NaN where the whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def mean_where(values: Array, keep: NDArray[np.bool_]) -> Array:
    """Mean of the kept values along the last axis; NaN where none is kept."""
    return ratio(np.where(keep, values, 0).sum(axis=-1), keep.sum(axis=-1))


def tally(
    image: NDArray[np.intp],
    column: NDArray[np.intp],
    images: int,
    columns: int,
    amount: NDArray[np.float64] | None = None,
) -> Array:
    """Sums of `amount` (one each, where None) per image and column, shape (images, columns)."""
    return np.bincount(image * columns + column, amount, images * columns).reshape(images, columns).astype(np.float64)


def weighted_matrices(
    image: NDArray[np.intp],
    truth: NDArray[np.intp],
    predicted: NDArray[np.intp],
    shape: tuple[int, int],
    weights: NDArray[np.floating],
) -> Array:
    """The confusion matrix of each resample, shape (R, *shape).

    Args:
        image, truth, predicted: of each cell (N).
        shape: how many labels there are in the truth, and among the predictions.
        weights: how often each image occurs in each resample, shape (R, images).
    """
    codes, which = np.unique(truth * shape[1] + predicted, return_inverse=True)
    matrix = np.zeros((len(weights), shape[0] * shape[1]))
    matrix[:, codes] = weights @ tally(image, which, weights.shape[1], len(codes))
    return matrix.reshape(len(weights), *shape)


@dataclass(frozen=True, eq=False)
class ConfusionFigures:
    """What a confusion matrix says; R matrices at once, K labels."""

    accuracy: Array  # (R,)
    balanced_accuracy: Array  # (R,)
    macro_f1: Array  # (R,)
    kappa: Array  # (R,)
    precision: Array  # (R, K); NaN where never predicted
    recall: Array  # (R, K); NaN where it never occurs
    f1: Array  # (R, K); NaN where it neither occurs nor is predicted


def confusion_figures(matrix: ArrayLike) -> ConfusionFigures:
    """The figures of confusion matrices, shape (R, K, K or K + 1): truth in rows, predictions in columns.

    A further column holds what was called something that is no label. Macro-F1 and balanced accuracy
    are means over the labels that occur in the truth. Sources: the usual definitions; kappa is
    J. Cohen, Educational and Psychological Measurement 20 (1960) 37.
    """
    table = np.asarray(matrix, np.float64)
    labels = table.shape[1]
    right = np.einsum("rkk->rk", table[:, :, :labels])
    support, predicted, total = table.sum(axis=2), table.sum(axis=1)[:, :labels], table.sum(axis=(1, 2))
    occurs = support > 0
    recall = ratio(right, support)
    f1 = ratio(2 * right, support + predicted)
    accuracy = ratio(right.sum(axis=1), total)
    chance = ratio((support * predicted).sum(axis=1), total**2)
    return ConfusionFigures(
        accuracy=accuracy,
        balanced_accuracy=mean_where(recall, occurs),
        macro_f1=mean_where(f1, occurs),
        kappa=ratio(accuracy - chance, 1 - chance),
        precision=ratio(right, predicted),
        recall=recall,
        f1=f1,
    )


@dataclass(frozen=True, eq=False)
class ValueFigures:
    """What a confusion matrix of an attribute says; R matrices at once, V values."""

    accuracy: Array  # (R,)
    macro_f1: Array  # (R,)
    kappa: Array  # (R,); NaN where the truth has one value only
    f1: Array  # (R, V); NaN where it neither occurs nor is said


def kappa_weights(values: int, ordered: bool) -> Array:
    """How wrong each answer is, shape (V, V + 1): quadratic in the distance where values have an order, else 0 or 1.

    The last column, nothing said, is as wrong as can be.
    """
    place = np.arange(values)
    apart = (place[:, None] - place[None, :]) ** 2 / max(1, values - 1) ** 2 if ordered else place[:, None] != place
    return np.column_stack([np.asarray(apart, np.float64), np.ones(values)])


def value_figures(matrix: ArrayLike, weights: ArrayLike) -> ValueFigures:
    """The figures of an attribute's confusion matrices, shape (R, V, V + 1): truth in rows, what was said in columns.

    Macro-F1 is the mean over the values that occur in the truth or are said, 0 where one side has none of them.
    Source of the weighted kappa: J. Cohen, Psychological Bulletin 70 (1968) 213.

    Args:
        matrix: counts; the last column is "nothing said".
        weights: of `kappa_weights`.
    """
    table, wrong = np.asarray(matrix, np.float64), np.asarray(weights, np.float64)
    values = table.shape[1]
    right = np.einsum("rkk->rk", table[:, :, :values])
    support, said, total = table.sum(axis=2), table.sum(axis=1), table.sum(axis=(1, 2))
    f1 = ratio(2 * right, support + said[:, :values])
    chance = ratio(np.einsum("rk,kl,rl->r", support, wrong, said), total)
    kappa = 1 - ratio((table * wrong).sum(axis=(1, 2)), chance)
    return ValueFigures(
        accuracy=ratio(right.sum(axis=1), total),
        macro_f1=mean_where(np.nan_to_num(f1), np.isfinite(f1)),
        kappa=np.where((support > 0).sum(axis=1) > 1, kappa, np.nan),
        f1=f1,
    )


def bin_of(confidence: ArrayLike, edges: ArrayLike = CALIBRATION_BINS) -> NDArray[np.intp]:
    """The bin of each confidence; a bin holds its upper edge, the first bin also its lower one."""
    edges = np.asarray(edges, np.float64)
    return np.clip(np.searchsorted(edges, np.asarray(confidence, np.float64), side="left") - 1, 0, len(edges) - 2)


def calibration_error(cells: ArrayLike, confidence: ArrayLike, correct: ArrayLike) -> Array:
    """Expected calibration error from sums per bin, each of shape (R, bins): Σ share · |mean confidence − accuracy|.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    gap = np.abs(np.asarray(confidence, np.float64) - np.asarray(correct, np.float64)).sum(axis=-1)
    return ratio(gap, np.asarray(cells, np.float64).sum(axis=-1))


def reliability(confidence: Array, correct: NDArray[np.bool_], edges: ArrayLike = CALIBRATION_BINS) -> pl.DataFrame:
    """Mean confidence and accuracy of each bin that holds a cell; columns low, high, cells, confidence, accuracy."""
    edges = np.asarray(edges, np.float64)
    index = bin_of(confidence, edges)
    cells = np.bincount(index, minlength=len(edges) - 1)
    table = pl.DataFrame(
        {
            "low": edges[:-1],
            "high": edges[1:],
            "cells": cells,
            "confidence": ratio(np.bincount(index, confidence, len(edges) - 1), cells),
            "accuracy": ratio(np.bincount(index, correct.astype(np.float64), len(edges) - 1), cells),
        }
    )
    return table.filter(pl.col("cells") > 0)


def coverage_curve(confidence: Array, correct: NDArray[np.bool_]) -> pl.DataFrame:
    """Accuracy of the surest cells against their share; columns threshold, kept, coverage, accuracy.

    One row per distinct confidence: cells of equal confidence are kept or left together.
    """
    order = np.argsort(-confidence, kind="stable")
    falling = confidence[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)) if len(falling) else np.zeros(0, np.intp)
    kept = last + 1
    return pl.DataFrame(
        {
            "threshold": falling[last],
            "kept": kept,
            "coverage": kept / max(1, len(falling)),
            "accuracy": np.cumsum(correct[order])[last] / kept,
        },
        schema={"threshold": pl.Float64, "kept": pl.Int64, "coverage": pl.Float64, "accuracy": pl.Float64},
    )


def at_coverages(curve: pl.DataFrame, shares: ArrayLike) -> list[dict[str, float | int]]:
    """The rows of a coverage curve with the highest threshold that still keeps at least each share."""
    coverage = curve["coverage"].to_numpy()
    if not len(coverage):
        return []
    rows = np.searchsorted(coverage, np.asarray(shares, np.float64) - 1e-9, side="left")
    return [
        {"coverage": float(share), **curve.select("kept", "threshold", "accuracy").row(int(row), named=True)}
        for share, row in zip(np.asarray(shares), rows, strict=True)
    ]
