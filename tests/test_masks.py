from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pycocotools import mask as oracle

from cytolens import masks
from tests import reference
from tests.strategies import mask_arrays, mask_codes

SIZE_HW = (9, 7)
Mask = NDArray[np.bool_]


# pycocotools answers with a warning of NumPy's about itself.
its_own_warning = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def coco(code: Any, size_hw: tuple[int, int]) -> Any:
    return {"size": list(size_hw), "counts": code}


def disc(size: int, radius: float) -> Mask:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return x**2 + y**2 <= radius**2


# -- encoding -------------------------------------------------------------------------------------


@given(mask_arrays())
def test_a_mask_comes_back_from_its_code(mask: Mask) -> None:
    decoded = masks.decode(masks.encode(mask), mask.shape)
    assert decoded.dtype == np.bool_
    np.testing.assert_array_equal(decoded, mask)


@given(mask_arrays())
def test_the_code_is_that_of_pycocotools_and_of_the_slow_twin(mask: Mask) -> None:
    code = masks.encode(mask)
    assert code == oracle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    assert code == reference.compressed(reference.run_lengths(mask.tolist()))


def test_a_large_mask_has_long_runs() -> None:
    mask = np.zeros((3000, 2000), bool)
    mask[1000:2500, 500:1900] = disc(3000, 1200)[1000:2500, 500:1900]
    code = masks.encode(mask)
    assert code == oracle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    np.testing.assert_array_equal(masks.decode(code, mask.shape), mask)


def test_whatever_is_not_zero_is_inside() -> None:
    # Instance numbers beside each other: the codec by itself would start a new run at each.
    labelled = np.array([[0, 1, 2], [3, 0, 255]])
    np.testing.assert_array_equal(masks.decode(masks.encode(labelled), (2, 3)), labelled > 0)
    np.testing.assert_array_equal(masks.decode(masks.encode([[0.0, 0.3]]), (1, 2)), [[False, True]])


def test_a_mask_has_two_axes() -> None:
    for wrong in (np.zeros(5, bool), np.zeros((2, 2, 3), bool)):
        with pytest.raises(ValueError, match="shape"):
            masks.encode(wrong)


def test_a_mask_without_pixels() -> None:
    code = masks.encode(np.zeros((0, 5), bool))
    assert masks.decode(code, (0, 5)).shape == (0, 5)
    assert masks.area(code) == 0


# -- damaged codes --------------------------------------------------------------------------------


@its_own_warning
@given(mask_codes(SIZE_HW), st.data())
def test_a_damaged_code_is_a_value_error_or_another_mask(code: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(code) - 1))
    damaged = code[:at] + data.draw(st.binary(max_size=3)) + code[at + data.draw(st.integers(0, 2)) :]
    try:
        mask = masks.decode(damaged, SIZE_HW)
    except ValueError:
        return
    np.testing.assert_array_equal(mask, oracle.decode(coco(damaged, SIZE_HW)).astype(bool))
    assert masks.area(damaged) == mask.sum()


@given(st.binary(max_size=40))
def test_any_bytes_are_a_value_error_or_a_mask(code: bytes) -> None:
    try:
        mask = masks.decode(code, SIZE_HW)
    except ValueError:
        return
    assert mask.shape == SIZE_HW


@pytest.mark.parametrize(
    ("code", "what"),
    [
        (b"", "does not describe 9 × 7 pixels"),
        (masks.encode(np.ones((3, 3), bool)), "does not describe 9 × 7 pixels"),
        (b"o", "cut short"),
        (b"\xff", "byte 255"),
        (b"!!", "byte 33"),
        (b"O", "run of -1 pixels"),
        (b"o" * 500 + b"0", "longer than any image"),
        (b"oooooo0", "does not describe 9 × 7 pixels"),
        (b"oooooo5", "run of 6442450943 pixels"),
    ],
)
def test_what_is_wrong_with_a_code_is_said(code: bytes, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        masks.decode(code, SIZE_HW)


def test_a_long_damaged_code_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="longer than any image"):
        masks.area(b"o" * 5_000_000)


# -- measuring ------------------------------------------------------------------------------------


@given(mask_arrays())
def test_area_and_bounds_are_those_of_the_pixels_and_of_pycocotools(mask: Mask) -> None:
    code = masks.encode(mask)
    assert masks.area(code) == mask.sum() == oracle.area(coco(code, mask.shape))
    x_min, y_min, x_max, y_max = masks.bounds(code, mask.shape)
    assert [x_min, y_min, x_max - x_min, y_max - y_min] == oracle.toBbox(coco(code, mask.shape)).tolist()
    if mask.any():
        assert masks.bounds(code, mask.shape).dtype == np.float32
        assert mask[int(y_min) : int(y_max), int(x_min) : int(x_max)].sum() == mask.sum()


def test_bounds_are_pixel_edges() -> None:
    mask = np.zeros((5, 8), bool)
    mask[1, 2] = mask[3, 6] = True
    assert masks.bounds(masks.encode(mask), (5, 8)).tolist() == [2, 1, 7, 4]
    assert masks.bounds(masks.encode(np.zeros((5, 8))), (5, 8)).tolist() == [0, 0, 0, 0]


@given(st.lists(mask_arrays(SIZE_HW), max_size=4), st.lists(mask_arrays(SIZE_HW), max_size=4))
def test_iou_is_that_of_the_pixels_and_of_pycocotools(left: list[Mask], right: list[Mask]) -> None:
    a, b = [masks.encode(mask) for mask in left], [masks.encode(mask) for mask in right]
    table = masks.iou(a, b, SIZE_HW)
    assert table.shape == (len(a), len(b))
    for row, one in enumerate(left):
        for column, other in enumerate(right):
            union = (one | other).sum()
            assert table[row, column] == pytest.approx((one & other).sum() / union if union else 0.0)
    if a and b:
        expected = oracle.iou([coco(c, SIZE_HW) for c in a], [coco(c, SIZE_HW) for c in b], [0] * len(b))
        np.testing.assert_allclose(table, expected)


@given(mask_arrays(), mask_arrays())
def test_masks_of_another_size_are_refused_and_not_compared(one: Mask, other: Mask) -> None:
    """The codec itself would never come back."""
    a, b = masks.encode(one), masks.encode(other)
    if one.size == other.size:
        return
    height, width = one.shape
    for left, right in (([a], [b]), ([b], [a]), ([a, b], [a]), ([b], [])):
        with pytest.raises(ValueError, match=f"does not describe {height} × {width} pixels"):
            masks.iou(left, right, one.shape)


def test_damaged_codes_are_refused_and_not_compared() -> None:
    good = masks.encode(np.eye(4, dtype=bool))
    for damaged in (good[:-1] + b"\x7f", good + b"P", b""):
        with pytest.raises(ValueError, match="run-length code"):
            masks.iou([good], [damaged], (4, 4))


# -- other spellings of a mask --------------------------------------------------------------------

coordinates = st.lists(st.tuples(st.floats(-3, 12), st.floats(-3, 12)), min_size=3, max_size=6)


@given(st.lists(coordinates, min_size=1, max_size=3))
def test_polygons_are_filled_as_pycocotools_does(polygons: list[list[tuple[float, float]]]) -> None:
    flat = [np.array(points).ravel().tolist() for points in polygons]
    expected = oracle.merge(oracle.frPyObjects(flat, *SIZE_HW))["counts"]
    assert masks.from_polygons(flat, SIZE_HW) == expected
    assert masks.from_polygons([np.array(points) for points in polygons], SIZE_HW) == expected


def test_a_rectangle_as_polygon_covers_its_pixels() -> None:
    code = masks.from_polygons([[2, 1, 5, 1, 5, 4, 2, 4]], SIZE_HW)
    expected = np.zeros(SIZE_HW, bool)
    expected[1:4, 2:5] = True
    np.testing.assert_array_equal(masks.decode(code, SIZE_HW), expected)


@pytest.mark.parametrize(
    "wrong", [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7], [], [0, 0, np.nan, 3, 3, 3], [0, 0, np.inf, 3, 3, 3]]
)
def test_a_polygon_has_three_points_or_more(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match="at least three points"):
        masks.from_polygons([[0, 0, 3, 0, 3, 3], wrong], SIZE_HW)


def test_no_polygon_is_an_empty_mask() -> None:
    assert masks.area(masks.from_polygons([], SIZE_HW)) == 0


@given(mask_arrays(SIZE_HW))
def test_uncompressed_runs_become_the_same_code(mask: Mask) -> None:
    runs = reference.run_lengths(mask.tolist())
    assert masks.from_runs(runs, SIZE_HW) == masks.encode(mask)
    assert masks.from_runs(runs, SIZE_HW) == oracle.frPyObjects(coco(runs, SIZE_HW), *SIZE_HW)["counts"]


@given(hnp.arrays(np.int64, st.integers(0, 5), elements=st.integers(-80, 80)))
def test_runs_that_do_not_fit_are_refused(runs: NDArray[np.int64]) -> None:
    fits = (runs >= 0).all() and runs.sum() == SIZE_HW[0] * SIZE_HW[1]
    if fits:
        assert masks.area(masks.from_runs(runs, SIZE_HW)) == runs[1::2].sum()
    else:
        with pytest.raises(ValueError, match="do not describe 9 × 7 pixels"):
            masks.from_runs(runs, SIZE_HW)
