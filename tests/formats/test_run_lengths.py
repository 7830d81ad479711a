"""Run-length codes against the worked example of the Sartorius competition and a slow twin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cytolens import masks
from cytolens.formats import run_lengths
from cytolens.formats.options import Order
from tests import reference
from tests.strategies import mask_arrays

Mask = NDArray[np.bool_]
orders = st.sampled_from(["row", "column"])

# 4 × 5 px, row 2 columns 2 … 4 and row 3 column 3 set, counted from 1.
EXAMPLE = np.array([[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], bool)


def size_wh(mask: Mask) -> tuple[int, int]:
    return mask.shape[1], mask.shape[0]


def decoded(text: str, size: tuple[int, int], order: Order) -> Mask:
    code = run_lengths.code_of_positions(run_lengths.positions_of_text(text, size, order), size)
    return masks.decode(code, (size[1], size[0]))


@pytest.mark.parametrize(("order", "text"), [("row", "7 3 13 1"), ("column", "6 1 10 2 14 1")])
def test_the_worked_example(order: Order, text: str) -> None:
    np.testing.assert_array_equal(decoded(text, (5, 4), order), EXAMPLE)
    assert run_lengths.text_of_code(masks.encode(EXAMPLE), (5, 4), order) == text


@given(mask=mask_arrays(), order=orders)
def test_codes_are_those_of_the_slow_twin(mask: Mask, order: Order) -> None:
    text = run_lengths.text_of_code(masks.encode(mask), size_wh(mask), order)
    assert text == " ".join(map(str, reference.start_lengths(mask.tolist(), order == "row")))
    np.testing.assert_array_equal(decoded(text, size_wh(mask), order), mask)


@given(mask=mask_arrays())
def test_positions_have_the_code_and_the_bounds_of_their_mask(mask: Mask) -> None:
    code, size_hw = masks.encode(mask), (mask.shape[0], mask.shape[1])
    positions = run_lengths.positions_of_code(code, size_wh(mask))
    np.testing.assert_array_equal(positions, np.flatnonzero(mask.T))
    assert run_lengths.code_of_positions(positions, size_wh(mask)) == code
    bounds = run_lengths.bounds_of_positions(positions, mask.shape[0])
    np.testing.assert_array_equal(bounds, masks.bounds(code, size_hw))


@given(part=mask_arrays((3, 4)), x=st.integers(0, 5), y=st.integers(0, 6))
def test_a_part_lies_where_it_is_put(part: Mask, x: int, y: int) -> None:
    whole = np.zeros((9, 9), bool)
    whole[y : y + 3, x : x + 4] = part
    np.testing.assert_array_equal(run_lengths.positions_of_part(part, x, y, (9, 9)), np.flatnonzero(whole.T))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1 2 3", "3 numbers, but starts and lengths come in pairs"),
        ("1 two", '"two" is not a whole number'),
        ("1 2.0", '"2.0" is not a whole number'),
        ("-1 2", '"-1" is not a whole number'),
        ("1 ²", "is not a whole number"),
        ("0 2", "the run 0 2 leaves the image of 5 × 4 = 20 px"),
        ("19 3", "the run 19 3 leaves the image"),
        ("21 1", "the run 21 1 leaves the image"),
        ("3 0", "the run at 3 has the length 0"),
        ("3 2 4 1", "the run at 4 overlaps the one before it"),
        ("9 1 3 1", "or runs are not sorted"),
        ("9999999999999999999999 1", "larger than any image"),
        ("1 999999999999999999", "leaves the image"),
    ],
)
@pytest.mark.parametrize("order", ["row", "column"])
def test_what_is_wrong_with_a_code_is_said(text: str, why: str, order: Order) -> None:
    with pytest.raises(ValueError, match=r".*".join(why.split("…"))):
        run_lengths.positions_of_text(text, (5, 4), order)


@given(text=st.text("0123456789 -.x", max_size=20), order=orders)
def test_any_text_is_a_value_error_or_a_mask(text: str, order: Order) -> None:
    try:
        mask = decoded(text, (5, 4), order)
    except ValueError:
        return
    assert reference.painted([int(word) for word in text.split()], 5, 4, order == "row") == mask.tolist()


def test_touching_runs_are_one() -> None:
    np.testing.assert_array_equal(decoded("1 2 3 2", (5, 4), "row"), decoded("1 4", (5, 4), "row"))


def test_a_code_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="does not describe an image of 4 × 4 px"):
        run_lengths.text_of_code(masks.encode(EXAMPLE), (4, 4), "row")
    with pytest.raises(ValueError, match="too large for a mask"):
        run_lengths.positions_of_text("1 1", (100_000, 100_000), "row")
