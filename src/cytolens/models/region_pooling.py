"""From regions to bins: each region is read from the map whose stride suits its size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

_SAMPLES = 2  # per bin and axis
_CELLS = 14  # a region of fewer places than twice this, along its side, is read from this map and not from a coarser


def levels_of(regions: Tensor, strides: Sequence[int]) -> Tensor:
    """Which map each region (N, 5) is read from, shape (N,), int64; 0 is the finest.

    Source: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017, equation 1: sides from 224 px on
    are read from the map of stride 16, and so on by powers of two. The choice follows the strides.
    """
    side_px = ((regions[:, 3] - regions[:, 1]) * (regions[:, 4] - regions[:, 2])).clamp(min=0).sqrt()
    level = torch.floor(torch.log2(side_px / (_CELLS * strides[0])) + 1e-6)
    return level.clamp(0, len(strides) - 1).to(torch.int64)


def pooled(maps: Sequence[Tensor], regions: Tensor, strides: Sequence[int], bins: int, aligned: bool) -> Tensor:
    """What the maps hold at regions, shape (N, C, bins, bins), float32.

    Args:
        maps: finest first, shape (B, C, H / stride, W / stride).
        regions: number of the image, x_min, y_min, x_max, y_max in px of the input, shape (N, 5).
        strides: of these maps.
        bins: per axis.
        aligned: whether the value of a map's place stands for its middle (else for its upper left).
    """
    regions = regions.float()
    levels = levels_of(regions, strides)
    parts: list[Tensor] = []
    for level, (one, stride) in enumerate(zip(maps, strides, strict=True)):
        members = torch.nonzero(levels == level)[:, 0]
        # Half precision would place boxes to a few pixels only, so this step has 32 bits under any arithmetic.
        parts.append(roi_align(one.float(), regions[members], (bins, bins), 1 / stride, _SAMPLES, aligned))
    # The parts stand level by level; each region finds its own by the number of regions that stand before it.
    chosen = (levels[:, None] == torch.arange(len(strides), device=levels.device)).to(torch.int64)
    before = torch.cumsum(chosen.sum(dim=0), dim=0) - chosen.sum(dim=0)
    place = ((torch.cumsum(chosen, dim=0) - 1 + before) * chosen).sum(dim=1)
    return torch.cat(parts)[place]
