"""The images that a cleaning of masks is judged on: where their out-of-fold outlines are, their cells, their folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from cytolens import masks
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.labels import LabelSet
from cytolens.predict.soft_outlines import read_soft_outlines, soft_outline_files
from cytolens.problems import DatasetError, listing
from cytolens.tasks.segment import SoftOutlines


@dataclass(frozen=True, slots=True)
class JudgedImage:
    """One image: where its outlines are, its cells, and the fold it belongs to."""

    image_id: str
    file: Path
    truth: Cells
    unit: object


def judged_images(soft: Sequence[Path], truth: Dataset, labels: LabelSet) -> tuple[list[JudgedImage], str, list[str]]:
    """The images of the truth with their outlines, what parts them, and what has to be said of it.

    Raises:
        DatasetError: there are no images, an image has no outlines, or a cell has no mask.
        LabelError: the labels are not those given.
    """
    files = soft_outline_files(*soft)
    frame = truth.images.frame
    ids = [str(image_id) for image_id in frame["image_id"].to_list()]
    if missing := [image_id for image_id in ids if image_id not in files]:
        raise DatasetError(
            f"{listing(map(str, soft))}: holds no outlines of {len(missing)} of the truth's {len(ids)} images: "
            f"{listing(missing, 5)}. Predict them, or choose the images with --where."
        )
    if not ids:
        raise DatasetError("the truth has no images, so there is nothing to tune on")
    notes = []
    if strangers := len(files) - len(ids):
        notes.append(f"{strangers} files of outlines are of images that the truth does not have; they were left out.")
    spoken = truth.relabel(labels)
    if bare := spoken.cells.frame["mask"].null_count():
        raise DatasetError(
            f'{bare} cells of "{truth.name}" have only a box; outlines are tuned on cells with masks. '
            "Import the data with their masks, or leave those images out with --where."
        )
    unit, units = _units(frame)
    if unit != "fold":
        notes.append(f"The truth has no folds, so the nested estimate leaves out one {unit} at a time.")
    cells = dict(spoken.cells.by_image())
    none = Cells.empty(labels)
    images = [JudgedImage(i, files[i], cells.get(i, none), part) for i, part in zip(ids, units, strict=True)]
    return images, unit, notes


def _units(frame: pl.DataFrame) -> tuple[str, list[object]]:
    """What parts the images for the nested estimate, and the part of each."""
    ids = frame["image_id"].to_list()
    for column in ("fold", "group"):
        values = frame[column].to_list()
        if len({value for value in values if value is not None}) > 1:
            return column, [
                ("image", i) if value is None else (column, value) for i, value in zip(ids, values, strict=True)
            ]
    return "image", list(ids)


def outlines_of(image: JudgedImage, labels: LabelSet) -> SoftOutlines:
    """What was said of an image, with classes as places in the names of some labels.

    Raises:
        DatasetError: it was said of an image of another size than that of the truth's masks.
        FormatError: the file is damaged.
    """
    soft = read_soft_outlines(image.file).spoken(labels)
    for code in image.truth.masks()[:1]:
        try:
            masks.bounds(code or b"", soft.size_hw)
        except ValueError:
            height, width = soft.size_hw
            raise DatasetError(
                f'{image.file}: the outlines are of an image of {width} × {height} px, the masks of "{image.image_id}" '
                "in the truth are not. Give the outlines of the images that the truth is about."
            ) from None
    return soft
