"""Attributes read from a detector's maps: where, by what shape, and what that teaches the detector."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cytolens.models import catalog
from cytolens.models.attributes import asymmetric_terms, cross_entropy_terms, mean_of_known
from cytolens.models.regions import RegionHead, as_regions, with_gradient
from cytolens.models.yolox import EARLY_STRIDES, Yolox

pytestmark = pytest.mark.torch

VALUES = (3, 2, 2, 2, 2, 2, 2)  # the cell size has three


def ramps(height: int, width: int, stride: int) -> Tensor:
    """A map (1, 2, H / stride, W / stride) that holds at each place where it is: x and y in px of the map."""
    y, x = torch.meshgrid(torch.arange(height // stride), torch.arange(width // stride), indexing="ij")
    return torch.stack((x, y)).float()[None] + 0.5


@pytest.mark.parametrize(("height", "width"), [(640, 640), (384, 640), (640, 416)])
@pytest.mark.parametrize("size", ["small", "attridet"])
def test_a_region_is_read_where_its_box_lies(height: int, width: int, size: str) -> None:
    # The example of the published program: it truncated the second map's 32.5, and took channels for the height.
    boxes = torch.tensor([[200.0, 120, 360, 260]])
    on_maps = {4: (50, 30, 90, 65), 8: (25, 15, 45, 32.5)}
    head = RegionHead(size, (2, 2), EARLY_STRIDES, VALUES)
    maps = [ramps(height, width, stride) for stride in EARLY_STRIDES]
    pooled = head.pooled(maps, as_regions([boxes]))[0]
    rows, columns = head.bins_hw
    assert pooled.shape == (4, rows, columns)
    for at, stride in enumerate(EARLY_STRIDES):
        x0, y0, x1, y1 = on_maps[stride]
        x = x0 + (np.arange(columns) + 0.5) * (x1 - x0) / columns  # the mean over a bin of a ramp is its middle
        y = y0 + (np.arange(rows) + 0.5) * (y1 - y0) / rows
        np.testing.assert_allclose(pooled[2 * at], np.tile(x, (rows, 1)), rtol=1e-5)
        np.testing.assert_allclose(pooled[2 * at + 1], np.tile(y[:, None], (1, columns)), rtol=1e-5)


def test_the_published_shape() -> None:
    network = catalog.detector("yolox-x", 14, VALUES, "attridet")
    assert network.attributes is not None
    shapes = [tuple(one.shape) for name, one in network.attributes.state_dict().items() if name.endswith("weight")]
    assert shapes == [(128, 480, 3, 3), (64, 128, 3, 3), (64, 64, 3, 3), (1024, 576), (256, 1024), (15, 257)]
    assert network.attributes.bins_hw == (24, 30)


@pytest.mark.parametrize("size", ["small", "attridet"])
def test_a_fresh_head_passes_on_what_it_sees(size: str) -> None:
    """As strong as it came: a signal that fades from layer to layer leaves the last one nothing to learn from."""
    torch.manual_seed(1)
    head = RegionHead(size, (24, 48), EARLY_STRIDES, VALUES).eval()
    seen = torch.randn(32, 72, *head.bins_hw)
    with torch.no_grad():
        assert 0.5 < float(head.features(seen).std()) < 4


def test_a_size_that_is_not_known() -> None:
    with pytest.raises(ValueError, match="small, attridet"):
        RegionHead("large", (2, 2), EARLY_STRIDES, VALUES)


@pytest.fixture
def network() -> Yolox:
    torch.manual_seed(3)
    return catalog.detector("yolox-nano", 2, VALUES).eval()


def batch(images: int, seed: int = 0) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Pictures that are not square, boxes of each, and what is known of them; the second has no cell."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.rand(images, 3, 64, 96, generator=generator) * 255
    boxes, values = [], []
    for number in range(images):
        count = 0 if number == 1 else 2 + number
        corner = torch.rand(count, 2, generator=generator) * 40
        boxes.append(torch.cat((corner, corner + 10 + 14 * torch.rand(count, 2, generator=generator)), dim=1))
        index = torch.rand(count, len(VALUES), generator=generator) * torch.tensor(VALUES)
        values.append(torch.where(torch.rand(index.shape, generator=generator) < 0.2, -1, index.int()))
    return pictures, boxes, values


def test_maps_have_the_strides_that_are_said(network: Yolox) -> None:
    pictures, *_ = batch(1)
    raw, maps = network.look(pictures)
    assert torch.equal(raw, network(pictures))
    for one, stride, channels in zip(maps, EARLY_STRIDES, (32, 64), strict=True):
        assert one.shape == (1, channels, 64 // stride, 96 // stride)


def test_a_cell_is_described_alike_in_any_batch(network: Yolox) -> None:
    pictures, boxes, values = batch(4)
    assert network.attributes is not None
    with torch.no_grad():
        together = network.attributes(network.look(pictures)[1], as_regions(boxes))
        alone = [
            network.attributes(network.look(pictures[i : i + 1])[1], as_regions(boxes[i : i + 1])) for i in range(4)
        ]
    assert together.shape == (2 + 0 + 4 + 5, sum(VALUES))
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    # So is what it teaches: the sum over the batch is that over its images.
    for terms in (cross_entropy_terms, asymmetric_terms):
        whole = terms(together, torch.cat(values), VALUES).sum()
        parts = sum(terms(one, known, VALUES).sum() for one, known in zip(alone, values, strict=True))
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)


def test_the_side_of_a_cell_is_that_of_its_region_unless_another_is_said(network: Yolox) -> None:
    pictures, boxes, _ = batch(1)
    assert network.attributes is not None
    maps = network.look(pictures)[1]
    regions = as_regions(boxes)
    sides = (regions[:, 3:] - regions[:, 1:3]).prod(dim=1).sqrt()
    plain = network.attributes(maps, regions)
    torch.testing.assert_close(plain, network.attributes(maps, regions, sides))
    assert not torch.allclose(plain, network.attributes(maps, regions, 2 * sides))


def test_a_head_that_is_told_sizes_looks_at_nothing_else_for_them(network: Yolox) -> None:
    pictures, boxes, _ = batch(1)
    told = catalog.detector("yolox-nano", 2, VALUES, told=2).eval().attributes
    assert told is not None
    maps, regions = network.look(pictures)[1], as_regions(boxes)
    scales = torch.tensor([[0.5, 1], [0, 0]], requires_grad=True)
    said = told(maps, regions, 50 * torch.ones(2), scales)
    assert said.shape == (2, sum(VALUES))
    torch.testing.assert_close(said, told(maps, regions, scales=scales))  # px are no part of it
    said[:, 0].sum().backward()
    assert scales.grad is not None
    expected = told.heads.linear.weight[0, -2:]  # the last layer is linear in what it is told
    torch.testing.assert_close(scales.grad, expected.expand(2, 2))
    with pytest.raises(ValueError, match="told 2 numbers"):
        told(maps, regions)
    assert network.attributes is not None
    with pytest.raises(ValueError, match="told 0 numbers"):
        network.attributes(maps, regions, scales=scales)


def gradients(network: Yolox, factor: float, arithmetic: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """The gradients of backbone and head, flat, after one backward pass as a trainer makes it."""
    pictures, boxes, values = batch(3)
    network.zero_grad()
    assert network.attributes is not None
    with torch.autocast("cpu", arithmetic or torch.bfloat16, enabled=arithmetic is not None):
        _, maps = network.look(pictures)
        logits = network.attributes(with_gradient(maps, factor), as_regions(boxes))
        known = torch.cat(values)
        loss = mean_of_known(cross_entropy_terms(logits, known, VALUES), known, VALUES)
    scale = 2.0**10 if arithmetic == torch.float16 else 1.0
    (loss * scale).backward()

    def flat(module: torch.nn.Module) -> Tensor:
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in module.parameters()]
        return torch.cat(parts).float() / scale

    return flat(network.backbone), flat(network.attributes)


@pytest.mark.parametrize("arithmetic", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_the_backbone_learns_as_much_under_half_precision(network: Yolox, arithmetic: torch.dtype) -> None:
    exact, _ = gradients(network, 1.0, None)
    rough, _ = gradients(network, 1.0, arithmetic)
    assert exact.norm() > 0
    # Outside the scaling of the loss, or without it, this would be off by orders of magnitude.
    assert float((rough - exact).norm() / exact.norm()) < 0.15
    assert float(torch.nn.functional.cosine_similarity(rough, exact, dim=0)) > 0.98


def test_one_factor_says_how_much_reaches_the_detector(network: Yolox) -> None:
    whole, head = gradients(network, 1.0, None)
    for factor in (0.0, 0.25):
        part, same = gradients(network, factor, None)
        torch.testing.assert_close(part, factor * whole, rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(same, head)


@pytest.mark.parametrize("arithmetic", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_pictures_without_cells_are_no_exception(network: Yolox, arithmetic: torch.dtype) -> None:
    assert network.attributes is not None
    with torch.autocast("cpu", torch.bfloat16, enabled=arithmetic == torch.bfloat16):
        logits = network.attributes(network.look(batch(1)[0])[1], as_regions([torch.zeros(0, 4)]))
    assert logits.shape == (0, sum(VALUES))
    logits.sum().backward()
    assert all(one.grad is not None and not one.grad.any() for one in network.attributes.parameters())
