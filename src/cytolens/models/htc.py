"""Hybrid Task Cascade: a cascade whose mask heads build on each other, and that sees what kind of tissue is around.

Source: Chen et al., "Hybrid Task Cascade for Instance Segmentation", CVPR 2019. Its semantic branch learnt from maps of
surroundings that cells do not have; here it learns which class of cell each pixel belongs to, or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads

from cytolens.models.cascade import CascadeMaskRcnn
from cytolens.models.region_heads import BOX_BINS, MASK_BINS, BoxHead, MaskHead, Samples, Target, canvas_hw
from cytolens.models.region_pooling import pooled

SEMANTIC_WEIGHT = 0.2
_FUSED = 1  # the level of the pyramid on which the branch joins the others: the second finest
_CONVOLUTIONS = 4


class SemanticBranch(nn.Module):
    """Names every place of the second finest map, and gives the features that it is named by.

    Args:
        channels: of each map.
        classes: K, without the background.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.sides = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(4))
        self.body = MaskRCNNHeads(channels, (channels,) * _CONVOLUTIONS, 1)
        self.features = nn.Conv2d(channels, channels, 1)
        self.names = nn.Conv2d(channels, classes + 1, 1)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Four maps, finest first → features (B, C, H₁, W₁) and logits (B, 1 + K, H₁, W₁) of the second."""
        total: Tensor | None = None
        for level, (side, one) in enumerate(zip(self.sides, maps, strict=True)):
            if level < _FUSED:
                one = F.avg_pool2d(one, 2 ** (_FUSED - level))
            elif level > _FUSED:
                one = F.interpolate(one, scale_factor=2.0 ** (level - _FUSED), mode="bilinear", align_corners=False)
            seen = F.relu(side(one))
            total = seen if total is None else total + seen
        assert total is not None
        body = self.body(total)
        return F.relu(self.features(body)), self.names(body)


class HybridTaskCascade(CascadeMaskRcnn):
    """A region network of three stages with mask information flow; its arguments are those of `RegionNetwork`.

    Mask heads are taught on regions that the box head of the same stage has corrected (interleaved), and each adds to
    its bins what the one before saw. The features of the semantic branch are added to the bins of all heads.
    The second map of `trunk` carries them behind the pyramid's own channels, so that they are made once per image.
    """

    def __init__(self, backbone: str, classes: int, **options: Any) -> None:
        super().__init__(backbone, classes, **options)
        channels = self.settings.channels
        self.semantic = SemanticBranch(channels, classes)
        self.flows = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(len(self.mask_heads) - 1))
        self.map_channels = tuple(channels * (2 if level == _FUSED else 1) for level in range(len(self.strides)))

    def trunk(self, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """As `RegionNetwork.trunk` says; the second map carries the features of the semantic branch, too."""
        maps, objectness, deltas, _ = self._seen(images)
        return maps, objectness, deltas

    def _seen(self, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        maps = self.maps(images)
        features, names = self.semantic(maps[: len(self.strides)])
        answers = self.rpn.answers(maps)
        maps[_FUSED] = torch.cat((maps[_FUSED], features), dim=1)
        return maps, *answers, names

    def for_boxes(self, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
        """What box heads read of regions (N, 5), shape (N, C, 7, 7)."""
        return self._read(maps, regions, BOX_BINS)

    def for_masks(self, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
        """What mask heads read of regions (N, 5), shape (N, C, 14, 14)."""
        return self._read(maps, regions, MASK_BINS)

    def _read(self, maps: Sequence[Tensor], regions: Tensor, bins: int) -> Tensor:
        channels, aligned = self.settings.channels, self.settings.aligned
        own = [one[:, :channels] for one in maps[: len(self.strides)]]
        semantic = maps[_FUSED][:, channels:]
        stride = self.strides[_FUSED : _FUSED + 1]
        return pooled(own, regions, self.strides, bins, aligned) + pooled([semantic], regions, stride, bins, aligned)

    def mask_logits(self, bins: Tensor, stages: int) -> list[Tensor]:
        """The logits (N, 1 + K, 28, 28) of the first stages by bins (N, C, 14, 14); each sees what the last saw."""
        drawn: list[Tensor] = []
        shown = bins
        for stage in range(stages):
            head = self.mask_heads[stage]
            assert isinstance(head, MaskHead)
            features = head.head(shown)
            drawn.append(head.predictor(features).float())
            if stage + 1 < stages:
                shown = bins + F.relu(self.flows[stage](features))
        return drawn

    def taught_masks(
        self, head: BoxHead, samples: Samples, proposals: list[Tensor], targets: Sequence[Target]
    ) -> Samples:
        """The regions that teach the mask head of a stage: its box head's, corrected and drawn anew."""
        return head.sampled(proposals, targets)

    def losses(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """As `RegionNetwork.losses` says, and `semantic`, the cross-entropy per place of the second map, weighted."""
        maps, objectness, deltas, names = self._seen(images)
        truth = semantic_truth(targets, self.strides[_FUSED], canvas_hw(maps, self.strides))
        semantic = SEMANTIC_WEIGHT * F.cross_entropy(names.float(), truth)
        return {**self.stage_losses(maps, objectness, deltas, targets), "semantic": semantic}


def semantic_truth(targets: Sequence[Target], stride: int, size_hw: tuple[int, int]) -> Tensor:
    """The class of the cell at each place of a map, from 1 on, 0: none, shape (B, H / stride, W / stride), int64.

    Where cells overlap, the last of them counts. A place stands for the pixel in its middle (of four, the lower right).
    """
    height, width = size_hw
    maps = []
    for target in targets:
        labels, masks = target["labels"], target["masks"][:, stride // 2 :: stride, stride // 2 :: stride] > 0
        empty = torch.zeros(height // stride, width // stride, dtype=torch.int64, device=labels.device)
        for label, mask in zip(labels, masks, strict=True):
            empty = torch.where(mask, label.long() + 1, empty)
        maps.append(empty)
    return torch.stack(maps)
