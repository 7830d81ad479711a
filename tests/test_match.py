from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cytolens import boxes as box
from cytolens import masks, match
from cytolens.cells import Cells
from cytolens.labels import LabelSet
from tests import reference
from tests.strategies import box_arrays, mask_arrays, score_arrays

LABELS = LabelSet.of(["WBC"])
TEN_LIMITS = np.linspace(0.5, 0.95, 10)
Floats = NDArray[np.float64]

# Eighths, so that ties are common and sums are exact.
overlap_values = st.sampled_from([0.0, 0.25, 0.375, 0.5, 0.625, 0.75, 1.0])


def cells_of(boxes: Any, *, ignore: Any = False, scores: Any = None, codes: list[bytes] | None = None) -> Cells:
    count = len(box.as_boxes(boxes))
    return Cells.of(
        LABELS,
        image_id=["a"] * count,
        boxes=boxes,
        label=["WBC"] * count,
        source="x",
        score=scores,
        ignore=ignore,
        mask=codes,
    )


# -- overlaps -------------------------------------------------------------------------------------


def test_an_ignored_truth_is_a_region() -> None:
    truth = cells_of([[0, 0, 4, 4], [0, 0, 8, 8]], ignore=[False, True])
    found = cells_of([[0, 0, 4, 2], [6, 6, 10, 10], [20, 20, 21, 21]])
    np.testing.assert_allclose(match.overlaps(truth, found), [[0.5, 1], [0, 0.25], [0, 0]])


@given(box_arrays(), box_arrays(), st.data())
@settings(max_examples=50)
def test_overlaps_of_boxes_equal_their_slow_twins(truths: Floats, founds: Floats, data: st.DataObject) -> None:
    ignored = data.draw(st.lists(st.booleans(), min_size=len(truths), max_size=len(truths)))
    table = match.overlaps(cells_of(truths, ignore=ignored), cells_of(founds))
    assert table.shape == (len(founds), len(truths))
    for column, (truth, region) in enumerate(zip(truths, ignored, strict=True)):
        for row, found in enumerate(founds):
            shared = reference.intersection(found, truth) / reference.area(found)
            assert table[row, column] == pytest.approx(shared if region else reference.iou(found, truth), abs=1e-6)


@given(st.lists(mask_arrays((6, 5)), max_size=3), st.lists(mask_arrays((6, 5)), max_size=3), st.data())
@settings(max_examples=50)
def test_overlaps_of_masks_are_those_of_their_pixels(
    truths: list[NDArray[np.bool_]], founds: list[NDArray[np.bool_]], data: st.DataObject
) -> None:
    ignored = data.draw(st.lists(st.booleans(), min_size=len(truths), max_size=len(truths)))
    truth = cells_of(np.zeros((len(truths), 4)), ignore=ignored, codes=[masks.encode(m) for m in truths])
    found = cells_of(np.zeros((len(founds), 4)), codes=[masks.encode(m) for m in founds])
    table = match.overlaps(truth, found, (6, 5))
    for column, (one, region) in enumerate(zip(truths, ignored, strict=True)):
        for row, other in enumerate(founds):
            whole = other.sum() if region else (one | other).sum()
            assert table[row, column] == pytest.approx((one & other).sum() / whole if whole else 0.0)


def test_masks_are_compared_only_where_all_cells_have_one() -> None:
    code = masks.encode(np.ones((4, 4), bool))
    with pytest.raises(ValueError, match="some cells have only a box"):
        match.overlaps(cells_of([[0, 0, 4, 4]]), cells_of([[0, 0, 4, 4]], codes=[code]), (4, 4))


# -- one-to-one -----------------------------------------------------------------------------------


@st.composite
def tables(draw: st.DrawFn, most: int = 5) -> tuple[Floats, NDArray[np.bool_]]:
    shape = draw(st.tuples(st.integers(0, most), st.integers(0, most)))
    table = draw(
        st.sampled_from([overlap_values, st.floats(0, 1)]).flatmap(lambda e: hnp.arrays(np.float64, shape, elements=e))
    )
    ignored = draw(hnp.arrays(np.bool_, shape[1]))
    return table, ignored


@given(tables(), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
def test_pairs_have_the_largest_total_of_all(given_table: tuple[Floats, NDArray[np.bool_]], iou_min: float) -> None:
    table, ignored = given_table
    result = match.pair(table, ignored, iou_min)
    assert result.iou.sum() == pytest.approx(reference.best_total(table[:, ~ignored].tolist(), iou_min))
    assert (result.iou >= iou_min).all()
    assert (result.iou > 0).all()
    np.testing.assert_array_equal(result.iou, table[result.found, result.truth])


@given(tables(), st.sampled_from([0.25, 0.5, 1.0]))
def test_everybody_is_paired_missed_surplus_or_excused(
    given_table: tuple[Floats, NDArray[np.bool_]], iou_min: float
) -> None:
    table, ignored = given_table
    result = match.pair(table, ignored, iou_min)
    truths = [*result.truth, *result.missed]
    assert sorted(truths) == np.flatnonzero(~ignored).tolist()
    assert result.truth.tolist() == sorted(result.truth)
    excused = [
        row
        for row in range(len(table))
        if row not in result.found and any(table[row, t] >= iou_min for t in np.flatnonzero(ignored))
    ]
    assert sorted([*result.found, *result.surplus, *excused]) == list(range(len(table)))


def test_the_best_pairing_is_not_the_greedy_one() -> None:
    # The first finding overlaps the first truth most, but then the second finding has no partner.
    result = match.pair([[0.9, 0.8], [0.7, 0.0]], [False, False])
    assert (result.truth.tolist(), result.found.tolist(), result.iou.tolist()) == ([0, 1], [1, 0], [0.7, 0.8])
    assert len(result.missed) == len(result.surplus) == 0


def test_a_pair_may_just_reach_the_limit() -> None:
    assert match.pair([[0.5]], [False], 0.5).truth.tolist() == [0]
    assert match.pair([[np.nextafter(0.5, 0)]], [False], 0.5).missed.tolist() == [0]
    assert match.pair([[0.0]], [False], 0.0).surplus.tolist() == [0]


def test_a_finding_in_an_ignored_truth_counts_neither_way() -> None:
    result = match.pair([[0.1, 0.9], [0.8, 0.9], [0.0, 0.4]], [False, True])
    assert (result.truth.tolist(), result.found.tolist()) == ([0], [1])
    assert result.surplus.tolist() == [2]
    assert result.missed.tolist() == []


@pytest.mark.parametrize("shape", [(0, 0), (3, 0), (0, 3)])
def test_one_side_may_be_empty(shape: tuple[int, int]) -> None:
    result = match.pair(np.zeros(shape), np.zeros(shape[1], bool))
    assert len(result.truth) == len(result.found) == len(result.iou) == 0
    assert (len(result.surplus), len(result.missed)) == shape
    assert match.pair(np.zeros((0, 2)), [True, False]).missed.tolist() == [1]


# -- partners -------------------------------------------------------------------------------------

WHOLE = [[0.0, 0.0, 100.0, 80.0]]
SIZE_WH = (100, 80)


def partners_of_whole(found: Any, scores: Any = None, **changes: Any) -> tuple[list[int], list[int]]:
    boxes = box.as_boxes(found)
    parts = {
        "truth_boxes": WHOLE,
        "found_boxes": boxes,
        "found_scores": np.ones(len(boxes)) if scores is None else np.asarray(scores),
        "table": box.iou(boxes, WHOLE),
        "ignored": [False],
        "size_wh": SIZE_WH,
    }
    truth, partners = match.partners(**(parts | changes))
    return truth.tolist(), partners.tolist()


@given(tables(), st.sampled_from([0.25, 0.5]))
def test_partners_are_pairs_where_cells_have_boxes(
    given_table: tuple[Floats, NDArray[np.bool_]], iou_min: float
) -> None:
    table, ignored = given_table
    small = np.tile([1.0, 1, 3, 3], (table.shape[1], 1))
    truth, found = match.partners(
        small, np.ones((len(table), 4)), np.ones(len(table)), table, ignored, SIZE_WH, iou_min
    )
    expected = match.pair(table, ignored, iou_min)
    assert (truth.tolist(), found.tolist()) == (expected.truth.tolist(), expected.found.tolist())


def test_the_label_of_an_image_belongs_to_its_central_finding() -> None:
    off_centre, central, near = [5, 5, 60, 70], [40, 30, 62, 52], [30, 30, 60, 60]
    assert partners_of_whole([off_centre, central, near]) == ([0], [1])
    assert partners_of_whole([off_centre, near]) == ([0], [1])
    assert partners_of_whole([central, WHOLE[0]]) == ([0], [1]), "a finding that is the whole image comes first"
    assert partners_of_whole([central, central], scores=[0.4, 0.6]) == ([0], [1]), "the surer of two"


def test_a_label_of_an_image_may_have_no_finding() -> None:
    assert partners_of_whole([[0, 0, 30, 30], [60, 60, 99, 79]]) == ([], [])
    assert partners_of_whole([]) == ([], [])


def test_a_whole_image_that_is_ignored_or_of_unknown_size_is_a_box_like_others() -> None:
    central = [[40, 30, 62, 52]]
    assert partners_of_whole(central, ignored=[True]) == ([], [])
    assert partners_of_whole(central, size_wh=(None, None)) == ([], [])
    assert partners_of_whole(WHOLE, size_wh=(None, None)) == ([0], [0])


def test_whole_images_end_at_every_border() -> None:
    boxes = [[0, 0, 100, 80], [0.5, 0.5, 99.5, 79.5], [0, 0, 100, 79.4], [0.6, 0, 100, 80], [0, 0, 80, 100]]
    assert match.is_whole_image(boxes, SIZE_WH).tolist() == [True, True, False, False, False]
    assert match.is_whole_image(boxes, (100, None)).tolist() == [False] * 5
    assert match.is_whole_image([], SIZE_WH).tolist() == []


# -- by falling score -----------------------------------------------------------------------------


@st.composite
def scored_images(draw: st.DrawFn) -> tuple[list[Floats], list[NDArray[np.float32]], list[NDArray[np.bool_]]]:
    given_tables = draw(st.lists(tables(), max_size=3))
    scores = [draw(score_arrays(len(table))) for table, _ in given_tables]
    return [table for table, _ in given_tables], scores, [ignored for _, ignored in given_tables]


@given(scored_images(), st.sampled_from([1, 3, 1000]))
def test_ranking_equals_its_slow_twin(
    images: tuple[list[Floats], list[NDArray[np.float32]], list[NDArray[np.bool_]]], most: int
) -> None:
    limits = [0.25, 0.5, 0.7, 1.0]
    ranking = match.rank(*images, limits, most)
    rows = []  # (score, image, [hit at each limit], [neutral at each limit]), image by image
    for index, (table, scores, ignored) in enumerate(zip(*images, strict=True)):
        judged = [reference.greedy_matching(table.tolist(), scores.tolist(), ignored.tolist(), x, most) for x in limits]
        for place in zip(*judged, strict=True):
            rows.append((scores[place[0][0]], index, [hit for _, hit, _ in place], [none for *_, none in place]))
    rows.sort(key=lambda row: -row[0])
    assert ranking.scores.tolist() == [row[0] for row in rows]
    assert ranking.image.tolist() == [row[1] for row in rows]
    assert ranking.hit.T.tolist() == [row[2] for row in rows]
    assert ranking.neutral.T.tolist() == [row[3] for row in rows]
    assert ranking.truth_per_image.tolist() == [int((~ignored).sum()) for ignored in images[2]]


def coco_judgement(
    truth: list[tuple[Floats, list[bool]]], found: list[tuple[Floats, NDArray[np.float32]]], most: int
) -> list[dict[str, Any]]:
    """pycocotools' own matching, image by image: scores, hit and neutral flags at the ten limits."""
    images = [{"id": i + 1} for i in range(len(truth))]
    annotations, results = [], []
    for i, (boxes, crowd) in enumerate(truth):
        for one, is_crowd in zip(box.to_corner_size(boxes).tolist(), crowd, strict=True):
            area = one[2] * one[3]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i + 1,
                    "category_id": 1,
                    "bbox": one,
                    "area": area,
                    "iscrowd": int(is_crowd),
                }
            )
    for i, (boxes, scores) in enumerate(found):
        for one, score in zip(box.to_corner_size(boxes).tolist(), scores.tolist(), strict=True):
            results.append({"image_id": i + 1, "category_id": 1, "bbox": one, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        coco: Any = COCO()
        coco.dataset = {
            "info": {},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "WBC"}],
        }
        coco.createIndex()
        evaluation: Any = COCOeval(coco, coco.loadRes(results) if results else coco, "bbox")
        if not results:
            return []
        evaluation.params.maxDets = [most]
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.evaluate()
    judged = []
    for entry in evaluation.evalImgs:
        if entry is None:  # neither truth nor finding
            entry = {"dtScores": [], "dtMatches": np.zeros((10, 0)), "dtIgnore": np.zeros((10, 0), bool)}
        neutral = np.asarray(entry["dtIgnore"], bool)
        judged.append(
            {"scores": list(entry["dtScores"]), "hit": (entry["dtMatches"] > 0) & ~neutral, "neutral": neutral}
        )
    return judged


@st.composite
def smears(draw: st.DrawFn) -> tuple[list[tuple[Floats, list[bool]]], list[tuple[Floats, NDArray[np.float32]]]]:
    """Truths (some of them crowds) and findings of up to three images, on a grid where ties are common."""
    truth, found = [], []
    for _ in range(draw(st.integers(1, 3))):
        truths = draw(box_arrays(most=5, side_px=6, grid_px=1))
        # Findings near truths, so that all ten limits separate something.
        near = truths[draw(st.lists(st.integers(0, len(truths) - 1), max_size=4))] if len(truths) else truths
        shift = draw(hnp.arrays(np.float64, (len(near), 4), elements=st.sampled_from([0.0, 0.0, 0.125, 0.25])))
        founds = np.concatenate([near + shift, draw(box_arrays(most=3, side_px=6, grid_px=1))])
        founds[:, 2:] = np.maximum(founds[:, 2:], founds[:, :2] + 0.5)
        truth.append((truths, draw(st.lists(st.booleans(), min_size=len(truths), max_size=len(truths)))))
        found.append((founds, draw(score_arrays(len(founds)))))
    return truth, found


# The first finding overlaps both truths alike and takes the later one, which the second finding needed.
TIE = (
    [(np.array([[0.0, 0, 4, 4], [2, 0, 6, 4]]), [False, False])],
    [(np.array([[1.0, 0, 5, 4], [3, 0, 7, 4]]), np.array([0.9, 0.8], np.float32))],
)


@given(smears(), st.sampled_from([1, 3, 1000]))
@example(TIE, 1000)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ranking_equals_pycocotools_at_its_ten_limits(
    smear: tuple[list[tuple[Floats, list[bool]]], list[tuple[Floats, NDArray[np.float32]]]], most: int
) -> None:
    truth, found = smear
    expected = coco_judgement(truth, found, most)
    overlaps = [
        match.overlaps(cells_of(t, ignore=crowd), cells_of(f, scores=scores))
        for (t, crowd), (f, scores) in zip(truth, found, strict=True)
    ]
    ranking = match.rank(overlaps, [s for _, s in found], [np.array(c, bool) for _, c in truth], TEN_LIMITS, most)
    if not expected:
        assert len(ranking.scores) == 0
        return
    for index, judged in enumerate(expected):
        mine = ranking.image == index
        assert ranking.scores[mine].tolist() == judged["scores"]
        np.testing.assert_array_equal(ranking.hit[:, mine], judged["hit"])
        np.testing.assert_array_equal(ranking.neutral[:, mine], judged["neutral"])
    flat = np.concatenate([judged["scores"] for judged in expected])
    order = np.argsort(-flat, kind="mergesort")  # as COCO joins the images
    np.testing.assert_array_equal(ranking.scores, flat[order])
    np.testing.assert_array_equal(ranking.hit, np.concatenate([j["hit"] for j in expected], axis=1)[:, order])


def test_a_finding_takes_a_scored_truth_before_a_region() -> None:
    ranking = match.rank([[[0.6, 1.0], [0.6, 1.0]]], [[0.9, 0.8]], [[False, True]], [0.5])
    assert ranking.hit.tolist() == [[True, False]]
    assert ranking.neutral.tolist() == [[False, True]]


def test_of_equal_scores_the_first_row_comes_first() -> None:
    ranking = match.rank([[[0.6], [0.9]]], [[0.5, 0.5]], [[False]], [0.5])
    assert ranking.hit.tolist() == [[True, False]]


def test_of_equal_overlaps_the_later_truth_is_taken() -> None:
    ranking = match.rank([[[0.6, 0.6], [0.1, 0.6]]], [[0.9, 0.8]], [[False, False]], [0.5])
    assert ranking.hit.tolist() == [[True, False]]


def test_an_overlap_of_one_reaches_every_limit() -> None:
    assert match.rank([[[1.0]]], [[0.5]], [[False]], [1.0]).hit.tolist() == [[True]]


@pytest.mark.parametrize(("found", "truths"), [(0, 0), (2, 0), (0, 2)])
def test_an_image_may_lack_either_side(found: int, truths: int) -> None:
    table = np.zeros((found, truths))
    ranking = match.rank([table], [np.full(found, 0.5)], [np.zeros(truths, bool)], TEN_LIMITS)
    assert ranking.hit.shape == ranking.neutral.shape == (10, found)
    assert not ranking.hit.any()
    assert ranking.truth_per_image.tolist() == [truths]


def test_no_image_at_all() -> None:
    ranking = match.rank([], [], [], TEN_LIMITS)
    assert ranking.hit.shape == (10, 0)
    assert len(ranking.scores) == len(ranking.image) == len(ranking.truth_per_image) == 0
