"""The three pieces of an exported region network answer as the network does, for any numbers and sizes."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from cytolens.models.region_network import RegionNetwork
from cytolens.tasks.segment import BOXES_FILE, MASKS_FILE, TRUNK_FILE
from cytolens.train.export_regions import MAPS, export_region_network
from tests.models.region_examples import CLASSES, small_network, some_regions

pytestmark = pytest.mark.torch

Exported = tuple[RegionNetwork, dict[str, onnxruntime.InferenceSession]]


# A Hybrid Task Cascade has all that a cascade has.
@pytest.fixture(scope="module", params=["mask-rcnn", pytest.param("htc", marks=pytest.mark.slow)])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    network = small_network(request.param, "test_efficientnet", keep_stride=False).train()
    folder = tmp_path_factory.mktemp("pieces")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    export_region_network(network, folder)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert sorted(file.name for file in folder.iterdir()) == sorted((TRUNK_FILE, BOXES_FILE, MASKS_FILE))
    sessions = {
        file: onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
        for file in (TRUNK_FILE, BOXES_FILE, MASKS_FILE)
    }
    return network.eval(), sessions


@pytest.mark.parametrize(("images", "height", "width"), [(1, 32, 32), (1, 96, 64), (3, 64, 160)])
@torch.no_grad()
def test_the_pieces_answer_as_the_network(exported: Exported, images: int, height: int, width: int) -> None:
    network, sessions = exported
    pixels = np.random.default_rng(height).integers(0, 256, (images, height, width, 3), np.uint8)
    seen = dict(zip((*MAPS, "objectness", "deltas"), sessions[TRUNK_FILE].run(None, {"images": pixels}), strict=True))
    maps, objectness, deltas = network.trunk(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
    for name, expected in zip(seen, (*maps, objectness, deltas), strict=True):
        np.testing.assert_allclose(seen[name], expected, atol=1e-4)
    read = {name: seen[name] for name in MAPS[:4]}
    for count in (0, 1, 40):
        regions = some_regions(count, images, height, width)
        scores, boxes = sessions[BOXES_FILE].run(None, {**read, "regions": regions.numpy()})
        expected_scores, expected_boxes = network.boxes(maps, regions)
        assert scores.shape == (count, CLASSES)
        np.testing.assert_allclose(scores, expected_scores, atol=1e-4)
        np.testing.assert_allclose(boxes, expected_boxes, atol=1e-3)  # px
        classes = torch.arange(count) % CLASSES
        given = {**read, "regions": regions.numpy(), "classes": classes.numpy()}
        (masks,) = sessions[MASKS_FILE].run(None, given)
        assert masks.shape == (count, 28, 28)
        np.testing.assert_allclose(masks, network.masks(maps, regions, classes), atol=1e-4)


def test_no_file_says_where_it_was_made(exported: Exported) -> None:
    for session in exported[1].values():
        model = session.get_modelmeta()
        assert not model.custom_metadata_map
        assert not model.description
