from __future__ import annotations

from pathlib import Path

import pytest

from cytolens import formats
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.formats import Imported, ReadOptions, WriteOptions
from cytolens.formats.wbcatt import SCHEMA
from cytolens.images import Images
from cytolens.labels import LabelSet, attribute_schema
from cytolens.problems import FormatError
from tests.contracts import FormatContract, save_picture

HEADER = (
    "img_name,label,cell_size,cell_shape,nucleus_shape,nuclear_cytoplasmic_ratio,chromatin_density,cytoplasm_vacuole,"
    "cytoplasm_texture,cytoplasm_colour,granule_type,granule_colour,granularity,path\n"
)
EO = (
    "EO_900001.jpg,Eosinophil,big,round,segmented-bilobed,low,densely,no,clear,light blue,round,red,yes,"
    "PBC_dataset_normal_DIB/eosinophil/EO_900001.jpg\n"
)
LY = (
    "LY_900002.jpg,Lymphocyte,small,round,unsegmented-round,high,densely,no,clear,blue,nil,nil,no,"
    "PBC_dataset_normal_DIB/lymphocyte/LY_900002.jpg\n"
)


class TestWbcatt(FormatContract):
    format = "wbcatt"
    annotation_suffixes = (".csv",)


def source(folder: Path, **files: str) -> Path:
    """Tables (name → rows) and the two images of the published example, in folders below ``images``."""
    for number, name in enumerate(("EO_900001", "LY_900002")):
        save_picture(folder / "pictures" / f"deep {number}" / f"{name}.jpg", number=number)
    (folder / "tables").mkdir()
    for name, rows in files.items():
        (folder / "tables" / f"{name}.csv").write_text(HEADER + rows)
    return folder / "tables"


def read(folder: Path, **options: object) -> Imported:
    given = {"images": folder.parent / "pictures", **options}
    return formats.read(folder, options=ReadOptions.model_validate(given))


def test_the_published_example(tmp_path: Path) -> None:
    back = read(source(tmp_path, pbc_attr_v1_train=EO, pbc_attr_v1_val=LY))
    data = back.dataset
    assert not list(back.problems)
    assert data.images.frame["split"].to_list() == ["train", "val"]
    assert data.cells.label_names() == ["Eosinophil", "Lymphocyte"]
    assert data.labels.role("Eosinophil") == "leukocyte"
    assert data.labels.attributes == attribute_schema("wbcatt")
    assert data.cells.boxes().tolist() == [[0, 0, 20, 10]] * 2
    assert data.cells.attribute_values("wbcatt.granule_type") == ["round", "nil"]  # "nil" is a value
    assert data.cells.attribute_values("wbcatt.cytoplasm_colour") == ["light blue", "blue"]
    assert data.cells.frame["wbcatt.granule_type_probabilities"].null_count() == 2
    assert [step["format"] for step in data.provenance] == ["wbcatt"]


def test_one_part_and_one_file(tmp_path: Path) -> None:
    folder = source(tmp_path, pbc_attr_v1_train=EO, pbc_attr_v1_val=LY)
    assert read(folder, split="val").dataset.cells.label_names() == ["Lymphocyte"]
    images = ReadOptions(images=tmp_path / "pictures")
    one = formats.read(folder / "pbc_attr_v1_val.csv", options=images).dataset
    assert (one.images.frame["split"].to_list(), one.name) == (["val"], "pbc_attr_v1_val")


def test_an_unknown_value_says_where_it_is(tmp_path: Path) -> None:
    wrong = LY.replace("unsegmented-round", "unsegmented-rund").replace(",blue,", ",,")
    back = read(source(tmp_path, v1=EO + wrong))
    (problem,) = back.problems
    assert (problem.kind, problem.where, problem.severity) == ("attribute-unknown", "v1.csv:3", "error")
    assert 'column "nucleus_shape": unknown value "unsegmented-rund"; allowed: irregular, ' in problem.what
    assert problem.fix == 'Did you mean "unsegmented-round"?'
    assert back.dataset.cells.attribute_values("wbcatt.nucleus_shape") == ["segmented-bilobed", None]
    assert back.dataset.cells.attribute_values("wbcatt.cytoplasm_colour") == [
        "light blue",
        None,
    ]


def test_a_column_full_of_unknown_values_is_cut_short(tmp_path: Path) -> None:
    wrong = "".join(LY.replace("LY_", f"LY_{n}").replace("nil,nil", "nil,green") for n in range(130))
    back = read(source(tmp_path, v1=LY + wrong), allow_missing_images=True)
    told = back.problems.of("attribute-unknown")
    assert len(told) == 101
    assert told[-1].what.startswith("30 more values")


def test_contradictions_are_told_and_kept(tmp_path: Path) -> None:
    back = read(source(tmp_path, v1=EO + LY.replace("nil,nil,no", "nil,red,no")))
    (problem,) = back.problems
    assert (problem.kind, problem.where) == ("attribute-contradiction", "v1.csv:3")
    assert problem.what == 'granularity is "no", but granule_colour is "red"; both are kept.'
    assert back.dataset.cells.attribute_values("wbcatt.granule_colour") == ["red", "red"]


def test_no_such_table(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("img_name,label\na,WBC\n")
    with pytest.raises(FormatError, match=r"wanted CSV files with the columns img_name.*there: labels\.csv"):
        formats.read(tmp_path, "wbcatt")
    with pytest.raises(FormatError, match=r"no column for cell_size \(cell size\)"):
        formats.read(tmp_path / "labels.csv", "wbcatt")


def test_attributes_come_back(tmp_path: Path) -> None:
    data = read(source(tmp_path, pbc_attr_v1_train=EO, pbc_attr_v1_val=LY)).dataset
    problems = formats.write(data, tmp_path / "out", "wbcatt", WriteOptions(copy_images=True))
    assert {problem.severity for problem in problems} == {"note"}
    text = (tmp_path / "out" / "attributes.csv").read_text()
    assert text.splitlines()[0] == HEADER.strip() + ",split"
    assert text.splitlines()[2] == LY.split("PBC_")[0] + "images/LY_900002.jpg,val"
    back = formats.read(tmp_path / "out").dataset
    columns = ["label", *(attribute.column for attribute in SCHEMA)]
    assert back.cells.frame.select(columns).equals(data.cells.frame.select(columns))


def test_what_is_not_its_own_is_said_to_be_lost(tmp_path: Path) -> None:
    labels = LabelSet.of(["WBC"], attribute_schema("leukemia_attri"))
    cells = Cells.of(
        labels,
        image_id=["a.png"],
        boxes=[[0, 0, 5, 5]],
        label=["WBC"],
        source="bundle:x@0",
        attributes={"leukemia_attri.cytoplasm": ["scanty"], "leukemia_attri.cytoplasm_probabilities": [[0.9, 0.1]]},
    )
    data = Dataset(Images.of([{"image_id": "a.png", "width_px": 5, "height_px": 5}]), cells)
    said = {problem.where for problem in formats.write(data, tmp_path / "a.csv", "wbcatt")}
    assert {"attributes other than WBCAtt's", "probabilities of attributes"} <= said
    assert (tmp_path / "a.csv").read_text().splitlines()[1] == "a.png,WBC" + "," * 11 + ",a.png"


@pytest.mark.data
def test_the_published_tables(data_root: Path) -> None:
    back = formats.read(data_root / "wbcatt", options=ReadOptions(images=data_root / "pbc" / "images", split="val"))
    counts = dict(back.dataset.cells.frame["label"].cast(str).value_counts().iter_rows())
    assert counts == {"Basophil": 125, "Eosinophil": 314, "Lymphocyte": 111, "Monocyte": 146, "Neutrophil": 334}
    assert all(back.dataset.cells.frame[attribute.column].null_count() == 0 for attribute in SCHEMA)
