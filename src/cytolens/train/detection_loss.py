"""SimOTA assignment and the YOLOX losses.

Source: Ge et al., "YOLOX", arXiv 2107.08430, sections 2 and 3; numbers as in the public reference.
Two rules are ours: findings of a label that an image is not complete for, and findings inside an
ignored truth, cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cytolens.models.yolox import decode, locations

BOX_WEIGHT = 5.0
_CENTRE_RADIUS = 1.5  # in strides
_TOP_IOUS = 10
_NOT_A_CANDIDATE = 1e6
_DUPLICATE_IOU = 0.5  # ... unless it repeats a cell that is annotated


@dataclass(frozen=True, slots=True)
class Truth:
    """The annotations of one image, in pixels of the network's input.

    Attributes:
        boxes: x_min, y_min, x_max, y_max, shape (G, 4).
        classes: class indices, shape (G,), int64.
        ignored: boxes that are not scored, shape (I, 4).
        incomplete: which classes are not annotated exhaustively, shape (C,), bool.
        regions: what attributes are read from, shape (G, 4); None: they are not learnt.
        sides_px: of each cell, as in `FieldSample`, shape (G,).
        scales: how large each cell is, as of `cell_scale.scale_features`, shape (G, 2).
        values: index of each attribute's value or −1, shape (G, A).
    """

    boxes: Tensor
    classes: Tensor
    ignored: Tensor
    incomplete: Tensor
    regions: Tensor | None = None
    sides_px: Tensor | None = None
    scales: Tensor | None = None
    values: Tensor | None = None

    def to(self, device: torch.device) -> Truth:
        """The same on a device."""
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in given.items() if value is not None})

    def scaled(self, ratio: float) -> Truth:
        """The same in an input that is larger by a ratio."""
        regions = None if self.regions is None else self.regions * ratio
        return replace(self, boxes=self.boxes * ratio, ignored=self.ignored * ratio, regions=regions)


@dataclass(frozen=True, slots=True)
class DetectionLosses:
    """The parts of the loss, each divided by the number of positives; `box` is already weighted."""

    box: Tensor
    objectness: Tensor
    classes: Tensor
    l1: Tensor
    positives_per_truth: float

    @property
    def total(self) -> Tensor:
        """The sum that is trained on."""
        return self.box + self.objectness + self.classes + self.l1


def pair_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of every box of `a` (N, 4) with every box of `b` (M, 4), shape (N, M)."""
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = (high - low).clamp(min=0).prod(dim=2)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(dim=1), (b[:, 2:] - b[:, :2]).prod(dim=1)
    return overlap / (area_a[:, None] + area_b[None] - overlap).clamp(min=1e-16)


def box_loss(found: Tensor, truth: Tensor, kind: str) -> Tensor:
    """Loss of each found box (N, 4) against its truth (N, 4): "iou" is 1 − IoU², "giou" is 1 − GIoU."""
    low, high = torch.maximum(found[:, :2], truth[:, :2]), torch.minimum(found[:, 2:], truth[:, 2:])
    overlap = (high - low).clamp(min=0).prod(dim=1)
    union = (found[:, 2:] - found[:, :2]).prod(dim=1) + (truth[:, 2:] - truth[:, :2]).prod(dim=1) - overlap
    ratio = overlap / (union + 1e-16)
    if kind == "iou":
        return 1 - ratio**2
    if kind == "giou":
        outer_low, outer_high = torch.minimum(found[:, :2], truth[:, :2]), torch.maximum(found[:, 2:], truth[:, 2:])
        hull = (outer_high - outer_low).prod(dim=1)
        return 1 - (ratio - (hull - union) / hull.clamp(min=1e-16)).clamp(-1, 1)
    raise ValueError(f'unknown box loss "{kind}"; allowed: iou, giou')


@torch.no_grad()
def assign(
    truth: Truth, boxes: Tensor, objectness: Tensor, class_logits: Tensor, anchors: Tensor, strides: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """SimOTA: which locations answer for which truth of one image.

    Args:
        truth: the image's annotations.
        boxes: decoded boxes (L, 4).
        objectness: logits (L,).
        class_logits: logits (L, C).
        anchors: anchor points in px (L, 2).
        strides: (L,).

    Returns:
        positive locations (P,), the truth of each (P,), their IoU with it (P,). A truth whose centre
        lies outside the picture may get none.
    """
    nothing = torch.zeros(0, dtype=torch.long, device=boxes.device)
    if len(truth.boxes) == 0:
        return nothing, nothing, boxes.new_zeros(0)
    centre = (truth.boxes[:, :2] + truth.boxes[:, 2:]) / 2
    near = ((anchors[None] - centre[:, None]).abs() < _CENTRE_RADIUS * strides[None, :, None]).all(dim=2)
    candidates = near.any(dim=0).nonzero().squeeze(1)
    if len(candidates) == 0:
        return nothing, nothing, boxes.new_zeros(0)
    near = near[:, candidates]
    ious = pair_iou(truth.boxes, boxes[candidates])
    joint = (class_logits[candidates].sigmoid() * objectness[candidates].sigmoid()[:, None]).sqrt()
    # BCE against a one-hot target, without building the (G, N, C) tensor: everything for "no class",
    # then the true class exchanged.
    off = -torch.clamp((1 - joint).log(), min=-100)
    on = -torch.clamp(joint.log(), min=-100)
    class_cost = off.sum(dim=1)[None] + (on - off)[:, truth.classes].T
    cost = class_cost + 3.0 * -(ious + 1e-8).log() + _NOT_A_CANDIDATE * ~near
    top = torch.topk(ious, min(_TOP_IOUS, len(candidates)), dim=1).values
    counts = top.sum(dim=1).int().clamp(min=1)
    chosen = torch.zeros_like(cost, dtype=torch.bool)
    for row, count in enumerate(counts.tolist()):
        chosen[row, torch.topk(cost[row], count, largest=False).indices] = True
    contested = chosen.sum(dim=0) > 1
    if contested.any():
        winner = cost[:, contested].argmin(dim=0)
        chosen[:, contested] = False
        chosen[winner, contested.nonzero().squeeze(1)] = True
    chosen &= near  # a truth without candidates of its own must not take a stranger's
    position = chosen.any(dim=0).nonzero().squeeze(1)
    owner = chosen[:, position].float().argmax(dim=0)
    return candidates[position], owner, ious[owner, position]


@torch.no_grad()
def _background_cost(truth: Truth, boxes: Tensor, scores: Tensor, believed_from: float, believed_cost: float) -> Tensor:
    """What the objectness of each location costs where it is background, shape (L,), 0 to 1."""
    cost = torch.ones_like(scores[:, 0])
    best, label = scores.max(dim=1)
    believed = truth.incomplete[label] & (best > believed_from)
    if len(truth.boxes) and believed.any():
        believed &= (pair_iou(boxes, truth.boxes) < _DUPLICATE_IOU).all(dim=1)
    cost[believed] = believed_cost
    if len(truth.ignored):
        low = torch.maximum(boxes[:, None, :2], truth.ignored[None, :, :2])
        high = torch.minimum(boxes[:, None, 2:], truth.ignored[None, :, 2:])
        own = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).clamp(min=1e-16)
        cost[((high - low).clamp(min=0).prod(dim=2) / own[:, None] > _DUPLICATE_IOU).any(dim=1)] = 0
    return cost


def detection_losses(
    raw: Tensor,
    truths: list[Truth],
    size_hw: tuple[int, int],
    *,
    box: str = "giou",
    with_l1: bool = False,
    believed_from: float = 0.5,
    believed_cost: float = 0.0,
) -> DetectionLosses:
    """The YOLOX losses of a batch.

    Args:
        raw: the network's output (B, L, 5 + C).
        truths: one per image.
        size_hw: the network's input size in px.
        box: "iou" or "giou".
        with_l1: add the L1 term of the closing epochs.
        believed_from: the score from which an unmatched finding of an incomplete label is believed.
        believed_cost: what such a finding costs, as a share of other background. Where annotators leave out
            cells by their looks, a share above 0 ranks those below the others without losing them.
    """
    raw = raw.float()
    grid, strides = locations(size_hw, raw.device)
    anchors = (grid + 0.5) * strides[:, None]
    boxes = decode(raw, size_hw)
    objectness, class_logits = raw[..., 4], raw[..., 5:]
    on_object = torch.zeros_like(objectness)
    weight = torch.ones_like(objectness)
    box_sum = class_sum = l1_sum = raw.sum() * 0
    positives, truths_total = 0, 0
    for i, truth in enumerate(truths):
        with torch.no_grad():
            if truth.incomplete.any() or len(truth.ignored):
                scores = class_logits[i].sigmoid() * objectness[i].sigmoid()[:, None]
                weight[i] = _background_cost(truth, boxes[i], scores, believed_from, believed_cost)
        truths_total += len(truth.boxes)
        at, owner, iou = assign(truth, boxes[i], objectness[i], class_logits[i], anchors, strides)
        if len(at) == 0:
            continue
        positives += len(at)
        on_object[i, at] = 1
        weight[i, at] = 1
        target = truth.boxes[owner]
        box_sum = box_sum + box_loss(boxes[i, at], target, box).sum()
        wanted = F.one_hot(truth.classes[owner], class_logits.shape[2]) * iou[:, None]
        class_sum = class_sum + F.binary_cross_entropy_with_logits(class_logits[i, at], wanted, reduction="sum")
        if with_l1:
            size = (target[:, 2:] - target[:, :2]) / strides[at, None]
            middle = (target[:, :2] + target[:, 2:]) / 2 / strides[at, None] - grid[at]
            offsets = torch.cat((middle, torch.log(size + 1e-8)), dim=1)
            l1_sum = l1_sum + (raw[i, at, :4] - offsets).abs().sum()
    object_sum = F.binary_cross_entropy_with_logits(objectness, on_object, weight, reduction="sum")
    count = max(positives, 1)
    return DetectionLosses(
        box=BOX_WEIGHT * box_sum / count,
        objectness=object_sum / count,
        classes=class_sum / count,
        l1=l1_sum / count,
        positives_per_truth=positives / max(truths_total, 1),
    )
