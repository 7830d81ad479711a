"""From label files with attributes to a dataset, its published parts, and the tables of the original program."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.formats.leukemia_codes import SCHEMA
from cytolens.labels import LabelSet
from tests.apps.speaking import say
from tests.contracts import save_picture

LINES = """2 0.412500 0.388281 0.082813 0.128906 1 0 1 0 0 1 0
7 0.701563 0.195313 0.056250 0.093750 0 1 0 0 0 0 0
0 0.150000 0.860156 0.040625 0.060938 2 2 2 2 2 2 2
"""


@pytest.fixture
def fields(tmp_path: Path) -> Path:
    """The same field of two patients under two microscopes."""
    root = tmp_path / "set"
    for at, (subset, name) in enumerate(
        (subset, f"{patient}_31_{code}_ALL")
        for patient in (4, 7)
        for subset, code in (("H_100x_C1", 1000), ("L_40x_C2", 400))
    ):
        save_picture(root / "images" / subset / f"{name}.png", (64, 64), at)
        file = root / "labels" / subset / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(LINES)
    return root


def imported(fields: Path, *more: object) -> Dataset:
    out = fields.parent / "data"
    answer = say("import", fields, "--format", "leukemia_attri", "--out", out, "--json", *more)
    assert answer.code == 0
    assert (answer.json["images"], answer.json["cells"]) == (4, 12)
    return Dataset.read(out)


def test_from_files_to_published_parts(fields: Path) -> None:
    data = imported(fields)
    assert set(data.images.frame["magnification"]) == {"100x", "40x"}
    told = say("split", fields.parent / "data", "--published", "leukemia_attri", "--out", fields.parent / "parts")
    assert told.code == 0
    parts = Dataset.read(fields.parent / "parts")
    by_patient = set(parts.images.frame.select("group", "split").rows())
    assert by_patient == {("patient 4", "test"), ("patient 7", "train")}  # over all microscopes
    assert parts.provenance[-1] == {"step": "split", "published": "leukemia_attri"}
    wrong = say("split", fields.parent / "data", "--published", "leukemia", "--out", fields.parent / "x")
    assert 'no published split "leukemia". Did you mean "leukemia_attri"?' in wrong.complaint
    both = say("split", fields.parent / "data", "--published", "leukemia_attri", "--folds", 2, "--out", fields.parent)
    assert "say one of" in both.complaint


def test_patients_that_are_not_known(fields: Path) -> None:
    data = imported(fields, "--group-pattern", "(H|L)_")
    renamed = data.images.with_columns(image_id=[f"{n}.png" for n in range(4)])
    Dataset(renamed, Cells.empty(data.labels)).write(fields.parent / "named")
    words = ("--published", "leukemia_attri", "--out", fields.parent / "x")
    answer = say("split", fields.parent / "named", *words)
    assert answer.complaint.startswith("4 of 4 images are of no known patient: 0.png, 1.png")


def test_unsqueezed_at_import(fields: Path) -> None:
    data = imported(fields, "--unsqueeze", "2:1")
    assert set(data.images.frame.select("width_px", "height_px").rows()) == {(128, 64)}
    assert data.cells.boxes()[0].tolist() == pytest.approx([47.5, 20.725, 58.1, 28.975], abs=1e-3)
    folder = fields.parent / "data" / "images"
    assert all(Path(path).parent == folder for path in data.images.frame["path"])
    assert [step["step"] for step in data.provenance] == ["import", "unsqueeze"]
    wrong = say("import", fields, "--format", "leukemia_attri", "--out", fields.parent / "x", "--unsqueeze", "9")
    assert wrong.complaint.startswith("unsqueeze takes W:H")


def test_a_wrong_profile_is_refused(fields: Path) -> None:
    wrong = say("import", fields, "--format", "lld", "--out", fields.parent / "x")
    assert "12 columns, but the profile lld has 16" in wrong.complaint
    unsaid = say("import", fields, "--out", fields.parent / "x")
    assert "--format leukemia_attri" in unsaid.complaint


def findings(folder: Path) -> Path:
    """The findings of the specification's example of a predictions file, and one below the threshold."""
    labels = LabelSet.of(["None", "Lymphoblast"], SCHEMA)
    codes = [[1, 0, 1, 0, 0, 1, 0], [0] * 7, [0] * 7]
    told = {a.column: [a.values[row[at]] for row in codes] for at, a in enumerate(SCHEMA)}
    told["leukemia_attri.cell_size_probabilities"] = [[0.1, 0.7, 0.2], None, None]
    cells = Cells.of(
        labels,
        image_id=["H/7_31_1000_ALL.png"] * 3,
        boxes=[[236.4, 207, 289.5, 290.2], [81, 511, 107, 550], [0, 0, 5, 5]],
        label=["Lymphoblast", "None", "Lymphoblast"],
        source="bundle:x@0",
        score=[0.87, 0.41, 0.1],
        counted=[True, True, False],
        attributes=told,
    )
    cells.write_parquet(folder / "cells.parquet")
    return folder / "cells.parquet"


def test_predictions_in_the_columns_of_the_original(tmp_path: Path) -> None:
    words = ("export", findings(tmp_path), "--format", "leukemia_attri_predictions", "--out", tmp_path / "p.csv")
    assert say(*words).code == 0
    assert (tmp_path / "p.csv").read_text().splitlines() == [
        "Image Name,Prediction,Confidence,Nuclear Chromatin,Nuclear Shape,Nucleus,Cytoplasm,Cytoplasmic Basophilia,"
        "Cytoplasmic Vacuoles,x_min,y_min,x_max,y_max",
        "7_31_1000_ALL.png,Lymphoblast,0.87,0,1,0,0,1,0,236,207,290,290",
        "7_31_1000_ALL.png,None,0.41,0,0,0,0,0,0,81,511,107,550",
    ]


def test_predictions_in_our_columns(tmp_path: Path) -> None:
    words = ("export", findings(tmp_path), "--format", "attributes_csv", "--out", tmp_path / "p.csv", "--json")
    assert say(*words).json["problems"] == []
    with (tmp_path / "p.csv").open(newline="") as stream:
        first, artefact = csv.DictReader(stream)
    assert (first["Cell Size"], first["Cell Size Probability"]) == ("medium", "0.7000")
    assert (first["Nucleus"], first["Nucleus Probability"]) == ("inconspicuous", "")
    assert artefact["Cell Size"] == artefact["Cytoplasm"] == ""  # artefacts have none
    assert list(first)[-4:] == ["x_min", "y_min", "x_max", "y_max"]


def test_truth_and_findings_side_by_side(fields: Path, tmp_path: Path) -> None:
    data = imported(fields)
    one = data.select("image_id LIKE '%H_100x%7_31%'")
    one.write(tmp_path / "truth")
    kept = one.cells.filter(one.cells.frame["label"].cast(str).to_numpy() != "Lymphocyte")
    kept = kept.with_columns(score=0.9, **{"leukemia_attri.cytoplasm": "abundant"})
    Dataset(one.images, kept).write(tmp_path / "found")
    words = ("--truth", tmp_path / "truth", "--out")
    told = say("export", tmp_path / "found", "--format", "attributes_validation", *words, tmp_path / "ours.csv")
    assert told.code == 0
    with (tmp_path / "ours.csv").open(newline="") as stream:
        rows = {row["truth_label"]: row for row in csv.DictReader(stream)}
    assert set(rows) == {"Lymphoblast", "None", "Lymphocyte"}
    assert (rows["Lymphoblast"]["cytoplasm"], rows["Lymphoblast"]["pred_cytoplasm"]) == ("scanty", "abundant")
    assert (rows["Lymphoblast"]["cell_size"], rows["Lymphoblast"]["iou"]) == ("medium", "1.0000")
    assert (rows["Lymphocyte"]["found_cell_id"], rows["Lymphocyte"]["pred_cytoplasm"]) == ("", "")
    say("export", tmp_path / "found", "--format", "leukemia_attri_validation", *words, tmp_path / "theirs.csv")
    with (tmp_path / "theirs.csv").open(newline="") as stream:
        header, *lines = csv.reader(stream)
    assert (header[0], header[1], header[7]) == ("filename", "nuclear_chromatin", "pred_nuclear_chromatin")
    assert len(lines) == 2  # the artefact has no attributes; the lymphocyte takes the finding of the largest overlap
    assert lines[0] == ["7_31_1000_ALL.png", *"010010", *"010110"]
    assert (
        "they need it" in say("export", tmp_path / "found", "--format", "attributes_validation", "--out", "x").complaint
    )
