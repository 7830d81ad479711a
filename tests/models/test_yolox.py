"""YOLOX: the published shapes, the reference's tensors, and what the spec works out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cytolens.models import catalog
from cytolens.models.checkpoint import load_matching, read_state_dict
from cytolens.models.yolox import SIZES, Yolox, decode, locations
from cytolens.problems import SettingError

pytestmark = pytest.mark.torch

# size → parameters with 80 classes, with 1 class, keys of the state dict, convolutions, batch norms
PUBLISHED = {
    "nano": (912_159, 896_754, 642, 113, 104),
    "tiny": (5_055_855, 5_032_866, 462, 83, 74),
    "s": (8_968_255, 8_937_682, 462, 83, 74),
    "m": (25_326_495, 25_280_754, 606, 107, 98),
    "l": (54_208_895, 54_147_986, 750, 131, 122),
    "x": (99_071_455, 98_995_378, 894, 155, 146),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_every_size_has_the_published_numbers(size: str) -> None:
    with torch.device("meta"):  # counts need no memory
        many, one = Yolox(size=size, classes=80), Yolox(size=size, classes=1)
    parameters, single, keys, convolutions, norms = PUBLISHED[size]
    assert sum(p.numel() for p in many.parameters()) == parameters
    assert sum(p.numel() for p in one.parameters()) == single
    assert len(many.state_dict()) == keys
    assert sum(isinstance(m, torch.nn.Conv2d) for m in many.modules()) == convolutions
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in many.modules()) == norms
    assert all(m.eps == 1e-3 and m.momentum == 0.03 for m in many.modules() if isinstance(m, torch.nn.BatchNorm2d))


@pytest.mark.parametrize(
    ("size", "name", "shape"),
    [
        ("s", "backbone.backbone.stem.conv.conv.weight", (32, 12, 3, 3)),
        ("s", "backbone.backbone.dark5.1.conv2.conv.weight", (512, 1024, 1, 1)),
        ("s", "backbone.C3_p3.conv1.conv.weight", (64, 256, 1, 1)),
        ("s", "head.stems.2.conv.weight", (128, 512, 1, 1)),
        ("s", "head.cls_preds.0.weight", (1, 128, 1, 1)),
        ("nano", "backbone.backbone.dark2.0.dconv.conv.weight", (16, 1, 3, 3)),
        ("nano", "backbone.backbone.dark2.0.pconv.conv.weight", (32, 16, 1, 1)),
        ("nano", "head.reg_convs.0.1.pconv.conv.weight", (64, 64, 1, 1)),
    ],
)
def test_parameters_are_called_and_shaped_as_in_the_public_files(size: str, name: str, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        assert Yolox(size=size, classes=1).state_dict()[name].shape == shape


def test_state_dict_order_of_neck_and_head() -> None:
    with torch.device("meta"):
        names = list(Yolox(size="s", classes=1).state_dict())
    neck = list(dict.fromkeys(n.split(".")[1] for n in names if n.startswith("backbone.")))
    assert neck == [
        "backbone",
        "lateral_conv0",
        "C3_p4",
        "reduce_conv1",
        "C3_p3",
        "bu_conv2",
        "C3_n3",
        "bu_conv1",
        "C3_n4",
    ]
    head = list(dict.fromkeys(n.split(".")[1] for n in names if n.startswith("head.")))
    assert head == ["cls_convs", "reg_convs", "cls_preds", "reg_preds", "obj_preds", "stems"]


def test_class_and_objectness_start_at_one_per_cent() -> None:
    network = Yolox(size="nano", classes=3)
    for layer in [*network.head.cls_preds, *network.head.obj_preds]:
        assert torch.allclose(layer.bias, torch.tensor(-4.595120))


def test_forward_equals_the_reference(data_root: Path, golden_root: Path) -> None:
    network = Yolox(size="nano", classes=80).eval()
    network.load_state_dict(read_state_dict(data_root / "weights" / "yolox_nano_coco.safetensors"))
    golden = np.load(golden_root / "yolox_nano_forward.npz")
    with torch.inference_mode():
        raw = network(torch.from_numpy(golden["image"]).float())
        corners = decode(raw, (416, 416))
    centre_size = torch.cat(((corners[..., :2] + corners[..., 2:]) / 2, corners[..., 2:] - corners[..., :2]), dim=-1)
    np.testing.assert_allclose(centre_size.numpy(), golden["decoded"][..., :4], rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(raw[..., 4:].sigmoid().numpy(), golden["decoded"][..., 4:], rtol=1e-3, atol=1e-3)


def test_decoding_of_the_worked_example() -> None:
    grid, strides = locations((64, 64))
    at = next(
        i for i, (cell, s) in enumerate(zip(grid.tolist(), strides.tolist(), strict=True)) if cell == [3, 2] and s == 8
    )
    raw = torch.zeros(1, len(grid), 6)
    raw[0, at, :4] = torch.tensor([0.25, -0.5, np.log(2), 0])
    assert decode(raw, (64, 64))[0, at].tolist() == pytest.approx([18, 8, 34, 16])


@pytest.mark.parametrize(("side", "count"), [(416, 3549), (512, 5376), (640, 8400)])
def test_number_of_locations(side: int, count: int) -> None:
    assert len(locations((side, side))[0]) == count


def test_weights_of_another_class_count_load_all_but_the_class_layers(data_root: Path) -> None:
    network = Yolox(size="nano", classes=3)
    fresh, unused = load_matching(network, read_state_dict(data_root / "weights" / "yolox_nano_coco.safetensors"))
    assert sorted(fresh) == sorted(unused)
    assert {name.rsplit(".", 2)[0] for name in fresh} == {"head.cls_preds"}


def test_unknown_names_are_refused() -> None:
    with pytest.raises(SettingError, match='Did you mean "yolox-nano"'):
        catalog.detector("yolox-nanno", 3)
    assert set(SIZES) == {name.removeprefix("yolox-") for name in catalog.DETECTORS}
