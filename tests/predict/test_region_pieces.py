"""Real region networks, small and with drawn weights, in an ensemble: asked in torch, and as their ONNX pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cytolens import boxes as box
from cytolens.bundle import Bundle, write
from cytolens.models.catalog import REGION_NETWORKS
from cytolens.models.region_network import RegionNetwork
from cytolens.predict import region_member, tta
from cytolens.predict.mirror_shift import measure_mirror_shift
from cytolens.predict.region_member import Pixels, RegionMember
from cytolens.predict.region_networks import RegionEnsemble
from cytolens.tasks.segment import BOXES_FILE, MASKS_FILE, TRUNK_FILE, SegmentOutput
from cytolens.views import flip
from tests.models.region_examples import small_network
from tests.predict.region_doubles import outlining
from tests.predict.test_region_networks import assert_follows_flips, discs, squares

pytestmark = pytest.mark.torch
BACKBONES = ("resnet18", "mobilenetv3_small_050")


class TorchPieces:
    """The sessions of a network's three pieces, asked in torch."""

    def __init__(self, network: RegionNetwork) -> None:
        self.network = network.eval()

    @torch.no_grad()
    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """As the session of the piece that these outputs are of."""
        given = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in feeds.items()}
        if "images" in given:
            maps, objectness, deltas = self.network.trunk(given["images"].permute(0, 3, 1, 2).float())
            told = [*maps[:4], objectness, deltas]
        else:
            maps = [given[f"map_{level}"] for level in range(4)]
            if "classes" in given:
                told = [self.network.masks(maps, given["regions"], given["classes"])]
            else:
                told = list(self.network.boxes(maps, given["regions"]))
        assert len(told) == len(outputs)
        return [one.numpy() for one in told]


def lively(family: Any, backbone: str, seed: int = 0, **options: Any) -> RegionNetwork:
    """A network whose drawn weights say something: unlike fresh ones, it tells regions apart."""
    network = small_network(family, backbone, seed, **options)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "predictor" in name and value.ndim > 1:
                value.mul_(8)
    return network


def described(name: str, network: RegionNetwork, shift_px: Sequence[float]) -> Bundle:
    return outlining(name, layout=network.anchors, shift_px=shift_px)


def connect(patch: pytest.MonkeyPatch, sessions: Mapping[str, Any]) -> None:
    patch.setattr(region_member, "session", lambda bundle, device, threads, *, file: sessions[bundle.name])


@pytest.mark.parametrize("family", REGION_NETWORKS)
def test_networks_of_all_families_follow_flips_together(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Of two backbones, with and without the first stride, beside the mark by different amounts, on a padded image."""
    networks = {
        "a": lively(family, BACKBONES[0]),
        "b": lively(family, BACKBONES[1], seed=1, keep_stride=False),
    }
    connect(monkeypatch, {name: TorchPieces(network) for name, network in networks.items()})
    bundles = [described("a", networks["a"], (-0.5, -0.5)), described("b", networks["b"], (0.25, 0.0))]
    pixels = discs(75, 50)
    regions = squares(np.random.default_rng(5), 12, (75, 50))
    classes = np.arange(12) % 3
    assert_follows_flips(RegionEnsemble(bundles, SegmentOutput(views=4)), pixels, regions, classes)
    alone = RegionEnsemble(bundles, SegmentOutput(views=1))
    mirror = flip((75, 50))
    there = alone.boxes(alone.image(mirror.pixels(pixels)), mirror.forward_boxes(regions))
    here = alone.boxes(alone.image(pixels), regions)
    assert np.abs(mirror.back_boxes(there[0]) - here[0]).max() > 0.1
    assert np.abs(there[1] - here[1]).max() > 1e-3  # ten times what the mean may be off by


def exported(folder: Path, name: str, network: RegionNetwork) -> Bundle:
    from cytolens.train.export_regions import export_region_network

    (folder / "pieces").mkdir()
    export_region_network(network, folder / "pieces")
    files = {file: folder / "pieces" / file for file in (TRUNK_FILE, BOXES_FILE, MASKS_FILE)}
    return write(folder / name, described(name, network, (0.0, 0.0)).info, files)


@pytest.mark.slow  # three graphs are exported
def test_the_pieces_on_disk_answer_as_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network = lively("mask-rcnn", BACKBONES[0], keep_stride=False)
    bundle = exported(tmp_path, "a", network)
    pixels = discs(75, 50)
    output = SegmentOutput(views=tta.count("flips", 1), proposals_kept=100, score_floor=0.01)
    found = RegionEnsemble([bundle], output).look(pixels)
    shift_px = measure_mirror_shift(RegionMember(bundle), pixels)
    white: Pixels = np.full((9, 20, 3), 255, np.uint8)
    assert RegionEnsemble([bundle], output).look(white).size_hw == (9, 20)
    connect(monkeypatch, {"a": TorchPieces(network)})
    expected = RegionEnsemble([bundle], output).look(pixels)
    assert len(found.boxes) > 3
    assert box.valid(found.boxes, 75, 50).all()
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
    np.testing.assert_allclose(found.class_scores, expected.class_scores, atol=1e-4)
    assert np.abs(found.patches.astype(int) - expected.patches).max() <= 1
    assert shift_px == pytest.approx(measure_mirror_shift(RegionMember(bundle), pixels), abs=0.02)
    assert max(map(abs, shift_px)) <= 3
