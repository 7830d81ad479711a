"""How well cells are found: average precision of the ranking; precision, recall and F1 of the counted answer.

Everything found (score ≥ .01) enters average precision, which is about the order; only counted
findings enter precision, recall and F1, which are about the answer that a person reads.

Tables of the scores: ``outcomes`` (one row per scored truth and counted finding: what became of it),
``images`` (counts per image), ``precision_recall`` (the curves at IoU .50).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cytolens import match
from cytolens.cells import BOX_COLUMNS
from cytolens.evaluate.agreement import mean_where, ratio
from cytolens.evaluate.average_precision import IOU_LIMITS, RECALLS, average_precision, precision_at_recalls
from cytolens.evaluate.joining import Joined, Overlaps, complete_labels, names_without_place, overlaps_by_image
from cytolens.evaluate.scores import EvaluateSettings, Scores, figure
from cytolens.evaluate.uncertainty import resampling

MOST_PER_IMAGE = 1000


@dataclass(frozen=True, eq=False)
class _Counts:
    """What became of the counted findings; each array has shape (images, labels)."""

    hits: NDArray[np.int64]
    surplus: NDArray[np.int64]
    truth: NDArray[np.int64]
    found: NDArray[np.int64]
    truth_hit: NDArray[np.bool_]  # shape (T,)
    found_outcome: NDArray[np.int8]  # shape (F,): an index into _OUTCOMES


_OUTCOMES = ("excused", "hit", "surplus")


def score_detection(joined: Joined, settings: EvaluateSettings) -> Scores:
    """The figures of the task "detection", under the names that `evaluate --json` gives them."""
    images = overlaps_by_image(joined)
    resamples = resampling(joined.images, settings.bootstrap if settings.intervals else 0, settings.seed)
    complete = complete_labels(joined)
    counts = _count(joined, images, complete, settings.iou_min)
    shown = [k for k in range(len(joined.labels)) if counts.truth[:, k].sum() or (joined.found_label == k).any()]
    present = _by_label(joined, images)
    rankings = {k: _ranking(joined, present[k], complete[:, k], k) for k in shown}
    weights = resamples.weights
    point = {k: average_precision(ranking)[0] for k, ranking in rankings.items()}
    drawn = None if weights is None else {k: average_precision(r, weights) for k, r in rankings.items()}
    figures = _headline(point, drawn, counts, weights)
    figures |= {
        "images": len(joined.images),
        "truth": int(counts.truth.sum()),
        "found": int(counts.found.sum()),
        "iou_min": settings.iou_min,
        "interval_unit": resamples.unit,
        "groups": resamples.groups,
        "joined_by": dict(joined.joined_by),
        "per_label": {
            joined.labels.names[k]: _of_label(k, point[k], None if drawn is None else drawn[k], counts, weights)
            for k in shown
        },
    }
    return Scores(
        task="detection",
        figures=figures,
        notes=(*joined.notes, *_notes(joined, complete), *resamples.notes),
        problems=joined.problems,
        tables={
            "outcomes": _outcomes(joined, counts),
            "images": _images(joined, counts),
            "precision_recall": _curves(joined, rankings),
        },
    )


def _by_label(joined: Joined, images: Sequence[Overlaps]) -> dict[int, list[Overlaps]]:
    """Label index → the images that hold a truth or a finding of it; most images hold few of many labels."""
    present: dict[int, list[Overlaps]] = defaultdict(list)
    for image in images:
        for label in {*joined.truth_label[image.truth].tolist(), *joined.found_label[image.found].tolist()}:
            present[label].append(image)
    return present


def _ranking(joined: Joined, images: Sequence[Overlaps], complete: NDArray[np.bool_], label: int) -> match.Ranking:
    """COCO's ranking of one label; where it is not annotated exhaustively, a finding without truth is neutral.

    Args:
        joined: truth and findings.
        images: those that hold the label.
        complete: whether the label is annotated exhaustively, for all images.
        label: its index.
    """
    ignored = joined.truth.frame["ignore"].to_numpy()
    scores = joined.found.scores()
    tables, all_scores, all_ignored = [], [], []
    for image in images:
        f = joined.found_label[image.found] == label
        t = (joined.truth_label[image.truth] == label) | (joined.truth_label[image.truth] < 0)
        tables.append(image.table[np.ix_(f, t)])
        all_scores.append(scores[image.found[f]])
        all_ignored.append(ignored[image.truth[t]])
    ranking = match.rank(tables, all_scores, all_ignored, IOU_LIMITS, MOST_PER_IMAGE)
    index = np.array([image.image for image in images], np.intp)
    place = index[ranking.image]
    truth = np.zeros(len(complete), np.int64)
    truth[index] = ranking.truth_per_image
    neutral = ranking.neutral | (~ranking.hit & ~complete[place][None])
    return match.Ranking(ranking.scores, place, ranking.hit, neutral, truth)


def _count(joined: Joined, images: Sequence[Overlaps], complete: NDArray[np.bool_], iou_min: float) -> _Counts:
    """Pair counted findings with truths one to one, within each label."""
    ignored = joined.truth.frame["ignore"].to_numpy()
    counted = joined.found.frame["counted"].to_numpy() & (joined.found_label >= 0)
    hits, surplus, truth, found = np.zeros((4, len(joined.images), len(joined.labels)), np.int64)
    truth_hit = np.zeros(len(joined.truth), bool)
    outcome = np.zeros(len(joined.found), np.int8)
    for image in images:
        scored = image.truth[~ignored[image.truth]]
        answer = image.found[counted[image.found]]
        np.add.at(truth[image.image], joined.truth_label[scored], 1)
        np.add.at(found[image.image], joined.found_label[answer], 1)
        for label in np.unique(joined.found_label[answer]):
            f = counted[image.found] & (joined.found_label[image.found] == label)
            t = (joined.truth_label[image.truth] == label) | (joined.truth_label[image.truth] < 0)
            pairs = match.pair(image.table[np.ix_(f, t)], ignored[image.truth[t]], iou_min)
            truth_hit[image.truth[t][pairs.truth]] = True
            outcome[image.found[f][pairs.found]] = _OUTCOMES.index("hit")
            hits[image.image, label] = len(pairs.found)
            if complete[image.image, label]:
                outcome[image.found[f][pairs.surplus]] = _OUTCOMES.index("surplus")
                surplus[image.image, label] = len(pairs.surplus)
    return _Counts(hits, surplus, truth, found, truth_hit, outcome)


# -- figures --------------------------------------------------------------------------------------


def _headline(
    point: Mapping[int, NDArray[np.float64]],
    drawn: Mapping[int, NDArray[np.float64]] | None,
    counts: _Counts,
    weights: NDArray[np.floating] | None,
) -> dict[str, Any]:
    """map50, map50_95 (means over the labels that have truth), precision, recall and f1 over all labels."""
    mean = _over_labels(point, (len(IOU_LIMITS),))
    samples = None
    if drawn is not None and weights is not None:
        samples = _over_labels(drawn, (len(weights), len(IOU_LIMITS)))
    return {
        **figure("map50", mean[0], None if samples is None else samples[:, 0]),
        **figure("map50_95", mean.mean(), None if samples is None else samples.mean(axis=1)),
        **_precision_recall(counts.hits.sum(axis=1), counts.surplus.sum(axis=1), counts.truth.sum(axis=1), weights),
    }


def _over_labels(values: Mapping[int, NDArray[np.float64]], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Mean over the labels that have truth."""
    table = np.stack(list(values.values()), axis=-1) if values else np.zeros((*shape, 0))
    return mean_where(table, np.isfinite(table))


def _precision_recall(
    hits: NDArray[np.int64], surplus: NDArray[np.int64], truth: NDArray[np.int64], weights: NDArray[np.floating] | None
) -> dict[str, Any]:
    """Precision, recall and F1 with intervals from counts per image, each shape (images,)."""

    def figures_of(w: NDArray[np.floating]) -> list[NDArray[np.float64]]:
        tp, fp, all_truth = (w.astype(np.float64) @ part for part in (hits, surplus, truth))
        return [ratio(tp, tp + fp), ratio(tp, all_truth), ratio(2 * tp, tp + fp + all_truth)]

    values = figures_of(np.ones((1, len(hits))))
    samples = [None] * 3 if weights is None else figures_of(weights)
    entry: dict[str, Any] = {}
    for name, value, sample in zip(("precision", "recall", "f1"), values, samples, strict=True):
        entry |= figure(name, value[0], sample)
    return entry


def _of_label(
    label: int,
    point: NDArray[np.float64],
    drawn: NDArray[np.float64] | None,
    counts: _Counts,
    weights: NDArray[np.floating] | None,
) -> dict[str, Any]:
    return {
        **figure("ap50", point[0], None if drawn is None else drawn[:, 0]),
        **figure("ap50_95", point.mean(), None if drawn is None else drawn.mean(axis=1)),
        **_precision_recall(counts.hits[:, label], counts.surplus[:, label], counts.truth[:, label], weights),
        "truth": int(counts.truth[:, label].sum()),
        "found": int(counts.found[:, label].sum()),
    }


def _notes(joined: Joined, complete: NDArray[np.bool_]) -> list[str]:
    notes = []
    if (joined.found_label < 0).any():
        named = names_without_place(joined.found.label_names(), joined.found_label)
        count = int((joined.found_label < 0).sum())
        notes.append(f"{count} findings whose label has no counterpart in the truth are left out: {named}.")
    for k, label in enumerate(joined.labels.names):
        partial = int((~complete[:, k]).sum())
        if partial and (joined.found_label == k).any():
            notes.append(
                f"{label} is not annotated exhaustively in {partial} images: there, a finding without a truth "
                "counts neither way."
            )
    return notes


# -- tables ---------------------------------------------------------------------------------------


def _outcomes(joined: Joined, counts: _Counts) -> pl.DataFrame:
    """One row per scored truth (hit or missed) and per counted finding (hit, surplus or excused)."""
    columns = ["image_id", "cell_id", *BOX_COLUMNS, "score"]
    scored = ~joined.truth.frame["ignore"].to_numpy()
    ours = joined.truth.frame.filter(scored).select(
        pl.lit("truth").alias("side"),
        *columns,
        pl.Series("label", _names(joined, joined.truth_label[scored]), pl.String),
        pl.Series("outcome", np.where(counts.truth_hit[scored], "hit", "missed"), pl.String),
    )
    answer = joined.found.frame["counted"].to_numpy() & (joined.found_label >= 0)
    theirs = joined.found.frame.filter(answer).select(
        pl.lit("found").alias("side"),
        *columns,
        pl.Series("label", _names(joined, joined.found_label[answer]), pl.String),
        pl.Series("outcome", [_OUTCOMES[i] for i in counts.found_outcome[answer]], pl.String),
    )
    return pl.concat([ours, theirs])


def _names(joined: Joined, index: NDArray[np.intp]) -> list[str]:
    return [joined.labels.names[i] for i in index]


def _images(joined: Joined, counts: _Counts) -> pl.DataFrame:
    hits, truth = counts.hits.sum(axis=1), counts.truth.sum(axis=1)
    return joined.images.frame.select("image_id", "group").with_columns(
        truth=pl.Series(truth),
        found=pl.Series(counts.found.sum(axis=1)),
        hits=pl.Series(hits),
        missed=pl.Series(truth - hits),
        surplus=pl.Series(counts.surplus.sum(axis=1)),
    )


def _curves(joined: Joined, rankings: Mapping[int, match.Ranking]) -> pl.DataFrame:
    parts = [
        pl.DataFrame(
            {
                "label": [joined.labels.names[k]] * len(RECALLS),
                "recall": RECALLS,
                "precision": precision_at_recalls(ranking, 0),
            }
        )
        for k, ranking in rankings.items()
        if ranking.truth_per_image.sum()
    ]
    empty = pl.DataFrame(schema={"label": pl.String, "recall": pl.Float64, "precision": pl.Float64})
    return pl.concat([empty, *parts])
