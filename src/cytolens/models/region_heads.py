"""What reads regions: proposals from maps, boxes and classes from bins, masks from finer bins.

Sources: Ren et al., "Faster R-CNN", NeurIPS 2015; He et al., "Mask R-CNN", ICCV 2017; built of torchvision's parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import roi_align

from cytolens.models.region_settings import AnchorLayout, RegionSettings
from cytolens.models.regions import as_regions

BOX_BINS, MASK_BINS = 7, 14
Target = Mapping[str, Tensor]


class ProposalNetwork(RegionProposalNetwork):
    """Says of each anchor whether a cell is there, and how its box differs from the anchor."""

    def __init__(self, anchors: AnchorLayout, settings: RegionSettings) -> None:
        sizes = tuple((stride * anchors.scale,) for stride in anchors.strides)
        before, kept = settings.proposals_before, settings.proposals_kept
        super().__init__(
            AnchorGenerator(sizes, (anchors.ratios,) * len(sizes)),
            RPNHead(settings.channels, len(anchors.ratios)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=settings.anchor_samples,
            positive_fraction=0.5,
            pre_nms_top_n={"training": before, "testing": before},
            post_nms_top_n={"training": kept, "testing": kept},
            nms_thresh=settings.proposal_nms_iou,
        )
        self.layout = anchors
        self.beta = settings.proposal_beta

    def answers(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps (B, C, H / stride, W / stride), finest first → objectness (B, A), logits; deltas (B, A, 4)."""
        logits, deltas = self.head(list(maps))
        batch = maps[0].shape[0]
        flat = [one.permute(0, 2, 3, 1).reshape(batch, -1) for one in logits]
        coded = [one.permute(0, 2, 3, 1).reshape(batch, -1, 4) for one in deltas]
        return torch.cat(flat, dim=1).float(), torch.cat(coded, dim=1).float()

    def anchors_of(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The anchors of each level, shape (A_level, 4), in px of the input."""
        generator: AnchorGenerator = self.anchor_generator  # type: ignore[assignment]
        generator.set_cell_anchors(torch.float32, maps[0].device)
        strides = [[torch.tensor(stride, device=maps[0].device)] * 2 for stride in self.layout.strides]
        return generator.grid_anchors([list(one.shape[-2:]) for one in maps], strides)

    def proposals(self, maps: Sequence[Tensor], objectness: Tensor, deltas: Tensor) -> list[Tensor]:
        """Regions worth a look for each image, (P, 4) each, best first; nothing is learnt through them."""
        by_level, batch = self.anchors_of(maps), len(objectness)
        anchors = torch.cat(by_level)
        decoded = self.box_coder.decode(deltas.detach().reshape(-1, 4), [anchors] * batch).reshape(batch, -1, 4)
        size_hw = canvas_hw(maps, self.layout.strides)
        boxes, _ = self.filter_proposals(decoded, objectness, [size_hw] * batch, [len(one) for one in by_level])
        return boxes

    def losses(
        self, maps: Sequence[Tensor], objectness: Tensor, deltas: Tensor, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """`rpn_class` and `rpn_box`, over anchors drawn at random, half of them on cells where there are as many."""
        anchors = [torch.cat(self.anchors_of(maps))] * len(targets)
        labels, truths = self.assign_targets_to_anchors(anchors, [{"boxes": one["boxes"].float()} for one in targets])
        codes = torch.cat(list(self.box_coder.encode(truths, anchors)))
        positive, negative = (torch.cat(one).bool() for one in self.fg_bg_sampler(labels))
        drawn = torch.cat((positive.nonzero()[:, 0], negative.nonzero()[:, 0]))
        wrong = F.smooth_l1_loss(deltas.reshape(-1, 4)[positive], codes[positive], beta=self.beta, reduction="sum")
        return {
            "rpn_class": F.binary_cross_entropy_with_logits(objectness.flatten()[drawn], torch.cat(labels)[drawn]),
            "rpn_box": wrong / len(drawn),
        }


@dataclass(frozen=True, slots=True)
class Samples:
    """Regions of a batch that teach a head, image by image.

    Attributes:
        boxes: in px of the input, (N, 4) each.
        matched: number of the cell that each is held against, (N,) each, int64.
        labels: its class from 1 on, 0: none, (N,) each, int64.
        codes: what the head should say of its box, (N, 4) each.
    """

    boxes: list[Tensor]
    matched: list[Tensor]
    labels: list[Tensor]
    codes: list[Tensor]

    @property
    def regions(self) -> Tensor:
        """All of them, with the number of their image, shape (ΣN, 5)."""
        return as_regions(self.boxes)

    def on_cells(self) -> Samples:
        """Only those that hold a cell."""
        keep = [one > 0 for one in self.labels]
        fields = (self.boxes, self.matched, self.labels, self.codes)
        parts = [[value[mask] for value, mask in zip(values, keep, strict=True)] for values in fields]
        return Samples(*parts)


class BoxHead(nn.Module):
    """Names regions and corrects their boxes; one stage of a network.

    Args:
        classes: K, without the background.
        settings: of the network.
        iou: from this overlap with a cell on, a region holds it.
        spreads: what corrections of x, y, width and height are divided by.
        by_class: whether each class has corrections of its own.
        beta: where the smooth L1 loss turns linear.
    """

    def __init__(
        self,
        classes: int,
        settings: RegionSettings,
        *,
        iou: float,
        spreads: tuple[float, float, float, float],
        by_class: bool,
        beta: float,
    ) -> None:
        super().__init__()
        self.head = TwoMLPHead(settings.channels * BOX_BINS**2, settings.hidden)
        self.predictor = FastRCNNPredictor(settings.hidden, classes + 1)
        if not by_class:
            self.predictor.bbox_pred = nn.Linear(settings.hidden, 4)
        self.by_class, self.beta, self.iou = by_class, beta, iou
        weights = tuple(1 / spread for spread in spreads)
        # Only the rules of torchvision's heads are taken: which regions teach, and how boxes are coded.
        samples, share = settings.region_samples, settings.positive_share
        self.rules = RoIHeads(None, None, None, iou, iou, samples, share, weights, 0.0, 0.5, 1)

    def forward(self, bins: Tensor) -> tuple[Tensor, Tensor]:
        """Bins (N, C, 7, 7) → logits (N, 1 + K), background first; corrections (N, 1 + K or 1, 4)."""
        logits, deltas = self.predictor(self.head(bins))
        return logits.float(), deltas.float().reshape(-1, deltas.shape[1] // 4, 4)

    def decoded(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Corrections (N, D, 4) of boxes (N, 4) → boxes (N, D, 4)."""
        flat = self.rules.box_coder.decode_single(deltas.flatten(1), boxes.float())
        return flat.reshape(-1, deltas.shape[1], 4)

    def sampled(self, proposals: Sequence[Tensor], targets: Sequence[Target]) -> Samples:
        """Regions drawn among the proposals and the cells themselves, so that some of each kind teach the head."""
        truths = [{"boxes": one["boxes"].float(), "labels": one["labels"].long() + 1} for one in targets]
        return Samples(*map(list, self.rules.select_training_samples(list(proposals), truths)))

    def losses(self, logits: Tensor, deltas: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        """Of the names and of the boxes, both per region."""
        labels, codes = torch.cat(samples.labels), torch.cat(samples.codes)
        if not len(labels):
            return logits.sum() * 0, deltas.sum() * 0
        positive = labels > 0
        of_class = labels[positive] if self.by_class else torch.zeros_like(labels[positive])
        said = deltas[positive, of_class]
        wrong = F.smooth_l1_loss(said, codes[positive], beta=self.beta, reduction="sum")
        return F.cross_entropy(logits, labels), wrong / len(labels)


class MaskHead(nn.Module):
    """Draws the cell of each region, once per class.

    Args:
        classes: K, without the background.
        settings: of the network.
    """

    def __init__(self, classes: int, settings: RegionSettings) -> None:
        super().__init__()
        self.head = MaskRCNNHeads(settings.channels, (settings.channels,) * settings.mask_layers, 1)
        self.predictor = MaskRCNNPredictor(settings.channels, settings.channels, classes + 1)

    def forward(self, bins: Tensor) -> Tensor:
        """Bins (N, C, 14, 14) → logits (N, 1 + K, 28, 28); those of the background mean nothing."""
        return self.predictor(self.head(bins)).float()


def of_classes(logits: Tensor, classes: Tensor) -> Tensor:
    """The masks (N, 28, 28) of classes (N,), counted without background, among logits (N, 1 + K, 28, 28)."""
    index = (classes.long() + 1)[:, None, None, None].expand(-1, 1, logits.shape[2], logits.shape[3])
    return logits.gather(1, index)[:, 0]


def mask_loss(logits: Tensor, samples: Samples, targets: Sequence[Target], aligned: bool) -> Tensor:
    """Cross-entropy per pixel of masks (N, 1 + K, 28, 28) of regions that hold cells."""
    labels = torch.cat(samples.labels)
    if not len(labels):
        return logits.sum() * 0
    parts = []
    for boxes, matched, target in zip(samples.boxes, samples.matched, targets, strict=True):
        if len(boxes):
            regions = torch.cat((matched[:, None].float(), boxes.float()), dim=1)
            whole = target["masks"][:, None].float()
            parts.append(roi_align(whole, regions, (logits.shape[2], logits.shape[3]), 1.0, -1, aligned)[:, 0])
    return F.binary_cross_entropy_with_logits(of_classes(logits, labels - 1), torch.cat(parts))


def canvas_hw(maps: Sequence[Tensor], strides: Sequence[int]) -> tuple[int, int]:
    """Height and width of the input in px, which the finest map tells."""
    return maps[0].shape[-2] * strides[0], maps[0].shape[-1] * strides[0]


def clipped(boxes: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Boxes (…, 4) within an input of some height and width."""
    x, y = boxes[..., 0::2].clamp(min=0), boxes[..., 1::2].clamp(min=0)
    x, y = x.clamp(max=size_hw[1]), y.clamp(max=size_hw[0])
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1)
