"""A detector that learns attributes: what travels with a box, what teaches, and what a second phase begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cytolens import boxes as box
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.labels import LabelSet, attribute_schema
from cytolens.problems import Problems
from cytolens.run.training import _detect_plan, _start, training_settings
from cytolens.tasks.attributes import known_partners, shares_by_kind, value_indices
from cytolens.train.augment_field import FieldAugment, FieldSample, augmented, with_regions
from cytolens.train.detection import collate
from tests.train.test_augment import PLAIN_COLOUR

pytestmark = pytest.mark.torch

SCHEMA = attribute_schema("leukemia_attri")
LABELS = LabelSet.of(["None", "Myeloblast", "Neutrophil"], SCHEMA)


def shaded(seed: int) -> FieldSample:
    """Discs on black whose brightness is the value of their one attribute, times 20."""
    random = np.random.default_rng(seed)
    pixels, boxes, values = np.zeros((120, 160, 3), np.uint8), [], []
    for place, value in zip([(30, 30), (110, 40), (60, 90)], random.integers(3, 12, 3), strict=True):
        cv2.circle(pixels, place, 13, (int(value) * 20,) * 3, -1)
        boxes.append([place[0] - 13, place[1] - 13, place[0] + 14, place[1] + 14])
        values.append([value])
    corners = np.array(boxes, np.float32)
    plain = np.zeros(3, bool)
    indices, sides = np.array(values, np.int8), np.sqrt(box.areas(corners))
    rulers = np.full(3, 10 + seed, np.float32)  # each field has its own
    return FieldSample(pixels, corners, np.zeros(3, np.int64), plain, plain[:1], indices, sides, rulers)


@given(seed=st.integers(0, 10_000), mosaic=st.sampled_from([0.0, 1.0]))
def test_values_travel_with_their_cells(seed: int, mosaic: float) -> None:
    chosen = FieldAugment(mosaic=mosaic, mosaic_scale=(0.9, 1.4), colour=PLAIN_COLOUR, least_left=0.97)
    sample = augmented(0, 6, shaded, 128, chosen, np.random.default_rng(seed), closing=False)
    assert len(sample.values) == len(sample.boxes) == len(sample.sides_px)
    for (x, y), (value,), side in zip(box.centres(sample.boxes), sample.values, sample.sides_px, strict=True):
        seen = sample.pixels[min(int(y), 127), min(int(x), 127), 0]
        assert abs(int(seen) - 20 * int(value)) <= 8
        assert side == np.float32(27)  # scaling a field makes no cell larger
    for (value,), ruler in zip(sample.values, sample.rulers_px, strict=True):
        assert value in shaded(int(ruler) - 10).values  # each cell keeps the red cells of its own field


def test_mixed_fields_keep_the_values_of_both() -> None:
    chosen = FieldAugment(mosaic=1, mixup=1, colour=PLAIN_COLOUR)
    sample = augmented(0, 6, shaded, 128, chosen, np.random.default_rng(4), closing=False)
    assert sample.values.shape == (len(sample.boxes), 1)
    assert len(sample.kept(np.arange(len(sample.boxes)) % 2 == 0).values) == (len(sample.boxes) + 1) // 2


@given(seed=st.integers(0, 10_000), least=st.floats(0.3, 0.95))
def test_regions_keep_the_overlap_that_is_asked_for(seed: int, least: float) -> None:
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 400, (20, 2))
    boxes = np.c_[corner, corner + random.uniform(4, 90, (20, 2))].astype(np.float32)
    moved = box.jittered(boxes, least, random)
    assert np.diag(box.iou(boxes.astype(float), moved.astype(float))).min() >= least - 1e-5
    assert (moved != boxes).any()
    assert box.jittered(boxes[:0], least, random).shape == (0, 4)


def test_regions_lie_in_the_picture_and_carry_their_size() -> None:
    sample = with_regions(shaded(1), 0.6, np.random.default_rng(0))
    assert sample.regions is not None
    assert (sample.regions >= 0).all()
    assert (sample.regions <= 120).all()
    ratio = sample.sides_px / shaded(1).sides_px
    assert ((ratio > 0.6) & (ratio < 1.5)).all()
    assert (sample.boxes == shaded(1).boxes).all()  # the detector learns from the boxes as they are


# -- what teaches -----------------------------------------------------------------------------------


def cells_of(image_id: str, **changes: list[Any]) -> Cells:
    """An artefact that somebody described, a myeloblast, and a neutrophil of which only the size is known."""
    told = {a.column: [a.values[0], a.values[-1], None] for a in SCHEMA}
    told["leukemia_attri.cell_size"] = ["large", "large", "small"]
    return Cells.of(
        LABELS,
        image_id=[image_id] * 3,
        boxes=[[4, 4, 30, 30], [40, 8, 80, 44], [60, 60, 90, 92]],
        label=["None", "Myeloblast", "Neutrophil"],
        source="human:ab",
        attributes=told | changes,
    )


def test_artefacts_have_no_attributes() -> None:
    cells = cells_of("a.png")
    assert value_indices(cells).tolist() == [[-1] * 7, [2, 1, 1, 1, 1, 1, 1], [0, -1, -1, -1, -1, -1, -1]]
    assert "None" not in shares_by_kind(cells)


def test_cells_that_are_found_learn_what_is_known_of_the_truth_they_overlap_most() -> None:
    found = np.array([[0, 0, 8, 8], [61, 60, 90, 92], [41, 8, 80, 44], [4, 4, 30, 30]], np.float32)
    rows, values = known_partners(cells_of("a.png"), found)
    assert dict(zip(rows.tolist(), values[:, 0].tolist(), strict=True)) == {1: 0, 2: 2}  # none for the artefact
    rows, values = known_partners(cells_of("a.png"), found[:0])
    assert (rows.shape, values.shape) == ((0,), (0, 7))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("fields")
    random, rows, tables = np.random.default_rng(5), [], []
    for number in range(4):
        name = f"{number}.png"
        cv2.imwrite(str(folder / name), random.integers(120, 250, (96, 128, 3), np.uint8))
        rows.append({"image_id": name, "path": str(folder / name), "width_px": 128, "height_px": 96})
        tables.append(cells_of(name))
    return Dataset(Images.of(rows), tables[0].concat(*tables[1:]), "made")


def settings(**more: Any) -> Any:
    tables = {"model": "yolox-nano", "attributes": ["leukemia_attri"], "input": {"side_px": 96}, "multi_scale": 0}
    return training_settings("detect", tables=tables | {"hardware": {"channels_last": False}} | more)


def planned(data: Dataset, chosen: Any) -> Any:
    torch.manual_seed(chosen.seed)
    plan = _detect_plan(chosen, data, data, Problems())
    _start(plan.module.network, chosen, lambda _: None)
    return plan


def test_a_value_that_is_missing_teaches_nothing_and_spoils_nothing(data: Dataset) -> None:
    plan = planned(data, settings(augment={"mosaic": 0.0}))
    module, images, truths = plan.module, *collate([plan.samples[(0, index)] for index in range(3)])
    assert all(truth.regions is not None and truth.values is not None for truth in truths)
    module.eval()
    whole = module.said(images.float(), truths)[1]["loss_attributes"]
    assert float(whole.detach()) > 0
    known = torch.cat([truth.values for truth in truths])
    logits = torch.randn(len(known), 15, requires_grad=True)
    module.value_loss(logits, known).backward()
    assert logits.grad is not None
    taught = logits.grad != 0
    first = np.cumsum([0, 3, 2, 2, 2, 2, 2])
    for at, count in zip(first, (3, 2, 2, 2, 2, 2, 2), strict=True):
        column = known[:, list(first).index(at)]
        assert torch.equal(taught[:, at : at + count].any(dim=1), column != -1)
    # A batch is no more than its images: the mean over all known values.
    parts = [module.said(images[i : i + 1].float(), truths[i : i + 1])[1]["loss_attributes"] for i in range(3)]
    counts = [int((truth.values != -1).sum()) for truth in truths]
    mean = sum(float(part.detach()) * count for part, count in zip(parts, counts, strict=True)) / sum(counts)
    assert float(whole.detach()) == pytest.approx(mean, rel=1e-4)


def test_who_describes_one_cell_well_and_finds_no_other_is_not_the_best(data: Dataset) -> None:
    module = planned(data, settings()).module
    module.log = module.log_dict = lambda *_, **__: None
    known = value_indices(data.cells)
    described = known[(known != -1).any(axis=1)]
    right = np.concatenate(
        [
            np.eye(width, dtype=np.float32)[np.maximum(described[:, at], 0)]
            for at, width in enumerate((3, 2, 2, 2, 2, 2, 2))
        ],
        axis=1,
    )
    scores = []
    for count in (len(described), 1):
        module._logits, module._known = [right[:count]], [described[:count]]
        scores.append(module.score(0.5))
    every, one = scores
    assert every > one
    assert one <= (0.5 + 1 / len(described)) / 2
    assert module.score(0.5) == 0.25  # nothing was found


def test_a_batch_without_any_value_learns_boxes(data: Dataset) -> None:
    bare = data.relabel(LabelSet(data.labels.names)).relabel(data.labels)
    plan = planned(bare, settings())
    images, truths = collate([plan.samples[(0, 0)]])
    plan.module.train()
    raw, more = plan.module.said(images.float(), truths)
    assert float(more["loss_attributes"].detach()) == 0
    (raw.sum() + more["loss_attributes"]).backward()
    assert all(p.grad is not None and not p.grad.any() for p in plan.module.head.parameters())


def test_a_second_phase_begins_with_the_head_of_the_first_bit_by_bit(data: Dataset, tmp_path: Path) -> None:
    first = planned(data, settings(seed=1)).module.network
    file = tmp_path / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in first.state_dict().items()}, file)
    second = planned(data, settings(seed=2, weights=str(file))).module.network
    other = planned(data, settings(seed=2)).module.network
    before = load_file(file)
    heads = [name for name in before if name.startswith("attributes.")]
    assert len(heads) == 8
    for name, value in second.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert any(not torch.equal(other.state_dict()[name], before[name]) for name in heads)  # as fresh ones would be


def test_training_tells_the_head_sizes_in_red_cells(data: Dataset) -> None:
    images = data.images.with_columns(um_per_px=pl.Series([0.5, 0.25, None, None], dtype=pl.Float32))
    known = Dataset(images, data.cells, "made")
    plan = planned(known, settings(attribute_scale="red-cell", augment={"mosaic": 0.0}))
    module = plan.module
    assert module.head.told == 2
    _, truths = collate([plan.samples[(0, index)] for index in range(4)])
    sides = [torch.cat([t.sides_px for t in truths[at : at + 1]]) for at in range(4)]
    for truth, side, ruler in zip(truths, sides, (15.0, 30.0, None, None), strict=True):
        shown = 96 / 128
        wanted = torch.zeros(len(side)) if ruler is None else torch.log2(side / (ruler * shown))
        torch.testing.assert_close(truth.scales[:, 0], wanted)
        assert set(truth.scales[:, 1].tolist()) <= {float(ruler is not None)}
    images, truths = collate([plan.samples[(0, index)] for index in range(3)])
    module.said(images.float(), truths)[1]["loss_attributes"].backward()
    assert module.head.heads.linear.weight.grad[:, -2:].abs().sum() > 0
    assert planned(known, settings()).module.head.told == 0


def test_the_loss_of_the_originals_is_there_too(data: Dataset) -> None:
    plan = planned(data, settings(attribute_loss="asymmetric", attribute_share=2.0))
    images, truths = collate([plan.samples[(0, index)] for index in range(2)])
    plan.module.eval()
    assert float(plan.module.said(images.float(), truths)[1]["loss_attributes"].detach()) > 0
