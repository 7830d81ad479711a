"""The size of cells in red cells: the same at any magnification, in training and in prediction."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytolens.cells import Cells
from cytolens.labels import LabelSet
from cytolens.tasks.cell_scale import (
    RED_CELL_UM,
    annotated_ruler_px,
    box_scale_features,
    red_index,
    ruler_px,
    scale_features,
)
from cytolens.tasks.detect import Findings

LABELS = LabelSet.of(["leukocyte", "erythrocyte", "platelet"])
sides = st.lists(st.floats(4, 200), min_size=5, max_size=12)


def squares(lengths: list[float]) -> np.ndarray:
    """Boxes of these sides, side by side."""
    left = np.cumsum([0.0, *lengths])[: len(lengths)]
    return np.stack([left, np.zeros(len(lengths)), left + lengths, lengths], axis=1).reshape(-1, 4)


def annotated(red: list[float], white: list[float], **columns: Any) -> Cells:
    return Cells.of(
        LABELS,
        image_id=["a.png"] * (len(red) + len(white)),
        boxes=np.concatenate([squares(red), squares(white)]),
        label=["erythrocyte"] * len(red) + ["leukocyte"] * len(white),
        source="human:ab",
        **columns,
    )


def found(red: list[float], white: list[float], score: float = 0.9) -> Findings:
    boxes = np.concatenate([squares(red), squares(white)]).astype(np.float32)
    classes = np.array([1] * len(red) + [0] * len(white), np.intp)
    return Findings(boxes, classes, np.full(len(boxes), score, np.float32))


@given(red=sides, white=sides)
def test_the_slow_and_obvious_way(red: list[float], white: list[float]) -> None:
    cells = annotated(red, white)
    ruler = annotated_ruler_px(cells)
    assert ruler == pytest.approx(statistics.median(red), rel=1e-3)
    told = box_scale_features(cells.boxes()[len(red) :], ruler)
    for row, side in zip(told, white, strict=True):
        assert row[0] == pytest.approx(math.log2(side / statistics.median(red)), abs=2e-3)
        assert row[1] == 1


@given(red=sides, white=sides)
def test_truth_and_findings_of_the_same_boxes_are_measured_alike(red: list[float], white: list[float]) -> None:
    assert annotated_ruler_px(annotated(red, white)) == ruler_px(found(red, white), 1)


@given(red=sides, white=sides, zoom=st.floats(0.25, 4))
def test_a_magnified_field_says_the_same(red: list[float], white: list[float], zoom: float) -> None:
    plain, larger = found(red, white), found([zoom * s for s in red], [zoom * s for s in white])
    told = [box_scale_features(one.boxes[len(red) :], ruler_px(one, 1)) for one in (plain, larger)]
    np.testing.assert_allclose(told[0], told[1], atol=2e-3)
    um = [box_scale_features(one.boxes, ruler_px(one, 1, size)) for one, size in ((plain, 0.1), (larger, 0.1 / zoom))]
    np.testing.assert_allclose(um[0], um[1], atol=2e-3)


def test_a_field_magnified_twice_is_the_same_to_the_bit() -> None:
    red, white = [12.0, 13, 14, 15, 16], [20.0, 31]
    plain, larger = found(red, white), found([2 * s for s in red], [2 * s for s in white])
    told = [box_scale_features(one.boxes, ruler_px(one, 1)) for one in (plain, larger)]
    assert np.array_equal(told[0], told[1])
    assert told[0][5:].tolist() == [[np.float32(math.log2(20 / 14)), 1], [np.float32(math.log2(31 / 14)), 1]]


def test_a_known_resolution_is_the_ruler_whatever_is_seen() -> None:
    for one in (found([], [30.0]), found([60.0] * 8, [30.0])):
        assert ruler_px(one, 1, 0.25) == RED_CELL_UM / 0.25 == 30
    assert ruler_px(found([], [30.0]), None, 0.25) == 30  # a detector of white cells alone
    assert box_scale_features(squares([60.0]), 30.0).tolist() == [[1, 1]]  # 15 µm are two red cells


@pytest.mark.parametrize("um_per_px", [None, 0.0, -1.0, float("nan"), float("inf")])
def test_a_field_that_tells_no_scale(um_per_px: float | None) -> None:
    for one, red in ((found([12.0] * 4, [20.0]), 1), (found([12.0] * 9, [20.0], 0.3), 1), (found([9.0] * 9, []), None)):
        assert ruler_px(one, red, um_per_px) is None
    assert box_scale_features(squares([20.0, 40]), None).tolist() == [[0, 0], [0, 0]]
    assert box_scale_features(np.zeros((0, 4)), None).shape == (0, 2)


def test_cells_that_are_no_measure() -> None:
    ignored = annotated([12.0] * 5, [30.0], ignore=[True] + [False] * 5)
    assert annotated_ruler_px(ignored) is None  # four are left
    assert annotated_ruler_px(ignored, 0.5) == 15
    assert annotated_ruler_px(Cells.empty(LABELS)) is None
    flat = annotated([12.0] * 5, []).with_boxes(np.array([[0, 0, 12, 12]] * 4 + [[3, 3, 3, 9]], np.float32))
    assert annotated_ruler_px(flat) is None  # one has no area


def test_every_cell_may_come_from_a_field_of_its_own() -> None:
    told = scale_features(np.array([20.0, 20, 20, 0]), np.array([10.0, 0, np.nan, 10]))
    assert told.tolist() == [[1, 1], [0, 0], [0, 0], [-6, 1]]
    assert told.dtype == np.float32


def test_which_label_is_the_red_cells() -> None:
    assert red_index(LABELS) == 1
    assert red_index(LabelSet.of(["WBC", "Platelets", "RBC"])) == 2
    assert red_index(LabelSet.of(["Myeloblast", "None"])) is None
