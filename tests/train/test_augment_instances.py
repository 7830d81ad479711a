"""Augmentation of outlined cells: masks and boxes stay on their cells, and mirrors undo themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from cytolens.tasks.detect import BORDER
from cytolens.train.augment_instances import (
    InstanceAugment,
    OutlinedField,
    OutlinedSample,
    augmented,
    copy_pasted,
    flip_pasted,
    flipped_and_turned,
    mirrored,
    window,
    without_slivers,
)

pytestmark = pytest.mark.torch

PLAIN = InstanceAugment(flip=0, quarter_turn=False, crop_on_cell=0)


def painted(seed: int, size_hw: tuple[int, int] = (60, 80), cells: int = 5) -> tuple[NDArray, list[NDArray]]:
    """Ellipses on dark ground, cell i with the grey value 100 + 20 i, and the masks of what is seen of them."""
    random = np.random.default_rng(seed)
    y, x = np.indices(size_hw)
    pixels, whole = np.full((*size_hw, 3), 20, np.uint8), []
    for number in range(cells):
        middle, half = random.uniform(0, 1, 2) * size_hw, random.uniform(2, 9, 2)
        mask = ((y - middle[0]) / half[0]) ** 2 + ((x - middle[1]) / half[1]) ** 2 <= 1
        for other in whole:
            other &= ~mask
        pixels[mask] = 100 + 20 * number
        whole.append(mask)
    return pixels, whole


def field(seed: int, size_hw: tuple[int, int] = (60, 80), cells: int = 5) -> OutlinedField:
    """Ellipses whose class is their number."""
    pixels, whole = painted(seed, size_hw, cells)
    kept = [number for number, mask in enumerate(whole) if mask.any()]
    return OutlinedField.of(pixels, [whole[number] for number in kept], np.array(kept, np.int64))


def assert_on_cells(sample: OutlinedSample) -> None:
    """Every mask covers exactly the pixels of its cell's grey value, and its box is its bounds."""
    for mask, number, corners in zip(sample.masks, sample.classes, sample.boxes(), strict=True):
        np.testing.assert_array_equal(mask, (sample.pixels == 100 + 20 * number).all(axis=2))
        x_min, y_min, x_max, y_max = corners.astype(int)
        inner = mask[y_min:y_max, x_min:x_max]
        assert inner.sum() == mask.sum() > 0
        assert inner[0].any()
        assert inner[-1].any()
        assert inner[:, 0].any()
        assert inner[:, -1].any()


@given(seed=st.integers(0, 10_000), x=st.integers(-70, 90), y=st.integers(-70, 70), side_px=st.integers(1, 90))
@settings(max_examples=80)
def test_a_window_is_the_padded_picture_cut(seed: int, x: int, y: int, side_px: int) -> None:
    pixels, whole = painted(seed)
    sample = window(field(seed), x, y, side_px)
    pad = 200
    rows, columns = slice(y + pad, y + pad + side_px), slice(x + pad, x + pad + side_px)
    padded = np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)), constant_values=BORDER)
    np.testing.assert_array_equal(sample.pixels, padded[rows, columns])
    cut = [np.pad(mask, pad)[rows, columns] for mask in whole]
    seen = [number for number, mask in enumerate(cut) if mask.any()]
    assert sample.classes.tolist() == seen
    for mask, area, number in zip(sample.masks, sample.areas, seen, strict=True):
        np.testing.assert_array_equal(mask, cut[number])
        assert area == whole[number].sum()


@given(seed=st.integers(0, 10_000), crop_px=st.sampled_from([32, 48, 96]), on_cell=st.sampled_from([0.0, 1.0]))
@settings(max_examples=60)
def test_masks_and_boxes_stay_on_their_cells(seed: int, crop_px: int, on_cell: float) -> None:
    chosen = InstanceAugment(crop_on_cell=on_cell)
    sample = augmented(field(seed % 7), crop_px, chosen, np.random.default_rng(seed))
    assert sample.pixels.shape == (crop_px, crop_px, 3)
    assert sample.pixels.dtype == np.uint8
    assert sample.pixels.flags.c_contiguous
    assert sample.masks.shape == (len(sample.classes), crop_px, crop_px)
    assert (sample.masks.sum(axis=(1, 2)) >= chosen.least_left * sample.areas).all()
    assert_on_cells(sample)


@given(seed=st.integers(0, 200))
def test_a_crop_on_a_cell_holds_its_middle(seed: int) -> None:
    one = field(3, (300, 300), 1)
    chosen = PLAIN.model_copy(update={"crop_on_cell": 1.0, "least_left": 0.0})
    sample = augmented(one, 32, chosen, np.random.default_rng(seed))
    middle_value = 100 + 20 * int(one.classes[0])
    assert (sample.pixels == middle_value).any()


@given(seed=st.integers(0, 10_000), horizontal=st.booleans())
def test_two_mirrors_are_none_and_pixels_go_with_masks(seed: int, horizontal: bool) -> None:
    sample = window(field(seed), 0, 0, 70)
    once = mirrored(sample, horizontal)
    twice = mirrored(once, horizontal)
    np.testing.assert_array_equal(twice.pixels, sample.pixels)
    np.testing.assert_array_equal(twice.masks, sample.masks)
    assert_on_cells(once)
    x_min, y_min, x_max, y_max = sample.boxes().T
    axis = [70 - x_max, y_min, 70 - x_min, y_max] if horizontal else [x_min, 70 - y_max, x_max, 70 - y_min]
    np.testing.assert_array_equal(once.boxes(), np.stack(axis, axis=1))


@given(seed=st.integers(0, 10_000))
def test_flips_and_turns_keep_every_cell_whole(seed: int) -> None:
    sample = window(field(seed), 0, 0, 70)
    moved = flipped_and_turned(sample, InstanceAugment(), np.random.default_rng(seed))
    assert_on_cells(moved)
    np.testing.assert_array_equal(moved.masks.sum(axis=(1, 2)), sample.masks.sum(axis=(1, 2)))


@given(seed=st.integers(0, 10_000))
def test_flip_paste_is_the_mean_with_the_mirror_and_keeps_the_cells_of_both(seed: int) -> None:
    sample = window(field(seed), 0, 0, 70)
    both = flip_pasted(sample)
    mean = (sample.pixels.astype(int) + sample.pixels[:, ::-1]) / 2
    np.testing.assert_array_equal(both.pixels, np.floor(mean))
    np.testing.assert_array_equal(both.pixels, both.pixels[:, ::-1])
    np.testing.assert_array_equal(both.masks, np.concatenate([sample.masks, sample.masks[:, :, ::-1]]))
    assert both.classes.tolist() == sample.classes.tolist() * 2
    assert both.areas.tolist() == sample.areas.tolist() * 2


@given(seed=st.integers(0, 10_000), most=st.integers(1, 6))
def test_pasted_cells_cover_what_lies_beneath(seed: int, most: int) -> None:
    below, above = window(field(seed), 0, 0, 60), window(field(seed + 1), 10, 0, 60)
    above = replace(above, classes=above.classes + 10)
    keep_all = InstanceAugment(least_left=0, least_px=1, copy_paste_most=most)
    joined = copy_pasted(below, above, keep_all, np.random.default_rng(seed))
    if not len(above.masks):
        assert joined is below
        return
    pasted = joined.classes >= 10
    assert 1 <= pasted.sum() <= min(len(above.masks), most)
    covered = joined.masks[pasted].any(axis=0)
    np.testing.assert_array_equal(joined.pixels[covered], above.pixels[covered])
    np.testing.assert_array_equal(joined.pixels[~covered], below.pixels[~covered])
    given = {int(number): mask for number, mask in zip(above.classes, above.masks, strict=True)}
    given |= {int(number): mask & ~covered for number, mask in zip(below.classes, below.masks, strict=True)}
    for mask, number in zip(joined.masks, joined.classes, strict=True):
        np.testing.assert_array_equal(mask, given[int(number)])
    assert set(joined.classes[~pasted]) == {number for number, mask in given.items() if number < 10 and mask.any()}


def test_slivers_go() -> None:
    masks = np.zeros((3, 20, 20), bool)
    masks[0, :10, :10] = True  # 100 px of 100
    masks[1, 0, :10] = True  # 10 px of 100: a sliver
    masks[2, 15, :5] = True  # 5 px of 5: too small
    sample = OutlinedSample(np.zeros((20, 20, 3), np.uint8), masks, np.arange(3), np.array([100.0, 100.0, 5.0]))
    assert without_slivers(sample, InstanceAugment(least_left=0.15, least_px=8)).classes.tolist() == [0]
    assert without_slivers(sample, InstanceAugment(least_left=0.1, least_px=1)).classes.tolist() == [0, 1, 2]


@pytest.mark.parametrize("zoom", [0.5, 2.0])
def test_zoom_scales_cells(zoom: float) -> None:
    pixels = np.full((256, 256, 3), 20, np.uint8)
    mask = np.zeros((256, 256), bool)
    mask[120:136, 118:142] = True
    one = OutlinedField.of(pixels, [mask], np.zeros(1, np.int64))
    chosen = PLAIN.model_copy(update={"zoom": (zoom, zoom), "crop_on_cell": 1.0, "least_left": 0.0})
    sample = augmented(replace(one), 128, chosen, np.random.default_rng(4))
    assert sample.areas[0] == pytest.approx(mask.sum() * zoom**2)
    inside = sample.boxes()[0]
    if (inside > 0).all() and (inside < 128).all():
        assert sample.masks[0].sum() == pytest.approx(mask.sum() * zoom**2, rel=0.01)


def test_the_same_chance_gives_the_same_sample_and_another_donor_is_asked_only_when_needed() -> None:
    chosen = InstanceAugment(copy_paste=1.0, flip_paste=1.0, zoom=(0.7, 1.4))
    asked: list[int] = []

    def donor() -> OutlinedField:
        asked.append(1)
        return field(8)

    made = [augmented(field(1), 48, chosen, np.random.default_rng(5), pasted=True, donor=donor) for _ in range(2)]
    np.testing.assert_array_equal(made[0].pixels, made[1].pixels)
    np.testing.assert_array_equal(made[0].masks, made[1].masks)
    assert len(asked) == 2
    augmented(field(1), 48, PLAIN, np.random.default_rng(5), donor=donor)
    assert len(asked) == 2


def test_an_image_without_cells_gives_an_empty_sample() -> None:
    empty = OutlinedField.of(np.full((10, 200, 3), 7, np.uint8), [], np.zeros(0, np.int64))
    assert empty.kind == -1
    sample = augmented(empty, 64, InstanceAugment(flip_paste=1, copy_paste=1), np.random.default_rng(0), pasted=True)
    assert sample.masks.shape == (0, 64, 64)
    assert sample.boxes().shape == (0, 4)
    assert set(np.unique(sample.pixels)) <= {7, (7 + BORDER) // 2, BORDER}


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError):
        InstanceAugment.model_validate({"flip_past": 1})
