"""From what a format found to a `Dataset`: the part of importing that all formats share.

A format reads its files through an `Intake`, names the images that they speak of, lets
`Intake.locate` find them, and hands over its cells as a frame with the columns of `ROWS`.
Everything that can be wrong with labels, boxes and image tables is noticed here, once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cytolens.boxes import sizes_wh
from cytolens.cells import BOX_COLUMNS, Cells
from cytolens.dataset import Dataset
from cytolens.formats.intake import Intake, Reference
from cytolens.formats.label_names import in_taxonomy_order, name_labels
from cytolens.formats.sources import Picture
from cytolens.images import Images
from cytolens.labels import AttributeSchema, LabelSet
from cytolens.problems import Problems, SettingError, Severity, listing

# One row per annotated cell, before its labels and boxes were looked at.
ROWS: dict[str, Any] = {
    "image": pl.Int64,  # position in the list of references
    "where": pl.String,  # file and line, for problems
    "label": pl.String,
    "x_min": pl.Float64,
    "y_min": pl.Float64,
    "x_max": pl.Float64,
    "y_max": pl.Float64,
    "score": pl.Float64,
    "mask": pl.Binary,
    "ignore": pl.Boolean,
}

# VOC's name for the union of two splits; an image is in it and in one of them.
_UNION = "trainval"

# Edges further outside than this share of the image's side are outside; nearer ones are the rounding
# of fractions with six decimals.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Imported:
    """What an import gives: the dataset, and everything that was wrong or left out on the way."""

    dataset: Dataset
    problems: Problems


def rows(columns: Mapping[str, Any]) -> pl.DataFrame:
    """A frame with the columns of `ROWS`; those not named are null, and `ignore` is False."""
    given = {name: dtype for name, dtype in ROWS.items() if name in columns}
    frame = pl.DataFrame({name: columns[name] for name in given}, schema=given)
    absent = [pl.lit(None, dtype).alias(name) for name, dtype in ROWS.items() if name not in given]
    return frame.with_columns(absent).with_columns(pl.col("ignore").fill_null(False)).select(list(ROWS))


def assemble(
    intake: Intake,
    references: Sequence[Reference],
    pictures: Sequence[Picture | None],
    cells: pl.DataFrame,
    declared: Sequence[str] = (),
    attributes: tuple[AttributeSchema, ...] = (),
) -> Imported:
    """The dataset of the located images and their cells.

    Args:
        intake: the import; its problems grow.
        references: the images that the annotations speak of.
        pictures: what `Intake.locate` gave for them.
        cells: columns of `ROWS`, and one of text per attribute, called `AttributeSchema.column`; null: not annotated.
        declared: label names in the order in which the source declares them.
        attributes: what the cells carry; a label set that is asked for gets them in place of its own.

    Raises:
        LabelError: `ReadOptions.complete_for` names an unknown label.
        SettingError: `ReadOptions.group_pattern` is not a regular expression.
    """
    options, problems = intake.options, intake.problems
    # Names of the whole source, so that its splits, imported one by one, have the same label set.
    names = [*declared, *in_taxonomy_order(set(cells["label"].drop_nulls()) - set(declared))]
    kept = pl.DataFrame(
        [(i, p.image_id, *(p.size_wh or (None, None)), p.sha256) for i, p in enumerate(pictures) if p is not None],
        schema={"image": pl.Int64, "image_id": pl.String, "width": pl.Int32, "height": pl.Int32, "key": pl.String},
        orient="row",
    )
    cells = cells.join(kept, on="image", how="inner", maintain_order="left")
    cells = _checked(cells, problems).sort("image_id", maintain_order=True)
    labels, meaning = name_labels(cells, names, options.labels, problems)
    labels = replace(labels, attributes=attributes) if attributes else labels
    dataset = Dataset(_images(intake, references, pictures, labels), _cells(intake, cells, labels, meaning))
    if empty := len(dataset.images) - dataset.cells.frame["image_id"].n_unique():
        what = f"{empty} of {len(dataset.images)} images have no cells; they are kept."
        problems.add("images-without-cells", intake.name, what, severity="note")
    step = {
        "step": "import",
        "format": intake.format,
        "source": options.source or intake.root.name,
        "annotations": intake.annotations_hash[:16],
        "images": len(dataset.images),
        "cells": len(dataset.cells),
        "problems": dict(sorted(problems.counts().items())),
    }
    return Imported(replace(dataset, name=intake.name, provenance=(step,), licence=options.licence), problems)


# -- cells ------------------------------------------------------------------------------------------


def _cells(intake: Intake, cells: pl.DataFrame, labels: LabelSet, meaning: Mapping[str, str | None]) -> Cells:
    table = Cells.of(
        labels,
        image_id=cells["image_id"].to_list(),
        boxes=cells.select(BOX_COLUMNS).to_numpy(),
        label=[None if text is None else meaning[text] for text in cells["label"].to_list()],
        source=f"import:{intake.name}@{intake.annotations_hash[:8]}",
        image_key=cells["key"].fill_null(cells["image_id"]).to_list(),
        mask=cells["mask"].to_list(),
        ignore=cells["ignore"].to_numpy(),
        attributes={a.column: cells[a.column].to_list() for a in labels.attributes if a.column in cells.columns},
    )
    return table.with_columns(score=cells["score"])


def _checked(cells: pl.DataFrame, problems: Problems) -> pl.DataFrame:
    """The cells whose boxes are numbers; what else is odd about boxes and scores is only noted."""
    with np.errstate(over="ignore"):  # a number too large for float32 becomes infinite, and is noticed
        corners = cells.select(BOX_COLUMNS).to_numpy().reshape(-1, 4).astype(np.float32)
    numbers = np.asarray(np.isfinite(corners).all(axis=1))
    size = cells.select(pl.col("width", "height").cast(pl.Float64).fill_null(np.inf)).to_numpy().reshape(-1, 2)
    slack = np.where(np.isfinite(size), size, 0) * _ROUNDING
    beyond = np.asarray(((corners[:, :2] < -slack) | (corners[:, 2:] > size + slack)).any(axis=1))
    flat = np.asarray((sizes_wh(np.where(numbers[:, None], corners, 0)) <= 0).any(axis=1))
    note = partial(_note_boxes, cells, corners, problems)
    note(~numbers, "box-not-a-number", "is not four numbers; the cell is left out", "error")
    note(numbers & beyond, "box-outside-image", "reaches outside the image; kept as it is")
    note(numbers & flat, "box-no-area", "has no area; kept as it is")
    odd = (cells["score"].is_nan() | cells["score"].is_infinite()).fill_null(False)
    for where in cells.filter(odd)["where"]:
        problems.add("score-not-a-number", where, "the score is not a number; left empty.", "Correct the file.")
    return cells.with_columns(score=pl.when(odd).then(None).otherwise(pl.col("score"))).filter(pl.Series(numbers))


def _note_boxes(
    cells: pl.DataFrame,
    corners: NDArray[np.float32],
    problems: Problems,
    which: NDArray[np.bool_],
    kind: str,
    what: str,
    severity: Severity = "warning",
) -> None:
    fix = "Correct the file." if severity == "error" else "Correct the annotation, or mend it with cytolens repair."
    for row in np.flatnonzero(which).tolist():
        seen = ", ".join(f"{value:g}" for value in corners[row])
        width, height = cells["width"][row], cells["height"][row]
        size = "" if width is None else f" of {width} × {height} px"
        problems.add(kind, cells["where"][row], f"the box ({seen}) {what}{size and f' (image{size})'}.", fix, severity)


# -- images -----------------------------------------------------------------------------------------


def _images(
    intake: Intake, references: Sequence[Reference], pictures: Sequence[Picture | None], labels: LabelSet
) -> Images:
    options, problems = intake.options, intake.problems
    complete = options.complete_for
    complete_for = None if complete is None else [labels.require(name) for name in complete]
    groups = _Groups(options.group_pattern)
    table: dict[str, dict[str, Any]] = {}
    for reference, picture in zip(references, pictures, strict=True):
        if picture is None:
            continue
        if picture.image_id in table:
            what = f'the image "{picture.image_id}" is annotated more than once; all its cells are kept.'
            fix = "Annotate each image once; cytolens repair merges the boxes that are there twice."
            problems.add("image-annotated-twice", reference.where, what, fix)
            continue
        width, height = picture.size_wh or (None, None)
        table[picture.image_id] = {
            "image_id": picture.image_id,
            "path": picture.path,
            "width_px": width,
            "height_px": height,
            "um_per_px": picture.um_per_px,
            "sha256": picture.sha256,
            "group": groups.of(picture.image_id) or reference.group,
            "complete_for": complete_for if reference.annotated else [],
            "scanner": reference.scanner,
            "magnification": reference.magnification,
            "split": options.split or _split(reference, problems),
        }
        _compare_sizes(reference, picture, problems)
    if groups.missed:
        what = f"{groups.missed} image ids do not match the group pattern {options.group_pattern!r}."
        problems.add("group-unknown", intake.name, what, "Their group stays as the source gives it.", "note")
    return Images.of(table[image_id] for image_id in sorted(table))


def _split(reference: Reference, problems: Problems) -> str | None:
    own = [name for name in reference.splits if name != _UNION] or list(reference.splits)
    if len(own) > 1:
        what = f'"{reference.name}" is in several splits ({listing(own)}); the first is taken.'
        problems.add("split-overlap", reference.where, what, "Keep each image in one split.")
    return own[0] if own else None


def _compare_sizes(reference: Reference, picture: Picture, problems: Problems) -> None:
    if picture.path is None or reference.size_wh in (None, picture.size_wh):
        return
    what = (
        f"declares {reference.size_wh} px (width, height), but the image is {picture.size_wh}; "
        "the boxes may belong to another version of it."
    )
    problems.add("size-mismatch", reference.where, what, "Look at the image with its boxes.")


class _Groups:
    """Groups read from image ids; counts the ids that the pattern misses."""

    def __init__(self, pattern: str | None) -> None:
        self.missed = 0
        try:
            self._pattern = None if pattern is None else re.compile(pattern)
        except re.error as error:
            raise SettingError(f"group_pattern: {pattern!r} is not a regular expression ({error})") from error

    def of(self, image_id: str) -> str | None:
        """The group of an image; None where there is no pattern, or it does not match."""
        match = None if self._pattern is None else self._pattern.search(image_id)
        if self._pattern is None or match is None:
            self.missed += self._pattern is not None
            return None
        return match.group(1) if self._pattern.groups else match.group(0)
