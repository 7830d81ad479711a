"""How well the attributes of cells are said: on pairs of a truth cell and the counted finding in its place.

Pairs are one to one, of the greatest total overlap, whatever either is called; beside that, under "class_matched", only
findings of the truth's own label are taken. A matched finding that says nothing of an annotated attribute counts as
wrong. Macro-F1 is the mean over the values that occur in the truth or in what was said. "end_to_end" counts an
annotated truth without a partner as wrong.

Beside the model's figures stand those of guessing each attribute from the cell's true label alone
(`attribute_guesses`), and the score of the original LeukemiaAttri program (`attribute_compatible`).

Table of the scores: ``pairs``, one row per matched truth with its partner and, for each attribute, what is true
(``<column>``) and what was said (``found_<column>``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cytolens.evaluate.agreement import (
    CALIBRATION_BINS,
    Array,
    bin_of,
    calibration_error,
    kappa_weights,
    mean_where,
    ratio,
    tally,
    value_figures,
    weighted_matrices,
)
from cytolens.evaluate.attribute_compatible import compatible
from cytolens.evaluate.attribute_guesses import Guesses, guesses
from cytolens.evaluate.attribute_sides import Said, any_annotated, attribute_names, shared_attributes
from cytolens.evaluate.cell_partners import Partners, find_partners
from cytolens.evaluate.joining import Joined, overlaps_by_image
from cytolens.evaluate.scores import EvaluateSettings, Scores, figure, plain
from cytolens.evaluate.uncertainty import Resampling, resampling
from cytolens.labels import AttributeSchema
from cytolens.problems import listing

Samples = dict[str, Array]


def score_attributes(joined: Joined, settings: EvaluateSettings) -> Scores:
    """The figures of the task "attributes", under the names that `evaluate --json` gives them.

    Raises:
        DatasetError: truth and findings have no annotated attribute in common.
        LabelError: a value on one side is none that the other side knows.
    """
    said, notes = shared_attributes(joined)
    names = attribute_names([one.schema for one in said])
    resamples = resampling(joined.images, settings.bootstrap if settings.intervals else 0, settings.seed)
    overlaps = overlaps_by_image(joined)
    partners = find_partners(joined, settings.iou_min, overlaps=overlaps)
    alike = find_partners(joined, settings.iou_min, same_label=True, overlaps=overlaps)
    guessed = guesses(joined, [one.schema for one in said], [one.truth for one in said], settings.class_only_from)
    scored = ~joined.truth.frame["ignore"].to_numpy()
    model = _judged(said, [one.found[partners.found] for one in said], partners, scored, joined, resamples)
    own = _judged(said, [one.found[alike.found] for one in said], alike, scored, joined, resamples)
    plainly = _judged(said, [table[partners.truth] for table in guessed.values], partners, scored, joined, resamples)
    per_attribute: dict[str, Any] = {}
    for at, (name, one) in enumerate(zip(names, said, strict=True)):
        entry = _entry(one.schema, model[at]) | _sureness(one, partners, resamples)
        entry["confusion"] = _confusion(one, partners)
        entry["class_matched"] = _part(own[at], _FIGURES)
        per_attribute[name] = entry | _gain(model[at], plainly[at])
    figures: dict[str, Any] = {
        **_means(model, _FIGURES),
        **_exact(said, [one.found[partners.found] for one in said], partners, scored, resamples),
        **_mean_gain(model, plainly),
        "per_attribute": per_attribute,
        "class_matched": _means(own, _FIGURES),
        "class_only": _class_only(said, names, plainly, guessed, partners, scored, resamples),
        "compatible": compatible(joined, overlaps, names, said, resamples),
        "images": len(joined.images),
        "truth": int(scored.sum()),
        "annotated": int((scored & any_annotated(said)).sum()),
        "matched": len(partners.truth),
        "missed": len(partners.missed),
        "iou_min": settings.iou_min,
        "interval_unit": resamples.unit,
        "groups": resamples.groups,
        "joined_by": dict(joined.joined_by),
    }
    notes += _notes(figures, guessed, said, partners)
    return Scores(
        task="attributes",
        figures=figures,
        notes=(*joined.notes, *notes, *resamples.notes),
        problems=joined.problems,
        tables={"pairs": _pairs(joined, said, partners)},
    )


# -- figures ----------------------------------------------------------------------------------------

_FIGURES = ("accuracy", "macro_f1", "kappa", "coverage", "end_to_end")


@dataclass(frozen=True, eq=False)
class _Judged:
    """One attribute's figures: as they are, shape (1,) or (1, V), and in each resample (R first), if there are any."""

    point: Samples
    drawn: Samples | None
    support: int
    matched: int


def _judged(
    said: Sequence[Said],
    predicted: Sequence[NDArray[np.intp]],
    partners: Partners,
    scored: NDArray[np.bool_],
    joined: Joined,
    resamples: Resampling,
) -> list[_Judged]:
    """The figures of each attribute, from what is said of the matched truths (P)."""
    place = {image_id: at for at, image_id in enumerate(joined.images.ids)}
    image = np.array([place[image_id] for image_id in joined.truth.frame["image_id"]], np.intp)
    out = []
    for one, answer in zip(said, predicted, strict=True):
        annotated = np.flatnonzero(scored & (one.truth >= 0))
        truth = one.truth[partners.truth]
        pairs = np.flatnonzero(truth >= 0)
        count = len(one.schema.values)
        answers = np.where(answer < 0, count, answer)[pairs]
        tallies = (image[annotated], partners.image[pairs], truth[pairs], answers)
        point = _values(one.schema, *tallies, np.ones((1, len(joined.images))))
        drawn = None if resamples.weights is None else _values(one.schema, *tallies, resamples.weights)
        out.append(_Judged(point, drawn, len(annotated), len(pairs)))
    return out


def _values(
    schema: AttributeSchema,
    annotated: NDArray[np.intp],
    image: NDArray[np.intp],
    truth: NDArray[np.intp],
    answer: NDArray[np.intp],
    weights: NDArray[np.floating],
) -> Samples:
    """The figures of one attribute in each resample.

    Args:
        schema: the attribute, with V values.
        annotated: the image of each annotated truth.
        image, truth, answer: of the matched ones (P); the answer V is none.
        weights: shape (R, images).
    """
    count, images = len(schema.values), weights.shape[1]
    matrix = weighted_matrices(image, truth, answer, (count, count + 1), weights)
    figures = value_figures(matrix, kappa_weights(count, schema.ordered))
    total = (weights @ tally(annotated, np.zeros(len(annotated), np.intp), images, 1))[:, 0]
    right = np.einsum("rkk->r", matrix[:, :, :count])
    return {
        "accuracy": figures.accuracy,
        "macro_f1": figures.macro_f1,
        "kappa": figures.kappa,
        "f1": figures.f1,
        "coverage": ratio(matrix.sum(axis=(1, 2)), total),
        "end_to_end": ratio(right, total),
    }


def _part(judged: _Judged, names: Sequence[str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name in names:
        out |= figure(name, judged.point[name][0], None if judged.drawn is None else judged.drawn[name])
    return out


def _entry(schema: AttributeSchema, judged: _Judged) -> dict[str, Any]:
    f1 = judged.point["f1"][0]
    return {
        **_part(judged, _FIGURES),
        "f1_per_value": {value: plain(f1[at]) for at, value in enumerate(schema.values)},
        "support": judged.support,
        "matched": judged.matched,
        "ordered": schema.ordered,
    }


def _mean(rows: Sequence[Array]) -> Array:
    """Mean over attributes (A of shape (R,)), of those that are defined."""
    table = np.stack(rows, axis=-1)
    return mean_where(np.nan_to_num(table), np.isfinite(table))


def _means(judged: Sequence[_Judged], names: Sequence[str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name in names:
        point = _mean([one.point[name] for one in judged])
        drawn = [one.drawn[name] for one in judged if one.drawn is not None]
        out |= figure(f"mean_{name}", point[0], _mean(drawn) if drawn else None)
    return out


def _gain(model: _Judged, plainly: _Judged) -> dict[str, Any]:
    """Macro-F1 less that of guessing from the label, in the same resamples."""
    samples = None
    if model.drawn is not None and plainly.drawn is not None:
        samples = model.drawn["macro_f1"] - plainly.drawn["macro_f1"]
    return figure("gain_macro_f1", (model.point["macro_f1"] - plainly.point["macro_f1"])[0], samples)


def _mean_gain(model: Sequence[_Judged], plainly: Sequence[_Judged]) -> dict[str, Any]:
    """Mean macro-F1 less that of guessing from the label, in the same resamples."""
    sides = [[one.point["macro_f1"] for one in side] for side in (model, plainly)]
    drawn = [[one.drawn["macro_f1"] for one in side if one.drawn is not None] for side in (model, plainly)]
    samples = _mean(drawn[0]) - _mean(drawn[1]) if drawn[0] and drawn[1] else None
    return figure("mean_gain_macro_f1", (_mean(sides[0]) - _mean(sides[1]))[0], samples)


def _exact(
    said: Sequence[Said],
    predicted: Sequence[NDArray[np.intp]],
    partners: Partners,
    scored: NDArray[np.bool_],
    resamples: Resampling,
) -> dict[str, Any]:
    """The share of matched truths of which every annotated attribute is said rightly."""
    truth = np.stack([one.truth[partners.truth] for one in said])
    rows = np.flatnonzero((truth >= 0).any(axis=0))
    right = ((truth < 0) | (truth == np.stack(predicted))).all(axis=0)[rows]
    samples = None
    if resamples.weights is not None:
        weights = resamples.weights[:, partners.image[rows]]
        samples = ratio(weights @ right, weights.sum(axis=1))
    total = int((scored & any_annotated(said)).sum())
    share = {"exact_match_end_to_end": plain(float(right.sum()) / total if total else float("nan"))}
    return figure("exact_match", float(ratio(right.sum(), len(rows))), samples) | share


def _sureness(one: Said, partners: Partners, resamples: Resampling) -> dict[str, Any]:
    """The expected calibration error of what was said with a probability; undefined where none was."""
    truth, found = one.truth[partners.truth], one.found[partners.found]
    confidence = one.confidence[partners.found]
    rows = np.flatnonzero((truth >= 0) & np.isfinite(confidence))
    if not len(rows):
        return {"ece": None}
    right = (truth == found)[rows].astype(np.float64)
    images = int(partners.image.max()) + 1 if resamples.weights is None else resamples.weights.shape[1]
    bins, index = len(CALIBRATION_BINS) - 1, bin_of(confidence[rows])
    sums = [tally(partners.image[rows], index, images, bins, amount) for amount in (None, confidence[rows], right)]
    point = calibration_error(*(table.sum(axis=0)[None] for table in sums))
    weights = resamples.weights
    drawn = None if weights is None else calibration_error(*(weights @ table for table in sums))
    return figure("ece", point[0], drawn)


def _confusion(one: Said, partners: Partners) -> dict[str, Any]:
    """Rows are the truth, columns what was said; "nothing said" stands last, where that happened."""
    truth, found = one.truth[partners.truth], one.found[partners.found]
    rows, count = np.flatnonzero(truth >= 0), len(one.schema.values)
    answers = np.where(found < 0, count, found)[rows]
    matrix = np.bincount(truth[rows] * (count + 1) + answers, minlength=count * (count + 1)).reshape(count, count + 1)
    columns = [*one.schema.values, *(["nothing said"] if matrix[:, count].any() else [])]
    return {"values": list(one.schema.values), "columns": columns, "matrix": plain(matrix[:, : len(columns)])}


def _class_only(
    said: Sequence[Said],
    names: Sequence[str],
    plainly: Sequence[_Judged],
    guessed: Guesses,
    partners: Partners,
    scored: NDArray[np.bool_],
    resamples: Resampling,
) -> dict[str, Any]:
    """The figures of guessing each attribute from the true label, on the same truths as the model's."""
    per_attribute = {
        name: {
            **_part(judged, ("accuracy", "macro_f1", "kappa")),
            "f1_per_value": {value: plain(judged.point["f1"][0, at]) for at, value in enumerate(one.schema.values)},
        }
        for name, one, judged in zip(names, said, plainly, strict=True)
    }
    exact = _exact(said, [table[partners.truth] for table in guessed.values], partners, scored, resamples)
    return {
        "learnt_from": guessed.learnt_from,
        **_means(plainly, ("accuracy", "macro_f1", "kappa")),
        **{name: value for name, value in exact.items() if "end_to_end" not in name},
        "per_attribute": per_attribute,
    }


# -- words and rows ---------------------------------------------------------------------------------


def _notes(figures: Mapping[str, Any], guessed: Guesses, said: Sequence[Said], partners: Partners) -> list[str]:
    notes = [
        f"Class-only: every attribute guessed from the cell's true label alone, learnt from {guessed.learnt_from}."
    ]
    notes += guessed.notes
    if figures["missed"]:
        total = figures["matched"] + figures["missed"]
        notes.append(
            f"{figures['missed']} of {total} truth cells have no counted finding in their place; accuracy, F1 and κ "
            "are of the others, end_to_end counts them as wrong."
        )
    silent = sum(int(((one.truth[partners.truth] >= 0) & (one.found[partners.found] < 0)).sum()) for one in said)
    if silent:
        notes.append(f"{silent} values of matched cells are annotated, but nothing was said of them: they are wrong.")
    constant = [
        one.schema.name
        for one in said
        if len(np.unique(one.truth[partners.truth][one.truth[partners.truth] >= 0])) == 1
    ]
    if constant:
        notes.append(f"κ is undefined where the truth has one value only: {listing(constant, 30)}.")
    notes += figures["compatible"]["notes"]
    return notes


def _pairs(joined: Joined, said: Sequence[Said], partners: Partners) -> pl.DataFrame:
    """One row per matched truth: both cells, their overlap, and each attribute as it is and as it was said."""
    truth, found = joined.truth.frame[partners.truth], joined.found.frame[partners.found]
    columns: dict[str, pl.Series] = {
        "found_cell_id": found["cell_id"],
        "iou": pl.Series(partners.iou),
        "truth_label": truth["label"].cast(pl.String),
        "found_label": found["label"].cast(pl.String),
    }
    for one in said:
        column = one.schema.column
        columns[column] = truth[column].cast(pl.String)
        columns[f"found_{column}"] = found[column].cast(pl.String)
    return truth.select("image_id", pl.col("cell_id").alias("truth_cell_id")).with_columns(**columns)
