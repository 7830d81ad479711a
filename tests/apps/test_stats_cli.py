"""`cytolens stats` from end to end."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from tests.apps.speaking import listing, run, say

_CSV = """NAME,x1,y1,x2,y2,class
a.png,5,10,30,40,WBC
a.png,50,50,80,75,RBC
b.png,10,10,60,60,RBC
"""
_TABLES = (
    "box_sizes", "boxes_per_image", "co_occurrence", "colours", "image_sizes", "labels", "labels_by_subset",
    "labels_per_image", "subsets",
)  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    (source / "boxes.csv").write_text(_CSV)
    Image.new("RGB", (100, 80), (250, 100, 50)).save(source / "a.png")
    Image.new("RGB", (120, 90), (150, 100, 50)).save(source / "b.png")
    assert say("import", source, "--format", "csv_boxes", "--out", tmp_path / "data").code == 0
    return tmp_path / "data"


def test_tables_for_people(data: Path) -> None:
    answer = run("stats", data)
    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert lines[0].endswith("2 images, 3 cells")
    at = lines.index("labels")
    assert [line.split() for line in lines[at + 1 : at + 4]] == [
        ["label", "cells", "images", "share", "%"],
        ["RBC", "2", "2", "66.7"],
        ["WBC", "1", "1", "33.3"],
    ]
    assert "cells per image: 1: 1 · 2: 1" in lines
    at = lines.index("box width, px")
    assert lines[at + 2].split() == ["(all)", "3", "25", "25", "28", "30", "40", "50", "50"]
    assert "200 100 50" in answer.out  # the mean of both colours


def test_the_page_and_the_tables_are_written(data: Path, tmp_path: Path) -> None:
    answer = say("stats", data, "--out", tmp_path / "out", "--json")
    assert answer.code == 0
    names = sorted(["stats.html", "summary.csv", *(f"{name}.csv" for name in _TABLES)])
    assert listing(tmp_path / "out") == names
    assert sorted(Path(file).name for file in answer.json["files"]) == names
    assert sorted(answer.json["tables"]) == list(_TABLES)
    assert answer.json["tables"]["co_occurrence"] == [{"first": "WBC", "second": "RBC", "images": 1}]
    assert (answer.json["images"], answer.json["cells"]) == (2, 3)
    assert pl.read_csv(tmp_path / "out" / "labels.csv")["cells"].to_list() == [2, 1]
    assert (tmp_path / "out" / "stats.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    assert say("stats", data, "--out", tmp_path / "out").out.splitlines()[-1].startswith("open ")


def test_warnings_are_no_failure(data: Path, tmp_path: Path) -> None:
    from cytolens.dataset import Dataset

    one = Dataset.read(data)
    Dataset(one.images.with_columns(scanner=["X", "Y"]), one.cells, one.name).write(tmp_path / "two")
    answer = say("stats", tmp_path / "two")
    assert answer.code == 0
    assert 'WARNING: only in scanner "X", while there are 2: WBC.' in answer.out
    assert "cells by scanner" in answer.out


def test_what_is_looked_at_can_be_chosen(data: Path) -> None:
    assert say("stats", data, "--where", "image_id = 'b.png'", "--json").json["images"] == 1
    looked = say("stats", data, "--sample", 1, "--json").json["tables"]["colours"]
    assert [row["looked_at"] for row in looked] == [1]
    assert "colours of a random sample" not in say("stats", data, "--sample", 0).out


def test_a_dataset_without_files(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text(_CSV)
    imported = say(
        "import", tmp_path / "boxes.csv", "--format", "csv_boxes", "--allow-missing-images", "--out", tmp_path / "data"
    )
    assert imported.code == 0
    answer = say("stats", tmp_path / "data", "--out", tmp_path / "out")
    assert answer.code == 0
    assert "note: No image has a file: there are no colours and no pictures." in answer.out
    assert (tmp_path / "out" / "stats.html").exists()


def test_requests_that_cannot_be_carried_out(data: Path, tmp_path: Path) -> None:
    assert "is not a dataset" in say("stats", tmp_path / "nowhere").complaint
    assert "is not a condition on images" in say("stats", data, "--where", "colour = 1").complaint
    assert say("stats", data, "--sample", -1).code == 2
