"""Masks to other programs and back on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cytolens.dataset import Dataset
from cytolens.prepare.synthetic import SyntheticSettings, write_synthetic
from tests.apps.speaking import say


@pytest.fixture(scope="module")
def smears(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two rendered fields, whose every cell has a mask."""
    folder = tmp_path_factory.mktemp("masks") / "smears"
    write_synthetic(
        folder, 2, 5, SyntheticSettings(width_px=320, height_px=240, white_cells=(1, 2)), fields_per_slide=1
    )
    return folder


@pytest.mark.parametrize(
    ("format", "options"),
    [("rle_csv", []), ("rle_csv", ["--order", "column"]), ("geojson", []), ("label_images", [])],
)
def test_masks_come_back(smears: Path, tmp_path: Path, format: str, options: list[str]) -> None:
    truth = Dataset.read(smears)
    exported = say("export", smears, "--format", format, "--out", tmp_path / "out", "--copy-images", "--json", *options)
    assert exported.code == 0
    imported = say("import", tmp_path / "out", "--format", "auto", "--out", tmp_path / "back", "--json")
    assert imported.code == 0
    back = Dataset.read(tmp_path / "back")
    lost = [p for p in exported.json["problems"] if p["where"] in ("overlaps of masks", "cells without a mask")]
    assert imported.json["labels"].keys() == {str(name) for name in truth.cells.label_names()}
    assert not lost or format == "label_images"  # where cells overlap, a pixel has one of them only
    if not lost:
        assert back.cells.masks() == truth.cells.masks()
        assert back.cells.label_names() == truth.cells.label_names()


def test_one_label_for_all(smears: Path, tmp_path: Path) -> None:
    say("export", smears, "--format", "label_images", "--out", tmp_path / "out", "--copy-images")
    (tmp_path / "out" / "masks" / "cells.csv").unlink()
    imported = say(
        "import", tmp_path / "out", "--format", "label_images", "--label", "cell", "--out", tmp_path / "back", "--json"
    )
    assert list(imported.json["labels"]) == ["cell"]


def test_an_order_belongs_to_run_length_codes(smears: Path, tmp_path: Path) -> None:
    answer = say("export", smears, "--format", "coco", "--out", tmp_path / "out", "--order", "row")
    assert 'order: only the format "rle_csv"' in answer.complaint
    wrong = say("import", smears, "--out", tmp_path / "out", "--order", "rows")
    assert wrong.code == 2
    assert "'row', 'column'" in wrong.err


def test_one_image_as_one_file_for_qupath(smears: Path, tmp_path: Path) -> None:
    first = Dataset.read(smears).images.ids[0]
    Dataset.read(smears).select(f"image_id = '{first}'").write(tmp_path / "one")
    say("export", tmp_path / "one", "--format", "geojson", "--out", tmp_path / "one.geojson")
    content = json.loads((tmp_path / "one.geojson").read_text(encoding="utf-8"))
    assert content["type"] == "FeatureCollection"
    assert len(content["features"]) == len(Dataset.read(tmp_path / "one").cells)
