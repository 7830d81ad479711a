"""A region network as three ONNX files, so that several networks can be asked together at each stage.

Float32; the numbers of images, of regions, and the sides (multiples of 32) stay free:

* trunk: ``images`` (B, H, W, 3), uint8 RGB → ``map_0`` … ``map_4``, finest first, ``objectness`` (B, A), logits, and
  ``deltas`` (B, A, 4) of the anchors of the network's `AnchorLayout`;
* boxes: ``map_0`` … ``map_3``, ``regions`` (N, 5), image and box in px of the input → ``scores`` (N, K) and
  ``boxes`` (N, 4);
* masks: ``map_0`` … ``map_3``, ``regions`` (N, 5), ``classes`` (N,), int64 → ``masks`` (N, 28, 28), probabilities.

What the maps hold is the network's own affair; their channels differ between families.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from cytolens.models.region_network import RegionNetwork
from cytolens.tasks.segment import BOXES_FILE, MASKS_FILE, TRUNK_FILE
from cytolens.train.export import export_graph

MAPS = tuple(f"map_{level}" for level in range(5))
_READ = MAPS[:4]  # what regions are read from


class TrunkGraph(nn.Module):
    """Everything that is seen once per image."""

    def __init__(self, network: RegionNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, H, W, 3) uint8 RGB → five maps, objectness (B, A), deltas (B, A, 4)."""
        maps, objectness, deltas = self.network.trunk(images.permute(0, 3, 1, 2).float())
        return *maps, objectness, deltas


class BoxesGraph(nn.Module):
    """What is in regions."""

    def __init__(self, network: RegionNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, map_0: Tensor, map_1: Tensor, map_2: Tensor, map_3: Tensor, regions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Maps and regions (N, 5) → scores (N, K), boxes (N, 4)."""
        return self.network.boxes((map_0, map_1, map_2, map_3), regions)


class MasksGraph(nn.Module):
    """Which part of regions is the cell."""

    def __init__(self, network: RegionNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, map_0: Tensor, map_1: Tensor, map_2: Tensor, map_3: Tensor, regions: Tensor, classes: Tensor
    ) -> Tensor:
        """Maps, regions (N, 5) and their classes (N,) → probabilities (N, 28, 28)."""
        return self.network.masks((map_0, map_1, map_2, map_3), regions, classes)


def export_region_network(network: RegionNetwork, folder: Path) -> None:
    """Write `trunk.onnx`, `boxes.onnx` and `masks.onnx` into a folder that is there; the network stays as it is."""
    network = copy.deepcopy(network).eval()
    batch = torch.export.Dim("batch", min=1)
    free = {0: batch, 1: torch.export.Dim("height") * 32, 2: torch.export.Dim("width") * 32}
    # Unequal sides, both of several strides: export takes equal or single ones for constants.
    images = torch.zeros(2, 96, 128, 3, dtype=torch.uint8)
    export_graph(TrunkGraph(network), {"images": (images, free)}, folder / TRUNK_FILE, [*MAPS, "objectness", "deltas"])
    inputs: dict[str, tuple[Tensor, Mapping[int, object]]] = {}
    for name, channels, stride in zip(_READ, network.map_channels, network.strides, strict=True):
        sides = {2: torch.export.Dim(f"rows_{name}", min=1), 3: torch.export.Dim(f"columns_{name}", min=1)}
        inputs[name] = (torch.zeros(2, channels, 384 // stride, 512 // stride), {0: batch, **sides})
    # A region for each map, so that nothing is taken for constant.
    corners = [[0.0, 8, 8, 28, 30], [1, 16, 4, 70, 66], [1, 30, 30, 160, 150], [0, 2, 2, 370, 360], [1, 0, 0, 512, 384]]
    number = torch.export.Dim("regions", min=0)
    inputs["regions"] = (torch.tensor(corners), {0: number})
    export_graph(BoxesGraph(network), inputs, folder / BOXES_FILE, ["scores", "boxes"])
    inputs["classes"] = (torch.zeros(len(corners), dtype=torch.int64), {0: number})
    export_graph(MasksGraph(network), inputs, folder / MASKS_FILE, ["masks"])
