"""YOLOX nano … x: backbone, neck and decoupled head.

Source: Ge et al., "YOLOX: Exceeding YOLO Series in 2021", arXiv 2107.08430. Module names follow
the public checkpoints, so that their state dicts load strictly.

Shapes: images are (B, 3, H, W) float, BGR, 0 … 255, H and W multiples of 32. The raw output is
(B, L, 5 + C): box offsets (4), objectness logit, class logits, for the L = HW/64 + HW/256 + HW/1024
locations, stride 8 first, rows outer. `decode` turns the offsets into pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cytolens.models.regions import RegionHead

STRIDES = (8, 16, 32)
EARLY_STRIDES = (4, 8)  # of the backbone's maps from which attributes are read


@dataclass(frozen=True, slots=True)
class YoloxSize:
    """Depth and width factors of one member of the family, and the side it was published for."""

    depth: float
    width: float
    depthwise: bool
    side_px: int


SIZES = {
    "nano": YoloxSize(0.33, 0.25, True, 416),
    "tiny": YoloxSize(0.33, 0.375, False, 416),
    "s": YoloxSize(0.33, 0.50, False, 640),
    "m": YoloxSize(0.67, 0.75, False, 640),
    "l": YoloxSize(1.0, 1.0, False, 640),
    "x": YoloxSize(1.33, 1.25, False, 640),
}


class ConvUnit(nn.Module):
    """Convolution, batch norm, SiLU."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, groups=groups, bias=False)
        # Both numbers are part of the published networks and are not in their weight files.
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H/stride, W/stride)."""
        return self.act(self.bn(self.conv(x)))


class DepthwiseUnit(nn.Module):
    """A depthwise unit followed by a pointwise one: the 3×3 unit of the nano size."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.dconv = ConvUnit(inputs, inputs, kernel=kernel, stride=stride, groups=inputs)
        self.pconv = ConvUnit(inputs, outputs, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H/stride, W/stride)."""
        return self.pconv(self.dconv(x))


def unit3(inputs: int, outputs: int, depthwise: bool, stride: int = 1) -> nn.Module:
    """The 3×3 unit of this member of the family."""
    kind = DepthwiseUnit if depthwise else ConvUnit
    return kind(inputs, outputs, kernel=3, stride=stride)


class FocusStem(nn.Module):
    """Space to depth by 2, then a 3×3 unit."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv = ConvUnit(12, outputs, kernel=3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, outputs, H/2, W/2)."""
        even, odd = x[..., ::2, :], x[..., 1::2, :]
        return self.conv(torch.cat((even[..., ::2], odd[..., ::2], even[..., 1::2], odd[..., 1::2]), dim=1))


class Bottleneck(nn.Module):
    """1×1 unit, 3×3 unit, optional shortcut; the channels stay."""

    def __init__(self, channels: int, shortcut: bool, depthwise: bool) -> None:
        super().__init__()
        self.conv1 = ConvUnit(channels, channels, kernel=1)
        self.conv2 = unit3(channels, channels, depthwise)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Shape is kept."""
        y = self.conv2(self.conv1(x))
        return x + y if self.shortcut else y


class CspBlock(nn.Module):
    """Two branches of half the channels, one with `count` bottlenecks, joined by a 1×1 unit."""

    def __init__(self, inputs: int, outputs: int, count: int, depthwise: bool, shortcut: bool = False) -> None:
        super().__init__()
        hidden = outputs // 2
        self.conv1 = ConvUnit(inputs, hidden, kernel=1)
        self.conv2 = ConvUnit(inputs, hidden, kernel=1)
        self.conv3 = ConvUnit(2 * hidden, outputs, kernel=1)
        self.m = nn.Sequential(*(Bottleneck(hidden, shortcut, depthwise) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H, W)."""
        return self.conv3(torch.cat((self.m(self.conv1(x)), self.conv2(x)), dim=1))


class SpatialPyramid(nn.Module):
    """Max-pools of 5, 9 and 13 px beside the input, joined by a 1×1 unit."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvUnit(channels, channels // 2, kernel=1)
        self.conv2 = ConvUnit(channels * 2, channels, kernel=1)
        self.m = nn.ModuleList(nn.MaxPool2d(k, stride=1, padding=k // 2) for k in (5, 9, 13))

    def forward(self, x: Tensor) -> Tensor:
        """Shape is kept."""
        y = self.conv1(x)
        return self.conv2(torch.cat([y, *(pool(y) for pool in self.m)], dim=1))


class Darknet(nn.Module):
    """The backbone."""

    def __init__(self, size: YoloxSize) -> None:
        super().__init__()
        c, n, dw = int(64 * size.width), max(round(3 * size.depth), 1), size.depthwise
        self.stem = FocusStem(c)
        self.dark2 = nn.Sequential(unit3(c, 2 * c, dw, 2), CspBlock(2 * c, 2 * c, n, dw, True))
        self.dark3 = nn.Sequential(unit3(2 * c, 4 * c, dw, 2), CspBlock(4 * c, 4 * c, 3 * n, dw, True))
        self.dark4 = nn.Sequential(unit3(4 * c, 8 * c, dw, 2), CspBlock(8 * c, 8 * c, 3 * n, dw, True))
        self.dark5 = nn.Sequential(unit3(8 * c, 16 * c, dw, 2), SpatialPyramid(16 * c), CspBlock(16 * c, 16 * c, n, dw))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, 3, H, W) → maps of stride 4, 8, 16 and 32 with 2c, 4c, 8c and 16c channels."""
        second = self.dark2(self.stem(x))
        third = self.dark3(second)
        fourth = self.dark4(third)
        return second, third, fourth, self.dark5(fourth)


class PathNeck(nn.Module):
    """The backbone with a top-down and a bottom-up path behind it."""

    def __init__(self, size: YoloxSize) -> None:
        super().__init__()
        c, n, dw = int(64 * size.width), round(3 * size.depth), size.depthwise
        self.backbone = Darknet(size)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.lateral_conv0 = ConvUnit(16 * c, 8 * c, kernel=1)
        self.C3_p4 = CspBlock(16 * c, 8 * c, n, dw)
        self.reduce_conv1 = ConvUnit(8 * c, 4 * c, kernel=1)
        self.C3_p3 = CspBlock(8 * c, 4 * c, n, dw)
        self.bu_conv2 = unit3(4 * c, 4 * c, dw, 2)
        self.C3_n3 = CspBlock(8 * c, 8 * c, n, dw)
        self.bu_conv1 = unit3(8 * c, 8 * c, dw, 2)
        self.C3_n4 = CspBlock(16 * c, 16 * c, n, dw)

    def forward(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """(B, 3, H, W) → the backbone's early maps, and maps of stride 8, 16 and 32 with 4c, 8c and 16c channels."""
        second, third, fourth, fifth = self.backbone(x)
        top = self.lateral_conv0(fifth)
        middle = self.reduce_conv1(self.C3_p4(torch.cat((self.upsample(top), fourth), dim=1)))
        out8 = self.C3_p3(torch.cat((self.upsample(middle), third), dim=1))
        out16 = self.C3_n3(torch.cat((self.bu_conv2(out8), middle), dim=1))
        out32 = self.C3_n4(torch.cat((self.bu_conv1(out16), top), dim=1))
        return (second, third), (out8, out16, out32)


class DecoupledHead(nn.Module):
    """Separate branches for class and for box; objectness sits on the box branch."""

    def __init__(self, size: YoloxSize, classes: int) -> None:
        super().__init__()
        c, h, dw = int(64 * size.width), int(256 * size.width), size.depthwise

        def branch() -> nn.Sequential:
            return nn.Sequential(unit3(h, h, dw), unit3(h, h, dw))

        self.cls_convs = nn.ModuleList(branch() for _ in STRIDES)
        self.reg_convs = nn.ModuleList(branch() for _ in STRIDES)
        self.cls_preds = nn.ModuleList(nn.Conv2d(h, classes, 1) for _ in STRIDES)
        self.reg_preds = nn.ModuleList(nn.Conv2d(h, 4, 1) for _ in STRIDES)
        self.obj_preds = nn.ModuleList(nn.Conv2d(h, 1, 1) for _ in STRIDES)
        self.stems = nn.ModuleList(ConvUnit(k * c, h, kernel=1) for k in (4, 8, 16))
        rare = -math.log((1 - 0.01) / 0.01)  # a cell is rare: start the scores at 1 %
        for layer in [*self.cls_preds, *self.obj_preds]:
            nn.init.constant_(layer.bias, rare)  # type: ignore[arg-type]

    def forward(self, maps: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Maps of stride 8, 16, 32 → raw output (B, L, 5 + C)."""
        levels = []
        for i, features in enumerate(maps):
            x = self.stems[i](features)
            box_branch = self.reg_convs[i](x)
            parts = (
                self.reg_preds[i](box_branch),
                self.obj_preds[i](box_branch),
                self.cls_preds[i](self.cls_convs[i](x)),
            )
            levels.append(torch.cat(parts, dim=1).flatten(2))
        return torch.cat(levels, dim=2).permute(0, 2, 1)


class Yolox(nn.Module):
    """A YOLOX detector.

    Args:
        size: "nano", "tiny", "s", "m", "l" or "x".
        classes: number of classes C.
        attributes: number of values of each attribute; none: cells are not described.
        region_head: size of the head that reads attributes, as in `regions.SIZES`.
        told: how many numbers that head is told of each cell, as of `RegionHead`.
    """

    def __init__(
        self,
        *,
        size: str,
        classes: int,
        attributes: Sequence[int] = (),
        region_head: str = "small",
        told: int = 0,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f'unknown YOLOX size "{size}"; allowed: {", ".join(SIZES)}')
        self.backbone = PathNeck(SIZES[size])
        self.head = DecoupledHead(SIZES[size], classes)
        c = int(64 * SIZES[size].width)
        self.attributes = (
            RegionHead(region_head, (2 * c, 4 * c), EARLY_STRIDES, attributes, told) if attributes else None
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → raw output (B, L, 5 + C)."""
        return self.look(images)[0]

    def look(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(B, 3, H, W) → raw output (B, L, 5 + C), and the early maps (of `EARLY_STRIDES`) of the same pass."""
        early, maps = self.backbone(images)
        return self.head(maps), early


def locations(size_hw: tuple[int, int], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Grid cells (L, 2) as x, y, and strides (L,), of an input of H × W px."""
    grids, strides = [], []
    for stride in STRIDES:
        rows, columns = size_hw[0] // stride, size_hw[1] // stride
        y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
        grids.append(torch.stack((x, y), dim=2).reshape(-1, 2))
        strides.append(torch.full((rows * columns,), stride, device=device))
    return torch.cat(grids).float(), torch.cat(strides).float()


def decode(raw: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Raw output → boxes in input px as x_min, y_min, x_max, y_max, shape (B, L, 4).

    A cell of the grid holds no half-cell offset: centre = (t + g)·stride, size = exp(t)·stride.
    """
    grid, stride = locations(size_hw, raw.device)
    centre = (raw[..., :2] + grid) * stride[:, None]
    half = torch.exp(raw[..., 2:4]) * stride[:, None] / 2
    return torch.cat((centre - half, centre + half), dim=-1)
