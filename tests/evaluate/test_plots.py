from __future__ import annotations

import io
import sys
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
from PIL import Image

from cytolens.evaluate import plots
from cytolens.evaluate.agreement import coverage_curve, reliability
from cytolens.labels import LabelSet

AWKWARD = ["_hidden", "a$b$ ^_", "Sézary", "<b>&"]


def draw(name: str, kind: plots.Kind) -> bytes:
    rng = np.random.default_rng(0)
    confidence = rng.random(200)
    correct = rng.random(200) < confidence
    if name == "confusion_matrix":
        return plots.confusion_matrix(AWKWARD, [*AWKWARD, "other"], rng.integers(0, 90, (4, 5)), kind=kind)
    if name == "precision_recall":
        recall = np.linspace(0, 1, 101)
        curves = [pl.DataFrame({"label": [n] * 101, "recall": recall, "precision": 1 - recall}) for n in AWKWARD]
        return plots.precision_recall(pl.concat(curves), {AWKWARD[0]: 0.5, AWKWARD[1]: None}, kind=kind)
    if name == "reliability":
        return plots.reliability(reliability(confidence, correct), 0.02, kind=kind)
    if name == "accuracy_against_coverage":
        return plots.accuracy_against_coverage(coverage_curve(confidence, correct), (0.8, 0.6), kind=kind)
    if name == "grouped_bars":
        sides = {"$model": [0.5, None, 1.0, 0.0], "_plain": [0.1, 0.2, 0.3, 0.4]}
        ends = {"$model": [[0.4, 0.6], None, [0.9, 1.0], None], "_plain": [None] * 4}
        return plots.grouped_bars(AWKWARD, sides, ends, "F1", kind=kind)
    return plots.bars(AWKWARD, [0.5, None, 1.0, 0.0], [[0.4, 0.6], None, [0.9, 1.0], None], "F1", kind=kind)


NAMES = ["confusion_matrix", "precision_recall", "reliability", "accuracy_against_coverage", "bars", "grouped_bars"]


@pytest.mark.parametrize("name", NAMES)
def test_png_is_a_picture(name):
    data = draw(name, "png")
    image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert min(image.shape[:2]) > 200
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20
    assert (image[0] == 255).all()  # a white margin: nothing is cut off
    assert (image[:, 0] == 255).all()


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_picture_holds_no_date(kind):
    """PNG: the same bytes each time. SVG: the same but for the random names of its parts."""
    first, second = (draw("bars", kind) for _ in range(2))
    assert len(first) == len(second)
    assert kind == "svg" or first == second
    assert b"date" not in first.lower()


@pytest.mark.parametrize("name", NAMES)
def test_svg_is_well_formed(name):
    root = ElementTree.fromstring(draw(name, "svg"))
    assert root.tag.endswith("svg")


def test_plots_leave_matplotlibs_global_state_alone():
    from matplotlib import rcParams

    before = dict(rcParams)
    pyplot = "matplotlib.pyplot" in sys.modules
    draw("bars", "png")
    assert dict(rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == pyplot


def test_the_confusion_matrix_shows_what_is_right_and_wrong():
    data = plots.confusion_matrix(["a", "b"], ["a", "b"], [[10, 0], [10, 0]])
    image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).reshape(-1, 3)
    green = (image == [10, 74, 69]).all(axis=1).sum()  # the darkest of both scales
    brown = (image == [124, 45, 18]).all(axis=1).sum()
    assert green > 2000
    assert brown > 2000


def test_a_matrix_of_many_labels_grows():
    labels = LabelSet.shipped("cytologia").names
    small = Image.open(io.BytesIO(plots.confusion_matrix(labels[:3], labels[:3], np.eye(3) * 9)))
    large = Image.open(io.BytesIO(plots.confusion_matrix(labels, labels, np.eye(23) * 999)))
    assert large.width > 3 * small.width
    assert large.width / 23 > 60  # px per column at 200 dpi: three digits fit


def test_empty_scores_still_draw():
    none = np.zeros(0)
    assert plots.confusion_matrix([], [], np.zeros((0, 0))).startswith(b"\x89PNG")
    assert plots.bars([], [], [], "F1").startswith(b"\x89PNG")
    assert plots.grouped_bars([], {}, {}, "F1").startswith(b"\x89PNG")
    empty = pl.DataFrame(schema={"label": pl.String, "recall": pl.Float64, "precision": pl.Float64})
    assert plots.precision_recall(empty, {}).startswith(b"\x89PNG")
    assert plots.accuracy_against_coverage(coverage_curve(none, none.astype(bool))).startswith(b"\x89PNG")
    assert plots.reliability(reliability(none, none.astype(bool)), None).startswith(b"\x89PNG")


def test_one_sure_and_right_cell_draws():
    one = np.ones(1)
    assert plots.accuracy_against_coverage(coverage_curve(one, one > 0)).startswith(b"\x89PNG")
