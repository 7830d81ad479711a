"""Run-length codes of the "start length start length …" kind, and masks given by the numbers of their pixels.

Such a code counts pixels from 1, along rows or along columns; nothing in it says which, so every
function here takes the order as an argument. Positions are numbers from 0 column by column
(x × height + y), the order of COCO's own code, sorted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cytolens import masks
from cytolens.boxes import Boxes
from cytolens.formats.options import Order
from cytolens.images import MAX_PIXELS

Positions = NDArray[np.int64]

_LONGEST_NUMBER = 18  # digits; no image has more pixels
# Positions take eight bytes for each pixel, several times over; a file of a few bytes must not ask for all memory.
_MOST_POSITIONS = 1 << 25


def positions_of_text(text: str, size_wh: tuple[int, int], order: Order) -> Positions:
    """The positions that a "start length …" code names.

    Raises:
        ValueError: a word is no whole number, their count is odd, a length is not positive, or runs are
            not sorted, overlap, leave the image or have more pixels than any cell.
    """
    width, height = _checked(size_wh)
    words = text.split()
    if odd := next((word for word in words if not (word.isascii() and word.isdigit())), None):
        raise ValueError(f'"{odd[:20]}" is not a whole number')
    if long := next((word for word in words if len(word) > _LONGEST_NUMBER), None):
        raise ValueError(f'"{long[:20]}…" is larger than any image')
    if len(words) % 2:
        raise ValueError(f"{len(words)} numbers, but starts and lengths come in pairs")
    numbers = np.array([int(word) for word in words], np.int64).reshape(-1, 2)
    starts, lengths = numbers[:, 0] - 1, numbers[:, 1]
    ends = starts + lengths
    if (wrong := np.flatnonzero(lengths <= 0)).size:
        raise ValueError(f"the run at {starts[wrong[0]] + 1} has the length {lengths[wrong[0]]}")
    if (wrong := np.flatnonzero((starts < 0) | (ends > width * height))).size:
        first = wrong[0]
        raise ValueError(
            f"the run {starts[first] + 1} {lengths[first]} leaves the image of {width} × {height} = {width * height} px"
        )
    if (wrong := np.flatnonzero(starts[1:] < ends[:-1])).size:
        raise ValueError(f"the run at {starts[wrong[0] + 1] + 1} overlaps the one before it, or runs are not sorted")
    if (area := int(lengths.sum())) > _MOST_POSITIONS:
        raise ValueError(f"a mask of {area} px is larger than the {_MOST_POSITIONS} px allowed")
    places = _spelled_out(starts, lengths)
    return places if order == "column" else np.sort(places % width * height + places // width)


def text_of_code(code: bytes, size_wh: tuple[int, int], order: Order) -> str:
    """A mask of COCO's code as "start length …", counted from 1; an empty mask is an empty text.

    Raises:
        ValueError: the code does not describe an image of that size.
    """
    width, height = size_wh
    places = positions_of_code(code, size_wh)
    if order == "row":
        places = np.sort(places % height * width + places // height)
    starts, lengths = _runs(places)
    return " ".join(f"{start + 1} {length}" for start, length in zip(starts.tolist(), lengths.tolist(), strict=True))


def positions_of_code(code: bytes, size_wh: tuple[int, int]) -> Positions:
    """The positions of a mask of COCO's code.

    Raises:
        ValueError: the code does not describe an image of that size.
    """
    runs = masks.to_runs(code)
    if int(runs.sum()) != size_wh[0] * size_wh[1]:
        raise ValueError(f"the mask does not describe an image of {size_wh[0]} × {size_wh[1]} px")
    lengths = runs[1::2]
    return _spelled_out(np.cumsum(runs)[1::2] - lengths, lengths)


def code_of_positions(positions: Positions, size_wh: tuple[int, int]) -> bytes:
    """Positions as a mask of COCO's code."""
    width, height = size_wh
    starts, lengths = _runs(positions)
    ends = np.concatenate([[0], starts + lengths])
    gaps = np.concatenate([starts, [width * height]]) - ends
    runs = np.zeros(2 * len(starts) + 1, np.int64)
    runs[0::2], runs[1::2] = gaps, lengths
    return masks.from_runs(runs, (height, width))


def bounds_of_positions(positions: Positions, height: int) -> Boxes:
    """The tight box of positions as pixel edges, shape (4,); four zeros where there are none."""
    if len(positions) == 0:
        return np.zeros(4)
    x, y = np.divmod(positions[[0, -1]], height)[0], positions % height
    return np.array([x[0], y.min(), x[1] + 1, y.max() + 1], np.float64)


def positions_of_part(part: ArrayLike, x: int, y: int, size_wh: tuple[int, int]) -> Positions:
    """Positions of a boolean array (h, w) whose upper left pixel is (x, y) of the image, inside which it lies."""
    columns, rows = np.nonzero(np.asarray(part, bool).T)
    return (columns + x) * size_wh[1] + rows + y


def _spelled_out(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Positions:
    """All numbers of the runs."""
    before = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)


def _runs(numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and lengths of the runs of consecutive numbers in a sorted array."""
    first = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
    return numbers[first], np.diff(first, append=len(numbers))


def _checked(size_wh: tuple[int, int]) -> tuple[int, int]:
    width, height = size_wh
    if not (width > 0 and height > 0 and width * height <= MAX_PIXELS):
        raise ValueError(f"an image of {width} × {height} px is too large for a mask")
    return width, height
