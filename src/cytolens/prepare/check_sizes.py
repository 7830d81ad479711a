"""Boxes whose size or shape is odd for their label: not wrong for certain, but worth a look."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cytolens import boxes as box
from cytolens.dataset import Dataset
from cytolens.prepare.box_faults import BoxFaults, Flags, sizes_of_cells
from cytolens.prepare.check_boxes import box_text
from cytolens.prepare.check_findings import CheckSettings, Finding, cell_finding

_TO_SIGMA = 1.4826  # median absolute deviation → standard deviation of a normal distribution
# Labels whose boxes are nearly all of one size have no spread to speak of. With this least spread (of
# the logarithm of the area), a third more or less area is never odd at z = 5.
_SIGMA_MIN = 0.06
_AT_BORDER_PX = 1.5  # annotators stop about a pixel short of the border
_LOOK = "Look at the cell; correct the box or the label."


def size_findings(dataset: Dataset, faults: BoxFaults, settings: CheckSettings) -> list[Finding]:
    """Boxes of an odd size or shape for their label.

    Ignored and uncounted cells are left out; those that the border of the image cuts may be small and long.
    """
    usable = ~faults.flat & (faults.repeats < 0)
    usable &= dataset.cells.frame.select(~pl.col("ignore") & pl.col("counted")).to_series().to_numpy()
    size_wh = sizes_of_cells(dataset)
    cut = _at_border(faults.mended, size_wh)
    perhaps_cut = cut | ~np.isfinite(size_wh).all(axis=1)
    sizes = _odd_sizes(dataset, faults.mended, usable, (cut, perhaps_cut), settings)
    return [*sizes, *_odd_shapes(dataset, faults.mended, usable & ~perhaps_cut, settings.aspect_max)]


def robust_z(values: NDArray[np.float64], usual: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many standard deviations `values` (N,) lie from the middle of `usual` (M,), M > 0.

    The middle is the median, the deviation 1.4826 times the median absolute deviation, at least `_SIGMA_MIN`.
    Source: Iglewicz and Hoaglin, "How to Detect and Handle Outliers", 1993.
    """
    middle = np.median(usual)
    spread = _TO_SIGMA * float(np.median(np.abs(usual - middle)))
    return (values - middle) / max(spread, _SIGMA_MIN)


def _at_border(corners: NDArray[np.float32], size_wh: NDArray[np.float64]) -> Flags:
    low = (corners[:, :2] <= _AT_BORDER_PX).any(axis=1)
    return np.asarray(low | (corners[:, 2:] >= size_wh - _AT_BORDER_PX).any(axis=1))


def _odd_sizes(
    dataset: Dataset, corners: NDArray[np.float32], usable: Flags, cut: tuple[Flags, Flags], settings: CheckSettings
) -> Iterator[Finding]:
    """Odd sizes; `cut`: cells that the border cuts for certain, and those that it may cut."""
    frame, names = dataset.cells.frame, dataset.labels.names
    logs = np.log(np.maximum(box.areas(corners.astype(np.float64)), 1e-6))
    label = frame["label"].to_physical().cast(pl.Int64).fill_null(-1).to_numpy()
    for code in np.unique(label[usable & (label >= 0)]).tolist():
        rows = np.flatnonzero(usable & (label == code))
        whole = rows[~cut[0][rows]]
        if len(whole) < settings.size_cells_min:
            continue
        z = robust_z(logs[rows], logs[whole])
        usual = float(np.exp(np.median(logs[whole]) / 2))
        for at in np.flatnonzero((np.abs(z) > settings.size_z_max) & ~(cut[1][rows] & (z < 0))).tolist():
            row = int(rows[at])
            width, height = box.sizes_wh(corners[row])[0].tolist()
            what = (
                f'the box {box_text(corners[row])} of "{names[code]}" is {width:.4g} × {height:.4g} px; '
                f"usual are about {usual:.0f} × {usual:.0f} px (z = {z[at]:.1f})."
            )
            place = (frame["image_id"][row], (frame["cell_id"][row],))
            yield cell_finding("box-odd-size", *place, what, _LOOK, "note", abs(float(z[at])))


def _odd_shapes(dataset: Dataset, corners: NDArray[np.float32], usable: Flags, aspect_max: float) -> Iterator[Finding]:
    frame, names = dataset.cells.frame, dataset.cells.label_names()
    sides = np.where(usable[:, None], box.sizes_wh(corners), 1)
    aspect = sides.max(axis=1, initial=0) / sides.min(axis=1, initial=np.inf)
    for row in np.flatnonzero(aspect > aspect_max).tolist():
        width, height = sides[row].tolist()
        what = (
            f'the box {box_text(corners[row])} of "{names[row] or "(no label)"}" is {width:.4g} × {height:.4g} px, '
            f"{aspect[row]:.1f} times as long as wide (allowed: {aspect_max:g})."
        )
        place = (frame["image_id"][row], (frame["cell_id"][row],))
        yield cell_finding("box-odd-shape", *place, what, _LOOK, "note", float(aspect[row]))
