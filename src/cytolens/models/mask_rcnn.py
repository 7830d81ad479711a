"""Mask R-CNN: one look at each region names it and corrects its box, one more draws the cell.

Source: He et al., "Mask R-CNN", ICCV 2017.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cytolens.models.region_heads import BoxHead, MaskHead, Target, canvas_hw, clipped, mask_loss, of_classes
from cytolens.models.region_network import RegionNetwork

_SPREADS = (0.1, 0.1, 0.2, 0.2)


class MaskRcnn(RegionNetwork):
    """A region network of one stage; its arguments are those of `RegionNetwork`."""

    def __init__(self, backbone: str, classes: int, **options: Any) -> None:
        super().__init__(backbone, classes, **options)
        beta = 0.0 if self.settings.box_beta is None else self.settings.box_beta
        self.box_head = BoxHead(classes, self.settings, iou=0.5, spreads=_SPREADS, by_class=True, beta=beta)
        self.mask_head = MaskHead(classes, self.settings)

    def boxes(self, maps: Sequence[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        """As `RegionNetwork.boxes` says."""
        logits, deltas = self.box_head(self.for_boxes(maps, regions))
        scores = logits.softmax(dim=1)[:, 1:]
        index = (scores.argmax(dim=1) + 1)[:, None, None].expand(-1, 1, 4)
        boxes = self.box_head.decoded(deltas.gather(1, index), regions[:, 1:])[:, 0]
        return scores, clipped(boxes, canvas_hw(maps, self.strides))

    def masks(self, maps: Sequence[Tensor], regions: Tensor, classes: Tensor) -> Tensor:
        """As `RegionNetwork.masks` says."""
        return of_classes(self.mask_head(self.for_masks(maps, regions)), classes).sigmoid()

    def losses(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """As `RegionNetwork.losses` says."""
        maps, objectness, deltas = self.trunk(images)
        of_proposals = self.rpn.losses(maps, objectness, deltas, targets)
        samples = self.box_head.sampled(self.rpn.proposals(maps, objectness, deltas), targets)
        logits, corrections = self.box_head(self.for_boxes(maps, samples.regions))
        name, box = self.box_head.losses(logits, corrections, samples)
        drawn = samples.on_cells()
        mask = mask_loss(self.mask_head(self.for_masks(maps, drawn.regions)), drawn, targets, self.settings.aligned)
        return {"class": name, "box": box, "mask": mask, **of_proposals}


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of torchvision's `maskrcnn_resnet50_fpn` by the names that they have in `MaskRcnn`.

    Its network is had by `backbone="resnet50"` and `RegionSettings(aligned=False, box_beta=1 / 9)`.

    Args:
        state: of the network there, with any number of classes.
    """
    parts = {
        "backbone.body.": "backbone.",
        "backbone.fpn.": "pyramid.",
        "rpn.": "rpn.",
        "roi_heads.box_head.": "box_head.head.",
        "roi_heads.box_predictor.": "box_head.predictor.",
        "roi_heads.mask_head.": "mask_head.head.",
        "roi_heads.mask_predictor.": "mask_head.predictor.",
    }
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        start = next((one for one in parts if name.startswith(one)), None)
        if start is not None:
            renamed[parts[start] + name.removeprefix(start)] = torch.as_tensor(value)
    return renamed
