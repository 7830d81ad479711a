"""Cells that were found already, or drawn by a person, are named where they are; and which images are looked at."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from cytolens.bundle import Bundle
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.predict.fields import image_rows, predict_images
from cytolens.predict.pipeline import Predictor, PredictSettings
from cytolens.problems import BundleError, DatasetError
from tests.apps.speaking import say
from tests.predict.doubles import (
    FixedFindings,
    FixedNames,
    Pixels,
    both,
    connect,
    detecting,
    naming,
    painted,
    rendered,
)

LEAVES = ("band neutrophil", "segmented neutrophil", "lymphocyte", "monocyte")
BARE = LabelSet.of(["cell"])
SIZE_WH = (200, 160)
DARK, PALE = (30.0, 40.0, 20.0), (140.0, 100.0, 20.0)


def by_shade(pictures: Pixels) -> list[list[float]]:
    """A crop with a cell in it is a monocyte, with probability 0.9; an empty one a lymphocyte."""
    inside = pictures[:, 24:40, 24:40].astype(float)
    coloured = (inside.max(axis=3) - inside.min(axis=3)).mean(axis=(1, 2)) > 60
    return [[0.02, 0.03, 0.05, 0.9] if dark else [0.1, 0.1, 0.7, 0.1] for dark in coloured]


def box_of(disc: Sequence[float]) -> list[float]:
    x, y, radius = disc
    return [x - radius, y - radius, x + radius, y + radius]


def namer(patch: pytest.MonkeyPatch, folder: Path, **info: Any) -> tuple[Predictor, FixedNames]:
    """A pipeline whose detector must not be asked."""
    names = FixedNames(by_shade)
    connect(patch, eyes=None, names=names)
    return Predictor(both(folder, detecting(folder), naming(folder), **info), PredictSettings(jobs=1)), names


def given_boxes(image_id: Sequence[str], boxes: Any, **more: Any) -> Cells:
    label = more.pop("label", [None] * len(image_id))
    return Cells.of(BARE, image_id=image_id, boxes=np.array(boxes, np.float32), label=label, source="human:x", **more)


@pytest.fixture
def smear(tmp_path: Path) -> Path:
    """A folder with two images of which each shows one disc."""
    for name in ("a.png", "b.png"):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(painted(SIZE_WH, [("leukocyte", *DARK)])).save(tmp_path / "in" / name)
    return tmp_path / "in"


# -- one field ----------------------------------------------------------------------------------------


def test_boxes_keep_their_place_order_and_score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    predictor, names = namer(monkeypatch, tmp_path)
    boxes = np.array([box_of(PALE), box_of(DARK)], np.float32)
    scores = np.array([0.4, 0.8], np.float32)
    field = painted(SIZE_WH, [("leukocyte", *DARK)])
    answer = predictor.named(field, boxes, scores, np.ones(2, bool))
    assert np.array_equal(answer.boxes, boxes)
    assert answer.labels == ["lymphocyte", "monocyte"]
    assert np.array_equal(answer.scores, scores)
    assert [len(shown) for shown in names.shown] == [2]
    assert answer.probabilities[1].max() == pytest.approx(0.9, abs=1e-4)


def test_a_box_that_a_person_drew_is_as_sure_as_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    predictor, _ = namer(monkeypatch, tmp_path)
    scores = np.array([np.nan, 0.3], np.float32)
    boxes = np.array([box_of(DARK), box_of(PALE)], np.float32)
    answer = predictor.named(painted(SIZE_WH, [("leukocyte", *DARK)]), boxes, scores, np.ones(2, bool))
    assert answer.scores == pytest.approx([0.9, 0.3], abs=1e-4)


def test_what_does_not_count_is_not_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    predictor, names = namer(monkeypatch, tmp_path)
    boxes = np.array([box_of(DARK), box_of(PALE)], np.float32)
    counted = np.array([False, True])
    answer = predictor.named(painted(SIZE_WH, []), boxes, np.full(2, 0.5, np.float32), counted)
    assert answer.labels == [None, "lymphocyte"]
    assert np.isnan(answer.probabilities[0]).all()
    assert not np.isnan(answer.probabilities[1]).any()
    assert np.array_equal(answer.counted, counted)
    assert [len(shown) for shown in names.shown] == [1]
    nothing = predictor.named(painted(SIZE_WH, []), boxes, np.full(2, 0.5, np.float32), np.zeros(2, bool))
    assert nothing.labels == [None, None]
    assert len(names.shown) == 1  # nobody was asked again


def test_what_the_detector_would_tell_apart_has_its_full_weight(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing is known of a given box, so no name is less likely than the classifier says."""
    classifier = naming(tmp_path, names=["leukocyte", "lymphocyte", "monocyte", "platelet"], elsewhere=0.1)
    connect(monkeypatch, eyes=FixedFindings([box_of(DARK)], [[0.9, 0, 0]]), names=FixedNames([0.3, 0.1, 0.6]))
    predictor = Predictor(both(tmp_path, detecting(tmp_path, side_px=416), classifier), PredictSettings(jobs=1))
    field = painted(SIZE_WH, [])
    given = predictor.named(field, np.array([box_of(DARK)], np.float32), np.ones(1, np.float32), np.ones(1, bool))
    assert given.labels == ["platelet"]
    looked_for = predictor.field(field)
    leaves = predictor.labels.leaves
    assert given.probabilities[0, leaves.index("platelet")] == pytest.approx(0.6, abs=1e-4)
    assert looked_for.probabilities[0, leaves.index("platelet")] == pytest.approx(0.06 / 0.46, abs=1e-4)


def test_a_detector_has_no_names_to_give(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(monkeypatch, eyes=None)
    predictor = Predictor(detecting(tmp_path), PredictSettings(jobs=1))
    with pytest.raises(BundleError, match='"eyes" has no classifier to name given boxes with'):
        predictor.named(painted(SIZE_WH, []), np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, bool))


def test_given_the_boxes_that_it_finds_a_classifier_says_the_same(tmp_path: Path) -> None:
    """The shipped classifier alone: naming boxes is what it does inside the pipeline, short of the detector's say."""
    pixels = rendered(3).pixels
    smear = Predictor(Bundle.load("smear"), PredictSettings(jobs=1))
    found = smear.field(pixels)
    named = np.isfinite(found.probabilities).all(axis=1)
    assert named.any()
    alone = Predictor(Bundle.load("wbc-classifier"), PredictSettings(jobs=1))
    answer = alone.named(pixels, found.boxes[named], found.scores[named], np.ones(int(named.sum()), bool))
    ours, theirs = alone.labels.leaves, smear.labels.leaves
    both_have = [leaf for leaf in ours if leaf in theirs]
    plain = answer.probabilities[:, [ours.index(leaf) for leaf in both_have]]
    inside = found.probabilities[named][:, [theirs.index(leaf) for leaf in both_have]]
    assert (plain.argmax(axis=1) == inside.argmax(axis=1)).all()
    # The pipeline weighs down what the detector tells apart; among the others the odds are the same.
    lymphocyte, monocyte = both_have.index("lymphocyte"), both_have.index("monocyte")
    np.testing.assert_allclose(
        plain[:, lymphocyte] * inside[:, monocyte], inside[:, lymphocyte] * plain[:, monocyte], atol=1e-5
    )


# -- many images --------------------------------------------------------------------------------------


def test_boxes_are_found_by_image_and_cut_to_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, smear: Path) -> None:
    predictor, _ = namer(monkeypatch, tmp_path)
    boxes = [box_of(DARK), [150, 100, 260, 150], [300, 10, 340, 50], box_of(PALE)]
    given = given_boxes(["b.png"] * 4, boxes)
    prediction = predict_images(predictor, image_rows([smear]), boxes=given)
    assert prediction.images.ids == ["a.png", "b.png"]
    found = prediction.cells
    assert found.frame["image_id"].to_list() == ["b.png"] * 3
    assert found.boxes().tolist() == [box_of(DARK), [150, 100, 200, 150], box_of(PALE)]
    assert found.label_names() == ["monocyte", "lymphocyte", "lymphocyte"]
    assert found.frame["counted"].all()
    notes = [problem.what for problem in prediction.problems if problem.where == "b.png"]
    assert notes == ["1 boxes without an area inside."]


def test_boxes_of_a_model_are_named_where_they_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, smear: Path
) -> None:
    predictor, _ = namer(monkeypatch, tmp_path)
    given = given_boxes(["a.png"] * 2, [box_of(DARK), box_of(PALE)], score=[0.9, 0.05], counted=[True, False])
    found = predict_images(predictor, image_rows([smear]), boxes=given).cells
    assert found.label_names() == ["monocyte", None]
    assert found.frame["counted"].to_list() == [True, False]
    assert found.scores().tolist() == pytest.approx([0.9, 0.05])
    assert found.frame["probabilities"].is_null().to_list() == [False, True]


def test_boxes_of_other_images_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, smear: Path) -> None:
    predictor, _ = namer(monkeypatch, tmp_path)
    with pytest.raises(DatasetError, match="the boxes are of other images"):
        predict_images(predictor, image_rows([smear]), boxes=given_boxes(["c.png"], [box_of(DARK)]))
    none = predict_images(predictor, image_rows([smear]), boxes=Cells.empty(BARE))
    assert len(none.cells) == 0
    assert len(none.images) == 2


def test_an_image_without_a_file_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, smear: Path) -> None:
    predictor, _ = namer(monkeypatch, tmp_path)
    (smear / "b.png").write_bytes(b"no picture")
    rows = [*image_rows([smear]), {"image_id": "c.png", "path": None}]
    given = given_boxes(["a.png", "b.png", "c.png"], [box_of(DARK)] * 3)
    prediction = predict_images(predictor, rows, boxes=given)
    assert [problem.where.rpartition("/")[2] for problem in prediction.failed] == ["b.png", "c.png"]
    assert prediction.cells.frame["image_id"].to_list() == ["a.png"]


# -- the command --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two rendered fields with their true white cells, of which each is a fold."""
    folder = tmp_path_factory.mktemp("fields")
    rows: list[dict[str, Any]] = []
    parts: list[Cells] = []
    for fold, seed in enumerate((3, 5)):
        field = rendered(seed)
        name = f"{seed}.png"
        Image.fromarray(field.pixels).save(folder / name)
        size = {"width_px": field.pixels.shape[1], "height_px": field.pixels.shape[0]}
        rows.append({"image_id": name, "path": str(folder / name), "fold": fold, **size})
        white = [field.cells.labels.role(str(n)) == "leukocyte" for n in field.cells.label_names()]
        parts.append(field.cells.filter(np.array(white)).with_columns(image_id=name, source="human:rendered"))
    truth = Dataset(Images.of(rows), parts[0].concat(parts[1]), "fields")
    assert len(parts[0])
    assert len(parts[1])
    truth.write(folder / "dataset")
    return folder / "dataset"


def test_boxes_of_a_dataset_are_named_in_place(fields: Path, tmp_path: Path) -> None:
    options = ("--bundle", "smear", "--format", "cells", "--json")
    answer = say("predict", fields, "--boxes", fields, "--out", tmp_path / "out", *options)
    assert answer.code == 0
    truth, found = Dataset.read(fields).cells, Cells.read_parquet(tmp_path / "out" / "cells.parquet")
    assert found.frame["image_id"].to_list() == truth.frame["image_id"].to_list()
    np.testing.assert_allclose(found.boxes(), truth.boxes(), atol=1e-4)
    assert answer.json["cells"] == len(truth)
    assert found.frame["source"].unique().to_list() == [Bundle.load("smear").source]
    # What it found is input again: the same boxes once more, under the same names.
    again = say("predict", fields, "--boxes", tmp_path / "out", "--out", tmp_path / "again", *options)
    assert again.code == 0
    assert (
        Cells.read_parquet(tmp_path / "again" / "cells.parquet").frame.drop("score").equals(found.frame.drop("score"))
    )


def test_only_images_that_meet_a_condition(fields: Path, tmp_path: Path) -> None:
    options = ("--bundle", "wbc-classifier", "--format", "cells")
    answer = say("predict", fields, "--boxes", fields, "--where", "fold = 1", "--out", tmp_path / "out", *options)
    assert answer.code == 0
    assert pl.read_parquet(tmp_path / "out" / "images.parquet")["image_id"].to_list() == ["5.png"]
    assert set(Cells.read_parquet(tmp_path / "out" / "cells.parquet").frame["image_id"]) == {"5.png"}


def test_views_are_chosen_by_the_command(fields: Path, tmp_path: Path) -> None:
    """Views of the crops move the probabilities a little, and the run says which views they were."""
    tables = {}
    for choice in ("none", "flips"):
        out = tmp_path / choice
        answer = say(
            "predict", fields, "--boxes", fields, "--tta", choice, "--out", out, "--bundle", "wbc-classifier",
            "--format", "cells",
        )  # fmt: skip
        assert answer.code == 0
        tables[choice] = Cells.read_parquet(out / "cells.parquet").probabilities()
        assert json.loads((out / "run.json").read_text())["settings"]["tta"] == choice
    bundle, pixels = Bundle.load("wbc-classifier"), rendered(3).pixels
    assert not np.array_equal(tables["none"], tables["flips"])
    boxes = Dataset.read(fields).cells.of_image("3.png").boxes()
    four = Predictor(bundle, PredictSettings(jobs=1, tta="flips"))
    given = four.named(pixels, boxes, np.full(len(boxes), np.nan, np.float32), np.ones(len(boxes), bool))
    np.testing.assert_allclose(tables["flips"][: len(boxes)], given.probabilities, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--tta", "twice"], "tta = 'twice'"),
        (["--boxes", "nowhere"], "nowhere"),
        (["--boxes", "FIELDS", "--bundle", "smear-detector"], "has no classifier to name given boxes with"),
        (["--where", "fold = 7"], 'no image of "fields" meets "fold = 7"'),
        (["--where", "nonsense ="], "is not a condition on images"),
    ],
)
def test_what_cannot_be_named_is_one_clear_line(fields: Path, tmp_path: Path, words: list[str], complaint: str) -> None:
    given = [fields if word == "FIELDS" else word for word in words]
    bundle = () if "--bundle" in words else ("--bundle", "wbc-classifier")
    answer = say("predict", fields, *given, *bundle, "--out", tmp_path / "out", "--format", "cells")

    assert re.search(complaint, answer.complaint)


def test_a_condition_needs_a_dataset(fields: Path, tmp_path: Path) -> None:
    answer = say("predict", fields.parent / "3.png", "--where", "fold = 1", "--out", tmp_path / "out")
    assert "is no dataset" in answer.complaint
    other = say("predict", fields.parent / "3.png", "--boxes", fields, "--out", tmp_path / "out", "--format", "cells")
    assert other.code == 0  # the same image by the same id
