"""What a model learns about itself on data kept for it: temperature, thresholds, what is unfamiliar.

Nothing here may see what is reported: the data are the tuning part of the training data, or
out-of-fold predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cytolens import match
from cytolens.cells import Cells
from cytolens.labels import LabelSet
from cytolens.tasks.classify import decide, probabilities

F1_SLACK = 0.005


def temperature(logits: NDArray[np.floating], allowed: NDArray[np.bool_]) -> float:
    """The temperature with the smallest negative log-likelihood of the labels.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; a label that is only a
    parent counts by the summed probability of its kinds.

    Args:
        logits: shape (N, K).
        allowed: which leaves each cell's label allows, shape (N, K).
    """
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        table = probabilities(logits, float(np.exp(log_t))).astype(np.float64)
        return -float(np.log(np.maximum((table * allowed).sum(axis=1), 1e-12)).mean())

    best: Any = minimize_scalar(loss, bounds=(-2.5, 2.5), method="bounded")
    return float(np.exp(best.x))


def binary_temperature(logits: NDArray[np.floating], presence: NDArray[np.integer]) -> float:
    """The temperature of sigmoids with the smallest binary cross-entropy.

    Source: as of `temperature`, for each name by itself. 1 where nothing is known.

    Args:
        logits: shape (N, K).
        presence: 1: the name is in the image, 0: it is not, −1: not known, and left out; shape (N, K).
    """
    from scipy.optimize import minimize_scalar

    known = np.asarray(presence) >= 0
    # −log σ(z) = log(1 + exp(−z)); a name that is absent turns the sign of its logit.
    signed = (np.where(presence == 1, logits, -np.asarray(logits)))[known].astype(np.float64)
    if not signed.size:
        return 1.0

    def loss(log_t: float) -> float:
        return float(np.logaddexp(0, -signed / np.exp(log_t)).mean())

    best: Any = minimize_scalar(loss, bounds=(-2.5, 2.5), method="bounded")
    return float(np.exp(best.x))


def sure_threshold(
    table: NDArray[np.floating], truth: Sequence[str | None], labels: LabelSet, most_wrong: float = 0.02
) -> float:
    """The lowest probability to call a name sure, such that few accepted cells are named wrongly.

    A name is right when the truth is it, a kind of it, or (for a truth that is only a parent) its parent.

    Args:
        table: probabilities over the leaves, shape (N, K).
        truth: the label of each cell (N); None: there is no cell, so that any name is wrong.
        labels: of both.
        most_wrong: largest share of wrong names among the accepted cells.
    """
    for threshold in (percent / 100 for percent in range(40, 100)):
        names, refer = decide(table, labels, threshold)
        accepted = [(n, t) for n, t, r in zip(names, truth, refer, strict=True) if not r and n is not None]
        wrong = sum(t is None or not (labels.is_a(t, n) or labels.is_a(n, t)) for n, t in accepted)
        if accepted and wrong <= most_wrong * len(accepted):
            return threshold
    return 0.99


def value_threshold(table: NDArray[np.floating], truth: NDArray[np.integer], most_wrong: float) -> float:
    """The lowest probability, in hundredths, from which few of the values given are wrong; 0.99 where none is enough.

    Args:
        table: probabilities of an attribute's values, shape (N, V).
        truth: index of the right one, shape (N,).
        most_wrong: largest share of wrong ones among those given.
    """
    height, wrong = table.max(axis=1), table.argmax(axis=1) != truth
    for threshold in (percent / 100 for percent in range(100)):
        given = height >= threshold
        if given.any() and wrong[given].mean() <= most_wrong:
            return threshold
    return 0.99


def detection_thresholds(
    truth: Cells, found: Cells, image_ids: Sequence[str], iou_min: float = 0.5
) -> dict[str, float]:
    """Per label the lowest score whose F1 is nearly the best, halfway to the next lower finding.

    Nearly: `F1_SLACK` below. The curve is flat about its top, and elsewhere scores come out lower than at
    home, so the low end of the flat part generalises best. 0.5 where there is no truth, or none is found.

    Args:
        truth, found: cells of one label set.
        image_ids: the images that were looked at, with and without cells.
    """
    thresholds: dict[str, float] = {}
    for name in truth.labels.names:
        ranking = _ranking(truth, found, name, image_ids, iou_min)
        total = int(ranking.truth_per_image.sum())
        scored = ~ranking.neutral[0]
        scores = ranking.scores[scored]
        hits = np.cumsum(ranking.hit[0][scored])
        if not total or not hits.any():  # nothing to learn from: no truth, or none of it found
            thresholds[name] = 0.5
            continue
        f1 = 2 * hits / (np.arange(1, len(hits) + 1) + total)
        f1[:-1][scores[1:] == scores[:-1]] = -1  # no threshold parts findings of equal score
        best = int(np.flatnonzero(f1 >= f1.max() - F1_SLACK)[-1])
        below = scores[best + 1] if best + 1 < len(scores) else 0.0
        thresholds[name] = _parting(float(below), float(scores[best]))
    return thresholds


def _parting(low: float, high: float) -> float:
    """The middle of two scores, with as few decimals (three at least) as still part them."""
    rounded = (round((low + high) / 2, decimals) for decimals in range(3, 9))
    return next((threshold for threshold in rounded if low < threshold <= high), high)


def _ranking(truth: Cells, found: Cells, name: str, image_ids: Sequence[str], iou_min: float) -> match.Ranking:
    ours = dict(found.filter(pl.col("label") == name).by_image())
    theirs = dict(truth.filter(pl.col("label") == name).by_image())
    none = Cells.empty(truth.labels)
    pairs = [(theirs.get(i, none), ours.get(i, none)) for i in image_ids]
    return match.rank(
        [match.overlaps(t, f) for t, f in pairs],
        [f.scores() for _, f in pairs],
        [t.frame["ignore"].to_numpy() for t, _ in pairs],
        [iou_min],
    )


def distance_limit(distances: NDArray[np.floating], share: float = 0.995, slack: float = 1.5) -> float:
    """The distance beyond which a cell is a stranger: what `share` of the tuning cells stay below, with slack.

    The slack leaves room for other laboratories' cells, which lie farther out and are named rightly all the same.
    """
    return float(np.quantile(distances, share) * slack)


def field_ranges(measures: Sequence[dict[str, float]], slack: float = 0.5) -> dict[str, tuple[float, float]]:
    """The range of each measure over the training fields, widened by `slack` of its width on both sides."""
    ranges = {}
    for name in measures[0] if measures else ():
        low, high = np.quantile([m[name] for m in measures], [0.001, 0.999])
        room = slack * (high - low)
        ranges[name] = (round(float(low - room), 4), round(float(high + room), 4))
    return ranges
