"""The files of label images: which there are, whose they are, what numbers they hold and what these are called."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytolens.formats import tables
from cytolens.formats.intake import Intake
from cytolens.formats.sources import ImageIndex, absolute, is_text, posix_name, walk, without_image_suffix
from cytolens.problems import FormatError, listing

Values = NDArray[np.integer]

# Of the pixels of a label image the numbers are sorted, which takes many bytes for each.
_MOST_PIXELS = 100_000_000

SUFFIXES = (".png", ".tif", ".tiff")
# What the folder is called, and what stands behind an image's name where both are in one folder.
FOLDERS = frozenset({"masks", "mask", "labels", "label_images", "label_masks", "instances", "segmentations"})
MARKS = ("_cp_masks", "_masks", "_mask", "_labels", "_label", "_instances", "-labelled")
SYNONYMS: Mapping[str, Sequence[str]] = tables.SYNONYMS | {
    "value": ("value", "pixel value", "instance", "instance id", "object", "id"),
}


# -- which files ------------------------------------------------------------------------------------


def find_label_files(source: Path, images: Path | None) -> dict[str, Path] | None:
    """Label images below a folder, by their path without suffix; None where nothing says which they are.

    They lie in a folder of `FOLDERS`, or have a mark of `MARKS`; where neither is so and the images lie in
    another folder, `images`, they are all PNG and TIFF files that are not in that one.
    """
    inside: dict[str, Path] = {}
    marked: dict[str, Path] = {}
    others: dict[str, Path] = {}
    for name, entry in walk(source):
        if not name.casefold().endswith(SUFFIXES) or not is_text(name):
            continue
        path, stem = absolute(entry.path), without_image_suffix(name)
        if any(step.casefold() in FOLDERS for step in name.split("/")[:-1]):
            inside[stem] = path
        elif stem.casefold().endswith(MARKS):
            marked[stem] = path
        elif images is None or not path.is_relative_to(absolute(images)):
            others[stem] = path
    if inside or any((source / folder).is_dir() for folder in FOLDERS):
        return inside
    return marked or (others if images is not None else None)


def photo_name(name: str, index: ImageIndex, labels_themselves: Collection[str]) -> str:
    """What the image of a label image is called: the first of the likely names that is there, else the likeliest."""
    steps = name.split("/")
    at = next((i for i, step in enumerate(steps[:-1]) if step.casefold() in FOLDERS), None)
    paths = [name] if at is None else ["/".join([*steps[:at], *steps[at + 1 :]])]
    if at is not None:
        paths.insert(0, "/".join([*steps[:at], "images", *steps[at + 1 :]]))
    names = [form for path in paths for form in dict.fromkeys([path, without_mark(path)])]
    there = (form for form in names if (found := index.exactly(form)) is not None and found not in labels_themselves)
    return next(there, without_mark(paths[-1]))


def without_mark(name: str) -> str:
    """A name without the mark of a label image at its end."""
    mark = next((mark for mark in MARKS if name.casefold().endswith(mark)), "")
    return name[: len(name) - len(mark)]


# -- what numbers they hold -------------------------------------------------------------------------


def label_values(data: bytes) -> Values:
    """The numbers of a label image, shape (height, width), of 16 bits where they fit and else of 64.

    Raises:
        ValueError: it is no PNG or TIFF, is damaged or too large, has several channels, or numbers that
            are negative or not whole.
    """
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            values = _png(data)
        elif data[:4] in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"):
            values = _tiff(data)
        else:
            raise ValueError("it is neither PNG nor TIFF; other formats do not keep numbers exactly")
    except ValueError:
        raise
    except Exception as error:  # decoders raise whatever they like on damaged data
        raise ValueError(f"it cannot be decoded ({str(error) or type(error).__name__})") from error
    if values.ndim != 2:
        shape = " × ".join(map(str, values.shape))
        raise ValueError(f"it holds {shape} values, a colour picture perhaps; wanted one number per pixel")
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and (values == np.rint(values)).all() and (np.abs(values) < 2.0**53).all()):
            raise ValueError("its numbers are not whole")
    elif values.dtype.kind not in "iub":
        raise ValueError(f"it holds values of type {values.dtype}")
    if values.size and values.min() < 0:
        raise ValueError(f"it holds the negative number {int(values.min())}")
    most = int(values.max()) if values.size else 0
    if most > np.iinfo(np.int64).max:
        raise ValueError(f"it holds the number {most}")
    return values.astype(np.uint16 if most < 1 << 16 else np.int64)  # NumPy sorts 16 bits in no time


def _too_large(width: int, height: int) -> None:
    if width * height > _MOST_PIXELS:
        raise ValueError(f"{width} × {height} px are more than the {_MOST_PIXELS:,} allowed")


def _png(data: bytes) -> NDArray[np.generic]:
    from PIL.PngImagePlugin import PngImageFile

    image = PngImageFile(io.BytesIO(data))
    _too_large(*image.size)
    return np.asarray(image)  # of a palette its numbers, not its colours


def _tiff(data: bytes) -> NDArray[np.generic]:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        _too_large(page.imagewidth, page.imagelength)
        return page.asarray()


# -- what the numbers are called --------------------------------------------------------------------


@dataclass(frozen=True)
class Meaning:
    """What a CSV says of one number."""

    label: str | None
    score: float | None
    ignore: bool
    where: str


@dataclass(frozen=True)
class Meanings:
    """What the numbers of label images stand for.

    Attributes:
        rows: image (None: any) and number → what it means.
        splits, groups: image → its split and group.
        named: every image that the CSV names.
        default: the label of numbers that nobody names.
        is_table: whether a CSV was read.
    """

    rows: Mapping[tuple[str | None, int], Meaning] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    named: frozenset[str] = frozenset()
    default: str | None = None
    is_table: bool = False

    def key(self, name: str) -> str | None:
        """What the CSV calls the image of a label image: its path, that inside its folder, or its last step."""
        steps = name.split("/")
        forms = ["/".join(steps[at:]) for at in range(len(steps))]
        return next((form for path in forms for form in (path, without_mark(path)) if form in self.named), None)

    def of(self, key: str | None, value: int) -> Meaning | None:
        """What a number of an image means; None where nobody said."""
        return self.rows.get((key, value)) or self.rows.get((None, value))


def read_meanings(intake: Intake, source: Path, files: Mapping[str, Path]) -> Meanings:
    """The CSV of labels beside the label images or at the top, if there is one, and `ReadOptions.label`.

    Raises:
        FormatError: there are several, or it is no proper CSV.
    """
    folders = dict.fromkeys([*(path.parent for path in files.values()), *(source / f for f in sorted(FOLDERS)), source])
    there = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]
    fitting = [path for path in there if path.suffix.lower() in tables.SUFFIXES and _names_values(path)]
    if len(fitting) > 1:
        raise FormatError(f"several files say what the numbers mean: {listing(map(intake.place, fitting))}. Keep one.")
    if not fitting:
        return Meanings(default=intake.options.label)
    table = tables.read_table(
        intake, fitting[0], ("value",), ("image", "label", "score", "ignore", "split", "group"), SYNONYMS
    )
    return _meanings(intake, table, intake.place(fitting[0]))


def _names_values(path: Path) -> bool:
    return {"value", "label"} <= tables.header_of(path, SYNONYMS)


def _meanings(intake: Intake, table: tables.Table, place: str) -> Meanings:
    images = [without_image_suffix(posix_name(text or "")) or None for text in table.texts("image")]
    texts = {name: table.texts(name) for name in ("value", "label", "split", "group")}
    scores, flags = table.numbers("score"), table.flags("ignore")
    rows: dict[tuple[str | None, int], Meaning] = {}
    for row, (image, text) in enumerate(zip(images, texts["value"], strict=True)):
        if text is None:  # an image of which only the split or group is told
            continue
        where = f"{place}:{table.lines[row]}"
        if not (text.isascii() and text.isdigit() and len(text) < 16) or (image, int(text)) in rows:
            what = f'the value "{text}" is not a whole number, or is there twice; the row is left out.'
            intake.problems.add("value-unreadable", where, what, "Correct the file.", "error")
            continue
        rows[image, int(text)] = Meaning(texts["label"][row], scores[row], flags[row], where)
    parts = {
        name: {image: text for image, text in zip(images, texts[name], strict=True) if image and text}
        for name in ("split", "group")
    }
    named = frozenset(image for image in images if image)
    return Meanings(rows, parts["split"], parts["group"], named, intake.options.label, True)
