"""The dyes of a field brought to those of a reference: known dyes are found, and slow twins agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cytolens.prepare.stain import Change, StainSettings, change, measure, normalise
from cytolens.prepare.stain_colour import (
    WHITE,
    FieldColour,
    MacenkoReference,
    ReinhardReference,
    dyes,
    lab_shift,
    measure_colour,
    mixing,
    restained,
    shifted,
)
from cytolens.problems import SettingError
from cytolens.settings import checked

NUCLEI, OTHER = np.array([0.65, 0.7, 0.29]), np.array([0.2, 0.9, 0.38])
LOOK = np.stack([NUCLEI / np.linalg.norm(NUCLEI), OTHER / np.linalg.norm(OTHER)])
Pixels = NDArray[np.uint8]


def film(vectors: NDArray[np.float64] = LOOK, strength: float = 1.0, seed: int = 0) -> Pixels:
    """A field of 120 × 120 px: seven tenths empty, the rest discs of two dyes in all proportions."""
    random = np.random.default_rng(seed)
    amounts = np.zeros((120, 120, 2))
    inside = np.arange(120) >= 84
    amounts[inside] = random.uniform(0, 1, (36, 120, 2)) * strength
    amounts[84:94, :, 1] = 0  # nuclei only
    amounts[94:104, :, 0] = 0
    return np.rint(WHITE * np.exp(-(amounts @ vectors))).astype(np.uint8)


def colour_of(pixels: Pixels) -> FieldColour:
    return measure_colour(pixels.reshape(-1, 3), np.full(3, WHITE))


# -- Macenko ----------------------------------------------------------------------------------------


def test_two_known_dyes_are_found() -> None:
    found = colour_of(film())
    assert found.vectors is not None
    assert found.vectors == pytest.approx(LOOK, abs=0.03)
    assert found.most == pytest.approx([1.0, 1.0], abs=0.05)


def test_the_dyes_are_those_of_a_slow_twin() -> None:
    """Singular vectors instead of the covariance's, every pixel's angle by itself."""
    density = np.maximum(-np.log(film().reshape(-1, 3) / WHITE), 0)
    density = density[density.max(axis=1) >= 0.15]
    plane = np.linalg.svd(density - density.mean(axis=0), full_matrices=False)[2][:2]
    plane = np.array([axis if axis.sum() > 0 else -axis for axis in plane])
    angles = sorted(np.arctan2(plane[1] @ one, plane[0] @ one) for one in density)
    ends = []
    for percent in (1, 99):
        place = percent / 100 * (len(angles) - 1)
        low = int(place)
        angle = angles[low] + (place - low) * (angles[low + 1] - angles[low])
        end = np.maximum(np.cos(angle) * plane[0] + np.sin(angle) * plane[1], 0)
        ends.append(end / np.linalg.norm(end))
    expected = sorted(ends, key=lambda end: -end[0])
    assert dyes(density) == pytest.approx(np.array(expected), abs=1e-9)


def test_macenko_by_hand() -> None:
    """A pixel of 0.5 of the first dye and 0.25 of the second, when a hundredth exceeds 1 and 0.5 of them."""
    field = FieldColour(vectors=LOOK, most=np.array([1.0, 0.5]))
    reference = MacenkoReference(nuclei=(0, 0.6, 0.8), other=(0.8, 0.6, 0), most=(2.0, 0.5))
    matrix = mixing(field, reference)
    assert matrix is not None
    density = 0.5 * LOOK[0] + 0.25 * LOOK[1]
    # 0.5 · 2 / 1 = 1 of (0, .6, .8), and 0.25 · 0.5 / 0.5 = 0.25 of (.8, .6, 0)
    assert matrix @ density == pytest.approx([0.2, 0.75, 0.8], abs=1e-6)
    pixel = np.rint(WHITE * np.exp(-density)).astype(np.uint8)[None, None]
    assert restained(pixel, matrix, np.full(3, WHITE))[0, 0].tolist() == pytest.approx([196, 113, 108], abs=2)


@given(strength=st.floats(0.6, 1.4), turn=st.floats(-0.12, 0.12), seed=st.integers(0, 20))
def test_macenko_brings_other_dyes_to_one_look(strength: float, turn: float, seed: int) -> None:
    other = np.abs(LOOK + np.array([[turn, -turn, turn], [-turn, turn, turn]]) * 0.6)
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    here, there = film(seed=seed), film(other, strength, seed)
    settings = StainSettings(method="macenko")
    same, also = (normalise(one, change(measure(one), settings)).astype(int) for one in (here, there))
    before = np.abs(here.astype(int) - there).mean()
    assert np.abs(same - also).mean() < max(0.5 * before, 3)


# -- Reinhard ---------------------------------------------------------------------------------------


def test_reinhard_is_that_of_a_slow_twin() -> None:
    """Pixel by pixel and channel by channel, in floating point."""
    field = FieldColour(mean=np.array([150.0, 150.0, 110.0]), deviation=np.array([30.0, 5.0, 10.0]))
    reference = ReinhardReference(mean=(170, 140, 120), deviation=(33, 10, 30))
    shift = lab_shift(field, reference)
    assert shift is not None
    white, full = (round((116 * ((v / 255 + 0.055) / 1.055) ** (2.4 / 3) - 16) * 2.55) for v in (240, 207))
    for value in range(0, 256, 5):
        weight = min(max((white - value) / (white - full), 0), 1)
        assert shift.weight[value] == pytest.approx(weight, abs=1e-6)
        wanted = (value - 150) * 33 / 30 + 170
        assert float(shift.lightness[value]) == pytest.approx(
            min(max(value + weight * (wanted - value), 0), 255), abs=0.51
        )
        assert shift.move[value, 0] == pytest.approx((value - 150) * 2 + 140 - value, abs=1e-4)
        assert shift.move[value, 1] == pytest.approx((value - 110) * 2 + 120 - value, abs=1e-4)  # 3 is beyond bounds


def test_reinhard_gives_the_foreground_the_references_colours() -> None:
    pixels = film()
    reference = ReinhardReference(mean=(150, 150, 110), deviation=(30, 9, 9))
    shift = lab_shift(colour_of(pixels), reference)
    assert shift is not None
    there = colour_of(shifted(pixels, shift))
    assert there.mean is not None
    assert there.mean == pytest.approx(reference.mean, abs=5)
    assert there.deviation == pytest.approx(reference.deviation, abs=5)


@pytest.mark.parametrize("method", ["reinhard", "macenko"])
def test_the_background_stays_white(method: str) -> None:
    pixels = np.rint(film() * np.array([0.8, 0.9, 0.7])).astype(np.uint8)
    out = normalise(pixels, change(measure(pixels), StainSettings.model_validate({"method": method})))
    assert out[:80].reshape(-1, 3).mean(axis=0) == pytest.approx([WHITE] * 3, abs=2)


# -- fields that have nothing to bring to a reference --------------------------------------------------


@pytest.mark.parametrize("method", ["reinhard", "macenko"])
@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (120, 60, 150), (230, 228, 235)])
@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (150, 160)])
def test_fields_of_one_colour_have_their_background_brought_to_white(method, colour, shape) -> None:
    pixels = np.full((*shape, 3), colour, np.uint8)
    settings = StainSettings.model_validate({"method": method})
    out = normalise(pixels, change(measure(pixels), settings))
    assert (out == normalise(pixels, change(measure(pixels), StainSettings()))).all()


@given(st.integers(0, 60), st.integers(0, 1000))
def test_specks_and_noise_are_no_cells(specks: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    pixels = np.clip(random.normal(228, 2, (100, 100, 3)), 0, 255).astype(np.uint8)
    pixels.reshape(-1, 3)[random.integers(0, 10_000, specks)] = (40, 10, 90)
    for method in ("reinhard", "macenko"):
        out = normalise(pixels, change(measure(pixels), StainSettings.model_validate({"method": method})))
        plain = normalise(pixels, change(measure(pixels), StainSettings()))
        assert np.abs(out.astype(int) - plain).mean() < 2


def test_one_dye_alone_is_left_as_it_is() -> None:
    amounts = np.linspace(0, 1, 4000)[:, None]
    pixels = np.rint(WHITE * np.exp(-amounts * LOOK[0])).astype(np.uint8)
    found = measure_colour(pixels, np.full(3, WHITE))
    assert found.mean is not None
    assert found.vectors is None
    assert mixing(found, MacenkoReference()) is None


def test_the_argument_is_not_touched_and_the_default_stays() -> None:
    pixels = film()
    before = pixels.copy()
    for method in ("background", "reinhard", "macenko"):
        normalise(pixels, change(measure(pixels), StainSettings.model_validate({"method": method})))
    assert (pixels == before).all()
    plain = change(measure(pixels), StainSettings())
    assert isinstance(plain, Change)
    assert plain.mixing is None
    assert plain.shift is None


def test_settings_that_contradict_each_other_are_refused() -> None:
    for wrong in ({"background": False}, {"density": 1.0}):
        with pytest.raises(SettingError, match="brings background and strength"):
            checked(StainSettings, {"method": "macenko", **wrong}, "x")
    with pytest.raises(SettingError, match="method = 'vahadane'"):
        checked(StainSettings, {"method": "vahadane"}, "x")
