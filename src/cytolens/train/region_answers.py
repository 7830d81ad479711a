"""What a region network in training says of an image: one network, one view, the stages of `predict` in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cytolens import boxes as box
from cytolens.tasks.region_proposals import AnchorLayout, proposals
from cytolens.tasks.segment import PATCH, SegmentOutput, SoftOutlines
from cytolens.views import View

_AT_ONCE = 256  # regions that are looked at together; it bounds the memory


def layout(network: nn.Module) -> AnchorLayout:
    """Where a network's anchors stand, as prediction knows it."""
    anchors: Any = network.anchors
    return AnchorLayout(tuple(anchors.strides), anchors.scale, tuple(anchors.ratios))


def described_anchors(network: nn.Module) -> dict[str, Any]:
    """A network's anchors as a bundle describes them."""
    anchors: Any = network.anchors
    return {"strides": list(anchors.strides), "scale": anchors.scale, "ratios": list(anchors.ratios)}


@torch.no_grad()
def soft_outlines(network: Any, canvas: NDArray[np.uint8], view: View, output: SegmentOutput) -> SoftOutlines:
    """The cells of one image, before any pixel is decided.

    Args:
        network: a region network, in evaluation.
        canvas: the picture of the image as `tasks.segment.picture` makes it, shape (H, W, 3).
        view: from the image to the picture.
        output: how the answer is read; `views` is not.
    """
    device = next(network.parameters()).device
    images = torch.from_numpy(canvas.transpose(2, 0, 1).copy())[None].to(device).float()
    maps, objectness, deltas = network.trunk(images)
    boxes, _ = proposals(_numbers(objectness[0]), _numbers(deltas[0]), layout(network), view, output)
    scores, moved = _boxes(network, maps, _regions(view.forward_boxes(boxes), device))
    boxes = box.clip(view.back_boxes(moved), *view.source_wh).astype(np.float32)
    best = scores.max(axis=1, initial=0)
    sure = np.flatnonzero((best >= output.score_floor) & box.valid(boxes))
    kept = sure[box.non_maximum_suppression(boxes[sure], best[sure], output.box_nms_iou)][: output.most]
    classes = scores[kept].argmax(axis=1) if len(kept) else np.zeros(0, np.intp)
    regions = _regions(view.forward_boxes(boxes[kept]), device)
    return SoftOutlines(
        (view.source_wh[1], view.source_wh[0]),
        boxes[kept],
        classes.astype(np.intp),
        best[kept],
        scores[kept],
        _patches(network, maps, regions, torch.from_numpy(classes).to(device)),
    )


def _numbers(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.float().cpu().numpy()


def _regions(boxes: NDArray[np.floating], device: torch.device) -> Tensor:
    """Boxes (N, 4) of the only image as regions (N, 5)."""
    corners = torch.from_numpy(np.ascontiguousarray(boxes, np.float32)).to(device)
    return torch.cat([corners.new_zeros(len(corners), 1), corners], dim=1)


def _boxes(network: Any, maps: list[Tensor], regions: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scores (N, K) and boxes (N, 4) in px of the picture."""
    said = [network.boxes(maps, part) for part in regions.split(_AT_ONCE)]
    scores, boxes = (torch.cat(parts) for parts in zip(*said, strict=True))
    return _numbers(scores), _numbers(boxes)


def _patches(network: Any, maps: list[Tensor], regions: Tensor, classes: Tensor) -> NDArray[np.uint8]:
    """Soft masks (N, P, P), 0 … 255."""
    if not len(regions):
        return np.zeros((0, PATCH, PATCH), np.uint8)
    parts = zip(regions.split(_AT_ONCE), classes.split(_AT_ONCE), strict=True)
    values = torch.cat([network.masks(maps, part, named) for part, named in parts])
    return (_numbers(values) * 255).round().astype(np.uint8)
