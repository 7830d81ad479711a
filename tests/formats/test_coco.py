from __future__ import annotations

import contextlib
import copy
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cytolens import formats, masks
from cytolens.dataset import Dataset
from cytolens.formats import Imported, ReadOptions, WriteOptions
from cytolens.images import SUFFIXES
from cytolens.labels import LabelSet
from cytolens.problems import FormatError
from tests.contracts import FormatContract, filed_datasets, save_picture, small_dataset, temporary_folder


class TestCoco(FormatContract):
    format = "coco"
    annotation_suffixes = (".json",)


def read(source: Path, **options: object) -> Imported:
    return formats.read(source, "coco", ReadOptions.model_validate(options))


def content(*annotations: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """An instances file of one image of 20 × 10 px and two categories with arbitrary ids."""
    return {
        "images": [{"id": 7, "file_name": "a.png", "width": 20, "height": 10}],
        "categories": [{"id": 90, "name": "WBC"}, {"id": 3, "name": "RBC"}],
        "annotations": [{"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]} | entry for entry in annotations],
    } | changes


def put(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_picture(tmp_path / "a.png")
    return tmp_path


def test_ids_are_arbitrary_and_boxes_are_corner_and_size(folder: Path) -> None:
    entries = [{"bbox": [1, 2, 3.5, 4]}, {"category_id": 90, "iscrowd": 1, "score": 0.5}]
    back = read(put(folder / "t.json", content(*entries)))
    cells = back.dataset.cells
    assert np.array_equal(cells.boxes(), [[1, 2, 4.5, 6], [1, 2, 4, 6]])
    assert cells.label_names() == ["RBC", "WBC"]
    assert cells.labels.names == ("WBC", "RBC")  # the file's order, not that of the ids
    assert cells.frame["ignore"].to_list() == [False, True]
    assert cells.frame["score"].to_list() == [None, 0.5]
    assert not list(back.problems)


def test_outlines_of_all_kinds(folder: Path) -> None:
    mask = np.zeros((10, 20), bool)
    mask[2:8, 2:10] = True
    compressed = {"size": [10, 20], "counts": masks.encode(mask).decode()}
    runs = np.flatnonzero(np.diff(np.concatenate([[False], mask.ravel(order="F"), [False]]))).tolist()
    plain = {"size": [10, 20], "counts": np.diff([0, *runs, 200]).tolist()}
    polygons = [[2, 2, 10, 2, 10, 5, 2, 5], [2, 5, 10, 5, 10, 8, 2, 8]]
    entries: list[dict[str, Any]] = [{"segmentation": s} for s in (compressed, plain, polygons)] + [
        {"segmentation": []},
        {},
    ]
    entries.append({"segmentation": compressed, "bbox": None})
    back = read(put(folder / "t.json", content(*entries)))
    *codes, empty, absent, boxless = back.dataset.cells.masks()
    assert [np.array_equal(masks.decode(code, (10, 20)), mask) for code in [*codes, boxless] if code] == [True] * 4
    assert (empty, absent) == (None, None)
    assert back.dataset.cells.boxes()[-1].tolist() == [2, 2, 10, 8]
    assert not list(back.problems)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [20, 10], "counts": "PPY1"},
        {"size": [10, 20], "counts": "no code \u00e9"},
        {"size": [10, 20], "counts": "P" * 40},
        {"size": [10, 20], "counts": [100, 99]},
        {"size": [10, 20], "counts": [-1, 201]},
        {"size": [10, 20], "counts": [2**62, 2**62, 2**62, 2**62 + 200]},
        {"size": [10, 20], "counts": [1.5, 198.5]},
        {"size": [10, 20], "counts": ["200"]},
        {"size": [10, 20], "counts": 10**30},
        {"counts": None},
        {},
        "mask.png",
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 6, 7]],
        [[1, 2, 3, 4, 5, 1e30]],
        [[1, 2, 3, 4, 5, None]],
        [[1, 2, 3, 4, 5, 10**400]],
        [1, 2, 3, 4, 5, 6],
        [{"x": 1}],
    ],
)
def test_outlines_of_no_use(folder: Path, segmentation: Any) -> None:
    back = read(put(folder / "t.json", content({"segmentation": segmentation})))
    (problem,) = back.problems
    assert (problem.kind, problem.where) == ("mask-unreadable", "t.json: annotation 1")
    assert back.dataset.cells.masks() == [None]


@pytest.mark.parametrize(
    "box", [[1, 2, 3], [1, 2, 3, None], [1, 2, 3, "x"], "box", [1, 2, 3, 10**400], [1, 2, True, 4]]
)
def test_a_box_that_is_not_a_number(folder: Path, box: Any) -> None:
    back = read(put(folder / "t.json", content({"bbox": box}, {})))
    assert [(p.kind, p.where) for p in back.problems] == [("box-not-a-number", "t.json: annotation 1")]
    assert len(back.dataset.cells) == 1


def test_entries_that_cannot_be_read(folder: Path) -> None:
    data = content({"image_id": 8}, {"image_id": [7]}, {"category_id": 4}, {"category_id": {}}, {})
    data["annotations"].insert(0, "annotation")
    data["images"] += [{"id": 7, "file_name": "b.png"}, {"id": 9}, {"id": None, "file_name": "c.png"}, 5]
    back = read(put(folder / "t.json", data))
    assert [p.where for p in back.problems.of("annotation-unreadable")] == [
        *(f"t.json: image {n}" for n in (2, 3, 4, 5)),
        *(f"t.json: annotation {n}" for n in (1, 2, 3)),
    ]
    assert [p.where for p in back.problems.of("label-unknown")] == [f"t.json: annotation {n}" for n in (4, 5)]
    assert back.dataset.cells.label_names() == [None, None, "RBC"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', r"t\.json, line 1: is not JSON"),
        ("{}", "lists"),
        ('{"images": [], "categories": {}, "annotations": []}', "lists"),
        ('{"images": [], "categories": [], "annotations": {}}', "lists"),
        ('{"images": [], "categories": [{"id": 1}]}', "category 1 needs an id and a name"),
        (
            '{"images": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "two categories have the id 1",
        ),
        ('{"images": [], "categories": [{"id": 1, "name": "\\ud800"}]}', "category 1"),
        ("[" * 100_000, "cannot be read as JSON|is not JSON"),
        ("[" + "1" * 5000 + "]", "cannot be read as JSON"),
        ("5", "lists"),
    ],
)
def test_files_that_are_no_instances(folder: Path, text: str, message: str) -> None:
    (folder / "t.json").write_text(text)
    with pytest.raises(FormatError, match=message):
        read(folder / "t.json")


_ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2**31 - 1, 1e308, float("nan"), float("inf"), 10**400, "", "\ud800", "x" * 5000, "../a.png",
    [], {}, [[]], [None] * 6, [1, 2, 3, 4], {"size": [10, 20], "counts": "1"}, {"size": None, "counts": [200]},
)  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_any_value_anywhere_is_refused_or_collected(folder: Path, seed: int) -> None:
    generator = random.Random(seed)
    counts = {"size": [10, 20], "counts": [100, 50, 50]}
    entries = [{"segmentation": counts, "score": 0.5}, {"segmentation": [[1, 2, 5, 6, 7.5, 2]], "iscrowd": 0}]
    for turn in range(100):
        data = content(*entries)
        node: Any = data
        key: Any = generator.choice(list(data))
        while isinstance(node[key], (dict, list)) and node[key] and generator.random() < 0.8:
            node = node[key]
            key = generator.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node[key] = copy.deepcopy(generator.choice(_ODD))
        put(folder / "t.json", data)
        with contextlib.suppress(FormatError):
            read(folder / "t.json", allow_missing_images=bool(turn % 2))
    assert len(read(put(folder / "t.json", content(*entries))).dataset.cells) == 2


def test_images_that_nobody_annotated(folder: Path) -> None:
    data = content()
    del data["annotations"]
    assert read(put(folder / "t.json", data)).dataset.images.frame["complete_for"].to_list() == [[]]
    assert read(put(folder / "t.json", content())).dataset.images.frame["complete_for"].to_list() == [None]


class TestFolders:
    def test_the_folder_called_annotations(self, tmp_path: Path) -> None:
        """COCO's own layout: images in a folder per split, annotations in a folder beside them."""
        for number, split in enumerate(("train", "val")):
            save_picture(tmp_path / f"{split}2017" / f"{split}.png", number=number)
            images = [{"id": 1, "file_name": f"{split}.png", "width": 20, "height": 10}]
            entry = {"image_id": 1, "category_id": 90 - 87 * number}
            put(tmp_path / "annotations" / f"instances_{split}2017.json", content(entry, images=images))
            put(tmp_path / "annotations" / f"captions_{split}2017.json", {"images": images, "annotations": []})
        data = read(tmp_path).dataset
        assert dict(data.images.frame.select("image_id", "split").iter_rows()) == {
            "train2017/train.png": "train",
            "val2017/val.png": "val",
        }
        assert data.cells.label_names() == ["WBC", "RBC"]
        alone = read(tmp_path / "annotations" / "instances_val2017.json").dataset
        assert alone.images.ids == ["val2017/val.png"]
        assert formats.read(tmp_path).dataset.fingerprint == data.fingerprint

    def test_a_file_in_each_folder_of_images(self, tmp_path: Path) -> None:
        for number, split in enumerate(("train", "valid")):
            save_picture(tmp_path / split / "a.png", number=number)
            put(tmp_path / split / "_annotations.coco.json", content({"bbox": [number, 0, 1, 1]}))
        data = read(tmp_path).dataset
        assert dict(data.images.frame.select("image_id", "split").iter_rows()) == {
            "train/a.png": "train",
            "valid/a.png": "valid",
        }
        assert data.cells.boxes()[:, 0].tolist() == [0, 1]

    def test_none_of_its_files_are_instances(self, tmp_path: Path) -> None:
        with pytest.raises(FormatError, match="found no JSON file"):
            read(tmp_path)
        put(tmp_path / "package.json", {"name": "x"})
        with pytest.raises(FormatError, match=r"found package\.json"):
            read(tmp_path)


# -- pycocotools as the outside oracle --------------------------------------------------------------


def quietly(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


# Its compiled part does not know NumPy 2's way of asking for an array.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@settings(max_examples=25, deadline=None)
@given(data=filed_datasets())
def test_pycocotools_reads_what_is_written(data: Dataset) -> None:
    with temporary_folder() as folder:
        formats.write(data, folder / "t.json", "coco")
        oracle = quietly(folder / "t.json")
    kept = data.cells.filter(data.cells.frame["counted"].to_numpy())
    kept = kept.filter(kept.frame["label"].is_not_null().to_numpy())
    assert [entry["file_name"] for entry in oracle.loadImgs(oracle.getImgIds())] == data.images.ids
    assert [entry["name"] for entry in oracle.loadCats(oracle.getCatIds())] == list(data.labels.names)
    annotations = oracle.loadAnns(oracle.getAnnIds())
    assert len(annotations) == len(kept)
    sizes = {row["image_id"]: (row["height_px"], row["width_px"]) for row in data.images.rows()}
    for entry, row, box in zip(annotations, kept.frame.to_dicts(), kept.boxes(), strict=True):
        assert oracle.cats[entry["category_id"]]["name"] == row["label"]
        assert oracle.imgs[entry["image_id"]]["file_name"] == row["image_id"]
        assert np.allclose(entry["bbox"], [box[0], box[1], box[2] - box[0], box[3] - box[1]])
        assert bool(entry["iscrowd"]) is row["ignore"]
        if row["mask"] is not None:
            mask = masks.decode(row["mask"], sizes[row["image_id"]])
            assert np.array_equal(oracle.annToMask(entry).astype(bool), mask)
            assert entry["area"] == mask.sum()
        else:
            assert entry["area"] == pytest.approx((box[2] - box[0]) * (box[3] - box[1]), rel=1e-5)


def test_results_are_scored_by_pycocotools(tmp_path: Path) -> None:
    truth = small_dataset(tmp_path / "images")
    formats.write(truth, tmp_path / "truth.json", "coco")
    found = small_dataset(tmp_path / "images", score=[0.9, 0.4], counted=[True, False])
    options = WriteOptions(results=True, reference=tmp_path / "truth.json")
    problems = formats.write(found, tmp_path / "found.json", "coco", options)
    assert {problem.where for problem in problems} == {"cell ids", "sources", "splits", "groups", "label trees"}
    oracle = quietly(tmp_path / "truth.json")
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(oracle, oracle.loadRes(str(tmp_path / "found.json")), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    assert judge.stats[0] == pytest.approx(1.0)
    back = read(tmp_path / "found.json", reference=tmp_path / "truth.json", images=tmp_path / "images").dataset
    assert back.cells.frame["score"].to_list() == pytest.approx([0.9, 0.4])
    assert back.cells.label_names() == ["WBC", "RBC"]
    assert formats.read(
        tmp_path / "found.json", options=ReadOptions(reference=tmp_path / "truth.json")
    ).dataset.images.ids


def test_results_take_the_numbers_of_their_reference(tmp_path: Path) -> None:
    found = small_dataset(tmp_path / "images", label=["WBC", None], score=[0.9, 0.4])
    images = [{"id": 50, "file_name": "set/two.png"}, {"id": "x1", "file_name": "set/one.png"}]
    categories = [{"id": 4, "name": "leucocyte"}, {"id": 4000, "name": "LEUCOCYTE"}]
    reference = put(tmp_path / "truth.json", content(images=images, categories=categories))
    formats.write(found, tmp_path / "out", "coco", WriteOptions(results=True, reference=reference))
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == [
        {"image_id": "x1", "category_id": 4, "bbox": [0, 0, 20, 10], "area": 200, "score": pytest.approx(0.9)}
    ]


def test_results_that_do_not_fit_their_reference(tmp_path: Path) -> None:
    found = small_dataset(tmp_path / "images")
    reference = put(tmp_path / "truth.json", content(images=[{"id": 1, "file_name": "one.png"}]))
    options = WriteOptions(results=True, reference=reference)
    with pytest.raises(FormatError, match=r"does not name 1 images that have cells: two\.png"):
        formats.write(found, tmp_path / "found.json", "coco", options)
    images = [{"id": 1, "file_name": "one.png"}, {"id": 2, "file_name": "two.png"}]
    put(reference, content(images=images, categories=[{"id": 1, "name": "RBC"}]))
    problems = formats.write(found, tmp_path / "found.json", "coco", options)
    assert [problem.kind for problem in problems if problem.kind != "not-kept"] == ["label-unknown"]
    assert len(json.loads((tmp_path / "found.json").read_text())) == 1
    put(reference, [])
    with pytest.raises(FormatError, match="no instances JSON"):
        formats.write(found, tmp_path / "found.json", "coco", options)
    with pytest.raises(FormatError, match="cannot be opened"):
        formats.write(
            found, tmp_path / "found.json", "coco", WriteOptions(results=True, reference=tmp_path / "nowhere.json")
        )


def test_results_alone_mean_nothing(folder: Path) -> None:
    put(folder / "r.json", [{"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}])
    with pytest.raises(FormatError, match=r"results list.*reference"):
        read(folder / "r.json")
    put(folder / "t.json", content())
    assert len(read(folder / "r.json", reference=folder / "t.json").dataset.cells) == 1


def test_an_empty_results_list_has_all_images(folder: Path) -> None:
    put(folder / "r.json", [])
    put(folder / "t.json", content({}))
    back = read(folder / "r.json", reference=folder / "t.json").dataset
    assert (len(back.images), len(back.cells)) == (1, 0)


def test_masks_need_the_size_of_their_image(tmp_path: Path) -> None:
    data = small_dataset(tmp_path, mask=[masks.encode(np.ones((10, 20), bool)), None])
    sizeless = Dataset(data.images.with_columns(width_px=None, height_px=None), data.cells)
    with pytest.raises(FormatError, match=r'size of "one\.png" is not known'):
        formats.write(sizeless, tmp_path / "t.json", "coco")
    assert not (tmp_path / "t.json").exists()


def test_copies_of_images_are_named_as_they_lie(tmp_path: Path) -> None:
    formats.write(small_dataset(tmp_path / "images"), tmp_path / "out", "coco", WriteOptions(copy_images=True))
    names = [entry["file_name"] for entry in json.loads((tmp_path / "out/instances.json").read_text())["images"]]
    assert names == ["images/one.png", "images/two.png"]
    assert sorted(path.name for path in (tmp_path / "out/images").iterdir() if path.suffix in SUFFIXES) == [
        "one.png",
        "two.png",
    ]


def test_a_missing_image_is_not_copied(tmp_path: Path) -> None:
    data = small_dataset(tmp_path / "images")
    (tmp_path / "images" / "one.png").unlink()
    problems = formats.write(data, tmp_path / "out", "coco", WriteOptions(copy_images=True))
    assert [problem.where for problem in problems.of("image-missing")] == ["one.png"]
    pathless = Dataset(data.images.with_columns(path=None), data.cells)
    problems = formats.write(pathless, tmp_path / "out2", "coco", WriteOptions(copy_images=True))
    assert [problem.where for problem in problems.of("image-missing")] == ["one.png", "two.png"]


def test_labels_are_those_asked_for(folder: Path) -> None:
    labels = LabelSet.of(["erythrocyte", "leukocyte"])
    data = read(put(folder / "t.json", content({}, {"category_id": 90})), labels=labels).dataset
    assert data.cells.label_names() == ["erythrocyte", "leukocyte"]
    assert data.labels == labels
