"""What is far from training is noticed: distances against an oracle, fields against what is known of them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.distance import mahalanobis

from cytolens.predict.calibrate import distance_limit, field_ranges
from cytolens.predict.familiarity import Familiarity, field_measures, learn, outside
from cytolens.prepare.stain import measure
from cytolens.prepare.synthetic import SyntheticSettings, render_field
from tests.predict.doubles import painted, rendered


def clusters(count: int, size: int, classes: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Embeddings (count, size) about some centres, unequally spread in every direction, and their classes."""
    random = np.random.default_rng(seed)
    centres = random.normal(0, 10, (classes, size))
    turn, _ = np.linalg.qr(random.normal(0, 1, (size, size)))
    stretch = turn * random.uniform(0.5, 3, size)
    kinds = np.arange(count) % classes
    return centres[kinds] + random.normal(0, 1, (count, size)) @ stretch, kinds


def learnt(points: NDArray[np.float64], kinds: NDArray[np.intp], limit: float = np.inf) -> Familiarity:
    return Familiarity(*learn(points, kinds), limit)


# -- cells ----------------------------------------------------------------------------------------


def test_distances_are_mahalanobis_distances_to_the_nearest_class() -> None:
    points, kinds = clusters(400, 6, 4)
    centres = np.stack([points[kinds == k].mean(axis=0) for k in range(4)])
    inside = points - centres[kinds]
    inverse = np.linalg.inv(inside.T @ inside / (len(points) - 4))
    probes = np.random.default_rng(1).normal(0, 12, (30, 6))
    expected = [min(mahalanobis(p, c, inverse) for c in centres) / 6**0.5 for p in probes]
    assert learnt(points, kinds).distances(probes) == pytest.approx(np.array(expected), rel=1e-3)


@given(st.integers(0, 50), st.integers(1, 4), st.integers(1, 5), st.integers(0, 1000))
def test_distances_are_those_of_the_slow_twin(count: int, size: int, classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    mean, projection, centres = (
        random.normal(size=shape).astype(np.float32) for shape in ((size,), (size, 3), (classes, 3))
    )
    points = random.normal(0, 3, (count, size))
    expected = []
    for point in points:
        placed = [sum((point[d] - mean[d]) * projection[d, p] for d in range(size)) for p in range(3)]
        expected.append(min((sum((placed[p] - c[p]) ** 2 for p in range(3)) / 3) ** 0.5 for c in centres.tolist()))
    got = Familiarity(mean, projection, centres, 1.0).distances(points)
    assert got.shape == (count,)
    assert got == pytest.approx(np.array(expected), rel=1e-6)


def test_one_is_typical_of_training() -> None:
    points, kinds = clusters(3000, 8, 5)
    model = learnt(points, kinds)
    own = (points - model.mean) @ model.projection - model.centres[kinds]
    spread = (own**2).sum() / 8 / (len(points) - 5)
    assert spread == pytest.approx(1, rel=1e-4)
    assert np.median(model.distances(points)) == pytest.approx(1, abs=0.1)


def test_cells_far_from_every_class_are_strangers() -> None:
    points, kinds = clusters(600, 10, 3)
    known = learnt(points, kinds)
    model = learnt(points, kinds, distance_limit(known.distances(points)))
    assert model.strangers(points).mean() < 0.01
    more, _ = clusters(600, 10, 3)
    assert not model.strangers(more).any()
    direction = np.random.default_rng(3).normal(size=(50, 10))
    assert model.strangers(points[:50] + 100 * direction / np.linalg.norm(direction, axis=1, keepdims=True)).all()
    middle = (points[kinds == 0].mean(axis=0) + points[kinds == 1].mean(axis=0)) / 2
    assert model.strangers(middle[None]).all()  # between two classes is far from both


def test_only_the_leading_directions_are_kept() -> None:
    points, kinds = clusters(500, 100, 3)
    mean, projection, centres = learn(points, kinds, kept=16)
    assert (mean.shape, projection.shape, centres.shape) == ((100,), (100, 16), (3, 16))
    assert learn(points[:10], kinds[:10])[1].shape == (100, 10)  # no more directions than cells


def test_classes_of_single_cells_keep_distances_finite() -> None:
    points = np.diag([1.0, 2.0, 3.0])
    for kinds in ([0, 1, 2], [0, 0, 7], [5, 5, 5]):
        got = learnt(points, np.array(kinds)).distances(np.array([[0.0, 0, 0], [9, 9, 9]]))
        assert np.isfinite(got).all()


def test_classes_that_do_not_occur_have_no_centre() -> None:
    points, _ = clusters(60, 4, 1)
    assert learn(points, np.repeat([2, 9], 30))[2].shape == (2, 4)


def test_what_is_learnt_travels_as_bytes() -> None:
    points, kinds = clusters(100, 5, 2)
    model = learnt(points, kinds, 2.5)
    back = Familiarity.from_bytes(model.to_bytes())
    assert back.limit == 2.5
    assert np.array_equal(back.distances(points), model.distances(points))
    assert model.to_bytes() == back.to_bytes()


def test_nothing_is_unpickled() -> None:
    buffer = io.BytesIO()
    evil = np.array([{"a": 1}], dtype=object)
    np.savez(buffer, mean=evil, projection=evil, centres=evil, limit=np.float64(1))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        Familiarity.from_bytes(buffer.getvalue())


# -- fields ---------------------------------------------------------------------------------------


def measures(pixels: NDArray[np.uint8]) -> dict[str, float]:
    return field_measures(pixels, measure(pixels))


def test_measures_of_a_painted_field_are_known() -> None:
    # A quarter of the field is coloured: green and blue densities are log 2 and log 4.
    pixels = np.full((200, 200, 3), 240, np.uint8)
    pixels[:100, :100] = (240, 120, 60)
    got = measures(pixels)
    assert got["background"] == 240
    assert got["empty"] == pytest.approx(0.75, abs=0.01)
    assert got["density"] == pytest.approx(np.log(2), abs=0.01)
    assert got["green"] == pytest.approx(1 / 3, abs=0.01)
    assert got["blue"] == pytest.approx(2 / 3, abs=0.01)


def test_a_dimmer_lamp_changes_the_background_and_nothing_else() -> None:
    bright = rendered(100).pixels
    dim = np.rint(bright * 0.8).astype(np.uint8)
    before, after = measures(bright), measures(dim)
    assert after["background"] == pytest.approx(0.8 * before["background"], abs=1)
    for name in ("green", "blue", "density"):
        assert after[name] == pytest.approx(before[name], abs=0.06), name


def test_an_empty_field_has_measures_too() -> None:
    got = measures(painted((64, 64), []))
    assert all(np.isfinite(value) for value in got.values())
    assert got["empty"] == 1
    assert got["green"] == got["blue"] == pytest.approx(1 / 3)


def test_what_lies_outside_is_said_in_a_sentence() -> None:
    ranges = {"background": (180.0, 250.0), "empty": (0.1, 0.9), "green": (0.4, 0.5)}
    assert outside({"background": 180.0, "empty": 0.9, "green": 0.45}, ranges) == []
    assert outside({"background": 90.0, "empty": 0.95, "green": 0.45, "density": 9.0}, ranges) == [
        "background 90.00 (training: 180.00 to 250.00)",
        "empty 0.95 (training: 0.10 to 0.90)",
    ]
    assert outside({"background": float("nan")}, ranges) == ["background nan (training: 180.00 to 250.00)"]
    assert outside({}, ranges) == []


def test_a_photograph_that_is_no_smear_is_unlike_rendered_ones() -> None:
    some = SyntheticSettings(width_px=240, height_px=180, red_cells=(4, 8), white_cells=(1, 1))
    ranges = field_ranges([measures(render_field(seed, some).pixels) for seed in range(12)])
    assert not outside(measures(render_field(99, some).pixels), ranges)
    green_leaves = np.random.default_rng(0).integers(0, 60, (180, 240, 3)).astype(np.uint8)
    green_leaves[:, :, 1] += 90
    assert outside(measures(green_leaves), ranges)
