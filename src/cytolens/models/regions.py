"""Attributes of cells from the maps of a detector: what its early layers saw at each box, read by a head of its own.

The head takes maps of several strides and regions, which are boxes in px of the network's input with the number of
their image, float throughout. RoIAlign, half-pixel aligned and with two samples per bin and axis, brings each region
to the same bins on every map; convolutions and linear layers make features of them. Bins hide how large a cell is,
so the side of the region goes to the last layer, beside the features: in px, or in red cells of the same field, which
is the same at any magnification. A head of the second kind is told that side, since regions do not show it.

Source: He et al., "Mask R-CNN", ICCV 2017 (RoIAlign); the size "attridet" has the shape of the head that
LeukemiaAttri's authors describe (MICCAI 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from cytolens.models.attributes import AttributeHeads

_SAMPLES = 2  # per bin and axis
_SLOPE = 0.1  # of leaky ReLU below 0
_SIDE_PX = 64.0  # a region of this side counts as 0 for the last layer, twice as large as 1


@dataclass(frozen=True, slots=True)
class RegionSize:
    """The shape of a head: bins (rows, columns), channels of its convolutions, widths of its linear layers."""

    bins_hw: tuple[int, int]
    channels: tuple[int, ...]
    hidden: tuple[int, ...]
    dropout: float


SIZES = {
    "small": RegionSize((12, 12), (48, 32), (64,), 0.2),
    "attridet": RegionSize((24, 30), (128, 64, 64), (1024, 256), 0.5),
}


class RegionHead(nn.Module):
    """Reads attributes from maps at regions.

    Args:
        size: "small" or "attridet".
        channels: of each map.
        strides: of each map, in px of the network's input.
        values: number of values of each attribute, in order.
        told: how many numbers the last layer is told of each cell; 0: it takes the side of the region.
    """

    def __init__(
        self, size: str, channels: Sequence[int], strides: Sequence[int], values: Sequence[int], told: int = 0
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f'unknown head of attributes "{size}"; allowed: {", ".join(SIZES)}')
        shape = SIZES[size]
        self.bins_hw, self.channels, self.strides = shape.bins_hw, tuple(channels), tuple(strides)
        layers: list[nn.Module] = []
        width, (rows, columns) = sum(channels), shape.bins_hw
        for outputs in shape.channels:
            layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.LeakyReLU(_SLOPE), nn.MaxPool2d(2)]
            width, rows, columns = outputs, rows // 2, columns // 2
        layers.append(nn.Flatten())
        width *= rows * columns
        for outputs in shape.hidden:
            layers += [nn.Linear(width, outputs), nn.LeakyReLU(_SLOPE), nn.Dropout(shape.dropout)]
            width = outputs
        self.features = nn.Sequential(*layers)
        for layer in self.features:
            # PyTorch's own draw makes each layer's signal weaker; after four of them nothing is learnt for long.
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, a=_SLOPE, nonlinearity="leaky_relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.told = told
        self.heads = AttributeHeads(width + (told or 1), values)

    def pooled(self, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
        """What the maps (B, C, H / stride, W / stride) hold at regions (N, 5), shape (N, ΣC, rows, columns)."""
        # Half precision would place boxes to a few pixels only, so this step has 32 bits under any arithmetic.
        parts = [
            roi_align(one.float(), regions.float(), self.bins_hw, 1 / stride, _SAMPLES, aligned=True)
            for one, stride in zip(maps, self.strides, strict=True)
        ]
        return torch.cat(parts, dim=1)

    def forward(
        self,
        maps: Sequence[Tensor],
        regions: Tensor,
        sides_px: Tensor | None = None,
        scales: Tensor | None = None,
    ) -> Tensor:
        """The logits (N, ΣV) of the attributes of the cells at some regions.

        Args:
            maps: of each stride, shape (B, C, H / stride, W / stride).
            regions: number of the image, x_min, y_min, x_max, y_max in px of the input, shape (N, 5).
            sides_px: the root of each cell's area in px of the input as prediction shows the field, shape (N,);
                None: that of the region. Training varies the scale of fields, which says nothing of a cell's size.
            scales: what the last layer is told of each cell in place of the side, shape (N, told).

        Raises:
            ValueError: the head is told something of cells, and nothing was given; or the reverse.
        """
        if (scales is None) == bool(self.told):
            raise ValueError(f"the head is told {self.told} numbers of each cell; given: {scales is not None}")
        features = self.features(self.pooled(maps, regions))
        if scales is None:
            if sides_px is None:
                sides_px = (regions[:, 3:5] - regions[:, 1:3]).prod(dim=1).clamp(min=1).sqrt()
            scales = torch.log2(sides_px.float().clamp(min=1) / _SIDE_PX)[:, None]
        return self.heads(torch.cat((features, scales.to(features.dtype)), dim=1))


class _ScaledGradient(torch.autograd.Function):
    """The identity, with its gradient multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:  # type: ignore[override]
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient * ctx.factor, None


def with_gradient(maps: Sequence[Tensor], factor: float) -> list[Tensor]:
    """The same maps; what is learnt from them reaches the layers below times a factor.

    Args:
        maps: any tensors.
        factor: 0: they are detached; 1: they are as they were.
    """
    if factor == 0:
        return [one.detach() for one in maps]
    return [_ScaledGradient.apply(one, factor) for one in maps]  # type: ignore[misc]


def as_regions(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes of each image of a batch, (G, 4) each, as regions of the batch, shape (ΣG, 5)."""
    numbers = [torch.full((len(one), 1), float(image), device=one.device) for image, one in enumerate(boxes)]
    return torch.cat([torch.cat((number, one.float()), dim=1) for number, one in zip(numbers, boxes, strict=True)])
