"""How large a cell is, told in red cells: the same number at any magnification.

The size of a cell in px says as much of the magnification as of the cell. So it is divided by the diameter of a red
cell in the same image, which measures 7 to 8 µm nearly everywhere: the median of the red cells that are known or found
there, or where the image's µm per px is known, 7.5 µm of it. Training measures annotated boxes and prediction found
ones, both by the functions of this file.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cytolens import boxes as box
from cytolens.cells import Cells
from cytolens.labels import LabelSet
from cytolens.tasks.detect import Findings

RED_CELL_UM = 7.5
SCALE_FEATURES = 2  # per cell: how many red cells it is wide, and whether that is known
_CONFIDENT = 0.4
_LEAST = 5  # red cells; fewer do not tell
_LEAST_SIDE = 1 / 64  # red cells; smaller than any cell, so that a box without an area has a logarithm

Scale = Literal["px", "red-cell"]


def red_index(labels: LabelSet) -> int | None:
    """The index of the red cells' label among the labels' names, or None."""
    roles = [labels.role(name) for name in labels.names]
    return roles.index("erythrocyte") if "erythrocyte" in roles else None


def red_cell_size(found: Findings, red: int | None, confident: float = _CONFIDENT, least: int = _LEAST) -> float | None:
    """Median diameter in px of the confident red cells, or None where there are too few to tell.

    Args:
        found: in a field.
        red: class of the red cells; None: there is none.
        confident: score from which a red cell is believed.
        least: how many are enough.
    """
    if red is None:
        return None
    sure = (found.classes == red) & (found.scores >= confident)
    if int(sure.sum()) < least:
        return None
    return float(np.median(np.sqrt(box.areas(found.boxes[sure]))))


def ruler_px(found: Findings, red: int | None, um_per_px: float | None = None) -> float | None:
    """The diameter of a red cell in px of the field: from its resolution, else from its red cells; None: not known.

    Args:
        found: in the field, or known there, boxes in its px.
        red: class of the red cells; None: there is none.
        um_per_px: of the field, where it is known.
    """
    if um_per_px is not None and np.isfinite(um_per_px) and um_per_px > 0:
        return RED_CELL_UM / um_per_px
    return red_cell_size(found, red)


def annotated_ruler_px(cells: Cells, um_per_px: float | None = None) -> float | None:
    """`ruler_px` of a field whose cells are annotated; those that are not scored are no measure."""
    told = cells.filter(cells.frame["label"].is_not_null().to_numpy() & ~cells.frame["ignore"].to_numpy())
    classes = told.frame["label"].to_physical().to_numpy().astype(np.intp)
    known = Findings(told.boxes(), classes, np.ones(len(told), np.float32))
    return ruler_px(known.kept(np.flatnonzero(box.valid(known.boxes))), red_index(cells.labels), um_per_px)


def scale_features(
    sides_px: NDArray[np.floating], rulers_px: NDArray[np.floating] | float | None
) -> NDArray[np.float32]:
    """What a network is told of the size of cells, shape (N, 2): log2 of how many red cells wide, and 1; 0, 0: unknown.

    Args:
        sides_px: root of the area of each cell's box, shape (N,).
        rulers_px: diameter of a red cell in the same px, one for all or of each cell's own field, shape (N,); 0, NaN
            or None: not known.
    """
    sides = np.asarray(sides_px, np.float64)
    rulers = np.broadcast_to(np.nan_to_num(np.asarray(0 if rulers_px is None else rulers_px, np.float64)), sides.shape)
    known = rulers > 0
    ratio = np.log2(np.maximum(sides / np.where(known, rulers, 1), _LEAST_SIDE))
    return np.stack([np.where(known, ratio, 0), known], axis=1).astype(np.float32)


def box_scale_features(boxes: NDArray[np.floating], ruler_px: float | None) -> NDArray[np.float32]:
    """`scale_features` (N, 2) of boxes (N, 4) of one field."""
    return scale_features(np.sqrt(box.areas(boxes)), ruler_px)
