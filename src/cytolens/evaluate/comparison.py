"""Several answers to the same question side by side: how much better is one than another, and how sure is that.

All answers are scored on the same cells and resampled together, so the interval of a difference is that of pairs:
chance that moves both alike does not widen it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.evaluate.agreement import confusion_figures
from cytolens.evaluate.cell_partners import find_partners
from cytolens.evaluate.joining import join
from cytolens.evaluate.scores import EvaluateSettings
from cytolens.evaluate.uncertainty import percentile_interval, resampling
from cytolens.images import Images
from cytolens.problems import DatasetError, SettingError, listing

_BLOCK = 50  # resamples whose confusion matrices are in memory at a time


@dataclass(frozen=True, eq=False)
class Comparison:
    """Answers compared with one of them.

    Attributes:
        frame: one row per answer: name, accuracy, macro_f1 with low and high, difference (of macro-F1, from the
            baseline) with low and high, matched, missed.
        baseline: name of the answer that the others are compared with.
        cells: truth cells that all answers found, on which they are compared.
        unit: what is resampled, "group" or "image".
    """

    frame: pl.DataFrame
    baseline: str
    cells: int
    unit: str


def compare(
    truth: Dataset,
    answers: Mapping[str, tuple[Cells, Images | None]],
    baseline: str,
    settings: EvaluateSettings | None = None,
) -> Comparison:
    """Compare how answers name the truth's cells: accuracy and macro-F1, by the largest probability.

    Truths that are only a parent of others ("neutrophil, not specified") are left out.

    Args:
        truth: the annotated images.
        answers: name → cells, and the images that were looked at.
        baseline: the answer that the others are compared with.
        settings: of the matching and the resampling.

    Raises:
        SettingError: the baseline is none of the answers.
        DatasetError: the answers have no cell in common, or are of other images.
    """
    settings = settings or EvaluateSettings()
    if baseline not in answers:
        raise SettingError(f'the baseline "{baseline}" is none of the answers: {listing(answers)}')
    named: dict[str, NDArray[np.intp]] = {}
    right = image = np.zeros(0, np.intp)
    images, labels = truth.images, len(truth.labels)
    for name, (cells, looked_at) in answers.items():
        joined = join(truth, cells, looked_at, settings)
        if named and joined.images.ids != images.ids:
            raise DatasetError(f'the answer "{name}" is of other images of the truth than "{next(iter(named))}"')
        partners = find_partners(joined, settings.iou_min)
        given = np.full(len(joined.truth), -1, np.intp)
        given[partners.truth] = _likeliest(joined.found, joined.mapping, list(joined.labels.names))[partners.found]
        named[name] = given
        order = {image_id: index for index, image_id in enumerate(joined.images.ids)}
        image = np.array([order[i] for i in joined.truth.frame["image_id"].to_list()], np.intp)
        # A truth that is only a parent has no right name among the kinds; `evaluate` scores those apart, too.
        kinds = np.array([name in joined.labels.leaves for name in joined.labels.names])
        scored = ~joined.truth.frame["ignore"].to_numpy() & (joined.truth_label >= 0)
        right = np.where(scored & kinds[joined.truth_label], joined.truth_label, -1)
        images, labels = joined.images, len(joined.labels)
    shared = (right >= 0) & np.logical_and.reduce([given >= 0 for given in named.values()])
    if not shared.any():
        raise DatasetError("the answers have no named cell of the truth in common")
    drawn = resampling(images, settings.bootstrap if settings.intervals else 0, settings.seed)
    codes = {name: right[shared] * labels + given[shared] for name, given in named.items()}
    once = {name: _macro(code, np.ones((1, shared.sum())), labels)[0] for name, code in codes.items()}
    samples = {name: _resampled(code, drawn.weights, image[shared], labels) for name, code in codes.items()}
    rows = []
    for name, given in named.items():
        difference = None if samples[name] is None else samples[name] - samples[baseline]  # type: ignore[operator]
        rows.append(
            {
                "name": name,
                "accuracy": float((given[shared] == right[shared]).mean()),
                **_figure("macro_f1", float(once[name]), samples[name]),
                **_figure("difference", float(once[name] - once[baseline]), difference),
                "matched": int(((given >= 0) & (right >= 0)).sum()),
                "missed": int(((given < 0) & (right >= 0)).sum()),
            }
        )
    return Comparison(pl.DataFrame(rows), baseline, int(shared.sum()), drawn.unit)


def _likeliest(found: Cells, mapping: Mapping[str, str | None], names: list[str]) -> NDArray[np.intp]:
    """The index of each finding's likeliest name, or of its own where it has no probabilities; −1: none, shape (N,)."""
    leaves = found.labels.leaves
    transfer = np.array([[mapping[leaf] == name for name in names] for leaf in leaves], np.float64)
    table = found.probabilities()
    mass = np.nan_to_num(table) @ transfer.reshape(len(leaves), len(names))
    own = [None if label is None else mapping[label] for label in found.label_names()]
    index = np.array([-1 if name is None else names.index(name) for name in own], np.intp)
    return np.where(mass.sum(axis=1) > 0, mass.argmax(axis=1), index)


def _macro(codes: NDArray[np.intp], weights: NDArray[Any], labels: int) -> NDArray[np.float64]:
    """Macro-F1 under several weightings of the cells (R, N), shape (R,)."""
    matrices = np.stack([np.bincount(codes, row, labels * labels) for row in weights])
    return np.asarray(confusion_figures(matrices.reshape(-1, labels, labels)).macro_f1, np.float64)


def _resampled(
    codes: NDArray[np.intp], weights: NDArray[Any] | None, image: NDArray[np.intp], labels: int
) -> NDArray[np.float64] | None:
    if weights is None:
        return None
    starts = range(0, len(weights), _BLOCK)
    return np.concatenate([_macro(codes, weights[start : start + _BLOCK][:, image], labels) for start in starts])


def _figure(name: str, value: float, samples: NDArray[np.float64] | None) -> dict[str, float | None]:
    interval = None if samples is None else percentile_interval(samples)
    low, high = interval or (None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}
