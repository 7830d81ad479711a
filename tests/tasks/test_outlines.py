"""Reading the maps of fields: cells apart that touch, whole that have holes, and never two on one pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cytolens.tasks.outlines import STEP_PX, Found, MapReading, OutlineOutput, levelled, levels, read
from tests.predict.outline_doubles import charted, marked, told

LIMITS = MapReading()


def laid(cells: list[Found], size_hw: tuple[int, int]) -> NDArray[np.int32]:
    """How many cells each pixel has, (H, W)."""
    count = np.zeros(size_hw, np.int32)
    for cell in cells:
        count[cell.y : cell.y + cell.mask.shape[0], cell.x : cell.x + cell.mask.shape[1]] += cell.mask
    return count


def maps_of(*cells: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Maps of masks (H, W), the later in front; the middle is that of the mask without what lies in front of it."""
    marks = np.zeros(cells[0].shape, np.int32)
    for number, cell in enumerate(cells, 1):
        marks[cell] = number
    return told(charted(marks))


def disc(x: float, y: float, radius: float, size_wh: tuple[int, int] = (90, 70)) -> NDArray[np.bool_]:
    return marked(size_wh, [(x, y, radius, radius, 0)]) > 0


# -- brightness ---------------------------------------------------------------------------------------


@given(low=st.integers(0, 200), span=st.integers(20, 55), seed=st.integers(0, 99))
def test_brightness_is_stretched_between_its_extremes(low: int, span: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    pixels = np.repeat(random.integers(low, low + span + 1, (40, 50, 1)), 3, axis=2).astype(np.uint8)
    pixels[:2], pixels[2:4] = low, low + span
    between = levels(pixels)
    assert between == (low, low + span)
    shown = levelled(pixels, between)
    assert (shown.min(), shown.max(), shown.dtype) == (0, 255, np.uint8)
    twin = [[min(255, max(0, (int(v) - low) * 255 / span)) for v in row] for row in pixels[..., 0]]
    assert np.abs(shown[..., 0] - np.array(twin)).max() <= 0.5 + 1e-6
    brighter = np.diff(pixels[..., 0].astype(int), axis=1) > 0
    assert (np.diff(shown[..., 0].astype(int), axis=1)[brighter] > 0).all()


def test_a_flat_picture_is_not_blown_up() -> None:
    pixels = np.full((30, 30, 3), 100, np.uint8)
    pixels[10, 10] = 104
    assert levels(pixels) == (100, 116)
    assert levelled(pixels, levels(pixels)).max() == 64


def test_a_large_picture_is_measured_in_part() -> None:
    pixels = np.random.default_rng(0).integers(50, 151, (2400, 2000, 1), np.uint8).repeat(3, axis=2)
    assert levels(pixels) == pytest.approx((50, 150), abs=1)


# -- reading ------------------------------------------------------------------------------------------


def test_nothing_is_read_from_nothing() -> None:
    assert read(np.zeros((4, 40, 30)), LIMITS) == []
    inside = np.zeros((4, 40, 30))
    inside[0] = 1  # inside, and no middle anywhere
    assert read(inside, LIMITS) == []


def test_cells_that_touch_come_apart() -> None:
    one, other = disc(30, 35, 15), disc(57, 35, 14)
    cells = read(maps_of(one, other), LIMITS)
    assert [cell.mask.sum() for cell in cells] == [(one & ~other).sum(), other.sum()]
    assert cells[1].x == np.nonzero(other)[1].min()
    assert cells[1].y == np.nonzero(other)[0].min()
    rows, columns = np.nonzero(other)
    assert cells[1].middle == pytest.approx((columns.mean(), rows.mean()), abs=0.5)
    assert 0.9 < cells[1].score <= 0.95


def test_holes_are_filled_and_crumbs_fall_off() -> None:
    maps = maps_of(disc(40, 35, 16))
    maps[0, 40:43, 38:41] = 0  # a hole
    maps[0, 35, 65:68] = 1  # a crumb that votes for the cell
    maps[3, 35, 65:68] = -26 / STEP_PX
    (cell,) = read(maps, LIMITS)
    assert cell.mask.sum() == disc(40, 35, 16).sum()
    assert read(maps, MapReading(area_min_px=int(cell.mask.sum()) + 1)) == []


def test_a_cell_in_the_hole_of_another_stays_its_own() -> None:
    """A ring, a ring in its hole, and a disc in the hole of that: no pixel is of two of them."""
    size_wh = (110, 110)

    def ring(outer: float, inner: float) -> NDArray[np.bool_]:
        return disc(55, 55, outer, size_wh) & ~disc(55, 55, inner, size_wh)

    shapes = [ring(48, 36), ring(28, 16)]
    maps = maps_of(*shapes)
    # Middles beside each other, each on its ring; the votes of the two lie too far apart to be one.
    for (x, y), shape in zip(((97, 55), (33, 55)), shapes, strict=True):
        rows, columns = np.nonzero(shape)
        maps[1][shape] = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 20)
        maps[2][shape], maps[3][shape] = (y - rows) / STEP_PX, (x - columns) / STEP_PX
    cells = read(maps, LIMITS)
    assert len(cells) == 2
    count = laid(cells, size_wh[::-1])
    assert count.max() == 1
    assert count[55, 55] == 1  # the inner ring is whole
    assert count[55, 23] == 1  # between the two: the outer one's


def test_a_spurious_middle_holds_no_hole_open() -> None:
    maps = maps_of(disc(40, 35, 16))
    maps[1, 30, 45], maps[2:4, 28:31, 44:47] = 1, 0
    maps[2:4, 28:31, 44:47] = np.array([60, 60]).reshape(2, 1, 1) / STEP_PX  # a few pixels point elsewhere
    cells = read(maps, LIMITS)
    assert laid(cells, (70, 90)).max() == 1
    assert laid(cells, (70, 90))[29, 45] == 1


@given(
    cells=st.lists(
        st.tuples(st.floats(20, 100), st.floats(20, 90), st.floats(4, 18), st.floats(4, 18), st.floats(0, 3)),
        max_size=6,
    ),
    seed=st.integers(0, 99),
    shift=st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_where_the_maps_begin_does_not_matter(
    cells: list[tuple[float, float, float, float, float]], seed: int, shift: tuple[int, int]
) -> None:
    maps = told(charted(marked((120, 110), cells), np.random.default_rng(seed)))
    right, down = shift
    moved = np.pad(maps, ((0, 0), (down, 7), (right, 3)))
    here, there = read(maps, LIMITS), read(moved, LIMITS)
    assert len(here) == len(there)
    for one, other in zip(here, there, strict=True):
        assert (one.x + right, one.y + down, one.score) == (other.x, other.y, other.score)
        assert other.middle == pytest.approx((one.middle[0] + right, one.middle[1] + down), abs=1e-9)
        np.testing.assert_array_equal(one.mask, other.mask)
        assert one.mask[[0, -1]].any(axis=1).all()
        assert one.mask[:, [0, -1]].any(axis=0).all()
    assert laid(here, (110, 120)).max(initial=0) <= 1


def test_limits_of_a_type() -> None:
    output = OutlineOutput(per_label={"astro": MapReading(inside_min=0.4)})
    assert output.reading_of("astro").inside_min == 0.4
    assert output.reading_of("cort") == output.reading_of(None) == output.reading
