from __future__ import annotations

import time

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.evaluate import EvaluateSettings, evaluate
from cytolens.evaluate.average_precision import IOU_LIMITS, average_precision, precision_at_recalls
from cytolens.evaluate.uncertainty import resample_groups
from cytolens.labels import LabelSet
from cytolens.match import rank
from tests import reference_scores as slow
from tests.evaluate import cases
from tests.evaluate.coco_oracle import coco_average_precision

BCCD = LabelSet.shipped("bccd")
PLAIN = EvaluateSettings(intervals=False)

corners = st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(2, 8), st.integers(2, 8)).map(
    lambda c: (c[0], c[1], c[0] + c[2], c[1] + c[3])
)
truth_cells = st.lists(st.tuples(st.sampled_from(BCCD.names), corners), max_size=5)
found_cells = st.lists(
    st.tuples(st.sampled_from(BCCD.names), corners, st.sampled_from([0.0625, 0.25, 0.5, 0.75, 1.0])), max_size=7
)
worlds = st.lists(st.tuples(truth_cells, found_cells), min_size=1, max_size=4)


def build(world, crowds: int = 0):
    """A truth and findings; every `crowds`-th truth is ignored (0: none)."""
    boxes = {f"{i:03d}.png": truths for i, (truths, _) in enumerate(world)}
    count = sum(len(truths) for truths, _ in world)
    ignore = [bool(crowds) and i % crowds == 0 for i in range(count)] if count else False
    truth = cases.dataset(BCCD, boxes, ignore=ignore)
    found = cases.findings(BCCD, {f"{i:03d}.png": said for i, (_, said) in enumerate(world)})
    return truth, found


def _check_against_coco(truth, found, oracle, tolerance=1e-6):
    wanted = coco_average_precision(truth, found, oracle)
    figures = evaluate(truth, found, found_images=truth.images, task="detection", settings=PLAIN).figures
    rated = {n: (r["ap50"], r["ap50_95"]) for n, r in figures["per_label"].items() if r["ap50"] is not None}
    assert rated.keys() == wanted.keys()
    for name, pair in wanted.items():
        assert rated[name] == pytest.approx(pair, abs=tolerance)
    if wanted:
        both = np.mean(list(wanted.values()), axis=0)
        assert (figures["map50"], figures["map50_95"]) == pytest.approx(tuple(both), abs=tolerance)
    else:
        assert figures["map50"] is figures["map50_95"] is None


@given(worlds, st.sampled_from([0, 2, 3]))
@settings(max_examples=80, deadline=None)
def test_average_precision_equals_pycocotools(world, crowds):
    _check_against_coco(*build(world, crowds), "pycocotools", 1e-12)


@given(worlds, st.sampled_from([0, 2, 3]))
@settings(max_examples=40, deadline=None)
def test_average_precision_equals_faster_coco_eval(world, crowds):
    _check_against_coco(*build(world, crowds), "faster_coco_eval")


@pytest.mark.data
@pytest.mark.parametrize("oracle", ["pycocotools", "faster_coco_eval"])
def test_average_precision_on_real_boxes(data_root, oracle):
    truth = cases.bccd(data_root)
    _check_against_coco(truth, cases.spoiled(truth, 3), oracle)


@given(worlds, st.sampled_from([0, 2]))
@settings(max_examples=40, deadline=None)
def test_average_precision_equals_the_slow_twin(world, crowds):
    truth, found = build(world, crowds)
    figures = evaluate(truth, found, found_images=truth.images, settings=PLAIN).figures
    ignored = truth.cells.frame["ignore"].to_list()
    numbered = []
    at = 0
    for truths, said in world:
        numbered.append(([(*cell, ignored[at + i]) for i, cell in enumerate(truths)], said))
        at += len(truths)
    for name, row in figures["per_label"].items():
        own = [
            (
                [(box, flag) for label, box, flag in t if label == name],
                [(box, s) for label, box, s in f if label == name],
            )
            for t, f in numbered
        ]
        values = [slow.average_precision(own, limit) for limit in IOU_LIMITS]
        if values[0] is None:
            assert row["ap50"] is None
        else:
            assert row["ap50"] == pytest.approx(values[0], abs=1e-9)
            assert row["ap50_95"] == pytest.approx(np.mean(values), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_weights_are_repeated_images(seed):
    """A resample's average precision is that of a data set in which images really occur so often."""
    truth = cases.dataset(BCCD, {f"{i}.png": _row_of_cells() for i in range(6)})
    found = cases.spoiled(truth, seed)
    label = BCCD.names[0]
    own = [
        (
            [(box, False) for box in truth.cells.of_image(i).where(label=label).boxes().tolist()],
            list(zip(*(_boxes_and_scores(found.of_image(i).where(label=label))), strict=True)),
        )
        for i in truth.images.ids
    ]
    tables = [np.array([[slow.iou(b, other) for other, _ in t] for b, _ in f]).reshape(len(f), len(t)) for t, f in own]
    ranking = rank(tables, [[s for _, s in f] for _, f in own], [[False] * len(t) for t, _ in own], IOU_LIMITS)
    weights = resample_groups(range(6), 8, seed)
    # Findings of equal score are set apart as the ranking orders them, so that repeats fall together.
    keys = [(i, j, score) for i, (_, f) in enumerate(own) for j, (_, score) in enumerate(f)]
    place = {(i, j): n for n, (i, j, _) in enumerate(sorted(keys, key=lambda key: -key[2]))}
    values = average_precision(ranking, weights)
    for row, times in zip(values, weights, strict=True):
        repeated = [
            (t, [(b, 1 - place[i, j] / 1000) for j, (b, _) in enumerate(f)])
            for i, (t, f) in enumerate(own)
            for _ in range(int(times[i]))
        ]
        assert row == pytest.approx([slow.average_precision(repeated, limit) for limit in IOU_LIMITS], abs=1e-9)
    assert np.ptp(values[:, 0]) > 0.02


def _row_of_cells():
    return [("WBC", (x, 0, x + 10, 10)) for x in range(0, 90, 15)]


def _boxes_and_scores(cells):
    return cells.boxes().tolist(), cells.scores().tolist()


def test_curve_and_average_agree():
    truth, found = build(
        [([("WBC", (0, 0, 10, 10))] * 1, [("WBC", (0, 0, 10, 9), 0.9), ("WBC", (20, 20, 30, 30), 0.95)])]
    )
    scores = evaluate(truth, found, found_images=truth.images, settings=PLAIN)
    curve = scores.tables["precision_recall"]
    assert scores.figures["map50"] == pytest.approx(0.5) == curve["precision"].mean()
    assert curve["recall"].to_list() == pytest.approx([i / 100 for i in range(101)])
    none = rank([np.zeros((1, 0))], [[0.5]], [[]], IOU_LIMITS)
    assert np.isnan(precision_at_recalls(none, 0)).all()


# -- counts ---------------------------------------------------------------------------------------


def test_counted_cells_decide_precision_and_all_cells_the_ranking():
    truth = cases.dataset(
        BCCD, {"a.png": [("WBC", (0, 0, 10, 10)), ("RBC", (20, 0, 30, 10)), ("RBC", (40, 0, 50, 10))]}
    )
    found = cases.findings(
        BCCD,
        {
            "a.png": [
                ("WBC", (0, 0, 10, 10), 0.9),
                ("RBC", (20, 0, 30, 10), 0.8),
                ("RBC", (40, 0, 50, 10), 0.2),  # right, but below the threshold
                ("Platelets", (60, 0, 70, 10), 0.7),  # invented
            ]
        },
        counted=[True, True, False, True],
    )
    figures = evaluate(truth, found, found_images=truth.images, settings=PLAIN).figures
    assert figures["precision"] == pytest.approx(2 / 3)
    assert figures["recall"] == pytest.approx(2 / 3)
    assert figures["f1"] == pytest.approx(2 / 3)
    assert (figures["images"], figures["truth"], figures["found"]) == (1, 3, 3)
    assert figures["map50"] == pytest.approx(1.0)  # Platelets has no truth and is not averaged
    red = figures["per_label"]["RBC"]
    assert (red["ap50"], red["ap50_95"]) == pytest.approx((1, 1))
    assert (red["precision"], red["recall"], red["f1"]) == pytest.approx((1, 0.5, 2 / 3))
    assert (red["truth"], red["found"]) == (2, 1)
    platelets = figures["per_label"]["Platelets"]
    assert platelets["ap50"] is platelets["ap50_95"] is platelets["recall"] is None
    assert (platelets["precision"], platelets["f1"]) == (0, 0)
    assert not any(name.endswith("_interval") for name in figures)


def test_a_wrong_label_is_a_miss_and_a_surplus():
    truth = cases.dataset(BCCD, {"a.png": [("WBC", (0, 0, 10, 10))]})
    found = cases.findings(BCCD, {"a.png": [("RBC", (0, 0, 10, 10), 0.9)]})
    scores = evaluate(truth, found, found_images=truth.images, settings=PLAIN)
    assert (scores.figures["precision"], scores.figures["recall"], scores.figures["f1"]) == (0, 0, 0)
    assert scores.tables["outcomes"].select("side", "label", "outcome").rows() == [
        ("truth", "WBC", "missed"),
        ("found", "RBC", "surplus"),
    ]
    assert scores.tables["images"].select("truth", "found", "hits", "missed", "surplus").row(0) == (1, 1, 0, 1, 1)


def test_pairs_are_one_to_one():
    truth = cases.dataset(BCCD, {"a.png": [("WBC", (0, 0, 10, 10))]})
    found = cases.findings(BCCD, {"a.png": [("WBC", (0, 0, 10, 10), 0.9), ("WBC", (0, 0, 10, 10), 0.8)]})
    figures = evaluate(truth, found, found_images=truth.images, settings=PLAIN).figures
    assert (figures["precision"], figures["recall"]) == (0.5, 1)


def test_iou_min_moves_the_counts_only():
    truth = cases.dataset(BCCD, {"a.png": [("WBC", (0, 0, 10, 10))]})
    found = cases.findings(BCCD, {"a.png": [("WBC", (0, 0, 10, 7), 0.9)]})  # IoU .7
    loose = evaluate(truth, found, found_images=truth.images, settings=PLAIN).figures
    strict = evaluate(
        truth, found, found_images=truth.images, settings=EvaluateSettings(intervals=False, iou_min=0.75)
    ).figures
    assert (loose["recall"], strict["recall"]) == (1, 0)
    assert loose["map50_95"] == strict["map50_95"] == pytest.approx(0.5)  # limits .50 … .70 of ten


def test_ignored_truths_and_what_lies_in_them_count_neither_way():
    truth = cases.dataset(BCCD, {"a.png": [("RBC", (0, 0, 50, 50)), ("RBC", (60, 0, 70, 10))]}, ignore=[True, False])
    found = cases.findings(BCCD, {"a.png": [("RBC", (10, 10, 20, 20), 0.9), ("RBC", (60, 0, 70, 10), 0.8)]})
    scores = evaluate(truth, found, found_images=truth.images, settings=PLAIN)
    assert (scores.figures["precision"], scores.figures["recall"], scores.figures["map50"]) == (1, 1, pytest.approx(1))
    assert scores.figures["truth"] == 1
    assert scores.tables["outcomes"].filter(side="found")["outcome"].to_list() == ["excused", "hit"]


def test_unnamed_truths_are_ignored_and_noted():
    truth = cases.dataset(BCCD, {"a.png": [(None, (0, 0, 10, 10)), ("RBC", (60, 0, 70, 10))]})
    found = cases.findings(BCCD, {"a.png": [("RBC", (0, 0, 10, 10), 0.9), ("RBC", (60, 0, 70, 10), 0.8)]})
    scores = evaluate(truth, found, found_images=truth.images, settings=PLAIN)
    assert scores.figures["truth"] == 1
    assert (scores.figures["precision"], scores.figures["map50_95"]) == (1, pytest.approx(1))
    assert any("1 truth cells have no label" in note and "not named (1)" in note for note in scores.notes)


def test_labels_that_are_not_complete_do_not_punish_findings():
    images = {"a.png": {"complete_for": ["WBC"]}, "b.png": {"complete_for": None}}
    world = {"a.png": [("WBC", (0, 0, 10, 10)), ("RBC", (20, 0, 30, 10))], "b.png": []}
    truth = cases.dataset(BCCD, world, images=images)
    said = [("RBC", (20, 0, 30, 10), 0.5), ("RBC", (60, 0, 70, 10), 0.9), ("WBC", (80, 0, 90, 10), 0.9)]
    found = cases.findings(
        BCCD, {"a.png": [*said, ("WBC", (0, 0, 10, 10), 0.5)], "b.png": [("RBC", (0, 0, 9, 9), 0.4)]}
    )
    scores = evaluate(truth, found, found_images=truth.images, settings=PLAIN)
    red, white = scores.figures["per_label"]["RBC"], scores.figures["per_label"]["WBC"]
    # The unboxed red cell of a.png is neutral; the one invented in b.png is not.
    assert (red["ap50"], red["precision"], red["recall"]) == pytest.approx((1, 0.5, 1))
    assert (white["ap50"], white["precision"]) == pytest.approx((0.5, 0.5))
    assert any("RBC is not annotated exhaustively in 1 images" in note for note in scores.notes)


def test_perfect_findings_score_one_with_intervals_of_one():
    world = {f"{i}.png": [("WBC", (0, 0, 10, 10)), ("RBC", (20, 0, 30, 10))] for i in range(12)}
    truth = cases.dataset(BCCD, world)
    scores = evaluate(truth, truth, settings=EvaluateSettings(bootstrap=50))
    for name in ("map50", "map50_95", "precision", "recall", "f1"):
        assert scores.figures[name] == pytest.approx(1)
        assert scores.figures[f"{name}_interval"] == pytest.approx([1, 1])
    assert (scores.figures["interval_unit"], scores.figures["groups"]) == ("image", 12)


def test_nothing_found_scores_nothing():
    truth = cases.dataset(BCCD, {"a.png": [("WBC", (0, 0, 10, 10))], "b.png": []})
    figures = evaluate(
        truth, Cells.empty(BCCD), found_images=truth.images, settings=EvaluateSettings(bootstrap=20)
    ).figures
    assert (figures["map50"], figures["recall"], figures["f1"], figures["found"]) == (0, 0, 0, 0)
    assert figures["precision"] is None
    assert figures["precision_interval"] is None
    assert figures["recall_interval"] == [0, 0]


def test_no_truth_leaves_figures_undefined():
    truth = cases.dataset(BCCD, {"a.png": [], "b.png": []})
    found = cases.findings(BCCD, {"a.png": [("WBC", (0, 0, 10, 10), 0.9)]})
    figures = evaluate(truth, found, found_images=truth.images, settings=EvaluateSettings(bootstrap=20)).figures
    assert figures["map50"] is figures["map50_interval"] is figures["recall"] is None
    assert figures["precision"] == 0
    empty = evaluate(truth, Cells.empty(BCCD), found_images=truth.images, settings=PLAIN).figures
    assert empty["map50"] is empty["f1"] is None
    assert empty["per_label"] == {}


# -- labels ---------------------------------------------------------------------------------------


def test_finer_findings_roll_up_and_strangers_are_left_out():
    truth = cases.dataset(BCCD, {"a.png": [("WBC", (0, 0, 10, 10)), ("Platelets", (20, 0, 30, 10))]})
    cytologia = LabelSet.shipped("cytologia")
    found = cases.findings(
        cytologia,
        {"a.png": [("LLC", (0, 0, 10, 10), 0.9), ("Thromb", (20, 0, 30, 10), 0.8), ("Lysee", (40, 0, 50, 10), 0.7)]},
    )
    scores = evaluate(truth, found, found_images=truth.images, settings=PLAIN)
    assert (scores.figures["map50"], scores.figures["precision"], scores.figures["found"]) == (pytest.approx(1), 1, 2)
    assert list(scores.figures["per_label"]) == ["WBC", "Platelets"]
    assert "1 findings whose label has no counterpart in the truth are left out: Lysee (1)." in scores.notes


def test_level_rolls_both_sides_up():
    cytologia = LabelSet.shipped("cytologia")
    truth = cases.dataset(cytologia, {"a.png": [("LLC", (0, 0, 10, 10)), ("Er", (20, 0, 30, 10))]})
    found = cases.findings(cytologia, {"a.png": [("PNN", (0, 0, 10, 10), 0.9), ("Er", (20, 0, 30, 10), 0.9)]})
    level = EvaluateSettings(intervals=False, level=("leukocyte",))
    scores = evaluate(truth, found, found_images=truth.images, settings=level)
    assert list(scores.figures["per_label"]) == ["leukocyte"]
    assert (scores.figures["recall"], scores.figures["truth"], scores.figures["found"]) == (1, 1, 1)
    assert any("Er (1)" in note for note in scores.notes)


# -- intervals ------------------------------------------------------------------------------------


@pytest.mark.data
def test_intervals_on_real_boxes(data_root):
    truth = cases.bccd(data_root)
    found = cases.spoiled(truth, 1)
    start = time.process_time()
    figures = evaluate(truth, found, task="detection").figures
    assert time.process_time() - start < 10  # 1 s on an idle machine
    assert (figures["images"], figures["truth"], figures["groups"]) == (87, 1138, 87)
    assert {name: row["truth"] for name, row in figures["per_label"].items()} == {
        "WBC": 87,
        "RBC": 968,
        "Platelets": 83,
    }
    for row in (figures, *figures["per_label"].values()):
        for name in ("precision", "recall", "f1", *(n for n in ("map50", "map50_95", "ap50", "ap50_95") if n in row)):
            low, high = row[f"{name}_interval"]
            assert 0 <= low < row[name] < high <= 1
    # The rarer label is known less well.
    width = {name: np.ptp(row["recall_interval"]) for name, row in figures["per_label"].items()}
    assert width["RBC"] < 0.6 * min(width["WBC"], width["Platelets"])
    again = evaluate(truth, found, task="detection").figures
    assert again == figures
    other = evaluate(truth, found, task="detection", settings=EvaluateSettings(seed=1)).figures
    assert other["map50"] == figures["map50"]
    assert other["map50_interval"] != figures["map50_interval"]


def test_the_bootstrap_is_that_of_recall_counted_by_hand():
    world = {f"{i}.png": [("WBC", (0, 0, 10, 10))] for i in range(20)}
    truth = cases.dataset(BCCD, world)
    found = cases.findings(BCCD, {f"{i}.png": [("WBC", (0, 0, 10, 10), 0.9)] for i in range(13)})
    figures = evaluate(truth, found, found_images=truth.images, settings=EvaluateSettings(seed=3)).figures
    weights = resample_groups(range(20), 1000, 3)
    wanted = np.quantile(weights[:, :13].sum(axis=1) / 20, [0.025, 0.975])
    assert figures["recall_interval"] == pytest.approx(wanted)
    assert (
        figures["map50_interval"]
        == pytest.approx(  # all findings are right: AP is the recall, in steps of .01
            np.quantile((np.floor(weights[:, :13].sum(axis=1) / 20 * 100 + 1e-9) + 1) / 101, [0.025, 0.975])
        )
    )


def test_groups_widen_the_interval():
    """Cells that succeed or fail together are fewer observations than there are images."""
    world = {f"{i:02d}.png": [("WBC", (0, 0, 10, 10))] for i in range(60)}
    grouped = {i: {"group": f"patient {int(i[:2]) // 6}"} for i in world}
    found = cases.findings(BCCD, {i: [("WBC", (0, 0, 10, 10), 0.9)] for i in world if (int(i[:2]) // 6) % 2})
    alone = evaluate(cases.dataset(BCCD, world), found).figures
    together = evaluate(cases.dataset(BCCD, world, images=grouped), found).figures
    assert (together["interval_unit"], together["groups"]) == ("group", 10)
    assert (alone["interval_unit"], alone["groups"]) == ("image", 60)
    assert np.ptp(together["recall_interval"]) > 1.8 * np.ptp(alone["recall_interval"])


def test_more_than_a_thousand_findings_are_cut():
    truth = cases.dataset(BCCD, {"a.png": [("WBC", (0, 0, 10, 10))]})
    noise = [("WBC", (50, 50, 60, 60), 0.9)] * 1000
    found = cases.findings(BCCD, {"a.png": [*noise, ("WBC", (0, 0, 10, 10), 0.1)]}, counted=False)
    figures = evaluate(truth, found, found_images=truth.images, settings=PLAIN).figures
    assert figures["map50"] == 0
    found = found.filter(pl.int_range(pl.len()) > 0)
    assert evaluate(truth, found, found_images=truth.images, settings=PLAIN).figures["map50"] == pytest.approx(1e-3)


@given(worlds, st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_enlarging_the_picture_changes_nothing(world, power):
    truth, found = build(world)
    larger = Dataset(truth.images, truth.cells.with_boxes(truth.cells.boxes() * 2**power))
    found_larger = found.with_boxes(found.boxes() * 2**power)
    first = evaluate(truth, found, found_images=truth.images, settings=PLAIN).figures
    assert evaluate(larger, found_larger, found_images=truth.images, settings=PLAIN).figures == first
