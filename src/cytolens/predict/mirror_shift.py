"""How far beside its own coordinates a region network looks: measured on pictures and their mirror images.

A network that samples every second pixel may take what it sees at x for what lies at x + b. In the mirror image it errs
to the other side, so that its answers for the two, mirrored onto each other, lie 2·b apart. The shift that brings them
together, −b along each axis, is kept with the model, and every view is asked with its regions moved by it (see
`region_member.shown`). A network that follows mirroring by itself has the shift 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cytolens import boxes as box
from cytolens.predict.region_member import Floats, Pixels, Seen, shown, turned_back
from cytolens.tasks.segment import SegmentInput
from cytolens.views import View, flip

_MOST_PX = 3.0  # shifts are looked for up to here, either way
_STEP_PX = 0.25  # of the first search
_FINE_PX = 0.005  # how finely the best one is told
_BETTER = 0.1  # by what share the answers must come closer for a shift to be believed
_SAME = 1e-10  # mean square difference below which answers are the same, as far as float32 tells


class Network(Protocol):
    """What is asked of a region network; `RegionMember` has it."""

    input: SegmentInput

    def trunk(self, canvas: Pixels) -> Seen:
        """What the network sees in a picture (H, W, 3)."""
        ...

    def boxes(self, maps: Sequence[Floats], regions: Floats) -> tuple[Floats, Floats]:
        """Class scores (N, K) and boxes (N, 4) for regions (N, 4)."""
        ...

    def masks(self, maps: Sequence[Floats], regions: Floats, classes: NDArray[np.intp]) -> Floats:
        """Soft masks (N, P, P) of the classes (N)."""
        ...


def measure_mirror_shift(
    member: Network, pixels: Pixels | None = None, regions: Floats | None = None
) -> tuple[float, float]:
    """The shift of a network's coordinates along x and y in px of its input; 0 where it follows mirroring.

    What stages 2 and 3 say of the same regions is compared between an image and its mirror image: class scores, boxes
    (in sides of the region) and soft masks. The shift at which they differ least, in the mean square, is taken if it
    brings them closer by a tenth at least and is less than 3 px; else the network's asymmetry is no shift.

    Args:
        member: the network; its own `shift_px`, where it has one, plays no part.
        pixels: an image with things to see, shape (H, W, 3); None: a drawn one.
        regions: in px of the image, shape (N, 4), best about things; None: the drawn ones, or a lattice of squares.
    """
    if pixels is None:
        pixels, drawn = _drawn()
        regions = drawn if regions is None else regions
    if regions is None:
        regions = _lattice((pixels.shape[1], pixels.shape[0]))
    size_wh = (pixels.shape[1], pixels.shape[0])
    plain = View.whole(size_wh)
    x, y = (
        _best_shift(_Pair(member, pixels, regions, (plain, flip(size_wh, horizontal=axis == 0))), axis)
        for axis in (0, 1)
    )
    return x, y


class _Pair:
    """What a network says of two views of an image, at any shift of its coordinates."""

    def __init__(self, member: Network, pixels: Pixels, regions: Floats, turns: Sequence[View]) -> None:
        self._member, self._pixels, self._regions, self._turns = member, pixels, regions, turns
        self._maps = [member.trunk(shown(pixels, turn, member.input, (0.0, 0.0))[0]).maps for turn in turns]
        self._classes = self._said(0, (0.0, 0.0))[0].argmax(axis=1)

    def _said(self, turn: int, shift_px: tuple[float, float]) -> tuple[Floats, Floats, View]:
        _, view = shown(self._pixels, self._turns[turn], self._member.input, shift_px)
        scores, boxes = self._member.boxes(self._maps[turn], view.forward_boxes(self._regions))
        return scores, view.back_boxes(boxes), view

    def difference(self, shift_px: tuple[float, float]) -> float:
        """The mean square difference of the scores, plus that of the boxes, plus that of the masks."""
        answers: list[list[Floats]] = []
        sides = np.sqrt(box.areas(self._regions))[:, None]
        for turn in range(2):
            scores, boxes, view = self._said(turn, shift_px)
            masks = self._member.masks(self._maps[turn], view.forward_boxes(self._regions), self._classes)
            answers.append([scores, (boxes / sides).astype(np.float32), turned_back(masks, view)])
        return sum(float(np.mean((a - b).astype(np.float64) ** 2)) for a, b in zip(*answers, strict=True))


def _best_shift(pair: _Pair, axis: int) -> float:
    """The shift along one axis at which the two views differ least: a lattice first, then ever smaller steps."""

    def difference(shift: float) -> float:
        return pair.difference((shift, 0.0) if axis == 0 else (0.0, shift))

    if (unmoved := difference(0.0)) <= _SAME:
        return 0.0
    steps = round(_MOST_PX / _STEP_PX)
    told = {shift: difference(shift) for shift in np.arange(-steps, steps + 1) * _STEP_PX}
    best, step = min(told, key=lambda shift: (told[shift], abs(shift))), _STEP_PX / 2
    if abs(best) >= _MOST_PX:
        return 0.0  # still falling at the end of the lattice: no shift explains the difference
    while step >= _FINE_PX:
        told |= {shift: difference(shift) for shift in (best - step, best + step)}
        best, step = min(told, key=lambda shift: (told[shift], abs(shift))), step / 2
    return round(float(best), 3) if told[best] < (1 - _BETTER) * unmoved else 0.0


def _drawn(side_px: int = 256, seed: int = 0) -> tuple[Pixels, Floats]:
    """An image of dark, soft-edged discs on a lattice, all of different sizes and colours, and a square about each."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side_px, :side_px] + 0.5
    pixels, squares = np.full((side_px, side_px, 3), 225.0), []
    for row in range(5):
        for column in range(5):
            middle = (np.array([column, row]) + 0.5) * side_px / 5 + random.uniform(-6, 6, 2)
            radius, colour = random.uniform(8, 18), random.uniform(30, 160, 3)
            cover = 1 / (1 + np.exp((np.hypot(x - middle[0], y - middle[1]) - radius) / 0.7))
            pixels += cover[..., None] * (colour - pixels)
            half = radius * random.uniform(1.0, 1.3)
            squares.append([*(middle - half), *(middle + half)])
    return np.round(pixels).astype(np.uint8), np.array(squares, np.float32)


def _lattice(size_wh: tuple[int, int], side_px: float = 32.0) -> Floats:
    """Squares that lie side by side over an image, at most eight along each axis."""
    counts = [int(np.clip(size // side_px, 1, 8)) for size in size_wh]
    x, y = ((np.arange(count) + 0.5) * size / count for count, size in zip(counts, size_wh, strict=True))
    middles = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    side = np.full((len(middles), 2), min(side_px, *size_wh), np.float32)
    return box.from_centre_size(np.concatenate([middles, side], axis=1)).astype(np.float32)
