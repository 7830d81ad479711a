"""Every reader, fed with files full of mistakes: a dataset with its problems, or one error; nothing else, ever.

CYTOLENS_FUZZ says how many files per format (300 unless told).
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from cytolens import formats
from cytolens.formats import ReadOptions
from cytolens.labels import LabelSet
from cytolens.problems import CytolensError, FormatError
from tests.contracts import save_picture
from tests.formats.mistakes import spoilt

FILES = int(os.environ.get("CYTOLENS_FUZZ", "300"))
LONGEST_S = 5.0  # of processor time, for one file
MOST_BYTES = 1 << 30  # of memory beyond what is in use

VOC = """<?xml version="1.0" encoding="utf-8"?>
<annotation>
  <folder>JPEGImages</folder><filename>{name}.png</filename>
  <size><width>20</width><height>10</height><depth>3</depth></size>
  <object><name>WBC</name><difficult>0</difficult>
    <bndbox><xmin>1</xmin><ymin>2</ymin><xmax>12.5</xmax><ymax>9</ymax></bndbox></object>
  <object><name>RBC</name><difficult>1</difficult>
    <bndbox><xmin>0</xmin><ymin>0</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object>
</annotation>
"""
COCO = """{"info": {}, "licenses": [],
"images": [
 {"id": 1, "file_name": "one.png", "width": 20, "height": 10, "split": "train", "group": "p1"},
 {"id": "b", "file_name": "images/two.png", "width": 20, "height": 10}],
"categories": [{"id": 1, "name": "WBC"}, {"id": 7, "name": "RBC", "supercategory": "cell"}],
"annotations": [
 {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 8.5, 6], "iscrowd": 0, "area": 48, "score": 0.5,
  "segmentation": [[1, 2, 9.5, 2, 9, 8, 1, 8], [12, 1, 14, 1, 13, 4]]},
 {"id": 2, "image_id": 1, "category_id": 7, "bbox": [0, 0, 20, 10], "iscrowd": 1,
  "segmentation": {"size": [10, 20], "counts": [12, 6, 4, 6, 172]}},
 {"id": 3, "image_id": "b", "category_id": 7, "segmentation": {"size": [10, 20], "counts": "<64f5"}},
 {"id": 4, "image_id": "b", "category_id": 1, "bbox": [3, 3, 4, 4]}]}
"""
GEOJSON = """{"type": "FeatureCollection", "image": "images/one.png", "split": "train", "group": "p1", "features": [
 {"type": "Feature", "id": "a", "geometry": {"type": "Polygon",
   "coordinates": [[[1, 1], [9, 1], [9, 8], [1, 8], [1, 1]], [[3, 3], [3, 5], [5, 5], [5, 3], [3, 3]]]},
  "properties": {"objectType": "cell", "classification": {"name": "WBC", "color": [1, 2, 3]},
   "measurements": {"score": 0.5, "ignore": 0}}},
 {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[10, 2], [15, 2], [15, 6], [10, 6], [10, 2]]]},
  "properties": {"classification": {"names": ["RBC", "old"]}, "measurements": [{"name": "score", "value": 1}]}},
 {"type": "Feature", "geometry": {"type": "MultiPolygon",
   "coordinates": [[[[0, 0], [4, 0.5], [2, 3], [0, 0]]], [[[16, 6], [19, 6], [18, 9], [16, 6]]]]},
  "properties": {"objectType": "annotation"}}]}
"""
YOLO = {
    "data.yaml": "path: ../set\ntrain: images/train\nval: val.txt\nnc: 2\nnames:\n  0: WBC\n  1: RBC\n",
    "classes.txt": "WBC\nRBC\n",
    "val.txt": "./images/val/two.png\n",
    "labels/train/one.txt": "0 0.5 0.5 0.2 0.4\n1 0.25 0.5 0.5 1 0.875\n0 0.1 0.1 0.4 0.1 0.3 0.6 0.1 0.5\n",
    "labels/val/two.txt": "1 0.500000 0.300000 0.100000 0.200000\n",
}
TABLES = {
    "csv_boxes": "NAME,x1,y1,x2,y2,class,score,ignore,split,group\n"
    'one.png,1,2,12.5,9,WBC,0.5,0,train,p1\none.png,-3,0,5,5,RBC,,1,train,p1\n"two.png",,,,,,,,val,p2\n',
    "rle_csv": "id,annotation,width,height,cell_type,score,ignore,split,group,sample_id\n"
    "one,1 4 21 4 41 4,20,10,shsy5y,0.5,0,train,p1,shsy5y[diff]_E10-4_Vessel-714_Ph_3\n"
    "one,30 3 50 3,20,10,astro,,1,train,p1,\ntwo,,20,10,,,,val,,\n",
    "wbcatt": "img_name,label,cell_size,cell_shape,nucleus_shape,nuclear_cytoplasmic_ratio,chromatin_density,"
    "cytoplasm_vacuole,cytoplasm_texture,cytoplasm_colour,granule_type,granule_colour,granularity,path,split\n"
    "one.png,WBC,big,round,segmented-bilobed,low,densely,no,clear,light blue,round,red,yes,x/one.png,train\n"
    "two.png,RBC,small,round,,high,densely,no,clear,blue,nil,nil,no,x/two.png,val\n",
    "image_folder": "image,label,split,group\none.png,WBC,train,p1\ntwo.png,RBC,val,p2\ntwo.png,,val,p2\n",
}


def voc(folder: Path) -> list[Path]:
    texts = {f"Annotations/{name}.xml": VOC.format(name=name) for name in ("one", "two")}
    return written(folder, texts | {"ImageSets/Main/train.txt": "one\n", "ImageSets/Main/val.txt": "two\n"})


def yolo(folder: Path) -> list[Path]:
    return written(folder, YOLO)


def coco(folder: Path) -> list[Path]:
    return written(folder, {"instances.json": COCO})


def geojson(folder: Path) -> list[Path]:
    return written(folder, {"one.geojson": GEOJSON})


def label_images(folder: Path) -> list[Path]:
    numbers = np.zeros((10, 20), np.uint16)
    numbers[1:5, 2:9], numbers[6:9, 10:15] = 1, 700
    (folder / "masks").mkdir()
    Image.fromarray(numbers.astype(np.uint8)).save(folder / "masks/one.png")
    tifffile.imwrite(folder / "masks/two.tif", numbers, compression="zlib")
    csv = "image,value,label,score,ignore,split,group\none,1,WBC,0.5,0,train,p1\none,188,RBC,,1,,\ntwo,700,RBC,,,,\n"
    texts = written(folder, {"masks/cells.csv": csv})
    return [folder / "masks/one.png", folder / "masks/two.tif", *texts]


def table(format: str) -> Callable[[Path], list[Path]]:
    return lambda folder: written(folder, {"table.csv": TABLES[format]})


def written(folder: Path, texts: dict[str, str]) -> list[Path]:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


SETS: dict[str, Callable[[Path], list[Path]]] = {
    "voc": voc, "yolo": yolo, "coco": coco, "geojson": geojson, "label_images": label_images,
    **{format: table(format) for format in TABLES},
}  # fmt: skip


@contextmanager
def little_memory() -> Iterator[None]:
    """Memory beyond what is in use plus `MOST_BYTES` is refused, so that asking for it is an error."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MOST_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class TookTooLong(BaseException):
    """Not an `Exception`, which a reader may take for damage of the file."""


@contextmanager
def little_time() -> Iterator[None]:
    """The block is stopped after `LONGEST_S` of processor time, so that a busy machine does not matter."""

    def stop(*_: object) -> None:
        raise TookTooLong(f"reading took more than {LONGEST_S} s of processor time")

    started = time.process_time()
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    assert time.process_time() - started < LONGEST_S


OPTIONS = (
    ReadOptions(),
    ReadOptions(allow_missing_images=True),
    ReadOptions(allow_missing_images=True, labels=LabelSet.of(["WBC", "RBC"]), label="WBC"),
    ReadOptions(split="train", group_pattern="(o|t)"),
)


def answer(source: Path, format: str, options: ReadOptions) -> str:
    """What came of reading: "dataset" or "error"; anything else fails."""
    try:
        back = formats.read(source, format, options)
    except CytolensError:
        return "error"
    assert all(problem.where and problem.what for problem in back.problems)
    assert np.isfinite(back.dataset.cells.boxes()).all()
    assert set(back.dataset.cells.frame["image_id"]) <= set(back.dataset.images.ids)
    return "dataset"


def small_set(format: str, folder: Path) -> list[Path]:
    """A data set of two images, and its annotation files."""
    folder.mkdir()
    files = SETS[format](folder)
    at = {"voc": "JPEGImages", "yolo": "images"}.get(format, "images")
    for number, name in enumerate(("train/one.png", "val/two.png") if format == "yolo" else ("one.png", "two.png")):
        save_picture(folder / at / name, number=number)
    return files


@pytest.mark.parametrize("format", SETS)
def test_files_with_mistakes(format: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    files = small_set(format, folder)
    for options in OPTIONS:
        assert answer(folder, format, options) == "dataset"
    # Some formats are one file, which can be named itself: then it may not be passed over in silence.
    sources = [folder, files[0]] if len(files) == 1 else [folder]
    draw = random.Random(f"mistakes in {format}")
    counts: Counter[str] = Counter()
    with little_memory():
        for turn in range(FILES):
            path = draw.choice(files)
            whole = path.read_bytes()
            path.write_bytes(spoilt(whole, draw, path.suffix not in (".png", ".tif")))
            source, how, options = draw.choice(sources), draw.choice([format, format, "auto"]), OPTIONS[turn % 4]
            try:
                with little_time():
                    counts[answer(source, how, options)] += 1
            except BaseException as error:
                kept = path.rename(tmp_path / f"spoilt{path.suffix}")
                error.add_note(f"{path.name} as in {kept}, read as {how} from {source.name} with {options}")
                raise
            path.write_bytes(whole)
    print(f"{format}: {dict(counts)}")
    assert min(counts["dataset"], counts["error"]) > FILES // 50  # mistakes are neither all harmless nor all fatal


# -- files of a few bytes that ask for much ---------------------------------------------------------


def declared(size_wh: tuple[int, int], segmentation: Any) -> str:
    """COCO's JSON of one outline in an image that is only declared."""
    image = {"id": 1, "file_name": "one.png", "width": size_wh[0], "height": size_wh[1]}
    cell = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "segmentation": segmentation}
    return json.dumps({"images": [image], "categories": [{"id": 1, "name": "WBC"}], "annotations": [cell]})


SIDE = 15_811  # the largest square image that is allowed
GREEDY = {
    "a run as long as the largest image": ("rle_csv", f"id,annotation,width,height\none,1 {SIDE**2},{SIDE},{SIDE}\n"),
    "a run longer than any image": ("rle_csv", "id,annotation,width,height\none,1 1000000000000,1000000,1000000\n"),
    "a run of many digits": ("rle_csv", f"id,annotation,width,height\none,1 1{'0' * 4000},20,10\n"),
    "an outline to and fro": ("coco", declared((SIDE, SIDE), [[0, 0, 60_000, 60_000] * 2_000 + [5, 5]])),
    "an outline in a strip": ("coco", declared((250_000_000, 1), [[0, 0, 9e8, 0, 9e8, 1]])),
    "an image of a million by a million": ("coco", declared((10**6, 10**6), {"counts": [10**12], "size": [10**6] * 2})),
}


@pytest.mark.parametrize("what", GREEDY)
def test_a_mask_that_asks_for_all_memory_is_left_out(what: str, tmp_path: Path) -> None:
    format, text = GREEDY[what]
    suffix = "json" if format == "coco" else "csv"
    (source,) = written(tmp_path, {f"table.{suffix}": text})
    with little_memory(), little_time():
        back = formats.read(source, format, ReadOptions(allow_missing_images=True))
    assert back.problems.counts()["mask-unreadable"] == 1
    assert back.dataset.cells.frame["mask"].drop_nulls().to_list() == []


def test_a_geojson_outline_to_and_fro(tmp_path: Path) -> None:
    ring = [[i % 2 * 2_000, i % 2 * 2_000] for i in range(20_000)]
    save_picture(tmp_path / "one.png", (100, 2_000))
    shape = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}
    (source,) = written(tmp_path, {"one.geojson": json.dumps(shape)})
    with little_memory(), little_time():
        back = formats.read(source)
    assert "longer than the 2000000 px allowed" in back.problems.of("mask-unreadable")[0].what
    assert len(back.dataset.cells) == 1


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_label_image_that_unpacks_to_all_memory(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    path = tmp_path / "masks" / f"one.{suffix}"
    ones = np.ones((10_001, 10_000), np.uint8)
    Image.fromarray(ones).save(path) if suffix == "png" else tifffile.imwrite(path, ones, compression="zlib")
    assert path.stat().st_size < 200_000
    save_picture(tmp_path / "one.png")
    with little_memory(), little_time():
        back = formats.read(tmp_path, "label_images")
    assert "more than the 100,000,000 allowed" in back.problems.of("annotation-unreadable")[0].what


def test_thousands_of_strange_labels(tmp_path: Path) -> None:
    text = "image,x1,y1,x2,y2,class\n" + "".join(f"one,0,0,1,1,neutrofil {i}\n" for i in range(5_000))
    (source,) = written(tmp_path, {"table.csv": text})
    with little_time():
        back = formats.read(source, "csv_boxes", ReadOptions(allow_missing_images=True))
    told = back.problems.of("label-unfamiliar")
    assert len(told) == 5_000
    assert told[0].fix.startswith("Did you mean")  # the first are helped, the others only named
    assert told[-1].fix == ""


def test_a_yaml_file_without_end(tmp_path: Path) -> None:
    texts = {"data.yaml": f"names: [{'a,' * 300_000} b]\n", "labels/one.txt": "0 0.5 0.5 0.1 0.1\n"}
    source, _ = written(tmp_path, texts)
    with little_time(), pytest.raises(FormatError, match="are more than the 400,000 allowed for YAML"):
        formats.read(source, "yolo")
