"""Cascade Mask R-CNN: three box heads, each taught on the regions that the one before has corrected.

Source: Cai and Vasconcelos, "Cascade R-CNN: High Quality Object Detection and Instance Segmentation", IEEE TPAMI 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from cytolens.models.region_heads import (
    BoxHead,
    MaskHead,
    Samples,
    Target,
    canvas_hw,
    clipped,
    mask_loss,
    of_classes,
)
from cytolens.models.region_network import RegionNetwork

STAGE_WEIGHTS = (1.0, 0.5, 0.25)
STAGE_IOUS = (0.5, 0.6, 0.7)
STAGE_SPREADS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))


class CascadeMaskRcnn(RegionNetwork):
    """A region network of three stages; its arguments are those of `RegionNetwork`.

    The corrections are the same for all classes. Class logits are averaged over the stages before the softmax, masks
    after the sigmoid; the box is that of the last stage.
    """

    def __init__(self, backbone: str, classes: int, **options: Any) -> None:
        super().__init__(backbone, classes, **options)
        beta = 1.0 if self.settings.box_beta is None else self.settings.box_beta
        self.box_heads = nn.ModuleList(
            BoxHead(classes, self.settings, iou=iou, spreads=spreads, by_class=False, beta=beta)
            for iou, spreads in zip(STAGE_IOUS, STAGE_SPREADS, strict=True)
        )
        self.mask_heads = nn.ModuleList(MaskHead(classes, self.settings) for _ in STAGE_IOUS)

    def boxes(self, maps: Sequence[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        """As `RegionNetwork.boxes` says."""
        size_hw = canvas_hw(maps, self.strides)
        total: Tensor | None = None
        for head in self._heads():
            logits, deltas = head(self.for_boxes(maps, regions))
            boxes = clipped(head.decoded(deltas, regions[:, 1:])[:, 0], size_hw)
            regions = torch.cat((regions[:, :1].float(), boxes), dim=1)
            total = logits if total is None else total + logits
        assert total is not None
        return (total / len(self.box_heads)).softmax(dim=1)[:, 1:], regions[:, 1:]

    def masks(self, maps: Sequence[Tensor], regions: Tensor, classes: Tensor) -> Tensor:
        """As `RegionNetwork.masks` says."""
        drawn = self.mask_logits(self.for_masks(maps, regions), len(self.mask_heads))
        return torch.stack([of_classes(logits, classes).sigmoid() for logits in drawn]).mean(dim=0)

    def mask_logits(self, bins: Tensor, stages: int) -> list[Tensor]:
        """The logits (N, 1 + K, 28, 28) of the first stages by bins (N, C, 14, 14)."""
        return [head(bins) for head in list(self.mask_heads)[:stages]]

    def losses(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """As `RegionNetwork.losses` says; the stages' losses are added, each with its weight."""
        return self.stage_losses(*self.trunk(images), targets)

    def stage_losses(
        self, maps: Sequence[Tensor], objectness: Tensor, deltas: Tensor, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """The losses of the proposals and of all stages, by what `trunk` gave."""
        zero = objectness.new_zeros(())
        losses = {"class": zero, "box": zero, "mask": zero, **self.rpn.losses(maps, objectness, deltas, targets)}
        proposals = self.rpn.proposals(maps, objectness, deltas)
        for stage, (head, weight) in enumerate(zip(self._heads(), STAGE_WEIGHTS, strict=True)):
            samples = head.sampled(proposals, targets)
            logits, corrections = head(self.for_boxes(maps, samples.regions))
            name, box = head.losses(logits, corrections, samples)
            proposals = corrected(head, samples, corrections, targets, canvas_hw(maps, self.strides))
            drawn = self.taught_masks(head, samples, proposals, targets).on_cells()
            mask = self._mask_loss(maps, drawn, targets, stage)
            for key, value in (("class", name), ("box", box), ("mask", mask)):
                losses[key] = losses[key] + weight * value
        return losses

    def taught_masks(
        self, head: BoxHead, samples: Samples, proposals: list[Tensor], targets: Sequence[Target]
    ) -> Samples:
        """The regions that teach the mask head of a stage: here those that taught its box head."""
        return samples

    def _mask_loss(self, maps: Sequence[Tensor], drawn: Samples, targets: Sequence[Target], stage: int) -> Tensor:
        logits = self.mask_logits(self.for_masks(maps, drawn.regions), stage + 1)[-1]
        return mask_loss(logits, drawn, targets, self.settings.aligned)

    def _heads(self) -> list[BoxHead]:
        return [cast(BoxHead, head) for head in self.box_heads]


def corrected(
    head: BoxHead, samples: Samples, corrections: Tensor, targets: Sequence[Target], size_hw: tuple[int, int]
) -> list[Tensor]:
    """The regions of a stage as its head corrects them, for the next stage; (N, 4) per image, without gradient.

    Cells that were added to the proposals are left out: the next stage adds them again.

    Args:
        head: of the stage.
        samples: what it was shown.
        corrections: what it said, (ΣN, 1, 4).
        targets: the cells of each image.
        size_hw: of the input.
    """
    boxes = clipped(head.decoded(corrections.detach(), samples.regions[:, 1:])[:, 0], size_hw)
    counts = [len(one) for one in samples.boxes]
    refined: list[Tensor] = []
    for own, before, matched, target in zip(boxes.split(counts), samples.boxes, samples.matched, targets, strict=True):
        truths = target["boxes"].float()
        added = (before == truths[matched]).all(dim=1) if len(truths) else torch.zeros_like(matched, dtype=torch.bool)
        refined.append(own[~added])
    return refined
