"""Augmentation: boxes stay on their cells, samples are valid, and colours move in optical density."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytolens import boxes as box
from cytolens.tasks.detect import BORDER
from cytolens.train.augment_colour import ColourAugment, vary_colour
from cytolens.train.augment_crop import CropAugment, varied
from cytolens.train.augment_field import FieldAugment, FieldSample, augmented

pytestmark = pytest.mark.torch

PLAIN_COLOUR = ColourAugment(stain=0, white_balance=0, blur=0, resample=0, sharpen=0, noise=0, jpeg=0, weak=0, gamma=0)


def field(seed: int, size: tuple[int, int] = (120, 160), cells: int = 4) -> FieldSample:
    """White discs on dark ground, with their boxes."""
    random = np.random.default_rng(seed)
    pixels = np.full((*size, 3), 30, np.uint8)
    boxes = []
    for _ in range(cells):
        radius = int(random.integers(8, 14))
        x, y = int(random.integers(20, size[1] - 20)), int(random.integers(20, size[0] - 20))
        cv2.circle(pixels, (x, y), radius, (255, 255, 255), -1)
        boxes.append([x - radius, y - radius, x + radius + 1, y + radius + 1])
    return FieldSample(
        pixels,
        np.array(boxes, np.float32).reshape(-1, 4),
        random.integers(0, 3, cells),
        np.zeros(cells, bool),
        np.zeros(3, bool),
        np.arange(cells, dtype=np.int8)[:, None],
        np.sqrt(box.areas(np.array(boxes, np.float32).reshape(-1, 4))),
        np.zeros(cells, np.float32),
    )


@given(seed=st.integers(0, 10_000), mosaic=st.sampled_from([0.0, 1.0]), mixup=st.sampled_from([0.0, 1.0]))
@settings(max_examples=60)
def test_samples_are_valid(seed: int, mosaic: float, mixup: float) -> None:
    fields = [field(i) for i in range(5)]
    chosen = FieldAugment(mosaic=mosaic, mixup=mixup)
    sample = augmented(0, 5, fields.__getitem__, 96, chosen, np.random.default_rng(seed), closing=False)
    assert sample.pixels.shape == (96, 96, 3)
    assert sample.pixels.dtype == np.uint8
    assert sample.pixels.flags.c_contiguous
    assert len(sample.boxes) == len(sample.classes) == len(sample.ignored)
    assert box.valid(sample.boxes).all()
    assert (sample.boxes >= 0).all()
    assert (sample.boxes <= 96).all()


@given(seed=st.integers(0, 10_000))
@settings(max_examples=60)
def test_boxes_stay_on_their_cells(seed: int) -> None:
    lone = field(seed, cells=1)
    chosen = FieldAugment(mosaic=0, colour=PLAIN_COLOUR, shear_deg=0, least_left=0.99)
    sample = augmented(0, 1, [lone].__getitem__, 160, chosen, np.random.default_rng(seed), closing=False)
    bright = sample.pixels[:, :, 0] > 190
    if len(sample.boxes) == 0:
        return  # the disc was cut by the border
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert np.abs(sample.boxes[0] - seen).max() < 2.0


def test_closing_epochs_have_no_mosaic() -> None:
    fields = [field(i, cells=1) for i in range(4)]
    always = FieldAugment(mosaic=1.0, colour=PLAIN_COLOUR)
    counts = {
        closing: max(
            len(augmented(0, 4, fields.__getitem__, 96, always, np.random.default_rng(s), closing).boxes)
            for s in range(40)
        )
        for closing in (False, True)
    }
    assert counts[True] == 1
    assert counts[False] > 1


def test_slivers_are_dropped_unless_kept() -> None:
    lone = field(1, cells=1)
    kept = FieldAugment(mosaic=0, translate=0.45, colour=PLAIN_COLOUR, least_left=0.0)
    strict = kept.model_copy(update={"least_left": 0.8})

    def smallest(chosen: FieldAugment) -> float:
        full = []
        for seed in range(200):
            s = augmented(0, 1, [lone].__getitem__, 96, chosen, np.random.default_rng(seed), closing=False)
            full += (box.areas(s.boxes)).tolist()
        return min(full)

    assert smallest(kept) < 0.5 * smallest(strict)


@given(seed=st.integers(0, 10_000), mosaic=st.sampled_from([0.0, 1.0]))
@settings(max_examples=60)
def test_what_an_augmentation_cuts_is_neither_cell_nor_background(seed: int, mosaic: float) -> None:
    fields = [field(i) for i in range(4)]
    plain = FieldAugment(mosaic=mosaic, translate=0.45, least_left=0.1, colour=PLAIN_COLOUR)
    one, other = (
        augmented(0, 4, fields.__getitem__, 96, chosen, np.random.default_rng(seed), closing=False)
        for chosen in (plain, plain.model_copy(update={"least_taught": 0.7}))
    )
    assert not one.ignored.any()
    np.testing.assert_array_equal(one.boxes, other.boxes)
    # Discs: a box that lies away from every border was cut by none.
    within = ((other.boxes[:, :2] > 0) & (other.boxes[:, 2:] < 96)).all(axis=1)
    if mosaic == 0:
        assert not other.ignored[within].any()
    width, height = box.sizes_wh(other.boxes).T
    # A disc of which less than half its width is left has lost more than three tenths of its box.
    sliver = (np.minimum(width, height) < 0.5 * np.maximum(width, height)) & ~within
    if mosaic == 0:
        assert other.ignored[sliver].all()


@given(seed=st.integers(0, 10_000), cells=st.integers(0, 5))
@settings(max_examples=40)
def test_a_field_as_predicted_is_whole(seed: int, cells: int) -> None:
    from cytolens.tasks.detect import MULTIPLE
    from cytolens.views import fitted

    lone = field(seed, cells=cells)
    chosen = FieldAugment(
        mosaic=0, scale=(2, 3), translate=0.5, as_predicted=1, flip=0, quarter_turn=False, colour=PLAIN_COLOUR
    )
    sample = augmented(0, 1, [lone].__getitem__, 96, chosen, np.random.default_rng(seed), closing=False)
    view, inner = fitted((160, 120), 96, MULTIPLE)
    np.testing.assert_allclose(sample.boxes, view.forward_boxes(lone.boxes), atol=0.01)
    assert not sample.ignored.any()
    shown = view.pixels(lone.pixels)[: inner[1], : inner[0]].astype(float)
    assert np.abs(sample.pixels[: inner[1], : inner[0]] - shown).mean() < 6
    assert (sample.pixels[inner[1] + 1 :] == BORDER).all()


def test_mixup_keeps_both_truths_and_averages() -> None:
    fields = [field(1, cells=2), field(2, cells=2)]
    chosen = FieldAugment(mosaic=1, mixup=1, colour=PLAIN_COLOUR)
    sample = augmented(0, 2, fields.__getitem__, 96, chosen, np.random.default_rng(3), closing=False)
    assert sample.pixels.max() < 255  # a disc is averaged with ground, unless discs meet
    assert len(sample.boxes) >= 2


def test_an_incomplete_field_makes_the_mosaic_incomplete() -> None:
    fields = [field(i) for i in range(3)]
    from dataclasses import replace

    fields[1] = replace(fields[1], incomplete=np.array([False, True, False]))
    sample = augmented(1, 3, fields.__getitem__, 64, FieldAugment(mosaic=1), np.random.default_rng(0), closing=False)
    assert sample.incomplete.tolist() == [False, True, False]


def test_outside_is_the_border_grey() -> None:
    lone = field(1, cells=1)
    shrunk = FieldAugment(mosaic=0, scale=(0.5, 0.5), translate=0, rotate_deg=0, shear_deg=0, colour=PLAIN_COLOUR)
    sample = augmented(0, 1, [lone].__getitem__, 128, shrunk, np.random.default_rng(0), closing=False)
    assert (sample.pixels[0, 0] == BORDER).all()


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40)
def test_colour_keeps_shape_type_and_structure(seed: int) -> None:
    random = np.random.default_rng(seed)
    pixels = np.full((40, 40, 3), (235, 230, 225), np.uint8)
    pixels[10:30, 10:30] = (90, 40, 140)
    out = vary_colour(pixels, ColourAugment(hue=20, saturation=0.3), random)
    assert out.shape == pixels.shape
    assert out.dtype == np.uint8
    # the nucleus stays darker than the background in the green channel, whatever the laboratory
    assert out[15:25, 15:25, 1].mean() < out[2:6, 2:6, 1].mean()


def test_switched_off_colour_changes_nothing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    assert (vary_colour(pixels, PLAIN_COLOUR, np.random.default_rng(1)) == pixels).all()


def test_the_same_chance_gives_the_same_picture() -> None:
    store = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    one, other = (varied(store, 32, 0.5, CropAugment(), np.random.default_rng(7)) for _ in range(2))
    assert (one == other).all()
    assert one.shape == (32, 32, 3)


def test_a_crop_without_variation_is_the_middle_of_the_store() -> None:
    store = np.zeros((64, 64, 3), np.uint8)
    store[16:48, 16:48] = 200
    still = CropAugment(rotate=False, flip=0, scale=(1, 1), aspect=0, translate=0, colour=PLAIN_COLOUR)
    out = varied(store, 32, 1.0, still, np.random.default_rng(0))
    assert (out == 200).all()
