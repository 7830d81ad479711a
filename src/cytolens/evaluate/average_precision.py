"""Average precision as COCO defines it, for the images as they are and for resamples of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cytolens.match import Ranking

IOU_LIMITS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
_AT_ONCE = 8_000_000  # numbers in memory at a time: resamples × findings


def average_precision(ranking: Ranking, weights: NDArray[np.floating] | None = None) -> NDArray[np.float64]:
    """Average precision at each IoU limit, interpolated at 101 recalls, shape (resamples, limits).

    NaN where a resample holds no truth. Source: the public COCO evaluation (precision is made to fall
    with recall, then read at recalls 0, .01 … 1), which it equals for weights of one.

    Args:
        ranking: the findings of one label.
        weights: how often each image counts, shape (resamples, images); None: each once, one resample.
    """
    images = len(ranking.truth_per_image)
    if weights is None:
        weights = np.ones((1, images), np.float32)
    result = np.full((len(weights), len(ranking.hit)), np.nan)
    step = max(1, _AT_ONCE // max(1, len(ranking.scores)))
    for start in range(0, len(weights), step):
        part = weights[start : start + step]
        total = part.astype(np.float64) @ ranking.truth_per_image
        per_finding = part[:, ranking.image]
        for level in range(len(ranking.hit)):
            found, false = _at_hits(ranking, level, per_finding)
            result[start : start + step, level] = _interpolated(found, false, total).mean(axis=1)
    return result


def pooled(rankings: Sequence[Ranking], images: Sequence[int], count: int) -> Ranking:
    """Rankings of single images as the one that `match.rank` gives for all of them together.

    Args:
        rankings: each of one image, judged at the same limits.
        images: the index of each one's image, rising.
        count: how many images there are.
    """
    truth = np.zeros(count, np.int64)
    for index, ranking in zip(images, rankings, strict=True):
        truth[index] = ranking.truth_per_image.sum()
    scores = np.concatenate([np.zeros(0), *(ranking.scores for ranking in rankings)])
    order = np.argsort(-scores, kind="stable")
    none = np.zeros((len(rankings[0].hit) if rankings else len(IOU_LIMITS), 0), bool)
    return Ranking(
        scores=scores[order],
        image=np.repeat(np.array(images, np.intp), [len(ranking.scores) for ranking in rankings])[order],
        hit=np.concatenate([none, *(ranking.hit for ranking in rankings)], axis=1)[:, order],
        neutral=np.concatenate([none, *(ranking.neutral for ranking in rankings)], axis=1)[:, order],
        truth_per_image=truth,
    )


def precision_at_recalls(ranking: Ranking, level: int) -> NDArray[np.float64]:
    """The interpolated precision at `RECALLS`, shape (101,); NaN without truth."""
    per_finding = np.ones((1, len(ranking.scores)), np.float32)
    total = np.array([ranking.truth_per_image.sum()], np.float64)
    return _interpolated(*_at_hits(ranking, level, per_finding), total)[0]


def _at_hits(
    ranking: Ranking, level: int, per_finding: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """True and false findings so far at each hit of the ranking, both shape (resamples, hits).

    Between two hits precision only falls, so the hits decide the interpolated curve.
    """
    hits = np.flatnonzero(ranking.hit[level])
    found = np.cumsum(per_finding[:, hits], axis=1)
    last = hits[-1] + 1 if len(hits) else 0
    wrong = ~ranking.hit[level, :last] & ~ranking.neutral[level, :last]
    return found, np.cumsum(per_finding[:, :last] * wrong, axis=1)[:, hits]


def _interpolated(
    found: NDArray[np.floating], false: NDArray[np.floating], total: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Precision at `RECALLS` for each resample, shape (resamples, 101)."""
    curve = np.zeros((len(total), len(RECALLS)))
    found = found.astype(np.float64)
    precision = found / (found + false + np.spacing(1))
    falling = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    for row, truths in enumerate(total):
        if truths == 0:
            curve[row] = np.nan
            continue
        at = np.searchsorted(found[row] / truths, RECALLS, side="left")
        reached = at < falling.shape[1]
        curve[row, reached] = falling[row, at[reached]]
    return curve
