"""Detect, crop, classify: one field, with sessions whose answers are known, and with the shipped models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytolens import boxes as box
from cytolens import match
from cytolens.bundle import Bundle
from cytolens.labels import LabelSet
from cytolens.predict.familiarity import FILE, Familiarity
from cytolens.predict.field_cells import FieldCells
from cytolens.predict.pipeline import Predictor, PredictSettings
from cytolens.predict.session import session
from cytolens.prepare.stain import StainSettings
from cytolens.problems import BundleError, SettingError
from cytolens.tasks.classify import ClassifyInput, ClassifyOutput
from tests.predict.doubles import (
    NAMES,
    SMALL,
    ColourEyes,
    FixedFindings,
    FixedNames,
    both,
    connect,
    detecting,
    naming,
    painted,
    rendered,
    scattered,
)

FIELD_WH = (416, 320)  # a multiple of 32 and as long as the detector's input: it is shown as it is
DISCS = [("leukocyte", 100.0, 100.0, 30.0), ("erythrocyte", 250.0, 80.0, 20.0), ("platelet", 330.0, 250.0, 6.0)]
LEAVES = ("band neutrophil", "segmented neutrophil", "lymphocyte", "monocyte")


def shares(**given: float) -> list[float]:
    """Probabilities over the leaves of NAMES."""
    named = {name.replace("_", " "): share for name, share in given.items()}
    assert set(named) <= set(LEAVES)
    return [named.get(leaf, 0.0) for leaf in LEAVES]


def predictor(patch: pytest.MonkeyPatch, bundle: Bundle, settings: PredictSettings | None = None, **sessions: Any):
    connect(patch, **sessions)
    return Predictor(bundle, settings)


def by_name(cells: FieldCells) -> dict[str | None, int]:
    """Row of each label that occurs once."""
    assert len(set(cells.labels)) == len(cells.labels)
    return {name: row for row, name in enumerate(cells.labels)}


def because(cells: FieldCells) -> dict[str, int]:
    """How many cells were referred for which reason."""
    assert np.array_equal(cells.refer, np.any([np.zeros(len(cells.boxes), bool), *cells.reasons.values()], axis=0))
    return {reason: int(which.sum()) for reason, which in cells.reasons.items()}


# -- the detector alone ---------------------------------------------------------------------------


def test_a_detector_alone_gives_its_own_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    eyes = predictor(monkeypatch, detecting(tmp_path), eyes=ColourEyes())
    cells = eyes.field(painted(FIELD_WH, DISCS))
    rows = by_name(cells)
    assert set(rows) == {"leukocyte", "erythrocyte", "platelet"}
    for name, x, y, radius in DISCS:
        assert cells.boxes[rows[name]] == pytest.approx([x - radius, y - radius, x + radius, y + radius], abs=1)
    assert cells.scores == pytest.approx(0.9)
    assert cells.counted.all()
    assert not cells.refer.any()
    assert np.isnan(cells.probabilities).all()
    assert cells.probabilities.shape == (3, 3)
    assert because(cells) == {}


def test_a_threshold_of_its_own_for_each_label(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    boxes = [[0, 0, 40, 40], [100, 0, 140, 40], [200, 0, 240, 40], [300, 0, 340, 40]]
    scores = [[0.6, 0, 0], [0.59, 0, 0], [0, 0.3, 0], [0, 0, 0.49]]
    bundle = detecting(tmp_path, thresholds={"leukocyte": 0.6, "erythrocyte": 0.3})
    eyes = predictor(monkeypatch, bundle, eyes=FixedFindings(boxes, scores))
    cells = eyes.field(painted(FIELD_WH, []))
    counted = {tuple(b): bool(c) for b, c in zip(cells.boxes.tolist(), cells.counted, strict=True)}
    assert [counted[tuple(map(float, b))] for b in boxes] == [True, False, True, False]


def test_an_empty_field_has_no_cells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle = both(tmp_path, detecting(tmp_path), naming(tmp_path))
    names = FixedNames(shares(monocyte=1))
    cells = predictor(monkeypatch, bundle, eyes=ColourEyes(), names=names).field(painted(FIELD_WH, []))
    assert cells.boxes.shape == (0, 4)
    assert cells.probabilities.shape == (0, 6)
    assert (cells.labels, because(cells), cells.remarks) == ([], {}, ())
    assert names.shown == []


@pytest.mark.parametrize("size_wh", [(1, 1), (1, 3000), (3000, 1), (17, 9)])
def test_pictures_of_any_shape_are_looked_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size_wh: tuple[int, int]
) -> None:
    eyes = predictor(monkeypatch, detecting(tmp_path, red_cell_px=60), eyes=ColourEyes())
    assert len(eyes.field(painted(size_wh, [])).boxes) == 0
    alone = predictor(monkeypatch, naming(tmp_path), names=FixedNames(shares(monocyte=1)))
    assert alone.field(painted(size_wh, [])).labels == ["monocyte"]


# -- both -----------------------------------------------------------------------------------------


def test_the_classifier_names_counted_leukocytes_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    boxes = [[80, 80, 140, 140], [200, 80, 260, 140], [20, 200, 60, 240]]
    findings = FixedFindings(boxes, [[0.9, 0, 0], [0.4, 0, 0], [0, 0.8, 0]])
    names = FixedNames(shares(monocyte=0.97, lymphocyte=0.03))
    bundle = both(tmp_path, detecting(tmp_path), naming(tmp_path))
    pipeline = predictor(monkeypatch, bundle, eyes=findings, names=names)
    cells = pipeline.field(painted(FIELD_WH, []))
    assert [len(one) for one in names.shown] == [1]
    assert cells.labels == ["monocyte", "erythrocyte", "leukocyte"]  # the faint one keeps what the detector said
    assert cells.counted.tolist() == [True, True, False]
    assert cells.scores == pytest.approx([0.9, 0.8, 0.4])  # the detector's
    assert np.isnan(cells.probabilities[1:]).all()
    told = dict(zip(pipeline.labels.leaves, cells.probabilities[0].tolist(), strict=True))
    assert told["monocyte"] == pytest.approx(0.97, abs=1e-4)
    assert told["lymphocyte"] == pytest.approx(0.03, abs=1e-4)
    assert told["erythrocyte"] == told["platelet"] == 0


def test_the_classifier_sees_the_cell_in_the_middle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = FixedNames(shares(monocyte=1))
    bundle = both(tmp_path, detecting(tmp_path), naming(tmp_path, context=2.0))
    predictor(monkeypatch, bundle, eyes=ColourEyes(), names=names).field(painted(FIELD_WH, DISCS))
    (shown,) = names.shown[0]
    assert shown.shape == (64, 64, 3)
    coloured = shown.astype(int).max(axis=2) - shown.min(axis=2) > 60
    columns, rows = np.flatnonzero(coloured.any(axis=0)), np.flatnonzero(coloured.any(axis=1))
    # The disc takes half of the side and stands in the middle.
    for inside in (columns, rows):
        assert (inside[0], inside[-1]) == (pytest.approx(16, abs=1), pytest.approx(47, abs=1))


def test_a_cell_the_detector_tells_apart_itself_is_less_believed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The classifier wavers between platelet and lymphocyte; the detector, which knows platelets, said leukocyte."""
    classifier = naming(tmp_path, names=["leukocyte", "lymphocyte", "monocyte", "platelet"], elsewhere=0.1, sure=0.8)
    bundle = both(tmp_path, detecting(tmp_path), classifier)
    names = FixedNames([0.3, 0.1, 0.6])  # lymphocyte, monocyte, platelet
    pipeline = predictor(monkeypatch, bundle, eyes=ColourEyes(), names=names)
    cells = pipeline.field(painted(FIELD_WH, DISCS[:1]))
    told = dict(zip(pipeline.labels.leaves, cells.probabilities[0].tolist(), strict=True))
    # 0.3, 0.1 and 0.6 · 0.1, over their sum 0.46
    assert told == pytest.approx({"lymphocyte": 30 / 46, "monocyte": 10 / 46, "platelet": 6 / 46, "erythrocyte": 0})
    assert cells.labels == ["leukocyte"]  # 40 / 46 are leukocytes
    assert cells.refer.tolist() == [True]
    assert because(cells) == {"unsure name": 1}
    alone = predictor(monkeypatch, classifier, names=names)
    assert alone.field(painted((80, 80), [])).probabilities[0] == pytest.approx([0.3, 0.1, 0.6])


# -- referral -------------------------------------------------------------------------------------


def test_an_unsure_name_is_the_sure_ancestor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle = both(tmp_path, detecting(tmp_path), naming(tmp_path, sure=0.8))
    cases = {
        "segmented neutrophil": (shares(segmented_neutrophil=0.85, band_neutrophil=0.15), False),
        "neutrophil": (shares(segmented_neutrophil=0.5, band_neutrophil=0.4, lymphocyte=0.1), False),
        "leukocyte": (shares(segmented_neutrophil=0.5, lymphocyte=0.5), True),
    }
    for expected, (said, refer) in cases.items():
        pipeline = predictor(monkeypatch, bundle, eyes=ColourEyes(), names=FixedNames(said))
        cells = pipeline.field(painted(FIELD_WH, DISCS[:1]))
        assert cells.labels == [expected]
        assert cells.refer.tolist() == [refer]
        assert because(cells) == ({"unsure name": 1} if refer else {})


def test_the_temperature_of_the_bundle_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    warm = predictor(
        monkeypatch, naming(tmp_path, temperature=2.0), names=FixedNames(shares(monocyte=0.8, lymphocyte=0.2))
    )
    table = warm.field(painted((64, 64), [])).probabilities[0]
    # Logits halved: the odds 4 become 2.
    assert table[LEAVES.index("monocyte")] / table[LEAVES.index("lymphocyte")] == pytest.approx(2, rel=1e-3)


def with_familiarity(folder: Path, limit: float) -> Bundle:
    """A classifier whose training cells lie about the origin."""
    plain = naming(folder)
    origin = Familiarity(np.zeros(2, np.float32), np.eye(2, dtype=np.float32), np.zeros((1, 2), np.float32), limit)
    (folder / FILE).write_bytes(origin.to_bytes())
    return Bundle(folder, plain.info.model_copy(update={"files": {FILE: "0"}}), plain.hash, {})


def test_a_stranger_is_referred_however_sure_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle = both(tmp_path, detecting(tmp_path), with_familiarity(tmp_path, limit=3.0))
    field = painted(FIELD_WH, [*DISCS, ("leukocyte", 250.0, 250.0, 25.0)])
    for embedding, strange in (((2.0, 2.0), False), ((20.0, 0.0), True)):
        names = FixedNames(shares(monocyte=1), embedding)
        cells = predictor(monkeypatch, bundle, eyes=ColourEyes(), names=names).field(field)
        monocytes = [name == "monocyte" for name in cells.labels]
        assert sum(monocytes) == 2
        assert cells.refer.tolist() == [m and strange for m in monocytes]
        assert because(cells) == ({"unlike training cells": 2} if strange else {})


def test_a_strange_field_refers_the_cells_that_were_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle = both(
        tmp_path, detecting(tmp_path), naming(tmp_path), field_ranges={"background": (0, 200), "empty": (0, 1)}
    )
    names = FixedNames(shares(monocyte=1))
    pipeline = predictor(monkeypatch, bundle, eyes=ColourEyes(), names=names)
    cells = pipeline.field(painted(FIELD_WH, DISCS))
    assert cells.remarks == ("background 240.00 (training: 0.00 to 200.00)",)
    assert cells.refer.tolist() == [name == "monocyte" for name in cells.labels]
    assert because(cells) == {"unlike training fields": 1}
    assert pipeline.field(painted(FIELD_WH, DISCS, background=190)).remarks == ()


# -- the classifier alone -------------------------------------------------------------------------


def test_without_a_detector_the_image_is_one_cell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = FixedNames(shares(lymphocyte=0.95, monocyte=0.05))
    cells = predictor(monkeypatch, naming(tmp_path), names=names).field(painted((90, 70), DISCS[:1]))
    assert cells.boxes.tolist() == [[0, 0, 90, 70]]
    assert cells.labels == ["lymphocyte"]
    assert cells.scores == pytest.approx([0.95], abs=1e-4)  # how sure the name is
    assert (cells.counted.tolist(), cells.refer.tolist()) == ([True], [False])
    assert names.shown[0].shape == (1, 64, 64, 3)


# -- tiles ----------------------------------------------------------------------------------------

LARGE_WH = (1700, 1500)
MANY = scattered(LARGE_WH, {"leukocyte": (12, 18.0), "erythrocyte": (60, 12.0), "platelet": (10, 6.0)}, seed=3)


def boxes_of(discs: list[tuple[str, float, float, float]]) -> np.ndarray:
    return np.array([[x - r, y - r, x + r, y + r] for _, x, y, r in discs])


def assert_found_exactly(cells: FieldCells, discs: list[tuple[str, float, float, float]], within_px: float) -> None:
    table = box.iou(boxes_of(discs), cells.boxes)
    assert len(cells.boxes) == len(discs)
    assert sorted(table.argmax(axis=1)) == list(range(len(discs)))
    assert [cells.labels[i] for i in table.argmax(axis=1)] == [name for name, *_ in discs]
    assert np.abs(boxes_of(discs) - cells.boxes[table.argmax(axis=1)]).max() < within_px


def test_tiles_of_a_given_size_find_every_cell_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    eyes = ColourEyes()
    settings = PredictSettings(tile_px=416)
    cells = predictor(monkeypatch, detecting(tmp_path), settings, eyes=eyes).field(painted(LARGE_WH, MANY))
    assert_found_exactly(cells, MANY, within_px=1.5)
    assert set(eyes.shown) == {(1, 416, 416, 3)}
    assert len(eyes.shown) == 6 * 5  # a tile moves on by 312 px at most


def test_red_cells_are_the_ruler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Red cells of 24 px that should be 48: tiles of half the input's side, however large the image."""
    size_wh = (1500, 400)
    discs = scattered(size_wh, {"leukocyte": (4, 18.0), "erythrocyte": (170, 12.0), "platelet": (4, 6.0)}, seed=3)
    eyes = ColourEyes()
    cells = predictor(monkeypatch, detecting(tmp_path, red_cell_px=48), eyes=eyes).field(painted(size_wh, discs))
    assert_found_exactly(cells, discs, within_px=1.5)
    tiles = [shape for shape in eyes.shown if shape == (1, 416, 416, 3)]
    # Tiles of 208 px, or nearly (the ruler is read from pixels), move on by three quarters of that: 10 times 3.
    assert 27 <= len(tiles) <= 33


def test_a_known_scale_needs_no_ruler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """7.5 µm at 0.3125 µm per px are 24 px."""
    eyes = ColourEyes()
    bundle = detecting(tmp_path, red_cell_px=24)
    pipeline = predictor(monkeypatch, bundle, eyes=eyes)
    cells = pipeline.field(painted(LARGE_WH, MANY), um_per_px=7.5 / 24)
    assert len(eyes.shown) == 6 * 5  # tiles of 416, without a look beforehand
    assert_found_exactly(cells, MANY, within_px=1.5)
    eyes.shown.clear()
    pipeline.field(painted(LARGE_WH, MANY), um_per_px=7.5 / 110)  # red cells would be 110 px wide: no tiles
    assert len(eyes.shown) == 1


def test_a_usual_field_is_looked_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    eyes = ColourEyes()
    pipeline = predictor(monkeypatch, detecting(tmp_path, red_cell_px=60), eyes=eyes)
    pipeline.field(painted((1400, 1000), []))
    assert [shape[1:3] for shape in eyes.shown] == [(320, 416)]
    eyes.shown.clear()
    predictor(monkeypatch, detecting(tmp_path), eyes=eyes).field(painted((1500, 1000), []))
    assert len(eyes.shown) == 1  # a detector that does not know its red cells has no ruler


def test_large_cells_in_a_large_image_need_no_tiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    discs = scattered(LARGE_WH, {"erythrocyte": (12, 100.0)}, seed=1)  # 200 px of 1700 are 49 px of 416
    eyes = ColourEyes()
    cells = predictor(monkeypatch, detecting(tmp_path, red_cell_px=48), eyes=eyes).field(painted(LARGE_WH, discs))
    assert len(eyes.shown) == 2  # the look for the ruler, and the look
    assert_found_exactly(cells, discs, within_px=5)


# -- what cannot predict --------------------------------------------------------------------------


def test_a_bundle_that_can_do_nothing_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    empty = Bundle(tmp_path, both(tmp_path, detecting(tmp_path), naming(tmp_path)).info, "0", {})
    with pytest.raises(BundleError, match='"both" has neither a detector nor a classifier'):
        predictor(monkeypatch, empty)


def test_a_classifier_that_names_what_the_bundle_does_not_know_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = both(tmp_path, detecting(tmp_path), naming(tmp_path))
    narrow = bundle.info.model_copy(update={"labels": LabelSet.of(["leukocyte", "erythrocyte", "platelet"]).to_dict()})
    with pytest.raises(BundleError, match=r"band neutrophil.*pack the pipeline again"):
        predictor(monkeypatch, Bundle(tmp_path, narrow, "0", bundle.members), eyes=ColourEyes(), names=None)


def test_a_device_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loaded = Bundle.load("smear-detector")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(SettingError, match='"gpu" is not known; allowed: cpu, cuda, openvino'):
        Predictor(loaded, PredictSettings(device="gpu"))
    with pytest.raises(SettingError, match='"cuda" is not in this installation of onnxruntime; here: cpu'):
        Predictor(loaded, PredictSettings(device="cuda"))
    with pytest.raises(BundleError, match=r"has no model\.onnx"):
        session(detecting(tmp_path))


def test_a_network_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no network")
    plain = detecting(tmp_path)
    broken = Bundle(tmp_path, plain.info.model_copy(update={"files": {"model.onnx": "0"}}), "0", {})
    with pytest.raises(BundleError, match=r"model\.onnx: cannot be run \("):
        session(broken)


# -- the shipped models ---------------------------------------------------------------------------


SMALLEST = SMALL.model_copy(update={"width_px": 352, "height_px": 272, "red_cells": (4, 8)})


@pytest.fixture(scope="module")
def smear() -> Predictor:
    return Predictor(Bundle.load("smear"), PredictSettings(jobs=1))


def test_the_shipped_models_find_the_white_cells_of_rendered_smears(smear: Predictor) -> None:
    truths = recalled = red_truths = red_recalled = surplus = 0
    for seed in range(100, 132):
        field = rendered(seed, SMALLEST)
        cells = smear.field(field.pixels)
        names = field.cells.labels
        for role in ("leukocyte", "erythrocyte"):
            known = [i for i, n in enumerate(field.cells.label_names()) if _white(names.role(str(n))) == role]
            found = [
                i for i, n in enumerate(cells.labels) if cells.counted[i] and _white(smear.labels.role(str(n))) == role
            ]
            table = box.iou(cells.boxes[found], field.cells.boxes()[known])
            pairs = match.pair(table, np.zeros(len(known), bool), iou_min=0.5)
            if role == "leukocyte":
                truths, recalled = truths + len(known), recalled + len(pairs.truth)
                surplus += len(pairs.surplus)
            else:
                red_truths, red_recalled = red_truths + len(known), red_recalled + len(pairs.truth)
    assert truths >= 40
    assert recalled >= 0.9 * truths
    assert surplus <= 0.2 * truths
    assert red_recalled >= 0.8 * red_truths


def _white(role: str | None) -> str | None:
    """Nucleated cells are white cells to the detector."""
    return "leukocyte" if role in ("leukocyte", "erythroblast", "lysed") else role


def test_predicting_twice_is_the_same(smear: Predictor) -> None:
    first, second = smear.field(rendered(101).pixels), smear.field(rendered(101).pixels)
    assert first.labels == second.labels
    assert np.array_equal(first.boxes, second.boxes)
    assert np.array_equal(first.probabilities, second.probabilities, equal_nan=True)


def test_settings_of_a_member_without_its_own_are_the_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = naming(tmp_path)
    bare = plain.info.model_copy(update={"classify_input": None, "classify_output": None})
    names = FixedNames(shares(monocyte=0.6, lymphocyte=0.4))
    cells = predictor(monkeypatch, Bundle(tmp_path, bare, "0", {}), names=names).field(painted((50, 50), []))
    assert names.shown[0].shape[1] == ClassifyInput().side_px
    assert ClassifyOutput().sure <= 0.6
    assert cells.labels == ["monocyte"]
    assert ClassifyInput().stain == StainSettings()
    assert LabelSet.of(NAMES).leaves == LEAVES
