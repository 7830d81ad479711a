"""What a format cannot keep, and how much of it a dataset has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import polars as pl

from cytolens import masks
from cytolens.cells import BOX_COLUMNS
from cytolens.dataset import Dataset
from cytolens.problems import Problems, Severity


def _cells_where(condition: pl.Expr) -> Callable[[Dataset], int]:
    return lambda data: int(data.cells.frame.select(condition.sum()).item())


def _images_where(condition: pl.Expr) -> Callable[[Dataset], int]:
    return lambda data: int(data.images.frame.select(condition.sum()).item())


def _with_attributes(data: Dataset) -> int:
    columns = [attribute.column for attribute in data.labels.attributes]
    return int(data.cells.frame.select(pl.any_horizontal(pl.col(columns).is_not_null()).sum()).item()) if columns else 0


def _with_other_attributes(schema: str) -> Callable[[Dataset], int]:
    """Counts cells with a value of an attribute that is not of the schema."""

    def count(data: Dataset) -> int:
        columns = [attribute.column for attribute in data.labels.attributes if attribute.schema != schema]
        return _cells_where(pl.any_horizontal(pl.col(columns).is_not_null()))(data) if columns else 0

    return count


def _with_attribute_probabilities(data: Dataset) -> int:
    columns = [f"{attribute.column}_probabilities" for attribute in data.labels.attributes]
    return _cells_where(pl.any_horizontal(pl.col(columns).is_not_null()))(data) if columns else 0


def _per_image(data: Dataset) -> pl.DataFrame:
    """Number of cells of each image: columns image_id, cells."""
    counts = data.cells.frame.group_by("image_id").agg(pl.len().alias("cells"))
    return data.images.frame.select("image_id").join(counts, on="image_id", how="left").fill_null(0)


def _partial_boxes(data: Dataset) -> int:
    """Cells whose box is not their whole image."""
    sizes = data.images.frame.select("image_id", "width_px", "height_px")
    frame = data.cells.frame.select("image_id", *BOX_COLUMNS).join(sizes, on="image_id", how="left")
    whole = frame.select(pl.lit(0).alias("x"), pl.lit(0).alias("y"), "width_px", "height_px").to_numpy()
    return int((frame.select(BOX_COLUMNS).to_numpy() != whole.astype(np.float32)).any(axis=1).sum())


def _outlined(data: Dataset) -> Iterator[tuple[str, tuple[int, int], bytes, list[float]]]:
    """Image, its width and height, mask and box of each cell with a mask that has pixels.

    Width and height are 0 where they are not known or the mask is not of that size; writing then says so.
    """
    sizes = {
        i: (w or 0, h or 0) for i, w, h in data.images.frame.select("image_id", "width_px", "height_px").iter_rows()
    }
    rows = data.cells.frame.filter("counted").select("image_id", "mask", *BOX_COLUMNS)
    for image_id, code, *box in rows.filter(pl.col("mask").is_not_null()).iter_rows():
        if masks.area(code):
            width, height = sizes[image_id]
            fits = int(masks.to_runs(code).sum()) == width * height
            yield image_id, (width, height) if fits else (0, 0), code, box


def _without_outline(data: Dataset) -> int:
    return int(data.cells.frame["counted"].sum()) - sum(1 for _ in _outlined(data))


def _empty_masks(data: Dataset) -> int:
    return sum(masks.area(code) == 0 for code in data.cells.frame.filter("counted")["mask"].drop_nulls())


def _boxes_beside_masks(data: Dataset) -> int:
    """Cells whose box is not the tight box of their mask."""
    return sum(
        width * height == 0 or masks.bounds(code, (height, width)).tolist() != box
        for _, (width, height), code, box in _outlined(data)
    )


def _shared_pixels(data: Dataset) -> int:
    """How often a pixel belongs to one more cell of its image."""
    from cytolens.formats.run_lengths import positions_of_code

    places: dict[str, list[np.ndarray]] = {}
    for image_id, size_wh, code, _ in _outlined(data):
        if size_wh[0] * size_wh[1]:
            places.setdefault(image_id, []).append(positions_of_code(code, size_wh))
    return sum(sum(map(len, own)) - len(np.unique(np.concatenate(own))) for own in places.values())


def _unused_labels(data: Dataset) -> int:
    return len(set(data.labels.names) - set(data.cells.label_names()))


# What a dataset can hold that a format may have no place for, and how many cells, images or labels have it.
ASPECTS: dict[str, tuple[str, Callable[[Dataset], int]]] = {
    "boxes other than the whole image": ("cells", _partial_boxes),
    "images with several cells": ("images", lambda data: _per_image(data).filter(pl.col("cells") > 1).height),
    "images without cells": ("images", lambda data: _per_image(data).filter(pl.col("cells") == 0).height),
    "cells without a label": ("cells", _cells_where(pl.col("label").is_null())),
    "cells below the threshold": ("cells", _cells_where(~pl.col("counted"))),
    "scores": ("cells", _cells_where(pl.col("score").is_not_null())),
    "probabilities": ("cells", _cells_where(pl.col("probabilities").is_not_null())),
    "masks": ("cells", _cells_where(pl.col("mask").is_not_null())),
    "cells without a mask": ("cells", _without_outline),
    "masks without a pixel": ("cells", _empty_masks),
    "boxes other than the mask's bounds": ("cells", _boxes_beside_masks),
    "overlaps of masks": ("pixels", _shared_pixels),
    "attributes": ("cells", _with_attributes),
    "attributes other than WBCAtt's": ("cells", _with_other_attributes("wbcatt")),
    "attributes other than LeukemiaAttri's": ("cells", _with_other_attributes("leukemia_attri")),
    "probabilities of attributes": ("cells", _with_attribute_probabilities),
    "ignore flags": ("cells", _cells_where(pl.col("ignore"))),
    "referral flags": ("cells", _cells_where(pl.col("refer"))),
    "cell ids": ("cells", lambda data: len(data.cells)),
    "sources": ("cells", lambda data: len(data.cells)),
    "splits": ("images", _images_where(pl.col("split").is_not_null())),
    "folds": ("images", _images_where(pl.col("fold").is_not_null())),
    "groups": ("images", _images_where(pl.col("group").is_not_null())),
    "pixel sizes in µm": ("images", _images_where(pl.col("um_per_px").is_not_null())),
    "stains, scanners and magnifications": (
        "images",
        _images_where(pl.any_horizontal(pl.col("stain", "scanner", "magnification").is_not_null())),
    ),
    "what the annotation is complete for": ("images", _images_where(pl.col("complete_for").is_not_null())),
    "label trees": ("labels", lambda data: len({*data.labels.parents, *data.labels.aliases.values()})),
    "labels without cells": ("labels", _unused_labels),
}

# Losses that every export has, or that an import makes good by itself.
_MINOR = frozenset({"cell ids", "sources", "label trees", "labels without cells"})


def losses(data: Dataset, cannot_keep: Iterable[str]) -> Problems:
    """What of `cannot_keep` the dataset has: one problem of kind "not-kept" for each aspect."""
    problems = Problems()
    for aspect in cannot_keep:
        unit, count_in = ASPECTS[aspect]
        if count := count_in(data):
            severity: Severity = "note" if aspect in _MINOR else "warning"
            problems.add("not-kept", aspect, f"the format cannot keep them ({count} {unit}).", severity=severity)
    return problems
