"""GeoJSON as QuPath writes and reads it: one file of features per image, one feature per cell.

Coordinates are px of the image with y downwards, pixel edges as everywhere here. A polygon with holes
is a mask; a plain rectangle is a box without a mask. ``classification.name`` is the label; the
measurements ``score`` and ``ignore`` are kept. A file is called after its image; the ones written here
also name it, its split and its group in members of their own, which other programs pass over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cytolens.cells import BOX_COLUMNS
from cytolens.formats import contours, run_lengths
from cytolens.formats.assembly import Imported, assemble, rows
from cytolens.formats.coco_json import load
from cytolens.formats.geojson_writing import CANNOT_KEEP, FOLDER, write
from cytolens.formats.intake import Intake, Reference, as_number
from cytolens.formats.options import ReadOptions
from cytolens.formats.sources import ImageIndex, Picture, is_text, posix_name, split_in_path, walk, without_image_suffix
from cytolens.images import MAX_PIXELS
from cytolens.problems import FormatError, listing

__all__ = ["CANNOT_KEEP", "is_geojson", "read", "write"]

SUFFIXES = (".geojson", ".json")
# QuPath's objects that are no cells: squares of a grid, cores of an array, the whole image.
_NO_CELLS = frozenset({"tile", "tmaCore", "root", "PathTileObject", "TMACoreObject", "PathRootObject"})


@dataclass(frozen=True, slots=True)
class _Document:
    """One file: its name without suffix relative to the root, its place, its features, its own members."""

    stem: str
    place: str
    features: Sequence[Any]
    members: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Found:
    """One feature, before the size of its image is known."""

    image: int
    where: str
    label: str | None
    score: float | None
    ignore: bool
    polygons: list[list[contours.Ring]]
    is_box: bool

    @property
    def edges(self) -> list[float]:
        """The box around all outer rings."""
        corners = np.concatenate([polygon[0] for polygon in self.polygons])
        return [*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist()]


def is_geojson(data: Any) -> bool:
    """Whether JSON data are features: a collection, a list or a single one."""
    if isinstance(data, list):
        return bool(data) and all(isinstance(one, dict) and one.get("type") == "Feature" for one in data[:5])
    if not isinstance(data, dict):
        return False
    return data.get("type") == "Feature" or (
        data.get("type") == "FeatureCollection" and isinstance(data.get("features"), list)
    )


def read(source: Path, options: ReadOptions) -> Imported:
    """Read one GeoJSON file, or every one in a folder.

    Raises:
        FormatError: there is no GeoJSON, the file named is damaged, or no image is found.
    """
    root = source if source.is_dir() else source.parent
    intake = Intake("geojson", root, options, source.name if source.is_dir() else source.stem)
    files = _files(source)
    documents = [document for path in files if (document := _document(intake, path, source.is_file())) is not None]
    index = intake.index("images")
    references = _references(documents, index)
    if source.is_dir():
        # The image of a file that could not be read must not pass for one without cells.
        unread = {_stem(path.name) for path in files} - {_stem(document.place) for document in documents}
        references += [
            Reference(i, i, i, _split(i), annotated=False)
            for i in index.others({reference.image_id for reference in references})
            if _stem(i) not in unread
        ]
    found = [cell for image, document in enumerate(documents) for cell in _features(intake, image, document)]
    pictures = intake.locate(references, index)
    return assemble(intake, references, pictures, _cells(intake, found, pictures))


# -- files ------------------------------------------------------------------------------------------


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    paths = [Path(entry.path) for name, entry in walk(source) if name.casefold().endswith(SUFFIXES)]
    own = [path for path in paths if path.suffix.casefold() == ".geojson"]
    found = own or [path for path in paths if _speaks_of_features(path)]
    if found or (source / FOLDER).is_dir():
        return found
    raise FormatError(
        f"{source}: wanted GeoJSON files; found {listing(path.name for path in paths) or 'no JSON file'}."
    )


def _speaks_of_features(path: Path) -> bool:
    try:
        return is_geojson(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return False


def _document(intake: Intake, path: Path, alone: bool) -> _Document | None:
    """What a file says; None, and a problem, where it is no GeoJSON and others are there."""
    place = intake.place(path)
    try:
        data = load(intake.read_text(path), path)
        if not is_geojson(data):
            raise FormatError(f"{path}: is JSON, but no FeatureCollection, Feature or list of features.")
    except FormatError as error:
        if alone:
            raise
        what = f"{error} The file and its image are left out."
        intake.problems.add("annotation-unreadable", place, what, "Write it again, or delete it.", "error")
        return None
    members = data if isinstance(data, dict) and "features" in data else {}
    features = members.get("features", data if isinstance(data, list) else [data])
    return _Document(place[: -len(path.suffix)], place, features, members)


def _references(documents: Sequence[_Document], index: ImageIndex) -> list[Reference]:
    names = [posix_name(_text(document.members, "image") or "") or document.stem for document in documents]
    found = index.resolve(names)
    by_stem = index.resolve({document.stem for document in documents if document.stem not in found})
    table = by_stem | found
    return [
        Reference(
            name=name,
            where=document.place,
            image_id=table[name] or table[document.stem],
            splits=tuple(s for s in (_text(document.members, "split"),) if s) or _split(document.place),
            group=_text(document.members, "group"),
        )
        for name, document in zip(names, documents, strict=True)
    ]


def _text(members: Mapping[str, Any], key: str) -> str | None:
    value = members.get(key)
    return value if isinstance(value, str) and value and is_text(value) else None


def _split(name: str) -> tuple[str, ...]:
    split = split_in_path(name)
    return () if split is None else (split,)


def _stem(name: str) -> str:
    """The last step of a path without the suffixes of GeoJSON and of an image."""
    last = name.rsplit("/", 1)[-1]
    for suffix in SUFFIXES:
        last = last[: -len(suffix)] if last.casefold().endswith(suffix) else last
    return without_image_suffix(last)


# -- features ---------------------------------------------------------------------------------------


def _features(intake: Intake, image: int, document: _Document) -> list[_Found]:
    found: list[_Found] = []
    passed_over = 0
    for number, feature in enumerate(document.features, 1):
        where = f"{document.place}: feature {number}"
        properties = feature.get("properties") if isinstance(feature, dict) else None
        properties = properties if isinstance(properties, dict) else {}
        kind = properties.get("objectType", properties.get("object_type"))
        if isinstance(kind, str) and kind in _NO_CELLS:
            passed_over += 1
            continue
        try:
            polygons, is_open, is_box = _geometry(feature.get("geometry") if isinstance(feature, dict) else None)
        except ValueError as error:
            what = f"{error}; the feature is left out."
            intake.problems.add("annotation-unreadable", where, what, "Correct the file.", "error")
            continue
        if is_open:
            intake.problems.add("ring-open", where, "a ring does not end where it starts; it is closed.", "Close it.")
        score, ignore = _measurement(properties, "score"), _measurement(properties, "ignore") == 1
        found.append(_Found(image, where, _label(properties), score, ignore, polygons, is_box))
    if passed_over:
        what = f"{passed_over} features are tiles or cores, not cells; they are left out."
        intake.problems.add("features-passed-over", document.place, what, severity="note")
    return found


def _label(properties: Mapping[str, Any]) -> str | None:
    """``classification.name``, or the parts of a derived class in ``classification.names``."""
    given = properties.get("classification")
    if isinstance(given, dict):
        names = given.get("names")
        parts = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
        given = given.get("name") or ": ".join(parts)
    return given if isinstance(given, str) and given.strip() and is_text(given) else None


def _measurement(properties: Mapping[str, Any], name: str) -> float | None:
    """A measurement by name, from an object of them (QuPath 0.4) or a list of name and value (before)."""
    given = properties.get("measurements")
    if isinstance(given, list):
        given = {str(one.get("name")): one.get("value") for one in given if isinstance(one, dict)}
    value = given.get(name) if isinstance(given, dict) else None
    return None if value is None else as_number(value)


def _geometry(geometry: Any) -> tuple[list[list[contours.Ring]], bool, bool]:
    """The polygons of a geometry; whether one of its rings is open; whether it is a plain rectangle.

    Raises:
        ValueError: it is no polygon, or a ring has too few points or something else than numbers.
    """
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if not isinstance(geometry, dict) or kind not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"its geometry is {json.dumps(kind)[:30]}, not Polygon or MultiPolygon")
    given: Any = geometry.get("coordinates")
    polygons = [given] if kind == "Polygon" else given
    if not isinstance(polygons, list) or not polygons or not all(isinstance(p, list) and p for p in polygons):
        raise ValueError("its geometry has no rings")
    rings = [[_ring(ring) for ring in polygon] for polygon in polygons]
    is_open = any(not closed for polygon in rings for _, closed in polygon)
    shapes = [[ring for ring, _ in polygon] for polygon in rings]
    is_box = len(shapes) == len(shapes[0]) == 1 and _is_rectangle(shapes[0][0]) and not geometry.get("isEllipse")
    return shapes, is_open, is_box


def _ring(positions: Any) -> tuple[contours.Ring, bool]:
    """A ring without its last point where that repeats the first, and whether it does."""
    try:
        points = np.array([(float(x), float(y)) for x, y, *_ in positions], np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("a ring is no list of positions, each of two or three numbers") from None
    closed = len(points) > 1 and bool((points[0] == points[-1]).all())
    points = points[:-1] if closed else points
    if len(points) < 3 or not np.isfinite(points).all():
        raise ValueError("a ring needs at least three points besides the one that closes it, all of them numbers")
    return points, closed


def _is_rectangle(ring: contours.Ring) -> bool:
    """Whether a ring has exactly the four corners of an upright rectangle."""
    if len(ring) != 4:
        return False
    same = ring == np.roll(ring, -1, axis=0)
    return bool((same[[0, 2], 0].all() and same[[1, 3], 1].all()) or (same[[0, 2], 1].all() and same[[1, 3], 0].all()))


def _cells(intake: Intake, found: Sequence[_Found], pictures: Sequence[Picture | None]) -> pl.DataFrame:
    """The features as `ROWS`."""
    kept = [(cell, picture) for cell in found if (picture := pictures[cell.image]) is not None]
    edges = [cell.edges for cell, _ in kept]
    return rows(
        {
            "image": [cell.image for cell, _ in kept],
            "where": [cell.where for cell, _ in kept],
            "label": [cell.label for cell, _ in kept],
            **{name: [box[axis] for box in edges] for axis, name in enumerate(BOX_COLUMNS)},
            "score": [cell.score for cell, _ in kept],
            "ignore": [cell.ignore for cell, _ in kept],
            "mask": [_mask(intake, cell, picture) for cell, picture in kept],
        }
    )


def _mask(intake: Intake, cell: _Found, picture: Picture) -> bytes | None:
    if cell.is_box:
        return None
    try:
        if picture.size_wh is None:
            raise ValueError("the size of the image is not known")
        if picture.size_wh[0] * picture.size_wh[1] > MAX_PIXELS:
            raise ValueError("the image is too large for masks")
        positions = contours.positions_inside(cell.polygons, picture.size_wh)
    except ValueError as error:
        what = f"the outline cannot be used: {error}; only the box is kept."
        intake.problems.add("mask-unreadable", cell.where, what, "Correct the file.", "error")
        return None
    if not len(positions):
        what = "the outline holds the centre of no pixel of the image; only the box is kept."
        intake.problems.add("mask-empty", cell.where, what, "Look at the image with this outline.")
        return None
    return run_lengths.code_of_positions(positions, picture.size_wh)
