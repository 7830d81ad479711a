"""The exam of a bundle: passed by the bundle that sat it first, failed by one that answers otherwise."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from cytolens.bundle import Bundle, rewrite, shipped, write
from cytolens.predict.exam import make_exam, self_test
from cytolens.problems import BundleError
from tests.predict.doubles import FixedFindings, FixedNames, connect, detecting, naming

# Two sure cells and a faint one, in px of a 480 × 360 field.
BOXES = [[40, 40, 120, 120], [200, 100, 260, 160], [300, 200, 340, 240]]
SCORES = [[0.9, 0.01, 0.01], [0.01, 0.8, 0.01], [0.01, 0.01, 0.3]]


def sitting(patch: pytest.MonkeyPatch, boxes: Any = BOXES, scores: Any = SCORES) -> None:
    """Let the detector answer so from now on."""
    connect(patch, eyes=FixedFindings(boxes, scores))


def altered(rows: Any, row: int, change: Any) -> list[list[float]]:
    table = np.array(rows, float)
    table[row] += np.array(change)
    return table.tolist()


@pytest.fixture
def eyes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A detector with an exam, in which it found `BOXES`; its input is as large as the pictures."""
    draft = detecting(tmp_path, side_px=480)
    sitting(monkeypatch)
    return make_exam(write(tmp_path / "eyes", draft.info, {}))


# -- making -----------------------------------------------------------------------------------------


def test_an_exam_is_two_pictures_and_what_was_found(eyes: Bundle) -> None:
    assert sorted(eyes.info.files) == ["exam/expected.parquet", "exam/field-11.png", "exam/field-12.png"]
    expected = pl.read_parquet(eyes.folder / "exam" / "expected.parquet")
    assert expected["image_id"].to_list() == ["field-11.png"] * 3 + ["field-12.png"] * 3
    np.testing.assert_allclose(expected.select("x_min", "y_min", "x_max", "y_max").to_numpy()[:3], BOXES)
    assert expected["label"].cast(pl.String).to_list()[:3] == ["leukocyte", "erythrocyte", "platelet"]
    result = eyes.self_test()
    assert (result.passed, result.pictures, result.cells, result.mistakes) == (True, 2, 6, ())


def test_making_it_again_changes_nothing(eyes: Bundle) -> None:
    assert make_exam(eyes).hash == eyes.hash


def test_a_classifier_is_asked_about_single_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = naming(tmp_path)
    shares = [0.05, 0.8, 0.1, 0.05]
    connect(monkeypatch, names=FixedNames(shares))
    bundle = make_exam(write(tmp_path / "names", draft.info, {}))
    assert self_test(bundle).passed
    assert self_test(bundle).pictures == 4
    connect(monkeypatch, names=FixedNames([0.05, 0.1, 0.8, 0.05]))  # as sure, of something else
    result = self_test(bundle)
    assert not result.passed
    assert result.mistakes[0] == "eosinophil.png: a segmented neutrophil is now called lymphocyte"


# -- sitting ----------------------------------------------------------------------------------------


def test_small_drifts_are_tolerated(eyes: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    sitting(monkeypatch, altered(BOXES, 0, 0.45), altered(SCORES, 1, [0, 0.009, 0]))
    assert self_test(eyes).passed


def test_a_faint_cell_may_come_and_go(eyes: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    sitting(monkeypatch, BOXES[:2], SCORES[:2])
    assert self_test(eyes).passed
    sitting(monkeypatch, [*BOXES, [400, 300, 440, 340]], [*SCORES, [0.45, 0, 0]])
    assert self_test(eyes).passed


@pytest.mark.parametrize(
    ("boxes", "scores", "mistake"),
    [
        (altered(BOXES, 0, [0, 0, 0.6, 0]), SCORES, r"field-11\.png: a cell moved by 0\.60 px, its score by 0\.0000"),
        (BOXES, altered(SCORES, 1, [0, -0.02, 0]), r"field-11\.png: a cell moved by 0\.00 px, its score by 0\.0200"),
        (BOXES[1:], SCORES[1:], "field-11.png: an expected cell is not found"),
        ([*BOXES, [400, 300, 440, 340]], [*SCORES, [0.55, 0, 0]], "field-11.png: a new cell is found"),
        (BOXES, [[0.01, 0.9, 0.01], *SCORES[1:]], "field-11.png: a leukocyte is now called erythrocyte"),
        ([[0, 0, 1, 1]], [[np.nan, np.nan, np.nan]], "field-11.png: an expected cell is not found"),
    ],
)
def test_what_is_wrong_is_said(
    eyes: Bundle, monkeypatch: pytest.MonkeyPatch, boxes: Any, scores: Any, mistake: str
) -> None:
    sitting(monkeypatch, boxes, scores)
    result = self_test(eyes)
    assert not result.passed
    assert len(result.mistakes) % 2 == 0  # the same in both pictures
    assert re.fullmatch(mistake, result.mistakes[0])


def test_a_bundle_may_be_more_tolerant(eyes: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    tolerant = eyes.info.model_copy(update={"exam_tolerance": {"box_px": 2.0, "score": 0.05}})
    bundle = rewrite(eyes, tolerant)
    sitting(monkeypatch, altered(BOXES, 0, 1.5), altered(SCORES, 1, [0, -0.04, 0]))
    assert self_test(bundle).passed
    sitting(monkeypatch, altered(BOXES, 0, 2.5))
    assert not self_test(bundle).passed


# -- exams that are none ------------------------------------------------------------------------------


def test_a_bundle_without_exam_cannot_be_tested(tmp_path: Path, eyes: Bundle) -> None:
    bundle = write(tmp_path / "b", detecting(tmp_path).info, {})
    with pytest.raises(BundleError, match="has no exam"):
        bundle.self_test()
    only_answers = write(
        tmp_path / "c", detecting(tmp_path).info, {"exam/expected.parquet": eyes.folder / "exam" / "expected.parquet"}
    )
    with pytest.raises(BundleError, match="has no exam"):  # nothing to look at must not pass
        only_answers.self_test()


def test_pictures_that_are_not_of_the_exam_are_not_looked_at(eyes: Bundle) -> None:
    assert self_test(rewrite(eyes, eyes.info, {"logo.png": b"not even a picture"})).pictures == 2


@pytest.mark.parametrize("kind", ["noise", "columns"])
def test_answers_that_cannot_be_read_are_an_error(eyes: Bundle, kind: str) -> None:
    buffer = io.BytesIO(b"noise")
    if kind == "columns":
        pl.DataFrame({"image_id": ["field-11.png"]}).write_parquet(buffer)
    bundle = rewrite(eyes, eyes.info, {"exam/expected.parquet": buffer.getvalue()})
    with pytest.raises(BundleError, match=r"expected\.parquet: holds no cells"):
        self_test(bundle)


# -- the bundles that are shipped ---------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_bundle_passes_its_exam(name: str) -> None:
    result = Bundle.load(name).self_test()
    assert result.passed, result.mistakes
    assert result.pictures >= 2
    assert result.cells >= result.pictures


def changed_network(source: Bundle, folder: Path) -> Bundle:
    """The bundle with one of its weights changed: its largest one, by a third."""
    import onnx
    from onnx import numpy_helper

    shutil.copytree(source.folder, folder)
    model = onnx.load(folder / "model.onnx")
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    largest = max(floats, key=lambda tensor: int(np.prod(tensor.dims)))
    values = numpy_helper.to_array(largest)
    largest.CopyFrom(numpy_helper.from_array(np.asarray(values * 1.333, np.float32), largest.name))
    copy = Bundle.load(folder)
    return rewrite(copy, copy.info, {"model.onnx": model.SerializeToString()})


@pytest.mark.torch
@pytest.mark.parametrize("name", ["smear-detector", "wbc-classifier"])
def test_a_changed_weight_fails_the_exam(tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnx")
    source = Bundle.load(name)
    changed = changed_network(source, tmp_path / name)
    assert changed.hash != source.hash
    result = changed.self_test()
    assert not result.passed
    assert result.mistakes


@pytest.mark.torch
def test_a_pipeline_does_not_take_a_changed_member(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    shutil.copytree(Bundle.load("smear").folder, tmp_path / "smear")
    shutil.copytree(Bundle.load("wbc-classifier").folder, tmp_path / "wbc-classifier")
    changed_network(Bundle.load("smear-detector"), tmp_path / "smear-detector")
    with pytest.raises(BundleError, match='was made with "smear-detector"'):
        Bundle.load(tmp_path / "smear")


def test_a_network_that_is_none_is_an_error(eyes: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # ONNX Runtime again
    bundle = rewrite(eyes, eyes.info, {"model.onnx": b"noise"})
    with pytest.raises(BundleError, match=r"model\.onnx: cannot be run"):
        bundle.self_test()
