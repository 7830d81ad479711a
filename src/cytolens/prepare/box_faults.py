"""What is wrong with the boxes of a dataset, cell by cell: what `check` tells and `repair` mends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cytolens import boxes as box
from cytolens import masks
from cytolens.dataset import Dataset
from cytolens.prepare.check_findings import ROUNDING

Rows = NDArray[np.intp]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class BoxFaults:
    """What is wrong with the boxes of a dataset's cells; N cells in the order of its table.

    Attributes:
        numbers: whether all four edges are finite, shape (N,).
        has_area: whether the box as given has an area, shape (N,).
        beyond_px: how far the box reaches outside its image, shape (N,); 0 inside, or where that is unknown.
        outside: whether that is more than rounding, shape (N,).
        mended: the boxes clipped to their images, shape (N, 4), float32; a box that has no area but a mask is
            the mask's.
        by_mask: which boxes were taken from their masks, shape (N,).
        flat: which mended boxes have no area, or are not numbers, shape (N,).
        repeats: the row whose box and label each cell repeats, -1 for none, shape (N,).
        exact: which of these repeats are of exactly that box, shape (N,).
        disputed: pairs of rows that give one box several labels or descriptions, shape (P, 2).
        overlap: IoU of these pairs, shape (P,).
    """

    numbers: Flags
    has_area: Flags
    beyond_px: NDArray[np.float64]
    outside: Flags
    mended: NDArray[np.float32]
    by_mask: Flags
    flat: Flags
    repeats: Rows
    exact: Flags
    disputed: NDArray[np.intp]
    overlap: NDArray[np.float64]


def sizes_of_cells(dataset: Dataset) -> NDArray[np.float64]:
    """Width and height in px of each cell's image, shape (N, 2); infinite where unknown."""
    sizes = dataset.images.frame.select("image_id", pl.col("width_px", "height_px").cast(pl.Float64))
    joined = dataset.cells.frame.select("image_id").join(sizes, on="image_id", how="left", maintain_order="left")
    return joined.select(pl.col("width_px", "height_px").fill_null(np.inf)).to_numpy().reshape(-1, 2)


def beyond(corners: box.Boxes, size_wh: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far boxes (N, 4) reach outside images of `size_wh` (N, 2), in px; 0 for those inside, shape (N,)."""
    corners = np.asarray(corners, np.float64)
    out = np.concatenate([-corners, corners - np.tile(size_wh, 2)], axis=1)
    return np.asarray(out.max(axis=1, initial=0))


def is_outside(corners: box.Boxes, size_wh: NDArray[np.float64]) -> Flags:
    """Which boxes (N, 4) reach outside by more than rounding, shape (N,)."""
    side = np.where(np.isfinite(size_wh), size_wh, 0).max(axis=1, initial=0)
    return beyond(corners, size_wh) > side * ROUNDING


def box_faults(dataset: Dataset, same_iou: float = 0.9) -> BoxFaults:
    """What is wrong with the boxes of a dataset.

    Args:
        dataset: its images' sizes are taken as the table gives them.
        same_iou: overlap from which two boxes of an image are the same box. Where both cells have a mask,
            the masks have to overlap as much.
    """
    given, size_wh = dataset.cells.boxes(), sizes_of_cells(dataset)
    numbers = np.asarray(np.isfinite(given).all(axis=1))
    corners = np.where(numbers[:, None], given, np.float32(0))
    mended = _clipped(corners, size_wh)
    has_area = box.valid(corners)
    outside = is_outside(corners, size_wh) | (has_area & ~box.valid(mended))
    by_mask = _boxes_of_masks(dataset, mended, size_wh, ~box.valid(mended))
    flat = ~box.valid(mended)
    repeats, disputed, overlap = _same_boxes(dataset, mended, ~flat, size_wh, same_iou)
    exact = (repeats >= 0) & (mended == mended[repeats]).all(axis=1)
    far = beyond(corners, size_wh)
    return BoxFaults(numbers, has_area, far, outside, mended, by_mask, flat, repeats, exact, disputed, overlap)


def _clipped(corners: box.Boxes, size_wh: NDArray[np.float64]) -> NDArray[np.float32]:
    clipped = np.array(corners, np.float32)
    size = _codes(size_wh)
    by_size = np.argsort(size, kind="stable")
    for rows in np.split(by_size, np.flatnonzero(np.diff(size[by_size])) + 1):
        if len(rows):
            clipped[rows] = box.clip(corners[rows], *size_wh[rows[0]].tolist())
    return clipped


def _boxes_of_masks(dataset: Dataset, boxes: NDArray[np.float32], size_wh: NDArray[np.float64], wanted: Flags) -> Flags:
    """Fill in the bounds of the masks of the wanted rows; says where there was a mask with pixels."""
    done = np.zeros(len(boxes), bool)
    codes = dataset.cells.frame["mask"]
    for row in np.flatnonzero(wanted & codes.is_not_null().to_numpy()).tolist():
        if not np.isfinite(size_wh[row]).all():
            continue
        width, height = size_wh[row].astype(int).tolist()
        try:
            bounds = masks.bounds(codes[row], (height, width))
        except ValueError:  # a mask of another frame says nothing about this one
            continue
        if box.valid(bounds)[0]:
            boxes[row], done[row] = bounds, True
    return done


# -- the same box again -----------------------------------------------------------------------------


def _same_boxes(
    dataset: Dataset, corners: NDArray[np.float32], usable: Flags, size_wh: NDArray[np.float64], same_iou: float
) -> tuple[Rows, NDArray[np.intp], NDArray[np.float64]]:
    """Which row each row repeats (N,), and the pairs (P, 2) that disagree about one box, with their IoU (P,)."""
    frame = dataset.cells.frame
    layer, said = _layers(frame), _said(dataset)
    # The cell that stays is the one that knows more: with a mask, then by a person, then the first.
    order = np.lexsort((frame["score"].is_not_null().to_numpy(), frame["mask"].is_null().to_numpy()))
    rank = np.empty(len(order), np.intp)
    rank[order] = np.arange(len(order))
    repeats = _exact_repeats(frame, corners, usable, rank, layer, said)
    first, second, overlap = _near_pairs(corners, np.flatnonzero(usable & (repeats < 0)), layer, same_iou)
    alike = _masks_agree(frame["mask"], first, second, size_wh, same_iou)
    first, second, overlap = first[alike], second[alike], overlap[alike]
    same = said[first] == said[second]
    better = np.where(rank[first] < rank[second], first, second)
    worse = first + second - better
    for at in np.flatnonzero(same)[np.argsort(rank[better[same]], kind="stable")].tolist():
        if repeats[better[at]] < 0 and repeats[worse[at]] < 0:
            repeats[worse[at]] = better[at]
    open_still = ~same & (repeats[first] < 0) & (repeats[second] < 0)
    return repeats, np.stack([first, second], axis=1)[open_still], overlap[open_still]


def _codes(table: NDArray[np.generic]) -> NDArray[np.int64]:
    """Equal rows of a table (N, M) get equal numbers, shape (N,)."""
    return np.unique(table, axis=0, return_inverse=True)[1].ravel().astype(np.int64)


def _layers(frame: pl.DataFrame) -> NDArray[np.int64]:
    """Cells are compared within an image, and the ignored and the uncounted among themselves."""
    return _codes(
        frame.select(
            pl.col("image_id").rank("dense").cast(pl.Int64), pl.col("ignore", "counted").cast(pl.Int64)
        ).to_numpy()
    )


def _said(dataset: Dataset) -> NDArray[np.int64]:
    """What is said of a cell: its label and its attributes."""
    columns = ["label", *(attribute.column for attribute in dataset.labels.attributes)]
    return _codes(dataset.cells.frame.select(pl.col(columns).to_physical().cast(pl.Int64).fill_null(-1)).to_numpy())


def _exact_repeats(
    frame: pl.DataFrame,
    corners: NDArray[np.float32],
    usable: Flags,
    rank: Rows,
    layer: NDArray[np.int64],
    said: NDArray[np.int64],
) -> Rows:
    """Which row each row repeats in everything, mask included; -1 for none."""
    keys = pl.DataFrame({f"edge_{i}": corners[:, i] + np.float32(0) for i in range(4)})  # -0.0 is 0.0
    keys = keys.with_columns(layer=layer, said=said, mask=frame["mask"])
    table = keys.with_columns(row=np.arange(len(frame)), rank=rank).filter(pl.Series(usable)).sort("rank")
    table = table.with_columns(pl.col("row").first().over(keys.columns).alias("kept"))
    table = table.filter(pl.col("row") != pl.col("kept"))
    repeats = np.full(len(frame), -1, np.intp)
    repeats[table["row"].to_numpy()] = table["kept"].to_numpy()
    return repeats


def _near_pairs(
    corners: NDArray[np.float32], rows: Rows, layer: NDArray[np.int64], same_iou: float
) -> tuple[Rows, Rows, NDArray[np.float64]]:
    """Pairs among `rows` of one layer whose boxes overlap by `same_iou` or more, and their IoU."""
    found = []
    for one, other in _candidates(corners, rows, layer, same_iou):
        overlap = float(box.iou(corners[one].astype(np.float64), corners[other].astype(np.float64))[0, 0])
        if overlap >= same_iou:
            found.append((min(one, other), max(one, other), overlap))
    found.sort()
    table = np.array([pair[:2] for pair in found], np.intp).reshape(-1, 2)
    return table[:, 0], table[:, 1], np.array([overlap for _, _, overlap in found], np.float64)


def _candidates(
    corners: NDArray[np.float32], rows: Rows, layer: NDArray[np.int64], same_iou: float
) -> Iterator[tuple[int, int]]:
    """Pairs of one layer of which no edge lies further apart than an IoU of `same_iou` allows.

    The overlap of two such boxes is at least `same_iou` of either's width, so their edges differ by at most
    the rest of the wider one; in the order of left edges only few neighbours have to be looked at.
    """
    rows = rows[np.lexsort((corners[rows, 0], layer[rows]))]
    edges, group = corners[rows].astype(np.float64), layer[rows]
    slack = (1 - same_iou) * np.tile(box.sizes_wh(edges), 2) * (1 + 1e-9) + 1e-9
    left, step = np.arange(len(rows)), 1
    while len(left := left[left + step < len(rows)]):
        near = (group[left] == group[left + step]) & (edges[left + step, 0] - edges[left, 0] <= slack[left, 0])
        left = left[near]
        apart = np.abs(edges[left + step] - edges[left])
        close = left[(apart <= np.maximum(slack[left], slack[left + step])).all(axis=1)]
        yield from zip(rows[close].tolist(), rows[close + step].tolist(), strict=True)
        step += 1


def _masks_agree(codes: pl.Series, first: Rows, second: Rows, size_wh: NDArray[np.float64], same_iou: float) -> Flags:
    """Which pairs may be one cell as far as their masks say; a cell without a mask may be any."""
    agree = np.ones(len(first), bool)
    known = codes.is_not_null().to_numpy()
    for at in np.flatnonzero(known[first] & known[second]).tolist():
        one, other = codes[int(first[at])], codes[int(second[at])]
        if one != other:
            agree[at] = _mask_iou(one, other, size_wh[first[at]]) >= same_iou
    return agree


def _mask_iou(one: bytes, other: bytes, size_wh: NDArray[np.float64]) -> float:
    """IoU of two encoded masks; 0 where one of them is not of an image of this size."""
    if not np.isfinite(size_wh).all():
        return 0.0
    width, height = size_wh.astype(int).tolist()
    try:
        for code in (one, other):
            masks.decode(code, (height, width))
    except ValueError:
        return 0.0
    return float(masks.iou([one], [other], (height, width))[0, 0])
