"""The drawing board: distances, noise and dots against geometry worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytolens.prepare.synthetic_shapes import (
    REACH,
    Grid,
    along,
    both,
    capsule,
    discs,
    dots,
    noise,
    outline,
    scatter,
    steps,
)


@pytest.fixture
def grid() -> Grid:
    return Grid.around(50.0, 40.0, 5.0, 8.0)  # 8 px per µm


def test_grid_counts_micrometres_from_the_centre(grid: Grid):
    assert (grid.left, grid.top, grid.size_hw) == (10, 0, (80, 80))
    # The centre of pixel column 50 lies half a pixel right of x = 50 px.
    assert grid.x[0, 50 - grid.left] == pytest.approx(0.5 / 8)
    assert grid.y[40 - grid.top, 0] == pytest.approx(0.5 / 8)
    assert grid.centre_xy == (40.0, 40.0)


def test_one_disc_is_its_radius_less_the_distance(grid: Grid):
    distance = discs(grid, [[1.0, -0.5, 2.0]], 0.3)
    np.testing.assert_allclose(distance, 2.0 - np.hypot(grid.x - 1, grid.y + 0.5), atol=1e-5)


def test_discs_that_are_far_apart_do_not_feel_each_other(grid: Grid):
    left, right = [-3.0, 0.0, 1.0], [3.0, 0.0, 1.0]
    together = discs(grid, [left, right], 0.05)
    alone = np.maximum(discs(grid, [left], 0.05), discs(grid, [right], 0.05))
    assert np.abs(together - alone).max() <= 0.05 * np.log(2) + 1e-5
    assert ((together > 0) == (alone > 0)).mean() > 0.999


def test_capsule_is_as_far_as_the_nearest_point_of_its_line(grid: Grid):
    start, end = np.array([-2.0, 0.5]), np.array([1.0, 1.5])
    points = np.stack([grid.x, grid.y], axis=-1)
    line = np.linspace(start, end, 2001)
    nearest = np.min([np.hypot(*(points - point).transpose(2, 0, 1)) for point in line], axis=0)
    np.testing.assert_allclose(capsule(grid, start, end, 0.7), 0.7 - nearest, atol=2e-3)


def test_both_is_the_smaller_one_rounded_downwards():
    a, b = np.meshgrid(np.linspace(-2, 2, 41), np.linspace(-2, 2, 41))
    smooth = both(a, b, 0.5)
    sharp = np.minimum(a, b)
    assert (smooth <= sharp + 1e-12).all()
    assert np.abs(smooth - sharp).max() == pytest.approx(0.5 / 4)  # where both are equal
    assert np.array_equal(smooth[np.abs(a - b) >= 0.5], sharp[np.abs(a - b) >= 0.5])


def test_steps_goes_either_way():
    values = np.array([-1.0, 0.0, 0.5, 1.0, 2.0])
    np.testing.assert_allclose(steps(0, 1, values), [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(steps(1, 0, values), [1, 1, 0.5, 0, 0])


@pytest.mark.parametrize("spacing", [1.0, 1.7, 4.0, 11.5])
def test_noise_is_standard_whatever_its_grain(spacing: float):
    rng = np.random.default_rng(5)
    fields = np.stack([noise(rng, (200, 300), spacing) for _ in range(10)])
    assert fields.dtype == np.float32
    assert fields.std() == pytest.approx(1, abs=0.05)
    assert abs(fields.mean()) < 0.06


def test_noise_of_a_larger_grain_changes_more_slowly():
    rng = np.random.default_rng(5)
    rough, smooth = (np.abs(np.diff(noise(rng, (200, 200), spacing))).mean() for spacing in (2.0, 10.0))
    assert smooth < rough / 3


@given(seed=st.integers(0, 10**6), uneven=st.floats(0, 0.5), oval=st.floats(0, 1.5))
def test_no_outline_leaves_its_patch(seed: int, uneven: float, oval: float):
    grid = Grid.around(0, 0, 3 * (1 + REACH) + 0.5, 5.0)
    distance = outline(np.random.default_rng(seed), grid, 3.0, uneven=uneven, oval=oval)
    rim = np.concatenate([distance[0], distance[-1], distance[:, 0], distance[:, -1]])
    assert rim.max() < 0 < distance.max()


def test_outline_without_bumps_is_a_circle(grid: Grid):
    distance = outline(np.random.default_rng(0), grid, 3.0, uneven=0, oval=0)
    np.testing.assert_allclose(distance, 3 - np.hypot(grid.x, grid.y), atol=1e-5)
    assert (distance > 0).sum() / 8**2 == pytest.approx(np.pi * 9, rel=0.01)


def test_coverage_is_half_on_the_edge(grid: Grid):
    assert grid.coverage(np.array([-1.0, -1 / 16, 0.0, 1 / 16, 1.0])).tolist() == [0, 0, 0.5, 1, 1]
    assert grid.coverage(np.array([0.1]), softness_um=1.0)[0] == pytest.approx(0.5 + 0.1 / (1 + 1 / 8))


def test_along_keeps_ends_and_spaces_evenly():
    circles = along([[0, 0], [3, 0], [3, 4]], [1, 1, 2], 8)
    assert circles[0].tolist() == [0, 0, 1]
    assert circles[-1].tolist() == [3, 4, 2]
    assert circles[3].tolist() == [3, 0, 1]  # 3 of 7 µm along
    np.testing.assert_allclose(np.abs(np.diff(circles[:, :2], axis=0)).sum(axis=1), 1, atol=1e-6)


def test_dots_have_the_area_and_place_they_are_given(grid: Grid):
    one = dots(grid, [[1.25, -2.0]], [0.8], [1.0])
    assert one.sum() / 8**2 == pytest.approx(np.pi * 0.8**2, rel=0.06)
    centre = (one * grid.x).sum() / one.sum(), (one * grid.y).sum() / one.sum()
    assert centre == pytest.approx((1.25, -2.0), abs=0.04)
    assert dots(grid, [[0, 0]], [0.8], [0.5]).max() == pytest.approx(0.5, abs=0.01)
    assert dots(grid, np.zeros((0, 2)), [], []).max() == 0


def test_scatter_stays_inside_or_gives_nothing(grid: Grid):
    rng = np.random.default_rng(2)
    inside = 2.0 - np.hypot(grid.x, grid.y)
    points = scatter(rng, grid, inside, 500)
    assert points.shape == (500, 2)
    assert np.hypot(*points.T).max() < 2 + 0.1
    assert scatter(rng, grid, inside - 9, 5).shape == (0, 2)
