"""Answers side by side: figures as scikit-learn's, and intervals of differences as a slow twin's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.evaluate import EvaluateSettings
from cytolens.evaluate.comparison import Comparison, compare
from cytolens.evaluate.uncertainty import resample_groups
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.problems import DatasetError, SettingError
from cytolens.run.comparison_page import write_page
from tests import reference as slow
from tests.evaluate import cases

FLAT = LabelSet(("a", "b", "c"))
PLAIN = EvaluateSettings(intervals=False)


def place(index: int) -> list[float]:
    """Boxes side by side, none of which overlaps another."""
    return [20.0 * index, 10, 20.0 * index + 16, 40]


def truth_of(names: Sequence[Sequence[str]], groups: Sequence[str] | None = None) -> Dataset:
    """One image for each inner list, with a cell for each name."""
    images = {f"{i}.png": {"group": group} for i, group in enumerate(groups or ())}
    rows: dict[str, Sequence[tuple[str | None, Sequence[float]]]] = {
        f"{i}.png": [(name, place(j)) for j, name in enumerate(inner)] for i, inner in enumerate(names)
    }
    return cases.dataset(FLAT, rows, images=images)


def said(names: Sequence[Sequence[str]]) -> Cells:
    """An answer that found every cell and named it so."""
    rows: dict[str, Sequence[tuple[str | None, Sequence[float], float]]] = {
        f"{i}.png": [(name, place(j), 0.9) for j, name in enumerate(inner)] for i, inner in enumerate(names)
    }
    return cases.findings(FLAT, rows)


def compared(truth: Dataset, baseline: str, options: EvaluateSettings | None = None, **answers: Cells) -> Comparison:
    return compare(truth, {name: (cells, truth.images) for name, cells in answers.items()}, baseline, options)


def row(of: Comparison, name: str) -> Mapping[str, float]:
    rows = {one["name"]: one for one in of.frame.to_dicts()}
    return rows[name]


def drawn(seed: int, images: int = 8, wrong: float = 0.3) -> list[list[list[str]]]:
    """A truth and two answers of cells in images."""
    random = np.random.default_rng(seed)
    truth = [list(random.choice(FLAT.names, random.integers(1, 6), p=[0.5, 0.3, 0.2])) for _ in range(images)]
    answers = [
        [
            [str(random.choice(FLAT.names)) if random.random() < wrong else str(name) for name in inner]
            for inner in truth
        ]
        for _ in range(2)
    ]
    return [[[str(name) for name in inner] for inner in truth], *answers]


def flat(names: Sequence[Sequence[str]]) -> list[str]:
    return [name for inner in names for name in inner]


# -- figures ------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_figures_are_those_of_scikit_learn(seed: int) -> None:
    truth, one, other = drawn(seed)
    result = compared(truth_of(truth), "one", PLAIN, one=said(one), other=said(other))
    present = sorted(set(flat(truth)))
    scores = {}
    for name, answer in (("one", one), ("other", other)):
        f1 = metrics.f1_score(flat(truth), flat(answer), labels=present, average="macro")
        scores[name] = float(f1)
        assert row(result, name)["macro_f1"] == pytest.approx(f1)
        assert row(result, name)["accuracy"] == pytest.approx(metrics.accuracy_score(flat(truth), flat(answer)))
        assert row(result, name)["macro_f1_low"] is None
    assert row(result, "other")["difference"] == pytest.approx(scores["other"] - scores["one"])
    assert row(result, "one")["difference"] == 0
    assert (result.cells, result.baseline, result.unit) == (len(flat(truth)), "one", "image")


@pytest.mark.parametrize("groups", [None, ["p", "p", "q", "r", "q", "s", "t", "s"]])
def test_intervals_are_of_pairs(groups: list[str] | None) -> None:
    """The slow twin writes every resample out, cell by cell, for the same draws."""
    truth, one, other = drawn(7)
    options = EvaluateSettings(bootstrap=60, seed=3)
    dataset = truth_of(truth, groups)
    result = compared(dataset, "one", options, one=said(one), other=said(other))
    keys = groups or [str(i) for i in range(len(truth))]
    weights = resample_groups(keys, 60, 3)
    image = [i for i, inner in enumerate(truth) for _ in inner]
    differences = slow.paired_differences(weights.tolist(), image, flat(truth), flat(other), flat(one))
    assert len(differences) == 60
    expected = [slow.quantile(differences, 0.025), slow.quantile(differences, 0.975)]
    got = row(result, "other")
    assert [got["difference_low"], got["difference_high"]] == pytest.approx(expected, abs=1e-9)
    assert result.unit == ("image" if groups is None else "group")


def test_chance_that_moves_both_alike_does_not_widen_the_interval() -> None:
    """An answer that differs in one cell of many: the difference is known far better than either figure."""
    truth, one, _ = drawn(11, images=20)
    other = [list(inner) for inner in one]
    other[0][0] = "b" if one[0][0] != "b" else "c"
    result = compared(truth_of(truth), "one", EvaluateSettings(bootstrap=200), one=said(one), other=said(other))
    got = row(result, "other")
    assert 0 < got["difference_high"] - got["difference_low"] < (got["macro_f1_high"] - got["macro_f1_low"]) / 3


def test_the_same_answer_makes_no_difference() -> None:
    truth, one, _ = drawn(1)
    result = compared(truth_of(truth), "one", EvaluateSettings(bootstrap=50), one=said(one), again=said(one))
    again = row(result, "again")
    assert [again[name] for name in ("difference", "difference_low", "difference_high")] == [0, 0, 0]
    assert again["macro_f1_low"] < again["macro_f1"] < again["macro_f1_high"]


def test_resampling_many_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, one, other = drawn(5)
    options = EvaluateSettings(bootstrap=120)
    frames = []
    for block in (50, 7):
        monkeypatch.setattr("cytolens.evaluate.comparison._BLOCK", block)
        frames.append(compared(truth_of(truth), "one", options, one=said(one), other=said(other)).frame)
    assert frames[0].equals(frames[1])


# -- what is compared -----------------------------------------------------------------------------------


def test_cells_that_one_answer_lacks_are_left_out_of_all() -> None:
    truth = [["a", "b"], ["a", "c"]]
    part = cases.findings(
        FLAT, {"0.png": [("a", place(0), 0.9)], "1.png": [("b", place(0), 0.9), ("c", place(1), 0.9)]}
    )
    result = compared(truth_of(truth), "all", PLAIN, all=said(truth), part=part)
    assert result.cells == 3
    assert [row(result, name)["matched"] for name in ("all", "part")] == [4, 3]
    assert [row(result, name)["missed"] for name in ("all", "part")] == [0, 1]
    assert row(result, "all")["accuracy"] == 1
    assert row(result, "part")["accuracy"] == pytest.approx(2 / 3)


def test_the_likeliest_name_counts_not_the_cautious_one() -> None:
    """An answer that refers a cell has a name for it all the same: its probabilities say which."""
    truth = truth_of([["a", "b", "c"]])
    table = np.array([[0.5, 0.3, 0.2], [0.4, 0.35, 0.25], [0.1, 0.2, 0.7]])
    cautious = cases.named(truth, FLAT, table).with_columns(label=[None, None, "c"])
    result = compared(truth, "sure", PLAIN, cautious=cautious, sure=said([["a", "a", "c"]]))
    assert row(result, "cautious")["accuracy"] == pytest.approx(2 / 3)
    assert row(result, "cautious")["difference"] == 0


def test_ignored_cells_are_not_compared() -> None:
    truth = truth_of([["a", "b"], ["c", "a"]])
    ignoring = Dataset(truth.images, truth.cells.with_columns(ignore=[False, True, False, False]), "truth")
    result = compared(ignoring, "one", PLAIN, one=said([["a", "c"], ["c", "a"]]))
    assert result.cells == 3
    assert row(result, "one")["accuracy"] == 1


def test_a_truth_that_is_only_a_parent_is_not_compared() -> None:
    """No kind is the right name of a neutrophil of which nobody said the kind."""
    labels = LabelSet.of(["neutrophil", "band neutrophil", "segmented neutrophil", "lymphocyte"])
    truth = cases.dataset(labels, {"0.png": [("neutrophil", place(0)), ("lymphocyte", place(1))]})
    table = np.array([[0.9, 0.1, 0.0], [0.1, 0.1, 0.8]])
    result = compared(truth, "one", PLAIN, one=cases.named(truth, labels, table))
    assert result.cells == 1
    assert [row(result, "one")[name] for name in ("accuracy", "macro_f1", "matched")] == [1, 1, 1]


# -- what cannot be compared ----------------------------------------------------------------------------


def test_answers_of_other_images_are_refused() -> None:
    truth = truth_of([["a"], ["b"], ["c"]])
    everything, part = said([["a"], ["b"], ["c"]]), said([["a"], ["b"]])
    two = Images(truth.images.frame.head(2))
    last = Images(truth.images.frame.tail(2))
    answers = {"all": (everything, truth.images), "part": (part, two)}
    with pytest.raises(DatasetError, match=r"2\.png"):
        compare(truth, answers, "all", PLAIN)
    lenient = EvaluateSettings(intervals=False, missing="ok")
    with pytest.raises(DatasetError, match='the answer "part" is of other images of the truth than "all"'):
        compare(truth, answers, "all", lenient)
    with pytest.raises(DatasetError, match='"last" is of other images'):  # as many, but others
        compare(truth, {"part": (part, two), "last": (said([[], ["b"], ["c"]]), last)}, "part", lenient)
    same = compare(truth, {"part": (part, two), "again": (part, two)}, "part", lenient)
    assert same.cells == 2


def test_a_baseline_is_one_of_the_answers() -> None:
    truth = truth_of([["a"]])
    with pytest.raises(SettingError, match='the baseline "none" is none of the answers: one'):
        compared(truth, "none", PLAIN, one=said([["a"]]))


def test_answers_need_a_cell_in_common() -> None:
    truth = truth_of([["a", "b"]])
    first = cases.findings(FLAT, {"0.png": [("a", place(0), 0.9)]})
    second = cases.findings(FLAT, {"0.png": [("b", place(1), 0.9)]})
    with pytest.raises(DatasetError, match="no named cell of the truth in common"):
        compared(truth, "first", PLAIN, first=first, second=second)


# -- the page ---------------------------------------------------------------------------------------------


def test_the_page_has_every_answer_once(tmp_path: Path) -> None:
    truth, one, other = drawn(2)
    options = EvaluateSettings(bootstrap=40)
    result = compared(truth_of(truth), "one", options, one=said(one), **{"<b>other</b>": said(other)})
    write_page(result, "Which is better", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    got = row(result, "<b>other</b>")
    assert "&lt;b&gt;other" in text
    assert "<b>other" not in text
    assert f"{got['difference']:+.3f} ({got['difference_low']:+.3f} to {got['difference_high']:+.3f})" in text
    assert f"{result.cells} cells that all answers found" in text
    without = compared(truth_of(truth), "one", PLAIN, one=said(one), other=said(other))
    write_page(without, "Which is better", tmp_path / "page.html")  # no intervals, no complaint
