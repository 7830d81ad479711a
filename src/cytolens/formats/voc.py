"""Pascal VOC: one XML file per image in ``Annotations``, parts listed in ``ImageSets/Main``.

Corners are taken as pixel edges, without the "+1" of the original challenge. ``difficult`` becomes
`ignore`; ``truncated`` and ``pose`` are not kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ElementTree, ParseError, SubElement, indent

import polars as pl

from cytolens.cells import BOX_COLUMNS, Cells
from cytolens.dataset import Dataset
from cytolens.formats.assembly import Imported, assemble, rows
from cytolens.formats.export import copy_images, file_names, folder_name, number_text, output_folder
from cytolens.formats.intake import Intake, Reference, as_number
from cytolens.formats.options import ReadOptions, WriteOptions
from cytolens.formats.sources import ImageIndex, posix_name, walk, without_image_suffix
from cytolens.problems import FormatError, Problems, listing, written

CANNOT_KEEP = (
    "cells without a label",
    "cells below the threshold",
    "scores",
    "probabilities",
    "masks",
    "attributes",
    "referral flags",
    "cell ids",
    "sources",
    "groups",
    "folds",
    "pixel sizes in µm",
    "stains, scanners and magnifications",
    "what the annotation is complete for",
    "label trees",
    "labels without cells",
)
_CORNERS = {"x_min": "xmin", "y_min": "ymin", "x_max": "xmax", "y_max": "ymax"}
_USUAL = {"train": 0, "val": 1, "test": 2}  # the lists that count first where an image is in several


@dataclass(frozen=True, slots=True)
class _Page:
    """One XML file: its name without suffix relative to the annotations, its place, and what it says."""

    stem: str
    where: str
    filename: str
    size_wh: tuple[int, int] | None
    objects: tuple[Mapping[str, Any], ...]


def read(source: Path, options: ReadOptions) -> Imported:
    """Read a folder with ``Annotations/*.xml`` and ``JPEGImages`` (or ``images``), or with XML files anywhere.

    Raises:
        FormatError: the folder holds no XML file and no ``Annotations``, or no image is found.
    """
    if not source.is_dir():
        raise FormatError(f"{source}: VOC is a folder with Annotations/*.xml; this is a file.")
    intake = Intake("voc", source, options)
    folder = source / "Annotations" if (source / "Annotations").is_dir() else source
    paths = {name.removesuffix(".xml"): Path(entry.path) for name, entry in walk(folder) if name.endswith(".xml")}
    if not paths and folder == source:
        raise FormatError(f"{source}: wanted XML files, in Annotations or anywhere below; found none.")
    pages = [page for stem, path in paths.items() if (page := _page(intake, stem, path)) is not None]
    index = intake.index("JPEGImages", "images")
    lists = _SplitLists(intake, source / "ImageSets" / "Main", [*paths, *(_stem(i, index) for i in index.ids)])
    references = _references(intake, pages, index, lists)
    # The image of a file that could not be read must not pass for one without cells.
    unread = {stem.rsplit("/", 1)[-1] for stem in set(paths) - {page.stem for page in pages}}
    references += [
        Reference(image_id, image_id, image_id, lists.of(_stem(image_id, index)), annotated=False)
        for image_id in index.others({reference.image_id for reference in references})
        if _stem(image_id, index).rsplit("/", 1)[-1] not in unread
    ]
    pictures = intake.locate(references, index)
    cells = rows(
        {
            "image": [i for i, page in enumerate(pages) for _ in page.objects],
            "where": [f"{page.where}: object {n}" for page in pages for n in range(1, len(page.objects) + 1)],
            **{
                name: [cell[name] for page in pages for cell in page.objects]
                for name in ("label", *BOX_COLUMNS, "ignore")
            },
        }
    )
    return assemble(intake, references, pictures, cells)


def _page(intake: Intake, stem: str, path: Path) -> _Page | None:
    """What one XML file says; None, and a problem, where it is not such a file."""
    from defusedxml.ElementTree import fromstring

    where = intake.place(path)
    try:
        root: Element = fromstring(intake.read_bytes(path))
    except (FormatError, ParseError, ValueError, LookupError) as error:
        reason = f"cannot be read as XML ({error})"
    else:
        if root.tag == "annotation":
            objects = tuple(_object(element) for element in root.findall("object"))
            return _Page(stem, where, posix_name(root.findtext("filename") or ""), _size(root), objects)
        reason = f"is XML, but its root is <{root.tag}>, not <annotation>"
    what = f"{reason}; the file and its image are left out."
    intake.problems.add("annotation-unreadable", where, what, "Write it again, or delete it.", "error")
    return None


def _size(root: Element) -> tuple[int, int] | None:
    width, height = (as_number(root.findtext(f"size/{side}")) for side in ("width", "height"))
    good = 1 <= width < 2**31 and 1 <= height < 2**31
    return (int(width), int(height)) if good else None  # many programs write 0 for "not known"


def _object(element: Element) -> dict[str, Any]:
    cell: dict[str, Any] = {ours: as_number(element.findtext(f"bndbox/{theirs}")) for ours, theirs in _CORNERS.items()}
    cell["label"] = (element.findtext("name") or "").strip()
    cell["ignore"] = as_number(element.findtext("difficult")) == 1
    return cell


# -- which image, which split -----------------------------------------------------------------------


def _references(intake: Intake, pages: Sequence[_Page], index: ImageIndex, lists: _SplitLists) -> list[Reference]:
    """The image of each page: the one it names, unless one is called like the XML file itself."""
    named = index.resolve([page.filename for page in pages if page.filename], any_suffix=True)
    near = index.resolve([page.stem for page in pages], any_suffix=True)
    references = []
    for page in pages:
        by_name, by_stem = named.get(page.filename), index.exactly(page.stem, any_suffix=True)
        if by_name is not None and by_stem is not None and by_name != by_stem:
            what = f'names "{page.filename}", but the image "{by_stem}" is called like the file; that one is taken.'
            intake.problems.add("filename-mismatch", page.where, what, "Correct <filename>.")
        references.append(
            Reference(
                name=page.filename or page.stem,
                where=page.where,
                image_id=by_stem or by_name or near[page.stem],
                splits=lists.of(page.stem),
                size_wh=page.size_wh,
            )
        )
    return references


def _stem(image_id: str, index: ImageIndex) -> str:
    return without_image_suffix(image_id.removeprefix(index.base))


class _SplitLists:
    """Which splits an image is in, as ``ImageSets/Main/*.txt`` say."""

    def __init__(self, intake: Intake, folder: Path, stems: Iterable[str]) -> None:
        self._stems = set(stems)
        self._members: dict[str, list[str]] = {}
        files = list(folder.glob("*.txt")) if folder.is_dir() else []
        for path in sorted(files, key=lambda path: (_USUAL.get(path.stem, len(_USUAL)), path.name)):
            try:
                text = intake.read_text(path)
            except FormatError as error:
                intake.problems.add("annotation-unreadable", intake.place(path), str(error), severity="error")
                continue
            for stem in self._listed(text):
                self._members.setdefault(stem, []).append(path.stem)
        self._note_strays(intake)

    def of(self, stem: str) -> tuple[str, ...]:
        """The splits of an image by its path without suffix; its bare name serves where no other image is called so."""
        bare = stem.rsplit("/", 1)[-1]
        own = self._members.get(stem, [])
        return tuple(dict.fromkeys(own or (self._members.get(bare, []) if bare not in self._stems else [])))

    def _listed(self, text: str) -> list[str]:
        """The entries of a list; one per class, which has "1" or "-1" behind each name, is not a split."""
        stems = [without_image_suffix(name) for line in text.splitlines() if (name := posix_name(line))]
        marked = [stem not in self._stems and stem.rsplit(None, 1)[0] in self._stems for stem in stems]
        return [] if stems and all(marked) else stems

    def _note_strays(self, intake: Intake) -> None:
        known = self._stems | {stem.rsplit("/", 1)[-1] for stem in self._stems}
        if strays := sorted(set(self._members) - known):
            what = f"{len(strays)} entries name neither an XML file nor an image: {listing(strays, 3)}."
            intake.problems.add("split-entry-missing", "ImageSets/Main", what, "Correct the lists.")


# -- writing ----------------------------------------------------------------------------------------


def write(data: Dataset, path: Path, options: WriteOptions) -> Problems:
    """Write ``Annotations/<image>.xml`` and ``ImageSets/Main/<split>.txt`` into the new folder `path`.

    With `options.copy_images` the images go to ``JPEGImages``.

    Raises:
        FormatError: the folder is not empty, two images differ in suffix only, a split cannot name a
            file, or a label holds a character that XML cannot.
    """
    problems = Problems()
    names = file_names(data.images.ids, by_stem=True)
    cells_of = dict(data.cells.filter(pl.col("label").is_not_null()).by_image())
    trees: dict[str, ElementTree] = {}
    lists: dict[str, str] = {}
    for row in data.images.rows():
        stem = without_image_suffix(names[row["image_id"]])
        trees[stem] = _tree(names[row["image_id"]], row, cells_of.get(row["image_id"]))
        if row["split"] is not None:
            split = folder_name(row["split"], "split")
            lists[split] = lists.get(split, "") + f"{stem}\n"
    target = output_folder(path)
    (target / "Annotations").mkdir()
    for stem, tree in trees.items():
        with written(target / "Annotations" / f"{stem}.xml") as part:
            tree.write(part, encoding="utf-8")
    for split, text in lists.items():
        with written(target / "ImageSets" / "Main" / f"{split}.txt") as part:
            part.write_text(text, encoding="utf-8")
    if options.copy_images:
        copy_images(data.images, {i: target / "JPEGImages" / name for i, name in names.items()}, problems)
    return problems


def _tree(name: str, image: Mapping[str, Any], cells: Cells | None) -> ElementTree:
    root = Element("annotation")
    _text(root, "folder", "JPEGImages")
    _text(root, "filename", name)
    size = SubElement(root, "size")
    _text(size, "width", str(image["width_px"] or 0))
    _text(size, "height", str(image["height_px"] or 0))
    _text(size, "depth", "3")
    _text(root, "segmented", "0")
    if cells is not None:
        for label, ignore, *box in cells.frame.select("label", "ignore", *BOX_COLUMNS).iter_rows():
            cell = SubElement(root, "object")
            _text(cell, "name", label)
            _text(cell, "pose", "Unspecified")
            _text(cell, "truncated", "0")
            _text(cell, "difficult", str(int(ignore)))
            corners = SubElement(cell, "bndbox")
            for theirs, value in zip(_CORNERS.values(), box, strict=True):
                _text(corners, theirs, number_text(value))
    indent(root, "\t")
    return ElementTree(root)


def _text(parent: Element, tag: str, text: str) -> None:
    if re.search(r"[\x00-\x08\x0b-\x1f\ufffe\uffff]", text):
        raise FormatError(f"XML cannot hold the control character in {text!r}. Rename it first.")
    SubElement(parent, tag).text = text
