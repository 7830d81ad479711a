"""What all formats share: the two functions, their options, labels, losses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytolens import formats
from cytolens.formats import ReadOptions, WriteOptions
from cytolens.formats.export import number_text
from cytolens.formats.label_names import in_taxonomy_order, name_labels
from cytolens.formats.losses import ASPECTS
from cytolens.labels import LabelSet
from cytolens.problems import FormatError, LabelError, Problems, SettingError
from tests.contracts import small_dataset


def test_importing_the_package_loads_no_format() -> None:
    code = (
        "import sys, cytolens.formats; "
        "late = [m for m in ('cytolens.formats.voc', 'cytolens.formats.yolo', 'yaml', 'defusedxml', 'PIL', 'cv2', "
        "'scipy', 'faster_coco_eval') if m in sys.modules]; assert not late, late"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("format", formats.FORMATS)
def test_what_a_format_cannot_keep_has_a_name(format: str) -> None:
    lost = formats.cannot_keep(format)
    assert set(lost) <= set(ASPECTS)
    assert len(set(lost)) == len(lost)
    assert {"cell ids", "sources", "probabilities", "referral flags"} <= set(lost)


def test_what_coco_results_cannot_keep() -> None:
    lost = set(formats.cannot_keep("coco", results=True))
    assert lost <= set(ASPECTS)
    assert {"ignore flags", "splits"} <= lost
    assert not {"scores", "masks", "cells below the threshold"} & lost


def test_unknown_formats_sources_and_options(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r'unknown format "yol"\. Did you mean "yolo"\?'):
        formats.read(tmp_path, "yol")
    with pytest.raises(SettingError, match='unknown format "auto"'):
        formats.write(small_dataset(tmp_path), tmp_path / "out", "auto")
    with pytest.raises(FormatError, match="no such file or folder"):
        formats.read(tmp_path / "nowhere")
    with pytest.raises(SettingError, match=r'unknown option "labells"\. Did you mean "labels"\?'):
        ReadOptions.model_validate({"labells": None})
    with pytest.raises(SettingError, match=r'unknown option "copy"'):
        WriteOptions.model_validate({"copy": True})
    with pytest.raises(SettingError, match="only the format"):
        formats.write(small_dataset(tmp_path), tmp_path / "out", "voc", WriteOptions(results=True))
    with pytest.raises(SettingError, match='order: only the format "rle_csv"'):
        formats.write(small_dataset(tmp_path), tmp_path / "out", "voc", WriteOptions(order="row"))
    with pytest.raises(SettingError, match=r'order: "rows" is unknown\. Did you mean "row"\? Allowed: row, column'):
        ReadOptions.model_validate({"order": "rows"})


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    formats.write(small_dataset(tmp_path / "images"), tmp_path / "out", "voc", WriteOptions(copy_images=True))
    with pytest.raises(SettingError, match="is not a regular expression"):
        formats.read(tmp_path / "out", "voc", ReadOptions(group_pattern="("))
    with pytest.raises(LabelError, match='unknown label "zebra"'):
        formats.read(tmp_path / "out", "voc", ReadOptions(complete_for=("zebra",)))


def test_groups_that_the_pattern_misses(tmp_path: Path) -> None:
    formats.write(small_dataset(tmp_path / "images"), tmp_path / "out.csv", "csv_boxes")
    back = formats.read(tmp_path / "out.csv", options=ReadOptions(group_pattern="/(t.)", images=tmp_path / "images"))
    assert back.dataset.images.frame["group"].to_list() == ["patient one", "tw"]
    (note,) = back.problems.of("group-unknown")
    assert note.what.startswith("1 image ids")


def test_cells_alone_can_be_written(tmp_path: Path) -> None:
    cells = small_dataset(tmp_path / "images").cells
    problems = formats.write(cells, tmp_path / "out.csv", "csv_boxes")
    assert (tmp_path / "out.csv").read_text().splitlines()[1] == "one.png,0,0,20,10,WBC"
    assert {problem.kind for problem in problems} == {"not-kept"}


def test_a_box_that_is_not_a_number_is_not_written(tmp_path: Path) -> None:
    data = small_dataset(tmp_path / "images", boxes=[[0, 0, np.nan, 1], [0, 0, 1, 1]])
    problems = formats.write(data, tmp_path / "out.csv", "csv_boxes")
    assert [problem.where for problem in problems.of("box-not-a-number")] == [data.cells.frame["cell_id"][0]]
    assert len(formats.read(tmp_path / "out.csv", options=ReadOptions(images=tmp_path / "images")).dataset.cells) == 1


def test_a_file_that_fails_to_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out.csv").write_text("old")

    def fail(value: float) -> str:
        raise RuntimeError("no space left")

    monkeypatch.setattr("cytolens.formats.csv_boxes.number_text", fail)
    with pytest.raises(RuntimeError, match="no space left"):
        formats.write(small_dataset(tmp_path / "images"), tmp_path / "out.csv", "csv_boxes")
    assert (tmp_path / "out.csv").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out.csv"]


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_numbers_read_back_as_themselves(value: float) -> None:
    text = number_text(value)
    assert np.float32(float(text)) == np.float32(value)
    assert not text.endswith(".")
    if value.is_integer():
        assert "." not in text


# -- labels -----------------------------------------------------------------------------------------


def given_labels(*names: str | None) -> pl.DataFrame:
    return pl.DataFrame(
        {"label": list(names), "where": [f"t.csv:{n}" for n in range(len(names))]},
        schema={"label": pl.String, "where": pl.String},
    )


def test_names_come_in_the_order_of_the_taxonomy() -> None:
    names = {"SS", "zebra", "PNN", "LY", "ant", "Er", "EO"}
    assert in_taxonomy_order(names) == ["PNN", "EO", "LY", "SS", "Er", "ant", "zebra"]


@given(st.permutations(["SS", "zebra", "PNN", "LY", "ant"]))
def test_the_order_of_discovery_does_not_matter(names: list[str]) -> None:
    found = given_labels(*names)
    labels, _ = name_labels(found, in_taxonomy_order(set(found["label"])), None, Problems())
    assert labels.names == ("PNN", "LY", "SS", "ant", "zebra")


def test_the_label_set_is_that_of_the_whole_source(tmp_path: Path) -> None:
    formats.write(small_dataset(tmp_path / "images"), tmp_path / "out", "voc", WriteOptions(copy_images=True))
    for split in ("train", "val"):
        part = formats.read(tmp_path / "out", options=ReadOptions(split=split)).dataset
        assert (len(part.cells), part.labels.names) == (1, ("WBC", "RBC"))


def test_unknown_labels_are_counted_once_each() -> None:
    problems = Problems()
    wanted = LabelSet.of(["neutrophil", "lymphocyte"])
    _, meaning = name_labels(given_labels("PNN", "lymphocite", "lymphocite", None), (), wanted, problems)
    assert meaning == {"PNN": "neutrophil", "lymphocite": None}
    (problem,) = problems
    assert problem.where == "t.csv:1"
    assert "2 cells" in problem.what
    assert problem.fix == 'Did you mean "lymphocyte"?'
