"""Map networks: shapes, gradients, and the same answer alone, in a batch and exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from cytolens.models.outlines import MapNetwork, _smoothly_twice, _twice
from cytolens.problems import SettingError
from cytolens.train import export
from cytolens.train.export import export_outlines
from cytolens.train.outlines import as_maps

pytestmark = pytest.mark.torch

SMALL = "test_efficientnet"


def network(types: int = 0, maps: int = 4, backbone: str = SMALL) -> MapNetwork:
    torch.manual_seed(3)
    return MapNetwork(backbone, maps, types, width=0.25)


def pictures(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height)) * 255


@pytest.mark.parametrize(("types", "maps"), [(0, 2), (3, 4)])
@torch.no_grad()
def test_maps_have_the_size_of_the_picture(types: int, maps: int) -> None:
    said = network(types, maps).eval()(pictures(2, 64, 96))
    assert [one.shape for one in said] == [(2, maps, 64, 96), (2, types)][: 2 if types else 1]


@torch.no_grad()
def test_pictures_of_a_batch_do_not_see_each_other() -> None:
    one = network(3).eval()
    images = pictures(3, 64, 96)
    together = one(images)
    for number in range(3):
        for joint, alone in zip(together, one(images[number : number + 1]), strict=True):
            torch.testing.assert_close(joint[number : number + 1], alone, atol=1e-5, rtol=1e-4)


def test_every_weight_has_a_gradient() -> None:
    one = network(2).train()
    maps, types = one(pictures(2, 64, 64))
    (maps.square().mean() + types.square().mean()).backward()
    # The encoder's last layers are those of the coarsest features; all that it keeps is used.
    without = [name for name, value in one.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0]
    assert without == []


def test_twice_as_torch_does_it() -> None:
    maps = torch.randn(2, 5, 7, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(_twice(maps), F.interpolate(maps, scale_factor=2, mode="nearest"), atol=0, rtol=0)
    torch.testing.assert_close(_smoothly_twice(maps), F.interpolate(maps, scale_factor=2, mode="bilinear"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tf_efficientnet_lite00", 'timm has no network "tf_efficientnet_lite00".*Did you mean'),
        ("test_convnext", r'"test_convnext" gives features at strides \[.*allowed: 2, 4, 8, 16, 32'),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(name: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        MapNetwork(name, 4)


def answers_alike(one: MapNetwork, path: Path, field: bool) -> None:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    one = one.eval()
    for size in ((1, 32, 32), (1, 96, 352), (3, 160, 64), (2, 96, 128)):
        pixels = np.random.default_rng(size[1]).integers(0, 256, (*size, 3), np.uint8)
        with torch.no_grad():
            maps, *types = one(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
        said = session.run(None, {"images": pixels})
        for mine, theirs in zip(said, (as_maps(maps, field), *types), strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-4, rtol=1e-4)
    assert [dim for dim in session.get_inputs()[0].shape if isinstance(dim, int)] == [3]
    assert not session.get_modelmeta().custom_metadata_map


@pytest.mark.slow
def test_exported_it_answers_alike_at_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    true = export._exported
    monkeypatch.setattr(export, "_exported", lambda *given: sizes.append(1) or true(*given))
    one = network(3).train()
    export_outlines(one, tmp_path / "model.onnx", field=True)
    assert one.training
    assert len(sizes) == 1  # the graph of one size held for all
    answers_alike(one, tmp_path / "model.onnx", field=True)


@pytest.mark.slow
def test_an_encoder_that_asks_for_sizes_is_exported_the_long_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_agree", lambda *_: False)
    one = network(3)
    export_outlines(one, tmp_path / "model.onnx", field=True)
    answers_alike(one, tmp_path / "model.onnx", field=True)


def test_a_model_of_one_size_does_not_agree(tmp_path: Path) -> None:
    assert not export._agree(b"no model", network(), [(1, 32, 32)])
