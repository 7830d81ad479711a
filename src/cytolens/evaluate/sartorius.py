"""The score of the Sartorius competition (outlines of neuronal cells), as its organisers count.

Per image and for each IoU limit .50, .55 … .95: a truth that exactly one finding overlaps by more than the limit is
found (TP), one that none overlaps so is missed (FN); a finding that overlaps no truth so is false (FP), and so is a
truth with several. The precision is TP / (TP + FP + FN). The score of an image is the mean over the limits, that of a
set the mean over its images. What a cell is called plays no part.

It is not the `map` of the task "segmentation" where findings overlap each other: there findings and truths are paired
one to one, so that of two findings on one truth the better one counts as found and only the other as false.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Hundredths divided by 100 are the doubles nearest to the decimals, as an IoU of 3 / 5 is; sums of .05 are not.
IOU_LIMITS = np.arange(50, 100, 5) / 100


def sartorius_score(table: ArrayLike, ignored: ArrayLike | None = None) -> tuple[NDArray[np.float64], float]:
    """The competition's precisions of one image, and their mean, its score.

    An image without truth and findings scores 1 (the competition does not say), one with only either scores 0.

    Args:
        table: IoU of masks, shape (found, truth); of an ignored truth, how much of the finding lies in it.
        ignored: truths that are not scored, shape (truth,); a finding in one by more than the limit, and on no other
            truth, counts neither way. None: all are scored.

    Returns:
        the precision at each of `IOU_LIMITS`, shape (10,), and their mean.
    """
    counts = sartorius_counts(table, ignored)
    precisions = precision_of(counts)
    return precisions, float(precisions.mean())


def sartorius_counts(
    table: ArrayLike, ignored: ArrayLike | None = None, excused: ArrayLike | None = None
) -> NDArray[np.int64]:
    """TP, FP and FN of one image at each of `IOU_LIMITS`, shape (10, 3).

    Args:
        table, ignored: as for `sartorius_score`.
        excused: findings that are not false where they overlap no truth, shape (found,); None: there are none.
    """
    table = _as_table(table)
    outside = np.zeros(table.shape[1], bool) if ignored is None else np.asarray(ignored, bool)
    free = np.zeros(len(table), bool) if excused is None else np.asarray(excused, bool)
    counts = np.zeros((len(IOU_LIMITS), 3), np.int64)
    for row, limit in zip(counts, IOU_LIMITS, strict=True):
        over = table > limit
        per_truth = over[:, ~outside].sum(axis=0)
        alone = ~over.any(axis=1) & ~free
        row[:] = (per_truth == 1).sum(), alone.sum() + (per_truth > 1).sum(), (per_truth == 0).sum()
    return counts


def precision_of(counts: ArrayLike) -> NDArray[np.float64]:
    """TP / (TP + FP + FN) of counts (…, 3), shape (…); 1 where there is nothing to find and nothing found."""
    counts = np.asarray(counts, np.float64)
    total = counts.sum(axis=-1)
    return np.divide(counts[..., 0], total, out=np.ones_like(total), where=total > 0)


def _as_table(table: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(table, np.float64)
    if table.ndim != 2:
        raise ValueError(f"a table of overlaps has shape (found, truth); got {table.shape}")
    return table
