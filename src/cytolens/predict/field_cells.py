"""What was found in one field, and how outlines are laid over it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cytolens import masks
from cytolens.labels import LabelSet
from cytolens.predict.outlining import CellOutliner
from cytolens.prepare.stain import FieldStain
from cytolens.tasks.segment import Outlines


@dataclass(frozen=True, slots=True)
class FieldCells:
    """What was found in one field; all arrays have one row per cell.

    Attributes:
        boxes: shape (N, 4).
        labels: names, or None.
        scores: shape (N,).
        probabilities: shape (N, K); rows of NaN where no classifier spoke.
        counted, refer: shape (N,), bool.
        remarks: sentences about the field as a whole, for the report.
        reasons: why cells were referred: reason → which cells, shape (N,).
        attributes: column → probabilities over its values, shape (N, V); rows of NaN where nothing is said.
        masks: COCO's run-length codes of the field (N), None for a cell without; None: no cell is outlined.
        notes: what a reader of the count has to know of how the field was looked at.
        concepts: what the classifier read names from, shape (N, ΣV) of its attributes, rows of NaN where it did not
            speak; None: it reads them from something else.
    """

    boxes: NDArray[np.float32]
    labels: list[str | None]
    scores: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    counted: NDArray[np.bool_]
    refer: NDArray[np.bool_]
    remarks: tuple[str, ...] = ()
    reasons: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    attributes: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    masks: list[bytes | None] | None = None
    concepts: NDArray[np.float32] | None = None
    notes: tuple[str, ...] = ()


def of_outlines(found: Outlines, labels: LabelSet) -> FieldCells:
    """Cells that were found by their outlines."""
    count = len(found.boxes)
    return FieldCells(
        boxes=found.boxes,
        labels=[labels.leaves[kind] for kind in found.classes],
        scores=found.scores,
        probabilities=np.full((count, len(labels.leaves)), np.nan, np.float32),
        counted=found.counted,
        refer=np.zeros(count, bool),
        masks=list(found.masks),
        notes=found.notes,
    )


def with_outlines(
    cells: FieldCells,
    outliner: CellOutliner,
    pixels: NDArray[np.uint8],
    labels: LabelSet,
    stain: FieldStain | None = None,
) -> FieldCells:
    """The cells of one field with the outlines of those that count and are of the outliner's kind.

    A cell's box becomes the bounds of its mask. Its parts follow behind all cells as cells of their own, which
    `labels` give the role "part": they carry their cell's score, and nobody is asked to look at them.

    Args:
        cells: of the field.
        outliner: what draws.
        pixels: the field, uint8 RGB, shape (H, W, 3).
        labels: of `cells`; the parts are among them.
        stain: of the field; None: measured here.
    """
    role, own = outliner.labels.role(outliner.whole), labels.resolve(outliner.whole)
    rows = [
        row
        for row, name in enumerate(cells.labels)
        if cells.counted[row] and name is not None and (name == own or (role is not None and labels.role(name) == role))
    ]
    boxes, codes = cells.boxes.copy(), list(cells.masks or [None] * len(cells.labels))
    names: list[str | None] = []
    owners: list[int] = []
    size_hw = (pixels.shape[0], pixels.shape[1])
    for row, drawn in zip(rows, outliner.look(pixels, cells.boxes[rows], stain) if rows else [], strict=True):
        for name, code in drawn.items():
            if name == outliner.whole:
                codes[row], boxes[row] = code, masks.bounds(code, size_hw)
                continue
            names.append(labels.require(name))
            owners.append(row)
            codes.append(code)
            boxes = np.concatenate([boxes, masks.bounds(code, size_hw)[None]])
    more, none = len(owners), np.zeros(len(owners), bool)

    def longer(table: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([table, np.full((more, *table.shape[1:]), np.nan, np.float32)])

    return replace(
        cells,
        boxes=boxes,
        labels=[*cells.labels, *names],
        scores=np.concatenate([cells.scores, cells.scores[owners]]),
        probabilities=longer(cells.probabilities),
        counted=np.concatenate([cells.counted, ~none]),
        refer=np.concatenate([cells.refer, none]),
        reasons={reason: np.concatenate([which, none]) for reason, which in cells.reasons.items()},
        attributes={column: longer(table) for column, table in cells.attributes.items()},
        masks=codes,
        concepts=None if cells.concepts is None else longer(cells.concepts),
    )
