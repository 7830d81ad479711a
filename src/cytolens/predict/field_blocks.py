"""The blocks in which a large file is looked at, joined to one field: each cell once, with all that is said of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from cytolens.predict.field_cells import FieldCells
from cytolens.predict.outliners import moved
from cytolens.predict.tiles import Window, kept, touches_inner_border


def joined_blocks(
    parts: list[tuple[Window, FieldCells]], size_wh: tuple[int, int], inner: Collection[str] = ()
) -> FieldCells:
    """The cells of overlapping blocks as cells of the image.

    Args:
        parts: the blocks and what was found in each.
        size_wh: of the image.
        inner: labels of parts of cells, such as nuclei, which never stand for the cell that they lie in.
    """
    boxes = np.concatenate([cells.boxes + window.shift for window, cells in parts])
    cut_off = np.concatenate([touches_inner_border(cells.boxes + w.shift, w, size_wh) for w, cells in parts])
    names = [name for _, cells in parts for name in cells.labels]
    scores = np.concatenate([cells.scores for _, cells in parts])
    counted = np.concatenate([cells.counted for _, cells in parts])
    # One cell may be named differently in two blocks, so blocks are joined whatever the name. What counts gives way
    # only to what counts: thresholds differ by label, so a finding that does not count may have the higher score.
    kinds = counted + 2 * np.array([name in inner for name in names], np.intp)
    keep = kept(boxes, kinds, scores, cut_off, 0.5)
    reasons = {
        reason: np.concatenate([cells.reasons.get(reason, np.zeros(len(cells.boxes), bool)) for _, cells in parts])[
            keep
        ]
        for reason in dict.fromkeys(reason for _, cells in parts for reason in cells.reasons)
    }
    return FieldCells(
        boxes[keep],
        [names[i] for i in keep],
        scores[keep],
        np.concatenate([cells.probabilities for _, cells in parts])[keep],
        counted[keep],
        np.concatenate([cells.refer for _, cells in parts])[keep],
        tuple(dict.fromkeys(remark for _, cells in parts for remark in cells.remarks)),
        reasons,
        attributes_of([cells for _, cells in parts], keep),
        _masks_of(parts, keep, size_wh),
        concepts_of([cells for _, cells in parts], keep),
    )


def _masks_of(
    parts: Sequence[tuple[Window, FieldCells]], keep: NDArray[np.intp], size_wh: tuple[int, int]
) -> list[bytes | None] | None:
    """The masks of the rows to keep, in the frame of the image; None: there are none."""
    if all(cells.masks is None for _, cells in parts):
        return None
    owned = [(window, code) for window, cells in parts for code in cells.masks or [None] * len(cells.boxes)]
    return [None if code is None else moved(window, code, size_wh) for window, code in (owned[row] for row in keep)]


def attributes_of(parts: Sequence[FieldCells], keep: NDArray[np.intp] | None = None) -> dict[str, NDArray[np.float32]]:
    """Column → probabilities of all cells, or of the rows to keep, shape (N, V); NaN where a part says nothing."""
    widths = {column: table.shape[1] for cells in parts for column, table in cells.attributes.items()}
    tables = {
        column: np.concatenate(
            [cells.attributes.get(column, np.full((len(cells.boxes), width), np.nan, np.float32)) for cells in parts]
        )
        for column, width in widths.items()
    }
    return tables if keep is None else {column: table[keep] for column, table in tables.items()}


def concepts_of(parts: Sequence[FieldCells], keep: NDArray[np.intp] | None = None) -> NDArray[np.float32] | None:
    """What the names of all cells, or of the rows to keep, were read from, shape (N, ΣV); None: not from attributes."""
    width = next((cells.concepts.shape[1] for cells in parts if cells.concepts is not None), None)
    if width is None:
        return None
    silent = [np.full((len(cells.boxes), width), np.nan, np.float32) for cells in parts]
    tables = [no if cells.concepts is None else cells.concepts for cells, no in zip(parts, silent, strict=True)]
    table = np.concatenate(tables)
    return table if keep is None else table[keep]
