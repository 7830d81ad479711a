"""torchvision's Mask R-CNN with its own weights is the oracle of ours: maps, proposals, boxes, masks and losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn

from cytolens.models.mask_rcnn import MaskRcnn, from_torchvision
from cytolens.models.region_settings import RegionSettings
from cytolens.models.regions import as_regions
from tests.models.region_examples import cells

pytestmark = pytest.mark.torch

HEIGHT, WIDTH = 128, 192
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
NAMES = {
    "loss_classifier": "class",
    "loss_box_reg": "box",
    "loss_mask": "mask",
    "loss_objectness": "rpn_class",
    "loss_rpn_box_reg": "rpn_box",
}


def blocks(seed: int) -> Tensor:
    """Two pictures of coarse blocks, 0 … 255."""
    coarse = torch.rand(2, 3, HEIGHT // 16, WIDTH // 16, generator=torch.Generator().manual_seed(seed)) * 255
    return coarse.repeat_interleave(16, dim=2).repeat_interleave(16, dim=3)


@pytest.fixture(scope="module")
def both() -> tuple[MaskRCNN, MaskRcnn]:
    torch.manual_seed(0)
    options: dict[str, Any] = {f"rpn_pre_nms_top_n_{mode}": 20 for mode in ("train", "test")}
    options |= {f"rpn_post_nms_top_n_{mode}": 12 for mode in ("train", "test")}
    options |= {"box_score_thresh": 0.0, "box_nms_thresh": 1.0, "box_detections_per_img": 1000}
    theirs = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=HEIGHT, max_size=WIDTH, **options
    )
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if any(part in name for part in ("cls_logits", "bbox_pred", "cls_score")):  # else all say nearly the same
                weight.normal_(0, 0.05)
            if name.endswith("bn3.weight"):  # as trained networks: the blocks add little, so that roundings stay small
                weight.fill_(0.2)
        for module in theirs.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        theirs.backbone((blocks(5) / 255 - 0.45) / 0.225)  # norms that have seen pictures
    theirs.eval()
    rules = RegionSettings(aligned=False, box_beta=1 / 9, proposals_before=20, proposals_kept=12)
    ours = MaskRcnn("resnet50", 3, settings=rules).eval()
    ours.load_state_dict(from_torchvision(theirs.state_dict()))
    return theirs, ours


@torch.no_grad()
def test_the_same_answers(both: tuple[MaskRCNN, MaskRcnn]) -> None:
    theirs, ours = both
    images = blocks(1)
    seen, _ = theirs.transform(list(images / 255))
    assert seen.tensors.shape == images.shape  # nothing was resized
    features = theirs.backbone(seen.tensors)
    proposals, _ = theirs.rpn(seen, features)
    found, _ = theirs.roi_heads(features, list(proposals), seen.image_sizes)
    maps, objectness, deltas = ours.trunk(images)
    for one, name in zip(maps, features, strict=True):
        torch.testing.assert_close(one, features[name], **CLOSE)
    own = ours.rpn.proposals(maps, objectness, deltas)
    for one, expected in zip(own, proposals, strict=True):
        assert len(one) == 12
        torch.testing.assert_close(one, expected, **CLOSE)
    # torchvision lists each class of each region, best first; ours gives the box of the best class.
    scores, boxes = ours.boxes(maps, as_regions(own))
    parts = [len(one) for one in own]
    for image, (of_image, at, answer) in enumerate(zip(scores.split(parts), boxes.split(parts), found, strict=True)):
        torch.testing.assert_close(of_image.flatten().sort(descending=True).values, answer["scores"], **CLOSE)
        best, classes = of_image.max(dim=1)
        for score, label, box in zip(best, classes, at, strict=True):
            same = (answer["scores"] - score).abs() < 1e-4
            apart = (answer["boxes"][same] - box).abs().max(dim=1).values
            assert apart.min() < 1e-3  # px
            assert answer["labels"][same][apart.argmin()] == label + 1
        regions = torch.cat((torch.full((len(answer["boxes"]), 1), float(image)), answer["boxes"]), dim=1)
        masks = ours.masks(maps, regions, answer["labels"] - 1)
        torch.testing.assert_close(masks, answer["masks"][:, 0], **CLOSE)
        assert masks.std() > 0.001


def test_the_same_losses(both: tuple[MaskRCNN, MaskRcnn]) -> None:
    theirs, ours = both
    for network in both:
        network.train()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    images = blocks(2)
    truth = [
        cells([[20, 10, 90, 80], [100, 40, 180, 120]], [0, 2], HEIGHT, WIDTH),
        cells([[5, 5, 45, 60]], [1], HEIGHT, WIDTH),
    ]
    seen, targets = theirs.transform(list(images / 255), [{**one, "labels": one["labels"] + 1} for one in truth])
    torch.manual_seed(3)  # the same anchors and regions are drawn
    features = theirs.backbone(seen.tensors)
    proposals, of_proposals = theirs.rpn(seen, features, targets)
    _, of_regions = theirs.roi_heads(features, proposals, seen.image_sizes, targets)
    expected = {**of_proposals, **of_regions}
    torch.manual_seed(3)
    found = ours.losses(images, truth)
    assert found.keys() == {NAMES[name] for name in expected}
    for name, value in expected.items():
        torch.testing.assert_close(found[NAMES[name]], value, **CLOSE)
    both[0].eval()
    both[1].eval()
