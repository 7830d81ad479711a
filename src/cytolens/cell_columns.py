"""The columns of `Cells`: their names, types and order, the ids of cells, and probabilities as a column."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from cytolens.labels import LabelSet

BOX_COLUMNS = ["x_min", "y_min", "x_max", "y_max"]


def schema(labels: LabelSet) -> dict[str, pl.DataType | type[pl.DataType]]:
    """The columns of cells of a label set, in order, with their types."""
    columns: dict[str, pl.DataType | type[pl.DataType]] = {
        "cell_id": pl.String,
        "image_id": pl.String,
        "x_min": pl.Float32,
        "y_min": pl.Float32,
        "x_max": pl.Float32,
        "y_max": pl.Float32,
        "label": pl.Enum(labels.names),
        "probabilities": pl.Array(pl.Float32, len(labels.leaves)),
        "score": pl.Float32,
        "mask": pl.Binary,
    }
    for attribute in labels.attributes:
        columns[attribute.column] = pl.Enum(attribute.values)
        columns[f"{attribute.column}_probabilities"] = pl.Array(pl.Float32, len(attribute.values))
    return columns | {
        "source": pl.String,
        "ignore": pl.Boolean,
        "counted": pl.Boolean,
        "refer": pl.Boolean,
    }


def cell_ids(source: Sequence[str], image_key: Sequence[str]) -> list[str]:
    """Deterministic ids: a digest of source and image, then the ordinal within them.

    Args:
        source: where each cell comes from, one per cell.
        image_key: the image's sha256 (or its id where the file is absent), one per cell.
    """
    prefixes: dict[tuple[str, str], str] = {}
    ordinals: dict[tuple[str, str], int] = {}
    ids: list[str] = []
    for key in zip(source, image_key, strict=True):
        if key not in prefixes:
            prefixes[key] = hashlib.sha256("\n".join(key).encode()).hexdigest()[:12]
        ordinal = ordinals.get(key, 0)
        ordinals[key] = ordinal + 1
        ids.append(f"{prefixes[key]}-{ordinal:04d}")
    return ids


def known_vectors(values: Any, width: int) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_] | None]:
    """Rows of `values` (N, `width`) and which of them are known; an unknown one is None or holds NaN."""
    if values is None:
        return None, None
    blank = [np.nan] * width
    table = np.array([blank if row is None else row for row in values], np.float32).reshape(-1, width)
    known = np.asarray(~np.isnan(table).any(axis=1))
    return np.where(known[:, None], table, 0), known


def vectors(values: ArrayLike | None, known: ArrayLike | None, count: int, width: int) -> list[Any] | pl.Series:
    """Rows of `values` (`count`, `width`) as a column of arrays, null where not `known` (count,)."""
    if values is None or count == 0:
        return [None] * count
    array = np.asarray(values, np.float32).reshape(count, width)
    keep = np.ones(count, bool) if known is None else np.asarray(known, bool)
    series = pl.Series("", array, pl.Array(pl.Float32, width))
    if keep.all():
        return series
    return pl.select(pl.when(pl.Series(keep)).then(series)).to_series()
