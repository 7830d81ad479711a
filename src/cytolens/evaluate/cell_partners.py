"""Which counted finding is which truth cell, whatever either is called.

Names, attributes and their probabilities are judged on these pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolens import match
from cytolens.evaluate.joining import Joined, Overlaps, overlaps_by_image


@dataclass(frozen=True, eq=False)
class Partners:
    """Pairs of a truth cell and a counted finding.

    Attributes:
        truth: rows of `Joined.truth`, shape (P,).
        found: rows of `Joined.found`, shape (P,).
        iou: overlap of the two boxes, shape (P,).
        image: index of the image in `Joined.images`, shape (P,).
        missed: rows of scored truths without a partner.
        whole_images: how many images carry one label for the whole image.
    """

    truth: NDArray[np.intp]
    found: NDArray[np.intp]
    iou: NDArray[np.float64]
    image: NDArray[np.intp]
    missed: NDArray[np.intp]
    whole_images: int


def find_partners(
    joined: Joined, iou_min: float, *, same_label: bool = False, overlaps: Sequence[Overlaps] | None = None
) -> Partners:
    """Pair truths with counted findings, image by image, by the rule of `match.partners`.

    Args:
        joined: truth and findings.
        iou_min: overlap from which they are the same cell.
        same_label: whether only findings of the truth's own label are taken.
        overlaps: of `overlaps_by_image`, where they are known already.
    """
    ignored = joined.truth.frame["ignore"].to_numpy()
    counted = joined.found.frame["counted"].to_numpy()
    sizes = joined.images.frame.select("width_px", "height_px").rows()
    truth_boxes, found_boxes, scores = joined.truth.boxes(), joined.found.boxes(), joined.found.scores()
    truth, found, iou, image, missed = [], [], [], [], []
    whole_images = 0
    for one in overlaps_by_image(joined) if overlaps is None else overlaps:
        answer = counted[one.found]
        rows, table = one.found[answer], one.table[answer]
        if same_label:
            alike = joined.found_label[rows][:, None] == joined.truth_label[one.truth][None]
            table = np.where(alike | ignored[one.truth][None], table, 0.0)
            fits = alike.any(axis=1)
            rows, table = rows[fits], table[fits]
        ours, theirs = match.partners(
            truth_boxes[one.truth],
            found_boxes[rows],
            scores[rows],
            table,
            ignored[one.truth],
            sizes[one.image],
            iou_min,
        )
        lost = np.setdiff1d(np.flatnonzero(~ignored[one.truth]), ours)
        if len(one.truth) == 1 and match.is_whole_image(truth_boxes[one.truth], sizes[one.image])[0]:
            whole_images += 1
        truth.append(one.truth[ours])
        found.append(rows[theirs])
        iou.append(table[theirs, ours])
        image.append(np.full(len(theirs), one.image, np.intp))
        missed.append(one.truth[lost])
    return Partners(
        truth=_joined(truth, np.intp),
        found=_joined(found, np.intp),
        iou=_joined(iou, np.float64),
        image=_joined(image, np.intp),
        missed=_joined(missed, np.intp),
        whole_images=whole_images,
    )


def _joined(parts: list[NDArray], dtype: type) -> NDArray:
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)
