from __future__ import annotations

import json

import numpy as np
import pytest

from cytolens.evaluate import EvaluateSettings, Scores, evaluate
from cytolens.evaluate.scores import figure, plain
from cytolens.labels import LabelSet
from cytolens.problems import Problems
from tests.evaluate import cases

BCCD = LabelSet.shipped("bccd")


def test_plain_is_what_json_can_hold():
    value = {
        "a": np.float32(0.5),
        "b": [np.nan, np.inf, np.int64(3), np.bool_(True)],
        "c": np.array([[1.0, np.nan]]),
        1: ("x", None, False),
    }
    assert plain(value) == {"a": 0.5, "b": [None, None, 3, True], "c": [[1.0, None]], "1": ["x", None, False]}
    with pytest.raises(TypeError, match="set has no place"):
        plain({1})


def test_figure_names_its_interval():
    assert figure("ap50", 0.5, None) == {"ap50": 0.5}
    assert figure("ap50", 0.5, np.linspace(0, 1, 101)) == {"ap50": 0.5, "ap50_interval": pytest.approx([0.025, 0.975])}
    assert figure("ap50", np.nan, np.array([0.1, 0.2])) == {"ap50": None, "ap50_interval": None}
    assert figure("ap50", 0.5, np.array([np.nan])) == {"ap50": 0.5, "ap50_interval": None}


def test_to_json_dict_is_flat():
    problems = Problems()
    problems.add("image-without-partner", "a.png", "is missing.")
    scores = Scores("detection", {"map50": np.nan, "images": 3}, ("a note",), problems)
    assert scores.to_json_dict() == {
        "task": "detection",
        "map50": None,
        "images": 3,
        "notes": ["a note"],
        "problems": problems.to_dicts(),
    }


@pytest.mark.parametrize("task", ["detection", "classification"])
@pytest.mark.parametrize("empty", [True, False])
def test_scores_survive_strict_json(task, empty):
    cells = [] if empty else [("WBC", (0, 0, 10, 10)), ("RBC", (20, 0, 30, 10))]
    truth = cases.dataset(BCCD, {"a.png": cells, "b.png": []})
    scores = evaluate(truth, truth, task=task, settings=EvaluateSettings(bootstrap=20))
    text = json.dumps(scores.to_json_dict(), allow_nan=False)
    assert json.loads(text) == scores.to_json_dict()


def test_the_names_of_the_figures():
    truth = cases.dataset(BCCD, {"a.png": [("WBC", (0, 0, 10, 10))], "b.png": []})
    detection = evaluate(truth, truth, task="detection", settings=EvaluateSettings(bootstrap=20)).to_json_dict()
    headline = {"map50", "map50_95", "precision", "recall", "f1"}
    assert detection.keys() == headline | {f"{name}_interval" for name in headline} | {
        "task", "images", "truth", "found", "iou_min", "interval_unit", "groups", "joined_by", "per_label", "notes",
        "problems",
    }  # fmt: skip
    each = {"ap50", "ap50_95", "precision", "recall", "f1"}
    assert detection["per_label"]["WBC"].keys() == each | {f"{name}_interval" for name in each} | {"truth", "found"}
    names = evaluate(truth, truth, task="classification", settings=EvaluateSettings(bootstrap=20)).to_json_dict()
    headline = {
        "accuracy", "balanced_accuracy", "macro_f1", "accuracy_accepted", "coverage", "kappa", "ece",
    }  # fmt: skip
    assert names.keys() == headline | {f"{name}_interval" for name in headline} | {
        "task", "referred", "confusion", "per_label", "parents", "coverage_curve", "images", "truth", "matched",
        "missed", "iou_min", "interval_unit", "groups", "joined_by", "notes", "problems",
    }  # fmt: skip
    each = {"precision", "recall", "f1"}
    assert names["per_label"]["WBC"].keys() == each | {f"{name}_interval" for name in each} | {"support"}
