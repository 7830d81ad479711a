"""Mends what can be mended without a person: a new dataset, and a list of everything that was changed.

Clipped are boxes that reach outside their image; dropped are cells whose box has no area even then; of
boxes that repeat another of their label one stays; sizes in the table become those of the files. What
needs judgement (several labels on one box, odd sizes, damaged files …) is left for a person.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import MAX_PIXELS
from cytolens.prepare.box_faults import BoxFaults, box_faults
from cytolens.prepare.check_findings import Tell
from cytolens.prepare.check_images import Seen, SizeVerdict, look, size_verdicts, with_file_sizes
from cytolens.problems import written

# One row per change, in the order in which they were made.
CHANGES = {
    "kind": pl.String,  # the kind of problem it mends, as `check` calls it, or box-rounding
    "image_id": pl.String,
    "cell_id": pl.String,  # null: it is about the image
    "field": pl.String,  # box, cell, size_px
    "before": pl.String,  # edges x_min y_min x_max y_max, or width height
    "after": pl.String,  # null: the cell is dropped
    "why": pl.String,
}


class RepairSettings(BaseModel):
    """What is mended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sizes: bool = Field(default=True, description="take the size of images from their files")
    clip: bool = Field(default=True, description="clip boxes to their image")
    drop: bool = Field(
        default=True,
        description="drop cells whose box has no area inside the image; one with a mask takes the mask's box",
    )
    merge: bool = Field(default=True, description="keep one of several equal boxes of one label")
    same_iou: float = Field(
        default=0.9, gt=0, le=1, description="overlap from which two boxes are equal; 1: only exactly equal ones"
    )
    threads: int = Field(default=0, ge=0, description="files read at a time; 0: one per core")
    max_pixels: int = Field(default=MAX_PIXELS, ge=1, description="the size of larger images is left as it is")


def repair(
    dataset: Dataset, settings: RepairSettings | None = None, tell: Tell | None = None
) -> tuple[Dataset, pl.DataFrame]:
    """The dataset with what can be mended without a person, and every change that was made.

    A second repair with the same settings changes nothing, and after one with the default settings `check`
    finds none of the kinds in `check.MENDED`.

    Args:
        dataset: stays as it is.
        settings: what to mend; None: all of it.
        tell: called with (image files read, image files in all).

    Returns:
        the new dataset, whose provenance counts the changes, and a frame with the columns of `CHANGES`.
    """
    settings = settings or RepairSettings()
    seen = _files(dataset, settings, tell) if settings.sizes else {}
    repaired, changes = _mended(dataset, seen, settings)
    # What one pass mends may bring another fault to light, so it goes on until nothing is left.
    more = changes
    while more:
        repaired, more = _mended(repaired, seen, settings)
        changes = [*changes, *more]
    table = pl.DataFrame(changes, schema=CHANGES, orient="row")
    counts = dict(table["kind"].value_counts().sort("kind").iter_rows())
    step = {
        "step": "repair",
        "of": dataset.fingerprint,
        "settings": settings.model_dump(mode="json", exclude={"threads"}),
        "changes": counts,
    }
    return replace(repaired, provenance=(*dataset.provenance, step)), table


def write_changes(changes: pl.DataFrame, folder: str | os.PathLike[str]) -> None:
    """Write the changes as ``changes.parquet`` and, for people, ``changes.csv``."""
    with written(Path(folder) / "changes.parquet") as part:
        changes.write_parquet(part)
    with written(Path(folder) / "changes.csv") as part:
        changes.write_csv(part)


Change = tuple[str, str, str | None, str, str, str | None, str]


def _files(dataset: Dataset, settings: RepairSettings, tell: Tell | None) -> dict[str, Seen]:
    return look(dataset.images, decode=False, threads=settings.threads, max_pixels=settings.max_pixels, tell=tell)


def _mended(dataset: Dataset, seen: dict[str, Seen], settings: RepairSettings) -> tuple[Dataset, list[Change]]:
    """One pass: the sizes, then the boxes inside them."""
    verdicts = size_verdicts(dataset, seen)
    sized = with_file_sizes(dataset, seen, verdicts)
    cells, changes = _with_boxes(sized, settings)
    return replace(sized, cells=cells), [*_sizes(dataset, seen, verdicts), *changes]


def _sizes(dataset: Dataset, seen: dict[str, Seen], verdicts: dict[str, SizeVerdict]) -> Iterator[Change]:
    for image_id, width, height in dataset.images.frame.select("image_id", "width_px", "height_px").iter_rows():
        size_wh = seen[image_id].size_wh if verdicts.get(image_id) == "wrong" else None
        if size_wh is not None:
            before = "unknown" if width is None or height is None else f"{width} {height}"
            after = f"{size_wh[0]} {size_wh[1]}"
            yield ("size-mismatch", image_id, None, "size_px", before, after, "the size of the file")


def _with_boxes(dataset: Dataset, settings: RepairSettings) -> tuple[Cells, list[Change]]:
    """The cells that stay, with the boxes they then have."""
    faults = box_faults(dataset, settings.same_iou)
    cells, given = dataset.cells, dataset.cells.boxes()
    wanted = np.where(faults.by_mask, settings.drop, settings.clip)
    moved = wanted & ~faults.flat & (faults.mended != given).any(axis=1)
    dropped = settings.drop & faults.flat
    merged = settings.merge & (faults.repeats >= 0)
    changes = [*_moves(cells, faults, moved), *_drops(cells, faults, dropped), *_merges(cells, faults, merged)]
    boxes = np.where(moved[:, None], faults.mended, given)
    return cells.with_boxes(boxes).filter(~(dropped | merged)), changes


def _moves(cells: Cells, faults: BoxFaults, moved: NDArray[np.bool_]) -> Iterator[Change]:
    given = cells.boxes()
    for row in np.flatnonzero(moved).tolist():
        told = faults.outside[row] or faults.by_mask[row]
        kind = _kind_of_misplaced(faults, row) if told else "box-rounding"
        after = _edges(faults.mended[row])
        why = "taken from the mask" if faults.by_mask[row] else f"clipped by {faults.beyond_px[row]:.6g} px"
        yield (kind, *_place(cells, row), "box", _edges(given[row]), after, why)


def _drops(cells: Cells, faults: BoxFaults, dropped: NDArray[np.bool_]) -> Iterator[Change]:
    given = cells.boxes()
    reasons = {
        "box-not-a-number": "the box is not four numbers",
        "box-outside-image": "the box lies wholly outside the image",
        "box-no-area": "the box has no area",
    }
    for row in np.flatnonzero(dropped).tolist():
        kind = _kind_of_misplaced(faults, row)
        yield (kind, *_place(cells, row), "cell", _edges(given[row]), None, reasons[kind])


def _merges(cells: Cells, faults: BoxFaults, merged: NDArray[np.bool_]) -> Iterator[Change]:
    ids = cells.frame["cell_id"]
    for row in np.flatnonzero(merged).tolist():
        exact = bool(faults.exact[row])
        kind, how = ("box-repeated", "repeats") if exact else ("box-nearly-repeated", "nearly repeats")
        why = f"{how} the cell {ids[int(faults.repeats[row])]}"
        yield (kind, *_place(cells, row), "cell", _edges(faults.mended[row]), None, why)


def _kind_of_misplaced(faults: BoxFaults, row: int) -> str:
    if not faults.numbers[row]:
        return "box-not-a-number"
    return "box-outside-image" if faults.has_area[row] else "box-no-area"


def _place(cells: Cells, row: int) -> tuple[str, str]:
    return cells.frame["image_id"][row], cells.frame["cell_id"][row]


def _edges(corners: NDArray[np.floating]) -> str:
    """Four edges as text from which the same float32 values are read back."""
    return " ".join(str(value) for value in corners)
