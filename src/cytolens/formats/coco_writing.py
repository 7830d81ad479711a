"""COCO JSON written: instances files and results lists."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cytolens import boxes as box
from cytolens import masks
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.formats.coco_json import categories, is_id, is_instances, load
from cytolens.formats.export import copy_images, file_names, output_file
from cytolens.formats.intake import decode_text
from cytolens.formats.options import WriteOptions
from cytolens.formats.sources import posix_name
from cytolens.labels import LabelSet, folded
from cytolens.problems import FormatError, Problems, listing, written

More = Callable[[Cells], list[dict[str, Any]]]  # cells → further fields of the annotation of each
_LOST_BY_BOTH = (
    "cells without a label",
    "probabilities",
    "attributes",
    "referral flags",
    "cell ids",
    "sources",
    "folds",
    "pixel sizes in µm",
    "stains, scanners and magnifications",
    "what the annotation is complete for",
)
CANNOT_KEEP = (*_LOST_BY_BOTH, "cells below the threshold", "label trees")
RESULTS_CANNOT_KEEP = (
    *_LOST_BY_BOTH, "ignore flags", "images without cells", "splits", "groups", "label trees", "labels without cells"
)  # fmt: skip


def write(data: Dataset, path: Path, options: WriteOptions, more: More | None = None) -> Problems:
    """Write an instances JSON, or with `options.results` a results list.

    `path` is the file where it ends in .json, else ``instances.json`` or ``results.json`` in the
    folder `path`. Ids count from 1 in the order of images, labels and cells; those of results are
    looked up in `options.reference` where that is given. `more` gives further fields of each annotation.

    Raises:
        FormatError: the reference is damaged, or does not name an image that has cells.
    """
    problems = Problems()
    target = output_file(path, ".json", "results.json" if options.results else "instances.json")
    content: Any
    if options.results:
        content = _results(data, options.reference, problems)
    else:
        names = {image_id: image_id for image_id in data.images.ids}
        if options.copy_images:
            names = {image_id: f"images/{name}" for image_id, name in file_names(data.images.ids).items()}
            copy_images(data.images, {i: target.parent / name for i, name in names.items()}, problems)
        content = _instances(data, names, more)
    with written(target) as part, part.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, ensure_ascii=False, allow_nan=False)
    return problems


def _instances(data: Dataset, names: Mapping[str, str], more: More | None) -> dict[str, Any]:
    image_numbers = {image_id: number for number, image_id in enumerate(data.images.ids, 1)}
    images = []
    for row in data.images.rows():
        entry = {"id": image_numbers[row["image_id"]], "file_name": names[row["image_id"]]}
        optional = {"width": row["width_px"], "height": row["height_px"], "split": row["split"], "group": row["group"]}
        images.append(entry | {key: value for key, value in optional.items() if value is not None})
    category_numbers = {name: number for number, name in enumerate(data.labels.names, 1)}
    annotations = []
    named = data.cells.filter(pl.col("label").is_not_null())  # those that `_cells` gives
    fields = [{}] * len(named) if more is None else more(named)
    for number, ((image_id, label, score, ignore, shape), own) in enumerate(zip(_cells(data), fields, strict=True), 1):
        numbers = {"id": number, "image_id": image_numbers[image_id], "category_id": category_numbers[label]}
        scored = {} if score is None else {"score": score}
        annotations.append(numbers | {"segmentation": []} | shape | {"iscrowd": int(ignore)} | scored | own)
    return {
        "info": {"description": data.name},
        "licenses": [],
        "images": images,
        "categories": [
            {"id": number, "name": name, "supercategory": data.labels.parents.get(name, "cell")}
            for name, number in category_numbers.items()
        ],
        "annotations": annotations,
    }


def _results(data: Dataset, reference: Path | None, problems: Problems) -> list[dict[str, Any]]:
    image_numbers: dict[str, Any] = {image_id: number for number, image_id in enumerate(data.images.ids, 1)}
    category_numbers: dict[str, Any] = {name: number for number, name in enumerate(data.labels.names, 1)}
    if reference is not None:
        content = _reference(reference)
        image_numbers = _numbers_of_images(content, data.cells.frame["image_id"].unique().sort().to_list(), reference)
        category_numbers = _numbers_of_labels(categories(content, reference), data.labels)
    results, strangers = [], Counter[str]()
    for image_id, label, score, _, shape in _cells(data):
        if label not in category_numbers:
            strangers[label] += 1
            continue
        numbers = {"image_id": image_numbers[image_id], "category_id": category_numbers[label]}
        results.append(numbers | shape | {"score": 1.0 if score is None else score})
    for label, count in strangers.items():
        what = f'the reference has no category for "{label}"; {count} cells are left out.'
        problems.add("label-unknown", str(reference), what, "Add the category, or relabel the cells.", "error")
    return results


def _cells(data: Dataset) -> Iterator[tuple[str, str, float | None, bool, dict[str, Any]]]:
    """Image, label, score, ignore flag and shape (bbox, area, segmentation) of each cell that has a label."""
    corner_sizes = box.to_corner_size(data.cells.boxes().astype(np.float64))
    areas = box.areas(data.cells.boxes().astype(np.float64))
    sizes = {i: (w, h) for i, w, h in data.images.frame.select("image_id", "width_px", "height_px").iter_rows()}
    columns = data.cells.frame.select("image_id", "label", "score", "ignore", "mask")
    for (image_id, label, score, ignore, mask), numbers, area in zip(
        columns.iter_rows(), corner_sizes, areas, strict=True
    ):
        if label is None:
            continue
        shape: dict[str, Any] = {"bbox": [_number(value) for value in numbers], "area": _number(area)}
        if mask is not None:
            width, height = sizes[image_id]
            if not width or not height:
                raise FormatError(
                    f'the size of "{image_id}" is not known, and COCO\'s masks name it. Import its image.'
                )
            shape["segmentation"] = {"size": [height, width], "counts": mask.decode("ascii")}
            shape["area"] = masks.area(mask)
        yield image_id, label, score, ignore, shape


def _number(value: float) -> int | float:
    """A number as JSON writes it best: without a point where it is whole."""
    return int(value) if float(value).is_integer() else float(value)


# -- ids of a reference -----------------------------------------------------------------------------


def _reference(path: Path) -> dict[str, Any]:
    try:
        content = load(decode_text(path.read_bytes(), str(path)), path)
    except OSError as error:
        raise FormatError(f"{path}: the reference cannot be opened ({error.strerror}). Check the path.") from error
    if not is_instances(content):
        raise FormatError(f"{path}: the reference is no instances JSON (lists of images and categories).")
    return content


def _numbers_of_images(content: Mapping[str, Any], image_ids: Sequence[str], path: Path) -> dict[str, Any]:
    """Image id → the reference's number, by whole name, else by a file name that only one image has."""
    exact: dict[str, Any] = {}
    by_name: dict[str, list[Any]] = {}
    for entry in content["images"]:
        if isinstance(entry, dict) and isinstance(entry.get("file_name"), str) and is_id(entry.get("id")):
            name = posix_name(entry["file_name"])
            exact[name] = entry["id"]
            by_name.setdefault(name.rsplit("/", 1)[-1], []).append(entry["id"])
    table: dict[str, Any] = {}
    for image_id in image_ids:
        same = by_name.get(image_id.rsplit("/", 1)[-1], [])
        if image_id in exact or len(same) == 1:
            table[image_id] = exact.get(image_id, same[0])
    if missing := [image_id for image_id in image_ids if image_id not in table]:
        raise FormatError(
            f"{path}: the reference does not name {len(missing)} images that have cells: {listing(missing, 5)}."
        )
    return table


def _numbers_of_labels(names: Mapping[Any, str], labels: LabelSet) -> dict[str, Any]:
    """Label → the number of the reference's category that says the same or the nearest wider thing."""
    by_name: dict[str, Any] = {}
    for number, name in names.items():
        if name and all(folded(name) != folded(other) for other in by_name):
            by_name[name] = number
    mapping = labels.mapping_to(LabelSet.of(by_name))
    return {label: by_name[name] for label, name in mapping.items() if name is not None}
