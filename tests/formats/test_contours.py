"""Polygons of masks: exact, valid, and filled again as a slow twin does it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cytolens.formats import contours, run_lengths
from tests import reference
from tests.strategies import mask_arrays

Mask = NDArray[np.bool_]


def filled(polygons: list[list[contours.Ring]], size_wh: tuple[int, int]) -> Mask:
    flat = np.zeros(size_wh[0] * size_wh[1], bool)
    flat[contours.positions_inside(polygons, size_wh)] = True
    return flat.reshape(size_wh).T


@given(mask=mask_arrays())
def test_a_mask_comes_back_from_its_polygons(mask: Mask) -> None:
    polygons = contours.polygons_of(mask)
    np.testing.assert_array_equal(filled(polygons, (mask.shape[1], mask.shape[0])), mask)
    assert sum(contours.signed_area(ring) for polygon in polygons for ring in polygon) == mask.sum()


@given(mask=mask_arrays())
def test_rings_are_simple_and_turn_as_rfc_7946_asks(mask: Mask) -> None:
    for outer, *holes in contours.polygons_of(mask):
        assert contours.signed_area(outer) > 0
        assert all(contours.signed_area(hole) < 0 for hole in holes)
        for ring in (outer, *holes):
            assert len({tuple(point) for point in ring.tolist()}) == len(ring) >= 4
            steps = np.diff(ring, axis=0, append=ring[:1])
            assert ((steps == 0).sum(axis=1) == 1).all()  # along one axis at a time
            assert (np.diff(steps[:, 0] == 0) != 0).all()  # and a turn at every point
        for hole in holes:  # the pixel inside the hole's first corner lies in the outer ring
            assert reference.inside(*(hole.mean(axis=0) if len(hole) == 4 else _within(hole)), [outer.tolist()])


def _within(ring: contours.Ring) -> tuple[float, float]:
    """The centre of some pixel inside a ring."""
    low, high = ring.min(axis=0).astype(int), ring.max(axis=0).astype(int)
    centres = ((x + 0.5, y + 0.5) for x in range(low[0], high[0]) for y in range(low[1], high[1]))
    return next(centre for centre in centres if reference.inside(*centre, [ring.tolist()]))


def test_pixels_that_touch_at_a_corner_are_two_polygons() -> None:
    assert [len(polygon) for polygon in contours.polygons_of(np.eye(2, dtype=bool))] == [1, 1]


def test_a_ring_of_pixels_has_a_hole() -> None:
    mask = np.ones((3, 3), bool)
    mask[1, 1] = False
    ((outer, hole),) = contours.polygons_of(mask, 10, 20)
    assert sorted(map(tuple, outer.tolist())) == [(10, 20), (10, 23), (13, 20), (13, 23)]
    assert sorted(map(tuple, hole.tolist())) == [(11, 21), (11, 22), (12, 21), (12, 22)]


def test_a_hole_that_touches_the_border_at_a_corner() -> None:
    """Joined into one ring it would touch itself, which is not valid."""
    mask = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], bool)
    ((outer, *holes),) = contours.polygons_of(mask)
    assert len(outer) == 6
    assert [len(hole) for hole in holes] == [4]


@given(
    points=st.lists(st.tuples(st.floats(-6, 16, width=16), st.floats(-6, 16, width=16)), min_size=3, max_size=7),
    hole=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=4),
)
def test_any_polygon_is_filled_as_the_slow_twin_does(
    points: list[tuple[float, float]], hole: list[tuple[int, int]]
) -> None:
    rings = [np.array(points, float), np.array(hole, float)]
    wanted = [[reference.inside(x + 0.5, y + 0.5, [points, hole]) for x in range(10)] for y in range(8)]
    np.testing.assert_array_equal(filled([rings], (10, 8)), wanted)


def test_overlapping_polygons_are_joined() -> None:
    square = np.array([[0, 0], [4, 0], [4, 4], [0, 4]], float)
    assert filled([[square], [square + 2]], (8, 8)).sum() == 16 + 16 - 4


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e9])
def test_coordinates_that_make_no_sense_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="no numbers or far outside"):
        contours.positions_inside([[np.array([[0, 0], [wrong, 0], [1, 1]])]], (10, 10))


def test_no_polygon_and_one_outside_hold_nothing() -> None:
    assert len(contours.positions_inside([], (10, 10))) == 0
    outside = np.array([[20, 20], [25, 20], [25, 25]], float)
    assert len(contours.positions_inside([[outside]], (10, 10))) == 0
    assert run_lengths.code_of_positions(np.zeros(0, np.int64), (2, 3)) == b"6"
