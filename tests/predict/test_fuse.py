"""Several answers made one: against the package ensemble-boxes, the published example, and by properties."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import cytolens
from cytolens import masks
from cytolens.cells import Cells
from cytolens.images import Images
from cytolens.labels import AttributeSchema, LabelSet
from cytolens.predict.box_fusion import Fused
from cytolens.predict.fuse import METHODS, FuseSettings, fuse, nms, soft_nms, wbf
from cytolens.problems import DatasetError, LabelError, SettingError
from cytolens.settings import checked
from tests import reference, strategies

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ensemble_boxes.json").read_text(encoding="utf-8"))
SIDE = GOLDEN["side_px"]
LABELS = LabelSet.of(["leukocyte", "neutrophil", "eosinophil", "lymphocyte", "erythrocyte"])
LEAVES = LABELS.leaves

Lists = list[NDArray[np.float64]]


def rows_of(boxes: Any, scores: Any, classes: Any) -> list[list[float]]:
    """Boxes in shares of the side, score and class as rows, in an order of their own."""
    table = np.concatenate(
        [np.reshape(boxes, (-1, 4)), np.reshape(scores, (-1, 1)), np.reshape(classes, (-1, 1))], axis=1
    )
    return sorted(table.tolist(), key=lambda row: [round(value, 4) for value in (row[5], *row[:5])])


def close(fused: Fused, wanted: list[list[float]]) -> None:
    ours = rows_of(fused.boxes / SIDE, fused.scores, fused.classes)
    assert len(ours) == len(wanted)
    if wanted:
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-6)


def parts(case: dict[str, Any]) -> tuple[Lists, Lists, Lists]:
    return (
        [np.array(one, float).reshape(-1, 4) for one in case["boxes"]],
        [np.array(one, float) for one in case["scores"]],
        [np.array(one, int) for one in case["classes"]],
    )


# -- the package ----------------------------------------------------------------------------------


def test_the_cases_are_worth_something() -> None:
    cases = GOLDEN["cases"]
    assert len(cases) == 40
    assert sum(case["tied"] for case in cases) == 10
    assert any(len(case["boxes"]) == 12 for case in cases)
    assert any(not one for case in cases for one in case["boxes"])
    assert sum(case["weights"] is not None for case in cases) > 10
    fused = [len(case["answers"]["wbf"][1]) for case in cases]
    assert sum(fused) < sum(len(one) for case in cases for one in case["boxes"]) * 2 / 3


@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_as_the_package(case: dict[str, Any]) -> None:
    boxes, scores, classes = parts(case)
    plain = {"iou": case["iou"], "weights": case["weights"]}
    floor = case["score_floor"]
    close(wbf(boxes, scores, classes, **plain, score_floor=floor), rows_of(*case["answers"]["wbf"]))
    one = wbf(boxes, scores, classes, iou=case["iou"], score_floor=floor, lists="one")
    close(one, rows_of(*case["answers"]["wbf_one_list"]))
    close(nms(boxes, scores, classes, **plain), rows_of(*case["answers"]["nms"]))
    for decay in ("linear", "gaussian"):
        wanted = np.array(case["answers"][f"soft_nms_{decay}"], float).reshape(-1, 6)
        close(
            soft_nms(boxes, scores, classes, **plain, decay=decay), rows_of(wanted[:, :4], wanted[:, 4], wanted[:, 5])
        )


def test_the_published_example() -> None:
    boxes = [[(100, 100, 200, 200)], [(104, 98, 206, 202)], [(96, 102, 198, 204)], [(300, 300, 360, 360)]]
    scores, classes = [[0.9], [0.8], [0.7], [0.6]], [[0]] * 4
    corners = [[100.1667, 99.9167, 201.4167, 201.8333], [300, 300, 360, 360]]
    per_model = wbf(boxes, scores, classes, iou=0.25)
    np.testing.assert_allclose(per_model.boxes, corners, atol=5e-5)
    np.testing.assert_allclose(per_model.scores, [0.6, 0.15], atol=1e-12)
    one = wbf(boxes, scores, classes, iou=0.25, lists="one")
    np.testing.assert_allclose(one.boxes, corners, atol=5e-5)
    np.testing.assert_allclose(one.scores, [0.8, 0.6], atol=1e-12)
    assert per_model.member_of.tolist() == [0, 0, 0, 1]
    assert per_model.lead.tolist() == [0, 3]


def test_one_list_weighs_the_mean() -> None:
    same = [[(0, 0, 10, 10)], [(2, 0, 12, 10)]]
    fused = wbf(same, [[0.8], [0.4]], [[0], [0]], iou=0.5, weights=[1, 3], lists="one")
    assert fused.scores.tolist() == pytest.approx([(0.8 + 3 * 0.4) / 4])
    assert fused.boxes[0, 0] == pytest.approx(2 * 1.2 / 2.0)


# -- arrays ---------------------------------------------------------------------------------------


def test_nothing_is_fused_into_nothing() -> None:
    for function in (wbf, nms, soft_nms):
        for lists in ([], [np.zeros((0, 4))], [np.zeros((0, 4))] * 3):
            fused = function(lists, [[]] * len(lists), [[]] * len(lists), iou=0.5)
            assert fused.boxes.shape == (0, 4)
            assert fused.scores.shape == fused.classes.shape == fused.member_of.shape == (0,)


def test_boxes_without_an_area_are_left_out() -> None:
    boxes = [[(0, 0, 0, 10), (5, 5, 4, 9), (0, 0, 10, 10), (0, 0, float("nan"), 1)]]
    for function in (wbf, nms, soft_nms):
        fused = function(boxes, [[0.9, 0.9, 0.5, 0.9]], [[0, 0, 0, 0]], iou=0.5)
        assert fused.boxes.tolist() == [[0, 0, 10, 10]]
        assert fused.member_of.tolist() == [-1, -1, 0, -1]


def test_a_score_of_nothing_makes_no_nonsense() -> None:
    fused = wbf([[(0, 0, 10, 10)], [(0, 0, 10, 12)]], [[0.0], [0.0]], [[0], [0]], iou=0.5)
    assert fused.boxes.tolist() == [[0, 0, 10, 10]]
    assert fused.scores.tolist() == [0]


@pytest.mark.parametrize("weights", [[1], [1, 2, 3], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")]])
def test_weights_must_fit(weights: list[float]) -> None:
    with pytest.raises(SettingError, match="wanted 2 positive numbers, one per member"):
        wbf([[(0, 0, 1, 1)]] * 2, [[1.0]] * 2, [[0]] * 2, iou=0.5, weights=weights)


def test_lists_must_be_of_one_length() -> None:
    with pytest.raises(ValueError, match="list 1 has 1 boxes, 2 scores and 1 classes"):
        nms([[(0, 0, 1, 1)]] * 2, [[1.0], [1.0, 2.0]], [[0]] * 2, iou=0.5)
    with pytest.raises(ValueError, match="2 lists of boxes, 1 of scores, 2 of classes"):
        nms([[(0, 0, 1, 1)]] * 2, [[1.0]], [[0]] * 2, iou=0.5)


@st.composite
def box_lists(draw: st.DrawFn, *, most: int = 4) -> tuple[Lists, Lists, Lists]:
    count = draw(st.integers(1, most))
    boxes = [draw(strategies.box_arrays(grid_px=4)) for _ in range(count)]
    scores = [draw(strategies.score_arrays(len(one))).astype(float) for one in boxes]
    classes = [np.array([draw(st.integers(0, 1)) for _ in one], int) for one in boxes]
    return boxes, scores, classes


@given(box_lists(), st.sampled_from([0.0, 0.25, 0.5, 0.7]))
def test_suppression_as_its_slow_twin(lists: tuple[Lists, Lists, Lists], limit: float) -> None:
    boxes, scores, classes = (np.concatenate(part) for part in lists)
    wanted = reference.suppressed(boxes.tolist(), scores.tolist(), limit, classes.tolist())
    fused = nms(*lists, iou=limit)
    assert sorted(fused.lead.tolist()) == sorted(wanted)
    assert (np.diff(fused.scores) <= 0).all()
    assert (fused.member_of >= 0).all()


@given(box_lists(), st.sampled_from(["per-model", "one"]), st.sampled_from([0.0, 0.3, 0.55]))
def test_fusion_keeps_inside(lists: tuple[Lists, Lists, Lists], mode: Any, limit: float) -> None:
    boxes, scores, classes = (np.concatenate(part) for part in lists)
    fused = wbf(*lists, iou=limit, lists=mode)
    assert (fused.member_of >= 0).all()
    for number, corners in enumerate(fused.boxes):
        rows = fused.member_of == number
        assert rows.any()
        assert (corners >= boxes[rows].min(axis=0) - 1e-9).all()
        assert (corners <= boxes[rows].max(axis=0) + 1e-9).all()
        weight = scores[rows] / scores[rows].sum()
        np.testing.assert_allclose(corners, weight @ boxes[rows], atol=1e-9)
        assert set(classes[rows]) == {fused.classes[number]}
        assert scores[fused.lead[number]] == scores[rows].max()
        share = min(rows.sum(), len(lists[0])) / len(lists[0]) if mode == "per-model" else 1
        assert fused.scores[number] == pytest.approx(scores[rows].mean() * share)


@given(st.data(), box_lists())
def test_the_order_of_members_does_not_matter(data: st.DataObject, lists: tuple[Lists, Lists, Lists]) -> None:
    boxes, _, classes = lists
    total = sum(map(len, boxes))
    distinct = np.split(
        data.draw(st.permutations(range(1, total + 1)).map(np.array)) / (total + 1), np.cumsum([len(b) for b in boxes])
    )[: len(boxes)]
    distinct = [np.asarray(one, float) for one in distinct]
    order = data.draw(st.permutations(range(len(boxes))))
    weights = [2.0**i for i in range(len(boxes))]

    def weighed(rows: Sequence[int]) -> list[list[float]]:
        # Weights that are powers of two could make scores equal; a prime share keeps them apart.
        own = [distinct[i] * 0.997**i for i in rows]
        fused = wbf(
            [boxes[i] for i in rows], own, [classes[i] for i in rows], iou=0.4, weights=[weights[i] for i in rows]
        )
        return rows_of(fused.boxes, fused.scores, fused.classes)

    np.testing.assert_allclose(weighed(order), weighed(range(len(boxes))), atol=1e-9)


@given(strategies.box_arrays(most=5), st.data())
def test_one_member_alone_gives_itself_back(boxes: NDArray[np.float64], data: st.DataObject) -> None:
    scores = data.draw(strategies.score_arrays(len(boxes)))
    apart = list(range(len(boxes)))  # a class each: nothing to fuse
    for function in (wbf, nms, soft_nms):
        fused = function([boxes], [scores], [apart], iou=0.5)
        order = np.argsort(-scores, kind="stable")
        np.testing.assert_array_equal(fused.boxes, boxes[order])
        np.testing.assert_array_equal(fused.scores, scores[order])
        np.testing.assert_array_equal(fused.lead, order)


def test_long_lists_take_no_time() -> None:
    random = np.random.default_rng(0)
    corner = random.uniform(0, 4000, (2000, 2))
    side = random.uniform(30, 80, (2000, 2))
    lists = [np.concatenate([corner, corner + side], axis=1) + random.normal(0, 3, (2000, 4)) for _ in range(4)]
    scores, classes = [random.uniform(0, 1, 2000) for _ in lists], [np.zeros(2000, int)] * 4
    took, found = [], 0
    for _ in range(3):
        started = time.process_time()
        found = len(wbf(lists, scores, classes, iou=0.5).boxes)
        took.append(time.process_time() - started)
    assert 1900 < found < 2100
    assert min(took) < 1.0, took  # half a second on a quiet machine; a busy one is slower


# -- cells ----------------------------------------------------------------------------------------


def member(
    rows: Sequence[tuple[str, Sequence[float], str | None, float]],
    probabilities: Sequence[Sequence[float] | None] | None = None,
    *,
    labels: LabelSet = LABELS,
    source: str = "bundle:a@1",
    **more: Any,
) -> Cells:
    """Findings: image, box, label, score."""
    known = None if probabilities is None else [p is not None for p in probabilities]
    width = len(labels.leaves)
    table = None if probabilities is None else [[0.0] * width if p is None else list(p) for p in probabilities]
    return Cells.of(
        labels,
        image_id=[row[0] for row in rows],
        boxes=np.array([row[1] for row in rows], float).reshape(-1, 4),
        label=[row[2] for row in rows],
        score=[row[3] for row in rows],
        probabilities=table,
        known=known,
        source=source,
        **more,
    )


def shares(**named: float) -> list[float]:
    return [named.get(leaf, 0.0) for leaf in LEAVES]


HERE, THERE = (10, 10, 30, 30), (60, 60, 90, 90)


def test_two_members_that_agree() -> None:
    one = member([("a.png", HERE, "neutrophil", 0.9)], [shares(neutrophil=0.8, lymphocyte=0.2)])
    two = member([("a.png", (12, 10, 32, 30), "neutrophil", 0.3)], [shares(neutrophil=1)], source="bundle:b@2")
    both = fuse([one, two])
    row = both.frame.row(0, named=True)
    assert len(both) == 1
    assert row["x_min"] == pytest.approx(10 + 2 * 0.25)
    assert row["score"] == pytest.approx(0.6)
    assert row["label"] == "neutrophil"
    assert row["probabilities"] == pytest.approx(shares(neutrophil=0.85, lymphocyte=0.15))
    assert (row["counted"], row["refer"], row["ignore"]) == (True, False, False)
    assert row["source"] == "fused:wbf(bundle:a@1, bundle:b@2)"
    assert fuse([two, one]).frame.equals(both.frame)


def test_members_that_disagree_are_for_a_person() -> None:
    one = member([("a.png", HERE, "neutrophil", 0.9)], [shares(neutrophil=0.9, lymphocyte=0.1)])
    two = member([("a.png", HERE, "lymphocyte", 0.9)], [shares(neutrophil=0.3, lymphocyte=0.7)])
    row = fuse([one, two]).frame.row(0, named=True)
    assert (row["label"], row["refer"]) == ("neutrophil", True)
    assert row["probabilities"] == pytest.approx(shares(neutrophil=0.6, lymphocyte=0.4))
    unsure = fuse([one, two], settings=FuseSettings(sure=0.7)).frame.row(0, named=True)
    assert (unsure["label"], unsure["refer"]) == ("leukocyte", True)
    apart = fuse([one, two], settings=FuseSettings(by="label"))
    assert apart.label_names() == ["neutrophil", "lymphocyte"]


def test_a_parent_and_its_kind_agree() -> None:
    one = member([("a.png", HERE, "leukocyte", 0.5)])
    two = member([("a.png", HERE, "neutrophil", 0.9)])
    row = fuse([one, two], settings=FuseSettings(by="cell")).frame.row(0, named=True)
    assert (row["label"], row["refer"], row["probabilities"]) == ("neutrophil", False, None)
    # Each agrees with "leukocyte", but they do not agree with each other.
    three = member([("a.png", HERE, "lymphocyte", 0.2)])
    assert fuse([one, two, three], settings=FuseSettings(by="cell")).frame["refer"].to_list() == [True]


def test_any_member_can_refer() -> None:
    one = member([("a.png", HERE, "neutrophil", 0.9)], refer=True)
    two = member([("a.png", HERE, "neutrophil", 0.9)])
    assert fuse([one, two]).frame["refer"].to_list() == [True]
    assert fuse([two, two]).frame["refer"].to_list() == [False]


def test_who_knows_probabilities_does_not_overrule_the_rest() -> None:
    one = member([("a.png", HERE, "leukocyte", 0.3)], [shares(neutrophil=1)])
    two = member([("a.png", HERE, "erythrocyte", 0.9)], [None])
    row = fuse([one, two, two]).frame.row(0, named=True)
    assert (row["label"], row["probabilities"], row["refer"]) == ("erythrocyte", None, True)


def test_what_counts() -> None:
    sure = member([("a.png", HERE, "neutrophil", 0.9)])
    unsure = member([("a.png", HERE, "neutrophil", 0.2)], counted=False)
    none = member([])

    def counted(*members: Cells, method: str = "wbf", **settings: Any) -> list[bool]:
        return fuse(members, method=method, settings=FuseSettings(**settings)).frame["counted"].to_list()

    assert counted(sure, none) == [True]
    assert counted(sure, none, none) == [False]
    assert counted(sure, unsure, unsure) == [False]
    assert counted(sure, none, none, weights=(3, 1, 1)) == [True]
    assert counted(sure, none, none, lists="one") == [True]
    assert counted(sure, unsure, unsure, lists="one") == [False]
    assert counted(sure, none, none, threshold=0.29) == [True]
    assert counted(sure, none, none, threshold=0.31) == [False]
    assert counted(sure, none, none, method="nms") == [True]
    assert counted(unsure, sure, method="nms") == [True]
    assert counted(unsure, sure, method="blend") == [False]
    # A member that has the cell twice speaks once.
    twice = member([("a.png", HERE, "neutrophil", 0.9)] * 2)
    assert counted(twice, none, none) == [False]


def test_nms_keeps_the_best_as_it_is() -> None:
    code = masks.encode(np.ones((100, 100), bool))
    one = member([("a.png", HERE, "neutrophil", 0.6), ("a.png", THERE, "eosinophil", 0.4)], mask=[code, None])
    two = member([("a.png", (12, 12, 31, 31), "neutrophil", 0.5)])
    both = fuse([one, two], method="nms")
    assert both.boxes().tolist() == [list(HERE), list(THERE)]
    assert both.scores().tolist() == pytest.approx([0.6, 0.4])
    assert both.masks() == [code, None]
    lighter = fuse([one, two], method="nms", settings=FuseSettings(weights=(1, 2)))
    assert lighter.boxes().tolist() == [[12, 12, 31, 31], list(THERE)]
    assert lighter.scores().tolist() == pytest.approx([0.5, 0.2])
    assert fuse([one, two]).masks() == [None, None]


def test_soft_nms_lowers() -> None:
    one = member([("a.png", (0, 0, 10, 10), "neutrophil", 0.9)])
    two = member([("a.png", (0, 0, 10, 5), "neutrophil", 0.8)])
    gaussian = fuse([one, two], method="soft-nms", settings=FuseSettings(sigma=0.5))
    assert gaussian.scores().tolist() == pytest.approx([0.9, 0.8 * np.exp(-0.25 / 0.5)])
    linear = fuse([one, two], method="soft-nms", settings=FuseSettings(decay="linear", iou=0.4))
    assert linear.scores().tolist() == pytest.approx([0.9, 0.4])


def test_blend_keeps_the_first_members_cells() -> None:
    first = member(
        [("a.png", HERE, "neutrophil", 0.9), ("b.png", THERE, "eosinophil", 0.5)],
        [shares(neutrophil=0.6, lymphocyte=0.4), shares(eosinophil=1)],
    )
    other = member(
        [("a.png", THERE, "lymphocyte", 0.99), ("a.png", (11, 10, 30, 30), "lymphocyte", 0.3)],
        [shares(lymphocyte=1), shares(lymphocyte=1)],
        source="bundle:b@2",
    )
    both = fuse([first, other], method="blend", settings=FuseSettings(weights=(1, 3)))
    assert both.boxes().tolist() == [list(HERE), list(THERE)]
    assert both.label_names() == ["lymphocyte", "eosinophil"]
    assert both.probabilities()[0] == pytest.approx(shares(neutrophil=0.15, lymphocyte=0.85))
    assert both.scores().tolist() == pytest.approx([(0.9 + 3 * 0.3) / 4, 0.5])
    assert both.frame["refer"].to_list() == [True, False]
    assert both.frame["source"].to_list() == ["fused:blend(bundle:a@1, bundle:b@2)"] * 2


def test_attributes_are_blended() -> None:
    size = AttributeSchema("look", "size", ("big", "small"))
    labels = LabelSet.of(["neutrophil"], attributes=(size,))

    def looking(score: float, value: str | None, table: Any, source: str) -> Cells:
        columns: dict[str, Any] = {size.column: [value]}
        if table is not None:
            columns[f"{size.column}_probabilities"] = [table]
        row = ("a.png", HERE, "neutrophil", score)
        return member([row], labels=labels, attributes=columns, source=source)

    one, two = looking(0.9, "big", [0.6, 0.4], "a"), looking(0.6, "small", [0.1, 0.9], "b")
    blended = fuse([one, two]).frame.row(0, named=True)
    assert blended[size.column] == "small"
    assert blended[f"{size.column}_probabilities"] == pytest.approx([0.4, 0.6])
    unknown = fuse([looking(0.9, "big", None, "a"), looking(0.6, "small", None, "b")]).frame.row(0, named=True)
    assert (unknown[size.column], unknown[f"{size.column}_probabilities"]) == ("big", None)


def test_images_give_order_and_ids() -> None:
    one = member([("b.png", HERE, "neutrophil", 0.4), ("b.png", THERE, "neutrophil", 0.8)])
    two = member([("a.png", HERE, "neutrophil", 0.9)])
    images = Images.of([{"image_id": "a.png", "sha256": "f" * 64}, {"image_id": "c.png"}, {"image_id": "b.png"}])
    both = fuse([one, two], images=images)
    assert both.frame["image_id"].to_list() == ["a.png", "b.png", "b.png"]
    assert both.scores().tolist() == pytest.approx([0.45, 0.4, 0.2])
    assert both.frame["cell_id"].n_unique() == 3
    assert fuse([one, two]).frame["image_id"].to_list() == ["b.png", "b.png", "a.png"]
    other = images.with_columns(sha256=["e" * 64, None, None])
    changed = fuse([one, two], images=other).frame["cell_id"].to_list()
    assert [a == b for a, b in zip(both.frame["cell_id"], changed, strict=True)] == [False, True, True]
    with pytest.raises(DatasetError, match=r'no image "b\.png" among 1 images'):
        fuse([one, two], images=Images.of([{"image_id": "a.png"}]))


def test_what_cannot_be_fused() -> None:
    with pytest.raises(SettingError, match="nothing to fuse"):
        fuse([])
    with pytest.raises(SettingError, match=r'no way to fuse "nsm"\. Did you mean "nms"\? Allowed: wbf, nms'):
        fuse([member([])], method="nsm")
    with pytest.raises(LabelError, match=r"different label sets.*relabel\(to\)"):
        fuse([member([]), member([], labels=LabelSet.of(["neutrophil"]))])
    with pytest.raises(SettingError, match="wanted 1 positive numbers"):
        fuse([member([])], settings=FuseSettings(weights=(1, 2)))
    with pytest.raises(SettingError, match=r'unknown setting "treshold"\. Did you mean "threshold"'):
        checked(FuseSettings, {"treshold": 1}, "fuse")


@pytest.mark.parametrize("method", METHODS)
def test_nothing_found_is_an_answer(method: str) -> None:
    assert len(fuse([member([]), member([])], method=method)) == 0
    found = fuse([member([]), member([("a.png", HERE, "neutrophil", 0.9)])], method=method)
    assert len(found) == (0 if method == "blend" else 1)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15)
@given(data=st.data())
def test_one_member_gives_its_cells_back(method: str, data: st.DataObject) -> None:
    labels = data.draw(strategies.label_sets())
    cells = data.draw(strategies.cell_tables(labels, found=True, with_masks=False, image_ids=tuple("abcdef")))
    cells = Cells(cells.frame.unique("image_id", maintain_order=True), labels)  # one in an image: nothing overlaps
    cells = cells.with_columns(refer=pl.col("refer") & pl.col("counted"), ignore=False)
    again = fuse([cells], method=method)
    other = ("cell_id", "source")
    named = [column for column in cells.frame.columns if column not in other]
    attributes = [c for a in labels.attributes for c in (a.column, f"{a.column}_probabilities")]
    exact = [column for column in named if column not in ("probabilities", *attributes)]
    assert again.frame.select(exact).equals(cells.frame.select(exact))
    np.testing.assert_allclose(again.probabilities(), cells.probabilities(), rtol=1e-6)
    assert again.frame.select(attributes).equals(cells.frame.select(attributes))
    assert cytolens.fuse([cells], method=method).frame.equals(again.frame)


@settings(max_examples=25)
@given(st.data())
def test_the_order_of_members_changes_no_cell(data: st.DataObject) -> None:
    labels = data.draw(strategies.label_sets(most=4))
    tables = [data.draw(strategies.cell_tables(labels, found=True, with_masks=False, most=4)) for _ in range(3)]
    total, given_scores = 0, []
    for number, table in enumerate(tables):
        scores = np.array([0.9 - 0.01 * (total + i) for i in range(len(table))])
        total += len(table)
        given_scores.append(table.with_columns(score=scores.tolist(), source=f"bundle:{number}@0"))
    order = data.draw(st.permutations(range(3)))
    low = FuseSettings(iou=0.3)
    images = Images.of([{"image_id": image_id} for image_id in ("a.png", "b/ü.png")])
    one = fuse(given_scores, settings=low, images=images).frame
    two = fuse([given_scores[i] for i in order], settings=low, images=images).frame
    key = ["image_id", "x_min", "y_min", "x_max", "y_max", "label"]
    columns = ["score", "counted", "refer", "source"]
    one, two = (frame.select(pl.col(key).exclude("label"), "label", *columns).sort(key) for frame in (one, two))
    from polars.testing import assert_frame_equal

    assert_frame_equal(one, two, rel_tol=1e-5, abs_tol=1e-5)
