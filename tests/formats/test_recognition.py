from __future__ import annotations

import json
from pathlib import Path

import pytest

from cytolens import formats
from cytolens.formats.recognition import recognise
from cytolens.problems import FormatError
from tests.contracts import save_picture, small_dataset

BOXES = "NAME,x1,y1,x2,y2,class\na.png,1,2,3,4,WBC\n"
LABELS = "image,label\na.png,WBC\n"
RUNS = "id,annotation,width,height,cell_type\na,1 3 9 3,20,10,shsy5y\n"
FEATURES = '{"type": "FeatureCollection", "features": []}'
COCO = {"images": [], "categories": [], "annotations": []}


def fill(folder: Path, files: dict[str, str | None]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            save_picture(path)
        else:
            path.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "format"),
    [
        ({"Annotations/a.xml": "<annotation/>"}, "voc"),
        ({"a.png": None, "a.xml": "<annotation verified='yes'></annotation>"}, "voc"),
        ({"Annotations/a.xml": "<annotation/>", "Annotations/predefined_classes.txt": "WBC"}, "voc"),
        ({"data.yaml": "train: x\nnames: [a]"}, "yolo"),
        ({"labels/train/a.txt": "0 0.1 0.1 0.2 0.2"}, "yolo"),
        ({"classes.txt": "WBC", "a.png": None, "a.txt": ""}, "yolo"),
        ({"annotations/instances_val.json": json.dumps(COCO)}, "coco"),
        ({"found.json": "[]"}, "coco"),
        ({"t.csv": BOXES}, "csv_boxes"),
        ({"t.tsv": BOXES.replace(",", "\t")}, "csv_boxes"),
        ({"t.csv": LABELS, "images/a.png": None}, "image_folder"),
        ({"WBC/a.png": None, "RBC/b.png": None}, "image_folder"),
        ({"train/WBC/a.png": None, "test/RBC/b.png": None}, "image_folder"),
        ({"t.csv": RUNS}, "rle_csv"),
        ({"t.csv": "ImageId,EncodedPixels\n", "images/a.png": None}, "rle_csv"),
        ({"t.csv": "image,label,rle\na.png,WBC,1 2\n"}, "rle_csv"),
        ({"images/a.png": None, "masks/a.png": None}, "label_images"),
        ({"train/images/a.png": None, "train/masks/a_mask.png": None}, "label_images"),
        ({"a.png": None, "a_cp_masks.png": None, "b.png": None}, "label_images"),
        ({"a.png": None, "a.geojson": FEATURES}, "geojson"),
        ({"a.png": None, "a.json": FEATURES}, "geojson"),
        ({"a.csv": "x,y\n1,2\n", "WBC/a.png": None, "RBC/b.png": None}, "image_folder"),
    ],
)
def test_a_format_is_known_by_its_files(tmp_path: Path, files: dict[str, str | None], format: str) -> None:
    found = recognise(fill(tmp_path, files))
    assert (found.format, found.others) == (format, ())


@pytest.mark.parametrize(
    ("name", "text", "format"),
    [
        ("t.json", json.dumps(COCO), "coco"),
        ("r.json", json.dumps([{"image_id": 1, "category_id": 1}]), "coco"),
        ("cut.json", '{"images": [], "annotations": [', "coco"),
        ("data.yaml", "names: [a]", "yolo"),
        ("t.csv", BOXES, "csv_boxes"),
        ("t.csv", LABELS, "image_folder"),
        ("t.csv", RUNS, "rle_csv"),
        ("a.geojson", FEATURES, "geojson"),
        ("a.json", FEATURES, "geojson"),
    ],
)
def test_a_file_is_known_too(tmp_path: Path, name: str, text: str, format: str) -> None:
    assert recognise(fill(tmp_path, {name: text}) / name).format == format


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"a.png": None},
        {"images/a.png": None},
        {"WBC/a.png": None},
        {
            "notes.txt": "hello",
            "config.yaml": "lr: 1\nmodel:\n  names: x\n",
            "page.xml": "<html/>",
            "p.json": '{"a": 1}',
        },
        {"t.csv": "id,annotation,width\n1,a round cell,20\n"},
        {"masks/a.png": None},
        {"p.json": '{"type": "Topology", "Feature": 1}'},
        {"broken.csv": "\x00\x01"},
    ],
)
def test_what_no_format_fits_is_said(tmp_path: Path, files: dict[str, str | None]) -> None:
    with pytest.raises(
        FormatError,
        match=r"Looked for: voc .*yolo .*coco .*csv_boxes .*image_folder .*rle_csv .*label_images .*geojson",
    ):
        recognise(fill(tmp_path, files))


def test_two_formats_alike_are_not_guessed(tmp_path: Path) -> None:
    fill(tmp_path, {"Annotations/a.xml": "<annotation/>", "labels/a.txt": "0 0.1 0.1 0.2 0.2"})
    with pytest.raises(FormatError, match=r"could be any of voc \(Annotations/a\.xml\); yolo \(labels/a\.txt\)"):
        recognise(tmp_path)
    other = fill(tmp_path / "tables", {"a.csv": BOXES, "b.csv": LABELS})
    with pytest.raises(FormatError, match=r"could be any of csv_boxes .*image_folder"):
        recognise(other)


def test_a_table_beside_another_format_is_mentioned(tmp_path: Path) -> None:
    formats.write(small_dataset(tmp_path / "images"), tmp_path / "out", "voc", formats.WriteOptions(copy_images=True))
    fill(tmp_path / "out", {"subtypes.csv": BOXES})
    back = formats.read(tmp_path / "out")
    (note,) = back.problems.of("format-chosen")
    assert note.severity == "note"
    assert "read as voc (Annotations/one.xml); there is also csv_boxes (subtypes.csv)" in note.what


def test_a_dataset_needs_no_import(tmp_path: Path) -> None:
    small_dataset(tmp_path / "images").write(tmp_path / "data")
    with pytest.raises(FormatError, match="is a dataset of this program already"):
        formats.read(tmp_path / "data")
