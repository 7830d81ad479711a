"""The challenge's score: its published examples exactly, a slow twin, and the way through cells and files."""

from __future__ import annotations

import csv
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytolens.cells import Cells
from cytolens.evaluate import EvaluateSettings, Scores, evaluate
from cytolens.evaluate.challenge import cytologia_score
from cytolens.evaluate.report import report_page
from cytolens.formats.cytologia_submission import (
    challenge_names,
    expected_counts,
    read_submission,
    read_test,
    write_submission,
)
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.problems import DatasetError, FormatError, SettingError
from tests import reference
from tests.evaluate import cases

CYTOLOGIA = LabelSet.shipped("cytologia")
# The challenge's names without the tree, so that LY and B are kinds of their own.
FLAT = LabelSet(CYTOLOGIA.names)
COLUMNS = ["trustii_id", "NAME", "x1", "y1", "x2", "y2", "class"]
Row = tuple[str, str, tuple[int, int, int, int], str]

TRUTH: list[Row] = [
    ("1", "a.jpg", (10, 10, 110, 110), "PNN"),
    ("2", "a.jpg", (150, 150, 250, 250), "LY"),
    ("3", "b.jpg", (50, 60, 150, 180), "MO"),
    ("4", "c.jpg", (0, 0, 80, 80), "EO"),
]
A: list[Row] = [
    ("1", "a.jpg", (12, 8, 112, 108), "PNN"),
    ("2", "a.jpg", (12, 8, 112, 108), "PNN"),
    ("3", "b.jpg", (55, 60, 150, 170), "MO"),
]
B: list[Row] = [
    ("1", "a.jpg", (12, 8, 112, 108), "PNN"),
    ("2", "a.jpg", (148, 152, 252, 250), "LY"),
    ("3", "b.jpg", (55, 60, 150, 170), "LY"),
    ("4", "c.jpg", (0, 0, 80, 80), "EO"),
]
C = B[:3]
# localisation, macro-F1, S, strict macro-F1, as printed
PRINTED = {
    "A": (A, (0.517641, 0.333333, 0.370195, 0.416667)),
    "B": (B, (0.967018, 0.666667, 0.726737, 0.666667)),
    "C": (C, (0.717018, 0.333333, 0.410070, 0.416667)),
}


def table(rows: list[Row]) -> pl.DataFrame:
    flat = [(i, image, *corners, name) for i, image, corners, name in rows]
    types = [pl.String, pl.String, *[pl.Float64] * 4, pl.String]
    return pl.DataFrame(flat, schema=dict(zip(COLUMNS, types, strict=True)), orient="row")


def exact(rows: list[Row]) -> list[Any]:
    return [(i, image, tuple(map(Fraction, corners)), name) for i, image, corners, name in rows]


# -- the published examples -----------------------------------------------------------------------


@pytest.mark.parametrize("name", PRINTED)
def test_the_published_examples(name: str) -> None:
    found, printed = PRINTED[name]
    ours = cytologia_score(table(TRUTH), table(found))
    keys = ("giou_term", "macro_f1", "score", "strict_macro_f1")
    assert [ours[key] for key in keys] == pytest.approx(printed, abs=5e-7)
    twin = reference.challenge_score(exact(TRUTH), exact(found)) | reference.strict_figures(exact(TRUTH), exact(found))
    assert isinstance(twin["score"], Fraction)
    for key, value in twin.items():
        assert ours[key] == pytest.approx(float(value), abs=1e-12), key


def test_the_examples_overlaps() -> None:
    for truth, found, giou, iou in (
        (0, (12, 8, 112, 108), 0.923048, 0.923817),
        (1, (12, 8, 112, 108), -0.652754, 0),
        (1, (148, 152, 252, 250), 0.942264, 0.943033),
        (2, (55, 60, 150, 170), 0.870833, 0.870833),
    ):
        assert reference.giou(TRUTH[truth][2], found) == pytest.approx(giou, abs=5e-7)
        assert reference.iou(TRUTH[truth][2], found) == pytest.approx(iou, abs=5e-7)


def test_a_perfect_answer() -> None:
    ours = cytologia_score(table(TRUTH), table(TRUTH))
    assert (ours["score"], ours["strict_macro_f1"], ours["mean_giou"]) == (1, 1, 1)
    assert (ours["missed_per_image"], ours["surplus_per_image"]) == (0, 0)


def test_no_answer_at_all() -> None:
    ours = cytologia_score(table(TRUTH), table([]))
    assert (ours["score"], ours["giou_term"], ours["macro_f1"], ours["strict_macro_f1"]) == (0, 0, 0, 0)
    assert math.isnan(ours["mean_giou"])
    assert ours["missed_per_image"] == pytest.approx(4 / 3)
    with pytest.raises(DatasetError, match="no truth"):
        cytologia_score(table([]), table(B))


def test_the_edge_rules() -> None:
    def score(found: list[Row]) -> dict[str, float]:
        return cytologia_score(table(TRUTH), table(found))

    # A strange id is nobody's; the name of the image in the answer does not matter.
    assert score([*B, ("99", "a.jpg", (10, 10, 110, 110), "PNN")]) == score(B)
    assert score([*B[:1], ("2", "zzz.jpg", *B[1][2:]), *B[2:]]) == score(B)  # type: ignore[list-item]
    # A later repeat of an id is dropped from the score, but counted strictly.
    again = score([*B, ("1", "a.jpg", (10, 10, 110, 110), "EO")])
    assert again["score"] == score(B)["score"]
    assert again["strict_macro_f1"] < score(B)["strict_macro_f1"]
    assert again["surplus_per_image"] == pytest.approx(1 / 3)
    # Of equal overlap the first is taken.
    here = (10, 10, 110, 110)
    first: list[Row] = [("1", "a.jpg", here, "PNN"), ("2", "a.jpg", here, "EO")]
    second: list[Row] = [("1", "a.jpg", here, "EO"), ("2", "a.jpg", here, "PNN")]
    assert score(first)["macro_f1"] == pytest.approx((2 / 3) / 5)
    assert score(second)["macro_f1"] == 0
    # Surplus findings far away cost nothing.
    more = [*TRUTH, ("5", "c.jpg", (200, 200, 250, 250), "EO")]
    assert cytologia_score(table(more), table([*TRUTH, ("5", "c.jpg", (200, 200, 250, 250), "EO")]))["score"] == 1
    # "None" is one more name, however many truths have it.
    assert score(B[:3])["macro_f1"] == pytest.approx((1 + 2 / 3) / 5)


BOXES = st.tuples(*[st.integers(0, 5)] * 2, *[st.integers(1, 4)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
NAMES = st.sampled_from(["PNN", "LY", "MO", "None"])


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Row], list[Row]]:
    truths: list[Row] = []
    ids: list[tuple[str, str]] = []
    for image in ("a", "b", "c")[: draw(st.integers(1, 3))]:
        for _ in range(draw(st.integers(1, 3))):
            ids.append((str(len(ids)), image))
            truths.append((str(len(truths)), image, draw(BOXES), draw(NAMES)))
    chosen = draw(st.lists(st.sampled_from([*ids, ("x", "a")]), max_size=6))
    return truths, [(number, image, draw(BOXES), draw(NAMES)) for number, image in chosen]


@settings(max_examples=150)
@given(tables())
def test_the_score_as_its_slow_twin(both: tuple[list[Row], list[Row]]) -> None:
    truth, found = both
    twin = reference.challenge_score(exact(truth), exact(found))
    ours = cytologia_score(table(truth), table(found))
    for key, value in twin.items():
        assert ours[key] == pytest.approx(float(value), abs=1e-12), key


@settings(max_examples=40)
@given(tables(), st.integers(0, 2**16))
def test_the_strict_figures_as_their_slow_twin(both: tuple[list[Row], list[Row]], seed: int) -> None:
    random = np.random.default_rng(seed)  # corners that are no whole pixels: no two pairings are equally good
    truth, found = (
        [(i, m, tuple((np.array(b) + random.uniform(0, 0.4, 4)).tolist()), n) for i, m, b, n in rows] for rows in both
    )
    twin = reference.strict_figures(truth, found[:4])
    ours = cytologia_score(table(truth), table(found[:4]))
    for key, value in twin.items():
        assert ours[key] == pytest.approx(value, abs=1e-9, nan_ok=True), key


# -- through cells --------------------------------------------------------------------------------


def as_cells(rows: list[Row], labels: LabelSet = FLAT, scores: list[float] | None = None, **more: Any) -> Cells:
    return Cells.of(
        labels,
        image_id=[row[1] for row in rows],
        boxes=np.array([row[2] for row in rows], float).reshape(-1, 4),
        label=[row[3] for row in rows],
        score=scores or [0.9 - 0.1 * i for i in range(len(rows))],
        source="bundle:test@0",
        **more,
    )


def truth_dataset(labels: LabelSet = FLAT, **more: Any) -> Any:
    boxes: dict[str, Any] = {}
    for _, image, corners, name in TRUTH:
        boxes.setdefault(image, []).append((name, corners))
    sizes = {image: {"width_px": 400, "height_px": 300} for image in boxes}
    return cases.dataset(labels, boxes, images=sizes, **more)


def scored(found: Cells, truth: Any = None, **options: Any) -> Scores:
    truth = truth_dataset() if truth is None else truth
    chosen = EvaluateSettings.model_validate({"bootstrap": 50} | options)
    return evaluate(truth, found, found_images=truth.images, task="cytologia", settings=chosen)


@pytest.mark.parametrize("name", PRINTED)
def test_cells_give_the_same_figures(name: str) -> None:
    rows, _ = PRINTED[name]
    figures = scored(as_cells(rows)).figures
    for key, value in cytologia_score(table(TRUTH), table(rows)).items():
        assert figures[key] == pytest.approx(value, abs=1e-12), key
        low, high = figures[f"{key}_interval"]
        assert low <= high
    assert (figures["truth"], figures["found"], figures["images"]) == (4, len(rows), 3)
    assert figures["expected_counts"] is None


def test_average_precision_is_that_of_detection() -> None:
    truth, found = truth_dataset(), as_cells(B)
    ours = scored(found, truth).figures
    detection = evaluate(truth, found, found_images=truth.images, settings=EvaluateSettings(bootstrap=50)).figures
    for key in ("map50", "map50_95", "map50_interval", "map50_95_interval"):
        assert ours[key] == detection[key] is not None


def test_figures_of_labels() -> None:
    rows = scored(as_cells(B)).figures["per_label"]
    assert list(rows) == ["PNN", "LY", "MO", "EO"]
    assert [rows[k]["f1"] for k in rows] == pytest.approx([1, 2 / 3, 0, 1])
    assert [rows[k]["strict_f1"] for k in rows] == pytest.approx([1, 2 / 3, 0, 1])
    assert (rows["LY"]["truth"], rows["LY"]["found"]) == (1, 2)


def test_only_what_counts_is_handed_in() -> None:
    faint = [True, True, True, False]
    assert scored(as_cells(B, counted=faint)).figures["score"] == pytest.approx(0.410070, abs=5e-7)
    assert scored(as_cells(B, counted=faint)).figures["missed_per_image"] == pytest.approx(1 / 3)


def test_ignored_truths_are_not_scored() -> None:
    truth = truth_dataset(ignore=[False, False, False, True])
    figures = scored(as_cells(B), truth).figures
    assert figures["truth"] == 3
    assert figures["surplus_per_image"] == 0
    twin = reference.challenge_score(exact(TRUTH[:3]), exact(B[:3]))
    assert figures["score"] == pytest.approx(float(twin["score"]), abs=1e-12)


def test_finer_names_roll_up_and_the_unnamed_are_called_by_their_largest_probability() -> None:
    blood = LabelSet.shipped("blood")
    probabilities = np.zeros((4, len(blood.leaves)), np.float32)
    probabilities[0, blood.leaves.index("segmented neutrophil")] = 1
    probabilities[1:, blood.leaves.index("monocyte")] = 1
    found = Cells.of(
        blood,
        image_id=[row[1] for row in B],
        boxes=np.array([row[2] for row in B], float),
        label=["band neutrophil", "small lymphocyte", None, "leukocyte"],
        score=[0.9] * 4,
        probabilities=probabilities,
        source="bundle:test@0",
    )
    rows = scored(found).figures["per_label"]
    assert {name: row["f1"] for name, row in rows.items()} == pytest.approx({"PNN": 1, "LY": 1, "MO": 2 / 3, "EO": 0})


def test_other_names_are_computed_alike_but_said_to_be_no_comparison() -> None:
    bccd = LabelSet.shipped("bccd")
    truth = cases.dataset(bccd, {"a.png": [("WBC", (0, 0, 10, 10)), ("RBC", (20, 0, 30, 10))]})
    found = cases.findings(bccd, {"a.png": [("WBC", (0, 0, 10, 10), 0.9), ("RBC", (20, 0, 30, 10), 0.9)]})
    scores = scored(found, truth)
    assert scores.figures["score"] == 1
    assert any("not the challenge's 23" in note for note in scores.notes)
    assert not any("not the challenge's 23" in note for note in scored(as_cells(B)).notes)


def test_intervals_are_of_resampled_images() -> None:
    random = np.random.default_rng(0)
    names = ["PNN", "LY", "MO"]
    boxes: dict[str, Any] = {f"{i:02d}.png": [(names[i % 3], (10, 10, 60, 60))] for i in range(30)}
    truth = cases.dataset(FLAT, boxes)
    said = [names[i % 3] if random.random() < 0.7 else "EO" for i in range(30)]
    found = as_cells([(str(i), image, (12, 10, 60, 60), said[i]) for i, image in enumerate(boxes)], scores=[0.9] * 30)
    figures = scored(found, truth, bootstrap=400).figures
    low, high = figures["score_interval"]
    assert low < figures["score"] < high
    assert 0.05 < high - low < 0.5
    again = []
    for row in range(60):
        drawn = np.random.default_rng(row).integers(30, size=30)
        ids = [(str(k), f"{k}.png") for k in range(30)]
        ours = [(*ids[k], (10, 10, 60, 60), names[i % 3]) for k, i in enumerate(drawn)]
        theirs = [(*ids[k], (12, 10, 60, 60), said[i]) for k, i in enumerate(drawn)]
        again.append(reference.challenge_score(ours, theirs)["score"])
    assert np.quantile(again, 0.1) > low - 0.03
    assert np.quantile(again, 0.9) < high + 0.03
    assert np.mean(again) == pytest.approx((low + high) / 2, abs=0.05)
    assert "score_interval" not in scored(found, truth, intervals=False).figures


# -- the oracle -----------------------------------------------------------------------------------


def test_expected_counts_are_an_oracle() -> None:
    # a.jpg: three findings, the second best is wrong; b.jpg: one that does not count; c.jpg: none.
    rows = [B[0], ("9", "a.jpg", (300, 10, 340, 60), "MO"), B[1], ("3", "b.jpg", (50, 60, 150, 180), "MO")]
    found = as_cells(rows, scores=[0.9, 0.3, 0.5, 0.2], counted=[True, True, True, False])
    plain, oracle = scored(found), scored(found, expected_counts="truth")
    assert plain.figures["surplus_per_image"] == pytest.approx(1 / 3)
    filled = [
        *B[:2], ("3", "b.jpg", (50, 60, 150, 180), "MO"), ("4", "c.jpg", (0, 0, 400, 300), "LAM3"),
    ]  # fmt: skip
    twin = cytologia_score(table(TRUTH), table(filled))
    for key in ("score", "giou_term", "macro_f1", "strict_macro_f1", "surplus_per_image"):
        assert oracle.figures[key] == pytest.approx(twin[key], abs=1e-12), key
    assert oracle.figures["found"] == 4
    assert oracle.figures["expected_counts"] == "truth"
    assert any("oracle" in note for note in oracle.notes)
    assert not any("oracle" in note for note in plain.notes)


def test_expected_counts_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "test.csv"
    file.write_text("trustii_id,NAME\n1,a.jpg\n2,b.jpg\n3,c.jpg\n")
    figures = scored(as_cells(B), expected_counts=str(file)).figures
    assert figures["found"] == 3
    twin = cytologia_score(table(TRUTH), table([B[0], B[2], B[3]]))
    assert figures["score"] == pytest.approx(twin["score"], abs=1e-12)
    file.write_text("trustii_id,NAME\n1,a.jpg\n")
    with pytest.raises(DatasetError, match=r"says nothing of 2 images: b\.jpg, c\.jpg"):
        scored(as_cells(B), expected_counts=str(file))
    with pytest.raises(FormatError, match="no such file"):
        scored(as_cells(B), expected_counts=str(tmp_path / "no.csv"))


def test_filling_needs_the_size() -> None:
    truth = truth_dataset()
    unknown = type(truth)(truth.images.with_columns(width_px=None), truth.cells)
    with pytest.raises(DatasetError, match=r"c\.jpg: its size is not known"):
        scored(as_cells(C), unknown, expected_counts="truth")


# -- the report -----------------------------------------------------------------------------------


def test_the_report_has_both_scores() -> None:
    truth, found = truth_dataset(), as_cells(B)
    html = report_page(scored(found, truth), truth, found).render()
    for text in ("challenge score S", "0.727", "macro-F1, strict", "strict F1", "Images with the most mistakes", "LY"):
        assert text in html


# -- the submission -------------------------------------------------------------------------------


def asked(folder: Path, text: str = "11,b.jpg\n7,a.jpg\n8,a.jpg\n9,c.jpg\n") -> Path:
    file = folder / "test.csv"
    file.write_text("trustii_id,NAME\n" + text)
    return file


IMAGES = Images.of([{"image_id": f"x/{name}.jpg", "width_px": 400, "height_px": 300} for name in "abc"])


def moved(cells: Cells) -> Cells:
    return cells.with_columns(image_id=["x/" + i for i in cells.frame["image_id"].to_list()])


def test_a_submission_comes_back(tmp_path: Path) -> None:
    rows: list[Row] = [*B[:3], ("4", "c.jpg", (0, 0, 80, 80), "EO")]
    problems = write_submission(moved(as_cells(rows)), IMAGES, asked(tmp_path), tmp_path / "sub.csv")
    assert not list(problems)
    with (tmp_path / "sub.csv").open(newline="") as stream:
        lines = list(csv.reader(stream))
    assert lines == [
        COLUMNS,
        ["11", "b.jpg", "55", "60", "150", "170", "LY"],
        ["7", "a.jpg", "12", "8", "112", "108", "PNN"],
        ["8", "a.jpg", "148", "152", "252", "250", "LY"],
        ["9", "c.jpg", "0", "0", "80", "80", "EO"],
    ]
    back = read_submission(tmp_path / "sub.csv")
    truth = table([("11", *TRUTH[2][1:]), ("7", *TRUTH[0][1:]), ("8", *TRUTH[1][1:]), ("9", *TRUTH[3][1:])])  # type: ignore[list-item]
    assert cytologia_score(truth, back)["score"] == pytest.approx(0.726737, abs=5e-7)
    assert read_test(asked(tmp_path))["trustii_id"].to_list() == ["11", "7", "8", "9"]
    assert expected_counts(asked(tmp_path)) == {"b.jpg": 1, "a.jpg": 2, "c.jpg": 1}


def test_corners_are_rounded_and_clipped(tmp_path: Path) -> None:
    found = as_cells([("1", "a.jpg", (0, 0, 0, 0), "PNN")]).with_boxes([[0.49, 0.5, 399.8, 300.0]])
    write_submission(moved(found), IMAGES, asked(tmp_path, "1,a.jpg\n"), tmp_path / "sub.csv")
    assert read_submission(tmp_path / "sub.csv").row(0) == ("1", "a.jpg", 0, 1, 399, 299, "PNN")


def test_rows_are_filled_in_two_ways(tmp_path: Path) -> None:
    rows = [B[0], ("9", "a.jpg", (300, 10, 340, 60), "MO"), B[1], B[2]]
    found = moved(as_cells(rows, scores=[0.9, 0.3, 0.5, 0.2], counted=[True, False, False, False]))
    test = asked(tmp_path, "1,a.jpg\n2,a.jpg\n3,b.jpg\n4,c.jpg\n5,b.jpg\n")
    problems = write_submission(found, IMAGES, test, tmp_path / "own.csv")
    assert [row[2:] for row in read_submission(tmp_path / "own.csv").rows()] == [
        (12, 8, 112, 108, "PNN"), (12, 8, 112, 108, "PNN"), (0, 0, 399, 299, "PNN"),
        (0, 0, 399, 299, "PNN"), (0, 0, 399, 299, "PNN"),
    ]  # fmt: skip
    assert {problem.kind: problem.what.split()[0] for problem in problems} == {"rows-filled": "4"}
    problems = write_submission(found, IMAGES, test, tmp_path / "oracle.csv", use_expected_counts=True)
    assert [row[2:] for row in read_submission(tmp_path / "oracle.csv").rows()] == [
        (12, 8, 112, 108, "PNN"), (148, 152, 252, 250, "LY"), (55, 60, 150, 170, "LY"),
        (0, 0, 399, 299, "LY"), (0, 0, 399, 299, "LY"),
    ]  # fmt: skip
    assert {problem.kind: problem.what.split()[0] for problem in problems} == {
        "rows-filled": "2",
        "cells-too-many": "1",
    }


def test_cells_that_the_challenge_has_no_class_for(tmp_path: Path) -> None:
    blood = LabelSet.shipped("blood")
    probabilities = np.zeros((3, len(blood.leaves)), np.float32)
    probabilities[1, blood.leaves.index("monocyte")] = 0.4
    probabilities[1, blood.leaves.index("background")] = 0.6
    found = Cells.of(
        blood,
        image_id=["x/a.jpg"] * 3,
        boxes=[[0, 0, 9, 9], [10, 10, 19, 19], [20, 20, 29, 29]],
        label=["erythrocyte", None, "segmented neutrophil"],
        probabilities=probabilities,
        score=[0.9, 0.8, 0.7],
        source="bundle:test@0",
    )
    assert challenge_names(found) == [None, "MO", "PNN"]
    problems = write_submission(found, IMAGES, asked(tmp_path, "1,a.jpg\n2,a.jpg\n"), tmp_path / "sub.csv")
    assert read_submission(tmp_path / "sub.csv")["class"].to_list() == ["MO", "PNN"]
    assert [problem.kind for problem in problems] == ["no-such-class"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trustii_id,NAME\n1,zzz.jpg\n", r"1 of 1 images of .* are not there, or twice: zzz\.jpg"),
        ("trustii_id,NAME\n1,a.jpg\n1,b.jpg\n", "trustii_id is given twice: 1"),
        ("trustii_id,NAME\n1,\n", "empty fields in NAME"),
        ("id,NAME\n1,a.jpg\n", "no column trustii_id; columns there: id, NAME"),
        ("", "not a table of the challenge"),
    ],
)
def test_tables_that_are_not_the_challenges(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "test.csv").write_text(text)
    with pytest.raises(FormatError, match=said):
        write_submission(moved(as_cells(B)), IMAGES, tmp_path / "test.csv", tmp_path / "sub.csv")
    assert not (tmp_path / "sub.csv").exists()


def test_an_image_of_unknown_size_cannot_be_handed_in(tmp_path: Path) -> None:
    unknown = IMAGES.with_columns(height_px=None)
    with pytest.raises(FormatError, match="size of 3 images is not known"):
        write_submission(moved(as_cells(B)), unknown, asked(tmp_path), tmp_path / "sub.csv")


@pytest.mark.data
def test_the_challenges_own_tables(data_root: Path, tmp_path: Path) -> None:
    rows = read_test(data_root / "cytologia" / "test.csv")
    counts = expected_counts(data_root / "cytologia" / "test.csv")
    assert (len(rows), len(counts)) == (22_689, 20_751)
    assert sum(count == 1 for count in counts.values()) == 19_373
    assert sum(count == 2 for count in counts.values()) == 1_110
    names = list(counts)
    images = Images.of([{"image_id": name, "width_px": 360, "height_px": 363} for name in names])
    found = as_cells([("0", name, (10, 20, 200, 210), "PNN") for name in names], scores=[0.9] * len(names))
    problems = write_submission(found, images, data_root / "cytologia" / "test.csv", tmp_path / "sub.csv")
    back = read_submission(tmp_path / "sub.csv")
    assert back.select("trustii_id", "NAME").equals(rows)
    assert next(iter(problems)).what.startswith("1938 of 22689 rows have no cell")
    some = back.head(1000)
    figures = cytologia_score(some.with_columns(pl.col("x1") - 10), some)
    assert figures["macro_f1"] == 1
    assert figures["giou_term"] == pytest.approx((1 + 190 / 200) / 2)


def test_an_unknown_task_names_this_one() -> None:
    with pytest.raises(SettingError, match='Did you mean "cytologia"'):
        evaluate(truth_dataset(), as_cells(B), task="cytology")
