from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.evaluate import EvaluateSettings, evaluate
from cytolens.images import Images
from cytolens.labels import LabelSet
from tests import reference_scores as slow
from tests.evaluate import cases

PBC = LabelSet.shipped("pbc")
FLAT = LabelSet(("a", "b", "c"))
PLAIN = EvaluateSettings(intervals=False)


def score(truth, found, **options):
    options = {"intervals": False, **options}
    settings_ = EvaluateSettings(**options)
    return evaluate(truth, found, found_images=truth.images, task="classification", settings=settings_)


def certain(truth, names, labels, **more):
    """Findings in the place of the truths, each wholly sure of a name."""
    table = np.zeros((len(names), len(labels.leaves)))
    table[np.arange(len(names)), [labels.leaves.index(name) for name in names]] = 1
    return cases.named(truth, labels, table, **more)


# -- the worked examples of the CelluScan system ---------------------------------------------------

CELLUSCAN = """
720 4 4 2 0 1 42 3 2 6 0 2 0 86
2 860 0 0 2 0 11 1 2 6 0 0 7 1
2 1 1303 0 1 20 0 14 0 1 67 1 0 1
4 6 1 828 6 3 6 2 1 6 0 5 5 2
1 3 0 3 867 0 1 0 8 0 0 0 4 1
0 2 11 5 0 1666 0 23 0 3 16 0 0 1
66 16 1 9 2 1 594 12 1 169 0 0 60 3
1 2 12 1 2 26 12 928 1 11 22 0 4 0
0 0 0 0 3 0 1 1 912 0 0 0 1 0
12 13 1 13 1 2 143 8 1 597 0 0 151 2
0 3 48 0 1 19 0 12 0 0 1237 0 0 5
1 4 0 7 0 4 0 0 0 0 0 896 1 1
1 21 0 0 0 0 18 4 1 63 0 0 818 0
163 1 2 2 1 0 5 2 5 0 3 0 3 695
"""
CELLUSCAN_F1 = [0.780, 0.941, 0.933, 0.949, 0.977, 0.961, 0.672, 0.913, 0.985, 0.661, 0.927, 0.986, 0.826, 0.827]
CELLUSCAN_LEVEL = (
    "Basophil", "Eosinophil", "Erythroblast", "Immature Granulocyte", "Lymphocyte", "Monocyte", "Myeloblast",
    "Neutrophil", "Platelets",
)  # fmt: skip


@pytest.fixture(scope="module")
def celluscan():
    """The published confusion matrix as 14,530 cells, a hundred to an image."""
    matrix = np.array([[int(n) for n in line.split()] for line in CELLUSCAN.split("\n") if line])
    names = LabelSet.shipped("celluscan").names
    labels = LabelSet(names)  # exclusive classes, as that system had them
    truth, said = (np.repeat(index.ravel(), matrix.ravel()) for index in np.indices(matrix.shape))
    at = np.arange(len(truth))
    image_id = [f"{n // 100:03d}.png" for n in at]
    corner = np.stack([at % 10, at // 10 % 10], axis=1) * 12.0
    boxes = np.concatenate([corner, corner + 10], axis=1)
    images = Images.of([{"image_id": i, "width_px": 200, "height_px": 200} for i in dict.fromkeys(image_id)])
    cells = Cells.of(labels, image_id=image_id, boxes=boxes, label=[names[k] for k in truth], source="human:x")
    dataset = Dataset(images, cells)
    return matrix, names, dataset, certain(dataset, [names[k] for k in said], labels)


def test_the_published_matrix(celluscan):
    matrix, names, truth, found = celluscan
    figures = score(truth, found).figures
    assert figures["confusion"] == {"labels": list(names), "columns": list(names), "matrix": matrix.tolist()}
    assert sum(row["support"] for row in figures["per_label"].values()) == 14_530
    assert figures["accuracy"] == pytest.approx(12_921 / 14_530)
    assert figures["accuracy"] == pytest.approx(0.889264, abs=1e-6)
    assert figures["macro_f1"] == pytest.approx(0.881338, abs=1e-6)
    assert figures["balanced_accuracy"] == pytest.approx(0.8826, abs=5e-5)
    assert [round(figures["per_label"][name]["f1"], 3) for name in names] == CELLUSCAN_F1
    assert figures["ece"] == pytest.approx(1 - figures["accuracy"])
    assert (figures["matched"], figures["missed"], figures["parents"]) == (14_530, 0, {})


def test_the_published_matrix_at_the_level_of_parents(celluscan):
    figures = score(celluscan[2], celluscan[3], level=CELLUSCAN_LEVEL).figures
    assert len(figures["per_label"]) == 9
    assert figures["accuracy"] == pytest.approx(0.9491, abs=5e-5)
    assert figures["macro_f1"] == pytest.approx(0.9509, abs=5e-5)


def test_the_published_matrix_with_its_parents_apart(celluscan):
    """With the tree declared, the two parents leave the figures and are scored by family."""
    matrix, names, truth, _ = celluscan
    tree = LabelSet.shipped("celluscan")
    declared = truth.relabel(tree)
    said = np.repeat(np.indices(matrix.shape)[1].ravel(), matrix.ravel())
    found = cases.named(declared, tree, None, label=[names[k] for k in said], score=np.ones(len(said)))
    figures = score(declared, found).figures
    parents = {"Immature Granulocyte": [4, 6, 9, 12], "Neutrophil": [0, 10, 13]}
    assert figures["parents"] == {
        name: {
            "support": matrix[names.index(name)].sum(),
            "accuracy": matrix[names.index(name), family].sum() / matrix[names.index(name)].sum(),
        }
        for name, family in parents.items()
    }
    leaves = [k for k in range(14) if k not in (4, 10)]
    assert figures["accuracy"] == pytest.approx(np.trace(matrix[leaves][:, leaves]) / matrix[leaves].sum())


# -- against oracles ------------------------------------------------------------------------------

tables = st.integers(1, 25).flatmap(
    lambda n: st.tuples(
        st.lists(st.sampled_from(FLAT.names), min_size=n, max_size=n),
        st.lists(st.lists(st.integers(0, 8), min_size=3, max_size=3).filter(any), min_size=n, max_size=n),
        st.lists(st.booleans(), min_size=n, max_size=n),
    )
)


@given(tables)
@settings(max_examples=30, deadline=None)
def test_figures_equal_scikit_learn(case):
    names, weights, refer = case
    truth = cases.whole_images(names, FLAT)
    probabilities = np.array(weights, float) / np.sum(weights, axis=1, keepdims=True)
    figures = score(truth, cases.named(truth, FLAT, probabilities, refer=refer)).figures
    said = [FLAT.names[k] for k in probabilities.argmax(axis=1)]
    assert figures["accuracy"] == pytest.approx(metrics.accuracy_score(names, said))
    occurring = sorted(set(names))
    macro = metrics.f1_score(names, said, labels=occurring, average="macro", zero_division=0)
    assert figures["macro_f1"] == pytest.approx(macro)
    recall = metrics.recall_score(names, said, labels=occurring, average="macro", zero_division=0)
    assert figures["balanced_accuracy"] == pytest.approx(recall)
    shown = figures["confusion"]["labels"]
    assert shown == [name for name in FLAT.names if name in {*names, *said}]
    whole = metrics.confusion_matrix(names, said, labels=FLAT.names)
    index = [FLAT.names.index(name) for name in shown]
    assert figures["confusion"]["matrix"] == whole[np.ix_(index, index)].tolist()
    for key, one in (("precision", metrics.precision_score), ("recall", metrics.recall_score)):
        for name, other in zip(shown, one(names, said, labels=shown, average=None, zero_division=np.nan), strict=True):
            value = figures["per_label"][name][key]
            assert value is None if np.isnan(other) else value == pytest.approx(other)
    assert [figures["per_label"][name]["support"] for name in shown] == [names.count(name) for name in shown]
    accepted = [(t, s) for t, s, r in zip(names, said, refer, strict=True) if not r]
    assert figures["referred"] == sum(refer)
    assert figures["coverage"] == pytest.approx(len(accepted) / len(names))
    right = None if not accepted else np.mean([t == s for t, s in accepted])
    assert figures["accuracy_accepted"] == (None if right is None else pytest.approx(right))
    confidence = probabilities.astype(np.float32).max(axis=1).astype(float)
    correct = [t == s for t, s in zip(names, said, strict=True)]
    wanted = slow.calibration_error(confidence, correct, np.linspace(0, 1, 16).tolist())
    assert figures["ece"] == pytest.approx(wanted, abs=1e-6)
    for row in figures["coverage_curve"]:
        kept, accuracy, _ = slow.kept_at(confidence, correct, row["coverage"])
        assert (row["kept"], row["accuracy"]) == (kept, pytest.approx(accuracy))


def test_the_coverages_of_the_curve():
    truth = cases.whole_images(["a"] * 10, FLAT)
    probabilities = np.stack([np.linspace(0.4, 0.9, 10), np.zeros(10), np.zeros(10)], axis=1)
    curve = score(truth, cases.named(truth, FLAT, probabilities)).figures["coverage_curve"]
    assert [row["coverage"] for row in curve] == [1.0, 0.95, 0.9, 0.8, 0.7, 0.5]
    assert [row["kept"] for row in curve] == [10, 10, 9, 8, 7, 5]
    assert curve[0]["threshold"] == pytest.approx(0.4)


# -- probabilities, labels and parents ------------------------------------------------------------


def test_probabilities_of_leaves_are_summed_into_the_truths_labels():
    truth = cases.whole_images(["neutrophil", "lymphocyte"], LabelSet.of(["neutrophil", "lymphocyte", "monocyte"]))
    p = {"SNE": 0.3, "BNE": 0.3, "LY": 0.4}
    row = [p.get(leaf, 0.0) for leaf in PBC.leaves]
    scores = score(truth, cases.named(truth, PBC, np.array([row, row]), label=["LY", "LY"]))
    cells = scores.tables["cells"]
    assert cells["predicted"].to_list() == ["neutrophil", "neutrophil"]
    assert cells["confidence"].to_list() == pytest.approx([0.6, 0.6])
    assert scores.figures["accuracy"] == 0.5


def test_what_the_truth_has_no_word_for_counts_as_wrong():
    five = LabelSet.of(["neutrophil", "eosinophil", "basophil", "lymphocyte", "monocyte"])
    truth = cases.whole_images(["neutrophil", "neutrophil", "monocyte"], five)
    p = np.zeros((3, len(PBC.leaves)))
    p[0, [PBC.leaves.index(n) for n in ("PMY", "MY", "SNE")]] = 0.3, 0.3, 0.4  # immature cells: .6 together
    p[1, PBC.leaves.index("BNE")] = 1
    p[2, PBC.leaves.index("MO")] = 1
    scores = score(truth, cases.named(truth, PBC, p, label=["PMY", "BNE", "MO"]))
    assert scores.tables["cells"]["predicted"].to_list() == ["other", "neutrophil", "monocyte"]
    assert scores.figures["accuracy"] == pytest.approx(2 / 3)
    assert scores.figures["confusion"] == {
        "labels": ["neutrophil", "monocyte"],
        "columns": ["neutrophil", "monocyte", "other"],
        "matrix": [[1, 0, 1], [0, 1, 0]],
    }
    assert any("1 matched cells carry a name" in note and "PMY (1)" in note for note in scores.notes)


def test_without_probabilities_the_label_and_its_score_speak():
    truth = cases.whole_images(["a", "b", "c", "c"], FLAT)
    found = cases.named(truth, FLAT, None, label=["a", "c", None, "c"], score=[0.9, 0.6, 0.5, 0.0])
    scores = score(truth, found)
    assert scores.tables["cells"]["predicted"].to_list() == ["a", "c", "other", "c"]
    assert scores.tables["cells"]["confidence"].to_list() == pytest.approx([0.9, 0.6, 0, 0], abs=1e-6)
    assert scores.figures["accuracy"] == 0.5


def test_a_person_needs_no_score():
    truth = cases.whole_images(["a", "b"], FLAT)
    scores = score(truth, cases.named(truth, FLAT, None, label=["a", "a"]))
    assert scores.tables["cells"]["confidence"].to_list() == [1, 1]
    assert scores.figures["kappa"] == 0


def test_truths_that_are_only_a_parent_are_scored_apart():
    truth = cases.whole_images(["SNE", "NEUTROPHIL", "NEUTROPHIL", "NEUTROPHIL", "IG"], PBC)
    p = np.zeros((5, len(PBC.leaves)))
    at = {leaf: k for k, leaf in enumerate(PBC.leaves)}
    p[0, at["SNE"]] = 1
    p[1, [at["SNE"], at["BNE"], at["LY"]]] = 0.3, 0.3, 0.4  # the family wins
    p[2, [at["SNE"], at["EO"]]] = 0.4, 0.6
    p[3, [at["BNE"], at["EO"], at["BA"]]] = 0.4, 0.3, 0.3  # more than any single other
    p[4, [at["PMY"], at["MY"], at["MMY"], at["MO"]]] = 0.2, 0.2, 0.2, 0.4
    figures = score(truth, cases.named(truth, PBC, p)).figures
    assert figures["parents"] == {
        "NEUTROPHIL": {"support": 3, "accuracy": pytest.approx(2 / 3)},
        "IG": {"support": 1, "accuracy": 1.0},
    }
    assert (figures["accuracy"], figures["matched"]) == (1, 5)
    assert list(figures["per_label"]) == ["SNE"]


def test_level_joins_what_is_finer_on_both_sides():
    coarse = ("neutrophil", "eosinophil", "immature granulocyte", "lymphocyte")
    truth = cases.whole_images(["SNE", "NEUTROPHIL", "IG", "LY", "ERB"], PBC)
    found = certain(truth, ["BNE", "SNE", "PMY", "EO", "ERB"], PBC)
    scores = score(truth, found, level=coarse)
    assert scores.figures["accuracy"] == pytest.approx(3 / 4)
    assert scores.figures["parents"] == {}
    assert {n: r["support"] for n, r in scores.figures["per_label"].items()} == {
        "neutrophil": 2,
        "eosinophil": 0,
        "immature granulocyte": 1,
        "lymphocyte": 1,
    }
    assert any("ERB (1)" in note for note in scores.notes)


# -- partners -------------------------------------------------------------------------------------


def test_pairs_do_not_look_at_names():
    truth = cases.dataset(FLAT, {"x.png": [("a", (0, 0, 10, 10)), ("b", (20, 0, 30, 10)), ("c", (40, 0, 50, 10))]})
    found = cases.findings(
        FLAT,
        {"x.png": [("b", (1, 0, 11, 10), 0.9), ("b", (20, 0, 30, 10), 0.8), ("c", (45, 0, 55, 10), 0.9)]},
    )
    figures = score(truth, found).figures
    assert (figures["matched"], figures["missed"], figures["truth"]) == (2, 1, 3)
    assert figures["accuracy"] == 0.5


def test_uncounted_findings_and_ignored_truths_take_no_part():
    truth = cases.dataset(
        FLAT,
        {"x.png": [("a", (0, 0, 10, 10)), ("b", (20, 0, 30, 10)), ("c", (40, 0, 50, 10))]},
        ignore=[False, False, True],
    )
    found = cases.findings(
        FLAT,
        {"x.png": [("a", (0, 0, 10, 10), 0.9), ("b", (20, 0, 30, 10), 0.1), ("a", (40, 0, 50, 10), 0.9)]},
        counted=[True, False, True],
    )
    figures = score(truth, found).figures
    assert (figures["matched"], figures["missed"], figures["accuracy"]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("boxes", "chosen"),
    [
        ([("a", (80, 30, 120, 70), 0.5), ("b", (90, 30, 150, 70), 0.9)], "a"),  # nearest to the centre (100, 50)
        ([("a", (80, 30, 120, 70), 0.5), ("b", (0, 0, 200, 100), 0.4)], "b"),  # the whole image comes first
        ([("a", (90, 40, 99, 60), 0.9), ("b", (60, 0, 160, 100), 0.4)], "b"),  # nearer, but does not hold the centre
        ([("a", (80, 30, 120, 70), 0.5), ("b", (90, 40, 110, 60), 0.6)], "b"),  # equal distance: the surer
    ],
)
def test_an_images_label_belongs_to_the_cell_in_its_middle(boxes, chosen):
    truth = cases.whole_images(["a"], FLAT)
    scores = score(truth, cases.findings(FLAT, {"00000.png": boxes}))
    assert scores.tables["cells"]["predicted"].to_list() == [chosen]
    assert any("1 images carry one label for the whole image" in note for note in scores.notes)


def test_an_images_label_without_a_cell_in_its_middle_is_missed():
    truth = cases.whole_images(["a", "b"], FLAT)
    found = cases.findings(FLAT, {"00000.png": [("a", (0, 0, 40, 40), 0.9)]})
    figures = score(truth, found).figures
    assert (figures["matched"], figures["missed"]) == (0, 2)
    assert figures["accuracy"] is figures["macro_f1"] is figures["ece"] is None
    assert (figures["per_label"], figures["coverage_curve"]) == ({}, [])


def test_the_middle_rule_is_for_single_cells_only():
    whole = (0, 0, *cases.SIZE_WH)
    truth = cases.dataset(FLAT, {"x.png": [("a", whole), ("b", (0, 0, 10, 10))]})
    found = cases.findings(FLAT, {"x.png": [("a", (80, 30, 120, 70), 0.9)]})
    assert score(truth, found).figures["matched"] == 0


# -- intervals ------------------------------------------------------------------------------------


def _figures_of(truth, found, rows):
    """The figures of a data set in which images really occur as often as `rows` says."""
    ids = truth.images.ids
    images, ours, theirs = [], [], []
    for copy, row in enumerate(rows):
        name = f"{copy:04d}.png"
        images.append({"image_id": name, "width_px": 200, "height_px": 100})
        ours.append(truth.cells.of_image(ids[row]).with_columns(image_id=[name], cell_id=[name]))
        theirs.append(found.of_image(ids[row]).with_columns(image_id=[name]))
    again = Dataset(Images.of(images), ours[0].concat(*ours[1:]))
    return score(again, theirs[0].concat(*theirs[1:])).figures


def test_intervals_are_the_percentiles_of_really_resampled_data():
    from cytolens.evaluate.uncertainty import resample_groups

    rng = np.random.default_rng(5)
    names = [str(n) for n in rng.choice(FLAT.names, 15)]
    truth = cases.whole_images(names, FLAT)
    p = rng.dirichlet([1, 1, 1], 15)
    p[np.arange(15), [FLAT.names.index(n) for n in names]] += 0.4
    found = cases.named(truth, FLAT, p / p.sum(axis=1, keepdims=True), refer=rng.random(15) < 0.3)
    figures = score(truth, found, intervals=True, bootstrap=25, seed=9).figures
    resamples = [
        _figures_of(truth, found, np.repeat(np.arange(15), row.astype(int)))
        for row in resample_groups(range(15), 25, 9)
    ]
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "kappa", "ece", "coverage", "accuracy_accepted"):
        wanted = np.quantile([row[name] for row in resamples if row[name] is not None], [0.025, 0.975])
        assert figures[f"{name}_interval"] == pytest.approx(wanted, abs=1e-6), name
    for label in FLAT.names:
        for name in ("precision", "recall", "f1"):
            values = [row["per_label"].get(label, {}).get(name) for row in resamples]
            wanted = np.quantile([v for v in values if v is not None], [0.025, 0.975])
            assert figures["per_label"][label][f"{name}_interval"] == pytest.approx(wanted, abs=1e-6)


def test_parents_have_intervals_too():
    truth = cases.whole_images(["NEUTROPHIL"] * 20 + ["SNE"] * 20, PBC)
    found = certain(truth, ["SNE"] * 14 + ["LY"] * 6 + ["SNE"] * 20, PBC)
    figures = score(truth, found, intervals=True, bootstrap=500).figures
    low, high = figures["parents"]["NEUTROPHIL"]["accuracy_interval"]
    assert low < figures["parents"]["NEUTROPHIL"]["accuracy"] == 0.7 < high
    assert high - low == pytest.approx(4 * np.sqrt(0.7 * 0.3 / 20), rel=0.2)
    assert figures["accuracy_interval"] == [1, 1]
    assert (figures["interval_unit"], figures["groups"]) == ("image", 40)


@pytest.mark.data
def test_pbc_counts(data_root):
    truth = cases.pbc(data_root)
    names = [name if name in PBC.leaves else "SNE" for name in truth.cells.label_names()]
    scores = score(truth, certain(truth, names, PBC))
    assert (scores.figures["images"], scores.figures["matched"]) == (1244, 1244)
    assert {n: r["support"] for n, r in scores.figures["per_label"].items()} == {
        "SNE": 165, "BNE": 168, "EO": 315, "BA": 126, "LY": 111, "MO": 146, "PMY": 47, "MY": 45, "MMY": 45,
        "ERB": 35, "PLATELET": 28,
    }  # fmt: skip
    assert scores.figures["parents"] == {
        "NEUTROPHIL": {"support": 1, "accuracy": 1},
        "IG": {"support": 12, "accuracy": 0},
    }
    assert scores.figures["accuracy"] == 1
