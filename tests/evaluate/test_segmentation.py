"""Scores of outlines: public evaluations, slow twins, and cases counted by hand."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cytolens import masks, match
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.evaluate import EvaluateSettings, evaluate
from cytolens.evaluate.average_precision import pooled
from cytolens.evaluate.outline_overlaps import boundary_f, contours
from cytolens.evaluate.outline_tallies import splits_and_merges
from cytolens.evaluate.report import report_page
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.problems import DatasetError, SettingError
from tests import reference_scores as slow
from tests import strategies as draw

LABELS = LabelSet.of(["round", "long"])
SIZE_HW = (24, 32)
PLAIN = EvaluateSettings(intervals=False)
Rect = tuple[int, int, int, int]
World = Mapping[str, Sequence[tuple[str | None, Any]]]


def code(rect: Rect, size_hw: tuple[int, int] = SIZE_HW) -> bytes:
    mask = np.zeros(size_hw, bool)
    mask[rect[1] : rect[3], rect[0] : rect[2]] = True
    return masks.encode(mask)


def cells(world: World, scores: list[float] | None = None, **more: Any) -> Cells:
    """Image id → [(label, rectangle or code), …]."""
    flat = [(i, name, one if isinstance(one, bytes) else code(one)) for i, all_ in world.items() for name, one in all_]
    return Cells.of(
        LABELS,
        image_id=[i for i, _, _ in flat],
        boxes=np.array([masks.bounds(one, SIZE_HW) for _, _, one in flat]).reshape(-1, 4),
        label=[name for _, name, _ in flat],
        mask=[one for _, _, one in flat],
        score=scores,
        source="human:test" if scores is None else "bundle:test@0",
        **more,
    )


def truth_of(world: World, images: dict[str, Any] | None = None, **more: Any):
    rows = [
        {"image_id": i, "width_px": SIZE_HW[1], "height_px": SIZE_HW[0], **(images or {}).get(i, {})} for i in world
    ]
    return Dataset(Images.of(rows), cells(world, **more), "truth")


def score(truth: Dataset, found: Cells, task: str = "segmentation", given: EvaluateSettings = PLAIN) -> dict[str, Any]:
    return dict(evaluate(truth, found, found_images=truth.images, task=task, settings=given).figures)


# -- by hand --------------------------------------------------------------------------------------


def test_figures_counted_by_hand():
    truth = truth_of({"a": [("round", (0, 0, 10, 10)), ("long", (15, 0, 25, 10))], "b": [("round", (0, 0, 10, 10))]})
    # a: .8 of the first (under the other's name), and one finding too many; b: all of it.
    found = cells(
        {"a": [("long", (0, 0, 10, 8)), ("long", (0, 15, 5, 20))], "b": [("round", (0, 0, 10, 10))]}, [0.9, 0.8, 0.7]
    )
    figures = score(truth, found)
    assert figures["dsb_ap50"] == pytest.approx((1 / 3 + 1) / 2)
    assert figures["dsb_ap50_pooled"] == pytest.approx(2 / 4)
    assert figures["map"] == pytest.approx((7 / 10 / 3 + 1) / 2)  # .50 … .80 are reached
    assert figures["f1_50"] == pytest.approx(4 / 6)
    assert (figures["sq"], figures["pq"]) == pytest.approx((0.9, 1.8 / 3))
    assert (figures["count_error"], figures["count_error_share"]) == (0, 0)
    assert figures["precision_at"]["0.80"] == pytest.approx((1 / 3 + 1) / 2)
    assert figures["per_label"]["round"]["recall"] == 0.5
    assert figures["per_label"]["long"]["f1"] == 0
    # By the competition, .8 does not reach .80.
    assert score(truth, found, "sartorius")["score"] == pytest.approx((6 / 10 / 3 + 1) / 2)


def test_a_doubled_finding_parts_the_two_scores():
    truth = truth_of({"a": [("round", (0, 0, 10, 10))]})
    found = cells({"a": [("round", (0, 0, 10, 6)), ("round", (0, 0, 10, 7))]}, [0.9, 0.8])
    figures = score(truth, found, "sartorius")
    # .50 and .55: both overlap it more; .60 and .65: only the second does, and the first is false.
    assert figures["score"] == pytest.approx((0.5 * 2) / 10)
    assert figures["map"] == pytest.approx((0.5 * 5) / 10)
    assert figures["per_label"]["round"]["images"] == 1
    assert figures["per_label"]["round"]["score"] == figures["score"]


def test_only_counted_findings_are_the_answer():
    truth = truth_of({"a": [("round", (0, 0, 10, 10))]})
    found = cells({"a": [("round", (0, 0, 10, 10)), ("round", (20, 0, 30, 10))]}, [0.9, 0.1], counted=[True, False])
    figures = score(truth, found)
    assert (figures["map"], figures["found"], figures["count_error"]) == (1, 1, 0)
    unsure = cells({"a": [("round", (20, 0, 30, 10)), ("round", (0, 0, 10, 10))]}, [0.9, 0.1], counted=[True, False])
    assert score(truth, unsure)["coco_mask_ap50"] == pytest.approx(0.5)
    assert score(truth, unsure)["map"] == 0


def test_ignored_truths_and_incomplete_images_excuse():
    world = {"a": [("round", (0, 0, 10, 10)), ("round", (15, 0, 30, 15))]}
    truth = truth_of(world, ignore=[False, True])
    found = cells({"a": [("round", (0, 0, 10, 10)), ("round", (16, 1, 20, 5))]}, [0.9, 0.8])
    for task in ("segmentation", "sartorius"):
        figures = score(truth, found, task)
        assert (figures["map"], figures["truth"], figures["found"], figures["coco_mask_map"]) == pytest.approx(
            (1, 1, 1, 1)
        )
        assert (figures["boundary_f"], figures["per_label"]["round"]["precision"]) == (1, 1)
    assert score(truth, found, "sartorius")["score"] == 1
    # A region that was only boxed excuses, too.
    boxed = Dataset(truth.images, truth.cells.with_masks([truth.cells.masks()[0], None]))
    assert score(boxed, found)["map"] == 1
    partial = truth_of({"a": world["a"][:1]}, {"a": {"complete_for": ["long"]}})
    figures = score(partial, found, "sartorius")
    assert (figures["map"], figures["score"], figures["coco_mask_map"], figures["found"]) == pytest.approx((1, 1, 1, 1))


def test_cells_without_a_name_are_scored_too():
    truth = truth_of({"a": [(None, (0, 0, 10, 10)), ("long", (15, 0, 25, 10))]})
    found = cells({"a": [(None, (0, 0, 10, 10)), ("long", (15, 0, 25, 10))]}, [0.9, 0.8])
    figures = score(truth, found)
    assert (figures["map"], figures["truth"], figures["coco_mask_map_class_free"]) == (1, 2, pytest.approx(1))
    assert set(figures["per_label"]) == {"long"}
    assert figures["per_label"]["long"]["truth"] == 1
    at_level = evaluate(
        truth, found, found_images=truth.images, task="segmentation",
        settings=EvaluateSettings(intervals=False, level=("long",)),
    )  # fmt: skip
    assert (at_level.figures["truth"], at_level.figures["found"], at_level.figures["map"]) == (1, 1, 1)
    assert any("outside the level" in note for note in at_level.notes)


def test_nothing_to_find_and_nothing_found():
    truth = truth_of({"a": [("round", (0, 0, 10, 10))], "b": []})
    figures = score(truth, Cells.empty(LABELS), "sartorius", EvaluateSettings(bootstrap=20))
    assert (figures["map"], figures["score"], figures["boundary_f"]) == (0.5, 0.5, 0.5)
    assert (figures["coco_mask_map"], figures["pq"], figures["sq"]) == (0, 0, None)
    empty = truth_of({"a": [], "b": []})
    figures = score(empty, Cells.empty(LABELS))
    assert (figures["map"], figures["coco_mask_map"], figures["pq"], figures["per_label"]) == (1, None, None, {})


def test_splits_and_merges():
    truth = truth_of({"a": [("round", (0, 0, 10, 10)), ("round", (12, 0, 16, 10)), ("round", (18, 0, 22, 10))]})
    said = [("round", (0, 0, 10, 5)), ("round", (0, 5, 10, 10)), ("round", (12, 0, 22, 10))]
    figures = score(truth, cells({"a": said}, [0.9] * 3))
    assert (figures["splits"], figures["merges"]) == (1, 1)
    # Half of the finding, or of the truths, is not more than half.
    assert splits_and_merges(np.full((2, 1), 10 / 90), np.full(2, 20.0), np.array([80.0])) == (0, 0)


# -- contours -------------------------------------------------------------------------------------


def test_contours_of_shifted_squares():
    size_hw = (40, 40)

    def of(x: int, y: int) -> np.ndarray:
        return contours([code((x, y, x + 12, y + 12), size_hw)], size_hw)

    assert of(10, 10).sum() == 4 * 11
    assert boundary_f(of(10, 10), of(10, 10), 0) == 1
    assert boundary_f(of(12, 10), of(10, 10), 2) == 1
    assert boundary_f(of(10, 10), of(12, 10), 1) < 1
    # Without tolerance only the 10 shared pixels of the top and of the bottom agree.
    assert boundary_f(of(12, 10), of(10, 10), 0) == pytest.approx(20 / 44)
    assert of(0, 0).sum() == 2 * 11 + 1  # what the border cuts is no contour
    assert not contours([masks.encode(np.ones(size_hw, bool)), masks.encode(np.zeros(size_hw, bool))], size_hw).any()
    touching = [code((0, 0, 20, 40), size_hw), code((20, 0, 40, 40), size_hw)]
    assert contours(touching, size_hw)[:, 19:21].all()


@given(draw.mask_arrays((7, 9)), draw.mask_arrays((7, 9)), st.sampled_from([0, 1, 1.5, 2.3]))
def test_contours_as_their_slow_twin(one, other, tolerance):
    ours, theirs = (contours([masks.encode(mask)], mask.shape) for mask in (one, other))
    assert ours.tolist() == slow.contour(one.tolist())
    wanted = slow.boundary_f(ours.tolist(), theirs.tolist(), tolerance)
    assert boundary_f(ours, theirs, tolerance) == pytest.approx(wanted)


def test_the_tolerance_is_said():
    truth = truth_of({"a": [("round", (0, 0, 10, 10))]})
    found = cells({"a": [("round", (0, 0, 7, 10))]}, [0.9])
    figures = score(truth, found)
    assert (figures["boundary_tolerance_px"], figures["boundary_tolerance_share"]) == (2, None)
    wide = score(truth, found, given=EvaluateSettings(intervals=False, boundary_share=0.1))  # 4 px
    assert (wide["boundary_tolerance_px"], wide["boundary_tolerance_share"]) == (None, 0.1)
    assert figures["boundary_f"] < wide["boundary_f"] == 1
    assert score(truth, found, given=EvaluateSettings(intervals=False, boundary_px=0))["boundary_tolerance_px"] == 0


# -- twins and oracles ----------------------------------------------------------------------------


@st.composite
def worlds(drawn: st.DrawFn) -> tuple[Dataset, Cells]:
    """Two images with few masks on a small grid; findings overlap each other and truths often."""

    def side(most: int) -> dict[str, list[tuple[str | None, Any]]]:
        x, y = st.integers(0, 6), st.integers(0, 4)
        rect = st.tuples(x, y, st.integers(1, 6), st.integers(1, 5)).map(
            lambda r: (r[0], r[1], r[0] + r[2], r[1] + r[3])
        )
        one = st.tuples(st.sampled_from(LABELS.names), rect)
        return {i: drawn(st.lists(one, max_size=most)) for i in ("a", "b")}

    truth = truth_of(side(3))
    answer = side(4)
    count = sum(map(len, answer.values()))
    scores = drawn(st.lists(st.integers(1, 9).map(lambda n: n / 10), min_size=count, max_size=count))
    return truth, cells(answer, scores, counted=[s >= 0.3 for s in scores])


@given(worlds())
@settings(max_examples=40)
def test_figures_as_their_slow_twins(world):
    truth, found = world
    tables, answers = [], found.filter(found.frame["counted"].to_numpy())
    for image_id in ("a", "b"):
        ours = [masks.decode(one, SIZE_HW) for one in truth.cells.of_image(image_id).masks() if one is not None]
        theirs = [masks.decode(one, SIZE_HW) for one in answers.of_image(image_id).masks() if one is not None]
        tables.append(([[(f & t).sum() / (f | t).sum() for t in ours] for f in theirs], len(ours)))
    figures = score(truth, found, "sartorius")
    assert figures["score"] == pytest.approx(np.mean([slow.sartorius(*one) for one in tables]))
    assert figures["truth"] == sum(count for _, count in tables)
    pairs = [(table, slow.best_pairs(table, count, 0.5)) for table, count in tables]
    hits = sum(len(chosen) for _, chosen in pairs)
    overlap = sum(table[f][t] for table, chosen in pairs for f, t in chosen)
    found_count, truth_count = len(answers), len(truth.cells)
    both = (found_count + truth_count) / 2
    if both:
        # Equal totals of overlap may come from more or fewer pairs, but the total is the same.
        assert figures["pq"] == pytest.approx(overlap / both)
    if hits and figures["sq"] == pytest.approx(overlap / hits):
        assert figures["dsb_ap50_pooled"] == pytest.approx(hits / (found_count + truth_count - hits))
        assert figures["f1_50"] == pytest.approx(hits / both)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3)).flatmap(
            lambda shape: st.tuples(
                hnp.arrays(np.float64, shape, elements=st.integers(0, 10).map(lambda n: n / 10)),
                draw.score_arrays(shape[0]),
                hnp.arrays(np.bool_, shape[1]),
            )
        ),
        max_size=4,
    )
)
@settings(max_examples=40)
def test_rankings_of_single_images_make_the_one_of_all(images):
    limits = [0.5, 0.8]
    tables, scores, ignored = ([part[i] for part in images] for i in range(3))
    whole = match.rank(tables, scores, ignored, limits)
    parts = [match.rank([table], [score], [ignore], limits) for table, score, ignore in images]
    # Between them lie images without anything.
    ours = pooled(parts, [2 * i for i in range(len(images))], 2 * len(images))
    assert ours.scores.tolist() == whole.scores.tolist()
    assert ours.image.tolist() == (2 * whole.image).tolist()
    assert ours.truth_per_image[::2].tolist() == whole.truth_per_image.tolist()
    assert not ours.truth_per_image[1::2].any()
    if images:
        assert (ours.hit == whole.hit).all()
        assert (ours.neutral == whole.neutral).all()


@given(worlds())
@settings(max_examples=25)
def test_mask_ap_is_that_of_pycocotools(world):
    truth, found = world
    figures = score(truth, found)
    wanted = coco_mask_ap(truth, found)
    assert {name for name, row in figures["per_label"].items() if row["ap50"] is not None} == set(wanted)
    for name, (ap50, ap) in wanted.items():
        assert figures["per_label"][name]["ap50"] == pytest.approx(ap50)
        assert figures["per_label"][name]["ap50_95"] == pytest.approx(ap)
    if wanted:
        assert figures["coco_mask_ap50"] == pytest.approx(np.mean([one for one, _ in wanted.values()]))
        assert figures["coco_mask_map"] == pytest.approx(np.mean([one for _, one in wanted.values()]))
        free = coco_mask_ap(truth, found, class_free=True)["all"]
        assert (figures["coco_mask_ap50_class_free"], figures["coco_mask_map_class_free"]) == pytest.approx(free)


def coco_mask_ap(truth: Dataset, found: Cells, class_free: bool = False) -> dict[str, tuple[float, float]]:
    """Label → (AP at IoU .50, AP at .50–.95) of pycocotools, only labels that have truth."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    names = ["all"] if class_free else list(LABELS.names)
    images = {image_id: number for number, image_id in enumerate(truth.images.ids, 1)}

    def rows(table: Cells) -> list[dict[str, Any]]:
        return [
            {
                "id": number,
                "image_id": images[row["image_id"]],
                "category_id": 0 if class_free else names.index(row["label"]),
                "segmentation": {"size": list(SIZE_HW), "counts": row["mask"]},
                "area": masks.area(row["mask"]),
                "iscrowd": 0,
                "score": row["score"],
            }
            for number, row in enumerate(table.frame.iter_rows(named=True), 1)
        ]

    with contextlib.redirect_stdout(io.StringIO()):
        sides: list[Any] = []
        for table in (truth.cells, found):
            side: Any = COCO()
            side.dataset = {
                "images": [{"id": n, "height": SIZE_HW[0], "width": SIZE_HW[1]} for n in images.values()],
                "categories": [{"id": k, "name": name} for k, name in enumerate(names)],
                "annotations": rows(table),
            }
            side.createIndex()
            sides.append(side)
        judge: Any = COCOeval(sides[0], sides[1], "segm")
        judge.params.maxDets = [1, 10, 1000]
        judge.evaluate()
        judge.accumulate()
    table = np.asarray(judge.eval["precision"])[:, :, :, 0, -1].mean(axis=1)
    return {name: (float(table[0, k]), float(table[:, k].mean())) for k, name in enumerate(names) if table[0, k] > -1}


# -- intervals, refusals, the page ----------------------------------------------------------------


def test_intervals_hold_their_figures():
    world = {f"{i:02d}": [("round", (0, 0, 10, 10)), ("long", (15, 0, 25, 10))] for i in range(12)}
    truth = truth_of(world)
    found = cells({i: both[: 1 + int(i) % 2] for i, both in world.items()}, [0.9] * 18)
    figures = score(truth, found, "sartorius", EvaluateSettings(bootstrap=60))
    for name in ("score", "map", "dsb_ap50", "dsb_ap50_pooled", "f1_50", "pq", "coco_mask_map", "boundary_f"):
        low, high = figures[f"{name}_interval"]
        assert low < figures[name] < high, name
    assert figures["per_label"]["long"]["map_interval"] is not None
    assert (figures["interval_unit"], figures["groups"]) == ("image", 12)


def test_what_cannot_be_scored_is_refused():
    truth = truth_of({"a": [("round", (0, 0, 10, 10))]})
    found = cells({"a": [("round", (0, 0, 10, 10))]}, [0.9])
    with pytest.raises(DatasetError, match=r"1 of 1 cells of the findings have a box but no mask.*task detection"):
        score(truth, found.with_masks([None]))
    with pytest.raises(DatasetError, match="1 of 1 cells of the truth have a box but no mask"):
        score(Dataset(truth.images, truth.cells.with_masks([None])), found)
    with pytest.raises(DatasetError, match=r"a mask of the findings is of an image of 20 px.*32 × 24 px"):
        score(truth, found.with_masks([code((0, 0, 1, 1), (4, 5))]))
    with pytest.raises(DatasetError, match="a mask of the findings cannot be read"):
        score(truth, found.with_masks([b"\x00"]))
    with pytest.raises(DatasetError, match="a: its size is not known"):
        score(truth_of({"a": []}, {"a": {"width_px": None}}), found)
    with pytest.raises(SettingError, match=r"iou_min = 0\.6 has no part"):
        score(truth, found, given=EvaluateSettings(iou_min=0.6))
    with pytest.raises(SettingError, match="give one of them"):
        score(truth, found, given=EvaluateSettings(boundary_px=1, boundary_share=0.1))


@pytest.mark.parametrize("task", ["segmentation", "sartorius"])
def test_the_page_draws_contours(tmp_path, task):
    from PIL import Image

    images = {}
    for name in ("a", "b"):
        Image.new("RGB", (SIZE_HW[1], SIZE_HW[0]), (250, 250, 250)).save(tmp_path / f"{name}.png")
        images[name] = {"path": str(tmp_path / f"{name}.png")}
    truth = truth_of({"a": [("round", (1, 1, 10, 10)), ("long", (15, 1, 25, 10))], "b": [], "c": []}, images)
    found = cells(
        {"a": [("round", (1, 1, 10, 10)), ("round", (1, 14, 10, 20))], "c": [("long", (0, 0, 3, 3))]}, [0.9] * 3
    )
    scores = evaluate(truth, found, found_images=truth.images, task=task, settings=EvaluateSettings(bootstrap=10))
    page = report_page(scores, truth, found)
    shown = {p.caption: p for block in page.blocks for p in block.get("pictures", ())}
    assert shown["c"].data is None
    assert "1 missed, 1 surplus" in shown["a"].detail
    assert "b" not in shown
    pixels = np.asarray(Image.open(io.BytesIO(shown["a"].data)).convert("RGB"), int)
    for colour in ((15, 118, 110), (194, 65, 12), (162, 28, 175)):  # found, missed, surplus
        assert (np.abs(pixels - colour).sum(axis=2) < 60).sum() > 100
    text = page.render()
    assert "panoptic quality" in text
    assert ("competition&#39;s score" in text) == (task == "sartorius")
