"""Which format a source is in, decided by looking at it.

A layout that only one format has (VOC's XML, YOLO's labels, COCO's lists, GeoJSON's features) is a strong
sign; a table, masks or folders of images are weak ones, because they are often found beside a data set of
another format.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from cytolens.formats import tables
from cytolens.formats.coco_json import is_instances, is_results, load
from cytolens.formats.geojson import is_geojson
from cytolens.formats.intake import decode_text
from cytolens.formats.label_files import FOLDERS as LABEL_FOLDERS
from cytolens.formats.label_files import find_label_files, without_mark
from cytolens.formats.rle_csv import looks_like_runs
from cytolens.formats.sources import SPLIT_NAMES, walk, without_image_suffix
from cytolens.formats.wbcatt import is_wbcatt
from cytolens.formats.yolo import looks_like_labels
from cytolens.formats.yolo_classes import CLASS_FILES, names_classes
from cytolens.problems import FormatError, listing

_LOOKED_FOR = (
    "voc (XML files with the root <annotation>), yolo (data.yaml or classes.txt, text files of fractions), "
    "coco (JSON with images, annotations and categories), csv_boxes (a CSV file with an image, four edges and a "
    "class), image_folder (a CSV file with image and label, or a folder of images per class), rle_csv (a CSV file "
    "with an image and a run-length code), label_images (a folder called masks beside the images), geojson (features), "
    "wbcatt (CSV files with img_name, label and eleven attributes)"
)
_FEW = 5  # files of one kind that are opened


@dataclass(frozen=True)
class Recognised:
    """The format of a source, why, and what else is there."""

    format: str
    why: str
    others: tuple[str, ...] = ()


def recognise(source: Path) -> Recognised:
    """The format of a file or folder.

    Raises:
        FormatError: it is in none of the formats, or in several alike.
    """
    if (source / "dataset.json").exists():
        raise FormatError(f"{source}: is a dataset of this program already; no import is needed.")
    if source.is_file():
        return _of_file(source)
    files = [(name, Path(entry.path)) for name, entry in walk(source)]
    strong = _signs(files, {"voc": _voc, "yolo": _yolo, "coco": _coco, "geojson": _geojson, "wbcatt": _wbcatt})
    weak = _signs(files, {"csv_boxes": _csv_boxes, "rle_csv": _rle_csv, "image_folder": _image_labels})
    if "rle_csv" in weak and weak["rle_csv"] == weak.get("image_folder"):
        del weak["image_folder"]  # one table of images, codes and labels
    if "wbcatt" in strong and strong["wbcatt"] == weak.get("image_folder"):
        del weak["image_folder"]  # WBCAtt's table is also one of image labels
    if masks := _label_images(source, files):
        weak["label_images"] = masks
    weak = weak or _signs(files, {"image_folder": _class_folders})
    signs = strong or weak
    if len(signs) > 1:
        seen = "; ".join(f"{format} ({why})" for format, why in signs.items())
        raise FormatError(f"{source}: could be any of {seen}. Name the format.")
    if not signs:
        raise FormatError(f"{source}: is in no known format. Looked for: {_LOOKED_FOR}.")
    (format, why), *_ = signs.items()
    others = tuple(f"{other} ({reason})" for other, reason in weak.items()) if strong else ()
    return Recognised(format, why, others)


_Files = list[tuple[str, Path]]


def _signs(files: _Files, looks: dict[str, Callable[[_Files], str | None]]) -> dict[str, str]:
    found = {format: look(files) for format, look in looks.items()}
    return {format: why for format, why in found.items() if why is not None}


def _of_file(path: Path) -> Recognised:
    suffix = path.suffix.lower()
    if suffix == ".json" and _is_coco(path):
        return Recognised("coco", "a list of images or results")
    if suffix in (".json", ".geojson") and _is_geojson(path):
        return Recognised("geojson", "features")
    if is_wbcatt(path):
        return Recognised("wbcatt", path.name)
    if suffix in tables.SUFFIXES and looks_like_runs(path):
        return Recognised("rle_csv", path.name)
    if suffix in (".yaml", ".yml") and names_classes(path):
        return Recognised("yolo", "names of classes")
    if suffix in tables.SUFFIXES and (why := _table_of([(path.name, path)], tables.is_boxes)):
        return Recognised("csv_boxes", why)
    if suffix in tables.SUFFIXES and (why := _table_of([(path.name, path)], tables.is_image_labels)):
        return Recognised("image_folder", why)
    raise FormatError(f"{path}: is in no known format. Looked for: {_LOOKED_FOR}.")


def _voc(files: _Files) -> str | None:
    pages = [(name, path) for name, path in files if name.casefold().endswith(".xml")]
    marked = [name for name, path in pages[:_FEW] if b"<annotation" in _start(path)]
    return marked[0] if marked else None


def _yolo(files: _Files) -> str | None:
    for name, path in files:
        if "/" not in name and path.suffix.lower() in (".yaml", ".yml") and names_classes(path):
            return name
    texts = {n: path for n, path in files if path.suffix == ".txt" and path.name.casefold() not in CLASS_FILES}
    in_labels = {name: path for name, path in texts.items() if "labels" in name.casefold().split("/")[:-1]}
    if filled := next((name for name, path in in_labels.items() if looks_like_labels(path)), None):
        return filled
    # A list of classes alone may belong to an annotation program; it counts beside files that can be labels.
    images = {without_image_suffix(name) for name, _ in files}
    usable = in_labels or any(name.removesuffix(".txt") in images for name in texts)
    return next((name for name, path in files if usable and path.name.casefold() in CLASS_FILES), None)


def _coco(files: _Files) -> str | None:
    return next((name for name, path in files if name.casefold().endswith(".json") and _is_coco(path)), None)


def _is_coco(path: Path) -> bool:
    try:
        data = load(decode_text(path.read_bytes(), str(path)), path)
    except (OSError, FormatError):
        # A damaged file may still be meant as COCO; reading it says what is wrong.
        return b'"categories"' in _start(path) or b'"annotations"' in _start(path)
    return is_instances(data) or is_results(data)


def _geojson(files: _Files) -> str | None:
    own = (name for name, _ in files if name.casefold().endswith(".geojson"))
    return next(own, None) or next(
        (name for name, path in files if name.casefold().endswith(".json") and _is_geojson(path)), None
    )


def _is_geojson(path: Path) -> bool:
    if b'"Feature' not in _start(path):
        return False
    try:
        return is_geojson(load(decode_text(path.read_bytes(), str(path)), path))
    except (OSError, FormatError):
        return True  # damaged; reading it says what is wrong


def _rle_csv(files: _Files) -> str | None:
    at_top = [(n, path) for n, path in files if "/" not in n and path.suffix.lower() in tables.SUFFIXES]
    return next((name for name, path in at_top if looks_like_runs(path)), None)


def _label_images(source: Path, files: _Files) -> str | None:
    """A label image whose image is there as well."""
    found = find_label_files(source, None) or {}
    stems = {without_image_suffix(name.rsplit("/", 1)[-1]) for name, _ in files if not _is_label_image(name, found)}
    lasts = ((name, name.rsplit("/", 1)[-1]) for name in found)
    return next((name for name, last in lasts if {last, without_mark(last)} & stems), None)


def _is_label_image(name: str, found: Collection[str]) -> bool:
    return without_image_suffix(name) in found or any(step.casefold() in LABEL_FOLDERS for step in name.split("/")[:-1])


def _wbcatt(files: _Files) -> str | None:
    return next((name for name, path in files if "/" not in name and is_wbcatt(path)), None)


def _csv_boxes(files: _Files) -> str | None:
    return _table_of(files, tables.is_boxes)


def _image_labels(files: _Files) -> str | None:
    return _table_of(files, tables.is_image_labels)


def _table_of(files: _Files, fits: Callable[[set[str]], bool]) -> str | None:
    at_top = [(n, path) for n, path in files if "/" not in n and path.suffix.lower() in tables.SUFFIXES]
    return next((name for name, path in at_top if fits(tables.header_of(path))), None)


def _class_folders(files: _Files) -> str | None:
    """Folders of images; a single one, or one called images, need not mean a class."""
    images = (name.split("/")[:-1] for name, path in files if without_image_suffix(path.name) != path.name)
    within = (steps[1:] if steps and steps[0].casefold() in SPLIT_NAMES else steps for steps in images)
    classes = sorted({steps[0] for steps in within if steps} - {"images"})
    return f"folders {listing(classes, 3)}" if len(classes) > 1 else None


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(4096)
    except OSError:
        return b""
