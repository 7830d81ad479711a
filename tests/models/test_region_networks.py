"""Region networks: what all families keep to, and each family's own rules."""

from __future__ import annotations

from typing import get_args

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign

from cytolens.models import catalog
from cytolens.models.cascade import STAGE_IOUS, STAGE_SPREADS, STAGE_WEIGHTS, CascadeMaskRcnn, corrected
from cytolens.models.checkpoint import load_matching
from cytolens.models.htc import HybridTaskCascade, semantic_truth
from cytolens.models.public_weights import starting_weights
from cytolens.models.pyramid import EvenConv2d
from cytolens.models.region_heads import BoxHead, Samples, mask_loss
from cytolens.models.region_network import RegionNetwork
from cytolens.models.region_pooling import levels_of, pooled
from cytolens.models.region_settings import Family, RegionSettings
from cytolens.models.regions import as_regions
from cytolens.problems import SettingError
from tests.models.region_examples import CLASSES, SMALL, batch, cells, pictures, small_network, some_regions

pytestmark = pytest.mark.torch

FAMILIES: tuple[Family, ...] = get_args(Family)
KEYS = {"class", "box", "mask", "rpn_class", "rpn_box"}


# -- what all families keep to ----------------------------------------------------------------------


@pytest.fixture(scope="module", params=FAMILIES)
def network(request: pytest.FixtureRequest) -> RegionNetwork:
    return small_network(request.param).eval()


def loss_of(network: RegionNetwork, targets: list[dict[str, Tensor]], images: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(4)
    return network.losses(images, targets)


@torch.no_grad()
def test_shapes_and_ranges(network: RegionNetwork) -> None:
    maps, objectness, deltas = network.trunk(pictures(2))
    assert [one.shape[-2:] for one in maps] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    assert tuple(one.shape[1] for one in maps[:4]) == network.map_channels
    anchors = 3 * sum(one.shape[-2] * one.shape[-1] for one in maps)
    assert objectness.shape == (2, anchors)
    assert deltas.shape == (2, anchors, 4)
    assert network.anchors.strides == (4, 8, 16, 32, 64)
    for count in (0, 1, 20):
        regions = some_regions(count, 2, 64, 96)
        scores, boxes = network.boxes(maps, regions)
        masks = network.masks(maps, regions, torch.arange(count) % CLASSES)
        assert scores.shape == (count, CLASSES)
        assert boxes.shape == (count, 4)
        assert masks.shape == (count, 28, 28)
        assert ((scores >= 0) & (scores.sum(dim=1, keepdim=True) <= 1)).all()
        assert ((masks >= 0) & (masks <= 1)).all()
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([96.0, 64, 96, 64])).all()


@torch.no_grad()
def test_an_image_is_answered_alike_in_any_batch(network: RegionNetwork) -> None:
    images = pictures(3)
    maps, objectness, deltas = network.trunk(images)
    regions = some_regions(12, 3, 64, 96)
    scores, boxes = network.boxes(maps, regions)
    masks = network.masks(maps, regions, torch.arange(12) % CLASSES)
    for image in range(3):
        alone, logits, codes = network.trunk(images[image : image + 1])
        torch.testing.assert_close(logits, objectness[image : image + 1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(codes, deltas[image : image + 1], atol=1e-5, rtol=1e-4)
        own = regions[:, 0] == image
        moved = torch.cat((torch.zeros(int(own.sum()), 1), regions[own, 1:]), dim=1)
        for found, expected in zip(network.boxes(alone, moved), (scores[own], boxes[own]), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        drawn = network.masks(alone, moved, (torch.arange(12) % CLASSES)[own])
        torch.testing.assert_close(drawn, masks[own], atol=1e-5, rtol=1e-4)


def test_every_weight_learns(network: RegionNetwork) -> None:
    network.zero_grad()
    images, targets = batch()
    losses = loss_of(network, targets, images)
    assert losses.keys() - {"semantic"} == KEYS
    assert ("semantic" in losses) == isinstance(network, HybridTaskCascade)
    assert all(value.shape == () and value.isfinite() and value > 0 for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    still = [name for name, one in network.named_parameters() if one.grad is None or not one.grad.any()]
    # A rectifier may be off for all that few regions show; whole layers may not.
    assert not [name for name in still if name.endswith("weight")]


def test_a_batch_without_any_cell(network: RegionNetwork) -> None:
    network.zero_grad()
    losses = loss_of(network, [cells([], []), cells([], [])], pictures(2))
    assert losses["mask"] == 0
    assert losses["box"] == 0
    assert losses["rpn_box"] == 0
    assert losses["class"] > 0
    torch.stack(list(losses.values())).sum().backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in network.parameters())


def test_half_precision_is_finite_and_near(network: RegionNetwork) -> None:
    images, targets = batch()
    exact = loss_of(network, targets, images)
    with torch.autocast("cpu", torch.bfloat16):
        rough = loss_of(network, targets, images)
        maps, objectness, deltas = network.trunk(images)
        regions = some_regions(5, 2, 64, 96)
        answers = [
            objectness,
            deltas,
            *network.boxes(maps, regions),
            network.masks(maps, regions, torch.zeros(5).long()),
        ]
    assert all(one.isfinite().all() and one.dtype == torch.float32 for one in answers)
    for name, value in exact.items():
        assert rough[name].isfinite()
        torch.testing.assert_close(rough[name], value, rtol=0.2, atol=0.1)


# -- backbones and strides --------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["resnet18", "tf_efficientnet_lite0"])
@torch.no_grad()
def test_without_the_first_stride_every_map_is_twice_as_large(backbone: str) -> None:
    kept, removed = (small_network("mask-rcnn", backbone, keep_stride=keep).eval() for keep in (True, False))
    assert removed.anchors.strides == (2, 4, 8, 16, 32)
    assert removed.strides == (2, 4, 8, 16)
    weights = removed.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in kept.state_dict().items())
    images = pictures(1)
    large, small = removed.trunk(images)[0], kept.trunk(images)[0]
    for one, other in zip(large[:4], small, strict=False):
        assert one.shape[-2:] == (2 * other.shape[-2], 2 * other.shape[-1])
    assert removed.rpn.anchors_of(large)[0].shape == (3 * (64 // 2) * (96 // 2), 4)


@torch.no_grad()
def test_padding_is_tensorflows() -> None:
    ours = small_network("mask-rcnn", "tf_efficientnet_lite0")
    plain = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(-4, -3, -2, -1)).eval()
    plain.load_state_dict(ours.backbone.state_dict())
    assert sum(isinstance(module, EvenConv2d) for module in ours.eval().backbone.modules()) == 5
    images = pictures(1) / 255
    for one, expected in zip(ours.backbone(images), plain(images), strict=True):
        torch.testing.assert_close(one, expected)


def test_frozen_norms_stay_as_they_are() -> None:
    network = small_network("mask-rcnn", freeze_norms=True).train()
    before = {name: value.clone() for name, value in network.backbone.named_buffers()}
    images, targets = batch()
    torch.stack(list(loss_of(network, targets, images).values())).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in network.backbone.named_buffers())
    norms = [one for one in network.backbone.modules() if isinstance(one, nn.BatchNorm2d)]
    assert len(norms) == 20
    assert not any(one.training or one.weight.requires_grad for one in norms)
    assert network.backbone.conv1.weight.grad is not None


def test_imagenet_weights_of_the_package_fill_the_backbone() -> None:
    network = small_network("mask-rcnn", "tf_efficientnet_lite0")
    state = starting_weights("efficientnet-lite0-imagenet")
    kept, unused = load_matching(network, state)
    assert not [name for name in kept if name.startswith("backbone.")]
    assert {name.split(".")[1] for name in unused} == {"conv_head", "bn2"}  # behind the last map


@pytest.mark.parametrize(
    ("backbone", "options", "said"),
    [
        ("resnet19", {}, 'no network "resnet19".*resnet18'),
        ("test_vit", {}, "needed are"),
        ("convnext_atto", {"keep_stride": False}, "has the stride 4"),
        ("swin_tiny_patch4_window7_224", {}, "channels first"),
    ],
)
def test_a_backbone_that_cannot_serve(backbone: str, options: dict[str, bool], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        catalog.region_network("mask-rcnn", backbone, 1, settings=SMALL, **options)


def test_a_family_that_is_not_known() -> None:
    with pytest.raises(SettingError, match="mask-rcnn"):
        catalog.region_network("mask-rcn", "resnet18", 1)  # type: ignore[arg-type]


# -- regions and their levels -----------------------------------------------------------------------


def test_levels_follow_the_strides() -> None:
    sides = torch.tensor([10.0, 111.9, 112, 223.9, 224, 447.9, 448, 2000])
    regions = torch.cat((torch.zeros(8, 3), sides[:, None].expand(-1, 2)), dim=1)
    assert levels_of(regions, (4, 8, 16, 32)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    halved = torch.cat((regions[:, :3], regions[:, 3:] / 2), dim=1)
    assert levels_of(halved, (2, 4, 8, 16)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_pooling_is_torchvisions() -> None:
    regions = some_regions(50, 2, 512, 640)
    regions[:3, 1:] = torch.tensor([3.0, 5, 600, 500])
    maps = [torch.randn(2, 3, 512 // stride, 640 // stride) for stride in (4, 8, 16, 32)]
    assert set(levels_of(regions, (4, 8, 16, 32)).tolist()) == {0, 1, 2, 3}
    order = regions[:, 0].argsort(stable=True)
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    boxes = [regions[regions[:, 0] == image, 1:] for image in range(2)]
    expected = theirs({str(level): one for level, one in enumerate(maps)}, boxes, [(512, 640)] * 2)
    torch.testing.assert_close(pooled(maps, regions[order], (4, 8, 16, 32), 7, aligned=False), expected)


def test_masks_are_cut_from_the_truth_of_their_own_cell() -> None:
    truth = cells([[8, 8, 36, 36], [40, 10, 68, 38]], [1, 0])
    truth["masks"][0] = 0
    truth["masks"][0, 8:36, 8:22] = 1  # the left half of its box, the upper half of the other
    truth["masks"][1] = 0
    truth["masks"][1, 10:24, 40:68] = 1
    labels = torch.tensor([1, 2])
    samples = Samples([truth["boxes"].flip(0)], [torch.tensor([1, 0])], [labels], [torch.zeros(2, 4)])
    logits = torch.full((2, 4, 28, 28), -9.0)
    logits[0, 1, :14] = 9
    logits[1, 2, :, :14] = 9
    assert mask_loss(logits, samples, [truth], aligned=True) < 1e-3
    assert mask_loss(logits.flip(0), samples, [truth], aligned=True) > 1


# -- cascade ----------------------------------------------------------------------------------------


def test_the_stages_are_the_published_ones() -> None:
    assert STAGE_WEIGHTS == (1, 0.5, 0.25)
    assert STAGE_IOUS == (0.5, 0.6, 0.7)
    network = small_network("cascade")
    assert isinstance(network, CascadeMaskRcnn)
    spreads = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
    assert spreads == STAGE_SPREADS
    box = torch.tensor([[10.0, 20, 50, 40]])  # 40 × 20 px about (30, 30)
    for head, (x, y, w, h), iou in zip(network.box_heads, spreads, STAGE_IOUS, strict=True):
        assert isinstance(head, BoxHead)
        assert head.iou == iou
        assert head.predictor.bbox_pred.out_features == 4  # the same for all classes
        found = head.decoded(torch.tensor([[[1.0, -2, 0.5, -0.5]]]), box)[0, 0]
        middle = torch.tensor([30 + 40 * x, 30 - 2 * 20 * y])
        half = torch.stack((20 * torch.tensor(0.5 * w).exp(), 10 * torch.tensor(-0.5 * h).exp()))
        torch.testing.assert_close(found, torch.cat((middle - half, middle + half)))


def test_each_stage_asks_for_more_overlap() -> None:
    network = small_network("cascade")
    assert isinstance(network, CascadeMaskRcnn)
    truth = cells([[10, 10, 50, 50]], [2])
    near = torch.tensor([[10.0, 10, 50, 10 + 40 * share] for share in (0.45, 0.55, 0.65, 0.75)])
    taught = []
    for head in network.box_heads:
        assert isinstance(head, BoxHead)
        (labels,) = head.sampled([near], [truth]).labels
        assert set(labels.tolist()) <= {0, 3}
        taught.append(int((labels > 0).sum()) - 1)  # the cell itself is one of them
    assert taught == [3, 2, 1]


def test_the_next_stage_gets_what_was_corrected_but_no_cell_that_was_added() -> None:
    network = small_network("cascade")
    assert isinstance(network, CascadeMaskRcnn)
    head = network.box_heads[0]
    assert isinstance(head, BoxHead)
    targets = [cells([[10, 10, 50, 50]], [2]), cells([], [])]
    samples = head.sampled([torch.tensor([[8.0, 8, 48, 48]]), torch.tensor([[60.0, 40, 96, 64]])], targets)
    assert [len(one) for one in samples.boxes] == [2, 1]
    corrections = torch.zeros(3, 1, 4)
    corrections[:, 0, 0] = 1  # a tenth of the width to the right
    first, second = corrected(head, samples, corrections, targets, (64, 96))
    torch.testing.assert_close(first, torch.tensor([[12.0, 8, 52, 48]]))
    torch.testing.assert_close(second, torch.tensor([[63.6, 40, 96, 64]]))


@torch.no_grad()
def test_a_cascade_averages_logits_and_keeps_the_last_box() -> None:
    network = small_network("cascade").eval()
    assert isinstance(network, CascadeMaskRcnn)
    maps = network.trunk(pictures(1))[0]
    regions = torch.tensor([[0.0, 10, 10, 60, 50], [0, 5, 20, 30, 64]])
    scores, boxes = network.boxes(maps, regions)
    logits, own = [], regions
    for head in network.box_heads:
        assert isinstance(head, BoxHead)
        said, deltas = head(network.for_boxes(maps, own))
        logits.append(said)
        moved = head.decoded(deltas, own[:, 1:])[:, 0]
        own = as_regions([moved.clamp(min=0).minimum(torch.tensor([96.0, 64, 96, 64]))])
    torch.testing.assert_close(scores, (sum(logits) / 3).softmax(1)[:, 1:])  # type: ignore[operator, union-attr]
    torch.testing.assert_close(boxes, own[:, 1:])


# -- hybrid task cascade ----------------------------------------------------------------------------


def touched(network: RegionNetwork, prefix: str) -> bool:
    """Whether every weight under a name has a gradient that is not nought."""
    weights = [one for name, one in network.named_parameters() if name.startswith(prefix) and name.endswith("weight")]
    assert weights
    return all(one.grad is not None and bool(one.grad.any()) for one in weights)


def test_what_a_mask_teaches_reaches_the_semantic_branch_and_the_heads_before() -> None:
    network = small_network("htc").eval()
    images, targets = batch()
    loss_of(network, targets, images)["mask"].backward()
    for part in ("semantic.body", "semantic.features", "flows.0", "flows.1", "mask_heads.0.head", "mask_heads.2.head"):
        assert touched(network, part), part
    assert not touched(network, "semantic.names")  # only its own loss teaches it the names
    network.zero_grad()
    loss_of(network, targets, images)["semantic"].backward()
    assert touched(network, "semantic.names")
    assert touched(network, "semantic.sides")
    assert touched(network, "pyramid")
    assert not touched(network, "flows")


def test_the_last_masks_see_what_the_first_saw() -> None:
    network = small_network("htc").eval()
    assert isinstance(network, HybridTaskCascade)
    bins = torch.randn(2, SMALL.channels, 14, 14, generator=torch.Generator().manual_seed(0))
    before = network.mask_logits(bins, 3)
    with torch.no_grad():
        network.mask_heads[0].head[0][0].bias += 1.0  # type: ignore[index, operator]
    after = network.mask_logits(bins, 3)
    assert all(not torch.allclose(one, other) for one, other in zip(before, after, strict=True))
    with torch.no_grad():
        network.mask_heads[2].head[0][0].bias += 1.0  # type: ignore[index, operator]
    last = network.mask_logits(bins, 3)
    assert torch.equal(last[0], after[0])
    assert torch.equal(last[1], after[1])
    assert not torch.allclose(last[2], after[2])


def test_the_semantic_truth() -> None:
    truth = cells([[0, 0, 1, 1]] * 2, [2, 0], 32, 32)
    truth["masks"][:] = 0
    truth["masks"][0, :16, :16] = 1
    truth["masks"][1, 8:24, 8:24] = 1  # lies above
    found = semantic_truth([truth, cells([], [], 32, 32)], 8, (32, 32))
    assert found[0].tolist() == [[3, 3, 0, 0], [3, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert not found[1].any()


def test_the_semantic_loss_is_weighted() -> None:
    network = small_network("htc").eval()
    assert isinstance(network, HybridTaskCascade)
    images, targets = batch()
    with torch.no_grad():
        _, names = network.semantic(network.maps(images)[:4])
        expected = 0.2 * F.cross_entropy(names, semantic_truth(targets, 8, (64, 96)))
        torch.testing.assert_close(loss_of(network, targets, images)["semantic"], expected)


def test_settings_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValueError, match="widht"):
        RegionSettings(widht=3)  # type: ignore[call-arg]
