"""Bundles that name whole images, and bundles that leave names out: alone, and in pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cytolens.bundle import Bundle, BundleInfo, write
from cytolens.labels import LabelSet
from cytolens.predict.calibrate import binary_temperature, sure_threshold
from cytolens.predict.ensemble import given_labels, image_logits, image_shares
from cytolens.predict.pipeline import Predictor
from cytolens.predict.session import Classifier
from cytolens.problems import BundleError
from cytolens.tasks.classify import probabilities, sigmoids, with_image
from tests.predict.doubles import NAMES, ColourEyes, FixedNames, both, connect, detecting, naming, painted

WITH_BACKGROUND = (*NAMES, "Background")
LEAVES = ("band neutrophil", "segmented neutrophil", "lymphocyte", "monocyte", "Background")
SIZE_WH = (416, 320)


class FixedLogits:
    """A classifier's session that always answers the same."""

    def __init__(self, *logits: float) -> None:
        self.logits = np.array(logits, np.float32)
        self.shown: list[np.ndarray] = []

    def run(self, outputs: Any, feeds: Any) -> list[np.ndarray]:
        self.shown.append(feeds["images"])
        count = len(feeds["images"])
        return [np.tile(self.logits, (count, 1)), np.zeros((count, 2), np.float32)]


# -- whole images ---------------------------------------------------------------------------------


def test_an_image_becomes_one_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    session = FixedLogits(-3.0, 2.0, 1.0, -4.0)
    connect(monkeypatch, names=session)
    cells = Predictor(naming(tmp_path, outputs="sigmoid", temperature=2.0, sure=0.5)).field(painted((60, 40), []))
    assert cells.boxes.tolist() == [[0, 0, 60, 40]]
    assert session.shown[0].shape == (1, 64, 64, 3)
    raw = 1 / (1 + np.exp(-np.array([-3.0, 2.0, 1.0, -4.0]) / 2))
    assert raw.sum() > 1
    assert cells.probabilities[0] == pytest.approx(raw / raw.sum(), abs=1e-5)
    assert cells.probabilities[0].argmax() == 1


def test_an_image_of_nothing_is_referred(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(monkeypatch, names=FixedLogits(-6.0, -5.0, -7.0, -6.0))
    cells = Predictor(naming(tmp_path, outputs="sigmoid", sure=0.6)).field(painted((60, 40), []))
    assert cells.probabilities[0] == pytest.approx([0.25] * 4, abs=0.01)
    assert cells.refer.tolist() == [True]


def test_it_is_not_asked_about_parts_of_an_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(monkeypatch, names=FixedLogits(0, 0, 0, 0), eyes=ColourEyes())
    whole = naming(tmp_path, outputs="sigmoid")
    part = np.array([[5, 5, 30, 30]], np.float32)
    with pytest.raises(BundleError, match='"names" names whole images; give it no boxes inside them'):
        Predictor(whole).named(painted((60, 40), []), part, np.ones(1, np.float32), np.ones(1, bool))
    with pytest.raises(BundleError, match='pack "both" with a classifier of cells, too'):
        Predictor(both(tmp_path, detecting(tmp_path), whole))


@pytest.mark.parametrize("cells", [1, 2])
def test_it_has_a_say_where_an_image_has_one_cell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cells: int) -> None:
    own, logits = np.array([0.1, 0.2, 0.6, 0.1]), np.array([-2.0, 3.0, 0.5, -4.0])
    connect(monkeypatch, names=FixedNames(own.tolist()), whole=FixedLogits(*logits), eyes=ColourEyes())
    whole = naming(tmp_path, outputs="sigmoid")
    whole = Bundle(tmp_path, whole.info.model_copy(update={"name": "whole"}), whole.hash, {})
    pair = both(tmp_path, detecting(tmp_path), naming(tmp_path), cell_share=0.4)
    three = Bundle(tmp_path, pair.info, pair.hash, {**pair.members, "whole": whole})
    spots = [("leukocyte", 80.0 + 120 * i, 100.0, 30.0) for i in range(cells)]
    found = Predictor(three).field(painted(SIZE_WH, spots))
    assert found.counted.sum() == cells
    mixed = 0.4 * own + 0.6 / (1 + np.exp(-logits))
    expected = own if cells > 1 else mixed / mixed.sum()
    for row in found.probabilities[found.counted]:
        assert row[:4] == pytest.approx(expected, abs=1e-5)  # red cells and platelets follow


def test_blending_with_the_image_is_the_sources_worked_example() -> None:
    """z of cells (2, 1.5, −1), of the image (−0.5, 1, −3), share of the cells 0.457."""
    cell, image = probabilities(np.array([[2.0, 1.5, -1.0]])), sigmoids(np.array([[-0.5, 1.0, -3.0]]))
    plain = np.array([0.480918, 0.564315, 0.039489])
    assert with_image(cell, image, 0.457)[0] == pytest.approx(plain / 1.084722, abs=2e-6)
    assert with_image(cell, image, 1.0)[0] == pytest.approx(cell[0], abs=1e-6)


def test_the_raw_table_of_an_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    session = FixedLogits(-3.0, 2.0, 1.0, -4.0, 0.5)
    bundle = naming(tmp_path, names=WITH_BACKGROUND, outputs="sigmoid", temperature=2.0, leave_out=("Background",))
    assert bundle.labels.leaves == LEAVES
    pixels = painted((60, 40), [])
    own = Classifier(session)
    assert image_logits(bundle, pixels, classifier=own).tolist() == [-3.0, 2.0, 1.0, -4.0, 0.5]
    raw = image_shares(bundle, pixels, classifier=own, choice="flips")
    assert raw.tolist() == pytest.approx([1 / (1 + np.exp(-z / 2)) for z in (-3.0, 2.0, 1.0, -4.0, 0.5)])
    assert len(session.shown) == 1 + 4
    connect(monkeypatch, names=session)
    assert np.array_equal(image_shares(bundle, pixels), raw)
    for other in (naming(tmp_path), both(tmp_path, detecting(tmp_path), bundle)):
        with pytest.raises(BundleError, match="is no classifier of whole images"):
            image_shares(other, pixels, classifier=own)


# -- names that are left out --------------------------------------------------------------------------


def named(patch: pytest.MonkeyPatch, bundle: Bundle, **sessions: Any) -> np.ndarray:
    connect(patch, **sessions)
    predictor = Predictor(bundle)
    cells = predictor.field(painted(SIZE_WH, [("leukocyte", 100, 100, 30)]))
    assert cells.probabilities.shape == (1, len(predictor.labels.leaves))
    return dict(zip(predictor.labels.leaves, cells.probabilities[0].tolist(), strict=True))  # type: ignore[return-value]


def test_a_member_with_one_name_more_speaks_in_a_pipeline_without_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sessions = {"eyes": ColourEyes(), "names": FixedNames([0.1, 0.1, 0.2, 0.1, 0.5])}
    member = naming(tmp_path, names=WITH_BACKGROUND, leave_out=("Background",))
    info = both(tmp_path, detecting(tmp_path), naming(tmp_path)).info
    pipeline = Bundle(tmp_path, info, "abcdef012345", {"eyes": detecting(tmp_path), "names": member})
    table = named(monkeypatch, pipeline, **sessions)
    assert "Background" not in table
    kinds = [table[leaf] for leaf in LEAVES[:4]]
    assert kinds == pytest.approx([0.2, 0.2, 0.4, 0.2], abs=1e-5)
    strict = naming(tmp_path, names=WITH_BACKGROUND)
    with pytest.raises(BundleError, match="names Background, which are no single kinds"):
        Predictor(Bundle(tmp_path, info, "abcdef012345", {"eyes": detecting(tmp_path), "names": strict}))


def test_members_with_and_without_it_are_blended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    more = naming(tmp_path, names=WITH_BACKGROUND, leave_out=("Background",))
    more = Bundle(tmp_path, more.info.model_copy(update={"name": "more"}), "1", {})
    info = both(tmp_path, detecting(tmp_path), naming(tmp_path)).info
    members = {"eyes": detecting(tmp_path), "names": naming(tmp_path), "more": more}
    table = named(
        monkeypatch,
        Bundle(tmp_path, info, "abcdef012345", members),
        eyes=ColourEyes(),
        names=FixedNames([0.1, 0.1, 0.7, 0.1]),
        more=FixedNames([0.05, 0.05, 0.35, 0.05, 0.5]),  # the same without the last
    )
    assert [table[leaf] for leaf in LEAVES[:4]] == pytest.approx([0.1, 0.1, 0.7, 0.1], abs=1e-5)


def test_alone_it_speaks_without_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(monkeypatch, names=FixedNames([0.1, 0.1, 0.2, 0.1, 0.5]))
    bundle = naming(tmp_path, names=WITH_BACKGROUND, leave_out=("Background",))
    predictor = Predictor(bundle)
    assert predictor.labels == given_labels(bundle) == LabelSet.of(NAMES)
    cells = predictor.field(painted((60, 40), []))
    assert cells.probabilities[0] == pytest.approx([0.2, 0.2, 0.4, 0.2], abs=1e-5)


def test_a_bundle_keeps_what_it_leaves_out(tmp_path: Path) -> None:
    info: BundleInfo = naming(tmp_path, names=WITH_BACKGROUND, leave_out=("Background",), outputs="sigmoid").info
    read = Bundle.load(write(tmp_path / "names", info, {}).folder).info.classify_output
    assert read is not None
    assert (read.leave_out, read.outputs) == (("Background",), "sigmoid")


# -- calibration --------------------------------------------------------------------------------------


def test_the_temperature_of_sigmoids_brings_back_what_was_stretched() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (4000, 3))
    presence = (random.random(logits.shape) < sigmoids(logits)).astype(np.int8)
    for factor in (0.5, 1.0, 3.0):
        assert binary_temperature(factor * logits, presence) == pytest.approx(factor, rel=0.06)


@given(
    logits=hnp.arrays(np.float32, (5, 3), elements=st.floats(-5, 5, width=32)),
    presence=hnp.arrays(np.int8, (5, 3), elements=st.integers(-1, 1)).filter(lambda p: (p >= 0).any()),
)
def test_no_other_temperature_of_sigmoids_is_better(logits: np.ndarray, presence: np.ndarray) -> None:
    def loss(temperature: float) -> float:
        table = np.clip(sigmoids(logits, temperature).astype(float), 1e-12, 1 - 1e-7)
        each = np.where(presence == 1, -np.log(table), -np.log(1 - table))
        return float(each[presence >= 0].mean())

    best = loss(binary_temperature(logits, presence))
    assert all(best <= loss(np.exp(power)) + 2e-3 for power in np.linspace(-2.4, 2.4, 25))


def test_where_nothing_is_known_the_temperature_is_one() -> None:
    assert binary_temperature(np.ones((2, 2)), np.full((2, 2), -1)) == 1.0


def test_any_name_of_an_image_of_nothing_is_wrong() -> None:
    labels = LabelSet.of(["lymphocyte", "monocyte"])
    table = np.array([[0.95, 0.05], [0.9, 0.1], [0.7, 0.3]])
    assert sure_threshold(table, ["lymphocyte", "lymphocyte", "lymphocyte"], labels) == 0.4
    assert sure_threshold(table, ["lymphocyte", "lymphocyte", None], labels) == pytest.approx(0.71)
