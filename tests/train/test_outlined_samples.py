"""From a dataset of outlines to batches: what is learnt from, what is painted over, and how often what is shown."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cytolens import masks
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.problems import DatasetError, Problems, SettingError
from cytolens.run.segment_training import of_split, segment_parts
from cytolens.tasks.detect import BORDER
from cytolens.train.augment_instances import OutlinedSample
from cytolens.train.batches import Samples, loader
from cytolens.train.outlined_samples import ExtraSampler, checked_data, collate, fields, is_extra, sample_maker
from cytolens.train.segment_settings import SegmentTraining, extra_images

pytestmark = pytest.mark.torch

LABELS = LabelSet.of(["round", "long"])
TEACHER = "bundle:teacher@0123456789ab"


def settings(**values: Any) -> SegmentTraining:
    return SegmentTraining.model_validate({"crop_px": 64, **values})


def quiet(_: str) -> None:
    """Nobody is told."""


def dataset(folder: Path, name: str, images: int, source: str = "import:x", **columns: Any) -> Dataset:
    """Images of 50 × 40 px with two cells each: "round" at (5, 5) of 10 × 10 px, "long" at (30, 8) of 4 × 20 px."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, ids, codes = [], [], []
    for number in range(images):
        pixels = np.full((40, 50, 3), 200, np.uint8)
        for left, top, w, h in ((5, 5, 10, 10), (30, 8, 4, 20)):
            mask = np.zeros((40, 50), bool)
            mask[top : top + h, left : left + w] = True
            pixels[mask] = 60 + number
            ids.append(f"{name}-{number}")
            codes.append(masks.encode(mask))
        path = folder / f"{name}-{number}.png"
        Image.fromarray(pixels).save(path)
        rows.append({"image_id": f"{name}-{number}", "path": str(path), "width_px": 50, "height_px": 40, **columns})
    boxes = np.array([masks.bounds(code, (40, 50)) for code in codes], np.float32)
    label = ["round", "long"] * images
    return Dataset(
        Images.of(rows), Cells.of(LABELS, image_id=ids, boxes=boxes, label=label, mask=codes, source=source), name
    )


def guessed(folder: Path, images: int) -> Dataset:
    """Images whose cells a teacher found: the round ones surely, the long ones not."""
    plain = dataset(folder, "more", images, TEACHER)
    return replace(plain, cells=plain.cells.with_columns(score=[0.9, 0.2] * images))


def together(*datasets: Dataset) -> Dataset:
    return Dataset(
        Images(pl.concat([one.images.frame for one in datasets])),
        datasets[0].cells.concat(*(one.cells for one in datasets[1:])),
        "together",
    )


def test_fields_hold_the_cells_as_prediction_sees_them(tmp_path: Path) -> None:
    (field,) = fields(dataset(tmp_path, "d", 1), settings(), Problems())
    assert field.pixels.shape == (64, 64, 3)  # whole strides, grey below and to the right
    assert (field.pixels[40:] == BORDER).all()
    assert (field.pixels[:, 50:] == BORDER).all()
    assert field.corners.tolist() == [[5, 5], [30, 8]]
    assert [patch.shape for patch in field.patches] == [(10, 10), (20, 4)]
    assert all(patch.all() for patch in field.patches)
    assert field.classes.tolist() == [0, 1]
    assert not field.extra


def test_a_magnified_field_has_magnified_cells(tmp_path: Path) -> None:
    (field,) = fields(dataset(tmp_path, "d", 1), settings(input={"magnify": 2}), Problems())
    assert field.pixels.shape == (96, 128, 3)
    assert field.corners.tolist() == [[10, 10], [60, 16]]
    assert [patch.shape for patch in field.patches] == [(20, 20), (40, 8)]


def test_a_crowd_takes_no_mask_of_the_whole_image_per_cell(tmp_path: Path) -> None:
    """1,200 cells in 600 × 800 px; a mask of the image for each took 576 MB."""
    places = [(x, y) for x in range(0, 800, 20) for y in range(0, 600, 20)]
    Image.fromarray(np.full((600, 800, 3), 200, np.uint8)).save(tmp_path / "crowd.png")
    rows = [{"image_id": "crowd", "path": str(tmp_path / "crowd.png"), "width_px": 800, "height_px": 600}]
    # The first cell is a single pixel, every other one of 8 × 6 px.
    codes = []
    for x, y in places:
        runs = [6, 594] * 8 if x or y else [1, 599]
        first, last = 600 * x + y, 600 * (800 - x) - y - sum(runs) + runs[-1]
        codes.append(masks.from_runs([first, *runs[:-1], last], (600, 800)))
    boxes = np.array([masks.bounds(code, (600, 800)) for code in codes], np.float32)
    cells = Cells.of(
        LABELS,
        image_id=["crowd"] * len(codes),
        boxes=boxes,
        label=["round"] * len(codes),
        mask=codes,
        source="import:x",
    )
    tracemalloc.start()
    (field,) = fields(Dataset(Images.of(rows), cells, "crowd"), settings(), Problems())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert field.corners.tolist() == [[x, y] for x, y in places]
    assert [patch.shape for patch in field.patches] == [(1, 1), *[(6, 8)] * 1199]
    assert peak < 40_000_000


@pytest.mark.parametrize("why", ["ignored", "unnamed", "unsure"])
def test_what_is_no_truth_is_painted_over(tmp_path: Path, why: str) -> None:
    data = dataset(tmp_path, "d", 1)
    change = {
        "ignored": {"ignore": [True, False]},
        "unnamed": {"label": [None, "long"]},
        "unsure": {"score": [0.3, 0.8]},
    }[why]
    (field,) = fields(replace(data, cells=data.cells.with_columns(**change)), settings(), Problems())
    assert field.classes.tolist() == [1]
    plain = fields(data, settings(), Problems())[0].pixels
    mean = plain.mean(axis=(0, 1)).astype(np.uint8)
    assert (field.pixels[5:15, 5:15] == mean).all()
    assert (field.pixels[8:28, 30:34] == 60).all()
    assert field.extra == (why == "unsure")


def test_cells_without_outlines_are_an_error_and_incomplete_images_are_left_out(tmp_path: Path) -> None:
    data = dataset(tmp_path, "d", 2)
    bare = replace(data, cells=data.cells.with_masks([None, *data.cells.masks()[1:]]))
    with pytest.raises(DatasetError, match=r"1 cells have a box and no outline .* they would be taught as background"):
        checked_data(bare, settings(), quiet)
    said: list[str] = []
    half = replace(data, images=data.images.with_columns(complete_for=pl.Series([["round"], ["round", "long"]])))
    assert checked_data(half, settings(), said.append).images.ids == ["d-1"]
    assert said == ["1 images are left out; not all of the labels to learn are annotated in them"]


def test_pseudo_labelled_images_are_never_tuned_on(tmp_path: Path) -> None:
    data = together(dataset(tmp_path, "d", 8, group=None), guessed(tmp_path, 12))
    assert is_extra(data).tolist() == [False] * 8 + [True] * 12
    for seed in range(5):
        learning, tuning = segment_parts(data, settings(seed=seed, tuning_share=0.3), quiet)
        assert not is_extra(tuning).any()
        assert len(tuning.images) == 3
        assert len(learning.images) == 17
    with pytest.raises(DatasetError, match="all images are pseudo-labelled"):
        segment_parts(guessed(tmp_path, 2), settings(), quiet)


def test_a_pseudo_labelled_image_of_a_tuning_group_is_not_learnt_from(tmp_path: Path) -> None:
    data = dataset(tmp_path, "d", 4)
    more = guessed(tmp_path, 2)
    groups = ["a", "a", "b", "b", "a", "b"]
    both = together(data, more)
    both = replace(both, images=both.images.with_columns(group=pl.Series(groups)))
    learning, tuning = segment_parts(both, settings(tuning_share=0.3), quiet)
    assert not set(learning.images.frame["group"]) & set(tuning.images.frame["group"])
    assert (len(learning.images), len(tuning.images)) == (3, 2)


def test_pseudo_labelled_images_outside_all_parts_are_learnt_from(tmp_path: Path) -> None:
    data = together(
        dataset(tmp_path, "d", 2, split="train"), dataset(tmp_path, "e", 2, split="val"), guessed(tmp_path, 3)
    )
    assert of_split(data, "train").images.ids == ["d-0", "d-1", "more-0", "more-1", "more-2"]
    with pytest.raises(DatasetError, match='no part "dev"'):
        of_split(data, "dev")


def test_only_the_named_teacher_is_learnt_from(tmp_path: Path) -> None:
    data = together(dataset(tmp_path, "d", 1), guessed(tmp_path, 1))
    checked_data(data, settings(extra={"teacher": TEACHER}), quiet)
    with pytest.raises(SettingError, match=r"extra\.teacher = .*, but there are cells of bundle:teacher@0123456789ab"):
        checked_data(data, settings(extra={"teacher": "bundle:other@0123456789ab"}), quiet)


@given(
    annotated=st.integers(1, 20), extra=st.integers(0, 60), repeats=st.integers(1, 3), epochs=st.integers(1, 20),
    world=st.integers(1, 3),
)  # fmt: skip
def test_every_annotated_image_and_as_many_extra_ones_as_scheduled(
    annotated: int, extra: int, repeats: int, epochs: int, world: int
) -> None:
    schedule = extra_images(epochs, extra)
    parts = [ExtraSampler(annotated, extra, repeats, schedule, 1, rank, world) for rank in range(world)]
    for epoch in {0, epochs // 2, epochs - 1}:
        for part in parts:
            part.set_epoch(epoch)
        assert len({len(list(part)) for part in parts} | {len(part) for part in parts}) == 1
        shown = parts[0].order()
        assert len(shown) == len(set(shown.tolist())) == repeats * annotated + schedule[epoch]
        counts = np.bincount(shown % (annotated + extra), minlength=annotated + extra)
        assert (counts[:annotated] == repeats).all()
        assert counts[annotated:].sum() == schedule[epoch]
        assert {index for part in parts for _, index in part} == set(shown.tolist())


def test_crops_of_a_kind_have_its_side_and_batches_their_largest(tmp_path: Path) -> None:
    data = dataset(tmp_path, "d", 2)
    second = pl.Series(["round", "long", "long", "long"])
    data = replace(data, cells=data.cells.with_columns(label=second))
    chosen = settings(crop_px_per_label={"long": 96})
    made = fields(data, chosen, Problems())
    assert [field.kind for field in made] == [0, 1]
    make = sample_maker(made, chosen, LABELS.names)
    samples = [make(index, np.random.default_rng(1), 0) for index in range(2)]
    assert [sample.pixels.shape for sample in samples] == [(64, 64, 3), (96, 96, 3)]
    images, targets = collate(samples)
    assert images.shape == (2, 3, 96, 96)
    assert (images[0, :, 64:] == BORDER).all()
    for sample, target in zip(samples, targets, strict=True):
        assert target["masks"].shape == (len(sample.classes), 96, 96)
        np.testing.assert_array_equal(target["boxes"].numpy(), sample.boxes())
        assert target["labels"].tolist() == sample.classes.tolist()
    with pytest.raises(SettingError, match="labels that are not learnt: huge"):
        sample_maker(made, settings(crop_px_per_label={"huge": 64}), LABELS.names)
    with pytest.raises(SettingError, match="long = 50"):
        sample_maker(made, settings(crop_px_per_label={"long": 50}), LABELS.names)


def test_copies_of_an_image_are_varied_differently_and_always_alike(tmp_path: Path) -> None:
    chosen = settings(repeats=3, augment={"copy_paste": 0.5})
    made = fields(dataset(tmp_path, "d", 2), chosen, Problems())
    samples = Samples(sample_maker(made, chosen, LABELS.names), 6, 1)

    def shown() -> list[OutlinedSample]:
        sampler = ExtraSampler(2, 0, 3, [0], 1)
        return [one for batch in loader(samples, sampler, 2, 0, list) for one in batch]

    first, again = shown(), shown()
    assert len(first) == 6
    assert len({sample.pixels.tobytes() for sample in first}) == 6
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(one.masks, other.masks)
