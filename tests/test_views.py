from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cytolens import boxes as box
from cytolens import masks, views
from cytolens.cells import Cells
from cytolens.labels import LabelSet
from cytolens.views import View
from tests import reference
from tests.strategies import box_arrays, cell_tables, mask_arrays, pictures, view_chains, view_steps

SOURCE_WH = (40, 30)
Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]


def cell_with(mask: NDArray[np.bool_]) -> Cells:
    return Cells.of(
        LabelSet.of(["WBC"]), image_id=["a"], boxes=[[0, 0, 1, 1]], label=["WBC"], source="x", mask=[masks.encode(mask)]
    )


def mask_of(cells: Cells, wh: tuple[int, int]) -> NDArray[np.bool_]:
    code = cells.masks()[0]
    assert code is not None
    return masks.decode(code, (wh[1], wh[0]))


def noise(width: int, height: int, seed: int = 3) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# -- boxes ----------------------------------------------------------------------------------------


@given(view_chains(SOURCE_WH), box_arrays(side_px=30))
def test_boxes_go_forward_and_come_back(view: View, boxes: Floats) -> None:
    there = view.forward_boxes(boxes)
    scale = max(1.0, np.abs(view.inverse_matrix).max())
    np.testing.assert_allclose(view.back_boxes(there), boxes, atol=1e-9 * scale)
    assert (box.sizes_wh(there) > 0).all(), "a flip leaves no box inside out"


@given(view_chains(SOURCE_WH), box_arrays(side_px=30))
def test_boxes_go_forward_as_their_corners_do(view: View, boxes: Floats) -> None:
    expected = [reference.mapped_box(one, view.matrix.tolist()) for one in boxes.tolist()]
    np.testing.assert_allclose(view.forward_boxes(boxes), np.reshape(expected, (-1, 4)), atol=1e-9)


@given(st.data(), box_arrays(side_px=30))
def test_one_view_after_the_other_is_one_view(data: st.DataObject, boxes: Floats) -> None:
    first = data.draw(view_steps(SOURCE_WH))
    second = data.draw(view_steps(first.wh))
    both = first.then(second)
    assert (both.source_wh, both.wh) == (SOURCE_WH, second.wh)
    np.testing.assert_allclose(both.forward_boxes(boxes), second.forward_boxes(first.forward_boxes(boxes)), atol=1e-8)


@given(view_chains((64, 48)), cell_tables(LabelSet.of(["WBC"]), image_ids=("a",), with_masks=False))
@settings(max_examples=50)
def test_cells_go_forward_and_come_back(view: View, cells: Cells) -> None:
    back = view.back(view.forward(cells))
    scale = max(1.0, np.abs(view.matrix).max(), np.abs(view.inverse_matrix).max())
    np.testing.assert_allclose(back.boxes(), cells.boxes(), atol=1e-4 * scale)
    kept = [name for name in cells.frame.columns if name not in ("x_min", "y_min", "x_max", "y_max")]
    assert back.frame.select(kept).equals(cells.frame.select(kept))


def test_a_whole_view_changes_nothing() -> None:
    view, pixels = View.whole((5, 7)), noise(5, 7)
    assert view.forward_boxes([[1, 2, 3, 4]]).tolist() == [[1, 2, 3, 4]]
    np.testing.assert_array_equal(view.pixels(pixels), pixels)
    np.testing.assert_array_equal(view.then(view).matrix, view.matrix)


def test_no_boxes_and_no_cells_go_through() -> None:
    view = views.flip(SOURCE_WH)
    assert view.forward_boxes([]).shape == view.back_boxes([]).shape == (0, 4)
    assert len(view.forward(Cells.empty(LabelSet.of(["WBC"])))) == 0


@pytest.mark.parametrize(
    "linear", [[[1, 0.1], [0, 1]], [[1, 1], [1, -1]], [[0, 0], [0, 1]], [[0, 0], [0, 0]], [[1, 0], [1, 0]]]
)
def test_only_maps_that_keep_boxes_boxes_are_views(linear: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="a view flips, turns by quarters, scales and shifts"):
        View((4, 4), (4, 4), np.column_stack([np.array(linear, float), [0.0, 0.0]]))


def test_a_view_follows_only_where_sizes_meet() -> None:
    with pytest.raises(ValueError, match=r"the second view is of a \(9, 9\) picture, this one is \(5, 7\)"):
        View.whole((5, 7)).then(View.whole((9, 9)))
    with pytest.raises(ValueError, match=r"the view is of a \(5, 7\) image, got \(7, 5\)"):
        View.whole((5, 7)).pixels(noise(7, 5))


# -- the kinds ------------------------------------------------------------------------------------


@given(pictures(), st.integers(-4, 7))
def test_flips_and_quarter_turns_are_those_of_numpy(pixels: Pixels, turns: int) -> None:
    wh = (pixels.shape[1], pixels.shape[0])
    np.testing.assert_array_equal(views.flip(wh).pixels(pixels), pixels[:, ::-1])
    np.testing.assert_array_equal(views.flip(wh, horizontal=False).pixels(pixels), pixels[::-1])
    turn = views.quarter_turn(wh, turns)
    expected = np.rot90(pixels, turns)
    assert turn.wh == (expected.shape[1], expected.shape[0])
    np.testing.assert_array_equal(turn.pixels(pixels), expected)


def test_boxes_of_flips_and_turns() -> None:
    assert views.flip((10, 6)).forward_boxes([1, 2, 4, 5]).tolist() == [[6, 2, 9, 5]]
    assert views.flip((10, 6), horizontal=False).forward_boxes([1, 2, 4, 5]).tolist() == [[1, 1, 4, 4]]
    assert views.quarter_turn((10, 6)).forward_boxes([1, 2, 4, 5]).tolist() == [[2, 6, 5, 9]]
    assert views.quarter_turn((10, 6), 2).forward_boxes([1, 2, 4, 5]).tolist() == [[6, 1, 9, 4]]


@given(pictures(least_px=4), st.integers(-6, 20), st.integers(-6, 20), st.integers(1, 20), st.integers(1, 20))
def test_a_tile_is_a_slice_with_a_border(pixels: Pixels, x: int, y: int, width: int, height: int) -> None:
    tile = views.tile((pixels.shape[1], pixels.shape[0]), x, y, (width, height))
    rim = ((6, 60), (6, 60), (0, 0))
    for border, padded in ((None, np.pad(pixels, rim, "edge")), (114, np.pad(pixels, rim, constant_values=114))):
        expected = padded[y + 6 : y + 6 + height, x + 6 : x + 6 + width]
        np.testing.assert_array_equal(tile.pixels(pixels, border), expected)


def test_a_tile_of_a_very_wide_image() -> None:
    pixels = np.zeros((4, 40_000, 3), np.uint8)
    pixels[:, -50:] = 200
    assert (views.tile((40_000, 4), 39_950, 0, (50, 4)).pixels(pixels) == 200).all()


@pytest.mark.parametrize(
    ("height", "width", "side", "inner_hw"),
    [(363, 360, 416, (416, 412)), (448, 800, 640, (358, 640)), (520, 704, 640, (472, 640))],
)
def test_the_letterbox_has_the_published_sizes(height: int, width: int, side: int, inner_hw: tuple[int, int]) -> None:
    view = views.letterbox((width, height), (side, side))
    assert view.forward_boxes([0, 0, width, height]).tolist() == [[0, 0, inner_hw[1], inner_hw[0]]]
    assert view.wh == (side, side)
    pixels = np.asarray(cv2.GaussianBlur(noise(width, height), (5, 5), 1), np.uint8)
    picture = view.pixels(pixels, border=114)
    assert (picture[inner_hw[0] :] == 114).all()
    assert (picture[:, inner_hw[1] :] == 114).all()
    resized = cv2.resize(pixels, inner_hw[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.abs(picture[: inner_hw[0], : inner_hw[1]].astype(int) - resized).max() <= 1


@given(st.tuples(st.integers(1, 900), st.integers(1, 900)), st.tuples(st.integers(1, 700), st.integers(1, 700)))
def test_a_letterbox_fits_and_keeps_the_proportion(source_wh: tuple[int, int], wh: tuple[int, int]) -> None:
    view = views.letterbox(source_wh, wh)
    _, _, inner_width, inner_height = view.forward_boxes([0, 0, *map(float, source_wh)])[0]
    ratio = min(wh[0] / source_wh[0], wh[1] / source_wh[1])
    assert inner_width <= wh[0] + 1e-9
    assert inner_height <= wh[1] + 1e-9
    for inner, size in ((inner_width, source_wh[0]), (inner_height, source_wh[1])):
        assert inner == pytest.approx(max(1, int(size * ratio)))


def test_a_crop_maps_its_region_onto_the_whole_picture() -> None:
    view = views.crop((100, 80), (10, 20, 30, 40), 60)
    assert view.forward_boxes([10, 20, 30, 40]).tolist() == [[0, 0, 60, 60]]
    assert view.back_boxes([0, 0, 30, 30]).tolist() == [[10, 20, 20, 30]]
    for region in ([5, 5, 5, 9], [5, 5, 2, 9], [np.nan, 0, 1, 1]):
        with pytest.raises(ValueError, match="a region with an area"):
            views.crop((100, 80), region, 60)


# -- pixels ---------------------------------------------------------------------------------------


@given(view_chains((60, 44), most=3), st.data())
def test_pixels_and_masks_move_with_boxes(view: View, data: st.DataObject) -> None:
    x, y = data.draw(st.integers(0, 50)), data.draw(st.integers(0, 34))
    corner = x + data.draw(st.integers(5, 30)), y + data.draw(st.integers(5, 30))
    rectangle = box.clip([x, y, *corner], 60, 44)[0]
    mapped = box.clip(view.forward_boxes(rectangle), *view.wh)[0]
    # A pixel of the source must be in view: less of a magnified one never gets as bright as it is.
    assume((mapped[2:] - mapped[:2] >= max(3.0, float(np.abs(view.matrix[:, :2]).max()))).all())
    painted = np.zeros((44, 60, 3), np.uint8)
    left, top, right, bottom = rectangle.astype(int)
    painted[top:bottom, left:right] = 255
    seen = view.pixels(painted, border=0)[:, :, 0] > 127
    moved = mask_of(view.forward(cell_with(painted[:, :, 0] > 0)), view.wh)
    for picture in (seen, moved):
        np.testing.assert_allclose(masks.bounds(masks.encode(picture), picture.shape), mapped, atol=1)


@given(st.data(), st.integers(0, 99))
@settings(max_examples=50)
def test_pixels_of_two_views_are_those_of_their_composition(data: st.DataObject, seed: int) -> None:
    source = noise(24, 18, seed)
    turn = views.quarter_turn((24, 18), data.draw(st.integers(0, 3)))
    flip = views.flip(turn.wh, data.draw(st.booleans()))
    tile = views.tile(flip.wh, data.draw(st.integers(-3, 9)), data.draw(st.integers(-3, 9)), (11, 13))
    whole = turn.then(flip).then(tile)
    expected = tile.pixels(flip.pixels(turn.pixels(source)), border=9)
    np.testing.assert_array_equal(whole.pixels(source, border=9), expected)


def test_shrinking_averages_and_loses_no_pixel() -> None:
    pixels = noise(60, 40)
    means = pixels.reshape(10, 4, 15, 4, 3).mean(axis=(1, 3))
    assert np.abs(views.letterbox((60, 40), (15, 10)).pixels(pixels) - means).max() <= 1
    wide = noise(25, 20)  # two blocks of ten and a half: the whole blocks keep their means
    view = View((25, 20), (2, 2), np.array([[0.1, 0, 0], [0, 0.1, 0.0]]))
    blocks = wide[:, :20].reshape(2, 10, 2, 10, 3).mean(axis=(1, 3))
    assert np.abs(view.pixels(wide) - blocks).max() <= 1
    striped = np.zeros((30, 31, 3), np.uint8)
    striped[:, ::2] = 254
    assert np.ptp(views.letterbox((31, 30), (10, 10)).pixels(striped)[:, :8]) < 90, "stripes do not alias"
    # 1009 px do not divide by ten: the last column of the picture still shows the source.
    for border in (None, 0):
        shrunk = views.letterbox((1009, 1009), (100, 100)).pixels(np.full((1009, 1009, 3), 100, np.uint8), border)
        assert (shrunk == 100).all()


def test_shrinking_one_axis_leaves_the_other_sharp() -> None:
    pixels = np.zeros((8, 80, 3), np.uint8)
    pixels[::2] = 200
    view = View((80, 8), (8, 8), np.array([[0.1, 0, 0], [0, 1.0, 0]]))
    np.testing.assert_array_equal(view.pixels(pixels), pixels[:, :8])


def test_a_crop_of_a_large_image_is_that_of_its_part() -> None:
    large = noise(400, 300)
    for region, side in (((101, 77, 161, 137), 40), ((101, 77, 161, 137), 90), ((96, 72, 176, 152), 16)):
        part = views.tile((400, 300), 50, 40, (200, 200))
        x, y = region[0] - 50, region[1] - 40
        inside = views.crop((200, 200), (x, y, x + region[2] - region[0], y + region[3] - region[1]), side)
        direct = views.crop((400, 300), region, side).pixels(large)
        assert np.abs(direct.astype(int) - inside.pixels(part.pixels(large))).max() <= 1


def test_the_border_does_not_shine_into_the_picture() -> None:
    black = np.zeros((10, 10, 3), np.uint8)
    assert views.letterbox((10, 10), (40, 40)).pixels(black, border=255).max() == 0
    enlarged = views.crop((10, 10), (-5, -5, 15, 15), 80).pixels(black, border=255)
    expected = np.full((80, 80, 3), 255, np.uint8)
    expected[20:60, 20:60] = 0
    np.testing.assert_array_equal(enlarged, expected)


def test_a_view_beside_the_image_is_all_border() -> None:
    far = views.tile((10, 10), 500, 500, (4, 4))
    assert (far.pixels(noise(10, 10), border=7) == 7).all()
    assert (views.tile((10, 10), -90, 0, (4, 4)).pixels(noise(10, 10), border=7) == 7).all()


def test_pixels_leave_the_source_alone() -> None:
    source = noise(20, 20)
    before = source.copy()
    for view in (View.whole((20, 20)), views.flip((20, 20)), views.letterbox((20, 20), (6, 9))):
        picture = view.pixels(source, border=1)
        picture[:] = 0
        np.testing.assert_array_equal(source, before)


# -- masks ----------------------------------------------------------------------------------------


@given(mask_arrays((9, 7)), st.integers(0, 3), st.booleans())
def test_masks_turn_and_flip_exactly_and_come_back(mask: NDArray[np.bool_], turns: int, horizontal: bool) -> None:
    turn = views.quarter_turn((7, 9), turns)
    view = turn.then(views.flip(turn.wh, horizontal))
    there = view.forward(cell_with(mask))
    turned = np.rot90(mask, turns)
    np.testing.assert_array_equal(mask_of(there, view.wh), turned[:, ::-1] if horizontal else turned[::-1])
    np.testing.assert_array_equal(mask_of(view.back(there), (7, 9)), mask)


@given(mask_arrays((9, 7)), st.integers(-3, 6), st.integers(-3, 6))
def test_masks_are_cut_by_tiles_and_return_to_their_place(mask: NDArray[np.bool_], x: int, y: int) -> None:
    view = views.tile((7, 9), x, y, (5, 6))
    there = view.forward(cell_with(mask))
    padded = np.pad(mask, 20)
    np.testing.assert_array_equal(mask_of(there, (5, 6)), padded[y + 20 : y + 26, x + 20 : x + 25])
    kept = np.zeros_like(padded)
    kept[y + 20 : y + 26, x + 20 : x + 25] = padded[y + 20 : y + 26, x + 20 : x + 25]
    np.testing.assert_array_equal(mask_of(view.back(there), (7, 9)), kept[20:29, 20:27])


def test_masks_come_back_through_a_larger_letterbox() -> None:
    y, x = np.mgrid[:30, :40]
    mask = (x - 18) ** 2 + (y - 14) ** 2 < 100
    view = views.letterbox((40, 30), (96, 96))
    there = view.forward(cell_with(mask))
    assert mask_of(there, (96, 96)).sum() == pytest.approx(mask.sum() * 2.4**2, rel=0.02)
    np.testing.assert_array_equal(mask_of(view.back(there), (40, 30)), mask)


def test_cells_without_a_mask_stay_without() -> None:
    two: Any = cell_with(np.ones((9, 7), bool))
    cells = two.concat(two.with_masks([None]))
    assert [code is None for code in views.flip((7, 9)).forward(cells).masks()] == [False, True]
