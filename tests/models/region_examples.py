"""Small region networks, and pictures for them with cells whose outlines are known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cytolens.models import catalog
from cytolens.models.region_network import RegionNetwork
from cytolens.models.region_settings import Family, RegionSettings

SMALL = RegionSettings(channels=16, hidden=24, mask_layers=2)
CLASSES = 3


def small_network(family: Family, backbone: str = "resnet18", seed: int = 0, **options: Any) -> RegionNetwork:
    """A network with freshly drawn weights, the same each time, and norms that have seen data."""
    torch.manual_seed(seed)
    network = catalog.region_network(family, backbone, CLASSES, **{"settings": SMALL, **options})
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.3, 0.8)  # timm has noughts in some, so that blocks begin as nothing
    return network


def pictures(count: int, height: int = 64, width: int = 96, seed: int = 0) -> Tensor:
    """Noise, (count, 3, height, width), 0 … 255."""
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 255


def cells(boxes: list[list[int]], labels: list[int], height: int = 64, width: int = 96) -> dict[str, Tensor]:
    """The truth of one picture: an ellipse in each box."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        inside = ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 <= 1
        masks[number] = inside.to(torch.uint8)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": masks,
    }


def batch() -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Two pictures that are not square; the second has no cell."""
    return pictures(2), [cells([[8, 6, 40, 30], [50, 20, 90, 60]], [0, 2]), cells([], [])]


def some_regions(count: int, images: int, height: int, width: int) -> Tensor:
    """Regions of all sizes in pictures of this size, shape (count, 5)."""
    generator = torch.Generator().manual_seed(count)
    side = torch.tensor([width, height]).float()
    first = torch.rand(count, 2, generator=generator) * side * 0.8
    last = torch.minimum(first + 4 + torch.rand(count, 2, generator=generator) * side, side)
    return torch.cat((torch.randint(0, images, (count, 1), generator=generator).float(), first, last), dim=1)
