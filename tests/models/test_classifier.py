"""Classifiers of several families: they build, they can be frozen in part, and they answer in ONNX as in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.models import catalog
from cytolens.models.classifier import Classifier, for_this_size, freeze
from cytolens.problems import SettingError
from cytolens.run.training import train
from cytolens.settings import checked
from cytolens.train.classification import ClassifyTraining
from cytolens.train.export import export_classifier
from tests.train.test_classification import rendered

pytestmark = pytest.mark.torch


def network(name: str, side_px: int, norm: str = "batch", classes: int = 5) -> Classifier:
    torch.manual_seed(0)
    made = catalog.classifier(name, classes=classes, side_px=side_px, norm=norm, dropout=0.1, drop_path=0.0)
    assert isinstance(made, Classifier)
    return made


def seasoned(made: Classifier, images: torch.Tensor) -> Classifier:
    """With norms that have seen data, and branches that count, so that a wrong layer shows in the answer."""
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
        if type(module).__name__ == "LayerScale":
            nn.init.constant_(cast(Any, module).gamma, 0.5)
    with torch.no_grad():
        made.train()(images)
    return made.eval()


# -- families ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "side_px", "embedding"),
    [
        ("vit_large_patch16_224.augreg_in21k_ft_in1k", 224, 1024),
        ("nextvit_large.bd_ssld_6m_in1k_384", 384, 1024),
        ("tf_efficientnetv2_m.in21k", 512, 1280),
        ("vit_base_patch14_dinov2.lvd142m", 224, 768),
        ("tiny_vit_21m_512.dist_in22k_ft_in1k", 512, 576),
        ("mobilenetv3_small_100", 224, 1024),  # the features pass one more layer, which is wider
    ],
)
def test_the_networks_of_the_recipe_can_be_built(name: str, side_px: int, embedding: int) -> None:
    with torch.device("meta"):  # shapes without the memory
        made = network(name, side_px, classes=23)
    assert made.head.in_features == embedding
    assert 0 < made.mean[0, 0].numel() <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side_px"),
    [
        ("test_vit", 64),
        ("vit_small_patch14_dinov2", 70),
        ("tiny_vit_5m_224", 64),
        ("tf_efficientnetv2_b0", 64),
        ("nextvit_small", 64),
    ],
)
def test_each_family_answers_in_onnx_as_in_torch(name: str, side_px: int, tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, side_px, side_px, 3), np.uint8)
    planes = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float()
    made = seasoned(network(name, side_px), planes)
    export_classifier(made, tmp_path / "model.onnx", side_px)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = made(planes)
    for got, wanted in zip(session.run(None, {"images": images}), expected, strict=True):
        wanted = wanted.numpy()
        assert got.shape == wanted.shape
        assert wanted.std(axis=0).max() > 0.01  # pictures are told apart, so that there is something to compare
        assert np.abs(got - wanted).max() < 1e-4 * max(1.0, np.abs(wanted).max())
    assert len(session.run(None, {"images": images[:1]})[0]) == 1


def test_a_side_that_patches_do_not_fill_is_refused() -> None:
    with pytest.raises(SettingError, match=r"patches of 14 px.* such as 154 or 168"):
        network("vit_small_patch14_dinov2", 160)
    with pytest.raises(SettingError, match="such as 16"):
        network("test_vit", 10)


def test_a_network_without_batch_norms_has_none_to_exchange() -> None:
    with pytest.raises(SettingError, match='"test_vit" has no batch norms'):
        network("test_vit", 64, norm="group")
    exchanged = network("test_efficientnet", 64, norm="group")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in exchanged.modules())


# -- position embeddings ----------------------------------------------------------------------------


def test_position_embeddings_are_brought_to_another_grid() -> None:
    small, large = network("test_vit", 64), network("test_vit", 96)
    across = torch.linspace(-1, 1, 4).expand(4, 4).reshape(1, 16, 1).repeat(1, 1, 64)  # rises from left to right
    state = small.state_dict()
    prefix = state["backbone.pos_embed"][:, :1] if small.backbone.num_prefix_tokens else across[:, :0]
    state["backbone.pos_embed"] = torch.cat([prefix, across], dim=1)
    moved = for_this_size(large, state)["backbone.pos_embed"]
    assert moved.shape == large.backbone.pos_embed.shape
    grid = moved[:, moved.shape[1] - 36 :].reshape(6, 6, 64)
    assert torch.equal(moved[:, : prefix.shape[1]], prefix)
    assert (grid[:, 1:] > grid[:, :-1]).all()
    assert torch.allclose(grid[0], grid[5], atol=1e-5)
    assert grid.mean().item() == pytest.approx(0, abs=1e-5)
    same = for_this_size(small, state)
    assert same["backbone.pos_embed"] is state["backbone.pos_embed"]


def test_weights_without_position_embeddings_stay_as_they_are() -> None:
    made = network("test_efficientnet", 64)
    state = made.state_dict()
    assert for_this_size(made, state) == state
    strange = {"backbone.pos_embed": torch.zeros(1, 18, 64)}  # 17 patches are no square
    assert for_this_size(network("test_vit", 96), strange)["backbone.pos_embed"].shape == (1, 18, 64)


# -- freezing ---------------------------------------------------------------------------------------


def trained(made: Classifier) -> set[str]:
    return {name for name, weight in made.named_parameters() if weight.requires_grad}


def test_the_last_blocks_of_a_transformer_are_trained() -> None:
    with torch.device("meta"):
        made = network("vit_base_patch14_dinov2", 224)
    freeze(made, 5)
    names = trained(made)
    assert {name.split(".")[2] for name in names if ".blocks." in name} == {"7", "8", "9", "10", "11"}
    assert {name for name in names if ".blocks." not in name} == {
        "backbone.norm.weight", "backbone.norm.bias", "head.weight", "head.bias"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "last", "first_trained", "trains_too"),
    [
        ("tf_efficientnetv2_b0", 1, "backbone.blocks.5.7.", "backbone.conv_head.weight"),
        ("tiny_vit_5m_224", 1, "backbone.stages.3.blocks.1.", "backbone.head.norm.weight"),  # reads the features
        ("nextvit_small", 2, "backbone.stages.3.blocks.1.", "backbone.norm.weight"),
        ("resnet18", 2, "backbone.layer4.0.", "backbone.layer4.1.bn2.bias"),
    ],
)
def test_the_last_blocks_of_other_families(name: str, last: int, first_trained: str, trains_too: str) -> None:
    with torch.device("meta"):
        made = network(name, 64)
    freeze(made, last)
    order = [one for one, _ in made.named_parameters()]
    names = trained(made)
    first = next(one for one in order if one in names)
    assert first.startswith(first_trained)
    assert names == set(order[order.index(first) :])
    assert trains_too in names


def test_from_the_head_alone_to_all_but_the_stem() -> None:
    made = network("test_efficientnet", 64)
    freeze(made, 0)
    assert trained(made) == {"head.weight", "head.bias"}
    freeze(made, 5)
    stem = {name for name, _ in made.named_parameters()} - trained(made)
    assert stem == {"backbone.conv_stem.weight", "backbone.bn1.weight", "backbone.bn1.bias"}
    with pytest.raises(SettingError, match="frozen = 6: the network has 5 blocks; allowed: 0 to 5"):
        freeze(made, 6)


def test_frozen_norms_keep_their_statistics() -> None:
    made = network("test_efficientnet", 64)
    freeze(made, 1)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    made.eval()
    made.train()
    made(torch.rand(4, 3, 64, 64) * 255)
    moved = {name for name, value in made.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith(("backbone.blocks.4.", "backbone.bn2.")) for name in moved)
    assert made.training


# -- trainings that go on from others -----------------------------------------------------------------

TINY: dict[str, Any] = {
    "model": "test_efficientnet",
    "tuning_share": 0.3,
    "input": {"side_px": 32},
    "hardware": {"accelerator": "cpu", "workers": 0, "threads": 1},
    "optimise": {"epochs": 1, "closing_epochs": 0, "warmup_epochs": 0, "batch": 4, "learning_rate": 0.01},
}


def going_on(run: Path, data: Dataset, notes: list[str], **values: Any) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    result = train(checked(ClassifyTraining, TINY | values, "test"), data, run, progress=False, notify=notes.append)
    assert result.bundle.self_test().passed
    return load_file(run / "weights.safetensors")


def with_background(data: Dataset, folder: Path) -> Dataset:
    """The same cells, and three crops that show none."""
    from PIL import Image

    labels = LabelSet.of([*data.labels.names, "Background"])
    rows = data.images.rows()
    for number in range(6):
        Image.new("RGB", (48, 48), (225 - number, 215, 205)).save(folder / f"empty-{number}.png")
        rows.append({
            "image_id": f"empty-{number}.png", "path": str(folder / f"empty-{number}.png"),
            "width_px": 48, "height_px": 48,
        })  # fmt: skip
    ids = [row["image_id"] for row in rows]
    names = [*data.cells.label_names(), *["Background"] * 6]
    cells = Cells.of(labels, image_id=ids, boxes=[[0, 0, 48, 48]] * len(ids), label=names, source="import:x")
    return Dataset(Images.of(rows), cells)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    """A run that has learnt one class more, and the cells without it."""
    folder = tmp_path_factory.mktemp("first")
    data = rendered(folder, {"lymphocyte": 8, "band neutrophil": 5, "segmented neutrophil": 5})
    going_on(folder / "run", with_background(data, folder), [])
    return folder / "run", data


def test_stage_by_stage_a_head_of_another_size_is_drawn_anew(first: tuple[Path, Dataset], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run, data = first
    start = load_file(run / "weights.safetensors")
    assert start["head.weight"].shape[0] == 4
    notes: list[str] = []
    slow = TINY["optimise"] | {"learning_rate": 1e-9}
    after = going_on(tmp_path / "next", data, notes, weights=str(run / "weights.safetensors"), optimise=slow)
    assert after["head.weight"].shape[0] == 3
    assert any("freshly drawn: head; unused there: 2 tensors" in note for note in notes)
    for name, value in start.items():
        if value.is_floating_point() and "running" not in name and not name.startswith("head."):
            assert torch.allclose(after[name], value, atol=1e-5), name  # it went on from there


def test_what_is_frozen_does_not_change(first: tuple[Path, Dataset], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run, data = first
    weights = str(run / "weights.safetensors")
    start = load_file(weights)
    averaged = TINY["optimise"] | {"average_decay": 0.9, "average_ramp": 2.0, "weight_decay": 0.5}
    after = going_on(tmp_path / "next", data, [], weights=weights, frozen=2, optimise=averaged)
    parts = ("backbone.blocks.3.", "backbone.blocks.4.", "backbone.conv_head.", "backbone.bn2.", "head.")
    for name, value in start.items():
        if not name.startswith("head."):
            assert torch.equal(after[name], value) == (not name.startswith(parts)), name


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"frozen": 2}, "frozen = 2 keeps blocks as they start, so it needs weights"),
        ({"frozen": 9, "weights": "WEIGHTS"}, "frozen = 9: the network has 5 blocks; allowed: 0 to 5"),
        (
            {"frozen": 2, "weights": "WEIGHTS", "norm": "group"},
            "would keep tensors that .* does not fill, at random values: backbone",
        ),
    ],
)
def test_frozen_parts_are_never_random(
    first: tuple[Path, Dataset], tmp_path: Path, values: dict[str, Any], complaint: str
) -> None:
    run, data = first
    if "weights" in values:
        values = values | {"weights": str(run / "weights.safetensors")}
    with pytest.raises(SettingError, match=complaint):
        going_on(tmp_path / "next", data, [], **values)
