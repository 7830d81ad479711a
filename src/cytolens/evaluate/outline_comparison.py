"""Several answers that outline the same images side by side: how much better is one than another, and how sure is that.

Every answer is scored image by image; figures of a set are means over its images. All answers are resampled together,
by group, so the interval of a difference is that of pairs: a resample of hard images lowers them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.evaluate.joining import join
from cytolens.evaluate.scores import EvaluateSettings
from cytolens.evaluate.segmentation import score_sartorius
from cytolens.evaluate.uncertainty import percentile_interval, resampling
from cytolens.images import Images
from cytolens.problems import DatasetError, SettingError, listing

FIGURES = ("score", "map", "ap50", "boundary_f")  # columns of the table of images


@dataclass(frozen=True, eq=False)
class OutlineComparison:
    """Answers compared with one of them.

    Attributes:
        frame: one row per answer: name, then for each of `FIGURES` the mean with `_low` and `_high`, and the
            difference from the baseline (`<figure>_difference`) with `_low` and `_high`. Ends of intervals are null
            where there is but one group.
        baseline: name of the answer that the others are compared with.
        best: name of the answer with the best score besides the baseline; the baseline, where there is no other.
        images: how many.
        unit: what is resampled, "group" or "image".
        groups: how many of them.
        notes: what the reader of an interval has to know.
    """

    frame: pl.DataFrame
    baseline: str
    best: str
    images: int
    unit: str
    groups: int
    notes: tuple[str, ...]


def compare_outlines(
    truth: Dataset,
    answers: Mapping[str, tuple[Cells, Images | None]],
    baseline: str,
    settings: EvaluateSettings | None = None,
) -> OutlineComparison:
    """Compare how answers outline the truth's cells: Sartorius score, mean precision, AP at .50, contours.

    Images that lack a figure (contours, where nothing is outlined) in one of two answers are left out of their
    difference.

    Args:
        truth: the annotated images, with masks.
        answers: name → cells, and the images that were looked at.
        baseline: the answer that the others are compared with.
        settings: of the scores and the resampling.

    Raises:
        SettingError: the baseline is none of the answers.
        DatasetError: the answers are of different images, or cells have no masks.
    """
    settings = settings or EvaluateSettings()
    if baseline not in answers:
        raise SettingError(f'the baseline "{baseline}" is none of the answers: {listing(answers)}')
    plain = settings.model_copy(update={"intervals": False})
    tables: dict[str, pl.DataFrame] = {}
    images = truth.images
    for name, (cells, looked_at) in answers.items():
        joined = join(truth, cells, looked_at, settings, False)
        table = score_sartorius(joined, plain).tables["images"]
        if tables and table["image_id"].to_list() != images.ids:
            raise DatasetError(f'the answer "{name}" is of other images of the truth than "{next(iter(tables))}"')
        tables[name], images = table, joined.images
    drawn = resampling(images, settings.bootstrap if settings.intervals else 0, settings.seed)
    rows = []
    for name, table in tables.items():
        row: dict[str, object] = {"name": name}
        for figure in FIGURES:
            own = table[figure].cast(pl.Float64).fill_null(np.nan).to_numpy()
            other = tables[baseline][figure].cast(pl.Float64).fill_null(np.nan).to_numpy()
            row |= _mean(figure, own, drawn.weights) | _mean(f"{figure}_difference", own - other, drawn.weights)
        rows.append(row)
    schema = {"name": pl.String} | {key: pl.Float64 for key in rows[0] if key != "name"}
    frame = pl.DataFrame(rows, schema=schema)
    others = frame.filter(pl.col("name") != baseline)
    best = baseline if not len(others) else str(others.sort("score", descending=True, maintain_order=True)["name"][0])
    return OutlineComparison(frame, baseline, best, len(images), drawn.unit, drawn.groups, drawn.notes)


def _mean(name: str, values: np.ndarray, weights: np.ndarray | None) -> dict[str, float | None]:
    """The mean of known values (I,) and its interval over resamples (R, I)."""
    known = np.isfinite(values)
    low = high = None
    if not known.any():
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    if weights is not None:
        drawn = weights[:, known].astype(np.float64)
        count = drawn.sum(axis=1)
        means = np.divide(drawn @ values[known], count, out=np.full(len(count), np.nan), where=count > 0)
        low, high = percentile_interval(means) or (None, None)
    return {name: float(values[known].mean()), f"{name}_low": low, f"{name}_high": high}
