"""Soft masks laid into the image, and cells without overlaps made of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cytolens import masks
from cytolens.labels import LabelSet
from cytolens.tasks.mask_cleaning import (
    cleaned,
    cleaned_masks,
    largest_part,
    pasted,
    redrawn_filled,
    similar_pairs,
    values_in_image,
)
from cytolens.tasks.segment import MaskCleaning, Outlines, SegmentOutput, SoftOutlines
from tests import strategies as own

LABELS = LabelSet.of(["shsy5y", "astro", "cort"])
HW = (9, 11)


def reading(**steps: object) -> SegmentOutput:
    return SegmentOutput(cleaning=MaskCleaning.model_validate({"score_min": 0.0} | steps))


def rectangle(x: int, y: int, width: int, height: int, size_hw: tuple[int, int] = (60, 80)) -> NDArray[np.bool_]:
    mask = np.zeros(size_hw, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def clean(
    shapes: list[NDArray[np.bool_]],
    output: SegmentOutput,
    scores: list[float] | None = None,
    classes: list[int] | None = None,
) -> Outlines:
    """The cells of drawn masks, by falling score unless scores are given."""
    given_scores = scores or [1 - 0.01 * row for row in range(len(shapes))]
    size_hw = (shapes[0].shape[0], shapes[0].shape[1]) if shapes else HW
    codes = [masks.encode(shape) for shape in shapes]
    return cleaned_masks(codes, classes or [0] * len(shapes), given_scores, size_hw, LABELS, output)


def areas(outlines: Outlines) -> list[int]:
    return [masks.area(code) for code in outlines.masks]


# -- pasting --------------------------------------------------------------------------------------


@st.composite
def boxes_in_and_out(draw: st.DrawFn) -> list[float]:
    """A box with an area that may reach out of a 40 × 50 px image."""
    x, y = draw(st.floats(-10, 45, width=32)), draw(st.floats(-10, 35, width=32))
    return [x, y, x + draw(st.floats(0.5, 40, width=32)), y + draw(st.floats(0.5, 40, width=32))]


@pytest.mark.torch
@given(boxes_in_and_out(), st.integers(0, 99), st.sampled_from([3, 14, 28]))
@settings(max_examples=30)
def test_whole_pixels_are_torchvisions(corners: list[float], seed: int, side: int):
    torch = pytest.importorskip("torch")
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    size_hw = (40, 50)
    patch = np.random.default_rng(seed).random((side, side), np.float32)
    placed = torch.tensor([corners], dtype=torch.float32)
    enlarged = np.float32((side + 2) / side) * (placed[0, 2:] - placed[0, :2]) / 2
    middle = (placed[0, 2:] + placed[0, :2]) / 2
    ends = torch.stack((middle - enlarged, middle + enlarged)).to(torch.int64)
    limit = torch.tensor([size_hw[1], size_hw[0]])
    if (ends[1] < 0).any() or (ends[0] > limit).any():
        return  # torchvision fails for boxes outside the image
    expected = paste_masks_in_image(torch.from_numpy(patch)[None, None], placed, size_hw)[0, 0].numpy()
    values, x, y = values_in_image(patch, corners, size_hw, "whole-pixels")
    whole = np.zeros(size_hw, np.float32)
    whole[y : y + values.shape[0], x : x + values.shape[1]] = values
    np.testing.assert_allclose(whole, expected, atol=1 / 255)


@given(boxes_in_and_out(), st.integers(0, 99))
@settings(max_examples=30)
def test_exact_pasting_as_its_slow_twin(corners: list[float], seed: int):
    """Each pixel's centre, expressed in bins of the box, is interpolated between the four bins about it."""
    side, size_hw = 5, (40, 50)
    patch = np.random.default_rng(seed).random((side, side)).astype(np.float32)
    values, x0, y0 = values_in_image(patch, corners, size_hw)
    whole = np.zeros(size_hw)
    whole[y0 : y0 + values.shape[0], x0 : x0 + values.shape[1]] = values
    x_min, y_min, x_max, y_max = np.array(corners, np.float32).astype(float)

    def bin_value(row: int, column: int) -> float:
        return float(patch[row, column]) if 0 <= row < side and 0 <= column < side else 0.0

    for y, x in np.ndindex(size_hw):
        v = (y + 0.5 - y_min) / (y_max - y_min) * side - 0.5
        u = (x + 0.5 - x_min) / (x_max - x_min) * side - 0.5
        row, column = int(np.floor(v)), int(np.floor(u))
        wanted = sum(
            bin_value(row + i, column + j) * (v - row if i else row + 1 - v) * (u - column if j else column + 1 - u)
            for i in (0, 1)
            for j in (0, 1)
        )
        assert abs(whole[y, x] - wanted) < 2e-3


def test_a_full_patch_is_its_box_and_whole_pixels_make_it_larger():
    soft = SoftOutlines(
        size_hw=(30, 30),
        boxes=np.array([[4, 6, 14, 12]], np.float32),
        classes=np.zeros(1, np.intp),
        scores=np.ones(1, np.float32),
        class_scores=np.ones((1, 3), np.float32),
        patches=np.full((1, 28, 28), 255, np.uint8),
    )
    (code,) = pasted(soft, 0.5)
    assert masks.bounds(code, (30, 30)).tolist() == [4, 6, 14, 12]
    assert masks.area(code) == 60
    (code,) = pasted(soft, 0.5, "whole-pixels")
    assert masks.area(code) > 60


def test_the_threshold_has_to_be_passed_and_may_differ_by_cell():
    soft = SoftOutlines(
        size_hw=(20, 20),
        boxes=np.array([[2, 2, 12, 12]] * 3, np.float32),
        classes=np.zeros(3, np.intp),
        scores=np.ones(3, np.float32),
        class_scores=np.ones((3, 3), np.float32),
        patches=np.full((3, 28, 28), 51, np.uint8),  # a fifth
    )
    assert [masks.area(code) for code in pasted(soft, np.array([0.2, 0.19, 0.9]))] == [0, 100, 0]


def test_boxes_without_area_or_outside_give_empty_masks():
    corners = np.array([[5, 5, 5, 9], [-9, -9, -2, -2], [40, 40, 50, 50]], np.float32)
    soft = SoftOutlines(
        size_hw=(20, 20),
        boxes=corners,
        classes=np.zeros(3, np.intp),
        scores=np.ones(3, np.float32),
        class_scores=np.ones((3, 3), np.float32),
        patches=np.full((3, 28, 28), 255, np.uint8),
    )
    assert [masks.area(code) for code in pasted(soft, 0.5)] == [0, 0, 0]
    assert cleaned(soft, LABELS, reading()).masks == []


# -- the steps ------------------------------------------------------------------------------------


def test_all_masks_below_the_limit_go():
    """The example of the specification: of 300, 60, 40 and 20 px, 300 and 60 stay at a limit of 50."""
    shapes = [rectangle(0, 0, 30, 10), rectangle(40, 0, 12, 5), rectangle(0, 20, 8, 5), rectangle(40, 20, 5, 4)]
    assert [int(shape.sum()) for shape in shapes] == [300, 60, 40, 20]
    assert areas(clean(shapes, reading(area_min_px=50))) == [300, 60]


def test_of_two_that_overlap_too_much_the_lower_goes():
    first, second = rectangle(0, 0, 10, 10), rectangle(0, 5, 10, 10)  # IoU 1/3
    assert areas(clean([first, second], reading(mask_nms_iou=0.33))) == [100]
    assert areas(clean([first, second], reading(mask_nms_iou=1 / 3))) == [100, 50], "equal to the limit is not above it"


def test_the_removed_remove_nothing():
    chain = [rectangle(0, 0, 10, 10), rectangle(4, 0, 10, 10), rectangle(8, 0, 10, 10)]
    assert areas(clean(chain, reading(mask_nms_iou=0.3))) == [100, 80]


def test_a_cell_that_is_cut_apart_keeps_its_largest_part():
    high, low = rectangle(20, 0, 10, 30), rectangle(0, 10, 70, 5)
    (_, left) = (result := clean([high, low], reading(mask_nms_iou=0.9))).masks
    assert masks.area(left) == 40 * 5
    assert result.boxes[1].tolist() == [30, 10, 70, 15]
    both = clean([high, low], reading(mask_nms_iou=0.9, parts="all"))
    assert areas(both) == [300, 60 * 5]
    assert both.boxes[1].tolist() == [0, 10, 70, 15]


def test_what_is_small_after_the_overlaps_goes_too():
    high, low = rectangle(0, 0, 20, 20), rectangle(0, 15, 20, 8)  # 160 px, of which 60 stay free
    assert areas(clean([high, low], reading(mask_nms_iou=0.9, area_min_px=61))) == [400]
    assert areas(clean([high, low], reading(mask_nms_iou=0.9, area_min_px=60))) == [400, 60]
    covered = rectangle(2, 2, 5, 5)
    assert areas(clean([high, covered], reading(mask_nms_iou=0.9))) == [400], "nothing is left of it"


def test_pixels_at_a_corner_hold_together():
    stairs = np.eye(4, dtype=bool)
    assert largest_part(stairs).sum() == 4
    assert largest_part(np.array([[1, 1, 0, 1]], bool)).tolist() == [[True, True, False, False]]


def test_convex_masks_stay_and_rings_are_filled_when_redrawn():
    box = rectangle(3, 4, 20, 10)
    assert np.array_equal(redrawn_filled(box), box)
    ring = box.copy()
    ring[7:11, 8:18] = False
    assert np.array_equal(redrawn_filled(ring), box)
    assert areas(clean([ring], reading(redraw="filled"))) == [200]
    assert areas(clean([ring], reading())) == [160]


def test_hollows_are_damaged_when_redrawn():
    bracket = rectangle(0, 0, 20, 20)
    bracket[:15, 5:15] = False
    assert not np.array_equal(redrawn_filled(bracket), bracket)


def test_uncounted_cells_stay_and_take_nothing_from_those_that_count():
    unsure, sure = rectangle(0, 0, 10, 10), rectangle(0, 0, 10, 9)
    steps = {"shsy5y": MaskCleaning(score_min=0.3), "cort": MaskCleaning(score_min=0.7)}
    output = SegmentOutput(cleaning=MaskCleaning(), per_label=steps)
    result = clean([unsure, sure], output, [0.6, 0.4], [2, 0])
    assert (result.scores.tolist(), result.counted.tolist()) == ([pytest.approx(0.4)], [True])
    apart = clean([unsure, rectangle(5, 0, 40, 10)], SegmentOutput(per_label=steps), [0.6, 0.4], [2, 0])
    assert apart.counted.tolist() == [False, True]
    assert areas(apart) == [50, 400]


def test_a_pair_is_judged_by_the_settings_of_the_lower():
    steps = {"astro": MaskCleaning(score_min=0, mask_nms_iou=0.9), "cort": MaskCleaning(score_min=0, mask_nms_iou=0.1)}
    output = SegmentOutput(per_label=steps)
    shapes = [rectangle(0, 0, 10, 10), rectangle(0, 5, 10, 10)]
    assert areas(clean(shapes, output, [0.9, 0.8], [2, 1])) == [100, 50]
    assert areas(clean(shapes, output, [0.9, 0.8], [1, 2])) == [100]


def test_one_label_for_the_whole_image():
    steps = {"cort": MaskCleaning(score_min=0.0, area_min_px=90), "astro": MaskCleaning(score_min=0.0)}
    shapes = [rectangle(0, 0, 10, 10), rectangle(20, 0, 10, 8), rectangle(40, 0, 12, 10)]
    output = SegmentOutput(per_label=steps, one_label=True)
    result = clean(shapes, output, [0.9, 0.8, 0.7], [2, 1, 2])
    assert result.classes.tolist() == [2, 2]
    assert areas(result) == [100, 120]


@pytest.mark.parametrize("one_label", [False, True])
def test_no_cells(one_label: bool):
    result = clean([], SegmentOutput(one_label=one_label))
    assert (result.boxes.shape, result.masks, result.counted.tolist()) == ((0, 4), [], [])
    soft = SoftOutlines(
        (20, 30),
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.intp),
        np.zeros(0, np.float32),
        np.zeros((0, 3), np.float32),
        np.zeros((0, 28, 28), np.uint8),
    )
    assert cleaned(soft, LABELS, SegmentOutput(one_label=one_label)).masks == []
    assert clean([np.zeros(HW, bool)], reading()).masks == []


def test_a_code_of_another_image_is_refused():
    with pytest.raises(ValueError, match="does not describe"):
        cleaned_masks([masks.encode(np.ones((3, 4), bool))], [0], [0.9], (4, 4), LABELS, reading())


# -- properties -----------------------------------------------------------------------------------


@st.composite
def drawn_cells(draw: st.DrawFn) -> tuple[list[NDArray[np.bool_]], list[float], list[int]]:
    count = draw(st.integers(0, 7))
    shapes = [draw(own.mask_arrays(HW)) for _ in range(count)]
    classes = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    return shapes, [float(score) for score in draw(own.score_arrays(count))], classes


@st.composite
def cleanings(draw: st.DrawFn, redraw: bool = False) -> SegmentOutput:
    def one() -> MaskCleaning:
        return MaskCleaning(
            score_min=draw(st.sampled_from([0.0, 0.3, 0.7])),
            mask_nms_iou=draw(st.sampled_from([0.0, 0.1, 0.4, 1.0])),
            area_min_px=draw(st.integers(0, 20)),
            parts=draw(st.sampled_from(["largest", "all"])),
            redraw=draw(st.sampled_from(["none", "filled"])) if redraw else "none",
        )

    per_label = {name: one() for name in draw(st.sets(st.sampled_from(LABELS.names)))}
    return SegmentOutput(cleaning=one(), per_label=per_label, one_label=draw(st.booleans()))


def same(a: Outlines, b: Outlines) -> bool:
    numbers = ("boxes", "classes", "scores", "counted")
    return a.masks == b.masks and all(np.array_equal(getattr(a, name), getattr(b, name)) for name in numbers)


@settings(max_examples=60)
@given(drawn_cells(), cleanings(redraw=True))
def test_cells_do_not_overlap_are_not_empty_and_are_large_enough(cells, output: SegmentOutput):
    shapes, scores, classes = cells
    result = clean(shapes, output, scores, classes)
    layers = [masks.decode(code, HW) for code in result.masks]
    assert not layers or np.sum(layers, axis=0).max() <= 1
    assert list(result.scores) == sorted(result.scores, reverse=True)
    for code, layer, index, corners, score, counted in zip(
        result.masks, layers, result.classes, result.boxes, result.scores, result.counted, strict=True
    ):
        step = output.cleaning_of(LABELS.names[index])
        assert layer.sum() >= max(1, step.area_min_px)
        assert corners.tolist() == masks.bounds(code, HW).tolist()
        assert counted == (score >= np.float32(step.score_min))
        assert step.parts == "all" or np.array_equal(largest_part(layer), layer)


@settings(max_examples=60)
@given(drawn_cells(), cleanings())
def test_cleaning_twice_is_cleaning_once(cells, output: SegmentOutput):
    once = clean(*cells[:1], output, *cells[1:])
    twice = cleaned_masks(once.masks, once.classes, once.scores, HW, LABELS, output)
    assert same(once, twice)


@settings(max_examples=60)
@given(drawn_cells(), cleanings(redraw=True))
def test_what_counts_does_not_depend_on_what_does_not(cells, output: SegmentOutput):
    output = output.model_copy(update={"one_label": False})
    shapes, scores, classes = cells
    result = clean(shapes, output, scores, classes)
    limits = [np.float32(output.cleaning_of(LABELS.names[index]).score_min) for index in classes]
    sure = [row for row in range(len(shapes)) if np.float32(scores[row]) >= limits[row]]
    alone = clean([shapes[r] for r in sure], output, [scores[r] for r in sure], [classes[r] for r in sure])
    counted = [code for code, ok in zip(result.masks, result.counted, strict=True) if ok]
    assert counted == alone.masks


@settings(max_examples=60)
@given(drawn_cells(), cleanings(redraw=True))
def test_cleaning_as_its_slow_twin(cells, output: SegmentOutput):
    """The steps on full masks, in the order of the specification; one cell type, all of which count."""
    shapes, scores, _ = cells
    step = output.cleaning.model_copy(update={"score_min": 0.0})
    result = clean(shapes, SegmentOutput(cleaning=step), scores)

    def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
        return float((a & b).sum() / max(1, (a | b).sum()))

    ranked = sorted(range(len(shapes)), key=lambda row: (-scores[row], row))
    kept: list[NDArray[np.bool_]] = []
    for row in ranked:
        if shapes[row].any() and all(overlap(shapes[row], higher) <= step.mask_nms_iou for higher in kept):
            kept.append(shapes[row])
    kept = [mask for mask in kept if mask.sum() >= step.area_min_px]
    if step.redraw == "filled":
        kept = [redrawn_filled(mask) for mask in kept]
    # Taking away what the others were, or what is left of them, is the same: they cover the same pixels.
    whole, cut = [], []
    for place, mask in enumerate(kept):
        whole.append(mask & ~np.any([np.zeros_like(mask), *kept[:place]], axis=0))
        cut.append(mask & ~np.any([np.zeros_like(mask), *cut], axis=0))
    assert all(np.array_equal(a, b) for a, b in zip(whole, cut, strict=True))
    left = [largest_part(mask) if step.parts == "largest" else mask for mask in whole]
    left = [mask for mask in left if mask.sum() >= max(1, step.area_min_px)]
    assert result.masks == [masks.encode(mask) for mask in left]


@settings(max_examples=60)
@given(st.lists(own.mask_arrays(HW), max_size=8), st.sampled_from([0.0, 0.2, 0.5]))
def test_similar_pairs_as_the_whole_table(shapes: list[NDArray[np.bool_]], limit: float):
    codes = [masks.encode(shape) for shape in shapes]
    bounds = np.array([masks.bounds(code, HW) for code in codes]).reshape(-1, 4)
    one, other, iou = similar_pairs(codes, bounds, HW, limit)
    table = masks.iou(codes, codes, HW)
    wanted = {(a, b) for a, b in zip(*np.nonzero(np.triu(table > limit, 1)), strict=True)}
    assert {(min(a, b), max(a, b)) for a, b in zip(one.tolist(), other.tolist(), strict=True)} == wanted
    assert np.array_equal(iou, table[one, other])


def test_many_cells_are_compared_in_batches():
    size_hw = (40, 2000)
    shapes = [rectangle(4 * (row // 2), 10 * (row % 2), 5, 8, size_hw) for row in range(700)]
    bounds = np.array([masks.bounds(masks.encode(shape), size_hw) for shape in shapes])
    one, other, _ = similar_pairs([masks.encode(shape) for shape in shapes], bounds, size_hw, 0.0)
    pairs = {(min(a, b), max(a, b)) for a, b in zip(one.tolist(), other.tolist(), strict=True)}
    assert pairs == {(row, row + 2) for row in range(698)}
    assert len(one) == 698
