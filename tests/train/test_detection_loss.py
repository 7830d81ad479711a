"""SimOTA and the YOLOX losses: the reference's figures, the spec's examples, and our two extra rules."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cytolens.models.checkpoint import read_state_dict
from cytolens.models.yolox import Yolox, decode, locations
from cytolens.train.detection_loss import Truth, assign, box_loss, detection_losses

pytestmark = pytest.mark.torch

NONE = torch.zeros(0, 4)


def truth(boxes, classes, count=2, ignored=NONE, incomplete=None) -> Truth:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    free = torch.zeros(count, dtype=torch.bool) if incomplete is None else torch.tensor(incomplete)
    return Truth(boxes, torch.tensor(classes, dtype=torch.long), ignored, free)


@pytest.mark.parametrize("name", ["iou", "iou_l1", "giou", "giou_l1"])
def test_losses_and_gradients_equal_the_reference(name: str, data_root: Path, golden_root: Path) -> None:
    network = Yolox(size="nano", classes=80).train()
    network.load_state_dict(read_state_dict(data_root / "weights" / "yolox_nano_coco.safetensors"))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    golden = np.load(golden_root / "yolox_nano_losses.npz")
    wanted = json.loads((golden_root / "yolox_nano_losses.json").read_text())[name]
    truths = []
    for rows in golden["targets"]:
        rows = torch.from_numpy(rows[rows.sum(axis=1) > 0])
        half = rows[:, 3:] / 2
        boxes = torch.cat((rows[:, 1:3] - half, rows[:, 1:3] + half), dim=1)
        truths.append(Truth(boxes, rows[:, 0].long(), NONE, torch.zeros(80, dtype=torch.bool)))
    raw = network(torch.from_numpy(golden["images"]).float())
    losses = detection_losses(raw, truths, (416, 416), box=name.split("_")[0], with_l1=name.endswith("l1"))
    losses.total.backward()
    norm = sum(float((p.grad**2).sum()) for p in network.parameters() if p.grad is not None) ** 0.5
    got = (losses.total, losses.box, losses.l1, losses.objectness, losses.classes)
    keys = ("total_loss", "iou_loss", "l1_loss", "conf_loss", "cls_loss")
    for value, key in zip(got, keys, strict=True):
        assert value.item() == pytest.approx(wanted[key], rel=1e-3, abs=1e-3)
    assert losses.positives_per_truth == pytest.approx(wanted["num_fg"])
    assert norm == pytest.approx(wanted["grad_norm"], rel=1e-3)


def test_box_losses_of_the_worked_example() -> None:
    # centre (26, 12), size 16 × 8 against centre (28, 12), size 16 × 10
    found, wanted = torch.tensor([[18.0, 8, 34, 16]]), torch.tensor([[20.0, 7, 36, 17]])
    assert box_loss(found, wanted, "iou").item() == pytest.approx(0.595041, abs=1e-6)
    assert box_loss(found, wanted, "giou").item() == pytest.approx(0.385859, abs=1e-6)
    with pytest.raises(ValueError, match="iou, giou"):
        box_loss(found, wanted, "diou")


def test_l1_targets_of_the_worked_example() -> None:
    grid, strides = locations((64, 64))
    at = next(i for i, (g, s) in enumerate(zip(grid.tolist(), strides.tolist(), strict=True)) if g == [3, 2] and s == 8)
    raw = torch.full((1, len(grid), 7), -20.0)
    raw[..., :4] = 0
    target = torch.tensor([0.5, -0.5, 0.693147, 0.223144])
    raw[0, at, :4] = target
    raw[0, at, 4:6] = 20.0
    one = truth([[20, 7, 36, 17]], [0])
    with_l1 = detection_losses(raw, [one], (64, 64), with_l1=True)
    positives, _, _ = assign(
        one, decode(raw, (64, 64))[0], raw[0, :, 4], raw[0, :, 5:], (grid + 0.5) * strides[:, None], strides
    )
    assert at in positives.tolist()
    # the location that predicts the truth exactly contributes nothing; only the others do
    others = [i for i in positives.tolist() if i != at]
    expected = 0.0
    for i in others:
        stride, cell = float(strides[i]), grid[i].tolist()
        goal = torch.tensor(
            [28 / stride - cell[0], 12 / stride - cell[1], np.log(16 / stride), np.log(10 / stride)],
            dtype=torch.float32,
        )
        expected += float((raw[0, i, :4] - goal).abs().sum())
    assert with_l1.l1.item() * len(positives) == pytest.approx(expected, abs=1e-3)


def _scene(ious: list[float]) -> tuple[Truth, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One truth of 40 × 40 px and candidates around its centre whose boxes overlap it by the given IoUs."""
    anchors = torch.tensor([[50.0, 50.0]]).repeat(len(ious), 1)
    boxes = torch.stack([torch.tensor([30.0, 30, 30 + 40 * iou, 70]) for iou in ious])
    return (
        truth([[30, 30, 70, 70]], [0], 1),
        boxes,
        torch.zeros(len(ious)),
        torch.zeros(len(ious), 1),
        anchors,
        torch.full((len(ious),), 8.0),
    )


def test_dynamic_k_of_the_worked_example() -> None:
    positives, owner, iou = assign(*_scene([0.9, 0.8, 0.75, 0.6, 0.3, 0.1]))
    assert sorted(positives.tolist()) == [0, 1, 2]  # sum 3.45 → 3
    assert owner.tolist() == [0, 0, 0]
    assert iou.tolist() == pytest.approx([0.9, 0.8, 0.75])


def test_a_truth_without_overlap_still_gets_one_location() -> None:
    positives, _, _ = assign(*_scene([0.01, 0.02, 0.03]))
    assert len(positives) == 1


def test_a_contested_location_goes_to_the_cheaper_truth() -> None:
    boxes = torch.tensor([[30.0, 30, 70, 70], [32.0, 30, 72, 70]])
    both = truth([[30, 30, 70, 70], [33, 30, 73, 70]], [0, 0], 1)
    anchors, strides = torch.tensor([[50.0, 50], [52.0, 50]]), torch.full((2,), 8.0)
    positives, owner, _ = assign(both, boxes, torch.zeros(2), torch.zeros(2, 1), anchors, strides)
    assert sorted(zip(positives.tolist(), owner.tolist(), strict=True)) == [(0, 0), (1, 1)]


def test_images_without_truth_and_truths_outside_train() -> None:
    raw = torch.zeros(3, 84, 7, requires_grad=True)
    outside = truth([[200, 200, 220, 220]], [1])
    losses = detection_losses(raw, [truth([], []), outside, truth([[0, 0, 3, 3]], [0])], (64, 64), with_l1=True)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert raw.grad is not None
    assert torch.isfinite(raw.grad).all()
    assert raw.grad[0, :, 4].abs().sum() > 0  # objectness learns from empty images too
    assert raw.grad[0, :, :4].abs().sum() == 0


def test_confident_findings_of_an_incomplete_label_cost_nothing() -> None:
    raw = torch.full((1, 84, 7), -6.0)
    raw[..., :4] = 0
    raw[0, 10, 4:6] = 6.0  # a confident finding of class 0 that nobody annotated
    full = detection_losses(raw, [truth([], [])], (64, 64)).objectness.item()
    free = detection_losses(raw, [truth([], [], incomplete=[True, False])], (64, 64)).objectness.item()
    other = detection_losses(raw, [truth([], [], incomplete=[False, True])], (64, 64)).objectness.item()
    assert other == full
    assert full - free == pytest.approx(6.0, abs=0.01)  # softplus(6)
    incomplete = truth([], [], incomplete=[True, False])
    quarter = detection_losses(raw, [incomplete], (64, 64), believed_cost=0.25).objectness.item()
    assert full - quarter == pytest.approx(4.5, abs=0.01)


def test_a_second_finding_of_an_annotated_cell_is_not_free() -> None:
    grid, strides = locations((64, 64))
    twice = [
        i
        for i, (g, s) in enumerate(zip(grid.tolist(), strides.tolist(), strict=True))
        if s == 8 and g in ([3, 3], [7, 7])
    ]
    raw = torch.full((1, 84, 7), -6.0)
    raw[..., :4] = 0
    raw[0, twice, 4:6] = 6.0
    raw[0, twice[1], :2] = torch.tensor([-4.0, -4.0])  # far away, but it draws the same box
    one = truth([[20, 20, 28, 28]], [0], incomplete=[True, False])
    losses = detection_losses(raw, [one], (64, 64))
    assert losses.objectness.item() > 5


def test_findings_inside_an_ignored_truth_cost_nothing() -> None:
    raw = torch.full((1, 84, 7), -6.0)
    raw[..., :4] = 0
    raw[0, 9, 4:6] = 6.0  # centre (8, 8), 8 px wide
    region = torch.tensor([[0.0, 0, 20, 20]])
    full = detection_losses(raw, [truth([], [])], (64, 64)).objectness.item()
    free = detection_losses(raw, [truth([], [], ignored=region)], (64, 64)).objectness.item()
    assert full - free > 5.9
