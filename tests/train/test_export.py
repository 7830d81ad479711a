"""Exported networks answer as the trained ones do, for any number of pictures and several shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from cytolens.models import catalog
from cytolens.models.concepts import ConceptHead
from cytolens.models.yolox import Yolox, decode
from cytolens.train.export import export_classifier, export_detector, export_regions

pytestmark = pytest.mark.torch

_SIDE = 96


def shaken(network: nn.Module, seed: int) -> nn.Module:
    """The network with norms that have seen data, so that a wrong order of channels shows."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2.0)
    return network


def pictures(count: int, height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(count * height + width).integers(0, 256, (count, height, width, 3), np.uint8)


def run(path: Path, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [np.asarray(answer) for answer in session.run(None, {"images": images})]


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[Yolox, Path]:
    torch.manual_seed(0)
    network = shaken(catalog.detector("yolox-nano", 3), 1)
    assert isinstance(network, Yolox)
    path = tmp_path_factory.mktemp("detector") / "model.onnx"
    export_detector(network, path, _SIDE)
    return network, path


@pytest.mark.parametrize(("count", "height", "width"), [(1, 96, 64), (1, 96, 96), (3, 64, 96), (3, 32, 128)])
def test_a_detector_answers_as_before(detector: tuple[Yolox, Path], count: int, height: int, width: int) -> None:
    network, path = detector
    images = pictures(count, height, width)
    boxes, scores = run(path, images)
    with torch.no_grad():  # the network sees BGR planes, as the published ones do
        planes = torch.from_numpy(np.ascontiguousarray(images[..., ::-1].transpose(0, 3, 1, 2))).float()
        raw = network.eval()(planes)
        expected = decode(raw, (height, width)).numpy()
        likely = (raw[..., 5:].sigmoid() * raw[..., 4:5].sigmoid()).numpy()
    locations = height * width // 64 + height * width // 256 + height * width // 1024
    assert boxes.shape == (count, locations, 4)
    assert scores.shape == (count, locations, 3)
    size = np.maximum((expected[..., 2:] - expected[..., :2]).max(axis=-1, keepdims=True), 1)
    assert np.abs((boxes - expected) / size).max() < 1e-4
    assert np.abs(scores - likely).max() < 1e-4


def test_exporting_leaves_the_network_as_it_was(detector: tuple[Yolox, Path], tmp_path: Path) -> None:
    network, _ = detector
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    export_detector(network, tmp_path / "again.onnx", 64)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [file.name for file in tmp_path.iterdir()] == ["again.onnx"]  # weights inside, nothing half-written
    network.eval()


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_classifier_answers_as_before(norm: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = catalog.classifier("tf_efficientnet_lite0", classes=5, side_px=64, norm=norm, dropout=0.3, drop_path=0.2)
    network = shaken(network, 2)
    export_classifier(network, tmp_path / "model.onnx", 64)
    network.eval()
    for count in (1, 3):
        images = pictures(count, 64, 64)
        logits, embedding = run(tmp_path / "model.onnx", images)
        with torch.no_grad():
            expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float())
        for got, wanted in zip((logits, embedding), expected, strict=True):
            assert got.shape == tuple(wanted.shape)
            assert np.abs(got - wanted.numpy()).max() < 1e-4 * max(1.0, float(wanted.abs().max()))
    assert logits.shape == (3, 5)


def test_a_classifier_with_attributes_gives_them_in_a_third_table(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = catalog.classifier(
        "test_efficientnet", classes=3, side_px=32, norm="batch", dropout=0.3, drop_path=0, attributes=(2, 4)
    )
    network = shaken(network, 3).eval()
    export_classifier(network, tmp_path / "model.onnx", 32)
    images = pictures(3, 32, 32)
    with torch.no_grad():
        expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float())
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == ["logits", "embedding", "attributes"]
    for got, wanted in zip(run(tmp_path / "model.onnx", images), expected, strict=True):
        assert np.abs(got - wanted.numpy()).max() < 1e-4 * max(1.0, float(wanted.abs().max()))
    assert expected[2].shape == (3, 6)


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_concept_bottleneck_is_inside_the_exported_network(exclusive: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = catalog.classifier(
        "test_efficientnet", classes=3, side_px=32, norm="batch", dropout=0.3, drop_path=0, attributes=(2, 4),
        concepts="sequential", exclusive=exclusive,
    )  # fmt: skip
    network = shaken(network, 3).eval()
    export_classifier(network, tmp_path / "model.onnx", 32)
    images = pictures(3, 32, 32)
    logits, _, attributes, concepts = run(tmp_path / "model.onnx", images)
    with torch.no_grad():
        expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float())
        head = network.head
        assert isinstance(head, ConceptHead)
        weights, bias = head.weight.numpy(), head.linear.bias.numpy()
    assert np.abs(attributes - expected[2].numpy()).max() < 1e-4 * max(1.0, float(expected[2].abs().max()))
    assert np.abs(concepts - expected[3].numpy()).max() < 1e-4
    assert np.abs(logits - (concepts @ weights.T + bias)).max() < 1e-3 * max(1.0, np.abs(weights).max())


@pytest.fixture(scope="module")
def describing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Yolox, Path]:
    torch.manual_seed(0)
    network = shaken(catalog.detector("yolox-nano", 3, (3, 2, 6)), 1)
    assert isinstance(network, Yolox)
    folder = tmp_path_factory.mktemp("describing")
    export_detector(network, folder / "model.onnx", _SIDE)
    export_regions(network, folder / "attributes.onnx")
    return network.eval(), folder


@pytest.mark.parametrize(("count", "height", "width"), [(1, 96, 64), (2, 64, 128)])
def test_a_detector_describes_as_before(describing: tuple[Yolox, Path], count: int, height: int, width: int) -> None:
    network, folder = describing
    images = pictures(count, height, width)
    boxes, scores, *maps = run(folder / "model.onnx", images)
    assert [one.shape[2:] for one in maps] == [(height // 4, width // 4), (height // 8, width // 8)]
    random = np.random.default_rng(0)
    corner = random.uniform(-8, 50, (9, 2))  # some reach beyond the picture
    regions = np.c_[random.integers(0, count, 9), corner, corner + random.uniform(3, 60, (9, 2))].astype(np.float32)
    session = onnxruntime.InferenceSession(folder / "attributes.onnx", providers=["CPUExecutionProvider"])
    feeds = dict(zip(("map_4", "map_8"), maps, strict=True)) | {"regions": regions}
    (got,) = session.run(["attributes"], feeds)
    with torch.no_grad():
        planes = torch.from_numpy(np.ascontiguousarray(images[..., ::-1].transpose(0, 3, 1, 2))).float()
        raw, early = network.look(planes)
        assert network.attributes is not None
        expected = network.attributes(early, torch.from_numpy(regions))
        likely = (raw[..., 5:].sigmoid() * raw[..., 4:5].sigmoid()).numpy()
    assert np.asarray(got).shape == (9, 11)
    assert np.abs(got - expected.numpy()).max() < 1e-4
    assert np.abs(scores - likely).max() < 1e-4
    assert boxes.shape[:2] == scores.shape[:2]


def test_what_a_head_is_told_of_sizes_is_an_input(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = shaken(catalog.detector("yolox-nano", 1, (3, 2), told=2), 1)
    assert isinstance(network, Yolox)
    export_regions(network, tmp_path / "attributes.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "attributes.onnx", providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["map_4", "map_8", "regions", "scales"]
    network.eval()
    assert network.attributes is not None
    answers = []
    for scales in ([[0.7, 1], [0, 0], [-1.5, 1]], [[1.7, 1], [0, 0], [-1.5, 1]]):
        random = np.random.default_rng(3)
        maps = [random.normal(size=(1, c, s, s + 3)).astype(np.float32) for c, s in ((32, 20), (64, 10))]
        regions = np.array([[0, 4, 4, 30, 30], [0, 9, 2, 40, 60], [0, 0, 0, 70, 70]], np.float32)
        told = np.array(scales, np.float32)
        feeds = {"map_4": maps[0], "map_8": maps[1], "regions": regions, "scales": told}
        answers.append(np.asarray(session.run(["attributes"], feeds)[0]))
        with torch.no_grad():
            given = [torch.from_numpy(one) for one in (*maps, regions, told)]
            expected = network.attributes(given[:2], given[2], scales=given[3]).numpy()
        assert np.abs(answers[-1] - expected).max() < 1e-4
    changed = np.abs(answers[0] - answers[1]).max(axis=1) > 1e-3
    assert changed.tolist() == [True, False, False]


def test_a_detector_without_attributes_has_none_to_export(detector: tuple[Yolox, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no attributes"):
        export_regions(detector[0], tmp_path / "attributes.onnx")
