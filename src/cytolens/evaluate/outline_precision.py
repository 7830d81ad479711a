"""How many outlines are right: one-to-one pairs at ten IoU limits."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cytolens import match
from cytolens.evaluate.sartorius import IOU_LIMITS, precision_of


def mean_precision(table: ArrayLike, ignored: ArrayLike | None = None) -> tuple[NDArray[np.float64], float]:
    """TP / (TP + FP + FN) of one image at each IoU limit, and the mean: the figure of the 2018 Data Science Bowl.

    Findings and truths are paired one to one, anew for each limit, from that overlap on. An image without truth and
    findings scores 1, one with only either scores 0.

    Args:
        table: IoU of masks, shape (found, truth); of an ignored truth, how much of the finding lies in it.
        ignored: truths that are not scored, shape (truth,); None: all are.

    Returns:
        the precision at each of `IOU_LIMITS`, shape (10,), and their mean.
    """
    table = np.asarray(table, np.float64)
    outside = np.zeros(table.shape[1], bool) if ignored is None else np.asarray(ignored, bool)
    counts = [counts_of(match.pair(table, outside, limit)) for limit in IOU_LIMITS]
    precisions = precision_of(counts)
    return precisions, float(precisions.mean())


def counts_of(pairs: match.Matches) -> tuple[int, int, int]:
    """TP, FP and FN of an assignment."""
    return len(pairs.found), len(pairs.surplus), len(pairs.missed)
