"""Published data sets; every number is from the description of the data (README.md beside them)."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cytolens import formats
from cytolens.dataset import Dataset
from cytolens.formats import ReadOptions
from cytolens.problems import FormatError

pytestmark = pytest.mark.data


def counts(data: Dataset) -> dict[str, int]:
    return dict(data.cells.frame.select(pl.col("label").cast(pl.String).value_counts()).unnest("label").iter_rows())


@pytest.mark.parametrize(
    ("split", "images", "wanted"),
    [
        ("train", 205, {"WBC": 214, "RBC": 2382, "Platelets": 209}),
        ("val", 87, {"WBC": 87, "RBC": 968, "Platelets": 83}),
    ],
)
def test_bccd(data_root: Path, split: str, images: int, wanted: dict[str, int]) -> None:
    back = formats.read(data_root / "bccd", "voc", ReadOptions(split=split))
    assert len(back.dataset.images) == images
    assert counts(back.dataset) == wanted
    assert back.dataset.labels.names == ("WBC", "RBC", "Platelets")


def test_the_known_defects_of_bccd(data_root: Path) -> None:
    back = formats.read(data_root / "bccd")
    assert {problem.where.split(":")[0] for problem in back.problems.of("box-no-area")} == {
        "Annotations/BloodImage_00338.xml",
        "Annotations/BloodImage_00343.xml",
    }
    assert back.problems.counts() == {"box-no-area": 2, "format-chosen": 1}
    row = back.dataset.images.row("JPEGImages/BloodImage_00338.jpg")
    assert (row["width_px"], row["height_px"]) == (640, 480)


def test_the_subtypes_of_bccd(data_root: Path) -> None:
    options = ReadOptions(images=data_root / "bccd" / "JPEGImages")
    data = formats.read(data_root / "bccd" / "wbc_subtypes.csv", "csv_boxes", options).dataset
    assert counts(data) == {"neutrophil": 168, "eosinophil": 66, "lymphocyte": 31, "monocyte": 17, "basophil": 1}
    whole = formats.read(data_root / "bccd", "voc").dataset
    subtypes, boxes = (d.cells.frame.select("image_id", "x_min", "y_min", "x_max", "y_max") for d in (data, whole))
    assert len(subtypes.join(boxes, on=subtypes.columns, how="semi")) == len(subtypes) == 283


@pytest.mark.parametrize(
    ("split", "images", "wanted"),
    [
        ("train", 315 + 350, {"WBC": 333 + 358, "RBC": 5211 + 4416, "Platelet": 220 + 21}),
        ("val", 48 + 100, {"WBC": 49 + 108, "RBC": 808 + 1266, "Platelet": 39 + 3}),
    ],
)
def test_txl_pbc(data_root: Path, split: str, images: int, wanted: dict[str, int]) -> None:
    back = formats.read(data_root / "txl_pbc", "yolo", ReadOptions(split=split))
    assert len(back.dataset.images) == images
    assert counts(back.dataset) == wanted
    assert back.dataset.labels.names == ("WBC", "RBC", "Platelet")
    assert not list(back.problems)


def test_txl_pbc_writes_back_its_own_files(data_root: Path, tmp_path: Path) -> None:
    formats.write(formats.read(data_root / "txl_pbc", "yolo").dataset, tmp_path / "out", "yolo")
    originals = sorted((data_root / "txl_pbc" / "labels").rglob("*.txt"))
    assert len(originals) == 813
    exact = 0
    for path in originals:
        ours = (tmp_path / "out" / "labels" / path.relative_to(data_root / "txl_pbc" / "labels")).read_text()
        theirs = [line.split() for line in path.read_text().splitlines()]
        for one, other in zip([line.split() for line in ours.splitlines()], theirs, strict=True):
            assert one[0] == other[0]
            # Word for word where there are up to six decimals; more of them than float32 edges can hold are rounded.
            if all(len(word) <= len("0.000000") for word in other[1:]):
                exact += one == [other[0], *(f"{float(word):.6f}" for word in other[1:])]
            assert np.allclose(np.array(one[1:], float), np.array(other[1:], float), rtol=0, atol=1.01e-7)
    assert exact == 12_679
    assert (tmp_path / "out" / "classes.txt").read_text().split() == ["WBC", "RBC", "Platelet"]


def test_pbc(data_root: Path) -> None:
    started = time.process_time()
    back = formats.read(data_root / "pbc", "image_folder")
    assert time.process_time() - started < 30
    data = back.dataset
    assert dict(data.images.frame["split"].value_counts().iter_rows()) == {"train": 8086, "val": 1244}
    assert counts(data)["NEUTROPHIL"] == 34
    assert counts(data)["EO"] == 1877 + 315
    assert data.cells.frame["cell_id"].is_unique().all()  # also of the 13 pairs of files with the same bytes
    assert len(data.images.frame.filter(pl.col("sha256").is_duplicated())) == 26
    sizes = {(w, h): n for w, h, n in data.images.frame.group_by("width_px", "height_px").len().iter_rows()}
    assert sizes == {(360, 363): 9029, (366, 369): 173, (360, 360): 124, (360, 361): 2, (359, 360): 1, (361, 360): 1}
    assert np.array_equal(data.cells.boxes()[:, 2:], data.images.frame.select("width_px", "height_px").to_numpy())
    assert not list(back.problems)


def test_cytologia(data_root: Path) -> None:
    path = data_root / "cytologia" / "train.csv"
    started = time.process_time()
    back = formats.read(path, "csv_boxes", ReadOptions(allow_missing_images=True))
    assert time.process_time() - started < 10
    assert (len(back.dataset.cells), len(back.dataset.images)) == (52_748, 48_417)
    found = counts(back.dataset)
    assert len(found) == 23
    assert (found["PNN"], found["SS"], found["LH_lyAct"]) == (6827, 714, 1705)
    assert back.problems.counts() == {"image-missing": 1, "box-outside-image": 356}
    with pytest.raises(FormatError, match=r"none of the 48417 images .*--images DIR.*--allow-missing-images"):
        formats.read(path)
    with pytest.raises(FormatError, match="no column for x_min"):
        formats.read(data_root / "cytologia" / "test.csv", "csv_boxes")


def test_cytologia_writes_back_its_own_rows(data_root: Path, tmp_path: Path) -> None:
    path = data_root / "cytologia" / "train.csv"
    data = formats.read(path, "csv_boxes", ReadOptions(allow_missing_images=True)).dataset
    formats.write(data, tmp_path / "out.csv", "csv_boxes")
    ours, theirs = ((tmp_path / "out.csv").read_text().splitlines(), path.read_text().splitlines())
    assert ours[0] == theirs[0]
    assert sorted(ours) == sorted(theirs)
