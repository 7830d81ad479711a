"""`cytolens check` and `cytolens repair` from end to end."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from cytolens.dataset import Dataset
from cytolens.prepare.check import MENDED
from tests.apps.speaking import listing, run, say

_CSV = """NAME,x1,y1,x2,y2,class
a.png,-5,10,30,40,WBC
a.png,50,50,80,75,RBC
a.png,50,50,80,75,RBC
a.png,50,50,80,74,RBC
a.png,20,20,20,40,RBC
b.png,10,10,60,60,WBC
b.png,70,10,110,60,RBC
"""


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """An imported dataset with one box outside, one of no area, one twice and one nearly twice."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "boxes.csv").write_text(_CSV)
    Image.new("RGB", (100, 80), "white").save(source / "a.png")
    Image.new("RGB", (120, 90), "grey").save(source / "b.png")
    assert say("import", source, "--format", "csv_boxes", "--out", tmp_path / "data").code == 0
    return tmp_path / "data"


_FAULTS = {"box-outside-image": 1, "box-no-area": 1, "box-repeated": 1, "box-nearly-repeated": 1}


def test_from_faults_to_a_dataset_without(faulty: Path, tmp_path: Path) -> None:
    before = Dataset.read(faulty)
    checked = run("check", faulty, "--report", tmp_path / "check.html", "--json")
    assert checked.code == 1
    assert {kind: n for kind, n in checked.json["counts"].items() if kind in MENDED} == _FAULTS
    assert checked.json["severities"]["warning"] == 4
    assert (checked.json["images"], checked.json["cells"]) == (2, 7)
    assert (tmp_path / "check.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    first = checked.json["problems"][0]
    assert set(first) == {"kind", "where", "what", "fix", "severity", "image_id", "cells"}
    assert first["cells"][0] in set(before.cells.frame["cell_id"])

    repaired = run("repair", faulty, "--out", tmp_path / "mended", "--json")
    assert repaired.code == 0
    assert repaired.json["changes"] == _FAULTS
    assert (repaired.json["cells_before"], repaired.json["cells"]) == (7, 4)
    assert Dataset.read(faulty).fingerprint == before.fingerprint  # never in place
    after = Dataset.read(tmp_path / "mended")
    assert after.fingerprint == repaired.json["fingerprint"]
    assert after.provenance[-1]["changes"] == _FAULTS
    assert listing(tmp_path / "mended") == [
        "cells.parquet", "changes.csv", "changes.parquet", "dataset.json", "images.parquet",
    ]  # fmt: skip
    changes = pl.read_csv(tmp_path / "mended" / "changes.csv")
    assert changes.columns == ["kind", "image_id", "cell_id", "field", "before", "after", "why"]
    assert changes["kind"].value_counts().sort("kind").rows() == sorted(_FAULTS.items())

    again = run("check", tmp_path / "mended", "--json")
    assert again.code == 0
    assert not set(again.json["counts"]) & MENDED


def test_people_are_told_what_to_do(faulty: Path) -> None:
    answer = say("check", faulty)
    assert answer.code == 1
    lines = answer.out.splitlines()
    assert lines[0].endswith("2 images, 7 cells")
    assert lines[1].startswith("0 errors, 4 warnings, ")
    assert "warning: 1 × box-outside-image: boxes that reach outside their image" in lines
    assert any("reaches 5 px outside" in line and "Run cytolens repair" in line for line in lines)
    assert answer.err == ""


def test_notes_alone_are_no_failure(faulty: Path, tmp_path: Path) -> None:
    assert say("repair", faulty, "--out", tmp_path / "mended").code == 0
    answer = say("check", tmp_path / "mended")
    assert answer.code == 0
    assert "note: 2 × label-rare" in answer.out
    quiet = say("check", tmp_path / "mended", "--set", "label_cells_min=0")
    assert quiet.code == 0
    assert "nothing wrong was found" in quiet.out


def test_a_second_repair_says_that_nothing_had_to_be_done(faulty: Path, tmp_path: Path) -> None:
    assert say("repair", faulty, "--out", tmp_path / "once").code == 0
    answer = say("repair", tmp_path / "once", "--out", tmp_path / "twice")
    assert "nothing had to be changed" in answer.out
    assert Dataset.read(tmp_path / "once").fingerprint == Dataset.read(tmp_path / "twice").fingerprint


def test_files_are_looked_at_unless_not_wanted(faulty: Path, tmp_path: Path) -> None:
    (tmp_path / "source" / "b.png").unlink()
    assert say("check", faulty, "--json").json["counts"]["image-missing"] == 1
    assert "image-missing" not in say("check", faulty, "--no-images", "--json").json["counts"]


def test_json_by_either_name(faulty: Path) -> None:
    assert say("check", faulty, "--format", "json").json == say("check", faulty, "--json").json


def test_a_part_is_checked(faulty: Path) -> None:
    answer = say("check", faulty, "--where", "image_id = 'b.png'", "--json")
    assert answer.code == 0
    assert answer.json["images"] == 1


def test_only_some_of_it_is_mended_where_that_is_wanted(faulty: Path, tmp_path: Path) -> None:
    answer = say("repair", faulty, "--out", tmp_path / "out", "--set", "merge=false", "--set", "drop=false", "--json")
    assert answer.json["changes"] == {"box-outside-image": 1}


def test_requests_that_cannot_be_carried_out(faulty: Path, tmp_path: Path) -> None:
    assert "name another folder" in say("repair", faulty, "--out", faulty).complaint
    assert "name another folder" in say("repair", faulty, "--out", faulty / ".." / faulty.name).complaint
    assert 'Did you mean "json"?' in say("check", faulty, "--format", "jsn").complaint
    assert 'Did you mean "same_iou"?' in say("check", faulty, "--set", "same_iuo=0.5").complaint
    assert "same_iou = 2" in say("repair", faulty, "--out", tmp_path / "x", "--set", "same_iou=2").complaint
    assert not (tmp_path / "x").exists()
    assert "is not a dataset" in say("check", tmp_path / "nowhere").complaint
