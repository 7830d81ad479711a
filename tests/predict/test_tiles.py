"""Tiles: they cover everything, and what they find is joined without seams, doubles or losses."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cytolens import boxes as box
from cytolens.predict import tiles
from cytolens.predict.tiles import (
    Window,
    joined,
    kept,
    sampled,
    tile_from_ruler,
    touches_inner_border,
    windows,
)
from cytolens.prepare.synthetic import SyntheticSettings
from cytolens.tasks.cell_scale import red_cell_size
from cytolens.tasks.detect import DetectOutput, Findings
from tests import reference
from tests.predict.doubles import rendered
from tests.strategies import box_arrays, score_arrays

sizes = st.tuples(st.integers(1, 700), st.integers(1, 700))
tile_sides = st.integers(64, 400)


# -- where the windows lie ------------------------------------------------------------------------


@given(size_wh=sizes, tile_px=tile_sides)
def test_windows_cover_every_pixel_and_stay_inside(size_wh: tuple[int, int], tile_px: int) -> None:
    seen = np.zeros(size_wh[::-1], int)
    for window in windows(size_wh, tile_px):
        assert window.x >= 0
        assert window.y >= 0
        assert window.x + window.width <= size_wh[0]
        assert window.y + window.height <= size_wh[1]
        assert max(window.width, window.height) <= tile_px
        part = window.of(seen)
        assert part.shape == (window.height, window.width)
        part += 1
    assert seen.min() >= 1


@given(size_wh=sizes, tile_px=tile_sides)
def test_neighbouring_windows_overlap_by_at_least_a_quarter(size_wh: tuple[int, int], tile_px: int) -> None:
    some = windows(size_wh, tile_px)
    for starts in ({w.x for w in some}, {w.y for w in some}):
        steps = np.diff(sorted(starts))
        assert (tile_px - steps >= tile_px * 0.25 - 1).all()  # starts are whole pixels
        assert steps.max(initial=0) - steps.min(initial=tile_px) <= 1  # evenly spread


@given(size_wh=sizes, tile_px=tile_sides)
def test_there_are_no_more_windows_than_needed(size_wh: tuple[int, int], tile_px: int) -> None:
    def least(length: int) -> int:
        count = 1
        while tile_px + (count - 1) * tile_px * 0.75 < length:
            count += 1
        return count

    assert len(windows(size_wh, tile_px)) == least(size_wh[0]) * least(size_wh[1])


def test_an_image_that_fits_is_one_window() -> None:
    assert windows((300, 200), 300) == [Window(0, 0, 300, 200)]
    assert [(w.x, w.width) for w in windows((301, 200), 300)] == [(0, 300), (1, 300)]


def test_the_central_window_is_in_the_middle() -> None:
    assert sampled((1000, 400), 500) == [Window(x, 0, 500, 400) for x in (250, 125, 375)]
    assert sampled((1000, 800), 400)[0] == Window(300, 200, 400, 400)
    assert sampled((1000, 800), 400)[4] == Window(450, 300, 400, 400)
    assert sampled((7, 5), 100) == [Window(0, 0, 7, 5)]


# -- what ends at a seam --------------------------------------------------------------------------


def test_only_a_seam_cuts_cells_not_the_rim_of_the_image() -> None:
    size_wh = (200, 100)
    left, right = Window(0, 0, 120, 100), Window(80, 0, 120, 100)
    boxes = np.array([[0, 0, 20, 100], [90, 10, 119, 30], [81, 10, 110, 30], [170, 10, 200, 30]], np.float32)
    assert touches_inner_border(boxes, left, size_wh).tolist() == [False, True, False, True]
    assert touches_inner_border(boxes, right, size_wh).tolist() == [True, False, True, False]
    assert not touches_inner_border(boxes, Window(0, 0, 200, 100), size_wh).any()
    high = np.array([[5, 40, 25, 59.5], [5, 0, 25, 20]], np.float32)
    assert touches_inner_border(high, Window(0, 0, 200, 60), size_wh).tolist() == [True, False]
    assert touches_inner_border(high, Window(0, 40, 200, 60), size_wh).tolist() == [True, True]


def seen_in(
    window: Window, truth: NDArray[np.float32], classes: NDArray[np.intp], scores: NDArray[np.float32]
) -> Findings:
    """What a perfect detector finds in a window: each cell's visible part, if there is enough of it."""
    moved = truth - window.shift
    cut = box.clip(moved, window.width, window.height)
    visible = (box.areas(cut) >= 0.15 * box.areas(truth)) & box.valid(cut)
    # What is cut looks less like a cell.
    faded = scores * np.where(box.areas(cut) < box.areas(truth) - 1, 0.8, 1.0)
    return Findings(cut[visible], classes[visible], faded[visible].astype(np.float32))


BIG = SyntheticSettings(
    width_px=1000,
    height_px=760,
    red_cells=(90, 110),
    white_cells=(10, 12),
    platelets=(15, 20),
    red_cell_diameter_px=(44.0, 48.0),
)


@pytest.mark.parametrize("tile_px", [290, 430, 600])
def test_a_rendered_field_in_tiles_is_the_field(tile_px: int) -> None:
    """Every cell once and whole: nothing lost at a seam, nothing found twice."""
    cells = rendered(5, BIG).cells
    truth = cells.boxes()
    classes = np.array([cells.labels.index(str(name)) for name in cells.label_names()], np.intp)
    small = box.sizes_wh(truth).max(axis=1) < 0.25 * tile_px - 5  # what the overlap is made for
    apart = (box.iou(truth, truth) - np.eye(len(truth))).max(axis=1) <= 0.45  # piled cells are no question of seams
    truth, classes = truth[small & apart], classes[small & apart]
    assert len(truth) > 60
    scores = np.linspace(0.5, 0.99, len(truth)).astype(np.float32)
    size_wh = (BIG.width_px, BIG.height_px)
    parts = [(w, seen_in(w, truth, classes, scores)) for w in windows(size_wh, tile_px)]
    assert sum(len(found.boxes) for _, found in parts) > 1.2 * len(truth)
    got = joined(parts, size_wh, DetectOutput())
    order, expected = np.lexsort(got.boxes.T), np.lexsort(truth.T)
    assert len(got.boxes) == len(truth)
    assert got.boxes[order] == pytest.approx(truth[expected], abs=1e-3)
    assert got.classes[order].tolist() == classes[expected].tolist()
    assert got.scores[order] == pytest.approx(scores[expected], abs=1e-6)


@given(
    x=st.floats(30, 770, width=32),
    y=st.floats(30, 570, width=32),
    radius=st.floats(3, 24, width=32),
    tile_px=st.integers(210, 500),
)
def test_one_cell_anywhere_is_one_finding(x: float, y: float, radius: float, tile_px: int) -> None:
    truth = np.array([[x - radius, y - radius, x + radius, y + radius]], np.float32)
    size_wh = (800, 600)
    parts = [
        (w, seen_in(w, truth, np.zeros(1, np.intp), np.full(1, 0.9, np.float32))) for w in windows(size_wh, tile_px)
    ]
    got = joined(parts, size_wh, DetectOutput())
    assert got.boxes == pytest.approx(truth, abs=1e-3)


def test_a_cell_larger_than_the_overlap_is_not_lost() -> None:
    truth = np.array([[100, 100, 300, 300]], np.float32)
    size_wh = (400, 400)
    parts = [(w, seen_in(w, truth, np.zeros(1, np.intp), np.full(1, 0.9, np.float32))) for w in windows(size_wh, 220)]
    got = joined(parts, size_wh, DetectOutput())
    assert len(got.boxes) >= 1
    assert box.intersections(got.boxes, truth).max() > 0.5 * 200 * 200


def test_a_piece_goes_only_for_a_whole_cell_of_its_label() -> None:
    boxes = np.array([[0, 0, 40, 20], [0, 0, 41, 40], [0, 0, 41, 40]], np.float32)
    cut = np.array([True, False, False])
    scores = np.array([0.9, 0.6, 0.5], np.float32)
    assert kept(boxes, np.array([0, 0, 1]), scores, cut, 0.65).tolist() == [1, 2]
    assert kept(boxes, np.array([0, 1, 1]), scores, cut, 0.65).tolist() == [0, 1]
    assert kept(boxes, np.array([0, 0, 1]), scores, np.zeros(3, bool), 0.65).tolist() == [0, 1, 2]


def test_a_piece_goes_when_most_of_it_is_covered() -> None:
    """Boxes of a piece and of its cell never agree to the pixel."""
    whole = [0, 0, 40, 40]
    for width, stays in ((50, False), (64, False), (70, True)):  # 80 %, 62.5 % and 57 % of the piece
        boxes = np.array([[0, 0, width, 10], whole], np.float32)
        rows = kept(boxes, np.zeros(2, np.intp), np.array([0.9, 0.8], np.float32), np.array([True, False]), 0.65)
        assert sorted(rows.tolist()) == ([0, 1] if stays else [1])


@given(st.data())
def test_without_seams_joining_is_plain_suppression(data: st.DataObject) -> None:
    boxes = data.draw(box_arrays(most=8, grid_px=8)).astype(np.float32)
    scores = data.draw(score_arrays(len(boxes)))
    classes = np.array(data.draw(st.lists(st.integers(0, 1), min_size=len(boxes), max_size=len(boxes))), np.intp)
    got = kept(boxes, classes, scores, np.zeros(len(boxes), bool), 0.65)
    expected = reference.suppressed(boxes.tolist(), scores.tolist(), 0.5, classes.tolist())
    assert got.tolist() == expected


def test_empty_windows_join_to_nothing() -> None:
    nothing = Findings(np.zeros((0, 4), np.float32), np.zeros(0, np.intp), np.zeros(0, np.float32))
    got = joined([(w, nothing) for w in windows((500, 500), 300)], (500, 500), DetectOutput())
    assert (got.boxes.shape, got.classes.shape, got.scores.shape) == ((0, 4), (0,), (0,))


def test_a_slide_full_of_pieces_fits_into_memory() -> None:
    random = np.random.default_rng(0)
    corner = random.uniform(0, 50_000, (4000, 2))
    whole = np.concatenate([corner, corner + 40], axis=1).astype(np.float32)
    upper_half, elsewhere = whole - [0, 0, 0, 20], whole + 60_000
    pieces = np.concatenate([upper_half, elsewhere]).astype(np.float32)
    tracemalloc.start()
    covered = tiles._covered(pieces, whole)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert covered.tolist() == [True] * 4000 + [False] * 4000
    assert peak < 200e6  # 8,000 × 4,000 overlaps at once would take over 700 MB


# -- the ruler ------------------------------------------------------------------------------------


def test_a_tile_shows_red_cells_at_the_wanted_size() -> None:
    tile = tile_from_ruler(30.0, 416, 60.0)
    assert tile == 208
    assert 30.0 * 416 / tile == 60.0
    assert tile_from_ruler(0.5, 416, 60.0) == 104  # never so small that a network sees mush
    assert tile_from_ruler(120.0, 416, 60.0) == 832


def test_the_red_cell_is_measured_where_there_are_enough_of_them() -> None:
    sides = np.array([10, 11, 12, 13, 40], np.float32)
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)
    scores = np.array([0.9, 0.9, 0.9, 0.9, 0.9], np.float32)
    classes = np.ones(5, np.intp)
    assert red_cell_size(Findings(boxes, classes, scores), 1) == pytest.approx(12)
    assert red_cell_size(Findings(boxes, classes, scores), 0) is None
    assert red_cell_size(Findings(boxes, classes, scores), None) is None
    assert (
        red_cell_size(Findings(boxes, classes, scores - np.array([0, 0, 0, 0, 0.505], np.float32)), 1) is None
    )  # four sure ones only
    flat = np.array([[0, 0, 9, 16]] * 5, np.float32)
    assert red_cell_size(Findings(flat, classes, scores), 1) == pytest.approx(12)  # the root of the area
