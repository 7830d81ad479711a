"""Detection's geometry and what is kept of an answer, against slow twins."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cytolens.prepare.stain import WHITE, change, measure, normalise
from cytolens.problems import SettingError
from cytolens.settings import checked
from cytolens.tasks.detect import BORDER, MULTIPLE, DetectInput, DetectOutput, Findings, findings, picture
from cytolens.views import View, fitted
from tests import reference
from tests.strategies import box_arrays, score_arrays

sizes = st.tuples(st.integers(1, 900), st.integers(1, 900))
sides = st.sampled_from([64, 96, 416])


def smear(width: int, height: int) -> NDArray[np.uint8]:
    """A pale field with a dark upper left quarter."""
    pixels = np.full((height, width, 3), (222, 212, 202), np.uint8)
    pixels[: max(1, height // 4), : max(1, width // 4)] = (90, 60, 120)
    return pixels


# -- the picture ----------------------------------------------------------------------------------


@given(size_wh=sizes, side=sides)
def test_the_picture_is_the_smallest_canvas_of_whole_strides(size_wh: tuple[int, int], side: int) -> None:
    pixels, view = picture(smear(*size_wh), DetectInput(side_px=side))
    height, width = pixels.shape[:2]
    assert pixels.dtype == np.uint8
    assert view.source_wh == size_wh
    assert view.wh == (width, height)
    assert width % MULTIPLE == height % MULTIPLE == 0
    assert max(width, height) == side
    # The scaled field fits, and one stride less would be too little.
    shown = view.forward_boxes([0, 0, *map(float, size_wh)])[0]
    assert shown[:2].tolist() == [0, 0]
    for scaled, whole in ((shown[2], width), (shown[3], height)):
        assert whole - MULTIPLE < math.ceil(scaled - 1e-6) <= whole
    assert max(shown[2:]) == pytest.approx(side)
    assert min(shown[2:]) == pytest.approx(min(size_wh) * side / max(size_wh), abs=1)


@given(size_wh=sizes, side=sides, boxes=box_arrays(most=8, side_px=900))
def test_boxes_go_there_and_back(size_wh: tuple[int, int], side: int, boxes: NDArray[np.float64]) -> None:
    view, _ = fitted(size_wh, side, MULTIPLE)
    back = view.back_boxes(view.forward_boxes(boxes))
    assert back == pytest.approx(boxes, abs=1e-6)
    single = boxes.astype(np.float32)
    assert view.back_boxes(view.forward_boxes(single)) == pytest.approx(single, abs=1e-3)


def test_the_field_lies_at_the_upper_left_normalised_and_the_rest_is_grey() -> None:
    field = smear(400, 250)
    pixels, view = picture(field, DetectInput(side_px=160))
    assert pixels.shape == (128, 160, 3)  # 160 × 100, in whole strides
    assert (pixels[100:] == BORDER).all()
    inside = pixels[:100]
    assert np.median(inside.reshape(-1, 3), axis=0).tolist() == [WHITE] * 3
    dark = view.forward_boxes([0.0, 0, 100, 62])[0]
    assert inside[5 : int(dark[3]) - 2, 5 : int(dark[2]) - 2].max() < 160
    assert inside[int(dark[3]) + 2 :, :].min() > 200


def test_the_stain_of_the_whole_field_can_be_given_for_a_part_of_it() -> None:
    field = smear(200, 200)
    whole = measure(field)
    corner = field[:50, :50]  # no background in it
    given, _ = picture(corner, DetectInput(side_px=64), whole)
    own, _ = picture(corner, DetectInput(side_px=64))
    expected = normalise(corner, change(whole, DetectInput().stain))[0, 0]
    assert given[10, 10].tolist() == expected.tolist()
    assert (own[10, 10] != given[10, 10]).any()


def test_a_shrunk_field_is_averaged_and_not_sampled() -> None:
    chequered = np.full((512, 512, 3), 200, np.uint8)
    chequered[::2, ::2] = 100
    pixels, _ = picture(chequered, DetectInput(side_px=64))
    assert pixels.std() < 3  # every eighth pixel alone would be all dark or all bright by chance
    assert not (pixels == pixels.max()).all() or pixels.max() < 235


def test_the_side_is_a_whole_number_of_strides() -> None:
    with pytest.raises(SettingError, match=r"side_px = 400: .*multiple of 32"):
        checked(DetectInput, {"side_px": 400}, "input")
    with pytest.raises(SettingError, match="side_px = 32"):
        checked(DetectInput, {"side_px": 32}, "input")


# -- the answer -----------------------------------------------------------------------------------


@st.composite
def answers(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float32], View, DetectOutput]:
    """A network's answer with repeated boxes, ties, boxes outside the field, and settings."""
    view, _ = fitted((draw(st.integers(20, 90)), draw(st.integers(20, 90))), 64, MULTIPLE)
    boxes = draw(box_arrays(most=10, side_px=96, grid_px=8)) - 16
    classes = draw(st.integers(1, 3))
    scores = np.stack([draw(score_arrays(len(boxes))) for _ in range(classes)], axis=1)
    output = DetectOutput(
        score_floor=draw(st.sampled_from([0.0, 0.3, 0.5])),
        nms_iou=draw(st.sampled_from([0.3, 0.5, 0.65, 1.0])),
        most=draw(st.integers(1, 12)),
    )
    return boxes.astype(np.float32), scores.astype(np.float32), view, output


def slow(boxes: NDArray, scores: NDArray, view: View, settings: DetectOutput) -> list[tuple[list[float], int, float]]:
    """The same, location by location."""
    width, height = view.source_wh
    inverse = view.inverse_matrix.tolist()
    candidates = []
    for corners, row in zip(boxes.tolist(), scores.tolist(), strict=True):
        best = row.index(max(row))
        if row[best] < settings.score_floor:
            continue
        x0, y0, x1, y1 = reference.mapped_box(corners, inverse)
        inside = [min(max(x0, 0), width), min(max(y0, 0), height), min(max(x1, 0), width), min(max(y1, 0), height)]
        # A sliver at the field's edge is there or not by the last digit of a float.
        assume(not 0 < min(inside[2] - inside[0], inside[3] - inside[1]) < 1e-3)
        if inside[2] > inside[0] and inside[3] > inside[1]:
            candidates.append((inside, best, row[best]))
    order = reference.suppressed(
        [c[0] for c in candidates], [c[2] for c in candidates], settings.nms_iou, [c[1] for c in candidates]
    )
    return [candidates[i] for i in order[: settings.most]]


@given(answers())
def test_findings_are_those_of_the_slow_twin(answer) -> None:
    boxes, scores, view, settings = answer
    got = findings(boxes, scores, view, settings)
    expected = slow(boxes, scores, view, settings)
    assert got.classes.tolist() == [label for _, label, _ in expected]
    assert got.scores.tolist() == [score for _, _, score in expected]
    assert got.boxes == pytest.approx(np.array([corners for corners, _, _ in expected]).reshape(-1, 4), abs=1e-4)


@given(answers())
def test_findings_lie_in_the_field_best_first(answer) -> None:
    boxes, scores, view, settings = answer
    got = findings(boxes, scores, view, settings)
    width, height = view.source_wh
    x_min, y_min, x_max, y_max = got.boxes.T
    assert ((x_min >= 0) & (x_min < x_max) & (x_max <= width)).all()
    assert ((y_min >= 0) & (y_min < y_max) & (y_max <= height)).all()
    assert len(got.boxes) == len(got.classes) == len(got.scores) <= settings.most
    assert (np.diff(got.scores) <= 0).all()
    assert (got.scores >= settings.score_floor).all()
    assert (got.boxes.dtype, got.scores.dtype) == (np.float32, np.float32)


def test_two_labels_at_one_place_are_two_findings_and_one_label_is_one() -> None:
    view = View.whole((64, 64))
    boxes = np.array([[10, 10, 30, 30], [11, 10, 30, 30], [10, 10, 30, 31]], np.float32)
    scores = np.array([[0.9, 0.1], [0.7, 0.2], [0.1, 0.8]], np.float32)
    got = findings(boxes, scores, view, DetectOutput())
    assert [(c, round(float(s), 2)) for c, s in zip(got.classes, got.scores, strict=True)] == [(0, 0.9), (1, 0.8)]


def test_what_is_no_number_is_no_finding() -> None:
    boxes = np.array([[np.nan, 1, 5, 5], [1, 1, np.inf, 5], [1, 1, 5, 5]], np.float32)
    got = findings(boxes, np.full((3, 1), 0.9, np.float32), View.whole((9, 9)), DetectOutput(nms_iou=1.0))
    assert np.isfinite(got.boxes).all()
    assert [1, 1, 5, 5] in got.boxes.tolist()


def test_an_empty_answer_is_no_finding() -> None:
    got = findings(np.zeros((0, 4), np.float32), np.zeros((0, 3), np.float32), View.whole((9, 9)), DetectOutput())
    assert isinstance(got, Findings)
    assert (got.boxes.shape, got.classes.shape, got.scores.shape) == ((0, 4), (0,), (0,))


def test_the_threshold_of_a_label_that_is_not_named_is_a_half() -> None:
    output = DetectOutput(thresholds={"platelet": 0.2})
    assert (output.threshold("platelet"), output.threshold("leukocyte")) == (0.2, 0.5)
