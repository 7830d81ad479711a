"""COCO JSON: instances files (truth) and results lists (findings).

Boxes are corner and size; outlines are polygons or run-length codes; ``iscrowd`` becomes `ignore`.
Ids are arbitrary numbers. Three keys that COCO's own tools pass over are read and written as well:
``split`` and ``group`` of an image, ``score`` of an annotation.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from cytolens import boxes as box
from cytolens import masks
from cytolens.cells import BOX_COLUMNS
from cytolens.formats import outlines
from cytolens.formats.assembly import Imported, assemble, rows
from cytolens.formats.coco_json import categories, is_id, is_instances, load
from cytolens.formats.coco_writing import CANNOT_KEEP, RESULTS_CANNOT_KEEP, write
from cytolens.formats.intake import Intake, Reference, as_number
from cytolens.formats.options import ReadOptions
from cytolens.formats.sources import ImageIndex, Picture, is_text, posix_name, split_in_file_name, walk
from cytolens.problems import FormatError, listing

__all__ = ["CANNOT_KEEP", "RESULTS_CANNOT_KEEP", "read", "write"]

_NO_BOX = (float("nan"),) * 4


@dataclass(frozen=True, slots=True)
class _Document:
    """One instances file; for a results list its reference, with the results as annotations.

    Attributes:
        place: the file with the annotations, as problems name it.
        folder: where the file with the images is, relative to the import root.
        images, annotations: the lists of the file.
        names: category id → name.
        split: the split that the file is called after, if there are several files.
        annotated: whether the file has annotations at all.
        positions: image id → position among all references, filled as images are read.
    """

    place: str
    folder: str
    images: list[Any]
    annotations: list[Any]
    names: dict[Any, str]
    split: str | None = None
    annotated: bool = True
    positions: dict[Any, int] = field(default_factory=dict)


class _Found(NamedTuple):
    """One annotation, as far as it can be read without its image."""

    image: int
    where: str
    label: str | None
    edges: tuple[float, ...] | None  # None: to be taken from the outline
    segmentation: Any
    score: float | None
    ignore: bool


def read(source: Path, options: ReadOptions) -> Imported:
    """Read an instances JSON, a folder of them, or a results JSON (with `options.reference`).

    Raises:
        FormatError: the JSON is damaged or of another kind, a results list comes without its
            reference, or no image is found.
    """
    intake = Intake("coco", _root(source, options), options, source.stem if source.is_file() else source.name)
    documents = _documents(intake, source)
    index = intake.index()
    references: list[Reference] = []
    for document in documents:
        references += _references(intake, document, index, len(references))
    found = [cell for document in documents for cell in _annotations(intake, document)]
    pictures = intake.locate(references, index)
    declared = list(dict.fromkeys(name for document in documents for name in document.names.values()))
    return assemble(intake, references, pictures, _cells(intake, found, pictures), declared)


# -- files ------------------------------------------------------------------------------------------


def _root(source: Path, options: ReadOptions) -> Path:
    """The import root: a folder itself; of a file its folder, or the one above "annotations"."""
    if source.is_dir():
        return source
    folder = (options.reference or source).absolute().parent
    return folder.parent if folder.name.casefold() == "annotations" else folder


def _documents(intake: Intake, source: Path) -> list[_Document]:
    if source.is_file():
        data = _load(intake, source)
        if isinstance(data, list):
            return [_results(intake, source, data)]
        return [_instances(intake, source, data)]
    paths = {name: Path(entry.path) for name, entry in walk(source) if name.casefold().endswith(".json")}
    named = {name: path for name, path in paths.items() if path.name.casefold().startswith("instances")}
    loaded = {name: (path, _load(intake, path)) for name, path in (named or paths).items()}
    fitting = {name: pair for name, pair in loaded.items() if is_instances(pair[1])}
    if not fitting:
        raise FormatError(f"{source}: wanted an instances JSON; found {listing(paths) or 'no JSON file'}.")
    documents = [_instances(intake, path, data) for path, data in fitting.values()]
    if len(documents) == 1:
        return documents
    return [
        replace(document, split=split_in_file_name(name)) for name, document in zip(fitting, documents, strict=True)
    ]


def _load(intake: Intake, path: Path) -> Any:
    return load(intake.read_text(path), path)


def _instances(intake: Intake, path: Path, data: Any) -> _Document:
    annotations = data.get("annotations", []) if isinstance(data, dict) else None
    if not is_instances(data) or not isinstance(annotations, list):
        raise FormatError(f'{path}: an instances JSON has the lists "images", "categories" and "annotations".')
    folder = intake.place(path).rpartition("/")[0]
    names = categories(data, path)
    return _Document(intake.place(path), folder, data["images"], annotations, names, annotated="annotations" in data)


def _results(intake: Intake, path: Path, results: list[Any]) -> _Document:
    if intake.options.reference is None:
        raise FormatError(
            f"{path}: is a results list, whose image and category numbers mean nothing alone. "
            "Give the instances JSON they refer to as reference."
        )
    reference = intake.options.reference
    document = _instances(intake, reference, _load(intake, reference))
    return replace(document, place=intake.place(path), annotations=results, annotated=True)


# -- images -----------------------------------------------------------------------------------------


def _references(intake: Intake, document: _Document, index: ImageIndex, offset: int) -> list[Reference]:
    """The images of a file; their positions, counted from `offset`, go into `document.positions`."""
    named: list[tuple[str, str, dict[str, Any]]] = []
    for number, entry in enumerate(document.images, 1):
        where = f"{document.place}: image {number}"
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not is_text(name) or not posix_name(name) or not is_id(entry.get("id")):
            what = "an image needs an id and a file_name; it is left out with its cells."
            intake.problems.add("annotation-unreadable", where, what, "Correct the file.", "error")
        elif entry["id"] in document.positions:
            what = f"the image id {entry['id']} is taken by another image; this one is left out."
            intake.problems.add("annotation-unreadable", where, what, "Give each image an id of its own.", "error")
        else:
            document.positions[entry["id"]] = offset + len(named)
            beside = posix_name(f"{document.folder}/{name}")
            named.append((beside if index.exactly(beside) else posix_name(name), where, entry))
    found = index.resolve(name for name, _, _ in named)
    return [
        Reference(
            name=name,
            where=where,
            image_id=found[name],
            splits=tuple(split for split in (_text(entry, "split") or document.split,) if split),
            group=_text(entry, "group"),
            size_wh=_size(entry),
            annotated=document.annotated,
        )
        for name, where, entry in named
    ]


def _text(entry: dict[str, Any], key: str) -> str | None:
    value = entry.get(key)
    return value if isinstance(value, str) and value and is_text(value) else None


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    width, height = as_number(entry.get("width")), as_number(entry.get("height"))
    return (int(width), int(height)) if 1 <= width < 2**31 and 1 <= height < 2**31 else None


# -- annotations ------------------------------------------------------------------------------------


def _annotations(intake: Intake, document: _Document) -> list[_Found]:
    found: list[_Found] = []
    strangers: Counter[str] = Counter()
    first: dict[str, str] = {}
    for number, entry in enumerate(document.annotations, 1):
        where = f"{document.place}: annotation {number}"
        position = document.positions.get(entry["image_id"]) if _names_image(entry) else None
        if position is None:
            what = "names no image of the file" if isinstance(entry, dict) else "is no JSON object"
            intake.problems.add("annotation-unreadable", where, f"{what}; left out.", "Correct the file.", "error")
            continue
        category = entry.get("category_id")
        label = document.names.get(category) if is_id(category) else None
        if label is None:
            shown = json.dumps(category)[:40]
            strangers[shown] += 1
            first.setdefault(shown, where)
        score = None if entry.get("score") is None else as_number(entry["score"])
        ignore = any(as_number(entry.get(key)) == 1 or entry.get(key) is True for key in ("iscrowd", "ignore"))
        found.append(_Found(position, where, label, _edges(entry), entry.get("segmentation"), score, ignore))
    for shown, count in strangers.items():
        known = listing(map(str, document.names))
        what = f"there is no category {shown} (ids: {known}); {count} cells are kept without a label."
        intake.problems.add("label-unknown", first[shown], what, "Correct the categories.", "error")
    return found


def _names_image(entry: Any) -> bool:
    return isinstance(entry, dict) and is_id(entry.get("image_id"))


def _edges(entry: dict[str, Any]) -> tuple[float, ...] | None:
    given = entry.get("bbox")
    if given is None or given == []:
        return None
    if not isinstance(given, list) or len(given) != 4:
        return _NO_BOX
    x, y, width, height = map(as_number, given)
    return tuple(box.from_corner_size([x, y, width, height])[0].tolist())


def _cells(intake: Intake, found: Sequence[_Found], pictures: Sequence[Picture | None]) -> pl.DataFrame:
    """The annotations as `ROWS`."""
    kept = [(cell, picture) for cell in found if (picture := pictures[cell.image]) is not None]
    codes = [_mask(intake, cell, picture) for cell, picture in kept]
    edges = [cell.edges or _bounds(code, picture) for (cell, picture), code in zip(kept, codes, strict=True)]
    return rows(
        {
            "image": [cell.image for cell, _ in kept],
            "where": [cell.where for cell, _ in kept],
            "label": [cell.label for cell, _ in kept],
            **{name: [numbers[axis] for numbers in edges] for axis, name in enumerate(BOX_COLUMNS)},
            "score": [cell.score for cell, _ in kept],
            "mask": codes,
            "ignore": [cell.ignore for cell, _ in kept],
        }
    )


def _mask(intake: Intake, cell: _Found, picture: Picture) -> bytes | None:
    if cell.segmentation is None or cell.segmentation == []:
        return None
    try:
        if picture.size_wh is None:
            raise ValueError("the size of the image is not known")
        return outlines.from_segmentation(cell.segmentation, picture.size_wh)
    except ValueError as error:
        what = f"the outline cannot be used: {error}; only the box is kept."
        intake.problems.add("mask-unreadable", cell.where, what, "Correct the file.", "error")
        return None


def _bounds(code: bytes | None, picture: Picture) -> tuple[float, ...]:
    """The box of an outline, for annotations that give no box."""
    if code is None or picture.size_wh is None:
        return _NO_BOX
    width, height = picture.size_wh
    return tuple(masks.bounds(code, (height, width)).tolist())
