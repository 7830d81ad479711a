from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cytolens import boxes as box
from tests import reference
from tests.strategies import box_arrays, score_arrays

BOX = [1.0, 2.0, 4.0, 8.0]
INSIDE_OUT = [4.0, 8.0, 1.0, 2.0]


def pairwise(twin: Callable[[Any, Any], float], a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([[twin(left, right) for right in b] for left in a], np.float64).reshape(len(a), len(b))


# -- shapes ---------------------------------------------------------------------------------------


def test_as_boxes_takes_lists_one_box_and_nothing() -> None:
    assert box.as_boxes([[1, 2, 4, 8]]).dtype == np.float64
    assert box.as_boxes(BOX).shape == (1, 4)
    assert box.as_boxes([]).shape == (0, 4)
    assert box.as_boxes(np.array([BOX], np.float32)).dtype == np.float32


@pytest.mark.parametrize("wrong", [[1, 2, 3], [[1, 2, 3]], np.zeros((2, 2, 4)), 5.0])
def test_as_boxes_refuses_other_shapes(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"boxes have shape \(N, 4\)"):
        box.as_boxes(wrong)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (box.sizes_wh, (0, 2)),
        (box.areas, (0,)),
        (box.centres, (0, 2)),
        (box.from_corner_size, (0, 4)),
        (box.to_corner_size, (0, 4)),
        (box.from_centre_size, (0, 4)),
        (box.to_centre_size, (0, 4)),
        (box.squares, (0, 4)),
        (box.valid, (0,)),
    ],
)
def test_no_boxes_give_no_results(function: Callable[[Any], NDArray[Any]], shape: tuple[int, ...]) -> None:
    assert function([]).shape == shape


def test_no_boxes_on_either_side_of_a_pair() -> None:
    for function in (box.intersections, box.iou, box.overlap_share, box.giou):
        assert function([], [BOX]).shape == (0, 1)
        assert function([BOX, BOX], []).shape == (2, 0)
    assert box.clip([], 5, 5).shape == box.grow([], 1).shape == (0, 4)
    assert box.non_maximum_suppression([], [], 0.5).tolist() == []


def test_functions_leave_their_arguments_alone() -> None:
    given_boxes, scores = np.array([BOX, [0, 0, 99, 99]], np.float32), np.array([0.5, 0.9])
    before = given_boxes.copy()
    box.clip(given_boxes, 10, 10)
    box.grow(given_boxes, 3)
    box.squares(given_boxes)
    box.from_corner_size(given_boxes)
    box.non_maximum_suppression(given_boxes, scores, 0.5)
    np.testing.assert_array_equal(given_boxes, before)
    assert scores.tolist() == [0.5, 0.9]


# -- one box --------------------------------------------------------------------------------------


def test_sizes_areas_and_centres_have_no_plus_one() -> None:
    assert box.sizes_wh(BOX).tolist() == [[3, 6]]
    assert box.areas([BOX, [0, 0, 1, 1], INSIDE_OUT, [1, 1, 1, 5]]).tolist() == [18, 1, 0, 0]
    assert box.centres(BOX).tolist() == [[2.5, 5]]


def test_orders_of_other_formats() -> None:
    assert box.to_corner_size(BOX).tolist() == [[1, 2, 3, 6]]
    assert box.to_centre_size(BOX).tolist() == [[2.5, 5, 3, 6]]
    assert box.from_corner_size([1, 2, 3, 6]).tolist() == [BOX]
    assert box.from_centre_size([2.5, 5, 3, 6]).tolist() == [BOX]


@given(box_arrays(grid_px=0.25))
def test_orders_of_other_formats_come_back(boxes: NDArray[np.float64]) -> None:
    np.testing.assert_array_equal(box.from_corner_size(box.to_corner_size(boxes)), boxes)
    np.testing.assert_array_equal(box.from_centre_size(box.to_centre_size(boxes)), boxes)


@given(box_arrays())
def test_orders_of_other_formats_come_back_within_rounding(boxes: NDArray[np.float64]) -> None:
    np.testing.assert_allclose(box.from_corner_size(box.to_corner_size(boxes)), boxes, atol=1e-12)
    np.testing.assert_allclose(box.from_centre_size(box.to_centre_size(boxes)), boxes, atol=1e-12)


@given(box_arrays(side_px=64), st.integers(1, 80), st.integers(1, 80))
def test_clipped_boxes_lie_in_the_image_and_stay_where_they_did(
    boxes: NDArray[np.float64], width: int, height: int
) -> None:
    moved = boxes - 16
    clipped = box.clip(moved, width, height)
    assert (clipped[:, [0, 1]] >= 0).all()
    assert (clipped <= [width, height, width, height]).all()
    image = [0.0, 0.0, width, height]
    expected = [reference.intersection(one, image) for one in moved]
    np.testing.assert_allclose(box.areas(clipped), expected, atol=1e-9)
    np.testing.assert_array_equal(box.clip(clipped, width, height), clipped)


def test_a_box_outside_the_image_clips_to_nothing() -> None:
    clipped = box.clip([[-5, -5, -1, -1], [11, 2, 15, 4]], 10, 10)
    assert box.areas(clipped).tolist() == [0, 0]
    assert not box.valid(clipped).any()


def test_grow_by_one_margin_or_one_each() -> None:
    assert box.grow([BOX, BOX], 1).tolist() == [[0, 1, 5, 9]] * 2
    assert box.grow([BOX, BOX], [0, -1]).tolist() == [BOX, [2, 3, 3, 7]]
    with pytest.raises(ValueError):
        box.grow([BOX, BOX], [1, 2, 3])


def test_squares_share_the_centre_and_the_longer_side() -> None:
    assert box.squares([BOX, [0, 0, 4, 2]]).tolist() == [[-0.5, 2, 5.5, 8], [0, -1, 4, 3]]
    assert box.squares(BOX, factor=2).tolist() == [[-3.5, -1, 8.5, 11]]


def test_valid_boxes_are_finite_have_an_area_and_touch_the_image() -> None:
    boxes = [BOX, INSIDE_OUT, [1, 1, 1, 5], [np.nan, 0, 1, 1], [0, 0, np.inf, 1], [np.inf] * 4, [-9, 0, -1, 5]]
    assert box.valid(boxes).tolist() == [True, False, False, False, False, False, True]
    assert box.valid(boxes, 10, 10).tolist() == [True] + [False] * 6
    edges = [[10, 0, 12, 4], [9, 0, 12, 4], [-3, -3, 0, 4], [-3, -3, 1, 4]]
    assert box.valid(edges, 10, 10).tolist() == [False, True, False, True]


# -- two sets of boxes ----------------------------------------------------------------------------


def test_iou_and_giou_of_a_hand_computed_pair() -> None:
    a, b = [0, 0, 2, 2], [1, 1, 3, 3]
    assert box.intersections(a, b).tolist() == [[1]]
    assert box.iou(a, b)[0, 0] == pytest.approx(1 / 7)
    assert box.overlap_share(a, b).tolist() == [[0.25]]
    assert box.giou(a, b)[0, 0] == pytest.approx(1 / 7 - 2 / 9)
    assert box.giou([0, 0, 1, 1], [3, 0, 4, 1])[0, 0] == pytest.approx(-0.5)


@pytest.mark.parametrize("empty", [INSIDE_OUT, [1, 1, 1, 5], [0, 0, 0, 0], [np.nan] * 4])
def test_a_box_without_area_overlaps_nothing(empty: list[float]) -> None:
    assert box.iou(empty, [BOX, empty]).tolist() == [[0, 0]]
    assert box.overlap_share(empty, BOX).tolist() == [[0]]
    assert box.giou([[1, 1, 1, 1]], [[1, 1, 1, 1]]).tolist() == [[0]]


@given(box_arrays(), box_arrays())
def test_overlaps_equal_their_slow_twins(a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
    np.testing.assert_allclose(box.intersections(a, b), pairwise(reference.intersection, a, b), rtol=1e-12)
    np.testing.assert_allclose(box.iou(a, b), pairwise(reference.iou, a, b), rtol=1e-12)
    np.testing.assert_allclose(box.giou(a, b), pairwise(reference.giou, a, b), atol=1e-12)


@given(box_arrays(), box_arrays())
def test_iou_and_giou_are_symmetric_and_in_range(a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
    iou, giou = box.iou(a, b), box.giou(a, b)
    np.testing.assert_array_equal(iou, box.iou(b, a).T)
    np.testing.assert_array_equal(giou, box.giou(b, a).T)
    assert ((iou >= 0) & (iou <= 1 + 1e-12)).all()
    assert ((giou > -1) & (giou <= iou + 1e-12)).all()


@given(box_arrays(grid_px=0.25, least=1), st.integers(-1000, 1000), st.integers(-1000, 1000), st.sampled_from([2, 4]))
def test_overlaps_do_not_depend_on_place_or_scale(boxes: NDArray[np.float64], dx: int, dy: int, scale: int) -> None:
    other = boxes[::-1]
    moved, also_moved = (table * scale + [dx, dy, dx, dy] for table in (boxes, other))
    np.testing.assert_array_equal(box.iou(moved, also_moved), box.iou(boxes, other))
    np.testing.assert_array_equal(box.giou(moved, also_moved), box.giou(boxes, other))


@given(box_arrays(least=1))
def test_a_box_overlaps_itself_wholly(boxes: NDArray[np.float64]) -> None:
    for table in (boxes, boxes.astype(np.float32)):
        assert np.diagonal(box.iou(table, table)).tolist() == [1] * len(boxes)
        assert np.diagonal(box.giou(table, table)).tolist() == [1] * len(boxes)
        assert np.diagonal(box.overlap_share(table, table)).tolist() == [1] * len(boxes)


@pytest.mark.torch
@given(box_arrays(), box_arrays())
def test_iou_and_giou_equal_torchvision(a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
    torch, ops = pytest.importorskip("torch"), pytest.importorskip("torchvision.ops")
    left, right = torch.from_numpy(a), torch.from_numpy(b)
    np.testing.assert_allclose(box.iou(a, b), ops.box_iou(left, right).numpy(), atol=1e-12)
    np.testing.assert_allclose(box.giou(a, b), ops.generalized_box_iou(left, right).numpy(), atol=1e-12)


# -- non-maximum suppression ----------------------------------------------------------------------

# 0.5 is met exactly by many pairs of the grid, the others by none: both sides of the limit are tried
# without asking two programs to round alike.
LIMITS = st.sampled_from([0.0, 0.2345678, 0.5, 0.7654321, 1.0])


@st.composite
def detections(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.intp]]:
    boxes = draw(box_arrays(most=12, side_px=8, grid_px=1)).astype(np.float32)
    groups = draw(st.lists(st.integers(0, 1), min_size=len(boxes), max_size=len(boxes)))
    return boxes, draw(score_arrays(len(boxes))), np.array(groups, np.intp)


@given(detections(), LIMITS)
def test_suppression_equals_its_slow_twin(
    given_detections: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.intp]], limit: float
) -> None:
    boxes, scores, groups = given_detections
    rows = boxes.astype(float).tolist()
    kept = box.non_maximum_suppression(boxes, scores, limit)
    assert kept.tolist() == reference.suppressed(rows, scores.tolist(), limit, [0] * len(rows))
    kept = box.non_maximum_suppression(boxes, scores, limit, groups)
    assert kept.tolist() == reference.suppressed(rows, scores.tolist(), limit, groups.tolist())


@pytest.mark.torch
@given(detections(), LIMITS)
def test_suppression_equals_torchvision(
    given_detections: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.intp]], limit: float
) -> None:
    torch, ops = pytest.importorskip("torch"), pytest.importorskip("torchvision.ops")
    boxes, scores, groups = given_detections
    table, order = torch.from_numpy(boxes), torch.from_numpy(scores)
    assert box.non_maximum_suppression(boxes, scores, limit).tolist() == ops.nms(table, order, limit).tolist()
    if len(boxes):
        expected = ops.batched_nms(table, order, torch.from_numpy(groups), limit).tolist()
        assert box.non_maximum_suppression(boxes, scores, limit, groups).tolist() == expected


def test_equal_scores_keep_the_order_of_the_rows() -> None:
    assert box.non_maximum_suppression([BOX, BOX, [9, 9, 10, 10]], [0.5, 0.5, 0.5], 0.5).tolist() == [0, 2]


def test_boxes_without_area_are_not_suppressed() -> None:
    assert box.non_maximum_suppression([[1, 1, 1, 1], [1, 1, 1, 1]], [0.5, 0.6], 0.5).tolist() == [1, 0]


def test_whole_number_scores_are_ordered_as_numbers() -> None:
    assert box.non_maximum_suppression([BOX, [9, 9, 10, 10]], np.array([0, 255], np.uint8), 0.5).tolist() == [1, 0]


@pytest.mark.parametrize(("scores", "groups"), [([0.5], None), ([0.5, 0.5], [1]), ([[0.5, 0.5]], None)])
def test_scores_and_groups_are_as_many_as_boxes(scores: Any, groups: Any) -> None:
    with pytest.raises(ValueError, match="2 boxes need as many scores"):
        box.non_maximum_suppression([BOX, BOX], scores, 0.5, groups)
