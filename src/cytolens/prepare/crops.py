"""Where cells are cut, and what they are called there: annotations joined with what a detector found.

A classifier that will be shown crops at a detector's boxes has to learn from such crops. `relocated`
keeps every annotation and takes the detector's box where there is one; `labelled` keeps every finding
and takes the annotation's name where there is one. `region` says what is cut for a box, in training and
in prediction alike, and `write_crops` leaves the crops as files.
"""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

from cytolens import boxes as box
from cytolens import match
from cytolens.cells import BOX_COLUMNS, Cells, schema
from cytolens.dataset import Dataset
from cytolens.formats.export import folder_name, number_text, output_folder
from cytolens.images import Pixels, load_image
from cytolens.labels import LabelSet
from cytolens.problems import DatasetError, ImageError, Problems, written
from cytolens.views import crop, tile


class CropSettings(BaseModel):
    """What is cut for a cell's box."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    context: float = Field(
        default=1.25, gt=0, description="side of the square that is cut, in longer sides of the cell's box"
    )
    margin_px: float | None = Field(
        default=None,
        ge=0,
        description="instead of `context`: px that the box is grown by on each side, inside the image (CytologIA: 16)",
    )
    fit: Literal["pad", "stretch"] = Field(
        default="pad",
        description="pad: a square in the image's proportions, which beyond the image repeats its edge; "
        "stretch: the box alone, pulled to a square (only to be compatible with models that learnt so)",
    )


class CropFiles(CropSettings):
    """How crops are written to files."""

    side_px: int | None = Field(
        default=None,
        ge=1,
        description="side of the pictures; None: whole pixels of the image as they are, and with stretch not squared",
    )


def region(cell: ArrayLike, size_wh: tuple[int, int], settings: CropSettings) -> NDArray[np.float64]:
    """The part of an image that is cut for one box (4,): x_min, y_min, x_max, y_max, float64.

    With `fit` "pad" it is a square, which may reach outside the image. A box that is the whole image is
    not grown: the image is the crop, padded to a square.
    """
    cell = np.asarray(cell, np.float64)
    whole = cell[0] <= 0 and cell[1] <= 0 and cell[2] >= size_wh[0] and cell[3] >= size_wh[1]
    if settings.margin_px is not None:
        cell = box.clip(box.grow(cell, settings.margin_px), *size_wh)[0]
    factor = 1.0 if whole or settings.margin_px is not None else settings.context
    if settings.fit == "pad":
        return box.squares(cell, factor)[0]
    return box.from_centre_size(box.to_centre_size(cell) * [1, 1, factor, factor])[0]


# -- annotations at findings ----------------------------------------------------------------------


def relocated(dataset: Dataset, found: Cells, iou_min: float = 0.5) -> Dataset:
    """The dataset with each cell at the box where a detector found it.

    Cells and findings are paired by `match.partners`, which also finds the cell that an image-level
    label is about. A cell that was not found keeps its annotated box.

    Args:
        dataset: the annotations.
        found: what was found in the same images, with the same image ids; counted cells are used.
        iou_min: pairs of less overlap are not made.

    Raises:
        DatasetError: `found` is about other images.
    """
    counted = _counted(dataset, found)
    sizes = _sizes_wh(dataset)
    frames = []
    moved = 0
    for image_id, cells in dataset.cells.by_image():
        here = counted.get(image_id)
        corners = cells.boxes().copy()
        if here is not None:
            ours, theirs = _partners(cells, here, sizes[image_id], iou_min)
            corners[ours] = here.boxes()[theirs]
            moved += len(ours)
        frames.append(cells.with_boxes(corners).frame)
    step = {"step": "relocate", "cells": len(dataset.cells), "moved": moved, "by": _sources(found)}
    cells = Cells(pl.concat(frames), dataset.labels) if frames else dataset.cells
    return replace(dataset, cells=cells, provenance=(*dataset.provenance, step))


def labelled(truth: Dataset, found: Cells, iou_min: float = 0.5, background: str | None = None) -> Dataset:
    """The findings of a detector, each with the name, id and attributes of the cell that it is.

    Pairs are those of `relocated`: one to one, and a label of the whole image is its central finding's.
    A finding without a partner is background only where it is known to be none of the cells: not inside an
    ignored cell, and not in an image that is not annotated completely or carries a label of the whole image.

    Args:
        truth: the annotations.
        found: what was found in the same images; each counted row becomes a cell, or is left out.
        iou_min: pairs of less overlap are not made.
        background: the label of findings that are no cell; None: they are left out.

    Returns:
        the dataset with its cells in the order of the findings, image by image. It is complete for no label,
        since cells that were not found are missing; the last step of the provenance counts them.

    Raises:
        DatasetError: `found` is about other images.
        LabelError: `background` is not among the labels.
    """
    name = None if background is None else truth.labels.require(background)
    counted, annotated, sizes = _counted(truth, found), dict(truth.cells.by_image()), _sizes_wh(truth)
    frames, named, nothing, missed = [], 0, 0, int((~truth.cells.frame["ignore"]).sum())
    for image_id, complete_for in truth.images.frame.select("image_id", "complete_for").iter_rows():
        here = counted.get(image_id)
        if here is None:
            continue
        cells = annotated.get(image_id, Cells.empty(truth.labels))
        ours, theirs = _partners(cells, here, sizes[image_id], iou_min)
        certain = name is not None and complete_for is None
        rest = _no_cells(cells, here, theirs, sizes[image_id], iou_min) if certain else theirs[:0]
        boxes = here.boxes()
        of_cells = Cells(cells.frame[ours], truth.labels).with_boxes(boxes[theirs]).frame
        of_nothing = _named(Cells(here.frame[rest], here.labels), name, truth.labels)
        frames.append(pl.concat([of_cells, of_nothing])[np.argsort(np.concatenate([theirs, rest]))])
        named, nothing, missed = named + len(ours), nothing + len(rest), missed - len(ours)
    step = {
        "step": "label findings",
        "of": truth.fingerprint,
        "by": _sources(found),
        "iou_min": iou_min,
        "named": named,
        "background": nothing,
        "left_out": sum(map(len, counted.values())) - named - nothing,
        "not_found": missed,
    }
    cells = Cells(pl.concat(frames), truth.labels) if frames else Cells.empty(truth.labels)
    images = truth.images.with_columns(complete_for=[])
    return replace(truth, images=images, cells=cells, provenance=(*truth.provenance, step))


def _counted(dataset: Dataset, found: Cells) -> dict[str, Cells]:
    """The counted findings of each image."""
    if not set(found.frame["image_id"]) & set(dataset.images.ids):
        raise DatasetError("the findings are about other images than the dataset; predict the dataset itself")
    return dict(found.filter(pl.col("counted")).by_image())


def _sizes_wh(dataset: Dataset) -> dict[str, tuple[int | None, int | None]]:
    return {i: (w, h) for i, w, h in dataset.images.frame.select("image_id", "width_px", "height_px").iter_rows()}


def _partners(
    cells: Cells, found: Cells, size_wh: tuple[int | None, int | None], iou_min: float
) -> tuple[match.Indices, match.Indices]:
    """Which cell of an image is which finding: rows of both."""
    ignored = cells.frame["ignore"].to_numpy()
    table = match.overlaps(cells, found)
    return match.partners(cells.boxes(), found.boxes(), found.scores(), table, ignored, size_wh, iou_min)


def _no_cells(
    cells: Cells, found: Cells, taken: match.Indices, size_wh: tuple[int | None, int | None], iou_min: float
) -> match.Indices:
    """Rows of the findings of an image that are certainly no cell."""
    if match.is_whole_image(cells.boxes(), size_wh).any():
        return taken[:0]
    ignored = cells.frame["ignore"].to_numpy()
    excused = (match.overlaps(cells, found)[:, ignored] >= iou_min).any(axis=1)
    return np.setdiff1d(np.flatnonzero(~excused), taken)


def _named(found: Cells, name: str | None, labels: LabelSet) -> pl.DataFrame:
    """Findings as rows of a dataset's cells, all of one name and said by nobody's score."""
    flags = {"ignore": pl.lit(False), "counted": pl.lit(True), "refer": pl.lit(False)}
    frame = found.frame.select("cell_id", "image_id", *BOX_COLUMNS, "mask", "source", label=pl.lit(name), **flags)
    absent = [pl.lit(None).alias(column) for column in schema(labels) if column not in frame.columns]
    return frame.with_columns(absent).select([pl.col(n).cast(t) for n, t in schema(labels).items()])


def _sources(found: Cells) -> list[str]:
    return sorted(found.frame["source"].unique().to_list())


# -- files ----------------------------------------------------------------------------------------


def write_crops(dataset: Dataset, folder: str | os.PathLike[str], settings: CropFiles | None = None) -> Problems:
    """Write the crop of each named cell as PNG, in a folder per label, and ``crops.csv`` that lists them.

    The table has the columns image (the file's path in the folder), label, split, group (the source image
    where that has none), cell_id, source_image and the box's edges there, source_x_min and so on. So the folder
    can be imported as format "image_folder", and a later split keeps the crops of an image together. Ignored
    and unnamed cells are left out.

    Args:
        dataset: whose cells.
        folder: new or empty.
        settings: what is cut; None: the defaults.

    Returns:
        images that cannot be read, and boxes without an area in their image.

    Raises:
        FormatError: the folder is not empty, or a label cannot be the name of a folder.
    """
    settings = settings or CropFiles()
    wanted = dataset.cells.filter(pl.col("label").is_not_null() & ~pl.col("ignore"))
    folders = {str(name): folder_name(str(name), "label") for name in wanted.frame["label"].unique()}
    target, problems, lines = output_folder(Path(folder)), Problems(), []
    images = {row["image_id"]: row for row in dataset.images.rows()}
    for image_id, cells in wanted.by_image():
        row = images[image_id]
        if row["path"] is None:
            problems.add("image-missing", image_id, "it is not known where the file is.", severity="error")
            continue
        try:
            pixels = load_image(row["path"]).pixels
        except ImageError as error:
            problems.extend([error.problem])
            continue
        good = box.valid(cells.boxes(), pixels.shape[1], pixels.shape[0])
        for cell_id in cells.frame["cell_id"].filter(pl.Series(~good)):
            problems.add("box-no-area", cell_id, "the box has no area inside the image.", "Repair the dataset.")
        for cell in cells.filter(good).frame.iter_rows(named=True):
            name = f"{folders[cell['label']]}/{folder_name(cell['cell_id'], 'cell id')}.png"
            corners = [cell[column] for column in BOX_COLUMNS]
            _save(_picture(pixels, corners, settings), target / name)
            place = (row["split"], row["group"] or image_id, cell["cell_id"], image_id)
            lines.append((name, cell["label"], *place, *map(number_text, corners)))
    columns = ("image", "label", "split", "group", "cell_id", "source_image", *(f"source_{n}" for n in BOX_COLUMNS))
    with written(target / "crops.csv") as part, part.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([columns, *lines])
    return problems


def _picture(pixels: Pixels, cell: ArrayLike, settings: CropFiles) -> Pixels:
    size_wh = (pixels.shape[1], pixels.shape[0])
    part = region(cell, size_wh, settings)
    if settings.side_px is not None:
        return crop(size_wh, part, settings.side_px).pixels(pixels)
    low, (width, height) = np.rint(part[:2]).astype(int), np.maximum(np.rint(part[2:] - part[:2]), 1).astype(int)
    return tile(size_wh, int(low[0]), int(low[1]), (int(width), int(height))).pixels(pixels)


def _save(pixels: Pixels, path: Path) -> None:
    from PIL import Image

    with written(path) as part:
        Image.fromarray(pixels).save(part)
