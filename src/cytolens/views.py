"""Views: invertible geometric maps between an image and a picture made from it.

A view maps pixel edges of its source to pixel edges of its picture by an affine map whose linear
part is a flip, a quarter turn or a scaling of the axes, so boxes stay boxes. `forward` takes
coordinates from the source into the picture, `back` returns them; `pixels` makes the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cytolens import boxes as box

if TYPE_CHECKING:
    from cytolens.cells import Cells

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class View:
    """An affine, axis-keeping map from a source image to a picture.

    Attributes:
        source_wh: size of the source in px.
        wh: size of the picture in px.
        matrix: shape (2, 3); picture (x, y) = matrix · (x, y, 1) of the source.
    """

    source_wh: tuple[int, int]
    wh: tuple[int, int]
    matrix: Matrix

    def __post_init__(self) -> None:
        linear = self.matrix[:, :2]
        straight = linear[0, 1] == linear[1, 0] == 0
        turned = linear[0, 0] == linear[1, 1] == 0
        if not (straight or turned) or np.linalg.det(linear) == 0:
            raise ValueError(f"a view flips, turns by quarters, scales and shifts; got {linear.tolist()}")

    @classmethod
    def whole(cls, source_wh: tuple[int, int]) -> Self:
        """The view that changes nothing."""
        return cls(source_wh, source_wh, np.eye(2, 3))

    def then(self, other: View) -> Self:
        """This view followed by a view of its picture."""
        if other.source_wh != self.wh:
            raise ValueError(f"the second view is of a {other.source_wh} picture, this one is {self.wh}")
        square = np.vstack([self.matrix, [0, 0, 1]])
        return type(self)(self.source_wh, other.wh, other.matrix @ square)

    @property
    def inverse_matrix(self) -> Matrix:
        """The map from the picture to the source, shape (2, 3)."""
        linear = np.linalg.inv(self.matrix[:, :2])
        return np.asarray(np.hstack([linear, -linear @ self.matrix[:, 2:]]), np.float64)

    # -- coordinates ----------------------------------------------------------------------------

    def forward_boxes(self, boxes: ArrayLike) -> box.Boxes:
        """Boxes of the source (N, 4) in the picture; not clipped."""
        return _map_boxes(box.as_boxes(boxes), self.matrix)

    def back_boxes(self, boxes: ArrayLike) -> box.Boxes:
        """Boxes of the picture (N, 4) in the source; not clipped."""
        return _map_boxes(box.as_boxes(boxes), self.inverse_matrix)

    def forward(self, cells: Cells) -> Cells:
        """Cells of the source as they stand in the picture (boxes and masks; not clipped)."""
        return self._map_cells(cells, self.matrix, self.source_wh, self.wh)

    def back(self, cells: Cells) -> Cells:
        """Cells of the picture as they stand in the source (boxes and masks; not clipped)."""
        return self._map_cells(cells, self.inverse_matrix, self.wh, self.source_wh)

    def _map_cells(self, cells: Cells, matrix: Matrix, from_wh: tuple[int, int], to_wh: tuple[int, int]) -> Cells:
        moved = cells.with_boxes(_map_boxes(cells.boxes().astype(np.float64), matrix))
        codes = cells.masks()
        if all(code is None for code in codes):
            return moved
        return moved.with_masks([None if c is None else _map_mask(c, matrix, from_wh, to_wh) for c in codes])

    # -- pixels ---------------------------------------------------------------------------------

    def pixels(self, source: NDArray[np.uint8], border: int | None = None) -> NDArray[np.uint8]:
        """The picture: `source` (H, W, 3) seen through the view.

        Args:
            source: the image the view is of.
            border: the grey value outside the source; None repeats the nearest edge pixel.
        """
        import cv2

        if source.shape[1::-1] != tuple(self.source_wh):
            raise ValueError(f"the view is of a {self.source_wh} image, got {source.shape[1::-1]}")
        # How many source pixels one picture pixel holds, along the source's x and y.
        factors = np.maximum(1, 1 / np.abs(self.matrix[:, :2]).sum(axis=0)).astype(int)
        # Only the window of the source that the picture shows is touched: crops of large fields stay cheap.
        window = self.back_boxes([0, 0, *map(float, self.wh)])[0]
        low = np.clip(np.floor(window[:2]) - 2 * factors, 0, np.array(self.source_wh) - 1).astype(int)
        high = np.clip(np.ceil(window[2:]) + 2 * factors, low + 1, self.source_wh).astype(int)
        source = _block_means(source[low[1] : high[1], low[0] : high[0]], factors)
        linear = self.matrix[:, :2] * factors
        matrix = _of_centres(np.column_stack([linear, self.matrix[:, 2] + self.matrix[:, :2] @ low]))
        picture = cv2.warpAffine(source, matrix, self.wh, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        if border is not None:  # painted afterwards, so that it does not shine into the source's edge pixels
            left, top, right, bottom = self._shown()
            picture[:top] = picture[bottom:] = picture[:, :left] = picture[:, right:] = border
        return np.asarray(picture, np.uint8)

    def _shown(self) -> list[int]:
        """The part of the picture whose pixel centres lie in the source, as whole-pixel edges."""
        edges = self.forward_boxes([0, 0, *map(float, self.source_wh)])[0]
        return np.maximum(np.ceil(edges - 0.5), 0).astype(int).tolist()


def tile(source_wh: tuple[int, int], x_px: int, y_px: int, wh: tuple[int, int]) -> View:
    """A tile (or crop) with its upper left corner at (x, y); it may reach outside the source."""
    return View(source_wh, wh, np.array([[1.0, 0, -x_px], [0, 1, -y_px]]))


def crop(source_wh: tuple[int, int], region: ArrayLike, side_px: int) -> View:
    """A square picture of `side_px` from a square region (x_min, y_min, x_max, y_max) of the source."""
    x_min, y_min, x_max, y_max = np.asarray(region, np.float64)
    if not (x_max > x_min and y_max > y_min):
        raise ValueError(f"a crop needs a region with an area, got {[x_min, y_min, x_max, y_max]}")
    scale = np.array([side_px / (x_max - x_min), side_px / (y_max - y_min)])
    shift = -scale * [x_min, y_min]
    return View(source_wh, (side_px, side_px), np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]]))


def letterbox(source_wh: tuple[int, int], wh: tuple[int, int]) -> View:
    """The source scaled to fit `wh`, kept in proportion, at the upper left; the rest is border.

    The scaled size is truncated to whole pixels, as in YOLOX, and the matrix holds the true scale
    of each axis, so that boxes return without the truncation's error.
    """
    width, height = source_wh
    ratio = min(wh[0] / width, wh[1] / height)
    inner = (max(1, int(width * ratio)), max(1, int(height * ratio)))
    return View(source_wh, wh, np.array([[inner[0] / width, 0, 0], [0, inner[1] / height, 0.0]]))


def fitted(source_wh: tuple[int, int], side_px: int, multiple: int) -> tuple[View, tuple[int, int]]:
    """The source scaled so that its longer side is `side_px`, on the smallest canvas of whole `multiple`s.

    As `letterbox`, but the canvas follows the shape of the image, so that no work goes into border.

    Returns:
        the view, and the width and height of the part of its picture that shows the source.
    """
    # Multiplied first, so that the longer side is exact and not truncated from 415.99… px.
    inner = (max(1, source_wh[0] * side_px // max(source_wh)), max(1, source_wh[1] * side_px // max(source_wh)))
    wh = (-(-inner[0] // multiple) * multiple, -(-inner[1] // multiple) * multiple)
    scale = (inner[0] / source_wh[0], inner[1] / source_wh[1])
    return View(source_wh, wh, np.array([[scale[0], 0, 0], [0, scale[1], 0.0]])), inner


def flip(source_wh: tuple[int, int], horizontal: bool = True) -> View:
    """The mirror image, left to right or (horizontal=False) top to bottom."""
    width, height = source_wh
    matrix = [[-1.0, 0, width], [0, 1, 0]] if horizontal else [[1.0, 0, 0], [0, -1, height]]
    return View(source_wh, source_wh, np.array(matrix))


def quarter_turn(source_wh: tuple[int, int], turns: int = 1) -> View:
    """The source turned anticlockwise by `turns` quarters, as `numpy.rot90` does."""
    view = View.whole(source_wh)
    for _ in range(turns % 4):
        width, height = view.wh
        view = view.then(View((width, height), (height, width), np.array([[0.0, 1, 0], [-1, 0, width]])))
    return view


def _map_boxes(boxes: box.Boxes, matrix: Matrix) -> box.Boxes:
    corners = boxes.reshape(-1, 2, 2).astype(np.float64) @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(boxes.dtype)


def _map_mask(code: bytes, matrix: Matrix, from_wh: tuple[int, int], to_wh: tuple[int, int]) -> bytes:
    import cv2

    from cytolens import masks

    mask = masks.decode(code, (from_wh[1], from_wh[0])).astype(np.uint8)
    return masks.encode(cv2.warpAffine(mask, _of_centres(matrix), to_wh, flags=cv2.INTER_NEAREST) > 0)


def _of_centres(matrix: Matrix) -> Matrix:
    """The map of pixel centres, which lie half a pixel from the edges that `matrix` maps."""
    centre = matrix.copy()
    centre[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
    return centre


def _block_means(source: NDArray[np.uint8], factors: NDArray[np.intp]) -> NDArray[np.uint8]:
    """A source made smaller by whole factors (along x, y), because bilinear sampling alone would skip pixels."""
    import cv2

    if (factors == 1).all():
        return source
    width, height = (-(-size // int(factor)) for size, factor in zip(source.shape[1::-1], factors, strict=True))
    right, below = width * int(factors[0]) - source.shape[1], height * int(factors[1]) - source.shape[0]
    whole = cv2.copyMakeBorder(source, 0, below, 0, right, cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
