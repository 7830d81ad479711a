"""The attribute score of the original LeukemiaAttri program, for comparison only.

Each truth takes the counted finding that it overlaps most, the first of equals, without any least overlap, whatever
either is called; a finding may serve several truths. Truths without a value are passed over, and so are images in
which nothing was found. What is scored is the second value of attributes that have two: accuracy, precision, recall
and F1, and the mean of the F1. A finding that says nothing of an attribute counts as its first value, which is what
the original writes for artefacts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolens.evaluate.agreement import Array, ratio, tally
from cytolens.evaluate.attribute_sides import Said
from cytolens.evaluate.joining import Joined, Overlaps
from cytolens.evaluate.scores import figure
from cytolens.evaluate.uncertainty import Resampling
from cytolens.problems import listing

Indices = NDArray[np.intp]


def most_overlapping(joined: Joined, overlaps: Sequence[Overlaps]) -> tuple[Indices, Indices, Indices, int]:
    """The counted finding that each scored truth overlaps most, whatever the overlap.

    Args:
        joined: truth and findings.
        overlaps: of `overlaps_by_image`.

    Returns:
        rows of the truth, rows of the findings, and the index of the image (N each), and how many images with
        scored truths are left out because nothing was found in them.
    """
    ignored = joined.truth.frame["ignore"].to_numpy()
    counted = joined.found.frame["counted"].to_numpy()
    none = np.zeros(0, np.intp)
    truth, found, image, left_out = [none], [none], [none], 0
    for one in overlaps:
        rows, scored = one.found[counted[one.found]], ~ignored[one.truth]
        if not len(rows):
            left_out += bool(scored.any())
            continue
        best = one.table[counted[one.found]].argmax(axis=0)
        truth.append(one.truth[scored])
        found.append(rows[best[scored]])
        image.append(np.full(int(scored.sum()), one.image, np.intp))
    return np.concatenate(truth), np.concatenate(found), np.concatenate(image), left_out


def compatible(
    joined: Joined, overlaps: Sequence[Overlaps], names: Sequence[str], said: Sequence[Said], resamples: Resampling
) -> dict[str, Any]:
    """The original's figures of every attribute with two values, and their mean F1."""
    truth, found, image, left_out = most_overlapping(joined, overlaps)
    per_attribute: dict[str, Any] = {}
    points, draws = [], []
    for name, one in zip(names, said, strict=True):
        if len(one.schema.values) != 2:
            continue
        rows = np.flatnonzero(one.truth[truth] >= 0)
        outcome = 2 * one.truth[truth[rows]] + (one.found[found[rows]] == 1)
        sums = tally(image[rows], outcome, len(joined.images), 4)
        point = _figures(sums.sum(axis=0)[None])
        drawn = None if resamples.weights is None else _figures(resamples.weights @ sums)
        entry: dict[str, Any] = {"value": one.schema.values[1], "support": len(rows)}
        for key, value in point.items():
            entry |= figure(key, value[0], None if drawn is None else drawn[key])
        per_attribute[name] = entry
        points.append(point["f1"])
        draws.append(None if drawn is None else drawn["f1"])
    known = [samples for samples in draws if samples is not None]
    mean = figure(
        "mean_f1", float(np.mean(points)) if points else float("nan"), np.mean(known, axis=0) if known else None
    )
    notes = []
    if left_out:
        notes.append(
            f"Compatible score: {left_out} images in which nothing was found are left out, as in the original."
        )
    if other := [name for name, one in zip(names, said, strict=True) if len(one.schema.values) != 2]:
        notes.append(f"Compatible score: attributes of other than two values have none: {listing(other, 30)}.")
    return {**mean, "per_attribute": per_attribute, "images_left_out": left_out, "notes": notes}


def _figures(sums: Array) -> dict[str, Array]:
    """Accuracy, precision, recall and F1 from counts (R, 4): true negative, false positive, false negative, hit."""
    negative, surplus, missed, hit = sums.T
    return {
        "accuracy": ratio(hit + negative, sums.sum(axis=1)),
        "precision": np.nan_to_num(ratio(hit, hit + surplus)),
        "recall": np.nan_to_num(ratio(hit, hit + missed)),
        "f1": np.nan_to_num(ratio(2 * hit, 2 * hit + surplus + missed)),
    }
