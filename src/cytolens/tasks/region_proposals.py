"""Proposals of region networks: from scores and moves of anchors, averaged over members, to boxes worth a look.

A region network says of every anchor, a box of fixed size at a fixed place, how much it looks like a cell (its
objectness) and how it had to be moved to fit (its delta). Members of an ensemble that share their anchors are averaged
here, before any box is made, so that no suppression between models is needed.

Sources: Ren et al., "Faster R-CNN", NeurIPS 2015 (anchors, deltas); torchvision's `AnchorGenerator`, `BoxCoder` and
`RegionProposalNetwork.filter_proposals`, whose placing, rounding and order of steps are kept (tested against them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolens import boxes as box
from cytolens.models.region_settings import AnchorLayout
from cytolens.problems import SettingError
from cytolens.tasks.classify import sigmoids
from cytolens.tasks.segment import SegmentOutput
from cytolens.views import View

_GROWTH_MOST = float(np.log(1000 / 16))  # a delta makes an anchor at most 62.5 times as long
_SIDE_LEAST_PX = 1e-3  # boxes with a shorter side are none

Floats = NDArray[np.float32]


def layout_of(described: Mapping[str, Any]) -> AnchorLayout:
    """The layout of anchors that a bundle describes: `strides`, finest first, `scale` and `ratios`.

    Raises:
        SettingError: something is missing, no number, or not positive.
    """
    try:
        strides, ratios = tuple(map(int, described["strides"])), tuple(map(float, described["ratios"]))
        scale = float(described["scale"])
    except (KeyError, TypeError, ValueError) as error:
        raise SettingError(
            f"anchors are described by strides, scale and ratios; got {described} ({type(error).__name__}: {error})"
        ) from None
    if not (strides and ratios and all(number > 0 for number in (*strides, scale, *ratios))):
        raise SettingError(f"anchors need strides, a scale and ratios, all positive; got {described}")
    return AnchorLayout(strides, scale, ratios)


def grids_hw(layout: AnchorLayout, wh: tuple[int, int]) -> list[tuple[int, int]]:
    """Rows and columns of places on each level, for an input of width × height px."""
    return [(-(-wh[1] // stride), -(-wh[0] // stride)) for stride in layout.strides]


def counts(layout: AnchorLayout, wh: tuple[int, int]) -> list[int]:
    """Number of anchors on each level."""
    return [rows * columns * len(layout.ratios) for rows, columns in grids_hw(layout, wh)]


def anchors(layout: AnchorLayout, wh: tuple[int, int]) -> Floats:
    """All anchors for an input of width × height px, shape (A, 4): by level, row, column and ratio, in this order.

    An anchor is centred on the upper left corner of its place, and the corners of those at the origin are rounded to
    whole px, as torchvision has it.
    """
    ratios = np.array(layout.ratios, np.float32)
    return np.concatenate(
        [
            _on_level(stride, np.float32(layout.scale), ratios, grid_hw)
            for stride, grid_hw in zip(layout.strides, grids_hw(layout, wh), strict=True)
        ]
    )


def _on_level(stride: int, scale: np.float32, ratios: Floats, grid_hw: tuple[int, int]) -> Floats:
    heights = np.sqrt(ratios)
    half_w, half_h = (1 / heights) * (scale * stride) / 2, heights * (scale * stride) / 2
    at_origin = np.round(np.stack([-half_w, -half_h, half_w, half_h], axis=1))
    y, x = np.indices(grid_hw, np.float32) * np.float32(stride)
    places = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)
    return (places + at_origin).reshape(-1, 4).astype(np.float32)


def decoded(deltas: Floats, anchors: Floats) -> Floats:
    """Anchors (N, 4) moved and resized by deltas (N, 4).

    A delta is the way of the centre in widths and heights of the anchor, then the logarithm of the growth of both.
    """
    centre_size = box.to_centre_size(anchors)
    centres = centre_size[:, :2] + deltas[:, :2] * centre_size[:, 2:]
    sizes_wh = centre_size[:, 2:] * np.exp(np.minimum(deltas[:, 2:], np.float32(_GROWTH_MOST)))
    return box.from_centre_size(np.concatenate([centres, sizes_wh], axis=1)).astype(np.float32)


class Mean:
    """The weighted mean of arrays that come one after the other, of which none is kept."""

    def __init__(self) -> None:
        self._sum: NDArray[np.floating] | None = None
        self._weight = 0.0

    def add(self, values: NDArray[np.floating], weight: float = 1.0) -> None:
        """One more array, of the shape of those before."""
        weighted = values * np.asarray(weight, values.dtype)
        if self._sum is None:
            self._sum = weighted
        else:
            self._sum += weighted
        self._weight += weight

    def value(self) -> NDArray[np.floating]:
        """The mean of what came so far.

        Raises:
            ValueError: nothing came, or only with weight 0.
        """
        if self._sum is None or self._weight <= 0:
            raise ValueError("there is no mean of nothing")
        return self._sum / np.asarray(self._weight, self._sum.dtype)


def proposals(
    objectness: Floats, deltas: Floats, layout: AnchorLayout, view: View, output: SegmentOutput
) -> tuple[Floats, Floats]:
    """The boxes that are worth a look, best first: in px of the image, shape (N, 4), and their objectness 0 … 1.

    On each level the best anchors are taken, decoded, brought to the image and cut to it; those without an area or
    below the floor go; then suppression within the level. At last the best of all levels are kept.

    Args:
        objectness: logits of all anchors, shape (A,).
        deltas: shape (A, 4).
        layout: where the anchors stand.
        view: from the image to the network's input.
        output: proposals_before, proposal_floor, proposal_nms_iou and proposals_kept.

    Raises:
        ValueError: there are not as many logits or deltas as anchors.
    """
    placed = anchors(layout, view.wh)
    if objectness.shape != (len(placed),) or deltas.shape != placed.shape:
        raise ValueError(
            f"{len(placed)} anchors stand on an input of {view.wh} px; got {objectness.shape} logits and "
            f"{deltas.shape} deltas"
        )
    ends = np.cumsum(counts(layout, view.wh))
    found = [
        _of_level(objectness[start:end], deltas[start:end], placed[start:end], view, output)
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]
    return _best(found, output.proposals_kept)


def _of_level(
    objectness: Floats, deltas: Floats, placed: Floats, view: View, output: SegmentOutput
) -> tuple[Floats, Floats]:
    best = np.argsort(-objectness, kind="stable")[: output.proposals_before]
    scores = sigmoids(objectness[best])
    best, scores = best[scores >= output.proposal_floor], scores[scores >= output.proposal_floor]
    boxes = box.clip(view.back_boxes(decoded(deltas[best], placed[best])), *view.source_wh)
    whole = np.isfinite(boxes).all(axis=1) & (box.sizes_wh(boxes) >= _SIDE_LEAST_PX).all(axis=1)
    boxes, scores = boxes[whole], scores[whole]
    keep = box.non_maximum_suppression(boxes, scores, output.proposal_nms_iou)
    return boxes[keep], scores[keep]


def joined(groups: Sequence[tuple[Floats, Floats]], output: SegmentOutput) -> tuple[Floats, Floats]:
    """The proposals (boxes, scores) of networks whose anchors differ as one list, best first.

    Their anchors cannot be averaged, so each group has made its own proposals; of two that overlap by more than
    `proposal_nms_iou`, whatever group they are from, the better one stays. One group alone is returned as it is.
    """
    if len(groups) == 1:
        return groups[0]
    boxes, scores = _best(groups, sum(len(told) for _, told in groups))
    keep = box.non_maximum_suppression(boxes, scores, output.proposal_nms_iou)[: output.proposals_kept]
    return boxes[keep], scores[keep]


def _best(found: Sequence[tuple[Floats, Floats]], most: int) -> tuple[Floats, Floats]:
    """Several lists as one, best first; equal scores stay in the order of the lists."""
    boxes, scores = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.argsort(-scores, kind="stable")[:most]
    return boxes[order], scores[order]
