"""The data and settings of recipes/wbcatt.toml."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.labels import LabelSet, attribute_schema
from cytolens.problems import DatasetError

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
HEADER = ["img_name", "label", *[a.name for a in attribute_schema("wbcatt")], "path"]
VALUES = [a.values[-1] for a in attribute_schema("wbcatt")]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wbcatt_data", RECIPES / "wbcatt-data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["wbcatt_data"] = module
    spec.loader.exec_module(module)
    return module


def table(folder: Path, *rows: list[str]) -> Path:
    lines = [",".join(row) for row in (HEADER, *rows)]
    (folder / "pbc_attr_v1_train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_attributes_are_joined_by_file_name_and_the_others_stay_unknown(script: ModuleType, tmp_path: Path) -> None:
    rows = [{"image_id": name, "path": None, "width_px": 9, "height_px": 9} for name in ("images/EO_1.jpg", "MY_2.jpg")]
    cells = Cells.of(
        LabelSet(("EO", "MY")), image_id=[str(row["image_id"]) for row in rows], boxes=[[0, 0, 9, 9]] * 2,
        label=["EO", "MY"], source="import:x",
    )  # fmt: skip
    folder = table(tmp_path, ["EO_1.jpg", "Eosinophil", *VALUES, "x/EO_1.jpg"])
    dataset = script.joined(Dataset(Images.of(rows), cells), script.read_attributes(folder))
    assert dataset.labels.attributes == attribute_schema("wbcatt")
    for attribute, value in zip(attribute_schema("wbcatt"), VALUES, strict=True):
        assert dataset.cells.attribute_values(attribute.column) == [value, None]
    assert dataset.cells.frame["cell_id"].to_list() == cells.frame["cell_id"].to_list()
    assert dataset.provenance[-1]["cells"] == 1


def test_a_strange_value_is_an_error_that_names_it(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"cell_size has the unknown values \['huge'\]"):
        script.read_attributes(table(tmp_path, ["EO_1.jpg", "Eosinophil", "huge", *VALUES[1:], "x"]))
    with pytest.raises(DatasetError, match="has no pbc_attr"):
        script.read_attributes(tmp_path / "elsewhere")


def test_the_real_tables_are_whole(script: ModuleType, data_root: Path) -> None:
    real = script.read_attributes(data_root / "wbcatt")
    assert len(real) == 6169 + 1030
    assert real["file"].n_unique() == len(real)
    assert real.null_count().sum_horizontal().item() == 0
    assert (real["wbcatt.granule_type"] == "nil").sum() > 0  # a value, not a missing one
    assert isinstance(real, pl.DataFrame)


@pytest.mark.torch
def test_the_settings_are_those_of_a_training() -> None:
    from cytolens.run.training import training_settings

    settings = training_settings("classify", RECIPES / "wbcatt.toml")
    assert settings.attributes == ("wbcatt",)
    assert settings.name == "wbc-attributes"
