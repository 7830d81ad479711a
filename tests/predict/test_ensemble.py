"""Several members as one: nothing is added to a single one, and several are put together as their weights say."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from cytolens.bundle import Bundle, BundleInfo, shipped
from cytolens.images import decode_image
from cytolens.labels import LabelSet
from cytolens.predict import ensemble, tta
from cytolens.predict.ensemble import Finders, Namers, given_labels
from cytolens.predict.pipeline import Predictor, PredictSettings
from cytolens.prepare import stain
from cytolens.problems import BundleError
from cytolens.tasks import classify, detect
from cytolens.tasks.classify import ClassifyInput, ClassifyOutput
from cytolens.tasks.detect import DetectInput, DetectOutput, Findings
from tests.predict.doubles import (
    FOUND,
    NAMES,
    ColourEyes,
    FixedFindings,
    FixedNames,
    Pixels,
    connect,
    detecting,
    naming,
    painted,
    rendered,
    scattered,
)

FIELD_WH = (416, 320)  # shown to the detector as it is
FIELD = painted(FIELD_WH, scattered(FIELD_WH, {"leukocyte": (3, 30.0), "erythrocyte": (4, 20.0), "platelet": (2, 8.0)}))
LEAVES = ("band neutrophil", "segmented neutrophil", "lymphocyte", "monocyte")
CELLS = np.array([[10, 10, 60, 60], [200, 100, 260, 160], [5, 200, 40, 240]], np.float32)


def called(name: str, bundle: Bundle) -> Bundle:
    """The same bundle under another name."""
    return Bundle(bundle.folder, bundle.info.model_copy(update={"name": name}), name.ljust(12, "0")[:12], {})


def together(folder: Path, *members: Bundle, **info: Any) -> Bundle:
    """A pipeline of these members; its labels are theirs."""
    names = dict.fromkeys(name for member in reversed(members) for name in given_labels(member).names)
    described = BundleInfo(name="all", task="pipeline", labels=LabelSet.of(names).to_dict(), **info)
    return Bundle(folder, described, "abcdef012345", {member.name: member for member in members})


def look(patch: pytest.MonkeyPatch, bundle: Bundle, choice: tta.Tta = "bundle", **sessions: Any) -> Findings:
    connect(patch, **sessions)
    return Finders(bundle, choice, "cpu").look(FIELD, stain.measure(FIELD))


def shares(
    patch: pytest.MonkeyPatch, bundle: Bundle, choice: tta.Tta = "bundle", **sessions: Any
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    connect(patch, **sessions)
    return Namers(bundle, given_labels(bundle), choice, "cpu").shares(FIELD, CELLS, stain.measure(FIELD))


def same(one: Findings, other: Findings) -> bool:
    return all(np.array_equal(getattr(one, part), getattr(other, part)) for part in ("boxes", "classes", "scores"))


# -- one member -------------------------------------------------------------------------------------


def test_one_detector_and_one_view_is_exactly_the_detector(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is compared with is put together here, from the network's answer; nothing may be fused."""
    monkeypatch.setattr(ensemble, "wbf", None)
    eyes = detecting(tmp_path)
    shown, view = detect.picture(FIELD, DetectInput(side_px=416), stain.measure(FIELD))
    boxes, scores = ColourEyes().run(["boxes", "scores"], {"images": shown[None]})
    plain = detect.findings(boxes[0], scores[0], view, DetectOutput())
    assert len(plain.boxes) == 9
    assert same(look(monkeypatch, eyes, eyes=ColourEyes()), plain)
    assert same(look(monkeypatch, together(tmp_path, eyes, weights={"eyes": 0.3}), eyes=ColourEyes()), plain)
    assert same(look(monkeypatch, eyes, "none", eyes=ColourEyes()), plain)


def test_one_classifier_and_one_view_is_exactly_the_classifier(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ensemble.classify, "blended", None)
    names = naming(tmp_path, temperature=1.7)
    double = FixedNames(lambda pictures: 1 + pictures.mean(axis=(1, 2)) @ np.eye(3, 4), (3.0, 4.0))
    shown = classify.pictures(FIELD, CELLS, ClassifyInput(side_px=64, context=1.25), stain.measure(FIELD))
    logits, embedding = double.run(["logits", "embedding"], {"images": shown})
    for bundle in (names, together(tmp_path, names, weights={"names": 0.3})):
        table, said = shares(monkeypatch, bundle, names=double)
        assert np.array_equal(table, classify.probabilities(logits, 1.7))
        assert np.array_equal(said, embedding)


@pytest.mark.parametrize("name", shipped())
def test_shipped_bundles_find_what_they_have_always_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last digit that another processor may be asked for; on the one they were packed on, to the last bit."""
    monkeypatch.setattr(ensemble, "wbf", None)
    monkeypatch.setattr(ensemble.classify, "blended", None)
    bundle = Bundle.load(name)
    assert bundle.self_test().passed
    predictor = Predictor(bundle, PredictSettings(jobs=1))
    file = bundle.file("exam/expected.parquet")
    assert file is not None
    expected = pl.read_parquet(io.BytesIO(file.read_bytes()))
    compared = 0
    for (picture,), cells in expected.group_by("image_id"):
        pixels = decode_image((bundle.folder / "exam" / str(picture)).read_bytes(), str(picture)).pixels
        found = predictor.field(pixels)
        sure = cells.filter(pl.col("score") >= 0.1)
        rows = found.scores >= 0.1
        assert [found.labels[row] for row in np.flatnonzero(rows)] == sure["label"].cast(pl.String).to_list()
        boxes = sure.select("x_min", "y_min", "x_max", "y_max").to_numpy()
        np.testing.assert_allclose(found.boxes[rows], boxes, atol=1e-2)
        np.testing.assert_allclose(found.scores[rows], sure["score"].to_numpy(), atol=1e-3)
        np.testing.assert_array_equal(found.refer[rows], sure["refer"].to_numpy())
        compared += len(sure)
    assert compared >= 4


# -- several detectors --------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [{}, {"eyes": 0.2, "more": 5.0}])
def test_two_copies_of_a_detector_find_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: dict[str, float]
) -> None:
    eyes = detecting(tmp_path)
    alone = look(monkeypatch, eyes, eyes=ColourEyes())
    twice = together(tmp_path, eyes, called("more", eyes), weights=weights)
    both = look(monkeypatch, twice, eyes=ColourEyes(), more=ColourEyes())
    assert len(both.boxes) == len(alone.boxes) == 9
    order = [np.lexsort(one.boxes.T) for one in (alone, both)]
    np.testing.assert_allclose(both.boxes[order[1]], alone.boxes[order[0]], atol=1e-6)
    np.testing.assert_allclose(both.scores[order[1]], alone.scores[order[0]], atol=1e-6)
    assert np.array_equal(both.classes[order[1]], alone.classes[order[0]])


def test_the_shipped_detector_twice_finds_the_same_cells(tmp_path: Path) -> None:
    """Of the sure ones; two faint boxes of one label that overlap by more than the fusion's limit do become one."""
    detector = Bundle.load("smear-detector")
    copy = Bundle(detector.folder, detector.info.model_copy(update={"name": "more"}), detector.hash, {})
    pixels = rendered(3).pixels
    field = stain.measure(pixels)
    alone, both = (
        Finders(bundle, "none", "cpu").look(pixels, field) for bundle in (detector, together(tmp_path, detector, copy))
    )
    sure = [one.boxes[one.scores >= 0.5] for one in (alone, both)]
    assert len(sure[0]) >= 5
    np.testing.assert_allclose(sure[1][np.lexsort(sure[1].T)], sure[0][np.lexsort(sure[0].T)], atol=1e-3)


def pair(patch: pytest.MonkeyPatch, folder: Path, **info: Any) -> Findings:
    """Two detectors that see one cell a little apart, and of which the first sees another one alone."""
    eyes = detecting(folder)
    first = FixedFindings([[0, 0, 40, 40], [200, 100, 240, 140]], [[0.8, 0, 0], [0.6, 0, 0]])
    second = FixedFindings([[4, 0, 44, 40]], [[0.4, 0, 0]])
    return look(patch, together(folder, eyes, called("more", eyes), **info), eyes=first, more=second)


def test_weights_decide_where_and_how_sure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = pair(monkeypatch, tmp_path, weights={"eyes": 3.0, "more": 1.0})
    # Weighted scores 2.4 and 0.4: the corner lies at 4 · 0.4 / 2.8; the score is (3 · 0.8 + 0.4) / 4.
    assert found.scores == pytest.approx([0.7, 3 * 0.6 / 4])
    assert found.boxes[0] == pytest.approx([4 / 7, 0, 40 + 4 / 7, 40], abs=1e-5)
    assert found.boxes[1] == pytest.approx([200, 100, 240, 140])
    even = pair(monkeypatch, tmp_path)
    assert even.scores == pytest.approx([0.6, 0.3])
    assert even.boxes[0] == pytest.approx([4 / 3, 0, 40 + 4 / 3, 40], abs=1e-5)


def test_the_bundle_says_how_findings_are_fused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    as_one = pair(monkeypatch, tmp_path, fusion={"lists": "one"})
    assert as_one.scores == pytest.approx([0.6, 0.6])  # who lacks a cell does not speak against it
    strict = pair(monkeypatch, tmp_path, fusion={"iou": 0.9})  # 36 / 44 is not enough
    assert sorted(strict.scores.tolist()) == pytest.approx([0.2, 0.3, 0.4])


def test_what_falls_below_the_floor_is_thrown_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output = DetectOutput(score_floor=0.35, thresholds={"leukocyte": 0.1})
    assert pair(monkeypatch, tmp_path, detect_output=output).scores == pytest.approx([0.6])
    fewest = DetectOutput(most=1)
    assert pair(monkeypatch, tmp_path, detect_output=fewest).scores == pytest.approx([0.6])


def test_labels_in_another_order_are_the_same_labels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    eyes = detecting(tmp_path)
    order = ("platelet", "leukocyte", "erythrocyte")
    more = called("more", detecting(tmp_path, names=order))
    twice = together(tmp_path, eyes, more)
    found = look(monkeypatch, twice, eyes=ColourEyes(), more=ColourEyes(names=order))
    alone = look(monkeypatch, eyes, eyes=ColourEyes())
    assert len(found.boxes) == 9  # none is there twice under two names
    assert found.scores == pytest.approx(0.9)
    order_of = [np.lexsort(one.boxes.T) for one in (alone, found)]
    assert np.array_equal(found.classes[order_of[1]], alone.classes[order_of[0]])
    # The other way round the names are the other detector's.
    connect(monkeypatch, eyes=ColourEyes(), more=ColourEyes(names=order))
    turned = Finders(together(tmp_path, more, eyes), "bundle", "cpu")
    assert turned.names == order
    again = turned.look(FIELD, stain.measure(FIELD))
    assert sorted(turned.names[i] for i in again.classes) == sorted(FOUND[i] for i in alone.classes)


def test_other_labels_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(monkeypatch, eyes=ColourEyes(), more=ColourEyes())
    more = called("more", detecting(tmp_path, names=("leukocyte", "erythrocyte")))
    with pytest.raises(BundleError, match="find the same labels; more finds others"):
        Finders(together(tmp_path, detecting(tmp_path), more), "bundle", "cpu")


# -- views of a field ---------------------------------------------------------------------------------


class FirstLook:
    """Finds a cell at a fixed place of the first picture only, and nothing in later ones."""

    def __init__(self, box: Sequence[float]) -> None:
        self.box, self.looks = box, 0

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Pixels]) -> list[NDArray[np.float32]]:
        self.looks += 1
        corners = np.array([self.box], np.float32) if self.looks == 1 else np.zeros((0, 4), np.float32)
        return [corners[None], np.tile(np.array([0.8, 0, 0], np.float32), (1, len(corners), 1))]


@pytest.mark.parametrize(("choice", "views"), [("none", 1), ("flip", 2), ("flips", 4), ("all", 8)])
def test_a_cell_seen_in_one_view_of_several_is_less_sure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, choice: tta.Tta, views: int
) -> None:
    eyes = FirstLook([20, 30, 80, 90])
    found = look(monkeypatch, detecting(tmp_path), choice, eyes=eyes)
    assert eyes.looks == views
    assert found.boxes == pytest.approx(np.array([[20, 30, 80, 90]]))
    assert found.scores == pytest.approx([0.8 / views])


def test_a_view_is_turned_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same place of each view is another place of the field: each of the four flips gives a box of its own."""
    found = look(monkeypatch, detecting(tmp_path), "flips", eyes=FixedFindings([[20, 30, 80, 90]], [[0.8, 0, 0]]))
    places = {tuple(corners) for corners in found.boxes.round(3).tolist()}
    assert places == {(20, 30, 80, 90), (336, 30, 396, 90), (20, 230, 80, 290), (336, 230, 396, 290)}
    assert found.scores == pytest.approx([0.2] * 4)


def test_views_of_a_member_share_its_weight(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A detector with four views against one with a single view: each has half of the say."""
    eyes, more = detecting(tmp_path, views=4), called("more", detecting(tmp_path))
    nothing = FixedFindings(np.zeros((0, 4)), np.zeros((0, 3)))
    nothing.run = lambda outputs, feeds: [np.zeros((1, 0, 4), np.float32), np.zeros((1, 0, 3), np.float32)]  # type: ignore[method-assign]
    only_first = look(monkeypatch, together(tmp_path, eyes, more), eyes=ColourEyes(0.8), more=nothing)
    # Each cell is in four lists of five, of which each weighs 1/4; the fifth weighs 1: 0.8 · (4/4) / 2, by the
    # count of lists 4 of 5 boxes of mean weighted score 0.2 give 0.2 · 4 / 2.
    assert only_first.scores == pytest.approx([0.4] * 9, abs=1e-6)
    only_second = look(monkeypatch, together(tmp_path, eyes, more), eyes=nothing, more=ColourEyes(0.8))
    assert only_second.scores == pytest.approx([0.4] * 9, abs=1e-6)


# -- several classifiers --------------------------------------------------------------------------------


def test_two_copies_of_a_classifier_say_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = naming(tmp_path, temperature=1.3)
    double = FixedNames(lambda pictures: 1 + pictures.mean(axis=(1, 2)) @ np.eye(3, 4), (3.0, 4.0))
    alone, _ = shares(monkeypatch, names, names=double)
    for weights in ({}, {"names": 0.2, "more": 5.0}):
        twice = together(tmp_path, names, called("more", names), weights=weights)
        both, embedding = shares(monkeypatch, twice, names=double, more=double)
        np.testing.assert_allclose(both, alone, atol=1e-6)
        assert embedding.tolist() == [[3.0, 4.0]] * 3


def test_the_shipped_classifier_twice_is_the_shipped_classifier(tmp_path: Path) -> None:
    bundle = Bundle.load("wbc-classifier")
    other = Bundle(bundle.folder, bundle.info.model_copy(update={"name": "more"}), bundle.hash, {})
    pixels = rendered(3).pixels
    boxes = np.array([[100, 80, 220, 200], [200, 150, 330, 280]], np.float32)
    field = stain.measure(pixels)
    alone, _ = Namers(bundle, given_labels(bundle), "bundle", "cpu").shares(pixels, boxes, field)
    twice = Namers(together(tmp_path, bundle, other), given_labels(bundle), "bundle", "cpu")
    both, _ = twice.shares(pixels, boxes, field)
    np.testing.assert_allclose(both, alone, atol=1e-6)


tables = hnp.arrays(np.float64, (3, 5, 4), elements=st.floats(-8, 8))


# No logit lies so far below another that its probability would be taken for the least there is.
@settings(max_examples=40)
@given(tables, st.floats(0.65, 5), st.floats(0.2, 5))
def test_blending_is_the_softmax_of_the_mean_of_logits(
    logits: NDArray[np.float64], temperature: float, warmth: float
) -> None:
    """At equal temperatures; scipy's softmax is the oracle."""
    from scipy.special import softmax

    members = [classify.probabilities(one, temperature) for one in logits]
    weights = [1.0, 2.0, 0.5]
    mean = np.tensordot(np.array(weights) / sum(weights), logits, axes=1)
    expected = softmax(mean / temperature / warmth, axis=1)
    np.testing.assert_allclose(classify.blended(members, weights, warmth), expected, atol=2e-5)


def test_classifiers_are_weighed_as_the_bundle_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = naming(tmp_path)
    one, other = FixedNames([0.1, 0.1, 0.2, 0.6]), FixedNames([0.1, 0.1, 0.6, 0.2])
    bundle = together(
        tmp_path,
        names,
        called("more", names),
        weights={"names": 3.0, "more": 1.0},
        classify_output=ClassifyOutput(temperature=2.0),
    )
    table, _ = shares(monkeypatch, bundle, names=one, more=other)
    # Lymphocyte against monocyte: odds 1/3 with weight 3/4, odds 3 with weight 1/4, and the root for temperature 2.
    odds = ((1 / 3) ** 0.75 * 3**0.25) ** 0.5
    assert table[0, 2] / table[0, 3] == pytest.approx(odds, rel=1e-4)
    assert table.sum(axis=1) == pytest.approx(1)


def test_names_in_another_order_and_names_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = naming(tmp_path)
    turned = called(
        "more", naming(tmp_path, names=("monocyte", "lymphocyte", *NAMES[:4], "debris"), leave_out=("debris",))
    )
    assert given_labels(turned).leaves == ("monocyte", "lymphocyte", "band neutrophil", "segmented neutrophil")
    one = FixedNames([0.1, 0.2, 0.3, 0.4])
    other = FixedNames([0.2, 0.15, 0.05, 0.1, 0.5])  # the half that is left out goes to the others
    table, _ = shares(monkeypatch, together(tmp_path, names, turned), names=one, more=other)
    leaves = given_labels(together(tmp_path, names, turned)).leaves
    told = dict(zip(leaves, table[0].tolist(), strict=True))
    expected = {"band neutrophil": 0.1, "segmented neutrophil": 0.2, "lymphocyte": 0.3, "monocyte": 0.4}
    assert told == pytest.approx(expected, abs=1e-5)


def test_a_name_that_the_pipeline_lacks_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(monkeypatch, names=FixedNames([1.0] * 5), more=FixedNames([1.0] * 5))
    more = called("more", naming(tmp_path, names=(*NAMES, "blast")))
    with pytest.raises(BundleError, match=r'"more" names blast, which are no single kinds .* pack the pipeline again'):
        Namers(together(tmp_path, naming(tmp_path), more), naming(tmp_path).labels, "bundle", "cpu")
