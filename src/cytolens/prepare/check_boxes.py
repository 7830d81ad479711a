"""What is wrong with boxes, told cell by cell."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cytolens import boxes as box
from cytolens.dataset import Dataset
from cytolens.prepare.box_faults import BoxFaults, sizes_of_cells
from cytolens.prepare.check_findings import CheckSettings, Finding, cell_finding


def box_findings(dataset: Dataset, faults: BoxFaults, settings: CheckSettings) -> list[Finding]:
    """What is wrong with the boxes, as findings, kind by kind."""
    return [
        *_misplaced(dataset, faults),
        *_repeated(dataset, faults),
        *_disputed(dataset, faults),
        *_thin(dataset, faults, settings.thin_px),
    ]


def box_text(corners: NDArray[np.floating]) -> str:
    """Four edges for people, such as "(34, -54, 271.5, 109)"."""
    return f"({', '.join(f'{value:.6g}' for value in corners.tolist())})"


def _misplaced(dataset: Dataset, faults: BoxFaults) -> Iterator[Finding]:
    corners, size_wh = dataset.cells.boxes(), sizes_of_cells(dataset)
    cells, images = dataset.cells.frame["cell_id"], dataset.cells.frame["image_id"]
    no_area = faults.numbers & ~faults.has_area
    for row in np.flatnonzero(~faults.numbers | no_area | faults.outside).tolist():
        width, height = size_wh[row].tolist()
        of_image = f" of the {width:.0f} × {height:.0f} px image" if np.isfinite(width) else " of the image"
        text, place = box_text(corners[row]), (images[row], (cells[row],))
        dropped = "Run cytolens repair: it takes the box from the mask." if faults.by_mask[row] else _DROPPED
        if not faults.numbers[row]:
            yield cell_finding("box-not-a-number", *place, f"the box {text} is not four numbers.", dropped, "error")
        elif no_area[row]:
            inside_out = " (its corners may be swapped)" if (corners[row, 2:] < corners[row, :2]).any() else ""
            yield cell_finding("box-no-area", *place, f"the box {text} has no area{inside_out}.", dropped)
        else:
            far = float(faults.beyond_px[row])
            gone = faults.flat[row] or faults.by_mask[row]
            what = "lies wholly outside" if gone else f"reaches {far:.4g} px outside"
            fix = dropped if gone else "Run cytolens repair: it clips the box."
            yield cell_finding("box-outside-image", *place, f"the box {text} {what}{of_image}.", fix, weight=far)


_DROPPED = "Correct the annotation, or run cytolens repair: it drops the cell."


def _repeated(dataset: Dataset, faults: BoxFaults) -> Iterator[Finding]:
    frame = dataset.cells.frame
    cells, images, names = frame["cell_id"], frame["image_id"], dataset.cells.label_names()
    for row in np.flatnonzero(faults.repeats >= 0).tolist():
        kept = int(faults.repeats[row])
        ids = (cells[row], cells[kept])
        text, label = box_text(faults.mended[row]), names[row] or "(no label)"
        kind, how = ("box-repeated", "is") if faults.exact[row] else ("box-nearly-repeated", "is nearly")
        what = f'the box {text} of "{label}" {how} that of cell {ids[1]}.'
        overlap = float(box.iou(faults.mended[row], faults.mended[kept])[0, 0])
        yield cell_finding(kind, images[row], ids, what, "Run cytolens repair: it keeps one of them.", weight=overlap)


def _disputed(dataset: Dataset, faults: BoxFaults) -> Iterator[Finding]:
    frame = dataset.cells.frame
    cells, images, names = frame["cell_id"], frame["image_id"], dataset.cells.label_names()
    for (one, other), overlap in zip(faults.disputed.tolist(), faults.overlap.tolist(), strict=True):
        labels = f'"{names[one] or "(no label)"}" and "{names[other] or "(no label)"}"'
        said = f"is called {labels}" if names[one] != names[other] else f'("{names[one]}") is described in two ways'
        what = f"one box {box_text(faults.mended[one])} {said} (cells {cells[one]} and {cells[other]})."
        ids = (cells[one], cells[other])
        fix = "Look at the cell and delete the wrong one."
        yield cell_finding("box-several-labels", images[one], ids, what, fix, weight=overlap)


def _thin(dataset: Dataset, faults: BoxFaults, thin_px: float) -> Iterator[Finding]:
    frame = dataset.cells.frame
    sides = np.where(faults.flat[:, None], np.inf, box.sizes_wh(faults.mended))
    shorter = sides.min(axis=1, initial=np.inf)
    for row in np.flatnonzero((shorter <= thin_px) & ~faults.flat).tolist():
        width, height = sides[row].tolist()
        what = f"the box {box_text(faults.mended[row])} is only {width:.4g} × {height:.4g} px."
        fix = "Correct the annotation, or delete the cell."
        place = (frame["image_id"][row], (frame["cell_id"][row],))
        yield cell_finding("box-thin", *place, what, fix, weight=-float(shorter[row]))
