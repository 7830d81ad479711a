"""GeoJSON written for QuPath (0.4 or later): a FeatureCollection per image."""

from __future__ import annotations

import colorsys
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cytolens import masks
from cytolens.cells import BOX_COLUMNS, Cells
from cytolens.dataset import Dataset
from cytolens.formats import contours
from cytolens.formats.export import copy_images, file_names, number_text, output_folder
from cytolens.formats.options import WriteOptions
from cytolens.formats.sources import without_image_suffix
from cytolens.labels import LabelSet
from cytolens.problems import FormatError, Problems, written

CANNOT_KEEP = (
    "masks without a pixel",
    "boxes other than the mask's bounds",
    "probabilities",
    "attributes",
    "cell ids",
    "sources",
    "referral flags",
    "cells below the threshold",
    "label trees",
    "labels without cells",
    "folds",
    "pixel sizes in µm",
    "stains, scanners and magnifications",
    "what the annotation is complete for",
)
FOLDER = "geojson"
_GOLDEN = 0.61803399  # steps of this share of the colour circle keep neighbouring labels apart


def write(data: Dataset, path: Path, options: WriteOptions) -> Problems:
    """Write ``geojson/<image>.geojson`` for every image into the new folder `path`, or one image to the file `path`.

    A cell with a score is QuPath's "detection", one that a person drew an "annotation". A cell without
    a mask is its rectangle; a mask that is a rectangle gets one point more, so that it is read as a mask.

    Raises:
        FormatError: the folder is not empty, `path` is one file for several images, two images would share
            a file, or an image with masks has no known size.
    """
    problems = Problems()
    names = file_names(data.images.ids, by_stem=True)
    is_file = path.suffix.casefold() in (".geojson", ".json")
    if is_file and len(names) != 1:
        raise FormatError(f'"{path}": one GeoJSON file is for one image, and there are {len(names)}. Name a folder.')
    folder = path.parent if is_file else output_folder(path)
    if not is_file:
        (folder / FOLDER).mkdir()
    if options.copy_images:
        copy_images(data.images, {i: folder / "images" / name for i, name in names.items()}, problems)
    cells_of = dict(data.cells.by_image())
    for row in data.images.rows():
        name = names[row["image_id"]]
        content = _collection(row, f"images/{name}" if options.copy_images else name, cells_of.get(row["image_id"]))
        target = path if is_file else folder / FOLDER / f"{without_image_suffix(name)}.geojson"
        with written(target) as part, part.open("w", encoding="utf-8") as stream:
            json.dump(content, stream, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return problems


def _collection(row: Mapping[str, Any], name: str, cells: Cells | None) -> dict[str, Any]:
    members = {"image": name, "split": row["split"], "group": row["group"]}
    return {
        "type": "FeatureCollection",
        **{key: value for key, value in members.items() if value is not None},
        "features": [] if cells is None else _features(cells, row),
    }


def _features(cells: Cells, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    columns = ["cell_id", "label", "score", "ignore", "mask", *BOX_COLUMNS]
    features = []
    for cell_id, label, score, ignore, mask, *box in cells.frame.select(columns).iter_rows():
        measurements = {} if score is None else {"score": _number(score)}
        properties: dict[str, Any] = {"objectType": "annotation" if score is None else "detection"}
        if label is not None:
            properties["classification"] = {"name": label, "color": list(own_colour(cells.labels, label))}
        if ignore:
            measurements["ignore"] = 1
        features.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"cytolens {cell_id}")),
                "geometry": _rectangle(box) if mask is None or not masks.area(mask) else _outline(mask, row),
                "properties": properties | ({"measurements": measurements} if measurements else {}),
            }
        )
    return features


def _rectangle(box: list[float]) -> dict[str, Any]:
    x_min, y_min, x_max, y_max = map(_number, box)
    ring = [[x_min, y_min], [x_max, y_min], [x_max, y_max], [x_min, y_max], [x_min, y_min]]
    return {"type": "Polygon", "coordinates": [ring]}


def _outline(code: bytes, row: Mapping[str, Any]) -> dict[str, Any]:
    width, height = row["width_px"], row["height_px"]
    if not width or not height:
        raise FormatError(f'the size of "{row["image_id"]}" is not known, and its masks need it. Import its image.')
    try:
        part, x_min, y_min = masks.crop(code, (height, width))
    except ValueError as error:
        raise FormatError(f'a mask of "{row["image_id"]}" cannot be written: {error}. Import it again.') from error
    polygons = contours.polygons_of(part, x_min, y_min)
    if len(polygons) == len(polygons[0]) == 1 and len(ring := polygons[0][0]) == 4:
        polygons = [[np.insert(ring, 1, (ring[0] + ring[1]) / 2, axis=0)]]
    rings = [[_closed(ring) for ring in polygon] for polygon in polygons]
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings[0]}
    return {"type": "MultiPolygon", "coordinates": rings}


def _closed(ring: contours.Ring) -> list[list[int | float]]:
    points = [[_number(x), _number(y)] for x, y in ring.tolist()]
    return [*points, points[0]]


def _number(value: float) -> int | float:
    """A number as JSON writes it best: the shortest that reads back as the same float32."""
    short = float(number_text(value))
    return int(short) if short.is_integer() else short


def own_colour(labels: LabelSet, label: str) -> tuple[int, int, int]:
    """A strong colour (R, G, B) of its own for each label."""
    red, green, blue = colorsys.hsv_to_rgb(labels.index(label) * _GOLDEN % 1, 0.75, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)
