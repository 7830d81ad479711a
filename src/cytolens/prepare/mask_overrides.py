"""Corrected masks in place of the distributed ones: cells of images that a second dataset annotates anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import polars as pl

from cytolens.cells import Cells, join
from cytolens.dataset import Dataset
from cytolens.prepare.repair import CHANGES
from cytolens.problems import DatasetError, listing


def with_masks_of(dataset: Dataset, corrected: Dataset, where: str | None = None) -> tuple[Dataset, pl.DataFrame]:
    """The dataset with the cells of a second one in every image that both have; the other images stay as they are.

    Images are the same where their ids are. An image without cells in the second dataset has none afterwards.

    Args:
        dataset: stays as it is.
        corrected: images by the same ids, whose cells all have masks; images that only it has are not added.
        where: an SQL condition on images of `dataset`, such as "split = 'train'"; None: all.

    Returns:
        the new dataset, and a frame with the columns of `repair.CHANGES`, one row for each image that changed hands.

    Raises:
        DatasetError: no image is in both, sizes differ, a corrected cell has no mask, or the condition is none.
        LabelError: a corrected label has no counterpart in `dataset`.
    """
    wanted = dataset if where is None else dataset.select(where)
    there = corrected.images.frame.select("image_id", "width_px", "height_px")
    both = wanted.images.frame.join(there, on="image_id", how="inner", suffix="_corrected", maintain_order="left")
    if not len(both):
        raise DatasetError(
            f'no image of "{dataset.name}"{" where " + where if where else ""} is in "{corrected.name}", by its id; '
            f"ids here: {listing(wanted.images.ids, 2)}; there: {listing(corrected.images.ids, 2)}"
        )
    _same_sizes(both)
    ids = both["image_id"].implode()
    inside = pl.col("image_id").is_in(ids)
    fresh = corrected.cells.filter(inside).relabel(dataset.labels)
    if len(bare := fresh.filter(pl.col("mask").is_null())):
        raise DatasetError(
            f'{len(bare)} cells of "{corrected.name}" have no mask (the first is in {bare.frame["image_id"][0]}), '
            "so they correct nothing; give a dataset of outlines"
        )
    cells = join([dataset.cells.filter(~inside), fresh], dataset.labels)
    before, after = _counts(dataset.cells), _counts(fresh)
    rows = [
        {
            "kind": "masks-replaced",
            "image_id": image_id,
            "cell_id": None,
            "field": "mask",
            "before": f"{before.get(image_id, 0)} cells",
            "after": f"{after.get(image_id, 0)} cells",
            "why": f"corrected in {corrected.name}",
        }
        for image_id in both["image_id"]
    ]
    step = {
        "step": "masks-of",
        "of": corrected.fingerprint,
        "name": corrected.name,
        "where": where,
        "images": len(both),
        "cells": len(fresh),
    }
    licences = [licence for licence in dict.fromkeys((dataset.licence, corrected.licence)) if licence]
    changed = replace(
        dataset, cells=cells, provenance=(*dataset.provenance, step), licence="; ".join(licences)
    )  # fmt: skip
    return changed, pl.DataFrame(rows, schema=CHANGES)


def _same_sizes(both: pl.DataFrame) -> None:
    """Masks are in the frame of their image, so that frame must be the same.

    Raises:
        DatasetError: it is not.
    """
    sides = ("width_px", "height_px")
    other = both.filter(pl.any_horizontal(pl.col(side) != pl.col(f"{side}_corrected") for side in sides))
    if len(other):
        row: dict[str, Any] = other.row(0, named=True)
        raise DatasetError(
            f"{len(other)} images have another size in the corrected dataset; the first: {row['image_id']}, "
            f"{row['width_px']} × {row['height_px']} px here and {row['width_px_corrected']} × "
            f"{row['height_px_corrected']} px there"
        )


def _counts(cells: Cells) -> dict[str, int]:
    return dict(cells.frame["image_id"].value_counts().iter_rows())
