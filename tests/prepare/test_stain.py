"""Field normalisation: the background is what was drawn, and other cameras give the same picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cytolens import masks
from cytolens.prepare.stain import WHITE, FieldStain, StainSettings, change, measure, normalise, table
from cytolens.prepare.synthetic import SyntheticField, preset, render_field
from cytolens.problems import SettingError
from cytolens.settings import checked

_SMALL = {"width_px": 448, "height_px": 336, "red_cells": (6, 14), "white_cells": (1, 2), "platelets": (0, 3)}
LOOKS = {
    (look, seed): render_field(seed, preset(look).model_copy(update=_SMALL))
    for look, seed in [("varied", 0), ("varied", 1), ("cream", 2), ("grey", 1)]
}
Pixels = NDArray[np.uint8]


def normal(pixels: Pixels, **settings: object) -> Pixels:
    return normalise(pixels, change(measure(pixels), StainSettings.model_validate(settings)))


def free(field: SyntheticField) -> NDArray[np.bool_]:
    """The part of a rendered field that lies well away from every cell, by its masks."""
    height, width = field.pixels.shape[:2]
    covered = np.zeros((height, width), np.uint8)
    for code in field.cells.masks():
        assert code is not None
        covered |= masks.decode(code, (height, width)).astype(np.uint8)
    return np.asarray(cv2.dilate(covered, np.ones((25, 25), np.uint8)) == 0)


def under(pixels: Pixels, gain: tuple[float, float, float]) -> Pixels:
    """The field as a camera of another exposure and white balance sees it."""
    return np.rint(np.clip(pixels * np.array(gain), 0, 255)).astype(np.uint8)


# -- measuring ------------------------------------------------------------------------------------


@pytest.mark.parametrize("look", LOOKS)
def test_the_background_of_rendered_fields(look: tuple[str, int]) -> None:
    field = LOOKS[look]
    known = np.median(field.pixels[free(field)], axis=0)
    assert measure(field.pixels).background == pytest.approx(known, abs=4)


@given(
    colour=st.tuples(*[st.integers(90, 250)] * 3),
    cover=st.floats(0.05, 0.8),
    depth=st.floats(0.3, 1.5),
    seed=st.integers(0, 99),
)
def test_the_background_and_density_of_painted_fields(colour, cover, depth, seed) -> None:
    """A share of the field is stained: value = background · exp(−density), by Beer and Lambert."""
    random = np.random.default_rng(seed)
    stained = random.random((120, 160)) < cover
    pixels = np.tile(np.array(colour, np.float64), (120, 160, 1))
    pixels[stained] *= np.exp(-depth)
    pixels = np.rint(np.clip(pixels + random.normal(0, 0.7, pixels.shape), 0, 255)).astype(np.uint8)
    field = measure(pixels)
    assert field.background == pytest.approx(colour, abs=2)
    assert field.density == pytest.approx(depth, abs=0.1)
    assert field.spread == pytest.approx(1 - stained.mean(), abs=0.04)  # up to 4 % may be brighter than the plateau


def test_glare_is_not_taken_for_background() -> None:
    pixels = np.full((100, 100, 3), (200, 190, 180), np.uint8)
    pixels[:2] = 255
    assert measure(pixels).background.tolist() == [200, 190, 180]


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (3, 2), (700, 900)])
@pytest.mark.parametrize("value", [0, 255])
def test_flat_pictures_of_any_size_have_a_stain(shape: tuple[int, int], value: int) -> None:
    field = measure(np.full((*shape, 3), value, np.uint8))
    assert np.isfinite(field.background).all()
    assert field.density > 0
    assert 0 < field.spread <= 1


@given(bright=st.integers(1, 99), value=st.integers(1, 255))
def test_a_dark_picture_with_a_few_bright_pixels_has_a_stain(bright: int, value: int) -> None:
    pixels = np.zeros((10, 10, 3), np.uint8)
    pixels.reshape(-1, 3)[:bright] = value
    field = measure(pixels)
    assert np.isfinite(field.background).all()
    assert 0 < field.spread <= 1
    assert table(field, StainSettings()).shape == (256, 3)


def test_large_fields_are_measured_as_well_from_a_part_of_their_pixels() -> None:
    field = LOOKS["varied", 0].pixels
    large = np.asarray(cv2.resize(field, None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST), np.uint8)
    assert measure(large).background == pytest.approx(measure(field).background, abs=2)
    assert measure(large).density == pytest.approx(measure(field).density, rel=0.1)


# -- normalising ----------------------------------------------------------------------------------


@pytest.mark.parametrize("look", LOOKS)
def test_the_background_becomes_white(look: tuple[str, int]) -> None:
    field = LOOKS[look]
    assert np.median(normal(field.pixels)[free(field)], axis=0) == pytest.approx([WHITE] * 3, abs=4)


@given(
    look=st.sampled_from(sorted(LOOKS)),
    gain=st.tuples(*[st.floats(0.55, 1.0)] * 3),
    exposure=st.floats(0.7, 1.0),
)
def test_another_exposure_or_white_balance_gives_the_same_picture(look, gain, exposure) -> None:
    pixels = LOOKS[look].pixels
    there, here = normal(pixels), normal(under(pixels, tuple(exposure * g for g in gain)))
    apart = np.abs(there.astype(int) - here.astype(int))
    assert apart.mean() < 4
    assert np.percentile(apart, 99) <= 8
    before = np.abs(pixels.astype(int) - under(pixels, tuple(exposure * g for g in gain)))
    if before.mean() > 20:  # where there was much to do, nearly all of it is done
        assert apart.mean() < before.mean() / 5


@pytest.mark.parametrize("wanted", [0.5, 0.9, 1.3])
@pytest.mark.parametrize("strength", [0.5, 0.75, 1.0])
def test_the_stain_is_brought_to_one_strength(wanted: float, strength: float) -> None:
    painted = np.full((90, 90, 3), 220.0)
    painted[:20] *= np.exp(-strength)
    field = np.rint(painted).astype(np.uint8)
    assert measure(normal(field, density=wanted)).density == pytest.approx(wanted, abs=0.03)
    assert measure(normal(field)).density == pytest.approx(strength, abs=0.03)  # not scaled unless asked


def test_the_strength_is_changed_within_bounds() -> None:
    weak = FieldStain(np.full(3, 240.0), 0.01, 0.9)
    lut = table(weak, StainSettings(density=1.0))
    depth = -np.log(lut[200] / WHITE) / -np.log(200 / 240)
    assert depth == pytest.approx([4.0] * 3, rel=0.03)  # not a hundredfold: that would be noise made visible


def test_without_background_the_colours_stay() -> None:
    pixels = LOOKS["cream", 2].pixels
    assert np.abs(normal(pixels, background=False).astype(int) - pixels).max() <= 1


@given(
    background=st.tuples(*[st.floats(8, 255)] * 3),
    density=st.floats(1e-3, 5),
    wanted=st.none() | st.floats(0.1, 3),
    keep=st.booleans(),
)
def test_tables_never_turn_dark_into_bright(background, density, wanted, keep) -> None:
    lut = table(FieldStain(np.array(background), density, 0.5), StainSettings(background=keep, density=wanted))
    assert lut.dtype == np.uint8
    assert (np.diff(lut.astype(int), axis=0) >= 0).all()
    if keep:
        at = [lut[round(value), channel] for channel, value in enumerate(background)]
        # What is as bright as the background becomes white, as closely as whole grey levels allow.
        room = [WHITE * 0.5 * 4 / value + 1 for value in background]
        assert all(abs(a - WHITE) <= r for a, r in zip(at, room, strict=True))


def test_the_argument_is_not_touched() -> None:
    pixels = LOOKS["varied", 1].pixels.copy()
    before = pixels.copy()
    normal(pixels)
    assert (pixels == before).all()


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(SettingError, match='Did you mean "density"'):
        checked(StainSettings, {"densty": 1}, "x")
    with pytest.raises(SettingError, match="density = 0"):
        checked(StainSettings, {"density": 0}, "x")
