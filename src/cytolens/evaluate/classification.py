"""How well cells are named: on pairs of a truth cell and the counted finding in its place.

The name that counts is the one of the largest probability, after the probabilities over the
findings' leaves are summed into the truth's labels. What has no word in the truth keeps its
probability in a column of its own ("other"), so that naming such a cell counts as wrong.

Truths whose label is a parent of other labels ("neutrophil, not specified") are scored apart.

Tables of the scores: ``cells`` (one row per matched truth), ``reliability``, ``coverage``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cytolens.cells import BOX_COLUMNS, Cells
from cytolens.evaluate.agreement import (
    CALIBRATION_BINS,
    at_coverages,
    bin_of,
    calibration_error,
    confusion_figures,
    coverage_curve,
    ratio,
    reliability,
    tally,
    weighted_matrices,
)
from cytolens.evaluate.cell_partners import Partners, find_partners
from cytolens.evaluate.joining import Joined, names_without_place
from cytolens.evaluate.scores import EvaluateSettings, Scores, figure, plain
from cytolens.evaluate.uncertainty import Resampling, resampling
from cytolens.labels import LabelSet

_NEXT_TO_NOTHING = 1e-12
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)


@dataclass(frozen=True, eq=False)
class _Named:
    """What was said of matched cells (P), in indices into the truth's labels; K is "other"."""

    image: NDArray[np.intp]
    truth: NDArray[np.intp]
    predicted: NDArray[np.intp]
    confidence: NDArray[np.float64]
    accepted: NDArray[np.bool_]

    @property
    def correct(self) -> NDArray[np.bool_]:
        return self.truth == self.predicted


def score_classification(joined: Joined, settings: EvaluateSettings) -> Scores:
    """The figures of the task "classification", under the names that `evaluate --json` gives them."""
    partners = find_partners(joined, settings.iou_min)
    resamples = resampling(joined.images, settings.bootstrap if settings.intervals else 0, settings.seed)
    found = Cells(joined.found.frame[partners.found], joined.found.labels)
    mass = masses(found, joined.mapping, joined.labels)
    truth = joined.truth_label[partners.truth]
    predicted = mass.argmax(axis=1)
    everyone = _Named(
        image=partners.image,
        truth=truth,
        predicted=predicted,
        confidence=np.clip(mass[np.arange(len(mass)), predicted], 0, 1),
        accepted=~found.frame["refer"].to_numpy(),
    )
    inner = [joined.labels.index(name) for name in set(joined.labels.parents.values())]
    apart = np.isin(truth, inner)
    named = _Named(**{name: getattr(everyone, name)[~apart] for name in everyone.__dataclass_fields__})
    curve = coverage_curve(named.confidence, named.correct)
    figures: dict[str, Any] = {
        **_figures(named, joined.labels, resamples),
        "coverage_curve": at_coverages(curve, COVERAGES),
        "parents": _parents(truth, mass, partners, joined, resamples, apart),
        "images": len(joined.images),
        "truth": len(partners.truth) + len(partners.missed),
        "matched": len(partners.truth),
        "missed": len(partners.missed),
        "iou_min": settings.iou_min,
        "interval_unit": resamples.unit,
        "groups": resamples.groups,
        "joined_by": dict(joined.joined_by),
    }
    return Scores(
        task="classification",
        figures=figures,
        notes=(*joined.notes, *_notes(joined, partners, found, apart), *resamples.notes),
        problems=joined.problems,
        tables={
            "cells": _cells(joined, partners, everyone, apart),
            "reliability": reliability(named.confidence, named.correct),
            "coverage": curve,
        },
    )


def masses(found: Cells, mapping: Mapping[str, str | None], labels: LabelSet) -> NDArray[np.float64]:
    """The probability that each finding gives to each of `labels`, and in the last column to anything else.

    Where probabilities are unknown, the finding's label has its score; what is unnamed is something else, unsurely.

    Args:
        found: the findings (N).
        mapping: their labels → one of `labels` (K), or None.
        labels: the truth's.

    Returns:
        Shape (N, K + 1).
    """
    column = {name: len(labels) if to is None else labels.index(to) for name, to in mapping.items()}
    transfer = np.zeros((len(found.labels.leaves), len(labels) + 1))
    for row, leaf in enumerate(found.labels.leaves):
        transfer[row, column[leaf]] = 1
    given = found.probabilities().astype(np.float64)
    unknown = np.isnan(given.sum(axis=1))
    table = np.where(unknown[:, None], 0, given) @ transfer
    scores = found.scores()
    names = found.label_names()
    for row in np.flatnonzero(unknown):
        name = names[row]
        # Never exactly 0, so that the largest entry is always the name that was given.
        if name is None:
            table[row, -1] = _NEXT_TO_NOTHING
        else:
            table[row, column[name]] = max(float(scores[row]), _NEXT_TO_NOTHING)
    return table


# -- figures --------------------------------------------------------------------------------------


def _figures(named: _Named, labels: LabelSet, resamples: Resampling) -> dict[str, Any]:
    """All figures that are functions of sums over images, with intervals."""
    count = len(labels)
    images = int(resamples.weights.shape[1]) if resamples.weights is not None else int(named.image.max(initial=-1)) + 1
    once = np.ones((1, images))
    matrix = _matrices(named, count, once)
    point = _values(named, matrix, once)
    weights = resamples.weights
    drawn = None if weights is None else _values(named, _matrices(named, count, weights), weights)
    entry: dict[str, Any] = {}
    for name, value in point.items():
        if value.ndim == 1:
            entry |= figure(name, value[0], None if drawn is None else drawn[name])
    table = matrix[0].astype(np.int64)
    shown = np.flatnonzero((table.sum(axis=1) > 0) | (table.sum(axis=0)[:count] > 0))
    per_label: dict[str, Any] = {}
    for k in shown:
        per_label[labels.names[k]] = {"support": int(table[k].sum())}
        for name in ("precision", "recall", "f1"):
            samples = None if drawn is None else drawn[name][:, k]
            per_label[labels.names[k]] |= figure(name, point[name][0, k], samples)
    return {
        **entry,
        "referred": int((~named.accepted).sum()),
        "per_label": per_label,
        "confusion": _confusion(table, shown, labels),
    }


def _matrices(named: _Named, count: int, weights: NDArray[np.floating]) -> NDArray[np.float64]:
    """The confusion matrix of each resample, shape (R, K, K + 1)."""
    return weighted_matrices(named.image, named.truth, named.predicted, (count, count + 1), weights)


def _values(
    named: _Named, matrices: NDArray[np.float64], weights: NDArray[np.floating]
) -> dict[str, NDArray[np.float64]]:
    """Each figure in each resample: shape (R,), those of a label (R, K)."""
    images = weights.shape[1]
    found = confusion_figures(matrices)
    bins, index = len(CALIBRATION_BINS) - 1, bin_of(named.confidence)
    cells, sure, right = (
        weights @ tally(named.image, index, images, bins, amount)
        for amount in (None, named.confidence, named.correct.astype(np.float64))
    )
    zero = np.zeros(len(named.image), np.intp)
    accepted, accepted_right = (
        (weights @ tally(named.image, zero, images, 1, keep.astype(np.float64)))[:, 0]
        for keep in (named.accepted, named.accepted & named.correct)
    )
    return {
        "accuracy": found.accuracy,
        "balanced_accuracy": found.balanced_accuracy,
        "macro_f1": found.macro_f1,
        "accuracy_accepted": ratio(accepted_right, accepted),
        "coverage": ratio(accepted, cells.sum(axis=1)),
        "kappa": found.kappa,
        "ece": calibration_error(cells, sure, right),
        "precision": found.precision,
        "recall": found.recall,
        "f1": found.f1,
    }


def other_name(labels: LabelSet) -> str:
    """What the column of everything that is none of `labels` is called."""
    return "other" if labels.resolve("other") is None else "none of these"


def _confusion(table: NDArray[np.int64], shown: NDArray[np.intp], labels: LabelSet) -> dict[str, Any]:
    """Rows are the truth, columns what was said; labels that neither occur nor are said are left out."""
    names = [labels.names[k] for k in shown]
    other = table[:, -1].any()
    columns = [*shown, len(labels)] if other else list(shown)
    return {
        "labels": names,
        "columns": [*names, other_name(labels)] if other else names,
        "matrix": plain(table[np.ix_(shown, columns)]),
    }


def _parents(
    truth: NDArray[np.intp],
    mass: NDArray[np.float64],
    partners: Partners,
    joined: Joined,
    resamples: Resampling,
    apart: NDArray[np.bool_],
) -> dict[str, Any]:
    """Truths that are named by a parent only.

    Such a truth is named rightly where the parent and its kinds together have more probability than
    any single label outside that family.
    """
    labels = joined.labels
    out: dict[str, Any] = {}
    for parent in np.unique(truth[apart]):
        rows = np.flatnonzero(truth == parent)
        family = np.array([labels.is_a(name, labels.names[parent]) for name in labels.names] + [False])
        right = mass[rows][:, family].sum(axis=1) > mass[rows][:, ~family].max(axis=1)
        samples = None
        if resamples.weights is not None:
            weights = resamples.weights[:, partners.image[rows]]
            samples = ratio((weights * right).sum(axis=1), weights.sum(axis=1))
        out[labels.names[parent]] = {"support": len(rows), **figure("accuracy", right.mean(), samples)}
    return out


def _notes(joined: Joined, partners: Partners, found: Cells, apart: NDArray[np.bool_]) -> list[str]:
    notes = []
    if len(partners.missed):
        total = len(partners.truth) + len(partners.missed)
        notes.append(
            f"{len(partners.missed)} of {total} truth cells have no counted finding in their place; the figures "
            f"are of the other {len(partners.truth)}."
        )
    if partners.whole_images:
        notes.append(
            f"{partners.whole_images} images carry one label for the whole image; its partner is the counted "
            "finding nearest to the image's centre."
        )
    strange = joined.found_label[partners.found]
    if (strange < 0).any():
        named = names_without_place(found.label_names(), strange)
        notes.append(
            f"{int((strange < 0).sum())} matched cells carry a name that the truth has no word for: {named}. "
            "The probability of such names counts as wrong."
        )
    if apart.any():
        notes.append(
            f"{int(apart.sum())} truths carry the name of a parent of other labels; they are scored apart, "
            'under "parents".'
        )
    return notes


# -- tables ---------------------------------------------------------------------------------------


def _cells(joined: Joined, partners: Partners, named: _Named, apart: NDArray[np.bool_]) -> pl.DataFrame:
    """One row per matched truth: what it is, what it was called, how surely; its box is the truth's."""
    words = [*joined.labels.names, other_name(joined.labels)]
    truth, found = joined.truth.frame[partners.truth], joined.found.frame[partners.found]
    return truth.select("image_id", pl.col("cell_id").alias("truth_cell_id"), *BOX_COLUMNS).with_columns(
        found_cell_id=found["cell_id"],
        truth=pl.Series([words[i] for i in named.truth], dtype=pl.String),
        predicted=pl.Series([words[i] for i in named.predicted], dtype=pl.String),
        confidence=pl.Series(named.confidence),
        correct=pl.Series(named.correct),
        refer=pl.Series(~named.accepted),
        iou=pl.Series(partners.iou),
        parent=pl.Series(apart),
        **{f"found_{name}": found[name] for name in BOX_COLUMNS},
    )
