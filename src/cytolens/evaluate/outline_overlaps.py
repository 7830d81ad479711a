"""Outlines of truth and findings brought together, image by image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolens import masks, match
from cytolens.boxes import Boxes
from cytolens.cells import Cells
from cytolens.evaluate.joining import Joined, rows_by_image
from cytolens.formats.run_lengths import positions_of_code
from cytolens.problems import DatasetError

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class OutlinesOfImage:
    """The outlines of one joined image.

    Attributes:
        image: its index in `Joined.images`.
        size_hw: of the image.
        truth: rows of `Joined.truth` in it, shape (t,).
        found: rows of `Joined.found` in it, shape (f,).
        truth_codes: their masks.
        found_codes: their masks.
        table: `match.overlaps` of the masks, shape (f, t).
    """

    image: int
    size_hw: tuple[int, int]
    truth: Indices
    found: Indices
    truth_codes: list[bytes]
    found_codes: list[bytes]
    table: NDArray[np.float64]


def outlines_by_image(joined: Joined) -> Iterator[OutlinesOfImage]:
    """The outlines of every image, in the order of `Joined.images`; one image is in memory at a time.

    Only pairs whose bounds touch are compared pixel by pixel. An ignored truth without a mask is the region of its box.

    Raises:
        DatasetError: a scored truth or a finding has no mask, the size of an image is not known, or a mask is not of
            its image's size.
    """
    _refuse_without_masks(joined)
    ours, theirs = rows_by_image(joined.truth), rows_by_image(joined.found)
    none = np.zeros(0, np.intp)
    sizes = joined.images.frame.select("image_id", "height_px", "width_px").iter_rows()
    for index, (image_id, height, width) in enumerate(sizes):
        t, f = ours.get(image_id, none), theirs.get(image_id, none)
        if height is None or width is None:
            raise DatasetError(
                f"{image_id}: its size is not known, so outlines in it cannot be compared; import it again"
            )
        size_hw = (int(height), int(width))
        truth = Cells(joined.truth.frame[t], joined.truth.labels)
        found = Cells(joined.found.frame[f], joined.found.labels)
        truth = truth.with_masks(_codes(truth, size_hw, image_id, "the truth"))
        found = found.with_masks(_codes(found, size_hw, image_id, "the findings"))
        table = match.overlaps(truth, found, size_hw) if len(t) and len(f) else np.zeros((len(f), len(t)))
        yield OutlinesOfImage(index, size_hw, t, f, _known(truth), _known(found), table)


def _refuse_without_masks(joined: Joined) -> None:
    truth, found = joined.truth.frame, joined.found.frame
    for side, frame, what_to_do in (
        ("the truth", truth.filter(~truth["ignore"]), "import a data set with masks"),
        ("the findings", found, "predict with a model that draws outlines"),
    ):
        bare = frame.filter(frame["mask"].is_null())
        if len(bare):
            raise DatasetError(
                f"{len(bare)} of {len(frame)} cells of {side} have a box but no mask (the first in "
                f"{bare['image_id'][0]}), and outlines are to be scored; {what_to_do}, or score boxes with the task "
                "detection"
            )


def _codes(cells: Cells, size_hw: tuple[int, int], image_id: str, side: str) -> list[bytes]:
    codes = [
        _rectangle(corners, size_hw) if code is None else code
        for code, corners in zip(cells.masks(), cells.boxes(), strict=True)
    ]
    for code in codes:
        # The codec compares masks of unequal sizes for ever, so they are refused here.
        try:
            pixels = int(masks.to_runs(code).sum())
        except ValueError as error:
            raise DatasetError(f"{image_id}: a mask of {side} cannot be read ({error})") from error
        if pixels != size_hw[0] * size_hw[1]:
            raise DatasetError(
                f"{image_id}: a mask of {side} is of an image of {pixels} px, but the truth's image has "
                f"{size_hw[1]} × {size_hw[0]} px"
            )
    return codes


def _rectangle(corners: Boxes, size_hw: tuple[int, int]) -> bytes:
    x_min, y_min, x_max, y_max = np.clip(np.round(corners), 0, [*size_hw[::-1]] * 2).astype(int).tolist()
    mask = np.zeros(size_hw, bool)
    mask[y_min:y_max, x_min:x_max] = True
    return masks.encode(mask)


def _known(cells: Cells) -> list[bytes]:
    return [code for code in cells.masks() if code is not None]


def cut_out(code: bytes, size_hw: tuple[int, int]) -> tuple[masks.Mask, int, int]:
    """A mask within its bounds, and the x and y of its upper left pixel; an empty one is of shape (0, 0).

    Raises:
        ValueError: the mask is not of that size.
    """
    places = positions_of_code(code, (size_hw[1], size_hw[0]))
    if not len(places):
        return np.zeros((0, 0), bool), 0, 0
    x, y = places // size_hw[0], places % size_hw[0]
    left, top = int(x[0]), int(y.min())
    mask = np.zeros((int(y.max()) - top + 1, int(x[-1]) - left + 1), bool)
    mask[y - top, x - left] = True
    return mask, left, top


# -- contours -------------------------------------------------------------------------------------


def contours(codes: list[bytes], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels of masks that have a pixel outside their mask above, below or beside them, shape (H, W).

    What lies beyond the image's border is no outside: nobody drew a contour there.

    Raises:
        ValueError: a mask is not of that size.
    """
    canvas = np.zeros(size_hw, bool)
    for code in codes:
        mask, left, top = cut_out(code, size_hw)
        bottom, right = top + mask.shape[0], left + mask.shape[1]
        if not mask.size:
            continue
        around = np.pad(mask, 1)
        around[0] |= around[1] & (top == 0)
        around[-1] |= around[-2] & (bottom == size_hw[0])
        around[:, 0] |= around[:, 1] & (left == 0)
        around[:, -1] |= around[:, -2] & (right == size_hw[1])
        inside = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
        canvas[top:bottom, left:right] |= mask & ~inside
    return canvas


def boundary_f(found: NDArray[np.bool_], truth: NDArray[np.bool_], tolerance_px: float) -> float:
    """How well contours agree: the harmonic mean of the shares of either's pixels that lie near the other's.

    Source: the boundary measure of DAVIS (F. Perazzi et al., CVPR 2016), here for the contours of all cells together,
    so that a line between two cells that touch counts too.

    Args:
        found, truth: contour pixels, shape (H, W).
        tolerance_px: how far apart, between centres of pixels, is still near.

    Returns:
        0 … 1; 1 where neither has a contour, 0 where only one has.
    """
    if not found.any() or not truth.any():
        return float(found.any() == truth.any())
    precision = (_distance(truth)[found] <= tolerance_px + 1e-4).mean()
    recall = (_distance(found)[truth] <= tolerance_px + 1e-4).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _distance(pixels: NDArray[np.bool_]) -> NDArray[np.float32]:
    """How far each pixel is from the nearest of these."""
    import cv2

    away = cv2.distanceTransform((~pixels).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(away, np.float32)
