"""The steps around data with attributes: looked over, split as published, written as tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.labels import LabelSet, attribute_schema
from cytolens.problems import DatasetError, SettingError
from cytolens.run.step_kinds import STEPS

LABELS = LabelSet.of(["None", "Lymphocyte"], attribute_schema("leukemia_attri"))


def done(do: str, out: Path, /, **settings: Any) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    step = STEPS[do].model_validate(settings)
    step.check()
    return step.run(out, lambda _: None)


def made(folder: Path) -> Path:
    """Two fields of patients that were published apart, with a lymphocyte and an artefact each."""
    rows, names = [], ["1_1_1000_ALL.png", "2_1_1000_ALL.png"]
    for shade, name in enumerate(names):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.effect_noise((96, 64), 40 + 20 * shade).convert("RGB").save(folder / "images" / name)
        rows.append({"image_id": name, "path": str(folder / "images" / name), "width_px": 96, "height_px": 64})
    told = {
        f"leukemia_attri.{name}": [value, None] * 2 for name, value in (("cell_size", "small"), ("cytoplasm", "scanty"))
    }
    cells = Cells.of(
        LABELS,
        image_id=[name for name in names for _ in range(2)],
        boxes=[[10, 10, 40, 40], [50, 20, 80, 50]] * 2,
        label=["Lymphocyte", "None"] * 2,
        source="human:ab",
        attributes=told,
    )
    Dataset(Images.of(rows), cells, "made").write(folder / "data")
    return folder / "data"


def test_a_dataset_is_taken_looked_over_and_split_as_it_was_published(tmp_path: Path) -> None:
    assert done("import", tmp_path / "raw", source=made(tmp_path), format="dataset")["images"] == 2
    said = done("check", tmp_path / "seen", dataset=tmp_path / "raw")
    assert said["errors"] == 0
    assert len(json.loads((tmp_path / "seen" / "problems.json").read_text())) == said["problems"]
    done("split", tmp_path / "parts", dataset=tmp_path / "seen", published="leukemia_attri")
    parts = Dataset.read(tmp_path / "parts").images.frame
    assert dict(parts.select("image_id", "split").iter_rows()) == {
        "1_1_1000_ALL.png": "train",
        "2_1_1000_ALL.png": "test",
    }
    done("split", tmp_path / "drawn", dataset=tmp_path / "seen", shares={"train": 0.5, "test": 0.5})
    assert sorted(Dataset.read(tmp_path / "drawn").images.frame["split"]) == ["test", "train"]


def test_errors_end_the_run_unless_they_may_not(tmp_path: Path) -> None:
    data = made(tmp_path)
    (tmp_path / "images" / "1_1_1000_ALL.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"errors in made.*cytolens repair.*stop = false"):
        done("check", tmp_path / "seen", dataset=data)
    assert done("check", tmp_path / "again", dataset=data, stop=False)["errors"] > 0


@pytest.mark.parametrize("settings", [{}, {"folds": 4, "published": "leukemia_attri"}])
def test_a_split_is_of_one_kind(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="one of folds"):
        done("split", tmp_path / "out", dataset=tmp_path, **settings)


def test_findings_as_tables(tmp_path: Path) -> None:
    said = done("attributes-csv", tmp_path / "csv", found=made(tmp_path), original=True)
    assert said == {"cells": 4}
    own = (tmp_path / "csv" / "predictions.csv").read_text().splitlines()
    assert len(own) == 5
    assert "Cell Size" in own[0]
    assert "Cell Size" not in (tmp_path / "csv" / "predictions-original.csv").read_text()
